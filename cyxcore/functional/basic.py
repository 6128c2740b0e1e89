"""The functions others are made of: products, pooling, dropout, and choosing and joining."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore.attrs import is_whole
from cyxcore.casting import as_given, composed_of_halves, current, in_float32, inside
from cyxcore.dtype import DEFAULTS, result_type
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.infer import broadcast
from cyxcore.values import TracedMode, Value, apply, binary, by_mode, composed, together

Pair = int | tuple[int, int]
# Where what lies at a place outside of an axis is taken from. place, count -> place inside.
BORDERS: dict[str, Callable[[int, int], int]] = {
    "reflect": lambda place, count: -place if place < 0 else 2 * (count - 1) - place if place >= count else place,
    "replicate": lambda place, count: min(max(place, 0), count - 1),
    "circular": lambda place, count: place % count,
}


def numbers(value: Any, count: int) -> tuple[int, ...]:
    """A number as so many, or so many as they are. Raises SpecError for another count."""
    if hasattr(value, "__index__"):  # isinstance takes 10 microseconds where the answer is no
        return (operator.index(value),) * count
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(given) != count or not all(hasattr(each, "__index__") for each in given):
        raise SpecError(f"expected one whole number or {count}, got {value!r}")
    return tuple(operator.index(each) for each in given)


def pair(value: Any) -> tuple[int, int]:
    """A number as two, or two as they are. Raises SpecError for another count."""
    if type(value) is int:
        return value, value
    first, second = numbers(value, 2)
    return first, second


def padded_like(name: str, x: Any, padding: Any, kernel: Sequence[int], stride: Any, dilation: Any) -> tuple[Any, Any]:
    """(x, the padding that is left): "valid" is none, "same" keeps the sizes of x, whose border grows where the two
    sides differ."""
    count = len(kernel)
    if padding == "valid":
        return x, (0,) * count
    if padding != "same":
        if isinstance(padding, str):
            raise SpecError(f"{name}: expected padding valid, same or numbers, got {padding!r}")
        return x, numbers(padding, count)
    if any(step != 1 for step in numbers(stride, count)):
        raise SpecError(f"{name}: padding same keeps the sizes, which a stride of {stride} does not")
    whole = [step * (size - 1) for step, size in zip(numbers(dilation, count), kernel, strict=True)]
    if any(each % 2 for each in whole):
        x = pad(x, [(0, 0)] * (x.ndim - count) + [(0, each % 2) for each in whole])
    return x, tuple(each // 2 for each in whole)


def _axis(x: Value, axis: int) -> int:
    return x._axis(axis)


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x @ weight.T + bias. x: (..., in), weight: (out, in), bias: (out,). Returns (..., out)."""
    if x.ndim < 1 or x.shape[-1] != weight.shape[-1]:
        raise ShapeError(f"linear: expected x (..., {weight.shape[-1]}) for weight {weight.shape}, got {x.shape}")
    if inside[0] and (half := current()) is not None:
        return x._in_halves(_linear, (x, weight, bias), (), half)
    return composed(_linear, (x, weight, bias), ())


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    rows = x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    result = apply("matmul", rows, weight, transpose_b=True)
    if bias is not None:
        result = result + bias
    return result if x.ndim == 2 else result.reshape(*x.shape[:-1], weight.shape[0])


@as_given
def bilinear(a: Any, b: Any, weight: Any, bias: Any = None) -> Any:
    """a[i] weight[o, i, j] b[j]. a: (..., I), b: (..., J), weight: (O, I, J), bias: (O,). Returns (..., O)."""
    if a.shape[:-1] != b.shape[:-1] or weight.shape[1:] != (a.shape[-1], b.shape[-1]):
        raise ShapeError(
            f"bilinear: expected (..., I), (..., J), weight (O, I, J), got {a.shape}, {b.shape}, {weight.shape}"
        )
    outer = (a.expand_dims(-1) * b.expand_dims(-2)).reshape(*a.shape[:-1], a.shape[-1] * b.shape[-1])
    return linear(outer, weight.reshape(weight.shape[0], -1), bias)


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Any:
    """Cross-correlation. x: (N, C, H, W), weight: (O, C/groups, KH, KW), bias: (O,). padding: numbers, "valid", "same".

    Returns (N, O, H', W'); of an x (C, H, W) without a batch (O, H', W').
    """
    if len(x.shape) == 3:
        return conv2d(x.expand_dims(0), weight, bias, stride, padding, dilation, groups).squeeze(0)
    if type(padding) is str:
        x, padding = padded_like("conv2d", x, padding, weight.shape[2:], stride, dilation)
    steps = (pair(stride), pair(padding), pair(dilation), groups)
    if inside[0] and (half := current()) is not None:
        return x._in_halves(_conv2d, (x, weight, bias), steps, half)
    return _conv2d(x, weight, None, *steps) if bias is None else composed(_conv2d, (x, weight, bias), steps)


