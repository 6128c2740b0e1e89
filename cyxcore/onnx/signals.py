"""ONNX operators of signals: windows, mel weights, Fourier transforms."""

import math
from typing import Any

import numpy as np

from cyxcore import elementwise as E
from cyxcore import fft
from cyxcore import functional as F
from cyxcore.errors import ShapeError
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES
from cyxcore.onnx.movement import padded
from cyxcore.onnx.table import Call, along, integer, number, operator, tensor
from cyxcore.onnx.tensors import dtype_of

_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@operator(*_WINDOWS, since=17, known=(0,))
def _window(call: Call, size: Any) -> Any:
    """a - b cos(2 pi n / N) + c cos(4 pi n / N), N one less where it is symmetric."""
    count = integer(size)
    if not 0 <= count <= 2**24:
        raise ShapeError(f"expected a window of 0 to {2**24}, got {count}")
    whole = count if call.attr("periodic", 1) else max(count - 1, 1)
    a, b, c = _WINDOWS[call.op]
    angle = 2.0 * np.pi * np.arange(count) / whole
    values = a - b * np.cos(angle) + c * np.cos(2.0 * angle)
    return tensor(values.astype(NUMPY_DTYPES[dtype_of(call.attr("output_datatype", 1), call.op)]))


@operator("MelWeightMatrix", since=17, known=(0, 1, 2, 3, 4))
def _mel_weights(call: Call, bins: Any, length: Any, rate: Any, lowest: Any, highest: Any) -> Any:
    """Triangles evenly spaced on the mel scale, over the bins of a spectrum."""
    count, size, hertz = integer(bins), integer(length), integer(rate)
    if not 0 < count <= 4096 or not 0 < size <= 2**20:
        raise ShapeError(f"expected up to 4096 bins of a transform of up to {2**20}, got {count} and {size}")
    low, high = (2595 * math.log10(1 + number(edge) / 700) for edge in (lowest, highest))
    mels = np.arange(count + 2) * ((high - low) / (count + 2)) + low
    edges = np.floor((size + 1) * (700 * (10 ** (mels / 2595) - 1)) / hertz).astype(np.int64)
    matrix = np.zeros((size // 2 + 1, count))
    for place in range(count):
        left, centre, right = edges[place : place + 3]
        if centre == left:
            matrix[centre, place] = 1.0
        else:
            for step in range(left, centre + 1):
                matrix[step, place] = (step - left) / (centre - left)
        for step in range(centre, right):
            matrix[step, place] = (right - step) / (right - centre)
    return tensor(matrix.astype(NUMPY_DTYPES[dtype_of(call.attr("output_datatype", 1), call.op)]))


def _as_complex(x: Any) -> Any:
    if x.shape[-1] == 2:
        dtype = "complex128" if x.dtype == "float64" else "complex64"
        return x[..., 0].astype(dtype) + x[..., 1].astype(dtype) * x._constant(1j, dtype)
    if x.shape[-1] != 1:
        raise ShapeError(f"expected real or complex numbers on the last axis, got {x.shape}")
    return x[..., 0]


def _as_pairs(value: Any) -> Any:
    return F.stack([E.real(value), E.imag(value)], -1)


@operator("DFT", since=17, known=(1, 2), limits="in a graph (runs on tensors)")
def _dft(call: Call, x: Any, length: Any = None, axis: Any = None) -> Any:
    default = 1 if call.opset < 20 else -2
    given = integer(axis) if axis is not None else call.attr("axis", default)
    place = given % x.ndim
    value = _as_complex(x)
    size = integer(length) if length is not None else None
    inverse, half = call.attr("inverse", 0), call.attr("onesided", 0)
    if half and inverse:
        count = size or 2 * (x.shape[place] - 1)
        return fft.irfft(value, n=count, axis=place).expand_dims(-1)
    wide = (
        value if "complex" in value.dtype else value.astype("complex128" if value.dtype == "float64" else "complex64")
    )
    result = (fft.ifft if inverse else fft.fft)(wide, n=size, axis=place)
    if half:
        result = along(result, place, slice(0, result.shape[place] // 2 + 1))
    return _as_pairs(result)


@operator("STFT", since=17, known=(1, 3), limits="in a graph (runs on tensors)")
def _stft(call: Call, signal: Any, step: Any, window: Any = None, length: Any = None) -> Any:
    value = _as_complex(signal if signal.ndim == 3 else signal.expand_dims(-1))
    size = integer(length) if length is not None else window.shape[0]
    hop = integer(step)
    if hop < 1 or not 0 < size <= value.shape[1]:
        raise ShapeError(f"expected frames of 1 to {value.shape[1]} and a step of at least 1, got {size} and {hop}")
    frames = [value[:, start : start + size] for start in range(0, value.shape[1] - size + 1, hop)]
    whole = F.stack(frames, 1)
    if window is not None:
        whole = whole * padded(window, 0, (size - window.shape[0]) // 2, -(-(size - window.shape[0]) // 2), 0.0).astype(
            whole.dtype
        )
    wide = (
        whole if "complex" in whole.dtype else whole.astype("complex128" if whole.dtype == "float64" else "complex64")
    )
    result = fft.fft(wide, axis=2)
    if call.attr("onesided", 1):
        result = result[:, :, : size // 2 + 1]
    return _as_pairs(result)
