"""Layers and losses as functions, written once: on tensors they run, on symbols they build a graph.

Names and arguments are torch.nn.functional's. x and the results are tensors (or symbols).
"""

import math
from typing import Any

from cyxcore.errors import ShapeError, SpecError
from cyxcore.values import TracedMode, Value, apply, by_mode, together

Pair = int | tuple[int, int]


def pair(value: Any) -> tuple[int, int]:
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
    return x.relu()


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return apply("where", x > 0, x, x * negative_slope)


def gelu(x: Any) -> Any:
    """x * Φ(x), Φ the normal distribution function: 0.5 * x * (1 + erf(x / sqrt(2)))."""
    return x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1.0)


def silu(x: Any) -> Any:
    return x * x.sigmoid()


def tanh(x: Any) -> Any:
    return x.tanh()


def sigmoid(x: Any) -> Any:
    return x.sigmoid()


def softmax(x: Any, dim: int = -1) -> Any:
    return apply("softmax", x, axis=_axis(x, dim))


def log_softmax(x: Any, dim: int = -1) -> Any:
    return apply("log_softmax", x, axis=_axis(x, dim))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)) without overflow: max(x, 0) + log(1 + exp(-|x|))."""
    return x.relu() + ((-x.abs()).exp() + 1.0).log()


def dropout(x: Any, p: float = 0.5, training: bool | TracedMode = True) -> Any:
    """In training each element is zero with probability p and x / (1 - p) otherwise."""
    if not 0.0 <= p < 1.0:
        raise SpecError(f"dropout: expected a probability 0 <= p < 1, got {p}")
    if p == 0.0:
        return x
    return by_mode(training, lambda: x * ((x._uniform(x.shape) >= p).astype(x.dtype) * (1.0 / (1.0 - p))), lambda: x)


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool | TracedMode = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel (axis 1). x: (N, C) or (N, C, H, W).

    Training uses the batch's mean and population variance and moves the running ones towards them
    (the variance unbiased, as in torch); inference uses the running ones.
    """
    if x.ndim < 2 or x.shape[1] != running_mean.shape[0]:
        raise ShapeError(f"batch_norm: expected x (N, {running_mean.shape[0]}, ...), got {x.shape}")
    axes = (0, *range(2, x.ndim))
    column = (1, -1, *(1,) * (x.ndim - 2))

    def with_batch() -> Any:
        mean = x.mean(axes, keepdims=True)
        centred = x - mean
        var = (centred**2).mean(axes, keepdims=True)
        # The row count as a sum of ones: as a number it would tie a traced graph to one batch size.
        rows = x._constant(1.0, x.dtype).broadcast_to(x.shape[0]).sum()
        count = rows * float(math.prod(x.shape[2:]))
        unbiased = var * (count / maximum(count - 1.0, 1.0))
        running_mean._assign(running_mean * (1.0 - momentum) + mean.reshape(-1) * momentum)
        running_var._assign(running_var * (1.0 - momentum) + unbiased.reshape(-1) * momentum)
        return centred / (var + eps).sqrt()

    def with_running() -> Any:
        return (x - running_mean.reshape(*column)) / (running_var.reshape(*column) + eps).sqrt()

    result = by_mode(training, with_batch, with_running)
    if weight is not None:
        result = result * weight.reshape(*column)
    return result if bias is None else result + bias.reshape(*column)


