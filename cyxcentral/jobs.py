"""The life of a job, as facts that happened to it. Pure: no clock, no network, no disk.

    Submitted         Funded          Leased          Completed           Settled
  ────────────▶ funding ─────▶ queued ─────▶ leased ─────────────▶ settling ─────▶ completed
                   │            ▲  ▲  LeaseLost │                  (pay whose steps they were)
                   │ FundFailed │  └────────────┤ attempts are used up, or the job itself is at fault
                   ▼            │               ▼
           failed / cancelled   │          settling (pay checkpointed steps, refund the rest) ─────▶ failed
                                │               ▲
       ResumeRequested ┌────────┘               │
                    paused ◀── PauseRequested   └── CancelRequested in any of them ─────▶ cancelled

A day before its escrow's deadline the job ends, whatever its owner wants (`DeadlineNear`): whoever works on it stores
its state, and what is stored is paid. Whoever refunds the escrow after its deadline ends a job that central could not
settle by then: `Refunded`.

A job that serves a model takes the same way. Its attempt is `Started` when the replica is ready; what it sells is the
time from there to the attempt's end, by the log's own times, so no node's clock counts. When the time that was bought
is used up (`TimeUsed`), it is completed. A replica that was ready and is gone is replaced, and failures are counted
anew. One that stands by is as if its owner had paused it, until it is called (`ScaledUp`; cyxcentral/scaling.py says
when), and again once it is sent back (`ScaledDown`).

On a network with checkers a delivered job may name a segment of its training (`Completed.segment`), which a checker
trains once more before anybody is paid:

     Completed             Checked, CheckGivenUp
  leased ─────▶ checking ────────────────────────▶ settling ─────▶ completed
                │  ▲  │ Rejected: two runs found the same, and the node had signed something else
    CheckLeased,│  │  └──────────▶ queued, without that attempt, or settling ─────▶ failed
     CheckLost, └──┘
     CheckDiffers

The lease of a check is no attempt of the job: its numbers begin at FIRST_CHECK.

Money has a life of its own next to this one: `funded` says whether the deposit is final. A job may be leased before
that, so that a node prepares while the chain decides; it starts, stores and completes only afterwards. One that is
paused before that gets no lease, and is paused as soon as it is funded.

A wish of the owner is refused only when it is too late for it, which it then stays: one that was refused for being
early could be carried out when a try of it comes later. So a pause or resume that changes nothing is an event too. A
priority may be changed as long as the job may still wait for a node.

`RULES` says in which states an event may happen; a pair that is not there cannot happen. `illegal` asks it, and
the guards, before anything is appended, with the state the append is conditional on. `evolve` folds events that
happened into a Job.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral import money
from cyxnet import messages as m

BACKOFF_MS = (0, 1_000, 2_000, 4_000, 8_000, 16_000)
REFUSED = "refused"  # code of a lease that its node did not take: nothing was tried
PAUSED, NODE_STOPPED = "paused", "node_stopped"  # codes of runs that ended because somebody asked
BAD_CHECKPOINT = "bad_checkpoint"  # code of a run that could not go on from the state it was given
MEMORY_MARGIN = 4  # after running out of memory a job asks for a quarter more than it had
REFUNDED = "its escrow was refunded to the client after the deadline, before it was settled; nobody was paid"
DEADLINE_MARGIN_S = 86_400  # so long before an escrow may be refunded its job ends: for clocks, and for the chain
DEADLINE_NEAR = "its escrow's deadline was near, after which anybody could refund it: what was stored is paid"
# codes of checks that say: nobody trained this segment, from such a state, or on such data
NO_TRAINING = (BAD_CHECKPOINT, "diverged", "bad_data", "shape_mismatch")
TWO_RUNS_DIFFER = "two runs of the same segment found different things: it cannot be told what is right"
UNFUNDED, CANCELLED = "unfunded", "cancelled"  # codes of leases that ended before the deposit was final
UNCOUNTED = (REFUSED, PAUSED, NODE_STOPPED)
NODES_END = ("node_lost", "run_missing", NODE_STOPPED, PAUSED)  # codes of runs that did not end by themselves
REJECTED = "what {} signed for attempt {} is not what its data gives, as two runs of a checker found: it is not paid"
STEADY_MS = 60_000  # a replica that was ready for so long has worked: what ends it then is no failed try
MAX_LEASES = 100  # uncounted ones included: no job goes round for ever
REQUESTS_KEPT = 32  # of the owner's wishes, to know a late repetition of each
MAX_PAYEES = 4  # as many recipients fit into one settlement transaction
Outcome = Literal["completed", "failed", "cancelled"]
WISHES = (m.CancelRequested, m.PauseRequested, m.ResumeRequested, m.PriorityChanged)  # of the owner
ENDED = ("completed", "failed", "cancelled")


class Attempt(Struct, frozen=True, kw_only=True, gc=False):
    """One try of a job on one node."""

    number: int
    node_id: str
    session: str
    wallet: str
    lease_ms: int
    leased_at_ms: int
    explanation: dict[str, object]
    resume: m.Checkpoint | None = None  # where it went on from
    checkpoint: m.Checkpoint | None = None  # the newest it stored
    earlier: m.Checkpoint | None = None  # the one before that
    sequence: int = 0  # of the newest report that its node signed and that counted
    started_at_ms: int | None = None
    ended_at_ms: int | None = None  # of a replica: nobody holds its lease any more
    lost: m.LeaseLost | None = None
    rejected: m.Rejected | None = None  # its node was found false, or that of an earlier one: it counts for nothing

    @property
    def first_step(self) -> int:
        """Steps that were behind the job when this attempt began."""
        return self.resume.step if self.resume else 0


class CheckLease(Struct, frozen=True, kw_only=True, gc=False):
    """The right of one checker to train a segment once more, for as long as its heartbeats name it."""

    number: int
    node_id: str
    session: str
    lease_ms: int


class Check(Struct, frozen=True, kw_only=True, gc=False):
    """A segment of a delivered job that is trained once more, or was. since_ms: when it was delivered, and
    after all that was being checked then."""

    segment: m.SignedSegment
    since_ms: int
    lease: CheckLease | None = None
    lost: tuple[m.CheckLost, ...] = ()
    findings: tuple[m.Finding, ...] = ()
    denied_by: str = ""  # the checker that said first that nobody can have trained the segment
    given_up: str = ""  # why


class Job(Struct, frozen=True, kw_only=True, gc=False):
    """The state of one job: the fold of its events."""

    job_id: str
    job: m.JobRequest
    terms: m.EscrowTerms
    caller: str
    memory_bytes: int
    submitted_at_ms: int
    changed_at_ms: int
    status: m.JobStatus = "funding"
    funded: bool = False  # the deposit is final on the chain
    unsettled: m.SignedTransaction | None = None  # signed, not yet known to be final
    deposit_signature: str | None = None
    settle_signature: str | None = None
    attempts: tuple[Attempt, ...] = ()
    not_before_ms: int = 0  # of the next lease
    outcome: Outcome | None = None  # where settling leads to
    completed: m.Completed | None = None
    kept: m.SignedSegment | None = None  # of all segments that were stored so far, the one to check (segments.py)
    check: Check | None = None  # of what was delivered
    checks: int = 0  # leases of checks so far
    error: str | None = None
    cancel_requested: bool = False
    pause_requested: bool = False
    priority: int = 0  # of its place in the line
    deadline_near: bool = False  # of its escrow: it goes on no more
    standby: bool = False  # of a replica: it waits until it is called
    scaled: str = ""  # why it was called, or sent back to stand by, last
    price_base_units: int = 0  # the most that is charged, as it was quoted; 0: the amount
    reference_fee_base_units: int = 0  # by which its node's reputation is counted once it is paid; 0: counted before
    requests: tuple[str, ...] = ()  # ids of what its owner asked for and got, the newest last
    payees: tuple[m.Payee, ...] = ()  # who is paid when it is settled
    shares: money.Shares | None = None
    ended_at_ms: int | None = None

    @property
    def attempt(self) -> int:
        return len(self.attempts)

    @property
    def halts(self) -> bool:
        """Whoever holds its lease shall store what there is, and give it back."""
        return self.pause_requested or self.standby

    @property
    def current(self) -> Attempt | None:
        """The attempt that holds the lease."""
        return self.attempts[-1] if self.status == "leased" else None

    @property
    def lease(self) -> Attempt | CheckLease | None:
        """The lease that a node holds: of the job, or of a check of it."""
        if self.status == "leased":
            return self.attempts[-1]
        return self.check.lease if self.check else None

    @property
    def holder(self) -> str | None:
        """The node that holds the lease, of the job or of a check of it."""
        if self.status == "leased":
            return self.attempts[-1].node_id
        return self.check.lease.node_id if self.check and self.check.lease else None

    @property
    def checkpoint(self) -> m.Checkpoint | None:
        """The newest state that is stored and can be used: the next attempt goes on from it."""
        return next((state for each in reversed(usable(self)) for state in each if state), None)

    def served_ms(self, until_ms: int) -> int:
        """How long a replica of this job was ready, over all attempts; of one that is, until then."""
        return sum(ready_ms(attempt, until_ms) for attempt in self.attempts)

    @property
    def pay_base_units(self) -> int:
        """What of the amount is paid for work; the rest goes back to the client."""
        return sum(payee.pay_base_units for payee in self.payees)


def ready_ms(attempt: Attempt, until_ms: int) -> int:
    """How long the replica of an attempt was ready, by the times of the log; of one that is, until then."""
    if attempt.started_at_ms is None:
        return 0
    ended_at_ms = until_ms if attempt.ended_at_ms is None else attempt.ended_at_ms
    return max(0, ended_at_ms - attempt.started_at_ms)  # two centrals' clocks may have told the two


def bought_ms(job: Job) -> int:
    """The time that a job serves for."""
    return job.job.serve.seconds * 1000 if job.job.serve else 0


def left_ms(job: Job, now_ms: int) -> int:
    """How long a job may still serve."""
    return bought_ms(job) - job.served_ms(now_ms)


def inputs(job: Job) -> list[str]:
    """SHA-256 of what a node needs to run the job now: its data, and the weights or the state to go on from."""
    needed = [job.job.dataset.sha256]
    if job.job.model.weights:
        needed.append(job.job.model.weights)
    if job.current and job.current.resume:
        needed.append(job.current.resume.state.sha256)
    if job.check and job.check.lease and job.check.segment.start:
        needed.append(job.check.segment.start.state.sha256)
    return needed


def results(job: Job) -> list[str]:
    """SHA-256 of what came of the job so far: its model, for each attempt the states that are remembered, and the two
    ends of the segment that is kept for a check, or is checked."""
    counted = (each for each in job.attempts if not each.rejected)
    states = (state for each in counted for state in (each.resume, each.checkpoint, each.earlier))
    found = [state.state.sha256 for state in states if state]
    if job.kept:
        found += ends(job.kept)
    if job.check:
        found += ends(job.check.segment)
    return [*found, job.completed.model.sha256] if job.completed else found


def worth_base_units(job: Job) -> int:
    """The most that is charged for the job."""
    return job.price_base_units or job.terms.amount_base_units


def node_of(job: Job, segment: m.SignedSegment) -> str:
    """Whose work a segment is."""
    return job.attempts[segment.attempt - 1].node_id


def ends(segment: m.SignedSegment) -> list[str]:
    """SHA-256 of the state that a segment begins with, if it has one, and of what it ends with."""
    return [*([segment.start.state.sha256] if segment.start else ()), segment.end.sha256]


def usable(job: Job) -> list[tuple[m.Checkpoint | None, m.Checkpoint | None]]:
    """For each attempt the newest state that it stored, and the one it began from; None for what cannot be used.

    A state is as good as it was until a later attempt (or, of the one it began from, the same) could not go on from it.
    """
    if not any(attempt.rejected or attempt.lost and attempt.lost.discards for attempt in job.attempts):  # as most are
        return [(attempt.checkpoint, attempt.resume) for attempt in job.attempts]
    found: list[tuple[m.Checkpoint | None, m.Checkpoint | None]] = []
    bad: list[m.Checkpoint] = []
    for attempt in reversed(job.attempts):
        stored = next((each for each in (attempt.checkpoint, attempt.earlier) if each not in bad), None)
        if attempt.lost and attempt.lost.discards:
            bad.append(attempt.lost.discards)
        began = None if attempt.resume in bad else attempt.resume
        found.append((None, None) if attempt.rejected else (stored, began))
    return found[::-1]


def segment_to(job: Job, end_step: int, end: m.ArtifactRef) -> m.SignedSegment:
    """The segment that the holder of a job's lease ends with this state, or (end_step 0) with this model."""
    last = job.attempts[-1]
    return m.SignedSegment(attempt=last.number, start=last.checkpoint or last.resume, end_step=end_step, end=end)


