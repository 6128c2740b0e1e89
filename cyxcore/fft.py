"""Fourier transforms: the array API standard's extension `fft`.

The transforms are those of the installed NumPy (pocketfft): they run on tensors only, and their last bits may depend on
the machine. n (or s, one for each axis) cuts the input or pads it with zeros at the end. norm: which direction is
divided by n, "backward" or "forward", or "ortho" for both by its root. float32 gives complex64, float64 complex128;
other numbers become float32. Gradients flow through all of them.
"""

import math
from collections.abc import Sequence
from typing import Any

from cyxcore import creation
from cyxcore.attrs import several
from cyxcore.casting import in_float32 as _in_float32
from cyxcore.dtype import COMPLEX, complex_dtype, dtype_name
from cyxcore.elementwise import conj, value_of
from cyxcore.errors import AxisError, DtypeError, ShapeError, SpecError
from cyxcore.manipulation import roll
from cyxcore.torchwords import worded
from cyxcore.values import apply

__all__ = (
    "fft fft2 fftfreq fftn fftshift hfft ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftfreq rfftn"
).split()

_OTHER = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


def _scaled(value: Any, size: int, norm: str, forward: bool) -> Any:
    """What is to be divided for a transform of `size` elements."""
    if norm not in _OTHER:
        raise SpecError(f"fft: expected norm 'backward', 'ortho' or 'forward', got {norm!r}")
    if norm == "ortho":
        return value * (1.0 / math.sqrt(size))
    return value * (1.0 / size) if (norm == "forward") == forward else value


def _sized(value: Any, axis: int, size: int) -> Any:
    """Cut or padded with zeros to a size along an axis."""
    have = value.shape[axis]
    if size < 1:
        raise ShapeError(f"fft: expected at least 1 element along axis {axis}, got {size} for shape {value.shape}")
    if size < have:
        return value[(slice(None),) * axis + (slice(size),)]
    pads = tuple((0, size - have if place == axis else 0) for place in range(value.ndim))
    return apply("pad", value, pads=pads) if size > have else value


def _complex(name: str, x: Any) -> Any:
    value = value_of(name, x)
    return value if value.dtype in COMPLEX else value.astype(complex_dtype(value.dtype))


def _real(name: str, x: Any) -> Any:
    value = value_of(name, x)
    if value.dtype in COMPLEX:
        raise DtypeError(f"{name}: expected real numbers, got {value.dtype}; use fft, or take real(x)")
    return value if value.dtype == "float64" else value.astype("float32")


def _transformed(op: str, value: Any, axis: int, size: int | None, norm: str) -> Any:
    place = value._axis(axis)
    size = value.shape[place] if size is None else size
    found = apply(op, _sized(value, place, size), axis=place)
    return _scaled(found, size, norm, forward=op != "ifft")


@_in_float32
def fft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The sums over j of x[j] exp(-2 pi i j k / n), for each k < n. Complex."""
    return _transformed("fft", _complex("fft", x), axis, n, norm)


@_in_float32
def ifft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """What undoes fft(). Complex."""
    return _transformed("ifft", _complex("ifft", x), axis, n, norm)


@_in_float32
def rfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """The first n // 2 + 1 places of fft() of real numbers; the others are their conjugates."""
    return _transformed("rfft", _real("rfft", x), axis, n, norm)


