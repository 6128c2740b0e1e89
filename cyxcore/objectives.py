"""The losses and update rules of a training step, as graph nodes: one table each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cyxcore import functional as F
from cyxcore.errors import ShapeError, SpecError
from cyxcore.grad import backward
from cyxcore.graph import Graph
from cyxcore.infer import Shape
from cyxcore.spec import OptimizerSpec
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


def _squares(output: Any, target: Any) -> Any:
    return _mean_per_row((output - target) ** 2)


def _binary_rows(output: Any, target: Any) -> Any:
    return _mean_per_row(F.softplus(output) - output * target)


def _right_side(output: Any, target: Any) -> Any:
    return _mean_per_row(((output > 0) == (target > 0.5)).astype("float32"))


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": Objective("int64", _cross_entropy_rows, _right_class),
    "mse": Objective("float32", _squares, None),
    "bce": Objective("float32", _binary_rows, _right_side),
}


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


def _slot(kind: str, p: Symbol) -> Symbol:
    """State an update rule keeps per parameter; starts at zero."""
    name = f"optimizer.{kind}.{p.builder.nodes[p.node].attrs['name']}"
    return p.builder.param(name, p.shape, {"kind": "zeros"}, trainable=False)


def _sgd(p: Symbol, g: Symbol, lr: Symbol, step: Symbol, spec: OptimizerSpec) -> dict[Symbol, Symbol]:
    decay = spec.weight_decay
    if spec.momentum == 0.0:
        return {p: apply("sgd_update", p, g, lr, weight_decay=decay)}
    old = _slot("momentum", p)
    new = apply("momentum", old, g, p, momentum=spec.momentum, weight_decay=decay)
    if spec.nesterov:
        return {
            old: new,
            p: apply("nesterov_update", p, g, new, lr, momentum=spec.momentum, weight_decay=decay),
        }
    return {old: new, p: apply("axpy_update", p, new, lr)}


def _adam(decoupled: bool) -> Callable[..., dict[Symbol, Symbol]]:
    def update(p: Symbol, g: Symbol, lr: Symbol, step: Symbol, spec: OptimizerSpec) -> dict[Symbol, Symbol]:
        beta1, beta2 = spec.betas
        decay = 0.0 if decoupled else spec.weight_decay
        m, v = _slot("adam_m", p), _slot("adam_v", p)
        new_m = apply("adam_m", m, g, p, beta=beta1, weight_decay=decay)
        new_v = apply("adam_v", v, g, p, beta=beta2, weight_decay=decay)
        own = spec.weight_decay if decoupled else 0.0
        new = apply(
            "adam_update",
            p,
            new_m,
            new_v,
            lr,
            step,
            beta1=beta1,
            beta2=beta2,
            eps=spec.eps,
            decoupled_weight_decay=own,
        )
        return {m: new_m, v: new_v, p: new}

    return update


UPDATES: Mapping[str, Callable[..., dict[Symbol, Symbol]]] = {
    "sgd": _sgd,
    "adam": _adam(False),
    "adamw": _adam(True),
}


def training_step(model: Graph, batch_size: int, loss: str, optimizer: OptimizerSpec) -> Graph:
    """Forward, loss, backward and update as one graph.

    Inputs: the model's own, "target", "learning_rate" and "step" (both float32 scalars, the step
    1-based). Outputs: the mean loss, then (for classifiers) the share of right answers.
    """
    if optimizer.nesterov and optimizer.momentum == 0.0:
        raise SpecError("optimizer: nesterov needs a momentum above 0")
    goal, builder = objective(loss), Builder(batch_size)
    source = model.nodes[model.input].attrs
    x = builder.input(source["name"], (batch_size, *model.input_shape), source["dtype"])
    lr, step = builder.input("learning_rate", ()), builder.input("step", ())
    (output,) = builder.embed(model, {source["name"]: x}, training=True)
    target = builder.input("target", target_shape(loss, output.shape[1:], batch_size), goal.target_dtype)
    mean_loss = goal.rows(output, target).mean()
    trained = [
        Symbol(builder, place)
        for place, node in enumerate(builder.nodes)
        if node.op == "param" and node.attrs["trainable"]
    ]
    for p, g in zip(trained, backward(builder, mean_loss, trained), strict=True):
        for old, new in UPDATES[optimizer.name](p, g, lr, step, optimizer).items():
            builder.update(old, new)
    return builder.graph(mean_loss, *([goal.right(output, target).mean()] if goal.right else []))


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
    """A graph at one batch size in inference mode: by_mode nodes resolved, updates gone."""
    builder = Builder()
    inputs = {
        node.attrs["name"]: builder.input(node.attrs["name"], node.attrs["shape"], node.attrs["dtype"])
        for node in graph.nodes
        if node.op == "input"
    }
    return builder.graph(*builder.embed(graph, inputs, training=False))
