"""Leases: give waiting jobs to nodes, see that the nodes got them, take them back when a node falls silent.

Everything here is level-triggered: it looks at the world, decides with the pure modules, appends, and can be run again
at any time. What a node was last heard saying is the only memory; losing it costs a node a full fresh lease.
"""

import asyncio
import functools
import heapq
import logging
import math
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from cyxcentral import dependencies, jobfold, jobrules, jobs, nodes, reports, scaling, schedule, segments
from cyxcentral.checking import Checking
from cyxcentral.eventlog import Decide, EventLog, Sequel
from cyxcentral.matching import MAX_PLANNED
from cyxcentral.pings import Pings
from cyxcentral.telling import Telling
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.commands import Commander
from cyxnet.identity import key_id

log = logging.getLogger(__name__)
RunKey = tuple[str, int]  # job id, attempt
Place = tuple[int, int]  # of a run: how late its phase is, and steps
NodeHandlers = dict[str, Callable[[Any], Awaitable[Any]]]  # by verb
NodeReport = m.RunStarted | m.RunCheckpoint | m.RunFailed | m.RunCompleted | m.SegmentTrained
Lease = jobs.Attempt | jobs.CheckLease

SAFETY_NET_S = 1.0  # decisions follow events at once; silence, standing still and what was missed are seen so late
# (and jobs that wait are given the room that another central's event made, if it did not: it died)
HELD_UP_PAUSE_S = 0.5
MOMENTS_MS = 100  # after the end of a back-off, of which each central has one; a lease takes some two
LISTENS_PER_LEASE = 8  # how often the link to the broker is tried: well within the half lease it may be deaf
PAUSING = "pausing"  # what central makes of it, until the node gives the run back
PHASES = {"fetching": 0, "ready": 1, "training": 2, "stored": 2, "uploading": 3, "reporting": 4, PAUSING: 5}
MISSING_HEARTBEATS = 3  # a delivered run that so many heartbeats do not name is gone
PAUSE_GRACE_MS = 60_000  # a run that was told to pause has so long to store its state; a replica its drain_s besides
ALONE = "limit_base_units"  # in the explanation of a lease: its node is not proven, and may have this one only
ONE_TOO_MANY = "the node is not proven, and another central gave it a job at the same moment: it has one at a time"
NODE_GONE = "the node that held the lease is gone"
DEPENDENTS_AT_ONCE = 100  # that are let begin, or are cancelled, before silence and room are looked at again
MOST_LEASES_AT_ONCE = 500  # that are lost together with their node
LONGEST_REASON_CHARS = 500
COMMAND_DELAYS_S = (0.1, 0.5, 1.0, 2.0)


async def answer_nodes(edge: Bus, handlers: NodeHandlers) -> None:
    """Answer these verbs of nodes. The node in the subject is who may speak: the message must name the same one."""

    def of_itself(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[str, Any], Awaitable[Any]]:
        async def checked(subject: str, message: Any) -> Any:
            if subject.split(".")[3] != message.node_id:
                raise ApiError("wrong_node", f"{message.node_id} spoke on the subject of another node", 403)
            return await handler(message)

        return checked

    for verb, handler in handlers.items():
        kind, _ = subjects.NODE_VERBS[verb]
        await edge.answer(subjects.node("*", verb), kind, of_itself(handler), strangers=True)


