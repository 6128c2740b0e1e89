"""Optimisers over tensors: step() changes the parameters in place. Names, formulas and defaults are torch's.

A training job applies the same rules (cyxcore/updates.py) from inside its plan.

    optimizer = cx.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=3e-4)
    schedule = cx.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)

`foreach`, `fused` and `capturable` say in PyTorch how to be fast: they change nothing here.
"""

import importlib
from collections.abc import Iterable
from typing import Any

from cyxcore import torchpaths
from cyxcore.eager import Tensor
from cyxcore.errors import SpecError
from cyxcore.lbfgs import LBFGS as LBFGS
from cyxcore.muon import Muon as Muon
from cyxcore.nn.utils import clip_grad_norm_ as clip_grad_norm_
from cyxcore.nn.utils import clip_grad_value_ as clip_grad_value_
from cyxcore.optimizer import Group as Group
from cyxcore.optimizer import Optimizer as Optimizer
from cyxcore.optimizer import Parameters as Parameters

__path__: list[str] = []  # cyxcore.optim.lr_scheduler: cyxcore/torchpaths.py
__all__ = (
    "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax ExponentialMovingAverage LBFGS Lion Muon NAdam Optimizer RAdam "
    "RMSprop Rprop SGD clip_grad_norm_ clip_grad_value_"
).split()


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


def not_differentiable(optimizer: Optimizer, asked: bool) -> None:
    """Raises SpecError where a step shall have a gradient itself."""
    if asked:
        raise SpecError(
            f"{type(optimizer).__name__}: differentiable is always False here: a step has no gradient; write the "
            "update as tensor operations"
        )


class SGD(Optimizer):
    """p - lr g, with momentum, Nesterov's look ahead and weight decay.

    dampening: what each gradient but the first loses on its way into the momentum.
    """

    rule = "sgd"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def slot(self, place: int, p: Any, kind: str, start: float = 0.0, shape: tuple[int, ...] | None = None) -> Any:
        begun = kind == "momentum_begun" and "momentum" in self.state.get(place, ())  # without dampening, until now
        return super().slot(place, p, kind, 1.0 if begun else start, shape)


class Adam(Optimizer):
    """Decay is added to the gradient, unless decoupled_weight_decay says that it shrinks the parameter itself.

    amsgrad: divides by the root of the largest second moment so far (Reddi et al. 2018).
    """

    rule = "adam"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(Adam):
    """Decay shrinks the parameter itself. amsgrad: as in Adam."""

    rule = "adamw"
    unread = frozenset({"decoupled_weight_decay"})  # of the state of an Adam

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        not_differentiable(self, differentiable)
        Optimizer.__init__(
            self, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize
        )


class NAdam(Optimizer):
    """Adam with Nesterov's look ahead."""

    rule = "nadam"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )


class RMSprop(Optimizer):
    """The gradient over the root of a running mean of its square (Tieleman and Hinton 2012)."""

    rule = "rmsprop"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )


class Adagrad(Optimizer):
    """The gradient over the root of the sum of its squares (Duchi 2011)."""

    rule = "adagrad"
    options = {"initial_accumulator_value": "initial_accumulator"}

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
        )


class Lion(Optimizer):
    """Moves by the sign of an interpolated momentum; its learning rate is about a tenth of AdamW's. Not in PyTorch."""

    rule = "lion"

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, maximize=maximize)


class Adamax(Optimizer):
    """Adam by the largest gradient so far (Kingma and Ba 2015)."""

    rule = "adamax"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.002,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)


class RAdam(Optimizer):
    """Adam that begins like SGD with momentum (Liu et al. 2020)."""

    rule = "radam"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )


class Adadelta(Optimizer):
    """Moves of the size of those before (Zeiler 2012)."""

    rule = "adadelta"

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize)


class Adafactor(Optimizer):
    """Adam with the memory of a row and a column for each matrix (Shazeer and Stern 2018).

    eps: the least root mean square of a parameter that counts; of PyTorch's pair the second, its first being None (the
    dtype's own). d: what the root mean square of a move may be.
    """

    rule = "adafactor"
    options = {"d": "clip_threshold", "eps": "least_scale"}

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        beta2_decay: float = -0.8,
        eps: tuple[None, float] | float = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        if isinstance(eps, tuple) and eps[0] is not None:
            raise SpecError(f"Adafactor: expected None as the first of eps, got {eps[0]}")
        least = eps[1] if isinstance(eps, tuple) else eps
        super().__init__(
            params, lr=lr, beta2_decay=beta2_decay, eps=least, d=d, weight_decay=weight_decay, maximize=maximize
        )


class Rprop(Optimizer):
    """Each element moves by a step of its own, by the sign of its gradient: for whole batches (Riedmiller 1993).

    lr: the first step; schedules change nothing of those that follow. etas: what a step is multiplied with after a
    change of sign, and without one. step_sizes: the least and the largest.
    """

    rule = "rprop"

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(params, lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize)


class ASGD(Optimizer):
    """SGD that also averages what a parameter was, from step t0 on (Polyak and Juditsky 1992).

    The rate of a step is lr / (1 + lambd * lr * steps before it) ** alpha, with the lr that a schedule gives this step
    (in torch: that of the step before). The averages are in `state[place]["asgd_average"]`.
    """

    rule = "asgd"
    options = {"lambd": "rate_decay", "alpha": "rate_power", "t0": "average_from"}

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        not_differentiable(self, differentiable)
        super().__init__(
            params, lr=lr, lambd=lambd, alpha=alpha, t0=int(t0), weight_decay=weight_decay, maximize=maximize
        )


def __getattr__(name: str) -> Any:
    """optim.lr_scheduler and optim.swa_utils, as PyTorch's code writes them."""
    if name in ("lr_scheduler", "swa_utils"):
        return importlib.import_module(f"cyxcore.{name}")
    return torchpaths.below("optim")(name)
