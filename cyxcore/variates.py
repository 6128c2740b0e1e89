"""Distributions made of Philox words: the same bits on every machine.

Only what IEEE 754 rounds alone is left to NumPy (sums, products, quotients, square roots, comparisons); logarithms,
exponentials and erf are the compiled kernels', whose bits depend on nothing. Numbers are float64, integers int64,
flat; parameters are float64 arrays of that size that the caller has checked.

Sources: normal quantiles by M. J. Wichura, AS 241 (1988); gamma by G. Marsaglia and W. W. Tsang (2000); Poisson and
binomial by W. Hörmann, PTRS and BTRS (1993).
"""

import math
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore import drawing

Array = np.ndarray[Any, Any]


class Source:
    """The numbers of one draw of a generator: each request takes a new stream of (seed, step)."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed, self.step, self.stream = seed, step, 0

    def _next(self) -> int:
        self.stream += 1
        return self.stream - 1

    def uniform(self, count: int) -> Array:
        """Multiples of 2**-48 in [0, 1)."""
        pairs = drawing.uniform(self.seed, self.step, self._next(), (count, 2), "cpu")
        return pairs[:, 0] + pairs[:, 1] * 2.0**-24

    def inside(self, count: int) -> Array:
        """Odd multiples of 2**-49: never 0 or 1."""
        return self.uniform(count) + 2.0**-49

    def words(self, count: int) -> Array:
        """64 random bits each, uint64."""
        halves = np.empty(2 * count, np.uint32)
        _kernels().draw_words(self.seed, self.step, self._next(), halves)
        pairs = halves.astype(np.uint64).reshape(-1, 2)
        return pairs[:, 0] << np.uint64(32) | pairs[:, 1]


def _kernels() -> Any:
    return drawing.compiled("cpu")


def _by_kernel(op: str, x: Array) -> Array:
    x = np.ascontiguousarray(x, np.float64)
    out = np.empty_like(x)
    devices.backend("cpu").call(op, out, [x], {})
    return out


def log(x: Array) -> Array:
    return _by_kernel("log", x)


def exp(x: Array) -> Array:
    return _by_kernel("exp", x)


# real numbers -------------------------------------------------------------------------------------

# AS 241: numerators and denominators in the middle, near and far in the tails, the constant first.
_MIDDLE = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125, 45921.953931549871457)
    + (67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867)
    + (39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)
_NEAR = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504)
    + (1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590)
    + (0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)
_FAR = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230)
    + (0.0265321895265761230930, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525, 7.86869131145613259100e-4)
    + (1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)


def _ratio(parts: tuple[tuple[float, ...], tuple[float, ...]], r: Array) -> Array:
    above, below = (np.full_like(r, part[-1]) for part in parts)
    for a, b in zip(parts[0][-2::-1], parts[1][-2::-1], strict=True):
        above, below = above * r + a, below * r + b
    return above / below


def normal_quantile(p: Array) -> Array:
    """The x a standard normal number is below with probability p, 0 < p < 1."""
    q = p - 0.5
    result = q * _ratio(_MIDDLE, 0.180625 - q * q)
    (tails,) = np.nonzero(np.abs(q) > 0.425)
    r = np.sqrt(-log(np.minimum(p[tails], 1.0 - p[tails])))
    size = np.where(r <= 5.0, _ratio(_NEAR, r - 1.6), _ratio(_FAR, r - 5.0))
    result[tails] = np.copysign(size, q[tails])
    return result


def normal_below(x: Array) -> Array:
    """The probability of a standard normal number below x, to about 1e-16."""
    return 0.5 + 0.5 * _by_kernel("erf", x * math.sqrt(0.5))


def normal(source: Source, count: int, scale: float = 1.0, shift: float = -0.0, dtype: str = "float64") -> Array:
    """shift + scale normal_quantile(source.inside(count)), as float32 or float64."""
    drawn = np.empty(count, dtype)
    _kernels().draw_reals("normals", source.seed, source.step, source._next(), scale, shift, drawn)
    return drawn


def truncated_normal(source: Source, low: Array, high: Array) -> Array:
    """Standard normal numbers of an interval, which has to hold some probability."""
    flip = low > 0  # the lower half has the digits
    a, b = np.where(flip, -high, low), np.where(flip, -low, high)
    start, stop = normal_below(a), normal_below(b)
    p = start + (stop - start) * source.inside(low.size)
    x = np.minimum(np.maximum(normal_quantile(np.clip(p, 2.0**-60, 1.0 - 2.0**-53)), a), b)
    return np.where(flip, -x, x)


def exponential(source: Source, count: int) -> Array:
    return -log(source.inside(count))


def laplace(source: Source, count: int) -> Array:
    u = source.inside(count)
    size = -log(2.0 * np.minimum(u, 1.0 - u))
    return np.where(u < 0.5, -size, size)


def gumbel(source: Source, count: int) -> Array:
    return -log(exponential(source, count))


def logistic(source: Source, count: int) -> Array:
    u = source.inside(count)
    return log(u) - log(1.0 - u)


def gamma(source: Source, shape: Array) -> Array:
    """Of scale 1. Each number is tried until it is accepted, nineteen of twenty at the first try."""
    small = shape < 1.0
    d = np.where(small, shape + 1.0, shape) - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    result = np.empty_like(shape)
    waiting = np.arange(shape.size)
    while waiting.size:
        x, u = normal(source, waiting.size), source.inside(waiting.size)
        v = 1.0 + c[waiting] * x
        v = v * v * v
        of = d[waiting]
        good = v > 0.0
        limit = 0.5 * (x * x) + of - of * v + of * log(np.where(good, v, 1.0))
        good &= log(u) < limit
        result[waiting[good]] = (of * v)[good]
        waiting = waiting[~good]
    if small.any():
        u = source.inside(shape.size)
        result = np.where(small, result * exp(log(u) / shape), result)
    return result


def beta(source: Source, a: Array, b: Array) -> Array:
    x, y = gamma(source, a), gamma(source, b)
    total = x + y
    return np.where(total > 0.0, x / np.where(total > 0.0, total, 1.0), 0.5)


# integers -----------------------------------------------------------------------------------------


def integers(source: Source, low: int, high: int, count: int) -> Array:
    """low <= n < high, each as likely as the others. int64."""
    span, start = high - low, source.stream
    found = np.empty(count, np.int64)
    if _kernels().draw_integers(source.seed, source.step, source._next(), span % 2**64, low % 2**64, found):
        return found
    source.stream = start
    last = np.uint64(2**64 - 1 - 2**64 % span)  # words above would favour the first
    words = source.words(count)
    while (over := np.nonzero(words > last)[0]).size:
        words[over] = source.words(over.size)
    offset = words % np.uint64(span) if span < 2**64 else words
    return (offset + np.uint64(low % 2**64)).astype(np.int64)


def permutation(source: Source, count: int) -> Array:
    order = np.empty(count, np.int64)
    _kernels().draw_order(source.seed, source.step, source._next(), True, order)
    return order


def log_factorial(k: Array) -> Array:
    """log(k!): Stirling's series from 16 on, products before."""
    x = np.maximum(k, 16.0) + 1.0
    over = 1.0 / x
    square = over * over
    series = over * (1.0 / 12 - square * (1.0 / 360 - square * (1.0 / 1260 - square / 1680)))
    large = (x - 0.5) * log(x) - x + 0.91893853320467274178 + series
    table = log(np.array([float(math.factorial(n)) for n in range(17)]))
    return np.where(k < 16.0, table[np.minimum(k, 16.0).astype(np.int64)], large)


