"""One serve run: a process with the model, a connection of its own to the broker, and what goes between the two."""

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from cyxnet.bus import Bus, BusError, NotAdmitted
from cyxnet.messages import ServeSpec
from cyxnode.answering import Answering, Mine
from cyxnode.exchange import Exchange
from cyxnode.pipe import Failed, Figures, Halt, Halted, Serve, Serving
from cyxnode.process import Launch, TrainingProcess

log = logging.getLogger(__name__)
T = TypeVar("T")

REPLICA_COMMAND = (sys.executable, "-P", "-m", "cyxnode.replica")
HALT_S = 5.0  # for a process that has answered everything, to end
LET_IN_S = 20.0  # so long a connection may be refused: not every central knows the lease at once
LET_IN_PAUSE_S = 0.2
LOAD_S, LOAD_BYTES_PER_S = 120.0, 10_000_000  # for a model: so long, and at least so fast
COUNT_EVERY_S = 0.25  # what is in flight


class Replica:
    """A process that answers with one model, and how to ask it. Nothing is left of it after close()."""

    def __init__(self, process: TrainingProcess):
        self.process = process
        self.exchange: Exchange
        self.figures: Figures | None = None  # what it said last
        self._halts = False

    @classmethod
    async def start(cls, launch: Launch) -> "Replica":
        """Raises NodeError when no process can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                given = replace(launch, command=REPLICA_COMMAND, descriptors=(theirs.fileno(),), what="replica")
                self = cls(await TrainingProcess.start(given))
            except BaseException:
                ours.close()
                raise
        try:
            self.exchange = await Exchange.open(ours, self._lost)
        except BaseException:  # a cancel too: nobody else would end it
            ours.close()
            await self.process.close()
            raise
        return self

    async def load(self, model_path: Path, order: Serve, model_format: str) -> Serving | Failed:
        """Have it load the model, in time. Raises NodeError when it is no good at all."""
        await self.process.wait_ready()
        path = self.process.folder.absolute() / f"model.{model_format}"  # how a file is read depends on its ending
        path.symlink_to(model_path)
        self.process.tell(replace(order, model_path=str(path)))
        limit_s = LOAD_S + model_path.stat().st_size / LOAD_BYTES_PER_S
        try:
            async with asyncio.timeout(limit_s):
                said = await anext(self.process.said())
        except TimeoutError:
            self.process.kill()
            why = f"the model was not loaded within {limit_s:.0f} s; a smaller one, or a faster node, would be"
            return Failed(code="load_timeout", message=why, deterministic=False)
        if isinstance(said, Serving | Failed):
            return said
        self.process.kill()
        return Failed(
            code="process_garbled", message=f"the replica said {type(said).__name__} first", deterministic=False
        )

    async def until_end(self) -> Halted | Failed:
        """Listen to it. Whatever happens, it ends with one of these."""
        async for said in self.process.said():
            if isinstance(said, Halted | Failed):
                return said
            if isinstance(said, Figures):
                self.figures = said
        raise AssertionError("said() ends with Halted or Failed")

    def halt(self) -> None:
        """Have it end, once it has answered what it was asked."""
        self._halts = True
        self.process.tell(Halt())

    async def close(self) -> None:
        self.exchange.close()
        await self.process.close()

    def _lost(self, why: str) -> None:
        log.debug("replica %d answers no more: %s", self.process.pid, why)
        if not self._halts:  # it may be alive and not keep to the rules
            self.process.kill()


class Service:
    """A replica on the network, from its model file to the last answer.

    connect() makes a connection that only this replica has; before the time is over for which it is let in, the next
    one is made, and the old one answers what it took. begin() lets the replica answer, drain() ends it in order.
    """

    def __init__(self, replica: Replica, connect: Callable[[], Awaitable[Bus]], mine: Mine, drain_s: float):
        self.replica = replica
        self._connect, self._mine, self._drain_s = connect, mine, drain_s
        self._begun, self._ending = asyncio.Event(), asyncio.Event()
        self._is_asked = False
        self._working: asyncio.Future[None] | None = None
        self._counted: list[int] = []  # in flight, each time it was looked at since waiting() was asked

    def begin(self) -> None:
        self._begun.set()

    def drain(self) -> None:
        """Take no more, answer what is in flight, end."""
        self._ending.set()
        if self._working and not self._is_asked:  # nothing is in flight
            self._working.cancel()

    @property
    def requests(self) -> int:
        return self.replica.figures.requests if self.replica.figures else 0

    def waiting(self) -> int:
        """How many questions were in flight, on average since this was asked last."""
        counted, self._counted = [*self._counted, self.replica.exchange.in_flight], []
        return round(sum(counted) / len(counted))

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_EVERY_S)
            self._counted.append(self.replica.exchange.in_flight)

    async def perform(self, started: Callable[[], object]) -> Halted | Failed:
        """Of a loaded replica: until it is drained or dead. started() is called when it is asked from then on.

        Raises NotAdmitted when the broker lets its connection in for no time.
        """
        end = asyncio.ensure_future(self.replica.until_end())
        working = self._working = asyncio.ensure_future(self._work(started))
        counting = asyncio.ensure_future(self._count())
        try:
            if self._ending.is_set():
                working.cancel()
            await asyncio.wait([end, working], return_when=asyncio.FIRST_COMPLETED)
            if not end.done() and not working.cancelled() and (error := working.exception()):
                raise error
            working.cancel()
            await asyncio.wait([working])
            return await self._halt(end)
        finally:
            for task in (end, working, counting):
                task.cancel()
            await asyncio.wait([end, working, counting])

    async def _work(self, started: Callable[[], object]) -> None:
        await self._begun.wait()
        shift: _Shift | None = await self._next_shift()
        leaving: set[asyncio.Task[None]] = set()
        try:
            self._is_asked = True
            started()
            while shift:
                await self._unless_ending(shift.until_relief)
                relief = await self._unless_ending(self._next_shift)
                leaving.add(asyncio.create_task(shift.leave(None if relief else self._drain_s)))
                shift = relief
            await asyncio.wait(leaving, timeout=self._drain_s)
        finally:
            for task in leaving:
                task.cancel()
            if shift:
                await shift.close()
            if leaving:
                await asyncio.wait(leaving)

    async def _unless_ending(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """What comes of it; None when the replica shall end before."""
        if self._ending.is_set():
            return None
        working, ending = asyncio.ensure_future(work()), asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, ending):
                task.cancel()
            await asyncio.wait([working, ending])

    async def _halt(self, end: "asyncio.Future[Halted | Failed]") -> Halted | Failed:
        """What the process ended with; one that is alive is told to end."""
        self.replica.halt()
        done, _ = await asyncio.wait([end], timeout=self._drain_s + HALT_S)
        return end.result() if done else Halted()

    async def _next_shift(self) -> "_Shift":
        """Raises NotAdmitted after LET_IN_S of refusals, TlsError."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LET_IN_S
        while True:
            try:
                bus = await self._connect()
                return await _Shift.begin(bus, Answering(bus, self.replica.exchange, self._mine))
            except NotAdmitted:
                if loop.time() > until_s:
                    raise
            except BusError as error:
                log.info("the connection of a replica is not made yet: %s", error)
            await asyncio.sleep(LET_IN_PAUSE_S)