# -- what can happen -------------------------------------------------------------------------------------


def _if_unfunded(job: Job, event: m.JobEvent) -> str | None:
    return "the deposit is final already" if job.funded else None


def _if_funded(job: Job) -> str | None:
    return None if job.funded else "the deposit is not final yet"


def _transaction(job: Job, event: m.TransactionSigned) -> str | None:
    if (event.purpose == "settle") != (job.status == "settling"):
        return f"the job is {job.status}: no {event.purpose} is signed now"
    return _if_unfunded(job, event) if event.purpose == "deposit" else None


def _lease(job: Job, event: m.Leased) -> str | None:
    if job.outcome:
        return f"it waits for the chain to be {job.outcome}"
    if job.pause_requested:
        return "its owner paused it"
    if job.standby:
        return "it stands by until it is called"
    if event.resume != job.checkpoint:
        return "not from the newest checkpoint"
    return None if event.attempt == job.attempt + 1 else "not the next attempt"


def _of_attempt(job: Job, event: Any) -> str | None:
    """The fence: only the current attempt can say anything."""
    if event.attempt != job.attempt:
        return f"attempt {event.attempt} is over; the current one is {job.attempt}"
    return None


def _lease_lost(job: Job, event: m.LeaseLost) -> str | None:
    if why_not := _of_attempt(job, event):
        return why_not
    if event.discards not in (None, job.attempts[-1].resume):
        return "it discards another state than the attempt began from"
    return None


