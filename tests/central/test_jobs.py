"""The life of a job."""

import random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcentral import earnings, jobfold, jobrules, jobs, money, views
from cyxnet import messages as m
from tests.central import facts as f

STANDBY = replace(f.serve_request().serve, standby=True, least=1, most=2)
STATES = {
    "none": None,
    "funding": f.job_after(),
    "funding, cancel wanted": f.job_after(f.CANCELLED),
    "leased, not funded": f.job_after(f.leased()),
    "funding, pause wanted": f.job_after(f.PAUSED),
    "leased, not funded, pause wanted": f.job_after(f.leased(), f.PAUSED),
    "queued": f.job_after(f.FUNDED),
    "leased": f.job_after(f.FUNDED, f.leased()),
    "leased, pause wanted": f.job_after(f.FUNDED, f.leased(), f.PAUSED),
    "leased, deadline near": f.job_after(f.FUNDED, f.leased(), f.DEADLINE_NEAR),
    "paused": f.job_after(f.FUNDED, f.PAUSED),
    "settling": f.job_after(f.FUNDED, f.leased(), f.completed()),
    "completed": f.job_after(f.FUNDED, f.leased(), f.completed(), f.SIGNED_SETTLE, f.settled()),
    "failed": f.job_after(f.FUND_FAILED),
    "cancelled": f.job_after(f.FUNDED, f.CANCELLED, f.SIGNED_SETTLE, f.settled(0, 0, f.AMOUNT)),
    "standby": f.serving_after((1, f.FUNDED), serve=STANDBY),
    "standby, not funded": f.serving_after(serve=STANDBY),
    "called": f.serving_after((1, f.FUNDED), (2, f.CALLED), serve=STANDBY),
    "called, leased": f.serving_after((1, f.FUNDED), (2, f.CALLED), (3, f.leased()), serve=STANDBY),
    "sent back, leased": f.serving_after(
        (1, f.FUNDED), (2, f.CALLED), (3, f.leased()), (4, f.SENT_BACK), serve=STANDBY
    ),
}
AFTER = [m.After(job_id="job-0")]
STATES |= {
    "waiting": f.job_after(f.FUNDED, after=AFTER),
    "waiting, not funded": f.job_after(after=AFTER),
    "waiting, paused": f.job_after(f.FUNDED, f.PAUSED, after=AFTER),
}
TO_CHECK = [f.FUNDED, f.leased(), f.completed(segment=f.segment())]
FALSE, SECOND = f.finding("9" * 64), m.FIRST_CHECK + 1
STATES |= {
    "checking": f.job_after(*TO_CHECK),
    "checking, leased": f.job_after(*TO_CHECK, f.check_leased()),
    "checking, one run differs": f.job_after(*TO_CHECK, f.check_leased(), m.CheckDiffers(finding=FALSE)),
    "checking, second run": f.job_after(
        *TO_CHECK, f.check_leased(), m.CheckDiffers(finding=FALSE), f.check_leased(SECOND)
    ),
}
SIGNED_DEPOSIT = m.TransactionSigned(purpose="deposit", signed=f.signed())
EVENTS = {
    "Submitted": f.submitted(),
    "SignedDeposit": SIGNED_DEPOSIT,
    "SignedSettle": f.SIGNED_SETTLE,
    "Funded": f.FUNDED,
    "FundFailed": f.FUND_FAILED,
    "Leased": f.leased(),
    "Started": f.STARTED,
    "Checkpointed": f.checkpointed(),
    "LeaseLost": f.lost(),
    "Completed": f.completed(),
    "TimeUsed": m.TimeUsed(attempt=1),
    "ScaledUp": f.CALLED,
    "ScaledDown": f.SENT_BACK,
    "DependenciesMet": m.DependenciesMet(),
    "DependencyFailed": m.DependencyFailed(job_id="job-0", reason="job-0 has failed"),
    "CancelRequested": f.CANCELLED,
    "PauseRequested": f.PAUSED,
    "ResumeRequested": f.RESUMED,
    "PriorityChanged": f.PRIORITY_CHANGED,
    "DeadlineNear": f.DEADLINE_NEAR,
    "Settled": f.settled(),
    "Refunded": f.REFUNDED,
    "CheckLeased": f.check_leased(),
    "CheckLeased, second": f.check_leased(SECOND),
    "CheckLost": m.CheckLost(number=m.FIRST_CHECK, code="node_lost", reason="silent"),
    "CheckLost, second": m.CheckLost(number=SECOND, code="node_lost", reason="silent"),
    "Checked": m.Checked(finding=f.finding()),
    "Checked, by the second": m.Checked(finding=f.finding(number=SECOND)),
    "Checked, of something else": m.Checked(finding=FALSE),
    "Checked, by somebody else": m.Checked(finding=f.finding(node_id="node-x")),
    "CheckDiffers": m.CheckDiffers(finding=FALSE),
    "CheckDiffers, of the same": m.CheckDiffers(finding=f.finding()),
    "Rejected": f.rejected(FALSE, f.finding("9" * 64, SECOND)),
    "Rejected, for another node": f.rejected(FALSE, f.finding("9" * 64, SECOND), node_id="node-b"),
    "Rejected, by one run": m.Rejected(attempt=1, node_id="node-a", segment=f.segment(), findings=[FALSE]),
    "Rejected, by two that differ": f.rejected(FALSE, f.finding("8" * 64, SECOND)),
    "Rejected, by words alone": m.Rejected(
        attempt=1, node_id="node-a", segment=f.segment(), findings=[], impossible="it cannot be"
    ),
    "CheckGivenUp": m.CheckGivenUp(reason="nobody came"),
    "CheckGivenUp, two differ": m.CheckGivenUp(reason=jobrules.TWO_RUNS_DIFFER, finding=f.finding("8" * 64, SECOND)),
}
UNFUNDED = {"funding": {"SignedDeposit", "CancelRequested", "DeadlineNear"}, "failed": {"FundFailed", "Refunded"}}
WISHES = {"PauseRequested", "ResumeRequested", "PriorityChanged"}
ENDS_UNFUNDED = {"failed": {"FundFailed", "Refunded"}, "funding": {"LeaseLost", "CancelRequested", "DeadlineNear"}}
STOPPED = {"CancelRequested", "DeadlineNear"}
HELD = {"Started", "Checkpointed", "DeadlineNear"} | WISHES
NEXT = {  # state -> the status that follows -> the events that lead there; any other cannot happen
    "none": {"funding": {"Submitted"}},
    "funding": {
        **UNFUNDED,
        "funding": UNFUNDED["funding"] | WISHES,
        "queued": {"Funded"},
        "leased": {"Leased"},
    },
    "funding, cancel wanted": {
        "funding": {"SignedDeposit"},
        "settling": {"Funded"},
        "cancelled": {"FundFailed", "Refunded"},
    },
    "funding, pause wanted": {**UNFUNDED, "funding": UNFUNDED["funding"] | WISHES, "paused": {"Funded"}},
    "leased, not funded": {**ENDS_UNFUNDED, "leased": {"SignedDeposit", "Funded"} | WISHES},
    "leased, not funded, pause wanted": {**ENDS_UNFUNDED, "leased": {"SignedDeposit", "Funded"} | WISHES},
    "queued": {
        "queued": {"ResumeRequested", "PriorityChanged"},
        "leased": {"Leased"},
        "paused": {"PauseRequested"},
        "settling": STOPPED,
    },
    "leased": {"leased": HELD, "queued": {"LeaseLost"}, "settling": {"Completed", "CancelRequested"}},
    "leased, pause wanted": {"leased": HELD, "paused": {"LeaseLost"}, "settling": {"Completed", "CancelRequested"}},
    "leased, deadline near": {
        "leased": {"Started", "Checkpointed"},
        "settling": {"LeaseLost", "Completed", "CancelRequested"},
    },
    "paused": {"paused": {"PauseRequested", "PriorityChanged"}, "queued": {"ResumeRequested"}, "settling": STOPPED},
    "settling": {"settling": {"SignedSettle"}, "completed": {"Settled"}, "failed": {"Refunded"}},
    "completed": {},
    "failed": {},
    "cancelled": {},
    "standby": {"paused": WISHES, "queued": {"ScaledUp"}, "settling": STOPPED},
    "standby, not funded": {
        **UNFUNDED,
        "funding": UNFUNDED["funding"] | WISHES | {"ScaledUp"},
        "paused": {"Funded"},
    },
    "called": {
        "queued": {"ResumeRequested", "PriorityChanged"},
        "leased": {"Leased"},
        "paused": {"PauseRequested", "ScaledDown"},
        "settling": STOPPED,
    },
    "called, leased": {"leased": {"Started", "ScaledDown"} | WISHES, "queued": {"LeaseLost"}, "settling": STOPPED},
    "sent back, leased": {"leased": {"Started", "ScaledUp"} | WISHES, "paused": {"LeaseLost"}, "settling": STOPPED},
    "waiting": {
        "waiting": {"ResumeRequested", "PriorityChanged"},
        "queued": {"DependenciesMet"},
        "paused": {"PauseRequested"},
        "settling": STOPPED | {"DependencyFailed"},
    },
    "waiting, not funded": {
        **UNFUNDED,
        "funding": UNFUNDED["funding"] | WISHES | {"DependenciesMet", "DependencyFailed"},
        "waiting": {"Funded"},
    },
    "waiting, paused": {
        "paused": {"PauseRequested", "PriorityChanged", "DependenciesMet"},
        "waiting": {"ResumeRequested"},
        "settling": STOPPED | {"DependencyFailed"},
    },
    "checking": {"checking": {"CheckLeased"}, "settling": {"CheckGivenUp"}},
    "checking, leased": {"checking": {"CheckLost", "CheckDiffers"}, "settling": {"Checked", "CheckGivenUp"}},
    "checking, one run differs": {"checking": {"CheckLeased, second"}, "settling": {"CheckGivenUp"}},
    "checking, second run": {
        "checking": {"CheckLost, second"},
        "settling": {"Checked, by the second", "CheckGivenUp", "CheckGivenUp, two differ"},
        "queued": {"Rejected"},
    },
}


