"""ONNX operators that go element by element: arithmetic, functions, comparison, logic, bits, activations, casts."""

import math
from functools import reduce
from typing import Any

from cyxcore import elementwise as E
from cyxcore import functional as F
from cyxcore.dtype import DTYPES, is_float, is_integer
from cyxcore.errors import GraphError
from cyxcore.onnx.table import Call, host, number, operator, symbolic, text
from cyxcore.onnx.tensors import dtype_of
from cyxcore.values import apply

# one input ----------------------------------------------------------------------------------------

_TENSOR_ONLY = "in a graph (runs on tensors)"


def _ceil(x: Any) -> Any:
    return -((-x).floor()) if symbolic(x) else E.ceil(x)


def _round(x: Any) -> Any:
    """To the even one between two."""
    if not symbolic(x):
        return E.round(x)
    low = x.floor()
    near = (x + 0.5).floor()
    even = (low * 0.5 + 0.5).floor() * 2.0
    return F.where(x - low == 0.5, even, near)


def _asinh(x: Any) -> Any:
    if not symbolic(x):
        return E.asinh(x)
    size = x.abs()
    return x.sign() * (size + (size * size + 1.0).sqrt()).log()


_FUNCTIONS: dict[str, Any] = {
    "Abs": lambda x: x.abs(),
    "Neg": lambda x: -x,
    "Sign": lambda x: x.sign(),
    "Floor": lambda x: x.floor(),
    "Ceil": _ceil,
    "Round": _round,
    "Exp": lambda x: x.exp(),
    "Log": lambda x: x.log(),
    "Sqrt": lambda x: x.sqrt(),
    "Reciprocal": lambda x: 1.0 / x,
    "Sin": lambda x: x.sin(),
    "Cos": lambda x: x.cos(),
    "Tan": lambda x: x.sin() / x.cos() if symbolic(x) else E.tan(x),
    "Sinh": lambda x: (x.exp() - (-x).exp()) * 0.5 if symbolic(x) else E.sinh(x),
    "Cosh": lambda x: (x.exp() + (-x).exp()) * 0.5 if symbolic(x) else E.cosh(x),
    "Tanh": lambda x: x.tanh(),
    "Asinh": _asinh,
    "Acosh": lambda x: (x + (x * x - 1.0).sqrt()).log() if symbolic(x) else E.acosh(x),
    "Atanh": lambda x: ((x + 1.0) / (1.0 - x)).log() * 0.5 if symbolic(x) else E.atanh(x),
    "Erf": lambda x: x.erf(),
    "Sigmoid": lambda x: x.sigmoid(),
    "Relu": lambda x: x.relu(),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Not": E.logical_not,
    "IsNaN": lambda x: x != x,
    "Identity": lambda x: x,
}
_ON_TENSORS: dict[str, Any] = {"Asin": E.asin, "Acos": E.acos, "Atan": E.atan, "BitwiseNot": E.bitwise_invert}


@operator(*_FUNCTIONS)
def _function(call: Call, x: Any) -> Any:
    return _FUNCTIONS[call.op](x)


@operator(*_ON_TENSORS, limits=_TENSOR_ONLY)
def _on_tensors(call: Call, x: Any) -> Any:
    return _ON_TENSORS[call.op](x)


@operator("IsInf", since=10)
def _is_inf(call: Call, x: Any) -> Any:
    large = 3.4028234663852886e38 if x.dtype == "float32" else 1.7976931348623157e308
    if not symbolic(x):
        large = math.inf
    hit = (lambda v: v > large) if symbolic(x) else (lambda v: v == large)
    positive, negative = call.attr("detect_positive", 1), call.attr("detect_negative", 1)
    if positive and negative:
        return hit(x.abs())
    return hit(x) if positive else hit(-x) if negative else x != x


# two or more --------------------------------------------------------------------------------------


@operator("Add", "Sub", "Mul")
def _arithmetic(call: Call, a: Any, b: Any) -> Any:
    return apply(call.op.lower(), a, b)


@operator("Div")
def _div(call: Call, a: Any, b: Any) -> Any:
    """Integers are divided towards zero."""
    if is_float(a.dtype):
        return apply("div", a, b)
    if DTYPES[a.dtype].kind == "unsigned integer":
        return E.floor_divide(a, b)
    return E.floor_divide(a.abs(), b.abs()) * (a.sign() * b.sign())


@operator("Mod", since=10, limits=_TENSOR_ONLY)
def _mod(call: Call, a: Any, b: Any) -> Any:
    """Of the divisor's sign; with fmod of the dividend's, as in C."""
    if call.attr("fmod", 0):
        unsigned = DTYPES[a.dtype].kind == "unsigned integer"
        return E.remainder(a, b) if unsigned else a.sign() * E.remainder(a.abs(), b.abs())
    return E.remainder(a, b)


@operator("Pow")
def _pow(call: Call, a: Any, b: Any) -> Any:
    if a.dtype == b.dtype:
        return a**b
    if is_float(a.dtype):
        return a ** b.astype(a.dtype)
    return (a.astype("float64") ** b.astype("float64")).astype(a.dtype)


@operator("Max", "Min")
def _extreme(call: Call, *values: Any) -> Any:
    return reduce(lambda a, b: apply("maximum" if call.op == "Max" else "minimum", a, b), values)


@operator("Sum", "Mean")
def _total(call: Call, *values: Any) -> Any:
    total = reduce(lambda a, b: apply("add", a, b), values)
    return total if call.op == "Sum" else total * (1.0 / len(values))


