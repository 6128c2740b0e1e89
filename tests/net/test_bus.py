"""The bus against a real nats-server."""

import asyncio
import gc
import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import nats.aio.client
import nats.errors
import pytest

from cyxcentral.eventlog import retry
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, BrokerError, Passwords, syncs_always
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.codec import JSON
from cyxnet.connection import Message, block_of
from cyxnet.credentials import as_client
from cyxnet.escrow import SettlementError
from cyxnet.follower import Follower, place_of
from cyxnet.identity import Identity
from cyxnet.mux import Mux, Requests
from cyxnet.outcomes import AppendUnknown, Conflict
from cyxnet.ratelimit import Rate

ME = as_client(Identity(b"m" * 32))


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
    bus = await Bus.connect(broker.url("client"), name="test-client", credentials=ME)
    yield bus
    await bus.close()


def test_the_broker_syncs_before_it_acknowledges(broker):
    assert syncs_always(broker.monitor_url)


@pytest.mark.slow
async def test_who_says_nothing_any_more_is_cut_off(broker):
    # a central that had stopped was given its share of all requests: of two, half of what was asked waited for it
    url = urlsplit(broker.url("edge"))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    who = json.dumps({"verbose": False, "user": url.username, "pass": url.password}).encode()
    writer.write(b"CONNECT " + who + b"\r\nSUB asked everybody 1\r\nPING\r\n")
    while await reader.readline() != b"PONG\r\n":
        pass
    async with asyncio.timeout(60):
        assert b"Stale Connection" in await reader.read()  # to the end of the connection
    writer.close()


def test_a_port_in_use_is_one_clear_error(broker, tmp_path):
    with pytest.raises(BrokerError, match="address already in use.*choose one with --port"):
        Broker.start(tmp_path / "second", Passwords.fresh(), port=broker.port)


async def test_nobody_at_the_address_is_one_clear_error():
    with pytest.raises(BusError, match="no Cyx broker answers at 127.0.0.1:1 .*is `cyx up` running"):
        await Bus.connect("nats://client:x@127.0.0.1:1", name="test")


async def test_a_wrong_password_is_one_clear_error(broker):
    with pytest.raises(BusError, match="no Cyx broker answers"):
        await Bus.connect(f"nats://central-edge:wrong@127.0.0.1:{broker.port}", name="test")


async def test_a_broker_that_stands_still_is_an_error_of_ours_to_whoever_begins_to_serve(broker, edge, monkeypatch):
    # it was one of nats-py's, which nobody expects: a node ended with a traceback
    monkeypatch.setattr("cyxnet.bus.REQUEST_TIMEOUT_S", 0.2)

    async def handler(*_):
        """Nothing is ever said to it."""

    stand_still(broker.process.pid)
    try:
        for begin in (
            edge.answer(subjects.node("*", "heartbeat"), m.Heartbeat, handler),
            edge.subscribe(subjects.node("*", "progress"), handler),
            edge.round_trip(),
        ):
            with pytest.raises(BusError, match="does not answer"):
                await begin
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)


async def test_an_event_that_is_too_large_is_no_unknown_append_and_nothing_is_stored(core):
    # it was tried five times more, and every append that shared its batch with it
    large, small = (subjects.job_event("large"), bytes(core._nc.max_payload)), (subjects.job_event("small"), b"1")
    for append in (core.append, core.begin_append):
        with pytest.raises(BusError, match="nothing was stored") as refused:
            await append(*large, 0)
        assert not isinstance(refused.value, AppendUnknown)
    for messages in ([(*small, 0), (*large, 0)], [(*large, 0), (*small, 0)]):
        with pytest.raises(BusError, match="nothing was stored") as refused:
            await core.append_all(messages)
        assert not isinstance(refused.value, AppendUnknown)
    assert await core.last_seq(subjects.EVENTS) == 0


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
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never)
    await core.append(subjects.job_event("abc"), b"3")
    await asyncio.wait_for(enough.wait(), 60)
    assert seen == [(1, b"0"), (2, b"1"), (3, b"2"), (4, b"3")]


def never(last_seq):
    raise AssertionError("nothing was lost")


