"""Normalisations. Names, arguments and formulas are torch.nn.functional's."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore.casting import rounded
from cyxcore.dtype import finfo
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import maximum, pad
from cyxcore.values import TracedMode, by_mode


@rounded
def batch_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool | TracedMode = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel (axis 1). x: (N, C) or (N, C, H, W).

    Training uses the batch's mean and population variance and moves the running ones towards them
    (the variance unbiased, as in torch); inference uses the running ones. Without running ones the batch's are always
    used. momentum: a number, or a 0-d value.

    A single value per channel (a last batch of one row) trains too, where torch refuses it: its variance counts as 0.
    Raises ShapeError for another number of channels, SpecError for one running statistic without the other.
    """
    if (running_mean is None) != (running_var is None):
        raise SpecError("batch_norm: expected running_mean and running_var, or neither")
    if x.ndim < 2 or (running_mean is not None and x.shape[1] != running_mean.shape[0]):
        channels = "C" if running_mean is None else running_mean.shape[0]
        raise ShapeError(f"batch_norm: expected x (N, {channels}, ...), got {x.shape}")
    axes = (0, *range(2, x.ndim))

    def follow(mean: Any, var: Any) -> None:
        if running_mean is not None and 0 not in x.shape:  # of nothing there is no mean to follow
            # The row count as a sum of ones: as a number it would tie a traced graph to one batch size.
            rows = x._constant(1.0, x.dtype).broadcast_to(x.shape[0]).sum()
            count = rows * float(math.prod(x.shape[2:]))
            _follow(running_mean, running_var, mean, var * (count / maximum(count - 1.0, 1.0)), momentum)

    if isinstance(training, TracedMode) and running_mean is not None:
        return by_mode(
            training,
            lambda: _batch_norm_by_batch(x, weight, bias, axes, eps, follow)[0],
            lambda: _batch_norm_by_given(x, running_mean, running_var, weight, bias, eps),
        )
    if running_mean is not None and not training:
        return x._composed(_batch_norm_by_given, (x, running_mean, running_var, weight, bias), (eps,))
    if x.is_symbolic:
        return _batch_norm_by_batch(x, weight, bias, axes, eps, follow)[0]
    result, mean, var = x._composed(_batch_norm_by_batch, (x, weight, bias), (axes, eps))
    follow(mean, var)
    return result


def _batch_norm_by_batch(
    x: Any, weight: Any, bias: Any, axes: tuple[int, ...], eps: float, follow: Callable[[Any, Any], None] | None = None
) -> tuple[Any, Any, Any]:
    """(the result, mean, var). follow: told mean and var.

    To the gradient the mean is a number by which x is shifted: variances do not change by that, and `rest`, the mean of
    what is shifted, is 0 but for rounding. So the gradient of x needs no sum of what it is made of.
    """
    mean = x.mean(axes, keepdims=True)
    shifted = x - mean.detach()
    rest = shifted.mean(axes, keepdims=True)
    var = shifted.square().mean(axes, keepdims=True) - rest * rest
    if follow is not None:
        follow(mean, var)
    std = (var + eps).sqrt()
    factor = 1.0 / std if weight is None else weight.reshape(*std.shape) / std
    shift = -(rest * factor) if bias is None else bias.reshape(*std.shape) - rest * factor
    return shifted * factor + shift, mean, var


