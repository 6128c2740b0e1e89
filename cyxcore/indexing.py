"""NumPy's basic indexing (integers, slices, ..., None) and one integer array, as ops."""

import math
from typing import Any

from cyxcore.errors import ShapeError
from cyxcore.values import Value, apply


def _complete(value: Value, index: tuple[Any, ...]) -> list[Any]:
    """The index with `...` and missing axes written out."""
    used = sum(1 for part in index if part is not None and part is not Ellipsis)
    missing = value.ndim - used
    dots = [place for place, part in enumerate(index) if part is Ellipsis]
    if missing < 0 or len(dots) > 1:
        raise ShapeError(f"index: expected at most {value.ndim} indices and one ..., got {used} for {value.shape}")
    if not dots:
        return [*index, *[slice(None)] * missing]
    return [*index[: dots[0]], *[slice(None)] * missing, *index[dots[0] + 1 :]]


def _is_array(part: Any) -> bool:
    return isinstance(part, (Value, list)) or hasattr(part, "__array__") and getattr(part, "shape", ()) != ()


def get(value: Value, index: Any) -> Any:
    """value[index]. Raises ShapeError for what has no meaning and IndexError for an integer out of range."""
    if getattr(index, "dtype", None) == "bool" and getattr(index, "shape", ()) != ():
        return _masked(value, index if isinstance(index, Value) else value._constant(index, "bool"))
    parts = _complete(value, index if isinstance(index, tuple) else (index,))
    arrays = [part for part in parts if _is_array(part)]
    if len(arrays) > 1:
        raise ShapeError(f"index: expected at most one integer array, got {len(arrays)}; index in two steps")
    starts, stops, steps = [], [], []
    shape: list[int] = []  # the result of the slices alone, with 1 for None and nothing for an integer
    reversed_places: list[int] = []
    array_place: int | None = None
    axis = 0
    for part in parts:
        if part is None:
            shape.append(1)
            continue
        size = value.shape[axis]
        low, high, step = 0, size, 1
        if isinstance(part, slice):
            low, high, step = part.indices(size)
            if step < 0:
                count = len(range(low, high, step))
                low, high, step = (low + (count - 1) * step, low + 1, -step) if count else (0, 0, 1)
                reversed_places.append(len(shape))
            high = max(low, high)
            shape.append(len(range(low, high, step)))
        elif _is_array(part):
            array_place = len(shape)
            shape.append(size)
        else:
            low, high = _integer(part, size, axis, value.shape)
        starts.append(low)
        stops.append(high)
        steps.append(step)
        axis += 1
    result = value
    if (starts, stops, steps) != ([0] * value.ndim, list(value.shape), [1] * value.ndim):
        result = apply("slice", value, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    result = result.reshape(*shape)
    for place in reversed_places:
        backwards = list(range(shape[place] - 1, -1, -1))
        result = apply("take", result, result._constant(backwards, "int64"), axis=place)
    if array_place is not None:
        result = take(result, arrays[0], array_place)
    return result


def _masked(value: Value, mask: Value) -> Any:
    """The elements (or rows) where a mask over the leading axes is true: (count, *the other axes)."""
    if mask.shape != value.shape[: mask.ndim]:
        raise ShapeError(f"index: expected a mask of the leading sizes of {value.shape}, got {mask.shape}")
    rows = value.reshape(math.prod(mask.shape), *value.shape[mask.ndim :])
    flat = mask.reshape(-1).to("cpu")  # type: ignore[attr-defined]  # how many there are is a question to the host
    places = apply("nonzero", flat, count=int(flat.sum().item())).reshape(-1)
    return apply("take", rows, places.to(value.device), axis=0)  # type: ignore[attr-defined]


def _integer(part: Any, size: int, axis: int, shape: tuple[int, ...]) -> tuple[int, int]:
    try:
        place = part.__index__()
    except (AttributeError, TypeError):
        raise ShapeError(f"index: expected integers, slices, ..., None or one integer array, got {part!r}") from None
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of range for axis {axis} of shape {shape}")
    return place % size, place % size + 1


def take(value: Value, indices: Any, axis: int) -> Any:
    """Rows of `value` along an axis. indices: integers; negative ones count from the end."""
    if not isinstance(indices, Value):
        indices = value._constant(indices, "int64")
    if indices.dtype == "bool":
        raise ShapeError("index: a boolean mask stands alone; use x[mask], or cx.nonzero(mask) beside other indices")
    return apply("take", value, value._check_indices(indices.astype("int64"), value.shape[axis]), axis=axis)
