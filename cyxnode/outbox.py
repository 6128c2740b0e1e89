"""What a run has to say to central, in order: pure.

A report is on its way until central answers it or does not; then it waits for its next try. What is newer waits behind
it, or makes it superfluous.
"""

from msgspec import Struct
from msgspec.structs import replace

from cyxnet.messages import RunCheckpoint, RunCompleted, RunFailed, RunStarted
from cyxnode.events import Report


class Outbox(Struct, frozen=True):
    """The head of `reports` is what central must answer next. tries: how often it went unanswered."""

    reports: tuple[Report, ...] = ()
    in_flight: bool = False
    tries: int = 0
    retry_at_ms: int | None = None


Sent = tuple[Outbox, Report | None]  # the outbox afterwards, and what to send now


def post(box: Outbox, report: Report) -> Sent:
    """Put a report at the end, in place of what it supersedes.

    What is on its way stays the head until it is answered or not; else the head is sent, whatever it waited for.
    """
    on_its_way = box.reports[:1] if box.in_flight else ()
    waiting = box.reports[len(on_its_way) :]
    kept = tuple(earlier for earlier in waiting if not supersedes(report, earlier))
    reports = (*on_its_way, *kept, report)
    if box.in_flight:
        return replace(box, reports=reports), None
    return Outbox(reports, True, box.tries if reports[:1] == box.reports[:1] else 0), reports[0]


def answered(box: Outbox) -> Sent:
    """The head is done with: the next one goes."""
    rest = box.reports[1:]
    return (Outbox(rest, True), rest[0]) if rest else (Outbox(), None)


def unanswered(box: Outbox, retry_at_ms: int) -> Sent:
    """The head is tried again at that time, unless something behind it says more."""
    if any(supersedes(later, box.reports[0]) for later in box.reports[1:]):
        return answered(box)
    return replace(box, in_flight=False, tries=box.tries + 1, retry_at_ms=retry_at_ms), None


def again(box: Outbox) -> Sent:
    """The head's time has come."""
    return replace(box, in_flight=True, retry_at_ms=None), box.reports[0]


def supersedes(later: Report, earlier: Report) -> bool:
    """Whether `earlier` need not be said any more once `later` is to be said."""
    if isinstance(earlier, RunCheckpoint):
        return isinstance(later, (RunCheckpoint, RunCompleted))
    return isinstance(earlier, RunStarted) and isinstance(later, (RunFailed, RunCompleted))