def test_every_kind_of_event_and_every_status_is_among_those_tried():
    assert {type(event) for event in EVENTS.values()} == set(get_args(m.JobEvent))
    assert jobrules.RULES.keys() == jobfold.AFTER.keys() == set(get_args(m.JobEvent)) - {m.Submitted}
    assert {job.status for job in STATES.values() if job} == set(get_args(m.JobStatus))


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_each_event_is_possible_in_exactly_the_states_of_the_table_and_leads_where_it_says(state, event):
    follows = next((status for status, events in NEXT[state].items() if event in events), None)
    assert (jobrules.illegal(STATES[state], EVENTS[event]) is None) == (follows is not None)
    if follows:
        assert jobfold.evolve(STATES[state], EVENTS[event], 9_000).status == follows


def test_a_job_that_goes_well_pays_its_whole_amount():
    job = f.job_after(f.FUNDED, f.leased(), f.STARTED, f.completed())
    assert (job.status, job.outcome, job.pay_base_units) == ("settling", "completed", f.AMOUNT)
    assert job.payees == (f.payee(),)


def test_a_lost_lease_goes_back_to_the_queue_with_a_growing_back_off():
    job = f.job_after(f.FUNDED, f.leased(), f.lost())
    assert (job.status, job.not_before_ms) == ("queued", 3_000)
    job = f.job_after(f.FUNDED, f.leased(), f.lost(), f.leased(2), f.lost(2))
    assert (job.status, job.not_before_ms) == ("queued", 5_000 + 1_000)


