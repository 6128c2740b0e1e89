"""Which replica is called and which is sent back: the rules, and two centrals that decide at once."""

import pytest
from msgspec.structs import replace

from cyxcentral import intake, jobfold, jobrules, jobs, scaling
from cyxcore.errors import SpecError
from cyxnet import messages as m
from tests.central import facts as f
from tests.central.centrals import SmallCentral, register
from tests.central.test_deployments import served

SPEC = m.ServeSpec(deployment=f.DEPLOYMENT, format="cyxmodel", seconds=f.HOUR_S, least=1, most=3)


def replica(number, *events, **changes):
    job = jobfold.evolve(None, f.submitted(f"job-{number}", **served(**changes)), 0)
    for event in (f.FUNDED, *events):
        assert jobrules.illegal(job, event) is None, (job.status, event)
        job = jobfold.evolve(job, event, 0)
    return job


READY = (f.leased(), f.STARTED)
CALLED = f.CALLED
BOUNDS = {"least": 1, "most": 3, "seconds": f.HOUR_S}


def fleet(*kinds, **changes):
    """working: ready and none that stood by; called: one that did; loading; standby."""
    events = {
        "working": (*READY,),
        "called": (CALLED, *READY),
        "loading": (f.leased(),),
        "standby": (),
        "paused": (f.PAUSED,),
        "waiting": (CALLED,),  # for a node with room
        "restarting": (*READY, f.lost(code="node_lost")),
        "asleep": (f.PAUSED,),  # it stands by, and its owner paused it
    }
    return [
        replica(number, *events[kind], standby=kind in ("called", "standby", "waiting", "asleep"), **(BOUNDS | changes))
        for number, kind in enumerate(kinds, start=1)
    ]


def wish(replicas, *waiting, spare_ms=0.0, now_ms=0):
    """What is decided when so many questions are in flight at each that is ready; None: nothing."""
    at_work = [job for job in replicas if not job.standby and job.current]
    said = {
        (job.job_id, job.attempt): m.RunRef(job_id=job.job_id, attempt=job.attempt, waiting=count)
        for job, count in zip(at_work, waiting, strict=False)
    }
    found = scaling.wish(replicas, scaling.load(replicas, said, now_ms), spare_ms)
    return found and ("+" if isinstance(found.event, m.ScaledUp) else "-", found.job_id)


@pytest.mark.parametrize(
    ("kinds", "waiting", "expected"),
    [
        (["working", "standby", "standby"], [8], None),
        (["working", "standby", "standby"], [9], ("+", "job-2")),
        (["working", "called", "standby"], [8, 8], None),
        (["working", "called", "standby"], [20, 0], ("+", "job-3")),
        (["working", "called", "called", "standby"], [900, 900, 900], None),  # most
        (["working", "standby", "standby"], [], None),  # its load is not known
        (["loading", "working", "standby"], [0, 900], None),  # one more is on its way
        (["standby", "standby"], [], ("+", "job-1")),  # those that were at work are gone
        (["working", "waiting", "standby"], [900], None),  # one more was called, and has no node yet
        (["paused", "standby"], [], None),  # by its owner's wish
        (["asleep", "standby"], [], ("+", "job-2")),  # who is paused would not come
        (["asleep"], [], None),
    ],
)
def test_one_is_called_when_too_much_is_in_flight_for_those_at_work(kinds, waiting, expected):
    assert wish(fleet(*kinds), *waiting) == expected


def test_the_client_says_how_much_is_too_much():
    assert wish(fleet("working", "standby", concurrency=2), 3) == ("+", "job-2")
    assert wish(fleet("working", "standby", concurrency=100), 99) is None


@pytest.mark.parametrize(
    ("kinds", "waiting", "spare_ms", "expected"),
    [
        (["working", "called", "called"], [1, 1, 1], 119_999, None),
        (["working", "called", "called"], [1, 1, 1], 120_000, ("-", "job-3")),
        (["working", "called"], [8, 1], 120_000, None),
        (["working", "waiting"], [1], 120_000, ("-", "job-2")),  # no node had room for it, and it is not needed now
        (["working", "called", "waiting"], [9, 1], 120_000, ("-", "job-3")),
        (["working", "waiting", "called"], [9, 1], 120_000, ("-", "job-2")),  # who answers stays
        (["restarting", "called"], [1], 10**9, None),  # else nobody answered
        (["restarting", "called", "called"], [1, 1], 10**9, ("-", "job-3")),
        (["paused", "called"], [1], 10**9, None),
        (["waiting", "waiting"], [], 10**9, None),  # nobody could say how much there is to do
        (["working"], [0], 10**9, None),
        (["working", "working"], [0, 0], 10**9, None),  # none of these was ever called
    ],
)
def test_one_is_sent_back_when_fewer_would_have_done_for_long(kinds, waiting, spare_ms, expected):
    assert wish(fleet(*kinds), *waiting, spare_ms=spare_ms) == expected


def test_a_deployment_without_bounds_is_left_alone():
    assert wish(fleet("working", "working", least=0, most=0), 900, 900) is None


