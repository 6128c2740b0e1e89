"""The rarer of PyTorch's names: the values and the gradients PyTorch has."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import special, torchrarer, torchtensors
from cyxcore.errors import CyxError, SpecError
from cyxcore.plan import Plan
from cyxcore.symbols import Builder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

X, Y = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
CUBE = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(np.float32)
HOLES = np.where(X > 0.5, np.nan, X).astype(np.float32)
WHOLE = np.array([[12, -8, 0], [7, 30, 5]], np.int64)
PLACES = np.array([[0, 2, 1, 0], [2, 0, 0, 1]], np.int64)

# Of a library m and tensors x, y, cube of it.
CALLS: dict[str, Callable[..., Any]] = {
    "clamp_min": lambda m, x, y, c: x.clamp_min(0.1) + x.clamp_max(0.3),
    "fmax": lambda m, x, y, c: [m.fmax(m.tensor(HOLES), y.detach()), m.fmin(m.tensor(HOLES), y.detach())],
    "degrees": lambda m, x, y, c: x.deg2rad() + m.rad2deg(y),
    "float_power": lambda m, x, y, c: x.abs().float_power(1.5),
    "heaviside": lambda m, x, y, c: m.heaviside(x.detach(), y.detach()),
    "ldexp": lambda m, x, y, c: m.ldexp(x, m.tensor(3)),
    "logaddexp2": lambda m, x, y, c: m.logaddexp2(x, y),
    "angle": lambda m, x, y, c: [m.angle(x.detach()), m.angle(m.view_as_complex(m.stack([x, y], -1)))],
    "gcd": lambda m, x, y, c: [
        m.gcd(m.tensor(WHOLE), m.tensor(WHOLE[::-1].copy())), m.lcm(m.tensor(WHOLE), m.tensor(6))
    ],
    "baddbmm": lambda m, x, y, c: m.baddbmm(c @ c.mT, c, c.mT, beta=0.5, alpha=2.0),
    "addbmm": lambda m, x, y, c: m.addbmm(x @ x.mT, c, c.mT),
    "addmv": lambda m, x, y, c: m.addmv(x[:, 0], x, y[0], alpha=0.5),
    "addr": lambda m, x, y, c: m.addr(x, x[:, 0], y[0], beta=2.0),
    "vdot": lambda m, x, y, c: m.vdot(x[0], y[0]),
    "inner": lambda m, x, y, c: m.inner(x, y),
    "kron": lambda m, x, y, c: m.kron(x[:2, :2], y[0]),
    "logdet": lambda m, x, y, c: m.logdet(x @ x.mT),
    "adjoint": lambda m, x, y, c: c.adjoint() + c.mH,
    "cov": lambda m, x, y, c: [m.cov(x), m.cov(x[0]), m.cov(x[:1]), m.corrcoef(y), x.cov(correction=0)],
    "nansum": lambda m, x, y, c: [m.nansum(m.tensor(HOLES)), m.tensor(HOLES).nanmean(1)],
    "aminmax": lambda m, x, y, c: m.aminmax(x, dim=1, keepdim=True),
    "cummax": lambda m, x, y, c: [*m.cummax(c, 1), *c.cummin(dim=2)],
    "logcumsumexp": lambda m, x, y, c: m.logcumsumexp(c, 1),
    "kthvalue": lambda m, x, y, c: [*x.kthvalue(2), *m.kthvalue(c, 3, 1, True)],
    "msort": lambda m, x, y, c: m.msort(x),
    "std_mean": lambda m, x, y, c: [*m.std_mean(x, 1), *m.var_mean(c, (0, 2), correction=0)],
    "trapezoid": lambda m, x, y, c: [m.trapezoid(x, dx=0.5), m.trapezoid(c, m.tensor([0.0, 1.0, 4.0]), dim=1)],
    "unique_consecutive": lambda m, x, y, c: m.unique_consecutive(
        m.tensor([1, 1, 2, 2, 2, 1]), return_inverse=True, return_counts=True
    ),
    "histc": lambda m, x, y, c: [m.histc(x.detach(), 5), m.histc(x.detach(), 4, -1.0, 1.0)],
    "bucketize": lambda m, x, y, c: [
        m.bucketize(x.detach(), m.tensor([-1.0, 0.0, 1.0])), m.bucketize(m.tensor([0.0]), m.tensor([0.0]), right=True)
    ],
    "turned": lambda m, x, y, c: [x.fliplr(), m.flipud(x), *(m.rot90(c, k, (1, 2)) for k in range(5))],
    "tensor_split": lambda m, x, y, c: [*m.tensor_split(x, 3, 1), *x.tensor_split((1, 2)), *m.hsplit(x, 2)],
    "vsplit": lambda m, x, y, c: [*m.vsplit(x, 3), *m.dsplit(c, 2), *x.split_with_sizes([1, 2])],
    "sum_to_size": lambda m, x, y, c: [x.sum_to_size(3, 1), c.sum_to_size(3, 4), c.sum_to_size(1, 1)],
    "argwhere": lambda m, x, y, c: m.argwhere(x.detach() > 0),
    "take": lambda m, x, y, c: x.take(m.tensor(PLACES)),
    "diagflat": lambda m, x, y, c: m.diagflat(x[:2, :2], 1),
    "index_copy": lambda m, x, y, c: m.index_copy(x, 0, m.tensor([2, 0]), y[:2]),
    "index_put": lambda m, x, y, c: m.index_put(x, (m.tensor([2, 0]), m.tensor([1, 1])), y[0, :2]),
    "index_put added": lambda m, x, y, c: x.index_put((m.tensor([2, 2, 0]),), y, accumulate=True),
    "masked_scatter": lambda m, x, y, c: m.masked_scatter(x, m.tensor(X > 0), y),
    "select_scatter": lambda m, x, y, c: m.select_scatter(x, y[0], 0, 1),
    "slice_scatter": lambda m, x, y, c: m.slice_scatter(x, y[:, :2], 1, 0, 4, 2),
    **{
        f"scatter_reduce {name} {own}": lambda m, x, y, c, name=name, own=own: m.scatter_reduce(
            x, 0, m.tensor(PLACES), y[:2].detach(), name, include_self=own
        )
        for name in ("sum", "mean", "prod", "amax", "amin")
        for own in (True, False)
    },
    "questions": lambda m, x, y, c: [m.isposinf(x / 0.0), m.isneginf(x / 0.0), m.isreal(x)],
    "column_stack": lambda m, x, y, c: [m.column_stack([x, y[:, 0]]), m.dstack([x, y])],
    "atleast": lambda m, x, y, c: [m.atleast_1d(x.sum()), m.atleast_2d(x[0]), m.atleast_3d(x), m.atleast_3d(x[0])],
    "block_diag": lambda m, x, y, c: m.block_diag(x, y[0], y[:2, :2]),
    "cartesian_prod": lambda m, x, y, c: [
        m.cartesian_prod(x[0], y[0, :2]), m.combinations(x[0]), m.combinations(x[0], 2, True)
    ],
    "broadcast_tensors": lambda m, x, y, c: m.broadcast_tensors(x[:, :1], y[0]),
    "complex": lambda m, x, y, c: m.view_as_real(m.polar(x.abs() + 0.5, y)),
    "swapdims": lambda m, x, y, c: c.swapdims(0, 2),
    "sgn": lambda m, x, y, c: [x.detach().sgn(), x.maximum(y), x.minimum(y), x.subtract(y, alpha=2)],
    **{
        name: lambda m, x, y, c, name=name: getattr(m, name)(x.abs() * 0.2 + 0.1)
        for name in "lgamma digamma erfc erfinv exp2 logit sinc arctan arcsinh".split()
    },
}  # fmt: skip


def outputs(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


@pytest.mark.parametrize("name", CALLS)
def test_a_name_means_what_it_means_in_pytorch(name: str) -> None:
    ours, theirs = ([m.tensor(each, requires_grad=True) for each in (X, Y, CUBE)] for m in (cx, torch))
    mine, its = outputs(CALLS[name](cx, *ours)), outputs(CALLS[name](torch, *theirs))
    assert len(mine) == len(its)
    for one, other in zip(mine, its, strict=True):
        assert str(other.dtype) == f"torch.{one.dtype}" and one.shape == tuple(other.shape)
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=2e-5, atol=2e-6)
        if other.requires_grad:
            (one * one).sum().backward()
            (other * other).sum().backward(retain_graph=True)
    for tensor, oracle in zip(ours, theirs, strict=True):
        if oracle.grad is not None:
            np.testing.assert_allclose(tensor.grad.numpy(), oracle.grad.numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dtype, precision", [("float32", 3e-5), ("float64", 1e-9)])
@pytest.mark.parametrize(
    "name, low, high",
    [
        *[("gammaln", -6, 50), ("digamma", -6, 50), ("erf", -5, 5), ("erfc", -5, 9), ("erfinv", -0.99999, 0.99999)],
        *[("logit", 0.01, 0.99), ("exp2", -5, 5), ("sinc", -4, 4), ("entr", 0.01, 3), ("ndtr", -5, 5)],
        *[("i0", -20, 20), ("i0e", -50, 50), ("i1", -20, 20), ("i1e", -50, 50), ("erfcx", -5, 30)],
        *[("ndtri", 0.001, 0.999), ("log_ndtr", -15, 5), ("expit", -9, 9), ("expm1", -1, 1), ("log1p", -0.5, 1)],
    ],
)
def test_special_functions(name: str, low: float, high: float, dtype: str, precision: float) -> None:
    given = np.random.default_rng(0).uniform(low, high, 300).astype(dtype)
    ours, theirs = cx.tensor(given, dtype=dtype, requires_grad=True), torch.tensor(given, requires_grad=True)
    one, other = getattr(special, name)(ours), getattr(torch.special, name)(theirs)
    one.sum().backward()
    other.sum().backward()
    np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=precision, atol=precision)
    slack = 10 * precision if dtype == "float64" else 3e-3 if name == "digamma" else 1e-4
    if not (name == "sinc" and dtype == "float32"):  # torch's float32 gradient of sinc has three digits
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=slack, atol=slack)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gammaln", "digamma", "erfc", "erfinv", "log_ndtr"])
def test_special_functions_of_many_are_those_of_few_and_of_compiled_ones(name: str, dtype: str) -> None:
    """To the bit, with their gradients."""
    function = getattr(special, name)
    values = np.random.default_rng(0).normal(size=70_000).astype(dtype)
    values = np.tanh(values) if name == "erfinv" else values * 4.0
    found = []
    for given in (values, values[:99]):
        x = cx.tensor(given, requires_grad=True)
        y = function(x)
        y.sum().backward()
        compiled = cx.compile(cx.grad(lambda x: function(x).sum()))(cx.tensor(given))
        assert compiled.numpy().tobytes() == x.grad.numpy().tobytes()
        found.append([each.numpy()[:99].tobytes() for each in (y.detach(), x.grad)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "name", ["gammaln", "digamma", "erfc", "erfinv", "log_ndtr", "i0", "i1", "i0e", "i1e", "erfcx"]
)
def test_special_functions_have_second_derivatives(name: str) -> None:
    function, step = getattr(special, name), 1e-5
    points = np.array([-0.7, -0.2, 0.1, 0.6, *([] if name == "erfinv" else [1.9, -2.7])])
    slope = cx.grad(lambda x: function(x).sum())
    wanted = (slope(cx.tensor(points + step)) - slope(cx.tensor(points - step))).numpy() / (2.0 * step)
    many = cx.tensor(np.resize(points, 70_000))
    for x in (cx.tensor(points), many):
        found = cx.grad(lambda x: slope(x).sum())(x).numpy()[: len(points)]
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_special_functions_at_their_ends() -> None:
    odd = np.array([0.0, -1.0, -2.0, np.inf, 1.0, 2.0, np.nan, -np.inf, 0.5], np.float32)
    for name in ("gammaln", "digamma", "erfinv", "erfc", "entr", "ndtr", "sinc", "i0", "i0e", "i1", "i1e", "erfcx"):
        found = getattr(special, name)(cx.tensor(odd)).numpy()
        wanted = getattr(torch.special, name)(torch.tensor(odd)).numpy()
        if name in ("sinc", "i0", "i1"):  # NaN at infinity in torch
            found, wanted = found[np.isfinite(odd)], wanted[np.isfinite(odd)]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    far = cx.tensor([-40.0, -1000.0], dtype="float64", requires_grad=True)
    found = special.log_ndtr(far)
    found.sum().backward()
    np.testing.assert_allclose(found.detach().numpy(), [-804.608442013754, -500007.826694812], rtol=1e-12)
    np.testing.assert_allclose(far.grad.numpy(), [40.024968847207, 1000.000999998], rtol=1e-11)
    xs, ys = np.array([0.0, 0.0, 2.0], np.float32), np.array([-1.0, np.nan, 0.5], np.float32)
    found = special.xlog1py(cx.tensor(xs), cx.tensor(ys)).numpy()
    np.testing.assert_allclose(found, [0.0, np.nan, 2 * np.log(1.5)], rtol=1e-6)


@pytest.mark.parametrize("dtype, precision", [("float32", 4e-5), ("float64", 1e-9)])  # torch's trigamma has nine digits
@pytest.mark.parametrize("n", range(5))
def test_polygamma_and_zeta(n: int, dtype: str, precision: float) -> None:
    given = np.random.default_rng(0).uniform(0.05, 60, 300).astype(dtype)
    x, y = cx.tensor(given, dtype=dtype, requires_grad=True), torch.tensor(given, requires_grad=True)
    one, other = special.polygamma(n, x), torch.special.polygamma(n, y)
    one.sum().backward()
    other.sum().backward()
    np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=precision, atol=precision)
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=precision)
    s = n + 1.25
    found, wanted = special.zeta(s, x.detach()), torch.special.zeta(s, y.detach())
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=precision)


def test_what_special_functions_of_two_are_at_their_ends() -> None:
    s, q = [1.0, 0.5, 2.0, 2.0, 2.0, 3.0, np.nan], [2.0, 2.0, 0.0, -1.0, -1.5, 1.0, 1.0]
    found = special.zeta(cx.tensor(s), cx.tensor(q)).numpy()
    np.testing.assert_allclose(found, [np.inf, np.nan, np.inf, np.inf, np.nan, 1.2020569, np.nan], rtol=1e-6)
    a = np.linspace(2, 9, 20)
    np.testing.assert_allclose(
        special.multigammaln(cx.tensor(a), 3).numpy(),
        torch.special.multigammaln(torch.tensor(a), 3).numpy(),
        rtol=1e-12,
    )
    with pytest.raises(SpecError, match="polygamma: expected n of at least 0, got -1"):
        special.polygamma(-1, cx.tensor(a))


def test_special_functions_in_a_graph() -> None:
    x = cx.tensor(np.abs(X) * 0.3 + 0.1)
    for name in ("gammaln", "erfc", "erfinv", "digamma"):
        function = getattr(special, name)
        np.testing.assert_allclose(cx.compile(function)(x).numpy(), function(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in torchtensors.WRITTEN if hasattr(torch.Tensor, f"{name}_")])
def test_every_name_that_writes_is_there_and_explained(name: str) -> None:
    method = getattr(cx.Tensor, f"{name}_")
    assert callable(method) and method.__doc__


def test_some_writes() -> None:
    results = []
    for m in (cx, torch):
        x, mask = m.tensor(X), m.tensor(X > 0)
        x.atan_().hypot_(m.tensor(Y)).log1p_().clamp_min_(0.2).sgn_().add_(m.tensor(Y)).erf_()
        x.masked_scatter_(mask, m.tensor(Y)).index_copy_(0, m.tensor([1]), m.tensor(Y[:1])).fill_diagonal_(7.0)
        whole = m.tensor(WHOLE)
        whole.bitwise_and_(6).gcd_(m.tensor(4)).eq_(2)
        results.append([x.numpy(), whole.numpy()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_is_drawn_in_place() -> None:
    cx.manual_seed(0)
    assert set(cx.zeros(300, dtype="int64").random_(2, 5).tolist()) == {2, 3, 4}
    assert set(cx.zeros(50).bernoulli_(0.5).tolist()) == {0.0, 1.0}
    assert abs(cx.zeros(4000).exponential_(2.0).mean().item() - 0.5) < 0.05
    assert cx.zeros(9, dtype="uint8").random_().max().item() > 3


def test_clamp_min_and_clamp_max_give_x_all_of_the_gradient_at_the_bound() -> None:
    """PyTorch 2.13's; its 2.14 gives nothing of a number and half of a tensor, so it is not asked."""
    for bound in (cx.tensor([0.25, 0.25]), 0.25):
        x = cx.tensor([0.25, 0.25], requires_grad=True)
        (x.clamp_min(bound) + 2.0 * x.clamp_max(bound)).sum().backward()
        assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("name", ["cummax", "cummin"])
