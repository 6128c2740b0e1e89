"""Who may have which bytes: of a real store, through two centrals of one log."""

import asyncio
import hashlib

import pytest
from msgspec.structs import replace

from cyxcentral.blobs import CHUNK_BYTES, BlobError, NotSent, NotStored
from cyxcentral.fetches import Fetches
from cyxcentral.world import World
from cyxcore.errors import CyxError
from cyxcore.spec import ModelSpec
from cyxnet import messages as m
from cyxnet import subjects
from tests.central import facts as f
from tests.central.centrals import NODE, behind, completed, leased, register, stored_state

OPERATOR = "olga"
LARGE = [b"a" * CHUNK_BYTES, b"rows"]  # two chunks
NOT_HERE = "is stored here"


def manifest_of(blocks):
    whole = b"".join(blocks)
    chunks = [hashlib.sha256(block).hexdigest() for block in blocks]
    return m.ArtifactManifest(sha256=hashlib.sha256(whole).hexdigest(), size=len(whole), chunks=chunks)


async def send(central, sender, *blocks):
    for block in blocks:
        await central.blobs.put(block, sender)
    return await central.blobs.commit(manifest_of(blocks), sender)


async def fetched(central, caller, sha256, as_operator=False, named=True):
    """The bytes, as a caller gets them; None when he is told that they are not there."""
    fetches = Fetches(central.log, central.blobs, [OPERATOR])
    try:
        manifest = await fetches.manifest(caller, m.ArtifactRefRequest(sha256=sha256, as_operator=as_operator))
        return b"".join(
            [
                await fetches.chunk(
                    caller,
                    m.ArtifactRefRequest(sha256=digest, artifact=sha256 if named else None, as_operator=as_operator),
                )
                for digest in manifest.chunks
            ]
        )
    except NotStored as error:
        assert str(error).startswith(f"no artifact {sha256} {NOT_HERE}") and error.status == 404
        return None


async def test_what_was_sent_is_for_who_sent_it_and_others_are_told_that_it_is_not_there(central, other):
    ref = await send(central, "alice", *LARGE)
    assert await fetched(other, "alice", ref.sha256) == b"".join(LARGE)
    assert await fetched(other, "bob", ref.sha256) is None
    assert await fetched(other, "bob", "0" * 64) is None  # in the same words


async def test_a_chunk_is_told_to_nobody_who_may_have_no_artifact_of_it(central):
    ref = await send(central, "alice", *LARGE)
    await send(central, "bob", b"his own")
    digest = hashlib.sha256(LARGE[1]).hexdigest()
    fetches = Fetches(central.log, central.blobs, [OPERATOR])
    own = hashlib.sha256(b"his own").hexdigest()
    for artifact in (None, digest, ref.sha256, own, "0" * 64):
        with pytest.raises(NotStored, match="is not stored here as a part of"):
            await fetches.chunk("bob", m.ArtifactRefRequest(sha256=digest, artifact=artifact))
    assert await fetches.chunk("alice", m.ArtifactRefRequest(sha256=digest, artifact=ref.sha256)) == LARGE[1]


async def test_who_knows_a_digest_does_not_get_it_by_declaring_it_his(central):
    ref = await send(central, "alice", *LARGE)
    true = manifest_of(LARGE)
    assert (await central.blobs.stat(true, "bob")) == m.ArtifactStatReply(complete=False, missing=true.chunks)
    with pytest.raises(NotSent, match="2 of its 2 chunks are not stored here as sent by you"):
        await central.blobs.commit(true, "bob")
    for size, blocks in ((ref.size, [b"b" * CHUNK_BYTES, b"fake"]), (1, [b"x"])):  # his own chunks under her digest
        for block in blocks:
            await central.blobs.put(block, "bob")
        lie = m.ArtifactManifest(sha256=ref.sha256, size=size, chunks=manifest_of(blocks).chunks)
        with pytest.raises(BlobError, match="with the digest named"):
            await central.blobs.commit(lie, "bob")
    assert await fetched(central, "bob", ref.sha256) is None


