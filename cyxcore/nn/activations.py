"""Activations as modules: torch's names and options around cyxcore.functional."""

from typing import Any

from cyxcore import functional as F
from cyxcore.nn.module import Module, Parameter


class Identity(Module):
    def forward(self, x: Any) -> Any:
        return x


class ReLU(Module):
    def forward(self, x: Any) -> Any:
        return F.relu(x)


class ReLU6(Module):
    def forward(self, x: Any) -> Any:
        return F.relu6(x)


class LeakyReLU(Module):
    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Any:
        return F.leaky_relu(x, self.negative_slope)


class PReLU(Module):
    """The slope below 0 is trained: one for all, or one per channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        super().__init__()
        self.weight = Parameter.drawn((num_parameters,), {"kind": "constant", "value": init})

    def forward(self, x: Any) -> Any:
        return F.prelu(x, self.weight)


class _WithAlpha(Module):
    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class ELU(_WithAlpha):
    def forward(self, x: Any) -> Any:
        return F.elu(x, self.alpha)


class CELU(_WithAlpha):
    def forward(self, x: Any) -> Any:
        return F.celu(x, self.alpha)


class SELU(Module):
    def forward(self, x: Any) -> Any:
        return F.selu(x)


class GELU(Module):
    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return F.gelu(x, self.approximate)


class SiLU(Module):
    def forward(self, x: Any) -> Any:
        return F.silu(x)


Swish = SiLU  # the name of the paper


class Mish(Module):
    def forward(self, x: Any) -> Any:
        return F.mish(x)


class Softplus(Module):
    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Any) -> Any:
        return F.softplus(x, self.beta)


class Softsign(Module):
    def forward(self, x: Any) -> Any:
        return F.softsign(x)


class Tanh(Module):
    def forward(self, x: Any) -> Any:
        return F.tanh(x)


class Tanhshrink(Module):
    def forward(self, x: Any) -> Any:
        return F.tanhshrink(x)


class Hardtanh(Module):
    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        super().__init__()
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: Any) -> Any:
        return F.hardtanh(x, self.min_val, self.max_val)


class Sigmoid(Module):
    def forward(self, x: Any) -> Any:
        return F.sigmoid(x)


class LogSigmoid(Module):
    def forward(self, x: Any) -> Any:
        return F.logsigmoid(x)


class Hardsigmoid(Module):
    def forward(self, x: Any) -> Any:
        return F.hardsigmoid(x)


class Hardswish(Module):
    def forward(self, x: Any) -> Any:
        return F.hardswish(x)


class Threshold(Module):
    def __init__(self, threshold: float, value: float) -> None:
        super().__init__()
        self.threshold, self.value = threshold, value

    def forward(self, x: Any) -> Any:
        return F.threshold(x, self.threshold, self.value)


class GLU(Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.glu(x, self.dim)


class Softmax(Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.softmax(x, self.dim)


class LogSoftmax(Softmax):
    def forward(self, x: Any) -> Any:
        return F.log_softmax(x, self.dim)
