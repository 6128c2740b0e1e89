"""Many requests over one subscription: each costs a token and a future, and no task.

nats-py's own request() makes a task, a timer and a random inbox per call, which is two thirds of what an append costs.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from cyxnet.connection import Connection, Message
from cyxnet.outcomes import AppendUnknown

SWEEPS_PER_TIMEOUT = 10
TOKEN_BYTES = 8  # random: who is asked something must not be able to answer what another was asked


class _Inbox:
    """Where answers come to, told apart by the token at the end of their subject."""

    def __init__(self, connection: Connection):
        self._nc = connection
        self._inbox = ""
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        async with self._opening:
            if not self._inbox:
                inbox = self._nc.new_inbox()
                await self._nc.listen(f"{inbox}.*", self._answered)
                self._inbox = inbox

    def _answered(self, message: Message) -> None:
        raise NotImplementedError


class Requests(_Inbox):
    """Requests to anybody. Each ends within its time, whatever becomes of the link meanwhile."""

    def __init__(self, connection: Connection):
        super().__init__(connection)
        self._waiting: dict[str, asyncio.Future[Message]] = {}  # by token

    async def ask(self, subject: str, payload: bytes, block: bytes, timeout_s: float) -> Message:
        """The answer; its status is "503" when nobody listens. block: headers, as on the wire.

        Raises TimeoutError when none came, what the connection raises if nothing was sent.
        """
        if not self._inbox:
            await self.open()
        token = secrets.token_hex(TOKEN_BYTES)
        loop = asyncio.get_running_loop()
        answer = self._waiting[token] = loop.create_future()
        too_late = loop.call_later(timeout_s, self._too_late, answer)
        try:
            await self._nc.publish(subject, payload, reply=f"{self._inbox}.{token}", block=block)
            return await answer
        finally:
            too_late.cancel()
            del self._waiting[token]
            _forget(answer)

    def _answered(self, message: Message) -> None:
        answer = self._waiting.get(message.subject.rsplit(".", 1)[-1])
        if answer is not None and not answer.done():
            answer.set_result(message)

    def fail(self, error: Callable[[], Exception]) -> None:
        """No answer will come to what is under way. error(): why, one for each who waits."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error())

    def _too_late(self, answer: "asyncio.Future[Message]") -> None:
        if not answer.done():
            answer.set_exception(TimeoutError())


class Mux(_Inbox):
    """Requests whose answers come to one inbox, told apart by a number. Every one ends within `timeout_s`."""

    def __init__(self, connection: Connection, timeout_s: float):
        super().__init__(connection)
        self._timeout_s = timeout_s
        self._last_token = 0
        # token -> when it is over, its future, and who is told at once; the oldest first
        self._waiting: dict[str, tuple[float, asyncio.Future[bytes], Callable[[bytes], None] | None]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def ask(
        self,
        subject: str,
        payload: bytes,
        block: bytes,
        heard: Callable[[bytes], None] | None = None,
        at_once: bool = False,
    ) -> bytes:
        """The answer's bytes. block: headers, as on the wire. heard: is called with them as they are read, while the
        caller's task is still to be woken, behind whatever else has a turn then. at_once: all that was sent is written
        before anybody else has a turn.

        Raises AppendUnknown when none came; what the connection raises if nothing was sent.
        """
        if not self._inbox:
            await self.open()
        token, answer = self._expect(heard)
        try:
            await self._nc.publish(subject, payload, reply=f"{self._inbox}.{token}", block=block)
            if at_once:
                self._nc.write_now()
            return await answer
        finally:
            self._waiting.pop(token, None)
            _forget(answer)

    def begin(
        self, subject: str, payload: bytes, block: bytes, heard: Callable[[bytes], None] | None = None
    ) -> "asyncio.Future[bytes]":
        """ask() that has sent when it returns, and lets nobody else have a turn before: the answer is to come.

        After open(). Raises what the connection raises, if nothing was sent.
        """
        assert self._inbox, "expected open() before begin()"
        token, answer = self._expect(heard)
        try:
            self._nc.send(subject, payload, f"{self._inbox}.{token}", block)
        except Exception:
            del self._waiting[token]
            raise
        return answer

    def _expect(self, heard: Callable[[bytes], None] | None) -> "tuple[str, asyncio.Future[bytes]]":
        """A new token, and the answer that will come with it."""
        self._last_token += 1
        token, loop = str(self._last_token), asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        self._waiting[token] = loop.time() + self._timeout_s, answer, heard
        if self._sweep is None:
            self._sweep_later()
        return token, answer

    def _answered(self, message: Message) -> None:
        waiting = self._waiting.pop(message.subject.rsplit(".", 1)[-1], None)
        if waiting is None or waiting[1].done():
            return
        if message.status == "503":
            waiting[1].set_exception(AppendUnknown(f"no stream takes {message.subject} now"))
        else:
            waiting[1].set_result(message.data)
            if waiting[2] is not None:
                waiting[2](message.data)

    def lost(self, why: str) -> None:
        """The link broke: no answer will come to what is under way."""
        for _, answer, _ in self._waiting.values():
            if not answer.done():
                answer.set_exception(AppendUnknown(why))
        self._waiting.clear()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._timeout_s / SWEEPS_PER_TIMEOUT, self._end_the_overdue)

    def _end_the_overdue(self) -> None:
        now = asyncio.get_running_loop().time()
        overdue = []
        for token, (until, answer, _) in self._waiting.items():
            if until > now:
                break
            overdue.append(token)
            if not answer.done():
                answer.set_exception(AppendUnknown(f"no answer within {self._timeout_s:g} s"))
        for token in overdue:
            del self._waiting[token]
        self._sweep = None
        if self._waiting:
            self._sweep_later()

    def close(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self.lost("the connection was closed")


def _forget(answer: "asyncio.Future[Any]") -> None:
    """Nobody waits for it: asyncio would log an error for one that ended while its request could not be sent."""
    if answer.done() and not answer.cancelled():
        answer.exception()
