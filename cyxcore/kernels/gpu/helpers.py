"""Functions that kernels call: NumPy's meaning of what Triton defines otherwise."""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


@triton.jit
def maximum(a, b):
    """NaN wins, as in NumPy."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def minimum(a, b):
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def plus(a, b):
    return a + b


@triton.jit
def times(a, b):
    return a * b


@triton.jit
def div(a, b):
    """Rounded as IEEE 754 says; Triton's / is not, for float32."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def sqrt(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def exp(x):
    return libdevice.exp(x)


@triton.jit
def log(x):
    return libdevice.log(x)


@triton.jit
def log1p(x):
    return libdevice.log1p(x)


@triton.jit
def atan2(a, b):
    return libdevice.atan2(a, b)


@triton.jit
def tanh(x):
    return libdevice.tanh(x)


@triton.jit
def erf(x):
    return libdevice.erf(x)


@triton.jit
def erfc(x):
    return libdevice.erfc(x)


@triton.jit
def ndtr(x):
    return libdevice.normcdf(x)


@triton.jit
def gelu(x):
    """x Φ(x) = max(x, 0) - |x| Φ(-|x|), which goes to 0 where x is next to -∞."""
    far = minimum(tl.abs(x), 40.0)
    return maximum(x, 0.0) - far * libdevice.normcdf(-far)


@triton.jit
def gelu_grad(g, x):
    """g times the derivative of gelu, Φ(x) + x φ(x)."""
    near = maximum(minimum(x, 40.0), -40.0)
    density = libdevice.exp(-0.5 * near * near) * 0.3989422804014327
    return g * (libdevice.normcdf(near) + near * density)


@triton.jit
def sin(x):
    return libdevice.sin(x)


@triton.jit
def cos(x):
    return libdevice.cos(x)


@triton.jit
def power(a, b):
    return libdevice.pow(a, b)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), through exp(-|x|) so that nothing overflows."""
    small = libdevice.exp(-tl.abs(x))
    return div(tl.where(x >= 0, 1.0, small).to(x.dtype), (1.0 + small).to(x.dtype))


@triton.jit
def softplus(x):
    """log(1 + e**x), through e**-|x| so that nothing overflows."""
    return tl.where(x < 0, 0, x) + libdevice.log1p(libdevice.exp(-tl.abs(x)))


@triton.jit
def softplus_grad(g, x):
    """g times sigmoid(x): what comes through e**-|x|, and g where x is above 0."""
    power = libdevice.exp(-tl.abs(x))
    through = div(g, (1.0 + power).to(x.dtype)) * power
    return tl.where(x > 0, -through, through) + g * tl.where(x > 0, 1.0, 0.0).to(x.dtype)


@triton.jit
def decayed(g, p, decay):
    return g + decay * p


@triton.jit
def decayed_square(g, p, decay):
    return decayed(g, p, decay) * decayed(g, p, decay)


@triton.jit
def correction(beta, step):
    """1 - beta ** step in float64, for one step count."""
    return 1.0 - libdevice.pow(tl.full((), beta, tl.float64), step.to(tl.float64))


@triton.jit
def adam(p, m, v, lr, step, beta1, beta2, eps, decay):
    """torch.optim.Adam / AdamW: corrected moments, decay apart from the gradient."""
    m_hat = div(m, tl.zeros_like(m) + correction(beta1, step).to(m.dtype))
    v_hat = div(v, tl.zeros_like(v) + correction(beta2, step).to(v.dtype))
    return p * (1.0 - lr * decay) - div(lr * m_hat, sqrt(v_hat) + eps)