def _started(job: Job, event: m.Started) -> str | None:
    if why_not := _of_attempt(job, event) or _if_funded(job):
        return why_not
    again = job.job.serve and job.attempts[-1].started_at_ms is not None
    return "it is ready already: its time counts from the first time on" if again else None


def _by_holder(job: Job, event: m.Checkpointed | m.Completed) -> str | None:
    if job.job.serve:
        return "a job that serves delivers nothing"
    if why_not := _of_attempt(job, event) or _if_funded(job):
        return why_not
    if event.node_id != job.attempts[-1].node_id:
        return "another node holds the lease"
    return None if follows(job, event.sequence) else f"report {event.sequence} was signed before the newest that counts"


def _completed_by_holder(job: Job, event: m.Completed) -> str | None:
    if why_not := _by_holder(job, event):
        return why_not
    if event.segment and event.segment not in (job.kept, segment_to(job, 0, event.model)):
        return "it names a segment that is not kept"
    return None


def _check_leased(job: Job, event: m.CheckLeased) -> str | None:
    assert job.check is not None
    if job.check.lease:
        return f"{job.check.lease.node_id} checks it"
    due = m.FIRST_CHECK + job.checks
    return None if event.number == due else f"the next check is {due}, not {event.number}"


def _of_check(job: Job, event: m.CheckLost) -> str | None:
    """The fence of checks: only who holds the lease of the current one can say anything."""
    lease = job.check.lease if job.check else None
    return None if lease and lease.number == event.number else f"check {event.number} is over"


