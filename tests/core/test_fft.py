"""Fourier transforms against array-api-strict, and their gradients against PyTorch."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import fft
from cyxcore.errors import AxisError, DtypeError, GraphError, ShapeError, SpecError
from tests.core.oracle import agree, numbers, same, signature_differences

NORMS = ("backward", "ortho", "forward")


@pytest.mark.parametrize("name", [f"fft.{name}" for name in fft.__all__ if name[-1] != "2"])
def test_the_parameters_are_the_standards(name: str) -> None:
    assert signature_differences(name) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [None, 1, 3, 4, 7])
@pytest.mark.parametrize("double", [False, True])
def test_along_one_axis(norm: str, size: int | None, double: bool) -> None:
    z = numbers("complex128" if double else "complex64", 2, 5, 4)
    x = numbers("float64" if double else "float32", 2, 5, 4)
    for axis in (-1, 0, 1):
        for name, value in (("fft", z), ("ifft", z), ("rfft", x), ("ihfft", x)):
            agree(f"fft.{name}", value, n=size, axis=axis, norm=norm, scale=9)
        for name in ("irfft", "hfft"):
            if size is not None or z.shape[axis] > 1:
                agree(f"fft.{name}", z, n=size, axis=axis, norm=norm, scale=9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"axes": (0, 2)}, {"axes": (-1,)}, {"s": (3, 6), "axes": (2, 0)}, {"s": (2, 7, 3), "axes": (0, 1, 2)}],
)
def test_along_several_axes(norm: str, options: dict[str, Any]) -> None:
    z, x = numbers("complex128", 2, 5, 4), numbers("float64", 2, 5, 4)
    for name, value in (("fftn", z), ("ifftn", z), ("rfftn", x), ("irfftn", z)):
        agree(f"fft.{name}", value, norm=norm, **options, scale=20)


def test_frequencies_and_shifts() -> None:
    for n in (1, 4, 5):
        same(cx.fft.fftfreq(n, d=0.5, dtype="float64"), np.fft.fftfreq(n, 0.5))
        same(cx.fft.rfftfreq(n, dtype="float64"), np.fft.rfftfreq(n))
    assert cx.fft.fftfreq(4).dtype == "float32"
    for shape in ((4,), (5,), (2, 3), (0, 3)):
        for dtype in ("float32", "complex64"):
            agree("fft.fftshift", numbers(dtype, *shape))
            agree("fft.ifftshift", numbers(dtype, *shape), axes=0)
            agree("fft.fftshift", numbers(dtype, *shape), axes=(0, -1) if len(shape) > 1 else (0,))


def test_views_and_odd_values() -> None:
    x = numbers("complex64", 4, 6)
    same(cx.fft.fft(cx.asarray(x).T[::2]), np.fft.fft(x.T[::2]).astype("complex64"), scale=9)
    y = np.array([1.0, np.nan, np.inf, -0.0], np.float32)
    assert np.isnan(cx.fft.rfft(cx.asarray(y)).numpy()[0])
    assert cx.fft.fft(cx.ones(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    "compute",
    [
        lambda xp, x: abs(xp.fft.fft(x)),
        lambda xp, x: abs(xp.fft.ifft(x, n=3, norm="ortho")),
        lambda xp, x: abs(xp.fft.rfft(x)) * 2.0,
        lambda xp, x: abs(xp.fft.rfft(x, n=7)),
        lambda xp, x: xp.fft.irfft(xp.fft.rfft(x) ** 2, n=4),
        lambda xp, x: xp.fft.irfft(xp.fft.rfft(x, n=5) ** 2, n=5),
        lambda xp, x: xp.fft.hfft(xp.fft.rfft(x)),
        lambda xp, x: abs(xp.fft.fftn(x)) ** 2,
        lambda xp, x: xp.fft.irfftn(xp.fft.rfftn(x) * 2.0),
    ],
)
def test_a_gradient_is_pytorchs(compute: Any) -> None:
    torch = pytest.importorskip("torch")
    start = numbers("float64", 3, 4) + 0.1
    mine, theirs = cx.tensor(start, requires_grad=True), torch.tensor(start, requires_grad=True)
    got, wanted = compute(cx, mine), compute(torch, theirs)
    weight = np.cos(np.arange(got.size)).reshape(got.shape)
    (got * cx.asarray(weight)).sum().backward()
    (wanted * torch.tensor(weight)).sum().backward()
    assert mine.grad is not None
    np.testing.assert_allclose(mine.grad.numpy(), theirs.grad.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: cx.fft.fft(x, norm="none"), SpecError, "expected norm"),
        (lambda x: cx.fft.fft(x, axis=2), AxisError, "axis: expected"),
        (lambda x: cx.fft.fft(x, n=0), ShapeError, "at least 1 element"),
        (lambda x: cx.fft.fft(x[:, :0]), ShapeError, "at least 1 element"),
        (lambda x: cx.fft.rfft(x * 1j), DtypeError, "expected real numbers"),
        (lambda x: cx.fft.irfft(x[:, :1]), ShapeError, "expected n >= 1"),
        (lambda x: cx.fft.fftn(x, s=(2,), axes=(0, 1)), AxisError, "as many sizes as axes"),
        (lambda x: cx.fft.fftfreq(0), SpecError, "n >= 1"),
        (lambda x: cx.fft.fftfreq(3, dtype="int32"), DtypeError, "float dtype"),
        (
            lambda x: cx.trace(lambda v: abs(cx.fft.rfft(v)), (3,)),
            GraphError,
            "rfft: runs on tensors, and in cx.compile",
        ),
    ],
)
def test_a_bad_argument_is_one_clear_error(call: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        call(cx.ones(2, 3))
