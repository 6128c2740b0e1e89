"""A ledger that was deleted, made again from the event log: how long, and is it the same?

    python -m benchmarks.bench_rebuild            # 1,000,000 events
    python -m benchmarks.bench_rebuild --quick    # 20,000 events

Target: 1,000,000 events in < 30 s, with the content hash of the ledger that was written as the events happened. The
events are those of jobs that were trained and paid, as central writes them, with their hash chains, on a real broker.
The peer in the same run is the reading alone: the same messages, followed by the same code that does nothing with them.
Beside it, what a start costs whose ledger is whole, without a snapshot of the world and with one that is as old as one
gets before the next is written. Target: 3 s for 1,000,000 events.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import add_save, save
from cyxcentral import readahead, snapshot
from cyxcentral.__main__ import COLLECT_AFTER
from cyxcentral.eventlog import EventLog
from cyxcentral.ledger import Ledger
from cyxcentral.projection import project
from cyxcentral.records import LARGEST
from cyxcentral.world import World
from cyxcore.spec import ModelSpec, TrainingSummary
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import Bus
from cyxnet.codec import encode
from cyxnet.outcomes import AppendUnknown, Conflict, Stored

EVENTS_PER_JOB, NODES, BATCH = 8, 100, 1_000
FEWEST = NODES + 100 * EVENTS_PER_JOB  # of fewer, the start is all that would be measured
KEPT = "world.snapshot"
AMOUNT = 2_500_000_000
SIGNATURE, NODE_SIGNATURE = "5" * 88, "d" * 128


def history(jobs: int) -> Iterator[tuple[str, m.AnyEvent]]:
    """(subject, event) of nodes that register and of jobs that are trained on them and paid."""
    for number in range(NODES):
        hardware = m.Hardware(cores=2, memory_bytes=2**33, memory_free_bytes=2**33)
        node_id = f"node-{number:04d}"
        yield (
            subjects.node_event(node_id),
            m.NodeRegistered(
                node_id=node_id,
                session="0" * 32,
                name=node_id,
                public_key="e" * 64,
                wallet="N" * 43,
                hardware=hardware,
                max_runs=10**6,
            ),
        )
    for first in range(0, jobs, BATCH):  # many jobs at a time, as it is in life; a batch holds one event of each
        together = [(number, life(number)) for number in range(first, min(first + BATCH, jobs))]
        for _ in range(EVENTS_PER_JOB):
            yield from ((subjects.job_event(f"job-{number:08d}"), next(events)) for number, events in together)


def life(number: int) -> Iterator[m.JobEvent]:
    model = ModelSpec(input=[64], layers=[{"kind": "Linear", "out_features": 10}])
    request = m.JobRequest(
        name="digits", model=model, dataset=m.ArtifactRef(sha256="a" * 64, size=1000), amount_base_units=AMOUNT
    )
    terms = m.EscrowTerms(
        job_id=f"job-{number:08d}",
        mint="M" * 43,
        authority="A" * 43,
        client="C" * 43,
        platform="P" * 43,
        amount_base_units=AMOUNT,
        fee_basis_points=1000,
        escrow="E" * 43,
    )
    signed = m.SignedTransaction(transaction=b"x" * 600, signature=SIGNATURE, last_valid_block_height=9)
    node_id = f"node-{number % NODES:04d}"
    checkpoint = m.Checkpoint(step=50, steps=100, state=m.ArtifactRef(sha256="f" * 64, size=77))
    summary = TrainingSummary(
        total_time_ms=1.5,
        steps=100,
        final_loss=0.25,
        best_epoch=1,
        delivered_epoch=1,
        train_rows=80,
        validation_rows=20,
        parameters=650,
    )
    yield m.Submitted(job=request, terms=terms, caller="alice", memory_bytes=2**28, deposit=signed)
    yield m.Funded(signature=SIGNATURE)
    yield m.Leased(attempt=1, node_id=node_id, session="0" * 32, wallet="N" * 43, lease_ms=40_000)
    yield m.Started(attempt=1)
    yield m.Checkpointed(attempt=1, node_id=node_id, checkpoint=checkpoint, signature=NODE_SIGNATURE)
    yield m.Completed(
        attempt=1,
        node_id=node_id,
        model=m.ArtifactRef(sha256="b" * 64, size=99),
        graph_sha256="c" * 64,
        summary=summary,
        signature=NODE_SIGNATURE,
    )
    yield m.TransactionSigned(purpose="settle", signed=signed, pay_base_units=AMOUNT)
    payees = [m.Payee(wallet="N" * 43, pay_base_units=AMOUNT, attempt=1)]
    yield m.Settled(
        signature=SIGNATURE,
        node_base_units=AMOUNT * 9 // 10,
        platform_base_units=AMOUNT // 10,
        client_base_units=0,
        payees=payees,
    )


async def write(core: Bus, jobs: int, ledger: Ledger, kept: Path) -> int:
    """Store the history, and write it into a ledger as central does. Returns how many events there are.

    kept: where a snapshot goes that is as old as one gets.
    """
    events = NODES + jobs * EVENTS_PER_JOB
    kept_seq = max(1, events - max(snapshot.EVERY, events // snapshot.SHARE))
    world, last, seq = World(), dict[str, tuple[int, str]](), 0
    batch: dict[str, tuple[str, bytes, int]] = {}
    for subject, event in history(jobs):
        if subject in batch or len(batch) == BATCH:  # a batch names each subject once
            await store(core, list(batch.values()), seq)
            await ledger.room()
            batch = {}
        expected, prev = last.get(subject, (0, ""))
        seq += 1
        record = m.Record(command_id=f"{seq:032x}", at_ms=seq, by="bench", event=event, prev=prev)
        payload = encode(record)
        sha256 = hashlib.sha256(payload).digest()
        batch[subject] = (subject, payload, expected)
        last[subject] = (seq, sha256.hex())
        assert world.apply(seq, subject, record, sha256) is None
        project(world, ledger, 0, Stored(subject, seq, payload), record)
        if seq == kept_seq:
            await snapshot.write(kept, world.copy(), ledger.flush)
    await store(core, list(batch.values()), seq)
    await ledger.flush()
    return seq


async def store(core: Bus, batch: list[tuple[str, bytes, int]], last_seq: int) -> None:
    """Append a batch until the log ends with it: on a busy machine an answer may not come in time."""
    while True:
        try:
            await core.append_all(batch)
            return
        except AppendUnknown:
            continue  # what was stored after all is a conflict then
        except Conflict:
            if await core.last_seq(subjects.EVENTS) < last_seq:
                raise
            return


async def rebuild(core: Bus, url: str, ledger: Ledger | None, kept: Path | None = None) -> float:
    """Seconds from an empty world to one that knows the whole log, and to a ledger on disk when one is given."""
    begun = time.perf_counter()
    world = World()
    events = EventLog(core, "bench", world)
    if ledger is not None:
        events.room = ledger.room
        events.applied.append(functools.partial(project, world, ledger, 0))
    events.read_ahead = functools.partial(readahead.blocks, url)
    with ledger.filled() if ledger is not None else contextlib.nullcontext():
        await events.open(0, snapshot=snapshot.read(kept, LARGEST) if kept else None)
    if ledger is not None:
        await ledger.flush()
    return time.perf_counter() - begun


async def read_only(core: Bus, last_seq: int) -> float:
    begun, done = time.perf_counter(), asyncio.Event()

    async def handle(stored: Stored) -> None:
        if stored.seq == last_seq:
            done.set()

    await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, handle, lambda seq: None)
    await done.wait()
    return time.perf_counter() - begun


STEPS = {
    "reading": "reading them alone",
    "world": "a start, no snapshot",
    "start": "a start, old snapshot",
    "rebuild": "rebuilt ledger",
}


def step(name: str, url: str, last_seq: int, folder: Path) -> dict[str, float | str]:
    """One of STEPS in a process of its own, which is set up as central's is."""
    gc.set_threshold(*COLLECT_AFTER)

    async def work() -> dict[str, float | str]:
        bus = await Bus.connect(url, name="bench")
        ledger = Ledger(folder / "after.duckdb") if name == "rebuild" else None
        kept = folder / KEPT if name == "start" else None
        before_bytes, cpu_s = psutil.Process().memory_info().rss, time.process_time()
        took_s = await (read_only(bus, last_seq) if name == "reading" else rebuild(bus, url, ledger, kept))
        found: dict[str, float | str] = {
            f"{name}_s": took_s,
            f"{name}_cpu_s": time.process_time() - cpu_s,
            f"{name}_before_mb": before_bytes / 1e6,
            f"{name}_after_mb": psutil.Process().memory_info().rss / 1e6,
        }
        await bus.close()
        if ledger is not None:
            found["content_hash"] = await ledger.content_hash()
            await ledger.close()
        return found

    return asyncio.run(work())


