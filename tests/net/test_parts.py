"""Programs of a network as child processes."""

import asyncio
import sys
from pathlib import Path

import pytest

from cyxnet.parts import Part, StartError

SAYS = "import sys, time; sys.stderr.write('looking for a broker\\n'); sys.stderr.flush(); "


async def test_a_program_that_is_not_ready_in_time_is_ended_and_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the error was what it said when it was told to stop, as if somebody else had ended it
    monkeypatch.setattr("cyxnet.parts.READY_TIMEOUT_S", 0.5)
    part = Part("node-1", [sys.executable, "-c", SAYS + "time.sleep(600)"], tmp_path / "log")
    with pytest.raises(StartError, match=r"node-1 did not start: it was not ready within 0\.5 s; its last words: "):
        await part.start()
    assert part.process and part.process.returncode is not None


async def test_a_program_that_ends_instead_of_being_ready_is_quoted(tmp_path: Path) -> None:
    part = Part("node-1", [sys.executable, "-c", SAYS + "sys.exit(3)"], tmp_path / "log")
    with pytest.raises(StartError, match=r"node-1 did not start: looking for a broker \(see "):
        await part.start()


async def test_a_late_program_is_ended_though_nobody_can_read_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # reading it failed before the program was told to stop, and it ran on
    monkeypatch.setattr("cyxnet.parts.READY_TIMEOUT_S", 0.5)
    part = Part("node-1", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
    starting = asyncio.create_task(part.start())
    while part.process is None:
        await asyncio.sleep(0)
    part.log.unlink()  # here, because the program may take longer than that to begin at all
    with pytest.raises(StartError, match="not ready within 0.5 s; its last words: its log cannot be read"):
        await starting
    assert part.process.returncode is not None


async def test_a_program_whose_start_is_given_up_is_ended(tmp_path: Path) -> None:
    part = Part("node-1", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
    starting = asyncio.create_task(part.start())
    while part.process is None:
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert part.process.returncode is not None


@pytest.mark.parametrize("line", ["5", "[1]", "ready"])
async def test_a_program_that_says_something_else_first_is_ended(tmp_path: Path, line: str) -> None:
    says = f"import time; print({line!r}, flush=True); time.sleep(600)"
    part = Part("node-1", [sys.executable, "-c", says], tmp_path / "log")
    with pytest.raises(StartError, match="node-1 did not start: it said nothing"):
        await part.start()
    assert part.process and part.process.returncode is not None
