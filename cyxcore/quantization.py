"""Post-training quantisation: a trained model with int8 or float16 weights, and what that costs in accuracy.

int8: each weight matrix is q * scale with q in -127..127 and one scale per output channel (symmetric), and what is
multiplied with it is quantised while the model runs, one scale per row (per sample of a convolution): dynamic
quantisation, so nothing has to be calibrated beforehand. float16: weights are rounded to half precision.

Files hold the small numbers: a quarter, or a half, of the bytes. In memory they are float32 again, and the integer
products are made by the float32 kernels: they are exact up to about a thousand terms (127² K < 2²⁴), and rounded as
float32 sums are beyond. So a quantised model is smaller to send and store; it is not faster here.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cyxcore.errors import SpecError
from cyxcore.graph import Graph, Node, at_batch
from cyxcore.model import Model
from cyxcore.symbols import Builder, Symbol, batch_free

Array = np.ndarray[Any, Any]

LARGEST = 127
SHARES = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8)  # of the largest weight that a scale may reach: the best by squared error
KINDS = {"int8": "int8", "fp16": "float16", "float16": "float16"}


class Report(NamedTuple):
    """What a quantisation did. Errors are those of the outputs on the calibration rows, against the model before.

    quantised, kept: names of the weights that became small, and of those that stayed float32, with why. weight_error:
    of each, the root mean square error over that of the weight. signal_to_noise_db: 10 log10 of the mean square of the
    outputs over that of their error. agreement: the share of rows with the same largest output. before, after: what
    evaluate says with labels.
    """

    kind: str
    bytes_before: int
    bytes_after: int
    quantised: list[str]
    kept: dict[str, str]
    weight_error: dict[str, float]
    rows: int = 0
    largest_error: float | None = None
    mean_error: float | None = None
    signal_to_noise_db: float | None = None
    agreement: float | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.kind}: {self.bytes_before:,} → {self.bytes_after:,} bytes of weights "
            f"({self.bytes_before / max(self.bytes_after, 1):.1f} times smaller), {len(self.quantised)} weights"
        ]
        lines += [f"kept in float32: {name} ({why})" for name, why in self.kept.items()]
        if self.weight_error:
            worst = max(self.weight_error, key=lambda name: self.weight_error[name])
            lines.append(f"largest error of a weight: {self.weight_error[worst]:.2%} ({worst})")
        if self.rows:
            lines.append(
                f"on {self.rows} rows: outputs differ by {self.mean_error:.2e} on average, {self.largest_error:.2e} at "
                f"most, {self.signal_to_noise_db:.1f} dB above the error; {self.agreement:.2%} choose the same output"
            )
        for when, numbers in (("before", self.before), ("after", self.after)):
            if numbers:
                lines.append(f"{when}: " + ", ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
        return "\n".join(lines)


def quantize(
    model: Model, kind: str = "int8", calibration: Any = None, labels: Any = None, keep: Collection[str] = ()
) -> tuple[Model, Report]:
    """(the quantised model, what that cost). The model given stays as it is.

    calibration: rows (N, *input_shape) for the report. labels: their targets, for loss and accuracy before and after.
    keep: names of weights to leave in float32. Raises SpecError for an unknown kind or name, or labels without rows.
    """
    if kind not in KINDS:
        raise SpecError(f"quantize: expected a kind of {', '.join(KINDS)}, got {str(kind)[:40]!r}")
    names = {param.name for param in model.graph.all_parameters}
    if set(keep) - names:
        raise SpecError(f"quantize: no weight is called {sorted(set(keep) - names)[0]!r}")
    if labels is not None and calibration is None:
        raise SpecError("quantize: labels need the rows they belong to: pass calibration=")
    if model.facts.stored:
        raise SpecError("quantize: the model is quantised already; take the one it was made of")
    make = _int8 if KINDS[kind] == "int8" else _float16
    graph, weights, kept = make(model.graph, model.weights, frozenset(keep))
    stored = {name: KINDS[kind] for name in sorted(names) if weights.get(name) is not model.weights[name]}
    stored = {name: dtype for name, dtype in stored.items() if name in weights}
    facts = msgspec.structs.replace(model.facts, stored=stored)
    small = Model(graph, weights, facts)
    report = Report(
        kind,
        sum(array.nbytes for array in model.weights.values()),
        sum(np.dtype(stored.get(name, array.dtype.name)).itemsize * array.size for name, array in weights.items()),
        sorted(stored),
        kept,
        {name: _error(model.weights[name], _restored(weights, name)) for name in sorted(stored)},
    )
    return small, report if calibration is None else _measured(report, model, small, calibration, labels)


def _restored(weights: Mapping[str, Array], name: str) -> Array:
    scale = weights.get(name + SCALE)
    return weights[name] if scale is None else weights[name] * scale


def _error(before: Array, after: Array) -> float:
    """The root mean square error over the root mean square."""
    size = float(np.sqrt(np.mean(np.square(before, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(before.astype(np.float64) - after)))) / size if size else 0.0


def _measured(report: Report, before: Model, after: Model, x: Any, labels: Any) -> Report:
    one, two = before.predict(x).astype(np.float64), after.predict(x).astype(np.float64)
    if not len(one):
        raise SpecError("quantize: expected at least one row of calibration")
    error = np.abs(one - two)
    noise = float(np.mean(error**2))
    flat = one.reshape(len(one), -1), two.reshape(len(two), -1)
    return report._replace(
        rows=len(one),
        largest_error=float(error.max()),
        mean_error=float(error.mean()),
        signal_to_noise_db=float(10 * np.log10(float(np.mean(one**2)) / noise)) if noise else float("inf"),
        agreement=float((flat[0].argmax(1) == flat[1].argmax(1)).mean()),
        before=None if labels is None else before.evaluate(x, labels),
        after=None if labels is None else after.evaluate(x, labels),
    )


# float16 ------------------------------------------------------------------------------------------


def _float16(
    graph: Graph, weights: Mapping[str, Array], keep: frozenset[str]
) -> tuple[Graph, dict[str, Array], dict[str, str]]:
    """Weights rounded to half precision, where it reaches them."""
    result, kept = dict(weights), {}
    for param in graph.all_parameters:
        array = weights[param.name]
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if param.name in keep:
            kept[param.name] = "asked for"
        elif not np.isfinite(half).all():
            kept[param.name] = "beyond ±65504"
        elif param.trainable:
            result[param.name] = half.astype(array.dtype)
    return graph, result, kept


# int8 ---------------------------------------------------------------------------------------------

SCALE = ".scale"


def _users(graph: Graph) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place in sorted(graph.reachable(training=False)):
        for source in graph.nodes[place].inputs:
            found.setdefault(source, []).append(place)
    return found


def _refuses(graph: Graph, users: Mapping[int, list[int]], weight: int) -> list[str]:
    """The operations on a weight that cannot use one whose first axis has the scales: none if it may become small."""
    found = []
    for place in users.get(weight, []):
        node = graph.nodes[place]
        if node.op == "slice" and _of_first_axis(graph, node):
            found += _refuses(graph, users, place)
        elif not _takes(node, weight):
            found.append(node.op)
    return found


def _of_first_axis(graph: Graph, node: Node) -> bool:
    """Whether a slice leaves all axes but the first whole."""
    shape, attrs = graph.infer(1).shapes[node.inputs[0]], node.attrs
    parts = zip(attrs["starts"], attrs["stops"], attrs["steps"], shape, strict=True)
    return all((start, stop, step) == (0, size, 1) for start, stop, step, size in list(parts)[1:])


def _takes(node: Node, weight: int) -> bool:
    if node.op == "matmul":
        turned = node.attrs["transpose_b"] and not node.attrs["transpose_a"]
        return node.inputs[1] == weight != node.inputs[0] and turned
    if node.op == "conv2d":
        return node.inputs[1] == weight != node.inputs[0]
    return node.op == "take" and node.inputs[0] == weight != node.inputs[1] and node.attrs["axis"] == 0


def _int8(
    graph: Graph, weights: Mapping[str, Array], keep: frozenset[str]
) -> tuple[Graph, dict[str, Array], dict[str, str]]:
    users, kept, chosen = _users(graph), {}, {}
    taken = {param.name for param in graph.all_parameters}
    for param in graph.all_parameters:
        refusing = _refuses(graph, users, param.node)
        array = weights[param.name]
        if param.name in keep:
            kept[param.name] = "asked for"
        elif array.ndim < 2 or param.node not in users:
            continue  # biases and statistics: nothing is won by them
        elif refusing:
            kept[param.name] = f"used by {', '.join(sorted(set(refusing)))}"
        elif not np.isfinite(array).all() or param.name + SCALE in taken or param.dtype != "float32":
            kept[param.name] = "not finite, not float32, or its name is taken"
        else:
            chosen[param.node] = param.name
    result = dict(weights)
    for name in chosen.values():
        whole, scale = _rounded(weights[name])
        result[name], result[name + SCALE] = whole, scale

    def at(batch_size: int) -> Graph:
        builder = Builder(batch_size)
        made: dict[int, Symbol] = {}
        scales: dict[int, Symbol] = {}  # of the small weights, and of slices of them
        for place in sorted(graph.reachable(training=False) | {graph.input}):
            node = graph.nodes[place]
            builder.layer = node.layer
            inputs = [made[source] for source in node.inputs if source in made]  # of by_mode, one
            if node.op == "by_mode":
                made[place] = made[node.inputs[1]]
            elif place in chosen:
                name = chosen[place]
                made[place] = builder.param(name, node.attrs["shape"], {"kind": "zeros"}, trainable=False)
                scales[place] = builder.param(
                    name + SCALE, result[name + SCALE].shape, {"kind": "ones"}, trainable=False
                )
            elif node.op == "slice" and node.inputs[0] in scales:
                made[place] = builder.copy("slice", inputs, node.attrs)
                first = slice(node.attrs["starts"][0], node.attrs["stops"][0], node.attrs["steps"][0])
                scales[place] = scales[node.inputs[0]][first]
            elif any(source in scales for source in node.inputs):
                scale = next(scales[source] for source in node.inputs if source in scales)
                made[place] = _product(builder, node, inputs, scale, batch_size)
            else:
                made[place] = builder.copy(node.op, inputs, at_batch(node.attrs, batch_size))
        return builder.graph(made[graph.outputs[0]])

    small = batch_free(at)
    held = {param.name for param in small.all_parameters}
    return small, {name: array for name, array in result.items() if name in held}, kept


def _rounded(weight: Array) -> tuple[Array, Array]:
    """(whole numbers of the weight's shape, a scale for each of its first axis, shaped to broadcast)."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(1, keepdims=True)
    best, scale = np.full((len(rows), 1), np.inf), np.ones((len(rows), 1))
    for share in SHARES:
        tried = np.where(largest > 0, largest * share / LARGEST, 1.0)
        error = ((np.clip(np.rint(rows / tried), -LARGEST, LARGEST) * tried - rows) ** 2).sum(1, keepdims=True)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
    scale32 = scale.astype(np.float32)
    whole = np.clip(np.rint(rows / scale32), -LARGEST, LARGEST).astype(np.float32)
    return whole.reshape(weight.shape), scale32.reshape(-1, *(1,) * (weight.ndim - 1))


def _product(builder: Builder, node: Node, inputs: list[Symbol], scale: Symbol, batch_size: int) -> Symbol:
    """The operation on whole numbers, and its result in the units of the weights and of what met them."""
    attrs = at_batch(node.attrs, batch_size)
    if node.op == "take":  # rows of a table: each with its scale
        table, indices = inputs
        return builder.copy("take", [table, indices], attrs) * builder.copy("take", [scale, indices], attrs)
    x, weight = inputs
    axes = (x.ndim - 1,) if node.op == "matmul" else (1, 2, 3)
    largest = x.abs().max(axes, keepdims=True)
    unit = builder.apply("where", [largest > 0.0, largest * (1.0 / LARGEST), builder.lift(1.0)], {})
    whole = (x / unit + 0.5).floor()
    result = builder.copy(node.op, [whole, weight], attrs)
    per_output = scale.reshape(-1) if node.op == "matmul" else scale.reshape(1, -1, 1, 1)
    return result * unit * per_output
