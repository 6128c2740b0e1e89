"""Networks with checkers, and a node that does not do what it signs: which seeds have them, and what it stores.

Dice of its own: a seed in which nobody checks is what it would be without this file.
"""

import hashlib
from random import Random

from cyxnet import messages as m

SHARE = 0.4  # of the seeds
CHECKERS = (3, 4)  # numbers of nodes
GARBAGE = b"garbage "  # how a state begins that nobody can read
CHECK_WITHIN_S = 30


class Cheats:
    """What goes wrong in one seed. cheater: the number of a node, or None. what it stores: see the choices."""

    def __init__(self, seed: int):
        dice = Random(f"checks of {seed}")
        self.checkers = dice.choice([CHECKERS, CHECKERS, CHECKERS[:1]]) if dice.random() < SHARE else ()
        self.cheater = dice.choice([None, 0, 1, 2]) if self.checkers else None
        self.what = dice.choice(["false_model", "false_states", "garbage"])
        self._dice = dice

    def checker_dies(self) -> bool:
        """Whether a checker falls silent over a check: its process hangs."""
        return bool(self.checkers) and self._dice.random() < 0.1


def next_state(state: bytes, step: int) -> bytes:
    return hashlib.sha256(state + b"step %d" % step).digest()


def false_state(state: bytes) -> bytes:
    return hashlib.sha256(b"false" + state).digest()


def end_of(segment: m.Segment, job: m.JobRequest, start: bytes, steps: int) -> bytes | None:
    """What an honest run of a segment ends with; None where no training goes on from its start."""
    if start.startswith(GARBAGE):
        return None
    step, state = segment.start.step if segment.start else 0, start
    while step < (segment.end_step or steps):
        step += 1
        state = next_state(state, step)
    return state if segment.end_step else b"model " + state
