"""Jobs that serve, at a central with a real broker and a node made of its words alone."""

import random
from types import SimpleNamespace

import msgspec
import pytest
from msgspec.structs import replace

from cyxcentral import api, intake, jobrules, views
from cyxcentral.api import Api
from cyxcentral.cache import MemoryCache
from cyxcentral.machine import Machine
from cyxcentral.pings import Pings
from cyxcore.errors import SpecError
from cyxcore.spec import ModelSpec
from cyxnet import asking, subjects
from cyxnet import messages as m
from cyxnet.asking import Part
from cyxnet.bus import ApiError, Bus
from cyxnet.credentials import as_node, replica_id
from tests.central import facts as f
from tests.central import worlds
from tests.central.centrals import (
    KEY,
    LEASE_MS,
    NODE,
    SESSION,
    SmallCentral,
    failed,
    heartbeat,
    leased,
    register,
    started,
)

JOB = subjects.job_event("job-1")


@pytest.fixture
async def node(broker):
    bus = await Bus.connect(broker.url("node"), name="node", credentials=as_node(KEY, NODE))
    yield bus
    await bus.close()


def served(**changes):
    """A job of alice's that serves, as JobRequest fields."""
    spec = m.ServeSpec(deployment=f.DEPLOYMENT, format="cyxmodel", seconds=f.HOUR_S)
    return {"model": ModelSpec(), "serve": replace(spec, **changes)}


def api_of(central):
    return Api(
        SimpleNamespace(
            world=central.world,
            events=central.log,
            dispatch=central.dispatch,
            cache=MemoryCache(),
            settings=SimpleNamespace(network=None),
        )
    )


async def ready(central, **changes):
    """A replica that answers on NODE."""
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased(), **served(**changes))
    assert (await central.reports.started(started())).accepted
    return central.world.jobs["job-1"]


async def test_a_node_is_told_whose_replica_it_is_to_serve(broker, node):
    central, told = await SmallCentral.start(broker, "central-a", scheduling=True), []

    async def take(subject, command):
        told.append(command)
        return m.CommandReply(accepted=True)

    try:
        await node.answer(subjects.command(NODE), m.Command, take)
        await central.dispatch._register(register())
        await central.job("job-1", f.FUNDED, **served(public=True))
        await central.until(lambda: told)
        assert (told[0].owner, told[0].job.serve.public) == ("alice", True)
    finally:
        await central.close()


async def test_when_the_time_is_used_up_the_job_ends_and_its_node_is_paid(central):
    job = await ready(central, seconds=60)
    clock = [job.attempts[-1].started_at_ms + 59_999]
    central.log.machine = central.dispatch._machine = Machine(wall_ms=lambda: clock[0])
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "leased"
    clock[0] += 1
    await central.dispatch._sweep()
    job = central.world.jobs["job-1"]
    assert (job.status, job.outcome, job.payees) == ("settling", "completed", (f.payee(),))


async def test_a_replica_that_is_ready_loses_its_lease_to_no_standstill(central):
    await ready(central)
    central.dispatch._progress_ms = 0
    await central.dispatch._sweep()
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "leased"


class Pinged:
    """A replica that answers central, or does not."""

    def __init__(self, bus):
        self.bus, self.status, self.asked = bus, 200, 0

    def take(self, message):
        self.asked += 1
        self.bus.send(message.reply, b"", asking.part_headers(Part(status=self.status)))


async def waiting_with(central, replica, heartbeat):
    """What waits for two leases, in which the node says this again and again, and returns the job."""
    now_ms = [0.0]
    await ready(central)
    central.dispatch._machine = Machine(monotonic_ms=lambda: now_ms[0])
    await central.dispatch._pings.start()
    await replica.bus.attend(subjects.ping(replica_id(NODE, "job-1", 1)), replica.take)

    async def two_leases_later():
        for _ in range(10):
            now_ms[0] += LEASE_MS / 4
            await central.dispatch._heartbeat(heartbeat)
            await central.dispatch._sweep()
            for bus in (central.edge, replica.bus, central.edge):
                await bus.round_trip()
        return central.world.jobs["job-1"]

    return two_leases_later


async def test_a_replica_that_says_it_is_ready_and_answers_nothing_loses_its_lease(broker):
    central = await SmallCentral.start(broker, "central-a")
    replica = Pinged(await Bus.connect(broker.url("edge"), name="replica"))
    run = m.RunRef(job_id="job-1", attempt=1, phase="serving", answers_pings=True)
    try:
        two_leases_later = await waiting_with(central, replica, replace(heartbeat(), runs=[run]))
        assert (await two_leases_later()).status == "leased" and replica.asked
        replica.status = 503
        job = await two_leases_later()
        assert job.attempts[0].lost.code == "not_answering" and job.served_ms(10**15) >= 0
    finally:
        await replica.bus.close()
        await central.close()


