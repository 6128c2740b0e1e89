"""Protocol Buffers, as far as ONNX needs them: the wire format, and the messages of onnx.proto as one table.

https://protobuf.dev/programming-guides/encoding and https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A message
is a dict with every field of its row, absent ones at their defaults; unknown fields are skipped. Bytes stay views of
the file. What a file claims is checked against its size before anything is made of it.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from cyxcore.errors import FormatError

MAX_DEPTH = 40
MAX_MESSAGES = 500_000

# Message -> field number -> (name, kind). Kinds: int, float, double, str, bytes or the name of a message; "*" repeats.
MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "int"),
        2: ("producer_name", "str"),
        3: ("producer_version", "str"),
        4: ("domain", "str"),
        5: ("model_version", "int"),
        6: ("doc_string", "str"),
        7: ("graph", "Graph"),
        8: ("opset_import", "*Opset"),
        14: ("metadata_props", "*Entry"),
        20: ("training_info", "*Skipped"),
        25: ("functions", "*Function"),
    },
    "Opset": {1: ("domain", "str"), 2: ("version", "int")},
    "Entry": {1: ("key", "str"), 2: ("value", "str")},
    "Skipped": {},
    "Function": {1: ("name", "str"), 10: ("domain", "str")},
    "Graph": {
        1: ("node", "*Node"),
        2: ("name", "str"),
        5: ("initializer", "*Tensor"),
        10: ("doc_string", "str"),
        11: ("input", "*ValueInfo"),
        12: ("output", "*ValueInfo"),
        13: ("value_info", "*ValueInfo"),
        15: ("sparse_initializer", "*Skipped"),
    },
    "Node": {
        1: ("input", "*str"),
        2: ("output", "*str"),
        3: ("name", "str"),
        4: ("op_type", "str"),
        5: ("attribute", "*Attribute"),
        6: ("doc_string", "str"),
        7: ("domain", "str"),
    },
    "Attribute": {
        1: ("name", "str"),
        2: ("f", "float"),
        3: ("i", "int"),
        4: ("s", "bytes"),
        5: ("t", "Tensor"),
        6: ("g", "Graph"),
        7: ("floats", "*float"),
        8: ("ints", "*int"),
        9: ("strings", "*bytes"),
        10: ("tensors", "*Tensor"),
        11: ("graphs", "*Graph"),
        20: ("type", "int"),
        21: ("ref_attr_name", "str"),
    },
    "Tensor": {
        1: ("dims", "*int"),
        2: ("data_type", "int"),
        4: ("float_data", "*float"),
        5: ("int32_data", "*int"),
        6: ("string_data", "*bytes"),
        7: ("int64_data", "*int"),
        8: ("name", "str"),
        9: ("raw_data", "bytes"),
        10: ("double_data", "*double"),
        11: ("uint64_data", "*int"),
        13: ("external_data", "*Entry"),
        14: ("data_location", "int"),
    },
    "ValueInfo": {1: ("name", "str"), 2: ("type", "Type")},
    "Type": {1: ("tensor_type", "TensorType"), 4: ("sequence_type", "Inner"), 9: ("optional_type", "Inner")},
    "Inner": {1: ("elem_type", "Type")},
    "TensorType": {1: ("elem_type", "int"), 2: ("shape", "Shape")},
    "Shape": {1: ("dim", "*Dimension")},
    "Dimension": {1: ("dim_value", "int"), 2: ("dim_param", "str")},
}
_DEFAULTS: dict[str, Any] = {"int": 0, "float": 0.0, "double": 0.0, "str": "", "bytes": b""}
_NUMBERS: dict[str, Any] = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}


class _Reader:
    """One file being read: counts what was made of it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.messages = 0

    def error(self, what: str) -> FormatError:
        return FormatError(f"{self.where}: no readable protobuf: {what}")

    def varint(self, data: memoryview, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise self.error("a number does not end")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (2**64 - 1), at
            shift += 7

    def piece(self, data: memoryview, at: int, size: int) -> tuple[memoryview, int]:
        if size > len(data) - at:
            raise self.error(f"a field claims {size} bytes, {len(data) - at} are left")
        return data[at : at + size], at + size

    def message(self, kind: str, data: memoryview, depth: int = 0) -> dict[str, Any]:
        self.messages += 1
        if depth > MAX_DEPTH or self.messages > MAX_MESSAGES:
            raise self.error(f"expected at most {MAX_DEPTH} levels and {MAX_MESSAGES} messages")
        fields, result, at = MESSAGES[kind], empty(kind), 0
        runs: dict[str, list[Any]] = {}  # repeated numbers, as they came
        while at < len(data):
            tag, at = self.varint(data, at)
            wire, number = tag & 7, tag >> 3
            value: Any
            if wire == 0:
                value, at = self.varint(data, at)
            elif wire == 1:
                value, at = self.piece(data, at, 8)
            elif wire == 5:
                value, at = self.piece(data, at, 4)
            elif wire == 2:
                size, at = self.varint(data, at)
                value, at = self.piece(data, at, size)
            else:
                raise self.error(f"wire type {wire}")
            if number in fields:
                name, field = fields[number]
                if field in ("*int", "*float", "*double"):
                    runs.setdefault(name, []).append(self.numbers(field[1:], wire, value))
                elif field[0] == "*":
                    result[name].append(self.single(field[1:], wire, value, depth))
                else:
                    result[name] = self.single(field, wire, value, depth)
        for name, found in runs.items():
            result[name] = found[0] if len(found) == 1 else np.concatenate(found)
        return result

    def single(self, kind: str, wire: int, value: Any, depth: int) -> Any:
        wanted = {"int": 0, "float": 5, "double": 1}.get(kind, 2)
        if wire != wanted:
            raise self.error(f"expected wire type {wanted} for a field of kind {kind}, got {wire}")
        if kind == "int":
            return value - 2**64 if value >= 2**63 else value
        if kind in _NUMBERS:
            return float(np.frombuffer(value, _NUMBERS[kind])[0])
        if kind == "str":
            try:
                return str(value, "utf-8")
            except UnicodeDecodeError:
                raise self.error(f"a text is no UTF-8: {bytes(value[:40])!r}") from None
        return value if kind == "bytes" else self.message(kind, value, depth + 1)

    def numbers(self, kind: str, wire: int, value: Any) -> Any:
        """Repeated numbers: packed into one field, or one by one."""
        if wire != 2:
            return np.array([self.single(kind, wire, value, 0)], "int64" if kind == "int" else _NUMBERS[kind])
        if kind == "int":
            return self.varints(value)
        if len(value) % _NUMBERS[kind].itemsize:
            raise self.error(f"packed {kind}s of {len(value)} bytes")
        return np.frombuffer(value, _NUMBERS[kind])

    def varints(self, data: memoryview) -> Any:
        raw = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(raw < 128)
        if len(raw) and raw[-1] >= 128:
            raise self.error("a number does not end")
        sizes = np.diff(ends, prepend=-1)
        if len(sizes) and sizes.max() > 10:
            raise self.error("a number of more than 64 bits")
        values = np.zeros(len(ends), np.uint64)
        for place in range(int(sizes.max()) if len(sizes) else 0):
            longer = sizes > place
            part = raw[ends[longer] - sizes[longer] + 1 + place] & 127
            values[longer] |= part.astype(np.uint64) << np.uint64(7 * place)
        return values.view(np.int64)


def empty(kind: str) -> dict[str, Any]:
    """A message without anything in it."""
    return {
        name: [] if field[0] == "*" else _DEFAULTS.get(field)  # None: a message that is not there
        for name, field in MESSAGES[kind].values()
    }


def decode(kind: str, data: bytes | memoryview, where: str) -> dict[str, Any]:
    """A message from its bytes. Raises FormatError; `where` starts its text."""
    return _Reader(where).message(kind, memoryview(data))


# writing ------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


Piece = bytes | memoryview


def encode(kind: str, message: Mapping[str, Any]) -> list[Piece]:
    """The bytes of a message as pieces to write one after the other: large ones are not copied.

    Fields in the order of their numbers; what is empty or 0 is left out, but for members of a set value (`i`, `f`).
    """
    pieces: list[Piece] = []
    for number, (name, field) in sorted(MESSAGES[kind].items()):
        if name not in message:
            continue
        value, single = message[name], field.lstrip("*")
        if field in ("*int", "*float", "*double"):
            packed = _packed(single, value)
            if packed:
                pieces += [_varint(number << 3 | 2), _varint(len(packed)), packed]
            continue
        for one in value if field[0] == "*" else [value]:
            if one is not None:
                pieces += _single(number, single, one)
    return pieces


def _packed(kind: str, values: Any) -> bytes:
    if kind == "int":
        return b"".join(_varint(int(value)) for value in values)
    return np.asarray(values, _NUMBERS[kind]).tobytes()


def _single(number: int, kind: str, value: Any) -> list[Piece]:
    if kind == "int":
        return [_varint(number << 3), _varint(int(value))]
    if kind == "float":
        return [_varint(number << 3 | 5), struct.pack("<f", value)]
    if kind == "double":
        return [_varint(number << 3 | 1), struct.pack("<d", value)]
    inner = [value.encode()] if kind == "str" else [value] if kind == "bytes" else encode(kind, value)
    return [_varint(number << 3 | 2), _varint(sum(len(piece) for piece in inner)), *inner]
