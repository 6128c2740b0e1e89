"""Bugs in what the owners of jobs want, and in jobs that come after others."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

from msgspec.structs import replace

import cyxcentral.api
import cyxcentral.nodes
from cyxcentral import (
    dependencies,
    dispatch,
    jobfold,
    jobrules,
    jobs,
)
from cyxcentral.api import Api
from cyxcentral.dispatch import Dispatch
from cyxnet import caller, client, escrow
from cyxnet import messages as m
from cyxnet.instructions import SettlementError
from tests.simulation.mutations.planting import anything, nothing, planted, rule

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


# -- jobs that come after others -----------------------------------------------------------------------------


def _untold(*changes: Any) -> Iterator[Any]:
    """What decides about dependencies, changed; and nobody who reads the log finds that false."""
    for name, changed in changes:
        yield mock.patch.object(dependencies, name, changed)
    yield mock.patch.object(dependencies, "why_untrue", anything)


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
def the_worst_is_best() -> Iterator[Any]:
    """Of several jobs, one begins with the worst model."""
    real = dependencies._worth
    yield from _untold(("_worth", lambda job, done: -real(job, done)))


@planted
def the_best_so_far_will_do() -> Iterator[Any]:
    """A job begins with the best model that there is, while others are at work that could be better."""
    real = dependencies._over

    def over(after: m.After, known: Any) -> bool:
        return real(after, known) or (after.model and after.job_id in known)

    yield from _untold(("_over", over))


@planted
def all_are_to_have_a_model() -> Iterator[Any]:
    """A job that begins with the best model of several is cancelled when one of them fails."""
    real = dependencies.never

    def never(afters: Any, known: Any) -> Any:
        return real([replace(after, model=False) for after in afters], known)

    yield from _untold(("never", never))


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
    yield mock.patch.object(Dispatch, "_decide_dependents", nothing)
