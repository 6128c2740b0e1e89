"""What has a namesake in PyTorch gives its numbers. Skipped where torch is not installed."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore.errors import CyxError

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
    ("Adamax", {}),
    ("Adamax", {"lr": 0.1, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.1, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.1, "betas": (0.0, 0.5)}),
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.5, "weight_decay": 0.1}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.1, "weight_decay": 0.1, "d": 2.0, "beta2_decay": -0.5}),
    ("Rprop", {}),
    ("Rprop", {"lr": 0.3, "etas": (0.4, 1.5), "step_sizes": (0.1, 0.5)}),
    ("ASGD", {"lr": 0.1}),
    ("ASGD", {"lr": 0.1, "lambd": 0.1, "alpha": 0.5, "t0": 3, "weight_decay": 0.1}),
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


def test_asgd_has_the_average_of_torch() -> None:
    ours = cx.tensor(START.astype(np.float32), requires_grad=True)
    theirs = torch.tensor(START, requires_grad=True)
    options = {"lr": 0.1, "lambd": 0.1, "t0": 4}
    one, other = cx.optim.ASGD([ours], **options), torch.optim.ASGD([theirs], **options)
    for g in GRADIENTS:
        ours.grad, theirs.grad = cx.tensor(g.astype(np.float32)), torch.tensor(g)
        one.step()
        other.step()
    np.testing.assert_allclose(one.state[0]["asgd_average"].numpy(), other.state[theirs]["ax"].numpy(), rtol=3e-6)


def _rosenbrock(m: Any, start: Any, **options: Any) -> tuple[list[float], np.ndarray]:
    """(losses, the point) after five steps of LBFGS."""
    p = m.tensor(start, requires_grad=True)
    optimizer = m.optim.LBFGS([p], **options)
    losses = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2
        loss.backward()
        return loss

    for _ in range(5):
        losses.append(optimizer.step(closure).item())
    return losses, p.detach().numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1, "max_iter": 5},
        {"lr": 1e-3, "max_iter": 4, "history_size": 2},
        {"line_search_fn": "strong_wolfe", "max_iter": 6},
        {"line_search_fn": "strong_wolfe", "max_iter": 10, "max_eval": 7, "history_size": 3},
    ],
)
def test_lbfgs_takes_torchs_way(options: dict[str, Any]) -> None:
    start = np.array([-1.2, 1.0])
    ours, theirs = (_rosenbrock(m, start, **options) for m in (cx, torch))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (5, 1)])
def test_adafactor_of_matrices(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=shape)
    ours, theirs = cx.tensor(start.astype(np.float32), requires_grad=True), torch.tensor(start, requires_grad=True)
    one, other = cx.optim.Adafactor([ours], lr=0.1), torch.optim.Adafactor([theirs], lr=0.1)
    for _ in range(8):
        g = rng.normal(size=shape)
        ours.grad, theirs.grad = cx.tensor(g.astype(np.float32)), torch.tensor(g)
        one.step()
        other.step()
        again = cx.optim.Adafactor([ours])
        again.load_state_dict(one.state_dict())
        one = again
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_radam_for_two_thousand_steps() -> None:
    """The length of its average is computed in two ways, which meet on the way."""
    ours, theirs = cx.tensor([1.0, -1.0], requires_grad=True), torch.tensor([1.0, -1.0], dtype=torch.float64)
    one, other = cx.optim.RAdam([ours], lr=0.003), torch.optim.RAdam([theirs.requires_grad_()], lr=0.003)
    for t in range(2000):
        g = np.array([np.sin(0.1 * t), 0.5 * np.cos(t)])
        ours.grad, theirs.grad = cx.tensor(g.astype(np.float32)), torch.tensor(g)
        one.step()
        other.step()
        if t % 250 == 249:
            np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-3, atol=1e-4)


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
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.2, 4),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, lambda t: 0.9 + 0.01 * t),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "CosineAnnealingWarmRestarts of one length": lambda s, o: s.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 3, 2),
    "CyclicLR halved": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 3, mode="triangular2"),
    "CyclicLR shrinking": lambda s, o: s.CyclicLR(o, 0.1, 0.9, 4, mode="exp_range", gamma=0.9),
    "OneCycleLR by epochs": lambda s, o: s.OneCycleLR(o, 0.7, epochs=4, steps_per_epoch=5),
    "ChainedScheduler": lambda s, o: s.ChainedScheduler([s.ConstantLR(o, 0.1, 4), s.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau up": lambda s, o: s.ReduceLROnPlateau(o, mode="max", factor=0.5, patience=1, cooldown=2),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, factor=0.5, patience=2),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of its own ways to count
@pytest.mark.parametrize("name", SCHEDULES)
def test_twenty_learning_rates_of_a_schedule(name: str) -> None:
    one = cx.optim.SGD([cx.zeros(1, requires_grad=True)], 0.5, momentum=0.9)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5, momentum=0.9)
    ours, theirs = SCHEDULES[name](cx.lr_scheduler, one), SCHEDULES[name](torch_schedulers, other)
    for loss in LOSSES[:19]:
        assert one.lr == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
        other.step()
        for schedule in (ours, theirs):
            schedule.step(*([loss] if name.startswith("ReduceLROnPlateau") else []))


def test_clipping_by_norm() -> None:
    values = [np.array([3.0, -4.0], np.float32), np.array([12.0], np.float32)]
    ours = [cx.zeros(*v.shape, requires_grad=True) for v in values]
    theirs = [torch.zeros(*v.shape, requires_grad=True) for v in values]
    for p, q, v in zip(ours, theirs, values, strict=True):
        p.grad, q.grad = cx.tensor(v), torch.tensor(v)
    norm = float(cx.optim.clip_grad_norm_(ours, 1.0))
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
@pytest.mark.parametrize("extra", [(), (3,), (2, 5)])
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


# modules ------------------------------------------------------------------------------------------


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def agree(ours: Any, theirs: Any, *arrays: np.ndarray, **options: Any) -> None:
    """Same weights by the same names; then the same outputs, and the same gradients of a weighted sum of them."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    one_in = [cx.tensor(array, requires_grad=True) for array in arrays]
    other_in = [torch.tensor(array, requires_grad=True) for array in arrays]
    lifted = {
        key: (cx.tensor(v), torch.tensor(v)) if isinstance(v, np.ndarray) else (v, v) for key, v in options.items()
    }
    one = ours(*one_in, **{key: here for key, (here, _) in lifted.items()})
    other = theirs(*other_in, **{key: there for key, (_, there) in lifted.items()})
    ones, others = (one, other) if isinstance(one, tuple) else ((one,), (other,))
    for mine, its in zip(ones[:1], others[:1], strict=True):
        np.testing.assert_allclose(mine.numpy(), its.detach().numpy(), rtol=1e-5, atol=2e-6)
    weights = floats(*ones[0].shape, seed=9)
    (ones[0] * cx.tensor(weights)).sum().backward()
    (others[0] * torch.tensor(weights)).sum().backward()
    named = dict(theirs.named_parameters())
    pairs = [(p.grad, named[name].grad) for name, p in ours.named_parameters()]
    for mine, its in (*pairs, *((x.grad, y.grad) for x, y in zip(one_in, other_in, strict=True))):
        scale = float(its.abs().max()) + 1e-6
        np.testing.assert_allclose(mine.numpy() / scale, its.numpy() / scale, rtol=0, atol=1e-4)


