"""The shape and dtype rules of the matrix factorizations, and how one output holds several.

An op of the table has one output. Where a factorization has more (the eigenvalues and the vectors), they stand one
after the other along the last axis, each flattened; `parts` says their shapes and `unpacked` takes them out again.
"""

import math
from typing import Any

from cyxcore.dtype import COMPLEX, complex_dtype, real_dtype
from cyxcore.errors import ShapeError
from cyxcore.infer import Attrs, Rule, Shape, Typed, accept, broadcast

LAPACK = ("float32", "float64", *COMPLEX)  # what LAPACK computes with


def parts(op: str, shape: Shape, attrs: Attrs) -> list[Shape]:
    """The shapes of what the op makes of matrices (..., M, N), without their leading axes."""
    rows, columns = shape[-2:]
    inner = min(rows, columns)
    if op == "slogdet":
        return [(), ()]
    if op in ("eigh", "eig"):
        return [(rows,), (rows, rows)]
    wide, tall = (rows, columns) if attrs["full"] else (inner, inner)
    if op == "qr":
        return [(rows, wide), (wide, columns)]
    return [(rows, wide), (inner,), (tall, columns)]


def unpacked(op: str, packed: Any, shape: Shape, attrs: Attrs) -> list[Any]:
    """The outputs of an op of matrices of `shape`, taken out of its one."""
    found, start = [], 0
    for part in parts(op, shape, attrs):
        stop = start + math.prod(part)
        found.append(packed[..., start:stop].reshape(*shape[:-2], *part))
        start = stop
    return found


def matrices(op: str, shape: Shape, square: bool = True) -> None:
    """Raises ShapeError for what is no stack of (square) matrices."""
    if len(shape) < 2 or square and shape[-1] != shape[-2]:
        wanted = "square matrices (..., N, N)" if square else "matrices (..., M, N)"
        raise ShapeError(f"{op}: expected {wanted}, got shape {shape}")


def same(square: bool) -> Rule:
    """An op from matrices to matrices; those that need not be square change places of the sizes."""

    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        matrices(op, shapes[0], square)
        return (*shapes[0][:-2], *shapes[0][:-3:-1]), accept(op, dtypes[:1], LAPACK)

    return rule


def packed(square: bool) -> Rule:
    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        matrices(op, shapes[0], square)
        dtype = accept(op, dtypes, LAPACK)
        size = sum(math.prod(part) for part in parts(op, shapes[0], attrs))
        return (*shapes[0][:-2], size), complex_dtype(dtype) if op == "eig" else dtype

    return rule


def det(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    matrices(op, shapes[0])
    return shapes[0][:-2], accept(op, dtypes, LAPACK)


def values(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """Eigenvalues or singular values alone."""
    matrices(op, shapes[0], square=op != "svdvals")
    dtype = accept(op, dtypes, LAPACK)
    kept = complex_dtype(dtype) if op == "eigvals" else real_dtype(dtype)
    return (*shapes[0][:-2], min(shapes[0][-2:])), kept


def solve(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    a, b = shapes
    matrices(op, a)
    dtype = accept(op, dtypes, LAPACK)
    if len(b) < 2 or b[-2] != a[-1]:
        raise ShapeError(f"{op}: expected (..., N, N) and (..., N, K), got {a} and {b}")
    return (*broadcast(op, a[:-2], b[:-2]), *b[-2:]), dtype
