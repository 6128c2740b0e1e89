"""What makes a node the right one for a job. Pure: one decision depends on its arguments and nothing else.

Each term of the score lies in [0, 1]; 1 is best. The weights are configuration. A node must first be able to run the
job at all (`refusal`); among those that can, the highest weighted sum wins. `choose` and `assign` are this said in the
plainest way, by looking at everyone; cyxcentral.matching comes to the same decisions without looking at everyone.

A node that has proven nothing (`nodes.proven`) may be anybody, also one that was banned under another key. So it works
on one job at a time, on none that is worth much, and scores as low as one whose ban has just ended. Clients that name
a node know what they do: their jobs are not too large for it.
"""

import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice

import msgspec
from msgspec import Struct

from cyxcentral.jobs import Job, failed_on, needed_gpu_bytes, ran_out_on, worth_base_units, wronged
from cyxcentral.nodes import PROVEN_CLIENTS, UNBANNED_REPUTATION, Node, proofs, proven
from cyxcore.errors import CyxError
from cyxnet.amounts import format_cyx

SLOW_FLOPS, FAST_FLOPS = 1e9, 1e12  # where the device term begins and where it is full; logarithmic between them
HALF_PRICE_BASE_UNITS = 1_000_000_000  # per hour: the price term of it is one half (1 CYX)
AGING_MS = 600_000  # a level of priority is worth ten minutes of waiting, so nobody waits for ever
TRIAL_EVERY = 20  # one job of so many goes to nodes that are not proven first: else they never had a chance to be
ELSEWHERE_MS = 60_000  # so long after its back-off a job whose try failed waits for a node where none did,
ELSEWHERE_NODES = 1_000  # if one of so many could take it
SHOWN = 20  # an explanation names every node of a network of so many,
SHOWN_OF_MANY = 5  # and of a larger one the best


class WeightsError(CyxError):
    """The weights of a configuration cannot be used."""

    code = "bad_weights"


class Weights(Struct, frozen=True, kw_only=True):
    """How much each term counts."""

    device: float = 0.25
    memory: float = 0.15
    reputation: float = 0.25
    location: float = 0.05
    queue: float = 0.20
    price: float = 0.10


def weights_of(configured: Mapping[str, float]) -> Weights:
    """The weights of a configuration, divided by their sum; a term that is not named keeps its default.

    Raises WeightsError for an unknown term, a weight below zero or not finite, or weights that are all zero.
    """
    known = msgspec.structs.asdict(Weights())
    for name, weight in configured.items():
        if name not in known:
            raise WeightsError(f"weights: expected some of {', '.join(known)}, got {name}")
        if not (math.isfinite(weight) and weight >= 0):
            raise WeightsError(f"weights.{name}: expected a number from 0, got {weight}")
    if not configured:
        return Weights()
    merged = known | dict(configured)
    total = sum(merged.values())
    if not 0 < total < math.inf:
        raise WeightsError(f"weights: expected at least one above 0 and a finite sum, got a sum of {total:g}")
    return Weights(**{name: weight / total for name, weight in merged.items()})


class Unproven(Struct, frozen=True, kw_only=True):
    """What nodes get that are not proven. limit: of what a job may be worth; 0: they are as all others.

    vouched: ids of nodes whose owners the operator knows: they need no proof. checkers: of those that check what others
    did: they get jobs that nobody else has room for.
    """

    limit_base_units: int = 0
    vouched: frozenset[str] = frozenset()
    checkers: frozenset[str] = frozenset()


class Candidate(Struct, frozen=True, kw_only=True):
    """A node as the scheduler sees it now: what is registered and what it is busy with."""

    node: Node
    active_runs: int
    memory_free_bytes: int  # after what its current runs were promised
    limit_base_units: int = 0  # of what its jobs may be worth, because it is not proven; 0: no limit
    checker: bool = False  # it had better be free to check
    gpu_runs: int = 0  # of its current runs, those that have one of its GPUs

    @property
    def max_runs(self) -> int:
        return 1 if self.limit_base_units else self.node.max_runs

    @property
    def gpu_free_bytes(self) -> int:
        """The memory of a GPU that it has free for one more run, each of which has one for itself; 0: none is free.

        Which ones its runs have, it alone knows: at the worst the largest.
        """
        free = self.node.gpus_free_bytes or [gpu.memory_bytes for gpu in self.node.hardware.gpus]
        sizes = sorted(free, reverse=True)
        return sizes[self.gpu_runs] if self.gpu_runs < len(sizes) else 0

    @property
    def reputation(self) -> float:
        """As it counts."""
        return min(self.node.reputation, UNBANNED_REPUTATION) if self.limit_base_units else self.node.reputation


def limit_of(node: Node, unproven: Unproven) -> int:
    """What a job may be worth that this node gets; 0: anything."""
    return 0 if node.node_id in unproven.vouched or proven(node) else unproven.limit_base_units


