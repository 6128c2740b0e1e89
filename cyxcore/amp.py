"""PyTorch's torch.amp: products in halves where they are asked for, and loss scaling. docs/numerics.md says more."""

import functools
import operator
import warnings
import weakref
from contextlib import ContextDecorator
from typing import Any

import numpy as np

from cyxcore import casting
from cyxcore import device as devices
from cyxcore.dtype import dtype_name
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import GradientError, SpecError
from cyxcore.functional.basic import where
from cyxcore.nn.module import Module
from cyxcore.optimizer import Optimizer
from cyxcore.symbols import Symbol
from cyxcore.values import Value

__all__ = ["GradScaler", "autocast"]


class autocast(ContextDecorator):  # noqa: N801 - PyTorch's
    """Within the block, or the function it decorates, products of this thread are made of halves.

    Of float32 tensors on the cpu matrix products, convolutions and attention take the nearest bfloat16 (or float16)
    numbers, are summed in float32 and rounded once; losses, and what PyTorch's lists for the CPU name with them, are
    computed in float32. Everything else has the dtype of its inputs: normalisations and activations of halves are
    computed in float32 and rounded to halves. Parameters stay float32, and so do their gradients. float64 and tensors
    of other devices are left as they are. A graph that is traced to be saved or sent (cx.trace, jobs) raises
    GraphError.

    device_type: cpu; with cuda nothing changes, whose kernels have no halves. dtype: bfloat16 (also by default) or
    float16, which needs a GradScaler. enabled: False computes in the tensors' dtypes, also within another autocast.
    cache_enabled: accepted and without effect: a parameter is cast where it is used. Raises SpecError for others.
    """

    def __init__(
        self, device_type: str = "cpu", dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device_type, self.enabled = str(device_type), bool(enabled)
        if self.device_type not in ("cpu", "cuda"):
            raise SpecError(f"autocast: expected the device_type cpu or cuda, got {self.device_type!r}")
        self.dtype = "bfloat16" if dtype is None else dtype_name(dtype)
        if self.enabled and self.dtype not in casting.HALVES:
            raise SpecError(f"autocast: expected bfloat16 or float16, got {self.dtype}")
        self._before: list[str | None] = []  # a function that it decorates may call itself

    def _recreate_cm(self) -> "autocast":
        return autocast(self.device_type, self.dtype, self.enabled)

    def __enter__(self) -> "autocast":
        if self.device_type == "cpu":
            self._before.append(casting.set_current(self.dtype if self.enabled else None))
        return self

    def __exit__(self, *_: object) -> None:
        if self.device_type == "cpu":
            casting.set_current(self._before.pop())


class GradScaler(Module):
    """Multiplies a loss so that small gradients of float16 do not vanish, and divides them again: PyTorch's.

        scaler.scale(loss).backward()
        scaler.step(optimizer)  # unless a gradient is infinite or NaN
        scaler.update()

    The scale, a float32, is multiplied by backoff_factor after steps that were left out, and by growth_factor after
    growth_interval others in a row. In a compiled step all of these calls stand in it: whether the update counts is
    decided in its plan. bfloat16 needs no scale, its exponents are those of float32.

    A Module, so that a compiled step finds its state: the buffers _scale and _growth_tracker.
    """

    def __init__(
        self,
        device: str = "cpu",
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        """device: where the scale is; where that is not there, nothing is scaled, as in PyTorch, with a warning.

        enabled: False scales by 1 and leaves no step out. Raises SpecError for factors that do not grow or shrink.
        """
        super().__init__()
        where_to = str(device).partition(":")[0]
        if enabled and (missing := devices.missing(where_to)):
            warnings.warn(f"GradScaler: nothing is scaled: {missing}", stacklevel=2)
            enabled = False
        if growth_factor <= 1.0 or not 0.0 < backoff_factor < 1.0:
            raise SpecError(
                f"GradScaler: expected a growth_factor above 1 and a backoff_factor between 0 and 1, got "
                f"{growth_factor} and {backoff_factor}"
            )
        self._growth_factor, self._backoff_factor = float(growth_factor), float(backoff_factor)
        self._growth_interval, self._enabled = int(growth_interval), bool(enabled)
        start = Tensor(np.float32(init_scale)), Tensor(np.int32(0))
        for name, tensor in zip(("_scale", "_growth_tracker"), start, strict=True):
            self.register_buffer(name, tensor.to(where_to) if enabled else tensor)
        self._stages: weakref.WeakKeyDictionary[Any, dict[int, _Stage]] = weakref.WeakKeyDictionary()

    def scale(self, outputs: Any) -> Any:
        """outputs * the scale: of a tensor, or of each in a tuple or list. Raises SpecError for others."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Value):
            return outputs * self._scale
        if isinstance(outputs, (tuple, list)):
            return type(outputs)([self.scale(one) for one in outputs])
        raise SpecError(f"GradScaler.scale: expected tensors, got {type(outputs).__name__}")

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of its parameters by the scale, once in each step: before they are clipped, for example.

        Raises GradientError where that was done since the last update(), and for parameters of float16.
        """
        if not self._enabled:
            return
        stage = self._stage(optimizer)
        if stage.found is not None:
            done = "step()" if stage.stepped else "unscale_()"
            raise GradientError(f"GradScaler.unscale_: {done} was called for this optimizer since the last update()")
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not trained:
            raise GradientError("GradScaler: no parameter of this optimizer has a gradient; call backward() before")
        if any(p.grad.dtype == "float16" for p in trained):
            raise GradientError("GradScaler: a gradient of float16 is not unscaled; keep the parameters in float32")
        with no_grad():
            inverse = (1.0 / self._scale.astype("float64")).astype("float32")
            zeros: Any = 0.0  # NaN where a gradient is not finite
            for p in trained:
                zeros = zeros + (p.grad * 0.0).sum().astype("float32")
                p.grad = p.grad * inverse.astype(p.grad.dtype)
            stage.found = zeros != 0.0

    def step(self, optimizer: Optimizer, *args: Any, **options: Any) -> Any:
        """optimizer.step(...) by unscaled gradients, if all of them are finite. Returns what that does, or None.

        Raises GradientError for a second one since the last update(), and for a closure.
        """
        if not self._enabled:
            return optimizer.step(*args, **options)
        if args or options.get("closure") is not None:
            raise GradientError("GradScaler.step: expected no closure, whose gradients would be checked too late")
        stage = self._stage(optimizer)
        if stage.stepped:
            raise GradientError("GradScaler.step: it was called for this optimizer since the last update()")
        if stage.found is None:
            self.unscale_(optimizer)
        stage.stepped = True
        if isinstance(stage.found, Symbol):
            return optimizer.step_unless(stage.found)
        return None if bool(stage.found) else optimizer.step(**options)

    def update(self, new_scale: Any = None) -> None:
        """The scale for the next step, by what was found in this one, or a given one. Raises GradientError where
        nothing was unscaled since the last update().
        """
        if not self._enabled:
            return
        with no_grad():
            if new_scale is not None:
                value = new_scale if isinstance(new_scale, Value) else self._scale._constant(float(new_scale))
                self._scale._assign(value.astype("float32").reshape(()))
            else:
                self._follow([stage.found for stage in self._stages_here().values() if stage.found is not None])
        self._stages_here().clear()

    def _follow(self, found: list[Any]) -> None:
        """found: of each optimizer, whether a gradient was not finite."""
        if not found:
            raise GradientError(
                "GradScaler.update: expected unscale_() or step() before it; those of a compiled step are in its plan, "
                "where update() has to stand too"
            )
        any_found = functools.reduce(operator.or_, found)
        scale, count = self._scale, self._growth_tracker + 1
        wide = scale.astype("float64")
        grown, shrunk = ((wide * by).astype("float32") for by in (self._growth_factor, self._backoff_factor))
        due = count == self._growth_interval
        new = where(any_found, shrunk, where(due & (grown - grown == 0.0), grown, scale))
        self._growth_tracker._assign(where(any_found | due, 0, count).astype("int32"))
        scale._assign(new)

    def _stages_here(self) -> "dict[int, _Stage]":
        """By the ids of optimizers; those of a trace by themselves, so that it leaves nothing behind."""
        builder = getattr(self._scale, "builder", None)
        if builder is not None and builder not in self._stages:
            builder.at_end.append(self._check_updated)
        return self._stages.setdefault(self if builder is None else builder, {})

    def _stage(self, optimizer: Optimizer) -> "_Stage":
        return self._stages_here().setdefault(id(optimizer), _Stage())

    def _check_updated(self) -> None:
        if self._stages_here():
            raise GradientError(
                "compile: a GradScaler's unscale_() or step() stands in the step, but no update() behind it; call "
                "scale, unscale_, step and update in the compiled step, or all but scale outside of it"
            )

    def get_scale(self) -> float:
        """What outputs are multiplied with; 1 of a scaler that is not enabled."""
        return float(self._scale.item()) if self._enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether it scales."""
        return self._enabled

    def get_growth_factor(self) -> float:
        """By what the scale is multiplied after growth_interval good steps."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Another growth factor, from now on."""
        self._growth_factor = float(new_factor)

    def get_backoff_factor(self) -> float:
        """By what the scale is multiplied after a step that was left out."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Another backoff factor, from now on."""
        self._backoff_factor = float(new_factor)

    def get_growth_interval(self) -> int:
        """After how many good steps in a row the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Another interval, from now on."""
        self._growth_interval = int(new_interval)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The numbers that PyTorch's has, by its names; {} of a scaler that is not enabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": int(self._growth_tracker.item()),
        }

    def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """Go on from a state. Raises SpecError for that of a scaler that was not enabled, which is empty."""
        if not self._enabled:
            return
        if not state_dict:
            raise SpecError("GradScaler: the state is empty, as that of a scaler that is not enabled; make a new one")
        self._growth_factor, self._backoff_factor = state_dict["growth_factor"], state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        for name, key in (("_scale", "scale"), ("_growth_tracker", "_growth_tracker")):
            held = self._buffers[name]
            held._assign(held._constant(state_dict[key], held.dtype))


class _Stage:
    """Of an optimizer since the last update(). found: whether a gradient was not finite; None: they are scaled yet."""

    found: Any = None
    stepped = False
