"""A part of a training once more: whoever trains it, from wherever, finds the digest that was signed."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from cyxcore.errors import CheckpointError
from cyxcore.kernels import cpu
from cyxcore.spec import DataSpec, ModelSpec, OptimizerSpec, TrainingSpec
from cyxnet import identity
from cyxnet.messages import (
    FIRST_CHECK,
    ArtifactRef,
    Assign,
    Checkpoint,
    CheckpointPolicy,
    Pause,
    Segment,
    segment_bytes,
)
from cyxnode.pipe import Done, Halted, Order, Saved
from cyxnode.train import Unattended, prepare, save_model, train
from cyxnode.uploads import Uploads
from tests.node.fake_central import FakeCentral, make_assign

Start = Callable[..., Any]
WAIT_S = 60.0
LAYERS: list[dict[str, Any]] = [
    {"kind": "Linear", "out_features": 96},  # wide enough that two threads share it
    {"kind": "BatchNorm1d"},
    {"kind": "ReLU"},
    {"kind": "Dropout", "p": 0.2},
    {"kind": "Linear", "out_features": 96},
    {"kind": "Linear", "out_features": 2},
]
TABLE = ("a,b,label\n" + "".join(f"{a},{b},{int(a + b > 7)}\n" for a in range(8) for b in range(8))).encode()
TRAINING = TrainingSpec(epochs=3, batch_size=10, seed=5, optimizer=OptimizerSpec(learning_rate=0.02))
KINDS = {
    "classes": (LAYERS, DataSpec(), TRAINING),
    "numbers": ([*LAYERS[:-1], {"kind": "Linear", "out_features": 1}], DataSpec(), replace(TRAINING, loss="mse")),
    "momentum": (LAYERS, DataSpec(), replace(TRAINING, optimizer=OptimizerSpec(name="sgd", momentum=0.9))),
}


@pytest.fixture(params=KINDS)
def order(tmp_path: Path, request: pytest.FixtureRequest) -> Order:
    layers, data, training = KINDS[request.param]
    (tmp_path / "data.csv").write_bytes(TABLE)
    return Order(
        model=ModelSpec(input=[2], layers=layers),
        data=data,
        training=training,
        data_path=str(tmp_path / "data.csv"),
        out_path=str(tmp_path / "model.cyxmodel"),
        threads=1,
        memory_bytes=0,
        file_bytes=10**8,
    )


def states_of(order: Order) -> dict[int, bytes]:
    """The states that a run of this order leaves, by their steps, and its model as step 0."""
    folder, found = Path(order.out_path).parent, {}
    for said in train(order, Unattended()):
        if isinstance(said, Saved):
            found[said.step] = (folder / said.file).read_bytes()
            (folder / said.file).unlink()
        elif isinstance(said, Done):
            found[0] = Path(order.out_path).read_bytes()
    return found


def test_a_state_has_the_same_bytes_however_it_was_got_to(order: Order, tmp_path: Path) -> None:
    """Step by step, at another cadence, from any state on."""
    every = states_of(replace(order, every_steps=1))
    last = max(every)
    assert set(every) == set(range(last + 1)) and len(set(every.values())) == last + 1
    for cadence in (4, 5):
        some = states_of(replace(order, every_steps=cadence))
        assert len(some) == 1 + last // cadence and some == {step: every[step] for step in some}
    for first, end in ((0, 3), (2, 9), (6, 7), (11, 0)):
        assert states_of(part_of(order, tmp_path, every, first, end)) == {end: every[end]}, (first, end)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_a_state_has_the_same_bytes_with_any_instruction_set_and_more_threads(
    order: Order, tmp_path: Path, own_machine: None, isa: str
) -> None:
    cpu.set_isa("portable" if cpu.isa() == isa else cpu.isa())  # another one than that which trains it again
    every = states_of(replace(order, every_steps=1))
    try:
        cpu.set_isa(isa)
    except ValueError:
        pytest.skip(f"this machine has no {isa}")
    for first, end in ((0, 9), (11, 0)):
        again = replace(part_of(order, tmp_path, every, first, end), threads=2)
        assert states_of(again) == {end: every[end]}, (first, end)


def part_of(order: Order, folder: Path, every: dict[int, bytes], first: int, end: int) -> Order:
    """The order of the segment between two of these states; 0: the beginning, or the model."""
    (folder / "start").write_bytes(every.get(first, b""))
    return replace(order, resume_path=str(folder / "start") if first else None, end_step=end)


def test_a_segment_ends_with_its_state_and_makes_no_step_more(order: Order) -> None:
    *_, saved, halted = train(replace(order, end_step=5), Unattended())
    assert isinstance(saved, Saved) and isinstance(halted, Halted) and saved.step == halted.step == 5
    assert not Path(order.out_path).exists()


def test_a_segment_may_end_with_the_state_after_the_very_last_step(order: Order) -> None:
    steps = max(states_of(replace(order, every_steps=1))) + 1
    *_, saved, halted = train(replace(order, end_step=steps), Unattended())
    assert isinstance(saved, Saved) and halted == Halted(step=steps, steps=steps)


def test_a_segment_that_ends_where_it_cannot_is_refused(order: Order, tmp_path: Path) -> None:
    (tmp_path / "start").write_bytes(states_of(replace(order, every_steps=4))[4])
    for end_step in (3, 4, 1000):
        with pytest.raises(CheckpointError, match=f"begins after step 4 of .* cannot end at step {end_step}"):
            list(train(replace(order, resume_path=str(tmp_path / "start"), end_step=end_step), Unattended()))


def test_which_nan_a_processor_makes_is_not_in_the_model(order: Order) -> None:
    job, models = prepare(order), set()
    *_, summary = job.trainer.run()
    for bits in (0x7FC00000, 0xFFC00001):
        weights = {name: np.full_like(array, np.uint32(bits).view("f4")) for name, array in job.trainer.weights.items()}
        job.trainer.weights = weights
        save_model(order, job, summary)
        models.add(Path(order.out_path).read_bytes())
    assert len(models) == 1


# -- on a node ----------------------------------------------------------------------------------------------

STEPWISE = CheckpointPolicy(every_steps=4, every_s=0.0)
SLOW = replace(TRAINING, epochs=60_000)


async def registered(node: Any, central: FakeCentral) -> Any:
    register = await central.wait_for("register", lambda said: said.node_id == node.home.node_id)
    await asyncio.wait_for(node.ready.wait(), WAIT_S)
    return register


def check_of(register: Any, central: FakeCentral, segment: Segment, attempt: int = FIRST_CHECK, **job: Any) -> Assign:
    whole = {"layers": LAYERS, "training": TRAINING, "checkpoints": STEPWISE, **job}
    return replace(make_assign(register, central.store.add(TABLE), attempt=attempt, **whole), segment=segment)


async def trained(node: Any, central: FakeCentral) -> tuple[Any, list[Checkpoint], ArtifactRef]:
    """What a node signed for the job: its registration, its checkpoints, its model."""
    register = await registered(node, central)
    await central.command(register.node_id, replace(check_of(register, central, Segment(), 1), segment=None))
    done = await central.wait_for("completed")
    stored = [said.checkpoint for verb, said in central.heard if verb == "checkpoint"]
    return register, stored, done.model


async def test_a_check_finds_the_digests_that_the_node_signed_and_stores_nothing(
    central: FakeCentral, start_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A state that is still on its way when the model is there is not stored; here it is waited for.
    monkeypatch.setattr(Uploads, "close", Uploads.settle)
    _, stored, model = await trained(await start_node("train", name="first"), central)
    register = await registered(await start_node("train", name="checker"), central)
    assert register.checks
    segments = [
        (Segment(start=None, end_step=stored[0].step), stored[0].state),
        (Segment(start=stored[-1]), model),
        (Segment(), model),
    ]
    there, before = set(central.store.manifests), len(central.heard)
    for number, (segment, expected) in enumerate(segments, FIRST_CHECK):
        reply = await central.command(register.node_id, check_of(register, central, segment, number))
        assert reply.accepted, reply.reason
        said = await central.wait_for("segment", lambda said, number=number: said.attempt == number)
        assert (said.segment, said.end) == (segment, expected)
        assert identity.verify(register.public_key, segment_bytes(said), said.signature)
    assert set(central.store.manifests) == there
    assert {verb for verb, _ in central.heard[before:]} <= {"segment", "heartbeat", "hardware"}


async def test_a_check_frees_the_nodes_place(central: FakeCentral, start_node: Start) -> None:
    register, _, model = await trained(await start_node("train"), central)
    for number in (FIRST_CHECK, FIRST_CHECK + 1):
        assert (await central.command(register.node_id, check_of(register, central, Segment(), number))).accepted
        said = await central.wait_for("segment", lambda said, number=number: said.attempt == number)
        assert said.end == model


async def test_a_check_is_named_in_heartbeats_and_ends_as_a_run_does(central: FakeCentral, start_node: Start) -> None:
    register = await registered(await start_node("train"), central)
    await central.command(register.node_id, check_of(register, central, Segment(), training=SLOW))
    beat = await central.wait_for("heartbeat", lambda beat: any(run.step for run in beat.runs))
    (run,) = beat.runs
    assert (run.attempt, run.phase) == (FIRST_CHECK, "training")
    pause = Pause(job_id="job-1", attempt=FIRST_CHECK, session=register.session)
    assert (await central.command(register.node_id, pause)).accepted
    failed = await central.wait_for("failed")
    assert (failed.attempt, failed.code) == (FIRST_CHECK, "paused") and not central.count("checkpoint")


async def test_a_start_that_is_no_state_of_the_job_fails_the_check(central: FakeCentral, start_node: Start) -> None:
    register = await registered(await start_node("train"), central)
    start = Checkpoint(step=4, steps=21, state=central.store.add(b"no state"))
    await central.command(register.node_id, check_of(register, central, Segment(start=start)))
    failed = await central.wait_for("failed")
    assert (failed.attempt, failed.code) == (FIRST_CHECK, "bad_checkpoint")


def test_what_is_signed_of_a_check_binds_it_to_the_run_the_segment_and_the_digest() -> None:
    from tests.net.test_golden import KINDS as MESSAGES
    from tests.net.test_golden import example

    said = example(MESSAGES["SegmentTrained"])
    start = said.segment.start
    changes = [
        {"node_id": "another-node"},
        {"session": "cd" * 16},
        {"job_id": "another-job"},
        {"attempt": 502},
        {"segment": replace(said.segment, end_step=8)},
        {"segment": replace(said.segment, start=None)},
        {"segment": replace(said.segment, start=replace(start, step=8))},
        {"segment": replace(said.segment, start=replace(start, state=replace(start.state, sha256="ee" * 32)))},
        {"end": replace(said.end, sha256=hashlib.sha256().hexdigest())},
        {"end": replace(said.end, size=8)},
        {"network_id": "another network"},
        {"sequence": 8},
        {"expires_ms": 8},
    ]
    signed = [segment_bytes(said), *(segment_bytes(replace(said, **change)) for change in changes)]
    assert len(set(signed)) == 1 + len(changes)
