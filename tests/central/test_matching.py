"""The index decides what looking at everyone decides, and it does not look at everyone."""

import random

import pytest
from msgspec.structs import replace

from cyxcentral import jobfold, schedule
from cyxcentral.line import Needs
from cyxcentral.matching import Matching
from cyxcentral.schedule import Weights
from cyxnet import messages as m
from tests.central import facts as f
from tests.central import worlds
from tests.central.worlds import NOW_MS

OTHER_WEIGHTS = Weights(device=0.0, memory=0.5, reputation=0.1, location=0.4, queue=0.0, price=0.0)
NO_LOCATION = Weights(location=0.0, memory=0.0)


def node(node_id="node-a", **changes):
    made = worlds.candidate(random.Random(0), 0)
    registered = f.registered(node_id, **changes)
    fields = {name: getattr(registered, name) for name in ("node_id", "hardware", "max_runs", "region")}
    idle = replace(made.node, online=True, banned_until_ms=0, price_per_hour_base_units=0, **fields)
    return schedule.Candidate(node=idle, active_runs=0, memory_free_bytes=idle.hardware.memory_bytes)


def matching_of(jobs, candidates, weights=None, unproven=None):
    made = Matching(weights, unproven)
    for job in jobs:
        made.waits(job)
    for candidate in candidates:
        made.has_room(candidate)
    return made


def job(job_id="job-1", at_ms=0, **changes):
    request, funded = f.job_request(**changes), f.job_after(f.FUNDED)
    same = {"job_id": job_id, "submitted_at_ms": at_ms, "memory_bytes": 2**28, "priority": request.priority}
    return replace(funded, job=request, **same)


@pytest.mark.parametrize("weights", [Weights(), OTHER_WEIGHTS, NO_LOCATION], ids=["default", "other", "no location"])
@pytest.mark.parametrize("nodes", [12, 60])
def test_a_plan_is_what_looking_at_everyone_finds(nodes, weights):
    dice = random.Random(nodes)
    assigned = 0
    for _ in range(120 if nodes == 12 else 40):
        waiting = [worlds.job(dice, number, nodes) for number in range(dice.randint(0, 15))]
        candidates = {f"node-{i}": worlds.candidate(dice, i) for i in range(dice.randint(0, nodes))}
        expected = schedule.assign(waiting, worlds.as_of(candidates, NOW_MS), weights, NOW_MS)
        assert matching_of(waiting, candidates.values(), weights).plan(NOW_MS) == expected
        assigned += len(expected)
    assert assigned > 100


@pytest.mark.parametrize("nodes", [12, 60])
def test_it_is_so_too_where_some_nodes_are_not_proven(nodes):
    dice, unproven, kept_out = random.Random(nodes), schedule.Unproven(limit_base_units=10), 0
    for _ in range(120 if nodes == 12 else 60):
        waiting = [worlds.worth(dice, worlds.job(dice, number, nodes)) for number in range(dice.randint(0, 15))]
        found = {f"node-{i}": worlds.candidate(dice, i) for i in range(dice.randint(0, nodes))}
        candidates = {node_id: worlds.half_known(dice, each, unproven) for node_id, each in found.items()}
        seen = worlds.as_of(candidates, NOW_MS, unproven)
        expected = schedule.assign(waiting, seen, Weights(), NOW_MS)
        made = matching_of(waiting, candidates.values(), unproven=unproven)
        assert made.plan(NOW_MS) == expected
        filled = Matching(unproven=unproven)
        filled.fill(waiting, list(candidates.values()))
        assert filled.plan(NOW_MS) == expected
        everyone = {node_id: replace(each, limit_base_units=0) for node_id, each in seen.items()}
        kept_out += len(schedule.assign(waiting, everyone, Weights(), NOW_MS)) - len(expected)
    assert kept_out > 5, "nobody was kept out"


def test_it_stays_so_whatever_changes():
    dice = random.Random(7)
    made, waiting, candidates = Matching(), {}, {}
    for step in range(300):
        now_ms = step * 100  # back-offs and bans end on the way
        match dice.randrange(4):
            case 0:
                new = worlds.job(dice, dice.randrange(20))
                waiting[new.job_id] = new
                made.waits(new)
            case 1 if waiting:
                gone = dice.choice(sorted(waiting))
                del waiting[gone]
                made.waits_no_more(gone)
            case _:
                changed = worlds.candidate(dice, dice.randrange(15))
                candidates[changed.node.node_id] = changed
                made.has_room(changed)
        expected = schedule.assign(waiting.values(), worlds.as_of(candidates, now_ms), Weights(), now_ms)
        assert made.plan(now_ms) == expected


