"""What goes wrong, and when: a list made from a seed. Pure; the same seed gives the same list."""

import random
from typing import Literal, NamedTuple

from msgspec import Struct

Deed = Literal["kill", "stop", "network", "fill"]
CENTRALS = ("central-a", "central-b")
TRAINING = "training"  # the process of a run on some node: which one is found when the time has come
NETWORK_MODES = ("delay", "hold-up", "hold-down", "lose-up", "lose-down", "half-open", "reset")

TOGETHER_SHARE = 0.15  # of the faults come at the same moment as the one before


class Fault(Struct, frozen=True, kw_only=True):
    """One thing that goes wrong.

    wait_s: after the one before it. lasts_s: how long a killed part stays down at least, how long a process stays
    stopped, how long a link is bad or the broker's disk is full. pick: which of several training processes. mode: of
    a network fault.
    """

    wait_s: float
    deed: Deed
    victim: str
    lasts_s: float
    pick: int = 0
    mode: str = ""

    def __str__(self) -> str:
        what = f"{self.deed} {self.mode}".strip()
        return f"{what} {self.victim} ({self.lasts_s:.2f} s)"


class Harm(Struct, frozen=True, kw_only=True):
    """A fault as it was done. part: that was hit, where `victim` is none. jobs: whose lease was with it."""

    at_ms: int
    fault: Fault
    part: str = ""
    jobs: list[str] = []


class Choice(NamedTuple):
    """A row of the table below. weight: how often. shortest_s, longest_s: bounds of lasts_s."""

    deed: Deed
    victims: str  # a group
    weight: float
    shortest_s: float
    longest_s: float


TABLE = [
    Choice("kill", "broker", 10, 0.0, 1.0),
    Choice("kill", "centrals", 22, 0.0, 1.5),
    Choice("kill", "nodes", 20, 0.0, 1.5),
    Choice("kill", "training", 14, 0.0, 0.0),
    Choice("kill", "chain", 4, 0.0, 1.0),
    Choice("stop", "broker", 3, 0.1, 2.0),
    Choice("stop", "centrals", 6, 0.1, 3.0),
    Choice("stop", "nodes", 5, 0.1, 3.0),
    Choice("stop", "training", 3, 0.1, 2.0),
    Choice("stop", "chain", 2, 0.1, 2.0),
    Choice("network", "links", 11, 0.1, 3.0),
]


def groups(nodes: int) -> dict[str, list[str]]:
    """The victims of each group, in a network of so many nodes."""
    names = [f"node-{n}" for n in range(1, nodes + 1)]
    links = [*(f"{central}.{account}" for central in CENTRALS for account in ("core", "edge")), *names]
    return {
        "broker": ["broker"],
        "chain": ["chain"],
        "centrals": list(CENTRALS),
        "nodes": names,
        "training": [TRAINING],
        "links": links,
    }


FULL_DISK = Choice("fill", "broker", 8, 1.0, 6.0)  # only where the broker has a disk of its own


def plan(seed: int, kills: int, nodes: int, mean_gap_s: float, full_disk: bool = False) -> list[Fault]:
    """Faults until `kills` of them are kills. Every victim of a kill has been killed once before one is again twice.

    The gaps are exponential, and some are nothing at all, so that faults meet: a broker and a central die together, as
    on a host that loses power, or one dies while another is still coming up.
    """
    rng = random.Random(f"faults {seed}")
    members = groups(nodes)
    table = [*TABLE, FULL_DISK] if full_disk else TABLE
    faults: list[Fault] = []
    killed: dict[str, int] = {}
    while sum(killed.values()) < kills:
        row = rng.choices(table, [choice.weight for choice in table])[0]
        fewest = min(killed.get(name, 0) for name in members[row.victims]) if row.deed == "kill" else 0
        among = [n for n in members[row.victims] if row.deed != "kill" or killed.get(n, 0) <= fewest + 1]
        victim = rng.choice(among)
        faults.append(
            Fault(
                wait_s=0.0 if rng.random() < TOGETHER_SHARE else min(rng.expovariate(1 / mean_gap_s), 4 * mean_gap_s),
                deed=row.deed,
                victim=victim,
                lasts_s=rng.uniform(row.shortest_s, row.longest_s),
                pick=rng.randrange(1000),
                mode=rng.choice(NETWORK_MODES) if row.deed == "network" else "",
            )
        )
        if row.deed == "kill":
            killed[victim] = killed.get(victim, 0) + 1
    return faults
