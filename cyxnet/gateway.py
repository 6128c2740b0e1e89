"""A deployment behind HTTP on this machine: what is asked here is asked over the network, and so is answered.

The paths, bodies and refusals are those of `cyx serve`, because a replica answers with the same application.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from cyxcore.errors import CyxError
from cyxnet.asking import JSON, LARGEST_QUESTION_BYTES, ROUTE, Part, Question
from cyxnet.bus import BusError
from cyxnet.inference import Fault, Refusal, fault_type
from cyxnet.outcomes import ApiError, refuse_encoded
from cyxnet.questions import Questions

log = logging.getLogger(__name__)
Send = Callable[[Any], Any]
BODY_S, SEND_S = 30.0, 10.0  # for a body to arrive, and for a client to take a piece of the answer


class Gone(Exception):
    """The client hung up."""


class Gateway:
    """An ASGI application that asks one deployment. patience_s: as of Questions.ask."""

    behind_proxy = False

    def __init__(self, questions: Questions, deployment: str, patience_s: float = 60.0):
        self._questions, self._deployment, self._patience_s = questions, deployment, patience_s
        self._stops = False
        self.asked = 0

    async def close(self) -> None:
        """What is asked from now on is refused; what is being answered goes on."""
        self._stops = True

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        try:
            if scope["path"] == "/livez":
                return await answer.put(Part(body=b'{"live":true}'))
            if self._stops:
                raise ApiError("stopping", "the gateway stops", 503, 1000)
            question = await _question(scope, receive)
            self.asked += 1
            await self._forward(question, receive, answer)
        except (Gone, TimeoutError):
            log.info("%s hung up, or does not read", scope.get("client"))
        except Exception as error:
            if not isinstance(error, CyxError):
                log.exception("%s %s failed", scope["method"], scope["path"][:200])
            await answer.refuse(error)

    async def _forward(self, question: Question, receive: Any, answer: "_Answer") -> None:
        """Raises Gone, and what Questions.ask does."""
        hung_up = asyncio.ensure_future(_disconnected(receive))
        parts = self._questions.ask(self._deployment, question, patience_s=self._patience_s)
        try:
            async with contextlib.aclosing(parts):
                while True:
                    coming = asyncio.ensure_future(anext(parts, None))
                    try:
                        await asyncio.wait([hung_up, coming], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        if not coming.done():  # it is gone, or we end: who answers is told so
                            coming.cancel()
                            await asyncio.wait([coming])
                    if coming.cancelled():
                        raise Gone
                    part = coming.result()
                    if part is None:
                        return
                    await answer.put(part)
        finally:
            hung_up.cancel()


class _Answer:
    """The answer to one request, as its parts come."""

    def __init__(self, send: Send):
        self._send = send
        self._begun = False

    async def put(self, part: Part) -> None:
        """Raises TimeoutError when the client does not read."""
        async with asyncio.timeout(SEND_S):
            if not self._begun:
                self._begun = True
                headers = [(b"content-type", part.content_type.encode("latin-1", "replace"))]
                headers += [(name.lower().encode(), value.encode()) for name, value in part.headers.items()]
                headers.append((b"cache-control", b"no-store"))
                if part.end:
                    headers.append((b"content-length", b"%d" % len(part.body)))
                await self._send({"type": "http.response.start", "status": part.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": part.body, "more_body": not part.end})

    async def refuse(self, error: Exception) -> None:
        """In the shape of the OpenAI API; behind a part of an answer, as an event of its stream."""
        known = isinstance(error, CyxError)
        status = getattr(error, "status", 503 if isinstance(error, BusError) else 400) if known else 500
        text = str(error) if known else "the gateway failed on this request; its log says why"
        code = error.code if isinstance(error, CyxError) else "internal"
        fault = Fault(message=text[:2000], type=fault_type(status), param=None, code=code)
        body, headers = msgspec.json.encode(Refusal(error=fault)), {}
        if self._begun:
            body = b"data: " + body + b"\n\n"
        elif status == 405:
            headers = {"Allow": "GET, POST"}
        elif wait_ms := getattr(error, "retry_after_ms", None):
            headers = {"Retry-After": str(-(-wait_ms // 1000)), "Retry-After-Ms": str(wait_ms)}
        with contextlib.suppress(TimeoutError):
            await self.put(Part(body=body, status=status, content_type=JSON, headers=headers))


async def _question(scope: Any, receive: Any) -> Question:
    """What a request asks. Raises ApiError, Gone."""
    method, path = scope["method"], scope["path"]
    if method not in ("GET", "POST"):
        raise ApiError("bad_method", f"{path[:200]}: expected GET or POST, got {method[:20]}", 405)
    if not ROUTE.fullmatch(path):
        raise ApiError("not_found", f"{path[:200]}: there is no such path; see /openapi.json", 404)
    headers = dict(scope["headers"])
    if method == "POST":
        refuse_encoded(headers.get(b"content-encoding", b"").decode("latin-1"))
    if int(headers.get(b"content-length", 0)) > LARGEST_QUESTION_BYTES:  # a number: the server has read it
        raise _too_large()
    body = await _body(receive) if method == "POST" else b""
    if method == "POST" and not body:
        raise ApiError("bad_message", f"{path[:200]}: expected a body", 400)
    return Question(
        body=body,
        route=path,
        content_type=_text(headers.get(b"content-type")),
        accept=_text(headers.get(b"accept")),
    )


def _text(value: bytes | None) -> str:
    """A header as it goes on; one that no header of the network could be is left out."""
    text = (value or b"").decode("latin-1")
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= 200 else JSON


async def _body(receive: Any) -> bytes:
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(BODY_S):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > LARGEST_QUESTION_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError("too_slow", f"the body did not come within {BODY_S:g} s", 408) from None
    return bytes(body)


def _too_large() -> ApiError:
    why = f"expected a body of at most {LARGEST_QUESTION_BYTES} bytes: it travels over the network"
    return ApiError("too_large", why, 413)


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
