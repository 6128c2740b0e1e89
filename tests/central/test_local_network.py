"""`cyx up` on real processes: what dies comes back where everybody knows it, and nothing outlives its owner."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from msgspec.structs import replace

from cyxnet import jobfile
from cyxnet.broker import Passwords
from cyxnet.brokers import Ports
from cyxnet.client import AsyncClient
from cyxnet.config import ConfigError, NetworkFile, for_others, read_network, write_network
from cyxnet.identity import load_or_create
from cyxnet.local import Kept, LocalNetwork
from cyxnet.messages import Needs
from cyxnet.solana import Settlement

EXAMPLES = Path(__file__).parents[2] / "examples"

UP = """
import asyncio, sys
from pathlib import Path
from cyxnet.local import LocalNetwork

async def main():
    async with LocalNetwork(Path(sys.argv[1]), nodes=1) as network:
        print(*network.process_ids.values(), flush=True)
        await network.wait()

asyncio.run(main())
"""


class Watched(LocalNetwork):
    """A local network that says which part got ready again."""

    def __init__(self, folder):
        self.again = asyncio.Queue()
        super().__init__(folder, nodes=0, on_ready=lambda part, detail, ms: self.again.put_nowait(part))

    async def until_ready(self, name):
        async with asyncio.timeout(60):
            while await self.again.get() != name:
                pass


async def test_what_dies_in_a_new_network_comes_back_at_the_same_address(tmp_path):
    # the chain of a folder's first run came back at another port: nothing was ever paid again
    async with Watched(tmp_path / "net") as network:
        await network.until_ready("central")
        os.kill(network.process_ids["chain"], signal.SIGKILL)
        await network.until_ready("chain")
        async with Settlement(network.file.chain_url) as chain:
            assert await chain.genesis_hash()
        os.kill(network.process_ids["broker"], signal.SIGKILL)
        await network.until_ready("broker")
        async with await AsyncClient.connect(network.folder):
            pass


async def test_a_second_up_on_the_same_folder_is_refused(tmp_path):
    async with Watched(tmp_path / "net"):
        with pytest.raises(ConfigError, match=f"is up already .process {os.getpid()}."):
            await Watched(tmp_path / "net").__aenter__()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("central.key", "central.key is gone.* with `cyx id import --central`"),
        ("chain", "chain is gone, the chain that"),
    ],
)
async def test_a_folder_that_has_lost_its_key_or_its_chain_is_refused(tmp_path, gone, said):
    # both were made anew without a word: every wallet was empty
    kept = Kept(network_id="local-1", passwords=Passwords.fresh(), brokers=[Ports()])
    (tmp_path / "kept.json").write_bytes(msgspec.json.encode(kept))
    (tmp_path / "chain").mkdir()
    load_or_create(tmp_path / "central.key")
    lost = tmp_path / gone
    lost.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=said):
        await LocalNetwork(tmp_path, nodes=0).__aenter__()
    assert not lost.exists()


async def test_the_network_of_another_machine_is_joined_and_never_replaced(tmp_path):
    # `cyx train` started a network of its own in that folder, and removed the other one's network.json at its end
    url = "tls://cyx.example:4222"
    theirs = NetworkFile(
        network_id="theirs",
        client_url=url,
        edge_url=url,
        node_url=url,
        core_url=url,
        monitor_url="",
        chain_url="",
        pid=17,
    )
    write_network(tmp_path, theirs)  # what a `cyx up` left that was killed here
    assert LocalNetwork.running(tmp_path) is None
    write_network(tmp_path, for_others(theirs))
    assert LocalNetwork.running(tmp_path).network_id == "theirs"
    with pytest.raises(ConfigError, match="network.json names a network that no `cyx up` started here"):
        await LocalNetwork(tmp_path, nodes=0).__aenter__()
    assert read_network(tmp_path) == for_others(theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="the broker ends with its parent on Linux only")
def test_nothing_outlives_a_killed_up_and_the_next_one_starts(tmp_path):
    folder = tmp_path / "net"
    with subprocess.Popen([sys.executable, "-c", UP, str(folder)], stdout=subprocess.PIPE, text=True) as up:
        family = [psutil.Process(int(pid)) for pid in up.stdout.readline().split()]
        for process in list(family):
            family += process.children(recursive=True)
        up.kill()
    _, left = psutil.wait_procs([process for process in family if process.is_running()], timeout=15)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    assert read_network(folder)  # what the killed one left does not hinder the next

    async def again():
        async with Watched(folder) as network:
            assert LocalNetwork.running(folder).network_id == network.file.network_id

    asyncio.run(again())


async def test_the_last_nodes_are_checkers_and_what_the_others_train_is_checked(tmp_path):
    told = {}

    def on_ready(part, detail, ms):
        told[part] = detail

    network = LocalNetwork(tmp_path / "net", nodes=2, checkers=1, on_ready=on_ready)
    async with network, await AsyncClient.connect(network.folder) as client:
        trainer, checker = sorted(node.node_id for node in await client.nodes())
        assert network.file.checkers == [checker] and told["node-2"] == f"{checker}, a checker"
        assert (tmp_path / "net" / "nodes" / "node-2").stat().st_mode & 0o077 == 0
        await client.faucet(50_000_000_000)
        job = replace(jobfile.load(EXAMPLES / "digits.toml"), needs=Needs(node_id=trainer))
        view = await client.wait((await client.submit(job)).job_id)
        assert view.status == "completed", view.error
        assert view.check.startswith("checked: ") and checker in view.check


async def test_more_checkers_than_nodes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"expected fewer checkers than nodes \(1\), got 2"):
        async with LocalNetwork(tmp_path / "net", checkers=2):
            pass
