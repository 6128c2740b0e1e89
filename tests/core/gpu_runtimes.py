"""Stand-ins for a device in the tests of its kernels: Triton's interpreter, and its compiler without a launch."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore.kernels.gpu import compiling, table

Array = np.ndarray[Any, Any]


class Host:
    """What does not differ: memory and movement are NumPy's."""

    xp = np
    precision = "ieee"

    def __init__(self) -> None:
        self.faults = np.zeros(len(table.FAULTY), np.int32)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.empty(shape, dtype)

    def copy(self, target: Array, view: Array) -> table.Launch:
        return lambda: np.copyto(target, view)

    def fill(self, target: Array, value: float) -> table.Launch:
        return lambda: target.fill(value)

    def fault(self, op: str) -> Array:
        place = table.FAULTY.index(op)
        return self.faults[place : place + 1]

    def product(self, product: table.Product) -> table.Launch:
        return lambda: multiply(product)

    def ended(self, product: table.Product, apart: Callable[[], list[table.Launch]]) -> table.Launch | None:
        return self.product(product)


def multiply(p: table.Product) -> None:
    """What cuBLAS or cuBLASLt is asked to do, done by NumPy on the same pointers and strides."""

    def matrices(array: Array, rows: int, columns: int, stride: int) -> Array:
        step = array.itemsize
        shape, strides = (p.batch, rows, columns), (stride * step, columns * step, step)
        return np.lib.stride_tricks.as_strided(array.reshape(-1), shape, strides)

    x = matrices(p.x, *((p.k, p.m) if p.transpose_x else (p.m, p.k)), p.stride_x)
    y = matrices(p.y, *((p.n, p.k) if p.transpose_y else (p.k, p.n)), p.stride_y)
    left, right = x.swapaxes(1, 2) if p.transpose_x else x, y.swapaxes(1, 2) if p.transpose_y else y
    result = left @ right if p.bias is None else left @ right + p.bias
    p.out.reshape(p.batch, p.m, p.n)[...] = np.maximum(result, 0) if p.relu else result


class Argument:
    """A NumPy array as Triton's interpreter expects a tensor: it works on the array's own memory."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.dtype = "uint8" if array.dtype == np.bool_ else array.dtype.name

    def data_ptr(self) -> int:
        return int(self.array.__array_interface__["data"][0])

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def storage_offset(self) -> int:
        return 0

    def _same(self, *_: Any, **__: Any) -> "Argument":
        return self

    untyped_storage = cpu = new_empty = set_ = copy_ = _same


class Interpreted(Host):
    """Runs kernels in Triton's interpreter; TRITON_INTERPRET=1 must be set before triton is first imported."""

    def __init__(self) -> None:
        super().__init__()
        from cyxcore.kernels.gpu import helpers

        helpers.libdevice = Libdevice
        mend_interpreter()

    def kernel(
        self, function: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any], warps: int = 4
    ) -> table.Launch:
        given = [Argument(x) if isinstance(x, np.ndarray) else x for x in args]
        whole = (*grid, 1, 1)[:3]
        return lambda: function[whole](*given, **constants)


def mend_interpreter() -> None:
    """Two things Triton 3.6's interpreter gets wrong: scalars as loop bounds (NumPy >= 2.4), and truths as scalars."""
    import triton.runtime.interpreter as interpreter

    if getattr(interpreter, "_mended_for_cyx", False):
        return
    interpreter._mended_for_cyx = True
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def splat(self: Any, result: Any, value: Any) -> Any:
        data = np.full(result.shape, value.data.reshape(-1)[0], value.data.dtype)
        return interpreter.TensorHandle(data, value.dtype.scalar)

    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_splat = splat


class Libdevice:
    """NumPy's functions where a device has CUDA's; the interpreter knows none of those."""

    @staticmethod
    def _apply(function: Any, *values: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        data = [value.handle.data for value in values]
        with np.errstate(all="ignore"):
            result = np.asarray(function(*data)).astype(data[0].dtype)
        kind = max(values, key=lambda value: value.handle.data.size).type
        return tl.tensor(TensorHandle(result, values[0].dtype.scalar), kind)

    exp = staticmethod(lambda x: Libdevice._apply(np.exp, x))
    log = staticmethod(lambda x: Libdevice._apply(np.log, x))
    log1p = staticmethod(lambda x: Libdevice._apply(np.log1p, x))
    tanh = staticmethod(lambda x: Libdevice._apply(np.tanh, x))
    sin = staticmethod(lambda x: Libdevice._apply(np.sin, x))
    cos = staticmethod(lambda x: Libdevice._apply(np.cos, x))
    pow = staticmethod(lambda a, b: Libdevice._apply(np.power, a, b))
    atan2 = staticmethod(lambda a, b: Libdevice._apply(np.arctan2, a, b))
    erf = staticmethod(lambda x: Libdevice._apply(np.vectorize(math.erf, otypes=[float]), x))
    erfc = staticmethod(lambda x: Libdevice._apply(np.vectorize(math.erfc, otypes=[float]), x))
    normcdf = staticmethod(
        lambda x: Libdevice._apply(np.vectorize(lambda v: 0.5 * math.erfc(-v * math.sqrt(0.5)), otypes=[float]), x)
    )


class Compiled(Host):
    """Compiles every kernel for one compute capability and keeps what came out; launches nothing."""

    def __init__(self, arch: int) -> None:
        super().__init__()
        self.arch = arch
        self.binaries: dict[Any, compiling.Binary] = {}

    def kernel(
        self, function: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any], warps: int = 4
    ) -> table.Launch:
        types, fixed, _ = compiling.split_arguments(function, args, constants)
        key = (function, tuple(types.items()), tuple(fixed.items()), warps)
        if key not in self.binaries:
            self.binaries[key] = compiling.compiled(function, types, fixed, self.arch, warps, contract=False)
        return lambda: None
