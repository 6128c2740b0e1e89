"""What a kill -9 costs: how long until the network goes on, and whether anything acknowledged was lost.

    python -m benchmarks.bench_failover            # some minutes
    python -m benchmarks.bench_failover --quick    # one round of each
    python -m benchmarks.bench_failover --only node "training process"

broker leader      the leader of a stream on three nats-servers, under 16 writers: longest pause between two
                   acknowledgements. Its election timeout of 4 to 9 s is built in and decides.
one broker         the same writers on one nats-server that is started again at once: what a cluster is compared with.
central            one of two; once it is gone a job is submitted: until it is leased. Target p99 <= 2 s.
node               the holder of a lease, not started again: until the job has started on another one, beyond the
                   lease. Target <= 2 s.
training process   until the job has started again. Target <= 1 s.

Every time is taken from the kill to the event's arrival at a reader of the log.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.figures import add_save, machine, save
from cyxnet import jobfile, subjects
from cyxnet import messages as m
from cyxnet.broker import Passwords
from cyxnet.brokers import Brokers, Ports
from cyxnet.bus import Bus, BusError
from cyxnet.client import AsyncClient
from cyxnet.codec import MSGPACK, decode
from cyxnet.local import LocalNetwork
from cyxnet.outcomes import Stored
from cyxnet.parts import Part

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
WRITERS = 16
WARM_ACKS, ACKS_AFTER = 500, 200
HEARTBEAT_MS, LEASE_MS = 500, 4_000
PATIENCE_S = 120.0


class Result(Struct, kw_only=True):
    """One kind of kill. recovery_s: one value per round, beyond what the target does not count."""

    what: str
    recovery_s: list[float]
    target_s: float | None = None
    acknowledged: int | None = None
    lost: int | None = None

    def at(self, share: float) -> float:
        ordered = sorted(self.recovery_s)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    @property
    def verdict(self) -> str:
        """Whether p99 is within the target, and nothing that was acknowledged is lost; "-" without a target."""
        if self.lost:
            return "NO"
        if self.target_s is None:
            return "-"
        return "yes" if self.at(0.99) <= self.target_s else "NO"


# -- brokers -------------------------------------------------------------------------------------------


class Writers:
    """Compare-and-swap appends, each writer on a subject of its own; what was acknowledged is written down."""

    def __init__(self, bus: Bus):
        self._bus = bus
        self._stopped = False
        self.acked: dict[bytes, int] = {}
        self.ack_times_s: list[float] = []
        self._tasks = [asyncio.create_task(self._write(n)) for n in range(WRITERS)]

    async def _write(self, writer: int) -> None:
        last_seq = number = 0
        while not self._stopped:
            payload = b"%d/%d" % (writer, number)
            try:
                seq = await self._bus.append(f"log.{writer}", payload, last_seq)
            except BusError:
                found = await self._look_for(f"log.{writer}", payload)
                if found is None:
                    continue
                seq = found
            self.acked[payload], last_seq, number = seq, seq, number + 1
            self.ack_times_s.append(time.monotonic())

    async def _look_for(self, subject: str, payload: bytes) -> int | None:
        while not self._stopped:
            try:
                last = await self._bus.last("LOG", subject)
                return last.seq if last and last.payload == payload else None
            except BusError:
                await asyncio.sleep(0.02)
        return None

    async def acks(self, more: int) -> None:
        goal = len(self.ack_times_s) + more
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ack_times_s) < goal:
                await asyncio.sleep(0.01)

    def longest_pause_s(self, since_s: float) -> float:
        times = [since_s, *(at for at in self.ack_times_s if at >= since_s)]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))

    async def stop(self) -> None:
        """No cancel: one that meets the answer to an append would be lost, and the writer would go on."""
        self._stopped = True
        await asyncio.gather(*self._tasks)


async def stream_info(bus: Bus) -> dict[str, object]:
    while True:
        with contextlib.suppress(BusError):
            said, _ = await bus.request("$JS.API.STREAM.INFO.LOG", b"", timeout_s=1.0)
            found = json.loads(said)
            if "cluster" not in found or found["cluster"].get("leader"):
                return dict(found)
        await asyncio.sleep(0.05)


async def all_current(bus: Bus) -> None:
    """Until a further loss can be afforded."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            peers = (await stream_info(bus)).get("cluster", {}).get("replicas", [])  # type: ignore[attr-defined]
            if all(peer["current"] and not peer.get("offline") for peer in peers):
                return
            await asyncio.sleep(0.05)


async def everything(bus: Bus) -> dict[bytes, int]:
    stored: dict[bytes, int] = {}
    last_seq, complete = await bus.last_seq("LOG"), asyncio.Event()

    async def read(message: Stored) -> None:
        stored[message.payload] = message.seq
        if message.seq == last_seq:
            complete.set()

    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(BusError):
                await bus.follow("LOG", "log.>", 0, read, lambda seq: None)
                break
        await complete.wait()
    return stored


