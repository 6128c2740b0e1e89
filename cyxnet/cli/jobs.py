"""Commands about jobs: watch, jobs, job, get, cancel, pause, resume, priority, explain."""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cyxcore.errors import CyxError, SpecError
from cyxcore.spec import TrainingSummary
from cyxcore.wording import human_bytes, human_duration, percent
from cyxnet import messages as m
from cyxnet.bus import BusError
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.models import fetch_model, output_path
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.cli.values import MOST
from cyxnet.client import AsyncClient, Prepared
from cyxnet.display import cyx, human_age, node_names, validation
from cyxnet.follow import ENDED
from cyxnet.jobfile import LoadedJob

FIRST_USE_BASE_UNITS = 100 * 10**9
WAIT_TOLD_S, WAIT_LOOKED_AT_S = 2.0, 60.0  # a wait that is over sooner is not told; between looks at one, at most


async def watch(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        return await follow(client, args.job, screen)


async def follow(client: AsyncClient, job_id: str, screen: Screen) -> int:
    try:
        async with contextlib.aclosing(watched(client, job_id, screen)) as updates:
            async for update in updates:
                screen.update(update)
    except asyncio.CancelledError:
        screen.close()
        screen.say("goes on", f"{job_id} is not stopped by this; stop it with: cyx cancel {job_id}", kind="hint")
        raise
    return tell_end(await client.job(job_id), screen)


async def watched(client: AsyncClient, job_id: str, screen: Screen) -> AsyncGenerator[m.Update, None]:
    """client.watch(), and of a job that makes no steps yet, what it waits for: else nothing is shown for as long."""
    waiting = {job_id}
    async with why_they_wait(client, waiting, screen), contextlib.aclosing(client.watch(job_id)) as updates:
        async for update in updates:
            if update.kind == "Started":
                waiting.clear()
            elif update.kind == "LeaseLost":
                waiting.add(job_id)
            yield update


@contextlib.asynccontextmanager
async def why_they_wait(
    client: AsyncClient,
    job_ids: Collection[str],
    screen: Screen,
    statuses: Collection[m.JobStatus] = ("waiting", "queued", "leased"),
) -> AsyncIterator[None]:
    """Within it, screen is told what those of these jobs wait for that have such a status, each reason once.

    job_ids may change meanwhile.
    """

    async def look() -> None:
        told, pause_s = set(), WAIT_TOLD_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, WAIT_LOOKED_AT_S)
            for job_id in tuple(job_ids):
                with contextlib.suppress(CyxError):  # who follows the job says what is wrong with the network
                    reply = await client.explain(job_id)
                    why = reply.waiting_for if reply.status in statuses else None
                    if why and why not in told:
                        told.add(why)
                        screen.say("waits", f"for {why}", kind="waits", job_id=reply.job_id, waiting_for=why)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def jobs(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        node_id = await client.node_called(args.node) if args.node else None
        reply = await client.jobs(
            args.status, args.limit, name=args.name, node_id=node_id, mine=args.mine, run=args.run_id
        )
    if args.sort != "submitted":
        reply.jobs.sort(key=lambda view: _place(view, args.sort))
    called = node_names(reply.jobs)
    rows = [
        [
            view.job_id,
            view.status,
            called.get(view.node_id, ""),
            _result(view, args.sort),
            cyx(view.amount_base_units),
            human_age(view.submitted_at_ms),
        ]
        for view in reply.jobs
    ]
    if rows or args.json:
        screen.table(["job", "status", "node", "result", "amount", "submitted"], rows, reply)
        if reply.total > len(rows):
            most, older = min(reply.total, MOST), reply.total - len(rows)
            screen.remark(
                "more", f"{older} older job{'s' * (older > 1)}; see {'them' if older > 1 else 'it'} with --limit {most}"
            )
    else:
        asked = args.status or args.name or args.node or args.mine or args.run_id
        what = "no job is like that; all of them: cyx jobs" if asked else "no jobs yet; submit one: cyx submit FILE"
        screen.result(what, reply)
    return DONE


class Worth(NamedTuple):
    """Something to compare jobs by: how it is found in the summary of one, written, and which is the best."""

    of: Callable[[TrainingSummary], float | None]
    told: Callable[[float], str]
    most_is_best: bool = False


WORTH = {
    "accuracy": Worth(lambda s: s.validation_accuracy, lambda share: f"accuracy {percent(share)}", True),
    "r2": Worth(lambda s: s.validation_r2, lambda r2: f"R² {r2:.4f}", True),
    "loss": Worth(
        lambda s: s.final_loss if s.validation_loss is None else s.validation_loss, lambda loss: f"loss {loss:.4f}"
    ),
    "time": Worth(lambda s: s.total_time_ms, lambda ms: f"time {human_duration(ms / 1000)}"),
}


def _place(view: m.JobView, sort: str) -> tuple[bool, float]:
    """What sorts jobs, the best first; those without a result come last."""
    worth = WORTH[sort]
    found = worth.of(view.summary) if view.summary else None
    if found is None:
        return True, 0.0
    return False, -found if worth.most_is_best else found


def _result(view: m.JobView, sort: str) -> str:
    """In a few letters, to compare jobs by: how far it is, or what its model is worth on held-out rows, if any were.

    Of several values that of the sorting, or the first of WORTH.
    """
    if view.status == "leased" and view.deployment:
        return "serves"
    if view.status == "leased" or (view.status in ("paused", "queued") and view.checkpoint):
        return f"{percent(view.progress)} done"
    if view.summary is None:
        return ""
    for worth in WORTH.values() if sort == "submitted" else [WORTH[sort]]:
        if (found := worth.of(view.summary)) is not None:
            return worth.told(found)
    return ""


async def job(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        view = await client.job(args.job)
    screen.table(["", ""], _facts_of(view), view)
    return DONE


# What the text is called that says how it came to this; of a job that works again it is no fault of now.
WHY = {"failed": "error", "cancelled": "reason", "leased": "attempt before"}


def _facts_of(view: m.JobView) -> list[list[str]]:
    """The rows of `cyx job`: only what there is to say."""
    attempt = f"{view.attempt}; at most {view.max_attempts} may fail"  # who is paused has not failed
    facts: list[tuple[str, Any]] = [
        ("job", view.job_id),
        ("name", view.name),
        ("status", view.status),
        ("submitted", human_age(view.submitted_at_ms)),
        ("ended", view.ended_at_ms and human_age(view.ended_at_ms)),
        ("amount", cyx(view.amount_base_units)),
        ("charged at most", view.price_base_units and cyx(view.price_base_units)),
        ("attempt", attempt if view.attempt else None),
        ("node", view.node_name or view.node_id),
        ("replica of", view.deployment),
        ("progress", percent(view.progress) if view.status == "leased" and not view.deployment else None),
        ("priority", view.priority),
        ("checkpoint", view.checkpoint and _checkpoint(view.checkpoint)),
        ("check", view.check),
        ("after", ", ".join(after.job_id for after in view.after)),
        ("begins with", view.best_by and f"the best model of those by {view.best_by}"),
        (WHY.get(view.status, "last attempt"), view.error),
        ("model", view.model and f"{human_bytes(view.model.size)}, SHA-256 {view.model.sha256}"),
        ("metrics", view.summary and ", ".join(validation(msgspec.to_builtins(view.summary)))),
        ("escrow", view.terms and view.terms.escrow),
        ("deposit", view.deposit_signature),
        ("settlement", view.settle_signature),
        ("to the node", view.node_base_units is not None and cyx(view.node_base_units)),
        ("to the platform", view.platform_base_units is not None and cyx(view.platform_base_units)),
        ("to the client", view.client_base_units is not None and cyx(view.client_base_units)),
    ]
    return [[label, str(value)] for label, value in facts if value]


def _checkpoint(stored: m.Checkpoint) -> str:
    share = percent(stored.step / max(1, stored.steps))
    return f"step {stored.step:,} of {stored.steps:,} ({share}), {human_bytes(stored.state.size)}"


async def get(args: argparse.Namespace, screen: Screen) -> int:
    if args.output is not None:
        output_path(args.output, "model", force=args.force)
    async with connected(args) as client:
        view = await client.job(args.job)
        path = output_path(args.output, view.name, force=args.force)
        model = await fetch_model(
            client, view.job_id, path, lambda done, total: screen.advance("download", done, total)
        )
    screen.result(tell_model(model), model)
    return DONE


async def cancel(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        job_ids = args.jobs or await _left_of_run(client, args.run_id)
        if not job_ids:
            screen.result(f"no job of run {args.run_id} is left", [])
        refused: list[CyxError] = []
        for job_id in job_ids:
            try:
                view = await client.cancel(job_id, args.reason)
            except BusError:
                raise
            except CyxError as error:  # of this job: the others are stopped all the same
                if len(job_ids) > 1:
                    screen.say("warning", str(error))
                refused.append(error)
                continue
            screen.result(f"{view.job_id} is {view.status}; watch the refund with: cyx watch {view.job_id}", view)
    if refused:
        raise refused[0]
    return DONE


async def _left_of_run(client: AsyncClient, run_id: str) -> list[str]:
    """The jobs of a run that have not ended, each before those that it comes after: it is told who stopped it."""
    found = (await client.jobs(limit=MOST, mine=True, run=run_id)).jobs
    if not found:
        raise SpecError(f"no job of yours is of run {run_id}; see: cyx jobs --mine")
    return [view.job_id for view in found if view.status not in ENDED]


async def pause(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        view = await client.pause(args.job)
    hows = {"paused": "is paused", "funding": "is paused as soon as its deposit is final"}
    how = hows.get(view.status, "answers what it took and stops" if view.deployment else "stores its state and stops")
    screen.result(f"{view.job_id} {how}; let it go on with: cyx resume {view.job_id}", view)
    return DONE


async def resume(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        view = await client.resume(args.job)
    start = f" from step {view.checkpoint.step} of {view.checkpoint.steps}" if view.checkpoint else ""
    screen.result(f"{view.job_id} goes on{start}; follow it with: cyx watch {view.job_id}", view)
    return DONE


async def priority(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        view = await client.priority(args.job, args.priority)
    when = "" if view.status == "queued" else f"; it is {view.status}, and the priority counts when it waits for a node"
    screen.result(f"{view.job_id} has priority {view.priority}{when}", view)
    return DONE


async def explain(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        reply = await client.explain(args.job)
    if args.json:
        screen.result("", reply)
        return DONE
    for decision in reply.decisions:
        _explain(decision, screen)
    waiting = f"; it waits for {reply.waiting_for}" if reply.waiting_for else ""
    error = f": {reply.error}" if reply.error else ""
    if reply.check:
        screen.result(reply.check, reply)
    screen.result(f"{reply.job_id} is {reply.status}{waiting}{error}", reply)
    return DONE


def _explain(decision: dict[str, Any], screen: Screen) -> None:
    """One decision: who was chosen, and for every candidate its score by terms, or why it could not be."""
    since = f" from step {step}" if (step := decision.get("first_step")) else ""
    screen.result(f"attempt {decision.get('attempt')} went to {decision.get('node_id')}{since}", decision)
    for candidate in decision.get("candidates") or [decision]:
        score = f"score {candidate['score']:.3f}" if "score" in candidate else candidate.get("refused", "no score")
        screen.result(f"    {candidate.get('node_id')}: {score}", candidate)
        for name, term in (candidate.get("terms") or {}).items():
            screen.result(f"        {name:<12}{term['value']:.3f} × {term['weight']:g}", term)
    if rejected := decision.get("rejected"):
        screen.result(f"    rejected: {rejected}", decision)
    if lost := decision.get("lost"):
        screen.result(f"    lost ({lost.get('code')}): {lost.get('reason')}", lost)


# ---------------------------------------------------------------------------------------------------
# Sentences that `train` says too


def tell_job(job: LoadedJob, screen: Screen) -> None:
    """What was read in the job file, and what is odd about it."""
    facts = job.facts
    classes = f", {facts.classes} classes" if facts.classes else ""
    screen.say(
        "checked",
        f"{job.name}: {facts.rows:,} rows of {facts.input_shape}{classes}; model of {job.parameters:,} parameters",
        rows=facts.rows,
        input_shape=facts.input_shape,
        classes=facts.classes,
        parameters=job.parameters,
    )
    for warning in job.warnings:
        screen.say("warning", warning)


async def first_money(client: AsyncClient, screen: Screen) -> None:
    """On the very first use of a network: think of a backup; with test money, take some. Never again by itself."""
    info, wallet = await client.info(), await client.wallet()
    if wallet.token_base_units or wallet.lamports:
        return
    screen.say("key", "this wallet is new: back its key up with `cyx id export`", kind="hint")
    if not info.faucet:
        return
    given = await client.faucet(FIRST_USE_BASE_UNITS)
    screen.say(
        "wallet",
        f"first use of this local network: its faucet gave {cyx(given.token_base_units)} of test money"
        f" to {given.address}",
        kind="faucet",
        **msgspec.to_builtins(given),
    )


def tell_quote(prepared: Prepared, screen: Screen) -> None:
    quote = prepared.quote
    nodes = f"{quote.eligible_nodes} node{'s' if quote.eligible_nodes != 1 else ''} can take it"
    screen.say(
        "quote",
        f"{cyx(quote.terms.amount_base_units)}: {cyx(quote.node_base_units)} for the node,"
        f" {cyx(quote.platform_base_units)} for the platform; {nodes}",
        **msgspec.to_builtins(quote),
    )
    price = prepared.price.max_base_units if prepared.price else quote.terms.amount_base_units
    tell_limit(quote, price, screen)


def tell_limit(quote: m.Quote, worth_base_units: int, screen: Screen) -> None:
    """That a job worth so much would wait, because nobody is here who gets one like it."""
    limit = quote.unproven_limit_base_units
    if 0 < limit < worth_base_units:
        screen.say(
            "warning",
            f"no node that is here is proven yet: they get jobs of up to {cyx(limit)}, and this one may cost "
            f"{cyx(worth_base_units)}. It waits until one is; offer less, or name a node that you know (--node)",
        )


class BadQuote(CyxError, ValueError):
    """A file is not one that `cyx quote` wrote."""

    code = "bad_quote"


def read_price(path: Path) -> m.Price:
    """The price in a file of `cyx quote -o`. Raises BadQuote."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=m.Price)
    except OSError as error:
        raise BadQuote(f"{path}: cannot be read ({error.strerror}); make one with: cyx quote FILE -o {path}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadQuote(f"{path}: expected a price that `cyx quote` wrote, got: {error}") from None


def tell_end(view: m.JobView, screen: Screen) -> int:
    """The last line about a job, and the exit code it makes."""
    if view.status == "completed":
        metrics = ", ".join(validation(msgspec.to_builtins(view.summary))) if view.summary else ""
        said = f"{view.job_id} is completed{f': {metrics}' if metrics else ''}"
        screen.result(f"{said}; fetch the model with: cyx get {view.job_id}", view)
        return DONE
    back = f"; {cyx(view.client_base_units)} came back" if view.client_base_units else ""
    screen.result(f"{view.job_id} is {view.status}{f': {view.error}' if view.error else ''}{back}", view)
    return WORLD_FAILED


def tell_model(model: dict[str, Any]) -> str:
    return f"{model['path']}  {human_bytes(model['size'])}  SHA-256 {model['sha256']}"
