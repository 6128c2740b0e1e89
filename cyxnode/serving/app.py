"""The application: each request finds its row of the table, and what stands before it holds for all of them.

In this order: whether the server stops, too much in flight, the key and its rate; then the method that the row names.
"""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import Protocol

import msgspec

from cyxnet.codec import JSON
from cyxnet.inference import Health, ModelCard, remember
from cyxnet.openai import ModelList, ModelObject
from cyxnet.outcomes import ApiError
from cyxnode.serving import openapi
from cyxnode.serving.asgi import (
    Answer,
    Asked,
    Begin,
    ClientGone,
    Limits,
    Receive,
    Refused,
    Room,
    Scope,
    Send,
    answer_no,
    as_json,
    content_type_of,
    send_answer,
    whole,
)
from cyxnode.serving.figures import CONTENT_TYPE, Figure, Figures
from cyxnode.serving.gate import Gate
from cyxnode.serving.routes import ROUTES, Route

log = logging.getLogger(__name__)
_ID = b"\0"
_HEADERS = re.compile(rb"\r\n(content-type|accept|authorization):[ \t]*([^\r\n]*)", re.IGNORECASE)
_JSON = JSON.encode()
_NOWHERE: tuple[str, None] = ("", None)


class Served(Protocol):
    """A model that answers. It has a method for each row of routes.py that it can answer: async (Asked) -> Answer.

    It may have another one, `begin_` before that name (asgi.Begin), for who need not wait for a request and answers at
    once: a task for each request would cost more than a small model.
    """

    name: str

    def card(self) -> ModelCard: ...

    def figures(self) -> list[Figure]: ...

    async def start(self) -> None:
        """In the event loop, before anything is asked."""

    def early(self) -> dict[str, Callable[[], ApiError | None]]:
        """What can be refused before it is read: path of a POST -> why it is, now."""

    async def close(self) -> None:
        """Nothing is asked any more."""


