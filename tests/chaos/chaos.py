"""One round: bring a network up, load it, harm it by the plan, let it come to rest, check everything."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil
from msgspec import Struct, structs

from tests.chaos import evidence as witness
from tests.chaos import report
from tests.chaos.checker import violations
from tests.chaos.evidence import Evidence, Watcher
from tests.chaos.faults import TRAINING, Fault, Harm, plan
from tests.chaos.fleet import Fleet
from tests.chaos.load import Load
from tests.chaos.proxy import pause
from tests.chaos.report import Outcome

SETTLE_S = 60.0  # after the last fault every acknowledged job ends within this
VICTIM_PATIENCE_S = 20.0  # for a part that is to be killed and is still coming up


class Options(Struct, frozen=True, kw_only=True):
    """What a round is made of."""

    seed: int = 1
    kills: int = 200
    jobs: int = 150
    nodes: int = 4
    clients: int = 4
    mean_gap_s: float = 1.2
    full_disk: bool = False  # the folder's broker/ is a small disk of its own


class Round:
    """The faults of one round, done to a fleet while a watcher reads the log."""

    def __init__(self, fleet: Fleet, watcher: Watcher, say: Callable[[str], None]):
        self.harms: list[Harm] = []
        self._fleet = fleet
        self._watcher = watcher
        self._say = say
        self._lasting: set[asyncio.Task[None]] = set()
        self._never = asyncio.Event()

    async def do(self, faults: list[Fault]) -> None:
        """All of them in order; those that last overlap with what comes next. Returns when the last one is over."""
        for fault in faults:
            await pause(fault.wait_s, self._never)
            hit = await self._hit(fault)
            if hit is None:
                self._say(f"not done, the victim did not come up: {fault}")
                continue
            part, jobs = hit
            self.harms.append(Harm(at_ms=time.time_ns() // 1_000_000, fault=fault, part=part, jobs=jobs))
            self._say(str(fault))
        await asyncio.gather(*self._lasting)

    async def _hit(self, fault: Fault) -> tuple[str, list[str]] | None:
        """Do it; None when there was no victim for too long.

        Returns the part that it hit, where that is another than the victim, and the jobs whose lease that held.
        """
        if fault.deed in ("network", "fill"):
            lasting = self._fleet.spoil(fault) if fault.deed == "network" else self._fleet.fill_disk(fault.lasts_s)
            self._last(lasting)
            return "", []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(VICTIM_PATIENCE_S):
                while (hit := self._try(fault)) is None:
                    await pause(0.05, self._never)
                return hit
        return None

    def _try(self, fault: Fault) -> tuple[str, list[str]] | None:
        if fault.victim == TRAINING:
            found = self._fleet.training_process(self._watcher.leased_nodes(), fault.pick)
            if found is None:
                return None
            node_id, process = found
            if fault.deed == "kill":
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            else:
                self._last(self._fleet.freeze(process.pid, fault.lasts_s))
            return self._fleet.node_name(node_id) or "", self._held_by(node_id)
        member = self._fleet.members[fault.victim]
        jobs = self._held_by(str(member.said.get("node_id")))
        if fault.deed == "kill":
            return ("", jobs) if self._fleet.kill(fault.victim, fault.lasts_s) else None
        if member.pid is None:
            return None
        self._last(self._fleet.freeze(member.pid, fault.lasts_s))
        return "", jobs

    def _held_by(self, node_id: str) -> list[str]:
        return [job for job, lease in self._watcher.live.items() if lease.node_id == node_id]

    def _last(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.create_task(work)
        self._lasting.add(task)
        task.add_done_callback(self._lasting.discard)


async def play(folder: Path, options: Options, say: Callable[[str], None]) -> tuple[Outcome, Evidence]:
    """One round in `folder`, which is kept for whoever wants to look."""
    begun_s = time.monotonic()

    def tell(text: str) -> None:
        jobs = f"{len(load.acknowledged):>4} jobs taken, {load.open_jobs:>3} open" if load.told else ""
        say(f"{time.monotonic() - begun_s:7.1f} s  {text:<52} {jobs}")

    load = Load(folder, options.seed, options.clients, options.jobs)
    faults = plan(options.seed, options.kills, options.nodes, options.mean_gap_s, options.full_disk)
    fleet = Fleet(folder, nodes=options.nodes, on_event=lambda text: tell(f"    {text}"))
    try:
        async with fleet:
            await load.open(fleet.file.client_url)
            watcher = await Watcher.start(fleet.file.core_url)
            tell(f"up: {len(fleet.members)} parts; {len(faults)} faults to come")
            begun_load_s = time.monotonic()
            loading = asyncio.create_task(load.run())
            done = Round(fleet, watcher, tell)
            await done.do(faults)
            fleet.calm()
            settle_s = await _come_to_rest(fleet, load, watcher, loading)
            seconds = time.monotonic() - begun_load_s
            tell(f"at rest after {settle_s:.1f} s")
            evidence = await witness.gather(fleet, load, watcher, done.harms)
            await watcher.bus.close()
            await load.close()
    finally:
        await load.close()
    evidence.left_behind = await witness.left_behind(fleet)
    outcome = _outcome(options, evidence, seconds, settle_s, len(load.acknowledged))
    return outcome, evidence


async def _come_to_rest(fleet: Fleet, load: Load, watcher: Watcher, loading: "asyncio.Task[None]") -> float:
    """Wait until every job has ended and every client knows; SETTLE_S at the longest. Returns the seconds it took.

    A round of few faults may end before enough jobs were begun: those come first, and are no part of that time.
    """
    load.enough.set()
    while not load.all_begun and not loading.done():
        await pause(0.1, load.over)
    begun_s = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await asyncio.shield(loading)
            while watcher.open or any(member.pid is None for member in fleet.members.values()):
                watcher.grew.clear()
                await pause(0.1, watcher.grew)
    seconds = time.monotonic() - begun_s
    load.over.set()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    return seconds


def _outcome(
    options: Options,
    evidence: Evidence,
    seconds: float,
    settle_s: float,
    acknowledged: int,
) -> Outcome:
    up_again: dict[str, list[int]] = defaultdict(list)
    for restart in evidence.restarts:
        up_again[report.group_of(restart.name)].append(restart.ready_at_ms - restart.ended_at_ms)
    deeds = Counter(harm.fault.deed for harm in evidence.harms)
    statuses, leases = report.tally(evidence)
    return Outcome(
        seed=options.seed,
        kills=Counter(report.group_of(harm.fault.victim) for harm in evidence.harms if harm.fault.deed == "kill"),
        pauses=deeds["stop"],
        network_faults=deeds["network"],
        full_disks=deeds["fill"],
        violations=violations(evidence),
        recovery_ms=report.recoveries(evidence),
        up_again_ms=dict(up_again),
        acknowledged=acknowledged,
        statuses=statuses,
        leases=leases,
        failures=report.failures(evidence),
        false_losses=report.false_losses(evidence),
        other_metrics=report.other_metrics(evidence),
        seconds=seconds,
        settle_s=settle_s,
        replay=_replay(options),
    )


def _replay(options: Options) -> str:
    said = report.REPLAY.format(**structs.asdict(options), gap=options.mean_gap_s)
    return f"{said} --full-disk" if options.full_disk else said