_ORDERS = {
    "Equal": "equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
}


@operator(*_ORDERS)
def _compare(call: Call, a: Any, b: Any) -> Any:
    return apply(_ORDERS[call.op], a, b)


@operator("And", "Or", "Xor")
def _logic(call: Call, a: Any, b: Any) -> Any:
    return apply({"And": "logical_and", "Or": "logical_or", "Xor": "not_equal"}[call.op], a, b)


@operator("BitwiseAnd", "BitwiseOr", "BitwiseXor", limits=_TENSOR_ONLY)
def _bits(call: Call, a: Any, b: Any) -> Any:
    return apply({"BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor"}[call.op], a, b)


@operator("BitShift", since=11, limits=_TENSOR_ONLY)
def _bit_shift(call: Call, a: Any, b: Any) -> Any:
    """By all bits or more: nothing is left."""
    left = text(call.needs("direction")) == "LEFT"
    width = DTYPES[a.dtype].item_bytes * 8
    within = b < width if is_integer(b.dtype) else b == b
    moved = E.bitwise_left_shift(a, b) if left else E.bitwise_right_shift(a, b)
    return F.where(within, moved, a._constant(0, a.dtype)) if DTYPES[a.dtype].kind == "unsigned integer" else moved


@operator("Where", since=9)
def _where(call: Call, condition: Any, a: Any, b: Any) -> Any:
    return apply("where", condition, a, b)


@operator("Clip")
def _clip(call: Call, x: Any, low: Any = None, high: Any = None) -> Any:
    for name, op, bound in (("min", "maximum", low), ("max", "minimum", high)):
        if bound is None and call.opset < 11 and name in call.attrs:
            bound = x._constant(call.attrs[name], x.dtype)
        if bound is not None:
            x = apply(op, x, bound)
    return x


@operator("PRelu")
def _prelu(call: Call, x: Any, slope: Any) -> Any:
    return F.where(x < x._constant(0, x.dtype), x * slope, x)


# casts --------------------------------------------------------------------------------------------


def _cast(x: Any, dtype: str) -> Any:
    if dtype == "bool":
        return x != x._constant(0, x.dtype) if x.dtype != "bool" else x
    return x.astype(dtype)


@operator("Cast", limits="strings, 8-bit and smaller floats, integers of less than 8 bits")
def _cast_to(call: Call, x: Any) -> Any:
    return _cast(x, dtype_of(call.needs("to"), "Cast"))


@operator("CastLike", since=15, limits="as Cast")
def _cast_like(call: Call, x: Any, like: Any) -> Any:
    return _cast(x, like.dtype)


# activations with numbers of their own ------------------------------------------------------------

ACTIVATIONS: dict[str, tuple[dict[str, float], Any]] = {
    "Elu": ({"alpha": 1.0}, lambda x, alpha: F.elu(x, alpha)),
    "Celu": ({"alpha": 1.0}, lambda x, alpha: F.celu(x, alpha)),
    "LeakyRelu": ({"alpha": 0.01}, lambda x, alpha: F.where(x < 0.0, x * alpha, x)),
    "ThresholdedRelu": ({"alpha": 1.0}, lambda x, alpha: F.where(x > alpha, x, 0.0)),
    "HardSigmoid": ({"alpha": 0.2, "beta": 0.5}, lambda x, alpha, beta: F.hardtanh(x * alpha + beta, 0.0, 1.0)),
    "Selu": (
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
        lambda x, alpha, gamma: F.elu(x, alpha) * gamma,
    ),
    "Swish": ({"alpha": 1.0}, lambda x, alpha: x * (x * alpha).sigmoid()),
    "ScaledTanh": ({"alpha": 1.0, "beta": 1.0}, lambda x, alpha, beta: (x * beta).tanh() * alpha),
    "Affine": ({"alpha": 1.0, "beta": 0.0}, lambda x, alpha, beta: x * alpha + beta),
    "Tanh": ({}, lambda x: x.tanh()),
    "Relu": ({}, lambda x: x.relu()),
    "Sigmoid": ({}, lambda x: x.sigmoid()),
    "Softsign": ({}, F.softsign),
    "Softplus": ({}, F.softplus),
}


@operator("Elu", "Celu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "Selu", "Swish")
def _activation(call: Call, x: Any) -> Any:
    defaults, function = ACTIVATIONS[call.op]
    return function(x, *(float(call.attr(name, value)) for name, value in defaults.items()))


@operator("Gelu", since=20)
def _gelu(call: Call, x: Any) -> Any:
    return F.gelu(x, text(call.attr("approximate", "none")))


@operator("Shrink", since=9)
def _shrink(call: Call, x: Any) -> Any:
    lambd, bias = call.attr("lambd", 0.5), call.attr("bias", 0.0)
    value = x if is_float(x.dtype) else x.astype("float64")
    shrunk = F.where(value < -lambd, value + bias, F.where(value > lambd, value - bias, 0.0))
    return shrunk.astype(x.dtype)


@operator("Dropout", since=7, known=(1, 2), limits="in training mode (a model that is read is for inference)")
def _dropout(call: Call, x: Any, ratio: Any = None, training: Any = None) -> Any:
    on = training is not None and bool(host(training).reshape(-1)[0])
    if on and (ratio is None or number(ratio) != 0.0):
        raise GraphError("drops values in training mode; export the model for inference")
    return (x, x == x if is_float(x.dtype) else x._constant(True, "bool").broadcast_to(*x.shape))
