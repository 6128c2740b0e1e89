"""What one central takes: durable submissions per second, and how soon an idle network gives a job to a node.

    python -m benchmarks.bench_submissions            # 5,000 jobs, 300 assignments
    python -m benchmarks.bench_submissions --quick    # 500 jobs, 30 assignments
    python -m benchmarks.bench_submissions --equal    # one job again and again; else each has a seed of its own
    python -m benchmarks.bench_submissions --centrals 2 --rounds 5    # beside one, each held to a share of a processor

Targets: 5,000 durable submissions a second through one central (the broker syncs every write), more with two; from
the submit of a job to its durable lease p50 < 2 ms, p99 < 10 ms.

A submission here is what it is for a user: a request with a whole job and a deposit that the client signed. Central
checks the job, the terms, the deposit's bytes and its signature, stores the event, and only then answers. The deposits
are signed before the clock starts, because that is the clients' work; everything else runs on this machine too:
broker, chain, central and the client that asks. The peer in the same run is the broker alone: the same bytes appended
with compare-and-swap, a sync of the disk each, one at a time and from 64 tasks.

With --centrals 2 or more, one central and so many are compared instead, in rounds of one after the other. Each
central, with the process beside it, is held to --central-cpu of one processor, and given that before others have theirs
(by the kernel: a cgroup of its own, for which one has to be root on Linux): so it is the narrow place although all
parts share this machine. The same client asks both, with as much in flight.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import psutil
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.figures import add_save, save
from cyxcore.errors import CyxError
from cyxnet import credentials, jobfile, subjects
from cyxnet import messages as m
from cyxnet.bus import Bus
from cyxnet.client import AsyncClient
from cyxnet.codec import MSGPACK, decode, encode
from cyxnet.escrow import build_deposit
from cyxnet.identity import Identity
from cyxnet.lifetime import run
from cyxnet.local import LocalNetwork

Row = dict[str, float]
EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
IN_FLIGHT = 480  # below the 512 that a central works on at a time
ALONE_IN_FLIGHT = 64  # each waits for a sync of its own: on a busy disk more would not be answered in time
LAMPORTS_PER_JOB = 6_000_000
LOOK_EVERY_S = 0.2
CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 10_000  # in each a process may use its share: short, or whoever used it up stands still for long
COMPARED = 3_000  # submissions: over before the first deposits are made, which make way for five seconds
SIGNED_AT_ONCE = 5_000  # a deposit's blockhash lives for a minute, and central asks the chain about old ones


async def requests_of(client: AsyncClient, job: m.JobRequest, count: int, equal: bool) -> list[tuple[str, bytes]]:
    """(job id, the encoded submit) of `count` jobs, paid by the client; they differ in their seed, or are all equal."""
    made = []
    quote = await client.quote(job, subjects.new_job_id(job.name))
    for number in range(count):
        if not equal:
            job = replace(job, training=replace(job.training, seed=number))
        job_id = subjects.new_job_id(job.name)
        terms = replace(quote.terms, job_id=job_id, escrow=_escrow(client, job_id, quote.terms.program))
        deposit = build_deposit(client.purse, terms, quote.blockhash, quote.last_valid_block_height)
        payment = m.Payment(client=client.purse.address, deposit=deposit)
        made.append((job_id, encode(m.SubmitRequest(job=job, job_id=job_id, payment=payment), MSGPACK)))
    return made


def _escrow(client: AsyncClient, job_id: str, program: str) -> str:
    from cyxnet.escrow import escrow_address

    return escrow_address(client.purse.address, job_id, program)


async def rate(work: Callable[[int], Awaitable[Any]], count: int, in_flight: int) -> tuple[float, list[float]]:
    """(per second, milliseconds each) of work(0) … work(count - 1), so many at a time."""
    took_ms = [0.0] * count
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            begun = time.perf_counter()
            await work(number)
            took_ms[number] = (time.perf_counter() - begun) * 1000

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return count / (time.perf_counter() - begun), took_ms


class Asked(Struct):
    """What the load generator is told: where to ask, as whom, and what; and how many requests may wait at a time."""

    url: str
    caller: str
    nkey_seed: str
    asked: list[tuple[str, bytes]]
    warm_up: int  # of them, before the clock starts
    in_flight: int


class Answered(Struct):
    """What it found: milliseconds of each answer, requests a second, and its own processor time in seconds."""

    per_s: float
    took_ms: list[float]
    cpu_s: float


def generator(pipe: Any) -> None:
    """A process that does nothing but ask: it is told what to ask first, and asks when it is told to."""

    async def main() -> None:
        told: Asked = pipe.recv()
        connection = await nats.connect(
            told.url, nkeys_seed_str=told.nkey_seed, inbox_prefix=subjects.inbox(told.caller)
        )
        inbox = connection.new_inbox()
        waiting: dict[int, asyncio.Future[Any]] = {}
        headers = {"Content-Type": MSGPACK}
        subject = subjects.api(told.caller, "job.submit")

        async def answered(message: Any) -> None:
            number = int(subjects.last_token(message.subject))
            waiting[number].set_result(message)

        async def submit(number: int) -> None:
            job_id, payload = told.asked[number]
            answer = waiting[number] = asyncio.get_running_loop().create_future()
            await connection.publish(subject, payload, reply=f"{inbox}.{number}", headers=headers)
            message = await answer
            assert "Nats-Service-Error" not in message.headers, message.headers
            reply = decode(m.SubmitReply, message.data, MSGPACK)
            assert reply.job_id == job_id and not reply.duplicate

        await connection.subscribe(f"{inbox}.*", cb=answered)
        await connection.flush()
        await rate(submit, told.warm_up, told.in_flight)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        begun_s = time.process_time()
        first = told.warm_up
        per_s, took_ms = await rate(lambda n: submit(first + n), len(told.asked) - first, told.in_flight)
        pipe.send(Answered(per_s, took_ms, time.process_time() - begun_s))
        await connection.close()

    run(main())


class Generator:
    """The process of `work`, and what is said to it; that it ends before it answers is an error, and no long wait."""

    def __init__(self, work: Callable[[Any], None] = generator):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # else this process would hold the other end open, and never hear that it is gone

    async def ask(self, told: Any) -> Any:
        """What it answers. Raises CyxError when it is gone."""
        try:
            await asyncio.to_thread(self._pipe.send, told)
            return await asyncio.to_thread(self._pipe.recv)
        except (EOFError, OSError):
            await asyncio.to_thread(self._process.join)
            raise CyxError(
                f"the load generator ended with exit code {self._process.exitcode} before it answered; "
                "its own error stands above: mend that and run the benchmark again"
            ) from None

    async def join(self) -> None:
        await asyncio.to_thread(self._process.join)


async def seconds_of(work: Callable[[Any], None], told: list[Any]) -> float:
    """How long processes of `work` take together, one for each of `told`, once all of them are ready."""
    generators = [Generator(work) for _ in told]
    await asyncio.gather(*(each.ask(its) for each, its in zip(generators, told, strict=True)))
    begun = time.perf_counter()
    await asyncio.gather(*(each.ask("go") for each in generators))
    took_s = time.perf_counter() - begun
    await asyncio.gather(*(each.join() for each in generators))
    return took_s


def cpu_s_of(network: LocalNetwork) -> dict[str, float]:
    """Seconds of processor that each part of a network, and each process beside a part, has used so far."""
    found = {}
    for name, pid in network.process_ids.items():
        process = psutil.Process(pid)
        found[name] = sum(process.cpu_times()[:2])
        if beside := process.children():
            found[f"{name}'s signatures"] = sum(sum(child.cpu_times()[:2]) for child in beside)
    return found


@contextlib.contextmanager
def held_to(share: float, pids: list[int], cgroups: Path = CGROUPS) -> Iterator[None]:
    """Hold each of these processes, with its children, to that share of one processor, which it is given before others
    have theirs. Raises CyxError where the kernel does not let us.
    """
    second = (cgroups / "cgroup.controllers").exists()  # of the two interfaces that Linux has
    allowed_us = max(1_000, round(PERIOD_US * share))
    limits = {"cpu.max": f"{allowed_us} {PERIOD_US}", "cpu.weight": "10000"}
    if not second:  # the period first: no quota may be above it
        limits = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(allowed_us), "cpu.shares": "262144"}
    groups = [(cgroups if second else cgroups / "cpu") / f"cyx-bench-{os.getpid()}-{pid}" for pid in pids]
    try:
        try:
            if second:
                (cgroups / "cgroup.subtree_control").write_text("+cpu")
            for pid, group in zip(pids, groups, strict=True):
                group.mkdir()
                for name, limit in limits.items():
                    (group / name).write_text(limit)
                for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
                    with contextlib.suppress(ProcessLookupError):
                        (group / "cgroup.procs").write_text(str(each))
        except OSError as error:
            raise CyxError(
                f"no process can be held to a share of a processor here: {error}; --central-cpu needs Linux, and root "
                f"where {cgroups} may be written"
            ) from None
        yield
    finally:
        for group in groups:
            with contextlib.suppress(OSError):
                for each in (group / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):  # it has ended
                        (group.parent / "cgroup.procs").write_text(each)
                group.rmdir()


async def submissions(network: LocalNetwork, client: AsyncClient, jobs: int, equal: bool) -> tuple[Row, Row]:
    """The rate, and microseconds of processor per submission that each process took while it lasted."""
    job, warm_up = await ready_job(client, jobs * 2), max(200, jobs // 10)
    asking = Generator()
    asked = await requests_of(client, job, jobs + warm_up, equal)
    seed = credentials.nkey_seed(credentials.USER, client.keys.child("nats"))
    await asking.ask(Asked(network.file.client_url, client.caller, seed, asked, warm_up, IN_FLIGHT))
    before = cpu_s_of(network)
    found: Answered = await asking.ask("go")
    spent = {name: used - before.get(name, 0.0) for name, used in cpu_s_of(network).items()} | {
        "generator": found.cpu_s
    }
    await asking.join()
    stored = await client.jobs(limit=1)
    assert stored.total >= jobs, f"{stored.total} of {jobs} acknowledged jobs are there"
    row = {
        "submissions/s": found.per_s,
        "p50 ms": statistics.median(found.took_ms),
        "p99 ms": percentile(found.took_ms, 0.99),
    }
    return row, {f"{name} µs": used / jobs * 1e6 for name, used in spent.items()}


async def deposits(network: LocalNetwork, client: AsyncClient) -> Row:
    """Deposits of the jobs that became final a second, since the burst, and the processor that each took; central's
    and the broker's part has everything in it that follows a deposit.
    """

    async def waiting() -> int:
        return (await client.jobs(status="funding", limit=1)).total

    begun, before, used = time.perf_counter(), await waiting(), cpu_s_of(network)
    while await waiting():
        await asyncio.sleep(LOOK_EVERY_S)
    took_s, done = time.perf_counter() - begun, max(before, 1)
    failed = (await client.jobs(status="failed", limit=1)).total
    spent = {name: now - used.get(name, 0.0) for name, now in cpu_s_of(network).items()}
    row = {"deposits/s": done / took_s, "failed": float(failed)}
    return row | {f"{name} µs": each / done * 1e6 for name, each in spent.items()}


async def appends(network: LocalNetwork, count: int, payload: bytes) -> Row:
    """The same bytes into a stream of their own, with compare-and-swap and nothing else."""
    bus = await Bus.connect(network.file.core_url, name="bench")
    try:
        await bus.ensure_stream("BENCH", ["bench.>"])

        async def append(number: int) -> None:
            await bus.append(f"bench.{time.perf_counter_ns()}.{number}", payload, 0)

        alone, _ = await rate(append, count // 5, 1)
        together, _ = await rate(append, count, ALONE_IN_FLIGHT)
    finally:
        await bus.close()
    return {"one at a time /s": alone, f"{ALONE_IN_FLIGHT} in flight /s": together}


class Takes:
    """A node that takes every job and never trains: central's part of an assignment is what is measured."""

    def __init__(self, bus: Bus, key: Identity):
        self._bus = bus
        self._key = key
        self.node_id = f"bench-{self._key.short_id}"
        self._session = "0" * 32

    async def register(self) -> None:
        async def take(subject: str, command: Any) -> m.CommandReply:
            return m.CommandReply(accepted=True)

        await self._bus.answer(subjects.command(self.node_id), m.Command | m.SignedCommand, take)
        said = m.Register(
            node_id=self.node_id,
            session=self._session,
            name="bench",
            public_key=self._key.public_key,
            wallet="1" * 32,
            hardware=m.Hardware(cores=64, memory_bytes=2**50, memory_free_bytes=2**50, flops_per_s=1e11),
            max_runs=1024,
            signature="0" * 128,
            signed_commands=True,  # as every node of this version wants them
            shared_signatures=True,
        )
        said = replace(said, signature=self._key.sign(m.registration_bytes(said)))
        reply = await self._bus.ask(subjects.node(self.node_id, "register"), said, m.RegisterReply)
        self._beating = asyncio.create_task(self._beat(reply.heartbeat_ms / 1000))

    async def _beat(self, every_s: float) -> None:
        """On a busy machine it all takes longer than a node may be silent."""
        said = m.Heartbeat(node_id=self.node_id, session=self._session)
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(CyxError):
                await self._bus.ask(subjects.node(self.node_id, "heartbeat"), said, m.HeartbeatReply)

    def close(self) -> None:
        self._beating.cancel()


