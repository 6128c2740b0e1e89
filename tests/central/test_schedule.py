from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcentral import nodes, schedule, views
from cyxcentral.central import Central, Settings, StartError
from cyxnet import messages as m
from cyxnet.config import NetworkFile
from tests.central import facts as f
from tests.central import worlds

WEIGHTS = schedule.Weights()
JOB = f.job_after(f.FUNDED)


def candidate(node_id="node-a", active_runs=0, **changes):
    node = nodes.evolve(None, f.registered(node_id, **changes), 0)
    return schedule.Candidate(node=node, active_runs=active_runs, memory_free_bytes=node.hardware.memory_bytes)


def choose(*candidates, job=JOB, now_ms=0):
    return schedule.choose(job, candidates, WEIGHTS, now_ms)[0]


def test_no_node_no_choice():
    assert choose() is None


def test_a_node_that_cannot_run_the_job_is_never_chosen_and_says_why():
    tiny = candidate(hardware={"memory_bytes": 2**20})
    gpu_job = replace(JOB, job=f.job_request(needs=m.Needs(device="cuda")))
    many_cores = replace(JOB, job=f.job_request(needs=m.Needs(cores=64)))
    assert schedule.refusal(JOB, tiny) == "1 MiB of memory, 256 MiB needed"
    assert schedule.refusal(gpu_job, candidate()) == "no CUDA GPU"
    assert schedule.refusal(many_cores, candidate()) == "2 cores, 64 needed"
    assert schedule.refusal(JOB, candidate(active_runs=1)) == "busy with 1 of 1 runs"
    assert choose(tiny) is None


def test_a_node_has_a_gpu_for_each_of_its_runs_that_want_one():
    gpu_job = replace(JOB, job=f.job_request(needs=m.Needs(device="cuda")))
    gpus = [m.Gpu(name="gpu", memory_bytes=2**34)] * 2
    one_free = replace(candidate(max_runs=4, active_runs=2, hardware={"gpus": gpus}), gpu_runs=1)
    none_free = replace(one_free, gpu_runs=2)
    assert (schedule.refusal(gpu_job, one_free), schedule.lacking(gpu_job, one_free)) == (None, [])
    assert schedule.refusal(gpu_job, none_free) == "all of its GPUs are busy (2)"
    assert schedule.lacking(gpu_job, none_free) == ["no CUDA GPU free"]
    assert schedule.refusal(JOB, none_free) is None
    assert schedule.ever_fits(gpu_job, none_free.node)


def test_a_gpu_must_have_the_memory_that_the_job_needs():
    small, large = (m.Gpu(name="gpu", memory_bytes=gib * 2**30) for gib in (8, 24))
    mixed = candidate("mixed", max_runs=2, hardware={"gpus": [small, large]})
    gpu_job = replace(JOB, job=f.job_request(needs=m.Needs(device="cuda")), gpu_memory_bytes=10 * 2**30)
    only_small = candidate("small", hardware={"gpus": [small]})
    assert schedule.refusal(gpu_job, only_small) == "8192 MiB on its largest GPU, 10240 MiB needed"
    assert choose(only_small, mixed, job=gpu_job) == "mixed"
    busy = replace(mixed, active_runs=1, gpu_runs=1)  # by which of the two is not known here
    assert schedule.refusal(gpu_job, busy) == "8192 MiB on a free GPU, 10240 MiB needed"
    assert schedule.lacking(gpu_job, busy) == ["too little memory on a free GPU"]
    assert schedule.refusal(replace(gpu_job, gpu_memory_bytes=2**33), busy) is None
    filled = replace(mixed, node=replace(mixed.node, gpus_free_bytes=(0, 0)))
    assert schedule.refusal(gpu_job, filled) == "other programs have filled its GPUs"


def test_the_faster_the_better_known_and_the_cheaper_node_wins():
    assert choose(candidate("slow", hardware={"flops_per_s": 1e9}), candidate("fast")) == "fast"
    assert choose(candidate("dear", price_per_hour_base_units=9), candidate("cheap")) == "cheap"
    trusted = candidate("c")
    doubted = replace(candidate("a"), node=replace(candidate("a").node, reputation=10.0))
    assert choose(doubted, trusted) == "c"


def test_a_node_that_lost_the_job_before_is_the_last_resort():
    job = f.job_after(f.FUNDED, f.leased(1, "node-a"), f.lost())
    slow = candidate("node-b", hardware={"flops_per_s": 1.0})
    assert choose(candidate("node-a"), slow, job=job) == "node-b"
    assert choose(candidate("node-a"), job=job) == "node-a"


