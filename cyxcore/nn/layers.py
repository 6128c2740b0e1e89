"""The layers: torch's constructors, weight layouts and parameter names around cyxcore.functional."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cyxcore import functional as F
from cyxcore.eager import ones, zeros
from cyxcore.functional import Pair, pair
from cyxcore.nn.module import Module, Parameter


def _fan(fan_in: int) -> Mapping[str, Any]:
    return {"kind": "kaiming_uniform", "fan_in": fan_in}


class Linear(Module):
    """x @ weight.T + bias. weight: (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter.drawn((out_features, in_features), _fan(in_features))
        self.bias = Parameter.drawn((out_features,), _fan(in_features)) if bias else None

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Conv2d(Module):
    """Cross-correlation of images (N, C, H, W). weight: (out, in/groups, height, width)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kernel = pair(kernel_size)
        self.stride, self.padding, self.dilation, self.groups = (
            pair(stride),
            pair(padding),
            pair(dilation),
            groups,
        )
        fan_in = in_channels // groups * math.prod(kernel)
        self.weight = Parameter.drawn((out_channels, in_channels // groups, *kernel), _fan(fan_in))
        self.bias = Parameter.drawn((out_channels,), _fan(fan_in)) if bias else None

    def forward(self, x: Any) -> Any:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        out_channels, per_group, *kernel = self.weight.shape
        return f"{per_group * self.groups}, {out_channels}, kernel_size={tuple(kernel)}, stride={self.stride}"


class _Pool(Module):
    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def extra_repr(self) -> str:
        stride = self.stride or self.kernel_size
        return f"kernel_size={self.kernel_size}, stride={stride}, padding={self.padding}"


class MaxPool2d(_Pool):
    def forward(self, x: Any) -> Any:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool):
    def forward(self, x: Any) -> Any:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class GlobalAvgPool2d(Module):
    """(N, C, H, W) -> (N, C)."""

    def forward(self, x: Any) -> Any:
        return F.global_avg_pool2d(x)


class _BatchNorm(Module):
    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter.drawn((num_features,), {"kind": "ones"}) if affine else None
        self.bias = Parameter.drawn((num_features,), {"kind": "zeros"}) if affine else None
        self.register_buffer("running_mean", zeros(num_features))
        self.register_buffer("running_var", ones(num_features))

    def forward(self, x: Any) -> Any:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """Per feature of (N, C) or channel of (N, C, L)."""


class BatchNorm2d(_BatchNorm):
    """Per channel of (N, C, H, W)."""


class LayerNorm(Module):
    """Over the last axes."""

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = Parameter.drawn(self.normalized_shape, {"kind": "ones"}) if elementwise_affine else None
        self.bias = Parameter.drawn(self.normalized_shape, {"kind": "zeros"}) if elementwise_affine else None

    def forward(self, x: Any) -> Any:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class Embedding(Module):
    """Rows of weight (num_embeddings, embedding_dim) by index."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.weight = Parameter.drawn((num_embeddings, embedding_dim), {"kind": "normal", "std": 1.0})

    def forward(self, indices: Any) -> Any:
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))


class Dropout(Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Flatten(Module):
    """All axes of a sample as one."""

    def forward(self, x: Any) -> Any:
        return x.flatten(1)


class Reshape(Module):
    """A sample in another shape; one size may be -1."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Any) -> Any:
        return x.reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        return str(self.shape)


class ReLU(Module):
    def forward(self, x: Any) -> Any:
        return F.relu(x)


class LeakyReLU(Module):
    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Any:
        return F.leaky_relu(x, self.negative_slope)


class GELU(Module):
    def forward(self, x: Any) -> Any:
        return F.gelu(x)


class SiLU(Module):
    def forward(self, x: Any) -> Any:
        return F.silu(x)


class Tanh(Module):
    def forward(self, x: Any) -> Any:
        return F.tanh(x)


class Sigmoid(Module):
    def forward(self, x: Any) -> Any:
        return F.sigmoid(x)


class Softmax(Module):
    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Any) -> Any:
        return F.softmax(x, self.dim)
