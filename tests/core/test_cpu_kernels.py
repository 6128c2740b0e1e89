"""The compiled kernels: each agrees with the NumPy definition, and gives the same bits whatever runs it."""

import ctypes
import itertools
import math
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cyxcore.errors import CyxError, DataError, DtypeError, GraphError, KernelError, ShapeError
from cyxcore.kernels import cpu, reference
from cyxcore.kernels.philox import philox4x32

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
    "tanh": 3e-7,
    "sigmoid": 3e-7,
    "erf": 3e-7,
    "sin": 3e-7,
    "cos": 3e-7,
}
EXACT_UNARY = ["neg", "abs", "sqrt", "relu", "square", "sign", "floor", "logical_not"]
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
            for op, tolerance in ROUNDED_UNARY.items():
                x = values(shape, dtype, low=0.01 if op == "log" else -3.0)
                yield Case(op, [x], tolerance=tolerance if dtype == "float32" else 1e-15)
    for left, right in PAIRS:
        for dtype in (*FLOATS, "int64", "int32", "uint8"):
            a, b = values(left, dtype), values(right, dtype, seed=1)
            for op in ARITHMETIC:
                yield Case(op, [a, b])
            if dtype in FLOATS:
                yield Case("div", [a, b])
                yield Case("pow", [np.abs(a), b], tolerance=3e-7 if dtype == "float32" else 1e-15)
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
            for dtype in (*FLOATS, "int64", "int32", "uint8"):
                yield Case("max", [values(shape, dtype)], attrs)
                yield Case("min", [values(shape, dtype)], attrs)
            for dtype in ("int64", "int32", "uint8"):
                yield Case("sum", [values(shape, dtype)], attrs)
            yield Case("sum", [values(shape, "bool")], attrs)
        for axis in range(len(shape)):
            for dtype in (*FLOATS, "int64", "int32", "uint8", "bool"):
                yield Case("argmax", [values(shape, dtype)], {"axis": axis})
            for dtype in (*FLOATS, "int64", "int32"):
                yield Case("cumulative_sum", [values(shape, dtype)], {"axis": axis})
    yield Case("sum", [values((0, 3))], {"axes": (0,), "keepdims": False})
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
    for dtype in FLOATS:
        for axis, shape in ((0, (2, 2, 4, 5)), (1, (3, 2, 2, 5)), (2, (3, 4, 2, 2))):
            yield Case("take_grad", [values(shape, dtype), indices], {"axis": axis, "size": 5})
    yield Case("one_hot", [np.array([[0, 3], [2, 2]])], {"depth": 4})
    yield Case("uniform", [np.array([2**40 + 5, 7], np.uint64)], {"shape": (3, 7), "stream": 9})
    yield Case("uniform", [np.array([2**40 + 5, 2**33 + 1], np.uint64)], {"shape": (5000,), "stream": 0})


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

# the same operations on sizes that threads share, and with every odd value, for the promise about bits


def window(stride: int, groups: int) -> dict[str, Any]:
    return {"stride": (stride, stride), "padding": (1, 1), "dilation": (1, 1), "groups": groups}


BIG = [
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


pytestmark = pytest.mark.usefixtures("own_machine")


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


def test_every_operation_of_the_table_has_a_case() -> None:
    assert set(CASES) == cpu.ops()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(CASES))
def test_a_kernel_agrees_with_numpy(op: str, isa: str) -> None:
    cpu.set_isa(isa)
    for case in CASES[op]:
        with np.errstate(all="ignore"):
            expected, got = case.expected(), case.run()
        described = f"{[(x.shape, x.dtype.name) for x in case.inputs]} {case.attrs}"
        if case.tolerance == 0.0:
            np.testing.assert_array_equal(got, expected, err_msg=described)
        else:
            scale = float(np.nanmax(np.abs(expected), initial=0.0))
            np.testing.assert_allclose(
                got, expected, rtol=case.tolerance, atol=case.tolerance * scale, err_msg=described
            )


@pytest.mark.parametrize("op", sorted(CASES))
def test_bits_do_not_depend_on_the_instruction_set(op: str) -> None:
    for case in [*CASES[op], *(c for c in (*BIG, *ODD) if c.op == op)]:
        with np.errstate(all="ignore"):
            cpu.set_isa(ISAS[0])
            first = case.run()
            for isa in ISAS[1:]:
                cpu.set_isa(isa)
                assert same_bits(first, case.run()), (
                    isa,
                    [(x.shape, x.dtype.name) for x in case.inputs],
                    case.attrs,
                )


@pytest.mark.parametrize("op", sorted(ROUNDED_UNARY))
def test_any_float32_has_one_result_whatever_the_instruction_set(op: str) -> None:
    """Their vectors are written by hand for some of them. Bit patterns at random: every exponent, NaNs, infinities."""
    bits = np.random.default_rng(4).integers(0, 2**32, 300_007, dtype=np.uint32)
    near = np.random.default_rng(5).normal(0, 3, 100_003).astype(np.float32)
    case = Case(op, [np.concatenate([bits.view(np.float32), near, np.arange(-105, 90, 0.01, np.float32)])])
    cpu.set_isa(ISAS[0])
    with np.errstate(all="ignore"):
        first = case.run()
        for isa in ISAS[1:]:
            cpu.set_isa(isa)
            assert same_bits(first, case.run()), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_small_product_has_the_bits_of_its_rows_in_a_tall_one(isa: str, dtype: str) -> None:
    """A short way of its own leads to the blocks of a small one."""
    cpu.set_isa(isa)
    for m, k, n in [
        (2, 1, 1),
        (8, 8, 8),
        (13, 7, 70),
        (48, 48, 48),
        (5, 64, 500),
        (61, 130, 35),
        (128, 64, 48),
        (6, 3, 0),
        (64, 64, 10),  # of a turned B with fewer columns than a vector has lanes
        (32, 130, 2),
        (96, 45, 3),
        (64, 33, 6),
    ]:
        a, b = values((m, k), dtype), values((k, n), dtype, seed=1)
        tall = Case("matmul", [np.tile(a, (40, 1)), b], {"transpose_a": False, "transpose_b": False}).run()
        for ta, tb in itertools.product((False, True), repeat=2):
            left = np.ascontiguousarray(a.T) if ta else a
            right = np.ascontiguousarray(b.T) if tb else b
            small = Case("matmul", [left, right], {"transpose_a": ta, "transpose_b": tb}).run()
            assert same_bits(small, np.ascontiguousarray(tall[:m])), (m, k, n, ta, tb)


@pytest.mark.parametrize("case", BIG, ids=lambda case: f"{case.op}-{'x'.join(map(str, case.inputs[0].shape))}")
def test_bits_do_not_depend_on_the_number_of_threads(case: Case) -> None:
    cpu.set_num_threads(1)
    alone = case.run()
    for threads in (2, 3):
        cpu.set_num_threads(threads)
        assert same_bits(alone, case.run())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", [*EXACT_UNARY, *ARITHMETIC, "div", *COMPARE])
def test_nan_infinity_and_signed_zero_are_treated_as_numpy_does(op: str, dtype: str) -> None:
    x = special(dtype)
    inputs = [x] if op in EXACT_UNARY else [np.repeat(x, len(SPECIALS)), np.tile(x[: len(SPECIALS)], len(x))]
    case = Case(op, inputs)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(case.run(), case.expected())


# accuracy -------------------------------------------------------------------------------------------------