def test_the_last_attempt_lost_is_a_refund():
    events = [f.FUNDED]
    for attempt in (1, 2, 3):
        events += [f.leased(attempt), f.lost(attempt)]
    job = f.job_after(*events)
    assert (job.status, job.outcome, job.pay_base_units, job.error) == ("settling", "failed", 0, "it died")
    assert job.payees == ()


def test_each_loss_doubles_the_back_off_up_to_16_s():
    events, rests = [], []
    for attempt in range(1, 9):
        events += [f.leased(attempt), f.lost(attempt)]
        job = jobfold.evolve(None, f.submitted(max_attempts=10), 0)
        for event in (f.FUNDED, *events):
            job = jobfold.evolve(job, event, 7_000)
        rests.append(job.not_before_ms - 7_000)
    assert rests == [0, 1_000, 2_000, 4_000, 8_000, 16_000, 16_000, 16_000]


def test_a_job_that_failed_says_why_and_where_its_last_checkpoint_is():
    job = f.job_after(f.FUNDED, f.leased(), f.checkpointed(step=40), f.lost(deterministic=True, sole=True))
    view = views.job_view(job, None, None)
    assert (job.outcome, view.error, view.checkpoint) == ("failed", "it died", f.checkpoint(40))


def test_a_fault_that_two_nodes_find_is_the_jobs_own_and_not_tried_again():
    first = f.job_after(f.FUNDED, f.leased(), f.lost(deterministic=True))
    assert (first.status, first.outcome) == ("queued", None)
    events = [f.FUNDED, f.leased(), f.lost(deterministic=True), f.leased(2, "node-b")]
    job = f.job_after(*events, f.lost(2, deterministic=True))
    assert (job.status, job.outcome) == ("settling", "failed")
    assert f.job_after(*events, f.lost(2, deterministic=True, code="another")).status == "queued"


def test_a_refused_lease_costs_neither_an_attempt_nor_time():
    job = f.job_after(f.FUNDED, f.leased(), f.lost(code="refused"))
    assert (job.status, job.not_before_ms, jobs.tried(job)) == ("queued", job.changed_at_ms, 0)
    again = f.job_after(f.FUNDED, f.leased(), f.lost(code="refused"), f.leased(2, "node-b"), f.lost(2))
    assert again.not_before_ms == again.changed_at_ms  # the first real loss, as without the refusal


def test_refusals_in_a_row_rest_longer_and_longer():
    events, rests = [f.FUNDED], []
    for number in range(1, 5):
        events += [f.leased(number), f.lost(number, code="refused")]
        job = f.job_after(*events)
        rests.append(job.not_before_ms - job.changed_at_ms)
    assert rests == [0, 1_000, 2_000, 4_000]


def test_one_node_cannot_confirm_itself():
    events = [f.FUNDED, f.leased(), f.lost(deterministic=True), f.leased(2), f.lost(2, deterministic=True)]
    assert f.job_after(*events).status == "queued"


def test_where_no_other_node_could_confirm_a_fault_one_is_believed():
    job = f.job_after(f.FUNDED, f.leased(), f.lost(deterministic=True, sole=True))
    assert (job.status, job.outcome) == ("settling", "failed")


def test_a_job_leased_before_its_deposit_is_final_goes_on_when_it_is():
    job = f.job_after(f.leased(), f.FUNDED)
    assert (job.status, job.funded) == ("leased", True)
    assert f.job_after(f.leased(), f.lost()).status == "funding"
    assert f.job_after(f.leased(), f.lost(), f.FUNDED).status == "queued"


def test_a_deposit_that_fails_ends_the_lease_too():
    job = f.job_after(f.leased(), f.FUND_FAILED)
    assert (job.status, job.current, job.attempts[-1].lost.code) == ("failed", None, "unfunded")


def test_a_job_that_failed_before_its_deposit_landed_is_refunded_when_it_lands():
    job = f.job_after(f.leased(), f.lost(deterministic=True, sole=True))
    assert job.status == "funding"
    assert jobrules.illegal(job, f.leased(2))
    refunded = jobfold.evolve(job, f.FUNDED, 9_000)
    assert (refunded.status, refunded.outcome, refunded.pay_base_units) == ("settling", "failed", 0)


def test_the_next_attempt_goes_on_from_the_newest_checkpoint():
    job = f.job_after(f.FUNDED, f.leased(), f.checkpointed(step=30), f.checkpointed(step=50), f.lost())
    assert job.checkpoint == f.checkpoint(50)
    assert "newest" in jobrules.illegal(job, f.leased(2))
    resumed = jobfold.evolve(job, f.leased(2, "node-b", resume=f.checkpoint(50)), 9_000)
    assert resumed.checkpoint == f.checkpoint(50)
    assert "stored already" in jobrules.illegal(resumed, f.checkpointed(2, 50, "node-b"))
    assert jobrules.illegal(resumed, f.checkpointed(2, 60, "node-b")) is None
    assert "100 steps" in jobrules.illegal(resumed, f.checkpointed(2, 60, "node-b", steps=200))