ACTIVATIONS: list[tuple[str, dict[str, Any]]] = [
    ("ReLU", {}),
    ("LeakyReLU", {}),
    ("ELU", {"alpha": 0.7}),
    ("CELU", {"alpha": 0.7}),
    ("SELU", {}),
    ("GELU", {}),
    ("GELU", {"approximate": "tanh"}),
    ("SiLU", {}),
    ("Mish", {}),
    ("Softplus", {"beta": 2.0}),
    ("Softsign", {}),
    ("Tanh", {}),
    ("Tanhshrink", {}),
    ("Hardtanh", {}),
    ("Sigmoid", {}),
    ("LogSigmoid", {}),
    ("Hardsigmoid", {}),
    ("Hardswish", {}),
    ("GLU", {}),
    ("ReLU6", {}),
    ("PReLU", {"num_parameters": 4}),
    ("PReLU", {}),
    ("Softmax", {"dim": -1}),
    ("LogSoftmax", {"dim": 1}),
    ("Threshold", {"threshold": 0.1, "value": -2.0}),
    ("Hardshrink", {"lambd": 0.3}),
    ("Softshrink", {"lambd": 0.3}),
    ("Softmin", {"dim": 1}),
    ("Softmax2d", {}),
]


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS)
def test_an_activation(name: str, options: dict[str, Any]) -> None:
    agree(getattr(cx.nn, name)(**options), getattr(torch.nn, name)(**options), floats(3, 4, 6))


LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Linear", (6, 5), {}, (3, 4, 6)),
    ("Conv1d", (4, 6, 3, 2, 1, 2, 2), {}, (3, 4, 20)),
    ("Conv2d", (4, 6, (3, 2), 2, 1, 1, 2), {}, (3, 4, 9, 8)),
    ("Conv3d", (4, 6, 3, 2, 1, 1, 2), {}, (2, 4, 7, 8, 9)),
    ("Conv3d", (2, 3, (2, 3, 2), (1, 2, 1), (0, 1, 1), (2, 1, 2)), {}, (2, 2, 7, 8, 9)),
    ("ConvTranspose1d", (4, 6, 3, 2, 1, 1, 2), {}, (2, 4, 5)),
    ("ConvTranspose2d", (4, 6, 3, 2, 1, 1, 2), {}, (2, 4, 5, 6)),
    ("MaxPool1d", (3, 2, 1), {}, (2, 4, 9)),
    ("AvgPool1d", (3, 2, 1), {}, (2, 4, 9)),
    ("MaxPool2d", (3, 2, 1), {}, (2, 4, 9, 8)),
    ("AvgPool2d", (3, 2, 1), {}, (2, 4, 9, 8)),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 4, 7)),
    ("AdaptiveAvgPool2d", ((3, 2),), {}, (2, 4, 7, 5)),
    ("MaxPool3d", (2,), {}, (2, 3, 4, 6, 5)),
    ("MaxPool3d", ((3, 2, 3), (2, 1, 2), (1, 0, 1)), {}, (2, 3, 5, 6, 7)),
    ("AvgPool3d", (3, 2, 1), {}, (2, 3, 5, 6, 7)),
    ("AdaptiveMaxPool1d", (3,), {}, (2, 4, 7)),
    ("AdaptiveMaxPool2d", ((3, 2),), {}, (2, 4, 7, 5)),
    ("ZeroPad1d", ((1, 2),), {}, (2, 3, 4)),
    ("ZeroPad2d", ((-1, 2, 0, -3),), {}, (2, 3, 4, 5)),
    ("ZeroPad3d", ((1, 2, 0, 3, 1, 0),), {}, (2, 3, 4, 5, 2)),
    ("ConstantPad1d", (2, 0.5), {}, (2, 3, 4)),
    ("ConstantPad2d", ((1, 0, 2, 3), -1.5), {}, (2, 3, 4, 5)),
    ("ConstantPad3d", (1, 7.0), {}, (2, 3, 4, 5, 2)),
    ("ReflectionPad1d", ((1, 3),), {}, (2, 3, 4)),
    ("ReflectionPad2d", ((1, 3, 2, 0),), {}, (2, 3, 4, 5)),
    ("ReflectionPad3d", (1,), {}, (2, 3, 4, 5, 2)),
    ("ReplicationPad1d", ((5, 2),), {}, (2, 3, 4)),
    ("ReplicationPad2d", ((1, 3, 2, 0),), {}, (2, 3, 4, 5)),
    ("ReplicationPad3d", (2,), {}, (2, 3, 4, 5, 2)),
    ("CircularPad1d", ((4, 2),), {}, (2, 3, 4)),
    ("CircularPad2d", ((1, 3, 2, 0),), {}, (2, 3, 4, 5)),
    ("CircularPad3d", (2,), {}, (2, 3, 4, 5, 2)),
    ("Upsample", (), {"size": 7}, (2, 3, 4)),
    ("Upsample", (), {"scale_factor": 1.7}, (2, 3, 5, 4)),
    ("Upsample", (), {"size": (7, 2)}, (2, 3, 5, 4)),
    ("Upsample", (), {"size": (3, 7, 2)}, (2, 3, 2, 5, 4)),
    ("Upsample", (), {"size": (7, 9), "mode": "nearest-exact"}, (2, 3, 5, 4)),
    ("Upsample", (), {"scale_factor": 2.0, "mode": "linear"}, (2, 3, 4)),
    ("Upsample", (), {"scale_factor": (1.5, 0.7), "mode": "bilinear"}, (2, 3, 5, 6)),
    ("Upsample", (), {"size": (9, 3), "mode": "bilinear", "align_corners": True}, (2, 3, 5, 6)),
    ("Upsample", (), {"size": (9, 3), "mode": "bicubic"}, (2, 3, 5, 6)),
    ("Upsample", (), {"scale_factor": 2.5, "mode": "bicubic", "align_corners": True}, (2, 3, 5, 6)),
    ("Upsample", (), {"scale_factor": 2.0, "mode": "trilinear"}, (2, 3, 2, 3, 4)),
    ("UpsamplingBilinear2d", (), {"scale_factor": 2}, (2, 3, 5, 6)),
    ("Unfold", (2,), {}, (2, 3, 4, 5)),
    ("Unfold", ((2, 3), (2, 1), (1, 2), (2, 3)), {}, (2, 3, 6, 7)),
    ("Fold", ((4, 5), 2), {}, (2, 12, 12)),
    ("Fold", ((6, 7), (2, 3), (2, 1), (1, 2), (2, 3)), {}, (2, 18, 9)),
    ("ChannelShuffle", (3,), {}, (2, 6, 3, 2)),
    ("LocalResponseNorm", (3,), {"alpha": 0.7, "beta": 0.6, "k": 1.5}, (2, 6, 3, 2)),
    ("LocalResponseNorm", (4,), {}, (2, 6, 3)),
    ("AdaptiveAvgPool3d", ((2, 3, 1),), {}, (2, 3, 4, 7, 5)),
    ("AdaptiveMaxPool3d", (2,), {}, (2, 3, 4, 7, 5)),
    ("ConvTranspose3d", (4, 6, 3, 2, 1, 1, 2), {}, (2, 4, 3, 4, 5)),
    ("ConvTranspose3d", (2, 3, (2, 3, 1), (1, 2, 2), (1, 0, 0), (0, 1, 0), 1, False, (2, 1, 1)), {}, (2, 2, 3, 4, 2)),
    ("ConvTranspose3d", (2, 4, (4, 2, 3), (3, 1, 2), (1, 2, 0), (1, 2, 0), 2, True, (2, 3, 1)), {}, (2, 2, 3, 4, 5)),
    ("ConvTranspose3d", (2, 3, (1, 2, 1), 3), {}, (2, 2, 2, 3, 2)),  # depths and pixels that nothing reaches
    ("ConvTranspose2d", (4, 6, 3, (1, 2), (2, 1), 2, 2, True, 3), {}, (2, 4, 5, 4)),  # more padding than a stride
    ("ConvTranspose1d", (4, 6, 2, 1, 1, 1, 1, True, 2), {}, (2, 4, 5)),
    ("ConvTranspose2d", (5, 3, (4, 3), 2), {}, (2, 5, 1, 1)),  # of single pixels
    ("ZeroPad2d", ((1, 2, 0, 3),), {}, (2, 3, 4, 5)),
    ("ZeroPad2d", (1,), {}, (2, 3, 4, 5)),
    ("Unflatten", (1, (2, -1)), {}, (3, 6, 4)),
    ("PixelUnshuffle", (2,), {}, (2, 3, 4, 6)),
    ("InstanceNorm3d", (4,), {"affine": True}, (3, 4, 2, 5, 6)),
    ("PixelShuffle", (2,), {}, (2, 8, 3, 4)),
    ("BatchNorm1d", (4,), {}, (6, 4, 3)),
    ("BatchNorm2d", (4,), {}, (3, 4, 5, 6)),
    ("BatchNorm3d", (4,), {}, (3, 4, 2, 5, 6)),
    ("LayerNorm", ((4, 6),), {}, (3, 4, 6)),
    ("RMSNorm", (6,), {"eps": 1e-6}, (3, 4, 6)),
    ("GroupNorm", (2, 4), {}, (3, 4, 5, 6)),
    ("InstanceNorm1d", (4,), {"affine": True}, (3, 4, 5)),
    ("InstanceNorm2d", (4,), {"affine": True}, (3, 4, 5, 6)),
]


