"""Learning-rate schedulers against those of PyTorch, step by step: rates, momenta, groups, and what is saved."""

import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import SpecError
from cyxcore.steps import CompiledStep

torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")
schedulers_of = {cx: cx.lr_scheduler, torch: torch.optim.lr_scheduler}

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch warns of its own ways to count, and of an epoch in step()


class Falling:
    """A function with something to save."""

    def __init__(self) -> None:
        self.power = 0.9

    def __call__(self, t: int) -> float:
        return float(self.power**t)


def chained(s: Any, o: Any) -> Any:
    return s.ChainedScheduler([s.LinearLR(o, 0.2, 1.0, 5), s.StepLR(o, 4, 0.5), s.ExponentialLR(o, 0.95)], optimizer=o)


def sequential(s: Any, o: Any) -> Any:
    return s.SequentialLR(o, [s.ConstantLR(o, 0.1, 9), s.StepLR(o, 3, 0.5), s.PolynomialLR(o, 9)], [4, 12])


def with_restarts(s: Any, o: Any) -> Any:
    return s.SequentialLR(o, [s.LinearLR(o, 0.1, 1.0, 4), s.CosineAnnealingWarmRestarts(o, 5, 2)], milestones=[4])


MADE: dict[str, Callable[[Any, Any], Any]] = {
    "LambdaLR": lambda s, o: s.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1.0 / (1 + t)]),
    "LambdaLR of an object": lambda s, o: s.LambdaLR(o, Falling()),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, [lambda t: 0.9, lambda t: 0.8 + 0.01 * t]),
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5),
    "StepLR of a whole float": lambda s, o: s.StepLR(o, 3.0, gamma=0.95),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [7, 3, 7], gamma=0.5),
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.2, 4),
    "LinearLR": lambda s, o: s.LinearLR(o, 0.1, 0.8, 7),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 7, 0.01),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "CosineAnnealingWarmRestarts of one length": lambda s, o: s.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 3, 2),
    "CyclicLR of lists": lambda s, o: s.CyclicLR(o, [0.1, 0.2], [0.9, 0.5], 3.5, base_momentum=0.7, max_momentum=0.95),
    "CyclicLR triangular2": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 3, mode="triangular2"),
    "CyclicLR exp_range": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 4, mode="exp_range", gamma=0.9),
    "CyclicLR by steps": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 4, scale_fn=lambda t: 0.8**t, scale_mode="iterations"),
    "CyclicLR by cycles": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 4, scale_fn=lambda n: 1 / n, cycle_momentum=False),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.7, 30),
    "OneCycleLR of lists": lambda s, o: s.OneCycleLR(
        o, [0.7, 0.3], epochs=6, steps_per_epoch=5, base_momentum=[0.8, 0.5], max_momentum=[0.9, 0.99]
    ),
    "OneCycleLR in three parts": lambda s, o: s.OneCycleLR(o, 0.7, 30, three_phase=True, pct_start=0.4, div_factor=5),
    "OneCycleLR along lines": lambda s, o: s.OneCycleLR(
        o, 0.7, 30, anneal_strategy="linear", cycle_momentum=False, final_div_factor=10
    ),
    "SequentialLR": sequential,
    "SequentialLR with restarts": with_restarts,
    "SequentialLR with cycles": lambda s, o: s.SequentialLR(
        o, [s.ExponentialLR(o, 0.9), s.CyclicLR(o, 0.1, 0.9, 3)], [6]
    ),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, factor=0.5, patience=2, min_lr=[0.2, 0.05]),
    "ReduceLROnPlateau up": lambda s, o: s.ReduceLROnPlateau(o, "max", 0.5, 1, threshold_mode="abs", cooldown=2),
    "ReduceLROnPlateau until eps": lambda s, o: s.ReduceLROnPlateau(o, factor=0.5, patience=0, eps=0.06),
}
LOSSES = [1.0, 0.9, 0.9, 0.9, 0.9, 0.95, *[0.8] * 14, -0.1, -0.2, -0.2, -0.1, -0.19, -0.19, -0.19, -0.19, -0.3, -0.2]


