"""What the ops of the group "standard" mean, in NumPy. cyxcore/kernels/reference.py takes them over."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cyxcore.errors import DataError
from cyxcore.kernels import lapack

Array = np.ndarray[Any, Any]
Kernel = Callable[..., Any]
Attrs = Mapping[str, Any]


def _plain(function: Callable[..., Any]) -> Kernel:
    return lambda attrs, *inputs: function(*inputs)


_PLAIN: dict[str, Callable[..., Any]] = {
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.round,
    "conj": np.conj,
    "real": np.real,
    "imag": np.imag,
    "signbit": np.signbit,
    "atan2": np.arctan2,
    "hypot": np.hypot,
    "logaddexp": np.logaddexp,
    "copysign": np.copysign,
    "nextafter": np.nextafter,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
    "bitwise_invert": np.invert,
}

KERNELS: dict[str, Kernel] = {**{name: _plain(function) for name, function in _PLAIN.items()}, **lapack.KERNELS}


def kernel(*names: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(names, function))
        return function

    return register


@kernel("tan")
def _tan(attrs: Attrs, x: Array) -> Any:
    """At an imaginary infinity ±1j with a zero of the real part's sign: it is -1j * tanh(1j * x), see there."""
    result = np.asarray(np.tan(x))
    if x.dtype.kind == "c":
        ends = np.isinf(x.imag) & np.isfinite(x.real)
        result.real = np.where(ends, np.copysign(0, x.real), result.real)
    return result


@kernel("expm1")
def _expm1(attrs: Attrs, x: Array) -> Any:
    """Of complex numbers with the standard's special cases: NumPy's differ at infinities and at -0."""
    if x.dtype.kind != "c":
        return np.expm1(x)
    a, b = x.real, x.imag
    no_angle = np.isinf(a) & ~np.isfinite(b)
    result, half = np.empty_like(x), np.sin(b / 2)
    result.real = np.where(no_angle | (a == -np.inf), np.expm1(a), np.expm1(a) * np.cos(b) - 2 * half * half)
    result.real += 0.0  # -0 becomes 0
    result.imag = np.where(b == 0, b, np.where(no_angle & (a < 0), 0, np.exp(a) * np.sin(b)))
    return result


EXACT_QUOTIENT = 2.0**29  # below it the product of a quotient and a float32 is exact in float64
EXACT_WHOLE = 2.0**21  # below it NumPy's floor_divide of float32, of rounded steps, is the floor of the true quotient
IN_CACHE = 1 << 14  # elements


@kernel("remainder")
def _remainder(attrs: Attrs, x: Array, y: Array) -> Any:
    """np.remainder, to the bit; of many float32 by quotients in float64, a part after the other in the cache."""
    return _by_quotients(x, y, np.remainder, EXACT_QUOTIENT, lambda quotient, rest, b: np.copysign(rest, b))


@kernel("floor_divide")
def _floor_divide(attrs: Attrs, x: Array, y: Array) -> Any:
    """np.floor_divide, to the bit, the way of _remainder."""
    return _by_quotients(x, y, np.floor_divide, EXACT_WHOLE, lambda quotient, rest, b: quotient)


