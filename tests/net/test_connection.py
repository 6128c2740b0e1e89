"""The connection below the bus: bytes that come in any pieces, and what may be sent."""

import asyncio
import json
from types import SimpleNamespace

import nats.errors
import pytest
from nats.aio.subscription import Subscription

from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus
from cyxnet.connection import AT_ONCE_BYTES, CONNECTED, Connection, Message, block_of

WIRE = (
    b"MSG a.b 7 5\r\nhello\r\n"
    b"PING\r\n"
    b"MSG a.b 7 _INBOX.1 0\r\n\r\n"
    b"HMSG a.c 7 _INBOX.2 40 46\r\nNATS/1.0\r\nContent-Type: text/x-thing\r\n\r\nMSG \r\n\r\n"
    b"MSG other 8 3\r\nxyz\r\n"
    b"+OK\r\n"
    b"HMSG a.d 7 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
)
HEARD = [
    ("a.b", "", b"hello", "", {}),
    ("a.b", "_INBOX.1", b"", "", {}),
    ("a.c", "_INBOX.2", b"MSG \r\n", "", {"Content-Type": "text/x-thing"}),
    ("a.d", "", b"", "503", {}),
]


class Fed(Connection):
    """A connection that is given bytes instead of a socket."""

    def __init__(self):
        super().__init__()
        self.pinged, self.heard = 0, []

        def take(message):
            self.heard.append((message.subject, message.reply, message.data, message.status, message.headers))

        self._takers[7] = take
        self._subs[8] = Subscription(self, 8, "a.*")  # one of nats-py's own

    async def _process_ping(self):
        self.pinged += 1


@pytest.mark.parametrize("size", [*range(1, 70), len(WIRE)])
async def test_messages_are_the_same_in_whatever_pieces_they_come(size):
    connection = Fed()
    for at in range(0, len(WIRE), size):
        await connection._ps.parse(WIRE[at : at + size])
    assert (connection.heard, connection.pinged, bytes(connection._ps.buf)) == (HEARD, 1, b"")


class Socket(Fed):
    """A connection whose bytes come through a reader, as those of a socket do; nats-py's task reads it when it runs."""

    def __init__(self):
        super().__init__()
        self.reader = asyncio.StreamReader()
        self._transport = SimpleNamespace(_io_reader=self.reader)
        self._status = CONNECTED
        self._read_at_once()

    async def read(self):
        while data := await self.reader.read(32_768):
            await self._ps.parse(data)


@pytest.mark.parametrize("pause", [1, 2, 5, 10**6])
@pytest.mark.parametrize("size", [*range(1, 70, 4), len(WIRE)])
async def test_messages_are_the_same_whether_they_are_given_as_they_are_read_or_later(size, pause):
    connection = Socket()
    reading = asyncio.create_task(connection.read())
    for number, at in enumerate(range(0, len(WIRE), size)):
        connection.reader.feed_data(WIRE[at : at + size])
        if number % pause == 0:
            await asyncio.sleep(0)
    connection.reader.feed_eof()
    await reading
    assert (connection.heard, connection.pinged, bytes(connection._ps.buf)) == (HEARD, 1, b"")


