"""Which waiting job goes to which node next: the line and the room together. Pure.

The decisions are those of `schedule.assign`, which looks at every job and every node; here nothing is looked at twice
that did not change, and a decision costs about log(jobs) + log(nodes).
"""

import heapq
from collections.abc import Iterable
from itertools import islice

from cyxcentral import schedule
from cyxcentral.jobs import Job
from cyxcentral.line import Line, Needs
from cyxcentral.room import Room
from cyxcentral.schedule import Assignment, Candidate, Unproven, Weights

MAX_PLANNED = 256  # assignments of one plan: the log takes them one by one, and the world changes meanwhile


class Matching:
    """Fed with what changes, by World; asked for a plan, by the dispatch loop."""

    def __init__(self, weights: Weights | None = None, unproven: Unproven | None = None):
        self.weights = weights or Weights()
        self._unproven = unproven or Unproven()
        self.line = Line(self._unproven.limit_base_units)
        self.room = Room(self.weights, self._unproven)
        self._waiting: dict[str, Job] = {}
        self._new: dict[str, Job] = {}  # of those, who came since somebody had room: they stand in the line later

    def waits(self, job: Job) -> None:
        """A job wants a node, from its not_before_ms on."""
        self._waiting[job.job_id] = job
        if job.not_before_ms:  # how long it rests counts from now
            self._new.pop(job.job_id, None)
            self.line.enter(job)
        else:
            self._new[job.job_id] = job

    def waits_no_more(self, job_id: str) -> None:
        if self._waiting.pop(job_id, None):
            self._new.pop(job_id, None)
            self.line.leave(job_id)

    def has_room(self, candidate: Candidate) -> None:
        """A node is like this now, with or without room."""
        self.room.put(candidate)

    def fill(self, jobs: list[Job], candidates: list[Candidate]) -> None:
        """Take in a whole world at once; before, there was nothing."""
        self._waiting = {job.job_id: job for job in jobs}
        self._new.clear()
        self.line.enter_all(jobs)
        self.room.put_all(candidates)

    def next(self, now_ms: int) -> Assignment | None:
        """The first job in the line that some node can take, and the best node for it; None when there is none."""
        aside: list[Job] = []
        try:
            return self._next(now_ms, aside)
        finally:
            self._stand_again(aside)

    def _next(self, now_ms: int, aside: list[Job]) -> Assignment | None:
        """next(), which takes jobs that no node with room can take out of the line, and leaves them aside."""
        self.line.advance(now_ms)
        self.room.advance(now_ms)
        if not self._waiting or not self.room.free_nodes:
            return None  # however long the line is: nobody looks at it
        self._line_up(now_ms)
        while (job_id := self.line.first(self._largest_free_bytes, self.room.free_node_ids)) is not None:
            job = self._waiting[job_id]
            if best := self._best(job):
                return Assignment(job_id=job_id, node_id=best[0].node.node_id, explanation=self._explain(job, best))
            aside.append(job)  # the nodes with room are those where it failed before: the next one's turn
            self.line.leave(job_id)
        return None

    def _stand_again(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self.line.enter(job)

    def _line_up(self, now_ms: int) -> None:
        """Those who came while nobody had room stand in the line now. Many of them are sorted at once."""
        if len(self._new) > len(self.line) and not self.line.some_rest:
            self.line = Line(self._unproven.limit_base_units)
            self.line.advance(now_ms)
            self.line.enter_all(self._waiting.values())
        else:
            for job in self._new.values():
                self.line.enter(job)
        self._new.clear()

    def plan(self, now_ms: int, limit: int = MAX_PLANNED) -> list[Assignment]:
        """Up to `limit` assignments that can all be made, each taking room from the next. Nothing is changed by it."""
        planned: list[Assignment] = []
        jobs: dict[str, Job] = {}
        before: dict[str, Candidate] = {}
        aside: list[Job] = []  # for the whole plan, as room only becomes less by it
        try:
            while len(planned) < limit and (choice := self._next(now_ms, aside)):
                planned.append(choice)
                jobs[choice.job_id] = job = self._waiting[choice.job_id]
                candidate = self.room.candidates[choice.node_id]
                before.setdefault(choice.node_id, candidate)
                self.line.leave(choice.job_id)
                self.room.put(schedule.with_run(candidate, job))
        finally:  # what is only planned has not happened
            self._stand_again([*jobs.values(), *aside])
            for candidate in before.values():
                self.room.put(candidate)
        return planned

    @property
    def waiting(self) -> int:
        """Jobs that want a node."""
        return len(self._waiting)

    def newest(self, count: int) -> list[Job]:
        """Of those that want a node the ones that were submitted last, the newest first. Looks at all that wait."""
        return heapq.nlargest(count, self._waiting.values(), key=lambda job: (job.submitted_at_ms, job.job_id))

    def explain(self, job: Job, now_ms: int) -> dict[str, object]:
        """What a decision about this job would see now: the best nodes, and how many lack what."""
        self.room.advance(now_ms)
        return self._explain(job, self._best(job))

    def next_due_ms(self) -> int | None:
        """When a back-off or a ban ends, so that a decision may be possible without any event; None without one."""
        due = [at_ms for at_ms in (self.line.next_due_ms(), self.room.next_due_ms()) if at_ms is not None]
        return min(due, default=None)

    def _largest_free_bytes(self, needs: Needs) -> int | None:
        if needs.node_id:
            return self.room.free_bytes_of(needs.node_id, needs.gpu_bytes, needs.cores)
        return self.room.largest_free_bytes(needs.gpu_bytes, needs.cores, needs.proven)

    def _best(self, job: Job) -> list[Candidate]:
        return list(islice(self.room.ranked(job), schedule.shown(len(self.room.candidates))))

    def _explain(self, job: Job, best: list[Candidate]) -> dict[str, object]:
        room, held = self.room, self.room.held_back(job)
        return schedule.explanation(
            job, best, room.candidates.values(), self.weights, room.refused(job, held), room.free_nodes, held
        )