@pytest.mark.parametrize(("name", "given", "options", "shape"), LAYERS)
def test_a_layer(name: str, given: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]) -> None:
    agree(getattr(cx.nn, name)(*given, **options), getattr(torch.nn, name)(*given, **options), floats(*shape))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("name", "options"), [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("LSTM", {}), ("GRU", {})]
)
def test_a_recurrent_layer(name: str, options: dict[str, Any], batch_first: bool, bidirectional: bool) -> None:
    shared = {**options, "batch_first": batch_first, "bidirectional": bidirectional}
    agree(getattr(cx.nn, name)(5, 7, 2, **shared), getattr(torch.nn, name)(5, 7, 2, **shared), floats(3, 6, 5))


@pytest.mark.parametrize(
    ("merge_mode", "merged"),
    [
        ("concat", lambda a, b: torch.cat([a, b], 2)),
        ("sum", lambda a, b: a + b),
        ("multiply", lambda a, b: a * b),
        ("average", lambda a, b: (a + b) / 2),
    ],
)
def test_a_bidirectional_layer(merge_mode: str, merged: Any) -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(5, 7, batch_first=True, bidirectional=True)

        def forward(self, x: Any) -> Any:
            both = self.rnn(x)[0]
            return merged(both[:, :, :7], both[:, :, 7:])

    agree(cx.nn.Bidirectional("LSTM", 5, 7, merge_mode), Both(), floats(3, 6, 5))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_rows_of_different_lengths_are_torchs_packed_sequences(name: str) -> None:
    lengths, x = np.array([4, 6, 1]), floats(3, 6, 5)
    theirs = getattr(torch.nn, name)(5, 7, 2, batch_first=True, bidirectional=True)
    ours = getattr(cx.nn, name)(5, 7, 2, batch_first=True, bidirectional=True)
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths, batch_first=True, enforce_sorted=False)
    out, last = theirs(packed)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    mine, ended = ours(cx.tensor(x), lengths=cx.tensor(lengths))
    np.testing.assert_allclose(mine.numpy(), padded.detach().numpy(), atol=2e-6)
    for one, other in zip(ended if name == "LSTM" else [ended], last if name == "LSTM" else [last], strict=True):
        np.testing.assert_allclose(one.numpy(), other.detach().numpy(), atol=2e-6)


PADDED = np.array([[False] * 4 + [True] * 2, [False] * 6, [False] * 6])
CAUSAL = np.triu(np.ones((5, 5), bool), 1)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([(3, 5, 8), (3, 6, 8), (3, 6, 8)], {}),
        ([(3, 5, 8), (3, 6, 8), (3, 6, 8)], {"key_padding_mask": PADDED}),
        ([(3, 5, 8)] * 3, {"attn_mask": CAUSAL}),
        ([(3, 5, 8)] * 3, {"attn_mask": np.where(CAUSAL, -np.inf, 0.5).astype(np.float32)}),
    ],
)
def test_multi_head_attention(shapes: list[tuple[int, ...]], options: dict[str, Any]) -> None:
    both = [module(8, 2, batch_first=True) for module in (cx.nn.MultiheadAttention, torch.nn.MultiheadAttention)]
    agree(*both, *(floats(*shape, seed=n) for n, shape in enumerate(shapes)), **options)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_transformer_encoder(activation: str, norm_first: bool) -> None:
    def made(nn: Any) -> Any:
        options = {"activation": activation, "batch_first": True, "norm_first": norm_first}
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, **options), 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = made(torch.nn)
    agree(made(cx.nn), theirs, floats(3, 5, 8))


def test_a_transformer_decoder() -> None:
    def made(nn: Any) -> Any:
        return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, 0.0), 2)

    agree(made(cx.nn), made(torch.nn), floats(5, 3, 8), floats(6, 3, 8, seed=1))


