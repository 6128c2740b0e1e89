"""The broker: EDGE, where messages get lost, and CORE, whose log loses nothing but may leave its callers in the dark.

SimBus has the verbs of cyxnet.bus.Bus that central, nodes and clients use, with its errors and its promises: an append
has three outcomes, a follower brings every message in order and once, a request has one answer or none.
"""

import asyncio
import functools
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from nats.js.api import StreamConfig

from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.bus import ApiError, BusError
from cyxnet.codec import JSON, MAX_MESSAGE_BYTES, MSGPACK, decode, encode
from cyxnet.connection import Message, block_of
from cyxnet.outcomes import TEMPORARY_CODES, AppendUnknown, Conflict, Stored
from tests.simulation.faults import FIRST_WALL_MS, Faults
from tests.simulation.loop import ProcessLoop, Scheduler, nap

ANSWER_TIMEOUT_S = 5.0
COMMANDS = subjects.command("")
ANSWERS_TO_CENTRAL = subjects.reply(subjects.CENTRAL, "")
NOBODY_LISTENS = b"NATS/1.0 503\r\n\r\n"
decoded = functools.lru_cache(maxsize=256)(decode)  # what two centrals hear is one object: nobody changes a message
Route = Callable[[str, bytes, Any, Any], None]  # subject, payload, content type or block of headers, where to answer


class Process:
    """Something that runs and can be killed. crash() is called by faults inside its own I/O."""

    def __init__(self, loop: ProcessLoop):
        self.loop = loop
        self.name = loop.name
        self.deaf = False  # nothing reaches it
        self.mute = False  # nothing leaves it
        self.stalled_until_s = 0.0  # what is stored does not reach its follower before

    def crash(self, why: str) -> None:
        self.loop.kill()


class Reply:
    """Where the answer to a request goes. Only the first one counts."""

    def __init__(self, process: Process, future: "asyncio.Future[tuple[str, bytes, str]]"):
        self.process = process
        self.future = future


def _give_up(reply: Reply, subject: str, timeout_s: float) -> None:
    if not reply.future.done():
        reply.future.set_exception(BusError(f"no answer to {subject} within {timeout_s:g} s"))


class Subscription:
    def __init__(self, edge: "Edge", process: Process, subject: str, route: Route, queue: str):
        self.edge, self.process, self.subject, self.route, self.queue = edge, process, subject, route, queue

    async def unsubscribe(self) -> None:
        self.close()

    def close(self) -> None:
        self.edge.subscriptions[self.subject].remove(self)

    @property
    def open(self) -> bool:
        return self in self.edge.subscriptions[self.subject]


@functools.lru_cache(maxsize=4096)
def general(subject: str) -> str:
    """The subject that listens to everybody's `subject`, or to all answers of central's."""
    if subject.startswith(ANSWERS_TO_CENTRAL):
        return f"{ANSWERS_TO_CENTRAL}*"
    tokens = subject.split(".")
    return ".".join([*tokens[:3], "*", *tokens[4:]])


