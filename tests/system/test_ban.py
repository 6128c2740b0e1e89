"""An operator bans a node in the middle of a run, or a client, and pardons it: on a whole network."""

import asyncio
import json

import nats
import pytest

from cyxcore.errors import CyxError
from cyxnet import credentials, jobfile, subjects
from cyxnet.bus import ApiError, NotAdmitted
from cyxnet.client import AsyncClient
from tests.system.conftest import EXAMPLES, endless, until


async def test_a_ban_throws_a_node_out_gives_its_job_back_and_ends_with_a_pardon(client, network, tmp_path):
    long = await client.submit(endless("digits.toml"))
    started = await until(client, long.job_id, "Started")
    node_id = next(each.data["node_id"] for each in started if each.kind == "Leased")

    async with await AsyncClient.connect(tmp_path, url=network.file.client_url) as stranger:
        with pytest.raises(ApiError, match="is no operator of this network") as refused:
            await stranger.ban("node-1", "I want its jobs")
        assert (refused.value.code, refused.value.status) == ("not_operator", 403)
        assert (await client.job(long.job_id)).status == "leased"

    assert (await client.ban("node-1", "wrong models", for_s=3600)).banned_until_ms
    lost = (await until(client, long.job_id, "LeaseLost"))[-1]
    assert (lost.data["attempt"], lost.data["code"]) == (1, "node_stopped")
    async with asyncio.timeout(60):
        while (view := (await client.nodes())[0]).state != "banned" or view.online:
            pass
    assert (await client.job(long.job_id)).status == "queued"
    await client.cancel(long.job_id)

    # the same verb from any NATS client
    who = credentials.as_client(client.keys)
    seed = credentials.nkey_seed(credentials.USER, client.keys.child("nats"))
    plain = await nats.connect(network.file.client_url, nkeys_seed_str=seed, inbox_prefix=who.inbox)
    asked = json.dumps({"node_id": node_id, "reason": "repaired"}).encode()
    answer = await plain.request(subjects.api(who.id, "node.pardon"), asked, timeout=60)
    assert json.loads(answer.data)["changes"][-1]["reason"] == "pardoned: repaired"
    await plain.close()

    again = await client.submit(jobfile.load(EXAMPLES / "digits.toml"))
    assert (await client.wait(again.job_id)).status == "completed"


async def test_a_client_that_is_banned_is_thrown_out_its_job_goes_on_and_a_pardon_lets_it_in(client, network, tmp_path):
    async with await AsyncClient.connect(tmp_path, url=network.file.client_url) as other:
        await other.faucet()
        job = await other.submit(jobfile.load(EXAMPLES / "digits.toml"))
        with pytest.raises(ApiError, match="is no operator of this network"):
            await other.ban_client(client.caller, "I want its place")
        view = await client.ban_client(other.caller, "floods", for_s=3600)
        assert view.banned_until_ms and view.by == client.caller
        other.retry_delays_s = (3600.0, 3600.0)  # for who asks while the link is gone: the refusal ends the pause
        async with asyncio.timeout(60):
            with pytest.raises(CyxError) as refused:  # by the central, or by the broker from which it was thrown
                await other.job(job.job_id)
        assert refused.value.code in ("banned", "not_admitted")
    with pytest.raises(NotAdmitted):
        await AsyncClient.connect(tmp_path, url=network.file.client_url)
    assert (await client.wait(job.job_id)).status == "completed"
    assert [each.client_id for each in await client.banned_clients()] == [other.caller]
    await client.pardon_client(other.caller)
    async with await AsyncClient.connect(tmp_path, url=network.file.client_url) as back:
        assert (await back.job(job.job_id)).status == "completed"
