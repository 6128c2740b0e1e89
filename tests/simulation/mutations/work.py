"""Bugs in checks of what was trained."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

from msgspec.structs import replace

from cyxcentral import (
    jobfold,
    jobrules,
    jobs,
    schedule,
    segments,
)
from cyxcentral.checking import Checking
from cyxcentral.dispatch import Dispatch
from cyxcentral.runreports import RunReports
from cyxnet import messages as m
from tests.simulation.mutations.leases import nobody_is_preferred
from tests.simulation.mutations.planting import anything, nothing, planted, rule

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
