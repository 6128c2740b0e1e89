"""The world as it was after some event, in a file beside the ledger: a start reads only the events behind it.

A projection like the ledger: it may be deleted at any time, and one that does not fit is not used, with a warning: the
log is then read from its first event. It fits when

  its bytes are those that were written             a SHA-256 over all of them
  this version would fold the same world            a SHA-256 over the sources of everything that folds
  the log holds the event it was made after         sequence and SHA-256 of that event
  the ledger has what it no longer tells            the ledger is flushed before a snapshot gets its name

The file: MAGIC, the SHA-256 of what follows, then blocks, each a length (4 bytes, big-endian) and a MessagePack array.
"""

import asyncio
import contextlib
import gc
import hashlib
import importlib.util
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cyxcentral.clients import Client
from cyxcentral.jobs import Job
from cyxcentral.nodes import Node
from cyxcentral.payouts import Payouts
from cyxcentral.world import Mint, Place, World

log = logging.getLogger(__name__)

MAGIC = b"cyx world 1\n"
LENGTH_BYTES, DIGEST_BYTES = 4, 32
AT_ONCE = 100  # jobs and the like in one block: then everybody else has a turn
WRITE_BYTES = 4_000_000
EVERY, SHARE = 20_000, 32  # a new one after so many events, or after one for so many that there are
FOLDS = (  # what decides which world a log folds to
    *("cyxcore.spec", "cyxcore.attrs", "cyxnet.subjects", "cyxnet.codec", "cyxnet.escrow"),
    *(f"cyxnet.messages.{family}" for family in ("fields", "jobs", "commands", "reports", "events")),
    *("cyxcentral.money", "cyxcentral.jobs", "cyxcentral.earnings", "cyxcentral.jobrules", "cyxcentral.jobfold"),
    *("cyxcentral.nodes", "cyxcentral.dependencies", "cyxcentral.world", "cyxcentral.eventlog"),
    *("cyxcentral.payouts", "cyxcentral.clients", "cyxcentral.snapshot"),
)


NOT_USED = "this snapshot is not used, the log is read from its first event: {}"


class Unusable(Exception):
    """Why a snapshot is not used."""


class Head(Struct, tag=True, array_like=True, frozen=True):
    """seq, sha256: of the event that the world was made after."""

    sources: str
    seq: int
    sha256: bytes
    quarantined: int
    suspects: list[str]
    damaged: dict[str, tuple[int, str]]
    payouts: Payouts
    clients: dict[str, Client]


class Places(Struct, tag=True, array_like=True, frozen=True):
    places: list[Place]


class Jobs(Struct, tag=True, array_like=True, frozen=True):
    jobs: list[Job]


class Nodes(Struct, tag=True, array_like=True, frozen=True):
    nodes: list[Node]


class Mints(Struct, tag=True, array_like=True, frozen=True):
    mints: list[Mint]


_BLOCKS = msgspec.msgpack.Decoder(Head | Places | Jobs | Nodes | Mints)


def _sources_sha256() -> str:
    """Of the code that folds. Another version might have come to another world."""
    digest = hashlib.sha256()
    for name in FOLDS:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()


SOURCES_SHA256 = _sources_sha256()  # of what runs here: on the disk there may be a newer version by and by


# -- writing -----------------------------------------------------------------------------------------------


def _blocks(world: World) -> Iterator[Struct]:
    """A world that nobody changes any more, in pieces that are quickly encoded."""
    yield Head(
        sources=SOURCES_SHA256,
        seq=world.seq,
        sha256=world.sha256,
        quarantined=world.quarantined,
        suspects=sorted(world.suspects),
        damaged={subject: (seq, world.why_damaged[subject]) for subject, seq in world.damaged.items()},
        payouts=world.payouts,
        clients=world.clients,
    )
    for kind, found in ((Places, world.places()), (Jobs, world.jobs.values()), (Nodes, world.nodes.values())):
        yield from (kind(some) for some in _some(found))
    yield from (Mints(some) for some in _some(world.mints.values()))


def _some(found: Iterable[Any]) -> Iterator[list[Any]]:
    coming = iter(found)
    while some := list(itertools.islice(coming, AT_ONCE)):
        yield some


