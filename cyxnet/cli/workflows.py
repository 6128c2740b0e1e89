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
from cyxnet.bus import BusError
from cyxnet.caller import first_of
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.jobs import first_money, why_they_wait
from cyxnet.cli.models import fetch_model, output_path
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.client import AsyncClient
from cyxnet.display import Tally, cyx, tell, validation
from cyxnet.workflow import Step, Workflow

End = tuple[m.JobView, dict[str, Any] | None]  # of a job: as it is then, and its model, where that was fetched
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
            ids, never = await _submitted(client, workflow, run_id, args, screen)
            if args.no_wait:
                text = f"{workflow.name}: {_count(len(ids))} submitted; follow with: {_again(args, run_id)}"
                screen.result(text, {"run": run_id, "jobs": ids, "not_submitted": never}, run_id)
                return WORLD_FAILED if never else DONE
            ends = await _followed(client, ids, models, f"follow them with: {_again(args, run_id)}", screen)
    return _tell_end(workflow, ends, never, screen)


@contextlib.contextmanager
def _loaded(args: argparse.Namespace) -> Iterator[Workflow]:
    workflow = workflows.load(args.file, args.dir / "packed")
    try:
        yield workflow
    finally:
        workflow.discard()


def _again(args: argparse.Namespace, run_id: str) -> str:
    again = f"cyx run {args.file} --again {run_id}" + (f" -o {args.output}" if args.output else "")
    return f"{again}; stop them with: cyx cancel --run {run_id}"


def _count(jobs: int) -> str:
    return "1 job is" if jobs == 1 else f"{jobs} jobs are"


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
                "best_by": step.best_by,
                "values": step.values,
                "amount_base_units": step.job.amount_base_units,
                "parameters": step.job.parameters,
            }
            for step in workflow.steps
        ],
    }
    screen.table(["job", "after", "with", "amount", "parameters"], rows, data)
    screen.remark("total", _total(workflow))


def _total(workflow: Workflow) -> str:
    count = len(workflow.steps)
    return f"{count} job{'s' * (count > 1)}, {cyx(workflow.amount_base_units)} at the most"


def _after(step: Step) -> str:
    terms = {each.job_id: ", ".join(_terms(each)) for each in step.after}
    named = ", ".join(job_id + (f" ({wanted})" if wanted else "") for job_id, wanted in terms.items())
    return f"{named}: the model that is best by {step.best_by}" if step.best_by else named


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
    if args.no_wait:
        raise SpecError("-o: --no-wait waits for no model; fetch them later with --again RUN -o DIR")
    if not args.output.is_dir():
        raise SpecError(f"{args.output}: expected a folder for the models, there is none; run: mkdir -p {args.output}")
    paths = {step.name: args.output / f"{step.name}.safetensors" for step in workflow.steps}
    if args.again and not args.force:  # what was fetched before stays
        paths = {name: path for name, path in paths.items() if not path.exists()}
    return {name: output_path(path, name, force=args.force) for name, path in paths.items()}


async def _submitted(
    client: AsyncClient, workflow: Workflow, run_id: str, args: argparse.Namespace, screen: Screen
) -> tuple[dict[str, str], dict[str, str]]:
    """The ids of the jobs by their steps, and why the others are not submitted. What breaks off says how to go on."""
    about = {"run": run_id, "name": workflow.name}
    screen.say("workflow", f"{workflow.name}, run {run_id}: {_total(workflow)}", kind="workflow", **about)
    begun: list[str] = []
    never: dict[str, str] = {}

    def told(step: Step, job_id: str, was_there: bool, why_never: str) -> None:
        if why_never:
            never[step.name] = why_never
            screen.say("not begun", f"{step.name} is not submitted: {why_never}", kind="not_submitted", step=step.name)
            return
        begun.append(job_id)
        more = "; ".join(filter(None, [_values(step.values), f"after {_after(step)}" if step.after else ""]))
        text = f"{step.name} is {'there' if was_there else 'submitted'} as {job_id}{f' ({more})' if more else ''}"
        screen.say("job", text, kind="job", step=step.name, job_id=job_id)

    try:
        return await workflows.submit(client, workflow, run_id, told, again=args.again is not None), never
    except (CyxError, asyncio.CancelledError) as error:
        if begun or not isinstance(error, CyxError) or isinstance(error, BusError):  # the first may have been taken
            text = f"{len(begun)} of {_count(len(workflow.steps))} submitted; go on with: {_again(args, run_id)}"
            screen.say("hint", text, kind="hint", run=run_id)
        raise


async def _followed(
    client: AsyncClient, ids: dict[str, str], models: dict[str, Path], how_to_go_on: str, screen: Screen
) -> dict[str, End]:
    """Tell what happens to the jobs until all have ended, and fetch the models that somebody wants."""
    open_ = set(ids.values())
    width = max(map(len, ids), default=0)
    under_way: dict[str, Tally] = {}  # by step

    async def follow(step: str, job_id: str) -> End:
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
        except asyncio.CancelledError:
            screen.close()
            screen.say("goes on", f"the jobs are not stopped by this; {how_to_go_on}", kind="hint")
            raise
        except BaseExceptionGroup as failed:
            screen.close()
            screen.say("goes on", f"the jobs go on; {how_to_go_on}", kind="hint")
            raise first_of(failed) from None
    return {step: task.result() for step, task in tasks.items()}


def _tell_end(workflow: Workflow, ends: Mapping[str, End], never: Mapping[str, str], screen: Screen) -> int:
    rows = []
    for step in workflow.steps:
        if step.name in never:
            rows.append([step.name, "not submitted", _values(step.values), never[step.name], cyx(0), ""])
            continue
        view, model = ends[step.name]
        found = ", ".join(validation(msgspec.to_builtins(view.summary))) if view.summary else view.error or ""
        paid = (view.node_base_units or 0) + (view.platform_base_units or 0)
        rows.append([step.name, view.status, _values(step.values), found, cyx(paid), model["path"] if model else ""])
    columns = ["job", "status", "with", "result", "paid", "model"]
    used = [place for place, name in enumerate(columns) if any(row[place] for row in rows) or name == "job"]
    data: list[dict[str, Any]] = [{"step": name, "job": view, "model": model} for name, (view, model) in ends.items()]
    data += [{"step": name, "not_submitted": why} for name, why in never.items()]
    screen.table([columns[place] for place in used], [[row[place] for place in used] for row in rows], data)
    done = sum(view.status == "completed" for view, _ in ends.values())
    screen.remark("done", f"{done} of {_count(len(rows))} completed")
    return DONE if done == len(rows) else WORLD_FAILED
