"""The gradient of every op, as ops: one rule per row, used by graphs and by tensors alike.

A rule takes (g, inputs, output, attrs), g being the gradient of the output, and returns one
gradient (or None) per input. Broadcast inputs are reduced back by the caller (`fit`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from cyxcore import casting, matrixgradients
from cyxcore.dtype import COMPLEX, INEXACT, is_float
from cyxcore.elementwise import conj, real
from cyxcore.errors import GradientError
from cyxcore.functional.pooling import largest_of
from cyxcore.graph import Node
from cyxcore.indexing import spread
from cyxcore.ops import OWN_GRADIENT
from cyxcore.symbols import Builder, Symbol
from cyxcore.values import apply, is_made_here

Rule = Callable[[Any, Sequence[Any], Any, Mapping[str, Any]], Sequence[Any]]

RULES: dict[str, Rule] = dict(matrixgradients.RULES)

# Rules whose gradients do not share a computation have one for each input, without the output: what nobody asks for is
# not computed.
BY_INPUT: dict[str, tuple[Callable[[Any, Sequence[Any], Mapping[str, Any]], Any], ...]] = {}

# Ops that are constant almost everywhere, give no floats, or stand at the end of a backward pass.
NO_GRADIENT = frozenset(
    "input param const key detach sign floor logical_not equal not_equal less less_equal greater "
    "greater_equal logical_and "
    "logical_or argmax one_hot uniform sgd_update momentum "
    "nesterov_update "
    "all any argmin cumulative_argmax cumulative_argmin argsort searchsorted nonzero scatter "
    "ceil trunc round signbit nextafter floor_divide integer_pow lgamma digamma trigamma erfinv "
    "bitwise_and bitwise_or bitwise_xor bitwise_invert bitwise_left_shift bitwise_right_shift "
    "axpy_update adam_m adam_v adam_update".split()
)


# (Those of lgamma, digamma, trigamma and erfinv are said where the functions are: special.py.)

# The gradient with respect to a complex z is dL/d(real z) + i dL/d(imag z), as in PyTorch and JAX. A rule that is right
# for real numbers and holomorphic gives it when g and what it returns are conjugated. These need none of it: rules that
# only move and add, and those that say themselves what they do with complex numbers.
KNOW_COMPLEX = (
    frozenset(
        "reshape transpose broadcast_to slice pad concat take take_grad take_along take_along_grad flip neg add sub "
        "where sum mean cumulative_sum cast by_mode abs conj real imag fft ifft rfft irfft host_call".split()
    )
    | {OWN_GRADIENT}
    | frozenset(matrixgradients.RULES)
)


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def fit(g: Any, shape: tuple[int, ...]) -> Any:
    """The gradient of a broadcast: g summed over the axes in which `shape` was stretched."""
    if g.shape == shape:
        return g
    axes = _stretched_axes(g.shape, shape)
    return (apply("sum", g, axes=axes, keepdims=False) if axes else g).reshape(*shape)


@lru_cache(4096)
def _stretched_axes(wide: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of `wide` in which `shape` was stretched."""
    extra = len(wide) - len(shape)
    return tuple(axis for axis, size in enumerate(wide) if axis < extra or shape[axis - extra] == 1 and size != 1)


class Piece(NamedTuple):
    """A gradient that is 0 outside a box: what a slice gives back."""

    g: Any
    starts: tuple[int, ...]
    stops: tuple[int, ...]

    def padded(self, shape: tuple[int, ...]) -> Any:
        pads = tuple((start, size - stop) for start, stop, size in zip(self.starts, self.stops, shape, strict=True))
        return apply("pad", self.g, pads=pads)


class Sum:
    """The gradient of one value while contributions come in. Pieces that tile it are joined, not padded and added."""

    def __init__(self) -> None:
        self._whole: Any = None
        self._pieces: list[Piece] = []

    def add(self, new: Any) -> None:
        if isinstance(new, Piece):
            self._pieces.append(new)
        else:
            self._whole = new if self._whole is None else self._whole + new

    @property
    def whole(self) -> Any:
        """What came but for pieces."""
        return self._whole

    @property
    def pieces(self) -> list[Piece]:
        return self._pieces

    def replace(self, whole: Any) -> None:
        """Another sum of what came but for pieces."""
        self._whole = whole

    def value(self, shape: tuple[int, ...]) -> Any:
        if not self._pieces:
            return self._whole
        joined = _joined(self._pieces, shape)
        return joined if self._whole is None else self._whole + joined


