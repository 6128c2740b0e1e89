"""Modules against formulas written out in NumPy."""

import copy
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import ShapeError, SpecError

pytestmark = pytest.mark.usefixtures("each_device")

RNG = np.random.default_rng(2)
X = RNG.normal(size=(6, 5)).astype(np.float32)
IMAGE = RNG.normal(size=(2, 4, 5, 6)).astype(np.float32)


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_linear() -> None:
    layer = nn.Linear(5, 3)
    close(layer(cx.tensor(X)), X @ layer.weight.numpy().T + layer.bias.numpy())


def test_linear_on_sequences() -> None:
    layer = nn.Linear(6, 3, bias=False)
    close(layer(cx.tensor(IMAGE)), IMAGE @ layer.weight.numpy().T)


def test_conv2d_with_every_option() -> None:
    layer = nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2)
    w, b = layer.weight.numpy(), layer.bias.numpy()
    padded = np.pad(IMAGE, ((0, 0), (0, 0), (2, 2), (1, 1)))
    expected = np.zeros((2, 6, 5, 4))
    for n, o, i, j in np.ndindex(expected.shape):
        start = o // 3 * 2
        window = padded[n, start : start + 2, i : i + 5 : 2, 2 * j : 2 * j + 2]
        expected[n, o, i, j] = (window * w[o]).sum() + b[o]
    close(layer(cx.tensor(IMAGE)), expected)


def test_pooling() -> None:
    even = IMAGE[:, :, :4]
    windows = even.reshape(2, 4, 2, 2, 3, 2)
    close(nn.MaxPool2d(2)(cx.tensor(even)), windows.max((3, 5)))
    close(nn.AvgPool2d(2)(cx.tensor(even)), windows.mean((3, 5)))
    close(nn.GlobalAvgPool2d()(cx.tensor(even)), even.mean((2, 3)))


def test_average_pooling_counts_padding_as_zeros() -> None:
    close(nn.AvgPool2d(2, 2, 1)(cx.ones(1, 1, 2, 2)), [[[[0.25, 0.25], [0.25, 0.25]]]])


def test_batch_norm_trains_on_the_batch_and_remembers() -> None:
    layer = nn.BatchNorm2d(4)
    got = layer(cx.tensor(IMAGE))
    mean, var = IMAGE.mean((0, 2, 3)), IMAGE.var((0, 2, 3))
    close(got, (IMAGE - mean.reshape(1, 4, 1, 1)) / np.sqrt(var.reshape(1, 4, 1, 1) + 1e-5))
    close(layer.running_mean, 0.1 * mean)
    close(layer.running_var, 0.9 + 0.1 * IMAGE.var((0, 2, 3), ddof=1))


def test_batch_norm_evaluates_with_what_it_remembers() -> None:
    layer = nn.BatchNorm1d(5).eval()
    layer.load_state_dict(
        {
            "weight": np.full(5, 2.0),
            "bias": np.full(5, 1.0),
            "running_mean": np.full(5, 0.5),
            "running_var": np.full(5, 4.0),
            "num_batches_tracked": np.array(3),
        }
    )
    close(layer(cx.tensor(X)), (X - 0.5) / np.sqrt(4.0 + 1e-5) * 2 + 1)
    close(layer.running_mean, np.full(5, 0.5))


def test_batch_norm_of_one_row_keeps_a_finite_variance() -> None:
    layer = nn.BatchNorm1d(5)
    layer(cx.tensor(X[:1]))
    assert np.isfinite(layer.running_var.numpy()).all()


def test_layer_norm() -> None:
    expected = (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)
    close(nn.LayerNorm(5)(cx.tensor(X)), expected)


def test_activations() -> None:
    from math import erf, sqrt

    phi = np.vectorize(lambda v: 0.5 * (1 + erf(v / sqrt(2))))(X)
    sigmoid = 1 / (1 + np.exp(-X))
    close(nn.GELU()(cx.tensor(X)), X * phi)
    close(nn.SiLU()(cx.tensor(X)), X * sigmoid)
    close(nn.Sigmoid()(cx.tensor(X)), sigmoid)
    close(nn.Tanh()(cx.tensor(X)), np.tanh(X))
    close(nn.ReLU()(cx.tensor(X)), X.clip(0))
    close(nn.LeakyReLU(0.1)(cx.tensor(X)), np.where(X > 0, X, 0.1 * X))


def test_softmax_rows_sum_to_one() -> None:
    close(nn.Softmax()(cx.tensor(X * 50)).sum(-1), np.ones(6))


def test_embedding_takes_rows() -> None:
    layer = nn.Embedding(7, 3)
    close(layer(cx.tensor([[1, 6], [-1, 0]])), layer.weight.numpy()[[[1, 6], [6, 0]]])


