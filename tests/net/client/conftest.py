"""A client before a fake central, on a real broker and a real chain."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cyxnet.broker import Broker, Passwords
from cyxnet.bus import Bus
from cyxnet.client import AsyncClient
from cyxnet.solana import Settlement
from tests.doorkeeper import CENTRAL, door_of
from tests.net.client.requests import CYX
from tests.net.fake_api import FakeCentral


@pytest.fixture(scope="package")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    running = Broker.start(tmp_path_factory.mktemp("broker"), Passwords.fresh(CENTRAL))
    with door_of(running.url("client")):
        yield running
    running.stop()


@pytest.fixture(scope="package")
def chain_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("chain")
    command = [sys.executable, "-m", "cyxcentral.localchain", "--dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
async def central(broker: Broker) -> AsyncIterator[FakeCentral]:
    bus = await Bus.connect(broker.url("edge"), name="fake-central")
    fake = FakeCentral(bus)
    await fake.serve()
    yield fake
    await bus.close()


@pytest.fixture
async def client(broker: Broker, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with await AsyncClient.connect(tmp_path, url=broker.url("client")) as connected:
        connected.retry_delays_s = (0.01, 0.01)
        yield connected


@pytest.fixture
async def paying(central: FakeCentral, client: AsyncClient, chain_url: str) -> AsyncIterator[FakeCentral]:
    """The fake central on a real chain, the client's wallet with 5 CYX and fees."""
    async with Settlement(chain_url) as settlement:
        await settlement.airdrop(central.authority.address, 10**10)
        central.settlement, central.mint = settlement, await settlement.create_mint(central.authority)
        await client.faucet(5 * CYX)
        yield central


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("a,label\n1,0\n2,1\n")
    return path
