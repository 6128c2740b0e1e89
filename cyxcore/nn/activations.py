"""Activations as modules: torch's names and options around cyxcore.functional."""

from typing import Any

from cyxcore import functional as F
from cyxcore.nn.module import Layer, Module, Parameter


class Identity(Module):
    """Gives back what it gets."""

    def forward(self, x: Any) -> Any:
        return x


class _MaybeInPlace(Module):
    """inplace: the result is written into x."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class ReLU(_MaybeInPlace):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return F.relu(x, self.inplace)


class ReLU6(_MaybeInPlace):
    """x kept within 0 … 6."""

    def forward(self, x: Any) -> Any:
        return F.relu6(x, self.inplace)


class LeakyReLU(Module):
    """x above 0, negative_slope times x below."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = negative_slope, inplace

    def forward(self, x: Any) -> Any:
        return F.leaky_relu(x, self.negative_slope, self.inplace)


class RReLU(Module):
    """x above 0, below it x times a slope that training draws from lower … upper; their mean in inference."""

    def __init__(self, lower: float = 1.0 / 8.0, upper: float = 1.0 / 3.0, inplace: bool = False) -> None:
        super().__init__()
        self.lower, self.upper, self.inplace = lower, upper, inplace

    def forward(self, x: Any) -> Any:
        return F.rrelu(x, self.lower, self.upper, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"lower={self.lower}, upper={self.upper}"


class PReLU(Layer):
    """The slope below 0 is trained: one for all, or one per channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        super().__init__()
        self.weight = Parameter.drawn((num_parameters,), {"kind": "constant", "value": init})

    def forward(self, x: Any) -> Any:
        return F.prelu(x, self.weight)


class _WithAlpha(Module):
    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha, self.inplace = alpha, inplace

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class ELU(_WithAlpha):
    """x above 0, alpha (exp(x) - 1) below."""

    def forward(self, x: Any) -> Any:
        return F.elu(x, self.alpha, self.inplace)


class CELU(_WithAlpha):
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""

    def forward(self, x: Any) -> Any:
        return F.celu(x, self.alpha, self.inplace)


class SELU(_MaybeInPlace):
    """ELU with the scales that keep mean and variance (Klambauer 2017)."""

    def forward(self, x: Any) -> Any:
        return F.selu(x, self.inplace)


class GELU(Module):
    """x times the normal distribution's share below x; approximate="tanh" is the formula with tanh."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return F.gelu(x, self.approximate)


class SiLU(_MaybeInPlace):
    """x sigmoid(x)."""

    def forward(self, x: Any) -> Any:
        return F.silu(x, self.inplace)


Swish = SiLU  # the name of the paper


class Mish(_MaybeInPlace):
    """x tanh(softplus(x))."""

    def forward(self, x: Any) -> Any:
        return F.mish(x, self.inplace)


class Softplus(Module):
    """log(1 + exp(beta x)) / beta."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        """threshold: see cyxcore.functional.softplus."""
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Any) -> Any:
        return F.softplus(x, self.beta, self.threshold)


class Softsign(Module):
    """x / (1 + |x|)."""

    def forward(self, x: Any) -> Any:
        return F.softsign(x)


class Tanh(Module):
    """tanh(x)."""

    def forward(self, x: Any) -> Any:
        return F.tanh(x)


class Tanhshrink(Module):
    """x - tanh(x)."""

    def forward(self, x: Any) -> Any:
        return F.tanhshrink(x)


class Hardtanh(Module):
    """x kept within min_val … max_val."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.min_val, self.max_val, self.inplace = min_val, max_val, inplace

    def forward(self, x: Any) -> Any:
        return F.hardtanh(x, self.min_val, self.max_val, self.inplace)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return F.sigmoid(x)


class LogSigmoid(Module):
    """log(sigmoid(x))."""

    def forward(self, x: Any) -> Any:
        return F.logsigmoid(x)


class Hardsigmoid(_MaybeInPlace):
    """x / 6 + 1 / 2 kept within 0 … 1."""

    def forward(self, x: Any) -> Any:
        return F.hardsigmoid(x, self.inplace)


class Hardswish(_MaybeInPlace):
    """x times Hardsigmoid of x."""

    def forward(self, x: Any) -> Any:
        return F.hardswish(x, self.inplace)


class Threshold(Module):
    """x above the threshold, a value below."""

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        super().__init__()
        self.threshold, self.value, self.inplace = threshold, value, inplace

    def forward(self, x: Any) -> Any:
        return F.threshold(x, self.threshold, self.value, self.inplace)


class GLU(Module):
    """The first half of an axis times the sigmoid of the second."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.glu(x, self.dim)


class Softmax(Module):
    """exp(x) / sum(exp(x)) along `dim`."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.softmax(x, self.dim)


class LogSoftmax(Softmax):
    """The logarithm of softmax along `dim`."""

    def forward(self, x: Any) -> Any:
        return F.log_softmax(x, self.dim)


class _Shrink(Module):
    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        self.lambd = lambd

    def extra_repr(self) -> str:
        return f"lambd={self.lambd}"


class Hardshrink(_Shrink):
    """x farther than lambd from 0, 0 elsewhere."""

    def forward(self, x: Any) -> Any:
        return F.hardshrink(x, self.lambd)


class Softshrink(_Shrink):
    """x nearer to 0 by lambd, but not beyond."""

    def forward(self, x: Any) -> Any:
        return F.softshrink(x, self.lambd)


class Softmin(Module):
    """softmax(-x) along an axis."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.softmin(x, self.dim)


class Softmax2d(Module):
    """softmax over the channels of (N, C, H, W), at every place."""

    def forward(self, x: Any) -> Any:
        return F.softmax(x, -3)