DENSE = {"exp": 88.0, "log": 3e38, "tanh": 9.5, "sigmoid": 90.0, "erf": 4.2, "sin": 1e5, "cos": 1e5}


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[Executor]:
    """Where extended precision can be trusted: an embedded chain leaves its process' x87 registers in disorder."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def units_off(op: str, x: Array, got: Array) -> float:
    """The largest error of `got` in units in the last place, judged in float64 (x87 extended for float64)."""
    wide: Any = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    if op == "sigmoid":
        true = np.asarray(1 / (1 + np.exp(-wide)))
    elif op == "erf":
        true = np.array([math.erf(v) for v in wide])
    else:
        functions = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sin": np.sin, "cos": np.cos}
        true = np.asarray(functions[op](wide))
    unit = np.spacing(np.abs(true).astype(x.dtype)).astype(true.dtype)
    return float((np.abs(got.astype(true.dtype) - true) / unit).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", sorted(DENSE))
def test_a_transcendental_function_is_within_two_units_in_the_last_place(
    op: str, dtype: str, fresh_process: Executor
) -> None:
    if dtype == "float64" and np.finfo(np.longdouble).nmant < 63:
        pytest.skip("needs extended precision to judge float64")
    rng = np.random.default_rng(11)
    if op == "log":
        x = np.exp(rng.uniform(-87, 88, 40_000)).astype(dtype)
    else:
        x = np.concatenate([rng.uniform(-DENSE[op], DENSE[op], 20_000), rng.normal(0, 1, 20_000)]).astype(dtype)
    got = np.empty_like(x)
    cpu.call(op, got, [x], {})
    allowed = 2.0 if op != "erf" or dtype == "float32" else 3.0  # math.erf itself is off by one in float64
    assert fresh_process.submit(units_off, op, x, got).result() <= allowed


@pytest.mark.parametrize("op", sorted(set(DENSE) - {"erf"}))  # math.erf would take long
def test_every_four_thousandth_float32_has_its_function_within_two_units(op: str, fresh_process: Executor) -> None:
    """From the least denormal to infinity and the NaNs, of both signs."""
    x = np.arange(0, 2**32, 4001, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, np.array([0.0, -0.0, math.inf, -math.inf, math.nan], np.float32)])
    got = np.empty_like(x)
    cpu.call(op, got, [x], {})
    with np.errstate(all="ignore"):
        true = np.asarray(reference.KERNELS[op]({}, x.astype(np.float64)))
        odd = ~np.isfinite(true.astype(np.float32))
        np.testing.assert_array_equal(got[odd], true[odd].astype(np.float32))
    assert fresh_process.submit(units_off, op, x[~odd], got[~odd]).result() <= 2.0


@pytest.mark.parametrize(
    ("op", "x", "units"),
    [
        ("exp", -87.74549102783203, "0.93"),
        ("log", 0.9836542010307312, "1.24"),
        ("tanh", 0.23814699053764343, "1.86"),
        ("sigmoid", -1.9471776485443115, "1.87"),
        ("erf", 0.12938559055328369, "1.29"),
        ("sin", 931878.125, "1.67"),
        ("cos", 993335.5, "1.81"),
    ],
)
def test_the_largest_error_of_a_function_is_the_one_that_is_written_down(
    op: str, x: float, units: str, fresh_process: Executor
) -> None:
    """Of every float32 there is: docs/numerics.md. Its bits are those of every processor."""
    at = np.array([x], np.float32)
    got = np.empty_like(at)
    cpu.call(op, got, [at], {})
    assert f"{fresh_process.submit(units_off, op, at, got).result():.2f}" == units


@pytest.mark.parametrize(
    ("op", "x", "true"),
    [
        ("sin", 1e22, -0.8522008497671888),
        ("cos", 1e22, 0.5232147853951389),
        ("sin", 2.0**1000, -0.15920170308624246),
        ("sin", math.pi, 1.2246467991473532e-16),
        ("cos", math.pi / 2, 6.123233995736766e-17),
        ("exp", 709.0, 8.218407461554972e307),
        ("exp", -745.0, 5e-324),
        ("log", 5e-324, -744.4400719213812),
        ("erf", 1e-300, 1.1283791670955126e-300),
    ],
)
def test_a_known_value_far_out_is_met(op: str, x: float, true: float) -> None:
    got = np.empty(1)
    cpu.call(op, got, [np.array([x])], {})
    assert got[0] == pytest.approx(true, rel=3e-16)


POWERS = [
    (2.0, 0.5),
    (-2.0, 3.0),
    (-2.0, 2.5),
    (0.0, -1.0),
    (-0.0, -3.0),
    (1.0, math.nan),
    (math.nan, 0.0),
    (-1.0, math.inf),
    (0.5, -math.inf),
    (math.inf, -2.0),
    (-math.inf, 3.0),
    (1.0000001, 1e7),
    (10.0, 300.0),
    (10.0, 400.0),
    (3.7, -500.5),
]


@pytest.mark.parametrize(("base", "exponent"), POWERS)
def test_a_power_is_what_c_says(base: float, exponent: float) -> None:
    got = np.empty(1)
    cpu.call("pow", got, [np.array([base]), np.array([exponent])], {})
    with np.errstate(all="ignore"):
        true = np.power(np.float64(base), np.float64(exponent))
    np.testing.assert_allclose(got[0], true, rtol=2.3e-16)


@pytest.mark.parametrize("exponents", [None, -1.0, 1.5, 3.0])
def test_powers_of_float32_are_what_c_says_among_others(isa: str, exponents: float | None) -> None:
    known = np.array([*POWERS, *((0.05 * k, 0.1 * k - 5.0) for k in range(1, 131))], np.float32)
    bases, each = np.ascontiguousarray(known.T)
    exponent = each if exponents is None else np.array(exponents, np.float32)
    got = np.empty_like(bases)
    cpu.call("pow", got, [bases, exponent], {})
    with np.errstate(all="ignore"):
        true = np.power(bases.astype(np.float64), exponent.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(got, true, rtol=1.2e-7)
    np.testing.assert_array_equal(np.signbit(got[got == 0.0]), np.signbit(true[true == 0.0]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["sin", "tanh", "erf", "sqrt", "neg", "abs", "floor"])
def test_zero_keeps_the_sign_numpy_gives_it(op: str, dtype: str) -> None:
    case = Case(op, [np.array([0.0, -0.0] * 20, dtype)])
    expected = case.inputs[0] if op == "erf" else case.expected()
    np.testing.assert_array_equal(np.signbit(case.run()), np.signbit(expected))


def test_a_long_sum_in_float32_keeps_six_digits() -> None:
    x = np.full(2_000_000, 0.1, np.float32)
    out = np.empty((), np.float32)
    cpu.call("sum", out, [x], {"axes": (0,), "keepdims": False})
    assert float(out) == pytest.approx(float(x.astype(np.float64).sum()), rel=1e-6)


# Philox ---------------------------------------------------------------------------------------------------

# Random123 1.14, kat_vectors: philox4x32 10: counter (4 words), key (2 words), result (4 words)
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_random_numbers_are_philox_with_its_published_answer() -> None:
    counter, key, words = PHILOX[0]
    out = np.empty(4, np.float32)
    cpu.call("uniform", out, [np.array([0, 0], np.uint64)], {"shape": (4,), "stream": 0})
    assert (counter, key) == ((0, 0, 0, 0), (0, 0))
    np.testing.assert_array_equal(out, np.array([w >> 8 for w in words], np.float32) * np.float32(2**-24))


def test_key_stream_and_step_are_where_the_definition_puts_them() -> None:
    seed, step, stream = 0x299F31D0_A4093822, 0x03707344_13198A2E, 0x85A308D3
    out = np.empty((1 << 16) + 4, np.float32)
    cpu.call("uniform", out, [np.array([seed, step], np.uint64)], {"shape": out.shape, "stream": stream})
    counter = np.array([1 << 14, stream, step & 0xFFFFFFFF, step >> 32], np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    np.testing.assert_array_equal(out[-4:], (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24))
    answer = philox4x32(np.array(PHILOX[1][0], np.uint32), PHILOX[1][1])
    assert tuple(int(w) for w in answer) == PHILOX[1][2]


# programs -------------------------------------------------------------------------------------------------


def test_a_program_runs_its_calls_in_order_on_what_the_arrays_hold_now() -> None:
    x, y, total = np.ones((4, 5), np.float32), np.empty((4, 5), np.float32), np.empty((), np.float32)
    program = cpu.Program()
    program.add("exp", y, [x], {})
    program.add("sum", total, [y], {"axes": (0, 1), "keepdims": False})
    program.run()
    first = float(total)
    x[:] = 0
    program.run()
    assert (first, float(total), len(program)) == (pytest.approx(20 * math.e), 20.0, 2)


def test_a_program_of_many_calls_keeps_its_records_when_it_grows() -> None:
    x = np.zeros(3, np.float32)
    one = np.ones(3, np.float32)
    program = cpu.Program()
    for _ in range(1000):
        program.add("add", x, [x, one], {})
    program.run()
    np.testing.assert_array_equal(x, np.full(3, 1000, np.float32))


def test_a_program_says_by_which_pointers_it_reads_an_array_from_its_beginning() -> None:
    a, b, other = (np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32) for seed in range(3))
    made, twice = np.zeros((8, 8), np.float32), np.zeros((4, 8), np.float32)
    program = cpu.Program()
    program.add("matmul", made, (a, b), {"transpose_a": 0, "transpose_b": 0})
    program.add("add", twice, (a[:4], b[4:]), {})
    program.fuse()
    readers = program.readers(a)
    assert readers is not None and len(readers) == 2
    assert program.readers(made) is program.readers(b) is None  # it is written to, and read from its middle on
    for pointer in readers:
        ctypes.c_void_p.from_address(pointer).value = other.ctypes.data
    program.run()
    np.testing.assert_allclose(made, other @ b, rtol=1e-5)
    np.testing.assert_array_equal(twice, other[:4] + b[4:])
    touched = {
        number
        for number, x in enumerate((a, b, made, twice))
        for low, high in program.written()
        if low <= x.ctypes.data < high
    }
    assert touched == {2, 3}


def test_a_program_keeps_its_arrays_alive() -> None:
    out = np.empty(1000, np.float32)
    program = cpu.Program()
    program.add("neg", out, [np.arange(1000, dtype=np.float32)], {})
    np.empty(1000, np.float32).fill(7)
    program.run()
    np.testing.assert_array_equal(out, -np.arange(1000, dtype=np.float32))


@pytest.mark.parametrize("op", ["sgd_update", "momentum", "adam_m", "adam_update", "add", "relu"])
def test_an_output_may_be_the_first_input(op: str) -> None:
    for case in (Case("add", [values((9, 40)), values((40,), seed=1)]), *CASES[op]):
        if case.inputs[0].shape != case.expected().shape or case.expected().dtype != case.inputs[0].dtype:
            continue
        apart, x = case.run(), case.inputs[0].copy()
        cpu.call(case.op, x, [x, *case.inputs[1:]], case.attrs)
        assert same_bits(apart, x)


def test_a_forked_child_can_compute() -> None:
    cpu.set_num_threads(2)
    a = values((200, 200))
    here = np.empty_like(a)
    attrs = {"transpose_a": False, "transpose_b": False}
    cpu.call("matmul", here, [a, a], attrs)  # starts the threads the child will not have
    child = os.fork()
    if child == 0:
        there = np.empty_like(a)
        cpu.call("matmul", there, [a, a], attrs)
        os._exit(0 if same_bits(here, there) else 1)
    assert os.waitpid(child, 0)[1] == 0


# refusals -------------------------------------------------------------------------------------------------

F = np.zeros((2, 3), np.float32)
BAD_CALLS: dict[str, tuple[str, Any, list[Any], dict[str, Any], type[CyxError]]] = {
    "an unknown operation": ("frobnicate", F, [F], {}, KernelError),
    "too few inputs": ("add", F, [F], {}, ShapeError),
    "a list instead of an array": ("neg", F, [[1.0]], {}, DtypeError),
    "shapes that do not broadcast": ("add", F, [F, np.zeros(2, np.float32)], {}, ShapeError),
    "an output of the wrong shape": ("add", np.zeros(3, np.float32), [F, F], {}, ShapeError),
    "mixed types": ("add", F, [F, F.astype(np.float64)], {}, KernelError),
    "a type without a kernel": ("exp", np.zeros(2, np.int64), [np.zeros(2, np.int64)], {}, KernelError),
    "an output of the wrong type": ("less", F, [F, F], {}, DtypeError),
    "a foreign type": ("neg", F, [F.astype(np.complex64)], {}, KernelError),
    "a foreign byte order": ("neg", F, [F.astype(">f4")], {}, KernelError),
    "a strided input": ("neg", np.zeros((3, 2), np.float32), [F.T], {}, ShapeError),
    "an unknown attribute": ("neg", F, [F], {"axis": 1}, GraphError),
    "a missing attribute": ("sum", F, [F], {"axes": (0,)}, GraphError),
    "an attribute of the wrong kind": ("sum", F, [F], {"axes": "no", "keepdims": True}, GraphError),
    "an axis out of range": (
        "sum",
        np.zeros(2, np.float32),
        [F],
        {"axes": (2,), "keepdims": False},
        GraphError,
    ),
    "an enormous axis": ("argmax", np.zeros(2, np.int64), [F], {"axis": 10**30}, GraphError),
    "nothing to find a maximum in": (
        "max",
        np.zeros(0, np.float32),
        [np.zeros((0, 0), np.float32)],
        {"axes": (1,), "keepdims": False},
        ShapeError,
    ),
    "matrices that do not fit": (
        "matmul",
        F,
        [F, F],
        {"transpose_a": False, "transpose_b": False},
        ShapeError,
    ),
    "a slice outside": ("slice", F, [F], {"starts": (0, 0), "stops": (2, 4), "steps": (1, 1)}, GraphError),
    "a step of zero": ("slice", F, [F], {"starts": (0, 0), "stops": (2, 3), "steps": (1, 0)}, GraphError),
    "axes that are no permutation": ("transpose", F, [F], {"axes": (0, 0)}, GraphError),
    "negative padding": ("pad", F, [F], {"pads": ((0, 0), (-1, 1)), "value": 0.0}, GraphError),
    "an index out of range": ("take", F, [F, np.array([0, 2])], {"axis": 0}, DataError),
    "a label out of range": ("cross_entropy", np.zeros(2, np.float32), [F, np.array([0, 3])], {}, DataError),
    "a negative label": ("cross_entropy", np.zeros(2, np.float32), [F, np.array([0, -1])], {}, DataError),
    "a class out of range": (
        "one_hot",
        np.zeros((1, 3), np.float32),
        [np.array([5])],
        {"depth": 3},
        DataError,
    ),
    "a convolution with groups that do not divide": (
        "conv2d",
        np.zeros((1, 3, 1, 1), np.float32),
        [np.zeros((1, 4, 1, 1), np.float32), np.zeros((3, 2, 1, 1), np.float32)],
        {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 2},
        ShapeError,
    ),
    "a stride of zero": (
        "max_pool2d",
        np.zeros((1, 1, 2, 2), np.float32),
        [np.zeros((1, 1, 4, 4), np.float32)],
        {"kernel": (2, 2), "stride": (0, 2), "padding": (0, 0)},
        GraphError,
    ),
}


@pytest.mark.parametrize("what", sorted(BAD_CALLS))
def test_a_bad_call_is_refused_with_a_typed_error(what: str) -> None:
    op, out, inputs, attrs, error = BAD_CALLS[what]
    with pytest.raises(error, match=op):
        cpu.call(op, out, inputs, attrs)
    program = cpu.Program()
    if error is DataError:
        program.add(op, out, inputs, attrs)
        with pytest.raises(error, match=op):
            program.run()
    else:
        with pytest.raises(error, match=op):
            program.add(op, out, inputs, attrs)


def test_a_read_only_output_is_refused() -> None:
    out = np.zeros(2, np.float32)
    out.flags.writeable = False
    with pytest.raises(ShapeError, match="read-only"):
        cpu.call("neg", out, [np.zeros(2, np.float32)], {})


def test_random_attributes_never_crash_a_kernel() -> None:
    rng = np.random.default_rng(5)
    ops = sorted(CASES)
    refused = 0
    for _ in range(6000):
        case = CASES[ops[rng.integers(len(ops))]]
        one = case[rng.integers(len(case))]
        attrs = {k: _mutated(v, rng) if rng.random() < 0.5 else v for k, v in one.attrs.items()}
        inputs = [
            x if rng.random() < 0.8 else values(tuple(rng.integers(0, 6, rng.integers(0, 5))), x.dtype.name)
            for x in one.inputs
        ]
        shape = tuple(rng.integers(0, 6, rng.integers(0, 5))) if rng.random() < 0.2 else one.inputs[0].shape
        out = np.zeros(shape, one.inputs[0].dtype if rng.random() < 0.8 else np.int64)
        try:
            cpu.call(one.op, out, inputs, attrs)
        except CyxError:
            refused += 1
    assert refused > 3000


def _mutated(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, tuple):
        return (
            tuple(_mutated(v, rng) for v in value)[: rng.integers(0, len(value) + 1)]
            if rng.random() < 0.3
            else tuple(_mutated(v, rng) for v in value)
        )
    if isinstance(value, int | float) and rng.random() < 0.5:
        return [0, -1, 1, 2, 2**31, -(2**31), 2**62, -(2**62), 7][rng.integers(9)]
    return value


@pytest.mark.parametrize(
    ("op", "dtypes", "has"),
    [
        ("add", ("float32", "float32"), True),
        ("add", ("float32", "float64"), False),
        ("add", ("float32",), False),
        ("exp", ("int64",), False),
        ("where", ("bool", "uint8", "uint8"), True),
        ("take", ("bool", "int64"), True),
        ("matmul", ("complex64", "complex64"), False),
        ("nothing", ("float32",), False),
        ("concat", ("float64",) * 9, True),
    ],
)
def test_supports_says_which_types_have_a_kernel(op: str, dtypes: tuple[str, ...], has: bool) -> None:
    assert cpu.supports(op, dtypes) is has


def test_an_instruction_set_the_machine_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="mmx"):
        cpu.set_isa("mmx")


def test_threads_that_share_an_array_take_each_element_once() -> None:
    """Of arrays that cut into other pieces each time, while threads come and go: what is taken twice is added twice."""
    sizes = [100_000 + 4_099 * i for i in range(40)]
    for threads in (2, 5, 3, 1, 8):
        cpu.set_num_threads(threads)
        for size in sizes:
            counts = np.zeros(size, np.float32)
            for _ in range(2):
                cpu.call("add", counts, [counts, np.ones(1, np.float32)], {})
            assert (counts == 2).all()


def test_a_number_of_threads_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="0"):
        cpu.set_num_threads(0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_times_a_matrix_has_the_bits_of_that_row_of_a_product(isa: str, dtype: str, transposed: bool) -> None:
    cpu.set_isa(isa)
    attrs = {"transpose_a": False, "transpose_b": transposed}
    for k, n in itertools.product((1, 7, 16, 33, 300), (1, 5, 16, 31, 32, 300)):
        rows, b = values((2, k)).astype(dtype), values((n, k) if transposed else (k, n)).astype(dtype)
        both, one = np.empty((2, n), dtype), np.empty((1, n), dtype)
        cpu.call("matmul", both, [rows, b], attrs)
        cpu.call("matmul", one, [rows[:1], b], attrs)
        assert one.tobytes() == both[:1].tobytes(), (k, n)


@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16])
def test_the_gradient_of_a_small_weight_stays_within_its_memory(channels: int) -> None:
    rng = np.random.default_rng(0)
    g, x = rng.normal(size=(2, 16, 4, 4)).astype(np.float32), rng.normal(size=(2, channels, 8, 8)).astype(np.float32)
    held = np.full(16 * channels + 64, 7.0, np.float32)
    out = held[: 16 * channels].reshape(16, channels, 1, 1)
    attrs = {"stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "weight_shape": out.shape}
    cpu.call("conv2d_grad_weight", out, [g, x], attrs)
    assert (held[16 * channels :] == 7.0).all()
    np.testing.assert_allclose(out[:, :, 0, 0], np.einsum("nohw,nchw->oc", g, x[:, :, ::2, ::2]), rtol=1e-4, atol=1e-4)


BLOCKED = {  # images, channels, outputs, size, kernel, stride, padding, dilation, groups: threads share these
    "few channels": (4, 1, 33, (28, 30), (3, 3), 1, 0, 1, 1),
    "large steps": (2, 3, 40, (37, 41), (7, 7), 2, 3, 1, 1),
    "1 x 1": (3, 70, 37, (14, 13), (1, 1), 1, 0, 1, 1),
    "depthwise": (3, 50, 50, (23, 24), (3, 3), 1, 1, 1, 50),
    "depthwise, larger than what is at work at once": (2, 20, 20, (70, 90), (5, 3), 2, 2, 1, 20),
    "groups, far apart": (3, 24, 36, (17, 19), (3, 2), 1, 2, 2, 2),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", BLOCKED)
def test_a_weights_gradient_that_threads_share_has_the_bits_of_one_and_stays_within_its_memory(
    what: str, dtype: str
) -> None:
    images, channels, outputs, size, kernel, stride, padding, dilation, groups = BLOCKED[what]
    rng = np.random.default_rng(0)
    made = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    g, x = rng.normal(size=(images, outputs, *made)), rng.normal(size=(images, channels, *size))
    shape = (outputs, channels // groups, *kernel)
    attrs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2, "groups": groups}
    attrs["weight_shape"] = shape
    expected = reference.KERNELS["conv2d_grad_weight"](attrs, g, x)
    found = set()
    for isa, threads in itertools.product(ISAS, (1, 2, 3)):
        cpu.set_isa(isa)
        cpu.set_num_threads(threads)
        held = np.full(math.prod(shape) + 128, np.nan, dtype)
        out = held[64:-64].reshape(shape)
        cpu.call("conv2d_grad_weight", out, [g.astype(dtype), x.astype(dtype)], attrs)
        assert np.isnan(held[:64]).all() and np.isnan(held[-64:]).all()
        found.add(out.tobytes())
    assert len(found) == 1
    np.testing.assert_allclose(
        out, expected, rtol=0, atol=np.abs(expected).max() * (1e-5 if dtype == "float32" else 1e-13)
    )


@pytest.mark.parametrize("rest", [1, 17, 64, 100, 128, 129, 1024])
def test_a_long_sum_has_the_same_bits_on_any_number_of_threads_whatever_its_last_part_is(rest):
    threads = cpu.get_num_threads()
    x = np.zeros(2 * 65536 + rest, np.float32)
    try:
        for seed in range(8):
            x[-rest:] = np.random.default_rng(seed).normal(size=rest)
            found = set()
            for count in (1, 3):
                cpu.set_num_threads(count)
                out = np.zeros((), np.float32)
                cpu.call("sum", out, [x], {"axes": (0,), "keepdims": False})
                found.add(out.tobytes())
            assert len(found) == 1
    finally:
        cpu.set_num_threads(threads)


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_a_large_batch_is_folded_in_the_order_of_memory_with_the_bits_of_a_few_channels(op: str) -> None:
    """Two channels alone are small, and folded one after the other."""
    x = np.random.default_rng(4).standard_normal((41, 26, 1000), np.float32)
    threads, attrs = cpu.get_num_threads(), {"axes": (0, 2), "keepdims": False}
    expected = np.empty(26, np.float32)
    for c in range(0, 26, 2):
        cpu.call(op, expected[c : c + 2], [np.ascontiguousarray(x[:, c : c + 2])], attrs)
    try:
        for count in (1, 3):
            cpu.set_num_threads(count)
            cpu.call(op, out := np.empty(26, np.float32), [x], attrs)
            assert out.tobytes() == expected.tobytes()
    finally:
        cpu.set_num_threads(threads)


def test_a_flat_product_that_threads_share_has_the_same_bits() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.standard_normal((15, 384), np.float32), rng.standard_normal((384, 512), np.float32)
    found = set()
    for threads in (1, 2, 3):
        cpu.set_num_threads(threads)
        cpu.call("matmul", out := np.empty((15, 512), np.float32), [a, b], {"transpose_a": 0, "transpose_b": 0})
        found.add(out.tobytes())
    assert len(found) == 1 and np.allclose(out, a @ b, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
def test_the_first_greatest_is_found_wherever_it_lies(isa: str, dtype: str) -> None:
    """In any lane, block or column; among equals, zeros of both signs, infinities and NaN."""
    cpu.set_isa(isa)
    dice = np.random.default_rng(5)
    odd = [0.0, -0.0, -math.inf, math.inf, math.nan]
    for n in (1, 2, 63, 64, 65, 1023, 1024, 1025, 2500):
        for high in (2, 4, 1000):
            x = dice.integers(0, high, (3, n, 1)).astype(dtype)
            if dtype.startswith("float"):
                x = np.where(dice.uniform(size=x.shape) < 1 / n, dice.choice(odd, x.shape), x - high / 2).astype(dtype)
                x[0] = -math.inf
            for inner in (1, 2, 17, 300):
                y = np.ascontiguousarray(np.concatenate([np.roll(x, i, axis=1) for i in range(inner)], axis=2))
                cpu.call("argmax", out := np.empty((3, inner), np.int64), [y], {"axis": 1})
                assert out.tolist() == y.argmax(1).tolist(), (n, high, inner)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_what_is_taken_is_what_numpy_takes(isa: str, dtype: str) -> None:
    """Elements and short rows, which are moved without memcpy, in threads that begin anywhere."""
    cpu.set_isa(isa)
    dice = np.random.default_rng(6)
    for inner in (1, 2, 3, 5):
        x = dice.integers(0, 200, (5, 7, inner)).astype(dtype)
        index, along = dice.integers(-7, 7, 11), dice.integers(-7, 7, (5, 9, inner))
        for threads in (1, 3):
            cpu.set_num_threads(threads)
            cpu.call("take", out := np.empty((5, 11, inner), dtype), [x, index], {"axis": 1})
            assert out.tolist() == x[:, index].tolist()
            cpu.call("take_along", out := np.empty((5, 9, inner), dtype), [x, along], {"axis": 1})
            assert out.tolist() == np.take_along_axis(x, along, 1).tolist()
            long = dice.integers(-7, 7, 20001)
            cpu.call("take", out := np.empty((5, 20001, inner), dtype), [x, long], {"axis": 1})
            assert out.tobytes() == x[:, long].tobytes()


def test_a_product_fetches_what_the_calls_behind_it_read_and_have_not_read_lately() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(32, 128)).astype(np.float32), rng.normal(size=(128, 512)).astype(np.float32)
    old, large = np.ones((32, 128), np.float32), np.ones((512, 256), np.float32)
    product, twice, halved = np.empty((32, 512), np.float32), np.empty_like(old), np.empty_like(large)

    def lines(*behind: tuple[str, Any, list[Any]], terms: int = 128) -> list[int]:
        program = cpu.Program()
        left = np.ascontiguousarray(a[:, :terms])
        program.add("matmul", product, [left, b[:terms]], {"transpose_a": False, "transpose_b": False})
        for op, out, inputs in behind:
            program.add(op, out, inputs, {})
        program.fuse()
        program.run()
        assert np.allclose(product, left @ b[:terms], atol=1e-4)
        return program.lines_ahead

    tiny = np.ones(1, np.float32)
    record = lines(("add", tiny, [tiny, tiny]))[0]
    assert 0 < record < 64
    of_old = 2 * old.nbytes // 64  # what is read, and where the result goes
    assert of_old <= lines(("add", twice, [old, old]))[0] <= of_old + record + 2
    assert lines(("add", twice, [a, a]))[0] < of_old  # the product has just read it
    assert lines(("add", halved, [large, large]))[0] <= record  # it would displace what the product needs
    assert lines()[0] == 0
    assert lines(("add", twice, [old, old]), terms=0) == [0, 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_a_product_fetches_changes_no_bit_of_it(isa: str, dtype: str) -> None:
    cpu.set_isa(isa)
    dice = np.random.default_rng(0)
    b = dice.normal(size=(400, 64)).astype(dtype)
    old = np.ones((64, 100), dtype)
    for rows in (4, 5, 6, *range(7, 13), 16, 20, 32):  # blocks of every height
        a = dice.normal(size=(rows, 400)).astype(dtype)
        cpu.call("matmul", alone := np.empty((rows, 64), dtype), [a, b], {"transpose_a": False, "transpose_b": False})
        program = cpu.Program()
        product, twice = np.empty_like(alone), np.empty_like(old)
        program.add("matmul", product, [a, b], {"transpose_a": False, "transpose_b": False})
        program.add("add", twice, [old, old], {})
        program.fuse()
        program.run()
        assert program.lines_ahead[0] > 0
        assert product.tobytes() == alone.tobytes()
        assert (twice == 2).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_many_rows_have_the_bits_of_each_row_alone(isa: str, dtype: str) -> None:
    """Rows of few classes go side by side in the lanes of vectors."""
    for classes in (1, 2, 10, 16, 17, 31, 48, 49):
        logits, upstream = 30 * values((37, classes), dtype), values((37,), dtype, seed=1)
        labels = np.arange(37) * 5 % classes
        logits[3, -1], logits[5, 0], logits[7] = np.inf, np.nan, -np.inf
        losses, gradients = np.empty(37, dtype), np.empty_like(logits)
        cpu.call("cross_entropy", losses, [logits, labels], {})
        cpu.call("cross_entropy_grad", gradients, [upstream, logits, labels], {})
        for row in range(37):
            one, loss, gradient = slice(row, row + 1), np.empty(1, dtype), np.empty((1, classes), dtype)
            cpu.call("cross_entropy", loss, [logits[one], labels[one]], {})
            cpu.call("cross_entropy_grad", gradient, [upstream[one], logits[one], labels[one]], {})
            for alone, among in ((loss, losses[one]), (gradient, gradients[one])):
                assert np.array_equal(alone, among, equal_nan=True)
                assert np.array_equal(np.signbit(alone), np.signbit(among)) or np.isnan(alone).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_pixels_have_the_bits_of_those_of_rows(isa: str, dtype: str) -> None:
    """Classes that lie below each other go by columns, in the lanes of vectors."""
    for classes, pixels in ((1, 20), (2, 64), (17, 3), (21, 131), (129, 40), (1030, 19)):
        logits, upstream = 30 * values((2, classes, pixels), dtype), values((2, pixels), dtype, seed=1)
        logits[1, 0, 0], logits[1, -1, 1], logits[0, :, 2] = np.nan, np.inf, -np.inf
        labels = np.arange(2 * pixels).reshape(2, pixels) * 5 % classes
        rows = np.ascontiguousarray(logits.transpose(0, 2, 1)).reshape(-1, classes)
        losses, gradients, of_row, of_rows = (np.empty_like(x) for x in (upstream, logits, upstream.ravel(), rows))
        cpu.call("cross_entropy", losses, [logits, labels], {})
        cpu.call("cross_entropy_grad", gradients, [upstream, logits, labels], {})
        cpu.call("cross_entropy", of_row, [rows, labels.ravel()], {})
        cpu.call("cross_entropy_grad", of_rows, [upstream.ravel(), rows, labels.ravel()], {})
        assert same_bits(losses.ravel(), of_row)
        assert same_bits(gradients.transpose(0, 2, 1).reshape(-1, classes), of_rows)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_a_softmax_over_any_axis_has_the_bits_of_one_over_the_last(isa: str, dtype: str, op: str) -> None:
    """Columns go side by side in lanes of vectors; few, and those of more than 8,192 numbers, are turned into rows."""
    shapes = (1, 20), (2, 64), (17, 3), (21, 131), (128, 40), (129, 40), (1030, 19), (3100, 9), (70_000, 2)
    for terms, columns in shapes:
        x = 30 * values((2, terms, columns), dtype)
        x[1, 0, 0], x[1, -1, 1], x[0, :, 2 % columns] = np.nan, np.inf, -np.inf
        rows = np.ascontiguousarray(x.transpose(0, 2, 1))
        got, expected = np.empty_like(x), np.empty_like(rows)
        cpu.call(op, got, [x], {"axis": 1})
        cpu.call(op, expected, [rows], {"axis": 2})
        assert same_bits(got, expected.transpose(0, 2, 1))
        cpu.call(op, x, [x], {"axis": 1})
        assert same_bits(x, got)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("terms", [1, 16, 33, 129, 1100])
def test_gradients_of_softmax_have_the_bits_of_their_operations_one_by_one(isa: str, dtype: str, terms: int) -> None:
    def made(op: str, *inputs: Array, **attrs: Any) -> Array:
        shape = tuple(1 if axis in attrs.get("axes", ()) else size for axis, size in enumerate(inputs[0].shape))
        out = np.empty(shape, dtype)
        cpu.call(op, out, list(inputs), attrs)
        return out

    for shape, axis in (((5, terms), 1), ((2, terms, 3), 1), ((terms, 300), 0)):
        g, y = values(shape, dtype), values(shape, dtype, seed=1)
        sums = {"axes": (axis,), "keepdims": True}
        total = made("sum", made("mul", g, y), **sums)
        assert same_bits(made("softmax_grad", g, y, axis=axis), made("mul", y, made("sub", g, total)))
        spread = made("mul", made("exp", y), made("sum", g, **sums))
        assert same_bits(made("log_softmax_grad", g, y, axis=axis), made("sub", g, spread))


FAULTS = """
import resource
import cyxcore as cx
x = cx.randn(1000, 1000).requires_grad_()
for turn in range(40):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.grad = None
    x.exp().sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep freed memory by rules of their own")
def test_freed_arrays_of_megabytes_are_used_again_without_a_fault_for_each_page() -> None:
    """A step here makes 8 MB, which are 2,000 pages."""
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=clean)
    assert int(ran.stdout) < 20 * 100
