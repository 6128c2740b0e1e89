"""Layers that pool, pad and rearrange space, beside those of cyxcore/nn/layers.py: torch's names and results."""

from collections.abc import Sequence
from typing import Any

from cyxcore import functional as F
from cyxcore.errors import SpecError
from cyxcore.nn.layers import Dropout1d, _InstanceNorm
from cyxcore.nn.module import Module


class _Pool3d(Module):
    def __init__(self, kernel_size: F.Triple, stride: F.Triple | None = None, padding: F.Triple = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class MaxPool3d(_Pool3d):
    """(N, C, D, H, W) -> (N, C, D', H', W')"""

    def forward(self, x: Any) -> Any:
        return F.max_pool3d(x, self.kernel_size, self.stride, self.padding)


class AvgPool3d(_Pool3d):
    """(N, C, D, H, W) -> (N, C, D', H', W'); padding counts as zeros."""

    def forward(self, x: Any) -> Any:
        return F.avg_pool3d(x, self.kernel_size, self.stride, self.padding)


class AdaptiveMaxPool1d(Module):
    """(N, C, L) -> (N, C, output_size)"""

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Any) -> Any:
        return F.adaptive_max_pool1d(x, self.output_size)


class AdaptiveMaxPool2d(Module):
    """(N, C, H, W) -> (N, C, *output_size)"""

    def __init__(self, output_size: F.Pair) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Any) -> Any:
        return F.adaptive_max_pool2d(x, self.output_size)


class InstanceNorm3d(_InstanceNorm):
    """Each channel of each row of (N, C, D, H, W)."""


class Dropout3d(Dropout1d):
    """Whole channels of (N, C, D, H, W) at once."""


class ZeroPad1d(Module):
    """Zeros around the last axis: one number, or (left, right)."""

    axes = 1

    def __init__(self, padding: int | Sequence[int]) -> None:
        super().__init__()
        sides = (padding,) * (2 * self.axes) if isinstance(padding, int) else tuple(padding)
        if len(sides) != 2 * self.axes or min(sides) < 0:
            raise SpecError(f"{type(self).__name__}: expected one or {2 * self.axes} sizes from 0, got {padding}")
        self.padding = sides

    def forward(self, x: Any) -> Any:
        last_first = [self.padding[2 * axis : 2 * axis + 2] for axis in range(self.axes)]
        return F.pad(x, [(0, 0)] * (x.ndim - self.axes) + last_first[::-1])

    def extra_repr(self) -> str:
        return str(self.padding)


class ZeroPad2d(ZeroPad1d):
    """Zeros around images: one number, or (left, right, top, bottom)."""

    axes = 2


class Unflatten(Module):
    """One axis as several; one of their sizes may be -1."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x: Any) -> Any:
        axis = self.dim % x.ndim
        known, size = 1, x.shape[axis]
        for part in self.unflattened_size:
            known *= 1 if part == -1 else part
        sizes = [size // known if part == -1 else part for part in self.unflattened_size]
        return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class PixelUnshuffle(Module):
    """(N, C, H r, W r) -> (N, C r^2, H, W)"""

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        self.downscale_factor = downscale_factor

    def forward(self, x: Any) -> Any:
        return F.pixel_unshuffle(x, self.downscale_factor)
