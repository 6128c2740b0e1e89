"""Jobs that come after others: when they begin, with what, and what becomes of them when the others fail."""

import random

import pytest
from msgspec.structs import replace

from cyxcentral import dependencies, intake, jobfold, jobs
from cyxcore.errors import SpecError
from cyxcore.spec import DataSpec, ModelSpec
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError
from tests.central import facts as f
from tests.central.centrals import SmallCentral, kinds_of, register
from tests.central.test_api import api_of
from tests.central.test_world import Log

MODEL = f.completed().model.sha256
TRAINED = (f.FUNDED, f.leased(), f.completed())
FIRST = m.After(job_id="job-1")


def after(*events, job_id="job-1"):
    """A job of this id that these things happened to."""
    job = jobfold.evolve(None, f.submitted(job_id), 0)
    for event in events:
        job = jobfold.evolve(job, event, 1_000)
    return job


def waiting(*afters):
    return f.job_after(f.FUNDED, after=list(afters or [FIRST]))


def with_summary(**changes):
    done = f.completed()
    return after(f.FUNDED, f.leased(), replace(done, summary=replace(done.summary, **changes)))


# -- what is decided ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), None),
        ((f.FUNDED,), None),
        ((f.FUNDED, f.leased()), None),
        ((f.FUNDED, f.PAUSED), None),
        ((f.FUNDED, f.leased(), f.completed(segment=f.segment())), None),  # delivered, and to be checked
        (TRAINED, m.DependenciesMet()),  # settled or not
        ((*TRAINED, f.SIGNED_SETTLE, f.settled()), m.DependenciesMet()),
    ],
)
def test_a_job_begins_when_the_one_before_it_is_delivered_and_found_right(events, expected):
    assert dependencies.due(waiting(), {"job-1": after(*events)}) == expected


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((f.FUND_FAILED,), "job-1, which it comes after, has failed: expired"),
        ((f.FUNDED, f.CANCELLED), "job-1, which it comes after, has been cancelled: changed my mind"),
        (
            (f.CANCELLED,),
            "job-1, which it comes after, has been cancelled: changed my mind",
        ),  # before its deposit lands
        (
            (f.FUNDED, f.leased(), f.lost(deterministic=True, sole=True)),
            "job-1, which it comes after, has failed: it died",
        ),
    ],
)
def test_a_job_whose_predecessor_comes_to_nothing_is_cancelled_at_once(events, why):
    known = {"job-1": after(*events), "job-2": after(job_id="job-2")}
    both = waiting(m.After(job_id="job-2"), FIRST)  # the other one is still at work
    event = dependencies.due(both, known)
    assert event == m.DependencyFailed(job_id="job-1", reason=why)
    ended = jobfold.evolve(both, event, 9_000)
    assert (ended.status, ended.outcome, ended.error, ended.pay_base_units) == ("settling", "cancelled", why, 0)


def test_a_job_waits_for_all_that_it_comes_after():
    both = waiting(FIRST, m.After(job_id="job-2"))
    known = {"job-1": after(*TRAINED), "job-2": after(f.FUNDED, job_id="job-2")}
    assert dependencies.due(both, known) is None
    assert dependencies.unfinished(both, known) == ["job-2"]
    known["job-2"] = after(*TRAINED, job_id="job-2")
    assert dependencies.due(both, known) == m.DependenciesMet()


@pytest.mark.parametrize(
    ("condition", "value", "begins"),
    [
        ({"metric": "validation_accuracy", "at_least": 0.9}, 0.9, True),
        ({"metric": "validation_accuracy", "at_least": 0.9}, 0.899, False),
        ({"metric": "final_loss", "at_most": 0.5}, 0.25, True),
        ({"metric": "final_loss", "at_most": 0.5}, 0.75, False),
        ({"metric": "validation_loss", "at_least": 0.1, "at_most": 0.5}, 0.05, False),
        ({"metric": "validation_r2", "at_least": 0.0}, None, False),
    ],
)
def test_a_job_begins_only_when_the_model_before_it_is_good_enough(condition, value, begins):
    job = waiting(m.After(job_id="job-1", **condition))
    event = dependencies.due(job, {"job-1": with_summary(**{condition["metric"]: value})})
    assert isinstance(event, m.DependenciesMet if begins else m.DependencyFailed)
    if not begins:
        assert condition["metric"] in event.reason and ("and is" in event.reason) == (value is not None)


