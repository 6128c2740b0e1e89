"""Learning-rate schedulers over optimisers, with torch's names: call step() after each epoch (or batch, where said).

A training job names its schedule instead (cyxcore/spec.py, ScheduleSpec). Both use cyxcore/schedules.py.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore import schedules
from cyxcore.errors import SpecError
from cyxcore.optim import Optimizer
from cyxcore.torchwords import accept


class LRScheduler:
    """Sets each group's "lr" to its first one times factor(t), t being the number of step() calls so far."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._set()

    def factor(self, t: int) -> float:
        raise NotImplementedError

    def step(self) -> None:
        self.last_epoch += 1
        self._set()

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.factor(self.last_epoch)

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": list(self.base_lrs), "last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base_lrs, self.last_epoch = list(state["base_lrs"]), int(state["last_epoch"])
        self._set()


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise SpecError(f"{name}: expected at least 1, got {value}")
    return value


def _cosine(base: float, t: int, total: int, least: float) -> float:
    """A group that begins at 0 goes up to `least`, as in torch."""
    return base * schedules.cosine(t, total, least / base) if base else least - least * schedules.cosine(t, total, 0.0)


class LambdaLR(LRScheduler):
    """factor(t) is a function of yours."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.factor = lr_lambda  # type: ignore[method-assign, assignment]
        super().__init__(optimizer)


class StepLR(LRScheduler):
    """Times gamma after every step_size."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = _positive("StepLR: step_size", step_size), gamma
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return schedules.steps(t, self.step_size, self.gamma)


class MultiStepLR(LRScheduler):
    """Times gamma at each of the milestones."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return float(self.gamma ** bisect_right(self.milestones, t))


class ExponentialLR(LRScheduler):
    """Times gamma each time."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return schedules.steps(t, 1, self.gamma)


class LinearLR(LRScheduler):
    """Warm-up: from start_factor to end_factor in total_iters equal parts."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start, self.end = start_factor, end_factor
        self.total = _positive("LinearLR: total_iters", total_iters)
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return schedules.linear(t, self.total, self.start, self.end)


class PolynomialLR(LRScheduler):
    """(1 - t / total_iters) ** power."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        self.total, self.power = _positive("PolynomialLR: total_iters", total_iters), power
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return schedules.polynomial(t, self.total, self.power)


class CosineAnnealingLR(LRScheduler):
    """Half a wave down to eta_min in T_max, and up again."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = _positive("CosineAnnealingLR: T_max", T_max), eta_min
        super().__init__(optimizer)

    def _set(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = _cosine(base, self.last_epoch, self.T_max, self.eta_min)


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a wave down to eta_min, again and again: the first in T_0, each next one T_mult times as long (SGDR)."""

    def __init__(self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0) -> None:
        self.T_0 = _positive("CosineAnnealingWarmRestarts: T_0", T_0)
        self.T_mult = _positive("CosineAnnealingWarmRestarts: T_mult", T_mult)
        self.eta_min = eta_min
        super().__init__(optimizer)

    def _set(self) -> None:
        since, period = self.last_epoch, self.T_0
        if self.T_mult == 1:
            since %= period
        while since >= period:
            since, period = since - period, period * self.T_mult
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = _cosine(base, since, period, self.eta_min)


class ConstantLR(LRScheduler):
    """Times factor for the first total_iters."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5) -> None:
        self.first, self.total = factor, total_iters
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return self.first if t < self.total else 1.0


class MultiplicativeLR(LRScheduler):
    """Times lr_lambda(t) at each step() t."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return math.prod(self.lr_lambda(number) for number in range(1, t + 1))


class CyclicLR(LRScheduler):
    """Up from base_lr to max_lr in step_size_up and down again, over and over (Smith 2017); step() after each batch.

    mode: triangular (always the same), triangular2 (half as high each time), exp_range (gamma**t as high).
    """

    modes = ("triangular", "triangular2", "exp_range")

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float,
        max_lr: float,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
    ) -> None:
        if mode not in self.modes:
            raise SpecError(f"CyclicLR: expected mode {', '.join(self.modes)}, got {mode!r}")
        self.up = _positive("CyclicLR: step_size_up", step_size_up)
        self.down = self.up if step_size_down is None else _positive("CyclicLR: step_size_down", step_size_down)
        self.height, self.mode, self.gamma = max_lr - base_lr, mode, gamma
        optimizer.lr = base_lr
        super().__init__(optimizer)

    def _set(self) -> None:
        cycle, since = divmod(self.last_epoch, self.up + self.down)
        share = since / self.up if since <= self.up else 1.0 - (since - self.up) / self.down
        scale = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": self.gamma**self.last_epoch}[self.mode]
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base + self.height * share * scale


