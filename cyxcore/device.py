"""Where ops run: the only place a device is chosen.

A device is a name in DEVICES: "cpu" (compiled kernels), "reference" (NumPy, the definition), "cuda" (an NVIDIA
device) or "cuda-tf32" (the same with float32 products of 10-bit mantissas). On the cpu an op or dtype without a
compiled kernel runs by its definition, with NumPy. Graphs that travel hold only what has compiled kernels, whose bits
are the same on every machine. On the others what has no kernel is a KernelError.
To add a device: a class like Backend, and a row in DEVICES.
"""

import functools
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from cyxcore.errors import CyxError, KernelError, MissingExtra, SpecError
from cyxcore.kernels import reference
from cyxcore.kernels.bfloat16 import BFLOAT16, NUMPY_DTYPES

Array = Any  # numpy.ndarray, or cupy.ndarray where the device has its own memory

ALIGN_BYTES = 64  # a cache line, and the widest vector load
MOST_LANES = 16  # each has memory of its own
ORDERED = ("float32", "float64", "int64", "int32")  # what is sorted by its digits
LEAST_ORDERED = 256  # elements of a row; fewer are compared

FLOAT32, FLOAT16 = np.dtype("float32"), np.dtype("float16")
HALVES = frozenset((FLOAT16, BFLOAT16))  # of the size of float32
MOVES = frozenset("reshape transpose broadcast_to slice concat take take_along".split())  # no numbers change
WORD = np.dtype("uint16")
# What of float16, too, is made by float32's kernel and rounded once: NumPy does the same, slowly.
ROUNDED_ONCE = frozenset("matmul conv2d conv2d_grad_input conv2d_grad_weight".split())

# ndarray.dtype.name takes microseconds; this takes none.
DTYPE_NAMES: dict[Any, str] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


class Call(NamedTuple):
    """One kernel call bound to its arrays."""

    op: str
    out: Array
    inputs: tuple[Array, ...]
    attrs: Mapping[str, Any]


class Banded(NamedTuple):
    """Calls that run band by band (cyxcore/bands.py), bound to the arrays of band 0 on lane 0."""

    first: int  # the place of the first in the list of calls
    bands: int
    lanes: int
    # Of each call, for output and inputs: bytes to the next band's, the next lane's; of blocks as in Program.stretch.
    steps: list[list[tuple[int, ...]]]
    adds: Sequence[int] = ()  # which of these calls add up what all bands come to in one output
    blocks: int = 0  # so many bands in a row are blocks of rows of one matrix; 0: bands are of axis 0
    goes_on: bool = False  # blocks: the last, shorter ones; those that add up do so onto what is there
    kept: Sequence[int] = ()  # blocks: which of these calls make what is read outside
    length: int = 0  # blocks: the rows of each matrix


