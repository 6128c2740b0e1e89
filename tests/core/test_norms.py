"""Layers that normalise as PyTorch has them: every option, in training, in inference, compiled and traced."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import SpecError
from tests.core.layer_oracle import agree, agree_module, floats, torch

SHAPES = {1: (5, 4, 3), 2: (3, 4, 5, 6), 3: (2, 4, 2, 3, 4)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"affine": True},
    {"affine": True, "bias": False},
    {"affine": False},
    {"track_running_stats": False, "affine": True},
    {"track_running_stats": True, "momentum": 0.3},
    {"track_running_stats": True, "momentum": None, "affine": True},
]


def made(m: Any, name: str, options: dict[str, Any]) -> Any:
    layer = getattr(m, name)(4, **options)
    if m is torch.nn:
        for value in layer.parameters():
            torch.nn.init.normal_(value)
    return layer


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["BatchNorm", "InstanceNorm"])
@pytest.mark.parametrize("options", OPTIONS)
def test_three_batches_then_inference(options: dict[str, Any], kind: str, rank: int) -> None:
    if kind == "InstanceNorm" and options.get("momentum", 0) is None:
        with pytest.raises(SpecError, match="expected a momentum for its running statistics"):  # torch never moves them
            made(nn, "InstanceNorm2d", options)
        return
    theirs, ours = made(torch.nn, f"{kind}{rank}d", options).double(), made(nn, f"{kind}{rank}d", options).double()
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    for number in range(4):
        if number == 3:
            theirs.eval()
            ours.eval()
        x = floats(*SHAPES[rank], seed=number) * 2.0 + 1.0
        agree(lambda m, x: (theirs if m is torch else ours)(x), x, dtypes=("float64",), compiled=False)
        kept = ours.state_dict()
        for key, value in theirs.state_dict().items():
            if key in kept:
                np.testing.assert_allclose(np.array(kept[key]), value.numpy(), rtol=1e-10, err_msg=key)
    assert set(kept) == {key for key in theirs.state_dict() if options.get("momentum", 0) is None or "num_" not in key}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (kind, options)
        for kind in ("BatchNorm2d", "InstanceNorm2d")
        for options in OPTIONS[: 7 if kind[0] == "B" else 6]
    ],
)
def test_a_compiled_step_has_the_bits(kind: str, options: dict[str, Any]) -> None:
    def run(compiled: bool) -> Any:
        cx.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 1), getattr(nn, kind)(4, **options))
        optimizer = cx.optim.SGD(net.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            loss = (net(x) * 0.5 + 1.0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made_ready = cx.compile(step) if compiled else step
        losses = [made_ready(cx.tensor(floats(3, 2, 5, 4, seed=n).astype("float32"))).item() for n in range(3)]
        return losses, {key: np.array(value).tolist() for key, value in net.state_dict().items()}

    assert run(True) == run(False)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_traced_norm_keeps_both_modes(options: dict[str, Any]) -> None:
    for kind in ("BatchNorm2d", "InstanceNorm2d")[: 1 if options.get("momentum", 0) is None else 2]:
        graph = cx.trace(getattr(nn, kind)(4, **options), (4, 5, 6)).graph
        tracked = options.get("track_running_stats", kind == "BatchNorm2d")
        assert len(graph.updates) == (0 if not tracked else 3 if options.get("momentum", 0) is None else 2)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 4, 4)])
def test_an_empty_batch_leaves_the_running_statistics_as_they_are(shape: tuple[int, ...]) -> None:
    """They were NaN from then on."""
    norm = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(3)
    for run in (norm, cx.compile(norm)):
        assert run(cx.zeros(shape)).shape == shape
        assert norm.running_mean.tolist() == [0.0] * 3 and norm.running_var.tolist() == [1.0] * 3


def test_one_sample_without_a_batch() -> None:
    for rank in (1, 2, 3):
        agree_module(lambda m, rank=rank: getattr(m, f"InstanceNorm{rank}d")(4, affine=True), floats(*SHAPES[rank][1:]))


def test_norms_without_a_bias_or_a_bound() -> None:
    agree_module(lambda m: m.GroupNorm(2, 4, bias=False), floats(3, 4, 5))
    agree_module(lambda m: m.RMSNorm(6, eps=None), floats(3, 6))
    agree(lambda m, x: m.nn.functional.rms_norm(x, (6,), eps=None), floats(3, 6) * 1e-3)


@pytest.mark.parametrize("use_input_stats", [True, False])
def test_functions_with_running_statistics(use_input_stats: bool) -> None:
    mean, var, weight, bias = floats(4), np.abs(floats(4, seed=1)) + 0.5, floats(4, seed=2), floats(4, seed=3)

    def call(m: Any, x: Any, w: Any, b: Any) -> Any:
        running = [m.tensor(value.astype(str(x.dtype).split(".")[-1])) for value in (mean, var)]
        norm = m.nn.functional.instance_norm(x, *running, w, b, use_input_stats, 0.2)
        return norm, *(each * 1.0 for each in running), m.nn.functional.batch_norm(x, None, None, w, b, True)

    agree(call, floats(3, 4, 5), weight, bias, compiled=False)


def test_second_derivatives_of_a_batch_norm_are_pytorchs() -> None:
    """Though to its first gradient the mean is a number: the way there is one of functions of x."""
    values = floats(5, 3, 4), floats(3, seed=1), floats(3, seed=2)

    def slopes(m: Any, inputs: list[Any]) -> list[Any]:
        loss = m.sin(m.nn.functional.batch_norm(inputs[0], None, None, *inputs[1:], True)).sum()
        first = m.autograd.grad(loss, inputs, create_graph=True)
        (first[0] * first[0] * m.cos(inputs[0].detach()) + m.sin(first[0])).sum().backward()
        return [*first, *(each.grad for each in inputs[:2])]

    ours = slopes(cx, [cx.tensor(each, dtype="float64", requires_grad=True) for each in values])
    theirs = slopes(torch, [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in values])
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), other.detach().numpy(), rtol=1e-9, atol=1e-9)


def test_a_variance_is_right_far_from_zero_and_zero_for_one_number() -> None:
    x = (np.arange(4096) % 7 - 3).astype(np.float32) + np.float32(10000)
    both = cx.tensor(np.stack([x, np.full_like(x, 0.1)], 1))
    running = cx.zeros(2), cx.zeros(2)
    F.batch_norm(both, *running, training=True, momentum=1.0)
    exact = x.astype(np.float64).var(ddof=1)
    assert abs(running[1].numpy()[0] / exact - 1) < 1e-6
    assert abs(running[1].numpy()[1]) < 1e-14


def test_statistics_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(SpecError, match="expected running_mean and running_var, or neither"):
        F.batch_norm(cx.zeros(2, 3), cx.zeros(3))
    with pytest.raises(SpecError, match="expected running statistics"):
        F.instance_norm(cx.zeros(2, 3, 4), use_input_stats=False)
