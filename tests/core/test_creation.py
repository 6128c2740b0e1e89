"""The standard's creation functions against array-api-strict, and what they share."""

import math
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import DtypeError, ShapeError, SpecError
from tests.core.oracle import ALL, FLOATS, agree, numbers, same, signature_differences

NAMES = (
    "arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones ones_like tril triu zeros "
    "zeros_like"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_are_the_standards(name: str) -> None:
    assert signature_differences(name) == []


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", [(), 3, (0,), (2, 3), (2, 0, 1)])
def test_filled_tensors(shape: Any, dtype: str) -> None:
    agree("zeros", shape, dtype=dtype)
    agree("ones", shape, dtype=dtype)
    agree("full", shape, 1, dtype=dtype)
    x = numbers(dtype, 2, 3)
    for name in ("zeros_like", "ones_like"):
        agree(name, x)
        agree(name, x, dtype="int16")
    agree("full_like", x, 1)
    assert cx.empty(shape, dtype=dtype).dtype == dtype and cx.empty_like(cx.ones(shape)).shape == cx.ones(shape).shape


@pytest.mark.parametrize("shape", [(), 1, 8, (3, 5), 1024, 1025, (0, 4), (2**40, 0), 3000])
def test_small_filled_tensors_are_like_large_ones(shape: Any) -> None:
    """Small ones lie where other tensors have been."""
    for _ in range(3):
        made = cx.zeros(shape), cx.ones(shape), cx.full(shape, -2.5)
        for x, number in zip(made, (0.0, 1.0, -2.5), strict=True):
            np.testing.assert_array_equal(x.numpy(), np.full(shape, number, np.float32), strict=True)
            assert x.dtype == "float32" and not x.requires_grad
            x += 1.0
    for number in (math.nan, math.inf, 1e300, 1e-300):
        with np.errstate(over="ignore"):
            expected = np.full(shape, number).astype(np.float32)
        np.testing.assert_array_equal(cx.full(shape, number).numpy(), expected, strict=True)


def test_defaults() -> None:
    for made in (
        cx.zeros(2),
        cx.ones(2),
        cx.empty(2),
        cx.full(2, 1.0),
        cx.arange(2.0),
        cx.linspace(0, 1, 2),
        cx.eye(2),
    ):
        assert made.dtype == "float32"
    assert (cx.full(2, 1).dtype, cx.full(2, 1j).dtype, cx.full(2, True).dtype) == ("int64", "complex64", "bool")
    assert cx.zeros(2, 3).shape == cx.zeros((2, 3)).shape


@pytest.mark.parametrize(
    "args", [(5,), (0,), (2, 7), (2, 7, 3), (7, 2, -2), (7, 2), (0.0, 1.0, 0.25), (1, 2, 0.3), (3, 3)]
)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_arange(args: tuple[Any, ...], dtype: str) -> None:
    if dtype in FLOATS or all(isinstance(n, int) for n in args):
        agree("arange", *args, dtype=dtype)


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("args", [(0, 1, 5), (0, 1, 1), (3.5, -2, 7), (0, 1, 0), (2, 2, 3)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_linspace(args: tuple[Any, ...], dtype: str, endpoint: bool) -> None:
    agree("linspace", *args, dtype=dtype, endpoint=endpoint)


def test_linspace_of_complex_numbers() -> None:
    agree("linspace", 0, 1 + 2j, 5, dtype="complex64")
    assert cx.linspace(0, 1j, 3).dtype == "complex64"


@pytest.mark.parametrize("k", [-4, -1, 0, 2, 5])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float32", "complex128"])
def test_eye_and_triangles(dtype: str, k: int) -> None:
    agree("eye", 3, k=k, dtype=dtype)
    agree("eye", 3, 5, k=k, dtype=dtype)
    agree("eye", 3, 0, k=k, dtype=dtype)
    for shape in ((3, 4), (2, 4, 3), (0, 3)):
        agree("tril", numbers(dtype, *shape), k=k)
        agree("triu", numbers(dtype, *shape), k=k)


@pytest.mark.parametrize("indexing", ["xy", "ij"])
@pytest.mark.parametrize("sizes", [(3,), (3, 2), (3, 2, 4), (3, 0), (2, 1, 1, 3)])
def test_meshgrid(sizes: tuple[int, ...], indexing: str) -> None:
    agree("meshgrid", *(numbers("float32", size) for size in sizes), indexing=indexing)


@pytest.mark.parametrize("dtype", ALL)
def test_asarray_of_lists_arrays_and_tensors(dtype: str) -> None:
    for value in ([[0, 1], [1, 0]], 1, [], numbers(dtype, 2, 3)):
        if isinstance(value, np.ndarray):
            agree("asarray", value)
        agree("asarray", value, dtype=dtype)


def test_asarray_of_lists_with_tensors_in_them() -> None:
    assert cx.asarray([cx.tensor([1.0, 2.0]), [3.0, 4.0]]).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_asarray_shares_memory_where_it_can() -> None:
    array, x = np.zeros(2, np.float32), cx.zeros(2)
    assert cx.asarray(x) is x and cx.asarray(x, copy=True) is not x
    shared, copied = cx.asarray(array), cx.asarray(array, copy=True)
    array[0] = 7
    assert shared.tolist() == [7.0, 0.0] and copied.tolist() == [0.0, 0.0]
    raw = bytearray(b"\x01\x02")
    of_buffer = cx.asarray(raw, copy=False)
    raw[0] = 9
    assert of_buffer.dtype == "uint8" and of_buffer.tolist() == [9, 2]


@pytest.mark.parametrize("value", [1.0, [1, 2], np.zeros(4, np.float32)[::2]])
def test_asarray_refuses_a_copy_it_was_told_not_to_make(value: Any) -> None:
    with pytest.raises(ValueError, match="needs a copy"):
        cx.asarray(value, copy=False)
    with pytest.raises(ValueError, match="float32 as int8 is a copy"):
        cx.asarray(cx.zeros(1), dtype="int8", copy=False)


def test_from_dlpack_shares_memory_and_copies_when_asked() -> None:
    array = np.zeros(2, np.float32)
    shared, copied = cx.from_dlpack(array), cx.from_dlpack(array, copy=True)
    array[0] = 7
    assert shared.tolist() == [7.0, 0.0] and copied.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: cx.zeros(2, device="tpu"), SpecError, "device: expected one of cpu"),
        (lambda: cx.zeros((2, -1)), ShapeError, r"sizes >= 0, got \(2, -1\)"),
        (lambda: cx.zeros(2.5), ShapeError, r"expected integers, got \(2.5,\)"),
        (lambda: cx.full(2, "a"), DtypeError, "full: expected a number, got str"),
        (lambda: cx.arange(1, 2, 0), ShapeError, "a step other than 0"),
        (lambda: cx.linspace(0, 1, -1), ShapeError, "num >= 0"),
        (lambda: cx.tril(cx.zeros(3)), ShapeError, r"tril: expected at least 2 axes, got \(3,\)"),
        (lambda: cx.meshgrid(cx.zeros(2), indexing="yx"), SpecError, 'expected indexing "xy" or "ij"'),
        (lambda: cx.meshgrid(cx.zeros(2, 2)), ShapeError, "expected vectors of one dtype"),
        (lambda: cx.zeros(2, dtype="int7"), DtypeError, "int7"),
        (lambda: cx.tensor(np.array(["Bern", 1], object)), DtypeError, "make numbers of what is text"),
        (lambda: cx.asarray(np.array(["a"])), DtypeError, "expected one of"),
    ],
)
def test_a_bad_argument_is_one_clear_error(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_a_0d_tensor_fills_with_its_number_and_dtype() -> None:
    for value in (np.asarray(3, "int16"), np.asarray(0.5), np.asarray(True), np.asarray(1j)):
        same(cx.full((2, 3), cx.asarray(value)), np.full((2, 3), value, value.dtype))
        same(cx.full_like(cx.zeros(2, dtype="complex128"), cx.asarray(value)), np.full(2, value, "complex128"))
    assert cx.full(2, cx.tensor(2.5), dtype="int32").tolist() == [2, 2]
    with pytest.raises(DtypeError, match="full: expected a number, got Tensor"):
        cx.full(2, cx.zeros(3))


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ([[1], [2, 3]], ShapeError, "expected nested lists of equal lengths, got unequal ones; pad them"),
        ([1, None], DtypeError, "expected numbers, got None of NoneType"),
        ("abc", DtypeError, "expected numbers, got 'abc' of str"),
        ([1, "2"], DtypeError, "expected numbers, got '1' of str|expected numbers, got '2' of str"),
        (2**64, DtypeError, f"expected integers that 64 bits hold, got {2**64}; write it as a float"),
        ([0.5, -(2**63) - 1], DtypeError, f"expected integers that 64 bits hold, got {-(2**63) - 1}"),
    ],
    ids=str,
)
def test_what_no_dtype_holds_is_named(value: Any, error: type[Exception], says: str) -> None:
    for make in (cx.asarray, cx.tensor):
        with pytest.raises(error, match=f"tensor: ({says})"):
            make(value)


