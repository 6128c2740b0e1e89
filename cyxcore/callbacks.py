"""What happens beside a fit: objects that a Trainer tells what it does, and who may stop it.

class Loud(cx.callbacks.Callback):
    def on_epoch_end(self, trainer, metrics):
        print(metrics.epoch, metrics.epoch_loss)

trainer.fit(x, y, callbacks=[Loud(), cx.callbacks.EarlyStopping(patience=3)])
"""

import math
import os
from typing import TYPE_CHECKING, Any, Literal

from cyxcore.errors import SpecError
from cyxcore.history import names, value
from cyxcore.metrics import higher_is_better
from cyxcore.spec import BatchMetrics, EpochMetrics, TrainingSummary

if TYPE_CHECKING:
    from cyxcore.training import Trainer

Mode = Literal["min", "max"]


class Callback:
    """Override what you want to hear of; they are told in the order in which they were given.

    A callback that remembers something between epochs gives it as JSON in state_dict() and takes it back in
    load_state_dict(), so that a resumed run is the same run.
    """

    last = False  # told after all others, whatever the order: for what stores their state

    def on_fit_begin(self, trainer: "Trainer") -> None:
        """Before the first batch; after a checkpoint was taken over."""

    def on_epoch_begin(self, trainer: "Trainer") -> None:
        """trainer.epoch is about to begin, or to go on."""

    def on_batch_begin(self, trainer: "Trainer") -> None:
        """The next batch is about to be read and learned from."""

    def on_batch_end(self, trainer: "Trainer", metrics: BatchMetrics) -> None:
        """A batch was learned from."""

    def on_epoch_end(self, trainer: "Trainer", metrics: EpochMetrics) -> None:
        """An epoch ended, its held-out rows were judged; it is in trainer.history."""

    def on_fit_end(self, trainer: "Trainer", summary: TrainingSummary | None) -> None:
        """All is done. summary: None where no epoch has ended. Where fit raises, on_exception is told instead."""

    def on_exception(self, trainer: "Trainer", exception: BaseException) -> None:
        """fit is about to raise this: give back what on_fit_begin took."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Monitor:
    """Compares epochs by one number. name: None is the loss of held-out rows, or of the training where there are none.

    mode: whether smaller ("min") or larger ("max") is better; by default what the metric of that name says.
    """

    def __init__(self, name: str | None = None, mode: Mode | None = None, min_delta: float = 0.0) -> None:
        if mode not in (None, "min", "max") or not min_delta >= 0.0:
            raise SpecError(f"monitor: expected mode 'min' or 'max' and min_delta >= 0, got {mode!r} and {min_delta}")
        self.name, self.min_delta = name, min_delta
        self.mode = mode or ("max" if name is not None and higher_is_better(name) else "min")

    @property
    def worst(self) -> float:
        """What every number is better than."""
        return math.inf if self.mode == "min" else -math.inf

    def of(self, metrics: EpochMetrics) -> float:
        """The number of an epoch. Raises SpecError where it has none of that name."""
        if self.name is None:
            return metrics.epoch_loss if metrics.validation_loss is None else metrics.validation_loss
        found = value(metrics, self.name)
        if found is None:
            raise SpecError(f"monitor: expected one of {', '.join(names(metrics))}, got {self.name!r}")
        return found

    def better(self, new: float, best: float) -> bool:
        """Whether new is better than best by more than min_delta."""
        return new < best - self.min_delta if self.mode == "min" else new > best + self.min_delta


class EarlyStopping(Callback):
    """Stops when `monitor` was not better by more than min_delta for more than `patience` epochs in a row.

    monitor, mode: see Monitor. restore_best: afterwards the model has the weights of the trainer's best epoch, which is
    then chosen by this monitor.
    """

    def __init__(
        self,
        patience: int = 5,
        monitor: str | None = None,
        mode: Mode | None = None,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if patience < 0:
            raise SpecError(f"EarlyStopping: expected patience of at least 0, got {patience}")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience, self.restore_best = patience, restore_best
        self.best, self.waited = self.monitor.worst, 0
        self._resumes = False

    def on_fit_begin(self, trainer: "Trainer") -> None:
        if not self._resumes:
            self.best, self.waited = self.monitor.worst, 0
        self._resumes = False
        if self.restore_best:
            trainer.monitor, trainer.keep = Monitor(self.monitor.name, self.monitor.mode), "best"

    def on_epoch_end(self, trainer: "Trainer", metrics: EpochMetrics) -> None:
        now = self.monitor.of(metrics)
        if self.monitor.better(now, self.best):
            self.best, self.waited = now, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            name = self.monitor.name or "the loss"
            trainer.stop(f"{name} was not better than {self.best:.6g} for {self.waited} epochs")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best if math.isfinite(self.best) else None, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = self.monitor.worst if state["best"] is None else float(state["best"])
        self.waited = int(state["waited"])
        self._resumes = True


class Checkpoints(Callback):
    """Writes a checkpoint to `path`, each over the one before, complete or not at all: fit(..., resume=path) goes on.

    every_epochs, every_steps: how often (None: not by that); the end of a fit writes one in any case.
    """

    last = True

    def __init__(
        self, path: str | os.PathLike[str], every_epochs: int | None = 1, every_steps: int | None = None
    ) -> None:
        for name, count in (("every_epochs", every_epochs), ("every_steps", every_steps)):
            if count is not None and count < 1:
                raise SpecError(f"Checkpoints: expected {name} of at least 1 or None, got {count}")
        self.path, self.every_epochs, self.every_steps = path, every_epochs, every_steps
        self._written: tuple[int, int] | None = None

    def on_batch_end(self, trainer: "Trainer", metrics: BatchMetrics) -> None:
        if self.every_steps is not None and trainer.step % self.every_steps == 0:
            self._write(trainer)

    def on_epoch_end(self, trainer: "Trainer", metrics: EpochMetrics) -> None:
        if self.every_epochs is not None and metrics.epoch % self.every_epochs == 0:
            self._write(trainer)

    def on_fit_end(self, trainer: "Trainer", summary: TrainingSummary | None) -> None:
        self._write(trainer)

    def _write(self, trainer: "Trainer") -> None:
        at = (trainer.epoch, trainer.step)
        if at != self._written:
            trainer.checkpoint(self.path)
            self._written = at
