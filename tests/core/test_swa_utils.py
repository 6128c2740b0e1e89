"""Averaged models: against torch.optim.swa_utils where it is there, and what the averages do."""

import warnings
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")
    import torch.optim.swa_utils as theirs

swa_utils = cx.optim.swa_utils
WEIGHTS = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)


def averages(m: Any, tools: Any, **options: Any) -> np.ndarray:
    model = m.nn.Linear(3, 2)
    averaged = tools.AveragedModel(model, **options)
    for weight in WEIGHTS:
        model.load_state_dict({"weight": m.tensor(weight), "bias": m.zeros(2)})
        averaged.update_parameters(model)
    return np.asarray(averaged.module.weight.detach())


def test_means_and_moving_averages_are_torchs() -> None:
    for make in (
        lambda tools: {},
        lambda tools: {"multi_avg_fn": tools.get_ema_multi_avg_fn(0.5)},
        lambda tools: {"multi_avg_fn": tools.get_swa_multi_avg_fn()},
        lambda tools: {"avg_fn": tools.get_ema_avg_fn(0.75)},
        lambda tools: {"avg_fn": lambda averaged, own, count: averaged * 0.25 + own * 0.75},
    ):
        one, other = averages(cx, swa_utils, **make(swa_utils)), averages(torch, theirs, **make(theirs))
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_the_rates_of_swalr(strategy: str) -> None:
    def rates(m: Any, tools: Any) -> list[list[float]]:
        one, two = (m.zeros(1, requires_grad=True) for _ in range(2))
        optimizer = m.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.2}], lr=1.0)
        schedule = tools.SWALR(optimizer, swa_lr=0.05, anneal_epochs=4, anneal_strategy=strategy)
        found = []
        for _ in range(7):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return found

    np.testing.assert_allclose(rates(cx, swa_utils), rates(torch, theirs), rtol=1e-6)


def test_batch_norms_are_told_of_the_averaged_weights() -> None:
    model = cx.nn.Sequential(cx.nn.Linear(3, 4), cx.nn.BatchNorm1d(4))
    averaged = swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    batches = [cx.randn(64, 3) for _ in range(3)]
    averaged.eval()
    swa_utils.update_bn([(x, None) for x in batches], averaged)
    hidden = model[0](cx.concat(batches)).detach()
    np.testing.assert_allclose(averaged.module[1].running_mean.numpy(), hidden.mean(axis=0).numpy(), atol=1e-5)
    assert not averaged.training and averaged.module[1].momentum == 0.1


def test_an_average_comes_back_from_its_state() -> None:
    model = cx.nn.Linear(2, 1)
    averaged, again = swa_utils.AveragedModel(model), swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    again.load_state_dict(averaged.state_dict())
    assert again.n_averaged.item() == 1
    with cx.no_grad():
        model.weight += 1.0
    assert averaged(cx.ones(1, 2)).tolist() != model(cx.ones(1, 2)).tolist()


def test_two_ways_of_averaging_are_refused() -> None:
    with pytest.raises(SpecError, match="one of avg_fn and multi_avg_fn"):
        swa_utils.AveragedModel(cx.nn.Linear(1, 1), avg_fn=max, multi_avg_fn=max)
    with pytest.raises(SpecError, match="expected anneal_strategy cos or linear"):
        swa_utils.SWALR(cx.optim.SGD([cx.zeros(1)]), 0.1, anneal_strategy="step")
