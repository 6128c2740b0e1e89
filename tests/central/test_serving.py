"""Jobs that serve a model: how they go on, and who is paid for which time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cyxcentral import earnings, jobfold, jobrules, jobs, money
from cyxnet import messages as m
from tests.central import facts as f

READY = [(1, f.FUNDED), (2, f.leased()), (10, f.started())]
OTHER = "O" * 43


def on_other(attempt):
    return f.leased(attempt, node_id="node-b", wallet=OTHER)


def gone(attempt=1, code="node_lost"):
    return f.lost(attempt, code=code)


def test_the_whole_time_pays_the_whole_amount():
    job = f.serving_after(*READY, (10 + f.HOUR_S, f.time_used()))
    assert (job.status, job.outcome) == ("settling", "completed")
    assert job.payees == (f.payee(),)


def test_time_beyond_what_was_bought_is_not_paid():
    job = f.serving_after(*READY, (10 + 5 * f.HOUR_S, f.time_used()))
    assert job.pay_base_units == f.AMOUNT


def test_a_cancelled_replica_is_paid_for_the_time_in_which_it_was_ready():
    job = f.serving_after(*READY, (10 + f.HOUR_S // 4, f.CANCELLED))
    assert (job.outcome, job.pay_base_units) == ("cancelled", f.AMOUNT // 4)


def test_a_replica_that_never_was_ready_is_paid_nothing():
    job = f.serving_after((1, f.FUNDED), (2, f.leased()), (3000, f.CANCELLED))
    assert job.payees == ()


def test_each_node_is_paid_for_its_own_time():
    job = f.serving_after(
        *READY,
        (10 + 900, gone()),
        (1000, on_other(2)),
        (1100, f.started(2)),
        (1100 + 1800, f.CANCELLED),
    )
    pays = {payee.wallet: payee.pay_base_units for payee in job.payees}
    assert pays == {f.NODE_WALLET: f.AMOUNT * 900 // 3600, OTHER: f.AMOUNT * 1800 // 3600}


def test_the_last_node_is_cut_where_the_time_is_used_up():
    job = f.serving_after(
        *READY, (10 + 3000, gone()), (4000, on_other(2)), (4000, f.started(2)), (4000 + 2000, f.time_used(2))
    )
    pays = {payee.wallet: payee.pay_base_units for payee in job.payees}
    assert pays == {f.NODE_WALLET: f.AMOUNT * 3000 // 3600, OTHER: f.AMOUNT * 600 // 3600}


def test_a_quoted_price_is_the_most_that_the_time_costs():
    first = m.Submitted(
        job=f.serve_request(),
        terms=f.terms(),
        caller="alice",
        memory_bytes=1,
        deposit=f.signed(),
        price_base_units=1_000,
    )
    job = jobfold.evolve(None, first, 0)
    for second, event in (*READY, (10 + 1800, f.CANCELLED)):
        job = jobfold.evolve(job, event, second * 1000)
    assert job.pay_base_units == 500


def test_the_time_of_a_clock_that_went_back_is_nothing():
    job = f.serving_after(*READY, (5, f.CANCELLED))
    assert job.pay_base_units == 0


def test_the_time_is_used_up_when_all_attempts_together_were_ready_for_so_long():
    job = f.serving_after(*READY, (10 + 3000, gone()), (4000, on_other(2)), (4000, f.started(2)))
    assert jobrules.time_used(job, (4000 + 599) * 1000) is None
    assert jobrules.time_used(job, (4000 + 600) * 1000) == f.time_used(2)


def test_a_node_that_is_lost_when_the_time_is_used_up_ends_the_job_well():
    job = f.serving_after(*READY, (10 + f.HOUR_S, gone()))
    assert (job.outcome, job.pay_base_units) == ("completed", f.AMOUNT)


def test_a_replica_that_was_ready_and_is_gone_is_no_failed_try():
    job = f.serving_after(*READY, (20, gone()))
    assert (job.status, jobs.tried(job), job.not_before_ms) == ("queued", 0, 20_000)


def test_failures_are_counted_anew_once_a_replica_has_worked():
    steps = [(1, f.FUNDED), (2, f.leased()), (3, f.lost(1)), (4, f.leased(2)), (5, f.lost(2))]
    steps += [(10, f.leased(3)), (20, f.started(3)), (100, f.lost(3))]  # ready for 80 s: it has worked
    job = f.serving_after(*steps)
    assert (job.status, jobs.tried(job)) == ("queued", 0)


def test_a_replica_that_falls_over_as_soon_as_it_is_ready_is_a_failed_try():
    steps = [(1, f.FUNDED)]
    for attempt in (1, 2, 3):
        steps += [(10 * attempt, f.leased(attempt)), (10 * attempt + 1, f.started(attempt))]
        steps += [(10 * attempt + 2, f.lost(attempt))]
    job = f.serving_after(*steps)
    assert (job.status, job.outcome) == ("settling", "failed")
    assert job.pay_base_units == f.AMOUNT * 3 // 3600


def test_a_file_that_no_two_nodes_can_open_is_the_jobs_fault():
    bad = dict(code="bad_model", deterministic=True)
    job = f.serving_after(
        (1, f.FUNDED), (2, f.leased()), (3, f.lost(1, **bad)), (9, on_other(2)), (10, f.lost(2, **bad))
    )
    assert (job.outcome, job.payees) == ("failed", ())


def test_a_paused_replica_uses_no_time():
    job = f.serving_after(*READY, (20, f.PAUSED), (21, gone(code="paused")))
    assert job.status == "paused" and job.served_ms(10**9) == 11_000


def test_near_its_deadline_it_ends_at_once_and_is_paid():
    job = f.serving_after(*READY, (10 + 360, f.DEADLINE_NEAR))
    assert (job.status, job.pay_base_units) == ("settling", f.AMOUNT // 10)


@pytest.mark.parametrize("event", [f.completed(), f.checkpointed()])
def test_it_delivers_nothing(event):
    assert jobrules.illegal(f.serving_after(*READY), event) == "a job that serves delivers nothing"


def test_a_job_that_trains_has_no_time_to_use_up():
    job = f.job_after(f.FUNDED, f.leased(), f.STARTED)
    assert jobrules.illegal(job, f.time_used()) and jobrules.time_used(job, 10**15) is None


def test_the_time_is_not_used_up_before_a_replica_is_ready():
    assert jobrules.illegal(f.serving_after((1, f.FUNDED), (2, f.leased())), f.time_used())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2000), st.booleans()), max_size=12), st.integers(1, 4000))
def test_whatever_happens_no_more_is_paid_than_was_bought_and_no_base_unit_is_lost(lives, seconds):
    """lives: (node, how long it was ready, whether it was at all), one after the other."""
    now, steps = 1, [(1, f.FUNDED)]
    for attempt, (node, ready_s, at_all) in enumerate(lives, start=1):
        steps.append((now, f.leased(attempt, node_id=f"node-{node}", wallet=str(node + 1) * 43)))
        if at_all:
            steps.append((now, f.started(attempt)))
            now += ready_s
        steps.append((now, f.lost(attempt, code="node_lost" if at_all else "node_stopped")))
    job = jobfold.evolve(None, m.Submitted(job=f.serve_request(seconds), terms=f.terms(), caller="alice",
                                        memory_bytes=1, deposit=f.signed()), 0)  # fmt: skip
    for second, event in [*steps, (now, f.CANCELLED)]:
        if jobrules.illegal(job, event) is None:
            job = jobfold.evolve(job, event, second * 1000)
    pays = [payee.pay_base_units for payee in job.payees]
    used_ms = min(job.served_ms(0), seconds * 1000)
    assert sum(pays) <= f.AMOUNT * used_ms // (seconds * 1000) <= f.AMOUNT
    shares = money.divide(f.AMOUNT, pays, 1000)
    assert shares.node_base_units + shares.platform_base_units + shares.client_base_units == f.AMOUNT
    assert len(pays) <= earnings.MAX_PAYEES
