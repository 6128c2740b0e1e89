"""The artifact cache: verified, bounded, least recently used first."""

import asyncio
import hashlib
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cyxcore.errors import CyxError
from cyxnode.cache import TRUSTED_S, ArtifactCache
from cyxnode.errors import DiskError, NodeError


class Source:
    """Content by digest, as central would give it; counts how often it is asked."""

    def __init__(self, *contents: bytes):
        self.by_digest = {hashlib.sha256(content).hexdigest(): content for content in contents}
        self.fetched: list[str] = []

    async def __call__(self, sha256: str, path: Path) -> None:
        self.fetched.append(sha256)
        path.write_bytes(self.by_digest[sha256])


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def hold(cache: ArtifactCache, content: bytes) -> None:
    async with cache.hold(digest(content), len(content)) as path:
        assert path.read_bytes() == content


async def test_an_artifact_is_fetched_once_and_then_reused(tmp_path: Path) -> None:
    source = Source(b"rows")
    cache = ArtifactCache(tmp_path, 100, source)
    await hold(cache, b"rows")
    await hold(cache, b"rows")
    assert len(source.fetched) == 1


async def test_a_file_that_changed_on_disk_is_fetched_again(tmp_path: Path) -> None:
    source = Source(b"rows")
    cache = ArtifactCache(tmp_path, 100, source)
    await hold(cache, b"rows")
    (tmp_path / digest(b"rows")).write_bytes(b"rowz")
    await hold(cache, b"rows")
    assert len(source.fetched) == 2


async def test_a_file_that_is_trusted_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, read = 0.0, []
    cache = ArtifactCache(tmp_path, 100, Source(b"rows"), clock=lambda: now_s)
    await hold(cache, b"rows")
    monkeypatch.setattr("cyxnode.cache._is_whole", lambda path, sha256, size: not read.append(sha256))
    await hold(cache, b"rows")
    assert read == []
    now_s = TRUSTED_S + 1
    await hold(cache, b"rows")
    assert read == [digest(b"rows")]


async def test_a_change_that_hides_its_time_is_noticed(tmp_path: Path) -> None:
    source = Source(b"rows")
    cache, path = ArtifactCache(tmp_path, 100, source), tmp_path / digest(b"rows")
    await hold(cache, b"rows")
    before = path.stat()
    path.unlink()
    path.write_bytes(b"rowz")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await hold(cache, b"rows")
    assert len(source.fetched) == 2


async def test_a_new_process_trusts_no_file_it_finds(tmp_path: Path) -> None:
    source = Source(b"rows")
    (tmp_path / digest(b"rows")).write_bytes(b"rowz")
    await hold(ArtifactCache(tmp_path, 100, source), b"rows")
    assert len(source.fetched) == 1


async def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    source = Source(b"a" * 40, b"b" * 40, b"c" * 40)
    cache = ArtifactCache(tmp_path, 100, source)
    await hold(cache, b"a" * 40)
    await hold(cache, b"b" * 40)
    os.utime(tmp_path / digest(b"a" * 40), (2e9, 2e9))
    await hold(cache, b"c" * 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([digest(b"a" * 40), digest(b"c" * 40)])


async def test_what_is_held_is_not_thrown_out(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100, Source(b"a" * 60, b"b" * 60))
    async with cache.hold(digest(b"a" * 60), 60) as path:
        with pytest.raises(NodeError, match="does not fit in this node's cache of 100"):
            await hold(cache, b"b" * 60)
        assert path.exists()


async def test_an_artifact_of_another_size_than_promised_is_refused(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100, Source(b"rows"))
    with pytest.raises(CyxError, match="expected 5 bytes, got 4"):
        async with cache.hold(digest(b"rows"), 5):
            pass


def test_drafts_of_a_transfer_that_was_cut_off_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".abc.1234").write_bytes(b"half")
    ArtifactCache(tmp_path, 100, Source())
    assert list(tmp_path.iterdir()) == []


async def test_on_a_disk_without_room_what_no_run_uses_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=20 - sum(path.stat().st_size for path in folder.iterdir()))

    monkeypatch.setattr("cyxnode.cache.shutil.disk_usage", usage)
    contents = [b"oldest....", b"newer....."]
    cache = ArtifactCache(tmp_path, 10**9, Source(*contents, b"newest....", b"too large for the disk"))
    for content in contents:
        await hold(cache, content)
    async with cache.hold(digest(contents[1]), 10):
        assert cache.disk_free_bytes(0) == 0
        await hold(cache, b"newest....")
        assert {path.name for path in tmp_path.iterdir()} == {digest(contents[1]), digest(b"newest....")}
        assert cache.disk_free_bytes(15) == 10  # that in use stays
        with pytest.raises(DiskError, match=r"22 bytes does not fit on this node's disk \(10 bytes are free\)"):
            await hold(cache, b"too large for the disk")


async def test_what_a_run_takes_while_room_is_made_in_another_thread_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the full disk of a node is looked at beside its runs: a run was given a file that was gone
    chosen, taken = threading.Event(), threading.Event()

    def usage(folder: Path) -> SimpleNamespace:
        chosen.set()
        taken.wait(20)
        return SimpleNamespace(free=0)

    cache = ArtifactCache(tmp_path, 100, Source(b"rows"))
    monkeypatch.setattr("cyxnode.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    await hold(cache, b"rows")
    monkeypatch.setattr("cyxnode.cache.shutil.disk_usage", usage)
    making_room = asyncio.create_task(asyncio.to_thread(cache.disk_free_bytes, 10))
    assert await asyncio.to_thread(chosen.wait, 20)
    async with cache.hold(digest(b"rows"), 4) as path:
        taken.set()
        await making_room
        assert path.read_bytes() == b"rows"
