"""Durable appends through one central: how many a second, and how long one takes.

    python -m benchmarks.bench_log            # 20,000 records per row
    python -m benchmarks.bench_log --quick    # 3,000

A record is a Submitted event, appended with compare-and-swap to a subject of its own on a broker that syncs the disk
before it acknowledges, and counts once central's world took it in. Target: 7,000 a second with 2,000 tasks at once
(which leaves room for the rest of a submission: 5,000 a second), p50 below 2 ms for one alone.

The peer, in the same run on the same broker: nats-py's `js.publish` with the same bytes and the same compare-and-swap,
one by one and from 256 tasks; it has no world to keep. `machine` is a loop of plain Python: what this computer had left
for one process at that moment, so that figures of busy machines can be told from figures of slow code.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats

from benchmarks.figures import add_save, save
from cyxcentral.eventlog import EventLog
from cyxcentral.world import World
from cyxcore.spec import ModelSpec
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import Bus
from cyxnet.codec import encode
from cyxnet.lifetime import run

TARGET_PER_S = 7_000
TARGET_P50_MS = 2.0
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
Figures = dict[str, float]


def submitted(job_id: str) -> m.Submitted:
    """A submission as it lies in the log: 800 bytes."""
    model = ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 3}])
    request = m.JobRequest(
        name="digits", model=model, dataset=m.ArtifactRef(sha256="a" * 64, size=1000), amount_base_units=2_500_000_000
    )
    terms = m.EscrowTerms(
        job_id=job_id,
        mint="M" * 43,
        authority="A" * 43,
        client="C" * 43,
        platform="P" * 43,
        amount_base_units=2_500_000_000,
        fee_basis_points=1000,
        escrow="E" * 43,
    )
    deposit = m.SignedTransaction(transaction=b"t" * 300, signature="5" * 88, last_valid_block_height=9)
    return m.Submitted(job=request, terms=terms, caller="alice", memory_bytes=2**28, deposit=deposit)


async def spread(tasks: int, items: list[Any], work: Callable[[Any], Awaitable[Any]]) -> float:
    """Run `work` on every item from so many tasks; items a second."""
    waiting = iter(items)

    async def take() -> None:
        for item in waiting:
            await work(item)

    begun = time.perf_counter()
    await asyncio.gather(*(take() for _ in range(tasks)))
    return len(items) / (time.perf_counter() - begun)


async def through_the_log(url: str, name: str, tasks: int, count: int) -> Figures:
    """One EventLog. cpu_us: of this process, per record."""
    core = await Bus.connect(url, name=name)
    log = EventLog(core, name, World())
    await log.open(0)
    events = [submitted(f"{name}-{tasks}-{number}") for number in range(count)]

    async def record(event: m.Submitted) -> None:
        assert await log.record(subjects.job_event(event.terms.job_id), lambda: event)

    cpu_s = time.process_time()
    per_s = await spread(tasks, events, record)
    cpu_us = (time.process_time() - cpu_s) / count * 1e6
    assert all(event.terms.job_id in log.world.jobs for event in events)
    await core.close()
    return {"per_s": per_s, "cpu_us": cpu_us}


async def alone(url: str, count: int) -> Figures:
    """One record after the other: how long each takes from record() to the world."""
    core = await Bus.connect(url, name="alone")
    log = EventLog(core, "alone", World())
    await log.open(0)
    took_ms = []
    for number in range(count):
        event = submitted(f"alone-{number}")
        begun = time.perf_counter()
        await log.record(subjects.job_event(event.terms.job_id), lambda event=event: event)  # type: ignore[misc]
        took_ms.append((time.perf_counter() - begun) * 1000)
    await core.close()
    return {"p50_ms": statistics.median(took_ms), "p99_ms": statistics.quantiles(took_ms, n=100)[98]}


async def through_nats(url: str, tasks: int, count: int) -> Figures:
    """The peer: js.publish of the same bytes, each to a new subject that must be empty."""
    connection = await nats.connect(url)
    js = connection.jetstream(timeout=10)
    payload = encode(m.Record(command_id="c" * 32, at_ms=1, by="peer", event=submitted("job"), prev=""))

    async def publish(number: int) -> None:
        await js.publish(f"cyx.v1.event.job.peer-{tasks}-{number}", payload, headers={EXPECTED: "0"})

    cpu_s = time.process_time()
    per_s = await spread(tasks, list(range(count)), publish)
    cpu_us = (time.process_time() - cpu_s) / count * 1e6
    await connection.close()
    return {"per_s": per_s, "cpu_us": cpu_us}


def child(url: str, name: str, count: int, ready: Any, go: Any, said: Any) -> None:
    """One of two centrals, in a process of its own."""

    async def main() -> Figures:
        ready.release()
        await asyncio.to_thread(go.wait)
        return await through_the_log(url, name, 1_000, count)

    said.put(run(main()))


def two_processes(url: str, count: int) -> Figures:
    """Two centrals at once; each also takes in what the other appends."""
    context = multiprocessing.get_context("spawn")
    ready, go, said = context.Semaphore(0), context.Event(), context.Queue()
    children = [
        context.Process(target=child, args=(url, f"central-{n}", count // 2, ready, go, said)) for n in range(2)
    ]
    for process in children:
        process.start()
    for _ in children:
        ready.acquire()
    go.set()
    found = [said.get(timeout=300) for _ in children]
    for process in children:
        process.join()
    return {"per_s": sum(each["per_s"] for each in found), "cpu_us": statistics.mean(e["cpu_us"] for e in found)}


def machine() -> float:
    """Millions of turns a second of an empty loop of Python, by the clock on the wall."""
    begun = time.perf_counter()
    for _ in range(2_000_000):
        pass
    return 2 / (time.perf_counter() - begun)


def measure(count: int) -> dict[str, Figures]:
    """Each row on a broker of its own, so that none pays for what another left behind."""
    rows: dict[str, Callable[[str], Figures]] = {
        "js.publish, one by one": lambda url: run(through_nats(url, 1, count // 10)),
        "js.publish, 256 tasks": lambda url: run(through_nats(url, 256, count)),
        "record(), one by one": lambda url: run(alone(url, count // 10)),
        "record(), 256 tasks": lambda url: run(through_the_log(url, "central", 256, count)),
        "record(), 2,000 tasks": lambda url: run(through_the_log(url, "central", 2_000, count)),
        "record(), two processes": lambda url: two_processes(url, count),
    }
    found = {}
    for name, row in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            broker = Broker.start(Path(folder), Passwords.fresh())
            try:
                run(prepare(broker.url("core")))
                before = machine()
                found[name] = row(broker.url("core")) | {"machine": (before + machine()) / 2}
            finally:
                broker.stop()
    return found


async def prepare(url: str) -> None:
    core = await Bus.connect(url, name="prepare")
    await EventLog(core, "prepare", World()).open(0)
    await core.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3,000 records per row instead of 20,000")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    found = measure(3_000 if options.quick else 20_000)
    figures = {name: {key: round(value, 2) for key, value in row.items()} for name, row in found.items()}
    save(options.save, figures)
    if options.json:
        print(json.dumps(figures))
        return 0
    print(f"durable appends, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, sync always")
    print(f"  targets: {TARGET_PER_S:,} a second with 2,000 tasks; p50 < {TARGET_P50_MS:g} ms alone")
    print(f"  {'':<26} {'a second':>9} {'cpu µs':>8} {'p50 ms':>8} {'p99 ms':>8} {'machine':>8}")
    for name, row in found.items():
        cells = [f"{row[key]:>{width},.{digits}f}" if key in row else " " * width for key, width, digits in COLUMNS]
        print(f"  {name:<26} {' '.join(cells)}")
    return 0


COLUMNS = (("per_s", 9, 0), ("cpu_us", 8, 0), ("p50_ms", 8, 2), ("p99_ms", 8, 2), ("machine", 8, 1))

if __name__ == "__main__":
    sys.exit(main())
