"""The safetensors format: eight bytes of header length, a JSON header, raw tensors.

https://huggingface.co/docs/safetensors. Written deterministically; everything a header claims is
checked against the file before memory is taken for it.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cyxcore.errors import FormatError

Array = np.ndarray[Any, Any]

Advance = Callable[[int], None]  # told how many bytes are done

MEBIBYTE = 2**20
MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 32
NAMES: dict[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
WITH_BFLOAT16 = {**NAMES, "BF16": "bfloat16"}  # which NumPy does not know: an array of one uint16 field of that name
_CODES = {dtype: code for code, dtype in WITH_BFLOAT16.items()}


def _name(dtype: Any) -> str:
    return str(dtype.name if dtype.names is None else dtype.names[0])


def _stored(name: str) -> Any:
    """How an array of a dtype lies in a file."""
    return np.dtype([(name, "<u2")]) if name == "bfloat16" else np.dtype(name).newbyteorder("<")


class Entry(NamedTuple):
    """A checked line of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def in_file_order(tensors: Mapping[str, Array]) -> Iterator[tuple[str, memoryview]]:
    """Names and raw little-endian bytes as they lie in a file, not copied where that is how they lie in memory."""
    for name in _order(tensors):
        array = tensors[name]
        little = np.ascontiguousarray(array.astype(_stored(_name(array.dtype)), copy=False))
        yield name, little.reshape(-1).view(np.uint8).data


def _order(tensors: Mapping[str, Array]) -> list[str]:
    """Wide elements come first so that all lie aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _head(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None) -> bytes:
    """Length and header. Raises FormatError for what the format cannot hold."""
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    offset = 0
    for name in _order(tensors):
        array = tensors[name]
        if _name(array.dtype) not in _CODES or name == "__metadata__":
            raise FormatError(f"safetensors: cannot store {name!r} of dtype {array.dtype}; use astype first")
        header[name] = {
            "dtype": _CODES[_name(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise FormatError(f"safetensors: a header of {len(text)} bytes is over the limit of {MAX_HEADER_BYTES}")
    return len(text).to_bytes(8, "little") + text


def pieces(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The file's bytes one after the other, tensors as views: equal inputs give equal bytes."""
    return itertools.chain([_head(tensors, metadata)], (raw for _, raw in in_file_order(tensors)))


def to_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file's bytes: equal inputs give equal bytes."""
    return b"".join(pieces(tensors, metadata))


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    synced: bool = True,
    advance: Advance | None = None,
) -> None:
    """Write a file, complete or not at all, without a second copy of the tensors in memory.

    synced: whether it is on the disk itself when this returns, and so outlives a loss of power.
    """
    write_parts_atomically(path, counted(pieces(tensors, metadata), advance), synced)


def counted(parts: Iterable[bytes | memoryview], advance: Advance | None) -> Iterable[bytes | memoryview]:
    """The same pieces; `advance` is told the bytes so far, a mebibyte at a time."""
    done = 0
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), MEBIBYTE):
            yield view[start : start + MEBIBYTE]
            done += min(MEBIBYTE, len(view) - start)
            if advance is not None:
                advance(done)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file by `data`; a crash leaves the old one."""
    write_parts_atomically(path, [data], synced=True)


def write_parts_atomically(path: str | os.PathLike[str], parts: Iterable[bytes | memoryview], synced: bool) -> None:
    """Like write_atomically, piece by piece: no second copy of everything in memory."""
    with replacing(path, synced) as file:
        for data in parts:
            file.write(data)


@contextmanager
def replacing(path: str | os.PathLike[str], synced: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends without an error, and otherwise is gone."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            if synced:
                os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) == os.fspath(part):
            error.filename = os.fspath(target)  # a write names no file, and nobody knows the one that was to be renamed
        raise
    finally:
        part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], advance: Advance | None = None) -> tuple[dict[str, Array], dict[str, str]]:
    """(tensors, metadata) of a file.

    Raises FormatError for anything that is not exactly a safetensors file.
    """
    with Path(path).open("rb") as file:
        return load_from(file, os.fstat(file.fileno()).st_size, str(path), advance)


def load_from(
    file: BinaryIO,
    size_bytes: int,
    name: str,
    advance: Advance | None = None,
    dtypes: Mapping[str, str] = NAMES,
) -> tuple[dict[str, Array], dict[str, str]]:
    """Like load, from an open file of known size, positioned at its start. `name` is for messages."""
    where = f"safetensors {name}"
    if size_bytes < 8:
        raise FormatError(f"{where}: expected at least 8 bytes, got {size_bytes}")
    header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise FormatError(f"{where}: the header claims {header_bytes} bytes, the file has {size_bytes - 8} left")
    entries, metadata = _header(file.read(header_bytes), size_bytes - 8 - header_bytes, where, dtypes)
    tensors = {}
    for entry in entries:  # in file order, without gaps
        raw = file.read(entry.stop - entry.start)
        if len(raw) != entry.stop - entry.start:
            raise FormatError(f"{where}: {entry.name!r} ends early: {len(raw)} of {entry.stop - entry.start} bytes")
        if entry.dtype == "bool" and raw.strip(b"\x00\x01"):
            raise FormatError(f"{where}: {entry.name!r} is BOOL but holds bytes other than 0 and 1")
        array = np.frombuffer(bytearray(raw), _stored(entry.dtype))
        tensors[entry.name] = array.astype(array.dtype.newbyteorder("="), copy=False).reshape(entry.shape)
        if advance is not None:
            advance(8 + header_bytes + entry.stop)
    return tensors, metadata


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _header(raw: bytes, data_bytes: int, where: str, dtypes: Mapping[str, str]) -> tuple[list[Entry], dict[str, str]]:
    """Entries in file order, covering the data exactly, and the metadata."""
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: the header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise FormatError(f"{where}: expected a JSON object as header, got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{where}: expected __metadata__ to map strings to strings")
    entries = sorted(
        (_entry(name, value, where, dtypes) for name, value in header.items()), key=lambda e: (e.start, e.stop)
    )
    end = 0
    for entry in entries:
        if entry.start != end:
            raise FormatError(f"{where}: {entry.name!r} starts at {entry.start}, expected {end}: a gap or an overlap")
        end = entry.stop
    if end != data_bytes:
        raise FormatError(f"{where}: tensors take {end} bytes, the file holds {data_bytes}")
    return entries, metadata


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(name: str, value: Any, where: str, dtypes: Mapping[str, str]) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: {name[:80]!r}: expected dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in dtypes:
        raise FormatError(f"{where}: {name[:80]!r}: expected a dtype of {', '.join(dtypes)}, got {str(code)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_natural, shape)):
        raise FormatError(f"{where}: {name[:80]!r}: expected at most {MAX_RANK} natural sizes as shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise FormatError(f"{where}: {name[:80]!r}: expected two natural numbers as data_offsets")
    needed = math.prod(shape) * _stored(dtypes[code]).itemsize
    if offsets[1] - offsets[0] != needed:
        raise FormatError(
            f"{where}: {name[:80]!r}: {code} {shape} takes {needed} bytes, its offsets span {offsets[1] - offsets[0]}"
        )
    return Entry(name, dtypes[code], tuple(shape), offsets[0], offsets[1])
