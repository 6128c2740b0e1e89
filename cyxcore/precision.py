"""The numeric class of products on the CPU: exact, or fast by splitting float32 into bfloat16 terms.

    cx.set_numerics("fast")                 # from here on, in this process
    with cx.set_numerics("fast"):           # or within a block
    step = cx.compile(step, numerics="fast")

exact (cyx-exact/1): the same bits on every machine, with any number of threads. The others let matmul and conv2d, and
their gradients, split each float32 factor into bfloat16 terms for the matrix unit AMX of recent Intel processors, with
sums in float32; every other operation stays exact. Where there is no AMX, and for products too small to gain, they are
exact too, which is within what they promise. Their results do not depend on threads either, but on the machine.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from cyxcore import casting
from cyxcore import device as devices
from cyxcore.device import Backend, Cpu
from cyxcore.errors import SpecError


class NumericClass(NamedTuple):
    """record: its name in model files, checkpoints and summaries. terms: of bfloat16 to a float32; 0: no splitting.

    error: the bound on |result - true value| for K products summed up, relative to the sum of |a| |b|.
    """

    record: str
    terms: int
    error: str


CLASSES = {
    "exact": NumericClass(devices.NUMERICS["cpu"], 0, "K * 2**-24"),
    "fast": NumericClass("cyx-fast/1", 3, "2**-21 + K * 2**-24"),
    "fast16": NumericClass("cyx-fast16/1", 2, "2**-15 + K * 2**-24"),
    "bf16": NumericClass("cyx-bf16/1", 1, "2**-7 + K * 2**-24"),
}


class _Own(threading.local):
    name: str | None = None  # of the class, in a thread that is within of_thread


_current = "exact"
_own = _Own()


class Numerics(NamedTuple):
    """What is in effect. by: "amx", or "exact kernels" where the class makes no difference on this machine."""

    name: str
    record: str
    by: str


class _Restores:
    """Entered or not, the class is set; leaving the block sets back what was before."""

    def __init__(self, before: str) -> None:
        self._before = before

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        set_numerics(self._before)


def set_numerics(name: str) -> _Restores:
    """Choose the numeric class of products on the CPU: exact, fast, fast16 or bf16 (CLASSES), in the whole process.

    For operations run at once, and for plans made from now on; those that are there keep theirs. As a context manager,
    until the end of the block. Jobs have theirs in their TrainingSpec, and a Trainer keeps its own for what it does,
    whatever is set meanwhile. Raises SpecError for an unknown name.
    """
    global _current
    before, terms = _current, CLASSES[check_name(name)].terms
    if name != before:
        kernels().set_terms(terms)
        if (before == "exact") != (name == "exact"):
            devices.watch_class(name != "exact")
        _current = name
    return _Restores(before)


def numerics() -> Numerics:
    """The class that was chosen, its name in records, and what it comes to here."""
    name = current()
    by = "amx" if splits(name) else "exact kernels"
    return Numerics(name, CLASSES[name].record, by)


def check_name(name: str) -> str:
    """The name. Raises SpecError where there is no such class."""
    if name not in CLASSES:
        raise SpecError(f"numerics: expected one of {', '.join(CLASSES)}, got {name!r}")
    return name


def current() -> str:
    """The class of what this thread does now."""
    return _own.name or _current


@contextmanager
def of_thread(name: str) -> Iterator[None]:
    """Within the block this thread has the class, whatever is set, and other threads keep theirs."""
    before = _own.name
    terms = kernels().set_own_terms(CLASSES[check_name(name)].terms)
    _own.name = name
    if name != "exact":
        devices.watch_class(True)
    try:
        yield
    finally:
        if name != "exact":
            devices.watch_class(False)
        kernels().set_own_terms(terms)
        _own.name = before


def splits(name: str) -> bool:
    """Whether products of a class have bits of their own here: elsewhere they are those of the class exact."""
    return CLASSES[name].terms > 0 and bool(kernels().amx())


def in_use() -> str:
    """The class of what this thread does now, or exact where that makes no difference."""
    name = current()
    return name if name != "exact" and splits(name) else "exact"


def chosen(name: str | None, device: str) -> str:
    """A class given by name, or (None) the one that is set, where the device has classes: only the cpu has.

    Raises SpecError for an unknown name, and for a class that was asked for on another device.
    """
    if name is None:
        return current() if device == "cpu" else "exact"
    if check_name(name) != "exact" and device != "cpu":
        raise SpecError(f"numerics: {name!r} is a class of the device 'cpu', got {device!r}; leave numerics out there")
    return name


def record_of(device: str, name: str) -> str:
    """How results of a device and class are called in records. The classes are of the CPU; others have one each."""
    return CLASSES[name].record if device == "cpu" else devices.NUMERICS[device]


def in_effect(device: str | None = None, name: str | None = None) -> str:
    """record_of() what this thread computes now, and within autocast the dtype of its products: cyx-exact/1+bfloat16.

    device: None is the default one; name: of a class, None is the current one.
    """
    device = device or devices.default_device()
    half = casting.current() if device in ("cpu", "reference") else None
    return record_of(device, name or current()) + (f"+{half}" if half else "")


@cache
def backend(device: str, name: str) -> Backend:
    """The backend of a device whose programs are of this class."""
    terms = CLASSES[name].terms if device == "cpu" else 0
    return Cpu(terms) if terms else devices.backend(device)


def kernels() -> Any:
    """The compiled kernels. Raises KernelError where they are not built."""
    return devices.backend("cpu").kernels  # type: ignore[attr-defined]
