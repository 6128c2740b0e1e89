"""What users of NumPy and PyTorch expect beside the array API standard: the largest k, quantiles, and others.

All are made of the standard's functions, so they have gradients, and trace unless they sort. axis: as there.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

from cyxcore.attrs import is_whole
from cyxcore.dtype import INTEGERS
from cyxcore.elementwise import or_method, value_of
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.functional.basic import concat, take_along_axis, where
from cyxcore.inplace import InPlace
from cyxcore.searching import argsort, sort
from cyxcore.statistics import all as all_of
from cyxcore.values import apply, to_inexact, together

__all__ = "allclose bincount isclose logsumexp median scatter_add split topk".split()  # also in cyxcore/__init__.py

MAX_BINS = 1 << 24
FEW_BEST = 8  # that a compiled function finds one after the other; more by sorting, which is a call of its own


class TopK(NamedTuple):
    values: Any
    indices: Any


@or_method
def topk(x: Any, k: int, /, *, axis: int = -1, largest: bool = True) -> TopK:
    """(values, indices) of the k largest (or smallest) along an axis, the first of them first; equals in their order.

    Raises ShapeError when there are not k. NaNs are the largest of all, as in sorting.
    """
    value = value_of("topk", x)
    place = value._axis(axis)
    if not isinstance(k, Integral) or not 0 <= k <= value.shape[place]:
        raise ShapeError(f"topk: expected k of 0..{value.shape[place]} along axis {axis} of {value.shape}, got {k}")
    if not isinstance(value, InPlace) and (value.builder.travels or k <= FEW_BEST):
        return _topk_in_graph(value, int(k), place, largest)
    best = value._places_of_best(int(k), place, largest) if isinstance(value, InPlace) else None
    if best is None:
        order = argsort(value, axis=place, descending=largest)
        best = order[(*(slice(None),) * place, slice(0, k))]
    # Of a vector as rows of it, whose gradient is made at once: no place is taken twice.
    taken = apply("take", value, best, axis=0) if value.ndim == 1 else take_along_axis(value, best, place)
    return TopK(taken, best)


def _topk_in_graph(value: Any, k: int, place: int, largest: bool) -> TopK:
    """k times the best of what is left: a graph does not sort."""
    if not k:
        before = (slice(None),) * place
        return TopK(value[(*before, slice(0, 0))], value.astype("int64")[(*before, slice(0, 0))])
    ranked = value if largest else -value.astype("int64" if value.dtype in INTEGERS else value.dtype)
    shape = tuple(-1 if axis == place else 1 for axis in range(value.ndim))
    places = value._constant(range(value.shape[place]), "int64").reshape(*shape)
    whole = ranked.dtype in INTEGERS
    never = apply("min", ranked, axes=(place,), keepdims=True) if whole else ranked._constant(-math.inf, ranked.dtype)
    none = ranked != ranked
    taken, found = none & (places < 0), []
    first, second = (1.0, 2.0) if largest else (2.0, 1.0)  # NaNs are the largest of all
    for _ in range(k):
        best = apply("max", where(taken | none, never, ranked), axes=(place,), keepdims=True)
        rank = ((ranked == best) & ~taken).astype("float32") * first + (none & ~taken).astype("float32") * second
        at = apply("argmax", rank, axis=place).expand_dims(place)
        found.append(at)
        taken = taken | (places == at)
    order = concat(found, place)
    return TopK(take_along_axis(value, order, place), order)


@or_method
def split(x: Any, size: int | Sequence[int], /, *, axis: int = 0) -> list[Any]:
    """x in pieces along an axis: each of `size` (the last may be smaller), or of the sizes given. Raises ShapeError."""
    value = value_of("split", x)
    place = value._axis(axis)
    whole = value.shape[place]
    if is_whole(size):
        if size < 1:
            raise ShapeError(f"split: expected a size of at least 1, got {size}")
        sizes = [size] * (whole // size) + ([whole % size] if whole % size else [])
    else:
        sizes = list(size)
        if min(sizes, default=0) < 0 or sum(sizes) != whole:
            raise ShapeError(f"split: expected sizes that add up to {whole}, got {sizes}")
    before, start, parts = (slice(None),) * place, 0, []
    for each in sizes:
        parts.append(value[(*before, slice(start, start + each))])
        start += each
    return parts


@or_method
def logsumexp(x: Any, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))), without overflow."""
    value = to_inexact(value_of("logsumexp", x))
    most = value.detach().max(axis, keepdims=True)  # whose gradient, of the difference and of the sum, is 0
    most = where(_finite(most), most, 0.0)  # of infinities alone the difference would be NaN
    result = (value - most).exp().sum(axis, keepdims=True).log() + most
    return result if keepdims else result.squeeze(value._axes(axis))


