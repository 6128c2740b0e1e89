"""Artifacts as content-addressed chunks in the BLOBS stream of the CORE account. Only central writes it.

A chunk's subject is its digest and holds one message, so storing it twice is storing it once. A manifest is written
last, after every chunk was read back and the whole digest checked: what has a manifest is complete.

Who knows a digest need not have the bytes. So each caller sends every chunk himself, also one that is here already, and
that he did is noted beside it: only then is an artifact said to be here, to him, and his.
"""

import asyncio
import contextlib
import hashlib
import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from cyxcentral.machine import MACHINE, Machine
from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.artifacts import CHUNK_BYTES, MAX_ARTIFACT_BYTES
from cyxnet.bus import Bus
from cyxnet.messages import ArtifactManifest, ArtifactRef, ArtifactStatReply, ChunkReply
from cyxnet.outcomes import AppendUnknown, Conflict

READ_AHEAD = 8  # chunks
READ_BACK_AT_ONCE, READ_BACK_OF_ONE = 8, 2  # artifacts, each with twice READ_AHEAD chunks in memory; of one sender
HASHED_AT_ONCE = 2  # chunks: they take turns, so a small artifact does not wait for a large one
LOOKUPS_IN_FLIGHT = 64
TRUSTED_MS = 600_000  # so long a manifest that was read is believed to be there still
FRESH_MS = 3_600_000  # what was stored or asked for within this time is swept by nobody (see cyxcentral.sweeper)
MANIFESTS_REMEMBERED, SMALL_MANIFEST_CHUNKS = 4096, 1000
SENDERS_REMEMBERED = 65_536  # pairs of a digest and who sent its bytes
PARTS_REMEMBERED = 100_000  # digests of chunks, of the artifacts that are being fetched


Sent = Callable[[str, str], Awaitable[bool]]  # (digest, sender)


class BlobError(CyxError):
    """An artifact is unknown, incomplete or not what its digest says."""

    code = "bad_artifact"


class NotStored(BlobError):
    """It is not here: it was never sent, or has to be sent again."""

    status = 404


class NotSent(BlobError):
    """An artifact cannot be whole yet: some of its chunks were not sent by who says so."""

    code, status = "incomplete", 409


