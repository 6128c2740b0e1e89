"""ONNX operators that move elements: shapes, slices, gathers and scatters, and values out of nothing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore import functional as F
from cyxcore import manipulation as M
from cyxcore import searching as S
from cyxcore.dtype import DTYPES
from cyxcore.errors import GraphError, ShapeError
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES
from cyxcore.onnx.table import Call, along, constant, filled, host, integer, ints, number, operator, tensor, text
from cyxcore.onnx.tensors import dtype_of
from cyxcore.symbols import Symbol
from cyxcore.values import apply

MAX_KNOWN = 2**24  # elements of a value made out of nothing while a graph is made
MAX_PARTS = 65_536  # of a split

# shapes -------------------------------------------------------------------------------------------


@operator("Reshape", known=(1,))
def _reshape(call: Call, x: Any, shape: Any) -> Any:
    wanted = ints(shape)
    if not call.attr("allowzero", 0):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(*wanted)


@operator("Transpose")
def _transpose(call: Call, x: Any) -> Any:
    order = call.attr("perm")
    return x.permute(*(reversed(range(x.ndim)) if order is None else order)) if x.ndim > 1 or order else x


@operator("Flatten")
def _flatten(call: Call, x: Any) -> Any:
    axis = call.attr("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes(call: Call, axes: Any) -> list[int] | None:
    """Axes as an input (newer opsets) or an attribute (older ones)."""
    return ints(axes) if axes is not None else call.attr("axes")


@operator("Squeeze", known=(1,))
def _squeeze(call: Call, x: Any, axes: Any = None) -> Any:
    found = _axes(call, axes)
    return x.squeeze([place for place, size in enumerate(x.shape) if size == 1] if found is None else found)


@operator("Unsqueeze", known=(1,))
def _unsqueeze(call: Call, x: Any, axes: Any = None) -> Any:
    found = _axes(call, axes)
    if found is None:
        raise GraphError("expected axes")
    return x.expand_dims(found)


@operator("Expand", since=8, known=(1,))
def _expand(call: Call, x: Any, shape: Any) -> Any:
    return x.broadcast_to(*M.broadcast_shapes(x.shape, tuple(ints(shape))))


@operator("Shape")
def _shape(call: Call, x: Any) -> Any:
    start, end = call.attr("start", 0), call.attr("end")
    return tensor(np.array(x.shape[slice(start, end)], np.int64))


@operator("Size")
def _size(call: Call, x: Any) -> Any:
    return tensor(np.array(x.size, np.int64))


@operator("Concat")
def _concat(call: Call, *values: Any) -> Any:
    return apply("concat", *values, axis=values[0]._axis(call.needs("axis")))


@operator("Split", known=(1,))
def _split(call: Call, x: Any, split: Any = None) -> Any:
    axis = x._axis(call.attr("axis", 0))
    sizes = ints(split) if split is not None else call.attr("split")
    if sizes is None:
        count = call.attr("num_outputs", call.outputs)
        if not 0 < count <= MAX_PARTS:
            raise ShapeError(f"num_outputs: expected 1 to {MAX_PARTS}, got {count}")
        each = -(-x.shape[axis] // count)
        sizes = [min(each, max(0, x.shape[axis] - each * place)) for place in range(count)]
    if sum(sizes) != x.shape[axis]:
        raise ShapeError(f"expected sizes that add up to {x.shape[axis]}, got {sizes[:10]}")
    ends = np.cumsum(sizes).tolist()
    return tuple(along(x, axis, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True))


@operator("Slice", since=10, known=(1, 2, 3, 4))
def _slice(call: Call, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    first, last = ints(starts), ints(ends)
    places = list(range(len(first))) if axes is None else ints(axes)
    by = [1] * len(first) if steps is None else ints(steps)
    parts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(places, first, last, by, strict=True):
        size = x.shape[x._axis(axis)]
        if step < 0 and end < -size:  # beyond the front: Python's slice has no number for that
            parts[x._axis(axis)] = slice(start, None, step)
        else:
            parts[x._axis(axis)] = slice(start, end, step)
    return x[tuple(parts)]


@operator("Tile", known=(1,))
def _tile(call: Call, x: Any, repeats: Any) -> Any:
    return M.tile(x, tuple(ints(repeats)))


_PAD_MODES = ("reflect", "edge", "wrap")


@operator("Pad", known=(1, 2, 3), limits="a value for padding that is not a number")
def _pad(call: Call, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    given = ints(pads) if pads is not None else call.attr("pads", [])
    fill = host(value).reshape(-1)[0].item() if value is not None else call.attr("value", 0.0)
    places = list(range(x.ndim)) if axes is None else [x._axis(axis) for axis in ints(axes)]
    if len(given) != 2 * len(places):
        raise ShapeError(f"expected {2 * len(places)} pads, got {given[:20]}")
    mode = text(call.attr("mode", "constant"))
    for axis, low, high in zip(places, given, given[len(places) :], strict=False):
        x = along(x, axis, slice(max(0, -low), x.shape[axis] - max(0, -high)))
        low, high = max(0, low), max(0, high)
        if mode == "constant":
            x = padded(x, axis, low, high, fill)
        elif mode not in _PAD_MODES:
            raise GraphError(f"mode {mode!r} is not supported")
        elif low or high:
            order = np.pad(np.arange(x.shape[axis]), (low, high), mode=mode)  # type: ignore[call-overload]
            x = apply("take", x, x._constant(order.tolist(), "int64"), axis=axis)
    return x


def padded(x: Any, axis: int, low: int, high: int, fill: Any) -> Any:
    """x with `fill` before and after along an axis."""
    if not low and not high:
        return x
    if (
        isinstance(fill, bool)
        or x.dtype == "bool"
        or not math.isfinite(fill)
        or DTYPES[x.dtype].kind != "real floating"
    ):
        parts = [filled(x, (*x.shape[:axis], n, *x.shape[axis + 1 :]), fill, x.dtype) for n in (low, high)]
        return apply("concat", parts[0], x, parts[1], axis=axis)
    pads = tuple((low, high) if place == axis else (0, 0) for place in range(x.ndim))
    return apply("pad", x, pads=pads, value=float(fill))


@operator("CenterCropPad", since=18, known=(1,))
def _center(call: Call, x: Any, shape: Any) -> Any:
    wanted = ints(shape)
    for axis, size in zip(call.attr("axes", range(x.ndim)), wanted, strict=True):
        place = x._axis(axis)
        have = x.shape[place]
        if size < have:
            start = (have - size) // 2
            x = along(x, place, slice(start, start + size))
        else:
            x = padded(x, place, (size - have) // 2, size - have - (size - have) // 2, 0)
    return x


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Any) -> Any:
    b = call.needs("blocksize")
    n, c, h, w = x.shape
    if text(call.attr("mode", "DCR")) == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (b * b), h * b, w * b)


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Any) -> Any:
    b = call.needs("blocksize")
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if text(call.attr("mode", "DCR")) == "DCR" else (0, 1, 3, 5, 2, 4)
    return x.reshape(n, c, h // b, b, w // b, b).permute(*order).reshape(n, c * b * b, h // b, w // b)


# gathers ------------------------------------------------------------------------------------------


def positive(indices: Any, size: int) -> Any:
    """int64 indices, negative ones counted from the end. Of known values each is checked."""
    found = indices.astype("int64")
    if isinstance(found, Symbol):
        return F.where(found < 0, found + size, found)
    return found._check_indices(found, size)


@operator("Gather")
def _gather(call: Call, x: Any, indices: Any) -> Any:
    axis = x._axis(call.attr("axis", 0))
    return apply("take", x, positive(indices, x.shape[axis]), axis=axis)


@operator("GatherElements", since=11)
def _gather_elements(call: Call, x: Any, indices: Any) -> Any:
    axis = x._axis(call.attr("axis", 0))
    places = positive(indices, x.shape[axis])
    for other, size in enumerate(places.shape):  # the indices may name fewer rows than there are
        if other != axis and size < x.shape[other]:
            x = along(x, other, slice(0, size))
    return apply("take_along", x, places, axis=axis)


def _flat_places(indices: Any, sizes: Sequence[int]) -> Any:
    """(..., K) index vectors into axes of `sizes` as one number each."""
    flat = None
    for place, size in enumerate(sizes):
        part = positive(indices[..., place], size)
        flat = part if flat is None else flat * size + part
    return flat


@operator("GatherND", since=11)
def _gather_nd(call: Call, x: Any, indices: Any) -> Any:
    batch, depth = call.attr("batch_dims", 0), indices.shape[-1]
    lead = math.prod(x.shape[:batch])
    sizes, rest = x.shape[batch : batch + depth], x.shape[batch + depth :]
    rows = x.reshape(lead * math.prod(sizes), *rest)
    flat = _flat_places(indices, sizes)
    if batch:
        offsets = np.arange(lead).reshape(*x.shape[:batch], *(1,) * (flat.ndim - batch)) * math.prod(sizes)
        flat = flat + constant(flat, offsets, "int64")
    return apply("take", rows, flat, axis=0)


def _scattered(x: Any, flat: Any, updates: Any, reduction: str) -> Any:
    """x as rows (R, ...) with rows of updates put or combined at places `flat` (K,)."""
    return apply("scatter", x, flat.reshape(-1), updates.reshape(flat.size, *x.shape[1:]), reduction=reduction)


@operator("ScatterND", since=11, limits="in a graph (runs on tensors)")
def _scatter_nd(call: Call, x: Any, indices: Any, updates: Any) -> Any:
    depth = indices.shape[-1]
    rows = x.reshape(math.prod(x.shape[:depth]), *x.shape[depth:])
    flat = _flat_places(indices, x.shape[:depth])
    return _scattered(rows, flat, updates, text(call.attr("reduction", "none"))).reshape(*x.shape)


@operator("ScatterElements", "Scatter", limits="in a graph (runs on tensors)")
def _scatter_elements(call: Call, x: Any, indices: Any, updates: Any) -> Any:
    axis = x._axis(call.attr("axis", 0))
    places = positive(indices, x.shape[axis])
    strides = [math.prod(x.shape[place + 1 :]) for place in range(x.ndim)]
    base = sum(
        np.arange(size).reshape([-1 if p == place else 1 for p in range(x.ndim)]) * strides[place]
        for place, size in enumerate(places.shape)
        if place != axis
    )
    flat = places * strides[axis] + constant(places, np.asarray(base), "int64")
    result = _scattered(x.reshape(x.size), flat, updates, text(call.attr("reduction", "none")))
    return result.reshape(*x.shape)


@operator("TensorScatter", since=24, known=(2,), limits="in a graph (runs on tensors)")
def _tensor_scatter(call: Call, past: Any, update: Any, write_indices: Any = None) -> Any:
    """Rows of a cache written from a place of each batch on, around the end in mode circular."""
    axis = past._axis(call.attr("axis", -2))
    starts = [0] * past.shape[0] if write_indices is None else ints(write_indices)
    size, count = past.shape[axis], update.shape[axis]
    moved, new = M.moveaxis(past, axis, 1), M.moveaxis(update, axis, 1)
    circular = text(call.attr("mode", "linear")) == "circular"
    places = []
    for row, start in enumerate(starts):
        for step in range(count):
            place = (start + step) % size if circular else start + step
            if not 0 <= place < size:
                raise ShapeError(f"row {row} is written at {place}, the cache has {size}")
            places.append(row * size + place)
    rows = moved.reshape(moved.shape[0] * size, *moved.shape[2:])
    flat = constant(past, np.array(places), "int64")
    result = _scattered(rows, flat, new.reshape(len(places), *new.shape[2:]), "none")
    return M.moveaxis(result.reshape(*moved.shape), 1, axis)


@operator("ReverseSequence", since=10, known=(1,))
def _reverse_sequence(call: Call, x: Any, lengths: Any) -> Any:
    batch, time = call.attr("batch_axis", 1), call.attr("time_axis", 0)
    order = np.tile(np.arange(x.shape[time]), (x.shape[batch], 1))
    for row, length in enumerate(ints(lengths)):
        order[row, :length] = order[row, :length][::-1]
    if batch > time:
        order = order.T
    shape = [x.shape[axis] if axis in (batch, time) else 1 for axis in range(x.ndim)]
    places = np.broadcast_to(order.reshape(shape), x.shape)
    return apply("take_along", x, constant(x, np.ascontiguousarray(places), "int64"), axis=time)


@operator("Compress", since=9, known=(1,))
def _compress(call: Call, x: Any, condition: Any) -> Any:
    places = np.flatnonzero(host(condition)).tolist()
    axis = call.attr("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return apply("take", x, x._constant(places, "int64"), axis=x._axis(axis))


@operator("NonZero", since=9, limits="in a graph (runs on tensors)")
def _nonzero(call: Call, x: Any) -> Any:
    if not x.ndim:
        return apply("nonzero", (x != x._constant(0, x.dtype)).reshape(1), count=int(bool(host(x))))[:0]
    return F.stack(S.nonzero(x), 0)


@operator("Unique", since=11, limits="in a graph (runs on tensors)")
def _unique(call: Call, x: Any) -> Any:
    """By sorting whole slices; computed beside the op table, for want of an order of slices there."""
    axis, array = call.attr("axis"), host(x)
    kept = x.dtype
    values, first, inverse, counts = np.unique(
        array, axis=axis, return_index=True, return_inverse=True, return_counts=True
    )
    inverse = inverse.reshape(-1)
    if not call.attr("sorted", 1):
        order = np.argsort(first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        values = np.take(values, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], rank[inverse]
    return (constant(x, values, kept), *(constant(x, part, "int64") for part in (first, inverse, counts)))


@operator("TopK", since=10, known=(1,), limits="in a graph (runs on tensors)")
def _top_k(call: Call, x: Any, k: Any) -> Any:
    axis = x._axis(call.attr("axis", -1))
    places = S.argsort(x, axis=axis, descending=bool(call.attr("largest", 1)))
    places = along(places, axis, slice(0, integer(k))).copy()
    return apply("take_along", x, places, axis=axis), places


# values out of nothing ----------------------------------------------------------------------------


@operator("Constant", limits="strings and sparse values")
def _constant(call: Call) -> Any:
    if "value" in call.attrs:
        return tensor(call.attrs["value"])
    for name, dtype in (
        ("value_float", "float32"),
        ("value_int", "int64"),
        ("value_floats", "float32"),
        ("value_ints", "int64"),
    ):
        if name in call.attrs:
            return tensor(np.array(call.attrs[name], dtype))
    raise GraphError(f"expected a numeric value, got {', '.join(call.attrs) or 'none'}")


def _bounded(shape: Sequence[int]) -> tuple[int, ...]:
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_KNOWN:
        raise ShapeError(f"expected a shape of at most {MAX_KNOWN} elements, got {list(shape)[:16]}")
    return tuple(shape)


@operator("ConstantOfShape", since=9, known=(0,))
def _constant_of_shape(call: Call, shape: Any) -> Any:
    value = np.asarray(call.attr("value", np.zeros(1, np.float32))).reshape(-1)[:1]
    return tensor(np.broadcast_to(value, _bounded(ints(shape))).copy() if len(ints(shape)) else value.reshape(()))


@operator("Range", since=11, known=(0, 1, 2))
def _range(call: Call, start: Any, limit: Any, delta: Any) -> Any:
    first, last, step = (host(value).reshape(-1)[0] for value in (start, limit, delta))
    if float(step) == 0.0 or not math.isfinite(float(first) + float(last) + float(step)):
        raise ShapeError(f"expected finite numbers and a step other than 0, got {first}, {last}, {step}")
    count = _bounded([max(0, math.ceil((float(last) - float(first)) / float(step)))])[0]
    return tensor((np.arange(count) * step + first).astype(host(start).dtype)).astype(start.dtype)


@operator("EyeLike", since=9)
def _eye_like(call: Call, x: Any) -> Any:
    dtype = dtype_of(call.attrs["dtype"], "EyeLike") if "dtype" in call.attrs else x.dtype
    _bounded(x.shape)
    return tensor(np.eye(x.shape[0], x.shape[1], k=call.attr("k", 0)).astype(NUMPY_DTYPES[dtype]))


@operator("OneHot", since=9, known=(1,))
def _one_hot(call: Call, indices: Any, depth: Any, values: Any) -> Any:
    count, axis = int(number(depth)), call.attr("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    _bounded([count])
    whole = indices.astype("int64")
    places = F.where(whole < 0, whole + count, whole).expand_dims(axis)
    row = np.arange(count).reshape([-1 if place == axis else 1 for place in range(indices.ndim + 1)])
    hit = places == constant(places, row, "int64")
    return apply("where", hit, values[1], values[0])


@operator("Trilu", since=14, known=(1,))
def _trilu(call: Call, x: Any, k: Any = None) -> Any:
    shift = 0 if k is None else integer(k)
    rows, columns = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])[None, :]
    kept = columns - rows >= shift if call.attr("upper", 1) else columns - rows <= shift
    return apply("where", constant(x, kept), x, x._constant(0, x.dtype))


@operator("Col2Im", since=18, known=(1, 2), limits="in a graph (runs on tensors)")
def _col2im(call: Call, x: Any, image_shape: Any, block_shape: Any) -> Any:
    """Columns added up into images of any rank."""
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    spread, steps = call.attr("dilations", [1] * rank), call.attr("strides", [1] * rank)
    pads = call.attr("pads", [0] * 2 * rank)
    whole = [size + pads[a] + pads[a + rank] for a, size in enumerate(image)]
    counts = [(whole[a] - spread[a] * (block[a] - 1) - 1) // steps[a] + 1 for a in range(rank)]
    places = np.zeros((1, 1), np.int64)
    for a in range(rank):
        axis = np.arange(block[a])[:, None] * spread[a] + np.arange(counts[a])[None, :] * steps[a]
        places = (places[:, None, :, None] * whole[a] + axis[None, :, None, :]).reshape(
            places.shape[0] * block[a], places.shape[1] * counts[a]
        )
    n, c = x.shape[0], x.shape[1] // math.prod(block)
    rows = x.reshape(n * c, places.size).transpose(1, 0)
    flat = constant(x, places.reshape(-1), "int64")
    zero = filled(x, (math.prod(whole), n * c), 0, x.dtype)
    summed = _scattered(zero, flat, rows, "add").transpose(1, 0).reshape(n, c, *whole)
    return summed[(slice(None), slice(None), *(slice(pads[a], pads[a] + size) for a, size in enumerate(image)))]
