"""Shared pieces of the core tests."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cyxcore import device
from cyxcore.kernels import cpu
from tests.core.gpu_libraries import Driver


@pytest.fixture(autouse=True)
def plain_registers() -> None:
    """NumPy's LAPACK, which many tests compare with, gives up after what a chain within this process leaves behind."""
    cpu.leave_mmx()


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every instruction set of this machine."""
    before = cpu.isa()
    try:
        cpu.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    cpu.set_isa(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test on one thread and on two."""
    before = cpu.get_num_threads()
    cpu.set_num_threads(request.param)
    yield request.param
    cpu.set_num_threads(before)


@pytest.fixture
def gpu() -> None:
    """Skips the test where the device cuda does not run."""
    reason = device.missing("cuda")
    if reason:
        pytest.skip(reason)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Driver, Any]]:
    """(a driver that only writes down, the module cuda.py as it is where CuPy has this one)"""
    fake = Driver()
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    vars(cupy).update(cuda=cuda, ndarray=np.ndarray, copyto=np.copyto, empty=np.empty)
    vars(cupy).update(asnumpy=lambda array, stream: array.copy())
    vars(cuda).update(driver=fake, runtime=SimpleNamespace())
    for name, module in (("cupy", cupy), ("cupy.cuda", cuda)):
        monkeypatch.setitem(sys.modules, name, module)
    package, name = importlib.import_module("cyxcore.kernels.gpu"), "cyxcore.kernels.gpu.cuda"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(package, "cuda", None, raising=False)
    yield fake, importlib.import_module(name)
    del sys.modules[name]


@pytest.fixture(params=["cpu", "reference", pytest.param("cuda", marks=pytest.mark.gpu)])
def each_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every device whose float32 is float32, as the default one."""
    if request.param in device.OWN_MEMORY:
        request.getfixturevalue("gpu")
    with device.use_device(request.param):
        yield request.param


@pytest.fixture
def reference() -> Iterator[None]:
    """Runs the test on NumPy."""
    with device.use_device("reference"):
        yield