class Edge:
    """The account where everybody meets. Messages are lost, doubled, late and out of order."""

    def __init__(self, scheduler: Scheduler, faults: Faults):
        self.scheduler = scheduler
        self.faults = faults
        self.subscriptions: dict[str, list[Subscription]] = {}
        self.heard: Callable[[str, str, float], None] = lambda process, subject, at_s: None
        self.came: Callable[[str, str], None] = lambda process, subject: None  # told of every question to somebody
        self.asked: Callable[[str, str, str], None] = lambda process, subject, reply: None  # of every plain question
        self.answered: Callable[[str, Message], None] = lambda process, message: None  # of what comes to attend()
        self.commanded: Callable[[str, bytes], None] = lambda subject, payload: None  # told of every command

    def subscribe(self, subscription: Subscription) -> None:
        self.subscriptions.setdefault(subscription.subject, []).append(subscription)

    def listeners(self, subject: str) -> list[Subscription]:
        found: list[Subscription] = []
        queues: dict[str, list[Subscription]] = {}
        for name in (subject, general(subject)):
            for each in self.subscriptions.get(name, ()):
                if not each.process.loop.alive:
                    continue
                if each.queue:
                    queues.setdefault(each.queue, []).append(each)
                else:
                    found.append(each)
        return found + [self.scheduler.dice.choice(group) for group in queues.values()]

    def send(
        self, sender: Process, subject: str, payload: bytes, content_type: str | bytes, reply: Reply | str | None
    ) -> None:
        """Hand a message to the broker, and from there to everybody who listens.

        A plain one has headers as a block instead of a content type, and the subject to answer on.
        """
        if subject.startswith(COMMANDS):
            self.commanded(subject, payload)
        elif isinstance(reply, str) and reply:
            self.asked(sender.name, subject, reply)
        if sender.mute or self.faults.hit("lost"):
            return
        at_s = self.scheduler.now_s + self.faults.delay_s()
        self.scheduler.at(_BROKER, at_s, self._route, subject, payload, content_type, reply)
        if self.faults.hit("doubled"):
            again_s = at_s + self.faults.delay_s()
            self.scheduler.at(_BROKER, again_s, self._route, subject, payload, content_type, reply)

    def _route(self, subject: str, payload: bytes, content_type: str | bytes, reply: Reply | str | None) -> None:
        found = self.listeners(subject)
        if not found and isinstance(reply, Reply):
            self.answer(None, reply, "no responders", b"", JSON)
        elif not found and reply:
            found, subject, payload, content_type, reply = self.listeners(reply), reply, b"", NOBODY_LISTENS, ""
        for each in found:
            at_s = self.scheduler.now_s + self.faults.delay_s()
            self.scheduler.at(each.process.loop, at_s, self._deliver, each, subject, payload, content_type, reply)

    def _deliver(self, to: Subscription, subject: str, payload: bytes, content_type: Any, reply: Any) -> None:
        if to.process.deaf or self.faults.hit("lost"):
            return
        to.route(subject, payload, content_type, reply)

    def answer(self, sender: Process | None, reply: Reply, status: str, payload: bytes, content_type: str) -> None:
        if sender is not None and (sender.mute or self.faults.hit("lost")):
            return
        at_s = self.scheduler.now_s + self.faults.delay_s()
        self.scheduler.at(reply.process.loop, at_s, self._answered, reply, status, payload, content_type)

    @staticmethod
    def _answered(reply: Reply, status: str, payload: bytes, content_type: str) -> None:
        if not reply.process.deaf and not reply.future.done():
            reply.future.set_result((status, payload, content_type))


