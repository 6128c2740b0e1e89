"""Models from layer lists."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import CyxError, GraphError, ShapeError, SpecError
from cyxcore.layers import LAYERS
from cyxcore.spec import ModelSpec


def shape_of(input_shape: list[int], *layers: dict[str, Any]) -> tuple[int, ...]:
    return cx.build(input_shape=input_shape, layers=layers).output_shape


IMAGE = [3, 8, 10]


@pytest.mark.parametrize(
    ("layer", "input_shape", "expected"),
    [
        ({"kind": "Linear", "out_features": 5}, [4], (5,)),
        ({"kind": "Linear", "out_features": 5, "bias": False}, [7, 4], (7, 5)),
        ({"kind": "Conv2d", "out_channels": 6, "kernel_size": 3}, IMAGE, (6, 6, 8)),
        (
            {
                "kind": "Conv2d",
                "out_channels": 6,
                "kernel_size": [3, 2],
                "stride": 2,
                "padding": [1, 0],
                "groups": 3,
            },
            IMAGE,
            (6, 4, 5),
        ),
        ({"kind": "Conv2d", "out_channels": 2, "kernel_size": 3, "dilation": 2}, IMAGE, (2, 4, 6)),
        ({"kind": "MaxPool2d", "kernel_size": 2}, IMAGE, (3, 4, 5)),
        ({"kind": "MaxPool2d", "kernel_size": 3, "stride": 1, "padding": 1}, IMAGE, (3, 8, 10)),
        ({"kind": "AvgPool2d", "kernel_size": [2, 5]}, IMAGE, (3, 4, 2)),
        ({"kind": "GlobalAvgPool2d"}, IMAGE, (3,)),
        ({"kind": "BatchNorm2d"}, IMAGE, (3, 8, 10)),
        ({"kind": "BatchNorm1d"}, [4], (4,)),
        ({"kind": "LayerNorm"}, [5, 4], (5, 4)),
        ({"kind": "LayerNorm", "normalized_shape": [5, 4]}, [5, 4], (5, 4)),
        ({"kind": "Dropout", "p": 0.2}, [4], (4,)),
        ({"kind": "Flatten"}, IMAGE, (240,)),
        ({"kind": "Reshape", "shape": [1, -1, 2]}, [8], (1, 4, 2)),
        ({"kind": "LeakyReLU", "negative_slope": 0.2}, [4], (4,)),
        *(({"kind": kind}, [4], (4,)) for kind in ("ReLU", "GELU", "Tanh", "Sigmoid", "SiLU", "Softmax", "Normalize")),
        ({"kind": "Normalize", "method": "minmax"}, IMAGE, (3, 8, 10)),
        ({"kind": "Denormalize"}, [1], (1,)),
        ({"kind": "Conv1d", "out_channels": 6, "kernel_size": 3, "padding": 1}, [4, 9], (6, 9)),
        ({"kind": "DepthwiseConv2d", "kernel_size": 3, "depth_multiplier": 2}, IMAGE, (6, 6, 8)),
        ({"kind": "ConvTranspose2d", "out_channels": 2, "kernel_size": 2, "stride": 2}, IMAGE, (2, 16, 20)),
        ({"kind": "MaxPool1d", "kernel_size": 2}, [4, 9], (4, 4)),
        ({"kind": "AvgPool1d", "kernel_size": 3, "stride": 2, "padding": 1}, [4, 9], (4, 5)),
        ({"kind": "AdaptiveAvgPool2d", "output_size": [3, 1]}, IMAGE, (3, 3, 1)),
        ({"kind": "GlobalMaxPool2d"}, IMAGE, (3,)),
        ({"kind": "GlobalAvgPool1d"}, [7, 4], (4,)),
        ({"kind": "GroupNorm", "num_groups": 3}, IMAGE, (3, 8, 10)),
        ({"kind": "InstanceNorm"}, IMAGE, (3, 8, 10)),
        ({"kind": "RMSNorm"}, [7, 4], (7, 4)),
        ({"kind": "Embedding", "num_embeddings": 10, "embedding_dim": 3}, [7], (7, 3)),
        ({"kind": "RNN", "hidden_size": 5, "nonlinearity": "relu"}, [7, 4], (5,)),
        ({"kind": "LSTM", "hidden_size": 5, "num_layers": 2, "bidirectional": True}, [7, 4], (10,)),
        ({"kind": "GRU", "hidden_size": 5, "return_sequences": True}, [7, 4], (7, 5)),
        ({"kind": "SelfAttention", "num_heads": 2}, [7, 4], (7, 4)),
        ({"kind": "TransformerEncoderLayer", "num_heads": 2, "dim_feedforward": 8}, [7, 4], (7, 4)),
        ({"kind": "PositionalEncoding", "learned": True}, [7, 4], (7, 4)),
        ({"kind": "Permute", "dims": [1, 0]}, [7, 4], (4, 7)),
        ({"kind": "PReLU"}, [4], (4,)),
        *(
            ({"kind": kind}, [4], (4,))
            for kind in ("ELU", "CELU", "SELU", "Mish", "Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid")
        ),
        ({"kind": "ReLU6"}, [4], (4,)),
        ({"kind": "LogSoftmax"}, [4], (4,)),
        ({"kind": "GLU"}, [4], (2,)),
    ],
)
def test_a_layer_infers_its_sizes(layer: dict[str, Any], input_shape: list[int], expected: tuple[int, ...]) -> None:
    assert shape_of(input_shape, layer) == expected


def test_every_kind_is_built_in_a_test() -> None:
    marks = test_a_layer_infers_its_sizes.pytestmark  # type: ignore[attr-defined]
    assert {case[0]["kind"] for case in marks[0].args[1]} == set(LAYERS)


@pytest.mark.parametrize(
    ("layer", "module", "shape"),
    [
        (
            {
                "kind": "TransformerEncoderLayer",
                "num_heads": 2,
                "dim_feedforward": 8,
                "dropout": 0.0,
                "norm_first": True,
            },
            lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, norm_first=True),
            [7, 4],
        ),
        (
            {"kind": "GRU", "hidden_size": 5, "num_layers": 2, "bidirectional": True, "return_sequences": True},
            lambda: Outputs(nn.GRU(4, 5, 2, batch_first=True, bidirectional=True)),
            [7, 4],
        ),
        (
            {"kind": "Conv1d", "out_channels": 6, "kernel_size": 3, "groups": 2},
            lambda: nn.Conv1d(4, 6, 3, groups=2),
            [4, 9],
        ),
        (
            {"kind": "ConvTranspose2d", "out_channels": 6, "kernel_size": 3, "stride": 2, "output_padding": 1},
            lambda: nn.ConvTranspose2d(3, 6, 3, 2, 0, 1),
            IMAGE,
        ),
    ],
)
def test_a_listed_layer_computes_what_its_module_does(layer: dict[str, Any], module: Any, shape: list[int]) -> None:
    net = module().eval()
    graph = cx.build(input_shape=shape, layers=[layer])
    weights = {f"0.{name.removeprefix('inner.')}": value for name, value in net.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    assert (np.asarray(cx.predict(graph, weights, x)) == net(cx.tensor(x)).numpy()).all()


class Outputs(nn.Module):
    """The first of a module's results."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)[0]


