"""Where there is room: the nodes with a free run, sorted so that the best for a job is found without asking all. Pure.

A node's score is its standing, which no job changes, plus a term that grows with its free memory, plus one for its
region. Nodes stand in trees sorted by free memory; every subtree knows its best standing, its most cores and the memory
of its largest free GPU. From these follows an upper bound of the scores in it, and the search opens the subtree with
the highest bound first: what it meets first is the best, exactly, and most of the tree is never opened.
"""

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

from cyxcentral import nodes, schedule, tree
from cyxcentral.jobs import Job, needed_gpu_bytes
from cyxcentral.schedule import Candidate, Unproven, Weights

Key = tuple[int, str]  # (-free memory in bytes, node id): the most memory comes first
Shelf = tuple[bool, str | None, bool]  # (nodes with a free GPU, region or None for all regions, those not proven)


class Standing(NamedTuple):
    """What the search asks of one node."""

    standing: float
    cores: int
    gpu_bytes: int  # of the memory of a free GPU
    region: str


class Best(NamedTuple):
    """What a subtree offers at most, and the key it begins with."""

    standing: float
    cores: int
    gpu_bytes: int
    first: Key


def _best(own: Standing, key: Key, before: Best | None, after: Best | None) -> Best:
    standing, cores, gpu_bytes, _ = own
    first = key
    if before is not None:
        first = before[3]
    for other in (before, after):
        if other is not None:
            if other[0] > standing:
                standing = other[0]
            if other[1] > cores:
                cores = other[1]
            if other[2] > gpu_bytes:
                gpu_bytes = other[2]
    return Best(standing, cores, gpu_bytes, first)


