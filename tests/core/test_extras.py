"""einsum, the largest k, quantiles and the others beside the standard: NumPy's and PyTorch's numbers and gradients."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


EQUATIONS = [
    ("ij,jk->ik", [(3, 4), (4, 5)]),
    ("ij,jk", [(3, 4), (4, 5)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("ij->ji", [(3, 4)]),
    ("ba", [(3, 4)]),
    ("ij->", [(3, 4)]),
    ("ij->i", [(3, 4)]),
    ("ii->i", [(4, 4)]),
    ("ii", [(4, 4)]),
    ("iji->j", [(4, 3, 4)]),
    ("i,j->ij", [(3,), (4,)]),
    ("i,i", [(3,), (3,)]),
    ("ij,ij->ij", [(3, 4), (3, 4)]),
    ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
    ("...i,...i->...", [(2, 1, 4), (3, 4)]),
    ("i...,i...", [(2, 3, 4), (2, 4)]),
    ("a,ab,abc->abc", [(2,), (2, 3), (2, 3, 4)]),
    ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 2)]),
    ("ij,k->i", [(3, 4), (5,)]),
    (" i j , j -> i ", [(3, 4), (4,)]),
    ("i,->i", [(3,), ()]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [floats(*shape, seed=n) for n, shape in enumerate(shapes)]
    ours = [cx.tensor(each, requires_grad=True) for each in arrays]
    theirs = [torch.tensor(each, requires_grad=True) for each in arrays]
    one, other = cx.einsum(equation, *ours), torch.einsum(equation, *theirs)
    np.testing.assert_allclose(one.numpy(), np.einsum(equation, *arrays), rtol=1e-5, atol=1e-6)
    (one * one).sum().backward()
    (other * other).sum().backward()
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), its.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_a_diagonal_is_not_mixed_with_what_lies_beside_it() -> None:
    x = np.array([[1.0, np.inf], [np.nan, 2.0]], np.float32)
    assert cx.einsum("ii->i", cx.tensor(x)).numpy().tolist() == [1.0, 2.0]


SINGLE: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "topk": (lambda x: cx.topk(x, 3).values, lambda x: torch.topk(x, 3).values),
    "least": (lambda x: cx.topk(x, 2, axis=0, largest=False).values, lambda x: torch.topk(x, 2, 0, False).values),
    "logsumexp": (lambda x: cx.logsumexp(x, axis=1), lambda x: torch.logsumexp(x, 1)),
    "logsumexp of all": (lambda x: cx.logsumexp(x * 100.0), lambda x: torch.logsumexp(x * 100.0, (0, 1))),
    "quantile": (lambda x: cx.quantile(x, 0.3, axis=0), lambda x: torch.quantile(x, 0.3, 0)),
    "median": (lambda x: cx.median(x), lambda x: torch.quantile(x, 0.5)),
    "split": (lambda x: cx.split(x, 2, axis=1)[1] * 3.0, lambda x: torch.split(x, 2, 1)[1] * 3.0),
    "sizes": (lambda x: cx.split(x, [1, 0, 4], axis=1)[2], lambda x: torch.split(x, [1, 0, 4], 1)[2]),
    "scatter_add": (
        lambda x: cx.scatter_add(x, cx.tensor([2, 0, 2]), x * 2.0),
        lambda x: x.index_add(0, torch.tensor([2, 0, 2]), x * 2.0),
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_function_and_its_gradient(name: str) -> None:
    ours, theirs = cx.tensor(floats(3, 5), requires_grad=True), torch.tensor(floats(3, 5), requires_grad=True)
    one, other = (fn(x) for fn, x in zip(SINGLE[name], (ours, theirs), strict=True))
    np.testing.assert_allclose(one.numpy(), other.detach().numpy(), rtol=1e-5, atol=1e-6)
    (one * one).sum().backward()
    (other * other).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_logsumexp_is_softmax_also_where_several_are_the_greatest() -> None:
    x = floats(40, 30)
    x[:, 7] = x[:, 3] = x.max(1)
    ours = cx.tensor(x, requires_grad=True)
    cx.logsumexp(ours, axis=1).sum().backward()
    powers = (cx.tensor(x) - cx.tensor(x).max(1, keepdims=True)).exp()
    assert ours.grad.numpy().tobytes() == (powers * (1.0 / powers.sum(1, keepdims=True))).numpy().tobytes()


@pytest.mark.parametrize("name", ["logsumexp", "logsumexp of all", "split", "sizes", "scatter_add"])
def test_a_function_traces(name: str) -> None:
    x = cx.tensor(floats(3, 5))
    assert cx.compile(SINGLE[name][0])(x).numpy().tobytes() == SINGLE[name][0](x).numpy().tobytes()


def test_numbers_that_are_close() -> None:
    a = np.array([1.0, 1.0, np.inf, np.inf, np.nan, 0.0, -np.inf])
    b = np.array([1.0 + 1e-6, 1.1, np.inf, 1.0, np.nan, 1e-9, np.inf])
    for options in ({}, {"equal_nan": True}, {"rtol": 0.2}, {"atol": 1.0}):
        assert (
            cx.isclose(cx.tensor(a), cx.tensor(b), **options).numpy().tolist() == np.isclose(a, b, **options).tolist()
        )
    assert cx.allclose(cx.zeros(0), cx.zeros(0)) and not cx.allclose(cx.tensor([1.0, 2.0]), 1.0)
    assert cx.allclose(cx.tensor([2**53, 5]), cx.tensor([2**53, 5]))


def test_numbers_are_counted_and_added() -> None:
    x, weights = np.array([3, 0, 3, 5]), floats(4)
    for options in ({}, {"minlength": 9}):
        assert cx.bincount(cx.tensor(x), **options).numpy().tolist() == np.bincount(x, **options).tolist()
    found = cx.bincount(cx.tensor(x), weights=cx.tensor(weights)).numpy()
    np.testing.assert_allclose(found, np.bincount(x, weights), rtol=1e-6)
    assert cx.bincount(cx.tensor(np.zeros(0, np.int64))).shape == (0,)
    added = cx.scatter_add(cx.zeros(2, 3, dtype="int64"), cx.tensor([2, -1]), cx.ones(2, 2, dtype="int64"), axis=1)
    assert added.numpy().tolist() == [[0, 0, 2], [0, 0, 2]]


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint64"])
def test_whole_numbers_are_added_as_such_whatever_their_size(dtype: str) -> None:
    ends = np.iinfo(dtype)
    src = np.array([ends.max, ends.max - 1, ends.min, 1, 3, 12345 % ends.max], dtype)
    places = np.array([0, 1, 2, 0, 1, 2])
    expected = np.zeros(3, dtype)
    np.add.at(expected, places, src)
    found = cx.scatter_add(cx.zeros(3, dtype=dtype), cx.tensor(places), cx.tensor(src)).numpy()
    assert found.dtype == dtype and found.tolist() == expected.tolist()


def test_many_bins_of_many_numbers_take_no_table_of_both() -> None:
    x = np.arange(200_000) * 7 % 150_001  # a table would have 30 billion places
    assert cx.bincount(cx.tensor(x)).numpy().tolist() == np.bincount(x).tolist()


def test_a_quantile_between_infinities_is_one() -> None:
    assert cx.median(cx.tensor([np.inf, np.inf])).item() == np.inf
    assert cx.quantile(cx.tensor([-np.inf, -np.inf, 1.0]), 0.25).item() == -np.inf


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 1.0])
def test_quantiles_are_those_of_numpy(q: float) -> None:
    for x in (floats(7), floats(8), np.array([1.0, np.nan, 2.0], np.float32)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.quantile(x, q)
        np.testing.assert_allclose(cx.quantile(cx.tensor(x), q).numpy(), expected, rtol=1e-6)
    assert cx.quantile(cx.tensor(floats(3, 4)), q, axis=1, keepdims=True).shape == (3, 1)


X = cx.tensor(floats(3, 4))
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: cx.topk(X, 5), "topk: expected k of 0..4 along axis -1 of (3, 4), got 5"),
    (lambda: cx.split(X, 0), "split: expected a size of at least 1, got 0"),
    (lambda: cx.split(X, [1, 1]), "split: expected sizes that add up to 3, got [1, 1]"),
    (lambda: cx.quantile(X, 1.5), "quantile: expected a share of 0..1, got 1.5"),
    (lambda: cx.quantile(X, [0.5]), "quantile: expected a share of 0..1, got [0.5]"),
    (lambda: cx.topk(X, 1.5), "topk: expected k of 0..4 along axis -1 of (3, 4), got 1.5"),
    (lambda: cx.bincount(cx.zeros(0, dtype="int64"), minlength=2**25), "bincount: expected numbers of 0..16777215"),
    (lambda: cx.bincount(cx.tensor([1]), weights=[1.0]), "bincount: weights: expected a tensor, got list"),
    (lambda: cx.scatter_add(X, [0], X), "scatter_add: indices: expected a tensor, got list"),
    (lambda: cx.median(cx.zeros(0)), "quantile: expected at least one element along the axis, got (0,)"),
    (lambda: cx.bincount(X), "bincount: expected a vector of integers, got float32 (3, 4)"),
    (lambda: cx.bincount(cx.tensor([-1])), "bincount: expected numbers of 0..16777215, got -1..-1"),
    (lambda: cx.scatter_add(X, cx.tensor([0]), X), "scatter_add: expected indices (N,) and src of (3, 4) with N along"),
    (lambda: cx.einsum("ij,jk", X), "einsum 'ij,jk': expected 2 tensors, got 1"),
    (lambda: cx.einsum("ijk", X), "einsum 'ijk': 'ijk' names 3 axes, the tensor has 2"),
    (lambda: cx.einsum("i", X), "einsum 'i': 'i' names 1 axes, the tensor has 2"),
    (lambda: cx.einsum("ij->k", X), "einsum 'ij->k': the result has what no tensor has, or a letter twice"),
    (lambda: cx.einsum("ij->ii", X), "einsum 'ij->ii': the result has what no tensor has, or a letter twice"),
    (lambda: cx.einsum("i1", X), "einsum 'i1': expected letters and at most one ... per tensor, got 'i1'"),
    (lambda: cx.einsum("ij,ij", X, X.T), "einsum 'ij,ij': expected one size of i, got 3 and 4"),
    (lambda: cx.einsum("..."), "einsum: expected at least one tensor"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_cannot_be_is_refused(wrong: Callable[[], Any], said: str) -> None:
    with pytest.raises(CyxError, match=re.escape(said)):
        wrong()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize("hole", [False, True])
def test_what_has_a_rank_is_that_of_a_stable_sort(dtype: str, hole: bool) -> None:
    """Also among equals, of which zeros of both signs are some, and beside a NaN."""
    rng = np.random.default_rng(0)
    for shape, axis in (((1,), 0), ((41,), 0), ((5, 32), 1), ((24, 3, 4), 0), ((2, 9, 3), 1)):
        values = rng.integers(0, 6, shape).astype(dtype)
        if "float" in dtype:
            values = (values - 2.0).astype(dtype) * rng.choice(np.array([1.0, -1.0], dtype), shape)
            values[(0,) * len(shape)] = np.nan if hole else 1.0
        order = np.argsort(values, axis=axis, kind="stable")
        x = cx.tensor(values)
        for k in (1, shape[axis] // 3 + 1, shape[axis]):
            found, wanted = x.kthvalue(k, axis, keepdim=True), np.take(order, [k - 1], axis)
            assert found[1].tolist() == wanted.tolist()
            assert found[0].numpy().tobytes() == np.take_along_axis(values, wanted, axis).tobytes()
        numbers = np.sum(values == values, axis=axis, keepdims=True)
        wanted = np.take_along_axis(order, np.maximum(numbers - 1, 0) // 2, axis)
        assert x.nanmedian(axis, keepdim=True)[1].tolist() == wanted.tolist()
        np.testing.assert_array_equal(x.nanmedian(), np.sort(values, None)[max((values == values).sum() - 1, 0) // 2])
        if "float" in dtype:
            for way in ("linear", "lower", "higher", "nearest", "midpoint"):
                shares = cx.tensor([0.0, 0.3, 0.5, 1.0], dtype=dtype)
                picked = x.clone().requires_grad_().quantile(shares, axis, interpolation=way).detach()
                np.testing.assert_array_equal(picked, x.quantile(shares, axis, interpolation=way))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_the_best_of_many_are_those_of_a_stable_sort(dtype: str, largest: bool) -> None:
    """Also among equals, of which zeros of both signs are some."""
    rng = np.random.default_rng(0)
    for shape, axis in (((40,), 0), ((5, 32), 1), ((24, 3, 4), 0)):
        values = (rng.integers(0, 2, shape) if dtype == "bool" else rng.integers(0, 6, shape)).astype(dtype)
        if dtype == "float32":
            values = (values - 2.0).astype(dtype) * rng.choice(np.array([1.0, -1.0], dtype), shape)
        order = np.argsort(values if not largest else -values.astype(np.float64), axis=axis, kind="stable")
        for k in (1, 3, 6):
            found = cx.topk(cx.tensor(values), k, axis=axis, largest=largest)
            wanted = np.take(order, range(k), axis)
            assert found.indices.tolist() == wanted.tolist()
            assert found.values.tolist() == np.take_along_axis(values, wanted, axis).tolist()
    numbers = rng.normal(size=(4, 40)).astype(np.float32)
    numbers[1, 7] = np.nan
    assert cx.topk(cx.tensor(numbers), 2, largest=True).indices[1, 0].item() == 7


@pytest.mark.parametrize("shape", [(7,), (0,), (5, 6), (5, 0), (4, 1, 3), (2, 3, 4, 5), (300, 310)])
def test_places_of_what_is_not_zero_are_numpys(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 3, shape)
    for array in (x, x.astype(np.float32), x > 0, x * 0, x * 0 + 1):
        found = cx.nonzero(cx.tensor(array))
        for places, wanted in zip(found, np.nonzero(array), strict=True):
            assert places.dtype == "int64" and (places.numpy() == wanted).all() and places.shape == wanted.shape


def test_whole_numbers_of_no_size_are_added_at_places() -> None:
    x, places = cx.zeros((3, 0), dtype="int64"), cx.tensor([0, 2])
    assert cx.scatter_add(x, places, cx.zeros((2, 0), dtype="int64"), axis=0).shape == (3, 0)
    assert cx.scatter_add(x, cx.zeros(0, dtype="int64"), cx.zeros((0, 0), dtype="int64"), axis=0).shape == (3, 0)
