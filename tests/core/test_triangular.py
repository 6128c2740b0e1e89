"""A product with a factor that is zero above its diagonal leaves out what that multiplies, and no bit changes."""

from typing import Any

import numpy as np
import pytest

from cyxcore.kernels import cpu

Array = np.ndarray[Any, Any]


def product(a: Array, b: Array, ta: bool = False, tb: bool = False) -> Array:
    """Of stacks of matrices. (..., m, k) and (..., k, n), or turned -> (..., m, n)"""
    out = np.full((*a.shape[:-2], a.shape[-1 if ta else -2], b.shape[-2 if tb else -1]), 77, a.dtype)
    cpu.call("matmul", out, [a, b], {"transpose_a": ta, "transpose_b": tb})
    return out


def by_definition(a: Array, b: Array, ta: bool, tb: bool) -> Array:
    """The same, as the middle of a larger product, which nobody finds to be triangular: no sum has other terms."""
    rows, columns = a.shape[-1 if ta else -2], b.shape[-2 if tb else -1]
    more = [(0, 0)] * (a.ndim - 2)
    wide = np.pad(a, [*more, (0, 0), (0, 16)] if ta else [*more, (0, 16), (0, 0)], constant_values=1)
    long = np.pad(b, [*more, (0, 16), (0, 0)] if tb else [*more, (0, 0), (0, 16)], constant_values=1)
    return np.ascontiguousarray(product(wide, long, ta, tb)[..., :rows, :columns])


def same_bits(a: Array, b: Array) -> bool:
    """Equal byte for byte, except that a NaN is a NaN."""
    return np.where(np.isnan(a), 0, a).tobytes() == np.where(np.isnan(b), 0, b).tobytes() and bool(
        (np.isnan(a) == np.isnan(b)).all()
    )


def lower(size: int, dtype: str, seed: int) -> Array:
    return np.tril(np.random.default_rng(seed).normal(size=(2, size, size))).astype(dtype)


def full(rows: int, columns: int, dtype: str, seed: int = 9) -> Array:
    return np.random.default_rng(seed).normal(size=(2, rows, columns)).astype(dtype)


def check(triangle: Array, other: Array, right: Array) -> None:
    """triangle: (2, size, size). other: (2, size, n). right: (2, m, size)."""
    turned = np.ascontiguousarray(other.swapaxes(1, 2)), np.ascontiguousarray(right.swapaxes(1, 2))
    cases = [
        *((triangle, x, ta, tb) for ta in (False, True) for x, tb in ((other, False), (turned[0], True))),
        *((x, triangle, ta, tb) for tb in (False, True) for x, ta in ((right, False), (turned[1], True))),
    ]
    for a, b, ta, tb in cases:
        assert same_bits(product(a, b, ta, tb), by_definition(a, b, ta, tb)), (a.shape, b.shape, ta, tb)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("size", "n", "m"), [(64, 16, 3), (128, 32, 32), (80, 48, 7), (144, 20, 33), (272, 64, 40)])
def test_a_triangular_factor_changes_no_bit(isa: str, dtype: str, size: int, n: int, m: int) -> None:
    check(lower(size, dtype, size), full(size, n, dtype), full(m, size, dtype))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -0.0, 3e38, 1e-40])
def test_what_zeros_multiply_counts_where_it_is_not_finite(isa: str, value: float) -> None:
    """0 · inf is NaN: in every row of a product, not in those alone that look at it."""
    for row in (0, 1, 70, 127):
        other, right = full(128, 32, "float32"), full(32, 128, "float32")
        other[0, row, 5] = right[1, 6, row] = value
        check(lower(128, "float32", 1), other, right)
        got = product(lower(128, "float32", 1), other)
        assert np.isnan(got[0, :, 5]).sum() >= (0 if np.isfinite(value) else row)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-45, -0.0, 5.0])
def test_one_number_above_the_diagonal_counts(isa: str, value: float) -> None:
    for row, column in ((0, 127), (0, 1), (60, 73), (126, 127), (3, 64)):
        triangle = lower(128, "float32", 1)
        triangle[1, row, column] = value
        check(triangle, full(128, 32, "float32"), full(32, 128, "float32"))


def test_rows_of_nan_stay_rows_of_nan(isa: str) -> None:
    triangle = lower(128, "float32", 1)
    triangle[0, 40] = np.nan
    check(triangle, full(128, 32, "float32"), full(32, 128, "float32"))


def test_sums_that_vanish_keep_their_sign(isa: str) -> None:
    """A chain of tiny negative products comes to -0; what is added to it behind that is +0 or -0."""
    triangle = np.abs(lower(128, "float32", 1)) * np.float32(1e-30)
    other = -np.abs(full(128, 32, "float32")) * np.float32(1e-30)
    assert np.signbit(product(triangle, other)).any()
    check(triangle, other, np.ascontiguousarray(other.swapaxes(1, 2)))
    other[:, 100:] *= -1
    check(triangle, other, np.ascontiguousarray(other.swapaxes(1, 2)))
