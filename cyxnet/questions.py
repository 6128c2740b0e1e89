"""Ask deployed models over the network: a question to whichever replica is next, its answer whole or as it is made.

A question may be asked again: it changes nothing at the replica, and its answer goes to a subject of its own, so the
late answer of a replica that was given up is nobody's. It is asked again, of whoever is next then, when nobody
serves, when a replica is about to end or has too much to do, when it does not even say that it is at it for a while,
when the link to the broker is lost, and when the answer to a whole question breaks off. Of a stream, what was given out
cannot be taken back: there a break is an error.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from cyxnet import asking, subjects
from cyxnet.asking import BadQuestion, Part, Question
from cyxnet.bus import Bus, BusError
from cyxnet.connection import Message
from cyxnet.outcomes import ApiError, LinkLost

PATIENCE_S = 60.0  # with everything together, until a question has its first part
SILENCE_S = 2.0  # of a replica, before another one is asked; after several in a row longer, up to LONGEST_SILENCE_S
SHORTEST_SILENCE_S = 0.75  # where answers usually come at once; a replica says within half of it that it is at it
USUALLY_TIMES, USUALLY_WEIGHT = 20, 0.1  # silence is so many times the usual wait, in which the newest counts so much
MOST_COPIES = 4  # of a question whose replica fell silent, to as many others
EQUAL_SILENCES = 8  # of replicas in a row, before each is given twice as long as the one before
LONGEST_SILENCE_S = 30.0  # a replica of an earlier version says nothing while it is at it
LATE_S = 0.1  # who notices a silence so late was busy with something else, and did not listen
LONG_SILENCE_S = 5.0  # of one that is in the middle of its answer, which cannot be asked of another
BETWEEN_PARTS_S = 60.0  # of one that never said that it is at it
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # before a question is asked again
ACKNOWLEDGE_EVERY = asking.WINDOW // 4  # parts that were taken; a replica waits when too many are not
TRY_ANOTHER = (429, 503)  # statuses: this replica cannot now, the next one may
MOST_WAITING = 4 * asking.WINDOW  # parts that came and were not taken; a replica that keeps to the rules has fewer
LARGEST_ANSWER_BYTES = 2**30  # of one that is wanted whole
DEPLOYMENTS_REMEMBERED = 1000
NOBODY, NO_LINK = "nobody serves it", "the link to the broker is lost"


class NoReplica(ApiError):
    """Nobody answers for a deployment now."""

    def __init__(self, deployment: str, patience_s: float, why: str):
        text = f"no replica of {deployment} answered within {patience_s:g} s ({why}); see: cyx deployments"
        super().__init__("no_replica", text, 503)


class BrokenOff(ApiError):
    """An answer ended in the middle."""

    def __init__(self, why: str):
        super().__init__("broken_off", f"the answer broke off ({why}); ask again", 503)


class Questions:
    """The questions of one caller, on its connection."""

    def __init__(self, bus: Bus, caller: str):
        self._bus = bus
        self._caller = caller
        self._open: dict[str, _Try] = {}  # by token
        self._usual_s: dict[str, float] = {}  # deployment -> how long first parts take, the newest counting most
        self._listening: asyncio.Task[Any] | None = None

    async def ask(
        self, deployment: str, question: Question, *, patience_s: float = PATIENCE_S, silence_s: float = SILENCE_S
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer, as they come; the first one's status says whether it is a refusal.

        Whoever stops early tells the replica to. Raises NoReplica, BrokenOff after the first part, BusError, and
        ApiError for a question that is too large for the network.
        """
        asking.refuse_large(len(question.body))
        await self._listen()
        clock = asyncio.get_running_loop().time
        until_s, tries, silences, why = clock() + patience_s, 0, 0, NOBODY
        while (left_s := until_s - clock()) > 0:
            silent_s = self._silence_s(deployment, silence_s, silences)
            pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
            tries += 1
            begun_s = clock()
            # a broker that does not know yet that a replica is gone lets it take its turn: then several are asked
            copies = 1 if question.accept == asking.EVENTS else min(2**silences, MOST_COPIES)
            with _Try(self, deployment, question, left_s, copies) as one:
                try:
                    one.send()
                    first = await one.next(left_s, silent_s)
                except LinkLost:
                    first, why = None, NO_LINK
                except (_Nobody, BrokenOff) as error:
                    first, why = None, NOBODY if isinstance(error, _Nobody) else str(error)
                else:
                    if first is None:  # it is gone, or stands still: it is not too much to do that keeps it
                        why, silences, pause_s = f"silent for {silent_s:g} s", silences + 1, 0.0
                    else:
                        why = f"it answered {first.status}"
                        self._took(deployment, clock() - begun_s)
                        pause_s = max(pause_s, retry_after_s(first))
                        if first.status not in TRY_ANOTHER or clock() + pause_s >= until_s:
                            yield first
                            while not one.ended:
                                yield await one.rest()
                            return
            await self._bus.pause(min(pause_s, max(until_s - clock(), 0.0)))
        raise NoReplica(deployment, patience_s, why)

    async def answer(
        self, deployment: str, question: Question, *, patience_s: float = PATIENCE_S, silence_s: float = SILENCE_S
    ) -> Part:
        """The whole answer as one part; asked again when it breaks off.

        Raises NoReplica, BrokenOff when it still breaks off at the end of its patience, BusError, ApiError as ask()
        does, and for an answer of more than LARGEST_ANSWER_BYTES.
        """
        clock = asyncio.get_running_loop().time
        until_s, left_s = clock() + patience_s, patience_s
        for pause_s in itertools.chain(PAUSES_S, itertools.repeat(PAUSES_S[-1])):
            try:
                async with contextlib.aclosing(
                    self.ask(deployment, question, patience_s=left_s, silence_s=silence_s)
                ) as parts:
                    return await _whole(parts)
            except BrokenOff:
                if (left_s := until_s - clock() - pause_s) <= 0:
                    raise
            await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def _listen(self) -> None:
        """Hear every answer to this caller, from the first question on."""
        if self._listening is None:
            hear = self._bus.attend(subjects.reply(self._caller, "*"), self._take)
            self._listening = asyncio.ensure_future(hear)
        try:
            await asyncio.shield(self._listening)
        except BusError:
            self._listening = None
            raise

    def _take(self, message: Message) -> None:
        one = self._open.get(subjects.last_token(message.subject))
        if one is not None:  # else given up
            one.take(message)

    def _silence_s(self, deployment: str, longest_s: float, silences: int) -> float:
        """How long a replica may say nothing at all, when so many in a row did."""
        if silences >= EQUAL_SILENCES:
            return min(longest_s * 2 ** (silences + 1 - EQUAL_SILENCES), max(longest_s, LONGEST_SILENCE_S))
        usual_s = self._usual_s.get(deployment, longest_s)
        return min(longest_s, max(SHORTEST_SILENCE_S, USUALLY_TIMES * usual_s))

    def _took(self, deployment: str, took_s: float) -> None:
        before_s = self._usual_s.get(deployment, took_s)
        if len(self._usual_s) >= DEPLOYMENTS_REMEMBERED and deployment not in self._usual_s:
            self._usual_s.clear()
        self._usual_s[deployment] = before_s + USUALLY_WEIGHT * (took_s - before_s)


