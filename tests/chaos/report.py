"""What a round amounts to: how quickly each kind of harm was over, how much work was done, one table. Pure."""

import math
from collections import Counter, defaultdict

from msgspec import Struct

from cyxnet import messages as m
from tests.chaos.checker import Violation, event_of, histories, status_of
from tests.chaos.evidence import Evidence
from tests.chaos.faults import CENTRALS, Fault

REPLAY = (
    "python -m tests.chaos --seed {seed} --kills {kills} --jobs {jobs} --nodes {nodes} "
    "--clients {clients} --gap {gap:g}"
)


class Harm(Struct, frozen=True, kw_only=True):
    """A fault as it was done. jobs: whose lease was with the process that was hit."""

    at_ms: int
    fault: Fault
    jobs: list[str] = []


class Outcome(Struct, kw_only=True):
    """One round. recovery_ms: for each kind of kill, how long until the harm was over, each time."""

    seed: int
    kills: Counter[str]
    pauses: int
    network_faults: int
    full_disks: int
    violations: list[Violation]
    recovery_ms: dict[str, list[int]]
    up_again_ms: dict[str, list[int]]
    acknowledged: int
    statuses: Counter[str]
    leases: int
    false_losses: list[str]
    other_metrics: int
    seconds: float
    settle_s: float
    replay: str

    @property
    def goodput(self) -> float:
        """Completed jobs per second, everything included."""
        return self.statuses["completed"] / self.seconds


def group_of(victim: str) -> str:
    """central-a -> central; node-3 -> node; central-b.core -> central link."""
    name, _, account = victim.partition(".")
    group = name.rpartition("-")[0] or name
    return f"{group} link" if account else group


def recoveries(evidence: Evidence, harms: list[Harm]) -> dict[str, list[int]]:
    """Milliseconds from each kill to the end of its effect.

    broker, central, chain: until the next event of any job is in the log. node, training: until each job it worked on
    was given out again, or had ended.
    """
    times = sorted(entry.record.at_ms for entry in evidence.log if entry.record and ".event.job." in entry.subject)
    moves = {
        about: [entry.record.at_ms for entry in history if entry.record and isinstance(event_of(entry), MOVES_ON)]
        for about, history in histories(evidence)
    }
    found: dict[str, list[int]] = defaultdict(list)
    for harm in harms:
        if harm.fault.deed != "kill":
            continue
        group = group_of(harm.fault.victim)
        lists = [moves.get(job, []) for job in harm.jobs] if group in ("node", "training") else [times]
        for each in lists:
            after = [at_ms - harm.at_ms for at_ms in each if at_ms > harm.at_ms]
            if after:
                found[group].append(min(after))
    return dict(found)


MOVES_ON = m.Leased | m.Completed | m.Settled


def false_losses(evidence: Evidence, harms: list[Harm], names: dict[str, str], memory_ms: int) -> list[str]:
    """Nodes that were declared lost although nothing happened to them, their link, the broker or a central.

    A node that says goodbye (all do at the end of a round) is lost with a reason. names: node id -> its part.
    memory_ms: how long before the loss a harm may lie to explain it. Returns a line for each: which, when and why.
    """
    found = []
    for entry in evidence.log:
        event = entry.record.event if entry.record else None
        if isinstance(event, m.NodeLost) and entry.record and not event.graceful:
            name = names.get(event.node_id, event.node_id)
            suspects = {name, "broker", *CENTRALS}
            of_it = (harm for harm in harms if harm.fault.victim.partition(".")[0] in suspects)
            ages_ms = [(entry.record.at_ms - harm.at_ms, harm.fault) for harm in of_it]
            ages_ms = [each for each in ages_ms if each[0] >= 0]
            if not any(age_ms <= memory_ms + fault.lasts_s * 1000 for age_ms, fault in ages_ms):
                age_ms, fault = min(ages_ms, key=lambda each: each[0], default=(0, None))
                ago = f"{age_ms} ms after {fault}" if fault else "before any harm to it"
                found.append(f"{name} at {entry.seq} by {entry.record.by}: {event.reason}, {ago}")
    return found


def other_metrics(evidence: Evidence) -> int:
    """Ledgers with a metric that the broker lost in a kill before it was on disk: no promise, but worth a number."""
    rebuilt = evidence.ledgers["rebuilt"]
    return sum(ledger.metrics_hash != rebuilt.metrics_hash for ledger in evidence.ledgers.values())


def percentile(values: list[int], share: float) -> int:
    """The smallest value that `share` of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def lost_doubled_stuck(found: list[Violation]) -> tuple[int, int, int]:
    """The three numbers that must be zero."""
    count = Counter(violation.rule for violation in found)
    return count["an acknowledged job exists"], count["a job is paid once"], count["a job ends"]


def tally(evidence: Evidence) -> tuple[Counter[str], int]:
    """Jobs by how they ended, and how many leases they took."""
    statuses = Counter(status_of(history) for _, history in histories(evidence))
    leases = sum(isinstance(entry.record.event, m.Leased) for entry in evidence.log if entry.record)
    return statuses, leases


def table(outcome: Outcome) -> str:
    """For people."""
    lost, doubled, stuck = lost_doubled_stuck(outcome.violations)
    lines = [
        f"{'killed':<12}{'times':>6}{'  over after: p50':>18}{'p99':>8}{'slowest':>9}{'  up again p50':>15}",
    ]
    for group, times in sorted(outcome.kills.items()):
        waits = outcome.recovery_ms.get(group, [])
        up = outcome.up_again_ms.get(group, [])
        shown = [f"{percentile(waits, share):,} ms" if waits else "-" for share in (0.5, 0.99, 1.0)]
        up_shown = f"{percentile(up, 0.5):,} ms" if up else "-"
        lines.append(f"{group:<12}{times:>6}{shown[0]:>18}{shown[1]:>10}{shown[2]:>10}{up_shown:>13}")
    ends = ", ".join(f"{count} {status}" for status, count in sorted(outcome.statuses.items()))
    lines += [
        "",
        *(f"lost without a reason: {loss}" for loss in outcome.false_losses),
        f"{sum(outcome.kills.values())} kills, {outcome.pauses} pauses, {outcome.network_faults} network faults "
        f"and {outcome.full_disks} full disks in {outcome.seconds:.0f} s",
        f"all jobs had ended {outcome.settle_s:.1f} s after the last",
        f"{outcome.acknowledged} jobs acknowledged: {ends}; {outcome.leases} leases, {outcome.goodput:.2f} completed/s",
        f"nodes declared lost without a reason: {len(outcome.false_losses)}   "
        f"ledgers with metrics that the broker lost: {outcome.other_metrics}",
        f"lost acknowledged jobs: {lost}   double payments: {doubled}   stuck jobs: {stuck}   "
        f"broken promises: {len(outcome.violations)}",
    ]
    return "\n".join(lines)


def evidence_of(violation: Violation, evidence: Evidence) -> str:
    """A violation with everything the log says about it."""
    lines = [f"BROKEN: {violation.rule}: {violation.about}: {violation.found}"]
    for about, history in histories(evidence):
        if about == violation.about:
            lines += [f"    {e.seq:>6}  {e.record.at_ms}  {e.record.by}  {e.record.event}"[:400]
                      for e in history if e.record]  # fmt: skip
    return "\n".join(lines)