def _conv2d(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    result = apply("conv2d", x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)


def overwritten(x: Any, function: Callable[..., Any], *options: Any) -> Any:
    """function(x, *options) written into x, as PyTorch's inplace=True does; x itself.

    Raises GradientError for a leaf that requires a gradient, GraphError for an argument of a compiled function.
    """
    name = function.__name__.lstrip("_")
    return x._in_place(f"{name}: inplace", lambda value, _: function(value, *options), None, ())


def relu(x: Any, inplace: bool = False) -> Any:
    """max(x, 0). inplace: see overwritten."""
    return x._in_place("relu: inplace", lambda value, _: value.relu(), None) if inplace else x.relu()


def tanh(x: Any) -> Any:
    """The hyperbolic tangent of each element."""
    return x.tanh()


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return x.sigmoid()


def softmax(x: Any, dim: int = -1, *, dtype: Any = None) -> Any:
    """exp(x) / sum(exp(x)) along an axis. dtype: what x is made before."""
    x = x if dtype is None else x.astype(dtype)
    return _by_rows("softmax", x, dim)


def log_softmax(x: Any, dim: int = -1, *, dtype: Any = None) -> Any:
    """The logarithm of softmax along an axis. dtype: what x is made before."""
    x = x if dtype is None else x.astype(dtype)
    return _by_rows("log_softmax", x, dim)


def _by_rows(op: str, x: Any, dim: int) -> Any:
    axis = _axis(x, dim)
    if inside[0] and composed_of_halves(x):
        return apply(op, x.astype("float32"), axis=axis).astype(x.dtype)
    return apply(op, x, axis=axis)


def gumbel_softmax(logits: Any, tau: float = 1.0, hard: bool = False, dim: int = -1) -> Any:
    """softmax((logits + Gumbel noise) / tau); hard: one-hot, with the gradient of the soft one. Jang et al. 2017."""
    if tau <= 0.0:
        raise SpecError(f"gumbel_softmax: expected tau above 0, got {tau}")
    drawn = logits._uniform(logits.shape)
    # Not 0, whose logarithm is infinite; a sum instead of the larger one would round up to 1, which is no better.
    noise = -(-apply("maximum", drawn, drawn._constant(2.0**-25, drawn.dtype)).log()).log()
    soft = softmax((logits + noise.astype(logits.dtype)) / tau, dim)
    if not hard:
        return soft
    axis = soft._axis(dim)
    places = soft._constant(range(soft.shape[axis]), "int64")
    best = soft.argmax(axis, keepdims=True) == places.reshape(-1, *(1,) * (soft.ndim - axis - 1))  # the first of equals
    return best.astype(soft.dtype) + (soft - soft.detach())


def dropout(x: Any, p: float = 0.5, training: bool | TracedMode = True, inplace: bool = False) -> Any:
    """In training each element is zero with probability p and x / (1 - p) otherwise. inplace: see overwritten."""
    if not 0.0 <= p <= 1.0:
        raise SpecError(f"dropout: expected a probability 0 <= p <= 1, got {p}")
    if p == 0.0:
        return x
    if inplace and training is not False:
        return overwritten(x, dropout, p, training)
    if p == 1.0:
        return by_mode(training, lambda: x * 0.0, lambda: x)
    return by_mode(training, lambda: dropped(x, x._uniform(x.shape), p), lambda: x)


def dropped(x: Any, drawn: Any, p: float) -> Any:
    """x with zeros where `drawn` numbers of [0, 1) are less than p < 1, and x / (1 - p) elsewhere."""
    return x * ((drawn >= p).astype(x.dtype) * (1.0 / (1.0 - p)))


def channel_dropout(x: Any, p: float = 0.5, training: bool | TracedMode = True) -> Any:
    """dropout() of whole channels of x (N, C, ...)."""
    kept = dropout(x._constant(1.0, x.dtype).broadcast_to(*x.shape[:2], *(1,) * (x.ndim - 2)), p, training)
    return x * kept


def one_hot(indices: Any, num_classes: int = -1) -> Any:
    """1 in the place of each index, 0 elsewhere, as float32. -1: as many classes as the largest index says."""
    if num_classes == -1:
        num_classes = int(indices.max().item()) + 1
    return apply("one_hot", indices.astype("int64"), depth=num_classes)


def clip_scale(squares: Any, max_norm: float) -> Any:
    """What gradients are multiplied with so that their 2-norm is at most max_norm.

    squares: the sum of squares of each gradient.
    """
    return minimum(max_norm / (total_norm(squares) + 1e-6), 1.0)


def total_norm(squares: Any) -> Any:
    """The 2-norm of arrays together. squares: the sum of squares of each."""
    total = squares[0]
    for each in squares[1:]:
        total = total + each
    return total.sqrt()


def where(condition: Any, x1: Any = None, x2: Any = None, /) -> Any:
    """x1 where condition holds, else x2 (numbers allowed); of a condition alone the places where it does."""
    if x1 is None and x2 is None:
        return condition.nonzero(as_tuple=True)
    if x1 is None or x2 is None:
        raise DtypeError("where: expected a condition with both x1 and x2, or alone; got it with one of them")
    left, right = together(x1, x2) if isinstance(x1, Value) or isinstance(x2, Value) else (x1, x2)
    if not isinstance(left, Value):
        dtype = result_type(*(DEFAULTS[type(number)] for number in (x1, x2)))
        left, right = condition._constant(x1, dtype), condition._constant(x2, dtype)
    return apply("where", condition, left, right)


def maximum(x: Any, /, other: Any) -> Any:
    """The larger of both, broadcast; NaN where one is NaN. Of bools logical_or."""
    return binary("maximum", x, other)


def minimum(x: Any, /, other: Any) -> Any:
    """The smaller of both, broadcast; NaN where one is NaN. Of bools logical_and."""
    return binary("minimum", x, other)


def concat(arrays: Any, /, axis: int | None = 0, *, dim: int | None = None) -> Any:
    """Tensors joined along an axis they already have; flattened first where it is None. dim: PyTorch's word for it."""
    axis = axis if dim is None else dim
    values = together(*arrays)
    if axis is None:
        return concat([value.reshape(-1) for value in values])
    return apply("concat", *values, axis=values[0]._axis(axis))


def stack(arrays: Any, /, axis: int = 0, *, dim: int | None = None) -> Any:
    """Tensors of one shape joined along a new axis; `dim` is PyTorch's word for it."""
    axis = axis if dim is None else dim
    shapes = [value.shape for value in arrays]
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"stack: expected equal shapes, got {', '.join(map(str, shapes))}")
    rows = [value.expand_dims(axis) for value in arrays]
    return concat(rows, axis % rows[0].ndim)


