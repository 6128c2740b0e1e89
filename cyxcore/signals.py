"""PyTorch's short-time Fourier transform and its windows: cx.stft, cx.istft, cx.hann_window, ….

The transforms are those of cx.fft; they run on tensors, with gradients.
"""

import math
from collections.abc import Callable
from typing import Any

from cyxcore import creation, fft, functional, torchnames
from cyxcore.casting import in_float32
from cyxcore.dtype import COMPLEX, FLOATS, dtype_name
from cyxcore.eager import Tensor
from cyxcore.elementwise import real
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.extras import scatter_add

__all__ = "bartlett_window blackman_window hamming_window hann_window istft kaiser_window stft".split()


# windows ------------------------------------------------------------------------------------------


def _window(name: str, length: int, periodic: bool, dtype: Any, at: Callable[[float], float], options: Any) -> Tensor:
    """at: its height for 0 … 1 of its length. Computed in float64."""
    wanted = dtype_name("float32" if dtype is None else dtype)
    if wanted not in FLOATS or length < 0:
        raise SpecError(f"{name}: expected a length of at least 0 and a float dtype, got {length} and {wanted}")
    whole = max(length if periodic else length - 1, 1)
    heights = [at(place / whole) for place in range(length)] if length > 1 else [1.0] * length
    return creation.tensor(heights, dtype=wanted, **options)


def hann_window(window_length: int, periodic: bool = True, *, dtype: Any = None, **options: Any) -> Tensor:
    """(window_length,): the square of a sine. periodic: as a window of one more, without its last."""
    return hamming_window(window_length, periodic, 0.5, 0.5, dtype=dtype, **options)


def hamming_window(
    window_length: int,
    periodic: bool = True,
    alpha: float = 0.54,
    beta: float = 0.46,
    *,
    dtype: Any = None,
    **options: Any,
) -> Tensor:
    """(window_length,): alpha - beta cos."""
    return _window(
        "hamming_window", window_length, periodic, dtype, lambda t: alpha - beta * math.cos(2 * math.pi * t), options
    )


def blackman_window(window_length: int, periodic: bool = True, *, dtype: Any = None, **options: Any) -> Tensor:
    """(window_length,): Blackman's sum of two cosines."""
    return _window(
        "blackman_window",
        window_length,
        periodic,
        dtype,
        lambda t: 0.42 - 0.5 * math.cos(2 * math.pi * t) + 0.08 * math.cos(4 * math.pi * t),
        options,
    )


def bartlett_window(window_length: int, periodic: bool = True, *, dtype: Any = None, **options: Any) -> Tensor:
    """(window_length,): a triangle."""
    return _window("bartlett_window", window_length, periodic, dtype, lambda t: 1.0 - abs(2.0 * t - 1.0), options)


def kaiser_window(
    window_length: int, periodic: bool = True, beta: float = 12.0, *, dtype: Any = None, **options: Any
) -> Tensor:
    """(window_length,): Kaiser's, by the modified Bessel function of order 0."""
    highest = _bessel(beta)
    return _window(
        "kaiser_window",
        window_length,
        periodic,
        dtype,
        lambda t: _bessel(beta * math.sqrt(max(1.0 - (2.0 * t - 1.0) ** 2, 0.0))) / highest,
        options,
    )


def _bessel(x: float) -> float:
    """I0 by its series, to the last digit of float64."""
    term = total = 1.0
    step = 0
    while term > total * 1e-18:
        step += 1
        term *= (x / (2 * step)) ** 2
        total += term
    return total


# the transform ------------------------------------------------------------------------------------


def _lapped(name: str, n_fft: int, hop_length: int | None, win_length: int | None, window: Any) -> tuple[int, Any]:
    """(from one frame to the next, the window of n_fft). Raises SpecError, ShapeError."""
    hop = n_fft // 4 if hop_length is None else hop_length
    wide = n_fft if win_length is None else win_length
    if n_fft < 1 or hop < 1 or not 1 <= wide <= n_fft:
        raise SpecError(f"{name}: expected n_fft, hop_length from 1 on and win_length of 1..{n_fft}, got {hop}, {wide}")
    if window is None:
        window = creation.ones(wide)
    if window.shape != (wide,):
        raise ShapeError(f"{name}: expected a window ({wide},), got {window.shape}")
    before = (n_fft - wide) // 2
    return hop, functional.pad(window, [(before, n_fft - wide - before)]) if wide < n_fft else window


