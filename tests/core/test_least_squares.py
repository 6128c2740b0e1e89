"""cx.linalg.lstsq and solve_triangular against PyTorch's and NumPy's, in float64, with gradients."""

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError
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


def test_shapes_and_drivers_that_cannot_be_are_refused() -> None:
    with pytest.raises(CyxError, match="expected driver gels, gelsd, gelss, gelsy or None, got 'qr'"):
        cx.linalg.lstsq(cx.tensor(TALL), cx.tensor(TALL), driver="qr")
    with pytest.raises(CyxError):
        cx.linalg.lstsq(cx.zeros(3), cx.zeros(3))
    with pytest.raises(CyxError):
        cx.linalg.solve_triangular(cx.zeros(3, 2), cx.zeros(3, 2), upper=True)
