"""Checkpoints that nobody goes on from are deleted from the store after a while.

Mark and sweep, from the log: a state that a `Checkpointed` named is garbage when no job that may still run began from
it or could go on from it, and it was stored or last asked for longer ago than `kept_s`. Of a job that has ended, its
states are kept for as long again. Nothing else is ever deleted: no dataset, no model, no chunk that any manifest names.
The notes of whose the bytes are (blob.sent) go with the bytes, and come back with them.

  1. the manifest is moved from blob.manifest to blob.condemned      from here on the artifact is not whole
  2. an hour later, when every central has forgotten it, its chunks go, but for those that a manifest names; if the log
     names the artifact again by then, it is moved back

Each step can be repeated, by another central too. What may happen at the same time:

  somebody is about to name the artifact   who does has asked for it (Blobs.keep), which makes its manifest new; it is
                                           deleted by its sequence, so one of the two fails
  an upload relies on a chunk that is      it looks for its chunks again after its manifest is written; who deletes
  going                                    looks for new manifests after the chunk is gone, and puts it back
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec
from msgspec import Struct

from cyxcentral import jobs
from cyxcentral.blobs import FRESH_MS
from cyxcentral.eventlog import EventLog
from cyxcore.errors import CyxError
from cyxnet import subjects
from cyxnet.bus import Bus
from cyxnet.messages import ArtifactManifest
from cyxnet.outcomes import Conflict, Stored

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 3_600.0
CONDEMNED_MS = 3_600_000  # longer than any central remembers a manifest
SHORTEST_KEPT_S = 4 * FRESH_MS // 1000  # clocks of brokers and centrals may differ by hours
JOBS_AT_ONCE, CHUNKS_AT_ONCE = 2_000, 32


class States(Protocol):
    """What a sweep asks of the ledger."""

    async def checkpoint_states(self) -> set[str]:
        """SHA-256 of every state that a Checkpointed of the log names."""


class Swept(Struct, kw_only=True):
    """What one sweep did, in artifacts and chunks."""

    condemned: int = 0
    restored: int = 0
    deleted: int = 0
    chunks: int = 0


def needed(some: Iterable[jobs.Job], ended_after_ms: int) -> set[str]:
    """The artifacts that these jobs name: of one that ended before that time, no states any more."""
    found: set[str] = set()
    for job in some:
        found.update(jobs.inputs(job))
        if job.completed:
            found.add(job.completed.model.sha256)
        if job.ended_at_ms is None or job.ended_at_ms > ended_after_ms:
            found.update(jobs.results(job))
    return found


class Sweeper:
    """kept_s: how long a state that nobody needs any more is kept."""

    def __init__(self, core: Bus, events: EventLog, ledger: States, kept_s: int):
        self._core = core
        self._events = events
        self._ledger = ledger
        self._kept_ms = kept_s * 1000

    async def run(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                swept = await self.sweep()
                log.info("swept checkpoints: %s", swept)
            except CyxError as error:
                log.warning("sweeping checkpoints is put off: %s", error)
            except Exception:
                log.exception("sweeping checkpoints failed; it is tried again")

    async def sweep(self) -> Swept:
        """One round. Raises CyxError when it could not be finished; then the next one goes on."""
        swept = Swept()
        before_ms = self._events.machine.wall_ms() - self._kept_ms
        marked, old = await self._manifests(before_ms)
        await self._events.catch_up()
        named = await self._named(before_ms)
        states = await self._ledger.checkpoint_states() if old.keys() - named else set()
        for sha256, (seq, manifest) in old.items():
            if sha256 in named or sha256 not in states or not await self._condemn(seq, manifest):
                marked.update(manifest.chunks)
            else:
                swept.condemned += 1
        await self._execute(marked, named, swept)
        return swept

    async def _manifests(self, before_ms: int) -> tuple[set[str], dict[str, tuple[int, ArtifactManifest]]]:
        """The chunks of the manifests that are young, and by their artifacts those that are older: (sequence, it)."""
        young: set[str] = set()
        old: dict[str, tuple[int, ArtifactManifest]] = {}
        for subject in await self._core.subjects_of(subjects.BLOBS, subjects.manifest("*")):
            if found := await self._core.dated(subjects.BLOBS, subject):
                stored, at_ms = found
                manifest = _manifest(stored)
                if at_ms > before_ms:
                    young.update(manifest.chunks)
                else:
                    old[manifest.sha256] = (stored.seq, manifest)
        return young, old

    async def _named(self, before_ms: int) -> set[str]:
        found: set[str] = set()
        every = list(self._events.world.jobs.values())
        for first in range(0, len(every), JOBS_AT_ONCE):
            found |= needed(every[first : first + JOBS_AT_ONCE], before_ms)
            await asyncio.sleep(0)
        return found

    async def _condemn(self, seq: int, manifest: ArtifactManifest) -> bool:
        """False when somebody has asked for it meanwhile."""
        await self._core.append(subjects.condemned(manifest.sha256), msgspec.json.encode(manifest))
        return await self._core.delete(subjects.BLOBS, seq)

    async def _execute(self, marked: set[str], named: set[str], swept: Swept) -> None:
        """Delete the chunks of what was condemned an hour ago."""
        due_ms = self._events.machine.wall_ms() - CONDEMNED_MS
        due: list[tuple[int, ArtifactManifest]] = []
        for subject in await self._core.subjects_of(subjects.BLOBS, subjects.condemned("*")):
            if (found := await self._core.dated(subjects.BLOBS, subject)) is None:
                continue
            stored, at_ms = found
            manifest = _manifest(stored)
            if at_ms > due_ms:
                marked.update(manifest.chunks)
            elif await self._core.holds(subjects.BLOBS, subjects.manifest(manifest.sha256)):
                marked.update(manifest.chunks)  # it was stored anew, or asked for while it was condemned
                await self._core.delete(subjects.BLOBS, stored.seq)
            elif manifest.sha256 in named:
                await self._restore(manifest)
                marked.update(manifest.chunks)
                await self._core.delete(subjects.BLOBS, stored.seq)
                swept.restored += 1
            else:
                due.append((stored.seq, manifest))
        going = dict.fromkeys(chunk for _, manifest in due for chunk in manifest.chunks if chunk not in marked)
        digests = list(going | dict.fromkeys(manifest.sha256 for _, manifest in due if manifest.sha256 not in marked))
        for first in range(0, len(digests), CHUNKS_AT_ONCE):
            swept.chunks += await self._delete(digests[first : first + CHUNKS_AT_ONCE])
        for seq, _ in due:
            swept.deleted += await self._core.delete(subjects.BLOBS, seq)

    async def _restore(self, manifest: ArtifactManifest) -> None:
        try:
            subject = subjects.manifest(manifest.sha256)
            await self._core.append(subject, msgspec.json.encode(manifest), expected_seq=0)
        except Conflict:
            pass  # somebody else did

    async def _delete(self, digests: list[str]) -> int:
        """Delete what is stored of some digests, of chunks and artifacts: the chunk, then the notes of whose it is; and
        put back what a manifest is about that was written meanwhile. Returns how many chunks are gone.
        """
        seen = set(await self._core.subjects_of(subjects.BLOBS, subjects.manifest("*")))
        gone: list[tuple[str, Stored]] = []
        for digest in digests:
            notes = await self._core.subjects_of(subjects.BLOBS, subjects.sent(digest, "*"))
            for subject in (subjects.chunk(digest), *notes):
                stored = await self._core.last(subjects.BLOBS, subject)
                if stored and await self._core.delete(subjects.BLOBS, stored.seq):
                    gone.append((digest, stored))
        again: set[str] = set()
        for subject in await self._core.subjects_of(subjects.BLOBS, subjects.manifest("*")):
            if subject not in seen and (found := await self._core.last(subjects.BLOBS, subject)):
                manifest = _manifest(found)
                again.update((manifest.sha256, *manifest.chunks))
        for digest, stored in gone:
            if digest in again:
                await self._core.append(stored.subject, stored.payload)
        return sum(digest not in again and stored.subject == subjects.chunk(digest) for digest, stored in gone)


def _manifest(stored: Stored) -> ArtifactManifest:
    return msgspec.json.decode(stored.payload, type=ArtifactManifest)
