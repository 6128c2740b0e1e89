"""Convolution over one and three axes and transposed convolution, out of the 2-d ops, and rearranged channels.

x may be a batch (N, C, ...) or one sample (C, ...).

Names, arguments and weight layouts are torch.nn.functional's.
"""

from typing import Any

from cyxcore.casting import lowered
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import Pair, conv2d, numbers, pad, padded_like, pair, stack
from cyxcore.values import apply

Triple = int | tuple[int, int, int]


def triple(value: Any) -> tuple[int, int, int]:
    """A number as three, or three as they are. Raises SpecError for another count."""
    first, second, third = numbers(value, 3)
    return first, second, third


def _rank(name: str, x: Any, rank: int, axes: str) -> None:
    if x.ndim != rank:
        raise ShapeError(f"{name}: expected x {axes}, got {x.shape}")


@lowered
def conv1d(
    x: Any, weight: Any, bias: Any = None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Any:
    """Cross-correlation. x: (N, C, L), weight: (O, C/groups, K), bias: (O,). Returns (N, O, L')."""
    if x.ndim == 2:
        return conv1d(x.expand_dims(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
    _rank("conv1d", x, 3, "(N, C, L)")
    x, (border,) = padded_like("conv1d", x, padding, weight.shape[2:], stride, dilation)
    ((step,), (spread,)) = numbers(stride, 1), numbers(dilation, 1)
    flat, kernel = x.expand_dims(2), weight.expand_dims(2)
    result = conv2d(flat, kernel, bias, (1, step), (0, border), (1, spread), groups)
    return result.squeeze(2)


@lowered
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
    if x.ndim == 4:
        return conv3d(x.expand_dims(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
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


@lowered
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
    if x.ndim == 3:
        return conv_transpose2d(
            x.expand_dims(0), weight, bias, stride, padding, output_padding, groups, dilation
        ).squeeze(0)
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
    if any(e >= s for e, s in zip(extra, steps, strict=True)):  # a convolution of that image would see more than x
        whole = conv_transpose2d(x, weight, None, steps, 0, 0, groups, spread)
        whole = pad(whole, [(0, 0), (0, 0), (0, extra[0]), (0, extra[1])])
        result = whole[:, :, pads[0] : pads[0] + sizes[0], pads[1] : pads[1] + sizes[1]]
    else:
        shape = (x.shape[0], weight.shape[1] * groups, *sizes)
        conv = {"stride": steps, "padding": pads, "dilation": spread, "groups": groups}
        result = apply("conv2d_grad_input", x, weight, **conv, input_shape=shape)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


@lowered
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
    if x.ndim == 2:
        return conv_transpose1d(
            x.expand_dims(0), weight, bias, stride, padding, output_padding, groups, dilation
        ).squeeze(0)
    _rank("conv_transpose1d", x, 3, "(N, C, L)")
    (step,), (border,), (extra,), (spread,) = (numbers(n, 1) for n in (stride, padding, output_padding, dilation))
    options = ((1, step), (0, border), (0, extra), groups, (1, spread))
    return conv_transpose2d(x.expand_dims(2), weight.expand_dims(2), bias, *options).squeeze(2)


@lowered
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

    One transposed 2-d convolution of images that are all slices of a sample above each other, so far apart that they
    do not meet, with each slice of the kernel's depth as channels of its own; these are added where they reach. So the
    batch stays an axis of its own, which a graph needs.
    """
    if x.ndim == 4:
        return conv_transpose3d(
            x.expand_dims(0), weight, bias, stride, padding, output_padding, groups, dilation
        ).squeeze(0)
    _rank("conv_transpose3d", x, 5, "(N, C, D, H, W)")
    steps, pads, extra, spread = triple(stride), triple(padding), triple(output_padding), triple(dilation)
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, spread, strict=True)):
        raise SpecError(f"conv_transpose3d: output_padding {extra} must be below stride {steps} or dilation {spread}")
    count, channels, depth, height, width = x.shape
    slices, taps = weight.shape[2:4]
    whole, rows = (
        (x.shape[2 + i] - 1) * steps[i] + spread[i] * (weight.shape[2 + i] - 1) + 1 + extra[i] for i in range(2)
    )
    if whole <= 2 * pads[0] or rows <= 2 * pads[1]:
        raise ShapeError(f"conv_transpose3d: x {x.shape} and weight {weight.shape} leave no depth or height")
    apart = -(-rows // steps[1])  # rows from one slice to the next
    images = pad(x, [(0, 0), (0, 0), (0, 0), (0, apart - height), (0, 0)])
    images = images.reshape(count, channels, depth * apart, width)
    kernel = weight.reshape(channels, -1, taps, weight.shape[4])
    lacking = max(0, steps[1] - spread[1] * (taps - 1) - 1)  # rows behind the last, of as many as a slice has
    made = conv_transpose2d(images, kernel, None, steps[1:], (0, pads[2]), (lacking, extra[2]), groups, spread[1:])
    made = made[:, :, : depth * apart * steps[1]].reshape(count, -1, slices, depth, apart * steps[1], made.shape[3])
    made = made[:, :, :, :, pads[1] : rows - pads[1]]
    length = -(-whole // steps[0])
    lanes = []  # of the depths that are 0, 1, … modulo the stride
    for lane in range(steps[0]):
        reaching = [k for k in range(slices) if k * spread[0] % steps[0] == lane]
        parts = [(k * spread[0] // steps[0], made[:, :, k]) for k in reaching] or [(0, made[:, :, 0, :0])]
        moved = [
            pad(part, [(0, 0), (0, 0), (first, length - first - part.shape[2]), (0, 0), (0, 0)])
            for first, part in parts
        ]
        lanes.append(sum(moved[1:], moved[0]))
    result = lanes[0] if steps[0] == 1 else stack(lanes, 3).reshape(count, -1, length * steps[0], *made.shape[4:])
    result = result[:, :, pads[0] : whole - pads[0]]
    return result if bias is None else result + bias.reshape(1, -1, 1, 1, 1)


def pixel_shuffle(x: Any, upscale_factor: int) -> Any:
    """(N, C r^2, H, W) -> (N, C, H r, W r); there may be any number of axes before C."""
    if x.ndim != 4 and x.ndim >= 3:
        found = pixel_shuffle(x.reshape(-1, *x.shape[-3:]), upscale_factor)
        return found.reshape(*x.shape[:-3], *found.shape[1:])
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


def channel_shuffle(x: Any, groups: int) -> Any:
    """(N, C, ...): the first channel of each group, then the second of each, …."""
    if x.ndim < 2 or groups < 1 or x.shape[1] % groups:
        raise ShapeError(f"channel_shuffle: expected x (N, C, ...) with {groups} groups dividing C, got {x.shape}")
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return parts.permute(0, 2, 1, *range(3, parts.ndim)).reshape(*x.shape)


def pixel_unshuffle(x: Any, downscale_factor: int) -> Any:
    """(N, C, H r, W r) -> (N, C r^2, H, W): pixel_shuffle undone; there may be any number of axes before C."""
    if x.ndim != 4 and x.ndim >= 3:
        found = pixel_unshuffle(x.reshape(-1, *x.shape[-3:]), downscale_factor)
        return found.reshape(*x.shape[:-3], *found.shape[1:])
    _rank("pixel_unshuffle", x, 4, "(N, C, H, W)")
    count, channels, height, width = x.shape
    r = downscale_factor
    if r < 1 or height % r or width % r:
        raise ShapeError(f"pixel_unshuffle: expected a height and width divisible by {r}, got {x.shape}")
    parts = x.reshape(count, channels, height // r, r, width // r, r).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(count, channels * r * r, height // r, width // r)
