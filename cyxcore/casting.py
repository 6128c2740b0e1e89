"""Which dtypes functions compute in within cx.amp.autocast (amp.py): the state of each thread, and who asks for it.

A function says by a decorator what becomes of its tensors there, as PyTorch's lists for the CPU do. Only float32 and
the halves are cast, never float64, and only on the cpu; within such a function nothing is cast once more.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from cyxcore.errors import GraphError

F = TypeVar("F", bound=Callable[..., Any])

HALVES = ("bfloat16", "float16")
CAST = frozenset((*HALVES, "float32"))
inside = bytearray(1)  # whether any thread is within autocast: read in C before each product (kernels/tensors.pyx)


class _Own(threading.local):
    dtype: str | None = None


_own = _Own()
_lock = threading.Lock()
_threads = 0  # within autocast


def current() -> str | None:
    """The dtype that products of this thread are made in; None: that of their inputs."""
    return _own.dtype if inside[0] else None


def set_current(dtype: str | None) -> str | None:
    """Choose it. Returns what was before."""
    global _threads
    before, _own.dtype = _own.dtype, dtype
    if (before is None) != (dtype is None):
        with _lock:
            _threads += 1 if before is None else -1
            inside[0] = _threads > 0
    return before


def _begin_child() -> None:
    """A child of fork has no thread but the one that forked, and nobody who releases the lock of another."""
    global _lock, _threads
    _lock, _threads = threading.Lock(), int(_own.dtype is not None)
    inside[0] = _threads > 0


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_begin_child)


@contextmanager
def of_thread(dtype: str | None) -> Iterator[None]:
    """Within the block it is this one."""
    before = set_current(dtype)
    try:
        yield
    finally:
        set_current(before)


def lowered(function: F) -> F:
    """A product: its tensors become halves."""
    return _casting(function, lambda x, half: _cast(x, half))


def in_float32(function: F) -> F:
    """Losses and the like: halves become float32, and so is the result."""
    return _casting(function, lambda x, half: _cast(x, "float32"))


def rounded(function: F) -> F:
    """Computed in float32; a result of halves, or the first of several, is rounded to the first argument's dtype."""

    def narrow(result: Any, args: Sequence[Any]) -> Any:
        return _narrowed(result, args[0].dtype) if is_value(args[0]) and args[0].dtype in HALVES else result

    return _casting(function, lambda x, half: _cast(x, "float32"), narrow)


def rounded_product(function: F) -> F:
    """A row of products: halves of its tensors, computed in float32 and rounded at the end."""

    def narrow(result: Any, args: Sequence[Any]) -> Any:
        return _narrowed(result, _own.dtype)

    return _casting(function, lambda x, half: _cast(_cast(x, half), "float32"), narrow)


def as_given(function: F) -> F:
    """Made of products, but not in PyTorch's list: nothing is cast within."""
    return _casting(function, lambda x, half: x)


def _casting(function: F, cast: Callable[[Any, str], Any], narrow: Callable[[Any, Any], Any] | None = None) -> F:
    @functools.wraps(function)
    def within(*args: Any, **named: Any) -> Any:
        half = _own.dtype if inside[0] else None
        if half is None:
            return function(*args, **named)
        given = [_each(x, cast, half) for x in args]
        others = {name: _each(x, cast, half) for name, x in named.items()}
        with of_thread(None):
            result = function(*given, **others)
        return result if narrow is None else narrow(result, args)

    return within  # type: ignore[return-value]


def _each(x: Any, cast: Callable[[Any, str], Any], half: str) -> Any:
    """x with its tensors cast: itself, or in a tuple or list."""
    if is_value(x):
        return cast(x, half)
    if isinstance(x, (list, tuple)):
        inner = [_each(one, cast, half) for one in x]
        return x._make(inner) if hasattr(x, "_make") else type(x)(inner)
    return x


def is_value(x: Any) -> bool:
    """Whether it is a tensor or a symbol, whose module comes after this one."""
    return hasattr(x, "_rank")


def _cast(x: Any, dtype: str) -> Any:
    if x.dtype == dtype or x.dtype not in CAST or x.device not in ("cpu", "reference"):
        return x
    if x.is_symbolic and not x.is_compiled:
        raise GraphError(
            "autocast: a graph that is traced to be saved or sent holds no float16 or bfloat16; trace it outside of "
            "autocast, which works on tensors and in cx.compile"
        )
    return x.astype(dtype)


def _narrowed(result: Any, dtype: Any) -> Any:
    """The result, or the first of several, in a dtype: others are statistics."""
    if isinstance(result, (list, tuple)):
        return type(result)([_narrowed(result[0], dtype), *result[1:]])
    return _cast(result, dtype)


def operands(left: Any, right: Any) -> tuple[Any, Any]:
    """The factors of left @ right as this thread casts them."""
    half = current()
    return (left, right) if half is None else (_cast(left, half), _cast(right, half))


def composed_of_halves(x: Any) -> bool:
    """Whether a function of several operations (Value._composed) of x is computed in float32, and rounded once."""
    return x.dtype in HALVES and current() is not None


def widened(x: Any, half: str | None) -> Any:
    """x, rounded to half where there is one, as float32; None stays None."""
    if x is None:
        return None
    return _cast(x if half is None else _cast(x, half), "float32")


def step_by_step(
    function: Callable[..., Any], inputs: Sequence[Any], options: tuple[Any, ...], half: str | None
) -> Any:
    """Value._in_halves, one operation after the other."""
    with of_thread(None):
        wide = [widened(x, half) for x in inputs]
        return _narrowed(wide[0]._composed(function, wide, options), half or inputs[0].dtype)
