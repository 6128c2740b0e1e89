"""What the nodes of a graph file compute, by hand and against PyTorch."""

import warnings
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.gradients import backward
from cyxcore.layertable import Scope
from cyxcore.nodekinds import KIND_OF_NUMBER, KINDS, checked
from cyxcore.nodelayers import ACTIVATIONS
from cyxcore.plan import Plan
from cyxcore.symbols import Builder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")
    from torch import nn as tnn

# The kinds of version 1.0 files, 0 to 84: never to be renumbered.
NUMBERED = """
Dense Conv1D Conv2D Conv3D DepthwiseConv2D MaxPool2D AvgPool2D GlobalMaxPool GlobalAvgPool AdaptiveAvgPool BatchNorm
LayerNorm GroupNorm InstanceNorm Dropout Flatten RNN LSTM GRU Bidirectional TimeDistributed Embedding MultiHeadAttention
SelfAttention CrossAttention LinearAttention TransformerEncoder TransformerDecoder PositionalEncoding ReLU LeakyReLU
PReLU ELU SELU GELU Swish Mish Sigmoid Tanh Softmax Reshape Permute Squeeze Unsqueeze View Split Concatenate Add
Multiply Average Output MSELoss CrossEntropyLoss BCELoss BCEWithLogits L1Loss SmoothL1Loss HuberLoss NLLLoss SGD
Adam AdamW RMSprop Adagrad NAdam StepLR CosineAnnealing ReduceOnPlateau ExponentialLR WarmupScheduler L1Regularization
L2Regularization ElasticNet Lambda Identity Constant Parameter DatasetInput DataLoader Augmentation DataSplit
TensorReshape Normalize OneHotEncode Subgraph
""".split()


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Ran:
    """A node on arrays, in training mode or not: its outputs, and the gradients of a weighted sum of the first."""

    def __init__(
        self, kind: str, params: dict[str, Any], arrays: list[Any], weights: dict[str, Any] | None = None, **mode: Any
    ) -> None:
        rows = len(arrays[0])
        inner, step = Builder(rows), Builder(rows)
        given = [inner.input(f"x{n}", x.shape) for n, x in enumerate(arrays)]
        built = KINDS[kind].build(Scope(inner, ""), given, checked(kind, params))
        graph = inner.graph(*(built if isinstance(built, tuple) else (built,)))
        shapes = {param.name: param.shape for param in graph.all_parameters}
        assert weights is None or set(shapes) == set(weights)
        known = {f"x{n}": step.param(f"x{n}", x.shape, {"kind": "zeros"}) for n, x in enumerate(arrays)}
        results = step.embed(graph, known, training=bool(mode.get("training")))
        factor = step.input("factor", results[0].shape)
        total = (results[0] * factor).sum()
        wanted = [
            step.at(place) for place, node in enumerate(step.nodes) if node.op == "param" and node.attrs["trainable"]
        ]
        slopes = backward(step, total, wanted)
        values = {f"x{n}": np.array(x) for n, x in enumerate(arrays)} | {
            name: np.array((weights or {}).get(name, floats(*shape, seed=3))) for name, shape in shapes.items()
        }
        plan = Plan(step.graph(*results, *slopes), values)
        plan.inputs["factor"][...] = self.factor = floats(*results[0].shape, seed=9)
        plan.run()
        self.outputs = [np.array(y) for y in plan.outputs[: len(results)]]
        names = [step.nodes[p.node].attrs["name"] for p in wanted]
        self.gradients = dict(zip(names, (np.array(y) for y in plan.outputs[len(results) :]), strict=True))


def agree(kind: str, params: dict[str, Any], theirs: Any, *arrays: np.ndarray, prefix: str = "", **mode: Any) -> None:
    """The same outputs and gradients as a module of torch with the same parameters by the same names."""
    theirs.train(bool(mode.get("training")))
    state = {k: v.numpy() for k, v in theirs.state_dict().items() if "num_batches" not in k}
    ran = Ran(kind, params, list(arrays), {prefix + name: value for name, value in state.items()}, **mode)
    given = [torch.tensor(x, requires_grad=True) for x in arrays]
    out = theirs(*given)
    out = out[0] if isinstance(out, tuple) else out
    np.testing.assert_allclose(ran.outputs[0], out.detach().numpy(), rtol=1e-5, atol=3e-6)
    (out * torch.tensor(ran.factor)).sum().backward()
    expected = {prefix + name: p.grad for name, p in theirs.named_parameters()}
    expected |= {f"x{n}": x.grad for n, x in enumerate(given)}
    for name, slope in expected.items():
        scale = float(slope.abs().max()) + 1e-6
        np.testing.assert_allclose(ran.gradients[name] / scale, slope.numpy() / scale, rtol=0, atol=1e-4, err_msg=name)


