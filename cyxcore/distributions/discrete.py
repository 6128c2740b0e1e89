"""Distributions of whole numbers and of choices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore import random, special
from cyxcore.distributions.base import LEAST, Distribution, above_zero, check, tensors
from cyxcore.eager import Tensor
from cyxcore.errors import IndexingError, ShapeError, SpecError
from cyxcore.functional import log_softmax, one_hot, softplus, take_along_axis
from cyxcore.hosted import is_symbolic
from cyxcore.statistics import cumulative_sum


class _Odds(Distribution):
    """By probs, or by logits = log(p / (1 - p))."""

    def _given(self, probs: Any, logits: Any, *others: Any) -> tuple[Any, ...]:
        name = type(self).__name__
        if (probs is None) == (logits is None):
            raise SpecError(f"{name}: expected one of probs and logits")
        if logits is None:
            given, *rest = tensors(probs, *others)
            check(name, "probabilities of 0..1", given, lambda x: (x >= 0) & (x <= 1), "")
            kept = given.clamp(LEAST, 1.0 - LEAST)
            self.logits, self.probs = kept.log() - (1.0 - kept).log(), given
        else:
            self.logits, *rest = tensors(logits, *others)
            check(name, "logits", self.logits, lambda x: x == x, "that are numbers")
            self.probs = self.logits.sigmoid()
        self.batch_shape = self.logits.shape
        return tuple(rest)


class Bernoulli(_Odds):
    """1 with probability probs, else 0; or by logits, log(p / (1 - p))."""

    def __init__(self, probs: Any = None, logits: Any = None) -> None:
        self._given(probs, logits)

    @property
    def mean(self) -> Any:
        return self.probs

    @property
    def variance(self) -> Any:
        return self.probs * (1.0 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        drawn = random.uniform(0.0, 1.0, self._whole(sample_shape), dtype=self.probs.dtype)
        return (drawn < self.probs.detach()).astype(self.probs.dtype)

    def log_prob(self, value: Any) -> Any:
        return value * self.logits - softplus(self.logits)

    def entropy(self) -> Any:
        return softplus(self.logits) - self.probs * self.logits


class Binomial(_Odds):
    """How many of total_count tries succeed."""

    def __init__(self, total_count: Any = 1, probs: Any = None, logits: Any = None) -> None:
        (self.total_count,) = self._given(probs, logits, total_count)
        check("Binomial", "a total_count", self.total_count, lambda x: (x >= 0) & (x == np.floor(x)), "0, 1, 2, …")

    @property
    def mean(self) -> Any:
        return self.total_count * self.probs

    @property
    def variance(self) -> Any:
        return self.total_count * self.probs * (1.0 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        count = self.total_count.astype("int64")
        return random.binomial(count, self.probs.detach(), self._whole(sample_shape)).astype(self.probs.dtype)

    def log_prob(self, value: Any) -> Any:
        n = self.total_count
        ways = special.gammaln(n + 1.0) - special.gammaln(value + 1.0) - special.gammaln(n - value + 1.0)
        return ways + value * self.logits - n * softplus(self.logits)


class Geometric(_Odds):
    """How many tries fail before the first success of probability probs."""

    def __init__(self, probs: Any = None, logits: Any = None) -> None:
        self._given(probs, logits)
        above_zero("Geometric", probability=self.probs)

    @property
    def mean(self) -> Any:
        return 1.0 / self.probs - 1.0

    @property
    def variance(self) -> Any:
        return (1.0 / self.probs - 1.0) / self.probs

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        return (random.geometric(self.probs.detach(), self._whole(sample_shape)) - 1).astype(self.probs.dtype)

    def log_prob(self, value: Any) -> Any:
        return special.xlog1py(value, -self.probs) + self.probs.log()

    def entropy(self) -> Any:
        return (softplus(self.logits) - self.probs * self.logits) / self.probs


class NegativeBinomial(_Odds):
    """How many tries of probability probs succeed before total_count fail."""

    def __init__(self, total_count: Any, probs: Any = None, logits: Any = None) -> None:
        (self.total_count,) = self._given(probs, logits, total_count)
        above_zero("NegativeBinomial", total_count=self.total_count)

    @property
    def mean(self) -> Any:
        return self.total_count * self.logits.exp()

    @property
    def variance(self) -> Any:
        return self.mean * (1.0 + self.logits.exp())

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        rate = random.gamma(self.total_count.detach(), 1.0, self._whole(sample_shape)) * self.logits.detach().exp()
        return random.poisson(rate).astype(self.probs.dtype)

    def log_prob(self, value: Any) -> Any:
        n = self.total_count
        ways = special.gammaln(n + value) - special.gammaln(value + 1.0) - special.gammaln(n)
        return ways - n * softplus(self.logits) - value * softplus(-self.logits)


class Poisson(Distribution):
    """Whole numbers of the mean `rate`."""

    def __init__(self, rate: Any) -> None:
        (self.rate,) = tensors(rate)
        self.batch_shape = self.rate.shape
        check("Poisson", "a rate", self.rate, lambda x: x >= 0, "of at least 0")

    @property
    def mean(self) -> Any:
        return self.rate

    @property
    def variance(self) -> Any:
        return self.rate

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        return random.poisson(self.rate.detach(), self._whole(sample_shape)).astype(self.rate.dtype)

    def log_prob(self, value: Any) -> Any:
        (x,) = tensors(value)
        return special.xlogy(x, self.rate) - self.rate - special.gammaln(x + 1.0)


class Categorical(Distribution):
    """One of N, by probs (..., N), which need not add up to 1, or logits (..., N)."""

    def __init__(self, probs: Any = None, logits: Any = None) -> None:
        name = type(self).__name__
        if (probs is None) == (logits is None):
            raise SpecError(f"{name}: expected one of probs and logits")
        given = probs if logits is None else logits
        if given.ndim < 1 or given.shape[-1] < 1:
            raise ShapeError(f"{name}: expected (..., N) with N >= 1, got {given.shape}")
        if logits is None:
            known = given.detach().numpy() if isinstance(given, Tensor) else np.ones(1)  # in a graph nobody knows
            if not ((known >= 0).all() and (known.sum(-1) > 0).all()):
                raise SpecError(f"{name}: expected probabilities >= 0 with some above 0")
            self.probs = probs / probs.sum(-1, keepdims=True)
            self.logits = self.probs.clamp(LEAST, 1.0 - LEAST).log()
        else:
            self.logits = log_softmax(logits, -1)
            self.probs = self.logits.exp()
            check(name, "logits", self.probs, lambda x: x == x, "that are numbers, of which one is finite,")
        self.batch_shape = given.shape[:-1]

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        shape = (*tuple(sample_shape), *self.batch_shape)
        drawn = random.uniform(0.0, 1.0, shape, dtype="float64")
        if is_symbolic(drawn, self.probs):
            ends = cumulative_sum(self.probs.detach().astype("float64"), axis=-1)
            return (drawn.expand_dims(-1) >= ends / ends[..., -1:]).sum(-1)
        ends = np.cumsum(self.probs.detach().numpy().astype(np.float64), axis=-1)
        places = (drawn.numpy()[..., None] >= ends / ends[..., -1:]).sum(-1)
        return Tensor(places.astype(np.int64)).to(self.probs.device)

    def log_prob(self, value: Any) -> Any:
        places, count = value.astype("int64"), self.logits.shape[-1]
        told = places.size and isinstance(places, Tensor)
        least, most = (int(places.min().item()), int(places.max().item())) if told else (0, 0)
        if least < 0 or most >= count:
            raise IndexingError(f"Categorical.log_prob: expected 0..{count - 1}, got {least if least < 0 else most}")
        shape = np.broadcast_shapes(places.shape, self.batch_shape)
        rows = self.logits.broadcast_to(*shape, self.logits.shape[-1])
        return take_along_axis(rows, places.broadcast_to(*shape).expand_dims(-1), -1).squeeze(-1)

    def entropy(self) -> Any:
        return -(self.probs * self.logits).sum(-1)


class OneHotCategorical(Categorical):
    """One of N as a row of zeros with one 1."""

    def __init__(self, probs: Any = None, logits: Any = None) -> None:
        super().__init__(probs, logits)
        self.event_shape = (self.logits.shape[-1],)

    mean, variance = Bernoulli.mean, Bernoulli.variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        return one_hot(super().sample(sample_shape), self.event_shape[0]).astype(self.probs.dtype)

    def log_prob(self, value: Any) -> Any:
        return (value * self.logits).sum(-1)
