"""The short way of an operation (cyxcore/kernels/tensors.pyx) means what the general way means."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import device as devices
from cyxcore.errors import DataError, GraphError, ShapeError
from cyxcore.values import apply

OFTEN = 4  # calls after which a call of a kind goes the short way, if there is one


def numbers(*shape: int, dtype: str = "float32", grad: bool = False) -> cx.Tensor:
    return cx.tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype), requires_grad=grad)


@contextmanager
def general_way() -> Iterator[None]:
    devices.watch(True)
    try:
        yield
    finally:
        devices.watch(False)


CASES: dict[str, Callable[[cx.Tensor], Any]] = {
    "two of one shape": lambda x: x + x * x,
    "a row": lambda x: x - x[0],
    "a column": lambda x: x * x.sum(1, keepdims=True),
    "a number": lambda x: (2.0 - x) / 3.0 + 1,
    "zeros of both signs": lambda x: x * 0.0 + x * -0.0 + (x * 0.0) / -0.0,
    "numbers float32 rounds": lambda x: x * 1e30 + float("inf") - (2**30 + 1) + 0.1,
    "comparisons": lambda x: x * (x > 0).astype(x.dtype) + (0.5 >= x).astype(x.dtype) + (x == x).astype(x.dtype),
    "functions": lambda x: x.exp() + x.tanh() * x.sigmoid() - x.relu() + x.square().sqrt(),
    "products": lambda x: x @ x.T @ x,
    "a view": lambda x: x.T[1:] + x.T[1:].exp() + x.reshape(-1)[3],
    "reductions": lambda x: x.mean(0) + x.sum() - x.max(1).sum(),
    "an average of nothing": lambda x: x[:0].sum(0),
    "a loss": lambda x: cx.functional.cross_entropy(x, cx.tensor([0, 2, 1, 1])),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_both_ways_give_the_same_bits_and_gradients(case: str, dtype: str) -> None:
    def run() -> tuple[Any, Any]:
        x = numbers(4, 4, dtype=dtype, grad=True)
        y = CASES[case](x)
        y.sum().backward()
        return y, x.grad

    with general_way():
        expected = run()
    for _ in range(OFTEN):
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one is None or one.numpy().tobytes() == other.numpy().tobytes()


def test_the_general_way_is_not_asked_for_calls_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = numbers(3, 4, grad=True), numbers(4)
    for _ in range(OFTEN):
        x * y + 1.0

    def refused(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(cx.Tensor, "_apply_generally", refused)
    assert (x * y + 1.0).requires_grad


def test_attributes_that_are_equal_but_not_the_same_are_other_calls() -> None:
    x = numbers(2, 2)
    for _ in range(OFTEN):
        apply("matmul", x, x, transpose_a=True, transpose_b=False)
    for _ in range(OFTEN):
        with pytest.raises(GraphError, match="transpose_a"):
            apply("matmul", x, x, transpose_a=1.0, transpose_b=False)


def test_errors_come_every_time() -> None:
    x, labels = numbers(2, 3), cx.tensor([0, 3])
    for _ in range(OFTEN):
        with pytest.raises(ShapeError, match="do not broadcast"):
            x + numbers(2)
        with pytest.raises(DataError, match="cross_entropy"):
            apply("cross_entropy", x, labels)


@pytest.mark.parametrize("there", ["float16", "uint64", "int8", "complex64"])
def test_casts_that_have_no_kernel_go_the_general_way(there: str) -> None:
    for x in (cx.tensor([1.5, 2.0]), cx.tensor([1, 2]), cx.tensor([True, False]), cx.zeros(2, dtype="uint8")):
        expected = x.numpy().astype(there).tolist()
        for _ in range(OFTEN):
            assert x.astype(there).tolist() == expected


def test_a_list_as_an_attribute_may_change() -> None:
    x, axes = numbers(2, 3), [0]
    for _ in range(OFTEN):
        assert apply("sum", x, axes=axes).shape == (3,)
    axes[0] = 1
    assert apply("sum", x, axes=axes).shape == (2,)


def test_other_devices_and_profiles_see_every_call() -> None:
    x = numbers(5)
    for _ in range(OFTEN):
        x + x
    with cx.profile() as prof:
        x + x
    assert [record.name for record in prof.records] == ["add"]
    with cx.use_device("reference"):
        assert (x + x).device == "reference"


def test_an_array_keeps_the_memory_of_a_result_that_is_gone() -> None:
    x = cx.tensor(np.arange(8, dtype=np.float32))
    kept = [(x + x).numpy() for _ in range(OFTEN)]
    for _ in range(100):
        x * 3.0
    assert all(array.tolist() == [2.0 * i for i in range(8)] for array in kept)


def test_writes_are_seen_by_views_and_results_stay() -> None:
    x = numbers(3, 3)
    row = x[1]
    for _ in range(OFTEN):
        before = row * 2.0
    x[1] = 5.0
    assert (row * 2.0).tolist() == [10.0] * 3 and before.tolist() != [10.0] * 3


def test_a_view_of_what_was_assigned_to_since_has_its_gradient() -> None:
    for _ in range(OFTEN):
        w, x = cx.tensor([2.0], requires_grad=True), cx.zeros(3)
        row = x[1:2]
        x[1:2] = w * w
        (row * 3.0).sum().backward()
        assert w.grad is not None and w.grad.tolist() == [12.0]


def test_a_tape_is_let_go_of_without_the_collector() -> None:
    x = numbers(4, grad=True)
    gc.disable()
    try:
        for _ in range(OFTEN):
            y = (x * x).exp().sum()
            y.backward()
            gone = weakref.ref(y)
            del y
            assert gone() is None
    finally:
        gc.enable()


def test_a_long_tape_ends_without_recursion() -> None:
    x = numbers(2, grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    del y
    assert x.requires_grad


def test_nothing_is_recorded_within_no_grad_or_of_what_needs_none() -> None:
    x, y = numbers(3, grad=True), numbers(3)
    for _ in range(OFTEN):
        with cx.no_grad():
            assert (x + y).is_leaf
        assert (y + y).is_leaf and not (x + y).is_leaf and (x > y).is_leaf
