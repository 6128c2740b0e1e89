"""The life of a job."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcentral import jobs
from cyxnet import messages as m
from tests.central import facts as f

STATES = {
    "none": None,
    "funding": f.job_after(),
    "funding, cancel wanted": f.job_after(f.CANCELLED),
    "queued": f.job_after(f.FUNDED),
    "leased": f.job_after(f.FUNDED, f.leased()),
    "settling": f.job_after(f.FUNDED, f.leased(), f.completed()),
    "completed": f.job_after(f.FUNDED, f.leased(), f.completed(), f.SIGNED_SETTLE, f.settled()),
    "failed": f.job_after(f.FUND_FAILED),
    "cancelled": f.job_after(f.FUNDED, f.CANCELLED, f.SIGNED_SETTLE, f.settled(0, 0, f.AMOUNT)),
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
    "LeaseLost": f.lost(),
    "Completed": f.completed(),
    "CancelRequested": f.CANCELLED,
    "Settled": f.settled(),
}
LEGAL = {
    "none": {"Submitted"},
    "funding": {"SignedDeposit", "Funded", "FundFailed", "CancelRequested"},
    "funding, cancel wanted": {"SignedDeposit", "Funded", "FundFailed"},
    "queued": {"Leased", "CancelRequested"},
    "leased": {"Started", "LeaseLost", "Completed", "CancelRequested"},
    "settling": {"SignedSettle", "Settled"},
    "completed": set(),
    "failed": set(),
    "cancelled": set(),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_each_event_is_legal_in_exactly_the_states_of_the_table(state, event):
    assert (jobs.illegal(STATES[state], EVENTS[event]) is None) == (event in LEGAL[state])


def test_a_job_that_goes_well_pays_its_whole_amount():
    job = f.job_after(f.FUNDED, f.leased(), f.STARTED, f.completed())
    assert (job.status, job.outcome, job.pay_base_units) == ("settling", "completed", f.AMOUNT)
    assert jobs.paid_wallet(job) == f.NODE_WALLET


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
    assert jobs.paid_wallet(job) is None


def test_a_fault_of_the_job_itself_is_not_tried_again():
    job = f.job_after(f.FUNDED, f.leased(), f.lost(deterministic=True))
    assert (job.status, job.outcome) == ("settling", "failed")


def test_a_cancel_while_the_deposit_is_under_way_waits_for_the_chain():
    assert f.job_after(f.CANCELLED).status == "funding"
    funded = f.job_after(f.CANCELLED, f.FUNDED)
    assert (funded.status, funded.outcome, funded.pay_base_units) == ("settling", "cancelled", 0)
    assert f.job_after(f.CANCELLED, f.FUND_FAILED).status == "cancelled"


def test_a_message_of_an_old_attempt_is_fenced():
    job = f.job_after(f.FUNDED, f.leased(), f.lost(), f.leased(2, "node-b"))
    assert "attempt 1 is over" in jobs.illegal(job, f.completed(1))
    assert "another node" in jobs.illegal(job, f.completed(2, "node-a"))
    assert jobs.illegal(job, f.completed(2, "node-b")) is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(EVENTS) - {"Submitted"})), max_size=25))
def test_whatever_is_tried_money_leaves_the_escrow_once_and_the_end_is_the_end(names):
    job, balance = jobs.evolve(None, f.submitted(), 0), {}
    attempts = 0
    for name in names:
        event = EVENTS[name]
        if name in ("Leased", "LeaseLost", "Started", "Completed"):
            number = job.attempt + (name == "Leased")
            event = replace(event, attempt=number)
        if name == "Settled":
            shares = f.settled() if job.pay_base_units else f.settled(0, 0, f.AMOUNT)
            event = shares
        if jobs.illegal(job, event):
            continue
        ended = job.status in jobs.ENDED
        job = jobs.evolve(job, event, job.changed_at_ms + 1)
        assert not ended, "an ended job took an event"
        assert job.attempt >= attempts
        attempts = job.attempt
        for entry in jobs.entries(job, event):
            balance[entry.account] = balance.get(entry.account, 0) + entry.amount_base_units
        assert sum(balance.values()) == 0
        assert balance.get("escrow:job-1", 0) in (0, f.AMOUNT)
    if job.status in jobs.ENDED:
        assert balance.get("escrow:job-1", 0) == 0