async def kill_brokers(rounds: int, count: int) -> Result:
    """Kill the leader of a stream on `count` servers, and start it again."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "logs").mkdir()
        brokers = Brokers(
            Path(folder), Passwords.fresh(), [Ports() for _ in range(count)], on_ready=lambda part, detail, ms: None
        )
        await brokers.start()
        bus = await Bus.connect(brokers.url("core"), name="bench")
        await bus.ensure_stream("LOG", ["log.>"], replicas=count)
        writers, pauses_s = Writers(bus), []
        try:
            for _ in range(rounds):
                await writers.acks(WARM_ACKS)
                cluster = (await stream_info(bus)).get("cluster", {})
                leader = cluster.get("leader", "").replace("cyx", "broker")  # type: ignore[attr-defined]
                victim = leader if count > 1 else "broker"
                killed_s = time.monotonic()
                os.kill(brokers.running[victim].process.pid, signal.SIGKILL)
                await brokers.ended(victim)
                await brokers.bring_up(victim)
                await writers.acks(ACKS_AFTER)
                pauses_s.append(writers.longest_pause_s(killed_s))
                await all_current(bus)
            await writers.stop()
            stored = await everything(bus)
        finally:
            await writers.stop()
            await bus.close()
            await brokers.stop()
    lost = sum(stored.get(payload) != seq for payload, seq in writers.acked.items())
    what = f"broker leader (1 of {count})" if count > 1 else "one broker, restarted"
    return Result(what=what, recovery_s=pauses_s, acknowledged=len(writers.acked), lost=lost)


# -- the network ---------------------------------------------------------------------------------------


class Log:
    """The event log as it arrives; waits for an event and says when it came."""

    def __init__(self) -> None:
        self.records: list[tuple[float, str, m.Record]] = []
        self._more = asyncio.Event()

    async def take(self, stored: Stored) -> None:
        record = decode(m.Record, stored.payload, MSGPACK, max_bytes=2**31)
        self.records.append((time.monotonic(), subjects.last_token(stored.subject), record))
        self._more.set()
        self._more = asyncio.Event()

    async def when(self, wanted: Callable[[str, m.Record], bool]) -> tuple[float, m.Record]:
        """When the first record of this kind came, now or in future, and the record."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for at_s, about, record in self.records:
                    if wanted(about, record):
                        return at_s, record
                await self._more.wait()


class Scene(Struct, kw_only=True):
    """A network with two centrals and two nodes that nobody starts again."""

    network: LocalNetwork
    client: AsyncClient
    log: Log
    nodes: dict[str, Part]
    ready: "asyncio.Queue[str]"  # parts that got ready

    def start_node(self, name: str) -> Part:
        folder = self.network.folder
        command = [sys.executable, "-P", "-m", "cyxnode", "--dir", str(folder), "--name", name, "--guard-stdin"]
        part = self.nodes[name] = Part(name, command, folder / "logs" / f"{name}.log")
        return part

    async def submit(self, epochs: int) -> str:
        job = jobfile.load(EXAMPLE)
        job = replace(job, training=replace(job.training, epochs=epochs))
        return (await self.client.submit(job)).job_id

    async def started(self, job_id: str, attempt: int) -> tuple[float, str]:
        """When an attempt started, and on which node."""

        def leased(about: str, record: m.Record) -> bool:
            return about == job_id and isinstance(record.event, m.Leased) and record.event.attempt == attempt

        def begun(about: str, record: m.Record) -> bool:
            return about == job_id and isinstance(record.event, m.Started) and record.event.attempt == attempt

        at_s, _ = await self.log.when(begun)
        _, lease = await self.log.when(leased)
        assert isinstance(lease.event, m.Leased)
        return at_s, lease.event.node_id.rsplit("-", 1)[0]

    async def end(self, job_id: str) -> None:
        await self.client.cancel(job_id)
        await self.client.wait(job_id)


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        ready: asyncio.Queue[str] = asyncio.Queue()
        async with LocalNetwork(
            Path(folder) / "net",
            nodes=0,
            centrals=2,
            heartbeat_ms=HEARTBEAT_MS,
            lease_ms=LEASE_MS,
            on_ready=lambda part, detail, ms: ready.put_nowait(part),
        ) as network:
            core = await Bus.connect(network.file.core_url, name="bench-core")
            async with await AsyncClient.connect(network.folder) as client:
                here = Scene(network=network, client=client, log=Log(), nodes={}, ready=ready)
                await core.follow(subjects.EVENTS, subjects.EVENT_SUBJECTS, 0, here.log.take, lambda seq: None)
                await client.faucet(10_000_000_000_000)
                try:
                    await asyncio.gather(*(here.start_node(name).start() for name in ("first", "second")))
                    yield here
                finally:
                    await core.close()
                    await asyncio.gather(*(part.stop() for part in here.nodes.values()))


