"""Bugs planted on purpose, each by replacing a piece of production. The simulation must find every one of them."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from msgspec.structs import replace

import cyxcentral.api
import cyxcentral.nodes
from cyxcentral import (
    audit,
    dependencies,
    dispatch,
    earnings,
    jobfold,
    jobrules,
    jobs,
    money,
    payments,
    room,
    scaling,
    schedule,
    segments,
    world,
)
from cyxcentral.api import Api
from cyxcentral.checking import Checking
from cyxcentral.dispatch import Dispatch
from cyxcentral.eventlog import EventLog
from cyxcentral.payments import Payments
from cyxcentral.pings import Pings
from cyxcentral.runreports import RunReports
from cyxnet import caller, client, commands, escrow, solana
from cyxnet import messages as m
from cyxnet.codec import MSGPACK, decode
from cyxnet.connection import Message
from cyxnet.instructions import SettlementError
from cyxnet.solana import Settlement, TransactionStatus
from cyxnet.subjects import last_token
from tests.simulation import nodes
from tests.simulation.wire import SimBus

Mutation = Callable[[], contextlib.AbstractContextManager[object]]
MUTATIONS: dict[str, Mutation] = {}


def planted(make: Callable[[], Iterator[Any]]) -> Mutation:
    """A generator of patches becomes a mutation of its name: all patches at once."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for patch in make():
                stack.enter_context(patch)
            yield

    MUTATIONS[make.__name__] = plant
    return plant


def rule(event: type, **changes: Any) -> Any:
    """Another row of the table of what may happen to a job."""
    return mock.patch.dict(jobrules.RULES, {event: jobrules.RULES[event]._replace(**changes)})


def anything(*_: Any) -> None:
    """A guard that lets everything pass."""


async def nothing(*_: Any) -> None:
    """What is not done."""


# -- the log ---------------------------------------------------------------------------------------------


@planted
def no_cas() -> Iterator[Any]:
    """Appends do not name the sequence they were decided on."""
    real = SimBus._append

    async def append(bus: SimBus, messages: Any, name: str, right_after: str) -> list[int]:
        return await real(bus, [(subject, payload, None) for subject, payload, _ in messages], name, right_after)

    yield mock.patch.object(SimBus, "_append", append)


@planted
def lease_behind_anything() -> Iterator[Any]:
    """A lease that is sent behind its job's submission is stored whatever the broker stored before it."""
    real = SimBus._append

    async def append(bus: SimBus, messages: Any, name: str, right_after: str) -> list[int]:
        return await real(bus, messages, name, "")

    yield mock.patch.object(SimBus, "_append", append)


@planted
def blind_retry_on_unknown() -> Iterator[Any]:
    """What was decided once is appended until an answer comes, whatever happened meanwhile."""
    real = EventLog.record

    async def record(log: EventLog, subject: str, decide: Callable[[], Any], sequel: Any = None) -> Any:
        return await real(log, subject, functools.cache(decide), sequel)

    yield mock.patch.object(EventLog, "record", record)


@planted
def dedupe_by_msg_id() -> Iterator[Any]:
    """Exactly-once by predictable message ids: the broker drops the second message of a name and says stored."""
    real = SimBus._append

    async def append(bus: SimBus, messages: Any, named: str, right_after: str) -> list[int]:
        subject, payload, expected = messages[0]
        seen = bus._core.__dict__.setdefault("seen_ids", {})
        if ".event.job." not in subject:
            return await real(bus, messages, named, right_after)
        name = (subject, type(decode(m.Record, payload, MSGPACK).event).__name__)
        if name in seen:
            return [seen[name]]
        [seq] = await real(bus, messages, named, right_after)
        seen[name] = seq
        return [seq]

    yield mock.patch.object(SimBus, "_append", append)


@planted
def no_catch_up() -> Iterator[Any]:
    """A central says no from what it happens to have read."""

    async def catch_up(log: EventLog) -> None:
        return None

    yield mock.patch.object(EventLog, "catch_up", catch_up)


@planted
def read_from_lagging_replica() -> Iterator[Any]:
    """The end of the log is asked of a replica that does not have the newest events yet."""
    real = SimBus.last_seq

    async def last_seq(bus: SimBus, stream: str) -> int:
        return max(0, await real(bus, stream) - 3)

    yield mock.patch.object(SimBus, "last_seq", last_seq)


