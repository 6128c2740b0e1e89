"""Running a finished model: predictions, and the numbers a delivered model is judged by.

`evaluate` is what training reports and what anyone computes after loading the file: the same plans,
the same batches, sums that do not depend on order (math.fsum), so the numbers are equal to the last digit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore import precision
from cyxcore.errors import DataError, GraphError, ShapeError
from cyxcore.graph import Graph
from cyxcore.metrics import named
from cyxcore.objectives import evaluation_step, objective, target_shape
from cyxcore.plan import Plan

Array = np.ndarray[Any, Any]

EVALUATION_BATCH = 256


def checked_inputs(graph: Graph, x: Any) -> Array:
    """Samples as a contiguous array of the model's input dtype. Raises ShapeError naming both shapes."""
    array = np.ascontiguousarray(x, dtype=graph.nodes[graph.input].attrs["dtype"])
    if array.ndim < 1 or array.shape[1:] != graph.input_shape:
        raise ShapeError(f"model: expected inputs (rows, {', '.join(map(str, graph.input_shape))}), got {array.shape}")
    return array


def checked_targets(graph: Graph, loss: str, y: Any, rows: int) -> Array:
    """Targets in the dtype and shape the loss takes: as many numbers for each row in another shape are seen in it.

    Raises ShapeError, or DataError for a label the model has no output for.
    """
    wanted = target_shape(loss, graph.output_shape, rows)
    array = np.asarray(y)
    if loss == "cross_entropy" and array.dtype.kind not in "iu":
        raise DataError(f"targets: cross_entropy expects integer class indices, got {array.dtype}")
    array = np.ascontiguousarray(array, dtype=objective(loss).target_dtype)
    if len(array) == rows and array.size == math.prod(wanted):
        array = array.reshape(wanted)
    if array.shape != wanted:
        raise ShapeError(f"targets: expected {wanted} for {rows} rows and loss {loss!r}, got {array.shape}")
    if loss == "cross_entropy" and array.size and not 0 <= array.min() <= array.max() < graph.output_shape[0]:
        row = int(np.flatnonzero((array < 0) | (array >= graph.output_shape[0]))[0])
        raise DataError(
            f"targets: the model has {graph.output_shape[0]} outputs, so labels must be "
            f"0..{graph.output_shape[0] - 1}; "
            f"row {row + 1} is {array[row]}; change the last layer's size or the labels"
        )
    return array


class Evaluator:
    """A model ready for inference on a device. Weights are read in place: change them, and results change. (A device
    with its own memory reads the copies made here, unless the weights are there already.)

    Plans are compiled once per batch size. Raises GraphError for missing weights.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        device: str | None = None,
        batch_size: int = EVALUATION_BATCH,
        numerics: str | None = None,
    ) -> None:
        self.graph, self.device, self.batch_size = graph, device, batch_size
        self.numerics = precision.chosen(numerics, device or devices.default_device())
        self.weights = {}
        for param in graph.all_parameters:
            if param.name not in weights:
                raise GraphError(
                    f"weights: parameter {param.name!r} is missing; got {', '.join(sorted(weights)) or 'none'}"
                )
            self.weights[param.name] = devices.put(weights[param.name], device)
        self._plans: dict[tuple[int, str | None], Plan] = {}

    def _plan(self, rows: int, loss: str | None) -> Plan:
        known = self._plans.get((rows, loss))
        if known is None:
            if len(self._plans) >= 8:  # full and partial batches of a few datasets; not one per size ever seen
                self._plans.pop(next(iter(self._plans)))
            known = Plan(evaluation_step(self.graph, rows, loss), self.weights, self.device, numerics=self.numerics)
            self._plans[rows, loss] = known
        return known

    def _batches(self, x: Array, y: Array | None, loss: str | None) -> Iterator[list[Array]]:
        """The outputs of each batch in row order; views that the next batch overwrites."""
        name = self.graph.nodes[self.graph.input].attrs["name"]
        for start in range(0, len(x), self.batch_size):
            rows = min(self.batch_size, len(x) - start)
            plan = self._plan(rows, loss)
            plan.inputs[name][...] = x[start : start + rows]
            if y is not None:
                plan.inputs["target"][...] = y[start : start + rows]
            plan.run()
            yield plan.outputs

    def predict(self, x: Any) -> Array:
        """The model's output for each row. x: (rows, *input_shape). Returns float32 (rows, *output_shape)."""
        array = checked_inputs(self.graph, x)
        parts = [outputs[0].copy() for outputs in self._batches(array, None, None)]
        return np.concatenate(parts) if parts else np.empty((0, *self.graph.output_shape), np.float32)

    def evaluate(self, x: Any, y: Any, loss: str, metrics: Sequence[str] = ()) -> dict[str, float]:
        """{"loss": mean per row} and "accuracy" for a classifier or "r2" (1 - SSE/SST) for a regression.

        metrics: names out of cyxcore.metrics.METRICS for more.
        """
        array = checked_inputs(self.graph, x)
        targets = checked_targets(self.graph, loss, y, len(array))
        if not len(array):
            raise DataError("evaluate: expected at least one row, got none")
        losses: list[float] = []
        right: list[float] = []
        judges = named(metrics)
        for number, outputs in enumerate(self._batches(array, targets, loss)):
            losses += outputs[1].tolist()
            for judge in judges.values():
                judge.update(outputs[0], targets[number * self.batch_size : (number + 1) * self.batch_size])
            if len(outputs) > 2:
                right += outputs[2].tolist()
        result = {"loss": math.fsum(losses) / len(array)}
        if right:
            result["accuracy"] = math.fsum(right) / len(array)
        else:
            result["r2"] = _r2(targets, result["loss"])
        return {**{name: float(judge.compute()) for name, judge in judges.items()}, **result}


def _r2(targets: Array, mean_square_error: float) -> float:
    """1 - MSE / variance of the targets, over all outputs together; 0 for constant targets."""
    columns = targets.reshape(len(targets), -1).astype(np.float64).T.tolist()
    squares = []
    for column in columns:
        mean = math.fsum(column) / len(column)
        squares += [(value - mean) ** 2 for value in column]
    variance = math.fsum(squares) / len(squares)
    return 1.0 - mean_square_error / variance if variance > 0.0 else 0.0


def evaluate(
    graph: Graph,
    weights: Mapping[str, Array],
    x: Any,
    y: Any,
    loss: str,
    batch_size: int = EVALUATION_BATCH,
    device: str | None = None,
    metrics: Sequence[str] = (),
) -> dict[str, float]:
    """loss and accuracy (or r2) of a model on rows it is given: see Evaluator.evaluate."""
    return Evaluator(graph, weights, device, batch_size).evaluate(x, y, loss, metrics)


def predict(graph: Graph, weights: Mapping[str, Array], x: Any, device: str | None = None) -> Array:
    """The model's output for each row: see Evaluator.predict."""
    return Evaluator(graph, weights, device).predict(x)
