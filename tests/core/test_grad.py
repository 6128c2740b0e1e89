"""Every gradient rule against central finite differences in float64, on every device."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore.eager import Tensor
from cyxcore.errors import GradientError, ShapeError
from cyxcore.gradients import BY_INPUT, NO_GRADIENT, RULES, backward
from cyxcore.ops import OPS
from cyxcore.plan import Plan
from cyxcore.symbols import Builder
from cyxcore.values import apply

pytestmark = pytest.mark.usefixtures("each_device")

RNG = np.random.default_rng(5)


def real(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return RNG.uniform(low, high, shape)


def apart(*shape: int) -> np.ndarray:
    """Values far enough apart that a small step changes no order."""
    count = int(np.prod(shape))
    return (RNG.permutation(count) * 0.37 - count * 0.17 + 0.05).reshape(shape)


CONV = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0)}
OVER = {"kernel": (3, 3), "stride": (1, 2), "padding": (0, 1)}
IDX = np.array([[0, 2], [2, 1]])
# of three rows: classes, and how many steps and classes there are; the last row has no alignment
LABELS = np.array([[1, 2, 2], [3, 0, 0], [2, 2, 2]]), np.array([7, 5, 3]), np.array([3, 1, 3])

BENT: dict[str, dict[str, Any]] = {
    "hardtanh": {"low": -1.1, "high": 0.7},
    "clip": {"low": -1.1, "high": 0.7},
    "hardsigmoid": {},
    "hardswish": {},
    "softshrink": {"bound": 0.4},
    "leaky_relu": {"slope": 0.2},
    "huber": {"delta": 1.1},
}

# (op, inputs, attributes); every float input is checked
CASES: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    *((op, [real(2, 3)], {}) for op in "neg exp tanh sigmoid erf erfc ndtr gelu square sin cos".split()),
    *((op, [np.array(0.7)], {}) for op in "neg exp tanh sigmoid erf erfc ndtr gelu square sin cos".split()),
    *((op, [apart(3, 4)], {}) for op in ("abs", "relu", "softplus")),
    ("softplus_grad", [real(3, 4), apart(3, 4)], {}),
    ("gelu_grad", [real(3, 4), real(3, 4)], {}),
    *((op, [apart(3, 4) * 2.0], attrs) for op, attrs in BENT.items()),
    *((f"{op}_grad", [real(3, 4), apart(3, 4) * 2.0], attrs) for op, attrs in BENT.items()),
    *((op, [real(5, low=0.3)], {}) for op in ("log", "sqrt")),
    *((op, [real(2, 3), real(2, 3, low=0.5)], {}) for op in ("add", "sub", "mul", "div")),
    *((op, [real(2, 1, 3), real(4, 1, low=0.5)], {}) for op in ("add", "sub", "mul", "div")),
    *((op, [real(), real(0, 2)], {}) for op in ("add", "mul")),
    ("pow", [real(2, 3, low=0.3), real(3)], {}),
    *((op, [real(2, 3, low=-0.9, high=0.9)], {}) for op in ("tan", "asin", "acos", "atan", "atanh", "sinh", "cosh")),
    *((op, [real(2, 3, low=1.2)], {}) for op in ("acosh", "asinh", "expm1", "log1p", "log2", "log10")),
    *((op, [apart(2, 3), apart(3) + 0.11], {}) for op in ("atan2", "hypot", "logaddexp", "copysign")),
    ("remainder", [np.array([2.3, -1.4, 5.2]), np.array([[1.7], [-0.8]])], {}),
    *((op, [apart(3, 4), apart(4) + 0.11], {}) for op in ("maximum", "minimum")),
    ("where", [RNG.random((2, 3)) > 0.5, real(3), real(2, 1)], {}),
    ("cast", [real(3)], {"dtype": "float64"}),
    *(
        (op, [apart(2, 3, 4)], {"axes": axes, "keepdims": keep})
        for op in ("sum", "mean", "max", "min")
        for axes, keep in (((), False), ((1,), True), ((0, 2), False), ((0, 1, 2), False))
    ),
    ("prod", [np.array([[2.0, 0.0, 3.0], [1.5, -2.0, 0.5]])], {"axes": (1,), "keepdims": False}),
    ("prod", [real(2, 3, 2)], {"axes": (0, 2), "keepdims": True}),
    *((op, [real(2, 3)], {"axis": axis}) for op in ("cumulative_sum", "cumulative_prod") for axis in (0, 1)),
    ("cumulative_prod", [np.array([2.0, 0.0, 3.0, 0.0, 1.5])], {"axis": 0}),
    ("cumulative_prod", [real(2, 0, 3)], {"axis": 1}),
    ("cumulative_prod", [real()], {"axis": 0}),
    ("cumulative_sum", [real()], {"axis": 0}),
    ("cumulative_prod", [real(150, low=0.8, high=1.2) * (np.arange(150) % 70 != 5)], {"axis": 0}),
    *(
        (op, [real(2, 3, 2)], {"axis": axis})
        for op in ("cumulative_prod", "cumulative_logsumexp")
        for axis in (0, 1, 2)
    ),
    *(("cumulative_logsumexp", [real(*shape)], {"axis": 0}) for shape in ((), (0, 2), (1,), (80,))),
    *(
        ("recurrence", [real(2, 3, 4), real(2, 3, 4)], {"axis": axis, "backwards": backwards})
        for axis in (0, 1, 2)
        for backwards in (False, True)
    ),
    *(("recurrence", [real(*shape), real(*shape)], {"axis": 0}) for shape in ((1,), (0, 2), (90,))),
    ("sum", [real(0, 3)], {"axes": (0,), "keepdims": False}),
    *(
        (
            "matmul",
            [real(*(3, 2) if ta else (2, 3)), real(*(4, 3) if tb else (3, 4))],
            {"transpose_a": ta, "transpose_b": tb},
        )
        for ta in (False, True)
        for tb in (False, True)
    ),
    ("matmul", [real(2, 1, 2, 3), real(4, 3, 2)], {}),
    ("matmul", [real(3, 2, 4), real(5, 2)], {"transpose_a": True, "transpose_b": True}),
    ("matmul", [real(0, 3), real(3, 2)], {}),
    ("reshape", [real(2, 6)], {"shape": (3, -1)}),
    ("transpose", [real(2, 3, 4)], {"axes": (2, 0, 1)}),
    ("transpose", [real()], {"axes": ()}),
    ("broadcast_to", [real(2, 1)], {"shape": (3, 2, 4)}),
    ("slice", [real(5, 6)], {"starts": (1, 0), "stops": (4, 6), "steps": (1, 1)}),
    ("slice", [real(5, 7, 2)], {"starts": (0, 1, 0), "stops": (5, 7, 2), "steps": (2, 3, 1)}),
    ("slice", [real(8)], {"starts": (1,), "stops": (4,), "steps": (3,)}),
    ("pad", [real(2, 3)], {"pads": ((1, 0), (2, 1)), "value": 0.5}),
    ("concat", [real(2, 1), real(2, 3), real(2, 2)], {"axis": 1}),
    ("take", [real(3, 4), IDX], {"axis": 0}),
    ("take", [real(2, 3, 2), IDX], {"axis": 1}),
    ("take_grad", [real(2, 2, 4), IDX], {"axis": 0, "size": 3}),
    (
        "take_along_grad",
        [real(5, 4), RNG.integers(0, 3, (5, 4))],
        {"axis": 0, "size": 3, "terms": 2, "from_zero": True},
    ),
    *(("ctc_loss", [real(7, 3, 4), *LABELS], {"blank": blank, "zero_infinity": True}) for blank in (0, 3)),
    ("take_along", [real(3, 4), RNG.integers(0, 3, (5, 4))], {"axis": 0}),
    ("take_along", [real(2, 3, 2), RNG.integers(0, 3, (2, 4, 2))], {"axis": 1}),
    ("conv2d", [real(2, 2, 4, 5), real(4, 1, 3, 2)], CONV),
    ("conv2d", [real(1, 2, 4, 4), real(3, 2, 3, 3)], PLAIN),
    ("conv2d", [real(0, 2, 4, 4), real(3, 2, 3, 3)], PLAIN),
    ("conv2d_grad_input", [real(2, 4, 2, 7), real(4, 1, 3, 2)], {**CONV, "input_shape": (2, 2, 4, 5)}),
    ("conv2d_grad_weight", [real(2, 4, 2, 7), real(2, 2, 4, 5)], {**CONV, "weight_shape": (4, 1, 3, 2)}),
    ("max_pool2d", [apart(2, 2, 5, 6)], POOL),
    ("max_pool2d", [apart(1, 2, 5, 5)], OVER),
    ("max_pool2d_grad", [real(2, 2, 3, 3), apart(2, 2, 5, 6)], POOL),
    ("max_pool2d_grad", [real(1, 2, 3, 3), apart(1, 2, 5, 5)], OVER),
    ("avg_pool2d", [real(2, 2, 5, 6)], POOL),
    ("avg_pool2d", [real(1, 2, 5, 5)], OVER),
    ("avg_pool2d_grad", [real(2, 2, 3, 3)], {**POOL, "input_shape": (2, 2, 5, 6)}),
    *((op, [real(2, 3, 4)], {"axis": axis}) for op in ("softmax", "log_softmax") for axis in (0, 1, 2)),
    *((f"{op}_grad", [real(2, 3, 4), real(2, 3, 4)], {"axis": 1}) for op in ("softmax", "log_softmax")),
    ("cross_entropy", [real(4, 3), np.array([2, 0, 1, 1])], {}),
    ("cross_entropy_grad", [real(3), real(3, 4), np.array([1, 0, 3])], {}),
    ("cross_entropy", [real(2, 3, 2, 2), np.array([[[2, 0], [1, 1]], [[0, 2], [0, 1]]])], {}),
    ("cross_entropy_grad", [real(2, 2), real(2, 3, 2), np.array([[1, 0], [2, 2]])], {}),
    *((op, [apart(2, 3, 3)], {}) for op in ("inv", "det", "slogdet", "svdvals")),
    *((op, [real(3, 3)], {"full": True}) for op in ("svd", "qr")),
    *((op, [real(2, 4, 3)], {"full": False}) for op in ("svd", "qr")),
    ("svd", [apart(2, 3)], {"full": False}),
    *(("svdvals", [apart(*shape)], {}) for shape in ((2, 4), (4, 2), (0, 2, 2))),
    *(("pinv", [apart(*shape), np.array(1e-9, np.float32)], {}) for shape in ((3, 2), (2, 3))),
    ("det", [np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.5, -1.0]])], {}),
    ("solve", [apart(2, 3, 3), real(3, 2)], {}),
    ("flip", [real(2, 3)], {"axes": (1,)}),
    *((op, [real(2, 3)], {}) for op in ("conj", "real", "imag")),
]

# Of these only the lower triangle is read, and what comes back is symmetric: they are checked of x + its transpose.
TRANSFORMS = ("fft", "ifft", "rfft", "irfft", "eig", "eigvals")  # complex: test_fft, test_complex and test_linalg
SYMMETRIC = ("cholesky", "eigh", "eigvalsh")


def numeric(op: str, inputs: list[np.ndarray], attrs: dict[str, Any], weight: np.ndarray, place: int) -> np.ndarray:
    step, x = 1e-6, inputs[place]
    result = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[at] += sign * step
            arrays = [*inputs[:place], moved, *inputs[place + 1 :]]
            values.append((apply(op, *map(Tensor, arrays), **attrs).numpy() * weight).sum())
        result[at] = (values[0] - values[1]) / (2 * step)
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'x'.join(str(i.shape) for i in case[1])}")
def test_a_gradient_is_the_slope(case: tuple[str, list[np.ndarray], dict[str, Any]]) -> None:
    op, inputs, attrs = case
    tensors = [Tensor(x, requires_grad=x.dtype == np.float64) for x in inputs]
    result = apply(op, *tensors, **attrs)
    weight = np.random.default_rng(0).uniform(-1, 1, result.shape)
    result.backward(weight)
    for place, tensor in enumerate(tensors):
        if tensor.requires_grad:
            found = 0.0 if tensor.grad is None else tensor.grad.numpy()
            expected = numeric(op, inputs, attrs, weight, place)
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("op", sorted(BY_INPUT))
def test_gradients_that_nobody_asks_for_are_not_computed(op: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> None:
        raise AssertionError(given)

    rules = list(BY_INPUT[op])
    rules[1 - place] = refused
    monkeypatch.setitem(BY_INPUT, op, tuple(rules))
    _, inputs, attrs = next(case for case in CASES if case[0] == op)
    tensors = [Tensor(x, requires_grad=i == place) for i, x in enumerate(inputs)]
    apply(op, *tensors, **attrs).sum().backward()
    assert tensors[place].grad is not None and tensors[1 - place].grad is None


def test_running_products_of_many_have_gradients() -> None:
    """All ones but x_3 = 0: those before it are in 3 - i products that are not 0, itself in all from there on."""
    values = np.ones(70_001, np.float32)
    values[3] = 0.0
    x = cx.tensor(values, requires_grad=True)
    x.cumprod(0).sum().backward()
    assert x.grad.tolist() == [3.0, 2.0, 1.0, 69_998.0, *[0.0] * 69_997]


def test_a_zero_ends_what_running_products_take_along() -> None:
    """Also of infinities, behind it and before it, and over the blocks in which many factors are taken."""
    for between in (1, 500):
        values = np.concatenate([[2.0, 3.0], [0.0] * between, [1e30] * 400]).astype(np.float32)
        x = cx.tensor(values, requires_grad=True)
        x.cumprod(0).sum().backward()
        assert x.grad.tolist()[:2] == [4.0, 2.0] and not x.grad[3:].any().item()
        assert x.grad[2].item() == (np.inf if between == 1 else 6.0)


@pytest.mark.parametrize("size", [3, 5000])
def test_an_infinite_gradient_of_taken_elements_stays_where_it_belongs(size: int) -> None:
    x = cx.zeros(2, size, requires_grad=True)
    places = cx.tensor([[0, 2, -1], [1, 1, 0]])
    F.take_along_axis(x, places, 1).backward(cx.tensor([[np.inf, -np.inf, 1.0], [np.nan, 2.0, -np.inf]]))
    wanted = np.zeros((2, size), np.float32)
    np.add.at(wanted, ([[0], [1]], places.numpy()), [[np.inf, -np.inf, 1.0], [np.nan, 2.0, -np.inf]])
    np.testing.assert_array_equal(x.grad.numpy(), wanted)


def test_every_op_has_a_gradient_rule_or_says_it_has_none() -> None:
    assert set(RULES) | set(BY_INPUT) | NO_GRADIENT == set(OPS)
    assert not set(RULES) & NO_GRADIENT and not set(BY_INPUT) & (NO_GRADIENT | set(RULES))


@pytest.mark.parametrize("op", SYMMETRIC)
def test_the_gradient_of_a_function_of_symmetric_matrices_is_the_slope(op: str) -> None:
    def f(x: Any) -> Any:
        return apply(op, x @ x.mT if op == "cholesky" else x + x.mT)

    start = apart(2, 3, 3)
    x = Tensor(start, requires_grad=True)
    weight = real(*f(x).shape)
    (f(x) * weight).sum().backward()
    slope = np.zeros_like(start)
    for at in np.ndindex(*start.shape):
        step = np.zeros_like(start)
        step[at] = 1e-6
        slope[at] = ((f(Tensor(start + step)) - f(Tensor(start - step))) * weight).sum().item() / 2e-6
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=1e-5, atol=1e-6)


def test_every_rule_is_checked() -> None:
    ours = {
        name for name in (*RULES, *BY_INPUT) if not name.startswith("user.")
    }  # other tests make operations of their own
    ours.discard("host_call")  # its callers say the rule: test_compiled_ops.py
    ours.discard("ctc_loss_grad")  # there is no second one: test_ctc.py
    assert ours - {case[0] for case in CASES} == {"by_mode", *SYMMETRIC, *TRANSFORMS}


TWICE: dict[str, Callable[[Any], Any]] = {
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "abs of complex numbers": lambda x: cx.fft.fft(x).abs(),
    "a sorted row": lambda x: cx.sort(x),
    "cumulative_max": lambda x: cx.cummax(x, 1).values,
    "scatter_reduce": lambda x: cx.zeros_like(x).scatter_reduce(1, cx.zeros(x.shape, dtype="int64"), x, "amax"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_second_gradient_is_the_slope_of_the_first(name: str) -> None:
    start = apart(2, 6, 6) / 7

    def first(x: Any) -> Any:
        return cx.autograd.grad((TWICE[name](x) ** 3).sum(), x, create_graph=True)[0]

    x = Tensor(start, requires_grad=True)
    weight = real(2, 6, 6)
    second = cx.autograd.grad((first(x) * weight).sum(), x)[0]
    step = 1e-6 * weight
    after, before = (first(Tensor(start + way, requires_grad=True)).detach() for way in (step, -step))
    slope = (after - before) / 2e-6  # of all of x at once: the Hessian is symmetric
    np.testing.assert_allclose(second.numpy(), slope.numpy(), rtol=1e-5, atol=1e-5)


def test_equal_elements_share_the_gradient_of_max() -> None:
    x = Tensor([1.0, 3.0, 3.0], requires_grad=True)
    x.max().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.5, 0.5]


def test_max_pool_gives_the_gradient_to_the_first_maximum() -> None:
    x = Tensor(np.ones((1, 1, 2, 2), np.float32), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]


def test_gradients_add_up_over_uses_and_calls() -> None:
    x = Tensor([2.0, 3.0], requires_grad=True)
    (x * x + x).sum().backward()
    (x * 2.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [7.0, 9.0]


@pytest.mark.parametrize(
    ("shape", "axis", "taken"),
    [
        ((3, 40, 5), 1, 2100),
        ((3, 40, 5), 0, 70),
        ((7, 50), 1, 333),
        ((1000,), 0, 5000),
        ((9, 1), 1, 200),
        ((4, 9), 1, 0),
    ],
)
def test_gradients_of_places_add_up_as_in_a_sum_of_masks(
    shape: tuple[int, ...], axis: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block it is made without the masks, whose elements are as many as the places times the size."""
    dice = np.random.default_rng(3)
    places = dice.integers(-shape[axis], shape[axis], (*shape[:axis], taken, *shape[axis + 1 :]))
    values, upstream = (dice.standard_normal(each, np.float32) for each in (shape, places.shape))
    found = []
    for pass_elements in (0, 1 << 60):
        monkeypatch.setattr("cyxcore.gradients.PASS_ELEMENTS", pass_elements)
        x = cx.tensor(values, requires_grad=True)
        F.take_along_axis(x, cx.tensor(places), axis).backward(cx.tensor(upstream))
        assert x.grad is not None
        found.append(x.grad.numpy())
    np.testing.assert_allclose(*found, atol=1e-4)
    assert found[0].tobytes() == found[1].tobytes() or cx.default_device() != "cpu"


