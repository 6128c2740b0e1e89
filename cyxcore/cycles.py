"""Schedules that turn the learning rate up and the momentum down, and back (Smith 2017); step() after each batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from cyxcore.errors import SpecError
from cyxcore.optimizer import Optimizer
from cyxcore.scheduler import LRScheduler, Momenta, number, of_optimizer, per_group, positive


class CyclicLR(LRScheduler):
    """Up from base_lr to max_lr in step_size_up and down again, over and over.

    mode: triangular (always the same), triangular2 (half as high each time), exp_range (gamma**t as high); or scale_fn,
    a height of yours, by the cycle from 1 (scale_mode "cycle") or by the step ("iterations"). cycle_momentum: momentum,
    or beta1, goes from max_momentum down to base_momentum while the rate goes up. base_lr, max_lr and the momenta may
    be lists, one for each group.
    """

    modes = ("triangular", "triangular2", "exp_range")

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: float = 2000,
        step_size_down: float | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        self.optimizer = of_optimizer(self, optimizer)
        if mode not in self.modes and scale_fn is None:
            raise SpecError(f"CyclicLR: expected mode {', '.join(self.modes)}, got {mode!r}")
        if scale_mode not in ("cycle", "iterations"):
            raise SpecError(f"CyclicLR: expected scale_mode cycle or iterations, got {scale_mode!r}")
        self.up, self.down = step_size_up, step_size_up if step_size_down is None else step_size_down
        for name, steps in (("step_size_up", self.up), ("step_size_down", self.down)):
            number(f"CyclicLR: {name}", steps)
        if not (self.up > 0 and self.down > 0):
            raise SpecError(
                f"CyclicLR: expected step_size_up and step_size_down above 0, got {self.up} and {self.down}"
            )
        self.gamma = number("CyclicLR: gamma", gamma)
        self.mode, self.scale_fn, self.by_cycle = mode, scale_fn, scale_mode == "cycle"
        base, self.max_lrs = per_group(self, "base_lr", base_lr), per_group(self, "max_lr", max_lr)
        if any(most < least for least, most in zip(base, self.max_lrs, strict=True)):
            raise SpecError(f"CyclicLR: expected max_lr of at least base_lr, got {max_lr} and {base_lr}")
        if last_epoch == -1:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate
        self.momenta = Momenta(self, base_momentum, max_momentum, last_epoch == -1) if cycle_momentum else None
        self._bases = base
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base

    def _scale(self, cycle: float) -> float:
        if self.scale_fn is not None:
            return float(self.scale_fn(cycle if self.by_cycle else self.last_epoch))
        if self.mode == "triangular2":
            return float(0.5 ** (cycle - 1))
        return float(self.gamma**self.last_epoch) if self.mode == "exp_range" else 1.0

    def get_lr(self) -> list[float]:
        before, since = divmod(self.last_epoch, self.up + self.down)
        share = since / self.up if since <= self.up else 1.0 - (since - self.up) / self.down
        height = share * self._scale(before + 1)
        if self.momenta is not None:
            for group in self.optimizer.param_groups:
                most = group["max_momentum"]
                self.momenta.put(group, most - (most - group["base_momentum"]) * height)
        bases = self._bases if self.beginning else self.bases()
        return [base + (most - base) * height for base, most in zip(bases, self.max_lrs, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """scale_fn is in it as far as it is an object with attributes."""
        own = getattr(self.scale_fn, "__dict__", None)
        return {**super().state_dict(), **({"scale_fn": dict(own)} if own else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if state.get("scale_fn") and self.scale_fn is not None:
            self.scale_fn.__dict__.update(state["scale_fn"])


class OneCycleLR(LRScheduler):
    """One cycle of total_steps: up to max_lr in the share pct_start, and down, with the momentum the other way.

    It begins at max_lr / div_factor and ends at that / final_div_factor. three_phase: down to the first rate in as many
    steps as up, then to the last. cycle_momentum: momentum, or beta1, from max_momentum to base_momentum and back.
    max_lr and the momenta may be lists, one for each group. A step() more than total_steps is a SpecError.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self.optimizer = of_optimizer(self, optimizer)
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise SpecError("OneCycleLR: expected total_steps, or epochs and steps_per_epoch")
            total_steps = positive("OneCycleLR: epochs", epochs) * positive(
                "OneCycleLR: steps_per_epoch", steps_per_epoch
            )
        total = self.total_steps = positive("OneCycleLR: total_steps", total_steps)
        if not 0.0 <= number("OneCycleLR: pct_start", pct_start) <= 1.0:
            raise SpecError(f"OneCycleLR: expected a pct_start from 0 to 1, got {pct_start}")
        for name, factor in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if not number(f"OneCycleLR: {name}", factor) > 0.0:
                raise SpecError(f"OneCycleLR: expected a {name} above 0, got {factor}")
        if anneal_strategy not in ("cos", "linear"):
            raise SpecError(f"OneCycleLR: expected anneal_strategy cos or linear, got {anneal_strategy!r}")
        self.strategy = anneal_strategy
        # (last step, rate it leads to, momentum it leads to) of each phase, by the names in groups
        top = (pct_start * total - 1.0, "max_lr", "base_momentum")
        end = (total - 1.0, "min_lr", "max_momentum")
        self.phases = (
            [top, (2.0 * pct_start * total - 2.0, "initial_lr", "max_momentum"), end] if three_phase else [top, end]
        )
        for group, rate in zip(optimizer.param_groups, per_group(self, "max_lr", max_lr), strict=True):
            if last_epoch == -1:
                first = rate / div_factor
                group.update(initial_lr=first, max_lr=rate, min_lr=first / final_div_factor)
            elif not {"initial_lr", "max_lr", "min_lr"} <= group.keys():
                raise SpecError("OneCycleLR: expected initial_lr, max_lr and min_lr in each group to go on")
        self.momenta = Momenta(self, base_momentum, max_momentum, last_epoch == -1) if cycle_momentum else None
        super().__init__(optimizer, last_epoch)

    def _between(self, start: float, end: float, share: float) -> float:
        if self.strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))

    def get_lr(self) -> list[float]:
        t = self.last_epoch
        if t > self.total_steps:
            raise SpecError(f"OneCycleLR: expected at most total_steps = {self.total_steps} steps, got one more")
        before, rate, momentum = 0.0, "initial_lr", "max_momentum"
        for end, next_rate, next_momentum in self.phases:
            if t <= end or end == self.phases[-1][0]:
                break
            before, rate, momentum = end, next_rate, next_momentum
        share = (t - before) / (end - before) if end != before else 1.0
        groups = self.optimizer.param_groups
        if self.momenta is not None:
            for group in groups:
                self.momenta.put(group, self._between(group[momentum], group[next_momentum], share))
        return [self._between(group[rate], group[next_rate], share) for group in groups]
