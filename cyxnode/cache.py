"""Artifacts kept on this node's disk, by digest and of bounded size. The least recently used go first."""

import asyncio
import collections
import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from cyxcore.errors import CyxError
from cyxnode.errors import DiskError, NodeError

Fetch = Callable[[str, Path], Awaitable[object]]  # fetch(sha256, path): the file appears whole and verified
READ_BYTES = 1 << 20
TRUSTED_S = 3600.0  # so long a file that was verified is not hashed again: a disk does not rot that fast


class Stamp(NamedTuple):
    """What changes when anybody writes a file. The kernel sets mtime and ctime then, and nobody else can set ctime."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    at_s: float  # when it was verified, on the monotonic clock


class ArtifactCache:
    """Files named by their SHA-256 in `folder`. One per node: the node's lock keeps others out."""

    def __init__(self, folder: Path, max_bytes: int, fetch: Fetch, clock: Callable[[], float] = time.monotonic):
        self._folder = folder
        self._max_bytes = max_bytes
        self._fetch = fetch
        self._clock = clock
        self._verified: dict[str, Stamp] = {}
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._in_use: collections.Counter[str] = collections.Counter()
        self._making_room = threading.RLock()  # of several threads, one counts and removes files at a time
        self._taking = threading.Lock()  # a file is taken by a run or removed, never both
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*"):  # of a transfer that a crash cut off
            draft.unlink()

    @contextlib.asynccontextmanager
    async def hold(self, sha256: str, size: int | None) -> AsyncIterator[Path]:
        """The artifact as a file that stays while it is held. `size`: bytes it must have, if that is known.

        A file that is there is hashed again, because a disk may have changed it, unless this process verified it
        within TRUSTED_S and its stamp is the same. Raises NodeError when it cannot fit, CyxError when it cannot be
        fetched.
        """
        path = self._folder / sha256
        with self._taking:
            self._in_use[sha256] += 1
        try:
            async with self._locks[sha256]:  # two runs on one dataset fetch it once
                if not self._is_trusted(path, sha256, size) and not await asyncio.to_thread(
                    _is_whole, path, sha256, size
                ):
                    await asyncio.to_thread(self._make_room, size or 0)
                    try:
                        await self._fetch(sha256, path)
                    except OSError as error:
                        raise NodeError(f"{path}: cannot be written ({error.strerror or error})") from None
                    got = path.stat().st_size
                    if size is not None and got != size:
                        path.unlink()
                        raise CyxError(f"artifact {sha256}: expected {size} bytes, got {got}")
                self._use(path, sha256)
            yield path
        finally:
            self._in_use[sha256] -= 1
            if not self._in_use[sha256]:
                del self._in_use[sha256]
                del self._locks[sha256]

    def _is_trusted(self, path: Path, sha256: str, size: int | None) -> bool:
        known = self._verified.get(sha256)
        if known is None or self._clock() - known.at_s > TRUSTED_S or size not in (None, known.size):
            return False
        try:
            return _stamp(path, known.at_s) == known
        except FileNotFoundError:
            return False

    def _use(self, path: Path, sha256: str) -> None:
        """Mark a verified file as the most recently used one, and remember how it looks."""
        known = self._verified.get(sha256)
        trusted = known is not None and self._is_trusted(path, sha256, known.size)
        at_s = known.at_s if known and trusted else self._clock()
        # a time to the nanosecond: the kernel's own clock ticks, so a write in the same tick sets another one
        now_ns = time.time_ns()
        os.utime(path, ns=(now_ns, now_ns))
        self._verified[sha256] = _stamp(path, at_s)

    def disk_free_bytes(self, wanted_bytes: int) -> int:
        """What is free on the disk; while that is less than wanted, files that no run uses are removed first."""
        with self._making_room:
            for path in self._oldest_first(self._kept()):
                if shutil.disk_usage(self._folder).free >= wanted_bytes:
                    break
                self._remove(path)
            return shutil.disk_usage(self._folder).free

    def _kept(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if not path.name.startswith(".")]

    def _oldest_first(self, kept: list[Path]) -> list[Path]:
        free = [path for path in kept if path.name not in self._in_use]
        return sorted(free, key=lambda path: path.stat().st_mtime_ns)

    def _remove(self, path: Path) -> int:
        """Returns its bytes: 0, and it stays, if a run has taken it since it was found to be free."""
        with self._taking:
            if path.name in self._in_use:
                return 0
            size = path.stat().st_size
            path.unlink()
            self._verified.pop(path.name, None)
        return size

    def _make_room(self, needed_bytes: int) -> None:
        with self._making_room:
            kept = self._kept()
            used_bytes = sum(path.stat().st_size for path in kept)
            for path in self._oldest_first(kept):
                if used_bytes + needed_bytes <= self._max_bytes:
                    break
                used_bytes -= self._remove(path)
            if used_bytes + needed_bytes > self._max_bytes:
                raise NodeError(
                    f"the artifact of {needed_bytes} bytes does not fit in this node's cache of {self._max_bytes} "
                    f"bytes ({used_bytes} in use); start the node with a larger --cache"
                )
            if needed_bytes > (free_bytes := self.disk_free_bytes(needed_bytes)):
                raise DiskError(
                    f"the artifact of {needed_bytes} bytes does not fit on this node's disk ({free_bytes} bytes are "
                    "free); its operator should free some space on it"
                )


def _stamp(path: Path, at_s: float) -> Stamp:
    found = path.stat()
    return Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, at_s)


def _is_whole(path: Path, sha256: str, size: int | None) -> bool:
    """Whether the file has that digest. One that has not is removed."""
    try:
        if size in (None, path.stat().st_size):
            whole = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(READ_BYTES):
                    whole.update(block)
            if whole.hexdigest() == sha256:
                return True
        path.unlink()
    except FileNotFoundError:
        pass
    return False
