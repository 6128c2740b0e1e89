"""Which nodes and jobs a list holds, in which order, and how much of it one answer has room for. Pure."""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from cyxcentral import jobs, schedule
from cyxcentral.schedule import Candidate
from cyxnet import messages as m

Item = TypeVar("Item")
View = TypeVar("View")
Place = tuple[int, str]  # of a job: when it was submitted, and its id
PAGE_BYTES = 400_000  # of one answer, unless its only item is larger


def wanted_node(candidate: Candidate, ask: m.NodeListRequest) -> bool:
    node, hardware = candidate.node, candidate.node.hardware
    dearest = ask.max_price_per_hour_base_units
    return (
        (not ask.online or (node.online and not node.banned_until_ms))
        and (not ask.idle or schedule.away(candidate) is None)
        and (ask.device != "cuda" or bool(hardware.gpus))
        and hardware.cores >= ask.min_cores
        and candidate.memory_free_bytes >= ask.min_memory_free_bytes
        and max((gpu.memory_bytes for gpu in hardware.gpus), default=0) >= ask.min_gpu_memory_bytes
        and node.reputation >= ask.min_reputation
        and (dearest is None or node.price_per_hour_base_units <= dearest)
        and (not ask.regions or node.region in ask.regions)
        and node.region not in ask.other_regions
    )


# By which a list of nodes is ordered, the best first; then by id, so that a page has one end.
ORDERS: dict[str, Callable[[Candidate], float]] = {
    "online": lambda candidate: not candidate.node.online,
    "price": lambda candidate: candidate.node.price_per_hour_base_units,
    "speed": lambda candidate: -candidate.node.hardware.flops_per_s,
    "reputation": lambda candidate: -candidate.node.reputation,
    "memory": lambda candidate: -candidate.memory_free_bytes,
    "queue": lambda candidate: candidate.active_runs / candidate.node.max_runs,
}


def ordered_nodes(found: Iterable[Candidate], ask: m.NodeListRequest) -> list[Candidate]:
    """Those that are wanted, in order."""
    return sorted((each for each in found if wanted_node(each, ask)), key=lambda each: place_of_node(each, ask))


def place_of_node(candidate: Candidate, ask: m.NodeListRequest) -> tuple[float, str]:
    """Where a node stands in a list, whose first is the smallest."""
    return ORDERS[ask.sort_by](candidate), candidate.node.node_id


def behind_node(ordered: list[Candidate], last: Candidate, ask: m.NodeListRequest) -> list[Candidate]:
    """What of a list comes behind a node, which need not be in the list any more."""
    return ordered[bisect_right(ordered, place_of_node(last, ask), key=lambda each: place_of_node(each, ask)) :]


def wanted_job(job: jobs.Job, ask: m.JobListRequest, caller: str) -> bool:
    return (
        (ask.status is None or job.status == ask.status)
        and (ask.name is None or ask.name in job.job.name)
        and (ask.node_id is None or bool(job.attempts) and job.attempts[-1].node_id == ask.node_id)
        and (not ask.mine or job.caller == caller)
        and (ask.run is None or job.job_id.endswith(f"-{ask.run}"))
    )


def place(job: jobs.Job) -> Place:
    """Where a job stands in lists, whose first is the largest."""
    return job.submitted_at_ms, job.job_id


def begins_before(ask: m.JobListRequest) -> Place | None:
    """The place of the last job of the page before; None for the first page."""
    return None if ask.before is None else (ask.before, ask.before_id or "")  # without an id as older clients ask


async def page(items: Sequence[Item], view: Callable[[Item], Awaitable[View]]) -> list[View]:
    """Views of the first items, as many as one answer has room for, and at least one."""
    found: list[View] = []
    size_bytes = 0
    for item in items:
        made = await view(item)
        size_bytes += len(msgspec.json.encode(made))
        if found and size_bytes > PAGE_BYTES:
            break
        found.append(made)
    return found