class OneCycleLR(LRScheduler):
    """Smith's one cycle; step() after each batch. max_lr takes the place of each group's lr."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise SpecError("OneCycleLR: expected total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        self.total, self.rise = _positive("OneCycleLR: total_steps", total_steps), pct_start
        self.start, self.end = 1.0 / div_factor, 1.0 / (div_factor * final_div_factor)
        optimizer.lr = max_lr
        super().__init__(optimizer)

    def factor(self, t: int) -> float:
        return schedules.one_cycle(t, self.total, self.rise, self.start, self.end)


class SequentialLR:
    """One scheduler after another: schedulers[i] begins when step() was called milestones[i - 1] times."""

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        if len(milestones) != len(schedulers) - 1 or list(milestones) != sorted(set(milestones)):
            raise SpecError(
                f"SequentialLR: expected {len(schedulers) - 1} ascending milestones for {len(schedulers)} schedulers, "
                f"got {list(milestones)}"
            )
        self.schedulers, self.milestones, self.last_epoch = list(schedulers), list(milestones), 0
        base = self.schedulers[0].base_lrs
        for scheduler in self.schedulers:  # each found what the one before had set
            scheduler.base_lrs = list(base)
        self.schedulers[0]._set()

    def step(self) -> None:
        self.last_epoch += 1
        place = bisect_right(self.milestones, self.last_epoch)
        if place and self.milestones[place - 1] == self.last_epoch:
            self.schedulers[place]._set()
        else:
            self.schedulers[place].step()

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "schedulers": [each.state_dict() for each in self.schedulers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for scheduler, own in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(own)
        self.last_epoch = int(state["last_epoch"])
        self.schedulers[bisect_right(self.milestones, self.last_epoch)]._set()


class ChainedScheduler:
    """Several schedulers at once, of those that set each lr to its base times a factor: the factors are multiplied."""

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        if not schedulers or any(each.optimizer is not schedulers[0].optimizer for each in schedulers):
            raise SpecError("ChainedScheduler: expected at least one scheduler, all of one optimiser")
        self.schedulers, self.optimizer = list(schedulers), schedulers[0].optimizer
        self.base_lrs = list(self.schedulers[0].base_lrs)
        for scheduler in self.schedulers:  # each found what the one before had set
            scheduler.base_lrs = list(self.base_lrs)
        self._set()

    def _set(self) -> None:
        wanted = list(self.base_lrs)
        for scheduler in self.schedulers:
            scheduler._set()
            wanted = [
                lr * own / base if base else 0.0
                for lr, own, base in zip(wanted, scheduler.get_last_lr(), self.base_lrs, strict=True)
            ]
        for group, lr in zip(self.optimizer.param_groups, wanted, strict=True):
            group["lr"] = lr

    def step(self) -> None:
        for scheduler in self.schedulers:
            scheduler.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"schedulers": [each.state_dict() for each in self.schedulers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for scheduler, own in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(own)
        self.base_lrs = list(self.schedulers[0].base_lrs)
        self._set()


class ReduceLROnPlateau:
    """Times factor when what is given to step() has not gone down (mode "max": up) for more than `patience` calls.

    cooldown: so many calls after a reduction nothing is counted.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = schedules.PLATEAU_THRESHOLD,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise SpecError(f"ReduceLROnPlateau: expected mode min or max, got {mode!r}")
        self.sign, self.cooldown, self.resting = (1.0 if mode == "min" else -1.0), cooldown, 0
        if not 0.0 < factor < 1.0:
            raise SpecError(f"ReduceLROnPlateau: expected a factor between 0 and 1, got {factor}")
        self.optimizer, self.factor, self.min_lr = optimizer, factor, min_lr
        self.plateau = schedules.Plateau(patience, threshold)

    def step(self, loss: float) -> None:
        again = self.plateau.see(self.sign * float(loss))
        if self.resting:
            self.resting -= 1
            self.plateau.waited = 0
        elif again:
            self.resting = self.cooldown
            for group in self.optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.factor, self.min_lr)

    def state_dict(self) -> dict[str, Any]:
        seen = self.plateau
        best = seen.best if math.isfinite(seen.best) else None
        lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        return {"best": best, "waited": seen.waited, "reductions": seen.reductions, "lrs": lrs, "resting": self.resting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        best = math.inf if state["best"] is None else float(state["best"])
        self.plateau.best, self.plateau.waited = best, int(state["waited"])
        self.plateau.reductions, self.resting = int(state["reductions"]), int(state.get("resting", 0))
        for group, lr in zip(self.optimizer.param_groups, state["lrs"], strict=True):
            group["lr"] = lr


# A schedule that goes on takes its state dict; momenta stay what they are.
_ALL = (LambdaLR, StepLR, MultiStepLR, ExponentialLR, LinearLR, PolynomialLR, CosineAnnealingLR)
accept((*_ALL, CosineAnnealingWarmRestarts, ConstantLR, MultiplicativeLR, CyclicLR, SequentialLR), {"last_epoch": -1})
accept((OneCycleLR,), {"anneal_strategy": "cos", "three_phase": False, "last_epoch": -1}, "cycle_momentum")
accept((CyclicLR,), {"cycle_momentum": False, "scale_fn": None})
accept((ReduceLROnPlateau,), {"threshold_mode": "rel"}, "eps")
