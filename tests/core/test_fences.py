"""No kernel touches memory beside its arrays, wherever these lie, and its bits do not depend on that (fences.py)."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.core.fences import PARTS, Work, check
from tests.core.kernelcases import ISAS


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=Path(__file__).parents[2], capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("part", PARTS)
def test_kernels_keep_to_their_arrays(part: str, isa: str) -> None:
    ended = run("-m", "tests.core.fences", isa, part)
    *_, last = ended.stdout.splitlines() or ["nothing"]
    assert ended.returncode == 0, f"{ended.returncode} at: {last}\n{ended.stderr}"


def test_what_is_written_beside_an_array_is_seen() -> None:
    def write(out: np.ndarray) -> None:
        if out.base is not None:  # it lies between fences
            np.lib.stride_tricks.as_strided(out, (2,), (-4,))[1] = 0

    with pytest.raises(AssertionError, match="beside an array in turn 0"):
        check(Work("a number before the first", write, [np.zeros(9, np.float32)]))


@pytest.mark.parametrize("place", ["span.first - 1", "span.last"])
def test_what_reads_beyond_the_pages_of_an_array_ends(place: str) -> None:
    code = (
        f"from tests.core.fences import *; spans, size = spread([36], 0); span = spans[0]; fenced(spans, size)[{place}]"
    )
    assert run("-c", code).returncode in (-signal.SIGSEGV, -signal.SIGBUS)