def test_many_places_of_many_elements_have_a_gradient() -> None:
    """A mask of each place would take 40 gigabytes."""
    places = np.arange(100_000) * 7 % 100_000
    x = cx.zeros(100_000, requires_grad=True)
    F.take_along_axis(x, cx.tensor(places), 0).backward(cx.tensor(places.astype(np.float32)))
    assert x.grad is not None and x.grad.tolist() == list(range(100_000))


def test_a_long_chain_needs_no_recursion() -> None:
    x = start = Tensor(1.0, requires_grad=True)
    for _ in range(2000):
        x = x + 1.0
    x.backward()
    assert start.grad is not None and start.grad.item() == 1.0


def test_no_grad_remembers_nothing() -> None:
    x = Tensor([1.0], requires_grad=True)
    with cx.no_grad():
        y = x * 2.0
    assert not y.requires_grad and y.is_leaf


def test_backward_of_many_elements_needs_a_gradient() -> None:
    with pytest.raises(GradientError, match="scalar"):
        (Tensor([1.0, 2.0], requires_grad=True) * 2.0).backward()


def test_backward_of_something_without_a_past_is_refused() -> None:
    with pytest.raises(GradientError, match="requires a gradient"):
        Tensor(1.0).backward()


def test_a_gradient_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        (Tensor([1.0, 2.0], requires_grad=True) * 2.0).backward([1.0, 2.0, 3.0])


