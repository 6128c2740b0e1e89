"""What the log says of a job, as the chain of segments that its model came from. Pure."""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import messages as m


class NotVerified(CyxError):
    """It cannot be told whether what was delivered is right."""

    code = "not_verified"


class Part(Struct, frozen=True, kw_only=True):
    """One segment, and what its node signed for its end. attempt: of the job, in which it was trained."""

    segment: m.Segment
    end: m.ArtifactRef
    attempt: int
    node_id: str

    @property
    def from_step(self) -> int:
        return self.segment.start.step if self.segment.start else 0


class History(Struct, kw_only=True):
    """What the log says of a job. parts: in the order of their steps, each begins where the one before it ends.

    completed None: it ended without a model; then they end with the newest state that counts.
    """

    request: m.JobRequest
    completed: m.Completed | None
    parts: list[Part]


def history_of(events: Iterable[tuple[str, dict[str, Any]]], newest: m.Checkpoint | None = None) -> History:
    """Read the events of a job, each its kind and fields. newest: the state that counts of a job without a model.

    States that no later one nor the model came from, since an attempt that was lost had gone further, are left out.
    Raises NotVerified when the log does not tell where one came from.
    """
    request: m.JobRequest | None = None
    leased: dict[int, m.Leased] = {}
    stored: dict[int, list[m.Checkpointed]] = {}
    completed: m.Completed | None = None
    for kind, data in events:
        match kind:
            case "Submitted":
                request = msgspec.convert(data["job"], m.JobRequest)
            case "DependenciesMet":
                assert request is not None, "a job is submitted first"
                if weights := data.get("weights"):
                    request = replace(request, model=replace(request.model, weights=weights))
            case "Leased":
                lease = msgspec.convert(data, m.Leased)
                leased[lease.attempt] = lease
            case "Checkpointed":
                said = msgspec.convert(data, m.Checkpointed)
                stored.setdefault(said.attempt, []).append(said)
            case "Completed":
                completed = msgspec.convert(data, m.Completed)
            case "Rejected":
                completed = None  # what was delivered counts for nothing
    assert request is not None, "a job begins with Submitted"
    if completed:
        attempt, last = completed.attempt, [_part(leased, stored, completed)]
        until = last[0].segment.start
    else:
        attempt, last, until = max(stored, default=0), [], newest
    parts = last
    while until is not None:
        so_far = (said for number in range(attempt, 0, -1) for said in stored.get(number, ()))
        made = next((said for said in so_far if said.checkpoint == until), None)
        if made is None:
            raise NotVerified(f"the log does not tell where the state of step {until.step} came from")
        attempt = made.attempt
        parts.append(_part(leased, stored, made))
        until = parts[-1].segment.start
    return History(request=request, completed=completed, parts=parts[::-1])


def _part(
    leased: dict[int, m.Leased], stored: dict[int, list[m.Checkpointed]], said: m.Checkpointed | m.Completed
) -> Part:
    """The segment that ends with what this event is about: it begins at the state before it in its attempt."""
    own = [each.checkpoint for each in stored.get(said.attempt, ())]
    if isinstance(said, m.Completed):
        before, end, end_step = own, said.model, 0
    else:
        before, end, end_step = own[: own.index(said.checkpoint)], said.checkpoint.state, said.checkpoint.step
    start = before[-1] if before else leased[said.attempt].resume
    return Part(segment=m.Segment(start=start, end_step=end_step), end=end, attempt=said.attempt, node_id=said.node_id)
