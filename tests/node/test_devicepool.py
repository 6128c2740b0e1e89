"""Which run gets which NVIDIA device: the pool by itself, and in the state of a node through random days."""

import random
from typing import Any

import pytest
from msgspec.structs import replace

from cyxnet.messages import CommandReply, Needs
from cyxnode import events as e
from cyxnode.devicepool import JOBS_REMEMBERED, LEAST_FREE_BYTES, POLICIES, Device, DevicePool, chosen
from cyxnode.errors import NodeError
from cyxnode.state import State, held_gpus, step
from tests.node.test_state import JOB, SESSION, assign, failed

GIB = 2**30


def device(index: int, free_gib: float = 40, busy_percent: float = 0.0) -> Device:
    free_bytes = int(free_gib * GIB)
    return Device(
        index=index, uuid=f"GPU-{index}", memory_bytes=80 * GIB, free_bytes=free_bytes, busy_percent=busy_percent
    )


FOUR = (device(0, 10), device(1, 70, 90.0), device(2, 40), device(3, 40))


def given(pool: DevicePool, *wanted: tuple[str, set[str]]) -> list[str]:
    """What jobs get, one after the other; (job, uuids that are held then)."""
    found = []
    for job_id, held in wanted:
        choice = pool.choose(job_id, held)
        assert not isinstance(choice, str), choice
        pool = choice[0]
        found.append(choice[1].uuid)
    return found


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("first", ["GPU-0", "GPU-0", "GPU-1", "GPU-0"]),
        ("most-memory", ["GPU-1", "GPU-1", "GPU-1", "GPU-2"]),
        ("least-utilized", ["GPU-2", "GPU-2", "GPU-2", "GPU-2"]),
        ("round-robin", ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]),
        ("affinity", ["GPU-2", "GPU-2", "GPU-2", "GPU-2"]),
    ],
)
def test_a_policy_chooses_among_the_free(policy: str, wanted: list[str]) -> None:
    asked = [("a", set[str]()), ("b", set[str]()), ("c", {"GPU-0"}), ("d", {"GPU-1"})]
    assert given(DevicePool(devices=FOUR, policy=policy), *asked) == wanted


def test_round_robin_goes_on_behind_the_last_and_from_the_start_again() -> None:
    pool = DevicePool(devices=FOUR, policy="round-robin")
    asked = [("a", {"GPU-0"}), ("b", {"GPU-2"}), ("c", {"GPU-0"}), ("d", set[str]())]
    assert given(pool, *asked) == ["GPU-1", "GPU-3", "GPU-1", "GPU-2"]


def test_affinity_is_the_device_that_the_job_had_unless_it_is_taken() -> None:
    pool = DevicePool(devices=FOUR, policy="affinity")
    asked = [("a", {"GPU-2", "GPU-3"}), ("b", set[str]()), ("a", set[str]()), ("a", {"GPU-0"})]
    assert given(pool, *asked) == ["GPU-0", "GPU-2", "GPU-0", "GPU-2"]


def test_what_was_given_is_remembered_of_so_many_jobs() -> None:
    pool = DevicePool(devices=FOUR, policy="affinity")
    for number in range(JOBS_REMEMBERED + 5):
        choice = pool.choose(f"job-{number}", ())
        assert not isinstance(choice, str)
        pool = choice[0]
    assert len(pool.given) == JOBS_REMEMBERED and pool.given[0].job_id == "job-5"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_that_others_have_filled_is_passed_over(policy: str) -> None:
    full = replace(device(0), free_bytes=LEAST_FREE_BYTES - 1)
    enough = replace(device(1), free_bytes=LEAST_FREE_BYTES, busy_percent=99.0)
    pool = DevicePool(devices=(full, enough), policy=policy)
    assert given(pool, ("a", set())) == ["GPU-1"]
    assert pool.choose("a", {"GPU-1"}) == "no device with 512 MiB free: other programs have left 511 at most"
    assert pool.choose("a", {"GPU-0", "GPU-1"}) == "no free device: 2 of 2 are busy"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_has_the_memory_that_is_asked_for(policy: str) -> None:
    pool = DevicePool(devices=(device(0, 8), device(1, 24)), policy=policy)
    for _ in range(2):
        choice = pool.choose("a", (), 10 * GIB)
        assert not isinstance(choice, str)
        pool = choice[0]
        assert choice[1].uuid == "GPU-1"
    assert (
        pool.choose("b", {"GPU-1"}, 9 * 2**30) == "no device with 9216 MiB free: other programs have left 8192 at most"
    )


