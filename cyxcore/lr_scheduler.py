"""Learning-rate schedulers over optimisers, with torch's names: call step() after each epoch (or batch, where said).

A training job names its schedule instead (cyxcore/spec.py, ScheduleSpec). Both use cyxcore/schedules.py.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cyxcore import schedules
from cyxcore.attrs import is_whole
from cyxcore.cycles import CyclicLR as CyclicLR
from cyxcore.cycles import OneCycleLR as OneCycleLR
from cyxcore.errors import SpecError
from cyxcore.optimizer import Optimizer
from cyxcore.scheduler import LRScheduler as LRScheduler
from cyxcore.scheduler import number, of_optimizer, per_group, positive

__all__ = (
    "ChainedScheduler ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR LRScheduler "
    "LambdaLR LinearLR MultiStepLR MultiplicativeLR OneCycleLR PolynomialLR ReduceLROnPlateau SequentialLR StepLR"
).split()

Factor = Callable[[int], float]
_LRScheduler = LRScheduler  # as PyTorch called it once


class _Stepwise(LRScheduler):
    """Each rate follows from the one before: several of these, stepped in turn, multiply."""

    def change(self, t: int) -> float:
        """What the rate before t is multiplied with."""
        raise NotImplementedError

    def factor(self, t: int) -> float:
        """What the first rate is multiplied with at t."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        change = self.change(self.last_epoch)
        return [rate * change for rate in self.rates()]

    def closed(self) -> list[float] | None:
        return [base * self.factor(self.last_epoch) for base in self.bases()]


class _ByFunctions(LRScheduler):
    """By functions of yours: one for each group, or one for all."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Factor | list[Factor], last_epoch: int = -1) -> None:
        self.optimizer = of_optimizer(self, optimizer)
        self.lr_lambdas: list[Factor] = per_group(self, "lr_lambda", lr_lambda, lambda function: function)
        if not all(map(callable, self.lr_lambdas)):
            raise SpecError(f"{type(self).__name__}: expected functions of the step, got {lr_lambda!r}")
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """lr_lambdas: the attributes of those that are objects; functions are not saved."""
        own = [dict(getattr(each, "__dict__", {})) or None for each in self.lr_lambdas]
        return {**super().state_dict(), "lr_lambdas": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for each, own in zip(self.lr_lambdas, state.get("lr_lambdas", ()), strict=False):
            if own:
                vars(each).update(own)


class LambdaLR(_ByFunctions):
    """The first rate times lr_lambda(t)."""

    def get_lr(self) -> list[float]:
        return [base * each(self.last_epoch) for base, each in zip(self.bases(), self.lr_lambdas, strict=True)]


class MultiplicativeLR(_ByFunctions):
    """Times lr_lambda(t) at each step() t."""

    def get_lr(self) -> list[float]:
        if self.beginning or not self.bases():
            return self.rates()
        return [rate * each(self.last_epoch) for rate, each in zip(self.rates(), self.lr_lambdas, strict=True)]


class StepLR(_Stepwise):
    """Times gamma after every step_size."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        self.step_size, self.gamma = positive("StepLR: step_size", step_size), number("StepLR: gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def change(self, t: int) -> float:
        return 1.0 if t == 0 or t % self.step_size else self.gamma

    def factor(self, t: int) -> float:
        return schedules.steps(t, self.step_size, self.gamma)


class MultiStepLR(_Stepwise):
    """Times gamma at each of the milestones, as often as it is named."""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        given: Any = [*milestones] if isinstance(milestones, Iterable) else milestones
        if not isinstance(given, list) or not all(map(is_whole, given)):
            raise SpecError(f"MultiStepLR: expected whole numbers as milestones, got {given!r}")
        self.milestones = sorted(given)
        self.gamma = number("MultiStepLR: gamma", gamma)
        self._times = Counter(self.milestones)
        super().__init__(optimizer, last_epoch)

    def change(self, t: int) -> float:
        return float(self.gamma ** self._times[t])

    def factor(self, t: int) -> float:
        return float(self.gamma ** bisect_right(self.milestones, t))


