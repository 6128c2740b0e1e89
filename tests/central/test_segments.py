"""Which segment is checked, whether one is, who checks it, and when that is given up."""

from collections import Counter

import pytest
from msgspec.structs import replace

from cyxcentral import jobfold, jobrules, jobs, nodes, schedule, segments
from cyxcentral.checking import Checking
from cyxcentral.world import World
from cyxcore.spec import TrainingSpec
from cyxnet import messages as m
from tests.central import facts as f

POLICY = segments.Policy(secret=b"s" * 32, checkers=frozenset({"node-c"}))
NOW_MS = 60_000
PROVEN = tuple(
    nodes.Payer(wallet=str(n), gained=1.0, at_ms=0, paid_ppm=nodes.WHOLE_PPM) for n in range(nodes.PROVEN_CLIENTS)
)


def ref(sha256):
    return m.ArtifactRef(sha256=sha256 * 64, size=9)


def stored(step, steps=100, letter="f"):
    return m.Checkpoint(step=step, steps=steps, state=ref(letter))


def node(node_id="node-a", **changes):
    return replace(nodes.evolve(None, f.registered(node_id, checks=True), 0), **changes)


def kept_after(policy, states, job_id="job-1"):
    """The segment that is kept once a job has stored these states."""
    job = replace(f.job_after(f.FUNDED, f.leased()), job_id=job_id)
    for state in states:
        event = m.Checkpointed(
            attempt=1, node_id="node-a", checkpoint=state, signature="d" * 128, kept=segments.keeps(policy, job, state)
        )
        job = jobfold.evolve(job, event, 2_000)
    return job


def test_without_checkers_nothing_is_kept_and_a_completion_stays_as_it_is():
    none = segments.NO_CHECKS
    job = kept_after(none, [stored(10), stored(20)])
    assert job.kept is None
    event = f.completed()
    assert segments.completion(none, job, event, {}, NOW_MS) is event


def test_a_segment_is_kept_by_its_share_of_the_steps():
    found = Counter()
    for number in range(3000):
        policy = replace(POLICY, secret=b"%032d" % number)
        job = kept_after(policy, [stored(10, letter="1"), stored(40, letter="2"), stored(90, letter="3")])
        found[segments.chosen(policy, job, ref("b")).end_step] += 1
    for end_step, steps in ((10, 10), (40, 30), (90, 50), (0, 10)):
        assert abs(found[end_step] / 3000 - steps / 100) < 0.03


def test_who_makes_up_a_state_just_before_the_end_is_found_in_nine_of_ten_checks():
    """And who makes up the model alone in one of them. In a half, fresh keys would pay more than honest work."""
    found = Counter()
    for number in range(3000):
        policy = replace(POLICY, secret=b"%032d" % number)
        job = kept_after(policy, [stored(99)])
        found[segments.chosen(policy, job, ref("b")).end_step] += 1
    assert abs(found[99] / 3000 - 0.9) < 0.03 and found[0] + found[99] == 3000


