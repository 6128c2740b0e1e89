"""Layers that normalise: torch's constructors and parameter names around cyxcore.functional."""

from collections.abc import Sequence
from typing import Any

from cyxcore import functional as F
from cyxcore.attrs import several
from cyxcore.creation import ones, zeros
from cyxcore.errors import SpecError
from cyxcore.nn.module import Layer, Module, Parameter, check_sizes


class _Norm(Layer):
    """What norms by channel share: weight and bias, and statistics that follow those of the batches."""

    def _affine(self, count: int, affine: bool, bias: bool) -> None:
        self.weight = Parameter.drawn((count,), {"kind": "ones"}) if affine else None
        self.bias = Parameter.drawn((count,), {"kind": "zeros"}) if affine and bias else None

    def _track(self, count: int, momentum: float | None, track: bool) -> None:
        self.momentum, self.track_running_stats = momentum, track
        self.register_buffer("running_mean", zeros(count) if track else None)
        self.register_buffer("running_var", ones(count) if track else None)
        if track and momentum is None:  # the mean of all batches needs their number
            self.register_buffer("num_batches_tracked", zeros(()))

    def reset_running_stats(self) -> None:
        """Begin anew: mean 0, variance 1, no batch seen."""
        for name, value in self._buffers.items():
            if value is not None:
                value.fill_(1.0 if name == "running_var" else 0.0)

    def reset_parameters(self) -> None:
        """Give weight, bias and running statistics the values of a new layer."""
        self.reset_running_stats()
        super().reset_parameters()

    def _share(self) -> Any:
        """How far the running statistics are moved: momentum; without one as in the mean of all batches so far."""
        if self.momentum is not None or not self.track_running_stats:
            return 0.1 if self.momentum is None else self.momentum
        if self.training == 0:  # also compiled; while a model is traced it is neither
            return 0.0
        count = self.num_batches_tracked._following() + 1.0
        self.num_batches_tracked._assign(count)
        return 1.0 / count


class _BatchNorm(_Norm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        bias: bool = True,
    ) -> None:
        """momentum: None keeps the mean of all batches. Without track_running_stats inference uses its batch's."""
        super().__init__()
        check_sizes(self, num_features=num_features)
        self.num_features, self.eps = num_features, eps
        self._affine(num_features, affine, bias)
        self._track(num_features, momentum, track_running_stats)

    def forward(self, x: Any) -> Any:
        given = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x, *given, self.training, self._share(), self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """Per feature of (N, C) or channel of (N, C, L)."""


class BatchNorm2d(_BatchNorm):
    """Per channel of (N, C, H, W)."""


class BatchNorm3d(_BatchNorm):
    """Per channel of (N, C, D, H, W)."""


class _InstanceNorm(_Norm):
    rank = 1

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        bias: bool = True,
    ) -> None:
        """track_running_stats: inference uses running statistics, as of BatchNorm. SpecError without a momentum."""
        super().__init__()
        if track_running_stats and momentum is None:
            raise SpecError(f"{type(self).__name__}: expected a momentum for its running statistics, got None")
        check_sizes(self, num_features=num_features)
        self.num_features, self.eps = num_features, eps
        self._affine(num_features, affine, bias)
        self._track(num_features, momentum, track_running_stats)

    def forward(self, x: Any) -> Any:
        if x.ndim == self.rank + 1:
            return self.forward(x.expand_dims(0)).squeeze(0)
        given = (self.running_mean, self.running_var, self.weight, self.bias)
        own = self.training if self.track_running_stats else True
        return F.instance_norm(x, *given, own, self._share(), self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class InstanceNorm1d(_InstanceNorm):
    """Each channel of each row of (N, C, L), or of (C, L)."""


class InstanceNorm2d(_InstanceNorm):
    """Each channel of each row of (N, C, H, W), or of (C, H, W)."""

    rank = 2


class InstanceNorm3d(_InstanceNorm):
    """Each channel of each row of (N, C, D, H, W), or of (C, D, H, W)."""

    rank = 3


class GroupNorm(_Norm):
    """Over each group of channels of each row of (N, C, ...)."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        check_sizes(self, num_groups, num_channels=num_channels)
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self._affine(num_channels, affine, bias)

    def forward(self, x: Any) -> Any:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, eps={self.eps}"


class LayerNorm(Layer):
    """Over the last axes."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.normalized_shape = several(normalized_shape)
        self.eps = eps
        affine = elementwise_affine
        self.weight = Parameter.drawn(self.normalized_shape, {"kind": "ones"}) if affine else None
        self.bias = Parameter.drawn(self.normalized_shape, {"kind": "zeros"}) if affine and bias else None

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class RMSNorm(Layer):
    """Over the last axes, without taking the mean off. eps: None is the dtype's, as PyTorch's default is."""

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float | None = 1e-6, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = several(normalized_shape)
        self.eps = eps
        self.weight = Parameter.drawn(self.normalized_shape, {"kind": "ones"}) if elementwise_affine else None

    def forward(self, x: Any) -> Any:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class LocalResponseNorm(Module):
    """x over (k + alpha mean of the squares of `size` neighbouring channels)^beta (Krizhevsky et al. 2012)."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Any) -> Any:
        return F.local_response_norm(x, self.size, self.alpha, self.beta, self.k)
