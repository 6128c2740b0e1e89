"""Commands that submit: submit, outbox. What nobody answers is kept, and is the same job when it is sent."""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from msgspec.structs import replace

from cyxcore.errors import CyxError, SpecError
from cyxnet import messages as m
from cyxnet import outbox
from cyxnet.bus import BusError
from cyxnet.cli.exits import DONE
from cyxnet.cli.jobs import first_money, follow, read_price, tell_job, tell_quote
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.client import RETRY_DELAYS_S
from cyxnet.config import ConfigError
from cyxnet.display import cyx, human_age
from cyxnet.identity import load_or_create
from cyxnet.jobfile import LoadedJob, load, seal
from cyxnet.workflow import afters


@contextlib.asynccontextmanager
async def loaded(args: argparse.Namespace) -> AsyncIterator[LoadedJob]:
    """The job of a file. Data that was fetched for it goes at the end, unless the job is kept for later."""
    job = load(args.file, args.dir / "packed", getattr(args, "numerics", None))
    try:
        if node := getattr(args, "node", None):
            job = replace(job, needs=replace(job.needs, node_id=node))
        if to := getattr(args, "seal", None):
            mine, (node_id, key) = load_or_create(args.dir / "client.key"), to
            job = await asyncio.to_thread(seal, job, mine, node_id, key, args.dir / "packed")
        yield job
    finally:
        if job.fetched:
            outbox.discard_unless_kept(args.dir, job.data_path)


async def submit(args: argparse.Namespace, screen: Screen) -> int:
    async with loaded(args) as job:
        return await _submit(job, args, screen)


async def _submit(job: LoadedJob, args: argparse.Namespace, screen: Screen) -> int:
    if args.priority is not None:
        job = replace(job, priority=args.priority)
    if args.after or args.weights:
        job = replace(job, after=await _named(args))
    price = read_price(args.quote) if args.quote else None
    tell_job(job, screen)
    kept = await asyncio.to_thread(outbox.wanted, job, price=price)
    try:
        waits = outbox.same(args.dir, kept)
    except ConfigError as error:  # a damaged file there says nothing of this job
        screen.say("warning", str(error))
        waits = None
    if waits:
        screen.say("outbox", f"this job waits there as {waits.job_id}: that one is submitted", kind="hint")
    async with contextlib.AsyncExitStack() as stack:
        with outbox.kept_if_unanswered(args.dir, kept, waits) as attempt:
            client = await stack.enter_async_context(connected(args, RETRY_DELAYS_S[1:]))
            await first_money(client, screen)
            try:
                reply = await client.place_kept(attempt, **_told(screen), again=waits is not None)
            except asyncio.CancelledError:
                if attempt.in_doubt:
                    screen.close()
                    _tell_doubt(attempt.kept.job_id, screen)
                raise
        if not args.wait:
            said = f"{reply.job_id} is submitted; follow it with: cyx watch {reply.job_id}"
            screen.result(said, reply, reply.job_id)
            return DONE
        screen.say("job", reply.job_id, kind="job", job_id=reply.job_id)
        return await follow(client, reply.job_id, screen)


def _tell_doubt(job_id: str, screen: Screen) -> None:
    screen.say(
        "outbox",
        f"{job_id} may have been taken: it was offered, and not answered yet. It is kept: cyx outbox --send submits it "
        f"once at most; to be rid of it: cyx outbox --forget {job_id}, and if it was taken: cyx cancel {job_id}",
        kind="kept",
        job_id=job_id,
    )


async def _named(args: argparse.Namespace) -> list[m.After]:
    """What the job comes after. The beginning of an id will do, while only one job has it."""
    names = {text.partition(".")[0] for text in args.after} | ({args.weights} if args.weights else set())
    async with connected(args, RETRY_DELAYS_S[1:]) as client:
        called = {name: [(await client.job(name)).job_id] for name in sorted(names)}
    return afters(args.after, args.weights, lambda name, key: called[name])


def _told(screen: Screen) -> dict[str, Any]:
    return {
        "on_quote": lambda prepared: tell_quote(prepared, screen),
        "on_upload": lambda done, total: screen.advance("upload", done, total),
    }


async def sent_later(args: argparse.Namespace, screen: Screen) -> int:
    if args.forget:
        with contextlib.suppress(ConfigError):  # of another job; it is told below
            for each in outbox.waiting(args.dir):
                if each.job_id == args.forget:
                    outbox.discard_fetched(each)
        if not outbox.forget(args.dir, args.forget):
            raise SpecError(f"no job of the whole id {args.forget} waits to be submitted; see: cyx outbox")
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
                reply = await client.send_kept(each, **_told(screen))
            except BusError:
                raise
            except CyxError as error:  # of this job: the others need not wait for it
                refused.append(error)
                why = f"{each.job_id} is not submitted and stays here: {error}; or: cyx outbox --forget {each.job_id}"
                screen.say("warning", why)
                continue
            said = f"{each.job_id} is submitted; follow it with: cyx watch {each.job_id}"
            screen.result(said, reply, each.job_id)
    if refused:
        raise refused[0]
    return DONE
