"""The operators in place: x += y and its kind, in the memory x has.

A value that has memory is an InPlace; a symbol of a graph has none, and is another node after x += y (symbols.py).
"""

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

from cyxcore.dtype import holds_kind
from cyxcore.errors import DtypeError, ShapeError
from cyxcore.values import Value


def check_fits(name: str, x: Value, result: Value) -> None:
    """Raises ShapeError or DtypeError where x cannot take a result in place."""
    if result.shape != x.shape:
        raise ShapeError(f"{name}: the result is {result.shape} and does not fit into {x.shape}; write x = x ...")
    if not holds_kind(x.dtype, result.dtype):
        raise DtypeError(f"{name}: {x.dtype} does not hold {result.dtype}; write x = x ..., or use astype")


class InPlace(Value):
    """A value whose memory can be written to, by `_put`."""

    def _put(self, value: Any) -> None:
        """Write a value of this shape and dtype, and remember where it came from."""
        raise NotImplementedError

    def _kept(self, *others: Any) -> Self:
        """This value for an operation on it and others whose gradient reads it, and whose result is written over it."""
        raise NotImplementedError

    def _is_newest(self) -> bool:
        """Whether only this value has its memory, and nothing was computed from it whose gradient is still to come."""
        return False

    def _become(self, name: str, operate: Callable[[Any, Any], Any], other: Any) -> Self:
        """_in_place of the newest result, in memory of its own: nobody can tell, and its gradient is an operation's."""
        raise NotImplementedError

    def _at_once(self, name: str, other: Any) -> bool:
        """Whether a kernel has made the operation in place in this memory: where nothing is remembered of it."""
        return False

    def _in_place(
        self, name: str, operate: Callable[[Any, Any], Any], other: Any, readers: Sequence[Any] | None = None
    ) -> Self:
        """self = operate(self, other), in the memory self has.

        readers: what else it is an operation on, where a gradient reads what self was; None: no gradient does.
        """
        if isinstance(other, Value) and not isinstance(other, InPlace):
            return other._in_place_of(self, sys.getrefcount(self), name, operate)  # type: ignore[attr-defined]
        if self._at_once(name, other):
            return self
        if self._is_newest():
            return self._become(name, operate, other)
        result = operate(self if readers is None else self._kept(*readers), other)
        if not isinstance(result, InPlace):
            return result._written_to(self, name)
        check_fits(name, self, result)
        self._put(result.astype(self.dtype))
        return self

    def __iadd__(self, other: Any) -> Self:
        return self._in_place("+=", operator.add, other)

    def __isub__(self, other: Any) -> Self:
        return self._in_place("-=", operator.sub, other)

    def __imul__(self, other: Any) -> Self:
        return self._in_place("*=", operator.mul, other, (other,) if getattr(other, "requires_grad", False) else None)

    def __itruediv__(self, other: Any) -> Self:
        return self._in_place("/=", operator.truediv, other)

    def __ifloordiv__(self, other: Any) -> Self:
        return self._in_place("//=", operator.floordiv, other, (other,))

    def __imod__(self, other: Any) -> Self:
        return self._in_place("%=", operator.mod, other, (other,))

    def __ipow__(self, other: Any) -> Self:
        return self._in_place("**=", operator.pow, other, (other,))

    def __imatmul__(self, other: Any) -> Self:
        return self._in_place("@=", operator.matmul, other, (other,))

    def __iand__(self, other: Any) -> Self:
        return self._in_place("&=", operator.and_, other)

    def __ior__(self, other: Any) -> Self:
        return self._in_place("|=", operator.or_, other)

    def __ixor__(self, other: Any) -> Self:
        return self._in_place("^=", operator.xor, other)

    def __ilshift__(self, other: Any) -> Self:
        return self._in_place("<<=", operator.lshift, other)

    def __irshift__(self, other: Any) -> Self:
        return self._in_place(">>=", operator.rshift, other)


class _Counter(Value):
    """Stands for a symbol, and says how many references there are to a tensor to which it is added."""

    def _in_place_of(self, tensor: InPlace, references: int, *_: Any) -> int:
        return references


def references_of_a_name(kind: Callable[[float], Any]) -> Any:
    """How many there are to a tensor in x += y that only x has, as _in_place counts them: Python's own among them."""
    x = kind(0.0)
    x += _Counter()
    return x
