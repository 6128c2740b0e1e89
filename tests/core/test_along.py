"""The gradient of taking along an axis, made at once: the bits of the calls that a graph that travels makes it of."""

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import gradients
from cyxcore.errors import CyxError
from cyxcore.kernels import cpu, reference
from cyxcore.symbols import Builder
from tests.core.kernelcases import same_bits

SHAPES = [
    ((31,), 0, 3),
    ((4, 97), 1, 40),
    ((3, 1000, 2), 1, 7),
    ((2100, 3), 0, 1),
    ((2, 33, 5), 0, 300),
    ((3, 0), 1, 5),
]


def gradient(g: np.ndarray, places: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Of an array with `size` places along the axis."""
    x, upstream, at = (
        cx.zeros((*g.shape[:axis], size, *g.shape[axis + 1 :]), dtype=g.dtype.name),
        cx.tensor(g),
        cx.tensor(places),
    )
    made, none = gradients.input_gradients("take_along", upstream, [x, at], upstream, {"axis": axis})
    assert none is None
    return made.numpy()


@pytest.fixture(params=[0, 1 << 60], ids=["by blocks", "by masks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the calls are made that it is compared with."""
    monkeypatch.setattr(gradients, "PASS_ELEMENTS", request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", gradients.SUMMED_ALONG)
@pytest.mark.parametrize(("shape", "axis", "size"), SHAPES)
def test_it_has_the_bits_of_the_calls_it_stands_for(
    dtype: str, shape: tuple[int, ...], axis: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = np.random.default_rng(5)
    for places in (
        dice.integers(-size, size, shape),
        dice.integers(0, -(-size // 8), shape),  # many of each place
        np.sort(dice.integers(0, size, shape), axis),
        np.full(shape, -1),
    ):
        for g in (dice.standard_normal(shape).astype(dtype), np.full(shape, -0.0, dtype)):
            at_once = gradient(g, places, axis, size)
            with monkeypatch.context() as patch:
                patch.setattr(gradients, "SUMMED_ALONG", ())
                assert same_bits(at_once, gradient(g, places, axis, size))


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("terms", [1, 32, 5000, 1 << 32])
@pytest.mark.parametrize("dtype", gradients.SUMMED_ALONG)
def test_the_kernel_is_the_definition_on_any_number_of_threads(dtype: str, terms: int, from_zero: bool) -> None:
    dice = np.random.default_rng(7)
    sizes = ((1, 1, 1), (40, 3000, 700), (3, 257, 1), (2, 0, 4), (0, 5, 5), (64, 70, 1000))
    for rows, taken, size in sizes:
        g, places = dice.standard_normal((rows, taken)).astype(dtype), dice.integers(-size, size, (rows, taken))
        attrs = {"axis": 1, "size": size, "terms": terms, "from_zero": from_zero}
        reference.call("take_along_grad", wanted := np.empty((rows, size), dtype), [g, places], attrs)
        for threads in (1, 2, 3):
            cx.set_num_threads(threads)
            cpu.call("take_along_grad", found := np.empty_like(wanted), [g, places], attrs)
            assert same_bits(found, wanted)


@pytest.mark.parametrize(
    ("attrs", "said"),
    [
        ({"axis": 2}, "an axis within the dimensions"),
        ({"terms": 0}, "blocks of at least one term"),
        ({"size": 1 << 31}, r"at most 2\*\*31 places"),
        ({"size": 5}, "take_along_grad"),
        ({"place": 4}, "indices from -4 to 3, got 4 at position 0"),
        ({"place": -5}, "indices from -4 to 3, got -5 at position 0"),
    ],
)
def test_what_does_not_fit_is_refused(attrs: dict[str, int], said: str) -> None:
    g, places = np.zeros((2, 3), np.float32), np.full((2, 3), attrs.pop("place", 0))
    with pytest.raises(CyxError, match=said):
        how = {"axis": 1, "size": 4, "terms": 32, "from_zero": False, **attrs}
        cpu.call("take_along_grad", np.zeros((2, 4), np.float32), [g, places], how)


def test_it_has_a_gradient_itself_and_is_compiled() -> None:
    dice = np.random.default_rng(9)
    values, places = dice.standard_normal((3, 50)), cx.tensor(dice.integers(0, 50, (3, 80)))

    def twice(x: cx.Tensor) -> cx.Tensor:
        (first,) = cx.autograd.grad((F.take_along_axis(x, places, 1) ** 3).sum(), [x], create_graph=True)
        (second,) = cx.autograd.grad((first**2).sum(), [x])
        return second

    x = cx.tensor(values, requires_grad=True)
    counts = np.zeros((3, 50))
    np.add.at(counts, (np.arange(3)[:, None], places.numpy()), 1.0)
    np.testing.assert_allclose(twice(x).numpy(), 36 * counts**2 * values**3, rtol=1e-12)

    def once(x: cx.Tensor) -> cx.Tensor:
        return cx.autograd.grad((F.take_along_axis(x, places, 1) ** 3).sum(), [x])[0]

    assert same_bits(cx.compile(once)(x).numpy(), once(x).numpy())


@pytest.mark.parametrize("travels", [True, False])
def test_a_graph_that_travels_holds_calls_that_every_node_knows(travels: bool) -> None:
    builder = Builder(travels=travels)
    x, places = builder.input("x", (3, 50)), builder.input("places", (3, 80), "int64")
    gradients.input_gradients("take_along", x.sum(1, keepdims=True).broadcast_to(3, 80), [x, places], x, {"axis": 1})
    assert ("take_along_grad" in {node.op for node in builder.nodes}) is not travels


def test_the_gradient_of_what_is_composed_of_it_is_planned() -> None:
    dice = np.random.default_rng(11)
    x, grid = (cx.tensor(dice.standard_normal(shape).astype("float32")) for shape in ((2, 3, 9, 9), (2, 9, 9, 2)))
    for each in (x, grid):
        each.requires_grad_()
    F.grid_sample(x, grid.tanh(), align_corners=False).sum().backward()
    assert x.grad is not None and grid.grad is not None