async def write(path: Path, world: World, before_named: Callable[[], Awaitable[None]]) -> int:
    """Store a world (a copy: it must not change meanwhile) without holding anybody up; returns the bytes written.

    before_named: waited for before the file takes the place of the one before. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new, digest, size = path.with_suffix(".new"), hashlib.sha256(), 0
    encode = msgspec.msgpack.Encoder().encode
    with new.open("wb") as file:
        file.write(MAGIC + bytes(DIGEST_BYTES))
        waiting = bytearray()

        async def put() -> None:
            nonlocal waiting, size
            full, waiting = waiting, bytearray()
            size += len(full)
            digest.update(full)
            await asyncio.to_thread(file.write, full)

        for block in _blocks(world):
            encoded = encode(block)
            waiting += len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded
            await (put() if len(waiting) > WRITE_BYTES else asyncio.sleep(0))
        await put()
        file.seek(len(MAGIC))
        file.write(digest.digest())
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    await before_named()
    new.replace(path)
    return size


# -- reading -----------------------------------------------------------------------------------------------


class Snapshot:
    """A file that is whole and of this version. It may still be about another log."""

    def __init__(self, path: Path):
        """Raises Unusable, with the reason; FileNotFoundError without a file."""
        self.path = path
        content = path.read_bytes()
        start = len(MAGIC) + DIGEST_BYTES
        self._body = memoryview(content)[start:]
        if not content.startswith(MAGIC) or hashlib.sha256(self._body).digest() != content[len(MAGIC) : start]:
            raise Unusable("its bytes are not those that were written")
        self._blocks = _parts(self._body)
        head = _decoded(next(self._blocks, memoryview(b"")))
        if not isinstance(head, Head) or head.sources != SOURCES_SHA256:
            raise Unusable("another version of central made it")
        self.head = head

    def fill(self, world: World) -> None:
        """Make an empty world the one that was stored. Raises Unusable, and leaves the world as it is."""
        head = self.head
        collecting = gc.isenabled()
        gc.disable()  # nothing that is made here is garbage
        try:
            for part in [_decoded(part) for part in self._blocks]:
                match part:
                    case Places(places):
                        world.take_places(places)
                    case Jobs(found):
                        world.take_jobs(found)
                    case Nodes(nodes):
                        world.nodes.update((node.node_id, node) for node in nodes)
                    case Mints(mints):
                        world.mints.update((mint.mint_id, mint) for mint in mints)
        finally:
            if collecting:
                gc.enable()
        world.seq, world.sha256, world.quarantined = head.seq, head.sha256, head.quarantined
        world.payouts = head.payouts
        world.clients.update(head.clients)
        world.suspects.update(head.suspects)
        world.damaged.update((subject, seq) for subject, (seq, _) in head.damaged.items())
        world.why_damaged.update((subject, why) for subject, (_, why) in head.damaged.items())


def _parts(body: memoryview) -> Iterator[memoryview]:
    at = 0
    while at < len(body):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(body[at:begin], "big")
        yield body[begin:at]


def _decoded(part: memoryview) -> Any:
    try:
        return _BLOCKS.decode(part)
    except msgspec.MsgspecError as error:
        raise Unusable(f"a part of it cannot be read ({error})") from None


def read(path: Path, known_seq: int) -> Snapshot | None:
    """The snapshot at `path`, if there is one that fits a ledger which has seen the log up to known_seq."""
    try:
        found = Snapshot(path)
        if found.head.seq > known_seq:
            raise Unusable(f"the ledger has seen events up to {known_seq} only, not {found.head.seq}")
        return found
    except FileNotFoundError:
        return None
    except (Unusable, OSError) as error:
        log.warning("%s: %s", path, NOT_USED.format(error))
        return None


# -- when --------------------------------------------------------------------------------------------------


class Keeper:
    """Writes a new snapshot whenever a start would have to read much without it.

    flushed: brings the ledger to disk; what a snapshot no longer tells must be there. kept_seq: of the newest one.
    """

    def __init__(self, path: Path, world: World, flushed: Callable[[], Awaitable[None]]):
        self._path = path
        self._world = world
        self._flushed = flushed
        self.kept_seq = 0
        self._writing: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begin to write one if it is due. Called after every event, so it must be quick."""
        seq = self._world.seq
        if seq - self.kept_seq >= EVERY and seq - self.kept_seq >= seq // SHARE and self._writing is None:
            self.kept_seq = seq  # also when it cannot be written: the next try comes with the next one that is due
            self._writing = asyncio.get_running_loop().create_task(self._write(self._world.copy()))

    async def _write(self, world: World) -> None:
        try:
            size = await write(self._path, world, self._flushed)
            log.info("snapshot of the world after event %d: %d bytes", world.seq, size)
        except Exception as error:
            log.warning("no snapshot of the world could be written to %s: %s", self._path, error)
        finally:
            self._writing = None

    async def written(self) -> None:
        """Wait for the one that is under way."""
        if self._writing is not None:
            await self._writing

    async def close(self) -> None:
        """Give up one that is under way: the one before it stays."""
        if self._writing is not None:
            self._writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing
