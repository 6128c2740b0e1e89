"""The array API standard's manipulation and indexing functions: new shapes, orders and copies of elements.

All are composed of a graph's ops but for `repeat` with a tensor of counts, which has to read them.
"""

import math
from typing import Any

from cyxcore import indexing
from cyxcore.attrs import is_whole, several
from cyxcore.elementwise import or_method, value_of
from cyxcore.errors import AxisError, ShapeError
from cyxcore.functional.basic import concat
from cyxcore.infer import Shape, broadcast

__all__ = (  # also in cyxcore/__init__.py
    "broadcast_arrays broadcast_shapes broadcast_to expand_dims flip moveaxis permute_dims repeat reshape roll squeeze "
    "take tile unstack"
).split()


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The shape that tensors of these shapes broadcast to. Raises ShapeError."""
    return broadcast("broadcast_shapes", *(tuple(shape) for shape in shapes)) if shapes else ()


def broadcast_to(x: Any, /, shape: Any) -> Any:
    """x, stretched to a shape. Raises ShapeError where it does not fit."""
    return value_of("broadcast_to", x).broadcast_to(tuple(shape))


def broadcast_arrays(*arrays: Any) -> tuple[Any, ...]:
    """All arrays, stretched to the shape they have in common."""
    shape = broadcast_shapes(*(value_of("broadcast_arrays", x).shape for x in arrays))
    return tuple(x.broadcast_to(shape) for x in arrays)


def reshape(x: Any, /, shape: Any, *, copy: bool | None = None) -> Any:
    """x with other sizes; one may be -1. copy: True always copies; False raises ValueError where it would have to."""
    value = value_of("reshape", x)
    result = value.reshape(tuple(shape) if isinstance(shape, (tuple, list)) else (shape,))
    if copy is False and value.size and not value.shares_memory(result):
        raise ShapeError(f"reshape: {value.shape} to {result.shape} is a copy here; leave copy=False out")
    return result.copy() if copy else result


def expand_dims(x: Any, /, axis: int | tuple[int, ...]) -> Any:
    """x with an axis of size 1 more, at `axis`."""
    return value_of("expand_dims", x).expand_dims(axis)


@or_method
def squeeze(x: Any, /, axis: int | tuple[int, ...] | None = None) -> Any:
    """x without the given axes, which are of size 1; without all such where none is given."""
    return value_of("squeeze", x).squeeze(axis)


def permute_dims(x: Any, /, axes: tuple[int, ...]) -> Any:
    """x with its axes in the order `axes`."""
    value = value_of("permute_dims", x)
    if len(axes) != value.ndim or len({value._axis(axis) for axis in axes}) < value.ndim:
        raise AxisError(f"permute_dims: expected each of {value.ndim} axes once for {value.shape}, got {axes}")
    return value.permute(*axes)


def moveaxis(x: Any, source: int | tuple[int, ...], destination: int | tuple[int, ...], /) -> Any:
    """x with some axes at other places, the rest in their order."""
    value = value_of("moveaxis", x)
    starts, ends = ([value._axis(axis) for axis in several(given)] for given in (source, destination))
    if not len(starts) == len(ends) == len(set(starts)) == len(set(ends)):
        raise AxisError(f"moveaxis: expected as many different axes from as to, got {source} and {destination}")
    order = [axis for axis in range(value.ndim) if axis not in starts]
    for end, start in sorted(zip(ends, starts, strict=True)):
        order.insert(end, start)
    return value.permute(*order)


def _given_axes(value: Any, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    given = range(value.ndim) if axis is None else several(axis)
    return tuple(value._axis(place) for place in given)


@or_method
def flip(x: Any, /, *, axis: int | tuple[int, ...] | None = None) -> Any:
    """x backwards along some axes, along all without one; a copy, as PyTorch's. x[::-1] is a view."""
    value = value_of("flip", x)
    axes = _given_axes(value, axis)
    return value._reversed(tuple(sorted(set(axes)))).copy()


@or_method
def roll(x: Any, /, shift: int | tuple[int, ...], *, axis: int | tuple[int, ...] | None = None) -> Any:
    """x moved on by `shift` places along an axis, what leaves at the end coming in at the front.

    Without an axis the flattened x is moved.
    """
    value = value_of("roll", x)
    if axis is None and value.ndim != 1:
        return roll(value.reshape(-1), shift).reshape(value.shape)
    axes = _given_axes(value, 0 if axis is None else axis)
    shifts = (int(shift),) * len(axes) if is_whole(shift) else tuple(shift)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: expected a shift for each axis, got {shift} for {axis}")
    for place, by in zip(axes, shifts, strict=True):
        cut = -by % value.shape[place] if value.shape[place] else 0
        if cut:
            before = (slice(None),) * place
            value = concat([value[(*before, slice(cut, None))], value[(*before, slice(None, cut))]], axis=place)
    return value.copy() if value is x else value


def _copies(value: Any, count: int, axis: int, each: bool) -> Any:
    """An axis `count` times as long: each element `count` times, or all of them one after the other."""
    before, size, after = value.shape[:axis], value.shape[axis], value.shape[axis + 1 :]
    parts = (size, 1) if each else (1, size)
    stretched = (size, count) if each else (count, size)
    return (
        value.reshape(*before, *parts, *after)
        .broadcast_to(*before, *stretched, *after)
        .reshape(*before, size * count, *after)
    )


def repeat(x: Any, repeats: Any, /, *, axis: int | None = None) -> Any:
    """Each element (along an axis, or of the flattened x) `repeats` times: one count for all, or one for each."""
    value = value_of("repeat", x)
    if axis is None:
        return repeat(value.reshape(-1), repeats, axis=0)
    place = value._axis(axis)
    if isinstance(repeats, int):
        if repeats < 0:
            raise ShapeError(f"repeat: expected a count >= 0, got {repeats}")
        return _copies(value, repeats, place, each=True)
    counts = [int(count) for count in (repeats.tolist() if repeats.ndim else [repeats.item()])]
    if len(counts) == 1:
        return repeat(value, counts[0], axis=place)
    if len(counts) != value.shape[place] or any(count < 0 for count in counts):
        raise ShapeError(f"repeat: expected {value.shape[place]} counts >= 0, got {repeats.tolist()}")
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    return indexing.take(value, value._constant(rows, "int64"), place)


def tile(x: Any, repetitions: tuple[int, ...], /) -> Any:
    """x as a tile laid `repetitions` times along each axis; the shorter of the two is padded with ones in front."""
    value = value_of("tile", x)
    rank = max(value.ndim, len(repetitions))
    value = value.reshape(*(1,) * (rank - value.ndim), *value.shape)
    counts = (1,) * (rank - len(repetitions)) + tuple(repetitions)
    for axis, count in enumerate(counts):
        if count != 1:
            value = _copies(value, count, axis, each=False)
    return value.copy() if math.prod(counts) == 1 else value


def unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
    """The parts of x along an axis, without it."""
    value = value_of("unstack", x)
    before = (slice(None),) * value._axis(axis)
    return tuple(value[(*before, place)] for place in range(value.shape[axis]))


def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
    """Elements of x along an axis by index; negative ones count from the end. Raises IndexError out of range."""
    value = value_of("take", x)
    if axis is None and value.ndim != 1:
        raise AxisError(f"take: expected an axis for shape {value.shape}; x.take(index) is of the flattened x")
    return indexing.take(value, indices, value._axis(0 if axis is None else axis))