@planted
def quarantined_is_no_predecessor() -> Iterator[Any]:
    """What counts for nothing is not named by what comes after it: a central leaves it out of the chain of hashes."""
    real = world.World.apply

    def apply(found: world.World, seq: int, subject: str, record: Any, sha256: bytes = b"") -> str | None:
        before = found.last_sha256.get(subject, b"")
        why = real(found, seq, subject, record, sha256)
        if why is not None:
            found.last_sha256[subject] = before
        return why

    yield mock.patch.object(world.World, "apply", apply)


@planted
def what_cannot_happen_happens() -> Iterator[Any]:
    """Whatever is in the log is taken for true."""
    yield mock.patch.object(world, "jobrules", SimpleNamespace(illegal=anything))


# -- leases ----------------------------------------------------------------------------------------------


@planted
def no_fence() -> Iterator[Any]:
    """Whoever was ever given a job may report on it."""

    def holds(dispatch: Dispatch, node_id: str, session: str, job_id: str, attempt: int) -> bool:
        job = dispatch._world.jobs.get(job_id)
        return job is not None and job.current is not None

    yield mock.patch.object(Dispatch, "holds", holds)
    for event in (m.Started, m.Checkpointed, m.LeaseLost, m.Completed):
        yield rule(event, guard=anything)


@planted
def attempt_reused() -> Iterator[Any]:
    """The second lease of a job has the number of the first."""
    real = Dispatch._lease

    def lease(dispatch: Dispatch, choice: Any) -> m.Leased | None:
        event = real(dispatch, choice)
        return event and replace(event, attempt=max(1, event.attempt - 1))

    yield mock.patch.object(Dispatch, "_lease", lease)
    yield rule(m.Leased, guard=anything)


@planted
def lease_by_wall_clock() -> Iterator[Any]:
    """Silence is measured on the clock that people set."""
    real = Dispatch.__init__

    def init(dispatch: Dispatch, *arguments: Any, **named: Any) -> None:
        real(dispatch, *arguments, **named)
        dispatch._machine = replace(dispatch._machine, monotonic_ms=dispatch._machine.wall_ms)

    yield mock.patch.object(Dispatch, "__init__", init)


@planted
def ban_undone_by_registration() -> Iterator[Any]:
    """A banned node is as good as new when it registers again."""
    real = cyxcentral.nodes._registered

    def registered(node: Any, event: m.NodeRegistered, at_ms: int) -> Any:
        return replace(real(node, event, at_ms), banned_until_ms=0)

    yield mock.patch.object(cyxcentral.nodes, "_registered", registered)


@planted
def old_session_returns() -> Iterator[Any]:
    """A registration that comes late replaces the session that came after it."""
    real = cyxcentral.nodes.illegal

    def illegal(node: Any, event: m.NodeEvent) -> str | None:
        return real(node, replace(event, began_ms=0) if isinstance(event, m.NodeRegistered) else event)

    yield mock.patch.object(cyxcentral.nodes, "illegal", illegal)


def nobody_is_preferred() -> Iterator[Any]:
    """Part of a bug: whatever a node did with the job before, it is looked at in the order of the scores."""
    yield mock.patch.object(schedule, "preference", lambda job, candidate, weights: candidate.node.node_id)
    yield mock.patch.object(
        room.Room,
        "ranked",
        lambda found, job: (found.candidates[node_id] for node_id in found._by_score(job, (False, True))),
    )


@planted
def memory_forgotten() -> Iterator[Any]:
    """A job goes back to the node on which it ran out of memory."""
    yield mock.patch.object(schedule, "ran_out_on", lambda job, node_id: False)
    yield from nobody_is_preferred()


@planted
def strangers_get_anything() -> Iterator[Any]:
    """Who has just made himself a key gets what those get who have proved themselves."""
    for module in (schedule, world):
        yield mock.patch.object(module, "limit_of", lambda node, unproven: 0)


@planted
def strangers_get_much_at_a_time() -> Iterator[Any]:
    """A node that is not proven works on as many jobs as it likes, if none of them is worth much; it is asked first."""
    yield mock.patch.object(schedule.Candidate, "max_runs", property(lambda found: found.node.max_runs))
    yield mock.patch.object(Dispatch, "_one_too_many", lambda dispatch, job: False)
    refusal, ranked = schedule.refusal, room.Room.ranked

    def ready(job: jobs.Job, found: Any) -> str | None:
        return refusal(job, replace(found, active_runs=found.active_runs if found.active_runs > 1 else 0))

    def strangers_first(found: room.Room, job: jobs.Job) -> Any:
        return iter(sorted(ranked(found, job), key=lambda each: each.node.node_id, reverse=True))

    yield mock.patch.object(schedule, "refusal", ready)
    yield mock.patch.object(room.Room, "ranked", strangers_first)


