"""A client asks for jobs, and what became of them: cyx.v1.api.<caller>.job.<verb>, and network.info."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cyxcore.spec import Digest, TrainingSummary
from cyxnet.messages.fields import U63, Address, JobId, NodeId, Request, RequestId, RunId, SeedSignature, Text
from cyxnet.messages.jobs import (
    After,
    ArtifactRef,
    Checkpoint,
    EscrowTerms,
    JobRequest,
    JobStatus,
    Payee,
    Payment,
    SummaryMetric,
)


class NetworkInfoRequest(Request, kw_only=True, frozen=True):
    """What network is this, and how does one pay on it?"""


class NetworkInfo(Struct, kw_only=True):
    network_id: str
    version: str
    chain_url: str
    mint: str
    decimals: int
    authority: str
    platform: str
    fee_basis_points: int
    faucet: bool
    custodial_wallets: bool
    chunk_bytes: int
    nodes_online: int
    quarantined_events: int = 0  # messages of the event log that count for nothing
    damaged_subjects: int = 0  # histories that are not known any more; nothing is decided on them
    program: str = ""  # the escrow program that payments go to
    operator: bool = False  # whether who asks is one
    quote_key: str = ""  # Ed25519 public key, hex: prices of quotes are signed with it
    payouts_frozen: str = ""  # why nothing is paid at present; jobs are taken and trained all the same


class QuoteRequest(Request, kw_only=True, frozen=True):
    """Would this job be taken, and on what terms? Nothing is stored."""

    job: JobRequest
    job_id: JobId | None = None
    client: Address | None = None


class Price(Request, kw_only=True, frozen=True):
    """The most that a job is charged, signed by the network over price_bytes(); good until expires_ms."""

    job_sha256: Digest
    client: Address
    max_base_units: U63
    expires_ms: U63
    signature: SeedSignature


class NodePrice(Struct, kw_only=True):
    """What a node that fits asks for a job. seconds: at most, by its measured speed; 0 when that is not known, or when
    the job's facts do not say how many rows there are."""

    node_id: str
    name: str
    seconds: float
    price_per_hour_base_units: int
    base_units: int


class Quote(Struct, kw_only=True):
    job_id: str
    terms: EscrowTerms
    node_base_units: int
    platform_base_units: int
    balance_base_units: int
    memory_bytes: int
    gpu_memory_bytes: int = 0  # of one GPU; 0: it needs none
    flops_per_epoch: int
    parameters: int
    eligible_nodes: int
    lamports: int = 0  # of the payer, for the chain's own fee and rent
    blockhash: str = ""  # to sign the deposit with, at once; "" from a central that gives none
    last_valid_block_height: int = 0
    price: Price | None = None  # None where no node fits at present
    prices: list[NodePrice] = []  # the highest first
    flops: int = 0  # of the whole job
    bytes_moved: int = 0  # between processor and memory
    unproven_limit_base_units: int = 0  # what a job may cost, as no node is here that is proven; 0: anything


def price_bytes(price: Price) -> bytes:
    """What the network signs when it quotes: domain, then all that the price is for."""
    words = [price.job_sha256, price.client, str(price.max_base_units), str(price.expires_ms)]
    return "\n".join(["cyx/v1/price", *words]).encode()


class SubmitRequest(Request, kw_only=True, frozen=True):
    """Take this job. The job_id makes it idempotent: the same id and job again is not a second job."""

    job: JobRequest
    job_id: JobId | None = None
    payment: Payment | None = None
    price: Price | None = None  # of a quote: what is charged never exceeds it


class SubmitReply(Struct, kw_only=True, gc=False):
    job_id: str
    status: JobStatus
    terms: EscrowTerms
    duplicate: bool = False


class JobRef(Request, kw_only=True, frozen=True):
    """A job by its id or by a prefix that only one job has.

    request_id: of a pause or resume, chosen by the caller and the same in every try: a late one changes nothing then.
    """

    job_id: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
    request_id: RequestId = ""


