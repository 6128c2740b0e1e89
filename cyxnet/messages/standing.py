"""Nodes and clients as others see them, and what operators do to them."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cyxnet.messages.fields import U63, ClientId, NodeId, Request, RequestId
from cyxnet.messages.reports import Hardware

Regions = Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)]


class NodeListRequest(Request, kw_only=True, frozen=True):
    """Which nodes are there? The best first, by `sort_by`: those that are online, or the cheapest, fastest (measured
    flops), most reputable, those with most free memory or with the least to do. Only those that are all that is asked.

    online: and not banned. idle: takes a job now. regions: in one of them; other_regions: in none of them.
    limit: of one answer, which is shorter when the nodes have much to say. after: the last node of the page before.
    """

    online: bool = False
    idle: bool = False
    device: Literal["cpu", "cuda", "any"] = "any"
    min_cores: Annotated[int, Meta(ge=0, le=65536)] = 0
    min_memory_free_bytes: U63 = 0
    min_gpu_memory_bytes: U63 = 0
    min_reputation: Annotated[float, Meta(ge=0, le=100)] = 0.0
    max_price_per_hour_base_units: U63 | None = None
    regions: Regions = []
    other_regions: Regions = []
    sort_by: Literal["online", "price", "speed", "reputation", "memory", "queue"] = "online"
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    after: NodeId | None = None


class StandingChange(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Why a node's reputation is what it is: one thing that changed it. reputation and strikes: after it."""

    at_ms: int
    change: float
    reputation: float
    strikes: int = 0
    reason: str


class NodeView(Struct, kw_only=True, omit_defaults=True):
    node_id: str
    name: str
    online: bool
    reputation: float
    hardware: Hardware
    active_jobs: list[str]
    jobs_completed: int
    jobs_failed: int
    last_seen_ms: int
    wallet: str
    region: str = ""
    price_per_hour_base_units: int = 0
    metrics: dict[str, Any] | None = None
    state: str = ""  # online, busy, draining, drained, offline or banned
    tier: str = ""  # of its reputation: premium, normal, probation or banned
    strikes: int = 0  # towards a ban
    banned_until_ms: int = 0  # 0: not banned
    changes: list[StandingChange] = []  # of its reputation, the newest last
    proofs: int = 0  # clients who paid enough for its work to prove something of it
    limit_base_units: int = (
        0  # what a job may cost that it gets, one at a time, until it is proven; 0: any number of any
    )


class NodeList(Struct, kw_only=True):
    """total: nodes that are what was asked, of which `online` are online; more: there is another page.

    prices: lowest, mean and highest asking price of an hour among those that are online; empty when none is.
    """

    nodes: list[NodeView]
    total: int = 0
    online: int = 0
    more: bool = False
    price_per_hour_base_units: list[int] = []


class NodeWhyRequest(Request, kw_only=True, frozen=True):
    """Why does a node get the jobs that it gets? limit: of the waiting jobs that are told, and of those on nodes."""

    node_id: NodeId
    limit: Annotated[int, Meta(ge=1, le=20)] = 5


class Prospect(Struct, kw_only=True, omit_defaults=True):
    """A job as it is for one node. own and best: a line of a decision, with `node_id`, `score` and its `terms`."""

    job_id: str
    refused: str = ""  # why this node cannot take it, or could not
    rests_ms: int = 0  # so long it goes to nobody, because an attempt was lost
    own: dict[str, Any] | None = None  # of this node; None: it cannot take it, or was not among the best
    best: dict[str, Any] | None = None  # of the node that would get it, or got it


class NodeWhyReply(Struct, kw_only=True):
    """waiting, placed: the newest jobs that wait for a node, and the newest that other nodes work on."""

    node: NodeView
    max_runs: int
    memory_free_bytes: int  # of what it lends, after what its runs were promised
    waiting: list[Prospect]
    placed: list[Prospect]
    jobs_waiting: int = 0  # all of them


class NodeBanRequest(Request, kw_only=True, frozen=True):
    """Shut a node out. node_id: or a beginning that no other node has. for_s None: longer each time, from a day on."""

    node_id: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    for_s: Annotated[int, Meta(ge=1, le=10 * 366 * 86_400)] | None = None
    request_id: RequestId = ""  # as of JobRef


class NodePardonRequest(Request, kw_only=True, frozen=True):
    """End a node's ban, and forgive its strikes."""

    node_id: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
    reason: Annotated[str, Meta(min_length=1, max_length=2000)] = "pardoned by an operator"
    request_id: RequestId = ""


class ClientBanRequest(Request, kw_only=True, frozen=True):
    """Shut a client out, of the broker and of HTTP. for_s None: longer each time, from a day on."""

    client_id: ClientId
    reason: Annotated[str, Meta(min_length=1, max_length=2000)]
    for_s: Annotated[int, Meta(ge=1, le=10 * 366 * 86_400)] | None = None
    request_id: RequestId = ""  # as of JobRef


class ClientPardonRequest(Request, kw_only=True, frozen=True):
    """End a client's ban."""

    client_id: ClientId
    reason: Annotated[str, Meta(min_length=1, max_length=2000)] = "pardoned by an operator"
    request_id: RequestId = ""


class ClientListRequest(Request, kw_only=True, frozen=True):
    """Which clients are banned, or were?"""


class ClientView(Struct, kw_only=True, omit_defaults=True):
    """A client that was banned. banned_until_ms: 0 when it is not now. reason, by: of the last change, whose it was.

    active_jobs: of those that it submitted, which have not ended: they go on.
    """

    client_id: str
    banned_until_ms: int = 0
    reason: str = ""
    by: str = ""
    changed_at_ms: int = 0
    bans: int = 0
    active_jobs: int = 0


class ClientList(Struct, kw_only=True):
    """Those whose ban changed last come first."""

    clients: list[ClientView]
