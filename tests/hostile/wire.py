"""A NATS connection that says whatever it is told to: bytes that no library would send, under a valid identity."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from urllib.parse import urlsplit

from msgspec import Struct

from cyxnet.credentials import Credentials

OPEN_WITHIN_S = 20.0


class Answer(Struct, frozen=True):
    """One message that came: its subject, its headers as they came, its payload."""

    subject: str
    block: bytes
    payload: bytes


class Wire(asyncio.Protocol):
    """One connection as somebody. `heard` is called for every message in its own inboxes.

    The broker may end it, because of what it said or because its time is over: `opened()` brings it back.
    """

    def __init__(self, url: str, who: Credentials, heard: Callable[[Answer], None]):
        self.who = who
        self.endings = 0  # how often the broker hung up
        self.denied = 0  # how often it said that something is not allowed
        self.reasons: list[str] = []  # why it hung up, where it said so
        self._url = urlsplit(url)
        self._heard = heard
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[None] | None = None
        self._pongs: list[asyncio.Future[None]] = []

    @property
    def inbox(self) -> str:
        """Where answers come. An identity may have other connections, which hear their own."""
        return f"{self.who.inbox}.storm"

    @property
    def is_open(self) -> bool:
        return self._transport is not None and self._ready is not None and self._ready.done()

    async def opened(self) -> None:
        """Connect unless it is connected."""
        async with asyncio.timeout(OPEN_WITHIN_S):
            while not self.is_open:
                self._ready = asyncio.get_running_loop().create_future()
                await asyncio.get_running_loop().create_connection(lambda: self, self._url.hostname, self._url.port)
                with contextlib.suppress(ConnectionError):
                    await self._ready

    def send(self, command: bytes) -> None:
        if self._transport is not None:
            self._transport.write(command)

    async def round_trip(self) -> None:
        """All that was sent before has been read by the broker, or the connection is over."""
        await self.opened()
        pong = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self.send(b"PING\r\n")
        with contextlib.suppress(ConnectionError):
            await pong

    async def ended(self) -> None:
        """Wait until the broker hangs up."""
        while self._transport is not None:
            await self.round_trip()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self._buffer = transport, b""

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.endings += 1
        waiting = [*self._pongs, *([self._ready] if self._ready and not self._ready.done() else [])]
        self._pongs = []
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionResetError("the broker hung up"))

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer + data, 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line = buffer[at:end]
            if line.startswith((b"MSG ", b"HMSG ")):
                words = line.split()
                begin = end + 2
                stop = begin + int(words[-1])
                if len(buffer) < stop + 2:
                    break
                middle = begin + (int(words[-2]) if line.startswith(b"H") else 0)
                self._heard(Answer(words[1].decode(), buffer[begin:middle], buffer[middle:stop]))
                at = stop + 2
            else:
                self._said(line)
                at = end + 2
        self._buffer = buffer[at:]

    def _said(self, line: bytes) -> None:
        if line.startswith(b"INFO "):
            if self._ready is not None and not self._ready.done():
                self._introduce(json.loads(line[5:])["nonce"])
        elif line == b"PING":
            self.send(b"PONG\r\n")
        elif line == b"PONG":
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            elif self._pongs:
                self._pongs.pop(0).set_result(None)
        elif line.startswith(b"-ERR") and b"ermissions" in line:
            self.denied += 1
        elif line.startswith(b"-ERR"):
            self.reasons.append(line.decode("utf-8", "replace")[:200])

    def _introduce(self, nonce: str) -> None:
        said = {"nkey": self.who.nkey, "sig": self.who.sign(nonce).decode(), "lang": "python", "version": "0"}
        said |= {"headers": True, "no_responders": True, "protocol": 1, "verbose": False, "pedantic": False}
        if self.who.token:
            said["auth_token"] = self.who.token
        self.send(b"CONNECT %b\r\nSUB %b.> 1\r\nPING\r\n" % (json.dumps(said).encode(), self.inbox.encode()))
