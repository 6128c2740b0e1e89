"""The GGUF container: a header of metadata and tensor descriptions, then the tensors, aligned.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. A file is mapped, not read:
opening it costs the header, and a tensor's bytes come from the disk when they are looked at. Everything a header claims
is checked against the file before memory is taken for it.
"""

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from cyxcore.errors import FormatError
from cyxcore.gguf.blocks import BY_NAME, BY_NUMBER, TensorType, dequantize
from cyxcore.safetensors import write_parts_atomically

Array = np.ndarray[Any, Any]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_RANK = 4
MAX_KEY_BYTES = 65535
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
CHUNK_BYTES = 1 << 24  # how much is written at once, between two reports of progress

STRING, ARRAY = 8, 9
SCALARS: dict[int, tuple[str, str]] = {
    0: ("u8", "<u1"),
    1: ("i8", "<i1"),
    2: ("u16", "<u2"),
    3: ("i16", "<i2"),
    4: ("u32", "<u4"),
    5: ("i32", "<i4"),
    6: ("f32", "<f4"),
    7: ("bool", "|b1"),
    10: ("u64", "<u8"),
    11: ("i64", "<i8"),
    12: ("f64", "<f8"),
}
_NUMBERS = {name: number for number, (name, _) in SCALARS.items()} | {"string": STRING}
_BOUNDS = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in SCALARS.values() if name[0] in "ui"
}


