"""Distributions to draw from and to take logarithms of, with torch.distributions' names: policies, latent variables.

Parameters are tensors that broadcast, or numbers. sample(shape) gives (*shape, *batch) without a gradient, rsample one
with; log_prob and entropy have gradients. Draws are those of the generator cx.manual_seed sets.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cyxcore import random
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional import log_softmax, softplus, take_along_axis, where
from cyxcore.manipulation import broadcast_arrays

__all__ = ["Bernoulli", "Categorical", "Distribution", "Normal", "Uniform", "kl_divergence"]


def _tensors(*values: Any) -> tuple[Any, ...]:
    """Numbers and tensors as float tensors of one shape."""
    made = [value if isinstance(value, Tensor) else Tensor(float(value)) for value in values]
    return broadcast_arrays(*made)


class Distribution:
    """batch_shape: of the parameters; each place of it is a distribution of its own."""

    batch_shape: tuple[int, ...]

    def rsample(self, shape: Sequence[int] = ()) -> Any:
        """A draw that gradients flow through to the parameters. Raises SpecError where there is none."""
        raise SpecError(f"{type(self).__name__} has no rsample: what it draws does not change a little at a time")

    def sample(self, shape: Sequence[int] = ()) -> Any:
        """A draw (*shape, *batch_shape) without a gradient."""
        with no_grad():
            return self.rsample(shape)

    def log_prob(self, value: Any) -> Any:
        """The logarithm of the probability, or of its density."""
        raise NotImplementedError

    def _whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*tuple(shape), *self.batch_shape)


class Normal(Distribution):
    """Of mean loc and standard deviation scale > 0."""

    def __init__(self, loc: Any, scale: Any) -> None:
        self.loc, self.scale = _tensors(loc, scale)
        self.batch_shape = self.loc.shape
        if not (self.scale.detach().numpy() > 0).all():
            raise SpecError("Normal: expected a scale above 0 everywhere")

    @property
    def mean(self) -> Any:
        return self.loc

    @property
    def stddev(self) -> Any:
        return self.scale

    @property
    def variance(self) -> Any:
        return self.scale.square()

    def rsample(self, shape: Sequence[int] = ()) -> Any:
        return self.loc + self.scale * random.normal(0.0, 1.0, self._whole(shape), dtype=self.loc.dtype)

    def log_prob(self, value: Any) -> Any:
        away = (value - self.loc) / self.scale
        return away.square() * -0.5 - self.scale.log() - 0.5 * math.log(2.0 * math.pi)

    def entropy(self) -> Any:
        return self.scale.log() + 0.5 * (1.0 + math.log(2.0 * math.pi))

    def cdf(self, value: Any) -> Any:
        """The probability of at most `value`."""
        return (((value - self.loc) / (self.scale * math.sqrt(2.0))).erf() + 1.0) * 0.5


class Uniform(Distribution):
    """low <= x < high."""

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = _tensors(low, high)
        self.batch_shape = self.low.shape
        if not (self.low.detach().numpy() < self.high.detach().numpy()).all():
            raise SpecError("Uniform: expected low below high everywhere")

    def rsample(self, shape: Sequence[int] = ()) -> Any:
        drawn = random.uniform(0.0, 1.0, self._whole(shape), dtype=self.low.dtype)
        return self.low + (self.high - self.low) * drawn

    def log_prob(self, value: Any) -> Any:
        inside = (value >= self.low) & (value < self.high)
        return where(inside, -(self.high - self.low).log(), -math.inf)

    def entropy(self) -> Any:
        return (self.high - self.low).log()


class Bernoulli(Distribution):
    """1 with probability probs, else 0; or by logits, log(p / (1 - p))."""

    def __init__(self, probs: Any = None, logits: Any = None) -> None:
        if (probs is None) == (logits is None):
            raise SpecError("Bernoulli: expected one of probs and logits")
        if logits is None:
            (given,) = _tensors(probs)
            known = given.detach().numpy()
            if not ((known >= 0) & (known <= 1)).all():
                raise SpecError("Bernoulli: expected probabilities of 0..1")
            least = 1e-7  # as far from the ends as float32 tells
            kept = given.clamp(least, 1.0 - least)
            self.logits, self.probs = kept.log() - (1.0 - kept).log(), given
        else:
            (self.logits,) = _tensors(logits)
            self.probs = self.logits.sigmoid()
        self.batch_shape = self.logits.shape

    def sample(self, shape: Sequence[int] = ()) -> Any:
        drawn = random.uniform(0.0, 1.0, self._whole(shape), dtype=self.probs.dtype)
        return (drawn < self.probs.detach()).astype(self.probs.dtype)

    def log_prob(self, value: Any) -> Any:
        return value * self.logits - softplus(self.logits)

    def entropy(self) -> Any:
        return softplus(self.logits) - self.probs * self.logits


class Categorical(Distribution):
    """One of N, by probs (..., N), which need not add up to 1, or logits (..., N)."""

    def __init__(self, probs: Any = None, logits: Any = None) -> None:
        if (probs is None) == (logits is None):
            raise SpecError("Categorical: expected one of probs and logits")
        given = probs if logits is None else logits
        if given.ndim < 1 or given.shape[-1] < 1:
            raise ShapeError(f"Categorical: expected (..., N) with N >= 1, got {given.shape}")
        if logits is None:
            known = given.detach().numpy()
            if not ((known >= 0).all() and (known.sum(-1) > 0).all()):
                raise SpecError("Categorical: expected probabilities >= 0 with some above 0")
            self.probs = probs / probs.sum(-1, keepdims=True)
            self.logits = self.probs.clamp(1e-7, 1.0 - 1e-7).log()
        else:
            self.logits = log_softmax(logits, -1)
            self.probs = self.logits.exp()
        self.batch_shape = given.shape[:-1]

    def sample(self, shape: Sequence[int] = ()) -> Any:
        ends = np.cumsum(self.probs.detach().numpy().astype(np.float64), axis=-1)
        drawn = random.uniform(0.0, 1.0, self._whole(shape), dtype="float64").numpy()
        places = (drawn[..., None] >= ends / ends[..., -1:]).sum(-1)
        return Tensor(places.astype(np.int64)).to(self.probs.device)

    def log_prob(self, value: Any) -> Any:
        whole = (*value.shape, self.logits.shape[-1])
        return take_along_axis(self.logits.broadcast_to(*whole), value.astype("int64").expand_dims(-1), -1).squeeze(-1)

    def entropy(self) -> Any:
        return -(self.probs * self.logits).sum(-1)


def _of_normals(p: Normal, q: Normal) -> Any:
    ratio = (p.scale / q.scale).square()
    return (ratio + ((p.loc - q.loc) / q.scale).square() - 1.0 - ratio.log()) * 0.5


def _of_bernoullis(p: Bernoulli, q: Bernoulli) -> Any:
    return p.probs * (p.logits - q.logits) + softplus(q.logits) - softplus(p.logits)


_DIVERGENCES: dict[type[Distribution], Callable[..., Any]] = {
    Normal: _of_normals,
    Bernoulli: _of_bernoullis,
    Categorical: lambda p, q: (p.probs * (p.logits - q.logits)).sum(-1),
}


def kl_divergence(p: Distribution, q: Distribution) -> Any:
    """The Kullback-Leibler divergence of q from p, both of one kind. Raises SpecError for others."""
    known = _DIVERGENCES.get(type(p))
    if known is None or type(q) is not type(p):
        kinds = ", ".join(kind.__name__ for kind in _DIVERGENCES)
        raise SpecError(f"kl_divergence: expected two of one of {kinds}, got {type(p).__name__} and {type(q).__name__}")
    return known(p, q)
