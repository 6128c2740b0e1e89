"""Norms of tensors by one kernel, there and back: what composed.py runs instead of two plans.

The kernel (kernels/src/norms.inl) keeps a few rows in the nearest cache through all passes, and has the bits of
the operations in functional/norms.py, and of their gradients. It does layer, group and RMS norms, and batch norms by
running statistics.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore import device as devices
from cyxcore.functional import norms

Array = Any
FLOATS = ("float32", "float64")
LEAST_TERMS = 8  # of a row: mean and variance are kept for the way back


class Rows(NamedTuple):
    """How the numbers of x lie in rows."""

    n: int  # in each row, which is normalised
    inner: int  # so many of them, one after the other, have one weight; 0: each column has its own
    weights: int
    eps: float
    has_mean: bool = True
    has_bias: bool = True
    before_first: bool = True  # whether a gradient so far is added before what goes through the mean


def _of_layer_norm(shape: tuple[int, ...], count: int, eps: float) -> Rows:
    n = math.prod(shape[len(shape) - count :])
    return Rows(n, 0, n, eps)


def _of_rms_norm(shape: tuple[int, ...], count: int, eps: float) -> Rows:
    return _of_layer_norm(shape, count, eps)._replace(has_mean=False, has_bias=False)


def _of_group_norm(shape: tuple[int, ...], num_groups: int, eps: float) -> Rows:
    n = math.prod(shape[1:]) // num_groups
    # What goes through a reshape comes as one gradient.
    return Rows(n, math.prod(shape[2:]), shape[1], eps, before_first=shape == (shape[0], num_groups, n))


ROWS: dict[Callable[..., Any], Callable[..., Rows]] = {
    norms._layer_norm: _of_layer_norm,
    norms._rms_norm: _of_rms_norm,
    norms._group_norm: _of_group_norm,
}


class Norm:
    """As composed.py asks a kind of calls: `count` results, the tensors `needed` on the way back, run() and back()."""

    count = 1
    needed: set[int]
    kept: int  # arrays

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self._shape, dtype = kind.typed[0]
        self._type = np.dtype(dtype).num
        self._kernels: Any = devices.backend("cpu").kernels  # type: ignore[attr-defined]
        self._backs = dict[tuple[bool, ...], Back]()

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """The result, and what is kept for the way back. arrays: of the tensors."""
        raise NotImplementedError

    def gradients(self, given: dict[tuple[str, int], Array], made: list[Array | None]) -> None:
        """Fills the gradients that are made. given: by the names of Back."""
        raise NotImplementedError

    def new(self, *shape: int) -> Array:
        return self._kernels.aligned(shape or self._shape, self._type)

    def back(self, sums: tuple[bool, ...]) -> "Back":
        known = self._backs.get(sums)
        if known is None:
            known = self._backs[sums] = Back(self, sums)
        return known


class RowNorm(Norm):
    """Each row by its own mean and variance."""

    def __init__(self, kind: Any, rows: Rows) -> None:
        super().__init__(kind)
        self._rows, self._stats = rows, (math.prod(self._shape) // rows.n,)
        self._weight, self._bias = kind.places[1], kind.places[2] if rows.has_bias else None
        self.needed = {0} if self._weight is None else {0, self._weight}
        self.kept = 1 + rows.has_mean

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        rows, normalise, aligned, numpy_type = self._rows, self._kernels.normalise, self._kernels.aligned, self._type
        var, out = aligned(self._stats, numpy_type), aligned(self._shape, numpy_type)
        mean = aligned(self._stats, numpy_type) if rows.has_mean else None
        weight = None if self._weight is None else arrays[self._weight]
        bias = None if self._bias is None else arrays[self._bias]
        normalise(arrays[0], rows.n, rows.inner, rows.eps, mean, var, weight, bias, out)
        return [out], [var] if mean is None else [var, mean]

    def gradients(self, given: dict[tuple[str, int], Array], made: list[Array | None]) -> None:
        rows = self._rows
        of_weight, of_bias = (None if place is None else made[place] for place in (self._weight, self._bias))
        weight = None if self._weight is None else given["", self._weight]
        self._kernels.normalise(
            given["", 0], rows.n, rows.inner, rows.eps, given.get(("kept", 1)), given["kept", 0], weight, None, made[0],
            given["g", 0], given.get(("sum", 0)), rows.before_first, of_weight, of_bias,
        )  # fmt: skip


class GivenNorm(Norm):
    """Each channel (axis 1) by a mean and a variance that are given."""

    kept = 0

    def __init__(self, kind: Any) -> None:
        super().__init__(kind)
        (self._eps,) = kind.options
        self._inner = math.prod(self._shape[2:])
        _, self._mean, self._var, self._weight, self._bias = kind.places
        self.needed = {self._mean, self._var}
        if self._weight is not None:  # for whose gradient alone x is read
            self.needed |= {0, self._weight} if kind.followed[self._weight] else {self._weight}

    def _factor(self, var: Array, weight: Array | None) -> tuple[Array, Array]:
        """The standard deviation of each channel, and what it is multiplied by."""
        with np.errstate(all="ignore"):
            std = np.sqrt(var + var.dtype.type(self._eps))
            return std, var.dtype.type(1.0) / std if weight is None else weight / std

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        out = self.new()
        weight, bias = (None if place is None else arrays[place] for place in (self._weight, self._bias))
        _, factor = self._factor(arrays[self._var], weight)
        mean = arrays[self._mean]
        self._kernels.normalise(arrays[0], self._inner, self._inner, 0.0, mean, factor, None, bias, out, given=True)
        return [out], []

    def gradients(self, given: dict[tuple[str, int], Array], made: list[Array | None]) -> None:
        of_weight, of_bias = (None if place is None else made[place] for place in (self._weight, self._bias))
        g = given["g", 0]
        std, factor = self._factor(given["", self._var], given.get(("", self._weight)))
        self._kernels.normalise(
            given.get(("", 0), g), self._inner, self._inner, 0.0, given["", self._mean], factor, None, None, made[0],
            g, given.get(("sum", 0)), True, of_weight, of_bias, given=True,
        )  # fmt: skip
        if of_weight is not None:
            with np.errstate(all="ignore"):
                np.divide(of_weight, std, out=of_weight)


class Back:
    """The way back, of gradients of which some have a sum to be added to. names: of what run() takes."""

    def __init__(self, norm: Norm, sums: tuple[bool, ...]) -> None:
        self._norm = norm
        kept, so_far = range(norm.kept), (place for place, added in enumerate(sums) if added)
        self.names = [("g", 0), *(("", place) for place in sorted(norm.needed)), *(("kept", place) for place in kept)]
        self.names += [("sum", place) for place in so_far]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """The gradients of the tensors that are followed, in order."""
        kind, given = self._norm.kind, dict(zip(self.names, arrays, strict=True))
        made = [
            self._norm.new(*shape) if followed else None
            for (shape, _), followed in zip(kind.typed, kind.followed, strict=True)
        ]
        self._norm.gradients(given, made)
        for place, new in enumerate(made[1:], 1):
            if new is not None and ("sum", place) in given:
                with np.errstate(all="ignore"):
                    np.add(given["sum", place], new, out=new)
        return [new for new in made if new is not None]


def norm_of(kind: Any) -> Norm | None:
    """What makes the calls of a composed.Kind; None where the kernel does not."""
    shape, dtype = kind.typed[0]
    given = [place for place in kind.places if place is not None]
    if given != list(range(len(given))) or any(each != dtype for _, each in kind.typed) or dtype not in FLOATS:
        return None
    if kind.function is norms._batch_norm_by_given:
        channels = shape[1]
        as_given = not kind.followed[kind.places[1]] and not kind.followed[kind.places[2]]
        pixels = math.prod(shape[2:])
        fits = all(each == (channels,) for each, _ in kind.typed[1:])
        return GivenNorm(kind) if as_given and fits and channels > 1 and pixels > 1 else None
    find = ROWS.get(kind.function)
    if find is None:
        return None
    rows = find(shape, *kind.options)
    fits = all(math.prod(each) == rows.weights for each, _ in kind.typed[1:])
    # One channel, or one pixel of each, is summed in another order; a few long rows are shared out by plans.
    usual = rows.inner == 0 or not kind.typed[1:] or (rows.weights > 1 and rows.inner > 1)
    enough = rows.n >= LEAST_TERMS and math.prod(shape) // rows.n >= max(2, kind.threads)
    return RowNorm(kind, rows) if fits and usual and enough else None
