"""Matrix products by cuBLASLt, called through ctypes: a bias and ReLU behind a product are made as it is stored,
instead of by a kernel of their own.

Names and numbers are those of NVIDIA's cublasLt.h and library_types.h. Column-major as in cublas.py: the operands
change places. cuBLASLt is asked once for each shape which algorithm to take. A product with a bias takes the one of the
same product without, or none: so it has the bits of a product, then an addition.
"""

import ctypes
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import KernelError
from cyxcore.kernels.gpu.compiling import pointer
from cyxcore.kernels.gpu.cublas import COMPUTE, CUDA_R_32F, OP_N, OP_T, check, load
from cyxcore.kernels.gpu.table import Launch, Product

WORKSPACE_BYTES = 32 * 2**20  # what NVIDIA recommends for compute capability 9.0
SHAPES_KEPT = 1024
ALIGNED = 16  # bytes: what the widest load takes. Not more, or a product's bits would hang on where its arrays lie
KINDS = {"float32": CUDA_R_32F, "float16": 2, "bfloat16": 14}  # cudaDataType_t

# cublasLtMatmulDescAttributes_t, cublasLtMatrixLayoutAttribute_t, cublasLtMatmulPreferenceAttributes_t
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER, BIAS_TYPE = 3, 4, 7, 8, 26
BATCH_COUNT, BATCH_STRIDE = 5, 6
MOST_WORKSPACE, LEAST_ALIGNMENTS = 1, (5, 6, 7, 8)
EPILOGUES = {
    (False, False): 1,
    (False, True): 2,
    (True, False): 4,
    (True, True): 6,
}  # (bias, ReLU) -> cublasLtEpilogue_t

_int, _pointer, _size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
FUNCTIONS: dict[str, list[Any]] = {
    "cublasLtCreate": [_pointer],
    "cublasLtMatmulDescCreate": [_pointer, _int, _int],
    "cublasLtMatmulDescSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatmulDescDestroy": [_pointer],
    "cublasLtMatrixLayoutCreate": [_pointer, _int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64],
    "cublasLtMatrixLayoutSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatrixLayoutDestroy": [_pointer],
    "cublasLtMatmulPreferenceCreate": [_pointer],
    "cublasLtMatmulPreferenceSetAttribute": [_pointer, _int, _pointer, _size],
    "cublasLtMatmulPreferenceDestroy": [_pointer],
    "cublasLtMatmulAlgoGetHeuristic": [*[_pointer] * 7, _int, _pointer, _pointer],
    "cublasLtMatmulAlgoCheck": [_pointer] * 8,
    "cublasLtMatmul": [*[_pointer] * 14, _size, _pointer],
}


class Shape(NamedTuple):
    """All that the choice of an algorithm depends on; the numbers are those of a Product."""

    kind: int
    batch: int
    m: int
    n: int
    k: int
    transpose_x: bool
    transpose_y: bool
    stride_x: int
    stride_y: int
    aligned: int  # bytes that divide all addresses


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", _size),
        ("status", _int),
        ("waves", ctypes.c_float),
        ("reserved", _int * 4),
    )


