"""Jobs that come after others: which may begin, and which never will. Pure.

A job names the jobs that have to be completed before it. It waits for them with its own deposit paid, so that nobody
has to be there when they end: what becomes of it follows from the log alone, and any central may write it down. How a
job ends is known before its settlement is final, and nothing that comes after it waits for the chain.

Of several it may begin with the best model. Then one that comes to something is enough: a sweep of which a job fails
still has a best one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from cyxcentral.jobs import Job
from cyxnet import messages as m

Known = Mapping[str, Job]


def due(job: Job, known: Known) -> m.DependenciesMet | m.DependencyFailed | None:
    """What became of the jobs that this one waits for; None while that is not known, or it waits for none."""
    if not job.awaiting or job.outcome:
        return None
    for job_id, why in never(job.job.after, known):
        return m.DependencyFailed(job_id=job_id, reason=why)
    if unfinished(job, known):
        return None
    best = max(_models(job.job, known), key=lambda done: _worth(job.job, done), default=None)
    return m.DependenciesMet(weights=best.model.sha256 if best else "")


def never(afters: Sequence[m.After], known: Known) -> Iterator[tuple[str, str]]:
    """For which jobs one that comes after these will never begin, and why."""
    failed = {
        each.job_id: why for each in afters if _over(each, known) and (why := too_little(each, known[each.job_id]))
    }
    sources = [each.job_id for each in afters if each.model]
    none_left = all(job_id in failed for job_id in sources)
    more = f"; none of {len(sources)} jobs has a model to begin with" if len(sources) > 1 else ""
    for each in afters:
        if each.job_id in failed and (none_left or not each.model):
            yield each.job_id, failed[each.job_id] + (more if each.model else "")


def why_untrue(job: Job, event: m.DependenciesMet | m.DependencyFailed, known: Known) -> str | None:
    """Why what is said of the jobs that this one comes after is not so; None when it is.

    One may have been delivered and have failed since, as its escrow was refunded: then both was so.
    """
    if isinstance(event, m.DependencyFailed):
        if any(job_id == event.job_id for job_id, _ in never(job.job.after, known)):
            return None
        return f"{event.job_id} has not failed it, or it does not come after that"
    for after in job.job.after:
        done = known[after.job_id].completed if _over(after, known) else None
        if not (_over(after, known) if after.model else done and not _too_bad(after, done)):
            return f"{after.job_id} is not completed, or not as it was to be"
    if not any(after.model for after in job.job.after):
        return "it begins with a model of none of them" if event.weights else None
    least = max((_worth(job.job, done) for done in _models(job.job, known)), default=-math.inf)
    taken = [done for done in _models(job.job, known, failed_since=True) if done.model.sha256 == event.weights]
    return None if any(_worth(job.job, done) >= least for done in taken) else "it begins with another model"


def unfinished(job: Job, known: Known) -> list[str]:
    """The jobs that this one waits for."""
    return [after.job_id for after in job.job.after if job.awaiting and not _over(after, known)]


def _over(after: m.After, known: Known) -> bool:
    return after.job_id in known and known[after.job_id].outcome is not None


def _models(job: m.JobRequest, known: Known, *, failed_since: bool = False) -> Iterator[m.Completed]:
    """What it could begin with, of jobs that are over. failed_since: also of those that were not paid in the end."""
    for after in job.after:
        other = known[after.job_id]
        if after.model and other.completed and (failed_since or other.outcome == "completed"):
            if not _too_bad(after, other.completed):
                yield other.completed


def _worth(job: m.JobRequest, done: m.Completed) -> float:
    """How good a model is beside others. One without that metric is the worst."""
    found = getattr(done.summary, job.best_by) if job.best_by else None
    if found is None:
        return -math.inf
    return -found if str(job.best_by).endswith("loss") else found


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