def _found(job: Job, finding: m.Finding) -> str | None:
    lease = job.check.lease if job.check else None
    if lease is None or (lease.number, lease.node_id) != (finding.number, finding.node_id):
        return f"{finding.node_id} does not hold the lease of check {finding.number}"
    return None


def verdict(job: Job, finding: m.Finding) -> m.Checked | m.CheckDiffers | m.Rejected | m.CheckGivenUp:
    """What a checker's finding means for the job that it checked. One run's word never rejects anything."""
    assert job.check is not None
    segment, before = job.check.segment, job.check.findings
    if finding.end.sha256 == segment.end.sha256:
        return m.Checked(finding=finding)
    if not before:
        return m.CheckDiffers(finding=finding)
    if finding.end.sha256 != before[-1].end.sha256:
        return m.CheckGivenUp(reason=TWO_RUNS_DIFFER, finding=finding)
    return m.Rejected(
        attempt=segment.attempt,
        node_id=node_of(job, segment),
        segment=segment,
        findings=[*before, finding],
    )


def impossible(job: Job, lost: m.CheckLost) -> m.CheckLost | m.Rejected:
    """What the failure of a check means: where two say that nobody can have trained the segment, nobody has.

    They have to say it for the same reason, and no run may have come through it.
    """
    assert job.check is not None
    same = any(each.code == lost.code for each in job.check.lost)
    if lost.code not in NO_TRAINING or not same or job.check.findings:
        return lost
    segment = job.check.segment
    node_id = node_of(job, segment)
    return m.Rejected(
        attempt=segment.attempt, node_id=node_id, segment=segment, findings=[], impossible=lost.reason or lost.code
    )


