"""Artifacts through a real broker and central's real store."""

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cyxcentral.blobs import READ_BACK_OF_ONE, BlobError, Blobs
from cyxnet import artifacts, subjects
from cyxnet.artifacts import ArtifactError
from cyxnet.bus import ApiError, Bus, BusError, NobodyServes
from cyxnet.codec import JSON, MSGPACK, decode, encode
from cyxnet.credentials import as_client
from cyxnet.identity import Identity
from cyxnet.messages import ArtifactManifest, ArtifactStatReply
from tests.chaos.proxy import Link

ME = as_client(Identity(b"m" * 32))


@pytest.fixture
async def store(broker):
    """(client bus, blobs): a client whose artifact verbs are served as central serves them."""
    core = await Bus.connect(broker.url("core"), name="core")
    edge = await Bus.connect(broker.url("edge"), name="edge")
    client = await Bus.connect(broker.url("client"), name="client", credentials=ME)
    blobs = Blobs(core)
    await blobs.open()
    handlers = {
        "artifact.stat": lambda caller, manifest: blobs.stat(manifest, caller),
        "artifact.put": lambda caller, block: blobs.put(block, caller),
        "artifact.commit": lambda caller, manifest: blobs.commit(manifest, caller),
        "artifact.manifest": lambda _, ref: blobs.manifest(ref.sha256),
        "artifact.chunk": lambda _, ref: blobs.chunk(ref.sha256),
    }
    await edge.serve("1.0.0", "test", handlers)
    yield client, blobs
    for bus in (client, edge, core):
        await bus.close()


def file_of(tmp_path, size):
    path = tmp_path / "data.bin"
    path.write_bytes(hashlib.shake_256(b"cyx").digest(size))
    return path