def _batch_norm_by_given(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    """One factor a channel, weight / sqrt(var + eps), so that x and its gradient are not divided."""
    column = (1, -1, *(1,) * (x.ndim - 2))
    std = (var.reshape(*column) + eps).sqrt()
    factor = 1.0 / std if weight is None else weight.reshape(*column) / std
    return _scaled(x - mean.reshape(*column), factor, bias)


def _scaled(x: Any, weight: Any, bias: Any) -> Any:
    """x * weight + bias of each channel (axis 1)."""
    column = (1, -1, *(1,) * (x.ndim - 2))
    if weight is not None:
        x = x * weight.reshape(*column)
    return x if bias is None else x + bias.reshape(*column)


def _follow(running_mean: Any, running_var: Any, mean: Any, unbiased: Any, momentum: Any) -> None:
    """Move the running statistics. A graph may call one layer twice: the second goes on from what the first left."""
    for running, own in ((running_mean, mean), (running_var, unbiased)):
        running._assign(running._following() * (1.0 - momentum) + own.reshape(-1) * momentum)


def layer_norm(
    x: Any, normalized_shape: tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(var + eps) over the last axes, then * weight + bias of that shape."""
    if x.shape[x.ndim - len(normalized_shape) :] != tuple(normalized_shape):
        raise ShapeError(f"layer_norm: expected x (..., {', '.join(map(str, normalized_shape))}), got {x.shape}")
    return x._composed(_layer_norm, (x, weight, bias), (len(normalized_shape), eps))


def _layer_norm(x: Any, weight: Any, bias: Any, count: int, eps: float) -> Any:
    axes = tuple(range(x.ndim - count, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    result = centred * (1.0 / (centred.square().mean(axes, keepdims=True) + eps).sqrt())
    if weight is not None:
        result = result * weight
    return result if bias is None else result + bias


def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) over each group of channels of each row. x: (N, C, ...); weight, bias: (C,)."""
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ShapeError(f"group_norm: expected x (N, C, ...) with {num_groups} groups dividing C, got {x.shape}")
    return x._composed(_group_norm, (x, weight, bias), (num_groups, eps))


def _group_norm(x: Any, weight: Any, bias: Any, num_groups: int, eps: float) -> Any:
    parts = x.reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    centred = parts - parts.mean(2, keepdims=True)
    scale = 1.0 / (centred.square().mean(2, keepdims=True) + eps).sqrt()
    return _scaled((centred * scale).reshape(*x.shape), weight, bias)


def instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool | TracedMode = True,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Each channel of each row by itself. x: (N, C, ...)

    use_input_stats: with their own mean and population variance, towards whose means over the rows the running ones are
    moved, if there are any (the variance unbiased); otherwise with the running ones, as batch_norm.
    """
    if use_input_stats is False and running_mean is None:
        raise SpecError("instance_norm: expected running statistics where those of the input are not used")
    if running_mean is None:
        return group_norm(x, x.shape[1], weight, bias, eps)

    def with_own() -> Any:
        parts = x.detach().reshape(*x.shape[:2], math.prod(x.shape[2:]))
        count = parts.shape[2]
        var = parts.var(2, correction=0).mean(0) * (count / max(count - 1.0, 1.0))
        _follow(running_mean, running_var, parts.mean(2).mean(0), var, momentum)
        return group_norm(x, x.shape[1], weight, bias, eps)

    return by_mode(
        use_input_stats, with_own, lambda: batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    )


def rms_norm(x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = 1e-6) -> Any:
    """x / sqrt(mean(x^2) + eps) over the last axes, times weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    eps: None is the distance from 1 to the next number of x's dtype, as in torch.
    """
    eps = float(finfo(x.dtype).eps) if eps is None else eps
    shape = tuple(normalized_shape)
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ShapeError(f"rms_norm: expected x (..., {', '.join(map(str, shape))}), got {x.shape}")
    return x._composed(_rms_norm, (x, weight), (len(shape), eps))


def _rms_norm(x: Any, weight: Any, count: int, eps: float) -> Any:
    axes = tuple(range(x.ndim - count, x.ndim))
    result = x * (1.0 / (x.square().mean(axes, keepdims=True) + eps).sqrt())
    return result if weight is None else result * weight


def local_response_norm(x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """x / (k + alpha mean(squares of `size` neighbouring channels))^beta (Krizhevsky et al. 2012). x: (N, C, ...)"""
    if x.ndim < 3 or size < 1:
        raise ShapeError(
            f"local_response_norm: expected x (N, C, L, ...) and a size of at least 1, got {x.shape}, {size}"
        )
    padded = pad(x.square(), [(0, 0), (size // 2, (size - 1) // 2), *[(0, 0)] * (x.ndim - 2)])
    total = padded[:, : x.shape[1]]
    for place in range(1, size):
        total = total + padded[:, place : place + x.shape[1]]
    return x / (total * (alpha / size) + k) ** beta
