"""TensorProto to array and back. Sizes are checked against the bytes that are there before memory is taken."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cyxcore.errors import FormatError
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES

Array = np.ndarray[Any, Any]

# Number in TensorProto.DataType -> our dtype.
DTYPES: dict[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}
FOREIGN = {
    8: "string", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz",
    21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
MAX_RANK = 16
_EXTERNAL = 1
_FIELDS = {
    "float32": "float_data",
    "complex64": "float_data",
    "float64": "double_data",
    "complex128": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
}  # the others are in int32_data, 16-bit floats by their bits


def dtype_of(number: int, where: str) -> str:
    if number not in DTYPES:
        raise FormatError(f"{where}: elements of type {FOREIGN.get(number, number)}, which Cyx has not")
    return DTYPES[number]


def to_array(tensor: Mapping[str, Any], where: str, folder: Path | None = None) -> Array:
    """The array a TensorProto holds. folder: where a file named by it may lie; None: external data is refused."""
    name = f"{where}: tensor {tensor['name'][:80]!r}"
    kind = dtype_of(tensor["data_type"], name)
    dtype = NUMPY_DTYPES[kind]
    shape = tuple(int(size) for size in tensor["dims"])
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise FormatError(f"{name}: expected at most {MAX_RANK} sizes >= 0, got {list(shape)[:20]}")
    count = math.prod(shape)
    raw: Any = tensor["raw_data"]
    if tensor["data_location"] == _EXTERNAL or len(tensor["external_data"]):
        raw = _external(tensor, count * dtype.itemsize, name, folder)
    if len(raw):
        if len(raw) != count * dtype.itemsize:
            raise FormatError(f"{name}: {kind} {list(shape)} takes {count * dtype.itemsize} bytes, got {len(raw)}")
        bits = "<u2" if kind == "bfloat16" else dtype.newbyteorder("<")
        array = np.frombuffer(raw, bits).view(dtype).reshape(shape)
        return array if array.flags.aligned else array.copy()  # a protobuf may hold it at any place
    values = np.asarray(tensor[_FIELDS.get(kind, "int32_data")])
    if kind.startswith("complex"):
        if len(values) % 2:
            raise FormatError(f"{name}: an odd number of parts of complex numbers")
        values = values.view(dtype)
    if len(values) != count:
        raise FormatError(f"{name}: {kind} {list(shape)} takes {count} elements, got {len(values)}")
    if kind in ("float16", "bfloat16"):
        return values.astype(np.uint16).view(dtype).reshape(shape)
    return values.astype(dtype).reshape(shape)


def _external(tensor: Mapping[str, Any], size: int, name: str, folder: Path | None) -> bytes:
    """Bytes beside the model: in the same folder, in a plain file, and only when the caller allowed it."""
    facts = {entry["key"]: entry["value"] for entry in tensor["external_data"]}
    location = facts.get("location", "")
    if folder is None:
        raise FormatError(
            f"{name}: its values are in another file, {location[:80]!r}, and none is opened unless asked for; "
            "use external_data=True (cyx convert --external-data) if that file may be read"
        )
    if not location or location in (".", "..") or any(mark in location for mark in "/\\\0:"):
        raise FormatError(f"{name}: expected a plain file name beside the model, got {location[:80]!r}")
    path = folder / location
    if path.is_symlink() or not path.is_file():
        raise FormatError(f"{name}: {location[:80]!r} is no plain file beside the model")
    try:
        offset, length = int(facts.get("offset") or 0), int(facts.get("length") or size)
    except ValueError:
        raise FormatError(f"{name}: offset or length of its external data is no number") from None
    if length != size or offset < 0 or offset + size > path.stat().st_size:
        raise FormatError(f"{name}: bytes {offset}..{offset + size} are not what {location[:80]!r} holds for it")
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def to_proto(name: str, array: Array) -> dict[str, Any]:
    """The TensorProto of an array, its bytes a view of it. Raises FormatError for a dtype ONNX has not."""
    if array.dtype.name not in NUMBERS:
        raise FormatError(f"onnx: {name!r} is of {array.dtype}, which ONNX has not; use astype first")
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    raw = little.reshape(-1).view(np.uint8).data
    return {"dims": array.shape, "data_type": NUMBERS[array.dtype.name], "name": name, "raw_data": raw}
