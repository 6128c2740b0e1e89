"""Train a finished job once more, on this machine, and compare: the proof that its model is what its data gives.

    cyx verify JOB                  the whole job, from the first step
    cyx verify JOB --tail           from the newest checkpoint that is still stored, which is quicker and proves less
    cyx verify JOB --segment any    one segment by chance: from one of its states that are still stored to the next

The states and the model of a job trained on a CPU have the same bytes whoever trains it, with however many threads and
interruptions (the numeric class cyx-exact/1). So equal hashes prove every step, and no trust in any node is left; and
the first state with another hash than its node signed says which segment is wrong. What comes after it is compared with
what the node's own next state gives, as far as that is still stored.
"""

import argparse
import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from msgspec import Struct

from cyxcore.errors import CheckpointError, CyxError
from cyxnet import messages as m
from cyxnet.artifacts import ArtifactError
from cyxnet.bus import ApiError
from cyxnet.cli import values
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.running import connected, run
from cyxnet.cli.screen import Screen
from cyxnet.client import AsyncClient, NoModel
from cyxnet.display import human_duration
from cyxnet.follow import ENDED, no_model
from cyxnode import hardware, segments
from cyxnode.chain import History, NotVerified, Part, history_of
from cyxnode.errors import NodeError
from cyxnode.pipe import Batch, Epoch, Failed, Prepared
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
ANY, MODEL = "any", "model"  # of --segment, beside a step


class Options(Struct, frozen=True, kw_only=True):
    """segment: only the one that ends at this step, with the MODEL, or ANY that can be trained."""

    tail: bool = False  # only from the newest checkpoint that is still stored
    segment: str = ""
    threads: int


class Found(Struct, kw_only=True):
    """A segment that is not proven: from a step to a step (0: to the model).

    attempt, node_id: who signed for its end. found_sha256: None where its start is gone.
    """

    from_step: int
    to_step: int
    attempt: int
    node_id: str
    signed_sha256: str
    found_sha256: str | None = None


class Verdict(Struct, kw_only=True):
    job_id: str
    same: bool  # all that was asked for
    delivered_sha256: str  # what its node signed for the last end: of the model, or of a state
    trained_sha256: str  # what came out here for it; "" where nothing could
    from_step: int
    to_step: int  # 0: to the model
    steps: int  # of the whole job
    took_s: float
    isa: str  # of the kernels here
    differences: list[str] = []  # of the model in words, when it is not the same
    segments: int = 0  # how many were compared
    wrong: list[Found] = []
    unknown: list[Found] = []  # not to be told: the states they begin with are not stored any more, or are none


