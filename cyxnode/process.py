"""The agent's side of training processes: keep one warm, tell it what to do, hear what it says, know how it died."""

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec import Struct

import cyxcore
from cyxnet.codec import BadMessage
from cyxnode.errors import NodeError
from cyxnode.pipe import MAX_FRAME_BYTES, Done, Failed, Halted, Ready, Said, Told, frame, read_said

log = logging.getLogger(__name__)

STDERR_LINES_KEPT = 8
STDERR_LINE_BYTES = 2000
READY_TIMEOUT_S = 120.0  # importing on a cold disk
SPARES = 2  # each holds some 50 MB
REFILL_DELAY_S = 1.0  # leaves a short run the whole machine; a long one hardly notices its successor warm up
TRAIN_COMMAND = (sys.executable, "-P", "-m", "cyxnode.train")


class Launch(Struct, frozen=True, kw_only=True):
    """How processes of runs are started. `command` gets the agent's pid as an argument, then each of `descriptors`,

    which the process has too. what: a process of this kind is, in messages.
    """

    work_folder: Path
    command: tuple[str, ...] = TRAIN_COMMAND
    niceness: int = 0
    descriptors: tuple[int, ...] = ()
    what: str = "training process"


class TrainingProcess:
    """One process of a run, of training unless `what` says otherwise, with a folder of its own that goes with it."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, what: str = "training process"):
        self.folder = folder
        self._what = what
        self._ready: Ready | None = None
        self._process = process
        self._stderr: collections.deque[str] = collections.deque(maxlen=STDERR_LINES_KEPT)
        self._listening = asyncio.create_task(self._keep_last_words())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ready(self) -> Ready:
        """What it said when it was warm."""
        assert self._ready, "ready is known only after wait_ready()"
        return self._ready

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @classmethod
    async def start(cls, launch: Launch) -> "TrainingProcess":
        folder = launch.work_folder / secrets.token_hex(8)
        try:
            folder.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise NodeError(f"cannot make {folder}: {error.strerror}; the disk may be full") from None
        command = [*launch.command, str(os.getpid()), *map(str, launch.descriptors)]
        if launch.niceness:
            command = ["nice", "-n", str(launch.niceness), *command]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env=scrubbed_environment(folder),
                limit=MAX_FRAME_BYTES,
                pass_fds=launch.descriptors,
                start_new_session=True,  # a group of its own: Ctrl-C passes it by, a kill takes all of it
            )
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise NodeError(f"cannot start {command[0]}: {error.strerror}; is it still installed?") from None
        return cls(process, folder, launch.what)

    async def wait_ready(self) -> Ready:
        """Until it is warm. Raises NodeError when it fails instead: then this node cannot train."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                said = await self._next()
        except TimeoutError:
            said = Failed(code="slow", message=f"not warm within {READY_TIMEOUT_S:g} s", deterministic=False)
        if isinstance(said, Ready):
            self._ready = said
            return said
        await self.close()
        why = said.message if isinstance(said, Failed) else f"it said {type(said).__name__} first"
        raise NodeError(f"a {self._what} does not work on this node: {why}")

    def tell(self, message: Told) -> None:
        """Send it; to a dead process it is not sent: what it says next tells how it died."""
        assert self._process.stdin
        if not self._process.stdin.is_closing():
            self._process.stdin.write(frame(message))

    async def said(self) -> AsyncIterator[Said]:
        """All that the process says about its order. The last message is Done, Halted or Failed, whatever happens."""
        while True:
            said = await self._next()
            yield said
            if isinstance(said, (Done, Halted, Failed)):
                return

    async def wait_end(self) -> int:
        """Until it is dead. Returns its exit status, or minus the signal's number."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it and everything it started, at once."""
        if self.alive:  # else its number may be somebody else's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Nothing is left of it afterwards: no process, no pipe, no folder."""
        self.kill()
        await self._process.wait()
        await self._listening
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._process.stdin.wait_closed()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    async def _next(self) -> Said:
        """The next message, or a Failed that says how the process ended or what it garbled."""
        assert self._process.stdout
        try:
            said = await read_said(self._process.stdout)
        except BadMessage as error:
            self.kill()
            return Failed(
                code="process_garbled",
                message=f"the {self._what} said something that is not a message: {error}"[:2000],
                deterministic=False,
            )
        if said is not None:
            return said
        # its pipe is closed: it is dead or as good as dead
        try:
            async with asyncio.timeout(1.0):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        status = await self._process.wait()
        await self._listening
        return Failed(
            code="process_died", message=describe_end(status, list(self._stderr), self._what), deterministic=False
        )

    async def _keep_last_words(self) -> None:
        assert self._process.stderr
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # a line longer than the stream's limit: not worth keeping
                continue
            if not line:
                return
            text = line[:STDERR_LINE_BYTES].decode(errors="replace").rstrip()
            log.debug("%s %d: %s", self._what, self.pid, text)
            self._stderr.append(text)


