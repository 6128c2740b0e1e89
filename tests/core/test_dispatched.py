"""Functions whose calls are known (cyxcore/dispatch.py) do what the function itself does, every time."""

import copy
import functools
import inspect
import pickle
import pydoc
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
import cyxcore.nn.functional as F  # noqa: N812 - PyTorch's name for it
from cyxcore import composed
from cyxcore.dispatch import PURE
from cyxcore.errors import CyxError, ShapeError
from cyxcore.held import Dispatched
from cyxcore.kernels import cpu
from tests.core.test_dispatch import OFTEN, general_way

if Dispatched is None:
    pytest.skip("the compiled part is missing", allow_module_level=True)


FLOATS = {
    **dict.fromkeys("xyz", (4, 4)),
    **dict.fromkeys("vw", (4,)),
    "b": (2, 4, 4),
    "image": (1, 4, 6, 6),
    "kernel": (4, 4, 3, 3),
    "line": (1, 4, 8),
    "lines": (4, 4, 3),
    "space": (1, 1, 4, 4, 4),
    "cube": (1, 1, 2, 2, 2),
}
NOT_TRAINED = "z"


@functools.cache
def arrays(seed: int) -> dict[str, Any]:
    """Of always the same kinds, holding other numbers."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {name: rng.uniform(0.1, 0.9, shape).astype(np.float32) for name, shape in FLOATS.items()}
    integers = {"i": rng.integers(0, 4, (4,)), "ii": rng.integers(0, 4, (4, 4))}
    return made | integers | {"m": rng.integers(0, 2, (4, 4)) > 0}


def tensors(seed: int, names: Iterable[str]) -> dict[str, cx.Tensor]:
    trained = FLOATS.keys() - NOT_TRAINED
    return {name: cx.tensor(arrays(seed)[name], requires_grad=name in trained) for name in names}


# What is tried of each function: what it does not take is an error, and none of its calls.
TRIED = (
    "x",
    "z",
    "x, y",
    "x, z",
    "x, x",
    "x, 2.0",
    "0.5, x",
    "x, 1",
    "x, -1",
    "x, dim=1",
    "x, dim=0, keepdim=True",
    "x, axis=1, keepdims=True",
    "x, 0, 1",
    "x, 0, 1, 2",
    "x, 0.25, 0.75",
    "x, (0, 1)",
    "x, (1, 0)",
    "x, 1, (2, 2)",
    "x, (16,)",
    "x, 2, 3",
    "x, y, z",
    "x, y, 0.5",
    "x, v",
    "x, v, w",
    "x, v, x",
    "v",
    "v, w",
    "v, w, x",
    "v, x, w",
    "v, v, w",
    "x, (4,), v, w",
    "x, (4,), v",
    "[x, y]",
    "[x, y], 1",
    "b, b",
    "b, b, b",
    "x, b, b",
    "b",
    "b, 2",
    "image, 2",
    "line, 2, v, w",
    "line, 2",
    "line, lines",
    "image, kernel",
    "image, kernel, v, padding=1",
    "space, cube",
    "space, 2",
    "x, m, 0.5",
    "m, x, y",
    "m, m",
    "m",
    "i",
    "i, i",
    "i, 5",
    "ii, ii",
    "i, x",
    "x, i",
    "x, 1, i",
    "x, 1, ii",
    "x, ii, 1",
    "x, ii, dim=1",
    "x, 1, ii, y",
    "x, [1, 1]",
    "v, 2",
    "v, (3, 4)",
    "v, 3, 4",
    "lines, lines",
)


def functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for name in sorted(PURE):
        for home, there in (("cx", cx), ("F", F), ("x", cx.Tensor)):
            function = getattr(there, name, None)
            if isinstance(function, Dispatched):
                found[f"{home}.{name}"] = function
    return found


def flat(result: Any) -> list[cx.Tensor]:
    parts = result if isinstance(result, (tuple, list)) else [result]
    return [part for part in parts if isinstance(part, cx.Tensor)]


def outcome(function: Callable[..., Any], call: str, seed: int) -> list[Any] | None:
    """What comes out and the gradients of what it is given, as bytes; None where the function does not take that."""
    code = compile(f"function({call})", call, "eval")
    given = tensors(seed, sorted(arrays(seed).keys() & set(code.co_names)))
    try:
        result = eval(code, {"function": function, **given})
    except Exception:
        return None
    found = [type(result)]
    for x in flat(result):
        found.append((x.shape, x.dtype, x.requires_grad, x.numpy().tobytes()))
        if x.requires_grad:
            x.sum().backward()
    return found + [None if x.grad is None else x.grad.numpy().tobytes() for x in given.values()]


@pytest.mark.parametrize("name", functions())
def test_a_known_call_is_what_the_function_does(name: str) -> None:
    function = functions()[name]
    taken = 0
    for call in TRIED:
        if name.startswith("x.") and not call[0].isalpha():  # a method is one of a tensor
            continue
        with general_way():
            expected = outcome(function.__wrapped__, call, seed=9)
        if expected is None:
            continue
        for seed in range(OFTEN):
            outcome(function, call, seed)
        assert outcome(function, call, seed=9) == expected, call
        taken += 1
    assert taken


def counted(function: Callable[..., Any]) -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def call(*given: Any, **options: Any) -> Any:
        asked.append(given)
        return function(*given, **options)

    return Dispatched(call), asked


def test_the_function_is_not_asked_for_calls_that_are_known() -> None:
    scaled, asked = counted(lambda x, y, by=1.0: (x + y) * by)
    for _ in range(OFTEN):
        scaled(*cx.ones((2, 3, 4)), by=2.0)
    before = len(asked)
    assert before < OFTEN
    assert scaled(cx.ones((3, 4)), cx.ones((3, 4)), by=2.0).tolist() == [[4.0] * 4] * 3
    assert len(asked) == before
    for other in ({"by": 3.0}, {"by": 2}, {}):
        scaled(cx.ones((3, 4)), cx.ones((3, 4)), **other)
    scaled(cx.ones((3, 4)), cx.ones((3, 4)), 2.0)
    scaled(cx.ones((3, 4)), cx.ones(4), by=2.0)
    scaled(cx.ones((3, 4)), cx.ones((3, 4), dtype="float64"), by=2.0)
    assert len(asked) == before + 6


LARGE = (64, 8, 4, 40)  # so large that several operations are one call (eager.LEAST_COMPOSED)
OF_SEVERAL: dict[str, Callable[..., Any]] = {
    "norm": lambda x, w: x.norm(),
    "norm of rows": lambda x, w: x.norm(dim=-1),
    "layer_norm": lambda x, w: F.layer_norm(x, (40,), x[0, 0, 0], None),
    "group_norm": lambda x, w: F.group_norm(x, 4, w, w),
    "silu": lambda x, w: F.silu(x),
    "more than one call": lambda x, w: F.normalize(x, dim=-1),
    "in halves": lambda x, w: F.gelu(x.astype("float16")),
}


def large(seed: int, grad: bool = True) -> tuple[cx.Tensor, cx.Tensor]:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(LARGE, np.float32), rng.standard_normal(LARGE[1], np.float32)
    return cx.tensor(x, requires_grad=grad), cx.tensor(w, requires_grad=grad)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", OF_SEVERAL)
def test_a_known_call_of_several_operations_is_what_the_function_does(name: str, grad: bool) -> None:
    def found(seed: int) -> list[bytes]:
        x, w = large(seed, grad)
        result = OF_SEVERAL[name](x, w)
        if grad:
            result.sum().backward()
        return [each.numpy().tobytes() for each in (result, x.grad, w.grad) if each is not None]

    with general_way():
        expected = [found(seed) for seed in range(OFTEN)]
    assert [found(seed) for seed in range(OFTEN)] == expected


def test_a_function_that_is_one_call_of_several_operations_is_not_asked_when_it_is_known() -> None:
    function, asked = counted(lambda x, w: F.group_norm(x, 4, w))
    for seed in range(OFTEN):
        function(*large(seed))
    before, threads = len(asked), cpu.get_num_threads()
    assert before < OFTEN
    try:
        for count in (1, 2):  # other plans each
            cpu.set_num_threads(count)
            x, w = large(OFTEN + count)
            assert function(x, w).numpy().tobytes() == F.group_norm.__wrapped__(x, 4, w).numpy().tobytes()
        assert len(asked) == before
    finally:
        cpu.set_num_threads(threads)


@pytest.mark.parametrize(
    "more",
    [
        lambda x, w: F.silu(x) * 2.0,
        lambda x, w: F.silu(x * 2.0),
        lambda x, w: [F.silu(x), F.gelu(x)][0],
        lambda x, w: F.silu(x) if float(w[0]) > 0 else F.gelu(x),
    ],
)
def test_a_function_that_does_more_than_one_call_of_several_operations_is_asked_every_time(
    more: Callable[..., Any],
) -> None:
    function, asked = counted(more)
    for seed in range(2 * OFTEN):
        x, w = large(seed)
        assert function(x, w).numpy().tobytes() == more(x, w).numpy().tobytes()
    assert len(asked) == 2 * OFTEN


def test_profiles_and_devices_see_every_call_of_several_operations() -> None:
    x, _ = large(0)
    for _ in range(OFTEN):
        F.silu(x)
    with cx.profile() as seen:
        F.silu(x)
    assert "exp" in str(seen) or "sigmoid" in str(seen)
    with cx.use_device("reference"):
        assert F.silu(x).device == "reference"


def test_plans_that_were_forgotten_are_made_again_for_calls_that_are_known() -> None:
    x, _ = large(0)
    for _ in range(OFTEN):
        expected = F.silu(x).numpy()
    for known in composed._ways.values():
        known.ways = None
    composed._ways.clear()
    assert F.silu(x).numpy().tobytes() == expected.tobytes()
    assert composed._ways


def test_views_of_what_was_written_since_are_read_anew_by_calls_of_several_operations() -> None:
    for seed in range(OFTEN):
        x, _ = large(seed)
        whole = x * 1.0
        rows, columns = whole.reshape(64, -1), whole[::2]
        whole[2] = cx.zeros(LARGE[1:])
        assert np.allclose(rows.norm().numpy(), np.linalg.norm(whole.numpy()))
        assert np.allclose(columns.norm().numpy(), np.linalg.norm(whole.numpy()[::2]))


def test_options_that_are_equal_but_not_the_same_are_other_calls() -> None:
    plus, _ = counted(lambda x, y: x + y)
    for number, dtype in ((1, "int64"), (1.0, "float32"), (True, "int64"), (-0.0, "float32")):
        for _ in range(OFTEN):
            found = plus(cx.tensor([0]), number)
        assert (found.dtype, found.tolist()) == (dtype, [float(number)])
    negative, _ = counted(lambda x, y: x * y)
    for number, sign in ((0.0, 1.0), (-0.0, -1.0)):
        for _ in range(OFTEN):
            found = negative(cx.ones(1), number)
        assert np.copysign(1.0, found.item()) == sign


def test_a_tensor_twice_is_another_call_than_two() -> None:
    for _ in range(OFTEN):
        x = cx.tensor([1.0, 2.0], requires_grad=True)
        cx.mul(x, x).sum().backward()
        assert x.grad.tolist() == [2.0, 4.0]
    x, y = cx.tensor([3.0, 4.0], requires_grad=True), cx.tensor([5.0, 6.0], requires_grad=True)
    assert cx.mul(x, y).tolist() == [15.0, 24.0]
    assert cx.mul(y, x).tolist() == [15.0, 24.0]


def test_lists_of_tensors_may_grow() -> None:
    for count in (2, 3, 2, 1):
        for _ in range(OFTEN):
            assert cx.cat([cx.ones(2)] * count).shape == (2 * count,)
            assert cx.cat(tuple(cx.ones(2) for _ in range(count))).shape == (2 * count,)


def test_what_is_remembered_is_asked_anew_each_time() -> None:
    trained, frozen = cx.ones(3, requires_grad=True), cx.ones(3)
    for _ in range(OFTEN):
        assert cx.clamp(trained, 0, 2).requires_grad
        assert not cx.clamp(frozen, 0, 2).requires_grad
        with cx.no_grad():
            assert not cx.clamp(trained, 0, 2).requires_grad


def test_a_part_that_is_not_followed_stays_so() -> None:
    def half_followed(x: Any) -> Any:
        with cx.no_grad():
            scale = x * 2.0
        return x * scale

    half, asked = counted(half_followed)
    for _ in range(2 * OFTEN):
        x = cx.tensor([3.0], requires_grad=True)
        half(x).sum().backward()
        assert x.grad.tolist() == [6.0]
    assert len(asked) == 2 * OFTEN


def test_a_function_that_looks_at_elements_is_asked_every_time() -> None:
    def chosen(x: Any) -> Any:
        return x * 2.0 if x.sum().item() > 0 else x * 3.0

    doubled, asked = counted(chosen)
    for _ in range(OFTEN):
        assert doubled(cx.ones(2)).tolist() == [2.0, 2.0]
        assert doubled(-cx.ones(2)).tolist() == [-3.0, -3.0]
    assert len(asked) == 2 * OFTEN


def test_what_is_written_in_place_is_written_every_time() -> None:
    for _ in range(2 * OFTEN):
        x = cx.tensor([-1.0, 2.0])
        assert F.relu(x, inplace=True) is x
        assert x.tolist() == [0.0, 2.0]
    added, _ = counted(lambda x, y: x.add_(y))
    for _ in range(2 * OFTEN):
        x = cx.zeros(2)
        assert added(x, cx.ones(2)) is x
        assert x.tolist() == [1.0, 1.0]


def test_results_are_nobody_elses() -> None:
    x = cx.tensor([0.5, 2.0])
    for _ in range(OFTEN):
        found = cx.clamp(x, 0, 1)
        assert found.tolist() == [0.5, 1.0]
        found.zero_()


def test_a_view_shares_memory_with_what_it_is_of() -> None:
    for _ in range(OFTEN):
        x = cx.zeros(2, 2, requires_grad=True) * 1.0
        one, other = cx.split(x, 1)
        other.fill_(3.0)
        x.unsqueeze(0)[0, 0, 0] = 1.0
        assert x.tolist() == [[1.0, 0.0], [3.0, 3.0]]
        assert one.tolist() == [[1.0, 0.0]]


def test_what_comes_back_as_it_is_is_the_very_tensor() -> None:
    for _ in range(OFTEN):
        x = cx.ones(2, 3)
        assert x.squeeze() is x


def test_errors_come_every_time() -> None:
    for _ in range(OFTEN):
        with pytest.raises(ShapeError, match="do not broadcast"):
            cx.add(cx.ones(2), cx.ones(3))
        with pytest.raises(CyxError, match=r"there is no out="):
            cx.exp(cx.ones(2), out=cx.ones(2))
        with pytest.raises(TypeError, match="unexpected keyword argument 'sideways'"):
            cx.ones(2).unsqueeze(0, sideways=True)
        with pytest.raises(CyxError, match="expected a tensor, got str"):
            cx.exp("x")


@pytest.mark.parametrize("name", ["exp", "sum", "argmax", "reshape", "detach", "astype", "item", "__add__", "_next"])
def test_a_method_is_one_of_tensors(name: str) -> None:
    """It read the memory behind a number as if it were a tensor."""
    for given in (0.5, None, np.ones(2)):
        with pytest.raises(TypeError, match="Held"):
            getattr(cx.Tensor, name)(given)


def test_methods_in_c_have_signatures() -> None:
    assert list(inspect.signature(cx.Tensor.exp).parameters) == ["self"]
    assert list(inspect.signature(cx.Tensor.sum).parameters) == ["self", "axis", "keepdims", "words"]


def test_views_of_what_was_written_since_and_gaps_are_no_plain_memory() -> None:
    for _ in range(OFTEN):
        x = cx.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True) * 1.0
        row = x[0]
        x[0] = cx.tensor([5.0, 6.0])
        assert cx.square(row).tolist() == [25.0, 36.0]
        assert cx.rsqrt(x.T).shape == (2, 2)
        assert cx.clamp(x.T, 0, 3).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_profiles_and_devices_see_every_call() -> None:
    x = cx.ones(3)
    for _ in range(OFTEN):
        cx.clamp(x, 0, 1)
    with cx.profile() as seen:
        cx.clamp(x, 0, 1)
    assert "clip" in str(seen)
    with cx.use_device("reference"):
        assert cx.clamp(cx.ones(3) * 2.0, 0, 1).tolist() == [1.0] * 3


def test_autocast_changes_calls_that_are_known() -> None:
    x, w = cx.ones((2, 2, 2))
    for _ in range(OFTEN):
        assert F.linear(x, w).dtype == cx.matmul(x, w).dtype == "float32"
        with cx.autocast("cpu"):
            assert F.linear(x, w).dtype == cx.matmul(x, w).dtype == "bfloat16"


def test_subclasses_may_change_what_operations_do() -> None:
    class Loud(cx.Tensor):
        heard = 0

        def _apply(self, op: str, inputs: Any, attrs: Any) -> Any:
            type(self).heard += 1
            return super()._apply(op, inputs, attrs)

    for _ in range(OFTEN):
        cx.floor(Loud([1.5]))
    assert Loud.heard == OFTEN


def test_weights_of_modules_are_plain() -> None:
    weight = cx.nn.Parameter(cx.ones(2, 2))
    held, asked = counted(lambda x, w: x @ w)
    for _ in range(2 * OFTEN):
        held(cx.ones(2, 2), weight).sum().backward()
    assert len(asked) < OFTEN
    assert weight.grad.tolist() == [[4.0 * OFTEN] * 2] * 2


def test_symbols_are_given_to_the_function() -> None:
    compiled = cx.compile(lambda x: cx.clamp(cx.softmax(x, dim=1), 0.1, 0.9).unsqueeze(0).sum(dim=2))
    for seed in range(OFTEN):
        x = tensors(seed, "z")["z"]
        plain = cx.clamp(cx.softmax(x, dim=1), 0.1, 0.9).unsqueeze(0).sum(dim=2)
        assert compiled(x).numpy().tobytes() == plain.numpy().tobytes()
    again = cx.compile(cx.exp)
    assert again(cx.zeros(2)).tolist() == [1.0, 1.0]


def test_threads_call_what_they_share() -> None:
    wrong: list[Any] = []

    def run(number: int) -> None:
        for _ in range(200):
            x = cx.full((number, 4), float(number), requires_grad=True)
            cx.clamp(x * 1.0, 0, 2).sum().backward()
            if x.grad.tolist() != [[1.0 if number <= 2 else 0.0] * 4] * number:
                wrong.append(x.grad)

    threads = [threading.Thread(target=run, args=(1 + place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_many_kinds_of_calls_leave_the_first_ones_right() -> None:
    for number in range(6000):
        assert cx.add(cx.ones(1), number).item() == 1.0 + number


def test_it_looks_like_the_function() -> None:
    assert str(inspect.signature(cx.add)) == str(inspect.signature(cx.add.__wrapped__))
    assert list(inspect.signature(F.softmax).parameters) == ["input", "dim", "_stacklevel", "dtype"]
    assert list(inspect.signature(cx.Tensor.unsqueeze).parameters) == ["x", "dim"]
    assert (cx.add.__name__, cx.add.__qualname__, cx.add.__module__) == ("add", "add", "cyxcore")
    assert cx.add.__doc__ == "x + alpha * other, broadcast; of bools logical_or."
    assert inspect.isroutine(cx.add)
    assert "x + alpha * other, broadcast" in pydoc.render_doc(cx.add)
    assert repr(cx.add).startswith("<function add at ")
    assert pickle.loads(pickle.dumps(cx.add)) is cx.add  # noqa: S301 - our own
    assert copy.deepcopy(cx.add) is copy.copy(cx.add) is cx.add
    assert callable(cx.add)
    assert type(cx.add).__name__ == "function"
    assert cx.ones(2, 2).unsqueeze.__self__.shape == (2, 2)