class _Nobody(Exception):
    """The broker says that nobody listens where a question went."""


class _Try:
    """One time that a question is asked. Used with `with`: what is left of its answer at the end is stopped."""

    def __init__(self, questions: Questions, deployment: str, question: Question, wait_s: float, copies: int = 1):
        """copies: so often it is sent, to whoever is next each time; a replica passes over all but the first.

        Whichever answers first is heard, and an answer in parts may break off because both do.
        """
        self._questions, self._deployment = questions, deployment
        self._question, self._wait_s, self._copies = question, wait_s, copies
        self._clock = asyncio.get_running_loop().time
        self._alive_s = 0.0  # when the replica last said that it is at it
        self._token = secrets.token_hex(16)
        self._arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._parts = 0
        self._replica = subjects.EVERY  # who answers, once a part of it says so
        self.ended = False

    def __enter__(self) -> "_Try":
        self._questions._open[self._token] = self
        return self

    def send(self) -> None:
        """Raises BusError."""
        asks, caller = self._questions, self._questions._caller
        # in whole seconds, so that headers are mostly the same, over and over
        said = {"Cyx-Timeout-Ms": str(1000 * math.ceil(self._wait_s))}
        headers = asking.question_headers(self._question) | said | asking.ALIVE
        reply = subjects.reply(caller, self._token)
        for _ in range(self._copies):
            asks._bus.send(subjects.infer(self._deployment, caller), self._question.body, headers, reply)

    def __exit__(self, *_: object) -> None:
        del self._questions._open[self._token]
        if not self.ended:
            self._tell(None)

    def take(self, message: Message) -> None:
        if not message.data and asking.says_alive(message.data, message.headers):
            self._alive_s = self._clock()
        elif self._arrived.qsize() <= MOST_WAITING:  # else of who does not wait for us
            self._arrived.put_nowait(message)

    async def next(self, within_s: float, silence_s: float) -> Part | None:
        """The next part; None when none comes in time, or nothing was heard of it for so long.

        Raises _Nobody, BrokenOff.
        """
        message = await self._heard(within_s, silence_s)
        if message is None:
            return None
        if message.status == "503" and not self._parts:
            self.ended = True
            raise _Nobody
        try:
            part = asking.part_of(message.data, message.headers)
        except BadQuestion as error:
            raise BrokenOff(str(error)) from None
        if part.number != self._parts:
            raise BrokenOff(f"part {self._parts} is missing")
        self._parts += 1
        self.ended = part.end
        replica = subjects.last_token(message.reply)
        if message.reply == subjects.taken(self._deployment, self._questions._caller, replica):
            self._replica = replica
        if not part.end and self._parts % ACKNOWLEDGE_EVERY == 0:
            self._tell(self._parts)
        return part

    async def _heard(self, within_s: float, silence_s: float) -> Message | None:
        """None after a silence. The time in which this process did not listen is none: once, it waits as long again."""
        begun_s, excused_s = self._clock(), 0.0
        while True:
            until_s = min(begun_s + within_s, max(begun_s, self._alive_s) + silence_s + excused_s)
            try:
                async with asyncio.timeout_at(until_s):
                    return await self._arrived.get()
            except TimeoutError:
                now_s = self._clock()
                if not self._arrived.empty():  # it came just now
                    return self._arrived.get_nowait()
                if now_s - until_s > LATE_S and not excused_s:
                    excused_s = 2 * (now_s - until_s)
                if now_s >= min(begun_s + within_s, max(begun_s, self._alive_s) + silence_s + excused_s):
                    return None

    async def rest(self) -> Part:
        """The next part of an answer that has begun. Raises BrokenOff."""
        silence_s = LONG_SILENCE_S if self._alive_s else BETWEEN_PARTS_S
        part = await self.next(BETWEEN_PARTS_S, silence_s)
        if part is None:
            raise BrokenOff(f"nothing came for {silence_s:g} s")
        if part.status >= 400:
            raise BrokenOff(f"status {part.status}")
        return part

    def _tell(self, parts: int | None) -> None:
        """How many were taken; None: no more are wanted."""
        replica = self._replica if parts is not None or self._copies == 1 else subjects.EVERY
        subject = subjects.taken(self._deployment, self._questions._caller, replica)
        with contextlib.suppress(BusError):  # the link is down: the replica notices by itself
            self._questions._bus.send(subject, asking.progress(self._token, parts), {})


def retry_after_s(part: Part) -> float:
    """How long a refusal asks to wait; 0 when it does not say."""
    for name, unit in (("Retry-After-Ms", 1000), ("Retry-After", 1)):
        text = part.headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text) / unit
    return 0.0


async def _whole(parts: AsyncIterator[Part]) -> Part:
    first, body = await anext(parts), bytearray()
    body += first.body
    async for part in parts:
        body += part.body
        if len(body) > LARGEST_ANSWER_BYTES:
            raise ApiError("too_large", f"the answer has more than {LARGEST_ANSWER_BYTES} bytes", 502)
    return Part(body=bytes(body), status=first.status, content_type=first.content_type, headers=first.headers)
