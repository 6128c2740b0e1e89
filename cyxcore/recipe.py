"""What a graph file means: the graph of its model, how to train it, and how its data is read.

    recipe = cx.load_graph("model.cyxgraph")
    recipe.graph, recipe.training, recipe.data

Decided here is whatever needs shapes or numbers; the file's structure is cyxcore/wiring.py's.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError, GraphError, ShapeError, SpecError
from cyxcore.graph import Graph
from cyxcore.graphfile import GraphFile, JobSection, read
from cyxcore.layertable import LAYERS, Scope
from cyxcore.spec import DataSpec, OptimizerSpec, ScheduleSpec, TrainingSpec
from cyxcore.symbols import MOST_NODES, Builder, Symbol, batch_free
from cyxcore.wiring import Placed, Wire, wire

MAX_ELEMENTS = 2**40  # of one sample


class Settings(Struct, kw_only=True, frozen=True):
    """What a graph file says beside the model.

    data_path: where it says its data is ("" if it does not), relative to the file. data: how to read it.
    """

    training: TrainingSpec
    data: DataSpec
    data_path: str = ""
    job: JobSection = JobSection()
    name: str = ""


class Recipe(Settings, kw_only=True, frozen=True):
    """A graph file, compiled."""

    graph: Graph


Source = GraphFile | Mapping[str, Any] | str | bytes | os.PathLike[str]


def load_graph(
    source: Source,
    input_shape: Sequence[int] | None = None,
    normalize: Literal["standard", "minmax", "none"] = "none",
) -> Recipe:
    """A graph file, compiled: source is its path, its JSON (bytes), an object already decoded, or a GraphFile.

    input_shape: of one sample of the data; without it the DatasetInput must say its own. normalize: scales whole
    samples, by statistics of the training rows, before any node sees them, and what a regression gives back again.
    Raises SpecError, or ShapeError with the node and the shapes that do not fit.
    """
    return _named(source, lambda file: _compiled(file, input_shape, normalize))


def read_settings(source: Source) -> Settings:
    """What a graph file says of training and data, for who knows the shape of a sample only afterwards."""
    return _named(source, lambda file: _settings(file, wire(file)))


T = TypeVar("T")


def _named(source: Source, work: Callable[[GraphFile], T]) -> T:
    """The work on a file, whose errors begin with its path."""
    where = f"{source}: " if isinstance(source, (str, os.PathLike)) else ""
    try:
        return work(read(source))
    except CyxError as error:
        text = str(error)
        raise type(error)(text if text.startswith(where) else where + text) from None


def _settings(file: GraphFile, placed: list[Placed]) -> Settings:
    loss = _loss(placed)
    _, target = _ends(loss, {node.id: node for node in placed})
    training = _training(placed, loss, file.job)
    path, fields = _data_options(placed)
    return Settings(
        training=training,
        data=DataSpec(validation=_held_out(placed, training), target_is_input=target == "input", **fields),
        data_path=path,
        job=file.job,
        name=file.name,
    )


def _loss(placed: list[Placed]) -> Placed:
    return next(node for node in placed if node.row.group == "loss")


def _compiled(file: GraphFile, input_shape: Sequence[int] | None, normalize: str) -> Recipe:
    placed = wire(file)
    loss, settings = _loss(placed), _settings(file, placed)
    prediction, _ = _ends(loss, {node.id: node for node in placed})
    samples, sample = _samples([node for node in placed if node.kind == "DatasetInput"], input_shape)
    regression = settings.training.loss in REGRESSIONS

    def at(batch_size: int) -> Graph:
        return _built(placed, prediction, samples, sample, normalize, regression, Builder(batch_size, MOST_NODES))

    try:
        graph = batch_free(at)
    except GraphError as error:
        raise _in_time_distributed(error, placed) from None
    if graph.parameter_count == 0:
        raise SpecError("the graph has nothing to train: none of its layers has parameters")
    if settings.training.loss == "cross_entropy" and len(graph.output_shape) != 1:
        raise ShapeError(f"{loss}: expected a prediction (classes) per sample, got {list(graph.output_shape)}")
    if settings.data.target_is_input and math.prod(graph.output_shape) != math.prod(graph.input_shape):
        raise ShapeError(
            f"{loss}: its target is the input, {list(graph.input_shape)}, its prediction {list(graph.output_shape)}"
        )
    return Recipe(graph=graph, **{name: getattr(settings, name) for name in Settings.__struct_fields__})


def _in_time_distributed(error: GraphError, placed: list[Placed]) -> CyxError:
    """The error, or what it means for a layer on each step: a graph knows of N rows, not of N times T."""
    for node in placed:
        if node.kind == "TimeDistributed" and f"layer {node.id}: TimeDistributed: " in str(error):
            return SpecError(
                f"{node}: layer: {node.options['layer']} is tied to the number of rows and cannot stand on each step "
                "by itself; put it on the whole sequence, outside"
            )
    return error


# the model ----------------------------------------------------------------------------------------

# What a loss takes itself, from the raw prediction: such a node right before it is skipped.
SKIPPED = {
    "CrossEntropyLoss": ("Softmax", "LogSoftmax"),
    "NLLLoss": ("LogSoftmax",),
    "BCELoss": ("Sigmoid",),
}
MUST_SKIP = {"NLLLoss": "LogSoftmax", "BCELoss": "Sigmoid"}
THROUGH = ("Output", "Identity")
UNCHANGED = ("DataLoader", "DataSplit", "TensorReshape")  # nodes whose data is the input's


def _ends(loss: Placed, nodes: Mapping[str, Placed]) -> tuple[Wire, str]:
    """Where the model's output is taken, and what the loss compares it with. Raises SpecError."""

    def before(end: Wire) -> Wire:
        """Back over nodes that change nothing."""
        while nodes[end.node].kind in THROUGH:
            (inner,) = nodes[end.node].inputs
            assert inner is not None
            end = inner
        return end

    def raw(end: Wire) -> Wire:
        end = before(end)
        if nodes[end.node].kind not in SKIPPED.get(loss.kind, ()):
            return end
        if nodes[end.node].options.get("dim", -1) not in (-1, 1):
            return end
        (inner,) = nodes[end.node].inputs
        assert inner is not None
        return before(inner)

    given, compared = loss.inputs
    assert given is not None
    prediction = raw(given)
    needed = MUST_SKIP.get(loss.kind)
    if needed and prediction == before(given):
        instead = "CrossEntropyLoss" if loss.kind == "NLLLoss" else "BCEWithLogits"
        raise SpecError(f"{loss}: expected {needed} right before it; for a raw prediction use {instead}")
    output = next(node for node in nodes.values() if node.row.group == "output")
    (shown,) = output.inputs
    assert shown is not None
    if prediction not in (before(shown), raw(shown)):
        raise SpecError(
            f"{output}: gives what {nodes[before(shown).node]} computes, the loss sees"
            f" {nodes[prediction.node]}; connect both to the same node"
        )
    if compared is None or nodes[compared.node].carries[compared.pin] == "labels":
        return prediction, "labels"
    source = before(compared)
    while nodes[source.node].kind in UNCHANGED and source.pin == 0:
        source = before(nodes[source.node].inputs[0])  # type: ignore[arg-type]
    if nodes[source.node].kind != "DatasetInput":
        raise SpecError(f"{loss}: its target is what {nodes[source.node]} computes; expected labels, or the input")
    return prediction, "input"


