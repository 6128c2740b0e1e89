"""Small centrals of one log, against a real broker."""

import pytest

from tests.central.test_dispatch import SmallCentral


@pytest.fixture
async def central(broker):
    running = await SmallCentral.start(broker, "central-a")
    yield running
    await running.close()


@pytest.fixture
async def other(broker, central):
    """A second central of the same log and store."""
    running = await SmallCentral.start(broker, "central-b")
    yield running
    await running.close()