def _counted(u: Array, first: Array, ratio: Any, most: Array) -> Array:
    """The k whose probabilities up to it first exceed u. ratio(k) is that of k + 1 to that of k."""
    k = np.zeros_like(u)
    each, total = first.copy(), first.copy()
    while (below := (u > total) & (k < most) & (each > 0.0)).any():
        each = np.where(below, each * ratio(k), each)
        total = np.where(below, total + each, total)
        k = np.where(below, k + 1.0, k)
    return k


def _tried(source: Source, count: int, propose: Any) -> Array:
    """propose(places, u - 1/2, v) -> (numbers, which are accepted), until all are."""
    result = np.empty(count)
    waiting = np.arange(count)
    while waiting.size:
        u, v = source.inside(waiting.size) - 0.5, source.inside(waiting.size)
        k, good = propose(waiting, u, v)
        result[waiting[good]] = k[good]
        waiting = waiting[~good]
    return result


def poisson(source: Source, rate: Array) -> Array:
    large = rate >= 10.0
    few = np.where(large, 0.0, rate)
    result = _counted(source.inside(rate.size), exp(-few), lambda k: few / (k + 1.0), np.full_like(rate, np.inf))
    if large.any():
        result[large] = _poisson_large(source, rate[large])
    return result.astype(np.int64)


