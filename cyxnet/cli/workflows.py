"""Commands about several jobs that come after each other: run."""

import argparse
import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cyxcore.errors import CyxError, SpecError
from cyxnet import messages as m
from cyxnet import workflow as workflows
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.jobs import first_money, why_they_wait
from cyxnet.cli.models import fetch_model, output_path
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.client import AsyncClient
from cyxnet.display import Tally, cyx, tell, validation
from cyxnet.follow import ENDED
from cyxnet.workflow import Step, Workflow

TOLD = frozenset({"Leased", "LeaseLost", "DependenciesMet", "DependencyFailed", "FundFailed", "Completed", "Settled"})


async def run(args: argparse.Namespace, screen: Screen) -> int:
    with _loaded(args) as workflow:
        if args.show:
            _show(workflow, screen)
            return DONE
        models = _model_paths(args, workflow)
        run_id = args.again or secrets.token_hex(5)
        async with connected(args) as client:
            await first_money(client, screen)
            ids = await _submitted(client, workflow, run_id, args, screen)
            if args.no_wait:
                text = f"{workflow.name}: {len(ids)} jobs are submitted; follow them with: {_again(args.file, run_id)}"
                screen.result(text, {"run": run_id, "jobs": ids}, run_id)
                return DONE
            return await _followed(client, workflow, ids, models, screen)


@contextlib.contextmanager
def _loaded(args: argparse.Namespace) -> Iterator[Workflow]:
    workflow = workflows.load(args.file, args.dir / "packed")
    try:
        yield workflow
    finally:
        workflow.discard()


def _again(file: Path, run_id: str) -> str:
    return f"cyx run {file} --again {run_id}"


def _show(workflow: Workflow, screen: Screen) -> None:
    rows = [
        [step.name, _after(step), _values(step.values), cyx(step.job.amount_base_units), f"{step.job.parameters:,}"]
        for step in workflow.steps
    ]
    data = {
        "name": workflow.name,
        "amount_base_units": workflow.amount_base_units,
        "jobs": [
            {
                "name": step.name,
                "after": step.after,
                "values": step.values,
                "amount_base_units": step.job.amount_base_units,
                "parameters": step.job.parameters,
            }
            for step in workflow.steps
        ],
    }
    screen.table(["job", "after", "with", "amount", "parameters"], rows, data)
    screen.remark("total", f"{len(rows)} jobs, {cyx(workflow.amount_base_units)} at the most")


def _after(step: Step) -> str:
    return ", ".join(each.job_id + (f" ({', '.join(terms)})" if (terms := _terms(each)) else "") for each in step.after)


def _terms(after: m.After) -> list[str]:
    """What is wanted of a job that another one comes after, besides its end."""
    bounds = [("≥", after.at_least), ("≤", after.at_most)]
    return [
        *(["its model"] if after.model else []),
        *(f"{after.metric} {sign} {bound:g}" for sign, bound in bounds if bound is not None),
    ]


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values.items())


def _model_paths(args: argparse.Namespace, workflow: Workflow) -> dict[str, Path]:
    """Where the models go, checked before anything is paid."""
    if args.output is None:
        return {}
    if not args.output.is_dir():
        raise SpecError(f"{args.output}: expected a folder for the models, there is none; run: mkdir -p {args.output}")
    names = [step.name for step in workflow.steps]
    return {name: output_path(args.output / f"{name}.safetensors", name, force=args.force) for name in names}


async def _submitted(
    client: AsyncClient, workflow: Workflow, run_id: str, args: argparse.Namespace, screen: Screen
) -> dict[str, str]:
    """The ids of the jobs by their steps. What breaks off in between says how to go on."""
    total = f"{len(workflow.steps)} jobs, {cyx(workflow.amount_base_units)} at the most"
    screen.say("workflow", f"{workflow.name}, run {run_id}: {total}", kind="workflow", run=run_id, name=workflow.name)
    begun: list[str] = []

    def told(step: Step, job_id: str, was_there: bool) -> None:
        begun.append(job_id)
        about = "; ".join(filter(None, [_values(step.values), f"after {_after(step)}" if step.after else ""]))
        text = f"{step.name} is {'there' if was_there else 'submitted'} as {job_id}{f' ({about})' if about else ''}"
        screen.say("job", text, kind="job", step=step.name, job_id=job_id)

    try:
        return await workflows.submit(client, workflow, run_id, told, again=args.again is not None)
    except (CyxError, asyncio.CancelledError):
        if begun:
            text = f"{len(begun)} of {len(workflow.steps)} jobs are submitted; go on with: {_again(args.file, run_id)}"
            screen.say("hint", text, kind="hint", run=run_id)
        raise


async def _followed(
    client: AsyncClient, workflow: Workflow, ids: dict[str, str], models: dict[str, Path], screen: Screen
) -> int:
    """Tell what happens to the jobs until all have ended, and fetch the models that somebody wants."""
    open_ = set(ids.values())
    width = max(map(len, ids))
    under_way: dict[str, Tally] = {}  # by step

    async def follow(step: str, job_id: str) -> tuple[m.JobView, dict[str, Any] | None]:
        async with contextlib.aclosing(client.watch(job_id)) as updates:
            async for update in updates:
                if update.kind in TOLD and (told := tell(update)):
                    about: dict[str, Any] = {"step": step, "job_id": job_id, "data": update.data}
                    screen.say(told[0], f"{step:<{width}}  {told[1]}", kind=update.kind, **about)
                if update.kind in ("batch", "epoch"):
                    under_way.setdefault(step, Tally()).add(update)
                elif update.kind in ("LeaseLost", "Completed"):
                    under_way.pop(step, None)
                else:
                    continue
                screen.working([(name, tally.fraction, tally.headline()) for name, tally in under_way.items()])
        view = await client.wait(job_id)
        open_.discard(job_id)
        if step not in models or view.status != "completed":
            return view, None
        return view, await fetch_model(client, job_id, models[step])

    async with why_they_wait(client, open_, screen, ("queued", "leased")):
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {step: group.create_task(follow(step, job_id)) for step, job_id in ids.items()}
        except* CyxError as failed:
            raise failed.exceptions[0] from None
        except* asyncio.CancelledError:
            screen.close()
            screen.say("goes on", "the jobs are not stopped by this; stop one with: cyx cancel JOB", kind="hint")
            raise
    return _tell_end(workflow, {step: task.result() for step, task in tasks.items()}, screen)


def _tell_end(workflow: Workflow, ends: Mapping[str, tuple[m.JobView, dict[str, Any] | None]], screen: Screen) -> int:
    rows = []
    for step in workflow.steps:
        view, model = ends[step.name]
        found = ", ".join(validation(msgspec.to_builtins(view.summary))) if view.summary else view.error or ""
        paid = (view.node_base_units or 0) + (view.platform_base_units or 0)
        rows.append([step.name, view.status, _values(step.values), found, cyx(paid), model["path"] if model else ""])
    columns = ["job", "status", "with", "result", "paid", "model"]
    used = [place for place, name in enumerate(columns) if any(row[place] for row in rows) or name == "job"]
    data = [{"step": name, "job": view, "model": model} for name, (view, model) in ends.items()]
    screen.table([columns[place] for place in used], [[row[place] for place in used] for row in rows], data)
    done = sum(view.status == "completed" for view, _ in ends.values())
    screen.remark("done", f"{done} of {len(ends)} jobs are completed")
    assert all(view.status in ENDED for view, _ in ends.values())
    return DONE if done == len(ends) else WORLD_FAILED
