"""The matrix factorizations in NumPy's LAPACK. cyxcore/kernels/standard.py takes them over.

Their last bits depend on the machine and its BLAS, but on no count of threads: an OpenBLAS, which NumPy's wheels bring,
makes them by one. A second one makes other bits from 100 x 100 on, and most of them slower: its threads share pieces
too small to pay for meeting, and wait for each other where others use the processor.
"""

import ctypes
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from cyxcore.errors import DataError
from cyxcore.forks import renew_in_children, undivided

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


SHARED_BY_NONE = 16  # OpenBLAS makes matrices of so many rows and columns by one thread anyway

_turn = Lock()
_inside, _threads_before = 0, 1  # how many kernels compute, and how many threads OpenBLAS had before the first of them
renew_in_children(sys.modules[__name__], "_turn")


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """(threads, set_threads) of the OpenBLAS that NumPy's LAPACK is in; None: it is in another library."""
    try:
        library = ctypes.CDLL(sys.modules["numpy.linalg._umath_linalg"].__file__)
    except (KeyError, OSError, TypeError):
        return None
    for name in ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}"):
        if hasattr(library, name.format("get_num_threads")):
            return tuple(getattr(library, name.format(verb)) for verb in ("get_num_threads", "set_num_threads"))
    return None


@contextmanager
def _by_one_thread() -> Iterator[None]:
    """The count is of the whole process: the first of the threads that compute here sets it, the last puts it back."""
    global _inside, _threads_before
    if (openblas := _openblas()) is None:
        yield
        return
    threads, set_threads = openblas
    with undivided():
        with _turn:
            if not _inside and (_threads_before := threads()) != 1:
                set_threads(1)
            _inside += 1
        try:
            yield
        finally:
            with _turn:
                _inside -= 1
                if not _inside and _threads_before != 1:
                    set_threads(_threads_before)


def _called(kernel: Kernel) -> Kernel:
    def call(attrs: Attrs, *inputs: Any) -> Any:
        _leaving_mmx()()
        if max(side for x in inputs for side in np.shape(x)[-2:] or (0,)) <= SHARED_BY_NONE:
            return kernel(attrs, *inputs)
        with _by_one_thread():
            return kernel(attrs, *inputs)

    return call


KERNELS = {op: _called(kernel) for op, kernel in _KERNELS.items()}
