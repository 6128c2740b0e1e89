"""How a deployment ends by itself: its time is used up, or its file is no model."""

import asyncio

import pytest

import cyxcore as cx
from cyxnet.deployments import NotDeployed
from tests.node.serving.models import mlp
from tests.system.conftest import assert_money_is_conserved, until_node_is

AMOUNT = 1_000_000_000


async def until_ended(client, deployment):
    """The replicas of a deployment once the chain has settled them."""
    async with asyncio.timeout(60):
        while True:
            found = await client.deployments.find(deployment, ended=True)
            if all(each.status in ("completed", "failed", "cancelled") for each in found.replicas):
                return found.replicas
            await client.bus.round_trip()


async def test_a_replica_ends_by_itself_when_its_time_is_used_up_and_is_paid_all_of_it(client, network, tmp_path):
    await until_node_is(client, "online")
    model, held = tmp_path / "small.cyxmodel", mlp()
    cx.save_model(model, held.graph, held.weights, classes=held.classes)
    source, deployment = await client.deployments.source(model), client.deployments.id_of("small")
    job = await client.deployments.request(source, deployment, hours=2 / 3600, amount_base_units=AMOUNT)
    await client.deployments.add(job, 1, source.path)  # deploy() would want to see it ready, in so short a time
    (ended,) = await until_ended(client, deployment)
    assert (ended.status, ended.node_base_units, ended.client_base_units) == ("completed", AMOUNT * 9 // 10, 0)
    await assert_money_is_conserved(client, network)


async def test_a_file_that_is_no_model_ends_the_deployment_with_the_reason(client, network, tmp_path):
    await until_node_is(client, "online")
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model at all")
    with pytest.raises(NotDeployed, match="is not ready"):
        await client.deployments.deploy(path, amount_base_units=AMOUNT)
    (ended,) = await until_ended(client, client.deployments.id_of("bad"))
    assert (ended.status, ended.client_base_units) == ("failed", AMOUNT)
