"""The profiler sees every operation once, changes no bit and leaves nothing; the range test of learning rates."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import device as devices
from cyxcore import lrfinder, nn, optim, plan
from cyxcore.errors import DataError, DivergedError, SpecError

X = cx.tensor(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))
Y = cx.tensor(np.arange(64) % 4)


def trained(compiled: bool) -> tuple[Any, nn.Module]:
    cx.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 4))
    optimizer = optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        loss = cx.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return cx.compile(step) if compiled else step, model


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_measured_has_the_same_bits(compiled: bool) -> None:
    runs = []
    for measured in (True, False):
        step, model = trained(compiled)
        for _ in range(3):
            if measured:
                with cx.profile():
                    step(X, Y)
            else:
                step(X, Y)
        runs.append({name: array.tobytes() for name, array in model.state_dict().items()})
    assert runs[0] == runs[1]


def test_each_call_of_a_plan_is_in_one_row(each_device: str) -> None:
    compiled = cx.compile(lambda x: ((x @ x.T).relu() * 2.0 + 1.0).sum())
    compiled(X)
    with cx.profile() as prof:
        compiled(X)
    made = [record for record in prof.records if record.where == "plan"]
    ((held, *_),) = compiled._plans.values()
    if each_device == "cpu":
        assert sum(1 if " calls: " not in r.name else int(r.name.split()[0]) for r in made) == len(held.calls)
        product = next(record for record in made if record.name.startswith("matmul"))
        assert product.flops >= 2 * 64 * 64 * 32 and product.bytes >= 4 * (64 * 32 + 64 * 64)


def test_eager_operations_are_counted_with_their_arithmetic() -> None:
    with cx.profile() as prof:
        for _ in range(3):
            X @ X.T
    rows = {row.name: row for row in prof.rows()}
    assert rows["matmul"].calls == 3 and rows["matmul"].gigaflops_per_s > 0
    assert sum(row.share for row in prof.rows()) == pytest.approx(1.0)
    first, rule, *body, last = str(prof).splitlines()
    assert first.split() == "operation calls total ms mean µs % GB/s Gflop/s".split() and set(rule) == {"-"}
    assert body[0].startswith(prof.rows()[0].name) and last.endswith("flop")
    assert "1 more rows" in prof.table(rows=len(rows) - 1)


def test_the_trace_is_chromes(tmp_path: Path) -> None:
    step, _ = trained(True)
    step(X, Y)
    with cx.profile() as prof:
        step(X, Y)
    prof.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == len(prof.records) > 5
    assert all(event["ph"] == "X" and event["dur"] >= 0 and event["ts"] >= 0 for event in events)
    assert min(event["ts"] for event in events) == 0


def test_nothing_stays_behind_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        with cx.profile():
            1 / 0  # noqa: B018
    assert plan.observer is None and "call" not in vars(devices.backend("cpu"))
    with cx.profile() as prof:
        pass
    X + 1.0
    assert prof.records == []


def test_another_thread_is_not_counted() -> None:
    with cx.profile() as prof:
        other = threading.Thread(target=lambda: X + 1.0)
        other.start()
        other.join()
    assert prof.records == []


def test_profiles_do_not_nest() -> None:
    with cx.profile():
        with pytest.raises(SpecError, match="one is open already"):
            cx.profile().__enter__()


# the learning rate --------------------------------------------------------------------------------


def untrained(**options: Any) -> cx.Trainer:
    cx.manual_seed(2)
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    schedule = cx.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return cx.Trainer(model, "cross_entropy", optimizer, scheduler=schedule, scheduler_per="step", **options)


@pytest.mark.parametrize("trained_before", [False, True])
def test_a_range_test_suggests_a_rate_and_leaves_no_trace(tmp_path: Path, trained_before: bool) -> None:
    trainer = untrained(ema=0.9, metrics=["accuracy"])
    if trained_before:
        trainer.fit(X, Y, progress=False)
    trainer.checkpoint(tmp_path / "before")
    found = cx.lr_finder(trainer, X, Y, batch_size=16, highest=30.0, steps=80)
    trainer.checkpoint(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    assert found.suggestion is not None and 1e-4 < found.suggestion < 3.0
    assert len(found.losses) == len(found.smoothed) == len(found.learning_rates) <= 80
    assert found.learning_rates[:2] == pytest.approx([1e-6, 1e-6 * (3e7) ** (1 / 79)])
    assert f"suggested: {found.suggestion:.3g}" in str(found.plot(backend="text"))
    count, last = len(found.losses), found.learning_rates[-1]
    assert repr(found) == f"Finding(suggestion={found.suggestion:.3g}, {count} rates from 1e-06 to {last:.3g})"
    again = cx.lr_finder(trainer, X, Y, batch_size=16, highest=30.0, steps=80)
    assert again == found


def test_a_step_that_was_compiled_elsewhere_goes_on_after_a_range_test() -> None:
    def run(tested: bool) -> list[bytes]:
        trainer = untrained()
        learner = trainer.module_learner("test")
        model, optimizer = learner.model, learner.optimizer

        @cx.compile
        def step(x: Any, y: Any) -> Any:
            loss = cx.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        step(X, Y)
        if tested:
            cx.lr_finder(trainer, X, Y, steps=5)
        step(X, Y)
        return [array.tobytes() for array in model.state_dict().values()]

    assert run(True) == run(False)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"lowest": 1.0, "highest": 0.1}, SpecError, "expected 0 < lowest < highest"),
        ({"steps": 1}, SpecError, "steps of at least 2.*and 0.9"),
        ({"x": [], "y": None}, SpecError, "at least one batch, got none"),
        ({"x": X[:0], "y": Y[:0]}, DataError, "at least one row, got none"),
        ({"x": X * np.nan}, DivergedError, "the loss of the first step is no number"),
        ({"trainer": cx.nn.Linear(2, 2)}, SpecError, "expected a cx.Trainer, got Linear"),
    ],
)
def test_a_range_that_is_none_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cx.lr_finder(**{"trainer": untrained(), "x": X, "y": Y, **options})


def test_the_chart_of_a_range_test_shows_more_than_its_end() -> None:
    found = lrfinder.Finding([1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.5, 1.0, 900.0], [2.0, 1.5, 1.0, 400.0], 1e-2)
    chart = str(found.plot(backend="text"))
    assert "suggested: 0.01; losses above 4 are drawn there" in chart and "900" not in chart and "4 " in chart
    assert "drawn there" not in str(
        found._replace(losses=[2.0, 1.5, 1.0, 1.2], smoothed=[2.0, 1.5, 1.0, 1.1]).plot("text")
    )
