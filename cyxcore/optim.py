"""Optimisers over tensors: step() changes the parameters in place. Names, formulas and defaults are torch's.

A training job applies the same rules (cyxcore/updates.py) from inside its plan.

    optimizer = cx.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=3e-4)
    schedule = cx.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from cyxcore import updates
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import ShapeError, SpecError
from cyxcore.infer import stretches
from cyxcore.nn.utils import clip_grad_norm_ as clip_grad_norm_
from cyxcore.nn.utils import clip_grad_value_ as clip_grad_value_
from cyxcore.spec import OptimizerSpec

Group = dict[str, Any]
Parameters = Iterable[Tensor] | Iterable[Group]


class ExponentialMovingAverage:
    """Averages of parameters: update() after each step, swap() to use them."""

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise SpecError(f"ExponentialMovingAverage: expected 0 <= decay < 1, got {decay}")
        self.parameters, self.decay = list(parameters), decay
        self.averages = [p.numpy().copy() for p in self.parameters]

    def update(self) -> None:
        """average = decay * average + (1 - decay) * parameter"""
        for average, p in zip(self.averages, self.parameters, strict=True):
            average *= self.decay
            average += (1.0 - self.decay) * p.numpy()

    def swap(self) -> None:
        """Exchange averages and parameters: before an evaluation, and again after it."""
        for average, p in zip(self.averages, self.parameters, strict=True):
            own = p.numpy().copy()
            p._assign(Tensor(average).to(p.device))
            average[...] = own


class Optimizer:
    """Holds groups of parameters with their options, and per parameter the state of its update rule.

    parameters: tensors, or groups {"params": tensors, option: value, …} whose options go before those of the
    optimiser. `param_groups` may be changed between steps, as schedulers do with "lr".
    """

    rule: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}  # name here -> field of OptimizerSpec

    def __init__(self, parameters: Parameters, **defaults: Any) -> None:
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.state: dict[int, dict[str, Tensor]] = {}  # by place of the parameter, counted through the groups
        self.steps = 0
        given: list[Any] = list(parameters)
        if not given:
            raise SpecError(f"{type(self).__name__}: expected at least one parameter, got none")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Raises SpecError for an option this optimiser lacks, and for a parameter that is in a group already."""
        name = type(self).__name__
        if unknown := sorted(set(group) - {"params", *self.defaults}):
            raise SpecError(f"{name}: unknown options {unknown} of a group; it has {sorted(self.defaults)}")
        given = group.get("params", ())
        added = {**self.defaults, **group, "params": [given] if isinstance(given, Tensor) else list(given)}
        known = {id(p) for p in self.parameters}
        for parameter in added["params"]:
            if not isinstance(parameter, Tensor):
                raise SpecError(f"{name}: expected tensors, got {type(parameter).__name__}")
            if id(parameter) in known:
                raise SpecError(f"{name}: a parameter of shape {parameter.shape} is in two groups")
            known.add(id(parameter))
        if not added["params"]:
            raise SpecError(f"{name}: expected at least one parameter in each group")
        self._spec(added)
        self.param_groups.append(added)

    @property
    def parameters(self) -> list[Tensor]:
        """Of all groups, in order."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @property
    def lr(self) -> float:
        """Of the first group; setting it sets that of every group."""
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """No gradients, whatever set_to_none says: there are none until the next backward pass."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. closure: computes gradients and the loss before it."""
        loss = None if closure is None else closure()
        self._update()
        return loss

    def _update(self) -> None:
        self.steps += 1
        place = 0
        with no_grad():
            for number, group in enumerate(self.param_groups):
                spec = self._spec(group)
                scalars: dict[str, tuple[Any, Any]] = {}  # by dtype
                for p in group["params"]:
                    if p.grad is not None:
                        if p.dtype not in scalars:
                            scalars[p.dtype] = self.scalars(number, p)
                        lr, step = scalars[p.dtype]
                        slot = functools.partial(self.slot, place, p)
                        for old, new in updates.next_values(p, p.grad, slot, lr, step, spec).items():
                            if new is not old:
                                old._assign(new)
                    place += 1

    def scalars(self, group: int, p: Any) -> tuple[Any, Any]:
        """(learning rate of a group, number of this step), of p's dtype."""
        lr = self.param_groups[group]["lr"]
        return Tensor(np.array(lr, p.dtype)), Tensor(np.array(self.steps, p.dtype))

    def slot(self, place: int, p: Any, kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Any:
        """State of one parameter; see cyxcore.updates.Slot."""
        state = self.state.setdefault(place, {})
        if kind not in state:
            state[kind] = Tensor(np.full(p.shape if shape is None else shape, start, p.dtype)).to(p.device)
        return state[kind]

    def _spec(self, group: Group) -> OptimizerSpec:
        named = {self.options.get(key, key): value for key, value in group.items() if key not in ("params", "lr")}
        spec = OptimizerSpec(name=self.rule, learning_rate=group["lr"], **named)  # type: ignore[arg-type]
        updates.check(spec)
        return spec

    # state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that step() depends on besides the parameters: {"steps", "state", "param_groups"}; arrays, not copies."""
        groups, first = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(first, first + count))})
            first += count
        state = {place: {name: value.numpy() for name, value in own.items()} for place, own in self.state.items()}
        return {"steps": self.steps, "state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what state_dict() gave, as copies. Raises SpecError or ShapeError for other parameters."""
        sizes = [len(group["params"]) for group in state["param_groups"]]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise SpecError(f"load_state_dict: expected groups of {own} parameters, got {sizes}")
        for group, given in zip(self.param_groups, state["param_groups"], strict=True):
            if foreign := sorted(set(given) - set(group)):
                raise SpecError(
                    f"load_state_dict: expected the state of {type(self).__name__}, got one of another optimiser, with "
                    f"the options {foreign}"
                )
        parameters = self.parameters
        taken: dict[int, dict[str, Tensor]] = {}
        for place, arrays in state["state"].items():
            p = parameters[int(place)]
            for name, array in arrays.items():
                if not stretches(array.shape, p.shape):
                    raise ShapeError(f"load_state_dict: {name} of {place}: expected {p.shape}, got {array.shape}")
            taken[int(place)] = {name: Tensor(np.array(array, p.dtype)).to(p.device) for name, array in arrays.items()}
        for place, slots in self.state.items():  # a compiled step goes on to read the tensors that are there
            for name, held in slots.items():
                if name in taken.get(place, {}):
                    held._assign(taken[place][name])
                    taken[place][name] = held
        for group, given in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in given.items() if key != "params"})
        self.steps, self.state = int(state["steps"]), taken


