"""Programs of kernel calls, and what a call is refused for."""

import ctypes
import math
import os
from typing import Any

import numpy as np
import pytest

from cyxcore.errors import CyxError, DataError, DtypeError, GraphError, KernelError, ShapeError
from cyxcore.kernels import cpu
from tests.core.kernelcases import CASES, Case, same_bits, values

pytestmark = pytest.mark.usefixtures("own_machine")


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
