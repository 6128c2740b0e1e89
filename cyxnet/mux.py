"""Many requests over one subscription: each costs a number and a future; one timer serves all of them.

nats-py's own request() makes a task, a timer and a random inbox per call, which is two thirds of what an append costs.
"""

import asyncio

from cyxnet.connection import Connection, Message
from cyxnet.outcomes import AppendUnknown

SWEEPS_PER_TIMEOUT = 10


class Mux:
    """Requests whose answers come to one inbox, told apart by a number. Every one ends within `timeout_s`."""

    def __init__(self, connection: Connection, timeout_s: float):
        self._nc = connection
        self._timeout_s = timeout_s
        self._inbox = ""
        self._opening = asyncio.Lock()
        self._last_token = 0
        self._waiting: dict[str, tuple[float, asyncio.Future[bytes]]] = {}  # token -> when it is over; oldest first
        self._sweep: asyncio.TimerHandle | None = None

    async def ask(self, subject: str, payload: bytes, block: bytes) -> bytes:
        """The answer's bytes. block: headers, as on the wire.

        Raises AppendUnknown when none came; what the connection raises if nothing was sent.
        """
        if not self._inbox:
            await self._open()
        self._last_token += 1
        token = str(self._last_token)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (asyncio.get_running_loop().time() + self._timeout_s, answer)
        if self._sweep is None:
            self._sweep_later()
        try:
            await self._nc.publish(subject, payload, reply=f"{self._inbox}.{token}", block=block)
            return await answer
        finally:
            self._waiting.pop(token, None)

    async def _open(self) -> None:
        async with self._opening:
            if not self._inbox:
                inbox = self._nc.new_inbox()
                await self._nc.listen(f"{inbox}.*", self._answered)
                self._inbox = inbox

    def _answered(self, message: Message) -> None:
        waiting = self._waiting.pop(message.subject.rsplit(".", 1)[-1], None)
        if waiting is None or waiting[1].done():
            return
        if message.status == "503":
            waiting[1].set_exception(AppendUnknown(f"no stream takes {message.subject} now"))
        else:
            waiting[1].set_result(message.data)

    def lost(self, why: str) -> None:
        """The link broke: no answer will come to what is under way."""
        for _, answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(AppendUnknown(why))
        self._waiting.clear()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._timeout_s / SWEEPS_PER_TIMEOUT, self._end_the_overdue)

    def _end_the_overdue(self) -> None:
        now = asyncio.get_running_loop().time()
        overdue = []
        for token, (until, answer) in self._waiting.items():
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