LOST = f.job_after(f.FUNDED, f.leased(1, "node-a"), f.lost())
BUSY = candidate("node-b", active_runs=1)


def test_a_job_whose_try_failed_waits_a_minute_for_a_busy_node_before_it_goes_there_again():
    # a node where everything fails at once is always free: it had used up all tries of a job
    ends_ms = LOST.not_before_ms + schedule.ELSEWHERE_MS
    lags_ms = LOST.not_before_ms - 5  # by the clock of another central than the one that wrote the loss down
    for now_ms, chosen in ((lags_ms, None), (LOST.not_before_ms, None), (ends_ms - 1, None), (ends_ms, "node-a")):
        assert choose(candidate("node-a"), BUSY, job=LOST, now_ms=now_ms) == chosen
    _, why = schedule.choose(LOST, [candidate("node-a"), BUSY], WEIGHTS, LOST.not_before_ms)
    assert why["candidates"][0]["refused"] == "a try of it failed there, and another node may take it soon"
    assert why["refused"] == {schedule.FAILED_THERE: 1, "busy": 1}
    again = f.job_after(f.FUNDED, f.leased(1, "node-a"), f.lost(), f.leased(2, "node-b"), f.lost(2))
    assert choose(candidate("node-a"), candidate("node-b"), job=again, now_ms=again.not_before_ms) == "node-a"


def named(job, **needs):
    return replace(job, job=replace(job.job, needs=m.Needs(**needs)))


@pytest.mark.parametrize(
    ("job", "other"),
    [
        (LOST, candidate("node-b", active_runs=1, hardware={"memory_bytes": 2**20})),
        (LOST, replace(BUSY, node=replace(BUSY.node, online=False))),
        (LOST, replace(BUSY, node=replace(BUSY.node, draining=True))),
        (LOST, replace(BUSY, limit_base_units=1)),
        (named(LOST, node_id="node-a"), BUSY),
        (replace(LOST, not_before_ms=LOST.not_before_ms + 3_600_000), BUSY),  # of a central whose clock is ahead
        (f.job_after(f.FUNDED, f.leased(1, "node-a"), f.lost(code="node_stopped")), BUSY),
    ],
    ids=["too small", "offline", "draining", "not proven", "a node is asked for", "another clock", "no failure"],
)
def test_it_does_not_wait_where_no_other_node_could_take_it_or_its_try_did_not_fail(job, other):
    assert choose(candidate("node-a"), other, job=job, now_ms=LOST.not_before_ms) == "node-a"


def test_no_replica_waits_for_another_node():
    replica = replace(LOST, job=f.serve_request())
    assert choose(candidate("node-a"), BUSY, job=replica, now_ms=LOST.not_before_ms) == "node-a"


def test_an_assignment_takes_room_from_the_next_job():
    first, second = JOB, replace(JOB, job_id="job-2", submitted_at_ms=1)
    assignments = schedule.assign([second, first], {"node-a": candidate()}, WEIGHTS, 10_000)
    assert [choice.job_id for choice in assignments] == ["job-1"]


def test_a_job_in_back_off_waits():
    job = f.job_after(f.FUNDED, f.leased(), f.lost())
    assert schedule.assign([job], {"node-a": candidate()}, WEIGHTS, job.not_before_ms - 1) == []
    assert len(schedule.assign([job], {"node-a": candidate()}, WEIGHTS, job.not_before_ms)) == 1


def test_a_small_network_is_explained_node_by_node_with_terms_or_refusal():
    _, why = schedule.choose(JOB, [candidate("a"), candidate("b", active_runs=1)], WEIGHTS, 0)
    able, busy = why["candidates"]
    assert set(able["terms"]) == {"device", "memory", "reputation", "location", "queue", "price"}
    assert busy["refused"] == "busy with 1 of 1 runs"


@given(
    st.floats(0, 1e15),
    st.integers(0, 2**50),
    st.floats(0, 100),
    st.integers(0, 5),
    st.integers(0, 2**60),
)
def test_each_term_lies_between_zero_and_one(flops, memory, reputation, runs, price):
    base = candidate(
        hardware={"flops_per_s": flops, "memory_bytes": memory}, price_per_hour_base_units=price, max_runs=5
    )
    one = replace(base, active_runs=runs, node=replace(base.node, reputation=reputation))
    for value in schedule.terms(JOB, one).values():
        assert 0.0 <= value <= 1.0


