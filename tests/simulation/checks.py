"""What must hold after every event, whatever went wrong: an independent, small model of the network.

Nothing here asks production what is right: the model reads the events as they are stored and the true state of the
chain and of the artifacts. Numbers in the messages are those of the invariants:

  I1 only possible events are stored     I2 attempts count up, one lease at a time     I3 a completion is its holder's
  I4 an end is the end                   I5 acknowledged jobs end                      I6 one job per id and wish
  I7 sums are kept                       I8 an escrow is emptied once                  I9 paid means final on the chain
  I10 no cancel after a completion       I11 every world is the fold of the log        I12 a node is not overbooked
  I13 what is referred to is stored      I14 stored work is paid before a deadline    I15 the hash chain is whole
  I16 nothing is frozen without a drift  I17 a replica's time, tries and pay are right (served.py)
  I18 a node obeys centrals only, and nothing older about a job than what it obeyed last
  I20 a node that is not proven gets nothing beyond its limit, and nothing besides what it has
  I21 what is checked is paid when that is over, what two runs found false never; its node gets nothing any more, and
      nobody honest is found false
  I23 what lies in the log and is no event, or cannot have happened, counts for nothing, at every central
  I24 a job that trains is not given up while a try is left, nor tried when none is (tried.py)
  I25 what its owner paused, or sent back, is given to nobody, and whoever has it gives it back in time
  I22 a replica loses its lease for silence when its living node spoke for a lease and it did not, and it does then
  I19 no more replicas of a deployment work than its client wants at the most, and none that stands by
  I26 of a job's deposits one may land at a time
  I27 a job begins after those that it comes after, with the model it was to have, or is cancelled when one fails
  R12 clocks do not end leases
"""

import functools
import hashlib
import math
from typing import Any, get_args

from cyxcentral import earnings
from cyxcentral.records import read
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.codec import MSGPACK, decode
from cyxnet.connection import Message
from cyxnet.outcomes import Stored
from tests.simulation import followers
from tests.simulation.answers import Asked
from tests.simulation.centrals import AGREE_WITHIN_MS, LEASE_MS, REFERENCE_FEE, VOUCHED
from tests.simulation.cheats import end_of
from tests.simulation.faults import DAY_MS, FIRST_WALL_MS, HOUR_MS
from tests.simulation.models import CheckModel, JobModel, Lease
from tests.simulation.nodes import digest, model_of, state_after, steps_of
from tests.simulation.nodes import node_id as node_id_of
from tests.simulation.served import Served
from tests.simulation.tried import Tried

JOB_EVENTS, NODE_EVENTS = frozenset(get_args(m.JobEvent)), frozenset(get_args(m.NodeEvent))
PINGS = subjects.ping("")
PROVEN_CLIENTS = 3
ANOTHER_HEARD_WITHIN_S = 5.0  # of a lease that another central gave
BAN_HEARD_WITHIN_S = 10.0  # another central may not have read of it yet
CLOCKS_WRONG_MS = 8 * HOUR_MS  # the clock of a central is an hour wrong, and somebody sets it some times
LONG_MS = 120_000  # nobody waits for a replica that still has so long by every clock
NEXT_COMES_MS, NEXT_COMES_SHARE = 60_000, 4  # before its end, a replica is followed: so long, or that share of its time
HALTS_WITHIN_S = 10.0  # of being told to (centrals.shrink); a replica has its drain_s besides
STOPS = "the node did not end the run within"  # what a lease is lost for that was not given back by then
LOST_WITHIN_S = 8.0  # beyond a lease: questions, sweeps and appends take their time
FEWEST_SILENT_S = LEASE_MS / 1000 * 0.95  # a clock that drifts by a hundredth may see less than a lease