def test_a_job_that_ran_out_of_memory_asks_for_a_quarter_more_than_it_had_and_never_for_less_than_before():
    out = m.LeaseLost(attempt=1, code="out_of_memory", reason="too little", memory_bytes=2**30)
    job = f.job_after(f.FUNDED, f.leased(), out)
    assert (job.memory_bytes, jobs.tried(job)) == (2**30 + 2**28, 1)
    assert jobs.ran_out_on(job, "node-a") and not jobs.ran_out_on(job, "node-b")
    again = f.job_after(f.FUNDED, f.leased(), out, f.leased(2, "node-b"), replace(out, attempt=2, memory_bytes=2**20))
    assert again.memory_bytes == 2**30 + 2**28


def test_a_job_that_ran_out_of_memory_of_its_gpu_asks_for_a_larger_one_in_whole_steps_and_for_no_larger_machine():
    out = m.LeaseLost(attempt=1, code="out_of_memory", reason="too little", gpu_memory_bytes=8 * 2**30 + 1)
    before = f.job_after(f.FUNDED, f.leased())
    job = f.job_after(f.FUNDED, f.leased(), out)
    assert (job.memory_bytes, job.gpu_memory_bytes) == (before.memory_bytes, 10 * 2**30 + 2**28)
    assert jobs.ran_out_on(job, "node-a") and not jobs.ran_out_on(job, "node-b")


def test_a_job_that_is_checked_is_paid_once_its_segment_was_found_right():
    job = f.job_after(*TO_CHECK)
    assert (job.status, job.outcome, job.payees, job.holder) == ("checking", None, (), None)
    leased = jobfold.evolve(job, f.check_leased(), 9_000)
    assert (leased.holder, leased.current, leased.attempt) == ("node-c", None, 1)  # no attempt of the job
    done = jobfold.evolve(leased, m.Checked(finding=f.finding()), 9_500)
    assert (done.status, done.outcome, done.payees, done.holder) == ("settling", "completed", (f.payee(),), None)


def test_what_two_runs_found_false_is_paid_nothing_and_goes_to_another_node():
    kept = f.segment(end_step=30, sha256="f" * 64, size=77)
    events = [f.FUNDED, f.leased(), f.checkpointed(step=30, kept=True), f.checkpointed(step=50)]
    job = f.job_after(*events, f.completed(segment=kept), f.check_leased(), m.CheckDiffers(finding=FALSE))
    assert (job.kept, job.status) == (kept, "checking")
    job = jobfold.evolve(job, f.check_leased(SECOND, "node-d"), 9_000)
    event = f.rejected(FALSE, f.finding("9" * 64, SECOND, "node-d"), of=kept)
    assert jobrules.illegal(job, event) is None
    job = jobfold.evolve(job, event, 9_500)
    assert (job.status, job.completed, job.checkpoint, job.kept, job.check) == ("queued", None, None, None, None)
    assert jobs.wronged(job, "node-a") and not jobs.wronged(job, "node-b")
    assert jobs.tried(job) == 1 and jobs.results(job) == []
    assert "node-a" in job.error
    assert [attempt.rejected for attempt in job.attempts] == [event]
    job = jobfold.evolve(job, f.leased(2, "node-b", "Q" * 43), 10_000)
    done = jobfold.evolve(job, f.completed(2, "node-b"), 11_000)
    assert done.payees == (f.payee(wallet="Q" * 43, attempt=2),)


def test_what_a_later_attempt_built_on_a_false_state_is_void_and_what_came_before_stays():
    states = [f.checkpoint(30), f.checkpoint(50)]
    kept = f.segment(2, states[0], 50, "f" * 64, 77)
    events = [f.FUNDED, f.leased(), f.checkpointed(step=30), f.lost(), f.leased(2, "node-b", "B" * 43, states[0])]
    events += [f.checkpointed(2, 50, "node-b", kept=True), f.lost(2), f.leased(3, "node-d", "D" * 43, states[1])]
    events += [f.completed(3, "node-d", segment=kept), f.check_leased(), m.CheckDiffers(finding=FALSE)]
    events += [f.check_leased(SECOND), f.rejected(FALSE, f.finding("9" * 64, SECOND), 2, "node-b", kept)]
    job = jobfold.evolve(f.job_after(*events[:-1]), events[-1], 20_000)
    assert (job.status, job.checkpoint, jobs.tried(job)) == ("queued", states[0], 2)  # node-d did nothing wrong
    assert jobs.wronged(job, "node-b") and not jobs.wronged(job, "node-d")
    done = f.job_after(*events, f.leased(4, "node-e", "E" * 43, states[0]), f.completed(4, "node-e"))
    assert {payee.wallet: payee.pay_base_units for payee in done.payees} == {
        f.NODE_WALLET: f.AMOUNT * 30 // 100,
        "E" * 43: f.AMOUNT - f.AMOUNT * 30 // 100,
    }


