"""Which tensors share memory, when it was written to, and what that means for gradients.

A view (a slice, a transposition, a reshape) shares the memory of the tensor it is of. Every write in place moves one
clock on, and the memory remembers the time. An operation remembers when it was done: a backward pass knows from both
whether a value it would need is still there. What is assigned to a part of a tensor is an operation of its own, `Put`,
from (the tensor as it was, the value) to the tensor as it is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore import indexing
from cyxcore.errors import GradientError
from cyxcore.held import Memory as Memory
from cyxcore.held import View as View
from cyxcore.indexing import picked as picked
from cyxcore.indexing import put as put
from cyxcore.ops import infer_op
from cyxcore.values import Value, apply

Array = Any

GONE = math.inf  # the time of a write that is later than every operation

VIEWS = frozenset(("reshape", "slice", "transpose", "flip"))


def seen(array: Array, op: str, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    """One of VIEWS of an array: sharing its memory where NumPy can."""
    if op == "slice":
        return array[(*map(slice, attrs["starts"], attrs["stops"], attrs["steps"]), ...)]
    if op == "transpose":
        return array.transpose(attrs["axes"])
    if op == "flip":
        return array[(*(slice(None, None, -1 if axis in attrs["axes"] else 1) for axis in range(array.ndim)), ...)]
    return array.reshape(shape)


class Region(NamedTuple):
    """The part of a tensor that is written to: a view of it, then an index (None: all of that)."""

    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    basic: tuple[Any, ...] | None
    arrays: Mapping[int, Array]

    def fill(self, array: Array, value: Any) -> None:
        for op, attrs in self.steps:
            array = seen(array, op, attrs, attrs.get("shape", ()))
        put(array, self.basic, self.arrays, value)


class Put:
    """The operation (tensor before, value) -> tensor after, in the role of a cyxcore.autograd.Function."""

    def __init__(self, region: Region | None) -> None:
        self.region = region  # None: everything

    def input_gradients(self, op: Any, g: Any, inputs: Sequence[Any], output: Any, attrs: Any) -> list[Any]:
        if self.region is None:
            return [None, g]
        kept = np.ones(g.shape, np.bool_)
        self.region.fill(kept, False)
        before = apply("where", g._constant(kept, "bool"), g, g._constant(0.0, g.dtype).broadcast_to(g.shape))
        part = g
        for name, step in self.region.steps:
            part = apply(name, part, **step)
        if self.region.basic is not None:
            part = part[self.region.basic]
            for arrays in (self.region.arrays,) if self.region.arrays else ():
                part = part[tuple(arrays.get(axis, slice(None)) for axis in range(part.ndim))]
        return [before, part]


class Overwritten(Value):
    """Stands in a gradient rule for a value that was written over since.

    What is computed from it is of the same kind; only when an input needs that gradient it is an error.
    """

    _rank = 3

    def __init__(self, shape: tuple[int, ...], dtype: str, op: str) -> None:
        self.shape, self.dtype, self.op = shape, dtype, op

    def _apply(self, op: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> "Overwritten":
        shapes = tuple(x.shape if isinstance(x, Value) else np.shape(x) for x in inputs)
        dtypes = tuple(x.dtype if isinstance(x, Value) else self.dtype for x in inputs)
        (shape, dtype), _ = infer_op(op, shapes, dtypes, attrs)
        return Overwritten(shape, dtype, self.op)

    def __getitem__(self, index: Any) -> Any:
        return indexing.get(self, index)

    def _constant(self, value: Any, dtype: str | None = None) -> "Overwritten":
        return Overwritten(np.shape(value), dtype or self.dtype, self.op)

    def item(self) -> Any:
        raise self.error()

    def error(self) -> GradientError:
        return GradientError(
            f"backward: the gradient of {self.op} needs a tensor {self.shape} as it was, but it was changed in place "
            "since; change a copy instead (x = x + 1, x.copy()), or call backward() before"
        )