def for_proven(job: Job, limit_base_units: int) -> bool:
    """Whether a job is worth more than a node with this limit gets."""
    return 0 < limit_base_units < worth_base_units(job) and not job.job.needs.node_id


def most_worth(job: Job, candidates: Iterable[Candidate]) -> int:
    """What a job like this may be worth, so that one of these nodes gets it; 0: anything."""
    most = 0
    for candidate in candidates:
        if job.job.needs.node_id or not candidate.limit_base_units:
            return 0
        most = max(most, candidate.limit_base_units)
    return most


class Assignment(Struct, frozen=True, kw_only=True):
    job_id: str
    node_id: str
    explanation: dict[str, object]


def place(job: Job) -> tuple[int, str]:
    """Where a job stands in the line: less is earlier. Only its owner changes it."""
    return job.submitted_at_ms - job.priority * AGING_MS, job.job_id


# -- who can -----------------------------------------------------------------------------------------------


def refusal(job: Job, candidate: Candidate) -> str | None:
    """Why this node cannot take this job now; None when it can."""
    node = candidate.node
    if node.banned_until_ms:  # and so offline
        return f"banned until {datetime.fromtimestamp(node.banned_until_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    if not node.online:
        return "offline"
    if node.draining:
        return "draining: it takes no new runs, as its operator wants or because its disk is full"
    if why_not := _unfit(job, node):
        return why_not
    limit = candidate.limit_base_units
    if for_proven(job, limit):
        return f"{_not_proven(node)}: it gets jobs of up to {format_cyx(limit)} CYX, and this one may cost {_cost(job)}"
    if limit and candidate.active_runs:
        return f"{_not_proven(node)}: it works on one job at a time"
    if candidate.active_runs >= node.max_runs:
        return f"busy with {candidate.active_runs} of {node.max_runs} runs"
    if (needed := needed_gpu_bytes(job)) > (free := candidate.gpu_free_bytes):
        if candidate.gpu_runs >= len(node.hardware.gpus):
            return f"all of its GPUs are busy ({candidate.gpu_runs})"
        if not free:
            return "other programs have filled its GPUs"
        return f"{_mib(free)} MiB on a free GPU, {_mib(needed)} MiB needed"
    if candidate.memory_free_bytes < job.memory_bytes:
        return f"{_mib(candidate.memory_free_bytes)} MiB of memory free, {_mib(job.memory_bytes)} MiB needed"
    return None


def _not_proven(node: Node) -> str:
    return f"not proven yet ({proofs(node)} of {PROVEN_CLIENTS} clients have paid for its work)"


def _cost(job: Job) -> str:
    return f"{format_cyx(worth_base_units(job))} CYX"


def _unfit(job: Job, node: Node) -> str | None:
    """Why the node could not even run it when idle."""
    needs = job.job.needs
    if ran_out_on(job, node.node_id):
        return "it ran out of memory here"
    if wronged(job, node.node_id):
        return "what it did for this job was rejected"
    if needs.node_id and needs.node_id != node.node_id:
        return f"{needs.node_id} is asked for, and no other"
    if needed := needed_gpu_bytes(job):
        largest = max((gpu.memory_bytes for gpu in node.hardware.gpus), default=0)
        if not largest:
            return "no CUDA GPU"
        if largest < needed:
            return f"{_mib(largest)} MiB on its largest GPU, {_mib(needed)} MiB needed"
    if node.hardware.cores < needs.cores:
        return f"{node.hardware.cores} cores, {needs.cores} needed"
    if node.hardware.memory_bytes < job.memory_bytes:
        return f"{_mib(node.hardware.memory_bytes)} MiB of memory, {_mib(job.memory_bytes)} MiB needed"
    return None


def ever_fits(job: Job, node: Node) -> bool:
    """Whether the node, which is online, could run the job when idle. A ban ends; it is no reason to refuse a job."""
    return node.online and _unfit(job, node) is None


def held_back(job: Job, candidates: Iterable[Candidate], now_ms: int) -> frozenset[str]:
    """The nodes that do not get the job yet, because a try of it failed there and another node could take it once that
    has room: a node where everything fails at once is always free, and would use up all tries.

    Not for ever, as the others may be busy for days; and no replica waits, as many people wait for it. The moment is
    that of the central that wrote the loss down: from a clock that differs by more than a minute nothing can be told.
    """
    failed = failed_on(job)
    if not failed or job.job.serve or job.job.needs.node_id:
        return frozenset()
    if abs(now_ms - job.not_before_ms) >= ELSEWHERE_MS:
        return frozenset()
    others = (candidate for candidate in candidates if candidate.node.node_id not in failed)
    return failed if any(_could(job, other) for other in islice(others, ELSEWHERE_NODES)) else frozenset()


