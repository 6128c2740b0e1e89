"""Tensors that a traced function makes to write values of the graph into: out = cx.zeros(n, 8), out[:, t] = h.

A tensor cannot hold such a value. So at the first write it becomes one itself, under all of its names.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cyxcore.eager import Tensor
from cyxcore.errors import GraphError
from cyxcore.held import becomes
from cyxcore.symbols import Symbol


class _Made(threading.local):
    """Of a thread that traces a function: the tensors that zeros() and its like made since, by their ids."""

    here: "dict[int, weakref.ref[Tensor]] | None" = None


_made = _Made()
_counting = threading.Lock()
noting = [0]  # threads that trace: where there are none zeros() asks no further


@contextmanager
def noting_what_is_made() -> Iterator[None]:
    """Within the block tensors that are made in this thread may become values of the graph."""
    before, _made.here = _made.here, {}
    with _counting:
        noting[0] += 1
    try:
        yield
    finally:
        with _counting:
            noting[0] -= 1
        _made.here = before


def note(tensor: Tensor) -> None:
    """That it was made just now."""
    if _made.here is not None:
        _made.here[id(tensor)] = weakref.ref(tensor)


@becomes
class Became(Tensor):
    """A tensor that is a value of a graph by now: whatever is asked of it is asked of that one."""

    _rank = Symbol._rank

    def __getattribute__(self, name: str) -> Any:
        return getattr(_value(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_value(self), name, value)


def _value(tensor: Became) -> Any:
    """Which it is; it stands in place of the array."""
    return object.__getattribute__(tensor, "_data")


def _asked(name: str) -> Callable[..., Any]:
    def method(self: Became, *args: Any) -> Any:
        return getattr(_value(self), name)(*args)

    return method


for _name in dir(Symbol):  # operators, which Python looks up in the class
    if _name.startswith("__") and callable(getattr(Symbol, _name)) and _name not in {*vars(Became), *vars(object)}:
        setattr(Became, _name, _asked(_name))
for _name in ("__hash__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__repr__", "__str__"):
    setattr(Became, _name, _asked(_name))


def value_of(tensor: Tensor, value: Symbol, name: str) -> Symbol:
    """What a tensor becomes into which `value` is written. name: of the write.

    Raises GraphError for a tensor that the function that is traced did not make, or of which it has taken views.
    """
    view: Any = tensor._view
    base: Tensor = tensor if view is None or view.base is None else view.base
    noted = (_made.here or {}).get(id(base))
    sharing = 1 + (tensor is not base)
    if noted is None or noted() is not base or type(base._data) is not np.ndarray or base.requires_grad:
        instead = f"x = x.{name[:-1]}(...)" if name.endswith("_") else "x = x ..."
        raise GraphError(
            f"{name}: a tensor cannot hold a value of a graph, but for one that the function made by cx.zeros and its "
            f"like; write {instead}, copy it into one (cx.empty_like(x).copy_(x)), or keep it in a buffer of a module"
        )
    if base._memory is not None and sys.getrefcount(base._memory) > sharing + 1:
        raise GraphError(
            f"{name}: writes a value of a graph to a tensor of which views were taken, which would not show it; take "
            "them afterwards, or of a clone()"
        )
    steps = () if tensor is base else view.steps
    whole = value.builder.lift(base).copy()
    part = whole
    for op, attrs in steps:
        part = part._apply(op, [part], dict(attrs))
    for each, symbol in {id(base): (base, whole), id(tensor): (tensor, part)}.values():
        each._data = symbol
        each.__class__ = Became
    return part
