"""The update rules of the optimisers, written once: on tensors they write in place, on symbols they build the step.

A rule takes the parameter, its gradient, `slot` (which gives the state this rule keeps for the parameter), the learning
rate, the number of the step (from 1) and an OptimizerSpec, and returns what holds a new value afterwards. Formulas and
defaults are those of torch.optim, Lion's those of Chen et al. 2023 (arXiv 2302.06675), algorithm 2.

Where a schedule changes the momentum from step to step it is a tensor, like the learning rate: then a spec holds that
in place of its number, `momentum` or the first of `betas`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from cyxcore.dtype import finfo
from cyxcore.errors import SpecError
from cyxcore.functional import maximum, minimum, where
from cyxcore.spec import OptimizerSpec
from cyxcore.values import Value


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


def _apart(p: Any, g: Any, lr: Any, spec: OptimizerSpec) -> tuple[Any, Any]:
    """(p, g) with the weight decay in one of the two: decoupled it shrinks the parameter itself."""
    if not spec.decoupled_weight_decay:
        return p, _decayed(p, g, spec)
    return p * (1.0 - lr * spec.weight_decay) if spec.weight_decay else p, g


def _sgd(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    decay, cycled = spec.weight_decay, isinstance(spec.momentum, Value)
    if not cycled and spec.momentum == 0.0:
        return {p: p._next("sgd_update", g, lr, weight_decay=decay)}
    if spec.dampening:
        # The first gradient goes in as it is. Whether there was one is state of each parameter, and not the number of
        # the step: a parameter may have its first gradient later than others.
        begun, old = slot("momentum_begun", 0.0, ()), slot("momentum")
        new = old * spec.momentum + _decayed(p, g, spec) * (1.0 - begun * spec.dampening)
        return {begun: maximum(begun, 1.0), old: new, p: p._next("axpy_update", new, lr)}
    old = slot("momentum")
    if cycled:
        g = _decayed(p, g, spec)
        new = old * spec.momentum + g
        move = g + new * spec.momentum if spec.nesterov else new
        return {old: new, p: p._next("axpy_update", move, lr)}
    new = old._next("momentum", g, p, momentum=spec.momentum, weight_decay=decay)
    if spec.nesterov:
        return {old: new, p: p._next("nesterov_update", g, new, lr, momentum=spec.momentum, weight_decay=decay)}
    return {old: new, p: p._next("axpy_update", new, lr)}


def _rest_of_power(base: Any, t: Any) -> Any:
    """1 - base ** t of tensors: 1 - exp(-2 y) = 2 tanh(y) / (1 + tanh(y)), which loses no digits where it is small."""
    tanh = (t * base.log() * -0.5).tanh()
    return tanh * 2.0 / (tanh + 1.0)


def _adam(always: bool) -> Rule:
    """always: the decay is decoupled, whatever the options say."""

    def update(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
        beta1, beta2 = _betas(spec, (0.9, 0.999))
        decoupled = always or spec.decoupled_weight_decay
        coupled = 0.0 if decoupled else spec.weight_decay
        m, v = slot("adam_m"), slot("adam_v")
        cycled = isinstance(beta1, Value)
        if cycled:
            new_m = m._next("axpy_update", m - (g + p * coupled if coupled else g), 1.0 - beta1)
        else:
            new_m = m._next("adam_m", g, p, beta=beta1, weight_decay=coupled)
        new_v = v._next("adam_v", g, p, beta=beta2, weight_decay=coupled)
        changed, spread = {m: new_m, v: new_v}, new_v
        if spec.amsgrad:
            most = slot("adam_most")
            changed[most] = spread = maximum(most, new_v)
        own = spec.weight_decay if decoupled else 0.0
        eps = _eps(spec, 1e-8)
        if cycled:
            # With beta1 = 0 only the second moment is corrected. The correction of the first is in the learning rate,
            # or in the moment, where the rate says how much decays, too.
            rest, beta1 = _rest_of_power(beta1, step), 0.0
            lr, new_m = (lr, new_m * (1.0 / rest)) if own else (lr / rest, new_m)
        new = p._next(
            "adam_update", new_m, spread, lr, step, beta1=beta1, beta2=beta2, eps=eps, decoupled_weight_decay=own
        )
        return {**changed, p: new}

    return update


def _nadam(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """Adam whose first moment is looked ahead; the product of its momenta is state (Dozat 2016)."""
    beta1, beta2 = _betas(spec, (0.9, 0.999))
    kept, g = _apart(p, g, lr, spec)
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
    return {m: new_m, v: new_v, product: so_far, p: kept._next("adam_update", ahead, new_v, lr, step, **rest)}


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
    if isinstance(spec.momentum, Value) or spec.momentum:
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


def _power(base: Any, t: Any) -> Any:
    """base, a number or a tensor, to the power t, of a tensor."""
    if isinstance(base, Value):
        return (t * base.log()).exp()
    return (t * math.log(base)).exp() if base else t * 0.0


def _adamax(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """Adam by the largest gradient so far instead of the second moment (Kingma and Ba 2015, algorithm 2)."""
    beta1, beta2 = _betas(spec, (0.9, 0.999))
    g = _decayed(p, g, spec)
    m, most = slot("adamax_m"), slot("adamax_most")
    new_m = m * beta1 + g * (1.0 - beta1)
    new_most = maximum(most * beta2, g.abs() + _eps(spec, 1e-8))
    return {m: new_m, most: new_most, p: p - new_m / new_most * (lr / (1.0 - _power(beta1, step)))}


def _radam(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """Adam that begins like SGD with momentum, as long as the second moment says little (Liu et al. 2020)."""
    beta1, beta2 = _betas(spec, (0.9, 0.999))
    kept, g = _apart(p, g, lr, spec)
    m, v = slot("radam_m"), slot("radam_v")
    new_m, new_v = m * beta1 + g * (1.0 - beta1), v * beta2 + g.square() * (1.0 - beta2)
    move = new_m * (1.0 / (1.0 - _power(beta1, step)))
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    if rho_inf > 5.0:
        # The length of the average, rho = rho_inf - 2 t beta2^t / (1 - beta2^t): the difference of two numbers near
        # rho_inf, so while y = -t log(beta2) is small it is taken from the series of y / (e^y - 1).
        scale, y = -2.0 / math.log(beta2), step * -math.log(beta2)
        square = y.square()
        early = step - (square / 12.0 - square.square() / 720.0) * scale + (rho_inf - scale)
        late = rho_inf - step * 2.0 / (maximum(y, 0.25).exp() - 1.0)
        rho = where(y < 0.5, early, late)
        known = maximum(rho, 5.0)
        share = ((known - 4.0) * (known - 2.0) / known * (rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0)))).sqrt()
        rectified = (1.0 - _power(beta2, step)).sqrt() * share / (new_v.sqrt() + _eps(spec, 1e-8))
        move = move * where(rho > 5.0, rectified, 1.0)
    return {m: new_m, v: new_v, p: kept - move * lr}


def _adadelta(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """The gradient over the root of its mean square, in units of the root of the mean square of moves (Zeiler 2012)."""
    g, keep, eps = _decayed(p, g, spec), spec.rho, _eps(spec, 1e-6)
    v, moves = slot("adadelta_v"), slot("adadelta_moves")
    new_v = v * keep + g.square() * (1.0 - keep)
    move = g * ((moves + eps).sqrt() / (new_v + eps).sqrt())
    return {v: new_v, moves: moves * keep + move.square() * (1.0 - keep), p: p - move * lr}


def _adafactor(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """Second moments of matrices kept as rows and columns; moves relative to the parameter (Shazeer and Stern 2018)."""
    new, least = (step.log() * spec.beta2_decay).exp(), finfo(p.dtype).eps
    size = maximum(p.square().mean().sqrt(), spec.least_scale) * minimum(lr, 1.0 / step.sqrt())
    kept = p * (1.0 - lr * spec.weight_decay) if spec.weight_decay else p
    square = g.square()
    if len(p.shape) > 1:
        rows = slot("adafactor_rows", 0.0, (*p.shape[:-1], 1))
        columns = slot("adafactor_columns", 0.0, (*p.shape[:-2], 1, p.shape[-1]))
        new_rows = rows + (square.mean(-1, keepdims=True) - rows) * new
        new_columns = columns + (square.mean(-2, keepdims=True) - columns) * new
        changed = {rows: new_rows, columns: new_columns}
        spread = new_rows * new_columns / maximum(new_rows.mean(-2, keepdims=True), least)
    else:
        v = slot("adafactor_v")
        spread = v + (square - v) * new
        changed = {v: spread}
    move = g / maximum(spread, least * least).sqrt()
    most = maximum(move.square().mean().sqrt() / spec.clip_threshold, 1.0)
    return {**changed, p: kept - move * (size / most)}


def _rprop(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """Steps of each element's own size, larger while its gradient keeps its sign (Riedmiller and Braun 1993)."""
    less, more = spec.etas
    g = _decayed(p, g, spec)
    before, size = slot("rprop_gradient"), slot("rprop_size", spec.learning_rate)
    turn = (g * before).sign()
    grown = where(turn > 0.0, size * more, where(turn < 0.0, size * less, size))
    new_size = minimum(maximum(grown, spec.step_sizes[0]), spec.step_sizes[1])
    kept = where(turn < 0.0, 0.0, g)  # after a change of sign the element waits for one step
    return {before: kept, size: new_size, p: p - kept.sign() * new_size}


