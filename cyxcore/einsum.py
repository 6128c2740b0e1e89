"""Sums of products in Einstein's notation, as matrix products."""

import math
from typing import Any

from cyxcore.errors import ShapeError, SpecError
from cyxcore.values import together


def einsum(equation: str, /, *operands: Any) -> Any:
    """Products summed over what the result does not name: einsum("bij,bjk->bik", a, b). Letters and ... as in NumPy.

    Without "->" the result has the letters that come once, in the order of the alphabet. Operands are joined from left
    to right, each pair by one matrix product. Raises SpecError for an equation that cannot be read, ShapeError for
    sizes that differ.
    """
    if not operands:
        raise SpecError("einsum: expected at least one tensor")
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    values = together(*operands)
    if values[0].dtype == "bool":  # as in NumPy: whether some product is true
        return einsum(equation, *(value.astype("float32") for value in values)) > 0.0
    names, result = _read(equation, [value.ndim for value in values])
    sizes: dict[str, int] = {}
    for value, axes in zip(values, names, strict=True):
        for name, size in zip(axes, value.shape, strict=True):
            if sizes.setdefault(name, size) != size and 1 not in (size, sizes[name]):
                raise ShapeError(f"einsum {equation!r}: expected one size of {name}, got {sizes[name]} and {size}")
            sizes[name] = size if sizes[name] == 1 else sizes[name]
    terms = [_single(value, axes, sizes) for value, axes in zip(values, names, strict=True)]
    joined, axes = terms[0]
    for number, (value, others) in enumerate(terms[1:], start=1):
        later = set(result).union(*(set(rest) for _, rest in terms[number + 1 :]))
        joined, axes = _joined(joined, axes, value, others, later)
    gone = tuple(place for place, name in enumerate(axes) if name not in result)
    joined = joined.sum(gone) if gone else joined
    axes = [name for name in axes if name in result]
    return joined.permute(*(axes.index(name) for name in result)) if axes != list(result) else joined


def _read(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The axes of each operand and of the result; those of an ellipsis are "…0" (the last one), "…1", …."""
    said, arrow, wanted = equation.replace(" ", "").partition("->")
    parts = said.split(",")
    if len(parts) != len(ranks):
        raise SpecError(f"einsum {equation!r}: expected {len(parts)} tensors, got {len(ranks)}")
    names = [_axes(equation, part, rank) for part, rank in zip(parts, ranks, strict=True)]
    every = [name for axes in names for name in axes]
    spread = sorted({name for name in every if name[0] == "…"}, reverse=True)
    if arrow:
        result = _axes(equation, wanted, len(wanted.replace("...", "")) + (len(spread) if "..." in wanted else 0))
        unknown = [name for name in result if name not in every]
        if unknown or len(set(result)) < len(result):
            raise SpecError(f"einsum {equation!r}: the result has what no tensor has, or a letter twice")
        return names, result
    return names, spread + sorted(name for name in set(every) if name[0] != "…" and every.count(name) == 1)


def _axes(equation: str, part: str, rank: int) -> list[str]:
    before, dots, after = part.partition("...")
    letters = before + after
    if not all(letter.isascii() and letter.isalpha() for letter in letters):
        raise SpecError(f"einsum {equation!r}: expected letters and at most one ... per tensor, got {part!r}")
    free = rank - len(letters)
    if free < 0 or (free and not dots):
        raise ShapeError(f"einsum {equation!r}: {part!r} names {len(letters)} axes, the tensor has {rank}")
    return [*before, *(f"…{number}" for number in reversed(range(free))), *after]


def _single(value: Any, axes: list[str], sizes: dict[str, int]) -> tuple[Any, list[str]]:
    """An operand at its full sizes, of a letter that comes twice the diagonal."""
    value = value.broadcast_to(*(sizes[name] for name in axes))
    while len(set(axes)) < len(axes):
        name = next(name for name in axes if axes.count(name) > 1)
        first = axes.index(name)
        second = axes.index(name, first + 1)
        size = sizes[name]
        rest = [place for place in range(value.ndim) if place not in (first, second)]
        square = value.permute(first, second, *rest)
        value = square.reshape(size * size, *square.shape[2:])[:: size + 1]
        axes = [name, *(axes[place] for place in rest)]
    return value, axes


def _joined(a: Any, of_a: list[str], b: Any, of_b: list[str], later: set[str]) -> tuple[Any, list[str]]:
    """One product of two tensors: shared axes that are needed later in front, those that are not summed."""
    a, of_a = _reduced(a, of_a, later | set(of_b))
    b, of_b = _reduced(b, of_b, later | set(of_a))
    shared = [name for name in of_a if name in of_b and name in later]
    summed = [name for name in of_a if name in of_b and name not in later]
    left = [name for name in of_a if name not in of_b]
    right = [name for name in of_b if name not in of_a]
    sizes = dict(zip(of_a, a.shape, strict=True)) | dict(zip(of_b, b.shape, strict=True))

    def count(names: list[str]) -> int:
        return math.prod(sizes[name] for name in names)

    first = a.permute(*(of_a.index(name) for name in (*shared, *left, *summed))) if of_a else a
    second = b.permute(*(of_b.index(name) for name in (*shared, *summed, *right))) if of_b else b
    if not left and not right and summed and {first.dtype, second.dtype} <= {"float32", "float64"}:
        # Sums of products alone: as products of matrices each would be one long chain of additions.
        products = (first * second).reshape(count(shared), count(summed))
        return products.sum(-1).reshape(*(sizes[name] for name in shared)), shared
    rows = first.reshape(count(shared), count(left), count(summed))
    columns = second.reshape(count(shared), count(summed), count(right))
    axes = [*shared, *left, *right]
    return (rows @ columns).reshape(*(sizes[name] for name in axes)), axes


def _reduced(value: Any, axes: list[str], needed: set[str]) -> tuple[Any, list[str]]:
    gone = tuple(place for place, name in enumerate(axes) if name not in needed)
    return (value.sum(gone) if gone else value), [name for name in axes if name in needed]