def links_of_centrals(monitor_url: str) -> int:
    """How many centrals the broker believes to be there."""
    with urllib.request.urlopen(f"{monitor_url}/connz?limit=1024", timeout=5) as answer:
        return sum(link.get("name") == "cyx-central-edge" for link in json.load(answer)["connections"])


async def kill_central(here: Scene, round_: int) -> float:
    victim = ("central", "central-2")[round_ % 2]
    while not here.ready.empty():
        here.ready.get_nowait()
    job = jobfile.load(EXAMPLE)
    prepared = await here.client.prepare(replace(job, training=replace(job.training, epochs=1)))
    killed_s = time.monotonic()
    process = psutil.Process(here.network.process_ids[victim])
    os.kill(process.pid, signal.SIGKILL)
    # a request that the broker still hands to the dead one is the client's to repeat, and tells nothing of the other
    while await asyncio.to_thread(links_of_centrals, here.network.file.monitor_url) > 1:
        await asyncio.sleep(0.005)
    placed = await here.client.place(prepared)
    leased_s, _ = await here.log.when(
        lambda about, record: about == placed.job_id and isinstance(record.event, m.Leased)
    )
    await here.client.wait(placed.job_id)
    async with asyncio.timeout(PATIENCE_S):
        while await here.ready.get() != victim:
            pass
    return leased_s - killed_s


async def kill_node(here: Scene, round_: int) -> float:
    job_id = await here.submit(epochs=5_000)
    _, holder = await here.started(job_id, 1)
    process = here.nodes[holder].process
    assert process is not None
    killed_s = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    await here.nodes[holder].ended()
    started_s, elsewhere = await here.started(job_id, 2)
    assert elsewhere != holder
    await here.end(job_id)
    await here.start_node(holder).start()
    return started_s - killed_s - LEASE_MS / 1000


async def kill_training(here: Scene, round_: int) -> float:
    job_id = await here.submit(epochs=5_000)
    _, holder = await here.started(job_id, 1)
    process = here.nodes[holder].process
    assert process is not None
    runs = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "cyxnode.train" in " ".join(child.cmdline())
        and child.rlimit(psutil.RLIMIT_FSIZE)[0] != psutil.RLIM_INFINITY  # which comes with an order: others wait
    ]
    training = max(runs, key=lambda child: child.create_time())  # that of the round before may not be gone
    killed_s = time.monotonic()
    training.kill()
    started_s, _ = await here.started(job_id, 2)
    await here.end(job_id)
    return started_s - killed_s


NETWORK_KILLS: dict[str, tuple[Callable[[Scene, int], Awaitable[float]], float]] = {
    "central": (kill_central, 2.0),
    "node": (kill_node, 2.0),
    "training process": (kill_training, 1.0),
}
BROKER_KILLS = {"broker leader": 3, "one broker": 1}
KINDS = [*BROKER_KILLS, *NETWORK_KILLS]


async def measure(kinds: list[str], rounds: int) -> list[Result]:
    results = [await kill_brokers(rounds, BROKER_KILLS[kind]) for kind in kinds if kind in BROKER_KILLS]
    wanted = [kind for kind in kinds if kind in NETWORK_KILLS]
    if wanted:
        async with scene() as here:
            for kind in wanted:
                kill, target_s = NETWORK_KILLS[kind]
                times_s = [await kill(here, round_) for round_ in range(rounds)]
                name = f"{kind}, beyond its lease of {LEASE_MS / 1000:g} s" if kind == "node" else kind
                results.append(Result(what=name, recovery_s=times_s, target_s=target_s))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of each instead of ten")
    parser.add_argument("--rounds", type=int, metavar="N", help="how many rounds of each (default 10)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    where = f"{machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    results = asyncio.run(measure(options.only, options.rounds or (1 if options.quick else 10)))
    rows = [
        {
            "what": result.what,
            "rounds": len(result.recovery_s),
            "p50_s": round(statistics.median(result.recovery_s), 3),
            "p99_s": round(result.at(0.99), 3),
            "target_s": result.target_s,
            "met": result.verdict,
            "acknowledged": result.acknowledged,
            "lost": result.lost,
        }
        for result in results
    ]
    save(options.save, {"machine": where, "kills": rows})
    if options.json:
        print(json.dumps({"machine": where, "kills": rows}))
        return 0
    print(f"kill -9 → the network goes on; {where}")
    print(f"  {'killed':<34}{'rounds':>7}{'p50 s':>9}{'p99 s':>9}{'target s':>10}{'met':>5}   acknowledged → lost")
    for result in results:
        target = f"{result.target_s:g}" if result.target_s is not None else "-"
        lost = "" if result.lost is None else f"{result.acknowledged} → {result.lost}"
        median = statistics.median(result.recovery_s)
        print(
            f"  {result.what:<34}{len(result.recovery_s):>7}{median:>9.2f}{result.at(0.99):>9.2f}{target:>10}"
            f"{result.verdict:>5}   {lost}"
        )
    return 1 if any(result.lost for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
