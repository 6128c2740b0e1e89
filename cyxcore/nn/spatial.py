"""Layers that pool, pad and rearrange space, beside those of cyxcore/nn/layers.py: torch's names and results."""

import math
from collections.abc import Sequence
from typing import Any

from cyxcore import functional as F
from cyxcore.attrs import is_whole, several
from cyxcore.errors import SpecError
from cyxcore.nn.module import Module, check_windows


class _Pad(Module):
    """A border around the last axes: one number, or (low, high) of the last axis, then of the one before, …."""

    axes = 1
    mode = "constant"

    def __init__(self, padding: int | Sequence[int]) -> None:
        super().__init__()
        sides = several(padding) * (2 * self.axes if is_whole(padding) else 1)
        if len(sides) != 2 * self.axes or (self.mode != "constant" and min(sides) < 0):
            raise SpecError(f"{type(self).__name__}: expected one or {2 * self.axes} sizes from 0, got {padding}")
        self.padding, self.value = sides, 0.0

    def forward(self, x: Any) -> Any:
        return F.pad(x, self.padding, self.mode, self.value)

    def extra_repr(self) -> str:
        return str(self.padding)


class ZeroPad1d(_Pad):
    """Zeros around the last axis: one number, or (left, right). Negative sizes cut off."""


class ZeroPad2d(_Pad):
    """Zeros around images: one number, or (left, right, top, bottom). Negative sizes cut off."""

    axes = 2


class ZeroPad3d(_Pad):
    """Zeros around volumes: one number, or (left, right, top, bottom, front, back). Negative sizes cut off."""

    axes = 3


class ConstantPad1d(_Pad):
    """`value` around the last axis; sizes as of ZeroPad1d."""

    def __init__(self, padding: int | Sequence[int], value: float) -> None:
        super().__init__(padding)
        self.value = value

    def extra_repr(self) -> str:
        return f"{self.padding}, value={self.value}"


class ConstantPad2d(ConstantPad1d):
    """`value` around images; sizes as of ZeroPad2d."""

    axes = 2


class ConstantPad3d(ConstantPad1d):
    """`value` around volumes; sizes as of ZeroPad3d."""

    axes = 3


class ReflectionPad1d(_Pad):
    """The last axis mirrored at its ends, which are not repeated."""

    mode = "reflect"


class ReflectionPad2d(ReflectionPad1d):
    """Images mirrored at their edges, which are not repeated."""

    axes = 2


class ReflectionPad3d(ReflectionPad1d):
    """Volumes mirrored at their faces, which are not repeated."""

    axes = 3


class ReplicationPad1d(_Pad):
    """The ends of the last axis repeated."""

    mode = "replicate"


class ReplicationPad2d(ReplicationPad1d):
    """The edges of images repeated."""

    axes = 2


class ReplicationPad3d(ReplicationPad1d):
    """The faces of volumes repeated."""

    axes = 3


class CircularPad1d(_Pad):
    """The last axis as a ring."""

    mode = "circular"


class CircularPad2d(CircularPad1d):
    """Images as tiles."""

    axes = 2


class CircularPad3d(CircularPad1d):
    """Volumes as tiles."""

    axes = 3


class Upsample(Module):
    """Another size of (N, C, L), (N, C, H, W) or (N, C, D, H, W); see cyxcore.functional.interpolate."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        super().__init__()
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, x: Any) -> Any:
        options = (self.mode, self.align_corners, self.recompute_scale_factor)
        return F.interpolate(x, self.size, self.scale_factor, *options)

    def extra_repr(self) -> str:
        to = f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"
        return f"{to}, mode={self.mode}"


class UpsamplingNearest2d(Upsample):
    """(N, C, H, W) to another size, each element of the result being the nearest."""

    def __init__(self, size: F.Pair | None = None, scale_factor: float | Sequence[float] | None = None) -> None:
        super().__init__(size, scale_factor, "nearest")


class UpsamplingBilinear2d(Upsample):
    """Bilinear, the centres of the corners staying where they are."""

    def __init__(self, size: F.Pair | None = None, scale_factor: float | Sequence[float] | None = None) -> None:
        super().__init__(size, scale_factor, "bilinear", True)


class Unfold(Module):
    """(N, C, H, W) -> (N, C KH KW, windows)"""

    def __init__(self, kernel_size: F.Pair, dilation: F.Pair = 1, padding: F.Pair = 0, stride: F.Pair = 1) -> None:
        super().__init__()
        check_windows(self, 2, kernel_size=kernel_size, dilation=dilation, stride=stride)
        check_windows(self, 2, 0, padding=padding)
        self.kernel_size, self.dilation, self.padding, self.stride = kernel_size, dilation, padding, stride

    def forward(self, x: Any) -> Any:
        return F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)


class Fold(Unfold):
    """(N, C KH KW, windows) -> (N, C, *output_size), overlapping parts added."""

    def __init__(
        self,
        output_size: F.Pair,
        kernel_size: F.Pair,
        dilation: F.Pair = 1,
        padding: F.Pair = 0,
        stride: F.Pair = 1,
    ) -> None:
        super().__init__(kernel_size, dilation, padding, stride)
        check_windows(self, 2, output_size=output_size)
        self.output_size = output_size

    def forward(self, x: Any) -> Any:
        return F.fold(x, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride)


class ChannelShuffle(Module):
    """(N, C, ...): the channels of `groups` groups in turn (Zhang et al. 2018, ShuffleNet)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Any) -> Any:
        return F.channel_shuffle(x, self.groups)


class Unflatten(Module):
    """One axis as several; one of their sizes may be -1."""

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x: Any) -> Any:
        axis = x._axis(self.dim)
        known, size = math.prod(part for part in self.unflattened_size if part != -1), x.shape[axis]
        if self.unflattened_size.count(-1) > 1 or (-1 in self.unflattened_size and known < 1):
            raise SpecError(f"Unflatten: expected sizes of which at most one is -1, got {self.unflattened_size}")
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