def test_a_whole_transformer() -> None:
    def made(nn: Any) -> Any:
        return nn.Transformer(8, 2, 2, 1, 16, 0.0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = made(torch.nn)
    agree(made(cx.nn), theirs, floats(5, 3, 8), floats(6, 3, 8, seed=1))


def test_a_bilinear_form() -> None:
    agree(cx.nn.Bilinear(4, 5, 3), torch.nn.Bilinear(4, 5, 3), floats(2, 6, 4), floats(2, 6, 5, seed=1))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(mode: str) -> None:
    ours, theirs = cx.nn.EmbeddingBag(9, 4, mode=mode), torch.nn.EmbeddingBag(9, 4, mode=mode)
    ours.load_state_dict({"weight": theirs.weight.detach().numpy()})
    indices = np.array([[1, 8, 3], [0, 0, 5]])
    one, other = ours(cx.tensor(indices)), theirs(torch.tensor(indices))
    np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"), [("RNNCell", {"nonlinearity": "relu"}), ("LSTMCell", {}), ("GRUCell", {})]
)
def test_one_step_of_a_recurrence(name: str, options: dict[str, Any]) -> None:
    ours, theirs = getattr(cx.nn, name)(5, 7, **options), getattr(torch.nn, name)(5, 7, **options)
    agree(ours, theirs, floats(3, 5))
    x, h, c = floats(3, 5), floats(3, 7, seed=1), floats(3, 7, seed=2)
    lifted = [(kind(h), kind(c)) if name == "LSTMCell" else kind(h) for kind in (cx.tensor, torch.tensor)]
    one, other = ours(cx.tensor(x), lifted[0]), theirs(torch.tensor(x), lifted[1])
    for mine, its in zip(*(one, other) if name == "LSTMCell" else ([one], [other]), strict=True):
        np.testing.assert_allclose(mine.numpy(), its.detach().numpy(), atol=2e-6)


THETA = np.array([[[1.13, 0.2, 0.3], [-0.4, 0.9, -0.6]], [[2.5, 0.01, 0], [0.02, -1.7, 0.1]]], np.float32)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_an_image_is_sampled_at_points(mode: str, border: str, aligned: bool) -> None:
    ours = [cx.tensor(each, requires_grad=True) for each in (floats(2, 3, 5, 6), THETA)]
    theirs = [torch.tensor(each, requires_grad=True) for each in (floats(2, 3, 5, 6), THETA)]
    one = F.grid_sample(ours[0], F.affine_grid(ours[1], (2, 3, 4, 7), aligned), mode, border, aligned)
    grid = torch.nn.functional.affine_grid(theirs[1], (2, 3, 4, 7), align_corners=aligned)
    other = torch.nn.functional.grid_sample(theirs[0], grid, mode, border, aligned)
    np.testing.assert_allclose(one.numpy(), other.detach().numpy(), atol=2e-5)
    (one * one).sum().backward()
    (other * other).sum().backward()
    np.testing.assert_allclose(ours[0].grad.numpy(), theirs[0].grad.numpy(), atol=1e-4)
    if mode == "bilinear":
        np.testing.assert_allclose(ours[1].grad.numpy(), theirs[1].grad.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ctc_and_its_gradient(reduction: str, compiled: bool) -> None:
    x, targets = floats(9, 4, 5), np.array([[1, 2, 2, 4], [3, 0, 0, 0], [1, 1, 1, 1], [2, 3, 4, 1]])
    inputs, lengths = np.array([9, 4, 7, 6]), np.array([4, 1, 4, 0])
    theirs = torch.tensor(x, requires_grad=True)
    given = [torch.tensor(each) for each in (targets, inputs, lengths)]
    other = torch.nn.functional.ctc_loss(theirs.log_softmax(2), *given, reduction=reduction)
    other.sum().backward()
    ours = cx.tensor(x, requires_grad=True)

    def loss(logits: Any, labels: Any, ends: Any, counts: Any) -> Any:
        return F.ctc_loss(F.log_softmax(logits, 2), labels, ends, counts, reduction=reduction)

    own = [cx.tensor(each) for each in (targets, inputs, lengths)]
    one = (cx.compile(loss) if compiled else loss)(ours, *own)
    np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=1e-5)
    if not compiled:
        one.sum().backward()
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-5)


def test_ctc_of_an_impossible_alignment() -> None:
    logits = cx.tensor(floats(2, 1, 3), requires_grad=True)
    given = (F.log_softmax(logits, 2), cx.tensor([[1, 1]]), cx.tensor([2]), cx.tensor([2]))
    assert F.ctc_loss(*given).numpy() == np.inf
    loss = F.ctc_loss(*given, zero_infinity=True)
    loss.backward()
    assert loss.numpy() == 0.0 and not logits.grad.numpy().any()


@pytest.mark.parametrize(("inputs", "labels"), [(3, 2), (2, 3)])
def test_ctc_lengths_beyond_what_is_there_are_refused(inputs: int, labels: int) -> None:
    log_probs = F.log_softmax(cx.tensor(floats(2, 1, 4)), 2)
    with pytest.raises(IndexError, match="got 3"):
        F.ctc_loss(log_probs, cx.tensor([[1, 2]]), cx.tensor([inputs]), cx.tensor([labels]))


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "CosineAnnealingWarmRestarts"])
def test_a_cosine_from_a_rate_of_zero(name: str) -> None:
    one = cx.optim.SGD([cx.zeros(1, requires_grad=True)], 0.0)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.0)
    ours, theirs = SCHEDULES[name](cx.lr_scheduler, one), SCHEDULES[name](torch_schedulers, other)
    for _ in range(8):
        assert one.lr == pytest.approx(other.param_groups[0]["lr"], abs=1e-12)
        other.step()
        ours.step()
        theirs.step()


