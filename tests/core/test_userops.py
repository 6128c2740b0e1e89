"""Operations made of a user's function: on tensors, with gradients, in compiled steps; and what they may not do."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn, optim
from cyxcore.errors import DtypeError, GradientError, GraphError, MissingExtra, ShapeError, SpecError

pytest.importorskip("numba", reason="the extra jit is not installed")
X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


@cx.op
def soft_limit(x: float, limit: float) -> float:
    """x, growing slowly above the limit."""
    return x if x < limit else limit + math.log1p(x - limit)


@soft_limit.gradient
def _(g: float, x: float, limit: float) -> tuple[float, float]:
    return (g, 0.0) if x < limit else (g / (1.0 + x - limit), g * (1.0 - 1.0 / (1.0 + x - limit)))


@cx.op(reduce=True, start=1.0)
def one_and_cubes(total: float, x: float) -> float:
    return total + x * x * x


@one_and_cubes.gradient
def _(g: float, result: float, x: float) -> float:
    return 3.0 * g * x * x


@cx.op
def twice(x: float) -> float:
    return x + x


def built_in(x: Any, limit: Any) -> Any:
    above = cx.maximum(x - limit, 0.0)
    return cx.where(x < limit, x, limit + cx.log1p(above))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_element_wise_operation_is_its_formula_and_broadcasts(dtype: str) -> None:
    x, limit = cx.tensor(X, dtype=dtype), cx.tensor([[0.1], [0.2], [0.3], [-0.5], [9.0]], dtype=dtype)
    for one in (limit, 0.25):
        made = soft_limit(x, one)
        assert made.dtype == dtype and made.shape == (5, 7)
        np.testing.assert_allclose(made.numpy(), built_in(x, one).numpy(), rtol=1e-6)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_a_reduction_folds_its_axes(axis: Any, keepdims: bool) -> None:
    x = cx.tensor(X)
    made = one_and_cubes(x, axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(made.numpy(), 1.0 + (X**3).sum(axis, keepdims=keepdims), rtol=1e-4)
    assert one_and_cubes(cx.zeros(3, 0), axis=1).tolist() == [1.0, 1.0, 1.0]


def test_gradients_are_those_that_were_given() -> None:
    x, limit = cx.tensor(X, requires_grad=True), cx.tensor([[0.1]] * 5, requires_grad=True)
    (soft_limit(x, limit) * cx.tensor(X)).sum().backward()
    found = x.grad.numpy(), limit.grad.numpy()
    x.grad = limit.grad = None
    (built_in(x, limit) * cx.tensor(X)).sum().backward()
    np.testing.assert_allclose(found[0], x.grad.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found[1], limit.grad.numpy(), rtol=1e-4, atol=1e-6)
    cubes = cx.grad(lambda v: one_and_cubes(v, axis=1).sum())(cx.tensor(X))
    np.testing.assert_allclose(cubes.numpy(), 3 * X * X, rtol=1e-6)


def test_a_compiled_step_gives_the_bits_of_the_plain_one() -> None:
    runs = []
    for compiled in (True, False):
        cx.manual_seed(1)
        model = nn.Linear(7, 6)
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            hidden = soft_limit(model(x).relu() * 2.0, 0.3)
            loss = one_and_cubes(hidden * hidden, axis=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        losses = [made(cx.tensor(X)).item() for _ in range(4)]
        runs.append((losses, model.weight.numpy().tobytes()))
    assert runs[0] == runs[1] and runs[0][0][3] < runs[0][0][0]


def test_a_compiled_function_and_the_reference_device_take_them_too() -> None:
    held = cx.compile(lambda x: twice(x @ x.T).relu() + 1.0)
    expected = np.maximum(2 * (X @ X.T), 0) + 1
    np.testing.assert_allclose(held(cx.tensor(X)).numpy(), expected, rtol=1e-4, atol=1e-5)
    with cx.use_device("reference"):
        np.testing.assert_allclose(twice(cx.tensor(X)).numpy(), 2 * X)


class Own(nn.Module):
    def forward(self, x: Any) -> Any:
        return twice(x)


def test_a_graph_that_holds_one_does_not_travel(tmp_path: Path) -> None:
    traced = cx.trace(Own(), (7,))
    for leaves in (
        lambda: cx.save_model(tmp_path / "m.safetensors", traced.graph, traced.weights),
        traced.graph.to_json,
        lambda: traced.graph.sha256,
    ):
        with pytest.raises(GraphError, match="it holds 'twice', an operation of your own; only graphs of known"):
            leaves()


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: twice(cx.tensor(X), 2.0), SpecError, "twice: expected 1 inputs"),
        (lambda: twice(3.0), DtypeError, "twice: expected at least one tensor, got float"),
        (lambda: twice(cx.tensor([1, 2])), DtypeError, "int64"),
        (lambda: soft_limit(cx.tensor(X), cx.zeros(3)), ShapeError, r"\(5, 7\)"),
        (lambda: one_and_cubes(cx.tensor(X), axis=2), ShapeError, r"an axis 0\.\.1, got 2"),
        (lambda: cx.op(math.sin), SpecError, "expected a function written in Python .*, got <built-in function sin>"),
        (lambda: cx.op(lambda: 1.0), SpecError, "1 to 8 arguments, got 0"),
        (lambda: cx.op(lambda x: x, reduce=True), SpecError, r"a reduction takes \(total, x\), this function takes 1"),
        (lambda: cx.op(lambda x: open(x)), SpecError, "numba cannot compile it for numbers"),
        (lambda: twice.gradient(lambda g: g), SpecError, r"expected a function of \(g and the 1 inputs\)"),
        (
            lambda: cx.grad(lambda v: twice(v).sum())(cx.tensor(X)),
            GradientError,
            "twice: .*that twice.gradient gives it",
        ),
    ],
)
def test_what_does_not_fit_is_said(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cyx\[jit\]'"):
        cx.op(lambda x: x)