def test_a_world_taken_in_at_once_is_the_world_taken_in_one_by_one():
    dice = random.Random(3)
    waiting = [worlds.job(dice, number) for number in range(40)]
    candidates = [worlds.candidate(dice, number) for number in range(30)]
    filled = Matching()
    filled.fill(waiting, candidates)
    assert filled.plan(NOW_MS) == matching_of(waiting, candidates).plan(NOW_MS) != []


def test_planning_changes_nothing():
    dice = random.Random(5)
    waiting = [worlds.job(dice, number) for number in range(10)]
    made = matching_of(waiting, [worlds.candidate(dice, number) for number in range(20)])
    assert made.plan(NOW_MS) == made.plan(NOW_MS) != []


def test_a_plan_has_an_end():
    jobs = [job(f"job-{number}") for number in range(5)]
    made = matching_of(jobs, [node(max_runs=8)])
    assert len(made.plan(NOW_MS, limit=3)) == 3


def test_a_level_of_priority_is_worth_ten_minutes_of_waiting():
    early, urgent = job("early", at_ms=0), job("urgent", at_ms=599_999, priority=1)
    assert matching_of([early, urgent], [node()]).next(NOW_MS).job_id == "urgent"
    late = job("urgent", at_ms=600_001, priority=1)
    assert matching_of([early, late], [node()]).next(NOW_MS).job_id == "early"


def test_a_job_that_nobody_can_take_holds_up_nobody():
    huge, small = replace(job("huge"), memory_bytes=2**60), job("small", at_ms=1)
    assert matching_of([huge, small], [node()]).next(NOW_MS).job_id == "small"


def test_a_thousand_jobs_that_do_not_fit_are_not_looked_at_again(monkeypatch):
    seen = []
    refusal = schedule.refusal
    monkeypatch.setattr(schedule, "refusal", lambda job, candidate: seen.append(job) or refusal(job, candidate))
    waiting = [job(f"job-{number}", needs=m.Needs(device="cuda")) for number in range(1000)]
    made = matching_of(waiting, [node(f"node-{number}") for number in range(30)])
    assert made.next(NOW_MS) is None
    assert seen == []


def test_a_busy_network_is_told_by_counts_and_a_large_one_shows_its_best_five():
    nodes = [node(f"node-{number:02}") for number in range(30)]
    busy = [replace(each, active_runs=1) for each in nodes[:10]]
    offline = [replace(each, node=replace(each.node, online=False)) for each in nodes[10:13]]
    why = matching_of([job()], [*busy, *offline, *nodes[13:]]).next(NOW_MS).explanation
    assert (why["refused"], why["free_nodes"]) == ({"busy": 10, "offline": 3}, 17)
    assert [line["node_id"] for line in why["candidates"]] == [f"node-{number}" for number in range(13, 18)]


def test_a_wanted_region_is_better_than_an_unknown_one_and_that_than_another():
    nodes = [node("node-other", region="us"), node("node-unknown"), node("node-same", region="eu")]
    made = matching_of([], nodes)
    wanted = job(needs=m.Needs(region="eu"))
    best = made.explain(wanted, NOW_MS)["candidates"]
    assert [line["node_id"] for line in best] == ["node-same", "node-unknown", "node-other"]
    assert [line["terms"]["location"]["value"] for line in best] == [1.0, 0.5, 0.0]


def test_a_banned_node_is_free_again_when_its_time_is_over():
    made = matching_of([job()], [replace(node(), node=replace(node().node, banned_until_ms=5_000))])
    assert made.next(4_999) is None
    assert made.next_due_ms() == 5_000
    assert made.next(5_000).node_id == "node-a"


def test_the_end_of_a_back_off_is_due():
    made = matching_of([replace(job(), not_before_ms=7_000)], [node()])
    assert made.next(6_999) is None
    assert made.next_due_ms() == 7_000
    assert made.next(7_000).job_id == "job-1"


def test_a_back_off_written_by_a_clock_that_is_hours_ahead_lasts_as_long_as_it_was_meant():
    hours = 10 * 3_600_000
    made = matching_of([replace(job(), changed_at_ms=hours, not_before_ms=hours + 2_000)], [node()])
    assert made.next(1_000) is None
    assert made.next_due_ms() == 3_000
    assert made.next(3_000).job_id == "job-1"


def test_a_back_off_by_a_fast_clock_stays_short_when_a_central_with_another_clock_tells_of_the_job():
    # a node that was stopped gave back a job whose deposit became final later: it waited for an hour
    hour = 3_600_000
    made = matching_of([replace(job(), changed_at_ms=1_000, not_before_ms=hour)], [node()])
    assert made.next(1_000) is None
    assert made.next(1_000 + jobfold.BACKOFF_MS[-1]).job_id == "job-1"