class Room:
    """Every known node, and for those with a free run the trees. A change costs O(log n), at the next question.

    Changes are kept until somebody asks: a node that changes five times between two decisions is sorted in once.
    """

    def __init__(self, weights: Weights, unproven: Unproven | None = None):
        self._weights = weights
        self._unproven = unproven or Unproven()
        self.candidates: dict[str, Candidate] = {}
        self._trees: dict[Shelf, tree.Tree] = {}
        self._placed: dict[str, tuple[Key, list[tuple[Shelf, Standing]]]] = {}  # where a node stands in the trees
        self._away: dict[str, str] = {}  # node id -> why it can take nothing
        self._away_counts: Counter[str] = Counter()
        self._cores: Counter[int] = Counter()  # of the nodes in the trees
        self._gpu_bytes: Counter[int] = Counter()  # of a free GPU of theirs
        self._changed: set[str] = set()
        self._now_ms = 0
        self._bans: list[tuple[int, str]] = []  # heap of (banned_until_ms, node id); outdated ones are skipped

    def put(self, candidate: Candidate) -> None:
        """A node is like this now."""
        node = candidate.node
        self.candidates[node.node_id] = candidate
        self._changed.add(node.node_id)
        if node.banned_until_ms:
            heapq.heappush(self._bans, (node.banned_until_ms, node.node_id))

    def advance(self, now_ms: int) -> None:
        """Take in what changed, and the bans that are over."""
        self._now_ms = now_ms
        while self._bans and self._bans[0][0] <= now_ms:
            until_ms, node_id = heapq.heappop(self._bans)
            candidate = self.candidates[node_id]
            if candidate.node.banned_until_ms == until_ms:
                self.candidates[node_id] = self._lapsed(candidate, now_ms)
                self._changed.add(node_id)
        for node_id in self._changed:
            self._sort_in(self.candidates[node_id])
        self._changed.clear()

    def next_due_ms(self) -> int | None:
        """When the next ban ends; None without one."""
        while self._bans:
            until_ms, node_id = self._bans[0]
            if self.candidates[node_id].node.banned_until_ms == until_ms:
                return until_ms
            heapq.heappop(self._bans)
        return None

    # -- questions; they answer for the moment of the last `advance` ----------------------------------------

    @property
    def free_nodes(self) -> int:
        return len(self._placed)

    @property
    def free_node_ids(self) -> Collection[str]:
        return self._placed.keys()

    def free_bytes_of(self, node_id: str, gpu_bytes: int, cores: int) -> int | None:
        """The memory that is free on this node; None when it has no free run, or not such a GPU or cores."""
        if node_id not in self._placed:
            return None
        candidate = self.candidates[node_id]
        fits = candidate.node.hardware.cores >= cores and candidate.gpu_free_bytes >= gpu_bytes
        return candidate.memory_free_bytes if fits else None

    def largest_free_bytes(self, gpu_bytes: int, cores: int, proven: bool = False) -> int | None:
        """The most memory that is free on one node with a free run, such a GPU and so many cores; None without one."""
        trees = (self._trees.get((gpu_bytes > 0, None, strange)) for strange in _kinds(proven))
        found = (_most_free(each, gpu_bytes, cores) for each in trees)
        return max((free for free in found if free is not None), default=None)

    def ranked(self, job: Job) -> Iterator[Candidate]:
        """The nodes that can take the job, best first; checkers, and then those that lost it before, come last."""
        if wanted := job.job.needs.node_id:
            if wanted in self._placed and schedule.refusal(job, self.candidates[wanted]) is None:
                yield self.candidates[wanted]
            return
        before = {attempt.node_id for attempt in job.attempts}
        checkers: list[Candidate] = []
        for kinds in _KINDS_IN_TURN[schedule.turn(job)] if not self._for_proven(job) else (_kinds(True),):
            for node_id in self._by_score(job, kinds):
                if self.candidates[node_id].checker:
                    checkers.append(self.candidates[node_id])
                elif node_id not in before:
                    yield self.candidates[node_id]
        fresh = [candidate for candidate in checkers if candidate.node.node_id not in before]
        yield from sorted(fresh, key=lambda candidate: schedule.preference(job, candidate, self._weights))
        last = [self.candidates[node_id] for node_id in before - self.held_back(job) if node_id in self._placed]
        able = [candidate for candidate in last if schedule.refusal(job, candidate) is None]
        yield from sorted(able, key=lambda candidate: schedule.preference(job, candidate, self._weights))

    def held_back(self, job: Job) -> frozenset[str]:
        return schedule.held_back(job, self.candidates.values(), self._now_ms)

    def refused(self, job: Job, held: Collection[str]) -> dict[str, int]:
        """How many nodes cannot take the job, by what they lack; as schedule.choose counts them."""
        needs = job.job.needs
        gpu_bytes = needed_gpu_bytes(job)
        every = [self._trees.get((False, None, strange)) for strange in (False, True)]
        too_little = (-job.memory_bytes + 1, "")
        counts = {
            **self._away_counts,
            schedule.OTHER_NODE: len(self._placed) - (needs.node_id in self._placed) if needs.node_id else 0,
            schedule.NO_GPU: self._gpu_bytes[0] if gpu_bytes else 0,
            schedule.SMALL_GPU: sum(n for size, n in self._gpu_bytes.items() if 0 < size < gpu_bytes),
            schedule.FEW_CORES: sum(n for cores, n in self._cores.items() if cores < needs.cores),
            schedule.LITTLE_MEMORY: sum(tree.size(each) - tree.count_below(each, too_little) for each in every),
            schedule.NOT_PROVEN: tree.size(every[True]) if self._for_proven(job) else 0,
            schedule.FAILED_THERE: sum(node_id in self._placed for node_id in held),
        }
        return {reason: number for reason, number in counts.items() if number}

    # -- the search -----------------------------------------------------------------------------------------

    def _by_score(self, job: Job, kinds: tuple[bool, ...]) -> Iterator[str]:
        """Ids of the nodes of these kinds that can take the job: by score, then most memory first, then by id.

        The heap holds subtrees under the bound of what is in them, and nodes under their score. When a node comes
        out, nothing that is left can be better.
        """
        needed_bytes, cores, gpu_bytes = job.memory_bytes, job.job.needs.cores, needed_gpu_bytes(job)
        memory_weight, location_weight = self._weights.memory, self._weights.location
        heap: list[tuple[float, Key, int, Any, float, tuple[str, ...]]] = []
        ticket = count()  # two trees may hold the same node: never compare further
        for shelf, location, elsewhere in self._shelves(job, kinds):
            if (at := self._trees.get(shelf)) is not None:
                heap.append((-math.inf, at.summary.first, next(ticket), at, location_weight * location, elsewhere))
        heapq.heapify(heap)
        while heap:
            _, _, _, found, located, elsewhere = heapq.heappop(heap)
            if isinstance(found, str):
                yield found
                continue
            # below: schedule.score, written out, because this is where a decision spends its time
            for below in (found.before, found.after):
                if below is None:
                    continue
                standing, most_cores, largest_gpu_bytes, first = below.summary
                free_bytes = -first[0]
                if most_cores >= cores and largest_gpu_bytes >= gpu_bytes and free_bytes >= needed_bytes:
                    bound = standing + memory_weight * (1.0 - needed_bytes / (free_bytes or 1)) + located
                    heapq.heappush(heap, (-bound, first, next(ticket), below, located, elsewhere))
            standing, own_cores, own_gpu_bytes, region = found.value
            free_bytes = -found.key[0]
            fits = own_cores >= cores and own_gpu_bytes >= gpu_bytes and free_bytes >= needed_bytes
            if fits and region not in elsewhere:
                value = standing + memory_weight * (1.0 - needed_bytes / (free_bytes or 1)) + located
                heapq.heappush(heap, (-value, found.key, next(ticket), found.key[1], located, elsewhere))

    def _for_proven(self, job: Job) -> bool:
        return schedule.for_proven(job, self._unproven.limit_base_units)

    def _shelves(self, job: Job, kinds: tuple[bool, ...]) -> list[tuple[Shelf, float, tuple[str, ...]]]:
        """Trees to search, each with its location term and the regions that another of them answers for."""
        cuda, wanted = job.job.needs.device == "cuda", job.job.needs.region
        found: list[tuple[Shelf, float, tuple[str, ...]]] = []
        for strange in kinds:
            if not wanted:
                found.append(((cuda, None, strange), schedule.location_term("", ""), ()))
                continue
            found += [
                ((cuda, wanted, strange), schedule.location_term(wanted, wanted), ()),
                ((cuda, "", strange), schedule.location_term(wanted, ""), ()),
                ((cuda, None, strange), 0.0, (wanted, "")),
            ]
        return found

    def _sort_in(self, candidate: Candidate) -> None:
        node = candidate.node
        out = schedule.away(candidate)
        shelves = [] if out else self._shelves_of(candidate)
        key = (-candidate.memory_free_bytes, node.node_id)
        if not out and self._placed.get(node.node_id) == (key, shelves):
            return
        self._take_out(node.node_id)
        if out:
            self._away[node.node_id] = out
            self._away_counts[out] += 1
            return
        self._placed[node.node_id] = key, shelves
        self._counted(shelves[0][1], 1)
        for shelf, own in shelves:
            self._trees[shelf] = tree.put(self._trees.get(shelf), key, own, _best)

    def _shelves_of(self, candidate: Candidate) -> list[tuple[Shelf, Standing]]:
        node, strange, found = candidate.node, candidate.limit_base_units > 0, []
        gpu_bytes = candidate.gpu_free_bytes
        for cuda in (False, True) if gpu_bytes else (False,):
            standing = schedule.standing(candidate, self._weights, cuda)
            own = Standing(standing, node.hardware.cores, gpu_bytes, node.region)
            found += [((cuda, None, strange), own), ((cuda, node.region, strange), own)]
        return found

    def _counted(self, own: Standing, change: int) -> None:
        """One node more, or less, with such cores and GPU."""
        for counter, value in ((self._cores, own.cores), (self._gpu_bytes, own.gpu_bytes)):
            counter[value] += change
            if not counter[value]:
                del counter[value]

    def _take_out(self, node_id: str) -> None:
        if out := self._away.pop(node_id, None):
            self._away_counts[out] -= 1
        if node_id not in self._placed:
            return
        key, shelves = self._placed.pop(node_id)
        self._counted(shelves[0][1], -1)
        for shelf, _ in shelves:
            rest = tree.drop(self._trees[shelf], key, _best)
            if rest is None:
                del self._trees[shelf]
            else:
                self._trees[shelf] = rest

    def put_all(self, candidates: Iterable[Candidate]) -> None:
        """The same as `put` for many nodes, into empty trees: linear once they are sorted."""
        assert not self.candidates, "expected an empty room"
        items: dict[Shelf, list[tuple[Key, Standing]]] = {}
        for candidate in candidates:
            self.put(candidate)
            if schedule.away(candidate):
                continue
            key = (-candidate.memory_free_bytes, candidate.node.node_id)
            shelves = self._shelves_of(candidate)
            self._changed.discard(candidate.node.node_id)
            self._placed[candidate.node.node_id] = key, shelves
            self._counted(shelves[0][1], 1)
            for shelf, own in shelves:
                items.setdefault(shelf, []).append((key, own))
        for shelf, pairs in items.items():
            if built := tree.built(sorted(pairs, key=lambda pair: pair[0]), _best):
                self._trees[shelf] = built

    def _lapsed(self, candidate: Candidate, now_ms: int) -> Candidate:
        node = nodes.at(candidate.node, now_ms)
        return Candidate(
            node=node,
            active_runs=candidate.active_runs,
            memory_free_bytes=candidate.memory_free_bytes,
            limit_base_units=schedule.limit_of(node, self._unproven),
            checker=candidate.checker,
            gpu_runs=candidate.gpu_runs,
        )


def _most_free(at: Any, gpu_bytes: int, cores: int) -> int | None:
    """The most memory that is free on a node of this subtree with such a GPU and cores; None without one.

    The summary bounds both, perhaps by two nodes: a subtree may have to be left again.
    """
    if at is None or at.summary.cores < cores or at.summary.gpu_bytes < gpu_bytes:
        return None
    if (free := _most_free(at.before, gpu_bytes, cores)) is not None:
        return free
    if at.value.cores >= cores and at.value.gpu_bytes >= gpu_bytes:
        return -at.key[0]
    return _most_free(at.after, gpu_bytes, cores)


_KINDS_IN_TURN = {-1: ((True,), (False,)), 0: ((False, True),), 1: ((False,), (True,))}  # whether not proven


def _kinds(proven: bool) -> tuple[bool, ...]:
    """Of which nodes the trees are to be searched: those that are not proven are others."""
    return (False,) if proven else (False, True)
