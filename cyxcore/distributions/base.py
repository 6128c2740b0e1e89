"""What all distributions have, and axes of a batch taken together as one event."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import ShapeError, SpecError
from cyxcore.manipulation import broadcast_arrays
from cyxcore.values import Value, to_inexact

LEAST = 1e-7  # as far from 0 and 1 as float32 tells


def tensors(*values: Any) -> tuple[Any, ...]:
    """Numbers and tensors as float tensors of one shape."""
    made = [to_inexact(value) if isinstance(value, Value) else Tensor(float(value)) for value in values]
    return broadcast_arrays(*made)


def check(name: str, what: str, value: Any, good: Callable[[Any], Any], wanted: str) -> None:
    """Raises SpecError where a parameter is not `good` everywhere. In a graph nobody knows that yet."""
    if isinstance(value, Tensor) and not good(value.detach().numpy()).all():
        raise SpecError(f"{name}: expected {' '.join(filter(None, (what, wanted, 'everywhere')))}")


def above_zero(name: str, **parameters: Any) -> None:
    """Raises SpecError for a parameter that is not above 0."""
    for what, value in parameters.items():
        check(name, f"a {what}", value, lambda x: x > 0, "above 0")


class Distribution:
    """batch_shape: of the parameters; each place of it is a distribution of its own. event_shape: of one draw."""

    batch_shape: tuple[int, ...] = ()
    event_shape: tuple[int, ...] = ()
    has_rsample = False

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        """A draw that gradients flow through to the parameters. Raises SpecError where there is none."""
        raise SpecError(f"{type(self).__name__} has no rsample: what it draws does not change a little at a time")

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        """A draw (*sample_shape, *batch_shape, *event_shape) without a gradient."""
        with no_grad():
            return self.rsample(sample_shape).detach()

    def log_prob(self, value: Any) -> Any:
        """The logarithm of the probability, or of its density."""
        raise NotImplementedError

    def entropy(self) -> Any:
        """The mean of -log_prob. Raises SpecError where there is no formula."""
        raise SpecError(f"{type(self).__name__} has no entropy that can be written down; take -log_prob of draws")

    @property
    def mean(self) -> Any:
        """Of many draws."""
        raise SpecError(f"{type(self).__name__} has no mean")

    @property
    def variance(self) -> Any:
        """Of many draws."""
        raise SpecError(f"{type(self).__name__} has no variance")

    @property
    def stddev(self) -> Any:
        """The root of the variance."""
        return self.variance.sqrt()

    def cdf(self, value: Any) -> Any:
        """The probability of at most `value`."""
        raise SpecError(f"{type(self).__name__} has no cdf")

    def icdf(self, value: Any) -> Any:
        """The place below which draws lie with this probability."""
        raise SpecError(f"{type(self).__name__} has no icdf")

    def _whole(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*tuple(shape), *self.batch_shape, *self.event_shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={self.batch_shape}, event_shape={self.event_shape})"


class Independent(Distribution):
    """The last axes of a batch as one event: log_prob and entropy are sums over them."""

    def __init__(self, base_distribution: Distribution, reinterpreted_batch_ndims: int) -> None:
        batch, count = base_distribution.batch_shape, reinterpreted_batch_ndims
        if not 0 <= count <= len(batch):
            raise ShapeError(f"Independent: expected 0..{len(batch)} axes of the batch {batch}, got {count}")
        self.base_dist, self.count = base_distribution, count
        cut = len(batch) - count
        self.batch_shape, self.event_shape = batch[:cut], (*batch[cut:], *base_distribution.event_shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        return self.base_dist.rsample(sample_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        return self.base_dist.sample(sample_shape)

    def summed(self, x: Any) -> Any:
        """The sum over the axes that are one event."""
        return x.sum(tuple(range(-self.count, 0))) if self.count else x

    def log_prob(self, value: Any) -> Any:
        return self.summed(self.base_dist.log_prob(value))

    def entropy(self) -> Any:
        return self.summed(self.base_dist.entropy())

    @property
    def mean(self) -> Any:
        return self.base_dist.mean

    @property
    def variance(self) -> Any:
        return self.base_dist.variance


HALF_LOG_TAU = 0.5 * math.log(2.0 * math.pi)
