"""Who has the broker: hears every command, and says to nodes what he likes. He has no key.

    forged    a Stop of a run that is there, which nobody signed
    replayed  what a central said to the node once, word for word
    reused    what a central signed for the node, with a Stop of another run in it

Dice of his own. He may also deliver what was lost on its way: that is good for as long as it would have been.
"""

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.codec import MSGPACK, decode, encode

if TYPE_CHECKING:
    from tests.simulation.nodes import Node

REMEMBERED = 20  # commands to one node
ACTS_EVERY_S = 0.7  # on average


class Intruder:
    """Told of every command on its way. He knows what was said, so he is asked what was not."""

    def __init__(self, seed: int, network: Any):
        self._network = network
        self._dice = Random(f"intruder of {seed}")
        self._said: set[tuple[str, bytes]] = set()
        self._heard: dict[str, deque[m.SignedCommand]] = {}
        self._acts = (self._forged, self._replayed, self._reused)

    def saw(self, subject: str, payload: bytes) -> None:
        """A central says this to a node."""
        self._said.add((subject, payload))
        said = decode(m.Command | m.SignedCommand, payload, MSGPACK)  # type: ignore[arg-type]
        if isinstance(said, m.SignedCommand):
            self._heard.setdefault(said.node_id, deque(maxlen=REMEMBERED)).append(said)

    def was_said(self, node_id: str, said: m.Command | m.SignedCommand) -> bool:
        return (subjects.command(node_id), encode(said, MSGPACK)) in self._said

    def begin(self) -> None:
        scheduler = self._network.scheduler
        scheduler.at(self._network.chaos, scheduler.now_s + self._dice.expovariate(1 / ACTS_EVERY_S), self._act)

    def _act(self) -> None:
        if not self._network.faults.active:
            return
        working = [each for each in self._network.nodes.values() if each.loop.alive and each.state.runs]
        if working:
            node = self._dice.choice(working)
            if said := self._dice.choice(self._acts)(node):
                scheduler = self._network.scheduler
                scheduler.at(node.loop, scheduler.now_s, lambda: node.loop.create_task(self._say(node, said)))
        self.begin()

    @staticmethod
    async def _say(node: "Node", said: m.Command | m.SignedCommand) -> None:
        await node.on_command(subjects.command(node.node_id), said)

    def _forged(self, node: "Node") -> m.Command:
        job_id, attempt = self._dice.choice(list(node.state.runs))
        return m.Stop(job_id=job_id, attempt=attempt, session=node.session, reason="forged")

    def _replayed(self, node: "Node") -> m.SignedCommand | None:
        heard = self._heard.get(node.node_id)
        return self._dice.choice(heard) if heard else None

    def _reused(self, node: "Node") -> m.SignedCommand | None:
        heard = self._heard.get(node.node_id)
        return replace(heard[-1], payload=encode(self._forged(node), MSGPACK)) if heard else None
