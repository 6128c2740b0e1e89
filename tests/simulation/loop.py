"""Virtual time. Every simulated process has an event loop of its own; one scheduler runs them all in one thread.

Nothing waits: when nobody can run, the time of the next timer is now. The order of what happens depends on the seed
alone: callbacks of one process keep asyncio's order, timers of the same instant are shuffled by the seed's dice.
"""

import asyncio
import contextlib
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any


class Handle:
    """A callback that is going to be called, unless it is cancelled or its process dies."""

    __slots__ = ("args", "at_s", "callback", "loop")

    def __init__(self, loop: "ProcessLoop", callback: Callable[..., object], args: tuple[Any, ...], at_s: float):
        self.loop = loop
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.at_s = at_s

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.loop.local_s(self.at_s)


class Scheduler:
    """The one queue of everything that is going to happen. now_s: true virtual seconds."""

    def __init__(self, dice: Random):
        self.now_s = 0.0
        self.dice = dice
        self.steps = 0
        self.stopped = False
        self.failure: str | None = None  # the first invariant that did not hold; it ends the run
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, float, int, Handle]] = []
        self._count = 0
        self._running: ProcessLoop | None = None

    def fail(self, why: str) -> None:
        """An invariant does not hold. Recorded, not raised: production code catches what it did not foresee."""
        if self.failure is None:
            self.failure = f"at {self.now_s:.3f} s: {why}"

    def soon(self, handle: Handle) -> None:
        self._ready.append(handle)

    def later(self, handle: Handle, at_s: float, tie: float | None = None) -> None:
        self._count += 1
        tie = self.dice.random() if tie is None else tie
        heapq.heappush(self._timers, (max(at_s, self.now_s), tie, self._count, handle))

    def at(self, loop: "ProcessLoop", at_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Call back in the process of `loop` at a true time. What crosses processes goes through here."""
        self.later(Handle(loop, callback, args, at_s), at_s)

    def run_until(self, until_s: float) -> None:
        """Run what is due up to `until_s`, an invariant that fails, or stop()."""
        ready, timers = self._ready, self._timers
        before = events._get_running_loop()
        try:
            while self.failure is None and not self.stopped:
                if ready:
                    self._run(ready.popleft())
                elif timers and timers[0][0] <= until_s:
                    self.now_s, _, _, handle = heapq.heappop(timers)
                    self._run(handle)
                else:
                    break
        finally:
            events._set_running_loop(before)
            self._running = None

    def _run(self, handle: Handle) -> None:
        loop, callback = handle.loop, handle.callback
        if callback is None or not loop.alive:
            return
        if loop.paused_until_s > self.now_s:
            self.later(handle, loop.paused_until_s, tie=-1.0)  # in the order in which they would have run
            return
        if loop is not self._running:
            events._set_running_loop(loop)
            self._running = loop
        self.steps += 1
        try:
            callback(*handle.args)
        except Exception as error:
            self.fail(f"{loop.name}: {type(error).__name__} in a callback: {error}")


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process, on a clock of its own that runs a little too fast or too slow.

    kill() is kill -9: nothing of the process runs any more, no handler, no finally.
    """

    def __init__(self, scheduler: Scheduler, name: str, rate: float = 1.0, offset_s: float = 0.0):
        self.scheduler = scheduler
        self.name = name
        self.alive = True
        self.paused_until_s = 0.0
        self._rate = rate
        self._offset_s = offset_s
        self._tasks: list[asyncio.Task[Any]] = []

    def local_s(self, true_s: float) -> float:
        return self._offset_s + true_s * self._rate

    def time(self) -> float:
        return self._offset_s + self.scheduler.now_s * self._rate

    def kill(self) -> None:
        self.alive = False

    def bury(self) -> None:
        """After the run: let go of what the dead process left half-done, now and not when memory is next tidied."""
        self.alive = False
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(Exception):  # its finally blocks meet a world that is no more
                    task.get_coro().close()  # type: ignore[union-attr]

    def pause(self, seconds: float) -> None:
        """SIGSTOP for so long: messages and timers pile up."""
        self.paused_until_s = self.scheduler.now_s + seconds

    # -- what asyncio asks of a loop -----------------------------------------------------------------

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        handle = Handle(self, callback, args, self.scheduler.now_s)
        self.scheduler._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        return self._at(self.scheduler.now_s + delay / self._rate, callback, args)

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def, override]
        return self._at((when - self._offset_s) / self._rate, callback, args)

    def _at(self, at_s: float, callback: Callable[..., object], args: tuple[Any, ...]) -> Handle:
        handle = Handle(self, callback, args, at_s)
        self.scheduler.later(handle, at_s)
        return handle

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

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.alive

    def is_closed(self) -> bool:
        return not self.alive
