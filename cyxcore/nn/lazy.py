"""Modules that learn from the first call how many features or channels they get, and are the plain ones from then on.

Their parameters are not there before: take them (for an optimiser, a state dict) after one call on a tensor.
"""

from typing import Any

from cyxcore.errors import ShapeError, SpecError
from cyxcore.nn import layers, norms
from cyxcore.nn.module import Module
from cyxcore.symbols import Symbol


class _Lazy(Module):
    plain: type[Module]
    axis = 1  # of the input, whose size is asked for

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.__dict__["_wanted"] = (arguments, options)

    def _ready(self) -> None:
        raise SpecError(
            f"{type(self).__name__} has no parameters yet: call the model once on a tensor, then take its parameters"
        )

    def forward(self, x: Any) -> Any:
        if isinstance(x, Symbol):
            self._ready()
        plain: Any = self.plain
        if x.ndim <= max(self.axis, 0):
            raise ShapeError(f"{type(self).__name__}: expected an input with an axis {self.axis}, got {x.shape}")
        size = x.shape[self.axis]
        arguments, options = self.__dict__.pop("_wanted")
        training, hooks = self.training, self.__dict__.get("_hooks")
        object.__setattr__(self, "__class__", plain)
        plain.__init__(self, size, *arguments, **options)
        self.__dict__["training"] = training
        if hooks is not None:
            self.__dict__["_hooks"] = hooks
        return self.forward(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(not called yet)"


class LazyLinear(_Lazy):
    """Linear whose in_features are the last size of its first input."""

    plain, axis = layers.Linear, -1


class LazyConv1d(_Lazy):
    """Conv1d with the channels of its first input."""

    plain = layers.Conv1d


class LazyConv2d(_Lazy):
    """Conv2d with the channels of its first input."""

    plain = layers.Conv2d


class LazyConv3d(_Lazy):
    """Conv3d with the channels of its first input."""

    plain = layers.Conv3d


class LazyConvTranspose1d(_Lazy):
    """ConvTranspose1d with the channels of its first input."""

    plain = layers.ConvTranspose1d


class LazyConvTranspose2d(_Lazy):
    """ConvTranspose2d with the channels of its first input."""

    plain = layers.ConvTranspose2d


class LazyConvTranspose3d(_Lazy):
    """ConvTranspose3d with the channels of its first input."""

    plain = layers.ConvTranspose3d


class LazyBatchNorm1d(_Lazy):
    """BatchNorm1d with the channels of its first input."""

    plain = norms.BatchNorm1d


class LazyBatchNorm2d(_Lazy):
    """BatchNorm2d with the channels of its first input."""

    plain = norms.BatchNorm2d


class LazyBatchNorm3d(_Lazy):
    """BatchNorm3d with the channels of its first input."""

    plain = norms.BatchNorm3d


class LazyInstanceNorm1d(_Lazy):
    """InstanceNorm1d with the channels of its first input."""

    plain = norms.InstanceNorm1d


class LazyInstanceNorm2d(_Lazy):
    """InstanceNorm2d with the channels of its first input."""

    plain = norms.InstanceNorm2d


class LazyInstanceNorm3d(_Lazy):
    """InstanceNorm3d with the channels of its first input."""

    plain = norms.InstanceNorm3d
