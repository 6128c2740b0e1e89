"""Results that are checked before they are paid, against a real broker: the checker is made of its words alone."""

import asyncio

import pytest
from msgspec.structs import replace

from cyxcentral import jobrules, jobs, segments
from cyxcentral.nodes import STRIKES_TO_BAN
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from cyxnet.codec import MSGPACK, encode
from cyxnet.identity import Identity
from tests.central import facts as f
from tests.central.centrals import (
    KEY,
    NODE,
    SmallCentral,
    completed,
    failed,
    kinds_of,
    leased,
    register,
    started,
    stored_model,
)

CHECKER_KEY = Identity(b"c" * 32)
CHECKER, CHECKER_SESSION = f"checker-{CHECKER_KEY.short_id}", "c" * 32
POLICY = segments.Policy(secret=b"s" * 32, checkers=frozenset({CHECKER}))
FIRST = m.FIRST_CHECK


@pytest.fixture
async def central(broker):
    running = await SmallCentral.start(broker, "central-a", policy=POLICY)
    yield running
    await running.close()


def register_checker(session=CHECKER_SESSION, **changes):
    said = replace(
        register(session, **({"checks": True} | changes)),
        node_id=CHECKER,
        name="checker",
        public_key=CHECKER_KEY.public_key,
    )
    return replace(said, signature=CHECKER_KEY.sign(m.registration_bytes(said)))


def trained(end, number=FIRST, segment=m.Segment(), session=CHECKER_SESSION, key=CHECKER_KEY):  # noqa: B008
    said = m.SegmentTrained(
        node_id=CHECKER,
        session=session,
        job_id="job-1",
        attempt=number,
        segment=segment,
        end=end,
        signature="0" * 128,
    )
    return replace(said, signature=key.sign(m.segment_bytes(said)))


def other(model):
    return replace(model, sha256="9" * 64)


async def delivered(central, tmp_path, checker=True):
    """A job whose model is delivered; returns that."""
    await central.dispatch._register(register())
    if checker:
        await central.dispatch._register(register_checker())
    await central.job("job-1", f.FUNDED, leased(), m.Started(attempt=1))
    model = await stored_model(central.blobs, tmp_path)
    assert (await central.reports.completed(completed(model))).accepted
    return model


async def rested(central):
    """The second after the first lease of a check that was lost."""
    central.dispatch._checking._seen_ms[("job-1", 1, 1)] -= 1_000
    await central.dispatch._check_waiting()


def job_of(central):
    return central.world.jobs["job-1"]


async def test_a_delivered_job_goes_to_a_checker_and_is_paid_once_that_found_the_same(central, tmp_path):
    model = await delivered(central, tmp_path)
    assert (job_of(central).status, job_of(central).payees) == ("checking", ())
    assert central.world.nodes[NODE].jobs_completed == 0  # not before it is known
    await central.dispatch._check_waiting()
    assert job_of(central).holder == CHECKER
    assert central.world.needed_by(CHECKER) == {"a" * 64}
    assert (await central.reports.segment(trained(model))).accepted
    assert job_of(central).outcome == "completed" and job_of(central).payees
    assert await kinds_of(central) == [
        *("Submitted", "Funded", "Leased", "Started", "Completed", "CheckLeased", "Checked")
    ]
    assert (await central.reports.segment(trained(model))).reason == "known already"
    judged = central.world.nodes[NODE]
    assert (judged.jobs_completed, judged.jobs_checked, judged.checked_base_units) == (1, 1, f.AMOUNT)
    assert central.world.held[CHECKER] == set() and central.world.checking == set()


async def test_the_command_of_a_check_does_not_say_what_is_to_be_found(central, tmp_path):
    model = await delivered(central, tmp_path)
    await central.dispatch._check_waiting()
    command = central.dispatch._command("assign", job_of(central), job_of(central).lease)
    assert (command.attempt, command.segment, command.resume, command.funded) == (FIRST, m.Segment(), None, True)
    assert model.sha256.encode() not in encode(command, MSGPACK)


