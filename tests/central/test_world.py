"""The fold of the whole log: what one subject's events mean for another."""

import random

import pytest
from msgspec.structs import replace

from cyxcentral import jobrules, jobs, nodes, schedule
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from tests.central import facts as f

WAITING = (f.submitted(), f.FUNDED)


class Log:
    """A world, fed by the second."""

    def __init__(self, unproven=None):
        self.world = World(unproven=unproven)

    def job(self, *events, job_id="job-1"):
        for event in events:
            self._say(subjects.job_event(job_id), event)
        return self

    def node(self, *events, node_id="node-a"):
        for event in events:
            self._say(subjects.node_event(node_id), event)
        return self

    def _say(self, subject, event):
        seq = self.world.seq + 1
        self.world.apply(seq, subject, m.Record(command_id=f"{seq:032x}", at_ms=seq * 1000, by="c", event=event))


def planned(log, now_ms=10**9):
    return [(choice.job_id, choice.node_id) for choice in log.world.matching.plan(now_ms)]


def test_the_room_that_a_job_was_promised_is_free_again_though_it_asks_for_more_now():
    log = Log().node(f.registered()).job(*WAITING, f.leased())
    free = log.world.candidate("node-a").memory_free_bytes
    log.job(m.LeaseLost(attempt=1, code="out_of_memory", reason="too little", memory_bytes=2**30))
    assert log.world.candidate("node-a").memory_free_bytes == free + 2**28
    assert log.world.jobs["job-1"].memory_bytes == 2**30 + 2**28


def test_a_queued_job_is_planned_and_a_leased_one_is_not():
    log = Log().node(f.registered()).job(*WAITING)
    assert planned(log) == [("job-1", "node-a")]
    assert planned(log.job(f.leased())) == []


def test_a_lease_takes_room_and_its_end_gives_it_back():
    log = Log().node(f.registered()).job(*WAITING, f.leased())
    log.job(f.submitted("job-2"), f.FUNDED, job_id="job-2")
    assert planned(log) == []
    held = log.world.candidate("node-a")
    assert (held.active_runs, held.node.hardware.memory_bytes - held.memory_free_bytes) == (1, 2**28)
    assert planned(log.job(f.lost(deterministic=True))) == [("job-1", "node-a")]
    assert log.world.candidate("node-a").memory_free_bytes == held.node.hardware.memory_bytes


def test_a_run_that_wants_a_gpu_has_one_for_itself():
    wanting = {"needs": m.Needs(device="cuda")}
    log = Log().node(f.registered(max_runs=4, hardware={"gpus": [m.Gpu(name="gpu", memory_bytes=2**34)]}))
    for number in (1, 2, 3):
        log.job(f.submitted(f"job-{number}", **(wanting if number < 3 else {})), f.FUNDED, job_id=f"job-{number}")
    at_once = [("job-1", "node-a"), ("job-3", "node-a")]
    assert planned(log) == at_once
    log.job(f.leased(), job_id="job-1")
    assert (log.world.candidate("node-a").gpu_runs, log.world.candidate("node-a").gpu_free_bytes) == (1, 0)
    assert planned(log) == [("job-3", "node-a")]
    assert planned(log.job(f.lost(), job_id="job-1")) == at_once


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("limit", [0, 2 * f.AMOUNT])
def test_whatever_happens_the_plan_is_what_looking_at_everyone_finds(seed, limit):
    dice, log = random.Random(seed), Log(schedule.Unproven(limit_base_units=limit))
    world, planned_at_all = log.world, 0
    for _ in range(250):
        node_id, job_id = f"node-{dice.randrange(4)}", f"job-{dice.randrange(12)}"
        job = world.jobs.get(job_id)
        attempt = job.attempt if job else 0
        holder = job.attempts[-1].node_id if attempt else node_id
        if dice.random() < 0.3:
            ban = m.NodeBanned(until_ms=world.seq * 1000 + dice.randrange(20_000), reason="a test")
            event = dice.choice([*[f.registered(node_id, max_runs=3)] * 3, f.node_lost(node_id), ban])
            if nodes.illegal(world.nodes.get(node_id), event) is None:
                log.node(event, node_id=node_id)
        else:
            lease, end = f.leased(attempt + 1, node_id), f.completed(attempt, holder)
            level = m.PriorityChanged(priority=dice.randrange(10), caller="alice")
            some = [f.submitted(job_id), f.FUNDED, lease, lease, f.lost(attempt), end, f.CANCELLED, level]
            event = dice.choice(some)
            if jobrules.illegal(job, event) is None:
                log.job(event, job_id=job_id)
        now_ms = world.seq * 1000
        waiting = [job for job in world.jobs.values() if jobs.waits(job)]
        online = {each: world.candidate(each, now_ms) for each in world.nodes}
        expected = schedule.assign(waiting, online, schedule.Weights(), now_ms)
        assert world.matching.plan(now_ms) == expected
        planned_at_all += len(expected)
    assert planned_at_all > 20


def test_a_waiting_job_that_becomes_urgent_is_the_next_one():
    log = Log().node(f.registered()).job(*WAITING)
    log.job(f.submitted("job-2"), f.FUNDED, job_id="job-2")
    assert planned(log) == [("job-1", "node-a")]
    assert planned(log.job(m.PriorityChanged(priority=1, caller="alice"), job_id="job-2")) == [("job-2", "node-a")]
    assert planned(log.job(m.PriorityChanged(priority=0, caller="alice"), job_id="job-2")) == [("job-1", "node-a")]


def test_a_lost_node_gets_nothing_until_it_is_back():
    log = Log().node(f.registered(), f.node_lost()).job(*WAITING)
    assert planned(log) == []
    assert planned(log.node(f.registered(session="1" * 32))) == [("job-1", "node-a")]