def _joined(pieces: list[Piece], shape: tuple[int, ...]) -> Any:
    """The sum of pieces: a concatenation where they lie next to each other along one axis and leave nothing out."""
    cut = [axis for axis, size in enumerate(shape) if any(p.stops[axis] - p.starts[axis] != size for p in pieces)]
    if len(cut) == 1 and len(pieces) > 1:
        row = sorted(pieces, key=lambda piece: piece.starts[cut[0]])
        edges = [0, *(piece.stops[cut[0]] for piece in row)]
        if [piece.starts[cut[0]] for piece in row] == edges[:-1] and edges[-1] == shape[cut[0]]:
            return apply("concat", *(piece.g for piece in row), axis=cut[0])
    total = pieces[0].padded(shape)
    for piece in pieces[1:]:
        total = total + piece.padded(shape)
    return total


def input_gradients(
    op: str,
    g: Any,
    inputs: Sequence[Any],
    output: Any,
    attrs: Mapping[str, Any],
    wanted: Sequence[bool] | None = None,
) -> list[Any]:
    """The gradient of each input: of that input's shape, or a Piece of it; None where there is none.

    wanted: of which inputs somebody asks; others may be None. Raises GradientError.
    """
    if casting.current() is not None:  # dtypes were chosen on the way there
        with casting.of_thread(None):
            return input_gradients(op, g, inputs, output, attrs, wanted)
    if op in NO_GRADIENT:
        raise GradientError(f"{op}: has no gradient; use detach() on its input, or another operation")
    if output.dtype in COMPLEX and op not in KNOW_COMPLEX:
        found: Sequence[Any] = [
            None if new is None else conj(new) for new in _by_rule(op, conj(g), inputs, output, attrs, wanted)
        ]
    else:
        found = _by_rule(op, g, inputs, output, attrs, wanted)
    return [
        new if new is None or isinstance(new, Piece) or new.shape == x.shape else fit(new, x.shape)
        for new, x in zip(found, inputs, strict=True)
    ]


def _by_rule(
    op: str,
    g: Any,
    inputs: Sequence[Any],
    output: Any,
    attrs: Mapping[str, Any],
    wanted: Sequence[bool] | None,
) -> Sequence[Any]:
    alone = BY_INPUT.get(op)
    if alone is None:
        return RULES[op](g, inputs, output, attrs)
    return [one(g, inputs, attrs) if wanted is None or wanted[place] else None for place, one in enumerate(alone)]


def backward(builder: Builder, loss: Symbol, wanted: Sequence[Symbol]) -> list[Symbol]:
    """The gradients of a scalar loss with respect to `wanted`, as new nodes of the builder.

    A value the loss does not depend on gets zeros. Raises GradientError for a loss that is no float scalar.
    """
    return [
        builder.constant(0.0, x.dtype).broadcast_to(x.shape) if gradient is None else gradient
        for x, gradient in zip(wanted, reached(builder, loss, wanted), strict=True)
    ]


def reached(builder: Builder, loss: Symbol, wanted: Sequence[Symbol]) -> list[Symbol | None]:
    """As backward(), but None for a value the loss does not depend on."""
    if loss.size != 1 or not is_float(loss.dtype):
        raise GradientError(f"backward: expected a float scalar, got {loss.shape} {loss.dtype}; reduce it with mean()")
    one = builder.constant(1.0, loss.dtype)
    return totals(builder, loss, one if loss.shape == () else one.reshape(*loss.shape), wanted, {})


def _dependents(builder: Builder, homes: set[int], nodes: Sequence[Node]) -> set[int]:
    """Of the nodes those whose gradients go on to one of these."""
    depends = set(homes)
    for place, node in enumerate(nodes):
        if builder.written.get(place) in depends:
            depends.add(place)
        elif node.op not in NO_GRADIENT and any(source in depends for source in node.inputs):
            depends.add(place)
    return depends


