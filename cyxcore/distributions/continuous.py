"""Distributions of real numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore import random, special
from cyxcore.autograd import Function
from cyxcore.distributions.base import HALF_LOG_TAU, Distribution, above_zero, check, tensors
from cyxcore.dtype import finfo
from cyxcore.eager import Tensor
from cyxcore.elementwise import log1p
from cyxcore.functional import where
from cyxcore.hosted import hosted, is_symbolic

Array = np.ndarray[Any, Any]


class _Located(Distribution):
    """loc + scale times a draw of the standard one."""

    has_rsample = True

    def __init__(self, loc: Any, scale: Any) -> None:
        self.loc, self.scale = tensors(loc, scale)
        self.batch_shape = self.loc.shape
        check(type(self).__name__, "a loc", self.loc, lambda x: x == x, "that is a number")
        above_zero(type(self).__name__, scale=self.scale)

    def _standard(self, shape: tuple[int, ...]) -> Any:
        raise NotImplementedError

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        return self.loc + self.scale * self._standard(self._whole(sample_shape)).astype(self.loc.dtype)

    def _away(self, value: Any) -> Any:
        return (value - self.loc) / self.scale

    @property
    def mean(self) -> Any:
        return self.loc


class Normal(_Located):
    """Of mean loc and standard deviation scale > 0."""

    def _standard(self, shape: tuple[int, ...]) -> Any:
        return random.normal(0.0, 1.0, shape, dtype=self.loc.dtype)

    @property
    def stddev(self) -> Any:
        return self.scale

    @property
    def variance(self) -> Any:
        return self.scale.square()

    def log_prob(self, value: Any) -> Any:
        return self._away(value).square() * -0.5 - self.scale.log() - HALF_LOG_TAU

    def entropy(self) -> Any:
        return self.scale.log() + 0.5 + HALF_LOG_TAU

    def cdf(self, value: Any) -> Any:
        return special.ndtr(self._away(value))

    def icdf(self, value: Any) -> Any:
        return self.loc + self.scale * special.ndtri(value)


class Laplace(_Located):
    """exp(-|x - loc| / scale) / (2 scale)."""

    def _standard(self, shape: tuple[int, ...]) -> Any:
        return random.laplace(0.0, 1.0, shape)

    @property
    def variance(self) -> Any:
        return self.scale.square() * 2.0

    def log_prob(self, value: Any) -> Any:
        return -self._away(value).abs() - (self.scale * 2.0).log()

    def entropy(self) -> Any:
        return 1.0 + (self.scale * 2.0).log()

    def cdf(self, value: Any) -> Any:
        away = self._away(value)
        return 0.5 - 0.5 * away.sign() * special.expm1(-away.abs())


class Gumbel(_Located):
    """Of the largest of many: exp(-exp(-(x - loc) / scale)) below x."""

    def _standard(self, shape: tuple[int, ...]) -> Any:
        return random.gumbel(0.0, 1.0, shape)

    @property
    def mean(self) -> Any:
        return self.loc + self.scale * float(np.euler_gamma)

    @property
    def variance(self) -> Any:
        return self.scale.square() * (math.pi**2 / 6.0)

    def log_prob(self, value: Any) -> Any:
        away = self._away(value)
        return -away - (-away).exp() - self.scale.log()

    def entropy(self) -> Any:
        return self.scale.log() + 1.0 + float(np.euler_gamma)


class Cauchy(_Located):
    """The ratio of two normal numbers: it has no mean."""

    def _standard(self, shape: tuple[int, ...]) -> Any:
        return random.cauchy(0.0, 1.0, shape)

    @property
    def mean(self) -> Any:
        return self.loc * math.nan

    @property
    def variance(self) -> Any:
        return self.scale * math.inf

    def log_prob(self, value: Any) -> Any:
        return -math.log(math.pi) - self.scale.log() - log1p(self._away(value).square())

    def entropy(self) -> Any:
        return self.scale.log() + math.log(4.0 * math.pi)


class _Half(Distribution):
    """The absolute value of a distribution around 0."""

    has_rsample = True
    whole: type[_Located]

    def __init__(self, scale: Any) -> None:
        self.base_dist = self.whole(0.0, scale)
        self.scale, self.batch_shape = self.base_dist.scale, self.base_dist.batch_shape

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        return self.base_dist.rsample(sample_shape).abs()

    def log_prob(self, value: Any) -> Any:
        (given,) = tensors(value)
        return where(given >= 0.0, self.base_dist.log_prob(given) + math.log(2.0), -math.inf)

    def entropy(self) -> Any:
        return self.base_dist.entropy() - math.log(2.0)


class HalfNormal(_Half):
    """The absolute value of Normal(0, scale)."""

    whole = Normal

    @property
    def mean(self) -> Any:
        return self.scale * math.sqrt(2.0 / math.pi)

    @property
    def variance(self) -> Any:
        return self.scale.square() * (1.0 - 2.0 / math.pi)


class HalfCauchy(_Half):
    """The absolute value of Cauchy(0, scale)."""

    whole = Cauchy

    @property
    def mean(self) -> Any:
        return self.scale * math.inf

    @property
    def variance(self) -> Any:
        return self.scale * math.inf


class Uniform(Distribution):
    """low <= x < high."""

    has_rsample = True

    def __init__(self, low: Any, high: Any) -> None:
        self.low, self.high = tensors(low, high)
        self.batch_shape = self.low.shape
        check("Uniform", "low below high", self.high - self.low, lambda x: x > 0, "")

    @property
    def mean(self) -> Any:
        return (self.low + self.high) * 0.5

    @property
    def variance(self) -> Any:
        return (self.high - self.low).square() / 12.0

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        drawn = random.uniform(0.0, 1.0, self._whole(sample_shape), dtype=self.low.dtype)
        return self.low + (self.high - self.low) * drawn

    def log_prob(self, value: Any) -> Any:
        inside = (value >= self.low) & (value < self.high)
        return where(inside, -(self.high - self.low).log(), -math.inf)

    def entropy(self) -> Any:
        return (self.high - self.low).log()

    def cdf(self, value: Any) -> Any:
        return ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)

    def icdf(self, value: Any) -> Any:
        return self.low + (self.high - self.low) * value


class Exponential(Distribution):
    """rate * exp(-rate x)."""

    has_rsample = True

    def __init__(self, rate: Any) -> None:
        (self.rate,) = tensors(rate)
        self.batch_shape = self.rate.shape
        above_zero("Exponential", rate=self.rate)

    @property
    def mean(self) -> Any:
        return 1.0 / self.rate

    @property
    def variance(self) -> Any:
        return 1.0 / self.rate.square()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        return random.exponential(1.0, self._whole(sample_shape)).astype(self.rate.dtype) / self.rate

    def log_prob(self, value: Any) -> Any:
        (x,) = tensors(value)
        return where(x >= 0.0, self.rate.log() - self.rate * x, -math.inf)

    def entropy(self) -> Any:
        return 1.0 - self.rate.log()

    def cdf(self, value: Any) -> Any:
        return -special.expm1(-self.rate * tensors(value)[0].relu())


# gamma and what is made of it ---------------------------------------------------------------------


def _below(a: Array, x: Array) -> Array:
    """The regularised lower incomplete gamma function, in float64 (Abramowitz and Stegun 6.5.29 and 6.5.31)."""
    scale = np.exp(a * np.log(x) - x - _log_gamma(a))
    term = total = 1.0 / a
    for n in range(1, 400):
        term = term * x / (a + n)
        total = total + term
        if (term < 1e-17 * total).all():
            break
    series = scale * total
    b = x + 1.0 - a
    c, d = np.full_like(x, 1e300), 1.0 / np.where(b == 0, 1e-300, b)
    fraction = d
    for n in range(1, 400):  # Lentz's way
        factor = -n * (n - a)
        b = b + 2.0
        d, c = 1.0 / _apart(factor * d + b), _apart(b + factor / c)
        fraction = fraction * d * c
        if (np.abs(d * c - 1.0) < 1e-16).all():
            break
    return np.where(x < a + 1.0, series, 1.0 - scale * fraction)


def _apart(x: Array) -> Array:
    return np.where(np.abs(x) < 1e-300, 1e-300, x)


def _log_gamma(a: Array) -> Array:
    return special.gammaln(Tensor(a)).numpy()


def _slope(a: Array, z: Array) -> Array:
    """How a draw z of Gamma(a) moves with a: -(dP/da) / p(z), P the share below z (Figurnov et al. 2018)."""
    large = a > 50.0
    with np.errstate(all="ignore"):
        small, x = np.where(large, 1.0, a), np.maximum(np.where(large, 1.0, z), 1e-300)
        step = 1e-4 * small
        change = (_below(small + step, x) - _below(small - step, x)) / (2.0 * step)
        exact = -change / np.exp((small - 1.0) * np.log(x) - x - _log_gamma(small))
        # From here on a draw is (a - 1/3) (1 + n / sqrt(9 a - 3))^3 with a normal n (Marsaglia and Tsang 2000).
        d = np.where(large, a, 51.0) - 1.0 / 3.0
        root = np.cbrt(z / d)
        normal = root**3 - 1.5 * root**2 * (root - 1.0)
        # Next to 0 the share below z is z^a / gamma(a + 1).
        near_zero = x * (special.digamma(Tensor(small + 1.0)).numpy() - np.log(x)) / small
    return np.where(large, normal, np.where(x < 1e-6, near_zero, exact))


class _StandardGamma(Function):
    @staticmethod
    def forward(ctx: Any, concentration: Any, shape: tuple[int, ...]) -> Any:
        ctx.concentration = concentration.detach()
        drawn = random.gamma(ctx.concentration, 1.0, shape, dtype="float64")
        least = float(finfo(concentration.dtype).smallest_normal)  # shares of nothing would be 0 / 0
        ctx.drawn = np.maximum(drawn.numpy(), least)
        return Tensor(ctx.drawn).astype(concentration.dtype).to(concentration.device)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        a = np.broadcast_to(ctx.concentration.numpy().astype(np.float64), ctx.drawn.shape)
        moved = gradient * Tensor(_slope(a, ctx.drawn)).astype(gradient.dtype).to(gradient.device)
        return moved.sum_to_size(*ctx.concentration.shape), None


def standard_gamma(concentration: Any, shape: tuple[int, ...]) -> Any:
    """Draws of Gamma(concentration, 1), with a gradient."""
    drawn = random.gamma(concentration.detach(), 1.0, shape, dtype="float64") if is_symbolic(concentration) else None
    if drawn is None:
        return _StandardGamma.apply(concentration, shape)
    dtype, least = concentration.dtype, float(finfo(concentration.dtype).smallest_normal)

    def moving(a: Array, z: Array) -> Array:
        return _slope(np.broadcast_to(a.astype(np.float64), z.shape), z)

    def gradient(g: Any, inputs: Sequence[Any], output: Any) -> Sequence[Any]:
        a, z = (x.detach() for x in inputs)
        return (g * hosted(moving, z.shape, "float64", a, z).astype(g.dtype)).sum_to_size(*a.shape), None

    above = hosted(lambda z: np.maximum(z, least), drawn.shape, "float64", drawn)
    return hosted(lambda a, z: z.astype(dtype), drawn.shape, dtype, concentration, above, gradient=gradient)


class Gamma(Distribution):
    """rate^a x^(a-1) exp(-rate x) / gamma(a), a being the concentration."""

    has_rsample = True

    def __init__(self, concentration: Any, rate: Any) -> None:
        self.concentration, self.rate = tensors(concentration, rate)
        self.batch_shape = self.rate.shape
        above_zero(type(self).__name__, concentration=self.concentration, rate=self.rate)

    @property
    def mean(self) -> Any:
        return self.concentration / self.rate

    @property
    def variance(self) -> Any:
        return self.concentration / self.rate.square()

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        return standard_gamma(self.concentration, self._whole(sample_shape)) / self.rate

    def log_prob(self, value: Any) -> Any:
        (given,) = tensors(value)
        inside, a = given >= 0.0, self.concentration
        x = where(inside, given, 1.0)
        rows = special.xlogy(a, self.rate) + special.xlogy(a - 1.0, x) - self.rate * x - special.gammaln(a)
        return where(inside, rows, -math.inf)

    def entropy(self) -> Any:
        a = self.concentration
        return a - self.rate.log() + special.gammaln(a) + (1.0 - a) * special.digamma(a)


class Chi2(Gamma):
    """The sum of squares of df normal numbers."""

    def __init__(self, df: Any) -> None:
        (self.df,) = tensors(df)
        super().__init__(self.df * 0.5, 0.5)


class Beta(Distribution):
    """x^(a-1) (1-x)^(b-1) over their integral, of concentration1 = a and concentration0 = b."""

    has_rsample = True

    def __init__(self, concentration1: Any, concentration0: Any) -> None:
        self.concentration1, self.concentration0 = tensors(concentration1, concentration0)
        self.batch_shape = self.concentration1.shape
        above_zero("Beta", concentration1=self.concentration1, concentration0=self.concentration0)

    @property
    def total(self) -> Any:
        """Both concentrations together."""
        return self.concentration1 + self.concentration0

    @property
    def mean(self) -> Any:
        return self.concentration1 / self.total

    @property
    def variance(self) -> Any:
        return self.concentration1 * self.concentration0 / (self.total.square() * (self.total + 1.0))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        one, other = (standard_gamma(c, self._whole(sample_shape)) for c in (self.concentration1, self.concentration0))
        return one / (one + other)

    def log_integral(self) -> Any:
        """The logarithm of the beta function."""
        parts = special.gammaln(self.concentration1) + special.gammaln(self.concentration0)
        return parts - special.gammaln(self.total)

    def log_prob(self, value: Any) -> Any:
        (given,) = tensors(value)
        inside = (given >= 0.0) & (given <= 1.0)
        x, high, low = where(inside, given, 0.5), self.concentration1 - 1.0, self.concentration0 - 1.0
        return where(inside, special.xlogy(high, x) + special.xlog1py(low, -x) - self.log_integral(), -math.inf)

    def entropy(self) -> Any:
        a, b = self.concentration1, self.concentration0
        inner = (a - 1.0) * special.digamma(a) + (b - 1.0) * special.digamma(b)
        return self.log_integral() - inner + (self.total - 2.0) * special.digamma(self.total)


class StudentT(_Located):
    """A normal number over the root of Chi2(df) / df."""

    def __init__(self, df: Any, loc: Any = 0.0, scale: Any = 1.0) -> None:
        self.df, loc, scale = tensors(df, loc, scale)
        super().__init__(loc, scale)
        above_zero("StudentT", df=self.df)

    @property
    def mean(self) -> Any:
        return where(self.df > 1.0, self.loc, math.nan)

    @property
    def variance(self) -> Any:
        wide = where(self.df > 1.0, math.inf, math.nan)
        return where(self.df > 2.0, self.scale.square() * self.df / where(self.df > 2.0, self.df - 2.0, 1.0), wide)

    def _standard(self, shape: tuple[int, ...]) -> Any:
        half = self.df * 0.5
        return random.normal(0.0, 1.0, shape, dtype=self.loc.dtype) * (half / standard_gamma(half, shape)).sqrt()

    def _log_integral(self) -> Any:
        half = self.df * 0.5
        parts = special.gammaln(half) - special.gammaln(half + 0.5) + 0.5 * math.log(math.pi)
        return self.scale.log() + 0.5 * self.df.log() + parts

    def log_prob(self, value: Any) -> Any:
        return (self.df + 1.0) * -0.5 * log1p(self._away(value).square() / self.df) - self._log_integral()

    def entropy(self) -> Any:
        half = (self.df + 1.0) * 0.5
        return half * (special.digamma(half) - special.digamma(self.df * 0.5)) + self._log_integral()
