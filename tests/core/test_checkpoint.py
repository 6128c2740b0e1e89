"""Checkpoints: a run that goes on from one is, to the bit, the run that was never interrupted."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore import checkpoint, safetensors
from cyxcore.errors import CheckpointError
from cyxcore.spec import BatchMetrics, EpochMetrics, OptimizerSpec, ScheduleSpec, TrainingSpec, TrainingSummary
from cyxcore.training import Trainer

MLP = [{"kind": "Linear", "out_features": 8}, {"kind": "Dropout", "p": 0.3}, {"kind": "Linear", "out_features": 3}]
CNN = [
    {"kind": "Reshape", "shape": [1, 4, 4]},
    {"kind": "Conv2d", "out_channels": 3, "kernel_size": 3},
    {"kind": "BatchNorm2d"},
    {"kind": "Dropout", "p": 0.1},
    {"kind": "Flatten"},
    {"kind": "Linear", "out_features": 3},
]
ADAM = OptimizerSpec(learning_rate=0.02)
MOMENTUM = OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
CASES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "dropout, adam, keep best": (MLP, {"optimizer": ADAM}, 12),
    "batch norm, adamw, keep last": (
        CNN,
        {"optimizer": OptimizerSpec(name="adamw", learning_rate=0.02), "keep": "last"},
        12,
    ),
    "momentum, nothing held out": (MLP, {"optimizer": MOMENTUM}, 0),
    "dampened momentum": (MLP, {"optimizer": OptimizerSpec(name="sgd", momentum=0.9, dampening=0.5)}, 12),
    "adam of the largest moment": (
        CNN,
        {"optimizer": OptimizerSpec(learning_rate=0.02, amsgrad=True, weight_decay=0.1, decoupled_weight_decay=True)},
        12,
    ),
    "batch norm, plain sgd, whole batches": (
        CNN,
        {"optimizer": OptimizerSpec(name="sgd", learning_rate=0.1), "batch_size": 10},
        12,
    ),
    "nadam, plateau, clipped norm": (
        MLP,
        {
            "optimizer": OptimizerSpec(name="nadam", learning_rate=0.05),
            "schedule": ScheduleSpec(name="plateau", patience=0, factor=0.5),
            "clip_norm": 0.5,
        },
        12,
    ),
    "centred rmsprop, cosine after a warm-up, smoothed labels": (
        MLP,
        {
            "optimizer": OptimizerSpec(name="rmsprop", learning_rate=0.01, centered=True, momentum=0.9, l1=1e-3),
            "schedule": ScheduleSpec(name="cosine", warmup_steps=3, final=0.1),
            "label_smoothing": 0.1,
            "clip_value": 0.1,
        },
        12,
    ),
}


class Rows(NamedTuple):
    x_train: Any
    y_train: Any
    x_val: Any
    y_val: Any


def rows(held_out: int = 12, seed: int = 3) -> Rows:
    """30 rows to train on: batches of 8, 8, 8 and 6."""
    x = np.random.default_rng(seed).normal(0, 2, (30 + held_out, 16)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1)
    return Rows(x[:30], y[:30], x[30:], y[30:])


def spec(**options: Any) -> TrainingSpec:
    return TrainingSpec(**{"epochs": 3, "batch_size": 8, "seed": 11, "optimizer": ADAM, **options})


def start(case: str = "dropout, adam, keep best", resume: Path | None = None) -> Trainer:
    layers, options, held_out = CASES[case]
    graph = cx.build(input_shape=[16], layers=layers, normalize="standard")
    return Trainer.of_job(graph, rows(held_out), spec(**options), resume=resume)


def said_without_time(said: Any) -> dict[str, Any]:
    timings = ("batch_time_ms", "epoch_time_ms", "samples_per_s", "total_time_ms")
    return {name: value for name, value in msgspec.to_builtins(said).items() if name not in timings}


def arrays(trainer: Trainer) -> dict[str, bytes]:
    held = {f"state.{name}": array for name, array in trainer.learner.state().items()}
    return {name: array.tobytes() for name, array in {**held, **trainer.weights}.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drive(trainer: Trainer, folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """(all that the trainer says, a checkpoint after each of these)."""
    said, files = [], []
    for one in trainer.run():
        said.append(said_without_time(one))
        files.append(folder / f"{len(files)}.checkpoint")
        trainer.checkpoint(files[-1], synced=False)
    return said, files


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_at_any_point_says_and_ends_as_if_nothing_had_happened(
    each_device: str, case: str, tmp_path: Path
) -> None:
    whole = start(case)
    said, files = drive(whole, tmp_path)
    last = tmp_path / "resumed.checkpoint"
    for place, file in enumerate(files):
        resumed = start(case, resume=file)
        assert [said_without_time(one) for one in resumed.run()] == (said[place + 1 :] or said[-1:])
        assert arrays(resumed) == arrays(whole)
        resumed.checkpoint(last)
        assert digest(last) == digest(files[-1])


@given(stops=st.lists(st.integers(1, 6), max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_often_a_run_is_interrupted_its_checkpoints_have_the_same_digests(
    stops: list[int], tmp_path: Path
) -> None:
    _, files = drive(start(), tmp_path)
    expected = [digest(file) for file in files]
    trainer, at, place = start(), tmp_path / "at.checkpoint", 0
    for count in stops:
        run = trainer.run()
        for _ in range(min(count, len(expected) - 1 - place)):
            next(run)
            place += 1
        if place:
            trainer.checkpoint(at)
            assert digest(at) == expected[place - 1]
            trainer = start(resume=at)
    for _ in trainer.run():
        pass
    trainer.checkpoint(at)
    assert digest(at) == expected[-1]


def test_the_delivered_model_of_a_resumed_run_has_the_same_bytes(tmp_path: Path) -> None:
    def delivered(trainer: Trainer, name: str) -> str:
        for _ in trainer.run():
            pass
        history = [checkpoint.untimed(metrics) for metrics in trainer.history]
        cx.save_model(tmp_path / name, trainer.learner.graph, trainer.weights, history=history)
        return digest(tmp_path / name)

    interrupted = start()
    run = interrupted.run()
    for _ in range(7):
        next(run)
    interrupted.checkpoint(tmp_path / "at")
    whole = delivered(start(), "whole.cyxmodel")
    assert delivered(start(resume=tmp_path / "at"), "resumed.cyxmodel") == whole


NANS = {"float32": ("u4", 0x7FC00000, 0xFFC00001), "float64": ("u8", 0x7FF8 << 48, 0xFFF8 << 48)}


@pytest.mark.parametrize("dtype", NANS)
def test_which_nan_a_processor_makes_is_not_in_a_checkpoint(stored: Path, tmp_path: Path, dtype: str) -> None:
    found, digests = checkpoint.load(stored), set()
    bits, *kinds = NANS[dtype]
    for nan in kinds:
        array = np.array([0x3F800000, nan, 0x80000000], bits).view(dtype)
        state = msgspec.structs.replace(found, state=found.state | {"odd": array}, delivered={"odd": array})
        checkpoint.save(tmp_path / "odd", state)
        assert array.view(bits)[1] == nan  # the run goes on with its own
        kept = checkpoint.load(tmp_path / "odd").state["odd"]
        assert np.isnan(kept[1]) and kept.view(bits)[::2].tolist() == array.view(bits)[::2].tolist()
        digests.add(hashlib.sha256((tmp_path / "odd").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_checkpoint_before_the_first_step_is_the_beginning(tmp_path: Path) -> None:
    whole = start()
    whole.checkpoint(tmp_path / "at")
    resumed = start(resume=tmp_path / "at")
    assert [type(said) for said in resumed.run()] == [type(said) for said in whole.run()]
    assert arrays(resumed) == arrays(whole)


def test_a_checkpoint_of_the_end_gives_only_the_summary(tmp_path: Path) -> None:
    whole = start()
    *_, summary = whole.run()
    whole.checkpoint(tmp_path / "end")
    (again,) = start(resume=tmp_path / "end").run()
    assert isinstance(again, TrainingSummary) and said_without_time(again) == said_without_time(summary)


def test_epochs_before_a_resume_have_no_timings(tmp_path: Path) -> None:
    whole = start()
    drive(whole, tmp_path)
    assert whole.history[0].epoch_time_ms > 0
    resumed = start(resume=tmp_path / "4.checkpoint")  # what came fifth was the end of the first epoch
    assert [(one.epoch_time_ms, one.samples_per_s) for one in resumed.history] == [(0.0, 0.0)]
    assert (resumed.epoch, resumed.batch, resumed.step, resumed.steps) == (2, 0, 4, 12)


def test_batches_and_epochs_are_numbered_on_after_a_resume(tmp_path: Path) -> None:
    drive(start(), tmp_path)
    said = list(start(resume=tmp_path / "5.checkpoint").run())
    assert isinstance(said[0], BatchMetrics) and (said[0].epoch, said[0].batch, said[0].step) == (2, 2, 6)
    assert [one.epoch for one in said if isinstance(one, EpochMetrics)] == [2, 3]


# -- what is not a checkpoint of this run ------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    trainer = start()
    run = trainer.run()
    for _ in range(6):
        next(run)
    trainer.checkpoint(tmp_path / "at")
    return tmp_path / "at"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": CNN}, "graph_sha256: expected"),
        ({"spec": spec(seed=12)}, "training.seed: expected 12, got 11"),
        ({"spec": spec(epochs=4)}, "training.epochs: expected 4, got 3"),
        ({"rows": rows(seed=4)}, r"rows: expected \(30, 16\) float32 "),
        ({"device": "reference"}, "numerics: expected reference, got cyx-exact/1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(stored: Path, change: dict[str, Any], named: str) -> None:
    graph = cx.build(input_shape=[16], layers=change.get("layers", MLP), normalize="standard")
    with pytest.raises(CheckpointError, match=named):
        Trainer.of_job(
            graph, change.get("rows", rows()), change.get("spec", spec()), None, change.get("device"), stored
        )


def test_a_change_of_one_bit_anywhere_is_noticed(stored: Path) -> None:
    whole = stored.read_bytes()
    start_of_data = 8 + int.from_bytes(whole[:8], "little")
    for place in np.linspace(start_of_data, len(whole) - 1, 9).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        stored.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            start(resume=stored)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.999])
def test_a_file_that_was_cut_off_is_refused(stored: Path, kept: float) -> None:
    whole = stored.read_bytes()
    stored.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        start(resume=stored)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        start(resume=tmp_path / "none")


def test_another_safetensors_file_is_no_checkpoint(tmp_path: Path) -> None:
    safetensors.save(tmp_path / "weights", {"0.weight": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="expected the format 'cyx-checkpoint/1', got 'none'"):
        start(resume=tmp_path / "weights")


def test_a_checkpoint_of_a_newer_cyx_is_refused_in_one_sentence(tmp_path: Path) -> None:
    metadata = {"format": "cyx-checkpoint/12", "what": "a later version knows"}
    safetensors.save(tmp_path / "later", {"state.0.weight": np.zeros(3, np.float32)}, metadata)
    with pytest.raises(CheckpointError) as caught:
        start(resume=tmp_path / "later")
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'later'}: it was written by a newer Cyx (cyx-checkpoint/12; this one reads "
        "cyx-checkpoint/1): update Cyx to read it"
    )


@pytest.mark.parametrize("got", ["cyx-checkpoint/0", "cyx-checkpoint/x", "cyx-model/9", "cyx-checkpoint", "", "none"])
def test_what_is_no_checkpoint_at_all_is_of_no_newer_cyx(tmp_path: Path, got: str) -> None:
    safetensors.save(tmp_path / "other", {"a": np.zeros(3, np.float32)}, {"format": got})
    with pytest.raises(CheckpointError, match=f"expected the format 'cyx-checkpoint/1', got '{got}'"):
        start(resume=tmp_path / "other")


def with_arrays(**changes: Any) -> Callable[[Any], Any]:
    return lambda found: msgspec.structs.replace(found, state={**found.state, **changes})


def changed(**changes: Any) -> Callable[[Any], Any]:
    return lambda found: msgspec.structs.replace(found, **changes)


def at(**changes: Any) -> Callable[[Any], Any]:
    return lambda found: msgspec.structs.replace(found, position=msgspec.structs.replace(found.position, **changes))


@pytest.mark.parametrize(
    ("forge", "named"),
    [
        (with_arrays(more=np.zeros(2, np.float32)), r"state: missing none, not known \['more'\]"),
        (with_arrays(**{"0.bias": np.zeros(2, np.float32)}), r"0.bias: expected float32 \(8,\), got float32 \(2,\)"),
        (with_arrays(**{"0.bias": np.zeros(8, np.int64)}), "got int64"),
        (changed(state={}), "state: missing"),
        (changed(delivered={}), "delivered: missing"),
        (changed(notes={"rows": "many"}), "contradicts itself"),
        (changed(notes={"epoch_steps": [1, 2, 3]}), "contradicts itself"),
        (changed(notes={"callbacks": [1]}), "contradicts itself"),
        (
            lambda found: changed(losses=[math.inf, -math.inf], right=[])(at(batch=2, step=6)(found)),
            "contradicts itself",
        ),
        (at(step=6), "batch 1 of epoch 2 does not follow 6 steps"),
        (at(batch=5, step=9), "epoch.losses: expected float64"),
        (at(epoch=9), "history.epoch_loss"),
        (at(epoch=0), "expected the losses of -1 epochs"),
        (at(best_epoch=2), "epoch 2 cannot be the best before epoch 2"),
        (at(best_epoch=0), "epoch 0 cannot be the best before epoch 2"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(stored: Path, forge: Any, named: str) -> None:
    checkpoint.save(stored, forge(checkpoint.load(stored)))
    with pytest.raises(CheckpointError, match=named):
        start(resume=stored)


def test_a_position_beyond_the_run_is_refused() -> None:
    for epoch, batch in ((4, 1), (5, 0), (1, 5)):
        position = checkpoint.Position(epoch=epoch, batch=batch, step=(epoch - 1) * 4 + batch, best_epoch=1)
        with pytest.raises(CheckpointError, match="is not in a run of 3 epochs with 4 batches"):
            checkpoint.check_position(position, batches=4, epochs=3)


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, trainer = digest(stored), start(resume=stored)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        trainer.checkpoint(stored)
    assert digest(stored) == before and list(stored.parent.iterdir()) == [stored]