def _verdict(job: Job, event: m.Checked | m.CheckDiffers | m.Rejected | m.CheckGivenUp) -> str | None:
    if isinstance(event, m.Rejected) and event.impossible:
        return _impossible(job, event)
    finding = event.findings[-1] if isinstance(event, m.Rejected) else event.finding
    if finding is None:  # given up without a finding
        return None
    if why_not := _found(job, finding):
        return why_not
    due = verdict(job, finding)
    return None if event == due else f"by what was found it is {type(due).__name__}"


def _impossible(job: Job, event: m.Rejected) -> str | None:
    assert job.check is not None
    lease = job.check.lease
    if lease is None:
        return "nobody checks it"
    said = (m.CheckLost(number=lease.number, code=code, reason=event.impossible) for code in NO_TRAINING)
    return None if any(event == impossible(job, lost) for lost in said) else "one run's word is not enough"


def follows(job: Job, sequence: int) -> bool:
    """Whether a signed report comes after all that its attempt has said; 0: of a node that does not count them."""
    return not sequence or sequence > job.attempts[-1].sequence


def _checkpointed(job: Job, event: m.Checkpointed) -> str | None:
    if why_not := _by_holder(job, event):
        return why_not
    said, newest = event.checkpoint, job.checkpoint
    if not 0 < said.step <= said.steps:
        return f"step {said.step} of {said.steps} does not exist"
    if newest and said.steps != newest.steps:
        return f"the job has {newest.steps} steps, not {said.steps}"
    if newest and said.step <= newest.step:
        return f"a checkpoint of step {newest.step} is stored already"
    return None


def _time_used(job: Job, event: m.TimeUsed) -> str | None:
    if why_not := _of_attempt(job, event):
        return why_not
    return None if job.job.serve and job.attempts[-1].started_at_ms is not None else "no replica of it is ready"


def _scaled_up(job: Job, event: m.ScaledUp) -> str | None:
    return None if job.standby and not job.outcome else "it does not stand by"


def _scaled_down(job: Job, event: m.ScaledDown) -> str | None:
    if job.outcome:
        return f"it waits for the chain to be {job.outcome}"
    return None if job.job.serve and job.job.serve.standby and not job.standby else "it is none that was called"


def _cancel(job: Job, event: m.CancelRequested) -> str | None:
    return "it is cancelled already" if job.cancel_requested else None


def _steered(job: Job, event: m.PauseRequested | m.ResumeRequested | m.PriorityChanged) -> str | None:
    if job.deadline_near:
        return "it ends: its escrow's deadline is near"
    return f"it waits for the chain to be {job.outcome}" if job.outcome else None


def _priority(job: Job, event: m.PriorityChanged) -> str | None:
    if not 0 <= event.priority <= 9:
        return f"its priority is from 0 to 9, not {event.priority}"
    return _steered(job, event)


def _deadline(job: Job, event: m.DeadlineNear) -> str | None:
    if event.deadline_s != job.terms.deadline_s:
        return f"its deadline is {job.terms.deadline_s}"
    if job.deadline_near:
        return "that is known already"
    return f"it waits for the chain to be {job.outcome}" if job.outcome else None


def _refunded(job: Job, event: m.Refunded) -> str | None:
    return _if_unfunded(job, event) if job.status != "settling" else None


class Rule(NamedTuple):
    """In which states an event may happen, and what else must hold: the guard says why not, or None."""

    states: tuple[m.JobStatus, ...]
    guard: Callable[[Job, Any], str | None] = lambda job, event: None


STEERED: tuple[m.JobStatus, ...] = ("funding", "queued", "leased", "paused")  # the owner has a say