def test_what_is_kept_depends_on_the_secret_and_on_what_was_signed_and_is_the_same_for_every_central():
    states = [stored(step, letter="123456789"[step // 10 - 1]) for step in range(10, 100, 10)]
    one = kept_after(POLICY, states).kept
    assert kept_after(POLICY, states).kept == one
    others = {kept_after(replace(POLICY, secret=bytes([n]) * 32), states).kept.end_step for n in range(20)}
    assert len(others) > 3
    assert len({kept_after(POLICY, states, f"job-{n}").kept.end_step for n in range(20)}) > 3


def test_the_segment_begins_where_the_run_was_before():
    states = [stored(10, letter="1"), stored(40, letter="2")]
    job = kept_after(POLICY, states)
    found = {segments.chosen(POLICY, replace(job, kept=None), ref("b")), job.kept}
    assert m.SignedSegment(attempt=1, start=states[1], end=ref("b")) in found
    for segment in found:
        assert segment.start == {10: None, 40: states[0], 0: states[1]}[segment.end_step]


def test_a_job_of_a_node_that_is_not_proven_is_checked_and_of_one_that_is_a_share():
    job = f.job_after(f.FUNDED, f.leased(), f.STARTED)
    first = segments.completion(POLICY, job, f.completed(), {"node-a": node()}, NOW_MS)
    assert (first.segment, first.not_checked) == (f.segment(), "")
    for record in ({"payers": PROVEN}, {"jobs_checked": 99}):
        assert segments.completion(POLICY, job, f.completed(), {"node-a": node(**record)}, NOW_MS).segment
    known = {"node-a": node(payers=PROVEN, jobs_checked=4 * segments.PROVEN_AFTER, checked_base_units=10**18)}
    policy, drawn = POLICY, 0
    for number in range(1000):
        event = segments.completion(policy, replace(job, job_id=f"job-{number}"), f.completed(), known, NOW_MS)
        drawn += event.segment is not None
        assert event.segment or "is proven" in event.not_checked
    assert 190 < drawn < 310


def test_while_a_node_s_work_is_checked_nothing_else_of_it_is_paid_for():
    """Else who trains nothing delivers and is paid, all the time that the first finding takes."""
    known = {"node-a": node(payers=PROVEN, jobs_checked=1_000, checked_base_units=10**18)}
    job = f.job_after(f.FUNDED, f.leased(), f.STARTED)
    job = next(
        each
        for each in (replace(job, job_id=f"job-{number}") for number in range(1000))
        if not segments.completion(POLICY, each, f.completed(), known, NOW_MS).segment
    )
    assert segments.completion(POLICY, job, f.completed(), known, NOW_MS, {"node-b"}).segment is None
    waits = segments.completion(POLICY, job, f.completed(), known, NOW_MS, {"node-a"})
    assert (waits.segment, waits.not_checked) == (f.segment(), "")

    delivered = jobfold.evolve(job, waits, NOW_MS)
    why_not = segments.spared(POLICY, delivered, known)
    assert "is proven" in why_not
    assert due(delivered, candidate(), spared=why_not, held=True) is None
    assert due(delivered, candidate(), spared=why_not) == m.CheckGivenUp(reason=why_not, drawn=False)
    assert "within 3600 s" in due(delivered, candidate(), waited_ms=3_600_001.0, spared=why_not, held=True).reason
    found_false = {"node-a": replace(known["node-a"], payers=(), jobs_checked=0)}
    assert segments.spared(POLICY, delivered, found_false) == "", "then it is checked as well"
    begun = jobfold.evolve(delivered, f.check_leased(), NOW_MS)
    assert segments.spared(POLICY, begun, known) == "", "what is begun is done"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sealed": True, "needs": m.Needs(node_id="node-a")}, "sealed"),
        ({"needs": m.Needs(device="cuda")}, "GPU"),
        ({"training": TrainingSpec(numerics="fast")}, "numerics fast"),
    ],
)
def test_what_has_no_exact_bits_is_not_checked_and_says_so(changes, why):
    job = replace(f.job_after(f.FUNDED, f.leased()), job=f.job_request(**changes))
    event = segments.completion(POLICY, job, f.completed(), {"node-a": node()}, NOW_MS)
    assert event.segment is None and why in event.not_checked
    done = jobfold.evolve(job, event, 3_000)
    assert done.status == "settling" and segments.in_words(done) == f"not checked: {event.not_checked}"


def test_what_a_checker_trained_is_not_checked():
    job = f.job_after(f.FUNDED, f.leased(node_id="node-c"))
    event = segments.completion(POLICY, job, f.completed(node_id="node-c"), {"node-c": node("node-c")}, NOW_MS)
    assert event.segment is None and "is a checker itself" in event.not_checked


def test_what_a_checker_trained_hides_nothing_of_what_others_did_for_the_job():
    job = kept_after(POLICY, [stored(10)])
    events = [f.lost(), f.leased(2, "node-c", "Q" * 43, stored(10))]
    for event in events:
        job = jobfold.evolve(job, event, 3_000)
    assert not any(segments.keeps(POLICY, job, stored(step, letter="8")) for step in range(20, 100))
    for number in range(50):
        event = segments.completion(POLICY, job, f.completed(2, "node-c"), {"node-a": node()}, NOW_MS + number)
        assert event.segment == job.kept and job.kept.attempt == 1


def test_a_segment_that_takes_too_long_is_not_checked_but_not_because_its_node_took_its_time():
    never = m.CheckpointPolicy(every_s=0.0)  # its client wants no states
    job = replace(f.job_after(f.FUNDED, f.leased(), f.STARTED), job=f.job_request(checkpoints=never))  # started at 3 s
    known, late_ms = {"node-a": node()}, 3_000 + 1_801_000
    assert segments.completion(POLICY, job, f.completed(), known, 3_000 + 1_799_000).segment
    assert "1801 s" in segments.completion(POLICY, job, f.completed(), known, late_ms).not_checked
    facts = m.DatasetFacts(rows=1000, input_shape=[4], classes=3)
    told = replace(job, job=f.job_request(facts=facts, checkpoints=never))
    assert segments.completion(POLICY, told, f.completed(), known | {"node-c": node("node-c")}, late_ms).segment


@pytest.mark.parametrize(
    ("asked", "took_s", "not_checked"),
    [  # of 3000 steps, and no state in between
        (m.CheckpointPolicy(every_s=60.0), 3_599, ""),
        (m.CheckpointPolicy(every_s=60.0), 3_601, "check_within_s is 3600"),
        (m.CheckpointPolicy(every_s=0.0, every_steps=1_000), 3_599, ""),
        (m.CheckpointPolicy(every_s=0.0, every_steps=2_000), 3_599, "longest_check_s is 1800"),
        (m.CheckpointPolicy(every_s=1_700.0), 3_599, ""),
        (m.CheckpointPolicy(every_s=1_700.0), 3_301, "longest_check_s is 1800"),  # as late as an honest node may be
        (m.CheckpointPolicy(every_s=0.0), 1_801, "longest_check_s is 1800"),
    ],
)
def test_who_stores_states_far_more_seldom_than_the_job_asks_is_checked_all_the_same(asked, took_s, not_checked):
    facts = m.DatasetFacts(rows=1_000, input_shape=[4], classes=3)
    training = TrainingSpec(epochs=3, batch_size=1)
    request = f.job_request(checkpoints=asked, facts=facts, training=training)
    job = replace(f.job_after(f.FUNDED, f.leased(), f.STARTED), job=request)  # started at 3 s
    event = segments.completion(POLICY, job, f.completed(), {"node-a": node()}, 3_000 + took_s * 1_000)
    assert event.not_checked.endswith(not_checked) and bool(event.segment) == (not not_checked)


def test_near_its_deadline_a_job_is_not_checked_any_more():
    deadline_s = jobs.DEADLINE_MARGIN_S + 3_600 + 60
    job = f.job_after(f.FUNDED, f.leased())
    job = replace(job, terms=replace(job.terms, deadline_s=deadline_s))
    assert segments.completion(POLICY, job, f.completed(), {"node-a": node()}, 59_000).segment
    assert "deadline" in segments.completion(POLICY, job, f.completed(), {"node-a": node()}, 60_001).not_checked


def test_the_share_that_is_checked_falls_with_what_was_found_right_and_not_below_that_of_the_settings():
    after = (0, 10, 11, 20, 40, 100, 10_000)
    known = [node(payers=PROVEN, jobs_checked=checked, checked_base_units=7 * checked) for checked in after]
    assert [segments.share_of(POLICY, each, 7) for each in known] == [1.0, 1.0, 10 / 11, 0.5, 0.25, 0.1, POLICY.share]
    assert [segments.share_of(POLICY, each, 0) for each in known] == [1.0, 1.0, 10 / 11, 0.5, 0.25, 0.1, POLICY.share]
    assert segments.share_of(POLICY, node(jobs_checked=10_000), 7) == segments.share_of(POLICY, None, 7) == 1.0


def test_many_small_jobs_that_were_found_right_let_no_large_one_go_unchecked():
    known = node(payers=PROVEN, jobs_checked=10_000, checked_base_units=10_000)
    worths = (1, 50, 100, 500, 1_000, 1_001, 10**12)
    assert [segments.share_of(POLICY, known, worth) for worth in worths] == [POLICY.share] * 2 + [0.1, 0.5] + [1.0] * 3
    unsaid = replace(known, checked_base_units=0)
    assert segments.share_of(POLICY, unsaid, 1) == 1.0


# -- who checks ---------------------------------------------------------------------------------------------------

CHECKING = f.job_after(f.FUNDED, f.leased(), f.completed(segment=f.segment()))


def candidate(node_id="node-c", runs=0, **changes):
    found = node(node_id, **changes)
    return schedule.Candidate(node=found, active_runs=runs, memory_free_bytes=found.hardware.memory_bytes)


def due(job=CHECKING, *candidates, policy=POLICY, now_ms=NOW_MS, waited_ms=0.0, rested_ms=0.0, **drawn):
    return segments.due(policy, job, list(candidates), 40_000, now_ms, waited_ms, rested_ms, **drawn)


def test_a_free_checker_gets_it_and_one_that_cannot_is_waited_for():
    assert due(CHECKING, candidate()) == m.CheckLeased(
        number=m.FIRST_CHECK, node_id="node-c", session="0" * 32, lease_ms=40_000
    )
    for refused in (
        candidate(online=False),
        candidate(draining=True),
        candidate(banned_until_ms=10**15),
        candidate(checks=False),
        candidate(runs=1),
        replace(candidate(), memory_free_bytes=1),
    ):
        assert due(CHECKING, refused) is None
    assert due(CHECKING) is None
    assert due(jobfold.evolve(CHECKING, f.check_leased(), 1), candidate()) is None


class Still:
    """A machine on which no time passes."""

    def monotonic_ms(self):
        return 0.0

    def wall_ms(self):
        return NOW_MS


def test_what_is_not_drawn_waits_for_what_its_node_delivered_before_and_for_nothing_that_came_later():
    world = World()
    world.nodes["node-a"] = node(payers=PROVEN, jobs_checked=1_000, checked_base_units=10**18)
    world.nodes["node-b"], world.nodes["node-c"] = node("node-b"), node("node-c", draining=True)
    drawn, spared = [], []
    for number in range(1000):
        job = replace(f.job_after(f.FUNDED, f.leased(), f.STARTED), job_id=f"job-{number}")
        event = segments.completion(POLICY, job, f.completed(), world.nodes, NOW_MS, {"node-a"})
        job = jobfold.evolve(job, event, 1)
        (spared if segments.spared(POLICY, job, world.nodes) else drawn).append(job)
    other = replace(
        f.job_after(f.FUNDED, f.leased(1, "node-b"), f.completed(1, "node-b", segment=f.segment())), job_id="other"
    )
    in_order = [other, spared[0], drawn[0], spared[1]]
    for number, job in enumerate(in_order):
        world.jobs[job.job_id] = replace(job, check=replace(job.check, since_ms=number))
        world.checking.add(job.job_id)
    checking = Checking(POLICY, world, Still(), 40_000)
    assert checking.waiting(whole=True) == [job.job_id for job in in_order]
    decided = [checking.due(job.job_id) for job in in_order]
    assert [type(each) for each in decided] == [type(None), m.CheckGivenUp, type(None), type(None)]

    world.checking.discard(drawn[0].job_id)  # it was found right
    checking.waiting(whole=True)
    assert checking.due(spared[1].job_id) == m.CheckGivenUp(
        reason=segments.spared(POLICY, spared[1], world.nodes), drawn=False
    )


def test_nobody_checks_its_own_work_also_when_it_was_named_a_checker_since():
    assert due(CHECKING, candidate("node-a")) is None
    assert "node-a: the work is its own" in due(CHECKING, candidate("node-a"), waited_ms=3_600_001.0).reason


def test_the_tries_of_a_check_outlast_a_restart_of_the_checkers_machine():
    assert 8 * 60_000 < sum(segments.REST_MS[: segments.MOST_LOST]) < POLICY.within_s * 1000


def test_the_second_run_goes_to_another_checker_where_one_is_free():
    job = jobfold.evolve(CHECKING, f.check_leased(), 1)
    job = jobfold.evolve(job, m.CheckDiffers(finding=f.finding("9" * 64)), 2)
    assert due(job, candidate(), candidate("node-d")).node_id == "node-d"
    assert due(job, candidate(), candidate("node-d", runs=1)).node_id == "node-c"
    assert due(job, candidate()).number == m.FIRST_CHECK + 1


def test_who_said_that_nobody_can_have_trained_it_is_not_asked_again_where_another_is_free():
    lost = m.CheckLost(number=m.FIRST_CHECK, code="bad_checkpoint", reason="it cannot be read")
    job = jobfold.evolve(jobfold.evolve(CHECKING, f.check_leased(), 1), lost, 2)
    assert due(job, candidate(), candidate("node-d"), rested_ms=9_999.0).node_id == "node-d"
    assert due(job, candidate(), rested_ms=9_999.0).node_id == "node-c"


def test_a_check_that_nobody_is_done_with_in_time_is_given_up_with_the_reason():
    late_ms = 3_600_001.0
    assert "none is registered" in due(CHECKING, waited_ms=late_ms).reason
    assert "which cannot check: upgrade it" in due(CHECKING, candidate(checks=False), waited_ms=late_ms).reason
    assert "node-c: busy with 1 of 1 runs" in due(CHECKING, candidate(runs=1), waited_ms=late_ms).reason
    leased = jobfold.evolve(CHECKING, f.check_leased(), 1)
    assert "node-c is at it" in due(leased, candidate(), waited_ms=late_ms).reason
    assert "no checkers any more" in due(CHECKING, candidate(), policy=segments.NO_CHECKS).reason
    near = replace(CHECKING, terms=replace(CHECKING.terms, deadline_s=jobs.DEADLINE_MARGIN_S + 59))
    assert "deadline" in due(near, candidate()).reason


def test_after_each_lease_that_was_lost_the_next_comes_later_and_at_last_none_does():
    job = CHECKING
    for number in range(segments.MOST_LOST):
        rest_ms = segments.REST_MS[min(number, len(segments.REST_MS) - 1)]
        assert number == 0 or due(job, candidate(), rested_ms=rest_ms - 1.0) is None
        lease = due(job, candidate(), rested_ms=float(rest_ms))
        job = jobfold.evolve(job, lease, 1)
        job = jobfold.evolve(job, m.CheckLost(number=lease.number, code="node_lost", reason=f"silent {number}"), 2)
    given_up = due(job, candidate(), rested_ms=10**9)
    assert isinstance(given_up, m.CheckGivenUp) and "silent 9" in given_up.reason
    assert jobfold.evolve(job, given_up, 3).payees == (f.payee(),)


def test_a_checker_is_told_what_to_train_and_not_what_to_find():
    start = f.checkpoint(30)
    job = f.job_after(f.FUNDED, f.leased(), f.checkpointed(step=30), f.completed(segment=f.segment(start=start)))
    asked = segments.asked(job)
    assert asked == m.Segment(start=start, end_step=0)
    assert "end" not in m.Segment.__struct_fields__ and jobs.inputs(job) == ["a" * 64]
    assert jobs.inputs(jobfold.evolve(job, f.check_leased(), 9)) == ["a" * 64, start.state.sha256]


def test_in_words_a_job_says_whether_it_was_checked():
    assert segments.in_words(f.job_after(f.FUNDED, f.leased())) == ""
    plain = f.job_after(f.FUNDED, f.leased(), f.completed())
    assert segments.in_words(plain) == "not checked: this network had no checkers"
    assert "it waits for a checker" in segments.in_words(CHECKING)
    leased = jobfold.evolve(CHECKING, f.check_leased(), 1)
    assert "node-c trains it again" in segments.in_words(leased)
    right = jobfold.evolve(leased, m.Checked(finding=f.finding()), 2)
    assert segments.in_words(right) == (
        "checked: from step 0 to the model, of attempt 1, trained again by node-c: the same bytes"
    )
    differs = jobfold.evolve(leased, m.CheckDiffers(finding=f.finding("9" * 64)), 2)
    assert "one run found something else" in segments.in_words(differs)
    second = jobfold.evolve(differs, f.check_leased(m.FIRST_CHECK + 1), 3)
    false = jobfold.evolve(second, jobrules.verdict(second, f.finding("9" * 64, m.FIRST_CHECK + 1)), 4)
    assert "rejected: the work of node-a" in segments.in_words(false)
    assert "nobody came" in segments.in_words(jobfold.evolve(CHECKING, m.CheckGivenUp(reason="nobody came"), 2))
