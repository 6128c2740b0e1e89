"""Commands that submit: submit, outbox. What nobody answers is kept, and is the same job when it is sent."""

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from msgspec.structs import replace

from cyxcore.errors import CyxError, DataError
from cyxnet import artifacts, outbox, subjects
from cyxnet import messages as m
from cyxnet.bus import ApiError, BusError, NotAdmitted, NotTrusted
from cyxnet.cli.exits import DONE
from cyxnet.cli.jobs import first_money, follow, read_price, tell_job, tell_quote
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.client import RETRY_DELAYS_S, AsyncClient
from cyxnet.config import ConfigError
from cyxnet.display import cyx, human_age
from cyxnet.identity import load_or_create
from cyxnet.jobfile import LoadedJob, discard, load, seal


@contextlib.asynccontextmanager
async def loaded(args: argparse.Namespace) -> AsyncIterator[LoadedJob]:
    """The job of a file. Data that was fetched for it goes at the end, unless the job is kept for later."""
    job, kept = load(args.file, args.dir / "packed", getattr(args, "numerics", None)), False
    try:
        if to := getattr(args, "seal", None):
            mine, (node_id, key) = load_or_create(args.dir / "client.key"), to
            job = await asyncio.to_thread(seal, job, mine, node_id, key, args.dir / "packed")
        yield job
    except KeptForLater:
        kept = True
        raise
    finally:
        if job.fetched and not kept:
            discard(job.data_path)


async def submit(args: argparse.Namespace, screen: Screen) -> int:
    async with loaded(args) as job:
        return await _submit(job, args, screen)


async def _submit(job: LoadedJob, args: argparse.Namespace, screen: Screen) -> int:
    if args.priority is not None:
        job = replace(job, priority=args.priority)
    price = read_price(args.quote) if args.quote else None
    tell_job(job, screen)
    wanted = await asyncio.to_thread(_wanted, job, price)
    try:
        waits = next((each for each in outbox.waiting(args.dir) if (each.job, each.price) == (wanted.job, price)), None)
    except ConfigError as error:  # a damaged file there says nothing of this job
        screen.say("warning", str(error))
        waits = None
    if waits:  # nobody wants it twice
        wanted = replace(wanted, job_id=waits.job_id)
        screen.say("outbox", f"this job waits there as {waits.job_id}: that one is submitted", kind="hint")
    async with contextlib.AsyncExitStack() as stack:
        with _kept_if_unanswered(args.dir, wanted, waits):
            client = await stack.enter_async_context(connected(args, RETRY_DELAYS_S[1:]))
            await first_money(client, screen)
            reply = await _send(client, wanted, screen, again=waits is not None)
        if waits:
            outbox.forget(args.dir, waits.job_id)
            _discard_fetched(waits)
        if not args.wait:
            said = f"{reply.job_id} is submitted; follow it with: cyx watch {reply.job_id}"
            screen.result(said, reply, reply.job_id)
            return DONE
        screen.say("job", reply.job_id, kind="job", job_id=reply.job_id)
        return await follow(client, reply.job_id, screen)


class KeptForLater(BusError):
    """Nobody answered for so long that the job was put into the outbox."""

    code = "kept_for_later"


def _wanted(job: LoadedJob, price: m.Price | None) -> outbox.Kept:
    """A job as it is asked for, with an id: whatever central answers, and when, it is this one."""
    found = artifacts.describe(job.data_path)
    return outbox.Kept(
        job_id=job.job_id or subjects.new_job_id(job.name),
        job=job.request(m.ArtifactRef(sha256=found.sha256, size=found.size)),
        data_path=str(job.data_path.absolute()),
        kept_at_ms=time.time_ns() // 1_000_000,
        reason="",
        fetched=job.fetched,
        price=price,
    )


@contextlib.contextmanager
def _kept_if_unanswered(folder: Path, wanted: outbox.Kept, waits: outbox.Kept | None) -> Iterator[None]:
    """Puts the job into the outbox, and raises KeptForLater, when nobody answers to what is done meanwhile, or central
    is too busy. waits: the same job, if it is there already.
    """
    try:
        yield
    except (BusError, ApiError) as error:  # the pauses of the client are used up
        if isinstance(error, NotTrusted | NotAdmitted):
            raise  # somebody answered
        if isinstance(error, ApiError) and (error.status != 503 or error.code == "price_expired"):
            raise  # what waits is worth nothing with a price that is old already
        outbox.keep(folder, replace(wanted, reason=str(error)))
        if waits and waits.data_path != wanted.data_path:
            _discard_fetched(waits)
        what = f"{wanted.job_id} is kept, not lost: cyx outbox --send submits it, once at most"
        raise KeptForLater(f"{error}; {what}") from None


async def sent_later(args: argparse.Namespace, screen: Screen) -> int:
    if args.forget:
        with contextlib.suppress(ConfigError):  # of another job; it is told below
            for each in outbox.waiting(args.dir):
                if each.job_id == args.forget:
                    _discard_fetched(each)
        outbox.forget(args.dir, args.forget)
    kept = outbox.waiting(args.dir)
    if not args.send:
        rows = [
            [each.job_id, cyx(each.job.amount_base_units), human_age(each.kept_at_ms), each.reason] for each in kept
        ]
        if rows or args.json:
            screen.table(["job", "amount", "kept", "because"], rows, kept)
        else:
            screen.result("no job waits to be submitted", kept)
        return DONE
    if not kept:
        screen.result("no job waits to be submitted", kept)
        return DONE
    refused: list[CyxError] = []
    async with connected(args) as client:
        await first_money(client, screen)
        for each in kept:
            try:
                reply = await _send(client, each, screen, again=True)
            except BusError:
                raise
            except CyxError as error:  # of this job: the others need not wait for it
                refused.append(error)
                why = f"{each.job_id} is not submitted and stays here: {error}; or: cyx outbox --forget {each.job_id}"
                screen.say("warning", why)
                continue
            outbox.forget(args.dir, each.job_id)
            _discard_fetched(each)
            said = f"{each.job_id} is submitted; follow it with: cyx watch {each.job_id}"
            screen.result(said, reply, each.job_id)
    if refused:
        raise refused[0]
    return DONE


def _discard_fetched(gone: outbox.Kept) -> None:
    if gone.fetched:
        discard(Path(gone.data_path))


async def _send(client: AsyncClient, kept: outbox.Kept, screen: Screen, *, again: bool) -> m.JobView | m.SubmitReply:
    """Ask for the terms of a job, pay for it and submit it. What it may cost is what it names, whatever was quoted.

    again: it was tried before. If central has it, only the answer was lost; a DataError if it ended without a model.
    """
    if again:
        try:
            view = await client.job(kept.job_id)
        except ApiError as error:
            if error.code != "unknown_job":
                raise
        else:
            if view.status not in ("failed", "cancelled"):
                return view
            why = f" ({view.error})" if view.error else ""
            raise DataError(
                f"{kept.job_id} had reached the network and {view.status}{why}; cyx outbox --forget {kept.job_id}, "
                "then submit it again"
            )
    data_path = Path(kept.data_path)
    if not data_path.is_file():
        raise DataError(
            f"{data_path}: the data of {kept.job_id} is gone; bring it back, or: cyx outbox --forget {kept.job_id}"
        )
    prepared = await client.prepare(kept.job, data_path, kept.job_id)
    prepared.price = kept.price
    tell_quote(prepared, screen)
    return await client.place(prepared, lambda done, total: screen.advance("upload", done, total))
