"""The array API standard's element-wise functions and astype, on tensors and Python numbers.

What a graph can hold is composed of its ops, so those functions work while tracing too. Arguments
broadcast; dtypes meet by cyxcore/dtype.py; functions defined on floats take integers as float32.
Shapes that do not broadcast are a ShapeError, dtypes a function is not defined for a DtypeError.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

from cyxcore.dtype import COMPLEX, dtype_name, is_complex, is_float
from cyxcore.errors import DtypeError
from cyxcore.values import Value, apply, bent, binary, logic_or_bits, of_one_dtype, power, to_inexact

__all__ = (  # also in cyxcore/__init__.py
    "abs acos acosh add asin asinh astype atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift bitwise_or "
    "bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp expm1 floor floor_divide "
    "greater greater_equal hypot imag isfinite isinf isnan less less_equal log log10 log1p log2 logaddexp logical_and "
    "logical_not logical_or logical_xor multiply negative nextafter not_equal positive pow real reciprocal remainder "
    "round sign signbit sin sinh sqrt square subtract tan tanh trunc"
).split()

F = TypeVar("F", bound=Callable[..., Any])
_WORDS = frozenset(("dim", "dims", "keepdim", "diagonal", "unbiased"))  # that only PyTorch has


def value_of(name: str, x: Any) -> Any:
    """x, which must be a tensor. Raises DtypeError."""
    if not isinstance(x, Value):
        raise DtypeError(f"{name}: expected a tensor, got {type(x).__name__}; make one with cx.asarray")
    return x


def or_method(function: F) -> F:
    """A function of the standard that is called PyTorch's way, with `dim` or an axis by place, is the method."""
    name, most = function.__name__, function.__code__.co_argcount

    @functools.wraps(function)
    def call(x: Any, /, *places: Any, **options: Any) -> Any:
        if len(places) >= most or not _WORDS.isdisjoint(options):
            return getattr(value_of(name, x), name)(*places, **options)
        return function(x, *places, **options)

    return call  # type: ignore[return-value]


def astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Any:
    """x converted to a dtype; a copy even if it has that dtype, unless copy is false.

    Floats lose their fraction on the way to integers. Raises DtypeError for complex to real.
    """
    value, wanted = value_of("astype", x), dtype_name(dtype)
    if device is not None:
        value = value.to_device(device)
    if wanted == value.dtype:
        return value.copy() if copy else value
    return value.astype(wanted)


def _unary(op: str, x: Any) -> Any:
    return apply(op, value_of(op, x))


def _inexact(op: str, x: Any) -> Any:
    return apply(op, to_inexact(value_of(op, x)))


def _pair(name: str, x1: Any, x2: Any) -> Any:
    if not isinstance(x1, Value) and not isinstance(x2, Value):
        raise DtypeError(f"{name}: expected at least one tensor, got {type(x1).__name__} and {type(x2).__name__}")
    return of_one_dtype(x1, x2)


def _binary(op: str, x1: Any, x2: Any) -> Any:
    return apply(op, *_pair(op, x1, x2))


def _inexact_binary(op: str, x1: Any, x2: Any) -> Any:
    return apply(op, *map(to_inexact, _pair(op, x1, x2)))


# arithmetic ---------------------------------------------------------------------------------------


def add(x: Any, /, other: Any, *, alpha: float = 1) -> Any:
    """x + alpha * other, broadcast; of bools logical_or."""
    return binary("add", *_pair("add", x, other if alpha == 1 else other * alpha))


def subtract(x: Any, /, other: Any) -> Any:
    """x - other, broadcast."""
    return _binary("sub", x, other)


def multiply(x: Any, /, other: Any) -> Any:
    """x * other, broadcast; of bools logical_and."""
    return binary("mul", *_pair("mul", x, other))


def divide(x: Any, /, other: Any) -> Any:
    """x / other; integers divide to float32."""
    return _inexact_binary("div", x, other)


def floor_divide(x: Any, /, other: Any) -> Any:
    """The whole number below x / other. Integers divided by zero give 0."""
    return _binary("floor_divide", x, other)


def remainder(x: Any, /, other: Any) -> Any:
    """x - floor_divide(x, other) * other, of the sign of other."""
    return _binary("remainder", x, other)


def pow(x: Any, /, exponent: Any) -> Any:
    """x to the power exponent. Raises DataError for an integer to a negative integer power."""
    return power(*_pair("pow", x, exponent))


def negative(x: Any, /) -> Any:
    """-x."""
    return _unary("neg", x)


def positive(x: Any, /) -> Any:
    """A copy of x."""
    return value_of("positive", x).copy()


def abs(x: Any, /) -> Any:
    """The magnitude; of complex numbers, real."""
    return _unary("abs", x)


def square(x: Any, /) -> Any:
    """x * x."""
    return _unary("square", x)


def sign(x: Any, /) -> Any:
    """-1, 0 or 1, NaN of NaN; x / |x| of complex numbers."""
    return value_of("sign", x).sign()