def _samples(inputs: list[Placed], given: Sequence[int] | None) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
    """The shape that each DatasetInput gives, and that of a whole sample. Several share one flat sample, in order."""
    known = None if given is None else tuple(given)
    if len(inputs) == 1:
        shape = inputs[0].options["shape"] or known
        if shape is None:
            raise SpecError(f"{inputs[0]}: its shape is missing; add the parameter shape, or give that of a sample")
        whole = shape if known is None else known
        if math.prod(whole) != math.prod(shape):
            raise ShapeError(f"{inputs[0]}: its shape is {list(shape)}, one sample of the data is {list(whole)}")
        return {inputs[0].id: shape}, whole
    shapes: dict[str, tuple[int, ...]] = {}
    for node in inputs:
        if node.options["shape"] is None:
            raise SpecError(f"{node}: its shape is missing; one of several inputs needs it")
        shapes[node.id] = node.options["shape"]
    total = (sum(math.prod(shape) for shape in shapes.values()),)
    if known not in (None, total):
        raise ShapeError(
            f"its {len(inputs)} inputs take {total[0]} numbers of each sample together, one sample of the data is"
            f" {list(known or ())}"
        )
    return shapes, total


def _built(
    placed: list[Placed],
    prediction: Wire,
    samples: Mapping[str, tuple[int, ...]],
    sample: tuple[int, ...],
    normalize: str,
    regression: bool,
    builder: Builder,
) -> Graph:
    """The model at one batch size."""
    if math.prod(sample) > MAX_ELEMENTS:
        raise ShapeError(f"one sample of {list(sample)} is beyond {MAX_ELEMENTS} numbers")
    whole = builder.input("x", (builder.batch_size, *sample))
    if normalize != "none":
        builder.layer = "Normalize"
        whole = LAYERS["Normalize"].build(Scope(builder, "normalize."), whole, {"method": normalize})
    values: dict[str, tuple[Symbol | None, ...]] = {}
    start = 0
    for node in placed:
        builder.layer = f"{node.id}: {node.kind}"
        if node.kind == "DatasetInput":
            shape = samples[node.id]
            count = math.prod(shape)
            part = whole if len(samples) == 1 else whole[:, start : start + count]
            values[node.id] = (part.reshape(builder.batch_size, *shape), None)
            start += count
        elif node.row.group == "penalty":
            (penalty,) = _built_node(node, [values[one.node][one.pin] for one in node.inputs if one], builder)
            assert penalty is not None
            builder.penalise(penalty)
        elif node.row.build is not None and node.carries[0] == "a tensor":
            given = [None if one is None else values[one.node][one.pin] for one in node.inputs]
            values[node.id] = _built_node(node, given, builder)
        else:
            values[node.id] = (None,) * len(node.carries)
    result = values[prediction.node][prediction.pin]
    assert result is not None
    if normalize != "none" and regression:
        builder.layer = "Denormalize"
        result = LAYERS["Denormalize"].build(Scope(builder, "denormalize."), result, {})
    builder.layer = ""
    return builder.graph(result)