async def test_a_replica_whose_node_is_of_a_version_before_pings_is_not_asked_and_keeps_its_lease(broker):
    old = b'{"node_id":"%s","session":"%s","runs":[{"job_id":"job-1","attempt":1,"phase":"serving","requests":7}]}'
    said = msgspec.json.decode(old % (NODE.encode(), SESSION.encode()), type=m.Heartbeat)
    central = await SmallCentral.start(broker, "central-a")
    replica = Pinged(await Bus.connect(broker.url("edge"), name="replica"))
    try:
        assert (await (await waiting_with(central, replica, said))()).status == "leased"
        assert not replica.asked
    finally:
        await replica.bus.close()
        await central.close()


async def test_a_replica_that_dies_with_its_node_is_lost_with_it_whatever_of_the_two_was_heard_last(broker):
    central = await SmallCentral.start(broker, "central-a")
    replica = Pinged(await Bus.connect(broker.url("edge"), name="replica"))
    run = m.RunRef(job_id="job-1", attempt=1, phase="serving", answers_pings=True)
    said, now_ms = replace(heartbeat(), runs=[run]), [0.0]
    try:
        await ready(central)
        central.dispatch._machine = Machine(monotonic_ms=lambda: now_ms[0])
        await central.dispatch._heartbeat(said)
        await central.dispatch._sweep()  # it is asked, and nobody answers any more
        now_ms[0] = LEASE_MS / 4
        await central.dispatch._heartbeat(said)  # the last one
        for late in (0.75, 1.0, 1.2, 1.3):
            now_ms[0] = LEASE_MS * late
            await central.dispatch._sweep()
            [attempt] = central.world.jobs["job-1"].attempts
            assert (attempt.lost and attempt.lost.code) == ("node_lost" if late > 1.25 else None)
    finally:
        await replica.bus.close()
        await central.close()


async def test_a_replica_is_silent_since_it_was_asked_first_and_not_since_the_sweep_in_which_it_was_began(central):
    now_ms, lose = [0.0], central.dispatch._lose_node
    run = m.RunRef(job_id="job-1", attempt=1, phase="serving", answers_pings=True)

    async def slowly(*arguments, **named):
        await lose(*arguments, **named)
        now_ms[0] += LEASE_MS / 2

    async def later(leases):
        now_ms[0] += LEASE_MS * leases
        await central.dispatch._heartbeat(replace(heartbeat(), runs=[run]))
        await central.dispatch._sweep()
        return central.world.jobs["job-1"]

    central.dispatch._machine, central.dispatch._lose_node = Machine(monotonic_ms=lambda: now_ms[0]), slowly
    await central.log.record(subjects.node_event("node-b"), lambda: f.registered("node-b"))
    await central.dispatch._sweep()
    now_ms[0] = LEASE_MS
    await ready(central)
    await later(0.1)  # it is asked in a sweep that took a while to record what else was lost
    assert not central.world.nodes["node-b"].online and now_ms == [LEASE_MS * 1.6]
    assert (await later(0.8)).status == "leased"
    assert (await later(0.3)).attempts[0].lost.code == "not_answering"


async def test_an_answer_that_comes_after_the_next_question_counts_from_when_it_was_asked(broker):
    central, asked = await SmallCentral.start(broker, "central-a"), []
    bus = await Bus.connect(broker.url("edge"), name="replica")
    pings, replica = Pings(central.edge, 10.0, 40.0), (NODE, "job-1", 1)

    async def answer(number):
        bus.send(asked[number].reply, b"", asking.part_headers(Part()))
        for each in (bus, central.edge):
            await each.round_trip()

    try:
        await pings.start()
        await bus.attend(subjects.ping(replica_id(*replica)), asked.append)
        for now_ms in (0.0, 10.0, 20.0, 25.0):
            pings.look([replica], now_ms)
            for each in (central.edge, bus):
                await each.round_trip()
        assert len(asked) == 3 and pings.silent_ms(replica, 25.0) == 25.0
        await answer(1)
        assert pings.silent_ms(replica, 25.0) == 15.0
        await answer(0)
        assert pings.silent_ms(replica, 25.0) == 15.0
        pings.look([replica], 51.0)  # from here on nobody waits for the second answer
        await answer(1)
        pings.look([], 52.0)
        pings.look([(NODE, "job-1", 2)], 52.0)
        await answer(2)  # of an earlier attempt
        assert pings.silent_ms((NODE, "job-1", 2), 60.0) == 8.0
    finally:
        await bus.close()
        await central.close()