def check_ends_here(builder: Builder, name: str, before: Iterable[Symbol], after: Iterable[Symbol]) -> None:
    """Of state that a compiled step assigns: what it was before, and is afterwards.

    Raises GradientError where a tensor would hand gradients on from each step to those before it.
    """
    read = _dependents(builder, {symbol.home for symbol in before}, builder.nodes)
    if builder.walked.isdisjoint(read):
        return
    if any(value.requires_grad for value in {value.node: value for value in after}.values()):
        raise GradientError(
            f"compile: the step assigns {name!r} a value that has a gradient, and computes its loss with what the step "
            "before it assigned: of that nothing is kept to go back through; assign value.detach()"
        )


def totals(
    builder: Builder, output: Symbol, gradient: Symbol, wanted: Sequence[Symbol], so_far: Mapping[int, Symbol]
) -> list[Symbol | None]:
    """The gradients with respect to `wanted` for one of the output. so_far: of nodes, what theirs are added to."""
    nodes = builder.nodes[: output.node + 1]
    builder.walked.add(output.node)
    depends = _dependents(builder, {value.home for value in wanted}, nodes)
    sums: dict[int, Sum] = {place: Sum() for place in (*so_far, output.node)}
    for place, own in (*so_far.items(), (output.node, gradient)):
        sums[place].add(own)
    kept = {value.home for value in wanted}
    gradients: dict[int, Symbol] = {}
    for place in range(output.node, -1, -1):
        node = nodes[place]
        if place not in depends or place not in sums:
            continue
        builder.layer = node.layer
        own = sums.pop(place).value(builder.shapes[place])
        if place in kept:
            gradients[place] = own
        if (before := builder.written.get(place)) in depends:
            sums.setdefault(before, Sum()).add(own)
        if not node.inputs or node.op in NO_GRADIENT:  # the latter is wanted itself
            continue
        inputs = [Symbol(builder, source) for source in node.inputs]
        for x, g in zip(
            inputs,
            input_gradients(node.op, own, inputs, Symbol(builder, place), node.attrs),
            strict=True,
        ):
            if g is not None and x.node in depends:
                sums.setdefault(x.node, Sum()).add(g)
    builder.layer = ""
    return [gradients.get(x.home) for x in wanted]


# element-wise -------------------------------------------------------------------------------------

RULES["neg"] = lambda g, x, y, a: (-g,)
RULES["abs"] = lambda g, x, y, a: (g.astype(x[0].dtype) * x[0].sign(),)
RULES["conj"] = lambda g, x, y, a: (conj(g),)
RULES["real"] = lambda g, x, y, a: (g.astype(x[0].dtype),)
RULES["imag"] = lambda g, x, y, a: (g.astype(x[0].dtype) * (1j if x[0].dtype in COMPLEX else 0.0),)
RULES["exp"] = lambda g, x, y, a: (g * y,)
RULES["log"] = lambda g, x, y, a: (g / x[0],)
RULES["sqrt"] = lambda g, x, y, a: (g * 0.5 / y,)
RULES["tanh"] = lambda g, x, y, a: (g * (1.0 - y * y),)
RULES["sigmoid"] = lambda g, x, y, a: (g * (y * (1.0 - y)),)
RULES["relu"] = lambda g, x, y, a: (g * (y > 0).astype(g.dtype),)
RULES["erf"] = lambda g, x, y, a: (g * ((-(x[0] * x[0])).exp() * (2.0 / math.sqrt(math.pi))),)
RULES["erfc"] = lambda g, x, y, a: (g * ((-(x[0] * x[0])).exp() * (-2.0 / math.sqrt(math.pi))),)
RULES["ndtr"] = lambda g, x, y, a: (g * _normal_density(x[0]),)
RULES["gelu"] = lambda g, x, y, a: (apply("gelu_grad", g, x[0]),)
RULES["softplus"] = lambda g, x, y, a: (apply("softplus_grad", g, x[0]),)
RULES["square"] = lambda g, x, y, a: (g * 2.0 * x[0],)
RULES["sin"] = lambda g, x, y, a: (g * x[0].cos(),)
RULES["cos"] = lambda g, x, y, a: (-(g * x[0].sin()),)
RULES["add"] = lambda g, x, y, a: (g, g)
BY_INPUT["sub"] = (lambda g, x, a: g, lambda g, x, a: -fit(g, x[1].shape))
BY_INPUT["mul"] = (lambda g, x, a: g * x[1], lambda g, x, a: g * x[0])
RULES["by_mode"] = lambda g, x, y, a: (_in_mode(g, 0), _in_mode(g, 1))


