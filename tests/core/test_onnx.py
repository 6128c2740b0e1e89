"""ONNX out and in: onnxruntime computes what we write, we compute what onnx's own node tests ask for."""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
import torch

import cyxcore as cx
from cyxcore.errors import CyxError, FormatError, GraphError
from cyxcore.graphlearner import initial_weights
from cyxcore.layertable import LAYERS
from cyxcore.onnx import OPERATORS, importing, load, load_bytes, to_graph
from cyxcore.onnx.proto import decode, encode
from tests import onnx_nodes

# out ----------------------------------------------------------------------------------------------

IMAGE, SEQUENCE, ROW = [4, 8, 8], [6, 8], [10]
CASES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "Linear": (ROW, {"out_features": 3}),
    "Conv2d": (IMAGE, {"out_channels": 6, "kernel_size": [3, 2], "stride": [2, 1], "padding": 1, "groups": 2}),
    "MaxPool2d": (IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "AvgPool2d": (IMAGE, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "Conv1d": (SEQUENCE, {"out_channels": 4, "kernel_size": 3, "dilation": 2}),
    "DepthwiseConv2d": (IMAGE, {"kernel_size": 3, "padding": 1, "depth_multiplier": 2}),
    "ConvTranspose2d": (
        IMAGE,
        {"out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
    ),
    "MaxPool1d": (SEQUENCE, {"kernel_size": 2}),
    "AvgPool1d": (SEQUENCE, {"kernel_size": 3, "stride": 1, "padding": 1}),
    "AdaptiveAvgPool2d": (IMAGE, {"output_size": [3, 5]}),
    "GroupNorm": (IMAGE, {"num_groups": 2}),
    "InstanceNorm": (IMAGE, {"affine": True}),
    "Embedding": ([5], {"num_embeddings": 7, "embedding_dim": 3}),
    "RNN": (SEQUENCE, {"hidden_size": 5, "return_sequences": True}),
    "LSTM": (SEQUENCE, {"hidden_size": 5, "bidirectional": True, "num_layers": 2, "dropout": 0.1}),
    "GRU": (SEQUENCE, {"hidden_size": 5, "bidirectional": True}),
    "SelfAttention": (SEQUENCE, {"num_heads": 2, "causal": True}),
    "TransformerEncoderLayer": (SEQUENCE, {"num_heads": 2, "dim_feedforward": 12, "activation": "gelu"}),
    "PositionalEncoding": (SEQUENCE, {"learned": True}),
    "Permute": (SEQUENCE, {"dims": [1, 0]}),
    "Reshape": (SEQUENCE, {"shape": [2, -1, 4]}),
    "Denormalize": (ROW, {}),
    "Normalize": (ROW, {}),
}
_SHAPES = {"2d": IMAGE, "1d": SEQUENCE, "Norm": SEQUENCE}


def case_of(kind: str) -> tuple[list[int], dict[str, Any]]:
    if kind in CASES:
        return CASES[kind]
    return next((shape for ending, shape in _SHAPES.items() if ending in kind), IMAGE), {}


def built(kind: str) -> tuple[cx.Graph, dict[str, Any]]:
    shape, options = case_of(kind)
    graph = cx.build(input_shape=shape, layers=[{"kind": kind, **options}])
    drawn = np.random.default_rng(0)
    weights = {}
    for name, array in initial_weights(graph, 3).items():
        weights[name] = (array + drawn.uniform(0.1, 0.9, array.shape)).astype(array.dtype)
    return graph, weights


def inputs(kind: str, rows: int) -> Any:
    shape, _ = case_of(kind)
    drawn = np.random.default_rng(1)
    if kind == "Embedding":
        return drawn.integers(0, 7, (rows, *shape)).astype(np.float32)
    return drawn.normal(size=(rows, *shape)).astype(np.float32)


def peer(path: Path, x: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_onnxruntime_computes_what_each_layer_does_at_any_batch_size(kind: str, tmp_path: Path) -> None:
    graph, weights = built(kind)
    path = tmp_path / "m.onnx"
    cx.save_model(path, graph, weights)
    onnx.checker.check_model(path, full_check=True)
    for rows in (1, 3):
        x = inputs(kind, rows)
        np.testing.assert_allclose(peer(path, x), cx.predict(graph, weights, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_what_we_wrote_comes_back_and_computes_the_same(kind: str, tmp_path: Path) -> None:
    graph, weights = built(kind)
    cx.save_model(tmp_path / "m.onnx", graph, weights)
    model = cx.load_model(tmp_path / "m.onnx")
    for name, array in model.weights.items():
        assert array.tobytes() == weights[name].tobytes() and array.shape == weights[name].shape
    assert weights.keys() - model.weights.keys() <= {name for name, array in weights.items() if array.size == 1}
    x = inputs(kind, 3)
    np.testing.assert_allclose(model.predict(x), cx.predict(graph, weights, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_the_normal_distribution_goes_by_erf_and_by_gelu_where_there_is_one(opset: int, tmp_path: Path) -> None:
    traced = cx.trace(lambda x: cx.special.erfc(x) + cx.special.ndtr(x) * cx.functional.gelu(x), [4])
    model = cx.Model(traced.graph, {})
    model.export(tmp_path / "m.onnx", opset=opset)
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Erf" in kinds and ("Gelu" in kinds) == (opset >= 20)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(peer(tmp_path / "m.onnx", x), model.predict(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21])
def test_each_opset_that_can_be_asked_for_is_a_valid_model(opset: int, tmp_path: Path) -> None:
    graph = cx.build(
        input_shape=IMAGE,
        layers=[
            {"kind": "Conv2d", "out_channels": 3, "kernel_size": 3, "padding": 1},
            {"kind": "BatchNorm2d"},
            {"kind": "GELU"},
            {"kind": "GlobalAvgPool2d"},
            {"kind": "LayerNorm"},
            {"kind": "Linear", "out_features": 2},
            {"kind": "Softmax"},
        ],
        normalize="standard",
    )
    weights = initial_weights(graph, 1)
    model = cx.Model(graph, weights)
    model.export(tmp_path / "m.onnx", opset=opset)
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset
    x = np.random.default_rng(0).normal(size=(3, *IMAGE)).astype(np.float32)
    np.testing.assert_allclose(peer(tmp_path / "m.onnx", x), model.predict(x), rtol=1e-5, atol=1e-5)


def test_equal_models_give_equal_bytes_with_their_names_kept(tmp_path: Path) -> None:
    graph, weights = built("Linear")
    for name in ("a.onnx", "b.onnx"):
        cx.save_model(tmp_path / name, graph, weights, classes=["x", "y", "z"])
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert {"0.weight", "0.bias"} <= {tensor.name for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert cx.load_model(tmp_path / "a.onnx").classes == ["x", "y", "z"]


def test_an_opset_we_do_not_write_is_refused(tmp_path: Path) -> None:
    graph, weights = built("Linear")
    with pytest.raises(FormatError, match="expected an opset 13 to 21, got 9"):
        cx.Model(graph, weights).export(tmp_path / "m.onnx", opset=9)
    assert not (tmp_path / "m.onnx").exists()


def test_an_operation_onnx_has_not_is_refused_by_name(tmp_path: Path) -> None:
    graph = cx.trace(lambda x: x + x._uniform(x.shape), [3]).graph
    with pytest.raises(FormatError, match="uniform cannot be said in ONNX"):
        cx.save_model(tmp_path / "m.onnx", graph, {})


# in -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[onnx_nodes.Case, onnx_nodes.Outcome]]:
    return {case.name: (case, onnx_nodes.attempt(case)) for case in onnx_nodes.installed()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_onnx_node_test_of_our_operators_passes(outcomes: Any) -> None:
    failed = [f"{name}: {found.failed}" for name, (_, found) in outcomes.items() if found.failed]
    wrong = [f"{n}: {f.not_in_graph}" for n, (_, f) in outcomes.items() if f.not_in_graph.startswith("WRONG")]
    assert failed == [] and wrong == []
    passed = {op for _, found in outcomes.values() if not found.refused for op in found.operators}
    assert set(OPERATORS) - passed <= onnx_nodes.WITHOUT_CASES
    assert len(OPERATORS) >= 150


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_docs_list_the_operators_as_the_node_tests_find_them(outcomes: Any) -> None:
    written = (onnx_nodes.ROOT / "docs" / "onnx.md").read_text()
    for line in onnx_nodes.table(found for _, found in outcomes.values()):
        assert line in written, f"{line}\nis not in docs/onnx.md; run python -m tests.onnx_nodes --write"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_refused_is_refused_by_name(outcomes: Any) -> None:
    for name, (_, found) in outcomes.items():
        if found.refused:
            assert any(why in found.refused for why in (*onnx_nodes.LIMITS, *onnx_nodes.REFUSALS)), (name, found)


def model(nodes: Sequence[Any], x: list[Any], y: list[Any], initializers: Sequence[Any] = (), opset: int = 18) -> bytes:
    graph = oh.make_graph(
        list(nodes),
        "g",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x)],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, y)],
        list(initializers),
    )
    made: bytes = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9).SerializeToString()
    return made


def single(
    op: str, *more: Any, outputs: int = 1, shape: Sequence[int] = (2, 3, 8, 8), opset: int = 18, **attrs: Any
) -> tuple[Any, Any]:
    """(what we compute, what onnxruntime does) of one node on the same numbers."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    names = [f"i{place}" for place in range(len(more))]
    extra = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, more, strict=True)]
    raw = model([oh.make_node(op, ["x", *names], ["y"], **attrs)], list(shape), [None] * 4, extra, opset)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    return load_bytes(raw).run({"x": x})[0], session.run(None, {"x": x})[0]


def test_operators_without_node_tests_agree_with_onnxruntime() -> None:
    rois = np.array([[0, 1, 1, 6, 5], [1, 0, 2, 7, 7]], np.float32)
    for pair in (
        single("GlobalLpPool", p=2),
        single("MaxRoiPool", rois, pooled_shape=[2, 3]),
        single("MaxRoiPool", rois, pooled_shape=[4, 4], spatial_scale=0.5),
    ):
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


def test_a_way_to_resize_that_only_opsets_11_and_12_have_agrees_with_onnxruntime() -> None:
    none, sizes = np.zeros(0, np.float32), np.array([2, 3, 3, 2])
    way = {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn"}
    np.testing.assert_array_equal(*single("Resize", none, none, sizes, opset=11, **way))


def test_sequences_are_taken_apart_and_joined() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = [
        oh.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=0),
        oh.make_node("Constant", [], ["one"], value_int=1),
        oh.make_node("SequenceErase", ["s", "one"], ["t"]),
        oh.make_node("ConcatFromSequence", ["t"], ["y"], axis=0, new_axis=1),
    ]
    raw = model(nodes, [4, 3], [3, 3])
    assert load_bytes(raw).run({"x": x})[0].tolist() == x[[0, 2, 3]].tolist()


def test_a_network_of_another_tool_runs_as_our_graph_at_any_batch_size(tmp_path: Path) -> None:
    """Shapes computed inside the model, as exporters write them: they fold away."""
    drawn = np.random.default_rng(0)
    weights = {
        "w1": drawn.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "w2": drawn.normal(size=(4 * 16, 5)).astype(np.float32),
        "b2": drawn.normal(size=5).astype(np.float32),
        "zero": np.array(0, np.int64),
        "minus": np.array([-1], np.int64),
        "axis": np.array([0], np.int64),
    }
    nodes = [
        oh.make_node("Conv", ["x", "w1"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        oh.make_node("Relu", ["c"], ["r"]),
        oh.make_node("Shape", ["r"], ["shape"]),
        oh.make_node("Gather", ["shape", "zero"], ["n"]),
        oh.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        oh.make_node("Concat", ["n1", "minus"], ["wanted"], axis=0),
        oh.make_node("Reshape", ["r", "wanted"], ["flat"]),
        oh.make_node("ConstantOfShape", ["n1"], ["zeros"]),
        oh.make_node("Gemm", ["flat", "w2", "b2"], ["logits"]),
        oh.make_node("Unsqueeze", ["zeros", "ends"], ["column"]),
        oh.make_node("Add", ["logits", "column"], ["y"]),
    ]
    weights["ends"] = np.array([1], np.int64)
    raw = model(
        nodes, ["batch", 3, 8, 8], ["batch", 5], [onnx.numpy_helper.from_array(a, n) for n, a in weights.items()]
    )
    (tmp_path / "net.onnx").write_bytes(raw)
    found = cx.load_model(tmp_path / "net.onnx")
    assert set(found.weights) == {"w1", "w2", "b2"}
    assert {node.layer for node in found.graph.nodes if node.op == "conv2d"} == {"c"}
    assert not {node.op for node in found.graph.nodes} & {"take", "concat"}
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    for rows in (1, 4):
        x = drawn.normal(size=(rows, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(found.predict(x), session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4)


def test_a_torch_transformer_comes_in(tmp_path: Path) -> None:
    """Written by hand as torch's exporter lays it out: a block of attention with its mask computed inside."""
    drawn = np.random.default_rng(0)
    w = {f"w{n}": drawn.normal(size=(8, 8)).astype(np.float32) * 0.3 for n in "qkvo"}
    constants = {"heads": np.array([0, -1, 2, 4]), "back": np.array([0, -1, 8]), "half": np.array(0.5, np.float32)}
    nodes = []
    for n in "qkv":
        nodes += [
            oh.make_node("MatMul", ["x", f"w{n}"], [f"{n}0"]),
            oh.make_node("Reshape", [f"{n}0", "heads"], [f"{n}1"]),
            oh.make_node("Transpose", [f"{n}1"], [n], perm=[0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        oh.make_node("MatMul", ["q", "k"], ["s0"]),
        oh.make_node("Mul", ["s0", "half"], ["s"]),
        oh.make_node("Softmax", ["s"], ["p"], axis=-1),
        oh.make_node("MatMul", ["p", "v"], ["a"]),
        oh.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        oh.make_node("Reshape", ["b", "back"], ["c"]),
        oh.make_node("MatMul", ["c", "wo"], ["d"]),
        oh.make_node("LayerNormalization", ["d", "g", "h"], ["y"], axis=-1),
    ]
    w |= {"g": np.linspace(0.5, 1.5, 8).astype(np.float32), "h": np.linspace(-1, 1, 8).astype(np.float32)}
    tensors = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (*w.items(), *constants.items())]
    raw = model(nodes, ["n", 6, 8], ["n", 6, 8], tensors)
    graph, weights = to_graph(load_bytes(raw))
    x = drawn.normal(size=(3, 6, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(cx.predict(graph, weights, x), session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4)


class _Convolutions(torch.nn.Module):
    """A residual block with batch norm, pooling in ceil mode, and linear resizing."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool, self.up = nn.MaxPool2d(2, ceil_mode=True), nn.Upsample(scale_factor=2, mode="bilinear")
        self.out = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = self.up(self.pool(x + self.block(x)))
        return self.out(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


class _Language(torch.nn.Module):
    """An embedding and causal attention, whose mask holds infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20)
        self.attention, self.norm = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.nn.LayerNorm(8)

    def forward(self, x: Any) -> Any:
        x = self.embedding(x)
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf")), 1)
        return self.out(self.norm(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]))


class _Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = torch.nn.LSTM(6, 7, 2, batch_first=True, bidirectional=True), torch.nn.Linear(14, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.cells(x)[0].mean(1))


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (_Convolutions, torch.linspace(-1, 1, 2 * 3 * 18 * 18).reshape(2, 3, 18, 18)),
        (_Language, torch.arange(12).reshape(2, 6)),
        (_Recurrent, torch.linspace(-1, 1, 60).reshape(2, 5, 6)),
    ],
)
def test_what_torch_exports_computes_what_torch_does(module: Any, x: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = module().eval()
    names: dict[str, Any] = {
        "input_names": ["x"],
        "output_names": ["y"],
        "dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(made, x, tmp_path / "m.onnx", opset_version=17, dynamo=False, **names)
    found = cx.load_model(tmp_path / "m.onnx")
    for rows in (1, 2):
        with torch.no_grad():
            wanted = made(x[:rows]).numpy()
        np.testing.assert_allclose(found.predict(x[:rows].numpy()), wanted, rtol=1e-5, atol=1e-6)


def test_a_loop_whose_constants_change_gives_each_its_own_name(tmp_path: Path) -> None:
    """The body adds w[trip], a row of the weights that is known while the loop is unrolled."""
    made = oh.make_tensor_value_info
    body = oh.make_graph(
        [
            oh.make_node("Gather", ["w", "trip"], ["row"], axis=0),
            oh.make_node("Add", ["sum", "row"], ["next"]),
            oh.make_node("Identity", ["going"], ["on"]),
        ],
        "body",
        [
            made("trip", onnx.TensorProto.INT64, []),
            made("going", onnx.TensorProto.BOOL, []),
            made("sum", onnx.TensorProto.FLOAT, None),
        ],
        [made("on", onnx.TensorProto.BOOL, []), made("next", onnx.TensorProto.FLOAT, None)],
    )
    w = np.random.default_rng(0).normal(size=(3, 2, 3000)).astype(np.float32)
    tensors = [onnx.numpy_helper.from_array(np.array(3, np.int64), "three")]
    value = onnx.numpy_helper.from_array(w, "w")
    nodes = [
        oh.make_node("Constant", [], ["w"], value=value),
        oh.make_node("Loop", ["three", "", "x"], ["y"], body=body),
    ]
    (tmp_path / "m.onnx").write_bytes(model(nodes, ["n", 2, 3000], ["n", 2, 3000], tensors))
    found = cx.load_model(tmp_path / "m.onnx")
    x = np.ones((2, 2, 3000), np.float32)
    assert sorted(found.weights) == ["row", "row.2", "row.3"]
    np.testing.assert_allclose(found.predict(x), x + w.sum(0), rtol=1e-5, atol=1e-5)


# refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (oh.make_node("RandomNormalLike", ["x"], ["y"], name="noise"), r"node 'noise' \(RandomNormalLike\): operator"),
        (oh.make_node("Relu", ["x"], ["y"], domain="com.microsoft"), "of domain 'com.microsoft' .opset 18."),
        (oh.make_node("Relu", ["z"], ["y"]), "its input 'z' is made by no node before it"),
        (oh.make_node("Relu", ["x"], ["z"]), "the output 'y' is made by no node"),
        (oh.make_node("Relu", ["x", "x"], ["y"]), r"\(Relu\): expected 1 to 1 inputs, got 2"),
        (oh.make_node("LeakyRelu", ["x"], ["y"], slope=1.0), "attribute 'slope' is not one Cyx knows of"),
        (oh.make_node("Transpose", ["x"], ["y"], perm=[0, 7]), r"\(Transpose\): axis: expected"),
        (oh.make_node("Concat", ["x"], ["y"]), "attribute 'axis' is missing"),
        (oh.make_node("CumSum", ["x", "a"], ["y"]), r"\(CumSum\): cumulative_sum: runs on tensors, and in cx.compile"),
    ],
)
def test_a_node_we_do_not_run_is_refused_by_name(node: Any, said: str, tmp_path: Path) -> None:
    axis = onnx.numpy_helper.from_array(np.array(1, np.int64), "a")
    (tmp_path / "m.onnx").write_bytes(model([node], ["n", 3], ["n", 3], [axis]))
    with pytest.raises(FormatError, match=said):
        cx.load_model(tmp_path / "m.onnx")


def test_an_opset_of_the_future_is_refused() -> None:
    with pytest.raises(FormatError, match="expected an ONNX model of opset 7 to 28, got 99"):
        load_bytes(model([oh.make_node("Relu", ["x"], ["y"])], [1], [1], opset=99))


def test_a_missing_input_is_named() -> None:
    with pytest.raises(GraphError, match=r"expected the inputs x; missing \['x'\], unknown \['z'\]"):
        load_bytes(model([oh.make_node("Relu", ["x"], ["y"])], [1], [1])).run({"z": np.zeros(1)})


def external(folder: Path, location: str) -> Path:
    tensor = onnx.TensorProto(name="w", dims=[4], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value=location)
    path = folder / "m.onnx"
    path.write_bytes(model([oh.make_node("Mul", ["x", "w"], ["y"])], ["n", 4], ["n", 4], [tensor]))
    return path


def test_values_in_another_file_are_read_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    path = external(tmp_path, "w.bin")
    with pytest.raises(FormatError, match="none is opened unless asked for"):
        load(path)
    assert load(path, external_data=True).run({"x": np.ones((1, 4), np.float32)})[0].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/b", "..", "", "link"])
def test_no_path_out_of_the_folder_is_followed(location: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link").symlink_to(tmp_path / "w.bin")
    with pytest.raises(FormatError, match="plain file"):
        load(external(inner, location), external_data=True)


def test_a_value_that_would_fill_the_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    huge = onnx.numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "huge")
    one = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    nodes = [
        oh.make_node("Expand", ["one", "huge"], ["big"]),
        oh.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        oh.make_node("Add", ["x", "sum"], ["y"]),
    ]
    (tmp_path / "m.onnx").write_bytes(model(nodes, ["n", 3], ["n", 3], [huge, one]))
    with pytest.raises(FormatError, match=r"\(Expand\): broadcast_to makes"):
        cx.load_model(tmp_path / "m.onnx")


def folded_into(y_of: list[Any], *constants: Any) -> bytes:
    """A model that adds to x what the nodes make of one known number, "c0", in the value "made"."""
    made = [*y_of, oh.make_node("ReduceMin", ["made"], ["m"], keepdims=0), oh.make_node("Cast", ["m"], ["f"], to=1)]
    first = oh.make_node("Constant", [], ["c0"], value=onnx.numpy_helper.from_array(np.array([1], np.int64)))
    return model([first, *made, oh.make_node("Add", ["x", "f"], ["y"])], ["n", 3], ["n", 3], constants)


def loops_within_loops(depth: int) -> Any:
    kinds = onnx.TensorProto
    names = [f"{name}{depth}" for name in ("trip", "going", "s", "on", "t")]
    trip, going, s, on, t = (
        oh.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(
            names, (kinds.INT64, kinds.BOOL, kinds.INT64, kinds.BOOL, kinds.INT64), ([], [], [1], [], [1]), strict=True
        )
    )
    inner = oh.make_node("Identity", [names[2]], [names[4]])
    if depth:
        inner = oh.make_node("Loop", ["many", "", names[2]], [names[4]], body=loops_within_loops(depth - 1))
    return oh.make_graph([oh.make_node("Identity", [names[1]], [names[3]]), inner], "body", [trip, going, s], [on, t])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            folded_into(
                [oh.make_node("Concat", [f"c{n}"] * 2, [f"c{n + 1}" if n < 39 else "made"], axis=0) for n in range(40)]
            ),
            r"\(Concat\): concat makes \(33554432,\)",
        ),
        (
            folded_into(
                [
                    *(oh.make_node("Expand", ["c0", "most"], [f"e{n}"]) for n in range(40)),
                    oh.make_node("Sum", [f"e{n}" for n in range(40)], ["made"]),
                ],
                onnx.numpy_helper.from_array(np.array([2**24], np.int64), "most"),
            ),
            "too many with those before",
        ),
        (
            folded_into(
                [oh.make_node("Loop", ["many", "", "c0"], ["made"], body=loops_within_loops(6))],
                onnx.numpy_helper.from_array(np.array(9000, np.int64), "many"),
            ),
            "loops make more than 1000 operations",
        ),
        (
            folded_into([oh.make_node("Split", ["c0"], ["made"], num_outputs=2**40)]),
            "num_outputs: expected 1 to 65536",
        ),
    ],
    ids=["doubled", "many", "loops", "parts"],
)
def test_what_a_small_file_folds_to_is_bounded(
    raw: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MAX_ALL_KNOWN", 2**26)  # for a quick test
    monkeypatch.setattr(importing, "MAX_CALLS", 1000)
    (tmp_path / "m.onnx").write_bytes(raw)
    with pytest.raises(FormatError, match=said):
        cx.load_model(tmp_path / "m.onnx")


def test_protobuf_is_read_and_written_as_onnx_does() -> None:
    raw = model([oh.make_node("Gemm", ["x", "x"], ["y"], alpha=0.5, transB=1, name="g")], ["n", 3], ["n", 3])
    proto = decode("Model", raw, "t")
    again = onnx.ModelProto.FromString(b"".join(encode("Model", proto))).graph.node[0]
    assert (again.name, list(again.input), again.attribute[0].f, again.attribute[1].i) == ("g", ["x", "x"], 0.5, 1)
    assert decode("Model", b"".join(encode("Model", proto)), "t") == proto


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_model_that_ends_early_is_one_error(cut: int, tmp_path: Path) -> None:
    graph, weights = built("Linear")
    cx.save_model(tmp_path / "m.onnx", graph, weights)
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) * cut // 200])
    with pytest.raises(CyxError):
        cx.load_model(tmp_path / "m.onnx")
