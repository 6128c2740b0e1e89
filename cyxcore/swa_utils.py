"""Models whose parameters are averages of those of a model in training: cx.optim.swa_utils, with PyTorch's names.

averaged = cx.optim.swa_utils.AveragedModel(model, multi_avg_fn=cx.optim.swa_utils.get_ema_multi_avg_fn(0.999))
…
optimizer.step()
averaged.update_parameters(model)
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

from cyxcore.creation import tensor
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import SpecError
from cyxcore.nn.module import Module
from cyxcore.nn.norms import _BatchNorm
from cyxcore.optimizer import Optimizer
from cyxcore.scheduler import LRScheduler, of_optimizer, per_group

__all__ = ["SWALR", "AveragedModel", "get_ema_avg_fn", "get_ema_multi_avg_fn", "get_swa_multi_avg_fn", "update_bn"]

Average = Callable[[Any, Any, Any], Any]


def get_ema_avg_fn(decay: float = 0.999) -> Average:
    """decay * average + (1 - decay) * parameter"""
    if not 0.0 <= decay <= 1.0:
        raise SpecError(f"get_ema_avg_fn: expected a decay of 0..1, got {decay}")
    return lambda average, own, count: average * decay + own * (1.0 - decay)


def _mean(average: Any, own: Any, count: Any) -> Any:
    return average + (own - average) / (float(count) + 1.0)


def _of_each(change: Average) -> Average:
    def average(averages: Iterable[Tensor], parameters: Iterable[Tensor], count: Any) -> None:
        for held, own in zip(averages, parameters, strict=True):
            held._assign(change(held.detach(), own.detach(), count))

    return average


def get_ema_multi_avg_fn(decay: float = 0.999) -> Average:
    """get_ema_avg_fn over lists of parameters."""
    return _of_each(get_ema_avg_fn(decay))


def get_swa_multi_avg_fn() -> Average:
    """The mean of all parameters so far, over lists of them."""
    return _of_each(_mean)


class AveragedModel(Module):
    """A copy of a model in `module`, whose parameters are averages: the mean of all so far unless told otherwise.

    avg_fn(average, parameter, count) gives the new average, multi_avg_fn(averages, parameters, count) writes lists of
    them; count: how often was averaged before. use_buffers: buffers are averaged too; otherwise they are copied.
    """

    def __init__(
        self,
        model: Module,
        device: str | None = None,
        avg_fn: Average | None = None,
        multi_avg_fn: Average | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise SpecError("AveragedModel: expected at most one of avg_fn and multi_avg_fn, got both")
        self.module = copy.deepcopy(model)
        if device is not None:
            self.module.to(device)
        self.register_buffer("n_averaged", tensor(0))
        self.use_buffers = use_buffers
        self._average = multi_avg_fn or _of_each(avg_fn or _mean)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def update_parameters(self, model: Module) -> None:
        """After a step of the optimiser: let the model's parameters into the averages."""
        count = int(self.n_averaged.item())
        averages, parameters = list(self.module.parameters()), list(model.parameters())
        if self.use_buffers:
            averages, parameters = [*averages, *self.module.buffers()], [*parameters, *model.buffers()]
        with no_grad():
            moved = [own.detach().to(held.device) for held, own in zip(averages, parameters, strict=True)]
            if count:
                self._average(averages, moved, count)
            else:
                for held, own in zip(averages, moved, strict=True):
                    held._assign(own)
            if not self.use_buffers:
                for held, own in zip(self.module.buffers(), model.buffers(), strict=True):
                    held._assign(own.detach().to(held.device))
            self.n_averaged += 1


def update_bn(loader: Iterable[Any], model: Module) -> None:
    """The running statistics of batch norms anew, as means over the batches of a loader, for a model's own weights.

    Of a batch that is a tuple or list the first is the input.
    """
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    modes = [(part, part.training) for part in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.train()
    try:
        with no_grad():
            for number, batch in enumerate(loader):
                for norm in norms:
                    norm.momentum = 1.0 / (number + 1)  # a mean of all batches so far
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes:
            part.__dict__["training"] = mode


class SWALR(LRScheduler):
    """From where each group is to swa_lr in anneal_epochs steps, by a cosine or a line; then it stays there."""

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        if anneal_strategy not in ("cos", "linear"):
            raise SpecError(f"SWALR: expected anneal_strategy cos or linear, got {anneal_strategy!r}")
        if anneal_epochs < 0:
            raise SpecError(f"SWALR: expected anneal_epochs of at least 0, got {anneal_epochs}")
        self.optimizer = of_optimizer(self, optimizer)
        self.ends = per_group(self, "swa_lr", swa_lr)
        self.length, self.strategy = anneal_epochs, anneal_strategy
        super().__init__(optimizer, last_epoch)

    def _share(self, step: int) -> float:
        share = max(0.0, min(1.0, step / max(1, self.length)))
        return (1.0 - math.cos(math.pi * share)) / 2.0 if self.strategy == "cos" else share

    def get_lr(self) -> list[float]:
        """From the rates that are there, which another schedule may have set before the first step."""
        step = self.last_epoch if self.length else max(1, self.last_epoch)
        before, now = self._share(step - 1), self._share(step)
        starts = [
            end if before == 1.0 else (rate - before * end) / (1.0 - before)
            for rate, end in zip(self.rates(), self.ends, strict=True)
        ]
        return [end * now + start * (1.0 - now) for start, end in zip(starts, self.ends, strict=True)]
