"""The training loop: one for a module of yours and for the graph of a job.

    trainer = cx.Trainer(model, cx.nn.CrossEntropyLoss(), cx.optim.AdamW(model.parameters()), metrics=["accuracy"])
    history = trainer.fit(x, y, epochs=10, validation=0.2)
    trainer.evaluate(x_test, y_test)

    trainer = cx.Trainer.of_job(graph, dataset, spec)
    for metrics in trainer.run():      # BatchMetrics, EpochMetrics, at the end TrainingSummary
        ...
    trainer.weights                    # of the delivered epoch

Interrupted or not, the bits are the same:

    trainer.checkpoint(path)           # whenever run() has just yielded, or a callback was told of a batch or an epoch
    Trainer.of_job(graph, dataset, spec, resume=path).run()    # yields what is left
    trainer.fit(x, y, epochs=10, resume=path)                  # of a trainer made as the first one was
"""

import math
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Literal

import msgspec
import numpy as np

from cyxcore import batches, precision
from cyxcore import checkpoint as checkpoints
from cyxcore import device as devices
from cyxcore.callbacks import Callback, Mode, Monitor
from cyxcore.checkpoint import Checkpoint, Position
from cyxcore.data.split import split
from cyxcore.eager import Tensor
from cyxcore.errors import CheckpointError, CyxError, DataError, SpecError
from cyxcore.graph import Graph
from cyxcore.graphlearner import GraphLearner, Rows
from cyxcore.history import History
from cyxcore.learning import Learner
from cyxcore.modulelearner import ModuleLearner, Options
from cyxcore.nn.module import Module
from cyxcore.optim import Optimizer
from cyxcore.progress import Progress
from cyxcore.spec import UNSET, BatchMetrics, EpochMetrics, TrainingSpec, TrainingSummary

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory
Keep = Literal["best", "last"]

FIELD_OF = {"loss": "validation_loss", "accuracy": "validation_accuracy", "r2": "validation_r2"}
INTERRUPTED = "stopped by Ctrl-C"


