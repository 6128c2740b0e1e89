"""A ledger that was deleted, made again from the event log: how long, and is it the same?

    python -m benchmarks.bench_rebuild            # 1,000,000 events
    python -m benchmarks.bench_rebuild --quick    # 20,000 events

Target: 1,000,000 events in < 30 s, with the content hash of the ledger that was written as the events happened. The
events are those of jobs that were trained and paid, as central writes them, with their hash chains, on a real broker.
The peer in the same run is the reading alone: the same messages, followed by the same code that does nothing with them.
"""

import argparse
import asyncio
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cyxcentral.eventlog import EventLog
from cyxcentral.ledger import Ledger
from cyxcentral.projection import project
from cyxcentral.world import World
from cyxcore.spec import ModelSpec, TrainingSummary
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import Bus, Stored
from cyxnet.codec import encode

EVENTS_PER_JOB, NODES, BATCH = 8, 100, 1_000
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


async def write(core: Bus, jobs: int, ledger: Ledger) -> int:
    """Store the history, and write it into a ledger as central does. Returns how many events there are."""
    world, last, seq = World(), dict[str, tuple[int, str]](), 0
    batch: dict[str, tuple[str, bytes, int]] = {}
    for subject, event in history(jobs):
        if subject in batch or len(batch) == BATCH:  # a batch names each subject once
            await core.append_all(list(batch.values()))
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
    await core.append_all(list(batch.values()))
    await ledger.flush()
    return seq


async def rebuild(core: Bus, ledger: Ledger | None) -> float:
    """Seconds from an empty world to one that knows the whole log, and to a ledger on disk when one is given."""
    begun = time.perf_counter()
    world = World()
    events = EventLog(core, "bench", world)
    if ledger is not None:
        events.applied.append(lambda stored, record: project(world, ledger, 0, stored, record))
    await events.open(0)
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


async def measure(events: int, say) -> dict[str, float | int | bool]:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        broker = await asyncio.to_thread(Broker.start, Path(folder) / "broker", Passwords.fresh())
        buses = [await Bus.connect(broker.url("core"), name="bench") for _ in range(3)]
        before, after = Ledger(Path(folder) / "before.duckdb"), Ledger(Path(folder) / "after.duckdb")
        try:
            await EventLog(buses[0], "bench", World()).open(0)  # makes the stream as central does
            say(f"writing {events:,} events …")
            last_seq = await write(buses[0], (events - NODES) // EVENTS_PER_JOB, before)
            say("reading them alone …")
            alone_s = await read_only(buses[1], last_seq)
            say("rebuilding the ledger …")
            rebuilt_s = await rebuild(buses[2], after)
            same = await before.content_hash() == await after.content_hash()
        finally:
            for bus in buses:
                await bus.close()
            await before.close()
            await after.close()
            await asyncio.to_thread(broker.stop)
    return {"events": last_seq, "reading_s": alone_s, "rebuild_s": rebuilt_s, "same_content_hash": same}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 events")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    options = parser.parse_args()

    def say(text: str) -> None:
        if not options.json:
            print(text, file=sys.stderr)

    found = asyncio.run(measure(20_000 if options.quick else 1_000_000, say))
    if options.json:
        print(json.dumps(found))
    else:
        each_us = found["rebuild_s"] / found["events"] * 1e6
        print(f"{found['events']:,} events, {platform.processor() or platform.machine()}")
        print(f"  reading them alone   {found['reading_s']:7.1f} s")
        print(
            f"  rebuilt ledger       {found['rebuild_s']:7.1f} s   {each_us:.0f} µs each (target: a million in < 30 s)"
        )
        print(f"  same content hash    {found['same_content_hash']}")
    return 0 if found["same_content_hash"] else 1


if __name__ == "__main__":
    sys.exit(main())
