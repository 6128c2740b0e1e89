"""Convolution and pooling over one and three axes, transposed convolution and adaptive pooling, out of the 2-d ops.

Names, arguments and weight layouts are torch.nn.functional's.
"""

import math
from collections.abc import Sequence
from typing import Any

from cyxcore.dtype import INTEGERS
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import Pair, avg_pool2d, concat, conv2d, max_pool2d, numbers, pad, padded_like, pair
from cyxcore.values import apply

Triple = int | tuple[int, int, int]


def triple(value: Any) -> tuple[int, int, int]:
    """A number as three, or three as they are. Raises SpecError for another count."""
    first, second, third = numbers(value, 3)
    return first, second, third


def _rank(name: str, x: Any, rank: int, axes: str) -> None:
    if x.ndim != rank:
        raise ShapeError(f"{name}: expected x {axes}, got {x.shape}")


def conv1d(
    x: Any, weight: Any, bias: Any = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Any:
    """Cross-correlation. x: (N, C, L), weight: (O, C/groups, K), bias: (O,). Returns (N, O, L')."""
    _rank("conv1d", x, 3, "(N, C, L)")
    x, (border,) = padded_like("conv1d", x, padding, weight.shape[2:], stride, dilation)
    ((step,), (spread,)) = numbers(stride, 1), numbers(dilation, 1)
    flat, kernel = x.expand_dims(2), weight.expand_dims(2)
    result = conv2d(flat, kernel, bias, (1, step), (0, border), (1, spread), groups)
    return result.squeeze(2)


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Triple = 1,
    padding: Triple = 0,
    dilation: Triple = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation. x: (N, C, D, H, W), weight: (O, C/groups, KD, KH, KW). Returns (N, O, D', H', W').

    One 2-d convolution per slice of the kernel's depth, over all depths of x at once, and their sum.
    """
    _rank("conv3d", x, 5, "(N, C, D, H, W)")
    x, pads = padded_like("conv3d", x, padding, weight.shape[2:], stride, dilation)
    steps, spread = triple(stride), triple(dilation)
    count, channels, _, height, width = x.shape
    outputs, _, depth, *_ = weight.shape
    padded = pad(x, ((0, 0), (0, 0), (pads[0], pads[0]), (0, 0), (0, 0))) if pads[0] else x
    kept = (padded.shape[2] - spread[0] * (depth - 1) - 1) // steps[0] + 1
    if kept < 1:
        raise ShapeError(f"conv3d: a kernel of depth {depth} does not fit into x {x.shape}")
    total = None
    for k in range(depth):
        first = k * spread[0]
        slices = padded[:, :, first : first + steps[0] * (kept - 1) + 1 : steps[0]]
        images = slices.transpose(0, 2, 1, 3, 4).reshape(-1, channels, height, width)
        part = conv2d(images, weight[:, :, k], None, steps[1:], pads[1:], spread[1:], groups)
        total = part if total is None else total + part
    assert total is not None
    result = total.reshape(count, kept, outputs, *total.shape[2:]).transpose(0, 2, 1, 3, 4)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1, 1)


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
) -> Any:
    """The gradient of a convolution with respect to its input: makes images larger.

    x: (N, C, H, W), weight: (C, O/groups, KH, KW), bias: (O,). Returns (N, O, H', W') with
    H' = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1.
    """
    _rank("conv_transpose2d", x, 4, "(N, C, H, W)")
    steps, pads, extra, spread = pair(stride), pair(padding), pair(output_padding), pair(dilation)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, spread, strict=True)):
        raise SpecError(f"conv_transpose2d: output_padding {extra} must be below stride {steps} or dilation {spread}")
    sizes = [
        (size - 1) * s - 2 * p + d * (k - 1) + e + 1
        for size, s, p, d, k, e in zip(x.shape[2:], steps, pads, spread, weight.shape[2:], extra, strict=True)
    ]
    if min(sizes) < 1:
        raise ShapeError(f"conv_transpose2d: x {x.shape} and weight {weight.shape} leave an image of {sizes}")
    shape = (x.shape[0], weight.shape[1] * groups, *sizes)
    conv = {"stride": steps, "padding": pads, "dilation": spread, "groups": groups}
    result = apply("conv2d_grad_input", x, weight, **conv, input_shape=shape)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def conv_transpose1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
) -> Any:
    """x: (N, C, L), weight: (C, O/groups, K). Returns (N, O, L'); see conv_transpose2d."""
    _rank("conv_transpose1d", x, 3, "(N, C, L)")
    options = ((1, stride), (0, padding), (0, output_padding), groups, (1, dilation))
    return conv_transpose2d(x.expand_dims(2), weight.expand_dims(2), bias, *options).squeeze(2)


def conv_transpose3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Triple = 1,
    padding: Triple = 0,
    output_padding: Triple = 0,
    groups: int = 1,
    dilation: Triple = 1,
) -> Any:
    """x: (N, C, D, H, W), weight: (C, O/groups, KD, KH, KW). Returns (N, O, D', H', W'); see conv_transpose2d.

    One transposed 2-d convolution per slice of the kernel's depth, each added where that slice reaches.
    """
    _rank("conv_transpose3d", x, 5, "(N, C, D, H, W)")
    steps, pads, extra, spread = triple(stride), triple(padding), triple(output_padding), triple(dilation)
    if extra[0] >= max(steps[0], spread[0]):
        raise SpecError(f"conv_transpose3d: output_padding {extra} must be below stride {steps} or dilation {spread}")
    count, channels, depth, height, width = x.shape
    whole = (depth - 1) * steps[0] + spread[0] * (weight.shape[2] - 1) + 1 + extra[0]
    if whole <= 2 * pads[0]:
        raise ShapeError(f"conv_transpose3d: x {x.shape} and weight {weight.shape} leave no depth")
    images = x.transpose(0, 2, 1, 3, 4).reshape(count * depth, channels, height, width)
    total = None
    for k in range(weight.shape[2]):
        part = conv_transpose2d(images, weight[:, :, k], None, steps[1:], pads[1:], extra[1:], groups, spread[1:])
        part = part.reshape(count, depth, 1, *part.shape[1:])
        spaced = pad(part, [(0, 0), (0, 0), (0, steps[0] - 1), (0, 0), (0, 0), (0, 0)])
        spaced = spaced.reshape(count, depth * steps[0], *part.shape[3:])[:, : (depth - 1) * steps[0] + 1]
        first = k * spread[0]
        moved = pad(spaced, [(0, 0), (first, whole - first - spaced.shape[1]), (0, 0), (0, 0), (0, 0)])
        total = moved if total is None else total + moved
    assert total is not None
    result = total[:, pads[0] : whole - pads[0]].transpose(0, 2, 1, 3, 4)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1, 1)


def max_pool1d(
    x: Any, kernel_size: int, stride: int | None = None, padding: int = 0, return_indices: bool = False
) -> Any:
    """The largest of each window of x (N, C, L); with return_indices also where it is."""
    _rank("max_pool1d", x, 3, "(N, C, L)")
    ((kernel,), (step,), (border,)) = (
        numbers(each, 1) for each in (kernel_size, kernel_size if stride is None else stride, padding)
    )
    result = max_pool2d(x.expand_dims(2), (1, kernel), (1, step), (0, border)).squeeze(2)
    return (result, max_pool_places(x, kernel, step, border)) if return_indices else result


def max_pool_places(x: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
    """Where the largest of each window of x (N, C, *sizes) is, of equals the first: counted through the sizes."""
    count = x.ndim - 2
    kernel, pads = numbers(kernel_size, count), numbers(padding, count)
    steps = kernel if stride is None else numbers(stride, count)
    windows = pad(x, [(0, 0), (0, 0), *((each, each) for each in pads)], value=-math.inf)
    for axis, (size, step) in enumerate(zip(kernel, steps, strict=True)):
        windows = windows.unfold(2 + axis, size, step)
    results = windows.shape[2 : 2 + count]
    best = windows.reshape(*windows.shape[: 2 + count], -1).argmax(-1)
    per_place = [math.prod(x.shape[3 + axis :]) for axis in range(count)]
    inside = [0]
    for size, jump in zip(kernel, per_place, strict=True):
        inside = [before + at * jump for before in inside for at in range(size)]
    place = apply("take", x._constant(inside, "int64"), best, axis=0)
    for axis, (number, step, border, jump) in enumerate(zip(results, steps, pads, per_place, strict=True)):
        starts = x._constant([(at * step - border) * jump for at in range(number)], "int64")
        place = place + starts.reshape(*(-1 if other == axis else 1 for other in range(count)))
    return place


def max_unpool(
    x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """x (N, C, *sizes) at the places that max_pool named, 0 elsewhere. Returns (N, C, *output_size).

    output_size: the sizes before pooling, where kernel, stride and padding leave it open. Of tensors, not in graphs.
    """
    count = x.ndim - 2
    if indices.shape != x.shape:
        raise ShapeError(f"max_unpool: expected indices of x's shape {x.shape}, got {indices.shape}")
    kernel, pads = numbers(kernel_size, count), numbers(padding, count)
    steps = kernel if stride is None else numbers(stride, count)
    if output_size is None:
        sizes = tuple(
            (size - 1) * step - 2 * border + wide
            for size, step, border, wide in zip(x.shape[2:], steps, pads, kernel, strict=True)
        )
    else:
        sizes = tuple(output_size)[-count:]
    if indices.dtype not in INTEGERS or bool((indices < 0).any().item()):
        raise SpecError(f"max_unpool: expected places from 0 on, as max_pool gives them, got {indices.dtype} {indices}")
    flat = x._constant(0.0, x.dtype).broadcast_to(*x.shape[:2], math.prod(sizes))
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).reshape(*x.shape[:2], *sizes)


def avg_pool1d(x: Any, kernel_size: int, stride: int | None = None, padding: int = 0) -> Any:
    """The mean of each window of x (N, C, L); padding counts as zeros."""
    _rank("avg_pool1d", x, 3, "(N, C, L)")
    step = kernel_size if stride is None else stride
    return avg_pool2d(x.expand_dims(2), (1, kernel_size), (1, step), (0, padding)).squeeze(2)


def global_max_pool2d(x: Any) -> Any:
    """(N, C, H, W) -> (N, C): the largest of each channel."""
    _rank("global_max_pool2d", x, 4, "(N, C, H, W)")
    return x.max((2, 3))


def adaptive_avg_pool1d(x: Any, output_size: int) -> Any:
    """(N, C, L) -> (N, C, output_size); window i is from floor(i L / n) to ceil((i + 1) L / n), as in torch."""
    _rank("adaptive_avg_pool1d", x, 3, "(N, C, L)")
    return _adaptive(x, [output_size])


def adaptive_avg_pool2d(x: Any, output_size: Pair) -> Any:
    """(N, C, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is."""
    _rank("adaptive_avg_pool2d", x, 4, "(N, C, H, W)")
    return _adaptive(x, _sizes(x, output_size))


def adaptive_avg_pool3d(x: Any, output_size: Triple) -> Any:
    """(N, C, D, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is."""
    _rank("adaptive_avg_pool3d", x, 5, "(N, C, D, H, W)")
    return _adaptive(x, _sizes(x, output_size))


def _sizes(x: Any, wanted: Any) -> list[int]:
    """The sizes of the axes after C: one for all, or one each; None: as it is. Raises SpecError."""
    own = x.shape[2:]
    each = [wanted] * len(own) if isinstance(wanted, int) else list(wanted)
    if len(each) != len(own):
        raise SpecError(f"adaptive pooling: expected one or {len(own)} sizes for x {x.shape}, got {wanted}")
    return [old if new is None else int(new) for old, new in zip(own, each, strict=True)]


def _adaptive(x: Any, sizes: Sequence[int]) -> Any:
    for axis, (size, wanted) in enumerate(zip(x.shape[2:], sizes, strict=True), start=2):
        if not 1 <= wanted:
            raise SpecError(f"adaptive pooling: expected sizes of at least 1, got {tuple(sizes)}")
        if wanted == size:
            continue
        windows = [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
        weights = [[1.0 / (stop - start) if start <= k < stop else 0.0 for k in range(size)] for start, stop in windows]
        order = [a for a in range(x.ndim) if a != axis] + [axis]
        back = [order.index(a) for a in range(x.ndim)]
        pooled = x.permute(*order) @ x._constant(weights, x.dtype).transpose(1, 0)
        x = pooled.permute(*back)
    return x


def pixel_shuffle(x: Any, upscale_factor: int) -> Any:
    """(N, C r^2, H, W) -> (N, C, H r, W r)"""
    _rank("pixel_shuffle", x, 4, "(N, C, H, W)")
    count, channels, height, width = x.shape
    r = upscale_factor
    if r < 1 or channels % (r * r):
        raise ShapeError(f"pixel_shuffle: expected channels divisible by {r * r}, got {x.shape}")
    parts = x.reshape(count, channels // (r * r), r, r, height, width).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(count, channels // (r * r), height * r, width * r)


def upsample_nearest2d(x: Any, scale_factor: int) -> Any:
    """(N, C, H, W) -> (N, C, H s, W s): each element s by s times."""
    _rank("upsample_nearest2d", x, 4, "(N, C, H, W)")
    count, channels, height, width = x.shape
    s = scale_factor
    grown = x.reshape(count, channels, height, 1, width, 1).broadcast_to(count, channels, height, s, width, s)
    return grown.reshape(count, channels, height * s, width * s)


def _pool3d(name: str, pool: Any, x: Any, kernel_size: Triple, stride: Triple | None, padding: Triple) -> Any:
    """Over height and width, then over depth: a window's maximum or mean is that of its rows'."""
    _rank(name, x, 5, "(N, C, D, H, W)")
    kernel, pads = triple(kernel_size), triple(padding)
    steps = kernel if stride is None else triple(stride)
    count, channels, depth, height, width = x.shape
    flat = pool(x.reshape(count, channels * depth, height, width), kernel[1:], steps[1:], pads[1:])
    high, wide = flat.shape[2:]
    rows = flat.reshape(count, channels, depth, high * wide)
    result = pool(rows, (kernel[0], 1), (steps[0], 1), (pads[0], 0))
    return result.reshape(count, channels, result.shape[2], high, wide)


def max_pool3d(
    x: Any, kernel_size: Triple, stride: Triple | None = None, padding: Triple = 0, return_indices: bool = False
) -> Any:
    """(N, C, D, H, W) -> (N, C, D', H', W'); with return_indices also where the largest are."""
    result = _pool3d("max_pool3d", max_pool2d, x, kernel_size, stride, padding)
    return (result, max_pool_places(x, kernel_size, stride, padding)) if return_indices else result


def avg_pool3d(x: Any, kernel_size: Triple, stride: Triple | None = None, padding: Triple = 0) -> Any:
    """(N, C, D, H, W) -> (N, C, D', H', W'); padding counts as zeros."""
    return _pool3d("avg_pool3d", avg_pool2d, x, kernel_size, stride, padding)


def adaptive_max_pool1d(x: Any, output_size: int) -> Any:
    """(N, C, L) -> (N, C, output_size): the largest of each window of adaptive_avg_pool1d."""
    _rank("adaptive_max_pool1d", x, 3, "(N, C, L)")
    return _adaptive_max(x, [output_size])


def adaptive_max_pool2d(x: Any, output_size: Pair) -> Any:
    """(N, C, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is."""
    _rank("adaptive_max_pool2d", x, 4, "(N, C, H, W)")
    return _adaptive_max(x, _sizes(x, output_size))


def adaptive_max_pool3d(x: Any, output_size: Triple) -> Any:
    """(N, C, D, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is."""
    _rank("adaptive_max_pool3d", x, 5, "(N, C, D, H, W)")
    return _adaptive_max(x, _sizes(x, output_size))


def _adaptive_max(x: Any, sizes: Sequence[int]) -> Any:
    for axis, wanted in enumerate(sizes, start=2):
        if not 1 <= wanted <= x.shape[axis]:
            raise SpecError(f"adaptive pooling: expected sizes of 1 to {x.shape[axis]}, got {tuple(sizes)}")
        size, before = x.shape[axis], (slice(None),) * axis
        windows = [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]
        x = concat([x[(*before, slice(low, high))].max(axis, keepdims=True) for low, high in windows], axis)
    return x


def channel_shuffle(x: Any, groups: int) -> Any:
    """(N, C, ...): the first channel of each group, then the second of each, …."""
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups:
        raise ShapeError(f"channel_shuffle: expected x (N, C, ...) with {groups} groups dividing C, got {x.shape}")
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return parts.permute(0, 2, 1, *range(3, parts.ndim)).reshape(*x.shape)


def pixel_unshuffle(x: Any, downscale_factor: int) -> Any:
    """(N, C, H r, W r) -> (N, C r^2, H, W): pixel_shuffle undone."""
    _rank("pixel_unshuffle", x, 4, "(N, C, H, W)")
    count, channels, height, width = x.shape
    r = downscale_factor
    if r < 1 or height % r or width % r:
        raise ShapeError(f"pixel_unshuffle: expected a height and width divisible by {r}, got {x.shape}")
    parts = x.reshape(count, channels, height // r, r, width // r, r).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(count, channels * r * r, height // r, width // r)
