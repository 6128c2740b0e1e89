"""Appends of many tasks at once, each as fast as the disk allows and each with an outcome of its own.

The broker syncs the disk once per message, but also once per atomic batch, whatever its size; a batch costs some ten
milliseconds more. So few appends travel one by one, side by side; many share a batch. A batch is all or nothing: when
one of its messages has a conflict nothing was stored, and each is sent again alone, to get the answer that is its own.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from cyxnet.outcomes import AppendUnknown, BusError, Conflict, StorageFull

log = logging.getLogger(__name__)

BATCH_FROM = 64  # appends waiting; for fewer, one by one is as fast on a fast disk
# On a slow one it is not: once the oldest has waited so long, so many (which cost the broker as much by themselves) go
# together.
SLOW_S, BATCH_WHEN_SLOW = 0.008, 12
MAX_BATCH = 1_000
MAX_BATCH_BYTES = 8_000_000
BATCHES_IN_FLIGHT = 2  # the broker takes one in while it writes the other
SINGLES_IN_FLIGHT = 8  # the broker syncs one after the other: as many as hide the way there and back


class Appends(Protocol):
    """What a group commit needs of a bus."""

    async def append(self, subject: str, payload: bytes, expected_seq: int | None = None) -> int: ...

    async def append_all(self, messages: list[tuple[str, bytes, int]]) -> list[int]: ...


class _Append(Struct):
    subject: str
    payload: bytes
    expected_seq: int
    outcome: "asyncio.Future[int]"
    since_s: float  # of the loop


class GroupCommit:
    """append() for many callers at once. Of one subject, one append at a time: the caller sees to that."""

    def __init__(self, core: Appends):
        self._core = core
        self._waiting: deque[_Append] = deque()
        self._singles = 0  # in flight
        self._batched = 0  # appends in the batches that are in flight
        self._batches = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_due = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or waits."""
        return not (self._waiting or self._singles or self._batches)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Who appends something by itself: whoever comes meanwhile shares with others."""
        self._singles += 1
        try:
            yield
        finally:
            self._singles -= 1
            if self._waiting:
                self._pump()

    async def append(self, subject: str, payload: bytes, expected_seq: int) -> int:
        """The sequence it was stored at. Raises Conflict, AppendUnknown, StorageFull or BusError: its own outcome."""
        loop = asyncio.get_running_loop()
        if self.idle:  # nobody to share with: by the shortest way
            with self.alone():
                return await self._core.append(subject, payload, expected_seq)
        append = _Append(subject, payload, expected_seq, loop.create_future(), loop.time())
        self._waiting.append(append)
        if not self._pump_due:  # after everybody else who is ready now: they may share a batch
            self._pump_due = True
            loop.call_soon(self._pump)
        return await append.outcome

    def _pump(self) -> None:
        """Send what waits, as far as there is room in flight. A second batch has to be as large as the first."""
        self._pump_due = False
        while len(self._waiting) >= max(self._batch_from(), self._batched) and self._batches < BATCHES_IN_FLIGHT:
            self._start(self._send_batch(self._next_batch()))
        if self._batches:
            return  # those few would only wait behind it, each for a sync of its own: they share the next one
        while self._waiting and self._singles < SINGLES_IN_FLIGHT and len(self._waiting) < BATCH_FROM:
            self._singles += 1
            self._start(self._send_single(self._waiting.popleft()))

    def _batch_from(self) -> int:
        """How many have to wait for a batch."""
        if not self._waiting or asyncio.get_running_loop().time() - self._waiting[0].since_s < SLOW_S:
            return BATCH_FROM
        return BATCH_WHEN_SLOW

    def _next_batch(self) -> list[_Append]:
        """All that waits, as far as a batch has room: a batch costs the broker as much as a hundred messages in it."""
        batch: list[_Append] = []
        room = MAX_BATCH_BYTES
        while self._waiting and len(batch) < MAX_BATCH:
            room -= len(self._waiting[0].payload)
            if batch and room < 0:
                break
            batch.append(self._waiting.popleft())
        self._batches += 1
        self._batched += len(batch)
        return batch

    def _start(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_batch(self, batch: list[_Append]) -> None:
        wanted = [append for append in batch if not append.outcome.done()]  # who gave up meanwhile has no wish
        seqs: list[int] = []
        try:
            if wanted:
                messages = [(append.subject, append.payload, append.expected_seq) for append in wanted]
                seqs = await self._core.append_all(messages)
        except (AppendUnknown, StorageFull) as error:
            for append in wanted:
                _settle(append, type(error)(str(error)))
        except (Conflict, BusError) as error:
            log.debug("a batch of %d was not stored (%s): one by one", len(wanted), error)
            self._over(batch)
            await asyncio.gather(*map(self._send_single_of_batch, wanted))
            self._pump()
            return
        except BaseException as error:
            self._over(batch)
            self._broken_off(wanted, error)
            raise
        self._over(batch)
        self._pump()  # the next one first: the broker has nothing to do while those who waited go on
        if seqs:
            for append, seq in zip(wanted, seqs, strict=True):
                _settle(append, seq)

    def _over(self, batch: list[_Append]) -> None:
        self._batches -= 1
        self._batched -= len(batch)

    async def _send_single_of_batch(self, append: _Append) -> None:
        self._singles += 1
        await self._send_single(append)

    async def _send_single(self, append: _Append) -> None:
        try:
            if not append.outcome.done():
                _settle(append, await self._core.append(append.subject, append.payload, append.expected_seq))
        except (Conflict, BusError) as error:
            _settle(append, error)
        except BaseException as error:
            self._singles -= 1
            self._broken_off([append], error)
            raise
        self._singles -= 1
        self._pump()

    def _broken_off(self, appends: list[_Append], error: BaseException) -> None:
        """What nobody expected: whom it concerns hears of it at once, and who waited behind them is sent on.

        When these tasks are cancelled nothing is sent any more, and that concerns all who wait.
        """
        if not isinstance(error, Exception):
            appends = [*appends, *self._waiting]
            self._waiting.clear()
        for append in appends:
            _settle(append, AppendUnknown(f"the append was broken off: {error or type(error).__name__}"))
        self._pump()


def _settle(append: _Append, outcome: int | Exception) -> None:
    if append.outcome.done():
        return  # whoever asked is gone
    if isinstance(outcome, int):
        append.outcome.set_result(outcome)
    else:
        append.outcome.set_exception(outcome)
