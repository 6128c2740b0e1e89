"""Jobs × nodes → assignments. Pure: one decision depends on its arguments and nothing else.

Each term of the score lies in [0, 1]; 1 is best. The weights are configuration. A node must first be able to run the
job at all (`refusal`); among those that can, the highest weighted sum wins, the node id breaks ties.
"""

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct

from cyxcentral.jobs import Job
from cyxcentral.nodes import Node

SLOW_FLOPS, FAST_FLOPS = 1e9, 1e12  # where the device term begins and where it is full; logarithmic between them


class Weights(Struct, frozen=True, kw_only=True):
    """How much each term counts."""

    device: float = 0.25
    memory: float = 0.15
    reputation: float = 0.25
    location: float = 0.05
    queue: float = 0.20
    price: float = 0.10


class Candidate(Struct, frozen=True, kw_only=True):
    """A node as the scheduler sees it now: what is registered and what it is busy with."""

    node: Node
    active_runs: int
    memory_free_bytes: int  # after what its current runs were promised


class Assignment(Struct, frozen=True, kw_only=True):
    job_id: str
    node_id: str
    explanation: dict[str, object]


def refusal(job: Job, candidate: Candidate) -> str | None:
    """Why this node cannot take this job now; None when it can."""
    node, needs = candidate.node, job.job.needs
    if not node.online:
        return "offline"
    if needs.device == "cuda" and not node.hardware.gpus:
        return "no CUDA GPU"
    if node.hardware.cores < needs.cores:
        return f"{node.hardware.cores} cores, {needs.cores} needed"
    if node.hardware.memory_bytes < job.memory_bytes:
        return f"{_mib(node.hardware.memory_bytes)} MiB of memory, {_mib(job.memory_bytes)} MiB needed"
    if candidate.active_runs >= node.max_runs:
        return f"busy with {candidate.active_runs} of {node.max_runs} runs"
    if candidate.memory_free_bytes < job.memory_bytes:
        return f"{_mib(candidate.memory_free_bytes)} MiB of memory free, {_mib(job.memory_bytes)} MiB needed"
    return None


def ever_fits(job: Job, node: Node) -> bool:
    """Whether the node could run the job when idle."""
    idle = Candidate(node=node, active_runs=0, memory_free_bytes=node.hardware.memory_bytes)
    return refusal(job, idle) is None


def terms(job: Job, candidate: Candidate, dearest_base_units: int) -> dict[str, float]:
    """The six terms of the score, each in [0, 1]."""
    node = candidate.node
    gpu_wanted = job.job.needs.device == "cuda"
    return {
        "device": 1.0 if gpu_wanted else _speed(node.hardware.flops_per_s),
        "memory": min(1.0, max(0.0, 1.0 - job.memory_bytes / max(1, candidate.memory_free_bytes))),
        "reputation": node.reputation / 100.0,
        "location": 1.0 if node.region else 0.5,
        "queue": 1.0 - candidate.active_runs / max(1, node.max_runs),
        "price": 1.0 - node.price_per_hour_base_units / dearest_base_units if dearest_base_units else 1.0,
    }


def choose(job: Job, candidates: Iterable[Candidate], weights: Weights) -> tuple[str | None, dict[str, object]]:
    """The best node for one job, and why: every candidate with its terms or its refusal."""
    everyone = list(candidates)
    dearest = max((c.node.price_per_hour_base_units for c in everyone), default=0)
    previous = {attempt.node_id for attempt in job.attempts}
    able: list[tuple[bool, float, str, dict[str, object]]] = []
    shown: list[dict[str, object]] = []
    for candidate in everyone:
        node = candidate.node
        line: dict[str, object] = {"node_id": node.node_id, "name": node.name}
        why_not = refusal(job, candidate)
        if why_not is None:
            values = terms(job, candidate, dearest)
            weighted = {
                name: {"value": round(value, 4), "weight": getattr(weights, name)} for name, value in values.items()
            }
            score = sum(value * getattr(weights, name) for name, value in values.items())
            line |= {"score": round(score, 4), "terms": weighted}
            # a node that failed this job before is the last resort
            able.append((node.node_id not in previous, score, node.node_id, line))
        else:
            line |= {"refused": why_not}
        shown.append(line)
    if not able:
        return None, {"candidates": shown}
    _, score, node_id, best = max(able, key=lambda item: (item[0], item[1], item[2]))
    return node_id, {"score": round(score, 4), "terms": best["terms"], "candidates": shown[:20]}


def assign(
    waiting: Iterable[Job], candidates: Mapping[str, Candidate], weights: Weights, now_ms: int
) -> list[Assignment]:
    """Assign as many waiting jobs as fit, oldest first; each assignment takes room from the next."""
    room = dict(candidates)
    chosen: list[Assignment] = []
    for job in sorted(waiting, key=lambda job: (job.submitted_at_ms, job.job_id)):
        if all(candidate.active_runs >= candidate.node.max_runs for candidate in room.values()):
            break  # the usual case under load: ten thousand jobs wait for the one slot that will be free next
        if job.not_before_ms > now_ms:
            continue
        node_id, explanation = choose(job, room.values(), weights)
        if node_id is None:
            continue
        chosen.append(Assignment(job_id=job.job_id, node_id=node_id, explanation=explanation))
        taken = room[node_id]
        room[node_id] = Candidate(
            node=taken.node,
            active_runs=taken.active_runs + 1,
            memory_free_bytes=taken.memory_free_bytes - job.memory_bytes,
        )
    return chosen


def _speed(flops_per_s: float) -> float:
    """0 at SLOW_FLOPS or below, 1 at FAST_FLOPS or above: twice as fast counts the same wherever it starts."""
    span = math.log(FAST_FLOPS / SLOW_FLOPS)
    return min(1.0, math.log(max(flops_per_s, SLOW_FLOPS) / SLOW_FLOPS) / span)


def _mib(count: int) -> int:
    return count // 2**20
