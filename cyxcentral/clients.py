"""Clients that operators banned, as facts that happened to them. Pure.

Only who was ever banned is here: of everybody else the log knows what jobs he submitted, and no more. A ban is about
coming in and asking, over the broker and over HTTP. Jobs that a client submitted before go on, and are paid: the money
is in escrow, and the nodes that train them have done nothing.
"""

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral.nodes import BAN_MS, REQUESTS_KEPT
from cyxnet import messages as m


class Client(Struct, frozen=True, kw_only=True):
    """One client: the fold of its events. until_ms: of the newest ban, 0 when it was pardoned; by: the operator."""

    client_id: str
    until_ms: int
    reason: str
    by: str
    changed_at_ms: int
    bans: int = 1  # so far
    requests: tuple[str, ...] = ()  # ids of what operators asked for and got, the newest last


def banned_until_ms(clients: Mapping[str, Client], identity: str, now_ms: int) -> int:
    """When the ban of an identity ends; 0 for who is not banned now."""
    client = clients.get(identity)
    return client.until_ms if client and now_ms < client.until_ms else 0


def illegal(client: Client | None, event: m.ClientEvent) -> str | None:
    """Why `event` cannot happen to `client`; None when it can."""
    return "it was never banned" if client is None and isinstance(event, m.ClientPardoned) else None


def evolve(client_id: str, client: Client | None, event: m.ClientEvent, at_ms: int) -> Client:
    """The client after `event`. A ban in place of one that lasts is the same ban."""
    if isinstance(event, m.ClientPardoned):
        assert client is not None
        changed = replace(client, until_ms=0, reason=event.reason, by=event.caller, changed_at_ms=at_ms)
    else:
        earlier = client.bans - (at_ms < client.until_ms) if client else 0
        changed = Client(
            client_id=client_id,
            until_ms=event.until_ms,
            reason=event.reason,
            by=event.caller,
            changed_at_ms=at_ms,
            bans=earlier + 1,
            requests=client.requests if client else (),
        )
    if event.request_id:
        changed = replace(changed, requests=(*changed.requests, event.request_id)[-REQUESTS_KEPT:])
    return changed


def granted(client: Client | None, request_id: str) -> bool:
    """Whether an operator's wish of this id was carried out already: then this is a repetition of it."""
    return client is not None and bool(request_id) and request_id in client.requests


def next_ban_ms(client: Client | None, now_ms: int) -> int:
    """How long the next ban lasts, unless somebody says otherwise: as long as that of a node."""
    earlier = client.bans - (now_ms < client.until_ms) if client else 0
    return BAN_MS[min(earlier, len(BAN_MS) - 1)]
