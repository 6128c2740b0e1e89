"""The training loop: a graph, rows and a TrainingSpec in; metrics out, one value at a time.

    trainer = Trainer(graph, dataset, spec)
    for metrics in trainer.run():      # BatchMetrics, EpochMetrics, at the end TrainingSummary
        ...
    trainer.weights                    # of the delivered epoch

Same graph, rows and spec give the same bits: data order is a permutation keyed by (seed, epoch),
dropout is keyed by (seed, step), initial weights by (seed, parameter). Interrupted or not:

    trainer.checkpoint(path)           # whenever run() has just yielded
    Trainer(graph, dataset, spec, resume=path).run()    # yields what is left, to the bit
"""

import functools
import math
import os
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from cyxcore import checkpoint as checkpoints
from cyxcore import device as devices
from cyxcore import drawing, schedules
from cyxcore.checkpoint import Checkpoint, Identity, Position
from cyxcore.errors import DataError, DivergedError, ShapeError
from cyxcore.evaluation import Evaluator, checked_inputs, checked_targets
from cyxcore.graph import Graph, Param
from cyxcore.objectives import objective, training_step
from cyxcore.plan import Plan
from cyxcore.spec import BatchMetrics, EpochMetrics, TrainingSpec, TrainingSummary

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory


class Rows(Protocol):
    """What a dataset must have; cyxcore.data.LoadedData is one. Validation rows may be none."""

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


