"""The short way of an operation (cyxcore/kernels/tensors.pyx) means what the general way means."""

import copy
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import device as devices
from cyxcore import gradients, optim, updates
from cyxcore.errors import AxisError, DataError, GradientError, GraphError, ShapeError
from cyxcore.held import Watch
from cyxcore.values import apply

OFTEN = 6  # calls after which a call of a kind, and its gradient, go the short way, if there is one


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
    "indices": lambda x: x[1] + x[-1, 1:3].sum() + x[1:3][0] + x[:, 2] + x[..., 0] + x[2, 3] + x[3:1].sum(0),
    "steps": lambda x: x[::2].sum(0) + x[:, ::-1][0] + x[-3:-1][1] + x[None, 1][0] + x[-9:9][0],
    "shapes": lambda x: x.reshape(2, -1)[0].reshape(2, 4) @ x.reshape((4, 4)).reshape([4, 4]),
    "casts": lambda x: x.astype("float64").astype(x.dtype) + x.copy() * (x > 0).astype("int64").astype(x.dtype),
    "powers": lambda x: x**2 + (x * x + 1.0) ** 0.5 + 2.0**x + abs(-x),
    "extremes": lambda x: x.max() + x.min(0, keepdims=True) + x.max(-1) + cx.maximum(x, 0.5) + cx.where(x > 0, x, 2.0),
    "joined": lambda x: cx.concat([x[:2], x[2:] * 2.0]) + cx.stack([x[0], x[1], x[2], x[3]]),
    "one input twice": lambda x: x * x + (x - x) * x + x / (x + 10.0),
    "normal forms": lambda x: cx.functional.softmax(x, 1) + cx.functional.log_softmax(x, 0),
    "a convolution": lambda x: cx.functional.conv2d(x.reshape(1, 1, 4, 4), x.reshape(4, 1, 2, 2)),
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


def backwards(f: Callable[..., Any], *given: cx.Tensor) -> list[bytes]:
    for x in given:
        x.grad = None
    f(*given).sum().backward()
    return [x.grad.numpy().tobytes() for x in given if x.grad is not None]