@pytest.mark.parametrize("dtype", [None, "uint64"])
@pytest.mark.parametrize("value", [[0, 2**63 + 1], [[2**64 - 1], [True]], [np.int64(1), 2**63 + 3]], ids=str)
def test_integers_that_only_uint64_holds_are_not_rounded_beside_small_ones(value: Any, dtype: Any) -> None:
    for make in (cx.asarray, cx.tensor):
        same(make(value, dtype=dtype), np.asarray(np.asarray(value, dtype=object), "uint64"))


def test_integers_that_no_dtype_holds_together_are_an_error() -> None:
    with pytest.raises(DtypeError, match=f"expected integers that one dtype holds, got -1..{2**63}; write one as a"):
        cx.asarray([-1, 2**63])
    with pytest.raises(DtypeError, match=f"tensor: int64 holds .*, got 0..{2**63}"):
        cx.asarray([0, 2**63], dtype="int64")
    same(cx.asarray([-1.0, 2**63]), np.asarray([-1.0, 2**63], "float32"))


def test_triangles_have_gradients() -> None:
    x = cx.ones(2, 2, requires_grad=True)
    cx.tril(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("count", [1, 100, 100_000])
def test_a_copy_begins_where_a_line_of_the_cache_does(count: int) -> None:
    numbers = np.ones(count + 1, np.float32)
    copies = [cx.tensor(numbers[1:]) for _ in range(3)]
    assert [np.asarray(copy).ctypes.data % 64 for copy in copies] == [0, 0, 0]
    copies[0][0] = 2.0
    assert numbers[1] == 1.0
