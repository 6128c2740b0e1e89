"""ONNX operators on sequences (lists of values) and optional values (a value, or None)."""

from typing import Any

import numpy as np

from cyxcore import functional as F
from cyxcore.errors import GraphError, ShapeError
from cyxcore.onnx.movement import MAX_PARTS
from cyxcore.onnx.table import Call, along, integer, ints, operator, tensor


@operator("SequenceConstruct", since=11)
def _construct(call: Call, *values: Any) -> Any:
    return (list(values),)


@operator("SequenceEmpty", since=11)
def _empty(call: Call) -> Any:
    return ([],)


def _place(sequence: list[Any], position: Any, extra: int = 0) -> int:
    size = len(sequence) + extra
    place = integer(position)
    if not -len(sequence) <= place < size:
        raise ShapeError(f"expected a position {-len(sequence)}..{size - 1}, got {place}")
    return place + len(sequence) if place < 0 else place


@operator("SequenceAt", since=11, known=(1,))
def _at(call: Call, sequence: Any, position: Any) -> Any:
    return sequence[_place(sequence, position)]


@operator("SequenceInsert", since=11, known=(2,))
def _insert(call: Call, sequence: Any, value: Any, position: Any = None) -> Any:
    place = len(sequence) if position is None else _place(sequence, position, 1)
    return ([*sequence[:place], value, *sequence[place:]],)


@operator("SequenceErase", since=11, known=(1,))
def _erase(call: Call, sequence: Any, position: Any = None) -> Any:
    place = len(sequence) - 1 if position is None else _place(sequence, position)
    return ([*sequence[:place], *sequence[place + 1 :]],)


@operator("SequenceLength", since=11)
def _length(call: Call, sequence: Any) -> Any:
    return tensor(np.array(len(sequence), np.int64))


@operator("SequenceMap", since=17)
def _map(call: Call, sequence: Any, *others: Any) -> Any:
    body = call.needs("body")
    rows = []
    for place, value in enumerate(sequence):
        more = [other[place] if isinstance(other, list) else other for other in others]
        rows.append(call.run(body, [value, *more]))
    return tuple([row[which] for row in rows] for which in range(call.outputs))


@operator("ConcatFromSequence", since=11)
def _concat(call: Call, sequence: Any) -> Any:
    axis = call.needs("axis")
    if not sequence:
        raise ShapeError("expected a sequence with at least one value")
    return F.stack(sequence, axis % (sequence[0].ndim + 1)) if call.attr("new_axis", 0) else F.concat(sequence, axis)


@operator("SplitToSequence", since=11, known=(1,))
def _split(call: Call, x: Any, split: Any = None) -> Any:
    axis = x._axis(call.attr("axis", 0))
    size = x.shape[axis]
    if (split is None or split.ndim == 0) and size > MAX_PARTS * (1 if split is None else max(1, integer(split))):
        raise ShapeError(f"expected at most {MAX_PARTS} parts of {size}")
    if split is None:
        sizes, kept = [1] * size, bool(call.attr("keepdims", 1))
    else:
        given, kept = ints(split), True
        if split.ndim == 0:
            if given[0] < 1:
                raise ShapeError(f"expected parts of at least 1, got {given[0]}")
            sizes = [min(given[0], size - start) for start in range(0, size, given[0])]
        else:
            sizes = given
    if sum(sizes) != size:
        raise ShapeError(f"expected sizes that add up to {size}, got {sizes[:10]}")
    parts, start = [], 0
    for each in sizes:
        part = along(x, axis, slice(start, start + each))
        parts.append(part if kept else part.squeeze(axis))
        start += each
    return (parts,)


@operator("Optional", since=15)
def _optional(call: Call, value: Any = None) -> Any:
    return (value,)


@operator("OptionalGetElement", since=15)
def _get(call: Call, value: Any = None) -> Any:
    if value is None:
        raise GraphError("the optional value is absent")
    return (value,)


@operator("OptionalHasElement", since=15)
def _has(call: Call, value: Any = None) -> Any:
    return tensor(np.array(value is not None))
