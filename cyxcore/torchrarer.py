"""The rarer of PyTorch's names, each over what there is: torchnames.py has those that most programs use.

METHODS are x.name(...) and, where PyTorch has them, cx.name(...); MAKERS are functions alone. What a program may look
for and does not find is in torchtensors.py, with what to do instead.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore import elementwise, extras, functional, linalg, manipulation, searching, special, statistics, torchnames
from cyxcore.attrs import is_whole
from cyxcore.casting import as_given, lowered
from cyxcore.dtype import COMPLEX, FLOATS, INTEGERS, result_type
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.functional.basic import concat, maximum, minimum, stack, take_along_axis, where
from cyxcore.hosted import hosted, is_symbolic, written
from cyxcore.indexing import from_start
from cyxcore.torchwords import Picked
from cyxcore.values import Value, apply, to_inexact

Function = Callable[..., Any]


# arithmetic ---------------------------------------------------------------------------------------


def clamp_min(x: Any, min: Any) -> Any:
    """x where it is larger than `min`, in the dtype of both; at the bound the gradient is x's, as clamp's."""
    return elementwise.clip(elementwise._pair("clamp_min", x, min)[0], min=min)


def clamp_max(x: Any, max: Any) -> Any:
    """x where it is smaller than `max`, in the dtype of both; at the bound the gradient is x's, as clamp's."""
    return elementwise.clip(elementwise._pair("clamp_max", x, max)[0], max=max)


def fmax(x: Any, other: Any) -> Any:
    """The larger of two, and of a number and NaN the number."""
    return where(x != x, other, where(other != other, x, maximum(x, other)))


def fmin(x: Any, other: Any) -> Any:
    """The smaller of two, and of a number and NaN the number."""
    return where(x != x, other, where(other != other, x, minimum(x, other)))


def deg2rad(x: Any) -> Any:
    """Degrees as radians."""
    return to_inexact(x) * (math.pi / 180.0)


def rad2deg(x: Any) -> Any:
    """Radians as degrees."""
    return to_inexact(x) * (180.0 / math.pi)


def float_power(x: Any, exponent: Any) -> Any:
    """x to a power, in float64."""
    return elementwise.pow(x.astype("float64"), exponent)


def heaviside(x: Any, values: Any) -> Any:
    """0 below 0, 1 above, `values` at 0."""
    return where(x == 0, values, (x > 0).astype(x.dtype))


def ldexp(x: Any, other: Any) -> Any:
    """x times 2 to the power other."""
    return to_inexact(x) * special.exp2(other)


def logaddexp2(x: Any, other: Any) -> Any:
    """log2(2**x + 2**other)."""
    scale = math.log(2.0)
    return elementwise.logaddexp(to_inexact(x) * scale, to_inexact(other) * scale) / scale


def angle(x: Any) -> Any:
    """The angle of complex numbers; of real ones 0, and pi below 0."""
    if x.dtype in COMPLEX:
        return elementwise.atan2(elementwise.imag(x), elementwise.real(x))
    value = to_inexact(x)
    return where(value < 0.0, math.pi, where(value != value, value, 0.0))


def gcd(x: Any, other: Any) -> Any:
    """The greatest common divisor of integers."""
    a, b = manipulation.broadcast_arrays(elementwise.abs(x), elementwise.abs(other))
    while statistics.any(b != 0).item():  # Euclid's
        done = b == 0
        a, b = where(done, a, b), where(done, 0, elementwise.remainder(a, where(done, 1, b)))
    return a


def lcm(x: Any, other: Any) -> Any:
    """The least common multiple of integers."""
    divisor = gcd(x, other)
    return elementwise.abs(elementwise.floor_divide(x, where(divisor == 0, 1, divisor)) * other)


def rsub(x: Any, other: Any) -> Any:
    """other - x."""
    return other - x


# products -----------------------------------------------------------------------------------------


def baddbmm(x: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta * x + alpha * (batch1 @ batch2), of batches of matrices."""
    return torchnames.addmm(x, batch1, batch2, beta=beta, alpha=alpha)