RULES: dict[type, Rule] = {
    m.TransactionSigned: Rule(("funding", "leased", "settling"), _transaction),
    m.Funded: Rule(("funding", "leased"), _if_unfunded),
    m.FundFailed: Rule(("funding", "leased"), _if_unfunded),
    m.Leased: Rule(("funding", "queued"), _lease),
    m.Started: Rule(("leased",), _started),
    m.Checkpointed: Rule(("leased",), _checkpointed),
    m.LeaseLost: Rule(("leased",), _lease_lost),
    m.Completed: Rule(("leased",), _completed_by_holder),
    m.CheckLeased: Rule(("checking",), _check_leased),
    m.CheckLost: Rule(("checking",), _of_check),
    m.Checked: Rule(("checking",), _verdict),
    m.CheckDiffers: Rule(("checking",), _verdict),
    m.Rejected: Rule(("checking",), _verdict),
    m.CheckGivenUp: Rule(("checking",), _verdict),
    m.TimeUsed: Rule(("leased",), _time_used),
    m.ScaledUp: Rule(STEERED, _scaled_up),
    m.ScaledDown: Rule(STEERED, _scaled_down),
    m.CancelRequested: Rule(STEERED, _cancel),
    m.PauseRequested: Rule(STEERED, _steered),
    m.ResumeRequested: Rule(STEERED, _steered),
    m.PriorityChanged: Rule(STEERED, _priority),
    m.DeadlineNear: Rule(STEERED, _deadline),
    m.Settled: Rule(("settling",)),
    m.Refunded: Rule(("funding", "leased", "settling"), _refunded),
}


def illegal(job: Job | None, event: m.JobEvent) -> str | None:
    """Why `event` cannot happen to `job` now; None when it can."""
    if type(event) is m.Submitted:
        return None if job is None else "there is a job with this id already"
    if job is None:
        return "there is no such job"
    rule = RULES[type(event)]
    if job.status not in rule.states:
        return f"the job is {job.status}, not {' or '.join(rule.states)}"
    return rule.guard(job, event)


def near(job: Job, now_ms: int) -> bool:
    """Whether anybody may soon have its escrow refunded; never of a version without deadlines."""
    return bool(job.terms.deadline_s) and now_ms >= (job.terms.deadline_s - DEADLINE_MARGIN_S) * 1000


def deadline_due(job: Job, now_ms: int) -> m.DeadlineNear | None:
    """The end of a job whose escrow may soon be refunded by anybody; None when there is time, or it ends already."""
    if not near(job, now_ms):
        return None
    event = m.DeadlineNear(deadline_s=job.terms.deadline_s)
    return None if illegal(job, event) else event


def time_used(job: Job, now_ms: int) -> m.TimeUsed | None:
    """The end of a job that has served for as long as was bought; None for any other, and before."""
    if not job.job.serve or job.served_ms(now_ms) < bought_ms(job):
        return None
    event = m.TimeUsed(attempt=job.attempt)
    return None if illegal(job, event) else event


# -- what it does ----------------------------------------------------------------------------------------


def waits(job: Job) -> bool:
    """Whether the job may be given to a node (once its back-off is over)."""
    return job.status in ("funding", "queued") and job.outcome is None and not job.halts


def evolve(job: Job | None, event: m.JobEvent, at_ms: int) -> Job:
    """The job after `event`. Events are facts: the caller made sure with `illegal` before it appended."""
    if type(event) is m.Submitted:
        return Job(
            job_id=event.terms.job_id,
            job=event.job,
            terms=event.terms,
            caller=event.caller,
            memory_bytes=event.memory_bytes,
            submitted_at_ms=at_ms,
            changed_at_ms=at_ms,
            unsettled=event.deposit,
            priority=event.job.priority,
            price_base_units=event.price_base_units,
            reference_fee_base_units=event.reference_fee_base_units,
            standby=bool(event.job.serve and event.job.serve.standby),
        )
    assert job is not None, f"{type(event).__name__} before Submitted"
    if isinstance(event, WISHES) and event.request_id:
        job = replace(job, requests=(*job.requests, event.request_id)[-REQUESTS_KEPT:])
    return replace(AFTER[type(event)](job, event, at_ms), changed_at_ms=at_ms)


