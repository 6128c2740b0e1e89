"""What the learning-rate schedulers share: first rates, the count of steps, and what is saved of them."""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, SupportsFloat

from cyxcore.errors import CyxError, SpecError
from cyxcore.optimizer import Group, Optimizer


class LRScheduler:
    """Sets the "lr" of each group anew at each step(). `last_epoch` counts them, from 0 for the rate one begins with.

    A scheduler changes the rate that is there, so several of one optimiser may be stepped one after another. Write one
    by a method get_lr(), which returns the rates of all groups at last_epoch; base_lrs holds the first ones.
    last_epoch: -1 begins; from another number a schedule goes on, with groups that have an "initial_lr".
    """

    kept: ClassVar[tuple[str, ...]] = ()  # what it counts beside the steps, by the names of attributes
    beginning = False  # while it sets the rates it begins with

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = of_optimizer(self, optimizer)
        for number, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise SpecError(
                    f"{type(self).__name__}: expected an initial_lr in group {number} to go on from last_epoch "
                    f"{last_epoch}; load the optimiser's state first, or leave last_epoch out"
                )
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr: list[float] = []
        self.begin()

    def get_lr(self) -> list[float]:
        """The rates of all groups at last_epoch, from those that are there."""
        raise NotImplementedError

    def closed(self) -> list[float] | None:
        """The same from the first rates alone, where there is a formula."""
        return None

    def begin(self) -> None:
        """The first step, which sets the rates one begins with."""
        self.beginning = True
        try:
            self.step()
        finally:
            self.beginning = False

    def step(self, epoch: int | None = None) -> None:
        """On to the next rates; epoch: to those of that epoch."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        closed = None if epoch is None else self.closed()
        self.put(self.get_lr() if closed is None else closed)

    def restart(self) -> None:
        """Back to the rates of the beginning, for a scheduler that follows another."""
        LRScheduler.step(self, 0)

    def rewind(self) -> None:
        """Undo the count of the first step: a scheduler that follows another has not begun."""
        self.last_epoch -= 1

    def put(self, rates: list[float]) -> None:
        """Give each group its rate."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates

    def bases(self) -> list[float]:
        """The first rates of all groups. Raises SpecError where groups were added since."""
        groups = len(self.optimizer.param_groups)
        if len(self.base_lrs) != groups:
            raise SpecError(
                f"{type(self).__name__}: expected the {len(self.base_lrs)} groups there were when it was made, got "
                f"{groups}; make the scheduler after add_param_group"
            )
        return self.base_lrs

    def rates(self) -> list[float]:
        """Of the groups, as they are."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """What the last step() set, by group."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """What it counts, in numbers and lists; not its options, which are those that it is made with."""
        own = {name: getattr(self, name) for name in ("base_lrs", "last_epoch", "_last_lr", *self.kept)}
        return {name: list(value) if isinstance(value, list) else value for name, value in own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what state_dict() gave. The rates are in the optimiser's own state. Raises SpecError for others."""
        names = ("base_lrs", "last_epoch", *self.kept)
        if not isinstance(state, Mapping) or any(name not in state for name in names):
            got = ", ".join(sorted(map(str, state))) if isinstance(state, Mapping) else type(state).__name__
            raise SpecError(f"{type(self).__name__}: expected a state with {', '.join(names)}, got {got or 'nothing'}")
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise SpecError(
                f"{type(self).__name__}: expected a state of {len(self.base_lrs)} groups, got {len(state['base_lrs'])}"
            )
        for name in self.kept:
            setattr(self, name, state[name])
        self.base_lrs, self.last_epoch = [float(rate) for rate in state["base_lrs"]], int(state["last_epoch"])
        self._last_lr = [float(rate) for rate in state.get("_last_lr", self.rates())]


def of_optimizer(scheduler: Any, optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise SpecError(f"{type(scheduler).__name__}: expected an optimiser, got {type(optimizer).__name__}")
    return optimizer


def per_group(scheduler: Any, name: str, value: Any, kind: Callable[[Any], Any] | None = None) -> list[Any]:
    """One value of each group; a single one stands for all. Raises SpecError for another number of them, and, unless
    kind says what they are, for what is no number.
    """
    groups = len(scheduler.optimizer.param_groups)
    row = list(value) if isinstance(value, (list, tuple)) else [value] * groups
    if len(row) != groups:
        raise SpecError(
            f"{type(scheduler).__name__}: expected one {name} or {groups}, one for each group, got {len(row)}"
        )
    if kind is not None:
        return [kind(one) for one in row]
    return [float(number(f"{type(scheduler).__name__}: {name}", one)) for one in row]


def positive(name: str, value: Any) -> int:
    """The integer; programs write whole floats too. Raises SpecError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{name}: expected an integer of at least 1, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> Any:
    """The value itself. Raises SpecError for what is no finite number, such as text from a file of settings."""
    try:
        finite = not isinstance(value, bool) and isinstance(value, SupportsFloat) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError, CyxError):  # several numbers, or one beyond float64
        finite = False
    if not finite:
        raise SpecError(f"{name}: expected a number, got {reprlib.repr(value)}")
    return value


class Momenta:
    """The momentum of an optimiser's groups, or the first of their betas: what the cyclic schedules turn, too."""

    def __init__(self, scheduler: Any, base: Any, most: Any, begins: bool) -> None:
        """base, most: one for each group, or one for all. begins: the groups get the largest. Raises SpecError."""
        self.optimizer: Optimizer = scheduler.optimizer
        if not {"momentum", "betas"} & set(self.optimizer.defaults):
            raise SpecError(
                f"{type(scheduler).__name__}: {type(self.optimizer).__name__} has neither momentum nor betas to cycle; "
                "give cycle_momentum=False"
            )
        least, largest = per_group(scheduler, "base_momentum", base), per_group(scheduler, "max_momentum", most)
        for value in (*least, *largest):
            if not 0.0 <= value < 1.0:
                raise SpecError(f"{type(scheduler).__name__}: expected momenta from 0 to below 1, got {value}")
        for group, low, high in zip(self.optimizer.param_groups, least, largest, strict=True):
            if begins:
                self.put(group, high)
                group["max_momentum"], group["base_momentum"] = high, low
            elif not {"max_momentum", "base_momentum"} <= group.keys():
                raise SpecError(
                    f"{type(scheduler).__name__}: expected base_momentum and max_momentum in each group to go on"
                )
        self.optimizer.cycles_momentum = True

    def put(self, group: Group, momentum: float) -> None:
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum
