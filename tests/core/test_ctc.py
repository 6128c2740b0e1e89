"""The loss of connectionist temporal classification by one kernel, beside PyTorch's and the same of operations."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore.errors import CyxError, GradientError
from cyxcore.functional import losses
from cyxcore.symbols import Builder
from tests.core.kernelcases import same_bits

torch = pytest.importorskip("torch")

Arrays = tuple[np.ndarray, ...]


def given(seed: int, dtype: str = "float64") -> tuple[np.ndarray, Arrays, int]:
    """Logits (T, N, C), (targets, input lengths, target lengths) and a blank. Some rows have no alignment."""
    dice = np.random.default_rng(seed)
    steps, rows, classes, size = dice.integers(1, 40), dice.integers(1, 6), dice.integers(2, 9), dice.integers(0, 20)
    blank = int(dice.integers(classes))
    labels = (blank + dice.integers(1, classes, (rows, size))) % classes
    lengths = dice.integers(1, steps + 1, rows), dice.integers(0, size + 1, rows)
    return 3 * dice.standard_normal((steps, rows, classes)).astype(dtype), (labels, *lengths), blank


def ours(
    logits: np.ndarray, rest: Arrays, blank: int, reduction: str = "none", zero_infinity: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The loss, and the gradient of the logits."""
    x = cx.tensor(logits, requires_grad=True)
    loss = F.ctc_loss(F.log_softmax(x, 2), *map(cx.tensor, rest), blank, reduction, zero_infinity)
    loss.backward(cx.tensor(np.cos(np.arange(loss.size)).reshape(loss.shape).astype(loss.dtype)))
    return loss.detach().numpy(), x.grad.numpy()


def theirs(logits: np.ndarray, rest: Arrays, blank: int, reduction: str) -> tuple[np.ndarray, np.ndarray]:
    x = torch.tensor(logits.astype("float64"), requires_grad=True)
    loss = torch.nn.functional.ctc_loss(
        x.log_softmax(2), *map(torch.tensor, rest), blank, reduction, zero_infinity=True
    )
    loss.backward(torch.cos(torch.arange(loss.numel()).double()).reshape(loss.shape))
    return loss.detach().numpy(), x.grad.numpy()


@pytest.fixture
def of_operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(losses, "is_made_here", lambda value: False)
    yield


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 2e-5)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_it_is_pytorchs_of_float64(reduction: str, dtype: str, tolerance: float) -> None:
    for seed in range(40):
        case = given(seed, dtype)
        for own, other in zip(ours(*case, reduction), theirs(*case, reduction), strict=True):
            np.testing.assert_allclose(own, other, rtol=tolerance, atol=tolerance, err_msg=str(seed))


