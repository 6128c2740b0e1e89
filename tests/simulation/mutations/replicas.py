"""Bugs in replicas: how many work, and whether they answer."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

from msgspec.structs import replace

from cyxcentral import (
    earnings,
    jobfold,
    jobrules,
    jobs,
    scaling,
    schedule,
    world,
)
from cyxcentral.dispatch import Dispatch
from cyxcentral.pings import Pings
from cyxnet import messages as m
from cyxnet.connection import Message
from cyxnet.subjects import last_token
from tests.simulation.mutations.planting import planted

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