class Trainer:
    """One training run. Raises ShapeError or DataError at once when graph, rows and loss do not fit.

    weights: values to start from (fine-tuning); then no statistics are taken from the rows.
    resume: the file of a checkpoint to go on from. Raises CheckpointError when it is damaged, or when its graph,
    rows, spec or numerics are not these. `epoch`, `batch` and `step` tell how far the run is.
    """

    def __init__(
        self,
        graph: Graph,
        dataset: Rows,
        spec: TrainingSpec,
        weights: Mapping[str, Array] | None = None,
        device: str | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> None:
        self.graph, self.spec, self.device = graph, spec, device
        self.x = checked_inputs(graph, dataset.x_train)
        self.y = checked_targets(graph, spec.loss, dataset.y_train, len(self.x))
        if not len(self.x):
            raise DataError("training: expected at least one training row, got none")
        held_out = dataset.x_val is not None and len(dataset.x_val) > 0
        self.x_val = checked_inputs(graph, dataset.x_val) if held_out else self.x[:0]
        self.y_val = checked_targets(graph, spec.loss, dataset.y_val, len(self.x_val)) if held_out else self.y[:0]
        self.history: list[EpochMetrics] = []
        self.weights: dict[str, Array] = {}
        self.delivered_epoch = 0
        self.epoch, self.batch, self.step = 1, 0, 0  # the epoch under way, its batches done, steps in all
        self._best_epoch = 0
        self._losses: list[float] = []  # of each batch of the epoch under way, sums over its rows
        self._right: list[float] = []
        self._learning_rate = spec.optimizer.learning_rate
        self._plans: dict[int, Plan] = {}
        self._resumed = resume is not None
        state = self._first_state(weights) if resume is None else self._restored(checkpoints.load(resume))
        self.state = {name: devices.put(array, device) for name, array in state.items()}
        self._evaluator = Evaluator(graph, self.state, device)
        self._plan(self._batch_rows()[0])  # here, so that a graph that cannot be trained is refused at once

    def _first_state(self, weights: Mapping[str, Array] | None) -> dict[str, Array]:
        if weights is not None:
            return _own(self.graph, weights)
        state: dict[str, Array] = initial_weights(self.graph, self.spec.seed, self.device)
        for param in self.graph.buffers:
            value = data_statistic(param, self.x, self.y)
            if value is not None:
                state[param.name] = value
        return state

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.spec.epochs * len(self._batch_rows())

    @functools.cached_property
    def _identity(self) -> Identity:
        """What a checkpoint must have in common with this run."""
        device = self.device or devices.default_device()
        return Identity(
            graph_sha256=self.graph.sha256,
            training=msgspec.json.encode(self.spec, order="sorted").decode(),
            rows=checkpoints.describe_rows([self.x, self.y, self.x_val, self.y_val]),
            numerics=devices.NUMERICS[device],
        )

    def checkpoint(self, path: str | os.PathLike[str], synced: bool = True) -> None:
        """Write all that the rest of the run depends on; call it when run() has just yielded.

        The same run at the same point gives the same bytes on every machine, resumed before or not. (The last
        batch of an epoch and the EpochMetrics after it are two points of one step.) Timings are left out: in a
        resumed run, epochs that ended before have epoch_time_ms and samples_per_s 0.0, and the epoch that was
        under way counts from the resume. synced: see safetensors.save. Raises OSError when it cannot be written.
        """
        now = Checkpoint(
            identity=self._identity,
            position=Position(epoch=self.epoch, batch=self.batch, step=self.step, best_epoch=self._best_epoch),
            state={name: devices.host(array) for name, array in self.state.items()},
            delivered=self.weights,
            losses=self._losses,
            right=self._right,
            history=self.history,
        )
        checkpoints.save(path, now, synced)

    def _restored(self, found: Checkpoint) -> dict[str, Array]:
        """Take a checkpoint's position over. Returns its state, whose arrays _plan checks."""
        checkpoints.check_identity(found.identity, self._identity)
        position, batches = found.position, len(self._batch_rows())
        checkpoints.check_position(position, batches, self.spec.epochs)
        checkpoints.check_arrays(found.delivered, self.graph.all_parameters if found.history else [], "delivered")
        self.epoch, self.batch, self.step = position.epoch, position.batch, position.step
        self._best_epoch, self._losses, self._right = position.best_epoch, found.losses, found.right
        self.history = [
            msgspec.structs.replace(metrics, epochs=self.spec.epochs, step=metrics.epoch * batches)
            for metrics in found.history
        ]
        self.delivered_epoch = len(self.history) if self.spec.keep == "last" else self._best_epoch
        self.weights = dict(found.delivered)
        return dict(found.state)

    def _batch_rows(self) -> list[int]:
        """How many rows each batch of an epoch has; the last may have fewer."""
        size = min(self.spec.batch_size, len(self.x))
        whole, rest = divmod(len(self.x), size)
        return [size] * whole + [rest] * (rest > 0)

    def _plan(self, rows: int) -> Plan:
        """The compiled step for a number of rows; all share the parameters and the optimiser's state."""
        known = self._plans.get(rows)
        if known is None:
            step = training_step(self.graph, rows, self.spec)
            if self._resumed:
                checkpoints.check_arrays(self.state, step.all_parameters, "state")
            for param in step.all_parameters:
                if param.name not in self.state:  # of the optimiser: filled with one number
                    first = drawing.initial(param.init, param.shape, param.dtype, self.spec.seed, 0)
                    self.state[param.name] = devices.put(first, self.device)
            known = self._plans[rows] = Plan(step, self.state, self.device)
            known.key[0] = self.spec.seed
        return known

    def _step(self, rows: Array, step: int) -> tuple[float, float | None]:
        """One update on the given rows: (mean loss, share of right answers)."""
        plan = self._plan(len(rows))
        name = self.graph.nodes[self.graph.input].attrs["name"]
        np.take(self.x, rows, axis=0, out=plan.inputs[name], mode="clip")
        np.take(self.y, rows, axis=0, out=plan.inputs["target"], mode="clip")
        plan.inputs["learning_rate"][...] = self._learning_rate
        plan.inputs["step"][...] = step
        plan.key[1] = step
        plan.run()
        loss = float(plan.outputs[0])
        if not math.isfinite(loss):
            raise DivergedError(
                f"training: the loss became {loss} at step {step}; try a learning_rate below "
                f"{self._learning_rate}, "
                "or normalised inputs"
            )
        return loss, float(plan.outputs[1]) if objective(self.spec.loss).right else None

    def run(self) -> Iterator[BatchMetrics | EpochMetrics | TrainingSummary]:
        """Train. Yields after every batch, after every epoch, and once at the end.

        total_time_ms of the summary counts from this call: in a resumed run, from the resume.
        """
        started = time.perf_counter()
        while self.epoch <= self.spec.epochs:
            metrics = yield from self._epoch()
            self._close_epoch(metrics)
            yield metrics
        yield self._summary((time.perf_counter() - started) * 1000.0)

    def _close_epoch(self, metrics: EpochMetrics) -> None:
        best = checkpoints.best_so_far(self.history, self._best_epoch)
        better = self._best_epoch == 0 or checkpoints.judged(metrics) < best
        if better:
            self._best_epoch = self.epoch
        if better or self.spec.keep == "last":
            self.weights = {
                param.name: np.array(devices.host(self.state[param.name])) for param in self.graph.all_parameters
            }
            self.delivered_epoch = self.epoch
        self.history.append(metrics)
        self.epoch, self.batch, self._losses, self._right = self.epoch + 1, 0, [], []

    def _epoch(self) -> Generator[BatchMetrics, None, EpochMetrics]:
        """What is left of the epoch under way."""
        began = time.perf_counter()
        order = drawing.permutation(self.spec.seed, self.epoch, len(self.x))
        batch_rows = self._batch_rows()
        start = skipped = sum(batch_rows[: self.batch])
        judged, steps = [checkpoints.judged(metrics) for metrics in self.history], self.spec.epochs * len(batch_rows)
        for count in batch_rows[self.batch :]:
            before = time.perf_counter()
            share = schedules.factor(self.spec.schedule, self.step, steps, len(batch_rows), judged)
            self._learning_rate = self.spec.optimizer.learning_rate * share
            loss, accuracy = self._step(order[start : start + count], self.step + 1)
            seconds = time.perf_counter() - before
            start += count
            self.batch, self.step = self.batch + 1, self.step + 1
            self._losses.append(loss * count)
            if accuracy is not None:
                self._right.append(accuracy * count)
            yield BatchMetrics(
                epoch=self.epoch,
                epochs=self.spec.epochs,
                batch=self.batch,
                batches=len(batch_rows),
                step=self.step,
                batch_loss=loss,
                batch_accuracy=accuracy,
                batch_time_ms=seconds * 1000.0,
                learning_rate=self._learning_rate,
                samples_per_s=count / max(seconds, 1e-9),
            )
        held = self._evaluator.evaluate(self.x_val, self.y_val, self.spec.loss) if len(self.x_val) else {}
        seconds = time.perf_counter() - began
        return EpochMetrics(
            epoch=self.epoch,
            epochs=self.spec.epochs,
            step=self.step,
            epoch_loss=math.fsum(self._losses) / len(self.x),
            epoch_accuracy=math.fsum(self._right) / len(self.x) if self._right else None,
            validation_loss=held.get("loss"),
            validation_accuracy=held.get("accuracy"),
            validation_r2=held.get("r2"),
            epoch_time_ms=seconds * 1000.0,
            samples_per_s=(len(self.x) - skipped) / max(seconds, 1e-9),
        )

    def _summary(self, total_ms: float) -> TrainingSummary:
        last, delivered = self.history[-1], self.history[self.delivered_epoch - 1]
        return TrainingSummary(
            total_time_ms=total_ms,
            steps=last.step,
            final_loss=last.epoch_loss,
            final_accuracy=last.epoch_accuracy,
            best_epoch=self._best_epoch,
            delivered_epoch=self.delivered_epoch,
            validation_loss=delivered.validation_loss,
            validation_accuracy=delivered.validation_accuracy,
            validation_r2=delivered.validation_r2,
            train_rows=len(self.x),
            validation_rows=len(self.x_val),
            parameters=self.graph.parameter_count,
            numerics=self._identity.numerics,
        )


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
