"""Old checkpoints are swept; nothing that anybody may still need ever is."""

import asyncio
import hashlib
import random
import time

import pytest
from msgspec.structs import replace

from cyxcentral import sweeper
from cyxcentral.blobs import CHUNK_BYTES, BlobError, Blobs
from cyxcentral.central import Central, Settings, StartError
from cyxcentral.eventlog import EventLog
from cyxcentral.machine import Machine
from cyxcentral.sweeper import CONDEMNED_MS, Sweeper
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import Bus
from cyxnet.config import NetworkFile
from tests.central import facts as f

HOUR_MS = 3_600_000
KEPT_S = 24 * 3600
SHARED = [bytes([number]) * CHUNK_BYTES for number in range(3)]  # chunks that many artifacts have


class Store:
    """A real broker whose clock is moved on: what is stored has the date of then."""

    def __init__(self, bus):
        self.bus = bus
        self.later_ms = 0
        self._later_ms = {}  # by sequence

    def __getattr__(self, name):
        return getattr(self.bus, name)

    async def append(self, subject, payload, expected_seq=None):
        seq = await self.bus.append(subject, payload, expected_seq)
        self._later_ms[seq] = self.later_ms
        return seq

    async def dated(self, stream, subject):
        found = await self.bus.dated(stream, subject)
        return found and (found[0], found[1] + self._later_ms[found[0].seq])