class Pool:
    """Keeps SPARES training processes warm: whoever is killed at its first step starts again at once, and one that is
    still warming up is nobody's second. take() hands one out and has another one warmed up a little later.

    A job whose process is killed a second time rests for a second before it is leased again, so that two are enough.
    Each is started, not forked from a warm one: jobs would share the layout of its memory, and whatever it loads would
    have to bear a fork for ever.
    """

    def __init__(self, launch: Launch):
        self.launch = launch
        self._spares: collections.deque[asyncio.Task[TrainingProcess]] = collections.deque()  # that nobody waits for
        self._kept: set[asyncio.Task[TrainingProcess]] = set()  # all that have not been handed out
        self._refill: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()  # of those that were too many
        self._most = 1  # that are kept: SPARES once keep_full() was called
        self._closed = False

    def keep_full(self) -> None:
        """From now on keep SPARES warm, not one. Not while another thread computes by BLAS: a fork stops the threads of
        that, and neither would ever end.
        """
        self._most = SPARES
        self._refill_later()

    def warm_up(self) -> None:
        """Begin to warm up a process unless one is warm or on its way; one that failed is tried again."""
        failed = [spare for spare in self._spares if spare.done() and (spare.cancelled() or spare.exception())]
        for spare in failed:
            self._spares.remove(spare)
            self._kept.discard(spare)
        if not self._spares and not self._closed:
            self._begin()

    def fill_up(self) -> None:
        """Begin to warm up one more until there are as many as are kept: one at a time, or the first would be ready
        later.
        """
        if self._refill:
            self._refill.cancel()
            self._refill = None
        self.warm_up()
        if len(self._spares) < self._most and all(spare.done() for spare in self._spares) and not self._closed:
            self._begin()

    async def wait_warm(self) -> TrainingProcess:
        """The process that the next take() hands out, once it is warm. Raises NodeError when none can be."""
        self.warm_up()
        assert self._spares, "this pool is closed"
        return await asyncio.shield(self._spares[0])

    async def take(self) -> TrainingProcess:
        """A warm process that has not been killed while it waited. The caller closes it."""
        while True:
            self.warm_up()
            assert self._spares, "this pool is closed"
            spare = self._spares.popleft()  # before it is waited for: no other taker may get it
            try:
                process = await asyncio.shield(spare)
            except asyncio.CancelledError:
                self._give_back(spare)
                raise
            except NodeError:
                self._kept.discard(spare)
                raise
            self._kept.discard(spare)
            self._refill_later()
            if process.alive:
                return process
            await process.close()

    async def close(self) -> None:
        self._closed = True
        if self._refill:
            self._refill.cancel()
        for spare in self._kept:
            spare.cancel()
        for spare in list(self._kept):
            await _end(spare)
        await asyncio.gather(*self._ending)

    def _give_back(self, spare: "asyncio.Task[TrainingProcess]") -> None:
        """Who waited for it gave up: it is the next taker's, and what was begun since may be one too many."""
        self._spares.appendleft(spare)
        if len(self._spares) > self._most:
            newest = self._spares.pop()
            self._kept.discard(newest)
            ending = asyncio.create_task(_end(newest))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    def _begin(self) -> None:
        spare = asyncio.create_task(self._warm())
        self._spares.append(spare)
        self._kept.add(spare)
        spare.add_done_callback(self._warmed)

    def _warmed(self, spare: "asyncio.Task[TrainingProcess]") -> None:
        if spare.cancelled():
            return
        if error := spare.exception():
            log.warning("no training process is warm: %s", error)
        elif len(self._spares) < self._most:
            self._refill_later()

    def _refill_later(self) -> None:
        if self._refill:
            self._refill.cancel()
        if not self._closed:
            self._refill = asyncio.get_running_loop().call_later(REFILL_DELAY_S, self.fill_up)

    async def _warm(self) -> TrainingProcess:
        process = await TrainingProcess.start(self.launch)
        try:
            await process.wait_ready()
        except BaseException:  # a cancel too: nobody else would end it
            await process.close()
            raise
        return process


async def _end(spare: asyncio.Task[TrainingProcess]) -> None:
    spare.cancel()
    with contextlib.suppress(asyncio.CancelledError, NodeError):
        await (await spare).close()


def scrubbed_environment(folder: Path) -> dict[str, str]:
    """What a training process may know of our environment: where programs and packages are, nothing more."""
    packages = Path(cyxcore.__path__[0]).parent
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(packages),
        "PYTHONNOUSERSITE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",  # our kernels have threads of their own
    }


def describe_end(status: int, last_words: list[str], what: str = "training process") -> str:
    """How a process ended, for a person. status: exit status, or minus the signal's number."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        how = f"was killed by {name}"
        how += " (the machine may be out of memory)" if status == -signal.SIGKILL else ""
    else:
        how = f"ended with exit status {status} before it was done"
    said = "; its last words: " + " | ".join(last_words) if last_words else ""
    return f"the {what} {how}{said}"[:2000]