def test_an_absurd_price_of_one_node_does_not_blind_the_price_term_of_the_others():
    cheap, fair = candidate("a", price_per_hour_base_units=10**8), candidate("b", price_per_hour_base_units=10**9)
    absurd = candidate("c", price_per_hour_base_units=2**62)
    prices = [schedule.terms(JOB, each)["price"] for each in (cheap, fair, absurd)]
    assert prices[0] - prices[1] > 0.4
    assert prices[2] < 1e-6


def test_a_draining_node_is_refused_and_counted_as_that():
    draining = replace(candidate(), node=replace(candidate().node, draining=True))
    assert schedule.refusal(JOB, draining).startswith("draining")
    assert (choose(draining), schedule.away(draining)) == (None, "draining")


def test_a_banned_node_is_refused_with_the_end_of_its_ban():
    banned = candidate()
    banned = replace(banned, node=replace(banned.node, banned_until_ms=1_800_000_000_000))
    assert schedule.refusal(JOB, banned) == "banned until 2027-01-15 08:00 UTC"
    assert choose(banned) is None


def test_equal_scores_are_decided_by_free_memory_and_then_by_the_name():
    no_memory = schedule.Weights(memory=0.0)
    small, large = candidate("a", hardware={"memory_bytes": 2**33}), candidate("b", hardware={"memory_bytes": 2**34})
    assert schedule.choose(JOB, [small, large], no_memory, 0)[0] == "b"
    assert choose(candidate("b"), candidate("a")) == "a"


def test_configured_weights_are_divided_by_their_sum_and_the_others_keep_their_defaults():
    weights = schedule.weights_of({"price": 1.1})
    assert (weights.price, weights.device) == (pytest.approx(0.55), pytest.approx(0.125))
    assert schedule.weights_of({}) == WEIGHTS


@pytest.mark.parametrize(
    ("configured", "said"),
    [
        ({"speed": 1.0}, "weights: expected some of device, memory, reputation, location, queue, price, got speed"),
        ({"price": -0.1}, "weights.price: expected a number from 0, got -0.1"),
        ({"price": float("nan")}, "weights.price: expected a number from 0, got nan"),
        (dict.fromkeys(msgspec.structs.asdict(WEIGHTS), 0.0), "weights: expected at least one above 0"),
        (dict.fromkeys(msgspec.structs.asdict(WEIGHTS), 1e308), "weights: expected at least one above 0"),
    ],
    ids=["unknown", "negative", "not a number", "all zero", "infinite sum"],
)
def test_weights_that_cannot_be_used_are_refused_with_the_reason(configured, said):
    with pytest.raises(schedule.WeightsError) as refused:
        schedule.weights_of(configured)
    assert str(refused.value).startswith(said)


def central_with(weights):
    """A central that is not started: its network, and nobody it could reach."""
    roles = dict.fromkeys(("client_url", "node_url", "edge_url", "core_url", "monitor_url", "chain_url"), "")
    network = NetworkFile(network_id="n", weights=weights, **roles)
    keys = SimpleNamespace(child=lambda name: bytes(32), commander=None)
    settings = Settings(network=network, keys=Path(), state=Path())
    return Central(settings, None, None, SimpleNamespace(), SimpleNamespace(), keys)


async def test_central_decides_by_the_weights_of_its_network():
    fast, cheap = (
        candidate("fast", price_per_hour_base_units=9 * 10**9),
        candidate("cheap", hardware={"flops_per_s": 1.0}),
    )
    for weights, best in (({}, "fast"), ({"price": 9.0}, "cheap")):
        matching = central_with(weights).world.matching
        matching.fill([JOB], [fast, cheap])
        assert [choice.node_id for choice in matching.plan(10_000)] == [best]


async def test_central_does_not_start_with_weights_that_cannot_be_used():
    with pytest.raises(StartError, match=r"network\.json: weights: expected some of .*, got speed; correct it"):
        central_with({"speed": 1.0})


# -- nodes that are not proven -----------------------------------------------------------------------------

UNPROVEN = schedule.Unproven(limit_base_units=f.AMOUNT)
PAYERS = tuple(nodes.Payer(wallet=str(number), gained=1.0, at_ms=0, paid_ppm=nodes.WHOLE_PPM) for number in range(3))
DEAR = replace(JOB, price_base_units=f.AMOUNT + 1)


