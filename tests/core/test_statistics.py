"""The standard's statistics, searching, sorting and set functions against array-api-strict."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import searching, statistics
from cyxcore.errors import AxisError, ShapeError, SpecError
from tests.core.oracle import ALL, COMPLEX, FLOATS, NUMBERS, REAL, agree, numbers, same, signature_differences

SHAPES = [((), None), ((5,), None), ((5,), 0), ((2, 3), None), ((2, 3), -1), ((2, 3, 2), (0, 2)), ((0, 3), 0)]


@pytest.mark.parametrize("name", [*statistics.__all__, *searching.__all__])
def test_the_parameters_are_the_standards(name: str) -> None:
    assert signature_differences(name) == []


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ALL)
def test_reductions(dtype: str, shape: tuple[int, ...], axis: Any) -> None:
    x = numbers(dtype, *shape)
    for keepdims in (False, True):
        options = {"axis": axis, "keepdims": keepdims}
        for name in ("all", "any", "count_nonzero"):
            agree(name, x, **options)
        if dtype in NUMBERS:
            agree("sum", x, **options)
            agree("prod", x, **options)
        if dtype in REAL and 0 not in shape:
            agree("max", x, **options)
            agree("min", x, **options)
        if dtype in FLOATS + COMPLEX and 0 not in shape:
            agree("mean", x, **options)
        if dtype in FLOATS and 0 not in shape:
            for correction in (0.0, 0.5) if x.size > 1 else (0.0,):
                agree("var", x, correction=correction, scale=10, **options)
                agree("std", x, correction=correction, scale=10, **options)


def test_a_sum_has_the_dtype_asked_for() -> None:
    for name in ("sum", "prod", "cumulative_sum", "cumulative_prod"):
        agree(name, numbers("int8", 4), dtype="int16")
        agree(name, numbers("float32", 4), dtype="float64")


@pytest.mark.parametrize("include_initial", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((5,), None), ((2, 3), 0), ((2, 3), -1), ((0, 3), 0)])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_running_sums_and_products(dtype: str, shape: tuple[int, ...], axis: Any, include_initial: bool) -> None:
    for name in ("cumulative_sum", "cumulative_prod"):
        agree(name, numbers(dtype, *shape), axis=axis, include_initial=include_initial)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_differences(dtype: str) -> None:
    x = numbers(dtype, 3, 4)
    for options in ({}, {"axis": 0}, {"n": 2}, {"n": 0}, {"n": 5}, {"prepend": x, "append": x[:, :1]}):
        agree("diff", x, **options)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", REAL)
def test_sorting_is_stable(dtype: str, descending: bool) -> None:
    for x, axis in ((numbers(dtype, 30), -1), (numbers(dtype, 4, 5), 0), (numbers(dtype, 0), 0)):
        agree("sort", x, axis=axis, descending=descending)
        agree("argsort", x, axis=axis, descending=descending)


@pytest.mark.parametrize("dtype", REAL)
def test_searching(dtype: str) -> None:
    x = numbers(dtype, 3, 5)
    for options in ({}, {"axis": 0}, {"axis": -1, "keepdims": True}, {"keepdims": True}):
        agree("argmax", x, **options)
        agree("argmin", x, **options)
    agree("nonzero", x)
    row, places = np.sort(x[0]), np.argsort(x[0])
    for side in ("left", "right"):
        agree("searchsorted", row, x, side=side)
        agree("searchsorted", x[0], x, side=side, sorter=places)


@pytest.mark.parametrize("dtype", ALL)
def test_sets(dtype: str) -> None:
    for x in (numbers(dtype, 20), numbers(dtype, 3, 4), numbers(dtype, 1), numbers(dtype, 0)):
        for name in ("unique_counts", "unique_inverse", "unique_values"):
            agree(name, x)
        found = cx.unique_all(cx.asarray(x))
        wanted = np.unique(x, return_index=True)
        assert found.values.tolist() == wanted[0].tolist() and found.indices.tolist() == wanted[1].tolist()


def test_each_nan_is_unique() -> None:
    found = cx.unique_all(cx.asarray([np.nan, 1.0, np.nan]))
    assert found.counts.tolist() == [1, 1, 1] and found.values.shape == (3,)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("dtype", [d for d in ALL if d.startswith(("int", "uint"))])
def test_isin(dtype: str, invert: bool) -> None:
    """Against NumPy: array-api-strict 2.6 does not look at `invert`."""
    x = numbers(dtype, 3, 5)
    for among in (numbers(dtype, 4, seed=1), numbers(dtype, 0)):
        got = cx.isin(cx.asarray(x), cx.asarray(among), invert=invert)
        same(got, np.isin(x, among, invert=invert))


def test_sorting_takes_the_gradient_along() -> None:
    x = cx.tensor([3.0, 1.0, 2.0], requires_grad=True)
    (cx.sort(x) * cx.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [100.0, 1.0, 10.0]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: cx.sum(x, axis=2), AxisError, "axis: expected -2..1"),
        (lambda x: cx.cumulative_sum(x), AxisError, "cumulative_sum: expected an axis"),
        (lambda x: cx.diff(x, n=-1), ShapeError, "n >= 0"),
        (lambda x: cx.nonzero(x[0, 0]), ShapeError, "a 0-d tensor"),
        (lambda x: cx.searchsorted(x, x[0]), ShapeError, "expected a vector"),
        (lambda x: cx.searchsorted(x[0], x, side="up"), SpecError, 'side "left" or "right"'),
    ],
)
def test_a_bad_argument_is_one_clear_error(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(cx.zeros(2, 3))


@pytest.mark.parametrize("shape, axis", [((0,), None), ((3, 0), 1), ((0, 2), 0), ((0, 0), None), ((0, 3), 1)])
def test_the_mean_of_nothing_is_nan(shape: Any, axis: Any) -> None:
    x = cx.zeros(shape)
    wanted = np.full(np.zeros(shape).sum(axis=axis).shape, np.nan)
    for found in (cx.mean(x, axis=axis), cx.var(x, axis=axis), cx.std(x, axis=axis), x.mean(axis)):
        np.testing.assert_array_equal(found.numpy(), wanted)


def test_a_correction_beyond_the_count_is_nan() -> None:
    assert np.isnan(cx.var(cx.tensor([1.0, 2.0]), correction=3.0).numpy()).all()
    assert np.isnan(cx.std(cx.tensor([1.0, 2.0]), correction=2.0).numpy()).all()


@pytest.mark.parametrize(("axis", "keepdims"), [(None, False), (0, False), (-1, True), ((0, 1), True)], ids=str)
def test_the_extremes_of_masks_are_masks(axis: Any, keepdims: bool) -> None:
    array = numbers("bool", 3, 4)
    array[1] = False
    x = cx.asarray(array)
    for name in ("max", "min"):
        wanted = getattr(array, name)(axis=axis, keepdims=keepdims)
        for found in (getattr(cx, name)(x, axis=axis, keepdims=keepdims), getattr(x, name)(axis, keepdims)):
            assert found.dtype == "bool" and np.array_equal(found.numpy(), wanted)
        with pytest.raises(ShapeError, match=f"no {name} of an empty axis"):
            getattr(cx.zeros((0, 2), dtype="bool"), name)(axis=0)


def test_masks_along_an_axis_are_found_as_in_pytorch() -> None:
    torch = pytest.importorskip("torch")
    array = np.array([[False, True, False], [True, True, False]])
    for name in ("max", "min"):
        wanted = getattr(torch.tensor(array), name)(dim=0)
        found = getattr(cx.asarray(array), name)(dim=0)
        assert found.values.dtype == "bool" and found.values.tolist() == wanted.values.tolist()
        assert found.indices.tolist() == wanted.indices.tolist()


def test_two_masks_have_a_larger_and_a_smaller_one() -> None:
    a, b = np.array([[True], [False]]), np.array([True, False, True])
    for name in ("maximum", "minimum"):
        wanted = getattr(np, name)(a, b)
        method = {"maximum": "max", "minimum": "min"}[name]
        for found in (getattr(cx, name)(cx.asarray(a), cx.asarray(b)), getattr(cx.asarray(a), method)(cx.asarray(b))):
            assert found.dtype == "bool" and np.array_equal(found.numpy(), wanted)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 2)), ((3,), (3,)), ((2, 3), (3,)), ((2, 1, 3), (3, 4)), ((2, 0), (0, 2))]
)
def test_a_product_of_masks_says_whether_two_meet(shapes: Any) -> None:
    a, b = (numbers("bool", *shape) for shape in shapes)
    for found in (cx.asarray(a) @ cx.asarray(b), cx.matmul(cx.asarray(a), cx.asarray(b))):
        assert found.dtype == "bool" and np.array_equal(found.numpy(), a @ b)


def test_masks_are_combined_in_graphs_too() -> None:
    def step(x: Any) -> Any:
        mask = x > 0
        return ((mask @ mask.T).max(axis=0) == cx.maximum(mask, ~mask).min()).astype("float32")

    x = cx.asarray([[1.0, -1.0], [-1.0, -2.0]])
    assert cx.compile(step)(x).tolist() == step(x).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
def test_sorting_without_a_gradient_gives_the_bits_of_picking_in_order(dtype: str) -> None:
    """A short way of its own leads to values of which equals are alike; zeros of both signs and NaN are not."""
    dice = np.random.default_rng(4)
    plain = dice.integers(0, 50, (7, 33)).astype(dtype)
    rows = [plain, plain.T.copy(), plain[:0], plain[:, :1]]
    if dtype.startswith("float"):
        rows += [
            np.where(plain > 40, -plain * 0, plain),
            np.where(plain > 40, np.nan, plain),
            np.where(plain > 40, np.inf, plain),
        ]
    for row in rows:
        row = row.astype(dtype)
        for axis in (0, 1):
            for descending in (False, True):
                order = cx.searching.argsort(cx.tensor(row), axis=axis, descending=descending)
                expected = np.take_along_axis(row, order.numpy(), axis)
                found = cx.searching.sort(cx.tensor(row), axis=axis, descending=descending)
                assert found.numpy().tobytes() == expected.tobytes()
        different = cx.searching.unique_values(cx.tensor(row))
        assert different.numpy().tobytes() == cx.searching.unique_all(cx.tensor(row)).values.numpy().tobytes()