class Description:
    """A product as cuBLASLt is told of it. a, b and out: the layouts, with cuBLASLt's names, so `a` is of y."""

    def __init__(self, library: Any, shape: Shape, compute: int, bias: int = 0, relu: bool = False) -> None:
        self._library = library
        self.product = self._made("MatmulDesc", compute, CUDA_R_32F)
        for number, value in (
            (TRANSPOSE_A, ctypes.c_int32(OP_T if shape.transpose_y else OP_N)),
            (TRANSPOSE_B, ctypes.c_int32(OP_T if shape.transpose_x else OP_N)),
            (EPILOGUE, ctypes.c_uint32(EPILOGUES[bool(bias), relu])),
        ):
            self._set("MatmulDesc", self.product, number, value)
        if bias:
            self._set("MatmulDesc", self.product, BIAS_POINTER, ctypes.c_uint64(bias))
            self._set("MatmulDesc", self.product, BIAS_TYPE, ctypes.c_int32(shape.kind))
        m, n, k = shape.m, shape.n, shape.k
        self.a = self._layout(shape, *((k, n) if shape.transpose_y else (n, k)), shape.stride_y)
        self.b = self._layout(shape, *((m, k) if shape.transpose_x else (k, m)), shape.stride_x)
        self.out = self._layout(shape, n, m, m * n)

    def _layout(self, shape: Shape, rows: int, columns: int, stride: int) -> ctypes.c_void_p:
        """Of matrices without gaps."""
        layout = self._made("MatrixLayout", shape.kind, rows, columns, rows)
        if shape.batch > 1:
            self._set("MatrixLayout", layout, BATCH_COUNT, ctypes.c_int32(shape.batch))
            self._set("MatrixLayout", layout, BATCH_STRIDE, ctypes.c_int64(stride))
        return layout

    def _made(self, what: str, *arguments: int) -> ctypes.c_void_p:
        """A new object of cuBLASLt's, which goes when this one does."""
        made = _pointer()
        create, destroy = (getattr(self._library, f"cublasLt{what}{verb}") for verb in ("Create", "Destroy"))
        check(f"cublasLt{what}Create", create(ctypes.byref(made), *arguments))
        weakref.finalize(self, destroy, made)
        return made

    def _set(self, what: str, of: ctypes.c_void_p, number: int, value: Any) -> None:
        name = f"cublasLt{what}SetAttribute"
        check(f"{name} {number}", getattr(self._library, name)(of, number, ctypes.byref(value), ctypes.sizeof(value)))

    def preference(self, aligned: int) -> ctypes.c_void_p:
        """What an algorithm for it may take: this workspace, and no better aligned addresses than these."""
        made = self._made("MatmulPreference")
        self._set("MatmulPreference", made, MOST_WORKSPACE, ctypes.c_uint64(WORKSPACE_BYTES))
        for number in LEAST_ALIGNMENTS:
            self._set("MatmulPreference", made, number, ctypes.c_uint32(aligned))
        return made