def test_parameters_have_torchs_names_and_layouts() -> None:
    graph = cx.build(
        input_shape=[1, 8, 8],
        layers=[
            {"kind": "Conv2d", "out_channels": 4, "kernel_size": 3},
            {"kind": "BatchNorm2d"},
            {"kind": "ReLU"},
            {"kind": "Flatten"},
            {"kind": "Linear", "out_features": 2},
        ],
    )
    assert {p.name: p.shape for p in graph.all_parameters} == {
        "0.weight": (4, 1, 3, 3),
        "0.bias": (4,),
        "1.weight": (4,),
        "1.bias": (4,),
        "1.running_mean": (4,),
        "1.running_var": (4,),
        "4.weight": (2, 144),
        "4.bias": (2,),
    }
    assert [p.name for p in graph.buffers] == ["1.running_mean", "1.running_var"]


def test_a_spec_with_layers_is_built() -> None:
    assert cx.build(ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 2}])).parameter_count == 10


def test_a_spec_with_a_graph_is_that_graph() -> None:
    graph = cx.build(input_shape=[4], layers=[{"kind": "ReLU"}])
    assert cx.build(ModelSpec(graph=graph.to_json())) == graph


def test_scaling_is_put_around_the_layers_without_renaming_them() -> None:
    graph = cx.build(
        input_shape=[4],
        layers=[{"kind": "Linear", "out_features": 1}],
        normalize="standard",
        denormalize=True,
    )
    names = ["normalize.mean", "normalize.std", "0.weight", "0.bias", "denormalize.std", "denormalize.mean"]
    assert sorted(p.name for p in graph.all_parameters) == sorted(names)