def looked_up(x: Any, places: Sequence[int], axis: int) -> Any:
    """The elements of x at known places of an axis, 0-based."""
    return apply("take", x, x._constant(list(places), "int64"), axis=axis)


def pad(x: Any, pads: Any, mode: str = "constant", value: float = 0.0) -> Any:
    """x with a border. pads: a (low, high) pair per axis; or torch's numbers: low and high of the last axis, then of
    the one before, ….

    mode: constant (of `value`; negative sizes cut off), reflect (the edge is not repeated), replicate (the edge is),
    circular (the other end). Raises SpecError for sizes or a mode that cannot be.
    """
    sides = _sides(x, list(pads))
    if mode == "constant":
        for axis, (low, high) in enumerate(sides):
            if low < 0 or high < 0:
                x = x[(*(slice(None),) * axis, slice(max(-low, 0), max(x.shape[axis] - max(-high, 0), 0)))]
        grown = tuple((max(low, 0), max(high, 0)) for low, high in sides)
        if math.isfinite(value):
            return apply("pad", x, pads=grown, value=float(value))
        inside = apply("pad", x._constant(1.0, "float32").broadcast_to(*x.shape), pads=grown, value=0.0) > 0.5
        return where(inside, apply("pad", x, pads=grown, value=0.0), x._constant(float(value), x.dtype))
    if mode not in BORDERS:
        raise SpecError(f"pad: expected mode constant, {', '.join(BORDERS)}, got {mode!r}")
    return _bordered(x, mode, sides) if mode == "circular" else _mirrored(x, mode, sides)


@in_float32
def _mirrored(x: Any, mode: str, sides: list[tuple[int, int]]) -> Any:
    return _bordered(x, mode, sides)


def _bordered(x: Any, mode: str, sides: list[tuple[int, int]]) -> Any:
    """x with a border of what is in it."""
    for axis, (low, high) in enumerate(sides):
        count = x.shape[axis]
        most = {"reflect": max(count - 1, 0), "circular": count, "replicate": 2**31 if count else 0}[mode]
        if not (0 <= low <= most and 0 <= high <= most):
            raise SpecError(f"pad: {mode} takes 0 to {most} along axis {axis} of x {x.shape}, got {low} and {high}")
        before, after = (
            [looked_up(x, [BORDERS[mode](place, count) for place in side], axis)] if side else []
            for side in (range(-low, 0), range(count, count + high))
        )
        x = concat([*before, x, *after], axis) if before or after else x
    return x


def _sides(x: Any, pads: list[Any]) -> list[tuple[int, int]]:
    if all(map(is_whole, pads)):
        if len(pads) % 2 or len(pads) > 2 * x.ndim:
            raise SpecError(f"pad: expected two numbers for each of at most {x.ndim} axes, got {tuple(pads)}")
        given = [(low, high) for low, high in zip(pads[::2], pads[1::2], strict=True)]
        return [(0, 0)] * (x.ndim - len(given)) + given[::-1]
    return [(int(low), int(high)) for low, high in pads]


def take_along_axis(x: Any, indices: Any, /, axis: int = -1) -> Any:
    """The elements of x each index names along an axis. The other axes broadcast."""
    place = x._axis(axis)
    if x.ndim == indices.ndim:
        others = [(*v.shape[:place], 1, *v.shape[place + 1 :]) for v in (x, indices)]
        shape = broadcast("take_along_axis", *others)
        x, indices = (v.broadcast_to(*shape[:place], v.shape[place], *shape[place + 1 :]) for v in (x, indices))
    return apply("take_along", x, x._check_indices(indices.astype("int64"), x.shape[place]), axis=place)