class Place:
    """A central's log, store and clock, with a second central's store beside it."""

    def __init__(self, core):
        self.core = store = Store(core)
        machine = Machine(
            wall_ms=lambda: time.time_ns() // 1_000_000 + store.later_ms,
            monotonic_ms=lambda: time.monotonic() * 1000 + store.later_ms,
        )
        self.blobs, self.other = Blobs(store, machine), Blobs(store, machine)
        self.events = EventLog(core, "central-a", World(), machine)
        self.states: set[str] = set()
        self.sweeper = Sweeper(store, self.events, self, KEPT_S)

    async def checkpoint_states(self):
        return self.states

    async def say(self, job_id, *events):
        for event in events:
            await self.events.record(subjects.job_event(job_id), lambda event=event: event)
            if isinstance(event, m.Checkpointed):
                self.states.add(event.checkpoint.state.sha256)

    async def store(self, *blocks):
        for block in blocks:
            await self.blobs.put(block, "node-a")
        whole = b"".join(blocks)
        chunks = [hashlib.sha256(block).hexdigest() for block in blocks]
        manifest = m.ArtifactManifest(sha256=hashlib.sha256(whole).hexdigest(), size=len(whole), chunks=chunks)
        return await self.blobs.commit(manifest, "node-a")

    async def state(self, name, shared=0):
        return await self.store(SHARED[shared], name.encode())

    async def job(self, job_id, *states):
        """A job that is trained, and has stored these states."""
        await self.say(job_id, f.submitted(job_id), f.FUNDED, f.leased(), f.STARTED)
        for step, state in enumerate(states, start=1):
            await self.say(job_id, stored(step, state))

    async def end(self, job_id):
        await self.say(job_id, f.CANCELLED)
        job = self.events.world.jobs[job_id]
        shares = f.settled(0, 0, f.AMOUNT)
        if job.payees:
            pay = job.pay_base_units
            shares = replace(f.settled(pay - pay // 10, pay // 10, f.AMOUNT - pay), payees=list(job.payees))
        await self.say(job_id, f.SIGNED_SETTLE, shares)

    async def sweep_after(self, hours):
        self.core.later_ms += hours * HOUR_MS
        return await self.sweeper.sweep()

    async def is_whole(self, ref):
        """Every byte is there."""
        return await Blobs(self.core).damage(ref) is None


def stored(step, state, **changes):
    checkpoint = m.Checkpoint(step=step, steps=10, state=state)
    return m.Checkpointed(attempt=1, node_id="node-a", checkpoint=checkpoint, signature="d" * 128, **changes)


@pytest.fixture
async def place(broker):
    bus = await Bus.connect(broker.url("core"), name="test-core")
    there = Place(bus)
    await there.events.open(0)
    await there.blobs.open()
    yield there
    await bus.close()


async def test_a_state_that_two_newer_ones_took_the_place_of_is_swept_after_its_time(place):
    first, second, third = [await place.state(name) for name in ("first", "second", "third")]
    await place.job("job-1", first, second, third)
    assert (await place.sweep_after(23)).condemned == 0
    assert (await place.sweep_after(2)).condemned == 1
    assert not await place.is_whole(first)
    swept = await place.sweep_after(2)
    assert (swept.deleted, swept.chunks) == (1, 1)  # the other chunk is of its followers too
    assert await place.is_whole(second) and await place.is_whole(third)


async def test_the_two_ends_of_the_segment_that_is_kept_for_a_check_outlive_what_lies_between(place):
    first, second, third, fourth, fifth, sixth = [await place.state(f"state {number}") for number in range(6)]
    await place.job("job-1", first)
    await place.say("job-1", stored(2, second, kept=True), stored(3, third), stored(4, fourth), stored(5, fifth))
    assert (await place.sweep_after(30)).condemned == 1
    assert not await place.is_whole(third)
    for needed in (first, second, fourth, fifth):
        assert await place.is_whole(needed)
    await place.say("job-1", stored(6, sixth, kept=True))  # from now on another one
    assert (await place.sweep_after(30)).condemned == 3
    assert [await place.is_whole(state) for state in (first, second, fourth)] == [False] * 3
    assert await place.is_whole(fifth) and await place.is_whole(sixth)


async def test_what_is_checked_is_not_swept_before_that_is_over(place):
    states = [await place.state(f"state {number}") for number in range(4)]
    await place.job("job-1", states[0])
    await place.say("job-1", stored(2, states[1], kept=True), stored(3, states[2]), stored(4, states[3]))
    start = m.Checkpoint(step=1, steps=10, state=states[0])
    segment = m.SignedSegment(attempt=1, start=start, end_step=2, end=states[1])
    await place.say("job-1", f.completed(segment=segment))
    await place.sweep_after(30)
    assert [await place.is_whole(state) for state in states] == [True] * 4
    await place.say("job-1", m.CheckGivenUp(reason="no checker"), f.SIGNED_SETTLE, f.settled())
    await place.sweep_after(23)
    assert [await place.is_whole(state) for state in states] == [True] * 4
    assert (await place.sweep_after(2)).condemned == 4


async def test_the_states_of_a_job_that_ended_are_kept_for_their_time(place):
    state = await place.state("state")
    await place.job("job-1", state)
    await place.sweep_after(30)
    assert await place.is_whole(state)
    await place.end("job-1")
    await place.sweep_after(23)
    assert await place.is_whole(state)
    await place.sweep_after(2)
    assert (await place.sweep_after(2)).chunks == 2


async def test_what_is_no_state_of_a_job_is_never_swept(place):
    dataset, lonely = await place.state("dataset"), await place.state("lonely")
    await place.job("job-1", dataset)
    place.states.clear()
    await place.end("job-1")
    for _ in range(4):
        await place.sweep_after(30)
    assert await place.is_whole(dataset) and await place.is_whole(lonely)


async def test_a_state_that_is_asked_for_again_lives_on(place):
    state = await place.state("state")
    await place.job("job-1", state)
    await place.end("job-1")
    place.core.later_ms += 30 * HOUR_MS
    assert (await place.blobs.keep(state.sha256)).sha256 == state.sha256
    assert (await place.sweep_after(0)).condemned == 0
    assert await place.is_whole(state)


async def test_a_condemned_state_that_the_log_names_again_is_restored(place):
    state = await place.state("state")
    await place.job("job-1", state)
    await place.end("job-1")
    await place.other.manifest(state.sha256)
    assert (await place.sweep_after(30)).condemned == 1
    await place.job("job-2", state)  # whoever let this in believed in what it remembered
    assert (await place.sweep_after(2)).restored == 1
    assert await place.is_whole(state)


async def test_a_condemned_state_that_is_stored_again_needs_no_chunk_and_lives(place):
    state = await place.state("state")
    await place.job("job-1", state)
    await place.end("job-1")
    await place.sweep_after(30)
    assert not await place.is_whole(state)
    assert await place.state("state") == state
    swept = await place.sweep_after(2)
    assert (swept.restored, swept.chunks) == (0, 0)
    assert await place.is_whole(state)


async def test_a_manifest_is_believed_in_for_less_time_than_a_condemned_state_has(place):
    state = await place.state("state")
    await place.job("job-1", state)
    await place.end("job-1")
    await place.other.manifest(state.sha256)
    await place.sweep_after(30)
    place.core.later_ms += CONDEMNED_MS
    assert not place.other.knows(state.sha256)
    with pytest.raises(BlobError, match="no artifact"):
        await place.other.manifest(state.sha256)


async def test_a_chunk_that_a_new_artifact_needs_is_put_back(place, monkeypatch):
    state = await place.state("state")
    await place.job("job-1", state)
    await place.end("job-1")
    await place.sweep_after(30)
    new, delete = [], place.core.delete

    async def meanwhile(stream, seq):  # an upload ends between the look at the manifests and the first deletion
        if not new:
            new.append(None)
            new[0] = await place.store(SHARED[0], b"new")
        return await delete(stream, seq)

    monkeypatch.setattr(place.core, "delete", meanwhile)
    await place.sweep_after(2)
    assert await place.is_whole(new[0])


async def test_who_sent_what_goes_with_the_bytes_and_comes_back_with_them(place, monkeypatch):
    for number, block in enumerate((b"some", b"other")):
        state = await place.store(block)  # one chunk: its note is that of the artifact
        await place.job(f"job-{number}", state)
        await place.end(f"job-{number}")
    await place.sweep_after(30)
    delete, again = place.core.delete, []

    async def meanwhile(stream, seq):  # who sent the second one sends it again just before it goes
        if not again:
            again.append(None)
            again[0] = await place.store(b"other")
        return await delete(stream, seq)

    monkeypatch.setattr(place.core, "delete", meanwhile)
    assert (await place.sweep_after(2)).chunks == 1
    assert again == [state] and await place.is_whole(state)
    assert await Blobs(place.core).sent(state.sha256, "node-a")
    some = hashlib.sha256(b"some").hexdigest()
    assert not await Blobs(place.core).sent(some, "node-a")
    await place.other.put(b"some", "node-b")
    manifest = m.ArtifactManifest(sha256=some, size=4, chunks=[some])
    await place.other.commit(manifest, "node-b")
    assert (await place.blobs.stat(manifest, "node-a")).missing == [some]  # whatever this central remembers of it


async def test_an_upload_whose_chunk_went_while_it_ended_is_told_to_send_it_again(place, monkeypatch):
    chunk = hashlib.sha256(SHARED[0]).hexdigest()
    read_back = place.blobs._read_back

    async def and_then_it_goes(digests, sender):
        found = await read_back(digests, sender)
        stored = await place.core.last(subjects.BLOBS, subjects.chunk(chunk))
        await place.core.delete(subjects.BLOBS, stored.seq)
        return found

    monkeypatch.setattr(place.blobs, "_read_back", and_then_it_goes)
    with pytest.raises(BlobError, match="1 of its chunks are gone; send it again"):
        await place.state("state")
    monkeypatch.undo()
    assert await place.is_whole(await place.state("state"))


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_nothing_that_is_needed_is_ever_gone(place, seed):
    dice, refs, open_jobs = random.Random(seed), {}, []
    for number in range(40):
        match dice.choice(["job", "job", "end", "sweep", "sweep", "again"]):
            case "job":
                names = [f"state-{dice.randrange(12)}" for _ in range(dice.randrange(1, 4))]
                names = list(dict.fromkeys(names))
                states = [await place.state(name, shared=int(name[6:]) % 3) for name in names]
                await asyncio.gather(*(place.blobs.keep(state.sha256) for state in states))
                refs |= {state.sha256: state for state in states}
                await place.job(f"job-{number}", *states)
                open_jobs.append(f"job-{number}")
            case "end" if open_jobs:
                await place.end(open_jobs.pop(dice.randrange(len(open_jobs))))
            case "again" if refs:
                some = dice.choice(list(refs.values()))
                stat = await place.other._kept(some.sha256)
                assert stat is None or await place.is_whole(some)
            case _:
                await place.sweep_after(dice.choice([0, 1, 2, 13, 30]))
        before_ms = place.events.machine.wall_ms() - KEPT_S * 1000
        needed = sweeper.needed(place.events.world.jobs.values(), before_ms)
        for sha256 in needed & refs.keys():
            assert await place.is_whole(refs[sha256]), (number, sha256)
    for job_id in open_jobs:
        await place.end(job_id)
    for _ in range(4):
        await place.sweep_after(30)
    assert [each async for each in chunks_left(place)] == []


async def chunks_left(place):
    for subject in await place.core.subjects_of(subjects.BLOBS, f"{subjects.ROOT}.blob.>"):
        yield subject


async def test_a_network_that_keeps_states_for_minutes_is_refused(tmp_path):
    urls = dict.fromkeys(
        ("client_url", "node_url", "edge_url", "core_url", "monitor_url", "chain_url"), "http://127.0.0.1:1"
    )
    network = NetworkFile(network_id="test", checkpoints_kept_s=600, **urls)
    with pytest.raises(StartError, match="checkpoints_kept_s is 600; expected 14400"):
        await Central.start(Settings(network=network, keys=tmp_path, state=tmp_path))
