"""One run from assignment to report: fetch the data, train in a process, store its states and the model; or serve."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import artifacts, envelope
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.credentials import replica_id
from cyxnet.messages import (
    ArtifactRef,
    Assign,
    Checkpoint,
    JobRequest,
    RunCheckpoint,
    RunCompleted,
    RunFailed,
    Segment,
    SegmentTrained,
)
from cyxnode import segments
from cyxnode.answering import Mine
from cyxnode.cache import ArtifactCache
from cyxnode.events import Advanced, CheckpointStored, Event, FirstBatch, HaltCode, RunEnded, RunKey
from cyxnode.pipe import Batch, Done, Epoch, Failed, Go, Halt, Halted, NotSaved, Order, Prepared, Saved, Serving
from cyxnode.process import Pool, TrainingProcess
from cyxnode.replicas import Replica, Service, order_of
from cyxnode.state import retry_delay_ms
from cyxnode.telemetry import Telemetry
from cyxnode.uploads import Uploads

log = logging.getLogger(__name__)
T = TypeVar("T")

MODEL_FILE = "model.cyxmodel"
MAX_MODEL_BYTES = 16 * 2**30
CHECKPOINT_CHUNKS_IN_FLIGHT = 1  # heartbeats and metrics go over the same connection, and are worth more
HALTED = {"paused": "paused as asked", "node_stopped": "the node stops"}
UNSIGNED = "0" * 128  # it is signed when it is said: see cyxnode/signing.py
SEALED_FAILURE = "its training failed; why is in the log of its node only, since it may quote data, which is sealed"
DEVICES = {"any": "cpu", "cpu": "cpu", "cuda": "cuda"}  # what a job needs -> where it is trained


class Share(Struct, frozen=True, kw_only=True):
    """What one run may take of this machine, which has room for so many `runs` at a time."""

    threads: int
    memory_bytes: int
    runs: int = 1


@dataclass(slots=True)
class Work:
    """A run under way. step: the newest that is known here; saved_step: of the newest checkpoint of its own."""

    begun_s: float | None  # when it was allowed to make its first step
    received_s: float
    serves: bool = False
    gpu: str = ""  # the NVIDIA device that is its own
    task: "asyncio.Task[None] | None" = None
    process: TrainingProcess | None = None  # once it has its order
    service: Service | None = None  # of a run that serves, once its model is loaded
    training: bool = False  # it made a step here and has not ended
    leaving: bool = False  # a replica that is no longer wanted, and answers what it has taken
    halting: HaltCode = "paused"  # why it halts, when it does
    step: int = 0
    saved_step: int = 0


class Runs:
    """Performs runs, each as a task. Everything that happens is told as an event; nothing is decided here."""

    def __init__(
        self,
        bus: Bus,
        node_id: str,
        session: str,
        pool: Pool,
        cache: ArtifactCache,
        telemetry: Telemetry,
        share: Share,
        tell: Callable[[Event], object],
        connect: Callable[[str, int], Awaitable[Bus]],
        opened: Callable[[bytes], envelope.Envelope],
    ):
        """connect(job_id, attempt): the connection on which that run, which serves, is asked.

        opened: how this node opens what was sealed to it.
        """
        self._opened = opened
        self._connect = connect
        self._bus = bus
        self._node_id = node_id
        self._session = session
        self._pool = pool
        self._cache = cache
        self._telemetry = telemetry
        self._share = share
        self._tell = tell
        self._works: dict[RunKey, Work] = {}

    def start(self, assign: Assign, gpu: str = "") -> None:
        """gpu: the uuid of the NVIDIA device that it has for itself."""
        key = (assign.job_id, assign.attempt)
        now_s = time.monotonic()
        work = self._works[key] = Work(
            begun_s=now_s if assign.funded else None, received_s=now_s, serves=assign.job.serve is not None, gpu=gpu
        )
        work.task = asyncio.create_task(self._perform(key, assign, work))
        work.task.add_done_callback(lambda _: self._gone(key, work))

    def begin(self, key: RunKey) -> None:
        """It may train: at once when it is ready, else as soon as it is."""
        if work := self._works.get(key):
            work.begun_s = time.monotonic()
            if work.service:
                work.service.begin()
            elif work.process and not work.serves:  # a replica waits for it here, and not in its process
                work.process.tell(Go())

    def halt(self, key: RunKey, code: HaltCode) -> None:
        """Have it store a checkpoint and end; one that made no step here has nothing to store. A replica is drained."""
        work = self._works.get(key)
        if work is None:
            return
        work.halting = code
        if work.service:
            work.service.drain()
        elif work.training and work.process:
            work.process.tell(Halt())
        else:
            self.kill(key)
            asyncio.get_running_loop().call_soon(self._tell, RunEnded(key, self._halted(key, work)))

    def step(self, key: RunKey) -> int:
        """The newest step of its training that is known here."""
        return work.step if (work := self._works.get(key)) else 0

    def requests(self, key: RunKey) -> tuple[int, int] | None:
        """How many a replica has answered, and were in flight since this was asked last; None of any other run."""
        work = self._works.get(key)
        return (work.service.requests, work.service.waiting()) if work and work.service else None

    def kill(self, key: RunKey, at_once: bool = False) -> None:
        """Its process is dead when this returns; the rest is cleared up by its task.

        A replica answers first what it has been asked, unless it shall end at_once.
        """
        if work := self._works.get(key):
            if work.service and not at_once:
                work.leaving = True
                work.service.drain()
                return
            if work.process:
                work.process.kill()
            if work.task and not work.task.cancelling():  # once: the second would cut its clearing up
                work.task.cancel()
        self._telemetry.forget(key)

    async def close(self) -> None:
        tasks = [work.task for work in self._works.values() if work.task]
        for key in list(self._works):
            self.kill(key, at_once=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _gone(self, key: RunKey, work: Work) -> None:
        if self._works.get(key) is work:
            del self._works[key]

    async def _room(self) -> None:
        """Until there is memory for one more: a replica that is no longer wanted keeps its own while it answers."""
        while len(self._works) > self._share.runs:
            leaving = [work.task for work in self._works.values() if work.leaving and work.task]
            if not leaving:
                return
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # one that is over is taken out by _gone(), which has its turn now

    async def _alone_on(self, work: Work) -> None:
        """Until the process that had its device before is dead: one that was killed still holds memory there."""
        task = asyncio.current_task()
        while before := [each.task for each in self._works.values() if each.gpu == work.gpu and each.task != task]:
            await asyncio.wait([each for each in before if each])
            await asyncio.sleep(0)  # as in _room()

    async def _perform(self, key: RunKey, assign: Assign, work: Work) -> None:
        try:
            perform = self._serve if assign.job.serve else self._train
            report: RunCompleted | RunFailed | SegmentTrained = await perform(key, assign, work)
        except CyxError as error:
            report = self._failed(key, error.code, str(error), deterministic=isinstance(error, envelope.SealError))
        except Exception as error:
            log.exception("run %s/%d failed in the node itself", *key)
            report = self._failed(key, "node_error", f"{type(error).__name__} in the node; its log says where")
        if isinstance(report, RunFailed):
            log.warning("run %s/%d ended (%s): %s", *key, report.code, report.message)
        self._telemetry.forget(key)
        self._tell(RunEnded(key, report))

    async def _train(self, key: RunKey, assign: Assign, work: Work) -> RunCompleted | RunFailed | SegmentTrained:
        self._pool.warm_up()  # if none is: while the data comes
        async with contextlib.AsyncExitStack() as stack:
            fetch = functools.partial(self._fetch, stack)
            data_path = await fetch(assign.job.dataset.sha256, assign.job.dataset.size)
            segment = assign.segment
            weights, resume = assign.job.model.weights, segment.start if segment else assign.resume
            weights_path = await fetch(weights, None) if weights and not resume else None
            resume_path = await fetch(resume.state.sha256, resume.state.size) if resume else None
            fetched_s = time.monotonic()
            await self._room()
            if work.gpu:
                await self._alone_on(work)
            process = await self._pool.take()
            try:
                folder, job, seal = process.folder.absolute(), assign.job, None
                if job.sealed:
                    opening = functools.partial(opened_for, assign, data_path, resume_path, folder, self._opened)
                    plain = await to_its_end(opening)
                    job, data_path, resume_path, seal = plain
                model_path = folder / MODEL_FILE
                order = order_for(
                    job, self._share, data_path, weights_path, resume_path, model_path, assign.memory_bytes, resume
                )
                order = replace(order, gpu=work.gpu)
                _log_time(key, "data here", work, fetched_s)
                _log_time(key, "process here", work, time.monotonic())
                if segment:
                    return await self._check(key, process, segments.order_of(order, [segment]), work, segment)
                return await self._supervise(key, process, order, work, seal)
            finally:
                work.process = None
                await process.close()

    async def _check(
        self, key: RunKey, process: TrainingProcess, order: Order, work: Work, segment: Segment
    ) -> SegmentTrained | RunFailed:
        """Train a segment of somebody's job once more; only what its end is gets told, and to central only."""
        work.process = process
        _end_if_killed(work)

        def told(said: Prepared | Batch | Epoch) -> None:
            if isinstance(said, Prepared):
                self._prepared(key, said, work)
            else:
                work.step = said.metrics.step

        (end,) = [end async for end in segments.ends_of(process, order, told)]
        self._pool.fill_up()  # the machine is free again
        if isinstance(end, Failed):
            return self._failed_as(key, end, order.memory_bytes)
        job_id, attempt = key
        return SegmentTrained(
            node_id=self._node_id,
            session=self._session,
            job_id=job_id,
            attempt=attempt,
            segment=segment,
            end=end,
            signature=UNSIGNED,
        )

    async def _serve(self, key: RunKey, assign: Assign, work: Work) -> RunFailed:
        """Load the model, answer until told to end. A run that serves delivers nothing: it ends as one that halted."""
        job, spec, share = assign.job, assign.job.serve, self._share
        assert spec is not None
        if job.needs.device == "cuda":
            why = "a replica computes on the CPU; deploy the model without the device cuda"
            return self._failed(key, "no_kernel", why, deterministic=True)
        async with contextlib.AsyncExitStack() as stack:
            model_path = await self._fetch(stack, job.dataset.sha256, job.dataset.size)
            memory_bytes = _memory_bytes(job, share, assign.memory_bytes)
            order = order_of(job.name, spec, share.threads, memory_bytes, MAX_MODEL_BYTES)
            await self._room()
            replica = await Replica.start(self._pool.launch)
            work.process = replica.process
            try:
                _end_if_killed(work)
                loaded = await replica.load(model_path, order, spec.format)
                _log_time(key, "model loaded", work, time.monotonic())
                end = await self._answer(key, assign, work, replica) if isinstance(loaded, Serving) else loaded
                if isinstance(end, Failed):
                    return self._failed_as(key, end, memory_bytes)
                return self._failed(key, work.halting, HALTED[work.halting])
            finally:
                work.service = work.process = None
                await replica.close()

    async def _answer(self, key: RunKey, assign: Assign, work: Work, replica: Replica) -> Halted | Failed:
        spec = assign.job.serve
        assert spec is not None
        replica_of = replica_id(self._node_id, *key)
        mine = Mine(deployment=spec.deployment, owner=assign.owner, public=spec.public, replica=replica_of)
        work.service = service = Service(replica, lambda: self._connect(*key), mine, spec.drain_s)
        self._tell(Advanced(key, "ready"))
        if work.begun_s is not None:
            service.begin()
        return await service.perform(lambda: self._tell(FirstBatch(key)))

    async def _supervise(
        self, key: RunKey, process: TrainingProcess, order: Order, work: Work, seal: envelope.Envelope | None
    ) -> RunCompleted | RunFailed:
        """Until the process has ended and all that it left is stored, sealed if the job is."""

        async def put(path: Path, kind: envelope.Kind, in_flight: int = artifacts.CHUNKS_IN_FLIGHT) -> ArtifactRef:
            sealed = path.with_name(f"{path.name}.sealed")
            try:
                if seal:
                    about = envelope.About(job_id=key[0])
                    await to_its_end(functools.partial(envelope.seal, path, sealed, seal, kind, about))
                    path = sealed
                return await self._insist(lambda: artifacts.put(self._bus, self._node_id, path, in_flight=in_flight))
            finally:
                sealed.unlink(missing_ok=True)

        uploads = Uploads(
            lambda path: put(path, "state", CHECKPOINT_CHUNKS_IN_FLIGHT),
            lambda checkpoint: self._checkpointed(key, checkpoint, work),
        )
        try:
            end = await self._listen(key, process, order, work, uploads)
            work.training = False
            self._pool.fill_up()  # the machine is free again
            if isinstance(end, Done):
                self._tell(Advanced(key, "uploading"))
                await uploads.close()  # the model says more
                return await self._deliver(key, end, Path(order.out_path), lambda path: put(path, "model"))
            await uploads.settle()  # the next attempt goes on from there
            if isinstance(end, Failed):
                if seal:
                    log.warning("run %s/%d: what only this node is told: %s", *key, end.message)
                    end = replace(end, message=SEALED_FAILURE)
                return self._failed_as(key, end, order.memory_bytes)
            return self._halted(key, work)
        finally:
            await uploads.close()

    async def _listen(
        self, key: RunKey, process: TrainingProcess, order: Order, work: Work, uploads: Uploads
    ) -> Done | Halted | Failed:
        work.process = process
        _end_if_killed(work)
        process.tell(order)
        if work.begun_s is not None:
            process.tell(Go())
        async for said in process.said():
            match said:
                case Prepared():
                    self._prepared(key, said, work)
                case Batch(metrics=metrics):
                    work.step = metrics.step
                    if not work.training:
                        work.training = True
                        self._tell(FirstBatch(key))
                        now_s = time.monotonic()
                        log.debug("run %s/%d: begun %.1f ms ago", *key, (now_s - (work.begun_s or now_s)) * 1000)
                        log.info("run %s/%d: first step after %.0f ms", *key, (now_s - work.received_s) * 1000)
                    await self._telemetry.batch(key, metrics)
                case Epoch(metrics=epoch):
                    work.step = epoch.step
                    await self._telemetry.epoch(key, epoch)
                case Saved(step=step, write_ms=write_ms):
                    log.debug("run %s/%d: checkpoint of step %d written in %.1f ms", *key, step, write_ms)
                    uploads.offer(said, process.folder / said.file)
                case NotSaved(message=message):
                    log.warning("run %s/%d: %s", *key, message)
                case Done() | Halted() | Failed():
                    return said
                case _:
                    break
        process.kill()
        why = f"the training process said {type(said).__name__}, which is not for it to say now"
        return Failed(code="process_garbled", message=why, deterministic=False)

    def _prepared(self, key: RunKey, said: Prepared, work: Work) -> None:
        work.step = said.step
        _log_time(key, "prepared", work, time.monotonic())
        parts = (said.data_ms, said.graph_ms, said.plan_ms)
        log.debug("run %s/%d: of that, data %.1f ms, graph %.1f ms, plan %.1f ms", *key, *parts)
        self._tell(Advanced(key, "ready"))

    def _checkpointed(self, key: RunKey, checkpoint: Checkpoint, work: Work) -> None:
        job_id, attempt = key
        report = RunCheckpoint(
            node_id=self._node_id,
            session=self._session,
            job_id=job_id,
            attempt=attempt,
            checkpoint=checkpoint,
            signature=UNSIGNED,
        )
        work.saved_step = checkpoint.step
        self._tell(CheckpointStored(key, report))

    async def _deliver(
        self, key: RunKey, done: Done, path: Path, put: Callable[[Path], Awaitable[ArtifactRef]]
    ) -> RunCompleted | RunFailed:
        if not path.is_file() or not path.stat().st_size:
            return self._failed(key, "no_model", "the training process said Done and left no model file")
        model = await put(path)
        await self._telemetry.link_is_back()  # the last epoch is known before the end is reported
        job_id, attempt = key
        return RunCompleted(
            node_id=self._node_id,
            session=self._session,
            job_id=job_id,
            attempt=attempt,
            model=model,
            graph_sha256=done.graph_sha256,
            summary=done.summary,
            signature=UNSIGNED,
        )

    async def _fetch(self, stack: contextlib.AsyncExitStack, sha256: str, size: int | None) -> Path:
        """An artifact of this node's cache, which holds it until the stack ends."""
        path = await self._insist(lambda: stack.enter_async_context(self._cache.hold(sha256, size)))
        return path.absolute()

    async def _insist(self, attempt: Callable[[], Coroutine[Any, Any, T] | Awaitable[T]]) -> T:
        """Again and again while nobody answers or central is busy: a run is not lost to a lost link."""
        tries = 0
        while True:
            try:
                return await attempt()
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    raise
            except BusError:
                pass
            await self._bus.pause(retry_delay_ms(self._session, tries) / 1000)
            tries += 1

    def _halted(self, key: RunKey, work: Work) -> RunFailed:
        if work.saved_step:
            where = f"the checkpoint of step {work.saved_step} is stored"
        else:
            where = f"at step {work.step}; no checkpoint was stored here"
        return self._failed(key, work.halting, f"{HALTED[work.halting]}; {where}")

    def _failed_as(self, key: RunKey, end: Failed, memory_bytes: int) -> RunFailed:
        """In the words of its process. memory_bytes: what that might take, which is told where it was too little."""
        seen_bytes = memory_bytes if end.code == "out_of_memory" and not end.gpu_memory_bytes else 0
        failed = self._failed(key, end.code, end.message, end.deterministic)
        return replace(failed, memory_bytes=seen_bytes, gpu_memory_bytes=end.gpu_memory_bytes)

    def _failed(self, key: RunKey, code: str, message: str, deterministic: bool = False) -> RunFailed:
        job_id, attempt = key
        return RunFailed(
            node_id=self._node_id,
            session=self._session,
            job_id=job_id,
            attempt=attempt,
            code=code[:64],
            message=message[:2000],
            deterministic=deterministic,
        )


