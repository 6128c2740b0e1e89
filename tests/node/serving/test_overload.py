"""A model that is asked for more than it can answer says so at once, and cheaply: before the request is taken apart."""

import asyncio
import contextlib
import hashlib
import json

import pytest

from cyxnode.serving.gate import ApiKey
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
async def full(keys=()):
    """A server whose queue of four is full for as long as the block lasts."""
    served = tensors(kind=Halting, max_batch=2, max_queue=4)
    async with serving(served, keys) as (http, server):
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