@_in_float32
def irfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """What undoes rfft(): real, of n elements, 2 (m - 1) for m given ones unless n says otherwise."""
    value = _complex("irfft", x)
    place = value._axis(axis)
    size = 2 * (value.shape[place] - 1) if n is None else n
    if size < 1:
        raise ShapeError(f"irfft: expected n >= 1, got {size} for shape {value.shape}")
    found = apply("irfft", _sized(value, place, size // 2 + 1), axis=place, size=size)
    return _scaled(found, size, norm, forward=False)


@_in_float32
def hfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """fft() of what has the conjugate at n - j of what it has at j, given by its first half: real."""
    return irfft(conj(_complex("hfft", x)), n=n, axis=axis, norm=_OTHER.get(norm, norm))


@_in_float32
def ihfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str = "backward") -> Any:
    """What undoes hfft()."""
    return conj(rfft(_real("ihfft", x), n=n, axis=axis, norm=_OTHER.get(norm, norm)))


def _several(value: Any, s: Sequence[int] | None, axes: Sequence[int] | None) -> list[tuple[int, int | None]]:
    """(axis, size or None) of a transform over several axes: all, or the last ones as there are sizes."""
    if axes is None:
        axes = range(value.ndim) if s is None else range(value.ndim - len(s), value.ndim)
    places = [value._axis(axis) for axis in axes]
    sizes = [None] * len(places) if s is None else list(s)
    if len(sizes) != len(places) or not places:
        raise AxisError(f"fft: expected as many sizes as axes, at least one, got s={s}, axes={axes} for {value.shape}")
    return list(zip(places, sizes, strict=True))


@_in_float32
def fftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """fft() along several axes, all without `axes`."""
    value = _complex("fftn", x)
    for axis, size in reversed(_several(value, s, axes)):
        value = fft(value, n=size, axis=axis, norm=norm)
    return value


@_in_float32
def ifftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """What undoes fftn()."""
    value = _complex("ifftn", x)
    for axis, size in reversed(_several(value, s, axes)):
        value = ifft(value, n=size, axis=axis, norm=norm)
    return value


@_in_float32
def rfftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """rfft() along the last of several axes, fft() along the others."""
    value = _real("rfftn", x)
    *others, (last, size) = _several(value, s, axes)
    value = rfft(value, n=size, axis=last, norm=norm)
    for axis, size in reversed(others):
        value = fft(value, n=size, axis=axis, norm=norm)
    return value


@_in_float32
def irfftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str = "backward"
) -> Any:
    """What undoes rfftn()."""
    value = _complex("irfftn", x)
    *others, (last, last_size) = _several(value, s, axes)
    for axis, size in others:
        value = ifft(value, n=size, axis=axis, norm=norm)
    return irfft(value, n=last_size, axis=last, norm=norm)


def _frequencies(name: str, n: int, places: Sequence[int], d: float, dtype: Any, device: Any) -> Any:
    wanted = "float32" if dtype is None else dtype_name(dtype)
    if wanted not in ("float16", "bfloat16", "float32", "float64"):
        raise DtypeError(f"{name}: expected a float dtype, got {wanted}")
    if n < 1 or d == 0:
        raise SpecError(f"{name}: expected n >= 1 and d != 0, got n={n}, d={d}")
    return creation.asarray([place / (n * d) for place in places], dtype=wanted, device=device)


def fftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Any:
    """The frequencies of the places of fft() of samples d apart: 0, 1, ..., -1 over n d."""
    return _frequencies("fftfreq", n, [*range((n + 1) // 2), *range(-(n // 2), 0)], d, dtype, device)


def rfftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Any:
    """The frequencies of the places of rfft(): 0 ... n // 2 over n d."""
    return _frequencies("rfftfreq", n, range(n // 2 + 1), d, dtype, device)


def _shifted(name: str, x: Any, axes: int | Sequence[int] | None, back: bool) -> Any:
    value = value_of(name, x)
    given = range(value.ndim) if axes is None else several(axes)
    places = tuple(value._axis(axis) for axis in given)
    if not places:
        return value.copy()
    return roll(value, tuple((-1 if back else 1) * (value.shape[p] // 2) for p in places), axis=places)


def fftshift(x: Any, /, *, axes: int | Sequence[int] | None = None) -> Any:
    """The frequency 0 in the middle."""
    return _shifted("fftshift", x, axes, back=False)


def ifftshift(x: Any, /, *, axes: int | Sequence[int] | None = None) -> Any:
    """What undoes fftshift()."""
    return _shifted("ifftshift", x, axes, back=True)


def _of_two(function: Any, name: str, undone: str) -> Any:
    def transform(
        x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str = "backward"
    ) -> Any:
        return function(x, s=s, axes=axes, norm=norm)

    transform.__name__, transform.__doc__ = name, f"{undone} along the last two axes, or the two of `axes`."
    return transform


fft2 = _of_two(fftn, "fft2", "fft()")
ifft2 = _of_two(ifftn, "ifft2", "ifft()")
rfft2 = _of_two(rfftn, "rfft2", "rfftn()")
irfft2 = _of_two(irfftn, "irfft2", "irfftn()")

# By PyTorch's words and places too: fft(x, n, dim, norm), fftn(x, s, dim, norm), fftshift(x, dim).
for _names, _words, _places in (
    ("fft ifft rfft irfft hfft ihfft", {"dim": "axis"}, "n axis norm"),
    ("fftn ifftn rfftn irfftn fft2 ifft2 rfft2 irfft2", {"dim": "axes"}, "s axes norm"),
    ("fftshift ifftshift", {"dim": "axes"}, "axes"),
):
    for _name in _names.split():
        globals()[_name] = worded(globals()[_name], _words, _places)
