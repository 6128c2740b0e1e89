"""Pooling as PyTorch has it: every option, with gradients and indices, batched or not, eager and compiled."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError, SpecError
from tests.core.layer_oracle import agree, floats

SIZES = ((2, 3, 9), (2, 3, 9, 8), (1, 2, 7, 6, 5))
ODD = {
    1: [(3,), (3, 2, 1), (4, 3, 2)],
    2: [(2,), ((3, 2), (2, 1), (1, 0)), (3, 2, 1), ((2, 5), (3, 2), (0, 2))],
    3: [(2,), ((3, 2, 3), (2, 1, 2), (1, 0, 1))],
}
WINDOWS = [(rank, window) for rank, windows in ODD.items() for window in windows]


def pool(kind: str, rank: int, *given: Any, **options: Any) -> Callable[..., Any]:
    return lambda m, x: getattr(m.nn, f"{kind}{rank}d")(*given, **options)(x)


@pytest.mark.parametrize("options", [{"dilation": 2}, {"ceil_mode": True}, {"ceil_mode": True, "dilation": 2}, {}])
@pytest.mark.parametrize(("rank", "window"), WINDOWS)
def test_max_pooling_and_its_places(rank: int, window: tuple[Any, ...], options: dict[str, Any]) -> None:
    agree(pool("MaxPool", rank, *window, **options, return_indices=True), floats(*SIZES[rank - 1]))


@pytest.mark.parametrize("options", [{}, {"ceil_mode": True}])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("rank", "window"), WINDOWS)
def test_average_pooling(rank: int, window: tuple[Any, ...], include: bool, options: dict[str, Any]) -> None:
    agree(pool("AvgPool", rank, *window, **options, count_include_pad=include), floats(*SIZES[rank - 1]))
    if rank > 1:
        agree(pool("AvgPool", rank, *window, **options, divisor_override=-3), floats(*SIZES[rank - 1]))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 2.5, float("inf"), -float("inf")])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_power_average_pooling(rank: int, norm_type: float, ceil_mode: bool) -> None:
    positive = np.abs(floats(*SIZES[rank - 1])) + 0.1
    agree(pool("LPPool", rank, norm_type, 3, 2, ceil_mode), positive)


def test_power_average_pooling_of_any_sign() -> None:
    for norm_type in (1, 2, 3):
        agree(
            lambda m, x, p=norm_type: m.nn.functional.lp_pool1d(x, p, 2).nan_to_num(0.0),
            floats(2, 3, 6),
            compiled=False,
        )
    x = cx.zeros(1, 1, 4, requires_grad=True)
    F.lp_pool1d(x, 2.0, 2).sum().backward()
    assert x.grad.tolist() == [[[0.0] * 4]]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_adaptive_pooling(rank: int, size: int) -> None:
    agree(pool("AdaptiveAvgPool", rank, size), floats(*SIZES[rank - 1]))
    agree(pool("AdaptiveMaxPool", rank, size, return_indices=True), floats(*SIZES[rank - 1]))


def test_adaptive_pooling_to_more_than_there_is() -> None:
    agree(pool("AdaptiveMaxPool", 1, 7, return_indices=True), floats(2, 3, 4))
    agree(pool("AdaptiveMaxPool", 2, (None, 7), return_indices=True), floats(2, 3, 4, 5))


@pytest.mark.parametrize(("rank", "kernel", "size"), [(2, 2, (4, 3)), (2, (3, 1), (1, 8)), (3, 2, (3, 4, 1))])
def test_fractional_pooling(rank: int, kernel: Any, size: Any) -> None:
    x = floats(*SIZES[rank - 1])
    samples = np.random.default_rng(1).random((*x.shape[:2], rank))

    def call(m: Any, value: Any, drawn: Any) -> Any:
        layer = getattr(m.nn, f"FractionalMaxPool{rank}d")
        return layer(kernel, size, return_indices=True, _random_samples=drawn.detach())(value)

    agree(call, x, samples, dtypes=("float64",))


def test_fractional_pooling_draws() -> None:
    x = cx.tensor(floats(2, 3, 12, 12))
    for output in (nn.FractionalMaxPool2d(2, output_ratio=0.5)(x), nn.FractionalMaxPool2d(3, 6).eval()(x)):
        assert output.shape == (2, 3, 6, 6) and np.isin(output.numpy(), x.numpy()).all()
    cx.manual_seed(3)
    first = nn.FractionalMaxPool2d(2, output_ratio=(0.5, 0.75))(x)
    cx.manual_seed(3)
    assert first.shape == (2, 3, 6, 9) and first.equal(nn.FractionalMaxPool2d(2, output_ratio=(0.5, 0.75))(x))


SAMPLES: list[tuple[str, int, tuple[Any, ...], dict[str, Any]]] = [
    ("MaxPool", 1, (3, 2, 1), {"return_indices": True}),
    ("MaxPool", 2, (3, 2, 1), {"dilation": 2, "return_indices": True}),
    ("MaxPool", 3, (2,), {}),
    ("AvgPool", 1, (2,), {}),
    ("AvgPool", 2, (2,), {}),
    ("AvgPool", 3, (2,), {"ceil_mode": True}),
    ("LPPool", 2, (1, 2), {}),
    ("AdaptiveAvgPool", 2, (2,), {}),
    ("AdaptiveMaxPool", 3, (2,), {"return_indices": True}),
]


@pytest.mark.parametrize(("kind", "rank", "given", "options"), SAMPLES)
def test_one_sample_without_a_batch_and_a_batch_of_none(
    kind: str, rank: int, given: tuple[Any, ...], options: dict[str, Any]
) -> None:
    agree(pool(kind, rank, *given, **options), floats(*SIZES[rank - 1][1:]))
    layer = getattr(nn, f"{kind}{rank}d")(*given, **options)
    found = layer(cx.zeros(0, *SIZES[rank - 1][1:]))
    expected = layer(cx.zeros(2, *SIZES[rank - 1][1:]))
    for one, other in zip(*((each if isinstance(each, tuple) else (each,)) for each in (found, expected)), strict=True):
        assert one.shape == (0, *other.shape[1:])


@pytest.mark.parametrize(("rank", "window"), WINDOWS)
def test_of_equals_the_first_gets_the_gradient(rank: int, window: tuple[Any, ...]) -> None:
    few = np.random.default_rng(0).integers(0, 3, SIZES[rank - 1]).astype(np.float64)
    for options in ({}, {"dilation": 2}, {"ceil_mode": True}):
        agree(pool("MaxPool", rank, *window, **options, return_indices=True), few)


def test_places_of_windows_of_minus_infinity_are_inside() -> None:
    agree(
        lambda m, x: m.nn.MaxPool2d(3, 2, 1, return_indices=True)(x - float("inf"))[1],
        np.zeros((1, 1, 5, 4)),
        compiled=False,
    )


def test_the_plain_windows_are_one_kernel() -> None:
    for layer, op in ((nn.MaxPool2d(3, 2, 1), "max_pool2d"), (nn.AvgPool2d(3, 2, 1), "avg_pool2d")):
        assert [node.op for node in cx.trace(layer, (3, 9, 8)).graph.nodes] == ["input", op]


def test_every_option_goes_into_a_graph_of_any_batch() -> None:
    net = nn.Sequential(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(2, 1, 1, True, False),
        nn.LPPool2d(2, 2, ceil_mode=True),
        nn.AdaptiveMaxPool2d(2),
    )
    graph, x = cx.trace(net, (3, 20, 17)).graph, cx.tensor(floats(5, 3, 20, 17).astype(np.float32))
    assert graph.output_shape == (3, 2, 2) and net(x).shape == (5, 3, 2, 2)


WRONG: dict[str, Callable[[], Any]] = {
    "max_pool2d: expected padding of at most half the window of 3": lambda: F.max_pool2d(
        cx.zeros(1, 1, 9, 9), 2, None, 2, 2
    ),
    "expected padding of at most half the kernel (2, 2), got (2, 2)": lambda: F.max_pool2d(
        cx.zeros(1, 1, 9, 9), 2, 2, 2
    ),
    "avg_pool1d: expected padding of at most half": lambda: F.avg_pool1d(cx.zeros(1, 1, 9), 3, padding=2),
    "max_pool1d: expected x (N, C, L) or (C, L), got (3,)": lambda: F.max_pool1d(cx.zeros(3), 2),
    "a window of 7 does not fit into 5": lambda: F.max_pool1d(cx.zeros(1, 1, 5), 4, dilation=2),
    "a window at [-2, 1] holds no element of an axis of 1": lambda: F.max_pool1d(
        cx.zeros(1, 1, 1), 2, 1, 2, dilation=3
    ),
    "stride and dilation of at least 1": lambda: F.max_pool3d(cx.zeros(1, 1, 5, 5, 5), 2, dilation=0),
    "padding of at least 0": lambda: F.avg_pool3d(cx.zeros(1, 1, 5, 5, 5), 2, padding=-1),
    "divisor_override a whole number other than 0, got 0": lambda: F.avg_pool2d(
        cx.zeros(1, 1, 5, 5), 2, divisor_override=0
    ),
    "lp_pool1d: expected norm_type other than 0": lambda: F.lp_pool1d(cx.zeros(1, 1, 5), 0.0, 2),
    "expected one of output_size and output_ratio": lambda: nn.FractionalMaxPool2d(2)(cx.zeros(1, 1, 5, 5)),
    "expected output_size + kernel_size - 1 up to (5, 5)": lambda: nn.FractionalMaxPool2d(2, 5)(cx.zeros(1, 1, 5, 5)),
    "numbers between 0 and 1, got 1.5": lambda: nn.FractionalMaxPool2d(2, output_ratio=1.5)(cx.zeros(1, 1, 5, 5)),
    "adaptive pooling: expected sizes of at least 1": lambda: F.adaptive_max_pool2d(cx.zeros(1, 1, 5, 5), 0),
}


@pytest.mark.parametrize("said", WRONG)
def test_windows_that_cannot_be_are_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG[said]()


def test_unpooling_one_sample() -> None:
    def call(m: Any, x: Any) -> Any:
        return m.nn.MaxUnpool2d(2)(*m.nn.MaxPool2d(2, return_indices=True)(x))

    agree(call, floats(3, 4, 6), compiled=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size: expected a whole number of at least 1, got 0"),
        (lambda: nn.MaxPool1d(2, stride=0), "stride: expected a whole number of at least 1, got 0"),
        (lambda: nn.MaxPool3d((2, 2, -1)), r"whole numbers of at least 1, got \(2, 2, -1\)"),
        (lambda: nn.MaxPool2d(2, padding="sam"), "padding: expected a whole number of at least 0, got 'sam'"),
        (lambda: nn.MaxPool2d(2, dilation=0), "dilation: expected a whole number of at least 1, got 0"),
        (lambda: nn.AvgPool2d(2.5), "AvgPool2d: kernel_size: expected a whole number of at least 1, got 2.5"),
        (lambda: nn.AvgPool1d(2, padding=-1), "padding: expected a whole number of at least 0, got -1"),
        (lambda: nn.LPPool2d(2, "2"), "LPPool2d: kernel_size: expected a whole number of at least 1, got '2'"),
        (lambda: nn.MaxUnpool2d(0), "MaxUnpool2d: kernel_size: expected a whole number of at least 1, got 0"),
        (lambda: nn.FractionalMaxPool2d(0, 3), "kernel_size: expected a whole number of at least 1, got 0"),
        (lambda: nn.Conv2d(1, 1, 3, padding="sam"), "Conv2d: expected padding valid, same or numbers, got 'sam'"),
        (lambda: nn.Conv1d(1, 1, 3, stride=0), "Conv1d: stride: expected a whole number of at least 1, got 0"),
        (lambda: nn.Conv2d(1, 1, 3, padding=(1, -1)), r"padding: expected whole numbers .* 0, got \(1, -1\)"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, padding="same"), "padding: expected a whole number .*, got 'same'"),
        (lambda: nn.MaxPool2d(None), "kernel_size: expected a whole number of at least 1, got None"),
        (lambda: nn.AvgPool2d(()), r"AvgPool2d: kernel_size: expected one whole number or 2, got \(\)"),
        (lambda: nn.MaxPool2d((2, 2, 2)), r"kernel_size: expected one whole number or 2, got \(2, 2, 2\)"),
        (lambda: nn.Conv1d(1, 1, 3, stride=(1, 1)), "Conv1d: stride: expected one whole number or 1"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, stride=None), "stride: expected a whole number of at least 1, got None"),
        (lambda: nn.Conv2d(1, 1, 3, padding="same", stride=2), "Conv2d: padding same keeps the sizes"),
        (lambda: nn.ConvTranspose2d(1, 1, 3, output_padding=5), r"output_padding \(5, 5\) must be below stride"),
        (lambda: nn.AdaptiveAvgPool2d(0), "AdaptiveAvgPool2d: output_size: expected a whole number of at least 1"),
        (lambda: nn.AdaptiveMaxPool2d((None, -1)), "output_size: expected whole numbers of at least 1"),
        (lambda: nn.Unfold(0), "Unfold: kernel_size: expected a whole number of at least 1, got 0"),
        (lambda: nn.Unfold(2, stride=0), "Unfold: stride: expected a whole number of at least 1, got 0"),
        (lambda: nn.Fold((4, 4, 4), 2), "Fold: output_size: expected one whole number or 2"),
        (lambda: nn.LPPool2d("x", 2), "LPPool2d: norm_type: expected a number other than 0, got 'x'"),
    ],
)
def test_windows_that_make_no_sense_are_refused_when_the_layer_is_made(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()
