"""JSON posted to one address over connections that are kept: what asking a chain takes, and no more of HTTP/1.1.

A general client takes some 400 µs of processor for a question and its answer, this one some 60 µs. One question at a
time goes over a connection; who asks several at once has several connections, and waits when all of them are in use.
"""

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import Generator
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet import tls

LARGEST_HEAD_BYTES = 65_536
LARGEST_ANSWER_BYTES = 2**25  # on the wire; the largest account of Solana takes less than half of it
CONNECTIONS = 16  # at most, to one address
BEGINNING, HEAD_END, LINE_END = b"HTTP/1.", b"\r\n\r\n", b"\r\n"
STATUS_LINE = re.compile(r"HTTP/1\.(?P<minor>[01]) (?P<status>[0-9]{3})(?: .*)?")
BODILESS = (204, 304)


class BadAddress(CyxError, ValueError):
    """A URL that nothing can be posted to."""

    code = "bad_address"


def address(url: str) -> tuple[SplitResult, str]:
    """The parts of an http(s) URL, and its host as it is looked up. Raises BadAddress."""
    why = "it must be http:// or https:// and a host"
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
            if all("!" <= each <= "~" for each in f"{parts.path}{parts.query}"):
                return parts, host
            why = "blanks and characters beyond ASCII are written as %20 and the like"
    except ValueError as error:
        why = str(error)
    raise BadAddress(f"expected the URL of a server, got {url[:200]!r}: {why}")


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
    """url: http or https, with user and password where they are wanted. timeout_s: of a question that has its turn.

    Raises BadAddress.
    """

    def __init__(self, url: str, timeout_s: float):
        parts, self._host = address(url)
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
                if not link.usable:  # the server has closed it, or said something that nobody asked for
                    self._drop(link)
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
                self._drop(link)
        if answer.status_code != 200:
            raise BadStatus(answer)
        return answer.body

    def _drop(self, link: "_Link") -> None:
        self._links.discard(link)
        link.close()

    async def close(self) -> None:
        for link in self._links:
            link.close()
        self._links.clear()
        self._free.clear()


class _Link(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.heard = False  # anything, since the last question
        self._reading = Reading()
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
        self.heard, self._reading = False, Reading()
        self._transport.write(question)
        return await self._answer  # it is None again when there is an answer

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._answer is None:  # nobody asked
            self._stays = False
            return
        try:
            answer = self._reading.take(data)
        except ValueError as error:
            self._fail(NoAnswer(str(error)))
            return
        if answer is not None:
            wishes = [each.strip() for each in answer.headers.get("connection", "").lower().split(",")]
            self._stays = not self._reading.more and "close" not in wishes
            self._give(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is None:
            return
        with contextlib.suppress(ValueError):
            if (answer := self._reading.take(b"", ended=True)) is not None:
                self._give(answer)
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


class Reading:
    """The answer to one question, as it comes in. Every byte is looked at once, however many pieces they come in."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # what was read already ends here
        self._ended = False
        self._steps = self._answer()

    @property
    def more(self) -> bool:
        """Whether something came behind the answer."""
        return self._at < len(self._data)

    def take(self, data: bytes, ended: bool = False) -> Answer | None:
        """The answer, once its last byte is there.

        ended: nothing more will come, which is the end of a body whose length nobody said. Raises ValueError for what
        is no HTTP, or too long.
        """
        self._data += data
        self._ended = ended
        if len(self._data) > LARGEST_ANSWER_BYTES:
            raise ValueError(f"expected an answer of at most {LARGEST_ANSWER_BYTES} bytes")
        try:
            next(self._steps)
        except StopIteration as done:
            answer: Answer = done.value
            return answer
        return None

    # Each yields while what it wants is not there.

    def _answer(self) -> Generator[None, None, Answer]:
        status = 0
        while status < 200:  # before that, only that the answer will come
            status, headers = yield from self._head()
        if status in BODILESS:
            body = b""
        elif "transfer-encoding" in headers:
            body = yield from self._chunks(headers["transfer-encoding"])
        elif (length := headers.get("content-length")) is not None:
            if not (length.isascii() and length.isdigit()) or len(length) > 12 or int(length) > LARGEST_ANSWER_BYTES:
                raise ValueError(f"expected an answer of at most {LARGEST_ANSWER_BYTES} bytes, got one of {length:.20}")
            body = yield from self._exactly(int(length))
        else:
            headers["connection"] = "close"
            while not self._ended:
                yield
            body = yield from self._exactly(len(self._data) - self._at)
        return Answer(status, headers, body)

    def _head(self) -> Generator[None, None, tuple[int, dict[str, str]]]:
        while not self._data.startswith(BEGINNING, self._at):  # what is something else may have no end
            if not BEGINNING.startswith(self._data[self._at : self._at + len(BEGINNING)]):
                break
            yield
        else:
            head = yield from self._until(HEAD_END)
            first, *lines = head.decode("latin-1").split("\r\n")
            if found := STATUS_LINE.fullmatch(first):
                pairs = (line.partition(":") for line in lines)
                headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
                if found["minor"] == "0":
                    headers.setdefault("connection", "close")
                return int(found["status"]), headers
            raise ValueError(f"expected an answer in HTTP/1.1, got {first[:40]!r}")
        raise ValueError(f"expected an answer in HTTP/1.1, got {bytes(self._data[self._at : self._at + 40])!r}")

    def _chunks(self, encoding: str) -> Generator[None, None, bytes]:
        if encoding.lower() != "chunked":
            raise ValueError(f"expected no transfer encoding but chunked, got {encoding[:40]!r}")
        body = bytearray()
        while True:
            line = yield from self._until(LINE_END)
            digits = line.partition(b";")[0].strip()
            if not 0 < len(digits) <= 8 or digits.lower().strip(b"0123456789abcdef"):
                raise ValueError(f"expected the length of a chunk, got {digits[:20]!r}")
            if (length := int(digits, 16)) == 0:
                break
            if len(body) + length > LARGEST_ANSWER_BYTES:
                raise ValueError(f"expected an answer of at most {LARGEST_ANSWER_BYTES} bytes")
            body += yield from self._exactly(length)
            if (yield from self._exactly(len(LINE_END))) != LINE_END:
                raise ValueError("expected the end of a chunk where its length puts it")
        while (yield from self._until(LINE_END)):  # headers that nobody wants
            pass
        return bytes(body)

    def _until(self, mark: bytes) -> Generator[None, None, bytes]:
        searched = self._at
        while (end := self._data.find(mark, searched)) < 0 and len(self._data) - self._at <= LARGEST_HEAD_BYTES:
            searched = max(self._at, len(self._data) - len(mark) + 1)
            yield
        if end < 0 or end - self._at > LARGEST_HEAD_BYTES:
            raise ValueError(f"expected an answer in HTTP/1.1, got {LARGEST_HEAD_BYTES} bytes without an end")
        found = bytes(self._data[self._at : end])
        self._at = end + len(mark)
        return found

    def _exactly(self, count: int) -> Generator[None, None, bytes]:
        while len(self._data) - self._at < count:
            yield
        found = bytes(self._data[self._at : self._at + count])
        self._at += count
        return found
