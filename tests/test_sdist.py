"""A source distribution holds what the repository holds: it builds, and its tests and documents are whole."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_a_source_distribution_takes_every_tracked_file():
    """By the template's own reader, over the tracked files alone: nothing is walked, built or written."""
    filelist = pytest.importorskip("setuptools._distutils.filelist")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files there are")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    taken = filelist.FileList()
    taken.set_allfiles(tracked)
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        taken.process_template_line(line)
    left_out = {name for name in tracked if not name.startswith(".")} - set(taken.files)
    by_setuptools = {"pyproject.toml", "MANIFEST.in"}  # it adds them without being told
    assert not left_out - by_setuptools