def optimizer_of(m: Any, rule: str) -> Any:
    p, q = (m.zeros(1, requires_grad=True) for _ in range(2))
    options = {"momentum": 0.9} if rule == "SGD" else {}
    return getattr(m.optim, rule)([{"params": [p]}, {"params": [q], "lr": 0.2}], lr=0.5, **options)


def shown(optimizer: Any) -> list[float]:
    """Rates and momenta of both groups."""
    groups = optimizer.param_groups
    return [value for g in groups for value in (float(g["lr"]), g["betas"][0] if "betas" in g else g["momentum"])]


def stepped(optimizer: Any, schedule: Any, loss: float) -> None:
    optimizer.step()
    schedule.step(*([loss] if type(schedule).__name__ == "ReduceLROnPlateau" else []))


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", MADE)
def test_every_step_of_a_schedule_is_torchs(name: str, rule: str) -> None:
    one, other = (optimizer_of(m, rule) for m in (cx, torch))
    ours, theirs = (MADE[name](schedulers_of[m], o) for m, o in ((cx, one), (torch, other)))
    for number, loss in enumerate(LOSSES):
        assert shown(one) == pytest.approx(shown(other), rel=1e-12, abs=1e-15), number
        assert ours.get_last_lr() == pytest.approx([float(rate) for rate in theirs.get_last_lr()], rel=1e-12, abs=1e-15)
        stepped(one, ours, loss)
        stepped(other, theirs, loss)


@pytest.mark.parametrize("name", MADE)
def test_a_schedule_goes_on_from_its_state(name: str) -> None:
    """The state is JSON; the rates are those of the optimiser's state."""
    one = optimizer_of(cx, "SGD")
    ours = MADE[name](cx.lr_scheduler, one)
    for loss in LOSSES[:13]:
        stepped(one, ours, loss)
    later = optimizer_of(cx, "SGD")
    again = MADE[name](cx.lr_scheduler, later)
    later.load_state_dict(one.state_dict())
    again.load_state_dict(json.loads(json.dumps(ours.state_dict(), allow_nan=False)))
    assert again.get_last_lr() == ours.get_last_lr()
    for loss in LOSSES[13:]:
        assert shown(later) == shown(one)
        stepped(one, ours, loss)
        stepped(later, again, loss)


OF_RATES = [name for name in MADE if not name.startswith(("Reduce", "Chained", "Sequential"))]
FROM_SIX: dict[str, Callable[[Any, Any], Any]] = {
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda t: 0.9**t, 6),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, lambda t: 0.9, 6),
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5, 6),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [7, 3, 7], 0.5, 6),
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.2, 9, 6),
    "LinearLR": lambda s, o: s.LinearLR(o, 0.1, 0.8, 9, 6),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9, 6),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 9, 2.0, 6),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 9, 0.01, 6),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 9, 1, 0.01, 6),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 3, last_epoch=6),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.7, 30, last_epoch=6),
}


@pytest.mark.parametrize("name", FROM_SIX)
def test_a_schedule_goes_on_from_an_epoch(name: str) -> None:
    """Of groups that have what schedules keep in them."""
    found = []
    for m in (cx, torch):
        optimizer = optimizer_of(m, "SGD")
        before = MADE[name](schedulers_of[m], optimizer)
        for _ in range(6):
            optimizer.step()
            before.step()
        again = FROM_SIX[name](schedulers_of[m], optimizer)
        way = [shown(optimizer)]
        for _ in range(5):
            optimizer.step()
            again.step()
            way.append(shown(optimizer))
        found.append(np.array(way))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


