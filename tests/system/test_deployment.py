"""A model's whole way on real processes: trained over the network, deployed, asked, killed, undeployed, paid for."""

import asyncio
import subprocess
import sys

import httpx
import numpy as np
import openai
import pytest
from msgspec.structs import replace

import cyxcore as cx
from cyxnet import jobfile
from cyxnet.gateway import Gateway
from cyxnet.httpserver import Server
from cyxnet.local import LocalNetwork
from tests.core.tables import Table
from tests.node.serving.models import mlp
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, processes_below

AMOUNT = 3_600_000_000  # for an hour: a millionth of a CYX for a millisecond
ASKERS = 8


@pytest.fixture
async def network(tmp_path):
    """Two nodes: a deployment outlives one of its replicas."""
    async with LocalNetwork(tmp_path / "net", nodes=2, heartbeat_ms=500, lease_ms=4_000) as running:
        yield running


def replica_processes(network):
    nodes = [pid for name, pid in network.process_ids.items() if name.startswith("node-")]
    return [process for pid in nodes for process in processes_below(pid, "cyxnode.replica")]


async def deploy(client, job_id, replicas):
    source = await client.deployments.source(job_id)
    deployment = client.deployments.id_of("digits")
    job = await client.deployments.request(source, deployment, hours=1, amount_base_units=AMOUNT)
    job_ids = await client.deployments.add(job, replicas)
    await client.deployments.ready(deployment, job_ids)
    return deployment, job_ids


async def test_a_trained_model_is_deployed_asked_killed_and_paid_for_by_the_time(client, network):
    data = np.loadtxt(EXAMPLES / "digits.csv", delimiter=",", skiprows=1, dtype=np.float32)
    rows, header = data[:5, :-1].tolist(), (EXAMPLES / "digits.csv").read_text().splitlines()[0].split(",")
    job = jobfile.load(EXAMPLES / "digits.toml")
    trained = await client.submit(replace(job, training=replace(job.training, epochs=5)))
    assert (await client.wait(trained.job_id)).status == "completed"
    deployment, job_ids = await deploy(client, trained.job_id, 2)

    # over NATS, over HTTP and as OpenAI's embeddings: the same numbers
    reply = await client.deployments.predict(deployment, rows)
    table = Table({name: data[:5, place] for place, name in reversed(list(enumerate(header)))})  # label first
    assert (await client.deployments.predict(deployment, table)).output == reply.output
    server = await Server.start(Gateway(client.deployments.questions, deployment), "127.0.0.1", 0)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as ai,
    ):
        assert (await http.post("/v1/predict", json={"input": rows})).json()["output"] == reply.output
        vector = await ai.embeddings.create(model=reply.model, input=rows[0], encoding_format="float")
        assert np.float32(vector.data[0].embedding).tolist() == np.float32(reply.output[0]).tolist()
    await server.close()

    checked = [sys.executable, "-m", "cyxnet", "--dir", str(network.folder), "check", deployment, "--questions", "9"]
    ran = await asyncio.to_thread(subprocess.run, checked, capture_output=True, text=True)
    assert ran.returncode == 0 and "9 answers of 2 replicas have its bits" in ran.stdout, ran.stderr

    # a replica is killed while it is asked: nobody who asks notices, and another takes its place
    over, answered = asyncio.Event(), []

    async def ask_on():
        while not over.is_set():
            answered.append((await client.deployments.predict(deployment, rows)).output == reply.output)

    asking = [asyncio.create_task(ask_on()) for _ in range(ASKERS)]
    replica_processes(network)[0].kill()
    async with asyncio.timeout(60):
        while sum(each.attempt for each in (await client.deployments.find(deployment)).replicas) < 3:
            assert not any(task.done() for task in asking)
        await client.deployments.ready(deployment, job_ids)
    over.set()
    await asyncio.gather(*asking)
    assert all(answered) and len(answered) >= ASKERS

    ended = await client.deployments.undeploy(deployment)
    for job_id in job_ids:
        await client.wait(job_id)
    found = (await client.deployments.find(ended.deployment, ended=True)).replicas
    for each in found:
        earned = each.node_base_units + each.platform_base_units
        assert 0 < each.served_ms and abs(earned - AMOUNT * each.served_ms // 3_600_000) <= 2, each
        assert each.client_base_units == AMOUNT - earned
    await assert_money_is_conserved(client, network)
    assert replica_processes(network) == []


async def test_a_replica_whose_process_stands_still_is_not_paid_for_being_ready(client, network, tmp_path):
    path, held = tmp_path / "small.cyxmodel", mlp()
    cx.save_model(path, held.graph, held.weights, classes=held.classes)
    deployment = await client.deployments.deploy(path, hours=1, amount_base_units=AMOUNT)
    (process,) = replica_processes(network)
    process.suspend()
    async with asyncio.timeout(60):
        while (replica := (await client.deployments.find(deployment)).replicas[0]).attempt < 2:
            await client.bus.round_trip()
    await client.deployments.ready(deployment, [replica.job_id])
    assert (await client.deployments.predict(deployment, [0.5] * 4)).output
    (first, *_) = (await client.explain(replica.job_id)).decisions
    assert first["lost"]["code"] == "not_answering"
    await client.deployments.undeploy(deployment)
    await client.wait(replica.job_id)
