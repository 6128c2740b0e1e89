"""A process that forks while a thread of it computes: its children compute, and end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.forking import WORKS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("work", [*WORKS, "traced"])
def test_children_of_a_process_that_forks_while_a_thread_computes_compute_and_end(work: str) -> None:
    # a step that is traced again now and then left its symbols in one of a hundred children
    command = [sys.executable, "-m", "tests.core.forking", work]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
