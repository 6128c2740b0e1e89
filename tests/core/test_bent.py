"""Functions of straight pieces, and huber_loss: of tensors one operation, elsewhere what they are made of."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import elementwise
from cyxcore.functional import activations, losses
from tests.core.test_fusing import kernels

F = cx.nn.functional
# name -> (of tensors one operation, what it is made of)
FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "hardtanh": (F.hardtanh, lambda x: activations._hardtanh(x, -1.0, 1.0)),
    "hardtanh between others": (lambda x: F.hardtanh(x, 0.0, 2.5), lambda x: activations._hardtanh(x, 0.0, 2.5)),
    "clip": (lambda x: cx.clip(x, -1.0, 2.5), lambda x: elementwise._clip(x, -1.0, 2.5)),
    "clip the other way": (lambda x: cx.clip(x, 1.0, -1.0), lambda x: elementwise._clip(x, 1.0, -1.0)),
    "relu6": (F.relu6, lambda x: activations._hardtanh(x, 0.0, 6.0)),
    "hardsigmoid": (F.hardsigmoid, activations._hardsigmoid),
    "hardswish": (F.hardswish, activations._hardswish),
    "softshrink": (F.softshrink, lambda x: activations._softshrink(x, 0.5)),
    "leaky_relu": (F.leaky_relu, lambda x: activations._leaky_relu(x, 0.01)),
    "leaky_relu downwards": (lambda x: F.leaky_relu(x, -0.3), lambda x: activations._leaky_relu(x, -0.3)),
    "huber_loss": (
        lambda x: F.huber_loss(x, x.detach() * 0.0 + 0.25, "none", 1.5),
        lambda x: losses._huber(x - (x.detach() * 0.0 + 0.25), 1.5),
    ),
}
BENDS = [
    -6.0,
    -3.0,
    -2.5,
    -1.0,
    -0.5,
    -0.0,
    0.0,
    0.5,
    1.0,
    1.75,
    -1.25,
    2.5,
    3.0,
    6.0,
    np.inf,
    -np.inf,
    np.nan,
    1e-42,
    3e38,
]


def _there_and_back(function: Any, values: Any, g: Any) -> list[Any]:
    x = cx.tensor(values, requires_grad=True)
    y = function(x)
    y.backward(cx.tensor(g))
    return [y.detach().numpy(), x.grad.numpy()]


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_pieces_have_the_bits_of_what_they_are_made_of(name: str, dtype: str, isa: str) -> None:
    rng = np.random.default_rng(3)
    near = np.nextafter(np.array(BENDS, dtype), np.array([np.inf, -np.inf] * 10, dtype)[: len(BENDS)])
    values = np.concatenate([np.array(BENDS, dtype), near, (4.0 * rng.standard_normal(70_000)).astype(dtype)])
    g = rng.standard_normal(values.shape).astype(dtype)
    one, of_many = FUNCTIONS[name]
    with kernels(isa, 2):
        got, expected = _there_and_back(one, values, g), _there_and_back(of_many, values, g)
        compiled = cx.compile(one)(cx.tensor(values)).numpy()
    for each, other in zip([*got, got[0]], [*expected, compiled], strict=True):
        np.testing.assert_array_equal(np.isnan(each), np.isnan(other))
        assert each[~np.isnan(each)].tobytes() == other[~np.isnan(other)].tobytes()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_their_second_derivatives_are_those_of_what_they_are_made_of(name: str) -> None:
    x = cx.tensor([-4.0, -2.0, -0.75, 0.3, 0.9, 2.0, 4.0, 7.0], dtype="float64", requires_grad=True)
    found = []
    for function in FUNCTIONS[name]:
        (first,) = cx.autograd.grad((function(x) * x.sin()).sum(), [x], create_graph=True)
        found.append(cx.autograd.grad((first * x.cos()).sum(), [x])[0].numpy())
    np.testing.assert_allclose(*found, rtol=1e-13, atol=1e-14)


def test_bounds_that_are_no_numbers_have_no_operation() -> None:
    x = cx.tensor([-2.0, 0.5, 9.0])
    np.testing.assert_array_equal(F.hardtanh(x, 0.0, float("inf")).numpy(), [0.0, 0.5, 9.0])
