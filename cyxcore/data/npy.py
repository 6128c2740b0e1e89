"""The NPY format: a header of text, then numbers. Read without pickle and without trusting its sizes."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

from cyxcore.data.checks import Path, defect, shown
from cyxcore.errors import DataError

if TYPE_CHECKING:
    from numpy import dtype, ndarray

MAX_HEADER_BYTES = 64 * 2**10
MAX_DIMENSIONS = 8
_CHUNK_BYTES = 2**20

# As NumPy and its imitators write it. Records, whose descr is a list, do not match, on purpose.
_HEADER = re.compile(
    r"\A\{'descr': '(?P<code>[<>|=][a-zA-Z][0-9]{0,7})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]{0,200})\),? ?\}\s*\Z"
)
_MOST_ITEM_BYTES = {"b": 1, "i": 8, "u": 8, "f": 8, "U": 4_000}  # kinds that can be data, and their largest


class Header(NamedTuple):
    """What an NPY file says of itself."""

    dtype: dtype
    fortran: bool
    shape: tuple[int, ...]
    data_bytes: int


@contextmanager
def damage_told(path: Path, kind: str) -> Iterator[None]:
    """Whatever the zip and inflate readers raise on damaged bytes becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise defect(path, "arrays that fit in memory", "too much", "use fewer rows") from None
    except (
        BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        RuntimeError,
    ) as error:
        got = f"{type(error).__name__}: {str(error)[:100]}"
        raise defect(path, f"an undamaged {kind} file", got, "write the file again") from None


def read_header(path: Path, name: str | None, stream: IO[bytes], file_bytes: int) -> Header:
    """Reads up to the first number. file_bytes: of header and data; both must add up to it exactly. name: of the
    array in an archive."""
    start = stream.read(8)
    length_bytes = {1: 2, 2: 4, 3: 4}.get(start[6]) if len(start) == 8 and start[:6] == b"\x93NUMPY" else None
    if length_bytes is None:
        raise defect(
            path,
            "an array in NPY format 1 to 3",
            f"bytes that start with {start!r}",
            "save it with NumPy",
            array=name,
        )
    header_bytes = int.from_bytes(stream.read(length_bytes), "little")
    if header_bytes > MAX_HEADER_BYTES:
        got = f"{header_bytes:,} bytes"
        raise defect(path, f"a header of at most {MAX_HEADER_BYTES:,} bytes", got, "save it with NumPy", array=name)
    text = stream.read(header_bytes).decode("latin-1")
    found = _HEADER.match(text)
    if found is None:
        remedy = "save plain numbers or text; objects and records are never read"
        raise defect(path, "a header of a plain array", shown(text.strip()), remedy, array=name)
    kind = _dtype(path, name, found["code"])
    shape = _shape(path, name, found["shape"])
    data_bytes = math.prod(shape) * kind.itemsize
    actual_bytes = file_bytes - 8 - length_bytes - header_bytes
    if data_bytes != actual_bytes:
        expected = f"{data_bytes:,} bytes for shape {shape} of {kind}"
        raise defect(path, expected, f"{actual_bytes:,}", "the file is cut off or damaged: write it again", array=name)
    return Header(kind, found["fortran"] == "True", shape, data_bytes)


def _dtype(path: Path, name: str | None, code: str) -> dtype:
    import numpy as np

    most_bytes = _MOST_ITEM_BYTES.get(code[1])
    try:
        kind = np.dtype(code) if most_bytes else None
    except (TypeError, ValueError):
        kind = None
    if kind is None or most_bytes is None or not 0 < kind.itemsize <= most_bytes:
        remedy = "objects, bytes, dates and complex numbers are never read; convert it, e.g. x.astype('float32')"
        raise defect(path, "booleans, integers, floats or text", f"dtype {code!r}", remedy, array=name)
    return kind


def _shape(path: Path, name: str | None, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    sizes = [part for part in parts if part]
    if not sizes or len(sizes) > MAX_DIMENSIONS or not all(size.isdigit() and len(size) < 16 for size in sizes):
        expected = f"an array of 1 to {MAX_DIMENSIONS} dimensions"
        raise defect(path, expected, f"shape ({text})", "save one array with all rows", array=name)
    return tuple(int(size) for size in sizes)


def read_array(path: Path, name: str, stream: IO[bytes], header: Header) -> ndarray:
    """The numbers after the header: exactly data_bytes, and then the end."""
    import numpy as np

    data: ndarray = np.empty(header.data_bytes, np.uint8)
    view, filled = memoryview(data.data), 0
    while filled < header.data_bytes:
        chunk = stream.read(min(_CHUNK_BYTES, header.data_bytes - filled))
        if not chunk:
            got = f"{filled:,} bytes"
            raise defect(path, f"{header.data_bytes:,} bytes", got, "the file is cut off: write it again", array=name)
        view[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    stream.read(1)  # at the end the zip reader compares the checksum
    return data.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")
