"""The array API standard's searching, sorting and set functions.

The shape of `nonzero` and of the unique_ functions depends on values, so tensors have them and a trace
does not. Sorting is stable and takes the gradient along; NaNs come last.
"""

from typing import Any, NamedTuple

from cyxcore.dtype import COMPLEX
from cyxcore.elementwise import logical_not, or_method, value_of
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import concat, take_along_axis
from cyxcore.indexing import take
from cyxcore.values import Value, apply, together

__all__ = (  # also in cyxcore/__init__.py
    "argmax argmin argsort isin nonzero searchsorted sort unique_all unique_counts unique_inverse unique_values"
).split()


def _place(op: str, x: Any, axis: int | None, keepdims: bool) -> Any:
    value = value_of(op, x)
    if axis is not None:
        result = apply(op, value, axis=value._axis(axis))
        return result.expand_dims(value._axis(axis)) if keepdims else result
    result = apply(op, value.reshape(-1), axis=0)
    return result.reshape((1,) * value.ndim) if keepdims else result


@or_method
def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """Place of the largest, the first among equals; of the flattened x without an axis. int64."""
    return _place("argmax", x, axis, keepdims)


@or_method
def argmin(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """Place of the smallest, the first among equals; of the flattened x without an axis. int64."""
    return _place("argmin", x, axis, keepdims)


@or_method
def argsort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """The places that sort x along an axis, equals in their order (whatever `stable` says). int64."""
    value = value_of("argsort", x)
    return apply("argsort", value, axis=value._axis(axis), descending=bool(descending))


@or_method
def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """x sorted along an axis."""
    value = value_of("sort", x)
    quick = value._sorted(value._axis(axis), bool(descending)) if hasattr(value, "_sorted") else None
    if quick is not None:
        return quick
    return take_along_axis(value, argsort(x, axis=axis, descending=descending), axis)


def nonzero(x: Any, /, *, as_tuple: bool | None = None) -> Any:
    """The places of what is not zero: int64 (count,) for each axis, in row-major order; (count, axes) if as_tuple is
    False, as in PyTorch.
    """
    value = value_of("nonzero", x)
    if as_tuple is not None:
        return value.nonzero(as_tuple=as_tuple)
    if value.ndim == 0:
        raise ShapeError("nonzero: expected at least one axis, got a 0-d tensor")
    mask = value.astype("bool")
    places = apply("nonzero", mask, count=mask._how_many())
    return tuple(places[axis] for axis in range(value.ndim))


def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None, right: bool = False) -> Any:
    """Where each of x2 belongs in the sorted vector x1: before its equals ("left") or after. int64.

    x1 may be rows (…, N), for x2 (…, M). right: PyTorch's word for side="right".
    """
    if side not in ("left", "right"):
        raise SpecError(f'searchsorted: expected side "left" or "right", got {side!r}')
    side = "right" if right else side
    row = value_of("searchsorted", x1)
    if row.ndim != 1:
        if not isinstance(x2, Value) or row.ndim == 0 or row.shape[:-1] != x2.shape[:-1]:
            raise ShapeError(f"searchsorted: expected a vector, or rows for as many rows of values, got {row.shape}")
        row, wanted = together(row if sorter is None else take_along_axis(row, sorter, -1), x2)
        if getattr(getattr(row, "builder", None), "travels", False):  # a graph that does not search
            before, values = row.expand_dims(-2), wanted.expand_dims(-1)
            return (before <= values if side == "right" else before < values).astype("int64").sum(-1)
        return apply("searchsorted", row, wanted, right=side == "right")
    row, wanted = together(row if sorter is None else take(row, sorter, 0), x2)
    return apply("searchsorted", row, wanted, right=side == "right")


def isin(x1: Any, x2: Any, /, *, invert: bool = False) -> Any:
    """Of each element of x1 whether x2 has it (with invert: has it not)."""
    left, right = together(x1, x2)
    row = sort(right.reshape(-1))
    if row.size == 0:
        found = apply("less", left, left) if left.dtype not in COMPLEX else left.astype("bool") & ~left.astype("bool")
    else:
        place = apply("searchsorted", row, left, right=False)
        last = place._constant(row.size - 1, "int64")
        found = take(row, apply("minimum", place, last), 0) == left
    return logical_not(found) if invert else found


class UniqueAll(NamedTuple):
    values: Any
    indices: Any
    inverse_indices: Any
    counts: Any


class UniqueCounts(NamedTuple):
    values: Any
    counts: Any


class UniqueInverse(NamedTuple):
    values: Any
    inverse_indices: Any


def unique_all(x: Any, /) -> UniqueAll:
    """The different elements in ascending order, where each is first, which of them each element is, how often.

    Each NaN is different from every other.
    """
    flat = value_of("unique_all", x).reshape(-1)
    order = argsort(flat)
    row = take(flat, order, 0)
    first = concat([row[:1] == row[:1], row[1:] != row[:-1]]) if row.size else row.astype("bool")
    if row.size and flat.dtype != "bool":
        first = first | (row != row)  # a NaN in front too
    starts = nonzero(first)[0]
    ends = concat([starts[1:], starts._constant([row.size], "int64")]) if starts.size else starts
    group = apply("cumulative_sum", first.astype("int64"), axis=0) - 1
    inverse = take(group, argsort(order), 0).reshape(x.shape)
    return UniqueAll(take(row, starts, 0), take(order, starts, 0), inverse, ends - starts)


def unique_counts(x: Any, /) -> UniqueCounts:
    """(values, counts): the distinct values, ascending, and how often each is there."""
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Any, /) -> UniqueInverse:
    """(values, inverse_indices): the distinct values, ascending, and where each element is among them."""
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)


def unique_values(x: Any, /) -> Any:
    """The distinct values, ascending."""
    row = sort(value_of("unique_values", x).reshape(-1))
    return row[concat([row._constant([True], "bool"), row[1:] != row[:-1]])] if row.size else row
