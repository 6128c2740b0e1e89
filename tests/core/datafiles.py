"""Files of training data for tests, sound and damaged, and what is said about the damaged ones."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cyxcore.data import inspect, load
from cyxcore.errors import DataError
from cyxcore.spec import DataSpec


def csv_file(folder: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl_file(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return csv_file(folder, "\n".join(lines) + "\n", "data.jsonl")


def parquet_file(folder: Path, columns: Mapping[str, Any]) -> Path:
    pq.write_table(pa.table(dict(columns)), folder / "data.parquet")
    return folder / "data.parquet"


def npz_file(folder: Path, **arrays: Any) -> Path:
    np.savez_compressed(folder / "data.npz", **arrays)
    return folder / "data.npz"


def raw_npz(folder: Path, members: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(folder / "raw.npz", "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return folder / "raw.npz"


def npy_bytes(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def head(descr: str, shape: str) -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def told(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def csv_error(folder: Path, text: str | bytes, **spec: Any) -> str:
    path = csv_file(folder, text)
    message = told(lambda: load(path, DataSpec(**spec)))
    assert message == told(lambda: inspect(path, DataSpec(**spec)))  # the client hears what the node would
    return message
