"""PyTorch's functions that count, order and fold: quantiles and modes, histograms, reductions by index, distances.

METHODS are x.name(...) and cx.name(...), MAKERS are functions alone, as in torchrarer.py.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cyxcore import attrs, elementwise, extras, linalg, manipulation, searching, statistics, torchnames, torchrarer
from cyxcore.casting import in_float32
from cyxcore.dtype import FLOATS
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import concat, stack, take_along_axis, where
from cyxcore.functional.losses import pdist
from cyxcore.hosted import is_symbolic
from cyxcore.indexing import from_start
from cyxcore.inplace import InPlace
from cyxcore.torchwords import Picked
from cyxcore.values import Value, apply, to_inexact

Function = Callable[..., Any]

INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")


class Histogram(NamedTuple):
    """How many elements are in each part, or the sum of their weights; and where the parts begin and end."""

    hist: Any
    bin_edges: Any


# order --------------------------------------------------------------------------------------------


def mode(x: Any, dim: int = -1, keepdim: bool = False) -> Picked:
    """(the most frequent value, the smallest of several; the last place where it is) along an axis."""
    place, size = x._axis(dim), x.shape[x._axis(dim)]
    if not size:
        raise ShapeError(f"mode: expected at least one element along axis {dim}, got {x.shape}")
    order = searching.argsort(x, axis=place)
    row = take_along_axis(x, order, place)
    within = tuple(-1 if axis == place else 1 for axis in range(x.ndim))
    steps = x._constant(range(size), "int64").reshape(*within).broadcast_to(*x.shape)
    head = (*(slice(None),) * place, slice(0, 1))
    rest, before = ((*(slice(None),) * place, part) for part in (slice(1, None), slice(None, -1)))
    fresh = concat([steps[head] == 0, row[rest] != row[before]], place)
    starts = torchrarer.cummax(where(fresh, steps, 0), place).values
    best = (steps - starts).argmax(place, keepdims=True)  # the first place where a value has come most often
    found = [take_along_axis(each, best, place) for each in (row, order)]
    return Picked(*(each if keepdim else each.squeeze(place) for each in found))


def _share(q: Any) -> list[float]:
    """The shares of a number or a vector of them. Raises SpecError for what is none."""
    held: Any = q
    given = held.reshape(-1).tolist() if isinstance(q, Value) else [q]
    if not all(isinstance(share, (int, float)) and 0.0 <= share <= 1.0 for share in given):
        raise SpecError(f"quantile: expected a share of 0..1, got {q}")
    return given


def _between(low: Any, high: Any, share: Any, interpolation: str) -> Any:
    """The value a share of the way from one neighbour to the other."""
    if interpolation == "midpoint":
        return low + (high - low) * where(share > 0.0, 0.5, 0.0)
    return where(high == low, low, low + (high - low) * share)  # also of two infinities


def _quantiles(name: str, x: Any, q: Any, dim: Any, keepdim: bool, interpolation: str, skipping: bool) -> Any:
    if interpolation not in INTERPOLATIONS:
        raise SpecError(f"{name}: expected interpolation {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
    value = to_inexact(x)
    flat, place = (value.reshape(-1), 0) if dim is None else (value, value._axis(dim))
    if not flat.shape[place]:
        raise ShapeError(f"{name}: expected at least one element along the axis, got {x.shape}")
    shares = _share(q)
    quick = _quick_quantiles(flat, place, shares, interpolation)
    if quick is not None:
        return _shaped(quick, x, q, dim, keepdim)
    row = searching.sort(flat, axis=place)
    none = (row != row).astype("int64").sum(place, keepdims=True)
    count = (flat.shape[place] - none).astype("float64")  # places are exact in it
    found = []
    for share in shares:
        at = elementwise.clip(count - 1.0, 0.0, None) * share
        below = elementwise.floor(at)
        if interpolation == "nearest":
            at = below = elementwise.round(at)
        elif interpolation in ("lower", "higher"):
            at = below = below if interpolation == "lower" else elementwise.ceil(at)
        low = take_along_axis(row, below.astype("int64"), place)
        high = take_along_axis(row, elementwise.ceil(at).astype("int64"), place)
        picked = _between(low, high, (at - below).astype(value.dtype), interpolation)
        missing = count == 0.0 if skipping else none > 0
        found.append(where(missing, math.nan, picked))
    return _shaped(found, x, q, dim, keepdim)


def _quick_quantiles(flat: Any, place: int, shares: list[float], interpolation: str) -> list[Any] | None:
    """Those of numbers alone, without sorting, for each share with their axis; None where sorting is needed, or
    faster, as it is of values without their places.
    """
    if is_symbolic(flat) or not flat.requires_grad:
        return None
    ends = []
    for share in shares:
        at = (flat.shape[place] - 1.0) * share
        low, high = math.floor(at), math.ceil(at)
        whole = {"nearest": round(at), "lower": low, "higher": high}.get(interpolation)
        ends.append((low, high, at - low) if whole is None else (whole, whole, 0.0))
    ranks = sorted({rank for low, high, _ in ends for rank in (low, high)})
    places = flat._places_of_ranks(ranks, place)
    if places is None:
        return None
    row = take_along_axis(flat, places, place)
    of = {rank: torchnames.narrow(row, place, number, 1) for number, rank in enumerate(ranks)}
    return [_between(of[low], of[high], flat._constant(share, flat.dtype), interpolation) for low, high, share in ends]


def _shaped(found: list[Any], x: Any, q: Any, dim: Any, keepdim: bool) -> Any:
    """The quantiles of each share as they are given back."""
    if dim is None:
        found = [each.reshape((1,) * x.ndim if keepdim else ()) for each in found]
    elif not keepdim:
        found = [each.squeeze(x._axis(dim)) for each in found]
    return stack(found, 0) if isinstance(q, Value) and q.ndim else found[0]


@in_float32
def quantile(
    x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear", **words: Any
) -> Any:
    """The value below which a share q of x lies; of a vector q one row for each. NaN where x has one.

    interpolation: between neighbours, one of linear, lower, higher, midpoint, nearest.
    """
    dim, keepdim = words.pop("axis", dim), words.pop("keepdims", keepdim)
    if words:
        raise TypeError(f"quantile() got an unexpected keyword argument {min(words)!r}")
    return _quantiles("quantile", x, q, dim, keepdim, interpolation, skipping=False)


@in_float32
def nanquantile(x: Any, q: Any, dim: Any = None, keepdim: bool = False, *, interpolation: str = "linear") -> Any:
    """quantile() of what is a number."""
    return _quantiles("nanquantile", x, q, dim, keepdim, interpolation, skipping=True)


def nanmedian(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """median() of what is a number: of two middles the lower one; with `dim` (values, indices)."""
    flat, axis = (x.reshape(-1), 0) if dim is None else (x, x._axis(dim))
    if not flat.shape[axis]:
        raise ShapeError(f"nanmedian: expected at least one element along the axis, got {x.shape}")
    if isinstance(x, InPlace):
        numbers = flat == flat
        if statistics.all(numbers).item():
            return torchnames.median(x, dim, keepdim)
        if dim is None and statistics.any(numbers).item():
            return torchnames.median(flat[numbers])
    row, order = torchnames.sort(flat, axis)
    count = (row == row).astype("int64").sum(axis, keepdims=True)
    at = elementwise.clip(elementwise.floor_divide(count - 1, 2), 0, None)
    found = [take_along_axis(each, at, axis) for each in (row, order)]
    if dim is None:
        return found[0].reshape(())
    return Picked(*found) if keepdim else Picked(*(each.squeeze(axis) for each in found))


def histogram(
    x: Any, bins: Any, *, range: tuple[float, float] | None = None, weight: Any = None, density: bool = False
) -> Histogram:
    """(how many elements are in each part, the edges of the parts); the last part has its upper edge too.

    bins: how many equal parts of `range` (of all elements without one), or the edges. weight: of each element.
    density: divided so that the integral is 1.
    """
    flat = x.reshape(-1)
    if isinstance(bins, Value):
        edges = bins
    else:
        low, high = range or ((flat.min().item(), flat.max().item()) if flat.size else (0.0, 1.0))
        if low > high:
            raise SpecError(f"histogram: expected a range from low to high, got {range}")
        low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
        steps = [low + (high - low) * at / bins for at in _range(bins)] + [high]
        edges = x._constant(steps, x.dtype)
    count = edges.shape[0] - 1
    places = searching.searchsorted(edges, flat, side="right") - 1
    places = where(flat == edges[count], count - 1, places)
    inside = (places >= 0) & (places < count)
    given = flat * 0.0 + 1.0 if weight is None else weight.reshape(-1)
    kept = where(inside, given, 0.0)
    zeros = x._constant(0.0, x.dtype).broadcast_to(count)
    hist = extras.scatter_add(zeros, where(inside, places, 0), kept.astype(x.dtype))
    if density:
        hist = hist / hist.sum() / (edges[1:] - edges[:-1])
    return Histogram(hist, edges)


_range = range


# folding ------------------------------------------------------------------------------------------


def _ranks(places: Any) -> Any:
    """Of each element how many before it have its place."""
    order = searching.argsort(places)
    row = manipulation.take(places, order, axis=0)
    steps = places._constant(range(places.size), "int64")
    fresh = concat([steps[:1] == 0, row[1:] != row[:-1]])
    starts = manipulation.take(steps[fresh], statistics.cumulative_sum(fresh.astype("int64")) - 1, axis=0)
    return manipulation.take(steps - starts, searching.argsort(order), axis=0)


def _products(own: Any, places: Any, source: Any, keep: Any) -> Any:
    """own (where keep) times all of the source for its place, in the order of the source. Places are along axis 0."""
    result = where(keep, own, 1)
    if not result.requires_grad and not source.requires_grad:
        return apply("scatter", result, places, source, reduction="mul")
    for at, factors in _turns(places, _ranks(places), source):
        result = result * torchrarer.index_put(own * 0 + 1, (at,), factors)
    return result


def _turns(places: Any, rank: Any, source: Any) -> Iterator[tuple[Any, Any]]:
    """Places that are all different, and what the source has for them: first the first one of each place, and so on."""
    for turn in range(int(rank.max().item()) + 1 if rank.size else 0):
        chosen = rank == turn
        yield places[chosen], source[chosen]


def _extremes(own: Any, places: Any, source: Any, hit: Any, include_self: bool, largest: bool) -> Any:
    """The largest (or smallest) of own and all of the source for its place. Places are along axis 0.

    hit: whether there is a source for it. include_self: otherwise what is hit does not count itself.
    The gradient is divided evenly among equals, as PyTorch's.
    """
    bare, self_, keep = source.detach(), own.detach(), ~hit | include_self
    start = self_ if include_self else apply("scatter", self_, places, bare, reduction="none")
    best = apply("scatter", start, places, bare, reduction="max" if largest else "min")
    best = where(hit, best + 0, self_)  # of zeros that of no sign, as in a graph
    if best.dtype not in FLOATS or not (best.is_symbolic or own.requires_grad or source.requires_grad):
        return best
    ours = (self_ == best) & (keep | ~hit)
    theirs = bare == manipulation.take(best, places, axis=0)
    equals = extras.scatter_add(ours.astype(own.dtype), places, theirs.astype(own.dtype))
    share = 1.0 / where(equals == 0.0, 1.0, equals)
    # Zeros, which have the gradients: the value itself is not rounded by what the shares add up to.
    moved = where(theirs & elementwise.isfinite(bare), source - bare, 0.0) * manipulation.take(share, places, axis=0)
    kept = where(ours & elementwise.isfinite(self_), own - self_, 0.0) * share
    # What has no source is itself: + 0 would take a zero its sign.
    return where(hit, best + extras.scatter_add(kept, places, moved), own)


def _dense(x: Any, place: int, index: Any, src: Any, reduce: str, include_self: bool) -> Any:
    """scatter_reduce in a graph: every place looks at every element of its line."""
    size, rows = x.shape[place], index.shape[place]
    first, source = (manipulation.moveaxis(each, place, 0) for each in (x, src))
    at = manipulation.moveaxis(index.astype("int64"), place, 0)
    kept = first[tuple(slice(0, n) for n in (size, *at.shape[1:]))]
    neutral = {"prod": 1.0, "amax": -math.inf, "amin": math.inf}[reduce]
    lines = x._constant(range(size), "int64").reshape(size, *(1,) * at.ndim)
    here = at.expand_dims(0).broadcast_to(size, rows, *at.shape[1:]) == lines
    table = where(here, source.expand_dims(0), x._constant(neutral, x.dtype))
    if include_self:
        table = concat([table, kept.expand_dims(1)], 1)
    if reduce == "prod":
        found = table[:, -1] if include_self else table[:, 0]
        for row in range(0 if include_self else 1, rows):  # in the order in which tensors are multiplied
            found = found * table[:, row]
    else:
        found = table.max(1) if reduce == "amax" else table.min(1)
    # Which of several zeros is found depends on their order: it becomes that of no sign, as of tensors.
    found = where(here.astype("int64").sum(1) > 0, found if reduce == "prod" else found + 0, kept)
    for axis in range(1, at.ndim):  # what the index does not reach stays
        if at.shape[axis] < first.shape[axis]:
            rest = first[(*(slice(0, n) for n in found.shape[:axis]), slice(at.shape[axis], None))]
            found = concat([found, rest], axis)
    return manipulation.moveaxis(found, 0, place)


def scatter_reduce(x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True) -> Any:
    """x with src folded in at the places along an axis that `index` names: by "sum", "mean", "prod", "amax", "amin".

    include_self: what x has there is folded in too. A graph holds (places x sources) numbers for prod, and one that
    travels, or runs on a GPU, for amax and amin as well.
    """
    if reduce not in _REDUCTIONS:
        raise SpecError(f"scatter_reduce: expected one of {', '.join(_REDUCTIONS)}, got {reduce!r}")
    flat = torchnames._flat_places("scatter_reduce", x, dim, index)
    whole = torchnames._source("scatter_reduce", x, index, src)
    builders = {each.builder for each in (x, index, whole) if each.is_symbolic}
    if builders and (reduce == "prod" or (reduce not in ("sum", "mean") and any(each.travels for each in builders))):
        return _dense(x, x._axis(dim), index, whole, reduce, include_self)
    source, own = whole.reshape(-1), x.reshape(-1)
    if reduce == "sum" and include_self:
        return extras.scatter_add(own, flat, source).reshape(*x.shape)
    ones = source._constant(1.0, "float32").broadcast_to(source.size)
    hit = extras.scatter_add(x._constant(0.0, "float32").broadcast_to(x.size), flat, ones)
    counts = hit.astype(x.dtype) if x.dtype in FLOATS else hit.astype("int64")
    if reduce in ("sum", "mean"):
        start = own if include_self else where(counts > 0, 0, own)
        total = extras.scatter_add(start, flat, source)
        among = where(counts > 0, counts + (1 if include_self else 0), 1)
        exact = elementwise.floor_divide if x.dtype not in FLOATS else elementwise.divide
        return (exact(total, among) if reduce == "mean" else total).astype(x.dtype).reshape(*x.shape)
    if not source.size:
        return x.copy()
    if reduce == "prod":
        found = _products(own, flat, source, (counts == 0) | include_self)
    else:
        found = _extremes(own, flat, source, counts > 0, include_self, reduce == "amax")
    return found.reshape(*x.shape)


_REDUCTIONS = ("sum", "mean", "prod", "amax", "amin")


def index_reduce(x: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Any:
    """x with rows of `source` folded in where `index` (N,) points along an axis: by prod, mean, amax, amin."""
    if reduce not in _REDUCTIONS[1:]:
        raise SpecError(f"index_reduce: expected one of {', '.join(_REDUCTIONS[1:])}, got {reduce!r}")
    place = x._axis(dim)
    if reduce != "mean" and x.ndim > 1 and all(isinstance(each, InPlace) for each in (x, index, source)):
        beside = (*x.shape[:place], *index.shape, *x.shape[place + 1 :])
        if source.size and index.ndim == 1 and source.shape == beside and source.dtype == x.dtype:
            return _rows_folded(x, place, index, source, reduce, include_self)
    shape = tuple(-1 if axis == place else 1 for axis in range(x.ndim))
    wide = index.reshape(*shape).broadcast_to(*source.shape)
    return scatter_reduce(x, place, wide, source, reduce, include_self=include_self)


def _rows_folded(x: Any, place: int, index: Any, source: Any, reduce: str, include_self: bool) -> Any:
    """index_reduce of tensors by whole rows."""
    own, rows = (manipulation.moveaxis(each, place, 0) for each in (x, source))
    places = from_start(index.astype("int64"), own.shape[0])
    hit = (extras.bincount(places, minlength=own.shape[0]) > 0).reshape(-1, *(1,) * (x.ndim - 1))
    if reduce == "prod":
        found = _products(own, places, rows, ~hit | include_self)
    else:
        found = _extremes(own, places, rows, hit, include_self, reduce == "amax")
    return manipulation.moveaxis(found, 0, place)


# distances and differences ------------------------------------------------------------------------


def gradient(x: Any, *, spacing: Any = 1.0, dim: Any = None, edge_order: int = 1) -> tuple[Any, ...]:
    """The slopes along axes (all without `dim`), by central differences; at the ends by those of one side.

    spacing: between neighbours, a number or one for each axis. edge_order: 1.
    """
    axes = range(x.ndim) if dim is None else attrs.several(dim)
    widths = [spacing] * len(axes) if isinstance(spacing, (int, float)) else list(spacing)
    if len(widths) != len(axes) or edge_order != 1 or not all(isinstance(h, (int, float)) for h in widths):
        raise SpecError(f"gradient: expected a spacing for each axis and edge_order 1, got {spacing} and {edge_order}")
    found = []
    for axis, h in zip(axes, widths, strict=True):
        place, size = x._axis(axis), x.shape[x._axis(axis)]
        if size < 2:
            raise ShapeError(f"gradient: expected at least 2 elements along axis {axis}, got {x.shape}")
        steps = statistics.diff(to_inexact(x), axis=place) / float(h)
        first, last = (torchnames.narrow(steps, place, at, 1) for at in (0, size - 2))
        inner = torchnames.narrow(steps, place, 0, size - 2) + torchnames.narrow(steps, place, 1, size - 2)
        found.append(concat([first, inner * 0.5, last], place))
    return tuple(found)


def cumulative_trapezoid(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    """The integrals along an axis up to each place but the first, by trapezoids, at places x or dx apart."""
    place, size = y._axis(dim), y.shape[y._axis(dim)]
    left, right = torchnames.narrow(y, place, 0, size - 1), torchnames.narrow(y, place, 1, size - 1)
    widths: Any = dx if x is None else statistics.diff(x, axis=-1 if x.ndim == 1 else place)
    if x is not None and x.ndim == 1:
        widths = widths.reshape(*(-1 if axis == place else 1 for axis in range(y.ndim)))
    return statistics.cumulative_sum((left + right) * 0.5 * widths, axis=place)


def renorm(x: Any, p: float, dim: int, maxnorm: float) -> Any:
    """x with every part along an axis whose p-norm is above maxnorm made smaller to have that one."""
    place = x._axis(dim)
    others = tuple(axis for axis in range(x.ndim) if axis != place)
    size = linalg.vector_norm(x, axis=others, keepdims=True, ord=float(p))
    return x * where(size > maxnorm, maxnorm / (size + 1e-7), 1.0)


def vander(x: Any, N: int | None = None, *, increasing: bool = False) -> Any:  # noqa: N803 - PyTorch's
    """(…, N): the powers of each element, the highest first unless increasing."""
    count = x.shape[-1] if N is None else N
    powers = [elementwise.pow(x, power) if power else x * 0 + 1 for power in range(count)]
    return stack(powers if increasing else powers[::-1], -1)


# places -------------------------------------------------------------------------------------------


def put(x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """x with the elements of `source` at the places of the flattened x that `index` names; accumulate: added."""
    return torchrarer.index_put(x.reshape(-1), (index.reshape(-1),), source.reshape(-1), accumulate).reshape(*x.shape)


def unravel_index(indices: Any, shape: Any) -> tuple[Any, ...]:
    """Of places in a flattened tensor of a shape the place along each axis."""
    found: list[Any] = []
    rest = indices
    for size in reversed(attrs.several(shape)):
        found.append(elementwise.remainder(rest, size))
        rest = elementwise.floor_divide(rest, size)
    return tuple(reversed(found))


class Frexp(NamedTuple):
    """x = mantissa * 2 ** exponent, with 1/2 <= |mantissa| < 1."""

    mantissa: Any
    exponent: Any


def frexp(x: Any) -> Frexp:
    """(mantissa, exponent)."""
    size = elementwise.abs(x)
    plain = (size > 0.0) & elementwise.isfinite(size)
    power = elementwise.floor(elementwise.log2(where(plain, size, 1.0))) + 1.0
    part = where(plain, x / elementwise.pow(x._constant(2.0, x.dtype), power), x)
    low, high = plain & (elementwise.abs(part) < 0.5), plain & (elementwise.abs(part) >= 1.0)  # a logarithm is rounded
    part = where(low, part * 2.0, where(high, part * 0.5, part))
    return Frexp(part, (where(plain, power, 0.0) - low.astype(x.dtype) + high.astype(x.dtype)).astype("int32"))


_OWN = (
    mode, quantile, nanquantile, nanmedian, histogram, scatter_reduce, index_reduce, renorm, put, frexp,
)  # fmt: skip
METHODS: dict[str, Function] = {function.__name__: function for function in _OWN}
MAKERS = (pdist, gradient, cumulative_trapezoid, vander, unravel_index)


def __getattr__(name: str) -> Any:
    """cx.name of what is first of all a method."""
    if name not in METHODS:
        raise AttributeError(f"cyxcore.torchstatistics has no {name!r}")
    return METHODS[name]


for _name, _method in METHODS.items():
    setattr(Value, _name, _method)
