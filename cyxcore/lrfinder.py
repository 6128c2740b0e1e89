"""Which learning rate to begin with: a range test (Smith 2017, arXiv 1506.01186)."""

import math
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from cyxcore import batches
from cyxcore.batches import Source
from cyxcore.checkpoint import Position
from cyxcore.errors import DivergedError, SpecError
from cyxcore.plotting import plot
from cyxcore.training import Trainer

DIVERGED = 4.0  # times the lowest smoothed loss: no larger rate is tried


class Finding(NamedTuple):
    """learning_rates: that were tried, each for one step. losses: of those steps, and smoothed.

    suggestion: where the smoothed loss falls fastest over the logarithm of the rate; None where it never falls.
    """

    learning_rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None

    def __repr__(self) -> str:
        tried = f"{len(self.learning_rates)} rates"
        if self.learning_rates:
            tried += f" from {self.learning_rates[0]:.3g} to {self.learning_rates[-1]:.3g}"
        said = "None" if self.suggestion is None else f"{self.suggestion:.3g}"
        return f"Finding(suggestion={said}, {tried})"

    def plot(self, backend: str | None = None) -> Any:
        """The losses over the learning rates; see cyxcore.plotting.plot. Those of a diverging end are drawn as
        DIVERGED times the lowest: beside them nothing else would be seen.
        """
        said = "no rate lowers the loss" if self.suggestion is None else f"suggested: {self.suggestion:.3g}"
        lowest = min(self.smoothed, default=0.0)
        most = max(DIVERGED * lowest, self.losses[0]) if lowest > 0.0 else math.inf
        if max(self.losses, default=0.0) > most:
            said += f"; losses above {most:.3g} are drawn there"
        curves = {"loss": self.losses, "smoothed": self.smoothed}
        drawn = {name: [min(value, most) for value in values] for name, values in curves.items()}
        return plot(self.learning_rates, drawn, backend, True, said)


def lr_finder(
    trainer: Trainer,
    x: Any,
    y: Any = None,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    batch_size: int = 32,
    smoothing: float = 0.9,
) -> Finding:
    """Make up to `steps` steps with learning rates that grow by one factor from `lowest` to `highest`.

    It stops where the smoothed loss is four times its lowest. x, y, batch_size: as in Trainer.fit. smoothing: share of
    the running mean at each step (bias-corrected). Model, optimiser, random numbers and all else are as before
    afterwards.
    Raises SpecError for a range that is none, and for a trainer of a job, DivergedError where the loss of the first
    step is no number.
    """
    if not isinstance(trainer, Trainer):
        raise SpecError(f"lr_finder: expected a cx.Trainer, got {type(trainer).__name__}")
    numbers = all(isinstance(each, Real) for each in (lowest, highest, smoothing)) and isinstance(steps, Integral)
    if not (numbers and 0.0 < lowest < highest < math.inf and steps >= 2 and 0.0 <= smoothing < 1.0):
        raise SpecError(
            "lr_finder: expected 0 < lowest < highest, both finite, steps of at least 2 and 0 <= smoothing < 1, got "
            f"{lowest!r}, {highest!r}, {steps!r} and {smoothing!r}"
        )
    learner = trainer.module_learner("lr_finder")
    if learner.options.accumulate != 1:
        raise SpecError("lr_finder: expected a trainer with accumulate=1; choose batch_size for the rows of a step")
    rates = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
    source = batches.source(x, y, learner.dtype, batch_size, True, learner.options.seed, steps)
    tried: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    with learner.borrowed():
        learner.source, mean = source, 0.0
        for rate, loss in _losses(learner, source, rates):
            tried.append(rate)
            losses.append(loss)
            mean = smoothing * mean + (1.0 - smoothing) * loss
            smoothed.append(mean / (1.0 - smoothing ** len(losses)))
            if smoothed[-1] > DIVERGED * min(smoothed):
                break
    if not losses:
        raise DivergedError(
            "lr_finder: the loss of the first step is no number, before any rate could matter; look for NaN and "
            "infinities in the data and the weights"
        )
    return Finding(tried, losses, smoothed, _steepest(tried, smoothed))


def _losses(learner: Any, source: Source, rates: list[float]) -> Iterator[tuple[float, float]]:
    """(rate, loss of the step made with it), until the loss is no number any more."""
    step, epoch = 0, 0
    while step < len(rates):
        epoch += 1
        made = learner.steps(Position(epoch=epoch, batch=0, step=step, best_epoch=0), epoch, [])
        before = step
        while step < len(rates):
            learner.optimizer.lr = rates[step]
            try:
                stepped = next(made, None)
            except DivergedError:
                return
            if stepped is None:
                break
            yield rates[step], stepped.loss
            step += 1
        if step == before:
            raise SpecError("lr_finder: expected at least one batch, got none")


def _steepest(rates: list[float], smoothed: list[float]) -> float | None:
    """Before the lowest loss, but not among the first rates, whose means are of a few batches only."""
    first, lowest = len(rates) // 10, int(np.argmin(smoothed)) if smoothed else 0
    if lowest - first < 2:
        return None
    slopes = np.gradient(np.array(smoothed), np.log(rates))[first:lowest]
    place = first + int(slopes.argmin())
    return rates[place] if slopes[place - first] < 0.0 else None