def test_who_is_nearly_over_is_followed_in_time_by_one_that_stands_by():
    replicas = fleet("working", "standby", most=1)
    end_ms = f.HOUR_S * 1000
    assert wish(replicas, 0, now_ms=end_ms - scaling.LEAD_MS - 1) is None
    assert wish(replicas, 0, now_ms=end_ms - scaling.LEAD_MS) == ("+", "job-2")
    assert wish(fleet("working", "standby", most=1, seconds=8), 0, now_ms=6_000) == ("+", "job-2")


def test_since_when_fewer_would_do_is_counted_anew_when_others_are_at_work():
    memory, less = scaling.Scaling(), scaling.Load(("a", "b"), 0, 1)
    assert [memory.spare_ms("d", less, at_ms) for at_ms in (5.0, 9.0)] == [0.0, 4.0]
    assert memory.spare_ms("d", scaling.Load(("a", "c"), 0, 1), 10.0) == 0.0
    assert memory.spare_ms("d", scaling.Load(("a", "c"), 9, 2), 11.0) == 0.0
    assert memory.spare_ms("d", scaling.Load(("a", "c"), 0, 1), 15.0) == 0.0


@pytest.mark.parametrize("change", [{"least": 2, "most": 1}, {"most": 1}, {"standby": True}, {"least": 1}])
def test_bounds_that_say_nothing_are_refused(change):
    request = f.job_request(**served(**change))
    with pytest.raises(SpecError, match="expected .*least"):
        intake.examine(request)


# -- the life of one ----------------------------------------------------------------------------------


def test_one_that_stands_by_waits_for_no_node_until_it_is_called():
    job = replica(1, standby=True, **BOUNDS)
    assert (job.status, jobs.waits(job)) == ("paused", False)
    assert jobrules.illegal(job, f.leased()) == "the job is paused, not funding or queued"
    job = jobfold.evolve(job, CALLED, 0)
    assert (job.status, jobs.waits(job)) == ("queued", True)


def test_its_owner_cannot_call_it_by_a_resume():
    job = replica(1, f.RESUMED, standby=True, **BOUNDS)
    assert (job.status, jobs.waits(job)) == ("paused", False)


def test_one_that_is_sent_back_is_drained_paid_for_its_time_and_can_be_called_again():
    timed = [(1, f.FUNDED), (2, CALLED), (3, f.leased()), (4, f.STARTED), (64, m.ScaledDown(reason="test"))]
    job = f.serving_after(*timed, serve=replace(SPEC, standby=True))
    assert job.halts and job.status == "leased"
    job = jobfold.evolve(job, f.lost(code=jobs.PAUSED), 66_000)
    assert (job.status, job.served_ms(10**9), jobs.tried(job)) == ("paused", 62_000, 0)
    job = jobfold.evolve(job, CALLED, 70_000)
    assert jobrules.illegal(job, f.leased(attempt=2)) is None
    cancelled = jobfold.evolve(job, f.CANCELLED, 71_000)
    assert cancelled.payees == (f.payee(f.AMOUNT * 62_000 // 3_600_000),)


def test_one_that_is_called_while_it_is_drained_goes_on_as_the_next_attempt():
    timed = [(1, f.FUNDED), (2, CALLED), (3, f.leased()), (4, f.STARTED), (5, m.ScaledDown(reason="t")), (6, CALLED)]
    job = jobfold.evolve(f.serving_after(*timed, serve=replace(SPEC, standby=True)), f.lost(code=jobs.PAUSED), 7_000)
    assert (job.status, job.not_before_ms) == ("queued", 7_000)


def test_none_is_sent_back_that_was_not_bought_to_stand_by():
    job = replica(1, *READY, **BOUNDS)
    assert jobrules.illegal(job, m.ScaledDown(reason="t")) == "it is none that was called"
    assert jobrules.illegal(job, CALLED) == "it does not stand by"


# -- at a central -----------------------------------------------------------------------------------------


async def test_two_centrals_who_decide_at_once_never_have_more_at_work_than_most(broker):
    """Both see the same load; each writes what it decided on what it had read."""
    two = BOUNDS | {"most": 2}
    pair = [await SmallCentral.start(broker, f"central-{name}") for name in "ab"]
    one, other = pair
    try:
        await one.dispatch._register(register())
        await one.job(
            "job-1", f.FUNDED, f.leased(node_id=register().node_id), f.STARTED, **served(**BOUNDS | {"most": 2})
        )
        for number in (2, 3):
            await one.job(f"job-{number}", f.FUNDED, **served(standby=True, **two))
        await other.log.catch_up()
        for central in pair:
            central.dispatch.replicas["job-1", 1] = m.RunRef(job_id="job-1", attempt=1, waiting=900)
        await one.dispatch._scale(None)
        await other.dispatch._scale(None)  # it has not read what the first wrote
        for central in pair:
            await central.log.catch_up()
            at_work = [job for job in central.world.jobs.values() if not job.standby]
            assert sorted(job.job_id for job in at_work) == ["job-1", "job-2"]
    finally:
        for central in pair:
            await central.close()


async def test_of_a_deployment_that_is_over_no_replica_is_remembered(central):
    await central.job("job-1", f.FUND_FAILED, **served(**BOUNDS))
    assert central.world.replicas == {}
