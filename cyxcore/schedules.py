"""How a learning rate changes, as factors of it: pure functions of the step or epoch t, which counts from 0.

Formulas are those of torch.optim.lr_scheduler.
"""

import math
from collections.abc import Sequence

from cyxcore.spec import ScheduleSpec

PLATEAU_THRESHOLD = 1e-4  # relative
ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1 / 25e4


def steps(t: int, period: int, factor: float) -> float:
    """Times `factor` after every `period`."""
    return float(factor ** (t // period))


def linear(t: int, total: int, start: float, end: float) -> float:
    """From `start` to `end` in `total` equal parts, then `end`."""
    return start + (end - start) * min(t, total) / total


def cosine(t: int, total: int, end: float) -> float:
    """Half a wave from 1 down to `end` at `total`."""
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * t / total)) / 2.0


def polynomial(t: int, total: int, power: float) -> float:
    """(1 - t / total) ** power, then 0."""
    return float((1.0 - min(t, total) / total) ** power)


def one_cycle(
    t: int, total: int, rise: float = ONE_CYCLE_RISE, start: float = ONE_CYCLE_START, end: float = ONE_CYCLE_END
) -> float:
    """Smith's cycle of `total` steps: half a wave from `start` up to 1 in the share `rise`, another down to `end`."""
    top = rise * total - 1.0
    if t <= top:
        return 1.0 + (start - 1.0) * (1.0 + math.cos(math.pi * t / top)) / 2.0 if top > 0 else 1.0
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * min((t - top) / (total - 1.0 - top), 1.0))) / 2.0


class Plateau:
    """Counts how often a loss stopped going down: `reductions`."""

    def __init__(self, patience: int, threshold: float = PLATEAU_THRESHOLD) -> None:
        self.patience, self.threshold = patience, threshold
        self.best, self.waited, self.reductions = math.inf, 0, 0

    def see(self, loss: float) -> bool:
        """Take the next loss in. Whether this one was once too often."""
        if loss < self.best * (1.0 - math.copysign(self.threshold, self.best)):
            self.best, self.waited = loss, 0
            return False
        self.waited += 1
        if self.waited <= self.patience:
            return False
        self.waited, self.reductions = 0, self.reductions + 1
        return True


def factor(spec: ScheduleSpec, t: int, total: int, per_epoch: int, losses: Sequence[float]) -> float:
    """Of the learning rate in step t of `total`; losses: of the epochs that have ended."""
    if t < spec.warmup_steps:
        return (t + 1) / (spec.warmup_steps + 1)
    epoch, after, left = t // per_epoch, t - spec.warmup_steps, max(1, total - 1 - spec.warmup_steps)
    match spec.name:
        case "step":
            return steps(epoch, spec.period, spec.factor)
        case "exponential":
            return steps(epoch, 1, spec.factor)
        case "cosine":
            return cosine(after, left, spec.final)
        case "linear":
            return linear(after, left, 1.0, spec.final)
        case "one_cycle":
            return one_cycle(after, left + 1)
        case "plateau":
            seen = Plateau(spec.patience)
            for loss in losses:
                seen.see(loss)
            return float(spec.factor**seen.reductions)
    return 1.0
