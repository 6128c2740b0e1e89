"""Operations of your own, from a Python function of numbers, compiled by numba (extra `jit`).

    @cx.op
    def soft_limit(x, limit):                       # one element of the result from one of each input
        return x if x < limit else limit + math.log1p(x - limit)

    @soft_limit.gradient
    def _(g, x, limit):                             # one number for each input
        return (g, 0.0) if x < limit else (g / (1.0 + x - limit), g * (1.0 - 1.0 / (1.0 + x - limit)))

    @cx.op(reduce=True, start=0.0)
    def sum_of_cubes(total, x):                     # the elements of an axis one after another
        return total + x * x * x

    @sum_of_cubes.gradient
    def _(g, result, x):
        return 3.0 * g * x * x

    soft_limit(x, 1.0), sum_of_cubes(x, axis=-1)

They run on tensors of the cpu, with gradients, and inside cx.compile. Their bits are numba's: not of the class
cyx-exact. A graph that holds one is neither saved nor submitted: only graphs of known operations travel.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore import attrs as kind
from cyxcore import gradients, infer
from cyxcore.attrs import Attr
from cyxcore.errors import DtypeError, GradientError, MissingExtra, SpecError
from cyxcore.kernels import reference
from cyxcore.ops import OPS, USER, Op
from cyxcore.values import Value, apply

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float64")
MOST_INPUTS = 8


def _numba() -> Any:
    try:
        return importlib.import_module("numba")
    except ImportError:
        raise MissingExtra("cx.op: the package numba is missing; pip install 'cyx[jit]'") from None


def _compiled(name: str, make: Callable[[], Any]) -> Any:
    """What numba makes of a function. Raises SpecError where it cannot."""
    errors = importlib.import_module("numba.core.errors")
    try:
        return make()
    except errors.NumbaError as error:
        why = next((line.strip() for line in str(error).splitlines() if line.strip() and "Failed in" not in line), "")
        raise SpecError(f"cx.op {name}: numba cannot compile it for numbers: {why[:300]}") from None


def _elementwise(name: str, function: Callable[..., Any], arity: int) -> Callable[..., Array]:
    """The function over broadcast arrays."""
    signatures = [f"{dtype}({', '.join([dtype] * arity)})" for dtype in DTYPES]
    made = _compiled(name, lambda: _numba().vectorize(signatures, nopython=True)(function))
    return lambda attrs, *inputs: np.asarray(made(*inputs))


def _reduction(name: str, function: Callable[..., Any], start: float) -> Callable[..., Array]:
    """The function over the elements of axes, ascending."""
    numba = _numba()
    step = numba.njit(error_model="numpy")(function)

    def over_rows(rows: Array, first: Any, out: Array) -> None:
        for row in range(rows.shape[0]):
            total = first
            for column in range(rows.shape[1]):
                total = step(total, rows[row, column])
            out[row] = total

    signatures = [f"void({dtype}[:, ::1], {dtype}, {dtype}[::1])" for dtype in DTYPES]
    loop = _compiled(name, lambda: numba.njit(signatures, error_model="numpy")(over_rows))

    def call(attrs: Mapping[str, Any], x: Array) -> Array:
        axes = attrs["axes"]
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        count = math.prod(x.shape[axis] for axis in axes)
        rows = np.ascontiguousarray(x.transpose(*kept, *axes)).reshape(math.prod(x.shape[axis] for axis in kept), count)
        out = np.empty(len(rows), x.dtype)
        loop(rows, x.dtype.type(start), out)
        one = attrs["keepdims"]
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape) if one or axis not in axes]
        return out.reshape(shape)

    return call


def _register(name: str, arity: int, kernel: Callable[..., Array], rule: Any, op_attrs: Mapping[str, Attr]) -> str:
    """Put a row into the op table and its kernel beside it. Returns the name it has there."""
    taken = sum(known == USER + name or known.startswith(f"{USER}{name}#") for known in OPS)
    full = USER + name + (f"#{taken + 1}" if taken else "")
    OPS[full] = Op(full, "user", arity, op_attrs, rule, lambda shapes, out, attrs: math.prod(out))
    reference.KERNELS[full] = kernel
    return full


class UserOp:
    """Made by cx.op; called with tensors. name: of its row in the op table."""

    def __init__(self, function: Callable[..., Any], reduce: bool, start: float) -> None:
        arity = _argument_count("cx.op", function)
        self.__name__, self.__doc__, self.function, self.reduce = function.__name__, function.__doc__, function, reduce
        plain = re.sub(r"[^a-z0-9_]", "_", function.__name__.lower()).strip("_") or "op"
        if reduce and arity != 2:
            raise SpecError(f"cx.op {plain}: a reduction takes (total, x), this function takes {arity} arguments")
        if not 1 <= arity <= MOST_INPUTS:
            raise SpecError(f"cx.op {plain}: expected 1 to {MOST_INPUTS} arguments, got {arity}")
        self.arity = 1 if reduce else arity
        made = _reduction(plain, function, start) if reduce else _elementwise(plain, function, arity)
        rule = infer.reduce(DTYPES, of_empty=True) if reduce else infer.binary(DTYPES)
        axes = {"axes": Attr(kind.axes), "keepdims": Attr(kind.flag, False)} if reduce else {}
        self.name = _register(plain, self.arity, made, rule, axes)
        self._parts: list[str] = []
        gradients.RULES[self.name] = self._no_gradient

    def __call__(self, *inputs: Any, axis: Any = None, keepdims: bool = False) -> Any:
        """The operation on tensors of one float dtype; numbers may stand beside them. axis: of a reduction.

        Raises SpecError, DtypeError or ShapeError for what does not fit.
        """
        if len(inputs) != self.arity or (axis is not None or keepdims) and not self.reduce:
            raise SpecError(f"{self.__name__}: expected {self.arity} inputs{', axis and keepdims' * self.reduce}")
        first = next((x for x in inputs if isinstance(x, Value)), None)
        if first is None:
            raise DtypeError(f"{self.__name__}: expected at least one tensor, got {type(inputs[0]).__name__}")
        held = [x if isinstance(x, Value) else first._constant(x, first.dtype) for x in inputs]
        if not self.reduce:
            return apply(self.name, *held)
        given = range(first.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        axes = tuple(sorted({each + first.ndim if each < 0 else each for each in given}))
        return apply(self.name, *held, axes=axes, keepdims=keepdims)

    def gradient(self, function: Callable[..., Any]) -> "UserOp":
        """A decorator: function(g, *inputs) gives a number for each input; of a reduction function(g, result, x) one.

        g is the gradient of the result's element. Gradients of gradients there are none.
        """
        wanted = 3 if self.reduce else 1 + self.arity
        if _argument_count(f"{self.__name__}.gradient", function) != wanted:
            names = "(g, result, x)" if self.reduce else f"(g and the {self.arity} inputs)"
            raise SpecError(f"{self.__name__}.gradient: expected a function of {names}")
        plain, count = self.name.removeprefix(USER).replace("#", "_") + "_gradient", self.arity
        for place in range(count):
            part = function if count == 1 else _part(function, place, wanted)
            made = _elementwise(plain, part, wanted)
            name = _register(f"{plain}_{place}", wanted, made, infer.binary(DTYPES), {})
            gradients.RULES[name] = self._no_gradient
            self._parts.append(name)
        gradients.RULES[self.name] = self._reduced if self.reduce else self._each
        return self

    def _each(self, g: Any, inputs: Sequence[Any], output: Any, attrs: Mapping[str, Any]) -> list[Any]:
        return [apply(name, g, *inputs) for name in self._parts]

    def _reduced(self, g: Any, inputs: Sequence[Any], output: Any, attrs: Mapping[str, Any]) -> list[Any]:
        (x,) = inputs
        shape = tuple(1 if axis in attrs["axes"] else size for axis, size in enumerate(x.shape))
        return [apply(self._parts[0], g.reshape(*shape), output.reshape(*shape), x)]

    def _no_gradient(self, *given: Any) -> list[Any]:
        raise GradientError(
            f"{self.__name__}: an operation made by cx.op has the gradient that {self.__name__}.gradient gives it, and "
            "no second one; write it of cyxcore's own operations for more"
        )

    def __repr__(self) -> str:
        return f"<cx.op {self.name.removeprefix(USER)}>"


def _argument_count(where: str, function: Any) -> int:
    if not inspect.isfunction(function):
        raise SpecError(f"{where}: expected a function written in Python (def or lambda), got {function!r}")
    return function.__code__.co_argcount


def _part(function: Callable[..., Any], place: int, arity: int) -> Callable[..., Any]:
    """One of the numbers a gradient returns, as a function numba can compile: it takes no *arguments."""
    inner = _numba().njit(error_model="numpy")(function)
    names = ", ".join(f"a{number}" for number in range(arity))
    space: dict[str, Any] = {"inner": inner}
    exec(f"def part({names}):\n    return inner({names})[{place}]", space)  # noqa: S102
    made: Callable[..., Any] = space["part"]
    return made


def op(function: Callable[..., Any] | None = None, *, reduce: bool = False, start: float = 0.0) -> Any:
    """Make an operation of a function of numbers: element-wise, or with reduce=True a fold of an axis from `start`.

    Raises MissingExtra without numba, SpecError for a function that numba cannot compile.
    """
    _numba()
    if function is None:
        return lambda given: UserOp(given, reduce, start)
    return UserOp(function, reduce, start)
