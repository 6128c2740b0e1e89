"""cx.Trainer: fit, evaluate and predict of a module; how a fit stops, resumes and shows itself."""

import io
import math
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import callbacks, checkpoint, history, lr_scheduler, metrics, nn, optim, plotting, progress
from cyxcore.errors import CheckpointError, DataError, DivergedError, GraphError, MissingExtra, ShapeError, SpecError
from cyxcore.spec import BatchMetrics, EpochMetrics

RNG = np.random.default_rng(5)
X = RNG.normal(size=(70, 6)).astype(np.float32)
Y = (X @ RNG.normal(size=(6, 3))).argmax(1)
VALUES = (X[:, :2] * 2.0 - 1.0).astype(np.float32)


def net(dropout: float = 0.0, outputs: int = 3) -> nn.Module:
    cx.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, outputs))


def trainer(model: nn.Module | None = None, lr: float = 0.01, **options: Any) -> cx.Trainer:
    model = model or net()
    return cx.Trainer(model, nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=lr), **options)


def fit(made: cx.Trainer, **options: Any) -> history.History:
    return made.fit(X, Y, **{"epochs": 3, "batch_size": 16, "progress": False, **options})


def after_a_failure() -> cx.Trainer:
    """A new trainer of a model that a fit of NaN has left without a number in its weights."""
    made = trainer()
    with pytest.raises(DivergedError):
        made.fit(X * math.nan, Y, epochs=1, progress=False)
    return trainer(made.learner.model)


def weights(made: cx.Trainer) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in made.learner.model.state_dict().items()}


def test_a_fit_learns_and_says_so() -> None:
    made = trainer(metrics=["accuracy", "f1_macro"])
    said = fit(made, epochs=20, validation=(X, Y))
    assert said.column("validation_accuracy")[-1] > 0.95 and said.column("loss")[-1] < 0.5 * said.column("loss")[0]
    assert said.columns == "loss accuracy validation_loss validation_accuracy f1_macro validation_f1_macro".split()
    assert (made.epoch, made.step, len(said), said[-1].step) == (21, 100, 20, 100)
    judged = made.evaluate(X, Y, batch_size=11)
    assert judged["accuracy"] == said[-1].validation_accuracy
    assert judged["loss"] == pytest.approx(said[-1].validation_loss, rel=1e-6)
    assert (made.predict(X).argmax(1) == Y).mean() == judged["accuracy"]


def test_compiled_and_eager_steps_give_the_same_bits() -> None:
    both = [trainer(compiled=compiled, clip_norm=0.5, clip_value=0.1) for compiled in (True, False)]
    said = [fit(made, validation=0.2).column("validation_loss") for made in both]
    assert said[0] == said[1] and weights(both[0]) == weights(both[1])


@pytest.mark.parametrize("compiled", [True, False])
def test_batches_that_are_accumulated_make_the_step_of_one_large_batch(compiled: bool) -> None:
    whole = trainer(nn.Linear(6, 3), compiled=compiled)
    parts = trainer(whole_copy := nn.Linear(6, 3), compiled=compiled, accumulate=3)
    whole_copy.load_state_dict(whole.learner.model.state_dict())
    whole.fit(X, Y, epochs=2, batch_size=30, progress=False)  # 30, 30, 10
    parts.fit(X, Y, epochs=2, batch_size=10, progress=False)
    assert parts.learner.optimizer.steps == whole.learner.optimizer.steps == 6
    for name, array in whole.learner.model.state_dict().items():
        np.testing.assert_allclose(parts.learner.model.state_dict()[name], array, rtol=1e-4, atol=1e-6)


class Loader:
    """Batches that know their place, as a data loader does."""

    def __init__(self) -> None:
        self.number, self.place = 1, 0

    def set_epoch(self, number: int) -> None:
        self.number, self.place = number, 0

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng(self.number).permutation(70)
        for start in range(self.place * 16, 70, 16):
            self.place += 1
            yield X[order[start : start + 16]], Y[order[start : start + 16]]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.number, "batch": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.place = state["epoch"], state["batch"]


