"""The queue before a model: first in, first out; run at once when idle, in batches while others wait."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import CyxError
from cyxnet.outcomes import ApiError
from cyxnode.serving.batching import size_for
from cyxnode.serving.predictor import Predictor

Array = np.ndarray[Any, Any]
INLINE_NS = 250_000  # less work than this costs less than handing it to a thread and being woken
BETWEEN_NS = 500_000  # until the thread has the interpreter again after a run, while the event loop is busy


class ClientGone(Exception):
    """Nobody waits for the answer."""


Tell = Callable[[Array | Exception], None]  # the answers, or why there are none


class _Waiting:
    """One request: its samples, how many of them were taken into runs, and who is told of the answers."""

    __slots__ = ("is_gone", "is_told", "outputs", "rows", "taken", "tell")

    def __init__(self, rows: Array, tell: Tell, is_gone: Callable[[], bool]):
        self.rows, self.tell, self.is_gone = rows, tell, is_gone
        self.outputs: Array | None = None  # of a request that takes several runs
        self.taken = 0
        self.is_told = False


class _Part(NamedTuple):
    """The samples begin:end of a request, in one run."""

    waiting: _Waiting
    begin: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == len(self.waiting.rows)


class Batcher:
    """Answers samples with `predictor`, from one event loop.

    max_wait_s: how long a run waits for more samples while there are fewer than a full batch; 0: not at all.
    max_queue: how many samples may wait; beyond that callers are told when to come again.
    """

    def __init__(self, predictor: Predictor, max_wait_s: float = 0.0, max_queue: int = 1024):
        self._predictor = predictor
        self._max_wait_s = max_wait_s
        self._max_queue = max(max_queue, predictor.max_batch)
        self._queue: deque[_Waiting] = deque()
        self.queued = 0  # samples that no run has taken
        self.runs = self.samples = 0
        self._works = False
        self._flush: asyncio.Handle | None = None
        self._lock = threading.Lock()  # of the queue and whether somebody works on it
        self._thread = ThreadPoolExecutor(1, "model")
        self._told_full: tuple[int, ApiError | None] = (-1, None)  # the last refusal, and how many waited then
        self._row_ns = min(ns / size for size, ns in predictor.run_ns.items())

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    def refusal(self) -> ApiError | None:
        """Why not even one sample is taken now; not to be raised, it is told to many."""
        if self.queued < self._max_queue:
            return None
        if self._told_full[0] != self.queued:
            self._told_full = self.queued, self._full()
        return self._told_full[1]

    def refuse_when_full(self, rows: int = 1) -> None:
        """Raises ApiError: 429 when there is no room for so many samples now, 413 when there never is."""
        if self.queued + rows <= self._max_queue:
            return
        if rows > self._max_queue:
            said = f"expected at most {self._max_queue} samples in a request, got {rows}"
            raise ApiError("too_large", said, 413)
        raise self._full()

    def _full(self) -> ApiError:
        wait_ms = 1 + int(self.queued * self._row_ns / 1e6)
        return ApiError("overloaded", f"{self.queued} samples wait; again in {wait_ms} ms", 429, wait_ms)

    async def predict(self, rows: Array, is_gone: Callable[[], bool] = lambda: False) -> Array:
        """The answers to samples, as ask() tells them. Raises what ask() raises and tells."""
        answer: asyncio.Future[Array] = asyncio.get_running_loop().create_future()

        def tell(found: Array | Exception) -> None:
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        self.ask(rows, tell, lambda: answer.done() or is_gone())
        return await answer

    def ask(self, rows: Array, tell: Tell, is_gone: Callable[[], bool]) -> None:
        """Have samples (rows, *input_shape), as Predictor.checked returns them, answered: tell() is called once.

        is_gone: whether nobody waits for the answer any more; then it is told ClientGone, sooner or later. tell() comes
        in the event loop, and must not raise; it is told DataError for samples that the model cannot answer. Raises
        ApiError when the queue is full.
        """
        count = len(rows)
        if not count:
            asyncio.get_running_loop().call_soon(tell, self._predictor.outputs(0))
            return
        if self.queued + count > self._max_queue:
            self.refuse_when_full(count)
        waiting = _Waiting(rows, tell, is_gone)
        with self._lock:
            self._queue.append(waiting)
            self.queued += count
            if not self._works and (self._flush is None or self._max_wait_s):
                self._wake()

    # -- runs ----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the queue looked at, after whatever else the event loop has just heard."""
        loop, full = asyncio.get_running_loop(), self.queued >= self._predictor.max_batch
        if self._flush is None:
            self._flush = (
                loop.call_later(self._max_wait_s, self._begin)
                if self._max_wait_s and not full
                else loop.call_soon(self._begin)
            )
        elif full and isinstance(self._flush, asyncio.TimerHandle):
            self._flush.cancel()
            self._flush = loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Runs what waits: little at once, more in the thread, which goes on by itself for as long as anybody waits."""
        self._flush, self._works = None, True
        if self.queued * self._row_ns <= INLINE_NS:
            self._run_all(_tell, between_ns=0.0)
        else:
            loop = asyncio.get_running_loop()
            self._thread.submit(self._run_all, lambda told: loop.call_soon_threadsafe(_tell, told), BETWEEN_NS)

    def _run_all(self, tell: Callable[["list[_Told]"], object], between_ns: float) -> None:
        while True:
            with self._lock:
                size = size_for(self.queued, self._predictor.run_ns, between_ns)
                parts, gone = self._take(size)
                if not (parts or gone):
                    self._works = False
                    return
            told = self._work(size, parts) if parts else []
            tell(told + [(part, ClientGone()) for part in gone])

    def _take(self, size: int) -> tuple[list[_Part], list[_Part]]:
        """The first samples of the queue, up to `size`; and what nobody waits for any more, which is not computed."""
        parts: list[_Part] = []
        gone: list[_Part] = []
        left = size
        while self._queue and left:
            first = self._queue[0]
            wanted = not (first.is_told or first.is_gone())
            begin, end = first.taken, len(first.rows)
            if wanted:
                end = min(end, begin + left)
                left -= end - begin
            (parts if wanted else gone).append(_Part(first, begin, end))
            self.queued -= end - begin
            first.taken = end
            if end == len(first.rows):
                self._queue.popleft()
        return parts, gone

    def _work(self, size: int, parts: list[_Part]) -> "list[_Told]":
        """Computes the answers of the parts."""
        try:
            places, at = self._predictor.places(size), 0
            for waiting, begin, end in parts:
                rows, next_at = waiting.rows, at + end - begin
                places[at:next_at] = rows if end - begin == len(rows) else rows[begin:end]
                at = next_at
            found = self._predictor.run(size)[:at].copy()
        except CyxError as error:
            if len(parts) == 1 and parts[0].end - parts[0].begin == 1:
                return [(parts[0], error)]
            return [self._work_alone(part) for part in parts]  # one of them is at fault: only he is told
        except Exception as error:
            return [(part, error) for part in parts]
        self.runs += 1
        self.samples += at
        told: list[_Told] = []
        at = 0
        for part in parts:
            next_at = at + part.end - part.begin
            told.append((part, self._outputs(part, found[at:next_at])))
            at = next_at
        return told

    def _outputs(self, part: _Part, found: Array) -> Array:
        """The answers of the request so far."""
        waiting = part.waiting
        if len(found) == len(waiting.rows):
            return found
        if waiting.outputs is None:
            waiting.outputs = self._predictor.outputs(len(waiting.rows))
        waiting.outputs[part.begin : part.end] = found
        return waiting.outputs

    def _work_alone(self, part: _Part) -> "_Told":
        for row in range(part.begin, part.end):
            told = self._work(1, [_Part(part.waiting, row, row + 1)])[0][1]
            if isinstance(told, Exception):
                return part, told
        return part, told


_Told = tuple[_Part, Array | Exception]


def _tell(told: list[_Told]) -> None:
    """In the event loop: what was found, to who waits for it."""
    for part, found in told:
        waiting = part.waiting
        if not waiting.is_told and (part.is_last or isinstance(found, Exception)):
            waiting.is_told = True  # of a request in several parts the first fault is told, and nothing else
            waiting.tell(found)
