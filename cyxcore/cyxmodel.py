"""The .cyxmodel container: a zip of graph.json, weights.safetensors, history.json and manifest.json.

Entries are stored, not compressed: weights do not compress, the bytes stay deterministic, and no
entry can unfold to more than the file holds. The manifest has the SHA-256 of every other entry.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyxcore.errors import FormatError
from cyxcore.safetensors import write_atomically

FORMAT = "cyx-model/1"
PARTS = ("graph.json", "weights.safetensors", "history.json")
MAX_ENTRIES = 64
MAX_JSON_BYTES = 100_000_000
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say


def to_bytes(parts: Mapping[str, bytes]) -> bytes:
    """The container around graph.json, weights.safetensors and history.json: equal parts give equal bytes."""
    if set(parts) != set(PARTS):
        raise FormatError(f"cyxmodel: expected the parts {', '.join(PARTS)}, got {', '.join(sorted(parts))}")
    digests = {name: hashlib.sha256(parts[name]).hexdigest() for name in PARTS}
    manifest = json.dumps({"format": FORMAT, "sha256": digests}, sort_keys=True, separators=(",", ":")).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("manifest.json", manifest), *((name, parts[name]) for name in PARTS)):
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, data)
    return buffer.getvalue()


def save(path: str | os.PathLike[str], parts: Mapping[str, bytes]) -> None:
    write_atomically(path, to_bytes(parts))


def load(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """The checked parts. Raises FormatError for a damaged, foreign or suspicious file."""
    where = f"cyxmodel {path}"
    size_bytes = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, size_bytes, where)
            manifest = _manifest(archive.read("manifest.json"), where)
            parts = {name: archive.read(name) for name in PARTS}
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{where}: no readable model container: {error}") from None
    for name, data in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        if manifest.get(name) != digest:
            raise FormatError(f"{where}: {name} has SHA-256 {digest}, its manifest says {manifest.get(name)!r}")
    return parts


def _check_entries(archive: zipfile.ZipFile, size_bytes: int, where: str) -> None:
    """Refuse what a container of ours never has, before anything is unpacked."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_ENTRIES or len(set(names)) != len(names):
        raise FormatError(f"{where}: expected at most {MAX_ENTRIES} entries with different names")
    for name in ("manifest.json", *PARTS):
        if name not in names:
            raise FormatError(f"{where}: {name} is missing")
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise FormatError(f"{where}: {entry.filename[:80]!r} is compressed or encrypted; a .cyxmodel only stores")
        if entry.filename.endswith(".json") and entry.file_size > MAX_JSON_BYTES:
            raise FormatError(f"{where}: {entry.filename[:80]!r} is over {MAX_JSON_BYTES} bytes")
    if total > size_bytes:
        raise FormatError(f"{where}: its entries claim {total} bytes, the file has {size_bytes}")


def _manifest(raw: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: manifest.json is no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("sha256"), dict):
        raise FormatError(f"{where}: manifest.json: expected format {FORMAT!r} and sha256 of every part")
    return dict(data["sha256"])