@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_an_adaptive_pool_leaves_an_axis_as_it_is(name: str) -> None:
    x = floats(2, 3, 5, 6)
    for size in ((None, 4), (2, None)):
        expected = getattr(torch.nn.functional, name)(torch.tensor(x), size).numpy()
        np.testing.assert_allclose(getattr(F, name)(cx.tensor(x), size).numpy(), expected, rtol=1e-5, atol=1e-6)


X2 = cx.zeros(2, 3)
WRONG_STATES: dict[str, Callable[[], Any]] = {
    "LSTMCell: expected a pair (h, c) of tensors as state, got Tensor": lambda: cx.nn.LSTMCell(3, 3)(X2, X2),
    "LSTMCell: expected a pair (h, c) of tensors as state, got tuple": lambda: cx.nn.LSTMCell(3, 3)(X2, (X2,) * 3),
    "GRUCell: expected a tensor as state, got tuple": lambda: cx.nn.GRUCell(3, 3)(X2, (X2, X2)),
    "LSTM: expected a pair (h, c) of tensors as state, got Tensor": lambda: cx.nn.LSTM(3, 3)(
        cx.zeros(1, 2, 3), cx.zeros(2, 1, 2, 3)
    ),
    "Unflatten: expected sizes of which at most one is -1, got (0, -1)": lambda: cx.nn.Unflatten(1, (0, -1))(X2),
    "adaptive pooling: expected one or 2 sizes": lambda: F.adaptive_avg_pool2d(cx.zeros(1, 1, 2, 2), (1, 1, 1)),
    "pixel_unshuffle: expected a height and width divisible by 0": lambda: F.pixel_unshuffle(cx.zeros(1, 1, 2, 2), 0),
}


@pytest.mark.parametrize("said", WRONG_STATES)
def test_a_state_or_a_size_that_would_be_bent_is_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG_STATES[said]()


WRONG_GRIDS: dict[str, Callable[[], Any]] = {
    "expected a size of whole numbers, got 2.5": lambda: F.interpolate(cx.zeros(1, 1, 2, 2), size=2.5),
    "expected a size of whole numbers, got True": lambda: F.interpolate(cx.zeros(1, 1, 2, 2), size=True),
    "expected x with elements along the axes after C": lambda: F.interpolate(cx.zeros(1, 1, 0, 2), size=2),
    "expected x with elements along H and W": lambda: F.grid_sample(cx.zeros(1, 1, 0, 2), cx.zeros(1, 2, 2, 2)),
    "expected theta (N, 2, 3) and a size (N, C, H, W)": lambda: F.affine_grid(cx.zeros(1, 2, 3), (5, 1, 2, 2)),
}


@pytest.mark.parametrize("said", WRONG_GRIDS)
def test_a_grid_that_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        WRONG_GRIDS[said]()


LOSS_PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("mse_loss", {}),
    ("l1_loss", {}),
    ("huber_loss", {"delta": 0.5}),
    ("smooth_l1_loss", {"beta": 0.5}),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options"), LOSS_PAIRS)
def test_a_loss_of_two_arrays(name: str, options: dict[str, Any], reduction: str) -> None:
    a, b = floats(4, 5), floats(4, 5, seed=1)
    one = getattr(F, name)(cx.tensor(a), cx.tensor(b), reduction, **options)
    other = getattr(torch.nn.functional, name)(torch.tensor(a), torch.tensor(b), reduction=reduction, **options)
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5)


def test_the_losses_of_probabilities() -> None:
    tf = torch.nn.functional
    x, t = 1 / (1 + np.exp(-floats(4, 5))), np.random.default_rng(2).dirichlet(np.ones(5), 4).astype(np.float32)
    logs, side = np.log(x), np.array([1, -1, 1, -1])
    c, r = cx.tensor, torch.tensor
    a, b, n = floats(4, 5, seed=3), floats(4, 5, seed=4), floats(4, 5, seed=5)
    labels, positive = np.array([0, 4, 2, 2]), np.full(5, 3.0, np.float32)
    pairs = [
        (F.binary_cross_entropy(c(x), c(t)), tf.binary_cross_entropy(r(x), r(t))),
        (
            F.binary_cross_entropy_with_logits(c(a), c(t), pos_weight=c(positive)),
            tf.binary_cross_entropy_with_logits(r(a), r(t), pos_weight=r(positive)),
        ),
        (F.kl_div(c(logs), c(t), "batchmean"), tf.kl_div(r(logs), r(t), reduction="batchmean")),
        (F.nll_loss(c(logs), c(labels)), tf.nll_loss(r(logs), r(labels))),
        (F.cosine_embedding_loss(c(a), c(b), c(side)), tf.cosine_embedding_loss(r(a), r(b), r(side))),
        (F.triplet_margin_loss(c(a), c(b), c(n)), tf.triplet_margin_loss(r(a), r(b), r(n))),
        (F.margin_ranking_loss(c(a), c(b), c(np.sign(n))), tf.margin_ranking_loss(r(a), r(b), r(np.sign(n)))),
        (F.hinge_embedding_loss(c(a), c(np.sign(n))), tf.hinge_embedding_loss(r(a), r(np.sign(n)))),
        (F.poisson_nll_loss(c(a), c(t)), tf.poisson_nll_loss(r(a), r(t))),
        (F.gaussian_nll_loss(c(a), c(b), c(x)), tf.gaussian_nll_loss(r(a), r(b), r(x))),
        (F.soft_margin_loss(c(a), c(np.sign(n))), tf.soft_margin_loss(r(a), r(np.sign(n)))),
        (
            F.multilabel_soft_margin_loss(c(a), c(n > 0).astype("float32"), c(positive)),
            tf.multilabel_soft_margin_loss(r(a), r((n > 0).astype(np.float32)), r(positive)),
        ),
        (F.multi_margin_loss(c(a), c(labels)), tf.multi_margin_loss(r(a), r(labels))),
        (
            F.multi_margin_loss(c(a), c(labels), 2, 0.7, c(positive), "sum"),
            tf.multi_margin_loss(r(a), r(labels), 2, 0.7, r(positive), reduction="sum"),
        ),
        (F.normalize(c(a)), tf.normalize(r(a))),
        (F.normalize(c(a), 3.0, 0), tf.normalize(r(a), 3.0, 0)),
        (F.pairwise_distance(c(a), c(b)), tf.pairwise_distance(r(a), r(b))),
        (F.pairwise_distance(c(a), c(b), float("inf")), tf.pairwise_distance(r(a), r(b), float("inf"))),
        (cx.nn.CosineSimilarity(0)(c(a), c(b)), torch.nn.CosineSimilarity(0)(r(a), r(b))),
    ]
    for one, other in pairs:
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-5)


