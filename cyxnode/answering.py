"""Questions from the network, put to a replica; its answers, to who asked.

Who asks is a token of the subject, which the broker holds everyone to; an answer goes to that caller's own subject and
nowhere else. An answer in parts waits for its asker: each part names the subject on which to say how many were taken
(cyxnet/asking.py), and a window of them is on its way at most.
"""

import asyncio
import contextlib
import functools
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import asking, subjects
from cyxnet.asking import Part, Question
from cyxnet.bus import Bus
from cyxnet.connection import Message, block_of
from cyxnet.inference import Fault, Refusal, fault_type
from cyxnet.outcomes import ApiError, BusError
from cyxnet.ratelimit import Places
from cyxnode import exchange as x

MAX_IN_FLIGHT = 1024  # of which one caller gets half at the most
MAX_BYTES = 256 * 2**20  # of the questions in flight, of which one caller gets half as well
LOOK_S = asking.ALIVE_EVERY_S  # how late it may be noticed that nobody waits any more
BEATS_FOR_S = 3 * asking.ALIVE_EVERY_S  # so long one beat of the replica's process is believed
BUSY_RETRY_MS = 200
GOODBYE_S = 2.0  # for the broker to send what was on its way here when we ended
KEPT_HEADERS, KEPT_HEADER_BYTES = 256, 512  # of different ones, whose meaning is remembered


class Mine(Struct, frozen=True, kw_only=True):
    """What is answered here, and to whom: to its owner, or (public) to anybody; and to central as this replica."""

    deployment: str
    owner: str
    public: bool
    replica: str


class _Asked:
    """A question in flight."""

    __slots__ = ("begun_s", "caller", "content_type", "desk", "number", "parts", "reply", "size", "taken", "until_s")

    def __init__(self, desk: "Answering", caller: str, reply: str, size: int, begun_s: float, until_s: float):
        self.begun_s = begun_s  # for ever, where who asks does not want to hear that it is being answered
        self.desk, self.caller, self.reply, self.size, self.until_s = desk, caller, reply, size, until_s
        self.number = 0
        self.parts = self.taken = 0  # sent, and taken by who asks
        self.content_type = ""

    def tell(self, frame: x.Reply | x.Part | None) -> None:
        self.desk._tell(self, frame)