def test_a_banned_node_gets_nothing_whatever_it_says_until_its_time_is_over():
    log = Log().node(f.registered(), m.NodeBanned(until_ms=500_000, reason="3 strikes")).job(*WAITING)
    log.node(f.registered(session="1" * 32))
    assert planned(log, 499_999) == []
    assert planned(log, 500_000) == [("job-1", "node-a")]


def test_a_node_that_is_lost_with_a_lease_is_struck_once():
    log = Log().node(f.registered()).job(*WAITING, f.leased()).node(f.node_lost())
    log.job(replace(f.lost(), code="node_lost"))
    node = log.world.nodes["node-a"]
    assert (node.reputation, node.strikes, node.jobs_failed) == (70.0, 1, 1)


def test_a_success_elsewhere_blames_the_nodes_that_failed_before_and_not_the_one_that_tried_again():
    log = Log().node(f.registered()).node(f.registered("node-b"), node_id="node-b")
    log.job(*WAITING, f.leased(1, "node-a"), f.lost(1), f.leased(2, "node-b"), f.lost(2))
    assert [node.strikes for node in log.world.nodes.values()] == [0, 0]
    log.job(f.leased(3, "node-b"), f.completed(3, "node-b"))
    assert {node_id: node.strikes for node_id, node in log.world.nodes.items()} == {"node-a": 1, "node-b": 0}


def test_a_job_that_fails_everywhere_strikes_nobody():
    log = Log().node(f.registered()).node(f.registered("node-b"), node_id="node-b")
    log.job(*WAITING, f.leased(1, "node-a"), f.lost(1), f.leased(2, "node-b"), f.lost(2), f.leased(3), f.lost(3))
    assert [node.strikes for node in log.world.nodes.values()] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "gain"),
    [({}, 0.5), ({"needs": m.Needs(node_id="node-a")}, 0.0)],
    ids=["the network chose the node", "the client named the node"],
)
def test_a_node_gains_by_the_fee_of_what_it_completed_once_that_is_paid(changes, gain):
    submitted = replace(f.submitted(**changes), reference_fee_base_units=f.AMOUNT // 5)
    log = Log().node(f.registered()).job(submitted, f.FUNDED, f.leased(), f.STARTED, f.completed(), f.SIGNED_SETTLE)
    assert log.world.nodes["node-a"].reputation == nodes.START_REPUTATION
    log.job(f.settled())
    assert log.world.nodes["node-a"].reputation == nodes.START_REPUTATION + gain


def test_who_made_a_part_of_the_steps_gains_by_the_fee_of_that_part():
    other = "Q" * 43
    log = Log().node(f.registered()).node(f.registered("node-b"), node_id="node-b")
    log.job(replace(f.submitted(), reference_fee_base_units=f.AMOUNT // 10), f.FUNDED, f.leased(), f.STARTED)
    log.job(f.checkpointed(step=75), f.lost(), f.leased(2, "node-b", other, f.checkpoint(75)), m.Started(attempt=2))
    before = log.world.nodes["node-a"].reputation
    log.job(f.completed(2, "node-b"), f.SIGNED_SETTLE, f.settled())
    assert log.world.nodes["node-b"].reputation == nodes.START_REPUTATION + 0.25
    assert log.world.nodes["node-a"].reputation == before, "who lost it is not praised for it"


def test_a_node_with_three_strikes_is_a_suspect_until_it_is_banned():
    log = Log().node(f.registered())
    for _ in range(3):
        log.job(*WAITING, f.leased(1), replace(f.lost(1), code="run_missing"))
        log.world.jobs.clear()  # the same id again
    assert log.world.suspects == {"node-a"}
    ban = nodes.ban_due(log.world.nodes["node-a"], 10_000)
    assert log.node(ban).world.suspects == set()


def stored(attempt, step, kept=False):
    state = m.Checkpoint(step=step, steps=100, state=m.ArtifactRef(sha256=f"{step:064x}", size=7))
    who = {"attempt": attempt, "node_id": "node-a", "signature": "d" * 128}
    return m.Checkpointed(checkpoint=state, kept=kept, **who)


def test_the_other_end_of_a_segment_that_is_kept_no_more_is_named_no_more():
    log = Log().node(f.registered()).job(*WAITING, f.leased(), stored(1, 10), f.lost(code="node_stopped"))
    log.job(f.leased(2, resume=stored(1, 10).checkpoint), stored(2, 20, kept=True), stored(2, 30), stored(2, 40))
    log.job(f.lost(2, code="node_stopped"))
    for attempt, step in ((3, 40), (4, 30), (5, 10)):
        state = stored(2, step).checkpoint
        log.job(f.leased(attempt, resume=state), f.lost(attempt, code="bad_checkpoint", discards=state))
    assert log.world.jobs["job-1"].kept is None
    fresh = World()
    fresh.take_jobs([log.world.jobs["job-1"]])
    assert log.world.named == fresh.named


def test_checks_have_the_order_of_the_log_whatever_the_clocks_said():
    log = Log().node(f.registered())
    for job_id in ("job-9", "job-1"):
        log.job(f.submitted(job_id), f.FUNDED, f.leased(), m.Started(attempt=1), job_id=job_id)
    segment = m.SignedSegment(attempt=1, end=f.completed().model)
    for at_ms, job_id in ((9_000_000, "job-9"), (10, "job-1")):
        seq, event = log.world.seq + 1, replace(f.completed(), segment=segment)
        record = m.Record(command_id=f"{seq:032x}", at_ms=at_ms, by="c", event=event)
        assert log.world.apply(seq, subjects.job_event(job_id), record) is None
    assert log.world.jobs["job-1"].check.since_ms > log.world.jobs["job-9"].check.since_ms
