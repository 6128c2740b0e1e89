"""The broker, seen from Cyx: connect, ask, answer, and what cyxnet.streams adds. Only these two, and the connection
under them, import nats.

nats-py's pitfalls are handled here once: no publish is buffered while disconnected (pending_size=0), so nothing is
delivered later than its caller believes; the error callback never raises (that would silently end the read loop);
every future has a timeout; a lost link shows within ten seconds (ping_interval).
"""

import asyncio
import contextlib
import json
import logging
import re
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import nats.errors

from cyxnet import openapi, subjects, tls
from cyxnet.codec import JSON, MAX_DEPTH_AROUND, MAX_MESSAGE_BYTES, MSGPACK, BadMessage, decode, encode
from cyxnet.config import addresses
from cyxnet.connection import HUNG_UP, Connection, Message, Take, block_of, is_refusal
from cyxnet.credentials import Credentials
from cyxnet.hearing import SHUT_OUT_S, Hearing
from cyxnet.messages import ErrorBody
from cyxnet.mux import Requests
from cyxnet.outcomes import ApiError, BusError, LinkLost, NobodyServes, NotAdmitted, NotTrusted, refusal
from cyxnet.ratelimit import Floods, Places, Rate, RateLimiter
from cyxnet.service import QUEUE, TYPES, Endpoint, Service, now
from cyxnet.streams import Streams

log = logging.getLogger(__name__)
T = TypeVar("T")
Handler = Callable[[str, bytes, dict[str, str]], Awaitable[None]]

CONNECT_TIMEOUT_S = 5.0
RENEW_AT, RENEW_LATEST = 2 / 3, 0.9  # of the time a connection is let in for: when it is quiet, and in any case
QUIET_CHECK_S = 0.05
CANCEL_AGAIN_S = 0.05
FIRST_ERROR_GRACE_S = 0.5  # nats-py would try the first connection for ever
REQUEST_TIMEOUT_S = 5.0
MAX_REQUESTS_IN_FLIGHT = 1024  # of which one caller gets half at the most
WHY_NOT_IN = "it is banned, has too many connections, or this is not the key it is known by"  # a broker says no more
DISCOVERY = Rate(per_s=5, burst=30)  # answers into one inbox, and into all: they are large, and the asker is unknown
DISCOVERY_BY_ALL = Rate(per_s=200, burst=400)
DISCOVERY_PATIENCE = Rate(per_s=1_000, burst=1_000)  # with questions beyond that: then it is closed for a while
DISCOVERY_CLOSED_S = 5.0
INBOX = re.compile(subjects.inbox(r"[A-Za-z0-9_-]{1,64}"))  # of an identity: longer names would only fill the memory
LOOK_S = 0.5  # how often it is looked whether this process and its broker run: what came meanwhile is heard at once
COSTS_ONE_MORE_BYTES = {"api": 65_536, "node": 8_192}  # so large a message counts as two; nodes send data as "api"
_CONTENT = {kind: block_of({"Content-Type": kind}) for kind in (MSGPACK, JSON, "application/octet-stream")}


