"""The training loop on the real digits: it learns, it repeats itself to the bit, it says what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import drawing, nn, optim
from cyxcore.errors import DataError, DivergedError, ShapeError, SpecError
from cyxcore.evaluation import Evaluator
from cyxcore.graphlearner import GraphLearner
from cyxcore.objectives import training_step
from cyxcore.spec import BatchMetrics, EpochMetrics, OptimizerSpec, ScheduleSpec, TrainingSpec, TrainingSummary
from cyxcore.training import Trainer

DIGITS = Path(__file__).parents[2] / "examples" / "digits.csv"


@dataclass
class Rows:
    x_train: Any
    y_train: Any
    x_val: Any
    y_val: Any


@pytest.fixture(scope="module")
def digits() -> Rows:
    table = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=np.float32)
    table = table[drawing.permutation(0, 1, len(table))]
    x, y = table[:, :-1], table[:, -1].astype(np.int64)
    return Rows(x[:1437], y[:1437], x[1437:], y[1437:])


def few(rows: Rows, train: int = 150, val: int = 60) -> Rows:
    return Rows(rows.x_train[:train], rows.y_train[:train], rows.x_val[:val], rows.y_val[:val])


MLP = [
    {"kind": "Linear", "out_features": 128},
    {"kind": "ReLU"},
    {"kind": "Linear", "out_features": 64},
    {"kind": "ReLU"},
    {"kind": "Linear", "out_features": 10},
]
CNN = [
    {"kind": "Reshape", "shape": [1, 8, 8]},
    {"kind": "Conv2d", "out_channels": 8, "kernel_size": 3, "padding": 1},
    {"kind": "BatchNorm2d"},
    {"kind": "ReLU"},
    {"kind": "MaxPool2d", "kernel_size": 2},
    {"kind": "Flatten"},
    {"kind": "Dropout", "p": 0.1},
    {"kind": "Linear", "out_features": 10},
]


def model(layers: list[dict[str, Any]] = MLP, normalize: Any = "standard") -> cx.Graph:
    return cx.build(input_shape=[64], layers=layers, normalize=normalize)


def finish(trainer: Trainer) -> TrainingSummary:
    *_, summary = trainer.run()
    assert isinstance(summary, TrainingSummary)
    return summary


def spec(**options: Any) -> TrainingSpec:
    return TrainingSpec(**{"epochs": 2, "optimizer": OptimizerSpec(learning_rate=0.002), "seed": 7, **options})


def test_an_mlp_reads_97_percent_of_the_digits(digits: Rows) -> None:
    summary = finish(Trainer.of_job(model(normalize="minmax"), digits, spec(epochs=20)))
    assert summary.validation_accuracy is not None and summary.validation_accuracy >= 0.97


def test_a_cnn_learns(each_device: str, digits: Rows) -> None:
    trainer = Trainer.of_job(model(CNN), digits, spec(epochs=2, optimizer=OptimizerSpec(learning_rate=0.005)))
    summary = finish(trainer)
    assert summary.validation_accuracy is not None and summary.validation_accuracy >= 0.93
    assert np.abs(trainer.weights["2.running_mean"]).max() > 0.01


@pytest.mark.parametrize("layers", [MLP, CNN], ids=["mlp", "cnn"])
def test_the_same_inputs_give_the_same_bits(each_device: str, digits: Rows, layers: Any) -> None:
    runs = []
    for _ in range(2):
        trainer = Trainer.of_job(model(layers), few(digits), spec())
        finish(trainer)
        runs.append({name: array.tobytes() for name, array in trainer.weights.items()})
    assert runs[0] == runs[1]


def test_another_seed_gives_other_weights(each_device: str, digits: Rows) -> None:
    losses = {finish(Trainer.of_job(model(), few(digits), spec(seed=seed))).final_loss for seed in (1, 2)}
    assert len(losses) == 2


def test_evaluating_the_delivered_weights_gives_the_reported_numbers(each_device: str, digits: Rows) -> None:
    rows = Rows(digits.x_train[:200], digits.y_train[:200], digits.x_val, digits.y_val)  # validation in two batches
    trainer = Trainer.of_job(model(CNN), rows, spec(epochs=3))
    summary = finish(trainer)
    again = cx.evaluate(trainer.learner.graph, trainer.weights, rows.x_val, rows.y_val, "cross_entropy")
    assert again == {"loss": summary.validation_loss, "accuracy": summary.validation_accuracy}


def test_metrics_come_in_order_and_count_every_row(reference: None, digits: Rows) -> None:
    trainer = Trainer.of_job(model(), few(digits, 150, 60), spec(batch_size=64))
    said = list(trainer.run())
    assert [type(m) for m in said] == ([BatchMetrics] * 3 + [EpochMetrics]) * 2 + [TrainingSummary]
    batches = [m for m in said if isinstance(m, BatchMetrics)]
    assert [(m.epoch, m.batch, m.batches, m.step) for m in batches] == [
        (1, 1, 3, 1),
        (1, 2, 3, 2),
        (1, 3, 3, 3),
        (2, 1, 3, 4),
        (2, 2, 3, 5),
        (2, 3, 3, 6),
    ]
    epoch = trainer.history[0]
    assert epoch.epoch_loss == pytest.approx(
        sum(m.batch_loss * n for m, n in zip(batches[:3], (64, 64, 22), strict=True)) / 150
    )
    summary = said[-1]
    assert isinstance(summary, TrainingSummary)
    assert (summary.steps, summary.train_rows, summary.validation_rows) == (6, 150, 60)
    assert summary.parameters == trainer.learner.graph.parameter_count


def test_every_row_is_seen_once_an_epoch(reference: None, digits: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = GraphLearner.step

    def watched(self: GraphLearner, rows: np.ndarray, number: int) -> tuple[float, float | None]:
        seen.extend(rows.tolist())
        return step(self, rows, number)

    monkeypatch.setattr(GraphLearner, "step", watched)
    finish(Trainer.of_job(model(), few(digits, 50), spec(epochs=1, batch_size=16)))
    assert sorted(seen) == list(range(50)) and seen != list(range(50))


def test_a_batch_larger_than_the_data_is_the_data(reference: None, digits: Rows) -> None:
    assert finish(Trainer.of_job(model(), few(digits, 20), spec(epochs=1, batch_size=4096))).steps == 1


def test_the_best_epoch_is_delivered(reference: None, digits: Rows) -> None:
    trainer = Trainer.of_job(model(), few(digits, 60), spec(epochs=12, optimizer=OptimizerSpec(learning_rate=0.02)))
    summary = finish(trainer)
    losses = [m.validation_loss for m in trainer.history]
    assert summary.delivered_epoch == summary.best_epoch == losses.index(min(x for x in losses if x is not None)) + 1
    assert summary.delivered_epoch < 12
    held = cx.evaluate(
        trainer.learner.graph, trainer.weights, trainer.learner.x_val, trainer.learner.y_val, "cross_entropy"
    )
    assert held["loss"] == summary.validation_loss == min(x for x in losses if x is not None)


def test_the_last_epoch_is_delivered_on_request(reference: None, digits: Rows) -> None:
    trainer = Trainer.of_job(
        model(), few(digits, 60), spec(epochs=12, keep="last", optimizer=OptimizerSpec(learning_rate=0.02))
    )
    summary = finish(trainer)
    assert summary.delivered_epoch == 12 > summary.best_epoch
    assert summary.validation_loss == trainer.history[-1].validation_loss


def test_without_validation_rows_there_are_no_validation_numbers(reference: None, digits: Rows) -> None:
    summary = finish(Trainer.of_job(model(), few(digits, 60, 0), spec()))
    assert summary.validation_loss is None and summary.validation_rows == 0 and summary.best_epoch == 2


def test_input_statistics_come_from_the_training_rows(reference: None, digits: Rows) -> None:
    trainer = Trainer.of_job(model(), digits, spec())
    x = digits.x_train.astype(np.float64)
    std = x.std(0)
    np.testing.assert_allclose(trainer.learner.state()["normalize.mean"], x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(trainer.learner.state()["normalize.std"], np.where(std > 0, std, 1), rtol=1e-6)
    assert (std == 0).any()


def test_image_statistics_are_per_channel(reference: None) -> None:
    x = np.random.default_rng(0).uniform(2, 5, (20, 3, 4, 4)).astype(np.float32)
    layers = [{"kind": "Flatten"}, {"kind": "Linear", "out_features": 2}]
    graph = cx.build(input_shape=[3, 4, 4], layers=layers, normalize="minmax")
    trainer = Trainer.of_job(graph, Rows(x, np.arange(20) % 2, None, None), spec())
    assert trainer.learner.state()["normalize.min"].tolist() == x.min((0, 2, 3)).reshape(3, 1, 1).tolist()
    np.testing.assert_allclose(trainer.learner.state()["normalize.range"].reshape(3), np.ptp(x, (0, 2, 3)), rtol=1e-6)


def line(rows: int = 400) -> Rows:
    x = np.random.default_rng(1).normal(3, 2, (rows, 3)).astype(np.float32)
    y = (x @ np.array([[10.0], [-20.0], [5.0]]) + 100).astype(np.float32)
    return Rows(x[:300], y[:300], x[300:], y[300:])


def test_a_regression_answers_in_raw_units(each_device: str) -> None:
    layers = [{"kind": "Linear", "out_features": 1}]
    graph = cx.build(input_shape=[3], layers=layers, normalize="standard", denormalize=True)
    rows = line()
    trainer = Trainer.of_job(graph, rows, spec(epochs=60, loss="mse", optimizer=OptimizerSpec(learning_rate=0.02)))
    summary = finish(trainer)
    assert summary.validation_r2 is not None and summary.validation_r2 > 0.999 and summary.final_accuracy is None
    np.testing.assert_allclose(cx.predict(graph, trainer.weights, rows.x_val), rows.y_val, atol=3)
    assert cx.evaluate(graph, trainer.weights, rows.x_val, rows.y_val[:, 0], "mse")["r2"] == summary.validation_r2


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_the_other_distances_learn_a_line_too(reference: None, loss: Any) -> None:
    graph = cx.build(
        input_shape=[3], layers=[{"kind": "Linear", "out_features": 1}], normalize="standard", denormalize=True
    )
    summary = finish(
        Trainer.of_job(graph, line(), spec(epochs=60, loss=loss, optimizer=OptimizerSpec(learning_rate=0.02)))
    )
    assert summary.validation_r2 is not None and summary.validation_r2 > 0.99


def test_binary_labels_train_with_bce(each_device: str) -> None:
    rows = line()
    labels = [(y[:, 0] > 70).astype(np.int64) for y in (rows.y_train, rows.y_val)]
    graph = cx.build(input_shape=[3], layers=[{"kind": "Linear", "out_features": 1}], normalize="standard")
    binary = replace(rows, y_train=labels[0], y_val=labels[1])
    summary = finish(
        Trainer.of_job(graph, binary, spec(epochs=30, loss="bce", optimizer=OptimizerSpec(learning_rate=0.05)))
    )
    assert summary.validation_accuracy is not None and summary.validation_accuracy > 0.95


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerSpec(name="sgd", learning_rate=0.5),
        OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9),
        OptimizerSpec(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        OptimizerSpec(name="adam", learning_rate=0.003, weight_decay=1e-4),
        OptimizerSpec(name="adamw", learning_rate=0.003, weight_decay=0.01),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw"],
)
def test_every_optimizer_learns(each_device: str, digits: Rows, optimizer: OptimizerSpec) -> None:
    trainer = Trainer.of_job(model(), few(digits, 400), spec(epochs=3, optimizer=optimizer))
    finish(trainer)
    assert trainer.history[-1].epoch_loss < 0.7 * trainer.history[0].epoch_loss


def test_given_weights_are_where_training_starts(reference: None, digits: Rows) -> None:
    first = Trainer.of_job(model(), few(digits), spec(epochs=3))
    finish(first)
    second = Trainer.of_job(model(), few(digits), spec(epochs=1), weights=first.weights)
    assert second.learner.state()["0.weight"].tobytes() == first.weights["0.weight"].tobytes()
    finish(second)
    assert second.history[0].epoch_loss < first.history[0].epoch_loss


def test_a_traced_module_trains_like_its_layer_list(reference: None, digits: Rows) -> None:
    traced, _ = cx.trace(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), (64,))
    layers = [
        {"kind": "Linear", "out_features": 16},
        {"kind": "ReLU"},
        {"kind": "Linear", "out_features": 10},
    ]
    losses = {finish(Trainer.of_job(g, few(digits), spec())).final_loss for g in (traced, model(layers, "none"))}
    assert len(losses) == 1


def test_a_run_that_diverges_says_where(reference: None) -> None:
    rows = line()
    graph = cx.build(input_shape=[3], layers=[{"kind": "Linear", "out_features": 1}])
    trainer = Trainer.of_job(
        graph, rows, spec(epochs=50, loss="mse", optimizer=OptimizerSpec(name="sgd", learning_rate=50.0))
    )
    with pytest.raises(DivergedError, match=r"became (inf|nan) at step \d+; try a learning_rate below 50.0"):
        finish(trainer)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"x_train": np.zeros((5, 3), np.float32), "y_train": np.zeros(5, np.int64)},
            ShapeError,
            r"expected inputs \(rows, 64\), got \(5, 3\)",
        ),
        ({"y_train": np.array([0, 1, 10, 2, 3])}, DataError, "labels must be 0..9; row 3 is 10"),
        ({"y_train": np.array([0, -1, 1, 2, 3])}, DataError, "row 2 is -1"),
        ({"y_train": np.zeros(5)}, DataError, "integer class indices, got float64"),
        ({"y_train": np.zeros((5, 2), np.int64)}, ShapeError, r"expected \(5,\)"),
        (
            {"x_train": np.zeros((0, 64), np.float32), "y_train": np.zeros(0, np.int64)},
            DataError,
            "at least one training row",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    rows = replace(Rows(np.zeros((5, 64), np.float32), np.zeros(5, np.int64), None, None), **change)
    with pytest.raises(error, match=message):
        Trainer.of_job(model(), rows, spec(), device="reference")


def test_cross_entropy_needs_one_axis_of_outputs() -> None:
    graph = cx.build(input_shape=[64], layers=[{"kind": "Reshape", "shape": [8, 8]}])
    with pytest.raises(ShapeError, match=r"cross_entropy: expected a model output \(classes,\)"):
        Trainer.of_job(graph, Rows(np.zeros((5, 64)), np.zeros(5, np.int64), None, None), spec(), device="reference")


def test_nesterov_without_momentum_is_refused(digits: Rows) -> None:
    with pytest.raises(SpecError, match="momentum above 0"):
        Trainer.of_job(
            model(), few(digits), spec(optimizer=OptimizerSpec(name="sgd", nesterov=True)), device="reference"
        )


def test_predictions_do_not_depend_on_the_other_rows(each_device: str, digits: Rows) -> None:
    evaluator = Evaluator(model(), Trainer.of_job(model(), few(digits), spec()).learner.state())
    together = evaluator.predict(digits.x_val[:50])
    alone = np.concatenate([evaluator.predict(row[None]) for row in digits.x_val[:5]])
    np.testing.assert_allclose(together[:5], alone, rtol=1e-5, atol=1e-6)


def test_no_rows_give_no_predictions(reference: None) -> None:
    graph = model([{"kind": "Linear", "out_features": 3}], "none")
    weights = {"0.weight": np.zeros((3, 64), np.float32), "0.bias": np.zeros(3, np.float32)}
    assert cx.predict(graph, weights, np.zeros((0, 64))).shape == (0, 3)


def eager_epochs(net: nn.Module, rows: Rows) -> Iterator[float]:
    """The README's ten lines."""
    optimizer = optim.Adam(net.parameters(), lr=0.005)
    for epoch in range(1, 4):
        for start in range(0, len(rows.x_train), 64):
            chosen = drawing.permutation(0, epoch, len(rows.x_train))[start : start + 64]
            loss = nn.CrossEntropyLoss()(net(cx.tensor(rows.x_train[chosen] / 16)), cx.tensor(rows.y_train[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with cx.no_grad():
            yield float((net(cx.tensor(rows.x_val / 16)).argmax(1) == cx.tensor(rows.y_val)).mean())


def test_a_loop_written_by_hand_learns_the_digits(each_device: str, digits: Rows) -> None:
    cx.manual_seed(0)
    accuracies = list(eager_epochs(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), digits))
    assert accuracies[-1] > 0.9


@pytest.mark.parametrize("name", ["step", "exponential", "cosine", "linear", "one_cycle", "plateau"])
def test_a_schedule_changes_the_learning_rate_that_is_reported(reference: None, digits: Rows, name: Any) -> None:
    schedule = ScheduleSpec(name=name, period=1, patience=0, warmup_steps=2)
    spec = TrainingSpec(epochs=4, batch_size=75, optimizer=OptimizerSpec(learning_rate=0.5), schedule=schedule)
    said = [
        entry.learning_rate
        for entry in Trainer.of_job(model(), few(digits), spec).run()
        if isinstance(entry, BatchMetrics)
    ]
    assert said[:2] == pytest.approx([0.5 / 3, 1.0 / 3])
    assert len(said) == 8 and said[-1] < 0.26


def test_label_smoothing_goes_with_cross_entropy_only(digits: Rows) -> None:
    with pytest.raises(SpecError, match="label_smoothing goes with cross_entropy, the loss is mse"):
        training_step(model(), 4, TrainingSpec(loss="mse", label_smoothing=0.1))
