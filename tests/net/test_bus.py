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

from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, BrokerError, Passwords, syncs_always
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.codec import JSON
from cyxnet.connection import block_of
from cyxnet.escrow import SettlementError
from cyxnet.mux import Mux, Requests
from cyxnet.outcomes import AppendUnknown, Conflict
from tests.net.brokers import ME, restarted, stand_still


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


@pytest.mark.parametrize("name", ["Gerät 2", "机器", 'a "b" \\ c', "$HOME", os.fsdecode(b"\xe9")])
def test_a_broker_starts_in_a_folder_of_any_name(tmp_path, name):
    Broker.start(tmp_path / name, Passwords.fresh()).stop()
    assert (tmp_path / name / "jetstream").is_dir()


def test_a_port_in_use_is_one_clear_error(broker, tmp_path):
    with pytest.raises(BrokerError, match="address already in use.*choose one with --port"):
        Broker.start(tmp_path / "second", Passwords.fresh(), port=broker.port)


async def test_nobody_at_the_address_is_one_clear_error():
    with pytest.raises(BusError, match="no Cyx broker answers at 127.0.0.1:1 .*is `cyx up` running"):
        await Bus.connect("nats://client:x@127.0.0.1:1", name="test")
    with pytest.raises(BusError, match="network.json names no broker; write its address there, as client_url"):
        await Bus.connect("", name="test")


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


async def test_a_client_of_the_edge_cannot_reach_the_log(core, client):
    client._mux._timeout_s = 0.1  # nobody answers
    with pytest.raises(CyxError):
        await client.append(subjects.job_event("forged"), b"x", expected_seq=0)
    await client.round_trip()  # the broker has read it
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
    assert endpoint["metadata"]["reply"] == "JobView"


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