def _poisson_large(source: Source, rate: Array) -> Array:
    root, log_rate = np.sqrt(rate), log(rate)
    b = 0.931 + 2.53 * root
    a = 0.02483 * b - 0.059
    inverse = log(1.1239 + 1.1328 / (b - 3.4))
    edge = 0.9277 - 3.6224 / (b - 2.0)

    def propose(at: Array, u: Array, v: Array) -> tuple[Array, Array]:
        us = 0.5 - np.abs(u)
        k = np.floor((2.0 * a[at] / us + b[at]) * u + rate[at] + 0.43)
        quick = (us >= 0.07) & (v <= edge[at])
        out = (k < 0.0) | ((us < 0.013) & (v > us))
        safe = np.maximum(k, 0.0)
        left = log(v) + inverse[at] - log(a[at] / (us * us) + b[at])
        right = safe * log_rate[at] - rate[at] - log_factorial(safe)
        return k, quick | (~out & (left <= right))

    return _tried(source, rate.size, propose)


def binomial(source: Source, trials: Array, p: Array) -> Array:
    flip = p > 0.5
    p = np.where(flip, 1.0 - p, p)
    large = trials * p >= 10.0
    n, share = np.where(large, 0.0, trials), np.where(large, 0.0, p)
    odds = share / (1.0 - share)
    first = exp(n * log(1.0 - share))
    result = _counted(source.inside(p.size), first, lambda k: (n - k) / (k + 1.0) * odds, n)
    if large.any():
        result[large] = _binomial_large(source, trials[large], p[large])
    return np.where(flip, trials - result, result).astype(np.int64)


def _binomial_large(source: Source, n: Array, p: Array) -> Array:
    root = np.sqrt(n * p * (1.0 - p))
    b = 1.15 + 2.53 * root
    a = 0.0248 * b - 0.0873 + 0.01 * p
    centre, edge, alpha = n * p + 0.5, 0.92 - 4.2 / b, (2.83 + 5.1 / b) * root
    log_odds = log(p / (1.0 - p))
    mode = np.floor((n + 1.0) * p)
    top = log_factorial(mode) + log_factorial(n - mode)

    def propose(at: Array, u: Array, v: Array) -> tuple[Array, Array]:
        us = 0.5 - np.abs(u)
        k = np.floor((2.0 * a[at] / us + b[at]) * u + centre[at])
        inside = (k >= 0.0) & (k <= n[at])
        safe = np.where(inside, k, 0.0)
        left = log(v * alpha[at] / (a[at] / (us * us) + b[at]))
        right = top[at] - log_factorial(safe) - log_factorial(n[at] - safe) + (safe - mode[at]) * log_odds[at]
        return k, inside & ((us >= 0.07) & (v <= edge[at]) | (left <= right))

    return _tried(source, n.size, propose)


def geometric(source: Source, p: Array) -> Array:
    """Trials up to the first success."""
    certain = p >= 1.0
    per = log(1.0 - np.where(certain, 0.5, p))
    found = np.maximum(np.ceil(log(source.inside(p.size)) / per), 1.0)
    return np.where(certain, 1.0, np.minimum(found, 2.0**62)).astype(np.int64)


def places_by_weight(source: Source, weights: Array, count: int) -> Array:
    """Indices, each as often as its weight says. weights: (K,), of a positive sum."""
    edges = np.cumsum(weights)
    found = np.searchsorted(edges, source.uniform(count) * edges[-1], side="right")
    return np.minimum(found, np.nonzero(weights)[0][-1]).astype(np.int64)


def distinct_places_by_weight(source: Source, weights: Array, count: int) -> Array:
    """Different indices, drawn one after the other by weight: a race of exponential clocks."""
    clocks = np.where(weights > 0.0, exponential(source, weights.size) / np.where(weights > 0.0, weights, 1.0), np.inf)
    return np.argsort(clocks, kind="stable")[:count].astype(np.int64)
