"""All jobs in the order of lists, of everybody and of each caller, with how many have which status; and in the order of
their ids, to be found by how they begin. Pure.

Made when somebody first asks for it, so that reading a long log stays cheap, and then a part at a time (`fill`), so
that nobody waits for a million jobs to be sorted. From then on it hears of every change (`changed`). Jobs come nearly
in the order in which they were submitted, so a place is mostly at the end.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from operator import itemgetter

from cyxcentral.jobs import Job
from cyxcentral.listing import Place, place

EVERYBODY = ""  # in place of a caller
BLOCK = 1_000  # names that are moved at most to enter one


class Roster:
    """jobs: all there are, by id; whoever changes them says so."""

    def __init__(self, jobs: Mapping[str, Job]):
        self._jobs = jobs
        self._left = dict.fromkeys(reversed(list(jobs)))  # to be taken in, the last one first: places are at the end
        self._ids: dict[str, list[str]] = {EVERYBODY: []}  # by caller, the oldest first
        self._counts: Counter[tuple[str, str | None]] = Counter()  # by caller and status; None: any
        self._names = Names()

    def fill(self, most: int) -> bool:
        """Take in up to so many jobs that are not in it yet; whether all of them are now."""
        while self._left and most:
            job_id, _ = self._left.popitem()
            most -= 1
            if job_id in self._jobs:
                self._enter(self._jobs[job_id])
        return not self._left

    def changed(self, before: Job | None, job: Job) -> None:
        """A job is new, or is not what it was."""
        if before is None:
            self._enter(job)
        elif before.status != job.status and job.job_id not in self._left:
            self._count(before, -1)
            self._count(job, 1)

    def _enter(self, job: Job) -> None:
        for who in (EVERYBODY, job.caller):
            ids = self._ids.setdefault(who, [])
            ids.insert(self.index(who, place(job)), job.job_id)
        self._count(job, 1)
        self._names.enter(job.job_id)

    def _count(self, job: Job, change: int) -> None:
        for who in (EVERYBODY, job.caller):
            self._counts[who, job.status] += change
            self._counts[who, None] += change

    def total(self, who: str, status: str | None) -> int:
        """How many jobs of a caller have this status; None: how many there are."""
        return self._counts[who, status]

    def index(self, who: str, at: Place | None) -> int:
        """How many jobs of a caller stand in lists behind this place (None: in front of all), so are older."""
        ids = self._ids.get(who, [])
        if at is None or not ids or self._place(ids[-1]) < at:
            return len(ids)
        return bisect_left(ids, at, key=self._place)

    def older(self, who: str, index: int, most: int) -> list[Job]:
        """Up to so many jobs of a caller, of the `index` oldest, the newest of these first."""
        some = self._ids.get(who, [])[max(0, index - most) : index]
        return [self._jobs[job_id] for job_id in reversed(some)]

    def beginning_with(self, letters: str, most: int) -> list[str]:
        """Up to so many ids of jobs that begin with these letters, in alphabetical order."""
        return self._names.beginning_with(letters, most)

    def _place(self, job_id: str) -> Place:
        return place(self._jobs[job_id])


class Names:
    """Names in alphabetical order, in blocks, so that a new one costs as little among a million as among a thousand."""

    def __init__(self) -> None:
        self._blocks: list[list[str]] = []  # none of them empty

    def enter(self, name: str) -> None:
        if not self._blocks:
            self._blocks.append([])
        at = self._block_of(name)
        block = self._blocks[at]
        insort(block, name)
        if len(block) > BLOCK:
            self._blocks[at : at + 1] = [block[: BLOCK // 2], block[BLOCK // 2 :]]

    def beginning_with(self, letters: str, most: int) -> list[str]:
        found: list[str] = []
        for block in self._blocks[self._block_of(letters) :]:
            first = bisect_left(block, letters)
            some = block[first : first + most - len(found)]
            found += (name for name in some if name.startswith(letters))
            if len(found) == most or first < len(block) and not block[-1].startswith(letters):
                break
        return found

    def _block_of(self, name: str) -> int:
        """Where a name stands, or the first of those that begin with it: in this block, or at the start of the next."""
        return max(0, bisect_left(self._blocks, name, key=itemgetter(0)) - 1) if len(self._blocks) > 1 else 0
