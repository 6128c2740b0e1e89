"""Graph files: what they mean, version 1.0 among them, and one line for each thing that is wrong with one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import SpecError
from cyxcore.graphfile import MAX_NODES, GraphFile, read, schema
from cyxcore.graphlearner import initial_weights
from cyxcore.nodekinds import KIND_OF_NUMBER
from cyxcore.spec import OptimizerSpec, ScheduleSpec

NUMBERS = {kind: number for number, kind in KIND_OF_NUMBER.items()}


def node(name: str, kind: str, **params: Any) -> dict[str, Any]:
    return {"id": name, "type": kind, "params": params}


def link(source: str, to: str, from_pin: Any = 0, to_pin: Any = None) -> dict[str, Any]:
    return {"from": source, "to": to, "from_pin": from_pin, "to_pin": to_pin}


def whole(*middle: dict[str, Any], shape: Any = (4,), loss: Any = None, **more: Any) -> dict[str, Any]:
    """A file whose middle nodes stand one behind another, between a DatasetInput and Output, loss and Adam."""
    nodes = [node("in", "DatasetInput", shape=list(shape)), *middle, node("out", "Output")]
    links = [link(one["id"], other["id"]) for one, other in zip(nodes, nodes[1:], strict=False)]
    nodes += [loss or node("loss", "CrossEntropyLoss"), node("adam", "Adam"), *more.pop("nodes", [])]
    links += [link("out", "loss"), link("in", "loss", "labels"), link("loss", "adam"), *more.pop("links", [])]
    return {"version": "2.0", "nodes": nodes, "links": links, **more}


def without(file: dict[str, Any], name: str) -> dict[str, Any]:
    """The file without a node and its links."""
    nodes = [one for one in file["nodes"] if one["id"] != name]
    return {**file, "nodes": nodes, "links": [one for one in file["links"] if name not in (one["from"], one["to"])]}


def unlinked(file: dict[str, Any], source: str, to: str) -> dict[str, Any]:
    return {**file, "links": [one for one in file["links"] if (one["from"], one["to"]) != (source, to)]}


DENSE = node("d", "Dense", units=3)
GOOD = whole(DENSE)


def predicted(graph: cx.Graph, x: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.asarray(cx.predict(graph, initial_weights(graph, seed), x))


# meaning ------------------------------------------------------------------------------------------


def test_branches_and_merges_are_computed() -> None:
    """A residual sum of two layers, by hand."""
    file = whole(
        node("a", "Dense", units=4),
        node("r", "ReLU"),
        node("b", "Dense", units=4),
        node("add", "Add"),
        node("join", "Concatenate"),
        DENSE,
        links=[link("r", "add"), link("in", "join")],
    )
    graph = cx.load_graph(file).graph
    w = initial_weights(graph, 0)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    r = np.maximum(x @ w["a.weight"].T + w["a.bias"], 0)
    s = r @ w["b.weight"].T + w["b.bias"] + r
    expected = np.concatenate([s, x], 1) @ w["d.weight"].T + w["d.bias"]
    np.testing.assert_allclose(predicted(graph, x), expected, rtol=1e-5, atol=1e-6)


def test_several_inputs_share_a_flat_sample_in_their_order() -> None:
    file = whole(
        node("a", "Dense", units=3),
        node("add", "Add"),
        shape=(2,),
        nodes=[node("image", "DatasetInput", shape=[1, 2, 2]), node("f", "Flatten"), node("b", "Dense", units=3)],
        links=[link("image", "f"), link("f", "b"), link("b", "add")],
    )
    graph = cx.load_graph(file).graph
    assert graph.input_shape == (6,)
    w, x = initial_weights(graph, 0), np.arange(12, dtype=np.float32).reshape(2, 6)
    expected = x[:, :2] @ w["a.weight"].T + w["a.bias"] + x[:, 2:] @ w["b.weight"].T + w["b.bias"]
    np.testing.assert_allclose(predicted(graph, x), expected, rtol=1e-5)


def test_a_subgraph_stands_where_its_node_is_and_may_share_its_parameters() -> None:
    part = {
        "nodes": [
            node("x", "Input"),
            node("y", "Input"),
            node("add", "Add"),
            node("d", "Dense", units=4),
            node("o", "Output"),
        ],
        "links": [link("x", "add"), link("y", "add"), link("add", "d"), link("d", "o")],
    }
    file = whole(
        node("one", "Subgraph", graph="block"),
        {**node("two", "Subgraph", graph="block"), "shares": "one"},
        DENSE,
        links=[link("in", "one", 0, "y"), link("in", "two", 0, 1)],
        subgraphs={"block": part},
    )
    graph = cx.load_graph(file).graph
    assert [param.name for param in graph.parameters] == ["one.d.weight", "one.d.bias", "d.weight", "d.bias"]
    w, x = initial_weights(graph, 0), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)

    def block(value: np.ndarray) -> np.ndarray:
        return (value + x) @ w["one.d.weight"].T + w["one.d.bias"]

    expected = block(block(x)) @ w["d.weight"].T + w["d.bias"]
    np.testing.assert_allclose(predicted(graph, x), expected, rtol=1e-5, atol=1e-6)


def test_parts_of_a_split_go_their_ways() -> None:
    file = whole(node("s", "Split", num_splits=2), node("join", "Concatenate"), DENSE)
    file["links"] += [link("s", "join", 1)]
    file = unlinked(file, "s", "join")
    file["links"] += [link("s", "join", 1, 0), link("s", "join", 0, 1)]
    graph = cx.load_graph(file).graph
    w, x = initial_weights(graph, 0), np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = x[:, [2, 3, 0, 1]] @ w["d.weight"].T + w["d.bias"]
    np.testing.assert_allclose(predicted(graph, x), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "end", "spec_loss"),
    [
        ("CrossEntropyLoss", "Softmax", "cross_entropy"),
        ("CrossEntropyLoss", "LogSoftmax", "cross_entropy"),
        ("NLLLoss", "LogSoftmax", "cross_entropy"),
        ("BCELoss", "Sigmoid", "bce"),
    ],
)
def test_what_a_loss_takes_itself_is_skipped_right_before_it(loss: str, end: str, spec_loss: str) -> None:
    recipe = cx.load_graph(whole(DENSE, node("end", end), loss=node("loss", loss)))
    assert recipe.graph == cx.load_graph(whole(DENSE)).graph
    assert recipe.training.loss == spec_loss


def test_a_softmax_elsewhere_stays() -> None:
    graph = cx.load_graph(whole(DENSE, node("s", "Softmax"), node("e", "Dense", units=3))).graph
    assert "s: Softmax" in {node.layer for node in graph.nodes}
    assert "s: Softmax" in {
        n.layer for n in cx.load_graph(whole(DENSE, node("s", "Softmax"), loss=node("loss", "MSELoss"))).graph.nodes
    }


def test_a_file_says_how_to_train() -> None:
    file = whole(
        node("split", "DataSplit", train=0.7, validation=0.2, seed=5),
        node("load", "DataLoader", batch_size=16),
        DENSE,
        loss=node("loss", "CrossEntropyLoss", label_smoothing=0.1),
        job={"epochs": 7, "keep": "last", "clip_norm": 1.0},
        nodes=[
            node("l1", "ElasticNet", **{"lambda": 0.1, "l1_ratio": 0.25}),
            node("w", "WarmupScheduler", warmup_steps=9),
            node("c", "CosineAnnealing", eta_min=0.001, T_max=7),
        ],
        links=[link("loss", "l1"), link("adam", "w"), link("w", "c")],
    )
    file["nodes"] = [node("adam", "SGD", nesterov=True) if n["id"] == "adam" else n for n in file["nodes"]]
    file = unlinked(file, "loss", "adam")
    file["links"].append(link("l1", "adam"))
    recipe = cx.load_graph(file)
    training = recipe.training
    assert (training.epochs, training.keep, training.batch_size, training.seed) == (7, "last", 16, 5)
    assert (training.clip_norm, training.label_smoothing, recipe.data.validation) == (1.0, 0.1, 0.3)
    assert training.optimizer == OptimizerSpec(
        name="sgd", learning_rate=0.01, momentum=0.9, nesterov=True, l1=0.025, weight_decay=0.07500000000000001
    )
    assert training.schedule == ScheduleSpec(name="cosine", final=0.1, warmup_steps=9)


@pytest.mark.parametrize(
    ("kind", "params", "expected"),
    [
        ("StepLR", {}, ScheduleSpec(name="step", period=30, factor=0.1)),
        ("ExponentialLR", {"gamma": 0.5}, ScheduleSpec(name="exponential", factor=0.5)),
        ("ReduceOnPlateau", {"patience": 3}, ScheduleSpec(name="plateau", factor=0.1, patience=3)),
        ("CosineAnnealing", {}, ScheduleSpec(name="cosine")),
    ],
)
def test_a_schedule_is_used(kind: str, params: dict[str, Any], expected: ScheduleSpec) -> None:
    file = whole(DENSE, nodes=[node("s", kind, **params)], links=[link("adam", "s")])
    assert cx.load_graph(file).training.schedule == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("SGD", OptimizerSpec(name="sgd", learning_rate=0.01, momentum=0.9)),
        ("Adam", OptimizerSpec(name="adam", betas=(0.9, 0.999), eps=1e-8)),
        ("AdamW", OptimizerSpec(name="adamw", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)),
        ("RMSprop", OptimizerSpec(name="rmsprop", learning_rate=0.01, eps=1e-8)),
        ("Adagrad", OptimizerSpec(name="adagrad", learning_rate=0.01, eps=1e-10)),
        ("NAdam", OptimizerSpec(name="nadam", learning_rate=0.002, betas=(0.9, 0.999), eps=1e-8)),
        ("Lion", OptimizerSpec(name="lion", learning_rate=0.0001, betas=(0.9, 0.99))),
    ],
)
def test_an_optimizer_has_the_editors_defaults(kind: str, expected: OptimizerSpec) -> None:
    file = whole(DENSE)
    file["nodes"] = [node("adam", kind) if one["id"] == "adam" else one for one in file["nodes"]]
    assert cx.load_graph(file).training.optimizer == expected


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("SGD", {"dampening": 0.5, "momentum": 0.8}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"amsgrad": True, "maximize": True}),
    ],
)
def test_an_optimizer_has_pytorchs_options(kind: str, params: dict[str, Any]) -> None:
    file = whole(DENSE)
    file["nodes"] = [node("adam", kind, **params) if one["id"] == "adam" else one for one in file["nodes"]]
    found = cx.load_graph(file).training.optimizer
    assert {name: getattr(found, name) for name in params} == params


def test_an_autoencoder_compares_with_its_input() -> None:
    file = whole(node("a", "Dense", units=2), node("b", "Dense", units=4), loss=node("loss", "MSELoss"))
    file = unlinked(file, "in", "loss")
    file["links"].append(link("in", "loss", "data", "target"))
    assert cx.load_graph(file).data.target_is_input
    split = whole(node("s", "DataSplit"), DENSE | {"params": {"units": 4}}, loss=node("loss", "MSELoss"))
    split = unlinked(split, "in", "loss")
    split["links"].append(link("s", "loss", 0, "target"))
    assert cx.load_graph(split).data.target_is_input


def test_a_sample_is_seen_in_the_shape_that_the_input_names() -> None:
    file = whole(node("c", "Conv2D", filters=2), node("f", "Flatten"), DENSE, shape=(1, 4, 4))
    assert cx.load_graph(file, input_shape=[16]).graph.input_shape == (16,)
    assert cx.load_graph(file).graph.input_shape == (1, 4, 4)


def test_a_graph_of_a_file_survives_a_model_file(tmp_path: Path) -> None:
    graph = cx.load_graph(whole(node("a", "LSTM", hidden_size=5), DENSE, shape=(6, 4))).graph
    cx.save_model(tmp_path / "m.cyxmodel", graph, initial_weights(graph, 0))
    again = cx.load_model(tmp_path / "m.cyxmodel")
    assert again.graph == graph and str(cx.summary(again.graph)) == str(cx.summary(graph))
    assert [row.layer for row in cx.summary(graph).rows] == ["a: LSTM", "d: Dense"]


def test_dropout_stands_on_each_step_as_on_the_whole_sequence() -> None:
    def graph(*middle: dict[str, Any]) -> cx.Graph:
        return cx.load_graph(whole(*middle, node("f", "Flatten"), node("d", "Dense", units=3), shape=(4, 8))).graph

    each = graph(node("t", "TimeDistributed", layer="Dropout", parameters={"p": 0.25}))
    assert [n._replace(layer="") for n in each.nodes] == [
        n._replace(layer="") for n in graph(node("t", "Dropout", p=0.25)).nodes
    ]


@pytest.mark.parametrize(
    ("layer", "parameters", "said"),
    [
        ("Split", {"num_splits": 2}, "expected a kind of one input and one output, got 'Split'"),
        ("LSTM", {}, "expected a kind of one input and one output, got 'LSTM'"),
        ("Output", {}, "expected a kind of one input and one output, got 'Output'"),
        ("BatchNorm", {}, "BatchNorm is tied to the number of rows and cannot stand on each step"),
        ("ConvTranspose1D", {}, "ConvTranspose1D is tied to the number of rows and cannot stand on each step"),
    ],
)
def test_what_cannot_stand_on_each_step_is_refused_by_name(layer: str, parameters: dict[str, Any], said: str) -> None:
    inner = node("t", "TimeDistributed", layer=layer, parameters=parameters)
    with pytest.raises(cx.errors.SpecError, match=rf"node 't' \(TimeDistributed\): layer: {said}"):
        cx.load_graph(whole(inner, node("f", "Flatten"), node("d", "Dense", units=3), shape=(4, 2, 8)))


def test_a_chain_of_ten_thousand_nodes_is_no_deeper_than_one() -> None:
    file = whole(*(node(f"i{n}", "Identity") for n in range(MAX_NODES - 6)), DENSE)
    assert cx.load_graph(file).graph == cx.load_graph(whole(DENSE)).graph


def nested_subgraphs(depth: int, inner: dict[str, Any], params: dict[str, Any], times: int = 1) -> dict[str, Any]:
    """A file of `depth` subgraphs, each `times` within the one before, around a node."""
    ends = [node("i", "Input"), node("o", "Output")]
    links = [link("i", "n0"), link("n0", "o")]
    parts = {}
    for level in range(depth):
        used = [node(f"n{n}", "Subgraph", graph=f"s{level + 1}", params=params) for n in range(times)]
        parts[f"s{level}"] = {"nodes": [*ends, *used], "links": links}
    parts[f"s{depth}"] = {"nodes": [*ends, {**inner, "id": "n0"}], "links": links}
    return whole(node("all", "Subgraph", graph="s0", params={"a": 8}), subgraphs=parts)


def test_values_pass_through_subgraphs_within_subgraphs() -> None:
    graph = cx.load_graph(nested_subgraphs(3, node("d", "Dense", units="$a"), {"a": "$a*2"})).graph
    assert graph.output_shape == (64,)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (nested_subgraphs(12, node("d", "Dense", units="$a"), {"a": ["$a"] * 40}), "at most 1,000,000 values"),
        (
            nested_subgraphs(12, node("d", "Dense", units="$a"), {"a": "$a*$a"}),
            r"\$a\*\$a: expected numbers below 2\^63",
        ),
        (nested_subgraphs(12, node("d", "Identity"), {}, times=40), "at most 10,000 nodes and 50,000 links"),
    ],
)
def test_a_small_file_cannot_stand_for_more_than_there_is_room_for(file: dict[str, Any], said: str) -> None:
    with pytest.raises(cx.errors.SpecError, match=said):
        cx.load_graph(file)


def test_subgraphs_of_nothing_but_subgraphs_end() -> None:
    """Each level stands for the next ten times; no level holds a node of its own."""
    parts: dict[str, Any] = {
        f"s{n}": {"nodes": [node(f"n{m}", "Subgraph", graph=f"s{n + 1}") for m in range(10)]} for n in range(12)
    }
    file = whole(node("all", "Subgraph", graph="s0"), DENSE, subgraphs={**parts, "s12": {"nodes": []}})
    with pytest.raises(cx.errors.SpecError, match="at most 10,000 nodes"):
        cx.load_graph(file)


@pytest.mark.parametrize(
    "source, said", [(None, "an object already decoded or a GraphFile, got NoneType"), ("x" * 300, "cannot be read")]
)
def test_what_cannot_be_a_graph_file_is_refused(source: Any, said: str) -> None:
    with pytest.raises(cx.errors.SpecError, match=said):
        read(source)


def test_equal_files_have_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.cyxgraph"
    path.write_text(json.dumps(GOOD, indent=2))
    assert read(path).to_bytes() == read(GOOD).to_bytes() == read(read(GOOD).to_bytes()).to_bytes()


def test_the_schema_comes_from_the_structs() -> None:
    found = schema()
    assert found["$defs"]["LinkSpec"]["required"] == ["from", "to"]
    assert set(NUMBERS) <= set(found["$defs"]["NodeSpec"]["properties"]["type"]["enum"])


def test_a_graph_file_is_a_struct_too() -> None:
    assert cx.load_graph(GraphFile(nodes=read(GOOD).nodes, links=read(GOOD).links)).graph == cx.load_graph(GOOD).graph


# version 1.0 --------------------------------------------------------------------------------------


def old(*rows: tuple[str, dict[str, str]], links: list[tuple[int, ...]]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "framework": 0,
        "nodes": [
            {
                "id": n,
                "type": NUMBERS[kind],
                "name": f"{kind} {n}",
                "parameters": params,
                "pos_x": 10.0 * n,
                "pos_y": 0.0,
            }
            for n, (kind, params) in enumerate(rows)
        ],
        "links": [
            {
                "id": n,
                "from_node": source,
                "from_pin": 100 + n,
                "to_node": to,
                "to_pin": 200 + n,
                "from_pin_index": from_pin,
                "to_pin_index": to_pin,
                "link_type": "TensorFlow",
            }
            for n, (source, from_pin, to, to_pin) in enumerate(links)
        ],
    }


OLD = old(
    ("DatasetInput", {"shape": "1, 8, 8"}),
    ("Conv2D", {"filters": "4", "kernel_size": "(3, 3)", "padding": "same", "activation": "ReLU"}),
    ("MaxPool2D", {"pool_size": "2"}),
    ("Flatten", {}),
    ("Dense", {"units": "10", "bias": "true"}),
    ("Dropout", {"rate": "0.25"}),
    ("Output", {}),
    ("CrossEntropyLoss", {}),
    ("SGD", {"lr": "0.05", "momentum": ""}),
    ("StepLR", {"step_size": "5", "gamma": "0.5"}),
    links=[(n, 0, n + 1, 0) for n in range(9)] + [(0, 1, 7, 1)],
)


def test_a_file_of_version_1_is_read() -> None:
    file = read(OLD)
    assert [one.type for one in file.nodes[:3]] == ["DatasetInput", "Conv2D", "MaxPool2D"]
    assert file.nodes[1].params == {"filters": 4, "kernel_size": [3, 3], "padding": "same", "activation": "relu"}
    assert file.nodes[5].pos == (50.0, 0.0)
    recipe = cx.load_graph(json.dumps(OLD).encode())
    assert recipe.graph.output_shape == (10,)
    assert recipe.training.optimizer == OptimizerSpec(name="sgd", learning_rate=0.05, momentum=0.9)
    assert recipe.training.schedule == ScheduleSpec(name="step", period=5, factor=0.5)
    assert cx.load_graph(read(file.to_bytes())).graph == recipe.graph


def test_a_path_that_no_file_can_have_is_one_error() -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        cx.load_graph("a\0b.cyxgraph")