def _could(job: Job, candidate: Candidate) -> bool:
    node = candidate.node
    return ever_fits(job, node) and not node.draining and not for_proven(job, candidate.limit_base_units)


def away(candidate: Candidate) -> str | None:
    """Why a node can take no job at all now, in one word; None when it has a free run."""
    if not candidate.node.online:
        return "offline"
    if candidate.node.banned_until_ms:
        return "banned"
    if candidate.node.draining:
        return "draining"
    return "busy" if candidate.active_runs >= candidate.max_runs else None


def lacking(job: Job, candidate: Candidate) -> list[str]:
    """What a node lacks for a job, each as one phrase to count by; empty when it can take it."""
    if out := away(candidate):
        return [out]
    needs, found = job.job.needs, []
    if needs.node_id and needs.node_id != candidate.node.node_id:
        found.append(OTHER_NODE)
    if needed_gpu_bytes(job) > (free := candidate.gpu_free_bytes):
        found.append(SMALL_GPU if free else NO_GPU)
    if candidate.node.hardware.cores < needs.cores:
        found.append(FEW_CORES)
    if candidate.memory_free_bytes < job.memory_bytes:
        found.append(LITTLE_MEMORY)
    if for_proven(job, candidate.limit_base_units):
        found.append(NOT_PROVEN)
    return found


NOT_PROVEN = "not proven, and the job worth too much for that"
FAILED_THERE = "a try of it failed there, and another node may take it soon"
NO_GPU, SMALL_GPU = "no CUDA GPU free", "too little memory on a free GPU"
FEW_CORES, LITTLE_MEMORY = "too few cores", "too little memory free"
OTHER_NODE = "another node is asked for"


# -- who is best -------------------------------------------------------------------------------------------


def terms(job: Job, candidate: Candidate) -> dict[str, float]:
    """The six terms of the score, each in [0, 1]. None depends on another node, so none can distort another's."""
    node = candidate.node
    return {
        "device": _device(node, job.job.needs.device == "cuda"),
        "memory": memory_term(job.memory_bytes, candidate.memory_free_bytes),
        "reputation": candidate.reputation / 100.0,
        "location": location_term(job.job.needs.region, node.region),
        "queue": 1.0 - candidate.active_runs / max(1, candidate.max_runs),
        "price": price_term(node.price_per_hour_base_units),
    }


def memory_term(needed_bytes: int, free_bytes: int) -> float:
    """The share of the free memory that stays free. Grows with free_bytes."""
    return min(1.0, max(0.0, 1.0 - needed_bytes / max(1, free_bytes)))


def location_term(wanted: str, region: str) -> float:
    """1 in the wanted region, 0 in another, one half where either is unknown."""
    return (1.0 if wanted == region else 0.0) if wanted and region else 0.5


def price_term(price_per_hour_base_units: int) -> float:
    """1 for nothing, one half for HALF_PRICE_BASE_UNITS, towards 0 beyond.

    Not a share of the dearest node's price: one absurd price would make all others look alike.
    """
    return HALF_PRICE_BASE_UNITS / (HALF_PRICE_BASE_UNITS + price_per_hour_base_units)


def _device(node: Node, gpu_wanted: bool) -> float:
    """Measured speed: 0 at SLOW_FLOPS or below, 1 at FAST_FLOPS or above, twice as fast counts the same anywhere.

    Only the CPU is measured: any GPU counts 1 for who wants one.
    """
    if gpu_wanted:
        return 1.0
    span = math.log(FAST_FLOPS / SLOW_FLOPS)
    return min(1.0, math.log(max(node.hardware.flops_per_s, SLOW_FLOPS) / SLOW_FLOPS) / span)


def standing(candidate: Candidate, weights: Weights, gpu_wanted: bool) -> float:
    """The part of the score that is the same for all jobs that want a GPU, or for all that do not."""
    node = candidate.node
    return (
        weights.device * _device(node, gpu_wanted)
        + weights.reputation * (candidate.reputation / 100.0)
        + weights.queue * (1.0 - candidate.active_runs / max(1, candidate.max_runs))
        + weights.price * price_term(node.price_per_hour_base_units)
    )


def score(standing: float, memory: float, location: float, weights: Weights) -> float:
    """The weighted sum. Rounded sums keep the order of their parts: a bound of the parts bounds the score."""
    return standing + weights.memory * memory + weights.location * location


def full_score(job: Job, candidate: Candidate, weights: Weights) -> float:
    return score(
        standing(candidate, weights, job.job.needs.device == "cuda"),
        memory_term(job.memory_bytes, candidate.memory_free_bytes),
        location_term(job.job.needs.region, candidate.node.region),
        weights,
    )