def _asgd(p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec) -> dict[Any, Any]:
    """SGD of a falling rate, with the average of what p was (Polyak and Juditsky 1992; torch's eta, mu and ax)."""
    g = _decayed(p, g, spec)
    average, done = slot("asgd_average"), step - 1.0
    rate = lr / ((lr * done * spec.rate_decay + 1.0).log() * spec.rate_power).exp()
    new = p * (1.0 - rate * spec.rate_decay) - g * rate
    share = 1.0 / maximum(done - float(spec.average_from), 1.0)
    return {average: new + (average - new) * (1.0 - share), p: new}


UPDATES: Mapping[str, Rule] = {
    "sgd": _sgd,
    "adam": _adam(False),
    "adamw": _adam(True),
    "nadam": _nadam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
    "adamax": _adamax,
    "radam": _radam,
    "adadelta": _adadelta,
    "adafactor": _adafactor,
    "rprop": _rprop,
    "asgd": _asgd,
}


def check(spec: OptimizerSpec) -> None:
    """Raises SpecError where options do not go together."""
    if spec.nesterov and (spec.name != "sgd" or spec.momentum == 0.0):
        raise SpecError("optimizer: nesterov needs the name sgd and a momentum above 0")
    if not 0.0 <= spec.dampening <= 1.0 or (spec.dampening and (spec.name != "sgd" or spec.nesterov)):
        raise SpecError(
            f"optimizer: expected a dampening from 0 to 1, of sgd without nesterov, got {spec.dampening} of {spec.name}"
            f"{' with nesterov' if spec.nesterov else ''}"
        )
    if spec.amsgrad and spec.name not in ("adam", "adamw"):
        raise SpecError(f"optimizer: amsgrad is of adam and adamw, got it for {spec.name}; leave it out")
    if spec.decoupled_weight_decay and spec.name not in ("adam", "adamw", "nadam", "radam"):
        raise SpecError(
            f"optimizer: decoupled_weight_decay is of adam, adamw, nadam and radam, got it for {spec.name}; leave it "
            "out"
        )
    if not 0.0 < spec.etas[0] < 1.0 < spec.etas[1]:
        raise SpecError(f"optimizer: expected etas below and above 1, got {spec.etas}")
    if not 0.0 < spec.step_sizes[0] <= spec.step_sizes[1]:
        raise SpecError(f"optimizer: expected step_sizes above 0, the least first, got {spec.step_sizes}")


def next_values(
    p: Any, g: Any, slot: Slot, lr: Any, step: Any, spec: OptimizerSpec, momentum: Any = None
) -> dict[Any, Any]:
    """{old: new} of a parameter and its state after one step. lr and step: float scalars of the parameter's dtype.

    momentum: such a scalar, too, in place of the spec's number (of its beta1, in rules that have one).
    What l1 adds to the gradient is l1 * sign(p), the subgradient of l1 * |p|.
    """
    if momentum is not None:
        own = {"momentum": momentum} if spec.betas is None else {"betas": (momentum, spec.betas[1])}
        spec = msgspec.structs.replace(spec, **own)
    if spec.maximize:
        g = -g
    if spec.l1:
        g = g + p.sign() * spec.l1
    return UPDATES[spec.name](p, g, slot, lr, step, spec)
