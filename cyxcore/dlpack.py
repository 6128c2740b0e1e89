"""bfloat16 through DLPack: NumPy does all the rest, and takes these elements for uint16.

A capsule says in one byte what its elements are (https://dmlc.github.io/dlpack/latest/c_api.html); that byte is
changed on the way out and in.
"""

import ctypes
from typing import Any

import numpy as np

from cyxcore.kernels.bfloat16 import BFLOAT16

Array = np.ndarray[Any, Any]

_UINT, _BFLOAT = 1, 4


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _of(capsule: Any) -> _Tensor:
    """What a capsule that nobody has taken yet says about its elements."""
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    valid = ctypes.pythonapi.PyCapsule_IsValid
    valid.argtypes = (ctypes.py_object, ctypes.c_char_p)
    if valid(capsule, b"dltensor_versioned"):
        return _Versioned.from_address(address(capsule, b"dltensor_versioned")).tensor
    return _Tensor.from_address(address(capsule, b"dltensor"))


def exported(array: Array, options: dict[str, Any]) -> Any:
    """The capsule of an array."""
    if array.dtype != BFLOAT16:
        return array.__dlpack__(**options)
    capsule = array.view(np.uint16).__dlpack__(**options)
    _of(capsule).code = _BFLOAT
    return capsule


class _Relay:
    def __init__(self, source: Any) -> None:
        self.source, self.bfloat16 = source, False

    def __dlpack_device__(self) -> Any:
        return self.source.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.source.__dlpack__(**options)
        elements = _of(capsule)
        if elements.code == _BFLOAT and elements.bits == 16 and elements.lanes == 1:
            elements.code, self.bfloat16 = _UINT, True
        return capsule


def imported(source: Any, copy: bool | None) -> Array:
    """The array of another library's tensor in the host's memory. Raises BufferError for what cannot be shared."""
    relay = _Relay(source)
    array = np.from_dlpack(relay, copy=copy)
    return array.view(BFLOAT16) if relay.bfloat16 else array