def test_own_scaling_is_not_doubled() -> None:
    layers = [{"kind": "Normalize"}, {"kind": "Linear", "out_features": 1}]
    assert cx.build(input_shape=[4], layers=layers, normalize="minmax") == cx.build(input_shape=[4], layers=layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"kind": "Liner", "out_features": 2}], "layer 0: unknown kind 'Liner'; did you mean 'Linear'?"),
        ([{"kind": "relu"}], "did you mean 'ReLU'"),
        (
            [{"kind": "ReLU"}, {"kind": "Linear", "out_feature": 2}],
            "layer 1: Linear has no option 'out_feature'; did you mean 'out_features'",
        ),
        ([{"kind": "Linear"}], "layer 0: Linear needs the option 'out_features'"),
        (
            [{"kind": "Linear", "out_features": 0}],
            "layer 0: Linear.out_features: expected an integer of at least 1, got 0",
        ),
        ([{"kind": "Linear", "out_features": True}], "expected an integer"),
        ([{"kind": "Linear", "out_features": 2, "bias": 1}], "expected true or false"),
        ([{"kind": "Dropout", "p": 1.0}], "a number from 0.0 to below 1.0"),
        ([{"kind": "Dropout", "p": "0.5"}], "a number"),
        ([{"kind": "Reshape", "shape": [-1, -1]}], "at most one of them -1"),
        (["Linear"], "layer 0: expected"),
        ([{"kind": 3}], "layer 0: expected"),
        ([], "expected 1 to 10000 layers"),
        ([{"kind": "ReLU"}, {"kind": "Normalize"}], "must be the first layer"),
    ],
)
def test_a_bad_description_says_which_layer(layers: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        cx.build(input_shape=[4], layers=layers)
    assert message in str(caught.value)


def test_an_error_in_a_layer_names_the_layer_once_and_no_batch_size_of_ours() -> None:
    with pytest.raises(ShapeError) as caught:
        cx.build(input_shape=[1, 2, 2], layers=[{"kind": "Conv2d", "out_channels": 2, "kernel_size": 3}])
    assert "image (batch, 1, 2, 2)" in str(caught.value)
    with pytest.raises(ShapeError, match=r"^layer 0: Conv2d: expected an image"):
        cx.build(input_shape=[4], layers=[{"kind": "Conv2d", "out_channels": 2, "kernel_size": 3}])


@pytest.mark.parametrize(
    ("input_shape", "layer", "message"),
    [
        ([4], {"kind": "Conv2d", "out_channels": 2, "kernel_size": 3}, "put a Reshape before it"),
        (
            [1, 2, 2],
            {"kind": "Conv2d", "out_channels": 2, "kernel_size": 3},
            "window of 3 does not fit into 2",
        ),
        ([4], {"kind": "BatchNorm2d"}, "BatchNorm2d: expected 3 axes per sample, got (4,)"),
        ([4], {"kind": "Reshape", "shape": [3, -1]}, "the 4 elements of (4,) do not fill (3, -1)"),
        ([4], {"kind": "LayerNorm", "normalized_shape": [5]}, "layer_norm: expected x (..., 5)"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(input_shape: list[int], layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        cx.build(input_shape=input_shape, layers=[{"kind": "Tanh"}, layer])
    assert message in str(caught.value) and f"layer 1: {layer['kind']}" in str(caught.value)


@pytest.mark.parametrize("shape", [[], [0], [4.0], [True], [2**31], None, [1] * 20])
def test_a_bad_input_shape_is_refused(shape: Any) -> None:
    with pytest.raises(SpecError):
        cx.build(input_shape=shape, layers=[{"kind": "ReLU"}])


def test_layers_and_graph_exclude_each_other() -> None:
    with pytest.raises(SpecError, match="exactly one"):
        cx.build(ModelSpec(input=[4]))


def test_a_bad_graph_in_a_spec_is_a_graph_error() -> None:
    with pytest.raises(GraphError):
        cx.build(ModelSpec(graph={"format": "cyx-graph/1"}))


def test_a_layer_as_large_as_the_sky_is_refused() -> None:
    with pytest.raises(CyxError, match="beyond"):
        cx.build(input_shape=[2**30], layers=[{"kind": "Linear", "out_features": 2**30}])


def test_a_recurrence_over_more_steps_than_a_graph_holds_is_refused_before_it_is_made() -> None:
    with pytest.raises(SpecError, match=r"layer 0: LSTM: the graph grows beyond 100000 nodes; take fewer layers, or"):
        cx.build(input_shape=[1_000_000, 1], layers=[{"kind": "LSTM", "hidden_size": 1}])
