"""A link to the broker that can go bad: TCP in user space, bytes in both directions under our control."""

import asyncio
import contextlib
import socket
import struct
from typing import Literal, NamedTuple

Direction = Literal["up", "down"]  # up: towards the broker
Treatment = Literal["pass", "delay", "hold", "lose"]
CHUNK_BYTES = 65_536
DELAY_S = 0.05


class Mode(NamedTuple):
    """What happens to the bytes of each direction, and whether the connections are torn at the end of it."""

    up: Treatment
    down: Treatment
    tears: bool


MODES = {
    "delay": Mode("delay", "delay", False),
    "hold-up": Mode("hold", "pass", False),  # what was said arrives late: after its author gave it up
    "hold-down": Mode("pass", "hold", False),  # answers arrive late
    "lose-up": Mode("lose", "pass", True),
    "lose-down": Mode("pass", "lose", True),  # done, and nobody is told
    "half-open": Mode("hold", "hold", True),  # nothing moves, and no end of the connection is seen
    "reset": Mode("pass", "pass", True),
}
CLEAN = Mode("pass", "pass", False)


class Link:
    """Listens on a port of the loopback that stands for another one."""

    def __init__(self, target_port: int, bytes_per_s: float | None = None):
        """bytes_per_s: of each direction of each connection; None: as fast as it goes."""
        self.target_port = target_port
        self._bytes_per_s = bytes_per_s
        self.port = 0
        self._mode = CLEAN
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._closed.set()
        self._server.close()
        self.tear()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def begin(self, mode: str) -> None:
        """From now on bytes are treated like this."""
        self._set(MODES[mode])

    def end(self) -> None:
        """Bytes pass again: what was held goes on; connections that lost bytes are reset."""
        tears = self._mode.tears
        self._set(CLEAN)
        if tears:
            self.tear()

    def tear(self) -> None:
        """Reset every connection: what is under way is gone."""
        at_once = struct.pack("ii", 1, 0)
        for writer in list(self._writers):
            with contextlib.suppress(OSError):  # closed already
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)  # a reset, not a polite end
            writer.transport.abort()

    def _set(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        self._writers.add(writer)
        beyond: asyncio.StreamWriter | None = None
        try:
            far_reader, beyond = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(beyond)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump("up", reader, beyond))
                pumps.create_task(self._pump("down", far_reader, writer))
        except (OSError, ExceptionGroup):
            pass  # one of the two ends is gone, so the other one goes too
        except asyncio.CancelledError:
            pass  # the link closes; asyncio would log a cancelled connection
        finally:
            for each in (writer, beyond):
                if each:
                    self._writers.discard(each)
                    each.transport.abort()
            self._connections.discard(task)

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(CHUNK_BYTES)
            while (treatment := getattr(self._mode, direction)) == "hold":
                await self._changed.wait()
            if not data:
                raise ConnectionResetError  # ends the other direction too
            if treatment == "lose":
                continue
            if treatment == "delay":
                await pause(DELAY_S, self._closed)
            writer.write(data)
            await writer.drain()
            if self._bytes_per_s:
                await pause(len(data) / self._bytes_per_s, self._closed)


async def pause(seconds: float, over: asyncio.Event) -> None:
    """Let time pass, until `over` at the longest."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
