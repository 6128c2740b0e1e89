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

A job that comes after others (`after`) is `waiting` once it is funded, until they are completed (`DependenciesMet`) or
one of them never will be, which cancels it (`DependencyFailed`). The weights that it begins with are written into it
then, as if its owner had known them.

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

A Job is the fold of what happened to it. What may happen is in jobrules.py, what a job is after it in jobfold.py, who
is paid for it in earnings.py; here is the job itself, and what can be read off it.
"""

import itertools
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral import money
from cyxnet import messages as m

REFUSED = "refused"  # code of a lease that its node did not take: nothing was tried
PAUSED, NODE_STOPPED = "paused", "node_stopped"  # codes of runs that ended because somebody asked
BAD_CHECKPOINT = "bad_checkpoint"  # code of a run that could not go on from the state it was given
UNFUNDED, CANCELLED = "unfunded", "cancelled"  # codes of leases that ended before the deposit was final
UNCOUNTED = (REFUSED, PAUSED, NODE_STOPPED)
NODES_END = ("node_lost", "run_missing", NODE_STOPPED, PAUSED)  # codes of runs that did not end by themselves
GPU_MEMORY_STEP_BYTES = 2**28
MEMORY_MARGIN = 4  # after running out of memory a job asks for a quarter more than it had
DEADLINE_MARGIN_S = 86_400  # so long before an escrow may be refunded its job ends: for clocks, and for the chain
STEADY_MS = 60_000  # a replica that was ready for so long has worked: what ends it then is no failed try
MAX_LEASES = 100  # uncounted ones included: no job goes round for ever
Outcome = Literal["completed", "failed", "cancelled"]
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
    awaiting: bool = False  # of a job that comes after others: they are not all completed
    standby: bool = False  # of a replica: it waits until it is called
    scaled: str = ""  # why it was called, or sent back to stand by, last
    price_base_units: int = 0  # the most that is charged, as it was quoted; 0: the amount
    reference_fee_base_units: int = 0  # by which its node's reputation is counted once it is paid; 0: counted before
    requests: tuple[str, ...] = ()  # ids of what its owner asked for and got, the newest last
    payees: tuple[m.Payee, ...] = ()  # who is paid when it is settled
    gpu_memory_bytes: int = 0  # of one GPU
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


def follows(job: Job, sequence: int) -> bool:
    """Whether a signed report comes after all that its attempt has said; 0: of a node that does not count them."""
    return not sequence or sequence > job.attempts[-1].sequence


def waits(job: Job) -> bool:
    """Whether the job may be given to a node (once its back-off is over)."""
    return job.status in ("funding", "queued") and job.outcome is None and not job.halts and not job.awaiting


def as_asked(job: Job) -> m.JobRequest:
    """The job as its client submitted it: without the weights that another job gave it."""
    if any(after.model for after in job.job.after):
        return replace(job.job, model=replace(job.job.model, weights=None))
    return job.job


def near(job: Job, now_ms: int) -> bool:
    """Whether anybody may soon have its escrow refunded; never of a version without deadlines."""
    return bool(job.terms.deadline_s) and now_ms >= (job.terms.deadline_s - DEADLINE_MARGIN_S) * 1000


def granted(job: Job, request_id: str) -> bool:
    """Whether the owner's wish of this id was carried out already: then this is a repetition of it, come late."""
    return bool(request_id) and request_id in job.requests


def tried(job: Job) -> int:
    """How many attempts count: not those that ended because somebody asked, or before they began, or that did nothing
    wrong but go on from what was rejected.

    Of a job that serves, only those since a replica has worked.
    """
    since = itertools.takewhile(lambda attempt: not _has_worked(attempt), reversed(job.attempts))
    return sum(
        not (attempt.lost and not _failed(attempt.lost))
        and not (attempt.rejected and attempt.rejected.node_id != attempt.node_id)
        for attempt in (since if job.job.serve else job.attempts)
    )


def _failed(lost: m.LeaseLost) -> bool:
    return not (lost.code in UNCOUNTED or lost.discards)


def failed_on(job: Job) -> frozenset[str]:
    """The nodes on which a try failed that counts."""
    return frozenset(attempt.node_id for attempt in job.attempts if attempt.lost and _failed(attempt.lost))


def _has_worked(attempt: Attempt) -> bool:
    """Whether the replica of an ended attempt was ready, and did not fall over at once by itself."""
    if attempt.started_at_ms is None or attempt.lost is None:
        return False
    return attempt.lost.code in NODES_END or ready_ms(attempt, attempt.started_at_ms) >= STEADY_MS


def with_memory_beyond(job: Job, seen_bytes: int, seen_gpu_bytes: int = 0) -> Job:
    """The job once it is known that so much memory, of the machine or of a GPU, is not enough for it."""
    needed_bytes, needed_gpu_bytes = (seen + seen // MEMORY_MARGIN for seen in (seen_bytes, seen_gpu_bytes))
    return replace(
        job,
        memory_bytes=max(job.memory_bytes, needed_bytes),
        gpu_memory_bytes=max(job.gpu_memory_bytes, whole_steps(needed_gpu_bytes)),
    )


def whole_steps(gpu_bytes: int) -> int:
    """So much memory of a GPU, rounded up: the needs of jobs shall have few values, as they are sorted by them."""
    return -(-gpu_bytes // GPU_MEMORY_STEP_BYTES) * GPU_MEMORY_STEP_BYTES


def needed_gpu_bytes(job: Job) -> int:
    """What one GPU must have free for it; 0: it needs none. A job of a log from before it was said needs any GPU."""
    return max(1, job.gpu_memory_bytes) if job.job.needs.device == "cuda" else 0


def ran_out(lost: m.LeaseLost) -> bool:
    """Whether the attempt had too little memory, of the machine or of its GPU."""
    return bool(lost.memory_bytes or lost.gpu_memory_bytes)


def ran_out_on(job: Job, node_id: str) -> bool:
    """Whether the job ran out of memory on this node: it would again."""
    return any(
        attempt.lost is not None and ran_out(attempt.lost) and attempt.node_id == node_id for attempt in job.attempts
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
