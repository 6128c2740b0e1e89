"""Virtual time. Every simulated process has an event loop of its own; one scheduler runs them all in one thread.

Nothing waits: when nobody can run, the time of the next timer is now. The order of what happens depends on the seed
alone: callbacks of one process keep asyncio's order, timers of the same instant are shuffled by the seed's dice.
"""

import asyncio
import contextlib
import itertools
import types
from asyncio import events
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from random import Random
from typing import Any

from msgspec import Struct


class Handle(Struct, eq=False):
    """A callback that is going to be called, unless it is cancelled or its process dies."""

    loop: "ProcessLoop"
    callback: Callable[..., object] | None
    args: tuple[Any, ...]
    at_s: float = 0.0  # of a timer

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.loop.local_s(self.at_s)


class Nap(Handle, eq=False):
    """What a sleeping task waits for: its timer wakes it by itself, where a future would do so a moment later.

    In that moment nothing else could run, for timers run when nobody is ready: no history is another one by it.
    """

    _asyncio_future_blocking: bool = True  # how a task knows a future
    _loop = Handle.loop  # where a task looks for the loop of a future

    def add_done_callback(self, wake: Callable[..., object], *, context: Any = None) -> None:
        self.callback = wake

    def cancel(self, msg: Any = None) -> bool:  # type: ignore[override]
        wake, self.callback = self.callback, None
        if wake is None:
            return False
        self.loop.call_soon(wake, BROKEN_OFF)
        return True


@types.coroutine
def nap(loop: "ProcessLoop", delay_s: float) -> Iterator[Nap]:
    """Sleep for so long on the clock of the process."""
    scheduler = loop.scheduler
    at_s = scheduler.now_s + delay_s / loop.rate
    handle = Nap(loop, None, SLEPT, at_s)
    heappush(scheduler.timers, (at_s, scheduler.dice.random(), next(scheduler.numbers), handle))
    yield handle


async def sleep(delay: float, result: Any = None) -> Any:
    """asyncio.sleep() on the virtual clock of the process that calls it."""
    if delay > 0:
        await nap(events._get_running_loop(), delay)  # type: ignore[arg-type]
    else:
        await _turn()
    return result


@types.coroutine
def _turn() -> Iterator[None]:
    yield