def test_it_is_what_operations_make(of_operations: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [given(seed) for seed in range(12)]
    wanted = [ours(*case) for case in cases]
    monkeypatch.undo()
    for case, pair in zip(cases, wanted, strict=True):
        for own, other in zip(ours(*case), pair, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-11, atol=1e-12)


def test_of_many_steps_float32_keeps_its_digits() -> None:
    dice = np.random.default_rng(1)
    logits = dice.standard_normal((2000, 2, 30)).astype("float32")
    rest = (dice.integers(1, 30, (2, 80)), np.array([2000, 1500]), np.array([80, 61]))
    for own, other in zip(ours(logits, rest, 0), theirs(logits, rest, 0, "none"), strict=True):
        assert np.linalg.norm(own - other) < 2e-4 * np.linalg.norm(other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bits_are_those_of_any_number_of_threads_and_of_a_compiled_function(dtype: str) -> None:
    dice = np.random.default_rng(3)
    x, g = cx.tensor(dice.standard_normal((90, 9, 12)).astype(dtype)), cx.tensor(dice.random(9).astype(dtype))
    rest = [cx.tensor(dice.integers(*bounds)) for bounds in ((1, 12, (9, 40)), (60, 91, 9), (10, 41, 9))]

    def both(x: Any, g: Any, *rest: Any) -> tuple[Any, ...]:
        loss = F.ctc_loss(F.log_softmax(x, 2), *rest, reduction="none")
        return loss, cx.autograd.grad((loss * g).sum(), [x])[0]

    found = []
    for threads in (1, 2, 3):
        cx.set_num_threads(threads)
        for function in (both, cx.compile(both)):
            found.append([each.numpy() for each in function(x.detach().requires_grad_(), g, *rest)])
    assert all(same_bits(*pair) for one in found for pair in zip(one, found[0], strict=True))


def test_a_row_without_an_alignment_is_infinite_and_has_no_gradient() -> None:
    logits, rest = np.zeros((3, 2, 4), "float32"), (np.array([[1, 1], [1, 2]]), np.array([2, 2]), np.array([2, 2]))
    loss, gradient = ours(logits, rest, 0, zero_infinity=False)
    np.testing.assert_allclose(loss, [np.inf, 2 * np.log(4)], rtol=1e-6)
    assert not gradient[:, 0].any() and gradient[:2, 1].any() and not gradient[2].any()
    assert ours(logits, rest, 0)[0][0] == 0.0


@pytest.mark.parametrize("way", ["kernel", "operations"])
def test_of_no_steps_there_is_one_alignment_without_labels(way: str, request: pytest.FixtureRequest) -> None:
    if way == "operations":
        request.getfixturevalue("of_operations")
    rest = np.array([[1], [1]]), np.array([0, 0]), np.array([0, 1])
    loss, gradient = ours(np.zeros((2, 2, 3), "float32"), rest, 0, zero_infinity=False)
    assert loss.tolist() == [0.0, np.inf] and not gradient.any()


def test_a_probability_of_0_is_no_way_and_no_nan() -> None:
    steps = [[-np.inf, -1.0, -1.0], [-1.0, -np.inf, -2.0], [-1.0, -0.5, -np.inf]]
    log_probs = cx.tensor(np.array(steps)[:, None], requires_grad=True)
    loss = F.ctc_loss(log_probs, cx.tensor([[1, 2]]), cx.tensor([3]), cx.tensor([2]), reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(1.0 + 2.0 + 1.0)  # 1, 2, blank
    np.testing.assert_allclose(log_probs.grad.numpy()[:, 0], [[0, -1, 0], [0, 0, -1], [-1, 0, 0]], atol=1e-6)


def test_a_nan_stays_in_its_row() -> None:
    logits = np.zeros((4, 2, 3), "float32")
    logits[1, 0] = np.nan
    loss, gradient = ours(logits, (np.array([[1], [1]]), np.array([4, 4]), np.array([1, 1])), 0)
    assert np.isnan(loss).tolist() == [True, False]
    assert np.isnan(gradient[:, 0]).any() and np.isfinite(gradient[:, 1]).all()


def test_labels_behind_the_end_of_a_row_are_not_read() -> None:
    logits, lengths = np.zeros((4, 2, 3), "float32"), (np.array([4, 3]), np.array([1, 0]))
    for own, other in zip(
        ours(logits, (np.array([[1, -1], [99, -7]]), *lengths), 0),
        ours(logits, (np.array([[1, 2], [2, 2]]), *lengths), 0),
        strict=True,
    ):
        assert same_bits(own, other)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (([[1, 3]], [4], [2]), "labels of 0..2, got 3 in row 0"),
        (([[1, -1]], [4], [2]), "labels of 0..2, got -1 in row 0"),
        (([[1, 2]], [5], [2]), "input_lengths of 0..4, got 5"),
        (([[1, 2]], [-1], [2]), "input_lengths of 0..4, got -1"),
        (([[1, 2]], [4], [3]), "target_lengths of 0..2, got 3"),
    ],
)
def test_what_does_not_fit_is_refused_compiled_too(rest: Any, said: str) -> None:
    function = lambda x, *rest: F.ctc_loss(x, *rest)  # noqa: E731
    for each in (function, cx.compile(function)):
        with pytest.raises(CyxError, match=said):
            each(cx.zeros(4, 1, 3), *map(cx.tensor, rest))


def test_it_has_one_derivative() -> None:
    x = cx.zeros(4, 1, 3, requires_grad=True)
    loss = F.ctc_loss(F.log_softmax(x, 2), cx.tensor([[1]]), cx.tensor([4]), cx.tensor([1]))
    (first,) = cx.autograd.grad(loss, [x], create_graph=True)
    with pytest.raises(GradientError, match="ctc_loss: expected one derivative"):
        cx.autograd.grad(first.square().sum(), [x])


@pytest.mark.parametrize("travels", [True, False])
def test_a_graph_that_travels_holds_calls_that_every_node_knows(travels: bool) -> None:
    builder = Builder(travels=travels)
    x, labels = builder.input("x", (5, 2, 4)), builder.input("labels", (2, 3), "int64")
    F.ctc_loss(x, labels, (5, 4), (3, 2))
    assert ("ctc_loss" in {node.op for node in builder.nodes}) is not travels