def _by_quotients(
    x: Array, y: Array, otherwise: np.ufunc, limit: float, of_part: Callable[[Array, Array, Array], Array]
) -> Any:
    """What `of_part` makes of whole quotients and remainders in float64, whose sign is the divisor's or which are zero.

    otherwise: NumPy's function, of few numbers, of other types, and where a quotient is not below the limit.
    """
    shape = np.broadcast_shapes(x.shape, y.shape)
    if x.dtype != np.float32 or x.size < max(IN_CACHE, math.prod(shape)):
        return otherwise(x, y)
    one = y.size == 1
    values, divisors = x.reshape(-1), np.broadcast_to(y, shape).reshape(-1) if not one else y.reshape(-1)
    result = np.empty(values.shape, x.dtype)
    for start in range(0, len(values), IN_CACHE):
        part = slice(start, start + IN_CACHE)
        a, b = values[part].astype(np.float64), (divisors if one else divisors[part]).astype(np.float64)
        quotient = np.floor(a / b)
        rest = a - quotient * b
        above = (rest != 0.0) & ((rest < 0.0) != (b < 0.0))  # the quotient was rounded up
        rest += np.where(above, b, 0.0)
        quotient -= above
        result[part] = of_part(quotient, rest, b)
        plain = (np.abs(quotient) < limit) & np.isfinite(b)  # not of infinities, of NaN, by 0
        if not plain.all():
            odd = np.flatnonzero(~plain)
            result[part][odd] = otherwise(values[part][odd], divisors if one else divisors[part][odd])
    return result.reshape(shape)


def _each(function: Callable[[float], float]) -> Kernel:
    """A kernel of a function of one float64."""
    made = np.frompyfunc(function, 1, 1)
    return lambda attrs, x: np.asarray(made(x.astype(np.float64))).astype(x.dtype)


def _lgamma(x: float) -> float:
    return math.inf if x == -math.inf or x <= 0 and x == math.floor(x) else math.lgamma(x)


def _above(x: float, term: Callable[[float], float], series: Callable[[float], float]) -> float:
    """A series that has its digits from 16 on, and before it the terms of a recurrence."""
    total = []
    while x < 16.0:
        total.append(term(x))
        x += 1.0
    return math.fsum([*total, series(x)])


def _digamma(x: float) -> float:
    """Abramowitz and Stegun 6.3.18."""
    if x != x or x == math.inf:
        return x
    if x < 0.5:
        if x == -math.inf or x == math.floor(x):
            return -math.inf if x == 0.0 else math.nan
        turn = math.pi * (x - round(x))
        return _digamma(1.0 - x) - math.pi * math.cos(turn) / math.sin(turn)
    terms = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132)

    def series(y: float) -> float:
        return math.log(y) - 0.5 / y - sum(term * y ** (-2 * k - 2) for k, term in enumerate(terms))

    return _above(x, lambda y: -1.0 / y, series)


def _trigamma(x: float) -> float:
    """The derivative of digamma: Abramowitz and Stegun 6.4.12."""
    if x != x or x == math.inf:
        return 1.0 / x
    if x < 0.5:
        if x == -math.inf or x == math.floor(x):
            return math.inf
        ratio = math.pi / math.sin(math.pi * (x - round(x)))
        return ratio * ratio - _trigamma(1.0 - x)
    terms = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66)

    def series(y: float) -> float:
        return 1.0 / y + 0.5 / y / y + sum(term * y ** (-2 * k - 3) for k, term in enumerate(terms))

    return _above(x, lambda y: 1.0 / y / y, series)


def _erfinv(x: float) -> float:
    """Newton's steps from Winitzki's approximation."""
    if not abs(x) < 1.0:
        return math.copysign(math.inf, x) if abs(x) == 1.0 else math.nan
    a, least = abs(x), 1.0 - abs(x)
    log = math.log(least) + math.log1p(a)
    half = 2.0 / (math.pi * 0.147) + log / 2.0
    y = math.sqrt(max(math.sqrt(half * half - log / 0.147) - half, 0.0)) if a > 1e-3 else a * math.sqrt(math.pi) / 2.0
    for _ in range(4):
        beyond = math.erf(y) - a if a < 0.5 else least - math.erfc(y)
        y -= beyond / (math.exp(-y * y) * 2.0 / math.sqrt(math.pi))
    return math.copysign(y, x)


KERNELS.update(lgamma=_each(_lgamma), digamma=_each(_digamma), trigamma=_each(_trigamma), erfinv=_each(_erfinv))


def _huber(x: Array, delta: Any) -> tuple[Array, Array]:
    """How far it is from 0, and that or delta."""
    away = np.abs(x)
    return away, np.where((away <= delta) | (away != away), away, delta)


