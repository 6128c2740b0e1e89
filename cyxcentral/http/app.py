"""The HTTP front: each route of the table asks the handler that NATS callers ask too, and every no has one shape.

What stands before a handler, in this order: the rate of the address; too much in flight; the credential, which must be
good on every path where one is shown; the role; the rate of the identity and its key; size and time of the body.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as Place

from cyxcentral.access import Refused
from cyxcentral.api import VERSION
from cyxcentral.blobs import CHUNK_BYTES
from cyxcentral.http import openapi
from cyxcentral.http.clock import BrokerClock
from cyxcentral.http.events import EventStream, follow, position
from cyxcentral.http.figures import CONTENT_TYPE, Figures
from cyxcentral.http.gate import OPEN_COST, Gate, Who
from cyxcentral.http.routes import EVENT_STREAM, ROUTES, Route
from cyxcentral.http.tokens import Tokens
from cyxnet import messages as m
from cyxnet.bus import COSTS_ONE_MORE_BYTES
from cyxnet.codec import JSON, MAX_MESSAGE_BYTES, BadMessage, decode, retold
from cyxnet.outcomes import ApiError, BusError, refusal, refuse_encoded
from cyxnet.ratelimit import Places, Rate, household
from cyxnet.subjects import Verb, may_ask

if TYPE_CHECKING:
    from cyxcentral.central import Central

log = logging.getLogger(__name__)
BYTES = "application/octet-stream"
REQUESTS_IN_FLIGHT = 1_024  # streams too; one address gets half at the most
STREAMS, STREAMS_OF_ONE = 512, 16
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[Response]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Limits(Struct, frozen=True, kw_only=True):
    """Seconds for a body to arrive, and for a client to take a piece of the answer."""

    body_s: float = 30.0
    send_s: float = 30.0
    ping_s: float = 15.0  # between words of a stream that has nothing to say; its credential is looked at then


class Front:
    """The application, for one central. Whoever serves it calls close() first when it is over."""

    def __init__(self, central: "Central", limits: Limits | None = None):
        network = central.settings.network
        self._central = central
        self._limits = limits or Limits()
        clock = BrokerClock(central.events.broker_ms, central.events.machine)
        tokens = Tokens(central.keys, network.network_id, clock.now_ms, central.events.machine.token_hex)
        address = Rate(per_s=network.http_requests_per_s, burst=max(1.0, 2 * network.http_requests_per_s))
        self.gate = Gate(
            central.access,
            tokens,
            clock,
            network.network_id,
            central.roles,
            central.world.nodes.get,
            central.over_limit_ms,
            address,
            newcomers_per_s=0.0 if network.http_behind_proxy else network.newcomers_per_s,
        )
        self._handlers: dict[str, Callable[[str, Any], Awaitable[Any]]] = {
            "session.nonce": self.gate.nonce,
            "session.open": self.gate.open_session,
            "session.refresh": self.gate.refresh,
            **central.handlers,
        }
        self.figures = Figures(central)
        self._places = Places(REQUESTS_IN_FLIGHT)
        self.behind_proxy = network.http_behind_proxy
        self._streams: dict[str, int] = {}  # identity -> how many are open
        self.over = asyncio.Event()
        self._document = msgspec.json.encode(openapi.document(VERSION))
        self._origins = network.http_origins
        self._app = self._shown_to_pages(self._build())

    def _build(self) -> Starlette:
        probes = [
            self._place("GET", "/livez", self._livez),
            self._place("GET", "/readyz", self._readyz),
            self._place("GET", "/openapi.json", self._openapi),
            self._place("GET", "/metrics", self._metrics),
        ]
        verbs = [self._place(route.method, route.path, functools.partial(self._serve, route)) for route in ROUTES]
        return Starlette(routes=probes + verbs, exception_handlers={HTTPException: _not_served})

    def _shown_to_pages(self, app: Application) -> Application:
        """An answer that pages of the origins in network.json may read; of refusals too, else none could say why."""
        if not self._origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=self._origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "last-event-id"],
            expose_headers=["retry-after", "location", "www-authenticate"],
        )

    def _place(self, method: str, path: str, endpoint: Endpoint) -> Place:
        """An endpoint of the framework, whose errors are answered as all are."""

        async def answer(request: Request) -> Response:
            request.scope["cyx.route"] = path
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody hears it
            except Exception as error:
                return self._refused(error, path)

        return Place(path, answer, methods=[method])

    async def close(self) -> None:
        """End the event streams: who follows comes again elsewhere, from where it was."""
        self.over.set()

    # -- every request -------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun_s, said = time.monotonic(), {"status": 0}

        async def timely(message: Any) -> None:
            said["status"] = said["status"] or message.get("status", 0)
            async with asyncio.timeout(self._limits.send_s):
                await send(message)

        address = household(scope["client"][0]) if scope["client"] else ""
        asker = str(scope["client"]) if self.behind_proxy else address  # with its port: of one there is one request
        has_place = self._places.take(asker)
        try:
            self.gate.charge_address(address)
            if not has_place:
                raise ApiError("busy", "too many requests in flight; try again", 429, retry_after_ms=500)
            await self._admitted(scope, receive, timely)
        except TimeoutError:
            log.info("%s is gone, or does not read", scope["client"])
        except Exception as error:
            if said["status"]:  # half an answer is out: the connection ends
                log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            else:
                await self._shown_to_pages(self._refused(error, scope["path"]))(scope, receive, timely)
        finally:
            if has_place:
                self._places.give_back(asker)
            where = scope.get("cyx.route", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"  # each label is kept for ever
            self.figures.requests.labels(method, where, said["status"]).inc()
            self.figures.seconds.labels(where).observe(time.monotonic() - begun_s)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        scope["cyx.who"] = await self.gate.who(shown)
        await self._app(scope, receive, send)

    @property
    def streams(self) -> int:
        return sum(self._streams.values())

    def _refused(self, error: Exception, where: str) -> Response:
        if isinstance(error, Refused):
            self.figures.refused.inc()
        return answer_no(error, where)

    # -- verbs ---------------------------------------------------------------------------------------

    async def _serve(self, route: Route, request: Request) -> Response:
        verb, who = route.asks, request.scope["cyx.who"]
        if route.is_open:
            caller = household(request.client.host) if request.client else ""
            self.gate.charge_address(caller, OPEN_COST)
        else:
            said = request.headers.get("content-length", CHUNK_BYTES if "transfer-encoding" in request.headers else 0)
            size = int(said) if route.method == "POST" else 0
            caller = self._allowed(verb, who, 1 + size // COSTS_ONE_MORE_BYTES["api"]).identity
        asked = await self._asked(route, request)
        if who is not None and not route.is_open:
            refuse_more_than_given(verb, who, asked)
        if route.path == EVENT_STREAM and "text/event-stream" in request.headers.get("accept", ""):
            return await self._stream(who, asked, request.headers.get("last-event-id"))
        reply = await self._handlers[verb.name](caller, asked)
        headers = {"Location": f"/v1/jobs/{reply.job_id}"} if isinstance(reply, m.SubmitReply) else {}
        if verb.raw_reply:
            return Response(reply, route.status, _HEADERS | headers, BYTES)
        return Response(msgspec.json.encode(reply), route.status, _HEADERS | headers, JSON)

    def _allowed(self, verb: Verb, who: Who | None, cost: int = 1) -> Who:
        """Raises Refused when nobody asks, ApiError when his role may not, or not so often."""
        if who is None:
            raise Refused("this needs a header: Authorization: Bearer, and an access token or an API key behind it")
        if not may_ask(who.role, verb):
            raise ApiError("not_allowed", f"the role {who.role} may not ask {verb.name}", 403)
        self.gate.charge(who, cost)  # a large body counts as several requests, as over NATS
        return who

    async def _asked(self, route: Route, request: Request) -> Any:
        """The request as its Struct. Raises BadMessage or ApiError for what is not one."""
        verb = route.asks
        fields: dict[str, Any] = dict(request.path_params)
        if route.method != "POST":
            given = request.query_params.multi_items()
            if len({name for name, _ in given} | set(fields)) != len(given) + len(fields):
                raise BadMessage("a parameter is there twice")
            return _converted(fields | dict(given), verb, strict=False)
        if request.query_params:
            raise BadMessage("expected no query: what is asked stands in the body")
        refuse_encoded(request.headers.get("content-encoding", ""))
        body = await self._body(request, CHUNK_BYTES if verb.raw_request else MAX_MESSAGE_BYTES)
        if verb.raw_request:
            return body
        if verb.request is type(None):
            return None
        content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if content_type != JSON:
            raise ApiError("bad_content_type", f"expected Content-Type {JSON}, got {content_type[:80]!r}", 415)
        if not fields:
            return decode(verb.request, body or b"{}", JSON)
        said = decode(dict[str, Any], body or b"{}", JSON)
        if both := sorted(set(said) & set(fields)):
            raise BadMessage(f"{both[0]} stands in the path: leave it out of the body")
        return _converted(said | fields, verb, strict=True)

    async def _body(self, request: Request, at_most: int) -> bytes:
        said = request.headers.get("content-length", "0")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                if int(said) <= at_most:
                    async for piece in request.stream():
                        body += piece
                        if len(body) > at_most:
                            break
        except TimeoutError:
            raise ApiError("too_slow", f"the body did not come within {self._limits.body_s:g} s", 408) from None
        if max(int(said), len(body)) > at_most:
            raise ApiError("too_large", f"expected a body of at most {at_most} bytes", 413)
        return bytes(body)

    async def _stream(self, who: Who, ask: m.UpdatesRequest, last_event_id: str | None) -> Response:
        """The updates of a job as server-sent events, from where the reader was. It keeps its place to its end."""
        with contextlib.ExitStack() as taken:
            taken.enter_context(self._place_to_stream(who.identity))
            return await self._followed(who, ask, last_event_id, taken)

    @contextlib.contextmanager
    def _place_to_stream(self, identity: str) -> Iterator[None]:
        """Counted before anything is waited for: who asks at the same time is counted too. Raises ApiError (429)."""
        if self._streams.get(identity, 0) >= STREAMS_OF_ONE or self.streams >= STREAMS:
            raise ApiError("too_many_streams", f"at most {STREAMS_OF_ONE} streams at a time; end one", 429, 1000)
        self._streams[identity] = self._streams.get(identity, 0) + 1
        self.figures.streams.set(self.streams)
        try:
            yield
        finally:
            self._streams[identity] -= 1
            if not self._streams[identity]:
                del self._streams[identity]
            self.figures.streams.set(self.streams)

    async def _followed(
        self, who: Who, ask: m.UpdatesRequest, last_event_id: str | None, place: contextlib.ExitStack
    ) -> Response:
        if last_event_id:
            ask = position(ask, last_event_id)
        read = functools.partial(self._handlers["job.updates"], who.identity)
        found = await self._handlers["job.status"](who.identity, m.JobRef(job_id=ask.job_id))  # or a plain no
        ask = replace(ask, job_id=found.job_id)  # whole: its beginning may be asked for, and is told of nothing
        first = await read(ask)
        if last_event_id and not first.updates and first.status in ("completed", "failed", "cancelled"):
            return Response(status_code=204, headers=_HEADERS)  # tells a browser not to come again

        async def still_good() -> None:
            await self.gate.refuse_gone(who)

        pieces = follow(read, ask, self._central.recent, still_good, self.over, self._limits.ping_s)
        return EventStream(pieces, place.pop_all(), _HEADERS)

    # -- about the server ----------------------------------------------------------------------------

    async def _livez(self, request: Request) -> Response:
        return Response(b'{"live":true}', 200, _HEADERS, JSON)

    async def _readyz(self, request: Request) -> Response:
        if why_not := self._central.unwell():
            raise BusError(why_not)
        return Response(b'{"ready":true}', 200, _HEADERS, JSON)

    async def _openapi(self, request: Request) -> Response:
        return Response(self._document, 200, _HEADERS, JSON)

    async def _metrics(self, request: Request) -> Response:
        who = request.scope["cyx.who"]
        if who is None:
            raise Refused("figures are for operators: show an API key of that role")
        if who.role != "operator":
            raise ApiError("not_allowed", f"figures are for operators, not for the role {who.role}", 403)
        return Response(self.figures.text(), 200, _HEADERS, CONTENT_TYPE)


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def answer_no(error: Exception, where: str) -> Response:
    """The one shape of a refusal: the status, and an ErrorBody."""
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "bad_method"}.get(error.status_code, "bad_request")
        error = ApiError(code, f"{where[:200]}: {error.detail}; see /openapi.json", error.status_code)
    status, body = refusal(error, where)
    headers = dict(_HEADERS)
    if status in (429, 503, 507):
        headers["Retry-After"] = str(-(-(body.retry_after_ms or 1000) // 1000))
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="cyx"'
    if status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    return Response(msgspec.json.encode(body), status, headers, JSON)


async def _not_served(request: Request, error: Exception) -> Response:
    answer = answer_no(error, request.url.path)
    if answer.status_code == 405:  # a path has a route for each of its methods; Starlette tells those of one
        at = (each for each in request.app.routes if each.matches(request.scope)[0] is not Match.NONE)
        answer.headers["Allow"] = ", ".join(sorted({method for each in at for method in each.methods}))
    return answer


def refuse_more_than_given(verb: Verb, who: Who, asked: Any) -> None:
    """A credential gives no more than itself: raises ApiError (403)."""
    wants_operator = getattr(asked, "as_operator", False) or verb.name == "key.new" and asked.role == "operator"
    if wants_operator and who.role != "operator":
        raise ApiError("not_allowed", f"this credential has the role {who.role}, not operator", 403)
    if who.is_key and verb.name == "key.new":
        raise ApiError("not_allowed", "an API key makes no others: open a session, or use cyx key new", 403)
    if who.is_key and verb.name == "key.revoke" and asked.id != who.grant_id and who.role != "operator":
        raise ApiError("not_allowed", "an API key revokes itself only: open a session, or use cyx key revoke", 403)


def _converted(fields: dict[str, Any], verb: Verb, strict: bool) -> Any:
    try:
        return msgspec.convert(fields, verb.request, strict=strict)
    except (msgspec.MsgspecError, RecursionError, OverflowError) as error:
        raise BadMessage(retold(str(error), verb.request)[:500]) from None
