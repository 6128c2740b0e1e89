"""A place in a stream, and the consumer that moves it.

A consumer of the broker is only a means: it is made anew, from the place that was reached, whenever it may have stopped
or skipped. That is when the link broke, when a delivery or a heartbeat is missing, and (the watchdog) when the stream
has grown and nothing came for `stall_s`. nats-py's own ordered consumer takes eight seconds to notice a broker that
came back, and one that had received nothing yet begins again at the first message.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from cyxnet.connection import Message
from cyxnet.outcomes import BusError, Stored

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0  # the broker says that often that it has nothing to say
MISSED_HEARTBEATS = 2.5
STALL_S = 10.0
RENEW_PAUSE_S = 0.2
AT_ONCE = 64  # messages of those that arrived; then everybody else has a turn
REMEMBERED = 64  # messages to compare with the stream after a break


class Link(Protocol):
    """What a follower needs of a bus."""

    @property
    def connected(self) -> bool: ...

    async def last_seq(self, stream: str) -> int: ...

    async def at(self, stream: str, seq: int) -> Stored | None:
        """The message at a sequence, None when it is not kept. Raises BusError."""

    async def consume(self, stream: str, subject: str, first_seq: int, deliver: Any, heartbeat_s: float) -> Any:
        """Have every message from `first_seq` on given to `deliver`; returns the subscription. Raises BusError."""

    async def reply(self, subject: str) -> None:
        """An empty message: the answer to flow control."""


class Follower:
    """Calls handler for every message after `after_seq`, in order and each once.

    rewound(seq) is called when the stream is no longer what was seen of it, but only up to `seq`: the broker lost its
    newest messages, and gives their sequences to others. That is looked for whenever a consumer is made anew, by one
    message if all is well. after_sha256: of the message at `after_seq` (hex), if it is known.
    """

    def __init__(
        self,
        link: Link,
        stream: str,
        subject: str,
        after_seq: int,
        handler: Callable[[Stored], Awaitable[None]],
        rewound: Callable[[int], None],
        stall_s: float = STALL_S,
        after_sha256: str = "",
    ):
        self._link = link
        self._stream = stream
        self._subject = subject
        self.seen_seq = after_seq
        self._after = (after_seq, after_sha256)
        self._remembered: deque[Stored] = deque(maxlen=REMEMBERED)  # the newest that were seen
        self.renewals = 0
        self._handler = handler
        self._rewound = rewound
        self._stall_s = stall_s
        self._subscription: Any = None
        self._consumer_seq = 0  # deliveries of the present consumer
        self._heard_s = 0.0  # loop time of its last sign of life
        self._level_s = -math.inf  # loop time when all that the stream held had arrived here, and was taken in since
        self._looked = (0.0, after_seq, after_seq)  # the watchdog's last look: loop time, seen_seq, end of the stream
        self._doubt = asyncio.Event()
        self._arrived: deque[tuple[int, float, Message]] = deque()  # with the renewal that brought it, and loop time
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow. Raises BusError when that cannot even begin."""
        await self._renew()
        self._looked = (asyncio.get_running_loop().time(), self.seen_seq, self.seen_seq)
        self._tasks = [asyncio.get_running_loop().create_task(work()) for work in (self._keep, self._take)]

    def doubt(self) -> None:
        """The present consumer may not be trusted any more: replace it soon."""
        self._doubt.set()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(HEARTBEAT_S, self._stall_s / 2) / 2):
                    await self._doubt.wait()
            if not self._link.connected:  # the reconnect raises the doubt, or finds it raised
                await asyncio.sleep(RENEW_PAUSE_S)  # a doubt is not waited for: without this nothing else would run
                continue
            try:
                if self._doubt.is_set() or self._silent() or await self._stalled():
                    self._doubt.clear()
                    await self._renew()
            except BusError as error:
                log.info("following %s again is held up: %s", self._stream, error)
                self._doubt.set()
                await asyncio.sleep(RENEW_PAUSE_S)

    @property
    def silent_s(self) -> float:
        """How long the broker has given no sign of life. What it said may still wait to be taken in: see behind_s."""
        return asyncio.get_running_loop().time() - self._heard_s

    @property
    def behind_s(self) -> float:
        """All that the stream got longer ago than so many seconds has been taken in; inf before the first time."""
        return asyncio.get_running_loop().time() - self._level_s

    def _silent(self) -> bool:
        return self.silent_s > MISSED_HEARTBEATS * HEARTBEAT_S

    async def _stalled(self) -> bool:
        """The watchdog: whether nothing came since the last look, although there was more to come already then."""
        now, (looked_s, seen_then, last_then) = asyncio.get_running_loop().time(), self._looked
        if now - looked_s < self._stall_s / 2:
            return False
        self._looked = (now, self.seen_seq, await self._link.last_seq(self._stream))
        stuck = self.seen_seq == seen_then < last_then
        if stuck:
            log.warning(
                "%s ended at %d, and nothing came after %d: following anew", self._stream, last_then, self.seen_seq
            )
        return stuck

    async def _renew(self) -> None:
        """Follow from what was seen last. Raises BusError."""
        seen_seq = self.seen_seq  # the present consumer may bring more while the stream is asked
        same_until = await self._same_until(min(seen_seq, await self._link.last_seq(self._stream)))
        if same_until < seen_seq:
            self.seen_seq = same_until
            while self._remembered and self._remembered[-1].seq > same_until:
                self._remembered.pop()
            self._rewound(same_until)
        old, self._subscription = self._subscription, None
        self.renewals += 1
        self._consumer_seq = 0
        if old:
            with contextlib.suppress(Exception):
                await old.unsubscribe()
        deliver = functools.partial(self._deliver, self.renewals)
        self._subscription = await self._link.consume(
            self._stream, self._subject, self.seen_seq + 1, deliver, HEARTBEAT_S
        )
        self._heard_s = asyncio.get_running_loop().time()

    async def _same_until(self, seq: int) -> int:
        """Up to where the stream is what was seen of it, as far as `seq`. Raises BusError."""
        places = [(stored.seq, stored.sha256) for stored in self._remembered if stored.seq <= seq]
        if self._after[1] and self._after[0] <= seq:
            places.insert(0, self._after)
        if not places or await self._is_at(*places[-1]):
            return seq
        same, other = -1, len(places) - 1  # what was lost was at the end: halve what is between
        while other - same > 1:
            middle = (same + other) // 2
            if await self._is_at(*places[middle]):
                same = middle
            else:
                other = middle
        return places[same][0] if same >= 0 else 0

    async def _is_at(self, seq: int, sha256: str) -> bool:
        """What is not kept any more is no proof of another."""
        found = await self._link.at(self._stream, seq)
        return found is None or found.sha256 == sha256

    def _deliver(self, renewal: int, message: Message) -> None:
        if renewal == self.renewals:  # else it is a late word of a consumer that was replaced
            self._heard_s = asyncio.get_running_loop().time()
            self._arrived.append((renewal, self._heard_s, message))
            self._some.set()

    async def _take(self) -> None:
        """Work off what arrived, in order."""
        while True:
            await self._some.wait()
            self._some.clear()
            for count in itertools.count(1):
                if not self._arrived:
                    break
                if count % AT_ONCE == 0:
                    await asyncio.sleep(0)
                renewal, arrived_s, message = self._arrived.popleft()
                if renewal != self.renewals:
                    continue
                try:
                    if await (self._control(message) if message.status else self._next(message)):
                        self._level_s = arrived_s
                except Exception:
                    log.exception("follower of %s failed", message.subject)

    async def _next(self, message: Message) -> bool:
        """Take in a message of the stream. True when that was all there was as it was sent."""
        seq, consumer_seq, left = place_of(message.reply)
        self._consumer_seq += 1
        if consumer_seq != self._consumer_seq:
            self._consumer_seq = -1  # whatever comes now comes after a hole
            self.doubt()
            return False
        if seq > self.seen_seq:
            self.seen_seq = seq
            stored = Stored(message.subject, seq, message.data)
            self._remembered.append(stored)
            await self._handler(stored)
        return left == 0

    async def _control(self, message: Message) -> bool:
        """A heartbeat, or flow control: the broker waits with more until what it sent was taken.

        True for a heartbeat that says that there is nothing more.
        """
        stalled = message.headers.get("Nats-Consumer-Stalled") or message.reply
        if stalled:
            await self._link.reply(stalled)
        delivered = message.headers.get("Nats-Last-Consumer")
        if delivered is not None and int(delivered) != self._consumer_seq:
            self.doubt()
            return False
        return delivered is not None and not stalled


def place_of(reply: str) -> tuple[int, int, int]:
    """(stream sequence, consumer sequence, how many the consumer has to deliver after this one) of a delivery, from its
    reply subject.

    $JS.ACK.<stream>.<consumer>.<tries>.<stream seq>.<consumer seq>.<time>.<pending>, with <domain>.<account> before
    <stream> and a last token more where JetStream has domains.
    """
    tokens = reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    return int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 3])
