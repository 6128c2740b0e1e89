"""One line for each thing that can be wrong with a graph file."""

from pathlib import Path
from typing import Any

import pytest

import cyxcore as cx
from cyxcore.errors import CyxError, ShapeError, SpecError
from tests.core.test_graphfile import DENSE, GOOD, OLD, link, node, unlinked, whole, without

IMAGE = node("c", "Conv2D", filters=4)
ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("empty", {"nodes": []}, "the graph has no nodes; begin with a DatasetInput"),
    ("no input", without(GOOD, "in"), "the graph needs a DatasetInput; it has none"),
    ("no layer", without(GOOD, "d"), "the graph needs at least one layer, such as Dense; it has none"),
    ("no output", without(GOOD, "out"), "the graph needs an Output; it has none"),
    ("no loss", without(GOOD, "loss"), "the graph needs a loss, such as CrossEntropyLoss; it has none"),
    (
        "an optimizer without its loss",
        unlinked(GOOD, "loss", "adam"),
        "node 'adam' (Adam): its pin 'loss' is not connected",
    ),
    (
        "no optimizer",
        without(GOOD, "adam"),
        "the graph needs an optimizer, such as Adam; it has none",
    ),
    (
        "two outputs",
        whole(DENSE, nodes=[node("o2", "Output")], links=[link("d", "o2")]),
        "the graph has 2 nodes for one output: node 'out' (Output), node 'o2' (Output)",
    ),
    (
        "two optimizers",
        whole(DENSE, nodes=[node("o2", "SGD")], links=[link("loss", "o2")]),
        "the graph has 2 nodes for one optimizer: node 'adam' (Adam), node 'o2' (SGD)",
    ),
    (
        "cycle",
        whole(node("a", "Add"), DENSE, links=[link("d", "a")]),
        "the graph has a cycle: 'a' → 'd' → 'a'; remove one of these links",
    ),
    (
        "self loop",
        whole(node("a", "Add"), DENSE, links=[link("a", "a")]),
        "the graph has a cycle: 'a' → 'a'; remove one of these links",
    ),
    (
        "dangling link",
        whole(DENSE, links=[link("dd", "d")]),
        "link from 'dd' to 'd': there is no node 'dd'; did you mean 'd'?",
    ),
    (
        "same id",
        whole(DENSE, nodes=[node("d", "Dense")]),
        "two nodes have the id 'd'; give each its own",
    ),
    ("unknown kind", whole(node("d", "Dens")), "node 'd': unknown type 'Dens'; did you mean 'Dense'?"),
    (
        "unknown parameter",
        whole(node("d", "Dense", unit=3)),
        "node 'd' (Dense): there is no parameter 'unit'; did you mean 'units'?",
    ),
    (
        "twice by two names",
        whole(node("d", "Dense", units=3, out_features=4)),
        "node 'd' (Dense): units is given twice, once as out_features",
    ),
    (
        "missing parameter",
        whole(node("d", "Reshape"), DENSE | {"id": "e"}),
        "node 'd' (Reshape): the parameter 'shape' is missing",
    ),
    (
        "unconnected",
        whole(DENSE, nodes=[node("e", "Dense")]),
        "node 'e' (Dense): its pin 'input' is not connected",
    ),
    (
        "not from the data",
        whole(
            DENSE,
            node("a", "Add"),
            nodes=[node("p", "Parameter", shape=[3]), node("r", "ReLU")],
            links=[link("p", "r"), link("r", "a")],
        ),
        "node 'r' (ReLU): nothing comes to it from a DatasetInput; connect it or remove it",
    ),
    (
        "leads nowhere",
        whole(DENSE, nodes=[node("e", "ReLU")], links=[link("d", "e")]),
        "node 'e' (ReLU): leads neither to the Output nor to the loss; connect it or remove it",
    ),
    (
        "one input of a merge",
        whole(DENSE, node("a", "Add")),
        "node 'a' (Add): expected at least 2 inputs, 1 connected",
    ),
    (
        "pin taken",
        whole(node("a", "Dense"), DENSE, links=[link("in", "d")]),
        "node 'd' (Dense): its pin 'input' is connected twice, to node 'a' (Dense) and node 'in' (DatasetInput);"
        " join them with Add or Concatenate",
    ),
    (
        "unknown input pin",
        whole(DENSE, links=[link("d", "loss", 0, "labels")]),
        "node 'loss' (CrossEntropyLoss): there is no input pin 'labels'; it has: prediction, target",
    ),
    (
        "unknown output pin",
        whole(DENSE, links=[link("d", "loss", 3)]),
        "node 'd' (Dense): there is no output pin 3; it has: output",
    ),
    (
        "merge pin taken",
        whole(DENSE, node("a", "Add"), links=[link("d", "a", 0, 1), link("d", "a", 0, 1)]),
        "node 'a' (Add): two links come to one input pin",
    ),
    (
        "wrong pin",
        whole(DENSE, nodes=[node("o2", "StepLR")], links=[link("d", "o2")]),
        "node 'o2' (StepLR): its pin 'optimizer' takes an optimizer, node 'd' (Dense) gives a tensor",
    ),
    (
        "labels into a layer",
        whole(DENSE, nodes=[node("e", "Dense")], links=[link("in", "e", "labels")]),
        "node 'e' (Dense): its pin 'input' takes a tensor, node 'in' (DatasetInput) gives labels",
    ),
    (
        "labels that are not there",
        unlinked(whole(node("l", "DataLoader"), DENSE, links=[link("l", "loss", "labels")]), "in", "loss"),
        "node 'l' (DataLoader): gives no labels, as none come in; connect the labels pin of the DatasetInput to it",
    ),
    (
        "lambda",
        whole(node("f", "Lambda", function="x * 2"), DENSE),
        "node 'f' (Lambda): not permitted: a graph file holds data, never code; build it from other nodes",
    ),
    (
        "another output than the loss sees",
        {
            **unlinked(whole(node("e", "Dense"), DENSE), "out", "loss"),
            "links": [*unlinked(whole(node("e", "Dense"), DENSE), "out", "loss")["links"], link("e", "loss", 0, 0)],
        },
        "node 'out' (Output): gives what node 'd' (Dense) computes, the loss sees node 'e' (Dense); connect both to"
        " the same node",
    ),
    (
        "a target that is computed",
        {
            **unlinked(whole(DENSE), "in", "loss"),
            "links": [*unlinked(whole(DENSE), "in", "loss")["links"], link("d", "loss", 0, 1)],
        },
        "node 'loss' (CrossEntropyLoss): its target is what node 'd' (Dense) computes; expected labels, or the input",
    ),
    (
        "probabilities into BCELoss",
        whole(DENSE, loss=node("loss", "BCELoss")),
        "node 'loss' (BCELoss): expected Sigmoid right before it; for a raw prediction use BCEWithLogits",
    ),
    (
        "unknown subgraph",
        whole(node("s", "Subgraph", graph="blok"), DENSE, subgraphs={"block": {"nodes": []}}),
        "node 's' (Subgraph): there is no subgraph 'blok'; did you mean 'block'?",
    ),
    (
        "subgraph in itself",
        whole(node("s", "Subgraph", graph="b"), DENSE, subgraphs={"b": {"nodes": [node("t", "Subgraph", graph="b")]}}),
        "node 's.t' (Subgraph): subgraphs hold each other without end: b → b",
    ),
    (
        "too many into a subgraph",
        whole(node("s", "Subgraph", graph="b"), DENSE, subgraphs={"b": {"nodes": [node("o", "Output")]}}),
        "node 's' (Subgraph): more links come in than it has Input nodes",
    ),
    (
        "input outside",
        whole(node("i", "Input"), DENSE),
        "node 'i' (Input): stands only in a subgraph; use DatasetInput",
    ),
    (
        "shares with another kind",
        whole(DENSE, {**node("e", "Dense"), "shares": "in"}),
        "node 'e' (Dense): shares: expected the id of another Dense with parameters of its own, got 'in'",
    ),
    (
        "units 0",
        whole(node("d", "Dense", units=0)),
        "node 'd' (Dense): units: expected an integer of at least 1, got 0",
    ),
    (
        "units negative",
        whole(node("d", "Dense", units=-3)),
        "node 'd' (Dense): units: expected an integer of at least 1, got -3",
    ),
    (
        "units true",
        whole(node("d", "Dense", units=True)),
        "node 'd' (Dense): units: expected an integer of at least 1, got True",
    ),
    (
        "units 1.5",
        whole(node("d", "Dense", units=1.5)),
        "node 'd' (Dense): units: expected an integer of at least 1, got 1.5",
    ),
    (
        "units 2^31",
        whole(node("d", "Dense", units=2**31)),
        "node 'd' (Dense): units: expected an integer from 1 to 2147483647, got 2147483648",
    ),
    (
        "stride 0",
        whole(node("c", "Conv2D", stride=0), shape=(1, 8, 8)),
        "node 'c' (Conv2D): stride: expected an integer of at least 1, got 0",
    ),
    (
        "dilation 0",
        whole(node("c", "Conv2D", dilation=[1, 0]), shape=(1, 8, 8)),
        "node 'c' (Conv2D): dilation: expected an integer of at least 1, got [1, 0]",
    ),
    (
        "padding",
        whole(node("c", "Conv2D", padding="some"), shape=(1, 8, 8)),
        'node \'c\' (Conv2D): padding: expected "same", "valid" or an integer or a list of 2, one for each axis,'
        " got 'some'",
    ),
    (
        "dropout 1",
        whole(node("p", "Dropout", p=1.0), DENSE),
        "node 'p' (Dropout): p: expected a number from 0.0 to below 1.0, got 1.0",
    ),
    (
        "dropout -1",
        whole(node("p", "Dropout", p=-1), DENSE),
        "node 'p' (Dropout): p: expected a number from 0.0 to below 1.0, got -1",
    ),
    (
        "dropout nan",
        whole(node("p", "Dropout", p=float("nan")), DENSE),
        "node 'p' (Dropout): p: expected a number from 0.0 to below 1.0, got nan",
    ),
    (
        "dampening with nesterov",
        whole(DENSE) | {"nodes": [*without(GOOD, "adam")["nodes"], node("adam", "SGD", nesterov=True, dampening=0.5)]},
        "node 'adam' (SGD): nesterov goes without dampening, got 0.5",
    ),
    (
        "learning rate 0",
        whole(DENSE) | {"nodes": [*without(GOOD, "adam")["nodes"], node("adam", "Adam", lr=0)]},
        "node 'adam' (Adam): lr: expected a number above 0, at most 100, got 0",
    ),
    (
        "learning rate 1e300",
        whole(DENSE) | {"nodes": [*without(GOOD, "adam")["nodes"], node("adam", "Adam", lr=1e300)]},
        "node 'adam' (Adam): lr: expected a number above 0, at most 100, got 1e+300",
    ),
    (
        "beta 1",
        whole(DENSE) | {"nodes": [*without(GOOD, "adam")["nodes"], node("adam", "Adam", beta1=1.0)]},
        "node 'adam' (Adam): beta1: expected a number from 0.0 to below 1.0, got 1.0",
    ),
    (
        "an attribute bomb",
        whole(node("d", "Dense", units="9" * 1_000_000)),
        "node 'd' (Dense): units: expected an integer of at least 1, got '" + "9" * 56 + "...",
    ),
    ("epochs 0", whole(DENSE, job={"epochs": 0}), "graph: job.epochs: expected a whole number >= 1"),
    ("unknown field", {**GOOD, "nodes": [{**DENSE, "pins": 3}]}, "graph: nodes[0]: unknown field pins"),
    ("no id", {"nodes": [{"type": "Dense"}]}, "graph: nodes[0]: there is no field id"),
    ("no nodes", {"links": []}, 'graph: expected a graph file, an object with "version", "nodes" and "links"'),
    ("a newer version", {**GOOD, "version": "3.0"}, 'graph: version: expected "2.0" or "1.0", got \'3.0\''),
    ("too many nodes", {"nodes": [DENSE] * 10_001}, "graph: expected at most 10,000 nodes, got 10,001"),
    (
        "too many links",
        {**GOOD, "links": [link("a", "b")] * 50_001},
        "graph: expected at most 50,000 links, got 50,001",
    ),
    (
        "unknown number",
        {**OLD, "nodes": [{**OLD["nodes"][0], "type": 85}]},
        "graph: node 0: expected a kind 0..84, got 85",
    ),
    (
        "huber of another width",
        whole(DENSE, loss=node("loss", "HuberLoss", delta=2.0)),
        "node 'loss' (HuberLoss): delta = 2.0: only 1 is trained",
    ),
    (
        "without shuffling",
        whole(node("l", "DataLoader", shuffle=False), DENSE),
        "node 'l' (DataLoader): expected shuffle = true and drop_last = false: every row is used, in a drawn order",
    ),
    (
        "shares of data",
        whole(node("s", "DataSplit", train=0.9), DENSE),
        "node 's' (DataSplit): train, validation and test: expected a sum of 1, got 1.1",
    ),
    (
        "two splits",
        whole(node("s", "DataSplit"), node("t", "DataSplit"), DENSE),
        "the graph has 2 DataSplit nodes: node 's' (DataSplit), node 't' (DataSplit); keep one",
    ),
    (
        "a wave that does not end with the run",
        whole(DENSE, nodes=[node("c", "CosineAnnealing", T_max=50)], links=[link("adam", "c")]),
        "node 'c' (CosineAnnealing): T_max = 50: the wave ends with the run, after 10 epochs; leave T_max out, or make"
        " them equal",
    ),
    (
        "two schedules",
        whole(
            DENSE, nodes=[node("a", "StepLR"), node("b", "ExponentialLR")], links=[link("adam", "a"), link("a", "b")]
        ),
        "expected one schedule, and a WarmupScheduler before it, got node 'a' (StepLR), node 'b' (ExponentialLR)",
    ),
    (
        "L2 under AdamW",
        unlinked(
            whole(DENSE, nodes=[node("l", "L2Regularization")], links=[link("loss", "l"), link("l", "adam")]),
            "loss",
            "adam",
        )
        | {"nodes": [*without(GOOD, "adam")["nodes"], node("adam", "AdamW"), node("l", "L2Regularization")]},
        "node 'l' (L2Regularization): AdamW shrinks weights by itself; set its weight_decay instead",
    ),
    (
        "nothing to train",
        whole(node("p", "MaxPool2D"), node("f", "Flatten"), shape=(1, 4, 4)),
        "the graph has nothing to train: none of its layers has parameters",
    ),
    (
        "no shape",
        {**GOOD, "nodes": [node("in", "DatasetInput"), *GOOD["nodes"][1:]]},
        "node 'in' (DatasetInput): its shape is missing; add the parameter shape, or give that of a sample",
    ),
]
SCALED = unlinked(
    whole(node("n", "Normalize"), node("d", "Dense", units=4), loss=node("loss", "MSELoss")), "in", "loss"
)
SCALED["links"].append(link("n", "loss", 0, "target"))
ERRORS += [
    (
        "a target that was scaled",
        SCALED,
        "node 'loss' (MSELoss): its target is what node 'n' (Normalize) computes; expected labels, or the input",
    ),
    (
        "layers without end",
        whole(node("r", "LSTM", num_layers=2**31 - 1), DENSE, shape=(5, 4)),
        "node 'r' (LSTM): num_layers: expected an integer from 1 to 1000, got 2147483647",
    ),
    (
        "parts without end",
        whole(node("s", "Split", num_splits=2**30), DENSE, shape=(2**30,)),
        "node 's' (Split): num_splits: expected an integer from 1 to 10000, got 1073741824",
    ),
]
SHAPE_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    (
        "an image is wanted",
        whole(IMAGE, DENSE),
        "node 'c' (Conv2D): expected (channels, height, width) per sample, got [4]; put a Reshape before it"
        " ('in' gives [4] per sample)",
    ),
    (
        "a merge of two shapes",
        whole(DENSE, node("a", "Add"), links=[link("in", "a")]),
        "node 'a' (Add): expected inputs of one shape (a size of 1 stretches) ('d' gives [3], 'in' gives [4]"
        " per sample)",
    ),
    (
        "a concatenation",
        whole(
            node("c", "Conv2D", filters=2),
            node("j", "Concatenate"),
            node("f", "Flatten"),
            DENSE,
            shape=(1, 4, 4),
            nodes=[node("p", "MaxPool2D")],
            links=[link("in", "p"), link("p", "j")],
        ),
        "node 'j' (Concatenate): expected inputs that differ in axis 1 only ('c' gives [2, 4, 4], 'p' gives [1, 2, 2]"
        " per sample)",
    ),
    (
        "a reshape",
        whole(node("r", "Reshape", shape=[3, -1]), node("f", "Flatten"), DENSE),
        "node 'r' (Reshape): the 4 elements of (4,) do not fill (3, -1) ('in' gives [4] per sample)",
    ),
    (
        "a kernel larger than its image",
        whole(node("c", "Conv2D", kernel_size=5, padding="valid"), node("f", "Flatten"), DENSE, shape=(1, 4, 4)),
        "node 'c' (Conv2D): conv2d: a window of 5 does not fit into 4 with padding 0 (image (batch, 1, 4, 4)); use a"
        " smaller kernel or more padding ('in' gives [1, 4, 4] per sample)",
    ),
    (
        "another size than d_model",
        whole(node("t", "TransformerEncoder"), node("f", "Flatten"), DENSE, shape=(5, 8)),
        "node 't' (TransformerEncoder): d_model = 512: expected a sequence of 512 features, got [5, 8] ('in' gives"
        " [5, 8] per sample)",
    ),
    (
        "a sequence without end",
        whole(node("r", "GRU", hidden_size=2), DENSE, shape=(10**8, 1)),
        "node 'r' (GRU): expected at most 10000 steps, got [100000000, 1]; take shorter pieces ('in' gives"
        " [100000000, 1] per sample)",
    ),
    (
        "windows without end",
        whole(node("p", "AdaptiveAvgPool", output_size=2**30), node("f", "Flatten"), DENSE, shape=(1, 4)),
        "node 'p' (AdaptiveAvgPool): output_size = [1073741824]: too many windows over [4] ('in' gives [1, 4] per"
        " sample)",
    ),
    (
        "a first state of another size",
        whole(
            node("e", "GRU", hidden_size=3, return_sequences=True),
            node("r", "GRU", hidden_size=2),
            DENSE,
            shape=(5, 4),
            links=[link("e", "r", "state", "state")],
        ),
        "node 'r' (GRU): expected a first state [2], got [3] ('e' gives [5, 3], 'e' gives [3] per sample)",
    ),
    (
        "a split",
        whole(node("s", "Split", num_splits=3), DENSE),
        "node 's' (Split): num_splits = 3 does not divide axis 1 of [batch, 4] ('in' gives [4] per sample)",
    ),
    (
        "the batch as an axis",
        whole(node("s", "Softmax", dim=0), DENSE),
        "node 's' (Softmax): dim = 0: expected an axis 1..1 (0 is the batch) of [batch, 4] ('in' gives [4] per sample)",
    ),
    (
        "classes that are no row",
        whole(node("d", "Dense"), shape=(5, 4)),
        "node 'loss' (CrossEntropyLoss): expected a prediction (classes) per sample, got [5, 128]",
    ),
    (
        "too long for its positions",
        whole(node("p", "PositionalEncoding", max_len=4), node("f", "Flatten"), DENSE, shape=(5, 4)),
        "node 'p' (PositionalEncoding): max_len = 4: expected at most so many steps, got [5, 4] ('in' gives [5, 4] per"
        " sample)",
    ),
    (
        "a tensor of 10^12 elements",
        whole(*(node(f"d{n}", "Dense", units=2**30) for n in range(2)), DENSE),
        "node 'd1' (Dense): param: a result of shape (1073741824, 1073741824) is beyond 1099511627776 elements or rank"
        " 16 ('d0' gives [1073741824] per sample)",
    ),
]


