"""Arrays on another grid: larger and smaller images, their windows, and sampling at points.

Names, arguments and results are torch.nn.functional's. Places are counted here, once, and looked up by one `take` per
axis and neighbour, so that every dtype, every size and a traced graph go the same way.
"""

import math
import struct
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from cyxcore.casting import in_float32
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.adaptive import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from cyxcore.functional.basic import Pair, looked_up, maximum, minimum, pad, pair, stack, take_along_axis, where
from cyxcore.values import apply, composed

CUBIC = -0.75  # the free parameter of cubic convolution (Keys 1981), as PyTorch has it
CUBIC_SMOOTH = -0.5  # the same with antialias, as PIL and PyTorch have it
RANKS = {
    "nearest": (3, 4, 5),
    "nearest-exact": (3, 4, 5),
    "area": (3, 4, 5),
    "linear": (3,),
    "bilinear": (4,),
    "bicubic": (4,),
    "trilinear": (5,),
}


def interpolate(
    x: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """x (N, C, L), (N, C, H, W) or (N, C, D, H, W) on a grid of another size, along each axis after C.

    size: of the result, or scale_factor: its ratio to x (the result is rounded down). mode: nearest, nearest-exact,
    area (means of what a place covers), linear (3-d), bilinear, bicubic (4-d) or trilinear (5-d). align_corners: the
    centres of the corners stay where they are, instead of the outer edges. recompute_scale_factor: by the ratio of the
    sizes instead of scale_factor. antialias: of bilinear and bicubic; what becomes smaller is a weighted mean of all
    that it covers. Raises SpecError for options that do not go together, ShapeError for another rank.
    """
    if mode not in RANKS:
        raise SpecError(f"interpolate: expected mode {', '.join(RANKS)}, got {mode!r}")
    if x.ndim not in RANKS[mode]:
        raise ShapeError(f"interpolate: {mode} expects x of {' or '.join(map(str, RANKS[mode]))} axes, got {x.shape}")
    if align_corners is not None and (mode.startswith("nearest") or mode == "area"):
        raise SpecError(f"interpolate: align_corners does not go with {mode}")
    if antialias and mode not in ("bilinear", "bicubic"):
        raise SpecError(f"interpolate: antialias goes with bilinear and bicubic, not with {mode}")
    if (size is None) == (scale_factor is None):
        raise SpecError("interpolate: expected one of size and scale_factor")
    if recompute_scale_factor and size is not None:
        raise SpecError("interpolate: recompute_scale_factor goes with scale_factor, not with size")
    rank = x.ndim - 2
    places = _wanted(x, rank, size, scale_factor)
    if mode == "area":
        pool: Any = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)[rank - 1]
        return pool(x, tuple(new for _, new, _ in places) if rank > 1 else places[0][1])
    if mode.startswith("nearest"):
        return _resized(x, mode, tuple(places), align_corners, recompute_scale_factor, antialias)
    return composed(_resized, (x,), (mode, tuple(places), align_corners, recompute_scale_factor, antialias))


def _resized(
    x: Any,
    mode: str,
    places: Sequence[tuple[int, int, float]],
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
) -> Any:
    for axis, wanted, step in places:
        count = x.shape[axis]
        if recompute_scale_factor:
            step = count / wanted
        if align_corners:
            step = (count - 1) / (wanted - 1) if wanted > 1 else 0.0
        x = (
            _smoothed(x, axis, wanted, step, mode)
            if antialias
            else _along(x, axis, wanted, step, mode, bool(align_corners))
        )
    return x


