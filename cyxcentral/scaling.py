"""How many replicas of a deployment are at work: which one is called that stands by, and which one is sent back. Pure.

The client has paid for every replica that there may ever be, each by a deposit of its own; those that stand by cost
nothing. So whatever is decided here, it is within what the client signed. Three rules, by the wish of the newest:

    fewer than `least` stay          → the first that stands by is called
    more is in flight than they take → the first that stands by is called, up to `most`
    fewer would have done for idle_s → the last that was called is sent back, down to `least`

A replica whose time is nearly used up does not stay: its successor is called early enough to be ready by its end.
How many are wanted is the Kubernetes rule (desired = ceil(sum of the load / target)). No load counts before all who
are ready have said theirs. Nobody is called for it while one who stays is not ready yet: a replica that is loading, or
that no node has room for, is not called for twice. It may be sent back all the same.

Many centrals decide at once. Each has read the log up to some place, and names the first replica that stands by there,
in the order of the log. Two who call different ones can do so only when one that comes before was sent back between the
places where they had read: so together they never have more than `most` at work. Two who call the same one: the second
is refused by the log.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from cyxcentral import jobs
from cyxnet import messages as m

CONCURRENCY = 8  # questions in flight at one replica, above which another is wanted
IDLE_S = 120  # so long fewer must have done
LEAD_MS = 60_000  # before the end of a replica's time, in which its successor fetches and loads the model
LEAD_SHARE = 4  # of the time that was bought, at the most


class Wish(NamedTuple):
    """What shall happen to which replica."""

    job_id: str
    event: m.ScaledUp | m.ScaledDown


class Load(NamedTuple):
    """What a deployment has to do. staying: who is at work, and will be; wanted: how many there should be, or None
    while that is not known. coming: those of staying who are not ready yet."""

    staying: tuple[str, ...]
    in_flight: int
    wanted: int | None
    coming: tuple[str, ...] = ()


def load(replicas: list[jobs.Job], said: Mapping[tuple[str, int], m.RunRef], now_ms: int) -> Load:
    """replicas: those that have not ended, in the order of the log; said: what their nodes said of them last."""
    terms = _terms(replicas)
    staying = [job for job in replicas if not job.standby and not _nearly_over(job, now_ms)]
    ids = tuple(job.job_id for job in staying)
    ready = [job for job in staying if job.current and job.current.started_at_ms is not None]
    told = [said[job.job_id, job.attempt].waiting for job in ready if (job.job_id, job.attempt) in said]
    if not told or len(told) < len(ready) or any(job.pause_requested for job in staying):
        return Load(ids, sum(told), None)
    wanted = math.ceil(sum(told) / (terms.concurrency or CONCURRENCY))
    coming = tuple(job.job_id for job in staying if not (job.current and job.current.started_at_ms is not None))
    return Load(ids, sum(told), min(max(wanted, terms.least), terms.most), coming)


def wish(replicas: list[jobs.Job], now: Load, spare_ms: float) -> Wish | None:
    """spare_ms: for so long fewer than those who stay would have done."""
    terms = _terms(replicas)
    if not terms.most:
        return None
    count = len(now.staying)
    callable_ = next((job.job_id for job in replicas if job.standby and not job.pause_requested), None)
    if callable_ and count < terms.least:
        return Wish(callable_, m.ScaledUp(reason=f"replicas with time left: {count}; at least: {terms.least}"))
    if now.wanted is None:
        return None
    why = f"questions in flight: {now.in_flight}; replicas at work: {count}, wanted: {now.wanted}"
    if callable_ and count < now.wanted and not now.coming:
        return Wish(callable_, m.ScaledUp(reason=why))
    if now.wanted < count and spare_ms >= 1000 * (terms.idle_s or IDLE_S):
        called = [job.job_id for job in replicas if job.job.serve and job.job.serve.standby]
        answering = [job_id for job_id in now.staying if job_id not in now.coming]
        spare = [*(answering if len(answering) > now.wanted else ()), *now.coming]  # last who answers nobody yet
        last = next((job_id for job_id in reversed(spare) if job_id in called), None)
        return Wish(last, m.ScaledDown(reason=why)) if last else None
    return None


def _terms(replicas: list[jobs.Job]) -> m.ServeSpec:
    terms = replicas[-1].job.serve
    assert terms is not None
    return terms


def _nearly_over(job: jobs.Job, now_ms: int) -> bool:
    return jobs.left_ms(job, now_ms) <= min(LEAD_MS, jobs.bought_ms(job) // LEAD_SHARE)


class Scaling:
    """Remembers since when a deployment could do with fewer. Losing that costs one more idle_s."""

    def __init__(self) -> None:
        self._spare: dict[str, tuple[tuple[str, ...], float]] = {}  # deployment -> who stays, and since when

    def spare_ms(self, deployment: str, now: Load, monotonic_ms: float) -> float:
        if now.wanted is None or now.wanted >= len(now.staying):
            self._spare.pop(deployment, None)
            return 0.0
        who, since_ms = self._spare.get(deployment, ((), 0.0))
        if who != now.staying:
            since_ms = monotonic_ms
            self._spare[deployment] = (now.staying, since_ms)
        return monotonic_ms - since_ms

    def forget_all_but(self, deployments: Mapping[str, object]) -> None:
        for gone in self._spare.keys() - deployments.keys():
            del self._spare[gone]