class Blobs:
    def __init__(self, core: Bus, machine: Machine = MACHINE):
        self._core = core
        self._machine = machine
        self._reading: dict[str, asyncio.Future[ArtifactManifest]] = {}
        self._manifests: OrderedDict[str, tuple[ArtifactManifest, float]] = OrderedDict()  # whole ones; read at, ms
        self._sent: OrderedDict[tuple[str, str], None] = OrderedDict()  # (digest, sender) that are noted in the store
        self._parts: OrderedDict[str, frozenset[str]] = OrderedDict()  # artifact -> its chunks
        self._damaged: set[str] = set()  # digests of artifacts and chunks that are not what they were any more
        self._reading_back, self._hashing = asyncio.Semaphore(READ_BACK_AT_ONCE), asyncio.Semaphore(HASHED_AT_ONCE)
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    async def open(self, replicas: int = 1) -> None:
        await self._core.ensure_stream(
            subjects.BLOBS, [subjects.BLOB_SUBJECTS], replicas=replicas, max_msgs_per_subject=1
        )

    async def stat(self, manifest: ArtifactManifest, sender: str) -> ArtifactStatReply:
        """Which chunks of an artifact its sender must still send: what only others sent is nothing to him."""
        self._check(manifest)
        if await self._noted(manifest.sha256, sender) and await self._kept(manifest.sha256):
            return ArtifactStatReply(complete=True, missing=[])
        return ArtifactStatReply(complete=False, missing=await self._missing(manifest.chunks, sender, self._noted))

    async def sent(self, digest: str, sender: str) -> bool:
        """Whether a caller once sent these bytes, a chunk or all chunks of an artifact. They may be swept since."""
        return (digest, sender) in self._sent or await self._noted(digest, sender)

    async def _noted(self, digest: str, sender: str) -> bool:
        """sent(), asked of the store: the note goes when the bytes are swept, and another central is asked next."""
        if not await self._core.holds(subjects.BLOBS, subjects.sent(digest, sender)):
            return False
        self._remember_sent(digest, sender)
        return True

    async def note_sent(self, digest: str, sender: str) -> None:
        """From here on these bytes are this caller's as long as they are here."""
        await self._store_once(subjects.sent(digest, sender), b"{}")
        self._remember_sent(digest, sender)

    def _remember_sent(self, digest: str, sender: str) -> None:
        self._sent[digest, sender] = None
        if len(self._sent) > SENDERS_REMEMBERED:
            self._sent.popitem(last=False)

    async def _missing(self, chunks: list[str], sender: str, sent: Sent | None = None) -> list[str]:
        gate, sent = asyncio.Semaphore(LOOKUPS_IN_FLIGHT), sent or self.sent

        async def stored(digest: str) -> bool:
            async with gate:
                if digest in self._damaged or not await sent(digest, sender):
                    return False
                return await self._core.holds(subjects.BLOBS, subjects.chunk(digest))

        digests = list(dict.fromkeys(chunks))
        there = await asyncio.gather(*map(stored, digests))
        return [digest for digest, found in zip(digests, there, strict=True) if not found]

    async def _kept(self, sha256: str) -> ArtifactManifest | None:
        """The manifest of an artifact that is whole, and stays so for a while: somebody is about to use it."""
        if sha256 in self._damaged:
            return None
        subject = subjects.manifest(sha256)
        while (found := await self._core.dated(subjects.BLOBS, subject)) is not None:
            stored, at_ms = found
            if self._machine.wall_ms() - at_ms > FRESH_MS:
                try:  # as if it was stored now; if it is swept in this moment, this fails
                    await self._core.append(subject, stored.payload, expected_seq=stored.seq)
                except Conflict:
                    continue
            return msgspec.json.decode(stored.payload, type=ArtifactManifest)
        return None

    async def keep(self, sha256: str) -> ArtifactManifest:
        """manifest(), asked of the store, for an artifact that is about to be named in the log. Raises BlobError."""
        found = await self._kept(sha256)
        if found is None:
            raise BlobError(f"no artifact {sha256} is stored here")
        return found

    async def put(self, block: bytes, sender: str) -> ChunkReply:
        """Store one chunk under its digest, and note who sent it."""
        if not 0 < len(block) <= CHUNK_BYTES:
            raise BlobError(f"expected a chunk of 1 to {CHUNK_BYTES} bytes, got {len(block)}")
        digest = hashlib.sha256(block).hexdigest()
        if digest in self._damaged:
            await self._core.append(subjects.chunk(digest), block)  # in the place of what is there
            self._damaged.discard(digest)
        else:
            await self._store_once(subjects.chunk(digest), block)
        await self.note_sent(digest, sender)
        return ChunkReply(sha256=digest, size=len(block))

    async def commit(
        self, manifest: ArtifactManifest, sender: str, charge: Callable[[int], None] = lambda size_bytes: None
    ) -> ArtifactRef:
        """Declare an artifact whole, after reading back every chunk and checking size and digest.

        charge: told how many bytes are about to be read back; it may raise.
        Raises NotSent unless its sender sent all of it, BlobError when it is not what it says.
        """
        self._check(manifest)
        ref = ArtifactRef(sha256=manifest.sha256, size=manifest.size)
        if missing := await self._missing(manifest.chunks, sender):
            raise NotSent(
                f"artifact {manifest.sha256}: {len(missing)} of its {len(manifest.chunks)} chunks are not stored here "
                "as sent by you: ask artifact.stat which, and send them"
            )
        if await self._kept(manifest.sha256) == manifest:  # a repeated commit, or another sender of the same bytes
            await self.note_sent(manifest.sha256, sender)
            return ref
        charge(manifest.size)
        digest, size = await self._read_back(manifest.chunks, sender)
        if digest != manifest.sha256 or size != manifest.size:
            raise BlobError(
                f"artifact {manifest.sha256}: the chunks make {size} bytes with digest {digest}, "
                f"expected {manifest.size} bytes with the digest named"
            )
        await self._store_once(subjects.manifest(manifest.sha256), msgspec.json.encode(manifest))
        self._damaged.discard(manifest.sha256)
        if missing := await self._missing(manifest.chunks, sender):  # swept since they were read back
            self.forget(manifest.sha256)
            if found := await self._core.last(subjects.BLOBS, subjects.manifest(manifest.sha256)):
                await self._core.delete(subjects.BLOBS, found.seq)
            raise NotSent(f"artifact {manifest.sha256}: {len(missing)} of its chunks are gone; send it again")
        await self.note_sent(manifest.sha256, sender)
        return ref

    async def damage(self, ref: ArtifactRef) -> str | None:
        """Read an artifact back, all of it: what is wrong with what is stored, None when it is whole.

        What is found damaged can be stored anew, through this central. Raises BusError when it cannot be read now.
        """
        try:
            manifest = await self.manifest(ref.sha256)
            digest, size = await self._read_back(manifest.chunks, "")
        except BlobError as error:
            why = str(error)
        else:
            if (digest, size) == (ref.sha256, ref.size):
                return None
            why = f"artifact {ref.sha256}: {size} bytes with digest {digest} are stored"
        self._damaged.add(ref.sha256)
        self.forget(ref.sha256)
        return why

    async def _read_back(self, digests: list[str], sender: str) -> tuple[str, int]:
        """SHA-256 and size of the chunks in order, some of them read ahead. One that comes again soon is read once."""
        whole, size = hashlib.sha256(), 0
        coming = iter(digests)
        reading: OrderedDict[str, asyncio.Task[bytes]] = OrderedDict()  # those last asked for
        ahead: deque[tuple[str, bool, asyncio.Task[bytes]]] = deque()

        def ask(digest: str) -> None:
            is_new = digest not in reading
            task = reading[digest] = reading.get(digest) or asyncio.create_task(self._stored_chunk(digest))
            reading.move_to_end(digest)
            ahead.append((digest, is_new, task))
            if len(reading) > 2 * READ_AHEAD:
                reading.popitem(last=False)

        async with self._turn(sender):
            try:
                for digest in itertools.islice(coming, READ_AHEAD):
                    ask(digest)
                while ahead:
                    digest, is_new, task = ahead.popleft()
                    block = await task
                    for following in itertools.islice(coming, 1):
                        ask(following)
                    async with self._hashing:
                        if not await asyncio.to_thread(_add, whole, block, digest if is_new else None):
                            raise self._found_damaged(digest)
                    size += len(block)
                return whole.hexdigest(), size
            finally:
                for task in reading.values():
                    task.cancel()
                await asyncio.gather(*reading.values(), return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _turn(self, sender: str) -> AsyncIterator[None]:
        """Room to read an artifact back. One sender's many leave room for those of others."""
        own = self._turns.get(sender) or asyncio.Semaphore(READ_BACK_OF_ONE)
        self._turns[sender] = own
        async with own, self._reading_back:
            yield

    def knows(self, sha256: str, size_bytes: int | None = None) -> bool:
        """Whether an artifact (of that size) is known to be whole without asking the store."""
        manifest = self._remembered(sha256)
        return manifest is not None and size_bytes in (None, manifest.size)

    def _remembered(self, sha256: str) -> ArtifactManifest | None:
        manifest, read_at_ms = self._manifests.get(sha256, (None, 0.0))
        return manifest if self._machine.monotonic_ms() - read_at_ms < TRUSTED_MS else None

    def forget(self, sha256: str) -> None:
        """It may not be there any more."""
        self._manifests.pop(sha256, None)

    async def manifest(self, sha256: str) -> ArtifactManifest:
        """The chunks of an artifact that is whole. The small ones are remembered for a while."""
        if known := self._remembered(sha256):
            return known
        reading = self._reading.get(sha256)
        if reading is None:  # a hundred jobs on one dataset read it once
            reading = self._reading[sha256] = asyncio.ensure_future(self._manifest(sha256))
            reading.add_done_callback(lambda _: self._reading.pop(sha256, None))
        found = await asyncio.shield(reading)
        if len(found.chunks) <= SMALL_MANIFEST_CHUNKS:
            self._manifests[sha256] = (found, self._machine.monotonic_ms())
            if len(self._manifests) > MANIFESTS_REMEMBERED:
                self._manifests.popitem(last=False)
        return found

    async def _manifest(self, sha256: str) -> ArtifactManifest:
        stored = await self._core.last(subjects.BLOBS, subjects.manifest(sha256))
        if stored is None or sha256 in self._damaged:
            raise NotStored(f"no artifact {sha256} is stored here")
        return msgspec.json.decode(stored.payload, type=ArtifactManifest)

    async def has_part(self, sha256: str, digest: str) -> bool:
        """Whether this is a chunk of an artifact. The chunks of what was asked about lately are remembered."""
        parts = self._parts.get(sha256)
        if parts is None:
            parts = self._parts[sha256] = frozenset((await self.manifest(sha256)).chunks)
            while len(self._parts) > 1 and sum(map(len, self._parts.values())) > PARTS_REMEMBERED:
                self._parts.popitem(last=False)
        else:
            self._parts.move_to_end(sha256)
        return digest in parts

    async def chunk(self, digest: str) -> bytes:
        block = await self._stored_chunk(digest)
        if not _is(block, digest):
            raise self._found_damaged(digest)
        return block

    async def _stored_chunk(self, digest: str) -> bytes:
        """What is stored as this chunk, unchecked. Raises NotStored."""
        subject = subjects.chunk(digest)
        stored = await self._core.last(subjects.BLOBS, subject, any_replica=True)
        if stored is None:  # a replica may not have heard yet of what was stored a moment ago: the leader has
            stored = await self._core.last(subjects.BLOBS, subject)
        if stored is None:
            raise NotStored(f"chunk {digest} is not stored here; send it with artifact.put")
        return stored.payload

    def _found_damaged(self, digest: str) -> BlobError:
        self._damaged.add(digest)
        return BlobError(f"chunk {digest} is damaged in the store")

    async def _store_once(self, subject: str, payload: bytes) -> None:
        try:
            await self._core.append(subject, payload, expected_seq=0)
        except Conflict:
            return  # the same bytes, by construction of the subject
        except AppendUnknown:
            if await self._core.last(subjects.BLOBS, subject) is None:
                raise

    @staticmethod
    def _check(manifest: ArtifactManifest) -> None:
        if not 0 < manifest.size <= MAX_ARTIFACT_BYTES:
            raise BlobError(f"expected an artifact of 1 to {MAX_ARTIFACT_BYTES} bytes, got {manifest.size}")
        expected = -(-manifest.size // CHUNK_BYTES)
        if len(manifest.chunks) != expected:
            raise BlobError(
                f"{manifest.size} bytes make {expected} chunks of {CHUNK_BYTES} bytes, got {len(manifest.chunks)}"
            )


def _add(whole: "hashlib._Hash", block: bytes, digest: str | None) -> bool:
    """Hash one more block; False when it has not the digest it should have."""
    whole.update(block)
    return digest is None or _is(block, digest)


def _is(block: bytes, digest: str) -> bool:
    return hashlib.sha256(block).hexdigest() == digest
