"""Big bytes by digest: datasets, models, checkpoints. They move through central in content-addressed chunks.

An artifact is known by the SHA-256 of its bytes. Each chunk is stored under its own SHA-256, so a broken transfer
resumes with the chunks that are missing and equal chunks are stored once. Both ends check every digest, and a file
appears under its name only when it is whole.
"""

import asyncio
import contextlib
import functools
import hashlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus, BusError, NobodyServes, NotAdmitted
from cyxnet.codec import JSON, encode
from cyxnet.messages import (
    ArtifactManifest,
    ArtifactRef,
    ArtifactRefRequest,
    ArtifactStatReply,
)

CHUNK_BYTES = 512 * 1024  # below the broker's max_payload, large enough to be worth a round trip
MAX_ARTIFACT_BYTES = 6 * 2**30  # its manifest, 67 bytes a chunk, has to fit a message
CHUNKS_IN_FLIGHT = 8  # at most
QUICK_S, SLOW_S = 1.0, 3.0  # a chunk that took less lets one more be on its way at a time; one that took more, one less
CHUNK_S, CHUNK_TRIES = 30.0, 3
AGAIN_S = 2.0  # before the next try, if the link is not back earlier
ANSWER_S = 10.0  # for a question about an artifact; a chunk on a slow link may take longer
SLOWEST_READ_BYTES_PER_S = 25e6
TICK_NS = 20_000_000  # no kernel's times of files tick slower
Advance = Callable[[int, int], None]  # (bytes done, bytes in all)
T = TypeVar("T")


class ArtifactError(CyxError):
    """An artifact is missing, damaged or cannot be stored."""

    code = "bad_artifact"


