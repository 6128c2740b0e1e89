"""Where ops run: the only place a device is chosen.

A device is a name in DEVICES: "cpu" (compiled kernels) or "reference" (NumPy, the definition). On the
cpu an op or dtype without a compiled kernel runs by its definition, but only at once: a program holds
nothing else than compiled kernels, whose bits are the same on every machine; the rest is a KernelError.
To add a device: a class with `call` and `program`, and a row in DEVICES.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from cyxcore.errors import KernelError, SpecError
from cyxcore.kernels import reference
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES

Array = np.ndarray[Any, Any]


# ndarray.dtype.name takes microseconds; this takes none.
DTYPE_NAMES: dict[Any, str] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


class Call(NamedTuple):
    """One kernel call bound to its arrays."""

    op: str
    out: Array
    inputs: tuple[Array, ...]
    attrs: Mapping[str, Any]


class Backend(Protocol):
    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        """One op at once."""

    def program(
        self, calls: Sequence[Call], scratch: Array | None = None, results: Sequence[Array] = ()
    ) -> Callable[[], None]:
        """A function that makes all calls in order; arrays may be refilled between runs.

        scratch: memory of which only `results` must be whole after a run.
        """


class Reference:
    """Every op in NumPy."""

    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        reference.call(op, out, inputs, attrs)

    def program(
        self, calls: Sequence[Call], scratch: Array | None = None, results: Sequence[Array] = ()
    ) -> Callable[[], None]:
        def run() -> None:
            for op, out, inputs, attrs in calls:
                reference.call(op, out, inputs, attrs)

        return run


class Cpu:
    """The compiled kernels. Raises KernelError when they are not built."""

    def __init__(self) -> None:
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

    def _check(self, op: str, out: Array, inputs: Sequence[Array]) -> None:
        """Raises KernelError when there is no compiled kernel for these element types."""
        if not self._has(op, out, inputs):
            dtypes = [DTYPE_NAMES[x.dtype] for x in inputs]
            raise KernelError(
                f"cpu: no kernel for {op!r} of {', '.join(dtypes)}; use astype, or cyxcore.use_device('reference')"
            )

    def _has(self, op: str, out: Array, inputs: Sequence[Array]) -> bool:
        key = (op, out.dtype, *[x.dtype for x in inputs])
        known = self._known.get(key)
        if known is None:
            known = self.kernels.supports(op, tuple([DTYPE_NAMES[x.dtype] for x in inputs]))
            if op == "cast":  # the one op whose result has a dtype of its own
                known = known and self.kernels.supports(op, (DTYPE_NAMES[out.dtype],))
            self._known[key] = known
        return known

    def call(self, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> None:
        if self._has(op, out, inputs):
            self.kernels.call(op, out, inputs, attrs)
        else:
            reference.call(op, out, inputs, attrs)

    def program(
        self, calls: Sequence[Call], scratch: Array | None = None, results: Sequence[Array] = ()
    ) -> Callable[[], None]:
        """The calls as one loop in C, chains of element-wise ones tile by tile."""
        program = self.kernels.Program()
        for one in calls:
            self._check(one.op, one.out, one.inputs)
            program.add(one.op, one.out, list(one.inputs), dict(one.attrs))
        program.fuse(scratch, results)
        return program.run


DEVICES: dict[str, Callable[[], Backend]] = {"cpu": Cpu, "reference": Reference}

_default = "cpu"


@cache
def backend(name: str) -> Backend:
    """The backend of a device. Raises SpecError for an unknown name, KernelError when it cannot run here."""
    if name not in DEVICES:
        raise SpecError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]()


def default_device() -> str:
    """The device eager tensors and plans use unless told."""
    return _default


@contextmanager
def use_device(name: str) -> Iterator[None]:
    """Within the block eager tensors and new plans run on this device."""
    global _default
    backend(name)
    before, _default = _default, name
    try:
        yield
    finally:
        _default = before