class CancelRequest(Request, kw_only=True, frozen=True):
    job_id: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
    reason: Text = "cancelled by the client"
    request_id: RequestId = ""  # as of JobRef


class PriorityRequest(Request, kw_only=True, frozen=True):
    """Another place in the line: each level counts like ten minutes of waiting. It is kept while the job runs too."""

    job_id: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
    priority: Annotated[int, Meta(ge=0, le=9)]
    request_id: RequestId = ""  # as of JobRef


class JobView(Struct, kw_only=True, omit_defaults=True):
    """A job as a reader sees it.

    attempt: 0 until a node has it. progress: from 0 to 1; of a job that no node trains, what its checkpoint holds.
    latest: the newest metrics of a batch or epoch. error: why it ended so; of a job that has not ended (see status)
    why its attempt before did: the job itself may still complete.
    """

    job_id: str
    name: str
    status: JobStatus
    client: str
    amount_base_units: int
    attempt: int
    max_attempts: int
    node_id: str | None = None
    node_name: str | None = None
    progress: float = 0.0
    latest: dict[str, Any] | None = None  # the newest metrics
    error: str | None = None
    model: ArtifactRef | None = None
    summary: TrainingSummary | None = None
    submitted_at_ms: int
    ended_at_ms: int | None = None
    terms: EscrowTerms | None = None
    deposit_signature: str | None = None
    settle_signature: str | None = None
    node_base_units: int | None = None
    platform_base_units: int | None = None
    client_base_units: int | None = None
    priority: int = 0
    pause_requested: bool = False
    checkpoint: Checkpoint | None = None  # the newest; a retry goes on from it
    payees: list[Payee] = []
    price_base_units: int = 0  # the most that is charged, as it was quoted; 0: the amount
    deployment: str = ""  # of a job that serves
    sealed: bool = False  # its data and its model are not in plain text
    check: str = ""  # whether its training was checked before it is paid, in words; empty before it is delivered
    after: list[After] = []  # the jobs that have to be completed before it begins
    best_by: SummaryMetric | None = None  # which of their models it begins with


class JobListRequest(Request, kw_only=True, frozen=True):
    """Newest first. `before` and `before_id` are submitted_at_ms and job_id of the last job of the page before.

    limit: of one answer, which is shorter when the jobs have much to say. name, node_id: only jobs whose name contains
    this text, whose last attempt was on this node. mine: only the caller's own. run: only those of this run of a
    workflow.
    """

    status: JobStatus | None = None
    name: Annotated[str, Meta(max_length=100)] | None = None
    node_id: NodeId | None = None
    mine: bool = False
    run: RunId | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    before: U63 | None = None
    before_id: JobId | None = None


class JobList(Struct, kw_only=True):
    """total: jobs that are what was asked; more: there is another page."""

    jobs: list[JobView]
    total: int
    more: bool = False


class UpdatesRequest(Request, kw_only=True, frozen=True):
    """What happened to a job after the two positions, oldest first."""

    job_id: JobId
    after_event: U63 = 0
    after_telemetry: U63 = 0
    limit: Annotated[int, Meta(ge=1, le=5000)] = 1000


class Update(Struct, kw_only=True, omit_defaults=True, gc=False):
    """One thing that happened to a job. `seq` grows within its `source`; gaps belong to other jobs."""

    job_id: str
    source: Literal["event", "telemetry"]
    seq: int
    at_ms: int
    kind: str  # Submitted, Leased, …, batch, epoch, hardware
    data: dict[str, Any]


class Updates(Struct, kw_only=True):
    updates: list[Update]
    more: bool
    status: JobStatus


class ExplainReply(Struct, kw_only=True):
    """Why a job is where it is: every decision with its scores, and what it waits for now."""

    job_id: str
    status: JobStatus
    decisions: list[dict[str, Any]]
    waiting_for: str | None = None
    error: str | None = None  # why it failed
    check: str = ""  # as of JobView
