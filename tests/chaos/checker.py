"""Which promises does the evidence break? Pure: records in, violations out; tests forge the records.

The checker has its own small idea of a job's life, written down apart from cyxcentral/jobs.py: it does not ask the
accused for the law.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from cyxnet import messages as m
from cyxnet.identity import verify
from tests.chaos.causes import effects, reasons
from tests.chaos.evidence import Entry, Evidence

ENDS = (m.Settled, m.FundFailed, m.Refunded)
REPORTS = (m.Started, m.Checkpointed, m.Completed)
ENDED = ("completed", "failed", "cancelled")
LOSES_LEASE = (m.LeaseLost, m.Completed, m.CancelRequested, m.FundFailed)


class Violation(Struct, frozen=True, kw_only=True):
    """A broken promise: which, about what, and what was found."""

    rule: str
    about: str
    found: str


Broken = Iterator[tuple[str, str]]  # (about, what was found)


def violations(evidence: Evidence) -> list[Violation]:
    """Every broken promise, in the order of RULES."""
    return [
        Violation(rule=rule, about=about, found=found)
        for rule, check in RULES.items()
        for about, found in check(evidence)
    ]


# -- the log itself --------------------------------------------------------------------------------------


def _log_is_whole(evidence: Evidence) -> Broken:
    expected = 1
    for entry in evidence.log:
        if entry.seq != expected:
            yield entry.subject, f"sequence {entry.seq} where {expected} was due"
        expected = entry.seq + 1
        if entry.record is None:
            yield entry.subject, f"record {entry.seq} cannot be read"
    if expected != evidence.last_seq + 1:
        yield "log", f"it ends at {expected - 1}, the broker says {evidence.last_seq}"


def _log_is_final(evidence: Evidence) -> Broken:
    now = {entry.seq: entry.sha256 for entry in evidence.log}
    for seq, digest in evidence.watched.items():
        if now.get(seq) != digest:
            yield f"event {seq}", "was read during the round, and is another one now" if seq in now else "is gone"


# -- jobs ------------------------------------------------------------------------------------------------


def _acknowledged_exist(evidence: Evidence) -> Broken:
    submitted = {about for about, _ in histories(evidence)}
    for told in evidence.told:
        if told.what == "submitted" and told.job_id not in submitted:
            yield told.job_id, f"was acknowledged to {told.client} and is not in the log"


def _jobs_end(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        if not isinstance(event_of(history[-1]), ENDS):
            yield about, f"has not ended; the last it knew is {type(event_of(history[-1])).__name__}"


def _one_job_per_id(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        first, rest = event_of(history[0]), history[1:]
        if not isinstance(first, m.Submitted):
            yield about, f"begins with {type(first).__name__}"
        elif about in evidence.asked and first.job != evidence.asked[about]:
            yield about, "is not the job that the client asked for"
        for entry in rest:
            if isinstance(event_of(entry), m.Submitted):
                yield about, f"is submitted again at {entry.seq}"


def _one_lease_at_a_time(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        attempt, live = 0, False
        for entry in history:
            event = event_of(entry)
            if isinstance(event, m.Leased):
                if live:
                    yield about, f"is leased at {entry.seq} while attempt {attempt} holds the lease"
                if event.attempt != attempt + 1:
                    yield about, f"attempt {event.attempt} follows attempt {attempt}"
                attempt, live = event.attempt, True
            elif isinstance(event, LOSES_LEASE):
                live = False


def _reported_by_the_holder(evidence: Evidence) -> Broken:
    keys = {
        (event.node_id, event.session): event.public_key
        for entry in evidence.log
        if entry.record and isinstance(event := entry.record.event, m.NodeRegistered)
    }
    for about, history in histories(evidence):
        lease: m.Leased | None = None
        for entry in history:
            event = event_of(entry)
            kind = type(event).__name__
            if isinstance(event, REPORTS) and (lease is None or event.attempt != lease.attempt):
                yield about, f"{kind} at {entry.seq} of attempt {event.attempt}, which holds no lease"
            elif isinstance(event, m.Completed | m.Checkpointed) and lease:
                if event.node_id != lease.node_id or not _signed(about, event, lease, keys):
                    yield about, f"{kind} at {entry.seq} is not signed by the holder of the lease"
            if isinstance(event, m.Leased):
                lease = event
            elif isinstance(event, LOSES_LEASE):
                lease = None


def _signed(
    job_id: str, event: m.Completed | m.Checkpointed, lease: m.Leased, keys: dict[tuple[str, str], str]
) -> bool:
    """Whether the session that held the lease signed for this model or this state."""
    who: dict[str, Any] = {"node_id": event.node_id, "session": lease.session, "job_id": job_id}
    who |= {name: getattr(event, name) for name in ("attempt", "network_id", "sequence", "expires_ms", "signature")}
    if isinstance(event, m.Completed):
        said = m.RunCompleted(
            **who,
            model=event.model,
            graph_sha256=event.graph_sha256,
            summary=event.summary,
        )
        signed = m.completion_bytes(said)
    else:
        signed = m.checkpoint_bytes(m.RunCheckpoint(**who, checkpoint=event.checkpoint))
    key = keys.get((lease.node_id, lease.session))
    return key is not None and verify(key, signed, event.signature)


def _goes_on(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        newest: m.Checkpoint | None = None
        for entry in history:
            event = event_of(entry)
            if isinstance(event, m.Checkpointed):
                if newest and event.checkpoint.step <= newest.step:
                    yield about, f"the checkpoint at {entry.seq} is older than the one before"
                newest = event.checkpoint
            elif isinstance(event, m.Leased) and event.resume != newest:
                yield about, f"the lease at {entry.seq} does not go on from the newest checkpoint"


def _the_end_is_the_end(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        ended: str | None = None
        completed = False
        for entry in history:
            event = event_of(entry)
            if ended:
                yield about, f"{type(event).__name__} at {entry.seq}, after {ended}"
            if completed and isinstance(event, m.CancelRequested):
                yield about, f"is cancelled at {entry.seq}, after it was completed"
            if isinstance(event, ENDS):
                ended = type(event).__name__
            completed = completed or isinstance(event, m.Completed)


def _clients_were_told_the_truth(evidence: Evidence) -> Broken:
    statuses = {about: status_of(history) for about, history in histories(evidence)}
    for told in evidence.told:
        status = statuses.get(told.job_id)
        if told.what == "ended" and told.status != status:
            yield told.job_id, f"{told.client} was told it is {told.status}; it is {status}"
        if told.what == "cancel accepted" and status not in ("cancelled", None):
            yield told.job_id, f"{told.client} was told it is cancelled; it is {status}"


def _fails_for_a_fault(evidence: Evidence) -> Broken:
    done = effects(evidence)
    for about, history in histories(evidence):
        if status_of(history) == "failed":
            for why in reasons(history, done, evidence.names):
                if not why.fault:
                    yield about, why.said


def _begins_after_others(evidence: Evidence) -> Broken:
    models = {  # job id -> where its delivery lies in the log, and the model
        about: (entry.seq, event.model.sha256)
        for about, history in histories(evidence)
        for entry in history
        if isinstance(event := event_of(entry), m.Completed)
    }
    for about, history in histories(evidence):
        first = event_of(history[0])
        for after in first.job.after if isinstance(first, m.Submitted) else ():
            delivered, model = models.get(after.job_id, (0, ""))
            for entry in history:
                event = event_of(entry)
                if isinstance(event, m.Leased | m.DependenciesMet) and not 0 < delivered < entry.seq:
                    yield about, f"{type(event).__name__} at {entry.seq}, before {after.job_id} is completed"
                if isinstance(event, m.DependenciesMet) and after.model and event.weights != model:
                    yield about, f"begins at {entry.seq} with {event.weights[:8]}, not with the model of {after.job_id}"
                if isinstance(event, m.DependencyFailed) and event.job_id == after.job_id and delivered:
                    yield about, f"is cancelled at {entry.seq} for {after.job_id}, which is completed"


def _equal_jobs_are_equal(evidence: Evidence) -> Broken:
    for (_, what), of_jobs in trained(evidence).items():
        (first, expected), *others = of_jobs
        for about, found in others:
            if found != expected:
                yield about, f"{what} is {found}, and {expected} of {first}, an equal job"


def trained(evidence: Evidence) -> dict[tuple[bytes, str], list[tuple[str, str]]]:
    """What came of each training, on whatever nodes and in however many parts: (all that it depends on, which state
    or the model) -> of each job its id and the SHA-256.
    """
    found: dict[tuple[bytes, str], list[tuple[str, str]]] = defaultdict(list)
    for about, history in histories(evidence):
        first = event_of(history[0])
        if not isinstance(first, m.Submitted):
            continue
        weights = [event.weights for event in map(event_of, history) if isinstance(event, m.DependenciesMet)]
        job = first.job
        depends_on = msgspec.msgpack.encode([job.model, job.dataset, job.data, job.training, *filter(None, weights)])
        for event in map(event_of, history):
            if isinstance(event, m.Checkpointed):
                step = f"the state after step {event.checkpoint.step}"
                found[depends_on, step].append((about, event.checkpoint.state.sha256))
            elif isinstance(event, m.Completed):
                found[depends_on, "the model"].append((about, event.model.sha256))
    return found


# -- money -----------------------------------------------------------------------------------------------


def _settled_once(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        if not isinstance(event_of(history[-1]), ENDS):
            continue
        landed = [each for each in evidence.escrows.get(about, []) if each.err is None]
        of_log = [e.signature for e in map(event_of, history) if isinstance(e, m.Funded | m.Settled | m.Refunded)]
        if sorted(each.signature for each in landed) != sorted(of_log):
            yield about, f"the chain has {len(landed)} payments of its escrow, the log says {len(of_log)}"
        if any(not each.finalized for each in landed):
            yield about, "the log counts on a payment that is not final"
        if len(of_log) not in (0, 2):
            yield about, f"money moved {len(of_log)} times: once into the escrow and once out of it is right"


def _shares_add_up(evidence: Evidence) -> Broken:
    for about, history in histories(evidence):
        events = [event_of(entry) for entry in history]
        submitted, settled = events[0], next((e for e in events if isinstance(e, m.Settled)), None)
        if settled is None or not isinstance(submitted, m.Submitted):
            continue
        amount = submitted.terms.amount_base_units
        shares = (settled.node_base_units, settled.platform_base_units, settled.client_base_units)
        if sum(shares) != amount or min(shares) < 0:
            yield about, f"{amount} was divided into {shares}"
        completed = any(isinstance(e, m.Completed) for e in events)
        if completed and settled.client_base_units:
            yield about, f"it is completed, and {settled.client_base_units} went back to the client"
        if not completed and not _has_checkpoint(events) and settled.client_base_units != amount:
            yield about, f"nothing was delivered, and the client got back {settled.client_base_units} of {amount}"
        fee = (settled.node_base_units + settled.platform_base_units) * submitted.terms.fee_basis_points / 10_000
        if not fee - 10 < settled.platform_base_units <= fee:
            yield about, f"the platform got {settled.platform_base_units}, its share is {fee}"


def _has_checkpoint(events: list[m.AnyEvent]) -> bool:
    return any(getattr(event, "checkpoint", None) for event in events)


def _money_is_conserved(evidence: Evidence) -> Broken:
    locked = _locked(evidence)
    for name, ledger in evidence.ledgers.items():
        if total := sum(ledger.balances.values()):
            yield name, f"its entries sum to {total}"
        for account, balance in ledger.balances.items():
            expected = locked.get(account, 0) if account.startswith("escrow:") else evidence.balances.get(account)
            if balance != expected:
                yield name, f"{account} holds {balance} in the ledger, and {expected} by the chain and the log"
    if total := sum(evidence.balances.values()) + sum(locked.values()):
        yield "chain", f"its wallets, its open escrows and its supply differ by {total}"


def _locked(evidence: Evidence) -> dict[str, int]:
    """What the escrows of jobs that have not ended hold. In a round that came to rest there are none."""
    held = {}
    for about, history in histories(evidence):
        events = [event_of(entry) for entry in history]
        first = events[0]
        if isinstance(first, m.Submitted) and any(isinstance(e, m.Funded) for e in events):
            if not isinstance(events[-1], ENDS):
                held[f"escrow:{about}"] = first.terms.amount_base_units
    return held


# -- projections, artifacts, processes ---------------------------------------------------------------------


def _ledgers_equal_the_log(evidence: Evidence) -> Broken:
    statuses = {about: status_of(history) for about, history in histories(evidence)}
    rebuilt = evidence.ledgers.get("rebuilt")
    for name, ledger in evidence.ledgers.items():
        if rebuilt and ledger.content_hash != rebuilt.content_hash:
            yield name, "its content is not that of a ledger rebuilt from the log"
        said = {job: status if status in ENDED else "open" for job, status in ledger.statuses.items()}
        if differing := sorted(job for job in statuses.keys() | said.keys() if statuses.get(job) != said.get(job)):
            yield name, f"it has other statuses than the log: {differing[:5]}"


def _artifacts_are_there(evidence: Evidence) -> Broken:
    for sha256, problem in evidence.artifacts.items():
        if problem:
            yield sha256, problem


def _nothing_is_left(evidence: Evidence) -> Broken:
    for process in evidence.left_behind:
        yield process, "still runs after everything was closed"


def _nobody_crashed(evidence: Evidence) -> Broken:
    for restart in evidence.restarts:
        if not restart.killed:
            yield restart.name, f"ended by itself: {restart.said}"


RULES: dict[str, Callable[[Evidence], Broken]] = {
    "the log has no gap": _log_is_whole,
    "what was read from the log stays": _log_is_final,
    "an acknowledged job exists": _acknowledged_exist,
    "a job ends": _jobs_end,
    "an id is one job": _one_job_per_id,
    "one lease at a time, attempts count up": _one_lease_at_a_time,
    "only the holder of the lease reports": _reported_by_the_holder,
    "an attempt goes on from the newest checkpoint": _goes_on,
    "an ended job does not change": _the_end_is_the_end,
    "clients were told the truth": _clients_were_told_the_truth,
    "a job fails for a fault that explains it": _fails_for_a_fault,
    "a job begins after those that it comes after": _begins_after_others,
    "equal jobs deliver the same, however often they were interrupted": _equal_jobs_are_equal,
    "a job is paid once": _settled_once,
    "shares add up": _shares_add_up,
    "ledger and chain agree": _money_is_conserved,
    "a ledger is the log": _ledgers_equal_the_log,
    "artifacts are whole": _artifacts_are_there,
    "no process is left": _nothing_is_left,
    "no part ends by itself": _nobody_crashed,
}


# -- small pieces ------------------------------------------------------------------------------------------


def histories(evidence: Evidence) -> list[tuple[str, list[Entry]]]:
    """The events of each job, in order."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in evidence.log:
        if ".event.job." in entry.subject and entry.record:
            found[entry.about].append(entry)
    return list(found.items())


def event_of(entry: Entry) -> m.AnyEvent:
    assert entry.record
    return entry.record.event


def status_of(history: list[Entry]) -> str:
    """completed, failed, cancelled, or open: what these events make of a job."""
    events = [event_of(entry) for entry in history]
    if not isinstance(events[-1], ENDS):
        return "open"
    if any(isinstance(event, m.CancelRequested | m.DependencyFailed) for event in events):
        return "cancelled"
    if isinstance(events[-1], m.Refunded):
        return "failed"
    return "completed" if any(isinstance(event, m.Completed) for event in events) else "failed"
