"""The cache is never the truth: a job goes the same way with a real one, none, an empty one and one full of garbage.

The whole suite of real networks runs on any of them: CYX_TEST_CACHE=redis|empty|garbage python -m pytest tests/system
"""

import contextlib

import pytest
from msgspec.structs import replace

from cyxcentral.__main__ import REDIS_VARIABLE
from cyxnet import jobfile
from cyxnet.client import AsyncClient
from cyxnet.local import LocalNetwork
from tests.system.conftest import EXAMPLES, assert_money_is_conserved, cache_url

KINDS = ["memory", "redis", "empty", "garbage"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_goes_the_same_way_with_every_cache(kind, tmp_path, monkeypatch):
    monkeypatch.delenv(REDIS_VARIABLE)
    job = jobfile.load(EXAMPLES / "diabetes.toml")
    job = replace(job, training=replace(job.training, epochs=3))
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(cache_url(kind, tmp_path / kind))
        network = await stack.enter_async_context(LocalNetwork(tmp_path / "net", redis_url=url))
        client = await stack.enter_async_context(await AsyncClient.connect(network.folder))
        await client.faucet(50_000_000_000)
        job_id = (await client.submit(job)).job_id
        seen = []
        async for update in client.watch(job_id):
            seen.append(update.kind)
            asked = await client.job(job_id)  # while it runs: what is cached changes all the time
            assert asked.job_id == job_id and 0.0 <= asked.progress <= 1.0
        assert [view.job_id for view in (await client.jobs()).jobs] == [job_id]
        assert [node.online for node in await client.nodes()] == [True]
        view = await client.job(job_id)
        assert (view.status, view.progress) == ("completed", 1.0)
        assert seen.count("epoch") == 3
        assert (view.latest is not None) == (kind in ("memory", "redis"))  # the metrics are nowhere else
        await assert_money_is_conserved(client, network)