def _smoothed(x: Any, axis: int, wanted: int, step: float, mode: str) -> Any:
    """One axis with the kernel as wide as what a place of the result covers (as in PIL and torch)."""
    count, wide = x.shape[axis], max(step, 1.0)
    reach = (1.0 if mode == "bilinear" else 2.0) * wide
    rows = []
    for number in range(wanted):
        centre = step * (number + 0.5)
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), count)
        weights = [_weight((place + 0.5 - centre) / wide, mode) for place in range(first, last)]
        total = sum(weights)
        rows.append([0.0] * first + [each / total for each in weights] + [0.0] * (count - last))
    order = [place for place in range(x.ndim) if place != axis] + [axis]
    means = x.permute(*order) @ x._constant(rows, x.dtype).transpose(1, 0)
    return means.permute(*(order.index(place) for place in range(x.ndim)))


def _weight(away: float, mode: str) -> float:
    t = abs(away)
    if mode == "bilinear":
        return max(1.0 - t, 0.0)
    a = CUBIC_SMOOTH
    if t < 1.0:
        return ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
    return ((a * t - 5.0 * a) * t + 8.0 * a) * t - 4.0 * a if t < 2.0 else 0.0


def _wanted(x: Any, rank: int, size: Any, scale_factor: Any) -> list[tuple[int, int, float]]:
    """(axis, its new size, how far apart in x two neighbours of the result are)."""
    given = size if size is not None else scale_factor
    each = [given] * rank if isinstance(given, (int, float)) else list(given)
    if len(each) != rank or not all(number > 0 and math.isfinite(number) for number in each):
        raise SpecError(f"interpolate: expected one or {rank} positive numbers for x {x.shape}, got {given}")
    if size is not None and not all(isinstance(number, Integral) and number is not True for number in each):
        raise SpecError(f"interpolate: expected a size of whole numbers, got {given}; a ratio is a scale_factor")
    if 0 in x.shape[2:]:
        raise ShapeError(f"interpolate: expected x with elements along the axes after C, got {x.shape}")
    counts = x.shape[2:]
    if size is not None:
        return [(2 + n, int(new), old / int(new)) for n, (new, old) in enumerate(zip(each, counts, strict=True))]
    sizes = [math.floor(old * ratio) for old, ratio in zip(counts, each, strict=True)]
    if min(sizes) < 1:
        raise ShapeError(f"interpolate: {scale_factor} times x {x.shape} leaves nothing")
    return [(2 + n, new, 1.0 / ratio) for n, (new, ratio) in enumerate(zip(sizes, each, strict=True))]


def _along(x: Any, axis: int, wanted: int, step: float, mode: str, aligned: bool) -> Any:
    count = x.shape[axis]
    if mode == "nearest":
        # In float32, as torch counts: a ratio like 1/3 is on one side of a whole number or on the other.
        places = [math.floor(_float32(number * _float32(step))) for number in range(wanted)]
        return looked_up(x, [min(place, count - 1) for place in places], axis)
    if mode == "nearest-exact":
        return looked_up(x, [min(math.floor((number + 0.5) * step), count - 1) for number in range(wanted)], axis)
    at = [number * step if aligned else (number + 0.5) * step - 0.5 for number in range(wanted)]
    if mode != "bicubic":
        at = [max(place, 0.0) for place in at]
    low = [math.floor(place) for place in at]
    far = [place - first for place, first in zip(at, low, strict=True)]
    if mode == "bicubic":
        weights = {-1: [_far(t + 1.0) for t in far], 0: [_near(t) for t in far]}
        weights |= {1: [_near(1.0 - t) for t in far], 2: [_far(2.0 - t) for t in far]}
    else:
        weights = {0: [1.0 - t for t in far], 1: far}
    column = (1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1)
    total = None
    for offset, weight in weights.items():
        places = [min(max(first + offset, 0), count - 1) for first in low]
        part = looked_up(x, places, axis) * x._constant(weight, x.dtype).reshape(*column)
        total = part if total is None else total + part
    return total


