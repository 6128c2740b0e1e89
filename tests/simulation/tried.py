"""What must hold of a job that trains: a model of its tries, made of its events alone.

A job is not given up while a try is left, and not tried again when none is. What somebody asked for, a node that
refused, and a state that cannot be used are no tries.
"""

from msgspec import Struct

from cyxnet import messages as m

NO_TRY = ("refused", "node_stopped", "paused")
MAX_LEASES = 100


class Tried(Struct):
    """ends: why no other attempt may follow. unsure: what a rejection makes of the tries is not told here."""

    max_attempts: int
    tries: int = 0
    leases: int = 0
    broken: list[tuple[str, str]] = []  # nodes on which it failed by its own fault, as they say, and how
    ends: str = ""
    unsure: bool = False

    def leased(self) -> str | None:
        self.leases += 1
        return f"it is leased again, and ends: {self.ends}" if self.ends and not self.unsure else None

    def lost(self, event: m.LeaseLost, node_id: str) -> None:
        if event.code not in NO_TRY and event.discards is None:
            self.tries += 1
        elsewhere = any(code == event.code and other != node_id for other, code in self.broken)
        if event.deterministic:
            self.broken = [*self.broken, (node_id, event.code)]
        if event.deterministic and (event.sole or elsewhere):
            self.ends = "it is at fault"
        elif self.tries >= self.max_attempts or self.leases >= MAX_LEASES:
            self.ends = "it was tried often enough"

    def given_up(self) -> str | None:
        """It is settled, was not delivered, and nobody cancelled it."""
        if self.ends or self.unsure:
            return None
        return f"it is given up after {self.tries} of {self.max_attempts} tries"
