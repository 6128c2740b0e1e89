"""The life of a job, as facts that happened to it. Pure: no clock, no network, no disk.

    Submitted         Funded          Leased          Completed           Settled
  ────────────▶ funding ─────▶ queued ─────▶ leased ─────────────▶ settling ─────▶ completed
                   │             ▲   LeaseLost │                   (pay node 90 %)
                   │ FundFailed  └─────────────┤ attempts are used up, or the job itself is at fault
                   ▼                           ▼
                failed / cancelled         settling (refund) ─────▶ failed
                                               ▲
              CancelRequested in any of the first three ─▶ settling (refund) ─▶ cancelled

`evolve` folds events into a Job and never refuses one that is legal; `illegal` says why an event must not be
appended. Whoever wants to append asks it first, with the state the append is conditional on.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral import money
from cyxnet import messages as m

BACKOFF_MS = (0, 1_000, 2_000, 4_000, 8_000, 16_000)
REFUSED = "refused"  # code of a lease that its node did not take: nothing was tried
MAX_LEASES = 100  # refused ones included: no job goes round for ever
Outcome = Literal["completed", "failed", "cancelled"]
ENDED = ("completed", "failed", "cancelled")


class Attempt(Struct, frozen=True, kw_only=True):
    """One try of a job on one node."""

    number: int
    node_id: str
    session: str
    wallet: str
    lease_ms: int
    leased_at_ms: int
    explanation: dict[str, object]
    started_at_ms: int | None = None
    lost: m.LeaseLost | None = None


class Job(Struct, frozen=True, kw_only=True):
    """The state of one job: the fold of its events."""

    job_id: str
    job: m.JobRequest
    terms: m.EscrowTerms
    caller: str
    memory_bytes: int
    submitted_at_ms: int
    changed_at_ms: int
    status: m.JobStatus = "funding"
    unsettled: m.SignedTransaction | None = None  # signed, not yet known to be final
    deposit_signature: str | None = None
    settle_signature: str | None = None
    attempts: tuple[Attempt, ...] = ()
    not_before_ms: int = 0  # of the next lease
    outcome: Outcome | None = None  # where settling leads to
    pay_base_units: int = 0
    completed: m.Completed | None = None
    error: str | None = None
    cancel_requested: bool = False
    shares: money.Shares | None = None
    ended_at_ms: int | None = None

    @property
    def attempt(self) -> int:
        return len(self.attempts)

    @property
    def current(self) -> Attempt | None:
        """The attempt that holds the lease."""
        return self.attempts[-1] if self.status == "leased" else None


def illegal(job: Job | None, event: m.JobEvent) -> str | None:
    """Why `event` cannot happen to `job` now; None when it can."""
    if isinstance(event, m.Submitted):
        return None if job is None else "there is a job with this id already"
    if job is None:
        return "there is no such job"
    match event:
        case m.CancelRequested():
            if job.status in ENDED:
                return f"the job is {job.status} already"
            if job.status == "settling" or job.cancel_requested:
                return "the job is being settled already" if job.status == "settling" else "it is cancelled already"
            return None
        case m.TransactionSigned():
            expected = {"deposit": "funding", "settle": "settling"}[event.purpose]
            return None if job.status == expected else f"the job is {job.status}, not {expected}"
        case m.Funded() | m.FundFailed():
            return None if job.status == "funding" else f"the job is {job.status}, not funding"
        case m.Leased():
            if job.status != "queued":
                return f"the job is {job.status}, not queued"
            return None if event.attempt == job.attempt + 1 else "not the next attempt"
        case m.Started() | m.LeaseLost() | m.Completed():
            if job.status != "leased":
                return f"the job is {job.status}, not leased"
            if event.attempt != job.attempt:
                return f"attempt {event.attempt} is over; the current one is {job.attempt}"
            if isinstance(event, m.Completed) and event.node_id != job.attempts[-1].node_id:
                return "another node holds the lease"
            return None
        case m.Settled():
            return None if job.status == "settling" else f"the job is {job.status}, not settling"
    raise AssertionError(f"no rule for {type(event).__name__}")


def evolve(job: Job | None, event: m.JobEvent, at_ms: int) -> Job:
    """The job after `event`. Events are facts: the caller made sure with `illegal` before it appended."""
    if isinstance(event, m.Submitted):
        return Job(
            job_id=event.terms.job_id,
            job=event.job,
            terms=event.terms,
            caller=event.caller,
            memory_bytes=event.memory_bytes,
            submitted_at_ms=at_ms,
            changed_at_ms=at_ms,
            unsettled=event.deposit,
        )
    assert job is not None, f"{type(event).__name__} before Submitted"
    return replace(_after(job, event, at_ms), changed_at_ms=at_ms)


def _after(job: Job, event: m.JobEvent, at_ms: int) -> Job:
    match event:
        case m.TransactionSigned():
            return replace(job, unsettled=event.signed)
        case m.Funded():
            funded = replace(job, status="queued", unsettled=None, deposit_signature=event.signature)
            return _refund(funded, "cancelled", job.error or "cancelled") if job.cancel_requested else funded
        case m.FundFailed():
            outcome: Outcome = "cancelled" if job.cancel_requested else "failed"
            return replace(job, status=outcome, unsettled=None, error=event.reason, ended_at_ms=at_ms)
        case m.Leased():
            attempt = Attempt(
                number=event.attempt,
                node_id=event.node_id,
                session=event.session,
                wallet=event.wallet,
                lease_ms=event.lease_ms,
                leased_at_ms=at_ms,
                explanation=event.explanation,
            )
            return replace(job, status="leased", attempts=(*job.attempts, attempt))
        case m.Started():
            last = replace(job.attempts[-1], started_at_ms=at_ms)
            return replace(job, attempts=(*job.attempts[:-1], last))
        case m.LeaseLost():
            last = replace(job.attempts[-1], lost=event)
            lost = replace(job, attempts=(*job.attempts[:-1], last), error=event.reason)
            tried = sum(attempt.lost is None or attempt.lost.code != REFUSED for attempt in lost.attempts)
            if event.deterministic or tried >= job.job.max_attempts or job.attempt >= MAX_LEASES:
                return _refund(lost, "failed", event.reason)
            backoff = BACKOFF_MS[min(job.attempt - 1, len(BACKOFF_MS) - 1)]
            return replace(lost, status="queued", not_before_ms=at_ms + backoff)
        case m.Completed():
            return replace(
                job,
                status="settling",
                outcome="completed",
                completed=event,
                error=None,
                pay_base_units=job.terms.amount_base_units,
            )
        case m.CancelRequested():
            if job.status == "funding":  # the deposit may still land: find out first
                return replace(job, cancel_requested=True, error=event.reason)
            return _refund(replace(job, cancel_requested=True), "cancelled", event.reason)
        case m.Settled():
            assert job.outcome is not None
            shares = money.Shares(event.node_base_units, event.platform_base_units, event.client_base_units)
            return replace(
                job,
                status=job.outcome,
                unsettled=None,
                settle_signature=event.signature,
                shares=shares,
                ended_at_ms=at_ms,
            )
    raise AssertionError(f"no rule for {type(event).__name__}")


def _refund(job: Job, outcome: Outcome, error: str) -> Job:
    return replace(job, status="settling", outcome=outcome, pay_base_units=0, error=error)


def paid_wallet(job: Job) -> str | None:
    """The wallet of the node that earned the payment."""
    return job.attempts[-1].wallet if job.completed else None


def entries(job: Job, event: m.JobEvent) -> list[money.Entry]:
    """The ledger entries of `event`; `job` is the state after it."""
    match event:
        case m.Funded():
            return money.deposit(job.terms)
        case m.Settled():
            return money.settlement(job.terms, paid_wallet(job), event)
    return []
