"""Draws of one distribution taken through functions: log-normal numbers, actions within bounds."""

import math
from collections.abc import Sequence
from typing import Any

from cyxcore.distributions.base import HALF_LOG_TAU, Distribution, tensors
from cyxcore.distributions.continuous import Normal
from cyxcore.errors import SpecError
from cyxcore.functional import softplus, where
from cyxcore.special import logit


class Transform:
    """A function of each element that can be taken back."""

    def __call__(self, x: Any) -> Any:
        raise NotImplementedError

    def inv(self, y: Any) -> Any:
        """The x that y came from."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        """log |dy/dx|"""
        raise NotImplementedError


class AffineTransform(Transform):
    """loc + scale * x"""

    def __init__(self, loc: Any, scale: Any) -> None:
        self.loc, self.scale = loc, scale

    def __call__(self, x: Any) -> Any:
        return x * self.scale + self.loc

    def inv(self, y: Any) -> Any:
        return (y - self.loc) / self.scale

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        scale = self.scale
        return x * 0.0 + (math.log(abs(scale)) if isinstance(scale, (int, float)) else scale.abs().log())


class ExpTransform(Transform):
    """exp(x)"""

    def __call__(self, x: Any) -> Any:
        return x.exp()

    def inv(self, y: Any) -> Any:
        return y.log()

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        return x


class TanhTransform(Transform):
    """tanh(x)"""

    def __init__(self, cache_size: int = 0) -> None:
        """cache_size: accepted and without effect."""

    def __call__(self, x: Any) -> Any:
        return x.tanh()

    def inv(self, y: Any) -> Any:
        return logit((y + 1.0) * 0.5) * 0.5

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        return (math.log(2.0) - x - softplus(x * -2.0)) * 2.0


class SigmoidTransform(Transform):
    """1 / (1 + exp(-x))"""

    def __call__(self, x: Any) -> Any:
        return x.sigmoid()

    def inv(self, y: Any) -> Any:
        return logit(y)

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        return -softplus(-x) - softplus(x)


class ComposeTransform(Transform):
    """One transform after another."""

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0) -> None:
        """cache_size: accepted and without effect."""
        self.parts = list(parts)

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x

    def inv(self, y: Any) -> Any:
        for part in reversed(self.parts):
            y = part.inv(y)
        return y

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        total: Any = 0.0
        for part in self.parts:
            after = part(x)
            total, x = total + part.log_abs_det_jacobian(x, after), after
        return total


class _Backwards(Transform):
    """The inverse of a transform, as a transform."""

    def __init__(self, of: Transform) -> None:
        self._of = of

    def __call__(self, x: Any) -> Any:
        return self._of.inv(x)

    def inv(self, y: Any) -> Any:
        return self._of(y)

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        return -self._of.log_abs_det_jacobian(y, x)


def _as_transform(given: Any) -> Transform:
    """A transform as it is; `transform.inv`, which is called as a function here, as the transform it is in PyTorch."""
    of = getattr(given, "__self__", None)
    if isinstance(of, Transform) and getattr(given, "__name__", "") == "inv":
        return _Backwards(of)
    if not isinstance(given, Transform):
        raise SpecError("TransformedDistribution: expected transforms of cx.distributions")
    return given


class TransformedDistribution(Distribution):
    """Draws of base_distribution, taken through one transform after another."""

    def __init__(self, base_distribution: Distribution, transforms: Transform | Sequence[Transform]) -> None:
        several = list(transforms) if isinstance(transforms, (list, tuple)) else [transforms]
        self.transforms = [_as_transform(each) for each in several]
        self.base_dist = base_distribution
        self.batch_shape, self.event_shape = base_distribution.batch_shape, base_distribution.event_shape
        self.has_rsample = base_distribution.has_rsample

    def _through(self, x: Any) -> Any:
        for each in self.transforms:
            x = each(x)
        return x

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        return self._through(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        return self._through(self.base_dist.sample(sample_shape)).detach()

    def log_prob(self, value: Any) -> Any:
        y, slopes = value, None
        event = tuple(range(-len(self.event_shape), 0))
        for each in reversed(self.transforms):
            x = each.inv(y)
            slope = each.log_abs_det_jacobian(x, y)
            slopes, y = (slope if slopes is None else slopes + slope), x
        own = self.base_dist.log_prob(y)
        return own if slopes is None else own - (slopes.sum(event) if event else slopes)


class LogNormal(TransformedDistribution):
    """exp of a normal number."""

    def __init__(self, loc: Any, scale: Any) -> None:
        super().__init__(Normal(loc, scale), ExpTransform())
        base: Any = self.base_dist
        self.loc, self.scale = base.loc, base.scale

    def log_prob(self, value: Any) -> Any:
        (given,) = tensors(value)
        inside = given > 0.0
        return where(inside, super().log_prob(where(inside, given, 1.0)), -math.inf)

    @property
    def mean(self) -> Any:
        return (self.loc + self.scale.square() * 0.5).exp()

    @property
    def variance(self) -> Any:
        square = self.scale.square()
        return (square.exp() - 1.0) * (self.loc * 2.0 + square).exp()

    def entropy(self) -> Any:
        return self.loc + self.scale.log() + 0.5 + HALF_LOG_TAU
