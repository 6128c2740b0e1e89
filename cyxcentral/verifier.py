"""Signatures of many deposits at once are checked in a process beside central.

A check takes 50 µs of processor, a third of what central has for a submission, and no library that we know of
lets other Python run meanwhile. While few ask, the check is made here, without a detour; so it is when the process
beside is not there (yet, or any more).

    python -m cyxcentral.verifier      reads frames from standard input, answers a byte for each signature
"""

import asyncio
import contextlib
import logging
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from cyxnet.escrow import signed_by

log = logging.getLogger(__name__)
FEWEST = 8  # in one frame; fewer are sooner checked here
START_AGAIN_S = 30.0
ANSWER_WITHIN_S = 2.0  # a process that takes longer is ended
_COUNT = struct.Struct("<I")  # of checks in a frame
_CHECK = struct.Struct("<I32s64s")  # bytes of the message, public key, signature; then the message

Check = tuple[bytes, bytes, bytes]  # public key, signature, message
Batch = list[tuple[Check, "asyncio.Future[bool]"]]


class Verifier:
    """many: whether so many ask at present that the detour pays."""

    def __init__(self, many: Callable[[], bool]):
        self._many = many
        self._waiting: Batch = []
        self._asked: deque[Batch] = deque()  # of the process, and not answered yet
        self._child: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def signed_by(self, public_key: bytes, signature: bytes, message: bytes) -> bool:
        """Whether this Ed25519 signature of the message is that of the public key."""
        if not self._many():
            return signed_by(public_key, signature, message)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()
        if not self._waiting:  # with everybody else who asks in this turn
            loop.call_soon(self._ask)
        self._waiting.append(((public_key, signature, message), answer))
        return await answer

    def _ask(self) -> None:
        batch, self._waiting = self._waiting, []
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())
        if self._child is None or self._child.stdin is None or len(batch) < FEWEST:
            _check_here(batch)
            return
        self._child.stdin.write(frame([check for check, _ in batch]))
        self._asked.append(batch)
        asyncio.get_running_loop().call_later(ANSWER_WITHIN_S, self._end_if_stuck, self._child, batch)

    def _end_if_stuck(self, child: asyncio.subprocess.Process, batch: Batch) -> None:
        if child is self._child and self._asked and self._asked[0] is batch:
            with contextlib.suppress(ProcessLookupError):
                child.kill()

    async def _keep(self) -> None:
        """See that there is a process, from the first time on that it would have been of use."""
        while True:
            try:
                await self._run()
            except (OSError, EOFError, LookupError) as error:
                log.warning("no process checks signatures beside central (%s): it checks them itself", error)
            await asyncio.sleep(START_AGAIN_S)

    async def _run(self) -> None:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cyxcentral.verifier"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal reaches central only
        )
        try:
            assert child.stdout is not None
            await child.stdout.readexactly(1)  # it is ready
            self._child = child
            while True:
                answers = await child.stdout.readexactly(1)
                batch = self._asked[0]
                answers += await child.stdout.readexactly(len(batch) - 1)
                self._asked.popleft()
                for (_, answer), is_good in zip(batch, answers, strict=True):
                    if not answer.done():
                        answer.set_result(is_good == 1)
        finally:
            self._child = None
            while self._asked:
                _check_here(self._asked.popleft())
            if child.stdin is not None:
                child.stdin.close()  # its end: nobody waits for it any more
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _check_here(batch: Batch) -> None:
    for check, answer in batch:
        if not answer.done():
            answer.set_result(signed_by(*check))


def frame(checks: list[Check]) -> bytes:
    """Checks as the process reads them."""
    parts = [_COUNT.pack(len(checks))]
    for public_key, signature, message in checks:
        parts += (_CHECK.pack(len(message), public_key, signature), message)
    return b"".join(parts)


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer frames until there are no more: a byte for each check, 1 for a good signature."""
    answers.write(b"\x01")  # ready
    answers.flush()
    while head := asked.read(_COUNT.size):
        [count] = _COUNT.unpack(head)
        found = bytearray()
        for _ in range(count):
            size, public_key, signature = _CHECK.unpack(asked.read(_CHECK.size))
            found.append(signed_by(public_key, signature, asked.read(size)))
        answers.write(found)
        answers.flush()


if __name__ == "__main__":
    signed_by(bytes(32), bytes(64), b"")  # loads what it needs
    serve(sys.stdin.buffer, sys.stdout.buffer)
