"""Deployments on real processes that grow with their questions, shrink without them, and go on after their hours."""

import asyncio

import pytest

import cyxcore as cx
from cyxnet.local import LocalNetwork
from tests.node.serving.models import mlp
from tests.system.conftest import assert_money_is_conserved
from tests.system.conftest import until as until_told

AMOUNT = 3_600_000_000
ASKERS = 12
ROWS = [[0.5] * 4] * 4


@pytest.fixture
async def network(tmp_path):
    """Two centrals, which decide at once; three nodes, of which one is spare."""
    async with LocalNetwork(tmp_path / "net", nodes=3, centrals=2, heartbeat_ms=500, lease_ms=8_000) as running:
        yield running


async def until(client, deployment, holds):
    """The replicas of a deployment, once they are so."""
    async with asyncio.timeout(90):
        while not holds(found := (await client.deployments.find(deployment, ended=True)).replicas):
            await client.bus.round_trip()
    return found


def count(replicas, state):
    return sum(each.state == state for each in replicas)


def are_settled(replicas):
    return all(each.client_base_units is not None for each in replicas)


def model_file(folder):
    path, held = folder / "small.cyxmodel", mlp()
    cx.save_model(path, held.graph, held.weights, classes=held.classes)
    return path


class Askers:
    """Ask until they are told to stop; what goes wrong is raised then."""

    def __init__(self, client, deployment, count):
        self.over, self.answers = asyncio.Event(), 0
        self.tasks = [asyncio.create_task(self.ask(client, deployment)) for _ in range(count)]

    async def ask(self, client, deployment):
        while not self.over.is_set():
            await client.deployments.predict(deployment, ROWS)
            self.answers += 1

    async def stop(self):
        self.over.set()
        await asyncio.gather(*self.tasks)


async def test_a_deployment_grows_with_its_questions_and_shrinks_without_them(client, network, tmp_path):
    deployment = await client.deployments.deploy(
        model_file(tmp_path), (1, 2), hours=1, amount_base_units=AMOUNT, concurrency=4, idle_s=1
    )
    found = await until(client, deployment, lambda replicas: count(replicas, "ready") == 1)
    [spare] = [each.job_id for each in found if each.state == "standby"]
    asking = Askers(client, deployment, ASKERS)
    await until(client, deployment, lambda replicas: count(replicas, "ready") == 2)
    called = (await until_told(client, spare, "ScaledUp"))[-1]
    assert "wanted: 2" in called.data["reason"]
    await asking.stop()
    await until(client, deployment, lambda replicas: count(replicas, "standby") == 1)
    await client.deployments.undeploy(deployment)
    found = await until(client, deployment, are_settled)
    assert all(0 < each.client_base_units < AMOUNT for each in found)  # both served, neither for an hour
    await assert_money_is_conserved(client, network)


async def test_a_deployment_goes_on_after_its_hours_and_nobody_who_asks_notices(client, network, tmp_path):
    deployment = await client.deployments.deploy(
        model_file(tmp_path), hours=8 / 3600, amount_base_units=8_000_000, renewals=1
    )
    asking = Askers(client, deployment, 2)
    added = await client.deployments.extend(deployment, 8 / 3600)
    found = await until(client, deployment, lambda replicas: count(replicas, "stopped") == 3)
    served = {each.job_id: each for each in found}
    assert len(served) == 3 and served[added[0]].served_ms == 8_000
    for task in asking.tasks:  # nobody serves any more
        task.cancel()
    results = await asyncio.gather(*asking.tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in results), results
    found = await until(client, deployment, are_settled)
    assert [each.client_base_units for each in found] == [0, 0, 0]  # settled one by one, each for its whole time
    assert {each.amount_base_units for each in found} == {8_000_000}
    await assert_money_is_conserved(client, network)
