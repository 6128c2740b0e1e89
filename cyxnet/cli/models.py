"""Model files on the submitter's side: where one may go, and in which format."""

import asyncio
import os
import secrets
from pathlib import Path
from typing import Any

from cyxcore.errors import SpecError
from cyxcore.paths import shown
from cyxnet.artifacts import Advance, ArtifactError, describe
from cyxnet.client import AsyncClient

SUFFIXES = (".safetensors", ".cyxmodel", ".onnx")
CONVERTED = (*SUFFIXES, ".gguf")


def output_path(
    wanted: Path | None,
    name: str,
    *,
    force: bool = False,
    folder: Path = Path(),
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Path:
    """Where a model goes, checked before anything is paid. Raises SpecError when it cannot go there.

    A file that was named must not exist unless `force`; the default name NAME.safetensors gives way to NAME-2 and
    so on: no model is ever lost to another one.
    """
    if wanted is None:
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "model"
        wanted, number = folder / f"{stem}.safetensors", 1
        while os.path.lexists(wanted) and not force:
            number += 1
            wanted = folder / f"{stem}-{number}.safetensors"
    if wanted.is_dir():
        raise SpecError(f"{wanted}: expected a file name, this is a folder; try {wanted / f'{name}.safetensors'}")
    if wanted.suffix not in suffixes:
        raise SpecError(f"{wanted}: expected a name that ends in {' or '.join(suffixes)}, got {wanted.suffix!r}")
    parent = wanted.parent
    if not parent.is_dir():
        raise SpecError(f"{wanted}: there is no folder {parent}; run: mkdir -p {parent}")
    if os.path.lexists(wanted) and not force:
        raise SpecError(f"{wanted}: there is such a file already; choose another name or add --force")
    draft = wanted.with_name(f".{wanted.name}.{secrets.token_hex(11)}")  # as long as any that is written on the way
    try:
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        what = f"{shown(wanted)}: cannot be written ({error.strerror})"
        raise SpecError(f"{what}; choose another name or folder") from None
    return wanted


async def fetch_model(
    client: AsyncClient, job_id: str, out_path: Path, advance: Advance | None = None
) -> dict[str, Any]:
    """Fetch a job's model to `out_path`, converted when its suffix asks for it.

    The archive is checked against the SHA-256 that the node signed. Returns path, size, sha256 of the file and
    artifact_sha256 of the archive. Raises ArtifactError when there is no room for it; the network keeps its copy.
    """
    if out_path.suffix == ".cyxmodel":
        artifact = await client.download(job_id, out_path, advance)
    else:
        archive = out_path.with_name(f".{out_path.stem}.{secrets.token_hex(4)}.cyxmodel")
        try:
            artifact = await client.download(job_id, archive, advance)
            await asyncio.to_thread(convert, archive, out_path)
        except OSError as error:
            what = f"{out_path}: cannot be written ({error.strerror})"
            raise ArtifactError(f"{what}; the network keeps its copy: cyx get {job_id} -o FILE") from None
        finally:
            archive.unlink(missing_ok=True)
    file = await asyncio.to_thread(describe, out_path)
    return {
        "path": str(out_path),
        "size": file.size,
        "sha256": file.sha256,
        "artifact_sha256": artifact.sha256,
    }


def convert(archive: Path, out_path: Path) -> None:
    """A .cyxmodel in the format that the name of `out_path` says."""
    import cyxcore

    cyxcore.load_model(archive).save(out_path)
