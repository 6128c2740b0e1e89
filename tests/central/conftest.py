"""Small centrals of one log, against a real broker."""

import pytest

from cyxnet.bus import Bus
from cyxnet.credentials import as_node
from tests.central.centrals import KEY, NODE, SmallCentral


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


@pytest.fixture
async def scheduling(broker):
    """A central whose loop runs."""
    running = await SmallCentral.start(broker, "central-a", scheduling=True)
    yield running
    await running.close()


@pytest.fixture
async def node(broker):
    """The connection of a node."""
    bus = await Bus.connect(broker.url("node"), name="node", credentials=as_node(KEY, NODE))
    yield bus
    await bus.close()
