"""One serve run: a process with the model, a connection of its own to the broker, and what goes between the two."""

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cyxnet.bus import Bus, BusError, NotAdmitted
from cyxnet.messages import ServeSpec
from cyxnode.answering import Answering, Mine
from cyxnode.exchange import Exchange
from cyxnode.pipe import Failed, Figures, Halt, Halted, Serve, Serving
from cyxnode.process import Launch, TrainingProcess

log = logging.getLogger(__name__)
REPLICA_COMMAND = (sys.executable, "-P", "-m", "cyxnode.replica")
HALT_S = 5.0  # for a process that has answered everything, to end
LET_IN_S = 20.0  # so long a connection may be refused: not every central knows the lease at once
LET_IN_PAUSE_S = 0.2


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
        self.exchange = await Exchange.open(ours, self._lost)
        return self

    async def load(self, model_path: Path, order: Serve, model_format: str) -> Serving | Failed:
        """Have it load the model. Raises NodeError when it is no good at all."""
        await self.process.wait_ready()
        path = self.process.folder.absolute() / f"model.{model_format}"  # how a file is read depends on its ending
        path.symlink_to(model_path)
        self.process.tell(replace(order, model_path=str(path)))
        said = await anext(self.process.said())
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

    connect() makes the connection that only this replica has. begin() lets it answer, drain() ends it in order.
    """

    def __init__(self, replica: Replica, connect: Callable[[], Awaitable[Bus]], mine: Mine, drain_s: float):
        self.replica = replica
        self._connect, self._mine, self._drain_s = connect, mine, drain_s
        self._begun, self._ending = asyncio.Event(), asyncio.Event()
        self._answering: Answering | None = None
        self._working: asyncio.Future[None] | None = None

    def begin(self) -> None:
        self._begun.set()

    def drain(self) -> None:
        """Take no more, answer what is in flight, end."""
        self._ending.set()
        if self._working and self._answering is None:  # it was never asked anything
            self._working.cancel()

    @property
    def requests(self) -> int:
        return self.replica.figures.requests if self.replica.figures else 0

    @property
    def waiting(self) -> int:
        return self._answering.in_flight if self._answering else 0

    async def perform(self, started: Callable[[], object]) -> Halted | Failed:
        """Of a loaded replica: until it is drained or dead. started() is called when it is asked from then on.

        Raises NotAdmitted when the broker lets its connection in for no time.
        """
        end = asyncio.ensure_future(self.replica.until_end())
        working = self._working = asyncio.ensure_future(self._work(started))
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
            for task in (end, working):
                task.cancel()
            await asyncio.wait([end, working])

    async def _work(self, started: Callable[[], object]) -> None:
        await self._begun.wait()
        bus = await self._let_in()
        try:
            answering = self._answering = Answering(bus, self.replica.exchange, self._mine)
            try:
                await answering.open()
                started()
                await self._ending.wait()
                await answering.stop(self._drain_s)
            finally:
                await answering.close()
        finally:
            await bus.close()

    async def _halt(self, end: "asyncio.Future[Halted | Failed]") -> Halted | Failed:
        """What the process ended with; one that is alive is told to end."""
        self.replica.halt()
        done, _ = await asyncio.wait([end], timeout=self._drain_s + HALT_S)
        return end.result() if done else Halted()

    async def _let_in(self) -> Bus:
        """Raises NotAdmitted after LET_IN_S of refusals, TlsError."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + LET_IN_S
        while True:
            try:
                return await self._connect()
            except NotAdmitted:
                if loop.time() > until_s:
                    raise
            except BusError as error:
                log.info("the connection of a replica is not made yet: %s", error)
            await asyncio.sleep(LET_IN_PAUSE_S)


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
        drain_s=float(spec.drain_s),
        **{name: value for name, value in asked.items() if value},
    )
