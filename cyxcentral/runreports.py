"""What nodes report of their runs: started, a checkpoint, failed, completed, and what checkers found. Looked at,
fenced, and recorded once.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cyxcentral import intake, jobrules, jobs, reports, schedule, segments
from cyxcentral.blobs import Blobs, NotStored
from cyxcentral.dispatch import Dispatch, NodeHandlers, NodeReport, answer_nodes
from cyxcentral.eventlog import EventLog
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus

OUR_CODES = (jobs.REFUSED, jobs.UNFUNDED, jobs.CANCELLED)  # of leases that central itself ends
Reported = (  # what becomes of a report
    m.Started
    | m.Checkpointed
    | m.LeaseLost
    | m.Completed
    | m.CheckLost
    | m.Checked
    | m.CheckDiffers
    | m.Rejected
    | m.CheckGivenUp
)
NO_STATE = (jobs.BAD_CHECKPOINT, "bad_artifact")  # codes of runs that may have found their checkpoint unusable


class RunReports:
    """dispatch: who knows which lease is held, and is told that a node was heard. network_id: what nodes sign for.

    policy: which results are checked before they are paid.
    """

    def __init__(
        self,
        events: EventLog,
        dispatch: Dispatch,
        blobs: Blobs,
        network_id: str = "",
        policy: segments.Policy = segments.NO_CHECKS,
    ):
        self._events = events
        self._world = events.world
        self._machine = events.machine
        self._dispatch = dispatch
        self._blobs = blobs
        self._network_id = network_id
        self._policy = policy
        self._drawn: dict[object, tuple[str, str]] = {}  # by report under way: (job, whose work is checked)

    async def start(self, edge: Bus) -> None:
        handlers: NodeHandlers = {
            "started": self.started,
            "checkpoint": self.checkpoint,
            "failed": self.failed,
            "completed": self.completed,
            "segment": self.segment,
        }
        await answer_nodes(edge, handlers)

    async def started(self, said: m.RunStarted) -> m.ReportReply:
        def known(job: jobs.Job) -> bool:
            return said.attempt >= m.FIRST_CHECK or job.attempts[said.attempt - 1].started_at_ms is not None

        return await self._report(said, lambda job: m.Started(attempt=said.attempt), known)

    async def checkpoint(self, said: m.RunCheckpoint) -> m.ReportReply:
        stored = said.checkpoint

        async def check() -> None:
            self._check_signature(said, m.checkpoint_bytes(said))
            await self._check_stored(stored.state, said.node_id)
            job = self._world.jobs[said.job_id]
            if stored.state.size > job.memory_bytes:  # no checker, and no next node, could ever be done with it
                raise ApiError(
                    "bad_checkpoint",
                    f"the job runs in {job.memory_bytes} bytes of memory, so its state has not {stored.state.size}",
                    409,
                )
            possible = intake.possible_steps(job.job)
            if possible is not None and stored.steps not in possible:
                raise ApiError(
                    "bad_checkpoint",
                    f"the job has {possible.start} to {possible.stop - 1} steps, not {stored.steps}",
                    409,
                )
            await self._blobs.note_sent(stored.state.sha256, job.caller)  # his, from now on
            self._dispatch.advanced(said.job_id, said.attempt, ("stored", stored.step))

        def event(job: jobs.Job) -> m.Checkpointed:
            kept = segments.keeps(self._policy, job, stored)
            return m.Checkpointed(
                attempt=said.attempt, node_id=said.node_id, checkpoint=stored, kept=kept, **_signed_with(said)
            )

        def known(job: jobs.Job) -> bool:
            newest = job.attempts[said.attempt - 1].checkpoint if said.attempt <= job.attempt else None
            return newest is not None and newest.step >= stored.step

        return await self._report(said, event, known, check)

    async def segment(self, said: m.SegmentTrained) -> m.ReportReply:
        """A checker trained the segment of its check once more."""

        async def check() -> None:
            self._check_signature(said, m.segment_bytes(said))

        finding = m.Finding(number=said.attempt, node_id=said.node_id, end=said.end, **_signed_with(said))

        def event(job: jobs.Job) -> Reported:
            asked = segments.asked(job)
            if said.segment != asked:
                raise ApiError("wrong_segment", f"check {said.attempt} is of {asked}, not of {said.segment}", 409)
            return jobrules.verdict(job, finding)

        def known(job: jobs.Job) -> bool:
            return any(each.number == said.attempt for each in job.check.findings) if job.check else False

        return await self._report(said, event, known, check)

    @staticmethod
    def _check_is_over(said: NodeReport, job: jobs.Job) -> bool:
        """Whether nobody holds the lease of the check that a node speaks of any more."""
        lease = job.check.lease if job.check else None
        return lease is None or lease.number != said.attempt

    async def failed(self, said: m.RunFailed) -> m.ReportReply:
        code = "failed" if said.code in OUR_CODES else said.code  # it took the lease; that counts
        if said.attempt >= m.FIRST_CHECK:
            gone = m.CheckLost(number=said.attempt, code=code, reason=said.message)
            over = functools.partial(self._check_is_over, said)
            return await self._report(said, lambda job: jobrules.impossible(job, gone), over)
        discards, why = await self._unusable(said)
        node = self._world.nodes.get(said.node_id)
        hardware = node.hardware if node and code == "out_of_memory" else None
        said = _of_its_memory(said, hardware)
        if seen_bytes := said.memory_bytes or said.gpu_memory_bytes:
            of = "" if said.memory_bytes else " on its GPU"
            why = f"it had {seen_bytes >> 20} MiB{of}: from now on only nodes with more are asked, and not this one"
        sole = (said.deterministic or bool(seen_bytes)) and self._is_sole(said)
        lost = m.LeaseLost(
            attempt=said.attempt,
            code=code,
            reason=f"{said.message}; {why}" if why else said.message,
            deterministic=said.deterministic or bool(seen_bytes and sole),  # no node here could do it
            sole=sole,
            discards=discards,
            memory_bytes=said.memory_bytes,
            gpu_memory_bytes=said.gpu_memory_bytes,
        )
        return await self._report(said, lambda job: lost, lambda job: job.attempts[said.attempt - 1].lost is not None)

    async def _unusable(self, said: m.RunFailed) -> tuple[m.Checkpoint | None, str]:
        """The state that the run could not go on from, if it is to blame, and why it is given up.

        What is missing or damaged in the store is seen here. That good bytes cannot be read is believed of two nodes,
        or of one where no other could say so: a single broken node must not cost a job its work.
        """
        if said.code not in NO_STATE:
            return None, ""
        if not self._dispatch.holds(said.node_id, said.session, said.job_id, said.attempt):
            await self._events.catch_up()
            if not self._dispatch.holds(said.node_id, said.session, said.job_id, said.attempt):
                return None, ""
        job = self._world.jobs[said.job_id]
        state = job.attempts[-1].resume
        if state is None:
            return None, ""
        damage = await self._blobs.damage(state.state)
        believed = jobs.confirmed_unusable(job, state) or self._is_sole(said)
        if damage is None and not (said.code == jobs.BAD_CHECKPOINT and believed):
            return None, ""
        return (
            state,
            f"the checkpoint of step {state.step} is given up for the one before it ({damage or 'unreadable'})",
        )

    def _is_sole(self, said: m.RunFailed) -> bool:
        """Whether no other node that is here could confirm what this one found wrong with its job."""
        job = self._world.jobs.get(said.job_id)
        if job is not None:
            job = jobs.with_memory_beyond(job, said.memory_bytes, said.gpu_memory_bytes)
        others = [self._world.candidate(node_id) for node_id in self._world.nodes if node_id != said.node_id]
        return job is not None and not any(
            schedule.ever_fits(job, each.node) and not schedule.for_proven(job, each.limit_base_units)
            for each in others
        )

    def _check_signature(self, said: m.RunCheckpoint | m.RunCompleted | m.SegmentTrained, signed: bytes) -> None:
        node, now_ms = self._world.nodes[said.node_id], self._machine.wall_ms()
        reports.refuse_false(said, signed, node.public_key, node.dated, self._network_id, now_ms)

    async def _check_stored(self, ref: m.ArtifactRef, node_id: str) -> None:
        """No pay for what is not there. Raises CyxError unless the artifact is stored whole, and this node sent it:
        the job's client will have it, so a node must not name what is somebody else's."""
        if not await self._blobs.sent(ref.sha256, node_id):
            raise NotStored(f"no artifact {ref.sha256} of {node_id} is stored here")
        stored = await self._blobs.keep(ref.sha256)
        if stored.size != ref.size:
            raise ApiError("bad_artifact", f"{ref.sha256[:12]}… has {stored.size} bytes, not {ref.size}", 409)

    async def completed(self, said: m.RunCompleted) -> m.ReportReply:
        async def check() -> None:
            self._check_signature(said, m.completion_bytes(said))
            reports.refuse_long_texts(said.summary)
            await self._check_stored(said.model, said.node_id)

        delivered = m.Completed(
            attempt=said.attempt,
            node_id=said.node_id,
            model=said.model,
            graph_sha256=said.graph_sha256,
            summary=said.summary,
            **_signed_with(said),
        )

        report = object()

        def event(job: jobs.Job) -> m.Completed:
            nodes, now_ms, in_check = self._world.nodes, self._machine.wall_ms(), self._in_check(job.job_id)
            made = segments.completion(self._policy, job, delivered, nodes, now_ms, in_check)
            if made.segment:
                self._drawn[report] = job.job_id, jobs.node_of(job, made.segment)
            return made

        try:
            return await self._report(said, event, lambda job: _same_delivery(job.completed, delivered), check)
        finally:
            self._drawn.pop(report, None)

    def _in_check(self, job_id: str) -> set[str]:
        """Ids of the nodes of whose work on other jobs some is being checked, or is about to be.

        The world says so once the log does, and of what any central drew. What this one has just drawn is not there
        before it is stored: deliveries that come in one moment are all decided before the first of them is.
        """
        world = self._world
        stored = {segments.checked_node(world.jobs[each]) for each in world.checking}
        return stored | {node_id for each, node_id in self._drawn.values() if each != job_id}

    async def _report(
        self,
        said: NodeReport,
        event_for: Callable[[jobs.Job], Reported],
        known: Callable[[jobs.Job], bool],
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> m.ReportReply:
        """Record what the holder of a lease reports: event_for the job as it is then. `known` tells a report that is
        recorded already.

        check: raises what is wrong with the report; asked once the lease is known, and nothing is recorded unchecked.

        A node repeats a report until it is answered, and every central hears it: saying it again is no mistake.
        """
        self._dispatch.hear_current(said)
        if not self._dispatch.holds(said.node_id, said.session, said.job_id, said.attempt):
            await self._events.catch_up()
        checked = self._dispatch.holds(said.node_id, said.session, said.job_id, said.attempt)
        if checked and check is not None:
            await check()
        job = self._world.jobs.get(said.job_id)
        fenced = reply = m.ReportReply(accepted=False, fenced=True, reason="this attempt does not hold the lease")
        if job is None or not self._had(job, said):
            return fenced
        self._dispatch.hear(said.node_id)

        def decide() -> Reported | None:
            """Runs again after a conflict: each time decides the reply too."""
            nonlocal reply
            now = self._world.jobs[said.job_id]
            if known(now):
                reply = m.ReportReply(accepted=True, reason="known already")
            elif not self._dispatch.holds(said.node_id, said.session, said.job_id, said.attempt):
                reply = fenced
            else:
                event = event_for(now)
                if isinstance(event, m.Checkpointed | m.Completed) and not jobs.follows(now, event.sequence):
                    raise ApiError("replayed", f"report {event.sequence} was signed before the newest that counts", 409)
                if why_not := jobrules.illegal(now, event):
                    raise ApiError("illegal", why_not, 409)
                if not checked and check is not None:
                    raise ApiError("busy", "the lease came to be known while its report was read; say it again", 503)
                reply = m.ReportReply(accepted=True)
                return event
            return None

        await self._events.record(subjects.job_event(said.job_id), decide)
        return reply

    @staticmethod
    def _had(job: jobs.Job, said: NodeReport) -> bool:
        """Whether this session of the node was ever given this attempt, or may have been given this check."""
        if said.attempt >= m.FIRST_CHECK:
            return said.attempt < m.FIRST_CHECK + job.checks
        given = job.attempts[said.attempt - 1] if said.attempt <= job.attempt else None
        return given is not None and (given.node_id, given.session) == (said.node_id, said.session)


def _signed_with(said: m.RunCheckpoint | m.RunCompleted | m.SegmentTrained) -> dict[str, Any]:
    """What an event keeps of a signature, so that anybody can verify it again."""
    return {name: getattr(said, name) for name in ("signature", "network_id", "sequence", "expires_ms")}


def _same_delivery(known: m.Completed | None, said: m.Completed) -> bool:
    """Whether it is the completion that is recorded, said again: it is signed anew each time."""
    what = ("attempt", "node_id", "model", "graph_sha256", "summary")
    return known is not None and all(getattr(known, name) == getattr(said, name) for name in what)


def _of_its_memory(said: m.RunFailed, hardware: m.Hardware | None) -> m.RunFailed:
    """The same, where a node says nothing of more memory than it has; None: of none."""
    gpus = [gpu.memory_bytes for gpu in hardware.gpus] if hardware else []
    return msgspec.structs.replace(
        said,
        memory_bytes=min(said.memory_bytes, hardware.memory_bytes if hardware else 0),
        gpu_memory_bytes=min(said.gpu_memory_bytes, max(gpus, default=0)),
    )