async def to_its_end(work: Callable[[], T]) -> T:
    """Work in a thread, which is waited for although the task is cancelled: else plain text could appear in a folder
    after it was cleared.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise


def opened_for(
    assign: Assign,
    data_path: Path,
    resume_path: Path | None,
    folder: Path,
    opened: Callable[[bytes], envelope.Envelope],
) -> tuple[JobRequest, Path, Path | None, envelope.Envelope]:
    """A sealed job as it is in plain text, its data and state in `folder`, and what its results are sealed with.

    What its client sealed with the data is what is trained: central could have data trained for itself else.
    Raises SealError.
    """
    mine, about, data = envelope.unseal(data_path, folder / "data", opened, "data", assign.job_id)
    plain = about.job
    if plain is None or plain.dataset != data or _trained(plain) != _trained(assign.job):
        raise envelope.SealError(f"{assign.job_id}: the job is not the one that its client sealed with the data")
    if resume_path:
        resume_path, sealed_path = folder / "resumed", resume_path
        envelope.unseal(sealed_path, resume_path, envelope.within(mine), "state", assign.job_id)
    return plain, folder / "data", resume_path, mine


def _trained(job: JobRequest) -> tuple[object, ...]:
    """All that decides what comes of the data, and who is told."""
    return job.model, job.data, job.facts, job.training, job.checkpoints, job.serve, job.sealed


def order_for(
    job: JobRequest,
    share: Share,
    data_path: Path,
    weights_path: Path | None,
    resume_path: Path | None,
    out_path: Path,
    memory_bytes: int = 0,
    resume: Checkpoint | None = None,
) -> Order:
    """What a training process is told of a job. memory_bytes: what it needs at least, as its attempts have shown.

    resume: what resume_path holds, as its node signed it.
    """
    return Order(
        model=job.model,
        data=job.data,
        training=job.training,
        data_path=str(data_path),
        data_sha256=job.dataset.sha256,
        weights_path=str(weights_path) if weights_path else None,
        resume_path=str(resume_path) if resume_path else None,
        resume_at=(resume.step, resume.steps) if resume else None,
        out_path=str(out_path),
        device=DEVICES[job.needs.device],
        threads=share.threads,
        memory_bytes=_memory_bytes(job, share, memory_bytes),
        file_bytes=MAX_MODEL_BYTES,
        expected_rows=job.facts.rows if job.facts else None,
        expected_input_shape=list(job.facts.input_shape) if job.facts else None,
        every_steps=job.checkpoints.every_steps,
        every_s=job.checkpoints.every_s,
    )


def _end_if_killed(work: Work) -> None:
    """Raises CancelledError for a run that was killed before it had a process; from here on kill() ends that.

    A cancellation may get lost in a library: asyncio.wait_for of Python 3.11 forgets one that comes with its result.
    """
    if work.task and work.task.cancelling():
        raise asyncio.CancelledError


def _memory_bytes(job: JobRequest, share: Share, memory_bytes: int) -> int:
    wanted_bytes = max(job.needs.memory_bytes, memory_bytes) if job.needs.memory_bytes else 0
    return min(wanted_bytes or share.memory_bytes, share.memory_bytes)


def _log_time(key: RunKey, what: str, work: Work, at_s: float) -> None:
    log.debug("run %s/%d: %s after %.1f ms", *key, what, (at_s - work.received_s) * 1000)
