"""ONNX operators that reduce axes or accumulate along one."""

import math
from typing import Any

from cyxcore import functional as F
from cyxcore import manipulation as M
from cyxcore import statistics as T
from cyxcore.dtype import DTYPES, iinfo, is_float
from cyxcore.onnx.table import Call, along, filled, integer, ints, operator
from cyxcore.values import apply


def lowest(dtype: str, largest: bool) -> Any:
    """What the maximum of nothing is, or (largest) the minimum."""
    if dtype == "bool":
        return largest
    if DTYPES[dtype].kind == "real floating":
        return math.inf if largest else -math.inf
    info = iinfo(dtype)
    return info[1] if largest else info[2]


def _extreme(op: str) -> Any:
    def function(x: Any, axes: tuple[int, ...]) -> Any:
        if any(x.shape[axis] == 0 for axis in axes):
            shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
            return filled(x, shape, lowest(x.dtype, op == "min"), x.dtype)
        if x.dtype == "bool":
            return apply(op, x.astype("uint8"), axes=axes, keepdims=True).astype("bool")
        return apply(op, x, axes=axes, keepdims=True)

    return function


def _sum(x: Any, axes: tuple[int, ...]) -> Any:
    return apply("sum", x, axes=axes, keepdims=True)


def _mean(x: Any, axes: tuple[int, ...]) -> Any:
    if is_float(x.dtype):
        return apply("mean", x, axes=axes, keepdims=True)
    return apply("mean", x.astype("float64"), axes=axes, keepdims=True).astype(x.dtype)


def _log_sum_exp(x: Any, axes: tuple[int, ...]) -> Any:
    value = x if is_float(x.dtype) else x.astype("float64")
    if any(x.shape[axis] == 0 for axis in axes):
        return _sum(value.exp(), axes).log().astype(x.dtype)
    top = apply("max", value, axes=axes, keepdims=True)
    return (_sum((value - top).exp(), axes).log() + top).astype(x.dtype)


def _in_floats(function: Any) -> Any:
    def whole(x: Any, axes: tuple[int, ...]) -> Any:
        return function(x if is_float(x.dtype) else x.astype("float64"), axes).astype(x.dtype)

    return whole


REDUCTIONS: dict[str, Any] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceMax": _extreme("max"),
    "ReduceMin": _extreme("min"),
    "ReduceProd": lambda x, axes: apply("prod", x, axes=axes, keepdims=True),
    "ReduceL1": lambda x, axes: _sum(x.abs(), axes),
    "ReduceL2": _in_floats(lambda x, axes: _sum(x * x, axes).sqrt()),
    "ReduceSumSquare": lambda x, axes: _sum(x * x, axes),
    "ReduceLogSum": _in_floats(lambda x, axes: _sum(x, axes).log()),
    "ReduceLogSumExp": _log_sum_exp,
}


@operator(*REDUCTIONS, known=(1,))
def _reduce(call: Call, x: Any, axes: Any = None) -> Any:
    given = ints(axes) if axes is not None else call.attr("axes")
    if not given:
        if call.attr("noop_with_empty_axes", 0):
            # Nothing is added up, but what is done to each element is done.
            return REDUCTIONS[call.op](x.expand_dims(0), (0,)).squeeze(0)
        given = list(range(x.ndim))
    places = x._axes(given)
    result = REDUCTIONS[call.op](x, places)
    return result if call.attr("keepdims", 1) or not places else result.squeeze(places)


@operator("ArgMax", "ArgMin")
def _arg(call: Call, x: Any) -> Any:
    axis = x._axis(call.attr("axis", 0))
    last = call.attr("select_last_index", 0)
    value = M.flip(x, axis=axis) if last else x
    result = apply("argmax" if call.op == "ArgMax" else "argmin", value, axis=axis)
    if last:
        result = x.shape[axis] - 1 - result
    return result.expand_dims(axis) if call.attr("keepdims", 1) else result


@operator("CumSum", "CumProd", since=11, known=(1,), limits="in a graph (runs on tensors)")
def _running(call: Call, x: Any, axis: Any) -> Any:
    place = x._axis(integer(axis))
    value = M.flip(x, axis=place) if call.attr("reverse", 0) else x
    function, start = (T.cumulative_sum, 0) if call.op == "CumSum" else (T.cumulative_prod, 1)
    result = function(value, axis=place, dtype=x.dtype)
    if call.attr("exclusive", 0):
        first = filled(x, (*x.shape[:place], 1, *x.shape[place + 1 :]), start, x.dtype)
        result = F.concat([first, along(result, place, slice(0, -1))], place)
    return M.flip(result, axis=place) if call.attr("reverse", 0) else result


@operator("LpNormalization")
def _lp_normalization(call: Call, x: Any) -> Any:
    axis = (x._axis(call.attr("axis", -1)),)
    size = _sum(x.abs(), axis) if call.attr("p", 2) == 1 else _sum(x * x, axis).sqrt()
    return F.where(size == 0.0, x, x / F.where(size == 0.0, size + 1.0, size))


@operator("MeanVarianceNormalization", since=9)
def _mean_variance(call: Call, x: Any) -> Any:
    axes = x._axes(call.attr("axes", [0, 2, 3]))
    centred = x - _mean(x, axes)
    return centred / (_mean(centred * centred, axes).sqrt() + 1e-9)
