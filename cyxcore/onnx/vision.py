"""ONNX operators of images: resizing, sampling at coordinates, regions, boxes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore import elementwise as E
from cyxcore import functional as F
from cyxcore.errors import GraphError, ShapeError
from cyxcore.onnx.table import Call, constant, host, integer, ints, number, operator, symbolic, text
from cyxcore.values import apply

Array = np.ndarray[Any, Any]

# resizing -----------------------------------------------------------------------------------------


def _source(mode: str, out: Array, scale: float, size: int, wanted: int, region: tuple[float, float]) -> Array:
    """Where each place of the output lies in the input."""
    whole = scale * size  # the output's size before it is made a whole number
    if mode == "half_pixel":
        return (out + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - wanted / whole) + (out + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (out + 0.5) / scale - 0.5 if wanted > 1 else np.full_like(out, -0.5)
    if mode == "tf_half_pixel_for_nn":  # of opsets 11 and 12
        return (out + 0.5) / scale
    if mode == "align_corners":
        return out * (size - 1) / (whole - 1) if whole > 1 else np.zeros_like(out)
    if mode == "asymmetric":
        return out / scale
    if mode == "tf_crop_and_resize":
        start, end = region
        if wanted > 1:
            return start * (size - 1) + out * (end - start) * (size - 1) / (wanted - 1)
        return np.full_like(out, 0.5 * (start + end) * (size - 1))
    raise GraphError(f"coordinate_transformation_mode {mode!r} is not supported")


MAX_SHARES = 2**22  # of places of the input in places of the output, along one axis

_NEAREST: dict[str, Any] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _linear(distance: Array) -> Array:
    return np.maximum(0.0, 1.0 - np.abs(distance))


def _cubic(a: float) -> Any:
    """Keys' cubic convolution."""

    def weight(distance: Array) -> Array:
        d = np.abs(distance)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return weight


def _rows(call: Call, places: Array, size: int, scale: float) -> Array:
    """(wanted, size): how much of each input place is in each output place."""
    mode = text(call.attr("mode", "nearest"))
    if mode == "nearest":
        chosen = _NEAREST[text(call.attr("nearest_mode", "round_prefer_floor"))](places)
        chosen = np.clip(chosen, 0, size - 1).astype(np.int64)
        return (chosen[:, None] == np.arange(size)[None, :]).astype(np.float64)
    if mode not in ("linear", "cubic"):
        raise GraphError(f"mode {mode!r} is not supported")
    weight: Any
    weight, reach = (_linear, 1.0) if mode == "linear" else (_cubic(call.attr("cubic_coeff_a", -0.75)), 2.0)
    shrink = min(scale, 1.0) if call.attr("antialias", 0) else 1.0
    first = np.floor(places - reach / shrink).astype(np.int64)
    taps = first[:, None] + np.arange(int(math.ceil(2 * reach / shrink)) + 2)[None, :]
    values = weight((taps - places[:, None]) * shrink)
    if call.attr("exclude_outside", 0) or shrink < 1.0:
        values = np.where((taps >= 0) & (taps < size), values, 0.0) if call.attr("exclude_outside", 0) else values
        values = values / values.sum(1, keepdims=True)
    matrix = np.zeros((len(places), size))
    np.add.at(matrix, (np.arange(len(places))[:, None], np.clip(taps, 0, size - 1)), values)
    return matrix