def granted(job: Job, request_id: str) -> bool:
    """Whether the owner's wish of this id was carried out already: then this is a repetition of it, come late."""
    return bool(request_id) and request_id in job.requests


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
    return "paused" if job.halts else "queued"


def _decided(job: Job, outcome: Outcome, error: str | None) -> Job:
    """How the job ends is known; the chain is still to be asked, or told."""
    return replace(job, outcome=outcome, error=error, pause_requested=False)


def _lost(job: Job, event: m.LeaseLost, at_ms: int) -> Job:
    fatal = event.deterministic and (event.sole or confirmed(job, event))
    job = replace(_ended(job, event, at_ms), error=event.reason)
    if event.discards and job.kept and event.discards.state.sha256 in ends(job.kept):
        job = replace(job, kept=None)  # nobody could go on from it: it is no segment to check, and none that is false
    if event.memory_bytes:
        job = with_memory_beyond(job, event.memory_bytes)
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


def tried(job: Job) -> int:
    """How many attempts count: not those that ended because somebody asked, or before they began, or that did nothing
    wrong but go on from what was rejected.

    Of a job that serves, only those since a replica has worked.
    """
    since = itertools.takewhile(lambda attempt: not _has_worked(attempt), reversed(job.attempts))
    return sum(
        (attempt.lost is None or not (attempt.lost.code in UNCOUNTED or attempt.lost.discards))
        and not (attempt.rejected and attempt.rejected.node_id != attempt.node_id)
        for attempt in (since if job.job.serve else job.attempts)
    )


def _has_worked(attempt: Attempt) -> bool:
    """Whether the replica of an ended attempt was ready, and did not fall over at once by itself."""
    if attempt.started_at_ms is None or attempt.lost is None:
        return False
    return attempt.lost.code in NODES_END or ready_ms(attempt, attempt.started_at_ms) >= STEADY_MS


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


