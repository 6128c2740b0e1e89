"""Activations. Names, arguments and formulas are torch.nn.functional's; x is of any shape.

inplace: the result is written into x, which is what comes back: see cyxcore.functional.basic.overwritten.
"""

import math
from typing import Any

from cyxcore.casting import lowered
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import overwritten, softmax, where
from cyxcore.values import apply, bent, composed, to_inexact

# Klambauer et al. 2017 (arXiv 1706.02515): the constants under which mean 0 and variance 1 stay.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _below(x: Any) -> Any:
    """min(x, 0), of gradient 1 at 0: beside ReLU, whose is 0 there, smooth functions have the right one."""
    return where(x > 0.0, 0.0, x)


def elu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """x above 0, alpha (e^x - 1) below."""
    if inplace:
        return overwritten(x, elu, alpha)
    return composed(_elu, (x,), (alpha,))


def _elu(x: Any, alpha: float) -> Any:
    return x.relu() + (_below(x).exp() - 1.0) * alpha


def selu(x: Any, inplace: bool = False) -> Any:
    """See cx.nn.SELU."""
    if inplace:
        return overwritten(x, selu)
    return composed(_selu, (x,), ())


def _selu(x: Any) -> Any:
    return _elu(x, SELU_ALPHA) * SELU_SCALE


