"""What a job is once an event happened to it: `evolve` folds the facts of a log into a Job. Pure.

Whether an event may happen is asked before it is appended (jobrules.py); here it has happened.
"""

import itertools
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from cyxcentral import earnings, money
from cyxcentral.jobrules import NO_TRAINING
from cyxcentral.jobs import (
    CANCELLED,
    MAX_LEASES,
    NODE_STOPPED,
    PAUSED,
    REFUSED,
    UNFUNDED,
    Attempt,
    Check,
    CheckLease,
    Job,
    Outcome,
    bought_ms,
    confirmed,
    ends,
    ran_out,
    segment_to,
    tried,
    with_memory_beyond,
)
from cyxnet import messages as m

BACKOFF_MS = (0, 1_000, 2_000, 4_000, 8_000, 16_000)
REFUNDED = "its escrow was refunded to the client after the deadline, before it was settled; nobody was paid"
DEADLINE_NEAR = "its escrow's deadline was near, after which anybody could refund it: what was stored is paid"
REJECTED = "what {} signed for attempt {} is not what its data gives, as two runs of a checker found: it is not paid"
REQUESTS_KEPT = 32  # of the owner's wishes, to know a late repetition of each
WISHES = (m.CancelRequested, m.PauseRequested, m.ResumeRequested, m.PriorityChanged)  # of the owner


def evolve(job: Job | None, event: m.JobEvent, at_ms: int) -> Job:
    """The job after `event`. Events are facts: the caller made sure with `illegal` before it appended."""
    if type(event) is m.Submitted:
        return Job(
            job_id=event.terms.job_id,
            job=event.job,
            terms=event.terms,
            caller=event.caller,
            memory_bytes=event.memory_bytes,
            gpu_memory_bytes=event.gpu_memory_bytes,
            submitted_at_ms=at_ms,
            changed_at_ms=at_ms,
            unsettled=event.deposit,
            priority=event.job.priority,
            price_base_units=event.price_base_units,
            reference_fee_base_units=event.reference_fee_base_units,
            standby=bool(event.job.serve and event.job.serve.standby),
            awaiting=bool(event.job.after),
        )
    assert job is not None, f"{type(event).__name__} before Submitted"
    if isinstance(event, WISHES) and event.request_id:
        job = replace(job, requests=(*job.requests, event.request_id)[-REQUESTS_KEPT:])
    return replace(AFTER[type(event)](job, event, at_ms), changed_at_ms=at_ms)


def _transaction_signed(job: Job, event: m.TransactionSigned, at_ms: int) -> Job:
    return replace(job, unsettled=event.signed)


def _funded(job: Job, event: m.Funded, at_ms: int) -> Job:
    job = replace(job, funded=True, unsettled=None, deposit_signature=event.signature)
    if job.outcome:
        return _settle(job, job.outcome, job.error, at_ms)
    return job if job.status == "leased" else replace(job, status=_idle(job))


def _fund_failed(job: Job, event: m.FundFailed, at_ms: int) -> Job:
    if job.current:
        job = _ended(job, m.LeaseLost(attempt=job.attempt, code=UNFUNDED, reason=event.reason), at_ms)
    job = _decided(job, job.outcome or "failed", event.reason)
    return replace(job, status=job.outcome, unsettled=None, ended_at_ms=at_ms)


def _pause_requested(job: Job, event: m.PauseRequested, at_ms: int) -> Job:
    job = replace(job, pause_requested=True)
    return job if job.status == "leased" else replace(job, status=_idle(job))


def _resume_requested(job: Job, event: m.ResumeRequested, at_ms: int) -> Job:
    job = replace(job, pause_requested=False)
    return replace(job, status=_idle(job), not_before_ms=at_ms) if job.status == "paused" else job


def _called(job: Job, event: m.ScaledUp, at_ms: int) -> Job:
    job = replace(job, standby=False, scaled=event.reason)
    return job if job.status == "leased" else replace(job, status=_idle(job), not_before_ms=at_ms)


def _sent_back(job: Job, event: m.ScaledDown, at_ms: int) -> Job:
    job = replace(job, standby=True, scaled=event.reason)
    return job if job.status == "leased" else replace(job, status=_idle(job))


def _dependencies_met(job: Job, event: m.DependenciesMet, at_ms: int) -> Job:
    if event.weights:
        job = replace(job, job=replace(job.job, model=replace(job.job.model, weights=event.weights)))
    job = replace(job, awaiting=False)
    return replace(job, status=_idle(job))


def _settled(job: Job, event: m.Settled, at_ms: int) -> Job:
    assert job.outcome is not None
    return replace(
        job,
        status=job.outcome,
        unsettled=None,
        settle_signature=event.signature,
        shares=money.Shares(event.node_base_units, event.platform_base_units, event.client_base_units),
        ended_at_ms=at_ms,
    )


