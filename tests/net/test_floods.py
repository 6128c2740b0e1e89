"""Who asks too often or too much is refused, and nobody else is."""

import asyncio
import json
import os
import signal

import pytest

from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.credentials import as_client
from cyxnet.identity import Identity
from cyxnet.ratelimit import Floods, Rate
from tests.net.brokers import ME, stand_still, until


@pytest.fixture
def steady(monkeypatch):
    """Neither how quick this machine is nor a pause of it changes what is counted: nothing refills, nothing is excused.

    The rates of a test are as low for the same reason.
    """
    monkeypatch.setattr("cyxnet.hearing.PATIENCE", Rate(per_s=0.01, burst=500))
    monkeypatch.setattr("cyxnet.hearing.DEAF_S", 1_000.0)


async def test_a_flood_on_one_subject_is_refused_and_starves_no_other(edge, monkeypatch):
    monkeypatch.setattr("cyxnet.bus.MAX_REQUESTS_IN_FLIGHT", 4)
    flooded, go = asyncio.Event(), asyncio.Event()

    async def slow(subject, said):
        flooded.set()
        await go.wait()
        return {}

    async def quick(subject, said):
        return {"quick": True}

    await edge.answer(subjects.node("*", "completed"), dict, slow)
    await edge.answer(subjects.node("*", "heartbeat"), dict, quick)
    waiting = [asyncio.create_task(edge.ask(subjects.node("a", "completed"), {}, dict)) for _ in range(2)]
    await asyncio.wait_for(flooded.wait(), 60)
    with pytest.raises(ApiError, match="too many requests"):
        await edge.ask(subjects.node("a", "completed"), {}, dict)
    assert await edge.ask(subjects.node("a", "heartbeat"), {}, dict) == {"quick": True}
    go.set()
    await asyncio.gather(*waiting)


async def test_who_asks_too_often_is_told_when_to_ask_again_and_nobody_else_is(broker, steady):
    central = await Bus.connect(broker.url("edge"), name="central")
    clients = [as_client(Identity(letter * 32)) for letter in (b"f", b"h")]
    buses = {who.id: await Bus.connect(broker.url("client"), name="c", credentials=who) for who in clients}
    flood, honest = buses
    try:

        async def info(caller, request):
            return m.JobList(jobs=[], total=0)

        central.limit({"api": Rate(per_s=0.01, burst=2)})
        await central.serve("0.1.0", "test", {"job.list": info})

        async def ask(caller):
            return await buses[caller].ask(subjects.api(caller, "job.list"), m.JobListRequest(), m.JobList)

        for _ in range(2):
            assert (await ask(flood)).total == 0
        with pytest.raises(ApiError) as refused:
            await ask(flood)
        assert (refused.value.code, refused.value.status) == ("rate_limited", 429)
        assert 0 < refused.value.retry_after_ms <= 100_001
        assert (await ask(honest)).total == 0
    finally:
        for bus in (*buses.values(), central):
            await bus.close()


@pytest.fixture
async def flooder(broker):
    bus = await Bus.connect(broker.url("client"), name="c", credentials=as_client(Identity(b"f" * 32)))
    yield bus
    await bus.close()


FLOODER = as_client(Identity(b"f" * 32)).id


@pytest.mark.parametrize("reply", [f"_INBOX_{FLOODER}.x", "", "_INBOX_of_another.x"])
async def test_who_goes_on_although_refused_is_reported_once_and_not_heard_any_more(edge, flooder, reply, steady):
    # one that wants no answer, or has it sent to somebody else, was never even counted
    floods, served = [], []

    async def info(caller, request):
        served.append(caller)
        return m.JobList(jobs=[], total=0)

    edge.limit({"api": Rate(per_s=0.01, burst=2)}, floods.append)
    await edge.serve("0.1.0", "test", {"job.list": info})
    for _ in range(2_000):
        flooder._nc.send(subjects.api(FLOODER, "job.list"), b"{}", reply=reply)
    await flooder.round_trip()
    await until(lambda: edge.passed_over > 100, edge)
    assert floods == [FLOODER]
    assert edge.shut_out(FLOODER) and not edge.shut_out(ME.id)
    assert len(served) <= 2
    assert edge._nc.unread > 100  # not even taken apart


