"""ONNX operators on quantised numbers: integers with a scale and a zero point, y = (q - zero_point) * scale."""

from typing import Any

from cyxcore import elementwise as E
from cyxcore.dtype import iinfo
from cyxcore.errors import GraphError
from cyxcore.onnx.products import conv
from cyxcore.onnx.table import Call, operator
from cyxcore.onnx.tensors import dtype_of
from cyxcore.values import apply

LIMITS = "4-bit and smaller integers, 8-bit and smaller floats; in a graph (runs on tensors)"


def _bounds(dtype: str) -> tuple[int, int]:
    info = iinfo(dtype)
    return info[2], info[1]


def _laid(value: Any, x: Any, axis: int, block: int) -> Any:
    """A scale or zero point laid out over x: one, one per place of an axis, or one per block of an axis."""
    if value.size == 1 and value.ndim <= 1:
        return value.reshape(())
    if block:
        count = x.shape[axis]
        rows = [place // block for place in range(count)]
        return apply("take", value, value._constant(rows, "int64"), axis=axis)
    if value.ndim == 1:
        return value.reshape(*(value.shape[0] if place == axis else 1 for place in range(x.ndim)))
    return value


def _saturated(value: Any, dtype: str) -> Any:
    low, high = _bounds(dtype)
    held = apply("maximum", value, value._constant(low, value.dtype))
    return apply("minimum", held, value._constant(high, value.dtype)).astype(dtype)


def _quantised(x: Any, scale: Any, zero: Any, dtype: str) -> Any:
    whole = E.round((x / scale).astype("float64"))
    return _saturated(whole if zero is None else whole + zero.astype("float64"), dtype)


def _axis(x: Any, call: Call) -> int:
    axis = call.attr("axis", 1)
    if not -x.ndim <= axis < max(x.ndim, 1):
        return 0 if x.ndim == 1 else x._axis(axis)
    return axis % x.ndim if x.ndim else 0


@operator("QuantizeLinear", since=10, limits=LIMITS)
def _quantize(call: Call, x: Any, scale: Any, zero: Any = None) -> Any:
    axis, block = _axis(x, call), call.attr("block_size", 0)
    wanted = call.attr("output_dtype", 0)
    dtype = zero.dtype if zero is not None else dtype_of(wanted, "QuantizeLinear") if wanted else "uint8"
    if dtype not in ("uint8", "int8", "uint16", "int16"):
        raise GraphError(f"quantises to {dtype}, which is not supported")
    value = x.astype("float32")
    spread = _laid(scale.astype("float32"), x, axis, block)
    return _quantised(value, spread, None if zero is None else _laid(zero, x, axis, block), dtype)


@operator("DequantizeLinear", since=10, limits=LIMITS)
def _dequantize(call: Call, x: Any, scale: Any, zero: Any = None) -> Any:
    axis, block = _axis(x, call), call.attr("block_size", 0)
    wanted = call.attr("output_dtype", 0)
    value = x.astype("float32")
    if zero is not None:
        value = x.astype("float64") - _laid(zero, x, axis, block).astype("float64")
    result = value.astype("float32") * _laid(scale, x, axis, block).astype("float32")
    return result.astype(dtype_of(wanted, "DequantizeLinear") if wanted else scale.dtype)


@operator("DynamicQuantizeLinear", since=11, limits="in a graph (runs on tensors)")
def _dynamic(call: Call, x: Any) -> Any:
    low = apply("minimum", x.min(), x._constant(0.0, "float32"))
    high = apply("maximum", x.max(), x._constant(0.0, "float32"))
    scale = (high - low) / 255.0
    zero = _saturated(E.round(-low / scale), "uint8")
    return _quantised(x, scale, zero, "uint8"), scale, zero


def _centred(x: Any, zero: Any, axis: int | None = None) -> Any:
    """x - zero point as float64, exact for integers; a zero point for each place of an axis if there are several."""
    value = x.astype("float64")
    if zero is None:
        return value
    zero = zero.astype("float64")
    if zero.size == 1:
        return value - zero.reshape(())
    if axis is not None and zero.ndim == 1:
        zero = zero.reshape(*(zero.shape[0] if place == axis % x.ndim else 1 for place in range(x.ndim)))
    return value - zero


@operator("MatMulInteger", since=10, limits="in a graph (runs on tensors)")
def _matmul_integer(call: Call, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    return (_centred(a, a_zero, -2) @ _centred(b, b_zero, -1)).astype("int32")


@operator("ConvInteger", since=10, limits="in a graph (runs on tensors)")
def _conv_integer(call: Call, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None) -> Any:
    return conv(call, _centred(x, x_zero), _centred(w, w_zero, 0)).astype("int32")


def _requantised(total: Any, scale: Any, out_scale: Any, out_zero: Any) -> Any:
    value = total * scale / out_scale.astype("float64").reshape(())
    return _saturated(E.round(value) + out_zero.astype("float64").reshape(()), out_zero.dtype)


@operator("QLinearMatMul", since=10, limits="8-bit floats; in a graph (runs on tensors)")
def _qlinear_matmul(
    call: Call, a: Any, a_scale: Any, a_zero: Any, b: Any, b_scale: Any, b_zero: Any, y_scale: Any, y_zero: Any
) -> Any:
    total = _centred(a, a_zero, -2) @ _centred(b, b_zero, -1)
    left, right = a_scale.astype("float64"), b_scale.astype("float64")
    left = left.reshape(-1, 1) if left.ndim == 1 and left.size > 1 else left
    return _requantised(total, left * right, y_scale, y_zero)


@operator("QLinearConv", since=10, limits="in a graph (runs on tensors)")
def _qlinear_conv(
    call: Call,
    x: Any,
    x_scale: Any,
    x_zero: Any,
    w: Any,
    w_scale: Any,
    w_zero: Any,
    y_scale: Any,
    y_zero: Any,
    bias: Any = None,
) -> Any:
    total = conv(call, _centred(x, x_zero), _centred(w, w_zero, 0))
    column = (1, -1, *(1,) * (total.ndim - 2))
    if bias is not None:
        total = total + bias.astype("float64").reshape(*column)
    scale = w_scale.astype("float64")
    scale = scale.reshape(*column) if scale.size > 1 else scale.reshape(())
    return _requantised(total, scale * x_scale.astype("float64").reshape(()), y_scale, y_zero)