class SGD(Optimizer):
    """p - lr g, with momentum, Nesterov's look ahead and weight decay."""

    rule = "sgd"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.001,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        dampening: float = 0.0,
    ) -> None:
        if dampening:
            raise SpecError(f"SGD: expected no dampening of the momentum, got {dampening}")
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


class Adam(Optimizer):
    """Decay is added to the gradient."""

    rule = "adam"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **speed: Any,
    ) -> None:
        _plain(type(self).__name__, amsgrad, speed)
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def _plain(name: str, amsgrad: bool, speed: Mapping[str, Any]) -> None:
    """PyTorch's options that say how to be fast (foreach, fused) change nothing here. Raises SpecError, TypeError."""
    if amsgrad:
        raise SpecError(f"{name}: there is no amsgrad; leave it out")
    if unknown := sorted(set(speed) - {"foreach", "fused"}):
        raise TypeError(f"{name}() got an unexpected keyword argument {unknown[0]!r}")


class AdamW(Adam):
    """Decay shrinks the parameter itself."""

    rule = "adamw"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        **speed: Any,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad, **speed)


class NAdam(Optimizer):
    """Adam with Nesterov's look ahead."""

    rule = "nadam"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 0.004,
    ) -> None:
        super().__init__(
            parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay
        )


class RMSprop(Optimizer):
    """The gradient over the root of a running mean of its square (Tieleman and Hinton 2012)."""

    rule = "rmsprop"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            parameters, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )


class Adagrad(Optimizer):
    """The gradient over the root of the sum of its squares (Duchi 2011)."""

    rule = "adagrad"
    options = {"initial_accumulator_value": "initial_accumulator"}

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        super().__init__(
            parameters,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )


class Lion(Optimizer):
    """Moves by the sign of an interpolated momentum; its learning rate is about a tenth of AdamW's."""

    rule = "lion"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay)


class Adamax(Adam):
    """Adam by the largest gradient so far (Kingma and Ba 2015)."""

    rule = "adamax"

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)


class RAdam(Adam):
    """Adam that begins like SGD with momentum (Liu et al. 2020)."""

    rule = "radam"


class Adadelta(Optimizer):
    """Moves of the size of those before (Zeiler 2012)."""

    rule = "adadelta"

    def __init__(
        self, parameters: Parameters, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)


class Adafactor(Optimizer):
    """Adam with the memory of a row and a column for each matrix (Shazeer and Stern 2018).

    eps: the least root mean square of a parameter that counts; of PyTorch's pair the second, its first being None (the
    dtype's own). d: what the root mean square of a move may be.
    """

    rule = "adafactor"
    options = {"d": "clip_threshold", "eps": "least_scale"}

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 0.01,
        beta2_decay: float = -0.8,
        eps: tuple[None, float] | float = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        if isinstance(eps, tuple) and eps[0] is not None:
            raise SpecError(f"Adafactor: expected None as the first of eps, got {eps[0]}")
        least = eps[1] if isinstance(eps, tuple) else eps
        super().__init__(parameters, lr=lr, beta2_decay=beta2_decay, eps=least, d=d, weight_decay=weight_decay)


def __getattr__(name: str) -> Any:
    """optim.lr_scheduler, as PyTorch's code writes it: cx.lr_scheduler."""
    if name == "lr_scheduler":
        return importlib.import_module("cyxcore.lr_scheduler")
    raise AttributeError(f"cyxcore.optim has no {name!r}")