@pytest.mark.parametrize(
    "name", ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_"]
)
def test_an_initialiser_has_torchs_spread(name: str) -> None:
    one, other = cx.zeros(64, 16, 3, 3), torch.zeros(64, 16, 3, 3)
    getattr(cx.nn.init, name)(one)
    getattr(torch.nn.init, name)(other)
    assert float(one.numpy().std()) == pytest.approx(float(other.std()), rel=0.05)


@pytest.mark.parametrize(("shape", "groups"), [((4, 3, 3), 1), ((3, 4, 2, 3), 1), ((6, 2, 3, 4, 5), 3), ((4, 1, 1), 4)])
def test_a_dirac_weight_is_torchs(shape: Any, groups: int) -> None:
    weight = cx.nn.init.dirac_(cx.ones(shape), groups)
    np.testing.assert_array_equal(weight.numpy(), torch.nn.init.dirac_(torch.ones(shape), groups).numpy())


def test_a_sparse_weight_has_torchs_zeros_and_spread() -> None:
    cx.manual_seed(1)
    torch.manual_seed(1)
    one, other = cx.nn.init.sparse_(cx.ones(101, 50), 0.25), torch.nn.init.sparse_(torch.ones(101, 50), 0.25)
    zeros, theirs = (np.asarray(weight) == 0 for weight in (one, other))
    assert zeros.sum(0).tolist() == theirs.sum(0).tolist() == [26] * 50
    assert len({tuple(column) for column in zeros.T.tolist()}) == 50
    assert float(one.numpy()[~zeros].std()) == pytest.approx(float(other.numpy()[~theirs].std()), rel=0.05)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cx.nn.init.dirac_(cx.zeros(2, 2)), r"dirac_: expected the weight of a convolution.* got \(2, 2\)"),
        (lambda: cx.nn.init.dirac_(cx.zeros(3, 2, 1), 2), "dirac_: expected a multiple of groups=2 outputs"),
        (lambda: cx.nn.init.sparse_(cx.zeros(2), 0.1), "sparse_: expected a weight of two axes"),
        (lambda: cx.nn.init.sparse_(cx.zeros(2, 2), 1.5), "sparse_: expected sparsity in 0..1, got 1.5"),
    ],
)
def test_an_initialiser_that_does_not_fit_says_so(make: Any, says: str) -> None:
    with pytest.raises(CyxError, match=says):
        make()


# whether a gradient is asked for says the time an operation is recorded, and that of backward() ------------------


def _frozen_when_used(m: Any) -> list[Any]:
    w, v = m.ones(3), m.full((3,), 2.0).requires_grad_()
    loss = (w * v).sum()
    w.requires_grad_()
    loss.backward()
    return [w, v]


def _frozen_after_use(m: Any) -> list[Any]:
    w, v = m.ones(3).requires_grad_(), m.full((3,), 2.0).requires_grad_()
    loss = (w * v).sum()
    w.requires_grad_(False)
    loss.backward()
    return [w, v]


def _frozen_and_trained_again_after_use(m: Any) -> list[Any]:
    w = m.ones(3).requires_grad_()
    loss = (w * w).sum()
    w.requires_grad_(False)
    loss = loss + w.exp().sum()
    w.requires_grad_(True)
    (loss + (5 * w).sum()).backward()
    return [w]


def _frozen_for_one_of_two_passes(m: Any) -> list[Any]:
    layer = m.nn.Linear(4, 4)
    with m.no_grad():
        layer.weight.copy_(m.ones(4, 4) * 0.5)
        layer.bias.copy_(m.ones(4))
    layer.requires_grad_(False)
    x = m.ones(2, 4).requires_grad_()
    hidden = layer(x)
    layer.requires_grad_(True)
    layer(hidden).square().sum().backward()
    return [x, layer.weight, layer.bias]


def _a_result_without_a_past(m: Any) -> list[Any]:
    v = m.ones(3).requires_grad_()
    h = m.ones(3) * 2
    loss = (h * v).sum()
    h.requires_grad_()
    (loss + h.sum()).backward()
    return [h, v]


