"""Random tensors: Philox generators and the usual distributions, with the same bits on every machine and device.

    g = cx.random.Generator(7)
    noise, order = g.normal(size=(2, 3)), g.permutation(10)
    a, b = g.split(2)            # two generators that share no numbers with g or each other
    cx.random.uniform(size=4)    # the generator cx.manual_seed sets

Names, parameters and their order are NumPy's. Parameters may be tensors or arrays, which broadcast; `size` is the shape
of the result, theirs unless given. Results have no gradients. A generator counts its draws: the same calls in the same
order give the same numbers. Inside cx.compile a draw is made anew in each call; inside cx.trace it is a constant of the
graph: use functional.dropout there.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore import drawing, eager, keys, variates
from cyxcore.attrs import is_whole
from cyxcore.creation import _shape
from cyxcore.dtype import DTYPES, FLOATS, INTEGERS, dtype_name, iinfo
from cyxcore.eager import Tensor
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.hosted import hosted, is_symbolic
from cyxcore.infer import Shape, broadcast, stretches
from cyxcore.kernels.philox import uniform_words
from cyxcore.values import Value, apply
from cyxcore.variates import Source

Array = np.ndarray[Any, Any]

SPLIT_STEP = 2**62  # steps of draws are below, those of the data order and of first weights above
MAX_RATE = 1e12  # of Poisson numbers, whose logarithms would lose their digits above


def _float64(value: Any) -> Array:
    return np.asarray(value.astype("float64").numpy() if isinstance(value, Tensor) else value, np.float64)


def _numbers(name: str, what: str, value: Any, good: Callable[[Array], Any], wanted: str) -> Array:
    """A parameter as float64. Raises SpecError for a value outside its domain."""
    array = _float64(value)
    if not np.all(good(array)):
        raise SpecError(f"{name}: expected {what} {wanted}, got {array.tolist()}")
    return array


def _any(x: Array) -> Any:
    return np.isfinite(x)


def _positive(x: Array) -> Any:
    return np.isfinite(x) & (x > 0)


def _not_negative(x: Array) -> Any:
    return np.isfinite(x) & (x >= 0)


def _probability(x: Array) -> Any:
    return (x >= 0) & (x <= 1)


class Generator(eager.Generator):
    """A stream of random tensors that depends on nothing but its seed (0 <= seed < 2**64) and the calls before."""

    def __init__(self, seed: int = 0) -> None:
        if not is_whole(seed) or not 0 <= seed < 2**64:
            raise SpecError(f"Generator: expected an integer seed 0 <= seed < 2**64, got {seed!r}")
        super().__init__(int(seed))

    def __repr__(self) -> str:
        return f"Generator(seed={self.seed}, step={self.step})"

    def _source(self) -> Source:
        seed, step = self.next_key().tolist()
        return Source(seed, step)

    def split(self, count: int = 2) -> "list[Generator]":
        """Generators of their own, which share no numbers with this one."""
        if count < 1:
            raise SpecError(f"split: expected count >= 1, got {count}")
        seed, step = self.next_key().tolist()
        halves = uniform_words(seed, SPLIT_STEP + step, 0, 2 * count).astype(np.uint64).reshape(-1, 2)
        return [Generator(int(high) << 32 | int(low)) for high, low in halves]

    def manual_seed(self, seed: int) -> "Generator":
        """Begin anew with another seed; itself, as torch.Generator's does."""
        Generator.__init__(self, seed)
        return self

    def initial_seed(self) -> int:
        """The seed."""
        return self.seed

    def get_state(self) -> Tensor:
        """(seed, step), for set_state."""
        return Tensor(np.array([self.seed, self.step], np.uint64))

    def set_state(self, new_state: Tensor) -> None:
        """Go on from what get_state gave. Raises ShapeError for anything else."""
        shape = getattr(new_state, "shape", type(new_state).__name__)
        if shape != (2,):
            raise ShapeError(f"set_state: expected what get_state gives, (2,), got {shape}")
        seed, step = new_state.tolist()
        self.load_state_dict({"seed": seed, "step": step})

    def state_dict(self) -> dict[str, int]:
        """Where the generator is, for load_state_dict."""
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.step = int(state["seed"]), int(state["step"])

    # real numbers -----------------------------------------------------------------------------

    def _drawn(
        self, name: str, size: Any, dtype: Any, parameters: tuple[Array, ...], draw: Callable[..., Array]
    ) -> Tensor:
        """draw(source, count, *parameters of that count) as a tensor of a float dtype."""
        wanted = dtype_name(dtype)
        if wanted not in FLOATS:
            raise DtypeError(f"{name}: expected a float dtype, got {wanted}")
        shape, flat = _broadcast(name, size, parameters)
        return _placed(draw(self._source(), math.prod(shape), *flat).reshape(shape), wanted)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """low <= x < high (rounding may reach high when low is not 0)."""
        a, b = (_numbers("uniform", what, x, _any, "finite") for what, x in (("low", low), ("high", high)))

        def draw(source: Source, count: int, low: Array, high: Array) -> Array:
            if dtype_name(dtype) == "float64":
                return low + (high - low) * source.uniform(count)
            drawn = drawing.uniform(source.seed, source.step, 0, (count,), "cpu")
            return low + (high - low) * drawing.fitted(drawn, dtype_name(dtype))

        return self._drawn("uniform", size, dtype, (a, b), draw)

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Of mean loc and standard deviation scale."""
        mean = _numbers("normal", "loc", loc, _any, "finite")
        deviation = _numbers("normal", "scale", scale, _not_negative, ">= 0")
        if mean.size == deviation.size == 1:  # in one pass
            scale, shift = float(deviation.reshape(())), float(mean.reshape(()))
            kind = "float32" if dtype_name(dtype) == "float32" else "float64"
            return self._drawn(
                "normal",
                size,
                dtype,
                (mean, deviation),
                lambda s, n, m, d: variates.normal(s, n, scale, shift, kind),
            )
        return self._drawn("normal", size, dtype, (mean, deviation), lambda s, n, m, d: m + d * variates.normal(s, n))

    def truncated_normal(
        self,
        low: Any = -2.0,
        high: Any = 2.0,
        loc: Any = 0.0,
        scale: Any = 1.0,
        size: Any = None,
        *,
        dtype: Any = "float32",
    ) -> Tensor:
        """Normal numbers of mean loc and deviation scale (before cutting) that fall into [low, high].

        Raises SpecError for an interval that holds less than 1e-9 of them.
        """
        parts = [_float64(x) for x in (low, high)]
        mean = _numbers("truncated_normal", "loc", loc, _any, "finite")
        deviation = _numbers("truncated_normal", "scale", scale, _positive, "> 0")
        start, stop = ((part - mean) / deviation for part in parts)
        start, stop = np.broadcast_arrays(start, stop)
        first, last = np.where(start > 0, -stop, start), np.where(start > 0, -start, stop)
        share = variates.normal_below(last) - variates.normal_below(first)
        if not np.all(share >= 1e-9):
            raise SpecError(f"truncated_normal: {low}..{high} holds less than 1e-9 of the numbers around {loc}")

        def draw(source: Source, count: int, a: Array, b: Array, m: Array, d: Array, low: Array, high: Array) -> Array:
            return np.clip(m + d * variates.truncated_normal(source, a, b), low, high)

        return self._drawn("truncated_normal", size, dtype, (start, stop, mean, deviation, *parts), draw)

    def lognormal(self, mean: Any = 0.0, sigma: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """exp of a normal number."""
        centre = _numbers("lognormal", "mean", mean, _any, "finite")
        deviation = _numbers("lognormal", "sigma", sigma, _not_negative, ">= 0")
        return self._drawn(
            "lognormal",
            size,
            dtype,
            (centre, deviation),
            lambda s, n, m, d: variates.exp(m + d * variates.normal(s, n)),
        )

    def _moved(
        self, name: str, draw: Callable[[Source, int], Array], loc: Any, scale: Any, size: Any, dtype: Any
    ) -> Tensor:
        place = _numbers(name, "loc", loc, _any, "finite")
        width = _numbers(name, "scale", scale, _not_negative, ">= 0")
        return self._drawn(name, size, dtype, (place, width), lambda s, n, m, d: m + d * draw(s, n))

    def laplace(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Of density exp(-|x - loc| / scale) / (2 scale)."""
        return self._moved("laplace", variates.laplace, loc, scale, size, dtype)

    def gumbel(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """loc - scale log(-log(u))."""
        return self._moved("gumbel", variates.gumbel, loc, scale, size, dtype)

    def logistic(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """loc + scale log(u / (1 - u))."""
        return self._moved("logistic", variates.logistic, loc, scale, size, dtype)

    def cauchy(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """The quotient of two normal numbers."""

        def draw(source: Source, count: int) -> Array:
            return variates.normal(source, count) / variates.normal(source, count)

        return self._moved("cauchy", draw, loc, scale, size, dtype)

    def exponential(self, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Of mean scale."""
        return self._moved("exponential", variates.exponential, 0.0, scale, size, dtype)

    def gamma(self, shape: Any, scale: Any = 1.0, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Of density x**(shape - 1) exp(-x / scale), shape > 0."""
        form = _numbers("gamma", "shape", shape, _positive, "> 0")
        width = _numbers("gamma", "scale", scale, _not_negative, ">= 0")
        return self._drawn("gamma", size, dtype, (form, width), lambda s, n, a, d: d * variates.gamma(s, a))

    def beta(self, a: Any, b: Any, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Of density x**(a - 1) (1 - x)**(b - 1), a > 0, b > 0."""
        parts = tuple(_numbers("beta", what, x, _positive, "> 0") for what, x in (("a", a), ("b", b)))
        return self._drawn("beta", size, dtype, parts, lambda s, n, a, b: variates.beta(s, a, b))

    def chisquare(self, df: Any, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """The sum of df squared normal numbers, df > 0."""
        freedom = _numbers("chisquare", "df", df, _positive, "> 0")
        return self._drawn("chisquare", size, dtype, (freedom,), lambda s, n, f: 2.0 * variates.gamma(s, f * 0.5))

    def standard_t(self, df: Any, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Student's t with df > 0 degrees of freedom."""
        freedom = _numbers("standard_t", "df", df, _positive, "> 0")

        def draw(source: Source, count: int, f: Array) -> Array:
            return variates.normal(source, count) / np.sqrt(2.0 * variates.gamma(source, f * 0.5) / f)

        return self._drawn("standard_t", size, dtype, (freedom,), draw)

    def weibull(self, a: Any, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """(-log(u))**(1 / a), a > 0."""
        form = _numbers("weibull", "a", a, _positive, "> 0")
        return self._drawn(
            "weibull",
            size,
            dtype,
            (form,),
            lambda s, n, a: variates.exp(variates.log(variates.exponential(s, n)) / a),
        )

    def dirichlet(self, alpha: Any, size: Any = None, *, dtype: Any = "float32") -> Tensor:
        """Shares of 1: (*size, K) for alpha (K,), each > 0."""
        weights = _numbers("dirichlet", "alpha", alpha, _positive, "> 0")
        if weights.ndim != 1 or not weights.size:
            raise ShapeError(f"dirichlet: expected alpha (K,), got {weights.shape}")
        shape = (*_size(size), weights.size)
        parts = variates.gamma(self._source(), np.broadcast_to(weights, shape).reshape(-1)).reshape(shape)
        total = np.cumsum(parts, -1)[..., -1:]  # one after the other: np.sum has an order of its own
        return _placed(parts / total, dtype_name(dtype))

    # integers ---------------------------------------------------------------------------------

    def _counts(
        self, name: str, size: Any, dtype: Any, parameters: tuple[Array, ...], draw: Callable[..., Array]
    ) -> Tensor:
        wanted = _integer_dtype(name, dtype)
        shape, flat = _broadcast(name, size, parameters)
        return _placed(draw(self._source(), math.prod(shape), *flat).reshape(shape), wanted)

    def integers(
        self, low: int, high: int | None = None, size: Any = None, *, dtype: Any = "int64", endpoint: bool = False
    ) -> Tensor:
        """low <= n < high (<= with `endpoint`), each as likely; below low from 0 when only one is given."""
        first, last = (0, low) if high is None else (low, high)
        first, last = int(first), int(last) + bool(endpoint)
        wanted = _integer_dtype("integers", dtype)
        limits = iinfo(wanted)
        if not limits.min <= first < last <= limits.max + 1:
            raise SpecError(f"integers: expected low < high within {wanted}, got {first}..{last}")
        shape = _size(size)
        found = variates.integers(self._source(), first, last, math.prod(shape)).reshape(shape)
        return _made(found.view(np.uint64) if wanted == "uint64" else found, wanted)

    def randint(self, low: int, high: int | None = None, size: Any = None, *, dtype: Any = "int64") -> Tensor:
        """integers() without its last one."""
        return self.integers(low, high, size, dtype=dtype)

    def bernoulli(self, p: Any = 0.5, size: Any = None, *, dtype: Any = "bool") -> Tensor:
        """True (or 1) with probability p."""
        chance = _numbers("bernoulli", "p", p, _probability, "0 <= p <= 1")
        shape, (flat,) = _broadcast("bernoulli", size, (chance,))
        return _placed((self._source().uniform(math.prod(shape)) < flat).reshape(shape), dtype_name(dtype))

    def poisson(self, lam: Any = 1.0, size: Any = None, *, dtype: Any = "int64") -> Tensor:
        """Of mean lam, 0 <= lam <= 1e12."""
        rate = _numbers("poisson", "lam", lam, lambda x: (x >= 0) & (x <= MAX_RATE), "0 <= lam <= 1e12")
        return self._counts("poisson", size, dtype, (rate,), lambda s, n, r: variates.poisson(s, r))

    def binomial(self, n: Any, p: Any, size: Any = None, *, dtype: Any = "int64") -> Tensor:
        """Successes in n trials of probability p, 0 <= n <= 1e12."""
        trials = _numbers(
            "binomial", "n", n, lambda x: (x >= 0) & (x <= MAX_RATE) & (x == np.floor(x)), "0..1e12, whole"
        )
        chance = _numbers("binomial", "p", p, _probability, "0 <= p <= 1")
        return self._counts(
            "binomial", size, dtype, (trials, chance), lambda s, count, n, p: variates.binomial(s, n, p)
        )

    def geometric(self, p: Any, size: Any = None, *, dtype: Any = "int64") -> Tensor:
        """Trials of probability p up to the first success: 1 or more."""
        chance = _numbers("geometric", "p", p, lambda x: (x > 0) & (x <= 1), "0 < p <= 1")
        return self._counts("geometric", size, dtype, (chance,), lambda s, n, p: variates.geometric(s, p))

    def multinomial(self, n: int, pvals: Any, size: Any = None, *, dtype: Any = "int64") -> Tensor:
        """How often each of K things came in n draws: (*size, K) for pvals (K,), which sum to 1."""
        chances = _numbers("multinomial", "pvals", pvals, _probability, "0..1")
        wanted = _integer_dtype("multinomial", dtype)
        if chances.ndim != 1 or not chances.size or abs(float(np.cumsum(chances)[-1]) - 1.0) > 1e-6 or n < 0:
            raise SpecError(f"multinomial: expected n >= 0 and pvals (K,) that sum to 1, got {n}, {chances.tolist()}")
        shape, source = _size(size), self._source()
        left, rest = np.full(math.prod(shape), float(n)), 1.0
        found = np.zeros((left.size, chances.size), np.int64)
        for place, chance in enumerate(chances[:-1].tolist()):
            share = min(1.0, max(0.0, chance / rest)) if rest > 0 else 0.0
            found[:, place] = variates.binomial(source, left, np.full_like(left, share))
            left, rest = left - found[:, place], rest - chance
        found[:, -1] = left
        return _placed(found.reshape(*shape, -1), wanted)

    # orders -----------------------------------------------------------------------------------

    def permutation(self, x: Any, axis: int = 0) -> Tensor:
        """0 ... x - 1 in random order, or a tensor with its rows along an axis in random order."""
        if is_whole(x) and not isinstance(x, Tensor):
            if x < 0:
                raise SpecError(f"permutation: expected a count >= 0, got {x}")
            return _made(variates.permutation(self._source(), int(x)), "int64")
        value = x if isinstance(x, Tensor) else Tensor(x)
        place = value._axis(axis)
        order = _made(variates.permutation(self._source(), value.shape[place]), "int64")
        return value._apply("take", [value, order.to(value.device)], {"axis": place})

    def choice(self, a: Any, size: Any = None, replace: bool = True, p: Any = None, axis: int = 0) -> Tensor:
        """Rows of a tensor along an axis, or integers below `a`, alike or by weights p; all different unless `replace`.

        Raises SpecError for more than there are.
        """
        value = None if is_whole(a) and not isinstance(a, Tensor) else a if isinstance(a, Tensor) else Tensor(a)
        place = 0 if value is None else value._axis(axis)
        count = a if value is None else value.shape[place]
        shape = _size(size)
        wanted, source = math.prod(shape), self._source()
        weights = None
        if p is not None:
            weights = _numbers("choice", "p", p, _not_negative, ">= 0").reshape(-1)
            if weights.size != count or not weights.any():
                raise SpecError(f"choice: expected {count} weights, not all 0, got {weights.tolist()}")
        able = count if weights is None else int(np.count_nonzero(weights))
        if wanted and not able or not replace and wanted > able:
            raise SpecError(f"choice: expected at most {able} without replacement, got {wanted}")
        if not wanted:
            found = np.empty(0, np.int64)
        elif weights is not None:
            draw = variates.places_by_weight if replace else variates.distinct_places_by_weight
            found = draw(source, weights, wanted)
        elif replace:
            found = variates.integers(source, 0, count, wanted)
        else:
            found = variates.permutation(source, count)[:wanted]
        places = _placed(found.reshape(shape), "int64")
        return places if value is None else value._apply("take", [value, places.to(value.device)], {"axis": place})


def _integer_dtype(name: str, dtype: Any) -> str:
    wanted = dtype_name(dtype)
    if wanted not in INTEGERS:
        raise DtypeError(f"{name}: expected an integer dtype, got {wanted}")
    return wanted


def _size(size: Any) -> Shape:
    return () if size is None else _shape(size)


def _broadcast(name: str, size: Any, parameters: tuple[Array, ...]) -> tuple[Shape, list[Array]]:
    """(the shape of the result, each parameter flat for it)."""
    theirs = broadcast(name, *(x.shape for x in parameters))
    shape = theirs if size is None else _shape(size)
    if not stretches(theirs, shape):
        raise ShapeError(f"{name}: parameters of shape {theirs} do not broadcast to size {shape}")
    count = math.prod(shape)  # of one number no array is made
    return shape, [
        np.broadcast_to(x.reshape(-1) if x.size == 1 else np.broadcast_to(x, shape).reshape(-1), (count,))
        for x in parameters
    ]


def _placed(array: Array, dtype: str) -> Tensor:
    """What was drawn, on the default device. Raises DtypeError for integers the dtype cannot hold."""
    if dtype in INTEGERS and array.size:
        limits = iinfo(dtype)
        if array.min() < limits.min or DTYPES[dtype].item_bytes < 8 and array.max() > limits.max:
            raise DtypeError(f"random: {dtype} holds {limits.min}..{limits.max}, a number outside was drawn")
    return _made(array, dtype)


def _made(array: Array, dtype: str) -> Tensor:
    made = Tensor(array, dtype)
    return made.to(devices.default_device()) if devices.default_device() in devices.OWN_MEMORY else made


_ROWS = {"multinomial": "pvals", "dirichlet": "alpha"}  # whose results have the axis of this parameter
_CHOICES = {"permutation": "x", "choice": "a"}  # which choose among the rows of this one, or so many numbers


def _of_symbols(generator: Generator, method: Callable[..., Any], args: Any, options: Any) -> Any:
    """A draw whose parameters a compiled function computes: made when they are there, of the key it takes."""
    given = inspect.signature(method).bind(generator, *args, **options)
    given.apply_defaults()
    name, words = method.__name__, dict(list(given.arguments.items())[1:])
    x = words.get(_CHOICES.get(name, ""))
    if isinstance(x, Value):
        axis = x._axis(words.pop("axis"))
        places = getattr(generator, name)(**{**words, _CHOICES[name]: x.shape[axis]})
        return apply("take", x, places, axis=axis)
    size, dtype = words.get("size"), dtype_name(words.get("dtype", "int64"))
    if name in _ROWS:
        shape = (*_size(size), *words[_ROWS[name]].shape)
    elif name in _CHOICES or size is not None:
        shape = _size(size)
    else:
        theirs = [x for word, x in words.items() if word not in ("size", "dtype")]
        shape = broadcast(name, *(x.shape if isinstance(x, Value) else np.shape(x) for x in theirs))
    computed = [word for word, value in words.items() if isinstance(value, Value)]

    def made(key: Array, *arrays: Array) -> Array:
        own = Generator(int(key[0]))
        own.step = int(key[1]) - 1
        found: Array = devices.host(method(own, **{**words, **dict(zip(computed, arrays, strict=True))})._data)
        return found

    key = keys.drawn(generator, lambda: Tensor(generator.next_key()))
    return hosted(made, shape, dtype, key, *(words[word].detach() for word in computed))


def _again(name: str) -> None:
    """A method whose draw is made anew by what is compiled with it."""
    method = getattr(Generator, name)

    @functools.wraps(method)
    def draw(self: Generator, *args: Any, **options: Any) -> Any:
        if is_symbolic(*args, *options.values()):
            return _of_symbols(self, method, args, options)
        return keys.drawn(self, lambda: method(self, *args, **options))

    setattr(Generator, name, draw)


DRAWS = (
    "uniform normal truncated_normal lognormal laplace gumbel logistic cauchy exponential gamma beta chisquare "
    "standard_t weibull dirichlet integers randint bernoulli poisson binomial geometric multinomial permutation choice"
).split()
for _name in DRAWS:
    _again(_name)


class _Default(Generator):
    """The generator cx.manual_seed sets, which dropout and new layers use too."""

    def __init__(self) -> None:
        pass

    @property
    def seed(self) -> int:  # type: ignore[override]
        return eager.generator_state()[0]

    @property
    def step(self) -> int:  # type: ignore[override]
        return eager.generator_state()[1]

    def next_key(self) -> Array:
        return eager.next_key()

    def go_back(self, step: int) -> None:
        eager.set_generator_state((self.seed, step))

    def manual_seed(self, seed: int) -> Generator:
        eager.manual_seed(seed)
        return self

    def load_state_dict(self, state: dict[str, int]) -> None:
        eager.set_generator_state((int(state["seed"]), int(state["step"])))


default = _Default()

bernoulli = default.bernoulli
beta = default.beta
binomial = default.binomial
cauchy = default.cauchy
chisquare = default.chisquare
choice = default.choice
dirichlet = default.dirichlet
exponential = default.exponential
gamma = default.gamma
geometric = default.geometric
gumbel = default.gumbel
integers = default.integers
laplace = default.laplace
logistic = default.logistic
lognormal = default.lognormal
multinomial = default.multinomial
normal = default.normal
permutation = default.permutation
poisson = default.poisson
randint = default.randint
standard_t = default.standard_t
truncated_normal = default.truncated_normal
uniform = default.uniform
weibull = default.weibull
manual_seed = eager.manual_seed