async def test_equal_bytes_of_two_senders_are_stored_once_and_are_both_theirs(central, other):
    ref = await send(central, "alice", *LARGE)
    places = [subjects.chunk(digest) for digest in manifest_of(LARGE).chunks] + [subjects.manifest(ref.sha256)]
    before = [await central.core.last(subjects.BLOBS, place) for place in places]
    assert await send(other, "bob", *LARGE) == ref
    assert [await central.core.last(subjects.BLOBS, place) for place in places] == before
    assert await fetched(central, "bob", ref.sha256) == await fetched(other, "alice", ref.sha256) == b"".join(LARGE)


async def test_an_upload_that_was_interrupted_goes_on_at_another_central(central, other):
    manifest = manifest_of(LARGE)
    await central.blobs.put(LARGE[0], "alice")
    assert (await other.blobs.stat(manifest, "alice")).missing == manifest.chunks[1:]
    assert (await other.blobs.stat(manifest, "bob")).missing == manifest.chunks
    await other.blobs.put(LARGE[1], "alice")
    await central.blobs.commit(manifest, "alice")
    assert (await other.blobs.stat(manifest, "alice")).complete


async def test_a_checker_has_what_its_segment_begins_with_for_the_lease_and_never_what_it_shall_find(central, other):
    data, start, end, model = [await send(central, "alice", b"bytes %d" % number) for number in range(4)]
    checkpoint = m.Checkpoint(step=4, steps=10, state=start)
    segment = m.SignedSegment(attempt=1, start=checkpoint, end_step=8, end=end)
    await central.job("job-1", f.FUNDED, f.leased(), f.STARTED, dataset=data)
    subject = subjects.job_event("job-1")
    await central.say(subject, replace(f.checkpointed(), checkpoint=checkpoint))
    at_end = m.Checkpoint(step=8, steps=10, state=end)
    await central.say(subject, replace(f.checkpointed(kept=True), checkpoint=at_end))
    await central.say(subject, replace(f.completed(segment=segment), model=model))
    assert await fetched(central, "node-c", start.sha256) is None
    await central.say(subject, f.check_leased(node_id="node-c"))
    for caller, expected in (("node-c", True), ("node-d", False), ("node-a", False)):
        for needed in (data, start):
            assert bool(await fetched(other, caller, needed.sha256)) == expected
        for hidden in (end, model):
            assert await fetched(other, caller, hidden.sha256) is None
    await central.say(subject, m.CheckLost(number=m.FIRST_CHECK, code="node_lost", reason="silent"))
    for needed in (data, start):
        assert await fetched(central, "node-c", needed.sha256) is None


async def test_a_node_has_what_its_job_needs_for_as_long_as_it_holds_the_lease(central, other):
    data, weights = await send(central, "alice", *LARGE), await send(central, "alice", b"weights")
    unrelated = await send(central, "alice", b"another file")
    await central.dispatch._register(register())
    model = ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 3}], weights=weights.sha256)
    await central.job("job-1", f.FUNDED, dataset=data, model=model)
    assert await fetched(central, NODE, data.sha256) is None
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), leased())
    asking = asyncio.create_task(fetched(other, NODE, data.sha256))
    await other.edge._nc.flush()
    await go_on()
    assert await asking == b"".join(LARGE)  # it reads of the lease before it says no
    for needed, content in ((data, b"".join(LARGE)), (weights, b"weights")):
        assert await fetched(other, NODE, needed.sha256) == content
        assert await fetched(central, NODE, needed.sha256, named=False) == content  # as an older node asks
    assert await fetched(central, NODE, unrelated.sha256) is None
    assert await fetched(central, "node-b", data.sha256) is None
    await central.say(subjects.job_event("job-1"), f.lost())
    for needed in (data, weights):
        assert await fetched(central, NODE, needed.sha256) is None


async def test_what_a_lease_opens_can_be_named_in_no_job_of_the_nodes_own(central):
    """Else a node that had some data for an hour had it for ever, by a job that names it."""
    data = await send(central, "alice", *LARGE)
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), dataset=data)
    fetches = Fetches(central.log, central.blobs, [])
    assert await fetched(central, NODE, data.sha256) == b"".join(LARGE)
    assert await fetches.owned("alice", data.sha256) == manifest_of(LARGE)
    for own in (NODE, "the-nodes-client"):
        with pytest.raises(NotStored, match=NOT_HERE):
            await fetches.owned(own, data.sha256)
    for block in LARGE:  # what it kept it has anyhow
        await central.blobs.put(block, NODE)
    await central.blobs.commit(manifest_of(LARGE), NODE)
    assert await fetches.owned(NODE, data.sha256) == manifest_of(LARGE)


