"""A job's training: a graph, rows and a TrainingSpec, stepped through by plans.

Same graph, rows and spec give the same bits: data order is a permutation keyed by (seed, epoch), dropout and transforms
of the rows are keyed by (seed, step), initial weights by (seed, parameter).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from cyxcore import checkpoint as checkpoints
from cyxcore import device as devices
from cyxcore import drawing, precision, schedules
from cyxcore.augmenting import augmented, mixed_values
from cyxcore.checkpoint import Checkpoint, Identity, Position
from cyxcore.data.augment import Augment
from cyxcore.errors import CheckpointError, DataError, DivergedError, ShapeError
from cyxcore.evaluation import Evaluator, checked_inputs, checked_targets
from cyxcore.graph import Graph, Param
from cyxcore.learning import Facts, Stepped
from cyxcore.objectives import objective, training_step
from cyxcore.plan import Plan
from cyxcore.spec import TrainingSpec, check_metrics

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory


class Rows(Protocol):
    """What a dataset must have; cyxcore.data.LoadedData is one. Validation rows may be none.

    One that also has `augment`, a cyxcore.data.augment.Augment, has the rows of each step changed so.
    """

    @property
    def x_train(self) -> Any: ...
    @property
    def y_train(self) -> Any: ...
    @property
    def x_val(self) -> Any: ...
    @property
    def y_val(self) -> Any: ...


def initial_weights(graph: Graph, seed: int, device: str | None = None) -> dict[str, Array]:
    """First values of every parameter and buffer, by the graph's init rules. Every device draws the same."""
    return {
        param.name: drawing.initial(param.init, param.shape, param.dtype, seed, index, device)
        for index, param in enumerate(graph.all_parameters)
    }


def _statistic(kind: str, values: Array) -> Array:
    """One statistic over axis 0 in float64. Scales that would be 0 (a constant column) are 1."""
    if kind.endswith("mean"):
        return np.asarray(values.mean(0))
    if kind.endswith("min"):
        return np.asarray(values.min(0))
    scale = np.asarray(values.std(0) if kind.endswith("std") else values.max(0) - values.min(0))
    return np.where(scale > 0.0, scale, 1.0)


def data_statistic(param: Param, x: Array, y: Array) -> Array | None:
    """The value of a buffer that is filled from the training rows; None for any other parameter."""
    source, _, _ = param.init["kind"].partition("_")
    if source not in ("input", "target"):
        return None
    rows = np.asarray(x if source == "input" else y, dtype=np.float64)
    sample = rows.shape[1:]
    padded = (1,) * (len(sample) - len(param.shape)) + tuple(param.shape)
    if len(padded) != len(sample) or any(p not in (1, s) for p, s in zip(padded, sample, strict=True)):
        raise ShapeError(f"{param.name}: expected a shape that {source} rows {sample} share, got {param.shape}")
    kept = [axis + 1 for axis, (p, s) in enumerate(zip(padded, sample, strict=True)) if p == s and s != 1]
    gone = [axis for axis in range(1, rows.ndim) if axis not in kept]
    values = rows.transpose(0, *gone, *kept).reshape(-1, math.prod(param.shape))
    return _statistic(param.init["kind"], values).reshape(param.shape).astype(param.dtype)