async def assignments(network: LocalNetwork, count: int) -> dict[str, Row]:
    """One job at a time, from the submit to the word that its lease is stored; each is cancelled then.

    idle: the one before has ended, with its deposit and refund final. back to back: it has not. And what such a network
    needs for its parts: a request that does nothing, and one durable append; an assignment has one and two of them.
    """
    key = Identity(b"benchmark-node-key-of-32-bytes!!")
    who = credentials.as_node(key, f"bench-{key.short_id}")
    node_bus = await Bus.connect(network.file.node_url, name="bench-node", credentials=who)
    rows: dict[str, Row] = {}
    node = Takes(node_bus, key)
    await node.register()
    try:
        async with await AsyncClient.connect(network.folder) as client:
            job = await ready_job(client, count * 4)
            leased: dict[str, asyncio.Future[float]] = {}
            ended: dict[str, asyncio.Event] = {}

            async def heard(subject: str, payload: bytes, headers: dict[str, str]) -> None:
                now, job_id = time.perf_counter(), subjects.last_token(subject)
                if b'"Leased"' in payload and not leased[job_id].done():
                    leased[job_id].set_result(now)
                elif b'"Settled"' in payload or b'"FundFailed"' in payload:
                    ended[job_id].set()

            await client.bus.subscribe(subjects.update("*"), heard)
            for what, idle in (("submit → assigned, idle", True), ("submit → assigned, back to back", False)):
                took_ms = []
                for job_id, asked in await requests_of(client, job, count, equal=False):
                    leased[job_id], ended[job_id] = asyncio.get_running_loop().create_future(), asyncio.Event()
                    begun = time.perf_counter()
                    await client.bus.request(subjects.api(client.caller, "job.submit"), asked, content_type=MSGPACK)
                    took_ms.append((await asyncio.wait_for(leased[job_id], 30) - begun) * 1000)
                    await client.cancel(job_id)
                    if idle:
                        await asyncio.wait_for(ended[job_id].wait(), 60)
                rows[what] = {"p50 ms": statistics.median(took_ms), "p99 ms": percentile(took_ms, 0.99)}
            await asyncio.gather(*(asyncio.wait_for(each.wait(), 60) for each in ended.values()))
            rows["the same network's parts"] = await parts(network, client, count)
    finally:
        node.close()
        await node_bus.close()
    return rows


