"""The array API standard's statistics and utility functions: reductions, running sums, differences.

axis: an integer, a tuple of them, or None for all. Raises AxisError for an axis a tensor does not have.
"""

import functools
from typing import Any

from cyxcore.casting import in_float32
from cyxcore.dtype import dtype_name
from cyxcore.elementwise import or_method, value_of
from cyxcore.errors import AxisError, ShapeError
from cyxcore.functional.basic import concat
from cyxcore.values import Value, apply, root, sum_dtype

__all__ = "all any count_nonzero cumulative_prod cumulative_sum diff max mean min prod std sum var".split()

Axis = int | tuple[int, ...] | None


def _reduced(op: str, value: Any, axis: Axis, keepdims: bool) -> Any:
    return apply(op, value, axes=value._axes(axis), keepdims=keepdims)


def _summable(value: Any, dtype: Any) -> Any:
    return value.astype(sum_dtype(value.dtype) if dtype is None else dtype_name(dtype))


@or_method
def sum(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    """The sum, in `dtype`; without one integers are added as int64, unsigned ones as uint64."""
    return _reduced("sum", _summable(value_of("sum", x), dtype), axis, keepdims)


@in_float32
@or_method
def prod(x: Any, /, *, axis: Axis = None, dtype: Any = None, keepdims: bool = False) -> Any:
    """The product, in the dtype `sum` would have."""
    return _reduced("prod", _summable(value_of("prod", x), dtype), axis, keepdims)


@or_method
def mean(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean along axes."""
    return value_of("mean", x).mean(axis, keepdims)


@or_method
def var(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    """Squared distances from the mean, added and divided by N - correction."""
    value = value_of("var", x)
    population = value.var(axis, keepdims)
    if correction == 0:
        return population
    count = value.size // population.size if population.size else 0
    return population * (count / (count - correction) if count > correction else float("nan"))


@or_method
def std(x: Any, /, *, axis: Axis = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    """The square root of var(). The gradient of equal elements is 0."""
    return root(var(x, axis=axis, correction=correction, keepdims=keepdims))


def _or_pair(function: Any) -> Any:
    """max or min by PyTorch's places: with another tensor the one of both, with an axis (values, indices)."""
    name = function.__name__

    @functools.wraps(function)
    def call(x: Any, /, *places: Any, **options: Any) -> Any:
        if not places or isinstance(places[0], Value):
            return function(x, *places, **options)
        words = dict(zip(("dim", "keepdim"), places, strict=False))
        return getattr(value_of(name, x), name)(**(words | options))

    return call


@_or_pair
@or_method
def max(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest; NaN if there is one."""
    return value_of("max", x).max(axis, keepdims)


@_or_pair
@or_method
def min(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest; NaN if there is one."""
    return value_of("min", x).min(axis, keepdims)


@or_method
def all(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether every element is true (not zero); true of none."""
    return _reduced("all", value_of("all", x).astype("bool"), axis, keepdims)


@or_method
def any(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether some element is true (not zero); false of none."""
    return _reduced("any", value_of("any", x).astype("bool"), axis, keepdims)


@or_method
def count_nonzero(x: Any, /, *, axis: Axis = None, keepdims: bool = False) -> Any:
    """How many elements are not 0, along axes."""
    return value_of("count_nonzero", x).astype("bool").sum(axis, keepdims)


def _running(op: str, x: Any, axis: int | None, dtype: Any, include_initial: bool, initial: int) -> Any:
    value = value_of(op, x)
    if axis is None and value.ndim != 1:
        raise AxisError(f"{op}: expected an axis for shape {value.shape}")
    place = value._axis(0 if axis is None else axis)
    result = apply(op, _summable(value, dtype), axis=place)
    if not include_initial:
        return result
    one = (*result.shape[:place], 1, *result.shape[place + 1 :])
    return concat([result._constant(initial, result.dtype).broadcast_to(one), result], axis=place)


def cumulative_sum(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Any:
    """The sum of each element and those before it; with include_initial a 0 in front."""
    return _running("cumulative_sum", x, axis, dtype, include_initial, 0)


def cumulative_prod(x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False) -> Any:
    """The product of each element and those before it; with include_initial a 1 in front."""
    return _running("cumulative_prod", x, axis, dtype, include_initial, 1)


@or_method
def diff(x: Any, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Any:
    """Each element less the one before it along an axis, n times; of bools, whether they differ."""
    value = value_of("diff", x)
    place = value._axis(axis)
    if n < 0:
        raise ShapeError(f"diff: expected n >= 0, got {n}")
    if n and (prepend is not None or append is not None):
        value = concat([part for part in (prepend, value, append) if part is not None], axis=place)
    before = (slice(None),) * place
    for _ in range(n):
        later, earlier = value[(*before, slice(1, None))], value[(*before, slice(None, -1))]
        value = later != earlier if value.dtype == "bool" else later - earlier
    return value
