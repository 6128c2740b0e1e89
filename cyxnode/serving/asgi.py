"""One request and its answer, between the application and an ASGI server; and the one shape of a refusal.

The shape is that of the OpenAI API, also where that API has no such path: {"error": {message, type, param, code}}.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import cached_property
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError, Overloaded
from cyxnet.codec import JSON, BadMessage
from cyxnet.inference import Fault, Refusal, fault_type
from cyxnet.outcomes import ApiError, refuse_encoded
from cyxnode.serving.batcher import ClientGone

log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
SMALL_BYTES = 65_536  # of a body that the server takes at once, however slowly its reader reads
_JSON = JSON.encode()
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_NO_CACHE = (b"cache-control", b"no-store")


class Limits(Struct, frozen=True, kw_only=True):
    """Sizes in bytes; seconds for a body to arrive, and for a client to take a piece of the answer."""

    body_bytes: int = 32 * 2**20
    bodies_bytes: int = 256 * 2**20  # of all requests in flight together
    requests: int = 2_048  # in flight
    body_s: float = 30.0
    send_s: float = 10.0
    ping_s: float = 15.0  # between words of a stream that has nothing to say


class Refused(ApiError):
    """A refusal that names the parameter at fault. allow: the methods that a path has, with 405."""

    def __init__(self, code: str, message: str, status: int = 400, param: str | None = None, allow: str = ""):
        super().__init__(code, message, status)
        self.param = param
        self.allow = allow


class Room:
    """How many bytes of bodies may lie in memory at a time."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self.taken_bytes = 0

    def take(self, count: int) -> None:
        """Raises ApiError (429) when there is no room for so many more."""
        if self.taken_bytes + count > self._most_bytes:
            raise ApiError("overloaded", "the bodies of other requests fill the memory; try again", 429, 500)
        self.taken_bytes += count


def is_gone(receive: Any) -> bool:
    """Whether the client of a request hung up: of the request that `receive` (of ASGI) belongs to.

    ASGI tells it only to who waits for it, which takes a task of its own. Of a server that keeps it elsewhere: False.
    """
    return bool(getattr(getattr(receive, "__self__", None), "disconnected", False))


def is_whole(receive: Any) -> bool:
    """Whether all of a request is there already, so that nobody has to wait for its body: as is_gone."""
    return not getattr(getattr(receive, "__self__", None), "more_body", True) and not is_gone(receive)


def content_type_of(said: bytes) -> str:
    """The content type of a header without its parameters."""
    if said == _JSON:
        return JSON
    return said.partition(b";")[0].strip().lower().decode("latin-1")