def _between(x: Array, low: Any, high: Any) -> tuple[Array, Array]:
    """x kept within low … high, and whether it was there."""
    above = np.where(x <= low, x.dtype.type(low), x)
    return np.where(above >= high, x.dtype.type(high), above), ~((x <= low) | (above >= high))


def _clipped(x: Array, low: Any, high: Any) -> tuple[Array, Array]:
    """As _between; the bounds themselves are within."""
    above = np.where(x < low, x.dtype.type(low), x)
    return np.where(above > high, x.dtype.type(high), above), ~((x < low) | (above > high))


KERNELS["clip"] = lambda a, x: _clipped(x, a["low"], a["high"])[0]
KERNELS["clip_grad"] = lambda a, g, x: np.where(_clipped(x, a["low"], a["high"])[1], g, x.dtype.type(0))
KERNELS["hardtanh"] = lambda a, x: _between(x, a["low"], a["high"])[0]
KERNELS["hardtanh_grad"] = lambda a, g, x: np.where(_between(x, a["low"], a["high"])[1], g, x.dtype.type(0))
KERNELS["hardsigmoid"] = lambda a, x: _between(x + x.dtype.type(3), 0, 6)[0] * x.dtype.type(1 / 6)
KERNELS["hardswish"] = lambda a, x: x * KERNELS["hardsigmoid"]({}, x)
KERNELS["softshrink"] = lambda a, x: x - np.clip(x, x.dtype.type(-a["bound"]), x.dtype.type(a["bound"]))
KERNELS["leaky_relu"] = lambda a, x: np.where(x > 0, x, x * x.dtype.type(a["slope"]))


@kernel("hardsigmoid_grad")
def _hardsigmoid_grad(attrs: Attrs, g: Array, x: Array) -> Any:
    return np.where(_between(x + x.dtype.type(3), 0, 6)[1], g * x.dtype.type(1 / 6), x.dtype.type(0))


@kernel("hardswish_grad")
def _hardswish_grad(attrs: Attrs, g: Array, x: Array) -> Any:
    return g * KERNELS["hardsigmoid"]({}, x) + _hardsigmoid_grad({}, g * x, x)


@kernel("softshrink_grad")
def _softshrink_grad(attrs: Attrs, g: Array, x: Array) -> Any:
    bound = x.dtype.type(attrs["bound"])
    return g + np.where((x < -bound) | (x > bound), x.dtype.type(0), -g)


@kernel("leaky_relu_grad")
def _leaky_relu_grad(attrs: Attrs, g: Array, x: Array) -> Any:
    none = x.dtype.type(0)
    return np.where(x > 0, g, none) + np.where(x > 0, none, g) * x.dtype.type(attrs["slope"])


@kernel("huber")
def _huber_of(attrs: Attrs, x: Array) -> Any:
    away, near = _huber(x, x.dtype.type(attrs["delta"]))
    return near * (away - near * x.dtype.type(0.5))


@kernel("huber_grad")
def _huber_grad(attrs: Attrs, g: Array, x: Array) -> Any:
    """In the order of operations in which it is made of the others; where |x| is delta, both share the gradient."""
    delta, half = x.dtype.type(attrs["delta"]), x.dtype.type(0.5)
    away, near = _huber(x, delta)
    own, bound = (away == near).astype(x.dtype), (delta == near).astype(x.dtype)
    with np.errstate(all="ignore"):
        to_near = g * (away - near * half) + -(g * near) * half
        return (g * near + to_near / (own + bound) * own) * np.sign(x)


KERNELS["host_call"] = lambda a, *xs: a["function"](*xs)


@kernel("integer_pow")
def _integer_pow(attrs: Attrs, x: Array, y: Array) -> Any:
    if y.size and y.min() < 0:
        raise DataError(f"pow: expected integer powers >= 0, got {y.min()}; convert the base to floats with astype")
    return np.power(x, y)