@pytest.mark.parametrize(
    "pair", [("ExponentialLR", "StepLR"), ("LinearLR", "CosineAnnealingLR"), ("StepLR", "LambdaLR")]
)
def test_two_schedules_of_one_optimiser_that_step_in_turn(pair: tuple[str, str]) -> None:
    one, other = (optimizer_of(m, "SGD") for m in (cx, torch))
    ours, theirs = ([MADE[name](schedulers_of[m], o) for name in pair] for m, o in ((cx, one), (torch, other)))
    for _ in range(20):
        assert shown(one) == pytest.approx(shown(other), rel=1e-12)
        for optimizer, both in ((one, ours), (other, theirs)):
            optimizer.step()
            for schedule in both:
                schedule.step()


@pytest.mark.parametrize("options", [{}, {"T_mult": 2}, {"T_mult": 3, "eta_min": 0.01}])
def test_warm_restarts_by_parts_of_epochs(options: dict[str, Any]) -> None:
    one, other = (optimizer_of(m, "SGD") for m in (cx, torch))
    ours, theirs = (
        schedulers_of[m].CosineAnnealingWarmRestarts(o, 3, **options) for m, o in ((cx, one), (torch, other))
    )
    for batch in [*range(90), 7, 0, 22]:
        for schedule in (ours, theirs):
            schedule.step(batch / 7)
        assert shown(one) == pytest.approx(shown(other), rel=1e-9)
    for schedule in (ours, theirs, ours, theirs):
        schedule.step()
    assert shown(one) == pytest.approx(shown(other), rel=1e-9)


@pytest.mark.parametrize("name", OF_RATES)
def test_a_schedule_is_put_to_an_epoch(name: str) -> None:
    if name.startswith("MultiplicativeLR"):
        return  # it knows no rate but the one after the last
    one, other = (optimizer_of(m, "SGD") for m in (cx, torch))
    ours, theirs = (MADE[name](schedulers_of[m], o) for m, o in ((cx, one), (torch, other)))
    for epoch in (5, 2, 11):
        ours.step(epoch)
        theirs.step(epoch)
        assert shown(one) == pytest.approx(shown(other), rel=1e-12)


def names_of(kind: Any) -> list[tuple[str, Any, Any]]:
    parameters = list(inspect.signature(kind).parameters.values())
    return [(p.name, p.kind, p.default) for p in parameters]


def test_schedulers_take_pytorchs_arguments_in_its_order() -> None:
    theirs = torch.optim.lr_scheduler
    listed = [name for name in theirs.__all__ if name not in ("LRScheduler",)]
    assert set(listed) <= set(cx.lr_scheduler.__all__)
    for name in listed:
        assert names_of(getattr(cx.lr_scheduler, name)) == names_of(getattr(theirs, name)), name


