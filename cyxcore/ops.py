"""The op table: every operation a model or a training step is made of, one row each.

A row says the op's name, how many inputs it takes, its attributes, the shape and dtype of its one
output and what it costs. To add an op: a row here, a reference kernel (kernels/reference.py), a
gradient rule (gradients.py, or an entry in its NO_GRADIENT). A fast kernel is optional.

The rows of group "standard" are there for the array API standard: they run on tensors, by their reference kernel where
a device has none of its own. Of graphs only those of compiled functions hold them, whose plans call the same kernel.

The rows of group "source" make values out of nothing (inputs, parameters, constants, the random
key) and have no kernel. Nor have those of group "mode". The first input of `by_mode` is what training sees, its
second what inference sees; a plan is always made for one of the two. `detach` is its input, through which no
gradient goes; a plan, in which all gradients are nodes already, knows no difference.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cyxcore import attrs as kind
from cyxcore import infer, infer2d, infermatrix
from cyxcore.attrs import Attr
from cyxcore.dtype import ALL, COMPLEX, FLOATS, IN_GRAPHS, INEXACT, INTEGERS, NUMBERS, REAL, item_bytes
from cyxcore.errors import DtypeError, GraphError, ShapeError
from cyxcore.infer import Attrs, Rule, Shape, Typed

MAX_ELEMENTS = 2**40
USER = "user."  # how the names of operations begin that a user's function makes (userops.py)

OWN_GRADIENT = "user.gradient"  # the last input, whose gradient with respect to the others a Function says

Flops = Callable[[tuple[Shape, ...], Shape, Attrs], int]


class Op(NamedTuple):
    name: str
    group: str  # source, mode, elementwise, reduce, matmul, movement, nn, random, update, standard or user
    arity: int | None  # None: one or more
    attrs: Mapping[str, Attr]
    rule: Rule
    flops: Flops

    def infer(self, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        """Shape and dtype of the output.

        Raises ShapeError, DtypeError or (wrong number of inputs) GraphError.
        """
        if len(shapes) != self.arity and (self.arity is not None or not shapes):
            wanted = "at least 1" if self.arity is None else self.arity
            raise GraphError(f"{self.name}: expected {wanted} inputs, got {len(shapes)}")
        shape, dtype = self.rule(self.name, shapes, dtypes, attrs)
        if shape in shapes:  # as large as what is there already
            return shape, dtype
        if len(shape) > kind.MAX_RANK or max(shape, default=0) > kind.MAX_DIM or math.prod(shape) > MAX_ELEMENTS:
            raise ShapeError(f"{self.name}: a result of shape {shape} is beyond {MAX_ELEMENTS} elements or rank 16")
        return shape, dtype

    def infer_in_graph(self, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
        """`infer` of a call in a graph, which holds only what every device computes to the same bits.

        Raises what infer raises, GraphError for an op that only runs eagerly, DtypeError for a dtype
        no graph holds.
        """
        if self.name == "host_call":
            raise GraphError(
                "a call of Python code: stands in cx.compile on the cpu; a graph that is saved or sent, or a plan of a "
                "GPU, cannot hold it"
            )
        if self.group == "standard":
            raise GraphError(
                f"{self.name}: runs on tensors, and in cx.compile on the cpu; a graph that is saved or sent, or a plan "
                "of a GPU, cannot hold it: compose it of other operations"
            )
        shape, dtype = self.infer(shapes, dtypes, attrs)
        made_of_key = "uint64" in dtypes
        if dtype not in IN_GRAPHS or made_of_key and self.group not in ("movement", "random"):
            raise DtypeError(f"{self.name}: a graph holds no {dtype} made of {', '.join(dtypes)}; use astype before")
        if dtype == "uint64" and self.name != "key" and not made_of_key:
            raise DtypeError(f"{self.name}: in a graph uint64 is only for random keys; use astype('int64') before")
        return shape, dtype

    def cost(self, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> tuple[int, int]:
        """(floating-point operations, bytes moved) of one call, counting each operand once."""
        out, out_dtype = self.infer(shapes, dtypes, attrs)
        moved = sum(math.prod(shape) * item_bytes(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
        return self.flops(shapes, out, attrs), moved + math.prod(out) * item_bytes(out_dtype)


def _per_output(count: int) -> Flops:
    return lambda shapes, out, attrs: count * math.prod(out)


def _per_input(count: int) -> Flops:
    return lambda shapes, out, attrs: count * math.prod(shapes[0])


def _matmul_flops(shapes: tuple[Shape, ...], out: Shape, attrs: Attrs) -> int:
    return 2 * math.prod(out) * shapes[0][-2 if attrs["transpose_a"] else -1]


def _conv_flops(shapes: tuple[Shape, ...], out: Shape, attrs: Attrs) -> int:
    """Each product of the forward convolution happens once in each of the three conv ops."""
    if "weight_shape" in attrs:  # (g, x) -> w
        return 2 * math.prod(shapes[0]) * math.prod(attrs["weight_shape"][1:])
    image = shapes[0] if "input_shape" in attrs else out
    return 2 * math.prod(image) * math.prod(shapes[1][1:])


def _pool_flops(shapes: tuple[Shape, ...], out: Shape, attrs: Attrs) -> int:
    return math.prod(min(out, shapes[0], key=math.prod)) * math.prod(attrs["kernel"])


def _ctc_flops(shapes: tuple[Shape, ...], out: Shape, attrs: Attrs) -> int:
    """Of each step and label two logarithms of sums, and on the way back as many again."""
    steps, rows, _ = shapes[-4]
    return 60 * steps * rows * (shapes[-3][1] + 1) * (len(shapes) - 3)


def _cubic(shapes: tuple[Shape, ...], out: Shape, attrs: Attrs) -> int:
    """The order of what a factorization of (..., M, N) takes; its constant is LAPACK's."""
    return math.prod(shapes[0]) * min(shapes[0][-2:])


