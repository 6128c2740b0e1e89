"""The backend `cuda`: device memory, launches, and whole programs replayed as one CUDA graph.

One stream does everything, in order. It waits for the default stream and that waits for it, so arrays may be shared
with CuPy code of the user's. Device 0 of CUDA_VISIBLE_DEVICES is used.
"""

import ctypes
import functools
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore.errors import DataError, KernelError, MissingExtra
from cyxcore.kernels.gpu import compiling, cublaslt, fusion, table
from cyxcore.kernels.gpu.cublas import WORKSPACE_BYTES, Cublas, cupy_advice
from cyxcore.kernels.gpu.table import FAULTY, Launch, Product

try:
    import cupy
    from cupy.cuda import driver, runtime
except ImportError as error:
    raise MissingExtra(f"cuda: the package cupy is missing ({error}); {cupy_advice()}") from None

Array = Any
GRID_LIMIT = (2**31 - 1, 65_535, 65_535)
SCALARS_KEPT = 256
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind


class Cuda:
    """Kernels on the device. precision: of float32 products, "ieee" or "tf32" (10 bits of mantissa, many times faster).

    lt: whether cuBLASLt makes the products of float32; None: as CYX_CUBLASLT of the environment says, 1 or 0 (the
    default). Raises KernelError when no device answers.
    """

    xp = cupy

    def __init__(self, precision: str = "ieee", lt: bool | None = None) -> None:
        self.precision = precision
        try:
            found = runtime.getDeviceCount()
        except runtime.CUDARuntimeError as error:
            raise KernelError(
                f"cuda: no NVIDIA driver answers ({error}); install one that nvidia-smi can talk to, or train on cpu"
            ) from None
        if not found:
            raise KernelError("cuda: the NVIDIA driver shows no device (is CUDA_VISIBLE_DEVICES empty?)")
        self.arch = int(cupy.cuda.Device().compute_capability)
        if self.arch < 80:
            raise KernelError(f"cuda: expected compute capability 8.0 or higher, this device has {self.arch / 10}")
        self.stream = cupy.cuda.Stream()
        with self.stream:
            self.faults = cupy.zeros(len(FAULTY), np.int32)
            self._workspace = cupy.empty(WORKSPACE_BYTES, np.uint8)
        self._blas = Cublas(self.stream.ptr, self._workspace.data.ptr, precision)
        self.lt = self._open_lt() if (lt_asked() if lt is None else lt) else None
        self._functions: dict[Any, tuple[int, compiling.Binary]] = {}
        self._modules: list[int] = []
        self._scalars: OrderedDict[tuple[str, bytes], Array] = OrderedDict()

    def _open_lt(self) -> "cublaslt.CublasLt | None":
        """cuBLASLt, if it is there and multiplies as it should."""
        try:
            with self.stream:
                self._lt_workspace = cupy.empty(cublaslt.WORKSPACE_BYTES, np.uint8)
            workspace = compiling.pointer(self._lt_workspace)
            found = cublaslt.CublasLt(self.stream.ptr, workspace, self.precision, refuse)
            cublaslt.trust(found, self.put, functools.partial(cupy.asnumpy, stream=self.stream))
        except (KernelError, AttributeError) as error:  # AttributeError: a library without one of the functions
            say_by_cublas("any product", str(error))
            return None
        found.tell = functools.partial(say_by_cublas, "some products")
        return found

    # memory -------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self.stream:
            return cupy.empty(shape, dtype)

    def put(self, array: Array) -> Array:
        """The array on the device, contiguous: itself where it is there already, otherwise a copy."""
        if isinstance(array, cupy.ndarray) and array.flags.c_contiguous:
            return array
        with self.stream:
            there = cupy.asarray(array)
            return there if there.flags.c_contiguous else cupy.ascontiguousarray(there)

    def assign(self, target: Array, source: Array) -> None:
        """target[...] = source, both here."""
        alike = target.dtype == source.dtype and target.shape == source.shape
        if alike and source.flags.c_contiguous and target.flags.c_contiguous:
            runtime.memcpyAsync(target.data.ptr, source.data.ptr, target.nbytes, ON_DEVICE, self.stream.ptr)
        else:
            with self.stream:
                target[...] = source

    def scalar(self, array: np.ndarray[Any, Any]) -> Array:
        """A 0-d array on the device. Kept, since the same few numbers come again and again; not to be written to."""
        key = (array.dtype.name, array.tobytes())
        found = self._scalars.get(key)
        if found is None:
            if len(self._scalars) >= SCALARS_KEPT:
                self._scalars.popitem(last=False)
            found = self._scalars[key] = self.put(array)
        return found

    def memory(self, size_bytes: int) -> Array:
        return self.empty((max(size_bytes, 1),), "uint8")

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        return cupy.ndarray(shape, dtype, memptr=memory.data + offset)

    def staging(self, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
        """A zeroed host array in page-locked memory, which copies run from and to at full speed."""
        count = math.prod(shape)
        pinned = cupy.cuda.alloc_pinned_memory(max(count, 1) * np.dtype(dtype).itemsize)
        array = np.frombuffer(pinned, dtype, count).reshape(shape)
        array[...] = 0
        return array

    # what rows of the table ask for -----------------------------------------------------------------

    def kernel(
        self, function: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any], warps: int = 4
    ) -> Launch:
        types, fixed, values = compiling.split_arguments(function, args, constants)
        key = (function, tuple(types.values()), tuple(fixed.items()), warps)
        known = self._functions.get(key)
        if known is None:
            binary = compiling.compiled(function, types, fixed, self.arch, warps, contract=False)
            known = self._functions[key] = self._load(binary), binary
        handle, binary = known
        sizes = (*grid, 1, 1)[:3]
        if any(size > limit for size, limit in zip(sizes, GRID_LIMIT, strict=True)):
            raise KernelError(f"cuda: {binary.name} would need a grid of {sizes}, the device takes {GRID_LIMIT}")
        return launcher(handle, binary, sizes, values, self.stream.ptr)

    def _load(self, binary: compiling.Binary) -> int:
        module = driver.moduleLoadData(binary.code)
        self._modules.append(module)
        handle: int = driver.moduleGetFunction(module, binary.name)
        if binary.shared_bytes > 49_152:
            limit = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(handle, limit, binary.shared_bytes)
        return handle

    def copy(self, target: Array, view: Array) -> Launch:
        return lambda: cupy.copyto(target, view)

    def fill(self, target: Array, value: float) -> Launch:
        return lambda: target.fill(value)

    def product(self, product: Product) -> Launch:
        def by_cublas() -> list[Launch]:
            return [self._blas.product(product)]

        return self.ended(product, by_cublas) or by_cublas()[0]

    def ended(self, product: Product, apart: Callable[[], list[Launch]]) -> Launch | None:
        return self.lt.product(product, apart) if self.lt else None

    def fault(self, op: str) -> Array:
        place = FAULTY.index(op)
        return self.faults[place : place + 1]

    # running ----------------------------------------------------------------------------------------

    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        """One op at once. Host arrays are copied there and back."""
        check_supported(op, out, inputs)
        if isinstance(out, np.ndarray):
            there = self.empty(out.shape, out.dtype.name)
            placed = {id(x): there if x is out else self.put(x) for x in inputs}
            if any(x is out for x in inputs):
                there.set(np.ascontiguousarray(out), self.stream)
            self.call(op, there, [placed[id(x)] for x in inputs], attrs)
            out[...] = there.get(stream=self.stream)
            return
        given = [self.scalar(x) if isinstance(x, np.ndarray) and not x.ndim else self.put(x) for x in inputs]
        with self.stream:
            for launch in table.launches(self, op, out, given, attrs):
                launch()
        if op in FAULTY:
            self.check(self.faults.get(stream=self.stream))

    def check(self, faults: np.ndarray[Any, Any]) -> None:
        """Raises DataError where a kernel met an index that is out of range; the next call starts clean."""
        if faults.any():
            with self.stream:
                self.faults.fill(0)
            op = FAULTY[int(faults.argmax())]
            raise DataError(f"{op}: an index or label is out of range; results of this call mean nothing")

    def program(
        self,
        calls: Sequence[Any],
        sends: Sequence[tuple[Array, Array]] = (),
        fetches: Sequence[tuple[Array, Array]] = (),
        scratch: Array = None,
        results: Sequence[Array] = (),
        stretches: Sequence[Any] = (),
    ) -> Callable[[], None]:
        """All calls in order. sends: (device, host) copied before; fetches: (host, device) copied after."""
        return Program(self, calls, sends, fetches, scratch, results).run