class ExponentialLR(_Stepwise):
    """Times gamma each time."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = number("ExponentialLR: gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def change(self, t: int) -> float:
        return 1.0 if self.beginning else self.gamma

    def factor(self, t: int) -> float:
        return schedules.steps(t, 1, self.gamma)


class ConstantLR(_Stepwise):
    """Times factor for the first total_iters."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5, last_epoch: int = -1) -> None:
        if not 0.0 < number("ConstantLR: factor", factor) <= 1.0:
            raise SpecError(f"ConstantLR: expected a factor above 0, at most 1, got {factor}")
        self.first, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def change(self, t: int) -> float:
        if t == 0:
            return self.first
        return 1.0 / self.first if t == self.total_iters else 1.0

    def factor(self, t: int) -> float:
        return self.first if t < self.total_iters else 1.0


class LinearLR(_Stepwise):
    """Warm-up: from start_factor to end_factor in total_iters equal parts."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        for name, factor in (("start_factor", start_factor), ("end_factor", end_factor)):
            number(f"LinearLR: {name}", factor)
        if not (0.0 < start_factor <= 1.0 and 0.0 <= end_factor <= 1.0):
            raise SpecError(
                f"LinearLR: expected a start_factor above 0 and an end_factor of at least 0, both at most 1, got "
                f"{start_factor} and {end_factor}"
            )
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = positive("LinearLR: total_iters", total_iters)
        super().__init__(optimizer, last_epoch)

    def change(self, t: int) -> float:
        if t == 0:
            return self.start_factor
        if self.beginning or t > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        return 1.0 + rise / (self.total_iters * self.start_factor + (t - 1) * rise)

    def factor(self, t: int) -> float:
        return schedules.linear(t, self.total_iters, self.start_factor, self.end_factor)


class PolynomialLR(_Stepwise):
    """(1 - t / total_iters) ** power."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        self.total_iters = positive("PolynomialLR: total_iters", total_iters)
        self.power = number("PolynomialLR: power", power)
        super().__init__(optimizer, last_epoch)

    def change(self, t: int) -> float:
        if self.beginning or t > self.total_iters:
            return 1.0
        total = self.total_iters
        return float(((1.0 - t / total) / (1.0 - (t - 1) / total)) ** self.power)

    def factor(self, t: int) -> float:
        return schedules.polynomial(t, self.total_iters, self.power)


