"""Submissions that nobody answered, kept in the network's folder until they are sent again.

A kept job has its id already: central takes it once, however often it is sent. Nothing is signed before it is sent;
what was signed then is kept with it, because a job has one deposit.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cyxnet import artifacts, subjects
from cyxnet.config import ConfigError, write_atomically
from cyxnet.messages import ArtifactRef, JobId, JobRequest, Payment, Price
from cyxnet.outcomes import ApiError, BusError, NotAdmitted, NotTrusted

if TYPE_CHECKING:
    from cyxnet.jobfile import LoadedJob

FOLDER = "outbox"


class Kept(Struct, kw_only=True, frozen=True):
    """A job to submit later. data_path: where its data was; the digest in `job` says whether it still is that.

    fetched: the data was fetched or packed for this job, and goes when the job does. price: of its quote, to be charged
    at most. payment: what was signed for it, and may have been sent.
    """

    job_id: JobId
    job: JobRequest
    data_path: str
    kept_at_ms: int
    reason: str
    fetched: bool = False
    price: Price | None = None
    payment: Payment | None = None


class KeptForLater(BusError):
    """Nobody answered for so long that the job `job_id` was put into the outbox."""

    code = "kept_for_later"

    def __init__(self, message: str, job_id: str):
        super().__init__(message)
        self.job_id = job_id


class Attempt:
    """One try to submit a job. kept: what is kept of it; who signs its deposit adds that.

    in_doubt: a request of it was heard, perhaps, and not answered: whatever was said to the others, it may be taken.
    """

    def __init__(self, kept: Kept):
        self.kept, self.in_doubt = kept, False


def wanted(job: "LoadedJob | JobRequest", data_path: Path | None = None, price: Price | None = None) -> Kept:
    """A job as it is asked for, with an id: whatever central answers, and when, it is this one. Reads its data.

    data_path: goes with a JobRequest.
    """
    if isinstance(job, JobRequest):
        if data_path is None:
            raise TypeError("a JobRequest needs data_path, the file of its dataset")
        job_id, request, fetched = subjects.new_job_id(job.name), job, False
    else:
        data_path, fetched = job.data_path, job.fetched
        found = artifacts.describe(data_path)
        job_id = job.job_id or subjects.new_job_id(job.name)
        request = job.request(ArtifactRef(sha256=found.sha256, size=found.size))
    return Kept(
        job_id=job_id,
        job=request,
        data_path=str(data_path.absolute()),
        kept_at_ms=time.time_ns() // 1_000_000,
        reason="",
        fetched=fetched,
        price=price,
    )


def same(folder: Path, job: Kept) -> Kept | None:
    """The job that waits and is this one but for its id: nobody wants it twice. Raises ConfigError, as waiting().

    One whose deposit is signed is it at another price, too: that of its quote may be over, and it may be taken.
    """
    alike = [each for each in waiting(folder) if each.job == job.job and (each.payment or each.price == job.price)]
    return next((each for each in alike if each.payment), alike[0] if alike else None)


@contextlib.contextmanager
def kept_if_unanswered(folder: Path, kept: Kept, waits: Kept | None) -> Iterator[Attempt]:
    """Puts the job into the outbox, and raises KeptForLater, when nobody answers to what is done meanwhile, or central
    is too busy, or refuses what may have been taken in a try that was not answered; else it waits there no more, unless
    it was refused. Who stops before there is an answer finds it there too. waits: the same job, if it is there already.
    """
    attempt = Attempt(replace(kept, job_id=waits.job_id, payment=waits.payment) if waits else kept)
    try:
        yield attempt
    except BaseException as error:
        doubtful = attempt.in_doubt and isinstance(error, ApiError | NotAdmitted)
        stopped = attempt.in_doubt and isinstance(error, asyncio.CancelledError)
        if not (doubtful or stopped or _is_silence(error)):
            if waits and attempt.kept.payment != waits.payment:
                keep(folder, replace(waits, payment=attempt.kept.payment))
            raise
        keep(folder, replace(attempt.kept, reason="it was stopped before it was answered" if stopped else str(error)))
        if waits and waits.data_path != kept.data_path:
            discard_fetched(waits)
        if stopped:
            raise
        job_id = attempt.kept.job_id
        why = "; a try that nobody answered may have been taken all the same" if doubtful else ""
        what = f"{job_id} is kept, not lost: cyx outbox --send submits it, once at most"
        raise KeptForLater(f"{error}{why}; {what}", job_id) from None
    if waits:
        forget(folder, waits.job_id)
        discard_fetched(waits)


def _is_silence(error: BaseException) -> bool:
    """Whether nobody answered: the pauses of the client are used up."""
    if isinstance(error, ApiError):  # what waits is worth nothing with a price that is old already
        return error.status == 503 and error.code != "price_expired"
    return isinstance(error, BusError) and not isinstance(error, NotTrusted | NotAdmitted)


def discard_fetched(gone: Kept) -> None:
    """Data that was fetched or packed for a job that is not wanted any more."""
    if gone.fetched:
        from cyxnet.jobfile import discard

        discard(Path(gone.data_path))


def discard_unless_kept(folder: Path | None, data_path: Path) -> None:
    """The same of data that was fetched or packed just now, unless a job that waits in the folder needs it."""
    from cyxnet.jobfile import discard

    with contextlib.suppress(ConfigError):  # of a damaged file there nobody knows what it needs
        if folder is None or str(data_path.absolute()) not in {each.data_path for each in waiting(folder)}:
            discard(data_path)


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


def forget(folder: Path, job_id: str) -> bool:
    """The job was sent, or is not wanted any more: whether it waited here."""
    try:
        os.unlink(folder / FOLDER / f"{job_id}.json")
    except FileNotFoundError:
        return False
    return True
