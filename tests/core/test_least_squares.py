"""cx.linalg.lstsq and solve_triangular against PyTorch's and NumPy's, in float64, with gradients."""

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import solving
from cyxcore.errors import CyxError, DataError
from tests.core.layer_oracle import agree, floats, torch

WIDE, TALL, SHORT = floats(3, 6), floats(6, 3), np.concatenate([floats(6, 2), floats(6, 2)[:, :1] * 2.0], 1)


@pytest.mark.parametrize("driver", [None, "gelsy", "gelsd", "gelss"])
@pytest.mark.parametrize("a", [TALL, WIDE, SHORT])
def test_four_results_are_torchs(a: np.ndarray, driver: str | None) -> None:
    b = floats(a.shape[0], 2, seed=1)
    ours, theirs = (m.linalg.lstsq(m.tensor(a), m.tensor(b), driver=driver) for m in (cx, torch))
    assert ours._fields == ("solution", "residuals", "rank", "singular_values")
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-10, atol=1e-12)


def test_of_driver_gelsd_they_are_numpys() -> None:
    b = floats(6, 2, seed=1)
    ours, theirs = cx.linalg.lstsq(cx.tensor(TALL), cx.tensor(b), driver="gelsd"), np.linalg.lstsq(TALL, b)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10)


def test_the_gradient_of_the_least_squares() -> None:
    call = lambda m, a, b: m.linalg.lstsq(a, b).solution  # noqa: E731
    agree(call, TALL, floats(6, 2, seed=1), dtypes=("float64",), compiled=False)
    agree(call, floats(2, 6, 3), floats(2, 6, 2, seed=1), dtypes=("float64",), compiled=False)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_triangles(batch: tuple[int, ...], unitriangular: bool, left: bool, upper: bool) -> None:
    """What lies on the other side of the diagonal is not read."""
    a = floats(*batch, 4, 4) * 0.3 + 2.0 * np.eye(4)
    options = {"upper": upper, "left": left, "unitriangular": unitriangular}
    call = lambda m, a, b: m.linalg.solve_triangular(a, b, **options)  # noqa: E731
    agree(call, a, floats(*batch, *((4, 3) if left else (3, 4)), seed=1), dtypes=("float64",), compiled=False)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_triangles_that_are_solved_block_by_block(
    batch: tuple[int, ...], unitriangular: bool, left: bool, upper: bool
) -> None:
    """A block below the first one is of an odd size; the other triangle, which nothing reads, is NaN."""
    size = 2 * solving._BLOCK + 5
    a = floats(*batch, size, size) / size + 2.0 * np.eye(size)
    a[..., *np.tril_indices(size, -1) if upper else np.triu_indices(size, 1)] = np.nan
    b = floats(*batch, *((size, 3) if left else (3, size)), seed=1)
    kept = np.nan_to_num(a) if not unitriangular else np.nan_to_num(a) * (1 - np.eye(size)) + np.eye(size)
    wanted = np.linalg.solve(kept, b) if left else np.linalg.solve(kept.mT, b.mT).mT
    x, y = cx.tensor(a), cx.tensor(b, requires_grad=True)
    found = cx.linalg.solve_triangular(x, y, upper=upper, left=left, unitriangular=unitriangular)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-10, atol=1e-12)
    found.sum().backward()
    ones = np.ones_like(b)
    slope = np.linalg.solve(kept.mT, ones) if left else np.linalg.solve(kept, ones.mT).mT
    np.testing.assert_allclose(y.grad.numpy(), slope, rtol=1e-10, atol=1e-12)


def test_a_large_triangle_that_is_singular_is_refused() -> None:
    a = np.eye(2 * solving._BLOCK)
    a[-1, -1] = 0.0
    with pytest.raises(DataError, match="solve: expected invertible matrices"):
        cx.linalg.solve_triangular(cx.tensor(a), cx.ones((len(a), 1), dtype="float64"), upper=True)


def test_the_gradient_of_a_large_triangle_is_one_of_its_own_half() -> None:
    size = solving._BLOCK + 6
    a, b = floats(size, size) / size + 2.0 * np.eye(size), floats(size, 2, seed=1)
    call = lambda m, a, b: m.linalg.solve_triangular(a, b, upper=False)  # noqa: E731
    agree(call, a, b, dtypes=("float64",), compiled=False)


def test_shapes_and_drivers_that_cannot_be_are_refused() -> None:
    with pytest.raises(CyxError, match="expected driver gels, gelsd, gelss, gelsy or None, got 'qr'"):
        cx.linalg.lstsq(cx.tensor(TALL), cx.tensor(TALL), driver="qr")
    with pytest.raises(CyxError):
        cx.linalg.lstsq(cx.zeros(3), cx.zeros(3))
    with pytest.raises(CyxError):
        cx.linalg.solve_triangular(cx.zeros(3, 2), cx.zeros(3, 2), upper=True)
