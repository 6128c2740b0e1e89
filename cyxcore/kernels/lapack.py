"""The matrix factorizations in NumPy's LAPACK. cyxcore/kernels/standard.py takes them over.

Their last bits depend on the machine and its BLAS.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from cyxcore.errors import DataError

Array = np.ndarray[Any, Any]
Kernel = Callable[..., Any]
Attrs = Mapping[str, Any]


def _checked(op: str, wanted: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Raises DataError where LAPACK gives up."""

    def call(*inputs: Array, **options: Any) -> Any:
        try:
            return function(*inputs, **options)
        except np.linalg.LinAlgError as error:
            got = "matrices" if all(np.isfinite(x).all() for x in inputs) else "NaN or infinity in matrices"
            raise DataError(f"{op}: expected {wanted}, got {got} {inputs[0].shape} where that fails: {error}") from None

    return call


def _flat(*outputs: Any, rank: int) -> Array:
    """Outputs one after the other along one last axis; `rank` leading axes stay."""
    shapes = [(*np.shape(part)[:rank], math.prod(np.shape(part)[rank:])) for part in outputs]
    return np.concatenate([np.reshape(part, shape) for part, shape in zip(outputs, shapes, strict=True)], -1)


_inv = _checked("inv", "invertible matrices", np.linalg.inv)
_solve = _checked("solve", "invertible matrices", np.linalg.solve)
_cholesky = _checked("cholesky", "positive definite matrices", np.linalg.cholesky)
_eigh = _checked("eigh", "finite matrices", np.linalg.eigh)
_eigvalsh = _checked("eigvalsh", "finite matrices", np.linalg.eigvalsh)
_eig = _checked("eig", "finite matrices", np.linalg.eig)
_eigvals = _checked("eigvals", "finite matrices", np.linalg.eigvals)
_svd = _checked("svd", "finite matrices", np.linalg.svd)
_pinv = _checked("pinv", "finite matrices", np.linalg.pinv)


_KERNELS: dict[str, Kernel] = {
    "inv": lambda a, x: _inv(x),
    "solve": lambda a, x, y: _solve(x, y),
    "cholesky": lambda a, x: _cholesky(x),
    "pinv": lambda a, x, rtol: _pinv(x, rtol=rtol),
    "det": lambda a, x: np.linalg.det(x),
    "slogdet": lambda a, x: np.stack(np.linalg.slogdet(x), -1),
    "eigh": lambda a, x: _flat(*_eigh(x), rank=x.ndim - 2),
    "eig": lambda a, x: _flat(*_eig(x), rank=x.ndim - 2),
    "svd": lambda a, x: _flat(*_svd(x, full_matrices=a["full"]), rank=x.ndim - 2),
    "qr": lambda a, x: _flat(*np.linalg.qr(x, mode="complete" if a["full"] else "reduced"), rank=x.ndim - 2),
    "eigvalsh": lambda a, x: _eigvalsh(x),
    "eigvals": lambda a, x: _eigvals(x),
    "svdvals": lambda a, x: _svd(x, compute_uv=False),
}


@cache
def _leaving_mmx() -> Callable[[], None]:
    try:
        from cyxcore.kernels.cpu import leave_mmx
    except ImportError:  # the devices that have no need of the kernels in C work without them
        return lambda: None
    return leave_mmx


def _after_mmx(kernel: Kernel) -> Kernel:
    def call(*inputs: Any) -> Any:
        _leaving_mmx()()
        return kernel(*inputs)

    return call


KERNELS = {op: _after_mmx(kernel) for op, kernel in _KERNELS.items()}