def _float32(number: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


def _near(t: float) -> float:
    """The weight of a neighbour at a distance of up to 1 (Keys 1981, equation 15)."""
    return ((CUBIC + 2.0) * t - (CUBIC + 3.0)) * t * t + 1.0


def _far(t: float) -> float:
    """The same from 1 to 2."""
    return ((CUBIC * t - 5.0 * CUBIC) * t + 8.0 * CUBIC) * t - 4.0 * CUBIC


def _windows(name: str, size: Sequence[int], kernel: Pair, dilation: Pair, padding: Pair, stride: Pair) -> list[int]:
    """How many windows there are along each of the two axes."""
    counts = [
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, d, p, s in zip(size, pair(kernel), pair(dilation), pair(padding), pair(stride), strict=True)
    ]
    if min(*pair(kernel), *pair(dilation), *pair(stride)) < 1 or min(pair(padding)) < 0 or min(counts) < 1:
        raise ShapeError(f"{name}: no window of {pair(kernel)} fits into {tuple(size)} with these options")
    return counts


def unfold(x: Any, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1) -> Any:
    """Every window of x (N, C, H, W) as a column: (N, C KH KW, windows), zeros around x. x may be without N."""
    if x.ndim == 3:
        return unfold(x.expand_dims(0), kernel_size, dilation, padding, stride).squeeze(0)
    if x.ndim != 4:
        raise ShapeError(f"unfold: expected x (N, C, H, W), got {x.shape}")
    high, wide = _windows("unfold", x.shape[2:], kernel_size, dilation, padding, stride)
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (pair(each) for each in (kernel_size, dilation, padding, stride))
    padded = pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    parts = [
        padded[:, :, i * dh : i * dh + sh * (high - 1) + 1 : sh, j * dw : j * dw + sw * (wide - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return stack(parts, 2).reshape(x.shape[0], x.shape[1] * kh * kw, high * wide)


def fold(x: Any, output_size: Pair, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1) -> Any:
    """Columns (N, C KH KW, windows) added where unfold took them from: (N, C, *output_size). x may be without N."""
    if x.ndim == 2:
        return fold(x.expand_dims(0), output_size, kernel_size, dilation, padding, stride).squeeze(0)
    (kh, kw), (dh, dw), (ph, pw), (sh, sw) = (pair(each) for each in (kernel_size, dilation, padding, stride))
    size = pair(output_size)
    high, wide = _windows("fold", size, kernel_size, dilation, padding, stride)
    if x.ndim != 3 or x.shape[1] % (kh * kw) or x.shape[2] != high * wide:
        raise ShapeError(f"fold: expected x (N, C * {kh * kw}, {high * wide}), got {x.shape}")
    count, channels = x.shape[0], x.shape[1] // (kh * kw)
    parts = x.reshape(count, channels, kh * kw, high, 1, wide, 1)
    tall, broad = size[0] + 2 * ph, size[1] + 2 * pw
    total = None
    for place in range(kh * kw):
        top, left = place // kw * dh, place % kw * dw
        spread = pad(parts[:, :, place], ((0, 0), (0, 0), (0, 0), (0, sh - 1), (0, 0), (0, sw - 1)))
        spread = spread.reshape(count, channels, high * sh, wide * sw)[:, :, : tall - top, : broad - left]
        rest = (tall - top - spread.shape[2], broad - left - spread.shape[3])
        moved = pad(spread, ((0, 0), (0, 0), (top, rest[0]), (left, rest[1])))
        total = moved if total is None else total + moved
    assert total is not None
    return total[:, :, ph : ph + size[0], pw : pw + size[1]]


def affine_grid(theta: Any, size: Sequence[int], align_corners: bool = False) -> Any:
    """Points (N, H, W, 2) for grid_sample. theta: (N, 2, 3), from places of the result to places of the image."""
    if theta.ndim != 3 or theta.shape[1:] != (2, 3) or len(size) != 4 or size[0] != theta.shape[0] or min(size) < 1:
        raise ShapeError(f"affine_grid: expected theta (N, 2, 3) and a size (N, C, H, W), got {theta.shape}, {size}")
    high, wide = size[2:]
    ys, xs = (_ends(count, align_corners) for count in (high, wide))
    points = [[across, down, 1.0] for down in ys for across in xs]
    placed = theta._constant(points, theta.dtype) @ theta.transpose(0, 2, 1)
    return placed.reshape(theta.shape[0], high, wide, 2)


def _ends(count: int, aligned: bool) -> list[float]:
    """Places of `count` elements from -1 to 1: of the outer centres, or of the outer edges."""
    if aligned:
        return [2.0 * number / (count - 1) - 1.0 for number in range(count)] if count > 1 else [0.0]
    return [(2.0 * number + 1.0) / count - 1.0 for number in range(count)]


@in_float32
def grid_sample(
    x: Any, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool = False
) -> Any:
    """x (N, C, H, W) at points. grid: (N, H', W', 2), each (x, y) from -1 to 1. Returns (N, C, H', W').

    mode: bilinear or nearest. padding_mode: what lies outside is zeros, the border, or a reflection.
    """
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[3] != 2 or grid.shape[0] != x.shape[0]:
        raise ShapeError(
            f"grid_sample: expected x (N, C, H, W) and grid (N, H', W', 2), got {x.shape} and {grid.shape}"
        )
    if 0 in x.shape[2:]:
        raise ShapeError(f"grid_sample: expected x with elements along H and W, got {x.shape}")
    if mode not in ("bilinear", "nearest") or padding_mode not in ("zeros", "border", "reflection"):
        raise SpecError(
            "grid_sample: expected mode bilinear or nearest and padding_mode zeros, border or reflection, "
            f"got {mode!r} and {padding_mode!r}"
        )
    return composed(_sampled, (x, grid), (mode, padding_mode, align_corners))


def _sampled(x: Any, grid: Any, mode: str, padding_mode: str, align_corners: bool) -> Any:
    at_x = _placed(grid[..., 0], x.shape[3], padding_mode, align_corners)
    at_y = _placed(grid[..., 1], x.shape[2], padding_mode, align_corners)
    if mode == "nearest":
        return _picked(x, apply("round", at_y), apply("round", at_x))
    left, top = at_x.floor(), at_y.floor()
    right, low = at_x - left, at_y - top
    total = None
    for rows, down in ((top, 1.0 - low), (top + 1.0, low)):
        for columns, across in ((left, 1.0 - right), (left + 1.0, right)):
            part = _picked(x, rows, columns) * (down * across).expand_dims(1)
            total = part if total is None else total + part
    return total


def _placed(at: Any, count: int, padding_mode: str, aligned: bool) -> Any:
    """From -1 … 1 to places of elements."""
    place = (at + 1.0) * (0.5 * (count - 1)) if aligned else (at + 1.0) * (0.5 * count) - 0.5
    if padding_mode == "zeros":
        return place
    if padding_mode == "reflection":
        low, span = (0.0, float(count - 1)) if aligned else (-0.5, float(count))
        if span == 0.0:
            return place * 0.0
        away = (place - low).abs()
        turns = (away * (1.0 / span)).floor()
        rest = away - turns * span
        odd = turns - (turns * 0.5).floor() * 2.0
        place = where(odd > 0.5, span - rest, rest) + low
    return minimum(maximum(place, 0.0), float(count - 1))


def _picked(x: Any, rows: Any, columns: Any) -> Any:
    """The elements (N, C, H', W') of x at whole places; 0 outside. rows, columns: (N, H', W')."""
    count, channels, high, wide = x.shape
    inside = (rows >= 0.0) & (rows <= high - 1.0) & (columns >= 0.0) & (columns <= wide - 1.0)
    places = where(inside, rows * float(wide) + columns, 0.0).astype("int64").reshape(count, 1, -1)
    found = take_along_axis(x.reshape(count, channels, high * wide), places, 2).reshape(
        count, channels, *rows.shape[1:]
    )
    return where(inside.expand_dims(1), found, 0.0)
