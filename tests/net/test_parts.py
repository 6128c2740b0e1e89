"""Programs of a network as child processes."""

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