class Checks:
    """Told of every stored event, every transaction that reaches the chain, and every message a central hears."""

    def __init__(self, network: Any):
        self.network = network
        self.jobs: dict[str, JobModel] = {}
        self.sessions: dict[str, str | None] = {}  # node id -> session that is registered
        self.began_ms: dict[str, int] = {}  # of that session
        self.slots: dict[str, int] = {}  # node id -> runs that it takes at a time
        self.turns: dict[str, int] = {}  # how often that changed
        self.names: dict[str, str] = {}  # the wish of a client -> the job id it became
        self.moved: dict[str, dict[str, int]] = {}  # signature -> what each wallet gained
        self.written: set[str] = set()  # signatures whose bytes are in the log
        self.last_payload: dict[str, bytes] = {}
        self._records: dict[int, m.Record] = {}  # by sequence, as they are decoded here
        self.chained: set[str] = set()
        self.kinds: dict[str, int] = {}
        self.at_ms = 0  # of the event that is looked at, by the log
        self.by = ""  # the central that wrote it
        self.banned_at_s: dict[str, float] = {}
        self.drained_at_s: dict[str, float] = {}
        self.payers: dict[str, set[str]] = {}  # node id -> who paid for its work, from which wallet
        self.rejected: dict[str, float] = {}  # node id -> when its work was found false
        self.replicas: dict[tuple[str, str, int], Asked] = {}  # that are there, by node, job and attempt
        self._asked: dict[str, tuple[str, str, float]] = {}  # where the answer goes -> which central asked whom, when
        self._alive_s: dict[tuple[str, str], float] = {}  # central, replica -> when it was asked what it answered last
        self._silent_s: dict[tuple[str, str], float] = {}  # and when it last was silent for a lease of its node's words
        self._came_s: dict[tuple[str, str], float] = {}  # central, node -> when it last said anything
        self._changed_s: dict[str, float] = {}  # node -> when an event of its was stored
        self._deposits: dict[str, m.SignedTransaction] = {}  # job -> the newest that its client sent
        self._obeyed: dict[tuple[str, str], int] = {}  # session, job -> what its node obeyed was said at this event
        self._gaps: dict[tuple[str, str], tuple[float, list[tuple[float, float]]]] = {}

    def fail(self, why: str) -> None:
        self.network.scheduler.fail(why)

    def expect(self, holds: bool, why: str) -> None:
        if not holds:
            self.fail(why)

    # -- what central says ---------------------------------------------------------------------------

    def registered(self, node_id: str, session: str) -> int | None:
        """A number for the time since this session is the node's; None when it is not."""
        return self.turns[node_id] if self.sessions.get(node_id) == session else None

    def held(self, node_id: str, session: str, job_id: str, attempt: int) -> Lease | None:
        """The lease of this run, while its holder's session is the node's."""
        job = self.jobs.get(job_id)
        lease = job.lease if job else None
        if job and attempt >= m.FIRST_CHECK:
            lease = job.check.lease if job.check else None
        if lease is None or self.registered(node_id, session) is None:
            return None
        return lease if (lease.attempt, lease.node_id, lease.session) == (attempt, node_id, session) else None

    def obeyed(self, node_id: str, session: str, command: m.Command, said: m.Command | m.SignedCommand) -> None:
        what = f"{node_id} obeys {type(command).__name__} of {command.job_id}/{command.attempt}"
        self.expect(self.network.intruder.was_said(node_id, said), f"I18: {what}, which no central said")
        if isinstance(said, m.SignedCommand):
            before = self._obeyed.get((session, command.job_id), 0)
            self.expect(said.sequence >= before, f"I18: {what} of event {said.sequence} after one of {before}")
            self._obeyed[session, command.job_id] = max(before, said.sequence)

    def deposit_sent(self, job_id: str, deposit: m.SignedTransaction) -> None:
        """A job has one deposit at a time: two that may land could both pay, one after the other."""
        before = self._deposits.get(job_id)
        if before is None or before.signature != deposit.signature:
            over = before is None or self.network.chain.is_over(before)
            self.expect(over, f"I26: a second deposit of {job_id} is sent while the first may land")
            self._deposits[job_id] = deposit

    def told_no(self, about: str, before: Any, now: Any) -> None:
        """No is said only of what was so at some moment of the question: who says it has read all that is stored."""
        if before and before is now:
            self.fail(f"no was said and is not true: {about}")

    def answered(self, job_id: str, request_id: str, yes: bool) -> None:
        """A yes to a wish is in the log, so that a try that comes late is known; a no is a no for ever."""
        job = self.jobs[job_id]
        said = "yes" if yes else "no"
        self.expect((request_id in job.requests) == yes, f"I6: {job_id}: {said} was said of {request_id!r}")
        if not yes:
            job.denied = [*job.denied, request_id]

    # -- whether replicas answer ---------------------------------------------------------------------

    def asked(self, central: str, subject: str, reply: str) -> None:
        """A central asks a replica."""
        self._asked[reply] = central, subject.removeprefix(PINGS), self.network.scheduler.now_s

    def replica_answered(self, central: str, message: Message) -> None:
        """Something comes to where answers to a central go: it counts for what was asked there."""
        who, replica, at_s = self._asked.get(message.subject, ("", "", 0.0))
        if who == central and b"Cyx-Status: 200\r\n" in message.block:
            self._see_silence(central, replica)
            self._alive_s[who, replica] = max(at_s, self._alive_s.get((who, replica), 0.0))

    def came(self, central: str, subject: str) -> None:
        """A node says something to a central."""
        if node_id := _speaker(subject)[0]:
            self._came_s[central, node_id] = self.network.scheduler.now_s

    def _see_silence(self, central: str, replica: str) -> None:
        """Remember when a replica has been silent for a lease in which its node spoke."""
        node_id, job_id, _ = replica.rsplit(".", 2)
        now_s, process = self.network.scheduler.now_s, self.network.centrals[central]
        spoke_s = self._came_s.get((central, node_id), 0.0)
        if now_s - self._changed_s.get(node_id, -1e9) < BAN_HEARD_WITHIN_S:  # central reads that it is there
            spoke_s = now_s
        since_s = max(self._alive_s.get((central, replica), 0.0), process.started_s, self.jobs[job_id].answers_s)
        if spoke_s - since_s >= FEWEST_SILENT_S:
            self._silent_s[central, replica] = now_s

    def _not_answering(self, job_id: str, job: JobModel, attempt: int) -> None:
        """I22: who takes a lease for silence has heard none of its answers for so long, and its node meanwhile."""
        node_id = job.leases[-1].node_id
        central = self.network.central_called(self.by)
        what = f"I22: {job_id}/{attempt} loses its lease for silence"
        self.expect(bool(job.served and job.served.turns[-1].ready_ms), f"{what}, and was not ready")
        self.expect(self._hears_pings(node_id), f"{what}, and {node_id} is of a version that is not asked")
        if central is None:
            return
        replica = f"{node_id}.{job_id}.{attempt}"
        self._see_silence(central.name, replica)
        now_s, alive_s = self.network.scheduler.now_s, self._alive_s.get((central.name, replica), 0.0)
        silent = now_s - self._silent_s.get((central.name, replica), -1e9) < 30
        spoke_s = self._came_s.get((central.name, node_id), 0.0)
        self.expect(silent, f"{what}, answered what {central.name} asked at {alive_s:.3f} s; {node_id}: {spoke_s:.3f}")

    def _hears_pings(self, node_id: str) -> bool:
        return any(node.hears_pings for node in self.network.nodes.values() if node.node_id == node_id)

    def silent_replicas(self) -> None:
        """I22: what answers nothing any more has lost its lease a while after the last fault."""
        if not self.replicas:
            return
        scheduler, centrals = self.network.scheduler, self.network.live_centrals()
        for (node_id, job_id, attempt), asked in self.replicas.items():
            job, node = self.jobs[job_id], asked.node
            lease = job.lease
            if not (lease and (lease.node_id, lease.attempt, lease.session) == (node_id, attempt, node.session)):
                continue
            ready = job.served and job.served.is_ready and not (job.halts or job.standby)
            if not (ready and node.loop.alive and node.hears_pings):
                continue
            since_s = max(asked.silent_at_s, job.ready_s, self.network.faults.until_s, node.loop.paused_until_s)
            looks_s = [max(since_s, each.started_s, each.loop.paused_until_s) for each in centrals]
            if scheduler.now_s > min(looks_s, default=math.inf) + LEASE_MS / 1000 + LOST_WITHIN_S:
                self.fail(f"I22: {job_id}/{attempt} answers nothing ({asked.kind}), and keeps its lease")

    def halting_runs(self) -> None:
        """I25: who works on what is paused, or was sent back, has given it back a while after the last fault."""
        scheduler = self.network.scheduler
        for job_id, job in self.jobs.items():
            if not (job.halts or job.standby or job.near) or job.lease is None or not job.funded:
                continue
            centrals = self.network.live_centrals()
            since_s = max(job.halts_s, job.lease.since_s, self.network.faults.until_s)
            looks_s = [max(since_s, each.started_s, each.loop.paused_until_s) for each in centrals]
            if scheduler.now_s > min(looks_s, default=math.inf) + _halts_within_s(job) + LOST_WITHIN_S:
                self.fail(f"I25: {job_id} is to stop since {job.halts_s:.1f} s, and {job.lease.node_id} goes on")

    # -- what happens --------------------------------------------------------------------------------

    def heard(self, central: str, subject: str, now_s: float) -> None:
        """A central heard a node that it knows, at this true time. A goodbye is none: its session may be over."""
        node_id, verb = _speaker(subject)
        if not node_id or verb == "goodbye":
            return
        last_s, silences = self._gaps.get((central, node_id), (-1e9, []))
        if now_s - last_s >= FEWEST_SILENT_S:
            silences = [*silences[-3:], (last_s, now_s)]
        self._gaps[central, node_id] = (now_s, silences)

    def stored(self, stored: Stored) -> None:
        if stored.seq in self.network.strange.seqs:
            self.last_payload[stored.subject] = stored.payload
            self.network.trace("strange", f"{stored.seq} {stored.subject}", stored.payload)
            return
        record = decode(m.Record, stored.payload, MSGPACK, max_bytes=2**31)
        self._records[stored.seq] = record
        self._chain_of_hashes(stored, record)
        about, event = subjects.last_token(stored.subject), record.event
        kind, self.at_ms, self.by = type(event).__name__, record.at_ms, record.by
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.network.trace("event", f"{stored.seq} {about} {kind} by {record.by}", stored.payload)
        rule = RULES.get(type(event))
        if isinstance(event, m.Submitted):
            self._submitted(about, event)
        elif isinstance(event, m.PayoutsFrozen):
            self.fail(f"I16: payouts are frozen, and nothing differs: {event.reason}")
        elif type(event) in NODE_EVENTS:
            self._node(about, event, record.by)
        elif rule is not None:
            job = self.jobs.get(about)
            if job is None:
                self.fail(f"I1: {kind} of {about}, which was never submitted")
            elif job.ended:
                self.fail(f"I4: {kind} of {about}, which has ended")
            else:
                rule(self, about, job, event)

    def _chain_of_hashes(self, stored: Stored, record: m.Record) -> None:
        said = getattr(record, "prev", "")
        before = self.last_payload.get(stored.subject)
        self.last_payload[stored.subject] = stored.payload
        if said:
            self.chained.add(stored.subject)
            whole = before is not None and hashlib.sha256(before).hexdigest().startswith(said)
            self.expect(whole, f"I15: event {stored.seq} names another predecessor than it has")
        elif before is not None and stored.subject in self.chained:
            self.fail(f"I15: event {stored.seq} names no predecessor, those before it did")

    def _submitted(self, job_id: str, event: m.Submitted) -> None:
        name = event.job.name
        self.expect(job_id not in self.jobs, f"I6: {job_id} was submitted twice")
        self.expect(self.names.setdefault(name, job_id) == job_id, f"I6: the wish {name} became two jobs")
        self.jobs[job_id] = JobModel(
            name=name,
            terms=event.terms,
            steps=0 if event.job.serve else steps_of(event.job),
            deposit=event.deposit,
            leases=[],
            request=event.job,
            served=_served(event),
            serve=event.job.serve,
            worth=event.price_base_units or event.terms.amount_base_units,
            standby=bool(event.job.serve and event.job.serve.standby),
            tried=None if event.job.serve else Tried(event.job.max_attempts),
            priority=event.job.priority,
            awaiting=bool(event.job.after),
        )
        for after in event.job.after:
            self.expect(after.job_id in self.jobs, f"I27: {job_id} comes after {after.job_id}, which is not there")
        self.written.add(event.deposit.signature)
        self._artifact(event.job.dataset, None, "the dataset")

    def _signed(self, job_id: str, job: JobModel, event: m.TransactionSigned) -> None:
        chain = self.network.chain
        self.written.add(event.signed.signature)
        if event.purpose != "settle":
            return
        self.expect(job.funded, f"I8: a settlement of {job_id} is signed before it is funded")
        self.expect(job.check is None, f"I21: a settlement of {job_id} is signed, and it is being checked")
        if job.served:
            self.expect(bool(job.served.ends), f"I5: {job_id} is settled, and nothing ended it: {job.served}")
        elif job.tried and not (job.completed or job.cancelled or job.near or job.orphaned):
            why = job.tried.given_up()
            self.expect(why is None, f"I24: {job_id}: {why}")
        for earlier in job.settlements:
            landed = chain.landed.get(earlier.signature)
            dead = landed.error is not None if landed else chain.height > earlier.last_valid_block_height
            self.expect(dead, f"I8: {job_id}: {earlier.signature[:8]} may still land, and another one is signed")
        job.settlements = [*job.settlements, event.signed]

    def _funded(self, job_id: str, job: JobModel, event: m.Funded) -> None:
        final = self.network.chain.is_final(job.deposit.signature)
        self.expect(final and not job.funded, f"I9: {job_id} is called funded; final on the chain: {final}")
        job.funded, job.halts_s = True, self.network.scheduler.now_s
        if job.halts or job.standby:
            self._is_to_halt(job)

    def _fund_failed(self, job_id: str, job: JobModel, event: m.FundFailed) -> None:
        chain, deposit = self.network.chain, job.deposit
        landed = chain.landed.get(deposit.signature)
        alive = landed.error is None if landed else chain.height <= deposit.last_valid_block_height
        self.expect(not alive and not job.funded, f"I9: {job_id}: its deposit is called failed and may still land")
        self._end_lease(job)
        job.ended = True

    def _leased(self, job_id: str, job: JobModel, event: m.Leased) -> None:
        self.expect(
            event.attempt == len(job.leases) + 1, f"I2: {job_id}: attempt {event.attempt} after {len(job.leases)}"
        )
        self.expect(job.lease is None, f"I2: {job_id} is leased twice at once")
        self.expect(not job.completed, f"I1: {job_id} is leased after its completion")
        self.expect(
            event.node_id not in job.rejected, f"I21: {job_id} is leased to {event.node_id}, found false before"
        )
        self.expect(not job.cancelled, f"I1: {job_id} is leased after it was cancelled")
        self.expect(not job.standby, f"I19: {job_id} is leased, and stands by")
        self.expect(not job.awaiting, f"I27: {job_id} is leased before the jobs that it comes after are completed")
        self.expect(not job.halts, f"I25: {job_id} is leased, and its owner paused it")
        if job.tried:
            why = job.tried.leased()
            self.expect(why is None, f"I24: {job_id}: {why}")
        self.expect(
            event.resume == job.checkpoint,
            f"I13: {job_id}/{event.attempt} goes on from {event.resume}, the newest stored is {job.checkpoint}",
        )
        self.expect(event.node_id not in job.ran_out, f"I12: {job_id} ran out of memory on {event.node_id} before")
        drained_s = self.drained_at_s.get(event.node_id)
        if drained_s is not None and self._has_read(drained_s):
            self.fail(f"I12: {job_id} is leased to {event.node_id}, which is draining since {drained_s:.1f} s")
        banned_s = self.banned_at_s.get(event.node_id)
        if banned_s is not None and self._has_read(banned_s):
            self.fail(f"bans stay: {job_id} is leased to {event.node_id}, banned at {banned_s:.1f} s")
        if event.node_id in self.not_banned():
            found_s = self.rejected[event.node_id]
            self.expect(
                not self._has_read(found_s),
                f"I21: {job_id} is leased to {event.node_id}, found false at {found_s:.1f} s and not banned",
            )
        self._to_full_node(job_id, event.node_id)
        self._to_stranger(job_id, job, event.node_id)
        now_s = self.network.scheduler.now_s
        job.leases.append(Lease(event.attempt, event.node_id, event.session, self.by, now_s, resume=event.resume))
        if job.served:
            self._of_time(job_id, job.served.leased(event))

    def _has_read(self, stored_s: float, within_s: float = BAN_HEARD_WITHIN_S) -> bool:
        """Whether the central that wrote this event had read by then what was stored at that time."""
        central = self.network.central_called(self.by)
        reads_s = max(stored_s, central.stalled_until_s if central else 0.0)
        return bool(self.network.scheduler.now_s - reads_s > within_s)

    def not_banned(self) -> list[str]:
        """The nodes whose work was found false, and that nobody has banned."""
        return sorted(self.rejected.keys() - self.banned_at_s.keys())

    def _runs_of(self, node_id: str) -> dict[str, Lease]:
        """What a node has, by job: each is a slot of it, also a replica's, and a check's."""
        return {
            job_id: lease
            for job_id, job in self.jobs.items()
            for lease in (job.lease, job.check.lease if job.check else None)
            if lease and lease.node_id == node_id
        }

    def _to_full_node(self, job_id: str, node_id: str) -> None:
        """I12. Two centrals may fill the last slot of a node at the same moment; the node refuses one of the two.

        So may one, of whose first lease it has not read yet that it is stored: its append got no answer.
        """
        known = [other_id for other_id, lease in self._runs_of(node_id).items() if self._has_read(lease.since_s)]
        slots = self.slots.get(node_id, 0)
        self.expect(len(known) < slots, f"I12: {job_id} is leased to {node_id}, whose {slots} slots have {known}")

    def _to_stranger(self, job_id: str, job: JobModel, node_id: str) -> None:
        """I20. Two centrals may give a node one job each at the same moment; one of the two is taken back then."""
        limit = self.network.wishes.limit_base_units
        known_to_operator = (*VOUCHED, *map(node_id_of, self.network.cheats.checkers))
        if not limit or node_id in known_to_operator or len(self.payers.get(node_id, ())) >= PROVEN_CLIENTS:
            return
        self.expect(job.worth <= limit, f"I20: {job_id} is worth {job.worth}, and {node_id} gets {limit} at the most")
        for other in self.jobs.values():
            if (lease := other.lease) and lease.node_id == node_id:
                known = lease.by == self.by or self._has_read(lease.since_s, ANOTHER_HEARD_WITHIN_S)
                self.expect(not known, f"I20: {job_id} is leased to {node_id}, which is known to have {other.name}")

    def _of_lease(self, job_id: str, job: JobModel, event: Any) -> Lease | None:
        kind = type(event).__name__
        lease = job.lease
        if lease is None or lease.attempt != event.attempt:
            self.fail(f"I3: {kind} of {job_id}/{event.attempt}, which does not hold the lease ({lease})")
        return lease

    def _by_holder(self, job_id: str, job: JobModel, event: Any) -> Lease | None:
        lease = self._of_lease(job_id, job, event)
        kind = type(event).__name__
        if lease is not None:
            self.expect(job.served is None, f"I1: {kind} of {job_id}, which trains nothing")
            self.expect(event.node_id == lease.node_id, f"I3: {kind} of {job_id} by {event.node_id}, not the holder")
            self.expect(job.funded, f"I3: {kind} of {job_id}, which is not paid for")
        return lease

    def _started(self, job_id: str, job: JobModel, event: m.Started) -> None:
        self._of_lease(job_id, job, event)
        self.expect(job.funded, f"I3: {job_id} started before it was paid for")
        job.ready_s = job.answers_s = self.network.scheduler.now_s
        if job.served:
            self._of_time(job_id, job.served.started(self.at_ms))

    def _checkpointed(self, job_id: str, job: JobModel, event: m.Checkpointed) -> None:
        self._by_holder(job_id, job, event)
        said, newest = event.checkpoint, job.checkpoint
        forward = newest is None or said.step > newest.step
        self.expect(forward and 0 < said.step <= job.steps, f"I13: {job_id}: a checkpoint of step {said.step}")
        right = self._is_right(job, event.node_id, said.state, state_after(job.name, said.step))
        content = state_after(job.name, said.step) if right else None
        self._artifact(said.state, content, f"the checkpoint of {job_id} at {said.step}")
        self.expect(bool(self.network.cheats.checkers) or not event.kept, f"I21: {job_id} keeps what nobody checks")
        job.leases[-1].stored = [*job.leases[-1].stored, said]
        own = [state for state in job.states if state[0] == event.attempt]
        job.states = [*(state for state in job.states if state not in own[:-1]), (event.attempt, said)]

    def _lost(self, job_id: str, job: JobModel, event: m.LeaseLost) -> None:
        self._of_lease(job_id, job, event)
        if event.code == "not_answering":
            self._not_answering(job_id, job, event.attempt)
        if event.reason.startswith(STOPS):
            waited_s = self.network.scheduler.now_s - max(job.told_s, job.leases[-1].since_s)
            long_enough = waited_s >= _halts_within_s(job) * FEWEST_SILENT_S / (LEASE_MS / 1000)
            self.expect(long_enough, f"I25: {job_id} loses its lease {waited_s:.1f} s after it was told to stop")
        self._end_lease(job)
        if job.served:
            job.served.lost(event, self.at_ms)
        if job.tried:
            job.tried.lost(event, job.leases[-1].node_id)
        if event.memory_bytes:
            job.ran_out = [*job.ran_out, job.leases[-1].node_id]
        if event.discards:
            newest = f"the newest stored is {job.checkpoint}"
            self.expect(event.discards == job.checkpoint, f"I13: {job_id} discards {event.discards}, {newest}")
            job.states = job.states[:-1]

    def _completed(self, job_id: str, job: JobModel, event: m.Completed) -> None:
        self._by_holder(job_id, job, event)
        right = self._is_right(job, event.node_id, event.model, model_of(job.name, job.steps))
        self._artifact(event.model, model_of(job.name, job.steps) if right else None, f"the model of {job_id}")
        self._end_lease(job)
        job.completed, job.halts = True, False  # an owner has no say any more
        job.model, job.summary = event.model.sha256, event.summary
        told = event.segment is not None or bool(event.not_checked)
        self.expect(told == bool(self.network.cheats.checkers), f"I21: {job_id}: a segment, or why there is none")
        if event.segment:
            job.check = CheckModel(event.segment)

    def _is_right(self, job: JobModel, node_id: str, ref: m.ArtifactRef, content: bytes) -> bool:
        """Whether a state or model is what its steps make. Only one node makes others, and who goes on from those."""
        resumed = job.states[-1][1].state.sha256 if job.states else ""
        cheats = self.network.cheats
        excused = resumed in job.false or (cheats.cheater is not None and node_id == node_id_of(cheats.cheater))
        if ref.sha256 == digest(content) or not excused:
            return True
        job.false = [*job.false, ref.sha256]
        return False

    # -- checks --------------------------------------------------------------------------------------

    def _checking(self, job_id: str, job: JobModel, what: str) -> CheckModel:
        if job.check is None:
            self.fail(f"I21: {what} of {job_id}, which nobody checks")
            return CheckModel(m.SignedSegment(attempt=1, end=m.ArtifactRef(sha256="0" * 64, size=0)))
        return job.check

    def _check_leased(self, job_id: str, job: JobModel, event: m.CheckLeased) -> None:
        check, checkers = self._checking(job_id, job, "a lease"), self.network.cheats.checkers
        self.expect(check.lease is None, f"I21: {job_id} is checked twice at once")
        self.expect(
            event.node_id in map(node_id_of, checkers), f"I21: {event.node_id} checks {job_id}, and is no checker"
        )
        job.checks += 1
        due = m.FIRST_CHECK + job.checks - 1
        self.expect(event.number == due, f"I21: {job_id}: check {event.number} comes where {due} is due")
        check.lease = Lease(event.number, event.node_id, event.session, self.by, self.network.scheduler.now_s)

    def _check_over(self, job_id: str, job: JobModel, number: int, node_id: str | None = None) -> CheckModel:
        check = self._checking(job_id, job, f"the end of check {number}")
        lease = check.lease
        holds = lease is not None and lease.attempt == number and node_id in (None, lease.node_id)
        self.expect(holds, f"I21: {job_id}: {node_id} ends check {number}, the lease is {lease}")
        check.lease = None
        return check

    def _check_lost(self, job_id: str, job: JobModel, event: m.CheckLost) -> None:
        check = self._check_over(job_id, job, event.number)
        check.impossible += event.code == "bad_checkpoint"

    def _found(self, job_id: str, job: JobModel, event: m.Checked | m.CheckDiffers) -> None:
        check, finding = self._check_over(job_id, job, event.finding.number, event.finding.node_id), event.finding
        same = finding.end.sha256 == check.segment.end.sha256
        self.expect(finding.end.sha256 == self._truth(job, check.segment), f"I21: {job_id}: {finding} is false")
        self.expect(same == isinstance(event, m.Checked), f"I21: {job_id}: {type(event).__name__} of {finding}")
        check.findings = [*check.findings, finding]
        if same:
            job.check = None

    def _given_up(self, job_id: str, job: JobModel, event: m.CheckGivenUp) -> None:
        self._checking(job_id, job, "giving up")
        self.expect(event.finding is None, f"I21: {job_id}: two honest runs differ: {event}")
        job.check = None

    def _rejected(self, job_id: str, job: JobModel, event: m.Rejected) -> None:
        check = self._checking(job_id, job, "the rejection")
        node_id, found = job.leases[event.attempt - 1].node_id, [each.end.sha256 for each in event.findings]
        self.expect(event.segment == check.segment, f"I21: {job_id}: {event.segment} was not checked")
        self.expect(event.node_id == node_id, f"I21: {job_id}: {event.node_id} is blamed for {node_id}")
        truth = self._truth(job, check.segment)
        if event.impossible:
            self.expect(check.impossible > 0 and truth is None, f"I21: {job_id} is rejected, and can be trained")
        else:
            one, two = check.findings[-1:], event.findings[-1:]
            self.expect(
                len(found) == 2 and event.findings[:1] == one, f"I21: {job_id} is rejected by {len(found)} runs"
            )
            self.expect(set(found) == {truth}, f"I21: {job_id} is rejected by what is false: {found}")
            self._check_over(job_id, job, two[0].number, two[0].node_id)
        self.expect(truth != check.segment.end.sha256, f"I21: {job_id}: {node_id} is rejected, and was right")
        void: dict[int, list[m.Checkpoint]] = {}  # attempts of this node, and what goes on from those: what they stored
        for lease in job.leases:
            if lease.node_id == node_id or any(lease.resume in stored for stored in void.values()):
                void[lease.attempt] = lease.stored
        job.states = [state for state in job.states if state[0] not in void]
        job.check, job.completed, job.rejected = None, False, [*job.rejected, node_id]
        if job.tried:
            job.tried.unsure = True
        self.rejected.setdefault(node_id, self.network.scheduler.now_s)
        self.payers.pop(node_id, None)

    def _truth(self, job: JobModel, segment: m.SignedSegment) -> str | None:
        """SHA-256 of what an honest run of a segment ends with; None where none goes on from its start."""
        start = state_after(job.name, 0)
        if segment.start:
            sha256 = segment.start.state.sha256
            start = self.network.core.streams[subjects.BLOBS].last[subjects.chunk(sha256)].payload
            if self.network.faults.was_bad(sha256):
                return None
        assert job.request is not None
        asked = m.Segment(start=segment.start, end_step=segment.end_step)
        end = end_of(asked, job.request, start, job.steps)
        return None if end is None else digest(end)

    def _time_used(self, job_id: str, job: JobModel, event: m.TimeUsed) -> None:
        self._of_lease(job_id, job, event)
        self._of_time(job_id, job.served.time_used(self.at_ms) if job.served else "it serves nothing")
        self._end_lease(job)

    def _scaled_up(self, job_id: str, job: JobModel, event: m.ScaledUp) -> None:
        self.expect(job.standby and job.serve is not None, f"I19: {job_id} is called, and did not stand by")
        job.standby = False
        self._goes_on(job)
        if not self.network.wishes.clocks_agree or job.serve is None:
            return  # whose time is nearly over is another by every clock
        working = [
            other_id
            for other_id, other in self.jobs.items()
            if other.serve and other.serve.deployment == job.serve.deployment and self._stays(other)
        ]
        self.expect(len(working) <= job.serve.most, f"I19: {working} work, {job.serve.most} may ({event.reason})")

    def _stays(self, job: JobModel) -> bool:
        """Whether a replica is at work, and has more time than what it takes to bring in the next one."""
        if job.served is None or job.standby or job.ended or job.cancelled or job.near or job.served.ends:
            return False
        left_ms = job.served.bought_ms - job.served.served_ms(self.at_ms)
        return left_ms > min(NEXT_COMES_MS, job.served.bought_ms // NEXT_COMES_SHARE) + 2 * AGREE_WITHIN_MS

    def _scaled_down(self, job_id: str, job: JobModel, event: m.ScaledDown) -> None:
        bought = bool(job.serve and job.serve.standby)
        self.expect(bought and not job.standby, f"I19: {job_id} is sent back, and was not called")
        job.standby = True
        self._is_to_halt(job)

    def _dependencies_met(self, job_id: str, job: JobModel, event: m.DependenciesMet) -> None:
        why = followers.met(job, event, self.jobs)
        self.expect(why is None, f"I27: {job_id} may begin: {why}")
        self.expect(not job.orphaned, f"I27: {job_id} may begin, and was cancelled for {job.orphaned}")
        job.awaiting, job.passed_over = False, followers.passed_over(job, self.jobs)

    def _dependency_failed(self, job_id: str, job: JobModel, event: m.DependencyFailed) -> None:
        why = followers.failed(job, event.job_id, self.jobs)
        self.expect(job.awaiting and why is None, f"I27: {job_id} is cancelled: {why}")
        job.orphaned = event.job_id

    def _is_to_halt(self, job: JobModel) -> None:
        job.halts_s = now_s = self.network.scheduler.now_s
        if job.lease is None or job.told_s < job.lease.since_s:
            job.told_s = now_s

    def _goes_on(self, job: JobModel) -> None:
        job.ready_s = now_s = self.network.scheduler.now_s
        if now_s - job.halts_s > LEASE_MS / 2000:  # a central that looks less often than that forgives
            job.answers_s = now_s

    def _of_time(self, job_id: str, why: str | None) -> None:
        self.expect(why is None, f"I17: {job_id}: {why}")

    def _cancelled(self, job_id: str, job: JobModel, event: m.CancelRequested) -> None:
        self.expect(not job.completed, f"I10: {job_id} is cancelled after it was completed")
        self.expect(not job.cancelled, f"I1: {job_id} is cancelled twice")
        job.cancelled = True
        if job.served:
            job.served.ends = "it is cancelled"
        self._once(job_id, job, event)
        self._end_lease(job)

    def _steered(self, job_id: str, job: JobModel, event: Any) -> None:
        self.expect(not job.completed, f"I10: {type(event).__name__} of {job_id} after it was completed")
        self._once(job_id, job, event)
        if isinstance(event, m.PauseRequested) and not job.halts:
            job.halts = True
            self._is_to_halt(job)
        elif isinstance(event, m.ResumeRequested):
            job.halts = False
            self._goes_on(job)
        elif isinstance(event, m.PriorityChanged):
            job.priority = event.priority

    def _near(self, job_id: str, job: JobModel, event: m.DeadlineNear) -> None:
        faults, now_s = self.network.faults, self.network.scheduler.now_s
        left_ms = 1000 * job.terms.deadline_s - (FIRST_WALL_MS + faults.date_ms(now_s))
        self.expect(event.deadline_s == job.terms.deadline_s, f"I14: {job_id} ends for another deadline than its own")
        self.expect(left_ms <= DAY_MS + CLOCKS_WRONG_MS, f"I14: {job_id} ends {left_ms} ms before its deadline")
        self.expect(not job.near and not job.completed, f"I14: {job_id} ends for its deadline, and ended before")
        job.near = True
        self._is_to_halt(job)
        if not job.funded or job.served:  # a run is let store its state; a preparation and a replica have none
            self._end_lease(job)
        if job.served:
            job.served.ends = "its deadline is near"

    def _once(self, job_id: str, job: JobModel, event: Any) -> None:
        self.expect(event.request_id not in job.requests, f"I6: {job_id}: {event.request_id} is carried out twice")
        self.expect(event.request_id not in job.denied, f"I6: {job_id}: {event.request_id} was refused, and happens")
        job.requests = [*job.requests, event.request_id]

    def _settled(self, job_id: str, job: JobModel, event: m.Settled) -> None:
        terms = job.terms
        final = self.network.chain.is_final(event.signature)
        self.expect(final, f"I9: {job_id} is called settled by {event.signature[:8]}, which is not final")
        self.expect(not job.settled, f"I8: {job_id} is settled twice")
        parts = (event.node_base_units, event.platform_base_units, event.client_base_units)
        whole = min(parts) >= 0 and sum(parts) == terms.amount_base_units
        self.expect(whole, f"I7: {job_id}: the parts {parts} do not make {terms.amount_base_units}")
        moved = self.moved.get(event.signature, {})
        self.expect(
            moved.get(terms.platform, 0) == event.platform_base_units
            and moved.get(terms.client, 0) == event.client_base_units
            and sum(moved.values()) == terms.amount_base_units,
            f"I9: {job_id}: the log says {parts}, the chain moved {moved}",
        )
        paid = event.node_base_units + event.platform_base_units
        most = sum(p.pay_base_units * terms.fee_basis_points // 10_000 for p in event.payees)
        self.expect(
            event.platform_base_units <= most, f"I7: {job_id}: the fee {event.platform_base_units} is over {most}"
        )
        self.expect(paid == sum(p.pay_base_units for p in event.payees), f"I7: {job_id}: the payees do not add up")
        if job.served:
            self._of_time(job_id, job.served.settled(event, terms, moved))
        elif job.completed:
            self.expect(event.client_base_units == 0, f"I8: {job_id} was completed and is refunded")
        elif job.checkpoint is None:
            self.expect(paid == 0, f"I13: {job_id} pays {paid} for steps that nobody stored")
        else:
            earned = terms.amount_base_units * job.checkpoint.step // job.checkpoint.steps
            self.expect(paid <= earned, f"I13: {job_id} pays {paid}, its stored steps earned {earned}")
        paid_to = {payee.wallet for payee in event.payees}
        wronged = {self.network.wallets[int(node_id.split("-")[1])] for node_id in job.rejected}
        self.expect(not paid_to & wronged, f"I21: {job_id} pays {paid_to & wronged}, whose work was found false")
        job.settled = job.ended = True
        if event.platform_base_units >= REFERENCE_FEE:
            self.payers.setdefault(job.leases[-1].node_id, set()).add(terms.client)

    def _refunded(self, job_id: str, job: JobModel, event: m.Refunded) -> None:
        chain, terms = self.network.chain, job.terms
        proven = chain.refunds.get(event.signature) == terms.escrow and chain.is_final(event.signature)
        self.expect(proven, f"I9: {job_id} is called refunded by {event.signature[:8]}, which is no final refund")
        moved = self.moved.get(event.signature, {})
        whole = {terms.client: terms.amount_base_units}
        self.expect(moved == whole, f"I9: {job_id}: it is called refunded, the chain moved {moved}")
        self.expect(event.client_base_units == terms.amount_base_units, f"I7: {job_id}: {event.client_base_units}")
        self._end_lease(job)
        job.ended = True
        if self.network.faults.weeks_pass_at_s is not None:  # central had a day for it
            worked = job.checkpoint or job.completed or (job.served and job.served.due())
            self.expect(not worked, f"I14: {job_id} is refunded, and it has stored work")

    def _end_lease(self, job: JobModel) -> None:
        if job.lease:
            job.lease.live = False
            if job.served:
                job.served.over(self.at_ms)

    def _artifact(self, ref: m.ArtifactRef, content: bytes | None, what: str) -> None:
        """I13: the manifest and the chunk are in the store, and are the bytes that the work makes."""
        stored = self.network.core.streams[subjects.BLOBS].last
        if subjects.manifest(ref.sha256) not in stored or subjects.chunk(ref.sha256) not in stored:
            self.fail(f"I13: {what} is not stored")
        elif digest(stored[subjects.chunk(ref.sha256)].payload) != ref.sha256:
            self.fail(f"I13: {what} is stored damaged")
        elif content is not None and digest(content) != ref.sha256:
            self.fail(f"I13: {what} is not what its steps make")

    def _node(self, node_id: str, event: m.NodeEvent, by: str) -> None:
        self._changed_s[node_id] = self.network.scheduler.now_s
        if isinstance(event, m.NodeDraining):
            self.drained_at_s[node_id] = self.network.scheduler.now_s
        else:
            self.drained_at_s.pop(node_id, None)
        if isinstance(event, m.NodeDraining | m.NodeUndrained):
            self.expect(self.sessions.get(node_id) == event.session, f"I1: {node_id} drained in a session it is not in")
        if isinstance(event, m.NodeBanned):
            self.banned_at_s.setdefault(node_id, self.network.scheduler.now_s)
        elif isinstance(event, m.NodeRegistered):
            newest = self.began_ms.get(node_id, 0)
            self.expect(event.began_ms >= newest, f"I2: an older session of {node_id} is registered again")
            self.began_ms[node_id] = event.began_ms
            self.slots[node_id] = event.max_runs
            self.sessions[node_id] = event.session
            self.turns[node_id] = self.turns.get(node_id, 0) + 1
        elif isinstance(event, m.NodeLost):
            self.expect(self.sessions.get(node_id) == event.session, f"I1: {node_id} lost in a session it is not in")
            self.sessions[node_id] = None
            self.turns[node_id] += 1
            if "no heartbeat" in event.reason:
                self._was_silent(node_id, by)

    def _was_silent(self, node_id: str, by: str) -> None:
        """R12: who declares a node silent has truly not heard it for a lease, by no clock but the true one."""
        central = self.network.central_called(by)
        if central is None:
            return
        now_s = self.network.scheduler.now_s
        last_s, silences = self._gaps.get((central.name, node_id), (-1e9, []))
        since_s = [max(last_s, central.started_s)]
        long_enough = any(now_s - s >= FEWEST_SILENT_S for s in since_s) or any(
            end - max(begin, central.started_s) >= FEWEST_SILENT_S and now_s - end < 30 for begin, end in silences
        )
        self.expect(long_enough, f"R12: {central.name} declared {node_id} silent, but heard it at {last_s:.3f} s")

    # -- the chain -----------------------------------------------------------------------------------

    def received(self, signature: str) -> None:
        """I8: no transaction of central's reaches the chain before its bytes are in the log."""
        self.expect(signature in self.written, f"I8: the bytes of {signature[:8]} are sent and not in the log")

    def executed(self, signature: str, before: Any, after: Any) -> None:
        if before is after:
            return
        total_before, total_after = (sum(a.amount for a in each.values()) for each in (before, after))
        self.expect(total_before == total_after, f"I7: the supply went from {total_before} to {total_after}")
        moved: dict[str, int] = {}
        for address in sorted(before.keys() | after.keys()):
            account = after.get(address) or before[address]
            change = (after[address].amount if address in after else 0) - (
                before[address].amount if address in before else 0
            )
            if change > 0 and account.owner != address:  # a vault is its own owner
                moved[account.owner] = moved.get(account.owner, 0) + change
        self.moved[signature] = moved

    # -- at the end ----------------------------------------------------------------------------------

    def open_jobs(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if not job.ended and not self.goes_on(job_id)]

    def goes_on(self, job_id: str) -> bool:
        """Whether a replica is ready, its node has it, and it has much time left by the clock of every central."""
        job = self.jobs.get(job_id)
        lease = job.lease if job else None
        if job is None or lease is None or job.served is None or not job.served.is_ready:
            return False
        asked = self.replicas.get((lease.node_id, job_id, lease.attempt))
        if asked and asked.silent_at_s < math.inf and self._hears_pings(lease.node_id):
            return False
        left_ms = (job.served.left_ms(each.wall_ms()) for each in self.network.live_centrals())
        holders = (node.state for node in self.network.nodes.values() if node.loop.alive)
        return min(left_ms, default=0) > LONG_MS and any(
            (job_id, lease.attempt) in state.runs for state in holders if state.session == lease.session
        )

    def at_the_end(self) -> None:
        """I5, I7, I8, I11 and what a client was told, once everything is quiet."""
        chain = self.network.chain
        for client in self.network.clients:
            if client.refused and client.job_id in self.jobs:
                self.fail(f"I5: {client.job_id} exists and its client was told no: {client.refused}")
            if client.acknowledged and client.job_id not in self.jobs:
                self.fail(f"I5: {client.job_id} was acknowledged and is lost")
            if client.seen:
                self._watched(client)
        # of a replica that goes on, central finds that it was refunded when its time is used
        unseen = {id(job) for job in self.jobs.values() if not job.ended and job.terms.escrow in chain.refunds.values()}
        for job_id, job in self.jobs.items():
            escrow = chain.accounts.get(job.terms.escrow)
            self.expect(
                (escrow is None) == (job.ended or id(job) in unseen),
                f"I8: {job_id}: ended: {job.ended}, and its escrow holds {escrow}",
            )
            landed = [s for s in job.settlements if s.signature in chain.landed and not chain.landed[s.signature].error]
            self.expect(len(landed) == int(job.settled), f"I8: {job_id} was paid {len(landed)} times")
        held = {
            owner: sum(a.amount for a in chain.accounts.values() if a.owner == owner)
            for owner in {a.owner for a in chain.accounts.values()}
        }
        fold, records = World(), self.network.core.streams[subjects.EVENTS].messages
        ledger: dict[str, int] = {}
        for stored in records:
            record = self._records.get(stored.seq) or read(stored.payload)
            sha256 = hashlib.sha256(stored.payload).digest()
            why = fold.apply(stored.seq, stored.subject, record, sha256)
            strange = stored.seq in self.network.strange.seqs
            self.expect((why is not None) == strange, f"I23: event {stored.seq} counts for nothing: {why}")
            if not strange and isinstance(record, m.Record) and type(record.event) in JOB_EVENTS:
                about = subjects.last_token(stored.subject)
                for entry in earnings.entries(fold.jobs[about], record.event):
                    ledger[entry.account] = ledger.get(entry.account, 0) + entry.amount_base_units
        for job in self.jobs.values():
            if id(job) in unseen:
                held[job.terms.client] -= job.terms.amount_base_units
            elif not job.ended:  # its money is in its vault: a balance of nobody's
                held.pop(chain.accounts[job.terms.escrow].vault, None)
        for owner, amount in sorted(held.items()):
            gained = amount - self.network.given.get(owner, 0)
            said = ledger.get(f"wallet:{owner}", 0)
            self.expect(gained == said, f"I7: {owner[:8]} gained {gained} on the chain and {said} in the ledger")
        for job_id, job in self.jobs.items():
            if job.orphaned and (why := followers.failed(job, job.orphaned, self.jobs)):
                self.fail(f"I27: {job_id} was cancelled: {why}")
            for name in job.passed_over:
                self.expect(
                    not self.jobs[name].completed, f"I27: {job_id} began without {name}, which was still at work"
                )
            said = fold.jobs[job_id].priority
            self.expect(said == job.priority, f"I11: {job_id} has priority {said}, its owner asked for {job.priority}")
        for central in self.network.live_centrals():
            for what in ("jobs", "nodes", "mints", "last_seq", "active", "awaiting", "seq", "quarantined", "damaged"):
                mine, its = getattr(fold, what), getattr(central.central.world, what)
                self.expect(mine == its, f"I11: {central.name}: its {what} are not the fold of the log")
            for node_id in self.slots:
                said, runs = central.central.world.candidate(node_id).active_runs, list(self._runs_of(node_id))
                self.expect(said == len(runs), f"I12: {central.name}: {node_id} has {said} runs, the log says {runs}")
            balances = {k: v for k, v in central.central.ledger.balances.items() if v}
            self.expect(balances == {k: v for k, v in ledger.items() if v}, f"I11: {central.name}: its ledger differs")

    def _watched(self, client: Any) -> None:
        wanted = [
            stored.seq
            for stored in self.network.core.streams[subjects.EVENTS].messages
            if stored.subject == subjects.job_event(client.job_id) and stored.seq not in self.network.strange.seqs
        ]
        seen = [seq for source, seq in client.seen if source == "event"]
        self.expect(sorted(seen) == wanted, f"I11: who watched {client.job_id} saw {seen}, the log has {wanted}")


@functools.lru_cache(maxsize=1024)
def _speaker(subject: str) -> tuple[str, str]:
    """The node that speaks on a subject, and the verb; both empty where none does."""
    tokens = subject.split(".")
    return (tokens[3], tokens[-1]) if tokens[2] == "node" else ("", "")


def _halts_within_s(job: JobModel) -> float:
    return HALTS_WITHIN_S + (job.serve.drain_s if job.serve else 0)


def _served(event: m.Submitted) -> Served | None:
    if event.job.serve is None:
        return None
    price = event.price_base_units or event.terms.amount_base_units
    return Served(1000 * event.job.serve.seconds, price, event.job.max_attempts, [])


RULES: dict[type, Any] = {
    m.TransactionSigned: Checks._signed,
    m.Funded: Checks._funded,
    m.FundFailed: Checks._fund_failed,
    m.Leased: Checks._leased,
    m.Started: Checks._started,
    m.Checkpointed: Checks._checkpointed,
    m.LeaseLost: Checks._lost,
    m.Completed: Checks._completed,
    m.CheckLeased: Checks._check_leased,
    m.CheckLost: Checks._check_lost,
    m.Checked: Checks._found,
    m.CheckDiffers: Checks._found,
    m.Rejected: Checks._rejected,
    m.CheckGivenUp: Checks._given_up,
    m.TimeUsed: Checks._time_used,
    m.ScaledUp: Checks._scaled_up,
    m.ScaledDown: Checks._scaled_down,
    m.DependenciesMet: Checks._dependencies_met,
    m.DependencyFailed: Checks._dependency_failed,
    m.CancelRequested: Checks._cancelled,
    m.PauseRequested: Checks._steered,
    m.ResumeRequested: Checks._steered,
    m.PriorityChanged: Checks._steered,
    m.DeadlineNear: Checks._near,
    m.Settled: Checks._settled,
    m.Refunded: Checks._refunded,
}
