"""Three real nats-servers on one machine: what one of them holds, all hold, and one may go."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from cyxnet.broker import Passwords, free_ports, syncs_always
from cyxnet.brokers import Brokers, Ports
from cyxnet.bus import Bus, BusError
from cyxnet.outcomes import AppendUnknown
from tests.net.streams import in_sync, leader_of

STREAM, WRITERS = "LOG", 8


@pytest.fixture
async def cluster(tmp_path):
    (tmp_path / "logs").mkdir()
    brokers = Brokers(tmp_path, Passwords.fresh(), [Ports() for _ in range(3)], on_ready=lambda part, detail, ms: None)
    await brokers.start()
    yield brokers
    await brokers.stop()


@pytest.fixture
async def core(cluster):
    bus = await Bus.connect(cluster.url("core"), name="test-core")
    await bus.ensure_stream(STREAM, ["log.>"], replicas=3, deny_delete=True, deny_purge=True)
    yield bus
    await bus.close()


async def test_each_of_three_servers_syncs_before_it_acknowledges_and_holds_a_replica(cluster, core):
    assert [syncs_always(url) for url in cluster.monitor_url.split(",")] == [True] * 3
    async with asyncio.timeout(60):
        await in_sync(core, STREAM, 3)


async def test_who_makes_a_stream_at_the_same_time_as_others_finds_it(cluster):
    buses = [await Bus.connect(cluster.url("core"), name=f"test-{n}") for n in range(4)]

    async def make(bus, name):
        await bus.ensure_stream(name, [f"{name}.>"], replicas=3)
        return await bus.last_seq(name)

    for round_ in range(10):
        assert await asyncio.gather(*(make(bus, f"S{round_}") for bus in buses)) == [0] * 4
    for bus in buses:
        await bus.close()


async def test_a_route_port_that_somebody_else_took_a_moment_ago_is_not_the_end(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = [[taken.getsockname()[1], *free_ports(2)]]
        monkeypatch.setattr("cyxnet.brokers.free_ports", lambda count: chosen.pop() if chosen else free_ports(count))
        brokers = Brokers(tmp_path, Passwords.fresh(), [Ports() for _ in range(3)], on_ready=lambda *_: None)
        await brokers.start()
        assert len(brokers.running) == 3
        await brokers.stop()


async def is_refused(route_port, password):
    """Whether a server takes no route with this password."""
    reader, writer = await asyncio.open_connection("127.0.0.1", route_port)
    async with asyncio.timeout(60):
        await reader.readline()
        who = json.dumps({"verbose": False, "user": "route", "pass": password, "name": "stranger"})
        writer.write(f"CONNECT {who}\r\nPING\r\n".encode())
        refused = b"Authorization Violation" in await reader.read(10_000)
        writer.close()
        with contextlib.suppress(ConnectionError):  # the server has hung up
            await writer.wait_closed()
    return refused


async def test_a_route_without_the_password_is_refused(cluster):
    assert await is_refused(cluster.ports[0].route, "guess")
    assert not await is_refused(cluster.ports[0].route, cluster._passwords.route)


async def test_the_password_of_the_routes_is_replaced_by_a_reload_of_each_server(cluster, core):
    old, new, stored = cluster._passwords.route, "another", await core.append("log.a", b"1")
    for broker in cluster.running.values():
        config = Path(broker.process.args[-1])
        config.write_text(config.read_text().replace(old, new))
        broker.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(60):
        for ports in cluster.ports:
            while not await is_refused(ports.route, old):
                pass
            assert not await is_refused(ports.route, new)
        while stored < 2:
            with contextlib.suppress(BusError):  # while they find each other again
                stored = await core.append("log.a", b"2")
        await in_sync(core, STREAM, 3)


async def test_no_acknowledged_append_is_lost_when_the_leader_is_killed(cluster, core):
    acked: dict[str, int] = {}
    before, after, killed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    since_kill: set[int] = set()

    async def write(writer: int) -> None:
        """Compare-and-swap on a subject of its own; an append without an answer is looked for in the stream."""
        subject, number, last_seq = f"log.{writer}", 0, 0
        while not after.is_set():
            payload = f"{writer}/{number}"
            try:
                seq = await core.append(subject, payload.encode(), last_seq)
            except BusError as error:
                assert isinstance(error, AppendUnknown)
                seq = await found(subject, payload, last_seq)
                if seq is None:
                    continue
            acked[payload], last_seq, number = seq, seq, number + 1
            if len(acked) >= 200:
                before.set()
            if killed.is_set():
                since_kill.add(writer)
            if len(since_kill) == WRITERS:
                after.set()

    async def found(subject, payload, last_seq):
        while True:
            try:
                last = await core.last(STREAM, subject)
            except BusError:
                continue
            return last.seq if last and last.payload == payload.encode() and last.seq > last_seq else None

    async with asyncio.timeout(100):
        writers = [asyncio.create_task(write(n)) for n in range(WRITERS)]
        await before.wait()
        victim = await leader_of(core, STREAM)
        os.kill(cluster.running[victim].process.pid, signal.SIGKILL)
        await cluster.ended(victim)
        killed.set()
        await cluster.bring_up(victim)
        await asyncio.gather(*writers)
        await in_sync(core, STREAM, 3)
        stored = await everything_in(core)
    assert {payload: stored.get(payload) for payload in acked} == acked


async def everything_in(core):
    """Payload -> sequence of the whole stream."""
    stored: dict[str, int] = {}
    complete = asyncio.Event()
    last_seq = await core.last_seq(STREAM)

    async def read(message):
        stored[message.payload.decode()] = message.seq
        if message.seq == last_seq:
            complete.set()

    following = False
    while not following:  # while the servers elect who places consumers, a request for one is lost
        with contextlib.suppress(BusError):
            await core.follow(STREAM, "log.>", 0, read, lambda seq: None)
            following = True
    await complete.wait()
    return stored


async def test_a_frozen_server_does_not_hinder_who_joins(cluster):
    first = cluster.names[0]
    stuck = cluster.running[first].process
    rest = ",".join(cluster.running[name].url("core") for name in cluster.names[1:])
    os.kill(stuck.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            bus = await Bus.connect(f"{cluster.running[first].url('core')},{rest}", name="t")
            assert bus.connected
            await bus.close()
    finally:
        os.kill(stuck.pid, signal.SIGCONT)