class Strings(Sequence[str]):
    """An array of texts as it lies in the file. Each is decoded when it is asked for: a vocabulary costs no more memory
    than its bytes."""

    def __init__(self, raw: bytes, ends: Array) -> None:
        self._raw, self._ends = raw, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Strings":
        parts = [text.encode() for text in texts]
        return cls(b"".join(parts), np.cumsum([len(part) for part in parts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def bytes_at(self, index: int) -> bytes:
        return self._raw[self._ends[index - 1] if index else 0 : self._ends[index]]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        return self.bytes_at(index % len(self)).decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield self._raw[start:end].decode()
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Strings({self[:4]}{'…' if len(self) > 4 else ''}, {len(self)} of them)"


class Value(NamedTuple):
    """A value of the metadata and its type: u8 to i64, f32, f64, bool or string; of arrays that of the items."""

    kind: str
    value: Any
    """int, float, bool or str; of arrays a NumPy array or Strings."""

    @property
    def is_array(self) -> bool:
        return isinstance(self.value, np.ndarray | Strings)


class TensorInfo(NamedTuple):
    """A checked line of the header."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    """As NumPy has it: rows first. The file says it the other way round."""
    start: int
    """Where its bytes begin in the file."""
    stop: int


class _Cursor:
    """Reads the header; never past the end of the file."""

    def __init__(self, raw: memoryview, where: str) -> None:
        self.raw, self.at, self.where = raw, 0, where

    def left(self) -> int:
        return len(self.raw) - self.at

    def take(self, count: int, what: str) -> memoryview:
        if count > self.left():
            raise FormatError(f"{self.where}: {what} takes {count} bytes, the file has {self.left()} left")
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, dtype: str, what: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize, what), dtype)[0].item()

    def text(self, what: str, limit: int | None = None) -> str:
        size = self.number("<u8", what)
        if limit is not None and size > limit:
            raise FormatError(f"{self.where}: {what} claims {size} bytes, expected at most {limit}")
        try:
            return bytes(self.take(size, what)).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: {what} is no UTF-8: {error.reason}") from None


class GGUFFile:
    """An open file: metadata, and tensors that are read when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FormatError for anything that is not exactly a GGUF file, OSError where there is none."""
        self.where = f"gguf {path}"
        with Path(path).open("rb") as file:
            self.size_bytes = os.fstat(file.fileno()).st_size
            if self.size_bytes < 24:
                raise FormatError(f"{self.where}: expected at least 24 bytes, got {self.size_bytes}")
            self._raw = np.memmap(file, np.uint8, "r")
        cursor = _Cursor(self._raw.data, self.where)
        tensor_count, value_count = self._counts(cursor)
        self.metadata: dict[str, Value] = {}
        for _ in range(value_count):
            key, value = _read_value(cursor)
            if key in self.metadata:
                raise FormatError(f"{self.where}: the key {key[:80]!r} appears twice")
            self.metadata[key] = value
        self.alignment = self._alignment()
        described = [_read_description(cursor) for _ in range(tensor_count)]
        self.tensors = self._placed(described, cursor.at)

    def _counts(self, cursor: _Cursor) -> tuple[int, int]:
        magic = bytes(cursor.take(4, "the magic"))
        if magic != MAGIC:
            raise FormatError(f"{self.where}: expected a file beginning with {MAGIC!r}, got {magic!r}")
        version = cursor.number("<u4", "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
            hint = ", a big-endian file" if swapped else ""
            raise FormatError(f"{self.where}: expected version 2 or 3, got {version}{hint}; convert it anew")
        self.version = version
        tensor_count, value_count = cursor.number("<u8", "a count"), cursor.number("<u8", "a count")
        for count, what, least_bytes in ((tensor_count, "tensors", 25), (value_count, "values", 13)):
            if count * least_bytes > self.size_bytes:
                raise FormatError(f"{self.where}: claims {count} {what}, the file has only {self.size_bytes} bytes")
        return tensor_count, value_count

    def _alignment(self) -> int:
        alignment = self.number("general.alignment", 1, MAX_ALIGNMENT, DEFAULT_ALIGNMENT)
        if alignment & (alignment - 1):
            raise FormatError(f"{self.where}: general.alignment: expected a power of two, got {alignment}")
        return alignment

    def _placed(
        self, described: list[tuple[str, TensorType, tuple[int, ...], int]], head: int
    ) -> dict[str, TensorInfo]:
        first = -(-head // self.alignment) * self.alignment
        tensors: dict[str, TensorInfo] = {}
        for name, kind, shape, offset in described:
            size = kind.bytes_of(math.prod(shape))
            if name in tensors:
                raise FormatError(f"{self.where}: the tensor {name[:80]!r} appears twice")
            if offset % self.alignment:
                raise FormatError(f"{self.where}: {name[:80]!r} starts at {offset}, no multiple of {self.alignment}")
            if first + offset + size > self.size_bytes:
                raise FormatError(
                    f"{self.where}: {name[:80]!r}: {kind.name} {list(shape)} takes {size} bytes from {first + offset}, "
                    f"the file ends at {self.size_bytes}"
                )
            tensors[name] = TensorInfo(name, kind, shape, first + offset, first + offset + size)
        ordered = sorted(tensors.values(), key=lambda info: info.start)
        for before, after in zip(ordered, ordered[1:], strict=False):
            if after.start < before.stop:
                raise FormatError(f"{self.where}: {before.name[:80]!r} and {after.name[:80]!r} overlap")
        return tensors

    def raw(self, name: str) -> Array:
        """A tensor's bytes, uint8, as they lie in the file: not copied, not writable."""
        info = self._info(name)
        return self._raw[info.start : info.stop].view(np.ndarray)

    def tensor(self, name: str) -> Array:
        """A tensor as float32. Raises FormatError for one that is not there, or of a type that cannot be read."""
        info = self._info(name)
        return dequantize(self.raw(name), info.type.name).reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise FormatError(f"{self.where}: the tensor {name!r} is missing")
        return self.tensors[name]

    def number(self, key: str, low: float, high: float, default: Any = None) -> Any:
        """A number of the metadata, within bounds: an integer where `low` is one. Raises FormatError."""
        wants_integer = isinstance(low, int)
        found = self.metadata.get(key)
        if found is None:
            if default is None:
                raise FormatError(f"{self.where}: the key {key!r} is missing")
            return default
        if found.is_array or found.kind in ("string", "bool") or (wants_integer and found.kind[0] == "f"):
            raise FormatError(f"{self.where}: {key}: expected a number, got {_described(found)}")
        if not low <= found.value <= high:  # NaN is not within
            raise FormatError(f"{self.where}: {key}: expected {low} to {high}, got {found.value}")
        return found.value

    def text(self, key: str, default: str | None = None) -> str:
        return self._of_kind(key, "string", str, default)

    def flag(self, key: str, default: bool | None = None) -> bool:
        return self._of_kind(key, "bool", bool, default)

    def texts(self, key: str) -> Strings:
        return self._of_kind(key, "string", Strings, None)

    def numbers(self, key: str) -> Array:
        """An array of numbers."""
        found = self._value(key)
        if not isinstance(found.value, np.ndarray) or found.kind == "bool":
            raise FormatError(f"{self.where}: {key}: expected an array of numbers, got {_described(found)}")
        return found.value

    def _value(self, key: str) -> Value:
        if key not in self.metadata:
            raise FormatError(f"{self.where}: the key {key!r} is missing")
        return self.metadata[key]

    def _of_kind(self, key: str, kind: str, python: type, default: Any) -> Any:
        if key not in self.metadata and default is not None:
            return default
        found = self._value(key)
        if found.kind != kind or not isinstance(found.value, python):
            wanted = f"an array of {kind}s" if python is Strings else f"a {kind}"
            raise FormatError(f"{self.where}: {key}: expected {wanted}, got {_described(found)}")
        return found.value


def _described(found: Value) -> str:
    return f"an array of {found.kind}" if found.is_array else f"{found.kind} {str(found.value)[:40]!r}"


def _read_value(cursor: _Cursor) -> tuple[str, Value]:
    key = cursor.text("a key", MAX_KEY_BYTES)
    what = repr(key[:80])
    number = cursor.number("<u4", what)
    if number == ARRAY:
        return key, _read_array(cursor, what)
    if number == STRING:
        return key, Value("string", cursor.text(what))
    if number not in SCALARS:
        raise FormatError(f"{cursor.where}: {what}: expected a type of value from 0 to 12, got {number}")
    kind, dtype = SCALARS[number]
    value = cursor.number("<u1" if kind == "bool" else dtype, what)
    if kind == "bool" and value > 1:
        raise FormatError(f"{cursor.where}: {what} is a bool but holds {value}")
    return key, Value(kind, bool(value) if kind == "bool" else value)


def _read_array(cursor: _Cursor, what: str) -> Value:
    number, count = cursor.number("<u4", what), cursor.number("<u8", what)
    if number == STRING:
        return Value("string", _read_strings(cursor, count, what))
    if number not in SCALARS:
        said = "arrays in arrays are not taken" if number == ARRAY else f"got {number}"
        raise FormatError(f"{cursor.where}: {what}: expected items of a type from 0 to 12: {said}")
    kind, dtype = SCALARS[number]
    raw = cursor.take(count * np.dtype(dtype).itemsize, what)
    if kind == "bool" and bytes(raw).strip(b"\x00\x01"):
        raise FormatError(f"{cursor.where}: {what} is an array of bools but holds bytes other than 0 and 1")
    return Value(kind, np.frombuffer(bytes(raw), dtype))


def _read_strings(cursor: _Cursor, count: int, what: str) -> Strings:
    if count * 8 > cursor.left():
        raise FormatError(f"{cursor.where}: {what} claims {count} texts, the file has {cursor.left()} bytes left")
    raw, ends, size_of = bytearray(), np.empty(count, np.int64), struct.Struct("<Q").unpack_from
    whole, at, end = cursor.raw, cursor.at, len(cursor.raw)
    for index in range(count):  # the loop of opening a file: a vocabulary has 10⁵ of these
        stop = at + 8 + size_of(whole, at)[0] if at + 8 <= end else end + 1
        if stop > end:
            raise FormatError(f"{cursor.where}: {what}: text {index} goes on behind the end of the file")
        raw += whole[at + 8 : stop]
        ends[index] = len(raw)
        at = stop
    cursor.at = at
    strings = Strings(bytes(raw), ends)
    try:
        for _ in strings:
            pass
    except UnicodeDecodeError as error:
        raise FormatError(f"{cursor.where}: {what}: a text is no UTF-8: {error.reason}") from None
    return strings


def _read_description(cursor: _Cursor) -> tuple[str, TensorType, tuple[int, ...], int]:
    name = cursor.text("a tensor's name", MAX_KEY_BYTES)
    what = repr(name[:80])
    rank = cursor.number("<u4", what)
    if not 1 <= rank <= MAX_RANK:
        raise FormatError(f"{cursor.where}: {what}: expected 1 to {MAX_RANK} dimensions, got {rank}")
    shape = tuple(cursor.number("<u8", what) for _ in range(rank))[::-1]
    number, offset = cursor.number("<u4", what), cursor.number("<u8", what)
    if not all(shape) or math.prod(shape) >= 2**62:
        raise FormatError(
            f"{cursor.where}: {what}: expected sizes of at least 1 and less than 2**62, got {list(shape)}"
        )
    if number not in BY_NUMBER:
        raise FormatError(f"{cursor.where}: {what}: unknown tensor type {number}")
    kind = BY_NUMBER[number]
    if shape[-1] % kind.block_size:
        raise FormatError(
            f"{cursor.where}: {what}: {kind.name} has blocks of {kind.block_size}, a row has {shape[-1]} elements"
        )
    return name, kind, shape, offset


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> Value:
    """The type a Python value gets where none is said: u32 or wider for an int, f32 for a float."""
    if isinstance(value, Value):
        return value
    if isinstance(value, bool):
        return Value("bool", value)
    if isinstance(value, str):
        return Value("string", value)
    if isinstance(value, float):
        return Value("f32", value)
    if isinstance(value, int):
        for kind in ("u32", "i32", "u64", "i64"):
            if _BOUNDS[kind][0] <= value <= _BOUNDS[kind][1]:
                return Value(kind, value)
    if isinstance(value, Strings):
        return Value("string", value)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        for kind, dtype in SCALARS.values():
            if np.dtype(dtype) == value.dtype:
                return Value(kind, value)
    if isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            return Value("string", Strings.of(value))
        return typed(np.array(value, np.float32 if any(isinstance(item, float) for item in value) else None))
    raise FormatError(f"gguf: cannot store a value of type {type(value).__name__}")


def _encoded(value: Value) -> bytes:
    kind, data = value
    if kind not in _NUMBERS:
        raise FormatError(f"gguf: expected a type of {', '.join(_NUMBERS)}, got {kind!r}")
    number = _NUMBERS[kind]
    if isinstance(data, Strings):
        texts = b"".join(map(_text, data))
        return struct.pack("<IIQ", ARRAY, STRING, len(data)) + texts
    if isinstance(data, np.ndarray):
        items = np.ascontiguousarray(data, SCALARS[number][1])
        return struct.pack("<IIQ", ARRAY, number, len(items)) + items.tobytes()
    if number == STRING:
        return struct.pack("<I", STRING) + _text(data)
    if kind in _BOUNDS and not _BOUNDS[kind][0] <= data <= _BOUNDS[kind][1]:
        raise FormatError(f"gguf: {data} is no {kind}")
    return struct.pack("<I", number) + np.array(data, SCALARS[number][1]).tobytes()


class StoredTensor(NamedTuple):
    """A tensor as its bytes will lie in a file. shape: as NumPy has it, rows first."""

    type: str
    shape: tuple[int, ...]
    raw: Array


def save(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a file, complete or not at all; equal arguments give equal bytes.

    metadata: values, or `Value`s where the type matters. tensors: in the order of the file. progress: called with the
    bytes written and all there are to write.
    """
    values = {key: typed(value) for key, value in metadata.items()}
    alignment = values["general.alignment"].value if "general.alignment" in values else DEFAULT_ALIGNMENT
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(values))]
    head += [_text(key) + _encoded(value) for key, value in values.items()]
    offset, padded = 0, []
    for name, (type_name, shape, raw) in tensors.items():
        kind = BY_NAME[type_name]
        if (
            not 1 <= len(shape) <= MAX_RANK
            or shape[-1] % kind.block_size
            or raw.nbytes != kind.bytes_of(math.prod(shape))
        ):
            raise FormatError(f"gguf: {name}: {raw.nbytes} bytes are no {type_name} of shape {list(shape)}")
        head.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind.number, offset))
        padded.append(-raw.nbytes % alignment)
        offset += raw.nbytes + padded[-1]
    header = b"".join(head)
    header += bytes(-len(header) % alignment)

    def parts() -> Iterator[bytes | memoryview]:
        total, done = len(header) + offset, len(header)
        yield header
        for tensor, padding in zip(tensors.values(), padded, strict=True):
            flat = np.ascontiguousarray(tensor.raw).reshape(-1).view(np.uint8)
            for start in range(0, flat.size, CHUNK_BYTES):
                yield flat[start : start + CHUNK_BYTES].data
                done += min(CHUNK_BYTES, flat.size - start)
                if progress is not None:
                    progress(done, total)
            yield bytes(padding)
            done += padding

    write_parts_atomically(path, parts(), synced=True)
