"""Initialisers: fill a parameter in place, with torch's names and formulas. Values come from cyxcore.manual_seed.

fan_in is the number of inputs of one output, fan_out the number of outputs of one input: of a weight (out, in, *kernel)
in * kernel and out * kernel.
"""

import math
from typing import Any

import numpy as np

from cyxcore import drawing
from cyxcore.eager import Tensor, next_key
from cyxcore.errors import ShapeError, SpecError

Array = np.ndarray[Any, Any]


def _fill(tensor: Tensor, values: Array | float) -> Tensor:
    tensor._assign(Tensor(np.broadcast_to(np.asarray(values, tensor.dtype), tensor.shape)).to(tensor.device))
    return tensor


def _uniform(shape: tuple[int, ...]) -> Array:
    seed, step = next_key().tolist()
    return drawing.uniform(seed, step, 0, shape)


def _normal(shape: tuple[int, ...], mean: float = -0.0, std: float = 1.0, dtype: str = "float64") -> Array:
    seed, step = next_key().tolist()
    return drawing.normal(seed, step, 0, shape, std=std, mean=mean, dtype=dtype)


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out)"""
    if tensor.ndim < 2:
        raise ShapeError(f"init: expected a weight of at least two axes, got {tensor.shape}")
    kernel = math.prod(tensor.shape[2:])
    return tensor.shape[1] * kernel, tensor.shape[0] * kernel


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """What keeps the variance through an activation."""
    gains = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "selu": 0.75}
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in gains:
        raise SpecError(f"init: expected one of {', '.join([*gains, 'leaky_relu'])}, got {nonlinearity!r}")
    return gains[nonlinearity]


def zeros_(tensor: Tensor) -> Tensor:
    return _fill(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    return _fill(tensor, 1.0)


def constant_(tensor: Tensor, val: float) -> Tensor:
    return _fill(tensor, val)


def eye_(tensor: Tensor) -> Tensor:
    return _fill(tensor, np.eye(tensor.shape[0], tensor.shape[1]))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    return _fill(tensor, a + (b - a) * _uniform(tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return _fill(tensor, _normal(tensor.shape, mean, std, tensor.dtype))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Normal numbers, drawn again while they are outside a … b."""
    values = _normal(tensor.shape, mean, std)
    while (outside := (values < a) | (values > b)).any():
        values[outside] = _normal((int(outside.sum()),), mean, std)
    return _fill(tensor, values)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans(tensor))))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise SpecError(f"init: expected mode fan_in or fan_out, got {mode!r}")
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(tensor)[mode == "fan_out"])


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """U(-b, b), b = sqrt(3) gain / sqrt(fan) (He et al. 2015)."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def orthogonal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer (Saxe et al. 2013); axes after the first count as one."""
    if tensor.ndim < 2:
        raise ShapeError(f"init: expected a weight of at least two axes, got {tensor.shape}")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    drawn = _normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diag(r))
    return _fill(tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """A convolution (out, in, *kernel) that passes its channels on, in each of `groups`: 1 in the kernel's middle.

    Raises ShapeError for other than 3 to 5 axes, or outputs that are no multiple of `groups`.
    """
    if not 3 <= tensor.ndim <= 5:
        raise ShapeError(f"dirac_: expected the weight of a convolution, of 3 to 5 axes, got {tensor.shape}")
    if groups < 1 or tensor.shape[0] % groups:
        raise ShapeError(f"dirac_: expected a multiple of groups={groups} outputs, got {tensor.shape}")
    values, outputs = np.zeros(tensor.shape), tensor.shape[0] // groups
    middle = tuple(size // 2 for size in tensor.shape[2:])
    for row in range(tensor.shape[0]):
        if row % outputs < tensor.shape[1]:
            values[(row, row % outputs, *middle)] = 1.0
    return _fill(tensor, values)


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01) -> Tensor:
    """Normal numbers in a weight of two axes, but 0 in a share `sparsity` of each column, rounded up (Martens 2010)."""
    if tensor.ndim != 2:
        raise ShapeError(f"sparse_: expected a weight of two axes, got {tensor.shape}")
    if not 0.0 <= sparsity <= 1.0:
        raise SpecError(f"sparse_: expected sparsity in 0..1, got {sparsity}")
    shape = (tensor.shape[0], tensor.shape[1])
    values, order = _normal(shape) * std, _uniform(shape).argsort(axis=0, kind="stable")
    np.put_along_axis(values, order[: math.ceil(sparsity * shape[0])], 0.0, axis=0)
    return _fill(tensor, values)
