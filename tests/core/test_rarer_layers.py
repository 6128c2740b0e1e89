"""Layers and functions of PyTorch's that are met less often: the same results and gradients, eager and compiled."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import CyxError
from cyxcore.functional.activations import SELU_ALPHA, SELU_SCALE
from tests.core.layer_oracle import agree, agree_module, floats, torch

LABELS = np.array([[3, 0, -1, 1], [1, -1, 2, 2], [-1, 0, 1, 2], [0, 1, 2, 3], [2, 2, -1, -1]])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margins_of_several_labels(reduction: str) -> None:
    agree(lambda m, x, t: m.nn.MultiLabelMarginLoss(reduction=reduction)(x, t), floats(5, 4), LABELS)
    agree(lambda m, x, t: m.nn.functional.multilabel_margin_loss(x, t, reduction=reduction), floats(4), LABELS[0])


def test_margins_of_few_labels_among_many_classes() -> None:
    """(rows, labels, classes) elements are in memory, not (rows, classes, classes): that would be 16 GB here."""
    labels = np.full((1000, 2000), -1)
    labels[:, :3] = np.random.default_rng(0).permuted(np.arange(2000)[None].repeat(1000, 0), axis=1)[:, :3]
    found = []
    for library in (cx, torch):
        x = library.tensor(floats(1000, 2000), requires_grad=True)
        loss = library.nn.functional.multilabel_margin_loss(x, library.tensor(labels))
        loss.backward()
        found.append((loss.item(), x.grad.numpy()))
    (ours, gradient), (theirs, expected) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-9)


def test_margins_of_several_labels_have_the_same_bits_compiled() -> None:
    x = cx.tensor(floats(5, 7))
    labels = cx.tensor(
        np.array([[3, 0, -1, 1, 2, 2, 2], [1, -1] * 3 + [0], [-1] * 7, [6, 5] + [-1] * 5, [4] + [-1] * 6])
    )
    plain = F.multilabel_margin_loss(x, labels, reduction="none")
    compiled = cx.compile(lambda x, t: F.multilabel_margin_loss(x, t, reduction="none"))(x, labels)
    assert compiled.numpy().tobytes() == plain.numpy().tobytes()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("swap", [False, True])
def test_triplets_by_a_distance_of_ones_own(swap: bool, reduction: str) -> None:
    def call(m: Any, a: Any, p: Any, n: Any) -> Any:
        far = lambda x, y: (x - y).abs().sum(-1)  # noqa: E731
        options = {"swap": swap, "margin": 0.5, "reduction": reduction}
        own = m.nn.TripletMarginWithDistanceLoss(distance_function=far, **options)(a, p, n)
        return own, m.nn.TripletMarginWithDistanceLoss(**options)(a, p, n)

    agree(call, floats(4, 5), floats(4, 5, seed=1), floats(4, 5, seed=2))


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, float("inf")])
def test_distances_of_all_pairs(p: float) -> None:
    x = floats(5, 3)
    x[2] = x[0]
    x[1, 1] = x[3, 1]
    agree(lambda m, x: m.nn.functional.pdist(x, p), x)


def test_distances_that_only_count() -> None:
    agree(lambda m, x: m.nn.functional.pdist(x, 0.0), np.array([[1.0, 2.0], [1.0, 3.0], [4.0, 5.0]]), compiled=False)
    assert F.pdist(cx.zeros(1, 3)).shape == (0,) and F.pdist(cx.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_rows_of_zeros_have_a_gradient(p: float) -> None:
    x = floats(3, 4)
    x[1] = 0.0
    x[2, 1] = 0.0
    agree(lambda m, x: m.nn.functional.normalize(x, p), x, scale=10.0)
    agree(lambda m, x: m.nn.functional.pairwise_distance(x, x.detach(), p, 0.0), x)
    agree(lambda m, a, b: m.nn.functional.cosine_similarity(a, b), x, floats(3, 4, seed=1), scale=10.0)


def test_similarities_broadcast() -> None:
    call = lambda m, a, b: m.nn.functional.cosine_similarity(a.unsqueeze(1), b.unsqueeze(0), -1)  # noqa: E731
    agree(call, floats(3, 4), floats(5, 4, seed=1))
    agree(lambda m, a, b: m.nn.PairwiseDistance(keepdim=True)(a, b), floats(3, 1, 4), floats(5, 4, seed=1))


@pytest.mark.parametrize(
    "name", ["AlphaDropout", "FeatureAlphaDropout", "Dropout1d", "Dropout2d", "Dropout3d", "RReLU"]
)
def test_inference_is_torchs(name: str) -> None:
    shape = {"Dropout1d": (2, 3, 4), "Dropout3d": (2, 3, 4, 2, 2)}.get(name, (2, 3, 4, 5))
    agree(lambda m, x: getattr(m.nn, name)().eval()(x), floats(*shape))


def test_alpha_dropout_has_two_values_and_keeps_mean_and_variance() -> None:
    cx.manual_seed(0)
    p, least = 0.3, -SELU_ALPHA * SELU_SCALE
    a = 1.0 / np.sqrt((least**2 * p + 1.0) * (1.0 - p))
    x = cx.randn(200, 200).requires_grad_()
    y = nn.AlphaDropout(p)(x)
    dropped = np.isclose(y.detach().numpy(), a * least * (1.0 - p), atol=1e-6)
    np.testing.assert_allclose(
        y.detach().numpy()[~dropped], (x.detach().numpy() * a - a * p * least)[~dropped], atol=1e-5
    )
    assert abs(dropped.mean() - p) < 0.01 and abs(float(y.mean())) < 0.02 and abs(float(y.std()) - 1.0) < 0.02
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.where(dropped, 0.0, a), atol=1e-6)


def test_channels_are_dropped_as_a_whole() -> None:
    cx.manual_seed(0)
    for layer, shape in (
        (nn.FeatureAlphaDropout(0.5), (40, 30, 4, 5)),
        (nn.Dropout1d(0.5), (40, 30, 4)),
        (nn.Dropout1d(0.5), (1200, 4)),
        (nn.Dropout2d(0.5), (40, 30, 4, 5)),
        (nn.Dropout3d(0.5), (40, 30, 2, 3, 2)),
        (nn.Dropout3d(0.5), (1200, 2, 3, 2)),
    ):
        y = layer(cx.ones(*shape)).numpy().reshape(1200, -1)
        assert (y == y[:, :1]).all() and len(np.unique(y)) == 2 and abs((y[:, 0] == y.min()).mean() - 0.5) < 0.05


@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout", "FeatureAlphaDropout", "Dropout2d"])
def test_everything_can_be_dropped(name: str) -> None:
    agree(lambda m, x: getattr(m.nn, name)(1.0)(x), floats(2, 3, 4, 5))


CUTOFFS = [(3, 7), (1,), (2, 5, 9)]


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_softmax_in_clusters(cutoffs: tuple[int, ...], head_bias: bool) -> None:
    labels = np.array([0, 9, 3, 6, 2, 5])

    def make(m: Any) -> Any:
        return m.AdaptiveLogSoftmaxWithLoss(8, 10, cutoffs, 2.0, head_bias)

    def whole(m: Any) -> Any:
        class Every(m.Module):
            def __init__(self) -> None:
                super().__init__()
                self.part = make(m)

            def forward(self, x: Any) -> Any:
                return self.part.log_prob(x), self.part.predict(x)

        return Every()

    agree_module(make, floats(6, 8), labels)
    agree_module(make, floats(8), np.array(4))
    agree_module(whole, floats(6, 8))


def test_random_slopes_lie_between_their_bounds() -> None:
    cx.manual_seed(0)
    x = cx.tensor(floats(100, 100).astype("float32"), requires_grad=True)
    y = nn.RReLU(0.1, 0.4)(x)
    slopes = (y / x).detach().numpy()
    below = x.detach().numpy() <= 0
    assert (slopes[~below] == 1.0).all() and slopes[below].min() >= 0.0999 and slopes[below].max() <= 0.4001
    assert abs(slopes[below].mean() - 0.25) < 0.01
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), slopes, rtol=1e-5)


@pytest.mark.parametrize("layer", [nn.AlphaDropout(0.2), nn.RReLU(), nn.FeatureAlphaDropout(0.4)])
def test_a_random_layer_keeps_both_modes_and_draws_the_same_in_a_compiled_step(layer: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 5), layer)
    assert [node.op for node in cx.trace(net, (4,)).graph.nodes].count("by_mode") == 1
    optimizer = cx.optim.SGD(net.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        loss = net(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    found = []
    start = {name: np.array(value) for name, value in net.state_dict().items()}
    for made in (step, cx.compile(step)):
        net.load_state_dict(start)
        cx.manual_seed(7)
        found.append([made(cx.tensor(floats(6, 4, seed=n).astype("float32"))).item() for n in range(3)])
    assert found[0] == found[1]


WRONG: dict[str, Callable[[], Any]] = {
    "rrelu: expected lower <= upper, got 0.5 and 0.1": lambda: F.rrelu(cx.zeros(2), 0.5, 0.1),
    "alpha_dropout: expected a probability 0 <= p <= 1, got 1.5": lambda: F.alpha_dropout(cx.zeros(2), 1.5, True),
    "feature_alpha_dropout: expected x (N, C, ...)": lambda: F.feature_alpha_dropout(cx.zeros(2), 0.5, True),
    "dropout1d: expected x of 3 axes, or 2 without a batch": lambda: F.dropout1d(cx.zeros(2)),
    "dropout2d: expected x (N, C, H, W), got (2, 2)": lambda: F.dropout2d(cx.zeros(2, 2)),
    "multilabel_margin_loss: expected labels of 0..2": lambda: F.multilabel_margin_loss(
        cx.zeros(3), cx.tensor([3, -1, 0])
    ),
    "multilabel_margin_loss: expected x and target (N, C)": lambda: F.multilabel_margin_loss(
        cx.zeros(2, 3), cx.tensor([[0, 1]])
    ),
    "expected cutoffs that ascend within 1..9, got [3, 3]": lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3, 3]),
    "AdaptiveLogSoftmaxWithLoss: expected labels of 0..9": lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3])(
        cx.zeros(1, 8), cx.tensor([10])
    ),
    "expected input (N, 8) and target (N,), got (2, 8) and (3,)": lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3])(
        cx.zeros(2, 8), cx.tensor([1, 2, 3])
    ),
    "pdist: expected x (N, D), got (3,)": lambda: F.pdist(cx.zeros(3)),
    "norm: expected p of at least 0, or inf, got -1.0": lambda: F.pdist(cx.zeros(3, 2), -1.0),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG[said]()


@pytest.mark.parametrize(
    "made",
    [
        "Conv1d(3, 6, 3, padding='same', groups=3)",
        "Conv2d(3, 8, 4, 2, 1, bias=False)",
        "Conv2d(3, 8, 3, padding=1, padding_mode='reflect', dilation=(1, 2))",
        "Conv3d(1, 2, 3)",
        "ConvTranspose1d(3, 6, (3,), dilation=2)",
        "ConvTranspose2d(3, 6, 3, 2, 1, 1, groups=3, bias=False)",
        "ConvTranspose3d(1, 2, 3, (1, 2, 2))",
    ],
)
def test_a_convolution_tells_what_it_is_made_with(made: str) -> None:
    ours, theirs = (eval(made, vars(library.nn)) for library in (cx, torch))
    assert repr(ours) == repr(theirs)
    names = "in_channels out_channels kernel_size stride padding dilation groups"
    names += " output_padding" if "Transpose" in made else ""
    own = {name: getattr(ours, name) for name in names.split() if "reflect" not in made or name != "padding"}
    assert own == {name: getattr(theirs, name) for name in own}
