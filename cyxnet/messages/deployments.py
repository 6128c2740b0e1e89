"""Deployments as their owners see them."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cyxnet.messages.fields import Request
from cyxnet.messages.jobs import JobRequest, JobStatus


class DeploymentListRequest(Request, kw_only=True, frozen=True):
    """The caller's deployments, those of the newest replica first.

    deployment: only those whose id begins so; of somebody else's only one that is public, by its whole id.
    ended: also those of which no replica is left.
    """

    deployment: Annotated[str, Meta(max_length=63)] = ""
    ended: bool = False
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


ReplicaState = Literal["pending", "provisioning", "loading", "ready", "paused", "stopped", "failed", "standby"]


class ReplicaView(Struct, kw_only=True, omit_defaults=True):
    """One replica, which is a job. since_ms: when the state began; served_ms: so long it was ready, over all attempts.

    requests, waiting: as its node said last: answered in this attempt, and in flight on average. The shares are those
    of its settlement. scaled: why it was called, or sent back to stand by, last.
    """

    job_id: str
    state: ReplicaState
    status: JobStatus
    since_ms: int
    node_id: str | None = None
    node_name: str | None = None
    attempt: int = 0
    requests: int = 0
    waiting: int = 0
    served_ms: int = 0
    bought_s: int = 0
    amount_base_units: int = 0
    node_base_units: int | None = None
    platform_base_units: int | None = None
    client_base_units: int | None = None
    error: str | None = None
    region: str = ""
    submitted_at_ms: int = 0
    scaled: str = ""


class DeploymentView(Struct, kw_only=True, omit_defaults=True):
    """The replicas of one deployment, the newest first. replicas are told to the owner only.

    untold: how many more there are than these: of very many those at work are told first, then those that stand by,
    in the order in which they are called.
    """

    deployment: str
    name: str
    ready: int
    public: bool = False
    owner: str = ""
    replicas: list[ReplicaView] = []
    newest: JobRequest | None = None  # what another replica would be; told to the owner only
    untold: int = 0


class DeploymentList(Struct, kw_only=True):
    """more: there are others."""

    deployments: list[DeploymentView]
    more: bool = False
