"""Dropout in its kinds as layers: torch's names and results around cyxcore.functional."""

from collections.abc import Callable
from typing import Any, ClassVar

from cyxcore import functional as F
from cyxcore.errors import SpecError
from cyxcore.nn.module import Module


class Dropout(Module):
    """In training each element is 0 with probability p and 1 / (1 - p) times itself otherwise."""

    function: ClassVar[Callable[..., Any]] = staticmethod(F.dropout)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        """inplace: the result is written into x."""
        super().__init__()
        if not isinstance(p, int | float) or not 0.0 <= p <= 1.0:
            raise SpecError(f"{type(self).__name__}: expected p from 0 to 1, got {p!r}")
        self.p, self.inplace = p, inplace

    def forward(self, x: Any) -> Any:
        return type(self).function(x, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout1d(Dropout):
    """Whole channels of (N, C, L) or (C, L) at once."""

    function = staticmethod(F.dropout1d)


class Dropout2d(Dropout):
    """Whole channels of (N, C, H, W) at once."""

    function = staticmethod(F.dropout2d)


class Dropout3d(Dropout):
    """Whole channels of (N, C, D, H, W) or (C, D, H, W) at once."""

    function = staticmethod(F.dropout3d)


class AlphaDropout(Dropout):
    """Dropout that keeps mean and variance of what SELU made (Klambauer 2017)."""

    function = staticmethod(F.alpha_dropout)


class FeatureAlphaDropout(Dropout):
    """AlphaDropout of whole channels of (N, C, ...) at once."""

    function = staticmethod(F.feature_alpha_dropout)
