"""Gradients of and through complex numbers, against PyTorch: dL/d(real) + i dL/d(imag)."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import GradientError
from tests.core.oracle import numbers

torch = pytest.importorskip("torch")


CASES: list[Any] = [
    lambda xp, z, w: z + w * 2.0,
    lambda xp, z, w: z * w - 1j * z,
    lambda xp, z, w: z / (w + 5.0),
    lambda xp, z, w: z @ w.T,
    lambda xp, z, w: xp.exp(z) + xp.log(w + 7.0) + xp.sqrt(w + 7.0),
    lambda xp, z, w: xp.sin(z) * xp.cos(w) + xp.tanh(z) + xp.sinh(w) - xp.cosh(z),
    lambda xp, z, w: (z + 3.0) ** w,
    lambda xp, z, w: (z + 3.0) ** 2 + xp.square(w),
    lambda xp, z, w: abs(z) * w,
    lambda xp, z, w: xp.conj(z) * w,
    lambda xp, z, w: xp.real(z) * w + xp.imag(w),
    lambda xp, z, w: xp.sign(z) * w if xp is cx else xp.sgn(z) * w,
    lambda xp, z, w: (
        z.mean(0) * w.sum(1)[0] + xp.prod(z, axis=1)[0] if xp is cx else z.mean(0) * w.sum(1)[0] + xp.prod(z, dim=1)[0]
    ),
    lambda xp, z, w: z[:, [0, 2, 0]] * w[1] + z[0, 1] * xp.stack([w[0], w[1]])[..., :1],
    lambda xp, z, w: xp.where(xp.real(z) > 0, z * w, w),
    lambda xp, z, w: z.reshape(3, 2) @ w,
    lambda xp, z, w: xp.real(z) * 2.0 * xp.real(w),
    lambda xp, z, w: xp.tensordot(z, w, axes=([1], [1])) if xp is cx else xp.tensordot(z, w, dims=([1], [1])),
    lambda xp, z, w: xp.linalg.inv(z @ w.T + 9j * xp.eye(2)),
    lambda xp, z, w: xp.linalg.det(z @ w.T),
    lambda xp, z, w: xp.linalg.svdvals(z * w),
    lambda xp, z, w: xp.linalg.eigvalsh(z @ xp.conj(z.T) + w @ xp.conj(w.T)),
    lambda xp, z, w: xp.linalg.solve(z @ w.T + 2.0, z),
    lambda xp, z, w: xp.linalg.cholesky(z @ xp.conj(z.T)),
    lambda xp, z, w: xp.linalg.pinv(z) @ w,
]


def of_pytorch(compute, starts, weight):
    """PyTorch's value and gradients. The first factorization in a process (2.14) may not be a number."""
    for _ in range(3):
        theirs = [torch.tensor(start, requires_grad=True) for start in starts]
        value = compute(torch, *theirs)
        torch.real(value * torch.tensor(weight)).sum().backward()
        gradients = [np.zeros((2, 3)) if y.grad is None else y.grad.resolve_conj().numpy() for y in theirs]
        found = [value.detach().resolve_conj().numpy(), *gradients]
        if all(np.isfinite(each).all() for each in found):
            return found[0], gradients
    pytest.skip("PyTorch's own result is not a number")


@pytest.mark.parametrize("place", range(len(CASES)))
def test_a_gradient_is_pytorchs(place: int) -> None:
    starts = [numbers("complex128", 2, 3, seed=seed) + (0.3 + 0.2j) for seed in (0, 1)]
    mine = [cx.tensor(start, requires_grad=True) for start in starts]
    compute = CASES[place]
    got = compute(cx, *mine)
    weight = np.exp(1j * np.arange(got.size)).reshape(got.shape)
    cx.real(got * cx.asarray(weight)).sum().backward()
    wanted, gradients = of_pytorch(compute, starts, weight)
    np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=1e-10, atol=1e-10)
    for x, expected in zip(mine, gradients, strict=True):
        found = np.zeros((2, 3)) if x.grad is None else x.grad.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_a_real_input_of_a_complex_result_has_a_real_gradient() -> None:
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    abs(x * (3.0 + 4.0j)).sum().backward()
    assert x.grad is not None and x.grad.dtype == "float32" and x.grad.tolist() == [5.0, 5.0]


def test_a_gradient_of_a_gradient() -> None:
    slope = cx.grad(lambda x: abs(x * (1.0 + 1.0j)).square().sum())
    found = cx.grad(lambda x: slope(x).sum())(cx.tensor([1.0, 3.0])).numpy()
    np.testing.assert_allclose(found, [4.0, 4.0], rtol=1e-6)


def test_the_root_of_a_backward_pass_is_real() -> None:
    z = cx.tensor([1j], requires_grad=True)
    with pytest.raises(GradientError, match="expected a real scalar"):
        z.sum().backward()


def test_writes_in_place_of_complex_tensors() -> None:
    z = cx.tensor([1j, 2.0], requires_grad=True)
    y = z * 1.0
    y[0] = z[1] * 1j
    y *= 2.0
    cx.imag(y).sum().backward()
    assert z.grad is not None and z.grad.tolist() == [0.0, 2.0 + 2.0j]
