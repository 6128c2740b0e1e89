"""The pickles of CIFAR's Python version, read without unpickling: nothing is imported, nothing is called.

A pickle is a program. This runs the few instructions that Python 2 wrote dictionaries of texts, numbers and arrays
with, and knows three names, NumPy's for rebuilding an array; any other instruction or name is refused.
"""

import math
import pickletools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from cyxcore.data.checks import Path, defect, shown
from cyxcore.errors import DataError

_RECONSTRUCT, _NDARRAY, _DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"
_NAMES = (_RECONSTRUCT, _NDARRAY, _DTYPE)
_MARK = object()
_REMEDY = "use the binary version of the data set, which holds the same images"


class _Name(str):
    """A name that the pickle mentioned. It stays a name."""


class _Shape:
    """An array or dtype under construction: what BUILD will say of it."""

    def __init__(self, kind: str, code: str = "") -> None:
        self.kind, self.code = kind, code
        self.value: np.ndarray[Any, Any] | None = None


def read_dictionary(path: Path, content: bytes) -> dict[str, Any]:
    """{text: text, number, list or uint8 array}. Raises DataError for everything else."""
    machine = _Machine(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name not in _INSTRUCTIONS:
                    got = f"the instruction {opcode.name}"
                    raise defect(path, "a dictionary of texts, numbers and arrays", got, _REMEDY)
                _INSTRUCTIONS[opcode.name](machine, argument)
    except DataError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise defect(path, "an undamaged pickle", f"{type(error).__name__}: {str(error)[:80]}", _REMEDY) from None
    result = machine.stack[-1] if machine.stack else None
    if not isinstance(result, dict) or not all(isinstance(key, str) for key in result):
        raise defect(path, "a dictionary", shown(type(result).__name__), _REMEDY)
    return {key: value.value if isinstance(value, _Shape) else value for key, value in result.items()}


class _Machine:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def to_mark(self) -> list[Any]:
        place = next((n for n in range(len(self.stack) - 1, -1, -1) if self.stack[n] is _MARK), None)
        if place is None:
            raise ValueError("an end without its mark")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def name(self, text: str) -> None:
        if text not in _NAMES:
            raise defect(self.path, "no code in a dataset", f"the name {shown(text)}", _REMEDY)
        self.push(_Name(text))

    def reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that has no name")
        if called == _RECONSTRUCT:
            self.push(_Shape("array"))
        elif called == _DTYPE and arguments and arguments[0] == "u1":
            self.push(_Shape("dtype", "u1"))
        else:
            raise ValueError(f"a call of {called}")

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Shape) or not isinstance(state, tuple):
            raise ValueError("a state for something that is no array")
        if target.kind == "dtype":
            return
        _, shape, kind, is_fortran, content = state
        right = isinstance(kind, _Shape) and kind.code == "u1" and isinstance(content, str) and not is_fortran
        if not right or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("an array that is not of uint8, row by row")
        if math.prod(shape) != len(content):
            raise ValueError(f"{len(content):,} bytes for shape {tuple(shape)}")
        target.value = np.frombuffer(content.encode("latin-1"), np.uint8).reshape(shape)

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)

    def extend(self, _: Any) -> None:
        values = self.to_mark()
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not all(isinstance(key, str) for key in values[::2]):
            raise ValueError("a key that is no text")
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def dictionary(self, _: Any) -> None:
        values = self.to_mark()
        self.push({})
        self.set_items(values)

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values)


def _text(value: Any) -> str:
    """Texts of Python 2 are bytes: one character each."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


_push: Callable[[_Machine, Any], None] = lambda machine, value: machine.push(value)  # noqa: E731
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": _push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "INT", "LONG1"), _push),
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "UNICODE"), lambda machine, v: machine.push(_text(v))
    ),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "DICT": _Machine.dictionary,
    "LIST": lambda machine, _: machine.push(machine.to_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, place: machine.put(int(place))),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[int(place)])),
    "GLOBAL": lambda machine, text: machine.name(text),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
