"""NVIDIA's driver, cuBLAS and cuBLASLt as far as Cyx calls them, on the host's memory: what they are told is taken at
its word, as NVIDIA's documentation says. Their functions are called as those of a C library are."""

import ctypes
import itertools
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NOT_SUPPORTED, INTERNAL_ERROR = 15, 14  # cublasStatus_t
DTYPES = {0: np.float32, 1: np.float64}  # by cudaDataType_t
RELU, BIAS = 2, 4  # bits of cublasLtEpilogue_t
ALGORITHM = 0xA160

_int, _long, _pointer, _size = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p, ctypes.c_size_t


class Driver:
    """CUDA's driver as far as launches go: it reads the parameters where it is told that they lie."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self) -> None:
        self.images: list[bytes] = []
        self.attributes: list[tuple[int, ...]] = []
        self.launches: list[tuple[int, ...]] = []
        self.sizes: dict[int, list[int]] = {}  # of the parameters of each function
        self.parameters: list[list[int]] = []

    def moduleLoadData(self, code: bytes) -> int:
        self.images.append(code)
        return len(self.images)

    def moduleGetFunction(self, module: int, name: str) -> int:
        assert b".text." + name.encode() in self.images[module - 1]
        return 1000 + module

    def funcSetAttribute(self, *given: int) -> None:
        self.attributes.append(given)

    def launchKernel(self, function: int, *rest: int) -> None:
        *numbers, where, extra = rest
        sizes = self.sizes[function]
        places = (ctypes.c_void_p * len(sizes)).from_address(where)
        values = [ctypes.string_at(place, size) for place, size in zip(places, sizes, strict=True)]
        self.parameters.append([int.from_bytes(value, "little", signed=True) for value in values])
        self.launches.append((function, *numbers, extra))


class Stream:
    """A stream whose work is done at once; what is recorded runs when it is launched."""

    ptr = 0x5EED

    def __init__(self) -> None:
        self.captures = self.launched = 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin_capture(self) -> None:
        self.captures += 1

    def end_capture(self) -> Any:
        def launch(stream: Any) -> None:
            self.launched += 1

        return SimpleNamespace(upload=lambda stream: None, launch=launch)


class Library:
    """What ctypes.CDLL would be. errors: what went wrong within a function."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.calls: list[str] = []

    def _offer(self, name: str, function: Callable[..., int], *types: Any) -> None:
        def called(*given: Any) -> int:
            self.calls.append(name)
            try:
                return function(*given)
            except Exception:
                self.errors.append(traceback.format_exc())
                return INTERNAL_ERROR

        setattr(self, name, ctypes.CFUNCTYPE(_int, *types)(called))


def matrices(address: int, kind: int, shape: tuple[int, int, int], ld: int, stride: int) -> Array:
    """(batch, rows, columns) column by column, of an address."""
    dtype = np.dtype(DTYPES[kind])
    batch, rows, columns = shape
    assert ld >= rows
    count = (batch - 1) * stride + (columns - 1) * ld + rows
    flat = np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype)
    steps = tuple(step * dtype.itemsize for step in (stride, 1, ld))
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=True)


class Cublas(Library):
    """cublasGemmStridedBatchedEx; alpha must be 1 and beta 0."""

    def __init__(self) -> None:
        super().__init__()
        matrix = (_pointer, _int, _int, _long)
        self._offer("cublasCreate_v2", lambda handle: 0, _pointer)
        self._offer("cublasSetStream_v2", lambda handle, stream: 0, _pointer, _pointer)
        self._offer("cublasSetWorkspace_v2", lambda handle, at, size: 0, _pointer, _pointer, _size)
        self._offer("cublasGemmStridedBatchedEx", self._gemm, _pointer, *[_int] * 5, _pointer,
                    *matrix, *matrix, _pointer, *matrix, _int, _int, _int)  # fmt: skip

    def _gemm(self, handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, *rest: int) -> int:
        a, kind, lda, step_a, b, _, ldb, step_b, beta, c, _, ldc, step_c, batch, _, _ = rest
        number = ctypes.c_float if kind == 0 else ctypes.c_double
        assert (number.from_address(alpha).value, number.from_address(beta).value) == (1, 0)
        left = matrices(a, kind, (batch, *((k, m) if ta else (m, k))), lda, step_a)
        right = matrices(b, kind, (batch, *((n, k) if tb else (k, n))), ldb, step_b)
        product = (left.swapaxes(1, 2) if ta else left) @ (right.swapaxes(1, 2) if tb else right)
        matrices(c, kind, (batch, m, n), ldc, step_c)[...] = product
        return 0


