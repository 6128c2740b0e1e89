"""The layers: torch's constructors, weight layouts and parameter names around cyxcore.functional."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from cyxcore import functional as F
from cyxcore.errors import SpecError
from cyxcore.functional import Pair, pair
from cyxcore.nn.module import Layer, Module, Parameter, check_sizes, check_windows


def _fan(fan_in: int) -> Mapping[str, Any]:
    return {"kind": "kaiming_uniform", "fan_in": fan_in}


class Linear(Layer):
    """x @ weight.T + bias. weight: (out_features, in_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        check_sizes(self, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter.drawn((out_features, in_features), _fan(in_features))
        self.bias = Parameter.drawn((out_features,), _fan(in_features)) if bias else None

    def forward(self, x: Any) -> Any:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _shown(layer: Any, **others: tuple[Any, Any]) -> str:
    """What a convolution is made with, as PyTorch shows it. others: (value, the usual one), which is not shown."""
    first = f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"
    shown = [
        f"{name}={value}"
        for name, (value, usual) in others.items()
        if value not in (usual, (usual,) * len(layer.kernel_size))
    ]
    return ", ".join([first, *shown] if layer.bias is not None else [first, *shown, "bias=False"])


class _Conv(Layer):
    stride: Any
    padding: Any
    dilation: Any
    groups: int

    def _set(self, rank: int, stride: Any, padding: Any, dilation: Any, groups: int, mode: str) -> None:
        if mode not in ("zeros", *F.BORDERS):
            raise SpecError(f"{type(self).__name__}: expected padding_mode zeros, {', '.join(F.BORDERS)}, got {mode!r}")
        if mode != "zeros" and isinstance(padding, str):
            raise SpecError(f"{type(self).__name__}: padding {padding!r} goes with padding_mode zeros; give numbers")
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise SpecError(f"{type(self).__name__}: expected padding valid, same or numbers, got {padding!r}")
        check_windows(self, rank, stride=stride, dilation=dilation)
        check_windows(self, rank, 0, padding=0 if isinstance(padding, str) else padding)
        if padding == "same" and any(step != 1 for step in F.numbers(stride, rank)):
            raise SpecError(f"{type(self).__name__}: padding same keeps the sizes, which a stride of {stride} does not")
        self.stride, self.dilation, self.groups = F.numbers(stride, rank), F.numbers(dilation, rank), groups
        self.padding = padding if isinstance(padding, str) else F.numbers(padding, rank)
        self.padding_mode, self._border = mode, self.padding
        if mode != "zeros":
            self.padding = (0,) * rank  # what the convolution itself adds

    def _bordered(self, x: Any) -> Any:
        if self.padding_mode == "zeros":
            return x
        return F.pad(
            x, [*[(0, 0)] * (x.ndim - len(self._border)), *((each, each) for each in self._border)], self.padding_mode
        )

    def _draw(self, inputs: int, outputs: int, kernel: tuple[int, ...], bias: bool) -> None:
        check_sizes(self, self.groups, kernel, in_channels=inputs, out_channels=outputs)
        self.in_channels, self.out_channels, self.kernel_size = inputs, outputs, kernel
        per_group = inputs // self.groups
        fan_in = per_group * math.prod(kernel)
        self.weight = Parameter.drawn((outputs, per_group, *kernel), _fan(fan_in))
        self.bias = Parameter.drawn((outputs,), _fan(fan_in)) if bias else None

    def extra_repr(self) -> str:
        return _shown(
            self,
            padding=(self._border, 0),
            dilation=(self.dilation, 1),
            groups=(self.groups, 1),
            padding_mode=(self.padding_mode, "zeros"),
        )


class Conv2d(_Conv):
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
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self._set(2, stride, padding, dilation, groups, padding_mode)
        self._draw(in_channels, out_channels, pair(kernel_size), bias)

    def forward(self, x: Any) -> Any:
        x = self._bordered(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv1d(_Conv):
    """Cross-correlation of sequences (N, C, L). weight: (out, in/groups, length)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self._set(1, stride, padding, dilation, groups, padding_mode)
        self._draw(in_channels, out_channels, F.numbers(kernel_size, 1), bias)

    def forward(self, x: Any) -> Any:
        x = self._bordered(x)
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv3d(_Conv):
    """Cross-correlation of volumes (N, C, D, H, W). weight: (out, in/groups, depth, height, width)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: F.Triple,
        stride: F.Triple = 1,
        padding: F.Triple = 0,
        dilation: F.Triple = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self._set(3, stride, padding, dilation, groups, padding_mode)
        self._draw(in_channels, out_channels, F.triple(kernel_size), bias)

    def forward(self, x: Any) -> Any:
        x = self._bordered(x)
        return F.conv3d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class DepthwiseConv2d(Conv2d):
    """Each channel by itself, `depth_multiplier` results of each."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        depth_multiplier: int = 1,
        bias: bool = True,
    ) -> None:
        outputs = in_channels * depth_multiplier
        super().__init__(in_channels, outputs, kernel_size, stride, padding, dilation, in_channels, bias)


class _ConvTranspose(Layer):
    """Makes what it gets larger: the gradient of a convolution with respect to its input."""

    rank = 2
    function: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if padding_mode != "zeros":
            raise SpecError(
                f"{type(self).__name__}: expected padding_mode zeros, the only one there is, got {padding_mode!r}"
            )
        check_windows(self, self.rank, stride=stride, dilation=dilation)
        check_windows(self, self.rank, 0, padding=padding, output_padding=output_padding)
        extra, steps, spread = (F.numbers(each, self.rank) for each in (output_padding, stride, dilation))
        if any(more >= max(step, wide) for more, step, wide in zip(extra, steps, spread, strict=True)):
            raise SpecError(
                f"{type(self).__name__}: output_padding {extra} must be below stride {steps} or dilation {spread}"
            )
        kernel = F.numbers(kernel_size, self.rank)
        check_sizes(self, groups, kernel, in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels, self.kernel_size, self.groups = in_channels, out_channels, kernel, groups
        self.stride, self.padding, self.output_padding, self.dilation = (
            steps,
            F.numbers(padding, self.rank),
            extra,
            spread,
        )
        fan = _fan(out_channels // groups * math.prod(kernel))
        self.weight = Parameter.drawn((in_channels, out_channels // groups, *kernel), fan)
        self.bias = Parameter.drawn((out_channels,), fan) if bias else None

    def forward(self, x: Any, output_size: Sequence[int] | None = None) -> Any:
        """output_size: of the result, where stride leaves it open; its last axes, or all."""
        extra = self.output_padding if output_size is None else self._reaching(x, output_size)
        return type(self).function(
            x, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )

    def extra_repr(self) -> str:
        return _shown(
            self,
            padding=(self.padding, 0),
            dilation=(self.dilation, 1),
            output_padding=(self.output_padding, 0),
            groups=(self.groups, 1),
        )

    def _reaching(self, x: Any, output_size: Sequence[int]) -> tuple[int, ...]:
        """The output_padding that gives a size. Raises SpecError."""
        rank, wanted, steps = self.rank, tuple(output_size)[-self.rank :], self.stride
        least = [
            (size - 1) * s - 2 * p + d * (k - 1) + 1
            for size, s, p, d, k in zip(
                x.shape[-rank:], steps, self.padding, self.dilation, self.kernel_size, strict=True
            )
        ]
        more = tuple(size - low for size, low in zip(wanted, least, strict=True)) if len(wanted) == rank else (-1,)
        if not all(0 <= extra < step for extra, step in zip(more, steps, strict=len(more) == rank)):
            most = [low + step - 1 for low, step in zip(least, steps, strict=True)]
            raise SpecError(f"{type(self).__name__}: expected output_size of {least} to {most}, got {output_size}")
        return more


class ConvTranspose1d(_ConvTranspose):
    """Makes sequences (N, C, L) longer. weight: (in, out/groups, length)."""

    rank, function = 1, staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """Makes images (N, C, H, W) larger. weight: (in, out/groups, height, width)."""

    rank, function = 2, staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """Makes volumes (N, C, D, H, W) larger. weight: (in, out/groups, depth, height, width)."""

    rank, function = 3, staticmethod(F.conv_transpose3d)


class PixelShuffle(Module):
    """(N, C r^2, H, W) -> (N, C, H r, W r)"""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor

    def forward(self, x: Any) -> Any:
        return F.pixel_shuffle(x, self.upscale_factor)


class Bilinear(Layer):
    """(..., I) and (..., J) -> (..., O): a bilinear form per output."""

    def __init__(self, in1_features: int, in2_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        init = {"kind": "kaiming_uniform", "fan_in": in1_features}
        self.weight = Parameter.drawn((out_features, in1_features, in2_features), init)
        self.bias = Parameter.drawn((out_features,), init) if bias else None

    def forward(self, a: Any, b: Any) -> Any:
        return F.bilinear(a, b, self.weight, self.bias)

    def extra_repr(self) -> str:
        outputs, first, second = self.weight.shape
        return f"{first}, {second}, {outputs}"


class Flatten(Module):
    """All axes of a sample as one, or those from start_dim to end_dim."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return x.flatten(self.start_dim, self.end_dim)


class Reshape(Module):
    """A sample in another shape; one size may be -1."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Any) -> Any:
        return x.reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        return str(self.shape)


class Permute(Module):
    """The axes of a sample in another order: 0 is its first axis, the batch stays in front."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Any) -> Any:
        return x.permute(0, *(dim + 1 for dim in self.dims))

    def extra_repr(self) -> str:
        return str(self.dims)


class TimeDistributed(Module):
    """A module on each step of (N, T, ...) by itself."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        rows = self.module(x.reshape(-1, *x.shape[2:]))
        return rows.reshape(x.shape[0], x.shape[1], *rows.shape[1:])
