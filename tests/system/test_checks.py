"""What a node delivers is checked before it is paid, on a whole network: who cheats, and who checks and dies."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from cyxnet import credentials, jobfile
from cyxnet.bus import Bus
from cyxnet.client import AsyncClient
from cyxnet.local import LocalNetwork
from cyxnet.messages import CheckpointPolicy, Needs
from cyxnode import hardware
from cyxnode.agent import Agent, Settings
from cyxnode.home import open_home
from cyxnode.process import TRAIN_COMMAND, Launch, Pool
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, endless, training_processes, until

CHEAT = (sys.executable, "-P", str(Path(__file__).with_name("cheat.py")))
DIGITS = jobfile.load(EXAMPLES / "digits.toml")
STEPWISE = CheckpointPolicy(every_steps=100, every_s=0.0)


@pytest.fixture
async def network(tmp_path):
    """node-1 is the operator's checker, and all that is delivered is checked."""
    home = open_home(tmp_path / "net", "node-1")
    home.close()
    settings = {"checkers": [home.node_id], "bans": True}
    async with LocalNetwork(tmp_path / "net", heartbeat_ms=500, lease_ms=4_000, settings=settings) as running:
        yield running


@pytest.fixture
async def client(network):
    async with await AsyncClient.connect(network.folder) as connected:
        await connected.faucet(50_000_000_000)
        yield connected


@contextlib.asynccontextmanager
async def stranger(network, name, command=TRAIN_COMMAND):
    """A node of somebody else, with a key and a folder of its own, whose training processes are started so."""
    home = open_home(network.folder.with_name(name), name)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(home.close)
        who = credentials.as_node(home.key, home.node_id)
        bus = await Bus.connect(network.file.node_url, name=home.node_id, credentials=who)
        stack.push_async_callback(bus.close)
        pool = Pool(Launch(work_folder=home.work_folder, command=command))
        stack.push_async_callback(pool.close)
        pool.warm_up()
        ready = asyncio.Event()
        facts, file = await asyncio.to_thread(hardware.measure), network.file
        agent = Agent(home, bus, pool, facts, Settings(), ready.set, file.network_id, None, file.platform_key)
        working = asyncio.create_task(agent.run())
        stack.push_async_callback(asyncio.wait, [working])
        stack.callback(agent.stop, "the test is over")
        stack.callback(agent.stop, "the test is over")
        await asyncio.wait_for(ready.wait(), 60)
        yield home


async def test_a_node_that_delivers_what_it_did_not_train_is_not_paid_and_banned_and_the_client_gets_the_true_model(
    client, network, tmp_path
):
    # the checker's only place: the job goes to the other node, and its check waits
    busy = await client.submit(endless("digits.toml"))
    await until(client, busy.job_id, "Started")
    async with stranger(network, "thief", CHEAT) as thief:
        job = await client.submit(replace(DIGITS, checkpoints=STEPWISE))
        delivered = (await until(client, job.job_id, "Completed"))[-1].data
        assert delivered["node_id"] == thief.node_id
        view = await client.job(job.job_id)
        assert view.status == "checking" and "it waits for a checker" in view.check
        await client.cancel(busy.job_id)
        rejected = (await until(client, job.job_id, "Rejected"))[-1].data
        assert rejected["node_id"] == thief.node_id
        assert (
            len({finding["end"]["sha256"] for finding in rejected["findings"]}) == 1 and len(rejected["findings"]) == 2
        )
        view = await client.wait(job.job_id)

    checker = (await client.nodes())[0]
    assert view.status == "completed" and view.node_id == checker.node_id != thief.node_id
    assert view.model.sha256 != delivered["model"]["sha256"]
    assert view.check == f"not checked: {checker.node_id}, which trained it, is a checker itself"
    [first, _] = (await client.explain(job.job_id)).decisions
    assert f"the work of {thief.node_id}" in first["rejected"] and checker.node_id in first["rejected"]
    banned = next(node for node in await client.nodes() if node.node_id == thief.node_id)
    assert banned.state == "banned"
    assert (await client.wallet(thief.wallet_address)).token_base_units == 0
    assert [payee.wallet for payee in view.payees] == [checker.wallet]
    await assert_money_is_conserved(client, network)

    command = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "verify", job.job_id]
    verified = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await verified.communicate()
    assert verified.returncode == 0 and view.model.sha256 in said.decode()


async def test_a_checker_that_dies_costs_time_and_an_honest_node_nothing(client, network):
    async with stranger(network, "honest") as honest:
        async with asyncio.timeout(60):
            while not (warm := await asyncio.to_thread(training_processes, network)):
                pass
        for process in warm:
            process.suspend()  # so the check cannot be over before its checker is dead
        job = replace(DIGITS, needs=Needs(node_id=honest.node_id), checkpoints=STEPWISE)
        submitted = await client.submit(job)
        leased = (await until(client, submitted.job_id, "CheckLeased"))[-1].data
        os.kill(network.parts["node-1"].process.pid, signal.SIGKILL)
        again = (await until(client, submitted.job_id, "CheckLeased", count=2))[-1].data
        assert again["number"] == leased["number"] + 1 and again["session"] != leased["session"]
        view = await client.wait(submitted.job_id)
        kinds = [update.kind async for update in client.watch(submitted.job_id) if update.source == "event"]
        assert (kinds.count("CheckLost"), kinds.count("Checked"), kinds.count("Leased")) == (1, 1, 1)
        assert view.status == "completed" and view.check.startswith("checked: ")
        assert view.check.endswith(f"trained again by {again['node_id']}: the same bytes")
        assert (await client.explain(submitted.job_id)).check == view.check
        assert (await client.wallet(honest.wallet_address)).token_base_units == view.node_base_units > 0
    await assert_money_is_conserved(client, network)
