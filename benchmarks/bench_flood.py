"""What honest nodes notice while somebody floods the network: python -m benchmarks.bench_flood [--quick]

    python -m benchmarks.bench_flood            # 10 s of each flood
    python -m benchmarks.bench_flood --quick    # 3 s of each

Targets: heartbeats of honest nodes are answered within 200 ms (p99), and central's memory grows by less than 32 MiB.

The broker, the chain and central are real; each flood comes from a process of its own that writes to its socket as
fast as the broker takes it, under an identity that was let in, and comes again whenever it is thrown out. Twenty honest
nodes send a heartbeat every tenth of a second meanwhile, each whether or not the one before was answered. The row
without a flood is the same machine without it.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import platform
import select
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.figures import add_save, save
from cyxcore.errors import CyxError
from cyxnet import credentials, subjects
from cyxnet import messages as m
from cyxnet.bus import Bus
from cyxnet.codec import MSGPACK, encode
from cyxnet.connection import block_of
from cyxnet.identity import Identity
from cyxnet.lifetime import run
from cyxnet.local import LocalNetwork

HONEST, EVERY_S = 20, 0.1
TARGET_P99_MS, TARGET_GROWTH_MIB = 200.0, 32.0
BATCH_BYTES = 256 * 1024
Row = dict[str, float]


def node_keys(name: str) -> tuple[Identity, str]:
    keys = Identity(f"bench flood {name}".encode().ljust(32)[:32])
    return keys, f"flood-{keys.short_id}"


class Flood(Struct, frozen=True, kw_only=True):
    """What an attacker sends over and over: as a node, or as a client. asks: whether it wants answers."""

    as_node: bool
    verb: str  # after its own id; or, with a dollar, the whole subject
    payload: bytes
    asks: bool = True

    def who(self) -> credentials.Credentials:
        keys, node_id = node_keys("attacker")
        return credentials.as_node(keys, node_id) if self.as_node else credentials.as_client(keys)

    def command(self) -> bytes:
        who = self.who()
        subject = subjects.node(who.id, self.verb) if self.as_node else subjects.api(who.id, self.verb)
        subject = self.verb if self.verb.startswith("$") else subject
        reply, block = f"{who.inbox}.x" if self.asks else "", block_of({"Content-Type": MSGPACK})
        size = len(block) + len(self.payload)
        return f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode() + block + self.payload + b"\r\n"


BEAT = encode(m.Heartbeat(node_id=node_keys("attacker")[1], session="f" * 32), MSGPACK)
METRICS = encode(
    m.HardwareMetrics(
        node_id=node_keys("attacker")[1],
        session="f" * 32,
        cpu=m.CpuMetrics(per_core_percent=[1.0] * 8),
        ram_used_bytes=1,
        ram_total_bytes=2,
    ),
    MSGPACK,
)
FLOODS = {
    "heartbeats": Flood(as_node=True, verb="heartbeat", payload=BEAT),
    "metrics": Flood(as_node=True, verb="hardware", payload=METRICS, asks=False),
    "garbage, no answer wanted": Flood(as_node=True, verb="heartbeat", payload=b"\xc1", asks=False),
    "messages of a megabyte": Flood(as_node=True, verb="completed", payload=b"\xc1" * 2**20),
    "requests of a client": Flood(as_node=False, verb="network.info", payload=b"\x80"),
    "discovery": Flood(as_node=False, verb="$SRV.INFO", payload=b""),
    "forbidden subjects": Flood(as_node=True, verb="$JS.API.INFO", payload=b""),
}


def attacker(url: str, flood: Flood, pipe: Any) -> None:
    """Writes until it is told to stop; comes again when it is thrown out. Answers are read and dropped."""
    place, who, command = urlsplit(url), flood.who(), flood.command()
    batch = command * max(1, BATCH_BYTES // len(command))
    sent, let_in = 0, 0
    while not pipe.poll():
        with contextlib.suppress(OSError), socket.create_connection((place.hostname, place.port), timeout=5) as link:
            nonce = json.loads(link.makefile("rb").readline()[5:])["nonce"]
            said = {"nkey": who.nkey, "sig": who.sign(nonce).decode(), "headers": True, "verbose": False}
            said |= {"auth_token": who.token} if who.token else {}
            link.sendall(b"CONNECT %b\r\nPING\r\n" % json.dumps(said).encode())
            if b"PONG" not in link.recv(4096):
                continue
            let_in += 1
            link.setblocking(False)
            left = memoryview(batch)
            while not pipe.poll():
                readable, writable, _ = select.select([link], [link], [], 0.05)
                if readable and not link.recv(2**20):
                    break  # thrown out
                if writable:
                    left = left[link.send(left) :]
                    if not left:
                        sent += len(batch) // len(command)
                        left = memoryview(batch)
    pipe.send((sent, let_in))


class Honest:
    """A node that only says that it is alive."""

    def __init__(self, bus: Bus, keys: Identity, node_id: str):
        self.bus, self.keys, self.node_id = bus, keys, node_id

    async def register(self) -> None:
        said = m.Register(
            node_id=self.node_id,
            session="0" * 32,
            name="bench",
            public_key=self.keys.public_key,
            wallet="1" * 32,
            hardware=m.Hardware(cores=1, memory_bytes=2**30, memory_free_bytes=2**30),
            signature="0" * 128,
        )
        said = replace(said, signature=self.keys.sign(m.registration_bytes(said)))
        await self.bus.ask(subjects.node(self.node_id, "register"), said, m.RegisterReply)

    async def beat(self, until_s: float, took_ms: list[float]) -> int:
        """Heartbeats until then, each in its time; returns how many were not answered."""
        loop, missed = asyncio.get_running_loop(), 0
        said = m.Heartbeat(node_id=self.node_id, session="0" * 32)

        async def one() -> None:
            nonlocal missed
            begun = loop.time()
            try:
                await self.bus.ask(subjects.node(self.node_id, "heartbeat"), said, m.HeartbeatReply)
            except CyxError:
                missed += 1
            took_ms.append((loop.time() - begun) * 1000)

        async with asyncio.TaskGroup() as group:
            while loop.time() < until_s:
                group.create_task(one())
                await asyncio.sleep(EVERY_S)
        return missed


async def under(network: LocalNetwork, honest: list[Honest], flood: Flood | None, seconds: float) -> Row:
    """One row: heartbeats while this flood lasts."""
    processes = {name: psutil.Process(network.process_ids[name]) for name in ("central", "broker")}
    before = {name: process.memory_info().rss for name, process in processes.items()}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=attacker, args=(network.file.client_url, flood, theirs), daemon=True)
    if flood:
        child.start()
    loop, took_ms = asyncio.get_running_loop(), list[float]()
    begun = time.perf_counter()
    missed = await asyncio.gather(*(each.beat(loop.time() + seconds, took_ms) for each in honest))
    elapsed_s = time.perf_counter() - begun
    sent = let_in = 0
    if flood:
        ours.send("stop")
        sent, let_in = await asyncio.to_thread(ours.recv)
        await asyncio.to_thread(child.join)
    grown = {name: (process.memory_info().rss - before[name]) / 2**20 for name, process in processes.items()}
    return {
        "p50 ms": statistics.median(took_ms),
        "p99 ms": sorted(took_ms)[int(len(took_ms) * 0.99)],
        "longest ms": max(took_ms),
        "unanswered": sum(missed),
        "central +MiB": grown["central"],
        "broker +MiB": grown["broker"],
        "flood /s": sent / elapsed_s,
        "let in": let_in,
    }


async def measure(seconds: float, only: list[str]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flood in {"none": None, **FLOODS}.items():
            if only and name not in only:
                continue
            async with LocalNetwork(Path(folder) / name.replace(" ", "-"), nodes=0) as network:
                honest = []
                for number in range(HONEST):
                    keys, node_id = node_keys(str(number))
                    who = credentials.as_node(keys, node_id)
                    bus = await Bus.connect(network.file.node_url, name=node_id, credentials=who)
                    honest.append(Honest(bus, keys, node_id))
                    await honest[-1].register()
                await asyncio.gather(*(each.beat(asyncio.get_running_loop().time() + 0.5, []) for each in honest))
                rows[name] = await under(network, honest, flood, seconds)
                for each in honest:
                    await each.bus.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 s of each flood")
    parser.add_argument("--only", action="append", default=[], choices=["none", *FLOODS], help="this flood alone")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    rows = run(measure(3.0 if options.quick else 10.0, options.only))
    figures = {name: {what: round(value, 1) for what, value in row.items()} for name, row in rows.items()}
    save(options.save, figures)
    if options.json:
        print(json.dumps(figures))
        return 0
    print(f"{HONEST} honest nodes, a heartbeat each {EVERY_S} s; {platform.processor() or platform.machine()}")
    print(f"{'flood':<28}" + "".join(f"{name:>14}" for name in next(iter(rows.values()))))
    for name, row in rows.items():
        print(f"{name:<28}" + "".join(f"{value:>14,.1f}" for value in row.values()))
    worst = max(row["p99 ms"] for row in rows.values()), max(row["central +MiB"] for row in rows.values())
    print(
        f"targets: p99 < {TARGET_P99_MS:g} ms (worst {worst[0]:.1f}), "
        f"central < {TARGET_GROWTH_MIB:g} MiB (worst {worst[1]:.1f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
