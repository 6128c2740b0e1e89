"""Python to graph: what tracing keeps, and what it tells you it cannot."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import GraphError, ShapeError
from cyxcore.evaluation import predict
from cyxcore.graphlearner import initial_weights
from cyxcore.objectives import training_step
from cyxcore.plan import Plan
from cyxcore.spec import OptimizerSpec, TrainingSpec

pytestmark = pytest.mark.usefixtures("each_device")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.out(self.drop(x.reshape(len(x), -1)))


def test_a_traced_module_computes_what_the_module_computes() -> None:
    net = Net().eval()
    net.norm.running_mean.numpy()[...] = [0.1, -0.2, 0.3, 0.0]
    graph, weights = cx.trace(net, (1, 6, 6))
    x = np.random.default_rng(0).normal(size=(3, 1, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(predict(graph, weights, x), net(cx.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_traced_module_is_a_verified_model_with_its_names() -> None:
    graph, weights = cx.trace(Net(), (1, 6, 6))
    graph.verify()
    assert [p.name for p in graph.parameters] == [
        "conv.weight",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "out.weight",
        "out.bias",
    ]
    assert set(weights) == {p.name for p in graph.all_parameters} and len(graph.updates) == 2


def test_the_module_is_itself_again_after_tracing() -> None:
    net = Net()
    before = dict(net.named_parameters())
    cx.trace(net, (1, 6, 6))
    assert dict(net.named_parameters()).keys() == before.keys() and net.training is True
    assert all(a is b for a, b in zip(dict(net.named_parameters()).values(), before.values(), strict=True))


def test_a_sequential_gives_the_graph_of_its_layer_list() -> None:
    traced, _ = cx.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)), (4,))
    layers = [
        {"kind": "Linear", "out_features": 8},
        {"kind": "ReLU"},
        {"kind": "Dropout", "p": 0.1},
        {"kind": "Linear", "out_features": 2},
    ]
    assert traced.sha256 == cx.build(input_shape=[4], layers=layers).sha256


def test_a_function_may_hold_constants() -> None:
    graph, weights = cx.trace(lambda x: x * cx.tensor([1.0, 2.0]) + 1, (2,))
    assert weights == {} and predict(graph, {}, [[3.0, 4.0]]).tolist() == [[4.0, 9.0]]


def test_shared_parameters_stay_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x))

    assert [p.name for p in cx.trace(Tied(), (3,)).graph.parameters] == ["a.weight", "a.bias", "b.bias"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, "a condition"),
        (lambda x: x * float(x.mean()), "float"),
        (lambda x: cx.tensor(x.numpy()), r"\.numpy"),
        (lambda x: cx.tensor(np.asarray(x)), "NumPy array"),
        (lambda x: x * x.max().item(), r"\.item"),
        (lambda x: x[: int(x.sum())], "int"),
        (
            lambda x: x.sum(0, keepdims=True).broadcast_to(x.shape) / len(x),
            "depends on the batch size.*1009.*2003",
        ),
        (lambda x: x + cx.arange(len(x)).expand_dims(1), "depends on the batch size"),
        (lambda x: sum((x[i] for i in range(len(x) // 500)), x), "depends on the batch size"),
        (lambda x: x * cx.tensor([1.0], requires_grad=True), "nn.Parameter"),
        (lambda x: 3.0, "one tensor"),
        (lambda x: (x, x), "one tensor"),
        (lambda x: x @ cx.zeros(300, 300), "nn.Parameter or a buffer"),
    ],
)
def test_what_a_graph_cannot_hold_is_said(function: Any, message: str) -> None:
    with pytest.raises((GraphError, ShapeError), match=message):
        cx.trace(function, (300,) if "buffer" in message else (2,))


def test_states_of_zeros_for_each_row_are_those_of_any_batch() -> None:
    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 40, num_layers=2, batch_first=True)

        def forward(self, x: Any) -> Any:
            zeros = cx.zeros(2, x.size(0), 40)
            return self.lstm(x, (zeros, zeros))[0][:, -1] + cx.ones(len(x), 1)

    forecast, x = Forecast(), cx.randn(7, 5, 3)
    traced = cx.Model(*cx.trace(forecast, (5, 3)))
    assert traced.predict(x.numpy()).tobytes() == forecast(x).numpy().tobytes()


def test_values_may_be_assigned_to_in_parts() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x: Any) -> Any:
            x = x.clone()
            x[:, 3] = 0.5
            h = self.linear(x)
            h[:, 1::2] *= 2.0
            row = h[:, 0]
            row += x[:, 1]
            h[h > 1.0] = 1.0
            return h

    module = Masked()
    model = cx.trace(module, (4,))
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    assert predict(model.graph, model.weights, x).tobytes() == module(cx.tensor(x)).detach().numpy().tobytes()
    assert x[0, 3] != 0.5


def test_branching_on_training_is_said() -> None:
    class Branching(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2.0 if self.training else x

    with pytest.raises(GraphError, match="self.training"):
        cx.trace(Branching(), (2,))


def test_a_shape_error_in_a_module_names_the_layer() -> None:
    with pytest.raises(ShapeError, match="layer 1: Linear"):
        cx.trace(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(3, 2))[0]), (4,))


def test_a_shape_with_a_batch_size_in_it_is_said() -> None:
    with pytest.raises(ShapeError, match=r"layer Linear: .*; 1009 stands for any batch size: one sample is \(8, 4\)"):
        cx.trace(nn.Linear(3, 2), (8, 4))
    with pytest.raises(GraphError, match=r"the shape of one sample, such as \(3,\)"):
        cx.summary(nn.Linear(3, 2), 3)  # type: ignore[arg-type]


def test_any_reshape_that_keeps_rows_is_free_of_the_batch() -> None:
    graph, _ = cx.trace(lambda x: x.reshape(x.shape[0] * 2, 3).relu().reshape(-1, 6), (6,))
    assert graph.infer(5).shapes[graph.outputs[0]] == (5, 6)


def test_compile_gives_the_same_results_and_sees_new_weights() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    fast, x = cx.compile(net), cx.tensor([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(fast(x).numpy(), net(x).numpy(), rtol=1e-6)
    net[2].bias.numpy()[...] += 1.0
    np.testing.assert_allclose(fast(x).numpy(), net(x).numpy(), rtol=1e-6)


def test_a_function_is_compiled_with_the_modules_that_it_uses() -> None:
    body, head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)
    fast, x = cx.compile(lambda x: head(body(x)).relu()), cx.tensor([[1.0, 2.0, 3.0]])
    for _ in range(2):
        expected = head.eval()(body.eval()(x)).relu()
        body.train()
        assert fast(x).equal(expected)
        head.load_state_dict({"weight": np.ones((2, 4), np.float32), "bias": np.ones(2, np.float32)})


def test_compile_takes_functions_of_several_tensors() -> None:
    total, product = cx.compile(lambda a, b: (a + b, a * b))(cx.tensor([1.0, 2.0]), cx.tensor([3.0, 4.0]))
    assert total.tolist() == [4.0, 6.0] and product.tolist() == [3.0, 8.0]


class First(nn.Module):
    """The first result of a module that returns several."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)[0]


