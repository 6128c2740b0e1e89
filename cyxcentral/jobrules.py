"""What can happen to a job. Pure.

`RULES` says in which states an event may happen; a pair that is not there cannot happen. `illegal` asks it, and
the guards, before anything is appended, with the state the append is conditional on.

A wish of the owner is refused only when it is too late for it, which it then stays: one that was refused for being
early could be carried out when a try of it comes later. So a pause or resume that changes nothing is an event too. A
priority may be changed as long as the job may still wait for a node.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from cyxcentral.jobs import BAD_CHECKPOINT, ENDED, Job, bought_ms, follows, near, node_of, segment_to
from cyxnet import messages as m

# codes of checks that say: nobody trained this segment, from such a state, or on such data
NO_TRAINING = (BAD_CHECKPOINT, "diverged", "bad_data", "shape_mismatch")
TWO_RUNS_DIFFER = "two runs of the same segment found different things: it cannot be told what is right"
IDLE: tuple[m.JobStatus, ...] = ("funding", "waiting", "paused")  # a job that waits for others may be in
STEERED: tuple[m.JobStatus, ...] = ("funding", "waiting", "queued", "leased", "paused")  # the owner has a say


class Rule(NamedTuple):
    """In which states an event may happen, and what else must hold: the guard says why not, or None."""

    states: tuple[m.JobStatus, ...]
    guard: Callable[[Job, Any], str | None] = lambda job, event: None


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
    if job.awaiting:
        return "it waits for the jobs that it comes after"
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


def _of_dependencies(job: Job, event: m.DependenciesMet | m.DependencyFailed) -> str | None:
    if job.outcome:
        return f"it waits for the chain to be {job.outcome}"
    return None if job.awaiting else "it does not wait for other jobs"


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
    m.DependenciesMet: Rule(IDLE, _of_dependencies),
    m.DependencyFailed: Rule(IDLE, _of_dependencies),
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
    if job.status in ENDED and job.status not in rule.states:
        return f"the job is {job.status}: it has ended"
    if job.status not in rule.states:
        return f"the job is {job.status}, not {' or '.join(rule.states)}"
    return rule.guard(job, event)


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