async def parts(network: LocalNetwork, client: AsyncClient, count: int) -> Row:
    core = await Bus.connect(network.file.core_url, name="bench")
    found: Row = {}
    try:
        await core.ensure_stream("BENCH", ["bench.>"])
        works: dict[str, Callable[[int], Awaitable[Any]]] = {
            "empty request p50 ms": lambda n: client.bus.request(subjects.api(client.caller, "network.info"), b"{}"),
            "append p50 ms": lambda n: core.append(f"bench.alone.{n}", b"x" * 1500, 0),
        }
        for what, work in works.items():
            _, took_ms = await rate(work, count, 1)
            found[what] = statistics.median(took_ms)
    finally:
        await core.close()
    return found


async def ready_job(client: AsyncClient, jobs: int) -> m.JobRequest:
    """A job whose data is stored, and a wallet that can pay it so many times."""
    for _ in range(1 + jobs * LAMPORTS_PER_JOB // 10**10):
        await client.faucet(10**12, 10**10)
    loaded = jobfile.load(EXAMPLE)
    ref = await client.upload(loaded.data_path)
    return replace(loaded.request(ref), amount_base_units=1_000)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def measure(jobs: int, assigned: int, equal: bool) -> dict[str, Row]:
    found: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with LocalNetwork(Path(folder) / "idle", nodes=0) as network:
            found |= await assignments(network, assigned)
        async with LocalNetwork(Path(folder) / "load", nodes=0) as network:
            found["the broker alone"] = await appends(network, jobs, b"x" * 1500)
            async with await AsyncClient.connect(network.folder) as client:
                row, spent = await submissions(network, client, jobs, equal)
                found["durable submissions"], found["processor per submission"] = row, spent
                found["their deposits, afterwards"] = await deposits(network, client)
    return found


async def compare(jobs: int, centrals: int, equal: bool, share: float, rounds: int) -> dict[str, Row]:
    """The medians of one central and of several, each held to that share of a processor; and how the rates compare."""
    counts = (1, centrals)
    rows: dict[int, list[tuple[Row, Row]]] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            rows[count].append(await held_submissions(jobs, count, equal, share))
    found: dict[str, Row] = {}
    for count in counts:
        who = f"{count} central{'s' if count > 1 else ''} at {share:g}"
        per_s = [row["submissions/s"] for row, _ in rows[count]]
        found[who] = medians([row for row, _ in rows[count]]) | {"least /s": min(per_s), "most /s": max(per_s)}
        found[f"{who}, processor"] = medians([spent for _, spent in rows[count]])
    ratios = [
        several["submissions/s"] / one["submissions/s"]
        for (one, _), (several, _) in zip(*(rows[count] for count in counts), strict=True)
    ]
    found[f"{centrals} centrals ÷ 1, of each round"] = {
        "median": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }
    return found


async def held_submissions(jobs: int, centrals: int, equal: bool, share: float) -> tuple[Row, Row]:
    """submissions() of a network whose centrals are held to a share of a processor each."""
    with tempfile.TemporaryDirectory() as folder:
        async with LocalNetwork(Path(folder), nodes=0, centrals=centrals) as network:
            pids = [pid for name, pid in network.process_ids.items() if name.startswith("central")]
            with held_to(share, pids):
                async with await AsyncClient.connect(network.folder) as client:
                    return await submissions(network, client, jobs, equal)


def digits(value: float) -> int:
    return 2 if value < 10 else 1


def medians(rows: list[Row]) -> Row:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def share_of_one(text: str) -> float:
    """A share of one processor. Raises argparse's error for what is none, or less than the kernel can hold one to."""
    share = float(text)
    if not 0.1 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a share from 0.1 to 1 of one processor, got {text}")
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 jobs and 30 assignments")
    parser.add_argument("--centrals", type=int, default=1, help="2 or more: compare so many with one")
    parser.add_argument(
        "--central-cpu",
        type=share_of_one,
        default=0.2,
        metavar="SHARE",
        help="of a processor, to which each of the centrals that are compared is held (default: 0.2)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of a comparison (default: 3)")
    parser.add_argument("--equal", action="store_true", help="the same job again and again; else each has its own seed")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    jobs, assigned = (500, 30) if options.quick else (SIGNED_AT_ONCE, 300)
    if options.centrals > 1:
        jobs = min(jobs, COMPARED)
        found = run(compare(jobs, options.centrals, options.equal, options.central_cpu, options.rounds))
        what = f"{jobs} submissions, {options.rounds} rounds"
    else:
        found = run(measure(jobs, assigned, options.equal))
        what = f"{jobs} submissions, {assigned} assignments"
    figures = {what: {name: round(value, 2) for name, value in row.items()} for what, row in found.items()}
    save(options.save, figures)
    if options.json:
        print(json.dumps(figures))
        return 0
    print(f"{what}, {platform.processor() or platform.machine()}")
    for what, row in found.items():
        print(f"  {what:<34}" + "   ".join(f"{name} {value:>9,.{digits(value)}f}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
