"""The functions others are made of: products, pooling, dropout, and choosing and joining."""

import math
from typing import Any

from cyxcore.dtype import DEFAULTS, result_type
from cyxcore.errors import ShapeError, SpecError
from cyxcore.infer import broadcast
from cyxcore.values import TracedMode, Value, apply, by_mode, together

Pair = int | tuple[int, int]


def pair(value: Any) -> tuple[int, int]:
    """A number as two, or two as they are."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _axis(x: Value, axis: int) -> int:
    return x._axis(axis)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight.T + bias. x: (..., in), weight: (out, in), bias: (out,). Returns (..., out)."""
    if x.ndim < 1 or x.shape[-1] != weight.shape[-1]:
        raise ShapeError(f"linear: expected x (..., {weight.shape[-1]}) for weight {weight.shape}, got {x.shape}")
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    result = apply("matmul", rows, weight, transpose_b=True)
    if bias is not None:
        result = result + bias
    return result if x.ndim == 2 else result.reshape(*x.shape[:-1], weight.shape[0])


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation. x: (N, C, H, W), weight: (O, C/groups, KH, KW), bias: (O,).

    Returns (N, O, H', W').
    """
    result = apply(
        "conv2d",
        x,
        weight,
        stride=pair(stride),
        padding=pair(padding),
        dilation=pair(dilation),
        groups=groups,
    )
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _window(kernel_size: Pair, stride: Pair | None, padding: Pair) -> dict[str, tuple[int, int]]:
    kernel = pair(kernel_size)
    return {"kernel": kernel, "stride": kernel if stride is None else pair(stride), "padding": pair(padding)}


def max_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Any:
    """The largest of each window of x (N, C, H, W). The stride is the kernel size unless given."""
    return apply("max_pool2d", x, **_window(kernel_size, stride, padding))


def avg_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Any:
    """The mean of each window of x (N, C, H, W); padding counts as zeros."""
    return apply("avg_pool2d", x, **_window(kernel_size, stride, padding))


def global_avg_pool2d(x: Any) -> Any:
    """(N, C, H, W) -> (N, C): the mean of each channel."""
    return x.mean((2, 3))


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return x.relu()


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """See cx.nn.LeakyReLU."""
    return apply("where", x > 0, x, x * negative_slope)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent of each element."""
    return x.tanh()


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return x.sigmoid()


def softmax(x: Any, dim: int = -1) -> Any:
    """exp(x) / sum(exp(x)) along an axis."""
    return apply("softmax", x, axis=_axis(x, dim))


def log_softmax(x: Any, dim: int = -1) -> Any:
    """The logarithm of softmax along an axis."""
    return apply("log_softmax", x, axis=_axis(x, dim))


def dropout(x: Any, p: float = 0.5, training: bool | TracedMode = True) -> Any:
    """In training each element is zero with probability p and x / (1 - p) otherwise."""
    if not 0.0 <= p < 1.0:
        raise SpecError(f"dropout: expected a probability 0 <= p < 1, got {p}")
    if p == 0.0:
        return x
    return by_mode(training, lambda: x * ((x._uniform(x.shape) >= p).astype(x.dtype) * (1.0 / (1.0 - p))), lambda: x)


def channel_dropout(x: Any, p: float = 0.5, training: bool | TracedMode = True) -> Any:
    """dropout() of whole channels of x (N, C, ...)."""
    kept = dropout(x._constant(1.0, x.dtype).broadcast_to(*x.shape[:2], *(1,) * (x.ndim - 2)), p, training)
    return x * kept


def embedding(indices: Any, weight: Any) -> Any:
    """Rows of weight (count, dim) by index. indices: integers of any shape. Returns (*indices.shape, dim)."""
    return apply("take", weight, weight._check_indices(indices.astype("int64"), weight.shape[0]), axis=0)


def one_hot(indices: Any, num_classes: int) -> Any:
    """1 in the place of each index, 0 elsewhere."""
    return apply("one_hot", indices.astype("int64"), depth=num_classes)


def clip_scale(squares: Any, max_norm: float) -> Any:
    """What gradients are multiplied with so that their 2-norm is at most max_norm.

    squares: the sum of squares of each gradient.
    """
    return minimum(max_norm / (total_norm(squares) + 1e-6), 1.0)


def total_norm(squares: Any) -> Any:
    """The 2-norm of arrays together. squares: the sum of squares of each."""
    total = squares[0]
    for each in squares[1:]:
        total = total + each
    return total.sqrt()


def where(condition: Any, x1: Any, x2: Any, /) -> Any:
    """x1 where condition holds, else x2 (numbers allowed)."""
    left, right = together(x1, x2) if isinstance(x1, Value) or isinstance(x2, Value) else (x1, x2)
    if not isinstance(left, Value):
        dtype = result_type(*(DEFAULTS[type(number)] for number in (x1, x2)))
        left, right = condition._constant(x1, dtype), condition._constant(x2, dtype)
    return apply("where", condition, left, right)


def maximum(x1: Any, x2: Any, /) -> Any:
    """The larger of both, broadcast; NaN where one is NaN."""
    return apply("maximum", *together(x1, x2))


def minimum(x1: Any, x2: Any, /) -> Any:
    """The smaller of both, broadcast; NaN where one is NaN."""
    return apply("minimum", *together(x1, x2))


def concat(arrays: Any, /, axis: int | None = 0) -> Any:
    """Tensors joined along an axis they already have; flattened first where it is None."""
    values = together(*arrays)
    if axis is None:
        return concat([value.reshape(-1) for value in values])
    return apply("concat", *values, axis=values[0]._axis(axis))


def stack(arrays: Any, /, axis: int = 0) -> Any:
    """Tensors of one shape joined along a new axis."""
    shapes = [value.shape for value in arrays]
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"stack: expected equal shapes, got {', '.join(map(str, shapes))}")
    rows = [value.expand_dims(axis) for value in arrays]
    return concat(rows, axis % rows[0].ndim)


def pad(x: Any, pads: Any, value: float = 0.0) -> Any:
    """x with `value` around it. pads: a (low, high) pair per axis."""
    return apply("pad", x, pads=tuple((int(low), int(high)) for low, high in pads), value=float(value))


def take_along_axis(x: Any, indices: Any, /, axis: int = -1) -> Any:
    """The elements of x each index names along an axis. The other axes broadcast."""
    place = x._axis(axis)
    if x.ndim == indices.ndim:
        others = [(*v.shape[:place], 1, *v.shape[place + 1 :]) for v in (x, indices)]
        shape = broadcast("take_along_axis", *others)
        x, indices = (v.broadcast_to(*shape[:place], v.shape[place], *shape[place + 1 :]) for v in (x, indices))
    return apply("take_along", x, x._check_indices(indices.astype("int64"), x.shape[place]), axis=place)
