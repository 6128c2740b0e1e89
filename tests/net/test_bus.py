"""The bus against a real nats-server."""

import asyncio
import json

import pytest

from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, BrokerError, Passwords, syncs_always
from cyxnet.bus import ApiError, Bus, BusError, Conflict


@pytest.fixture
async def core(broker):
    bus = await Bus.connect(broker.url("core"), name="test-core")
    await bus.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], deny_delete=True, deny_purge=True)
    yield bus
    await bus.close()


@pytest.fixture
async def edge(broker):
    bus = await Bus.connect(broker.url("edge"), name="test-edge")
    yield bus
    await bus.close()


@pytest.fixture
async def client(broker):
    bus = await Bus.connect(broker.url("client"), name="test-client", inbox="_INBOX_client")
    yield bus
    await bus.close()


def test_the_broker_syncs_before_it_acknowledges(broker):
    assert syncs_always(broker.monitor_url)


def test_a_port_in_use_is_one_clear_error(broker, tmp_path):
    with pytest.raises(BrokerError, match="address already in use.*choose one with --port"):
        Broker.start(tmp_path / "second", Passwords.fresh(), port=broker.port)


async def test_nobody_at_the_address_is_one_clear_error():
    with pytest.raises(BusError, match="no Cyx broker answers at 127.0.0.1:1 .*is `cyx up` running"):
        await Bus.connect("nats://client:x@127.0.0.1:1", name="test")


async def test_a_wrong_password_is_one_clear_error(broker):
    with pytest.raises(BusError, match="no Cyx broker answers"):
        await Bus.connect(f"nats://client:wrong@127.0.0.1:{broker.port}", name="test")


async def test_an_append_needs_the_last_sequence_of_its_subject(core):
    first = await core.append(subjects.job_event("abc"), b"one", expected_seq=0)
    assert await core.append(subjects.job_event("abc"), b"two", expected_seq=first) == first + 1
    with pytest.raises(Conflict):
        await core.append(subjects.job_event("abc"), b"three", expected_seq=first)
    stored = await core.last(subjects.EVENTS, subjects.job_event("abc"))
    assert (stored.seq, stored.payload) == (first + 1, b"two")


async def test_a_follower_sees_what_was_and_what_comes_in_order(core):
    seen, enough = [], asyncio.Event()

    async def handler(stored):
        seen.append((stored.seq, stored.payload))
        if len(seen) == 4:
            enough.set()

    for number in range(3):
        await core.append(subjects.job_event("abc"), b"%d" % number)
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler)
    await core.append(subjects.job_event("abc"), b"3")
    await asyncio.wait_for(enough.wait(), 10)
    assert seen == [(1, b"0"), (2, b"1"), (3, b"2"), (4, b"3")]


async def test_a_client_of_the_edge_cannot_reach_the_log(core, client):
    with pytest.raises(CyxError):
        await client.append(subjects.job_event("forged"), b"x", expected_seq=0)
    assert await core.last(subjects.EVENTS, subjects.job_event("forged")) is None


async def test_a_client_cannot_speak_as_a_node(edge, client):
    heard = asyncio.Event()

    async def handler(subject, payload, headers):
        heard.set()

    await edge.subscribe(subjects.node("*", "progress"), handler)
    await client.publish(subjects.node("node-1", "progress"), b"x")
    await client._nc.flush()
    # a message that is allowed and arrives after it proves that the other one was dropped
    allowed = asyncio.Event()

    async def seen(subject, payload, headers):
        allowed.set()

    await edge.subscribe(subjects.api("me", "job.status"), seen)
    await client.publish(subjects.api("me", "job.status"), b"x")
    await asyncio.wait_for(allowed.wait(), 10)
    assert not heard.is_set()


async def test_verbs_are_served_to_any_caller_and_discoverable(edge, client):
    async def status(caller, ask):
        if ask.job_id == "nope":
            raise ApiError("unknown_job", "no such job", 404)
        if ask.job_id == "bug":
            raise RuntimeError("secret")
        return {"caller": caller, "job_id": ask.job_id}

    await edge.serve("1.2.3", "test", {"job.status": status})
    payload, _ = await client.request(subjects.api("alice", "job.status"), b'{"job_id": "abc"}')
    assert json.loads(payload) == {"caller": "alice", "job_id": "abc"}
    with pytest.raises(ApiError) as refused:
        await client.ask(subjects.api("alice", "job.status"), m.JobRef(job_id="nope"), dict)
    assert (refused.value.code, refused.value.status) == ("unknown_job", 404)
    with pytest.raises(ApiError) as failed:
        await client.ask(subjects.api("alice", "job.status"), m.JobRef(job_id="bug"), dict)
    assert failed.value.code == "internal" and "secret" not in str(failed.value)
    with pytest.raises(ApiError) as bad:
        await client.request(subjects.api("alice", "job.status"), b'{"job": 1}')
    assert bad.value.code == "bad_message"
    info = json.loads((await client.request("$SRV.INFO.cyx", b""))[0])
    [endpoint] = info["endpoints"]
    assert endpoint["subject"] == "cyx.v1.api.*.job.status"
    assert "job_id" in endpoint["metadata"]["request_schema"]


async def test_slow_requests_of_one_verb_run_side_by_side(edge, client):
    arrived, go = [], asyncio.Event()

    async def slow(caller, ask):
        arrived.append(caller)
        if len(arrived) == 5:
            go.set()
        await go.wait()
        return {}

    await edge.serve("1.0.0", "test", {"job.status": slow})
    asks = [client.request(subjects.api(f"c{n}", "job.status"), b'{"job_id": "abc"}') for n in range(5)]
    await asyncio.gather(*asks)
    assert len(arrived) == 5


async def test_nobody_serving_is_said_at_once(client):
    with pytest.raises(BusError, match="nobody serves"):
        await client.request(subjects.api("me", "job.list"), b"{}")