def stand_still(pid):
    """A child of ours neither takes nor says anything from here on; it is told at once, but stops a little later."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def restarted(broker):
    """The broker after kill -9, at the same ports and on the same store."""
    broker.process.kill()
    broker.process.wait()
    folder = Path(broker.process.args[-1]).parent
    return Broker.start(folder, broker._passwords, broker.port, broker.monitor_port)


@pytest.fixture
async def mortal(tmp_path):
    """A broker that a test may kill, and one connection to it."""
    running = [Broker.start(tmp_path / "mortal", Passwords.fresh())]
    bus = await Bus.connect(running[0].url("core"), name="test-mortal")
    await bus.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS])
    yield running, bus
    await bus.close()
    running[-1].stop()


async def test_a_follower_goes_on_at_once_when_a_killed_broker_is_back(mortal, monkeypatch):
    # nats-py's ordered consumer noticed after eight seconds; every decision waited for it
    monkeypatch.setattr("cyxnet.follower.HEARTBEAT_S", 1000)  # so it is the new link that tells it, and no silence
    running, bus = mortal
    seen, three = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        if len(seen) == 3:
            three.set()

    await bus.append(subjects.job_event("abc"), b"1")
    await bus.append(subjects.job_event("abc"), b"2")
    await bus.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never, stall_s=1000)
    running.append(await asyncio.to_thread(restarted, running[-1]))
    await retry(lambda: bus.append(subjects.job_event("abc"), b"3"))
    await asyncio.wait_for(three.wait(), 60)
    assert seen == [1, 2, 3]


async def test_a_pause_before_the_next_try_ends_when_the_link_is_back(mortal):
    # who had tried for long waited up to 16 s more for a broker that was there again
    running, bus = mortal
    pausing, back = asyncio.create_task(bus.pause(1e6)), asyncio.Event()
    bus.on_link_back = back.set
    await bus.pause(0.01)  # it ends by itself too
    assert not pausing.done()
    running.append(await asyncio.to_thread(restarted, running[-1]))
    await asyncio.wait_for(asyncio.gather(pausing, back.wait()), 60)


async def test_a_follower_that_heard_nothing_yet_does_not_begin_again_at_the_first_message(mortal):
    # it did: the ledger was given every old metric again, refused the keys, and lost events written with them
    running, bus = mortal
    seen, heard = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        heard.set()

    for number in range(3):
        await bus.append(subjects.job_event("abc"), b"%d" % number)
    await bus.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 3, handler, never)
    bus._followers[0].doubt()
    await bus.append(subjects.job_event("abc"), b"4")
    await asyncio.wait_for(heard.wait(), 60)
    assert seen == [4]


async def test_a_follower_whose_consumer_was_taken_away_goes_on_where_it_was(core, monkeypatch):
    monkeypatch.setattr("cyxnet.follower.HEARTBEAT_S", 0.2)
    seen, two = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        if len(seen) == 2:
            two.set()

    await core.append(subjects.job_event("abc"), b"1")
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never)
    [consumer] = await core._js.consumers_info(subjects.EVENTS)
    await core._js.delete_consumer(subjects.EVENTS, consumer.name)
    await core.append(subjects.job_event("abc"), b"2")
    await asyncio.wait_for(two.wait(), 60)
    assert seen == [1, 2]


class Deaf:
    """A link whose first consumer delivers nothing, though it seems alive."""

    connected = True

    def __init__(self):
        self.asked = []
        self.again = asyncio.Event()

    async def last_seq(self, stream):
        return 7

    async def consume(self, stream, subject, first_seq, deliver, heartbeat_s):
        self.asked.append(first_seq)
        if len(self.asked) == 2:
            self.again.set()

    async def reply(self, subject):
        pass


async def test_the_watchdog_replaces_a_consumer_that_brings_nothing_though_the_stream_has_grown():
    link = Deaf()
    follower = Follower(link, subjects.EVENTS, subjects.EVENT_SUBJECTS, 4, never, never, stall_s=0.05)
    await follower.start()
    await asyncio.wait_for(link.again.wait(), 60)
    follower.close()
    assert link.asked == [5, 5]


class Talks(Deaf):
    """A link whose consumer brings one more message while the stream is asked how long it is."""

    deliver = follower = None

    async def last_seq(self, stream):
        if self.deliver:
            self.deliver(Message(subjects.job_event("abc"), "$JS.ACK.S.C.1.5.1.1700.0", b"5", b""))
            while self.follower.seen_seq < 5:
                await asyncio.sleep(0)
        return 4

    async def at(self, stream, seq):
        return None

    async def consume(self, stream, subject, first_seq, deliver, heartbeat_s):
        await super().consume(stream, subject, first_seq, deliver, heartbeat_s)
        self.deliver = deliver


async def test_what_comes_while_a_follower_asks_anew_is_not_taken_for_lost():
    # an answer that was older than what had come meanwhile ended central: the log seemed to be rewound
    async def handler(stored):
        seen.append(stored.seq)

    link, seen, lost = Talks(), [], []
    link.follower = Follower(link, subjects.EVENTS, subjects.EVENT_SUBJECTS, 4, handler, lost.append)
    await link.follower.start()
    link.follower.doubt()
    await asyncio.wait_for(link.again.wait(), 60)
    link.follower.close()
    assert (seen, lost, link.asked) == ([5], [], [5, 6])


class Away(Deaf):
    """A link that is down whenever it is looked at, and counts how often that is."""

    looks = 0

    @property
    def connected(self):
        self.looks += 1
        if self.looks > 1_000:
            raise AssertionError("looked a thousand times, and let nobody else run")
        return False


async def test_a_follower_in_doubt_lets_others_run_while_the_link_is_down():
    # the link broke while a consumer was made anew: the follower looked for it for ever, and nothing else ran
    link = Away()
    follower = Follower(link, subjects.EVENTS, subjects.EVENT_SUBJECTS, 4, never, never)
    await follower.start()
    follower.doubt()
    while not link.looks:
        await asyncio.sleep(0)
    follower.close()
    assert link.looks == 1


async def test_a_delivery_that_was_dropped_is_asked_for_again(core):
    seen, three = [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        if stored.seq == 3:
            three.set()

    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, never)
    [follower] = core._followers
    real, dropped = follower._deliver, []

    def lossy(renewal, message):
        if message.reply.startswith("$JS.ACK") and not dropped:
            dropped.append(message.reply)
        else:
            real(renewal, message)

    follower._deliver = lossy
    await follower._renew()
    for number in range(3):
        await core.append(subjects.job_event("abc"), b"%d" % number)
    await asyncio.wait_for(three.wait(), 60)
    assert (len(dropped), seen) == (1, [1, 2, 3])


@pytest.mark.parametrize(
    "reply",
    ["$JS.ACK.S.C.1.42.7.1700.3", "$JS.ACK.hub.ABC.S.C.1.42.7.1700.3.x"],
)
def test_the_place_of_a_delivery_is_read_with_and_without_domains(reply):
    assert place_of(reply) == (42, 7, 3)


async def full(bus):
    """Send until the socket takes no more."""
    for _ in range(40):
        await bus.publish("a", bytes(1_000_000))
        await asyncio.sleep(0)  # the bytes go to the socket


async def test_a_connection_whose_broker_stands_still_is_closed_all_the_same(broker, monkeypatch):
    monkeypatch.setattr("cyxnet.connection.CLOSE_WITHIN_S", 0.1)
    bus = await Bus.connect(broker.url("core"), name="test")
    stand_still(broker.process.pid)
    try:
        await full(bus)
        await asyncio.wait_for(bus.close(), 60)
    finally:
        broker.process.send_signal(signal.SIGCONT)


async def test_a_broker_that_stands_still_with_bytes_under_way_to_it_is_left_for_another(tmp_path):
    # the bytes were waited for, as long as it stood still; and then they left, when their sender had given up
    passwords = Passwords.fresh()
    brokers = [Broker.start(tmp_path / name, passwords) for name in "ab"]
    bus = await Bus.connect(",".join(broker.url("core") for broker in brokers), name="test")
    [frozen] = [broker for broker in brokers if broker.url("core").endswith(f":{bus._nc.connected_url.port}")]
    stand_still(frozen.process.pid)
    try:
        await full(bus)
        await bus._nc._process_op_err(nats.errors.StaleConnectionError())  # what ten seconds without a PONG lead to
        async with asyncio.timeout(60):
            while not bus.connected:
                await asyncio.sleep(0)
        await bus.round_trip()
        assert not frozen.url("core").endswith(f":{bus._nc.connected_url.port}")
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    await bus.close()
    for broker in brokers:
        broker.stop()


async def test_appends_under_way_when_the_broker_dies_are_unknown_at_once(mortal):
    # they waited for their whole timeout, five seconds
    running, bus = mortal
    bus._mux._timeout_s = 1000
    await bus.append(subjects.job_event("abc"), b"1")
    stand_still(running[-1].process.pid)  # it takes the append and answers nothing
    waiting = asyncio.create_task(bus.append(subjects.job_event("abc"), b"2"))
    begun = bus.begin_append(subjects.job_event("abc"), b"3")
    await asyncio.sleep(0)
    running.append(await asyncio.to_thread(restarted, running[-1]))
    for append in (waiting, begun):
        with pytest.raises(AppendUnknown, match="broke"):
            await asyncio.wait_for(append, 60)


@pytest.mark.parametrize("verb", ["publish", "request", "append", "begin_append", "last", "last_seq"])
async def test_who_repeats_a_call_while_the_link_is_down_lets_others_run(mortal, verb):
    # nothing else ran: the loop that would have brought the link back stood still, for ever
    running, bus = mortal
    subject = subjects.job_event("abc")
    calls = {
        "publish": lambda: bus.publish("x", b""),
        "request": lambda: bus.request("x", b""),
        "append": lambda: bus.append(subject, b"1"),
        "begin_append": lambda: bus.begin_append(subject, b"1"),
        "last": lambda: bus.last(subjects.EVENTS, subject),
        "last_seq": lambda: bus.last_seq(subjects.EVENTS),
    }
    await bus.last_seq(subjects.EVENTS)
    await bus.append(subject, b"0")
    running[-1].process.kill()
    async with asyncio.timeout(60):
        while bus.connected:
            await asyncio.sleep(0)
    turns = 0

    async def another():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(another())
    for _ in range(5):
        with pytest.raises(BusError):
            await calls[verb]()
    beside.cancel()
    assert turns >= 5


async def test_an_append_that_nobody_answers_ends_in_time(mortal):
    running, bus = mortal
    await bus.append(subjects.job_event("abc"), b"1")
    bus._mux._timeout_s = 0.1
    stopped = running[-1].process.pid
    stand_still(stopped)
    with pytest.raises(AppendUnknown, match="within 0.1 s"):
        await bus.append(subjects.job_event("abc"), b"2")
    assert bus._mux._waiting == {}
    os.kill(running[-1].process.pid, signal.SIGCONT)


async def test_a_follower_is_told_when_the_stream_lost_what_it_has_seen(core):
    lost, seen, heard = [], [], asyncio.Event()

    async def handler(stored):
        seen.append(stored.seq)
        heard.set()

    await core.append(subjects.job_event("abc"), b"1")
    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 7, handler, lost.append)
    await core.append(subjects.job_event("abc"), b"2")
    await asyncio.wait_for(heard.wait(), 60)
    assert (lost, seen) == ([1], [2])


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
async def test_a_follower_notices_that_lost_messages_were_replaced_before_it_looked(core, kept):
    # the stream was as long as before, so nothing seemed lost; metrics of both lives stayed in one ledger
    stream, name = subjects.TELEMETRY, subjects.telemetry("node-a")

    async def written(payloads):
        await core.ensure_stream(stream, [subjects.TELEMETRY_SUBJECTS])
        for payload in payloads:
            await core.append(name, payload)

    heard, same = asyncio.Queue(), []

    async def handler(stored):
        heard.put_nowait((stored.seq, stored.payload))

    async def next_ones(count):
        return [await asyncio.wait_for(heard.get(), 60) for _ in range(count)]

    old = [b"old %d" % number for number in range(1, 6)]
    await written(old)
    await core.follow(stream, subjects.TELEMETRY_SUBJECTS, 0, handler, same.append)
    await next_ones(5)
    await core.request(f"$JS.API.STREAM.DELETE.{stream}", b"")
    await written([*old[:kept], *[b"new %d" % number for number in range(kept + 1, 8)]])
    core._followers[-1].doubt()
    assert await next_ones(7 - kept) == [(number, b"new %d" % number) for number in range(kept + 1, 8)]
    assert same == ([kept] if kept < 5 else [])


async def test_a_follower_compares_the_place_it_begins_at_with_what_its_owner_saw_there(core):
    stream, same, seen, last = subjects.TELEMETRY, [], [], asyncio.Event()
    await core.ensure_stream(stream, [subjects.TELEMETRY_SUBJECTS])
    for payload in (b"1", b"2", b"3"):
        stored_at = await core.append(subjects.telemetry("node-a"), payload)

    async def handler(stored):
        seen.append(stored.seq)
        if stored.seq == stored_at:
            last.set()

    await core.follow(stream, subjects.TELEMETRY_SUBJECTS, 2, handler, same.append, after_sha256="0" * 64)
    await asyncio.wait_for(last.wait(), 60)
    assert (same, seen) == ([0], [1, 2, 3])


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

    await edge.subscribe(subjects.api(ME.id, "job.status"), seen)
    await client.publish(subjects.api(ME.id, "job.status"), b"x")
    await asyncio.wait_for(allowed.wait(), 60)
    assert not heard.is_set()


async def test_verbs_are_served_to_any_caller_and_discoverable(edge, client):
    async def status(caller, ask):
        if ask.job_id == "nope":
            raise ApiError("unknown_job", "no such job", 404)
        if ask.job_id == "bug":
            raise RuntimeError("secret")
        return {"caller": caller, "job_id": ask.job_id}

    await edge.serve("1.2.3", "test", {"job.status": status})
    payload, _ = await client.request(subjects.api(ME.id, "job.status"), b'{"job_id": "abc"}')
    assert json.loads(payload) == {"caller": ME.id, "job_id": "abc"}
    with pytest.raises(ApiError) as refused:
        await client.ask(subjects.api(ME.id, "job.status"), m.JobRef(job_id="nope"), dict)
    assert (refused.value.code, refused.value.status) == ("unknown_job", 404)
    with pytest.raises(ApiError) as failed:
        await client.ask(subjects.api(ME.id, "job.status"), m.JobRef(job_id="bug"), dict)
    assert failed.value.code == "internal" and "secret" not in str(failed.value)
    with pytest.raises(ApiError) as bad:
        await client.request(subjects.api(ME.id, "job.status"), b'{"job": 1}')
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
    asks = [client.request(subjects.api(ME.id, "job.status"), b'{"job_id": "abc"}') for _ in range(5)]
    await asyncio.gather(*asks)
    assert len(arrived) == 5


@pytest.mark.parametrize("content_type", ["", "text/plain", "image/png"])
async def test_bytes_of_whatever_content_type_are_taken_and_answered_as_json(edge, client, content_type):
    # the bytes were stored, and the caller was told that central had failed
    async def put(caller, block):
        return {"size": len(block)}

    await edge.serve("1.0.0", "test", {"artifact.put": put})
    answer, headers = await client.request(subjects.api(ME.id, "artifact.put"), b"12345", content_type=content_type)
    assert (json.loads(answer), headers["Content-Type"]) == ({"size": 5}, JSON)


async def test_an_answer_that_is_too_large_is_refused_with_what_to_do(edge, client):
    async def status(caller, ask):
        return {"text": "x" * 3_000_000}

    await edge.serve("1.0.0", "test", {"job.status": status})
    with pytest.raises(ApiError, match="ask for less") as refused:
        await client.request(subjects.api(ME.id, "job.status"), b'{"job_id": "abc"}')
    assert (refused.value.code, refused.value.status) == ("reply_too_large", 413)


async def test_an_answer_that_just_fits_arrives_and_one_that_its_headers_make_too_large_is_refused(edge, client):
    # the broker counts the headers too, and ended the connection of who had not: central was deaf from then on
    async def status(caller, ask):
        return "x" * (sizes.pop() - len('""'))

    room = edge._nc.max_payload - len(block_of({"Content-Type": JSON}))
    sizes = [room, room + 1]
    await edge.serve("1.0.0", "test", {"job.status": status})
    with pytest.raises(ApiError, match="ask for less"):
        await client.request(subjects.api(ME.id, "job.status"), b'{"job_id": "abc"}')
    answer, _ = await client.request(subjects.api(ME.id, "job.status"), b'{"job_id": "abc"}')
    assert len(answer) == room


async def test_what_is_too_large_with_its_headers_is_refused_before_it_is_sent(core):
    block = block_of({"Name": "value"})
    with pytest.raises(nats.errors.MaxPayloadError):
        core._nc.send("a", bytes(core._nc.max_payload - len(block) + 1), block=block)
    await core.round_trip()


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


async def test_a_second_server_on_the_same_store_is_refused(broker, monkeypatch):
    # an orphan of a killed `cyx up` and its successor would both write there
    monkeypatch.setattr("cyxnet.broker.LOCK_TIMEOUT_S", 0.05)
    folder = Path(broker.process.args[-1]).parent
    with pytest.raises(BrokerError, match="another nats-server still uses"):
        await asyncio.to_thread(Broker.start, folder, Passwords.fresh())


async def test_nobody_serving_is_said_at_once(client):
    with pytest.raises(BusError, match=r"^nobody serves job.list; is a central running\?$"):
        await client.request(subjects.api(ME.id, "job.list"), b"{}")


async def test_a_chain_that_is_away_is_answered_as_try_again(edge, client):
    async def away(caller, ask):
        raise SettlementError("chain_unreachable", "nobody answers there")

    await edge.serve("1.0.0", "test", {"job.status": away})
    with pytest.raises(ApiError) as refused:
        await client.request(subjects.api(ME.id, "job.status"), b'{"job_id": "abc"}')
    assert (refused.value.code, refused.value.status) == ("chain_unreachable", 503)


async def test_who_asks_too_often_is_told_when_to_ask_again_and_nobody_else_is(broker):
    central = await Bus.connect(broker.url("edge"), name="central")
    clients = [as_client(Identity(letter * 32)) for letter in (b"f", b"h")]
    buses = {who.id: await Bus.connect(broker.url("client"), name="c", credentials=who) for who in clients}
    flood, honest = buses
    try:

        async def info(caller, request):
            return m.JobList(jobs=[], total=0)

        central.limit({"api": Rate(per_s=1, burst=2)})
        await central.serve("0.1.0", "test", {"job.list": info})

        async def ask(caller):
            return await buses[caller].ask(subjects.api(caller, "job.list"), m.JobListRequest(), m.JobList)

        for _ in range(2):
            assert (await ask(flood)).total == 0
        with pytest.raises(ApiError) as refused:
            await ask(flood)
        assert (refused.value.code, refused.value.status) == ("rate_limited", 429)
        assert 0 < refused.value.retry_after_ms <= 1001
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


async def until(condition, bus):
    async with asyncio.timeout(60):
        while not condition():
            await bus.round_trip()


@pytest.mark.parametrize("reply", [f"_INBOX_{FLOODER}.x", "", "_INBOX_of_another.x"])
async def test_who_goes_on_although_refused_is_reported_once_and_not_heard_any_more(edge, flooder, reply):
    # one that wants no answer, or has it sent to somebody else, was never even counted
    floods, served = [], []

    async def info(caller, request):
        served.append(caller)
        return m.JobList(jobs=[], total=0)

    edge.limit({"api": Rate(per_s=1, burst=2)}, floods.append)
    await edge.serve("0.1.0", "test", {"job.list": info})
    for _ in range(2_000):
        flooder._nc.send(subjects.api(FLOODER, "job.list"), b"{}", reply=reply)
    await flooder.round_trip()
    await until(lambda: edge.passed_over > 100, edge)
    assert floods == [FLOODER]
    assert edge.shut_out(FLOODER) and not edge.shut_out(ME.id)
    assert len(served) <= 2
    assert edge._nc.unread > 100  # not even taken apart


async def test_metrics_of_who_sends_too_many_are_passed_over_and_nobody_elses(edge, broker):
    heard, floods = [], []

    async def take(subject, payload, headers):
        heard.append(subject.split(".")[3])

    edge.limit({"node": Rate(per_s=1, burst=3)}, floods.append)
    await edge.subscribe(subjects.node("*", "hardware"), take, strangers=True)
    for _ in range(1_000):
        await edge.publish(subjects.node("flood", "hardware"), b"x")
    await edge.publish(subjects.node("honest", "hardware"), b"x")
    await until(lambda: "honest" in heard, edge)
    assert heard == ["flood"] * 3 + ["honest"]
    assert floods == ["flood"]


async def test_who_spoke_while_this_process_was_stopped_is_no_flood(edge, monkeypatch):
    # central stood still for 25 s; when it went on, the metrics that had come meanwhile had their node thrown out for
    # a minute, and its lease with it. The rates are so low that no speed of this test changes what is counted.
    monkeypatch.setattr("cyxnet.hearing.PATIENCE", Rate(per_s=0.01, burst=500))
    monkeypatch.setattr("cyxnet.hearing.DEAF_S", 1_000.0)
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


async def test_a_large_message_counts_as_several(edge):
    heard = []

    async def take(subject, payload, headers):
        heard.append(len(payload))

    edge.limit({"node": Rate(per_s=1, burst=12)})
    await edge.subscribe(subjects.node("*", "hardware"), take, strangers=True)
    for size in (80_000, 80_000, 1):
        await edge.publish(subjects.node("a", "hardware"), bytes(size))
    await until(lambda: 1 in heard, edge)
    assert heard == [80_000, 1]


async def test_discovery_that_is_flooded_is_closed_for_a_while(edge, client, flooder, monkeypatch):
    # everybody's heartbeat was late by seconds, and the answers nobody read filled half a gigabyte of central
    monkeypatch.setattr("cyxnet.bus.DISCOVERY_CLOSED_S", 0.3)
    await edge.serve("0.1.0", "test", {})
    for _ in range(8_000):
        flooder._nc.send("$SRV.INFO", b"", reply=f"_INBOX_{FLOODER}.x")
    await flooder.round_trip()
    await until(lambda: not edge._services, edge)
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


async def test_nothing_is_left_of_a_connection_that_nobody_waits_for_any_more() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        before = asyncio.all_tasks()
        connecting = asyncio.create_task(Bus.connect(f"nats://127.0.0.1:{port}", name="test", patience_s=60))
        await came.wait()
        connecting.cancel()
        await asyncio.wait_for(asyncio.wait([connecting]), 60)
        await asyncio.wait_for(gone.wait(), 60)
        assert connecting.cancelled()
        assert not {task for task in asyncio.all_tasks() - before if "silent" not in repr(task)}


async def test_a_request_that_nobody_answers_says_what_was_asked_and_not_on_which_subject(broker, edge):
    stands_still = await edge.attend(subjects.api("c-1", "job.status"), lambda message: None)
    with pytest.raises(BusError, match="^no answer to job.status within 0.05 s$"):
        await edge.request(subjects.api("c-1", "job.status"), b"{}", timeout_s=0.05)
    await stands_still.unsubscribe()
    edge._nc._status = nats.aio.client.Client.RECONNECTING
    with pytest.raises(BusError, match="^job.status was not asked: the link to the broker is lost$"):
        await edge.request(subjects.api("c-1", "job.status"), b"{}")  # it said: no answer within 5 s
    edge._nc._status = nats.aio.client.Client.CONNECTED
    await edge.close()
    with pytest.raises(BusError, match=r"^no answer to job.status within 1500 s \("):  # it said 1.5e+03
        await edge.request(subjects.api("c-1", "job.status"), b"{}", timeout_s=1500.0)


class Broken:
    """A link that fails while it is written to, when the time for the answer is over already."""

    def __init__(self):
        self.mux = Mux(self, 1000.0)

    def new_inbox(self):
        return "_INBOX.x"

    async def listen(self, subject, take):
        pass

    async def publish(self, *_, **__):
        self.mux.lost("the link broke")
        for _ in range(3):
            await asyncio.sleep(0)
        raise OSError("gone")


@pytest.mark.parametrize("kind", ["requests", "mux"])
async def test_what_becomes_of_a_request_that_was_not_sent_is_said_once(kind):
    # asyncio logged a TimeoutError that nobody had waited for
    complaints, link = [], Broken()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    with pytest.raises(OSError, match="gone"):
        await (Requests(link).ask("a", b"", b"", 0.0) if kind == "requests" else link.mux.ask("a", b"", b""))
    gc.collect()
    link.mux.close()
    assert complaints == []


async def test_a_store_that_the_brokers_do_not_give_is_told_with_where_to_look(edge):
    # of servers that are all full, as of an account without streams, nats says no more than "503 … unavailable"
    with pytest.raises(BusError, match="cannot read the state of S: the brokers' store does not answer .*/healthz"):
        await edge.last_seq("S")
