"""Following a job: live updates and pages of its history become one sequence, without gap or duplicate. Pure.

Live messages are fast and may be lost (a broken link, a central that died between its log and its publish). The pages
come from the log and lose nothing. So live updates are handed on at once, pages are read again from the last place
that a page has confirmed, and whatever a page holds that live did not bring is handed on then.
"""

from collections.abc import Iterable

from cyxnet.messages import JobView, Update

ENDED = frozenset({"completed", "failed", "cancelled"})  # statuses of a job that never change again
SOURCES = ("event", "telemetry")


def no_model(view: JobView) -> str:
    """That a job has no model, and why. Of one that has not ended `error` is about an attempt before: no reason."""
    what = f"job {view.job_id} is {view.status} and has no model"
    if view.status in ENDED:
        return f"{what}: {view.error}" if view.error else what
    return f"{what}; wait for its end{f' (an attempt before: {view.error})' if view.error else ''}"


def by_time(updates: Iterable[Update]) -> list[Update]:
    """Updates of both sources as one list by their times. Those of one source keep the order of their `seq`, whatever
    the clocks of the centrals said that wrote them: who breaks off in the midst goes on after the last he was told.
    """
    latest_ms = dict.fromkeys(SOURCES, 0)
    placed: list[tuple[int, str, int, Update]] = []
    for update in sorted(updates, key=lambda update: update.seq):
        latest_ms[update.source] = max(latest_ms[update.source], update.at_ms)
        placed.append((latest_ms[update.source], update.source, update.seq, update))
    return [update for *_, update in sorted(placed, key=lambda each: each[:3])]


class Merge:
    """Which updates of one job were handed on."""

    def __init__(self) -> None:
        self.confirmed = dict.fromkeys(SOURCES, 0)  # every update up to here was handed on
        self._ahead: set[tuple[str, int]] = set()  # handed on from live, not yet seen in a page

    def live(self, update: Update) -> bool:
        """True when this live update is new and shall be handed on."""
        place = (update.source, update.seq)
        if update.seq <= self.confirmed[update.source] or place in self._ahead:
            return False
        self._ahead.add(place)
        return True

    def page(self, updates: list[Update]) -> list[Update]:
        """The updates of a page that are new, in its order. A page holds everything after `confirmed`."""
        fresh = [update for update in updates if self.live(update)]
        for update in updates:
            self.confirmed[update.source] = max(self.confirmed[update.source], update.seq)
        self._ahead = {(source, seq) for source, seq in self._ahead if seq > self.confirmed[source]}
        return fresh
