"""Leases against a real broker: one or two centrals of one log, and a node made of its words alone."""

import asyncio

import pytest
from msgspec.structs import replace

from cyxcentral import schedule
from cyxcentral.blobs import Blobs
from cyxcentral.dispatch import Dispatch
from cyxcentral.eventlog import EventLog
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.artifacts import describe
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.codec import MSGPACK, decode
from cyxnet.identity import Identity
from tests.central import facts as f

KEY = Identity(b"k" * 32)
NODE = f"node-a-{KEY.short_id}"
SESSION, NEXT_SESSION = "0" * 32, "1" * 32
LEASE_MS = 60_000


class SmallCentral:
    """A log, its world and the dispatch on top: all of central that leases need."""

    @classmethod
    async def start(cls, broker, name, *, scheduling=False):
        self = cls()
        self.core = await Bus.connect(broker.url("core"), name=name)
        self.edge = await Bus.connect(broker.url("edge"), name=name)
        self.log = EventLog(self.core, name, World())
        self.world = self.log.world
        self.blobs = Blobs(self.core)
        await self.blobs.open()
        await self.log.open(0)
        self.dispatch = Dispatch(self.log, self.edge, self.blobs, schedule.Weights(), 10_000, LEASE_MS)
        if scheduling:
            self.log.applied.append(lambda stored, record: self.dispatch.wake())
            await self.dispatch.start()
        return self

    async def say(self, subject, event):
        assert await self.log.record(subject, lambda: event)

    async def job(self, job_id="job-1", *events, **changes):
        """A job that went through Submitted and these events."""
        for event in (f.submitted(job_id, **changes), *events):
            await self.say(subjects.job_event(job_id), event)

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                await self.edge._nc.flush()  # a round trip: time for others, and no busy loop

    async def close(self):
        await self.edge.close()
        await self.dispatch.close()
        await self.core.close()


@pytest.fixture
async def central(broker):
    running = await SmallCentral.start(broker, "central-a")
    yield running
    await running.close()


@pytest.fixture
async def other(broker, central):
    """A second central of the same log."""
    running = await SmallCentral.start(broker, "central-b")
    yield running
    await running.close()


@pytest.fixture
async def scheduling(broker):
    """A central whose loop runs."""
    running = await SmallCentral.start(broker, "central-a", scheduling=True)
    yield running
    await running.close()


@pytest.fixture
async def node(broker):
    """The connection of a node."""
    bus = await Bus.connect(broker.url("node"), name="node", inbox="_INBOX_node")
    yield bus
    await bus.close()


def register(session=SESSION, **changes):
    said = m.Register(
        node_id=NODE,
        session=session,
        name="node-a",
        public_key=KEY.public_key,
        wallet=f.NODE_WALLET,
        hardware=f.registered().hardware,
        signature="0" * 128,
        **changes,
    )
    return replace(said, signature=KEY.sign(m.registration_bytes(said)))


def leased(attempt=1, session=SESSION):
    return m.Leased(attempt=attempt, node_id=NODE, session=session, wallet=f.NODE_WALLET, lease_ms=LEASE_MS)


def started(attempt=1, session=SESSION):
    return m.RunStarted(node_id=NODE, session=session, job_id="job-1", attempt=attempt)


def failed(attempt=1, code="died"):
    return m.RunFailed(node_id=NODE, session=SESSION, job_id="job-1", attempt=attempt, code=code, message="it died")


def completed(model, attempt=1):
    said = m.RunCompleted(
        node_id=NODE,
        session=SESSION,
        job_id="job-1",
        attempt=attempt,
        model=model,
        graph_sha256="c" * 64,
        summary=f.summary(),
        signature="0" * 128,
    )
    return replace(said, signature=KEY.sign(m.completion_bytes(said)))


def heartbeat(*runs, session=SESSION):
    return m.Heartbeat(
        node_id=NODE, session=session, runs=[m.RunRef(job_id=job_id, attempt=attempt) for job_id, attempt in runs]
    )


async def stored_model(blobs, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    manifest = describe(path)
    await blobs.put(b"weights")
    return await blobs.commit(manifest)


async def kinds_of(central, job_id="job-1"):
    """The events of a job in the log, by reading it afresh."""
    found, read = [], asyncio.Event()
    last_seq = await central.core.last_seq(subjects.EVENTS)

    async def handler(stored):
        if stored.subject == subjects.job_event(job_id):
            found.append(type(decode(m.Record, stored.payload, MSGPACK).event).__name__)
        if stored.seq == last_seq:
            read.set()

    await central.core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handler, lambda _: None)
    await asyncio.wait_for(read.wait(), 10)
    return found