def lt_asked() -> bool:
    """Whether the environment asks for cuBLASLt. Raises KernelError."""
    said = os.environ.get("CYX_CUBLASLT", "")
    if said not in ("", "0", "1"):
        raise KernelError(f"cuda: CYX_CUBLASLT in the environment: expected 1 or 0, got {said!r}")
    return said == "1"


def refuse(why: str) -> None:
    raise KernelError(why)


def say_by_cublas(what: str, why: str) -> None:
    """Products go another way than was asked for."""
    warnings.warn(f"CYX_CUBLASLT: cuBLASLt does not make {what}, so cuBLAS does: {why}", RuntimeWarning, stacklevel=2)


def check_supported(op: str, out: Array, inputs: Sequence[Array]) -> None:
    """Raises KernelError when there is no kernel for this op, or for these element types."""
    dtypes = [x.dtype.name for x in (*inputs, out)]
    if not table.supports(op) or any(name not in compiling.POINTERS for name in dtypes):
        raise KernelError(f"cuda: no kernel for {op!r} of {', '.join(dtypes[:-1])}; use astype, or .to('cpu')")


def span(array: Array) -> fusion.Span:
    start = compiling.pointer(array)
    return start, start + array.nbytes


def launcher(
    handle: int, binary: compiling.Binary, grid: tuple[int, ...], values: Sequence[Any], stream: int
) -> Launch:
    """A function that launches the kernel on these arguments, again and again."""
    kinds = {"i32": ctypes.c_int32, "i64": ctypes.c_int64}
    cells: list[Any] = [
        ctypes.c_void_p(compiling.pointer(value)) if kind[0] == "*" else kinds[kind](value)
        for kind, value in zip(binary.types, values, strict=True)
    ]
    cells += [ctypes.c_void_p(0)] * binary.trailing
    addresses = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
    where, threads = ctypes.addressof(addresses), 32 * binary.warps
    start = driver.launchKernel

    def launch(keep: Any = (cells, addresses, values)) -> None:
        start(handle, *grid, threads, 1, 1, binary.shared_bytes, stream, where, 0)

    return launch