@planted
def draining_node_leased() -> Iterator[Any]:
    """What an operator wants of his node does not reach the scheduler."""
    real = cyxcentral.nodes.evolve

    def evolve(node: Any, event: m.NodeEvent, *arguments: Any) -> Any:
        after = real(node, event, *arguments)
        return replace(after, draining=False) if isinstance(event, m.NodeDraining) else after

    yield mock.patch.object(cyxcentral.nodes, "evolve", evolve)


@planted
def resume_from_unstored_checkpoint() -> Iterator[Any]:
    """A node says that it stored its state before it did, and central believes it."""
    real = nodes.Run._upload

    async def upload(run: nodes.Run, content: bytes) -> m.ArtifactRef:
        if content.startswith(b"model "):
            return await real(run, content)
        return m.ArtifactRef(sha256=nodes.digest(content), size=len(content))

    async def believe(reports: RunReports, ref: m.ArtifactRef, node_id: str) -> None:
        return None

    yield mock.patch.object(nodes.Run, "_upload", upload)
    yield mock.patch.object(RunReports, "_check_stored", believe)


@planted
def bad_checkpoint_used_again() -> Iterator[Any]:
    """A state that two nodes could not go on from is given to the next one too."""

    def usable(job: jobs.Job) -> Any:
        return [(attempt.checkpoint, attempt.resume) for attempt in job.attempts]

    yield mock.patch.object(jobs, "usable", usable)


# -- commands ----------------------------------------------------------------------------------------------


@planted
def unsigned_command_taken() -> Iterator[Any]:
    """A node takes commands that nobody signed, as an older one does."""
    real = commands.Guard.opened

    def opened(guard: commands.Guard, said: Any) -> Any:
        return real(guard, said) if isinstance(said, m.SignedCommand) else said

    yield mock.patch.object(commands.Guard, "opened", opened)


@planted
def old_command_taken() -> Iterator[Any]:
    """A node does not remember the place of what it was told last."""
    yield mock.patch.object(commands.Guard, "took", anything)


@planted
def command_for_any_run() -> Iterator[Any]:
    """What is signed does not say what it is about."""
    real = m.command_bytes

    def command_bytes(said: m.SignedCommand, session: str, kind: str, job_id: str, attempt: int) -> bytes:
        return real(replace(said, payload=b""), session, "", "", 0)

    yield mock.patch.object(m, "command_bytes", command_bytes)


@planted
def any_way_leads_to_the_root() -> Iterator[Any]:
    """Of a signature that many commands share it is not asked whether this one is among them."""
    real = commands.Guard._signed

    def signed(guard: commands.Guard, said: m.SignedCommand, command: bytes) -> bool:
        return bool(said.path) or real(guard, said, command)

    yield mock.patch.object(commands.Guard, "_signed", signed)


# -- what owners want ------------------------------------------------------------------------------------


@planted
def early_pause_refused() -> Iterator[Any]:
    """A pause is refused while the deposit is not final, and granted to a try of it that comes later."""
    yield rule(m.PauseRequested, guard=lambda job, event: None if job.funded else "not yet")


@planted
def paused_job_is_given_out() -> Iterator[Any]:
    """A job whose owner paused it while it waited for a node gets one."""
    waits, idle = jobs.waits, jobfold._idle
    lease = jobrules.RULES[m.Leased].guard
    yield mock.patch.object(jobs, "waits", lambda job: waits(replace(job, pause_requested=False)))
    yield mock.patch.object(jobfold, "_idle", lambda job: idle(replace(job, pause_requested=False)))
    yield rule(m.Leased, guard=lambda job, event: lease(replace(job, pause_requested=False), event))


@planted
def overdue_runs_go_on() -> Iterator[Any]:
    """Who was told to end keeps the lease, however long nothing comes of it."""
    yield mock.patch.object(dispatch, "PAUSE_GRACE_MS", 10**9)


@planted
def no_time_to_store() -> Iterator[Any]:
    """Who is told to store what there is loses the lease before it can."""
    yield mock.patch.object(dispatch, "PAUSE_GRACE_MS", 0)