class _Shift:
    """One connection of a replica that is asked."""

    def __init__(self, bus: Bus, answering: Answering):
        self._bus, self._answering = bus, answering

    @classmethod
    async def begin(cls, bus: Bus, answering: Answering) -> "_Shift":
        """Raises BusError."""
        self = cls(bus, answering)
        try:
            await answering.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def until_relief(self) -> None:
        """Until another one should take its place."""
        await (asyncio.Event().wait() if self._bus.renew_after_s is None else asyncio.sleep(self._bus.renew_after_s))

    async def leave(self, within_s: float | None) -> None:
        """Take no more questions, answer those that it has, for within_s at most, and close."""
        try:
            await self._answering.stop(within_s)
        finally:
            await self.close()

    async def close(self) -> None:
        try:
            await self._answering.close()
        finally:
            await self._bus.close()


def order_of(name: str, spec: ServeSpec, threads: int, memory_bytes: int, file_bytes: int) -> Serve:
    """What the process is told, but for the path of the model. 0 in the spec stands for the default of `cyx serve`."""
    asked: dict[str, Any] = {
        "max_batch": spec.max_batch,
        "max_queue": spec.max_queue,
        "context_tokens": spec.context,
    }
    return Serve(
        model_path="",
        name=name,
        threads=min(spec.threads or threads, threads),
        memory_bytes=memory_bytes,
        file_bytes=file_bytes,
        max_wait_ms=spec.max_wait_ms,
        plans_bytes=spec.memory_bytes,
        drain_s=float(spec.drain_s),
        **{name: value for name, value in asked.items() if value},
    )
