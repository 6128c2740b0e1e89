"""Commands on their way to nodes: signed for those that take no others, and good by the clock of the node.

A node's clock is known from what it says when it registers, in heartbeats, and when it refuses a command because of it.
Until a central has heard that, it takes its own for the node's: it is right, or the first refusal says what is.
"""

import asyncio
import logging

from cyxcentral.machine import Machine
from cyxcentral.world import World
from cyxnet import commands, subjects
from cyxnet import messages as m
from cyxnet.bus import Bus

log = logging.getLogger(__name__)
COMMAND_TIMEOUT_S = 3.0
PASSING = ("replayed", "untold")  # codes: another central knew more and was faster; the node is just being taken in


class Telling:
    """commander: signs, for the nodes that asked for it."""

    def __init__(self, edge: Bus, world: World, machine: Machine, commander: commands.Commander):
        self._edge = edge
        self._world = world
        self._machine = machine
        self._commander = commander
        self._ahead_ms: dict[str, tuple[str, float]] = {}  # node -> session, its clock less our monotonic one
        self._unsigned: list[tuple[commands.Asked, asyncio.Future[m.SignedCommand]]] = []  # of this turn of the loop

    @property
    def platform_key(self) -> str:
        """Which nodes check commands by."""
        return self._commander.platform_key

    def heard(self, node_id: str, session: str, now_ms: int) -> None:
        """The time by a node's clock, as it was said a moment ago; 0 says nothing."""
        if now_ms:
            self._ahead_ms[node_id] = (session, now_ms - self._machine.monotonic_ms())

    async def ask(self, node_id: str, command: m.Command) -> m.CommandReply:
        """The node's answer. Raises CyxError when there is none, or when the node does not take it for a command."""
        subject = subjects.command(node_id)
        node = self._world.nodes.get(node_id)
        if node is None or not node.signed_commands:
            return await self._edge.ask(subject, command, m.CommandReply, timeout_s=COMMAND_TIMEOUT_S)
        sequence = self._world.last_seq.get(subjects.job_event(command.job_id), 0)  # what it was made of
        for _ in range(2):
            until_ms = self._now_ms(node_id, command.session) + commands.VALID_MS
            asked = commands.Asked(node_id, command.session, command, sequence, until_ms)
            said = await self._signed(asked) if node.shared_signatures else self._commander.signed(*asked)
            reply = await self._edge.ask(subject, said, m.CommandReply, timeout_s=COMMAND_TIMEOUT_S)
            if reply.code not in commands.OTHER_CLOCK:
                break
            self.heard(node_id, command.session, reply.now_ms)
        if reply.code and reply.code != "wrong_session":  # this one is a plain no, as an older node gives it
            if reply.code not in PASSING:
                log.warning("%s takes nothing from this central (%.40s): %.200s", node_id, reply.code, reply.reason)
            raise commands.NotTaken(reply.code[:40], reply.reason[:200])
        return reply

    async def _signed(self, asked: commands.Asked) -> m.SignedCommand:
        """Signed together with all that is to be said in this moment: a signature is most of what a command costs."""
        loop = asyncio.get_running_loop()
        signed: asyncio.Future[m.SignedCommand] = loop.create_future()
        if not self._unsigned:
            loop.call_soon(self._sign)
        self._unsigned.append((asked, signed))
        return await signed

    def _sign(self) -> None:
        waiting, self._unsigned = self._unsigned, []
        wanted = [(asked, signed) for asked, signed in waiting if not signed.done()]
        for first in range(0, len(wanted), commands.MOST_SHARING):
            some = wanted[first : first + commands.MOST_SHARING]
            try:
                made = self._commander.all_signed([asked for asked, _ in some])
            except Exception as error:  # they are told by tasks that try again
                for _, signed in some:
                    signed.set_exception(error)
            else:
                for (_, signed), said in zip(some, made, strict=True):
                    signed.set_result(said)

    def reply(self, said: m.Heartbeat, orders: m.Orders) -> m.HeartbeatReply:
        """The answer to a heartbeat of a node that is known."""
        reply = m.HeartbeatReply(known=True, now_ms=self._machine.wall_ms())
        if not self._world.nodes[said.node_id].signed_commands:
            reply.stop, reply.begin, reply.pause = orders.stop, orders.begin, orders.pause
        elif orders.stop or orders.begin or orders.pause:
            until_ms = said.now_ms + commands.VALID_MS
            reply.orders = self._commander.signed(said.node_id, said.session, orders, said.number, until_ms)
        return reply

    def _now_ms(self, node_id: str, session: str) -> int:
        """The time by the clock of this session of a node."""
        known, ahead_ms = self._ahead_ms.get(node_id, ("", 0.0))
        return int(self._machine.monotonic_ms() + ahead_ms) if known == session else self._machine.wall_ms()
