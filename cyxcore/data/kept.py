"""What was read of a table, kept for the next run on the same bytes.

Reading a table costs far more than reading arrays, and people train on one dataset many times. A kept reading is named
by the digest of the file, how it was read and the version of this reader; it holds a CRC-32 of its own arrays. One that
is missing, damaged or of another version is simply read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cyxcore.errors import FormatError
from cyxcore.spec import Task

if TYPE_CHECKING:
    from numpy import ndarray

READER_VERSION = 1  # raise it whenever the same file would be read to other arrays
_BLOCK_BYTES = 1 << 20


class Reading(NamedTuple):
    """All rows of a dataset. x (N, …) float32, y (N,) int64 class indices or (N, K) float32."""

    x: ndarray
    y: ndarray
    classes: list[str] | None
    feature_names: list[str]
    task: Task


def place(folder: Path, path: Path, how: Sequence[object], sha256: str | None = None) -> Path:
    """Where the reading of the file `path`, made as `how` says, is kept in `folder`. sha256: the file's, if known."""
    name = hashlib.sha256(bytes.fromhex(sha256) if sha256 else _file_sha256(path))
    name.update(json.dumps([READER_VERSION, *how]).encode())
    return folder / f"reading-{name.hexdigest()}.safetensors"


def _file_sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def recall(place: Path) -> Reading | None:
    """The reading kept there; None when there is none that is whole."""
    from cyxcore import safetensors

    try:
        arrays, metadata = safetensors.load(place)
        facts = json.loads(metadata["facts"])
        if metadata["crc32"] != _crc32(arrays["x"], arrays["y"]):
            return None
        os.utime(place)
        return Reading(arrays["x"], arrays["y"], facts["classes"], facts["feature_names"], facts["task"])
    except (OSError, FormatError, KeyError, ValueError):
        return None


def keep(place: Path, reading: Reading) -> None:
    """Keep a reading. A folder that cannot take it costs the next run some time and nothing else."""
    from cyxcore import safetensors

    facts = {"classes": reading.classes, "feature_names": reading.feature_names, "task": reading.task}
    metadata = {"facts": json.dumps(facts), "crc32": _crc32(reading.x, reading.y)}
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        try:
            safetensors.save(draft, {"x": reading.x, "y": reading.y}, metadata)
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)


def _crc32(*arrays: ndarray) -> str:
    import numpy as np

    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"