def test_a_job_that_begins_with_the_model_of_another_gets_its_weights_and_is_still_what_was_asked_for():
    job = waiting(replace(FIRST, model=True))
    event = dependencies.due(job, {"job-1": after(*TRAINED)})
    assert event == m.DependenciesMet(weights=MODEL)
    goes_on = jobfold.evolve(job, event, 9_000)
    assert goes_on.job.model.weights == MODEL and MODEL in jobs.inputs(goes_on)
    assert jobs.as_asked(goes_on) == job.job


# -- the best of several -----------------------------------------------------------------------------------


THREE = [m.After(job_id=f"job-{number}", model=True) for number in (1, 2, 3)]


def trained(number, outcome="completed", **summary):
    """A job whose model is known by its number."""
    done = f.completed()
    done = replace(done, model=replace(done.model, sha256=str(number) * 64), summary=replace(done.summary, **summary))
    return replace(after(f.FUNDED, f.leased(), done, job_id=f"job-{number}"), outcome=outcome)


def best_of(*others, by="validation_accuracy", afters=THREE):
    job = f.job_after(f.FUNDED, after=afters, best_by=by)
    return job, {other.job_id: other for other in others}


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("validation_accuracy", [0.5, 0.9, 0.7], 2),
        ("final_loss", [0.5, 0.9, 0.7], 1),
        ("validation_loss", [0.5, 0.9, 0.1], 3),
        ("validation_r2", [-2.0, -1.0, -3.0], 2),
        ("final_accuracy", [0.5, 0.9, 0.9], 2),  # the first of equals
        ("final_accuracy", [None, None, 0.1], 3),
    ],
)
def test_a_job_begins_with_the_best_model_of_several(metric, values, expected):
    job, known = best_of(*(trained(number, **{metric: value}) for number, value in enumerate(values, 1)), by=metric)
    event = dependencies.due(job, known)
    assert event == m.DependenciesMet(weights=str(expected) * 64)
    assert dependencies.why_untrue(job, event, known) is None
    worse = m.DependenciesMet(weights=str(values.index(min(values, key=lambda v: v or 0)) + 1) * 64)
    assert (dependencies.why_untrue(job, worse, known) is None) == (worse == event)


def test_which_is_best_is_known_when_all_are_over():
    job, known = best_of(trained(1, validation_accuracy=0.9), trained(2, validation_accuracy=0.5))
    known["job-3"] = after(f.FUNDED, f.leased(), job_id="job-3")
    assert dependencies.due(job, known) is None
    assert dependencies.unfinished(job, known) == ["job-3"]
    assert "job-3 is not completed" in dependencies.why_untrue(job, m.DependenciesMet(weights="1" * 64), known)


def test_of_several_those_that_fail_or_are_worth_too_little_are_passed_over_while_one_is_left():
    afters = [THREE[0], replace(THREE[1], metric="final_loss", at_most=0.5), THREE[2]]
    failed = after(f.FUNDED, f.CANCELLED)
    bad = trained(2, validation_accuracy=0.9, final_loss=2.0)
    job, known = best_of(failed, bad, trained(3, validation_accuracy=0.1), afters=afters)
    assert dependencies.due(job, known) == m.DependenciesMet(weights="3" * 64)
    assert dependencies.why_untrue(job, m.DependencyFailed(job_id="job-1", reason="r"), known)
    known["job-3"] = after(f.FUNDED, f.CANCELLED, job_id="job-3")
    event = dependencies.due(job, known)
    assert event.reason == (
        "job-1, which it comes after, has been cancelled: changed my mind; none of 3 jobs has a model to begin with"
    )
    for job_id in known:
        assert dependencies.why_untrue(job, m.DependencyFailed(job_id=job_id, reason="r"), known) is None
    assert dependencies.why_untrue(job, m.DependenciesMet(weights=""), known)


def test_one_that_has_no_model_to_give_fails_it_as_ever_beside_those_that_have():
    job, known = best_of(
        trained(1), trained(2), after(f.FUND_FAILED, job_id="job-3"), afters=[*THREE[:2], m.After(job_id="job-3")]
    )
    assert dependencies.due(job, known).job_id == "job-3"


