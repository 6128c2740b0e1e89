"""Bugs in leases."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

from msgspec.structs import replace

import cyxcentral.api
import cyxcentral.nodes
from cyxcentral import (
    jobs,
    room,
    schedule,
    world,
)
from cyxcentral.dispatch import Dispatch
from cyxcentral.runreports import RunReports
from cyxnet import messages as m
from tests.simulation import nodes
from tests.simulation.mutations.planting import anything, planted, rule

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