# reductions, sorting and searching ----------------------------------------------------------------

KERNELS["prod"] = lambda a, x: x.prod(axis=a["axes"], keepdims=a["keepdims"], dtype=x.dtype)
KERNELS["all"] = lambda a, x: x.all(axis=a["axes"], keepdims=a["keepdims"])
KERNELS["any"] = lambda a, x: x.any(axis=a["axes"], keepdims=a["keepdims"])
KERNELS["cumulative_sum"] = lambda a, x: np.cumsum(x, axis=a["axis"], dtype=x.dtype) if x.ndim else x
KERNELS["cumulative_prod"] = lambda a, x: np.cumprod(x, axis=a["axis"], dtype=x.dtype) if x.ndim else x
KERNELS["cumulative_logsumexp"] = lambda a, x: np.logaddexp.accumulate(x, axis=a["axis"]) if x.ndim else x
KERNELS["argmin"] = lambda a, x: x.argmin(axis=a["axis"])
KERNELS["fft"] = lambda a, x: np.fft.fft(x, axis=a["axis"])
KERNELS["ifft"] = lambda a, x: np.fft.ifft(x, axis=a["axis"], norm="forward")
KERNELS["rfft"] = lambda a, x: np.fft.rfft(x, axis=a["axis"])
KERNELS["irfft"] = lambda a, x: np.fft.irfft(x, n=a["size"], axis=a["axis"], norm="forward")
KERNELS["flip"] = lambda a, x: np.flip(x, a["axes"])


@kernel("nonzero")
def _nonzero(attrs: Attrs, x: Array) -> Any:
    """np.stack(np.nonzero(x)), of which NumPy makes one place after the other: here they are divided all at once."""
    flat = np.flatnonzero(x)
    places = np.empty((x.ndim, flat.size), np.int64)
    for axis in range(x.ndim - 1, 0, -1):
        rest = flat // x.shape[axis]
        places[axis] = flat - rest * x.shape[axis]
        flat = rest
    places[:1] = flat
    return places


@kernel("cumulative_argmax")
def _cumulative_argmax(attrs: Attrs, x: Array) -> Any:
    return _last_of_best(x, attrs["axis"], np.maximum)


@kernel("cumulative_argmin")
def _cumulative_argmin(attrs: Attrs, x: Array) -> Any:
    return _last_of_best(x, attrs["axis"], np.minimum)


def _last_of_best(x: Array, axis: int, better: np.ufunc) -> Array:
    """Where the best so far is, the last of equals; a NaN is better than all numbers."""
    if not x.size or not x.ndim:
        return np.zeros(x.shape, np.int64)
    rows = np.moveaxis(x, axis, -1)
    hits = rows == better.accumulate(rows, axis=-1)
    if x.dtype.kind == "f":
        hits |= rows != rows
    found = np.flatnonzero(hits)  # the first of each row among them
    kept = np.diff(found, append=x.size)
    return np.moveaxis(np.repeat(found % rows.shape[-1], kept).reshape(rows.shape), -1, axis)


@kernel("recurrence")
def _recurrence(attrs: Attrs, terms: Array, factors: Array) -> Any:
    """y_i = t_i + f_i y_(i-1) along an axis, or backwards y_i = t_i + f_(i+1) y_(i+1), in float64 or complex128.

    The first factor counts nothing, whichever it is. A factor of 0 takes nothing along, of infinities too.
    """
    if not terms.size:
        return terms
    t, f = (np.moveaxis(each, attrs["axis"], 0) for each in (terms, factors))
    shape = t.shape
    if attrs["backwards"]:
        t, f = t[::-1], np.concatenate([f[:1], f[:0:-1]])
    wide = np.complex128 if terms.dtype.kind == "c" else np.float64
    y = _recur(t.reshape(shape[0], -1), f.reshape(shape[0], -1), wide).reshape(shape)
    return np.moveaxis(y[::-1] if attrs["backwards"] else y, 0, attrs["axis"]).astype(terms.dtype)


