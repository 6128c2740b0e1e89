"""Shared pieces of the core tests."""

from collections.abc import Iterator

import pytest

from cyxcore import device
from cyxcore.kernels import cpu


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