async def test_heartbeats_of_a_node_that_floods_drown_those_of_no_other(edge, broker, steady):
    heard, honest = [], await Bus.connect(broker.url("edge"), name="honest", inbox=subjects.inbox("honest"))

    async def beat(subject, said):
        heard.append(subject.split(".")[3])
        return {}

    edge.limit({"node": Rate(per_s=0.01, burst=3)})
    await edge.answer(subjects.node("*", "heartbeat"), dict, beat, strangers=True)
    for _ in range(5_000):
        edge._nc.send(subjects.node("flood", "heartbeat"), b"{}", reply=f"{subjects.inbox('flood')}.x")
    await edge.round_trip()
    assert await honest.ask(subjects.node("honest", "heartbeat"), {}, dict) == {}
    await honest.close()
    assert heard == [*["flood"] * 3, "honest"]


async def test_metrics_of_who_sends_too_many_are_passed_over_and_nobody_elses(edge, steady):
    heard, floods = [], []

    async def take(subject, payload, headers):
        heard.append(subject.split(".")[3])

    edge.limit({"node": Rate(per_s=0.01, burst=3)}, floods.append)
    await edge.subscribe(subjects.node("*", "hardware"), take, strangers=True)
    for _ in range(1_000):
        await edge.publish(subjects.node("flood", "hardware"), b"x")
    await edge.publish(subjects.node("honest", "hardware"), b"x")
    await until(lambda: "honest" in heard, edge)
    assert heard == ["flood"] * 3 + ["honest"]
    assert floods == ["flood"]


async def test_who_spoke_while_this_process_was_stopped_is_no_flood(edge, monkeypatch, steady):
    # central stood still for 25 s; when it went on, the metrics that had come meanwhile had their node thrown out for
    # a minute, and its lease with it
    monkeypatch.setattr("cyxnet.hearing.CATCH_UP_S", 1_000.0)
    heard, floods = [], []

    async def take(subject, payload, headers):
        heard.append(payload)

    edge.limit({"node": Rate(per_s=0.01, burst=50)}, floods.append)
    await edge.subscribe(subjects.node("*", "hardware"), take, strangers=True)
    hearing = edge._hearing
    hearing._ran_s -= 100_000
    for number in range(700):
        await edge.publish(subjects.node("honest", "hardware"), b"%d" % number)
    await edge.publish(subjects.node("another", "hardware"), b"last")
    await until(lambda: b"last" in heard, edge)
    assert (len(heard), floods) == (701, [])
    hearing.ran(hearing._caught_up_s)  # it has read what came: the rate is what it was
    for _ in range(700):
        await edge.publish(subjects.node("flood", "hardware"), b"x")
    await until(lambda: floods, edge)
    assert floods == ["flood"] and heard.count(b"x") == 50


