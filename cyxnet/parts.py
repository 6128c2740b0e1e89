"""One program of a network on this machine, as a child process: start it, hear that it is ready, stop it."""

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from cyxcore.errors import CyxError
from cyxnet.broker import using

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class StartError(CyxError):
    """A part of the network did not start. The message holds its own last words."""

    code = "start_failed"


class Part:
    """One child process that says {"ready": true, …} on its first line of output."""

    def __init__(self, name: str, command: list[str], log: Path):
        self.name = name
        self.command = command
        self.log = log
        self.said: dict[str, Any] = {}
        self._log_start = 0  # of the present process
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> float:
        """Start and wait until it is ready; returns the milliseconds it took. Raises StartError or DiskFull."""
        begun = time.monotonic()
        with using(self.log.parent, StartError), self.log.open("ab") as output:
            self._log_start = output.tell()
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal reaches this process only
            )
        try:
            self.said = await self._first_words()
        except BaseException:  # a cancel too: nobody else would end it
            await self.stop()
            raise
        return (time.monotonic() - begun) * 1000

    async def _first_words(self) -> dict[str, Any]:
        assert self.process and self.process.stdout
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await self.process.stdout.readline()
            return dict(json.loads(line))
        except TimeoutError:  # quoted before it says that it was told to stop
            late = f"it was not ready within {READY_TIMEOUT_S:g} s; its last words"
            raise StartError(f"{self.name} did not start: {late}: {self.last_words()}") from None
        except (TypeError, ValueError):  # it ended, perhaps while it said so
            await self.stop()
            raise StartError(f"{self.name} did not start: {self.last_words()}") from None

    def last_words(self) -> str:
        try:
            lines = self.log.read_bytes()[self._log_start :].decode(errors="replace").strip().splitlines()
        except OSError as error:
            return f"its log cannot be read ({error.strerror}: {self.log})"
        return f"{lines[-1] if lines else 'it said nothing'} (see {self.log})"

    async def ended(self) -> int:
        """Wait for the end of the process; its output is read so that it never blocks on it."""
        assert self.process and self.process.stdout
        with contextlib.suppress(Exception):
            while await self.process.stdout.read(65536):
                pass
        return await self.process.wait()

    async def stop(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        # os.kill, because Popen.send_signal polls, and reaps the child under asyncio's feet
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.ended()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
