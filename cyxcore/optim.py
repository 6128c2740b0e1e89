"""Optimisers over tensors: step() changes the parameters in place. Formulas and defaults are torch's.

A training job applies the same ops from inside its plan (training.py).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore.eager import Tensor
from cyxcore.errors import SpecError

Array = np.ndarray[Any, Any]


def _scalar(value: float, like: Array) -> Array:
    return np.array(value, like.dtype)


class Optimizer:
    """Holds the parameters and, per parameter, the arrays an update rule needs."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.steps = 0
        if not self.parameters:
            raise SpecError(f"{type(self).__name__}: expected at least one parameter, got none")

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        self.steps += 1
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self._update(index, parameter.numpy(), parameter.grad.numpy())

    def _update(self, index: int, p: Array, g: Array) -> None:
        raise NotImplementedError

    @staticmethod
    def _call(op: str, out: Array, *others: Array, **attrs: float) -> None:
        """An optimiser op whose result replaces its first input."""
        devices.backend(devices.default_device()).call(op, out, [out, *others], attrs)


class SGD(Optimizer):
    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.001,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        if nesterov and momentum == 0.0:
            raise SpecError("SGD: nesterov needs a momentum above 0")
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.buffers: dict[int, Array] = {}

    def _update(self, index: int, p: Array, g: Array) -> None:
        lr = _scalar(self.lr, p)
        if self.momentum == 0.0:
            self._call("sgd_update", p, g, lr, weight_decay=self.weight_decay)
            return
        buffer = self.buffers.setdefault(index, np.zeros_like(p))
        self._call("momentum", buffer, g, p, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.nesterov:
            self._call("nesterov_update", p, g, buffer, lr, momentum=self.momentum, weight_decay=self.weight_decay)
        else:
            self._call("axpy_update", p, buffer, lr)


class Adam(Optimizer):
    """Decay is added to the gradient."""

    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.moments: dict[int, tuple[Array, Array]] = {}

    def _update(self, index: int, p: Array, g: Array) -> None:
        m, v = self.moments.setdefault(index, (np.zeros_like(p), np.zeros_like(p)))
        decay = 0.0 if self.decoupled else self.weight_decay
        self._call("adam_m", m, g, p, beta=self.betas[0], weight_decay=decay)
        self._call("adam_v", v, g, p, beta=self.betas[1], weight_decay=decay)
        self._call(
            "adam_update",
            p,
            m,
            v,
            _scalar(self.lr, p),
            _scalar(self.steps, p),
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps,
            decoupled_weight_decay=self.weight_decay if self.decoupled else 0.0,
        )


class AdamW(Adam):
    """Decay shrinks the parameter itself."""

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)
