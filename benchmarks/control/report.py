"""What a measured system reports to the program that compares them: one JSON line each, on the child's stdout."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

WARM_SUBMISSIONS = 300  # of each system, before any is counted
CLIENTS = 2  # processes that submit at the same time, where a system is asked by more than one
STUCK_AFTER_S = 60.0  # since the last fault or the last task that ended: who moves for so long no more is stuck


class Scale(Struct, frozen=True, kw_only=True):
    """How much work one run measures. Rates are per second, so the sizes only change how steady they are."""

    rounds: int
    submissions: int  # of all clients, one after another or in flight
    starts: int  # one at a time, on an idle system
    slow_starts: int  # the same where one start takes about a second
    tasks: int  # of a kill run: function calls of `task_ms`
    task_ms: int
    jobs: int  # of Cyx's kill run: whole trainings, each paid
    faults: int  # kill -9 of one process each
    fault_gap_s: float  # mean pause between two of them


FULL = Scale(
    rounds=3, submissions=5000, starts=100, slow_starts=4, tasks=2000, task_ms=20, jobs=200, faults=24, fault_gap_s=1.5
)
QUICK = Scale(
    rounds=3, submissions=5000, starts=30, slow_starts=2, tasks=300, task_ms=40, jobs=60, faults=6, fault_gap_s=1.0
)


class Progress(Struct, frozen=True, tag="progress"):
    """What the child does now."""

    text: str


class Versions(Struct, frozen=True, tag="versions"):
    """The packages that were measured."""

    packages: dict[str, str]


class Rate(Struct, frozen=True, kw_only=True, tag="rate"):
    """Submissions per second, as who submits sees them acknowledged."""

    system: str
    clients: int = 1  # processes that submit, all at the same time
    per_s: float
    samples: int
    durable: bool  # an acknowledged submission outlives kill -9 of any process
    means: str  # what an acknowledgement promises


class Start(Struct, frozen=True, kw_only=True, tag="start"):
    """Milliseconds from the submit call to the first line of the work, one at a time on a warm, idle system."""

    system: str
    values_ms: list[float]
    means: str  # what stands between the two


class Kills(Struct, frozen=True, kw_only=True, tag="kills"):
    """A run with kill -9 at seeded moments. lost, stuck, repeated: how many of the acknowledged tasks or jobs."""

    system: str
    unit: Literal["tasks", "jobs"]
    acknowledged: int
    faults: dict[str, int]  # victim -> kill -9
    lost: int  # not executed, and nobody holds them any more
    stuck: int  # not executed and still held somewhere, when nothing had moved for STUCK_AFTER_S after the last fault
    repeated: int  # their effect happened more than once
    extra: int  # effects beyond the first of each
    last_effect_s: float  # after the last fault; 0 when all was done before it
    means: str  # what counts as an effect, and the settings


Report = Progress | Versions | Rate | Start | Kills


class Tally(Struct, frozen=True, kw_only=True):
    """How often each acknowledged piece of work took effect."""

    missing: list[str]
    repeated: int
    extra: int


def tally(acknowledged: Iterable[str], effects: Iterable[str]) -> Tally:
    """Compare what was acknowledged with the ids of the effects, one entry per effect."""
    times = Counter(effects)
    return Tally(
        missing=[each for each in acknowledged if each not in times],
        repeated=sum(count > 1 for count in times.values()),
        extra=sum(count - 1 for count in times.values()),
    )


class Fault(Struct, frozen=True):
    """Kill -9 one process of a kind, so many seconds after the fault before."""

    victim: str
    pause_s: float


def plan_faults(victims: list[str], count: int, gap_s: float, seed: int) -> list[Fault]:
    """The same for the same seed: every kind equally often (within one), in a random order, at random moments."""
    dice = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += dice.sample(victims, len(victims))
    return [Fault(victim, dice.uniform(0.5, 1.5) * gap_s) for victim in order[:count]]