@operator("Resize", since=11, known=(1, 2, 3))
def _resize(call: Call, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    axes = [x._axis(axis) for axis in call.attr("axes", range(x.ndim))]
    factors, wanted = _scales(call, x, axes, scales, sizes)
    mode = text(call.attr("coordinate_transformation_mode", "half_pixel"))
    regions = [0.0] * len(axes) + [1.0] * len(axes)
    if roi is not None and roi.size:
        regions = host(roi).astype(np.float64).tolist()
    outside = []
    for place, axis in enumerate(axes):
        size, out = x.shape[axis], wanted[place]
        region = regions[place], regions[place + len(axes)]
        if out == size and factors[place] == 1.0 and mode != "tf_crop_and_resize":
            continue
        if out * size > MAX_SHARES:
            raise ShapeError(f"resizing {size} to {out} is beyond {MAX_SHARES} shares of places")
        places = _source(mode, np.arange(out, dtype=np.float64), factors[place], size, out, region)
        x = _contracted(x, axis, _rows(call, places, size, factors[place]))
        if mode == "tf_crop_and_resize":
            beyond = (places < 0) | (places > size - 1)
            outside.append(beyond.reshape([-1 if a == axis else 1 for a in range(x.ndim)]))
    for beyond in outside:
        x = F.where(constant(x, beyond), float(call.attr("extrapolation_value", 0.0)), x)
    return x


def _scales(call: Call, x: Any, axes: Sequence[int], scales: Any, sizes: Any) -> tuple[list[float], list[int]]:
    have = [x.shape[axis] for axis in axes]
    if scales is not None and scales.size:
        factors = [float(value) for value in host(scales).reshape(-1)]
        if len(factors) != len(axes) or min(factors) <= 0.0:
            raise ShapeError(f"expected {len(axes)} positive scales, got {factors[:10]}")
        return factors, [int(math.floor(size * factor)) for size, factor in zip(have, factors, strict=True)]
    if sizes is None:
        raise GraphError("expected scales or sizes")
    wanted = ints(sizes)
    if len(wanted) != len(axes) or min(wanted, default=1) < 1 or 0 in have:
        raise ShapeError(f"expected {len(axes)} sizes of at least 1, got {wanted[:10]}")
    factors = [out / size for out, size in zip(wanted, have, strict=True)]
    policy = text(call.attr("keep_aspect_ratio_policy", "stretch"))
    if policy != "stretch":
        one = min(factors) if policy == "not_larger" else max(factors)
        factors = [one] * len(axes)
        wanted = [int(math.floor(size * one + 0.5)) for size in have]
    return factors, wanted


def _contracted(x: Any, axis: int, matrix: Array) -> Any:
    """matrix (wanted, size) over one axis; where each row is one place, that place is taken."""
    if bool((((matrix == 1.0).sum(1) == 1) & ((matrix != 0.0).sum(1) == 1)).all()):
        return apply("take", x, x._constant(matrix.argmax(1).tolist(), "int64"), axis=axis)
    order = [place for place in range(x.ndim) if place != axis] + [axis]
    dtype = x.dtype if x.dtype in ("float32", "float64") else "float32"
    moved = x.astype(dtype).permute(*order)
    rows = apply("matmul", moved.reshape(-1, moved.shape[-1]), constant(x, matrix.T, dtype))
    result = rows.reshape(*moved.shape[:-1], matrix.shape[0])
    return result.permute(*(order.index(place) for place in range(x.ndim))).astype(x.dtype)


@operator("Upsample", since=9, known=(1,))
def _upsample(call: Call, x: Any, scales: Any) -> Any:
    old = {**call.attrs, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(call._replace(attrs=old), x, None, scales)


# sampling -----------------------------------------------------------------------------------------


@operator("AffineGrid", since=20, known=(1,))
def _affine_grid(call: Call, theta: Any, size: Any) -> Any:
    """Coordinates from -1 to 1, turned by theta (N, 2, 3) or (N, 3, 4); x comes before y."""
    sizes = ints(size)[2:]
    axes = []
    for length in sizes:
        if call.attr("align_corners", 0):
            axes.append(np.linspace(-1.0, 1.0, length) if length > 1 else np.zeros(1))
        else:
            axes.append((np.arange(length) * 2.0 + 1.0) / length - 1.0)
    grids = np.meshgrid(*axes, indexing="ij")
    points = np.stack([*grids[::-1], np.ones_like(grids[0])], -1).reshape(-1, len(sizes) + 1)
    result = apply(
        "matmul",
        constant(theta, points, theta.dtype).broadcast_to(theta.shape[0], *points.shape),
        theta,
        transpose_b=True,
    )
    return result.reshape(theta.shape[0], *sizes, len(sizes))


def _picked(x: Any, places: Sequence[Any], inside: Any) -> Any:
    """Elements of each channel. x: (N, C, *sizes); places: int64 (N, P) for each axis; 0 where not inside."""
    n, c = x.shape[:2]
    flat: Any = None
    for size, place in zip(x.shape[2:], places, strict=True):
        held = F.minimum(F.maximum(place, 0), size - 1)
        flat = held if flat is None else flat * size + held
    rows = x.reshape(n, c, -1)
    index = flat.expand_dims(1).broadcast_to(n, c, flat.shape[1])
    found = apply("take_along", rows, index, axis=2)
    return found if inside is None else found * inside.expand_dims(1).astype(x.dtype)


def _reflected(place: Any, low: float, high: float) -> Any:
    span = high - low
    if span <= 0:
        return place * 0.0
    away = (place - low).abs()
    turns = (away / span).floor()
    rest = away - turns * span
    odd = turns - (turns * 0.5).floor() * 2.0
    return F.where(odd == 0.0, rest + low, high - rest)


@operator("GridSample", since=16)
def _grid_sample(call: Call, x: Any, grid: Any) -> Any:
    sizes = x.shape[2:]
    rank = len(sizes)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        text(call.attr("mode", "linear")), text(call.attr("mode", "linear"))
    )
    around, corners = text(call.attr("padding_mode", "zeros")), bool(call.attr("align_corners", 0))
    shape = grid.shape[1:-1]
    points = grid.reshape(grid.shape[0], -1, rank)
    centre = []
    for axis, size in enumerate(sizes):  # the last number is that of the first axis
        value = points[..., rank - 1 - axis]
        centre.append((value + 1.0) * ((size - 1) / 2.0) if corners else ((value + 1.0) * size - 1.0) / 2.0)

    def settled(place: Any, size: int) -> Any:
        if around == "reflection":
            place = _reflected(place, 0.0 if corners else -0.5, size - 1.0 if corners else size - 0.5)
        if around in ("border", "reflection"):
            place = F.minimum(F.maximum(place, 0.0), float(size - 1))
        return place

    def values(places: Sequence[Any]) -> Any:
        held = [settled(place, size) for place, size in zip(places, sizes, strict=True)]
        inside = None
        if around == "zeros":
            for place, size in zip(held, sizes, strict=True):
                part = (place >= 0.0) & (place <= float(size - 1))
                inside = part if inside is None else inside & part
        return _picked(x, [place.astype("int64") for place in held], inside)

    if mode != "cubic":
        centre = [settled(place, size) for place, size in zip(centre, sizes, strict=True)]
    if mode == "nearest":
        result = values([_half_even(place) for place in centre])
    else:
        taps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        floors = [place.floor() for place in centre]
        shares = []
        for place, low in zip(centre, floors, strict=True):
            t = place - low
            shares.append([1.0 - t, t] if mode == "linear" else [_cubic_share(t, tap) for tap in taps])
        result = None
        for index in np.ndindex(*[len(taps)] * rank):
            share = None
            for axis, which in enumerate(index):
                part = shares[axis][which]
                share = part if share is None else share * part
            part = values([low + float(taps[which]) for low, which in zip(floors, index, strict=True)])
            part = part * share.expand_dims(1)  # type: ignore[union-attr]
            result = part if result is None else result + part
    assert result is not None
    return result.reshape(x.shape[0], x.shape[1], *shape)


def _half_even(place: Any) -> Any:
    if not symbolic(place):
        return E.round(place)
    low = place.floor()
    near = (place + 0.5).floor()
    return F.where(place - low == 0.5, (low * 0.5 + 0.5).floor() * 2.0, near)


def _cubic_share(t: Any, tap: int, a: float = -0.75) -> Any:
    d = (t - float(tap)).abs()
    if tap in (0, 1):
        return d * d * d * (a + 2) - d * d * (a + 3) + 1.0
    return d * d * d * a - d * d * (5 * a) + d * (8 * a) - 4 * a


@operator("RoiAlign", since=10, known=(1, 2), limits="in a graph (runs on tensors)")
def _roi_align(call: Call, x: Any, rois: Any, batches: Any) -> Any:
    """Means (or maxima) of samples between four places each, in the cells of each region."""
    boxes, rows = host(rois).astype(np.float64), host(batches).reshape(-1).astype(np.int64)
    scale, high, wide = call.attr("spatial_scale", 1.0), call.attr("output_height", 1), call.attr("output_width", 1)
    ratio, pooled = call.attr("sampling_ratio", 0), text(call.attr("mode", "avg"))
    half = (
        0.5
        if call.opset >= 16 and text(call.attr("coordinate_transformation_mode", "half_pixel")) == "half_pixel"
        else 0.0
    )
    height, width = x.shape[2:]
    results = []
    for box, row in zip(boxes, rows, strict=True):
        left, top, right, bottom = box * scale - half
        box_w, box_h = right - left, bottom - top
        if not half:
            box_w, box_h = max(box_w, 1.0), max(box_h, 1.0)
        across, down = box_w / wide, box_h / high
        grid_h = ratio if ratio > 0 else max(1, math.ceil(box_h / high))
        grid_w = ratio if ratio > 0 else max(1, math.ceil(box_w / wide))
        if grid_h * grid_w > 65_536:
            raise ShapeError(f"a region of {box.tolist()} takes {grid_h * grid_w} samples a cell")
        ys = top + (np.arange(high)[:, None] + (np.arange(grid_h)[None, :] + 0.5) / grid_h) * down
        xs = left + (np.arange(wide)[:, None] + (np.arange(grid_w)[None, :] + 0.5) / grid_w) * across
        my, mx = _between(ys.reshape(-1), height), _between(xs.reshape(-1), width)
        image = x[int(row)]
        if pooled == "avg":
            my = my.reshape(high, grid_h, height).mean(1)
            mx = mx.reshape(wide, grid_w, width).mean(1)
            results.append(constant(x, my, x.dtype) @ image @ constant(x, mx.T, x.dtype))
        else:
            results.append(_largest_corner(x, image, ys.reshape(-1), xs.reshape(-1), high, wide))
    return F.stack(results, 0)


def _taps(places: Array, size: int) -> tuple[Array, Array, Array, Array]:
    """(low place, high place, share of the low, share of the high) of each coordinate; no share outside."""
    inside = (places >= -1.0) & (places <= size)
    held = np.clip(places, 0.0, None)
    low = np.minimum(np.floor(held).astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    held = np.where(np.floor(held) >= size - 1, low, held)
    t = held - low
    return low, high, np.where(inside, 1.0 - t, 0.0), np.where(inside, t, 0.0)


def _between(places: Array, size: int) -> Array:
    """Rows that take the value at each coordinate, linear between two places."""
    low, high, share_low, share_high = _taps(places, size)
    matrix = np.zeros((len(places), size))
    rows = np.arange(len(places))
    np.add.at(matrix, (rows, low), share_low)
    np.add.at(matrix, (rows, high), share_high)
    return matrix


def _largest_corner(x: Any, image: Any, ys: Array, xs: Array, high: int, wide: int) -> Any:
    """max mode: the largest of the four weighted corners of each sample, and of the samples of a cell."""
    yt, xt = _taps(ys, x.shape[2]), _taps(xs, x.shape[3])
    best = None
    for y, wy in ((yt[0], yt[2]), (yt[1], yt[3])):
        for c, wc in ((xt[0], xt[2]), (xt[1], xt[3])):
            part = apply("take", apply("take", image, constant(x, y, "int64"), axis=1), constant(x, c, "int64"), axis=2)
            part = part * constant(x, wy[:, None] * wc[None, :], x.dtype)
            best = part if best is None else F.maximum(best, part)
    assert best is not None
    cells = best.reshape(best.shape[0], high, len(ys) // high, wide, len(xs) // wide)
    return cells.max((2, 4))


@operator("MaxRoiPool", known=(1,), limits="in a graph (runs on tensors)")
def _max_roi_pool(call: Call, x: Any, rois: Any) -> Any:
    """The largest in each cell of each region; an empty cell is 0."""
    high, wide = call.needs("pooled_shape")
    scale = call.attr("spatial_scale", 1.0)
    results = []
    for row in host(rois).astype(np.float64):
        left, top, right, bottom = (int(np.floor(value * scale + 0.5)) for value in row[1:])
        box_h, box_w = max(bottom - top + 1, 1), max(right - left + 1, 1)
        cells = []
        for i in range(high):
            for j in range(wide):
                y = [min(max(top + edge, 0), x.shape[2]) for edge in (i * box_h // high, -(-(i + 1) * box_h // high))]
                c = [min(max(left + edge, 0), x.shape[3]) for edge in (j * box_w // wide, -(-(j + 1) * box_w // wide))]
                part = x[int(row[0]), :, y[0] : y[1], c[0] : c[1]]
                cells.append(part.max((1, 2)) if part.size else x[0, :, 0, 0] * 0.0)
        results.append(F.stack(cells, 1).reshape(x.shape[1], high, wide))
    return F.stack(results, 0)


@operator("DeformConv", since=19, limits="in a graph (runs on tensors); other than two axes")
def _deform_conv(call: Call, x: Any, w: Any, offset: Any, bias: Any = None, mask: Any = None) -> Any:
    """A convolution whose window's places are moved by `offset`, between four elements each (arXiv 1811.11168)."""
    if x.ndim != 4:
        raise GraphError(f"expected x (N, C, H, W), got {x.shape}")
    group, groups = call.attr("group", 1), call.attr("offset_group", 1)
    n, c, height, width = x.shape
    outputs, _, kh, kw = w.shape
    strides, spread = call.attr("strides", [1, 1]), call.attr("dilations", [1, 1])
    pads = call.attr("pads", [0, 0, 0, 0])
    oh, ow = offset.shape[2:]
    moves = offset.reshape(n, groups, kh * kw, 2, oh, ow)
    base_y = np.arange(oh)[:, None] * strides[0] - pads[0]
    base_x = np.arange(ow)[None, :] * strides[1] - pads[1]
    columns: list[Any] = []
    for g in range(groups):
        part = x[:, g * (c // groups) : (g + 1) * (c // groups)]
        taps = []
        for k in range(kh * kw):
            y = moves[:, g, k, 0] + constant(x, base_y + k // kw * spread[0], x.dtype)
            z = moves[:, g, k, 1] + constant(x, base_x + k % kw * spread[1], x.dtype)
            value = _bilinear(part, y.reshape(n, -1), z.reshape(n, -1))
            if mask is not None:
                value = value * mask.reshape(n, groups, kh * kw, oh * ow)[:, g, k].expand_dims(1)
            taps.append(value)
        columns.append(F.stack(taps, 2))  # (N, C/groups, K, P)
    whole = F.concat(columns, 1) if groups > 1 else columns[0]
    whole = whole.reshape(n, group, c // group * kh * kw, oh * ow)
    kernels = w.reshape(1, group, outputs // group, c // group * kh * kw)
    result = apply("matmul", kernels.broadcast_to(n, *kernels.shape[1:]), whole).reshape(n, outputs, oh, ow)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def _bilinear(x: Any, y: Any, z: Any) -> Any:
    """x (N, C, H, W) at real coordinates (N, P), 0 outside. Returns (N, C, P)."""
    low_y, low_z = y.floor(), z.floor()
    total = None
    for dy in (0.0, 1.0):
        for dz in (0.0, 1.0):
            row, column = low_y + dy, low_z + dz
            share = (1.0 - (y - row).abs()) * (1.0 - (z - column).abs())
            inside = (row >= 0.0) & (row <= float(x.shape[2] - 1)) & (column >= 0.0) & (column <= float(x.shape[3] - 1))
            part = _picked(x, [row.astype("int64"), column.astype("int64")], inside) * share.expand_dims(1)
            total = part if total is None else total + part
    return total


@operator("NonMaxSuppression", since=10, known=(2, 3, 4), limits="in a graph (runs on tensors)")
def _non_max_suppression(
    call: Call, boxes: Any, scores: Any, most: Any = None, overlap: Any = None, least: Any = None
) -> Any:
    """Greedy, by falling score: a decision after the other, so it is made on the host."""
    limit = integer(most) if most is not None else 0
    threshold = number(overlap) if overlap is not None else 0.0
    corners, marks = host(boxes).astype(np.float64), host(scores)
    if call.attr("center_point_box", 0):
        centre, size = corners[..., :2], corners[..., 2:]
        corners = np.concatenate([centre - size / 2, centre + size / 2], -1)
    low = np.minimum(corners[..., :2], corners[..., 2:])
    high = np.maximum(corners[..., :2], corners[..., 2:])
    found = []
    for batch in range(marks.shape[0]):
        for label in range(marks.shape[1]):
            order = np.argsort(-marks[batch, label], kind="stable")
            if least is not None:
                order = order[marks[batch, label][order] > number(least)]
            kept: list[int] = []
            for place in order.tolist():
                if len(kept) >= limit:
                    break
                if all(_overlap(low[batch], high[batch], place, other) <= threshold for other in kept):
                    kept.append(place)
            found += [[batch, label, place] for place in kept]
    return constant(scores, np.array(found, np.int64).reshape(-1, 3))


def _overlap(low: Array, high: Array, a: int, b: int) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(high[a], high[b]) - np.maximum(low[a], low[b])
    if min(sides) <= 0.0:
        return 0.0
    both = float(sides.prod())
    return both / (float((high[a] - low[a]).prod()) + float((high[b] - low[b]).prod()) - both)
