"""Pooling over one, two and three axes, out of the two kernels that pool images.

Names, arguments and results are torch.nn.functional's. x may be a batch (N, C, ...) or one sample (C, ...). What the
kernels do not know is arranged before them: windows with gaps (dilation) are looked up side by side, and one that
reaches over the end (ceil_mode) meets the last element again, or a zero, whose share is taken out of its mean.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cyxcore.casting import in_float32
from cyxcore.dtype import INTEGERS
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.basic import Pair, looked_up, numbers, pad, pair, where
from cyxcore.functional.convolutions import Triple
from cyxcore.values import apply

AXES = ("", "L", "H, W", "D, H, W")


class _Windows(NamedTuple):
    """How windows lie on the last axes of x; one number for each axis."""

    kernel: tuple[int, ...]
    steps: tuple[int, ...]
    pads: tuple[int, ...]
    spread: tuple[int, ...]
    counts: tuple[int, ...]
    beyond: tuple[int, ...]  # how far the last window reaches over the end and its padding


def one_sample(name: str, x: Any, rank: int) -> bool:
    """Whether x is (C, ...) without a batch. Raises ShapeError where it is no input of so many axes at all."""
    if x.ndim not in (rank + 1, rank + 2):
        raise ShapeError(f"{name}: expected x (N, C, {AXES[rank]}) or (C, {AXES[rank]}), got {x.shape}")
    return bool(x.ndim == rank + 1)


def _laid(
    name: str, sizes: Sequence[int], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> _Windows:
    rank = len(sizes)
    kernel, pads, spread = (numbers(each, rank) for each in (kernel_size, padding, dilation))
    steps = kernel if stride is None else numbers(stride, rank)
    if min(*kernel, *steps, *spread) < 1 or min(pads) < 0:
        raise SpecError(
            f"{name}: expected kernel_size, stride and dilation of at least 1 and padding of at least 0, "
            f"got {kernel}, {steps}, {spread} and {pads}"
        )
    counts, beyond = [], []
    for size, k, s, p, d in zip(sizes, kernel, steps, pads, spread, strict=True):
        span = d * (k - 1) + 1
        if 2 * p > span:
            raise ShapeError(f"{name}: expected padding of at most half the window of {span}, got {pads}")
        room = size + 2 * p - span
        count = room // s + 1
        if ceil_mode and room % s and count * s < size + p:  # a window that would begin behind the end is none
            count += 1
        if count < 1 or size < 1:
            raise ShapeError(f"{name}: a window of {span} does not fit into {size} with padding {p} (sizes {sizes})")
        counts.append(count)
        beyond.append(max((count - 1) * s - room, 0))
    return _Windows(kernel, steps, pads, spread, tuple(counts), tuple(beyond))


def pooled(op: str, x: Any, kernel: tuple[int, ...], steps: tuple[int, ...], pads: tuple[int, ...]) -> Any:
    """A kernel of the table over the last one, two or three axes of x (N, C, ...)."""
    if len(kernel) == 2:
        return apply(op, x, kernel=kernel, stride=steps, padding=pads)
    if len(kernel) == 1:
        return pooled(op, x.expand_dims(2), (1, *kernel), (1, *steps), (0, *pads)).squeeze(2)
    # Over height and width, then over depth: a window's maximum or mean is that of its rows'.
    count, channels, depth, height, width = x.shape
    flat = pooled(op, x.reshape(count, channels * depth, height, width), kernel[1:], steps[1:], pads[1:])
    high, wide = flat.shape[2:]
    rows = flat.reshape(count, channels, depth, high * wide)
    result = pooled(op, rows, (kernel[0], 1), (steps[0], 1), (pads[0], 0))
    return result.reshape(count, channels, result.shape[2], high, wide)


def _quick(op: str, x: Any, kernel_size: Any, stride: Any, padding: Any) -> Any:
    """A kernel of the table as it is."""
    kernel = pair(kernel_size)
    return apply(op, x, kernel=kernel, stride=kernel if stride is None else pair(stride), padding=pair(padding))


# the largest --------------------------------------------------------------------------------------


def _max_pool(
    name: str,
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    if one_sample(name, x, rank):
        found = _max_pool(
            name, rank, x.expand_dims(0), kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
        return tuple(each.squeeze(0) for each in found) if return_indices else found.squeeze(0)
    windows = _laid(name, x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    if set(windows.spread) == {1}:
        reached = x
        for axis, more in enumerate(windows.beyond, start=2):
            if more:  # the last element again: it is in that window already, and the first of equals counts
                size = x.shape[axis]
                reached = looked_up(reached, [*range(size), *[size - 1] * more], axis)
        result = pooled("max_pool2d", reached, windows.kernel, windows.steps, windows.pads)
    else:
        side_by_side = gathered(x, _places(name, x.shape[2:], windows))
        result = pooled("max_pool2d", side_by_side, windows.kernel, windows.kernel, (0,) * rank)
    return (result, largest_at(x, _places(name, x.shape[2:], windows))) if return_indices else result


def _places(name: str, sizes: Sequence[int], windows: _Windows) -> list[list[list[int]]]:
    """For each axis, for each of its windows: the elements in it. What lies outside is the nearest one inside."""
    found = []
    for size, k, s, p, d, _, count in zip(sizes, *windows[:4], windows.beyond, windows.counts, strict=True):
        rows = []
        for number in range(count):
            at = [number * s - p + d * offset for offset in range(k)]
            inside = [place for place in at if 0 <= place < size]
            if not inside:
                raise ShapeError(f"{name}: a window at {at} holds no element of an axis of {size}; use less padding")
            rows.append([min(max(place, inside[0]), inside[-1]) for place in at])
        found.append(rows)
    return found


def gathered(x: Any, places: list[list[list[int]]]) -> Any:
    """x with the windows side by side: (N, C, counts * kernel, ...)."""
    for axis, rows in enumerate(places, start=2):
        flat = [place for row in rows for place in row]
        if flat != list(range(x.shape[axis])):
            x = looked_up(x, flat, axis)
    return x


def largest_in(parts: Any, counts: Sequence[int], kernel: Sequence[int]) -> Any:
    """Which element of its window is the largest, of equals the first. parts: (N, C, counts * kernel, ...)."""
    rank = len(counts)
    apart = parts.reshape(*parts.shape[:2], *(n for both in zip(counts, kernel, strict=True) for n in both))
    apart = apart.permute(0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2))
    return apart.reshape(*parts.shape[:2], *counts, math.prod(kernel)).argmax(-1)


def largest_at(x: Any, places: list[list[list[int]]]) -> Any:
    """Where in x (N, C, *sizes) the largest of each window is, of equals the first: counted through the sizes."""
    rank, sizes = len(places), x.shape[2:]
    counts, kernel = [len(rows) for rows in places], [len(rows[0]) for rows in places]
    best = largest_in(gathered(x, places), counts, kernel)
    table, starts = x._constant(0, "int64"), x._constant(0, "int64")
    for axis, rows in enumerate(places):
        jump, before = math.prod(sizes[axis + 1 :]), math.prod(counts[axis + 1 :]) * math.prod(kernel)
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = counts[axis], kernel[axis]
        table = table + x._constant([[place * jump for place in row] for row in rows], "int64").reshape(*shape)
        starts = starts + x._constant([n * before for n in range(counts[axis])], "int64").reshape(*shape[:rank])
    return apply("take", table.reshape(-1), best + starts, axis=0)


def largest_of(x: Any, kernel: Pair, stride: Pair, padding: Pair) -> Any:
    """The same of the windows of the op max_pool2d."""
    name, sizes = "max_pool2d", x.shape[2:]
    return largest_at(x, _places(name, sizes, _laid(name, sizes, kernel, stride, padding, 1, False)))


def max_pool1d(
    x: Any,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest of each window of x (N, C, L); options as of max_pool2d."""
    return _max_pool("max_pool1d", 1, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest of each window of x (N, C, H, W). The stride is the kernel size unless given.

    dilation: how far apart the elements of a window are. ceil_mode: a last window may reach over the end.
    return_indices: also where the largest are, int64, counted through H and W: for max_unpool2d.
    Raises ShapeError for padding of more than half the window.
    """
    if x.ndim == 4 and dilation == 1 and not ceil_mode and not return_indices:
        return _quick("max_pool2d", x, kernel_size, stride, padding)
    return _max_pool("max_pool2d", 2, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


@in_float32
def max_pool3d(
    x: Any,
    kernel_size: Triple,
    stride: Triple | None = None,
    padding: Triple = 0,
    dilation: Triple = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest of each window of x (N, C, D, H, W); options as of max_pool2d."""
    return _max_pool("max_pool3d", 3, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool_places(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Any:
    """Where the largest of each window of x (N, C, *sizes) is, of equals the first: counted through the sizes."""
    windows = _laid("max_pool_places", x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    return largest_at(x, _places("max_pool_places", x.shape[2:], windows))


def max_unpool(
    x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> Any:
    """x (N, C, *sizes) at the places that max_pool named, 0 elsewhere. Returns (N, C, *output_size).

    output_size: the sizes before pooling, where kernel, stride and padding leave it open. Not in graphs that travel.
    """
    return _max_unpool(x, indices, x.ndim - 2, kernel_size, stride, padding, output_size)


def _max_unpool(x: Any, indices: Any, rank: int, kernel_size: Any, stride: Any, padding: Any, output_size: Any) -> Any:
    if one_sample("max_unpool", x, rank):
        every = (x.expand_dims(0), indices.expand_dims(0))
        return _max_unpool(*every, rank, kernel_size, stride, padding, output_size).squeeze(0)
    if indices.shape != x.shape:
        raise ShapeError(f"max_unpool: expected indices of x's shape {x.shape}, got {indices.shape}")
    kernel, pads = numbers(kernel_size, rank), numbers(padding, rank)
    steps = kernel if stride is None else numbers(stride, rank)
    if output_size is None:
        sizes = tuple(
            (size - 1) * step - 2 * border + wide
            for size, step, border, wide in zip(x.shape[2:], steps, pads, kernel, strict=True)
        )
    else:
        sizes = tuple(output_size)[-rank:]
    if indices.dtype not in INTEGERS or not indices.is_symbolic and bool((indices < 0).any().item()):
        raise SpecError(f"max_unpool: expected places from 0 on, as max_pool gives them, got {indices.dtype} {indices}")
    flat = x._constant(0.0, x.dtype).broadcast_to(*x.shape[:2], math.prod(sizes))
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).reshape(*x.shape[:2], *sizes)


def max_unpool1d(
    x: Any, indices: Any, kernel_size: int, stride: int | None = None, padding: int = 0, output_size: Any = None
) -> Any:
    """max_unpool of (N, C, L) or (C, L)."""
    return _max_unpool(x, indices, 1, kernel_size, stride, padding, output_size)


def max_unpool2d(
    x: Any, indices: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, output_size: Any = None
) -> Any:
    """max_unpool of (N, C, H, W) or (C, H, W)."""
    return _max_unpool(x, indices, 2, kernel_size, stride, padding, output_size)


def max_unpool3d(
    x: Any,
    indices: Any,
    kernel_size: Triple,
    stride: Triple | None = None,
    padding: Triple = 0,
    output_size: Any = None,
) -> Any:
    """max_unpool of (N, C, D, H, W) or (C, D, H, W)."""
    return _max_unpool(x, indices, 3, kernel_size, stride, padding, output_size)


def global_max_pool2d(x: Any) -> Any:
    """(N, C, H, W) -> (N, C): the largest of each channel."""
    if x.ndim != 4:
        raise ShapeError(f"global_max_pool2d: expected x (N, C, H, W), got {x.shape}")
    return x.max((2, 3))


# means --------------------------------------------------------------------------------------------


def _avg_pool(
    name: str,
    rank: int,
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    if one_sample(name, x, rank):
        options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return _avg_pool(name, rank, x.expand_dims(0), *options).squeeze(0)
    if divisor_override is not None and (not isinstance(divisor_override, int) or divisor_override == 0):
        raise SpecError(f"{name}: expected divisor_override a whole number other than 0, got {divisor_override!r}")
    windows = _laid(name, x.shape[2:], kernel_size, stride, padding, 1, ceil_mode)
    reached = pad(x, [(0, 0), (0, 0), *((0, more) for more in windows.beyond)]) if any(windows.beyond) else x
    result = pooled("avg_pool2d", reached, windows.kernel, windows.steps, windows.pads)
    if divisor_override is not None:
        return result * (math.prod(windows.kernel) / divisor_override)
    for axis, (size, k, s, p, count) in enumerate(
        zip(x.shape[2:], windows.kernel, windows.steps, windows.pads, windows.counts, strict=True), start=2
    ):
        first, last = (-p, size + p) if count_include_pad else (0, size)
        held = [min(n * s - p + k, last) - max(n * s - p, first) for n in range(count)]
        if set(held) != {k}:  # the kernel has divided by k everywhere
            shape = [-1 if each == axis else 1 for each in range(x.ndim)]
            result = result * x._constant([k / each for each in held], x.dtype).reshape(*shape)
    return result


def avg_pool1d(
    x: Any,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window of x (N, C, L); options as of avg_pool2d."""
    return _avg_pool("avg_pool1d", 1, x, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    x: Any,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window of x (N, C, H, W). The stride is the kernel size unless given.

    ceil_mode: a last window may reach over the end; what lies there does not count. count_include_pad: padding counts
    as zeros. divisor_override: what sums are divided by instead. Raises ShapeError for padding of more than half the
    window.
    """
    if x.ndim == 4 and not ceil_mode and count_include_pad and divisor_override is None:
        return _quick("avg_pool2d", x, kernel_size, stride, padding)
    return _avg_pool("avg_pool2d", 2, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@in_float32
def avg_pool3d(
    x: Any,
    kernel_size: Triple,
    stride: Triple | None = None,
    padding: Triple = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    """The mean of each window of x (N, C, D, H, W); options as of avg_pool2d."""
    return _avg_pool("avg_pool3d", 3, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def global_avg_pool2d(x: Any) -> Any:
    """(N, C, H, W) -> (N, C): the mean of each channel."""
    return x.mean((2, 3))


def _lp_pool(name: str, rank: int, x: Any, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool) -> Any:
    options = (kernel_size, stride, 0)
    if norm_type == math.inf:
        return _max_pool(name, rank, x.abs(), *options, 1, ceil_mode, False)
    if norm_type == -math.inf:
        return -_max_pool(name, rank, -x.abs(), *options, 1, ceil_mode, False)
    if norm_type == 0.0:
        raise SpecError(f"{name}: expected norm_type other than 0")
    powers = x if norm_type == 1.0 else x.square() if norm_type == 2.0 else x ** float(norm_type)
    means = _avg_pool(name, rank, powers, *options, ceil_mode, True, None)
    total = means * float(math.prod(numbers(kernel_size, rank)))
    if norm_type == 1.0:
        return total
    nothing = total == 0.0
    root = where(nothing, total + 1.0, total) ** (1.0 / norm_type)
    return where(nothing, total.detach(), root)


def lp_pool1d(x: Any, norm_type: float, kernel_size: int, stride: int | None = None, ceil_mode: bool = False) -> Any:
    """(sum of x^norm_type)^(1/norm_type) of each window of x (N, C, L). See lp_pool2d."""
    return _lp_pool("lp_pool1d", 1, x, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(x: Any, norm_type: float, kernel_size: Pair, stride: Pair | None = None, ceil_mode: bool = False) -> Any:
    """(sum of x^norm_type)^(1/norm_type) of each window of x (N, C, H, W); of |x| the largest for infinity.

    The gradient where the sum is 0 is 0. A window that ceil_mode lets reach over the end counts as if it were full of
    what it holds, as in PyTorch. Raises SpecError for a norm_type of 0.
    """
    return _lp_pool("lp_pool2d", 2, x, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    x: Any, norm_type: float, kernel_size: Triple, stride: Triple | None = None, ceil_mode: bool = False
) -> Any:
    """(sum of x^norm_type)^(1/norm_type) of each window of x (N, C, D, H, W). See lp_pool2d."""
    return _lp_pool("lp_pool3d", 3, x, norm_type, kernel_size, stride, ceil_mode)