def reciprocal(x: Any, /) -> Any:
    """1 / x."""
    return divide(1, value_of("reciprocal", x))


def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
    """x, but nothing below min or above max (numbers or tensors), in x's dtype. NaN stays NaN."""
    value = value_of("clip", x)
    kept = bent("clip", _clip, value, low=min, high=max)
    return kept.copy() if kept is x else kept


def _clip(value: Any, min: Any, max: Any) -> Any:
    for names, bound in ((_BELOW, min), (_ABOVE, max)):
        if bound is None:
            continue
        x, limit = _pair("clip", value, bound)
        if x.dtype != value.dtype:
            raise DtypeError(f"clip: a bound of {limit.dtype} does not fit {value.dtype}; use astype on x or it")
        op, beyond, within = names
        # `op` gives the same numbers, but shares the gradient at the bound: here all of it is x's (PyTorch up to 2.13).
        if not is_float(x.dtype):
            value = apply(op, x, limit)
        elif isinstance(bound, (int, float)) and bound == bound:
            value = apply("where", apply(beyond, x, limit), limit, x)
        else:  # a bound that is NaN makes NaN of all
            value = apply("where", apply("logical_or", apply(within, x, limit), apply("not_equal", x, x)), x, limit)
    return value


_BELOW, _ABOVE = ("maximum", "less", "greater_equal"), ("minimum", "greater", "less_equal")


def hypot(x: Any, /, other: Any) -> Any:
    """sqrt(x² + other²) without overflow on the way."""
    return _inexact_binary("hypot", x, other)


def copysign(x: Any, /, other: Any) -> Any:
    """|x| with the sign of other."""
    return _inexact_binary("copysign", x, other)


def nextafter(x: Any, /, other: Any) -> Any:
    """The float next to x towards other."""
    return _inexact_binary("nextafter", x, other)


# rounding -----------------------------------------------------------------------------------------


def floor(x: Any, /) -> Any:
    """The greatest integer that is not above each element."""
    return _unary("floor", x)


def ceil(x: Any, /) -> Any:
    """The least integer that is not below each element."""
    return _unary("ceil", x)


def trunc(x: Any, /) -> Any:
    """Each element without its fraction."""
    return _unary("trunc", x)


def round(x: Any, /, *, decimals: int = 0) -> Any:
    """The nearest whole number, the even one between two; or to so many decimals."""
    return _unary("round", x) if not decimals else _unary("round", x * 10.0**decimals) / 10.0**decimals


# exponentials and trigonometry --------------------------------------------------------------------


def exp(x: Any, /) -> Any:
    """e to the power of each element."""
    return _inexact("exp", x)


def expm1(x: Any, /) -> Any:
    """exp(x) - 1, precise near 0."""
    return _inexact("expm1", x)


def log(x: Any, /) -> Any:
    """The natural logarithm of each element."""
    return _inexact("log", x)


def log1p(x: Any, /) -> Any:
    """log(1 + x), precise near 0."""
    return _inexact("log1p", x)


def log2(x: Any, /) -> Any:
    """The binary logarithm of each element."""
    return _inexact("log2", x)


def log10(x: Any, /) -> Any:
    """The decimal logarithm of each element."""
    return _inexact("log10", x)


def logaddexp(x: Any, /, other: Any) -> Any:
    """log(exp(x) + exp(other)) without overflow."""
    return _inexact_binary("logaddexp", x, other)


def sqrt(x: Any, /) -> Any:
    """The square root of each element; NaN below 0."""
    return _inexact("sqrt", x)


def sin(x: Any, /) -> Any:
    """The sine of each element."""
    return _inexact("sin", x)


def cos(x: Any, /) -> Any:
    """The cosine of each element."""
    return _inexact("cos", x)


def tan(x: Any, /) -> Any:
    """The tangent of each element."""
    return _inexact("tan", x)


def asin(x: Any, /) -> Any:
    """The inverse sine of each element."""
    return _inexact("asin", x)


def acos(x: Any, /) -> Any:
    """The inverse cosine of each element."""
    return _inexact("acos", x)


def atan(x: Any, /) -> Any:
    """The inverse tangent of each element."""
    return _inexact("atan", x)


def atan2(x: Any, /, other: Any) -> Any:
    """The angle of the point (other, x), in radians."""
    return _inexact_binary("atan2", x, other)


def sinh(x: Any, /) -> Any:
    """The hyperbolic sine of each element."""
    return _inexact("sinh", x)


def cosh(x: Any, /) -> Any:
    """The hyperbolic cosine of each element."""
    return _inexact("cosh", x)


def tanh(x: Any, /) -> Any:
    """The hyperbolic tangent of each element."""
    return _inexact("tanh", x)


def asinh(x: Any, /) -> Any:
    """The inverse hyperbolic sine of each element."""
    return _inexact("asinh", x)


