"""A request of which all is there is answered without a task for it; what its client is told is the same."""

import asyncio
import contextlib
import hashlib
import json

import numpy as np
import pytest

from cyxnet import httpserver
from cyxnet.inference import KEPT_HEADS
from cyxnode.serving import app
from cyxnode.serving.asgi import Limits
from cyxnode.serving.gate import ApiKey
from tests.node.serving.models import Halting, mlp, samples, serving, tensors
from tests.node.serving.test_overload import BODY, connection, request, told


def chunked(body, *headers):
    """A request that goes the long way."""
    lines = [b"POST /v1/predict HTTP/1.1", b"Host: x", *headers, b"Transfer-Encoding: chunked"]
    return b"\r\n".join(lines) + b"\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def connections(server):
    return list(server._server.server_state.connections)


BODIES = {
    "one sample": BODY,
    "samples": json.dumps({"input": samples(3).tolist()}).encode(),
    "more than a run": json.dumps({"input": samples(20).tolist()}).encode(),
    "classes behind": b'{"input":[[1,2,3,4]],"classes":true}',
    "classes before": b'{"classes":true,"input":[[1,2,3,4]]}',
    "spaces": b' { "input" : [ [ 1 , 2 , 3.5e0 , -4 ] ] , "model" : "small" } ',
    "twice": b'{"input":[9,9,9,9],"input":[1,2,3,4]}',
    "no samples": b'{"input":[]}',
    "no rows": b'{"input":[[1,2,3,4],[]]}',
    "another model": b'{"input":[1,2,3,4],"model":"big"}',
    "an unknown field": b'{"input":[1,2,3,4],"inputs":1}',
    "not its end": b'{"input":[1,2,3,4]',
    "more behind it": b'{"input":[1,2,3,4]}}',
    "too large a number": b'{"input":[1,2,3,1e39]}',
    "text": b'{"input":[1,2,3,"4"]}',
    "no JSON": b"{",
    "too many": json.dumps({"input": [[1, 2, 3, 4]] * 65}).encode(),
}


@pytest.mark.parametrize(
    "header", [b"X: y", b"Accept: application/x-npy", b"Content-Type: application/x-npy", b"content-type: a/b"]
)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_the_short_way_says_what_the_long_one_says(body, header):
    async with serving(tensors()) as (_, server), connection(server) as (reader, writer):
        heard = []
        for sent in (
            request(header, body=body),
            request(b"Connection: keep-alive", header, body=body),
            chunked(body, header),
        ):
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().lower().strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            answer = await reader.readexactly(int(headers["content-length"]))
            (end,) = connections(server)
            assert (end.cycle is None) == (len(heard) < 2)  # whether it was taken apart
            if status.endswith("200 ok") and headers["content-type"] == "application/json":
                answer = json.loads(answer) | {"latency_ms": 0}
                del headers["content-length"]  # of which that is a part
            assert headers.pop("date") and headers.pop("x-request-id")
            heard.append((status, headers, answer))
        assert heard[0] == heard[1] == heard[2]
        assert server.front.figures.requests == 3 and server.front.figures.in_flight == 0
        assert server.front._room.taken_bytes == 0


async def test_what_comes_before_the_answer_waits_for_it_and_all_are_answered_in_order():
    held = mlp()
    served = tensors(held, kind=Halting)
    async with serving(served) as (_, server), connection(server) as (reader, writer):
        served._predictor.sizes.clear()
        served._predictor.go_on.clear()
        x = samples(3)
        sent = [request(body=json.dumps({"input": row.tolist()}).encode()) for row in x]
        writer.write(sent[0])
        while not served._predictor.sizes:
            await asyncio.sleep(0)
        (end,) = connections(server)
        writer.write(sent[1] + sent[2][:40])
        while not end.flow.read_paused:
            await asyncio.sleep(0)
        assert server.front.figures.in_flight == 1
        writer.write(sent[2][40:])
        served._predictor.go_on.set()
        found = [(await told(reader))[2]["output"] for _ in range(3)]
        assert np.array(found, np.float32).tobytes() == held.predict(x).tobytes()


async def piece_of(server):
    """The connection that waits for the rest of a body."""
    while True:
        for each in connections(server):
            if each._piece:
                return each
        await asyncio.sleep(0)


@pytest.mark.parametrize("cuts", [[-len(BODY)], [-3], [-len(BODY), -3]])
async def test_a_body_that_comes_behind_its_head_is_waited_for_once(cuts):
    async with serving(tensors()) as (_, server), connection(server) as (reader, writer):
        writer.write(request()[: cuts[0]])
        end = await piece_of(server)
        if len(cuts) == 2:
            writer.write(request()[cuts[0] : cuts[1]])
            while not end.cycle:
                await asyncio.sleep(0)
        writer.write(request()[cuts[-1] :])
        assert (await told(reader))[0] == 200
        assert (end.cycle is None) == (len(cuts) == 1)  # whether it was taken apart
        assert not end._piece and server.front.figures.in_flight == 0


@pytest.mark.parametrize("comes", ["with its head", "behind its head"])
async def test_a_body_in_one_piece_that_does_not_say_its_length_is_refused_when_it_is_too_long(comes):
    # only one of several pieces was measured
    limits = Limits(body_bytes=len(BODY) - 1)
    async with serving(tensors(), limits=limits) as (_, server), connection(server) as (reader, writer):
        head, end, body = chunked(BODY).partition(b"\r\n\r\n")
        if comes == "behind its head":
            writer.write(head + end)
            while not server.front.figures.in_flight:
                await asyncio.sleep(0)
            writer.write(body)
        else:
            writer.write(head + end + body)
        assert (await told(reader))[0] == 413