def test_kinds_keep_their_numbers() -> None:
    assert [KIND_OF_NUMBER[number] for number in range(85)] == NUMBERED and len(KIND_OF_NUMBER) == 85


def test_each_kind_with_a_computation_says_how_and_the_others_how_to_train() -> None:
    without = {name for name, row in KINDS.items() if row.build is None}
    assert {KINDS[name].group for name in without} == {
        "loss",
        "optimizer",
        "schedule",
        "regularization",
        "input",
        "subgraph",
        "refused",
    }


S = {"padding": "same"}
MODULES: list[tuple[str, dict[str, Any], Any, tuple[int, ...]]] = [
    ("Dense", {"units": 5}, lambda: tnn.Linear(6, 5), (3, 4, 6)),
    ("Conv1D", {"filters": 6, "kernel_size": 3}, lambda: tnn.Conv1d(4, 6, 3, **S), (3, 4, 9)),
    (
        "Conv1D",
        {"filters": 6, "kernel_size": 4, "dilation": 2},
        lambda: tnn.Conv1d(4, 6, 4, dilation=2, **S),
        (3, 4, 9),
    ),
    ("Conv2D", {"filters": 6, "groups": 2}, lambda: tnn.Conv2d(4, 6, 3, groups=2, **S), (3, 4, 7, 6)),
    ("Conv2D", {"filters": 3, "kernel_size": [2, 4]}, lambda: tnn.Conv2d(2, 3, (2, 4), **S), (3, 2, 7, 6)),
    (
        "Conv2D",
        {"filters": 6, "stride": 2, "padding": 1, "bias": False},
        lambda: tnn.Conv2d(4, 6, 3, 2, 1, bias=False),
        (3, 4, 7, 6),
    ),
    ("Conv3D", {"filters": 3, "padding": "valid"}, lambda: tnn.Conv3d(2, 3, 3), (2, 2, 4, 5, 6)),
    ("Conv3D", {"filters": 2, "kernel_size": [2, 3, 1]}, lambda: tnn.Conv3d(2, 2, (2, 3, 1), **S), (2, 2, 4, 5, 3)),
    ("DepthwiseConv2D", {"depth_multiplier": 2}, lambda: tnn.Conv2d(3, 6, 3, groups=3, **S), (2, 3, 5, 6)),
    ("ConvTranspose1D", {"filters": 5}, lambda: tnn.ConvTranspose1d(4, 5, 2, 2), (2, 4, 5)),
    (
        "ConvTranspose2D",
        {"filters": 5, "kernel_size": 3, "padding": 1, "output_padding": 1},
        lambda: tnn.ConvTranspose2d(4, 5, 3, 2, 1, 1),
        (2, 4, 5, 3),
    ),
    ("MaxPool2D", {}, lambda: tnn.MaxPool2d(2, 2), (2, 3, 6, 8)),
    ("AvgPool2D", {"pool_size": 3, "stride": 1, "padding": 1}, lambda: tnn.AvgPool2d(3, 1, 1), (2, 3, 6, 8)),
    ("GlobalAvgPool", {}, lambda: tnn.Sequential(tnn.AdaptiveAvgPool2d(1), tnn.Flatten()), (2, 3, 5, 4)),
    ("GlobalMaxPool", {}, lambda: tnn.Sequential(tnn.AdaptiveMaxPool1d(1), tnn.Flatten()), (2, 3, 5)),
    ("AdaptiveAvgPool", {"output_size": [3, 2]}, lambda: tnn.AdaptiveAvgPool2d((3, 2)), (2, 3, 5, 4)),
    ("AdaptiveAvgPool", {"output_size": 3}, lambda: tnn.AdaptiveAvgPool1d(3), (2, 3, 5)),
    ("LayerNorm", {}, lambda: tnn.LayerNorm(6), (3, 4, 6)),
    ("GroupNorm", {"num_groups": 2}, lambda: tnn.GroupNorm(2, 4), (3, 4, 5, 6)),
    ("InstanceNorm", {"affine": True}, lambda: tnn.InstanceNorm2d(4, affine=True), (3, 4, 5, 6)),
    ("RMSNorm", {}, lambda: tnn.RMSNorm(6, eps=1e-6), (3, 4, 6)),
    ("Flatten", {}, lambda: tnn.Flatten(), (3, 4, 5)),
    ("LSTM", {"hidden_size": 5, "return_sequences": True}, lambda: tnn.LSTM(4, 5, batch_first=True), (3, 6, 4)),
    (
        "GRU",
        {"hidden_size": 5, "num_layers": 2, "return_sequences": True},
        lambda: tnn.GRU(4, 5, 2, batch_first=True),
        (3, 6, 4),
    ),
    ("RNN", {"hidden_size": 5, "return_sequences": True}, lambda: tnn.RNN(4, 5, batch_first=True), (3, 6, 4)),
    (
        "Bidirectional",
        {"layer": "GRU", "hidden_size": 5, "return_sequences": True},
        lambda: tnn.GRU(4, 5, batch_first=True, bidirectional=True),
        (3, 6, 4),
    ),
    ("LeakyReLU", {"negative_slope": 0.2}, lambda: tnn.LeakyReLU(0.2), (3, 4)),
    ("PReLU", {}, lambda: tnn.PReLU(), (3, 4)),
    ("ReLU", {}, lambda: tnn.ReLU(), (3, 4)),
    ("ELU", {}, lambda: tnn.ELU(), (3, 4)),
    ("SELU", {}, lambda: tnn.SELU(), (3, 4)),
    ("GELU", {}, lambda: tnn.GELU(), (3, 4)),
    ("Swish", {}, lambda: tnn.SiLU(), (3, 4)),
    ("Mish", {}, lambda: tnn.Mish(), (3, 4)),
    ("Sigmoid", {}, lambda: tnn.Sigmoid(), (3, 4)),
    ("Tanh", {}, lambda: tnn.Tanh(), (3, 4)),
    ("Softmax", {"dim": 1}, lambda: tnn.Softmax(1), (3, 4, 5)),
    ("LogSoftmax", {}, lambda: tnn.LogSoftmax(-1), (3, 4, 5)),
    ("Upsample2D", {}, lambda: tnn.UpsamplingNearest2d(scale_factor=2), (2, 3, 4, 5)),
    ("Identity", {}, lambda: tnn.Identity(), (3, 4)),
]


