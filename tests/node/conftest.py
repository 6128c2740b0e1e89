"""A network folder on a real broker, a fake central, and nodes."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cyxnet.broker import Broker
from cyxnet.bus import Bus
from cyxnet.config import NetworkFile, write_network
from cyxnet.credentials import Credentials, as_node
from cyxnode import hardware
from cyxnode.agent import Agent, Settings
from cyxnode.home import Home, open_home
from cyxnode.process import TRAIN_COMMAND, Launch, Pool
from tests.node.fake_central import NETWORK, PLATFORM, FakeCentral, Store

STANDIN = str(Path(__file__).with_name("standin.py"))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def central(broker: Broker, store: Store) -> AsyncIterator[FakeCentral]:
    running = await FakeCentral.start(broker.url("edge"), store)
    yield running
    await running.close()


@pytest.fixture
def network(broker: Broker, tmp_path: Path) -> Path:
    """The folder of the network that the broker serves."""
    folder = tmp_path / "cyx"
    file = NetworkFile(
        network_id="test",
        client_url=broker.url("client"),
        node_url=broker.url("node"),
        edge_url=broker.url("edge"),
        core_url=broker.url("core"),
        monitor_url=broker.monitor_url,
        chain_url="http://127.0.0.1:1",
    )
    write_network(folder, file)
    return folder


class Node:
    """An agent in this process; its training processes are real, their training is the stand-in's unless asked."""

    def __init__(
        self, agent: Agent, home: Home, task: "asyncio.Task[int]", ready: asyncio.Event, replica_buses: list[Bus]
    ):
        self.agent = agent
        self.home = home
        self.task = task
        self.ready = ready
        self.replica_buses = replica_buses  # those of its replicas, in the order in which they were made


@pytest.fixture
async def start_node(broker: Broker, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """start_node(behaviour) gives a Node about to register; "train" is no stand-in. All are stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:
        facts = hardware.measure()

        async def start(
            behaviour: str = "learn",
            url: str | None = None,
            name: str = "desk",
            session_s: float | None = None,
            network_id: str = NETWORK,
            platform_key: str = PLATFORM.public_key,
            settings: Settings | None = None,
        ) -> Node:
            home = open_home(tmp_path / "cyx", name)
            stack.callback(home.close)
            who = as_node(home.key, home.node_id)
            bus = await Bus.connect(url or broker.url("node"), name=home.node_id, credentials=who)
            stack.push_async_callback(bus.close)
            command = TRAIN_COMMAND if behaviour == "train" else (sys.executable, "-P", STANDIN, behaviour)
            pool = Pool(Launch(work_folder=home.work_folder, command=command))
            stack.push_async_callback(pool.close)
            pool.warm_up()
            ready = asyncio.Event()

            replica_buses: list[Bus] = []

            async def connect(replica: Credentials) -> Bus:
                bus = await Bus.connect(
                    url or broker.url("node"),
                    name=replica.id,
                    credentials=replica,
                    session_s=session_s,
                    renews=False,
                )
                replica_buses.append(bus)
                return bus

            wanted = settings or Settings()
            agent = Agent(home, bus, pool, facts, wanted, ready.set, network_id, connect, platform_key)
            task = asyncio.create_task(agent.run())
            stack.push_async_callback(_stop, agent, task)
            return Node(agent, home, task, ready, replica_buses)

        yield start


async def _stop(agent: Agent, task: "asyncio.Task[int]") -> None:
    if not task.done():
        agent.stop("the test is over")
        agent.stop("the test is over")
    await asyncio.wait_for(task, 60)
