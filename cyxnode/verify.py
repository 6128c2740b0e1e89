"""Train a finished job once more, on this machine, and compare: the proof that its model is what its data gives.

    cyx verify JOB              the whole job, from the first step
    cyx verify JOB --tail       from the newest checkpoint that is still stored, which is quicker and proves less

The model of a job trained on a CPU has the same bytes whoever trains it, with however many threads and interruptions
(the numeric class cyx-exact/1). So equal hashes prove every step, and no trust in any node is left.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet.artifacts import ArtifactError, describe
from cyxnet.bus import ApiError
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.running import connected, run
from cyxnet.cli.screen import Screen
from cyxnet.client import AsyncClient, NoModel
from cyxnet.display import human_duration
from cyxnode import hardware
from cyxnode.errors import NodeError
from cyxnode.pipe import Batch, Done, Epoch, Failed, Go, Prepared
from cyxnode.process import Launch, TrainingProcess
from cyxnode.runs import DEVICES, MODEL_FILE, Share, order_for

UNVERIFIABLE = (
    "it was trained on {device}, where the bits of a product depend on the card: only jobs that need cpu, or any "
    "device, can be trained again to the same bits"
)
NOT_EXACT = (
    "it was trained with numerics {numerics}, where the bits of a product depend on the processor: only jobs with "
    "numerics exact, the default, can be trained again to the same bits"
)


SEALED = "its data and its model are sealed, which this command does not open: train the job file here, and compare"


class NotVerified(CyxError):
    """It cannot be told whether the model is right."""

    code = "not_verified"


class History(Struct, kw_only=True):
    """What the log says of a job."""

    request: m.JobRequest
    completed: m.Completed
    checkpoints: list[m.Checkpoint]  # oldest first


class Options(Struct, frozen=True, kw_only=True):
    tail: bool  # only from the newest checkpoint that is still stored
    threads: int


class Verdict(Struct, kw_only=True):
    job_id: str
    same: bool
    delivered_sha256: str  # of the model as the node signed it
    trained_sha256: str  # of the model as it came out here
    from_step: int
    steps: int
    took_s: float
    isa: str  # of the kernels here
    differences: list[str] = []  # in words, when they are not the same


async def verify(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        view = await client.job(args.job)
        history, options = await read_history(client, view), Options(tail=args.tail, threads=args.threads)
        with tempfile.TemporaryDirectory(prefix="cyx-verify-") as folder:
            verdict = await verdict_of(client, view.job_id, history, Path(folder), options, screen)
    screen.result(in_words(verdict), verdict)
    return DONE if verdict.same else WORLD_FAILED


async def read_history(client: AsyncClient, view: m.JobView) -> History:
    """Raises NoModel for a job that delivered none, NotVerified for one that has no exact bits."""
    if view.model is None:
        why = f": {view.error}" if view.error else ""
        raise NoModel(f"job {view.job_id} is {view.status} and has no model to verify{why}")
    found: dict[str, list[dict[str, Any]]] = {}
    async with contextlib.aclosing(client.watch(view.job_id)) as updates:
        async for update in updates:
            if update.source == "event":
                found.setdefault(update.kind, []).append(update.data)
            if update.kind == "Completed":
                break
    request = msgspec.convert(found["Submitted"][0]["job"], m.JobRequest)
    if request.sealed:
        raise NotVerified(f"job {view.job_id} cannot be verified: {SEALED}")
    if (device := DEVICES[request.needs.device]) != "cpu":
        raise NotVerified(f"job {view.job_id} cannot be verified: {UNVERIFIABLE.format(device=device)}")
    if (numerics := request.training.numerics) != "exact":
        raise NotVerified(f"job {view.job_id} cannot be verified: {NOT_EXACT.format(numerics=numerics)}")
    stored = [msgspec.convert(data["checkpoint"], m.Checkpoint) for data in found.get("Checkpointed", ())]
    return History(
        request=request,
        completed=msgspec.convert(found["Completed"][-1], m.Completed),
        checkpoints=stored,
    )


async def verdict_of(
    client: AsyncClient, job_id: str, history: History, folder: Path, options: Options, screen: Screen
) -> Verdict:
    request, begun_s = history.request, time.monotonic()

    async def fetch(what: str, sha256: str) -> Path:
        path = folder / what
        await client.fetch(sha256, path, lambda done, total: screen.advance(what, done, total))
        return path

    data_path = await fetch("data", request.dataset.sha256)
    resume = await newest_state(history.checkpoints, fetch) if options.tail else None
    weights = request.model.weights
    weights_path = await fetch("weights", weights) if weights and resume is None else None
    process = await TrainingProcess.start(Launch(work_folder=folder / "work"))
    try:
        isa = (await process.wait_ready()).isa
        memory_bytes, _ = hardware.memory(hardware.cgroup_limits())
        share = Share(threads=options.threads, memory_bytes=memory_bytes)
        model_path = process.folder.absolute() / MODEL_FILE
        resume_path = resume[1] if resume else None
        order = order_for(request, share, data_path, weights_path, resume_path, model_path)
        process.tell(msgspec.structs.replace(order, every_steps=0, every_s=0.0))
        from_step, steps = await train(process, job_id, screen)
        ours = await asyncio.to_thread(describe, model_path)
        same = ours.sha256 == history.completed.model.sha256
        differences = [] if same else await compare(client, job_id, model_path, folder)
    finally:
        await process.close()
    return Verdict(
        job_id=job_id,
        same=same,
        delivered_sha256=history.completed.model.sha256,
        trained_sha256=ours.sha256,
        from_step=from_step,
        steps=steps,
        took_s=round(time.monotonic() - begun_s, 3),
        isa=isa,
        differences=differences,
    )


async def newest_state(checkpoints: list[m.Checkpoint], fetch: Any) -> tuple[m.Checkpoint, Path]:
    """The newest checkpoint that is still stored. Raises NotVerified when none is: old ones are swept."""
    for checkpoint in reversed(checkpoints):
        try:
            return checkpoint, await fetch("state", checkpoint.state.sha256)
        except (ApiError, ArtifactError):
            continue
    raise NotVerified(
        f"none of the job's {len(checkpoints)} checkpoints is stored any more: leave --tail out, to train all of it"
    )


async def train(process: TrainingProcess, job_id: str, screen: Screen) -> tuple[int, int]:
    """Until the process is done. Returns the step it began from, and all steps."""
    first, steps = 0, 0
    async for said in process.said():
        match said:
            case Prepared():
                first, steps = said.step, said.steps
                process.tell(Go())
            case Batch(metrics=batch):
                screen.advance("training again", batch.step - first, steps - first)
            case Epoch(metrics=epoch):
                screen.advance("training again", epoch.step - first, steps - first)
            case Done():
                return first, steps
            case Failed():
                raise NodeError(f"job {job_id} could not be trained again here: {said.message}")
    raise NodeError(f"job {job_id}: the training process ended without a word")


async def compare(client: AsyncClient, job_id: str, ours_path: Path, folder: Path) -> list[str]:
    """What is different, in words, most telling first."""
    import numpy as np

    import cyxcore

    theirs_path = folder / "delivered.cyxmodel"
    try:
        await client.download(job_id, theirs_path)
        theirs, ours = cyxcore.load_model(theirs_path), cyxcore.load_model(ours_path)
    except CyxError as error:
        return [f"the delivered model cannot be read: {error}"]
    found = []
    if theirs.graph.sha256 != ours.graph.sha256:
        found.append("the graph is another one")
    for old, new in zip(theirs.history, ours.history, strict=False):
        if old != new:
            found.append(
                f"from epoch {new.epoch} on the metrics differ: its loss was told as {old.epoch_loss:.9g}, it is "
                f"{new.epoch_loss:.9g}"
            )
            break
    if len(theirs.history) != len(ours.history):
        found.append(f"it was told of {len(theirs.history)} epochs; there are {len(ours.history)}")
    for name in sorted(theirs.weights.keys() | ours.weights.keys()):
        old_array, new_array = theirs.weights.get(name), ours.weights.get(name)
        if old_array is None or new_array is None or old_array.shape != new_array.shape:
            found.append(f"{name} is not in both, or not of one shape")
        elif not np.array_equal(old_array, new_array, equal_nan=True):
            apart = float(np.abs(old_array.astype(np.float64) - new_array.astype(np.float64)).max())
            found.append(f"{name} differs by up to {apart:.3g}")
    return found or ["only what is written beside graph, metrics and weights"]


def in_words(verdict: Verdict) -> str:
    again = "all of it" if not verdict.from_step else f"from step {verdict.from_step}"
    what = (
        f"trained {again} again, {verdict.steps - verdict.from_step} steps in {human_duration(verdict.took_s)} "
        f"({verdict.isa})"
    )
    if verdict.same:
        return f"{verdict.job_id} is verified: {what}; the model has the same bytes, {verdict.delivered_sha256}"
    differences = "; ".join(verdict.differences[:5])
    more = f"; and {len(verdict.differences) - 5} more" if len(verdict.differences) > 5 else ""
    return f"{verdict.job_id} is NOT what its data gives: {what}; {differences}{more}"


def main() -> int:
    """What `cyx verify` starts: it has read the command line, and passes on what was said."""
    parser = argparse.ArgumentParser(prog="cyx verify", description="Train a finished job once more, and compare.")
    parser.add_argument("job")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=hardware.usable_cores(hardware.cgroup_limits().cores))
    for flag in ("--tail", "--json", "--quiet", "--no-color", "--debug"):
        parser.add_argument(flag, action="store_true")
    return run(verify, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