def test_cross_entropy() -> None:
    labels = np.array([0, 4, 2, 2, 1, 3])
    expected = -np.log(np.exp(X)[np.arange(6), labels] / np.exp(X).sum(1))
    close(nn.CrossEntropyLoss()(cx.tensor(X), cx.tensor(labels)), expected.mean())
    close(nn.CrossEntropyLoss(reduction="none")(cx.tensor(X), cx.tensor(labels)), expected)


def test_mse() -> None:
    close(nn.MSELoss(reduction="sum")(cx.tensor(X), cx.tensor(X + 2)), 4.0 * X.size)


def test_bce_with_logits_is_stable() -> None:
    logits = np.array([-100.0, -1.0, 0.0, 2.0, 100.0], np.float32)
    target = np.array([0.0, 1.0, 1.0, 0.0, 1.0], np.float32)
    expected = np.mean([0.0, np.log1p(np.exp(1.0)), np.log(2.0), 2 + np.log1p(np.exp(-2.0)), 0.0])
    close(nn.BCEWithLogitsLoss()(cx.tensor(logits), cx.tensor(target)), expected)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(SpecError, match="mean, sum or none"):
        nn.MSELoss("average")(cx.zeros(1), cx.zeros(1))


def test_dropout_drops_the_right_share_and_keeps_the_mean() -> None:
    cx.manual_seed(1)
    x = nn.Dropout(0.25)(cx.ones(100, 100)).numpy()
    assert abs((x == 0).mean() - 0.25) < 0.02 and set(np.unique(x)) == {np.float32(0), np.float32(1 / 0.75)}


def test_dropout_does_nothing_in_a_delivered_model() -> None:
    assert nn.Dropout(0.9).eval()(cx.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_a_bad_probability_is_refused() -> None:
    with pytest.raises(SpecError, match="0 <= p <= 1, got 1.5"):
        F.dropout(cx.ones(2), 1.5)
    assert F.dropout(cx.ones(2), 1.0).tolist() == [0.0, 0.0]


def test_a_seed_gives_the_same_layer_again() -> None:
    cx.manual_seed(4)
    first = nn.Linear(3, 3).weight.tolist()
    cx.manual_seed(4)
    assert nn.Linear(3, 3).weight.tolist() == first


def test_a_state_dict_goes_into_another_module() -> None:
    a, b = (
        nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2)),
    )
    b.load_state_dict(a.state_dict())
    assert sorted(a.state_dict()) == [
        "0.bias",
        "0.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.weight",
    ]
    close(b(cx.tensor(X)), a(cx.tensor(X)).numpy())


def test_a_state_dict_with_other_names_is_refused() -> None:
    with pytest.raises(SpecError, match=r"missing \['bias'\], unknown \['b'\]"):
        nn.Linear(2, 1).load_state_dict({"weight": np.zeros((1, 2)), "b": np.zeros(1)})


def test_a_state_dict_with_other_shapes_changes_nothing() -> None:
    layer = nn.Linear(2, 1)
    before = layer.bias.tolist()
    with pytest.raises(ShapeError, match="weight"):
        layer.load_state_dict({"bias": np.ones(1), "weight": np.zeros((2, 2))})
    assert layer.bias.tolist() == before


def test_repr_shows_the_tree() -> None:
    text = repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())))
    assert text == (
        "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): Sequential(\n    (0): ReLU()\n  )\n)"
    )


def test_forgetting_super_is_said() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            self.a = 1

    with pytest.raises(SpecError, match="super"):
        Broken()


def test_train_and_eval_reach_every_part() -> None:
    net = nn.Sequential(nn.Sequential(nn.Dropout()))
    net.eval()
    assert [part.training for part in net.modules()] == [False] * 3
    assert all(part.training for part in net.train().modules())


def test_a_parameter_can_be_replaced_by_a_plain_value() -> None:
    layer = nn.Linear(2, 1)
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"] and layer(cx.zeros(1, 2)).tolist() == [[0.0]]


def test_module_lists_hold_parameters() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))

        def forward(self, x: Any) -> Any:
            for part in self.parts:
                x = part(x)
            return x

    net = Stack()
    assert [name for name, _ in net.named_parameters()][-1] == "parts.1.bias" and net(cx.tensor(X)).shape == (
        6,
        5,
    )


def test_a_buffer_that_is_assigned_to_stays_one() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", cx.tensor(0.0))
            self.register_buffer("mean", cx.zeros(2))
            self.linear = nn.Linear(2, 1)

        def forward(self, x: Any) -> Any:
            self.count += 1.0
            self.mean = self.mean * 0.5 + x.mean(0) * 0.5
            return self.linear(x)

    def run(compiled: bool) -> dict[str, Any]:
        cx.manual_seed(0)
        model = Counting()
        optimizer = cx.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made_ready = cx.compile(step) if compiled else step
        for number in range(3):
            made_ready(cx.full((4, 2), float(number)))
        return {name: value.tolist() for name, value in model.state_dict().items()}

    found = run(compiled=False)
    assert found["count"] == 3.0 and found["mean"] == [1.25, 1.25]
    assert run(compiled=True) == found