class Front:
    """The application, for one model. Whoever serves it calls close() first when it is over."""

    def __init__(self, served: Served, gate: Gate, limits: Limits | None = None, behind_proxy: bool = False):
        self.behind_proxy = behind_proxy
        self._served, self._gate, self._limits = served, gate, limits or Limits()
        self._room = Room(self._limits.bodies_bytes)
        self._began_s, self._created_s = time.monotonic(), int(time.time())
        self._stops = False
        self.figures = Figures([*served.figures(), *gate.figures()])
        self._refused: dict[str, tuple[ApiError, bytes, bytes]] = {}  # by code: the last, before and behind its number
        self._id, self._count = secrets.token_hex(4).encode(), itertools.count(1)
        self.version = _version()
        self._document = msgspec.json.encode(openapi.document(self.version, gate.is_open))
        self._answers: dict[str, Callable[[Asked], Awaitable[Answer]] | None] = {
            route.name: getattr(self, f"_{route.name}", None) or getattr(served, route.name, None) for route in ROUTES
        }
        begins = {
            route.path: getattr(served, f"begin_{route.name}", None) for route in ROUTES if route.method == "POST"
        }
        self._begin: dict[str, Begin] = {path: begin for path, begin in begins.items() if begin}
        self._lines = {f"POST {path} HTTP/1.1".encode(): path for path in self._begin}
        early = served.early()
        self._early = {f"POST {path} HTTP/1.1".encode(): (path, check) for path, check in early.items()}
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}
        for route in ROUTES:
            place, _, field = route.path.partition("{")
            (self._below if field else self._exact).setdefault(place, {})[route.method] = route

    async def close(self) -> None:
        """What is asked from now on is refused; what is being answered goes on."""
        self._stops = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun_s, status, where, request_id = time.perf_counter(), 0, "none", self._request_id()
        asked = Asked(scope, receive, self._limits, self._room)
        self.figures.in_flight += 1
        try:
            try:
                route = self._route(asked)
                where = route.path
                answer = await self._answered(route, asked)
            except ClientGone:
                status = 499
                return
            except asyncio.CancelledError:
                if not self._stops:
                    raise
                answer = answer_no(_stopping(), "")  # the time for what was under way is over
            except Exception as error:
                answer = answer_no(error, f"{asked.method} {asked.path[:200]}")
            status = answer.status
            await send_answer(answer, request_id, self._limits, send)
        except (TimeoutError, ClientGone):
            log.info("%s hung up, or does not read", scope["client"])
        except asyncio.CancelledError:
            if not self._stops:
                raise
            log.info("%s did not get its whole answer before the end", scope["client"])
        finally:
            asked.release()
            self.figures.in_flight -= 1
            self.figures.answered(where, status, time.perf_counter() - begun_s)

    def begin_at_once(
        self, line: bytes, head: bytes, body: bytes, answered: Callable[[bytes | None], None]
    ) -> "Begun | None":
        """See httpserver.Beginning."""
        path = self._lines.get(line)
        if path is None:
            return None
        content_type, accept, shown = _told(head)

        def told(answer: Answer | None) -> None:
            answered(whole(answer, self._request_id()) if answer else None)

        return self.begin(path, content_type, accept, shown, body, told)

    def begin(
        self,
        path: str,
        content_type: bytes,
        accept: bytes,
        authorization: bytes | None,
        body: bytes,
        told: Callable[[Answer | None], None],
    ) -> "Begun | None":
        """Begin to answer a POST without a task for it; None when it must be asked the long way.

        told() is called once, in a later turn of the event loop; with None when nobody waits any more.
        """
        begin, limits, figures = self._begin.get(path), self._limits, self.figures
        if begin is None or self._stops or figures.in_flight >= limits.requests or len(body) > limits.body_bytes:
            return None
        begun = Begun(self, path, told)
        figures.in_flight += 1
        try:
            self._gate.check(authorization)
            self._room.take(len(body))
            begun.size = len(body)
            begin(content_type_of(content_type), accept, body, begun.tell, begun.is_gone)
        except Exception as error:
            asyncio.get_running_loop().call_soon(begun.tell, error)
        return begun

    def _end(self, begun: "Begun", status: int) -> None:
        self._room.taken_bytes -= begun.size
        self.figures.in_flight -= 1
        self.figures.answered(begun.path, status, time.perf_counter() - begun.begun_s)

    def refuse_at_once(self, line: bytes, head: bytes) -> bytes | None:
        """See httpserver.Refusing: a request for what is full, or 401 and 429 as its key has it."""
        path, check = self._early.get(line, _NOWHERE)
        error = check() if check and not self._stops else None
        if error is None:
            return None
        if not self._gate.is_open:
            error = self._gate.refusal(_told(head)[2]) or error
        self.figures.answered(path, error.status, 0.0)
        known = self._refused.get(error.code)
        if known is None or known[0] is not error:  # the same words, thousands of times a second
            before, _, behind = whole(answer_no(error, ""), _ID).partition(_ID)
            known = self._refused[error.code] = error, before, behind
        return b"%b%b%b" % (known[1], self._request_id(), known[2])

    def _request_id(self) -> bytes:
        return b"%s-%x" % (self._id, next(self._count))

    def _route(self, asked: Asked) -> Route:
        """Raises Refused: 404, or 405 with the methods that there are."""
        methods = self._exact.get(asked.path)
        if methods is None:
            methods = next((held for place, held in self._below.items() if asked.path.startswith(place)), None)
        if methods is None:
            raise Refused("not_found", f"{asked.path[:200]}: there is no such path; see /openapi.json", 404)
        route = methods.get(asked.method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise Refused(
                "bad_method", f"{asked.path[:200]}: expected {allowed}, got {asked.method}", 405, allow=allowed
            )
        return route

    async def _answered(self, route: Route, asked: Asked) -> Answer:
        if not route.is_open:
            if self._stops:
                raise _stopping()
            if self.figures.in_flight > self._limits.requests:
                raise ApiError("overloaded", "too many requests in flight; try again", 429, 500)
            self._gate.check(asked.headers.get(b"authorization"))
        answer = self._answers[route.name]
        if answer is None:
            can = [known.path for known in ROUTES if known.request and hasattr(self._served, known.name)]
            said = f"{self._served.name} does not answer {route.path}; it answers {', '.join(can)}"
            raise Refused("not_supported", said, 404)
        return await answer(asked)

    # -- about the server ----------------------------------------------------------------------------

    async def _livez(self, asked: Asked) -> Answer:
        return Answer(b'{"live":true}')

    async def _readyz(self, asked: Asked) -> Answer:
        if self._stops:
            raise ApiError("stopping", "the server stops", 503, 1000)
        return Answer(b'{"ready":true}')

    async def _health(self, asked: Asked) -> Answer:
        figures = self.figures
        return as_json(
            Health(
                status="stopping" if self._stops else "ok",
                version=self.version,
                model=self._served.name,
                uptime_s=round(time.monotonic() - self._began_s, 3),
                requests=figures.requests,
                errors=figures.errors,
                in_flight=figures.in_flight,
                latency_ms=round(figures.mean_ms(), 3),
            )
        )

    async def _openapi(self, asked: Asked) -> Answer:
        return Answer(self._document)

    async def _metrics(self, asked: Asked) -> Answer:
        return Answer(await asyncio.to_thread(self.figures.text), content_type=CONTENT_TYPE.encode())

    async def _model(self, asked: Asked) -> Answer:
        return as_json(self._served.card())

    async def _models(self, asked: Asked) -> Answer:
        return as_json(ModelList(data=[self._listed()]))

    async def _one_model(self, asked: Asked) -> Answer:
        wanted = asked.path.removeprefix("/v1/models/")
        if wanted != self._served.name:
            said = f"expected the model {self._served.name!r}, got {wanted[:200]!r}"
            raise Refused("model_not_found", said, 404, "model")
        return as_json(self._listed())

    def _listed(self) -> ModelObject:
        return ModelObject(id=self._served.name, created=self._created_s)


class Begun:
    """A request that is answered without a task. gone: set by who knows that nobody waits for the answer any more."""

    __slots__ = ("_front", "_told", "begun_s", "gone", "path", "size")

    def __init__(self, front: Front, path: str, told: Callable[[Answer | None], None]):
        self._front, self._told, self.path = front, told, path
        self.begun_s, self.gone = time.perf_counter(), False
        self.size = 0  # of the body, as far as it takes room

    def is_gone(self) -> bool:
        return self.gone

    def tell(self, found: Answer | Exception) -> None:
        """See asgi.Tell."""
        answer: Answer | None
        if isinstance(found, ClientGone):
            answer = None
        else:
            answer = answer_no(found, f"POST {self.path}") if isinstance(found, Exception) else found
        self._front._end(self, answer.status if answer else 499)
        self._told(answer)


def _told(head: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Of a plain head: content type, what is accepted, authorization."""
    known = _known_heads.get(head)
    if known is not None:
        return known
    said = {name.lower(): value.rstrip() for name, value in _HEADERS.findall(head)}
    found = said.get(b"content-type", _JSON), said.get(b"accept", b""), said.get(b"authorization")
    return remember(_known_heads, head, found)


_known_heads: dict[bytes, tuple[bytes, bytes, bytes | None]] = {}


def _stopping() -> ApiError:
    return ApiError("stopping", "the server stops; ask another one", 503, 1000)


def _version() -> str:
    try:
        return metadata.version("cyx")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0"