class Trainer:
    """Trains a module with a loss and an optimiser.

    loss: a function of (output, target) that gives a scalar, such as a module of cx.nn, or one of the names
        cross_entropy, mse, l1, huber, bce.
    metrics: names out of cx.metrics.METRICS, cx.metrics objects, or a mapping of them; of the training batches as they
        are learned from, and of the held-out rows.
    scheduler: its step() is called after each epoch, or with scheduler_per="step" after each step of the optimiser.
    accumulate: batches to one such step, whose gradient is that of the mean over all their rows.
    clip_norm, clip_value: see cx.optim.clip_grad_norm_ and clip_grad_value_.
    ema: decay of averaged weights; held-out rows are judged with them, and the model has them after a fit.
    keep: after a fit the model has the weights of the "last" epoch, or of the "best" by monitor and mode (see
        cx.callbacks.Monitor).
    seed: of the order of rows.
    compiled: False runs each operation at once, for models that look at values; the results are the same but where
        dropout draws.
    numerics: of its products on the cpu, see cx.set_numerics; None: the class that is set. A checkpoint goes on in its
        own class only.

    `epoch`, `batch` and `step` tell how far a run is, `history` what was said of its epochs, `stopped` why it ended
    early.
    """

    def __init__(
        self,
        model: Module,
        loss: Any,
        optimizer: Optimizer,
        *,
        metrics: Any = (),
        scheduler: Any = None,
        scheduler_per: Literal["epoch", "step"] = "epoch",
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        keep: Keep = "last",
        monitor: str | None = None,
        mode: Mode | None = None,
        seed: int = 0,
        compiled: bool = True,
        numerics: str | None = None,
    ) -> None:
        if not isinstance(model, Module) or not isinstance(optimizer, Optimizer):
            got = f"{type(model).__name__} and {type(optimizer).__name__}"
            raise SpecError(
                f"Trainer: expected (module, loss, optimizer), got {got} as the first and third; "
                "a graph with a TrainingSpec goes to Trainer.of_job"
            )
        _check_count("Trainer", "accumulate", accumulate)
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not (isinstance(limit, Real) and limit > 0.0):
                raise SpecError(f"Trainer: expected {name} above 0, got {limit!r}")
        if not isinstance(seed, Integral):
            raise SpecError(f"Trainer: expected seed to be a whole number, got {seed!r}")
        if scheduler_per not in ("epoch", "step") or keep not in ("best", "last"):
            raise SpecError(
                f"Trainer: expected scheduler_per 'epoch' or 'step' and keep 'best' or 'last', got {scheduler_per!r} "
                f"and {keep!r}"
            )
        device = next((p.device for p in model.parameters()), devices.default_device())
        own = precision.chosen(numerics, device)
        options = Options(accumulate, clip_norm, clip_value, ema, scheduler_per, compiled, seed, own)
        self._module = ModuleLearner(model, loss, optimizer, metrics, scheduler, options)
        self._set_up(self._module, 0, keep, Monitor(monitor, mode))

    @classmethod
    def of_job(
        cls,
        graph: Graph,
        dataset: Rows,
        spec: TrainingSpec,
        weights: Mapping[str, Array] | None = None,
        device: str | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> "Trainer":
        """What a node does with a job: run() trains the graph on the rows as the spec says.

        weights: values to start from (fine-tuning); then no statistics are taken from the rows. resume: the file of a
        checkpoint to go on from. Raises ShapeError or DataError at once when graph, rows and loss do not fit, and
        CheckpointError when the file is damaged, or its graph, rows, spec or numerics are not these.
        """
        found = None if resume is None else checkpoints.load(resume)
        trainer = cls.__new__(cls)
        learner = GraphLearner(graph, dataset, spec, weights, device, found)
        trainer._set_up(learner, spec.epochs, spec.keep, Monitor())
        if found is not None:
            trainer._take_over(found)
        return trainer

    def _set_up(self, learner: Learner, epochs: int, keep: Keep, monitor: Monitor) -> None:
        self.learner, self.epochs, self.keep, self.monitor = learner, epochs, keep, monitor
        self.history = History()
        self.weights: dict[str, Array] = {}
        self.delivered_epoch = 0
        self.epoch, self.batch, self.step = 1, 0, 0  # the epoch under way, its batches done, steps in all
        self.stopped = ""
        self._best_epoch = 0
        self._rows = 0  # of the epoch under way
        self._losses: list[float] = []  # of each batch of the epoch under way, sums over its rows
        self._right: list[float] = []
        self._callbacks: list[Callback] = []

    @property
    def steps(self) -> int:
        """Of the whole run; 0 where the data does not say how many batches it has."""
        return self.epochs * (self.learner.batches or 0)

    @property
    def restores(self) -> bool:
        """Whether the model gets the weights of the best epoch when a fit ends here."""
        return self.keep == "best" and bool(self.weights) and self.stopped != INTERRUPTED

    def stop(self, reason: str) -> None:
        """End the run after the batch under way, or after the epoch where its last batch is done. For callbacks."""
        self.stopped = self.stopped or reason

    # the loop -----------------------------------------------------------------------------------

    def run(self) -> Iterator[BatchMetrics | EpochMetrics | TrainingSummary]:
        """Train. Yields after every batch, after every epoch, and once at the end.

        total_time_ms of the summary counts from this call: in a resumed run, from the resume.
        """
        started = time.perf_counter()
        self._tell("on_fit_begin")
        while self.epoch <= self.epochs and not self.stopped:
            self._tell("on_epoch_begin")
            metrics = yield from self._epoch()
            if metrics is None:
                break
            self._close_epoch(metrics)
            self._tell("on_epoch_end", metrics)
            yield metrics
        summary = self._summary((time.perf_counter() - started) * 1000.0) if self.history else None
        self._tell("on_fit_end", summary)
        if summary is not None:
            yield summary

    def _tell(self, event: str, *what: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(self, *what)

    def _epoch(self) -> Generator[BatchMetrics, None, EpochMetrics | None]:
        """What is left of the epoch under way; None when it was stopped in its middle."""
        began, skipped = time.perf_counter(), self._rows
        judged = [checkpoints.judged(metrics) for metrics in self.history]
        steps = self.learner.steps(self._position(), self.epochs, judged)
        while True:
            self._tell("on_batch_begin")
            before = time.perf_counter()
            made = next(steps, None)
            if made is None:
                break
            seconds = time.perf_counter() - before
            self.batch, self.step, self._rows = self.batch + 1, self.step + 1, self._rows + made.rows
            self._losses.append(made.loss * made.rows)
            if made.right is not None:
                self._right.append(made.right * made.rows)
            metrics = BatchMetrics(
                epoch=self.epoch,
                epochs=self.epochs,
                batch=self.batch,
                batches=self.learner.batches or 0,
                step=self.step,
                batch_loss=made.loss,
                batch_accuracy=made.right,
                batch_time_ms=seconds * 1000.0,
                learning_rate=made.learning_rate,
                samples_per_s=made.rows / max(seconds, 1e-9),
            )
            self._tell("on_batch_end", metrics)
            yield metrics
            if self.stopped and self.batch != self.learner.batches:
                return None
        if not self._rows:
            raise DataError(f"fit: expected at least one batch in epoch {self.epoch}, got none")
        held, scores = self.learner.held_out(), self.learner.scores()
        own = {name: held[name] for name in FIELD_OF if name in held}
        scores |= {f"validation_{name}": found for name, found in held.items() if name not in own}
        finite = {name: found for name, found in scores.items() if math.isfinite(found)}
        accuracy = finite.pop("accuracy", None)
        seconds = time.perf_counter() - began
        return EpochMetrics(
            epoch=self.epoch,
            epochs=self.epochs,
            step=self.step,
            epoch_loss=math.fsum(self._losses) / self._rows,
            epoch_accuracy=math.fsum(self._right) / self._rows if self._right else accuracy,
            epoch_time_ms=seconds * 1000.0,
            samples_per_s=(self._rows - skipped) / max(seconds, 1e-9),
            scores=finite or UNSET,
            **{FIELD_OF[name]: found for name, found in own.items()},
        )

    def _close_epoch(self, metrics: EpochMetrics) -> None:
        best = self.monitor.of(self.history[self._best_epoch - 1]) if self._best_epoch else self.monitor.worst
        better = self._best_epoch == 0 or self.monitor.better(self.monitor.of(metrics), best)
        if better or self.keep == "last":
            self.weights = self.learner.delivered()  # first, as it may find no memory
            self.delivered_epoch = self.epoch
        if better:
            self._best_epoch = self.epoch
        self.learner.end_epoch(self._rows, checkpoints.judged(metrics))
        self.history.append(metrics)
        self.epoch += 1
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.batch, self._rows, self._losses, self._right = 0, 0, [], []

    def _summary(self, total_ms: float) -> TrainingSummary:
        last, delivered, facts = self.history[-1], self.history[self.delivered_epoch - 1], self.learner.facts()
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
            train_rows=facts.train_rows,
            validation_rows=facts.validation_rows,
            parameters=facts.parameters,
            numerics=facts.numerics,
        )

    # checkpoints --------------------------------------------------------------------------------

    def _position(self) -> Position:
        return Position(epoch=self.epoch, batch=self.batch, step=self.step, best_epoch=self._best_epoch)

    def checkpoint(self, path: str | os.PathLike[str], synced: bool = True) -> None:
        """Write all that the rest of the run depends on; call it when run() has just yielded, or from a callback.

        The same run at the same point gives the same bytes on every machine, resumed before or not. (The last
        batch of an epoch and the EpochMetrics after it are two points of one step.) Timings are left out: in a
        resumed run, epochs that ended before have epoch_time_ms and samples_per_s 0.0, and the epoch that was
        under way counts from the resume. synced: see safetensors.save. Raises OSError when it cannot be written.
        """
        notes = self.learner.notes()
        if notes is not None:
            notes |= {
                "rows": self._rows,
                "epoch_steps": [metrics.step for metrics in self.history],
                "callbacks": [[type(each).__name__, each.state_dict()] for each in self._remembering()],
            }
        now = Checkpoint(
            identity=self.learner.identity(),
            position=self._position(),
            state={name: devices.host(array) for name, array in self.learner.state().items()},
            delivered=self.weights,
            losses=self._losses,
            right=self._right,
            history=self.history,
            notes=notes,
        )
        checkpoints.save(path, now, synced)

    def _take_over(self, found: Checkpoint) -> None:
        """Go on where a checkpoint was written. Raises CheckpointError, whatever is wrong with it."""
        try:
            self._restore(found)
        except CyxError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: it contradicts itself ({type(error).__name__}: {error})") from None

    def _restore(self, found: Checkpoint) -> None:
        position, notes, count = found.position, found.notes or {}, self.learner.batches
        checkpoints.check_identity(found.identity, self.learner.identity())
        checkpoints.check_position(position, count, self.epochs)
        self.learner.restore(found)
        self.epoch, self.batch, self.step = position.epoch, position.batch, position.step
        self._best_epoch, self._losses, self._right = position.best_epoch, found.losses, found.right
        for sums in (found.losses, found.right):
            math.fsum(sums)  # raises what the end of the epoch would
        self._rows = int(notes.get("rows", 0)) if notes else self.learner.rows_until(position.batch) or 0
        ends = notes.get("epoch_steps") or [metrics.epoch * (count or 0) for metrics in found.history]
        self.history = History(
            msgspec.structs.replace(metrics, epochs=self.epochs, step=end)
            for metrics, end in zip(found.history, ends, strict=True)
        )
        self.delivered_epoch = len(self.history) if self.keep == "last" else self._best_epoch
        self.weights = dict(found.delivered)
        stored, own = notes.get("callbacks", []), self._remembering()
        wanted, have = [name for name, _ in stored], [type(each).__name__ for each in own]
        if wanted != have:
            raise CheckpointError(f"checkpoint: expected the callbacks with a state {wanted}, as there, got {have}")
        for each, (_, state) in zip(own, stored, strict=True):
            each.load_state_dict(state)

    def _remembering(self) -> list[Callback]:
        """The callbacks that have a state."""
        return [each for each in self._callbacks if each.state_dict()]

    # a module -----------------------------------------------------------------------------------

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        validation: Any = None,
        callbacks: Sequence[Callback] = (),
        resume: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> History:
        """Train for some more epochs and return the history of all of them.

        x, y: arrays or tensors with one row per sample (x may be a tuple of them; without y the input is its own
        target), or x alone: any iterable of batches (input, …, target) that can be read once for each epoch, such as a
        cx.data.DataLoader; batch_size and shuffle are of arrays only. The order of rows is keyed by (seed, epoch).
        validation: held-out rows, as (x, y) or an iterable of batches; or the share of the rows of arrays to hold out.
        callbacks: see cx.callbacks. resume: a checkpoint of a fit with the same model, options and data; then epochs
        counts from the first one of that fit. progress: whether to show how it goes (on a terminal, in a notebook or as
        lines).

        Ctrl-C stops it after the batch under way: the model keeps what it has learned, and fit returns. A second Ctrl-C
        raises KeyboardInterrupt at once. Raises SpecError, ShapeError or DataError for what does not fit together,
        DivergedError when the loss is no number any more, CheckpointError.
        """
        learner = self.module_learner("fit")
        _check_count("fit", "epochs", epochs)
        _check_count("fit", "batch_size", batch_size)
        if isinstance(callbacks, Callback) or not all(isinstance(each, Callback) for each in callbacks):
            raise SpecError(f"fit: expected callbacks to be a list of cx.callbacks.Callback objects, got {callbacks!r}")
        seed = learner.options.seed
        (x, y), validation = _held_out(x, y, validation, seed)
        learner.source = batches.source(x, y, learner.dtype, batch_size, shuffle, seed, epochs)
        learner.validation = None
        if validation is not None:
            one, other = validation if _is_pair(validation) else (validation, None)
            learner.validation = batches.source(one, other, learner.dtype, batch_size, False, seed, epochs)
        self._callbacks = sorted([*callbacks, *([Progress()] if progress else [])], key=lambda callback: callback.last)
        self.stopped = ""
        self._begin_epoch()
        self.epochs = epochs if resume is not None else self.epoch - 1 + epochs
        learner.show_averages(False)
        if resume is not None:
            self._take_over(checkpoints.load(resume))
        with self._interruptible():
            try:
                for _ in self.run():
                    pass
            except BaseException as exception:
                self._tell("on_exception", exception)
                raise
        learner.show_averages(True)
        if self.restores:
            learner.deliver(self.weights)
        return self.history

    def evaluate(self, x: Any, y: Any = None, *, batch_size: int = 256) -> dict[str, float]:
        """{"loss": …, metric: …} of rows, given as to fit; the model is in inference mode."""
        learner = self.module_learner("evaluate")
        _check_count("evaluate", "batch_size", batch_size)
        source = batches.source(x, y, learner.dtype, batch_size, False, 0, 1)
        found, _ = learner.judge(source)
        return found

    def predict(self, x: Any, *, batch_size: int = 256) -> Array:
        """The model's output for each row of x (an array, or a tuple of them where the model takes several).

        Returns a NumPy array (rows, *output shape).
        """
        learner = self.module_learner("predict")
        _check_count("predict", "batch_size", batch_size)
        return learner.predict(x, batch_size)

    def module_learner(self, verb: str) -> ModuleLearner:
        """What learns here. Raises SpecError for a trainer of a job, which has no `verb`."""
        if not isinstance(self.learner, ModuleLearner):
            raise SpecError(f"{verb}: this trainer is of a job, which run() trains; use cx.evaluate and cx.predict")
        return self.learner

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Within the block the first Ctrl-C stops the run, where signals come to this thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupted(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, before)
            self.stop(INTERRUPTED)

        before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL  # None: not Python's
        signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _check_count(where: str, name: str, count: Any) -> None:
    whole = isinstance(count, Integral) and not isinstance(count, bool)
    if not whole or count < 1:
        raise SpecError(f"{where}: expected {name} of at least 1, got {count!r}{'' if whole else ', no whole number'}")


def _is_pair(value: Any) -> bool:
    """Whether it is (x, y), not a list of two batches."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and hasattr(value[1], "__array__")


def _held_out(x: Any, y: Any, validation: Any, seed: int) -> tuple[tuple[Any, Any], Any]:
    """((x, y), validation) with a share taken out of the arrays, or what a dataset holds out itself."""
    if hasattr(x, "x_train"):
        if validation is None and x.x_val is not None and len(x.x_val):
            validation = (x.x_val, x.y_val)
        return (x.x_train, x.y_train), validation
    if isinstance(validation, bool) or not isinstance(validation, (int, float)):
        return (x, y), validation
    if not 0.0 < validation < 1.0:
        raise SpecError(f"fit: expected validation as a share between 0 and 1, or rows, got {validation}")
    if y is None or isinstance(x, (tuple, list)):
        raise SpecError("fit: a share to hold out is of arrays x and y; give rows as validation=(x, y)")
    x, y = (part.numpy() if isinstance(part, Tensor) else np.asarray(part) for part in (x, y))
    labels = y if y.ndim == 1 and y.dtype.kind in "iu" and y.min(initial=0) >= 0 else None
    train, held = split("fit", len(x), labels, validation, seed)
    return (x[train], y[train]), (x[held], y[held])