def test_a_reading_changes_its_devices_and_no_others() -> None:
    pool = DevicePool(devices=FOUR).read([device(1, 5), device(9, 1)])
    assert pool.devices == (FOUR[0], device(1, 5), FOUR[2], FOUR[3])


@pytest.mark.parametrize(
    ("said", "wanted"),
    [(None, [0, 1, 2, 3]), ("", []), ("none", []), ("-1", []), ("2", [2]), ("3, 0", [3, 0]), ("GPU-1,2", [1, 2])],
)
def test_an_operator_names_devices(said: str | None, wanted: list[int]) -> None:
    assert [each.index for each in chosen(FOUR, said)] == wanted


@pytest.mark.parametrize("said", ["4", "0,0", "0,GPU-0", "GPU-", "0,,1", "all"])
def test_a_name_that_means_no_device_or_one_twice_is_an_error(said: str) -> None:
    with pytest.raises(NodeError, match="which has 0 .GPU-0., 1 "):
        chosen(FOUR, said)


# in the state of a node -----------------------------------------------------------------------------


def wanting(job_id: str, attempt: int = 1, wanted: str = "cuda") -> e.Assigned:
    job = replace(JOB, needs=Needs(device=wanted))  # type: ignore[arg-type]
    return e.Assigned(replace(assign(job_id, attempt), job=job))


def test_a_run_gets_a_device_with_the_memory_that_its_order_names() -> None:
    needy = wanting_bytes(10 * GIB)
    both = node(devices=(device(0, 8), device(1, 24)), policy="first")
    assert started(step(both, needy, 1)[1]) == "GPU-1"
    own = replace(needy.assign, gpu_memory_bytes=0, job=replace(needy.assign.job, needs=OWN_NEEDS))
    assert started(step(both, e.Assigned(own), 1)[1]) == "GPU-1"


