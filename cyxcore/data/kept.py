"""What was read of a table, kept for the next run on the same bytes.

Reading a table costs far more than reading arrays, and people train on one dataset many times. A kept reading is named
by the digest of the file, how it was read and the version of this reader; it holds a checksum of its own arrays, which
guards against a damaged disk and no more: who can write here needs no collision. One that is missing, damaged or of
another version is simply read again.
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
    """Where the reading of the file `path`, made as `how` says, is kept in `folder`.

    sha256: of the file, from a caller who has verified it; it is not read for another digest then.
    """
    digest = hashlib.blake2b(digest_size=32)  # faster than SHA-256 where the processor has no instructions for that
    if sha256:
        digest.update(b"sha256 " + bytes.fromhex(sha256))
    else:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    digest.update(json.dumps([READER_VERSION, *how]).encode())
    return folder / f"reading-{digest.hexdigest()}.safetensors"


def recall(place: Path) -> Reading | None:
    """The reading kept there; None when there is none that is whole."""
    from cyxcore import safetensors

    try:
        arrays, metadata = safetensors.load(place)
        facts = json.loads(metadata["facts"])
        if metadata["crc32"] != _checksum(arrays["x"], arrays["y"]):
            return None
        os.utime(place)
        return Reading(arrays["x"], arrays["y"], facts["classes"], facts["feature_names"], facts["task"])
    except (OSError, FormatError, KeyError, ValueError):
        return None


def keep(place: Path, reading: Reading) -> None:
    """Keep a reading. A folder that cannot take it costs the next run some time and nothing else."""
    from cyxcore import safetensors

    facts = {"classes": reading.classes, "feature_names": reading.feature_names, "task": reading.task}
    metadata = {"facts": json.dumps(facts), "crc32": _checksum(reading.x, reading.y)}
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        try:
            safetensors.save(draft, {"x": reading.x, "y": reading.y}, metadata)
            os.replace(draft, place)
        finally:
            draft.unlink(missing_ok=True)


def _checksum(*arrays: ndarray) -> str:
    import numpy as np

    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"
