"""What a replica says when a central asks it whether it answers: its process may be late, hang, or tell lies.

    answers    the truth, at once                 late      the truth, when the next question has been asked
    hangs      nothing any more, after a while    absent    nobody is there, but its node says that it is ready
    refuses    that it is not ready               garbles   what is no answer, or one to no question
    parrots    the answer to the first question that any attempt of its job was asked, again and again

The node lives all the while, and says in every heartbeat that the replica is ready. Dice of their own: a seed without
liars is what it would be without them.
"""

import math
from random import Random
from typing import TYPE_CHECKING, Any

from cyxnet import asking, subjects
from cyxnet.asking import Part
from cyxnet.connection import Message, block_of
from cyxnet.credentials import replica_id

if TYPE_CHECKING:
    from tests.simulation.nodes import Run

KINDS = {"answers": 6, "late": 2, "hangs": 2, "absent": 1, "refuses": 1, "garbles": 1, "parrots": 3}
LATE_S = (1.0, 3.5)  # heartbeats and leases are 2 and 8 seconds
LIES_UNTIL_S = 45.0  # many are paid for and ready only after the last fault
HANGS_AFTER_S = 3.0  # on average
NOT_READY, READY = block_of(asking.part_headers(Part(status=503))), block_of(asking.part_headers(Part()))


class Answers:
    """How the replicas of a seed answer."""

    def __init__(self, seed: int):
        self.dice = Random(f"answers of {seed}")
        self.lies = self.dice.random() < 0.6
        self.first: dict[str, str] = {}  # job id -> where the answer goes to the first question about it

    def kind(self) -> str:
        return self.dice.choices(list(KINDS), list(KINDS.values()))[0] if self.lies else "answers"

    def seconds(self, bought: int) -> int:
        """For how long a replica is bought: where some lie, long enough to be found."""
        return self.dice.choice([bought, 16, 40]) if self.lies else bought


class Asked:
    """A replica that is asked: from open() to close()."""

    def __init__(self, run: "Run"):
        self.node, self._answers = run.node, run.node.network.answers
        self.replica = (run.node.node_id, *run.key)
        faults, now_s = run.node.network.faults, run.node.network.scheduler.now_s
        self.kind = self._answers.kind() if now_s < LIES_UNTIL_S else "answers"
        self.silent_at_s = math.inf  # from then on it answers nothing, as far as central may believe it
        if self.kind not in ("answers", "late"):
            wait_s = self._answers.dice.expovariate(1 / HANGS_AFTER_S) if self.kind == "hangs" else 0.0
            self.silent_at_s = now_s + wait_s
        self._subscription: Any = None
        if self.kind != "answers":
            faults.count(f"replica_{self.kind}")

    def open(self) -> None:
        subject = subjects.ping(replica_id(*self.replica))
        if self.kind != "absent":
            self._subscription = self.node.bus.listen(subject, self._take)
        self.node.network.checks.replicas[self.replica] = self

    def close(self) -> None:
        if self._subscription:
            self._subscription.close()
        self.node.network.checks.replicas.pop(self.replica, None)

    def _take(self, message: Message) -> None:
        first = self._answers.first.setdefault(self.replica[1], message.reply)
        scheduler, dice = self.node.network.scheduler, self._answers.dice
        if self.kind == "hangs" and scheduler.now_s >= self.silent_at_s:
            return
        reply, block = message.reply, READY
        match self.kind:
            case "refuses":
                block = NOT_READY
            case "garbles" if dice.random() < 0.5:
                block = b""
            case "garbles":
                reply = subjects.reply(subjects.CENTRAL, f"{dice.getrandbits(128):032x}")
            case "parrots":
                reply = first
        delay_s = dice.uniform(*LATE_S) if self.kind == "late" else 0.001
        self.node.loop.call_later(delay_s, self._say, reply, block)

    def _say(self, reply: str, block: bytes) -> None:
        if self._subscription.open:
            self.node.bus.send(reply, b"", block)