class EachPoint(callbacks.Callback):
    """A checkpoint after every batch and every epoch."""

    last = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def on_batch_end(self, made: cx.Trainer, said: Any) -> None:
        self.files.append(self.folder / str(len(self.files)))
        made.checkpoint(self.files[-1], synced=False)

    on_epoch_end = on_batch_end


def everything(**options: Any) -> cx.Trainer:
    """A trainer with all that has a state."""
    model = net(dropout=0.3)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    warm = lr_scheduler.LinearLR(optimizer, total_iters=4)
    schedule = lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.ExponentialLR(optimizer, 0.9)], [4])
    given = {
        "scheduler": schedule,
        "scheduler_per": "step",
        "ema": 0.9,
        "accumulate": 2,
        "metrics": ["accuracy", "mae"],
    }
    given |= {"metrics": ["accuracy", "log_loss", "cohen_kappa"], "keep": "best", **options}
    return cx.Trainer(model, nn.CrossEntropyLoss(), optimizer, **given)


@pytest.mark.parametrize("data", ["arrays", "loader", "list"])
@pytest.mark.parametrize("kind", ["all", "plain"])
def test_a_fit_that_is_resumed_anywhere_is_the_same_fit(tmp_path: Path, kind: str, data: str) -> None:
    def run(**options: Any) -> cx.Trainer:
        made = everything() if kind == "all" else plateaued()
        given = {"arrays": (X, Y), "loader": (Loader(),), "list": ([(X[:30], Y[:30]), (X[30:], Y[30:])],)}[data]
        stopping = callbacks.EarlyStopping(patience=50)
        own = [*options.pop("callbacks", []), stopping]
        made.fit(*given, epochs=3, batch_size=16, validation=(X, Y), progress=False, callbacks=own, **options)
        made.checkpoint(tmp_path / "end", synced=False)
        return made

    def plateaued() -> cx.Trainer:
        model = net()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return cx.Trainer(model, "cross_entropy", optimizer, scheduler=plateau)

    points = EachPoint(tmp_path)
    straight = run(callbacks=[points])
    expected = (tmp_path / "end").read_bytes()
    untimed = [checkpoint.untimed(said) for said in straight.history]
    for file in points.files:
        cx.manual_seed(99)
        resumed = run(resume=file)
        assert weights(resumed) == weights(straight), file
        assert [checkpoint.untimed(said) for said in resumed.history] == untimed
        assert (tmp_path / "end").read_bytes() == expected


