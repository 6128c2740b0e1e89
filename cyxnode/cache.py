"""Artifacts kept on this node's disk, by digest and of bounded size. The least recently used go first."""

import asyncio
import collections
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from cyxcore.errors import CyxError
from cyxnode.errors import NodeError

Fetch = Callable[[str, Path], Awaitable[object]]  # fetch(sha256, path): the file appears whole and verified
READ_BYTES = 1 << 20


class ArtifactCache:
    """Files named by their SHA-256 in `folder`. One per node: the node's lock keeps others out."""

    def __init__(self, folder: Path, max_bytes: int, fetch: Fetch):
        self._folder = folder
        self._max_bytes = max_bytes
        self._fetch = fetch
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._in_use: collections.Counter[str] = collections.Counter()
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*"):  # of a transfer that a crash cut off
            draft.unlink()

    @contextlib.asynccontextmanager
    async def hold(self, sha256: str, size: int | None) -> AsyncIterator[Path]:
        """The artifact as a file that stays while it is held. `size`: bytes it must have, if that is known.

        A file that is there is hashed again: a disk may have changed it. Raises NodeError when it cannot fit,
        CyxError when it cannot be fetched.
        """
        path = self._folder / sha256
        self._in_use[sha256] += 1
        try:
            async with self._locks[sha256]:  # two runs on one dataset fetch it once
                if not await asyncio.to_thread(_is_whole, path, sha256, size):
                    await asyncio.to_thread(self._make_room, size or 0)
                    try:
                        await self._fetch(sha256, path)
                    except OSError as error:
                        raise NodeError(f"{path}: cannot be written ({error.strerror or error})") from None
                    got = path.stat().st_size
                    if size is not None and got != size:
                        path.unlink()
                        raise CyxError(f"artifact {sha256}: expected {size} bytes, got {got}")
                os.utime(path)
            yield path
        finally:
            self._in_use[sha256] -= 1
            if not self._in_use[sha256]:
                del self._in_use[sha256]
                del self._locks[sha256]

    def _make_room(self, needed_bytes: int) -> None:
        kept = [path for path in self._folder.iterdir() if not path.name.startswith(".")]
        used_bytes = sum(path.stat().st_size for path in kept)
        free = [path for path in kept if path.name not in self._in_use]
        for path in sorted(free, key=lambda path: path.stat().st_mtime_ns):
            if used_bytes + needed_bytes <= self._max_bytes:
                break
            used_bytes -= path.stat().st_size
            path.unlink()
        if used_bytes + needed_bytes > self._max_bytes:
            raise NodeError(
                f"the artifact of {needed_bytes} bytes does not fit in this node's cache of {self._max_bytes} "
                f"bytes ({used_bytes} in use); start the node with a larger --cache"
            )


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
