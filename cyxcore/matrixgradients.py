"""The gradients of the matrix factorizations, for real and complex matrices. cyxcore/gradients.py takes them over.

g is the gradient of the output, H the conjugate transpose. Sources: M. B. Giles, "Collected matrix derivative results
for forward and reverse mode algorithmic differentiation" (2008); for pinv, G. H. Golub and V. Pereyra (1973); for qr,
S. F. Walter and L. Lehmann (2018). Eigenvectors and singular vectors have gradients where the values are all different.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cyxcore.dtype import COMPLEX
from cyxcore.elementwise import conj, real
from cyxcore.errors import GradientError
from cyxcore.infermatrix import unpacked
from cyxcore.values import apply

Attrs = Mapping[str, Any]
RULES: dict[str, Callable[[Any, Sequence[Any], Any, Attrs], Sequence[Any]]] = {}


def _rule(name: str) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        RULES[name] = function
        return function

    return register


def _h(x: Any) -> Any:
    return conj(x.mT) if x.dtype in COMPLEX else x.mT


def _mask(like: Any, keep: Callable[[Any, Any], Any]) -> Any:
    """keep(rows, columns) of their numbers, as a matrix of like's size and dtype."""
    import numpy as np  # here: a graph is made without it

    rows, columns = like.shape[-2:]
    numbers = np.asarray(keep(np.arange(rows)[:, None], np.arange(columns)), np.float64)
    made = like._constant(numbers.reshape(-1).tolist() if like.is_symbolic else numbers, like.dtype)
    return made.reshape(rows, columns)


def _diagonal(row: Any) -> Any:
    """(..., N) as the diagonal of matrices."""
    square = row.expand_dims(-1).broadcast_to(*row.shape, row.shape[-1])
    return square * _mask(square, lambda a, b: a == b)


def _symmetric(x: Any) -> Any:
    """Half of x + xH: what a function of a symmetric matrix gives back."""
    return (x + _h(x)) * 0.5


def _gaps(row: Any) -> Any:
    """1 / (row[b] - row[a]) at (a, b), 0 on the diagonal."""
    gaps = row.expand_dims(-2) - row.expand_dims(-1)
    eye = _mask(gaps, lambda a, b: a == b)
    return (1.0 - eye) / (gaps + eye)


