"""Answers kept for a while, safe to lose. The only file that imports redis.

Nothing here is the truth: a value that is missing, stale or garbage costs a recomputation and never an error.
Keys and lifetimes:

    job:{id}:status      60 s    the JobView of a job; shown only while events have not made it untrue
    node:{id}:info       30 s    the newest hardware metrics of a node
    metrics:{id}:latest   kept   the newest metrics of a job

Who a token stands for is not among them: a token proves itself, and whether its session is good only the log may say.
"""

import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from cyxcore.errors import CyxError
from cyxnet.config import addresses

log = logging.getLogger(__name__)
MEMORY_ENTRIES = 100_000
ANSWER_S, AWAY_S = 0.25, 2.0
TOLD_AGAIN_S = 3600.0  # a refusal that goes on


def job_status(job_id: str) -> str:
    return f"job:{job_id}:status"


def node_info(node_id: str) -> str:
    return f"node:{node_id}:info"


def latest_metrics(job_id: str) -> str:
    return f"metrics:{job_id}:latest"


JOB_STATUS_TTL_S, NODE_INFO_TTL_S = 60.0, 30.0


class Cache(Protocol):
    """The four verbs. A failing backend reads as empty."""

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes, ttl_s: float | None = None) -> None: ...

    async def delete(self, key: str) -> None: ...

    async def close(self) -> None: ...


class CacheError(CyxError):
    """The URL of a cache is none. The message says what was expected, and no password."""

    code = "bad_redis_url"


class MemoryCache:
    """The cache inside one process; the least recently used entries go first."""

    def __init__(self, entries: int = MEMORY_ENTRIES):
        self._entries = entries
        self._values: OrderedDict[str, tuple[bytes, float | None]] = OrderedDict()

    async def get(self, key: str) -> bytes | None:
        found = self._values.get(key)
        if found is None:
            return None
        value, until = found
        if until is not None and time.monotonic() >= until:
            del self._values[key]
            return None
        self._values.move_to_end(key)
        return value

    async def set(self, key: str, value: bytes, ttl_s: float | None = None) -> None:
        self._values[key] = (value, None if ttl_s is None else time.monotonic() + ttl_s)
        self._values.move_to_end(key)
        while len(self._values) > self._entries:
            self._values.popitem(last=False)

    async def delete(self, key: str) -> None:
        self.forget(key)

    def forget(self, key: str) -> None:
        """delete(), at once."""
        self._values.pop(key, None)

    async def close(self) -> None:
        self._values.clear()


class RedisCache:
    """The same on a Redis or Valkey server, shared by all centrals.

    One that does not answer is not asked again for AWAY_S: who asks for a hundred keys in a row would wait for each.
    One that answers with an error (its memory is full, it is read-only, …) is there, and is asked the next time too.
    """

    def __init__(self, url: str):
        import redis.asyncio

        self._refusal = redis.ResponseError
        self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S)
        self._away_until_s = -math.inf  # of the monotonic clock
        self._down = False
        self._told_s: dict[type[Exception], float] = {}  # when the log was told of each kind of refusal, by that clock

    async def get(self, key: str) -> bytes | None:
        value = await self._asked(lambda: self._redis.get(key))
        return bytes(value) if isinstance(value, (bytes, bytearray)) else None

    async def set(self, key: str, value: bytes, ttl_s: float | None = None) -> None:
        lifetime_ms = None if ttl_s is None else max(1, int(ttl_s * 1000))
        if not await self._asked(lambda: self._redis.set(key, value, px=lifetime_ms)):
            await self.delete(key)  # what is there is older than what could not be stored

    async def delete(self, key: str) -> None:
        await self._asked(lambda: self._redis.delete(key))

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self._redis.aclose()

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Its answer; None when there is none."""
        if time.monotonic() < self._away_until_s:
            return None
        try:
            answer = await ask()
        except self._refusal as error:
            now_s = time.monotonic()
            if now_s - self._told_s.get(type(error), -math.inf) >= TOLD_AGAIN_S:
                log.warning("the cache refuses something (%s); going on without that", error)
                self._told_s[type(error)] = now_s
            return None
        except Exception as error:  # bytes that are not Redis make anything: ValueError, TypeError, …
            self._away_until_s = time.monotonic() + AWAY_S
            if not self._down:
                log.warning("the cache does not answer (%s: %s); going on without it", type(error).__name__, error)
            self._down = True
            return None
        self._down = False
        return answer


def open_cache(url: str) -> Cache:
    """The cache at a redis:// (or unix://) URL; the in-memory one for an empty string. Raises CacheError."""
    try:
        return RedisCache(url) if url else MemoryCache()
    except ValueError as error:
        raise CacheError(
            f"the cache at {addresses(url)}: expected rediss://host:6379/0, redis://127.0.0.1:6379/0 or unix://PATH; "
            f"got something else ({error})"
        ) from None
