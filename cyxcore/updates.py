"""The update rules of the optimisers, written once: on tensors they write in place, on symbols they build the step.

A rule takes the parameter, its gradient, `slot` (which gives the state this rule keeps for the parameter), the learning
rate, the number of the step (from 1) and an OptimizerSpec, and returns what holds a new value afterwards. Formulas and
defaults are those of torch.optim, Lion's those of Chen et al. 2023 (arXiv 2302.06675), algorithm 2.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cyxcore.errors import SpecError
from cyxcore.spec import OptimizerSpec


class Slot(Protocol):
    """State of one parameter; `start` fills it before the first step, of the parameter's shape unless given."""

    def __call__(self, kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Any: ...


Rule = Callable[[Any, Any, Slot, Any, Any, OptimizerSpec], dict[Any, Any]]


def _betas(spec: OptimizerSpec, usual: tuple[float, float]) -> tuple[float, float]:
    return usual if spec.betas is None else spec.betas


def _eps(spec: OptimizerSpec, usual: float) -> float:
    return usual if spec.eps is None else spec.eps


def _decayed(p: Any, g: Any, spec: OptimizerSpec) -> Any:
    """The gradient of the loss and of weight_decay / 2 * p**2."""
    return g + p * spec.weight_decay if spec.weight_decay else g


def _sgd(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    decay = spec.weight_decay
    if spec.momentum == 0.0:
        return {p: p._next("sgd_update", g, lr, weight_decay=decay)}
    old = slot("momentum")
    new = old._next("momentum", g, p, momentum=spec.momentum, weight_decay=decay)
    if spec.nesterov:
        return {old: new, p: p._next("nesterov_update", g, new, lr, momentum=spec.momentum, weight_decay=decay)}
    return {old: new, p: p._next("axpy_update", new, lr)}


def _adam(decoupled: bool) -> Rule:
    def update(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
        beta1, beta2 = _betas(spec, (0.9, 0.999))
        coupled = 0.0 if decoupled else spec.weight_decay
        m, v = slot("adam_m"), slot("adam_v")
        new_m = m._next("adam_m", g, p, beta=beta1, weight_decay=coupled)
        new_v = v._next("adam_v", g, p, beta=beta2, weight_decay=coupled)
        own = spec.weight_decay if decoupled else 0.0
        eps = _eps(spec, 1e-8)
        new = p._next(
            "adam_update", new_m, new_v, lr, step, beta1=beta1, beta2=beta2, eps=eps, decoupled_weight_decay=own
        )
        return {m: new_m, v: new_v, p: new}

    return update


def _nadam(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """Adam whose first moment is looked ahead; the product of its momenta is state (Dozat 2016)."""
    beta1, beta2 = _betas(spec, (0.9, 0.999))
    g = _decayed(p, g, spec)
    m, v, product = slot("nadam_m"), slot("nadam_v"), slot("nadam_momenta", 1.0, ())

    def momentum(t: Any) -> Any:
        return (1.0 - (t * (spec.momentum_decay * math.log(0.96))).exp() * 0.5) * beta1

    now, following = momentum(step), momentum(step + 1.0)
    so_far = product * now
    new_m = m * beta1 + g * (1.0 - beta1)
    new_v = v * beta2 + g.square() * (1.0 - beta2)
    ahead = new_m * (following / (1.0 - so_far * following)) + g * ((1.0 - now) / (1.0 - so_far))
    # With beta1 = 0 the first moment is taken as it is, and only the second one is corrected.
    rest = {"beta1": 0.0, "beta2": beta2, "eps": _eps(spec, 1e-8), "decoupled_weight_decay": 0.0}
    return {m: new_m, v: new_v, product: so_far, p: p._next("adam_update", ahead, new_v, lr, step, **rest)}


def _rmsprop(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    g, keep = _decayed(p, g, spec), spec.alpha
    v = slot("rmsprop_v")
    new_v = v * keep + g.square() * (1.0 - keep)
    changed, spread = {v: new_v}, new_v
    if spec.centered:
        mean = slot("rmsprop_mean")
        new_mean = mean * keep + g * (1.0 - keep)
        changed[mean], spread = new_mean, (new_v - new_mean.square()).relu()  # rounding may leave less than 0
    move = g / (spread.sqrt() + _eps(spec, 1e-8))
    if spec.momentum:
        velocity = slot("momentum")
        move = velocity * spec.momentum + move
        changed[velocity] = move
    return {**changed, p: p - move * lr}


def _adagrad(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    g = _decayed(p, g, spec)
    total = slot("adagrad_sum", spec.initial_accumulator)
    new_total = total + g.square()
    own_lr = lr / ((step - 1.0) * spec.lr_decay + 1.0)
    return {total: new_total, p: p - g / (new_total.sqrt() + _eps(spec, 1e-10)) * own_lr}


def _lion(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """The sign of an interpolated momentum; decay shrinks the parameter itself."""
    beta1, beta2 = _betas(spec, (0.9, 0.99))
    m = slot("lion_m")
    move = (m * beta1 + g * (1.0 - beta1)).sign()
    if spec.weight_decay:
        move = move + p * spec.weight_decay
    return {m: m * beta2 + g * (1.0 - beta2), p: p - move * lr}


UPDATES: Mapping[str, Rule] = {
    "sgd": _sgd,
    "adam": _adam(False),
    "adamw": _adam(True),
    "nadam": _nadam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
}


def check(spec: OptimizerSpec) -> None:
    """Raises SpecError where options do not go together."""
    if spec.nesterov and (spec.name != "sgd" or spec.momentum == 0.0):
        raise SpecError("optimizer: nesterov needs the name sgd and a momentum above 0")


def next_values(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """{old: new} of a parameter and its state after one step. lr and step: float scalars of the parameter's dtype.

    What l1 adds to the gradient is l1 * sign(p), the subgradient of l1 * |p|.
    """
    if spec.l1:
        g = g + p.sign() * spec.l1
    return UPDATES[spec.name](p, g, slot, lr, step, spec)
