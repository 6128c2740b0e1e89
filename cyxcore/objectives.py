"""The losses of a training step, and the whole step as a graph."""

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from cyxcore import functional as F
from cyxcore import updates
from cyxcore.errors import ShapeError, SpecError
from cyxcore.gradients import backward
from cyxcore.graph import Graph
from cyxcore.infer import Shape
from cyxcore.spec import TrainingSpec
from cyxcore.symbols import Builder, Symbol
from cyxcore.values import apply


class Objective(NamedTuple):
    """A loss per row, and how many of a row's answers are right (None where that means nothing)."""

    target_dtype: str
    rows: Callable[[Any, Any], Any]  # (output, target) -> (N,)
    right: Callable[[Any, Any], Any] | None  # (output, target) -> (N,) float32 in 0..1


def _cross_entropy_rows(output: Any, target: Any) -> Any:
    return apply("cross_entropy", output, target)


def _right_class(output: Any, target: Any) -> Any:
    return (output.argmax(1) == target).astype("float32")


def _mean_per_row(values: Any) -> Any:
    return values.reshape(values.shape[0], -1 if values.shape[0] else 1).mean(1)


def _distance(loss: Callable[[Any, Any, str], Any]) -> Callable[[Any, Any], Any]:
    return lambda output, target: _mean_per_row(loss(output, target, "none"))


def _binary_rows(output: Any, target: Any) -> Any:
    return _mean_per_row(F.softplus(output) - output * target)


def _right_side(output: Any, target: Any) -> Any:
    return _mean_per_row(((output > 0) == (target > 0.5)).astype("float32"))


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": Objective("int64", _cross_entropy_rows, _right_class),
    "mse": Objective("float32", _distance(F.mse_loss), None),
    "l1": Objective("float32", _distance(F.l1_loss), None),
    "huber": Objective("float32", _distance(F.huber_loss), None),
    "bce": Objective("float32", _binary_rows, _right_side),
}


def _smoothed_rows(output: Any, target: Any, share: float) -> Any:
    return F.cross_entropy(output, target, "none", label_smoothing=share)


def objective(loss: str) -> Objective:
    if loss not in OBJECTIVES:
        raise SpecError(f"loss: expected one of {', '.join(OBJECTIVES)}, got {loss!r}")
    return OBJECTIVES[loss]


def target_shape(loss: str, output: Shape, batch_size: int) -> Shape:
    """Shape of a batch of targets for a model whose output per sample is `output`. Raises ShapeError."""
    if loss != "cross_entropy":
        return (batch_size, *output)
    if len(output) != 1:
        raise ShapeError(f"cross_entropy: expected a model output (classes,) per sample, got {output}")
    return (batch_size,)


def _slots(p: Symbol) -> updates.Slot:
    """State of one parameter, as buffers that travel with the step."""
    name = p.builder.nodes[p.node].attrs["name"]

    def slot(kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Symbol:
        first = {"kind": "constant", "value": start} if start else {"kind": "zeros"}
        return p.builder.param(f"optimizer.{kind}.{name}", p.shape if shape is None else shape, first, trainable=False)

    return slot


def _clipped(gradients: list[Symbol], spec: TrainingSpec) -> list[Symbol]:
    """Gradients within clip_value, then scaled so that their 2-norm over all together is at most clip_norm."""
    if spec.clip_value is not None:
        limit = spec.clip_value
        gradients = [F.maximum(F.minimum(g, limit), -limit) for g in gradients]
    if spec.clip_norm is not None:
        scale = F.clip_scale([g.square().sum() for g in gradients], spec.clip_norm)
        gradients = [g * scale for g in gradients]
    return gradients


def training_step(model: Graph, batch_size: int, spec: TrainingSpec, mixed: bool = False) -> Graph:
    """Forward, loss, backward and update as one graph.

    The model's penalties are part of the loss. Inputs: the model's own, "target", "learning_rate" and "step" (both
    float32 scalars, the step 1-based). Outputs: the mean loss, then (for classifiers) the share of right answers.
    mixed: rows have two targets: "second" is the other, "share" (N,) float32 how much the first counts.
    """
    updates.check(spec.optimizer)
    if spec.label_smoothing and spec.loss != "cross_entropy":
        raise SpecError(f"training: label_smoothing goes with cross_entropy, the loss is {spec.loss}")
    loss, goal, builder = spec.loss, objective(spec.loss), Builder(batch_size)
    source = model.nodes[model.input].attrs
    x = builder.input(source["name"], (batch_size, *model.input_shape), source["dtype"])
    lr, step = builder.input("learning_rate", ()), builder.input("step", ())
    (output,) = builder.embed(model, {source["name"]: x}, training=True)
    target = builder.input("target", target_shape(loss, output.shape[1:], batch_size), goal.target_dtype)

    def judged(of: Callable[[Any, Any], Any]) -> Any:
        if not mixed:
            return of(output, target)
        return share * of(output, target) + (1.0 - share) * of(output, second)

    if mixed:
        second = builder.input("second", target_shape(loss, output.shape[1:], batch_size), goal.target_dtype)
        share = builder.input("share", (batch_size,))
    smoothing = spec.label_smoothing
    rows = judged((lambda output, target: _smoothed_rows(output, target, smoothing)) if smoothing else goal.rows)
    for place in builder.penalties:
        rows = rows + builder.at(place)
    builder.penalties.clear()  # now part of the loss
    mean_loss = rows.mean()
    trained = [
        Symbol(builder, place)
        for place, node in enumerate(builder.nodes)
        if node.op == "param" and node.attrs["trainable"]
    ]
    for p, g in zip(trained, _clipped(backward(builder, mean_loss, trained), spec), strict=True):
        for old, new in updates.next_values(p, g, _slots(p), lr, step, spec.optimizer).items():
            builder.update(old, new)
    return builder.graph(mean_loss, *([judged(goal.right).mean()] if goal.right else []))


def evaluation_step(model: Graph, batch_size: int, loss: str | None) -> Graph:
    """Inference as one graph. Outputs: the model's output, and with a loss its rows and the right answers."""
    builder = Builder(batch_size)
    source = model.nodes[model.input].attrs
    x = builder.input(source["name"], (batch_size, *model.input_shape), source["dtype"])
    (output,) = builder.embed(model, {source["name"]: x}, training=False)
    if loss is None:
        return builder.graph(output)
    goal = objective(loss)
    target = builder.input("target", target_shape(loss, output.shape[1:], batch_size), goal.target_dtype)
    rows = [goal.rows(output, target), *([goal.right(output, target)] if goal.right else [])]
    return builder.graph(output, *rows)


def evaluation_graph(graph: Graph) -> Graph:
    """A graph at one batch size in inference mode: by_mode nodes resolved, with the updates that it makes."""
    builder = Builder(travels=False)
    inputs = {
        node.attrs["name"]: builder.input(node.attrs["name"], node.attrs["shape"], node.attrs["dtype"])
        for node in graph.nodes
        if node.op == "input"
    }
    ends = [*graph.outputs, *chain.from_iterable(graph.updates)]
    whole = builder.embed(Graph(graph.nodes, ends), inputs, training=False)
    outputs, rest = whole[: len(graph.outputs)], iter(whole[len(graph.outputs) :])
    for target, value in zip(rest, rest, strict=True):
        builder.update(target, value)
    return builder.graph(*outputs)