async def test_what_two_runs_found_false_is_not_paid_and_its_node_is_banned(central, tmp_path):
    model = await delivered(central, tmp_path)
    await central.dispatch._check_waiting()
    assert (await central.reports.segment(trained(other(model)))).accepted
    assert job_of(central).status == "checking"  # one run's word is not enough
    assert central.world.nodes[NODE].strikes == 0
    await central.dispatch._check_waiting()
    assert (await central.reports.segment(trained(other(model), FIRST + 1))).accepted
    job = job_of(central)
    assert (job.status, job.completed, job.payees) == ("queued", None, ())
    assert central.world.nodes[NODE].strikes == STRIKES_TO_BAN
    assert (model.sha256, job.caller) not in central.world.named
    await central.dispatch._ban_suspects()
    assert central.world.nodes[NODE].banned_until_ms
    assert [finding.number for finding in job.attempts[0].rejected.findings] == [FIRST, FIRST + 1]


async def test_two_runs_that_differ_from_one_another_say_nothing_and_the_job_is_paid(central, tmp_path):
    model = await delivered(central, tmp_path)
    for number, sha256 in ((FIRST, "9" * 64), (FIRST + 1, "8" * 64)):
        await central.dispatch._check_waiting()
        assert (await central.reports.segment(trained(replace(model, sha256=sha256), number))).accepted
    assert job_of(central).outcome == "completed"
    assert segments.in_words(job_of(central)).startswith(f"not checked: {jobrules.TWO_RUNS_DIFFER}")
    assert (central.world.nodes[NODE].strikes, central.world.nodes[NODE].jobs_checked) == (0, 0)


async def test_only_who_holds_the_lease_of_a_check_says_what_was_found_and_with_its_own_signature(central, tmp_path):
    model = await delivered(central, tmp_path)
    await central.dispatch._check_waiting()
    with pytest.raises(ApiError, match="not signed by the node's key"):
        await central.reports.segment(trained(model, key=KEY))
    asked = m.Segment(end_step=7)
    with pytest.raises(ApiError, match="is of") as refused:
        await central.reports.segment(trained(model, segment=asked))
    assert refused.value.code == "wrong_segment"
    assert (await central.reports.segment(trained(model, session="d" * 32))).fenced
    stranger = replace(trained(model), node_id=NODE)
    assert (await central.reports.segment(stranger)).fenced
    assert (await central.reports.segment(trained(model, FIRST + 1))).fenced
    assert job_of(central).status == "checking"


async def test_a_checker_that_is_lost_or_fails_costs_the_job_no_attempt_and_another_lease_has_another_number(
    central, tmp_path
):
    model = await delivered(central, tmp_path)
    await central.dispatch._check_waiting()
    assert (await central.reports.started(replace(started(FIRST), node_id=CHECKER, session=CHECKER_SESSION))).accepted
    gone = replace(failed(FIRST), node_id=CHECKER, session=CHECKER_SESSION)
    assert (await central.reports.failed(gone)).accepted
    assert (job_of(central).status, job_of(central).attempt, job_of(central).holder) == ("checking", 1, None)
    await central.dispatch._check_waiting()
    assert job_of(central).lease is None  # it rests a second
    await rested(central)
    assert job_of(central).lease.number == FIRST + 1
    assert (await central.reports.segment(trained(model))).fenced
    await central.dispatch._lose_node(CHECKER, CHECKER_SESSION, "silent")
    assert [lost.code for lost in job_of(central).check.lost] == ["died", "node_lost"]
    assert jobs.tried(job_of(central)) == 1
    assert (await kinds_of(central))[-1] == "CheckLost"


async def test_a_check_whose_start_nobody_can_go_on_from_is_rejected_when_a_second_run_says_so(central, tmp_path):
    await delivered(central, tmp_path)
    for number in (FIRST, FIRST + 1):
        await central.dispatch._check_waiting()
        if number > FIRST:
            await rested(central)
        said = replace(failed(number, "bad_checkpoint"), node_id=CHECKER, session=CHECKER_SESSION)
        assert (await central.reports.failed(said)).accepted
    assert job_of(central).status == "queued" and job_of(central).attempts[0].rejected.impossible == "it died"