def test_what_was_the_best_before_its_escrow_was_refunded_was_so_and_so_is_the_best_that_is_left():
    gone = trained(1, "failed", validation_accuracy=0.9)
    job, known = best_of(gone, trained(2, validation_accuracy=0.5), trained(3, validation_accuracy=0.1))
    assert dependencies.due(job, known) == m.DependenciesMet(weights="2" * 64)
    true = [n for n in "123" if dependencies.why_untrue(job, m.DependenciesMet(weights=n * 64), known) is None]
    assert true == ["1", "2"]


def test_a_job_of_the_best_is_refused_when_no_job_that_it_could_begin_with_is_left():
    job = f.job_request(after=THREE[:2], best_by="final_loss")
    known = {"job-1": after(f.FUND_FAILED), "job-2": after(job_id="job-2")}
    intake.refuse_dependencies(job, "alice", known)
    known["job-2"] = after(f.FUNDED, f.CANCELLED, job_id="job-2")
    with pytest.raises(ApiError, match="none of 2 jobs has a model"):
        intake.refuse_dependencies(job, "alice", known)


def test_the_best_by_what_a_job_will_not_have_is_refused():
    job = f.job_request(after=THREE[:1], best_by="validation_r2")
    other = replace(after(), job=f.job_request(data=DataSpec(task="classification")))
    with pytest.raises(ApiError, match="there is none of a classification"):
        intake.refuse_dependencies(job, "alice", {"job-1": other})


def test_a_job_that_waits_gets_no_lease_and_then_one_like_any_other():
    job = f.job_after(after=[FIRST])
    assert (job.status, jobs.waits(job)) == ("funding", False)
    job = jobfold.evolve(job, f.FUNDED, 2_000)
    assert (job.status, jobs.waits(job)) == ("waiting", False)
    job = jobfold.evolve(job, m.DependenciesMet(), 3_000)
    assert (job.status, jobs.waits(job), job.not_before_ms) == ("queued", True, 0)


def test_what_its_owner_wants_meanwhile_counts_and_a_resume_does_not_let_it_begin():
    paused = f.job_after(f.FUNDED, f.PAUSED, after=[FIRST])
    assert paused.status == "paused"
    assert jobfold.evolve(paused, f.RESUMED, 9_000).status == "waiting"
    met = jobfold.evolve(paused, m.DependenciesMet(), 9_000)
    assert (met.status, jobfold.evolve(met, f.RESUMED, 9_000).status) == ("paused", "queued")


# -- in the log --------------------------------------------------------------------------------------------


def test_the_log_knows_who_waits_for_whom():
    log = Log().job(f.submitted()).job(f.submitted("job-2", after=[FIRST]), f.FUNDED, job_id="job-2")
    assert (log.world.awaiting, log.world.dependents) == ({"job-2"}, {"job-1": {"job-2"}})
    again = Log()
    again.world.take_jobs(list(log.world.jobs.values()))
    assert (again.world.awaiting, again.world.dependents) == (log.world.awaiting, log.world.dependents)
    assert log.job(*TRAINED[:-1]).world.decided == set()
    assert log.job(TRAINED[-1]).world.decided == {"job-2"}
    log.job(m.DependenciesMet(), job_id="job-2")
    assert (log.world.awaiting, log.world.dependents, log.world.decided) == (set(), {}, set())
    assert log.world.quarantined == 0


def test_what_is_read_from_a_snapshot_is_decided_as_what_was_folded():
    log = Log().job(f.submitted()).job(f.submitted("job-2", after=[FIRST]), f.FUNDED, job_id="job-2").job(*TRAINED)
    again = Log()
    again.world.take_jobs(list(log.world.jobs.values()))
    assert again.world.decided == log.world.decided == {"job-2"}


def test_a_job_begins_in_no_log_before_those_that_it_comes_after_are_completed():
    log = Log().job(f.submitted()).job(f.submitted("job-2", after=[replace(FIRST, model=True)]), job_id="job-2")
    untrue = [m.DependenciesMet(), m.DependencyFailed(job_id="job-1", reason="r"), m.DependenciesMet(weights=MODEL)]
    for event in untrue:
        log.job(event, job_id="job-2")
    log.job(*TRAINED).job(m.DependenciesMet(weights="9" * 64), job_id="job-2")
    assert (log.world.quarantined, log.world.jobs["job-2"].awaiting) == (4, True)
    log.job(m.DependenciesMet(weights=MODEL), job_id="job-2")
    assert (log.world.quarantined, log.world.jobs["job-2"].awaiting) == (4, False)
    assert (MODEL, "alice") in log.world.named


