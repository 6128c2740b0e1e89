"""One scheduling decision: what it costs, and how that grows with the network.

    python -m benchmarks.bench_schedule            # up to 100,000 nodes and 1,000,000 waiting jobs
    python -m benchmarks.bench_schedule --quick    # up to 10,000 and 100,000

Two events, each with ten waiting jobs per node. "slot": every node is busy, one run ends, the first job in the line
that fits the node gets it. "arrival": half of the nodes are free, all waiting jobs want what no free node has, and a
job comes that many could take. A decision is everything from the change to the assignment with its explanation, and
the bookkeeping of what it changed; it is measured in CPU time of the thread, because other programs may share the
machine. Nodes and jobs are random but seeded: 2 to 64 cores, 4 to 512 GiB, one node in ten with a GPU, eight regions,
any reputation, price and speed; jobs of 0.2 to 200 GiB, some for a region.

Target: p99 below 5 ms at 1,000 nodes and 10,000 waiting jobs; the cost grows no faster than the logarithm. The steps of
a decision are counted as well: the instructions that the interpreter executes, the same on every machine. Its time also
grows with the memory of the network, which fits no cache: "one read" is what it takes to look at one waiting job at
random, and at nothing else.

Two peers decide the same in the same run: "scan" looks at every waiting job and every node (it is schedule.choose, the
meaning of a decision), "heap" takes jobs from a heap and scores every node, as a scheduler with a priority queue does.
"""

import argparse
import heapq
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeVar

from msgspec.structs import replace

from benchmarks.figures import add_save, machine, save
from cyxcentral import schedule
from cyxcentral.jobs import Job
from cyxcentral.matching import Matching
from cyxcentral.nodes import Node
from cyxcentral.schedule import Assignment, Candidate
from cyxcore.spec import ModelSpec
from cyxnet import messages as m

T = TypeVar("T")
TARGET_P99_MS = 5.0
TARGET_NODES = 1_000
LARGEST_SCANNED = 1_000  # a scan of more takes too long to wait for
JOBS_PER_NODE = 10
COUNTED = 200  # decisions whose steps are counted, after those that are timed
READS = 200_000  # of jobs at random, for the time of one
GIB = 2**30
REGIONS = ("", "eu-1", "eu-2", "us-1", "us-2", "asia-1", "asia-2", "africa-1")
MODEL = ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 3}])
TERMS = m.EscrowTerms(
    job_id="job", mint="M", authority="A", client="C", platform="P", amount_base_units=1, fee_basis_points=0, escrow="E"
)


def random_node(number: int, dice: random.Random) -> Node:
    gpus = [m.Gpu(name="gpu", memory_bytes=24 * GIB)] if dice.random() < 0.1 else []
    memory_bytes = int(GIB * 4 * 2 ** dice.uniform(0, 7))
    hardware = m.Hardware(
        cores=2 ** dice.randint(1, 6),
        memory_bytes=memory_bytes,
        memory_free_bytes=memory_bytes,
        gpus=gpus,
        flops_per_s=10 ** dice.uniform(9, 12),
    )
    return Node(
        node_id=f"node-{number:06}",
        session="0" * 32,
        name=f"node {number}",
        public_key="e" * 64,
        wallet="N" * 43,
        hardware=hardware,
        max_runs=dice.choice((1, 1, 2, 4)),
        region=dice.choice(REGIONS),
        price_per_hour_base_units=int(10 ** dice.uniform(7, 10)),
        version="1",
        online=True,
        registered_at_ms=0,
        changed_at_ms=0,
        reputation=dice.uniform(25, 100),
    )


def random_job(number: int, dice: random.Random, device: Literal["any", "cuda"] = "any") -> Job:
    request = m.JobRequest(
        name="job",
        model=MODEL,
        dataset=m.ArtifactRef(sha256="a" * 64, size=1),
        needs=m.Needs(
            device=device,
            cores=2 ** dice.randint(0, 5),
            region=dice.choice(REGIONS) if dice.random() < 0.3 else "",
        ),
        priority=dice.choice((0, 0, 0, 1, 5)),
        amount_base_units=1,
    )
    return Job(
        job_id=f"job-{number:07}",
        job=request,
        terms=TERMS,
        caller="c",
        memory_bytes=int(GIB * 0.2 * 2 ** dice.uniform(0, 10)),
        submitted_at_ms=number,
        changed_at_ms=number,
        status="queued",
        priority=request.priority,
    )


