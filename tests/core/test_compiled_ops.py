"""A compiled function computes what the plain one does, to the last bit: every op, its gradient, and that one's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.dtype import INEXACT
from cyxcore.errors import CyxError, DataError, GradientError, GraphError, ShapeError
from cyxcore.gradients import NO_GRADIENT
from cyxcore.ops import OPS
from cyxcore.symbols import Builder
from cyxcore.values import apply

DTYPES = ["float32", "float64"]


class Given:
    """Tensors for cases, the same for each: in (0, 1), which every function of numbers is defined in."""

    def __init__(self, dtype: str) -> None:
        dice = np.random.default_rng(5)

        def made(*shape: int) -> Any:
            return cx.tensor(dice.uniform(0.05, 0.95, shape).astype(dtype))

        self.made = made
        self.x, self.y = made(3, 4), made(3, 4)
        self.tall = made(4, 3).T  # (3, 4) with gaps
        self.row, self.number, self.empty = made(4), made(), made(0, 4)
        self.square = made(3, 3) + 2.0 * cx.eye(3, dtype=dtype)
        self.symmetric = self.square + self.square.T
        self.whole = cx.tensor(dice.integers(0, 4, (3, 4)))
        self.bools = cx.tensor(dice.integers(0, 2, (3, 4)).astype(bool))
        self.complex = cx.tensor(dice.normal(size=(3, 4)) + 1j * dice.normal(size=(3, 4)), "complex64")


Case = tuple[Any, ...]  # inputs, and last the attributes
Cases = Callable[[Given], list[Case]]


def _unary(given: Given) -> list[Case]:
    some = (given.x, given.tall, given.number, given.empty, given.x[:, ::2])
    return [(x, {}) for x in some]


def _binary(given: Given) -> list[Case]:
    x, row = given.x, given.row
    pairs = [(x, given.y), (x, given.tall), (x, row), (row, x), (x, given.number), (given.number, x)]
    return [(*pair, {}) for pair in [*pairs, (given.empty, row), (given.number, given.number)]]


def _integers(given: Given) -> list[Case]:
    return [(given.whole, given.whole[::-1], {}), (given.whole, given.whole[0], {})]


def _reduced(given: Given) -> list[Case]:
    axes = [{"axes": axes, "keepdims": kept} for axes in ((0,), (1,), (0, 1), ()) for kept in (False, True)]
    none = {"axes": (), "keepdims": False}
    return [*((x, each) for x in (given.x, given.tall) for each in axes), (given.number, none)]


def _of_bools(given: Given) -> list[Case]:
    return [(given.bools, {"axes": axes, "keepdims": False}) for axes in ((0,), (0, 1))]


def _along(given: Given) -> list[Case]:
    return [(x, {"axis": axis}) for x in (given.x, given.tall) for axis in (0, 1)] + [(given.empty, {"axis": 1})]


def _in_order(given: Given) -> list[Case]:
    return [(x, {"axis": 1, "descending": down}) for x in (given.x, given.tall, given.whole) for down in (False, True)]


def _matrix(given: Given) -> list[Case]:
    return [(x, {}) for x in (given.square, given.symmetric.T, cx.stack([given.square, given.symmetric]))]


def _positive(given: Given) -> list[Case]:
    return [(given.symmetric @ given.symmetric, {})]


def _rectangle(given: Given) -> list[Case]:
    return [(x, {"full": False}) for x in (given.tall.T, given.x.T)]


def _scattered(given: Given) -> list[Case]:
    places = cx.tensor([0, 2, 2])
    return [(given.made(4), places, given.made(3), {"reduction": how}) for how in ("none", "add", "mul", "min", "max")]


def _labels() -> tuple[Any, ...]:
    """Of three rows of at most nine steps: classes, and two lengths; the last row has no alignment."""
    return tuple(map(cx.tensor, ([[1, 2, 2], [3, 0, 0], [2, 2, 2]], [9, 5, 3], [3, 1, 3])))


def _ratio_of(dtype: str) -> dict[str, Any]:
    """A call of NumPy with a gradient."""

    def gradient(g: Any, inputs: Any, output: Any) -> Any:
        return g / inputs[1], -(g * output / inputs[1])

    return {"function": np.divide, "shape": (3, 4), "dtype": dtype, "gradient": gradient}


BENT = (("softshrink", "bound"), ("leaky_relu", "slope"), ("huber", "delta"))  # functions of pieces, and their numbers
CASES: dict[str, Cases] = {
    **dict.fromkeys("tan asin acos atan sinh cosh asinh atanh expm1 log1p log2 log10".split(), _unary),
    **dict.fromkeys("ceil trunc signbit lgamma digamma trigamma".split(), _unary),
    **dict.fromkeys(("hardsigmoid", "hardswish"), _unary),
    **dict.fromkeys(("clip", "hardtanh"), lambda given: [(given.x, {"low": -0.5, "high": 0.75})]),
    **{op: lambda given, name=name: [(given.x, {name: 0.4})] for op, name in BENT},
    **dict.fromkeys(("hardsigmoid_grad", "hardswish_grad"), lambda given: [(given.x.cos(), given.x, {})]),
    **dict.fromkeys(
        ("clip_grad", "hardtanh_grad"), lambda given: [(given.x.cos(), given.x, {"low": -0.5, "high": 0.75})]
    ),
    **{f"{op}_grad": lambda given, name=name: [(given.x.cos(), given.x, {name: 0.4})] for op, name in BENT},
    "erfinv": lambda given: [(case[0].sin(), {}) for case in _unary(given)],
    "acosh": lambda given: [(case[0] + 1.5, {}) for case in _unary(given)],
    "round": lambda given: [*_unary(given), (given.whole, {})],
    **dict.fromkeys("conj real imag".split(), lambda given: [*_unary(given), (given.complex, {})]),
    **dict.fromkeys("atan2 hypot logaddexp copysign nextafter floor_divide remainder".split(), _binary),
    **dict.fromkeys("bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift".split(), _integers),
    "integer_pow": _integers,
    "bitwise_invert": lambda given: [(given.whole, {})],
    "prod": _reduced,
    **dict.fromkeys(("all", "any"), _of_bools),
    **dict.fromkeys("cumulative_sum cumulative_prod cumulative_argmax cumulative_argmin argmin".split(), _along),
    "cumulative_logsumexp": _along,
    "recurrence": lambda given: [(given.x, given.x.sin(), {"axis": 1, "backwards": way}) for way in (False, True)],
    "argsort": _in_order,
    "take_along_grad": lambda given: [
        (x, given.whole, {"axis": axis, "size": 4, "terms": 2, "from_zero": True})
        for x in (given.x, given.tall)
        for axis in (0, 1)
    ],
    "ctc_loss": lambda given: [(given.made(9, 3, 4).log(), *_labels(), {"blank": 0, "zero_infinity": True})],
    "ctc_loss_grad": lambda given: [
        (given.made(3), given.made(9, 3, 4).log(), *_labels(), {"blank": 3, "zero_infinity": False})
    ],
    "searchsorted": lambda given: [
        (row.sort()[0], given.x, {"right": right}) for row in (given.row, given.x) for right in (False, True)
    ],
    "scatter": _scattered,
    "flip": lambda given: [(given.x, {"axes": (1,)}), (given.tall, {"axes": (0, 1)}), (given.number, {"axes": ()})],
    **dict.fromkeys(("fft", "ifft"), lambda given: [(given.complex, {"axis": axis}) for axis in (0, 1)]),
    "rfft": _along,
    "irfft": lambda given: [(given.complex, {"axis": 1, "size": size}) for size in (6, 7)],
    **dict.fromkeys("inv det slogdet eig eigvals".split(), _matrix),
    "cholesky": _positive,
    "pinv": lambda given: [(given.tall.T, cx.tensor(1e-6, given.x.dtype), {})],
    "solve": lambda given: [(given.square, given.x, {}), (given.symmetric, given.square.T, {})],
    **dict.fromkeys(("eigh", "eigvalsh"), lambda given: [(given.symmetric, {})]),
    **dict.fromkeys(("svd", "qr"), _rectangle),
    "svdvals": lambda given: [(given.x, {})],
    "host_call": lambda given: [(given.x, given.tall, _ratio_of(given.x.dtype))],
}

# What no compiled function can hold, and why.
REFUSED = {"nonzero": "the shape of its result depends on the data"}


def test_every_op_of_tensors_alone_has_a_case_or_a_reason() -> None:
    standard = {op.name for op in OPS.values() if op.group == "standard"}
    assert set(CASES) | set(REFUSED) == standard
    assert not set(CASES) & set(REFUSED)


def bits(value: Any) -> tuple[Any, ...]:
    """Of a tensor, all that can be told; which NaN one is does not count."""
    array = np.array(value.numpy())
    if value.dtype in INEXACT:
        array[np.isnan(array)] = np.nan
    return value.dtype, value.shape, array.tobytes()


def outcomes(function: Callable[..., Any], *tensors: Any) -> tuple[Any, Any]:
    """(plain, compiled): the bits of each result, from the same random numbers."""
    found = []
    for each in (function, cx.compile(function)):
        cx.manual_seed(3)
        results = each(*tensors)
        found.append([bits(value) for value in (results if isinstance(results, tuple) else (results,))])
    return found[0], found[1]


def weighted(values: Any) -> Any:
    """A number that depends on every element of floats in its own way."""
    total: Any = 0.0
    for value in values:
        if value.dtype in INEXACT and value.size:
            floats = cx.abs(value) + value.real if "complex" in value.dtype else value
            weights = np.cos(np.arange(value.size)).reshape(value.shape).astype(floats.dtype)
            total = total + (floats * cx.tensor(weights)).sum()
    return total


def gradients(function: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    return cx.grad(lambda *given: weighted(function(*given)), argnums=places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", CASES)
def test_an_op_is_the_same_compiled(op: str, dtype: str) -> None:
    cases = CASES[op](Given(dtype))
    attrs = [case[-1] for case in cases]
    inputs = [x for case in cases for x in case[:-1]]
    arity = len(cases[0]) - 1

    def values(*given: Any) -> Any:
        return tuple(apply(op, *given[n * arity : (n + 1) * arity], **each) for n, each in enumerate(attrs))

    plain, compiled = outcomes(values, *inputs)
    assert compiled == plain

    places = tuple(place for place, x in enumerate(inputs) if x.dtype in INEXACT and x.size)
    if op in {*NO_GRADIENT, "ctc_loss_grad"}:
        return
    first = gradients(values, places)
    plain, compiled = outcomes(first, *inputs)
    assert compiled == plain

    try:
        gradients(first, places)(*inputs)
    except GradientError:
        return  # plain tensors have no second gradient either
    plain, compiled = outcomes(gradients(first, places), *inputs)
    assert compiled == plain


def test_a_compiled_function_refuses_what_has_no_shape_before_it_runs() -> None:
    x = cx.tensor([0.0, 1.0, 2.0])
    for function in (lambda x: x.nonzero(), lambda x: x[x > 0.5], cx.unique):
        with pytest.raises(GraphError, match="the shape of the result depends on the data"):
            cx.compile(function)(x)


def test_the_determinant_of_a_singular_matrix_has_its_gradient_compiled() -> None:
    singular = cx.tensor([[1.0, 2.0], [2.0, 4.0]])
    function = cx.compile(cx.grad(cx.linalg.det))
    for x in (singular, cx.tensor([[1.0, 2.0], [3.0, 5.0]]), singular * 2.0):  # one plan for both kinds
        assert bits(function(x)) == bits(cx.grad(cx.linalg.det)(x))


def test_numpys_kernels_stand_between_loops_that_know_what_is_needed_later() -> None:
    model = cx.nn.Sequential(cx.nn.Linear(64, 64), cx.nn.GELU(), cx.nn.Linear(64, 64))

    def step(x: Any) -> Any:
        hidden = model(x)
        scaled = hidden * 2.0 + 1.0  # read on both sides of the calls of NumPy
        running = cx.cumsum(scaled.tanh(), 0) * scaled
        return (running.sort(1)[0] - scaled).square().mean() + cx.log1p(scaled.square()).sum()

    x = cx.randn(512, 64)
    plain, compiled = outcomes(step, x)
    assert compiled == plain


def test_a_step_with_numpys_kernels_leaves_the_weights_of_the_plain_one() -> None:
    found = []
    for compiled in (False, True):
        cx.manual_seed(2)
        model = cx.nn.Linear(5, 4)
        optimizer = cx.optim.AdamW(model.parameters(), lr=0.01)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()  # noqa: B023
            share = model(x).sigmoid()  # noqa: B023
            loss = (cx.logaddexp(cx.log1p(share), share.cumsum(1)) - y).square().mean()
            loss = loss + cx.linalg.svdvals(model.weight).sum() * 0.01  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            return loss

        run = cx.compile(step) if compiled else step
        dice = np.random.default_rng(0)
        loss: Any = None
        for _ in range(3):
            loss = run(cx.tensor(dice.normal(size=(8, 5)), "float32"), cx.tensor(dice.normal(size=(8, 4)), "float32"))
        found.append([bits(value) for value in (loss, model.weight, model.bias)])
    assert found[0] == found[1]


def test_data_that_numpy_can_do_nothing_with_are_the_error_of_the_plain_call_and_change_nothing() -> None:
    model = cx.nn.Linear(3, 3)
    before = bits(model.weight)
    optimizer = cx.optim.SGD(model.parameters(), lr=0.1)

    @cx.compile
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = cx.linalg.inv(model(x) * 0.0).sum()
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(DataError):
        step(cx.ones(3, 3))
    assert bits(model.weight) == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint16", "complex64"])
def test_a_compiled_function_computes_with_every_dtype(dtype: str) -> None:
    def function(x: Any) -> Any:
        other = (x.astype(dtype) * cx.tensor([1, 2, 3], dtype) + 2).sum(0)
        return (cx.abs(other) if dtype == "complex64" else other).astype("float32")

    plain, compiled = outcomes(function, cx.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]]))
    assert compiled == plain


def test_only_a_graph_that_stays_here_holds_an_op_of_tensors_alone() -> None:
    builder = Builder()
    with pytest.raises(GraphError, match="log1p: runs on tensors, and in cx.compile on the cpu; a graph that is saved"):
        cx.log1p(builder.input("x", (2,)))

    here = Builder(travels=False)
    graph = here.graph(cx.log1p(here.input("x", (2,))))
    with pytest.raises(GraphError, match="'log1p', which only plans of this machine's cpu do"):
        graph.to_bytes()
    with pytest.raises(CyxError, match="log1p"):
        cx.trace(cx.log1p, (3,))


class Rounded(cx.Function):
    """Whole numbers, through which gradients go as if they were not rounded, but cut off."""

    @staticmethod
    def forward(ctx: Any, x: Any, least: float) -> Any:
        ctx.save_for_backward(x)
        ctx.least = least
        return cx.round(x * 4.0) / 4.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        return cx.where(x > ctx.least, g * x, 0.0), None


def test_a_function_with_a_gradient_of_its_own_is_compiled() -> None:
    def function(x: Any) -> Any:
        return (Rounded.apply(x.sin(), 0.3) * x).sum()

    x = cx.randn(4, 5)
    for compiled in (function, cx.grad(function), cx.grad(lambda x: cx.grad(function)(x).square().sum())):
        plain, found = outcomes(compiled, x)
        assert found == plain

    model = cx.nn.Linear(5, 3)
    weights = []
    for each in (lambda step: step, cx.compile):
        model.zero_grad()

        def step(x: Any) -> Any:
            loss = Rounded.apply(model(x), 0.1).square().sum()
            loss.backward()
            return loss

        each(step)(x)
        weights.append(bits(model.weight.grad))
    assert weights[0] == weights[1]

    with pytest.raises(GradientError, match="Rounded: a graph that is saved or sent holds only known operations"):
        cx.trace(lambda x: Rounded.apply(x, 0.1), (3,))


PUTS: dict[str, Callable[[Given], Any]] = {
    "scatter": lambda given: (lambda x, y: cx.scatter(x, 1, given.whole % 3, y), given.x, given.y),
    "index_copy": lambda given: (lambda x, y: cx.index_copy(x, 0, cx.tensor([2, 0]), y[:2]), given.tall, given.y),
    "index_put": lambda given: (
        lambda x, y: cx.index_put(x, (cx.tensor([2, 0, 2]), cx.tensor([1, 1, 1])), y[:, 0]),
        given.x,
        given.y,
    ),
    "put": lambda given: (lambda x, y: cx.put(x, cx.tensor([3, 1, 3]), y[0, :3]), given.x, given.tall),
    "select_scatter": lambda given: (lambda x, y: cx.select_scatter(x, y[0], 0, 1), given.x, given.y),
    "slice_scatter": lambda given: (lambda x, y: cx.slice_scatter(x, y[:, :2], 1, 0, 4, 2), given.x, given.y),
    "masked_scatter": lambda given: (lambda x, y: cx.masked_scatter(x, x > 0.4, y), given.x, given.tall),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PUTS)
def test_a_function_that_writes_into_a_copy_is_the_same_compiled(name: str, dtype: str) -> None:
    function, *inputs = PUTS[name](Given(dtype))
    first = gradients(lambda *given: (function(*given).sin(),), (0, 1))
    for each in (function, first, gradients(first, (0, 1))):
        plain, compiled = outcomes(each, *inputs)
        assert compiled == plain


DRAWN: dict[str, Callable[[Any], Any]] = {
    "Categorical": lambda p: cx.distributions.Categorical(logits=p).sample((5,)),
    "Categorical of constants": lambda p: cx.distributions.Categorical(logits=cx.ones(3)).sample((5,)) + p[0, 0],
    "Multinomial": lambda p: cx.distributions.Multinomial(4, probs=p).sample((2,)),
    "Gamma": lambda p: cx.distributions.Gamma(p, p + 1.0).rsample((2,)),
    "Beta": lambda p: cx.distributions.Beta(p, p + 1.0).rsample(),
    "Dirichlet": lambda p: cx.distributions.Dirichlet(p).rsample((2,)),
    "StudentT": lambda p: cx.distributions.StudentT(p * 5.0, p, p).rsample(),
    "Poisson": lambda p: cx.distributions.Poisson(p * 4.0).sample((2,)),
    "Binomial": lambda p: cx.distributions.Binomial(7, p).sample(),
    "NegativeBinomial": lambda p: cx.distributions.NegativeBinomial(5, p).sample(),
    "Geometric": lambda p: cx.distributions.Geometric(p).sample(),
    "normal": lambda p: cx.normal(p, 0.5) * p,
    "bernoulli": lambda p: cx.bernoulli(p),
    "multinomial": lambda p: cx.multinomial(p, 2),
    "dirichlet": lambda p: cx.random.dirichlet(p[0], 2),
    "choice": lambda p: cx.random.choice(p, 4, axis=1) + cx.random.choice(3, 4, p=p[0, :3]),
    "permutation": lambda p: cx.random.permutation(p, axis=1),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_by_values_that_are_computed_are_the_same_compiled(name: str) -> None:
    def function(p: Any) -> Any:
        first = DRAWN[name](p)
        return first, cx.rand(3), DRAWN[name](p)

    p = Given("float32").x
    plain, compiled = outcomes(function, p)
    assert compiled == plain

    slope = gradients(function, (0,))
    plain, compiled = outcomes(slope, p)
    assert compiled == plain


def test_every_call_draws_anew_by_values_that_are_computed() -> None:
    function = cx.compile(lambda p: cx.distributions.Gamma(p, 1.0).rsample())
    cx.manual_seed(4)
    compiled = [bits(function(cx.tensor([2.0, 3.0]))) for _ in range(3)]
    cx.manual_seed(4)
    assert compiled == [bits(cx.distributions.Gamma(cx.tensor([2.0, 3.0]), 1.0).rsample()) for _ in range(3)]
    assert len(set(compiled)) == 3


ROWS, COLUMNS = [0, -3, 2, -1], [-1, -4, 3, 1]  # of x (3, 4)

PICKED: dict[str, Callable[..., Any]] = {
    "arrays": lambda x, rows, columns: x[rows, columns],
    "arrays_that_are_constant": lambda x, rows, columns: x[ROWS, COLUMNS] + x[rows, cx.tensor(COLUMNS)],
    "arrays_apart": lambda x, rows, columns: x.reshape(3, 2, 2)[rows, :, columns.clip(-2, 1)],
    "mask_and_array": lambda x, rows, columns: x[cx.tensor([True, False, True]), columns[:2]],
    "index_put": lambda x, rows, columns: x.index_put((rows, columns), x[0], accumulate=True),
    "scatter": lambda x, rows, columns: x.scatter(1, columns.reshape(1, 4)[:, :2], x * 2.0),
    "scatter_add": lambda x, rows, columns: x.scatter_add(1, columns.reshape(1, 4), x),
}


@pytest.mark.parametrize("name", PICKED)
def test_indices_that_count_from_the_end_are_the_same_compiled(name: str) -> None:
    x, rows, columns = Given("float32").x, cx.tensor(ROWS), cx.tensor(COLUMNS)
    plain, compiled = outcomes(PICKED[name], x, rows, columns)
    assert compiled == plain
    plain, compiled = outcomes(gradients(PICKED[name], (0,)), x, rows, columns)
    assert compiled == plain


@pytest.mark.parametrize("name", ["arrays", "index_put", "scatter", "scatter_add"])
@pytest.mark.parametrize("beyond", [4, -5])
def test_an_index_beyond_its_axis_is_refused_compiled(name: str, beyond: int) -> None:
    x, rows, columns = Given("float32").x, cx.tensor([0, 1, 1, 0]), cx.tensor([beyond, 0, 0, 0])
    for function in (PICKED[name], cx.compile(PICKED[name])):
        with pytest.raises((IndexError, DataError), match=f"expected (-4..3|indices from -4 to 3), got .*{beyond}"):
            function(x, rows, columns)


def test_indices_of_an_axis_too_long_to_be_written_down_count_from_the_end() -> None:
    x, places = cx.arange(140_000.0).reshape(2, 70_000), cx.tensor([-1, 5, -70_000])
    plain, compiled = outcomes(lambda x, at: x[at % 2, at], x, places)
    assert compiled == plain


@pytest.mark.parametrize("size", [0, 1, 2, 5])
@pytest.mark.parametrize("part", [slice(None, None, 3), slice(-1, 0, 7), slice(None, None, -4), slice(1, None, 1000)])
def test_slices_whose_step_is_longer_than_their_axis_are_the_same_compiled(size: int, part: slice) -> None:
    x = cx.arange(size * 3.0).reshape(size, 3)
    plain, compiled = outcomes(lambda x: x[part] * 2.0, x)
    assert compiled == plain
    plain, compiled = outcomes(lambda x: cx.concat([x, x + 1.0])[part] * 2.0, x)
    assert compiled == plain


def test_constants_of_a_compiled_function_may_be_large() -> None:
    table = np.arange(90_000, dtype=np.float32)
    plain, compiled = outcomes(lambda x: x + table, cx.ones(90_000))
    assert compiled == plain


@pytest.mark.parametrize("number", [2**63 + 1, complex(1, math.inf), complex(math.nan, 0)])
def test_constants_of_a_compiled_function_may_be_any_numbers(number: complex) -> None:
    x = cx.tensor([1, 2], dtype="uint64") if isinstance(number, int) else cx.tensor([1 + 1j, 2])
    plain, compiled = outcomes(lambda x: x + number, x)
    assert compiled == plain


@pytest.mark.parametrize("compiled", [False, True])
def test_a_source_of_too_few_elements_is_refused(compiled: bool) -> None:
    def scattered(x: Any, source: Any) -> Any:
        return cx.masked_scatter(x, x < 1.0, source)

    with pytest.raises(ShapeError, match="expected a source of as many elements as the mask has true ones, 3, got 1"):
        (cx.compile(scattered) if compiled else scattered)(cx.zeros(3), cx.ones(1))


def test_gradients_of_what_was_turned_round_keep_the_sign_of_zero() -> None:
    plain, compiled = outcomes(cx.grad(lambda x: (x.flip(0) * -0.0).sum()), cx.ones(3))
    assert compiled == plain


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"weight": True}])
def test_rows_of_the_label_minus_100_count_nothing_compiled(name: str, options: dict[str, Any]) -> None:
    given = Given("float32")
    given_options = {**options, "weight": given.row} if "weight" in options else options

    def loss(x: Any, labels: Any) -> Any:
        rows = x if name == "cross_entropy" else x.log_softmax(1)
        return getattr(cx.functional, name)(rows, labels, **given_options)

    for labels in ([1, 0, 3], [1, -100, 2], [-100, -100, -100]):
        for each in (loss, gradients(lambda *given: (loss(*given),), (0,))):
            plain, compiled = outcomes(each, given.x, cx.tensor(labels))
            assert compiled == plain
    for wrong in ([0, 4, 1], [0, -1, 1], [-5, 0, 1]):
        with pytest.raises(DataError):
            cx.compile(loss)(given.x, cx.tensor(wrong))


def test_results_are_of_their_own_memory_whatever_their_type_and_size() -> None:
    @cx.compile
    def several(x: Any) -> Any:
        return x + 1, x > 0, x.astype("int64"), x.astype("float64") * 2, x[:0] * 2, x.sum()

    first = several(cx.tensor([1.0, -2.0]))
    held = [np.asarray(each).copy() for each in first]
    second = several(cx.tensor([3.0, 4.0]))
    assert [each.dtype for each in first] == ["float32", "bool", "int64", "float64", "float32", "float32"]
    assert [each.shape for each in second] == [(2,), (2,), (2,), (2,), (0,), ()]
    for before, now in zip(held, first, strict=True):
        assert before.tobytes() == np.asarray(now).tobytes()
    first[0][0] = 7.0
    assert first[0].tolist() == [7.0, -1.0] and second[0].tolist() == [4.0, 5.0] and second[5].item() == 7.0