class CublasLt(Library):
    """cuBLASLt, which multiplies as it is told, or does not: see the attributes.

    known: whether it has an algorithm. goes: whether that goes with an epilogue, as it says; ends: whether it does.
    status: of a product. wrong: what is added to each. keeps_nan: whether its ReLU does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = True
        self.known, self.goes, self.status, self.wrong, self.keeps_nan = True, True, 0, 0.0, True
        self.objects: dict[int, dict[Any, Any]] = {}
        self.epilogues: list[int] = []
        self._numbers = itertools.count(0x1000)
        self._offer("cublasLtCreate", self._create, _pointer)
        for what, made_of in (
            ("MatmulDesc", (_int, _int)),
            ("MatrixLayout", (_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64)),
            ("MatmulPreference", ()),
        ):
            self._offer(f"cublasLt{what}Create", self._create, _pointer, *made_of)
            self._offer(f"cublasLt{what}SetAttribute", self._set, _pointer, _int, _pointer, _size)
            self._offer(f"cublasLt{what}Destroy", self._destroy, _pointer)
        self._offer("cublasLtMatmulAlgoGetHeuristic", self._heuristic, *[_pointer] * 7, _int, _pointer, _pointer)
        self._offer("cublasLtMatmulAlgoCheck", self._check, *[_pointer] * 8)
        self._offer("cublasLtMatmul", self._matmul, *[_pointer] * 14, _size, _pointer)

    def _create(self, where: int, *made_of: int) -> int:
        number = next(self._numbers)
        self.objects[number] = {"made_of": made_of}
        ctypes.c_void_p.from_address(where).value = number
        return 0

    def _set(self, number: int, attribute: int, at: int, size: int) -> int:
        self.objects[number][attribute] = int.from_bytes(ctypes.string_at(at, size), "little", signed=True)
        return 0

    def _destroy(self, number: int) -> int:
        del self.objects[number]
        return 0

    def _heuristic(self, handle: int, desc: int, a: int, b: int, c: int, d: int, preference: int, *rest: int) -> int:
        wanted, results, count = rest
        assert wanted == 1 and c == d and all(number in self.objects for number in (handle, desc, a, b, d, preference))
        asked = self.objects[preference]
        assert asked[1] >= 2**20 and len({asked[number] for number in (5, 6, 7, 8)}) == 1
        ctypes.c_int.from_address(count).value = int(self.known)
        (ctypes.c_uint64 * 8).from_address(results)[:] = [ALGORITHM, asked[5], 0, 0, 0, 0, 0, 7]
        return 0

    def _check(self, handle: int, desc: int, a: int, b: int, c: int, d: int, algorithm: int, result: int) -> int:
        assert ctypes.c_uint64.from_address(algorithm).value == ALGORITHM
        return 0 if self.goes else NOT_SUPPORTED

    def _matrices(self, layout: int, address: int) -> Array:
        about = self.objects[layout]
        kind, rows, columns, ld = about["made_of"]
        return matrices(address, kind, (about.get(5, 1), rows, columns), ld, about.get(6, 0))

    def _matmul(self, handle: int, desc: int, *rest: int) -> int:
        alpha, a, la, b, lb, beta, c, lc, d, ld, algorithm, workspace, size, stream = rest
        about = self.objects[desc]
        first, aligned, *_, last = (ctypes.c_uint64 * 8).from_address(algorithm)
        assert (first, last, about["made_of"][1], (c, lc)) == (ALGORITHM, 7, 0, (d, ld))
        assert [ctypes.c_float.from_address(number).value for number in (alpha, beta)] == [1, 0]
        assert workspace and size and stream == Stream.ptr
        assert all(address % aligned == 0 for address in (a, b, d))
        if self.status or (about[7] != 1 and not self.ends):
            return self.status or NOT_SUPPORTED
        left, right = (x.swapaxes(1, 2) if about[attribute] else x
                       for attribute, x in ((3, self._matrices(la, a)), (4, self._matrices(lb, b))))  # fmt: skip
        found, epilogue = left @ right + np.float32(self.wrong), about[7]
        if epilogue & BIAS:
            rows = found.shape[1]
            assert about[26] == self.objects[ld]["made_of"][0]
            found = found + matrices(about[8], about[26], (1, rows, 1), rows, 0)
        if epilogue & RELU:
            found = np.maximum(found, 0) if self.keeps_nan else np.fmax(found, 0)
        self.epilogues.append(epilogue)
        self._matrices(ld, d)[...] = found
        return 0
