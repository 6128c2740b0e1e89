"""3 x 3 convolutions by tiles (kernels/src/winograd.inl): right within float32's error, the same bits everywhere,
and no element written but their own.
"""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn, optim
from cyxcore.kernels import cpu
from tests.core.kernelcases import ISAS, Array

SHAPES = [  # images, channels, outputs, height, width, padding, groups
    (2, 16, 16, 8, 8, (1, 1), 1),
    (3, 17, 33, 7, 9, (1, 0), 1),
    (1, 32, 64, 26, 26, (0, 0), 1),
    (5, 17, 33, 5, 6, (2, 1), 1),
    (2, 32, 48, 11, 14, (0, 3), 1),  # the gradient's border is less than none
    (3, 64, 32, 6, 6, (1, 1), 2),
    (1, 16, 19, 40, 140, (1, 1), 1),  # lines of several panels
    (9, 40, 70, 3, 3, (1, 1), 1),  # a panel holds many images
    (2, 16, 64, 4, 4, (3, 3), 1),
    (1, 600, 16, 4, 6, (1, 1), 1),
    (2, 40, 70, 16, 18, (1, 1), 1),  # the weight's gradient in blocks of unequal sizes
    (2, 48, 96, 12, 12, (1, 1), 2),
]
FLOAT = np.dtype(np.float32)
Call = tuple[str, tuple[int, ...], list[Array], dict[str, Any]]
pytestmark = pytest.mark.usefixtures("own_machine")


def calls(shape: tuple[Any, ...], seed: int = 0) -> list[Call]:
    """The convolution of this shape, and both of its gradients."""
    images, channels, outputs, height, width, (top, left), groups = shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, channels, height, width)).astype(FLOAT)
    w = rng.standard_normal((outputs, channels // groups, 3, 3)).astype(FLOAT)
    g = rng.standard_normal((images, outputs, height + 2 * top - 2, width + 2 * left - 2)).astype(FLOAT)
    attrs = {"stride": (1, 1), "padding": (top, left), "dilation": (1, 1), "groups": groups}
    return [
        ("conv2d", g.shape, [x, w], attrs),
        ("conv2d_grad_input", x.shape, [g, w], {**attrs, "input_shape": x.shape}),
        ("conv2d_grad_weight", w.shape, [g, x], {**attrs, "weight_shape": w.shape}),
    ]


def made(call: Call, dtype: Any = FLOAT) -> Array:
    op, shape, inputs, attrs = call
    out = np.empty(shape, dtype)
    cpu.call(op, out, [np.ascontiguousarray(x, dtype) for x in inputs], attrs)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tiled_convolution_is_as_near_as_float32_sums_are(shape: tuple[Any, ...], isa: str) -> None:
    """float64 convolutions are made by the plain definition."""
    cpu.set_isa(isa)
    for call in calls(shape):
        op, out, inputs, attrs = call
        bound = made((op, out, [abs(x) for x in inputs], attrs), np.float64)
        assert np.abs(made(call) - made(call, np.float64)).max() <= 6e-7 * bound.max(), op


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_its_bits_depend_on_neither_threads_nor_instruction_set(shape: tuple[Any, ...]) -> None:
    for call in calls(shape):
        found = set()
        for isa in ISAS:
            for threads in (1, 2, 3):
                cpu.set_isa(isa)
                cpu.set_num_threads(threads)
                found.add(made(call).tobytes())
        assert len(found) == 1, call[0]


@pytest.mark.parametrize("shape", [(7, 32, 24, 9, 11, (1, 1), 1), (21, 80, 64, 11, 9, (1, 1), 2)], ids=str)
def test_an_image_has_the_same_bits_alone_and_among_others(shape: tuple[Any, ...]) -> None:
    """Also where all of them are too many for the way of few tiles, which each alone goes."""
    forward, of_input, _ = calls(shape)
    together = made(forward), made(of_input)
    for n in range(shape[0]):
        (op, shape, (x, w), attrs), (op_g, shape_g, (g, _), attrs_g) = forward, of_input
        assert made((op, (1, *shape[1:]), [x[n : n + 1], w], attrs)).tobytes() == together[0][n].tobytes()
        alone = {**attrs_g, "input_shape": (1, *shape_g[1:])}
        assert made((op_g, (1, *shape_g[1:]), [g[n : n + 1], w], alone)).tobytes() == together[1][n].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_written_beside_the_output_and_nothing_beside_the_inputs_is_used(isa: str) -> None:
    """Arrays at odd places, between NaNs: random shapes."""
    cpu.set_isa(isa)
    rng = np.random.default_rng(11)
    for seed in range(24):
        groups = int(rng.integers(1, 3))
        channels, outputs = (int(groups * rng.integers(16, 40)) for _ in range(2))
        top, left = (int(rng.integers(0, 3)) for _ in range(2))
        images, height, width = int(rng.integers(1, 4)), int(rng.integers(3, 20)), int(rng.integers(3, 40))
        for op, shape, inputs, attrs in calls((images, channels, outputs, height, width, (top, left), groups), seed):
            held = []
            for like in (np.zeros(shape, FLOAT), *inputs):
                memory = np.full(like.size + 134, np.nan, FLOAT)
                at = 64 + int(rng.integers(0, 6))
                view = memory[at : at + like.size].reshape(like.shape)
                view[...] = like
                held.append((memory, view, at))
            (around, out, at), *placed = held
            cpu.call(op, out, [view for _, view, _ in placed], attrs)
            assert np.isfinite(out).all(), (op, shape)
            assert np.isnan(around[:at]).all() and np.isnan(around[at + out.size :]).all(), (op, shape)
            assert out.tobytes() == made((op, shape, inputs, attrs)).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_outputs_that_read_it_and_none_beyond_their_tiles(odd: float, isa: str) -> None:
    cpu.set_isa(isa)
    for at in [(0, 0), (3, 4), (4, 3), (5, 5), (7, 8)]:
        for op, shape, (first, second), attrs in calls((1, 16, 16, 8, 9, (1, 1), 1))[:2]:
            first[0, 3, at[0], at[1]] = odd
            both = [first, second]
            found, read = (~np.isfinite(made((op, shape, both, attrs), dtype)) for dtype in (FLOAT, np.float64))
            assert np.all(found[read]), (op, at)
            assert not np.any(found & ~of_tiles(read)), (op, at)


def of_tiles(marked: Array) -> Array:
    """Everything in those tiles of 4 x 4 in which something is marked."""
    tiles = {(y // 4, x // 4) for *_, y, x in np.argwhere(marked)}
    out = np.zeros_like(marked)
    for y, x in tiles:
        out[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = True
    return out


def test_a_step_of_such_convolutions_has_the_same_bits_plain_and_compiled_everywhere() -> None:
    def trained(isa: str, threads: int, compiled: bool) -> bytes:
        cpu.set_isa(isa)
        cpu.set_num_threads(threads)
        cx.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.Conv2d(48, 32, 3, padding=1, groups=2),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 6 * 7, 5),
        )
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rng = np.random.default_rng(0)
        x, labels = cx.tensor(rng.standard_normal((6, 2, 14, 17)).astype(FLOAT)), cx.tensor(rng.integers(0, 5, 6))

        def step(x: Any, labels: Any) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        run = cx.compile(step) if compiled else step
        losses = [run(x, labels) for _ in range(2)]
        return b"".join(np.asarray(value).tobytes() for value in [*losses, *model.state_dict().values()])

    ways = [(isa, threads, compiled) for isa in ISAS for threads in (1, 2, 3) for compiled in (False, True)]
    assert len({trained(*way) for way in ways}) == 1