def test_a_scheduler_of_ones_own() -> None:
    class Root(cx.lr_scheduler.LRScheduler):
        def get_lr(self) -> list[float]:
            return [base / (1 + self.last_epoch) ** 0.5 for base in self.base_lrs]

    optimizer = optimizer_of(cx, "SGD")
    schedule = Root(optimizer)
    for _ in range(3):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.1] == schedule.get_last_lr()
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s, o: s.StepLR(None, 3), "StepLR: expected an optimiser, got NoneType"),
        (lambda s, o: s.StepLR(o, 3, last_epoch=4), "expected an initial_lr in group 0 to go on from last_epoch 4"),
        (lambda s, o: s.LambdaLR(o, [lambda t: 1.0]), "LambdaLR: expected one lr_lambda or 2, .* got 1"),
        (lambda s, o: s.MultiplicativeLR(o, 0.9), "expected functions of the step"),
        (lambda s, o: s.ConstantLR(o, 0.0), "a factor above 0, at most 1, got 0.0"),
        (lambda s, o: s.LinearLR(o, 0.0), "a start_factor above 0 .* got 0.0"),
        (lambda s, o: s.OneCycleLR(o, [0.1] * 3, 9), "expected one max_lr or 2, one for each group, got 3"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, anneal_strategy="cubic"), "anneal_strategy cos or linear, got 'cubic'"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, max_momentum=1.5), "momenta from 0 to below 1, got 1.5"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9.5), "total_steps: expected an integer of at least 1, got 9.5"),
        (lambda s, o: s.CyclicLR(o, 0.1, 1.0, mode="square"), "expected mode triangular, .* got 'square'"),
        (lambda s, o: s.CyclicLR(o, 0.1, 1.0, 0), "step_size_up and step_size_down above 0, got 0"),
        (lambda s, o: s.CyclicLR(o, 0.1, [1.0, 0.01]), "expected max_lr of at least base_lr, got .*0.01. and 0.1"),
        (lambda s, o: s.CyclicLR(o, "a", 1.0), "CyclicLR: base_lr: expected a number, got 'a'"),
        (lambda s, o: s.CyclicLR(o, 0.1, 1.0, mode="exp_range", gamma=None), "gamma: expected a number, got None"),
        (lambda s, o: s.StepLR(o, 3, gamma="0.5"), "StepLR: gamma: expected a number, got '0.5'"),
        (lambda s, o: s.ExponentialLR(o, float("nan")), "ExponentialLR: gamma: expected a number, got nan"),
        (lambda s, o: s.MultiStepLR(o, [3, 7.5]), "expected whole numbers as milestones, got .3, 7.5"),
        (lambda s, o: s.MultiStepLR(o, [3], "x"), "MultiStepLR: gamma: expected a number, got 'x'"),
        (lambda s, o: s.MultiStepLR(o, None), "expected whole numbers as milestones, got None"),
        (lambda s, o: s.StepLR(o, 3, gamma=np.ones(2)), "StepLR: gamma: expected a number, got array"),
        (lambda s, o: s.StepLR(o, 3, gamma=cx.ones(2)), "StepLR: gamma: expected a number, got Tensor"),
        (lambda s, o: s.StepLR(o, 3, gamma=10**400), "StepLR: gamma: expected a number, got 1000"),
        (lambda s, o: s.ConstantLR(o, "0.5"), "ConstantLR: factor: expected a number, got '0.5'"),
        (lambda s, o: s.LinearLR(o, "0.5"), "LinearLR: start_factor: expected a number, got '0.5'"),
        (lambda s, o: s.LinearLR(o, end_factor="1"), "LinearLR: end_factor: expected a number, got '1'"),
        (lambda s, o: s.PolynomialLR(o, 5, "2"), "PolynomialLR: power: expected a number, got '2'"),
        (lambda s, o: s.CosineAnnealingLR(o, 5, "0"), "CosineAnnealingLR: eta_min: expected a number, got '0'"),
        (lambda s, o: s.CosineAnnealingWarmRestarts(o, 5, eta_min="0"), "eta_min: expected a number, got '0'"),
        (lambda s, o: s.ReduceLROnPlateau(o, factor="0.1"), "factor: expected a number, got '0.1'"),
        (lambda s, o: s.ReduceLROnPlateau(o, threshold="0.1"), "threshold: expected a number, got '0.1'"),
        (lambda s, o: s.ReduceLROnPlateau(o, eps=None), "eps: expected a number, got None"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, pct_start="0.3"), "pct_start: expected a number, got '0.3'"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, div_factor="25"), "div_factor: expected a number, got '25'"),
        (lambda s, o: s.OneCycleLR(o, 0.1, 9, final_div_factor=0), "expected a final_div_factor above 0, got 0"),
        (lambda s, o: s.CyclicLR(o, 0.1, 1.0, "5"), "step_size_up: expected a number, got '5'"),
        (lambda s, o: s.ReduceLROnPlateau(o, threshold_mode="both"), "threshold_mode rel or abs, got 'both'"),
        (lambda s, o: s.ReduceLROnPlateau(o, min_lr=[0.1]), "expected one min_lr or 2, .* got 1"),
        (lambda s, o: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []), "step without a loss, got ReduceLROnPlateau"),
        (lambda s, o: s.ChainedScheduler([]), "ChainedScheduler: expected at least one scheduler, got none"),
        (lambda s, o: s.ChainedScheduler([s.StepLR(optimizer_of(cx, "SGD"), 1)], o), "number 0 is of another"),
        (lambda s, o: chained(s, o).step(3), "ChainedScheduler: expected step\\(\\) without an epoch"),
        (lambda s, o: s.StepLR(o, 3).load_state_dict({"steps": 3}), "a state with base_lrs, last_epoch, got steps"),
        (lambda s, o: s.StepLR(o, 3).load_state_dict(5), "a state with base_lrs, last_epoch, got int"),
        (
            lambda s, o: s.StepLR(o, 3).load_state_dict({"base_lrs": [0.1], "last_epoch": 1}),
            "expected a state of 2 groups, got 1",
        ),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make(cx.lr_scheduler, optimizer_of(cx, "SGD"))