def celu(x: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """x above 0, alpha (e^(x / alpha) - 1) below."""
    if inplace:
        return overwritten(x, celu, alpha)
    return composed(_celu, (x,), (alpha,))


def _celu(x: Any, alpha: float) -> Any:
    return x.relu() + ((_below(x) / alpha).exp() - 1.0) * alpha


def gelu(x: Any, approximate: str = "none") -> Any:
    """x Φ(x), Φ the normal distribution function; "tanh": Hendrycks and Gimpel's approximation of it."""
    if approximate == "none":
        return apply("gelu", to_inexact(x))
    if approximate == "tanh":
        return x._composed(_gelu_by_tanh, (x,), ())
    raise SpecError(f"gelu: expected approximate to be none or tanh, got {approximate!r}")


def _gelu_by_tanh(x: Any) -> Any:
    # (1 + tanh z) / 2 = σ(2 z): fewer passes, and no digits lost where tanh z is near -1
    scale = math.sqrt(8.0 / math.pi)
    return x * (x * (x.square() * (0.044715 * scale) + scale)).sigmoid()


def silu(x: Any, inplace: bool = False) -> Any:
    """x σ(x), also called swish."""
    if inplace:
        return overwritten(x, silu)
    return x._composed(_silu, (x,), ())


def _silu(x: Any) -> Any:
    return x * x.sigmoid()


SOFTPLUS_THRESHOLD = 20.0


def softplus(x: Any, beta: float = 1.0, threshold: float = SOFTPLUS_THRESHOLD) -> Any:
    """log(1 + e^(beta x)) / beta without overflow: max(x, 0) + log(1 + e^-|beta x|) / beta.

    threshold: where beta x is above it, x itself, as in torch. Above torch's 20 the two differ by less than 2.1e-9 /
    beta, and the formula, which needs no such bound, stays.
    """
    if beta == 1.0 and threshold == SOFTPLUS_THRESHOLD:
        return apply("softplus", to_inexact(x))
    return composed(_softplus, (x,), (beta, threshold))


def _softplus(x: Any, beta: float, threshold: float) -> Any:
    smooth = softplus(x) if beta == 1.0 else softplus(x * beta) * (1.0 / beta)
    return smooth if threshold == SOFTPLUS_THRESHOLD else where(x * beta > threshold, x, smooth)


def logsigmoid(x: Any) -> Any:
    """log σ(x)"""
    return composed(_logsigmoid, (x,), ())


def _logsigmoid(x: Any) -> Any:
    return -softplus(-x)


def mish(x: Any, inplace: bool = False) -> Any:
    """x tanh(log(1 + e^x))"""
    if inplace:
        return overwritten(x, mish)
    return composed(_mish, (x,), ())


def _mish(x: Any) -> Any:
    return x * softplus(x).tanh()


def softsign(x: Any) -> Any:
    """x / (1 + |x|)."""
    return composed(_softsign, (x,), ())


def _softsign(x: Any) -> Any:
    return x / (x.abs() + 1.0)


def tanhshrink(x: Any) -> Any:
    """x - tanh(x)."""
    return composed(_tanhshrink, (x,), ())


def _tanhshrink(x: Any) -> Any:
    return x - x.tanh()


def hardshrink(x: Any, lambd: float = 0.5) -> Any:
    """x farther than lambd from 0, 0 elsewhere."""
    return composed(_hardshrink, (x,), (lambd,))


def _hardshrink(x: Any, lambd: float) -> Any:
    return where(x.abs() > lambd, x, 0.0)


def softshrink(x: Any, lambd: float = 0.5) -> Any:
    """x nearer to 0 by lambd, but not beyond."""
    return bent("softshrink", _softshrink, x, bound=lambd)


def _softshrink(x: Any, lambd: float) -> Any:
    return x - x.clip(-lambd, lambd)


def softmin(x: Any, dim: int = -1, *, dtype: Any = None) -> Any:
    """softmax(-x) along an axis; dtype: see softmax."""
    return softmax(-x, dim, dtype=dtype)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    """x kept within min_val … max_val."""
    if inplace:
        return overwritten(x, hardtanh, min_val, max_val)
    return bent("hardtanh", _hardtanh, x, low=min_val, high=max_val)


def _hardtanh(x: Any, min_val: float, max_val: float) -> Any:
    # At the bounds the gradient is 0, as in PyTorch; NaN stays NaN.
    low, high = x._constant(min_val, x.dtype), x._constant(max_val, x.dtype)
    above = apply("where", apply("less_equal", x, low), low, x)
    return apply("where", apply("greater_equal", above, high), high, above)


def relu6(x: Any, inplace: bool = False) -> Any:
    """x kept within 0 … 6."""
    if inplace:
        return overwritten(x, relu6)
    return hardtanh(x, 0.0, 6.0)


def hardsigmoid(x: Any, inplace: bool = False) -> Any:
    """(x + 3) / 6 kept within 0 … 1."""
    if inplace:
        return overwritten(x, hardsigmoid)
    return bent("hardsigmoid", _hardsigmoid, x)


def _hardsigmoid(x: Any) -> Any:
    return _hardtanh(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)


def hardswish(x: Any, inplace: bool = False) -> Any:
    """See cx.nn.Hardswish."""
    if inplace:
        return overwritten(x, hardswish)
    return bent("hardswish", _hardswish, x)


def _hardswish(x: Any) -> Any:
    return x * _hardsigmoid(x)


def leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """See cx.nn.LeakyReLU. inplace: see overwritten."""
    if inplace:
        return overwritten(x, leaky_relu, negative_slope)
    return bent("leaky_relu", _leaky_relu, x, slope=negative_slope)


def _leaky_relu(x: Any, negative_slope: float) -> Any:
    return apply("where", x > 0, x, x * negative_slope)


def threshold(x: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    """x above the threshold, `value` elsewhere."""
    if inplace:
        return overwritten(x, _threshold, threshold, value)
    return composed(_threshold, (x,), (threshold, value))


def _threshold(x: Any, threshold: float, value: float) -> Any:
    return where(x > threshold, x, value)


@lowered
def prelu(x: Any, weight: Any) -> Any:
    """x above 0, weight x below. weight: (1,), or one per channel (axis 1)."""
    if weight.shape != (1,) and (x.ndim < 2 or weight.shape != (x.shape[1],)):
        raise ShapeError(f"prelu: expected a weight (1,) or one per channel of x {x.shape}, got {weight.shape}")
    slope = weight if weight.shape == (1,) or x.ndim == 2 else weight.reshape(1, -1, *(1,) * (x.ndim - 2))
    return composed(_prelu, (x, slope), ())


def _prelu(x: Any, slope: Any) -> Any:
    return where(x > 0.0, x, x * slope)


def glu(x: Any, dim: int = -1) -> Any:
    """The first half along an axis times σ of the second."""
    axis = x._axis(dim)
    if x.shape[axis] % 2:
        raise ShapeError(f"glu: expected an even size along axis {dim}, got {x.shape}")
    half = x.shape[axis] // 2
    before = (slice(None),) * axis
    return x[(*before, slice(None, half))] * x[(*before, slice(half, None))].sigmoid()