@in_float32
def stft(
    input: Any,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
) -> Any:
    """Fourier transforms of frames of a signal (T,) or (N, T): complex (…, frequencies, frames).

    hop_length: from one frame to the next, n_fft // 4 without. window: (win_length,), ones without. center: the signal
    is padded by n_fft // 2 at both ends in pad_mode. normalized: divided by the root of n_fft. onesided: the first
    n_fft // 2 + 1 frequencies, as real signals usually have. return_complex=False: a last axis of two parts instead.
    """
    hop, height = _lapped("stft", n_fft, hop_length, win_length, window)
    if input.ndim not in (1, 2):
        raise ShapeError(f"stft: expected a signal (T,) or (N, T), got {input.shape}")
    value = input if input.ndim == 2 else input.expand_dims(0)
    if center:
        each = n_fft // 2
        pads = [(0, 0), (0, 0), (each, each)]
        value = functional.pad(value.expand_dims(1), pads, mode=pad_mode).squeeze(1)
    if value.shape[-1] < n_fft:
        raise ShapeError(f"stft: expected at least {n_fft} samples, got {value.shape[-1]}")
    frames = torchnames.unfold(value, -1, n_fft, hop) * height  # (N, frames, n_fft)
    half = (input.dtype not in COMPLEX) if onesided is None else onesided
    norm = "ortho" if normalized else "backward"
    found = (fft.rfft if half else fft.fft)(frames, norm=norm).mT
    found = found if input.ndim == 2 else found.squeeze(0)
    return found if return_complex is not False else found.view_as_real()


def istft(
    input: Any,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Any:
    """The signal (T,) or (N, T) of what stft gave, (…, frequencies, frames).

    Frames are added where they overlap and divided by the squares of the window. length: of the signal, where it is
    known. Raises ShapeError, and SpecError where the window leaves places out.
    """
    if input.dtype not in COMPLEX:
        raise DtypeError(f"istft: expected complex numbers, got {input.dtype}; see view_as_complex")
    hop, height = _lapped("istft", n_fft, hop_length, win_length, window)
    value = input if input.ndim == 3 else input.expand_dims(0)
    half = value.shape[1] != n_fft if onesided is None else onesided
    if value.ndim != 3 or value.shape[1] != (n_fft // 2 + 1 if half else n_fft):
        raise ShapeError(f"istft: expected (…, {n_fft // 2 + 1 if half else n_fft}, frames), got {input.shape}")
    norm = "ortho" if normalized else "backward"
    frames = fft.irfft(value.mT, n=n_fft, norm=norm) if half else fft.ifft(value.mT, norm=norm)
    frames = frames if half or return_complex else real(frames)
    count = frames.shape[1]
    whole = n_fft + hop * (count - 1)
    places = [frame * hop + at for frame in range(count) for at in range(n_fft)]
    index = frames._constant(places, "int64").reshape(-1)
    laid = (frames * height).reshape(frames.shape[0], -1)
    total = _added(laid, index, whole)
    weight = _added((height * height).broadcast_to(count, n_fft).reshape(1, -1), index, whole)
    first = n_fft // 2 if center else 0
    last = first + length if length is not None else whole - first
    total, weight = total[:, first:last], weight[:, first:last]
    if weight.size and not weight.is_symbolic and not (weight > 1e-11).all():
        raise SpecError("istft: expected a window and hop_length that leave no place out")
    found = total / weight
    if length is not None and found.shape[1] < length:
        found = functional.pad(found, [(0, 0), (0, length - found.shape[1])])
    return found if input.ndim == 3 else found.squeeze(0)


def _added(rows: Any, index: Any, whole: int) -> Any:
    """(N, whole): the columns of rows added up where the index points."""
    if rows.dtype in COMPLEX:
        return _added(real(rows), index, whole) + _added(rows.imag, index, whole) * 1j
    zeros = rows._constant(0.0, rows.dtype).broadcast_to(rows.shape[0], whole)
    return scatter_add(zeros, index, rows, axis=1)
