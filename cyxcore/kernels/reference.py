"""What every op means, in NumPy: the definition other backends are tested against.

A kernel takes (attrs, *inputs) and returns the result; `call` puts it into the output array.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cyxcore.errors import KernelError
from cyxcore.kernels import standard
from cyxcore.kernels.bfloat16 import BFLOAT16, narrowed, widened
from cyxcore.kernels.philox import uniform_words

Array = np.ndarray[Any, Any]
Kernel = Callable[..., Any]

KERNELS: dict[str, Kernel] = dict(standard.KERNELS)


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(names, function))
        return function

    return register


def call(op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
    """out[...] = op(inputs). `out` may be one of the inputs. Raises KernelError for an unknown op."""
    if op not in KERNELS:
        raise KernelError(f"reference: no kernel for {op!r}; add one in cyxcore/kernels/reference.py")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if out.dtype == BFLOAT16 or any(x.dtype == BFLOAT16 for x in inputs):
            result = KERNELS[op](attrs, *(widened(x) if x.dtype == BFLOAT16 else x for x in inputs))
            out[...] = narrowed(np.asarray(result)) if out.dtype == BFLOAT16 else result
        else:
            out[...] = KERNELS[op](attrs, *inputs)


def _plain(function: Callable[..., Any]) -> Kernel:
    return lambda attrs, *inputs: function(*inputs)


_PLAIN: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
    "sign": np.sign,
    "floor": np.floor,
    "logical_not": np.logical_not,
    "sin": np.sin,
    "cos": np.cos,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "where": np.where,
}
KERNELS.update((name, _plain(function)) for name, function in _PLAIN.items())

_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)

KERNELS["relu"] = lambda a, x: np.maximum(x, x.dtype.type(0))
KERNELS["erf"] = lambda a, x: np.asarray(_erf(x)).astype(x.dtype)
KERNELS["erfc"] = lambda a, x: np.asarray(_erfc(x)).astype(x.dtype)
KERNELS["ndtr"] = lambda a, x: _ndtr(x).astype(x.dtype)
KERNELS["cast"] = lambda a, x: x if a["dtype"] == "bfloat16" else x.astype(a["dtype"])


@kernel("tanh")
def _tanh(attrs: Mapping[str, Any], x: Array) -> Any:
    """At a complex infinity ±1 with a zero of the imaginary part's sign, as the array API standard asks."""
    result = np.asarray(np.tanh(x))
    if x.dtype.kind == "c":
        ends = np.isinf(x.real) & np.isfinite(x.imag)
        result.imag = np.where(ends, np.copysign(0, x.imag), result.imag)
    return result