def full(node: Node) -> Candidate:
    return Candidate(node=node, active_runs=node.max_runs, memory_free_bytes=node.hardware.memory_bytes // 2)


def one_free(node: Node) -> Candidate:
    return replace(full(node), active_runs=node.max_runs - 1, memory_free_bytes=node.hardware.memory_bytes)


def idle(node: Node) -> Candidate:
    return Candidate(node=node, active_runs=0, memory_free_bytes=node.hardware.memory_bytes)


def timed_ms(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.thread_time()
    result = work()
    return (time.thread_time() - begun) * 1000, result


def counted_steps(work: Callable[[], T]) -> tuple[float, T]:
    steps = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        steps += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = work()
    finally:
        sys.settrace(before)
    return steps, result


def one_read_ns(jobs: list[Job], dice: random.Random) -> float:
    """What it takes to look at one of these jobs, at random."""
    order = [dice.randrange(len(jobs)) for _ in range(READS)]

    def look() -> None:
        for number in order:
            jobs[number].memory_bytes  # noqa: B018

    return timed_ms(look)[0] * 1e6 / READS


class Measured(NamedTuple):
    """Of decisions about one network."""

    ms: list[float]
    steps: list[float]
    one_read_ns: float

    def figures(self) -> dict[str, float]:
        return figures(self.ms) | {"p50_steps": statistics.median(self.steps)}


def slots(nodes: int, decisions: int) -> Measured:
    """Decisions after a run ended, on a network that is full."""
    dice = random.Random(nodes)
    known = [random_node(number, dice) for number in range(nodes)]
    jobs = [random_job(number, dice) for number in range(nodes * JOBS_PER_NODE)]
    matching = Matching()
    matching.fill(jobs, [full(node) for node in known])
    assert matching.next(0) is None
    took_ms: list[float] = []
    took_steps: list[float] = []
    for number in range(decisions + COUNTED):
        node = dice.choice(known)

        def decide(node: Node = node) -> Assignment | None:
            matching.has_room(one_free(node))
            choice = matching.next(0)
            if choice:
                matching.waits_no_more(choice.job_id)
            matching.has_room(full(node))
            matching.room.advance(0)
            return choice

        measure, costs = (timed_ms, took_ms) if number < decisions else (counted_steps, took_steps)
        cost, choice = measure(decide)
        costs.append(cost)
        if choice:  # another job takes its place in the line
            matching.waits(random_job(len(jobs) + number, dice))
            matching.line.advance(0)
    return Measured(took_ms, took_steps, one_read_ns(jobs, dice))


def arrivals(nodes: int, decisions: int) -> Measured:
    """Decisions after a job came, on a network that is half free, but not for those who wait."""
    dice = random.Random(nodes)
    known = [random_node(number, dice) for number in range(nodes)]
    for number in range(0, nodes, 2):  # no free node has a GPU, and every waiting job wants one
        known[number] = replace(known[number], hardware=replace(known[number].hardware, gpus=[]))
    jobs = [random_job(number, dice, "cuda") for number in range(nodes * JOBS_PER_NODE)]
    matching = Matching()
    matching.fill(jobs, [full(node) if number % 2 else idle(node) for number, node in enumerate(known)])
    assert matching.next(0) is None
    took_ms: list[float] = []
    took_steps: list[float] = []
    for number in range(decisions + COUNTED):
        job = random_job(len(jobs) + number, dice)
        job = replace(job, memory_bytes=job.memory_bytes // 16)

        def decide(job: Job = job) -> Assignment | None:
            matching.waits(job)
            choice = matching.next(0)
            matching.waits_no_more(job.job_id)
            if choice:
                matching.has_room(schedule.with_run(matching.room.candidates[choice.node_id], job))
                matching.room.advance(0)
            return choice

        measure, costs = (timed_ms, took_ms) if number < decisions else (counted_steps, took_steps)
        cost, choice = measure(decide)
        costs.append(cost)
        if choice:  # the run ends, so that the network stays as it is
            matching.has_room(idle(matching.room.candidates[choice.node_id].node))
            matching.room.advance(0)
    return Measured(took_ms, took_steps, one_read_ns(jobs, dice))


def peers(nodes: int, decisions: int) -> dict[str, list[float]]:
    """The same decision after a run ended: by looking at everyone, and by a heap of jobs with a look at every node."""
    dice = random.Random(nodes)
    known = [random_node(number, dice) for number in range(nodes)]
    jobs = [random_job(number, dice) for number in range(nodes * JOBS_PER_NODE)]
    room = {node.node_id: full(node) for node in known}
    weights = schedule.Weights()
    line = [(schedule.place(job), job) for job in jobs]
    heapq.heapify(line)
    found: dict[str, list[float]] = {"scan": [], "heap": []}
    for _ in range(decisions):
        node = dice.choice(known)
        room[node.node_id] = one_free(node)

        def scan() -> str | None:
            for job in sorted(jobs, key=schedule.place):
                if any(schedule.refusal(job, candidate) is None for candidate in room.values()):
                    return schedule.choose(job, room.values(), weights, 0)[0]
            return None

        def heap() -> str | None:
            passed, chosen = [], None
            while line and chosen is None:
                entry = heapq.heappop(line)
                passed.append(entry)
                able = [each for each in room.values() if schedule.refusal(entry[1], each) is None]
                if able:
                    best = min(able, key=lambda each: schedule.preference(entry[1], each, weights))
                    chosen = best.node.node_id
            for entry in passed:  # nothing is taken, so that both peers see the same line
                heapq.heappush(line, entry)
            return chosen

        scan_ms, by_scan = timed_ms(scan)
        heap_ms, by_heap = timed_ms(heap)
        assert by_scan == by_heap, f"the peers disagree: {by_scan}, {by_heap}"
        found["scan"].append(scan_ms)
        found["heap"].append(heap_ms)
        room[node.node_id] = full(node)
    return found


def figures(values_ms: list[float]) -> dict[str, float]:
    ordered = sorted(values_ms)
    p99 = ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)]
    return {"p50_ms": statistics.median(ordered), "p99_ms": p99, "max_ms": ordered[-1]}


def fitted_exponent(sizes: list[int], costs: list[float]) -> float:
    """b of cost = a · n^b by least squares: about 0 for a logarithm, 1 for a scan of the nodes."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    middle_x, middle_y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - middle_x) ** 2 for x in xs
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 10,000 nodes, fewer decisions")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    sizes = [100, 1_000, 10_000] if options.quick else [100, 1_000, 10_000, 100_000]
    decisions, peer_decisions = (300, 3) if options.quick else (2_000, 5)
    rows: list[dict[str, Any]] = []
    for nodes in sizes:
        row: dict[str, Any] = {"nodes": nodes, "jobs": nodes * JOBS_PER_NODE}
        slot, arrival = slots(nodes, decisions), arrivals(nodes, decisions)
        row |= {"slot": slot.figures(), "arrival": arrival.figures(), "one_read_ns": slot.one_read_ns}
        if nodes <= LARGEST_SCANNED:
            row |= {name: figures(values) for name, values in peers(nodes, peer_decisions).items()}
        rows.append(row)
    growth = {
        f"{event} {unit}": round(fitted_exponent(sizes, [row[event][f"p50_{unit}"] for row in rows]), 3)
        for unit in ("steps", "ms")
        for event in ("slot", "arrival")
    } | {"one_read_ns": round(fitted_exponent(sizes, [row["one_read_ns"] for row in rows]), 3)}
    result = {"machine": machine(), "rows": rows, "fitted_exponent": growth}
    save(options.save, result)
    if options.json:
        print(json.dumps(result))
    else:
        show(rows, growth)
    return 0


def show(rows: list[dict[str, Any]], growth: dict[str, float]) -> None:
    print(f"one scheduling decision, {JOBS_PER_NODE} waiting jobs per node; {machine()}")
    print(" " * 18 + f"{'slot freed':>24}{'job arrives':>27}{'scan':>12}{'heap':>9}{'one read':>12}")
    events = f"{'p50 µs':>9}{'p99':>7}{'steps':>8}"
    print(f"{'nodes':>8}{'jobs':>10}{events}   {events}{'p50 µs':>12}{'p50 µs':>9}{'ns':>12}")
    for row in rows:
        slot, arrival = (
            f"{_us(row[event]['p50_ms'], 9)}{_us(row[event]['p99_ms'], 7)}{row[event]['p50_steps']:>8,.0f}"
            for event in ("slot", "arrival")
        )
        scan, heap = (_us(row[name]["p50_ms"], 0) if name in row else "-" for name in ("scan", "heap"))
        print(f"{row['nodes']:>8,}{row['jobs']:>10,}{slot}   {arrival}{scan:>12}{heap:>9}{row['one_read_ns']:>12,.0f}")
    logarithm = _logarithm(rows)
    print(f"  growth, as an exponent of n (a logarithm over this range: {logarithm:.2f}; a scan: 1)")
    for event in ("slot", "arrival"):
        steps, time_ms = growth[f"{event} steps"], growth[f"{event} ms"]
        print(f"    {event}: steps {steps:.2f}, time {time_ms:.2f}; the time of one read {growth['one_read_ns']:.2f}")
    for row in rows:
        if row["nodes"] == TARGET_NODES:
            for name in ("slot", "arrival"):
                met = "met" if row[name]["p99_ms"] < TARGET_P99_MS else "MISSED"
                print(
                    f"  {name} at {TARGET_NODES:,} nodes: p99 {row[name]['p99_ms']:.2f} ms,"
                    f" target < {TARGET_P99_MS:g}: {met}"
                )


def _us(ms: float, width: int) -> str:
    return f"{ms * 1000:>{width},.0f}"


def _logarithm(rows: list[dict[str, Any]]) -> float:
    """The exponent that the same fit finds for a true logarithm."""
    sizes = [row["nodes"] for row in rows]
    return fitted_exponent(sizes, [math.log2(row["nodes"] + row["jobs"]) for row in rows])


if __name__ == "__main__":
    sys.exit(main())