def _source(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    return tuple(attrs["shape"]), attrs["dtype"]


def _const(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    if len(attrs["value"]) != math.prod(attrs["shape"]):
        raise ShapeError(f"const: {len(attrs['value'])} values do not fill shape {attrs['shape']}")
    return tuple(attrs["shape"]), attrs["dtype"]


def _key(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    return (2,), "uint64"


_WINDOW = {
    "kernel": Attr(kind.positive_pair),
    "stride": Attr(kind.positive_pair),
    "padding": Attr(kind.natural_pair),
}
_CONV = {
    "stride": Attr(kind.positive_pair, (1, 1)),
    "padding": Attr(kind.natural_pair, (0, 0)),
    "dilation": Attr(kind.positive_pair, (1, 1)),
    "groups": Attr(kind.positive, 1),
}
_REDUCE = {"axes": Attr(kind.axes), "keepdims": Attr(kind.flag, False)}
_AXIS = {"axis": Attr(kind.natural)}
_ALONG = {**_AXIS, "size": Attr(kind.natural), "terms": Attr(kind.positive), "from_zero": Attr(kind.flag)}
_CTC = {"blank": Attr(kind.natural), "zero_infinity": Attr(kind.flag)}
_BENT = {
    "clip": {"low": Attr(kind.finite), "high": Attr(kind.finite)},
    "hardtanh": {"low": Attr(kind.finite), "high": Attr(kind.finite)},
    "hardsigmoid": {},
    "hardswish": {},
    "softshrink": {"bound": Attr(kind.finite)},
    "leaky_relu": {"slope": Attr(kind.finite)},
    "huber": {"delta": Attr(kind.finite)},
}
_MATMUL = {"transpose_a": Attr(kind.flag, False), "transpose_b": Attr(kind.flag, False)}
_SLICE = {"starts": Attr(kind.naturals), "stops": Attr(kind.shape), "steps": Attr(kind.positives)}
_PARAM = {
    "name": Attr(kind.name),
    "shape": Attr(kind.naturals),
    "dtype": Attr(kind.dtype, "float32"),
    "init": Attr(kind.init_rule),
    "trainable": Attr(kind.flag, True),
}
_CONST = {"shape": Attr(kind.naturals), "dtype": Attr(kind.dtype), "value": Attr(kind.numbers)}
_DECAY = {"weight_decay": Attr(kind.finite, 0.0)}
_MOMENTUM = {"momentum": Attr(kind.finite), **_DECAY}
_BETA = {"beta": Attr(kind.finite), **_DECAY}
_ADAM = {key: Attr(kind.finite) for key in ("beta1", "beta2", "eps", "decoupled_weight_decay")}


def _rows() -> list[Op]:
    def row(name: str, group: str, arity: int | None, rule: Rule, flops: int | Flops = 0, /, **attrs: Attr) -> Op:
        return Op(name, group, arity, attrs, rule, flops if callable(flops) else _per_output(flops))

    costly = ("exp", "log", "sqrt", "tanh", "sin", "cos")
    orders = ("less", "less_equal", "greater", "greater_equal")
    return [
        row(
            "input",
            "source",
            0,
            _source,
            name=Attr(kind.name),
            shape=Attr(kind.shape),
            dtype=Attr(kind.dtype, "float32"),
        ),
        row("param", "source", 0, _source, **_PARAM),
        row("const", "source", 0, _const, **_CONST),
        row("key", "source", 0, _key),
        row("by_mode", "mode", 2, infer.by_mode),
        row("detach", "mode", 1, infer.unary(ALL)),
        *(row(name, "elementwise", 1, infer.unary(NUMBERS), 1) for name in ("neg", "square", "sign")),
        *(row(name, "elementwise", 1, infer.unary(REAL), 1) for name in ("relu", "floor")),
        row("abs", "elementwise", 1, infer.magnitude, 1),
        *(row(name, "elementwise", 1, infer.unary(INEXACT), 10) for name in costly),
        *(row(name, "elementwise", 1, infer.unary(FLOATS), 10) for name in ("sigmoid", "erf")),
        *(row(name, "elementwise", 1, infer.unary(FLOATS), 30) for name in ("erfc", "ndtr", "gelu")),
        row("gelu_grad", "elementwise", 2, infer.binary(FLOATS), 31),
        row("softplus", "elementwise", 1, infer.unary(FLOATS), 22),
        row("softplus_grad", "elementwise", 2, infer.binary(FLOATS), 16),
        row("logical_not", "elementwise", 1, infer.unary(("bool",)), 1),
        *(row(name, "elementwise", 2, infer.binary(NUMBERS), 1) for name in ("add", "sub", "mul")),
        *(row(name, "elementwise", 2, infer.binary(REAL), 1) for name in ("maximum", "minimum")),
        row("div", "elementwise", 2, infer.binary(INEXACT), 4),
        row("pow", "elementwise", 2, infer.binary(INEXACT), 20),
        *(row(name, "elementwise", 2, infer.binary(ALL, "bool"), 1) for name in ("equal", "not_equal")),
        *(row(name, "elementwise", 2, infer.binary(("bool", *REAL), "bool"), 1) for name in orders),
        *(row(name, "elementwise", 2, infer.binary(("bool",)), 1) for name in ("logical_and", "logical_or")),
        row("where", "elementwise", 3, infer.where, 1),
        row("cast", "elementwise", 1, infer.cast, 1, dtype=Attr(kind.dtype)),
        row("sum", "reduce", 1, infer.reduce(NUMBERS, of_empty=True), _per_input(1), **_REDUCE),
        row("mean", "reduce", 1, infer.reduce(INEXACT, of_empty=False), _per_input(1), **_REDUCE),
        row("max", "reduce", 1, infer.reduce(REAL, of_empty=False), _per_input(1), **_REDUCE),
        row("min", "reduce", 1, infer.reduce(REAL, of_empty=False), _per_input(1), **_REDUCE),
        row("argmax", "reduce", 1, infer.argmax, _per_input(1), **_AXIS),
        row("matmul", "matmul", 2, infer.matmul, _matmul_flops, **_MATMUL),
        row("reshape", "movement", 1, infer.reshape, shape=Attr(kind.new_shape)),
        row("transpose", "movement", 1, infer.transpose, axes=Attr(kind.permutation)),
        row("broadcast_to", "movement", 1, infer.broadcast_to, shape=Attr(kind.shape)),
        row("slice", "movement", 1, infer.slice_, **_SLICE),
        row("pad", "movement", 1, infer.pad, pads=Attr(kind.pads), value=Attr(kind.finite, 0.0)),
        row("concat", "movement", None, infer.concat, **_AXIS),
        row("take", "movement", 2, infer.take, **_AXIS),
        row("take_grad", "movement", 2, infer.take_grad, _per_input(1), **_AXIS, size=Attr(kind.natural)),
        row("take_along", "movement", 2, infer.take_along, **_AXIS),
        row("one_hot", "movement", 1, infer.one_hot, depth=Attr(kind.natural)),
        row("conv2d", "nn", 2, infer2d.conv2d, _conv_flops, **_CONV),
        row(
            "conv2d_grad_input",
            "nn",
            2,
            infer2d.conv2d_grad_input,
            _conv_flops,
            **_CONV,
            input_shape=Attr(kind.shape),
        ),
        row(
            "conv2d_grad_weight",
            "nn",
            2,
            infer2d.conv2d_grad_weight,
            _conv_flops,
            **_CONV,
            weight_shape=Attr(kind.naturals),
        ),
        row("max_pool2d", "nn", 1, infer2d.pool2d, _pool_flops, **_WINDOW),
        row("max_pool2d_grad", "nn", 2, infer2d.max_pool2d_grad, _pool_flops, **_WINDOW),
        row("avg_pool2d", "nn", 1, infer2d.pool2d, _pool_flops, **_WINDOW),
        row(
            "avg_pool2d_grad",
            "nn",
            1,
            infer2d.avg_pool2d_grad,
            _pool_flops,
            **_WINDOW,
            input_shape=Attr(kind.naturals),
        ),
        row("softmax", "nn", 1, infer.softmax, 14, **_AXIS),
        row("log_softmax", "nn", 1, infer.softmax, 14, **_AXIS),
        row("softmax_grad", "nn", 2, infer.softmax, 4, **_AXIS),
        row("log_softmax_grad", "nn", 2, infer.softmax, 12, **_AXIS),
        row("cross_entropy", "nn", 2, infer.cross_entropy, _per_input(14)),
        row("cross_entropy_grad", "nn", 3, infer.cross_entropy, 16),
        row("uniform", "random", 1, infer.uniform, 20, shape=Attr(kind.shape), stream=Attr(kind.natural)),
        row("sgd_update", "update", 3, infer.update(2, 1), 4, **_DECAY),
        row("momentum", "update", 3, infer.update(3, 0), 4, **_MOMENTUM),
        row("nesterov_update", "update", 4, infer.update(3, 1), 6, **_MOMENTUM),
        row("axpy_update", "update", 3, infer.update(2, 1), 2),
        row("adam_m", "update", 3, infer.update(3, 0), 5, **_BETA),
        row("adam_v", "update", 3, infer.update(3, 0), 6, **_BETA),
        row("adam_update", "update", 5, infer.update(3, 2), 12, **_ADAM),
    ]


def _standard_rows() -> list[Op]:
    """What only the array API standard asks for."""

    def row(name: str, arity: int | None, rule: Rule, flops: int | Flops = 1, /, **attrs: Attr) -> Op:
        return Op(name, "standard", arity, attrs, rule, flops if callable(flops) else _per_output(flops))

    costly = "tan asin acos atan sinh cosh asinh acosh atanh expm1 log1p log2 log10".split()
    bits = "bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift".split()
    return [
        *(row(name, 1, infer.unary(INEXACT), 10) for name in costly),
        *(row(name, 1, infer.unary(FLOATS), 40) for name in ("lgamma", "digamma", "trigamma", "erfinv")),
        *(
            row(f"{name}{what}", *how, **numbers)
            for name, numbers in _BENT.items()
            for what, how in (("", (1, infer.unary(FLOATS), 6)), ("_grad", (2, infer.binary(FLOATS), 10)))
        ),
        *(row(name, 1, infer.unary(REAL)) for name in ("ceil", "trunc")),
        *(row(name, 1, infer.unary(NUMBERS)) for name in ("round", "conj")),
        *(row(name, 1, infer.magnitude) for name in ("real", "imag")),
        row("signbit", 1, infer.unary(FLOATS, "bool")),
        *(row(name, 2, infer.binary(FLOATS), 10) for name in ("atan2", "hypot", "logaddexp")),
        row("copysign", 2, infer.binary(FLOATS)),
        row("nextafter", 2, infer.binary(("float16", "float32", "float64"))),
        *(row(name, 2, infer.binary(REAL), 4) for name in ("floor_divide", "remainder")),
        *(row(name, 2, infer.binary(INTEGERS)) for name in (*bits, "integer_pow")),
        row("bitwise_invert", 1, infer.unary(INTEGERS)),
        row("prod", 1, infer.reduce(NUMBERS, of_empty=True), _per_input(1), **_REDUCE),
        *(row(name, 1, infer.reduce(("bool",), of_empty=True), _per_input(1), **_REDUCE) for name in ("all", "any")),
        *(row(name, 1, infer.along(NUMBERS), **_AXIS) for name in ("cumulative_sum", "cumulative_prod")),
        *(
            row(f"cumulative_arg{name}", 1, infer.along(("bool", *REAL), "int64"), 2, **_AXIS)
            for name in ("max", "min")
        ),
        row("cumulative_logsumexp", 1, infer.along(FLOATS), 20, **_AXIS),
        row("recurrence", 2, infer.recurrence, 2, **_AXIS, backwards=Attr(kind.flag, False)),
        row("argmin", 1, infer.argmax, _per_input(1), **_AXIS),
        row("argsort", 1, infer.along(ALL, "int64"), 20, **_AXIS, descending=Attr(kind.flag, False)),
        row("take_along_grad", 2, infer.take_along_grad, _per_input(1), **_ALONG),
        row("ctc_loss", 4, infer.ctc_loss, _ctc_flops, **_CTC),
        row("ctc_loss_grad", 5, infer.ctc_loss, _ctc_flops, **_CTC),
        row("searchsorted", 2, infer.searchsorted, 20, right=Attr(kind.flag, False)),
        row(
            "scatter", 3, infer.scatter, _per_input(1), reduction=Attr(kind.choice("none", "add", "mul", "min", "max"))
        ),
        row("nonzero", 1, infer.nonzero, _per_input(1), count=Attr(kind.natural)),
        row("flip", 1, infer.unary(ALL), axes=Attr(kind.axes)),
        *(row(name, 1, infer.along(COMPLEX), 20, **_AXIS) for name in ("fft", "ifft")),
        row("rfft", 1, infer.rfft, 20, **_AXIS),
        row("irfft", 1, infer.irfft, 20, **_AXIS, size=Attr(kind.positive)),
        row("inv", 1, infermatrix.same(square=True), _cubic),
        row("cholesky", 1, infermatrix.same(square=True), _cubic),
        row("pinv", 2, infermatrix.same(square=False), _cubic),
        row("solve", 2, infermatrix.solve, _cubic),
        row("det", 1, infermatrix.det, _cubic),
        *(row(name, 1, infermatrix.packed(square=True), _cubic) for name in ("slogdet", "eigh", "eig")),
        *(
            row(name, 1, infermatrix.packed(square=False), _cubic, full=Attr(kind.flag, False))
            for name in ("svd", "qr")
        ),
        *(row(name, 1, infermatrix.values, _cubic) for name in ("eigvalsh", "eigvals", "svdvals")),
        row(
            "host_call",
            None,
            _source,
            0,
            function=Attr(kind.function),
            shape=Attr(kind.naturals),
            dtype=Attr(kind.dtype),
            gradient=Attr(kind.function_or_none, None),
        ),
    ]


def _own_gradient(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], attrs: Attrs) -> Typed:
    return shapes[-1], dtypes[-1]


OPS: dict[str, Op] = {op.name: op for op in (*_rows(), *_standard_rows())}
OPS[OWN_GRADIENT] = Op(
    OWN_GRADIENT, "mode", None, {"gradient": Attr(kind.function)}, _own_gradient, lambda shapes, out, attrs: 0
)

# What a backend has kernels for; the others are resolved when a plan is made.
KERNEL_OPS: tuple[str, ...] = tuple(op.name for op in OPS.values() if op.group not in ("source", "mode"))


def normal_attrs(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of one op call in normal form. Raises GraphError for an unknown op or attribute."""
    op = OPS.get(name)
    if op is None:
        raise GraphError(f"unknown op {name!r}; the op table is cyxcore/ops.py")
    return kind.normalise(name, op.attrs, given)


def infer_op(
    name: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...], given: Mapping[str, Any]
) -> tuple[Typed, dict[str, Any]]:
    """((shape, dtype), attributes in normal form) of one op call.

    Raises GraphError for an unknown op or attribute.
    """
    attrs = normal_attrs(name, given)
    return OPS[name].infer(shapes, dtypes, attrs), attrs
