"""PyTorch's functions that order, count, fold and transform, and its words for arguments: values and gradients."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError, DtypeError, ShapeError, SpecError
from cyxcore.symbols import Builder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

R = np.random.default_rng(0)
X = R.normal(size=(3, 4)).astype(np.float32)
Y = R.normal(size=(3, 4)).astype(np.float32)
C = R.normal(size=(2, 3, 4)).astype(np.float32)
V = R.normal(size=(5,)).astype(np.float32)
I = R.integers(0, 10, size=(3, 4))  # noqa: E741
J = R.integers(0, 3, size=(3, 4))
S = (X @ X.T + np.eye(3) * 3).astype(np.float32)
N = np.where(X > 0.2, np.nan, X).astype(np.float32)
WAVE = np.sin(np.arange(64.0) * 0.7).astype(np.float32)
ARRAYS = {"x": X, "y": Y, "c": C, "v": V, "i": I, "j": J, "s": S, "n": N, "w": WAVE}

# What to do with the arrays as tensors of a library m.
CALLS: dict[str, Callable[..., Any]] = {
    "max of two": lambda m, x, y, **_: (m.max(x, y), m.min(x, y), x.max(y), x.min(y)),
    "max by place": lambda m, x, **_: (*m.max(x, 1), *m.min(x, 0), *m.max(x, 1, True), m.max(x, -1)[0]),
    "max by word": lambda m, x, **_: (*m.max(x, dim=1, keepdim=True), *x.min(dim=0), m.max(x), m.max(x, dim=1).values),
    "std, said": lambda m, x, **_: (x.std(unbiased=True), m.std(x, 0, unbiased=True), x.std(0, unbiased=False)),
    "std by dim": lambda m, x, **_: (x.std(dim=0), m.std(x, dim=1, keepdim=True), x.var(dim=(0, 1))),
    "std by correction": lambda m, x, **_: (x.std(correction=1), m.std(x, dim=1, correction=0), x.var(correction=2)),
    "var_mean": lambda m, x, **_: (*m.var_mean(x, dim=1, unbiased=False), *m.std_mean(x), *m.var_mean(x, 1)),
    "softmax in a dtype": lambda m, x, i, **_: (m.softmax(x, dim=-1, dtype=m.float64), i.softmax(1, dtype=m.float32)),
    "log_softmax in a dtype": lambda m, x, **_: x.log_softmax(1, dtype=m.float64),
    "sum in a dtype": lambda m, x, i, **_: (
        x.sum(dtype=m.float64),
        m.sum(i, dim=1, dtype=m.float32),
        i.float().mean(1),
    ),
    "mean in a dtype": lambda m, i, **_: (m.mean(i, dim=0, dtype=m.float32), i.mean(dtype=m.float64)),
    "mode": lambda m, i, j, **_: (*m.mode(i), *j.mode(dim=0), *m.mode(j, 1, keepdim=True)),
    "quantile": lambda m, x, **_: (m.quantile(x, 0.3), x.quantile(0.25, dim=1), m.quantile(x, 0.5, 0, True)),
    "quantiles": lambda m, x, **_: (m.quantile(x, m.tensor([0.1, 0.5, 1.0])), m.quantile(x, m.tensor([0.2]), dim=1)),
    "quantile lower": lambda m, x, **_: m.quantile(x, 0.3, dim=1, interpolation="lower"),
    "quantile higher": lambda m, x, **_: m.quantile(x, 0.3, dim=1, interpolation="higher"),
    "quantile nearest": lambda m, x, **_: m.quantile(x, 0.3, dim=1, interpolation="nearest"),
    "quantile midpoint": lambda m, x, **_: m.quantile(x, 0.3, dim=0, interpolation="midpoint"),
    "quantile of NaN": lambda m, n, **_: (m.quantile(n, 0.5, dim=0), m.quantile(n, 0.5)),
    "nanquantile": lambda m, n, **_: (m.nanquantile(n, 0.4), m.nanquantile(n, 0.5, dim=1), n.nanquantile(0.1, dim=0)),
    "nanmedian": lambda m, n, **_: (m.nanmedian(n), m.nanmedian(n, dim=1).values, n.nanmedian(0, keepdim=True)[0]),
    "histogram": lambda m, x, **_: (*m.histogram(x, 4), *m.histogram(x, bins=4, range=(-1.0, 1.0), density=True)),
    "histogram of edges": lambda m, x, y, **_: m.histogram(x, m.tensor([-1.0, 0.0, 0.5, 2.0]), weight=y),
    "searchsorted": lambda m, x, v, **_: (
        m.searchsorted(v.sort()[0], x, right=True),
        m.searchsorted(m.sort(x, dim=1)[0], x[:, :2]),
        m.searchsorted(m.sort(x, dim=1)[0], x, right=True),
    ),
    "unique of rows": lambda m, j, **_: (
        m.unique(m.cat([j, j[:2]]), dim=0),
        *m.unique(m.cat([j, j]), dim=0, return_inverse=True, return_counts=True),
        m.unique(j, dim=1),
    ),
    "unique": lambda m, i, **_: m.unique(i, sorted=True, return_inverse=True, return_counts=True),
    "topk": lambda m, x, **_: x.topk(2, dim=1, largest=False, sorted=True),
    "scatter_reduce sum": lambda m, x, j, y, **_: (
        y.scatter_reduce(0, j, x, "sum"),
        y.scatter_reduce(1, j, x, "sum", include_self=False),
    ),
    "scatter_reduce mean": lambda m, x, j, y, **_: (
        y.scatter_reduce(0, j, x, "mean"),
        y.scatter_reduce(1, j, x, "mean", include_self=False),
    ),
    "scatter_reduce prod": lambda m, x, j, y, **_: (
        y.scatter_reduce(0, j, x, "prod"),
        y.scatter_reduce(1, j, x, "prod", include_self=False),
    ),
    "scatter_reduce amax": lambda m, x, j, y, **_: (
        y.scatter_reduce(0, j, x, "amax"),
        y.scatter_reduce(1, j, x, "amax", include_self=False),
    ),
    "scatter_reduce amin": lambda m, x, j, y, **_: (
        y.scatter_reduce(0, j[:2, :3], x[:2, :3], "amin"),
        y.scatter_reduce(1, j, x, "amin", include_self=False),
    ),
    "scatter_reduce of equals": lambda m, x, j, **_: m.relu(x).scatter_reduce(0, j, m.relu(x) * 1.0, "amax"),
    "index_reduce": lambda m, x, y, **_: (
        x.index_reduce(0, m.tensor([0, 2]), y[:2], "prod"),
        x.index_reduce(0, m.tensor([0, 2, 0]), y, "mean", include_self=False),
        x.index_reduce(1, m.tensor([0, 2]), y[:, :2], "amax"),
        x.index_reduce(1, m.tensor([0, 0]), y[:, :2], "amin", include_self=False),
    ),
    "pdist": lambda m, x, **_: (m.pdist(x), m.pdist(x, p=1.0), m.nn.functional.pdist(x, 3.0)),
    "gradient": lambda m, x, v, **_: (*m.gradient(v), *m.gradient(x, spacing=2.0, dim=1), *m.gradient(x)),
    "cumulative_trapezoid": lambda m, x, v, **_: (
        m.cumulative_trapezoid(v),
        m.cumulative_trapezoid(x, dx=0.5, dim=0),
        m.cumulative_trapezoid(x, m.tensor([0.0, 1.0, 3.0, 4.0])),
    ),
    "renorm": lambda m, x, **_: (m.renorm(x, 2, 0, 1.0), x.renorm(1, 1, 0.5)),
    "vander": lambda m, v, **_: (m.vander(v, 3), m.vander(v, increasing=True), m.linalg.vander(v, N=3)),
    "put": lambda m, x, v, **_: (
        x.put(m.tensor([0, 3]), v[:2]),
        x.put(m.tensor([0, 3, 0]), v[:3], accumulate=True),
    ),
    "unravel_index": lambda m, **_: m.unravel_index(m.tensor([5, 7, 11]), (3, 4)),
    "frexp": lambda m, x, **_: m.frexp(m.cat([x.flatten(), m.tensor([0.0, 1.0, 4.0, -0.5, 3e-39])])),
    "take_along_dim": lambda m, x, j, **_: (m.take_along_dim(x, j, dim=1), m.take_along_dim(x, j)),
    "where alone": lambda m, x, **_: m.where(x > 0),
    "nonzero": lambda m, x, **_: m.nonzero(x > 0, as_tuple=True),
    "joining": lambda m, x, y, **_: (
        m.cat([x, y], axis=1),
        m.concat([x, y], dim=1),
        m.concatenate([x, y], dim=0),
        m.squeeze(x[None]),
    ),
    "add and round": lambda m, x, y, **_: (m.add(x, y, alpha=2), m.round(x, decimals=1)),
    "tensordot": lambda m, x, y, **_: (
        m.tensordot(x, y, dims=([1], [1])),
        m.tensordot(x, y.T, dims=1),
        m.tensordot(x, y.T, 1),
    ),
    "einsum of a list": lambda m, c, **_: m.einsum("bij,bkj->bik", [c, c]),
    "norms by dim": lambda m, x, **_: (
        m.linalg.vector_norm(x, ord=1, dim=1, keepdim=True),
        m.linalg.vector_norm(x, 2, dim=0),
        m.linalg.vector_norm(x, dtype=m.float64),
    ),
    "cross by dim": lambda m, c, **_: m.linalg.cross(c[..., :3], c[..., 1:], dim=-1),
    "trace of a matrix": lambda m, s, **_: m.trace(s),
    "real and imag": lambda m, x, y, **_: (m.complex(x, y).real, m.complex(x, y).imag, m.complex(x, y).abs()),
    "matrix_exp": lambda m, s, **_: (m.linalg.matrix_exp(s * 0.3), m.matrix_exp(m.stack([s, s * 0.1]) * 0.2)),
    "solve_triangular": lambda m, x, s, **_: (
        m.linalg.solve_triangular(m.tril(s), x, upper=False),
        m.linalg.solve_triangular(m.triu(s), x, upper=True, unitriangular=True),
        m.linalg.solve_triangular(m.tril(s), x.T, upper=False, left=False),
    ),
    "cholesky_solve": lambda m, x, s, **_: (
        m.cholesky_solve(x, m.linalg.cholesky(s)),
        m.cholesky_inverse(m.linalg.cholesky(s)),
        m.cholesky_solve(x, m.linalg.cholesky(s).mT, upper=True),
    ),
    "lstsq": lambda m, x, **_: (
        m.linalg.lstsq(x.T, x.T[:, :2]).solution,
        m.linalg.lstsq(x.T, x.T[:, :1] * 2 + 1).residuals,
        m.linalg.lstsq(x.T, x.T[:, :1] * 2 + 1, driver="gelsd").residuals,
    ),
    "multi_dot": lambda m, x, y, s, **_: (m.linalg.multi_dot([x, y.T, s]), m.linalg.multi_dot([x[0], y.T, s, s[0]])),
    "cond": lambda m, s, **_: (m.linalg.cond(s), m.linalg.cond(s, p=1), m.linalg.cond(s, "fro")),
    "tensorinv": lambda m, s, **_: (
        m.linalg.tensorinv(m.eye(6).reshape(6, 2, 3) * 2.0, ind=1),
        m.linalg.tensorsolve(m.eye(6).reshape(2, 3, 6) * 2.0, s[:2]),
    ),
    "fft by dim": lambda m, x, **_: (
        m.fft.rfft(x, dim=0).abs(),
        m.fft.rfft(x, 6, 1, "ortho").abs(),
        m.fft.irfft(m.fft.rfft(x, norm=None), n=4, dim=-1),
        m.fft.fftshift(x, dim=1),
    ),
    "fft2": lambda m, x, c, **_: (
        m.fft.fft2(x).abs(),
        m.fft.ifft2(m.fft.fft2(x)).real,
        m.fft.rfft2(c, dim=(0, 1)).real,
        m.fft.irfft2(m.fft.rfft2(x), s=(3, 4)),
        m.fft.fftn(c, dim=(0, 2)).imag,
    ),
    "stft": lambda m, w, **_: m.view_as_real(
        m.stft(w, n_fft=16, hop_length=4, window=m.hann_window(16), return_complex=True)
    ),
    "stft of rows": lambda m, w, **_: m.view_as_real(
        m.stft(w.view(2, 32), 8, 2, 6, m.hamming_window(6), normalized=True, return_complex=True)
    ),
    "stft not centred": lambda m, w, **_: m.stft(w, 16, center=False, onesided=False, return_complex=True).abs(),
    "istft": lambda m, w, **_: (
        m.istft(m.stft(w, 16, 4, window=m.hann_window(16), return_complex=True), 16, 4, window=m.hann_window(16)),
        m.istft(m.stft(w, 16, return_complex=True), 16, length=60),
    ),
    "windows": lambda m, **_: (
        *(m.hann_window(8), m.hann_window(7, periodic=False), m.hamming_window(8), m.blackman_window(9)),
        *(m.bartlett_window(8), m.kaiser_window(8), m.kaiser_window(9, False, 5.0), m.hann_window(1)),
    ),
    "makers": lambda m, x, **_: (
        *(m.logspace(0, 2, 3), m.logspace(0, 2, steps=4, base=2.0), m.FloatTensor([1, 2]), m.LongTensor([3])),
        *(m.zeros_like(x, requires_grad=True), m.full((2,), 1.5, requires_grad=True), m.BoolTensor([True, False])),
    ),
    "sums by axis": lambda m, x, **_: (m.cumsum(x, axis=0), m.cumprod(x, axis=1), x.cumsum(-1)),
    "memory formats": lambda m, x, **_: (
        x.to(memory_format=m.contiguous_format),
        x.contiguous(memory_format=m.contiguous_format),
        x.clone(memory_format=m.preserve_format),
        x.to("cpu", m.float32, memory_format=m.preserve_format),
    ),
    "causal mask": lambda m, **_: m.nn.Transformer.generate_square_subsequent_mask(4),
    "one_hot": lambda m, j, **_: (m.nn.functional.one_hot(j).float(), m.nn.functional.one_hot(j, 5).float()),
}
NO_GRADIENT = {  # PyTorch has none, or fails to compute it
    "cond",
    "quantile of NaN",
    "vander",
    "mode",
    "frexp",
    "windows",
    "makers",
    "unravel_index",
    "one_hot",
    "causal mask",
    "where alone",
    "nonzero",
    "unique",
    "unique of rows",
    "histogram",
    "histogram of edges",
    "searchsorted",
    "lstsq",
    "softmax in a dtype",
    "mean in a dtype",
    "sum in a dtype",
}


def flat(value: Any) -> list[Any]:
    return [each for part in value for each in flat(part)] if isinstance(value, (tuple, list)) else [value]


def run(m: Any, call: Callable[..., Any], gradient: bool) -> tuple[list[Any], dict[str, Any]]:
    make = (lambda a: torch.tensor(a)) if m is torch else (lambda a: cx.asarray(a.copy()))
    held = {name: make(array) for name, array in ARRAYS.items()}
    if gradient:
        for name in ("x", "y", "c", "v", "s", "w", "n"):
            held[name].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own
        found = flat(call(m, **held))
        if gradient:
            parts = [each for each in found if each.requires_grad]
            total = sum((part * (place + 1.0) * (part.detach().cos() + 2.0)).sum() for place, part in enumerate(parts))
            total.backward()
    return found, {name: x.grad for name, x in held.items() if getattr(x, "grad", None) is not None}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_values_are_pytorchs(name: str) -> None:
    wanted, _ = run(torch, CALLS[name], False)
    got, _ = run(cx, CALLS[name], False)
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == str(other.dtype).removeprefix("torch.") and one.shape == tuple(other.shape), (one, other)
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), rtol=3e-5, atol=3e-6)


@pytest.mark.parametrize("name", sorted(set(CALLS) - NO_GRADIENT))
def test_gradients_are_pytorchs(name: str) -> None:
    _, wanted = run(torch, CALLS[name], True)
    _, got = run(cx, CALLS[name], True)
    assert set(got) == set(wanted) and wanted
    for each, other in wanted.items():
        np.testing.assert_allclose(got[each].numpy(), other.numpy(), rtol=2e-4, atol=2e-5, err_msg=each)


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["amax", "amin"])
def test_the_best_of_zeros_is_the_same_zero_compiled(reduce: str, include_self: bool) -> None:
    def best(own: Any, places: Any, source: Any) -> Any:
        return own.scatter_reduce(0, places, source, reduce, include_self=include_self)

    for zeros in itertools.product([0.0, -0.0], repeat=3):
        given = cx.tensor([zeros[0], -0.0]), cx.tensor([0, 0]), cx.tensor(zeros[1:])
        plain, compiled = best(*given).numpy(), cx.compile(best)(*given).numpy()
        followed = best(given[0].clone().requires_grad_(True), *given[1:]).detach().numpy()
        assert plain.tobytes() == compiled.tobytes() == followed.tobytes()
        assert np.signbit(plain[1])  # what nothing points to stays as it is


@pytest.mark.parametrize("compiled", [False, True])
def test_the_deviation_of_equal_numbers_has_gradient_zero(compiled: bool) -> None:
    x = np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]], np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    theirs.std(dim=1).sum().backward()
    grad = cx.grad(lambda x: x.std(dim=1).sum())
    found = (cx.compile(grad) if compiled else grad)(cx.tensor(x))
    np.testing.assert_allclose(found.numpy(), theirs.grad.numpy(), rtol=1e-5)


def test_std_and_var_divide_by_n_unless_dim_or_a_word_says_otherwise() -> None:
    """The method and the function do the same; PyTorch's without a word differs, as the tutorial says."""
    x, wide = cx.asarray(X), X.astype(np.float64)
    for found in (x.std(), x.std(0), x.std(axis=0), cx.std(x), cx.std(x, axis=0)):
        axis = None if found.shape == () else 0
        np.testing.assert_allclose(found.numpy(), wide.std(axis), rtol=1e-5)
    for found in (x.std(dim=0), cx.std(x, dim=0), x.std(0, unbiased=True), cx.std(x, axis=0, correction=1)):
        np.testing.assert_allclose(found.numpy(), wide.std(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("reduce", ["sum", "mean", "prod", "amax", "amin"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_reduction_by_index_in_a_graph_is_the_plain_one(reduce: str, own: bool, dim: int) -> None:
    x, y, j = cx.asarray(X), cx.asarray(X[::-1].copy()), cx.asarray(J[:2, :3])

    def reduced(x: Any, y: Any, j: Any) -> Any:
        return x.scatter_reduce(dim, j, y, reduce, include_self=own)

    wanted = reduced(x, y, j)
    assert cx.compile(reduced)(x, y, j).tolist() == wanted.tolist()


def test_many_edges_are_folded_quickly() -> None:
    """A thousand rows of sources, each kind: as PyTorch folds them."""
    rng = np.random.default_rng(3)
    source, index = rng.normal(size=(1000, 8)).astype(np.float32), rng.integers(0, 50, size=1000)
    for reduce in ("amax", "amin", "mean", "prod"):
        wanted = torch.ones(50, 8).index_reduce(0, torch.tensor(index), torch.tensor(source), reduce)
        got = cx.ones(50, 8).index_reduce(0, cx.asarray(index), cx.asarray(source), reduce)
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("reduce", ["amax", "amin", "prod"])
def test_rows_are_folded_to_the_bits_of_their_elements(reduce: str, dim: int, own: bool) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(5, 6, 5)).astype(np.float32)
    values[0], values[1, 1], values[2, 2, 2] = 0.0, -0.0, np.nan
    index = np.array([1, 3, 1, 0, 1, -1, 4])
    shape = list(values.shape)
    shape[dim] = len(index)
    source = rng.choice(values.reshape(-1), shape).astype(np.float32)
    wide = np.broadcast_to(index.reshape([-1 if axis == dim % 3 else 1 for axis in range(3)]), shape).copy()
    found = []
    for by_rows in (True, False):
        x, rows = cx.tensor(values, requires_grad=True), cx.tensor(source, requires_grad=True)
        with cx.no_grad():
            plain = x.index_reduce(dim, cx.tensor(index), rows, reduce, include_self=own)
        if by_rows:
            made = x.index_reduce(dim, cx.tensor(index), rows, reduce, include_self=own)
        else:
            made = x.scatter_reduce(dim, cx.tensor(wide), rows, reduce, include_self=own)
        made.sum().backward()
        found.append([each.numpy().tobytes() for each in (plain, made, x.grad, rows.grad)])
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
@pytest.mark.parametrize("reduce", ["sum", "prod"])
def test_many_are_folded_in_the_order_of_the_source(reduce: str, dtype: str) -> None:
    """Integers wrap around; of floats a sum has an order of its own (decision 46), so those have whole numbers."""
    rng = np.random.default_rng(0)
    spread = 1 if dtype.startswith("float") else 9
    x = (rng.integers(-9, 9, 50) if dtype != "uint8" else rng.integers(0, 200, 50)).astype(dtype)
    source = (rng.integers(1, 200, 4000) ** spread).astype(dtype)
    if dtype.startswith("float") and reduce == "prod":
        source = rng.normal(size=4000).astype(dtype)
    places = rng.integers(0, 50, 4000)
    wanted = x.copy()
    {"sum": np.add, "prod": np.multiply}[reduce].at(wanted, places, source)
    found = cx.tensor(x).scatter_reduce(0, cx.tensor(places), cx.tensor(source), reduce)
    assert found.dtype == dtype and found.numpy().tobytes() == wanted.tobytes()


def test_a_device_has_a_type_and_a_shape_a_class() -> None:
    x = cx.ones(2, 3)
    assert x.device == "cpu" and x.device.type == "cpu" and cx.Size([2, 3]) == x.shape and cx.Size([2, 3]).numel() == 6
    assert cx.finfo(x.dtype).tiny == cx.finfo(x.dtype).smallest_normal
    assert cx.is_floating_point(x) and not cx.is_complex(x) and 0 <= cx.seed() < 2**63


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda x: x.scatter_reduce(0, x.long() * 0, x, "max"), SpecError, "expected one of sum"),
        (lambda x: x.index_reduce(0, cx.asarray([0]), x[:1], "sum"), SpecError, "index_reduce: expected one of mean"),
        (lambda x: cx.quantile(x, cx.asarray([0.5, 1.5])), SpecError, "a share of 0..1"),
        (lambda x: cx.quantile(x, 0.5, interpolation="cubic"), SpecError, "expected interpolation linear"),
        (lambda x: cx.pdist(x[0]), ShapeError, r"expected x \(N, D\)"),
        (lambda x: cx.stft(x, 16), SpecError, "reflect takes"),
        (lambda x: cx.stft(x.flatten(), 8, window=cx.ones(5)), ShapeError, r"a window \(8,\), got \(5,\)"),
        (lambda x: cx.istft(x, 4), DtypeError, "expected complex numbers"),
        (lambda x: cx.linalg.multi_dot([x]), ShapeError, "at least two"),
        (lambda x: cx.complex(x, x.double()), DtypeError, "two tensors of float32"),
        (lambda x: cx.set_default_dtype("float64"), DtypeError, "always float32"),
        (lambda x: cx.gradient(x, spacing=[1.0]), SpecError, "a spacing for each axis"),
        (lambda x: x.max(1).values, AttributeError, r"x.max\(dim=1\)"),
        (lambda x: cx.take(x, cx.asarray([0])), CyxError, "flattened"),
        (lambda x: cx.trace(lambda x: x), CyxError, "expected input_shape"),
        (lambda x: x.mode(5), CyxError, "axis"),
    ],
)
def test_what_cannot_be_is_one_clear_error(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call(cx.asarray(X))


def test_infinities_and_nans_are_folded_as_in_pytorch() -> None:
    values = np.array([math.inf, -math.inf, math.nan, 1.0, -2.0, 0.0], np.float32)
    index = np.array([0, 1, 2, 0, 1, 2])
    for reduce in ("amax", "amin", "sum", "prod", "mean"):
        wanted = torch.zeros(4).scatter_reduce(0, torch.tensor(index), torch.tensor(values), reduce)
        got = cx.zeros(4).scatter_reduce(0, cx.asarray(index), cx.asarray(values), reduce)
        np.testing.assert_array_equal(got.numpy(), wanted.numpy())


@pytest.mark.parametrize("right", [False, True])
def test_many_rows_are_searched_one_by_one(right: bool) -> None:
    """A comparison of each with each would take 40 gigabytes."""
    values = np.random.default_rng(0).normal(size=(2, 2, 100_000)).astype(np.float32)
    values[1, 0, :3] = np.nan, np.inf, -np.inf
    rows = np.sort(values[0])
    found, wanted = (m.searchsorted(m.tensor(rows), m.tensor(values[1]), right=right) for m in (cx, torch))
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("right", [False, True])
def test_rows_are_searched_as_vectors_are_with_nans_behind_all_numbers(right: bool) -> None:
    rows = np.array([[-1.0, 0.0, 0.0, 2.0, np.nan], [3.0, 3.0, np.inf, np.nan, np.nan]], np.float32)
    for few in (1, 8, 80):
        given = np.resize(np.array([0.0, 3.0, np.nan, np.inf, -np.inf, 2.5, -0.0], np.float32), (2, few))
        found = cx.searchsorted(cx.tensor(rows), cx.tensor(given), right=right)
        for row, some, places in zip(rows, given, found, strict=True):
            assert places.tolist() == np.searchsorted(row, some, "right" if right else "left").tolist()
    assert cx.searchsorted(cx.zeros(0, 3), cx.zeros(0, 2)).shape == (0, 2)
    assert cx.searchsorted(cx.zeros(2, 0), cx.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("travels", [True, False])
@pytest.mark.parametrize("reduce", ["amax", "amin"])
def test_a_graph_that_stays_here_scatters_extremes_without_a_table(reduce: str, travels: bool) -> None:
    builder = Builder(travels=travels)
    x, source, places = builder.input("x", (7,)), builder.input("source", (50,)), builder.input("at", (50,), "int64")
    graph = builder.graph(cx.scatter_reduce(x, 0, places, source, reduce))
    largest = max(math.prod(shape) for shape in graph.infer(1).shapes)
    assert (largest <= 50) is not travels
    assert ("scatter" in {node.op for node in graph.nodes}) is not travels


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["amax", "amin"])
def test_compiled_extremes_have_the_bits_of_plain_ones_there_and_back(reduce: str, include_self: bool) -> None:
    """Among them NaN, infinities, zeros of both signs, several equal ones, places hit never and often."""
    dice = np.random.default_rng(4)
    source = dice.integers(-3, 3, 200).astype(np.float32) * np.float32(0.3)
    source[::17], source[5::40], source[3::50] = -0.0, np.inf, np.nan
    x, places = cx.tensor(source[90:121].copy()), cx.tensor(dice.integers(0, 29, 200))
    weights = cx.tensor(dice.standard_normal(31).astype(np.float32))

    def call(x: Any, source: Any) -> Any:
        found = cx.scatter_reduce(x, 0, places, source, reduce, include_self=include_self)
        return (cx.where(cx.isfinite(found), found * found, 0.0) * weights).sum(), found

    def step(x: Any, source: Any) -> Any:
        return cx.value_and_grad(call, argnums=(0, 1), has_aux=True)(x, source)

    parts = [
        [each.numpy().tobytes() for each in (loss, found, *grads)]
        for (loss, found), grads in (how(x, cx.tensor(source)) for how in (step, cx.compile(step)))
    ]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("dtype", ["int64", "int32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("rows", [0, 4])
def test_compiled_extremes_are_of_every_dtype(dtype: str, rows: int) -> None:
    dice = np.random.default_rng(6)
    x, source = (cx.tensor(dice.integers(-5, 5, (count, 3))).astype(dtype) for count in (6, rows))
    places = cx.tensor(dice.integers(0, 6, (rows, 3)))

    def best(x: Any, source: Any) -> Any:
        return x.scatter_reduce(0, places, source, "amax")

    plain, compiled = best(x, source), cx.compile(best)(x, source)
    assert plain.dtype == compiled.dtype and plain.tolist() == compiled.tolist()
