"""A model that is asked for more than it can answer says so at once, and cheaply: before the request is taken apart."""

import asyncio
import contextlib
import hashlib
import json
import socket

import pytest

from cyxnode.serving.gate import ApiKey, Gate
from tests.node.serving.models import Halting, serving, tensors

BODY = b'{"input":[1,2,3,4]}'
KEY = "k" * 20


@contextlib.asynccontextmanager
async def connection(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    try:
        yield reader, writer
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def full(keys=(), **options):
    """A server whose queue of four is full for as long as the block lasts."""
    served = tensors(kind=Halting, max_batch=2, max_queue=4)
    async with serving(served, keys, **options) as (http, server):
        served._predictor.sizes.clear()
        served._predictor.go_on.clear()
        headers = {"authorization": f"Bearer {KEY}"} if keys else {}

        def ask():
            return asyncio.create_task(http.post("/v1/predict", content=BODY, headers=headers))

        tasks = [ask()]
        while not served._predictor.sizes:
            await asyncio.sleep(0)
        tasks += [ask() for _ in range(4)]
        while served.batcher.queued < 4:
            await asyncio.sleep(0)
        try:
            yield server
        finally:
            served._predictor.go_on.set()
            answers = await asyncio.gather(*tasks)
            assert [answer.status_code for answer in answers] == [200] * 5


def request(*headers, body=BODY, path=b"/v1/predict"):
    lines = [b"POST %s HTTP/1.1" % path, b"Host: x", *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def told(reader):
    """(status, headers, body) of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))


async def test_one_connection_is_refused_again_and_again_and_each_refusal_is_counted():
    async with full() as server, connection(server) as (reader, writer):
        ids = set()
        for _ in range(20):
            writer.write(request())
            status, headers, body = await told(reader)
            assert status == 429 and body["error"]["code"] == "overloaded" and int(headers["retry-after-ms"]) > 0
            assert headers["date"].endswith("gmt")
            ids.add(headers["x-request-id"])
        assert len(ids) == 20
        assert server.front.figures.answers["/v1/predict", 429] >= 20


@pytest.mark.parametrize(
    "sent",
    [
        [request(b"Connection: keep-alive")],
        [request(b"Expect: 100-continue")],
        [request()[:30], request()[30:]],  # a head in two pieces
        [request()[:-5], request()[-5:]],  # a body in two pieces
        [request(b"X: content-length: 3")],
        [request().replace(b"Content-Length", b"cOnTeNt-LeNgTh")],
    ],
)
async def test_what_is_no_plain_request_is_refused_too_and_the_connection_goes_on(sent):
    async with full() as server, connection(server) as (reader, writer):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        assert (await told(reader))[0] == 429
        writer.write(request(path=b"/v1/nothing"))
        assert (await told(reader))[0] == 404


async def test_every_answer_has_a_date_whichever_way_it_goes():
    async with serving(tensors()) as (http, _):
        for path, headers in (("/livez", {}), ("/livez", {"connection": "close"}), ("/v1/nothing", {})):
            assert (await http.get(path, headers=headers)).headers["date"].endswith("GMT")


async def test_two_requests_in_one_piece_are_answered_one_by_one():
    async with full() as server, connection(server) as (reader, writer):
        writer.write(request() + request())
        assert [(await told(reader))[0] for _ in range(2)] == [429, 429]
        writer.write(request(path=b"/v1/nothing") + request())
        assert [(await told(reader))[0] for _ in range(2)] == [404, 429]


async def test_a_stranger_learns_nothing_of_a_full_queue():
    key = ApiKey(name="me", prefix=KEY[:8], sha256=hashlib.sha256(KEY.encode()).digest())
    async with full([key]) as server, connection(server) as (reader, writer):
        for header, expected in (
            (b"X: y", 401),
            (b"Authorization: Bearer " + b"z" * 20, 401),
            (b"AUTHORIZATION: bearer " + KEY.encode(), 429),
        ):
            writer.write(request(header))
            assert (await told(reader))[0] == expected


async def test_no_key_is_kept_with_the_refusals_that_are_said_again_and_again():
    key = ApiKey(name="me", prefix=KEY[:8], sha256=hashlib.sha256(KEY.encode()).digest(), per_minute=6)
    async with full() as server, connection(server) as (reader, writer):
        server.front._gate = Gate([key])
        for shown in (b"z" * 20, KEY.encode(), KEY.encode(), b"z" * 20):
            writer.write(request(b"Authorization: Bearer " + shown))
            await told(reader)
        known = server.front._refused
        assert set(known) == {"invalid_api_key", "overloaded", "rate_limit_exceeded"}
        assert [error.__traceback__ for error, _, _ in known.values()] == [None] * 3  # whose frames would hold the key
        assert known["invalid_api_key"][0] is server.front._gate.refusal(None)


async def test_the_rest_of_a_head_is_no_request_whatever_it_looks_like():
    # the first request and half a head came in one piece: what followed was refused by itself, and all was out of step
    async with full() as server, connection(server) as (reader, writer):
        writer.write(request(path=b"/v1/nothing") + b"GET /livez HTTP/1.1\r\nX-Rest: ")
        assert (await told(reader))[0] == 404
        writer.write(request())
        assert (await told(reader))[0] == 200


@pytest.mark.parametrize(
    "line",
    [
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"X: y\r\n Transfer-Encoding: chunked",
        b"Transfer-Encoding\0: chunked",
        b"no colon",
    ],
)
async def test_a_broken_head_is_not_refused_as_a_whole_one(line):
    async with full() as server, connection(server) as (reader, writer):
        writer.write(request(line))
        assert (await reader.readline()).split()[1] == b"400"


@contextlib.asynccontextmanager
async def deaf(server):
    """(a client that does not read, the server's end of it), with little room between them."""
    before = set(server._server.server_state.connections)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        while not (new := set(server._server.server_state.connections) - before):
            await asyncio.sleep(0)
        (end,) = new
        end.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield client, end


async def test_refusals_that_nobody_reads_do_not_pile_up():
    async with full() as server, deaf(server) as (_, end):
        end.data_received(request(b"User-Agent: curl/8.1", b"Accept: */*"))
        assert end.cycle is None  # it was not taken apart
        for _ in range(5_000):
            if end.flow.read_paused:
                break
            end.data_received(request())
        assert end.flow.read_paused and end.transport.get_write_buffer_size() < 200_000


ASKING = {
    "small answers": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2_000,
    "the last answer": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("asked", ASKING.values(), ids=ASKING)
async def test_who_reads_no_answer_is_hung_up_on_and_holds_nothing(asked):
    async with serving(tensors(), head_s=0.2) as (_, server), deaf(server) as (client, _):
        await asyncio.get_running_loop().sock_sendall(client, asked)
        async with asyncio.timeout(60):
            while not server.front.figures.requests or server.front.figures.in_flight or server.guests.total:
                await asyncio.sleep(0)


async def test_a_head_without_end_behind_a_request_that_is_being_answered_is_hung_up_on():
    async with full() as server, connection(server) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await told(reader))[0] == 200
        served = server.front._served
        served.batcher._max_queue += 1  # room for one, which waits like the others
        writer.write(request() + b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
        while served.batcher.queued < 5:
            await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"x" * 65_536)
                await asyncio.wait_for(writer.drain(), 60)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
