"""Distributions of vectors, and mixtures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore import linalg, random, special
from cyxcore.distributions.base import HALF_LOG_TAU, Distribution, above_zero, tensors
from cyxcore.distributions.continuous import standard_gamma
from cyxcore.distributions.discrete import Categorical
from cyxcore.eager import no_grad
from cyxcore.errors import ShapeError, SpecError
from cyxcore.extras import logsumexp
from cyxcore.functional import one_hot, take_along_axis


class MultivariateNormal(Distribution):
    """Vectors (..., N) of mean loc, by a covariance_matrix (..., N, N), its Cholesky factor scale_tril or its inverse,
    the precision_matrix.
    """

    has_rsample = True

    def __init__(
        self, loc: Any, covariance_matrix: Any = None, precision_matrix: Any = None, scale_tril: Any = None
    ) -> None:
        given = [x for x in (covariance_matrix, precision_matrix, scale_tril) if x is not None]
        if len(given) != 1:
            raise SpecError(
                "MultivariateNormal: expected one of covariance_matrix, precision_matrix and scale_tril, got "
                f"{len(given)} of them"
            )
        (matrix,) = given
        if loc.ndim < 1 or matrix.ndim < 2 or matrix.shape[-2:] != (loc.shape[-1],) * 2:
            raise ShapeError(
                "MultivariateNormal: expected loc (..., N) and a matrix (..., N, N), got "
                f"{loc.shape} and {matrix.shape}"
            )
        if scale_tril is None:
            matrix = linalg.inv(matrix) if covariance_matrix is None else matrix
            matrix = linalg.cholesky(matrix)
        self.batch_shape = tuple(np.broadcast_shapes(loc.shape[:-1], matrix.shape[:-2]))
        self.event_shape = loc.shape[-1:]
        self.loc = loc.broadcast_to(*self.batch_shape, *self.event_shape)
        self.scale_tril = matrix.broadcast_to(*self.batch_shape, *self.event_shape, *self.event_shape)

    @property
    def mean(self) -> Any:
        return self.loc

    @property
    def covariance_matrix(self) -> Any:
        """(..., N, N)"""
        return self.scale_tril @ self.scale_tril.mT

    @property
    def variance(self) -> Any:
        return self.scale_tril.square().sum(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        drawn = random.normal(0.0, 1.0, self._whole(sample_shape), dtype=self.loc.dtype)
        return self.loc + (self.scale_tril @ drawn.expand_dims(-1)).squeeze(-1)

    def _log_volume(self) -> Any:
        return linalg.diagonal(self.scale_tril).log().sum(-1) + HALF_LOG_TAU * self.event_shape[0]

    def log_prob(self, value: Any) -> Any:
        away = (value - self.loc).expand_dims(-1)
        whole = self.scale_tril.broadcast_to(*away.shape[:-2], *self.scale_tril.shape[-2:])
        return linalg.solve(whole, away).squeeze(-1).square().sum(-1) * -0.5 - self._log_volume()

    def entropy(self) -> Any:
        return self._log_volume() + 0.5 * self.event_shape[0]


class Dirichlet(Distribution):
    """Shares (..., N) that add up to 1, by concentration (..., N) > 0."""

    has_rsample = True

    def __init__(self, concentration: Any) -> None:
        if concentration.ndim < 1:
            raise ShapeError(f"Dirichlet: expected a concentration (..., N), got {concentration.shape}")
        (concentration,) = tensors(concentration)
        above_zero("Dirichlet", concentration=concentration)
        self.concentration = concentration
        self.batch_shape, self.event_shape = concentration.shape[:-1], concentration.shape[-1:]

    @property
    def mean(self) -> Any:
        return self.concentration / self.concentration.sum(-1, keepdims=True)

    @property
    def variance(self) -> Any:
        total = self.concentration.sum(-1, keepdims=True)
        return self.concentration * (total - self.concentration) / (total.square() * (total + 1.0))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        drawn = standard_gamma(self.concentration, self._whole(sample_shape))
        return drawn / drawn.sum(-1, keepdims=True)

    def _log_integral(self) -> Any:
        return special.gammaln(self.concentration).sum(-1) - special.gammaln(self.concentration.sum(-1))

    def log_prob(self, value: Any) -> Any:
        return special.xlogy(self.concentration - 1.0, value).sum(-1) - self._log_integral()

    def entropy(self) -> Any:
        total, size = self.concentration.sum(-1), float(self.event_shape[0])
        inner = ((self.concentration - 1.0) * special.digamma(self.concentration)).sum(-1)
        return self._log_integral() + (total - size) * special.digamma(total) - inner


class Multinomial(Distribution):
    """How often each of N comes up in total_count draws of a Categorical."""

    def __init__(self, total_count: int = 1, probs: Any = None, logits: Any = None) -> None:
        if not isinstance(total_count, int) or total_count < 0:
            raise SpecError(f"Multinomial: expected a total_count of at least 0, got {total_count!r}")
        self.total_count, self.chosen = total_count, Categorical(probs, logits)
        self.probs, self.logits = self.chosen.probs, self.chosen.logits
        self.batch_shape, self.event_shape = self.chosen.batch_shape, self.probs.shape[-1:]

    @property
    def mean(self) -> Any:
        return self.probs * float(self.total_count)

    @property
    def variance(self) -> Any:
        return self.probs * (1.0 - self.probs) * float(self.total_count)

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        drawn = self.chosen.sample((self.total_count, *sample_shape))
        return one_hot(drawn, self.event_shape[0]).astype(self.probs.dtype).sum(0)

    def log_prob(self, value: Any) -> Any:
        ways = math.lgamma(self.total_count + 1.0) - special.gammaln(value + 1.0).sum(-1)
        return ways + special.xlogy(value, self.probs).sum(-1)


class MixtureSameFamily(Distribution):
    """One of the distributions along the last axis of a batch, chosen by a Categorical over that axis."""

    def __init__(self, mixture_distribution: Categorical, component_distribution: Distribution) -> None:
        mixture, parts = mixture_distribution, component_distribution
        if type(mixture) is not Categorical or parts.batch_shape[-1:] != mixture.logits.shape[-1:]:
            raise ShapeError(
                f"MixtureSameFamily: expected a Categorical over the last axis of the components' batch "
                f"{parts.batch_shape}, got {mixture!r}"
            )
        self.mixture_distribution, self.component_distribution = mixture, parts
        self.batch_shape, self.event_shape = parts.batch_shape[:-1], parts.event_shape

    def _folded(self, x: Any) -> Any:
        """The mean over the components, of what has their axes."""
        shares = self.mixture_distribution.probs
        return (x * shares.reshape(*shares.shape, *(1,) * len(self.event_shape))).sum(-1 - len(self.event_shape))

    @property
    def mean(self) -> Any:
        return self._folded(self.component_distribution.mean)

    @property
    def variance(self) -> Any:
        parts = self.component_distribution
        return self._folded(parts.variance + parts.mean.square()) - self.mean.square()

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        rank = len(self.event_shape)
        with no_grad():
            shape = (*tuple(sample_shape), *self.batch_shape)
            mixture = self.mixture_distribution
            whole = mixture.logits.broadcast_to(*self.batch_shape, mixture.logits.shape[-1])
            chosen = Categorical(logits=whole).sample(sample_shape)
            drawn = self.component_distribution.sample(sample_shape)
            places = chosen.reshape(*shape, 1, *(1,) * rank).broadcast_to(*shape, 1, *self.event_shape)
            return take_along_axis(drawn, places, -1 - rank).squeeze(-1 - rank)

    def log_prob(self, value: Any) -> Any:
        own = self.component_distribution.log_prob(value.expand_dims(-1 - len(self.event_shape)))
        return logsumexp(own + self.mixture_distribution.logits, axis=-1)
