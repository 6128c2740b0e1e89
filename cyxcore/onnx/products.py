"""ONNX operators that are products: matrices, contractions, convolutions."""

import math
from collections.abc import Sequence
from typing import Any

from cyxcore import functional as F
from cyxcore import linalg, manipulation
from cyxcore.errors import GraphError, ShapeError
from cyxcore.onnx.movement import padded
from cyxcore.onnx.table import Call, along, operator, text
from cyxcore.values import apply


@operator("MatMul")
def _matmul(call: Call, a: Any, b: Any) -> Any:
    return a @ b


@operator("Gemm")
def _gemm(call: Call, a: Any, b: Any, c: Any = None) -> Any:
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    turned = {"transpose_a": bool(call.attr("transA", 0)), "transpose_b": bool(call.attr("transB", 0))}
    result = apply("matmul", a, b, **turned)
    if alpha != 1.0:
        result = result * a._constant(alpha, a.dtype)
    if c is None or beta == 0.0:
        return result
    return result + (c if beta == 1.0 else c * a._constant(beta, a.dtype))


@operator("Det", since=11, limits="in a graph (runs on tensors)")
def _det(call: Call, x: Any) -> Any:
    return linalg.det(x)


@operator("Einsum", since=12)
def _einsum(call: Call, *values: Any) -> Any:
    """Two operands at a time: letters both have and the result wants are rows, those it does not are added up."""
    equation = text(call.needs("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(values):
        raise GraphError(f"the equation {equation[:60]!r} takes {len(terms)} inputs, got {len(values)}")
    dots = max(
        (value.ndim - len(term.replace("...", "")) for term, value in zip(terms, values, strict=True) if "..." in term),
        default=0,
    )
    spare = [chr(0x2460 + place) for place in range(dots)]  # letters for the axes of "..."
    named = []
    for term, value in zip(terms, values, strict=True):
        own = value.ndim - len(term.replace("...", ""))
        named.append(term.replace("...", "".join(spare[dots - own :])))
    if arrow:
        wanted = right.replace("...", "".join(spare))
    else:
        letters = "".join(named)
        wanted = "".join(spare) + "".join(sorted(c for c in set(letters) - set(spare) if letters.count(c) == 1))
    operands = [_diagonals(value, term) for term, value in zip(named, values, strict=True)]
    value, term = operands[0]
    for place, (other, other_term) in enumerate(operands[1:], 1):
        later = wanted + "".join(t for _, t in operands[place + 1 :])
        value, term = _contract(value, term, other, other_term, later)
    gone = tuple(place for place, letter in enumerate(term) if letter not in wanted)
    if gone:
        value, term = apply("sum", value, axes=gone, keepdims=False), "".join(c for c in term if c in wanted)
    return value.permute(*(term.index(c) for c in wanted)) if term != wanted else value


def _diagonals(value: Any, term: str) -> tuple[Any, str]:
    """A letter that stands twice in one term means the diagonal."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            first = term.index(letter)
            second = term.index(letter, first + 1)
            order = [p for p in range(len(term)) if p not in (first, second)] + [first, second]
            value = linalg.diagonal(value.permute(*order))
            term = "".join(term[p] for p in order[:-1])
    return value, term


def _contract(a: Any, left: str, b: Any, right: str, later: str) -> tuple[Any, str]:
    rows = [c for c in left if c in right and c in later]
    summed = [c for c in left if c in right and c not in later]
    only_a, only_b = [c for c in left if c not in right], [c for c in right if c not in left]
    sizes = dict(zip(left, a.shape, strict=True))
    for letter, size in zip(right, b.shape, strict=True):
        if sizes.get(letter, size) not in (size, 1) and size != 1:
            raise ShapeError(f"the letter {letter} is {sizes[letter]} and {size}")
        sizes[letter] = max(sizes.get(letter, 1), size)

    def laid(value: Any, term: str, order: Sequence[str], groups: Sequence[Sequence[str]]) -> Any:
        moved = value.permute(*(term.index(c) for c in order)) if list(term) != list(order) else value
        moved = moved.broadcast_to(*(sizes[c] for c in order))
        return moved.reshape(*(math.prod(sizes[c] for c in group) for group in groups))

    x = laid(a, left, [*rows, *only_a, *summed], [rows, only_a, summed])
    y = laid(b, right, [*rows, *summed, *only_b], [rows, summed, only_b])
    term = [*rows, *only_a, *only_b]
    return apply("matmul", x, y).reshape(*(sizes[c] for c in term)), "".join(term)


# convolutions -------------------------------------------------------------------------------------


def window_pads(
    call: Call, sizes: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """(strides, dilations, pads before, pads after) of a window operator, auto_pad resolved."""
    rank = len(sizes)
    strides, spread = call.attr("strides") or [1] * rank, call.attr("dilations") or [1] * rank
    pads = call.attr("pads") or [0] * 2 * rank
    if not len(strides) == len(spread) == len(kernel) == rank or len(pads) != 2 * rank:
        raise ShapeError(f"expected strides, dilations and pads for {rank} axes, got {strides}, {spread}, {pads}")
    if min(*strides, *spread, *kernel) < 1 or math.prod(kernel) > 65_536:
        raise ShapeError(
            f"expected positive strides and dilations and a small kernel, got {strides}, {spread}, {kernel}"
        )
    auto = text(call.attr("auto_pad", "NOTSET"))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        low, high = [], []
        for size, k, s, d in zip(sizes, kernel, strides, spread, strict=True):
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            low.append(small if auto == "SAME_UPPER" else large)
            high.append(large if auto == "SAME_UPPER" else small)
        return strides, spread, low, high
    if auto == "VALID":
        return strides, spread, [0] * rank, [0] * rank
    if min(pads) < 0:
        raise ShapeError(f"expected pads >= 0, got {pads}")
    return strides, spread, pads[:rank], pads[rank:]


def conv(call: Call, x: Any, w: Any) -> Any:
    """Of one to three axes. Pads that differ on the two sides become zeros around x."""
    rank, groups = x.ndim - 2, call.attr("group", 1)
    if not 1 <= rank <= 3 or w.ndim != x.ndim:
        raise GraphError(f"a convolution of x {x.shape} and w {w.shape} is not supported; 1 to 3 axes are")
    strides, spread, low, high = window_pads(call, x.shape[2:], w.shape[2:])
    if low != high:
        for axis, (before, after) in enumerate(zip(low, high, strict=True), 2):
            x = padded(x, axis, before, after, 0.0)
        low = [0] * rank
    functions: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    options = [tuple(part) if rank > 1 else part[0] for part in (strides, low, spread)]
    return functions[rank](x, w, None, *options, groups)


def with_bias(result: Any, bias: Any) -> Any:
    return result if bias is None else result + bias.reshape(1, -1, *(1,) * (result.ndim - 2))


@operator("Conv")
def _conv(call: Call, x: Any, w: Any, bias: Any = None) -> Any:
    return with_bias(conv(call, x, w), bias)


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Any, w: Any, bias: Any = None) -> Any:
    """Whole, then cut to size: pads may differ on the two sides, and output_shape says them by itself."""
    rank, groups = x.ndim - 2, call.attr("group", 1)
    if not 1 <= rank <= 3 or w.ndim != x.ndim:
        raise GraphError(f"a transposed convolution of x {x.shape} and w {w.shape} is not supported")
    strides, spread = call.attr("strides") or [1] * rank, call.attr("dilations") or [1] * rank
    extra, pads = call.attr("output_padding") or [0] * rank, call.attr("pads") or [0] * 2 * rank
    whole = [
        (size - 1) * s + d * (k - 1) + 1
        for size, s, d, k in zip(x.shape[2:], strides, spread, w.shape[2:], strict=True)
    ]
    auto, wanted = text(call.attr("auto_pad", "NOTSET")), call.attr("output_shape")
    if auto in ("SAME_UPPER", "SAME_LOWER") and wanted is None:
        wanted = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        totals = [max(0, size + e - out) for size, e, out in zip(whole, extra, wanted, strict=True)]
        halves = [total // 2 for total in totals]
        others = [total - half for total, half in zip(totals, halves, strict=True)]
        low, high = (halves, others) if auto == "SAME_UPPER" else (others, halves)
    else:
        low, high = pads[:rank], pads[rank:]
    outputs = wanted or [size + e - a - b for size, e, a, b in zip(whole, extra, low, high, strict=True)]
    result = _spread_out(x, w, strides, spread, groups, whole)
    for axis, (size, before) in enumerate(zip(outputs, low, strict=True), 2):
        have = result.shape[axis]
        if before + size > have:
            result = padded(result, axis, 0, before + size - have, 0.0)
        result = along(result, axis, slice(before, before + size))
    return with_bias(result, bias)


def _spread_out(x: Any, w: Any, strides: Any, spread: Any, groups: int, whole: Sequence[int]) -> Any:
    """The transposed convolution without pads: of three axes as a convolution of x with zeros between its elements."""
    rank = x.ndim - 2
    if rank == 1:
        return F.conv_transpose1d(x, w, None, strides[0], 0, 0, groups, spread[0])
    if rank == 2:
        return F.conv_transpose2d(x, w, None, tuple(strides), 0, 0, groups, tuple(spread))
    for axis, s in enumerate(strides, 2):
        if s > 1:
            apart = x.expand_dims(axis + 1)
            apart = padded(apart, axis + 1, 0, s - 1, 0.0)
            shape = (*x.shape[:axis], x.shape[axis] * s, *x.shape[axis + 1 :])
            x = along(apart.reshape(*shape), axis, slice(0, shape[axis] - s + 1))
    channels, each = w.shape[0] // groups, w.shape[1]
    turned = manipulation.flip(w, axis=(2, 3, 4)).reshape(groups, channels, each, *w.shape[2:])
    turned = turned.transpose(0, 2, 1, 3, 4, 5).reshape(groups * each, channels, *w.shape[2:])
    margins = tuple(d * (k - 1) for d, k in zip(spread, w.shape[2:], strict=True))
    return F.conv3d(x, turned, None, 1, margins, tuple(spread), groups)
