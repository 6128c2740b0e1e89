"""What one central remembers of the checks under way, and what is due for them: cyxcentral/segments.py decides.

How long a job has waited is counted by each central from when it first saw it, on the clock that only runs forward: a
start counts anew, and no clock that is wrong by hours ends a check.
"""

from cyxcentral import segments
from cyxcentral.machine import Machine
from cyxcentral.nodes import Node
from cyxcentral.world import World
from cyxnet import messages as m


class Checking:
    """policy: of this network. lease_ms: so long a checker may be silent."""

    def __init__(self, policy: segments.Policy, world: World, machine: Machine, lease_ms: int):
        self.policy = policy
        self._world = world
        self._machine = machine
        self._lease_ms = lease_ms
        self._seen_ms: dict[tuple[str, int, int], float] = {}  # job, attempt, leases that were lost -> since when
        self._first_drawn: dict[str, tuple[int, str]] = {}  # node -> place of the first of its jobs that are drawn

    def waiting(self, whole: bool) -> list[str]:
        """The jobs that are being checked, the first delivered in front. What is remembered of others is forgotten.

        whole: also when no checker has a free run, so that nothing but time could be up.
        """
        found, world = self._world.checking, self._world
        if whole:
            for key in [key for key in self._seen_ms if key[0] not in found]:
                del self._seen_ms[key]
        elif not any(len(world.held.get(each.node_id, ())) < each.max_runs for each in self._known()):
            return []
        in_order = sorted(found, key=self._place)
        self._first_drawn = {}
        for job in (world.jobs[job_id] for job_id in in_order):
            node_id = segments.checked_node(job)
            if node_id not in self._first_drawn and not segments.spared(self.policy, job, world.nodes):
                self._first_drawn[node_id] = self._place(job.job_id)
        return in_order

    def _place(self, job_id: str) -> tuple[int, str]:
        check = self._world.jobs[job_id].check
        return check.since_ms if check else 0, job_id

    def _known(self) -> list[Node]:
        """The checkers that ever registered."""
        return [self._world.nodes[node_id] for node_id in sorted(self.policy.checkers & self._world.nodes.keys())]

    def due(self, job_id: str) -> m.CheckLeased | m.CheckGivenUp | None:
        """What is to be recorded now of a job that is being checked; None for nothing, also of any other job."""
        job = self._world.jobs[job_id]
        if job.status != "checking" or job.check is None:
            return None
        now_ms, lost = self._machine.monotonic_ms(), len(job.check.lost)
        delivered = self._seen_ms.setdefault((job_id, job.attempt, 0), now_ms)
        rests = self._seen_ms.setdefault((job_id, job.attempt, lost), now_ms)
        wall_ms, place = self._machine.wall_ms(), self._place(job_id)
        return segments.due(
            self.policy,
            job,
            [self._world.candidate(each.node_id, wall_ms) for each in self._known()],
            lease_ms=self._lease_ms,
            now_ms=wall_ms,
            waited_ms=now_ms - delivered,
            rested_ms=now_ms - rests,
            spared=segments.spared(self.policy, job, self._world.nodes),
            held=self._first_drawn.get(segments.checked_node(job), place) < place,
        )