def isclose(a: Any, b: Any, /, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    """|a - b| <= atol + rtol |b|, element by element; infinities are close to themselves. bool."""
    left, right = together(a, b)
    if left.dtype in INTEGERS or left.dtype == "bool":
        left, right = left.astype("float64"), right.astype("float64")
    near = (left - right).abs() <= right.abs() * rtol + atol
    ends = _finite(left) & _finite(right)
    close = (near & ends) | (left == right)
    return close | ((left != left) & (right != right)) if equal_nan else close


def allclose(a: Any, b: Any, /, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether isclose() holds everywhere."""
    return bool(all_of(isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)).item())


def _finite(x: Any) -> Any:
    return (x - x) == 0.0


@or_method
def quantile(x: Any, q: float, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """The value below which a share q of x lies, linear between neighbours; NaN where x has one.

    Raises ShapeError for no elements, SpecError for q outside of 0 … 1.
    """
    value = to_inexact(value_of("quantile", x))
    if not isinstance(q, Real) or not 0.0 <= q <= 1.0:
        raise SpecError(f"quantile: expected a share of 0..1, got {q}")
    shape = (1,) * value.ndim
    value = value.reshape(-1) if axis is None else value
    place = value._axis(0 if axis is None else axis)
    count = value.shape[place]
    if not count:
        raise ShapeError(f"quantile: expected at least one element along the axis, got {value.shape}")
    ordered = sort(value, axis=place)
    before = (slice(None),) * place

    def at(number: int) -> Any:
        return ordered[(*before, slice(number, number + 1))]

    low = math.floor(q * (count - 1))
    share = q * (count - 1) - low
    found = at(low)
    if share:
        above = at(low + 1)
        found = where(above == found, found, found + (above - found) * share)  # also of two infinities
    last = at(count - 1)  # NaNs are sorted to the end
    found = where(last != last, last, found)
    if axis is None:
        return found.reshape(shape if keepdims else ())
    return found if keepdims else found.squeeze(place)


@or_method
def median(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
    """The middle of x, or the mean of its two middles, as NumPy's (PyTorch's is the lower of both)."""
    return quantile(x, 0.5, axis=axis, keepdims=keepdims)


def bincount(x: Any, /, *, weights: Any = None, minlength: int = 0) -> Any:
    """How often each number comes in x (N,), integers from 0; or the sum of the weights (N,) there.

    Returns (max(x) + 1 or minlength,). Of tensors only: the length depends on values. Raises DtypeError, ShapeError.
    """
    value = value_of("bincount", x)
    if value.ndim != 1 or value.dtype not in INTEGERS:
        raise DtypeError(f"bincount: expected a vector of integers, got {value.dtype} {value.shape}")
    least, most = (int(value.min().item()), int(value.max().item())) if value.size else (0, -1)
    if least < 0 or max(most + 1, minlength) > MAX_BINS:
        raise ShapeError(f"bincount: expected numbers of 0..{MAX_BINS - 1}, got {least}..{max(most, minlength - 1)}")
    if weights is None and hasattr(value, "_counts"):
        return value._counts(max(most + 1, minlength))
    counted = value._constant(1, "int64").broadcast_to(value.shape) if weights is None else weights
    counted = value_of("bincount: weights", counted)
    zeros = value._constant(0, counted.dtype).broadcast_to((max(most + 1, minlength),))
    return scatter_add(zeros, value, counted)


def scatter_add(x: Any, indices: Any, src: Any, /, *, axis: int = 0) -> Any:
    """x with the rows of src added where indices (N,) point along an axis; rows of one index are added up, in order.

    src: x's shape with N along the axis. Integers are added as integers. Raises ShapeError, IndexError.
    """
    value, added = together(x, src)
    place, indices = value._axis(axis), value_of("scatter_add: indices", indices)
    if indices.ndim != 1 or added.shape != (*value.shape[:place], indices.shape[0], *value.shape[place + 1 :]):
        raise ShapeError(
            f"scatter_add: expected indices (N,) and src of {value.shape} with N along axis {axis}, "
            f"got {indices.shape} and {added.shape}"
        )
    return added_at(value, value._check_indices(indices.astype("int64"), value.shape[place]), added, place)


def added_at(value: Any, known: Any, added: Any, place: int) -> Any:
    """scatter_add of what is checked: known, int64 of 0..size of the axis - 1, and two of one dtype."""
    size = value.shape[place]
    if value.dtype in INTEGERS and place == 0 and isinstance(value, InPlace):
        return apply("scatter", value, known.reshape(-1), added.reshape(known.size, *value.shape[1:]), reduction="add")
    if value.dtype in INTEGERS:  # in three parts of 22 bits, of which float64 adds up 2^31 without rounding
        whole, total = added.astype("int64"), value
        for shift in (0, 22, 44):
            part = whole >> shift if shift == 44 else (whole >> shift) & (1 << 22) - 1
            summed = apply("take_grad", part.astype("float64"), known, axis=place, size=size)
            total = total + (summed.astype("int64") << shift).astype(value.dtype)
        return total
    return value + apply("take_grad", added, known, axis=place, size=size)