class Asked:
    """A request. release() when it is answered."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits, room: Room):
        self._receive, self._limits, self._room = receive, limits, room
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self._headers = scope["headers"]
        self._reserved_bytes = 0

    @cached_property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self._headers)

    def is_gone(self) -> bool:
        """Whether the client hung up."""
        return is_gone(self._receive)

    def release(self) -> None:
        self._room.taken_bytes -= self._reserved_bytes
        self._reserved_bytes = 0

    def content_type(self) -> str:
        return content_type_of(self.headers.get(b"content-type", _JSON))

    async def body(self) -> bytes:
        """Raises ApiError: 413 when it is too large, 408 when it does not come, 415 when it is packed, 429 when
        there is no room.
        """
        refuse_encoded(self.headers.get(b"content-encoding", b"").decode("latin-1"))
        most = self._limits.body_bytes
        said = self.headers.get(b"content-length")
        if said and int(said) > most:
            raise ApiError("too_large", f"expected a body of at most {most} bytes, got {int(said)}", 413)
        if is_whole(self._receive):
            body: bytes = (await self._receive())["body"]
            self._take(len(body))
            return body
        try:
            async with asyncio.timeout(self._limits.body_s):
                message = await self._receive()
                body = message.get("body", b"")
                self._take(len(body))
                if message.get("more_body"):
                    body = await self._rest(body)
        except TimeoutError:
            raise ApiError("too_slow", f"the body did not come within {self._limits.body_s:g} s", 408) from None
        return body

    def _take(self, count: int) -> None:
        """Room for bytes of the body that have come. What is only announced takes none: a few slow senders would shut
        out all.
        """
        if self._reserved_bytes + count > self._limits.body_bytes:
            raise ApiError("too_large", f"expected a body of at most {self._limits.body_bytes} bytes", 413)
        self._room.take(count)
        self._reserved_bytes += count

    async def _rest(self, first: bytes) -> bytes:
        body, more = bytearray(first), True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            self._take(len(piece))
            body += piece
            more = message.get("more_body", False)
        return bytes(body)


class Answer(Struct, gc=False):
    """body: bytes, or pieces of them in time: server-sent events."""

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    content_type: bytes = _JSON
    headers: list[tuple[bytes, bytes]] = []


Tell = Callable[[Answer | Exception], None]
IsGone = Callable[[], bool]
# (content type, accept, body, tell, is_gone): what answers a request of which all is there, without a task for it. It
# raises why it does not begin, or has tell() called once in the event loop; is_gone: whether nobody waits any more.
Begin = Callable[[str, bytes, bytes, Tell, IsGone], None]


def as_json(reply: Any, status: int = 200) -> Answer:
    return Answer(msgspec.json.encode(reply), status)


async def send_answer(answer: Answer, request_id: bytes, limits: Limits, send: Send) -> None:
    """Raises TimeoutError when the client does not read."""
    headers = _headers(answer, request_id)
    start = {"type": "http.response.start", "status": answer.status, "headers": headers}
    if isinstance(answer.body, bytes):
        if len(answer.body) <= SMALL_BYTES and (b"connection", b"close") not in answer.headers:
            if _send_whole(send, answer.status, headers, answer.body):
                return None
        await send(start)
        message = {"type": "http.response.body", "body": answer.body}
        if len(answer.body) <= SMALL_BYTES:
            return await send(message)
        async with asyncio.timeout(limits.send_s):
            return await send(message)
    async with contextlib.aclosing(answer.body) as pieces:  # type: ignore[type-var]
        async with asyncio.timeout(limits.send_s):
            await send(start)
        async for piece in pieces:
            async with asyncio.timeout(limits.send_s):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _send_whole(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
    """Sends an answer in one piece, in a third of the time that uvicorn takes for its pieces. headers: of our own
    making, with the length of the body. False where that cannot be done: the client is slow or says that it is its last
    request, or the server another.
    """
    cycle: Any = getattr(send, "__self__", None)
    if getattr(cycle, "chunked_encoding", send) is not None or cycle.response_started or cycle.disconnected:
        return False
    if cycle.flow.write_paused or not cycle.keep_alive or cycle.scope["method"] == "HEAD":
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.transport.write(_in_bytes(status, cycle.default_headers + headers, body))
    cycle.message_event.set()
    cycle.on_response()
    return True


def _in_bytes(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [STATUS_LINES[status]]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines += (b"\r\n", body)
    return b"".join(lines)


def _headers(answer: Answer, request_id: bytes) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", answer.content_type), (b"x-request-id", request_id), _NO_CACHE, *answer.headers]
    if isinstance(answer.body, bytes):
        headers.append((b"content-length", b"%d" % len(answer.body)))
    return headers


def whole(answer: Answer, request_id: bytes) -> bytes:
    """An answer of one piece as it travels."""
    assert isinstance(answer.body, bytes)
    return _in_bytes(answer.status, _headers(answer, request_id), answer.body)


# -- refusals -----------------------------------------------------------------------------------------


def refusal(error: Exception, where: str) -> tuple[int, Refusal, int | None]:
    """Status, body and after how many milliseconds to ask again."""
    if isinstance(error, CyxError):
        status = getattr(error, "status", 429 if isinstance(error, Overloaded) else 400)
        code, text = error.code, str(error)
    else:
        log.error("%s failed", where, exc_info=error)
        status, code, text = 500, "internal", "the server failed on this request; its log says why"
    fault = Fault(message=text[:2000], type=fault_type(status), param=getattr(error, "param", None), code=code)
    return status, Refusal(error=fault), getattr(error, "retry_after_ms", None)


def answer_no(error: Exception, where: str) -> Answer:
    status, body, wait_ms = refusal(error, where)
    answer = Answer(msgspec.json.encode(body), status, headers=[])
    if status in (429, 503):
        wait_ms = wait_ms or 1000
        answer.headers += [(b"retry-after", b"%d" % -(-wait_ms // 1000)), (b"retry-after-ms", b"%d" % wait_ms)]
    if status == 401:
        answer.headers.append((b"www-authenticate", b'Bearer realm="cyx"'))
    if allow := getattr(error, "allow", ""):
        answer.headers.append((b"allow", allow.encode()))
    if status == 408:
        answer.headers.append((b"connection", b"close"))  # the rest of the body may never come
    return answer


def bad(message: str, param: str | None = None) -> Refused:
    return Refused(BadMessage.code, message, 400, param)