def _one_of_many(m: Any) -> list[Any]:
    many = [m.full((2,), float(number)).requires_grad_(number % 3 > 0) for number in range(80)]
    loss = m.concat(many).square().sum()
    for x in many:
        x.requires_grad_()
    loss.backward()
    return many


def _a_large_layer_norm(second: bool) -> Callable[[Any], list[Any]]:
    def norm(m: Any) -> list[Any]:
        x = (m.arange(64 * 1024, dtype=m.float32).reshape(64, 1024) / 1e4).requires_grad_()
        weight, bias = m.full((1024,), 1.5), m.full((1024,), 0.5).requires_grad_()
        loss = m.nn.functional.layer_norm(x, (1024,), weight, bias).square().mean()
        weight.requires_grad_()
        loss.backward(create_graph=second)
        return [x, weight, bias]

    norm.__name__ = f"_a_large_layer_norm{'_with_second_derivatives' if second else ''}"
    return norm


def _a_rule_that_is_known(m: Any) -> list[Any]:
    """The first passes go the general way, later ones by a program: of those that follow both, and of others."""
    w, v = m.ones(3), m.full((3,), 2.0).requires_grad_()
    for number in range(12):
        w.requires_grad_(number % 2 == 1)
        loss = (w * v).sum()
        w.requires_grad_(number % 3 > 0)
        loss.backward()
    return [w, v]


@pytest.mark.parametrize(
    "program",
    [
        _frozen_when_used,
        _frozen_after_use,
        _frozen_and_trained_again_after_use,
        _frozen_for_one_of_two_passes,
        _a_result_without_a_past,
        _one_of_many,
        _a_large_layer_norm(False),
        _a_large_layer_norm(True),
        _a_rule_that_is_known,
    ],
    ids=lambda program: program.__name__.strip("_"),
)
@pytest.mark.filterwarnings("ignore:Using backward")
def test_who_gets_a_gradient(program: Callable[[Any], list[Any]]) -> None:
    for mine, its in zip(program(cx), program(torch), strict=True):
        assert (mine.grad is None) == (its.grad is None)
        if its.grad is not None:
            np.testing.assert_allclose(mine.grad.detach().numpy(), its.grad.detach().numpy(), rtol=1e-4, atol=1e-6)


# gradients at the bounds where a formula changes -----------------------------------------------------------------

AT_BOUNDS: dict[str, Callable[[Any, Any], Any]] = {
    "clamp": lambda m, x: x.clamp(-1, 1),
    "clamp below": lambda m, x: x.clamp(min=-3.0),
    "clamp above": lambda m, x: m.clamp(x, max=3),
    "clamp by tensors": lambda m, x: m.clamp(x, m.full((), -1.0), m.full((), 1.0)),
    "clamp of bounds that cross": lambda m, x: m.clamp(x, 2.0, -1.0),
    "prelu": lambda m, x: m.nn.functional.prelu(x, m.full((1,), 0.25)),
    **{
        name: lambda m, x, name=name: getattr(m.nn.functional, name)(x)
        for name in "hardtanh relu6 hardsigmoid hardswish softshrink hardshrink relu leaky_relu elu celu selu".split()
    },
}


# There PyTorch's gradient is the whole one up to 2.13, as ours, and none since 2.14.
ON_BOUNDS = {"clamp": [-1, 1], "clamp below": [-3], "clamp above": [3], "clamp by tensors": [-1, 1]}


@pytest.mark.parametrize("name", AT_BOUNDS)
@pytest.mark.parametrize("size", [1, 8192])  # of larger arrays norms and the like are one operation on the tape
def test_the_gradient_at_the_bounds(name: str, size: int) -> None:
    places = np.tile(np.array([-6, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 6, 0.3, -0.7], np.float32), size)
    weight = np.linspace(0.5, 1.5, len(places), dtype=np.float32)
    at = AT_BOUNDS[name]

    def step(x: Any, w: Any) -> Any:
        y = at(cx, x)
        return y, cx.autograd.grad((y * w).sum(), [x])[0]

    theirs = torch.tensor(places, requires_grad=True)
    expected = at(torch, theirs)
    (expected * torch.tensor(weight)).sum().backward()
    on_bounds = np.isin(places, ON_BOUNDS.get(name, []))
    theirs.grad[on_bounds] = torch.tensor(weight[on_bounds])
    ours = step(cx.tensor(places, requires_grad=True), cx.tensor(weight))
    compiled = cx.compile(step)(cx.tensor(places), cx.tensor(weight))
    for mine, again, its in zip(ours, compiled, (expected.detach(), theirs.grad), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), its.numpy(), rtol=1e-5, atol=1e-6)
        assert mine.detach().numpy().tobytes() == again.numpy().tobytes()


def test_a_bound_that_is_nan_makes_nan_of_all() -> None:
    x = np.array([-1.0, 0.0, np.nan, np.inf], np.float32)
    for bound in (float("nan"), cx.tensor(np.float32("nan"))):
        assert np.isnan(cx.clip(cx.tensor(x), bound, 1.0).numpy()).all()
    assert np.array_equal(cx.clip(cx.tensor(x), -0.5, 0.5).numpy(), np.clip(x, -0.5, 0.5), equal_nan=True)