def turn(job: Job) -> int:
    """Whether nodes that are not proven are asked first (-1), last (1), or as their score is (0).

    Last for a job that was lost: strangers that finish nothing shall not use up all its attempts. First for some jobs,
    which their ids tell, so that every central means the same ones.
    """
    if job.attempts:
        return 1
    return 0 if zlib.crc32(job.job_id.encode()) % TRIAL_EVERY else -1


def preference(job: Job, candidate: Candidate, weights: Weights) -> tuple[bool, bool, int, float, int, str]:
    """What to sort candidates by, best first: a node that lost this job before is the last resort, then a checker."""
    node_id = candidate.node.node_id
    lost_before = any(attempt.node_id == node_id for attempt in job.attempts)
    return (
        lost_before,
        candidate.checker,
        turn(job) if candidate.limit_base_units else 0,
        -full_score(job, candidate, weights),
        -candidate.memory_free_bytes,
        node_id,
    )


def choose(
    job: Job, candidates: Iterable[Candidate], weights: Weights, now_ms: int
) -> tuple[str | None, dict[str, object]]:
    """The best node for one job, and why."""
    everyone = list(candidates)
    held = held_back(job, everyone, now_ms)
    able = [each for each in everyone if refusal(job, each) is None and each.node.node_id not in held]
    able.sort(key=lambda candidate: preference(job, candidate, weights))
    refused = Counter(reason for candidate in everyone for reason in lacking(job, candidate))
    free = [candidate.node.node_id for candidate in everyone if away(candidate) is None]
    refused += Counter({FAILED_THERE: len(held.intersection(free))})
    why = explanation(job, able[: shown(len(everyone))], everyone, weights, refused, len(free), held)
    return (able[0].node.node_id if able else None), why


def shown(nodes: int) -> int:
    """How many candidates an explanation shows on a network of so many nodes."""
    return SHOWN if nodes <= SHOWN else SHOWN_OF_MANY


def explanation(
    job: Job,
    best: list[Candidate],
    everyone: Collection[Candidate],
    weights: Weights,
    refused: Mapping[str, int],
    free_nodes: int,
    held: Collection[str],
) -> dict[str, object]:
    """A decision in numbers: the best candidates by their scores, and how many nodes lack what.

    `everyone` is looked at only when they are few. A node that lacks several things is counted under each of them;
    one that is offline, banned or busy only under that.
    """
    lines = [scored(job, candidate, weights) for candidate in best]
    for candidate in everyone if len(everyone) <= SHOWN else ():
        if why_not := refusal_beside(job, candidate, held):
            lines.append({"node_id": candidate.node.node_id, "name": candidate.node.name, "refused": why_not})
    why: dict[str, object] = {"candidates": lines, "free_nodes": free_nodes, "refused": dict(sorted(refused.items()))}
    if best:
        why = {"score": lines[0]["score"], "terms": lines[0]["terms"], **why}
    return why


def refusal_beside(job: Job, candidate: Candidate, held: Collection[str]) -> str | None:
    """Why this node does not get this job now, also where it could take it. held: what `held_back` says."""
    return refusal(job, candidate) or (FAILED_THERE if candidate.node.node_id in held else None)


def scored(job: Job, candidate: Candidate, weights: Weights) -> dict[str, object]:
    """One line of an explanation: a node that can take the job, its score and the terms of that."""
    node = candidate.node
    line: dict[str, object] = {"node_id": node.node_id, "name": node.name}
    if any(attempt.node_id == node.node_id for attempt in job.attempts):
        line["lost_before"] = True
    line["score"] = round(full_score(job, candidate, weights), 4)
    line["terms"] = {
        name: {"value": round(value, 4), "weight": getattr(weights, name)}
        for name, value in terms(job, candidate).items()
    }
    return line


def assign(
    waiting: Iterable[Job], candidates: Mapping[str, Candidate], weights: Weights, now_ms: int
) -> list[Assignment]:
    """Assign as many waiting jobs as fit, in the order of the line; each assignment takes room from the next."""
    room = dict(candidates)
    chosen: list[Assignment] = []
    for job in sorted(waiting, key=place):
        if job.not_before_ms > now_ms:
            continue
        if all(away(candidate) for candidate in room.values()):
            break
        node_id, why = choose(job, room.values(), weights, now_ms)
        if node_id is None:
            continue
        chosen.append(Assignment(job_id=job.job_id, node_id=node_id, explanation=why))
        room[node_id] = with_run(room[node_id], job)
    return chosen


def with_run(candidate: Candidate, job: Job) -> Candidate:
    """The node once it has this job too."""
    return msgspec.structs.replace(
        candidate,
        active_runs=candidate.active_runs + 1,
        memory_free_bytes=candidate.memory_free_bytes - job.memory_bytes,
        gpu_runs=candidate.gpu_runs + (job.job.needs.device == "cuda"),
    )


def _mib(count: int) -> int:
    return count // 2**20
