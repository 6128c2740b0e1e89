"""Calls of Python functions in compiled functions: what no op of ours says, but NumPy does at once.

A plan calls the function with the arrays of its inputs when it gets there. Shape and dtype of the result are said, not
found out; its gradient, where it has one, is a rule like those of gradients.py. Graphs that travel hold no such call.
"""

from collections.abc import Callable, Sequence
from typing import Any

from cyxcore import indexing
from cyxcore.dtype import holds_kind
from cyxcore.errors import DtypeError, ShapeError
from cyxcore.infer import stretches
from cyxcore.values import Value, apply

Array = Any  # numpy.ndarray, of which this module knows no more


def is_symbolic(*values: Any) -> bool:
    """Whether one of them is a value of a graph under construction."""
    return any(isinstance(value, Value) and value.is_symbolic for value in values)


def hosted(
    function: Callable[..., Any],
    shape: Sequence[int],
    dtype: str,
    *inputs: Any,
    gradient: Callable[[Any, Sequence[Any], Any], Sequence[Any]] | None = None,
) -> Any:
    """function(*arrays) of values, an array of this shape and dtype. It must give the same for the same arrays.

    gradient: (g, inputs, output) -> a gradient or None for each input; without one no gradient goes through.
    """
    attrs = {"function": function, "shape": tuple(shape), "dtype": dtype, "gradient": gradient}
    return apply("host_call", *inputs, **attrs)


def fitting(x: Any, value: Any, shape: Sequence[int]) -> Any:
    """What is assigned to elements of x, in its dtype and of a shape that stretches to theirs."""
    given = value if isinstance(value, Value) else x._constant(value)
    if not holds_kind(x.dtype, given.dtype):
        raise DtypeError(f"assignment: {x.dtype} does not hold {given.dtype}; use astype on one of them")
    given = given.astype(x.dtype) if hasattr(value, "dtype") else x._constant(value, x.dtype)
    if given.size == 1 and given.ndim > len(shape):
        given = given.reshape(())
    if not stretches(given.shape, tuple(shape)):
        raise ShapeError(f"assignment: expected a value for shape {tuple(shape)}, got {given.shape}")
    return given


def written(x: Any, index: Any, value: Any) -> Any:
    """x with a value at the places that an index names, of which the last of several for one place stays."""
    if not is_symbolic(x, value, *(index if isinstance(index, tuple) else (index,))):
        result = x.copy()
        result[index] = value
        return result
    basic, arrays = indexing.split(x, index)
    places, whole = sorted(arrays), indexing.picked(x.shape, basic, arrays)
    given = fitting(x, value, whole)

    def after(before: Array, new: Any, *indices: Array) -> Array:
        result = before.copy()
        indexing.put(result, tuple(basic), dict(zip(places, indices, strict=True)), new)
        return result

    def untouched(like: Array, *indices: Array) -> Array:
        everywhere = like.astype(bool)
        everywhere[...] = True
        return after(everywhere, False, *indices)

    def gradient(g: Any, inputs: Sequence[Any], output: Any) -> Sequence[Any]:
        indices = inputs[2:]
        kept = hosted(untouched, g.shape, "bool", g, *indices)
        before = apply("where", kept, g, g._constant(0.0, g.dtype).broadcast_to(g.shape))
        part = g[tuple(basic)] if basic else g
        if indices:
            found = dict(zip(places, indices, strict=True))
            part = part[tuple(found.get(axis, slice(None)) for axis in range(places[-1] + 1))]
        return [before, part, *[None] * len(indices)]

    return hosted(
        after, x.shape, x.dtype, x, given.broadcast_to(whole), *(arrays[at] for at in places), gradient=gradient
    )