@_rule("inv")
def _inv(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    return (-(_h(y) @ g @ _h(y)),)


@_rule("solve")
def _solve(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    of_right = apply("solve", _h(x[0]), g)
    return -(of_right @ _h(y)), of_right


@_rule("cholesky")
def _cholesky(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    inner = _h(y) @ g
    half = inner * _mask(inner, lambda a, b: (a > b) + (a == b) * 0.5)
    back = apply("inv", y)
    return (_symmetric(_h(back) @ half @ back),)


@_rule("det")
def _det(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    """The matrix of cofactors: det(x) inv(x)H, and from the singular values where a determinant is 0."""
    singular = (y == 0).sum() > 0
    if y.is_symbolic:  # which of the two it is turns out when the plan runs; the other one gets a matrix it can take
        easy = _mask(x[0], lambda a, b: (a == b) * (a + 1)).broadcast_to(x[0].shape)
        one = _cofactors(g, apply("where", singular, x[0], easy))
        return (apply("where", singular, one, _times_inverse(g, y, apply("where", singular, easy, x[0]))),)
    return (_cofactors(g, x[0]) if singular.item() else _times_inverse(g, y, x[0]),)


def _times_inverse(g: Any, y: Any, x: Any) -> Any:
    scale = g * (conj(y) if y.dtype in COMPLEX else y)
    return scale.expand_dims(-1).expand_dims(-1) * _h(apply("inv", x))


def _cofactors(g: Any, x: Any) -> Any:
    n = x.shape[-1]
    u, s, vh = unpacked("svd", apply("svd", x), x.shape, {"full": False})
    others = s.expand_dims(-2).broadcast_to(*s.shape, n)
    one = _mask(others, lambda a, b: a == b)
    others = apply("prod", others * (1.0 - one) + one, axes=(others.ndim - 1,), keepdims=False)
    phase = apply("det", u) * apply("det", vh)
    scale = g * (conj(phase) if phase.dtype in COMPLEX else phase)
    return scale.expand_dims(-1).expand_dims(-1) * ((u * others.expand_dims(-2)) @ vh)


@_rule("slogdet")
def _slogdet(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    """Of the logarithm; the sign is constant."""
    if y.dtype in COMPLEX:
        raise GradientError("slogdet: the sign of a complex determinant has no gradient here; use det")
    return (g[..., 1].expand_dims(-1).expand_dims(-1) * _h(apply("inv", x[0])),)


@_rule("pinv")
def _pinv(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    a, ph, gh = x[0], _h(y), _h(g)
    left = gh - a @ (y @ gh)
    right = gh - (gh @ y) @ a
    return -(ph @ g @ ph) + (left @ y) @ ph + ph @ (y @ right), None


@_rule("eigvalsh")
def _eigvalsh(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    _, vectors = unpacked("eigh", apply("eigh", x[0]), x[0].shape, {})
    return ((vectors * g.astype(vectors.dtype).expand_dims(-2)) @ _h(vectors),)


@_rule("eigh")
def _eigh(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    """V (diag(g of the values) + VH (g of V) / gaps) VH."""
    (values, vectors), (of_values, of_vectors) = (unpacked("eigh", packed, x[0].shape, {}) for packed in (y, g))
    inner = _diagonal(of_values) + (_h(vectors) @ of_vectors) * _gaps(values)
    return (_symmetric(vectors @ inner @ _h(vectors)),)


def _of_input(x: Any, g: Any) -> Any:
    return g if x.dtype in COMPLEX else real(g)


@_rule("eigvals")
def _eigvals(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    """V^-H diag(g) VH, with the vectors of the same order: LAPACK finds the same values once more."""
    _, vectors = unpacked("eig", apply("eig", x[0]), x[0].shape, {})
    return (_of_input(x[0], apply("solve", _h(vectors), _diagonal(g) @ _h(vectors))),)


@_rule("eig")
def _eig(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    """Of what depends on vectors of length 1 but not on their phases."""
    (values, vectors), (of_values, of_vectors) = (unpacked("eig", packed, x[0].shape, {}) for packed in (y, g))
    adjoint = _h(vectors)
    turned = adjoint @ of_vectors
    own = (turned * _mask(turned, lambda a, b: a == b)).sum(-1)
    along = (adjoint @ vectors) * real(own).astype(own.dtype).expand_dims(-2)
    inner = _diagonal(of_values) + (turned - along) * conj(_gaps(values))
    return (_of_input(x[0], apply("solve", adjoint, inner @ adjoint)),)


@_rule("svdvals")
def _svdvals(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    u, _, vh = unpacked("svd", apply("svd", x[0]), x[0].shape, {"full": False})
    return ((u * g.astype(u.dtype).expand_dims(-2)) @ vh,)


@_rule("svd")
def _svd(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    rows, columns = x[0].shape[-2:]
    if attrs["full"] and rows != columns:
        raise GradientError(f"svd: no gradient of full matrices of {x[0].shape}; use svd(x, full_matrices=False)")
    if y.dtype in COMPLEX:
        raise GradientError("svd: complex singular vectors have no gradient, only real ones; use svdvals")
    (u, s, vh), (gu, gs, gvh) = (unpacked("svd", packed, x[0].shape, attrs) for packed in (y, g))
    v, gv = vh.mT, gvh.mT
    gaps, row, column = _gaps(s * s), s.expand_dims(-2), s.expand_dims(-1)
    from_u, from_v = u.mT @ gu, v.mT @ gv
    inner = (from_u - from_u.mT) * gaps * row + column * ((from_v - from_v.mT) * gaps) + _diagonal(gs)
    result = u @ inner @ vh
    if rows > columns:
        result = result + ((gu - u @ from_u) / row) @ vh
    if columns > rows:
        result = result + (u / row) @ (gv - v @ from_v).mT
    return (result,)


@_rule("qr")
def _qr(g: Any, x: Sequence[Any], y: Any, attrs: Attrs) -> Sequence[Any]:
    rows, columns = x[0].shape[-2:]
    if rows < columns or attrs["full"] and rows != columns:
        raise GradientError(f"qr: a gradient needs mode 'reduced' and rows >= columns, got {x[0].shape}")
    (q, r), (gq, gr) = (unpacked("qr", packed, x[0].shape, attrs) for packed in (y, g))
    inner = r @ _h(gr) - _h(gq) @ q
    lower = inner * _mask(inner, lambda a, b: a >= b)
    strict = inner * _mask(inner, lambda a, b: a > b)
    return (_h(apply("solve", r, _h(gq + q @ (lower + _h(strict))))),)
