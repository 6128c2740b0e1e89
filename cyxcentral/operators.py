"""What an operator of the platform may do: ban nodes and clients and take that back, stop payments and let them go on.

The broker lets nobody else speak on these verbs; that it is one who asks is looked at here again.
"""

from collections.abc import Collection

from cyxcentral import clients, nodes, reconciliation, views
from cyxcentral.dispatch import Dispatch
from cyxcentral.eventlog import EventLog
from cyxcentral.world import World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError


class Operators:
    """operators: the callers who are one."""

    def __init__(self, events: EventLog, world: World, dispatch: Dispatch, operators: Collection[str]):
        self._events = events
        self._world = world
        self._dispatch = dispatch
        self._operators = operators

    async def ban(self, caller: str, ask: m.NodeBanRequest) -> m.NodeView:
        """Shut a node out from now on. A second ban replaces the end of the first."""

        def event(node: nodes.Node, now_ms: int) -> m.NodeBanned:
            until_ms = now_ms + (nodes.next_ban_ms(node) if ask.for_s is None else ask.for_s * 1000)
            return m.NodeBanned(until_ms=until_ms, reason=ask.reason, caller=caller, request_id=ask.request_id)

        return await self._say(caller, ask, event)

    async def pardon(self, caller: str, ask: m.NodePardonRequest) -> m.NodeView:
        """End a ban and forgive strikes. Of a node that has neither nothing changes."""

        def event(node: nodes.Node, now_ms: int) -> m.NodePardoned | None:
            if not (node.banned_until_ms or node.strikes):
                return None
            return m.NodePardoned(reason=ask.reason, caller=caller, request_id=ask.request_id)

        return await self._say(caller, ask, event)

    async def ban_client(self, caller: str, ask: m.ClientBanRequest) -> m.ClientView:
        """Shut a client out from now on. A second ban replaces the end of the first."""
        if ask.client_id in self._operators:
            raise ApiError(
                "is_operator", f"{ask.client_id} is an operator: take it out of operators in network.json first", 409
            )

        def event(client: clients.Client | None, now_ms: int) -> m.ClientBanned:
            until_ms = now_ms + (clients.next_ban_ms(client, now_ms) if ask.for_s is None else ask.for_s * 1000)
            return m.ClientBanned(until_ms=until_ms, reason=ask.reason, caller=caller, request_id=ask.request_id)

        return await self._say_of_client(caller, ask, event)

    async def pardon_client(self, caller: str, ask: m.ClientPardonRequest) -> m.ClientView:
        """End a ban. Of a client that is not banned nothing changes."""

        def event(client: clients.Client | None, now_ms: int) -> m.ClientPardoned | None:
            if client is None or now_ms >= client.until_ms:
                return None
            return m.ClientPardoned(reason=ask.reason, caller=caller, request_id=ask.request_id)

        return await self._say_of_client(caller, ask, event)

    async def list_clients(self, caller: str, _: m.ClientListRequest) -> m.ClientList:
        self.check(caller)
        found = sorted(self._world.clients.values(), key=lambda client: (-client.changed_at_ms, client.client_id))
        return m.ClientList(clients=[self._client_view(client.client_id) for client in found])

    async def freeze(self, caller: str, ask: m.PayoutsRequest) -> m.PayoutsReply:
        """Nothing is paid from now on."""
        self.check(caller)
        return await reconciliation.steer(self._events, m.PayoutsFrozen(reason=ask.reason, caller=caller))

    async def release(self, caller: str, ask: m.PayoutsRequest) -> m.PayoutsReply:
        """Payments go on; what was found to differ is accepted."""
        self.check(caller)
        return await reconciliation.steer(self._events, m.PayoutsReleased(reason=ask.reason, caller=caller))

    def check(self, caller: str) -> None:
        """Raises ApiError not_operator."""
        if caller not in self._operators:
            raise ApiError("not_operator", f"{caller} is no operator of this network (operators in network.json)", 403)

    async def _say(self, caller, ask, event_of) -> m.NodeView:  # type: ignore[no-untyped-def]
        self.check(caller)
        await self._events.catch_up()  # another central may have heard of the node, or of this very request, just now
        node_id = self._find(ask.node_id)

        def decide() -> m.NodeBanned | m.NodePardoned | None:
            now_ms = self._events.machine.wall_ms()
            node = nodes.at(self._world.nodes[node_id], now_ms)
            return None if nodes.granted(node, ask.request_id) else event_of(node, now_ms)

        await self._events.record(subjects.node_event(node_id), decide)
        candidate = self._world.candidate(node_id, self._events.machine.wall_ms())
        seen_ms = self._dispatch.seen_at_ms.get(node_id, candidate.node.changed_at_ms)
        return views.node_view(candidate, self._world.runs_of(node_id), seen_ms, None)

    async def _say_of_client(self, caller, ask, event_of) -> m.ClientView:  # type: ignore[no-untyped-def]
        self.check(caller)
        await self._events.catch_up()  # as of nodes

        def decide() -> m.ClientBanned | m.ClientPardoned | None:
            client = self._world.clients.get(ask.client_id)
            if clients.granted(client, ask.request_id):
                return None
            return event_of(client, self._events.machine.wall_ms())

        await self._events.record(subjects.client_event(ask.client_id), decide)
        return self._client_view(ask.client_id)

    def _client_view(self, client_id: str) -> m.ClientView:
        active = sum(self._world.jobs[job_id].caller == client_id for job_id in self._world.active)
        client = self._world.clients.get(client_id)
        if client is None:
            return m.ClientView(client_id=client_id, active_jobs=active)
        return m.ClientView(
            client_id=client_id,
            banned_until_ms=clients.banned_until_ms(self._world.clients, client_id, self._events.machine.wall_ms()),
            reason=client.reason,
            by=client.by,
            changed_at_ms=client.changed_at_ms,
            bans=client.bans,
            active_jobs=active,
        )

    def _find(self, prefix: str) -> str:
        found = (
            [prefix] if prefix in self._world.nodes else sorted(n for n in self._world.nodes if n.startswith(prefix))
        )
        if len(found) == 1:
            return found[0]
        if not found:
            raise ApiError("unknown_node", f"no node is called {prefix} or starts with it; see: cyx nodes", 404)
        some = ", ".join(found[:5])
        raise ApiError("ambiguous_node", f"{len(found)} nodes start with {prefix}: {some}; give more letters", 409)