MODULES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, 2, 1, 2, 2), (4, 20)),
    (nn.Conv3d(4, 6, 3, 2, 1, 1, 2), (4, 7, 8, 9)),
    (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2), (4, 5, 6)),
    (nn.ConvTranspose3d(4, 6, 3, 2, 1, 1, 2), (4, 2, 5, 6)),
    (nn.AdaptiveAvgPool2d((3, 2)), (4, 7, 5)),
    (nn.GroupNorm(2, 4), (4, 5, 6)),
    (nn.RMSNorm(6), (4, 6)),
    (nn.PixelShuffle(2), (8, 3, 4)),
    (nn.UpsamplingNearest2d(2), (3, 4, 5)),
    (nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), (5, 8)),
    (nn.TimeDistributed(nn.Linear(8, 3)), (5, 8)),
    (nn.PositionalEncoding(), (5, 8)),
    (nn.LinearAttention(8, 2), (5, 8)),
    (nn.RotaryEmbedding(), (5, 8)),
    (nn.Dropout2d(0.5), (4, 5, 6)),
    *((First(kind(5, 7, 2, batch_first=True, bidirectional=True)), (6, 5)) for kind in (nn.RNN, nn.LSTM, nn.GRU)),
]


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=lambda value: type(value).__name__)
def test_a_layer_is_traced_for_any_number_of_rows(module: nn.Module, shape: tuple[int, ...]) -> None:
    module.eval().to(cx.default_device())
    graph, weights = cx.trace(module, shape)
    for rows in (1, 3):
        x = np.random.default_rng(rows).normal(size=(rows, *shape)).astype(np.float32)
        atol = 1e-6 if cx.default_device() == "cuda" else 0.0  # there a scalar may be computed on either side
        np.testing.assert_allclose(predict(graph, weights, x), module(cx.tensor(x)).numpy(), rtol=0, atol=atol)


def test_a_batch_norm_that_is_called_twice_learns_from_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Any) -> Any:
            return self.norm(self.norm(x) * 3.0 + 1.0)

    x = cx.tensor(np.random.default_rng(0).normal(2.0, 3.0, (16, 4)).astype(np.float32))
    net = Twice()
    graph, weights = cx.trace(net, (4,))
    step = training_step(graph, 16, TrainingSpec(loss="mse", optimizer=OptimizerSpec(name="sgd")))
    state = {name: cx.device.put(array) for name, array in (initial_weights(step, 0) | weights).items()}
    plan = Plan(step, state)
    plan.inputs["x"][...], plan.inputs["target"][...], plan.inputs["step"][...] = x.numpy(), 0.0, 1
    plan.inputs["learning_rate"][...] = 0.01
    plan.run()
    net(x)
    for name in ("norm.running_mean", "norm.running_var"):
        np.testing.assert_allclose(cx.device.host(state[name]), net.state_dict()[name], rtol=1e-5)
