"""Requests of strangers: thousands of damaged ones, and none may hurt the server or be answered as a fault of ours."""

import asyncio
import contextlib
import io
import json
import random

import numpy as np
import pytest

from cyxnet.inference import NPY
from cyxnode.serving.asgi import Limits
from tests.node.serving.byte_engine import ByteEngine, language
from tests.node.serving.models import samples, serving, tensors

COUNT, AT_ONCE, PATIENCE_S = 1_000, 50, 0.3
INTERESTING = [b"", b"\0", b"\xff", b"[" * 300, b'"', b"null", b"-1", b"1e999", b"NaN", b"9" * 40, b"\\ud800"]
INTERESTING += [b"{}", b"[]"]
INTERESTING += [b"\r\n", b"\r\n\r\n", b"Content-Length: 99999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n"]


def request(path, body, content_type="application/json", accept="*/*"):
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {content_type}\r\nAccept: {accept}\r\n"
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


MESSAGES = [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hé"}]}]
CHAT = {"model": "bytes", "messages": MESSAGES, "max_tokens": 2, "stop": ["a"], "logit_bias": {"5": 1.5}, "n": 2}
TENSORS = [
    request("/v1/predict", json.dumps({"input": samples(2).round(3).tolist(), "classes": True}).encode()),
    request("/v1/predict", npy(samples(3)), NPY, NPY),
    request("/v1/embeddings", json.dumps({"model": "small", "input": [1, 2, 3, 4]}).encode()),
]
LANGUAGE = [
    request("/v1/chat/completions", json.dumps(CHAT | {"logprobs": True, "top_logprobs": 1}).encode()),
    request("/v1/chat/completions", json.dumps(CHAT | {"stream": True, "tools": [{"x": 1}]}).encode()),
    request("/v1/completions", json.dumps({"model": "bytes", "prompt": [[97, 98], [99]], "max_tokens": 2}).encode()),
    request("/v1/embeddings", json.dumps({"model": "bytes", "input": ["ab", "c"]}).encode()),
]


def damaged(dice, raw):
    """The bytes with one to four things wrong with them."""
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(raw) + 1)
        end = min(len(raw), at + dice.randint(0, 12))
        replacement = dice.choice([dice.choice(INTERESTING), dice.randbytes(dice.randint(1, 4)), raw[at:end] * 2])
        raw = raw[:at] + replacement + raw[end:]
    return raw


def mutations(requests, seed):
    """Bodies that are damaged and say their length, and whole requests that are damaged; some go the short way."""
    dice = random.Random(seed)
    for number in range(COUNT):
        head, body = dice.choice(requests)
        if number % 4 < 2:
            head = head.replace(b"Connection: close\r\n", b"")  # the server ends the connection all the same, later
        if number % 2:
            body = damaged(dice, body)
            head = head[: head.rindex(b"Content-Length")] + b"Content-Length: %d\r\n\r\n" % len(body)
            yield head + body
        else:
            yield damaged(dice, head + body)


async def asked(port, raw):
    """What the server says until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(("kind", "requests"), [("tensors", TENSORS), ("language", LANGUAGE)])
async def test_damaged_requests_are_answered_or_refused_and_nothing_is_left_behind(kind, requests, caplog):
    engine = ByteEngine(most=10_000)
    served = tensors() if kind == "tensors" else language(engine)
    limits = Limits(body_s=PATIENCE_S, send_s=30.0)
    statuses = set()
    async with serving(served, limits=limits, head_s=PATIENCE_S) as (http, server):
        port = int(server.url.rsplit(":", 1)[1])
        each = mutations(requests, seed=11)

        async def work():
            for raw in each:
                answer = await asked(port, raw)
                statuses.update(part.split(b" ")[0] for part in answer.split(b"HTTP/1.1 ")[1:])

        await asyncio.gather(*[work() for _ in range(AT_ONCE)])
        assert {b"200", b"400"} <= statuses and not any(status.startswith(b"5") for status in statuses), statuses
        assert (await http.get("/livez")).status_code == 200
        while server.front.figures.in_flight:
            await asyncio.sleep(0)
        assert server.front._room.taken_bytes == 0
        assert engine.running == 0 or all(each.cancelled for each in engine.generations if not each._ended)
        if kind == "tensors":
            assert served.batcher.queued == 0
    assert not caplog.records


@pytest.mark.parametrize("head", [b"Content-Length: 60000", b"Transfer-Encoding: chunked"])
async def test_bodies_that_are_announced_and_do_not_come_keep_nobody_out(head):
    # each took the room of all that it had announced: nine of them, and everybody else was answered 429
    limits = Limits(body_bytes=60_000, bodies_bytes=100_000, body_s=30.0)
    async with serving(tensors(), limits=limits) as (http, server):
        port = int(server.url.rsplit(":", 1)[1])
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(9)]
        for _, writer in slow:
            first = b"1\r\n[\r\n" if b"chunked" in head else b"["
            writer.write(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n" + first)
        while sum(bool(each._piece or each.cycle) for each in server._server.server_state.connections) < len(slow):
            await asyncio.sleep(0)
        for _, writer in slow:
            writer.write(first)  # that the rest does not come with it either is no reason to wait for all of it
        while server.front.figures.in_flight < len(slow):
            await asyncio.sleep(0)
        assert (await http.post("/v1/predict", json={"input": [1, 2, 3, 4]})).status_code == 200
        for _, writer in slow:
            writer.close()
        while server.front.figures.in_flight:
            await asyncio.sleep(0)
        assert server.front._room.taken_bytes == 0