def test_a_job_after_none_or_after_somebody_elses_is_quarantined():
    strangers = replace(f.submitted(), caller="bob")
    log = Log().job(f.submitted("job-2", after=[FIRST]), job_id="job-2").job(strangers)
    log.job(f.submitted("job-3", after=[FIRST]), job_id="job-3")
    assert log.world.quarantined == 2 and set(log.world.jobs) == {"job-1"}


def test_what_was_released_before_its_predecessor_was_refunded_stays_released():
    log = Log().job(f.submitted()).job(f.submitted("job-2", after=[FIRST]), job_id="job-2")
    log.job(*TRAINED, f.REFUNDED).job(m.DependenciesMet(), job_id="job-2")
    assert (log.world.jobs["job-1"].status, log.world.quarantined) == ("failed", 0)


# -- what is taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("afters", "changes", "why"),
    [
        ([FIRST, FIRST], {}, "named twice"),
        ([m.After(job_id="job-1", at_least=1.0)], {}, "need a metric"),
        ([m.After(job_id="job-1", metric="final_loss")], {}, "needs at_least or at_most"),
        ([replace(FIRST, model=True), m.After(job_id="job-2", model=True)], {}, "or best_by, a metric that says which"),
        ([FIRST], {"best_by": "final_loss"}, "best_by: expected jobs in after"),
        ([], {"best_by": "final_loss"}, "best_by: expected jobs in after"),
        ([replace(FIRST, model=True)], {"weights": True}, "weights of its own"),
    ],
)
def test_dependencies_that_make_no_sense_are_refused(afters, changes, why):
    request = f.job_request(after=afters, best_by=changes.get("best_by"))
    if "weights" in changes:
        request = replace(request, model=replace(request.model, weights="a" * 64))
    with pytest.raises(SpecError, match=why):
        intake.examine(request)


def test_one_that_serves_comes_after_none():
    with pytest.raises(SpecError, match="one that serves begins at once"):
        intake.examine(replace(f.serve_request(), after=[FIRST]))


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (None, "unknown_job"),
        (replace(after(), caller="bob"), "not_yours"),
        (after(f.FUND_FAILED), "dependency_failed"),
        (f.serving_after((1, f.FUNDED)), "bad_request"),
        (replace(after(), job=f.job_request(sealed=True)), "bad_request"),
    ],
)
def test_a_job_that_could_never_begin_is_refused(other, code):
    job = f.job_request(after=[replace(FIRST, model=True)])
    with pytest.raises(ApiError) as refused:
        intake.refuse_dependencies(job, "alice", {"job-1": other} if other else {})
    assert refused.value.code == code


def test_a_model_with_other_parameters_is_refused_by_name():
    other = replace(
        after(), job=f.job_request(model=ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 5}]))
    )
    job = f.job_request(after=[replace(FIRST, model=True)])
    with pytest.raises(ApiError, match=r"its parameter 0.bias is \(3,\), and there it is \(5,\)"):
        intake.refuse_other_shapes(job, {"job-1": other})
    intake.refuse_other_shapes(job, {"job-1": after()})
    intake.refuse_other_shapes(f.job_request(after=[FIRST]), {"job-1": other})


# -- at a central ------------------------------------------------------------------------------------------


async def test_a_job_goes_to_a_node_as_soon_as_the_one_before_it_is_delivered(scheduling):
    await scheduling.dispatch._register(register())
    await scheduling.job("job-1", f.FUNDED)
    await scheduling.job("job-2", f.FUNDED, after=[replace(FIRST, model=True)])
    await scheduling.until(lambda: scheduling.world.jobs["job-1"].status == "leased")
    held = scheduling.world.jobs["job-1"].attempts[-1]
    await scheduling.say(subjects.job_event("job-1"), f.completed(node_id=held.node_id))
    await scheduling.until(lambda: scheduling.world.jobs["job-2"].status == "leased")
    assert scheduling.world.jobs["job-2"].job.model.weights == MODEL
    assert (await kinds_of(scheduling, "job-2"))[-2:] == ["DependenciesMet", "Leased"]


