"""What goes wrong, how often, and until when. Every fault that is injected is counted."""

from collections import Counter
from random import Random

from tests.simulation.loop import Scheduler

FIRST_WALL_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEKS_MS = int(28.6 * DAY_MS)  # that pass at once in some seeds, shortly before central is to end what it has
FAR_CLOCK_MS = 25 * DAY_MS  # ahead: a deadline that another central has just proposed is too near there
HOURS_PER_S = 0.5  # from then on: the day before the deadline is most of a minute
CHAIN_LONGER_S = 12.0  # the chain is bad for longer: what it is asked for late must see it too
OF_CHAIN = ("dropped", "late", "rpc_error")


class Faults:
    """The dice of one seed. Each rate is drawn once, so that seeds differ in what they are bad at."""

    def __init__(self, dice: Random, scheduler: Scheduler, until_s: float):
        self._dice, self._random = dice, dice.random
        self._scheduler = scheduler
        self.until_s = until_s
        self.chain_until_s = until_s + CHAIN_LONGER_S
        self.counts: Counter[str] = Counter()
        self.lost = dice.choice([0.0, 0.03, 0.12])  # of messages between processes
        self.doubled = dice.choice([0.0, 0.05, 0.2])
        self.slow = dice.choice([0.01, 0.05, 0.1])
        self.unknown = dice.choice([0.02, 0.08, 0.25])  # of appends: no answer comes
        self.unreadable = dice.choice([0.0, 0.03, 0.1])  # of reads of the log
        self.crash_at_io = dice.choice([0.0, 0.0025, 0.012])  # of central, at each of its waits
        self.stalled = dice.choice([0.0, 0.02, 0.08])  # of deliveries to a follower
        self.dropped = dice.choice([0.0, 0.1, 0.4, 0.8, 0.9])  # of transactions sent
        self.late = dice.choice([0.05, 0.1, 0.4])  # of those that land
        self.rpc_error = dice.choice([0.0, 0.04, 0.13])
        self.rpc_lag_blocks = dice.choice([0, 3, 30, 30])
        self.run_dies = dice.choice([0.0, 0.1, 0.3])  # of training runs
        self.run_hangs = dice.choice([0.0, 0.0, 0.05])
        self.run_is_too_large = dice.choice([0.0, 0.0, 0.2])  # for the memory of its node
        self.bad_state = dice.choice([0.0, 0.2, 0.6])  # of checkpoints, whenever the first run goes on from them
        self._states: dict[str, bool] = {}
        self._refunds = Random(repr(dice.getstate()))  # dice of its own: what else a seed does stays as it was
        self.refunded = self._refunds.choice([0.0, 0.0, 0.3])  # of escrows: their deadline comes, and somebody refunds
        self.weeks_pass_at_s: float | None = None  # then the date alone comes near the deadlines, and not by the dice
        if self._refunds.random() < 0.15:
            self.weeks_pass_at_s, self.refunded = self._refunds.uniform(6.0, 10.0), 0.0
        self.far_clock = self._refunds.choice([0.0, 0.0, 0.5])  # of lives of centrals: weeks ahead, not an hour
        self.chain_late_ms = int(self._refunds.uniform(-HOUR_MS / 2, HOUR_MS / 2))  # the clock that a deadline is by
        self._halts = Random(f"halts {self.chain_late_ms}")  # of its own too
        self.halt_ignored = self._halts.choice([0.0, 0.0, 0.5])  # of runs that are told to store their state and end

    @property
    def active(self) -> bool:
        return self._scheduler.now_s < self.until_s

    @property
    def chain_active(self) -> bool:
        return self._scheduler.now_s < self.chain_until_s

    def hit(self, kind: str) -> bool:
        """Whether the fault named by one of the rates happens here and now."""
        now_s = self._scheduler.now_s
        if now_s >= self.until_s and (now_s >= self.chain_until_s or kind not in OF_CHAIN):
            return False
        if self._random() < getattr(self, kind):
            self.counts[kind] += 1
            return True
        return False

    def is_bad(self, state: str) -> bool:
        """Whether a checkpoint cannot be read, by no node and however often it is stored."""
        if state not in self._states:
            self._states[state] = self._dice.random() < self.bad_state
        self.counts["bad_state"] += self._states[state]
        return self._states[state]

    def was_bad(self, state: str) -> bool:
        """Whether somebody found that a checkpoint cannot be read."""
        return self._states.get(state, False)

    def date_ms(self, at_s: float) -> int:
        """How much later than at its beginning it is at a true time of the seed, by a calendar."""
        if self.weeks_pass_at_s is None or at_s < self.weeks_pass_at_s:
            return int(at_s * 1000)
        return int(at_s * 1000) + WEEKS_MS + int((at_s - self.weeks_pass_at_s) * HOURS_PER_S * HOUR_MS)

    def clock_error_ms(self) -> int:
        """How far the wall clock of a new central is ahead, besides its hour; never when the date jumps as well."""
        if self.weeks_pass_at_s is not None or self._refunds.random() >= self.far_clock:
            return 0
        self.counts["far_clock"] += 1
        return FAR_CLOCK_MS

    def asks_two(self) -> bool:
        """Whether a client submits to two centrals at once, where one of them may be far ahead."""
        return self.far_clock > 0 and self._refunds.random() < 0.8

    def stalls(self) -> bool:
        """Whether a client pauses its job until the deadline, where that will come."""
        return self.weeks_pass_at_s is not None and self._refunds.random() < 0.7

    def ignores_halt(self) -> bool:
        """Whether a run that was told to store what it has and end does neither, and goes on being there."""
        if not self.active or self._halts.random() >= self.halt_ignored:
            return False
        self.counts["halt_ignored"] += 1
        return True

    def pauses_long(self) -> bool:
        """Whether a client leaves its job paused for longer than a run may take to end."""
        return self.halt_ignored > 0 and self._halts.random() < 0.5

    def refund_after_s(self) -> float | None:
        """How long after it was opened an escrow is refunded, if it is still open then; None for most."""
        return self._refunds.uniform(0.0, 20.0) if self._refunds.random() < self.refunded else None

    def count(self, kind: str) -> None:
        self.counts[kind] += 1

    def delay_s(self) -> float:
        """How long one hop takes: about a millisecond, now and then seconds."""
        if self._scheduler.now_s < self.until_s and self._random() < self.slow:
            self.counts["slow"] += 1
            return self._dice.expovariate(1 / 1.5)
        return 0.0005 + self._random() * 0.002
