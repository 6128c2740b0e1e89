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
            jobs.append(replace(job, name=found[-1], after=[first, *others]))
        return jobs

    def pauses(self) -> bool:
        """Whether the owner of a job that comes after others pauses it for a while."""
        return self._dice.random() < 0.3


def met(job: JobModel, event: m.DependenciesMet, jobs: Mapping[str, JobModel]) -> str | None:
    """Why a job may not begin."""
    if not job.awaiting:
        return "it waits for none"
    models = {""}
    for after in _afters(job):
        if not _is_well(jobs[after.job_id]):
            return f"{after.job_id}, which it comes after, is not completed"
        if not _is_good(after, jobs[after.job_id]):
            return f"{after.job_id}, which it comes after, is worth too little"
        if after.model:
            models = {jobs[after.job_id].model}
    return None if {event.weights} == models else f"it begins with {event.weights[:8]} instead of {models}"


def failed(job: JobModel, job_id: str, jobs: Mapping[str, JobModel]) -> str | None:
    """Why a job may not be cancelled for what became of this one."""
    after = next((after for after in _afters(job) if after.job_id == job_id), None)
    if after is None:
        return f"it does not come after {job_id}"
    other = jobs[job_id]
    refunded = other.ended and not other.settled
    return None if refunded or not _is_well(other) or not _is_good(after, other) else f"{job_id} is completed"


def _afters(job: JobModel) -> list[m.After]:
    return job.request.after if job.request else []


def _is_well(job: JobModel) -> bool:
    return job.completed and job.check is None


def _is_good(after: m.After, job: JobModel) -> bool:
    loss = job.summary.final_loss if job.summary else 0.0
    least, most = after.at_least, after.at_most
    return (least is None or loss >= least) and (most is None or loss <= most)