class Scheduler:
    """The one queue of everything that is going to happen. now_s: true virtual seconds."""

    def __init__(self, dice: Random):
        self.now_s = 0.0
        self.dice = dice
        self.steps = 0
        self.stopped = False
        self.failure: str | None = None  # the first invariant that did not hold; it ends the run
        self.ready: deque[Handle] = deque()
        self.timers: list[tuple[float, float, int, Handle]] = []  # a heap: when, the dice, a number, what
        self.numbers = itertools.count()

    def fail(self, why: str) -> None:
        """An invariant does not hold. Recorded, not raised: production code catches what it did not foresee."""
        if self.failure is None:
            self.failure = f"at {self.now_s:.3f} s: {why}"
            self.stopped = True

    def forget(self) -> None:
        """Nothing more is going to happen."""
        self.ready.clear()
        self.timers.clear()

    def at(self, loop: "ProcessLoop", at_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Call back in the process of `loop` at a true time. What crosses processes goes through here."""
        handle = Handle(loop, callback, args, at_s)
        due_s = at_s if at_s > self.now_s else self.now_s
        heappush(self.timers, (due_s, self.dice.random(), next(self.numbers), handle))
        return handle

    def run_until(self, until_s: float) -> None:
        """Run what is due up to `until_s`, an invariant that fails, or until somebody sets `stopped`."""
        ready, timers, now_s, steps = self.ready, self.timers, self.now_s, 0
        before = events._get_running_loop()
        running: ProcessLoop | None = None
        try:
            while not self.stopped:
                if ready:
                    handle = ready.popleft()
                elif timers and timers[0][0] <= until_s:
                    now_s, _, _, handle = heappop(timers)
                    self.now_s = now_s
                else:
                    break
                loop, callback = handle.loop, handle.callback
                if callback is None or not loop.alive:
                    continue
                if loop.paused_until_s > now_s:  # in the order in which they would have run
                    heappush(timers, (loop.paused_until_s, -1.0, next(self.numbers), handle))
                    continue
                if loop is not running:
                    events._set_running_loop(loop)
                    running = loop
                steps += 1
                try:
                    callback(*handle.args)
                except Exception as error:
                    self.fail(f"{loop.name}: {type(error).__name__} in a callback: {error}")
        finally:
            self.steps += steps
            events._set_running_loop(before)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process, on a clock of its own that runs a little too fast or too slow.

    kill() is kill -9: nothing of the process runs any more, no handler, no finally.
    """

    def __init__(self, scheduler: Scheduler, name: str, rate: float = 1.0, offset_s: float = 0.0):
        self.scheduler = scheduler
        self.name = name
        self.alive = True
        self.paused_until_s = 0.0
        self.rate = rate
        self.offset_s = offset_s
        self._tasks: list[asyncio.Task[Any]] = []

    def local_s(self, true_s: float) -> float:
        return self.offset_s + true_s * self.rate

    def time(self) -> float:
        return self.offset_s + self.scheduler.now_s * self.rate

    def kill(self) -> None:
        self.alive = False

    def bury(self) -> None:
        """After the run: let go of what the dead process left half-done, now and not when memory is next tidied."""
        self.alive = False
        found = self.scheduler.failure  # what the dead say when they are let go of is no failure
        before = events._get_running_loop()
        events._set_running_loop(self)  # who asks for a loop would have a real one made, which nobody closes
        try:
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with contextlib.suppress(Exception):  # its finally blocks meet a world that is no more
                        task.get_coro().close()  # type: ignore[union-attr]
        finally:
            events._set_running_loop(before)
        self.scheduler.failure = found
        self._tasks.clear()

    def pause(self, seconds: float) -> None:
        """SIGSTOP for so long: messages and timers pile up. Who is stopped already goes on when the longer is over."""
        self.paused_until_s = max(self.paused_until_s, self.scheduler.now_s + seconds)

    # -- what asyncio asks of a loop -----------------------------------------------------------------

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        handle = Handle(self, callback, args)
        self.scheduler.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        return self.scheduler.at(self, self.scheduler.now_s + delay / self.rate, callback, *args)

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        return self.scheduler.at(self, (when - self.offset_s) / self.rate, callback, *args)

    def create_future(self):  # type: ignore[no-untyped-def]
        return asyncio.Future(loop=self)

    def create_task(self, coro, *, name=None, context=None):  # type: ignore[no-untyped-def, override]
        task = asyncio.Task(coro, loop=self, name=name or "task")
        self._tasks.append(task)
        if len(self._tasks) > 2000:
            self._tasks = [each for each in self._tasks if not each.done()]
        return task

    def run_in_executor(self, executor, func, *args):  # type: ignore[no-untyped-def, override]
        """Threads would be a second source of order: the work is done at once."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task that nobody awaited failed, or a callback did. In a live process that is a bug."""
        error = context.get("exception")
        if self.alive and error is not None:
            self.scheduler.fail(f"{self.name}: {context.get('message')}: {type(error).__name__}: {error}")

    get_debug = bool  # False; asked for each task and future

    def is_running(self) -> bool:
        return self.alive

    def is_closed(self) -> bool:
        return not self.alive


def _over(broken_off: bool) -> "asyncio.Future[None]":
    """What the task is told that slept: a nap that is over, or was broken off."""
    future: asyncio.Future[None] = asyncio.Future(loop=ProcessLoop(Scheduler(Random()), "nobody"))
    if broken_off:
        future.cancel()
    else:
        future.set_result(None)
    return future


SLEPT = (_over(False),)
BROKEN_OFF = _over(True)
