"""ONNX operators of neural networks: pooling, normalisation, softmax, losses, attention."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from cyxcore import functional as F
from cyxcore.dtype import is_float
from cyxcore.errors import GraphError, ShapeError
from cyxcore.onnx.movement import padded
from cyxcore.onnx.products import window_pads
from cyxcore.onnx.reductions import lowest
from cyxcore.onnx.table import Call, along, constant, filled, host, operator, symbolic, text
from cyxcore.values import apply

# pooling ------------------------------------------------------------------------------------------


MAX_WINDOW = 4096  # places of a window that is taken apart into slices


def _windows(call: Call, x: Any, fill: Any, kernel: Sequence[int]) -> tuple[list[Any], list[int], Any]:
    """(one slice of the padded x for each place of the window, output sizes, (low pads, strides, dilations)).

    In ceil mode a window may begin inside the input and end behind it; what is missing there is `fill`.
    """
    sizes = x.shape[2:]
    if math.prod(kernel) > MAX_WINDOW:
        raise ShapeError(f"expected a window of at most {MAX_WINDOW} places, got {list(kernel)}")
    strides, spread, low, high = window_pads(call, sizes, kernel)
    counts = []
    for axis, (size, k, s, d) in enumerate(zip(sizes, kernel, strides, spread, strict=True)):
        span = d * (k - 1) + 1
        room = size + low[axis] + high[axis] - span
        if room < 0:
            raise ShapeError(f"a window of {span} does not fit into {size} with pads {low[axis]}, {high[axis]}")
        count = room // s + 1
        if call.attr("ceil_mode", 0) and text(call.attr("auto_pad", "NOTSET")) == "NOTSET":
            count = -(-room // s) + 1
            if (count - 1) * s >= size + low[axis]:
                count -= 1
        counts.append(count)
        x = padded(x, axis + 2, low[axis], max(0, (count - 1) * s + span - size - low[axis]), fill)
    parts = []
    for place in product(*(range(k) for k in kernel)):
        index: list[Any] = [slice(None), slice(None)]
        for offset, s, d, count in zip(place, strides, spread, counts, strict=True):
            index.append(slice(offset * d, offset * d + (count - 1) * s + 1, s))
        parts.append(x[tuple(index)])
    return parts, counts, (low, strides, spread)


def _plain_pool(call: Call, x: Any, kernel: Sequence[int]) -> tuple[Any, ...] | None:
    """(kernel, stride, padding) where the op of the table does it."""
    strides, spread, low, high = window_pads(call, x.shape[2:], kernel)
    small = all(2 * p <= k for p, k in zip(low, kernel, strict=True))
    if (
        len(kernel) == 2
        and set(spread) == {1}
        and low == high
        and small
        and not call.attr("ceil_mode", 0)
        and is_float(x.dtype)
    ):
        return tuple(kernel), tuple(strides), tuple(low)
    return None


def _kernel(call: Call, x: Any) -> list[int]:
    kernel = call.needs("kernel_shape")
    if len(kernel) != x.ndim - 2:
        raise ShapeError(f"expected a kernel of {x.ndim - 2} axes for x {x.shape}, got {kernel}")
    return list(kernel)


@operator("MaxPool")
def _max_pool(call: Call, x: Any) -> Any:
    """Indices, where they are asked for, are those of the flattened x."""
    kernel = _kernel(call, x)
    plain = _plain_pool(call, x, kernel)
    if plain and call.outputs < 2:
        return F.max_pool2d(x, *plain)
    fill = lowest(x.dtype, False)
    if symbolic(x) and is_float(x.dtype):  # a graph holds finite numbers
        fill = float(np.finfo(x.dtype).min)
    parts, counts, (low, strides, spread) = _windows(call, x, fill, kernel)
    best = parts[0]
    chosen = None
    for place, part in enumerate(parts[1:], 1):
        larger = part > best
        best = F.where(larger, part, best)
        if call.outputs > 1:
            mark = x._constant(place, "int64")
            chosen = F.where(larger, mark, x._constant(0, "int64") if chosen is None else chosen)
    if call.outputs < 2:
        return best
    chosen = filled(x, best.shape, 0, "int64") if chosen is None else chosen
    sizes = x.shape[2:]
    order = list(range(len(sizes)))
    if call.attr("storage_order", 0):
        order.reverse()
    offsets = list(product(*(range(k) for k in kernel)))
    flat: Any = 0
    for axis in order:  # the row-major place, or the column-major one
        grid = np.arange(counts[axis]) * strides[axis] - low[axis]
        shape = [-1 if a == axis + 2 else 1 for a in range(x.ndim)]
        start = constant(x, grid.reshape(shape), "int64")
        inside = constant(x, np.array([offset[axis] * spread[axis] for offset in offsets]), "int64")
        flat = flat * sizes[axis] + (apply("take", inside, chosen, axis=0) + start)
    images = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * len(sizes)) * math.prod(sizes)
    return best, flat + constant(x, images, "int64")


@operator("AveragePool")
def _average_pool(call: Call, x: Any) -> Any:
    kernel = _kernel(call, x)
    plain = _plain_pool(call, x, kernel)
    counted = call.attr("count_include_pad", 0)
    if plain and (counted or not any(plain[2])):
        return F.avg_pool2d(x, *plain)
    parts, _, _ = _windows(call, x, 0.0, kernel)
    strides, spread, low, high = window_pads(call, x.shape[2:], kernel)
    inside = np.pad(
        np.ones((1, 1, *x.shape[2:])),
        ((0, 0), (0, 0), *zip(low, high, strict=True)),
        constant_values=1.0 if counted else 0.0,
    )
    held = _held(inside, kernel, strides, spread, parts[0].shape[2:])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / constant(x, held, x.dtype)


def _held(ones: Any, kernel: Any, strides: Any, spread: Any, counts: Sequence[int]) -> Any:
    """The sum of each window over an array, what lies behind it being 0."""
    ends = [(c - 1) * s + d * (k - 1) + 1 for c, s, d, k in zip(counts, strides, spread, kernel, strict=True)]
    behind = [(0, max(0, end - size)) for end, size in zip(ends, ones.shape[2:], strict=True)]
    whole = np.pad(ones, ((0, 0), (0, 0), *behind))
    total: Any = 0.0
    for place in product(*(range(k) for k in kernel)):
        index = [slice(None), slice(None)]
        index += [
            slice(o * d, o * d + (c - 1) * s + 1, s) for o, d, c, s in zip(place, spread, counts, strides, strict=True)
        ]
        total = total + whole[tuple(index)]
    return total


@operator("LpPool")
def _lp_pool(call: Call, x: Any) -> Any:
    p = call.attr("p", 2)
    parts, _, _ = _windows(call, x.abs(), 0.0, _kernel(call, x))
    total: Any = None
    for part in parts:
        power = part if p == 1 else part * part if p == 2 else part ** float(p)
        total = power if total is None else total + power
    return total if p == 1 else total.sqrt() if p == 2 else total ** (1.0 / p)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(call: Call, x: Any) -> Any:
    axes = tuple(range(2, x.ndim))
    if call.op == "GlobalLpPool":
        p = float(call.attr("p", 2))
        return (x.abs() ** p).sum(axes, keepdims=True) ** (1.0 / p)
    return x.mean(axes, keepdims=True) if call.op == "GlobalAveragePool" else x.max(axes, keepdims=True)


@operator("MaxUnpool", since=9, known=(2,), limits="in a graph (runs on tensors)")
def _max_unpool(call: Call, x: Any, indices: Any, output_shape: Any = None) -> Any:
    kernel = _kernel(call, x)
    rank = len(kernel)
    strides, pads = call.attr("strides") or [1] * rank, call.attr("pads") or [0] * 2 * rank
    sizes = [
        (size - 1) * s + k - pads[a] - pads[a + rank]
        for a, (size, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    wanted = (*x.shape[:2], *sizes) if output_shape is None else tuple(int(n) for n in host(output_shape))
    places = host(indices)
    if tuple(wanted[2:]) != tuple(sizes):  # the places are those of the smaller image
        coordinates = np.unravel_index(places, (*x.shape[:2], *sizes))
        places = np.ravel_multi_index(coordinates, wanted)
    zero = filled(x, (math.prod(wanted),), 0.0, x.dtype)
    flat = constant(x, places.reshape(-1), "int64")
    return apply("scatter", zero, flat, x.reshape(x.size), reduction="none").reshape(*wanted)


# normalisation ------------------------------------------------------------------------------------


def _per_channel(x: Any, value: Any) -> Any:
    return value.reshape(1, -1, *(1,) * (x.ndim - 2))


@operator("BatchNormalization", since=9)
def _batch_normalization(call: Call, x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
    eps = call.attr("epsilon", 1e-5)
    if not call.attr("training_mode", 0):
        scaled = _per_channel(x, scale / (var + eps).sqrt()) if scale.dtype == x.dtype else None
        if scaled is None:
            raise GraphError(f"expected scale of {x.dtype}, got {scale.dtype}")
        return (x - _per_channel(x, mean)) * scaled + _per_channel(x, bias)
    momentum = call.attr("momentum", 0.9)
    axes = (0, *range(2, x.ndim))
    now_mean, now_var = x.mean(axes), x.var(axes)
    y = (x - _per_channel(x, now_mean)) / (_per_channel(x, now_var) + eps).sqrt()
    y = y * _per_channel(x, scale) + _per_channel(x, bias)
    return y, mean * momentum + now_mean * (1.0 - momentum), var * momentum + now_var * (1.0 - momentum)


@operator("InstanceNormalization")
def _instance_normalization(call: Call, x: Any, scale: Any, bias: Any) -> Any:
    return F.instance_norm(x, None, None, scale, bias, eps=call.attr("epsilon", 1e-5))


@operator("GroupNormalization", since=18)
def _group_normalization(call: Call, x: Any, scale: Any, bias: Any) -> Any:
    """Scale and bias are one per group until opset 20, one per channel after."""
    groups = call.needs("num_groups")
    if call.opset < 21:
        each = x.shape[1] // groups
        scale, bias = (v.reshape(-1, 1).broadcast_to(groups, each).reshape(groups * each) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.attr("epsilon", 1e-5))


@operator("LayerNormalization", since=17)
def _layer_normalization(call: Call, x: Any, scale: Any, bias: Any = None) -> Any:
    axes = tuple(range(x._axis(call.attr("axis", -1)), x.ndim))
    mean = x.mean(axes, keepdims=True)
    centred = x - mean
    inverse = 1.0 / ((centred * centred).mean(axes, keepdims=True) + call.attr("epsilon", 1e-5)).sqrt()
    y = centred * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@operator("RMSNormalization", since=23)
def _rms_normalization(call: Call, x: Any, scale: Any) -> Any:
    axes = tuple(range(x._axis(call.attr("axis", -1)), x.ndim))
    value = x.astype("float32") if x.dtype in ("float16", "bfloat16") else x
    normal = value / ((value * value).mean(axes, keepdims=True) + call.attr("epsilon", 1e-5)).sqrt()
    return normal.astype(scale.dtype) * scale


@operator("LRN")
def _lrn(call: Call, x: Any) -> Any:
    """x / (bias + alpha / size * sum of squares of the channels around)^beta"""
    size = call.needs("size")
    if not 0 < size <= MAX_WINDOW:
        raise ShapeError(f"expected a size of 1 to {MAX_WINDOW}, got {size}")
    alpha, beta, bias = call.attr("alpha", 0.0001), call.attr("beta", 0.75), call.attr("bias", 1.0)
    squares = padded(x * x, 1, (size - 1) // 2, size // 2, 0.0)
    total: Any = None
    for place in range(size):
        part = along(squares, 1, slice(place, place + x.shape[1]))
        total = part if total is None else total + part
    return x / (total * (alpha / size) + bias) ** beta


# softmax and losses -------------------------------------------------------------------------------


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call, x: Any) -> Any:
    op = "softmax" if call.op == "Softmax" else "log_softmax"
    if call.opset >= 13:
        return apply(op, x, axis=x._axis(call.attr("axis", -1)))
    axis = x._axis(call.attr("axis", 1))  # all axes from there on as one
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return apply(op, rows, axis=1).reshape(*x.shape)


@operator("Hardmax", since=13)
def _hardmax(call: Call, x: Any) -> Any:
    axis = x._axis(call.attr("axis", -1))
    first = apply("argmax", x, axis=axis).expand_dims(axis)
    row = np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return (first == constant(x, row, "int64")).astype(x.dtype)


def _loss(call: Call, logs: Any, labels: Any, weight: Any) -> Any:
    """-log p[label], (N, C, ...) and (N, ...), as reduction says; ignored labels count nothing."""
    ignored, reduction = call.attr("ignore_index"), text(call.attr("reduction", "mean"))
    labels = labels.astype("int64")
    counted = None if ignored is None else labels != ignored
    safe = labels if counted is None else F.where(counted, labels, 0)
    rows = -apply("take_along", logs, safe.expand_dims(1), axis=1).squeeze(1)
    own = None if weight is None else apply("take", weight, safe, axis=0)
    if counted is not None:
        ones = counted.astype(logs.dtype)
        own = ones if own is None else own * ones
    if own is not None:
        rows = rows * own
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    return rows.mean() if own is None else rows.sum() / own.sum()


@operator("NegativeLogLikelihoodLoss", since=12)
def _nll_loss(call: Call, x: Any, labels: Any, weight: Any = None) -> Any:
    return _loss(call, x, labels, weight)


@operator("SoftmaxCrossEntropyLoss", since=12)
def _softmax_cross_entropy(call: Call, x: Any, labels: Any, weight: Any = None) -> Any:
    logs = apply("log_softmax", x, axis=1)
    return _loss(call, logs, labels, weight), logs


# attention ----------------------------------------------------------------------------------------


@operator("RotaryEmbedding", since=23)
def _rotary(call: Call, x: Any, cos: Any, sin: Any, positions: Any = None) -> Any:
    heads = call.attr("num_heads", 0)
    value = x if x.ndim == 4 else x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)
    size = call.attr("rotary_embedding_dim", 0) or value.shape[3]
    if positions is not None:
        cos, sin = (apply("take", table, positions.astype("int64"), axis=0) for table in (cos, sin))
    cos, sin = (along(table, 2, slice(0, size // 2)).expand_dims(1) for table in (cos, sin))
    turned, rest = value[..., :size], value[..., size:]
    if call.attr("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., : size // 2], turned[..., size // 2 :]
    real, imaginary = a * cos - b * sin, a * sin + b * cos
    if call.attr("interleaved", 0):
        both = F.concat([real.expand_dims(4), imaginary.expand_dims(4)], 4).reshape(*turned.shape)
    else:
        both = F.concat([real, imaginary], 3)
    if size < value.shape[3]:
        both = F.concat([both, rest], 3)
    return both if x.ndim == 4 else both.transpose(0, 2, 1, 3).reshape(*x.shape)


def _split_heads(x: Any, heads: int) -> Any:
    return x if x.ndim == 4 else x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)


@operator("Attention", since=23, known=(6,), limits="of half floats, in a precision of softmax other than float32's")
def _attention(
    call: Call,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    padded_lengths: Any = None,
) -> Any:
    """softmax(q k^T scale + mask) v, for (B, H, T, D) or (B, T, H D); keys may have fewer heads than queries."""
    flat = q.ndim == 3
    q = _split_heads(q, call.attr("q_num_heads", 0))
    k, v = (_split_heads(part, call.attr("kv_num_heads", 0)) for part in (k, v))
    if past_key is not None:
        k, v = F.concat([past_key, k], 2), F.concat([past_value, v], 2)
    present = (k, v)
    heads, groups = q.shape[1], k.shape[1]
    if heads != groups:
        k, v = (
            part.expand_dims(2)
            .broadcast_to(part.shape[0], groups, heads // groups, *part.shape[2:])
            .reshape(part.shape[0], heads, *part.shape[2:])
            for part in (k, v)
        )
    scale = call.attr("scale") or 1.0 / math.sqrt(q.shape[3])
    root = math.sqrt(scale)
    scores = apply("matmul", q * root, k * root, transpose_b=True)
    queries, keys = scores.shape[2:]
    mode, shown = call.attr("qk_matmul_output_mode", 0), scores
    bias = None
    if mask is not None:
        if mask.shape[-1] < keys:
            gap = keys - mask.shape[-1]
            mask = padded(mask, mask.ndim - 1, 0, gap, False if mask.dtype == "bool" else -math.inf)
        bias = F.where(mask, 0.0, -math.inf).astype(scores.dtype) if mask.dtype == "bool" else mask
    if padded_lengths is not None:
        lengths = host(padded_lengths).reshape(-1)
        beyond = np.where(np.arange(keys)[None, :] < lengths[:, None], 0.0, -np.inf)[:, None, None, :]
        extra = constant(scores, beyond, scores.dtype)
        bias = extra if bias is None else bias + extra
    left, right = call.attr("left_window_size", -1), call.attr("right_window_size", -1)
    if call.attr("is_causal", 0):
        right = 0
    if left >= 0 or right >= 0:
        before = past_key.shape[2] if past_key is not None else 0
        if padded_lengths is not None and past_key is None:
            starts = (host(padded_lengths).reshape(-1) - queries)[:, None, None, None]
        else:
            starts = np.array(before).reshape(1, 1, 1, 1)
        ahead = np.arange(keys)[None, None, None, :] - np.arange(queries)[None, None, :, None] - starts
        seen = (ahead <= right if right >= 0 else True) & (-ahead <= left if left >= 0 else True)
        extra = constant(scores, np.where(seen, 0.0, -np.inf), scores.dtype)
        bias = extra if bias is None else bias + extra
    cap = call.attr("softcap", 0.0)
    scores = (scores / cap).tanh() * cap if cap else scores
    shown = scores if mode == 1 else shown
    scores = scores if bias is None else scores + bias
    shown = scores if mode == 2 else shown
    weights = apply("softmax", scores, axis=3)
    empty = weights != weights  # a row that may see nothing
    weights = F.where(empty, 0.0, weights)
    result = apply("matmul", weights, v)
    if flat:
        result = result.transpose(0, 2, 1, 3).reshape(result.shape[0], queries, -1)
    return result, *present, weights if mode == 3 else shown