def _refund_found(job: Job, event: m.Refunded, at_ms: int) -> Job:
    if job.current:
        job = _ended(job, m.LeaseLost(attempt=job.attempt, code=UNFUNDED, reason=REFUNDED), at_ms)
    outcome: Outcome = "cancelled" if job.cancel_requested else "failed"  # of delivered work too: it is unpaid
    return replace(
        _decided(job, outcome, REFUNDED),
        status=outcome,
        unsettled=None,
        settle_signature=event.signature,
        payees=(),
        shares=money.Shares(0, 0, event.client_base_units),
        ended_at_ms=at_ms,
    )


def _leased(job: Job, event: m.Leased, at_ms: int) -> Job:
    attempt = Attempt(
        number=event.attempt,
        node_id=event.node_id,
        session=event.session,
        wallet=event.wallet,
        lease_ms=event.lease_ms,
        leased_at_ms=at_ms,
        explanation=event.explanation,
        resume=event.resume,
    )
    return replace(job, status="leased", attempts=(*job.attempts, attempt))


def _attempt(job: Job, **changes: Any) -> Job:
    return replace(job, attempts=(*job.attempts[:-1], replace(job.attempts[-1], **changes)))


def _ended(job: Job, lost: m.LeaseLost, at_ms: int) -> Job:
    """The attempt is over: nobody holds the lease."""
    return replace(_attempt(_over(job, at_ms), lost=lost), status=_idle(job))


def _over(job: Job, at_ms: int) -> Job:
    """The time of a replica ends here; what a training run is paid for is no time."""
    return _attempt(job, ended_at_ms=at_ms) if job.job.serve else job


def _idle(job: Job) -> m.JobStatus:
    """The status of a job that nobody holds the lease of."""
    if not job.funded:
        return "funding"
    if job.halts:
        return "paused"
    return "waiting" if job.awaiting else "queued"


def _decided(job: Job, outcome: Outcome, error: str | None) -> Job:
    """How the job ends is known; the chain is still to be asked, or told."""
    return replace(job, outcome=outcome, error=error, pause_requested=False)


def _lost(job: Job, event: m.LeaseLost, at_ms: int) -> Job:
    fatal = event.deterministic and (event.sole or confirmed(job, event))
    job = replace(_ended(job, event, at_ms), error=event.reason)
    if event.discards and job.kept and event.discards.state.sha256 in ends(job.kept):
        job = replace(job, kept=None)  # nobody could go on from it: it is no segment to check, and none that is false
    if ran_out(event):
        job = with_memory_beyond(job, event.memory_bytes, event.gpu_memory_bytes)
    if job.job.serve and job.served_ms(at_ms) >= bought_ms(job):
        return _settle(job, "completed", None, at_ms)
    if fatal or tried(job) >= job.job.max_attempts or job.attempt >= MAX_LEASES:
        if job.funded:
            return _settle(job, "failed", event.reason, at_ms)
        return _decided(job, "failed", event.reason)  # the deposit may still land: then all of it goes back
    if job.deadline_near:
        return _settle(job, "failed", DEADLINE_NEAR, at_ms)
    if job.halts:
        return job
    return replace(job, not_before_ms=at_ms + _rest_ms(job, event))


def _rest_ms(job: Job, lost: m.LeaseLost) -> int:
    """How long the job rests after its last attempt was lost.

    The first refusal costs nothing: two centrals gave one node two jobs at once, and there may be another node. Only
    refusals in a row grow longer: whoever refuses again would be asked again at once.
    """
    if lost.code in (PAUSED, NODE_STOPPED) or lost.discards:
        return 0
    codes = [attempt.lost.code if attempt.lost else "" for attempt in job.attempts]
    in_a_row = len(list(itertools.takewhile(lambda lost: lost == REFUSED, reversed(codes))))
    times = in_a_row or tried(job)
    return BACKOFF_MS[min(times, len(BACKOFF_MS)) - 1] if times else 0


def _checkpoint_stored(job: Job, event: m.Checkpointed, at_ms: int) -> Job:
    last, stored = job.attempts[-1], event.checkpoint
    if event.kept:
        job = replace(job, kept=segment_to(job, stored.step, stored.state))
    sequence = max(event.sequence, last.sequence)
    return _attempt(job, checkpoint=stored, earlier=last.checkpoint, sequence=sequence)


def _delivered(job: Job, event: m.Completed, at_ms: int) -> Job:
    if event.segment is None:
        return _settle(replace(job, completed=event), "completed", None, at_ms)
    check = Check(segment=event.segment, since_ms=at_ms)
    return replace(job, completed=event, status="checking", check=check, error=None, pause_requested=False)


def _checking(job: Job, **changes: Any) -> Job:
    assert job.check is not None
    return replace(job, check=replace(job.check, **changes))


def _check_given(job: Job, event: m.CheckLeased, at_ms: int) -> Job:
    lease = CheckLease(number=event.number, node_id=event.node_id, session=event.session, lease_ms=event.lease_ms)
    return replace(_checking(job, lease=lease), checks=job.checks + 1)