class Stream:
    """Messages for ever, and the last of each subject."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []
        self.last: dict[str, Stored] = {}
        self.last_name = ""  # of the newest message
        self.waiting: list[asyncio.Future[None]] = []


class Core:
    """The account of the log: one leader, compare and swap per subject, written to disk before it is acknowledged."""

    def __init__(self, scheduler: Scheduler, faults: Faults):
        self.scheduler = scheduler
        self.faults = faults
        self.streams = {name: Stream() for name in (subjects.EVENTS, subjects.TELEMETRY, subjects.BLOBS)}
        self.stored: Callable[[Stored], None] = lambda stored: None  # told of every event
        self.away_until_s = 0.0  # the stream elects a leader: nobody answers

    def stream_of(self, subject: str) -> str:
        kind = subject.split(".")[2]
        return {"event": subjects.EVENTS, "telemetry": subjects.TELEMETRY, "blob": subjects.BLOBS}[kind]

    def store(self, messages: list[tuple[str, bytes, int | None]], name: str = "", right_after: str = "") -> list[int]:
        """All of them or none. Raises Conflict."""
        stream = self.streams[self.stream_of(messages[0][0])]
        if right_after and right_after != stream.last_name:
            raise Conflict(f"{messages[0][0]}: the last message is another")
        for subject, _, expected_seq in messages:
            last = stream.last.get(subject)
            if expected_seq is not None and expected_seq != (last.seq if last else 0):
                raise Conflict(f"{subject}: wrong last sequence")
        placed = []
        stream.last_name = name
        for subject, payload, _ in messages:
            stored = Stored(subject, len(stream.messages) + 1, payload)
            stream.messages.append(stored)
            stream.last[subject] = stored
            placed.append(stored.seq)
            if stream is self.streams[subjects.EVENTS]:
                self.stored(stored)
        waiting, stream.waiting = stream.waiting, []
        for future in waiting:
            loop = future.get_loop()
            assert isinstance(loop, ProcessLoop)
            self.scheduler.at(loop, self.scheduler.now_s, _wake, future)
        return placed


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class SimBus:
    """cyxnet.bus.Bus for one process. A central has two of them, one in each account."""

    connected = True
    requests_in_flight = 0

    def __init__(self, process: Process, edge: Edge, core: Core | None = None):
        self._process = process
        self._loop = process.loop
        self._edge = edge
        self._core_or_none = core
        self._faults = edge.faults
        self._scheduler = edge.scheduler

    def limit(self, rates: Any, on_flood: Any = None) -> None:
        pass

    def shut_out(self, identity: str) -> bool:
        return False

    def over_limit_ms(self, identity: str) -> int:
        return 0

    async def close(self) -> None:
        for listeners in self._edge.subscriptions.values():
            listeners[:] = [each for each in listeners if each.process is not self._process]

    async def pause(self, seconds: float) -> None:
        """A link here breaks without being noticed, so a pause always has its length."""
        await asyncio.sleep(seconds)

    async def round_trip(self) -> None:
        """There and back. Raises BusError when the link does not work in either direction."""
        await nap(self._loop, self._faults.delay_s() + self._faults.delay_s())
        if self._process.deaf or self._process.mute:
            await nap(self._loop, 2.0)
            raise BusError("the broker does not answer")

    # -- plain messages ------------------------------------------------------------------------------

    async def publish(self, subject: str, payload: bytes, content_type: str = MSGPACK) -> None:
        if subject.startswith(f"{subjects.ROOT}.telemetry."):
            self._core.store([(subject, payload, None)])
        else:
            self._edge.send(self._process, subject, payload, content_type, None)

    def say(self, subject: str, payload: bytes, content_type: str = MSGPACK) -> None:
        self._edge.send(self._process, subject, payload, content_type, None)

    async def subscribe(
        self, subject: str, handler: Any, *, queue: str = "", max_pending: int = 65_536, strangers: bool = False
    ) -> Any:
        messages: asyncio.Queue[tuple[str, bytes, dict[str, str]]] = asyncio.Queue()

        async def pump() -> None:
            while True:
                await handler(*await messages.get())

        self._loop.create_task(pump())
        return self._listen(subject, lambda s, p, c, _: messages.put_nowait((s, p, {"Content-Type": c})), queue)

    async def attend(self, subject: str, take: Callable[[Message], None], queue: str = "") -> Subscription:
        subscription = self.listen(subject, take, queue)
        await self.round_trip()
        return subscription

    def listen(self, subject: str, take: Callable[[Message], None], queue: str = "") -> Subscription:
        def route(said_on: str, payload: bytes, block: bytes, reply: str) -> None:
            message = Message(said_on, reply, payload, block)
            self._edge.answered(self._process.name, message)
            take(message)

        return self._listen(subject, route, queue)

    def send(self, subject: str, payload: bytes, headers: dict[str, str] | bytes, reply: str = "") -> None:
        block = headers if isinstance(headers, bytes) else block_of(headers)
        self._edge.send(self._process, subject, payload, block, reply)

    def _listen(self, subject: str, route: Route, queue: str = "") -> Subscription:
        subscription = Subscription(self._edge, self._process, subject, route, queue)
        self._edge.subscribe(subscription)
        return subscription

    async def request(
        self, subject: str, payload: bytes, *, content_type: str = JSON, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> tuple[bytes, dict[str, str]]:
        reply = Reply(self._process, self._loop.create_future())
        self._edge.send(self._process, subject, payload, content_type, reply)
        limit = self._loop.call_at(self._loop.time() + timeout_s, _give_up, reply, subject, timeout_s)
        try:
            status, data, answer_type = await reply.future
        finally:
            limit.cancel()
        if status == "no responders":
            raise BusError(f"nobody serves {subject}")
        if status:
            number, code, now_ms, message = status.split("|", 3)
            raise ApiError(code, message, int(number), now_ms=int(now_ms) or None)
        return data, {"Content-Type": answer_type}

    async def ask(
        self,
        subject: str,
        message: Any,
        reply: Any,
        *,
        content_type: str = MSGPACK,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        data, headers = await self.request(
            subject, encode(message, content_type), content_type=content_type, timeout_s=timeout_s
        )
        return decoded(reply, data, headers["Content-Type"], max_bytes=16_000_000)

    async def answer(
        self,
        subject: str,
        kinds: Any,
        handler: Callable[[str, Any], Awaitable[Any]],
        *,
        strangers: bool = False,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        def route(said_on: str, payload: bytes, content_type: str, reply: Reply | None) -> None:
            at_s = self._scheduler.now_s
            self._edge.came(self._process.name, said_on)

            async def work() -> bytes:
                answer = await handler(said_on, decoded(kinds, payload, content_type, max_bytes))
                if getattr(answer, "known", True):
                    self._edge.heard(self._process.name, said_on, at_s)
                return encode(answer, content_type)

            if reply is not None:
                self._work(work(), content_type, reply)

        self._listen(subject, route)

    async def serve(
        self, version: str, description: str, handlers: dict[str, Callable[[str, Any], Awaitable[Any]]]
    ) -> None:
        for name, handler in handlers.items():
            self._listen(subjects.api("*", name), self._endpoint(subjects.VERBS[name], handler), queue="service")

    def _endpoint(self, verb: subjects.Verb, handler: Callable[[str, Any], Awaitable[Any]]) -> Route:
        def route(said_on: str, payload: bytes, content_type: str, reply: Reply | None) -> None:
            async def work() -> bytes:
                message = payload if verb.raw_request else decoded(verb.request, payload or b"{}", content_type)
                answer = await handler(said_on.split(".")[3], message)
                return answer if verb.raw_reply else encode(answer, content_type)

            if reply is not None:
                self._work(work(), content_type, reply)

        return route

    def _work(self, answering: Awaitable[bytes], content_type: str, reply: Reply) -> None:
        async def work() -> None:
            try:
                self._edge.answer(self._process, reply, "", await answering, content_type)
            except Exception as error:
                self._edge.answer(self._process, reply, self._refusal(error), b"", JSON)

        self._loop.create_task(work())

    def _refusal(self, error: Exception) -> str:
        """The status a caller sees, as the bus makes it."""
        if isinstance(error, ApiError):
            return f"{error.status}|{error.code}|{error.now_ms or 0}|{error}"
        if isinstance(error, BusError):
            return f"503|{error.code}|0|{error}"
        if isinstance(error, CyxError):
            return f"{503 if error.code in TEMPORARY_CODES else 400}|{error.code}|0|{error}"
        self._scheduler.fail(f"{self._process.name}: a request met {type(error).__name__}: {error}")
        return "500|internal|0|a bug"

    # -- streams -------------------------------------------------------------------------------------

    @property
    def _core(self) -> Core:
        assert self._core_or_none is not None, "only central is in the CORE account"
        return self._core_or_none

    def _hop(self) -> Awaitable[None]:
        """One way to the broker or back; a process may die at any of them."""
        if self._faults.hit("crash_at_io"):
            self._process.crash("at an I/O boundary")
        return nap(self._loop, self._faults.delay_s())

    async def _leader(self) -> None:
        """On the way to the leader of the stream. Raises BusError when there is none, or no answer comes."""
        await self._hop()
        if self._scheduler.now_s < self._core.away_until_s or self._faults.hit("unreadable"):
            await nap(self._loop, min(ANSWER_TIMEOUT_S, 0.2 + self._scheduler.dice.expovariate(1.0)))
            raise BusError("no answer from the leader of the stream")

    async def ensure_stream(self, name: str, stream_subjects: list[str], **options: Any) -> Any:
        return StreamConfig(
            name=name, subjects=stream_subjects, **{k: v for k, v in options.items() if k != "replicas"}
        )

    async def append(
        self,
        subject: str,
        payload: bytes,
        expected_seq: int | None = None,
        *,
        name: str = "",
        right_after: str = "",
        stored: Callable[[int], None] | None = None,
    ) -> int:
        [seq] = await self._append([(subject, payload, expected_seq)], name, right_after)
        if stored:
            stored(seq)
            await self._hop()  # who waits for it goes on only later
        return seq

    def begin_append(self, subject: str, payload: bytes, *expected: int, **options: Any) -> "asyncio.Task[int]":
        return asyncio.ensure_future(self.append(subject, payload, *expected, **options))

    async def append_all(self, messages: list[tuple[str, bytes, int]]) -> list[int]:
        return await self._append([*messages], "", "")

    async def _append(self, messages: list[tuple[str, bytes, int | None]], name: str, right_after: str) -> list[int]:
        await self._hop()
        core = self._core
        if self._scheduler.now_s < core.away_until_s or self._faults.hit("unknown"):
            self._some_time(messages, name, right_after)
            wait_s = ANSWER_TIMEOUT_S if self._scheduler.dice.random() < 0.3 else 0.3
            await nap(self._loop, wait_s)  # the time limit, or the link breaks and says so at once
            raise AppendUnknown(f"no answer to the append to {messages[0][0]}")
        seqs = core.store(messages, name, right_after)
        await self._hop()
        return seqs

    def _some_time(self, messages: list[tuple[str, bytes, int | None]], name: str, right_after: str) -> None:
        """No answer comes: the message never arrived, was stored at once, or is stored when nobody expects it."""
        fate = self._scheduler.dice.random()
        if fate < 0.35:
            return
        at_s = self._scheduler.now_s + (0.0 if fate < 0.75 else self._scheduler.dice.uniform(0.1, 9.0))

        def arrive() -> None:
            try:
                self._core.store(messages, name, right_after)
            except Conflict:
                pass

        self._scheduler.at(_BROKER, max(at_s, self._core.away_until_s), arrive)

    async def last(self, stream: str, subject: str, *, any_replica: bool = False) -> Stored | None:
        await self._leader()
        found = self._core.streams[stream].last.get(subject)
        await self._hop()
        return found

    async def at(self, stream: str, seq: int) -> Stored | None:
        await self._leader()
        messages = self._core.streams[stream].messages
        return messages[seq - 1] if 0 < seq <= len(messages) else None

    async def dated(self, stream: str, subject: str) -> tuple[Stored, int] | None:
        found = await self.last(stream, subject)
        return (found, FIRST_WALL_MS + int(self._core.scheduler.now_s * 1000)) if found else None

    async def holds(self, stream: str, subject: str) -> bool:
        return await self.last(stream, subject) is not None

    async def last_seq(self, stream: str) -> int:
        await self._leader()
        found = len(self._core.streams[stream].messages)
        await self._hop()
        return found

    async def follow(
        self,
        stream: str,
        subject: str,
        after_seq: int,
        handler: Callable[[Stored], Awaitable[None]],
        rewound: Callable[[int], None],
        **options: Any,
    ) -> None:
        found = self._core.streams[stream]

        async def pump() -> None:
            seen = after_seq
            while True:
                while seen < len(found.messages):
                    if self._faults.hit("stalled"):
                        stall_s = self._scheduler.dice.expovariate(1 / 4)
                        until_s = self._scheduler.now_s + stall_s * 1.01  # by its own clock
                        self._process.stalled_until_s = max(until_s, self._process.stalled_until_s)
                        await nap(self._loop, stall_s)
                    await nap(self._loop, self._faults.delay_s())
                    for stored in found.messages[seen:]:
                        seen = stored.seq
                        await handler(stored)
                future: asyncio.Future[None] = self._loop.create_future()
                found.waiting.append(future)
                await future

        self._loop.create_task(pump())


def fingerprint(payload: bytes) -> int:
    """A number for the trace that is the same in every run and under every hash seed."""
    return zlib.crc32(payload)


_BROKER: Any = None  # the process of the broker, set by open_broker()


def open_broker(scheduler: Scheduler) -> None:
    global _BROKER
    _BROKER = ProcessLoop(scheduler, "broker")
