"""A disk that was full, on a small file system of its own: the network works again by itself once there is room."""

import asyncio
import os
import re
import shutil
import subprocess
import sys

import pytest

from cyxnet import local
from cyxnet.broker import Broker, BrokerError, DiskFull, Passwords, configuration
from cyxnet.local import LocalNetwork
from cyxnet.parts import Part, StartError

SMALL_BYTES = 200 * 2**20
FULL_DISK = """
import asyncio, os, signal, sys
from pathlib import Path
from cyxnet import broker, local
from cyxnet.brokers import Brokers
from cyxnet.bus import Bus, BusError
from cyxnet.local import LocalNetwork

local.CRASHES_PER_MINUTE = 1  # a disk that stays full is no reason to give up
local.RESTART_DELAYS_S = (0.1,)
broker.READY_TIMEOUT_S = 3.0  # without room it never is

async def main(folder):
    told = asyncio.Queue()

    async def until(words):
        async with asyncio.timeout(60):
            while words not in await told.get():
                pass

    bring_up, tried = Brokers.bring_up, asyncio.Event()

    async def try_again(brokers, name):
        try:
            await bring_up(brokers, name)
        finally:
            tried.set()

    Brokers.bring_up = try_again
    async with LocalNetwork(folder / "net", nodes=0, on_event=told.put_nowait) as network:
        core = await Bus.connect(network.file.core_url, name="test")
        await core.ensure_stream("TEST", ["test"])
        core._mux._timeout_s = 1.0  # who has no room answers no append
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
        os.kill(network.process_ids["broker"], signal.SIGKILL)  # and whoever starts it again finds it full
        for _ in range(2):
            tried.clear()
            await tried.wait()
        ballast.unlink()
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


SECOND_START = """
import sys
from pathlib import Path
from cyxnet import broker
from cyxnet.broker import Broker, DiskFull, Passwords

broker.READY_TIMEOUT_S = 1e6  # nobody waits for what cannot come
folder, passwords = Path(sys.argv[1]), Passwords.fresh()
Broker.start(folder / "broker", passwords).stop()
with (folder / "ballast").open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(2**12))
    except OSError:
        pass
try:
    Broker.start(folder / "broker", passwords)
except DiskFull as error:
    print(error)
(folder / "ballast").unlink()
Broker.start(folder / "broker", passwords).stop()
print(*sorted(path.name for path in (folder / "broker").iterdir()))
"""


def can_mount():
    return (
        shutil.which("unshare")
        and not subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True
        ).returncode
    )


def on_a_disk_of(size_bytes, folder, script):
    """What a script says that has such a disk to itself, at `folder`, its first argument."""
    mount = f'mount -t tmpfs -o size={size_bytes} none {folder} && exec {sys.executable} -c "$0" {folder}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, script], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not can_mount(), reason="no file system of its own can be mounted here")
def test_a_broker_that_met_a_full_disk_works_again_when_there_is_room(tmp_path):
    assert on_a_disk_of(SMALL_BYTES, tmp_path, FULL_DISK) == "went on\n"


@pytest.mark.skipif(not can_mount(), reason="no file system of its own can be mounted here")
def test_a_broker_that_starts_again_on_a_full_disk_says_so_though_its_log_has_no_room_for_it_either(tmp_path):
    # its own words ended in the middle, and ten seconds were waited for a port
    said = on_a_disk_of(SMALL_BYTES // 5, tmp_path, SECOND_START)
    assert re.search("No space left on device; free some space on its disk\njetstream lock nats.conf nats.log\n", said)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no file that is always full")
def test_a_broker_that_finds_no_room_says_so_in_one_line_and_starts_once_there_is(tmp_path):
    config = tmp_path / "nats.conf"
    config.symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="No space left on device; free some space"):
        Broker.start(tmp_path, Passwords.fresh())
    config.unlink()
    Broker.start(tmp_path, Passwords.fresh()).stop()  # the lock was given back


def test_a_folder_that_cannot_be_used_is_one_error_of_the_broker(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BrokerError, match="Not a directory; nothing can be started"):
        Broker.start(tmp_path / "file" / "broker", Passwords.fresh())


def test_what_a_store_holds_already_does_not_count_against_its_limit(tmp_path):
    # a network that started with less room than its log has could not open it again
    def limit():
        return int(re.search(r"max_file: (\d+)", configuration(tmp_path, Passwords.fresh(), -1, -1))[1])

    small = limit()
    (tmp_path / "jetstream").mkdir()
    with (tmp_path / "jetstream" / "messages").open("wb") as log:
        log.truncate(2**42)  # a hole: as large as one likes, and no room taken
    assert limit() - small > 2**41


WITHOUT_ROOM = "chain: it cannot be written (database or disk is full)"
FULL_FOR_RUNS = "the disk is full: no new run is taken until there is room; free some space"  # and the node goes on


@pytest.mark.parametrize("words", ["Segmentation fault", WITHOUT_ROOM, FULL_FOR_RUNS])
async def test_a_part_that_ends_again_and_again_is_given_up_unless_it_is_for_want_of_room(tmp_path, monkeypatch, words):
    # where some megabytes are left a chain starts, and ends at its first large write
    monkeypatch.setattr(local, "RESTART_DELAYS_S", (0.0,))
    network, ends, went_on = LocalNetwork(tmp_path), 0, asyncio.Event()
    network._failed = asyncio.get_running_loop().create_future()
    part = network.parts["chain"] = Part("chain", [], tmp_path / "log")
    part.log.write_text(words)

    async def ended():
        nonlocal ends
        ends += 1
        if ends > 2 * local.CRASHES_PER_MINUTE:
            went_on.set()
            await asyncio.Event().wait()
        return 1

    async def bring_up():
        pass

    watching = asyncio.create_task(network._watch("chain", ended, bring_up))
    going_on = asyncio.create_task(went_on.wait())
    await asyncio.wait({network._failed, going_on}, return_when=asyncio.FIRST_COMPLETED)
    assert went_on.is_set() == (words is WITHOUT_ROOM)
    if network._failed.done():
        with pytest.raises(StartError, match=f"chain keeps ending: {words}"):
            network._failed.result()
    for task in (watching, going_on):
        task.cancel()
    await asyncio.gather(watching, going_on, return_exceptions=True)
