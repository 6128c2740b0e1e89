"""Layers that pool: torch's constructors around cyxcore.functional. Each takes a batch or one sample without it."""

from collections.abc import Callable
from typing import Any, ClassVar, SupportsFloat

from cyxcore import functional as F
from cyxcore.errors import SpecError
from cyxcore.nn.module import Module, check_windows


class _Pool(Module):
    rank: ClassVar[int]
    function: ClassVar[Callable[..., Any]]
    kernel_size: Any
    stride: Any

    def extra_repr(self) -> str:
        names = [name for name in ("padding", "dilation", "ceil_mode") if hasattr(self, name)]
        rest = [f"{name}={getattr(self, name)}" for name in names]
        return ", ".join([f"kernel_size={self.kernel_size}, stride={self.stride or self.kernel_size}", *rest])


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        check_windows(
            self,
            self.rank,
            kernel_size=kernel_size,
            stride=kernel_size if stride is None else stride,
            dilation=dilation,
        )
        check_windows(self, self.rank, 0, padding=padding)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, x: Any) -> Any:
        options = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices)
        return type(self).function(x, *options)


class MaxPool1d(_MaxPool):
    """Maxima of windows of (N, C, L); with return_indices also where they are, for MaxUnpool1d."""

    rank = 1
    function = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPool):
    """Maxima of windows of (N, C, H, W); with return_indices also where they are, for MaxUnpool2d."""

    rank = 2
    function = staticmethod(F.max_pool2d)


class MaxPool3d(_MaxPool):
    """(N, C, D, H, W) -> (N, C, D', H', W'); with return_indices also where the largest are, for MaxUnpool3d."""

    rank = 3
    function = staticmethod(F.max_pool3d)


class MaxUnpool1d(_Pool):
    """Puts what was pooled back to where it came from: (N, C, L) and the places of MaxPool1d; 0 elsewhere."""

    rank = 1
    function = staticmethod(F.max_unpool1d)

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        check_windows(self, self.rank, kernel_size=kernel_size, stride=kernel_size if stride is None else stride)
        check_windows(self, self.rank, 0, padding=padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: Any, indices: Any, output_size: Any = None) -> Any:
        return type(self).function(x, indices, self.kernel_size, self.stride, self.padding, output_size)


class MaxUnpool2d(MaxUnpool1d):
    """MaxUnpool1d of (N, C, H, W)."""

    rank = 2
    function = staticmethod(F.max_unpool2d)


class MaxUnpool3d(MaxUnpool1d):
    """MaxUnpool1d of (N, C, D, H, W)."""

    rank = 3
    function = staticmethod(F.max_unpool3d)


