"""The shape and dtype rules of the ops: pure functions of (op name, input shapes, input dtypes, attributes).

Every rule returns (shape, dtype) of the one output or raises ShapeError / DtypeError naming what it got.
Attributes are in normal form (cyxcore/attrs.py) with every null already replaced by the batch size.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from cyxcore.dtype import ALL, COMPLEX, FLOATS, INDICES, INEXACT, NUMBERS, REAL, complex_dtype, described, real_dtype
from cyxcore.errors import AxisError, DtypeError, ShapeError

Shape = tuple[int, ...]
Typed = tuple[Shape, str]
Attrs = Mapping[str, Any]
Rule = Callable[[str, tuple[Shape, ...], tuple[str, ...], Attrs], Typed]


def accept(op: str, dtypes: tuple[str, ...], allowed: tuple[str, ...]) -> str:
    """The one dtype all of `dtypes` share. Raises DtypeError when they differ or are not allowed."""
    for dtype in dtypes:
        if dtype not in allowed:
            raise DtypeError(f"{op}: expected {described(allowed)}, got {', '.join(dtypes)}; use astype to convert")
        if dtype != dtypes[0]:
            raise DtypeError(f"{op}: expected equal dtypes, got {', '.join(dtypes)}; use astype to convert")
    return dtypes[0]


def broadcast(op: str, *shapes: Shape) -> Shape:
    """The shape `shapes` broadcast to (NumPy's rule). Raises ShapeError when they do not."""
    result = shapes[0]
    for shape in shapes[1:]:
        if shape == result:  # nearly always
            continue
        rank = max(len(result), len(shape))
        pairs = list(zip((1,) * (rank - len(result)) + result, (1,) * (rank - len(shape)) + shape, strict=True))
        if any(a != b and a != 1 and b != 1 for a, b in pairs):
            raise ShapeError(
                f"{op}: shapes {' and '.join(map(str, shapes))} do not broadcast: sizes must be equal or 1"
            )
        result = tuple([b if a == 1 else a for a, b in pairs])
    return result


def stretches(shape: Shape, wanted: Shape) -> bool:
    """Whether one shape broadcasts to another."""
    tail = wanted[len(wanted) - len(shape) :] if len(shape) <= len(wanted) else ()
    return len(tail) == len(shape) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def check_axis(op: str, axis: int, shape: Shape) -> None:
    if not 0 <= axis < len(shape):
        raise AxisError(f"{op}: expected an axis 0..{len(shape) - 1}, got {axis} for shape {shape}")


def unary(allowed: tuple[str, ...], result: str | None = None) -> Rule:
    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        dtype = accept(op, dtypes, allowed)
        return shapes[0], result or dtype

    return rule


def magnitude(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """A real number of each element, which may be complex."""
    return shapes[0], real_dtype(accept(op, dtypes, NUMBERS))


def binary(allowed: tuple[str, ...], result: str | None = None) -> Rule:
    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        dtype = accept(op, dtypes, allowed)
        return broadcast(op, *shapes), result or dtype

    return rule


def where(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    accept(op, dtypes[:1], ("bool",))
    return broadcast(op, *shapes), accept(op, dtypes[1:], ALL)


def by_mode(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    if shapes[0] != shapes[1] or dtypes[0] != dtypes[1]:
        raise ShapeError(f"{op}: expected one shape and dtype in both modes, got {shapes} of {dtypes}")
    return shapes[0], dtypes[0]


def cast(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    if dtypes[0] in COMPLEX and attrs["dtype"] in REAL:
        raise DtypeError(f"{op}: {attrs['dtype']} cannot hold {dtypes[0]}; take real(x), imag(x) or abs(x) first")
    return shapes[0], attrs["dtype"]


def reduce(allowed: tuple[str, ...], of_empty: bool) -> Rule:
    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        shape = shapes[0]
        for axis in attrs["axes"]:
            check_axis(op, axis, shape)
            if shape[axis] == 0 and not of_empty:
                raise ShapeError(f"{op}: no {op} of an empty axis: axis {axis} of shape {shape}")
        kept = (1 if axis in attrs["axes"] else size for axis, size in enumerate(shape))
        dropped = (size for axis, size in enumerate(shape) if axis not in attrs["axes"])
        return tuple(kept if attrs["keepdims"] else dropped), accept(op, dtypes, allowed)

    return rule


def argmax(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    shape, axis = shapes[0], attrs["axis"]
    accept(op, dtypes, REAL)
    check_axis(op, axis, shape)
    if shape[axis] == 0:
        raise ShapeError(f"{op}: no {op} of an empty axis: axis {axis} of shape {shape}")
    return shape[:axis] + shape[axis + 1 :], "int64"


def along(allowed: tuple[str, ...], result: str | None = None) -> Rule:
    """One result for each element, made along an axis."""

    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        dtype = accept(op, dtypes, allowed)
        if shapes[0]:
            check_axis(op, attrs["axis"], shapes[0])
        return shapes[0], result or dtype

    return rule


def recurrence(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """Terms and factors of one shape with an axis."""
    dtype = accept(op, dtypes, INEXACT)
    check_axis(op, attrs["axis"], shapes[0])
    if shapes[0] != shapes[1]:
        raise ShapeError(f"{op}: expected terms and factors of one shape, got {shapes[0]} and {shapes[1]}")
    return shapes[0], dtype


def rfft(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """The half of a Fourier transform that says all about real numbers."""
    shape, axis = shapes[0], attrs["axis"]
    check_axis(op, axis, shape)
    return (*shape[:axis], shape[axis] // 2 + 1, *shape[axis + 1 :]), complex_dtype(
        accept(op, dtypes, ("float32", "float64"))
    )


def irfft(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    shape, axis = shapes[0], attrs["axis"]
    check_axis(op, axis, shape)
    if shape[axis] != attrs["size"] // 2 + 1:
        raise ShapeError(f"{op}: expected {attrs['size'] // 2 + 1} elements on axis {axis}, got {shape}")
    return (*shape[:axis], attrs["size"], *shape[axis + 1 :]), real_dtype(accept(op, dtypes, COMPLEX))


def searchsorted(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    accept(op, dtypes, ALL)
    if len(shapes[0]) != 1 and (not shapes[0] or shapes[0][:-1] != shapes[1][:-1]):
        raise ShapeError(f"{op}: expected a sorted vector, or rows for as many rows, got {shapes[0]} for {shapes[1]}")
    return shapes[1], "int64"


def nonzero(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """The count depends on the values: who asks has counted."""
    accept(op, dtypes, ("bool",))
    return (len(shapes[0]), attrs["count"]), "int64"


def matmul(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    a, b = shapes
    dtype = accept(op, dtypes, NUMBERS)
    if len(a) < 2 or len(b) < 2:
        raise ShapeError(f"{op}: expected (..., M, K) @ (..., K, N), got {a} @ {b}")
    rows, inner = (a[-1], a[-2]) if attrs["transpose_a"] else (a[-2], a[-1])
    other, columns = (b[-1], b[-2]) if attrs["transpose_b"] else (b[-2], b[-1])
    if inner != other:
        marks = "ᵀ" if attrs["transpose_a"] else "", "ᵀ" if attrs["transpose_b"] else ""
        raise ShapeError(
            f"{op}: expected (..., M, K) @ (..., K, N), got {a}{marks[0]} @ {b}{marks[1]}: {inner} is not {other}"
        )
    return (*broadcast(op, a[:-2], b[:-2]), rows, columns), dtype


def reshape(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    have, wanted = math.prod(shapes[0]), attrs["shape"]
    known = math.prod(size for size in wanted if size != -1)
    if -1 in wanted:
        if known == 0 or have % known:
            raise ShapeError(f"{op}: {have} elements of {shapes[0]} do not fill {wanted}: -1 would be no whole number")
        return tuple(have // known if size == -1 else size for size in wanted), dtypes[0]
    if have != known:
        raise ShapeError(f"{op}: expected {have} elements as in {shapes[0]}, got {known} in {wanted}")
    return tuple(wanted), dtypes[0]


def transpose(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    if len(attrs["axes"]) != len(shapes[0]):
        raise ShapeError(f"{op}: expected {len(shapes[0])} axes for shape {shapes[0]}, got {attrs['axes']}")
    return tuple(shapes[0][axis] for axis in attrs["axes"]), dtypes[0]


def broadcast_to(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    wanted = tuple(attrs["shape"])
    if not stretches(shapes[0], wanted):
        raise ShapeError(f"{op}: shape {shapes[0]} does not broadcast to {wanted}")
    return wanted, dtypes[0]


def slice_(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    shape = shapes[0]
    starts, stops, steps = attrs["starts"], attrs["stops"], attrs["steps"]
    if not len(starts) == len(stops) == len(steps) == len(shape):
        raise ShapeError(
            f"{op}: expected {len(shape)} starts, stops and steps for {shape}, got {starts}, {stops}, {steps}"
        )
    for axis, (start, stop, size) in enumerate(zip(starts, stops, shape, strict=True)):
        if not start <= stop <= size:
            raise ShapeError(f"{op}: expected start <= stop <= {size} on axis {axis} of {shape}, got {start}:{stop}")
    return tuple(-(-(stop - start) // step) for start, stop, step in zip(starts, stops, steps, strict=True)), dtypes[0]


def pad(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    if len(attrs["pads"]) != len(shapes[0]):
        raise ShapeError(f"{op}: expected {len(shapes[0])} (low, high) pairs for {shapes[0]}, got {attrs['pads']}")
    return tuple(size + low + high for size, (low, high) in zip(shapes[0], attrs["pads"], strict=True)), dtypes[0]


def concat(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    axis = attrs["axis"]
    for dtype in dtypes:
        if dtype != dtypes[0]:
            raise DtypeError(f"{op}: expected equal dtypes, got {', '.join(dtypes)}; use astype to convert")
    for shape in shapes:
        check_axis(op, axis, shape)
        if len(shape) != len(shapes[0]) or any(
            a != b for place, (a, b) in enumerate(zip(shape, shapes[0], strict=True)) if place != axis
        ):
            raise ShapeError(f"{op}: expected equal shapes but for axis {axis}, got {', '.join(map(str, shapes))}")
    total = sum(shape[axis] for shape in shapes)
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :]), dtypes[0]


def take(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    axis = attrs["axis"]
    accept(f"{op} indices", dtypes[1:], INDICES)
    check_axis(op, axis, shapes[0])
    return shapes[0][:axis] + shapes[1] + shapes[0][axis + 1 :], dtypes[0]


def take_grad(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    axis, rank = attrs["axis"], len(shapes[1])
    accept(op, dtypes[:1], INEXACT)
    accept(f"{op} indices", dtypes[1:], INDICES)
    if shapes[0][axis : axis + rank] != shapes[1]:
        raise ShapeError(f"{op}: expected indices {shapes[1]} at axis {axis}, got gradient {shapes[0]}")
    return (*shapes[0][:axis], attrs["size"], *shapes[0][axis + rank :]), dtypes[0]


def take_along(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    x, indices = shapes
    axis = attrs["axis"]
    accept(f"{op} indices", dtypes[1:], INDICES)
    check_axis(op, axis, x)
    if len(x) != len(indices) or x[:axis] + x[axis + 1 :] != indices[:axis] + indices[axis + 1 :]:
        raise ShapeError(f"{op}: expected equal shapes but for axis {axis}, got {x} and indices {indices}")
    return indices, dtypes[0]


def take_along_grad(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    g, indices = shapes
    accept(op, dtypes[:1], ("float32", "float64"))
    accept(f"{op} indices", dtypes[1:], INDICES)
    check_axis(op, attrs["axis"], g)
    if g != indices:
        raise ShapeError(f"{op}: expected an index for each element of the gradient {g}, got {indices}")
    return (*g[: attrs["axis"]], attrs["size"], *g[attrs["axis"] + 1 :]), dtypes[0]


def scatter(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """Rows of x (R, ...) at places (K,) put, or combined with what is there, by rows (K, ...)."""
    x, places, rows = shapes
    accept(f"{op} indices", dtypes[1:2], INDICES)
    dtype = accept(op, (dtypes[0], dtypes[2]), ALL)
    if not x or len(places) != 1 or rows != (*places, *x[1:]):
        raise ShapeError(f"{op}: expected x (R, ...), places (K,) and rows (K, ...), got {x}, {places} and {rows}")
    return x, dtype


def one_hot(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    accept(op, dtypes, INDICES)
    return (*shapes[0], attrs["depth"]), "float32"


def softmax(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """x, or the gradient of a result and that result in softmax_grad."""
    check_axis(op, attrs["axis"], shapes[0])
    if shapes[0] != shapes[-1]:
        raise ShapeError(f"{op}: expected a gradient of the result's shape {shapes[-1]}, got {shapes[0]}")
    return shapes[0], accept(op, dtypes, FLOATS)


def cross_entropy(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """(logits, labels), with the gradient of the losses before them in cross_entropy_grad."""
    logits, labels = shapes[-2:]
    accept(f"{op} labels", dtypes[-1:], INDICES)
    dtype = accept(op, dtypes[:-1], FLOATS)
    if len(logits) < 2 or labels != logits[:1] + logits[2:] or logits[1] == 0:
        raise ShapeError(f"{op}: expected logits (N, classes, ...) and labels (N, ...), got {logits} and {labels}")
    if len(shapes) == 2:
        return labels, dtype
    if shapes[0] != labels:
        raise ShapeError(f"{op}: expected a gradient of the labels' shape {labels}, got {shapes[0]}")
    return logits, dtype


def ctc_loss(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    """(log_probs, targets, input_lengths, target_lengths), with the gradient of the losses before in ctc_loss_grad."""
    log_probs, targets, *lengths = shapes[-4:]
    accept(f"{op} targets and lengths", dtypes[-3:], ("int64",))
    dtype = accept(op, dtypes[:-3], ("float32", "float64"))
    if len(log_probs) != 3 or len(targets) != 2 or any(each != log_probs[1:2] for each in (targets[:1], *lengths)):
        given = ", ".join(map(str, shapes))
        raise ShapeError(f"{op}: expected log_probs (T, N, C), targets (N, S) and two lengths (N,), got {given}")
    if not attrs["blank"] < log_probs[2]:
        raise ShapeError(f"{op}: expected a blank of 0..{log_probs[2] - 1}, got {attrs['blank']}")
    if len(shapes) == 4:
        return log_probs[1:2], dtype
    if shapes[0] != log_probs[1:2]:
        raise ShapeError(f"{op}: expected a gradient for each of {log_probs[1]} losses, got {shapes[0]}")
    return log_probs, dtype


def uniform(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    if shapes[0] != (2,) or dtypes[0] != "uint64":
        raise ShapeError(f"{op}: expected a key of shape (2,) uint64, got {shapes[0]} {dtypes[0]}")
    return tuple(attrs["shape"]), "float32"


def update(like: int, scalars: int) -> Rule:
    """An optimiser op: `like` arrays of one shape, then `scalars` 0-d arrays."""

    def rule(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        if any(shape != shapes[0] for shape in shapes[:like]) or any(shape != () for shape in shapes[like:]):
            raise ShapeError(f"{op}: expected {like} equal shapes and {scalars} scalars, got {shapes}")
        return shapes[0], accept(op, dtypes, FLOATS)

    return rule