def test_of_equals_and_of_nans_the_last_is_the_best_so_far(name: str, dtype: str) -> None:
    given = np.random.default_rng(1).integers(0, 4, (3, 7, 5)).astype(np.float32)
    if "float" in dtype:
        given[1, [2, 4], 3] = np.nan
        given[2, 3, 1] = -0.0
    for axis in (0, 1, 2):
        wanted = getattr(torch.tensor(given).to(getattr(torch, dtype)), name)(axis)
        x = cx.tensor(given).astype(dtype)
        for found in (getattr(x, name)(axis), cx.compile(lambda x, axis=axis: getattr(x, name)(axis))(x)):
            assert found[1].tolist() == wanted.indices.tolist()
            np.testing.assert_array_equal(found[0].float().numpy(), wanted.values.float().numpy())
    for shape in ((0,), (0, 3), (3, 0), (1,)):
        assert getattr(cx.zeros(shape), name)(0).indices.tolist() == np.zeros(shape).tolist()


def test_a_graph_that_travels_holds_running_extremes() -> None:
    builder, given = Builder(), cx.tensor(X)
    x = builder.input("x", X.shape)
    plan = Plan(builder.graph(*x.cummax(1)))
    plan.inputs["x"][...] = X
    plan.run()
    for found, wanted in zip(plan.outputs, given.cummax(1), strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())