def test_the_rule_of_a_gradient_is_not_asked_for_calls_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = numbers(3, 4, grad=True), numbers(4, grad=True)
    for _ in range(OFTEN):
        expected = backwards(lambda x, y: (x * y).relu() @ x.reshape(4, 3), x, y)

    def refused(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(cx.Tensor, "_apply_generally", refused)
    for rule in ("mul", "relu", "matmul", "reshape", "sum"):
        monkeypatch.delitem(gradients.RULES, rule, raising=False)
        monkeypatch.delitem(gradients.BY_INPUT, rule, raising=False)
    assert backwards(lambda x, y: (x * y).relu() @ x.reshape(4, 3), x, y) == expected


def test_a_gradient_learned_of_equal_inputs_is_right_for_others() -> None:
    x, y = numbers(5, grad=True), numbers(5, grad=True)
    for _ in range(OFTEN):
        x.grad = None
        (x * x).sum().backward()
    x.grad = None
    (x * y).sum().backward()
    assert x.grad is not None and x.grad.tolist() == y.tolist()


def test_what_was_written_over_since_is_an_error_every_time() -> None:
    x, y = numbers(5, grad=True), numbers(5)
    for _ in range(OFTEN):
        z = (x * y).sum()
        y += 1.0
        with pytest.raises(GradientError, match="changed in place"):
            z.backward()
    for _ in range(OFTEN):  # the gradient of a sum needs no numbers
        z = (x + y).sum()
        y += 1.0
        z.backward()


def test_a_gradient_that_remembers_itself_is_asked_for_by_its_rule() -> None:
    for often in range(OFTEN):
        x = cx.tensor([2.0, 3.0], requires_grad=True)
        (first,) = cx.grad((x * x * x).sum(), x, create_graph=often % 2 == 1)
        assert first.tolist() == [12.0, 27.0] and first.requires_grad == (often % 2 == 1)
        if first.requires_grad:
            (second,) = cx.grad(first.sum(), x)
            assert second.tolist() == [12.0, 18.0]


def test_profiles_and_devices_see_the_calls_of_known_gradients() -> None:
    x = numbers(5, grad=True)
    for _ in range(OFTEN):
        (x * x).sum().backward()
    with cx.profile() as prof:
        (x * x).sum().backward()
    assert [record.name for record in prof.records].count("mul") == 3


def test_hooks_change_gradients_that_are_known() -> None:
    seen: list[list[float]] = []
    for _ in range(OFTEN):
        x = cx.tensor([1.0, 2.0], requires_grad=True)
        y = x * 3.0
        y.register_hook(lambda g: g * 2.0)
        x.register_hook(lambda g: seen.append(g.tolist()))
        (y * y).sum().backward()
        assert x.grad is not None and x.grad.tolist() == [36.0, 72.0] and seen[-1] == [36.0, 72.0]


def test_a_rule_that_looks_at_numbers_is_asked_every_time() -> None:
    for often in range(OFTEN):  # singular every second time, which the rule of det looks for
        x = cx.tensor([[1.0, 2.0], [3.0, 6.0 if often % 2 else 4.0]], requires_grad=True)
        cx.linalg.det(x).backward()
        expected = [[x[1, 1].item(), -3.0], [-2.0, 1.0]]
        assert x.grad is not None and np.allclose(x.grad.numpy(), expected, atol=1e-4)


def test_threads_walk_back_over_what_they_share() -> None:
    x = numbers(8, grad=True)
    shared = (x * x).exp()
    found: list[bytes] = []

    def work() -> None:
        for _ in range(200):
            (g,) = cx.grad((shared * shared).sum(), x, retain_graph=True)
            found.append(g.numpy().tobytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 800 and len(set(found)) == 1


def test_a_million_operations_leave_nothing_behind() -> None:
    x, y = numbers(4, grad=True), numbers(4)

    def some(count: int) -> None:
        for _ in range(count):
            z = (x + y) * 2.0 - x[1:3].sum() + y.reshape(2, 2)[0].mean()
            z.sum().backward()
            x.grad = None
            z.detach().numpy()
            float(y[0])

    some(1000)
    gc.collect()
    before = sys.getallocatedblocks()
    some(66_000)  # of 15 operations and more
    gc.collect()
    assert sys.getallocatedblocks() - before < 200


def test_views_made_the_short_way_share_memory_and_follow_their_base() -> None:
    x = cx.zeros(4, 3)
    for often in range(OFTEN):
        row, flat, same = x[often % 4], x.reshape(-1), x.detach()
        row += 1.0
        same[0, 0] = 9.0
        assert flat.tolist() == x.numpy().reshape(-1).tolist() and row.shares_memory(x) and flat[0].item() == 9.0
    assert x[1:3].numpy().base is not None and x[1:3].numpy().flags.writeable


def test_what_cannot_be_written_to_has_views_that_cannot() -> None:
    array = np.arange(6, dtype=np.float32)
    array.flags.writeable = False
    x = cx.from_numpy(array)
    for view in (x.reshape(2, 3), x[2:], x.detach(), x[1]):
        with pytest.raises(DataError, match="read-only"):
            view[...] = 0.0


def test_numbers_come_out_as_numpy_has_them() -> None:
    for dtype in ("float32", "float64", "int64", "int32", "uint8", "int8", "uint64", "float16", "bool"):
        x = cx.tensor([[3]]).astype(dtype)
        assert (x.item(), type(x.item())) == (x.numpy().item(), type(x.numpy().item()))
        assert float(x) == float(x.numpy().item()) and int(x) == int(x.numpy().item()) and bool(x) is True
    assert (
        bool(cx.tensor(float("nan"))) and not bool(cx.tensor(0.0)) and cx.tensor(0.1).item() == float(np.float32(0.1))
    )
    with pytest.raises(ShapeError, match="one element"):
        cx.zeros(2).item()


def test_a_wrong_index_or_shape_is_the_same_error_every_time() -> None:
    x = numbers(3, 4)
    for _ in range(OFTEN):
        with pytest.raises(IndexError, match="index 3 is out of range"):
            x[3]
        with pytest.raises(ShapeError, match="reshape"):
            x.reshape(5, 2)
        with pytest.raises(AxisError, match="axis"):
            x.sum(2)
        with pytest.raises(TypeError, match="unexpected keyword"):
            x.sum(over=1)


OPTIMISERS: dict[str, Callable[..., Any]] = {
    "SGD": optim.SGD,
    "SGD with momentum": partial(optim.SGD, momentum=0.9, weight_decay=0.1, nesterov=True),
    "SGD with averages": partial(optim.SGD, momentum=0.9),
    "Adam": partial(optim.Adam, weight_decay=0.1),
    "AdamW": optim.AdamW,
    "NAdam": optim.NAdam,
    "RMSprop": partial(optim.RMSprop, momentum=0.5, centered=True),
    "Adagrad": partial(optim.Adagrad, lr_decay=0.1),
    "Lion": partial(optim.Lion, weight_decay=0.1),
    "Adamax": optim.Adamax,
    "RAdam": optim.RAdam,
    "Adadelta": optim.Adadelta,
    "Adafactor": optim.Adafactor,
    "ASGD": optim.ASGD,
    "Rprop": optim.Rprop,
}


def trained(make: Callable[..., Any], dtype: str) -> list[bytes]:
    """Parameters after each of steps between which everything changes that may."""
    first, second = numbers(3, 4, dtype=dtype, grad=True), numbers(4, dtype=dtype, grad=True)
    optimizer = make([{"params": [first]}, {"params": [second], "lr": 0.02}], lr=0.01)
    saved, found = optimizer.state_dict(), []
    for step in range(16):
        if step == 5:
            optimizer.lr = 0.005
        if step == 8:
            optimizer.param_groups[1]["weight_decay"] = 0.3
        if step == 10:
            saved = copy.deepcopy(optimizer.state_dict())
        if step == 12:
            optimizer.load_state_dict(saved)
        if step == 13:
            with cx.no_grad():
                first[0] = 0.25
        if step == 14:
            optimizer = copy.deepcopy(optimizer)
            first, second = optimizer.parameters
        optimizer.zero_grad()
        loss = ((first @ second if step != 7 else first) * (step - 5.0)).square().mean()
        loss.backward()
        optimizer.step()
        found += [first.numpy().tobytes(), second.numpy().tobytes()]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_update_that_is_known_is_that_of_the_rule(name: str, dtype: str) -> None:
    with general_way():
        expected = trained(OPTIMISERS[name], dtype)
    assert trained(OPTIMISERS[name], dtype) == expected


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_rule_of_an_update_is_not_asked_for_steps_that_are_known(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = numbers(3, 4, grad=True)
    optimizer = OPTIMISERS[name]([x], lr=0.01)

    def step() -> None:
        x.grad = numbers(3, 4)
        optimizer.step()

    for _ in range(OFTEN):
        step()

    def refused(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(updates, "next_values", refused)
    step()


def test_a_step_tells_that_it_wrote_into_the_parameter() -> None:
    x = numbers(4, grad=True)
    optimizer = optim.SGD([x], lr=0.1)
    for _ in range(OFTEN):
        loss = (x * x).sum()
        loss.backward(retain_graph=True)
        optimizer.step()
        with pytest.raises(GradientError, match="changed in place"):
            loss.backward()


def test_every_index_picks_what_numpy_picks() -> None:
    rng = np.random.default_rng(3)
    parts: list[Any] = [
        0,
        1,
        -1,
        2,
        slice(None),
        slice(1, None),
        slice(None, -1),
        slice(0, 9, 2),
        slice(2, 1),
        slice(-9, 2),
    ]
    array = rng.standard_normal((3, 4, 3)).astype(np.float32)
    for how in range(600):
        base, picked = cx.tensor(array), array.copy()
        if how % 3 == 1:
            base, picked = base.permute(2, 0, 1), picked.transpose(2, 0, 1)
        if how % 3 == 2:
            base, picked = base[:, 1:3], picked[:, 1:3]
        chosen = [parts[place] for place in rng.integers(0, len(parts), rng.integers(1, 4))]
        if how % 5 == 0:
            chosen[rng.integers(0, len(chosen))] = Ellipsis
        try:
            expected = picked[tuple(chosen)]
        except IndexError:
            with pytest.raises(IndexError):
                base[tuple(chosen)]
            continue
        found = base[tuple(chosen)]
        assert (found.shape, found.numpy().tobytes()) == (expected.shape, expected.tobytes()), chosen
        assert (found * 2.0 + found).numpy().tobytes() == (expected * np.float32(2.0) + expected).tobytes()
        if found.size > 1:
            assert found.shares_memory(base)
            found[...] = 7.0
            expected[...] = 7.0
            assert base.numpy().tobytes() == picked.tobytes()


def test_operators_in_place_write_where_the_tensor_is() -> None:
    for _ in range(OFTEN):
        x, y = numbers(3, 4), numbers(4)
        kept, expected = x.numpy(), x.numpy().copy()
        x += y
        x *= 3.0
        x -= x
        x[1] += y
        x[1] /= 2
        expected = np.zeros_like(expected)
        expected[1] = (expected[1] + y.numpy()) / np.float32(2)
        assert x.numpy() is kept and kept.tobytes() == expected.tobytes()


def test_operators_in_place_of_overlapping_memory_read_before_they_write() -> None:
    for _ in range(OFTEN):
        array = np.arange(6, dtype=np.float32)
        x = cx.from_numpy(array)
        x[1:] += x[:-1]
        assert array.tolist() == [0.0, 1.0, 3.0, 5.0, 7.0, 9.0]
        one, other = cx.from_numpy(array[:4]), cx.from_numpy(array[2:])
        other *= one
        assert array.tolist() == [0.0, 1.0, 0.0, 5.0, 21.0, 45.0]


def test_operators_in_place_are_remembered_where_something_is_followed() -> None:
    for _ in range(OFTEN):
        w, x = cx.tensor([2.0, 3.0], requires_grad=True), cx.zeros(2)
        x += w
        x -= w * w
        x.sum().backward()
        assert w.grad is not None and w.grad.tolist() == [-3.0, -5.0]
        with pytest.raises(GradientError, match="leaf"):
            w += 1.0
        with cx.no_grad():
            w += 1.0
        assert w.tolist() == [3.0, 4.0]


def test_subclasses_have_the_operators_and_may_change_them() -> None:
    class Loud(cx.Tensor):
        def __add__(self, other: Any) -> Any:
            return "add", super().__add__(other).tolist()

        def __radd__(self, other: Any) -> Any:
            return "radd"

    loud, x = Loud([1.0, 2.0]), cx.tensor([1.0, 2.0])
    for _ in range(OFTEN):
        assert loud + x == ("add", [2.0, 4.0]) and x + loud == "radd" and 1.0 + loud == "radd"
        assert (loud * x).tolist() == (x * loud).tolist() == [1.0, 4.0] and (loud @ x).item() == 5.0
        assert (np.ones(2, np.float32) - loud).tolist() == [0.0, -1.0]


def test_memory_that_is_used_again_has_nothing_left_in_it() -> None:
    for _ in range(1000):
        x = numbers(3, grad=True) * 2.0
        x.note = "here"  # type: ignore[attr-defined]
        gone = weakref.ref(x)
        del x
        assert gone() is None
        y = numbers(3) * 2.0
        assert y.__dict__ == {} and y.grad is None and y.is_leaf and not y.requires_grad and y._memory is None


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_gradient_with_gaps_is_the_same_gradient(name: str) -> None:
    rng = np.random.default_rng(0)
    parameters = [cx.ones((40, 40)) for _ in range(2)]  # large enough for other threads to run meanwhile
    optimizers = [OPTIMISERS[name]([p], lr=0.01) for p in parameters]
    for step in range(2 * OFTEN):
        array = rng.standard_normal((40, 40)).astype(np.float32)
        parameters[0].grad = cx.tensor(array)
        parameters[1].grad = cx.tensor(np.ascontiguousarray(array.T)).T if step % 3 else cx.tensor(array)
        for optimizer in optimizers:
            optimizer.step()
        assert parameters[0].numpy().tobytes() == parameters[1].numpy().tobytes()


def test_adam_learns_a_weight_that_is_used_transposed() -> None:
    x, w = numbers(3, 3), numbers(3, 3, grad=True)
    first, optimizer = w.numpy().copy(), optim.Adam([w], lr=0.01)
    for _ in range(OFTEN):
        optimizer.zero_grad()
        (x @ w.T).sum().backward()
        optimizer.step()
    assert (np.abs(w.numpy() - first) > 0.01).all()


def test_operators_in_place_of_a_part_of_the_tensor_itself_read_before_they_write() -> None:
    for _ in range(OFTEN):
        x = cx.ones((3, 2))
        x += x[0]
        assert x.tolist() == [[2.0, 2.0]] * 3
        x = cx.tensor([[2.0, 4.0], [6.0, 8.0]])
        x /= x[0, 0]
        assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_rule_that_takes_a_part_is_not_made_of_the_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gradients.RULES, "asinh", lambda g, x, y, a: (g * x[0][1:2] + x[0].detach(),))
    for place in range(OFTEN):
        x = cx.tensor([1.0, 2.0 + place, 3.0], requires_grad=True)
        apply("asinh", x).sum().backward()
        assert x.grad is not None and x.grad.tolist() == [3.0 + place, 4.0 + 2 * place, 5.0 + place]


def test_what_no_index_and_no_shape_can_be_is_said_every_time() -> None:
    x = numbers(3, 4)
    for _ in range(OFTEN):
        with pytest.raises(IndexError):
            x[..., ...]
        for shape in ((2**70,), (-1, 2**63), (-(2**70),)):
            with pytest.raises((GraphError, ShapeError)):
                x.reshape(*shape)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_parameter_that_was_its_own_gradient_may_have_another(name: str) -> None:
    parameters = [cx.ones((2, 2)) for _ in range(2)]
    optimizers = [OPTIMISERS[name]([p], lr=0.01) for p in parameters]
    for step in range(2 * OFTEN):
        for p, optimizer in zip(parameters, optimizers, strict=True):
            p.grad = cx.ones((2, 2)) if step >= OFTEN else p if p is parameters[0] else p.copy()
            optimizer.step()
        assert parameters[0].numpy().tobytes() == parameters[1].numpy().tobytes()


def test_a_long_row_of_views_ends_without_recursion() -> None:
    base = cx.zeros((3, 1))
    x = base
    for _ in range(500_000):
        x = x.T
    assert x.shares_memory(base)
    del x
    w, x = cx.ones((1, 1), requires_grad=True), base
    for _ in range(3_000):
        x = x.T
    base[:1] = w
    (x * 2.0).sum().backward()
    assert w.grad is not None and w.grad.tolist() == [[2.0]]


class Noted:
    def __init__(self) -> None:
        self.scale, self.terms, self.table, self.own = 2.0, [1.0, 2.0], cx.ones(3), SimpleNamespace(a=1, b=2)


CHANGED: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "a variable": lambda agent, table: vars(agent).update(scale=3.0),
    "no variable": lambda agent, table: vars(agent).pop("scale"),
    "one that was not there": lambda agent, table: vars(agent).update(later=1),
    "a list, item by item": lambda agent, table: agent.terms.append(3.0),
    "an answer": lambda agent, table: agent.terms.__setitem__(0, 4.0),
    "an attribute": lambda agent, table: vars(agent).update(terms=[*agent.terms]),
    "a value of a dict": lambda agent, table: table.update(first=agent),
    "a value more": lambda agent, table: table.update(third=agent),
    "names": lambda agent, table: table.update(other=table.pop("second")),
    "another value": lambda agent, table: vars(agent.own).update(b=3),
    "another value more": lambda agent, table: vars(agent.own).update(c=3),
    "a value less": lambda agent, table: vars(agent.own).pop("b"),
    "an array": lambda agent, table: setattr(agent.table, "_data", np.ones(3, np.float32)),
    "a gradient": lambda agent, table: setattr(agent.table, "grad", cx.ones(3)),
    "whether one is required": lambda agent, table: agent.table.requires_grad_(True),
    "what is written": lambda agent, table: agent.table.__setitem__(0, 5.0),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_watch_holds_until_what_it_noted_is_another_object(name: str) -> None:
    agent, table = Noted(), {"first": 1.5, "second": 2.5, "lr": 0.1}
    watch = Watch()
    for each in ("scale", "later"):
        watch.place(vars(agent), each)
    watch.items(agent.terms)
    watch.attribute(agent, "terms")
    watch.answer(sum, agent.terms)
    watch.tensor(agent.table, by_value=True)
    watch.table(vars(agent.own))
    watch.options(table, {"lr"})
    assert watch.holds()
    table["lr"], agent.unseen = 0.2, 1.0
    assert watch.holds()
    CHANGED[name](agent, table)
    assert not watch.holds()


def test_a_watch_sees_variables_of_functions_and_gives_up_where_it_cannot_look() -> None:
    number = 1.0

    def function() -> float:
        return number

    watch, other = Watch(), Watch()
    watch.place(function.__closure__[0], "number")
    assert watch.holds()
    number = 2.0
    assert not watch.holds()
    other.place(vars(Noted), "scale")  # no dict
    assert not other.holds()
