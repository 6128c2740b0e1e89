"""Submissions that nobody answered, kept in the network's folder until they are sent again.

A kept job has its id already: central takes it once, however often it is sent. Nothing is signed before it is sent.
"""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from cyxnet.config import ConfigError, write_atomically
from cyxnet.messages import JobId, JobRequest, Price

FOLDER = "outbox"


class Kept(Struct, kw_only=True, frozen=True):
    """A job to submit later. data_path: where its data was; the digest in `job` says whether it still is that.

    fetched: the data was fetched or packed for this job, and goes when the job does. price: of its quote, to be charged
    at most.
    """

    job_id: JobId
    job: JobRequest
    data_path: str
    kept_at_ms: int
    reason: str
    fetched: bool = False
    price: Price | None = None


def keep(folder: Path, kept: Kept) -> Path:
    """Store a job. Raises ConfigError when the folder cannot be written."""
    path = folder / FOLDER / f"{kept.job_id}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(kept), 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: the job cannot be kept for later ({error.strerror})") from None
    return path


def waiting(folder: Path) -> list[Kept]:
    """The jobs that wait, oldest first. Raises ConfigError that names a damaged file."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Kept))
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"{path}: not a job that was kept ({error}); remove it to go on without it") from None
    return sorted(found, key=lambda kept: (kept.kept_at_ms, kept.job_id))


def forget(folder: Path, job_id: str) -> None:
    """The job was sent, or is not wanted any more."""
    try:
        os.unlink(folder / FOLDER / f"{job_id}.json")
    except FileNotFoundError:
        pass
