"""A disk that was full, on a small file system of its own: the network works again by itself once there is room."""

import shutil
import subprocess
import sys

import pytest

SMALL_BYTES = 200 * 2**20
FULL_DISK = """
import asyncio, os, sys
from pathlib import Path
from cyxnet.bus import Bus, BusError
from cyxnet.local import LocalNetwork

async def main(folder):
    told = asyncio.Queue()

    async def until(words):
        async with asyncio.timeout(60):
            while words not in await told.get():
                pass

    async with LocalNetwork(folder / "net", nodes=0, on_event=told.put_nowait) as network:
        core = await Bus.connect(network.file.core_url, name="test")
        await core.ensure_stream("TEST", ["test"])
        ballast = folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**16))
            except OSError:
                pass
        stored = []
        while True:
            try:
                stored.append(await core.append("test", os.urandom(20_000)))
            except BusError:
                break
        await until("the disk is full")
        ballast.unlink()
        await until("cannot write")
        while True:
            try:
                after = await core.append("test", b"after")
                break
            except BusError:
                await asyncio.sleep(0.1)
        assert after > len(stored), (after, stored)
        await core.close()
    print("went on")

asyncio.run(main(Path(sys.argv[1])))
"""


def can_mount():
    return (
        shutil.which("unshare")
        and not subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
        ).returncode
    )


@pytest.mark.skipif(not can_mount(), reason="no file system of its own can be mounted here")
def test_a_broker_that_met_a_full_disk_works_again_when_there_is_room(tmp_path):
    mount = f'mount -t tmpfs -o size={SMALL_BYTES} none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, FULL_DISK], capture_output=True, text=True, timeout=110)
    assert done.stdout == "went on\n", done.stdout + done.stderr
