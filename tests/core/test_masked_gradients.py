"""A gradient that comes to a ReLU and what its mask leaves of it are made in one pass, with the bits of both."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore.gradients import backward
from cyxcore.graph import Graph
from cyxcore.kernels import cpu
from cyxcore.passes import optimise
from cyxcore.plan import Plan
from cyxcore.symbols import Builder

Array = np.ndarray[Any, Any]
HALVES = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}


def values(shape: tuple[int, ...], seed: int) -> Array:
    """Numbers with ties, zeros of both signs, infinities and NaN among them."""
    dice = np.random.default_rng(seed)
    odd = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    return np.where(dice.random(shape) < 0.3, dice.choice(odd, shape), dice.normal(size=shape)).astype(np.float32)


class Calls:
    """Four calls whose first three results lie in memory that nobody reads afterwards: of a gradient of `image`."""

    def __init__(self, op: str, given: list[Array], image: Array, attrs: Mapping[str, Any], than: float = 0.0) -> None:
        self.number = np.full((), than, np.float32)
        self.scratch = np.full(3 * image.size, 77, np.float32)
        made, ones = (self.scratch[i * image.size : (i + 1) * image.size].reshape(image.shape) for i in (0, 1))
        greater = self.scratch[2 * image.size :].view(np.bool_)[: image.size].reshape(image.shape)
        self.out = np.full_like(image, 55)
        self.made = [
            (op, made, given, dict(attrs)),
            ("greater", greater, [image, self.number], {}),
            ("cast", ones, [greater], {"dtype": "float32"}),
            ("mul", self.out, [made, ones], {}),
        ]

    def group(self) -> list[tuple[int, list[bool]]]:
        self.program = cpu.Program()
        for call in self.made:
            self.program.add(*call)
        return self.program.fuse(self.scratch)


def same_bits(a: Array, b: Array) -> bool:
    """Equal byte for byte, except that a NaN is a NaN."""
    nan = np.isnan(a)
    return np.where(nan, 0, a).tobytes() == np.where(np.isnan(b), 0, b).tobytes() and bool((nan == np.isnan(b)).all())


def of_pool(image: Array, attrs: Mapping[str, Any] = HALVES, than: float = 0.0) -> Calls:
    n, c, h, w = image.shape
    (kh, kw), (sh, sw), (ph, pw) = (attrs[key] for key in ("kernel", "stride", "padding"))
    given = values((n, c, (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1), 1)
    return Calls("max_pool2d_grad", [given, image], image, attrs, than)


def of_convolution(
    image: Array, outputs: int, padding: int, groups: int = 1, stride: int = 1, than: float = 0.0
) -> Calls:
    n, c, h, w = image.shape
    attrs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": groups}
    sizes = [(size + 2 * padding - 3) // stride + 1 for size in (h, w)]
    given = values((n, outputs, *sizes), 1)
    given[~np.isfinite(given)] = 0.5  # how far an infinity reaches in tiles is not what this is about
    weight = np.random.default_rng(2).normal(size=(outputs, c // groups, 3, 3)).astype(np.float32)
    return Calls("conv2d_grad_input", [given, weight], image, {**attrs, "input_shape": image.shape}, than)


def of_product(image: Array, terms: int, transposed: bool = False, than: float = 0.0) -> Calls:
    *lead, columns = image.shape
    dice = np.random.default_rng(3)
    weight = dice.normal(size=(columns, terms) if transposed else (terms, columns)).astype(np.float32)
    attrs = {"transpose_a": False, "transpose_b": transposed}
    return Calls("matmul", [values((*lead, terms), 1), weight], image, attrs, than)


def check(calls: Calls) -> None:
    assert calls.group() == [(0, [False, False, False, True])]
    calls.program.run()
    assert (calls.scratch == 77).all()  # nothing is stored of what only the next call reads
    together = calls.out.copy()
    for call in calls.made:
        cpu.call(*call)
    assert not same_bits(together, np.full_like(together, 55))
    assert same_bits(together, calls.out)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 8, 6), (2, 3, 7, 9), (2, 4, 24, 24), (2, 2, 6, 71)])
def test_a_pools_gradient_and_its_mask_are_made_together(isa: str, shape: tuple[int, ...]) -> None:
    for than in (0.0, 0.5):
        check(of_pool(values(shape, 0), than=than))
    calls = of_pool(values(shape, 0))
    calls.made[3][2].reverse()
    check(calls)


@pytest.mark.parametrize(
    ("shape", "outputs", "padding", "groups"),
    [((3, 32, 26, 26), 64, 0, 1), ((2, 17, 8, 8), 20, 1, 1), ((5, 48, 13, 31), 32, 1, 2), ((1, 16, 9, 40), 16, 2, 1)],
)
def test_a_convolutions_gradient_and_its_mask_are_made_together(
    isa: str, shape: tuple[int, ...], outputs: int, padding: int, groups: int
) -> None:
    for than in (0.0, 0.5):
        check(of_convolution(values(shape, 0), outputs, padding, groups, than=than))


@pytest.mark.parametrize(
    ("shape", "terms"),
    [((64, 128), 64), ((64, 64), 10), ((5, 1), 7), ((1, 40), 3), ((1, 1), 9), ((3, 50, 45), 33), ((130, 100), 1030)],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_products_gradient_and_its_mask_are_made_together(
    isa: str, shape: tuple[int, ...], terms: int, transposed: bool
) -> None:
    for than in (0.0, 0.5):
        check(of_product(values(shape, 0), terms, transposed, than))


def made_alone(calls: Calls) -> bool:
    return all(len(stored) < 4 for _, stored in calls.group())


def test_what_is_no_mask_of_such_a_gradient_is_made_one_by_one() -> None:
    image, wide = values((2, 3, 8, 8), 0), values((2, 16, 16, 16), 0)
    assert made_alone(of_pool(image, {**HALVES, "stride": (1, 1)}))
    assert made_alone(of_pool(image, {**HALVES, "padding": (1, 1)}))
    assert made_alone(of_convolution(wide, 16, 1, stride=2))
    assert made_alone(of_convolution(wide[:, :8].copy(), 16, 1))
    other = of_pool(image)
    other.made[1] = ("greater", other.made[1][1], [image.copy(), other.number], {})
    assert made_alone(other)
    over = of_convolution(wide, 16, 1)
    over.made[3] = ("mul", over.made[0][2][0], over.made[3][2], {})  # onto what the gradient reads
    assert made_alone(over)
    assert not made_alone(of_convolution(wide, 16, 1))
    stack = of_product(values((3, 40, 30), 0), 20)
    stack.made[0][2][1] = np.ones((3, 20, 30), np.float32)
    assert made_alone(stack)


@pytest.mark.parametrize(
    "make", [of_pool, lambda image: of_convolution(image, 16, 1), lambda image: of_product(image, 90)]
)
def test_threads_share_a_masked_gradient(make: Callable[[Array], Calls]) -> None:
    found = []
    for threads in (1, 3):
        cpu.set_num_threads(threads)
        calls = make(values((8, 16, 24, 24), 0))
        calls.group()
        calls.program.run()
        found.append(calls.out.tobytes())
    assert found[0] == found[1]


def convolutions(norm: bool) -> Graph:
    """The gradients of two convolutions with a ReLU, or a batch norm and a ReLU, between."""
    builder = Builder()
    first, second = (
        builder.param(name, shape, {"kind": "constant", "value": 0.0})
        for name, shape in (("first", (16, 3, 3, 3)), ("second", (16, 16, 3, 3)))
    )
    x = F.conv2d(builder.input("x", (64, 3, 16, 16)), first, padding=1)
    if norm:
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.square().mean((0, 2, 3), keepdim=True) + 1.0).sqrt()
    loss = F.conv2d(x.relu(), second, padding=1).square().mean()
    return optimise(builder.graph(loss, *backward(builder, loss, [first, second])))


@pytest.mark.parametrize("norm", [False, True])
def test_a_plan_masks_the_gradient_of_a_convolution_unless_sums_go_on_from_it(norm: bool) -> None:
    """The group of a batch norm's gradient begins with the mask: it saves more where it is."""
    graph = convolutions(norm)
    rng = np.random.default_rng(4)
    state = {name: rng.normal(size=(16, c, 3, 3)).astype(np.float32) for name, c in (("first", 3), ("second", 16))}
    plan, plain = Plan(graph, state, "cpu"), Plan(graph, state, "cpu", optimised=False)
    with cx.profile() as profile:
        for each in (plan, plain):
            each.inputs["x"][...] = np.random.default_rng(5).normal(size=(64, 3, 16, 16))
            each.run()
    names = [record.name for record in profile.records]
    assert any("conv2d_grad_input, greater, cast, mul" in name for name in names) != norm
    assert [output.tobytes() for output in plan.outputs] == [output.tobytes() for output in plain.outputs]


def test_a_plan_makes_a_linear_layer_and_relu_at_once_there_and_back() -> None:
    model = cx.nn.Sequential(
        cx.nn.Linear(20, 30), cx.nn.ReLU(), cx.nn.Linear(30, 40), cx.nn.ReLU(), cx.nn.Linear(40, 3)
    )
    optimizer = cx.optim.SGD(model.parameters(), lr=0.1)

    @cx.compile
    def step(x: cx.Tensor) -> cx.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    with cx.profile() as profile:
        step(cx.tensor(values((50, 20), 0)))
    names = [record.name for record in profile.records]
    assert sum("matmul, add, relu" in name for name in names) == 2
    assert sum("matmul, greater, cast, mul" in name for name in names) == 2
