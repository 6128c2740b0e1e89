"""Three brokers and two centrals on one log: each serves, and a job outlives the loss of one of each."""

import asyncio
import json
import os
import signal
from collections import Counter

import pytest
from msgspec.structs import replace

from cyxnet import jobfile, subjects
from cyxnet.bus import Bus
from cyxnet.client import AsyncClient
from cyxnet.config import ConfigError
from cyxnet.local import LocalNetwork
from tests.net.streams import leader_of
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, until

REQUESTS = 40


class Told:
    """What a network says of its parts; a test waits for the sentence it needs."""

    def __init__(self):
        self.sentences = asyncio.Queue()

    async def until(self, words):
        async with asyncio.timeout(60):
            while words not in await self.sentences.get():
                pass

    def ready(self, part, detail, ms):
        self.sentences.put_nowait(f"{part} ready")

    def event(self, text):
        self.sentences.put_nowait(text)


@pytest.fixture
async def told():
    return Told()


@pytest.fixture
async def network(tmp_path, told):
    async with LocalNetwork(
        tmp_path / "net",
        cluster=3,
        centrals=2,
        heartbeat_ms=500,
        lease_ms=4_000,
        on_ready=told.ready,
        on_event=told.event,
    ) as running:
        yield running


async def test_a_job_outlives_the_leader_of_the_log_and_a_central(client, network):
    told = Counter()  # by kind: how many of the centrals told it

    async def heard(subject, payload, headers):
        told[json.loads(payload)["kind"]] += 1

    job = jobfile.load(EXAMPLES / "digits.toml")
    await client.bus.subscribe(subjects.update("*"), heard)
    submitted = await client.submit(replace(job, training=replace(job.training, epochs=60)))
    seen = await until(client, submitted.job_id, "epoch", count=3)
    assert seen[0].kind == "Submitted" and told["Submitted"] == 0  # who asks hears of it, and nobody else
    async with asyncio.timeout(60):
        while told["Leased"] < 2:  # every central tells what happens to it then
            await client.bus.round_trip()
    core = await Bus.connect(network.file.core_url, name="test-core")
    leader = await leader_of(core, subjects.EVENTS)
    await core.close()
    for victim in (leader, "central"):
        os.kill(network.process_ids[victim], signal.SIGKILL)
    async with asyncio.timeout(100):
        view = await client.wait(submitted.job_id)
    assert view.status == "completed", view.error
    reply = await client.ledger(f"select kind, count(*) from events where about = '{view.job_id}' group by 1")
    assert dict(reply.rows)["Settled"] == 1
    await assert_money_is_conserved(client, network)


async def test_each_request_is_served_by_exactly_one_of_the_centrals(client, network):
    answers = [await client.bus.request(subjects.api(client.caller, "network.info"), b"{}") for _ in range(REQUESTS)]
    served = await stats(client, "network-info", centrals=2)
    assert len(answers) == sum(served.values()) == REQUESTS


async def stats(client, endpoint, centrals):
    """Central -> how many requests of an endpoint it has got, by the micro-service protocol."""
    found, complete = {}, asyncio.Event()

    async def take(subject, payload, headers):
        said = json.loads(payload)
        counts = {each["name"]: each["num_requests"] for each in said["endpoints"]}
        found[said["id"]] = counts[endpoint]
        if len(found) == centrals:
            complete.set()

    await client.bus.subscribe(f"{subjects.inbox(client.caller)}.stats", take)
    await client.bus._nc.publish(
        f"$SRV.STATS.{subjects.SERVICE_NAME}", b"", reply=f"{subjects.inbox(client.caller)}.stats"
    )
    async with asyncio.timeout(60):
        await complete.wait()
    return found


async def test_a_frozen_broker_is_started_again_and_the_network_goes_on(client, network, told):
    os.kill(network.process_ids["broker-2"], signal.SIGSTOP)
    await told.until("broker-2: answers nothing for 5 s")
    await told.until("broker-2 ready")
    async with asyncio.timeout(60):
        assert (await client.faucet(1_000_000_000)).signature


async def test_the_number_of_brokers_of_a_folder_stays(network, tmp_path):
    await network.close()
    with pytest.raises(ConfigError, match="has 3 broker.s., not 1; .* choose another folder"):
        await LocalNetwork(network.folder, cluster=1).__aenter__()
    async with LocalNetwork(network.folder, nodes=0) as again:
        assert again.file.replicas == 3
        async with await AsyncClient.connect(again.folder) as client:
            assert (await client.info()).network_id == network.file.network_id