async def test_a_message_is_given_as_it_is_read_unless_something_is_before_it():
    connection, message = Socket(), b"MSG a.b 7 5\r\nhello\r\n"
    connection.reader.feed_data(message + message + message[:9])
    assert len(connection.heard) == 2
    connection.reader.feed_data(message[9:] + message)  # the first half of it waits for nats-py's task
    assert len(connection.heard) == 2
    reading = asyncio.create_task(connection.read())
    await asyncio.sleep(0)
    assert len(connection.heard) == 4
    connection.reader.feed_data(message * (AT_ONCE_BYTES // len(message) + 1))  # so many wait for their turn
    assert len(connection.heard) == 4
    connection.reader.feed_eof()
    await reading
    assert len(connection.heard) == 5 + AT_ONCE_BYTES // len(message)


async def test_bytes_that_are_no_protocol_end_the_link_after_what_was_before_them():
    connection = Socket()
    connection.reader.feed_data(b"MSG a.b 7 5\r\nhello\r\nMSG a.b x 5\r\nhello\r\n")
    with pytest.raises(nats.errors.ProtocolError):
        await connection.read()
    assert len(connection.heard) == 1


async def test_what_a_link_that_was_replaced_still_brings_is_left_to_nats_py():
    connection = Socket()
    connection._transport._io_reader = asyncio.StreamReader()
    connection.reader.feed_data(WIRE)
    assert not connection.heard


@pytest.mark.parametrize("wire", [b"MSG a.b x 5\r\nhello\r\n", b"HMSG a 7 b\r\n\r\n", b"NONSENSE\r\n"])
async def test_bytes_that_are_no_protocol_are_an_error_of_the_protocol(wire):
    with pytest.raises(nats.errors.ProtocolError):
        await Fed()._ps.parse(wire)


async def test_who_takes_a_message_and_fails_does_not_stop_the_others(caplog):
    connection, seen = Fed(), []

    def fails_once(message):
        seen.append(message.data)
        if len(seen) == 1:
            raise RuntimeError("bad luck")

    connection._takers[7] = fails_once
    await connection._ps.parse(b"MSG a 7 1\r\n1\r\nMSG a 7 1\r\n2\r\n")
    assert seen == [b"1", b"2"] and "bad luck" in caplog.text


@pytest.mark.parametrize("sid", [7, 8])
@pytest.mark.parametrize("names", [b"a.\xff", b"a.b \xff", b"a.b \x1b[2J"])
async def test_a_message_with_a_subject_that_is_no_text_is_passed_over(sid, names, caplog):
    # anybody can send one: central's link broke and was made anew each time, or its log had a traceback of it
    connection = Fed()
    subject, _, reply = names.partition(b" ")
    await connection._ps.parse(b"MSG %b %d %b 2\r\nhi\r\nMSG a.b 7 2\r\nyo\r\n" % (subject, sid, reply))
    assert connection.heard == [("a.b", "", b"yo", "", {})]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("block", [b"\r\n", b"NATS/1.0", b"NATS/1.0 \xff\xff\r\n\r\n", b"NATS/1.0 200 \xff\r\n\r\n"])
async def test_headers_that_are_none_do_not_break_the_link(block):
    connection = Fed()
    for sid in (8, 7):
        wire = b"HMSG a.b %d %d %d\r\n%bhi\r\n" % (sid, len(block), len(block) + 2, block)
        await connection._ps.parse(wire)
    assert [heard[:3] for heard in connection.heard] == [("a.b", "", b"hi")]


def said(identity, size=5, sid=7):
    return b"MSG cyx.v1.api.%b.job.list %d _INBOX_x.1 %d\r\n%b\r\n" % (identity, sid, size, b"x" * size)


@pytest.mark.parametrize("size", [1, 64, 1_000])
async def test_what_an_identity_says_that_is_passed_over_is_dropped_and_nothing_else_is(size):
    connection = Fed()
    connection.pass_over("mallory", 60.0)
    wire = said(b"mallory") * 3 + said(b"alice") + said(b"mallory", 6) * 2 + said(b"mallory", 7) + b"PING\r\n"
    wire += said(b"mallory-2") + b"MSG mallory 7 2\r\nhi\r\n" + said(b"mallory")
    for at in range(0, len(wire), size):
        await connection._ps.parse(wire[at : at + size])
    subjects_heard = [subject for subject, *_ in connection.heard]
    assert subjects_heard == ["cyx.v1.api.alice.job.list", "cyx.v1.api.mallory-2.job.list", "mallory"]
    assert (connection.unread, connection.pinged, bytes(connection._ps.buf)) == (7, 1, b"")


async def test_an_identity_is_passed_over_for_its_time_and_then_heard_again():
    connection, over = Fed(), asyncio.Event()
    connection.pass_over("mallory", 0.0)
    await connection._ps.parse(said(b"mallory"))
    asyncio.get_running_loop().call_later(0.0, over.set)
    await over.wait()
    await connection._ps.parse(said(b"mallory"))
    assert (len(connection.heard), connection.unread) == (1, 1)


def test_headers_are_read_as_they_were_written():
    headers = {"Content-Type": "application/json", "Nats-Service-Error": "a: b"}
    assert Message("s", "", b"", block_of(headers)).headers == headers


def test_a_line_break_in_a_header_is_refused():
    with pytest.raises(nats.errors.BadHeaderError):
        block_of({"Nats-Service-Error": "x\r\nNats-Expected-Last-Subject-Sequence: 0"})


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB c 0\r\n", "a\tb"])
async def test_a_subject_that_would_be_a_command_is_refused(broker, subject):
    bus = await Bus.connect(broker.url("core"), name="test")
    with pytest.raises(nats.errors.BadSubjectError):
        bus._nc.send(subject, b"")
    await bus.close()


@pytest.mark.parametrize("said", ["Maximum Payload Violation", "User Authentication Expired", "Server Shutdown"])
async def test_a_link_that_the_broker_ends_with_an_error_is_made_anew(broker, said):
    # nats-py closed it for ever: a central went on without ever hearing a node again
    bus = await Bus.connect(broker.url("core"), name="test")
    await bus._nc._ps.parse(b"-ERR '%b'\r\n" % said.encode())
    async with asyncio.timeout(60):
        while not (bus.connected and bus._nc.stats["reconnects"]):
            await asyncio.sleep(0)
    await bus.round_trip()
    await bus.close()


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_close_that_is_cancelled_leaves_no_socket_open(broker, turns):
    bus = await Bus.connect(broker.url("core"), name="test")
    writer = bus._nc._transport._io_writer
    closing = asyncio.create_task(bus._nc.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert writer.transport.is_closing()


async def test_a_round_trip_that_is_cancelled_as_its_answer_comes_is_cancelled(broker):
    bus = await Bus.connect(broker.url("core"), name="test")
    asking = asyncio.create_task(bus.round_trip())
    while not bus._nc._pongs:
        await asyncio.sleep(0)
    bus._nc._pongs.pop().set_result(True)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    await bus.close()


async def test_a_round_trip_while_the_link_is_gone_writes_to_no_closed_socket(broker, monkeypatch):
    """uvloop raises a RuntimeError then, and what asks for the round trip would end."""
    bus = await Bus.connect(broker.url("core"), name="test")
    await bus._nc._process_op_err(OSError("the link broke"))
    assert not bus.connected

    def write(self, payload):
        raise RuntimeError("the handler is closed")

    with monkeypatch.context() as closed:
        closed.setattr(type(bus._nc._transport), "write", write)
        await bus.round_trip()
    await bus.close()


@pytest.mark.parametrize("said", ['Permissions Violation for Publish to "a"', "maximum subscriptions exceeded"])
async def test_an_error_that_leaves_the_link_as_it_is_changes_nothing(broker, said):
    bus = await Bus.connect(broker.url("core"), name="test")
    await bus._nc._ps.parse(b"-ERR '%b'\r\n" % said.encode())
    await bus.round_trip()
    assert bus.connected and not bus._nc.stats["reconnects"]
    await bus.close()


async def test_a_message_by_itself_is_written_at_once_and_many_of_one_turn_keep_their_order(broker):
    bus, heard, all_heard = await Bus.connect(broker.url("core"), name="test"), [], asyncio.Event()
    try:

        async def hear(subject, payload, headers):
            heard.append(int(payload))
            if len(heard) == 101:
                all_heard.set()

        await bus.subscribe("numbers", hear)
        await asyncio.sleep(0)  # the turn in which that was asked for is over
        bus.say("numbers", b"0")
        assert not bus._nc._pending  # the socket has it
        for number in range(1, 101):
            bus.say("numbers", b"%d" % number)
        assert 90 < len(bus._nc._pending) < 100  # one write for nearly all of them
        await asyncio.wait_for(all_heard.wait(), 60)
        assert heard == list(range(101))
    finally:
        await bus.close()


async def test_a_batch_is_written_as_it_is_appended_and_not_behind_everybody_who_is_ready(broker):
    bus = await Bus.connect(broker.url("core"), name="test")
    try:
        await bus.ensure_stream("BATCHES", ["batches.>"], allow_atomic=True)
        await bus.append("batches.0", b"", 0)
        batch = asyncio.ensure_future(bus.append_all([(f"batches.{number}", b"", 0) for number in range(1, 101)]))
        await asyncio.sleep(0)  # it has begun, and nothing else had a turn since
        assert not batch.done() and not bus._nc._pending
        assert await batch == list(range(2, 102))
    finally:
        await bus.close()


async def test_what_comes_while_as_much_waits_as_may_is_dropped_and_counted(broker):
    bus, heard = await Bus.connect(broker.url("core"), name="test"), []
    begun, go_on, all_heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
    try:

        async def hear(subject, payload, headers):
            begun.set()
            await go_on.wait()
            heard.append(payload)
            if payload == b"last":
                all_heard.set()

        subscription = await bus.subscribe("few", hear, max_pending=2)
        bus.say("few", b"first")
        await asyncio.wait_for(begun.wait(), 60)
        for payload in (b"second", b"third", b"fourth"):
            bus.say("few", payload)
        await bus.round_trip()
        assert bus.passed_over == 1
        await subscription.unsubscribe()  # what came before is still heard
        go_on.set()
        last = await bus.subscribe("few", hear)
        bus.say("few", b"last")
        await asyncio.wait_for(all_heard.wait(), 60)
        assert heard == [b"first", b"second", b"third", b"last"]
        await last.unsubscribe()
    finally:
        await bus.close()


async def test_a_service_says_how_often_it_was_asked_and_what_went_wrong(broker):
    edge = await Bus.connect(broker.url("edge"), name="test-edge", inbox="_INBOX_alice")

    async def status(caller, ask):
        if ask.job_id == "nope":
            raise ApiError("unknown_job", "no such job", 404)
        return {}

    await edge.serve("1.2.3", "a test", {"job.status": status})
    subject = subjects.api("alice", "job.status")
    await edge.ask(subject, m.JobRef(job_id="abc"), dict)
    with pytest.raises(ApiError):
        await edge.ask(subject, m.JobRef(job_id="nope"), dict)
    ping = json.loads((await edge.request("$SRV.PING", b""))[0])
    stats = json.loads((await edge.request(f"$SRV.STATS.cyx.{ping['id']}", b""))[0])
    [endpoint] = stats["endpoints"]
    assert (ping["type"], ping["name"], ping["version"]) == ("io.nats.micro.v1.ping_response", "cyx", "1.2.3")
    assert (endpoint["num_requests"], endpoint["num_errors"]) == (2, 1)
    assert endpoint["last_error"] == "ApiError: no such job" and endpoint["processing_time"] > 0
    await edge.close()
