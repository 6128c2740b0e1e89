"""The updates of a job as server-sent events (HTML standard, section 9.2).

The id of an event is the place behind it in both sources, EVENT-TELEMETRY, so a reader that comes again with it in
Last-Event-ID goes on without gap or duplicate, at whichever central. Updates are read from where job.updates reads
them; that there are new ones is told within the process.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace
from starlette.responses import StreamingResponse

from cyxcentral.recent import Recent
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet.codec import BadMessage
from cyxnet.follow import ENDED

PAGE = 500
GATHER_S = 0.05  # what happens within so long is read at once
RETRY_MS = 1000
PLACE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")


def position(ask: m.UpdatesRequest, last_event_id: str) -> m.UpdatesRequest:
    """The request that goes on after an event. Raises BadMessage."""
    place = PLACE.fullmatch(last_event_id)
    if place is None:
        raise BadMessage(f"Last-Event-ID: expected the id of an event, as 17-230, got {last_event_id[:60]!r}")
    return replace(ask, after_event=int(place[1]), after_telemetry=int(place[2]))


async def follow(
    read: Callable[[m.UpdatesRequest], Awaitable[m.Updates]],
    ask: m.UpdatesRequest,
    recent: Recent,
    still_good: Callable[[], Awaitable[None]],
    over: asyncio.Event,
    ping_s: float,
) -> AsyncIterator[bytes]:
    """All updates after a place, then live, until the job has ended and all was said.

    still_good raises CyxError when the reader may not read on; the stream ends then, as when `over` is set.
    """
    woken, ended = asyncio.Event(), False
    ask = replace(ask, limit=PAGE)
    yield f"retry: {RETRY_MS}\n\n".encode()
    ending = asyncio.ensure_future(over.wait())
    ending.add_done_callback(lambda _: woken.set())
    try:
        with recent.told_of(ask.job_id, woken.set):
            while not over.is_set():
                woken.clear()
                try:
                    await still_good()
                    page = await read(ask)
                except CyxError as error:
                    yield f": {error}\n\n".encode()
                    return
                for update in page.updates:
                    ask = _after(ask, update)
                    yield _event(update.kind, f"{ask.after_event}-{ask.after_telemetry}", update)
                if ended and not page.updates:
                    yield _event("end", f"{ask.after_event}-{ask.after_telemetry}", {"status": page.status})
                    return
                ended = page.status in ENDED  # said with a page, true after it: one more page has the rest
                if page.more or ended:
                    continue
                try:
                    async with asyncio.timeout(ping_s):
                        await woken.wait()
                except TimeoutError:
                    yield b": nothing new\n\n"
                await asyncio.sleep(GATHER_S)
    finally:
        ending.cancel()


def _after(ask: m.UpdatesRequest, update: m.Update) -> m.UpdatesRequest:
    if update.source == "event":
        return replace(ask, after_event=max(ask.after_event, update.seq))
    return replace(ask, after_telemetry=max(ask.after_telemetry, update.seq))


def _event(kind: str, place: str, data: Any) -> bytes:
    return f"id: {place}\nevent: {kind}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


class EventStream(StreamingResponse):
    """The answer that is such a stream. place: given back when it is over, or never began."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        place: contextlib.ExitStack,
        headers: dict[str, str],
    ):
        super().__init__(pieces, headers=headers | {"X-Accel-Buffering": "no"}, media_type="text/event-stream")
        self._pieces, self._place = pieces, place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._place:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Any) -> None:
        async with contextlib.aclosing(self._pieces):  # type: ignore[type-var]
            await super().stream_response(send)
