"""The cases of every operation: what a kernel must give as NumPy does, and with the same bits everywhere."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cyxcore.kernels import cpu, reference

Array = np.ndarray[Any, Any]

FLOATS = ("float32", "float64")
SPECIALS = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 3e38, -3e38, 0.5, 2.0]


@dataclass
class Case:
    """One call: what goes in, and what NumPy says comes out."""

    op: str
    inputs: list[Array]
    attrs: dict[str, Any] = field(default_factory=dict)
    out_dtype: str | None = None
    tolerance: float = 0.0  # relative to the largest expected magnitude; 0 means equal

    def __post_init__(self) -> None:
        self.inputs = [np.asarray(x) for x in self.inputs]

    def expected(self) -> Array:
        out = np.asarray(reference.KERNELS[self.op](self.attrs, *self.inputs))
        return out.astype(self.out_dtype) if self.out_dtype else out

    def run(self) -> Array:
        expected = self.expected()
        out = np.full(expected.shape, 77, expected.dtype)
        cpu.call(self.op, out, self.inputs, self.attrs)
        return out


def values(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0, low: float = -3.0) -> Array:
    """Numbers in [low, 3), whole and small where the type is an integer."""
    numbers = np.random.default_rng(seed).uniform(low, 3.0, shape)
    return np.asarray(numbers > 0 if dtype == "bool" else np.abs(numbers) if dtype == "uint8" else numbers).astype(
        dtype
    )


def pooled(shape: tuple[int, ...]) -> Array:
    """Ties, among them zeros of both signs, and NaN: which of several counts must not depend on where a vector ends."""
    dice = np.random.default_rng(3)
    return dice.choice(
        np.array([-1, -0.0, 0.0, 1, np.nan, -np.inf], np.float32), shape, p=[0.2, 0.3, 0.3, 0.1, 0.05, 0.05]
    )


def special(dtype: str) -> Array:
    """Every pair-worthy odd value, followed by enough ordinary ones to fill several vectors."""
    with np.errstate(over="ignore"):
        return np.concatenate([np.array(SPECIALS, dtype), values((90,), dtype)]).astype(dtype)


# The cases: the whole promise of the table of operations, as data -------------------------------------

SHAPES = [(), (1,), (0,), (3, 0), (7,), (33,), (5, 19), (2, 3, 4, 5)]
PAIRS = [
    ((4, 7), (4, 7)),
    ((4, 7), (7,)),
    ((4, 7), (4, 1)),
    ((), (5, 3)),
    ((3, 1, 5), (2, 1)),
    ((0, 3), (3,)),
    ((17,), ()),
]
ROUNDED_UNARY = {
    "exp": 3e-7,
    "log": 3e-7,
    "log1p": 3e-7,
    "tanh": 3e-7,
    "sigmoid": 3e-7,
    "erf": 3e-7,
    "erfc": 3e-7,
    "ndtr": 3e-7,
    "gelu": 3e-7,
    "sin": 3e-7,
    "cos": 3e-7,
    "softplus": 3e-7,
}
GAMMAS = ("lgamma", "digamma", "trigamma")  # of float64 within some 1e-15 of what their terms are
BENT: dict[str, dict[str, Any]] = {
    "hardtanh": {"low": -0.5, "high": 1.25},
    "clip": {"low": -0.5, "high": 1.25},
    "hardsigmoid": {},
    "hardswish": {},
    "softshrink": {"bound": 0.4},
    "leaky_relu": {"slope": 0.1},
    "huber": {"delta": 1.1},
}
EXACT_UNARY = ["neg", "abs", "sqrt", "relu", "square", "sign", "floor", "ceil", "trunc", "round", "logical_not"]
ARITHMETIC = ["add", "sub", "mul", "maximum", "minimum"]
COMPARE = [
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
]
AXES = [
    ((), ()),
    ((9,), (0,)),
    ((4, 33), (1,)),
    ((40, 7), (0,)),
    ((3, 5, 7), (0, 2)),
    ((3, 5, 7), (1,)),
    ((2, 3, 4, 5), (0, 2, 3)),
    ((1, 300), (1,)),
    ((3000, 3), (0,)),
    ((5, 1, 4), (1,)),
    ((3, 5), ()),
]
MATMULS = [
    ((3, 4), (4, 5)),
    ((1, 1), (1, 1)),
    ((65, 300), (300, 33)),
    ((12, 64), (64, 32)),
    ((13, 7), (7, 70)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((2, 5, 4), (2, 4, 3)),
    ((3, 1, 5, 4), (2, 4, 6)),
    ((6, 20, 9), (9, 8)),
    ((100, 17), (17, 1)),
]
# (N, C, H, W), (O, C / groups, KH, KW), stride, padding, dilation, groups
CONVS = [
    ((2, 3, 8, 9), (4, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 2, 7, 7), (5, 2, 3, 2), (2, 1), (0, 1), (1, 1), 1),
    ((2, 4, 9, 8), (6, 2, 3, 3), (2, 2), (2, 1), (2, 1), 2),
    ((1, 6, 5, 5), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 6),
    ((3, 1, 6, 6), (2, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((1, 40, 6, 6), (13, 40, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((0, 2, 5, 5), (3, 2, 3, 3), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 5, 70), (35, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),  # lines of several panels, the last not whole
    ((2, 5, 9, 32), (13, 5, 3, 3), (2, 1), (1, 1), (2, 1), 1),  # lines apart, windows next to each other
    ((3, 4, 11, 13), (34, 2, 2, 3), (1, 1), (0, 2), (1, 1), 2),  # panels across lines
    ((2, 2, 3, 40), (5, 2, 1, 3), (1, 2), (0, 1), (1, 1), 1),
    ((2, 21, 9, 19), (21, 1, 3, 3), (1, 2), (1, 2), (2, 1), 21),  # depth-wise
    ((1, 40, 6, 18), (40, 1, 5, 4), (2, 1), (2, 0), (1, 1), 40),
    ((1, 5, 40, 150), (5, 1, 3, 3), (1, 1), (1, 1), (1, 1), 5),  # more than is at work at once
    ((2, 27, 13, 23), (5, 27, 4, 4), (2, 2), (1, 1), (1, 1), 1),  # back in phases of equal taps, blocks of channels
    ((1, 3, 70, 150), (6, 3, 5, 2), (3, 2), (2, 0), (1, 1), 1),  # some of their lines at a time
    ((2, 4, 9, 11), (6, 2, 1, 2), (2, 3), (0, 1), (1, 2), 2),  # without taps in some
    ((5, 3, 4, 3), (6, 3, 4, 3), (2, 1), (0, 0), (1, 1), 1),  # as large as its image
]
POOLS = [
    ((2, 3, 8, 8), (2, 2), (2, 2), (0, 0)),
    ((1, 2, 7, 9), (3, 2), (2, 1), (1, 1)),
    ((2, 1, 5, 5), (3, 3), (1, 1), (1, 0)),
    *[(shape, (2, 2), (2, 2), (0, 0)) for shape in [(3, 2, 24, 24), (1, 2, 4, 70), (2, 2, 33, 34), (2, 2, 34, 35)]],
]


def elementwise_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for shape in SHAPES:
            for op in EXACT_UNARY:
                yield Case(op, [np.abs(values(shape, dtype)) if op == "sqrt" else values(shape, dtype)])
            for op in GAMMAS:
                yield Case(op, [values(shape, dtype)], tolerance=3e-7 if dtype == "float32" else 1e-14)
            for scale in (1.0, 1e-9):  # within -1 and 1
                x = values(shape, dtype) * np.asarray(scale / 3.0, dtype)
                yield Case("erfinv", [x], tolerance=1e-7 if dtype == "float32" else 1e-15)
            for op, tolerance in ROUNDED_UNARY.items():
                x = values(shape, dtype, low={"log": 0.01, "log1p": -0.99}.get(op, -3.0))
                yield Case(op, [x], tolerance=tolerance if dtype == "float32" else 1e-15)
    for left, right in PAIRS:
        for dtype in (*FLOATS, "int64", "int32", "uint8"):
            a, b = values(left, dtype), values(right, dtype, seed=1)
            for op in ARITHMETIC:
                yield Case(op, [a, b])
            if dtype in FLOATS:
                yield Case("div", [a, b])
                yield Case("pow", [np.abs(a), b], tolerance=3e-7 if dtype == "float32" else 1e-15)
                yield Case("copysign", [a, b])
                yield Case("logaddexp", [a, b], tolerance=3e-7 if dtype == "float32" else 1e-15)
            if dtype == "float32":
                yield Case("atan2", [a, b], tolerance=3e-7)
                yield Case("hypot", [a, b], tolerance=1e-7)
                yield Case("remainder", [a, b])
                yield Case("remainder", [a * np.float32(1e12), b])
        for dtype in (*FLOATS, "int64", "int32", "uint8", "bool"):
            a, b = values(left, dtype), values(right, dtype, seed=1)
            for op in COMPARE:
                yield Case(op, [a, b])
            yield Case("where", [values(right, "bool", seed=2), a, b])
    for dtype in ("int64", "int32", "uint8"):
        for op in ("neg", "abs", "square", "relu", "floor", "logical_not"):
            yield Case(op, [values((37,), dtype)])
    for dtype in ("int64", "int32"):
        yield Case("sign", [values((37,), dtype)])
    for origin in (*FLOATS, "int64", "int32", "uint8", "bool"):
        for to in (*FLOATS, "int64", "int32", "uint8", "bool"):
            yield Case(
                "cast",
                [np.abs(values((41,), origin)) if origin != "bool" else values((41,), origin)],
                {"dtype": to},
            )


def reduction_cases() -> Iterator[Case]:
    for shape, axes in AXES:
        for keepdims in (False, True):
            attrs = {"axes": axes, "keepdims": keepdims}
            for dtype in FLOATS:
                tolerance = 1e-5 if dtype == "float32" else 1e-13
                yield Case("sum", [values(shape, dtype)], attrs, tolerance=tolerance)
                yield Case("mean", [values(shape, dtype)], attrs, tolerance=tolerance)
                yield Case("prod", [1.0 + values(shape, dtype) / 100.0], attrs, tolerance=tolerance)
            for dtype in (*FLOATS, "int64", "int32", "uint8"):
                yield Case("max", [values(shape, dtype)], attrs)
                yield Case("min", [values(shape, dtype)], attrs)
            for dtype in ("int64", "int32", "uint8"):
                yield Case("sum", [values(shape, dtype)], attrs)
                yield Case("prod", [values(shape, dtype)], attrs)
            yield Case("sum", [values(shape, "bool")], attrs)
            mostly = values(shape, dtype="float32") < 2.99
            for op in ("all", "any"):
                yield Case(op, [values(shape, "bool")], attrs)
                yield Case(op, [mostly if op == "all" else ~mostly], attrs)
        for axis in range(len(shape)):
            for dtype in (*FLOATS, "int64", "int32", "uint8", "bool"):
                yield Case("argmax", [values(shape, dtype)], {"axis": axis})
                for op in ("cumulative_argmax", "cumulative_argmin"):
                    yield Case(op, [values(shape, dtype)], {"axis": axis})
            for op in ("cumulative_argmax", "cumulative_argmin"):
                yield Case(op, [pooled(shape)], {"axis": axis})
            for dtype in FLOATS:
                terms, factors = values(shape, dtype), values(shape, dtype, seed=1)
                for way in (False, True):
                    small = 1e-6 if dtype == "float32" else 1e-13
                    how = {"axis": axis, "backwards": way}
                    yield Case("recurrence", [terms, np.where(factors < -2, 0, factors / 3)], how, tolerance=small)
            for dtype in (*FLOATS, "int64", "int32"):
                for op in ("cumulative_sum", "cumulative_prod"):
                    yield Case(op, [values(shape, dtype)], {"axis": axis})
    for op in ("cumulative_sum", "cumulative_prod"):
        yield Case(op, [values(())], {"axis": 0})
    yield Case("sum", [values((0, 3))], {"axes": (0,), "keepdims": False})
    for dtype in (*FLOATS, "int32"):
        yield Case("prod", [values((0, 3), dtype)], {"axes": (0,), "keepdims": False})
    for op in ("all", "any"):
        yield Case(op, [values((0, 3), "bool")], {"axes": (0,), "keepdims": False})
    yield Case("sum", [values((200_000,))], {"axes": (0,), "keepdims": False}, tolerance=1e-5)
    yield Case("sum", [values((5000, 300))], {"axes": (0,), "keepdims": False}, tolerance=1e-5)
    for axis, shape in ((0, (5,)), (1, (4, 10)), (1, (3, 150)), (0, (6, 4)), (1, (2, 5, 3))):
        for dtype in FLOATS:
            for op in ("softmax", "log_softmax"):
                yield Case(
                    op,
                    [values(shape, dtype)],
                    {"axis": axis},
                    tolerance=1e-6 if dtype == "float32" else 1e-14,
                )
                inputs = [values(shape, dtype), values(shape, dtype, seed=1)]
                yield Case(f"{op}_grad", inputs, {"axis": axis}, tolerance=1e-5 if dtype == "float32" else 1e-13)
    for dtype in FLOATS:
        of_rows = [((3, 700), (3, 700)), ((), (3, 700)), ((3, 1), (3, 700)), ((3, 700), (1, 1))]
        for of_result, of_input in (*PAIRS, *of_rows):
            inputs = [values(of_result, dtype), 30 * values(of_input, dtype, seed=1)]
            for op in ("softplus_grad", "gelu_grad"):
                yield Case(op, inputs, tolerance=1e-6 if dtype == "float32" else 1e-14)
            for op, attrs in BENT.items():
                yield Case(f"{op}_grad", [inputs[0], inputs[1] / np.asarray(10.0, dtype)], attrs)
                yield Case(op, [inputs[1]], attrs)
    several = (2, 1, 3), (3, 21, 5, 7), (2, 150, 1, 40), (2, 3, 0)
    for rows, classes, *pixels in ((1, 1), (5, 10), (64, 150), (0, 4), *several):
        labels = np.random.default_rng(3).integers(0, classes, (rows, *pixels))
        for dtype in FLOATS:
            logits, tolerance = values((rows, classes, *pixels), dtype), 1e-6 if dtype == "float32" else 1e-14
            yield Case("cross_entropy", [logits, labels], tolerance=tolerance)
            upstream = values(labels.shape, dtype, seed=1)
            yield Case("cross_entropy_grad", [upstream, logits, labels], tolerance=tolerance)


def movement_cases() -> Iterator[Case]:
    indices = np.array([[0, 2], [1, -1]])
    for dtype in (*FLOATS, "int64", "int32", "uint8", "bool"):
        x = values((3, 4, 5), dtype)
        yield Case("reshape", [x], {"shape": (4, 15)})
        for axes in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (1, 0, 2)):
            yield Case("transpose", [x], {"axes": axes})
        yield Case("transpose", [values((70, 45), dtype)], {"axes": (1, 0)})
        yield Case("broadcast_to", [values((4, 1), dtype)], {"shape": (2, 4, 3)})
        yield Case("broadcast_to", [values((), dtype)], {"shape": (2, 0)})
        yield Case("slice", [x], {"starts": (0, 1, 4), "stops": (3, 4, 0), "steps": (2, 1, -2)})
        yield Case("slice", [x], {"starts": (1, 0, 2), "stops": (1, 4, 5), "steps": (1, 3, 1)})
        yield Case("pad", [x], {"pads": ((1, 0), (0, 2), (3, 1)), "value": 1.0})
        yield Case("concat", [x, values((3, 1, 5), dtype, seed=1), values((3, 0, 5), dtype)], {"axis": 1})
        yield Case("concat", [values((i, 2), dtype, seed=i) for i in range(8)], {"axis": 0})
        for axis in range(3):
            yield Case("take", [x, indices], {"axis": axis})
        yield Case("take_along", [x, np.array([[[0, 1, 2, 3, 4]]] * 3) % 3], {"axis": 1})
        for shape in ((4,), (4, 3, 5), (0, 3)):
            for how in ("none", "add", "mul", "min", "max"):
                places = np.array([2, -1, 0, 2, 2, 1] if shape[0] else [], np.int64)
                rows = values((len(places), *shape[1:]), dtype, seed=1)
                yield Case("scatter", [values(shape, dtype), places, rows], {"reduction": how})
    for dtype in FLOATS:
        yield Case(
            "scatter", [values((7, 300), dtype), np.arange(90) % 7, values((90, 300), dtype)], {"reduction": "add"}
        )
        for axis, shape in ((0, (2, 2, 4, 5)), (1, (3, 2, 2, 5)), (2, (3, 4, 2, 2))):
            yield Case("take_grad", [values(shape, dtype), indices], {"axis": axis, "size": 5})
            places = np.arange(math.prod(shape)).reshape(shape) ** 2 % 5 - 2
            how = {"axis": axis, "size": 5, "terms": 2, "from_zero": False}
            yield Case("take_along_grad", [values(shape, dtype), places], how)
        for shape, labels in CTC:
            yield from ctc_cases(shape, labels, dtype)
    yield Case("scatter", [pooled((30,)), np.arange(90) % 30, pooled((90,))], {"reduction": "max"})
    yield Case("scatter", [pooled((30,)), np.arange(90) % 30, pooled((90,))], {"reduction": "min"})
    yield Case("one_hot", [np.array([[0, 3], [2, 2]])], {"depth": 4})
    yield Case("uniform", [np.array([2**40 + 5, 7], np.uint64)], {"shape": (3, 7), "stream": 9})
    yield Case("uniform", [np.array([2**40 + 5, 2**33 + 1], np.uint64)], {"shape": (5000,), "stream": 0})


# steps, rows, classes, labels
CTC = [((1, 1, 1), 0), ((5, 3, 4), 2), ((7, 2, 3), 4), ((40, 3, 20), 15), ((40, 2, 6), 16), ((9, 2, 5), 0)]


def ctc_cases(shape: tuple[int, ...], size: int, dtype: str) -> Iterator[Case]:
    """Rows of each length, labels that are alike, next to each other and blank; rows that cannot be are among them."""
    (steps, rows, classes), dice = shape, np.random.default_rng(size)
    log_probs = values(shape, dtype) - 2
    targets = dice.integers(0, min(classes, 4), (rows, size))
    lengths = [np.arange(rows) * most // max(rows - 1, 1) for most in (steps, size)]
    lengths[0] = steps - lengths[0] * 3 // 4
    tolerance, g = 1e-5 if dtype == "float32" else 1e-13, values((rows,), dtype, seed=3)
    for blank in {0, classes - 1}:
        how = {"blank": blank, "zero_infinity": True}
        yield Case("ctc_loss", [log_probs, targets, *lengths], how, tolerance=tolerance)
        yield Case("ctc_loss_grad", [g, log_probs, targets, *lengths], how, tolerance=tolerance)


def network_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        for left, right in MATMULS:
            a, b = values(left, dtype), values(right, dtype, seed=1)
            for ta in (False, True):
                for tb in (False, True):
                    x = np.ascontiguousarray(a.swapaxes(-1, -2)) if ta else a
                    y = np.ascontiguousarray(b.swapaxes(-1, -2)) if tb else b
                    yield Case("matmul", [x, y], {"transpose_a": ta, "transpose_b": tb}, tolerance=tolerance)
        for xs, ws, stride, padding, dilation, groups in CONVS:
            attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            x, w = values(xs, dtype), values(ws, dtype, seed=1)
            forward = Case("conv2d", [x, w], attrs, tolerance=tolerance)
            g = values(forward.expected().shape, dtype, seed=2)
            yield forward
            yield Case("conv2d_grad_input", [g, w], {**attrs, "input_shape": xs}, tolerance=tolerance)
            yield Case("conv2d_grad_weight", [g, x], {**attrs, "weight_shape": ws}, tolerance=tolerance)
        for xs, kernel, stride, padding in POOLS:
            attrs = {"kernel": kernel, "stride": stride, "padding": padding}
            x = np.round(values(xs, dtype))  # ties: the first one counts
            forward = Case("max_pool2d", [x], attrs)
            g = values(forward.expected().shape, dtype, seed=2)
            yield forward
            yield Case("max_pool2d_grad", [g, x], attrs, tolerance=tolerance)
            yield Case("avg_pool2d", [x], attrs, tolerance=tolerance)
            yield Case("avg_pool2d_grad", [g], {**attrs, "input_shape": xs}, tolerance=tolerance)
    for left, right in MATMULS[:4]:
        for dtype in ("int64", "int32", "uint8"):
            yield Case(
                "matmul",
                [values(left, dtype), values(right, dtype)],
                {"transpose_a": False, "transpose_b": False},
            )


def optimizer_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        tolerance = 1e-6 if dtype == "float32" else 1e-14
        p, g, b, v = (values((5, 23), dtype, seed=i) for i in range(4))
        lr, step = np.array(0.01, dtype), np.array(3.0, "float32")
        for decay in (0.0, 0.1):
            yield Case("sgd_update", [p, g, lr], {"weight_decay": decay}, tolerance=tolerance)
            yield Case("momentum", [b, g, p], {"momentum": 0.9, "weight_decay": decay}, tolerance=tolerance)
            yield Case(
                "nesterov_update",
                [p, g, b, lr],
                {"momentum": 0.9, "weight_decay": decay},
                tolerance=tolerance,
            )
            yield Case("adam_m", [b, g, p], {"beta": 0.9, "weight_decay": decay}, tolerance=tolerance)
            yield Case("adam_v", [np.abs(v), g, p], {"beta": 0.999, "weight_decay": decay}, tolerance=tolerance)
            attrs = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decoupled_weight_decay": decay}
            yield Case("adam_update", [p, b, np.abs(v), lr, step], attrs, out_dtype=dtype, tolerance=tolerance)
        yield Case("axpy_update", [p, b, lr], tolerance=tolerance)


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "elementwise": elementwise_cases,
    "reduction": reduction_cases,
    "movement": movement_cases,
    "network": network_cases,
    "optimizer": optimizer_cases,
}
CASES: dict[str, list[Case]] = {}
for _make in GROUPS.values():
    with np.errstate(all="ignore"):
        for _case in _make():
            CASES.setdefault(_case.op, []).append(_case)
# What is made of other calls on a device with its own memory, or on the host.
HOST_ONLY = frozenset(
    "clip clip_grad hardtanh hardtanh_grad hardsigmoid hardsigmoid_grad hardswish hardswish_grad softshrink "
    "softshrink_grad huber huber_grad leaky_relu leaky_relu_grad "
    "take_along_grad ctc_loss ctc_loss_grad ceil trunc round lgamma digamma trigamma erfinv hypot copysign remainder "
    "logaddexp cumulative_argmax cumulative_argmin recurrence scatter".split()
)

# the same operations on sizes that threads share, and with every odd value, for the promise about bits


def window(stride: int, groups: int) -> dict[str, Any]:
    return {"stride": (stride, stride), "padding": (1, 1), "dilation": (1, 1), "groups": groups}


BIG = [
    *ctc_cases((130, 40, 30), 50, "float32"),
    Case("exp", [values((300, 1001))]),
    Case("sin", [values((300, 1001)) * np.float32(3e5)]),  # some beyond 2**20
    Case("log", [np.abs(values((300, 1001)))]),
    Case("tanh", [values((300, 1001))]),
    Case("add", [values((300, 1001)), values((1001,), seed=1)]),
    Case("div", [values((300, 1001)), values((300, 1), seed=1)]),
    Case("sum", [values((400_000,))], {"axes": (0,), "keepdims": False}),
    Case("sum", [values((9000, 70))], {"axes": (0,), "keepdims": False}),
    Case("sum", [values((2000, 384))], {"axes": (0,), "keepdims": False}),
    Case("sum", [values((2100, 100), "float64")], {"axes": (0,), "keepdims": False}),
    Case("mean", [values((16, 24, 30, 30))], {"axes": (0, 2, 3), "keepdims": True}),
    Case("transpose", [values((390, 270))], {"axes": (1, 0)}),
    Case("transpose", [values((3, 170, 210), "float64")], {"axes": (0, 2, 1)}),
    Case("max", [values((9000, 70))], {"axes": (0,), "keepdims": False}),
    Case("prod", [1.0 + values((400_000,)) / 1000], {"axes": (0,), "keepdims": False}),
    Case("prod", [1.0 + values((9000, 70)) / 100], {"axes": (0,), "keepdims": False}),
    Case("log1p", [np.abs(values((300, 1001)))]),
    Case("atan2", [values((300, 1001)), values((1001,), seed=1)]),
    *[
        Case(op, [pooled(shape)], {"axes": (axis,), "keepdims": False})
        for op in ("sum", "max", "min")
        for shape in [(3, 37), (70, 1037), (37, 999), (70, 10)]
        for axis in (0, 1)
    ],
    *[  # many rows and few columns: each thread makes its rows apart
        Case("matmul", [values((k, m)), values((k, n), seed=1)], {"transpose_a": True, "transpose_b": False})
        for k, m, n in ((900, 301, 40), (800, 500, 67))
    ],
    Case("softmax", [values((700, 130))], {"axis": 1}),
    Case("softmax", [values((130, 1100))], {"axis": 0}),
    Case("log_softmax", [values((40, 21, 333))], {"axis": 1}),
    Case("softplus", [30 * values((300, 1001))]),
    Case("softplus_grad", [values((300, 1001)), 30 * values((300, 1001), seed=1)]),
    Case("gelu_grad", [values((300, 1001)), 3 * values((300, 1001), seed=1)]),
    *[
        Case(op, [values((9, 130, 41)), values((9, 130, 41), seed=1)], {"axis": axis})
        for op in ("softmax_grad", "log_softmax_grad")
        for axis in (0, 1, 2)
    ],
    *[Case("cumulative_sum", [values((37, 70, 41))], {"axis": axis}) for axis in (0, 1, 2)],
    Case("cross_entropy_grad", [values((900,)), values((900, 130)), np.arange(900) % 130]),
    Case("cross_entropy_grad", [values((9, 500)), values((9, 21, 500)), np.arange(4500).reshape(9, 500) % 21]),
    Case("matmul", [values((130, 600)), values((600, 90))], {"transpose_a": False, "transpose_b": False}),
    Case("matmul", [values((300, 1100)), values((1100, 90))], {"transpose_a": False, "transpose_b": False}),
    Case("matmul", [values((600, 130)), values((90, 600))], {"transpose_a": True, "transpose_b": True}),
    Case("matmul", [values((20, 40, 30)), values((20, 30, 50))], {"transpose_a": False, "transpose_b": False}),
    Case("matmul", [values((3, 700)), values((700, 900))], {"transpose_a": False, "transpose_b": False}),
    Case("matmul", [values((101, 700)), values((700, 1110))], {"transpose_a": False, "transpose_b": False}),
    Case("matmul", [values((131, 1030)), values((2090, 1030))], {"transpose_a": False, "transpose_b": True}),
    Case("matmul", [values((70, 200)), values((70, 2060))], {"transpose_a": True, "transpose_b": False}),
    Case("matmul", [values((410, 380)), values((410, 130))], {"transpose_a": True, "transpose_b": False}),
    Case("matmul", [values((260, 530)), values((790, 530))], {"transpose_a": False, "transpose_b": True}),
    Case(
        "matmul",
        [values((61, 97), "float64"), values((650, 97), "float64")],
        {"transpose_a": False, "transpose_b": True},
    ),
    Case("matmul", [values((1, 700)), values((901, 700))], {"transpose_a": False, "transpose_b": True}),
    Case("matmul", [values((1, 700)), values((700, 4352))], {"transpose_a": False, "transpose_b": False}),
    Case(
        "conv2d",
        [values((4, 20, 14, 15)), values((30, 20, 3, 3))],
        {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1},
    ),
    *[
        Case("conv2d", [values((images, 4, 15, 14)), values((14, 2, 3, 3))], window(stride, groups=2))
        for images in (1, 5, 13)
        for stride in (1, 2)
    ],
    Case(
        "conv2d_grad_weight",
        [values((13, 14, 15, 14)), values((13, 4, 15, 14))],
        {**window(1, groups=2), "weight_shape": (14, 2, 3, 3)},
    ),
    Case(
        "conv2d_grad_input",
        [values((4, 30, 14, 15)), values((30, 20, 3, 3))],
        {
            "stride": (1, 1),
            "padding": (1, 1),
            "dilation": (1, 1),
            "groups": 1,
            "input_shape": (4, 20, 14, 15),
        },
    ),
    Case(
        "conv2d_grad_weight",
        [values((4, 30, 14, 15)), values((4, 20, 14, 15))],
        {
            "stride": (1, 1),
            "padding": (1, 1),
            "dilation": (1, 1),
            "groups": 1,
            "weight_shape": (30, 20, 3, 3),
        },
    ),
    Case("take_grad", [values((3000, 64)), np.arange(3000) ** 2 % 50], {"axis": 0, "size": 50}),
    Case("uniform", [np.array([1, 2], np.uint64)], {"shape": (100_003,), "stream": 4}),
    Case("max_pool2d", [values((8, 16, 33, 34))], {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
    *[
        Case(f"max_pool2d{grad}", inputs, {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)})
        for n, c, h, w in [(3, 5, 14, 14), (2, 7, 28, 28), (1, 1, 2, 2), (2, 2, 5, 3), (1, 3, 4, 90), (400, 16, 15, 15)]
        for grad, inputs in [
            ("", [pooled((n, c, h, w))]),
            ("_grad", [np.round(values((n, c, h // 2, w // 2))), pooled((n, c, h, w))]),
        ]
    ],
]
ODD = [Case(op, [special(dtype)]) for op in (*ROUNDED_UNARY, *EXACT_UNARY) for dtype in FLOATS] + [
    Case(op, [special(dtype)[:, None], special(dtype)[None, :13]])
    for op in (*ARITHMETIC, "div", "pow", *COMPARE)
    for dtype in FLOATS
]
ODD += [Case("atan2", [special("float32")[:, None], special("float32")[None, :13]])]

LENGTHS = (1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 257, 1000, 1025)


def sized_cases(n: int, dtype: str) -> Iterator[Case]:
    """Of rows and of columns of n numbers: where vectors, blocks of sums and panels end."""
    small, large = (1e-5, 3e-7) if dtype == "float32" else (1e-13, 1e-15)  # of sums, and of single roundings
    row, rows, columns = (values(shape, dtype, seed=n) for shape in ((n,), (3, n), (n, 3)))
    stack, several = values((2, n, 5), dtype), [values((n,), dtype, seed=seed) for seed in range(4)]
    labels = np.random.default_rng(n).integers(0, n, (3, 5))
    for op in EXACT_UNARY:
        yield Case(op, [np.abs(row)])
    for op, tolerance in ROUNDED_UNARY.items():
        yield Case(op, [np.abs(row) + 0.01], tolerance=tolerance if dtype == "float32" else 1e-15)
    for op in (*ARITHMETIC, "div", *COMPARE):
        for left, right in ((row, several[1]), (rows, row), (columns, columns[:, :1]), (row[:1], rows)):
            yield Case(op, [left, np.ascontiguousarray(right)])
    yield Case("pow", [np.abs(row), several[1]], tolerance=large)
    if dtype == "float32":
        yield Case("atan2", [row, several[1]], tolerance=large)
    yield Case("where", [row > 0, row, several[1]])
    for op in ("softplus_grad", "gelu_grad"):
        yield Case(op, [row, several[1]], tolerance=small)
    for op, attrs in BENT.items():
        yield Case(op, [row], attrs)
        yield Case(f"{op}_grad", [row, several[1]], attrs)
    for x, axis in ((rows, 1), (columns, 0), (stack, 1)):
        for op in ("sum", "mean", "max", "min"):
            exact = op in ("max", "min")
            yield Case(op, [x], {"axes": (axis,), "keepdims": False}, tolerance=0.0 if exact else small)
        attrs = {"axes": (axis,), "keepdims": False}
        yield Case("prod", [1.0 + x / 100.0], attrs, tolerance=small)
        for op, x_of in (("all", x < 2.9), ("any", x > 2.9)):
            yield Case(op, [x_of], attrs)
        yield Case("argmax", [x], {"axis": axis})
        yield Case("cumulative_sum", [x], {"axis": axis}, tolerance=small)
        yield Case("cumulative_prod", [1.0 + x / 100.0], {"axis": axis}, tolerance=small)
        yield Case("cumulative_argmax", [x], {"axis": axis})
        yield Case(
            "recurrence", [x, np.ascontiguousarray(x[::-1]) / 3], {"axis": axis, "backwards": True}, tolerance=small
        )
        for op in ("softmax", "log_softmax"):
            yield Case(op, [x], {"axis": axis}, tolerance=small)
            yield Case(f"{op}_grad", [x, np.ascontiguousarray(x[::-1])], {"axis": axis}, tolerance=small)
        yield Case("take", [x, np.array([0, -1, n // 2])], {"axis": axis})
        yield Case("take_grad", [x, np.arange(n) % 4], {"axis": axis, "size": 4}, tolerance=small)
        yield Case("take_along", [x, np.zeros(x.shape, np.int64) + n // 2], {"axis": axis})
        how = {"axis": axis, "size": n, "terms": 32, "from_zero": True}
        yield Case("take_along_grad", [x, np.arange(x.size).reshape(x.shape) ** 2 % n], how, tolerance=small)
        yield Case("concat", [x, x], {"axis": axis})
    yield Case("cross_entropy", [values((3, n, 5), dtype), labels], tolerance=small)
    yield Case("cross_entropy_grad", [values((3, 5), dtype), values((3, n, 5), dtype), labels], tolerance=small)
    yield Case("transpose", [rows], {"axes": (1, 0)})
    yield Case("transpose", [stack], {"axes": (0, 2, 1)})
    yield Case("slice", [rows], {"starts": (1, 0), "stops": (3, n), "steps": (1, 3)})
    yield Case("slice", [rows], {"starts": (0, n - 1), "stops": (3, 0), "steps": (2, -1)})
    yield Case("pad", [rows], {"pads": ((1, 0), (0, 3)), "value": 2.0})
    yield Case("broadcast_to", [row], {"shape": (4, n)})
    yield Case("cast", [row], {"dtype": "float64" if dtype == "float32" else "float32"})
    yield Case("one_hot", [labels], {"depth": n})
    yield Case("uniform", [np.array([5, 7], np.uint64)], {"shape": (n,), "stream": 9})
    for left, right in (
        (rows, columns),
        (columns, rows),
        (rows, values((n, 37), dtype)),
        (values((37, n), dtype), columns),
    ):
        for ta, tb in ((False, False), (True, False), (False, True), (True, True)):
            a, b = (np.ascontiguousarray(x.T) if turned else x for x, turned in ((left, ta), (right, tb)))
            yield Case("matmul", [a, b], {"transpose_a": ta, "transpose_b": tb}, tolerance=small)
    p, g, b, v = several
    lr, step = np.array(0.01, dtype), np.array(3.0, "float32")
    decay, beta = {"weight_decay": 0.1}, {"beta": 0.9, "weight_decay": 0.1}
    yield Case("sgd_update", [p, g, lr], decay, tolerance=small)
    yield Case("momentum", [b, g, p], {"momentum": 0.9, **decay}, tolerance=small)
    yield Case("nesterov_update", [p, g, b, lr], {"momentum": 0.9, **decay}, tolerance=small)
    yield Case("axpy_update", [p, b, lr], tolerance=small)
    yield Case("adam_m", [b, g, p], beta, tolerance=small)
    yield Case("adam_v", [np.abs(v), g, p], beta, tolerance=small)
    attrs = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decoupled_weight_decay": 0.1}
    yield Case("adam_update", [p, b, np.abs(v), lr, step], attrs, out_dtype=dtype, tolerance=small)


SIZED = [case for n in LENGTHS for dtype in FLOATS for case in sized_cases(n, dtype)]


def machine_isas() -> list[str]:
    """The instruction sets this machine has."""
    own, found = cpu.isa(), []
    for name in ("avx512", "avx2", "portable"):
        try:
            cpu.set_isa(name)
            found.append(name)
        except ValueError:
            continue
    cpu.set_isa(own)
    return found


ISAS = machine_isas()


def same_bits(a: Array, b: Array) -> bool:
    """Equal byte for byte, except that a NaN is a NaN: IEEE leaves its payload to the processor."""
    if a.dtype.kind == "f":
        a, b = (np.where(np.isnan(x), np.array(math.nan, x.dtype), x) for x in (a, b))
    return a.tobytes() == b.tobytes()