class Answering:
    """Between a connection of its own and a replica: open(), stop() where there is time, close()."""

    def __init__(self, bus: Bus, replica: x.Exchange, mine: Mine, clock: Callable[[], float] = time.monotonic):
        self.refused = 0  # questions that the replica never saw
        self._bus, self._replica, self._mine, self._clock = bus, replica, mine, clock
        self._token = secrets.token_hex(8)  # by which askers mean us
        self._places = Places(MAX_IN_FLIGHT)
        self._asked: dict[str, _Asked] = {}  # by the subject of the answer
        self._room = Places(MAX_BYTES)
        self._known: dict[bytes, Question] = {}
        self._blocks: dict[tuple[int, str], bytes] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._questions: Any = None  # the subscription to them, while there is one
        self._closed = False
        self._looking: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        return len(self._asked)

    async def open(self) -> None:
        """From here on it is asked. Raises BusError."""
        deployment = self._mine.deployment
        for replica in (self._token, subjects.EVERY):
            await self._bus.attend(subjects.taken(deployment, "*", replica), self._on_taken)
        await self._bus.attend(subjects.ping(self._mine.replica), self._on_ping)
        infer = subjects.infer(deployment, "*")
        self._questions = await self._bus.attend(infer, self._on_question, subjects.REPLICAS)
        self._looking = asyncio.create_task(self._look())

    async def stop(self, within_s: float | None) -> None:
        """Take no new questions; wait until those in flight are answered, for within_s at most (None: to their end)."""
        try:
            async with asyncio.timeout(within_s):
                with contextlib.suppress(BusError):  # the link is down: what was taken is answered all the same
                    await self._take_no_more()
                await self._idle.wait()
                await self._bus.round_trip()  # and the last answer to the broker
        except (TimeoutError, BusError):
            pass

    async def close(self) -> None:
        """Whoever still waits is told that there is no answer; so is whoever asked while we ended."""
        self._closed = True
        for asked in list(self._asked.values()):
            self._replica.drop(asked.number)
            self._tell(asked, None)
        if self._looking:
            self._looking.cancel()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._take_no_more()
                await self._bus.round_trip()
        except (TimeoutError, BusError):
            pass  # who asked hears nothing, and asks again

    async def _take_no_more(self) -> None:
        """What the broker sent before has been given to us then. Raises BusError."""
        questions, self._questions = self._questions, None
        if questions is not None:
            with contextlib.suppress(Exception):  # nats-py's, when the link is down
                await questions.unsubscribe()
            await self._bus.round_trip()

    # -- questions -----------------------------------------------------------------------------------

    def _on_question(self, message: Message) -> None:
        caller, own = asking.asker(message.subject)
        if not message.reply.startswith(own) or message.reply in self._asked:  # the answer would go to another
            return
        try:
            question, size = self._question(message), len(message.data)
            asking.refuse_large(size)
            self._refuse_unless_welcome(caller, size)
        except CyxError as error:
            self.refused += 1
            self._send(message.reply, _refusal(error), None)
            return
        now_s = self._clock()
        begun_s = now_s if question.alive else math.inf
        asked = _Asked(self, caller, message.reply, size, begun_s, now_s + question.timeout_ms / 1000)
        self._asked[message.reply] = asked
        self._idle.clear()
        method = "POST" if size else "GET"
        asked.number = self._replica.ask(
            method, question.route, question.content_type, question.accept, message.data, asked.tell, caller
        )

    def _on_ping(self, message: Message) -> None:
        """Central asks whether the model answers: its process does, however much there is to do."""
        if message.reply.startswith(subjects.reply(subjects.CENTRAL, "")):
            self._replica.ask("GET", asking.PING, asking.JSON, "", b"", functools.partial(self._pong, message.reply))

    def _pong(self, reply: str, frame: x.Reply | x.Part | None) -> None:
        if isinstance(frame, x.Reply):
            self._send(reply, Part(status=frame.status), None)

    def _question(self, message: Message) -> Question:
        """What the headers say; they are mostly the same, over and over."""
        known = self._known.get(message.block)
        if known is None:
            asking.refuse_many_headers(message.block)
            known = asking.question_of(b"", message.headers)
            if len(message.block) <= KEPT_HEADER_BYTES:
                if len(self._known) >= KEPT_HEADERS:
                    self._known.clear()
                self._known[message.block] = known
        return known

    def _refuse_unless_welcome(self, caller: str, size: int) -> None:
        """Raises ApiError: 403 for whom it is not for, 429 when too much is in flight, 503 when it has ended."""
        mine = self._mine
        if self._closed:
            raise _broken_off()
        if not (mine.public or caller == mine.owner):
            raise ApiError("not_allowed", f"{mine.deployment} answers its owner only, and {caller} is not", 403)
        if not self._replica.is_full and self._places.take(caller):
            if self._room.take(caller, size):
                return
            self._places.give_back(caller)
        raise ApiError("overloaded", "too many questions are in flight; try again", 429, BUSY_RETRY_MS)

    def _on_taken(self, message: Message) -> None:
        """How many parts of an answer were taken in all, or that it shall stop. Of no answer of ours: nothing."""
        said, caller = asking.progress_of(message.data), message.subject.split(".")[-2]
        asked = said and self._asked.get(subjects.reply(caller, said[0]))
        if not (said and asked):
            return
        if said[1] is None:
            self._end(asked)
        else:
            taken = min(said[1], asked.parts)
            self._replica.took(asked.number, taken - asked.taken)
            asked.taken = max(taken, asked.taken)

    async def _look(self) -> None:
        """End the questions that nobody waits for any more; of the others, say that they are being answered."""
        loop, told = asyncio.get_running_loop(), block_of(asking.ALIVE)
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self._clock()
            if loop.time() - self._replica.beat_s < BEATS_FOR_S:
                with contextlib.suppress(BusError):  # the link is down, and who asks will ask again
                    for asked in self._asked.values():
                        if now_s - asked.begun_s >= asking.ALIVE_EVERY_S / 2:
                            self._bus.send(asked.reply, b"", told)
            for asked in [asked for asked in self._asked.values() if not asked.parts and asked.until_s < now_s]:
                self._end(asked)

    def _end(self, asked: _Asked) -> None:
        self._replica.drop(asked.number)
        self._forget(asked)

    def _forget(self, asked: _Asked) -> None:
        if self._asked.pop(asked.reply, None):
            self._places.give_back(asked.caller)
            self._room.give_back(asked.caller, asked.size)
            if not self._asked:
                self._idle.set()

    # -- answers -------------------------------------------------------------------------------------

    def _tell(self, asked: _Asked, frame: x.Reply | x.Part | None) -> None:
        if frame is None or isinstance(frame, x.Part) and frame.broken:
            self._forget(asked)
            self._send(asked.reply, replace(_refusal(_broken_off()), number=asked.parts), None)
            return
        if isinstance(frame, x.Reply) and not (frame.more or frame.retry_after_ms):
            if (block := self._block(frame)) is not None:
                self._forget(asked)
                self._put(asked.reply, frame.body, block)
                return
        headers, status = {}, 200
        if isinstance(frame, x.Reply):
            asked.content_type, status = frame.content_type, frame.status
            if frame.retry_after_ms:
                headers = retry_after(frame.retry_after_ms)
        part = Part(
            body=frame.body,
            status=status,
            content_type=asked.content_type,
            number=asked.parts,
            end=not frame.more,
            headers=headers,
        )
        asked.parts += 1
        if part.end:
            self._forget(asked)
        if not self._send(asked.reply, part, asked):
            self._end(asked)

    def _block(self, frame: x.Reply) -> bytes | None:
        """The headers of the usual answer, of one part; they are mostly the same, over and over. None where the type
        of its content is no header.
        """
        kind = (frame.status, frame.content_type)
        block = self._blocks.get(kind)
        if block is None and frame.content_type.isprintable():
            block = block_of(asking.part_headers(Part(status=frame.status, content_type=frame.content_type)))
            if len(block) <= KEPT_HEADER_BYTES:
                if len(self._blocks) >= KEPT_HEADERS:
                    self._blocks.clear()
                self._blocks[kind] = block
        return block

    def _send(self, reply: str, part: Part, asked: _Asked | None) -> bool:
        taken = ""
        if asked is not None and not part.end:
            taken = subjects.taken(self._mine.deployment, asked.caller, self._token)
        return self._put(reply, part.body, asking.part_headers(part), taken)

    def _put(self, subject: str, body: bytes, headers: dict[str, str] | bytes, reply: str = "") -> bool:
        """False when it cannot be sent: the link is down, and who asks will ask again."""
        try:
            self._bus.send(subject, body, headers, reply)
        except BusError:
            return False
        return True


def retry_after(wait_ms: int) -> dict[str, str]:
    return {"Retry-After": str(-(-wait_ms // 1000)), "Retry-After-Ms": str(wait_ms)}


def _broken_off() -> ApiError:
    return ApiError("broken_off", "the replica ended before its answer did; ask again", 503, BUSY_RETRY_MS)


def _refusal(error: CyxError) -> Part:
    """A whole answer that is a no, in the shape that it has over HTTP."""
    status = getattr(error, "status", 400)
    fault = Fault(message=str(error)[:2000], type=fault_type(status), param=None, code=error.code)
    wait_ms = getattr(error, "retry_after_ms", None)
    headers = retry_after(wait_ms) if wait_ms else {}
    return Part(body=msgspec.json.encode(Refusal(error=fault)), status=status, headers=headers)