@pytest.mark.filterwarnings("ignore:Using padding")  # torch warns of its own way to pad
@pytest.mark.parametrize(("kind", "params", "module", "shape"), MODULES)
def test_a_node_is_torchs_module(kind: str, params: dict[str, Any], module: Any, shape: tuple[int, ...]) -> None:
    agree(kind, params, module(), floats(*shape))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (tnn.BatchNorm1d, (6, 4)),
        (tnn.BatchNorm1d, (6, 4, 3)),
        (tnn.BatchNorm2d, (3, 4, 5, 6)),
        (tnn.BatchNorm3d, (3, 4, 2, 3, 2)),
    ],
)
def test_batch_norm_fits_samples_of_any_rank(module: Any, shape: tuple[int, ...], training: bool) -> None:
    agree("BatchNorm", {}, module(4), floats(*shape), training=training)


def attention_of_torch() -> Any:
    return tnn.MultiheadAttention(8, 2, batch_first=True)


HEADS = {"embed_dim": 8, "num_heads": 2}


def test_attention_is_torchs_with_its_own_keys_or_others() -> None:
    q, k, v = floats(3, 5, 8), floats(3, 6, 8, seed=1), floats(3, 6, 8, seed=2)
    agree("MultiHeadAttention", HEADS, attention_of_torch(), q, k, v)
    agree("CrossAttention", HEADS, attention_of_torch(), q, k, v)

    class Self(tnn.MultiheadAttention):
        def forward(self, x: Any) -> Any:  # type: ignore[override]
            return super().forward(x, x, x)

    agree("SelfAttention", HEADS, Self(8, 2, batch_first=True), q)