@planted
def pause_costs_a_try() -> Iterator[Any]:
    """A run that ended because its owner paused it is one of the tries that he paid for."""
    yield mock.patch.object(jobs, "UNCOUNTED", (jobs.REFUSED, jobs.NODE_STOPPED))


@planted
def one_try_too_many() -> Iterator[Any]:
    """A job is tried once more than its owner wanted."""
    real = jobs.tried
    for module in (jobs, jobfold):
        yield mock.patch.object(module, "tried", lambda job: max(0, real(job) - 1))


@planted
def priority_forgotten() -> Iterator[Any]:
    """The owner is told that his job has another priority, and it keeps the one it had."""
    yield mock.patch.dict(jobfold.AFTER, {m.PriorityChanged: lambda job, event, at_ms: job})


@planted
def no_op_forgotten() -> Iterator[Any]:
    """A wish that changes nothing is not written down."""

    async def resume(api: Api, caller: str, ask: m.JobRef) -> m.JobView:
        event = m.ResumeRequested(caller=caller, request_id=ask.request_id)
        return await api._steer(caller, ask.job_id, event, lambda job: not job.pause_requested)

    yield mock.patch.object(Api, "_resume", resume)


@planted
def wish_carried_out_twice() -> Iterator[Any]:
    """A late repetition of what an owner asked for is taken for a new wish."""
    yield mock.patch.object(jobs, "granted", lambda job, request_id: False)


@planted
def cancel_after_completion() -> Iterator[Any]:
    """A client may cancel what is delivered and not yet paid."""
    states = (*jobrules.RULES[m.CancelRequested].states, "settling")
    yield rule(m.CancelRequested, states=states)


@planted
def drop_cancel_wanted() -> Iterator[Any]:
    """A cancel that comes before the deposit is final is forgotten when it is."""
    real = jobfold.AFTER[m.Funded]

    def funded(job: jobs.Job, event: m.Funded, at_ms: int) -> jobs.Job:
        return real(replace(job, outcome=None), event, at_ms)

    yield mock.patch.dict(jobfold.AFTER, {m.Funded: funded})


@planted
def another_deposit_at_once() -> Iterator[Any]:
    """A client that is told that its deposit has expired signs another, whatever the chain says of the first."""

    async def never(self: client.AsyncClient, job_id: str, payment: m.Payment) -> None:
        pass

    yield mock.patch.object(client.AsyncClient, "_refuse_alive", never)


@planted
def no_for_a_clock() -> Iterator[Any]:
    """A central that finds a deadline too near by its own clock says a plain no; another one may have said yes."""
    real = escrow.with_signed_deadline

    def with_deadline(terms: Any, transaction: bytes, now_s: int) -> Any:
        try:
            return real(terms, transaction, now_s)
        except SettlementError:
            return terms

    yield mock.patch.object(cyxcentral.api, "with_signed_deadline", with_deadline)


@planted
def random_job_id() -> Iterator[Any]:
    """A submit that is tried again is another job."""
    real, count = client.AsyncClient.prepare, iter(range(10**9))

    async def prepare(caller: Any, job: Any, data_path: Any = None, job_id: str | None = None) -> Any:
        return await real(caller, job, data_path, f"{job_id}-{next(count)}")

    async def place(caller: Any, prepared: Any, on_upload: Any = None) -> Any:
        prepared = await caller.prepare(prepared.job, prepared.data_path, prepared.job_id)
        return await place_once(caller, prepared, on_upload)

    place_once = client.AsyncClient.place
    yield mock.patch.object(client.AsyncClient, "prepare", prepare)
    yield mock.patch.object(client.AsyncClient, "place", place)
    yield mock.patch.object(caller, "RETRY_DELAYS_S", ())


# -- money -----------------------------------------------------------------------------------------------


@planted
def early_resign() -> Iterator[Any]:
    """A transaction that is not seen on the chain is taken for dead."""
    real = Settlement.status

    async def status(settlement: Settlement, signature: str, last_valid_block_height: int) -> TransactionStatus:
        return await real(settlement, signature, last_valid_block_height - 1000)

    yield mock.patch.object(Settlement, "status", status)


