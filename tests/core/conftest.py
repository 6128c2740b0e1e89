"""Shared pieces of the core tests."""

from collections.abc import Iterator

import pytest

from cyxcore.device import DEVICES, use_device


@pytest.fixture(params=sorted(DEVICES))
def each_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every device, as the default one."""
    with use_device(request.param):
        yield request.param


@pytest.fixture
def reference() -> Iterator[None]:
    """Runs the test on NumPy."""
    with use_device("reference"):
        yield