ONE_BLOCK = 64  # steps of a recurrence that are made one by one


def _recur(t: Array, f: Array, wide: Any) -> Array:
    """The recurrence down the rows of (n, m). Many are cut into about sqrt(n) blocks, which go on side by side from 0
    until what each began with is known: with y before it, a block's results are those and y times its factors so far.
    """
    n, m = t.shape
    steps = n if n <= ONE_BLOCK else math.isqrt(n)
    blocks = n // steps
    y, products = np.empty((2, steps, blocks, m), wide)
    for laid, rows in ((y, t), (products, f)):
        laid[...] = rows[: steps * blocks].reshape(blocks, steps, m).swapaxes(0, 1)
    zeros = (products == 0).any((1, 2)).tolist()

    def carried(step: int, before: Array) -> Array:
        result = products[step] * before
        if zeros[step]:
            result[products[step] == 0] = 0
        return result

    for i in range(1, steps):
        y[i] += carried(i, y[i - 1])
        if blocks > 1:
            products[i] = carried(i, products[i - 1])
    if blocks == 1:
        return y[:, 0]
    before = _recur(y[-1], products[-1], wide)[:-1]
    products[:, 1:][:, before == 0] = 0  # infinite products of nothing
    products[:, 1:] *= before
    y[:, 1:] += products[:, 1:]
    result = np.empty((n, m), wide)
    result[: steps * blocks].reshape(blocks, steps, m).swapaxes(0, 1)[...] = y
    if steps * blocks < n:
        rest = slice(steps * blocks - 1, n)  # goes on from the last result
        result[rest] = _recur(np.concatenate([result[rest][:1], t[rest][1:]]), f[rest], wide)
    return result


_COMBINE = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


@kernel("scatter")
def _scatter(attrs: Attrs, x: Array, places: Array, rows: Array) -> Any:
    """In the order of the places: of two at one place the later one stays."""
    if places.size and not -len(x) <= places.min() <= places.max() < len(x):
        raise DataError(f"scatter: expected places below {len(x)}, got {places.min()}..{places.max()}")
    result = x.copy()
    if attrs["reduction"] == "none":
        result[places] = rows
    else:
        _COMBINE[attrs["reduction"]].at(result, places, rows)
    return result


@kernel("searchsorted")
def _searchsorted(attrs: Attrs, row: Array, x: Array) -> Any:
    side: Any = "right" if attrs["right"] else "left"
    if row.ndim == 1:
        return np.searchsorted(row, x, side=side)
    if x.shape[-1] < FEW_SEARCHED:
        return _bisected(row, x, attrs["right"])
    result = np.empty(x.shape, np.int64)
    for at in np.ndindex(row.shape[:-1]):
        result[at] = np.searchsorted(row[at], x[at], side=side)
    return result


FEW_SEARCHED = 64  # in a row: fewer are searched in all rows at once


def _bisected(rows: Array, x: Array, right: bool) -> Array:
    """np.searchsorted of each row, NaNs being the largest."""

    def below(one: Array, other: Array) -> Array:
        return (one < other) | ((other != other) & (one == one))

    size = rows.shape[-1]
    low, high = np.zeros(x.shape, np.int64), np.full(x.shape, size)
    for _ in range(size.bit_length()):
        middle = (low + high) // 2
        at = np.take_along_axis(rows, np.minimum(middle, size - 1), -1)
        up = (middle < high) & (~below(x, at) if right else below(at, x))
        low, high = np.where(up, middle + 1, low), np.where(up, high, middle)
    return low


