"""Linear algebra: the array API standard's functions of that kind and its extension `linalg`.

    cx.linalg.solve(a, b)
    values, vectors = cx.linalg.eigh(a)

Products are composed of a graph's ops and can be traced. Factorizations are LAPACK's (cyxcore/kernels/lapack.py): they
take float32, float64 and their complex numbers (integers become float32), run on tensors only, and may differ in the
last bits between machines. Those of one matrix work on each matrix (..., M, N) of a stack.

Shapes that do not fit are a ShapeError, matrices LAPACK can do nothing with a DataError.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cyxcore import elementwise
from cyxcore.attrs import is_whole
from cyxcore.casting import in_float32 as _in_float32
from cyxcore.casting import lowered as _lowered
from cyxcore.casting import rounded_product as _rounded_product
from cyxcore.dtype import COMPLEX, FLOATS, dtype_name, finfo, real_dtype
from cyxcore.elementwise import value_of
from cyxcore.errors import AxisError, ShapeError, SpecError
from cyxcore.functional.basic import stack
from cyxcore.infer import broadcast
from cyxcore.infermatrix import matrices, unpacked
from cyxcore.torchwords import LINALG, worded
from cyxcore.torchwords import spoken as _spoken
from cyxcore.values import apply, composed, of_one_dtype, root, sum_dtype, to_inexact

__all__ = (
    "cholesky cross det diagonal eig eigh eigvals eigvalsh inv matmul matrix_norm matrix_power matrix_rank "
    "matrix_transpose outer pinv qr slogdet solve svd svdvals tensordot trace vecdot vector_norm"
).split()


class EigResult(NamedTuple):
    eigenvalues: Any
    eigenvectors: Any


class EighResult(NamedTuple):
    eigenvalues: Any
    eigenvectors: Any


class QRResult(NamedTuple):
    Q: Any
    R: Any


class SlogdetResult(NamedTuple):
    sign: Any
    logabsdet: Any


class SVDResult(NamedTuple):
    U: Any
    S: Any
    Vh: Any


# products -----------------------------------------------------------------------------------------


def _pair(name: str, x1: Any, x2: Any) -> Sequence[Any]:
    return of_one_dtype(value_of(name, x1), value_of(name, x2))


def matmul(x: Any, /, other: Any) -> Any:
    """x @ other: (..., M, K) @ (..., K, N), a vector at either place."""
    left, right = _pair("matmul", x, other)
    return left @ right


def matrix_transpose(x: Any, /) -> Any:
    """x (..., M, N) with the last two axes exchanged."""
    return value_of("matrix_transpose", x).mT


@_lowered
def tensordot(x1: Any, x2: Any, /, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Any:
    """Products summed over pairs of axes: the last of x1 with the first of x2 where axes is their number.

    Returns the other axes of x1, then those of x2.
    """
    left, right = _pair("tensordot", x1, x2)
    if is_whole(axes):
        if not 0 <= axes <= min(left.ndim, right.ndim):
            raise AxisError(f"tensordot: expected 0..{min(left.ndim, right.ndim)} axes, got {axes}")
        pairs = list(range(left.ndim - axes, left.ndim)), list(range(axes))
    else:
        pairs = [left._axis(axis) for axis in axes[0]], [right._axis(axis) for axis in axes[1]]
    sizes = [[value.shape[axis] for axis in some] for value, some in zip((left, right), pairs, strict=True)]
    if sizes[0] != sizes[1] or any(len(set(some)) < len(some) for some in pairs):
        raise ShapeError(
            f"tensordot: expected different axes of equal sizes, got {axes} of {left.shape}, {right.shape}"
        )
    kept = [
        [axis for axis in range(value.ndim) if axis not in some]
        for value, some in zip((left, right), pairs, strict=True)
    ]
    summed = math.prod(sizes[0])
    shape = [left.shape[axis] for axis in kept[0]], [right.shape[axis] for axis in kept[1]]
    rows = _ordered(left, (*kept[0], *pairs[0])).reshape(math.prod(shape[0]), summed)
    columns = _ordered(right, (*pairs[1], *kept[1])).reshape(summed, math.prod(shape[1]))
    return apply("matmul", rows, columns).reshape(*shape[0], *shape[1])


def _ordered(value: Any, order: tuple[int, ...]) -> Any:
    return value if order == tuple(range(value.ndim)) else value.permute(*order)


@_rounded_product
def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
    """The sum of conj(x1) * x2 along an axis both have; the other axes broadcast."""
    left, right = _pair("vecdot", x1, x2)
    rank = min(left.ndim, right.ndim)
    if not -rank <= axis < 0 and not (0 <= axis < rank and left.ndim == right.ndim):
        raise AxisError(f"vecdot: expected an axis {-rank}..-1 for {left.shape} and {right.shape}, got {axis}")
    if left.shape[axis] != right.shape[axis]:
        raise ShapeError(f"vecdot: expected one size on axis {axis}, got {left.shape} and {right.shape}")
    product = (elementwise.conj(left) if left.dtype in COMPLEX else left) * right
    return apply("sum", product, axes=(product._axis(axis),), keepdims=False)


def outer(x: Any, /, vec2: Any) -> Any:
    """Each element of a vector times each of another: (M,), (N,) -> (M, N)."""
    left, right = _pair("outer", x, vec2)
    if left.ndim != 1 or right.ndim != 1:
        raise ShapeError(f"outer: expected vectors, got {left.shape} and {right.shape}")
    return left.reshape(-1, 1) * right.reshape(1, -1)


def cross(x: Any, /, other: Any, *, axis: int = -1) -> Any:
    """The vector product along an axis of size 3; the other axes broadcast."""
    left, right = _pair("cross", x, other)
    rank = min(left.ndim, right.ndim)
    if not -rank <= axis < rank or left.shape[axis] != 3 or right.shape[axis] != 3:
        raise ShapeError(f"cross: expected size 3 on axis {axis}, got {left.shape} and {right.shape}")
    shape = broadcast("cross", left.shape, right.shape)
    place = axis % len(shape)
    a, b = (
        [value.broadcast_to(shape)[(slice(None),) * place + (part,)] for part in range(3)] for value in (left, right)
    )
    return stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], axis=place)


def matrix_power(x: Any, n: int, /) -> Any:
    """x @ x @ ... n times; of the inverse for n < 0, the identity for 0."""
    value = value_of("matrix_power", x)
    matrices("matrix_power", value.shape)
    if n < 0:
        return matrix_power(inv(value), -n)
    if n == 0:
        size = value.shape[-1]
        ones = [float(row == column) for row in range(size) for column in range(size)]
        return value._constant(ones, value.dtype).reshape(size, size).broadcast_to(value.shape).copy()
    result: Any = None
    square = value
    while n:
        if n & 1:
            result = square if result is None else result @ square
        n >>= 1
        square = square @ square if n else square
    return value.copy() if result is value else result


# parts of matrices and sizes ----------------------------------------------------------------------


def diagonal(x: Any, /, *, offset: int = 0) -> Any:
    """The diagonal (..., K) of x (..., M, N), `offset` above the main one. A copy."""
    value = value_of("diagonal", x)
    matrices("diagonal", value.shape, square=False)
    rows, columns = value.shape[-2:]
    first, step = max(-offset, 0), columns + 1
    stop = max(min(rows, columns - offset), first)  # rows from `first` on
    places = range(first * step + offset, stop * step + offset, step)
    flat = value.reshape(*value.shape[:-2], rows * columns)
    return apply("take", flat, value._constant(places, "int64"), axis=flat.ndim - 1)


@_in_float32
def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Any:
    """The sum of a diagonal, in the dtype `sum` would have."""
    found = diagonal(value_of("trace", x), offset=offset)
    found = found.astype(sum_dtype(found.dtype) if dtype is None else dtype_name(dtype))
    return apply("sum", found, axes=(found.ndim - 1,), keepdims=False)


def vector_norm(
    x: Any,
    /,
    ord: float = 2,
    *,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    dtype: Any = None,
) -> Any:
    """(sum of |x|^ord)^(1/ord) over axes, all without one; the largest or smallest |x| for ±inf, their count for 0.

    The gradient of the 2-norm of zeros is 0. dtype: of the sum.
    """
    value = to_inexact(value_of("vector_norm", x))
    value = value if dtype is None else value.astype(dtype)
    return composed(_vector_norm, (value,), (ord, value._axes(axis), keepdims))


def _vector_norm(value: Any, ord: float, axes: tuple[int, ...], keepdims: bool) -> Any:
    if ord == 2 and value.dtype in FLOATS:
        return root(apply("sum", value.square(), axes=axes, keepdims=keepdims))
    size = elementwise.abs(value)
    if ord == math.inf or ord == -math.inf:
        if ord > 0 and math.prod(value.shape[place] for place in axes) == 0:
            return size.sum(axes, keepdims)  # of no elements
        return size.max(axes, keepdims) if ord > 0 else size.min(axes, keepdims)
    if ord == 0:
        return apply("sum", (size != 0).astype(size.dtype), axes=axes, keepdims=keepdims)
    if ord == 1:
        return apply("sum", size, axes=axes, keepdims=keepdims)
    if ord == 2:
        return root(apply("sum", size * size, axes=axes, keepdims=keepdims))
    powers = apply("pow", size, size._constant(float(ord), size.dtype))
    total = apply("sum", powers, axes=axes, keepdims=keepdims)
    return apply("pow", total, total._constant(1.0 / ord, total.dtype))


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: float | str | None = "fro") -> Any:
    """A norm of each matrix: "fro" (2-norm of the elements), "nuc" (sum of singular values), ±2 (the largest, smallest
    singular value), ±1 and ±inf (the largest, smallest sum of |x| of a column, of a row).
    """
    value = to_inexact(value_of("matrix_norm", x))
    matrices("matrix_norm", value.shape, square=False)
    if ord in ("fro", None):
        return vector_norm(value, axis=(-2, -1), keepdims=keepdims)
    if ord in (1, -1, math.inf, -math.inf):
        summed, kept = (-2, -1) if ord in (1, -1) else (-1, -2)
        sums = elementwise.abs(value).sum(summed, keepdims=True)
        found = sums.max(kept, keepdims=True) if float(ord) > 0 else sums.min(kept, keepdims=True)
    elif ord in (2, -2, "nuc"):
        row = svdvals(value)
        if ord == "nuc":
            found = row.sum(-1, keepdims=True).expand_dims(-1)
        else:
            found = (row.max(-1, keepdims=True) if ord == 2 else row.min(-1, keepdims=True)).expand_dims(-1)
    else:
        raise SpecError(f"matrix_norm: expected ord 'fro', 'nuc', 1, -1, 2, -2, inf or -inf, got {ord!r}")
    return found if keepdims else found.reshape(*value.shape[:-2])


# solving ------------------------------------------------------------------------------------------


def _lapack(name: str, x: Any) -> Any:
    return to_inexact(value_of(name, x))


@_in_float32
def inv(x: Any, /) -> Any:
    """The inverse. Raises DataError for a singular matrix."""
    return apply("inv", _lapack("inv", x))


@_in_float32
def solve(x1: Any, x2: Any, /) -> Any:
    """X with x1 @ X = x2. x1: (..., N, N), x2: (N,) or (..., N, K). Raises DataError for a singular matrix."""
    left, right = map(to_inexact, _pair("solve", x1, x2))
    if right.ndim == 1:
        return apply("solve", left, right.reshape(-1, 1)).reshape(*left.shape[:-1])
    return apply("solve", left, right)


@_in_float32
def det(x: Any, /) -> Any:
    """The determinant."""
    return apply("det", _lapack("det", x))


@_in_float32
def slogdet(x: Any, /) -> SlogdetResult:
    """(sign, logabsdet): the determinant is sign * exp(logabsdet); (0, -inf) of a singular matrix."""
    value = _lapack("slogdet", x)
    sign, log = unpacked("slogdet", apply("slogdet", value), value.shape, {})
    return SlogdetResult(sign, _real(log))


def _real(value: Any) -> Any:
    return elementwise.real(value) if value.dtype in COMPLEX else value


@_in_float32
def pinv(x: Any, /, *, rtol: float | Any | None = None) -> Any:
    """The Moore-Penrose inverse (..., N, M).

    rtol: singular values below rtol * the largest count as zero (a number, or one for each matrix);
    max(M, N) * eps unless given.
    """
    value = _lapack("pinv", x)
    matrices("pinv", value.shape, square=False)
    return apply("pinv", value, _tolerance(value, rtol))


def _tolerance(value: Any, rtol: Any) -> Any:
    real = real_dtype(value.dtype)
    if rtol is None:
        rtol = max(value.shape[-2:]) * finfo(real).eps if real in FLOATS else 0.0
    return value._constant(rtol, real)


def matrix_rank(x: Any, /, *, rtol: float | Any | None = None) -> Any:
    """How many singular values are above rtol * the largest (see pinv). int64."""
    value = _lapack("matrix_rank", x)
    matrices("matrix_rank", value.shape, square=False)
    row = svdvals(value)
    if 0 in row.shape[-1:]:
        return row.sum(-1).astype("int64")
    limit = row.max(-1, keepdims=True) * _tolerance(value, rtol).expand_dims(-1)
    return (row > limit).sum(-1)


# factorizations -----------------------------------------------------------------------------------


@_in_float32
def cholesky(x: Any, /, *, upper: bool = False) -> Any:
    """L, lower triangular, with L @ conj(L).mT = x; with `upper` conj(L).mT. Only the lower triangle of x is read.

    Raises DataError for a matrix that is not positive definite.
    """
    lower = apply("cholesky", _lapack("cholesky", x))
    return _adjoint(lower) if upper else lower


def _adjoint(value: Any) -> Any:
    return elementwise.conj(value.mT) if value.dtype in COMPLEX else value.mT


@_in_float32
def qr(x: Any, /, *, mode: str = "reduced") -> QRResult:
    """Q with orthonormal columns and R, upper triangular, with Q @ R = x.

    mode: "reduced" for Q (..., M, K) and R (..., K, N) with K = min(M, N), "complete" for K = M.
    """
    if mode not in ("reduced", "complete"):
        raise SpecError(f'qr: expected mode "reduced" or "complete", got {mode!r}')
    value, full = _lapack("qr", x), mode == "complete"
    return QRResult(*unpacked("qr", apply("qr", value, full=full), value.shape, {"full": full}))


@_in_float32
def eigh(x: Any, /) -> EighResult:
    """Eigenvalues (..., N), ascending, and eigenvectors, the columns of (..., N, N), of a Hermitian matrix.

    Only the lower triangle of x is read.
    """
    value = _lapack("eigh", x)
    values, vectors = unpacked("eigh", apply("eigh", value), value.shape, {})
    return EighResult(_real(values), vectors)


@_in_float32
def eigvalsh(x: Any, /) -> Any:
    """The eigenvalues alone."""
    return apply("eigvalsh", _lapack("eigvalsh", x))


@_in_float32
def eig(x: Any, /) -> EigResult:
    """Eigenvalues (..., N) in no order and eigenvectors, the columns of (..., N, N): complex numbers."""
    value = _lapack("eig", x)
    return EigResult(*unpacked("eig", apply("eig", value), value.shape, {}))


@_in_float32
def eigvals(x: Any, /) -> Any:
    """The eigenvalues alone, complex."""
    return apply("eigvals", _lapack("eigvals", x))


@_in_float32
def svd(x: Any, /, *, full_matrices: bool = True) -> SVDResult:
    """U, S, Vh with U @ diag(S) @ Vh = x, the singular values S (..., K) descending, K = min(M, N).

    U: (..., M, M) and Vh: (..., N, N), without full_matrices (..., M, K) and (..., K, N).
    """
    value, full = _lapack("svd", x), bool(full_matrices)
    u, s, vh = unpacked("svd", apply("svd", value, full=full), value.shape, {"full": full})
    return SVDResult(u, _real(s), vh)


@_in_float32
def svdvals(x: Any, /) -> Any:
    """The singular values alone."""
    return apply("svdvals", _lapack("svdvals", x))


def norm(x: Any, /, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    """NumPy's and PyTorch's linalg.norm: of all elements (ord None), of a matrix, or along axes."""
    value = to_inexact(value_of("norm", x))
    if ord is not None and (isinstance(ord, str) or (dim is None and value.ndim == 2)):
        if value.ndim != 2 or dim is not None:
            raise ShapeError(f"norm: {ord!r} is of a matrix, got {value.shape}; see matrix_norm")
        return matrix_norm(value, ord=ord, keepdims=keepdim)
    return vector_norm(value, axis=dim, keepdims=keepdim, ord=2 if ord is None else ord)


_WORDS = {"dim": "axis", "keepdim": "keepdims", "dims": "axes"}
vector_norm = worded(vector_norm, _WORDS)
matrix_norm = worded(matrix_norm, _WORDS)
cross = worded(cross, _WORDS)
vecdot = worded(vecdot, _WORDS)
tensordot = worded(tensordot, _WORDS)
for _name, _said in LINALG.items():
    globals()[_name] = _spoken("cyxcore.linalg", _name, globals()[_name], _said)


def __getattr__(name: str) -> Any:
    """What PyTorch has beside the standard: cyxcore/solving.py."""
    if name in _BESIDE:
        return getattr(importlib.import_module("cyxcore.solving"), name)
    raise AttributeError(f"cyxcore.linalg has no {name!r}")


_BESIDE = (
    "cholesky_inverse cholesky_solve cond lstsq matrix_exp multi_dot solve_triangular tensorinv tensorsolve vander"
).split()
