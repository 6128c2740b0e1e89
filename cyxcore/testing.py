"""PyTorch's torch.testing, as far as tests use it: whether two results are close."""

from typing import Any

import numpy as np

from cyxcore.eager import Tensor
from cyxcore.errors import SpecError

__all__ = ["assert_close"]

# (rtol, atol) of each dtype, PyTorch's; what is not named has to be equal.
TOLERANCES = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_dtype: bool = True,
) -> None:
    """Tensors, numbers, or lists and dicts of them: |actual - expected| <= atol + rtol |expected|, of one shape, dtype.

    rtol, atol: both or none; without them as exact as the dtype is. Raises AssertionError.
    """
    if (rtol is None) != (atol is None):
        raise SpecError("assert_close: expected both rtol and atol, or none of them")
    if isinstance(expected, (dict, list, tuple)):
        names: Any = expected if isinstance(expected, dict) else range(len(expected))
        if type(actual) is not type(expected) or len(actual) != len(expected):
            raise AssertionError(f"expected {type(expected).__name__} of {len(expected)}, got {actual!r}")
        for name in names:
            assert_close(
                actual[name], expected[name], rtol=rtol, atol=atol, equal_nan=equal_nan, check_dtype=check_dtype
            )
        return
    one, other = (x if isinstance(x, Tensor) else Tensor(x) for x in (actual, expected))
    if one.shape != other.shape or (check_dtype and one.dtype != other.dtype):
        raise AssertionError(f"expected {other.dtype} {other.shape}, got {one.dtype} {one.shape}")
    relative, absolute = (rtol or 0.0, atol or 0.0)
    if rtol is None:
        relative, absolute = TOLERANCES.get(other.dtype, (0.0, 0.0))
    wide: list[Any] = [(x.astype("float32") if x.dtype == "bfloat16" else x).detach().numpy() for x in (one, other)]
    np.testing.assert_allclose(wide[0], wide[1], rtol=relative, atol=absolute, equal_nan=equal_nan)