# -- several centrals ------------------------------------------------------------------------------------


async def behind(other, central):
    """Make `other` a central that has not read the newest events yet; returns what lets it go on."""
    held, real = [], other.log._apply

    async def later(stored):
        held.append(stored)

    other.core._followers[0]._handler = later

    async def go_on():
        other.core._followers[0]._handler = real
        for stored in held:
            await real(stored)

    return go_on


async def test_a_central_that_lags_does_not_stop_a_run_that_another_one_has_just_leased(central, other):
    # both hear every heartbeat and the node takes the first answer: it killed its run
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), leased())
    asking = asyncio.create_task(other.dispatch._heartbeat(heartbeat(("job-1", 1))))
    await other.edge._nc.flush()
    await go_on()
    reply = await asking
    assert (reply.known, reply.stop) == (True, [])


async def test_a_central_that_lags_does_not_fence_the_holder_of_a_new_lease(central, other):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED)
    go_on = await behind(other, central)
    await central.say(subjects.job_event("job-1"), leased())
    asking = asyncio.create_task(other.dispatch._started(started()))
    await other.edge._nc.flush()
    await go_on()
    assert (await asking).accepted


async def test_a_report_that_every_central_hears_is_recorded_once_and_accepted_by_all(central, other, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await other.log.catch_up()
    model = await stored_model(central.blobs, tmp_path)
    for say in ("_started", "_completed"):
        said = started() if say == "_started" else completed(model)
        replies = await asyncio.gather(*(getattr(each.dispatch, say)(said) for each in (central, other, central)))
        assert [reply.accepted for reply in replies] == [True] * 3
    assert await kinds_of(central) == ["Submitted", "Funded", "Leased", "Started", "Completed"]


async def test_a_node_that_another_central_filled_meanwhile_is_not_leased_again(central, other):
    await central.dispatch._register(register())
    for job_id in ("job-1", "job-2"):
        await central.job(job_id, f.FUNDED)
    await other.log.catch_up()
    choice = schedule.Assignment(job_id="job-2", node_id=NODE, explanation={})
    assert other.dispatch._lease(choice) is not None
    await central.say(subjects.job_event("job-1"), leased())
    await other.log.catch_up()
    assert other.dispatch._lease(choice) is None


# -- sessions --------------------------------------------------------------------------------------------


async def test_a_node_that_comes_back_after_a_long_silence_is_not_lost_again_at_once(scheduling):
    # its old silence was counted against the new registration, which then was lost before its first heartbeat
    await scheduling.dispatch._register(register())
    scheduling.dispatch._heard_ms[NODE] -= 2 * LEASE_MS
    await scheduling.dispatch._sweep()
    assert not scheduling.world.nodes[NODE].online
    await scheduling.dispatch._register(register(NEXT_SESSION))
    await scheduling.dispatch._sweep()
    assert scheduling.world.nodes[NODE].online


async def test_the_loss_of_an_old_session_does_not_touch_the_new_one(central, other):
    # the append of the loss met the new registration, and the second try lost that one
    await central.dispatch._register(register())
    await other.log.catch_up()
    go_on = await behind(other, central)
    await central.dispatch._register(register(NEXT_SESSION))
    losing = asyncio.create_task(other.dispatch._lose_node(NODE, SESSION, "silent"))
    await other.edge._nc.flush()
    await go_on()
    await losing
    await central.log.catch_up()
    assert central.world.nodes[NODE].online


async def test_a_completion_that_arrives_after_its_node_was_declared_lost_is_still_paid_once(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    model = await stored_model(central.blobs, tmp_path)
    await central.dispatch._lose_node(NODE, SESSION, "silent")
    reply, _ = await asyncio.gather(central.dispatch._completed(completed(model)), central.dispatch._sweep())
    kinds = await kinds_of(central)
    assert ("Completed" in kinds) == reply.accepted
    assert ("LeaseLost" in kinds) != reply.accepted


async def test_a_goodbye_frees_the_runs_at_once_and_fences_what_comes_later(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    await central.dispatch._goodbye(m.Goodbye(node_id=NODE, session=SESSION))
    assert central.world.jobs["job-1"].status == "queued"
    assert (await central.dispatch._started(started())).fenced


async def test_the_goodbye_of_an_old_session_changes_nothing(central):
    await central.dispatch._register(register(NEXT_SESSION))
    await central.dispatch._goodbye(m.Goodbye(node_id=NODE, session=SESSION))
    assert central.world.nodes[NODE].online


# -- delivery --------------------------------------------------------------------------------------------


async def test_a_node_that_is_merely_busy_costs_the_job_no_attempt(scheduling, node, monkeypatch):
    # three refusals of a node that was still ending its last run failed the job
    monkeypatch.setattr("cyxcentral.jobs.BACKOFF_MS", (0, 1))
    asked, taken = [], asyncio.Event()

    async def answer(subject, command):
        asked.append(command.attempt)
        if len(asked) < 5:
            return m.CommandReply(accepted=False, reason="no free slot: 1 of 1 runs are busy")
        taken.set()
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await scheduling.dispatch._register(register())
    reputation = scheduling.world.nodes[NODE].reputation
    await scheduling.job("job-1", f.FUNDED, max_attempts=2)
    await asyncio.wait_for(taken.wait(), 10)
    assert asked == [1, 2, 3, 4, 5]
    assert scheduling.world.jobs["job-1"].status == "leased"
    assert scheduling.world.nodes[NODE].reputation == reputation


async def test_nothing_is_remembered_of_runs_that_are_over(scheduling, node, tmp_path):
    async def answer(subject, command):
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.until(lambda: ("job-1", 1) in scheduling.dispatch._unnamed)
    model = await stored_model(scheduling.blobs, tmp_path)
    assert (await scheduling.dispatch._completed(completed(model))).accepted
    await scheduling.until(lambda: not scheduling.dispatch._unnamed)


async def test_a_run_that_heartbeats_no_longer_name_goes_to_the_next_attempt(scheduling, node):
    attempts, again = [], asyncio.Event()

    async def answer(subject, command):
        attempts.append(command.attempt)
        if command.attempt == 2:
            again.set()
        return m.CommandReply(accepted=True)

    await node.answer(subjects.command(NODE), m.Command, answer)
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.until(lambda: ("job-1", 1) in scheduling.dispatch._unnamed)
    await scheduling.dispatch._heartbeat(heartbeat(("job-1", 1)))
    for _ in range(3):
        await scheduling.dispatch._heartbeat(heartbeat())
    await asyncio.wait_for(again.wait(), 10)
    assert attempts == [1, 2]


# -- reports ---------------------------------------------------------------------------------------------


async def test_a_completion_without_a_stored_model_is_not_paid(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    with pytest.raises(Exception, match="no artifact"):
        await central.dispatch._completed(completed(m.ArtifactRef(sha256="b" * 64, size=7)))
    assert central.world.jobs["job-1"].status == "leased"


async def test_a_completion_with_another_nodes_signature_is_refused(central, tmp_path):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    said = completed(await stored_model(central.blobs, tmp_path))
    forged = replace(said, signature=Identity(b"x" * 32).sign(m.completion_bytes(said)))
    with pytest.raises(ApiError, match="not signed"):
        await central.dispatch._completed(forged)


async def test_a_repeated_report_of_a_failure_is_accepted_and_recorded_once(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    replies = [await central.dispatch._failed(failed()) for _ in range(2)]
    assert [reply.accepted for reply in replies] == [True, True]
    assert (await kinds_of(central)).count("LeaseLost") == 1


async def test_a_node_cannot_call_its_own_failure_a_refusal(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), max_attempts=1)
    await central.dispatch._failed(failed(code="refused"))
    assert (central.world.jobs["job-1"].status, central.world.jobs["job-1"].outcome) == ("settling", "failed")


async def test_a_report_on_an_attempt_of_somebody_else_is_fenced(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    for said in (started(attempt=2), started(session=NEXT_SESSION), replace(started(), job_id="job-9")):
        assert (await central.dispatch._started(said)).fenced


# -- the log ---------------------------------------------------------------------------------------------


async def test_an_event_that_does_not_arrive_is_an_error_that_callers_retry(central):
    # a bare TimeoutError ended whoever waited: a payment was left alone until the next restart
    with pytest.raises(BusError, match="did not arrive within"):
        await central.log._reached(99, timeout_s=0.01)