@kernel("sigmoid")
def _sigmoid(attrs: Mapping[str, Any], x: Array) -> Any:
    """1 / (1 + exp(-x)), through exp(-|x|) so that nothing overflows."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _ndtr(x: Array) -> Array:
    return 0.5 * np.asarray(_erfc(x * -math.sqrt(0.5))).astype("float64")


@kernel("gelu")
def _gelu(attrs: Mapping[str, Any], x: Array) -> Any:
    """x Φ(x), which goes to 0 where x is next to -∞."""
    return np.where(x == -np.inf, -0.0, x * _ndtr(x)).astype(x.dtype)


@kernel("gelu_grad")
def _gelu_grad(attrs: Mapping[str, Any], g: Array, x: Array) -> Any:
    """g (Φ(x) + x φ(x)), of which the second goes to 0 on both sides."""
    wide = np.clip(x.astype("float64"), -40.0, 40.0)
    return (g * (_ndtr(wide) + wide * np.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi))).astype(x.dtype)


@kernel("softplus")
def _softplus(attrs: Mapping[str, Any], x: Array) -> Any:
    """log(1 + e**x), through e**-|x| so that nothing overflows."""
    return np.maximum(x, x.dtype.type(0)) + np.log1p(np.exp(-np.abs(x)))


@kernel("softplus_grad")
def _softplus_grad(attrs: Mapping[str, Any], g: Array, x: Array) -> Any:
    """g σ(x): what comes through e**-|x|, and g where x is above 0."""
    power = np.exp(-np.abs(x))
    through = g / (power + x.dtype.type(1)) * power
    return np.where(x > 0, -through, through) + g * (x > 0)


# reductions ---------------------------------------------------------------------------------------

KERNELS["sum"] = lambda a, x: x.sum(axis=a["axes"], keepdims=a["keepdims"], dtype=x.dtype)
KERNELS["mean"] = lambda a, x: x.mean(axis=a["axes"], keepdims=a["keepdims"], dtype=x.dtype)
KERNELS["max"] = lambda a, x: x.max(axis=a["axes"], keepdims=a["keepdims"])
KERNELS["min"] = lambda a, x: x.min(axis=a["axes"], keepdims=a["keepdims"])
KERNELS["argmax"] = lambda a, x: x.argmax(axis=a["axis"])


@kernel("matmul")
def _matmul(attrs: Mapping[str, Any], x: Array, y: Array) -> Any:
    return np.matmul(
        x.swapaxes(-1, -2) if attrs["transpose_a"] else x, y.swapaxes(-1, -2) if attrs["transpose_b"] else y
    )


# movement -----------------------------------------------------------------------------------------

KERNELS["transpose"] = lambda a, x: x.transpose(a["axes"])
KERNELS["broadcast_to"] = lambda a, x: np.broadcast_to(x, a["shape"])
KERNELS["slice"] = lambda a, x: x[
    tuple(slice(i, None if j < 0 else j, step) for i, j, step in zip(a["starts"], a["stops"], a["steps"], strict=True))
]  # a step down may stop at -1, before the first
KERNELS["pad"] = lambda a, x: np.pad(x, a["pads"], constant_values=x.dtype.type(a["value"])) if x.ndim else x
KERNELS["concat"] = lambda a, *xs: np.concatenate(xs, axis=a["axis"])
KERNELS["take"] = lambda a, x, i: np.take(x, i, axis=a["axis"])
KERNELS["take_along"] = lambda a, x, i: np.take_along_axis(x, i, axis=a["axis"])
KERNELS["one_hot"] = lambda a, i: (i[..., None] == np.arange(a["depth"])).astype(np.float32)


@kernel("reshape")
def _reshape(attrs: Mapping[str, Any], x: Array) -> Any:
    return x.reshape(attrs["shape"])


@kernel("take_grad")
def _take_grad(attrs: Mapping[str, Any], g: Array, indices: Array) -> Any:
    """out[..., indices[j], ...] += g[..., j, ...], j ascending."""
    axis, rank = attrs["axis"], indices.ndim
    out = np.zeros((*g.shape[:axis], attrs["size"], *g.shape[axis + rank :]), g.dtype)
    rows = g.reshape(*g.shape[:axis], indices.size, *g.shape[axis + rank :])
    np.add.at(out, (slice(None),) * axis + (indices.reshape(-1),), rows)
    return out


# convolution and pooling --------------------------------------------------------------------------


def _padded(x: Array, padding: tuple[int, int], value: float = 0.0) -> Array:
    (high, wide) = padding
    return np.pad(x, ((0, 0), (0, 0), (high, high), (wide, wide)), constant_values=value)


def _windows(x: Array, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Array:
    """(N, C, H, W) -> (N, C, H', W', KH, KW), a view."""
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _spread(parts: Array, shape: tuple[int, ...], attrs: Mapping[str, Any], dilation: tuple[int, int]) -> Array:
    """The transpose of _windows: (N, C, H', W', KH, KW) added up into an image of `shape`, padding
    removed.
    """
    (ph, pw), (sh, sw) = attrs["padding"], attrs["stride"]
    n, c, h, w = shape
    image = np.zeros((n, c, h + 2 * ph, w + 2 * pw), parts.dtype)
    rows, columns = parts.shape[2:4]
    for i in range(parts.shape[4]):
        for j in range(parts.shape[5]):
            top, left = i * dilation[0], j * dilation[1]
            image[:, :, top : top + sh * (rows - 1) + 1 : sh, left : left + sw * (columns - 1) + 1 : sw] += parts[
                ..., i, j
            ]
    return image[:, :, ph : ph + h, pw : pw + w]


@kernel("conv2d")
def _conv2d(attrs: Mapping[str, Any], x: Array, w: Array) -> Any:
    groups = attrs["groups"]
    windows = _windows(_padded(x, attrs["padding"]), w.shape[2:], attrs["stride"], attrs["dilation"])
    parts = [
        np.tensordot(columns, weights, axes=((1, 4, 5), (1, 2, 3)))  # (N, H', W', O/groups)
        for columns, weights in zip(np.split(windows, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    return np.concatenate(parts, -1).transpose(0, 3, 1, 2)


@kernel("conv2d_grad_weight")
def _conv2d_grad_weight(attrs: Mapping[str, Any], g: Array, x: Array) -> Any:
    groups, shape = attrs["groups"], attrs["weight_shape"]
    windows = _windows(_padded(x, attrs["padding"]), shape[2:], attrs["stride"], attrs["dilation"])
    return np.concatenate(
        [
            np.tensordot(part, columns, axes=((0, 2, 3), (0, 2, 3)))  # (O/groups, C/groups, KH, KW)
            for part, columns in zip(np.split(g, groups, 1), np.split(windows, groups, 1), strict=True)
        ]
    )


@kernel("conv2d_grad_input")
def _conv2d_grad_input(attrs: Mapping[str, Any], g: Array, w: Array) -> Any:
    groups = attrs["groups"]
    parts = [
        np.tensordot(part, weights, axes=((1,), (0,))).transpose(0, 3, 1, 2, 4, 5)  # (N, C/groups, H', W', KH, KW)
        for part, weights in zip(np.split(g, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    return _spread(np.concatenate(parts, 1), attrs["input_shape"], attrs, attrs["dilation"])


@kernel("max_pool2d")
def _max_pool2d(attrs: Mapping[str, Any], x: Array) -> Any:
    return _windows(_padded(x, attrs["padding"], -np.inf), attrs["kernel"], attrs["stride"]).max((4, 5))


@kernel("max_pool2d_grad")
def _max_pool2d_grad(attrs: Mapping[str, Any], g: Array, x: Array) -> Any:
    """To the first maximum of each window."""
    windows = _windows(_padded(x, attrs["padding"], -np.inf), attrs["kernel"], attrs["stride"])
    flat = windows.reshape(*windows.shape[:4], -1)
    first = flat.argmax(-1)[..., None] == np.arange(flat.shape[-1])
    return _spread((first * g[..., None]).reshape(windows.shape), x.shape, attrs, (1, 1))


@kernel("avg_pool2d")
def _avg_pool2d(attrs: Mapping[str, Any], x: Array) -> Any:
    return _windows(_padded(x, attrs["padding"]), attrs["kernel"], attrs["stride"]).mean((4, 5))


@kernel("avg_pool2d_grad")
def _avg_pool2d_grad(attrs: Mapping[str, Any], g: Array) -> Any:
    share = (g / g.dtype.type(math.prod(attrs["kernel"])))[..., None, None]
    return _spread(np.broadcast_to(share, (*g.shape, *attrs["kernel"])), attrs["input_shape"], attrs, (1, 1))


# softmax, losses, random --------------------------------------------------------------------------


@kernel("softmax")
def _softmax(attrs: Mapping[str, Any], x: Array) -> Any:
    if not x.size:
        return x
    powers = np.exp(x - x.max(attrs["axis"], keepdims=True))
    return powers / powers.sum(attrs["axis"], keepdims=True)


@kernel("log_softmax")
def _log_softmax(attrs: Mapping[str, Any], x: Array) -> Any:
    if not x.size:
        return x
    centred = x - x.max(attrs["axis"], keepdims=True)
    return centred - np.log(np.exp(centred).sum(attrs["axis"], keepdims=True))


@kernel("softmax_grad")
def _softmax_grad(attrs: Mapping[str, Any], g: Array, y: Array) -> Any:
    return y * (g - (g * y).sum(attrs["axis"], keepdims=True))


@kernel("log_softmax_grad")
def _log_softmax_grad(attrs: Mapping[str, Any], g: Array, y: Array) -> Any:
    return g - np.exp(y) * g.sum(attrs["axis"], keepdims=True)


@kernel("cross_entropy")
def _cross_entropy(attrs: Mapping[str, Any], logits: Array, labels: Array) -> Any:
    return -np.take_along_axis(_log_softmax({"axis": 1}, logits), labels[:, None], 1)[:, 0]


@kernel("cross_entropy_grad")
def _cross_entropy_grad(attrs: Mapping[str, Any], g: Array, logits: Array, labels: Array) -> Any:
    result = _softmax({"axis": 1}, logits)
    np.put_along_axis(result, labels[:, None], np.take_along_axis(result, labels[:, None], 1) - 1, 1)
    return result * g[:, None]


@kernel("uniform")
def _uniform(attrs: Mapping[str, Any], key: Array) -> Any:
    words = uniform_words(int(key[0]), int(key[1]), attrs["stream"], math.prod(attrs["shape"]))
    return ((words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)).reshape(attrs["shape"])


# optimisers ---------------------------------------------------------------------------------------


def _decayed(attrs: Mapping[str, Any], g: Array, p: Array) -> Any:
    return g + p.dtype.type(attrs["weight_decay"]) * p


@kernel("sgd_update")
def _sgd_update(attrs: Mapping[str, Any], p: Array, g: Array, lr: Array) -> Any:
    return p - lr * _decayed(attrs, g, p)


@kernel("momentum")
def _momentum(attrs: Mapping[str, Any], buffer: Array, g: Array, p: Array) -> Any:
    return p.dtype.type(attrs["momentum"]) * buffer + _decayed(attrs, g, p)


@kernel("nesterov_update")
def _nesterov_update(attrs: Mapping[str, Any], p: Array, g: Array, buffer: Array, lr: Array) -> Any:
    return p - lr * (_decayed(attrs, g, p) + p.dtype.type(attrs["momentum"]) * buffer)


@kernel("axpy_update")
def _axpy_update(attrs: Mapping[str, Any], p: Array, buffer: Array, lr: Array) -> Any:
    return p - lr * buffer


@kernel("adam_m")
def _adam_m(attrs: Mapping[str, Any], m: Array, g: Array, p: Array) -> Any:
    beta = m.dtype.type(attrs["beta"])
    return beta * m + m.dtype.type(1.0 - attrs["beta"]) * _decayed(attrs, g, p)


@kernel("adam_v")
def _adam_v(attrs: Mapping[str, Any], v: Array, g: Array, p: Array) -> Any:
    beta = v.dtype.type(attrs["beta"])
    return beta * v + v.dtype.type(1.0 - attrs["beta"]) * np.square(_decayed(attrs, g, p))


@kernel("adam_update")
def _adam_update(attrs: Mapping[str, Any], p: Array, m: Array, v: Array, lr: Array, step: Array) -> Any:
    """torch.optim.Adam / AdamW: corrected moments, decay apart from the gradient."""
    real = p.dtype.type
    m_hat = m / real(1.0 - attrs["beta1"] ** float(step))
    v_hat = v / real(1.0 - attrs["beta2"] ** float(step))
    return p * (1 - lr * real(attrs["decoupled_weight_decay"])) - lr * m_hat / (np.sqrt(v_hat) + real(attrs["eps"]))