def describe(path: Path) -> ArtifactManifest:
    """The manifest of a file. Raises ArtifactError when it is missing or empty.

    Remembered while its times, size and inode stay: a submit asks twice. Every chunk that is sent is hashed anew. What
    was written a moment ago is not remembered: the times of files tick, and other bytes may have the same ones.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    if time.time_ns() - found.st_ctime_ns < TICK_NS:
        return _read(path)
    return _remembered(path, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


@functools.lru_cache(maxsize=64)
def _remembered(path: Path, *_: int) -> ArtifactManifest:
    return _read(path)


def _read(path: Path) -> ArtifactManifest:
    whole, chunks, size = hashlib.sha256(), [], 0
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                whole.update(block)
                chunks.append(hashlib.sha256(block).hexdigest())
                size += len(block)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    if not chunks:
        raise ArtifactError(f"{path}: expected some bytes, got an empty file")
    if size > MAX_ARTIFACT_BYTES:
        raise ArtifactError(f"{path}: expected at most {MAX_ARTIFACT_BYTES} bytes, got {size}; split it")
    return ArtifactManifest(sha256=whole.hexdigest(), size=size, chunks=chunks)


def patience_s(size: int) -> float:
    """How long the answer about `size` bytes may take: for a commit, central reads all of them back.

    Not longer than needed: a central that was killed over it never answers, and the next one does at once.
    """
    return ANSWER_S + size / SLOWEST_READ_BYTES_PER_S


class Places:
    """Of chunks on their way: one at first, then as many as the link carries quickly, up to `most`.

    What is on its way delays everything else on the connection, also the pings that show that it lives: eight chunks on
    a link of 100 kB/s would have it taken for dead.
    """

    def __init__(self, most: int, pause: Callable[[float], Awaitable[None]]):
        """pause: of so many seconds, or until a link that broke is back: Bus.pause."""
        self._most = most
        self._pause = pause
        self._places = 1
        self._free = asyncio.Semaphore(1)

    async def carry(self, once: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """once() when it has a place; again where nobody answers in time, with fewer beside it.

        Raises what it does; BusError only after CHUNK_TRIES.
        """
        for _ in range(CHUNK_TRIES - 1):
            try:
                return await self._carry(once)
            except (NobodyServes, NotAdmitted):
                raise
            except BusError:
                await self._pause(AGAIN_S)  # the link is slow, or away; what has arrived is not lost
        return await self._carry(once)

    async def _carry(self, once: Callable[[], Coroutine[Any, Any, T]]) -> T:
        await self._free.acquire()
        began_s, change = time.monotonic(), 0
        try:
            answer = await once()
            if time.monotonic() - began_s < QUICK_S and self._places < self._most:
                change = 1
            return answer
        finally:
            if time.monotonic() - began_s > SLOW_S and self._places > 1:
                change = -1
            self._places += change
            for _ in range(1 + change):
                self._free.release()


async def put(
    bus: Bus, caller: str, path: Path, advance: Advance | None = None, in_flight: int = CHUNKS_IN_FLIGHT
) -> ArtifactRef:
    """Store a file through central and return its reference. Chunks that are there already are not sent.

    in_flight: chunks on their way at a time, at most. Other messages of this connection wait behind these.
    """
    manifest = await asyncio.to_thread(describe, path)
    try:
        return await _put(bus, caller, path, manifest, advance, in_flight)
    except ApiError as error:  # what was there is gone, or was sent to a central of an older version: once more
        if error.code != "incomplete":
            raise
    return await _put(bus, caller, path, manifest, advance, in_flight)


async def _put(
    bus: Bus, caller: str, path: Path, manifest: ArtifactManifest, advance: Advance | None, in_flight: int
) -> ArtifactRef:
    stat = await bus.ask(
        subjects.api(caller, "artifact.stat"), manifest, ArtifactStatReply, timeout_s=patience_s(manifest.size)
    )
    missing = set(stat.missing)
    sent = 0 if not stat.complete else manifest.size
    places = Places(in_flight, bus.pause)

    async def send(index: int, digest: str) -> None:
        nonlocal sent
        offset = index * CHUNK_BYTES
        if digest in missing:

            async def once() -> None:
                block = await asyncio.to_thread(_read_at, path, offset)
                if hashlib.sha256(block).hexdigest() != digest:
                    raise ArtifactError(f"{path} changed while it was being sent; send it again")
                subject = subjects.api(caller, "artifact.put")
                await bus.request(subject, block, content_type="application/octet-stream", timeout_s=CHUNK_S)

            await places.carry(once)
        sent += min(CHUNK_BYTES, manifest.size - offset)
        if advance:
            advance(sent, manifest.size)

    if not stat.complete:
        # equal chunks are sent once: the first place of each digest carries it
        first = {digest: index for index, digest in reversed(list(enumerate(manifest.chunks)))}
        sending = [asyncio.create_task(send(index, digest)) for digest, index in first.items()]
        try:
            await asyncio.gather(*sending)
        finally:
            for task in sending:
                task.cancel()
        commit = subjects.api(caller, "artifact.commit")
        await bus.ask(commit, manifest, ArtifactRef, timeout_s=patience_s(manifest.size))
    if advance:
        advance(manifest.size, manifest.size)
    return ArtifactRef(sha256=manifest.sha256, size=manifest.size)


async def get(
    bus: Bus,
    caller: str,
    sha256: str,
    path: Path,
    advance: Advance | None = None,
    max_bytes: int = 64 * 2**30,
    as_operator: bool = False,
) -> ArtifactRef:
    """Fetch an artifact into `path`, which appears only when every byte is checked.

    as_operator: an operator of the network may have everything, others what they sent or what their jobs name.
    """
    manifest = await bus.ask(
        subjects.api(caller, "artifact.manifest"),
        ArtifactRefRequest(sha256=sha256, as_operator=as_operator),
        ArtifactManifest,
        timeout_s=ANSWER_S,
    )
    if manifest.size > max_bytes:
        raise ArtifactError(f"artifact {sha256}: expected at most {max_bytes} bytes, it has {manifest.size}")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    whole, done, places = hashlib.sha256(), 0, Places(CHUNKS_IN_FLIGHT, bus.pause)

    def fetch(digest: str) -> Coroutine[Any, Any, bytes]:
        ask = ArtifactRefRequest(sha256=digest, artifact=sha256, as_operator=as_operator)
        return places.carry(functools.partial(_fetch_chunk, bus, caller, ask))

    pending: list[asyncio.Task[bytes]] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            chunks = iter(manifest.chunks)
            while True:
                while len(pending) < CHUNKS_IN_FLIGHT and (digest := next(chunks, None)) is not None:
                    pending.append(asyncio.create_task(fetch(digest)))
                if not pending:
                    break
                block = await pending.pop(0)
                whole.update(block)
                file.write(block)
                done += len(block)
                if done > manifest.size:
                    raise ArtifactError(f"artifact {sha256}: more bytes than its manifest says")
                if advance:
                    advance(done, manifest.size)
            file.flush()
            os.fsync(file.fileno())
        if whole.hexdigest() != sha256 or done != manifest.size:
            raise ArtifactError(f"artifact {sha256}: the bytes received have another digest; fetch it again")
        os.replace(draft, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        for task in pending:
            task.cancel()
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    return ArtifactRef(sha256=sha256, size=manifest.size)


async def _fetch_chunk(bus: Bus, caller: str, ask: ArtifactRefRequest) -> bytes:
    for last_try in (False, True):
        block, _ = await bus.request(subjects.api(caller, "artifact.chunk"), encode(ask, JSON), timeout_s=CHUNK_S)
        if hashlib.sha256(block).hexdigest() == ask.sha256:
            return block
        if last_try:
            raise ArtifactError(f"chunk {ask.sha256} arrived damaged twice")
    raise AssertionError("unreachable")


def _read_at(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)