class Program:
    """Launches in order. The first run makes them one by one, which also warms what is made at first use (CuPy's own
    kernels); the second records a CUDA graph; from then on a run is one launch."""

    def __init__(
        self,
        cuda: Cuda,
        calls: Sequence[Any],
        sends: Sequence[tuple[Array, Array]],
        fetches: Sequence[tuple[Array, Array]],
        scratch: Array,
        results: Sequence[Array],
    ) -> None:
        self.cuda, self.runs = cuda, 0
        self.graph: Any = None
        self._kept = (calls, sends, fetches, scratch, results)  # a graph knows addresses only
        self._faults = cuda.staging((len(FAULTY),), "int32") if any(call.op in FAULTY for call in calls) else None
        if self._faults is not None:
            fetches = [*fetches, (self._faults, cuda.faults)]
        self._waits = bool(fetches or sends)  # the caller reads, or fills the host's side again
        self.launches: list[Launch] = [self._send(there, here) for there, here in sends]
        for call in calls:
            check_supported(call.op, call.out, call.inputs)
        arena = span(scratch) if scratch is not None else (0, 0)
        with cuda.stream:
            for part in fusion.parts(calls, span, arena, results, endings=cuda.lt is not None):
                call = calls[part.first]
                if part.steps:
                    self.launches += table.chain(cuda, part.inputs, part.steps, part.stores)
                elif part.ending:
                    self.launches += table.ended_product(cuda, call, part.ending)
                else:
                    self.launches += table.launches(cuda, call.op, call.out, part.inputs, call.attrs)
        self.launches += [self._fetch(here, there) for here, there in fetches]

    def _send(self, there: Array, here: np.ndarray[Any, Any]) -> Launch:
        to, origin, size, stream = there.data.ptr, here.ctypes.data, here.nbytes, self.cuda.stream.ptr
        return lambda: runtime.memcpyAsync(to, origin, size, TO_DEVICE, stream)

    def _fetch(self, here: np.ndarray[Any, Any], there: Array) -> Launch:
        to, origin, size, stream = here.ctypes.data, there.data.ptr, here.nbytes, self.cuda.stream.ptr
        return lambda: runtime.memcpyAsync(to, origin, size, TO_HOST, stream)

    def direct(self) -> None:
        """Every launch by itself."""
        for launch in self.launches:
            launch()

    def run(self) -> None:
        stream = self.cuda.stream
        with stream:
            if self.runs == 0:
                self.direct()
            else:
                if self.graph is None:
                    stream.begin_capture()
                    try:
                        self.direct()
                    finally:
                        self.graph = stream.end_capture()
                    self.graph.upload(stream)
                self.graph.launch(stream)
        self.runs += 1
        if self._waits:
            stream.synchronize()
        if self._faults is not None:
            self.cuda.check(self._faults)
