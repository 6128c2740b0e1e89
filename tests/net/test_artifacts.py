"""Artifacts through a real broker and central's real store."""

import hashlib

import pytest

from cyxcentral.blobs import Blobs
from cyxnet import artifacts, subjects
from cyxnet.artifacts import ArtifactError
from cyxnet.bus import ApiError, Bus


@pytest.fixture
async def store(broker):
    """(client bus, blobs): a client whose artifact verbs are served as central serves them."""
    core = await Bus.connect(broker.url("core"), name="core")
    edge = await Bus.connect(broker.url("edge"), name="edge")
    client = await Bus.connect(broker.url("client"), name="client", inbox="_INBOX_client")
    blobs = Blobs(core)
    await blobs.open()
    handlers = {
        "artifact.stat": lambda _, manifest: blobs.stat(manifest),
        "artifact.put": lambda _, block: blobs.put(block),
        "artifact.commit": lambda _, manifest: blobs.commit(manifest),
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
    ref = await artifacts.put(client, "me", path, lambda done, total: seen.append((done, total)))
    assert (ref.sha256, ref.size) == (hashlib.sha256(path.read_bytes()).hexdigest(), size)
    assert seen[-1] == (size, size)
    await artifacts.get(client, "me", ref.sha256, tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == path.read_bytes()


async def test_an_interrupted_upload_goes_on_with_what_is_missing(store, tmp_path):
    client, blobs = store
    path = file_of(tmp_path, 4 * artifacts.CHUNK_BYTES)
    manifest = artifacts.describe(path)
    await blobs.put(path.read_bytes()[: artifacts.CHUNK_BYTES])
    assert (await blobs.stat(manifest)).missing == manifest.chunks[1:]
    await artifacts.put(client, "me", path)
    assert (await blobs.stat(manifest)).complete


async def test_equal_chunks_are_stored_once(store, tmp_path):
    client, _ = store
    path = tmp_path / "zeros"
    path.write_bytes(bytes(5 * artifacts.CHUNK_BYTES))
    ref = await artifacts.put(client, "me", path)
    await artifacts.get(client, "me", ref.sha256, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


async def test_a_manifest_that_lies_about_its_digest_is_refused(store, tmp_path):
    client, blobs = store
    path = file_of(tmp_path, 1000)
    manifest = artifacts.describe(path)
    await blobs.put(path.read_bytes())
    lie = artifacts.ArtifactManifest(sha256="0" * 64, size=manifest.size, chunks=manifest.chunks)
    with pytest.raises(ApiError, match="expected 1000 bytes with the digest named"):
        await client.ask(subjects.api("me", "artifact.commit"), lie, artifacts.ArtifactRef)


async def test_a_commit_before_its_chunks_is_refused(store, tmp_path):
    client, _ = store
    manifest = artifacts.describe(file_of(tmp_path, 1000))
    with pytest.raises(ApiError, match="not stored here"):
        await client.ask(subjects.api("me", "artifact.commit"), manifest, artifacts.ArtifactRef)


async def test_an_unknown_artifact_leaves_no_file_behind(store, tmp_path):
    client, _ = store
    with pytest.raises(ApiError, match="no artifact"):
        await artifacts.get(client, "me", "0" * 64, tmp_path / "model")
    assert list(tmp_path.glob("*model*")) == []


async def test_an_artifact_larger_than_allowed_is_not_fetched(store, tmp_path):
    client, _ = store
    ref = await artifacts.put(client, "me", file_of(tmp_path, 5000))
    with pytest.raises(ArtifactError, match="at most 10 bytes, it has 5000"):
        await artifacts.get(client, "me", ref.sha256, tmp_path / "model", max_bytes=10)


def test_an_empty_file_is_no_artifact(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ArtifactError, match="empty file"):
        artifacts.describe(tmp_path / "empty")
