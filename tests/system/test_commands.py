"""Who has the broker commands no node, and the key that commands are signed with can be replaced."""

import asyncio

import msgspec
from msgspec.structs import replace

from cyxnet import jobfile, subjects
from cyxnet import messages as m
from cyxnet.bus import Bus
from cyxnet.client import AsyncClient
from cyxnet.codec import MSGPACK, decode
from cyxnet.commands import Trust
from cyxnet.local import LocalNetwork
from tests.system.conftest import EXAMPLES, until


def up(folder, **settings):
    return LocalNetwork(folder, heartbeat_ms=500, lease_ms=4_000, settings=settings)


def trust(network):
    return msgspec.json.decode((network.folder / "nodes" / "node-1" / "platform.json").read_bytes(), type=Trust)


async def session_of(bus, node_id):
    """As whoever has the broker reads it in the next heartbeat."""
    heard = asyncio.get_running_loop().create_future()

    async def take(subject, payload, headers):
        if not heard.done():
            heard.set_result(decode(m.Heartbeat, payload, MSGPACK).session)

    await bus.subscribe(subjects.node(node_id, "heartbeat"), take)
    return await asyncio.wait_for(heard, 60)


async def test_a_run_goes_on_whatever_who_has_the_broker_says_and_under_the_next_key_too(tmp_path, standing):
    job = jobfile.load(EXAMPLES / "digits.toml")
    standing.after(epoch=1)
    async with up(tmp_path / "net") as network, await AsyncClient.connect(network.folder) as client:
        await client.faucet(50_000_000_000)
        first = await client.submit(job)
        await until(client, first.job_id, "Started")
        view = await client.job(first.job_id)
        broker = await Bus.connect(network.file.edge_url, name="intruder")  # with central's own password
        try:
            session = await session_of(broker, view.node_id)
            stop = m.Stop(job_id=first.job_id, attempt=1, session=session, reason="forged")
            reply = await broker.ask(subjects.command(view.node_id), stop, m.CommandReply)
        finally:
            await broker.close()
        assert (reply.accepted, reply.code) == (False, "unsigned")
        standing.go_on()
        view = await client.wait(first.job_id)
        assert (view.status, view.attempt) == ("completed", 1)
        known = trust(network)
        assert (known.platform_key, known.key_number) == (network.file.platform_key, 1)
    async with up(tmp_path / "net", command_key=2) as network, await AsyncClient.connect(network.folder) as client:
        view = await client.wait((await client.submit(job)).job_id)
        assert (view.status, view.attempt) == ("completed", 1)
        assert trust(network) == replace(known, key_number=2)