STACK = {"d_model": 8, "nhead": 2, "num_layers": 2, "dim_feedforward": 16, "dropout": 0.0}


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformers_are_torchs(norm_first: bool) -> None:
    options = {"batch_first": True, "norm_first": norm_first}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = tnn.TransformerEncoder(tnn.TransformerEncoderLayer(8, 2, 16, 0.0, **options), 2)
        decoder = tnn.TransformerDecoder(tnn.TransformerDecoderLayer(8, 2, 16, 0.0, **options), 2)
    params = {**STACK, "norm_first": norm_first}
    agree("TransformerEncoder", params, encoder, floats(3, 5, 8), training=True)
    agree("TransformerDecoder", {**params, "causal": False}, decoder, floats(3, 5, 8), floats(3, 6, 8, seed=1))

    class Causal(tnn.TransformerDecoder):
        def forward(self, tgt: Any, memory: Any) -> Any:  # type: ignore[override]
            return super().forward(tgt, memory, tnn.Transformer.generate_square_subsequent_mask(tgt.shape[1]))

    causal = Causal(tnn.TransformerDecoderLayer(8, 2, 16, 0.0, **options), 2)
    agree("TransformerDecoder", params, causal, floats(3, 5, 8), floats(3, 6, 8, seed=1), training=True)


def test_a_first_state_is_torchs() -> None:
    class Started(tnn.LSTM):
        def forward(self, x: Any, h: Any, c: Any) -> Any:  # type: ignore[override]
            return super().forward(x, (h[None], c[None]))

    arrays = floats(3, 6, 4), floats(3, 5, seed=1), floats(3, 5, seed=2)
    agree("LSTM", {"hidden_size": 5, "return_sequences": True}, Started(4, 5, batch_first=True), *arrays)


def test_an_lstm_gives_its_last_state_and_cell() -> None:
    theirs = tnn.LSTM(4, 5, batch_first=True)
    x = floats(3, 6, 4)
    ran = Ran("LSTM", {"hidden_size": 5}, [x], {k: v.numpy() for k, v in theirs.state_dict().items()})
    _, (h, c) = theirs(torch.tensor(x))
    for mine, its in zip(ran.outputs, (h[0], h[0], c[0]), strict=True):
        np.testing.assert_allclose(mine, its.detach().numpy(), atol=2e-6)


def test_linear_attention_is_the_modules() -> None:
    module = cx.nn.LinearAttention(8, 2)
    ran = Ran("LinearAttention", HEADS, [floats(3, 5, 8)], module.state_dict())
    np.testing.assert_allclose(ran.outputs[0], module(cx.tensor(floats(3, 5, 8))).numpy(), atol=1e-6)


