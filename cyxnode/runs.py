"""One run from assignment to report: fetch the data, train in a process, store the model, sign for it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import artifacts
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.identity import Identity
from cyxnet.messages import Assign, RunCompleted, RunFailed, completion_bytes
from cyxnode.cache import ArtifactCache
from cyxnode.events import Advanced, Event, FirstBatch, RunEnded, RunKey
from cyxnode.pipe import Batch, Done, Epoch, Failed, Order, Ready
from cyxnode.process import Pool, TrainingProcess
from cyxnode.state import retry_delay_ms
from cyxnode.telemetry import Telemetry

log = logging.getLogger(__name__)
T = TypeVar("T")

MODEL_FILE = "model.cyxmodel"
MAX_MODEL_BYTES = 16 * 2**30
DEVICES = {"any": "cpu", "cpu": "cpu", "cuda": "cuda"}  # what a job needs -> where it is trained


class Share(Struct, frozen=True, kw_only=True):
    """What one run may take of this machine."""

    threads: int
    memory_bytes: int


class Runs:
    """Performs runs, each as a task. Everything that happens is told as an event; nothing is decided here."""

    def __init__(
        self,
        bus: Bus,
        node_id: str,
        session: str,
        key: Identity,
        pool: Pool,
        cache: ArtifactCache,
        telemetry: Telemetry,
        share: Share,
        tell: Callable[[Event], object],
    ):
        self._bus = bus
        self._node_id = node_id
        self._session = session
        self._key = key
        self._pool = pool
        self._cache = cache
        self._telemetry = telemetry
        self._share = share
        self._tell = tell
        self._tasks: dict[RunKey, asyncio.Task[None]] = {}
        self._processes: dict[RunKey, TrainingProcess] = {}

    def start(self, assign: Assign) -> None:
        key = (assign.job_id, assign.attempt)
        task = asyncio.create_task(self._perform(key, assign))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._gone(key, done))

    def kill(self, key: RunKey) -> None:
        """Its process is dead when this returns; the rest is cleared up by its task."""
        if process := self._processes.get(key):
            process.kill()
        if (task := self._tasks.get(key)) and not task.cancelling():  # once: the second would cut its clearing up
            task.cancel()
        self._telemetry.forget(key)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for key in list(self._tasks):
            self.kill(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _gone(self, key: RunKey, task: "asyncio.Task[None]") -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]

    async def _perform(self, key: RunKey, assign: Assign) -> None:
        try:
            report: RunCompleted | RunFailed = await self._train(key, assign)
        except CyxError as error:
            report = self._failed(key, error.code, str(error))
        except Exception as error:
            log.exception("run %s/%d failed in the node itself", *key)
            report = self._failed(key, "node_error", f"{type(error).__name__} in the node; its log says where")
        if isinstance(report, RunFailed):
            log.warning("run %s/%d failed (%s): %s", *key, report.code, report.message)
        self._telemetry.forget(key)
        self._tell(RunEnded(key, report))

    async def _train(self, key: RunKey, assign: Assign) -> RunCompleted | RunFailed:
        job = assign.job
        async with contextlib.AsyncExitStack() as stack:

            async def fetch(sha256: str, size: int | None) -> Path:
                return await stack.enter_async_context(self._cache.hold(sha256, size))

            data_path = await self._insist(lambda: fetch(job.dataset.sha256, job.dataset.size))
            weights_path = None
            if (weights := job.model.weights) is not None:
                weights_path = await self._insist(lambda: fetch(weights, None))
            process = await self._pool.take()
            self._processes[key] = process
            try:
                order = self._order(assign, data_path, weights_path, process.folder / MODEL_FILE)
                end = await self._listen(key, process, order)
                if isinstance(end, Failed):
                    return self._failed(key, end.code, end.message, end.deterministic)
                self._pool.warm_up()  # the machine is free again
                self._tell(Advanced(key, "uploading"))
                return await self._deliver(key, end, Path(order.out_path))
            finally:
                del self._processes[key]
                await process.close()

    async def _listen(self, key: RunKey, process: TrainingProcess, order: Order) -> Done | Failed:
        self._tell(Advanced(key, "training"))
        begun_s, first = time.monotonic(), True
        async for said in process.train(order):
            match said:
                case Batch(metrics=metrics):
                    await self._telemetry.batch(key, metrics)
                    if first:
                        first = False
                        log.info("run %s/%d: first step after %.0f ms", *key, (time.monotonic() - begun_s) * 1000)
                        self._tell(FirstBatch(key))
                case Epoch(metrics=epoch):
                    await self._telemetry.epoch(key, epoch)
                case Done() | Failed():
                    return said
                case Ready():
                    break
        process.kill()
        return Failed(code="process_garbled", message="the training process said Ready twice", deterministic=False)

    async def _deliver(self, key: RunKey, done: Done, path: Path) -> RunCompleted | RunFailed:
        if not path.is_file() or not path.stat().st_size:
            return self._failed(key, "no_model", "the training process said Done and left no model file")
        model = await self._insist(lambda: artifacts.put(self._bus, self._node_id, path))
        await self._telemetry.link_is_back()  # the last epoch is known before the end is reported
        job_id, attempt = key
        report = RunCompleted(
            node_id=self._node_id,
            session=self._session,
            job_id=job_id,
            attempt=attempt,
            model=model,
            graph_sha256=done.graph_sha256,
            summary=done.summary,
            signature="0" * 128,
        )
        return replace(report, signature=self._key.sign(completion_bytes(report)))

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
            await asyncio.sleep(retry_delay_ms(self._session, tries) / 1000)
            tries += 1

    def _order(self, assign: Assign, data_path: Path, weights_path: Path | None, out_path: Path) -> Order:
        job = assign.job
        memory_bytes = min(job.needs.memory_bytes or self._share.memory_bytes, self._share.memory_bytes)
        return Order(
            model=job.model,
            data=job.data,
            training=job.training,
            data_path=str(data_path.absolute()),
            weights_path=str(weights_path.absolute()) if weights_path else None,
            out_path=str(out_path.absolute()),
            device=DEVICES[job.needs.device],
            threads=self._share.threads,
            memory_bytes=memory_bytes,
            file_bytes=MAX_MODEL_BYTES,
            expected_rows=job.facts.rows if job.facts else None,
            expected_input_shape=list(job.facts.input_shape) if job.facts else None,
        )

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
