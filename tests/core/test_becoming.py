"""Tensors that a compiled function or a traced model makes and then fills with values of the graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import GraphError
from cyxcore.evaluation import predict
from tests.core.programs import Programs, bits

Filling = Callable[[Any, Any], Any]  # of a layer of 5 to 3, and x (4, 5)
PROGRAMS: Programs[Filling] = Programs()
same, refused = PROGRAMS.same, PROGRAMS.refused


@same
def row_by_row(layer: Any, x: Any) -> Any:
    out = cx.zeros(4, 3)
    for t in range(4):
        out[t] = layer(x[t])
    return out


@same
def part_by_part(layer: Any, x: Any) -> Any:
    out = x.new_zeros(4, 2, 3)
    out[:, 0] = layer(x)
    out[:, 1] = out[:, 0] * 2.0
    out[0] = 1.0
    return out.sum(0), out


@same
def added_to_parts(layer: Any, x: Any) -> Any:
    out = cx.ones(4, 3)
    out[:, 1] += x[:, 0]
    out[2] *= layer(x)[0]
    return out


@same
def by_methods(layer: Any, x: Any) -> Any:
    product, copied, counted = cx.ones_like(x), cx.empty(4, 3), cx.full((4,), 0.5)
    product.mul_(x).add_(1)
    copied.copy_(layer(x)).relu_()
    counted.add_(x[:, 0])
    places = cx.zeros(4, 5).scatter_(1, x.argmax(dim=1, keepdim=True), 1.0)
    whole = cx.zeros(4, 3, dtype=cx.int64).copy_(layer(x) * 9.0)
    return product, copied, counted, places, whole


@same
def where_a_mask_or_an_index_is_of_the_graph(layer: Any, x: Any) -> Any:
    out = cx.zeros(4, 3)
    out[layer(x) > 0] = 1.0
    out[:, x[0, :3].argmax()] = 5.0
    return out


@same
def in_lists_and_dicts(layer: Any, x: Any) -> Any:
    outs, sums = [cx.zeros(3) for _ in range(4)], {"all": cx.zeros(())}
    for t, out in enumerate(outs):
        out += layer(x[t])
    sums["all"] += x.sum()
    return cx.stack(outs), sums, outs


@same
def by_another_name(layer: Any, x: Any) -> Any:
    out = cx.zeros(4, 3)
    other = out
    out[0] = layer(x)[0]
    other[1] = 2.0
    return out, other, out * (out is other)


@same
def read_in_every_way(layer: Any, x: Any) -> Any:
    ones, out = cx.ones(4, 3), cx.zeros(4, 3)
    out[1:] = layer(x)[1:]
    sums = 1.0 + out, out - ones, ones - out, ones * out, out / ones, 2.0 / (out + 3.0), out**2, -out, abs(out)
    calls = F.relu(out), cx.add(out, 1.0), cx.exp(out), cx.maximum(ones, out), cx.maximum(out, ones), ones.maximum(out)
    joined = cx.cat([out, ones]), cx.stack([ones, out]), cx.where(out > 0, out, ones), cx.where(ones > 2, ones, out)
    shapes = out.T, out[1], out[:, None], out.reshape(-1), out.shape[0] * out, len(out) * out, [row * 2 for row in out]
    products = out @ cx.ones(3, 2), cx.ones(2, 4) @ out, F.linear(out, cx.ones(2, 3)), F.mse_loss(out, ones)
    compared = out == ones, out != 0.0, out < ones, ones >= out
    shapes = *shapes, out * isinstance(out, cx.Tensor), out * (out.dtype == "float32"), out * out.ndim
    return sums, calls, joined, shapes, products, compared, out.mean(dim=1), F.softmax(out, 1), layer.bias + out


@same
def a_table_and_what_is_added(layer: Any, x: Any) -> Any:
    table = cx.zeros(4, 3)
    table[:, 0::2] = cx.sin(cx.arange(4.0)[:, None])
    return layer(x) + table


@refused("views were taken, which would not show it")
def with_a_view_that_is_there(layer: Any, x: Any) -> Any:
    out = cx.zeros(4, 3)
    row = out[0]
    out[1] = x[0, :3]
    return out + row


@refused("but for one that the function made by cx.zeros and its like; write x = x.mul")
def of_what_no_function_made(layer: Any, x: Any) -> Any:
    return (cx.arange(5.0) * 2.0).mul_(x[0])


def _layer_and_batch() -> tuple[Any, Any]:
    cx.manual_seed(0)
    return nn.Linear(5, 3), cx.randn(4, 5)


@pytest.mark.parametrize("name", PROGRAMS.equal)
def test_a_tensor_that_the_function_made_holds_values_of_the_graph(name: str) -> None:
    layer, x = _layer_and_batch()
    program = PROGRAMS.equal[name]

    compiled = cx.compile(lambda x: program(layer, x))
    plain = bits(program(layer, x))
    for _ in range(3):
        assert bits(compiled(x)) == plain


@pytest.mark.parametrize("name", PROGRAMS.unfit)
def test_what_a_tensor_cannot_show_is_refused(name: str) -> None:
    layer, x = _layer_and_batch()
    program, said = PROGRAMS.unfit[name]
    program(layer, x)
    with pytest.raises(GraphError, match=said):
        cx.compile(lambda x: program(layer, x))(x)


def test_a_training_step_goes_back_through_what_it_filled() -> None:
    layer, x = _layer_and_batch()

    def step(x: Any) -> Any:
        out = cx.zeros(4, 3)
        for t in range(4):
            out[t] = layer(x[t])
        out[:, 0] *= 0.5
        loss = out.square().mean()
        loss.backward()
        return loss

    found = []
    for how in (step, cx.compile(step)):
        layer.weight.grad = None
        found.append(bits([how(x), layer.weight.grad]))
    assert found[0] == found[1]


def test_a_traced_model_fills_tensors_for_any_number_of_rows() -> None:
    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x: Any) -> Any:
            out = cx.zeros(len(x), 2, 3)
            out[:, 1] = self.linear(x)
            out[:, 0] = out[:, 1].exp()
            return out

    module = Filled()
    model = cx.trace(module, (5,))
    for rows in (1, 4):
        x = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
        assert predict(model.graph, model.weights, x).tobytes() == module(cx.tensor(x)).detach().numpy().tobytes()
