"""Whatever a user calls numbers, as an array of one of our dtypes."""

from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore.device import DTYPE_NAMES
from cyxcore.dtype import INTEGERS, REAL, dtype_name, iinfo
from cyxcore.errors import DtypeError, ShapeError
from cyxcore.inplace import InPlace
from cyxcore.kernels import reference
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory


def as_array(data: Any, dtype: Any = None) -> Array:
    """A C-contiguous array of one of our dtypes; Python floats become float32, complex numbers complex64.

    Raises DtypeError for what is no number, and for numbers the dtype cannot hold.
    """
    if isinstance(data, InPlace):
        data = data._data  # type: ignore[attr-defined]
    wanted = None if dtype is None else dtype_name(dtype)
    if not isinstance(data, np.ndarray) and hasattr(data, "__cuda_array_interface__"):
        return devices.put(data if wanted is None else data.astype(wanted), devices.name_of(data))
    plain = not isinstance(data, (np.ndarray, np.generic, memoryview, bytes, bytearray)) and (
        not hasattr(data, "__array__") and not hasattr(data, "typecode")  # array.array
    )
    try:
        array = np.asarray(data)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ShapeError("tensor: expected nested lists of equal lengths, got unequal ones; pad them") from None
    if plain and array.dtype == np.float64 and (wanted is None or wanted in INTEGERS):
        array = _exact(data, array)
    if wanted is None and plain:
        wanted = _NARROWER.get(array.dtype)
    have = DTYPE_NAMES.get(array.dtype)
    if have is None:
        if plain and array.dtype.kind in "OUS":
            raise DtypeError(f"tensor: {_no_number(array)}")
        if wanted is None:
            dtype_name(array.dtype)  # says which dtypes there are
        if array.dtype.kind not in "biufc":
            raise DtypeError(f"tensor: expected numbers, got {array.dtype}")
    if have == "bfloat16" or wanted == "bfloat16":
        array = array if have == wanted or wanted is None else _converted(array, str(wanted))
        wanted = None
    elif wanted in REAL and array.dtype.kind == "c":
        raise DtypeError(f"tensor: {wanted} cannot hold complex numbers; take real(x), imag(x) or abs(x) first")
    elif plain and wanted in INTEGERS and array.dtype.kind in "iu" and array.size:
        low, high = iinfo(wanted)[2:0:-1]
        if not (low <= int(array.min()) and int(array.max()) <= high):
            raise DtypeError(f"tensor: {wanted} holds {low}..{high}, got {array.min()}..{array.max()}")
    with np.errstate(over="ignore"):  # what a float dtype cannot hold is infinite, as an operation's result would be
        result: Array = np.ascontiguousarray(array, dtype=wanted).reshape(array.shape)
    return result


def _exact(data: Any, array: Array) -> Array:
    """Integers as uint64 where NumPy took them for floats: it does where one of them needs uint64 and another not."""
    if not (np.abs(array) >= 2.0**63).any():
        return array
    whole = np.asarray(data, dtype=object)
    if not all(isinstance(value, (int, np.integer)) for value in whole.flat):
        return array
    low, high = int(whole.min()), int(whole.max())
    if low < 0:
        raise DtypeError(f"tensor: expected integers that one dtype holds, got {low}..{high}; write one as a float")
    return whole.astype(np.uint64)


def _no_number(array: Array) -> str:
    """What the first element that no dtype holds is."""
    for value in array.ravel().tolist():
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                return f"expected integers that 64 bits hold, got {value}; write it as a float"
        elif not isinstance(value, (float, complex)):
            return f"expected numbers, got {value!r} of {type(value).__name__}"
    return f"expected numbers of one kind, got {array.dtype}"


# What Python's own numbers become: NumPy would take the double of it.
_NARROWER = {np.dtype(np.float64): "float32", np.dtype(np.complex128): "complex64"}


def _converted(array: Array, dtype: str) -> Array:
    """An array cast as the op `cast` does, bfloat16 being nothing NumPy can cast."""
    result: Array = np.empty(array.shape, NUMPY_DTYPES[dtype])
    reference.call("cast", result, [array], {"dtype": dtype})
    return result