def _normal_density(x: Any) -> Any:
    return (x * x * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))


@rule("cast")
def _cast(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    if x[0].dtype not in INEXACT:
        return (None,)
    if g.dtype in COMPLEX and is_float(x[0].dtype):
        g = real(g)
    return (g.astype(x[0].dtype),)


def _in_mode(g: Any, place: int) -> Any:
    raise GradientError("by_mode: gradients are taken after a mode is chosen; embed the graph with training=True first")


# Sums over exp(-+2 pi i jk/n) without a factor: the matrix is symmetric, its conjugate is that of the other one.
RULES["fft"] = lambda g, x, y, a: (apply("ifft", g, axis=a["axis"]),)
RULES["ifft"] = lambda g, x, y, a: (apply("fft", g, axis=a["axis"]),)


def _along(value: Any, axis: int, numbers: Sequence[float]) -> Any:
    """value times a number for each place of an axis."""
    shape = (1,) * axis + (len(numbers),) + (1,) * (value.ndim - axis - 1)
    return value * value._constant(list(numbers), value.dtype).reshape(*shape)


@rule("rfft")
def _rfft(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Half of the places are not there: their gradient is 0."""
    axis, size = attrs["axis"], x[0].shape[attrs["axis"]]
    missing = size - g.shape[axis]
    pads = tuple((0, missing if place == axis else 0) for place in range(g.ndim))
    return (real(apply("ifft", apply("pad", g, pads=pads), axis=axis)),)


@rule("irfft")
def _irfft(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """All places but the first, and the middle one of an even size, stand for two."""
    axis, size = attrs["axis"], attrs["size"]
    alone = (0, size / 2)
    return (_along(apply("rfft", g, axis=axis), axis, [1.0 if k in alone else 2.0 for k in range(size // 2 + 1)]),)


RULES[OWN_GRADIENT] = lambda g, x, y, a: a["gradient"](g, x, y)


@rule("host_call")
def _host_call(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    return [None] * len(x) if attrs["gradient"] is None else attrs["gradient"](g, x, y)


RULES["tan"] = lambda g, x, y, a: (g * (y * y + 1.0),)
RULES["asin"] = lambda g, x, y, a: (g / (1.0 - x[0] * x[0]).sqrt(),)
RULES["acos"] = lambda g, x, y, a: (-(g / (1.0 - x[0] * x[0]).sqrt()),)
RULES["atan"] = lambda g, x, y, a: (g / (x[0] * x[0] + 1.0),)
RULES["sinh"] = lambda g, x, y, a: (g * apply("cosh", x[0]),)
RULES["cosh"] = lambda g, x, y, a: (g * apply("sinh", x[0]),)
RULES["asinh"] = lambda g, x, y, a: (g / (x[0] * x[0] + 1.0).sqrt(),)
RULES["acosh"] = lambda g, x, y, a: (g / (x[0] * x[0] - 1.0).sqrt(),)
RULES["atanh"] = lambda g, x, y, a: (g / (1.0 - x[0] * x[0]),)
RULES["expm1"] = lambda g, x, y, a: (g * (y + 1.0),)
RULES["log1p"] = lambda g, x, y, a: (g / (x[0] + 1.0),)
RULES["log2"] = lambda g, x, y, a: (g / (x[0] * math.log(2.0)),)
RULES["log10"] = lambda g, x, y, a: (g / (x[0] * math.log(10.0)),)
RULES["hypot"] = lambda g, x, y, a: (g * x[0] / y, g * x[1] / y)
RULES["logaddexp"] = lambda g, x, y, a: (g * (x[0] - y).exp(), g * (x[1] - y).exp())
RULES["remainder"] = lambda g, x, y, a: (g, -(g * (x[0] / x[1]).floor()))
RULES["copysign"] = lambda g, x, y, a: (g * (x[0] * y).sign(), g._constant(0.0, g.dtype).broadcast_to(x[1].shape))


@rule("atan2")
def _atan2(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    over = g / (x[0] * x[0] + x[1] * x[1])
    return over * x[1], -(over * x[0])


@rule("div")
def _div(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    over = g / x[1]
    return over, -(over * y)


@rule("pow")
def _pow(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """d a^b = b a^(b-1) da + a^b log(a) db; the first is 0 where b is 0 (also of a that is 0, infinite or NaN), the
    second where a is 0 and b is not negative, as in torch.
    """
    a, b = x
    safe = apply("where", a != 0 if a.dtype in COMPLEX else a > 0, a, a * 0.0 + 1.0)
    less = apply("where", b == 0, b, b - 1.0)  # a^0 is 1 of any a
    return g * b * apply("pow", a, less), g * y * safe.log()


@rule("maximum", "minimum")
def _extreme(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Equal inputs share the gradient."""
    a, b = (x[0] == y).astype(g.dtype), (x[1] == y).astype(g.dtype)
    share = g / (a + b)
    return share * a, share * b


@rule("where")
def _where(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    zeros = g._constant(0.0, g.dtype).broadcast_to(g.shape)
    return None, apply("where", x[0], g, zeros), apply("where", x[0], zeros, g)


# reductions ---------------------------------------------------------------------------------------


def _stretched(g: Any, x: Any, attrs: Mapping[str, Any]) -> Any:
    """g of a reduction with size-1 axes put back, broadcast to x."""
    if g.shape == ():
        return g.broadcast_to(x.shape)
    kept = tuple(1 if axis in attrs["axes"] else size for axis, size in enumerate(x.shape))
    return g.reshape(*kept).broadcast_to(x.shape)


RULES["sum"] = lambda g, x, y, a: (_stretched(g, x[0], a),)


@rule("mean")
def _mean(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    count = math.prod(x[0].shape[axis] for axis in attrs["axes"])
    return (_stretched(g / float(count), x[0], attrs),)


@rule("prod")
def _prod(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """The product of all others, from the products of those before and after: right where elements are 0."""
    value, axes = x[0], attrs["axes"]
    if len(axes) == 1:
        return (_stretched(g, value, attrs) * _others(value, axes[0]),)
    kept = [axis for axis in range(value.ndim) if axis not in axes]
    order = (*kept, *axes)
    rows = value.permute(*order).reshape(*(value.shape[axis] for axis in kept), -1) if order else value.reshape(1)
    moved = _others(rows, rows.ndim - 1).reshape(*(value.shape[axis] for axis in order))
    back = moved.permute(*(order.index(axis) for axis in range(value.ndim))) if order else moved.reshape(())
    return (_stretched(g, value, attrs) * back,)


def _others(x: Any, axis: int) -> Any:
    """For each element the product of all others along an axis."""
    backwards = (slice(None),) * axis + (slice(None, None, -1),)
    before, behind = (_before(apply("cumulative_prod", each, axis=axis), axis, 1.0) for each in (x, x[backwards]))
    return before * behind[backwards]


@rule("cumulative_sum")
def _cumulative_sum(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    if not x[0].ndim:
        return (g,)
    backwards = (slice(None),) * attrs["axis"] + (slice(None, None, -1),)
    return (apply("cumulative_sum", g[backwards], axis=attrs["axis"])[backwards],)


def _before(x: Any, axis: int, first: Any) -> Any:
    """What stands in front of each element along an axis, in front of the first one `first`, a number."""
    start = x._constant(first, x.dtype).broadcast_to(*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return apply("concat", start, x[(slice(None),) * axis + (slice(None, -1),)], axis=axis) if x.size else x


@rule("recurrence")
def _recurrence(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """That of the other direction by the same factors."""
    axis, backwards = attrs["axis"], attrs["backwards"]
    total = apply("recurrence", g, x[1], axis=axis, backwards=not backwards)
    first, last = (total, y) if backwards else (y, total)
    return total, _before(first, axis, 0.0) * last


@rule("cumulative_prod")
def _cumulative_prod(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """The product before each place, times the sum over j of g_j and the product of what is between: nothing is
    divided, so it is right where elements are 0.
    """
    axis = attrs["axis"]
    if not x[0].ndim:
        return (g,)
    before = _before(y, axis, 1.0)
    total = apply("recurrence", g, x[0], axis=axis, backwards=True)
    none = (before == 0.0) & (total - total != 0.0)  # nothing times infinity
    return (before * apply("where", none, total._constant(0.0, total.dtype), total),)


@rule("cumulative_logsumexp")
def _cumulative_logsumexp(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """The sum over j >= i of g_j exp(x_i - y_j), by shares of at most 1."""
    if not y.ndim:
        return (g,)

    def share(part: Any, whole: Any) -> Any:  # also of two infinities
        return apply("where", part == whole, g._constant(1.0, g.dtype), (part - whole).exp())

    kept = share(_before(y, attrs["axis"], -math.inf), y)
    return (share(x[0], y) * apply("recurrence", g, kept, axis=attrs["axis"], backwards=True),)


@rule("max", "min")
def _reduced_extreme(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Equal elements share the gradient."""
    hits = (x[0] == _stretched(y, x[0], attrs)).astype(g.dtype)
    return (_stretched(g, x[0], attrs) * hits / hits.sum(attrs["axes"], keepdims=True),)


# products -----------------------------------------------------------------------------------------


def _matmul_left(g: Any, x: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """dA' = g B'ᵀ for A' B', transposed back where A was."""
    tb = attrs["transpose_b"]
    if attrs["transpose_a"]:
        return apply("matmul", x[1], g, transpose_a=tb, transpose_b=True)
    return apply("matmul", g, x[1], transpose_a=False, transpose_b=not tb)


def _matmul_right(g: Any, x: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """dB' = A'ᵀ g for A' B', transposed back where B was."""
    ta = attrs["transpose_a"]
    if attrs["transpose_b"]:
        return apply("matmul", g, x[0], transpose_a=True, transpose_b=ta)
    return apply("matmul", x[0], g, transpose_a=not ta, transpose_b=False)


BY_INPUT["matmul"] = (_matmul_left, _matmul_right)


_CONV_ATTRS = ("stride", "padding", "dilation", "groups")


def _conv(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: attrs[key] for key in _CONV_ATTRS}


BY_INPUT["conv2d"] = (
    lambda g, x, a: apply("conv2d_grad_input", g, x[1], **_conv(a), input_shape=x[0].shape),
    lambda g, x, a: apply("conv2d_grad_weight", g, x[0], **_conv(a), weight_shape=x[1].shape),
)
BY_INPUT["conv2d_grad_input"] = (
    lambda g, x, a: apply("conv2d", g, x[1], **_conv(a)),
    lambda g, x, a: apply("conv2d_grad_weight", x[0], g, **_conv(a), weight_shape=x[1].shape),
)
BY_INPUT["conv2d_grad_weight"] = (
    lambda g, x, a: apply("conv2d", x[1], g, **_conv(a)),
    lambda g, x, a: apply("conv2d_grad_input", x[0], g, **_conv(a), input_shape=x[1].shape),
)
RULES["max_pool2d"] = lambda g, x, y, a: (apply("max_pool2d_grad", g, x[0], **a),)


@rule("max_pool2d_grad")
def _max_pool2d_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Each window has back what its largest element, of equals the first, was given."""
    count, channels, *sizes = x[1].shape
    at = largest_of(x[1], **attrs).reshape(count, channels, -1)
    taken = apply("take_along", g.reshape(count, channels, math.prod(sizes)), at, axis=2)
    return taken.reshape(*x[0].shape), None


RULES["avg_pool2d"] = lambda g, x, y, a: (apply("avg_pool2d_grad", g, **a, input_shape=x[0].shape),)
RULES["avg_pool2d_grad"] = lambda g, x, y, a: (
    apply("avg_pool2d", g, kernel=a["kernel"], stride=a["stride"], padding=a["padding"]),
)


# movement -----------------------------------------------------------------------------------------

RULES["reshape"] = lambda g, x, y, a: (g.reshape(*x[0].shape),)
RULES["flip"] = lambda g, x, y, a: (g._reversed(a["axes"]),)
RULES["broadcast_to"] = lambda g, x, y, a: (g,)
RULES["take"] = lambda g, x, y, a: (
    apply("take_grad", g, x[1], axis=a["axis"], size=x[0].shape[a["axis"]]),
    None,
)
RULES["take_grad"] = lambda g, x, y, a: (apply("take", g, x[1], axis=a["axis"]), None)


@rule("transpose")
def _transpose(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    axes = attrs["axes"]
    return (g.permute(*(axes.index(axis) for axis in range(len(axes)))) if axes else g,)


def _cut(x: Any, starts: Sequence[int], stops: Sequence[int]) -> Any:
    return apply("slice", x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * x.ndim)


@rule("slice")
def _slice(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Zeros around g; for a step also step-1 zeros behind every element."""
    shape, steps = x[0].shape, attrs["steps"]
    if set(steps) <= {1}:
        return (Piece(g, attrs["starts"], tuple(a + b for a, b in zip(attrs["starts"], g.shape, strict=True))),)
    return (spread(g, shape, attrs["starts"], steps),)


@rule("pad")
def _pad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    starts = tuple(low for low, _ in attrs["pads"])
    return (_cut(g, starts, tuple(low + size for low, size in zip(starts, x[0].shape, strict=True))),)


@rule("concat")
def _concat(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    axis, parts, start = attrs["axis"], [], 0
    for part in x:
        starts, stops = [0] * g.ndim, list(g.shape)
        starts[axis], stops[axis] = start, start + part.shape[axis]
        parts.append(_cut(g, starts, stops))
        start = stops[axis]
    return parts


SUMMED_IN_ORDER = 32  # terms of a sum over rows that are added in order, before their sums meet: kernels/src/reduce.inl
MOST_HITS = 1 << 32  # elements
SUMMED_ALONG = ("float32", "float64")
PASS_ELEMENTS = 25_000  # that take as long as the few calls for a block of terms


@rule("take_along")
def _take_along(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Each gradient goes to the place its index named. Those of one place are added as in a sum over the taken axis of
    g where one_hot(indices) is, but in order where that would have more than MOST_HITS elements.
    """
    axis, size, taken = attrs["axis"], x[0].shape[attrs["axis"]], g.shape[attrs["axis"]]
    masked = g.size * size
    blocks = range(0, taken, SUMMED_IN_ORDER if masked <= MOST_HITS else taken)
    by_masks = size == 1 or masked <= len(blocks) * (x[0].size + PASS_ELEMENTS)
    if taken > 1 and size > 1 and g.dtype in SUMMED_ALONG and is_made_here(g):
        how = {"axis": axis, "size": size, "terms": blocks.step, "from_zero": not by_masks}
        return apply("take_along_grad", g, x[1], **how), None
    if by_masks:
        hits = apply("one_hot", x[1], depth=size) != 0.0  # (..., taken, ..., size)
        none = g._constant(0.0, g.dtype)
        weighted = apply("where", hits, g.expand_dims(g.ndim), none)  # a product would make NaN of infinities
        spread = weighted.sum(axis)  # (... without axis, size)
        return spread.permute(*range(axis), spread.ndim - 1, *range(axis, spread.ndim - 1)), None
    return _summed_where_taken(g, x[1], x[0].shape, axis, blocks), None


RULES["ctc_loss"] = lambda g, x, y, a: (apply("ctc_loss_grad", g, *x, **a), None, None, None)


@rule("ctc_loss_grad")
def _ctc_loss_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    raise GradientError("ctc_loss: expected one derivative of it, got a second one; detach() its first")


RULES["take_along_grad"] = lambda g, x, y, a: (apply("take_along", g, x[1], axis=a["axis"]), None)


def _summed_where_taken(g: Any, indices: Any, shape: tuple[int, ...], axis: int, blocks: range) -> Any:
    """The same in `shape`: each block of the taken axis is added up where it belongs, and then blocks are in pairs."""
    places = apply("where", indices < 0, indices + shape[axis], indices) * math.prod(shape[axis + 1 :])
    for along, count in enumerate(shape):  # in all of x, flattened
        if along != axis and count > 1:
            steps = [step * math.prod(shape[along + 1 :]) for step in range(count)]
            places = places + places._constant(steps, "int64").reshape(count, *(1,) * (len(shape) - along - 1))
    sums: list[Any] = []
    for block, start in enumerate(blocks):
        bounds = [[0, n] for n in g.shape]
        bounds[axis] = [start, min(start + blocks.step, g.shape[axis])]
        part, at = (_cut(each, *zip(*bounds, strict=True)).reshape(-1) for each in (g, places))
        sums.append(apply("take_grad", part, at, axis=0, size=math.prod(shape)))
        while block & 1:
            last = sums.pop()
            sums[-1], block = sums[-1] + last, block >> 1
    while len(sums) > 1:
        last = sums.pop()
        sums[-1] = sums[-1] + last
    return sums[0].reshape(*shape)


# softmax and losses -------------------------------------------------------------------------------

RULES["softmax"] = lambda g, x, y, a: (apply("softmax_grad", g, y, axis=a["axis"]),)
RULES["log_softmax"] = lambda g, x, y, a: (apply("log_softmax_grad", g, y, axis=a["axis"]),)


@rule("softplus_grad")
def _softplus_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of u σ(x), u being the gradient of softplus's result."""
    upstream, value = x
    share = value.sigmoid()
    return apply("softplus_grad", g, value), g * upstream * (share * (1.0 - share))


@rule("gelu_grad")
def _gelu_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of u (Φ(x) + x φ(x)), u being the gradient of gelu's result."""
    upstream, value = x
    return apply("gelu_grad", g, value), g * upstream * (_normal_density(value) * (2.0 - value * value))


for _name in ("clip", "hardtanh", "hardsigmoid", "hardswish", "softshrink", "leaky_relu", "huber"):
    RULES[_name] = lambda g, x, y, a, op=f"{_name}_grad": (apply(op, g, x[0], **a),)  # type: ignore[misc]
for _name in ("clip_grad", "hardtanh_grad", "hardsigmoid_grad", "softshrink_grad", "leaky_relu_grad"):  # all straight
    RULES[_name] = lambda g, x, y, a, op=_name: (apply(op, g, x[1], **a), None)  # type: ignore[misc]


@rule("hardswish_grad")
def _hardswish_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of u (2 x + 3) / 6 between -3 and 3."""
    return apply("hardswish_grad", g, x[1]), apply("hardsigmoid_grad", g * x[0] * 2.0, x[1])


@rule("huber_grad")
def _huber_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of u x within delta."""
    delta = attrs["delta"]
    return apply("huber_grad", g, x[1], delta=delta), apply("hardtanh_grad", g * x[0], x[1], low=-delta, high=delta)


@rule("softmax_grad")
def _softmax_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of y (u - sum(u y)), u being the gradient of softmax's result y."""
    upstream, share = x
    axis = attrs["axis"]
    total, own = ((each * share).sum(axis, keepdims=True) for each in (upstream, g))
    return share * (g - own), g * (upstream - total) - upstream * own


@rule("log_softmax_grad")
def _log_softmax_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of u - e**y sum(u), u being the gradient of log_softmax's result y."""
    upstream, logarithm = x
    axis, weighted = attrs["axis"], g * logarithm.exp()
    return g - weighted.sum(axis, keepdims=True), -(weighted * upstream.sum(axis, keepdims=True))


@rule("cross_entropy_grad")
def _cross_entropy_grad(g: Any, x: Sequence[Any], y: Any, attrs: Mapping[str, Any]) -> Sequence[Any]:
    """Of f (softmax(logits) - one_hot(label)) per label, f being the gradient of its loss."""
    factor, logits, labels = x
    share = apply("softmax", logits, axis=1)
    weighted = g * factor.expand_dims(1)
    hits = apply("one_hot", labels, depth=logits.shape[1]).astype(g.dtype)
    if logits.ndim > 2:
        hits = hits.permute(0, logits.ndim - 1, *range(1, logits.ndim - 1))
    of_factor = (g * (share - hits)).sum(1)
    return of_factor, share * (weighted - (weighted * share).sum(1, keepdims=True)), None


RULES["cross_entropy"] = lambda g, x, y, a: (apply("cross_entropy_grad", g, x[0], x[1]), None)