async def test_all_that_would_come_after_a_failure_is_cancelled_link_by_link(scheduling):
    await scheduling.job("job-1", f.FUNDED)
    for number in (2, 3, 4):
        await scheduling.job(f"job-{number}", f.FUNDED, after=[m.After(job_id=f"job-{number - 1}")])
    await scheduling.say(subjects.job_event("job-1"), f.CANCELLED)
    await scheduling.until(lambda: not scheduling.world.awaiting)
    for number in (2, 3, 4):
        job = scheduling.world.jobs[f"job-{number}"]
        assert (job.status, job.outcome) == ("settling", "cancelled")
        assert f"job-{number - 1}, which it comes after, has been cancelled" in job.error


async def test_a_central_that_comes_later_lets_begin_what_the_one_before_it_left(broker):
    first = await SmallCentral.start(broker, "central-a")
    await first.job("job-1", *TRAINED)
    await first.job("job-2", f.FUNDED, after=[FIRST])
    await first.close()
    later = await SmallCentral.start(broker, "central-b", scheduling=True)
    try:
        await later.until(lambda: later.world.jobs["job-2"].status == "queued")
    finally:
        await later.close()


async def test_two_centrals_let_a_job_begin_once(central, other):
    await central.job("job-1", *TRAINED)
    await central.job("job-2", f.FUNDED, after=[FIRST])
    await other.log.catch_up()
    await central.dispatch._decide_dependents()
    await other.dispatch._decide_dependents()  # it has not read what the first wrote
    await other.log.catch_up()
    assert (await kinds_of(central, "job-2"))[-2:] == ["Funded", "DependenciesMet"]
    assert other.world.quarantined == 0


async def test_a_repeated_submit_of_a_job_that_has_begun_with_a_model_is_known(central):
    await central.job("job-1", *TRAINED)
    await central.job("job-2", f.FUNDED, m.DependenciesMet(weights=MODEL), after=[replace(FIRST, model=True)])
    ask = m.SubmitRequest(job=f.job_request(after=[replace(FIRST, model=True)]), job_id="job-2")
    assert api_of(central)._known("job-2", ask, "alice").duplicate


async def test_who_asks_hears_what_a_job_waits_for(central):
    await central.job("job-1", f.FUNDED)
    await central.job("job-2", f.FUNDED, after=[FIRST])
    reply = await api_of(central)._explain("alice", m.JobRef(job_id="job-2"))
    assert (reply.status, reply.waiting_for) == ("waiting", "the jobs it comes after: job-1 (queued)")


# -- whatever the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_in_any_order_of_ends_every_job_of_a_random_graph_begins_after_its_own_or_is_cancelled(seed):
    dice, log, ids = random.Random(seed), Log(), [f"job-{number}" for number in range(12)]
    for number, job_id in enumerate(ids):
        names = dice.sample(ids[:number], dice.randint(0, min(3, number)))
        log.job(f.submitted(job_id, after=[m.After(job_id=name) for name in names]), f.FUNDED, job_id=job_id)
    world, failed = log.world, set()
    while open_ := [job_id for job_id in ids if world.jobs[job_id].outcome is None]:
        known = {job_id for job_id in world.awaiting if dependencies.due(world.jobs[job_id], world.jobs)}
        assert world.decided == known  # looked at once more
        for job_id in sorted(known):
            log.job(dependencies.due(world.jobs[job_id], world.jobs), job_id=job_id)
        able = [job_id for job_id in open_ if jobs.waits(world.jobs[job_id])]
        if not able:
            continue
        job_id = dice.choice(able)
        before = [world.jobs[each.job_id] for each in world.jobs[job_id].job.after]
        assert all(each.outcome == "completed" for each in before)
        if dice.random() < 0.2:
            failed.add(job_id)
            log.job(f.leased(), f.lost(deterministic=True, sole=True), job_id=job_id)
        else:
            log.job(f.leased(), f.completed(), job_id=job_id)
    assert (world.quarantined, world.awaiting, world.dependents) == (0, set(), {})
    for job_id in ids:
        job = world.jobs[job_id]
        doomed = any(world.jobs[each.job_id].outcome != "completed" for each in job.job.after)
        assert job.outcome == ("cancelled" if doomed else "failed" if job_id in failed else "completed")