async def test_a_body_that_does_not_come_is_asked_for_no_longer_than_before():
    async with serving(tensors(), limits=Limits(body_s=0.01)) as (_, server), connection(server) as (reader, writer):
        writer.write(request()[:-1])
        end = await piece_of(server)
        end._late_s = 0.0  # the time for a head is over
        end._timer.cancel()
        end._look()
        assert (await told(reader))[0] == 408
        assert await reader.read() == b""


async def test_a_server_that_closes_answers_also_for_a_body_that_is_on_its_way():
    async with serving(tensors()) as (_, server), connection(server) as (reader, writer):
        writer.write(request()[:-1])
        end = await piece_of(server)
        closing = asyncio.create_task(server.close())
        while end._piece:
            await asyncio.sleep(0)
        writer.write(request()[-1:])
        status, _, said = await told(reader)
        assert (status, said["error"]["code"]) == (503, "stopping")
        await closing


async def test_a_server_that_closes_sends_the_answer_first_and_then_hangs_up():
    served = tensors(kind=Halting)
    async with serving(served) as (_, server), connection(server) as (reader, writer):
        served._predictor.sizes.clear()
        served._predictor.go_on.clear()
        writer.write(request())
        while not served._predictor.sizes:
            await asyncio.sleep(0)
        closing = asyncio.create_task(server.close())
        (end,) = connections(server)
        while not end._is_last:
            await asyncio.sleep(0)
        served._predictor.go_on.set()
        assert (await told(reader))[0] == 200
        assert await reader.read() == b""
        await closing


async def test_what_is_not_answered_when_a_server_has_to_end_is_not_computed():
    # it was, all of it, and the process heard no second signal meanwhile
    served = tensors(kind=Halting, max_batch=1)
    async with serving(served, close_s=0) as (_, server), connection(server) as (reader, writer):
        served._predictor.sizes.clear()
        served._predictor.go_on.clear()
        writer.write(request(body=json.dumps({"input": samples(20).tolist()}).encode()))
        while not served._predictor.sizes:
            await asyncio.sleep(0)
        (end,) = connections(server)
        assert end._begun
        await server.close()
        served._predictor.go_on.set()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        while server.front.figures.in_flight:
            await asyncio.sleep(0)
        assert server.front.figures.answers["/v1/predict", 499] == 1 and served._predictor.sizes == [1]


async def test_who_goes_the_long_way_is_told_when_a_server_has_to_end(caplog):
    # it was a traceback in the log and 500 for its client
    served = tensors(kind=Halting, max_batch=1)
    async with serving(served, close_s=0) as (_, server), connection(server) as (reader, writer):
        served._predictor.sizes.clear()
        served._predictor.go_on.clear()
        writer.write(chunked(BODY))
        while not served._predictor.sizes:
            await asyncio.sleep(0)
        await server.close()
        served._predictor.go_on.set()
        status, _, said = await told(reader)
        assert (status, said["error"]["code"]) == (503, "stopping")
        assert not [record for record in caplog.records if record.exc_info]


async def test_a_key_is_asked_for_and_counted():
    key = ApiKey(name="me", prefix="k" * 8, sha256=hashlib.sha256(b"k" * 20).digest())
    async with serving(tensors(), [key]) as (_, server), connection(server) as (reader, writer):
        for header, expected in ((b"X: y", 401), (b"Authorization: Bearer " + b"z" * 20, 401)):
            writer.write(request(header))
            assert (await told(reader))[0] == expected
        writer.write(request(b"AUTHORIZATION:   bearer " + b"k" * 20))
        assert (await told(reader))[0] == 200 and key.requests == 1


def test_a_head_that_says_how_its_connection_goes_on_is_no_plain_one():
    for line in (b"Connection: close", b"Proxy-Connection: close", b"Upgrade: h2c", b"Expect: 100-continue"):
        assert httpserver.body_bytes(b"\r\nHost: x\r\n%b\r\nContent-Length: 7\r\n" % line) == -1


@pytest.mark.parametrize("hosts", [b"", b"\r\nHost: x\r\nHOST: y", b"\r\nX: Host:"])
def test_a_head_without_one_host_is_no_plain_one(hosts):
    assert httpserver.body_bytes(b"%b\r\nContent-Length: 7\r\n" % hosts) == -1


def test_no_key_is_kept_with_the_heads_that_are_remembered():
    for name in (b"Authorization", b"cookie", b"X-Api-Key", b"api-KEY", b"Proxy-Authorization", b"X-Auth-Token"):
        head = b"\r\nHost: x\r\n%b: Bearer secret\r\nContent-Length: 7\r\n" % name
        assert httpserver.body_bytes(head) == 7
    assert not [head for head in httpserver._known_heads if b"secret" in head]


async def test_no_key_is_kept_by_a_server_that_asks_for_none():
    async with serving(tensors()) as (_, server), connection(server) as (reader, writer):
        for name in (b"X", b"Authorization", b"Cookie"):
            writer.write(request(b"%b: Bearer sesame" % name))
            assert (await told(reader))[0] == 200
    assert [head for head in app._known_heads if b"sesame" in head and b"X: " in head]
    assert not [head for head in app._known_heads if b"sesame" in head and b"X: " not in head]


def test_the_heads_that_are_remembered_are_bounded():
    for number in range(2 * KEPT_HEADS):
        head = b"\r\nHost: x\r\nX: %d\r\nContent-Length: 7\r\n" % number
        assert httpserver.body_bytes(head) == 7 and app._told(head) == (b"application/json", b"", None)
        assert max(len(httpserver._known_heads), len(app._known_heads)) <= KEPT_HEADS
