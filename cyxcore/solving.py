"""PyTorch's linear algebra beside the standard's: triangular and least-squares solutions, exponentials, products.

All are made of cx.linalg's, so they have its gradients and its shapes; they run on tensors.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cyxcore import linalg, torchnames, torchstatistics
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import concat
from cyxcore.infermatrix import matrices
from cyxcore.values import to_inexact

__all__ = (
    "cholesky_inverse cholesky_solve cond lstsq matrix_exp multi_dot solve_triangular tensorinv tensorsolve "
    "triangular_solve vander"
).split()

_BLOCK = 64  # rows of a triangle that are solved at once, as those of any matrix
_TERMS = 18  # of the series of exp, for matrices whose norm is at most 1/2: the rest is below 2**-70


class LstsqResult(NamedTuple):
    """solution (…, N, K); residuals (…, K) where a driver is named, M > N and the rank is full, else (0,); rank (…);
    singular_values (…, min(M, N)) of drivers gelsd and gelss, else (0,). As in PyTorch, but for the rank, which gels
    gives too; NumPy's four are those of driver "gelsd".
    """

    solution: Any
    residuals: Any
    rank: Any
    singular_values: Any


class TriangularResult(NamedTuple):
    solution: Any
    cloned_coefficient: Any


def solve_triangular(
    A: Any,  # noqa: N803 - PyTorch's
    B: Any,  # noqa: N803
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Any:
    """X with A X = B (left=False: X A = B), of the triangle of A (…, N, N) that `upper` says, B (…, N, K).

    unitriangular: its diagonal is taken for ones. Raises DataError for a singular triangle.
    """
    if not left:
        return solve_triangular(A.mT, B.mT, upper=not upper, unitriangular=unitriangular).mT
    size = A.shape[-1]
    if size > _BLOCK and B.ndim > 1 and A.ndim > 1 and A.shape[-2] == B.shape[-2] == size and A.dtype == B.dtype:
        # The other triangle is zeros: one half of the unknowns needs nothing of the other half.
        cut = size // 2
        first, last = slice(None, cut), slice(cut, None)
        known, rest = (last, first) if upper else (first, last)
        found = solve_triangular(A[..., known, known], B[..., known, :], upper=upper, unitriangular=unitriangular)
        right = B[..., rest, :] - A[..., rest, known] @ found
        other = solve_triangular(A[..., rest, rest], right, upper=upper, unitriangular=unitriangular)
        return concat([other, found] if upper else [found, other], -2)
    triangle = torchnames.triu(A) if upper else torchnames.tril(A)
    if unitriangular:
        own = torchnames.triu(A, 1) if upper else torchnames.tril(A, -1)
        triangle = own + linalg.matrix_power(A, 0)
    return linalg.solve(triangle, B)


def triangular_solve(
    b: Any,
    A: Any,  # noqa: N803
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
) -> TriangularResult:
    """(X, A) with A X = b, or Aᵀ X = b: solve_triangular by its older name."""
    if transpose:
        return TriangularResult(solve_triangular(A.mT, b, upper=not upper, unitriangular=unitriangular), A)
    return TriangularResult(solve_triangular(A, b, upper=upper, unitriangular=unitriangular), A)


def cholesky_solve(B: Any, L: Any, upper: bool = False) -> Any:  # noqa: N803
    """X with (L Lᵀ) X = B, of a Cholesky factor."""
    lower = L.mT if upper else L
    return solve_triangular(lower.mT, solve_triangular(lower, B, upper=False), upper=True)


def cholesky_inverse(L: Any, upper: bool = False) -> Any:  # noqa: N803
    """The inverse of L Lᵀ, of a Cholesky factor."""
    return cholesky_solve(linalg.matrix_power(L, 0), L, upper)


def lstsq(
    A: Any,  # noqa: N803
    B: Any,  # noqa: N803
    rcond: float | None = None,
    *,
    driver: str | None = None,
) -> LstsqResult:
    """The X that makes |A X - B| least, the smallest of several: A (…, M, N), B (…, M, K). See LstsqResult.

    rcond: singular values below that share of the largest count as 0. driver: gels, gelsd, gelss, gelsy or None, by
    which PyTorch decides whether it gives residuals and singular values; the solution is the same.
    """
    left, right = to_inexact(A), to_inexact(B)
    matrices("lstsq", left.shape, square=False)
    rows, columns = left.shape[-2:]
    solution = linalg.pinv(left, rtol=rcond) @ right
    rank = linalg.matrix_rank(left, rtol=rcond)
    if driver not in (None, "gels", "gelsd", "gelss", "gelsy"):
        raise SpecError(f"lstsq: expected driver gels, gelsd, gelss, gelsy or None, got {driver!r}")
    full = driver not in (None, "gelsy") and rows > columns and bool((rank == columns).all())
    left_over = ((left @ solution - right) ** 2).sum(-2) if full else left._constant([], left.dtype)
    values = linalg.svdvals(left) if driver in ("gelsd", "gelss") else left._constant([], left.dtype)
    return LstsqResult(solution, left_over, rank, values)


def cond(A: Any, p: Any = None) -> Any:  # noqa: N803
    """The condition number in a norm: of the singular values without p."""
    if p is None or p in (2, -2):
        row = linalg.svdvals(to_inexact(A))
        return row[..., 0] / row[..., -1] if p != -2 else row[..., -1] / row[..., 0]
    return linalg.matrix_norm(A, ord=p) * linalg.matrix_norm(linalg.inv(A), ord=p)


def matrix_exp(A: Any) -> Any:  # noqa: N803
    """The exponential of matrices (…, N, N): its series of a small part, squared up again."""
    value = to_inexact(A)
    matrices("matrix_exp", value.shape)
    size = float(linalg.matrix_norm(value.detach(), ord=1).max().item()) if value.size else 0.0
    if not math.isfinite(size):
        raise SpecError("matrix_exp: expected finite numbers")
    halvings = max(math.ceil(math.log2(size)) + 1, 0) if size > 0.0 else 0
    small = value * 2.0**-halvings
    total = one = linalg.matrix_power(value, 0)
    for term in range(_TERMS, 0, -1):  # Horner's
        total = one + (small @ total) * (1.0 / term)
    for _ in range(halvings):
        total = total @ total
    return total


def multi_dot(tensors: Sequence[Any]) -> Any:
    """The product of matrices, the first and last of which may be vectors, in the order with the fewest products."""
    parts = list(tensors)
    if len(parts) < 2:
        raise ShapeError(f"multi_dot: expected at least two tensors, got {len(parts)}")
    row, column = parts[0].ndim == 1, parts[-1].ndim == 1
    parts[0] = parts[0].reshape(1, -1) if row else parts[0]
    parts[-1] = parts[-1].reshape(-1, 1) if column else parts[-1]
    if any(part.ndim != 2 for part in parts):
        raise ShapeError(f"multi_dot: expected matrices, got {', '.join(str(part.shape) for part in tensors)}")
    found = _in_order(parts)
    return found.reshape(found.shape[1 if row else 0 :][: found.ndim - row - column])


def _in_order(parts: list[Any]) -> Any:
    """The cheapest product, by the costs of all ways to part it."""
    sizes = [part.shape[0] for part in parts] + [parts[-1].shape[1]]
    best: dict[tuple[int, int], tuple[int, int]] = {(at, at + 1): (0, at) for at in range(len(parts))}
    for width in range(2, len(parts) + 1):
        for low in range(len(parts) - width + 1):
            high = low + width
            best[low, high] = min(
                (best[low, cut][0] + best[cut, high][0] + sizes[low] * sizes[cut] * sizes[high], cut)
                for cut in range(low + 1, high)
            )

    def product(low: int, high: int) -> Any:
        if high - low == 1:
            return parts[low]
        cut = best[low, high][1]
        return product(low, cut) @ product(cut, high)

    return product(0, len(parts))


def tensorinv(A: Any, ind: int = 2) -> Any:  # noqa: N803
    """The inverse of A as a map from its last axes to its first `ind`."""
    rows, columns = math.prod(A.shape[:ind]), math.prod(A.shape[ind:])
    if ind < 1 or rows != columns:
        raise ShapeError(f"tensorinv: expected as many elements before axis {ind} as from there on, got {A.shape}")
    return linalg.inv(A.reshape(rows, columns)).reshape(*A.shape[ind:], *A.shape[:ind])


def tensorsolve(A: Any, B: Any, dims: Sequence[int] | None = None) -> Any:  # noqa: N803
    """X with tensordot(A, X, X.ndim) = B. dims: axes of A that are moved to its end before."""
    value = A
    if dims is not None:
        last = [A._axis(axis) for axis in dims]
        value = A.permute(*(axis for axis in range(A.ndim) if axis not in last), *last)
    shape = value.shape[B.ndim :]
    if math.prod(shape) != B.size:
        raise ShapeError(f"tensorsolve: expected as many unknowns as equations, got {A.shape} and {B.shape}")
    return linalg.solve(value.reshape(B.size, B.size), B.reshape(-1)).reshape(*shape)


def vander(x: Any, *, N: int | None = None) -> Any:  # noqa: N803 - PyTorch's
    """(…, N): the powers of each element, the lowest first."""
    return torchstatistics.vander(x, N, increasing=True)