@planted
def two_views() -> Iterator[Any]:
    """Dead by the height of one machine and the silence of another."""

    async def status_at(settlement: Any, rpc: Any, signature: str, last_valid: int) -> TransactionStatus:
        _, landed = await settlement._landing(rpc, signature)
        if landed is not None:
            return landed
        epoch = (await settlement._ask("get_epoch_info", client=rpc)).value
        return TransactionStatus(state="dead" if epoch.block_height > last_valid else "pending")

    yield mock.patch.object(Settlement, "_status_at", status_at)
    yield mock.patch.object(payments, "RESEND_AFTER_S", (0.1,))  # and asks often,
    yield mock.patch.object(payments, "OTHERS_FIRST_S", 0.0)  # as every central does


@planted
def settle_on_processed() -> Iterator[Any]:
    """Seen once on the chain is paid."""
    real = solana._landed
    yield mock.patch.object(solana, "_landed", lambda value: replace(real(value), finalized=True))


@planted
def no_write_ahead() -> Iterator[Any]:
    """The settlement is sent as soon as it is signed."""
    real = Settlement.settle_transaction

    async def settle(settlement: Settlement, *arguments: Any) -> m.SignedTransaction:
        signed = await real(settlement, *arguments)
        await settlement.send(signed.transaction)
        return signed

    yield mock.patch.object(Settlement, "settle_transaction", settle)


@planted
def no_redrive() -> Iterator[Any]:
    """A central that starts does not go on with the payments that the last one left."""
    yield mock.patch.object(Payments, "resume", lambda payments: None)


