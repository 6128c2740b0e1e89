"""What tensors and the symbols of a graph have in common: arithmetic written once for both.

`Value` turns Python's operators and NumPy's method names into ops; a subclass only says how one op
is applied (`_apply`) and how a plain number becomes a value (`_constant`).
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Self, TypeVar

from cyxcore import casting
from cyxcore.attrs import several
from cyxcore.dtype import COMPLEX, DTYPES, FLOATS, INEXACT, dtype_name, promote, scalar_dtype
from cyxcore.errors import AxisError, DtypeError, GraphError, ShapeError
from cyxcore.torchwords import Count, Picked, in_words

V = TypeVar("V", bound="Value")
_NUMBERS = (bool, int, float, complex)
LARGEST_NUMBER = 2.0**1023  # that an operation takes: no infinity, NaN or integer that rounds to one


class TracedMode:
    """Stands for `module.training` while a model is traced: the graph keeps both modes."""

    def __bool__(self) -> bool:
        raise GraphError(
            "trace: the code branches on self.training; use Dropout, BatchNorm or functional.by_mode, "
            "which keep both modes in the graph"
        )


TRACED = TracedMode()


def apply(op: str, *inputs: Any, **attrs: Any) -> Any:
    """One op on values; a symbol among the inputs makes the result a symbol."""
    chosen, rank = None, -1
    for value in inputs:
        if isinstance(value, Value) and value._rank > rank:
            chosen, rank = value, value._rank
    if chosen is None:
        raise DtypeError(f"{op}: expected at least one tensor, got {', '.join(type(v).__name__ for v in inputs)}")
    return chosen._apply(op, inputs, attrs)


def by_mode(training: bool | TracedMode, when_training: Callable[[], V], otherwise: Callable[[], V]) -> V:
    """The value for the current mode; while tracing, a value that is the first in training and the second
    after.
    """
    if not isinstance(training, TracedMode):
        return when_training() if training else otherwise()
    value: V = apply("by_mode", when_training(), otherwise())
    return value


def is_operand(value: Any) -> bool:
    """Whether it is a tensor of float32 or float64 on the host: kernels of a function have those and no others."""
    if not isinstance(value, Value) or value.is_symbolic:
        return False
    return value.dtype in ("float32", "float64") and bool(value._on_host)  # type: ignore[attr-defined]


def is_made_here(value: Any) -> bool:
    """Whether what is made of it is in no graph that travels, nor on a device with its own memory."""
    builder = getattr(value, "builder", None)
    return bool(value._on_host) if builder is None else not builder.travels


def composed(function: Callable[..., Any], inputs: Sequence[Any], options: tuple[Any, ...], elements: int = 0) -> Any:
    """function(*inputs, *options): see Value._composed. The first may be a NumPy array."""
    first = inputs[0]
    if not isinstance(first, Value):
        return function(*inputs, *options)
    return first._composed(function, inputs, options, elements)


def bent(op: str, function: Callable[..., Any], x: Any, **numbers: Any) -> Any:
    """A function of straight pieces: of a tensor one operation, which has the bits of those of `function`.

    numbers: of the operation, by name, and what `function` takes behind x.
    """
    if is_operand(x) and all(type(each) in (int, float) and abs(each) < LARGEST_NUMBER for each in numbers.values()):
        return apply(op, x, **numbers)
    return composed(function, (x,), tuple(numbers.values()))


def _var(value: Any, axes: tuple[int, ...] | None, keepdims: bool, less: float) -> Any:
    centred = value - value.mean(axes, keepdims=True)
    if less == 0:
        return (centred**2).mean(axes, keepdims=keepdims)
    count = math.prod(value.shape[place] for place in value._axes(axes))
    total = (centred**2).sum(axes, keepdims=keepdims)
    return total * (1.0 / (count - less) if count > less else math.nan)


def together(*values: Any) -> list["Value"]:
    """Values (numbers allowed) converted to one dtype; the highest-ranked class lifts the others."""
    first = values[0]
    if isinstance(first, Value):  # what nearly always holds
        for value in values:
            if not isinstance(value, Value) or value.dtype != first.dtype:
                break
        else:
            return list(values)
    chosen = max((value for value in values if isinstance(value, Value)), key=lambda value: value._rank)
    lifted = [v if isinstance(v, _NUMBERS) else v if isinstance(v, Value) else chosen._constant(v) for v in values]
    dtype: str | None = None
    numbers = [value.number if isinstance(value, Value) else value for value in lifted]
    for value, number in zip(lifted, numbers, strict=True):
        if number is None and isinstance(value, Value):
            dtype = value.dtype if dtype is None else promote(dtype, value.dtype)
    if dtype is None:  # numbers alone
        dtype = "float32" if any(isinstance(number, float) for number in numbers) else "int64"
    for number in numbers:
        if number is not None:
            dtype = scalar_dtype(number, dtype)
    return [v.astype(dtype) if isinstance(v, Value) else chosen._constant(v, dtype) for v in lifted]


def of_one_dtype(left: Any, right: Any) -> Sequence[Any]:
    """Two operands as values of one dtype: `together`, after the two cases that nearly always hold."""
    if isinstance(left, Value):
        if isinstance(right, Value):
            if left.dtype == right.dtype:
                return left, right
        elif type(right) in _NUMBERS and scalar_dtype(right, left.dtype) == left.dtype:
            return left, left._constant(right, left.dtype)
    elif type(left) in _NUMBERS and scalar_dtype(left, right.dtype) == right.dtype:
        return right._constant(left, right.dtype), right
    return together(left, right)


_OF_BOOLS = {"add": "logical_or", "mul": "logical_and", "maximum": "logical_or", "minimum": "logical_and"}


def binary(op: str, left: Any, right: Any) -> Any:
    """An op on two operands made one dtype. Bools are added and multiplied as in NumPy and PyTorch: or, and."""
    if not isinstance(left, Value) and not isinstance(right, Value):
        return apply(op, left, right)  # says so
    values = of_one_dtype(left, right)
    return apply(_OF_BOOLS.get(op, op) if values[0].dtype == "bool" else op, *values)


# Always the same objects: calls are known by them (kernels/tensors.pyx).
@lru_cache
def _axes_up_to(count: int) -> tuple[int, ...]:
    return tuple(range(count))


@lru_cache
def _only_axis(axis: int) -> tuple[int, ...]:
    return (axis,)


def power(base: Any, exponent: Any) -> Any:
    return apply("pow" if base.dtype in INEXACT else "integer_pow", base, exponent)


def sum_dtype(dtype: str) -> str:
    """What elements of a dtype are added up in."""
    if dtype in INEXACT:
        return dtype
    return "uint64" if DTYPES[dtype].kind == "unsigned integer" else "int64"


_LOGIC = {
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "not_equal",
    "bitwise_invert": "logical_not",
}


def logic_or_bits(op: str, *values: Any) -> Any:
    """A bitwise op on values of one dtype: on bools the logical one."""
    return apply(_LOGIC[op] if values[0].dtype == "bool" else op, *values)


def root(total: Any) -> Any:
    """The square root of a sum of squares: its gradient to them is 0 where all are 0."""
    zero = total == 0.0
    return apply("where", zero, total, apply("where", zero, total + 1.0, total).sqrt())


def to_inexact(value: Any) -> Any:
    """The value as floats (or complex numbers): integers and bools become float32."""
    return value if value.dtype in INEXACT else value.astype("float32")


class Value:
    """An n-dimensional array that may or may not exist yet. `shape` and `dtype` are always known."""

    shape: tuple[int, ...]
    dtype: str
    _rank = 0
    is_symbolic = False  # whether it is of a graph under construction and has no numbers yet
    is_compiled = False  # whether that graph is the one of a compiled function, which does what tensors do
    number: Any = None  # of a symbol of a number that a compiled function was given: one of its kind, 0 or 0.0
    __array_ufunc__ = None  # so that ndarray + Value asks us, not every element
    __hash__ = object.__hash__

    def _apply(self, op: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def _constant(self, value: Any, dtype: str | None = None) -> Any:
        raise NotImplementedError

    def _uniform(self, shape: tuple[int, ...]) -> Any:
        """Random float32 numbers in [0, 1): of the eager generator, or of the step's key in a graph."""
        raise NotImplementedError

    def _assign(self, value: Any) -> None:
        """Make a buffer hold `value` from the next step on."""
        raise NotImplementedError

    def _following(self) -> Any:
        """Of a buffer what it holds after what was assigned so far; in a graph it holds that from the next step on."""
        return self

    def _next(self, op: str, *others: Any, **attrs: Any) -> Any:
        """An update op, whose result takes the place of this value: a tensor is written in place."""
        return apply(op, self, *others, **attrs)

    def _check_indices(self, indices: Any, size: int) -> Any:
        """Indices made non-negative; a tensor also checks that each is in range."""
        return indices

    def _how_many(self) -> int:
        """How many elements of a mask are true: the size of what they choose."""
        return int(self.sum().item())  # type: ignore[attr-defined]

    def _reversed(self, axes: tuple[int, ...]) -> Self:
        """Backwards along some axes."""
        result = self
        for axis in axes:
            order = list(range(self.shape[axis] - 1, -1, -1))
            result = apply("take", result, result._constant(order, "int64"), axis=axis)
        return result

    def copy(self) -> Self:
        """The same values in memory of their own; a symbol has none and is its own copy."""
        return self

    def _composed(
        self, function: Callable[..., Any], inputs: Sequence[Any], options: tuple[Any, ...], elements: int = 0
    ) -> Any:
        """function(*inputs, *options): of tensors perhaps as one operation (composed.py).

        elements: of the largest array that the operations make, where that is not the size of the first input.
        """
        if casting.inside[0] and casting.composed_of_halves(self):
            return self._in_halves(function, inputs, options, None)
        return function(*inputs, *options)

    def _in_halves(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        options: tuple[Any, ...],
        half: str | None,
        elements: int = 0,
    ) -> Any:
        """_composed in float32 of inputs that are rounded to half before, and rounded afterwards, too.

        half: None takes the inputs as they are, and rounds to the dtype of this one, the first. elements: as of
        _composed.
        """
        return casting.step_by_step(function, inputs, options, half)

    def _sequenced(self, function: Callable[..., Any], inputs: Sequence[Any], options: tuple[Any, ...]) -> Any:
        """The same of a function of a whole sequence, which gives several results (sequences.py)."""
        return function(*inputs, *options)

    def shares_memory(self, other: Any) -> bool:
        """Whether writing to one may change the other."""
        return False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> "Count":
        """How many elements; called, size() is the shape and size(axis) that of one axis."""
        return Count(math.prod(self.shape), self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len: a 0-d tensor has no length")
        return self.shape[0]

    # arithmetic -------------------------------------------------------------------------------

    def __neg__(self) -> Self:
        return apply("neg", self)

    def __pos__(self) -> Self:
        return self.copy()

    def __abs__(self) -> Self:
        return apply("abs", self)

    def __add__(self, other: Any) -> Self:
        return binary("add", self, other)

    def __radd__(self, other: Any) -> Self:
        return binary("add", other, self)

    def __sub__(self, other: Any) -> Self:
        return binary("sub", self, other)

    def __rsub__(self, other: Any) -> Self:
        return binary("sub", other, self)

    def __mul__(self, other: Any) -> Self:
        return binary("mul", self, other)

    def __rmul__(self, other: Any) -> Self:
        return binary("mul", other, self)

    def __truediv__(self, other: Any) -> Self:
        return apply("div", *map(to_inexact, of_one_dtype(self, other)))

    def __rtruediv__(self, other: Any) -> Self:
        return apply("div", *map(to_inexact, of_one_dtype(other, self)))

    def __pow__(self, other: Any) -> Self:
        if isinstance(other, int) and other == 2:
            return apply("square", self)
        if isinstance(other, (int, float)) and other == 3 and self.dtype in INEXACT:
            return apply("mul", apply("square", self), self)
        if isinstance(other, float) and other == 0.5:
            return apply("sqrt", to_inexact(self))
        return power(*of_one_dtype(self, other))

    def __rpow__(self, other: Any) -> Self:
        return power(*of_one_dtype(other, self))

    def __floordiv__(self, other: Any) -> Self:
        return binary("floor_divide", self, other)

    def __rfloordiv__(self, other: Any) -> Self:
        return binary("floor_divide", other, self)

    def __mod__(self, other: Any) -> Self:
        return binary("remainder", self, other)

    def __rmod__(self, other: Any) -> Self:
        return binary("remainder", other, self)

    def __matmul__(self, other: Any) -> Self:
        """Matrix product with NumPy's rule for vectors."""
        left, right = of_one_dtype(self, other)
        if casting.inside[0]:
            left, right = casting.operands(left, right)
        if left.dtype == "bool":  # whether some pair is true twice, as in NumPy: a sum of ones is never rounded to 0
            return (left.astype("float32") @ right.astype("float32")).astype("bool")
        if len(left.shape) == 2 and len(right.shape) == 2:
            return apply("matmul", left, right)
        if not left.shape or not right.shape:
            raise ShapeError(f"matmul: expected at least 1-d operands, got {left.shape} @ {right.shape}")
        rows = left.reshape(1, -1) if left.ndim == 1 else left
        columns = right.reshape(-1, 1) if right.ndim == 1 else right
        product = apply("matmul", rows, columns)
        shape = list(product.shape)
        if right.ndim == 1:
            del shape[-1]
        if left.ndim == 1:
            del shape[-1 if right.ndim == 1 else -2]
        return product if len(shape) == product.ndim else product.reshape(*shape)

    def __rmatmul__(self, other: Any) -> Self:
        return self._constant(other) @ self

    # comparison and logic ---------------------------------------------------------------------

    def __eq__(self, other: Any) -> Self:  # type: ignore[override]
        return NotImplemented if other is None or isinstance(other, str) else binary("equal", self, other)

    def __ne__(self, other: Any) -> Self:  # type: ignore[override]
        return NotImplemented if other is None or isinstance(other, str) else binary("not_equal", self, other)

    def __lt__(self, other: Any) -> Self:
        return binary("less", self, other)

    def __le__(self, other: Any) -> Self:
        return binary("less_equal", self, other)

    def __gt__(self, other: Any) -> Self:
        return binary("greater", self, other)

    def __ge__(self, other: Any) -> Self:
        return binary("greater_equal", self, other)

    def __invert__(self) -> Self:
        return logic_or_bits("bitwise_invert", self)

    def __and__(self, other: Any) -> Self:
        return logic_or_bits("bitwise_and", *of_one_dtype(self, other))

    def __rand__(self, other: Any) -> Self:
        return logic_or_bits("bitwise_and", *of_one_dtype(other, self))

    def __or__(self, other: Any) -> Self:
        return logic_or_bits("bitwise_or", *of_one_dtype(self, other))

    def __ror__(self, other: Any) -> Self:
        return logic_or_bits("bitwise_or", *of_one_dtype(other, self))

    def __xor__(self, other: Any) -> Self:
        return logic_or_bits("bitwise_xor", *of_one_dtype(self, other))

    def __rxor__(self, other: Any) -> Self:
        return logic_or_bits("bitwise_xor", *of_one_dtype(other, self))

    def __lshift__(self, other: Any) -> Self:
        return binary("bitwise_left_shift", self, other)

    def __rlshift__(self, other: Any) -> Self:
        return binary("bitwise_left_shift", other, self)

    def __rshift__(self, other: Any) -> Self:
        return binary("bitwise_right_shift", self, other)

    def __rrshift__(self, other: Any) -> Self:
        return binary("bitwise_right_shift", other, self)

    # element-wise -----------------------------------------------------------------------------

    def exp(self) -> Self:
        return apply("exp", to_inexact(self))

    def log(self) -> Self:
        return apply("log", to_inexact(self))

    def sqrt(self) -> Self:
        return apply("sqrt", to_inexact(self))

    def tanh(self) -> Self:
        return apply("tanh", to_inexact(self))

    def sigmoid(self) -> Self:
        """1 / (1 + exp(-x))."""
        return apply("sigmoid", to_inexact(self))

    def erf(self) -> Self:
        """The error function."""
        return apply("erf", to_inexact(self))

    def sin(self) -> Self:
        return apply("sin", to_inexact(self))

    def cos(self) -> Self:
        return apply("cos", to_inexact(self))

    def relu(self) -> Self:
        """max(x, 0)."""
        return apply("relu", self)

    def abs(self) -> Self:
        return apply("abs", self)

    def square(self) -> Self:
        return apply("square", self)

    def sign(self) -> Self:
        if self.dtype in COMPLEX:  # not constant: x / |x|
            size = apply("abs", self)
            zero = size == 0.0
            return apply("where", zero, self - self, self / apply("where", zero, size + 1.0, size))
        return apply("sign", self)

    def floor(self) -> Self:
        return apply("floor", self)

    def astype(self, dtype: Any) -> Self:
        wanted = dtype_name(dtype)
        return self if wanted == self.dtype else apply("cast", self, dtype=wanted)

    # reductions -------------------------------------------------------------------------------

    def _axes(self, axis: int | Sequence[int] | None) -> tuple[int, ...]:
        if axis is None:
            return _axes_up_to(len(self.shape))
        if type(axis) is int:
            return _only_axis(self._axis(axis))
        given: Any = (axis,) if hasattr(axis, "__index__") else axis  # isinstance takes 10 microseconds for a tuple
        return tuple(sorted({self._axis(place) for place in given}))

    def _axis(self, axis: int) -> int:
        if type(axis) is int and -len(self.shape) <= axis < len(self.shape):
            return axis % len(self.shape)
        place = operator.index(axis)  # NumPy's integers too
        if not -self.ndim <= place < self.ndim:
            raise AxisError(f"axis: expected {-self.ndim}..{self.ndim - 1} for shape {self.shape}, got {axis}")
        return place % self.ndim

    def sum(
        self, axis: int | Sequence[int] | None = None, keepdims: bool = False, dtype: Any = None, **words: Any
    ) -> Self:
        """The sum, in `dtype`; without one integers and bools as int64, unsigned ones as uint64, as in NumPy."""
        if words:
            axis, keepdims = in_words("sum", axis, keepdims, words)
        if dtype is not None:
            value = self.astype(dtype)
        else:
            value = self if self.dtype in INEXACT else self.astype(sum_dtype(self.dtype))
        return apply("sum", value, axes=self._axes(axis), keepdims=keepdims)

    def mean(
        self, axis: int | Sequence[int] | None = None, keepdims: bool = False, dtype: Any = None, **words: Any
    ) -> Self:
        """The mean, in `dtype`; NaN of nothing."""
        if words:
            axis, keepdims = in_words("mean", axis, keepdims, words)
        value, axes = to_inexact(self if dtype is None else self.astype(dtype)), self._axes(axis)
        if any(not self.shape[place] for place in axes):  # of nothing: NaN, as the standard has it
            return value.sum(axes, keepdims) * math.nan
        return apply("mean", value, axes=axes, keepdims=keepdims)

    def var(
        self,
        axis: int | Sequence[int] | None = None,
        keepdims: bool = False,
        correction: float | None = None,
        **words: Any,
    ) -> Self:
        """Squared distances from the mean, added and divided by N - correction.

        The correction is 0, as in NumPy and the array API standard: x.var(), x.var(0), x.var(axis=0). Only where `dim`
        names the axis it is 1, as in PyTorch (unbiased=False: 0). correction= or unbiased= say it in every case.
        """
        unbiased = words.pop("unbiased", "dim" in words)
        if words:
            axis, keepdims = in_words("var", axis, keepdims, words)
        value = to_inexact(self)
        less = float(unbiased) if correction is None else correction
        return value._composed(_var, (value,), (axis if axis is None else self._axes(axis), keepdims, less))

    def std(
        self,
        axis: int | Sequence[int] | None = None,
        keepdims: bool = False,
        correction: float | None = None,
        **words: Any,
    ) -> Self:
        """The square root of var(). The gradient of equal elements is 0."""
        return root(self.var(axis, keepdims, correction, **words))

    def max(self, axis: int | Sequence[int] | None = None, keepdims: bool = False, **words: Any) -> Any:
        """The largest; NaN if there is one. With `dim` as in PyTorch: (values, indices) along that axis.

        Of another tensor: the larger of both, element by element.
        """
        if isinstance(axis, Value):
            return binary("maximum", self, axis)
        if self.dtype == "bool":
            return self._of_mask("max", axis, keepdims, words)
        if words:
            return self._extreme("max", *in_words("max", axis, keepdims, words))
        return apply("max", self, axes=self._axes(axis), keepdims=keepdims)

    def min(self, axis: int | Sequence[int] | None = None, keepdims: bool = False, **words: Any) -> Any:
        """The smallest; NaN if there is one. With `dim` as in PyTorch: (values, indices) along that axis.

        Of another tensor: the smaller of both, element by element.
        """
        if isinstance(axis, Value):
            return binary("minimum", self, axis)
        if self.dtype == "bool":
            return self._of_mask("min", axis, keepdims, words)
        if words:
            return self._extreme("min", *in_words("min", axis, keepdims, words))
        return apply("min", self, axes=self._axes(axis), keepdims=keepdims)

    def _of_mask(self, op: str, axis: Any, keepdims: bool, words: dict[str, Any]) -> Any:
        found = getattr(self.astype("uint8"), op)(axis, keepdims, **words)
        if isinstance(found, Picked):
            return Picked(found.values.astype("bool"), found.indices)
        return found.astype("bool")

    def _extreme(self, op: str, axis: Any, keepdims: bool) -> Any:
        if axis is None:
            return apply(op, self, axes=self._axes(None), keepdims=keepdims)
        place = self._axis(axis)
        if op == "min" and self.dtype in FLOATS:
            found = apply("argmax", -self, axis=place)  # argmin is not among what a graph can hold
        else:
            found = apply(f"arg{op}", self, axis=place)
        found = found.expand_dims(place)
        best = apply("take_along", self, found, axis=place)
        return Picked(best, found) if keepdims else Picked(best.squeeze(place), found.squeeze(place))

    def argmax(self, axis: int | None = None, keepdims: bool = False, **words: Any) -> Self:
        """Place of the largest element, the first among equals; of the flattened array without an axis."""
        if words:
            axis, keepdims = in_words("argmax", axis, keepdims, words)
        if axis is None:
            found = apply("argmax", self.reshape(-1), axis=0)
            return found.reshape((1,) * self.ndim) if keepdims else found
        found = apply("argmax", self, axis=self._axis(axis))
        return found.expand_dims(self._axis(axis)) if keepdims else found

    # movement ---------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Self:
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        resolved = tuple(int(size) for size in wanted)
        if resolved.count(-1) == 1:
            known = math.prod(size for size in resolved if size != -1)
            if known > 0 and self.size % known == 0:  # otherwise the op says what does not fit
                resolved = tuple(self.size // known if size == -1 else size for size in resolved)
        return self if resolved == self.shape else apply("reshape", self, shape=resolved)

    def flatten(self, start: int = 0, end: int = -1, **words: Any) -> Self:
        """The axes from `start` to `end`, that one too, as one. PyTorch's words start_dim and end_dim are taken too."""
        if unknown := set(words) - {"start_dim", "end_dim"}:
            raise TypeError(f"flatten() got an unexpected keyword argument {min(unknown)!r}")
        if not self.shape:
            return self.reshape(1)
        first, last = self._axis(words.get("start_dim", start)), self._axis(words.get("end_dim", end))
        if first > last:
            raise AxisError(f"flatten: expected start <= end, got {start} and {end} for {self.shape}")
        return self.reshape(*self.shape[:first], math.prod(self.shape[first : last + 1]), *self.shape[last + 1 :])

    def permute(self, *axes: Any) -> Self:
        """Axes in a new order."""
        wanted = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
        return apply("transpose", self, axes=tuple(self._axis(axis) for axis in wanted))

    def transpose(self, *axes: Any) -> Self:
        """Two axes exchanged, as in PyTorch; or all in a new order; without arguments all reversed, as in NumPy."""
        if len(axes) == 2:
            first, second = self._axis(axes[0]), self._axis(axes[1])
            order = list(range(self.ndim))
            order[first], order[second] = second, first
            return self.permute(*order)
        return self.permute(*axes) if axes else self.permute(*reversed(range(self.ndim)))

    @property
    def T(self) -> Self:
        return self.transpose()

    @property
    def mT(self) -> Self:
        """The last two axes exchanged. Raises AxisError for less than two."""
        if self.ndim < 2:
            raise AxisError(f"mT: expected at least two axes, got shape {self.shape}")
        return self.permute(*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)

    def broadcast_to(self, *shape: Any) -> Self:
        wanted = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return self if tuple(wanted) == self.shape else apply("broadcast_to", self, shape=tuple(wanted))

    def expand_dims(self, axis: int | Sequence[int]) -> Self:
        """With an axis of size 1 at each given place of the result."""
        given = (axis,) if isinstance(axis, int) else several(axis)
        rank = self.ndim + len(given)
        if not all(-rank <= place < rank for place in given) or len({place % rank for place in given}) < len(given):
            raise AxisError(f"expand_dims: expected different axes {-rank}..{rank - 1} for {self.shape}, got {axis}")
        places = {place % rank for place in given}
        sizes = iter(self.shape)
        return self.reshape(*(1 if place in places else next(sizes) for place in range(rank)))

    def squeeze(self, axis: int | Sequence[int] | None = None, **words: Any) -> Self:
        """Without the given axes, each of which must be of size 1; without all axes of size 1 where none is given."""
        if words:
            axis, _ = in_words("squeeze", axis, False, words)
        places = [at for at, size in enumerate(self.shape) if size == 1] if axis is None else self._axes(axis)
        for place in places:
            if self.shape[place] != 1:
                raise ShapeError(f"squeeze: axis {place} of shape {self.shape} is not 1")
        return self.reshape(*(size for place, size in enumerate(self.shape) if place not in places))

    def __getitem__(self, index: Any) -> Self:
        """Integers, slices, ..., None, integer arrays and boolean masks: cyxcore/indexing.py."""
        raise NotImplementedError