def _built_node(node: Placed, given: list[Symbol | None], builder: Builder) -> tuple[Symbol | None, ...]:
    assert node.row.build is not None
    tensors = given[:1] if node.row.group == "data" else given
    try:
        found = node.row.build(Scope(builder, node.prefix), tensors, node.options)
    except CyxError as error:
        raise _at_node(error, node, given, builder) from None
    results = found if isinstance(found, tuple) else (found,)
    return (*results, None) if node.row.group == "data" and len(node.carries) == 2 else results


def _at_node(error: CyxError, node: Placed, given: list[Symbol | None], builder: Builder) -> CyxError:
    """The error with the node's name and the shapes that came to it, without our own batch size."""
    text = str(error).removeprefix(f"layer {node.id}: {node.kind}: ")
    text = re.sub(r"^([A-Z]\w+): ", "", text)  # the layer's own name for itself
    text = re.sub(rf"\b{builder.batch_size}\b", "batch", text)
    came = [
        f"{one.node!r} gives {list(value.shape[1:])}"
        for one, value in zip(node.inputs, given, strict=True)
        if one is not None and value is not None
    ]
    return type(error)(f"{node}: {text}" + (f" ({', '.join(came)} per sample)" if came else ""))


# how to train -------------------------------------------------------------------------------------

LOSSES = {
    "MSELoss": "mse",
    "CrossEntropyLoss": "cross_entropy",
    "BCELoss": "bce",
    "BCEWithLogits": "bce",
    "L1Loss": "l1",
    "SmoothL1Loss": "huber",
    "HuberLoss": "huber",
    "NLLLoss": "cross_entropy",
}

REGRESSIONS = ("mse", "l1", "huber")


def _training(placed: list[Placed], loss: Placed, job: JobSection) -> TrainingSpec:
    options = {node.row.group: node for node in placed}
    for name in ("beta", "delta"):
        if loss.options.get(name, 1.0) != 1.0:
            raise SpecError(f"{loss}: {name} = {loss.options[name]}: only 1 is trained")
    loader = next((node for node in placed if node.kind == "DataLoader"), None)
    if loader and (not loader.options["shuffle"] or loader.options["drop_last"]):
        raise SpecError(f"{loader}: expected shuffle = true and drop_last = false: every row is used, in a drawn order")
    split = _only(placed, "DataSplit")
    return TrainingSpec(
        epochs=job.epochs,
        keep=job.keep,
        clip_norm=job.clip_norm,
        clip_value=job.clip_value,
        loss=LOSSES[loss.kind],  # type: ignore[arg-type]
        label_smoothing=loss.options.get("label_smoothing", 0.0),
        batch_size=loader.options["batch_size"] if loader else 32,
        seed=split.options["seed"] if split else 0,
        optimizer=_optimizer(options["optimizer"], [node for node in placed if node.row.group == "regularization"]),
        schedule=_schedule([node for node in placed if node.row.group == "schedule"], options["optimizer"], job),
    )


def _only(placed: list[Placed], kind: str) -> Placed | None:
    found = [node for node in placed if node.kind == kind]
    if len(found) > 1:
        raise SpecError(f"the graph has {len(found)} {kind} nodes: {', '.join(map(str, found[:3]))}; keep one")
    return found[0] if found else None


