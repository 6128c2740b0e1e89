"""What has a namesake in PyTorch gives its numbers. Skipped where torch is not installed."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")
    import torch.optim.lr_scheduler as torch_schedulers

GRADIENTS = [np.array([0.5, -2.0, 0.0]), np.array([1.0, 1.0, -0.25]), np.array([-3.0, 0.1, 4.0])] * 4
START = np.array([1.0, -1.0, 0.5])

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("Adam", {"weight_decay": 0.1}),
    ("AdamW", {"lr": 0.1}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1, "lr": 0.05}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_twelve_steps_of_an_optimiser(name: str, options: dict[str, Any]) -> None:
    ours = cx.tensor(START.astype(np.float32), requires_grad=True)
    theirs = torch.tensor(START, requires_grad=True)
    one, other = getattr(cx.optim, name)([ours], **options), getattr(torch.optim, name)([theirs], **options)
    for g in GRADIENTS:
        ours.grad, theirs.grad = cx.tensor(g.astype(np.float32)), torch.tensor(g)
        one.step()
        other.step()
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=3e-6, atol=1e-6)


LOSSES = [1.0, 0.9, 0.9, 0.9, 0.9, 0.95, *[0.8] * 14]
SCHEDULES: dict[str, Callable[[Any, Any], Any]] = {
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [3, 7], 0.5),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "LinearLR": lambda s, o: s.LinearLR(o, 0.1, 1.0, 7),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 8, 2.0),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 8, 0.01),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.7, 20),
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda t: 1.0 / (1 + t)),
    "SequentialLR": lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, 1.0, 4), s.CosineAnnealingLR(o, 10)], [4]),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, factor=0.5, patience=2),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of its own ways to count
@pytest.mark.parametrize("name", SCHEDULES)
def test_twenty_learning_rates_of_a_schedule(name: str) -> None:
    one = cx.optim.SGD([cx.zeros(1, requires_grad=True)], 0.5)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
    ours, theirs = SCHEDULES[name](cx.lr_scheduler, one), SCHEDULES[name](torch_schedulers, other)
    for loss in LOSSES[:19]:
        assert one.lr == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
        other.step()
        for schedule in (ours, theirs):
            schedule.step(*([loss] if name == "ReduceLROnPlateau" else []))


def test_clipping_by_norm() -> None:
    values = [np.array([3.0, -4.0], np.float32), np.array([12.0], np.float32)]
    ours = [cx.zeros(*v.shape, requires_grad=True) for v in values]
    theirs = [torch.zeros(*v.shape, requires_grad=True) for v in values]
    for p, q, v in zip(ours, theirs, values, strict=True):
        p.grad, q.grad = cx.tensor(v), torch.tensor(v)
    norm = cx.optim.clip_grad_norm_(ours, 1.0)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 1.0)))
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"ignore_index": 2},
        {"weight": [0.5, 2.0, 1.0, 3.0]},
        {"weight": [0.5, 2.0, 1.0, 3.0], "ignore_index": 2, "label_smoothing": 0.2},
    ],
)
@pytest.mark.parametrize("extra", [(), (3,)])
def test_cross_entropy_and_its_gradient(extra: tuple[int, ...], options: dict[str, Any], reduction: str) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6, 4, *extra)).astype(np.float32), rng.integers(0, 4, (6, *extra))
    weight = options.get("weight")
    ours, theirs = cx.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    here = {**options, "weight": None if weight is None else cx.tensor(weight)}
    there = {**options, "weight": None if weight is None else torch.tensor(weight)}
    one = F.cross_entropy(ours, cx.tensor(labels), reduction, **here)
    other = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels), reduction=reduction, **there)
    np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=2e-5, atol=1e-6)
    one.sum().backward()
    other.sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-6)
