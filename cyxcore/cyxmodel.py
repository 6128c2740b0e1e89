"""The .cyxmodel container, version 3: a zip whose parts are graph, weights, configuration, history and training state.

    manifest.json          the format's name and the SHA-256 of every other part
    graph.json             the canonical bytes of the graph: their SHA-256 is the model's id
    config.json            class and feature names, loss, training options, summary
    history.json           what each epoch reported
    weights.safetensors    parameters and buffers by name
    training.safetensors   a checkpoint: optimiser and sampler state to go on from (optional)

Parts are stored, not compressed: weights do not compress, the bytes stay deterministic, and no part can unfold to more
than the file holds. Version 1 (no config.json, its facts in history.json) is read as well.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cyxcore import safetensors
from cyxcore.errors import FormatError, other_format

Array = np.ndarray[Any, Any]
Pieces = Iterable[bytes | memoryview]

FORMAT = "cyx-model/3"
WEIGHTS, TRAINING = "weights.safetensors", "training.safetensors"
PARTS = ("graph.json", "config.json", "history.json", WEIGHTS)
OPTIONAL = (TRAINING,)
READABLE = {FORMAT: PARTS, "cyx-model/1": ("graph.json", "history.json", WEIGHTS)}
MAX_ENTRIES = 64
MAX_JSON_BYTES = 100_000_000
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say


class Container:
    """The checked small parts of a file, and its weights when they are asked for."""

    def __init__(
        self, path: Path, where: str, version: str, sha256: Mapping[str, str], small: Mapping[str, bytes]
    ) -> None:
        self.path, self.where, self.version, self.sha256, self.small = path, where, version, sha256, small

    def weights(self, advance: safetensors.Advance | None = None) -> dict[str, Array]:
        """Every tensor, compared with the manifest while it is read."""
        name = f"{self.path}: {WEIGHTS}"
        with _reading(self.where), zipfile.ZipFile(self.path) as archive:
            size_bytes = archive.getinfo(WEIGHTS).file_size
            with archive.open(WEIGHTS) as raw:
                counted: Any = Hashed(raw)
                tensors, _ = safetensors.load_from(counted, size_bytes, name, advance)
        self._compare(WEIGHTS, counted.digest.hexdigest())
        return tensors

    def training(self) -> bytes | None:
        """The checkpoint's bytes, if the file holds one."""
        if TRAINING not in self.sha256:
            return None
        with _reading(self.where), zipfile.ZipFile(self.path) as archive:
            data = archive.read(TRAINING)
        self._compare(TRAINING, hashlib.sha256(data).hexdigest())
        return data

    def _compare(self, name: str, digest: str) -> None:
        if self.sha256.get(name) != digest:
            raise FormatError(f"{self.where}: {name} has SHA-256 {digest}, its manifest says {self.sha256.get(name)!r}")


class Hashed:
    """A file that remembers what was read of it."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(size)
        self.digest.update(data)
        return data


def write(
    file: BinaryIO,
    small: Mapping[str, bytes],
    weights: Mapping[str, Array],
    training: bytes | None = None,
    advance: safetensors.Advance | None = None,
) -> None:
    """Write a container to a file that can be sought. Equal parts give equal bytes; weights are not copied."""
    if set(small) != set(PARTS) - {WEIGHTS}:
        raise FormatError(f"cyxmodel: expected the parts {', '.join(PARTS)}, got {', '.join(sorted(small))}")

    def pieces(name: str) -> Pieces:
        if name == WEIGHTS:
            return safetensors.pieces(weights)
        return [training or b""] if name == TRAINING else [small[name]]

    names = [*PARTS, *([TRAINING] if training is not None else [])]
    digests, sizes = {}, {}
    for name in names:
        digest, sizes[name] = hashlib.sha256(), 0
        for piece in pieces(name):
            digest.update(piece)
            sizes[name] += len(piece)
        digests[name] = digest.hexdigest()
    manifest = json.dumps({"format": FORMAT, "sha256": digests}, sort_keys=True, separators=(",", ":")).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in ("manifest.json", *names):
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            info.file_size = sizes.get(name, len(manifest))
            with archive.open(info, "w", force_zip64=info.file_size >= 2**31) as entry:
                told = advance if name == WEIGHTS else None
                for piece in safetensors.counted([manifest] if name == "manifest.json" else pieces(name), told):
                    entry.write(piece)


def to_bytes(small: Mapping[str, bytes], weights: Mapping[str, Array], training: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    write(buffer, small, weights, training)
    return buffer.getvalue()


def save(
    path: str | os.PathLike[str],
    small: Mapping[str, bytes],
    weights: Mapping[str, Array],
    training: bytes | None = None,
    advance: safetensors.Advance | None = None,
) -> None:
    """Replace the file, complete or not at all."""
    with safetensors.replacing(path) as file:
        write(file, small, weights, training, advance)


def load(path: str | os.PathLike[str]) -> Container:
    """Open and check a file. Raises FormatError for a damaged, foreign or suspicious one."""
    where, target = f"cyxmodel {path}", Path(path)
    size_bytes = target.stat().st_size
    with _reading(where), zipfile.ZipFile(target) as archive:
        names = _check_entries(archive, size_bytes, where)
        version, sha256 = _manifest(archive.read("manifest.json"), names, where)
        small = {name: archive.read(name) for name in READABLE[version] if name.endswith(".json")}
    container = Container(target, where, version, sha256, small)
    for name, data in small.items():
        container._compare(name, hashlib.sha256(data).hexdigest())
    return container


# What zipfile makes of damaged directories and entries.
_DAMAGED = (
    zipfile.BadZipFile,
    KeyError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    ValueError,
    OverflowError,
    OSError,
)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Within the block whatever zipfile says is one FormatError."""
    try:
        yield
    except FormatError:
        raise
    except _DAMAGED as error:
        raise FormatError(f"{where}: no readable model container: {str(error)[:200]}") from None


def _check_entries(archive: zipfile.ZipFile, size_bytes: int, where: str) -> set[str]:
    """The names of the parts. Refuses what a container of ours never has, before anything is unpacked."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES or len(set(names)) != len(names):
        raise FormatError(f"{where}: expected at most {MAX_ENTRIES} entries with different names")
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise FormatError(f"{where}: {entry.filename[:80]!r} is compressed or encrypted; a .cyxmodel only stores")
        if entry.filename.endswith(".json") and entry.file_size > MAX_JSON_BYTES:
            raise FormatError(f"{where}: {entry.filename[:80]!r} is over {MAX_JSON_BYTES} bytes")
    if total > size_bytes:
        raise FormatError(f"{where}: its entries claim {total} bytes, the file has {size_bytes}")
    if "manifest.json" not in names:
        raise FormatError(f"{where}: manifest.json is missing")
    return set(names)


def _manifest(raw: bytes, names: set[str], where: str) -> tuple[str, dict[str, str]]:
    """(version, SHA-256 of each part), every part of that version being there."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: manifest.json is no JSON: {error}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if not isinstance(version, str) or version not in READABLE:
        raise FormatError(f"{where}: manifest.json: {other_format(version, *READABLE)}")
    sha256 = data.get("sha256")
    if not isinstance(sha256, dict) or not all(isinstance(value, str) for value in sha256.values()):
        raise FormatError(f"{where}: manifest.json: expected sha256 of every part")
    for name in (*READABLE[version], *(set(sha256) & set(OPTIONAL))):
        if name not in names or name not in sha256:
            raise FormatError(f"{where}: {name} is missing")
    return version, sha256