def test_a_back_off_ends_though_the_clock_is_set_back():
    made = matching_of([replace(job(), changed_at_ms=50_000, not_before_ms=52_000)], [node()])
    assert made.next(51_000) is None
    assert made.next(1_000) is None
    assert made.next(3_000).job_id == "job-1"


def test_a_job_goes_to_no_node_where_it_ran_out_of_memory_and_lets_the_next_one_pass():
    out = m.LeaseLost(attempt=1, code="out_of_memory", reason="too little", memory_bytes=2**20)
    lost = replace(worlds.lost_on("node-a", "died"), lost=out)
    first = replace(job(), attempts=(lost,))
    second = replace(job(), job_id="job-2", submitted_at_ms=5)
    made = matching_of([first, second], [node()])
    assert [(each.job_id, each.node_id) for each in made.plan(NOW_MS)] == [("job-2", "node-a")]
    made = matching_of([first, second], [node(), node("node-b")])
    assert [(each.job_id, each.node_id) for each in made.plan(NOW_MS)] == [("job-1", "node-b"), ("job-2", "node-a")]
    why = made.plan(NOW_MS)[0].explanation["candidates"]
    assert (why[-1]["node_id"], why[-1]["refused"]) == ("node-a", "it ran out of memory here")


def test_the_node_with_the_most_cores_and_the_one_with_the_largest_gpu_are_not_taken_for_one():
    """What a subtree offers at most may be of two nodes of it, and neither fits."""
    small, large = (m.Gpu(name="gpu", memory_bytes=gib * 2**30) for gib in (8, 24))
    kinds = [{"cores": 8, "gpus": [small]}, {"cores": 2, "gpus": [large]}]
    there = [node(f"node-{number:02}", hardware=kinds[number % 2]) for number in range(30)]
    wanted = replace(job(needs=m.Needs(device="cuda", cores=8)), gpu_memory_bytes=10 * 2**30)
    assert matching_of([wanted], there).next(NOW_MS) is None
    both = node("node-both", hardware={"cores": 8, "gpus": [large], "memory_bytes": 2**32})
    assert matching_of([wanted], [*there, both]).next(NOW_MS).node_id == "node-both"


def test_a_job_that_left_is_not_due():
    made = matching_of([replace(job(), not_before_ms=7_000)], [node()])
    assert made.next(0) is None
    made.waits_no_more("job-1")
    assert made.next_due_ms() is None


def test_nobody_stands_in_the_line_before_somebody_has_room_and_then_all_do_in_order():
    waiting = [job(f"job-{number}", at_ms=number) for number in range(40)]
    made = matching_of(waiting, [])
    assert made.plan(NOW_MS) == [] and len(made.line) == 0
    made.waits_no_more("job-0")
    made.has_room(node(max_runs=2))
    assert [choice.job_id for choice in made.plan(NOW_MS)] == ["job-1", "job-2"]
    assert len(made.line) == 39
    made.waits(job("job-late", at_ms=50))
    made.waits(job("job-early", at_ms=0))
    assert [choice.job_id for choice in made.plan(NOW_MS)] == ["job-early", "job-1"]


def test_nobody_looks_at_jobs_that_ask_for_a_node_without_room(monkeypatch):
    full = replace(node("node-a"), active_runs=node("node-a").node.max_runs)
    pinned = [job(f"job-{n}", n, needs=m.Needs(node_id="node-a")) for n in range(200)]
    elsewhere = job("job-last", 1_000)
    made, looked = matching_of([*pinned, elsewhere], [full, node("node-b")]), []
    best = made._best
    monkeypatch.setattr(made, "_best", lambda each: looked.append(each.job_id) or best(each))
    assert made.next(NOW_MS).job_id == "job-last" and looked == ["job-last"]
    made.has_room(node("node-a"))
    assert (made.next(NOW_MS).job_id, made.next(NOW_MS).node_id) == ("job-0", "node-a")
    for each in pinned:
        made.waits_no_more(each.job_id)
    assert made.line.counts() == {Needs(False, 1): 1}


def test_a_checker_gets_only_what_nobody_else_has_room_for():
    plain = node("node-a", hardware={"flops_per_s": 1e9})
    checker = replace(node("node-b", hardware={"flops_per_s": 1e12}), checker=True)
    made = matching_of([job("job-1"), job("job-2", 1)], [plain, checker])
    assert [(each.job_id, each.node_id) for each in made.plan(NOW_MS)] == [("job-1", "node-a"), ("job-2", "node-b")]