async def test_silence_while_central_could_not_hear_is_no_silence(central):
    pings, replica = Pings(central.edge, 10.0, 40.0), (NODE, "job-1", 1)
    pings.look({replica}, 0.0)
    assert pings.silent_ms(replica, 90.0) == 90.0
    pings.forgive(90.0)
    assert pings.silent_ms(replica, 95.0) == 5.0
    pings.look(set(), 96.0)
    assert pings.silent_ms(replica, 99.0) == 0.0 and not pings._by_token


async def test_only_the_holder_of_the_lease_may_answer_for_the_deployment(central):
    await ready(central)
    world = central.world
    assert world.serves(NODE, "job-1", 1) == f.DEPLOYMENT
    for other in [("node-b", "job-1", 1), (NODE, "job-1", 2), (NODE, "job-2", 1)]:
        assert world.serves(*other) is None
    await central.reports.failed(failed())
    assert world.serves(NODE, "job-1", 1) is None


async def test_a_job_that_trains_lets_nobody_answer_for_anything(central):
    await central.dispatch._register(register())
    await central.job("job-1", f.FUNDED, leased())
    assert central.world.serves(NODE, "job-1", 1) is None


async def test_a_deployment_of_somebody_else_is_none_of_the_callers(central):
    stolen = replace(f.submitted("job-1", **served()), caller="mallory")
    await central.log.record(JOB, lambda: stolen)
    assert "job-1" not in central.world.jobs and central.world.quarantined == 1


async def test_the_owner_sees_each_replica_in_its_state_with_what_its_node_said(central):
    await ready(central)
    await central.job("job-2", **served())
    await central.dispatch._heartbeat(heartbeat(("job-1", 1, "serving")))
    run = m.RunRef(job_id="job-1", attempt=1, phase="serving", requests=7, waiting=2)
    await central.dispatch._heartbeat(replace(heartbeat(), runs=[run]))
    (found,) = (await api_of(central)._deployments("alice", m.DeploymentListRequest())).deployments
    assert (found.deployment, found.ready, found.owner) == (f.DEPLOYMENT, 1, "alice")
    states = {each.job_id: (each.state, each.requests, each.waiting) for each in found.replicas}
    assert states == {"job-1": ("ready", 7, 2), "job-2": ("pending", 0, 0)}


async def test_of_very_many_replicas_those_at_work_are_told_first_and_how_many_are_not(central, monkeypatch):
    monkeypatch.setattr(api, "REPLICAS_SHOWN", 2)
    at_once = central.log.machine.wall_ms()  # who is called first is told by the order of the log alone
    monkeypatch.setattr(central.log, "machine", Machine(wall_ms=lambda: at_once))
    bounds = {"least": 1, "most": 4}
    await ready(central, **bounds)
    for number in (3, 2, 4):
        await central.job(f"job-{number}", f.FUNDED, **served(standby=True, **bounds))
    ask = m.DeploymentListRequest(deployment=f.DEPLOYMENT)
    (found,) = (await api_of(central)._deployments("alice", ask)).deployments
    told = [(each.job_id, each.state) for each in found.replicas]  # of those that stand by, who is called first
    assert (told, found.ready, found.untold) == ([("job-3", "standby"), ("job-1", "ready")], 1, 2)


async def test_the_newest_replica_is_the_last_one_in_the_log_whatever_the_clocks_said(central, monkeypatch):
    now_ms = [central.log.machine.wall_ms()]
    monkeypatch.setattr(central.log, "machine", Machine(wall_ms=lambda: now_ms[0]))
    for number in (3, 1, 2):
        await central.job(f"job-{number}", f.FUNDED, **served(public=number == 2))
        now_ms[0] -= 1_000
    ask = m.DeploymentListRequest(deployment=f.DEPLOYMENT)
    (found,) = (await api_of(central)._deployments("alice", ask)).deployments
    assert [each.job_id for each in found.replicas] == ["job-2", "job-1", "job-3"]
    assert found.public and found.newest.serve.public


async def test_others_see_that_a_public_deployment_is_there_and_nothing_of_a_private_one(central):
    await ready(central)
    ask = m.DeploymentListRequest(deployment=f.DEPLOYMENT)
    assert (await api_of(central)._deployments("mallory", ask)).deployments == []
    public = replace(served()["serve"], deployment=subjects.deployment_id("cats", "alice"), public=True)
    await central.job("job-2", model=ModelSpec(), serve=public)
    whole = m.DeploymentListRequest(deployment=public.deployment)
    (found,) = (await api_of(central)._deployments("mallory", whole)).deployments
    assert (found.deployment, found.replicas) == (public.deployment, [])
    beginning = m.DeploymentListRequest(deployment="cats")
    assert (await api_of(central)._deployments("mallory", beginning)).deployments == []