class Backend(Protocol):
    """What a device has to do."""

    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        """One op at once."""

    def program(
        self,
        calls: Sequence[Call],
        sends: Sequence[tuple[Array, Array]] = (),
        fetches: Sequence[tuple[Array, Array]] = (),
        scratch: Any = None,
        results: Sequence[Array] = (),
        stretches: Sequence[Banded] = (),
    ) -> Callable[[], None]:
        """A function that makes all calls in order; arrays may be refilled between runs.

        sends: (device array, host array) copied before; fetches: (host array, device array) copied after. scratch:
        the arena; of what is in it, only `results` must be whole after a run. stretches: calls that run in bands, only
        for a device that has `lanes`. A device whose memory is the host's gets no sends and fetches.
        """

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array: ...

    def put(self, array: Array) -> Array:
        """The array where this device computes, contiguous: itself if it is there already."""

    def assign(self, target: Array, source: Array) -> None:
        """target[...] = source, both where this device computes."""

    def best(self, x: Array, k: int, axis: int, largest: bool) -> Array | None:
        """Where the k greatest (or least) along an axis are, as a stable sort has them; None: let it find them."""

    def memory(self, size_bytes: int) -> Array:
        """Bytes to place arrays in, aligned to ALIGN_BYTES."""

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        """An array at an offset in bytes of `memory`."""

    def staging(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A zeroed host array for what goes to the device or comes from it."""


class HostMemory:
    """The memory half of a backend that computes in the host's memory."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.empty(shape, NUMPY_DTYPES[dtype])

    def put(self, array: Array) -> Array:
        held = host(array)
        return held if held.flags.c_contiguous else np.ascontiguousarray(held)

    def assign(self, target: Array, source: Array) -> None:
        target[...] = source

    def best(self, x: Array, k: int, axis: int, largest: bool) -> Array | None:
        return None

    def memory(self, size_bytes: int) -> Array:
        raw = np.empty(size_bytes + ALIGN_BYTES, np.uint8)
        start = -raw.__array_interface__["data"][0] % ALIGN_BYTES
        return raw[start : start + size_bytes]

    def view(self, memory: Array, offset: int, shape: tuple[int, ...], dtype: str) -> Array:
        return np.ndarray(shape, NUMPY_DTYPES[dtype], memory, offset)

    def staging(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.zeros(shape, NUMPY_DTYPES[dtype])


class Reference(HostMemory):
    """Every op in NumPy."""

    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        reference.call(op, out, inputs, attrs)

    def program(
        self,
        calls: Sequence[Call],
        sends: Sequence[tuple[Array, Array]] = (),
        fetches: Sequence[tuple[Array, Array]] = (),
        scratch: Any = None,
        results: Sequence[Array] = (),
        stretches: Sequence[Banded] = (),
    ) -> Callable[[], None]:
        def run() -> None:
            for op, out, inputs, attrs in calls:
                reference.call(op, out, inputs, attrs)

        return run


class Cpu(HostMemory):
    """The compiled kernels. Raises KernelError when they are not built.

    terms: of programs, into which their products may split float32 (cyxcore/precision.py).
    """

    def __init__(self, terms: int = 0) -> None:
        self._terms = terms
        try:
            self.kernels: Any = importlib.import_module("cyxcore.kernels.cpu")
        except ImportError as error:
            raise KernelError(
                f"cpu: the compiled kernels are missing ({error}); build them with `pip install "
                f"-e .` in the source "
                "tree (a C compiler is needed), or choose the slow NumPy device: "
                'cyxcore.use_device("reference")'
            ) from None
        self._known: dict[tuple[Any, ...], bool] = {}

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        wanted = NUMPY_DTYPES[dtype]
        if wanted == BFLOAT16:  # which has no number of NumPy's
            found: Array = self.kernels.aligned(shape, WORD.num).view(BFLOAT16)
            return found
        return self.kernels.aligned(shape, wanted.num)

    def has(self, op: str, out: Array, inputs: Sequence[Array]) -> bool:
        """Whether there is a compiled kernel for these element types."""
        key = (op, out.dtype, *[x.dtype for x in inputs])
        known = self._known.get(key)
        if known is None:
            known = self.kernels.supports(op, tuple([DTYPE_NAMES[x.dtype] for x in inputs]))
            if op == "cast":  # the one op whose result has a dtype of its own
                known = known and self.kernels.supports(op, (DTYPE_NAMES[out.dtype],))
            self._known[key] = known
        return known

    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        if self.has(op, out, inputs):
            self.kernels.call(op, out, inputs, attrs)
        elif op == "argsort" and self._ordered(out, inputs[0], attrs["axis"], attrs["descending"]):
            return
        elif not self._made_of_halves(op, out, inputs, attrs):
            reference.call(op, out, inputs, attrs)

    def _made_of_halves(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> bool:
        """Whether a cast of float16, or any op of bfloat16, was made: by float32's kernel, or by moving words."""
        narrow = out.dtype in HALVES
        if not (narrow or any(x.dtype in HALVES for x in inputs)) or not out.flags.c_contiguous or op == "pad":
            return False
        if op in MOVES:
            reference.call(op, out.view(WORD), [x.view(WORD) if x.dtype == out.dtype else x for x in inputs], attrs)
            return True
        if op == "cast" and out.dtype == inputs[0].dtype:
            out[...] = inputs[0]
            return True
        if op == "cast" and FLOAT32 in (out.dtype, inputs[0].dtype):
            self.kernels.cast_halves(self.put(inputs[0]), out)
            return True
        if FLOAT16 in (out.dtype, *[x.dtype for x in inputs]) and op not in ROUNDED_ONCE:
            return False  # NumPy's, which rounds each step; float64 would be rounded twice
        wide = [self._widened(x) if x.dtype in HALVES else x for x in inputs]
        result = self.empty(out.shape, "float32") if narrow else out
        if not self.has(op, result, wide):
            return False
        self.kernels.call(op, result, wide, attrs)
        if narrow:
            self.kernels.cast_halves(result, out)
        return True

    def _widened(self, x: Array) -> Array:
        wide = self.empty(x.shape, "float32")
        self.kernels.cast_halves(self.put(x), wide)
        return wide

    def _ordered(self, out: Array, x: Array, axis: int, descending: bool) -> bool:
        """Whether long rows were put in order digit by digit, which gives the same places in a fraction of the time."""
        if x.dtype.name not in ORDERED or x.shape[axis] < LEAST_ORDERED:
            return False
        rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        last = axis == x.ndim - 1
        found = out if last else np.empty(rows.shape, np.int64)
        flat = (-1, rows.shape[-1])
        self.kernels.order_rows(rows.reshape(flat), descending, found.reshape(flat))
        if not last:
            out[...] = np.moveaxis(found, -1, axis)
        return True

    def best(self, x: Array, k: int, axis: int, largest: bool) -> Array | None:
        if x.dtype.name not in ORDERED or not 0 < k <= self.kernels.MOST_BEST:
            return None
        rows = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        found = np.empty((*rows.shape[:-1], k), np.int64)
        self.kernels.best_of_rows(rows.reshape(-1, rows.shape[-1]), k, largest, found.reshape(-1, k))
        return np.ascontiguousarray(np.moveaxis(found, -1, axis))

    def program(
        self,
        calls: Sequence[Call],
        sends: Sequence[tuple[Array, Array]] = (),
        fetches: Sequence[tuple[Array, Array]] = (),
        scratch: Any = None,
        results: Sequence[Array] = (),
        stretches: Sequence[Banded] = (),
    ) -> Callable[[], None]:
        """The calls as one loop in C, chains of element-wise ones tile by tile.

        Those without a compiled kernel are NumPy's, as for tensors, between loops; a stretch has none of them.
        """
        if not all(self.has(one.op, one.out, one.inputs) for one in calls):
            return self._in_parts(calls, scratch, results, stretches)
        program = self.kernels.Program(self._terms)
        for one in calls:
            program.add(one.op, one.out, list(one.inputs), dict(one.attrs))
        for one_stretch in stretches:
            program.stretch(*one_stretch)
        program.fuse(scratch, results)
        return program.run

    def _in_parts(
        self, calls: Sequence[Call], scratch: Any, results: Sequence[Array], stretches: Sequence[Banded]
    ) -> Callable[[], None]:
        """A loop in C for each row of calls between two that have NumPy's kernels."""
        parts: list[Callable[[], None]] = []
        stop = len(calls)
        needed = list(results)  # of what a part leaves: by those behind it, the last of which is made first
        for has, group in itertools.groupby(reversed(calls), key=lambda one: self.has(one.op, one.out, one.inputs)):
            part = list(group)[::-1]
            start = stop - len(part)
            if has:
                own = [each._replace(first=each.first - start) for each in stretches if start <= each.first < stop]
                parts.append(self.program(part, scratch=scratch, results=needed, stretches=own))
            else:
                parts += [functools.partial(self.call, *one) for one in reversed(part)]
            needed += [x for one in part for x in one.inputs]
            stop = start
        return _Parts(parts[::-1]).run

    @property
    def lanes(self) -> int:
        """Among how many threads the bands of a stretch can be shared out."""
        count: int = self.kernels.get_num_threads()
        return min(count, MOST_LANES)


class _Parts:
    """Programs and calls of NumPy's kernels, one after the other. packed_bytes: of all the programs."""

    def __init__(self, parts: Sequence[Callable[[], None]]) -> None:
        self._parts = parts
        self.packed_bytes: int = sum(getattr(getattr(part, "__self__", None), "packed_bytes", 0) for part in parts)

    def run(self) -> None:
        for part in self._parts:
            part()


def _cuda(precision: str) -> Backend:
    """Raises MissingExtra without its packages, KernelError without a driver or a device."""
    for package in ("cupy", "triton"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(
                f"cuda: the package {package} is missing; install Cyx with its extra cuda13 (driver 580 or later) or "
                "cuda12: pip install 'cyx[cuda13]'"
            )
    found: Backend = importlib.import_module("cyxcore.kernels.gpu.cuda").Cuda(precision)
    return found


DEVICES: dict[str, Callable[[], Backend]] = {
    "cpu": Cpu,
    "reference": Reference,
    "cuda": lambda: _cuda("ieee"),
    "cuda-tf32": lambda: _cuda("tf32"),
}
OWN_MEMORY = ("cuda", "cuda-tf32")  # devices whose arrays are not NumPy's

# The numeric class of each device: results are the same bits on every machine (cyx-exact), or from run to run on one
# kind of card (cuda). NumPy's depend on its version and build.
NUMERICS = {"cpu": "cyx-exact/1", "reference": "reference", "cuda": "cuda/1", "cuda-tf32": "cuda-tf32/1"}

_default = "cpu"

# Whether an operation on the host's memory may go to its kernel without asking this module: kernels/tensors.pyx. Not
# while something looks at the calls of the backends, nor while their products are not exact.
straight = bytearray([1])  # read in C before each operation
planned = bytearray([1])  # whether functions of several operations may run by plans: those are of any numeric class
_watched = _classes = 0


def watch(on: bool) -> None:
    """Say that calls must go through the backend's `call`, or need not any more: something was put in its place."""
    global _watched
    _watched += 1 if on else -1
    _look()


def watch_class(on: bool) -> None:
    """The same where calls have another numeric class than the records that are kept of them."""
    global _classes
    _classes += 1 if on else -1
    _look()


def _look() -> None:
    planned[0] = _default == "cpu" and not _watched
    straight[0] = planned[0] and not _classes


def check_name(name: str) -> str:
    """The name. Raises SpecError where there is no such device."""
    if name not in DEVICES:
        raise SpecError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return name


@cache
def backend(name: str) -> Backend:
    """The backend of a device. Raises SpecError for an unknown name, KernelError when it cannot run here."""
    return DEVICES[check_name(name)]()


def name_of(array: Array) -> str:
    """The device that computes with an array: the default one, unless that has another memory than the array."""
    if isinstance(array, np.ndarray):
        return "cpu" if _default in OWN_MEMORY else _default
    return _default if _default in OWN_MEMORY else "cuda"


class Device(str):
    """A device's name, as PyTorch's torch.device is written: cx.device("cuda")."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """The name itself."""
        return str(self)

    @property
    def index(self) -> None:  # type: ignore[override]
        """A process uses one GPU, which has no number."""
        return None


named = cache(Device)


class _Callable(ModuleType):
    """This module is cx.device, and as a function it is PyTorch's torch.device."""

    def __call__(self, name: str) -> Device:
        return Device(check_name(str(name)))


def put(array: Array, device: str | None = None) -> Array:
    """The array where a device (None: the default) computes, contiguous: itself if it is there already."""
    name = check_name(_default if device is None else device)
    return backend(name).put(array) if name in OWN_MEMORY else HostMemory().put(array)


def constant(array: Array, device: str) -> Array:
    """A host array, never to be written to, on a device with its own memory, which keeps the scalars it has seen."""
    found: Any = backend(device)
    return found.put(array) if array.ndim else found.scalar(array)


def host(array: Array) -> Array:
    """The array as NumPy's: itself if it is, otherwise a copy."""
    if isinstance(array, np.ndarray):
        return array
    return array.get() if hasattr(array, "__cuda_array_interface__") else np.asarray(array)


def missing(name: str) -> str:
    """Why a device does not run here; empty if it does."""
    try:
        backend(name)
    except CyxError as error:
        return str(error)
    return ""


def default_device() -> str:
    """The device eager tensors and plans use unless told."""
    return _default


@contextmanager
def use_device(name: str) -> Iterator[None]:
    """Within the block eager tensors and new plans run on this device."""
    backend(name)
    before = _default
    _choose(name)
    try:
        yield
    finally:
        _choose(before)


def _choose(name: str) -> None:
    global _default
    _default = name
    _look()


sys.modules[__name__].__class__ = _Callable