def test_what_other_programs_leave_is_told_once_a_run_misses_it_and_again_when_there_is_more() -> None:
    state, _ = step(node(devices=(device(0, 0.25), device(1, 8))), e.HeartbeatAnswered(known=True), 1)
    assert told(state) == ()  # nobody has missed any of it
    state, done = step(state, wanting_bytes(10 * GIB), 2)
    assert started(done) is None and state.heartbeat_at_ms == 2
    assert told(state) == (GIB // 4, 8 * GIB)
    state, _ = step(state, e.HeartbeatAnswered(known=True), 3)
    usual_ms = state.heartbeat_at_ms
    for little in (device(0, 0), device(0, 10)):  # less, or not so much more: programs come and go
        state, _ = step(state, e.DevicesRead((little,)), 4)
        assert (told(state), state.heartbeat_at_ms) == ((GIB // 4, 8 * GIB), usual_ms)
    state, _ = step(state, e.DevicesRead((device(0, 10.25),)), 5)  # an eighth of its 80 GiB
    assert (told(state), state.heartbeat_at_ms) == ((10 * GIB + GIB // 4, 8 * GIB), 5)
    assert started(step(state, wanting_bytes(10 * GIB), 6)[1]) == "GPU-0"


def told(state: State) -> tuple[int, ...]:
    """What the next heartbeat says of the devices."""
    beats = step(state, e.Tick(), 10**6)[1]
    (beat,) = [action for action in beats if isinstance(action, e.SendHeartbeat)]
    return beat.gpus_free_bytes


def wanting_bytes(gpu_memory_bytes: int) -> e.Assigned:
    asked = wanting("job-1")
    return replace(asked, assign=replace(asked.assign, gpu_memory_bytes=gpu_memory_bytes))


OWN_NEEDS = Needs(device="cuda", gpu_memory_bytes=10 * GIB)


def node(devices: tuple[Device, ...] = FOUR, max_runs: int = 6, **changes: Any) -> State:
    new = State(node_id="node-a", session=SESSION, max_runs=max_runs, gpus=DevicePool(devices=devices, **changes))
    return step(new, e.Registered(1000), 0)[0]


def reply(done: list[e.Action]) -> CommandReply:
    (found,) = [action.reply for action in done if isinstance(action, e.Answer)]
    return found


def started(done: list[e.Action]) -> str | None:
    """The device of the run that starts; None where none does."""
    found = [action.gpu for action in done if isinstance(action, e.StartRun)]
    return found[0] if found else None


def test_runs_of_one_node_have_a_device_each_and_the_next_is_refused() -> None:
    state, gpus = node(devices=FOUR[:2]), []
    for number in range(2):
        state, done = step(state, wanting(f"job-{number}"), 1)
        gpus.append(started(done))
    assert gpus == ["GPU-0", "GPU-1"]
    state, done = step(state, wanting("job-2"), 1)
    assert (started(done), reply(done).reason) == (None, "no free device: 2 of 2 are busy")
    state, done = step(state, wanting("job-3", wanted="any"), 1)
    assert started(done) == ""  # what needs none goes beside them
    state, _ = step(state, e.RunEnded(("job-0", 1), replace(failed(), job_id="job-0")), 2)
    state, done = step(state, wanting("job-2"), 3)
    assert started(done) == "GPU-0"  # although the end of job-0 was not heard of yet


def test_a_newer_attempt_takes_the_device_of_the_one_that_it_replaces() -> None:
    state, _ = step(node(devices=FOUR[:1]), wanting("job-1"), 1)
    state, done = step(state, wanting("job-1", attempt=2), 2)
    assert started(done) == "GPU-0" and list(state.runs) == [("job-1", 2)]


def test_a_node_without_devices_leaves_it_to_the_training_to_say_so() -> None:
    """Without nvidia-ml-py a node cannot say what it has; it announces none, and is given no such job."""
    assert started(step(node(devices=()), wanting("job-1"), 1)[1]) == ""


def test_what_a_run_takes_is_not_taken_for_somebody_elses() -> None:
    state, _ = step(node(devices=FOUR[:2]), wanting("job-1"), 1)
    (mine,) = held_gpus(state)
    state, _ = step(state, e.DevicesRead((device(0, 0), device(1, 0))), 2)
    read = {each.uuid: each.free_bytes for each in state.gpus.devices}
    assert read[mine] > 0 and [free for uuid, free in read.items() if uuid != mine] == [0]


@pytest.mark.parametrize("policy", POLICIES)
def test_through_random_days_no_device_has_two_runs_and_none_is_lost(policy: str) -> None:
    refused = runs_begun = 0
    for seed in range(20):
        dice = random.Random(f"{policy}-{seed}")
        state = node(policy=policy, max_runs=dice.choice([3, 4, 8]))
        for moment in range(200):
            keys = list(state.runs)
            key = dice.choice(keys) if keys else ("job-0", 1)
            readings = [
                device(index, dice.choice([0, 0.4, 0.5, 8, 70]), dice.choice([0.0, 50.0])) for index in range(4)
            ]
            happened = dice.choice([
                wanting(f"job-{moment}", wanted=dice.choice(["cuda", "cuda", "any"])),
                wanting(f"job-{moment}"),
                wanting(key[0], key[1] + 1),
                e.RunEnded(key, replace(failed(), job_id=key[0], attempt=key[1])),
                e.ReportAnswered(key, accepted=dice.random() < 0.8),
                e.HeartbeatAnswered(known=True, stop=(key,)),
                e.DevicesRead(tuple(dice.sample(readings, dice.randint(0, 4)))),
            ])  # fmt: skip
            before = state
            state, done = step(state, happened, moment)
            holders = [run.gpu for run in state.runs.values() if run.gpu and run.phase != "reporting"]
            assert len(holders) == len(set(holders)) and set(holders) == held_gpus(state)
            for run in state.runs.values():
                assert bool(run.gpu) == (run.assign.job.needs.device == "cuda")
            if isinstance(happened, e.Assigned) and happened.assign.job.needs.device == "cuda":
                free = {each.uuid: each for each in before.gpus.devices if each.uuid not in holders}
                if gpu := started(done):
                    runs_begun += 1
                    read = {each.uuid: each.free_bytes for each in before.gpus.devices}
                    assert gpu in holders and read[gpu] >= LEAST_FREE_BYTES
                elif "device" in reply(done).reason:
                    refused += 1
                    assert all(each.free_bytes < LEAST_FREE_BYTES for each in free.values())
    assert runs_begun > 100 and refused > 100
