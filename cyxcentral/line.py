"""The waiting line: which job is next among those that fit into so much room. Pure.

Jobs that need the same GPU and cores stand in one tree, sorted by the memory they need; every subtree knows its
earliest place. "The first that needs at most so many bytes" is then a walk from the root to a leaf, however many
jobs stand before it that need more. Those that ask for one node and no other stand apart, by its name: while it has no
room, nobody looks at them. Jobs in back-off wait aside until their time.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cyxcentral import tree
from cyxcentral.jobfold import BACKOFF_MS
from cyxcentral.jobs import Job, needed_gpu_bytes
from cyxcentral.schedule import for_proven, place

Place = tuple[int, str]


class Needs(NamedTuple):
    """What jobs of one group need, besides memory. gpu_bytes: of the memory of one GPU; 0: no GPU.

    node_id: of the one node that they ask for; empty for any.
    proven: they are worth too much for a node that is not proven.
    """

    gpu_bytes: int
    cores: int
    node_id: str = ""
    proven: bool = False


class Spot(NamedTuple):
    """Where a waiting job stands."""

    needs: Needs
    key: tuple[int, Place]  # memory_bytes and place
    not_before_ms: int  # on the clock of the central that made it wait
    rest_ms: int  # how long that was


def _earliest(value: Any, key: tuple[int, Place], before: Place | None, after: Place | None) -> Place:
    first = key[1]
    if before is not None and before < first:
        first = before
    return first if after is None or first < after else after


def needs_of(job: Job, limit_base_units: int = 0) -> Needs:
    """limit: what a job may be worth that a node gets which is not proven; 0: anything."""
    needs = job.job.needs
    return Needs(needed_gpu_bytes(job), needs.cores, needs.node_id, for_proven(job, limit_base_units))


def _spot(job: Job, limit_base_units: int) -> Spot:
    # what happened to the job since (its deposit became final) has the time of another central: no rest is longer
    rest_ms = min(max(0, job.not_before_ms - job.changed_at_ms), BACKOFF_MS[-1])
    return Spot(needs_of(job, limit_base_units), (job.memory_bytes, place(job)), job.not_before_ms, rest_ms)


class Line:
    """Waiting jobs, in order of their place. Each operation costs O(log n).

    A back-off ends at its not_before_ms, but never later here than its length after it was first seen: the central that
    wrote it may have had a clock that is hours ahead.
    """

    def __init__(self, limit_base_units: int = 0) -> None:
        self._limit_base_units = limit_base_units  # of what a job may be worth for a node that is not proven
        self._spots: dict[str, Spot] = {}
        self._trees: dict[str, dict[Needs, tree.Tree]] = {"": {}}  # those that may start now, by the node they ask for
        self._ready: set[str] = set()  # ids of the jobs in the trees
        self._new: list[str] = []  # ids of jobs in back-off that wait for the next `advance` to tell the time
        self._due_ms: dict[str, int] = {}  # of the jobs in back-off
        self._resting: list[tuple[int, str]] = []  # heap of (due_ms, job_id); outdated ones are skipped
        self._now_ms = 0  # of the last `advance`

    def __len__(self) -> int:
        return len(self._spots)

    @property
    def some_rest(self) -> bool:
        """Whether some job is in back-off."""
        return len(self._ready) < len(self._spots)

    def enter(self, job: Job) -> None:
        """A job waits, from its not_before_ms on. One that is in the line already takes its new place."""
        spot, known = _spot(job, self._limit_base_units), self._spots.get(job.job_id)
        if known is not None and known[:3] == spot[:3]:
            return
        self.leave(job.job_id)
        self._spots[job.job_id] = spot
        if spot.not_before_ms <= self._now_ms:
            self._stand(job.job_id, spot)
        else:
            self._new.append(job.job_id)

    def _stand(self, job_id: str, spot: Spot) -> None:
        self._ready.add(job_id)
        trees = self._trees.setdefault(spot.needs.node_id, {})
        trees[spot.needs] = tree.put(trees.get(spot.needs), spot.key, None, _earliest)

    def enter_all(self, jobs: Iterable[Job]) -> None:
        """The same for many jobs, into an empty line: linear once they are sorted."""
        assert not self._spots, "expected an empty line"
        groups: dict[Needs, list[tuple[tuple[int, Place], None]]] = {}
        for job in jobs:
            if job.not_before_ms > self._now_ms:
                self.enter(job)
                continue
            spot = self._spots[job.job_id] = _spot(job, self._limit_base_units)
            self._ready.add(job.job_id)
            groups.setdefault(spot.needs, []).append((spot.key, None))
        for needs, items in groups.items():
            if built := tree.built(sorted(items), _earliest):
                self._trees.setdefault(needs.node_id, {})[needs] = built

    def leave(self, job_id: str) -> None:
        """A job waits no longer; nothing happens when it does not wait."""
        spot = self._spots.pop(job_id, None)
        self._due_ms.pop(job_id, None)
        if spot is None or job_id not in self._ready:
            return
        self._ready.discard(job_id)
        trees = self._trees[spot.needs.node_id]
        rest = tree.drop(trees[spot.needs], spot.key, _earliest)
        if rest is not None:
            trees[spot.needs] = rest
            return
        del trees[spot.needs]
        if not trees and spot.needs.node_id:
            del self._trees[spot.needs.node_id]

    def advance(self, now_ms: int) -> None:
        """Let jobs whose back-off is over stand with the others."""
        if now_ms < self._now_ms:  # the clock was set back: nobody waits longer for that
            self._new += self._due_ms
        self._now_ms = now_ms
        for job_id in self._new:
            spot = self._spots.get(job_id)
            if spot is not None and job_id not in self._ready:
                due_ms = self._due_ms[job_id] = min(spot.not_before_ms, now_ms + spot.rest_ms)
                heapq.heappush(self._resting, (due_ms, job_id))
        self._new.clear()
        while self._resting and self._resting[0][0] <= now_ms:
            due_ms, job_id = heapq.heappop(self._resting)
            if self._due_ms.get(job_id) == due_ms:
                del self._due_ms[job_id]
                self._stand(job_id, self._spots[job_id])

    def next_due_ms(self) -> int | None:
        """When the next back-off ends, as of the last `advance`; None when nobody rests."""
        while self._resting:
            due_ms, job_id = self._resting[0]
            if self._due_ms.get(job_id) == due_ms:
                return due_ms
            heapq.heappop(self._resting)
        return None

    def first(self, largest_free_bytes: Callable[[Needs], int | None], free_nodes: Collection[str]) -> str | None:
        """The id of the first job that some node has room for.

        largest_free_bytes: the most memory that is free on one node with such a GPU and cores; None without one.
        free_nodes: ids of the nodes with a free run.
        """
        best: Place | None = None
        for needs, group in self._groups(free_nodes):
            if best is not None and best < group.summary:
                continue  # nobody in this group stands earlier
            free_bytes = largest_free_bytes(needs)
            found = None if free_bytes is None else _first_within(group, free_bytes)
            if found is not None and (best is None or found < best):
                best = found
        return best[1] if best else None

    def _groups(self, free_nodes: Collection[str]) -> Iterator[tuple[Needs, tree.Tree]]:
        yield from self._trees[""].items()
        few, many = sorted((free_nodes, self._trees), key=len)
        for node_id in few:
            if node_id and node_id in many:
                yield from self._trees[node_id].items()

    def counts(self) -> Mapping[Needs, int]:
        """How many jobs that may start now wait, by their needs."""
        return {needs: group.size for trees in self._trees.values() for needs, group in trees.items()}


def _first_within(group: tree.Tree | None, memory_bytes: int) -> Place | None:
    """The earliest place among the jobs that need at most `memory_bytes`."""
    best: Place | None = None
    while group is not None:
        if group.key[0] > memory_bytes:
            group = group.before
            continue
        own: Place = group.key[1]
        if best is None or own < best:
            best = own
        if group.before is not None and group.before.summary < best:
            best = group.before.summary
        group = group.after
    return best
