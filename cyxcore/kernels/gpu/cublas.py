"""Matrix products by cuBLAS, called through ctypes: its own handle keeps one workspace, so that graphs can record it.

Names and numbers are those of NVIDIA's cublas_api.h and library_types.h. cuBLAS is column-major: out = x @ y of
row-major matrices is out^T = y^T @ x^T there, so the operands change places and nothing is copied.
"""

import ctypes
from typing import Any

from cyxcore.errors import KernelError
from cyxcore.kernels.gpu.compiling import pointer
from cyxcore.kernels.gpu.table import Launch, Product

WORKSPACE_BYTES = 64 * 2**20  # what NVIDIA recommends for compute capability 9.0 is 32 MiB
CUDA_R_32F, CUDA_R_64F = 0, 1
COMPUTE = {"ieee": 68, "tf32": 77, "float64": 70}  # CUBLAS_COMPUTE_32F, _32F_FAST_TF32, _64F
OP_N, OP_T = 0, 1
GEMM_DEFAULT = -1

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p


class Cublas:
    """One handle on one stream. Raises KernelError when the library is missing or refuses."""

    def __init__(self, stream: int, workspace: int, precision: str) -> None:
        self.precision = precision
        self._library = library = load("libcublas")
        library.cublasGemmStridedBatchedEx.argtypes = [
            _pointer, _int, _int, _int, _int, _int, _pointer,
            _pointer, _int, _int, _long, _pointer, _int, _int, _long,
            _pointer, _pointer, _int, _int, _long, _int, _int, _int,
        ]  # fmt: skip
        library.cublasSetStream_v2.argtypes = [_pointer, _pointer]
        library.cublasSetWorkspace_v2.argtypes = [_pointer, _pointer, ctypes.c_size_t]
        self._handle = _pointer()
        check("cublasCreate", library.cublasCreate_v2(ctypes.byref(self._handle)))
        check("cublasSetStream", library.cublasSetStream_v2(self._handle, stream))
        check("cublasSetWorkspace", library.cublasSetWorkspace_v2(self._handle, workspace, WORKSPACE_BYTES))
        self._one = {"float32": ctypes.c_float(1.0), "float64": ctypes.c_double(1.0)}
        self._zero = {"float32": ctypes.c_float(0.0), "float64": ctypes.c_double(0.0)}

    def product(self, p: Product) -> Launch:
        """A function that launches the product."""
        dtype = p.out.dtype.name
        kind = CUDA_R_32F if dtype == "float32" else CUDA_R_64F
        compute = COMPUTE[self.precision if dtype == "float32" else dtype]
        multiply, arguments = self._library.cublasGemmStridedBatchedEx, (
            self._handle,
            OP_T if p.transpose_y else OP_N,
            OP_T if p.transpose_x else OP_N,
            p.n, p.m, p.k, ctypes.addressof(self._one[dtype]),
            pointer(p.y), kind, p.k if p.transpose_y else p.n, p.stride_y,
            pointer(p.x), kind, p.m if p.transpose_x else p.k, p.stride_x,
            ctypes.addressof(self._zero[dtype]),
            pointer(p.out), kind, p.n, p.m * p.n, p.batch, compute, GEMM_DEFAULT,
        )  # fmt: skip

        def launch(keep: Any = p) -> None:
            check("cublasGemmStridedBatchedEx", multiply(*arguments))

        return launch


def check(what: str, status: int) -> None:
    if status:
        raise KernelError(f"cuda: {what} failed with status {status} (cublasStatus_t)")


def load(name: str) -> Any:
    """A library of NVIDIA's that comes with cuBLAS, by the name of its file before ".so". Raises KernelError."""
    import cupy

    try:
        from cupy.cuda import cublas  # finds the library where CuPy's packages put it, and loads it

        cublas.getVersion(cupy.cuda.device.get_cublas_handle())
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return ctypes.CDLL(f"{name}.so.{major}")
    except (ImportError, OSError) as error:
        raise KernelError(f"cuda: {name} was not found ({error}); {cupy_advice()}") from None


def cupy_advice() -> str:
    return "install Cyx with its extra cuda13 (driver 580 or later) or cuda12: pip install 'cyx[cuda13]'"
