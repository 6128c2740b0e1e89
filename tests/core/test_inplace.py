"""inplace=True of functions and layers, and x += y of results: what PyTorch writes into x, and its gradients."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
import cyxcore.nn.functional as F
from cyxcore import nn
from cyxcore.errors import GradientError, GraphError
from tests.core.layer_oracle import torch

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
OPTIONS: dict[str, tuple[float, ...]] = {
    **dict.fromkeys("hardsigmoid hardswish mish relu relu6 selu silu".split(), ()),
    "celu": (0.6,),
    "elu": (0.7,),
    "hardtanh": (-0.5, 0.5),
    "leaky_relu": (0.1,),
    "rrelu": (0.1, 0.1),
    "threshold": (0.1, 2.0),
}


def written(m: Any, function: Any, options: tuple[float, ...]) -> tuple[Any, Any]:
    """What is in y after a statement f(y, inplace=True), and the gradient of what y was made of."""
    x = m.tensor(X, requires_grad=True)
    y = x * 1.5
    assert function(y, *options, inplace=True) is y
    (y * y).sum().backward()
    return y.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize("name", OPTIONS)
def test_inplace_writes_into_x_as_in_torch(name: str) -> None:
    ours = written(cx, getattr(F, name), OPTIONS[name])
    theirs = written(torch, getattr(torch.nn.functional, name), OPTIONS[name])
    for own, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, its, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_inplace_writes_the_same_bits(name: str) -> None:
    def step(x: Any) -> Any:
        y = x * 1.5
        getattr(F, name)(y, *OPTIONS[name], inplace=True)
        return y

    x = cx.tensor(X)
    np.testing.assert_array_equal(cx.compile(step)(x).numpy(), step(x).numpy())


@pytest.mark.parametrize(
    "make", [nn.ReLU, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Hardtanh, lambda inplace: nn.Dropout(1.0, inplace)]
)
def test_a_layer_in_place_writes_into_x(make: Any) -> None:
    given, layer = cx.tensor(X), make(inplace=True)
    expected = make(inplace=False)(given).numpy().copy()
    layer(given)
    np.testing.assert_array_equal(given.numpy(), expected)


def test_dropout_in_place_leaves_x_alone_after_training() -> None:
    x = cx.tensor(X, requires_grad=True)
    assert nn.Dropout(0.5, inplace=True).eval()(x) is x


def test_a_leaf_that_requires_a_gradient_is_refused() -> None:
    with pytest.raises(GradientError, match="leaf"):
        F.relu(cx.tensor(X, requires_grad=True), inplace=True)


def test_an_argument_of_a_compiled_function_is_refused() -> None:
    with pytest.raises(GraphError, match="argument"):
        cx.compile(lambda x: F.relu(x, inplace=True))(cx.tensor(X))


def test_a_model_with_inplace_layers_is_traced() -> None:
    plain, written = (
        nn.Sequential(nn.ReLU(inplace), nn.Linear(4, 2), nn.ELU(inplace=inplace)) for inplace in (False, True)
    )
    assert cx.trace(plain, (4,)).graph.sha256 == cx.trace(written, (4,)).graph.sha256


# A result that nothing was computed from yet takes the new memory; all of these must tell no difference.
def chain(m: Any, write: Any) -> tuple[Any, ...]:
    x = m.tensor(X, requires_grad=True)
    y = x * 1.5
    result = write(m, x, y)
    ((y * 2.0).sum() if result is None else result).backward()
    return y.detach().numpy(), x.grad.numpy()


def after_a_reader(m: Any, x: Any, y: Any) -> Any:
    z = y + 1.0
    y += x
    return (y * z).sum()


def operator_with_itself(m: Any, x: Any, y: Any) -> None:
    y += y
    y *= 3.0


def seen_by_a_view(m: Any, x: Any, y: Any) -> Any:
    row = y[0]
    y += x
    return (row * y).sum()


def without_a_past(m: Any, x: Any, y: Any) -> Any:
    other = y.detach()
    y += 1.0
    return (other * y).sum()


def several(m: Any, x: Any, y: Any) -> None:
    y += x
    y -= 0.5
    y.relu_()


@pytest.mark.parametrize("write", [after_a_reader, operator_with_itself, seen_by_a_view, without_a_past, several])
def test_written_results_have_torchs_values_and_gradients(write: Any) -> None:
    for own, its in zip(chain(cx, write), chain(torch, write), strict=True):
        np.testing.assert_allclose(own, its, rtol=1e-5, atol=1e-6)


def test_a_result_times_itself_in_place() -> None:
    x = cx.tensor(X, requires_grad=True)
    y = x * 1.5
    y.mul_(y)  # an error in PyTorch on the way back, which keeps one memory
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), (1.5 * X) ** 2, rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), 4.5 * X, rtol=1e-6)


def test_a_result_whose_gradient_reads_it_is_written_over_where_it_can_be() -> None:
    x = cx.tensor(X, requires_grad=True)
    z = x.exp()
    z += 1.0  # an error in PyTorch, which keeps one memory
    z.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.exp(X), rtol=1e-6)


def test_a_function_that_saved_its_result_hears_of_the_write() -> None:
    class Exp(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * ctx.saved_tensors[0]

    x = cx.tensor(X, requires_grad=True)
    y = Exp.apply(x)
    y += 1.0
    with pytest.raises(GradientError):
        y.sum().backward()


def test_a_training_step_in_place_is_the_same_training() -> None:
    def losses(inplace: bool) -> list[float]:
        cx.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)]
        model = nn.Sequential(*layers, nn.ReLU(inplace), nn.Flatten(), nn.Linear(16 * 12 * 12, 5))
        optimizer = cx.optim.SGD(model.parameters(), lr=0.01)
        x, y = cx.randn(24, 3, 16, 16), cx.randint(0, 5, (24,))  # so large that norms are one operation
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses(True) == losses(False)