class AvgPool1d(_Pool):
    """Means of windows of (N, C, L)."""

    rank = 1

    def __init__(
        self,
        kernel_size: int,
        stride: int | None = None,
        padding: int = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        check_windows(self, self.rank, kernel_size=kernel_size, stride=kernel_size if stride is None else stride)
        check_windows(self, self.rank, 0, padding=padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad = ceil_mode, count_include_pad

    def forward(self, x: Any) -> Any:
        options = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return F.avg_pool1d(x, *options)


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        check_windows(self, self.rank, kernel_size=kernel_size, stride=kernel_size if stride is None else stride)
        check_windows(self, self.rank, 0, padding=padding)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override

    def forward(self, x: Any) -> Any:
        options = (self.ceil_mode, self.count_include_pad, self.divisor_override)
        return type(self).function(x, self.kernel_size, self.stride, self.padding, *options)


class AvgPool2d(_AvgPool):
    """Means of windows of (N, C, H, W)."""

    rank = 2
    function = staticmethod(F.avg_pool2d)


class AvgPool3d(_AvgPool):
    """Means of windows: (N, C, D, H, W) -> (N, C, D', H', W')."""

    rank = 3
    function = staticmethod(F.avg_pool3d)


class _LPPool(_Pool):
    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> None:
        super().__init__()
        check_windows(self, self.rank, kernel_size=kernel_size, stride=kernel_size if stride is None else stride)
        if isinstance(norm_type, (str, bool)) or not isinstance(norm_type, SupportsFloat) or float(norm_type) == 0:
            raise SpecError(f"{type(self).__name__}: norm_type: expected a number other than 0, got {norm_type!r}")
        self.norm_type, self.kernel_size, self.stride, self.ceil_mode = norm_type, kernel_size, stride, ceil_mode

    def forward(self, x: Any) -> Any:
        return type(self).function(x, self.norm_type, self.kernel_size, self.stride, self.ceil_mode)

    def extra_repr(self) -> str:
        return f"norm_type={self.norm_type}, {super().extra_repr()}"


class LPPool1d(_LPPool):
    """(sum of x^norm_type)^(1/norm_type) of windows of (N, C, L); see cyxcore.functional.lp_pool2d."""

    rank = 1
    function = staticmethod(F.lp_pool1d)


class LPPool2d(_LPPool):
    """LPPool1d of (N, C, H, W)."""

    rank = 2
    function = staticmethod(F.lp_pool2d)


class LPPool3d(_LPPool):
    """LPPool1d of (N, C, D, H, W)."""

    rank = 3
    function = staticmethod(F.lp_pool3d)


class _FractionalMaxPool(Module):
    rank: ClassVar[int]
    function: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        kernel_size: Any,
        output_size: Any = None,
        output_ratio: Any = None,
        return_indices: bool = False,
        _random_samples: Any = None,
    ) -> None:
        super().__init__()
        check_windows(self, self.rank, kernel_size=kernel_size)
        self.kernel_size, self.output_size, self.output_ratio = kernel_size, output_size, output_ratio
        self.return_indices, self._random_samples = return_indices, _random_samples

    def forward(self, x: Any) -> Any:
        options = (self.output_size, self.output_ratio, self.return_indices, self._random_samples)
        return type(self).function(x, self.kernel_size, *options)

    def extra_repr(self) -> str:
        to = f"output_size={self.output_size}" if self.output_ratio is None else f"output_ratio={self.output_ratio}"
        return f"kernel_size={self.kernel_size}, {to}"


class FractionalMaxPool2d(_FractionalMaxPool):
    """Maxima of windows at random places of (N, C, H, W), in inference too; see functional.fractional_max_pool2d."""

    rank = 2
    function = staticmethod(F.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPool):
    """FractionalMaxPool2d of (N, C, D, H, W)."""

    rank = 3
    function = staticmethod(F.fractional_max_pool3d)


class _AdaptivePool(Module):
    rank: ClassVar[int]
    function: ClassVar[Callable[..., Any]]

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        several = isinstance(output_size, (tuple, list))
        sizes = [1 if each is None else each for each in (output_size if several else [output_size])]
        check_windows(self, self.rank, output_size=tuple(sizes) if several else sizes[0])
        self.output_size = output_size

    def forward(self, x: Any) -> Any:
        return type(self).function(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptivePool):
    """(N, C, L) -> (N, C, output_size)"""

    rank = 1
    function = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptivePool):
    """(N, C, H, W) -> (N, C, *output_size)"""

    rank = 2
    function = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptivePool):
    """(N, C, D, H, W) -> (N, C, *output_size)"""

    rank = 3
    function = staticmethod(F.adaptive_avg_pool3d)


class _AdaptiveMaxPool(_AdaptivePool):
    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, x: Any) -> Any:
        return type(self).function(x, self.output_size, self.return_indices)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """(N, C, L) -> (N, C, output_size); with return_indices also where the largest are."""

    rank = 1
    function = staticmethod(F.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """(N, C, H, W) -> (N, C, *output_size); with return_indices also where the largest are."""

    rank = 2
    function = staticmethod(F.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """(N, C, D, H, W) -> (N, C, *output_size); with return_indices also where the largest are."""

    rank = 3
    function = staticmethod(F.adaptive_max_pool3d)


class GlobalMaxPool2d(Module):
    """(N, C, H, W) -> (N, C)."""

    def forward(self, x: Any) -> Any:
        return F.global_max_pool2d(x)


class GlobalAvgPool2d(Module):
    """(N, C, H, W) -> (N, C)."""

    def forward(self, x: Any) -> Any:
        return F.global_avg_pool2d(x)
