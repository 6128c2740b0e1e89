"""Connections to a broker, as its core, its edge and a client have them."""

import pytest

from cyxnet import subjects
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import Bus
from tests.net.brokers import ME


@pytest.fixture
async def core(broker):
    bus = await Bus.connect(broker.url("core"), name="test-core")
    await bus.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS], deny_delete=True, deny_purge=True)
    yield bus
    await bus.close()


@pytest.fixture
async def edge(broker):
    bus = await Bus.connect(broker.url("edge"), name="test-edge")
    yield bus
    await bus.close()


@pytest.fixture
async def client(broker):
    bus = await Bus.connect(broker.url("client"), name="test-client", credentials=ME)
    yield bus
    await bus.close()


@pytest.fixture
async def mortal(tmp_path):
    """A broker that a test may kill, and one connection to it."""
    running = [Broker.start(tmp_path / "mortal", Passwords.fresh())]
    bus = await Bus.connect(running[0].url("core"), name="test-mortal")
    await bus.ensure_stream(subjects.EVENTS, [subjects.EVENT_SUBJECTS])
    yield running, bus
    await bus.close()
    running[-1].stop()
