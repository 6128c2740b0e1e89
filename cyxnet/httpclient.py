"""JSON posted to one address over connections that are kept: what asking a chain takes, and no more of HTTP/1.1.

A general client takes some 400 µs of processor for a question and its answer, this one some 60 µs. One question at a
time goes over a connection; who asks several at once has several connections, and waits when all of them are in use.
"""

import asyncio
import base64
import contextlib
import ssl
from typing import cast
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from cyxnet import tls

LARGEST_HEAD_BYTES = 65_536
LARGEST_BODY_BYTES = 2**26
CONNECTIONS = 16  # at most, to one address
HEAD_END, LINE_END = b"\r\n\r\n", b"\r\n"


class Answer(Struct, frozen=True):
    """headers: by their names in small letters; of several with one name, the last."""

    status_code: int
    headers: dict[str, str]
    body: bytes


class BadStatus(Exception):
    """The server answered, and not with 200."""

    def __init__(self, response: Answer):
        super().__init__(f"HTTP status {response.status_code}")
        self.response = response


class NoAnswer(ConnectionError):
    """The connection ended before a whole answer came, or what came is no HTTP."""


class Poster:
    """url: http or https, with user and password where they are wanted. timeout_s: of a question that has its turn."""

    def __init__(self, url: str, timeout_s: float):
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https") and parts.hostname, f"expected an http(s) URL, got {url!r}"
        self._host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._trust: ssl.SSLContext | None = tls.context("") if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        host = f"[{self._host}]" if ":" in self._host else self._host
        head = [
            f"POST {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1",
            f"Host: {host}{f':{parts.port}' if parts.port else ''}",
            "User-Agent: cyx",
            "Accept: application/json",
            "Content-Type: application/json",
        ]
        if parts.username is not None:
            who = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            head.append(f"Authorization: Basic {base64.b64encode(who.encode()).decode()}")
        self._head = "\r\n".join([*head, "Content-Length: "]).encode()
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._free: list[_Link] = []  # the last one used first: others may be closed by the server meanwhile
        self._links: set[_Link] = set()

    async def post(self, body: bytes) -> bytes:
        """The body of the answer. Raises BadStatus, TimeoutError or another OSError.

        A kept connection that turns out to be closed is no failure: the question is put again over a new one.
        """
        question = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        async with self._room, asyncio.timeout(self._timeout_s):
            while self._free:
                link = self._free.pop()
                if not link.usable:  # the server has closed it
                    self._links.discard(link)
                    continue
                try:
                    return await self._over(link, question)
                except NoAnswer:
                    if link.heard:
                        raise
            return await self._over(await self._connected(), question)

    async def _connected(self) -> "_Link":
        name = self._host if self._trust else None
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(_Link, self._host, self._port, ssl=self._trust, server_hostname=name)
        self._links.add(link)
        return link

    async def _over(self, link: "_Link", question: bytes) -> bytes:
        try:
            answer = await link.ask(question)
        finally:
            if link.usable:
                self._free.append(link)
            else:  # also when nobody waits any more: its answer would be taken for that of the next question
                self._links.discard(link)
                link.close()
        if answer.status_code != 200:
            raise BadStatus(answer)
        return answer.body

    async def close(self) -> None:
        for link in self._links:
            link.close()
        self._links.clear()
        self._free.clear()


