"""Graphs: bytes, identity, inference, and everything verify refuses."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore.errors import CyxError, DtypeError, GraphError, ShapeError
from cyxcore.graph import Graph
from cyxcore.spec import OptimizerSpec, TrainingSpec
from cyxcore.symbols import Builder

LINEAR: dict[str, Any] = {
    "format": "cyx-graph/1",
    "nodes": [
        {"op": "input", "attrs": {"name": "x", "shape": [None, 3]}},
        {
            "op": "param",
            "attrs": {"name": "w", "shape": [2, 3], "init": {"kind": "kaiming_uniform", "fan_in": 3}},
        },
        {"op": "matmul", "in": [0, 1], "attrs": {"transpose_b": True}, "layer": "0: Linear"},
    ],
    "outputs": [2],
}


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(LINEAR), **fields}


def with_node(place: int, **fields: Any) -> dict[str, Any]:
    document = copy.deepcopy(LINEAR)
    document["nodes"][place].update(fields)
    return document


def test_a_graph_survives_json() -> None:
    graph = cx.build(
        input_shape=[1, 8, 8],
        layers=[
            {"kind": "Conv2d", "out_channels": 4, "kernel_size": 3},
            {"kind": "BatchNorm2d"},
            {"kind": "Dropout"},
            {"kind": "Flatten"},
            {"kind": "Linear", "out_features": 2},
        ],
    )
    again = Graph.from_json(graph.to_bytes())
    assert again == graph and again.to_bytes() == graph.to_bytes() and Graph.from_json(graph.to_json()) == graph


def test_the_id_of_a_graph_is_pinned() -> None:
    assert Graph.from_json(LINEAR).sha256 == "1fe449fed92ab0f83ac2054112b2861a409c05d0d6617468538433dbe7408602"


def test_canonical_bytes_are_sorted_and_tight() -> None:
    raw = Graph.from_json(LINEAR).to_bytes()
    assert raw == json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode()


def test_defaults_are_written_out() -> None:
    assert b'"transpose_a":false' in Graph.from_json(LINEAR).to_bytes()


def test_shapes_follow_the_batch_size() -> None:
    assert Graph.from_json(LINEAR).infer(7).shapes == ((7, 3), (2, 3), (7, 2))


def test_a_graph_knows_its_interface() -> None:
    graph = Graph.from_json(LINEAR)
    assert (graph.input_shape, graph.output_shape, graph.parameter_count) == ((3,), (2,), 6)
    assert [p.name for p in graph.parameters] == ["w"] and graph.buffers == ()


def test_cost_grows_with_the_batch() -> None:
    graph = Graph.from_json(LINEAR)
    assert graph.flops(10) == 2 * 10 * 3 * 2
    assert graph.memory_bytes(100) > graph.memory_bytes(1) > 4 * 6 * 4
    assert graph.memory_bytes(100, training=False) == 24 + (300 + 200) * 4


def test_a_shape_error_names_the_layer_and_both_shapes() -> None:
    document = changed()
    document["nodes"][1]["attrs"]["shape"] = [2, 5]
    with pytest.raises(ShapeError, match=r"layer 0: Linear: matmul: .* got \(2, 3\) @ \(2, 5\)ᵀ: 3 is not 5"):
        Graph.from_json(document)


BAD: dict[str, Any] = {
    "no object": [1],
    "wrong format": changed(format="cyx-graph/9"),
    "unknown field": changed(code="print()"),
    "no nodes": changed(nodes=[]),
    "nodes no list": changed(nodes={"a": 1}),
    "node no object": changed(nodes=[5]),
    "unknown op": with_node(2, op="exec"),
    "op no text": with_node(2, op=["matmul"]),
    "unknown attribute": with_node(2, attrs={"fast": True}),
    "attribute of wrong type": with_node(2, attrs={"transpose_b": 1}),
    "attrs no object": with_node(2, attrs=[1]),
    "forward reference": with_node(2, **{"in": [0, 2]}),
    "negative reference": with_node(2, **{"in": [0, -1]}),
    "boolean reference": with_node(2, **{"in": [0, True]}),
    "huge reference": with_node(2, **{"in": [0, 10**30]}),
    "too few inputs": with_node(2, **{"in": [0]}),
    "output out of range": changed(outputs=[3]),
    "two outputs": changed(outputs=[2, 2]),
    "output without a batch": changed(outputs=[1]),
    "missing attribute": with_node(1, attrs={"name": "w"}),
    "unknown init": with_node(1, attrs={"name": "w", "shape": [2, 3], "init": {"kind": "magic"}}),
    "init with extras": with_node(1, attrs={"name": "w", "shape": [2, 3], "init": {"kind": "zeros", "x": 1}}),
    "init not finite": with_node(
        1, attrs={"name": "w", "shape": [2, 3], "init": {"kind": "constant", "value": float("nan")}}
    ),
    "init too large a number": with_node(
        1, attrs={"name": "w", "shape": [2, 3], "init": {"kind": "constant", "value": 10**400}}
    ),
    "negative size": with_node(0, attrs={"name": "x", "shape": [None, -3]}),
    "size beyond 2**31": with_node(0, attrs={"name": "x", "shape": [None, 2**31]}),
    "fractional size": with_node(0, attrs={"name": "x", "shape": [None, 3.0]}),
    "too many axes": with_node(0, attrs={"name": "x", "shape": [None] + [1] * 40}),
    "no batch axis": with_node(0, attrs={"name": "x", "shape": [3, 3]}),
    "two batch axes": with_node(0, attrs={"name": "x", "shape": [None, None]}),
    "integer parameter": with_node(
        1, attrs={"name": "w", "shape": [2, 3], "init": {"kind": "zeros"}, "dtype": "int64"}
    ),
    "unknown dtype": with_node(0, attrs={"name": "x", "shape": [None, 3], "dtype": "complex64"}),
    "unprintable name": with_node(1, attrs={"name": "w\n", "shape": [2, 3], "init": {"kind": "zeros"}}),
    "empty name": with_node(1, attrs={"name": "", "shape": [2, 3], "init": {"kind": "zeros"}}),
    "layer no text": with_node(2, layer=3),
    "update of a parameter": changed(updates=[[1, 1]]),
    "update of an input": changed(updates=[[0, 0]]),
    "update no pair": changed(updates=[[1]]),
    "updates no list": changed(updates=5),
    "repeated names": changed(
        nodes=[
            *LINEAR["nodes"][:2],
            {**LINEAR["nodes"][1]},
            {"op": "matmul", "in": [0, 2], "attrs": {"transpose_b": True}},
        ],
        outputs=[3],
    ),
    "a result too large": changed(
        nodes=[
            LINEAR["nodes"][0],
            {"op": "sum", "in": [0], "attrs": {"axes": []}},
            {"op": "broadcast_to", "in": [1], "attrs": {"shape": [2**30, 2**30, None, 3]}},
        ]
    ),
    "a constant too large": changed(
        nodes=[
            *LINEAR["nodes"],
            {"op": "const", "attrs": {"shape": [70000], "dtype": "float32", "value": [0.0] * 70000}},
        ]
    ),
    "a constant of the wrong length": changed(
        nodes=[*LINEAR["nodes"], {"op": "const", "attrs": {"shape": [2], "dtype": "float32", "value": [0.0]}}]
    ),
    "integer output": changed(
        nodes=[LINEAR["nodes"][0], {"op": "cast", "in": [0], "attrs": {"dtype": "int64"}}], outputs=[1]
    ),
}


@pytest.mark.parametrize("document", BAD.values(), ids=BAD.keys())
def test_verify_refuses(document: Any) -> None:
    with pytest.raises((GraphError, ShapeError, DtypeError)):
        Graph.from_json(document)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format":' * 20_000,
        b"NaN",
        '{"format":"\ud800"}',
        b'{"a":1e999}',
        b"0" * 100,
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_bytes_that_are_no_graph_are_a_graph_error(raw: Any) -> None:
    with pytest.raises(GraphError):
        Graph.from_json(raw)


def test_a_graph_of_too_many_nodes_is_refused() -> None:
    with pytest.raises(GraphError, match="at most 100000"):
        Graph.from_json(changed(nodes=[{}] * 100_001))


def test_a_long_chain_of_nodes_is_fine() -> None:
    nodes = [LINEAR["nodes"][0], *({"op": "neg", "in": [place]} for place in range(3000))]
    assert len(Graph.from_json(changed(nodes=nodes, outputs=[3000])).nodes) == 3001


SCALARS = st.none() | st.booleans() | st.integers(-3, 5) | st.integers() | st.floats() | st.text(max_size=4)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
MODEL = cx.build(
    input_shape=[1, 6, 6],
    layers=[
        {"kind": "Conv2d", "out_channels": 2, "kernel_size": 3},
        {"kind": "BatchNorm2d"},
        {"kind": "MaxPool2d", "kernel_size": 2},
        {"kind": "Dropout"},
        {"kind": "Flatten"},
        {"kind": "Linear", "out_features": 2},
        {"kind": "Softmax"},
    ],
).to_json()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, entry in inner for found in places(entry, (*path, key))]


PLACES = places(MODEL)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_a_damaged_graph_is_a_graph_or_a_typed_error(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    document = copy.deepcopy(MODEL)
    for path, value in changes:
        holder = document
        try:
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed the place
    try:
        assert Graph.from_json(document).output_shape is not None
    except CyxError as error:
        assert str(error)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_typed_error(raw: bytes) -> None:
    with pytest.raises(CyxError):
        Graph.from_json(raw)


def penalised() -> cx.Graph:
    """y = w x, and 3 x w for each row added to its loss."""
    builder = Builder(1)
    x = builder.input("x", (1, 2))
    y = x * builder.param("w", (2,), {"kind": "ones"})
    builder.penalise(y.sum(1) * 3.0)
    graph = builder.graph(y)
    free = json.loads(graph.to_bytes())
    free["nodes"][0]["attrs"]["shape"][0] = None
    return cx.Graph.from_json(free)


def test_a_penalty_is_part_of_a_graph_and_of_training_only() -> None:
    graph = penalised()
    assert graph.penalties and cx.Graph.from_json(graph.to_bytes()) == graph
    assert graph.penalties[0] in graph.reachable(training=True) - graph.reachable(training=False)
    assert b"penalties" not in cx.build(input_shape=[2], layers=[{"kind": "Linear", "out_features": 2}]).to_bytes()


def test_a_penalty_is_added_to_the_loss_and_its_gradient_followed() -> None:
    graph = penalised()
    x = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    rows = SimpleNamespace(x_train=x, y_train=x, x_val=None, y_val=None)
    optimizer = OptimizerSpec(name="sgd", learning_rate=0.1)
    trainer = cx.Trainer.of_job(graph, rows, TrainingSpec(epochs=1, loss="mse", optimizer=optimizer, keep="last"))
    for _ in trainer.run():
        pass
    assert trainer.history[0].epoch_loss == pytest.approx(3 * (3 + 2) / 2)  # the distance itself is 0 at the start
    np.testing.assert_allclose(trainer.weights["w"], [1 - 0.1 * 3 * 2, 1 - 0.1 * 3 * 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("place", "said"), [(99, "expected an earlier node"), (0, "expected a float number per sample")]
)
def test_a_penalty_is_a_number_per_row(place: int, said: str) -> None:
    with pytest.raises(CyxError, match=said):
        cx.Graph.from_json(json.loads(penalised().to_bytes()) | {"penalties": [place]})