def test_graph_gradients_are_those_of_the_tape() -> None:
    x, w = real(4, 3).astype(np.float32), real(2, 3).astype(np.float32)
    builder = Builder()
    symbols = builder.input("x", (4, 3)), builder.input("w", (2, 3))
    loss = F.gelu(F.linear(*symbols)).mean()
    plan = Plan(builder.graph(*backward(builder, loss, symbols)))
    plan.inputs["x"][...], plan.inputs["w"][...] = x, w
    plan.run()
    tx, tw = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
    F.gelu(F.linear(tx, tw)).mean().backward()
    assert tx.grad is not None and tw.grad is not None
    np.testing.assert_allclose(plan.outputs[0], tx.grad.numpy(), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(plan.outputs[1], tw.grad.numpy(), rtol=1e-6, atol=1e-8)


def test_a_value_the_loss_ignores_gets_zeros() -> None:
    builder = Builder()
    x, unused = builder.input("x", (2,)), builder.input("unused", (3,))
    plan = Plan(builder.graph(*backward(builder, x.sum(), [unused])))
    plan.run()
    assert plan.outputs[0].tolist() == [0.0, 0.0, 0.0]


def test_what_is_written_to_one_gradient_changes_no_other() -> None:
    def made() -> tuple[cx.Tensor, cx.Tensor, cx.Tensor]:
        return tuple(cx.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True) for _ in range(3))  # type: ignore[return-value]

    for _ in range(5):
        a, b, c = made()
        given = cx.tensor([1.0, 1.0, 1.0, 1.0])
        ((a + b).reshape(-1) + c.reshape(-1)).backward(given)
        for place, x in enumerate((a, b, c)):
            assert x.grad is not None and x.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
            x.grad *= place + 2.0
        assert given.tolist() == [1.0] * 4
        a, b, c = made()
        a.backward(b.detach())
        assert a.grad is not None
        a.grad += 1.0
        assert b.tolist() == [[1.0, 2.0], [3.0, 4.0]]
        kept = []
        c.register_hook(kept.append)
        c.backward(cx.ones(2, 2))
        assert c.grad is not None
        c.grad += 1.0
        assert kept[0].tolist() == [[1.0, 1.0], [1.0, 1.0]]
        d = made()[0]
        e = d.reshape(-1)
        e.register_hook(lambda g, kept=kept: kept.append(g.detach()))
        (e * 2.0).sum().backward()
        assert d.grad is not None
        d.grad += 1.0
        assert kept[1].tolist() == [2.0] * 4


def test_a_gradient_that_nobody_else_has_is_not_copied() -> None:
    x, w = cx.ones(3, 4, requires_grad=True), cx.ones(4, 2, requires_grad=True)
    with cx.profile() as prof:
        (((x @ w) * 2.0).reshape(-1).relu()).sum().backward()
    assert x.grad is not None and w.grad is not None
    assert [record.name for record in prof.records].count("cast") == 1  # of relu's mask
