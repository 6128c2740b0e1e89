"""A small round in which the broker's disk is full for seconds at a time: what was acknowledged is there afterwards."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOUNT = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$0"']
ROUND = "--full-disk --json --seed 5 --kills 2 --jobs 8 --nodes 2 --clients 2".split()


def can_mount(folder):
    """Whether this system lets an ordinary process have a small disk of its own."""
    try:
        return subprocess.run([*MOUNT, str(folder)], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("this system does not let an ordinary process mount a disk (unshare -rm)")
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "tests.chaos", *ROUND],
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, timeline = await process.communicate()
    assert process.returncode == 0, timeline.decode()
    outcome = json.loads(said)
    assert outcome["violations"] == []
    assert outcome["full_disks"] > 0 and outcome["statuses"]["completed"] > 0