def test_a_cycle_needs_a_momentum_and_ends() -> None:
    p = cx.zeros(1, requires_grad=True)
    plain = cx.optim.Adagrad([p])
    with pytest.raises(SpecError, match="Adagrad has neither momentum nor betas to cycle; give cycle_momentum=False"):
        cx.lr_scheduler.OneCycleLR(plain, 0.1, 3)
    schedule = cx.lr_scheduler.OneCycleLR(plain, 0.1, 3, cycle_momentum=False)
    for _ in range(3):
        schedule.step()
    with pytest.raises(SpecError, match="at most total_steps = 3 steps, got one more"):
        schedule.step()


def test_groups_that_join_later_are_named_where_there_is_no_first_rate() -> None:
    optimizer = optimizer_of(cx, "SGD")
    by_ratio, by_base = (
        cx.lr_scheduler.ExponentialLR(optimizer, 0.5),
        cx.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0),
    )
    optimizer.add_param_group({"params": [cx.zeros(1, requires_grad=True)], "lr": 0.4})
    by_ratio.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.1, 0.2]
    with pytest.raises(SpecError, match="LambdaLR: expected the 2 groups there were when it was made, got 3"):
        by_base.step()


CYCLED: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 0.1},
    "SGD of Nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "SGD dampened": {"momentum": 0.9, "dampening": 0.2},
    "RMSprop": {"momentum": 0.5},
    "Adam": {"weight_decay": 0.1},
    "Adam of the largest": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.1},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {"weight_decay": 0.1},
    "Lion": {"weight_decay": 0.1},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CYCLED)
