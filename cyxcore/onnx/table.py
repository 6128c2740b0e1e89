"""The operator table of ONNX: a row for each operator we run, with its opsets and its translation.

A translation is a function of one node (`Call`) and its inputs; it computes with Values, so the same row runs a
tensor at once and writes a symbol's nodes into a graph. To add an operator: a function under `@operator` in the file of
its kind, and `python -m tests.onnx_nodes --write`, which makes docs/onnx.md anew.

https://onnx.ai/onnx/operators says what each operator means.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import GraphError, ShapeError
from cyxcore.symbols import Symbol
from cyxcore.values import Value, apply

MIN_OPSET, MAX_OPSET = 7, 28


class Call(NamedTuple):
    """A node that is being run."""

    op: str
    opset: int
    attrs: Mapping[str, Any]
    outputs: int  # how many of its outputs are named
    like: Any  # any Value of the run, to make constants with
    run: Callable[[Any, Sequence[Any]], list[Any]]  # (subgraph, its inputs) -> its outputs

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def needs(self, name: str) -> Any:
        """An attribute that must be there."""
        if name not in self.attrs:
            raise GraphError(f"attribute {name!r} is missing")
        return self.attrs[name]


Translate = Callable[..., Any]  # (call, *inputs; None for one left out) -> Value or a sequence of outputs


class Operator(NamedTuple):
    name: str
    since: int  # the first opset whose meaning the row has
    known: tuple[int, ...]  # inputs whose values must be known when the graph is made: shapes, axes
    translate: Translate
    limits: str  # what of the operator is refused, in words; empty: nothing


OPERATORS: dict[str, Operator] = {}


def operator(*names: str, since: int = MIN_OPSET, known: Sequence[int] = (), limits: str = "") -> Any:
    """Registers a translation. since: of the operator's meaning here; older models are refused."""

    def register(translate: Translate) -> Translate:
        for name in names:
            OPERATORS[name] = Operator(name, since, tuple(known), translate, limits)
        return translate

    return register


# helpers of the rows ------------------------------------------------------------------------------


def host(value: Any) -> Any:
    """The NumPy array of a value that must be known while the graph is read. Raises GraphError for a symbol."""
    if isinstance(value, Symbol):
        raise GraphError(
            "an input that says shapes or axes depends on the model's input values; a graph cannot hold it"
        )
    if isinstance(value, Value) and value.dtype == "bfloat16":
        value = value.astype("float32")
    return value.numpy() if isinstance(value, Value) else np.asarray(value)  # type: ignore[attr-defined]


def ints(value: Any) -> list[int]:
    """Integers that must be known: an attribute, or an input."""
    if isinstance(value, Value):
        value = host(value)
    return [int(entry) for entry in np.asarray(value).reshape(-1)]


def integer(value: Any) -> int:
    found = ints(value)
    if len(found) != 1:
        raise ShapeError(f"expected one integer, got {found[:10]}")
    return found[0]


def number(value: Any) -> float:
    found = np.asarray(host(value) if isinstance(value, Value) else value).reshape(-1)
    if found.size != 1:
        raise ShapeError(f"expected one number, got {found.size}")
    return float(found[0])


def text(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace") if not isinstance(value, str) else value


def constant(like: Value, array: Any, dtype: str | None = None) -> Any:
    """An array as a Value beside `like`."""
    if dtype == "bfloat16":
        return like._constant(np.asarray(array, np.float32)).astype(dtype)
    held = np.asarray(array) if dtype is None else np.asarray(array).astype(dtype)
    return like._constant(held, dtype)


def tensor(array: Any) -> Any:
    """A known array as a tensor: part of no graph until a symbol meets it."""
    from cyxcore.eager import Tensor

    return Tensor(np.asarray(array, order="C"))


def filled(like: Value, shape: Sequence[int], value: Any, dtype: str) -> Any:
    """One number in a whole shape."""
    return like._constant(value, dtype).broadcast_to(*shape) if shape else like._constant(value, dtype)


def symbolic(*values: Any) -> bool:
    return any(isinstance(value, Symbol) for value in values)


def along(value: Any, axis: int, part: slice) -> Any:
    """A slice of one axis."""
    return value[(slice(None),) * axis + (part,)]


def matmul(a: Any, b: Any) -> Any:
    return apply("matmul", a, b)
