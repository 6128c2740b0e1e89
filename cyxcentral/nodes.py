"""Who is alive, what they have, how they behave. Pure: the loop passes the observer's monotonic clock.

What a node is comes from the log (NodeRegistered, NodeLost). When it was last heard is memory of one central only:
after a restart every node gets a full fresh lease (`heard` of the moment it was loaded).
"""

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral.jobs import REFUSED
from cyxnet import messages as m

START_REPUTATION = 75.0  # of 100
SUCCESS_GAIN, FAILURE_LOSS = 1.0, 2.0


class Node(Struct, frozen=True, kw_only=True):
    """One node: the fold of its events."""

    node_id: str
    session: str
    name: str
    public_key: str
    wallet: str
    hardware: m.Hardware
    max_runs: int
    region: str
    price_per_hour_base_units: int
    version: str
    online: bool
    registered_at_ms: int
    changed_at_ms: int
    jobs_completed: int = 0
    jobs_failed: int = 0
    reputation: float = START_REPUTATION


def evolve(node: Node | None, event: m.NodeEvent, at_ms: int) -> Node:
    """The node after `event`."""
    match event:
        case m.NodeRegistered():
            fresh = Node(
                node_id=event.node_id,
                session=event.session,
                name=event.name,
                public_key=event.public_key,
                wallet=event.wallet,
                hardware=event.hardware,
                max_runs=event.max_runs,
                region=event.region,
                price_per_hour_base_units=event.price_per_hour_base_units,
                version=event.version,
                online=True,
                registered_at_ms=node.registered_at_ms if node else at_ms,
                changed_at_ms=at_ms,
            )
            if node is None:
                return fresh
            return replace(
                fresh,
                jobs_completed=node.jobs_completed,
                jobs_failed=node.jobs_failed,
                reputation=node.reputation,
            )
        case m.NodeLost():
            assert node is not None, "NodeLost before NodeRegistered"
            return replace(node, online=False, changed_at_ms=at_ms)
    raise AssertionError(f"no rule for {type(event).__name__}")


def judged(node: Node, event: m.JobEvent) -> Node:
    """The node after something happened to a job it held: its record and its reputation."""
    match event:
        case m.Completed():
            return replace(
                node,
                jobs_completed=node.jobs_completed + 1,
                reputation=min(100.0, node.reputation + SUCCESS_GAIN),
            )
        case m.LeaseLost(deterministic=False) if event.code != REFUSED:
            return replace(node, jobs_failed=node.jobs_failed + 1, reputation=max(0.0, node.reputation - FAILURE_LOSS))
    return node


def silent(heard_ms: dict[str, float], nodes: dict[str, Node], lease_ms: int, now_ms: float) -> list[str]:
    """Ids of the online nodes not heard of for a whole lease. Times are the observer's monotonic clock."""
    return [
        node_id for node_id, node in nodes.items() if node.online and now_ms - heard_ms.get(node_id, now_ms) > lease_ms
    ]