def _optimizer(node: Placed, penalties: list[Placed]) -> OptimizerSpec:
    fields = {name: value for name, value in node.options.items() if name in OptimizerSpec.__struct_fields__}
    if "beta1" in node.options:
        fields["betas"] = (node.options["beta1"], node.options["beta2"])
    spec = OptimizerSpec(name=node.kind.lower(), **fields)  # type: ignore[arg-type]
    if spec.nesterov and not spec.momentum:
        raise SpecError(f"{node}: nesterov goes with a momentum above 0")
    if spec.nesterov and spec.dampening:
        raise SpecError(f"{node}: nesterov goes without dampening, got {spec.dampening}")
    for penalty in penalties:
        share = {"L1Regularization": 1.0, "L2Regularization": 0.0}.get(penalty.kind)
        share = min(1.0, penalty.options["l1_ratio"]) if share is None else share
        strength = penalty.options["lambda"]
        if share < 1.0 and node.kind in ("AdamW", "Lion"):
            raise SpecError(f"{penalty}: {node.kind} shrinks weights by itself; set its weight_decay instead")
        l1, l2 = spec.l1 + strength * share, spec.weight_decay + strength * (1.0 - share)
        spec = msgspec.structs.replace(spec, l1=l1, weight_decay=l2)
    return spec


def _schedule(nodes: list[Placed], optimizer: Placed, job: JobSection) -> ScheduleSpec:
    warmups = [node for node in nodes if node.kind == "WarmupScheduler"]
    others = [node for node in nodes if node.kind != "WarmupScheduler"]
    if len(others) > 1 or len(warmups) > 1:
        raise SpecError(f"expected one schedule, and a WarmupScheduler before it, got {', '.join(map(str, nodes))}")
    fields: dict[str, Any] = {}
    if others:
        fields = SCHEDULES[others[0].kind](others[0], optimizer.options["learning_rate"], job.epochs)
    warmup_steps = warmups[0].options["warmup_steps"] if warmups else 0
    return ScheduleSpec(warmup_steps=warmup_steps, **fields)


def _cosine(node: Placed, rate: float, epochs: int) -> dict[str, Any]:
    if node.options["T_max"] not in (None, epochs):
        raise SpecError(
            f"{node}: T_max = {node.options['T_max']}: the wave ends with the run, after {epochs} epochs;"
            " leave T_max out, or make them equal"
        )
    if node.options["eta_min"] >= rate:
        raise SpecError(f"{node}: eta_min = {node.options['eta_min']}: expected less than the learning_rate, {rate}")
    return {"name": "cosine", "final": node.options["eta_min"] / rate}


SCHEDULES: dict[str, Callable[[Placed, float, int], dict[str, Any]]] = {
    "StepLR": lambda node, rate, epochs: {
        "name": "step",
        "period": node.options["step_size"],
        "factor": node.options["gamma"],
    },
    "ExponentialLR": lambda node, rate, epochs: {"name": "exponential", "factor": node.options["gamma"]},
    "ReduceOnPlateau": lambda node, rate, epochs: {
        "name": "plateau",
        "factor": node.options["factor"],
        "patience": node.options["patience"],
    },
    "CosineAnnealing": _cosine,
}


# data ---------------------------------------------------------------------------------------------


def _data_options(placed: list[Placed]) -> tuple[str, dict[str, Any]]:
    """The path of the data, and fields of DataSpec. Normalize is part of the graph, so the data is not scaled twice."""
    inputs = [node for node in placed if node.kind == "DatasetInput"]
    said = [node for node in inputs if node.options["path"]]
    if len({node.options["path"] for node in said}) > 1:
        raise SpecError(f"{', '.join(map(str, said[:3]))}: expected one path of data")
    first = said[0] if said else inputs[0]
    features = first.options["features"]
    return first.options["path"], {
        "target": first.options["target"],
        "features": None if features is None else list(features),
        "ignore": list(first.options["ignore"]),
        "task": first.options["task"],
        "normalize": "none",
    }


def _held_out(placed: list[Placed], training: TrainingSpec) -> float:
    """Validation and test rows together: a run holds out one share."""
    split = _only(placed, "DataSplit")
    if split is None:
        return 0.2
    shares = [split.options[name] for name in ("train", "validation", "test")]
    if abs(sum(shares) - 1.0) > 1e-6:
        raise SpecError(f"{split}: train, validation and test: expected a sum of 1, got {sum(shares):g}")
    if not split.options["stratified"] and training.loss == "cross_entropy":
        raise SpecError(f"{split}: expected stratified = true: each class gives its share to both sides")
    return round(1.0 - shares[0], 12)