def test_a_buffer_is_announced_by_its_class() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = None
            self.weight = nn.Parameter(cx.ones(2))
            self.count = nn.Buffer(cx.tensor(0.0))
            self.mask = nn.Buffer(cx.asarray([1.0, 0.0]), persistent=False)

        def forward(self, x: Any) -> Any:
            self.count += 1.0
            return (x * self.weight * self.mask).sum()

    model = Counting()
    assert list(model.state_dict()) == ["weight", "count"] and [name for name, _ in model.named_parameters()] == [
        "weight"
    ]
    assert [name for name, _ in model.named_buffers()] == ["count", "mask"] and isinstance(model.mask, nn.Buffer)

    def step(of: Any, optimizer: Any, x: Any) -> Any:
        loss = of(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    other = copy.deepcopy(model)
    assert other.mask.persistent is False and not other.mask.shares_memory(model.mask)
    one, two = (cx.optim.SGD(of.parameters(), lr=0.1) for of in (model, other))
    compiled = cx.compile(lambda x: step(other, two, x))
    for _ in range(2):
        assert step(model, one, cx.ones(2)).item() == compiled(cx.ones(2)).item()
    assert model.count.item() == other.count.item() == 2.0 and model.weight.equal(other.weight)
    model.load_state_dict({"weight": cx.zeros(2), "count": cx.tensor(5.0)})
    assert model.count.item() == 5.0
    model.weight = nn.Buffer(cx.ones(2))  # no parameter any more
    assert list(model.parameters()) == [] and "weight" in model.state_dict()
    shared = cx.zeros(2)
    assert nn.Buffer(shared).shares_memory(shared)


def test_a_tensor_in_the_place_of_a_parameter_is_refused() -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(SpecError, match="'weight' is a parameter, got a tensor for it"):
        layer.weight = cx.zeros(1, 2)
    layer.weight = nn.Parameter(cx.zeros(1, 2))
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]


def test_a_parameter_or_a_module_takes_the_place_of_a_plain_attribute() -> None:
    module = nn.Module()
    module.scale = module.part = None
    module.scale, module.part = nn.Parameter(cx.ones(2)), nn.ReLU()
    assert module.scale.tolist() == [1.0, 1.0] and isinstance(module.part, nn.ReLU)
    assert list(module.state_dict()) == ["scale"]


def test_a_buffer_takes_the_place_of_a_plain_attribute() -> None:
    module = nn.Module()
    module.scale = None
    module.register_buffer("scale", cx.ones(2))
    assert module.scale.tolist() == [1.0, 1.0] and list(module.state_dict()) == ["scale"]
    module.register_buffer("w", cx.ones(2, 3), persistent=False)
    module.w = cx.arange(6, dtype="float32").reshape(3, 2).T
    assert cx.compile(lambda x: x + module.w)(cx.zeros(2, 3)).equal(module.w)
    module.w = nn.Parameter(cx.ones(2))
    assert list(module.state_dict()) == ["w", "scale"]
    module.register_buffer("scale", None)
    assert module.scale is None and list(module.state_dict()) == ["w"]


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: nn.Linear(0, 2), "Linear: expected in_features of at least 1, got 0"),
        (lambda: nn.Linear("a", 2), "Linear: expected in_features of at least 1, got 'a'"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: expected channels that groups=2 divides, got in_channels=3"),
        (lambda: nn.Conv1d(3, 4, 0), "Conv1d: expected kernel_size of at least 1, got 0"),
        (lambda: nn.Conv3d(3, 4, 3, groups=0), "Conv3d: expected groups of at least 1, got 0"),
        (lambda: nn.ConvTranspose2d(4, 3, 2, groups=2), "groups=2 divides, got out_channels=3"),
        (lambda: nn.Dropout(1.5), "Dropout: expected p from 0 to 1, got 1.5"),
        (lambda: nn.Dropout("x"), "Dropout: expected p from 0 to 1, got 'x'"),
        (lambda: nn.BatchNorm2d(0), "BatchNorm2d: expected num_features of at least 1, got 0"),
        (lambda: nn.GroupNorm(3, 4), "GroupNorm: expected channels that groups=3 divides, got num_channels=4"),
        (lambda: nn.Embedding(-1, 4), "Embedding: expected num_embeddings of at least 1, got -1"),
        (lambda: nn.LSTM(4, -4), "LSTM: expected hidden_size of at least 1, got -4"),
        (lambda: nn.MultiheadAttention(0, 0), "MultiheadAttention: expected embed_dim of at least 1, got 0"),
    ],
)
def test_sizes_without_a_meaning_are_refused_where_the_layer_is_made(make: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        make()