async def test_who_spoke_while_the_broker_was_stopped_is_no_flood(broker, edge, monkeypatch):
    # only central itself standing still was noticed: 390 messages a second, where 500 were allowed, were a flood when
    # the broker had stood still for eight seconds
    monkeypatch.setattr("cyxnet.bus.LOOK_S", 0.05)
    monkeypatch.setattr("cyxnet.hearing.DEAF_S", 0.5)
    monkeypatch.setattr("cyxnet.hearing.CATCH_UP_S", 1_000.0)
    monkeypatch.setattr("cyxnet.hearing.PATIENCE", Rate(per_s=0.01, burst=50))
    heard, floods = [], []

    async def take(subject, payload, headers):
        heard.append(payload)

    node = await Bus.connect(broker.url("edge"), name="node")
    try:
        edge.limit({"node": Rate(per_s=500, burst=10)}, floods.append)
        await edge.subscribe(subjects.node("*", "hardware"), take, strangers=True)
        stopped, loop = broker.process.pid, asyncio.get_running_loop()
        stand_still(stopped)
        try:
            over = loop.create_future()
            loop.call_later(0.7, over.set_result, None)
            await over  # this process goes on meanwhile
            for number in range(250):
                await node.publish(subjects.node("honest", "hardware"), b"%d" % number)
        finally:
            os.kill(stopped, signal.SIGCONT)
        await node.publish(subjects.node("another", "hardware"), b"last")
        await until(lambda: b"last" in heard, edge)
        assert (len(heard), floods) == (251, [])
    finally:
        await node.close()


async def test_a_large_message_counts_as_several(edge, steady):
    heard = []

    async def take(subject, payload, headers):
        heard.append(len(payload))

    edge.limit({"node": Rate(per_s=0.01, burst=12)})
    await edge.subscribe(subjects.node("*", "hardware"), take, strangers=True)
    for size in (80_000, 80_000, 1):
        await edge.publish(subjects.node("a", "hardware"), bytes(size))
    await until(lambda: 1 in heard, edge)
    assert heard == [80_000, 1]


async def test_discovery_that_is_flooded_is_closed_for_a_while(edge, client, flooder, monkeypatch):
    # everybody's heartbeat was late by seconds, and the answers nobody read filled half a gigabyte of central
    monkeypatch.setattr("cyxnet.bus.DISCOVERY_CLOSED_S", 0.0)
    await edge.serve("0.1.0", "test", {})
    edge._discovery_floods = Floods(Rate(per_s=0.01, burst=1_000), out_s=1_000.0)  # however slowly they are read
    open_discovery, seen = edge._open_discovery, asyncio.Event()

    async def open_again(service):
        await seen.wait()
        await open_discovery(service)

    monkeypatch.setattr(edge, "_open_discovery", open_again)
    for _ in range(8_000):
        flooder._nc.send("$SRV.INFO", b"", reply=f"_INBOX_{FLOODER}.x")
    await flooder.round_trip()
    await until(lambda: not edge._services, edge)
    seen.set()
    await until(lambda: edge._services, edge)
    async with asyncio.timeout(60):
        while True:
            try:
                answer, _ = await client.request("$SRV.PING", b"", timeout_s=1)
                break
            except BusError:
                await client.round_trip()
    assert json.loads(answer)["name"] == "cyx"


async def test_an_inbox_of_nobody_is_not_answered_and_not_remembered(edge, client):
    # 100,000 names of 4 KB each were kept
    await edge.serve("0.1.0", "test", {})
    for name in ("x" * 65, "x" * 3_000, "é", "a$", ""):
        await client.publish("$SRV.PING", b"", reply=f"_INBOX_{name}.x")
    await client.request("$SRV.PING", b"", timeout_s=5)
    assert list(edge._discovered._buckets) == [subjects.inbox(ME.id)]


async def test_a_stranger_fills_no_more_than_half_of_the_places(edge, client, flooder, monkeypatch):
    monkeypatch.setattr("cyxnet.bus.MAX_REQUESTS_IN_FLIGHT", 8)
    go, asked = asyncio.Event(), []

    async def info(caller, request):
        asked.append(caller)
        if caller == FLOODER:
            await go.wait()
        return m.JobList(jobs=[], total=0)

    await edge.serve("0.1.0", "test", {"job.list": info})
    for _ in range(50):
        flooder._nc.send(subjects.api(FLOODER, "job.list"), b"{}", reply=f"_INBOX_{FLOODER}.x")
    await flooder.round_trip()
    await client.ask(subjects.api(ME.id, "job.list"), m.JobListRequest(), m.JobList)
    assert asked.count(FLOODER) == 4
    go.set()