@lowered
def addbmm(x: Any, batch1: Any, batch2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta * x + alpha times the sum of the products of a batch of matrices."""
    product = (batch1 @ batch2).sum(0)
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


@as_given
def addmv(x: Any, mat: Any, vec: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta * x + alpha * (mat @ vec)."""
    return torchnames.addmm(x, mat, vec, beta=beta, alpha=alpha)


def addr(x: Any, vec1: Any, vec2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """beta * x + alpha * outer(vec1, vec2)."""
    product = linalg.outer(vec1, vec2)
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


def vdot(x: Any, other: Any) -> Any:
    """The sum of products of two vectors, the first one conjugated."""
    return linalg.vecdot(x, other)


def inner(x: Any, other: Any) -> Any:
    """Sums of products along the last axis of both."""
    if not x.ndim or not other.ndim:
        return x * other
    return linalg.tensordot(x, other, axes=((-1,), (-1,)))


def kron(x: Any, other: Any) -> Any:
    """Each element of x times all of `other`, in blocks."""
    rank = max(x.ndim, other.ndim)
    a, b = (v.reshape(*(1,) * (rank - v.ndim), *v.shape) for v in (x, other))
    wide = a.reshape(*(n for size in a.shape for n in (size, 1))) * b.reshape(
        *(n for size in b.shape for n in (1, size))
    )
    return wide.reshape(*(m * n for m, n in zip(a.shape, b.shape, strict=True)))


def logdet(x: Any) -> Any:
    """log(det(x)): NaN where the determinant is below 0."""
    found = linalg.slogdet(x)
    return where(found.sign < 0.0, math.nan, found.logabsdet)


def adjoint(x: Any) -> Any:
    """Matrices transposed and conjugated."""
    turned = x.transpose(-2, -1)
    return elementwise.conj(turned) if x.dtype in COMPLEX else turned


def cov(x: Any, *, correction: int = 1) -> Any:
    """The covariances of variables (rows) over observations (columns); of a vector or one row its variance."""
    rows = x.reshape(1, -1) if x.ndim < 2 else x
    centred = rows - rows.mean(1, keepdims=True)
    result = centred @ centred.mT / float(max(rows.shape[1] - correction, 0) or math.nan)
    return result.reshape(()) if rows.shape[0] == 1 else result


def corrcoef(x: Any) -> Any:
    """Pearson's correlations of variables (rows) over observations (columns)."""
    found = cov(x)
    if not found.ndim:
        return found / found
    spread = linalg.diagonal(found).sqrt()
    return found / spread.expand_dims(0) / spread.expand_dims(1)


# along an axis ------------------------------------------------------------------------------------


def nansum(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The sum of what is a number."""
    return where(x != x, 0.0, x).sum(dim, keepdim)


def nanmean(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The mean of what is a number."""
    return nansum(x, dim, keepdim) / (x == x).astype(x.dtype).sum(dim, keepdim)


def aminmax(x: Any, *, dim: int | None = None, keepdim: bool = False) -> tuple[Any, Any]:
    """(the smallest, the largest)."""
    return x.min(dim, keepdim), x.max(dim, keepdim)


def _extremes(x: Any, dim: int, op: str, better: Function) -> Picked:
    place, size = x._axis(dim), x.shape[x._axis(dim)]
    if not is_symbolic(x) or not x.builder.travels:
        found = apply(op, x, axis=place)
        return Picked(take_along_axis(x, found, place), found)
    values, where_, best, at = [], [], None, None
    for step in range(size):
        own = torchnames.select(x, place, step)
        here = x._constant(step, "int64").broadcast_to(*own.shape)
        if best is None:
            best, at = own, here
        else:
            taken = better(own, best) | (own != own)
            best, at = where(taken, own, best), where(taken, here, at)
        values.append(best)
        where_.append(at)
    if not values:
        raise ShapeError(f"cummax, cummin: expected a size of at least 1 along axis {dim}, got {x.shape}")
    return Picked(stack(values, place), stack(where_, place))


def cummax(x: Any, dim: int) -> Picked:
    """(the largest so far, where it is) along an axis."""
    return _extremes(x, dim, "cumulative_argmax", lambda own, best: own >= best)


def cummin(x: Any, dim: int) -> Picked:
    """(the smallest so far, where it is) along an axis."""
    return _extremes(x, dim, "cumulative_argmin", lambda own, best: own <= best)


def logcumsumexp(x: Any, dim: int) -> Any:
    """log(sum(exp(x))) of all elements up to each one along an axis."""
    return apply("cumulative_logsumexp", to_inexact(x), axis=x._axis(dim))


def kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Picked:
    """(the k-th smallest, from 1 on, and where it is) along an axis."""
    place = x._axis(dim)
    if not 1 <= k <= x.shape[place]:
        raise SpecError(f"kthvalue: expected k of 1..{x.shape[place]}, got {k}")
    found = torchnames.of_rank(x, k - 1, place)
    return Picked(*(each if keepdim else each.squeeze(place) for each in found))


def msort(x: Any) -> Any:
    """Sorted along the first axis."""
    return searching.sort(x, axis=0)


def std_mean(
    x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> tuple[Any, Any]:
    """(standard deviation by N - correction, mean). correction: 1, with unbiased=False 0."""
    correction = int(unbiased) if correction is None else correction
    return statistics.std(x, axis=dim, correction=correction, keepdims=keepdim), x.mean(dim, keepdim)


def var_mean(
    x: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> tuple[Any, Any]:
    """(variance by N - correction, mean). correction: 1, with unbiased=False 0."""
    correction = int(unbiased) if correction is None else correction
    return statistics.var(x, axis=dim, correction=correction, keepdims=keepdim), x.mean(dim, keepdim)


def trapezoid(y: Any, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Any:
    """The integral along an axis by trapezoids, at places x or dx apart."""
    place, size = y._axis(dim), y.shape[y._axis(dim)]
    left, right = torchnames.narrow(y, place, 0, size - 1), torchnames.narrow(y, place, 1, size - 1)
    widths: Any = dx if x is None else statistics.diff(x, axis=-1 if x.ndim == 1 else place)
    if x is not None and x.ndim == 1:
        widths = widths.reshape(*(-1 if axis == place else 1 for axis in range(y.ndim)))
    return ((left + right) * 0.5 * widths).sum(place)


trapz = trapezoid


def unique_consecutive(x: Any, return_inverse: bool = False, return_counts: bool = False) -> Any:
    """x flattened, without what equals the one before; with where each element went, and how many there are."""
    flat = x.reshape(-1)
    fresh = concat([x._constant([True], "bool")[: flat.size], flat[1:] != flat[:-1]])
    found = [flat[fresh]]
    if not (return_inverse or return_counts):
        return found[0]
    places = statistics.cumulative_sum(fresh.astype("int64"), axis=0) - 1
    if return_inverse:
        found.append(places.reshape(*x.shape))
    if return_counts:
        found.append(extras.bincount(places, minlength=found[0].size))
    return tuple(found)


def histc(x: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    """How many elements are in each of `bins` equal parts of min … max, of all where both are 0."""
    low, high = float(min), float(max)
    if low > high:
        raise SpecError(f"histc: expected min of at most max, got {min} and {max}")
    if low == high == 0.0 and x.size:
        low, high = float(x.min().item()), float(x.max().item())
    if not low < high:
        low, high = low - 1.0, high + 1.0
    flat = x.reshape(-1)
    inside = flat[(flat >= low) & (flat <= high)]
    places = elementwise.clip(elementwise.floor((inside - low) * (bins / (high - low))), 0, bins - 1)
    return extras.bincount(places.astype("int64"), minlength=bins).astype(x.dtype)


def bucketize(x: Any, boundaries: Any, *, right: bool = False) -> Any:
    """Between which of the ascending boundaries each element lies."""
    return searching.searchsorted(boundaries, x, side="right" if right else "left")


# shapes and places --------------------------------------------------------------------------------


def swapdims(x: Any, dim0: int, dim1: int) -> Any:
    """x with two axes exchanged."""
    return x.transpose(dim0, dim1)


def fliplr(x: Any) -> Any:
    """x backwards along its second axis."""
    return manipulation.flip(x, axis=1)


def flipud(x: Any) -> Any:
    """x backwards along its first axis."""
    return manipulation.flip(x, axis=0)


def rot90(x: Any, k: int = 1, dims: Sequence[int] = (0, 1)) -> Any:
    """x turned by k times 90 degrees, from the first of two axes towards the second."""
    first, second = (x._axis(axis) for axis in dims)
    turns = k % 4
    if not turns:
        return x
    back = manipulation.flip(x, axis=(second, (first, second), first)[turns - 1])
    return back if turns == 2 else back.transpose(first, second)


def tensor_split(x: Any, indices_or_sections: Any, dim: int = 0) -> list[Any]:
    """x in so many pieces along an axis, the first ones longer by one where it does not divide; or cut at places."""
    size = x.shape[x._axis(dim)]
    if is_whole(indices_or_sections):
        count = indices_or_sections
        if count < 1:
            raise SpecError(f"tensor_split: expected at least 1 piece, got {count}")
        each, more = divmod(size, count)
        return extras.split(x, [each + (number < more) for number in range(count)], axis=dim)
    cuts = [0, *(min(max(at + size if at < 0 else at, 0), size) for at in indices_or_sections), size]
    return [torchnames.narrow(x, dim, low, max(high - low, 0)) for low, high in itertools.pairwise(cuts)]


def hsplit(x: Any, indices_or_sections: Any) -> list[Any]:
    """tensor_split along the second axis, of a vector along its only one."""
    return tensor_split(x, indices_or_sections, 0 if x.ndim == 1 else 1)


def vsplit(x: Any, indices_or_sections: Any) -> list[Any]:
    """tensor_split along the first axis."""
    return tensor_split(x, indices_or_sections, 0)


def dsplit(x: Any, indices_or_sections: Any) -> list[Any]:
    """tensor_split along the third axis."""
    return tensor_split(x, indices_or_sections, 2)


def split_with_sizes(x: Any, split_sizes: Sequence[int], dim: int = 0) -> list[Any]:
    """x in pieces of the sizes given."""
    return extras.split(x, list(split_sizes), axis=dim)


def sum_to_size(x: Any, *size: Any) -> Any:
    """x summed along the axes that a stretch from `size` to its shape would copy."""
    wanted = torchnames._sizes(size)
    lead = x.ndim - len(wanted)
    axes = (*range(lead), *(lead + at for at, n in enumerate(wanted) if n == 1 and x.shape[lead + at] != 1))
    return (x.sum(axes, keepdims=True) if axes else x).reshape(*wanted)


def argwhere(x: Any) -> Any:
    """(how many, axes): the places that are not 0."""
    return torchnames.nonzero(x)


def take(x: Any, index: Any) -> Any:
    """The elements of the flattened x that `index` names."""
    places = index if isinstance(index, Value) else x._constant(index, "int64")
    return manipulation.take(x.reshape(-1), places.reshape(-1), axis=0).reshape(*places.shape)


def diagflat(x: Any, offset: int = 0) -> Any:
    """The matrix with the elements of x on a diagonal."""
    return torchnames.diag_embed(x.reshape(-1), offset)


def index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    """x with rows of `source` where `index` (N,) points along an axis."""
    return written(x, (*(slice(None),) * x._axis(dim), index), source)


def index_put(x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    """x with `values` at the places that a tuple of index tensors names; accumulate: added to what is there."""
    if not accumulate:
        return written(x, tuple(indices), values)
    flat: Any = 0
    for axis, index in enumerate(indices):
        flat = flat * x.shape[axis] + from_start(index.astype("int64"), x.shape[axis])
    rest = x.shape[len(indices) :]
    source = values if isinstance(values, Value) else x._constant(values, x.dtype)
    rows = x.reshape(-1, *rest)
    added = source.broadcast_to(*flat.shape, *rest).reshape(-1, *rest)
    return extras.scatter_add(rows, flat.reshape(-1), added).reshape(*x.shape)


def masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    """x with the first elements of `source` where the mask is true. Raises ShapeError where it has fewer."""
    whole = mask.broadcast_to(*x.shape)
    if is_symbolic(x, mask, source):
        return _where_counted(x, whole, source)
    return written(x, whole, _first(source, int(whole.astype("int64").sum().item())))


def _first(elements: Any, count: int) -> Any:
    flat = elements.reshape(-1)
    if flat.shape[0] < count:
        raise ShapeError(
            f"masked_scatter: expected a source of as many elements as the mask has true ones, {count}, "
            f"got {flat.shape[0]}"
        )
    return flat[:count]


def _where_counted(x: Any, whole: Any, source: Any) -> Any:
    """masked_scatter where nobody knows yet how many are true."""

    def after(before: Any, mask: Any, elements: Any) -> Any:
        result = before.copy()
        result[mask] = _first(elements, int(mask.sum()))
        return result

    def of_elements(g: Any, mask: Any, elements: Any) -> Any:
        result = elements.astype(g.dtype)
        result[...] = 0
        result.reshape(-1)[: int(mask.sum())] = g[mask]
        return result

    def gradient_of_elements(gg: Any, inputs: Sequence[Any], output: Any) -> Sequence[Any]:
        none = gg._constant(0.0, gg.dtype).broadcast_to(x.shape)
        return [_where_counted(none, inputs[1], gg), None, None]

    def gradient(g: Any, inputs: Sequence[Any], output: Any) -> Sequence[Any]:
        none = g._constant(0.0, g.dtype).broadcast_to(g.shape)
        given = (g, inputs[1], inputs[2].detach())
        own = hosted(of_elements, source.shape, g.dtype, *given, gradient=gradient_of_elements)
        return [where(inputs[1], none, g), None, own]

    return hosted(after, x.shape, x.dtype, x, whole, source.astype(x.dtype), gradient=gradient)


def select_scatter(x: Any, src: Any, dim: int, index: int) -> Any:
    """x with `src` at one place of an axis."""
    return written(x, (*(slice(None),) * x._axis(dim), index), src)


def slice_scatter(
    x: Any, src: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """x with `src` in a slice of an axis."""
    return written(x, (*(slice(None),) * x._axis(dim), slice(start, end, step)), src)


# questions ----------------------------------------------------------------------------------------


def isposinf(x: Any) -> Any:
    """Whether an element is infinity."""
    return x == math.inf


def isneginf(x: Any) -> Any:
    """Whether an element is -infinity."""
    return x == -math.inf


def isreal(x: Any) -> Any:
    """Whether an element has no imaginary part."""
    return elementwise.imag(x) == 0 if x.dtype in COMPLEX else elementwise.equal(x, x) | True


def is_nonzero(x: Any) -> bool:
    """Whether the one element is not 0."""
    if x.size != 1:
        raise ShapeError(f"is_nonzero: expected one element, got shape {x.shape}")
    return bool(x.item())


def is_signed(x: Any) -> bool:
    """Whether the dtype has numbers below 0."""
    return x.dtype in FLOATS or x.dtype in COMPLEX or (x.dtype in INTEGERS and not x.dtype.startswith("u"))


def is_same_size(x: Any, other: Any) -> bool:
    """Whether both have one shape."""
    return bool(x.shape == other.shape)


# functions of several tensors ---------------------------------------------------------------------


def column_stack(tensors: Sequence[Any]) -> Any:
    """Tensors joined along the second axis, vectors as columns."""
    return concat([x.reshape(-1, 1) if x.ndim < 2 else x for x in tensors], 1)


def dstack(tensors: Sequence[Any]) -> Any:
    """Tensors joined along the third axis."""
    return concat([atleast_3d(x) for x in tensors], 2)


def atleast_1d(x: Any) -> Any:
    """x with an axis, if it has none."""
    return x.reshape(1) if x.ndim < 1 else x


def atleast_2d(x: Any) -> Any:
    """x with two axes, the new ones in front."""
    return x.reshape(1, -1) if x.ndim < 2 else x


def atleast_3d(x: Any) -> Any:
    """x with three axes: a matrix gets its third one behind."""
    return x.expand_dims(-1) if x.ndim == 2 else x.reshape(1, -1, 1) if x.ndim < 2 else x


def block_diag(*tensors: Any) -> Any:
    """The matrix with these matrices on its diagonal."""
    blocks = [atleast_2d(x) for x in tensors]
    width, done, rows = sum(x.shape[1] for x in blocks), 0, []
    for x in blocks:
        rows.append(functional.pad(x, [(0, 0), (done, width - done - x.shape[1])]))
        done += x.shape[1]
    return concat(rows, 0)


def cartesian_prod(*tensors: Any) -> Any:
    """All tuples of elements of these vectors, as rows; of one vector itself."""
    if len(tensors) == 1:
        return tensors[0]
    shape = tuple(x.shape[0] for x in tensors)
    spread = [
        x.reshape(*(-1 if at == place else 1 for at in range(len(shape)))).broadcast_to(*shape).reshape(-1)
        for place, x in enumerate(tensors)
    ]
    return stack(spread, 1)


def combinations(x: Any, r: int = 2, with_replacement: bool = False) -> Any:
    """All choices of r elements of a vector, as rows."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    places = [at for row in choose(range(x.shape[0]), r) for at in row]
    return manipulation.take(x, x._constant(places, "int64").reshape(-1), axis=0).reshape(-1, r)


def broadcast_tensors(*tensors: Any) -> tuple[Any, ...]:
    """All stretched to one shape."""
    return manipulation.broadcast_arrays(*tensors)


def promote_types(type1: Any, type2: Any) -> str:
    """The dtype that two dtypes become together."""
    return result_type(type1, type2)


def view_as_real(x: Any) -> Any:
    """(..., 2): real and imaginary parts."""
    if x.dtype not in COMPLEX:
        raise DtypeError(f"view_as_real: expected complex numbers, got {x.dtype}")
    return stack([elementwise.real(x), elementwise.imag(x)], -1)


def view_as_complex(x: Any) -> Any:
    """Complex numbers of real and imaginary parts (..., 2)."""
    if x.dtype not in ("float32", "float64") or not x.shape or x.shape[-1] != 2:
        raise ShapeError(f"view_as_complex: expected float32 or float64 (..., 2), got {x.dtype} {x.shape}")
    return x[..., 0] + x[..., 1] * 1j


def polar(length: Any, angle: Any) -> Any:
    """Complex numbers of length and angle."""
    return length * angle.cos() + length * angle.sin() * 1j


_RENAMED: dict[str, Function] = {
    **{"fix": elementwise.trunc, "sgn": elementwise.sign, "arccosh": elementwise.acosh, "arcsinh": elementwise.asinh},
    **{"arctan": elementwise.atan, "arctan2": elementwise.atan2, "arctanh": elementwise.atanh, "ger": linalg.outer},
    **{"maximum": maximum, "minimum": minimum, "subtract": torchnames.sub, "pinverse": linalg.pinv},
    "lgamma": special.gammaln,
    **{name: getattr(special, name) for name in "digamma erfc erfinv exp2 logit sinc".split()},
}
_OWN = (
    clamp_min, clamp_max, fmax, fmin, deg2rad, rad2deg, float_power, heaviside, ldexp, logaddexp2, angle, gcd, lcm,
    baddbmm, addbmm, addmv, addr, vdot, inner, kron, logdet, adjoint, cov, corrcoef, nansum, nanmean, aminmax, cummax,
    cummin, logcumsumexp, kthvalue, msort, unique_consecutive, histc, swapdims, fliplr, flipud, rot90, tensor_split,
    hsplit, vsplit, dsplit, split_with_sizes, sum_to_size, argwhere, take, diagflat, index_copy, index_put,
    masked_scatter, select_scatter, slice_scatter, isposinf, isneginf, isreal, is_nonzero, is_signed,
    is_same_size,
)  # fmt: skip
METHODS: dict[str, Function] = {**_RENAMED, **{function.__name__: function for function in _OWN}}
MAKERS = (
    column_stack, dstack, atleast_1d, atleast_2d, atleast_3d, block_diag, cartesian_prod, combinations, trapezoid,
    broadcast_tensors, promote_types, view_as_real, view_as_complex, polar, bucketize, std_mean, var_mean, rsub,
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """cx.name of what is first of all a method."""
    if name not in METHODS:
        raise AttributeError(f"cyxcore.torchrarer has no {name!r}")
    return METHODS[name]


for _name, _method in METHODS.items():
    if not hasattr(Value, _name):
        setattr(Value, _name, _method)