class Bus(Streams):
    """One connection to the broker, in one account."""

    def __init__(self, connection: Any):
        super().__init__(connection)
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._services: list[Any] = []
        self._hearing: Hearing | None = None  # None: everybody is heard
        self._on_flood: Callable[[str], None] = lambda identity: None
        self._look: asyncio.TimerHandle | None = None
        self._discovered, self._discovered_by_all = RateLimiter(DISCOVERY), RateLimiter(DISCOVERY_BY_ALL)
        self._discovery_floods = Floods(DISCOVERY_PATIENCE, DISCOVERY_CLOSED_S)
        self._requests = Requests(connection)
        self._asking = 0  # requests that wait for their answer
        self._why_out = ""  # who was thrown out and may not come in again, while that is so
        self.renew_after_s: float | None = None  # from its beginning; None: it is let in for good
        self._renewing: asyncio.Task[None] | None = None
        self._passed_over = 0
        self.foreign_replies = 0  # requests whose answer would have gone to somebody else

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        inbox: str = "_INBOX",
        credentials: Credentials | None = None,
        tls_ca: str = "",
        session_s: float | None = None,
        renews: bool = True,
        patience_s: float = CONNECT_TIMEOUT_S,
    ) -> "Bus":
        """Connect to `url` (tls://host:port, or several with commas between: any of them will do; on this machine also
        nats://, which is plain text).

        credentials: who connects; their inbox is used then. None: the URL says it (nats://user:password@host:port).
        tls_ca: the authority (PEM) that is trusted; empty: the system's are.
        session_s: so long one is let in; the connection comes again before that, unless it renews nothing: then whoever
        made it sees to that, when `renew_after_s` are over. patience_s: how long to wait for a central that lets
        anybody in. Raises BusError when nobody answers there, NotAdmitted when one is refused,
        NotTrusted when the broker shows another certificate, TlsError for plain text to another machine.
        """
        if not url:
            raise BusError(
                "network.json names no broker; write its address there, as client_url (for a node: node_url)"
            )
        tls.refuse_plain_text(url, "the broker")
        encrypted = "tls://" in url
        urls, shown = url.split(","), addresses(url)
        last_error: list[str] = []
        untrusted: list[str] = []
        failed, refused = asyncio.Event(), asyncio.Event()

        async def on_error(error: Exception) -> None:
            if isinstance(error, ssl.SSLError):
                untrusted[:] = [getattr(error, "verify_message", "") or error.reason or str(error)]
            if not is_refusal(last_error):  # which says more than whatever comes after it
                last_error[:] = [str(error) or type(error).__name__]
            # who is refused may see the link break before the reason comes: the next try tells
            if credentials is None or not isinstance(error, TimeoutError | ConnectionResetError):
                failed.set()
            if bus and credentials and is_refusal(error) and not refused.is_set():
                refused.set()
                log.warning(
                    "%s does not let %s in any more: %s; it is asked again and again", shown, credentials.id, WHY_NOT_IN
                )
            if bus and credentials and is_refusal(error) and HUNG_UP not in str(error):
                bus._turned_away(str(_not_connected(shown, str(error), [], credentials)))
            log.debug("broker: %s", error)

        async def on_disconnect() -> None:
            connection.drop_unsent()
            if bus:
                bus._link_broke()

        async def on_reconnect() -> None:
            refused.clear()
            if bus:
                bus._link_is_back()

        bus: Bus | None = None
        connection = Connection(credentials.nkey if credentials else None, encrypted)
        who: dict[str, Any] = {"tls": tls.context(tls_ca)} if encrypted else {}
        if credentials:
            inbox = credentials.inbox
            who |= {"signature_cb": credentials.sign, "token": credentials.token}
        connecting = asyncio.ensure_future(
            connection.connect(
                urls,
                name=name,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
                inbox_prefix=inbox,
                pending_size=0,
                ping_interval=5,
                max_outstanding_pings=2,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]
                max_reconnect_attempts=-1,
                connect_timeout=2,
                **who,
            )
        )
        try:
            await _until_first(connecting, failed, patience_s)
            async with asyncio.timeout(FIRST_ERROR_GRACE_S * len(urls)):
                await connecting
            await connection.flush(timeout=2)
        except (TimeoutError, nats.errors.Error, OSError, ValueError) as error:
            with contextlib.suppress(Exception):
                await connection.close()
            why = last_error[0] if last_error else str(error) or type(error).__name__
            raise _not_connected(shown, why, untrusted, credentials) from None
        except asyncio.CancelledError:  # nobody wants it any more: nothing of it may be left
            while not connecting.done():  # nats-py takes the first for a failure, and tries again
                connecting.cancel()
                await asyncio.wait([connecting], timeout=CANCEL_AGAIN_S)
            with contextlib.suppress(Exception):
                await connection.close()
            raise
        bus = cls(connection)
        bus.renew_after_s = session_s * RENEW_AT if session_s is not None else None
        if session_s is not None and renews:
            bus._renewing = asyncio.create_task(bus._renew(session_s))
        return bus

    def _turned_away(self, why: str) -> None:
        """Who was thrown out does not come in again: whatever waits for an answer, or for the link, waits in vain."""
        if not self._why_out:
            self._why_out = why
            self._requests.fail(lambda: NotAdmitted(why))
            self._end_pauses()

    def _link_is_back(self) -> None:
        self._why_out = ""
        super()._link_is_back()

    def _not_sent(self, what: str, error: Exception) -> BusError:
        if self._why_out:
            return NotAdmitted(self._why_out)
        if isinstance(error, nats.errors.OutboundBufferLimitError):
            return LinkLost(f"{what}: the link to the broker is lost")
        return BusError(f"{what}: {error or type(error).__name__}")

    async def _renew(self, session_s: float) -> None:
        """Connect again before the time is over, at a moment when nothing is under way."""
        loop = asyncio.get_running_loop()
        while True:
            begun, reconnects = loop.time(), self._nc.stats["reconnects"]
            await asyncio.sleep(session_s * RENEW_AT)
            while (self._asking or self._tasks) and loop.time() < begun + session_s * RENEW_LATEST:
                await asyncio.sleep(QUIET_CHECK_S)
            if self._nc.stats["reconnects"] == reconnects:
                with contextlib.suppress(TimeoutError, nats.errors.Error, OSError):
                    await self._nc.flush(timeout=REQUEST_TIMEOUT_S)
                await self._nc.force_reconnect()

    @property
    def requests_in_flight(self) -> int:
        """How many requests are being answered here now."""
        return len(self._tasks)

    @property
    def passed_over(self) -> int:
        """Messages of who speaks too often, or for which there was no room."""
        return int(self._passed_over + self._nc.unread)

    def limit(self, rates: dict[str, Rate], on_flood: Callable[[str], None] = lambda identity: None) -> None:
        """From now on, each sender is answered at most at this rate. rates: by what he sends, the third token of a

        subject ("api", "node"); the fourth names him. on_flood: told of a sender who goes on although refused. He is
        not even answered from then on, for SHUT_OUT_S.
        """
        loop = asyncio.get_running_loop()
        hearing = self._hearing = Hearing(rates, loop.time())
        self._on_flood = on_flood
        self._nc.on_read = lambda: hearing.read(loop.time())

        def look_around() -> None:
            hearing.ran(loop.time())
            self._nc.probe()
            self._look = loop.call_later(LOOK_S, look_around)

        if self._look is not None:
            self._look.cancel()
        look_around()

    def shut_out(self, identity: str) -> bool:
        """Whether this sender has flooded us a short while ago."""
        return self._hearing is not None and self._hearing.is_out(identity, asyncio.get_running_loop().time())

    def over_limit_ms(self, family: str, identity: str, cost: float = 1.0) -> int:
        """0 when who asks may go on (and is charged for it), else how long he has to wait: see limit()."""
        if self._hearing is None:
            return 0
        return self._hearing.wait_ms(family, identity, asyncio.get_running_loop().time(), cost)

    def _wait_ms(self, family: str, identity: str, cost: int) -> int:
        """over_limit_ms() of a message that came; that it has to wait is counted."""
        wait_ms = self.over_limit_ms(family, identity, cost)
        if wait_ms:
            self._refused(identity, cost)
        return wait_ms

    def _refused(self, identity: str, cost: float = 1.0) -> None:
        if self._hearing and self._hearing.refused(identity, asyncio.get_running_loop().time(), cost):
            log.warning("%s floods: it is not heard for %g s", identity, SHUT_OUT_S)
            self._nc.pass_over(identity, SHUT_OUT_S)
            self._on_flood(identity)

    async def close(self) -> None:
        if self._renewing:
            self._renewing.cancel()
        if self._look is not None:
            self._look.cancel()
        self._end()
        for task in (*self._tasks, *self._workers):
            task.cancel()
        for subscription in self._services:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()
        with contextlib.suppress(Exception):
            await self._nc.close()
        if (reconnecting := self._nc._reconnection_task) and not reconnecting.done():
            reconnecting.cancel()  # nats-py waits for its end too short a while
            await asyncio.wait({reconnecting}, timeout=CONNECT_TIMEOUT_S)

    async def round_trip(self) -> None:
        """Hear from the broker: whatever it had sent before has arrived then. Raises BusError when it does not answer.

        While the link is gone it returns at once: what was asked for before goes out with the next one.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._nc.flush()
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise BusError(f"the broker does not answer: {error or type(error).__name__}") from None

    # -- plain messages ---------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes, content_type: str = MSGPACK, reply: str = "") -> None:
        """Send and forget. Raises BusError when the link is down: nothing is kept for later."""
        try:
            await self._nc.publish(subject, payload, reply, block=_CONTENT[content_type] if content_type else b"")
        except (nats.errors.Error, OSError) as error:
            raise self._not_sent(f"not sent to {subject}", error) from None

    def say(self, subject: str, payload: bytes, content_type: str = MSGPACK) -> None:
        """publish() that does not wait; not for who would try it again and again."""
        try:
            self._nc.send(subject, payload, block=_CONTENT[content_type])
        except (nats.errors.Error, OSError) as error:
            raise self._not_sent(f"not sent to {subject}", error) from None

    async def subscribe(
        self, subject: str, handler: Handler, *, queue: str = "", max_pending: int = 65_536, strangers: bool = False
    ) -> Any:
        """Call handler(subject, payload, headers) for each message, in order. An exception there is logged.

        strangers: many may speak here: who speaks too often is passed over, and what comes while `max_pending` messages
        wait is dropped.
        """
        if strangers:
            return await self._listen_to_strangers(subject, handler, queue, max_pending)

        waiting: deque[Message] = deque()
        at_work: asyncio.Task[None] | None = None  # only while something waits: nobody tells us of an unsubscribe()

        async def work() -> None:
            while waiting:
                message = waiting.popleft()
                try:
                    await handler(message.subject, message.data, dict(message.headers))
                except Exception:
                    log.exception("handler of %s failed", message.subject)

        def take(message: Message) -> None:
            nonlocal at_work
            if len(waiting) >= max_pending:
                self._passed_over += 1
                return
            waiting.append(message)
            if at_work is None or at_work.done():
                at_work = asyncio.get_running_loop().create_task(work())
                self._workers.add(at_work)
                at_work.add_done_callback(self._workers.discard)

        return await self.attend(subject, take, queue)

    async def _listen_to_strangers(self, subject: str, handler: Handler, queue: str, max_pending: int) -> Any:
        waiting: asyncio.Queue[Message] = asyncio.Queue(max_pending)

        async def work() -> None:
            while True:
                message = await waiting.get()
                try:
                    await handler(message.subject, message.data, message.headers)
                except Exception:
                    log.exception("handler of %s failed", message.subject)

        def take(message: Message) -> None:
            family, identity, cost = _sender(message)
            if self.shut_out(identity) or self._wait_ms(family, identity, cost) or waiting.full():
                self._passed_over += 1
            else:
                waiting.put_nowait(message)

        worker = asyncio.get_running_loop().create_task(work())
        self._workers.add(worker)
        subscription = await self._nc.listen(subject, take, queue)
        await self.round_trip()
        return subscription

    async def attend(self, subject: str, take: Take, queue: str = "") -> Any:
        """Have take(message) called for every message, at once and in order; it must neither wait nor raise.

        Returns the subscription, whose `unsubscribe()` ends it; what came before is still given to take().
        """
        subscription = await self._nc.listen(subject, take, queue)
        await self.round_trip()
        return subscription

    def send(self, subject: str, payload: bytes, headers: dict[str, str] | bytes, reply: str = "") -> None:
        """Send with headers of one's own, without waiting. Raises BusError when it cannot be sent now.

        headers: or what block_of() has made of them, for who sends the same ones over and over.
        """
        try:
            self._nc.send(subject, payload, reply, headers if isinstance(headers, bytes) else block_of(headers))
        except (nats.errors.Error, OSError) as error:
            raise self._not_sent(f"not sent to {subject}", error) from None

    async def request(
        self,
        subject: str,
        payload: bytes,
        *,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> tuple[bytes, dict[str, str]]:
        """Ask and wait for one answer.

        Raises ApiError when it is a refusal, BusError when there is none, NotAdmitted as soon as the broker has thrown
        us out and does not let us in again.
        """
        block = _CONTENT.get(content_type) or block_of({"Content-Type": content_type})
        self._asking += 1
        try:
            message = await self._requests.ask(subject, payload, block, timeout_s)
        except nats.errors.OutboundBufferLimitError as error:
            raise self._not_sent(f"{subjects.asked(subject)} was not asked", error) from None
        except (TimeoutError, nats.errors.Error, OSError) as error:
            why = "" if isinstance(error, TimeoutError) else f" ({error or type(error).__name__})"
            raise BusError(f"no answer to {subjects.asked(subject)} within {round(timeout_s, 3):g} s{why}") from None
        finally:
            self._asking -= 1
        if message.status == "503":
            asked = subjects.asked(subject)
            other_side = "the other side" if asked == subject else "a central"
            raise NobodyServes(f"nobody serves {asked}; is {other_side} running?")
        answer_headers = dict(message.headers)
        status = answer_headers.get("Nats-Service-Error-Code")
        if status is not None:
            raise _refusal(status, answer_headers, message.data)
        return message.data, answer_headers

    async def ask(
        self,
        subject: str,
        message: Any,
        reply: type[T],
        *,
        content_type: str = MSGPACK,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> T:
        """request() with Structs on both sides."""
        data, headers = await self.request(
            subject, encode(message, content_type), content_type=content_type, timeout_s=timeout_s
        )
        return decode(reply, data, headers.get("Content-Type", content_type), 16_000_000, MAX_DEPTH_AROUND)

    async def answer(
        self,
        subject: str,
        kinds: Any,
        handler: Callable[[str, Any], Awaitable[Any]],
        *,
        strangers: bool = False,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """Serve a plain request subject: decode as `kinds`, call handler(subject, message), encode its reply.

        strangers: many may ask here, and each is answered in its own inbox only.
        Every subject served has its own limit of requests in flight: a flood on one of them starves no other.
        """
        places = Places(MAX_REQUESTS_IN_FLIGHT)

        async def work(message: Message) -> None:
            try:
                content_type = _content_type(message)
                reply = await handler(message.subject, decode(kinds, message.data, content_type, max_bytes))
                await self._nc.publish(message.reply, encode(reply, content_type), block=_CONTENT[content_type])
            except Exception as error:
                self._refuse(message, error)

        def take(message: Message) -> None:
            family, asker, cost = _sender(message)
            if self.shut_out(asker):
                self._passed_over += 1
            elif not message.reply or strangers and not self._own_inbox(message, asker):
                self._refused(asker)  # it counts although nobody is told: a flood may want no answer
            elif why_not := self._no_room(family, asker, cost, places):
                self._refuse(message, why_not)
            else:
                self._spawn(work(message), asker, places, cost)

        await self._nc.listen(subject, take)
        await self.round_trip()

    async def answer_raw(self, subject: str, handler: Callable[[bytes], Awaitable[bytes]], *, queue: str = "") -> None:
        """Serve a subject whose requests and answers are bytes of another protocol. An empty answer is not sent.

        Each request is a task of its own from the moment it comes: one that waits makes no other older.
        """
        loop = asyncio.get_running_loop()

        async def work(message: Message) -> None:
            try:
                if answer := await handler(message.data):
                    with contextlib.suppress(nats.errors.Error, OSError):
                        await self._nc.publish(message.reply, answer)
            except Exception:
                log.exception("a request on %s failed", subject)

        def take(message: Message) -> None:
            worker = loop.create_task(work(message))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

        await self._nc.listen(subject, take, queue)
        await self.round_trip()

    # -- micro services (ADR-32) ----------------------------------------------------------------------

    async def serve(
        self, version: str, description: str, handlers: dict[str, Callable[[str, Any], Awaitable[Any]]]
    ) -> None:
        """Offer the verbs of cyxnet.subjects to callers; each handler gets (caller, request).

        Each request is a task of its own, at most MAX_REQUESTS_IN_FLIGHT at a time; one more is refused with 429.
        """
        places = Places(MAX_REQUESTS_IN_FLIGHT)
        service = Service(
            id=self._nc._nuid.next().decode(),
            name=subjects.SERVICE_NAME,
            version=version,
            description=description,
            started=now(),
        )
        for name, handler in handlers.items():
            verb = subjects.VERBS[name]
            endpoint = Endpoint(name=name.replace(".", "-"), subject=subjects.api("*", name), metadata=_describe(verb))
            service.endpoints.append(endpoint)
            take = self._endpoint(verb, handler, endpoint, places)
            self._services.append(await self._nc.listen(endpoint.subject, take, QUEUE))
        await self._open_discovery(service)
        await self.round_trip()  # else an early caller meets NoResponders

    async def _open_discovery(self, service: Service) -> None:
        """Answer who asks what is served here. When too many do, nobody listens for a while: the broker drops it then.

        Anybody may ask, and nothing in the question tells who did, so it cannot be told who has to go.
        """
        loop, opened = asyncio.get_running_loop(), list[Any]()

        async def close() -> None:
            log.warning("discovery is flooded: it is closed for %g s", DISCOVERY_CLOSED_S)
            for subscription in opened:
                self._services.remove(subscription)
                with contextlib.suppress(nats.errors.Error, OSError):
                    await subscription.unsubscribe()
            await asyncio.sleep(DISCOVERY_CLOSED_S)
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._open_discovery(service)

        def answers(question: str) -> Take:
            def take(message: Message) -> None:
                # See _own_inbox. Who asks is not in this subject: no inbox is flooded with what somebody else asked for
                whose, now_s = message.reply.partition(".")[0], loop.time()
                wanted = INBOX.fullmatch(whose) and not self._discovered.wait_ms(whose, now_s)
                if wanted and not self._discovered_by_all.wait_ms("", now_s):
                    with contextlib.suppress(nats.errors.Error, OSError):
                        self._nc.send(message.reply, service.answer(question))
                elif self._discovery_floods.refused("", now_s):
                    self._workers.add(loop.create_task(close()))

            return take

        for question in TYPES:
            for subject in service.subjects(question):
                opened.append(await self._nc.listen(subject, answers(question)))
        self._services += opened

    def _endpoint(
        self,
        verb: subjects.Verb,
        handler: Callable[[str, Any], Awaitable[Any]],
        endpoint: Endpoint,
        places: Places,
    ) -> Take:
        async def work(message: Message, caller: str) -> None:
            begun_ns = time.perf_counter_ns()
            try:
                content_type = _content_type(message)
                if verb.raw_request:
                    asked = message.data
                    content_type = content_type if content_type in _CONTENT else JSON  # bytes of any type will do
                else:
                    asked = decode(verb.request, message.data or b"{}", content_type)
                reply = await handler(caller, asked)
                if not verb.raw_reply:
                    reply = encode(reply, content_type)
                block = _CONTENT["application/octet-stream" if verb.raw_reply else content_type]
                room = self._nc.max_payload - len(block)
                if len(reply) > room:
                    raise ApiError(
                        "reply_too_large",
                        f"the answer has {len(reply)} bytes, a message has room for {room}; ask for less",
                        413,
                    )
                self._nc.send(message.reply, reply, block=block)
                endpoint.ended(time.perf_counter_ns() - begun_ns)
            except Exception as error:
                self._refuse(message, error)
                endpoint.ended(time.perf_counter_ns() - begun_ns, error)

        def take(message: Message) -> None:
            family, asker, cost = _sender(message)
            if self.shut_out(asker):
                self._passed_over += 1
            elif not message.reply or not self._own_inbox(message, asker):
                self._refused(asker)
            elif why_not := self._no_room(family, asker, cost, places):
                self._refuse(message, why_not)
                endpoint.ended(0, why_not)
            else:
                self._spawn(work(message, asker), asker, places, cost)

        return take

    def _own_inbox(self, message: Message, asker: str) -> bool:
        """Whether the answer goes to who asked. The broker lets one name any reply subject, and we may publish on all:

        with the subject of another's command there, what we answer would be taken for a command of ours.
        """
        if not message.reply or message.reply.startswith(f"{subjects.inbox(asker)}."):
            return True
        self.foreign_replies += 1
        if self.foreign_replies.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: a flood must not fill the disk
            log.warning(
                "%s is not answered: the answer would go to %s (%d such requests so far)",
                message.subject,
                message.reply[:200],
                self.foreign_replies,
            )
        return False

    def _no_room(self, family: str, identity: str, cost: int, places: Places) -> ApiError | None:
        """Why a request is not even looked at now: its sender asks too much, or all do. None: it has a place."""
        if wait_ms := self._wait_ms(family, identity, cost):
            return ApiError("rate_limited", f"{identity} asks too often; again in {wait_ms} ms", 429, wait_ms)
        if not places.take(identity, cost):
            self._refused(identity, cost)
            return ApiError("busy", "too many requests in flight; try again", 429, retry_after_ms=500)
        return None

    def _refuse(self, message: Message, error: Exception) -> None:
        """Tell the caller why, in the headers any NATS client knows and in a JSON body."""
        status, body = refusal(error, message.subject)
        one_line = " ".join(body.message.split())[:400]
        headers = {
            "Nats-Service-Error": one_line.encode("ascii", "replace").decode(),
            "Nats-Service-Error-Code": str(status),
            "Content-Type": JSON,
        }
        with contextlib.suppress(Exception):
            self._nc.send(message.reply, encode(body, JSON), block=block_of(headers))

    def _spawn(self, work: Any, identity: str, places: Places, cost: int) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            places.give_back(identity, cost)

        task.add_done_callback(ended)


def _not_connected(shown: str, why: str, untrusted: list[str], credentials: Credentials | None) -> BusError:
    """For who could not connect. why: the last word heard; untrusted: what is wrong with the certificate."""
    if untrusted:
        return NotTrusted(
            f"{shown}: its certificate is not trusted ({untrusted[0]}); is network.json that of this network?"
        )
    if credentials and is_refusal(why):
        return NotAdmitted(f"{shown} does not let {credentials.id} in: {WHY_NOT_IN}")
    if credentials and "timeout" in why.lower():
        why = "no central lets anybody in"
    return BusError(f"no Cyx broker answers at {shown} ({why}); is `cyx up` running?")


async def _until_first(connecting: "asyncio.Future[Any]", failed: asyncio.Event, timeout_s: float) -> None:
    """Wait until the connection stands, an error was reported or the time is up."""
    failure = asyncio.ensure_future(failed.wait())
    try:
        await asyncio.wait({connecting, failure}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        failure.cancel()


def _sender(message: Message) -> tuple[str, str, int]:
    """What who sent it is ("api", "node"), his identity, and as how many messages it counts: a large one takes as much
    memory and time as several.
    """
    _, _, family, identity, *_ = message.subject.split(".", 4)
    return family, identity, 1 + len(message.data) // COSTS_ONE_MORE_BYTES.get(family, 2**31)


def _content_type(message: Message) -> str:
    for kind, block in _CONTENT.items():  # of nearly every message it is the only header
        if message.block == block:
            return kind
    return message.headers.get("Content-Type", JSON)


def _refusal(status: str, headers: dict[str, str], data: bytes) -> ApiError:
    try:
        body = decode(ErrorBody, data, JSON)
    except BadMessage:
        body = ErrorBody(err_code="refused", message=headers.get("Nats-Service-Error", "refused"))
    number = int(status) if status.isdigit() else 500
    return ApiError(body.err_code, body.message, number, body.retry_after_ms, body.now_ms)


def _describe(verb: subjects.Verb) -> dict[str, str]:
    """Endpoint metadata for $SRV.INFO: what it is for, the JSON Schema of its request and the name of its answer's."""
    about = {
        "about": verb.about,
        "reply": verb.reply.__name__,
        "caller": "the * in the subject is your caller id: letters, digits, - and _",
    }
    if verb.raw_request:
        return about | {"request": "the bytes of one chunk"}
    return about | {
        "request_schema": json.dumps(openapi.portable(msgspec.json.schema(verb.request)), separators=(",", ":"))
    }