@planted
def fee_rounded_up() -> Iterator[Any]:
    """The platform's share is rounded in its own favour."""

    def split(pay_base_units: int, fee_basis_points: int) -> tuple[int, int]:
        fee = -(-pay_base_units * fee_basis_points // 10_000)
        return pay_base_units - fee, fee

    for module in (escrow, solana, money):
        yield mock.patch.object(module, "split", split)


@planted
def split_not_total() -> Iterator[Any]:
    """The log says of a refund that a base unit less was paid back."""
    real = money.divide

    def divide(*arguments: Any) -> money.Shares:
        shares = real(*arguments)
        return replace(shares, client_base_units=max(0, shares.client_base_units - 1))

    yield mock.patch.object(money, "divide", divide)


@planted
def pay_for_unstored_steps() -> Iterator[Any]:
    """Who lost a run is paid as if its steps had been stored."""
    real = earnings.earned

    def earned(job: jobs.Job) -> tuple[m.Payee, ...]:
        if job.completed or not job.attempts:
            return real(job)
        half = m.Payee(wallet=job.attempts[-1].wallet, pay_base_units=job.terms.amount_base_units // 2 + 1)
        return (half,)

    yield mock.patch.object(earnings, "earned", earned)


@planted
def no_deadline_is_kept() -> Iterator[Any]:
    """A job goes on, or waits, whatever the date is."""
    yield mock.patch.object(jobrules, "deadline_due", lambda job, now_ms: None)


@planted
def deadline_kept_without_margin() -> Iterator[Any]:
    """A job is settled when its deadline comes, and not before."""
    yield mock.patch.object(jobs, "DEADLINE_MARGIN_S", 0)


@planted
def one_look_is_believed() -> Iterator[Any]:
    """What one machine of the chain does not see yet freezes payouts."""
    yield mock.patch.object(audit, "LOOKS", 1)


@planted
def no_refund_is_found() -> Iterator[Any]:
    """A missing escrow is asked for, for ever."""

    async def none(*_: Any) -> None:
        return None

    yield mock.patch.object(Settlement, "refund_of", none)


@planted
def a_missing_escrow_was_refunded() -> Iterator[Any]:
    """What one machine of the chain does not see is believed to be gone."""

    async def at_once(_: Any, terms: m.EscrowTerms, deposit_signature: str) -> str:
        return deposit_signature

    yield mock.patch.object(Settlement, "refund_of", at_once)


# -- checks ----------------------------------------------------------------------------------------------


@planted
def paid_before_checked() -> Iterator[Any]:
    """What is delivered is settled at once, and checked beside that."""
    real = jobfold.AFTER[m.Completed]

    def delivered(job: jobs.Job, event: m.Completed, at_ms: int) -> jobs.Job:
        return real(job, replace(event, segment=None), at_ms)

    yield mock.patch.dict(jobfold.AFTER, {m.Completed: delivered})


@planted
def one_run_rejects() -> Iterator[Any]:
    """What one checker found is believed."""
    real = jobrules.verdict

    def verdict(job: jobs.Job, finding: m.Finding) -> Any:
        found = real(job, finding)
        if not isinstance(found, m.CheckDiffers) or job.check is None:
            return found
        segment = job.check.segment
        node_id = job.attempts[segment.attempt - 1].node_id
        return m.Rejected(attempt=segment.attempt, node_id=node_id, segment=segment, findings=[finding])

    yield mock.patch.object(jobrules, "verdict", verdict)


@planted
def rejected_states_used_again() -> Iterator[Any]:
    """The job goes on from what the node stored whose work was found false."""
    real = jobfold.AFTER[m.Rejected]

    def rejected(job: jobs.Job, event: m.Rejected, at_ms: int) -> jobs.Job:
        after = real(job, event, at_ms)
        last = replace(after.attempts[-1], lost=m.LeaseLost(attempt=after.attempt, code="died", reason=""))
        return replace(after, attempts=tuple(replace(each, rejected=None) for each in (*after.attempts[:-1], last)))

    yield mock.patch.dict(jobfold.AFTER, {m.Rejected: rejected})


@planted
def rejected_node_gets_it_again() -> Iterator[Any]:
    """Nobody remembers whose work was rejected, and nobody is banned for it."""
    yield mock.patch.object(schedule, "wronged", lambda job, node_id: False)
    yield mock.patch.object(Dispatch, "_ban_suspects", nothing)
    yield from nobody_is_preferred()


@planted
def nothing_is_checked() -> Iterator[Any]:
    """What is delivered is paid as on a network without checkers."""
    yield mock.patch.object(segments, "completion", lambda policy, job, event, *_: event)


@planted
def anybody_checks() -> Iterator[Any]:
    """A check goes to whoever is free."""
    real = Checking.due

    def due(checking: Checking, job_id: str) -> Any:
        policy = checking.policy
        checking.policy = replace(policy, checkers=frozenset(checking._world.nodes))
        try:
            return real(checking, job_id)
        finally:
            checking.policy = policy

    yield mock.patch.object(Checking, "due", due)


@planted
def old_check_still_counts() -> Iterator[Any]:
    """Whoever was ever given a check may say what it found, or that it failed."""
    real = Dispatch.holds

    def holds(dispatch: Dispatch, node_id: str, session: str, job_id: str, attempt: int) -> bool:
        job = dispatch._world.jobs.get(job_id)
        checked = job is not None and job.check is not None
        given = checked and m.FIRST_CHECK <= attempt < m.FIRST_CHECK + job.checks
        return given or real(dispatch, node_id, session, job_id, attempt)

    yield mock.patch.object(Dispatch, "holds", holds)
    yield mock.patch.object(jobrules, "_found", anything)
    yield mock.patch.object(RunReports, "_check_is_over", staticmethod(lambda said, job: False))
    yield rule(m.CheckLost, guard=anything)


# -- replicas --------------------------------------------------------------------------------------------


@planted
def time_before_ready_is_paid() -> Iterator[Any]:
    """A replica is paid from its lease on, not from when it answers."""
    real = earnings._earned_by_time

    def earned(job: jobs.Job) -> tuple[m.Payee, ...]:
        return real(replace(job, attempts=tuple(replace(a, started_at_ms=a.leased_at_ms) for a in job.attempts)))

    yield mock.patch.object(earnings, "_earned_by_time", earned)


@planted
def more_time_than_bought_is_paid() -> Iterator[Any]:
    """Whatever a replica served is paid, what came after the time that was bought too."""

    def earned(job: jobs.Job) -> tuple[m.Payee, ...]:
        pay: dict[str, int] = {}
        for attempt in job.attempts:
            more = job.terms.amount_base_units * jobs.ready_ms(attempt, 0) // jobs.bought_ms(job)
            pay[attempt.wallet] = pay.get(attempt.wallet, 0) + more
        return tuple(m.Payee(wallet=wallet, pay_base_units=units) for wallet, units in pay.items() if units)

    yield mock.patch.object(earnings, "_earned_by_time", earned)


@planted
def tries_never_renewed() -> Iterator[Any]:
    """A replica that was ready and lost its node has failed once, however long it served."""
    yield mock.patch.object(jobs, "_has_worked", lambda attempt: False)


@planted
def replicas_take_no_slot() -> Iterator[Any]:
    """What serves on a node is not among the runs that it has."""
    real = world.World.candidate

    def candidate(found: world.World, node_id: str, now_ms: int = 0) -> schedule.Candidate:
        trains = sum(not job.job.serve for job in found.runs_of(node_id))
        return replace(real(found, node_id, now_ms), active_runs=trains)

    yield mock.patch.object(world.World, "candidate", candidate)


@planted
def replicas_keep_their_slot() -> Iterator[Any]:
    """A node's slot is not given back when the time of the replica there is used up."""
    real = world.World.candidate

    def candidate(found: world.World, node_id: str, now_ms: int = 0) -> schedule.Candidate:
        ended = [job for job in found.jobs.values() if job.job.serve and job.outcome == "completed"]
        kept = sum(job.attempts[-1].node_id == node_id for job in ended)
        known = real(found, node_id, now_ms)
        return replace(known, active_runs=known.active_runs + kept)

    yield mock.patch.object(world.World, "candidate", candidate)


@planted
def nobody_takes_the_place() -> Iterator[Any]:
    """A deployment whose replicas have ended calls nobody, however many its client wants at the least."""
    real = scaling._terms
    yield mock.patch.object(scaling, "_terms", lambda replicas: replace(real(replicas), least=0))


@planted
def replica_serves_for_ever() -> Iterator[Any]:
    """Nobody looks how long a replica has served."""
    yield mock.patch.object(jobrules, "time_used", lambda job, now_ms: None)


@planted
def more_are_called_than_wanted() -> Iterator[Any]:
    """The load alone says how many replicas work, and not what the client wants at the most."""
    real = scaling.load

    def load(*known: Any) -> scaling.Load:
        found = real(*known)
        return found if found.wanted is None else found._replace(wanted=found.in_flight)

    yield mock.patch.object(scaling, "load", load)


@planted
def who_stands_by_is_given_out() -> Iterator[Any]:
    """A replica that waits to be called takes its place in the line like any other."""
    idle, waits = jobfold._idle, jobs.waits
    guarded = jobrules.Rule(
        ("funding", "queued"), lambda job, event: jobrules._lease(replace(job, standby=False), event)
    )
    yield mock.patch.object(jobrules, "RULES", jobrules.RULES | {m.Leased: guarded})
    yield mock.patch.object(jobfold, "_idle", lambda job: idle(replace(job, standby=False)))
    yield mock.patch.object(jobs, "waits", lambda job: waits(replace(job, standby=False)))


# -- whether replicas answer -----------------------------------------------------------------------------


@planted
def old_attempts_answer() -> Iterator[Any]:
    """An answer to what an attempt of a job was asked counts for the one that is there now."""
    known: dict[str, str] = {}  # token -> job id
    ask, take, look = Pings._ask, Pings._take, Pings.look
    looked_ms: dict[Pings, float] = {}

    def asks(pings: Pings, replica: Any, now_ms: float) -> None:
        ask(pings, replica, now_ms)
        known[pings._asked[replica][-1][1]] = replica[1]

    def looks(pings: Pings, ready: Any, now_ms: float) -> None:
        looked_ms[pings] = now_ms
        look(pings, ready, now_ms)

    def takes(pings: Pings, message: Message) -> None:
        take(pings, message)
        for replica in pings._answered_ms:
            if b"Cyx-Status: 200" in message.block and replica[1] == known.get(last_token(message.subject)):
                pings._answered_ms[replica] = looked_ms[pings]

    for name, changed in (("_ask", asks), ("_take", takes), ("look", looks)):
        yield mock.patch.object(Pings, name, changed)


@planted
def any_answer_counts() -> Iterator[Any]:
    """Whatever comes where an answer is awaited is one: also that nobody is there, or that it is not ready."""

    def take(pings: Pings, message: Message) -> None:
        if known := pings._by_token.get(last_token(message.subject)):
            pings._answered_ms[known[0]] = known[1]

    yield mock.patch.object(Pings, "_take", take)


@planted
def only_the_newest_question_counts() -> Iterator[Any]:
    """A replica whose answers take longer than a heartbeat has never answered."""
    ask = Pings._ask

    def asks(pings: Pings, replica: Any, now_ms: float) -> None:
        for _, token in pings._asked[replica]:
            del pings._by_token[token]
        pings._asked[replica].clear()
        ask(pings, replica, now_ms)

    yield mock.patch.object(Pings, "_ask", asks)


@planted
def silence_goes_on_after_the_node() -> Iterator[Any]:
    """A replica is silent for as long as it has answered nothing, whether its node is there or not."""
    real = Dispatch._stuck

    def stuck(dispatch: Dispatch, job: jobs.Job, number: int, now_ms: float) -> Any:
        heard_ms, dispatch._heard_ms = dispatch._heard_ms, dict.fromkeys(dispatch._heard_ms, now_ms)
        try:
            return real(dispatch, job, number, now_ms)
        finally:
            dispatch._heard_ms = heard_ms

    yield mock.patch.object(Dispatch, "_stuck", stuck)


@planted
def silence_ends_no_lease() -> Iterator[Any]:
    """Replicas are asked, and it does not matter what they answer."""
    yield mock.patch.object(Pings, "silent_ms", lambda *_: 0.0)


# -- jobs that come after others -----------------------------------------------------------------------------


def _untold(*changes: Any) -> Iterator[Any]:
    """What decides about dependencies, changed; and nobody who reads the log finds that false."""
    for name, changed in changes:
        yield mock.patch.object(dependencies, name, changed)
    yield mock.patch.object(dependencies, "false", anything)


@planted
def waits_for_nobody() -> Iterator[Any]:
    """A job that comes after others is given to a node at once."""
    waits, guard = jobs.waits, jobrules.RULES[m.Leased].guard
    yield mock.patch.object(jobs, "waits", lambda job: waits(replace(job, awaiting=False, status=_queued(job))))
    yield rule(
        m.Leased,
        states=("funding", "waiting", "queued"),
        guard=lambda job, event: guard(replace(job, awaiting=False), event),
    )


def _queued(job: jobs.Job) -> Any:
    return "queued" if job.status == "waiting" else job.status


@planted
def the_first_that_is_completed_is_enough() -> Iterator[Any]:
    """Of several jobs that one comes after, it waits for one."""
    real = dependencies.due

    def due(job: jobs.Job, known: Any) -> Any:
        done = any(known[after.job_id].outcome == "completed" for after in job.job.after)
        event = real(job, known)
        return m.DependenciesMet() if done and event is None and job.awaiting and not job.outcome else event

    yield from _untold(("due", due))


@planted
def whatever_became_of_the_others() -> Iterator[Any]:
    """A job begins after those before it, whether they came to anything or not."""
    yield from _untold(("too_little", anything))


@planted
def nobody_asks_how_good_they_are() -> Iterator[Any]:
    """The metric that a model is to have had is not looked at."""
    real = dependencies.too_little
    yield from _untold(("too_little", lambda after, other: real(replace(after, metric=None), other)))


@planted
def the_model_of_the_others_is_forgotten() -> Iterator[Any]:
    """A job that is to begin with the model of another begins with its own weights."""
    real = dependencies.due

    def due(job: jobs.Job, known: Any) -> Any:
        event = real(job, known)
        return m.DependenciesMet() if isinstance(event, m.DependenciesMet) else event

    yield from _untold(("due", due))


@planted
def delivered_is_as_good_as_checked() -> Iterator[Any]:
    """A job begins with a model that is still being checked."""
    real = dependencies.due

    def due(job: jobs.Job, known: Any) -> Any:
        before = {after.job_id: known[after.job_id] for after in job.job.after}
        done = {job_id: replace(each, outcome="completed") for job_id, each in before.items() if each.check}
        return real(job, before | done)

    yield from _untold(("due", due))


@planted
def a_failure_cancels_nobody() -> Iterator[Any]:
    """What comes after a job that failed waits for ever."""
    real = dependencies.due

    def due(job: jobs.Job, known: Any) -> Any:
        event = real(job, known)
        return None if isinstance(event, m.DependencyFailed) else event

    yield mock.patch.object(dependencies, "due", due)


@planted
def who_fails_now_has_failed() -> Iterator[Any]:
    """A job is cancelled as soon as a try of one before it is lost."""
    real = dependencies.due

    def due(job: jobs.Job, known: Any) -> Any:
        lost = [after.job_id for after in job.job.after if known[after.job_id].error]
        if lost and job.awaiting and not job.outcome:
            return m.DependencyFailed(job_id=lost[0], reason="it failed")
        return real(job, known)

    yield from _untold(("due", due))


@planted
def nobody_lets_them_begin() -> Iterator[Any]:
    """When the jobs before it are completed, nobody writes it down."""
    yield mock.patch.object(Dispatch, "_go_on", nothing)