@kernel("take_along_grad")
def _take_along_grad(attrs: Attrs, g: Array, indices: Array) -> Any:
    """out[..., indices[j], ...] += g[..., j, ...]: blocks of `terms` in turn, and their sums in pairs."""
    axis, terms = attrs["axis"], attrs["terms"]
    rows, places = (np.moveaxis(x, axis, -1) for x in (g, np.where(indices < 0, indices + attrs["size"], indices)))
    taken, shape = rows.shape[-1], (*rows.shape[:-1], attrs["size"])
    sums = [np.zeros(shape, g.dtype)] if not taken else []
    for block, start in enumerate(range(0, taken, terms)):
        sums.append(np.zeros(shape, g.dtype))
        at = np.indices((*shape[:-1], min(terms, taken - start)))[:-1]
        np.add.at(sums[-1], (*at, places[..., start : start + terms]), rows[..., start : start + terms])
        while block & 1:
            last = sums.pop()
            sums[-1], block = sums[-1] + last, block >> 1
    while len(sums) > 1:
        last = sums.pop()
        sums[-1] = sums[-1] + last
    if not attrs["from_zero"] and taken:  # a sum of nothing but -0, which begins with the first of them
        alike = ((rows == 0) & np.signbit(rows) & (places == places[..., :1])).all(-1, keepdims=True)
        sums[0][alike & (np.arange(attrs["size"]) == places[..., :1])] = -0.0
    return np.moveaxis(sums[0], -1, axis)


NEVER = -1e30  # a logarithm of 0 whose differences are finite


def _ctc_forward(emitted: Array, leaps: Array) -> Array:
    """The logarithm of the probability of all beginnings that end in a state, after each step and before any:
    (T + 1, 2 S + 1). emitted: (T, 2 S + 1). leaps: which states come from the last but one, too.
    """
    made = np.full((len(emitted) + 1, len(leaps)), NEVER)
    made[0, 0] = 0.0
    for t, each in enumerate(emitted):
        before = np.pad(made[t], (2, 0), constant_values=NEVER)
        ways = [before[2:], before[1:-1], np.where(leaps, before[:-2], NEVER)]
        made[t + 1] = np.logaddexp.reduce(ways) + each
    return made


def _ctc_row(attrs: Attrs, log_probs: Array, labels: Array) -> tuple[float, Array]:
    """The loss of one row, without what lies behind its ends, and its gradient: (T, C), (S,) -> (T, C)."""
    states = np.full(2 * len(labels) + 1, attrs["blank"])
    states[1::2] = labels
    leaps = (states != attrs["blank"]) & (states != np.pad(states, (2, 0), constant_values=attrs["blank"])[:-2])
    emitted = np.maximum(log_probs[:, states].astype("float64"), NEVER)
    forward = _ctc_forward(emitted, leaps)
    log_likelihood = np.logaddexp.reduce(forward[-1, -2:])
    gradient = np.zeros(log_probs.shape)
    if log_likelihood < NEVER / 2:
        return (0.0 if attrs["zero_infinity"] else math.inf), gradient
    over = np.pad(leaps, (0, 2))[2:]  # from which states a leap begins: backwards, those it comes to
    backward = _ctc_forward(emitted[::-1, ::-1], over[::-1])[::-1, ::-1]
    shares = np.exp(forward[1:] + backward[:-1] - emitted - log_likelihood)
    np.add.at(gradient, (np.arange(len(log_probs))[:, None], states), -shares)
    return -float(log_likelihood), gradient


@kernel("ctc_loss", "ctc_loss_grad")
def _ctc_loss(attrs: Attrs, *inputs: Array) -> Any:
    *g, log_probs, targets, steps, counts = inputs
    losses, gradients = np.zeros(len(targets)), np.zeros(log_probs.shape)
    for n, (length, count) in enumerate(zip(steps, counts, strict=True)):
        losses[n], gradients[:length, n] = _ctc_row(attrs, log_probs[:length, n], targets[n, :count])
    return (gradients * g[0][:, None] if g else losses).astype(log_probs.dtype)


@kernel("argsort")
def _argsort(attrs: Attrs, x: Array) -> Any:
    """Stable both ways: the descending order is the ascending one of the reversed row, read backwards."""
    axis = attrs["axis"]
    if not attrs["descending"]:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(backwards, axis)