@pytest.mark.parametrize(("file", "said"), [row[1:] for row in ERRORS], ids=[row[0] for row in ERRORS])
def test_what_is_wrong_is_said_in_a_line(file: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        cx.load_graph(file)
    assert str(caught.value) == said


@pytest.mark.parametrize(("file", "said"), [row[1:] for row in SHAPE_ERRORS], ids=[row[0] for row in SHAPE_ERRORS])
def test_what_does_not_fit_names_the_node_and_the_shapes(file: dict[str, Any], said: str) -> None:
    with pytest.raises(ShapeError) as caught:
        cx.load_graph(file)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON: Expecting value in line 1, column 1"),
        (b"{", "not valid JSON: Expecting property name enclosed in double quotes in line 1, column 2"),
        (b"\xff\xfe", "expected JSON in UTF-8, byte 0 is not"),
        (b"[" * 100_000, "expected a graph file, this is nested too deeply"),
        (b'{"nodes": [], "nodes": []}', "the key 'nodes' is there twice in one object; keep one of the two"),
        (b'{"nodes": [{"id": "a", "type": "Dense", "params": {"units": NaN}}]}', "expected finite numbers, got NaN"),
        (b"[1]", 'expected a graph file, an object with "version", "nodes" and "links"'),
    ],
)
def test_what_is_no_graph_file_is_said_with_its_name(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.cyxgraph"
    path.write_bytes(raw)
    with pytest.raises(SpecError) as caught:
        cx.load_graph(path)
    assert str(caught.value) == f"{path}: {said}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no\.cyxgraph: cannot be read \(No such file or directory\)"):
        cx.load_graph(tmp_path / "no.cyxgraph")
    with pytest.raises(SpecError, match="expected a graph file, this is a folder"):
        cx.load_graph(tmp_path)


def test_a_sample_of_other_data_does_not_fit() -> None:
    with pytest.raises(ShapeError) as caught:
        cx.load_graph(GOOD, input_shape=[5])
    assert str(caught.value) == "node 'in' (DatasetInput): its shape is [4], one sample of the data is [5]"


def test_no_error_is_a_traceback() -> None:
    """Every file of the lists above, damaged in one more way."""
    for _, file, _ in ERRORS + SHAPE_ERRORS:
        for key in ("nodes", "links"):
            for broken in ([], None, 3, [None], [[]], file.get(key, [])[:2]):
                try:
                    cx.load_graph({**file, key: broken})
                except CyxError as error:
                    assert "\n" not in str(error)