def test_whose_work_was_rejected_is_paid_for_none_of_it():
    half = f.checkpoint(50)
    events = [f.FUNDED, f.leased(), f.checkpointed(step=50), f.lost(), f.leased(2, resume=half)]
    events += [f.completed(2, segment=f.segment(2, half)), f.check_leased(), m.CheckDiffers(finding=FALSE)]
    events += [f.check_leased(SECOND), f.rejected(FALSE, f.finding("9" * 64, SECOND), 2, of=f.segment(2, half))]
    job = f.job_after(*events)
    assert job.checkpoint is None  # what it stored before is not believed either
    done = f.job_after(*events, f.leased(3, "node-b", "Q" * 43), f.completed(3, "node-b"))
    assert done.payees == (f.payee(wallet="Q" * 43, attempt=3),)


def test_who_built_nothing_on_what_was_rejected_is_paid_for_it_and_may_still_be_checked():
    half, kept = f.checkpoint(50), f.segment(2, None, 50, "f" * 64, 77)
    events = [f.FUNDED, f.leased(), f.lost(code="paused"), f.leased(2, "node-b", "B" * 43)]  # nothing stored at first
    events += [f.checkpointed(2, 50, "node-b", kept=True), f.lost(2), f.leased(3, resume=half)]
    events += [f.completed(3, segment=f.segment(3, half)), f.check_leased(), m.CheckDiffers(finding=FALSE)]
    events += [f.check_leased(SECOND), f.rejected(FALSE, f.finding("9" * 64, SECOND), 3, of=f.segment(3, half))]
    job = f.job_after(*events)
    assert (job.status, job.checkpoint, job.kept) == ("queued", half, kept)
    assert [attempt.rejected is not None for attempt in job.attempts] == [True, False, True]
    done = f.job_after(*events, f.leased(4, "node-e", "E" * 43, half), f.completed(4, "node-e"))
    pay = {payee.wallet: payee.pay_base_units for payee in done.payees}
    assert pay == {"B" * 43: f.AMOUNT // 2, "E" * 43: f.AMOUNT - f.AMOUNT // 2}


def test_a_rejected_job_whose_attempts_are_used_up_or_whose_node_was_asked_for_is_refunded():
    for changes in ({"max_attempts": 1}, {"needs": m.Needs(node_id="node-a")}):
        job = jobfold.evolve(None, f.submitted(**changes), 0)
        for event in (*TO_CHECK, f.check_leased(), m.CheckDiffers(finding=FALSE), f.check_leased(SECOND)):
            assert jobrules.illegal(job, event) is None
            job = jobfold.evolve(job, event, 1)
        job = jobfold.evolve(job, f.rejected(FALSE, f.finding("9" * 64, SECOND)), 2)
        assert (job.status, job.outcome, job.payees) == ("settling", "failed", ())
        assert "is not what its data gives" in job.error


def test_one_run_that_differs_rejects_nothing_and_a_second_that_agrees_with_the_node_has_it_paid():
    job = f.job_after(*TO_CHECK, f.check_leased(), m.CheckDiffers(finding=FALSE), f.check_leased(SECOND))
    paid = jobfold.evolve(job, jobrules.verdict(job, f.finding(number=SECOND)), 9_000)
    assert (paid.outcome, paid.payees) == ("completed", (f.payee(),))
    unclear = jobrules.verdict(job, f.finding("8" * 64, SECOND))
    assert isinstance(unclear, m.CheckGivenUp) and jobrules.illegal(job, unclear) is None
    given_up = jobfold.evolve(job, unclear, 9_000)
    assert (given_up.outcome, given_up.payees, given_up.check.given_up) == (
        "completed",
        (f.payee(),),
        jobrules.TWO_RUNS_DIFFER,
    )


def test_a_start_from_which_no_training_goes_on_is_rejected_when_two_checks_say_so():
    job = f.job_after(*TO_CHECK, f.check_leased())
    first = m.CheckLost(number=m.FIRST_CHECK, code="bad_checkpoint", reason="it cannot be read")
    assert jobrules.impossible(job, first) is first
    job = jobfold.evolve(jobfold.evolve(job, first, 9_000), f.check_leased(SECOND), 9_100)
    silent = m.CheckLost(number=SECOND, code="node_lost", reason="silent")
    assert jobrules.impossible(job, silent) is silent
    event = jobrules.impossible(job, m.CheckLost(number=SECOND, code="bad_checkpoint", reason="it cannot be read"))
    assert isinstance(event, m.Rejected) and jobrules.illegal(job, event) is None
    assert jobfold.evolve(job, event, 9_200).status == "queued"
    other = m.CheckLost(number=SECOND, code="diverged", reason="nan")
    assert jobrules.impossible(job, other) is other  # that is no second word for the first


def test_a_run_that_came_through_a_segment_says_that_it_can_be_trained():
    job = f.job_after(*TO_CHECK, f.check_leased(), m.CheckDiffers(finding=FALSE))
    for number in (SECOND, SECOND + 1):
        job = jobfold.evolve(job, f.check_leased(number), 9_000)
        lost = m.CheckLost(number=number, code="bad_checkpoint", reason="it cannot be read")
        assert jobrules.impossible(job, lost) is lost
        job = jobfold.evolve(job, lost, 9_100)
    assert job.status == "checking"


@pytest.mark.parametrize("code", ["diverged", "bad_data", "shape_mismatch"])
def test_who_delivers_a_model_of_a_job_that_nobody_can_train_is_rejected(code):
    # ten checks ended so, and it was paid
    job = f.job_after(*TO_CHECK, f.check_leased())
    first = m.CheckLost(number=m.FIRST_CHECK, code=code, reason="row 3 is none")
    assert jobrules.impossible(job, first) is first
    job = jobfold.evolve(jobfold.evolve(job, first, 9_000), f.check_leased(SECOND), 9_100)
    event = jobrules.impossible(job, m.CheckLost(number=SECOND, code=code, reason="row 3 is none"))
    assert isinstance(event, m.Rejected) and jobrules.illegal(job, event) is None


def test_a_completion_names_only_a_segment_that_is_kept_or_its_last():
    job = f.job_after(f.FUNDED, f.leased(), f.checkpointed(step=30, kept=True), f.checkpointed(step=50))
    assert jobrules.illegal(job, f.completed(segment=f.segment(start=f.checkpoint(50)))) is None
    assert jobrules.illegal(job, f.completed(segment=f.segment(end_step=30, sha256="f" * 64, size=77))) is None
    assert "not kept" in jobrules.illegal(job, f.completed(segment=f.segment()))


BAD_50 = [
    *[f.FUNDED, f.leased(), f.checkpointed(step=30), f.checkpointed(step=40), f.checkpointed(step=50), f.lost()],
    *[f.leased(2, "node-b", "B" * 43, f.checkpoint(50)), f.lost(2, code="bad_checkpoint", discards=f.checkpoint(50))],
]


def test_from_a_checkpoint_that_cannot_be_used_the_job_goes_back_to_the_one_before_and_then_to_the_start():
    job = f.job_after(*BAD_50)
    assert (job.status, job.checkpoint, jobs.tried(job)) == ("queued", f.checkpoint(40), 1)
    assert job.not_before_ms == job.changed_at_ms
    third = f.leased(3, "node-b", "B" * 43, f.checkpoint(40))
    job = f.job_after(*BAD_50, third, f.lost(3, code="bad_checkpoint", discards=f.checkpoint(40)))
    assert (job.status, job.checkpoint, jobs.tried(job)) == ("queued", None, 1)


def test_only_what_an_attempt_began_from_can_be_discarded():
    job = f.job_after(*BAD_50[:-1])
    assert "another state" in jobrules.illegal(job, f.lost(2, discards=f.checkpoint(40)))


def test_who_makes_the_steps_of_a_lost_checkpoint_again_is_paid_for_them():
    third = [f.leased(3, "node-b", "B" * 43, f.checkpoint(40)), f.checkpointed(3, 50, "node-b"), f.CANCELLED]
    job = f.job_after(*BAD_50, *third)
    assert job.checkpoint == f.checkpoint(50)  # the same state as the one that was bad, stored anew
    assert job.payees == (f.payee(f.AMOUNT * 40 // 100), f.payee(f.AMOUNT * 10 // 100, "B" * 43, 3))


def test_a_state_is_bad_for_every_attempt_that_began_from_it():
    paused = f.lost(2, code="paused")
    again = f.leased(3, "node-c", "D" * 43, f.checkpoint(50))
    job = f.job_after(*BAD_50[:-1], paused, again, f.lost(3, code="bad_checkpoint", discards=f.checkpoint(50)))
    assert job.checkpoint == f.checkpoint(40)


def test_a_job_that_fails_pays_for_the_steps_that_are_stored():
    events = [f.FUNDED, f.leased(), f.checkpointed(step=40), f.lost()]
    events += [f.leased(2, "node-b", "B" * 43, f.checkpoint(40)), f.checkpointed(2, 70, "node-b"), f.lost(2)]
    job = f.job_after(*events, f.leased(3, "node-c", "D" * 43, f.checkpoint(70)), f.lost(3))
    assert (job.status, job.outcome) == ("settling", "failed")
    assert job.payees == (
        f.payee(f.AMOUNT * 40 // 100),
        f.payee(f.AMOUNT * 30 // 100, "B" * 43, 2),
    )


def test_a_job_that_is_completed_on_another_node_pays_both_for_their_steps():
    events = [f.FUNDED, f.leased(), f.checkpointed(step=33), f.lost()]
    job = f.job_after(*events, f.leased(2, "node-b", "B" * 43, f.checkpoint(33)), f.completed(2, "node-b"))
    first = f.AMOUNT * 33 // 100
    assert job.payees == (f.payee(first), f.payee(f.AMOUNT - first, "B" * 43, 2))


def test_a_settlement_pays_no_more_wallets_than_fit_into_one_transaction():
    wallets = [letter * 43 for letter in "BDEFGHJ"]
    events, step = [f.FUNDED], 0
    for number, wallet in enumerate(wallets, 1):
        resume = f.checkpoint(step) if step else None
        events += [f.leased(number, f"node-{number}", wallet, resume)]
        step += number
        events += [f.checkpointed(number, step, f"node-{number}"), f.lost(number, code="node_stopped")]
    job = f.job_after(*events, f.CANCELLED)
    assert [payee.wallet for payee in job.payees] == wallets[:2:-1]
    done = f.job_after(*events, f.leased(8, "node-8", "K" * 43, f.checkpoint(step)), f.completed(8, "node-8"))
    assert [payee.wallet for payee in done.payees] == [*wallets[:3:-1], "K" * 43]
    assert done.pay_base_units == f.AMOUNT


def test_a_pause_stores_a_checkpoint_and_does_not_count_as_a_try():
    events = [f.FUNDED, f.leased(), f.PAUSED, f.checkpointed(), f.lost(code="paused")]
    paused = f.job_after(*events)
    assert (paused.status, paused.checkpoint) == ("paused", f.checkpoint())
    again = f.job_after(*events, f.RESUMED)
    assert (again.status, again.not_before_ms) == ("queued", 6_000)
    for attempt in (2, 3):
        events += [f.RESUMED, f.leased(attempt, resume=f.checkpoint()), f.PAUSED, f.lost(attempt, code="paused")]
    assert f.job_after(*events).status == "paused"


def test_a_pause_taken_back_before_the_run_stopped_lets_the_job_wait_for_a_node_at_once():
    job = f.job_after(f.FUNDED, f.leased(), f.PAUSED, f.RESUMED, f.lost(code="paused"))
    assert (job.status, job.not_before_ms) == ("queued", 5_000)


@pytest.mark.parametrize(
    "events, status",
    [
        ([f.PAUSED], "funding"),
        ([f.PAUSED, f.FUNDED], "paused"),
        ([f.PAUSED, f.FUNDED, f.PAUSED], "paused"),
        ([f.PAUSED, f.FUNDED, f.RESUMED], "queued"),
        ([f.PAUSED, f.RESUMED, f.FUNDED], "queued"),
        ([f.leased(), f.PAUSED, f.FUNDED], "leased"),
        ([f.leased(), f.PAUSED, f.FUNDED, f.lost(code="paused")], "paused"),
        ([f.leased(), f.PAUSED, f.lost(code="paused")], "funding"),
        ([f.leased(), f.PAUSED, f.lost(code="paused"), f.FUNDED], "paused"),
        ([f.PAUSED, f.CANCELLED, f.FUNDED], "settling"),
    ],
)
def test_a_job_paused_before_its_deposit_is_final_is_paused_when_it_is(events, status):
    job = f.job_after(*events)
    assert job.status == status
    assert jobs.waits(job) == (status == "queued")
    assert job.pause_requested == (status in ("funding", "leased", "paused"))
    failed = jobfold.evolve(job, f.FUND_FAILED, 99_000)
    assert job.funded or (failed.status, failed.pause_requested) == ("failed", False)
    refunded = jobfold.evolve(job, f.REFUNDED, 99_000)
    assert job.funded or (refunded.status, refunded.pause_requested) == ("failed", False)


def test_a_resume_of_a_job_that_is_not_paused_changes_nothing_but_what_is_remembered():
    rests = [f.FUNDED, f.leased(), f.lost()]
    before, after = f.job_after(*rests), f.job_after(*rests, m.ResumeRequested(caller="alice", request_id="a"))
    assert replace(after, requests=(), changed_at_ms=before.changed_at_ms) == before
    assert jobs.granted(after, "a")


def test_a_changed_priority_is_of_the_job_not_of_what_was_submitted():
    job = f.job_after(f.FUNDED, f.PRIORITY_CHANGED)
    assert (job.priority, job.job.priority, job.status) == (7, 0, "queued")
    assert jobrules.illegal(job, replace(f.PRIORITY_CHANGED, priority=10)) == "its priority is from 0 to 9, not 10"


def test_a_paused_job_can_be_cancelled():
    job = f.job_after(f.FUNDED, f.PAUSED, f.CANCELLED)
    assert (job.status, job.outcome) == ("settling", "cancelled")


def test_a_cancel_while_the_deposit_is_under_way_waits_for_the_chain():
    assert f.job_after(f.CANCELLED).status == "funding"
    funded = f.job_after(f.CANCELLED, f.FUNDED)
    assert (funded.status, funded.outcome, funded.pay_base_units) == ("settling", "cancelled", 0)
    assert f.job_after(f.CANCELLED, f.FUND_FAILED).status == "cancelled"


def test_a_message_of_an_old_attempt_is_fenced():
    job = f.job_after(f.FUNDED, f.leased(), f.lost(), f.leased(2, "node-b"))
    assert "attempt 1 is over" in jobrules.illegal(job, f.completed(1))
    assert "another node" in jobrules.illegal(job, f.completed(2, "node-a"))
    assert jobrules.illegal(job, f.completed(2, "node-b")) is None


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([f.FUNDED, f.leased(), f.completed()], "failed"),
        ([f.FUNDED, f.leased(), f.checkpointed(), f.CANCELLED], "cancelled"),
        ([f.FUNDED, f.leased(), f.completed(), f.SIGNED_SETTLE], "failed"),
    ],
)
def test_a_refund_by_somebody_ends_the_job_and_pays_nobody(events, status):
    before, job = f.job_after(*events), f.job_after(*events, f.REFUNDED)
    assert (job.status, job.payees, job.unsettled) == (status, (), None)
    assert job.shares == money.Shares(0, 0, f.AMOUNT)
    assert "refunded to the client after the deadline" in job.error
    assert job.completed == before.completed  # the model that was delivered stays
    assert earnings.entries(job, f.REFUNDED) == [
        money.Entry("escrow:job-1", -f.AMOUNT),
        money.Entry(f"wallet:{f.CLIENT}", f.AMOUNT),
    ]


def test_a_refund_of_a_deposit_that_the_ledger_never_saw_moves_nothing_in_it():
    job = f.job_after(f.leased(), f.REFUNDED)
    assert (job.status, earnings.entries(job, f.REFUNDED), job.attempts[0].lost.code) == ("failed", [], "unfunded")


def test_a_day_before_its_deadline_a_job_is_paid_for_what_is_stored_although_its_owner_paused_it():
    paused = f.job_after(f.FUNDED, f.leased(), f.checkpointed(step=25), f.PAUSED, f.lost(code="paused"))
    paused = replace(paused, terms=replace(paused.terms, deadline_s=100 * jobs.DEADLINE_MARGIN_S))
    due_ms = 99 * jobs.DEADLINE_MARGIN_S * 1000
    assert jobrules.deadline_due(paused, due_ms - 1) is None
    event = jobrules.deadline_due(paused, due_ms)
    job = jobfold.evolve(paused, event, due_ms)
    assert (job.status, job.outcome, job.payees) == ("settling", "failed", (f.payee(f.AMOUNT // 4),))
    assert "deadline was near" in job.error
    assert jobrules.deadline_due(job, due_ms + 1) is None


def test_near_the_deadline_a_run_stores_its_state_first_and_is_paid_for_it():
    near = f.job_after(f.FUNDED, f.leased(), f.checkpointed(step=25), f.DEADLINE_NEAR)
    assert (near.status, near.pause_requested) == ("leased", True)
    assert "deadline is near" in jobrules.illegal(near, f.RESUMED)
    stored = jobfold.evolve(near, f.checkpointed(step=60), 1)
    job = jobfold.evolve(stored, f.lost(code="paused"), 2)
    assert (job.status, job.outcome, job.payees) == ("settling", "failed", (f.payee(f.AMOUNT * 60 // 100),))


def test_a_run_that_completes_near_the_deadline_has_completed():
    job = f.job_after(f.FUNDED, f.leased(), f.DEADLINE_NEAR, f.completed())
    assert (job.status, job.outcome, job.payees) == ("settling", "completed", (f.payee(),))


@pytest.mark.parametrize("events", [[], [f.leased()]])
def test_a_deposit_that_is_not_final_when_the_deadline_is_near_goes_back_whole_if_it_lands(events):
    job = f.job_after(*events, f.DEADLINE_NEAR)
    assert (job.status, job.outcome, jobs.waits(job)) == ("funding", "failed", False)
    job = jobfold.evolve(job, f.FUNDED, 1)
    assert (job.status, job.payees) == ("settling", ())


def test_terms_without_a_deadline_are_never_due():
    assert jobrules.deadline_due(f.job_after(f.FUNDED), 2**62) is None


MOVES = (*("lease", "store", "lose") * 4, *("give up its state",) * 2, "complete")


def test_whatever_nodes_store_lose_and_give_up_they_are_never_paid_more_than_the_amount():
    """A settlement of more than the escrow holds could never be signed, and would be tried for ever."""
    for seed in range(1_500):
        dice = random.Random(seed)
        price, steps = dice.choice([0, 7, f.AMOUNT]), dice.choice([5, 10])
        job = jobfold.evolve(None, replace(f.submitted(max_attempts=100), price_base_units=price), 0)
        job = jobfold.evolve(job, f.FUNDED, 1)
        for _ in range(40):
            last, newest, who = job.attempts[-1] if job.attempts else None, job.checkpoint, dice.randrange(6)
            node_id, kind = last.node_id if last else "node-0", dice.choice(MOVES)
            step = (newest.step if newest else 0) + dice.randint(1, 4)
            said = f.checkpoint(step, newest.steps if newest and dice.random() < 0.9 else steps + who)
            event = {
                "lease": f.leased(job.attempt + 1, f"node-{who}", f"wallet-{who}", newest),
                "store": replace(f.checkpointed(job.attempt, node_id=node_id), checkpoint=said),
                "lose": f.lost(job.attempt),
                "give up its state": f.lost(job.attempt, code="bad_checkpoint", discards=last and last.resume),
                "complete": f.completed(job.attempt, node_id),
            }[kind]
            if jobrules.illegal(job, event):
                continue
            job = jobfold.evolve(job, event, job.changed_at_ms + 1)
            ended = job if job.outcome else jobfold.evolve(job, f.CANCELLED, job.changed_at_ms + 1)
            assert ended.status == "settling" and ended.pay_base_units <= (price or f.AMOUNT), seed
            assert len({payee.wallet for payee in ended.payees}) == len(ended.payees) <= earnings.MAX_PAYEES
            assert all(payee.pay_base_units > 0 for payee in ended.payees)
            if job.outcome:
                break


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(EVENTS) - {"Submitted"})), max_size=25))
def test_whatever_is_tried_money_leaves_the_escrow_once_and_the_end_is_the_end(names):
    job, balance = jobfold.evolve(None, f.submitted(), 0), {}
    attempts = 0
    for name in names:
        event = EVENTS[name]
        if name in ("Leased", "LeaseLost", "Started", "Completed", "Checkpointed"):
            number = job.attempt + (name == "Leased")
            event = replace(event, attempt=number)
        if name == "Leased":
            event = replace(event, resume=job.checkpoint)
        if name == "Checkpointed":
            event = replace(event, checkpoint=f.checkpoint(7 + (job.checkpoint.step if job.checkpoint else 0)))
        if name == "Settled":
            shares = money.divide(f.AMOUNT, [payee.pay_base_units for payee in job.payees], 1000)
            event = replace(
                f.settled(shares.node_base_units, shares.platform_base_units, shares.client_base_units),
                payees=list(job.payees),
            )
        if jobrules.illegal(job, event):
            continue
        ended = job.status in jobs.ENDED
        job = jobfold.evolve(job, event, job.changed_at_ms + 1)
        assert not ended, "an ended job took an event"
        assert job.attempt >= attempts
        attempts = job.attempt
        for entry in earnings.entries(job, event):
            balance[entry.account] = balance.get(entry.account, 0) + entry.amount_base_units
        assert sum(balance.values()) == 0
        assert balance.get("escrow:job-1", 0) in (0, f.AMOUNT)
    if job.status in jobs.ENDED:
        assert balance.get("escrow:job-1", 0) == 0