class CosineAnnealingLR(LRScheduler):
    """Half a wave down to eta_min in T_max, and up again."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        self.T_max = positive("CosineAnnealingLR: T_max", T_max)
        self.eta_min = number("CosineAnnealingLR: eta_min", eta_min)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        t, total, least, rates = self.last_epoch, self.T_max, self.eta_min, self.rates()
        if self.beginning:
            return rates
        if (t - 1 - total) % (2 * total) == 0:  # up from the least, of which there is no ratio
            rise = (1.0 - math.cos(math.pi / total)) / 2.0
            return [rate + (base - least) * rise for rate, base in zip(rates, self.bases(), strict=True)]
        change = (1.0 + math.cos(math.pi * t / total)) / (1.0 + math.cos(math.pi * (t - 1) / total))
        return [change * (rate - least) + least for rate in rates]

    def closed(self) -> list[float] | None:
        return _cosine(self.bases(), self.last_epoch / self.T_max, self.eta_min)


def _cosine(bases: list[float], share: float, least: float) -> list[float]:
    """Half a wave from each base down to the least."""
    return [least + (base - least) * (1.0 + math.cos(math.pi * share)) / 2.0 for base in bases]


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a wave down to eta_min, again and again: the first in T_0, each next one T_mult times as long (SGDR).

    step(epoch) may be given a part of an epoch, after each batch: step(epoch + batch / batches).
    """

    kept = ("T_cur", "T_i")

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        self.T_0 = self.T_i = positive("CosineAnnealingWarmRestarts: T_0", T_0)
        self.T_mult = positive("CosineAnnealingWarmRestarts: T_mult", T_mult)
        self.eta_min = number("CosineAnnealingWarmRestarts: eta_min", eta_min)
        self.T_cur = float(last_epoch)
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """On by one epoch, or to that epoch, of which T_cur and T_i say where in which wave it is."""
        if epoch is None and self.last_epoch >= 0:
            self.last_epoch, self.T_cur = self.last_epoch + 1, self.T_cur + 1
            if self.T_cur >= self.T_i:
                self.T_cur, self.T_i = self.T_cur % self.T_i, self.T_i * self.T_mult
        else:
            epoch = 0 if epoch is None else epoch
            if not epoch >= 0:
                raise SpecError(f"CosineAnnealingWarmRestarts: expected an epoch of at least 0, got {epoch}")
            self.last_epoch, self.T_cur, self.T_i = math.floor(epoch), epoch, self.T_0
            if self.T_mult == 1:
                self.T_cur = epoch % self.T_0
            while self.T_cur >= self.T_i:
                self.T_cur, self.T_i = self.T_cur - self.T_i, self.T_i * self.T_mult
        self.put(self.get_lr())

    def get_lr(self) -> list[float]:
        return _cosine(self.bases(), self.T_cur / self.T_i, self.eta_min)

    def restart(self) -> None:
        self.step(0)