@pytest.mark.parametrize(
    "change, text",
    [
        ({"x": X + 1}, "rows: expected"),
        ({"batch_size": 8}, "rows: expected"),
        ({"trainer": {"clip_norm": 1.0}}, "training.clip_norm: expected 1.0, got None"),
        ({"trainer": {"model": nn.Linear(6, 3)}}, "graph_sha256"),
        ({"callbacks": []}, r"expected the callbacks with a state \['EarlyStopping'\], as there, got \[\]"),
        ({"epochs": 1}, "not in a run of 1 epochs"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    at = tmp_path / "at"
    fit(trainer(), epochs=2, callbacks=[callbacks.EarlyStopping(), callbacks.Checkpoints(at)])
    given = {"x": X, "epochs": 3, "batch_size": 16, "callbacks": [callbacks.EarlyStopping()], **change}
    made = trainer(**given.pop("trainer", {}))
    with pytest.raises(CheckpointError, match=text):
        made.fit(given.pop("x"), Y, resume=at, progress=False, **given)


def test_a_second_fit_goes_on() -> None:
    once, twice = trainer(), trainer()
    fit(once, epochs=4)
    fit(twice, epochs=1)
    said = fit(twice, epochs=3)
    assert [metrics.epoch for metrics in said] == [1, 2, 3, 4] and weights(once) == weights(twice)


def test_the_best_epoch_is_kept() -> None:
    made = trainer(lr=0.3, keep="best", metrics=["accuracy"], monitor="validation_accuracy")
    said = fit(made, epochs=12, validation=(X[:20], Y[:20]))
    scores = said.column("validation_accuracy")
    assert made.delivered_epoch == 1 + scores.index(max(scores))
    assert made.evaluate(X[:20], Y[:20])["accuracy"] == max(scores)


class Told(callbacks.Callback):
    """Tells the trainer losses of its own."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_epoch_end(self, made: cx.Trainer, said: EpochMetrics) -> None:
        said.validation_loss = self.losses[said.epoch - 1]


@pytest.mark.parametrize(
    "options, losses, epochs",
    [
        ({"patience": 1}, [3.0, 2.0, 2.0, 2.5, 1.0], 4),
        ({"patience": 0}, [3.0, 3.0, 1.0], 2),
        ({"patience": 1, "min_delta": 0.5}, [3.0, 2.6, 2.4, 2.2, 1.95, 0.0, 0.0, 0.0], 5),
        ({"patience": 0, "monitor": "validation_loss", "mode": "max"}, [1.0, 2.0, 3.0, 2.0, 9.0], 4),
    ],
)
def test_a_fit_stops_when_nothing_gets_better(options: dict[str, Any], losses: list[float], epochs: int) -> None:
    made = trainer()
    stopping = callbacks.EarlyStopping(restore_best=False, **options)
    said = fit(made, epochs=len(losses), callbacks=[Told(losses), stopping])
    assert len(said) == epochs and made.stopped.startswith(("the loss was", "validation_loss was"))


def test_a_second_fit_counts_from_its_own_beginning() -> None:
    stopping = callbacks.EarlyStopping(patience=1, restore_best=False)
    fit(trainer(), epochs=4, callbacks=[Told([1.0, 2.0, 2.0, 2.0]), stopping])
    again = trainer()
    assert len(fit(again, epochs=3, callbacks=[Told([5.0, 4.0, 3.0]), stopping])) == 3 and not again.stopped


def test_early_stopping_restores_the_best_epoch() -> None:
    kept: list[dict[str, bytes]] = []

    class Keeping(callbacks.Callback):
        def on_epoch_end(self, made: cx.Trainer, said: EpochMetrics) -> None:
            kept.append(weights(made))

    made = trainer(lr=0.4)
    said = fit(made, epochs=30, validation=(X[:9], Y[:9]), callbacks=[Keeping(), callbacks.EarlyStopping(patience=2)])
    losses = said.column("validation_loss")
    assert len(said) < 30 and weights(made) == kept[losses.index(min(losses))]


def test_callbacks_are_told_in_order() -> None:
    said: list[str] = []

    class Noting(callbacks.Callback):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_"):
                said.append(name)
            return super().__getattribute__(name)

    fit(trainer(), epochs=1, batch_size=35, callbacks=[Noting()])
    batch = ["on_batch_begin", "on_batch_end"]
    begin, end = ["on_fit_begin", "on_epoch_begin"], ["on_epoch_end", "on_fit_end"]
    assert said == [*begin, *batch, *batch, "on_batch_begin", *end]


class Pressing(callbacks.Callback):
    """Ctrl-C after some steps."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.at_step, self.times = step, times

    def on_batch_end(self, made: cx.Trainer, said: Any) -> None:
        if said.step == self.at_step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_after_the_batch_and_keeps_what_was_learned(capsys: pytest.CaptureFixture[str]) -> None:
    made, before = trainer(keep="best"), signal.getsignal(signal.SIGINT)
    said = made.fit(X, Y, epochs=3, batch_size=16, callbacks=[Pressing(7)])
    assert (len(said), made.epoch, made.batch, made.step) == (1, 2, 2, 7)
    text = "stopped by Ctrl-C after batch 2 of epoch 2; the model keeps what it has learned"
    assert capsys.readouterr().err.splitlines()[-1] == text
    straight = trainer()
    straight.learner.source = made.learner.source
    straight.epochs = 3
    for _, _ in zip(range(8), straight.run(), strict=False):  # seven batches and an epoch
        pass
    assert weights(straight) == weights(made)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(fit(made, epochs=1)) == 2


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a program started in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(trainer(), callbacks=[Pressing(2, times=2)])
    finally:
        signal.signal(signal.SIGINT, before)


def test_averaged_weights_are_what_is_judged_and_handed_out() -> None:
    made = trainer(ema=0.5)
    said = fit(made, epochs=2, validation=(X, Y))
    assert made.evaluate(X, Y, batch_size=16)["loss"] == said[-1].validation_loss
    averaged = weights(made)
    made.learner.show_averages(False)
    assert weights(made) != averaged


def test_evaluating_does_not_move_the_random_numbers_of_the_training() -> None:
    both = [trainer(net(dropout=0.5)) for _ in range(2)]
    cx.manual_seed(8)
    fit(both[0])
    cx.manual_seed(8)
    fit(both[1], validation=(X, Y))
    assert weights(both[0]) == weights(both[1])
    assert all(part.training for part in both[1].learner.model.modules())


@pytest.mark.parametrize("per, rates", [("epoch", [1.0] * 5 + [0.5] * 5), ("step", [0.5**step for step in range(10)])])
def test_a_scheduler_steps_after_each_epoch_or_step(per: Any, rates: list[float]) -> None:
    model, said = net(), []

    class Rates(callbacks.Callback):
        def on_batch_end(self, made: cx.Trainer, metrics: Any) -> None:
            said.append(metrics.learning_rate)

    optimizer = optim.SGD(model.parameters(), lr=1.0)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    made = cx.Trainer(model, "cross_entropy", optimizer, scheduler=schedule, scheduler_per=per)
    fit(made, epochs=2, callbacks=[Rates()])
    assert said == rates


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 2), nn.Linear(3, 2)

    def forward(self, a: Any, b: Any) -> Any:
        return self.first(a) + self.second(b)


def test_a_model_may_take_several_inputs() -> None:
    cx.manual_seed(1)
    made = cx.Trainer(model := Sum(), "mse", optim.Adam(model.parameters(), lr=0.05), metrics=["r2"])
    said = made.fit((X, X[:, :3]), VALUES, epochs=30, validation=((X, X[:, :3]), VALUES), progress=False)
    assert said[-1].validation_r2 is not None and said[-1].validation_r2 > 0.99
    assert made.predict((X, X[:, :3])).shape == (70, 2)
    made.fit([((X, X[:, :3]), VALUES), (X, X[:, :3], VALUES)], progress=False)
    assert made.step == 30 * 3 + 2


def test_without_a_target_the_input_is_what_comes_back() -> None:
    cx.manual_seed(2)
    made = cx.Trainer(model := nn.Linear(6, 6), nn.MSELoss(), optim.Adam(model.parameters(), lr=0.05))
    assert made.fit(X, epochs=40, progress=False).column("loss")[-1] < 0.05
    assert made.fit([[X[:8]], [X[8:16]], [X[16:24]]], progress=False)[-1].step == 40 * 3 + 3


def test_lists_and_float64_arrays_become_what_the_model_takes() -> None:
    made = trainer()
    assert len(made.fit(X.astype(np.float64), Y.tolist(), progress=False)) == 1
    assert len(made.fit(cx.tensor(X), cx.tensor(Y), validation=0.3, progress=False)) == 2


def test_data_that_does_not_say_its_length_is_read_to_its_end() -> None:
    made = trainer()
    batches = []

    class Endless(callbacks.Callback):
        def on_batch_end(self, trained: cx.Trainer, said: Any) -> None:
            batches.append((said.batches, said.batch))

    fit(made, epochs=1)
    made.fit(Loader(), epochs=2, callbacks=[Endless()], progress=False)
    assert batches == [(0, number) for _ in range(2) for number in range(1, 6)] and made.history[-1].step == 15


# what is refused ---------------------------------------------------------------------------------


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.part(x) if x.sum().item() > -1e9 else x


def test_a_model_that_looks_at_values_is_told_how_to_run_it() -> None:
    with pytest.raises(GraphError, match="the step cannot be compiled.*or pass compiled=False"):
        fit(trainer(Looking()))
    assert len(fit(trainer(Looking(), compiled=False), validation=(X, Y))) == 3


@pytest.mark.parametrize(
    "call, error, text",
    [
        (
            lambda: cx.Trainer(cx.build(input_shape=[4], layers=[{"kind": "ReLU"}]), 1, 2),
            SpecError,
            r"expected \(module, loss, optimizer\), got Graph and int",
        ),
        (
            lambda: cx.Trainer(m := net(), "mean", optim.SGD(m.parameters())),
            SpecError,
            "a loss out of cross_entropy, mse",
        ),
        (
            lambda: cx.Trainer(m := net(), 3, optim.SGD(m.parameters())),
            SpecError,
            r"function of \(output, target\), got int",
        ),
        (lambda: cx.Trainer(net(), "mse", optim.SGD(net().parameters())), SpecError, "parameters that the model lacks"),
        (lambda: trainer(accumulate=0), SpecError, "accumulate of at least 1, got 0"),
        (lambda: trainer(scheduler_per="week"), SpecError, "scheduler_per 'epoch' or 'step'.*got 'week'"),
        (lambda: trainer(metrics=["f2"]), SpecError, "expected names out of accuracy.*got 'f2'"),
        (lambda: trainer(mode="least"), SpecError, "mode 'min' or 'max'.*got 'least'"),
        (lambda: fit(trainer(), epochs=0), SpecError, "epochs of at least 1, got 0"),
        (lambda: fit(trainer(), batch_size=0), SpecError, "batch_size of at least 1, got 0"),
        (lambda: fit(trainer(), validation=1.5), SpecError, "a share between 0 and 1, or rows, got 1.5"),
        (lambda: trainer().fit(Loader(), validation=0.5), SpecError, r"give rows as validation=\(x, y\)"),
        (lambda: trainer().fit(X, Y[:9]), ShapeError, r"one row for each sample, got \(70, 6\), \(9,\)"),
        (lambda: trainer().fit(X[:0], Y[:0]), DataError, "at least one row, got none"),
        (
            lambda: trainer().fit(iter([(X, Y)]), epochs=2),
            SpecError,
            "read 2 times, got a list_iterator, read only once",
        ),
        (
            lambda: trainer().fit(cx.data.TensorDataset(X, Y)),
            SpecError,
            "a TensorDataset, which gives single rows; put a",
        ),
        (
            lambda: trainer().fit([(X[0], Y[0])]),
            DataError,
            "one row for each sample, got a single number; put a dataset in",
        ),
        (lambda: trainer().predict(cx.data.TensorDataset(X)), SpecError, "expected arrays, .* got TensorDataset"),
        (lambda: trainer().fit(7), SpecError, "arrays, or an iterable of batches, got int"),
        (
            lambda: trainer().fit([{"x": X}], progress=False),
            DataError,
            "batch 1 of epoch 1: expected a tensor or a tuple",
        ),
        (lambda: trainer().fit([(X, "y")], progress=False), DataError, "batch 1 of epoch 1: expected tensors.*got str"),
        (lambda: trainer().fit([], progress=False), DataError, "fit: expected at least one batch"),
        (
            lambda: fit(trainer(), epochs=1, callbacks=[callbacks.EarlyStopping(monitor="f1")]),
            SpecError,
            "one of loss.*'f1'",
        ),
        (lambda: fit(trainer(lr=math.inf)), DivergedError, r"the loss became nan at step 2 \(batch 2 of epoch 1\)"),
        (
            lambda: trainer().fit(np.where(X > 1.0, np.nan, X), Y, epochs=1, batch_size=len(X), progress=False),
            DivergedError,
            rf"\(batch 1 of epoch 1\): {(X > 1.0).any(1).sum()} of the {len(X)} rows .* hold NaN or inf.*Imputer",
        ),
        (lambda: fit(after_a_failure()), DivergedError, "nan at step 1 .* before any update: make the model anew"),
        (lambda: fit(trainer(), resume="nowhere"), CheckpointError, "nowhere: cannot be read"),
        (lambda: callbacks.EarlyStopping(patience=-1), SpecError, "patience of at least 0, got -1"),
        (lambda: callbacks.Checkpoints("x", every_steps=0), SpecError, "every_steps of at least 1 or None, got 0"),
        (lambda: trainer().evaluate([]), DataError, "at least one batch, got none"),
        (lambda: trainer().predict(X[:0]), ShapeError, "arrays with one row per sample"),
        (lambda: history.History().plot(), DataError, "no epoch has ended yet"),
    ],
)
def test_what_does_not_fit_is_said(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


# how it shows itself ------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_each_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(metrics=["accuracy"]).fit(X, Y, epochs=2, validation=(X, Y))
    said = capsys.readouterr()
    assert said.out == "" and [line[:16] for line in said.err.splitlines()] == ["epoch 1/2  loss ", "epoch 2/2  loss "]
    assert "validation accuracy" in said.err and " %  " in said.err and "\x1b" not in said.err


def test_on_a_terminal_a_bar_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    fit(trainer(), callbacks=[progress.Progress(out)])
    assert "━" in out.getvalue() and "epoch 3/3" in out.getvalue() and "\x1b[" in out.getvalue()


def test_a_terminal_is_given_back_when_a_fit_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with pytest.raises(DivergedError):
        trainer().fit(X * math.nan, Y, callbacks=[progress.Progress(out)], progress=False)
    hidden, shown = "\x1b[?25l", "\x1b[?25h"  # the cursor
    assert out.getvalue().count(hidden) == out.getvalue().count(shown) == 1


def test_in_a_notebook_one_cell_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def display(what: Any, display_id: bool) -> Any:
        return SimpleNamespace(update=lambda new: shown.append(new._repr_html_()))

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    trainer().fit(X, Y, epochs=2)
    assert "<progress" in shown[-1] and "epoch 1/2  loss" in shown[-1] and "epoch 2/2  loss" in shown[-1]


def test_the_time_left_is_of_the_batches_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = progress.Progress(io.StringIO())
    now = iter((100.0, 110.0, 120.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    shown.on_fit_begin(trainer())
    told = {
        "epochs": 7,
        "batches": 200,
        "step": 4000,
        "batch_loss": 1.0,
        "batch_time_ms": 1.0,
        "learning_rate": 0.1,
        "samples_per_s": 1.0,
    }
    shown.on_batch_end(trainer(), BatchMetrics(epoch=6, batch=1, **told))
    assert shown.headline().endswith("  1 h 6 min left")  # 399 batches of 10 s, whatever step this is
    shown.on_batch_end(trainer(), BatchMetrics(epoch=7, batch=200, **told))
    assert "left" not in shown.headline() and shown.fraction == 1.0


@pytest.mark.timeout(240)
def test_a_fit_shows_itself_in_the_cell_of_a_kernel() -> None:
    """Runs where ipykernel and nbclient are installed."""
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat")
    code = (
        "import numpy as np, cyxcore as cx\n"
        "x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)\n"
        "model = cx.nn.Linear(4, 2)\n"
        "trainer = cx.Trainer(model, 'cross_entropy', cx.optim.SGD(model.parameters(), lr=0.1))\n"
        "history = trainer.fit(x, (x[:, 0] > 0).astype(np.int64), epochs=2)"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.NotebookClient(book, timeout=200, kernel_name="python3").execute()
    (shown,) = [each for each in book.cells[0].outputs if each.output_type == "display_data"]
    assert "<progress" in shown.data["text/html"] and "epoch 2/2  loss" in shown.data["text/html"]
    assert "epoch 2/2  loss" in shown.data["text/plain"]


def test_a_history_is_drawn_with_letters_where_matplotlib_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = fit(trainer(), validation=(X, Y))
    monkeypatch.setattr(plotting.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    chart = str(said.plot())
    assert "• loss   × validation_loss" in chart and chart.count("•") >= 3
    with pytest.raises(MissingExtra, match=r"pip install 'cyx\[plot\]', or pass backend='text'"):
        said.plot(backend="matplotlib")
    with pytest.raises(SpecError, match="one of matplotlib, text, got 'gnuplot'"):
        said.plot(backend="gnuplot")
    with pytest.raises(DataError, match="expected one of loss, validation_loss, got 'f1'"):
        said.column("f1")


def test_by_factors_a_curve_that_falls_by_factors_is_a_line_and_what_is_not_above_0_a_gap() -> None:
    chart = plotting.plot([0, 1, 2, 3], {"loss": [1.0, 0.1, 0.01, 0.0]}, "text", log_y=True)
    rows = [line.partition("┤")[2] for line in chart.splitlines()[: plotting.HEIGHT]]
    drawn = [(row, line.index("•")) for row, line in enumerate(rows) if "•" in line]
    assert drawn == [(0, 0), (6, 21), (13, 42)] and chart.startswith("   1 ┤") and "0.01 ┤" in chart


def test_matplotlib_draws_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="the extra plot is not installed")
    pyplot.switch_backend("agg")
    axes = fit(trainer(), validation=(X, Y)).plot(["loss"], backend="matplotlib")
    assert axes.lines[0].get_ydata().shape == (3,)


# jobs ---------------------------------------------------------------------------------------------


def test_the_metrics_a_job_may_name_are_those_there_are() -> None:
    import typing

    from cyxcore.spec import MetricName

    assert list(typing.get_args(MetricName)) == list(metrics.METRICS)


def test_a_job_is_not_fitted() -> None:
    from cyxcore.spec import TrainingSpec

    rows = SimpleNamespace(x_train=X, y_train=Y, x_val=None, y_val=None)
    graph = cx.build(input_shape=[6], layers=[{"kind": "Linear", "out_features": 3}])
    job = cx.Trainer.of_job(graph, rows, TrainingSpec(epochs=1), device="reference")
    with pytest.raises(SpecError, match="this trainer is of a job"):
        job.fit(X, Y)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"metrics": ["mae"]}, "mae does not go with loss cross_entropy; expected some of accuracy, top_5"),
        ({"metrics": ["f1"], "held": 0}, "held-out rows, and there are none; raise data.validation"),
    ],
)
def test_metrics_that_a_job_cannot_have_are_refused(options: dict[str, Any], text: str) -> None:
    from cyxcore.spec import TrainingSpec

    held = options.pop("held", 9)
    rows = SimpleNamespace(x_train=X, y_train=Y, x_val=X[:held], y_val=Y[:held])
    graph = cx.build(input_shape=[6], layers=[{"kind": "Linear", "out_features": 3}])
    with pytest.raises(SpecError, match=text):
        cx.Trainer.of_job(graph, rows, TrainingSpec(epochs=1, **options), device="reference")


def test_the_metrics_of_a_job_are_in_its_history_and_its_model(tmp_path: Path) -> None:
    from cyxcore.spec import BatchMetrics, TrainingSpec

    rows = SimpleNamespace(x_train=X, y_train=Y, x_val=X[:50], y_val=Y[:50])
    graph = cx.build(input_shape=[6], layers=[{"kind": "Linear", "out_features": 3}])
    spec = TrainingSpec(epochs=3, metrics=["f1_macro", "log_loss", "accuracy"])
    job = cx.Trainer.of_job(graph, rows, spec)
    for said in job.run():
        if isinstance(said, BatchMetrics) and said.step == 4:
            job.checkpoint(tmp_path / "at")
    last = job.history[-1]
    found = cx.predict(graph, job.weights, X[:50])
    assert last.validation_accuracy == metrics.accuracy(found, Y[:50])
    best = job.history[job.delivered_epoch - 1]
    assert best.scores == {
        "validation_f1_macro": metrics.f1(found, Y[:50], average="macro"),
        "validation_log_loss": pytest.approx(metrics.log_loss(found, Y[:50])),
    }
    resumed = cx.Trainer.of_job(graph, rows, spec, resume=tmp_path / "at")
    *_, _ = resumed.run()
    assert [each.scores for each in resumed.history] == [each.scores for each in job.history]
    cx.save_model(tmp_path / "m.safetensors", graph, job.weights, history=job.history)
    assert cx.load_model(tmp_path / "m.safetensors").history[-1].scores == last.scores


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("unused_first", [True, False])
def test_a_parameter_without_a_gradient_stays_as_it_is_in_compiled_steps_too(
    accumulate: int, unused_first: bool
) -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            cx.manual_seed(2)
            for name in ("unused", "used") if unused_first else ("used", "unused"):
                setattr(self, name, nn.Linear(6, 6))

        def forward(self, x: Any) -> Any:
            return self.used(x)

    kept, others = Partly(), Partly()
    before = kept.unused.weight.numpy().tobytes()
    for model, compiled in ((kept, True), (others, False)):
        optimizer = optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        made = cx.Trainer(model, "mse", optimizer, accumulate=accumulate, compiled=compiled)
        made.fit(X, X * 2.0, epochs=2, batch_size=16, progress=False)
    assert kept.unused.weight.numpy().tobytes() == before
    assert kept.used.weight.numpy().tobytes() == others.used.weight.numpy().tobytes()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: trainer(accumulate=1.5), "accumulate of at least 1, got 1.5, no whole number"),
        (lambda: trainer(clip_norm=-1.0), "clip_norm above 0, got -1.0"),
        (lambda: trainer(clip_value=math.nan), "clip_value above 0, got nan"),
        (lambda: trainer(seed="a"), "seed to be a whole number, got 'a'"),
        (lambda: fit(trainer(), epochs="3"), "epochs of at least 1, got '3', no whole number"),
        (lambda: fit(trainer(), epochs=1.5), "epochs of at least 1, got 1.5, no whole number"),
        (lambda: fit(trainer(), batch_size=2.5), "batch_size of at least 1, got 2.5, no whole number"),
        (lambda: fit(trainer(), callbacks=callbacks.EarlyStopping()), "callbacks to be a list of"),
        (lambda: fit(trainer(), callbacks=[callbacks.EarlyStopping]), "callbacks to be a list of"),
        (lambda: trainer().predict(X, batch_size=0), "batch_size of at least 1, got 0"),
        (lambda: cx.lr_finder(trainer(), X, Y, highest=math.inf), "both finite"),
        (lambda: cx.lr_finder(trainer(), X, Y, steps=10.5), "got 1e-06, 1.0, 10.5 and 0.9"),
    ],
)
def test_a_number_that_is_none_of_its_kind_is_refused_before_anything_is_trained(use: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        use()


def test_one_column_is_plotted_by_its_name() -> None:
    assert "• loss" in fit(trainer(), epochs=2).plot("loss", backend="text")


def test_a_notebook_shows_a_history_as_a_table() -> None:
    def epoch(number: int) -> EpochMetrics:
        timings = {"epoch_time_ms": 1.0, "samples_per_s": 1.0}
        return EpochMetrics(epoch=number, epochs=9, step=1, epoch_loss=1.0 / number, scores={"a<b": 0.5}, **timings)

    assert history.History()._repr_html_() == "<pre>History(no epoch yet)</pre>"
    shown = history.History(map(epoch, (1, 2)))
    assert shown._repr_html_() == (
        "<table><tr><th>epoch</th><th>loss</th><th>a&lt;b</th></tr>"
        "<tr><td>1</td><td>1.0000</td><td>0.5000</td></tr><tr><td>2</td><td>0.5000</td><td>0.5000</td></tr></table>"
    )
    long = history.History(map(epoch, range(1, 42)))._repr_html_()
    assert long.count("<tr>") == 42 and "<td>20</td>" in long and "<td>21</td>" not in long and "<td>22</td>" in long
    assert history.History(map(epoch, range(1, 41)))._repr_html_().count("<tr>") == 41


def test_a_fit_within_autocast_learns_in_halves_and_its_checkpoint_says_so(tmp_path: Path) -> None:
    at, found = tmp_path / "at", []
    for compiled in (True, False):
        made = trainer(compiled=compiled)
        with cx.autocast("cpu"):
            fit(made, callbacks=[callbacks.Checkpoints(at)])
        found.append(weights(made))
    exact = trainer()
    fit(exact)
    assert found[0] == found[1] != weights(exact)
    with pytest.raises(CheckpointError, match=r"numerics: expected cyx-exact/1, got cyx-exact/1\+bfloat16"):
        fit(trainer(), resume=at)
