"""What explains a loss or a failed job: the faults that may have caused it. Pure.

Nothing here looks at why a node says that a run ended, but at what was done, to whom and when: a process that dies
without having been killed is nobody's fault but ours.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from cyxnet import messages as m
from tests.chaos.evidence import Entry, Evidence
from tests.chaos.faults import CENTRALS, TRAINING, Fault
from tests.chaos.fleet import LEASE_MS

LINGERS_MS = 2 * LEASE_MS  # after its end, for leases that run out and parts that find each other again
UNCOUNTED = ("refused", "paused", "node_stopped")  # codes of attempts that were no try
KILLED = ("process_died", "process_garbled")  # codes of runs whose process was there no more: only a kill does that


class Effect(NamedTuple):
    """A fault, the part that it hit, and the time (in ms of the clock) in which it may do harm."""

    fault: Fault
    part: str
    since_ms: float
    until_ms: float


class Reason(NamedTuple):
    """Something that made a job fail. fault: what explains it, in words; "" when nothing does."""

    said: str
    fault: str


def effects(evidence: Evidence) -> list[Effect]:
    """Of all faults, in the order in which they were done. What was killed is not itself before it is ready again."""
    found = []
    for harm in evidence.harms:
        part = harm.part or harm.fault.victim.partition(".")[0]
        over_ms = harm.at_ms + harm.fault.lasts_s * 1000
        if harm.fault.deed == "kill" and harm.fault.victim != TRAINING:
            again = [each.ready_at_ms for each in evidence.restarts if each.name == part]
            over_ms = max(over_ms, min((at_ms for at_ms in again if at_ms > harm.at_ms), default=math.inf))
        found.append(Effect(harm.fault, part, harm.at_ms, over_ms + LINGERS_MS))
    return found


def cause(found: list[Effect], parts: set[str], since_ms: float, until_ms: float) -> Effect | None:
    """The newest fault of one of these parts that may have done harm in that time."""
    fitting = [e for e in found if e.part in parts and e.since_ms <= until_ms and e.until_ms >= since_ms]
    return max(fitting, key=lambda effect: effect.since_ms, default=None)


def reasons(history: list[Entry], found: list[Effect], names: dict[str, str]) -> Iterator[Reason]:
    """Why a job failed, by the events of its life. names: node id -> its part."""
    records = [entry.record for entry in history if entry.record]
    job, last, others = None, records[-1], {"broker", *CENTRALS}
    leased_ms, node, tries, fatal = 0, "", 0, False
    for record in records:
        match record.event:
            case m.Submitted():
                job = record.event.job
            case m.Leased():
                leased_ms, node = record.at_ms, names.get(record.event.node_id, record.event.node_id)
            case m.LeaseLost() as lost if lost.code not in UNCOUNTED and not lost.discards:
                tries, fatal = tries + 1, fatal or lost.deterministic
                suspects = {node} if lost.code in KILLED else {node, *others}
                culprit = None if lost.deterministic else cause(found, suspects, leased_ms, record.at_ms)
                yield _reason(f"try {tries} on {node} ended ({lost.code}: {lost.reason})", culprit, record.at_ms)
    if isinstance(last.event, m.FundFailed):
        culprit = cause(found, {"chain", *others}, records[0].at_ms, last.at_ms)
        yield _reason(f"it was not paid ({last.event.reason})", culprit, last.at_ms)
    elif isinstance(last.event, m.Refunded):
        yield Reason("its escrow was refunded, which nobody asked for", "")
    elif job and tries < job.max_attempts and not fatal:
        yield Reason(f"it was tried {tries} times, may be {job.max_attempts} times, and was given up", "")


def _reason(said: str, culprit: Effect | None, at_ms: int) -> Reason:
    return Reason(said, f"{at_ms - culprit.since_ms:.0f} ms after {culprit.fault}" if culprit else "")
