"""Jobs that come after others: which may begin, and which never will. Pure.

A job names the jobs that have to be completed before it. It waits for them with its own deposit paid, so that nobody
has to be there when they end: what becomes of it follows from the log alone, and any central may write it down. How a
job ends is known before its settlement is final, and nothing that comes after it waits for the chain.
"""

from collections.abc import Mapping

from cyxcentral.jobs import Job
from cyxnet import messages as m


def due(job: Job, known: Mapping[str, Job]) -> m.DependenciesMet | m.DependencyFailed | None:
    """What became of the jobs that this one waits for; None while that is not known, or it waits for none."""
    if not job.awaiting or job.outcome:
        return None
    weights, open_ = "", False
    for after in job.job.after:
        other = known.get(after.job_id)
        if other is None or other.outcome is None:
            open_ = True
        elif why := too_little(after, other):
            return m.DependencyFailed(job_id=after.job_id, reason=why)
        elif after.model and other.completed:
            weights = other.completed.model.sha256
    return None if open_ else m.DependenciesMet(weights=weights)


def why_untrue(job: Job, event: m.DependenciesMet | m.DependencyFailed, known: Mapping[str, Job]) -> str | None:
    """Why what is said of the jobs that this one comes after is not so; None when it is.

    One may have been delivered and have failed since, as its escrow was refunded: then both was so.
    """
    weights = ""
    for after in job.job.after:
        other = known.get(after.job_id)
        if isinstance(event, m.DependencyFailed):
            if after.job_id == event.job_id and other and other.outcome and too_little(after, other):
                return None
        elif other is None or not other.outcome or other.completed is None or _too_bad(after, other.completed):
            return f"{after.job_id} is not completed, or not as it was to be"
        elif after.model:
            weights = other.completed.model.sha256
    if isinstance(event, m.DependencyFailed):
        return f"{event.job_id} has not failed it, or it does not come after that"
    return None if event.weights == weights else "it begins with another model"


def unfinished(job: Job, known: Mapping[str, Job]) -> list[str]:
    """The jobs that this one waits for."""
    others = ((after.job_id, known.get(after.job_id)) for after in job.job.after if job.awaiting)
    return [job_id for job_id, other in others if other is None or other.outcome is None]


def too_little(after: m.After, other: Job) -> str | None:
    """Why a job that is over does not let another one begin."""
    if other.outcome != "completed" or other.completed is None:
        why = f": {other.error}" if other.error and not other.awaiting else ""  # that one tells of another again
        return f"{after.job_id}, which it comes after, has {_ENDS[other.outcome or 'failed']}{why}"
    return _too_bad(after, other.completed)


def _too_bad(after: m.After, done: m.Completed) -> str | None:
    """Why a model is not what it was to be."""
    if after.metric is None:
        return None
    found = getattr(done.summary, after.metric)
    wanted = f"{after.metric} of {after.job_id} is to be {_bounds(after)}"
    if found is None:
        return f"{wanted}, and it has none"
    good = (after.at_least is None or found >= after.at_least) and (after.at_most is None or found <= after.at_most)
    return None if good else f"{wanted}, and is {found:.6g}"


_ENDS = {"completed": "ended without a model", "failed": "failed", "cancelled": "been cancelled"}


def _bounds(after: m.After) -> str:
    parts = [("at least", after.at_least), ("at most", after.at_most)]
    return " and ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)
