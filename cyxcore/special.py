"""Special functions by the names of torch.special: gamma, error function, and what is made of them. With gradients.

Gamma and error functions of tensors are computed in float64 and given in their own dtype; a graph computes them in its
own.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from cyxcore import elementwise, extras, functional, hosted
from cyxcore.errors import SpecError
from cyxcore.functional.basic import maximum, minimum, where
from cyxcore.ops import OWN_GRADIENT
from cyxcore.torchnames import round as round
from cyxcore.torchnames import xlogy as xlogy
from cyxcore.values import apply, composed, to_inexact, together

__all__ = (
    "digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr log_softmax logit "
    "logsumexp multigammaln ndtr ndtri polygamma psi round sinc softmax xlog1py xlogy zeta"
).split()

_SHIFT = 8  # from here on Stirling's series has the digits of float64
# Of log gamma, and of digamma: the terms of their asymptotic series (Abramowitz and Stegun 6.1.40 and 6.3.18).
_LGAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_TRIGAMMA = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)  # 6.4.12
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)
# Giles 2010, Approximating the erfinv function: a polynomial for single precision, the highest power first; and
# one made for this file in his variable, to where float64 ends.
_NEAR = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 2.1858087e-04, -1.25372503e-03,
         -4.17768164e-03, 2.46640727e-01, 1.50140941)  # fmt: skip
_FAR = (-3.0971342420782707e-07, 5.195607782543808e-06, -3.6090201876838226e-05, 0.00012871673398377935,
        -0.00020947943063116912, -0.00012059625026002467, 0.0014001585052249947, -0.0035401564033343126,
        0.00571675284457488, -0.007654487886023025, 0.009441033839953686, 1.0016763087406755,
        2.832976927632848)  # fmt: skip

# e^-x sqrt(x) times the modified Bessel functions of order 0 and 1 for x >= 8, in 16 / x - 1: fits made for this file
# with 50 digits, to 2^-52, the highest power first.
_I0_FAR = (4.2502824970014623e-11, -1.4500783739826892e-10, -3.1296619691319122e-10,
           9.5709875689781751e-10, 1.1786195468421334e-09, -2.8980940299535255e-09,
           -3.2275835749043134e-09, 5.1492272193141321e-09, 7.4081085273403052e-09,
           -4.2747250582539806e-09, -1.3361521319894553e-08, -7.1150398232496133e-09,
           7.5452903270561173e-09, 2.1624027112175737e-08, 3.9326857796513523e-08, 8.8712995053211368e-08,
           2.973598140271523e-07, 1.4838481462002424e-06, 1.1143033790770566e-05, 0.00013621607437750604,
           0.0033605519836678909, 0.40217650944500816)  # fmt: skip
_I1_FAR = (-3.9460438893301604e-11, 1.5194574966201516e-10, 2.9390013273339321e-10,
           -1.0059089340172823e-09, -1.1281659950683254e-09, 3.0637107449426961e-09,
           3.1736669902011781e-09, -5.5145226293321753e-09, -7.5117566286392426e-09,
           4.7983840942890973e-09, 1.3991594663661796e-08, 7.1168416772402e-09, -8.4193773938246785e-09,
           -2.3452671568483568e-08, -4.3130067028424706e-08, -1.0000330355948928e-07,
           -3.4838553895697748e-07, -1.8349107368864113e-06, -1.5038547200237041e-05,
           -0.00021923576381887214, -0.0097495771932357648, 0.38939845902587228)  # fmt: skip
# Bernoulli's numbers B2, B4, … over (2 j)!: Euler and Maclaurin's terms of the zeta function.
_ZETA = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
    -3617 / 10670622842880000,
)


def _precise(
    slope: Callable[[Any, Any], Any] | None = None, op: str = ""
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A decorator: a function of one value, of tensors in float64, and where they are compiled: not in a graph that
    travels. slope: (x, y) -> its derivative, where that is said in fewer operations than the function has. op: the
    operation that is the function, which needs a slope; it is in no graph that travels, nor on a GPU.
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wide(value: Any) -> Any:
            if op and (not value.builder.travels if hosted.is_symbolic(value) else value._on_host):
                narrow = value.dtype not in ("float32", "float64")
                return apply(op, value.astype("float32") if narrow else value).astype(value.dtype)
            if value.dtype == "float64" or hosted.is_symbolic(value) and value.builder.merging:
                return function(value)
            return function(value.astype("float64")).astype(value.dtype)

        def sloped(value: Any) -> Any:
            in_graph = hosted.is_symbolic(value)
            follows = not value.builder.travels if in_graph else value.requires_grad and value._on_host
            if slope is None or not follows:
                return wide(value)

            def gradient(g: Any, x: Sequence[Any], y: Any) -> list[Any]:
                return [g * slope(x[0], y), None]

            made = wide(value.detach()).detach()
            if in_graph:
                return apply(OWN_GRADIENT, value, made, gradient=gradient)
            return hosted.hosted(lambda x, made: made, value.shape, value.dtype, value, made, gradient=gradient)

        def call(x: Any) -> Any:
            value = to_inexact(x)
            return composed(sloped, (value,), (), value.size)

        for made in (sloped, call):
            made.__name__, made.__doc__ = function.__name__, function.__doc__
        return call

    return decorate


def _polynomial(x: Any, factors: tuple[float, ...]) -> Any:
    result: Any = factors[0]
    for factor in factors[1:]:
        result = x * result + factor
    return result


def _lgamma_above(x: Any) -> Any:
    """log gamma(x) of x >= 1/2."""
    product = x
    for place in range(1, _SHIFT):
        product = product * (x + float(place))
    y = x + float(_SHIFT)
    inverse = 1.0 / y
    series = _polynomial(inverse.square(), tuple(reversed(_LGAMMA))) * inverse
    return (y - 0.5) * y.log() - y + 0.5 * math.log(2.0 * math.pi) + series - product.log()


@_precise(lambda x, y: digamma(x), "lgamma")
def gammaln(x: Any) -> Any:
    """log |gamma(x)|: of whole numbers log (x-1)!; infinite at 0, -1, -2, …"""
    low = x < 0.5
    above = _lgamma_above(where(low, 1.0 - x, x))
    sine = where(low, (x * math.pi).sin().abs(), 1.0)
    pole = low & (elementwise.floor(x) == x)
    reflected = math.log(math.pi) - where(pole, 1.0, sine).log() - above
    finite = where(pole, math.inf, where(low, reflected, above))
    return where(x.abs() == math.inf, math.inf, finite)


@_precise(lambda x, y: _tetragamma(x), "trigamma")
def _trigamma(x: Any) -> Any:
    """The derivative of digamma: infinite at 0, -1, -2, …"""
    low = x < 0.5
    y = where(low, 1.0 - x, x)
    before: Any = 0.0
    for place in range(_SHIFT):
        before = (1.0 / (y + float(place))).square() + before
    inverse = 1.0 / (y + float(_SHIFT))
    square = inverse.square()
    above = inverse + square * 0.5 + _polynomial(square, tuple(reversed(_TRIGAMMA))) * square * inverse + before
    sine = where(low, (x * math.pi).sin(), 1.0)
    return where(low & (elementwise.floor(x) == x), math.inf, where(low, (math.pi / sine).square() - above, above))


def _tetragamma(x: Any) -> Any:
    """The derivative of that, below 1/2 by reflection."""
    low = x < 0.5
    above = polygamma(2, where(low, 1.0 - x, x))
    angle = where(low, x * math.pi, 1.0)
    return where(low, above - 2.0 * math.pi**3 * angle.cos() / angle.sin() ** 3, above)


@_precise(lambda x, y: _trigamma(x), "digamma")
def digamma(x: Any) -> Any:
    """The derivative of gammaln: -infinity at 0, NaN at -1, -2, …"""
    low = x < 0.5
    y = where(low, 1.0 - x, x)
    before: Any = 0.0
    for place in range(_SHIFT):
        before = 1.0 / (y + float(place)) + before
    y = y + float(_SHIFT)
    square = (1.0 / y).square()
    above = y.log() - 0.5 / y - _polynomial(square, tuple(reversed(_DIGAMMA))) * square - before
    pole = low & (elementwise.floor(x) == x)
    angle = where(low & ~pole, x * math.pi, 1.0)
    return where(
        pole, where(x == 0.0, -math.inf, math.nan), where(low, above - math.pi * angle.cos() / angle.sin(), above)
    )


psi = digamma


@_precise()
def erf(x: Any) -> Any:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return x.erf()


def _stretched(y: Any) -> Any:
    """y + 1/2 / (y + 1 / (y + 3/2 / (y + …))), y >= 2.

    erfc(y) is exp(-y²) over it and √π (Abramowitz and Stegun 7.1.14).
    """
    fraction: Any = 0.0
    for level in range(40, 0, -1):
        fraction = (level / 2.0) / (y + fraction)
    return y + fraction


def erfc(x: Any) -> Any:
    """1 - erf(x), with its digits also where that is near 0."""
    return apply("erfc", to_inexact(x))


@_precise(lambda x, y: x * y * 2.0 - 2.0 / math.sqrt(math.pi))
def erfcx(x: Any) -> Any:
    """exp(x^2) erfc(x), also where the one is infinite and the other 0."""
    far = x > 2.0
    near = where(far, 0.0, x)
    return where(far, 1.0 / (_stretched(where(far, x, 2.0)) * math.sqrt(math.pi)), near.square().exp() * erfc(near))


@_precise(lambda x, y: y.square().exp() * (math.sqrt(math.pi) / 2.0), "erfinv")
def erfinv(x: Any) -> Any:
    """What erf takes to x: infinite at -1 and 1, NaN beyond."""
    inside = x.abs() < 1.0
    kept = where(inside, x, 0.0)
    w = -((1.0 - kept) * (1.0 + kept)).log()
    near = _polynomial(minimum(w, 5.0) - 2.5, _NEAR)
    result = where(w < 5.0, near, _polynomial(maximum(w, 5.0).sqrt() - 3.0, _FAR)) * kept
    for _ in range(2):  # Newton's steps double the digits
        tail = erfc(result.abs())
        missing = where(result < 0.0, tail - (1.0 + kept), (1.0 - kept) - tail)
        result = result - missing / ((-result.square()).exp() * (2.0 / math.sqrt(math.pi)))
    return where(inside, result, where(x == 1.0, math.inf, where(x == -1.0, -math.inf, math.nan)))


def expit(x: Any) -> Any:
    """1 / (1 + exp(-x)), the sigmoid."""
    return to_inexact(x).sigmoid()


def logit(x: Any, eps: float | None = None) -> Any:
    """log(x / (1 - x)); eps: x is kept within eps … 1 - eps."""
    value = to_inexact(x)
    if eps is not None:
        value = elementwise.clip(value, eps, 1.0 - eps)
    return value.log() - (1.0 - value).log()


def exp2(x: Any) -> Any:
    """2 to the power x."""
    return (to_inexact(x) * math.log(2.0)).exp()


def expm1(x: Any) -> Any:
    """exp(x) - 1, exact near 0."""
    return elementwise.expm1(x)


def log1p(x: Any) -> Any:
    """log(1 + x), exact near 0."""
    return elementwise.log1p(x)


def sinc(x: Any) -> Any:
    """sin(pi x) / (pi x), 1 at 0."""
    angle = to_inexact(x) * math.pi
    zero = angle == 0.0
    safe = where(zero, 1.0, angle)
    return where(zero, 1.0, safe.sin() / safe)


def entr(x: Any) -> Any:
    """-x log(x): 0 at 0, -infinity below."""
    value = to_inexact(x)
    return where(value < 0.0, -math.inf, -xlogy(value, where(value < 0.0, 1.0, value)))


def xlog1py(x: Any, other: Any) -> Any:
    """x * log(1 + other), 0 where x is 0."""
    value, others = together(x, other)
    away = (value == 0.0) & ((others <= -1.0) | (others == math.inf))  # elsewhere 0 has the gradient log(1 + other)
    return where(away, 0.0, value * elementwise.log1p(where(away, 0.0, others)))


def ndtr(x: Any) -> Any:
    """The share of a standard normal below x."""
    return apply("ndtr", to_inexact(x))


def ndtri(p: Any) -> Any:
    """The place below which a share p of a standard normal lies."""
    return erfinv(to_inexact(p) * 2.0 - 1.0) * math.sqrt(2.0)


@_precise(lambda x, y: -y * (x + y))
def _mills(x: Any) -> Any:
    """The derivative of log_ndtr: the density of a standard normal over its share below x."""
    z = x * -math.sqrt(0.5)
    far = z > 2.0
    near = where(far, 0.0, z)
    share = (-near.square()).exp() / erfc(near) * math.sqrt(2.0 / math.pi)
    return where(far, _stretched(where(far, z, 2.0)) * math.sqrt(2.0), share)


@_precise(lambda x, y: _mills(x))
def log_ndtr(x: Any) -> Any:
    """log(ndtr(x)), also where ndtr(x) is too small for a number."""
    z = x * -math.sqrt(0.5)
    far = z > 2.0
    y = where(far, z, 2.0)
    tail = -y.square() - _stretched(y).log() - math.log(2.0 * math.sqrt(math.pi))
    return where(far, tail, (erfc(where(far, 0.0, z)) * 0.5).log())


_SERIES = 30  # terms of the power series of the Bessel functions, enough up to 8


def _bessel_near(a: Any, order: int) -> Any:
    """The modified Bessel function of order 0 or 1, over a in the latter case, for 0 <= a <= 8 (A. and S. 9.6.10)."""
    factors = [0.5**order / math.factorial(k) / math.factorial(k + order) for k in range(_SERIES)]
    return _polynomial((a * 0.5).square(), tuple(reversed(factors)))


def _i0e(a: Any) -> tuple[Any, Any]:
    """i0 e^-a of a >= 0: up to 8, and from there on."""
    far = maximum(a, 8.0)
    near = minimum(a, 8.0)
    return _bessel_near(near, 0) * (-near).exp(), _polynomial(16.0 / far - 1.0, _I0_FAR) / far.sqrt()


def _i1e(a: Any) -> tuple[Any, Any]:
    far = maximum(a, 8.0)
    near = minimum(a, 8.0)
    return _bessel_near(near, 1) * near * (-near).exp(), _polynomial(16.0 / far - 1.0, _I1_FAR) / far.sqrt()


def _grown(value: Any, a: Any) -> Any:
    """value e^a, in two steps: e^a alone is infinite before the product is."""
    root = (a * 0.5).exp()
    return where(a == math.inf, math.inf, value * root * root)


@_precise(lambda x, y: i1(x))
def i0(x: Any) -> Any:
    """The modified Bessel function of the first kind of order 0."""
    a = x.abs()
    return where(a > 8.0, _grown(_i0e(a)[1], a), _bessel_near(minimum(a, 8.0), 0))


@_precise(lambda x, y: i1e(x) - x.sign() * y)
def i0e(x: Any) -> Any:
    """exp(-|x|) i0(x)."""
    a = x.abs()
    return where(a > 8.0, _i0e(a)[1], _i0e(a)[0])


def _over(y: Any, x: Any) -> Any:
    """y / x of a function that is x / 2 at 0."""
    zero = x == 0.0
    return where(zero, 0.5, y / where(zero, 1.0, x))


@_precise(lambda x, y: i0(x) - _over(y, x))
def i1(x: Any) -> Any:
    """The modified Bessel function of the first kind of order 1."""
    a = x.abs()
    near = minimum(a, 8.0)
    return x.sign() * where(a > 8.0, _grown(_i1e(a)[1], a), _bessel_near(near, 1) * near)


@_precise(lambda x, y: i0e(x) - _over(y, x) - x.sign() * y)
def i1e(x: Any) -> Any:
    """exp(-|x|) i1(x)."""
    a = x.abs()
    return x.sign() * where(a > 8.0, _i1e(a)[1], _i1e(a)[0])


def _zeta(s: Any, q: Any) -> Any:
    """The sum of (q + k)^-s over k = 0, 1, …, of s > 1, q > 0: eight terms, then Euler's and Maclaurin's formula."""
    total: Any = 0.0
    for place in range(_SHIFT):
        total = (q + float(place)) ** -s + total
    y = q + float(_SHIFT)
    power = y**-s
    term, square = s * power / y, 1.0 / y.square()
    behind = y * power / (s - 1.0) + power * 0.5
    for place, factor in enumerate(_ZETA):
        behind = behind + term * factor
        term = term * (s + (2.0 * place + 1.0)) * (s + (2.0 * place + 2.0)) * square
    return total + behind


def zeta(x: Any, other: Any) -> Any:
    """Hurwitz' zeta function, the sum of (other + k)^-x over k = 0, 1, …: infinite at x = 1 and at other = 0, -1, -2, …

    NaN for x below 1, and for other numbers below 0.
    """
    value, others = together(x, other)
    s, q = (each.astype("float64") for each in (value, others))
    inside = (s > 1.0) & (q > 0.0)
    pole = (s == 1.0) | (s > 1.0) & (elementwise.floor(q) == q)
    found = _zeta(where(inside, s, 2.0), where(inside, q, 1.0))
    return where(inside, found, where(pole, math.inf, math.nan)).astype(value.dtype)


@functools.cache
def _polygamma(n: int) -> Callable[[Any], Any]:
    @_precise(lambda x, y: polygamma(n + 1, x))
    def derivative(x: Any) -> Any:
        return zeta(x * 0.0 + (n + 1.0), x) * ((-1.0) ** (n + 1) * math.factorial(n))

    return derivative


def polygamma(n: int, x: Any) -> Any:
    """The nth derivative of digamma; from the second on NaN below 0."""
    if n < 0:
        raise SpecError(f"polygamma: expected n of at least 0, got {n}")
    return digamma(x) if n == 0 else _trigamma(x) if n == 1 else _polygamma(n)(x)


def multigammaln(a: Any, p: int) -> Any:
    """The logarithm of the multivariate gamma function of p dimensions, of a above (p - 1) / 2."""
    total: Any = p * (p - 1) / 4.0 * math.log(math.pi)
    for place in range(p):
        total = gammaln(to_inexact(a) - place / 2.0) + total
    return total


def softmax(x: Any, dim: int) -> Any:
    """exp(x) over their sum along an axis."""
    return functional.softmax(x, dim)


def log_softmax(x: Any, dim: int) -> Any:
    """The logarithm of softmax."""
    return functional.log_softmax(x, dim)


def logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    """log(sum(exp(x))) along axes."""
    return extras.logsumexp(x, axis=dim, keepdims=keepdim)