async def test_a_run_of_a_check_is_not_told_to_stop_and_that_of_one_that_is_over_is(central, tmp_path):
    await delivered(central, tmp_path)
    await central.dispatch._check_waiting()
    said = m.Heartbeat(
        node_id=CHECKER, session=CHECKER_SESSION, runs=[m.RunRef(job_id="job-1", attempt=FIRST, phase="training")]
    )
    assert (await central.dispatch._heartbeat(said)).stop == []
    await central.say(subjects.job_event("job-1"), m.CheckGivenUp(reason="enough"))
    assert [(run.job_id, run.attempt) for run in (await central.dispatch._heartbeat(said)).stop] == [("job-1", FIRST)]


async def test_a_check_is_given_up_and_the_job_paid_when_no_checker_comes_in_time(central, tmp_path):
    await delivered(central, tmp_path, checker=False)
    await central.dispatch._check_waiting()
    assert job_of(central).status == "checking"
    central.dispatch._checking._seen_ms[("job-1", 1, 0)] -= POLICY.within_s * 1000 + 1
    await central.dispatch._check_waiting()
    assert job_of(central).outcome == "completed"
    assert "no checker was done within 3600 s (none is registered)" in segments.in_words(job_of(central))


async def test_a_node_of_a_version_that_knows_no_segments_gets_no_check(central, tmp_path):
    await central.dispatch._register(register_checker(checks=False))
    await delivered(central, tmp_path, checker=False)
    await central.dispatch._check_waiting()
    assert job_of(central).holder is None


async def test_between_two_looks_at_everything_nobody_is_looked_for_while_no_checker_is_free(central, tmp_path):
    await delivered(central, tmp_path)
    waiting = central.dispatch._checking.waiting
    assert (waiting(whole=True), waiting(whole=False)) == (["job-1"], ["job-1"])
    await central.job("job-2", f.FUNDED)
    lease = m.Leased(attempt=1, node_id=CHECKER, session=CHECKER_SESSION, wallet=f.NODE_WALLET, lease_ms=60_000)
    await central.say(subjects.job_event("job-2"), lease)
    assert (waiting(whole=True), waiting(whole=False)) == (["job-1"], [])


async def test_an_owner_cannot_cancel_or_pause_what_is_checked(central, tmp_path):
    await delivered(central, tmp_path)
    for event in (f.CANCELLED, f.PAUSED, f.RESUMED, f.PRIORITY_CHANGED):
        assert "checking" in jobrules.illegal(job_of(central), event)


async def test_without_checkers_a_delivery_is_the_event_that_it_always_was(broker, tmp_path):
    plain = await SmallCentral.start(broker, "central-b")
    try:
        await delivered(plain, tmp_path, checker=False)
        job = job_of(plain)
        assert (job.status, job.completed.segment, job.completed.not_checked) == ("settling", None, "")
    finally:
        await plain.close()


async def test_of_deliveries_in_one_moment_nothing_is_paid_behind_one_that_is_drawn(central, tmp_path, monkeypatch):
    async def stored(ref, node_id):
        """Looked for without waiting: so all are decided in their order, before the first of them is in the log."""

    monkeypatch.setattr(segments, "_spared", lambda policy, job, *_: "" if job.job_id == "job-4" else "not drawn")
    monkeypatch.setattr(central.reports, "_check_stored", stored)
    await central.dispatch._register(register())
    names = ["job-4", "job-1", "job-2", "job-3"]
    for name in names:
        await central.job(name, f.FUNDED, leased(), m.Started(attempt=1))
    model = await stored_model(central.blobs, tmp_path)
    said = [replace(completed(model), job_id=name) for name in names]
    said = [replace(each, signature=KEY.sign(m.completion_bytes(each))) for each in said]
    assert all(each.accepted for each in await asyncio.gather(*map(central.reports.completed, said)))
    assert {central.world.jobs[name].status for name in names} == {"checking"}
    assert not central.reports._drawn
    await central.dispatch._check_waiting()
    assert {central.world.jobs[name].status for name in names} == {"checking"}