def stranger(active_runs=0, **changes):
    found = candidate(active_runs=active_runs, max_runs=4)
    node = replace(found.node, **changes)
    return replace(found, node=node, limit_base_units=schedule.limit_of(node, UNPROVEN))


def test_a_node_that_is_not_proven_gets_one_job_at_a_time_and_none_that_is_worth_more_than_the_limit():
    assert schedule.refusal(JOB, stranger()) is None
    assert "not proven yet (0 of 3 clients have paid for its work): it works on one job at a time" == schedule.refusal(
        JOB, stranger(active_runs=1)
    )
    assert "it gets jobs of up to" in schedule.refusal(DEAR, stranger())
    assert schedule.lacking(DEAR, stranger()) == [schedule.NOT_PROVEN]
    assert schedule.refusal(DEAR, stranger(payers=PAYERS, active_runs=3)) is None


def test_who_names_a_node_knows_what_it_does():
    named = replace(DEAR, job=f.job_request(needs=m.Needs(node_id=stranger().node.node_id)))
    assert schedule.refusal(named, stranger()) is None


def test_what_a_job_may_be_worth_is_told_where_all_are_strangers():
    assert schedule.most_worth(DEAR, [stranger(), stranger(active_runs=1)]) == f.AMOUNT
    assert schedule.most_worth(DEAR, [stranger(), stranger(payers=PAYERS)]) == schedule.most_worth(DEAR, []) == 0
    assert schedule.most_worth(replace(DEAR, job=f.job_request(needs=m.Needs(node_id="node-a"))), [stranger()]) == 0


def test_a_node_that_an_operator_vouches_for_needs_no_proof_and_without_a_limit_nobody_does():
    node = stranger().node
    assert schedule.limit_of(node, UNPROVEN) == f.AMOUNT
    assert schedule.limit_of(node, replace(UNPROVEN, vouched=frozenset({node.node_id}))) == 0
    assert schedule.limit_of(node, schedule.Unproven()) == 0


def test_a_node_that_is_not_proven_scores_as_one_whose_ban_has_just_ended():
    banned_once = stranger(payers=PAYERS, reputation=nodes.UNBANNED_REPUTATION)
    assert schedule.terms(JOB, stranger())["reputation"] == schedule.terms(JOB, banned_once)["reputation"]
    assert schedule.terms(JOB, stranger(reputation=10.0))["reputation"] == 0.1


def test_it_is_said_why_a_job_does_not_go_to_a_node_that_is_not_proven_and_what_to_do():
    waits = views.explanation(DEAR, [stranger()], 0).waiting_for
    assert "not proven yet (0 of 3 clients have paid for its work): it gets jobs of up to" in waits
    assert "vouched in network.json" in waits and "unproven_limit_base_units" in waits
    assert "vouched" not in views.explanation(DEAR, [stranger(payers=PAYERS, online=False)], 0).waiting_for
    view = views.node_view(stranger(payers=PAYERS[:1]), [JOB], 0, None)
    assert (view.proofs, view.limit_base_units, view.state) == (1, f.AMOUNT, "busy")
    assert views.node_view(stranger(payers=PAYERS), [JOB], 0, None).limit_base_units == 0


def test_a_job_that_was_lost_once_goes_to_proven_nodes_first():
    slow = replace(
        stranger(payers=PAYERS).node, node_id="node-z", hardware=f.registered(hardware={"flops_per_s": 1e9}).hardware
    )
    proven = schedule.Candidate(node=slow, active_runs=0, memory_free_bytes=slow.hardware.memory_bytes)
    assert choose(stranger(), proven) == stranger().node.node_id
    lost = replace(JOB, attempts=(worlds.lost_on("node-y", "died"),))
    assert choose(stranger(), proven, job=lost) == "node-z"
    assert choose(stranger(), job=lost) == stranger().node.node_id, "where nobody is proven, nothing stands still"


def test_one_job_of_twenty_goes_to_nodes_that_are_not_proven_first():
    proven = replace(stranger(payers=PAYERS), node=replace(stranger(payers=PAYERS).node, node_id="node-z"))
    jobs = [replace(JOB, job_id=f"job-{number}") for number in range(2_000)]
    first = sum(choose(stranger(), proven, job=each) == "node-a" for each in jobs)
    assert 60 < first < 140
    assert all(choose(stranger(), proven, job=replace(DEAR, job_id=each.job_id)) == "node-z" for each in jobs[:100])