async def verify(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        view = await client.job(args.job)
        options = Options(tail=args.tail, segment=args.segment or "", threads=args.threads)
        history = await read_history(client, view)
        with tempfile.TemporaryDirectory(prefix="cyx-verify-") as folder:
            verdict = await verdict_of(client, view.job_id, history, Path(folder), options, screen)
    screen.result(in_words(verdict), verdict)
    return DONE if verdict.same else WORLD_FAILED


async def read_history(client: AsyncClient, view: m.JobView) -> History:
    """Raises NoModel for a job that delivered nothing, NotVerified for one that has no exact bits."""
    if view.model is None and not (view.checkpoint and view.status in ENDED):
        raise NoModel(no_model(view))
    events: list[tuple[str, dict[str, Any]]] = []
    async with contextlib.aclosing(client.watch(view.job_id)) as updates:
        async for update in updates:
            if update.source == "event":
                events.append((update.kind, update.data))
            if view.model and update.kind == "Completed" and update.data["attempt"] == view.attempt:
                break
    history = history_of(events, view.checkpoint)
    if why_not := unverifiable(history.request):
        raise NotVerified(f"job {view.job_id} cannot be verified: {why_not}")
    return history


def unverifiable(request: m.JobRequest) -> str | None:
    """Why a job's bits cannot be had again here."""
    if request.sealed:
        return SEALED
    if (device := DEVICES[request.needs.device]) != "cpu":
        return UNVERIFIABLE.format(device=device)
    if (numerics := request.training.numerics) != "exact":
        return NOT_EXACT.format(numerics=numerics)
    return None


class Bench:
    """Where parts of a job are trained again, from those of its states that the network still has."""

    def __init__(self, client: AsyncClient, request: m.JobRequest, folder: Path, threads: int, screen: Screen):
        self.isa, self.steps = "", 0  # of the kernels, of the whole job
        self.model_path = folder / MODEL_FILE  # as it came out here
        self._client, self._request, self._folder, self._screen = client, request, folder, screen
        memory_bytes, _ = hardware.memory(hardware.cgroup_limits())
        self._share = Share(threads=threads, memory_bytes=memory_bytes)

    async def has_start(self, part: Part) -> bool:
        """Whether the state that a part begins with is stored still."""
        try:
            await self._start(part)
        except ArtifactError:
            return False
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def _check_weights(self) -> None:
        """Raise NotVerified unless the job began with the model of the job that it names."""
        for after in self._request.after:
            if after.model:
                view = await self._client.job(after.job_id)
                if view.model is None or view.model.sha256 != self._request.model.weights:
                    has = view.model.sha256 if view.model else "none"
                    began = self._request.model.weights
                    raise NotVerified(f"it began with {began}, and the model of {after.job_id} is {has}")

    async def ends_of(self, parts: list[Part]) -> AsyncGenerator[tuple[Part, m.ArtifactRef], None]:
        """Train parts that follow one another, in a process of its own: each, and what its end is here."""
        data_path, start_path = await self._fetch("data", self._request.dataset.sha256), await self._start(parts[0])
        weights = None if start_path else self._request.model.weights
        weights_path = await self._fetch("weights", weights) if weights else None
        await self._check_weights()
        process = await TrainingProcess.start(Launch(work_folder=self._folder / "work"))
        try:
            self.isa = (await process.wait_ready()).isa
            out_path = process.folder.absolute() / MODEL_FILE
            start = parts[0].segment.start
            order = order_for(self._request, self._share, data_path, weights_path, start_path, out_path, resume=start)
            order, untold = segments.order_of(order, [part.segment for part in parts]), iter(parts)
            async for end in segments.ends_of(process, order, self._told):
                if isinstance(end, Failed) and end.code == CheckpointError.code:
                    raise CheckpointError(end.message)
                if isinstance(end, Failed):
                    raise NodeError(f"the job could not be trained again here: {end.message}")
                part = next(untold)
                if not part.segment.end_step:
                    out_path.rename(self.model_path)
                yield part, end
        finally:
            await process.close()

    def _told(self, said: Prepared | Batch | Epoch) -> None:
        if isinstance(said, Prepared):
            self._first, self.steps = said.step, said.steps
        else:
            self._screen.advance("training again", said.metrics.step - self._first, self.steps - self._first)

    async def _start(self, part: Part) -> Path | None:
        start = part.segment.start
        return await self._fetch(f"state of step {start.step}", start.state.sha256) if start else None

    async def _fetch(self, what: str, sha256: str) -> Path:
        path = self._folder / sha256
        if not path.exists():
            await self._client.fetch(sha256, path, lambda done, total: self._screen.advance(what, done, total))
        return path


async def verdict_of(
    client: AsyncClient, job_id: str, history: History, folder: Path, options: Options, screen: Screen
) -> Verdict:
    begun_s, bench = time.monotonic(), Bench(client, history.request, folder, options.threads, screen)
    parts = await chosen(history.parts, options, bench)
    compared, wrong, unknown, trained = 0, [], [], ""
    at = 0
    while at < len(parts):
        if not await bench.has_start(parts[at]):
            unknown.append(not_proven(parts[at]))
            at += 1
            continue
        try:
            async with contextlib.aclosing(bench.ends_of(parts[at:])) as ends:
                async for part, found in ends:
                    at, compared = at + 1, compared + 1
                    trained = found.sha256 if part is parts[-1] else ""
                    if found != part.end:  # what follows is compared with what the node's own state gives
                        wrong.append(not_proven(part, found.sha256))
                        break
        except CheckpointError:  # what it signed as a state is none
            unknown.append(not_proven(parts[at]))
            at += 1
    model_is_another = bool(wrong) and not wrong[-1].to_step
    return Verdict(
        job_id=job_id,
        same=not (wrong or unknown),
        delivered_sha256=parts[-1].end.sha256,
        trained_sha256=trained,
        from_step=parts[0].from_step,
        to_step=parts[-1].segment.end_step,
        steps=bench.steps,
        took_s=round(time.monotonic() - begun_s, 3),
        isa=bench.isa,
        differences=await compare(client, job_id, bench.model_path, folder) if model_is_another else [],
        segments=compared,
        wrong=wrong,
        unknown=unknown,
    )


async def chosen(parts: list[Part], options: Options, bench: Bench) -> list[Part]:
    """What shall be trained again. Raises NotVerified where that cannot be, since old states are swept."""
    if options.tail:
        for at in range(len(parts) - 1, 0, -1):
            if await bench.has_start(parts[at]):
                return parts[at:]
        raise NotVerified(
            f"none of the job's {len(parts) - 1} checkpoints is stored any more: leave --tail out, to train all of it"
        )
    if options.segment == ANY:
        for part in secrets.SystemRandom().sample(parts, len(parts)):
            if await bench.has_start(part):
                return [part]  # at the latest the first, which begins with nothing
    if options.segment:
        end_step = 0 if options.segment == MODEL else int(options.segment)
        found = [part for part in parts if part.segment.end_step == end_step]
        if not found:
            ends = [str(part.segment.end_step or MODEL) for part in parts]
            known = ", ".join(ends if len(ends) <= 12 else [*ends[:6], "…", *ends[-6:]])
            raise NotVerified(f"no segment of the job ends at {options.segment}; those that it has end at {known}")
        if not await bench.has_start(found[0]):
            raise NotVerified(
                f"the state of step {found[0].from_step}, with which that segment begins, is not stored any more: "
                f"take another, or --segment {ANY}"
            )
        return found
    return parts


def not_proven(part: Part, found_sha256: str | None = None) -> Found:
    return Found(
        from_step=part.from_step,
        to_step=part.segment.end_step,
        attempt=part.attempt,
        node_id=part.node_id,
        signed_sha256=part.end.sha256,
        found_sha256=found_sha256,
    )


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
    to = f"step {verdict.to_step}" if verdict.to_step else "the model"
    again = "all of it" if not (verdict.from_step or verdict.to_step) else f"from step {verdict.from_step} to {to}"
    steps = (verdict.to_step or verdict.steps) - verdict.from_step
    what = f"trained {again} again, {steps} steps in {human_duration(verdict.took_s)} ({verdict.isa})"
    if verdict.same:
        end = f"the state of {to}" if verdict.to_step else to
        states = f", and so have the {verdict.segments - 1} states before it" if verdict.segments > 1 else ""
        return f"{verdict.job_id} is verified: {what}; {end} has the same bytes, {verdict.delivered_sha256}{states}"
    found = [*map(in_which, verdict.wrong), *verdict.differences]
    said = [what if verdict.segments else "nothing of it could be trained again", *found[:5]]
    if len(found) > 5:
        said.append(f"and {len(found) - 5} more")
    if verdict.unknown:
        said.append(
            f"{len(verdict.unknown)} of its segments, the first from step {verdict.unknown[0].from_step} on, cannot be "
            "told, since the states that they begin with are not stored any more, or are none"
        )
    judged = "NOT what its data gives" if verdict.wrong else "not proven"
    return f"{verdict.job_id} is {judged}: {'; '.join(said)}"


def in_which(found: Found) -> str:
    to = f"step {found.to_step}" if found.to_step else "the model"
    return f"wrong from step {found.from_step} to {to}, which {found.node_id} signed in attempt {found.attempt}"


def main() -> int:
    """What `cyx verify` starts: it has read the command line, and passes on what was said."""
    parser = argparse.ArgumentParser(prog="cyx verify", description="Train a finished job once more, and compare.")
    parser.add_argument("job")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=hardware.usable_cores(hardware.cgroup_limits().cores))
    parser.add_argument("--segment", type=values.segment)
    for flag in ("--tail", "--json", "--quiet", "--no-color", "--debug"):
        parser.add_argument(flag, action="store_true")
    return run(verify, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
