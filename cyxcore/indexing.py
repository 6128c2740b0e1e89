"""Indexing as ops: integers, slices, ..., None, integer arrays and boolean masks, as in NumPy.

Integers and slices come first, then the arrays: several are broadcast together, and what they pick stands where the
first stood if they stand side by side, else in front. An integer beside arrays only drops its axis, as in PyTorch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cyxcore.attrs import MAX_CONST_ELEMENTS
from cyxcore.dtype import is_integer
from cyxcore.errors import IndexingError, ShapeError
from cyxcore.infer import broadcast
from cyxcore.values import Value, apply

_PLAIN = (int, slice, type(None), type(Ellipsis))
WANTED = "integers, slices, ..., None, integer arrays or boolean masks"


def _is_array(part: Any) -> bool:
    return isinstance(part, (Value, list)) or hasattr(part, "__array__") and getattr(part, "shape", ()) != ()


def _is_mask(part: Any) -> bool:
    return type(part) not in _PLAIN and (getattr(part, "dtype", None) == "bool" or isinstance(part, bool))


def _read(value: Value, part: Any) -> Any:
    """A part of an index, arrays among them as values."""
    if type(part) in _PLAIN:
        return part
    if _is_mask(part) and not isinstance(part, Value):
        return value._constant(part, "bool")
    if isinstance(part, Value) and (part.shape or part.dtype == "bool") or not _is_array(part):
        return part
    if isinstance(part, Value):
        return part if is_integer(part.dtype) else _refused(part)
    return value._constant(part) if len(part) else value._constant(part, "int64")


def _refused(part: Any) -> Any:
    raise ShapeError(f"index: expected {WANTED}, got {part!r}")


def _complete(value: Value, parts: Sequence[Any]) -> list[Any]:
    """The index with `...` and missing axes written out."""
    used = sum(part.ndim if _is_mask(part) else 1 for part in parts if part is not None and part is not Ellipsis)
    missing = value.ndim - used
    dots = [place for place, part in enumerate(parts) if part is Ellipsis]
    if missing < 0 or len(dots) > 1:
        raise IndexingError(f"index: expected at most {value.ndim} indices and one ..., got {used} for {value.shape}")
    if not dots:
        return [*parts, *[slice(None)] * missing]
    return [*parts[: dots[0]], *[slice(None)] * missing, *parts[dots[0] + 1 :]]


def split(value: Value, index: Any) -> tuple[list[Any], dict[int, Any]]:
    """(the integers, slices and None of an index, the arrays by the axis of what those leave).

    Raises ShapeError for what has no meaning, and IndexError for an integer, a mask or a count of indices that does not
    fit the shape.
    """
    if type(index) is tuple:
        parts = _complete(value, [_read(value, part) for part in index])
    else:
        parts = _complete(value, [_read(value, index)])
    basic: list[Any] = []
    arrays: dict[int, Any] = {}
    axis = place = 0
    for part in parts:
        if type(part) is int:
            basic.append(_integer(part, value.shape[axis], axis, value.shape))
            axis += 1
        elif part is None or isinstance(part, slice):
            basic.append(part)
            axis, place = axis + (part is not None), place + 1
        elif _is_mask(part):
            found = _places(part, value.shape[axis : axis + part.ndim], value)
            basic += [slice(None)] * part.ndim if part.ndim else [None]
            arrays.update(enumerate(found, place))
            axis, place = axis + part.ndim, place + len(found)
        elif isinstance(part, Value) and (part.shape or part._rank > 1):  # a symbol has no number yet
            if not is_integer(part.dtype):
                _refused(part)
            basic.append(slice(None))
            arrays[place] = value._check_indices(part.astype("int64"), value.shape[axis])
            axis, place = axis + 1, place + 1
        else:
            basic.append(_integer(part, value.shape[axis], axis, value.shape))
            axis += 1
    return basic, arrays


def _places(mask: Any, shape: tuple[int, ...], value: Value) -> list[Any]:
    """Where a mask is true: an index array for each axis it covers, for one of size 1 where it covers none.

    A size of 0 fits every axis, as in the array API: such a mask picks nothing.
    """
    _covers(mask, shape, value)
    if not mask.ndim:
        return [value._constant([0] * int(mask.item()), "int64")]
    host = mask.to("cpu") if hasattr(mask, "to") else mask  # how many are true is a question to the host
    found = apply("nonzero", host, count=host._how_many())
    if hasattr(value, "device"):
        found = found.to(value.device)
    return [found[axis] for axis in range(mask.ndim)]


def _covers(mask: Any, shape: tuple[int, ...], value: Value) -> None:
    if len(mask.shape) != len(shape) or any(n not in (0, size) for n, size in zip(mask.shape, shape, strict=True)):
        raise IndexingError(f"index: expected a mask of the sizes {shape} it covers of {value.shape}, got {mask.shape}")


def put(array: Any, basic: tuple[Any, ...] | None, arrays: Mapping[int, Any], value: Any) -> None:
    """array[index] = value, for an index in the parts of indexing.split."""
    target = array if basic is None else array[(*basic, ...)]
    if not arrays:
        target[...] = value
        return
    places = sorted(arrays)
    target[tuple(arrays[axis] if axis in places else slice(None) for axis in range(places[-1] + 1))] = value


def picked(shape: tuple[int, ...], basic: Sequence[Any], arrays: Mapping[int, Any]) -> tuple[int, ...]:
    """The shape of what an index in the parts of indexing.split picks."""
    row = list(seen_by(shape, basic))
    if not arrays:
        return tuple(row)
    places = sorted(arrays)
    side_by_side = places[-1] - places[0] + 1 == len(places)
    rest = [size for axis, size in enumerate(row) if axis not in places]
    at = places[0] if side_by_side else 0
    return (*rest[:at], *broadcast("index", *(arrays[axis].shape for axis in places)), *rest[at:])


def seen_by(shape: tuple[int, ...], basic: Sequence[Any]) -> tuple[int, ...]:
    row, axis = [], 0
    for part in basic:
        if part is None:
            row.append(1)
            continue
        if isinstance(part, slice):
            row.append(len(range(*part.indices(shape[axis]))))
        axis += 1
    return tuple(row)


def get(value: Value, index: Any) -> Any:
    """value[index]. Raises ShapeError for what has no meaning and IndexError for an integer out of range."""
    if hasattr(index, "_true_places") and index.dtype == "bool" and index.ndim and hasattr(value, "_true_places"):
        return _masked(value, index)
    basic, arrays = split(value, index)
    result = _basic(value, basic)
    if not arrays:
        return result
    if len(arrays) == 1:
        ((place, indices),) = arrays.items()
        return apply("take", result, indices, axis=place)
    return _gathered(result, arrays)


def _masked(value: Any, mask: Any) -> Any:
    """What a mask of the first axes picks: rows of those axes made one."""
    fitting_mask(mask, value)
    rows = value.reshape(math.prod(value.shape[: mask.ndim]), *value.shape[mask.ndim :]) if mask.ndim > 1 else value
    return apply("take", rows, mask._true_places().to(value.device), axis=0)


def fitting_mask(mask: Any, value: Any) -> None:
    """Raises IndexingError unless a mask covers the first axes of a value; sizes of 0 fit every axis."""
    if mask.ndim > value.ndim:
        _complete(value, [mask])
    _covers(mask, value.shape[: mask.ndim], value)


def _basic(value: Value, parts: Sequence[Any]) -> Any:
    starts, stops, steps = [], [], []
    shape: list[int] = []  # of the result, with 1 for None and nothing for an integer
    backwards: list[int] = []
    axis = 0
    for part in parts:
        if part is None:
            shape.append(1)
            continue
        size = value.shape[axis]
        if isinstance(part, slice):
            low, high, step = part.indices(size)
            if step < 0:
                count = len(range(low, high, step))
                low, high, step = (low + (count - 1) * step, low + 1, -step) if count else (0, 0, 1)
                backwards.append(len(shape))
            high = max(low, high)
            shape.append(len(range(low, high, step)))
        else:
            low, high, step = part, part + 1, 1
        starts.append(low)
        stops.append(high)
        steps.append(step)
        axis += 1
    result = value
    if (starts, stops, steps) != ([0] * value.ndim, list(value.shape), [1] * value.ndim):
        result = apply("slice", value, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    result = result.reshape(*shape)
    return result._reversed(tuple(backwards)) if backwards else result


def spread(part: Value, shape: tuple[int, ...], starts: Sequence[int], steps: Sequence[int]) -> Any:
    """Zeros of a shape, and `part` where a slice from `starts` on by `steps` sees it."""
    for axis, step in enumerate(steps):
        if step > 1 and part.size:  # step - 1 zeros behind each
            before, after = part.shape[: axis + 1], part.shape[axis + 1 :]
            pads = ((0, 0),) * (axis + 1) + ((0, step - 1),) + ((0, 0),) * len(after)
            apart = apply("pad", part.reshape(*before, 1, *after), pads=pads)
            part = apart.reshape(*before[:-1], before[-1] * step, *after)
            room = shape[axis] - starts[axis]
            if part.shape[axis] > room:
                stops = (*part.shape[:axis], room, *part.shape[axis + 1 :])
                part = apply("slice", part, starts=(0,) * part.ndim, stops=stops, steps=(1,) * part.ndim)
    pads = tuple((low, size - low - have) for low, size, have in zip(starts, shape, part.shape, strict=True))
    return apply("pad", part, pads=pads)


def _gathered(value: Value, arrays: Mapping[int, Any]) -> Any:
    """What several index arrays pick: their axes made one, their indices made one."""
    places = sorted(arrays)
    rest = [axis for axis in range(value.ndim) if axis not in places]
    together = places[-1] - places[0] + 1 == len(places)
    at = places[0] if together else 0
    order = (*rest[:at], *places, *rest[at:])
    moved = value if together else value.permute(*order)
    sizes = [value.shape[axis] for axis in places]
    moved = moved.reshape(*moved.shape[:at], math.prod(sizes), *moved.shape[at + len(places) :])
    broadcast("index", *(arrays[axis].shape for axis in places))
    flat = arrays[places[0]]  # may count from the end, and is checked with the whole
    for axis, size in zip(places[1:], sizes[1:], strict=True):
        flat = flat * size + from_start(arrays[axis], size)
    return apply("take", moved, flat, axis=at)


def from_start(indices: Any, size: int) -> Any:
    """Indices of 0..size - 1 out of those that count from the end, for several axes made one. indices: int64.

    Those of a graph are looked up among 0, 1, ... when it runs, for one beyond its axis would be in the next row.
    Raises IndexError for a tensor with one.
    """
    if not indices.is_symbolic:
        return indices._check_indices(indices, size)
    if size > MAX_CONST_ELEMENTS:  # no graph that travels holds so many
        return indices + (indices < 0).astype("int64") * size
    return apply("take", indices._constant(range(size), "int64"), indices, axis=0)


def _integer(part: Any, size: int, axis: int, shape: tuple[int, ...]) -> int:
    try:
        place: int = part.__index__()
    except (AttributeError, TypeError):
        _refused(part)
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of range for axis {axis} of shape {shape}")
    return place % size


def take(value: Value, indices: Any, axis: int) -> Any:
    """Rows of `value` along an axis. indices: integers; negative ones count from the end."""
    if not isinstance(indices, Value):
        indices = value._constant(indices, "int64")
    if indices.dtype == "bool":
        raise ShapeError("take: expected integer indices, got a boolean mask; index with it: x[mask]")
    return apply("take", value, value._check_indices(indices.astype("int64"), value.shape[axis]), axis=axis)