async def test_a_job_that_says_another_size_of_its_data_is_refused_before_a_node_seems_to_fail_at_it(central):
    data = await send(central, "alice", *LARGE)
    fetches = Fetches(central.log, central.blobs, [])
    for _ in range(2):  # read, and remembered
        assert await fetches.owned("alice", data.sha256, data.size) == manifest_of(LARGE)
        assert central.blobs.knows(data.sha256, data.size) and not central.blobs.knows(data.sha256, 5)
        with pytest.raises(BlobError, match=f"expected its size, {data.size} bytes, got 5"):
            await fetches.owned("alice", data.sha256, 5)


async def test_the_next_node_has_the_state_to_go_on_from_and_the_jobs_client_has_all_that_came_of_it(central):
    state, model = await send(central, "node-a", b"state"), await send(central, "node-b", b"model")
    checkpoint = m.Checkpoint(step=50, steps=100, state=state)
    await central.job("job-1", f.FUNDED, f.leased(), f.STARTED)
    said = m.Checkpointed(attempt=1, node_id="node-a", checkpoint=checkpoint, signature="d" * 128)
    for event in (said, f.lost(), f.leased(2, "node-b", resume=checkpoint), m.Started(attempt=2)):
        await central.say(subjects.job_event("job-1"), event)
    assert await fetched(central, "node-b", state.sha256) == b"state"
    delivered = replace(f.completed(2), node_id="node-b", model=model)
    await central.say(subjects.job_event("job-1"), delivered)
    for ref, content in ((state, b"state"), (model, b"model")):
        assert await fetched(central, "alice", ref.sha256) == content
        assert await fetched(central, "bob", ref.sha256) is None
    assert await fetched(central, "node-b", state.sha256) is None

    world = World()  # as a start from a snapshot makes it
    world.take_jobs(list(central.world.jobs.values()))
    assert world.named == central.world.named


async def test_states_that_a_job_no_longer_remembers_stay_its_clients_also_for_a_central_that_starts(central, other):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), m.Started(attempt=1))
    states = [await send(central, NODE, b"state %d" % number) for number in range(4)]
    for number, state in enumerate(states):
        assert (await central.reports.checkpoint(stored_state(state, step=10 + number))).accepted
    remembered = {ref.sha256 for ref in states[2:]} & {sha256 for sha256, _ in central.world.named}
    assert len(remembered) == 2 and (states[0].sha256, "alice") not in central.world.named  # it does not grow for ever
    started = World()  # as a start from a snapshot makes it
    started.take_jobs(list(central.world.jobs.values()))
    assert started.named == central.world.named
    await other.log.catch_up()
    for each in (central, other):
        for number, state in enumerate(states):
            assert await fetched(each, "alice", state.sha256) == b"state %d" % number
            assert await fetched(each, "bob", state.sha256) is None


async def test_an_operator_has_everything_when_he_asks_as_one(central):
    ref = await send(central, "alice", *LARGE)
    assert await fetched(central, OPERATOR, ref.sha256, as_operator=True) == b"".join(LARGE)
    assert await fetched(central, OPERATOR, ref.sha256) is None
    assert await fetched(central, "bob", ref.sha256, as_operator=True) is None


async def test_a_node_does_not_deliver_what_somebody_else_sent(central):
    """A client and a node that are one had a job's result be the file of a stranger, and fetched it as their own."""
    secret = await send(central, "alice", b"a secret")
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), m.Started(attempt=1))
    for say, said in (("checkpoint", stored_state(secret)), ("completed", completed(secret))):
        with pytest.raises(CyxError, match=f"no artifact {secret.sha256} of {NODE} {NOT_HERE}"):
            await getattr(central.reports, say)(said)
    await send(central, NODE, b"a secret")  # it has it, after all
    assert (await central.reports.completed(completed(secret))).accepted
