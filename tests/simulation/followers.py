"""Jobs that come after others: what clients buy of them, and what must hold of one (I27)."""

from collections.abc import Mapping
from random import Random

from msgspec.structs import replace

from cyxnet import messages as m
from tests.simulation.models import JobModel

LOSSES = [(None, None), (None, None), (0.0, None), (None, -1.0)]  # bounds of a loss: none, one that is met, one never


class Followers:
    """What is bought. Dice of its own: a seed in which nobody wants any is what it would be without them."""

    def __init__(self, seed: int):
        self._dice = Random(f"followers of {seed}")
        self._best = Random(f"best of {seed}")
        self._share = self._dice.choice([0.0, 0.0, 0.0, 0.5])  # of the clients

    def after(self, job: m.JobRequest) -> list[m.JobRequest]:
        """One or two jobs, each after some of those before it, the client's own first."""
        dice, found = self._dice, [job.name]
        if dice.random() >= self._share or job.serve:
            return []
        jobs = []
        for letter in "bc"[: dice.randint(1, 2)]:
            names = dice.sample(found, dice.randint(1, len(found)))
            first, *others = (m.After(job_id=name) for name in names)
            at_least, at_most = dice.choice(LOSSES)
            metric = None if at_least is at_most else "final_loss"
            first = replace(first, model=dice.random() < 0.5, metric=metric, at_least=at_least, at_most=at_most)
            found.append(f"{job.name}-{letter}")
            jobs.append(self._of_the_best(replace(job, name=found[-1], after=[first, *others])))
        return jobs

    def _of_the_best(self, job: m.JobRequest) -> m.JobRequest:
        """Half of the jobs after several begin with the best model of all."""
        if len(job.after) < 2 or self._best.random() < 0.5:
            return job
        after = [replace(each, model=True) for each in job.after]
        return replace(job, after=after, best_by=self._best.choice(["final_loss", "final_accuracy"]))

    def pauses(self) -> bool:
        """Whether the owner of a job that comes after others pauses it for a while."""
        return self._dice.random() < 0.3


def met(job: JobModel, event: m.DependenciesMet, jobs: Mapping[str, JobModel]) -> str | None:
    """Why a job may not begin."""
    if not job.awaiting:
        return "it waits for none"
    for after in _afters(job):
        if after.model and _best_by(job):
            continue
        if not _is_well(jobs[after.job_id]):
            return f"{after.job_id}, which it comes after, is not completed"
        if not _is_good(after, jobs[after.job_id]):
            return f"{after.job_id}, which it comes after, is worth too little"
    sources = [jobs[after.job_id] for after in _sources(job) if _is_left(after, jobs[after.job_id])]
    firm = [_worth(job, source) for source in sources if not _is_refunded(source)]
    models = {source.model for source in sources if all(_worth(job, source) >= other for other in firm)}
    if not _sources(job):
        models = {""}
    return None if event.weights in models else f"it begins with {event.weights[:8]} instead of one of {models}"


def passed_over(job: JobModel, jobs: Mapping[str, JobModel]) -> list[str]:
    """The jobs that came to nothing, with whose model it would have begun had it been the best."""
    return [after.job_id for after in _sources(job) if not _is_well(jobs[after.job_id])]


def failed(job: JobModel, job_id: str, jobs: Mapping[str, JobModel]) -> str | None:
    """Why a job may not be cancelled for what became of this one."""
    after = next((after for after in _afters(job) if after.job_id == job_id), None)
    if after is None:
        return f"it does not come after {job_id}"
    for each in _sources(job) if after.model else [after]:
        if _is_left(each, jobs[each.job_id]) and not _is_refunded(jobs[each.job_id]):
            return f"{each.job_id} is completed"
    return None


def _is_refunded(job: JobModel) -> bool:
    return job.ended and not job.settled


def _is_left(after: m.After, job: JobModel) -> bool:
    return _is_well(job) and _is_good(after, job)


def _worth(job: JobModel, other: JobModel) -> float:
    if _best_by(job) == "final_loss":
        return -other.summary.final_loss if other.summary else 0.0
    return other.summary.final_accuracy or 0.0 if other.summary else 0.0


def _best_by(job: JobModel) -> str | None:
    return job.request.best_by if job.request else None


def _sources(job: JobModel) -> list[m.After]:
    return [after for after in _afters(job) if after.model]


def _afters(job: JobModel) -> list[m.After]:
    return job.request.after if job.request else []


def _is_well(job: JobModel) -> bool:
    return job.completed and job.check is None


def _is_good(after: m.After, job: JobModel) -> bool:
    loss = job.summary.final_loss if job.summary else 0.0
    least, most = after.at_least, after.at_most
    return (least is None or loss >= least) and (most is None or loss <= most)