class CublasLt:
    """One handle for one stream. Raises KernelError when the library is missing or refuses.

    relu: whether its ReLU is ours, which `trust` finds out. tell: is told why a product goes another way.
    """

    def __init__(self, stream: int, workspace: int, precision: str, tell: Callable[[str], object]) -> None:
        self.relu, self.tell = False, tell
        self._stream, self._workspace, self._compute = stream, workspace, COMPUTE[precision]
        self._library = library = load("libcublasLt")
        for name, types in FUNCTIONS.items():
            getattr(library, name).argtypes = types
        self._handle = _pointer()
        check("cublasLtCreate", library.cublasLtCreate(ctypes.byref(self._handle)))
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._known: OrderedDict[Shape, tuple[Description, Any] | None] = OrderedDict()

    def product(self, p: Product, otherwise: Callable[[], list[Launch]]) -> Launch | None:
        """A function that launches the product, or what `otherwise` prepares once cuBLASLt fails at it.

        None: for a dtype that is not in KINDS; where there is no algorithm; and where it takes another one with the
        bias or ReLU than without.
        """
        kind = KINDS.get(p.out.dtype.name)
        if kind is None or (p.relu and not self.relu):
            return None
        out, x, y = map(pointer, (p.out, p.x, p.y))
        bias = 0 if p.bias is None else pointer(p.bias)
        ends = p.bias is not None or p.relu
        together = out | x | y | ALIGNED
        shape = Shape(kind, p.batch, p.m, p.n, p.k, p.transpose_x, p.transpose_y, p.stride_x, p.stride_y,
                      together & -together)  # fmt: skip
        try:
            found = self._chosen(shape)
            if found is None:
                return None
            told, algorithm = found
            if ends:
                told = Description(self._library, shape, self._compute, bias, p.relu)
                if not self._goes_with(told, algorithm):
                    return None
        except KernelError as error:
            self._refuse(error, shape, ends)
            return None
        multiply, arguments = self._library.cublasLtMatmul, (
            self._handle, told.product,
            ctypes.addressof(self._one), y, told.a, x, told.b,
            ctypes.addressof(self._zero), out, told.out, out, told.out,
            ctypes.addressof(algorithm), self._workspace, WORKSPACE_BYTES, self._stream,
        )  # fmt: skip
        instead: list[Launch] = []

        def launch(keep: Any = (told, algorithm, p)) -> None:
            if not instead:
                try:
                    return check("cublasLtMatmul", multiply(*arguments))
                except KernelError as error:  # as only the device can tell: in a first run, which records nothing
                    self._refuse(error, shape, ends)
                    instead.extend(otherwise())
            for one in instead:
                one()

        return launch

    def _refuse(self, error: KernelError, shape: Shape, ends: bool) -> None:
        """Products of this shape go another way, unless it was for what comes behind; the first time, that is told."""
        if not ends:
            self._known[shape] = None
        tell, self.tell = self.tell, lambda _: None
        tell(f"{error}; {shape}")

    def _chosen(self, shape: Shape) -> tuple[Description, Any] | None:
        """The product without anything behind it, and cuBLASLt's first choice for it; None where it refused."""
        if shape not in self._known:
            told, heuristic, count = Description(self._library, shape, self._compute), Heuristic(), _int(0)
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                self._handle, told.product, told.a, told.b, told.out, told.out, told.preference(shape.aligned),
                1, ctypes.byref(heuristic), ctypes.byref(count),
            )  # fmt: skip
            check("cublasLtMatmulAlgoGetHeuristic", status or heuristic.status)
            if not count.value:
                raise KernelError("cuda: cublasLtMatmulAlgoGetHeuristic knows no algorithm")
            if len(self._known) >= SHAPES_KEPT:
                self._known.popitem(last=False)
            self._known[shape] = told, heuristic.algorithm
        return self._known[shape]

    def _goes_with(self, told: Description, algorithm: Any) -> bool:
        result = Heuristic()
        status = self._library.cublasLtMatmulAlgoCheck(
            self._handle, told.product, told.a, told.b, told.out, told.out, ctypes.addressof(algorithm),
            ctypes.byref(result),
        )  # fmt: skip
        return not status and result.workspace_bytes <= WORKSPACE_BYTES


def trust(lt: CublasLt, put: Callable[[Any], Any], get: Callable[[Any], Any]) -> None:
    """Compare products of small whole numbers, which are exact in any order, with NumPy's; sets lt.relu.

    put and get: an array to the device, and back. Raises KernelError where a product is wrong.
    """
    rng = np.random.default_rng(0)
    batch, m, n, k = 2, 12, 20, 28

    def made(x: Any, y: Any, transposes: tuple[bool, ...], bias: Any, relu: bool) -> Any:
        """The result, or None where it does not go in one launch: nothing will be made of that then."""
        out = put(np.full((batch, m, n), 77, np.float32))
        p = Product(out, put(x), put(y), batch, m, n, k, transposes[0], transposes[1], m * k, 0)
        launch = lt.product(p._replace(bias=None if bias is None else put(bias), relu=relu), list)
        if launch is None:
            return None
        launch()
        return get(out)

    for transposes in itertools.product((False, True), repeat=2):
        x, y, bias = (rng.integers(-4, 5, s).astype(np.float32) for s in ((batch, m, k), (k, n), n))
        given = [np.array(a.swapaxes(-1, -2) if t else a, order="C") for a, t in zip((x, y), transposes, strict=True)]
        for added in (None, bias):
            got = made(given[0], given[1], transposes, added, False)
            if got is not None and not np.array_equal(got, x @ y + (0 if added is None else added)):
                raise KernelError(f"cuda: cuBLASLt made a wrong product ({transposes=}, bias: {added is not None})")
    x[0, 0, 0], lt.relu = np.nan, True
    got = made(x, y, (False, False), bias, True)
    sums = x @ y + bias
    lt.relu = got is not None and np.array_equal(got, np.where(sums < 0, 0, sums), equal_nan=True)