@pytest.mark.parametrize("size", [1, artifacts.CHUNK_BYTES, 3 * artifacts.CHUNK_BYTES + 17])
async def test_a_file_comes_back_as_it_went(store, tmp_path, size):
    client, _ = store
    path, seen = file_of(tmp_path, size), []
    ref = await artifacts.put(client, ME.id, path, lambda done, total: seen.append((done, total)))
    assert (ref.sha256, ref.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), size)
    assert seen[-1] == (size, size)
    await artifacts.get(client, ME.id, ref.sha256, tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == path.read_bytes()


async def test_on_a_slow_link_so_few_chunks_are_on_their_way_that_each_comes_in_time(
    store, broker, tmp_path, monkeypatch
):
    # eight at once came too late one and all, and the next try began from nothing
    monkeypatch.setattr(artifacts, "CHUNK_S", 2.0)  # less than eight chunks take
    url = broker.url("client")
    link = Link(int(url.rpartition(":")[2]), bytes_per_s=1.5e6)
    await link.start()
    slow_url = url.replace(f":{link.target_port}", f":{link.port}")
    slow = await Bus.connect(slow_url, name="client", credentials=ME)
    path = file_of(tmp_path, 8 * artifacts.CHUNK_BYTES)
    try:
        ref = await artifacts.put(slow, ME.id, path)
        await artifacts.get(slow, ME.id, ref.sha256, tmp_path / "back.bin")
    finally:
        await slow.close()
        await link.close()
    assert (tmp_path / "back.bin").read_bytes() == path.read_bytes()


async def test_a_link_that_breaks_under_a_transfer_is_waited_for(store, broker, tmp_path, monkeypatch):
    # what was asked for while it was away failed at once, three times in a moment, and all began from nothing
    link = Link(int(broker.url("client").rpartition(":")[2]))
    await link.start()
    client = await Bus.connect(
        broker.url("client").replace(f":{link.target_port}", f":{link.port}"), name="client", credentials=ME
    )
    path, request, torn = file_of(tmp_path, 4 * artifacts.CHUNK_BYTES), client.request, []

    async def break_before(subject, *given, **options):
        if subject.endswith("artifact.chunk") and not torn:
            torn.append(subject)
            link.tear()
            while client.connected:
                await asyncio.sleep(0)
        return await request(subject, *given, **options)

    monkeypatch.setattr(client, "request", break_before)
    try:
        ref = await artifacts.put(store[0], ME.id, path)
        await artifacts.get(client, ME.id, ref.sha256, tmp_path / "back.bin")
    finally:
        await client.close()
        await link.close()
    assert torn and (tmp_path / "back.bin").read_bytes() == path.read_bytes()


class Carried:
    """What places carry in turn: how many are on their way at a time."""

    def __init__(self):
        self.now = 0
        self.most = []  # that were beside each one when it began

    async def once(self):
        self.now += 1
        self.most.append(self.now)
        for _ in range(20):
            await asyncio.sleep(0)
        self.now -= 1


async def no_pause(seconds):
    """Between two tries."""


async def test_as_many_chunks_are_on_their_way_as_the_link_carries_quickly(monkeypatch):
    places, quick, slow = artifacts.Places(4, no_pause), Carried(), Carried()
    await asyncio.gather(*(places.carry(quick.once) for _ in range(20)))
    assert (quick.most[0], max(quick.most)) == (1, 4)
    monkeypatch.setattr(artifacts, "QUICK_S", 0.0)
    monkeypatch.setattr(artifacts, "SLOW_S", -1.0)  # all are slow, also where the clock did not tick meanwhile
    await asyncio.gather(*(places.carry(slow.once) for _ in range(20)))
    assert (max(slow.most), slow.most[-10:]) == (4, [1] * 10)


async def test_a_chunk_that_nobody_answers_is_asked_for_again_and_one_that_nobody_serves_is_not():
    tries = []

    async def fails(error):
        tries.append(error)
        if len(tries) < 3:
            raise error
        return b"bytes"

    places = artifacts.Places(4, no_pause)
    assert await places.carry(lambda: fails(BusError("no answer"))) == b"bytes"
    tries.clear()
    with pytest.raises(NobodyServes):
        await places.carry(lambda: fails(NobodyServes("nobody")))
    assert len(tries) == 1
    left = [BusError("no answer")] * artifacts.CHUNK_TRIES

    async def never():
        raise left.pop()

    with pytest.raises(BusError):
        await places.carry(never)
    assert left == []


async def test_an_interrupted_upload_goes_on_with_what_is_missing(store, tmp_path):
    client, blobs = store
    path = file_of(tmp_path, 4 * artifacts.CHUNK_BYTES)
    manifest = artifacts.describe(path)
    await blobs.put(path.read_bytes()[: artifacts.CHUNK_BYTES], ME.id)
    assert (await blobs.stat(manifest, ME.id)).missing == manifest.chunks[1:]
    await artifacts.put(client, ME.id, path)
    assert (await blobs.stat(manifest, ME.id)).complete


async def test_equal_chunks_are_stored_once(store, tmp_path):
    client, _ = store
    path = tmp_path / "zeros"
    path.write_bytes(bytes(5 * artifacts.CHUNK_BYTES))
    ref = await artifacts.put(client, ME.id, path)
    await artifacts.get(client, ME.id, ref.sha256, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


async def test_a_manifest_that_lies_about_its_digest_is_refused(store, tmp_path):
    client, blobs = store
    path = file_of(tmp_path, 1000)
    manifest = artifacts.describe(path)
    await blobs.put(path.read_bytes(), ME.id)
    lie = artifacts.ArtifactManifest(sha256="0" * 64, size=manifest.size, chunks=manifest.chunks)
    with pytest.raises(ApiError, match="expected 1000 bytes with the digest named"):
        await client.ask(subjects.api(ME.id, "artifact.commit"), lie, artifacts.ArtifactRef)


async def test_a_commit_before_its_chunks_is_refused(store, tmp_path):
    client, _ = store
    manifest = artifacts.describe(file_of(tmp_path, 1000))
    with pytest.raises(ApiError, match="1 of its 1 chunks are not stored here as sent by you"):
        await client.ask(subjects.api(ME.id, "artifact.commit"), manifest, artifacts.ArtifactRef)


async def test_an_unknown_artifact_leaves_no_file_behind(store, tmp_path):
    client, _ = store
    with pytest.raises(ApiError, match="no artifact"):
        await artifacts.get(client, ME.id, "0" * 64, tmp_path / "model")
    assert list(tmp_path.glob("*model*")) == []


async def test_an_artifact_larger_than_allowed_is_not_fetched(store, tmp_path):
    client, _ = store
    ref = await artifacts.put(client, ME.id, file_of(tmp_path, 5000))
    with pytest.raises(ArtifactError, match="at most 10 bytes, it has 5000"):
        await artifacts.get(client, ME.id, ref.sha256, tmp_path / "model", max_bytes=10)


def test_a_file_that_is_written_again_within_a_tick_of_its_times_is_read_again(tmp_path, monkeypatch):
    stat, tick_ns = Path.stat, 4_000_000  # as kernels before 6.13 have it, and some file systems today

    def ticking(self):
        found = stat(self)
        mtime_ns, ctime_ns = (at_ns - at_ns % tick_ns for at_ns in (found.st_mtime_ns, found.st_ctime_ns))
        return SimpleNamespace(st_mtime_ns=mtime_ns, st_ctime_ns=ctime_ns, st_size=found.st_size, st_ino=found.st_ino)

    monkeypatch.setattr(Path, "stat", ticking)
    path = tmp_path / "data.csv"
    for number in range(100, 200):  # all of one size
        path.write_text(f"{number}")
        assert artifacts.describe(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_stays_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "data.csv"
    path.write_text("1")
    later = path.stat().st_ctime_ns + artifacts.TICK_NS
    monkeypatch.setattr(artifacts.time, "time_ns", lambda: later)
    found = artifacts.describe(path)
    assert artifacts.describe(path) is found


def test_an_empty_file_is_no_artifact(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ArtifactError, match="empty file"):
        artifacts.describe(tmp_path / "empty")


async def test_what_is_missing_of_many_chunks_is_found_without_fetching_those_that_are_there(store, tmp_path):
    # each lookup brought the whole chunk: asking what was missing read all that had arrived
    _, blobs = store
    block = b"x" * artifacts.CHUNK_BYTES
    there = hashlib.sha256(block).hexdigest()
    await blobs.put(block, ME.id)
    absent = [f"{number:064x}" for number in range(300)]
    manifest = ArtifactManifest(sha256="e" * 64, size=301 * artifacts.CHUNK_BYTES, chunks=[there, *absent])
    before = blobs._core._nc.stats["in_bytes"]
    assert (await blobs.stat(manifest, ME.id)).missing == absent
    assert blobs._core._nc.stats["in_bytes"] - before < artifacts.CHUNK_BYTES


async def test_two_uploaders_of_the_same_file_at_once_both_succeed(store, tmp_path):
    client, blobs = store
    path = file_of(tmp_path, 3 * artifacts.CHUNK_BYTES)
    first, second = await asyncio.gather(artifacts.put(client, ME.id, path), artifacts.put(client, ME.id, path))
    assert first == second
    assert await blobs.commit(artifacts.describe(path), ME.id) == first


async def test_a_chunk_that_one_replica_has_not_heard_of_yet_is_asked_of_the_leader(store, tmp_path, monkeypatch):
    client, blobs = store
    path = file_of(tmp_path, artifacts.CHUNK_BYTES + 1)
    asked = blobs._core.last

    async def behind(stream, subject, *, any_replica=False):
        return None if any_replica else await asked(stream, subject)

    monkeypatch.setattr(blobs._core, "last", behind)
    assert (await artifacts.put(client, ME.id, path)).size == artifacts.CHUNK_BYTES + 1


async def test_a_damaged_chunk_is_found_by_the_commit(store, tmp_path):
    _, blobs = store
    path = file_of(tmp_path, 2 * artifacts.CHUNK_BYTES)
    manifest = artifacts.describe(path)
    await blobs.put(path.read_bytes()[: artifacts.CHUNK_BYTES], ME.id)
    await blobs._core.append(subjects.chunk(manifest.chunks[1]), b"bit rot", expected_seq=0)
    await blobs._core.append(subjects.sent(manifest.chunks[1], ME.id), b"{}", expected_seq=0)
    with pytest.raises(BlobError, match="damaged"):
        await blobs.commit(manifest, ME.id)


async def test_chunks_that_an_artifact_repeats_are_read_from_the_store_once(store, tmp_path):
    """A manifest of ten thousand times one chunk had central read six gigabytes, for one message of its sender."""
    _, blobs = store
    path, parts = tmp_path / "repeats", [bytes([number]) * artifacts.CHUNK_BYTES for number in range(3)]
    path.write_bytes(b"".join(parts) * 40 + b"end")
    for block in (*parts, b"end"):
        await blobs.put(block, ME.id)
    before = blobs._core._nc.stats["in_bytes"]
    ref = await blobs.commit(artifacts.describe(path), ME.id)
    assert (ref.sha256, ref.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    assert blobs._core._nc.stats["in_bytes"] - before < 4 * artifacts.CHUNK_BYTES


async def test_a_commit_is_counted_before_anything_is_read_back(store, tmp_path):
    _, blobs = store
    path, counted = file_of(tmp_path, 2 * artifacts.CHUNK_BYTES), []
    manifest = artifacts.describe(path)
    for number in range(2):
        await blobs.put(path.read_bytes()[number * artifacts.CHUNK_BYTES :][: artifacts.CHUNK_BYTES], ME.id)

    def refuse(size_bytes):
        raise ApiError("quota", "enough", 429)

    before = blobs._core._nc.stats["in_bytes"]
    with pytest.raises(ApiError, match="enough"):
        await blobs.commit(manifest, ME.id, refuse)
    assert blobs._core._nc.stats["in_bytes"] - before < artifacts.CHUNK_BYTES
    for _ in range(2):  # what is whole already is not read again, and not counted
        await blobs.commit(manifest, ME.id, counted.append)
    assert counted == [manifest.size]


async def test_commits_of_one_sender_leave_room_for_those_of_another(store, monkeypatch):
    _, blobs = store
    reading, go_on = [], asyncio.Event()

    async def held(digest):
        reading.append(digest)
        await go_on.wait()
        return digest.encode()

    monkeypatch.setattr(blobs, "_stored_chunk", held)
    flood = [asyncio.create_task(blobs._read_back([f"{number:064x}"], "c-flood")) for number in range(20)]
    other = asyncio.create_task(blobs._read_back(["other"], "c-other"))
    while "other" not in reading:
        await asyncio.sleep(0)
    assert len(reading) == 1 + READ_BACK_OF_ONE
    go_on.set()
    await asyncio.gather(*flood, other, return_exceptions=True)
    assert len(reading) == 21 and not blobs._turns


async def test_a_place_that_cannot_be_written_is_one_clear_error(store, tmp_path):
    client, _ = store
    ref = await artifacts.put(client, ME.id, file_of(tmp_path, 10))
    with pytest.raises(ArtifactError, match="cannot be written"):
        await artifacts.get(client, ME.id, ref.sha256, tmp_path / "data.bin" / "inside-a-file")


def test_a_file_whose_manifest_fits_no_message_is_refused_before_it_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("cyxnet.artifacts.MAX_ARTIFACT_BYTES", 10)
    with pytest.raises(ArtifactError, match="at most 10 bytes"):
        artifacts.describe(file_of(tmp_path, 11))


def test_the_largest_manifest_fits_a_message():
    count = -(-artifacts.MAX_ARTIFACT_BYTES // artifacts.CHUNK_BYTES)
    manifest = ArtifactManifest(sha256="e" * 64, size=artifacts.MAX_ARTIFACT_BYTES, chunks=["e" * 64] * count)
    for content_type in (JSON, MSGPACK):
        assert decode(ArtifactManifest, encode(manifest, content_type), content_type) == manifest


async def test_a_commit_whose_central_died_is_given_up_after_seconds(broker, tmp_path, monkeypatch):
    # it was waited for for two minutes, and with it the job whose model it was
    monkeypatch.setattr(artifacts, "ANSWER_S", 0.2)
    edge = await Bus.connect(broker.url("edge"), name="edge")
    client = await Bus.connect(broker.url("client"), name="client", credentials=ME)
    never = asyncio.Event()

    async def dies(caller, manifest):
        await never.wait()

    async def stat(caller, manifest):
        return ArtifactStatReply(complete=False, missing=[])

    await edge.serve("1.0.0", "test", {"artifact.stat": stat, "artifact.commit": dies})
    async with asyncio.timeout(60):
        with pytest.raises(BusError):
            await artifacts.put(client, ME.id, file_of(tmp_path, 1))
    never.set()
    for bus in (client, edge):
        await bus.close()


def test_the_patience_with_a_commit_grows_with_what_has_to_be_read_back():
    assert artifacts.patience_s(1) < 15
    assert artifacts.patience_s(artifacts.MAX_ARTIFACT_BYTES) > 200
