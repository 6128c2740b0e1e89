"""Methods and functions by PyTorch's names, beside those of the array API standard: each over the function there is.

`name` of METHODS is x.name(...) of tensors and symbols; of FUNCTIONS it is cx.name(...). docs/tutorials/pytorch.md says
where both libraries mean different things by one name, and which of them is meant here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore import elementwise, extras, functional, linalg, manipulation, searching, statistics
from cyxcore.casting import as_given, in_float32, lowered
from cyxcore.dtype import COMPLEX, FLOATS, INTEGERS, PYTORCHS, dtype_name, finfo
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.functional.basic import concat, stack, take_along_axis, where
from cyxcore.hosted import is_symbolic, written
from cyxcore.indexing import from_start
from cyxcore.inplace import InPlace
from cyxcore.torchwords import Picked, in_words, worded
from cyxcore.values import Value, apply, composed, to_inexact, together

Function = Callable[..., Any]


def _sizes(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes given one by one, or as one tuple."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


# shapes -------------------------------------------------------------------------------------------


def view(x: Any, *shape: Any, dtype: Any = None) -> Any:
    """x.reshape(); a view where the memory allows it. Of a dtype: the same bytes read as elements of it, no gradient.

    Elements of another size make the last axis longer or shorter. Raises DtypeError for such a view in a graph.
    """
    if dtype is None and len(shape) == 1 and (isinstance(shape[0], (str, type)) or hasattr(shape[0], "kind")):
        dtype, shape = shape[0], ()  # NumPy's dtypes have a kind
    if dtype is None:
        return x.reshape(*shape)
    wanted = dtype_name(dtype)
    if shape or not isinstance(x, InPlace):
        what = f"sizes beside {wanted}" if shape else f"no memory to read as {wanted} in a graph"
        raise DtypeError(f"view: expected a dtype alone, of a tensor; got {what}; convert elements with astype")
    return x._read_as(wanted)  # type: ignore[attr-defined]


def unsqueeze(x: Any, dim: int) -> Any:
    """x with an axis of size 1 more, at `dim`."""
    return x.expand_dims(dim)


def expand(x: Any, *sizes: Any) -> Any:
    """x stretched to sizes; -1 keeps one. Raises ShapeError."""
    wanted = _sizes(sizes)
    new = len(wanted) - x.ndim
    if new < 0 or -1 in wanted[:new]:
        raise ShapeError(f"expand: expected sizes for the {x.ndim} axes of {x.shape}, got {wanted}")
    kept = (own if size == -1 else size for size, own in zip(wanted[new:], x.shape, strict=True))
    return x.broadcast_to(*wanted[:new], *kept)


def repeat(x: Any, *counts: Any) -> Any:
    """x as a tile, laid so often along each axis (NumPy's tile; its repeat is repeat_interleave)."""
    wanted = _sizes(counts)
    if len(wanted) < x.ndim:
        raise ShapeError(f"repeat: expected a count for each of the {x.ndim} axes of {x.shape}, got {wanted}")
    return manipulation.tile(x, wanted)


def repeat_interleave(x: Any, repeats: Any, dim: int | None = None) -> Any:
    """Each element along an axis (of the flattened x without one) `repeats` times."""
    return manipulation.repeat(x, repeats, axis=dim)


def unflatten(x: Any, dim: int, sizes: Sequence[int]) -> Any:
    """An axis as several; one of the sizes may be -1."""
    place = x._axis(dim)
    wanted = list(sizes)
    if -1 in wanted:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = x.shape[place] // known if known else 0
    return x.reshape(*x.shape[:place], *wanted, *x.shape[place + 1 :])


def t(x: Any) -> Any:
    """A matrix transposed; a vector as it is."""
    if x.ndim > 2:
        raise ShapeError(f"t: expected at most two axes, got {x.shape}; use mT or transpose")
    return x.permute(*reversed(range(x.ndim)))


def roll(x: Any, shifts: Any, dims: Any = None) -> Any:
    """x moved on by `shifts` places along axes, what leaves at the end coming in at the front."""
    return manipulation.roll(x, shifts, axis=dims)


def flip(x: Any, *axes: Any, dims: Any = None) -> Any:
    """x backwards along axes."""
    return manipulation.flip(x, axis=_sizes(axes) if axes else dims if dims is None else tuple(dims))


def view_as(x: Any, other: Any) -> Any:
    """x in the shape of another tensor."""
    return x.reshape(*other.shape)


def expand_as(x: Any, other: Any) -> Any:
    """x stretched to the shape of another tensor."""
    return x.broadcast_to(*other.shape)


def chunk(x: Any, chunks: int, dim: int = 0) -> list[Any]:
    """At most `chunks` pieces along an axis, all but the last of one size."""
    if chunks < 1:
        raise SpecError(f"chunk: expected at least 1 piece, got {chunks}")
    return extras.split(x, max(math.ceil(x.shape[x._axis(dim)] / chunks), 1), axis=dim)


def split(x: Any, size: int | Sequence[int], dim: int = 0) -> list[Any]:
    """x in pieces along an axis: each of `size`, or of the sizes given."""
    return extras.split(x, size, axis=dim)


def unbind(x: Any, dim: int = 0) -> tuple[Any, ...]:
    """The parts of x along an axis, without it."""
    return manipulation.unstack(x, axis=dim)


def narrow(x: Any, dim: int, start: int, length: int) -> Any:
    """`length` places of an axis from `start` on. Raises IndexError where there are not as many."""
    place = x._axis(dim)
    first = start + x.shape[place] if start < 0 else start
    if not 0 <= first <= first + length <= x.shape[place]:
        raise IndexError(f"narrow: {length} places from {start} are not in axis {dim} of {x.shape}")
    return x[(*(slice(None),) * place, slice(first, first + length))]


def select(x: Any, dim: int, index: int) -> Any:
    """One place of an axis, without it."""
    return x[(*(slice(None),) * x._axis(dim), index)]


def unfold(x: Any, dimension: int, size: int, step: int) -> Any:
    """Windows of an axis, each of `size` and `step` after the one before, as a last axis."""
    place = x._axis(dimension)
    if not 1 <= size <= x.shape[place] or step < 1:
        raise ShapeError(f"unfold: expected a size of 1..{x.shape[place]} and a step from 1 on, got {size} and {step}")
    starts = range(0, x.shape[place] - size + 1, step)
    places = x._constant(starts, "int64").reshape(-1, 1) + x._constant(range(size), "int64")
    windows = apply("take", x, places.reshape(-1), axis=place)
    apart = windows.reshape(*x.shape[:place], len(starts), size, *x.shape[place + 1 :])
    return manipulation.moveaxis(apart, place + 1, -1)


# choosing -----------------------------------------------------------------------------------------


def gather(x: Any, dim: int, index: Any) -> Any:
    """x at the places along an axis that `index` names. index: integers, no longer than x along the other axes."""
    place = x._axis(dim)
    _no_longer("gather", x, place, index)
    part = x[tuple(slice(None) if at == place else slice(0, index.shape[at]) for at in range(x.ndim))]
    return take_along_axis(part, index, place)


def take_along_dim(x: Any, indices: Any, dim: int | None = None) -> Any:
    """The elements of x that each index names along an axis (of the flattened x without one); the others broadcast."""
    return take_along_axis(x.reshape(-1), indices.reshape(-1), 0) if dim is None else take_along_axis(x, indices, dim)


def _no_longer(name: str, x: Any, place: int, index: Any) -> None:
    if index.ndim != x.ndim or any(index.shape[at] > x.shape[at] for at in range(x.ndim) if at != place):
        raise ShapeError(f"{name}: expected an index no longer than x {x.shape} beside axis {place}, got {index.shape}")


def _flat_places(name: str, x: Any, dim: int, index: Any) -> Any:
    """Where each place that `index` names is in the flattened x."""
    place = x._axis(dim)
    _no_longer(name, x, place, index)
    flat: Any = from_start(index.astype("int64"), x.shape[place])
    if math.prod(x.shape[place + 1 :]) > 1:
        flat = flat * math.prod(x.shape[place + 1 :])
    beside: Any = None  # of the other axes, whose places are small until they meet the index
    for axis, count in enumerate(index.shape):
        if axis != place:
            along = tuple(-1 if at == axis else 1 for at in range(x.ndim))
            far = math.prod(x.shape[axis + 1 :])
            line = x._constant(range(0, count * far, far), "int64").reshape(*along)
            beside = line if beside is None else beside + line
    return (flat if beside is None else flat + beside).reshape(-1)


def _source(name: str, x: Any, index: Any, src: Any) -> Any:
    """Of a source the part an index stands for, in x's dtype."""
    if not isinstance(src, Value):
        return x._constant(src, x.dtype).broadcast_to(*index.shape)
    if src.ndim != index.ndim or any(n > own for n, own in zip(index.shape, src.shape, strict=True)):
        raise ShapeError(f"{name}: expected a source of at least {index.shape}, got {src.shape}")
    return src[tuple(slice(0, n) for n in index.shape)].astype(x.dtype)


def scatter_add(x: Any, dim: int, index: Any, src: Any) -> Any:
    """x with src added at the places along an axis that `index` names; of one place all are added up."""
    flat = _flat_places("scatter_add", x, dim, index)
    source = _source("scatter_add", x, index, src).reshape(-1)
    return extras.added_at(x.reshape(-1), flat, source, 0).reshape(*x.shape)


def scatter(x: Any, dim: int, index: Any, src: Any = None, value: Any = None) -> Any:
    """x with src (a tensor, or one number) at the places along an axis that `index` names.

    Of several for one place the last one stays. In a graph that travels src is a number: it has no order of writing.
    """
    given = value if src is None else src
    flat = _flat_places("scatter", x, dim, index)
    plain = isinstance(x, InPlace) and isinstance(index, InPlace)
    if not isinstance(given, Value) and plain:
        some, none = (x._constant(one, "bool") for one in (True, False))
        parts = none.broadcast_to(x.size), flat, some.broadcast_to(*flat.shape)
        hit = apply("scatter", *parts, reduction="none").reshape(*x.shape)
        return where(hit, x._constant(given, x.dtype), x)
    if not isinstance(given, Value):
        ones, none = (x._constant(1.0 if one else 0.0, "float32") for one in (True, False))
        hit = extras.added_at(none.broadcast_to(x.size), flat, ones.broadcast_to(*flat.shape), 0).reshape(*x.shape) > 0
        return where(hit, x._constant(given, x.dtype), x)
    source = _source("scatter", x, index, given).reshape(-1)
    if plain and isinstance(given, InPlace) and not (x.requires_grad or source.requires_grad):
        return apply("scatter", x.reshape(-1), flat, source, reduction="none").reshape(*x.shape)
    return written(x.reshape(-1), flat, source).reshape(*x.shape)


def index_select(x: Any, dim: int, index: Any) -> Any:
    """The places of an axis that `index` (N,) names."""
    return manipulation.take(x, index, axis=dim)


def index_add(x: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Any:
    """x with rows of `source` added where `index` (N,) points along an axis."""
    return extras.scatter_add(x, index, source if alpha == 1 else source * alpha, axis=dim)


def index_fill(x: Any, dim: int, index: Any, value: float) -> Any:
    """x with one number at the places of an axis that `index` (N,) names."""
    place = x._axis(dim)
    size = x.shape[place]
    named = scatter(x._constant(False, "bool").broadcast_to(size), 0, index, True)
    named = named.reshape(*(size if at == place else 1 for at in range(x.ndim)))
    return where(named, x._constant(value, x.dtype), x)


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """x with `value` where the mask is true."""
    return where(mask.astype("bool"), value if isinstance(value, Value) else x._constant(value, x.dtype), x)


def masked_select(x: Any, mask: Any) -> Any:
    """The elements of x where the mask is true, as a vector."""
    both = manipulation.broadcast_arrays(x, mask)
    return both[0][both[1]]


def where_(x: Any, condition: Any, other: Any) -> Any:
    """x where the condition holds, else `other`."""
    return where(condition, x, other)


def nonzero(x: Any, as_tuple: bool = False) -> Any:
    """The places that are not 0: (how many, axes), or a vector for each axis."""
    found = searching.nonzero(x)
    return found if as_tuple else stack(found, axis=1)


def unique(
    x: Any, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The different values in ascending order; with them where each element of x is among these, and how many.

    sorted: they always are. dim: the different parts along an axis, in the order of their elements.
    """
    if dim is not None:
        return _unique_parts(x, x._axis(dim), return_inverse, return_counts)
    if not return_inverse and not return_counts:
        return searching.unique_values(x)
    every = searching.unique_all(x)
    order = searching.argsort(every.values)
    found = [every.values[order]]
    if return_inverse:
        found.append(searching.argsort(order)[every.inverse_indices.reshape(-1)].reshape(*x.shape))
    if return_counts:
        found.append(every.counts[order])
    return found[0] if len(found) == 1 else tuple(found)


def _unique_parts(x: Any, place: int, return_inverse: bool, return_counts: bool) -> Any:
    rows = manipulation.moveaxis(x, place, 0)
    flat = rows.reshape(rows.shape[0], -1)
    order = x._constant(range(flat.shape[0]), "int64").reshape(-1)
    for column in reversed(range(flat.shape[1])):  # stable: the first column decides last
        order = manipulation.take(order, searching.argsort(manipulation.take(flat[:, column], order, axis=0)), axis=0)
    lines = manipulation.take(flat, order, axis=0)
    fresh = concat([x._constant([True], "bool")[: lines.shape[0]], statistics.any(lines[1:] != lines[:-1], axis=1)])
    found = [manipulation.moveaxis(manipulation.take(rows, order[fresh], axis=0), 0, place)]
    group = statistics.cumulative_sum(fresh.astype("int64"), axis=0) - 1
    if return_inverse:
        found.append(manipulation.take(group, searching.argsort(order), axis=0))
    if return_counts:
        found.append(extras.bincount(group, minlength=found[0].shape[place]))
    return found[0] if len(found) == 1 else tuple(found)


def sort(x: Any, dim: int = -1, descending: bool = False, *, stable: bool = True) -> Picked:
    """(values, indices) along an axis; equals keep their order, whatever `stable` says."""
    order = searching.argsort(x, axis=dim, descending=descending)
    return Picked(take_along_axis(x, order, x._axis(dim)), order)


def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """What would sort x along an axis."""
    return searching.argsort(x, axis=dim, descending=descending)


def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """(values, indices) of the k largest or smallest along an axis, in their order whatever `sorted` says."""
    return extras.topk(x, k, axis=dim, largest=largest)


def of_rank(x: Any, rank: int, axis: int, nan: bool = False) -> Picked:
    """(values, indices) of what sorting puts at a rank along an axis, which stays. nan: a NaN where there is one."""
    place = None if is_symbolic(x) else x._places_of_ranks((rank,), axis)
    if place is not None:
        return Picked(take_along_axis(x, place, axis), place)
    ordered = sort(x, axis)
    found = [narrow(each, axis, rank, 1) for each in ordered]
    if nan:  # they are the largest
        last = [narrow(each, axis, x.shape[axis] - 1, 1) for each in ordered]
        none = last[0] != last[0]
        found = [where(none, one, each) for one, each in zip(last, found, strict=True)]
    return Picked(*found)


def median(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle of x, of two middles the lower one; with `dim` (values, indices). cx.median(x, axis=) is NumPy's."""
    flat, axis = (x.reshape(-1), 0) if dim is None else (x, x._axis(dim))
    count = flat.shape[axis]
    if not count:
        raise ShapeError(f"median: expected at least one element along the axis, got {x.shape}")
    found = of_rank(flat, (count - 1) // 2, axis, x.dtype in FLOATS)
    if dim is None:
        return found[0].reshape(())
    return Picked(*found) if keepdim else Picked(*(each.squeeze(axis) for each in found))


# reductions by PyTorch's words --------------------------------------------------------------------


def _reduction(name: str, function: Function) -> Function:
    """A reduction of the standard as a method that takes its axis by place and by either word."""

    def method(x: Any, axis: Any = None, keepdims: bool = False, *, dtype: Any = None, **words: Any) -> Any:
        axis, keepdims = in_words(name, axis, keepdims, words)
        return function(x, axis=axis, keepdims=keepdims, **({} if dtype is None else {"dtype": dtype}))

    method.__doc__ = function.__doc__
    return method


def amax(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest along axes, without the places."""
    return x.max(dim, keepdim)


def amin(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest along axes, without the places."""
    return x.min(dim, keepdim)


def cumsum(x: Any, dim: int | None = None, dtype: Any = None, *, axis: int | None = None) -> Any:
    """The sums of all elements up to each one along an axis."""
    return statistics.cumulative_sum(x, axis=dim if axis is None else axis, dtype=dtype)


def cumprod(x: Any, dim: int | None = None, dtype: Any = None, *, axis: int | None = None) -> Any:
    """The products of all elements up to each one along an axis."""
    return statistics.cumulative_prod(x, axis=dim if axis is None else axis, dtype=dtype)


def norm(x: Any, p: float | str = 2, dim: Any = None, keepdim: bool = False) -> Any:
    """The p-norm of all elements, or along axes; "fro" is the 2-norm."""
    value = to_inexact(x)
    return composed(linalg._vector_norm, (value,), (2.0 if p == "fro" else float(p), value._axes(dim), keepdim))


def dist(x: Any, other: Any, p: float = 2) -> Any:
    """The p-norm of x - other."""
    return norm(x - other, p)


@in_float32
def cdist(x1: Any, x2: Any, p: float = 2.0, compute_mode: str | None = "use_mm_for_euclid_dist_if_necessary") -> Any:
    """The p-norm of each row of x1 (..., P, M) less each of x2 (..., R, M). Returns (..., P, R).

    compute_mode, of p = 2: whether it is made of a product of matrices, which takes a fraction of the time, but whose
    squares are off by some units in the last place of the rows' own: "use_mm_for_euclid_dist", with more than 25 rows
    on a side ("..._if_necessary"), or "donot_use_mm_for_euclid_dist".
    """
    if compute_mode not in (None, *_DISTANCES):
        raise SpecError(f"cdist: expected compute_mode None or one of {', '.join(_DISTANCES)}, got {compute_mode!r}")
    many = x1.shape[-2] > MANY_ROWS or x2.shape[-2] > MANY_ROWS
    product = _DISTANCES[0 if compute_mode is None else _DISTANCES.index(compute_mode)]
    by_product = p == 2.0 and (product == _DISTANCES[1] or product == _DISTANCES[0] and many)
    made = _cdist_by_product if by_product else _cdist
    return composed(made, (to_inexact(x1), to_inexact(x2)), () if by_product else (float(p),), x1.size * x2.shape[-2])


_DISTANCES = ("use_mm_for_euclid_dist_if_necessary", "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist")
MANY_ROWS = 25


def _cdist(x1: Any, x2: Any, p: float) -> Any:
    return norm(x1.expand_dims(-2) - x2.expand_dims(-3), p, dim=-1)


def _cdist_by_product(x1: Any, x2: Any) -> Any:
    """By |a - b|² = |a|² + |b|² - 2 a b; where that is no more than 0 the gradient is 0."""
    squares = x1.square().sum(-1, keepdims=True) + x2.square().sum(-1).expand_dims(-2)
    found = squares - (x1 * 2.0) @ x2.mT
    near = found <= 0.0
    return where(near, 0.0, where(near, 1.0, found).sqrt())


# arithmetic ---------------------------------------------------------------------------------------


def add(x: Any, other: Any, *, alpha: float = 1) -> Any:
    """x + alpha * other."""
    return x + (other if alpha == 1 else other * alpha)


def sub(x: Any, other: Any, *, alpha: float = 1) -> Any:
    """x - alpha * other."""
    return x - (other if alpha == 1 else other * alpha)


def div(x: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """x / other, as it is or rounded: "floor", "trunc"."""
    rounds = {None: lambda v: v, "floor": elementwise.floor, "trunc": elementwise.trunc}
    if rounding_mode not in rounds:
        raise SpecError(f"div: expected rounding_mode floor, trunc or None, got {rounding_mode!r}")
    if rounding_mode is None or not _whole(x, other):
        return rounds[rounding_mode](x / other)
    if not isinstance(x, InPlace):  # a graph divides floats alone
        return rounds[rounding_mode](x / other).astype(x.dtype)
    below = elementwise.floor_divide(x, other)  # floats do not hold large integers
    if rounding_mode == "floor":
        return below
    left = x - below * other
    return below + elementwise.logical_and(left != 0, (left < 0) != (x < 0)).astype(below.dtype)


def _whole(x: Any, other: Any) -> bool:
    """Whether both are integers."""
    return x.dtype in INTEGERS and (type(other) is int or getattr(other, "dtype", "") in INTEGERS)


def clamp(x: Any, min: Any = None, max: Any = None) -> Any:
    """x kept within min … max."""
    return elementwise.clip(x, min, max)


def round(x: Any, *, decimals: int = 0) -> Any:
    """To the nearest whole number, of two the even one; or to so many decimals."""
    return elementwise.round(x) if not decimals else elementwise.round(x * 10.0**decimals) / 10.0**decimals


def rsqrt(x: Any) -> Any:
    """1 / sqrt(x)."""
    return elementwise.reciprocal(x.sqrt())


def frac(x: Any) -> Any:
    """x without its whole part."""
    return x - elementwise.trunc(x)


def fmod(x: Any, other: Any) -> Any:
    """What x / other leaves, of the sign of x."""
    return x - div(x, other, rounding_mode="trunc") * other


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    """x with numbers for what is none; infinities become the largest finite number unless given."""
    if x.dtype not in FLOATS:
        return x
    limits = finfo(x.dtype)
    high, low = (limits.max if posinf is None else posinf), (limits.min if neginf is None else neginf)
    result = where(x != x, nan, x)
    return where(result == math.inf, high, where(result == -math.inf, low, result))


def lerp(x: Any, end: Any, weight: Any) -> Any:
    """x + weight * (end - x)."""
    tensors, numbers = ((x, end, weight), ()) if isinstance(weight, Value) else ((x, end), (weight,))
    return composed(_lerp, tensors, numbers)


def _lerp(x: Any, end: Any, weight: Any) -> Any:
    return x + (end - x) * weight


def addcmul(x: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """x + value * tensor1 * tensor2."""
    return composed(_addcmul, (x, tensor1, tensor2), (value,))


def _addcmul(x: Any, one: Any, other: Any, value: float) -> Any:
    return x + one * other * value


def addcdiv(x: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """x + value * tensor1 / tensor2."""
    return composed(_addcdiv, (x, tensor1, tensor2), (value,))


def _addcdiv(x: Any, one: Any, other: Any, value: float) -> Any:
    return x + one / other * value


@lowered
def addmm(x: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta * x + alpha * (mat1 @ mat2)."""
    product = mat1 @ mat2
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


def xlogy(x: Any, other: Any) -> Any:
    """x * log(other), 0 where x is 0."""
    value, others = together(x, other)
    away = (value == 0.0) & ((others <= 0.0) | (others == math.inf))  # elsewhere 0 has the gradient log(other)
    return where(away, 0.0, value * where(away, 1.0, others).log())


@as_given
def dot(x: Any, tensor: Any) -> Any:
    """The sum of products of two vectors."""
    if x.ndim != 1 or tensor.ndim != 1:
        raise ShapeError(f"dot: expected two vectors, got {x.shape} and {tensor.shape}")
    return x @ tensor


def equal_all(x: Any, other: Any) -> bool:
    """Whether shape and elements are the same (cx.equal compares element by element)."""
    return x.shape == other.shape and bool(statistics.all(x == other).item())


def tril(x: Any, diagonal: int = 0) -> Any:
    """x with zeros above a diagonal."""
    return _triangle(x, lambda row, column: column - row <= diagonal)


def triu(x: Any, diagonal: int = 0) -> Any:
    """x with zeros below a diagonal."""
    return _triangle(x, lambda row, column: column - row >= diagonal)


def _triangle(x: Any, kept: Callable[[Any, Any], Any]) -> Any:
    if x.ndim < 2:
        raise ShapeError(f"tril, triu: expected a matrix, got {x.shape}")
    rows, columns = x.shape[-2:]
    mask = kept(
        x._constant(range(rows), "int64").reshape(-1, 1),
        x._constant(range(columns), "int64").reshape(1, -1),
    )
    return where(mask, x, x._constant(False if x.dtype == "bool" else 0, x.dtype))


def diag(x: Any, diagonal: int = 0) -> Any:
    """The diagonal of a matrix, or the matrix with a vector on its diagonal."""
    if x.ndim == 2:
        return linalg.diagonal(x, offset=diagonal)
    if x.ndim != 1:
        raise ShapeError(f"diag: expected a vector or a matrix, got {x.shape}; see diag_embed and diagonal")
    return diag_embed(x, diagonal)


def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The diagonal of the axes dim1 and dim2, as the last axis; cx.linalg.diagonal is of the last two."""
    first, second = x._axis(dim1), x._axis(dim2)
    if first == second:
        raise ShapeError(f"diagonal: expected two different axes, got {dim1} and {dim2} of {x.shape}")
    return linalg.diagonal(manipulation.moveaxis(x, (first, second), (-2, -1)), offset=offset)


def diff(x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """Each element less the one before it along an axis, n times."""
    return statistics.diff(x, axis=dim, n=n, prepend=prepend, append=append)


def tile(x: Any, *counts: Any) -> Any:
    """x laid so often along each axis, the last ones where there are fewer counts than axes."""
    return manipulation.tile(x, _sizes(counts))


def diag_embed(x: Any, offset: int = 0) -> Any:
    """Matrices (..., N + |offset|, N + |offset|) with the vectors (..., N) of x on a diagonal."""
    size = x.shape[-1] + abs(offset)
    # Next to each other on a diagonal are size + 1 places of row-major memory: in rows of so many they are one column.
    column, row = (offset, 0) if offset >= 0 else (size + 1 + offset, -offset - 1)
    pads = [(0, 0)] * (x.ndim - 1) + [(row, size - x.shape[-1] - row), (column, size - column)]
    flat = functional.pad(x.expand_dims(-1), pads).reshape(*x.shape[:-1], size * (size + 1))
    return flat[..., : size * size].reshape(*x.shape[:-1], size, size)


# dtypes and questions -----------------------------------------------------------------------------


def _converter(dtype: str) -> Function:
    def method(x: Any) -> Any:
        return x.astype(dtype)

    method.__doc__ = f"x.astype({dtype!r})"
    return method


def type_as(x: Any, other: Any) -> Any:
    """x in the dtype of another tensor."""
    return x.astype(other.dtype)


def numel(x: Any) -> int:
    """How many elements."""
    return math.prod(x.shape)


def dim(x: Any) -> int:
    """How many axes."""
    return len(x.shape)


def is_floating_point(x: Any) -> bool:
    """Whether the dtype is a real float."""
    return x.dtype in FLOATS


def is_complex(x: Any) -> bool:
    """Whether the dtype is complex."""
    return x.dtype in COMPLEX


def clone(x: Any, *, memory_format: Any = None) -> Any:
    """A copy with the same past. memory_format: accepted and without effect."""
    return x.copy()


# By another name than the standard's: the same.
_RENAMED: dict[str, Function] = {
    **{"absolute": elementwise.abs, "arccos": elementwise.acos, "arcsin": elementwise.asin},
    **{"mul": elementwise.multiply, "true_divide": elementwise.divide, "neg": elementwise.negative},
    **{"eq": elementwise.equal, "ne": elementwise.not_equal, "lt": elementwise.less, "le": elementwise.less_equal},
    **{"gt": elementwise.greater, "ge": elementwise.greater_equal, "bitwise_not": elementwise.bitwise_invert},
    **dict.fromkeys(("mm", "bmm"), worded(linalg.matmul, {"mat2": "other"})),
    **{"mv": worded(as_given(linalg.matmul), {"vec": "other"}), "inverse": linalg.inv},
    **{"movedim": manipulation.moveaxis, "take_along_dim": take_along_dim},
    **{"softmax": functional.softmax, "log_softmax": functional.log_softmax},
}
_OWN = (
    view, unsqueeze, expand, repeat, repeat_interleave, unflatten, t, chunk, split, unbind, narrow, select, unfold,
    gather, scatter_add, scatter, index_select, index_add, index_fill, masked_fill, masked_select, nonzero, unique,
    sort, argsort, topk, median, cumsum, cumprod, norm, dist, add, sub, div, clamp, round, rsqrt, frac, fmod,
    nan_to_num, lerp, addcmul, addcdiv, addmm, xlogy, dot, tril, triu, diag, diag_embed, diagonal, diff, tile,
    type_as, numel, dim, is_floating_point, is_complex, clone, roll, flip, view_as, expand_as, amax, amin,
)  # fmt: skip
_REDUCTIONS: dict[str, Function] = {
    **{"prod": statistics.prod, "all": statistics.all, "any": statistics.any, "argmin": searching.argmin},
    **{"count_nonzero": statistics.count_nonzero, "logsumexp": extras.logsumexp},
}
# Functions of ours whose first argument is the tensor, and which PyTorch has as methods too.
_SAME = {
    elementwise: set(elementwise.__all__) - {"astype", "add", "subtract", "round", "real", "imag"},
    manipulation: {"moveaxis", "broadcast_to", "permute_dims"},
    linalg: {"matmul", "outer", "cross", "trace", "det", "slogdet", "cholesky", "qr", "matrix_power"},
    extras: {"isclose", "allclose", "bincount"},
}

METHODS: dict[str, Function] = {
    **{name: getattr(module, name) for module, names in _SAME.items() for name in sorted(names)},
    **_RENAMED,
    **{function.__name__: function for function in _OWN},
    **{name: _reduction(name, function) for name, function in _REDUCTIONS.items()},
    **{name: _converter(dtype) for name, dtype in PYTORCHS.items()},
    "where": where_,
    "equal": equal_all,
    "ravel": Value.flatten,
    "swapaxes": Value.transpose,
    "reshape_as": view_as,
    "ndimension": dim,
    "nelement": numel,
}


def cat(tensors: Any, dim: int = 0, *, axis: int | None = None) -> Any:
    """Tensors joined along an axis they have: cx.concat."""
    return concat(tensors, dim if axis is None else axis)


concatenate = cat


def hstack(tensors: Any) -> Any:
    """Tensors joined along the second axis, vectors along their only one."""
    return concat(tensors, 0 if tensors[0].ndim == 1 else 1)


def vstack(tensors: Any) -> Any:
    """Tensors joined along the first axis, vectors as rows."""
    return concat([x.reshape(1, -1) if x.ndim < 2 else x for x in tensors], 0)


def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """The cosine of the angle between x1 and x2 along an axis."""
    return functional.cosine_similarity(x1, x2, dim, eps)


row_stack = vstack


def is_tensor(x: Any) -> bool:
    """Whether x is a tensor (or a symbol that stands for one, and not for a number)."""
    return isinstance(x, Value) and x.number is None


def __getattr__(name: str) -> Any:
    """cx.name of what is first of all a method."""
    found = METHODS.get(name) or getattr(Value, name, None)
    if found is None or name.startswith("_"):
        raise AttributeError(f"cyxcore.torchnames has no {name!r}")
    return found


for _name, _method in METHODS.items():
    if not hasattr(Value, _name):
        setattr(Value, _name, _method)

Value.real = property(elementwise.real)  # type: ignore[attr-defined]
Value.imag = property(elementwise.imag)  # type: ignore[attr-defined]
