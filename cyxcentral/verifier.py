"""Deposits of many at once are looked at in a process beside central: the signature, and the addresses of the escrow.

Both is arithmetic on a curve, 90 µs of processor (of many at once 30), a third of what a submission costs, and no
library that we know of lets other Python run meanwhile. While few ask, it is done here, without a detour, when somebody
needs it; so it is when the process beside is not there (yet, or any more). It is started before anybody needs it: it
takes half a second to come, in which a central that is already asked by many would check thousands itself.

    python -m cyxcentral.verifier      reads frames from standard input, answers 66 bytes for each deposit
"""

import asyncio
import contextlib
import hashlib
import logging
import struct
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import BinaryIO

import cyxcentral.curve as curve
from cyxnet.escrow import SettlementError, find_accounts, job_key, public_key, remember_accounts, signed_by
from cyxnet.instructions import solders

log = logging.getLogger(__name__)
FEWEST_AT_ONCE = 3  # side by side: fewer are sooner looked at one after the other
FEWEST = 2  # in one frame: one is sooner checked here
MOST = 24  # in one frame: central goes on with the first answers while the next are found
START_AGAIN_S = 30.0
ANSWER_WITHIN_S = 2.0  # a process that takes longer is ended
SHORTEST = 66  # bytes of a transaction with one signature and anything else
REMEMBERED = 1024  # signatures that were checked before anybody asked
_sha256 = hashlib.sha256
_COUNT = struct.Struct("<I")  # of deposits in a frame
_QUESTION = struct.Struct(
    "<I32s64s32s32s"
)  # bytes of the message, public key, signature, job key, program; the message
_ANSWER = struct.Struct("<?32s32sB")  # whether the signature is good; state, vault and the vault's bump

Question = tuple[bytes, bytes, bytes, bytes, bytes]  # public key, signature, message, job key, program
Answer = tuple[bool, bytes, bytes, int]
Batch = list[tuple[Question, "asyncio.Future[Answer]"]]


class Verifier:
    """many: whether so many ask at present that the detour pays."""

    def __init__(self, many: Callable[[], bool]):
        self._many = many
        self._waiting: Batch = []
        self._checked: OrderedDict[bytes, tuple[bytes, bytes, bool]] = OrderedDict()  # by signature: key, message, good
        self._asked: deque[Batch] = deque()  # of the process, and not answered yet
        self._child: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Have the process come, if nobody did before."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep())

    async def look_ahead(self, client: str, job_id: str, program: str, transaction: bytes) -> None:
        """While many ask: have found out elsewhere what will be asked of this deposit. It says no to nothing."""
        if not self._many() or len(transaction) < SHORTEST:
            return
        try:
            key, code = bytes(public_key(client)), bytes(public_key(program))
        except SettlementError:
            return
        signature, message = transaction[1:65], transaction[65:]
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        if not self._waiting:  # with everybody else who asks in this turn
            loop.call_soon(self._ask)
        self._waiting.append(((key, signature, message, job_key(job_id), code), answer))
        is_good, state, vault, bump = await answer
        found = solders().Pubkey.from_bytes(state), solders().Pubkey.from_bytes(vault), bump
        remember_accounts(client, job_id, program, found)
        self._checked[signature] = key, message, is_good
        if len(self._checked) > REMEMBERED:
            self._checked.popitem(last=False)

    async def signed_by(self, public_key: bytes, signature: bytes, message: bytes) -> bool:
        """Whether this Ed25519 signature of the message is that of the public key."""
        checked = self._checked.pop(signature, None)
        if checked is not None and checked[:2] == (public_key, message):
            return checked[2]
        return signed_by(public_key, signature, message)

    def _ask(self) -> None:
        batch, self._waiting = self._waiting, []
        self.begin()
        if self._child is None or self._child.stdin is None or len(batch) < FEWEST:
            _answer_here(batch)
            return
        for first in range(0, len(batch), MOST):
            part = batch[first : first + MOST]
            self._child.stdin.write(frame([question for question, _ in part]))
            self._asked.append(part)
            asyncio.get_running_loop().call_later(ANSWER_WITHIN_S, self._end_if_stuck, self._child, part)

    def _end_if_stuck(self, child: asyncio.subprocess.Process, batch: Batch) -> None:
        if child is self._child and self._asked and self._asked[0] is batch:
            with contextlib.suppress(ProcessLookupError):
                child.kill()

    async def _keep(self) -> None:
        """See that there is a process."""
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
                answers = await child.stdout.readexactly(_ANSWER.size)
                batch = self._asked[0]
                answers += await child.stdout.readexactly(_ANSWER.size * (len(batch) - 1))
                self._asked.popleft()
                for (_, answer), found in zip(batch, _ANSWER.iter_unpack(answers), strict=True):
                    if not answer.done():
                        answer.set_result(found)
        finally:
            self._child = None
            while self._asked:
                _answer_here(self._asked.popleft())
            if child.stdin is not None:
                child.stdin.close()  # its end: nobody waits for it any more
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _answer_here(batch: Batch) -> None:
    wanted = [(question, answer) for question, answer in batch if not answer.done()]
    for (_, answer), found in zip(wanted, look_at_all([question for question, _ in wanted]), strict=True):
        answer.set_result(found)


