"""How NumPy holds our dtypes, among them bfloat16, which it does not know: the upper half of a float32.

Such an array has a dtype of its own with one uint16 field, so it is copied, sliced and told apart like
any other; arithmetic goes through float32 (`widened`) and back, rounding to nearest even (`narrowed`).
"""

from typing import Any

import numpy as np

from cyxcore.dtype import DTYPES

Array = np.ndarray[Any, Any]

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

NUMPY_DTYPES: dict[str, Any] = {name: BFLOAT16 if name == "bfloat16" else np.dtype(name) for name in DTYPES}


def widened(x: Array) -> Array:
    """The same numbers as float32."""
    return (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(x.shape)


def narrowed(x: Array) -> Array:
    """Any real array as bfloat16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    result = rounded.astype(np.uint16)
    nan = np.isnan(bits.view(np.float32))
    if nan.any():  # rounding could carry its digits away
        result[nan] = (bits[nan] >> 16) | 0x40
    return result.view(BFLOAT16).reshape(x.shape)
