"""What happened lately to the jobs that were submitted lately, for those who watch them. Pure memory, safe to lose.

Who watches a new job asks for its history again and again; the ledger would have to be written before each answer. A
job is remembered from its first event or not at all, and forgotten when it has too much to tell: then the ledger tells.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

from cyxnet import messages as m
from cyxnet.follow import by_time

JOBS, UPDATES_PER_JOB = 2_000, 2_000
LARGEST_FIRST_BYTES = 64_000  # of a Submitted: a page has to fit into one message


class Recent:
    def __init__(self, jobs: int = JOBS, updates_per_job: int = UPDATES_PER_JOB):
        self._jobs = jobs
        self._updates_per_job = updates_per_job
        self._updates: OrderedDict[str, list[m.Update]] = OrderedDict()
        self._listeners: dict[str, set[Callable[[], None]]] = {}  # by job

    @contextlib.contextmanager
    def told_of(self, job_id: str, wake: Callable[[], None]) -> Iterator[None]:
        """Within it, `wake` is called after each update of the job, remembered or not."""
        listeners = self._listeners.setdefault(job_id, set())
        listeners.add(wake)
        try:
            yield
        finally:
            listeners.discard(wake)
            if not listeners and self._listeners.get(job_id) is listeners:
                del self._listeners[job_id]

    def begin(self, first: m.Update, size: int) -> None:
        """The first event of a job, and how many bytes it has."""
        if size <= LARGEST_FIRST_BYTES:
            self._updates[first.job_id] = [first]
            if len(self._updates) > self._jobs:
                self._updates.popitem(last=False)

    def add(self, update: m.Update) -> None:
        """One more update of a job, if it is remembered."""
        updates = self._updates.get(update.job_id)
        if updates is not None:
            updates.append(update)
            if len(updates) > self._updates_per_job:
                del self._updates[update.job_id]
        for wake in self._listeners.get(update.job_id, ()):
            wake()

    def after(self, job_id: str, after_event: int, after_telemetry: int, limit: int) -> list[m.Update] | None:
        """All that happened to a job after two positions, oldest first; None when the ledger has to be asked."""
        updates = self._updates.get(job_id)
        if updates is None:
            return None
        positions = {"event": after_event, "telemetry": after_telemetry}
        found = [update for update in updates if update.seq > positions[update.source]]
        if len(found) > limit:
            return None
        return by_time(found)

    def clear(self) -> None:
        """Sequences are used a second time: nothing that was remembered can be told from what comes."""
        self._updates.clear()