def layer_norm(
    x: Any, normalized_shape: tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(var + eps) over the last axes, then * weight + bias of that shape."""
    if x.shape[x.ndim - len(normalized_shape) :] != tuple(normalized_shape):
        raise ShapeError(f"layer_norm: expected x (..., {', '.join(map(str, normalized_shape))}), got {x.shape}")
    axes = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    result = centred / ((centred**2).mean(axes, keepdims=True) + eps).sqrt()
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def embedding(indices: Any, weight: Any) -> Any:
    """Rows of weight (count, dim) by index. indices: integers of any shape. Returns (*indices.shape, dim)."""
    return apply("take", weight, weight._check_indices(indices.astype("int64"), weight.shape[0]), axis=0)


def one_hot(indices: Any, num_classes: int) -> Any:
    return apply("one_hot", indices.astype("int64"), depth=num_classes)


def cross_entropy(
    logits: Any,
    labels: Any,
    reduction: str = "mean",
    *,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Any:
    """-log softmax(logits)[label] per row. logits: (N, C) or (N, C, ...), labels: int64 (N,) or (N, ...).

    weight: (C,), of each class; the mean is then over the weights of the labels, as in torch. ignore_index: rows of
    this label count nothing. label_smoothing: this share of a label is spread evenly over all classes.
    """
    if logits.ndim > 2:  # (N, C, ...) -> (N * ..., C)
        shape = labels.shape
        rows = logits.transpose(0, *range(2, logits.ndim), 1).reshape(-1, logits.shape[1])
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
        result = cross_entropy(rows, labels.reshape(-1), reduction, **options)
        return result.reshape(*shape) if reduction == "none" else result
    if weight is None and ignore_index is None and not label_smoothing:
        return _reduced(apply("cross_entropy", logits, logits._check_indices(labels, logits.shape[-1])), reduction)
    if not 0.0 <= label_smoothing < 1.0:
        raise SpecError(f"cross_entropy: expected 0 <= label_smoothing < 1, got {label_smoothing}")
    counted = None if ignore_index is None else labels != ignore_index
    known = labels if counted is None else where(counted, labels, 0)
    known = logits._check_indices(known, logits.shape[-1])
    rows = apply("cross_entropy", logits, known)
    own = None if weight is None else apply("take", weight, known, axis=0)
    rows = rows if own is None else rows * own
    if label_smoothing:
        spread = -log_softmax(logits, 1)
        spread = (spread if weight is None else spread * weight).mean(1)
        rows = rows * (1.0 - label_smoothing) + spread * label_smoothing
    if counted is not None:
        counted = counted.astype(rows.dtype)
        rows = rows * counted
        own = counted if own is None else own * counted
    return _reduced(rows, reduction) if own is None or reduction != "mean" else rows.sum() / own.sum()


def clip_scale(squares: Any, max_norm: float) -> Any:
    """What gradients are multiplied with so that their 2-norm is at most max_norm.

    squares: the sum of squares of each gradient.
    """
    total = squares[0]
    for each in squares[1:]:
        total = total + each
    return minimum(max_norm / (total.sqrt() + 1e-6), 1.0)


def mse_loss(prediction: Any, target: Any, reduction: str = "mean") -> Any:
    """(prediction - target)**2. Both of one shape: a silent broadcast here is nearly always a mistake."""
    _same("mse_loss", prediction, target)
    return _reduced((prediction - target) ** 2, reduction)


def binary_cross_entropy_with_logits(logits: Any, target: Any, reduction: str = "mean") -> Any:
    """-t log σ(x) - (1-t) log(1 - σ(x)) = max(x, 0) - x t + log(1 + exp(-|x|)). Both of one shape."""
    _same("binary_cross_entropy_with_logits", logits, target)
    return _reduced(softplus(logits) - logits * target, reduction)


def where(condition: Any, a: Any, b: Any) -> Any:
    """a where condition holds, else b (numbers allowed)."""
    left, right = together(a, b) if isinstance(a, Value) or isinstance(b, Value) else (a, b)
    if not isinstance(left, Value):
        dtype = "float32" if float in (type(a), type(b)) else "int64"
        left, right = condition._constant(a, dtype), condition._constant(b, dtype)
    return apply("where", condition, left, right)


def maximum(a: Any, b: Any) -> Any:
    return apply("maximum", *together(a, b))


def minimum(a: Any, b: Any) -> Any:
    return apply("minimum", *together(a, b))


def concat(values: Any, axis: int = 0) -> Any:
    """Tensors joined along an axis they already have."""
    values = together(*values)
    return apply("concat", *values, axis=values[0]._axis(axis))


def stack(values: Any, axis: int = 0) -> Any:
    """Tensors of one shape joined along a new axis."""
    return concat([value.expand_dims(axis) for value in values], axis)


def pad(x: Any, pads: Any, value: float = 0.0) -> Any:
    """x with `value` around it. pads: a (low, high) pair per axis."""
    return apply("pad", x, pads=tuple((int(low), int(high)) for low, high in pads), value=float(value))


def take_along_axis(x: Any, indices: Any, axis: int) -> Any:
    place = x._axis(axis)
    return apply("take_along", x, x._check_indices(indices.astype("int64"), x.shape[place]), axis=place)


def _same(name: str, a: Any, b: Any) -> None:
    if a.shape != b.shape:
        raise ShapeError(f"{name}: expected two equal shapes, got {a.shape} and {b.shape}; reshape one of them")


def _reduced(rows: Any, reduction: str) -> Any:
    if reduction == "none":
        return rows
    if reduction not in ("mean", "sum"):
        raise SpecError(f"reduction: expected mean, sum or none, got {reduction!r}")
    return rows.mean() if reduction == "mean" else rows.sum()