def with_memory_beyond(job: Job, seen_bytes: int) -> Job:
    """The job once it is known that so much memory is not enough for it."""
    return replace(job, memory_bytes=max(job.memory_bytes, seen_bytes + seen_bytes // MEMORY_MARGIN))


def ran_out_on(job: Job, node_id: str) -> bool:
    """Whether the job ran out of memory on this node: it would again."""
    return any(
        attempt.lost is not None and attempt.lost.memory_bytes and attempt.node_id == node_id
        for attempt in job.attempts
    )


def confirmed(job: Job, event: m.LeaseLost) -> bool:
    """Whether another node failed on this job in the same way before: then it is the job's own fault."""
    node_id = job.attempts[-1].node_id
    return any(
        attempt.lost is not None
        and attempt.lost.deterministic
        and attempt.lost.code == event.code
        and attempt.node_id != node_id
        for attempt in job.attempts
    )


def confirmed_unusable(job: Job, state: m.Checkpoint) -> bool:
    """Whether another node than the holder could not go on from this state before."""
    node_id = job.attempts[-1].node_id
    return any(
        attempt.lost is not None
        and attempt.lost.code == BAD_CHECKPOINT
        and attempt.resume == state
        and attempt.node_id != node_id
        for attempt in job.attempts
    )


def wronged(job: Job, node_id: str) -> bool:
    """Whether this node's work on the job was rejected: it gets it no more, banned or not."""
    return any(attempt.rejected and attempt.rejected.node_id == node_id for attempt in job.attempts)


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


def _cancelled(job: Job, event: m.CancelRequested, at_ms: int) -> Job:
    job = replace(job, cancel_requested=True)
    if job.funded:
        return _settle(job, "cancelled", event.reason, at_ms)
    if job.current:
        job = _ended(job, m.LeaseLost(attempt=job.attempt, code=CANCELLED, reason=event.reason), at_ms)
    return _decided(job, "cancelled", event.reason)  # the deposit may still land: find out first


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
    return replace(_decided(job, outcome, error), status="settling", payees=_earned(job))


def _earned(job: Job) -> tuple[m.Payee, ...]:
    """Who is paid what: each wallet for the steps between its attempts' starts and their newest checkpoints.

    Rounded down to base units; what remains goes back to the client. When the job is completed, whoever completed it
    made all the steps that no paid checkpoint holds, and nothing remains but what is above the quoted price.
    """
    if job.job.serve:
        return _earned_by_time(job)
    amount, last = (
        worth_base_units(job),
        {attempt.wallet: attempt.number for attempt in job.attempts if not attempt.rejected},
    )
    winner = job.attempts[-1].wallet if job.completed else None
    if winner and len(last) == 1:  # as most jobs are: nobody to share with
        return (m.Payee(wallet=winner, pay_base_units=amount, attempt=job.attempt),)
    newest = job.checkpoint
    pay: dict[str, int] = {}
    for attempt, (stored, _) in zip(job.attempts, usable(job), strict=True) if newest else ():
        if stored and newest:
            steps = stored.step - attempt.first_step
            pay[attempt.wallet] = pay.get(attempt.wallet, 0) + amount * steps // newest.steps
    most = sorted((wallet for wallet in pay if wallet != winner), key=lambda wallet: (-pay[wallet], wallet))
    paid = {wallet: pay[wallet] for wallet in most[: MAX_PAYEES - 1 if winner else MAX_PAYEES]}
    if winner:
        paid[winner] = amount - sum(paid.values())
    return tuple(
        m.Payee(wallet=wallet, pay_base_units=base_units, attempt=last[wallet])
        for wallet, base_units in paid.items()
        if base_units
    )


def _earned_by_time(job: Job) -> tuple[m.Payee, ...]:
    """Who is paid what for serving: each wallet the share of the time that was bought in which it was ready.

    Attempts are counted in their order until the time is used up: nothing beyond it is paid. Rounded down to base
    units; what remains goes back to the client.
    """
    amount, bought, left = worth_base_units(job), bought_ms(job), bought_ms(job)
    served: dict[str, int] = {}
    last: dict[str, int] = {}
    for attempt in job.attempts:
        counted = min(ready_ms(attempt, 0), left)
        left -= counted
        if counted:
            served[attempt.wallet] = served.get(attempt.wallet, 0) + counted
            last[attempt.wallet] = attempt.number
    most = sorted(served, key=lambda wallet: (-served[wallet], wallet))[:MAX_PAYEES]
    paid = {wallet: amount * served[wallet] // bought for wallet in most}
    return tuple(
        m.Payee(wallet=wallet, pay_base_units=base_units, attempt=last[wallet])
        for wallet, base_units in paid.items()
        if base_units
    )


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
    m.CancelRequested: _cancelled,
    m.PauseRequested: _pause_requested,
    m.ResumeRequested: _resume_requested,
    m.PriorityChanged: lambda job, event, at_ms: replace(job, priority=event.priority),
    m.DeadlineNear: lambda job, event, at_ms: _out_of_time(replace(job, deadline_near=True), at_ms),
    m.Settled: _settled,
    m.Refunded: _refund_found,
}
MOVES_MONEY = frozenset({m.Funded, m.Settled, m.Refunded})  # of what else `entries` knows nothing to write down


def entries(job: Job, event: m.JobEvent) -> list[money.Entry]:
    """The ledger entries of `event`; `job` is the state after it."""
    match event:
        case m.Funded():
            return money.deposit(job.terms)
        case m.Settled():
            payees = event.payees or [
                m.Payee(wallet=payee.wallet, pay_base_units=event.node_base_units + event.platform_base_units)
                for payee in job.payees[-1:]
            ]
            return money.settlement(job.terms, payees, event)
        case m.Refunded() if job.funded:  # else the ledger never saw the deposit either
            return money.refund(job.terms)
    return []


def movements(job: Job) -> list[money.Entry]:
    """All ledger entries of a job so far, by its state alone: what `entries` said, event by event."""
    if not job.funded:
        return []
    found, shares = money.deposit(job.terms), job.shares
    if shares is not None:
        paid = shares.node_base_units + shares.platform_base_units
        payees = list(job.payees)
        if payees and job.pay_base_units != paid:  # an event from before nodes were paid by steps
            payees = [m.Payee(wallet=payees[-1].wallet, pay_base_units=paid)]
        settled = m.Settled(
            signature=job.settle_signature or "",
            node_base_units=shares.node_base_units,
            platform_base_units=shares.platform_base_units,
            client_base_units=shares.client_base_units,
        )
        found += money.settlement(job.terms, payees, settled)
    return found