def test_time_distributed_is_the_inner_node_on_each_step() -> None:
    class Each(tnn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tnn.Conv2d(2, 3, 3, padding="same")

        def forward(self, x: Any) -> Any:
            return torch.stack([self.module(x[:, t]) for t in range(x.shape[1])], 1)

    params = {"layer": "Conv2D", "parameters": {"filters": 3}}
    agree("TimeDistributed", params, Each(), floats(2, 4, 2, 5, 6))


def test_an_embedding_takes_the_numbers_of_a_sample_as_rows() -> None:
    table = floats(7, 3)
    x = np.array([[0.0, 6.0], [2.0, 2.0]], np.float32)
    ran = Ran("Embedding", {"num_embeddings": 7, "embedding_dim": 3}, [x], {"weight": table})
    np.testing.assert_array_equal(ran.outputs[0], table[x.astype(int)])


X, Y = floats(3, 4, 6), floats(3, 4, 6, seed=1)
BY_HAND: list[tuple[str, dict[str, Any], list[np.ndarray], list[np.ndarray]]] = [
    ("Reshape", {"shape": [2, -1]}, [X], [X.reshape(3, 2, 12)]),
    ("View", {"shape": [24]}, [X], [X.reshape(3, 24)]),
    ("TensorReshape", {"shape": [4, 2, 3]}, [X], [X.reshape(3, 4, 2, 3)]),
    ("Permute", {"dims": [0, 2, 1]}, [X], [X.transpose(0, 2, 1)]),
    ("Squeeze", {"dim": 2}, [X[:, :, :1]], [X[:, :, 0]]),
    ("Squeeze", {}, [X[:, :1, :1]], [X[:, 0, 0]]),
    ("Unsqueeze", {"dim": -1}, [X], [X[..., None]]),
    ("Split", {"num_splits": 3, "dim": 2}, [X], list(np.split(X, 3, 2))),
    ("Split", {"sizes": [1, 3], "dim": 1}, [X], [X[:, :1], X[:, 1:]]),
    ("Concatenate", {}, [X, Y], [np.concatenate([X, Y], 1)]),
    ("Concatenate", {"dim": -1}, [X, Y[:, :, :2]], [np.concatenate([X, Y[:, :, :2]], 2)]),
    ("Add", {}, [X, Y, X], [X + Y + X]),
    ("Multiply", {}, [X, Y[:, :1]], [X * Y[:, :1]]),
    ("Average", {}, [X, Y], [(X + Y) / 2]),
    ("Normalize", {"mean": 2.0, "std": 4.0}, [X], [(X - 2) / 4]),
    ("Normalize", {"mean": [1, 2, 3, 4, 5, 6]}, [X], [X - np.arange(1, 7, dtype=np.float32)]),
    ("GlobalAvgPool", {"data_format": "channels_last"}, [X], [X.mean(1)]),
    ("GlobalMaxPool", {"data_format": "channels_last"}, [X], [X.max(1)]),
    ("GaussianSample", {}, [X, Y], [X]),
    ("KLDivergence", {"weight": 2.0}, [X, Y], [(X**2 + np.exp(Y) - 1 - Y).sum((1, 2))]),
    ("Dropout", {}, [X], [X]),
    ("Augmentation", {"horizontal_flip": 0.0, "noise": 1.0}, [X], [X]),
    ("DataLoader", {}, [X], [X]),
]


@pytest.mark.parametrize(("kind", "params", "arrays", "expected"), BY_HAND)
def test_a_node_by_hand(
    kind: str, params: dict[str, Any], arrays: list[np.ndarray], expected: list[np.ndarray]
) -> None:
    for mine, wanted in zip(Ran(kind, params, arrays, {}).outputs, expected, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-6, atol=1e-6)


def test_one_hot_encodes_the_numbers_of_a_sample() -> None:
    builder = Builder(2)
    x = builder.input("x", (2, 2))
    plan = Plan(builder.graph(KINDS["OneHotEncode"].build(Scope(builder, ""), [x], {"num_classes": 3})), {})
    plan.inputs["x"][...] = [[0, 2], [1, 1]]
    plan.run()
    np.testing.assert_array_equal(plan.outputs[0], np.eye(3, dtype=np.float32)[[[0, 2], [1, 1]]])


def test_augmentation_and_sampling_draw_in_training_only() -> None:
    image = floats(200, 1, 3, 4)
    flipped = Ran("Augmentation", {"horizontal_flip": 0.5, "vertical_flip": 0.5}, [image], {}, training=True).outputs[0]
    ways = [image, image[..., ::-1], image[..., ::-1, :], image[..., ::-1, ::-1]]
    counts = [sum(bool((row == way).all()) for row, way in zip(flipped, options, strict=True)) for options in ways]
    assert sum(counts) == 200 and min(counts) > 25
    noisy = Ran("Augmentation", {"horizontal_flip": 0, "noise": 2.0}, [floats(500, 20)], {}, training=True).outputs[0]
    assert abs((noisy - floats(500, 20)).std() - 2.0) < 0.1
    zeros = np.zeros((500, 20), np.float32)
    drawn = Ran("GaussianSample", {}, [zeros, zeros + 2 * np.log(3.0, dtype=np.float32)], {}, training=True).outputs[0]
    assert abs(drawn.std() - 3.0) < 0.1 and abs(drawn.mean()) < 0.1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_a_layer_is_the_node_behind_it(name: str) -> None:
    weights = {"weight": floats(5, 6), "bias": floats(5, seed=4)}
    one = Ran("Dense", {"units": 5, "activation": name}, [floats(3, 6)], weights).outputs[0]
    plain = Ran("Dense", {"units": 5}, [floats(3, 6)], weights).outputs[0]
    kind = next((kind for kind in KINDS if kind.lower() == name.replace("_", "")), "Identity")
    np.testing.assert_array_equal(one, Ran(kind, {}, [plain], None).outputs[0])
