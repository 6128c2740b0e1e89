"""The brokers of a network folder: one nats-server, or a cluster of them on this machine.

A server keeps its ports and its name for as long as the folder lives: everybody knows it by the first, and the
consensus of the replicated streams knows it by the second.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet.broker import LOOPBACK, Broker, Listening, Member, Passwords, free_ports

CLUSTER_SIZES = (1, 3, 5)  # an even number outlives no more losses than the odd one below it
OnReady = Callable[[str, str, float], None]  # (part, what it said of itself, ms it took)


class Ports(Struct, kw_only=True):
    """Where one server listens; 0 before it ever did."""

    client: int = 0
    monitor: int = 0
    route: int = 0


class Brokers:
    """Start with start(), bring one back with bring_up(), end with stop(). `ports` is kept up to date.

    first_port: wish for the first server; the others of a cluster take the ports behind it. 0: no wish.
    """

    def __init__(
        self,
        folder: Path,
        passwords: Passwords,
        ports: list[Ports],
        *,
        first_port: int = 0,
        listening: Listening = LOOPBACK,
        on_ready: OnReady,
    ):
        self.ports = ports
        self.names = ["broker"] if len(ports) == 1 else [f"broker-{n}" for n in range(1, len(ports) + 1)]
        self.running: dict[str, Broker] = {}
        self._folder = folder
        self._passwords = passwords
        self._first_port = first_port
        self._listening = listening
        self._on_ready = on_ready

    async def start(self) -> None:
        """Start all, at their last ports or at others when those are taken. Raises BrokerError.

        The members of a cluster have to know each other's ports before they take them: somebody may be faster.
        """
        wished = [
            Ports(client=self._first_port + n, monitor=ports.monitor, route=ports.route) if self._first_port else ports
            for n, ports in enumerate(self.ports)
        ]
        fresh = [Ports(client=self._first_port and self._first_port + n) for n in range(len(self.ports))]
        had_ports = any(ports.monitor for ports in self.ports)
        try:
            await self._start_at(wished)
        except CyxError:
            if not had_ports and len(self.ports) == 1:  # what it was to take, or any: there is nothing else to try
                raise
            await self._start_at(fresh)

    async def _start_at(self, ports: list[Ports]) -> None:
        if len(ports) > 1 and not all(each.route for each in ports):
            for each, route in zip(ports, free_ports(len(ports)), strict=True):
                each.route = route
        self.ports[:] = ports
        starting = [asyncio.create_task(self._start(name, again=False)) for name in self.names]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.stop()
            raise

    async def bring_up(self, name: str) -> None:
        """After its end: at the same ports, because everybody knows it by these."""
        await self._start(name, again=True)

    async def _start(self, name: str, again: bool) -> None:
        begun, index = time.monotonic(), self.names.index(name)
        ports = self.ports[index]
        log = self._folder / "logs" / f"{name}.log"
        starting = asyncio.create_task(
            asyncio.to_thread(
                Broker.start,
                self._folder / name,
                self._passwords,
                ports.client,
                ports.monitor,
                log,
                self._member(index),
                again,
                self._listening,
            )
        )
        try:
            broker = await asyncio.shield(starting)
        except asyncio.CancelledError:  # the thread goes on: what it starts has to be stopped too
            with contextlib.suppress(CyxError):
                self.running[name] = await starting
            raise
        self.running[name] = broker
        ports.client, ports.monitor = broker.port, broker.monitor_port
        cluster = f"{len(self.names)} replicas, " if len(self.names) > 1 else ""
        secret = "TLS, " if self._listening.certificates else ""
        about = f"nats-server, JetStream, {cluster}{secret}fsync always, port {broker.port}"
        self._on_ready(name, f"port {broker.port}" if again else about, (time.monotonic() - begun) * 1000)

    def _member(self, index: int) -> Member | None:
        if len(self.names) == 1:
            return None
        peers = tuple(ports.route for n, ports in enumerate(self.ports) if n != index)
        return Member(name=f"cyx-{index + 1}", route_port=self.ports[index].route, peer_ports=peers)

    def url(self, role: str) -> str:
        """Every server's URL for a role, as Bus.connect takes them."""
        return ",".join(self.running[name].url(role) for name in self.names)

    @property
    def monitor_url(self) -> str:
        return ",".join(self.running[name].monitor_url for name in self.names)

    async def ended(self, name: str) -> int:
        """Wait for the end of a server and return its exit code."""
        return await asyncio.to_thread(self.running[name].process.wait)

    async def stop(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(broker.stop) for broker in self.running.values()))