class _Link(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.heard = False  # anything, since the last question
        self._buffer = b""
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self._stays = True

    @property
    def usable(self) -> bool:
        """Whether another question may be put."""
        return self._stays and self._answer is None and self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, question: bytes) -> Answer:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self.heard, self._buffer = False, b""
        self._transport.write(question)
        return await self._answer  # it is None again when there is an answer

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self._buffer += data
        if self._answer is None:  # nobody asked
            self._stays = False
            return
        try:
            found = read_answer(self._buffer, ended=False)
        except ValueError as error:
            self._fail(NoAnswer(str(error)))
            return
        if found is not None:
            answer, used = found
            self._stays = used == len(self._buffer) and answer.headers.get("connection", "").lower() != "close"
            self._give(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is None:
            return
        with contextlib.suppress(ValueError):
            if (found := read_answer(self._buffer, ended=True)) is not None:
                self._give(found[0])
                return
        self._fail(NoAnswer(f"the connection ended before an answer came ({exc or 'closed by the server'})"))

    def _give(self, answer: Answer) -> None:
        waiting, self._answer = self._answer, None
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _fail(self, error: Exception) -> None:
        self._stays = False
        waiting, self._answer = self._answer, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


def read_answer(data: bytes, ended: bool) -> tuple[Answer, int] | None:
    """The answer that data begins with, and how many bytes of it that takes; None when it is not all there.

    ended: nothing more will come, which is the end of a body whose length nobody said. Raises ValueError for what is
    no HTTP, or too long.
    """
    at = 0
    while True:
        end = data.find(HEAD_END, at, at + LARGEST_HEAD_BYTES)
        if end < 0:
            if len(data) - at >= LARGEST_HEAD_BYTES or not data.startswith(b"HTTP/1."[: len(data) - at], at):
                raise ValueError(f"expected an answer in HTTP/1.1, got {data[at : at + 40]!r}")
            return None
        first, *lines = data[at:end].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (rest[:3].isascii() and rest[:3].isdigit()):
            raise ValueError(f"expected an answer in HTTP/1.1, got {first[:40]!r}")
        status, at = int(rest[:3]), end + len(HEAD_END)
        if status >= 200:  # before that, only that the answer will come
            break
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if version == "HTTP/1.0":
        headers.setdefault("connection", "close")
    if "transfer-encoding" in headers:
        return _in_chunks(data, at, status, headers)
    length = headers.get("content-length")
    if length is None:
        headers["connection"] = "close"
        if len(data) - at > LARGEST_BODY_BYTES:
            raise ValueError(f"expected an answer of at most {LARGEST_BODY_BYTES} bytes")
        return (Answer(status, headers, data[at:]), len(data)) if ended else None
    if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > LARGEST_BODY_BYTES:
        raise ValueError(f"expected an answer of at most {LARGEST_BODY_BYTES} bytes, got one of {length[:20]!r}")
    stop = at + int(length)
    return (Answer(status, headers, data[at:stop]), stop) if len(data) >= stop else None


def _in_chunks(data: bytes, at: int, status: int, headers: dict[str, str]) -> tuple[Answer, int] | None:
    if headers["transfer-encoding"].lower() != "chunked":
        raise ValueError(f"expected no transfer encoding but chunked, got {headers['transfer-encoding'][:40]!r}")
    parts: list[bytes] = []
    size = 0
    while (end := data.find(LINE_END, at)) >= 0:
        digits = data[at:end].partition(b";")[0].strip()
        if not 0 < len(digits) <= 8 or digits.lower().strip(b"0123456789abcdef"):
            raise ValueError(f"expected the length of a chunk, got {digits[:20]!r}")
        length = int(digits, 16)
        size += length
        if size > LARGEST_BODY_BYTES:
            raise ValueError(f"expected an answer of at most {LARGEST_BODY_BYTES} bytes")
        begin = end + len(LINE_END)
        if length == 0:  # then headers that nobody wants, and an empty line
            if data.startswith(LINE_END, begin):
                return Answer(status, headers, b"".join(parts)), begin + len(LINE_END)
            last = data.find(HEAD_END, begin)
            return (Answer(status, headers, b"".join(parts)), last + len(HEAD_END)) if last >= 0 else None
        if len(data) < begin + length + len(LINE_END):
            return None
        if not data.startswith(LINE_END, begin + length):
            raise ValueError("expected the end of a chunk where its length puts it")
        parts.append(data[begin : begin + length])
        at = begin + length + len(LINE_END)
    if len(data) - at > LARGEST_HEAD_BYTES:
        raise ValueError("expected the length of a chunk")
    return None