def look_at(key: bytes, signature: bytes, message: bytes, job: bytes, program: bytes) -> Answer:
    """Whether the signature is good, and where a job of this client has its escrow."""
    state, vault, bump = find_accounts(key, job, program)
    return signed_by(key, signature, message), bytes(state), bytes(vault), bump


def look_at_all(questions: list[Question]) -> list[Answer]:
    """look_at() of each; eight at a time where the processor can, which takes a third of the time (decision 57)."""
    if len(questions) < FEWEST_AT_ONCE or not curve.PRESENT:
        return [look_at(*question) for question in questions]
    good = curve.good([(key, signature, message) for key, signature, message, _, _ in questions])
    programs = [question[4] for question in questions]
    states = _derived([b"escrow" + key + job for key, _, _, job, _ in questions], programs)
    vaults = _derived([b"vault" + state for state, _ in states], programs)
    return [
        (yes or signed_by(*question[:3]), state, vault, bump)  # a no is not the last word: see cyxcentral.curve
        for question, yes, (state, _), (vault, bump) in zip(questions, good, states, vaults, strict=True)
    ]


def _derived(seeds: list[bytes], programs: list[bytes]) -> list[tuple[bytes, int]]:
    """For each the address that find_program_address() finds, and its bump: the first of these hashes that is no point
    of the curve."""
    found: list[tuple[bytes, int]] = [(b"", 0)] * len(seeds)
    left, bump = list(range(len(seeds))), 255
    while left:
        tried = [_sha256(b"%b%c%bProgramDerivedAddress" % (seeds[at], bump, programs[at])).digest() for at in left]
        on_curve = curve.on_curve(tried)
        for at, address in zip(left, tried, strict=True):
            found[at] = address, bump  # the last one that is tried stays
        left, bump = [at for at, is_point in zip(left, on_curve, strict=True) if is_point], bump - 1
    return found


def frame(questions: list[Question]) -> bytes:
    """Questions as the process reads them."""
    parts = [_COUNT.pack(len(questions))]
    for key, signature, message, job, program in questions:
        parts += (_QUESTION.pack(len(message), key, signature, job, program), message)
    return b"".join(parts)


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Answer frames until there are no more."""
    answers.write(b"\x01")  # ready
    answers.flush()
    while head := asked.read(_COUNT.size):
        [count] = _COUNT.unpack(head)
        questions = []
        for _ in range(count):
            size, key, signature, job, program = _QUESTION.unpack(asked.read(_QUESTION.size))
            questions.append((key, signature, asked.read(size), job, program))
        answers.write(b"".join([_ANSWER.pack(*answer) for answer in look_at_all(questions)]))
        answers.flush()


if __name__ == "__main__":
    look_at_all([(bytes(32), bytes(64), b"", bytes(32), bytes(32))] * FEWEST_AT_ONCE)  # loads what it needs
    serve(sys.stdin.buffer, sys.stdout.buffer)