class GraphLearner:
    """A graph that learns from rows by a TrainingSpec: what a job is. Everything runs in plans.

    Raises ShapeError or DataError at once when graph, rows and loss do not fit. weights: values to start from
    (fine-tuning); then no statistics are taken from the rows. resume: a checkpoint to go on from, whose state is taken
    over. Raises CheckpointError when its graph, rows, spec or numerics are not these.
    """

    def __init__(
        self,
        graph: Graph,
        dataset: Rows,
        spec: TrainingSpec,
        weights: Mapping[str, Array] | None = None,
        device: str | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        self.graph, self.spec, self.device = graph, spec, device
        precision.chosen(spec.numerics, device or devices.default_device())  # raises where it has none such
        self.x = checked_inputs(graph, dataset.x_train)
        self.y = checked_targets(graph, spec.loss, dataset.y_train, len(self.x))
        if not len(self.x):
            raise DataError("training: expected at least one training row, got none")
        held_out = dataset.x_val is not None and len(dataset.x_val) > 0
        self.x_val = checked_inputs(graph, dataset.x_val) if held_out else self.x[:0]
        self.y_val = checked_targets(graph, spec.loss, dataset.y_val, len(self.x_val)) if held_out else self.y[:0]
        check_metrics(spec, len(self.x_val) > 0)
        self._augment: Augment | None = getattr(dataset, "augment", None)
        # Classes cannot be mixed, but the loss of both can; numbers are mixed themselves.
        self._two_targets = self._augment is not None and self._augment.mixes and spec.loss == "cross_entropy"
        self._learning_rate = spec.optimizer.learning_rate
        self.in_step = False  # whether an update is being written, or was no whole or usable one
        self._plans: dict[int, Plan] = {}
        self._resumed = resume is not None
        self._batch_rows = _batch_rows(len(self.x), spec.batch_size)
        self.batches: int | None = len(self._batch_rows)
        self.weights: dict[str, Array] = {}
        if resume is None:
            first = self._first_state(weights)
        else:
            checkpoints.check_identity(resume.identity, self.identity())
            first = dict(resume.state)  # its arrays are checked by _plan
            if missing := [param.name for param in graph.all_parameters if param.name not in first]:
                raise CheckpointError(f"checkpoint: state: missing {missing}")
        self._state = {name: devices.put(array, device) for name, array in first.items()}
        self._evaluator = Evaluator(graph, self._state, device, numerics=spec.numerics)
        self._plan(self._batch_rows[0])  # here, so that a graph that cannot be trained is refused at once

    def _first_state(self, weights: Mapping[str, Array] | None) -> dict[str, Array]:
        if weights is not None:
            return _own(self.graph, weights)
        state: dict[str, Array] = initial_weights(self.graph, self.spec.seed, self.device)
        for param in self.graph.buffers:
            value = data_statistic(param, self.x, self.y)
            if value is not None:
                state[param.name] = value
        return state

    # steps --------------------------------------------------------------------------------------

    def _plan(self, rows: int) -> Plan:
        """The compiled step for a number of rows; all share the parameters and the optimiser's state."""
        known = self._plans.get(rows)
        if known is None:
            step = training_step(self.graph, rows, self.spec, self._two_targets)
            if self._resumed:
                checkpoints.check_arrays(self._state, step.all_parameters, "state")
            for param in step.all_parameters:
                if param.name not in self._state:  # of the optimiser: filled with one number
                    first = drawing.initial(param.init, param.shape, param.dtype, self.spec.seed, 0)
                    self._state[param.name] = devices.put(first, self.device)
            known = self._plans[rows] = Plan(step, self._state, self.device, numerics=self.spec.numerics)
            known.key[0] = self.spec.seed
        return known

    def step(self, rows: Array, step: int) -> tuple[float, float | None]:
        """One update on the given rows: (mean loss, share of right answers)."""
        plan = self._plan(len(rows))
        name = self.graph.nodes[self.graph.input].attrs["name"]
        if self._augment is None:
            np.take(self.x, rows, axis=0, out=plan.inputs[name], mode="clip")
            np.take(self.y, rows, axis=0, out=plan.inputs["target"], mode="clip")
        else:
            changed = augmented(self._augment, self.x[rows], self.y[rows], self.spec.seed, step)
            plan.inputs[name][...] = changed.x
            if self._two_targets:
                plan.inputs["second"][...], plan.inputs["share"][...] = changed.second, changed.share
            plan.inputs["target"][...] = changed.y if self._two_targets else mixed_values(changed)
        plan.inputs["learning_rate"][...] = self._learning_rate
        plan.inputs["step"][...] = step
        plan.key[1] = step
        self.in_step = True
        plan.run()
        loss = float(plan.outputs[0])
        if not math.isfinite(loss):
            raise DivergedError(
                f"training: the loss became {loss} at step {step}; try a learning_rate below "
                f"{self._learning_rate}, "
                "or normalised inputs"
            )
        self.in_step = False
        return loss, float(plan.outputs[1]) if objective(self.spec.loss).right else None

    def steps(self, at: Position, epochs: int, judged: Sequence[float]) -> Iterator[Stepped]:
        """See Learner. The order of the rows is a permutation keyed by (seed, epoch)."""
        order = drawing.permutation(self.spec.seed, at.epoch, len(self.x))
        start, step, total = self.rows_until(at.batch), at.step, epochs * len(self._batch_rows)
        for count in self._batch_rows[at.batch :]:
            share = schedules.factor(self.spec.schedule, step, total, len(self._batch_rows), judged)
            self._learning_rate = self.spec.optimizer.learning_rate * share
            loss, right = self.step(order[start : start + count], step + 1)
            start, step = start + count, step + 1
            yield Stepped(count, loss, right, self._learning_rate)

    def rows_until(self, batch: int) -> int:
        return sum(self._batch_rows[:batch])

    # judging ------------------------------------------------------------------------------------

    def scores(self) -> dict[str, float]:
        return {}

    def held_out(self) -> dict[str, float]:
        if not len(self.x_val):
            return {}
        return self._evaluator.evaluate(self.x_val, self.y_val, self.spec.loss, self.spec.metrics)

    def end_epoch(self, rows: int, judged: float) -> None:
        pass

    def delivered(self) -> dict[str, Array]:
        return {param.name: np.array(devices.host(self._state[param.name])) for param in self.graph.all_parameters}

    def facts(self) -> Facts:
        return Facts(len(self.x), len(self.x_val), self.graph.parameter_count, self.identity().numerics)

    # checkpoints --------------------------------------------------------------------------------

    def identity(self) -> Identity:
        return self._identity

    @functools.cached_property
    def _identity(self) -> Identity:
        device = self.device or devices.default_device()
        rows = checkpoints.describe_rows([self.x, self.y, self.x_val, self.y_val])
        return Identity(
            graph_sha256=self.graph.sha256,
            training=msgspec.json.encode(self.spec, order="sorted").decode(),
            rows=rows if self._augment is None else f"{rows}, augmented by {self._augment.described()}",
            numerics=precision.record_of(device, self.spec.numerics),
        )

    def state(self) -> dict[str, Array]:
        return self._state

    def notes(self) -> None:
        return None

    def restore(self, found: Checkpoint) -> None:
        """The state was taken over when this was made; what would be delivered is checked here."""
        wanted = self.graph.all_parameters if found.history else []
        checkpoints.check_arrays(found.delivered, wanted, "delivered")


def _batch_rows(rows: int, batch_size: int) -> list[int]:
    """How many rows each batch of an epoch has; the last may have fewer."""
    size = min(batch_size, rows)
    whole, rest = divmod(rows, size)
    return [size] * whole + [rest] * (rest > 0)


def _own(graph: Graph, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Copies of the given weights, checked. Raises ShapeError naming the parameter."""
    own = {}
    for param in graph.all_parameters:
        given = weights.get(param.name)
        if given is None or np.shape(given) != param.shape:
            got = "nothing" if given is None else str(np.shape(given))
            raise ShapeError(f"weights: {param.name}: expected {param.shape}, got {got}")
        own[param.name] = np.array(given, dtype=param.dtype, order="C")
    return own
