"""Dropout in its kinds. Names, arguments and formulas are torch.nn.functional's. inplace: see overwritten."""

import math
from typing import Any

from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional.activations import SELU_ALPHA, SELU_SCALE
from cyxcore.functional.basic import channel_dropout, overwritten, where
from cyxcore.values import TracedMode, by_mode


def _channels(name: str, x: Any, rank: int, p: float, training: bool | TracedMode) -> Any:
    if x.ndim == rank + 1:
        return channel_dropout(x.expand_dims(0), p, training).squeeze(0)
    if x.ndim != rank + 2:
        raise ShapeError(f"{name}: expected x of {rank + 2} axes, or {rank + 1} without a batch, got {x.shape}")
    return channel_dropout(x, p, training)


def dropout1d(x: Any, p: float = 0.5, training: bool | TracedMode = True, inplace: bool = False) -> Any:
    """Whole channels of x (N, C, L) or (C, L) are zero with probability p in training, and x / (1 - p) otherwise."""
    if inplace and training is not False:
        return overwritten(x, dropout1d, p, training)
    return _channels("dropout1d", x, 1, p, training)


def dropout2d(x: Any, p: float = 0.5, training: bool | TracedMode = True, inplace: bool = False) -> Any:
    """dropout1d of (N, C, H, W), or, as in PyTorch, of (N, C, L)."""
    if inplace and training is not False:
        return overwritten(x, dropout2d, p, training)
    if x.ndim not in (3, 4):
        raise ShapeError(f"dropout2d: expected x (N, C, H, W), got {x.shape}")
    return channel_dropout(x, p, training)


def dropout3d(x: Any, p: float = 0.5, training: bool | TracedMode = True, inplace: bool = False) -> Any:
    """dropout1d of (N, C, D, H, W) or (C, D, H, W)."""
    if inplace and training is not False:
        return overwritten(x, dropout3d, p, training)
    return _channels("dropout3d", x, 3, p, training)


def alpha_dropout(x: Any, p: float = 0.5, training: bool | TracedMode = False, inplace: bool = False) -> Any:
    """In training each element is with probability p what SELU has far below 0; mean and variance are kept.

    Klambauer et al. 2017, arXiv 1706.02515, section 3: a (x m + α' (1 - m)) + b, α' being SELU's least value.
    """
    if inplace and training is not False:
        return overwritten(x, alpha_dropout, p, training)
    return _alpha("alpha_dropout", x, x.shape, p, training)


def feature_alpha_dropout(x: Any, p: float = 0.5, training: bool | TracedMode = False, inplace: bool = False) -> Any:
    """alpha_dropout of whole channels of x (N, C, ...)."""
    if inplace and training is not False:
        return overwritten(x, feature_alpha_dropout, p, training)
    if x.ndim < 2:
        raise ShapeError(f"feature_alpha_dropout: expected x (N, C, ...), got {x.shape}")
    return _alpha("feature_alpha_dropout", x, (*x.shape[:2], *(1,) * (x.ndim - 2)), p, training)


def _alpha(name: str, x: Any, shape: tuple[int, ...], p: float, training: bool | TracedMode) -> Any:
    if not 0.0 <= p <= 1.0:
        raise SpecError(f"{name}: expected a probability 0 <= p <= 1, got {p}")
    if p == 0.0:
        return x
    if p == 1.0:
        return by_mode(training, lambda: x * 0.0, lambda: x)
    least = -SELU_ALPHA * SELU_SCALE
    scale = 1.0 / math.sqrt((least * least * p + 1.0) * (1.0 - p))

    def dropped() -> Any:
        kept = x._uniform(shape) >= p
        return where(kept, x, least) * scale + (-scale * p * least)

    return by_mode(training, dropped, lambda: x)


def rrelu(
    x: Any,
    lower: float = 1.0 / 8.0,
    upper: float = 1.0 / 3.0,
    training: bool | TracedMode = False,
    inplace: bool = False,
) -> Any:
    """x above 0, below it x times a slope: drawn from lower … upper for each element in training, their mean after.

    Xu et al. 2015, arXiv 1505.00853. Raises SpecError unless lower <= upper.
    """
    if inplace:
        return overwritten(x, rrelu, lower, upper, training)
    if not lower <= upper:
        raise SpecError(f"rrelu: expected lower <= upper, got {lower} and {upper}")

    def drawn() -> Any:
        return where(x > 0, x, x * (x._uniform(x.shape).astype(x.dtype) * (upper - lower) + lower))

    return by_mode(training, drawn, lambda: where(x > 0, x, x * ((lower + upper) / 2.0)))
