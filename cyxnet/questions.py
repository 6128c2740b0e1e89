"""Ask deployed models over the network: a question to whichever replica is next, its answer whole or as it is made.

A question may be asked again: it changes nothing at the replica, and its answer goes to a subject of its own, so the
late answer of a replica that was given up is nobody's. It is asked again, of whoever is next then, when nobody
serves, when a replica is about to end or has too much to do, when it says nothing for a while, and when the answer to
a whole question breaks off. Of a stream, what was given out cannot be taken back: there a break is an error.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from cyxnet import asking, subjects
from cyxnet.asking import BadQuestion, Part, Question
from cyxnet.bus import Bus, BusError
from cyxnet.connection import Message
from cyxnet.outcomes import ApiError

PATIENCE_S = 60.0  # with everything together, until a question has its first part
SILENCE_S = 10.0  # of a replica, before another one is asked; twice as long the next time
BETWEEN_PARTS_S = 60.0
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # before a question is asked again
ACKNOWLEDGE_EVERY = asking.WINDOW // 4  # parts that were taken; a replica waits when too many are not
TRY_ANOTHER = (429, 503)  # statuses: this replica cannot now, the next one may
MOST_WAITING = 4 * asking.WINDOW  # parts that came and were not taken; a replica that keeps to the rules has fewer
LARGEST_ANSWER_BYTES = 2**30  # of one that is wanted whole
LARGEST_QUESTION_BYTES = 2**20  # the broker takes messages of 2 MiB, headers included
NOBODY = "nobody serves it"


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
        self._open: dict[str, asyncio.Queue[Message]] = {}  # by token
        self._listening: asyncio.Task[Any] | None = None

    async def ask(
        self, deployment: str, question: Question, *, patience_s: float = PATIENCE_S, silence_s: float = SILENCE_S
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer, as they come; the first one's status says whether it is a refusal.

        Whoever stops early tells the replica to. Raises NoReplica, BrokenOff after the first part, BusError, and
        ApiError for a question that is too large for the network.
        """
        if len(question.body) > LARGEST_QUESTION_BYTES:
            size = len(question.body)
            why = f"expected a question of at most {LARGEST_QUESTION_BYTES} bytes over the network, got {size}"
            raise ApiError("too_large", why, 413)
        await self._listen()
        clock = asyncio.get_running_loop().time
        until_s, tries, silences, why = clock() + patience_s, 0, 0, NOBODY
        while (left_s := until_s - clock()) > 0:
            wait_s = min(silence_s * 2**silences, left_s)
            pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
            tries += 1
            with _Try(self, deployment, question, wait_s) as one:
                try:
                    first = await one.next(wait_s)
                except (_Nobody, BrokenOff) as error:
                    first, why = None, NOBODY if isinstance(error, _Nobody) else str(error)
                else:
                    why = f"silent for {wait_s:g} s" if first is None else f"it answered {first.status}"
                    silences += first is None
                    if first is not None:
                        pause_s = max(pause_s, retry_after_s(first))
                        if first.status not in TRY_ANOTHER or clock() + pause_s >= until_s:
                            yield first
                            while not one.ended:
                                yield await one.rest()
                            return
            await asyncio.sleep(min(pause_s, max(until_s - clock(), 0.0)))
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
        arrived = self._open.get(subjects.last_token(message.subject))
        if arrived is not None and arrived.qsize() <= MOST_WAITING:  # else given up, or of who does not wait for us
            arrived.put_nowait(message)


class _Nobody(Exception):
    """The broker says that nobody listens where a question went."""


class _Try:
    """One time that a question is asked. Used with `with`: what is left of its answer at the end is stopped."""

    def __init__(self, questions: Questions, deployment: str, question: Question, wait_s: float):
        self._questions, self._deployment = questions, deployment
        self._question, self._wait_s = question, wait_s
        self._token = secrets.token_hex(16)
        self._arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._parts = 0
        self.ended = False

    def __enter__(self) -> "_Try":
        asks, caller = self._questions, self._questions._caller
        asks._open[self._token] = self._arrived
        headers = asking.question_headers(self._question) | {"Cyx-Timeout-Ms": str(max(1, int(self._wait_s * 1000)))}
        reply = subjects.reply(caller, self._token)
        try:
            asks._bus.send(subjects.infer(self._deployment, caller), self._question.body, headers, reply)
        except BusError:
            del asks._open[self._token]
            raise
        return self

    def __exit__(self, *_: object) -> None:
        del self._questions._open[self._token]
        if not self.ended:
            self._tell(asking.STOP)

    async def next(self, within_s: float) -> Part | None:
        """The next part; None when none comes in time. Raises _Nobody, BrokenOff."""
        try:
            async with asyncio.timeout(within_s):
                message = await self._arrived.get()
        except TimeoutError:
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
        if not part.end and self._parts % ACKNOWLEDGE_EVERY == 0:
            self._tell(str(self._parts).encode())
        return part

    async def rest(self) -> Part:
        """The next part of an answer that has begun. Raises BrokenOff."""
        part = await self.next(BETWEEN_PARTS_S)
        if part is None:
            raise BrokenOff(f"nothing came for {BETWEEN_PARTS_S:g} s")
        if part.status >= 400:
            raise BrokenOff(f"status {part.status}")
        return part

    def _tell(self, what: bytes) -> None:
        subject = subjects.taken(self._deployment, self._questions._caller, self._token)
        with contextlib.suppress(BusError):  # the link is down: the replica notices by itself
            self._questions._bus.send(subject, what, {})


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