def _check_lost(job: Job, event: m.CheckLost, at_ms: int) -> Job:
    assert job.check is not None
    denied_by = job.check.denied_by or ((job.holder or "") if event.code in NO_TRAINING else "")
    return _checking(job, lease=None, lost=(*job.check.lost, event), denied_by=denied_by)


def _with_finding(job: Job, finding: m.Finding | None) -> Job:
    assert job.check is not None
    findings = (*job.check.findings, finding) if finding else job.check.findings
    return _checking(job, lease=None, findings=findings)


def _given_up(job: Job, event: m.CheckGivenUp, at_ms: int) -> Job:
    job = _checking(_with_finding(job, event.finding), given_up=event.reason)
    return _settle(job, "completed", None, at_ms)


def _rejected(job: Job, event: m.Rejected, at_ms: int) -> Job:
    """The job without anything that this node did for it, and without what others built on that."""
    void = _built_by(job, event.node_id)
    attempts = tuple(
        replace(attempt, rejected=attempt.rejected or event) if attempt.number in void else attempt
        for attempt in job.attempts
    )
    kept = None if job.kept and job.kept.attempt in void else job.kept  # what others did may still be chosen
    error = REJECTED.format(event.node_id, event.attempt)
    job = replace(job, attempts=attempts, completed=None, kept=kept, check=None, error=error)
    wanted = job.job.needs.node_id  # no other may have it
    if tried(job) >= job.job.max_attempts or job.attempt >= MAX_LEASES or job.deadline_near or wanted == event.node_id:
        return _settle(job, "failed", error, at_ms)
    return replace(job, status=_idle(job), not_before_ms=at_ms)


def _built_by(job: Job, node_id: str) -> set[int]:
    """The numbers of this node's attempts, and of those that went on from a state of one of these."""
    numbers: set[int] = set()
    states: list[m.Checkpoint | None] = []
    for attempt in job.attempts:
        if attempt.node_id == node_id or (attempt.resume and attempt.resume in states):
            numbers.add(attempt.number)
            states += [attempt.checkpoint, attempt.earlier]
    return numbers


def _cancelled(job: Job, reason: str, at_ms: int) -> Job:
    if job.funded:
        return _settle(job, "cancelled", reason, at_ms)
    if job.current:
        job = _ended(job, m.LeaseLost(attempt=job.attempt, code=CANCELLED, reason=reason), at_ms)
    return _decided(job, "cancelled", reason)  # the deposit may still land: find out first


def _out_of_time(job: Job, at_ms: int) -> Job:
    """No step is made any more; but who works on it stores what it has first, as for a pause, and is paid for it."""
    if job.funded:
        stores = job.current and not job.job.serve
        return replace(job, pause_requested=True) if stores else _settle(job, "failed", DEADLINE_NEAR, at_ms)
    if job.current:
        job = _ended(job, m.LeaseLost(attempt=job.attempt, code=UNFUNDED, reason=DEADLINE_NEAR), at_ms)
    return _decided(job, "failed", DEADLINE_NEAR)  # the deposit may still land: then all of it goes back


def _settle(job: Job, outcome: Outcome, error: str | None, at_ms: int) -> Job:
    if job.current:
        job = _over(job, at_ms)
    return replace(_decided(job, outcome, error), status="settling", payees=earnings.earned(job))


AFTER: dict[type, Callable[[Job, Any, int], Job]] = {  # what a job is once this happened to it, at that time
    m.TransactionSigned: _transaction_signed,
    m.Funded: _funded,
    m.FundFailed: _fund_failed,
    m.Leased: _leased,
    m.Started: lambda job, event, at_ms: _attempt(job, started_at_ms=at_ms),
    m.Checkpointed: _checkpoint_stored,
    m.LeaseLost: _lost,
    m.Completed: _delivered,
    m.CheckLeased: _check_given,
    m.CheckLost: _check_lost,
    m.Checked: lambda job, event, at_ms: _settle(_with_finding(job, event.finding), "completed", None, at_ms),
    m.CheckDiffers: lambda job, event, at_ms: _with_finding(job, event.finding),
    m.Rejected: _rejected,
    m.CheckGivenUp: _given_up,
    m.TimeUsed: lambda job, event, at_ms: _settle(job, "completed", None, at_ms),
    m.ScaledUp: _called,
    m.ScaledDown: _sent_back,
    m.DependenciesMet: _dependencies_met,
    m.DependencyFailed: lambda job, event, at_ms: _cancelled(job, event.reason, at_ms),
    m.CancelRequested: lambda job, event, at_ms: _cancelled(replace(job, cancel_requested=True), event.reason, at_ms),
    m.PauseRequested: _pause_requested,
    m.ResumeRequested: _resume_requested,
    m.PriorityChanged: lambda job, event, at_ms: replace(job, priority=event.priority),
    m.DeadlineNear: lambda job, event, at_ms: _out_of_time(replace(job, deadline_near=True), at_ms),
    m.Settled: _settled,
    m.Refunded: _refund_found,
}
