"""NPY and NPZ files as they are: arrays by name, or left on the disk and read where they are asked for."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np

from cyxcore.data.arrays import Archive
from cyxcore.data.checks import MAX_BYTES, Path, check_budget, defect
from cyxcore.data.formats import read_start
from cyxcore.data.npy import damage_told, read_header

Array = np.ndarray[Any, Any]


def open_npy(path: Path) -> Array:
    """The array of an NPY file, left on the disk (a memory map, not writable): TensorDataset reads only its rows.

    Raises DataError for objects, records, and sizes that are not the file's.
    """
    _check_start(path, b"\x93NUMPY", "an NPY file", "write it with numpy.save")
    with damage_told(path, "NPY"), open(path, "rb") as stream:
        header = read_header(path, None, stream, os.path.getsize(path))
        if not header.data_bytes:
            raise defect(path, "at least 1 number", f"shape {header.shape}", "add rows")
        order = "F" if header.fortran else "C"
        return np.memmap(path, header.dtype, "r", stream.tell(), header.shape, order)  # type: ignore[call-overload]


def read_npz(path: Path, limit_bytes: int = MAX_BYTES) -> dict[str, Array]:
    """Every array of an NPZ file, by name. Raises DataError for what NumPy would not have written, and for arrays that
    would take more memory than limit_bytes, or than is free."""
    _check_start(path, b"PK", "an NPZ file", "write it with numpy.savez_compressed")
    with damage_told(path, "NPZ"), zipfile.ZipFile(path) as opened:
        archive = Archive(path, opened)
        needed_bytes = sum(archive.header(name).data_bytes for name in archive.names)
        check_budget(path, needed_bytes, limit_bytes, f"{len(archive.names):,} arrays")
        return {name: archive.array(name) for name in archive.names}


def _check_start(path: Path, magic: bytes, expected: str, remedy: str) -> None:
    first = read_start(path)
    if not first.startswith(magic):
        got = f"a file that starts with {first!r}" if first else "an empty file (0 bytes)"
        raise defect(path, expected, got, remedy)
