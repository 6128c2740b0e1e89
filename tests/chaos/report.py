"""What a round amounts to: how quickly each kind of harm was over, how much work was done, one table. Pure."""

import math
from collections import Counter, defaultdict

from msgspec import Struct

from cyxnet import messages as m
from tests.chaos.causes import cause, effects, reasons
from tests.chaos.checker import Violation, event_of, histories, status_of
from tests.chaos.evidence import Evidence
from tests.chaos.faults import CENTRALS

REPLAY = (
    "python -m tests.chaos --seed {seed} --kills {kills} --jobs {jobs} --nodes {nodes} "
    "--clients {clients} --gap {gap:g}"
)


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
    failures: list[str]
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


def recoveries(evidence: Evidence) -> dict[str, list[int]]:
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
    for harm in evidence.harms:
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


def false_losses(evidence: Evidence) -> list[str]:
    """Nodes that were declared lost although nothing happened to them, their link, the broker or a central.

    A node that says goodbye (all do at the end of a round) is lost with a reason. Returns a line for each: which, when
    and why.
    """
    found, done = [], effects(evidence)
    for entry in evidence.log:
        event = entry.record.event if entry.record else None
        if isinstance(event, m.NodeLost) and entry.record and not event.graceful:
            name, at_ms = evidence.names.get(event.node_id, event.node_id), entry.record.at_ms
            suspects = {name, "broker", *CENTRALS}
            if not cause(done, suspects, at_ms, at_ms):
                last = cause(done, suspects, 0, at_ms)
                ago = f"{at_ms - last.since_ms} ms after {last.fault}" if last else "before any harm to it"
                found.append(f"{name} at {entry.seq} by {entry.record.by}: {event.reason}, {ago}")
    return found


def failures(evidence: Evidence) -> list[str]:
    """A line for each job that failed: what ended its tries, or why it was not paid."""
    found, done = [], effects(evidence)
    for about, history in histories(evidence):
        if status_of(history) == "failed":
            whys = reasons(history, done, evidence.names)
            found.append(f"{about}: " + "; ".join(f"{why.said}, {why.fault or 'for no fault'}" for why in whys))
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
        *(f"failed: {failure}" for failure in outcome.failures),
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