async def measure(events: int, say) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    alone = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with tempfile.TemporaryDirectory() as folder, alone:
        broker = await asyncio.to_thread(Broker.start, Path(folder) / "broker", Passwords.fresh())
        bus = await Bus.connect(broker.url("core"), name="bench")
        before = Ledger(Path(folder) / "before.duckdb")
        found: dict[str, Any] = {}
        try:
            await EventLog(bus, "bench", World()).open(0)  # makes the stream as central does
            say(f"writing {events:,} events …")
            found["events"] = await write(bus, (events - NODES) // EVENTS_PER_JOB, before, Path(folder) / KEPT)
            content_hash = await before.content_hash()
            for name in STEPS:
                say(f"{name} …")
                arguments = (name, broker.url("core"), found["events"], Path(folder))
                found |= await asyncio.get_running_loop().run_in_executor(alone, step, *arguments)
            found["same_content_hash"] = found.pop("content_hash") == content_hash
        finally:
            await bus.close()
            await before.close()
            await asyncio.to_thread(broker.stop)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 events")
    parser.add_argument("--events", type=int, default=1_000_000, help="how many (default 1,000,000)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    if options.events < FEWEST:
        parser.error(
            f"--events: expected {FEWEST:,} or more ({NODES} nodes register, a job has {EVENTS_PER_JOB} events), "
            f"got {options.events:,}; --quick takes 20,000"
        )

    def say(text: str) -> None:
        if not options.json:
            print(text, file=sys.stderr)

    load = os.getloadavg()
    found = asyncio.run(measure(20_000 if options.quick else options.events, say))
    save(options.save, found)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{found['events']:,} events, {platform.processor() or platform.machine()}, load {load[0]:.1f} before")
        print("                          wall  processor  each (wall)   memory before and after")
        for name, what in STEPS.items():
            took_s, cpu_s = found[f"{name}_s"], found[f"{name}_cpu_s"]
            memory = f"{found[f'{name}_before_mb']:.0f} → {found[f'{name}_after_mb']:.0f} MB"
            print(f"  {what:22}{took_s:6.1f} s {cpu_s:8.1f} s {took_s / found['events'] * 1e6:9.1f} µs   {memory}")
        print(f"  same content hash    {found['same_content_hash']}   (target: a million in < 30 s)")
    return 0 if found["same_content_hash"] else 1


if __name__ == "__main__":
    sys.exit(main())