class _Several(LRScheduler):
    """Of several schedulers of one optimiser."""

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None) -> None:
        name, self.schedulers = type(self).__name__, list(schedulers)
        if not self.schedulers:
            raise SpecError(f"{name}: expected at least one scheduler, got none")
        self.optimizer = of_optimizer(
            self, getattr(self.schedulers[0], "optimizer", None) if optimizer is None else optimizer
        )
        for place, each in enumerate(self.schedulers):
            if isinstance(each, ReduceLROnPlateau) or not isinstance(each, LRScheduler):
                raise SpecError(f"{name}: expected schedulers that step without a loss, got {type(each).__name__}")
            if each.optimizer is not self.optimizer:
                raise SpecError(f"{name}: expected schedulers of one optimiser, number {place} is of another")
        self.base_lrs = list(self.schedulers[0].base_lrs)

    def rewind(self) -> None:
        for each in self.schedulers:
            each.rewind()

    def first_rates(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [each.state_dict() for each in self.schedulers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        own = state.get("schedulers", ())
        if len(own) != len(self.schedulers):
            raise SpecError(
                f"{type(self).__name__}: expected the state of {len(self.schedulers)} schedulers, got {len(own)}"
            )
        for each, kept in zip(self.schedulers, own, strict=True):
            each.load_state_dict(kept)


class SequentialLR(_Several):
    """One scheduler after another: schedulers[i] begins when step() was called milestones[i - 1] times."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        super().__init__(schedulers, optimizer)
        if len(milestones) != len(self.schedulers) - 1 or list(milestones) != sorted(set(milestones)):
            raise SpecError(
                f"SequentialLR: expected {len(self.schedulers) - 1} ascending milestones for {len(self.schedulers)} "
                f"schedulers, got {list(milestones)}"
            )
        self.milestones, self.last_epoch = list(milestones), last_epoch + 1
        self.rewind()
        self.begin()

    def begin(self) -> None:
        """Each scheduler found what the one before had set: back to the first rates, with the first scheduler."""
        self.first_rates()
        self.schedulers[0].begin()
        self._last_lr = self.schedulers[0].get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        if epoch is not None:
            raise SpecError("SequentialLR: expected step() without an epoch")
        self.last_epoch += 1
        place = bisect_right(self.milestones, self.last_epoch)
        now = self.schedulers[place]
        if place and self.milestones[place - 1] == self.last_epoch:
            now.restart()
        else:
            now.step()
        self._last_lr = now.get_last_lr()

    def restart(self) -> None:
        self.first_rates()
        self.last_epoch = 0
        self.schedulers[0].restart()
        self._last_lr = self.schedulers[0].get_last_lr()


class ChainedScheduler(_Several):
    """Several schedulers at once: each changes the rate that the one before it has set."""

    def __init__(self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None) -> None:
        super().__init__(schedulers, optimizer)
        self.last_epoch, self._last_lr = 0, self.rates()

    def step(self, epoch: int | None = None) -> None:
        if epoch is not None:
            raise SpecError("ChainedScheduler: expected step() without an epoch")
        self.last_epoch += 1
        for each in self.schedulers:
            each.step()
        self._last_lr = self.rates()

    def begin(self) -> None:
        self.last_epoch = 0
        for each in self.schedulers:
            each.begin()
        self._last_lr = self.rates()

    def restart(self) -> None:
        """From the first rates, with all schedulers."""
        self.first_rates()
        for each in self.schedulers:
            if isinstance(each, _Several):
                each.restart()
            else:
                each.last_epoch = -1
                each.begin()
        self.last_epoch, self._last_lr = 0, self.rates()


BETTER: Mapping[tuple[str, str], Callable[[float, float, float], bool]] = {
    ("min", "rel"): lambda value, best, threshold: value < best * (1.0 - threshold),
    ("min", "abs"): lambda value, best, threshold: value < best - threshold,
    ("max", "rel"): lambda value, best, threshold: value > best * (1.0 + threshold),
    ("max", "abs"): lambda value, best, threshold: value > best + threshold,
}


class ReduceLROnPlateau(LRScheduler):
    """Times factor when what is given to step() has not gone down (mode "max": up) for more than `patience` calls.

    threshold: by how much at least, as a share of the best (threshold_mode "rel") or as it is ("abs"). cooldown: so
    many calls after a reduction nothing is counted. min_lr: the least rate, of all groups or of each. eps: smaller
    changes of a rate are not made.
    """

    kept = ("num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = schedules.PLATEAU_THRESHOLD,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.optimizer = of_optimizer(self, optimizer)
        if mode not in ("min", "max"):
            raise SpecError(f"ReduceLROnPlateau: expected mode min or max, got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise SpecError(f"ReduceLROnPlateau: expected threshold_mode rel or abs, got {threshold_mode!r}")
        for name, value in (("factor", factor), ("threshold", threshold), ("eps", eps)):
            number(f"ReduceLROnPlateau: {name}", value)
        if not 0.0 < factor < 1.0:
            raise SpecError(f"ReduceLROnPlateau: expected a factor between 0 and 1, got {factor}")
        self.mode, self.threshold_mode, self.threshold = mode, threshold_mode, threshold
        self.factor, self.patience, self.cooldown, self.eps = factor, patience, cooldown, eps
        self.min_lr, self.min_lrs = min_lr, per_group(self, "min_lr", min_lr)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0
        self._last_lr = self.base_lrs = self.rates()

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """metrics: the loss, or what is to go up, as a number or a tensor of one."""
        value = float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if BETTER[self.mode, self.threshold_mode](value, self.best, self.threshold):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        rates = self.rates()
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            self.min_lrs = per_group(self, "min_lr", self.min_lr)  # anew: there may be more groups by now
            lower = [max(rate * self.factor, least) for rate, least in zip(rates, self.min_lrs, strict=True)]
            rates = [low if rate - low > self.eps else rate for rate, low in zip(rates, lower, strict=True)]
        self.put(rates)

    def state_dict(self) -> dict[str, Any]:
        """best is None as long as there is none."""
        return {**super().state_dict(), "best": self.best if math.isfinite(self.best) else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        worst = math.inf if self.mode == "min" else -math.inf
        self.best = worst if state.get("best") is None else float(state["best"])