def test_questions() -> None:
    x = cx.tensor(CUBE)
    assert x.nbytes == 96 and x.itemsize == 4 and x.is_cpu and x.get_device() == -1 and not x.is_sparse
    assert x.is_signed() and not cx.zeros(1, dtype="uint8").is_signed() and cx.is_nonzero(cx.tensor(3))
    assert x.is_same_size(x * 2.0) and cx.promote_types("int8", "float16") == "float16"
    assert cx.adjoint(cx.tensor([[1j]])).tolist() == [[-1j]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data_ptr", r"a tensor has no 'data_ptr': x.numpy\(\) shares"),
        ("squeeze_", r"write x = x.squeeze"),
        ("to_sparse", "no sparse tensors"),
        ("retain_grad", "register_hook"),
        ("lstsq", "cx.linalg has eig, svd, solve"),
        ("nonsense", "a tensor has no 'nonsense'$"),
    ],
)
def test_what_is_not_there_says_what_to_do(name: str, said: str) -> None:
    x = cx.ones(2)
    assert not hasattr(x, name)
    with pytest.raises(AttributeError, match=said):
        getattr(x, name)


def test_a_name_that_is_nearly_right_is_told() -> None:
    with pytest.raises(AttributeError, match=r"cyxcore has no 'soft_max'; did you mean softmax"):
        cx.soft_max  # noqa: B018
    with pytest.raises(AttributeError, match=r"dir\(cyxcore\) names what it has"):
        cx.zzzzzzzz  # noqa: B018


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: x.kthvalue(9), r"expected k of 1\.\.4"),
        (lambda x: cx.tensor_split(x, 0), "at least 1 piece"),
        (lambda x: cx.scatter_reduce(x, 0, cx.tensor(PLACES), x, "median"), "expected one of sum"),
        (lambda x: x.is_nonzero(), "expected one element"),
        (lambda x: cx.view_as_real(x), "expected complex numbers"),
        (lambda x: cx.view_as_complex(x), r"\(\.\.\., 2\)"),
        (lambda x: x[0].clone().fill_diagonal_(1.0), "expected a matrix"),
        (lambda x: x.clone().random_(3, 3), "expected low below high"),
        (lambda x: x.clone().bernoulli_(2.0), r"probability of 0\.\.1"),
    ],
)
def test_bad_use_is_refused(call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(CyxError, match=said):
        call(cx.tensor(X))


def test_every_name_is_there_and_explained() -> None:
    for name, method in torchrarer.METHODS.items():
        assert callable(getattr(cx.tensor(X), name)) and method.__doc__, name
    for maker in torchrarer.MAKERS:
        assert inspect.unwrap(getattr(cx, maker.__name__)) is inspect.unwrap(maker) and maker.__doc__


def test_the_inverse_error_function_of_float64_has_its_digits_next_to_0_and_to_1() -> None:
    x = np.concatenate([10.0 ** np.linspace(-300, -1, 60), 1 - 10.0 ** -np.linspace(1, 15.9, 60)])
    made = cx.special.erfinv(cx.tensor(np.concatenate([x, -x]))).numpy()
    half = len(x)
    np.testing.assert_array_equal(made[:half], -made[half:])
    np.testing.assert_allclose(made[:55], x[:55] * math.sqrt(math.pi) / 2, rtol=1e-13)  # up to 1e-26
    back = np.array([math.erfc(v) for v in made[:half]])
    np.testing.assert_allclose(back, 1 - x, rtol=1e-13)


@pytest.mark.parametrize("mode", [None, "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_distances_are_made_by_a_product_or_by_differences(mode: str | None) -> None:
    dice = np.random.default_rng(3)
    given = [dice.standard_normal(shape) for shape in ((2, 30, 5), (2, 40, 5))]
    ours = [cx.tensor(each, requires_grad=True) for each in given]
    theirs = [torch.tensor(each, requires_grad=True) for each in given]
    kind = {} if mode is None else {"compute_mode": mode}
    found, wanted = cx.cdist(*ours, **kind), torch.cdist(*theirs, **kind)
    np.testing.assert_allclose(found.detach().numpy(), wanted.detach().numpy(), rtol=1e-9)
    (found * found.detach().cos()).sum().backward()
    (wanted * wanted.detach().cos()).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.grad.numpy(), other.grad.numpy(), rtol=1e-8, atol=1e-10)


def test_distances_of_points_far_away_are_exact_where_they_are_subtracted() -> None:
    x = 1e4 + np.arange(60, dtype=np.float32).reshape(30, 2) / 64
    wanted = np.sqrt(((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1))
    plain = cx.cdist(cx.tensor(x), cx.tensor(x), compute_mode="donot_use_mm_for_euclid_dist").numpy()
    np.testing.assert_allclose(plain, wanted, rtol=1e-6)
    product = cx.cdist(cx.tensor(x), cx.tensor(x)).numpy()
    assert np.abs(product**2 - wanted**2).max() <= 8 * np.spacing(np.float32(2e8))
    with pytest.raises(SpecError, match="compute_mode None or one of"):
        cx.cdist(cx.tensor(x), cx.tensor(x), compute_mode="by hand")


def test_a_distance_of_0_has_no_gradient() -> None:
    x = cx.zeros(30, 2, requires_grad=True)
    cx.cdist(x, cx.zeros(30, 2)).sum().backward()
    assert not x.grad.any()