class Dispatch:
    def __init__(
        self,
        events: EventLog,
        edge: Bus,
        heartbeat_ms: int,
        lease_ms: int,
        progress_ms: int,
        commander: Commander,
        bans: bool = True,
        network_id: str = "",
        policy: segments.Policy = segments.NO_CHECKS,
    ):
        self._events = events
        self._world = events.world
        self._machine = events.machine
        self._edge = edge
        self._bans = bans
        self._network_id = network_id  # what nodes sign is for this one
        self._heartbeat_ms = heartbeat_ms
        self.lease_ms = lease_ms
        self._progress_ms = progress_ms
        self._checking = Checking(policy, events.world, events.machine, lease_ms)
        self._nodes = Telling(edge, events.world, events.machine, commander)
        self._wake = asyncio.Event()
        self._changed: set[str] = set()  # subjects to look at again
        self._our_turn = False  # whether what changed is for us to give to those who wait
        self._heard_ms: dict[str, float] = {}  # node id -> monotonic time of its last word
        self._listened_ms = self._machine.monotonic_ms()  # when the broker answered last
        self._read_seq: dict[str, int] = {}  # node id -> the event of its that was read last
        self.replicas: dict[RunKey, m.RunRef] = {}  # what a node said last of a replica that it holds
        self.seen_at_ms: dict[str, int] = {}  # the same on the wall clock, for people
        self._unnamed: dict[RunKey, int] = {}  # delivered run -> heartbeats that did not name it
        self._told: dict[RunKey, set[str]] = {}  # run -> commands that its node has heard from here
        self._telling: dict[RunKey, asyncio.Task[None]] = {}
        self._advanced: dict[RunKey, tuple[Place, float]] = {}  # run -> how far it came at most, and since when
        self._scaling = scaling.Scaling()
        self._pings = Pings(edge, heartbeat_ms, lease_ms, self._machine.token_hex)
        self._loop_task: asyncio.Task[None] | None = None
        self._assigning = False  # leases of jobs that wait are under way
        self._leasing_at_once = False  # a lease is under way whose job is not stored yet, as far as we know
        self._lease_at_once = Sequel(self._lease_submitted, self._leased_at_once)

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        handlers: NodeHandlers = {
            "register": self._register,
            "heartbeat": self._heartbeat,
            "goodbye": self._goodbye,
        }
        await answer_nodes(self._edge, handlers)
        await self._pings.start()
        self._loop_task = asyncio.create_task(self._run())

    async def close(self) -> None:
        tasks = [*self._telling.values(), *([self._loop_task] if self._loop_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def happened(self, subject: str, our_turn: bool = True) -> None:
        """A job or a node changed, which may allow a decision. With very many of them, only it is looked at.

        our_turn: whether we give the room that it may have made to those who wait. Not where another central wrote it:
        two that do it at once are refused half of their leases, and fill a node twice.
        """
        self._changed.add(subject)
        if our_turn:
            self._take_turn()
        self._wake.set()

    def _take_turn(self) -> None:
        self._our_turn = True
        self._wake.set()

    def waits(self) -> None:
        """A job came that nobody holds and that is no replica: nothing but a node is to be found for it."""
        if not self._leasing_at_once:  # else that is found already, mostly for this job; afterwards it is our turn
            self._take_turn()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        all_due_s = 0.0
        held_up = False
        while True:
            changed: set[str] | None  # None: everything there is
            changed, self._changed = self._changed, set()
            our_turn, self._our_turn = self._our_turn, False
            if loop.time() >= all_due_s:
                changed, all_due_s = None, loop.time() + min(SAFETY_NET_S, self.lease_ms / 1000 / LISTENS_PER_LEASE)
            try:
                await self._sweep(changed)
                await self._ban_suspects()
                await self._scale(changed)
                await self._decide_dependents()
                await self._check_waiting(whole=changed is None)
                if our_turn or changed is None:
                    await self._assign_waiting()
                self._tell_holders(changed)
            except Exception as error:
                if not isinstance(error, CyxError):
                    log.exception("scheduling failed; going on")
                elif not held_up:  # once, however long it lasts
                    log.warning("scheduling is held up: %s", error)
                    held_up = True
                await self._edge.pause(HELD_UP_PAUSE_S)
                all_due_s = 0.0
            else:
                if held_up:
                    log.warning("scheduling goes on")
                held_up = False
            due = loop.call_at(min(all_due_s, loop.time() + self._until_retry_s()), self._take_turn)
            try:
                await self._wake.wait()
            finally:
                due.cancel()
            self._wake.clear()

    def _until_retry_s(self) -> float:
        """When the back-off of a job ends: then something is due without any event.

        In each central at a moment of its own, soon after: of two that lease a job at once, one is refused.
        """
        due_ms = self._world.matching.next_due_ms()
        if due_ms is None:
            return math.inf
        due_ms += zlib.crc32(f"{self._events.central_id} {due_ms}".encode()) % MOMENTS_MS
        return max(due_ms - self._machine.wall_ms(), 1) / 1000

    # -- scheduling ----------------------------------------------------------------------------------

    def candidates(self) -> dict[str, schedule.Candidate]:
        """Every online node with the room it has now."""
        now_ms = self._machine.wall_ms()
        return {
            node.node_id: self._world.candidate(node.node_id, now_ms)
            for node in self._world.nodes.values()
            if node.online
        }

    async def submit(self, job_id: str, decide: Decide[m.Submitted]) -> m.Submitted | None:
        """Append a job's submission and, when nobody else waits and some node has room, its lease right behind it.

        Returns the event as EventLog.record() does, as soon as the submission itself is stored.
        """
        return await self._events.record(subjects.job_event(job_id), decide, self._lease_at_once)

    def _lease_submitted(self, event: m.Submitted, at_ms: int) -> m.Leased | None:
        if self._leasing_at_once or self._assigning:
            return None  # those may take the room that is left
        job = jobfold.evolve(None, event, at_ms)
        choice = self._world.choice_for(job, self._machine.wall_ms()) if jobs.waits(job) else None
        lease = self._lease_of(job, choice) if choice else None
        self._leasing_at_once = lease is not None
        return lease

    def _leased_at_once(self) -> None:
        """It was, or was not: either way the others may have their turn now."""
        self._leasing_at_once = False
        self._take_turn()

    async def _assign_waiting(self) -> None:
        if self._leasing_at_once:
            return  # the room may be gone in a moment; we are woken then
        planned = self._world.matching.plan(self._machine.wall_ms())
        self._assigning = bool(planned)
        try:
            for choice in planned:
                await self._events.record(subjects.job_event(choice.job_id), functools.partial(self._lease, choice))
        finally:
            self._assigning = False
        if len(planned) == MAX_PLANNED:
            self._take_turn()

    def _lease(self, choice: schedule.Assignment) -> m.Leased | None:
        return self._lease_of(self._world.jobs[choice.job_id], choice)

    def _lease_of(self, job: jobs.Job, choice: schedule.Assignment) -> m.Leased | None:
        node = self._world.nodes[choice.node_id]
        candidate = self._world.candidate(node.node_id, self._machine.wall_ms())
        limit = candidate.limit_base_units
        event = m.Leased(
            attempt=job.attempt + 1,
            node_id=node.node_id,
            session=node.session,
            wallet=node.wallet,
            lease_ms=self.lease_ms,
            explanation=choice.explanation | ({ALONE: limit} if limit else {}),
            resume=job.checkpoint,  # the newest that can be used
        )
        # asked again, because another central may have filled the node since it was chosen
        taken = schedule.refusal(job, candidate)
        return None if taken or jobrules.illegal(job, event) else event

    async def _check_waiting(self, whole: bool = True) -> None:
        """Give delivered jobs that are to be checked to checkers, or give their checks up (whole: when time is up)."""
        for job_id in self._checking.waiting(whole) if self._world.checking else ():
            subject = subjects.job_event(job_id)
            if self._may_decide(subject) and self._checking.due(job_id):
                await self._events.record(subject, functools.partial(self._checking.due, job_id))

    async def _scale(self, changed: set[str] | None) -> None:
        """Bring deployments to as many replicas at work as they need: of those that changed, or of all."""
        if changed is None:
            self._scaling.forget_all_but(self._world.replicas)
            due = list(self._world.replicas)
        else:
            found = (self._world.jobs.get(subjects.last_token(subject)) for subject in sorted(changed))
            due = list(dict.fromkeys(job.job.serve.deployment for job in found if job and job.job.serve))
        for deployment in due:
            while choice := self._wish(deployment):
                subject = subjects.job_event(choice.job_id)
                if not self._may_decide(subject):
                    break
                if not await self._events.record(subject, functools.partial(self._scaled, deployment, choice.job_id)):
                    break

    def _wish(self, deployment: str) -> scaling.Wish | None:
        live = self._world.replicas.get(deployment)
        newest = self._world.jobs[next(reversed(live))].job.serve if live else None
        if not (live and newest and newest.most):
            return None
        replicas = [self._world.jobs[job_id] for job_id in live]
        now = scaling.load(replicas, self.replicas, self._machine.wall_ms())
        return scaling.wish(replicas, now, self._scaling.spare_ms(deployment, now, self._machine.monotonic_ms()))

    def _scaled(self, deployment: str, job_id: str) -> m.ScaledUp | m.ScaledDown | None:
        """Asked again when another central was quicker: by what it wrote, perhaps nothing is wanted any more."""
        choice = self._wish(deployment)
        if choice is None or choice.job_id != job_id or jobrules.illegal(self._world.jobs[job_id], choice.event):
            return None
        return choice.event

    async def _decide_dependents(self) -> None:
        """Let jobs begin whose dependencies are met, and cancel those that never can: some, then others have a turn."""
        decided = [job_id for job_id in self._world.decided if self._may_decide(subjects.job_event(job_id))]
        for job_id in heapq.nsmallest(DEPENDENTS_AT_ONCE, decided):
            await self._events.record(subjects.job_event(job_id), functools.partial(self._dependencies, job_id))
        if len(decided) > DEPENDENTS_AT_ONCE:
            self._wake.set()

    def _dependencies(self, job_id: str) -> m.DependenciesMet | m.DependencyFailed | None:
        return dependencies.due(self._world.jobs[job_id], self._world.jobs)

    # -- delivery ------------------------------------------------------------------------------------

    def _leased(self, changed: set[str] | None) -> list[jobs.Job]:
        """The jobs whose lease a node holds, or that of a check, of those that changed or whose node did; None for all
        of them.
        """
        if changed is None:
            return self._world.leased()
        found: dict[str, jobs.Job] = {}
        for subject in sorted(changed):
            about = subjects.last_token(subject)
            if subject == subjects.node_event(about):
                found |= {job.job_id: job for job in self._world.runs_of(about)}
            elif (job := self._world.jobs.get(about)) and job.lease:
                found[about] = job
        return list(found.values())

    def _tell_holders(self, changed: set[str] | None) -> None:
        """See that lease holders have heard what concerns their runs; a node says by itself what it knows already."""
        leased = {(job.job_id, job.lease.number): job for job in self._leased(changed) if job.lease}
        if changed is None:
            for memory in (self._unnamed, self._told, self._advanced, self.replicas):
                for over in memory.keys() - leased.keys():
                    del memory[over]
        for key, job in leased.items():
            if key not in self._telling and self._untold(job):
                assert job.lease is not None
                task = asyncio.create_task(self._tell(job.job_id, job.lease))
                self._telling[key] = task
                task.add_done_callback(functools.partial(self._tell_ended, key))

    def _untold(self, job: jobs.Job) -> list[str]:
        """The commands that the holder of a job's lease has not heard from this central, in order."""
        due = ["assign", *(["begin"] if job.funded else []), *(["pause"] if job.halts else [])]
        assert job.lease is not None
        told = self._told.get((job.job_id, job.lease.number), ())
        return [command for command in due if command not in told]

    def _tell_ended(self, key: RunKey, task: "asyncio.Task[None]") -> None:
        self._telling.pop(key, None)
        if task.cancelled():
            return
        if error := task.exception():
            log.warning("%s/%d: not told: %s; will be tried again", *key, error)
        else:
            self.happened(subjects.job_event(key[0]), False)  # something more may have become due meanwhile

    def _command(self, what: str, job: jobs.Job, attempt: Lease) -> m.Command:
        match what:
            case "begin":
                return m.Begin(job_id=job.job_id, attempt=attempt.number, session=attempt.session)
            case "pause":
                return m.Pause(job_id=job.job_id, attempt=attempt.number, session=attempt.session)
        return m.Assign(
            job_id=job.job_id,
            attempt=attempt.number,
            session=attempt.session,
            job=job.job,
            lease_ms=attempt.lease_ms,
            resume=attempt.resume if isinstance(attempt, jobs.Attempt) else None,
            segment=segments.asked(job) if isinstance(attempt, jobs.CheckLease) else None,
            funded=job.funded,
            owner=job.caller if job.job.serve else "",
            memory_bytes=job.memory_bytes if any(past.lost and past.lost.memory_bytes for past in job.attempts) else 0,
            gpu_memory_bytes=job.gpu_memory_bytes,
        )

    async def _tell(self, job_id: str, attempt: Lease) -> None:
        """Say everything that is due to the holder of a lease, until it has heard it or lost the lease."""
        key, tries = (job_id, attempt.number), 0
        while (lease := (job := self._world.jobs[job_id]).lease) and lease.number == attempt.number:
            due = self._untold(job)
            if not due:
                return
            command = self._command(due[0], job, lease)
            try:
                reply = await self._nodes.ask(attempt.node_id, command)
            except CyxError as error:
                log.info("cannot tell %s about %s: %s", attempt.node_id, job_id, error)
                await asyncio.sleep(COMMAND_DELAYS_S[min(tries, len(COMMAND_DELAYS_S) - 1)])
                tries += 1
                continue
            if isinstance(command, m.Assign) and not reply.accepted:
                why = reply.reason[:LONGEST_REASON_CHARS]
                await self._lose(job_id, attempt.number, jobs.REFUSED, f"the node refused it: {why}")
                return
            told = self._told.setdefault(key, set())
            told.add(due[0])
            if isinstance(command, m.Assign):
                self._unnamed.setdefault(key, 0)
                if command.funded:
                    told.add("begin")

    # -- loss ----------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Make sure that nodes can be heard. Raises BusError when the broker is out of reach.

        Silence counts only while we listened. After a time when we could not (the broker or our link was down, this
        process was stopped) every node gets a full fresh lease: else all of them would be lost at once.
        """
        if self._machine.monotonic_ms() - self._listened_ms < self.lease_ms / LISTENS_PER_LEASE:
            return
        if not self._edge.connected:
            raise BusError("the link to the broker is gone: no node can be heard")
        await self._edge.round_trip()
        now = self._machine.monotonic_ms()
        if now - self._listened_ms > self.lease_ms / 2:
            self._heard_ms = dict.fromkeys(self._heard_ms, now)
            self._pings.forgive(now)
        self._listened_ms = now

    async def _sweep(self, changed: set[str] | None = None) -> None:
        """Leases whose nodes are gone or whose runs stand still are lost: of what changed, or of all.

        Of all, also the nodes that were not heard of for a whole lease.
        """
        await self._listen()
        now = self._machine.monotonic_ms()
        for node_id in self._world.nodes if changed is None else map(subjects.last_token, changed):
            self._read_of(node_id, now)
        for node_id in self._silent(now) if changed is None else ():
            session = self._world.nodes[node_id].session
            # asked again before each append: it may have been heard while the one before was under way
            still = functools.partial(self._is_silent, node_id)
            await self._lose_node(node_id, session, f"no heartbeat for {self.lease_ms} ms", still=still)
        now = self._machine.monotonic_ms()  # what was lost took time: who became ready meanwhile is silent from now on
        leased = self._leased(changed)
        if changed is None:
            self._pings.look([_replica(job) for job in leased if _answers(job) and self._hears_pings(job)], now)
        for job_id in [job.job_id for job in leased]:
            job = self._world.jobs[job_id]  # as it is by now: what was recorded of those before took time
            attempt = job.lease
            if attempt is None:
                continue
            if not self.session_is_current(attempt.node_id, attempt.session):
                await self._lose(job.job_id, attempt.number, nodes.NODE_LOST, NODE_GONE)
            elif job.job.serve and jobrules.time_used(job, self._machine.wall_ms()):
                await self._end_of_time(job.job_id)
            elif self._one_too_many(job):
                await self._lose(job.job_id, attempt.number, jobs.REFUSED, ONE_TOO_MANY)
                await self.stop_run(job.job_id, attempt, ONE_TOO_MANY)
            elif why := self._stuck(job, attempt.number, now):
                await self._lose(job.job_id, attempt.number, *why)
                await self.stop_run(job.job_id, attempt, why[1])

    def _one_too_many(self, job: jobs.Job) -> bool:
        """Whether a lease is to be given back because two centrals gave a node one each that may have one only."""
        if job.current is None or ALONE not in job.current.explanation:
            return False
        held = [
            (each.current.leased_at_ms, each.job_id)
            for each in self._world.runs_of(job.current.node_id)
            if each.current and ALONE in each.current.explanation
        ]
        return job.job_id != min(held)[1]

    def _hears_pings(self, job: jobs.Job) -> bool:
        """Whether a replica's node has said so: those of earlier versions do not, and are not asked."""
        said = self.replicas.get((job.job_id, job.attempt))
        return said is not None and said.answers_pings

    async def _end_of_time(self, job_id: str) -> None:
        """A replica has served for as long as was bought."""
        subject = subjects.job_event(job_id)
        if self._may_decide(subject):
            await self._events.record(
                subject, lambda: jobrules.time_used(self._world.jobs[job_id], self._machine.wall_ms())
            )

    def _silent(self, now_ms: float) -> list[str]:
        return nodes.silent(self._heard_ms, self._world.nodes, self.lease_ms, now_ms)

    def _is_silent(self, node_id: str) -> bool:
        now_ms = self._machine.monotonic_ms()
        return bool(nodes.silent(self._heard_ms, {node_id: self._world.nodes[node_id]}, self.lease_ms, now_ms))

    def _read_of(self, node_id: str, now_ms: float) -> None:
        """A full fresh lease for who was not heard yet, and for who has registered at another central meanwhile."""
        seq = self._world.last_seq.get(subjects.node_event(node_id))
        if seq is not None and self._read_seq.get(node_id) != seq:
            self._read_seq[node_id] = seq
            self._heard_ms[node_id] = now_ms

    def advanced(self, job_id: str, attempt: int, where: tuple[str, int]) -> None:
        """A run was seen in a phase, after so many steps. Telemetry and reports call it.

        Only what is beyond all that was seen before is progress: else who goes to and fro keeps a job for ever.
        """
        key, place = (job_id, attempt), (PHASES.get(where[0], 0), where[1])
        if key not in self._advanced or self._advanced[key][0] < place:
            self._advanced[key] = (place, self._machine.monotonic_ms())

    def _stuck(self, job: jobs.Job, number: int, now_ms: float) -> tuple[str, str] | None:
        """(code, reason) when a run must lose its lease although its node is alive."""
        key = (job.job_id, number)
        if not job.funded:
            self._advanced.pop(key, None)  # it waits for the chain, not the other way round
            return None
        if job.halts:
            self.advanced(*key, (PAUSING, 0))
            grace_ms = PAUSE_GRACE_MS + (job.job.serve.drain_s * 1000 if job.job.serve else 0)
            if now_ms - self._advanced[key][1] > grace_ms:
                return jobs.PAUSED, f"the node did not end the run within {grace_ms} ms"
            return None
        if _answers(job):
            replica = _replica(job)
            heard_ms = min(now_ms, self._heard_ms.get(replica[0], now_ms))  # since now_ms it was not asked again
            if self._pings.silent_ms(replica, heard_ms) > self.lease_ms:
                return (
                    "not_answering",
                    f"the replica says that it is ready, and answered nothing for {self.lease_ms} ms",
                )
            return None
        if key in self._advanced and self._advanced[key][0][0] == PHASES[PAUSING]:
            del self._advanced[key]  # it goes on: from where it is, whatever was seen before
        _, since_ms = self._advanced.setdefault(key, ((0, 0), now_ms))
        if now_ms - since_ms > self._progress_ms:
            return "no_progress", f"the node is alive, but the run made no progress for {self._progress_ms} ms"
        return None

    async def _ban_suspects(self) -> None:
        """Nodes that have earned a ban get it, where this network bans."""
        for node_id in sorted(self._world.suspects) if self._bans else ():
            subject = subjects.node_event(node_id)
            if self._may_decide(subject):
                await self._events.record(subject, functools.partial(self._ban, node_id))

    def _may_decide(self, subject: str) -> bool:
        """False where the history is not known (the log said so when it read that): it must not hold up all others."""
        return subject not in self._world.damaged

    def _ban(self, node_id: str) -> m.NodeBanned | None:
        return nodes.ban_due(self._world.nodes[node_id], self._machine.wall_ms())

    async def shut_out(self, node_id: str) -> None:
        """A node was banned and is thrown out: its leases go to others now, not when it has been silent for long.

        That is neither a failed try of its jobs nor another fault of the node.
        """
        session = self._world.nodes[node_id].session
        await self._lose_node(node_id, session, "banned", True, still=lambda: self._world.nodes[node_id].online)

    async def _lose_node(
        self,
        node_id: str,
        session: str,
        reason: str,
        graceful: bool = False,
        still: Callable[[], bool] = lambda: True,
    ) -> None:
        """The loss of a node, and with it of the leases it holds: one fact about all of them, stored together."""

        def gone() -> bool:
            """False when it came back in another session, is lost already, or was heard after all."""
            return self.session_is_current(node_id, session) and still()

        def node_lost() -> m.NodeLost | None:
            return m.NodeLost(node_id=node_id, session=session, reason=reason, graceful=graceful) if gone() else None

        def lease_lost(job_id: str) -> m.LeaseLost | m.CheckLost | None:
            lease = self._world.jobs[job_id].lease
            if lease is None or (lease.node_id, lease.session) != (node_id, session) or not gone():
                return None
            code = jobs.NODE_STOPPED if graceful else nodes.NODE_LOST  # somebody asked for it: that is no failed try
            return _lost(lease.number, code, NODE_GONE)

        held = [job.job_id for job in self._world.runs_of(node_id)][:MOST_LEASES_AT_ONCE]  # the next sweep has the rest
        of_jobs = [(subjects.job_event(job_id), functools.partial(lease_lost, job_id)) for job_id in held]
        parts: list[tuple[str, Decide[Any]]] = [(subjects.node_event(node_id), node_lost), *of_jobs]
        await self._events.record_all([part for part in parts if self._may_decide(part[0])])

    async def _lose(self, job_id: str, attempt: int, code: str, reason: str) -> None:
        event, subject = _lost(attempt, code, reason), subjects.job_event(job_id)
        if self._may_decide(subject):
            await self._events.record(
                subject, lambda: None if jobrules.illegal(self._world.jobs[job_id], event) else event
            )

    async def stop_run(self, job_id: str, lease: Lease, reason: str) -> None:
        """Tell the node that had this lease to stop; it also learns it from its next heartbeat."""
        command = m.Stop(job_id=job_id, attempt=lease.number, session=lease.session, reason=reason)
        try:
            await self._nodes.ask(lease.node_id, command)
        except CyxError as error:
            log.info("stop of %s not delivered: %s", job_id, error)

    # -- what nodes say ------------------------------------------------------------------------------

    def hear(self, node_id: str) -> None:
        self._heard_ms[node_id] = self._machine.monotonic_ms()
        self.seen_at_ms[node_id] = self._machine.wall_ms()

    def hear_current(self, said: m.Heartbeat | NodeReport) -> None:
        """Before anything that takes time: a node is not silent because we are slow to read the log."""
        if self.session_is_current(said.node_id, said.session):
            self.hear(said.node_id)

    def session_is_current(self, node_id: str, session: str) -> bool:
        node = self._world.nodes.get(node_id)
        return node is not None and node.online and node.session == session

    async def _register(self, said: m.Register) -> m.RegisterReply:
        if not said.node_id.endswith(f"-{key_id(said.public_key)}"):
            raise ApiError("wrong_key", f"{said.node_id} is not the id of this public key", 403)
        signed, now_ms = m.registration_bytes(said), self._machine.wall_ms()
        reports.refuse_false(said, signed, said.public_key, False, self._network_id, now_ms)
        reports.refuse_long_texts(said.hardware)
        node = self._world.nodes.get(said.node_id)
        if node is None or said.began_ms >= node.began_ms:
            self.hear(said.node_id)  # first: an old silence must not count against the new registration
        fields = {name: getattr(said, name) for name in m.NodeRegistered.__struct_fields__ if hasattr(said, name)}
        event = m.NodeRegistered(**fields, dated=said.expires_ms > 0)

        def decide() -> m.NodeRegistered | None:
            if self.session_is_current(said.node_id, said.session):
                return None
            if why_not := nodes.illegal(self._world.nodes.get(said.node_id), event):
                raise ApiError("old_session", why_not, 409)
            return event

        await self._events.record(subjects.node_event(said.node_id), decide)
        self._nodes.heard(said.node_id, said.session, said.now_ms)
        self.happened(subjects.node_event(said.node_id))
        return m.RegisterReply(
            heartbeat_ms=self._heartbeat_ms,
            lease_ms=self.lease_ms,
            network_id=self._network_id,
            now_ms=self._machine.wall_ms(),
            platform_key=self._nodes.platform_key if said.signed_commands else "",
        )

    async def _heartbeat(self, said: m.Heartbeat) -> m.HeartbeatReply:
        def unheld() -> list[m.RunRef]:
            return [run for run in said.runs if not self.holds(said.node_id, said.session, run.job_id, run.attempt)]

        self.hear_current(said)
        if unheld() or not self.session_is_current(said.node_id, said.session):
            await self._events.catch_up()
        if not self.session_is_current(said.node_id, said.session):
            return m.HeartbeatReply(known=False)
        self.hear(said.node_id)
        self._nodes.heard(said.node_id, said.session, said.now_ms)
        if said.draining != self._world.nodes[said.node_id].draining:
            await self._events.record(subjects.node_event(said.node_id), functools.partial(self._drained, said))
        if tuple(said.gpus_free_bytes) != self._world.nodes[said.node_id].gpus_free_bytes:
            await self._events.record(subjects.node_event(said.node_id), functools.partial(self._gpus_read, said))
        named = {(run.job_id, run.attempt) for run in said.runs}
        stop = unheld()
        begin, pause = [], []
        for run in said.runs:
            if run in stop:
                continue
            job = self._world.jobs[run.job_id]
            if job.job.serve:
                self.replicas[run.job_id, run.attempt] = run
            if job.halts:
                pause.append(run)
            elif job.funded and run.phase == "ready":
                begin.append(run)
            if run.phase and run.phase != PAUSING and not job.halts:  # that one is ours to say
                self.advanced(run.job_id, run.attempt, (run.phase, run.step))
        for job in self._world.runs_of(said.node_id):
            assert job.lease is not None
            key = (job.job_id, job.lease.number)
            if key in named:
                self._unnamed[key] = 0
            elif key in self._unnamed:
                self._unnamed[key] += 1
                if self._unnamed[key] >= MISSING_HEARTBEATS:
                    await self._lose(*key, "run_missing", "the node no longer names the run")
        return self._nodes.reply(said, m.Orders(stop=stop, begin=begin, pause=pause))

    def _drained(self, said: m.Heartbeat) -> m.NodeDraining | m.NodeUndrained | None:
        """What a heartbeat says of its node's readiness, where that is news; a banned node may say what it likes."""
        event = (m.NodeDraining if said.draining else m.NodeUndrained)(session=said.session)
        return None if nodes.illegal(self._world.nodes[said.node_id], event) else event

    def _gpus_read(self, said: m.Heartbeat) -> m.NodeGpusRead | None:
        """What a heartbeat says of its node's GPUs, where that is news."""
        node = self._world.nodes[said.node_id]
        event = m.NodeGpusRead(session=said.session, free_bytes=said.gpus_free_bytes)
        known = tuple(said.gpus_free_bytes) == node.gpus_free_bytes
        return None if known or nodes.illegal(node, event) else event

    def holds(self, node_id: str, session: str, job_id: str, attempt: int) -> bool:
        """Whether this session of the node holds the lease of this attempt, or check: the fence."""
        job = self._world.jobs.get(job_id)
        current = job.lease if job else None
        return (
            current is not None
            and current.number == attempt
            and current.node_id == node_id
            and current.session == session
        )

    def trains(self, node_id: str, session: str, job_id: str, attempt: int) -> bool:
        """Whether this session holds the lease of this attempt, or has delivered with it what is not settled yet: of
        what it said before, some is heard after that, as many things are heard at the same time.
        """
        if self.holds(node_id, session, job_id, attempt):
            return True
        job = self._world.jobs.get(job_id)
        if job is None or job.completed is None or job.status not in ("checking", "settling"):
            return False
        last = job.attempts[-1]
        return (last.number, last.node_id, last.session) == (attempt, node_id, session)

    async def _goodbye(self, said: m.Goodbye) -> m.ReportReply:
        node = self._world.nodes.get(said.node_id)
        if node and node.signed_goodbyes and self.session_is_current(said.node_id, said.session):
            signed, now_ms = m.goodbye_bytes(said), self._machine.wall_ms()
            reports.refuse_false(said, signed, node.public_key, node.dated, self._network_id, now_ms)
        await self._lose_node(said.node_id, said.session, said.reason, graceful=True)
        await self._sweep()
        return m.ReportReply(accepted=True)


def _lost(number: int, code: str, reason: str) -> m.LeaseLost | m.CheckLost:
    """The end of a lease: of an attempt, or of a check."""
    if number >= m.FIRST_CHECK:
        return m.CheckLost(number=number, code=code, reason=reason)
    return m.LeaseLost(attempt=number, code=code, reason=reason)


def _answers(job: jobs.Job) -> bool:
    """Whether a replica of this job shall answer now."""
    return bool(job.job.serve and job.current and job.current.started_at_ms is not None and not job.halts)


def _replica(job: jobs.Job) -> tuple[str, str, int]:
    return job.attempts[-1].node_id, job.job_id, job.attempt