def acosh(x: Any, /) -> Any:
    """The inverse hyperbolic cosine of each element."""
    return _inexact("acosh", x)


def atanh(x: Any, /) -> Any:
    """The inverse hyperbolic tangent of each element."""
    return _inexact("atanh", x)


# complex numbers ----------------------------------------------------------------------------------


def real(x: Any, /) -> Any:
    """The real part of each element."""
    return _unary("real", x) if value_of("real", x).dtype in COMPLEX else x.copy()


def imag(x: Any, /) -> Any:
    """The imaginary part; zeros of real numbers."""
    return _unary("imag", x)


def conj(x: Any, /) -> Any:
    """The complex conjugate of each element; itself of a real one."""
    return _unary("conj", x) if value_of("conj", x).dtype in COMPLEX else x.copy()


# comparison and logic -----------------------------------------------------------------------------


def equal(x: Any, /, other: Any) -> Any:
    """x == other, broadcast; bool."""
    return _binary("equal", x, other)


def not_equal(x: Any, /, other: Any) -> Any:
    """x != other, broadcast; bool."""
    return _binary("not_equal", x, other)


def less(x: Any, /, other: Any) -> Any:
    """x < other, broadcast; bool."""
    return _binary("less", x, other)


def less_equal(x: Any, /, other: Any) -> Any:
    """x <= other, broadcast; bool."""
    return _binary("less_equal", x, other)


def greater(x: Any, /, other: Any) -> Any:
    """x > other, broadcast; bool."""
    return _binary("greater", x, other)


def greater_equal(x: Any, /, other: Any) -> Any:
    """x >= other, broadcast; bool."""
    return _binary("greater_equal", x, other)


def _truth(name: str, x: Any) -> Any:
    """Whether each element is other than zero, as NaN is; bools as they are."""
    value = value_of(name, x)
    return value if value.dtype == "bool" else apply("not_equal", *of_one_dtype(value, 0))


def _truths(name: str, x1: Any, x2: Any) -> tuple[Any, Any]:
    if not isinstance(x1, Value) or not isinstance(x2, Value):
        x1, x2 = _pair(name, x1, x2)
    return _truth(name, x1), _truth(name, x2)


def logical_not(x: Any, /) -> Any:
    """Whether each element is false: a zero, where x is no bool."""
    return apply("logical_not", _truth("logical_not", x))


def logical_and(x: Any, /, other: Any) -> Any:
    """Whether both are true, broadcast; numbers are true that are not zero."""
    return apply("logical_and", *_truths("logical_and", x, other))


def logical_or(x: Any, /, other: Any) -> Any:
    """Whether one of both is true, broadcast; numbers are true that are not zero."""
    return apply("logical_or", *_truths("logical_or", x, other))


def logical_xor(x: Any, /, other: Any) -> Any:
    """Whether exactly one of both is true, broadcast; numbers are true that are not zero."""
    return apply("not_equal", *_truths("logical_xor", x, other))


def bitwise_and(x: Any, /, other: Any) -> Any:
    """Bit by bit on integers, logical_and on bools."""
    return logic_or_bits("bitwise_and", *_pair("bitwise_and", x, other))


def bitwise_or(x: Any, /, other: Any) -> Any:
    """Bit by bit on integers, logical_or on bools."""
    return logic_or_bits("bitwise_or", *_pair("bitwise_or", x, other))


def bitwise_xor(x: Any, /, other: Any) -> Any:
    """Bit by bit on integers, logical_xor on bools."""
    return logic_or_bits("bitwise_xor", *_pair("bitwise_xor", x, other))


def bitwise_invert(x: Any, /) -> Any:
    """Every bit of integers turned, logical_not of bools."""
    return logic_or_bits("bitwise_invert", value_of("bitwise_invert", x))


def bitwise_left_shift(x: Any, /, other: Any) -> Any:
    """x << other of integers, broadcast."""
    return _binary("bitwise_left_shift", x, other)


def bitwise_right_shift(x: Any, /, other: Any) -> Any:
    """Signed numbers keep their sign."""
    return _binary("bitwise_right_shift", x, other)


def isnan(x: Any, /) -> Any:
    """Whether each element is NaN."""
    return apply("not_equal", value_of("isnan", x), x)


def isinf(x: Any, /) -> Any:
    """Whether each element is infinite."""
    value = value_of("isinf", x)
    if is_complex(value.dtype):
        return isinf(real(value)) | isinf(imag(value))
    return abs(value) == math.inf if is_float(value.dtype) else apply("not_equal", value, value)


def isfinite(x: Any, /) -> Any:
    """Whether each element is neither infinite nor NaN."""
    value = value_of("isfinite", x)
    if is_complex(value.dtype):
        return isfinite(real(value)) & isfinite(imag(value))
    return abs(value) < math.inf if is_float(value.dtype) else apply("equal", value, value)


def signbit(x: Any, /) -> Any:
    """Whether the sign is minus, of zeros and NaNs too."""
    return _unary("signbit", x)