def test_a_cycled_momentum_trains_as_torchs_does_and_makes_no_plan_of_its_own(name: str, dtype: str) -> None:
    """To the last bit the same in eager and compiled steps, which are resumed half-way."""

    def trained(m: Any, compiled: bool) -> tuple[np.ndarray, list[float]]:
        start = np.random.default_rng(5).normal(size=(2, 3)).astype(dtype)
        model = m.nn.Linear(3, 2, bias=False).to(dtype=getattr(m, dtype))
        with m.no_grad():
            model.weight.copy_(m.tensor(start))

        def made() -> tuple[Any, Any]:
            optimizer = getattr(m.optim, name.split()[0])(model.parameters(), lr=0.01, **CYCLED[name])
            return optimizer, schedulers_of[m].OneCycleLR(optimizer, 0.05, 24)

        optimizer, schedule = made()

        def step(x: Any) -> Any:
            loss = (model(x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        run, losses = cx.compile(step) if compiled else step, []
        for number in range(24):
            x = m.tensor(np.random.default_rng(number).normal(size=(4, 3)).astype(dtype))
            losses.append(run(x).item())
            schedule.step()
            if number == 11:
                kept = optimizer.state_dict(), schedule.state_dict()
                optimizer, schedule = made()
                optimizer.load_state_dict(kept[0])
                schedule.load_state_dict(kept[1])
                run = cx.compile(step) if compiled else step
        if isinstance(run, CompiledStep):
            assert len(run._plans) == 1
        return model.weight.detach().numpy(), losses

    eager, planned = trained(cx, False), trained(cx, True)
    assert eager[0].tolist() == planned[0].tolist() and eager[1] == planned[1]
    if name != "Lion":
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # of the scalars in its state
        theirs = trained(torch, False)[0]
        torch.set_default_dtype(before)
        rtol = 1e-12 if dtype == "float64" else 1e-5
        np.testing.assert_allclose(eager[0], theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


def test_a_momentum_that_comes_to_nothing_keeps_nothing() -> None:
    """At a momentum of 0 the velocity stays as it is, as in PyTorch."""
    found = []
    for m in (cx, torch):
        p = m.tensor([1.0, -2.0], requires_grad=True)
        optimizer = m.optim.SGD([p], 0.1, momentum=0.9)
        schedule = schedulers_of[m].CyclicLR(optimizer, 0.05, 0.2, 2, base_momentum=0.0, max_momentum=0.5)
        for number in range(9):
            p.grad = m.tensor([0.5 + number, -1.0])
            optimizer.step()
            schedule.step()
        found.append(p.detach().numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_a_trainer_resumes_a_cycle(tmp_path: Any) -> None:
    x, y = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32), np.arange(64) % 3

    def made() -> tuple[Any, Any]:
        cx.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = cx.optim.AdamW(model.parameters(), lr=0.01)
        schedule = cx.lr_scheduler.OneCycleLR(optimizer, 0.05, epochs=4, steps_per_epoch=4)
        return cx.Trainer(model, "cross_entropy", optimizer, scheduler=schedule, scheduler_per="step"), model

    (whole, one), (first, _), (second, other) = made(), made(), made()
    whole.fit(x, y, epochs=4, batch_size=16, progress=False)
    first.fit(x, y, epochs=2, batch_size=16, progress=False)
    first.checkpoint(tmp_path / "half")
    second.fit(x, y, epochs=4, batch_size=16, progress=False, resume=tmp_path / "half")
    assert [p.tolist() for p in one.parameters()] == [p.tolist() for p in other.parameters()]


@pytest.mark.parametrize("options", [{}, {"anneal_strategy": "linear", "anneal_epochs": 4}, {"anneal_epochs": 0}])
def test_a_rate_for_averages_begins_where_another_schedule_has_left_it(options: dict[str, Any]) -> None:
    """Both are made at the start, as in PyTorch's own example; the second one steps when the first one ends."""
    one, other = (optimizer_of(m, "SGD") for m in (cx, torch))
    made = []
    for m, optimizer in ((cx, one), (torch, other)):
        first = schedulers_of[m].CosineAnnealingLR(optimizer, 12)
        made.append((first, m.optim.swa_utils.SWALR(optimizer, [0.05, 0.3], **options)))
    for number in range(20):
        assert shown(one) == pytest.approx(shown(other), rel=1e-12), number
        for optimizer, both in zip((one, other), made, strict=True):
            optimizer.step()
            both[number >= 6].step()


def test_the_state_of_a_cycle_is_a_file(tmp_path: Any) -> None:
    p, q = (cx.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    optimizer = cx.optim.Adam([("first", p), ("second", q)], amsgrad=True)
    schedule = cx.lr_scheduler.OneCycleLR(optimizer, 0.1, 9)
    for number in range(4):
        p.grad, q.grad = cx.tensor([0.5, -1.0]), cx.tensor([1.0, 1.0]) if number else None
        optimizer.step()
        schedule.step()
    cx.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "state.safetensors")
    found = cx.load(tmp_path / "state.safetensors")
    later = cx.optim.Adam([p, q])
    again = cx.lr_scheduler.OneCycleLR(later, 0.1, 9)
    later.load_state_dict(found["optimizer"])
    again.load_state_dict(found["schedule"])
    assert later.missed == {1: 1} and later.param_groups[0]["param_names"] == ["first", "second"]
    assert again.state_dict() == schedule.state_dict() and shown(later) == shown(optimizer)
    later.step()