async def test_a_deployment_whose_replicas_have_ended_is_told_when_it_is_asked_for(central):
    await central.job("job-1", f.FUND_FAILED, **served())
    api = api_of(central)
    assert (await api._deployments("alice", m.DeploymentListRequest())).deployments == []
    (found,) = (await api._deployments("alice", m.DeploymentListRequest(ended=True))).deployments
    assert found.replicas[0].state == "failed"


async def test_an_owner_cannot_submit_a_replica_of_anothers_deployment(central):
    job = f.job_request(**served())
    with pytest.raises(ApiError, match="is not yours; one of yours would be called digits-"):
        api_of(central)._draft("mallory", job, "job-1", f.CLIENT)


def test_each_state_of_a_replica_has_its_word():
    def state(*timed, phase=""):
        job = f.serving_after(*timed)
        return views.replica_state(job, m.RunRef(job_id="job-1", attempt=1, phase=phase))

    funded, lease = (1, f.FUNDED), (2, f.leased())
    assert state() == state(funded) == "pending"
    assert state(funded, lease) == state(funded, lease, phase="fetching") == "provisioning"
    assert state(funded, lease, phase="loading") == "loading"
    assert state(funded, lease, (3, f.started())) == "ready"
    assert state(funded, (2, f.PAUSED)) == "paused"
    assert state(funded, lease, (3, f.started()), (4, f.CANCELLED)) == "stopped"
    assert state((1, f.FUND_FAILED)) == "failed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ModelSpec(input=[4], layers=[])}, "expected no layers and no graph"),
        ({"serve": m.ServeSpec(deployment=f.DEPLOYMENT, format="onnx", seconds=30 * 86_400)}, "28 days"),
        ({"needs": m.Needs(device="cuda")}, "needs.device: expected any or cpu, got cuda"),
    ],
)
def test_a_job_that_serves_is_checked_before_it_is_taken(changes, said):
    with pytest.raises(SpecError, match=said):
        intake.examine(f.job_request(**(served() | changes)))


def test_a_model_needs_memory_by_its_size_unless_its_submitter_knows_better():
    size = 10 * 2**20
    job = f.job_request(**served(memory_bytes=2**30), dataset=m.ArtifactRef(sha256="a" * 64, size=size))
    assert intake.examine(job).memory_bytes == intake.BASE_MEMORY_BYTES + 2 * size + 2**30
    assert intake.examine(replace(job, needs=m.Needs(memory_bytes=5))).memory_bytes == 5


async def test_a_replica_that_is_paused_has_its_time_to_answer_what_it_took(central, monkeypatch):
    monkeypatch.setattr("cyxcentral.dispatch.PAUSE_GRACE_MS", -1)
    await ready(central, drain_s=600)
    await central.say(JOB, f.PAUSED)
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "leased"
    monkeypatch.setattr("cyxcentral.dispatch.PAUSE_GRACE_MS", -600_001)
    await central.dispatch._sweep()
    assert central.world.jobs["job-1"].status == "paused"


def test_a_replica_is_explained_in_words_of_its_own():
    funded, lease, ready = (1, f.FUNDED), (2, f.leased()), (5, f.started())

    def said(*timed, now_ms=10_000):
        return views.explanation(f.serving_after(*timed), [], now_ms).waiting_for

    assert "fetch the model, and to load it" in said(funded, lease)
    assert said(funded, lease, ready).endswith(f"used up: {f.HOUR_S - 5} s are left")
    assert "answer what its replica has taken, and stop" in said(funded, lease, ready, (6, f.PAUSED))


def test_who_asks_for_one_node_is_told_of_that_one():
    job = f.serving_after((1, f.FUNDED))
    job = replace(job, job=replace(job.job, needs=m.Needs(node_id="node-4")))
    candidates = [worlds.candidate(random.Random(0), number) for number in range(20)]
    idle = replace(candidates[4].node, online=True, draining=False, banned_until_ms=0, max_runs=1)
    candidates[4] = replace(candidates[4], node=idle, active_runs=1)
    assert "node-4, which is asked for and no other (busy with 1 of 1" in (
        views.explanation(job, candidates, 10).waiting_for
    )
    assert "(offline)" in views.explanation(job, candidates[5:], 10).waiting_for


def test_the_time_of_a_replica_counts_from_the_first_time_it_is_ready():
    ready = f.serving_after((1, f.FUNDED), (2, f.leased()), (5, f.started()))
    assert "ready already" in jobrules.illegal(ready, f.started())
