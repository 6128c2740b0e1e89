"""A small network, its batches and its training step, for the tests of compiled steps."""

from collections.abc import Callable
from typing import Any

import numpy as np

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batch(number: int) -> tuple[cx.Tensor, cx.Tensor]:
    rng = np.random.default_rng(number)
    return cx.tensor(rng.normal(size=(6, 8)).astype(np.float32)), cx.tensor(rng.integers(0, 3, 6))


def training_step(model: nn.Module, optimizer: optim.Optimizer, clip: bool = True) -> Callable[..., Any]:
    def step(x: cx.Tensor, y: cx.Tensor) -> cx.Tensor:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            optim.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    return step


def trained(make: Any, choose: Callable[[Any, int], Any]) -> tuple[list[float], dict[str, Any]]:
    """Six steps; choose(step, number) says which callable makes it."""
    cx.manual_seed(0)
    model = net()
    optimizer = make(model.parameters())
    step = training_step(model, optimizer)
    both = (step, cx.compile(step))
    losses = []
    for number in range(6):
        losses.append(choose(both, number)(*batch(number)).item())
        if number == 3:
            optimizer.lr *= 0.5
    assert optimizer.steps == 6
    return losses, {name: value.tolist() for name, value in model.state_dict().items()}
