"""Everything that is ever said on a Cyx network, one Struct each.

Requests and replies are JSON (or MessagePack by Content-Type); events and telemetry are MessagePack.
A field is never renamed or retyped; new fields have defaults; tests/golden/ pins the bytes.
Money is an integer in base units (10**-9 CYX). Times are Unix milliseconds. Digests are SHA-256 in hex.
gc=False: a message is a tree, so the collector of cycles need not look at the many that central keeps.
"""

import hashlib
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cyxcore.spec import (
    BatchMetrics,
    DataSpec,
    Digest,
    EpochMetrics,
    Int64,
    ModelSpec,
    TrainingSpec,
    TrainingSummary,
)

U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[int, Meta(ge=1, le=2**63 - 1)]  # base units
JobId = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{2,62}\Z")]
NodeId = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{2,62}\Z")]
ClientId = Annotated[str, Meta(pattern=r"\Ac-[0-9a-f]{32}\Z")]
CallerId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
SessionId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Address = Annotated[str, Meta(pattern=r"\A[1-9A-HJ-NP-Za-km-z]{32,44}\Z")]  # Solana account, base58
Signature = Annotated[str, Meta(pattern=r"\A[1-9A-HJ-NP-Za-km-z]{64,88}\Z")]  # Solana transaction, base58
PublicKey = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # Ed25519, hex
SeedSignature = Annotated[str, Meta(pattern=r"\A[0-9a-f]{128}\Z")]  # Ed25519, hex
NetworkId = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{0,200}\Z")]
RequestId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{0,64}\Z")]
DeploymentId = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,49}-[0-9a-f]{12}\Z")]  # ends with its owner's digest
Text = Annotated[str, Meta(max_length=2000)]
Name = Annotated[str, Meta(min_length=1, max_length=100)]
Percent = Annotated[float, Meta(ge=0.0, le=100.0)]
Gauge = Annotated[float, Meta(ge=0.0, le=1e18)]

AccessId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{12}([0-9a-f]{20})?\Z")]  # of an API key, or of a session

Device = Literal["cpu", "cuda"]
Role = Literal["client", "operator", "node"]
JobStatus = Literal[
    "funding", "queued", "leased", "paused", "checking", "settling", "completed", "failed", "cancelled"
]  # of a job: cyxcentral/jobs.py


class Request(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The base of what a caller asks: unknown fields are refused, so a typo is never ignored."""


# ---------------------------------------------------------------------------------------------------
# What a job is


class ArtifactRef(Request, kw_only=True, frozen=True):
    """Bytes by their digest. size in bytes."""

    sha256: Digest
    size: U63


class Needs(Request, kw_only=True, frozen=True):
    """What a node must have. memory_bytes 0 lets central estimate it from the graph and the data."""

    device: Literal["cpu", "cuda", "any"] = "any"
    memory_bytes: U63 = 0
    cores: Annotated[int, Meta(ge=1, le=4096)] = 1
    region: Annotated[str, Meta(max_length=64)] = ""  # where it should run; empty: anywhere
    node_id: Annotated[str, Meta(max_length=63)] = ""  # on this node and no other; empty: any


class CheckpointPolicy(Request, kw_only=True, frozen=True):
    """When a run stores its whole state (weights, optimiser, position): whichever is due first.

    every_steps: training steps, 0: not by steps. every_s: seconds, 0: not by time.
    """

    every_steps: Annotated[int, Meta(ge=0, le=2**53)] = 0
    every_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 60.0


class DatasetFacts(Request, kw_only=True, frozen=True):
    """What the submitter read in the data; the node reads it again and refuses what differs."""

    rows: U63
    input_shape: list[Annotated[int, Meta(ge=1, le=2**31 - 1)]]
    classes: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0


ModelFormat = Literal["cyxmodel", "safetensors", "onnx", "gguf"]


class ServeSpec(Request, kw_only=True, frozen=True):
    """One replica of a deployment: for `seconds` it answers whoever asks for the deployment.

    deployment: the replicas that name it answer in turn; cyxnet.subjects.deployment_id() makes it of a name and the
    owner, so nobody else can offer a replica of it. format: of the model file, which is the job's dataset.
    public: anybody on the network may ask; else only its owner. The rest is as in `cyx serve`; 0 stands for its default
    there. memory_bytes: of weights and plans, or of a language model's keys and values. drain_s: so long answers under
    way may take when it ends; no new request is taken then.

    standby: it is paid for and waits until central calls it; by the newest replica's wish there are `least` at work at
    any time, and up to `most` while more questions are in flight than `concurrency` for each (0: 8). One is sent back
    when fewer would have done for `idle_s` (0: 120). least and most 0: nobody is called and nobody sent back.
    """

    deployment: DeploymentId
    format: ModelFormat
    seconds: Annotated[int, Meta(ge=1, le=31_622_400)]
    public: bool = False
    max_batch: Annotated[int, Meta(ge=0, le=4096)] = 0
    max_wait_ms: Annotated[float, Meta(ge=0.0, le=10_000.0)] = 0.0
    max_queue: Annotated[int, Meta(ge=0, le=10**6)] = 0
    memory_bytes: U63 = 0
    context: Annotated[int, Meta(ge=0, le=2**24)] = 0  # tokens of prompt and answer
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    drain_s: Annotated[int, Meta(ge=0, le=600)] = 30
    standby: bool = False
    least: Annotated[int, Meta(ge=0, le=1000)] = 0
    most: Annotated[int, Meta(ge=0, le=1000)] = 0
    concurrency: Annotated[int, Meta(ge=0, le=10**6)] = 0
    idle_s: Annotated[int, Meta(ge=0, le=86_400)] = 0


class JobRequest(Request, kw_only=True, frozen=True):
    """One job, complete: everything a node needs and nothing that runs Python.

    serve None: it trains `model` on `dataset`. Else it serves: dataset is the model file, model is ModelSpec(), and
    data, facts, training and checkpoints mean nothing.

    sealed: the dataset is readable by the node of needs.node_id only, and the states and the model by it and the
    client (cyxnet/envelope.py).
    """

    name: Name
    model: ModelSpec
    dataset: ArtifactRef
    data: DataSpec = DataSpec()
    facts: DatasetFacts | None = None
    training: TrainingSpec = TrainingSpec()
    needs: Needs = Needs()
    amount_base_units: Amount
    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    priority: Annotated[int, Meta(ge=0, le=9)] = 0  # a level counts like ten minutes of waiting
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    serve: ServeSpec | None = None
    sealed: bool = False


class SignedTransaction(Struct, kw_only=True, omit_defaults=True, gc=False):
    """A Solana transaction, signed and not yet known to have landed."""

    transaction: bytes
    signature: Signature
    last_valid_block_height: U63


class EscrowTerms(Struct, kw_only=True, frozen=True, gc=False, omit_defaults=True):
    """What a deposit pays for and who may get it. Both sides rebuild the transaction from this."""

    job_id: str
    mint: str
    authority: str  # central: settles, and names the nodes
    client: str  # pays, and gets back what is not earned
    platform: str
    amount_base_units: int
    fee_basis_points: int
    escrow: str  # the account of its state, derived from client, job_id and program
    program: str = ""  # the escrow program; "": version 1, a token account of central's
    deadline_s: int = 0  # Unix seconds; from then on anybody may have everything sent back to the client


class Payment(Request, kw_only=True, frozen=True):
    """How a submitted job is paid: a deposit the client signed for exactly the quoted terms.

    Without it, a network with custodial wallets (local ones) pays from the caller's own.
    """

    client: Address
    deposit: SignedTransaction


# ---------------------------------------------------------------------------------------------------
# Requests to central and their replies: cyx.v1.api.<caller>.<verb>


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


class Checkpoint(Struct, kw_only=True, frozen=True):
    """The state of a run after `step` of `steps` training steps, stored whole."""

    step: U63
    steps: U63
    state: ArtifactRef


FIRST_CHECK = 501  # checks of a job count from here on, its attempts from 1: a run of it is one or the other


class Segment(Request, kw_only=True, frozen=True):
    """A part of a training, between two of its states that are neighbours.

    start: where it begins; None: at the job's own beginning. end_step: the step whose state it ends with; 0: it ends
    with the model.
    """

    start: Checkpoint | None = None
    end_step: U63 = 0


class SignedSegment(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A segment of an attempt, and what its node signed for the end of it: the state, or the model (end_step 0)."""

    attempt: int
    start: Checkpoint | None = None
    end_step: int = 0
    end: ArtifactRef


class Finding(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a checker found at the end of a segment that it trained once more: check `number`, with its signature.

    network_id, sequence, expires_ms: what else was signed, so that anybody can verify it again.
    """

    number: int
    node_id: str
    end: ArtifactRef
    signature: str
    network_id: str = ""
    sequence: int = 0
    expires_ms: int = 0


class Payee(Struct, kw_only=True, frozen=True):
    """One node's part of a settlement: what is paid for its steps, before the platform's share."""

    wallet: str
    pay_base_units: int
    attempt: int = 0


class JobView(Struct, kw_only=True, omit_defaults=True):
    """A job as a reader sees it."""

    job_id: str
    name: str
    status: JobStatus
    client: str
    amount_base_units: int
    attempt: int
    max_attempts: int
    node_id: str | None = None
    node_name: str | None = None
    progress: float = 0.0  # 0..1, of the current attempt
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


class JobListRequest(Request, kw_only=True, frozen=True):
    """Newest first. `before` and `before_id` are submitted_at_ms and job_id of the last job of the page before.

    limit: of one answer, which is shorter when the jobs have much to say. name, node_id: only jobs whose name contains
    this text, whose last attempt was on this node. mine: only the caller's own.
    """

    status: JobStatus | None = None
    name: Annotated[str, Meta(max_length=100)] | None = None
    node_id: NodeId | None = None
    mine: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    before: U63 | None = None
    before_id: JobId | None = None


class JobList(Struct, kw_only=True):
    """total: jobs that are what was asked; more: there is another page."""

    jobs: list[JobView]
    total: int
    more: bool = False


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
    hardware: "Hardware"
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


class ExplainReply(Struct, kw_only=True):
    """Why a job is where it is: every decision with its scores, and what it waits for now."""

    job_id: str
    status: JobStatus
    decisions: list[dict[str, Any]]
    waiting_for: str | None = None
    error: str | None = None  # why it failed
    check: str = ""  # as of JobView


class WalletRequest(Request, kw_only=True, frozen=True):
    """The balances of an address, or of the caller's custodial wallet."""

    address: Address | None = None


class WalletReply(Struct, kw_only=True):
    address: str
    token_base_units: int
    lamports: int
    custodial: bool


class FaucetRequest(Request, kw_only=True, frozen=True):
    """Local networks give test money. lamports pay the chain's own fees."""

    address: Address | None = None
    amount_base_units: Annotated[int, Meta(ge=1, le=10**15)] = 100_000_000_000
    lamports: Annotated[int, Meta(ge=0, le=10**10)] = 1_000_000_000


class FaucetReply(Struct, kw_only=True):
    address: str
    signature: str
    token_base_units: int
    lamports: int


class LedgerRequest(Request, kw_only=True, frozen=True):
    """One SELECT over nodes, jobs, events, metrics, entries."""

    sql: Annotated[str, Meta(min_length=1, max_length=20_000)]
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class LedgerReply(Struct, kw_only=True):
    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


class AuditRequest(Request, kw_only=True, frozen=True):
    """Compare the log, the ledger and the chain, all of each."""


class AuditCheck(Struct, kw_only=True):
    """One comparison: of how many things, and which of them differ. more: differences that are not listed."""

    name: str
    compared: int
    differences: list[str]
    more: int = 0


class AuditReply(Struct, kw_only=True):
    checks: list[AuditCheck]


class PayoutsRequest(Request, kw_only=True, frozen=True):
    """An operator stops all payments, or lets them go on and takes the differences that were found as they are."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class PayoutsReply(Struct, kw_only=True):
    """frozen: why nothing is paid; empty when it is. since_ms: of the last change, 0 when there was none."""

    frozen: str
    since_ms: int = 0
    differences: list[str] = []


class ArtifactManifest(Request, kw_only=True, frozen=True):
    """An artifact as its chunks, in order. Every chunk but the last has the network's chunk size."""

    sha256: Digest
    size: U63
    chunks: Annotated[list[Digest], Meta(min_length=1, max_length=100_000)]


class ArtifactStatReply(Struct, kw_only=True):
    """complete: the artifact is stored whole. missing: chunks that must still be sent."""

    complete: bool
    missing: list[str]


class ArtifactRefRequest(Request, kw_only=True, frozen=True):
    """An artifact, or a chunk of one. Who may not have it is told that it is not there.

    artifact: of a chunk, the artifact that it is a part of; None: the chunk is all of it. as_operator: an operator may
    have everything.
    """

    sha256: Digest
    artifact: Digest | None = None
    as_operator: bool = False


class ChunkReply(Struct, kw_only=True):
    sha256: str
    size: int


# ---------------------------------------------------------------------------------------------------
# Access over HTTP: API keys and sessions (docs/http.md)


SLOWEST_PER_S = 0.001  # a rate of an API key: one request in a quarter of an hour


class KeyNewRequest(Request, kw_only=True, frozen=True):
    """Make an API key that acts for the caller. requests_per_s: 0 as often as the caller; days: 0 until revoked.

    Raises ValueError for a rate between 0 and SLOWEST_PER_S.
    """

    name: Annotated[str, Meta(max_length=100)] = ""
    role: Role = "client"
    requests_per_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    days: Annotated[int, Meta(ge=0, le=3650)] = 0

    def __post_init__(self) -> None:
        if 0.0 < self.requests_per_s < SLOWEST_PER_S:
            raise ValueError(f"expected requests_per_s 0 or from {SLOWEST_PER_S:g} on, got {self.requests_per_s:g}")


class KeyView(Struct, kw_only=True, omit_defaults=True):
    """An API key as its owner sees it: all but the secret. ends_at_ms, revoked_at_ms: 0 for not."""

    id: str
    identity: str
    role: Role
    name: str = ""
    requests_per_s: float = 0.0
    made_at_ms: int
    ends_at_ms: int = 0
    revoked_at_ms: int = 0


class HttpSessionView(Struct, kw_only=True, omit_defaults=True):
    """A session as its owner sees it. refreshed_at_ms: when its newest refresh token was given out."""

    id: str
    identity: str
    role: Role
    opened_at_ms: int
    refreshed_at_ms: int
    ends_at_ms: int
    revoked_at_ms: int = 0
    reason: str = ""  # why it was revoked


class NewKey(Struct, kw_only=True):
    """`key` is shown this once: it is not stored, only its SHA-256."""

    key: str
    view: KeyView


class KeyListRequest(Request, kw_only=True, frozen=True):
    """The caller's API keys and sessions, the newest first. as_operator: everybody's.

    limit: of one answer. after: as the page before says.
    """

    as_operator: bool = False
    limit: Annotated[int, Meta(ge=1, le=500)] = 500
    after: AccessId | None = None


class KeyList(Struct, kw_only=True, omit_defaults=True):
    """after: to be asked for the next page with; "" when there is none."""

    keys: list[KeyView]
    sessions: list[HttpSessionView]
    after: str = ""


class KeyRevokeRequest(Request, kw_only=True, frozen=True):
    """Refuse a key or a session from now on. as_operator: it may be anybody's."""

    id: AccessId
    as_operator: bool = False


class NonceReply(Struct, kw_only=True):
    """What to sign to open a session, and for which network. expires_in: seconds."""

    nonce: str
    network_id: str
    expires_in: int


class HttpSessionRequest(Request, kw_only=True, frozen=True):
    """Open a session: the key proves itself by its signature over cyxnet.credentials.session_bytes().

    identity: who the session is for. A client's is the digest of `nkey`, which has signed for `public_key` (binding),
    or of the public key itself where that is empty; a node's id ends with the digest of its public key.
    """

    nonce: Annotated[str, Meta(max_length=200)]
    public_key: PublicKey
    signature: SeedSignature
    identity: CallerId
    role: Role = "client"
    nkey: Annotated[str, Meta(max_length=56)] = ""
    binding: Annotated[str, Meta(max_length=128)] = ""


class RefreshRequest(Request, kw_only=True, frozen=True):
    refresh_token: Annotated[str, Meta(max_length=200)]


class SessionTokens(Struct, kw_only=True):
    """An access token for `expires_in` seconds, and the refresh token that gets the next one, once."""

    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str
    session_id: str
    identity: str
    role: Role


class ApiKey(Struct, kw_only=True, frozen=True, omit_defaults=True, tag=True, tag_field="t"):
    """An API key as it is stored. sha256: of its secret, hex. Times in Unix milliseconds, 0 for never."""

    id: str
    identity: str
    role: Role
    sha256: str
    name: str = ""
    requests_per_s: float = 0.0
    made_at_ms: int
    ends_at_ms: int = 0
    revoked_at_ms: int = 0


class HttpSession(Struct, kw_only=True, frozen=True, omit_defaults=True, tag=True, tag_field="t"):
    """A session as it is stored. generation: the number of its refresh token that is good now.

    change: drawn for each rotation, so that who made it can tell.
    """

    id: str
    identity: str
    role: Role
    public_key: str
    generation: int
    opened_at_ms: int
    refreshed_at_ms: int
    ends_at_ms: int
    revoked_at_ms: int = 0
    reason: str = ""
    change: str = ""


Grant = ApiKey | HttpSession


# ---------------------------------------------------------------------------------------------------
# Node to central: cyx.v1.node.<node>.<verb>


class Gpu(Struct, kw_only=True):
    name: str
    memory_bytes: U63
    compute_capability: str = ""
    driver: str = ""


class Hardware(Struct, kw_only=True, omit_defaults=True):
    """What a node measured of itself."""

    cores: Annotated[int, Meta(ge=1, le=65536)]
    memory_bytes: U63
    memory_free_bytes: U63
    cpu: str = ""
    isa: str = ""  # of the compiled kernels: avx512, avx2, portable
    gpus: Annotated[list[Gpu], Meta(max_length=64)] = []
    os: str = ""
    flops_per_s: Gauge = 0.0  # measured, float32 matrix product
    bytes_per_s: Gauge = 0.0  # measured, between processor and memory


class Register(Request, kw_only=True, frozen=True):
    """A node says who it is. A new session ends the leases of the one before.

    began_ms: when the session began by the node's own count, which only grows; a session that began before the one
    that is registered is refused. 0 from nodes that do not count.
    network_id, sequence, expires_ms: as of RunCompleted; network_id "" from a node that has not been told it.
    signed_commands: this session takes commands that central signed, and no others. now_ms: as of Heartbeat.
    checks: this session can train a segment of a job once more, for its digest (Assign.segment).
    shared_signatures: and commands of which many share a signature (SignedCommand.path).
    signed_goodbyes: this session signs its goodbye: one that is not signed is not its own.
    """

    node_id: NodeId
    session: SessionId
    name: Name
    public_key: PublicKey
    wallet: Address
    hardware: Hardware
    max_runs: Annotated[int, Meta(ge=1, le=1024)] = 1
    region: Annotated[str, Meta(max_length=64)] = ""
    price_per_hour_base_units: U63 = 0
    version: Annotated[str, Meta(max_length=32)] = ""
    began_ms: U63 = 0
    network_id: NetworkId = ""
    sequence: U63 = 0
    expires_ms: U63 = 0
    signature: SeedSignature
    signed_commands: bool = False
    now_ms: U63 = 0
    checks: bool = False
    shared_signatures: bool = False
    signed_goodbyes: bool = False


class RegisterReply(Struct, kw_only=True, omit_defaults=True):
    """now_ms: the time by central's clock, which what a node signs is good until; 0 from older centrals.

    platform_key: which vouches for the keys that commands are signed with, to a node that takes signed ones.
    """

    heartbeat_ms: int
    lease_ms: int
    network_id: str = ""
    now_ms: int = 0
    platform_key: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


class RunRef(Struct, kw_only=True, omit_defaults=True):
    """A run. Heartbeats tell how far it is: phase as in cyxnode.state, step of the training so far.

    requests, waiting: of a replica: how many it has answered, and how many were in flight on average since the
    heartbeat before. answers_pings: central may ask it whether it answers; False from older nodes, whose replicas do
    not hear that.
    """

    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    phase: Annotated[str, Meta(max_length=16)] = ""
    step: U63 = 0
    requests: U63 = 0
    waiting: U63 = 0
    answers_pings: bool = False


class Heartbeat(Request, kw_only=True, frozen=True):
    """number: counts the heartbeats of a session, from 1 on. now_ms: the time by the node's clock, which commands to it
    are good until: that of its machine when the session began, and what passed since. Both 0 from older nodes.
    """

    node_id: NodeId
    session: SessionId
    runs: Annotated[list[RunRef], Meta(max_length=1024)] = []
    memory_free_bytes: U63 = 0
    draining: bool = False  # its operator wants it to take no new runs
    number: U63 = 0
    now_ms: U63 = 0


class HeartbeatReply(Struct, kw_only=True, omit_defaults=True):
    """known is False when central has no such session: register again. stop lists fenced runs.

    begin and pause repeat commands that a run does not show to have heard. now_ms: as of RegisterReply.
    orders: the three lists, signed, instead of them: to a node that takes signed commands.
    """

    known: bool
    stop: list[RunRef] = []
    begin: list[RunRef] = []
    pause: list[RunRef] = []
    now_ms: int = 0
    orders: "SignedCommand | None" = None


class CpuMetrics(Struct, kw_only=True):
    per_core_percent: Annotated[list[Percent], Meta(max_length=4096)]
    frequency_mhz: Gauge = 0.0
    temperature_c: float | None = None


class GpuMetrics(Struct, kw_only=True):
    index: Int64
    util_percent: Percent
    memory_used_bytes: U63
    memory_total_bytes: U63
    temperature_c: float | None = None
    power_w: float | None = None


class HardwareMetrics(Request, kw_only=True, frozen=True):
    """Every 5 s. Network counters are totals since boot."""

    node_id: NodeId
    session: SessionId
    runs: Annotated[list[RunRef], Meta(max_length=1024)] = []
    cpu: CpuMetrics
    gpus: Annotated[list[GpuMetrics], Meta(max_length=64)] = []
    ram_used_bytes: U63
    ram_total_bytes: U63
    swap_used_bytes: U63 = 0
    swap_total_bytes: U63 = 0
    net_sent_bytes: U63 = 0
    net_received_bytes: U63 = 0
    net_connections: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0


class Progress(Request, kw_only=True, frozen=True):
    """Metrics of a run: exactly one of batch and epoch."""

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    batch: BatchMetrics | None = None
    epoch: EpochMetrics | None = None


class RunStarted(Request, kw_only=True, frozen=True):
    """The training process made its first step; a replica is ready and answers."""

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]


class RunCheckpoint(Request, kw_only=True, frozen=True):
    """The run's state is stored as an artifact. signature: Ed25519 by the node over checkpoint_bytes().

    network_id, sequence, expires_ms: as of RunCompleted.
    """

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    checkpoint: Checkpoint
    network_id: NetworkId = ""
    sequence: U63 = 0
    expires_ms: U63 = 0
    signature: SeedSignature


class RunFailed(Request, kw_only=True, frozen=True):
    """The run ended without a model. deterministic: the same job fails the same way anywhere.

    code "paused": as asked, after its checkpoint; "node_stopped": the operator stops the node. Neither counts as a try.
    memory_bytes: of a run that ran out of memory, what it was allowed to have.
    """

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    code: Annotated[str, Meta(max_length=64)]
    message: Text
    deterministic: bool = False
    memory_bytes: U63 = 0


class RunCompleted(Request, kw_only=True, frozen=True):
    """The model is stored as an artifact. signature: Ed25519 by the node over completion_bytes().

    network_id: the network that it is for. sequence: counts what the node signed in this session, from 1 on.
    expires_ms: when it is too late to say it, by central's clock; 0 from a node of a version that signs none of these.
    """

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    model: ArtifactRef
    graph_sha256: Digest
    summary: TrainingSummary
    network_id: NetworkId = ""
    sequence: U63 = 0
    expires_ms: U63 = 0
    signature: SeedSignature


class SegmentTrained(Request, kw_only=True, frozen=True):
    """A check is done: the segment was trained once more. signature: Ed25519 by the node over segment_bytes().

    attempt: the number of the check. end: the digest and size of what the segment ends with, which is not uploaded:
    its state as a checkpoint holds it, or the model. network_id, sequence, expires_ms: as of RunCompleted.
    """

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=FIRST_CHECK, le=1000)]
    segment: Segment
    end: ArtifactRef
    network_id: NetworkId = ""
    sequence: U63 = 0
    expires_ms: U63 = 0
    signature: SeedSignature


class Goodbye(Request, kw_only=True, frozen=True):
    """The node stops on purpose: its runs are free at once.

    signature: Ed25519 by the node over goodbye_bytes(); "" from nodes that do not sign it (Register.signed_goodbyes).
    network_id, sequence, expires_ms: as of RunCompleted.
    """

    node_id: NodeId
    session: SessionId
    reason: Text = "the operator stopped the node"
    network_id: NetworkId = ""
    sequence: U63 = 0
    expires_ms: U63 = 0
    signature: SeedSignature | Literal[""] = ""


class ReportReply(Struct, kw_only=True):
    """fenced: this attempt is no longer the current one; the node stops and discards it."""

    accepted: bool
    fenced: bool = False
    reason: str = ""


# ---------------------------------------------------------------------------------------------------
# Central to node: cyx.v1.cmd.<node>


class Assign(Request, kw_only=True, frozen=True, tag="assign", tag_field="do"):
    """Train this job, or serve it.

    segment: or check it: train this part of it once more and say its digest (SegmentTrained), with nothing uploaded.
    attempt is the number of the check then, and resume None. Only to a node that said at Register that it checks.
    """

    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    session: SessionId
    job: JobRequest
    lease_ms: U63
    resume: Checkpoint | None = None  # where to go on from; None: from the beginning
    funded: bool = True  # False: prepare everything, and wait for Begin before the first step
    memory_bytes: U63 = 0  # at least so much of it, whatever the job says: with less it ran out elsewhere
    owner: Annotated[str, Meta(max_length=64)] = ""  # the caller who submitted it
    segment: Segment | None = None


class Begin(Request, kw_only=True, frozen=True, tag="begin", tag_field="do"):
    """The deposit is final: a prepared run may train."""

    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    session: SessionId


class Pause(Request, kw_only=True, frozen=True, tag="pause", tag_field="do"):
    """Store a checkpoint, then end the run with code "paused"."""

    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    session: SessionId


class Stop(Request, kw_only=True, frozen=True, tag="stop", tag_field="do"):
    """End the run and discard it; a replica answers first what it has taken."""

    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    session: SessionId
    reason: Text = ""


Command = Assign | Begin | Pause | Stop


class Orders(Request, kw_only=True, frozen=True, tag="orders", tag_field="do"):
    """What the answer to one heartbeat says of its runs: as the lists of HeartbeatReply."""

    stop: Annotated[list[RunRef], Meta(max_length=1024)] = []
    begin: Annotated[list[RunRef], Meta(max_length=1024)] = []
    pause: Annotated[list[RunRef], Meta(max_length=1024)] = []


class CommandKey(Request, kw_only=True, frozen=True):
    """A key that commands are signed with, and the word of the platform's key for it, over command_key_bytes().

    number: of the key, from 1 on. A node that took a command of one takes none of those with a smaller number.
    """

    public_key: PublicKey
    number: Annotated[int, Meta(ge=1, le=2**31)]
    signature: SeedSignature


class SignedCommand(Request, kw_only=True, frozen=True, tag="signed", tag_field="do"):
    """A command, and the signature of `key` over command_bytes(). payload: a Command or Orders in MessagePack.

    sequence: the newest event of the job that central had read; of Orders, the number of the heartbeat.
    expires_ms: when it is too late to say it, by the node's clock.
    path: of one that shares its signature with others: what stands beside it on the way to the root of the tree of all
    of them (leaf_of, branch_of), which is signed then, as shared_bytes(). turns: bit i: path[i] stands to the left.
    """

    network_id: NetworkId
    node_id: NodeId
    key: CommandKey
    sequence: U63
    expires_ms: U63
    payload: bytes
    signature: SeedSignature
    path: Annotated[list[Annotated[bytes, Meta(min_length=32, max_length=32)]], Meta(max_length=16)] = []
    turns: Annotated[int, Meta(ge=0, lt=2**16)] = 0


class CommandReply(Struct, kw_only=True):
    """code: of a command that is not taken for one of central's; then now_ms is the time by the node's clock."""

    accepted: bool
    reason: str = ""
    code: str = ""
    now_ms: U63 = 0


# ---------------------------------------------------------------------------------------------------
# Events: facts in the log, cyx.v1.event.<kind>.<id>


class Event(Struct, kw_only=True, omit_defaults=True, tag=True, tag_field="t", gc=False):
    """A fact about one job, node, client or mint, or about all payments. Never changed once stored."""


class Submitted(Event, kw_only=True):
    """A client asked for this job and signed its deposit."""

    job: JobRequest
    terms: EscrowTerms
    caller: str
    memory_bytes: int
    deposit: SignedTransaction
    price_base_units: int = 0  # the most that is charged, as it was quoted; 0: the amount
    reference_fee_base_units: int = 0  # a completion for such a fee counts in full; 0: any does, before it is paid


class TransactionSigned(Event, kw_only=True):
    """Central signed a transaction; the bytes are here before they are sent anywhere."""

    purpose: Literal["deposit", "settle"]
    signed: SignedTransaction
    pay_base_units: int = 0


class Funded(Event, kw_only=True):
    """The deposit is final on the chain: the amount sits in the escrow account."""

    signature: str


class FundFailed(Event, kw_only=True):
    """The deposit cannot land any more, or landed as an error. Nothing was taken."""

    reason: str


class Leased(Event, kw_only=True):
    """The job was given to a node for as long as that node's heartbeats name it."""

    attempt: int
    node_id: str
    session: str
    wallet: str
    lease_ms: int
    explanation: dict[str, Any] = {}
    resume: Checkpoint | None = None  # where the attempt goes on from


class Started(Event, kw_only=True):
    """The first training step is made, or a replica is ready: its time counts from here on."""

    attempt: int


class Checkpointed(Event, kw_only=True):
    """The holder of the lease stored its state; central found the artifact whole and the signature good.

    network_id, sequence, expires_ms: what else was signed, so that anybody can verify it again.
    kept: of the segments of its job so far, the one that ends here is kept for a check (cyxcentral/segments.py).
    """

    attempt: int
    node_id: str
    checkpoint: Checkpoint
    signature: str
    network_id: str = ""
    sequence: int = 0
    expires_ms: int = 0
    kept: bool = False


class LeaseLost(Event, kw_only=True):
    """The attempt ended without a model.

    deterministic: the job itself seems to be at fault. sole: no other node could confirm that.
    memory_bytes: what it had when that was not enough: the job goes to no node where it ran out, and to none with less.
    discards: the checkpoint it was to go on from, which cannot be used: the next attempt goes on from the one before.
    """

    attempt: int
    code: str
    reason: str
    deterministic: bool = False
    sole: bool = False
    discards: Checkpoint | None = None
    memory_bytes: int = 0


class Completed(Event, kw_only=True):
    """The node delivered a model and signed for it; network_id, sequence and expires_ms are as of Checkpointed.

    segment: of the job's training, to be trained once more by a checker before anybody is paid. not_checked: why not,
    on a network that has checkers.
    """

    attempt: int
    node_id: str
    model: ArtifactRef
    graph_sha256: str
    summary: TrainingSummary
    signature: str
    network_id: str = ""
    sequence: int = 0
    expires_ms: int = 0
    segment: SignedSegment | None = None
    not_checked: str = ""


class CheckLeased(Event, kw_only=True):
    """A checker trains the segment of a delivered job once more. number: of this check, from FIRST_CHECK on."""

    number: int
    node_id: str
    session: str
    lease_ms: int


class CheckLost(Event, kw_only=True):
    """The checker said nothing, or could not do it: another one tries, or the same again. It is no attempt."""

    number: int
    code: str
    reason: str


class Checked(Event, kw_only=True):
    """The checker found what the node had signed: the job is paid."""

    finding: Finding


class CheckDiffers(Event, kw_only=True):
    """The checker found something else than the node had signed. One run's word is not enough: it is trained again."""

    finding: Finding


class Rejected(Event, kw_only=True):
    """Two runs found the same, which is not what the node of this attempt had signed.

    Nothing is paid for what that node did for the job, nor for what later attempts built on it; none of those states is
    used any more.
    findings: of both runs, the evidence beside what the node signed. impossible: why there are none: both found that
    no training goes on from the state that the segment begins with.
    """

    attempt: int
    node_id: str
    segment: SignedSegment
    findings: list[Finding]
    impossible: str = ""


class CheckGivenUp(Event, kw_only=True):
    """It cannot be told whether the training is right: the job is paid unchecked. finding: where two runs differ.

    drawn: else it only waited for the checks of what its node had delivered before.
    """

    reason: str
    finding: Finding | None = None
    drawn: bool = True


class TimeUsed(Event, kw_only=True):
    """The replicas of this job have been ready for as long as was bought: it ends, and is paid."""

    attempt: int


class ScaledUp(Event, kw_only=True):
    """A replica that stood by is called: it is to be given to a node now. reason: in words, with the figures."""

    reason: str


class ScaledDown(Event, kw_only=True):
    """A replica stands by again: whoever has it answers what it has taken, and stops."""

    reason: str


class CancelRequested(Event, kw_only=True):
    reason: str
    caller: str
    request_id: str = ""


class PauseRequested(Event, kw_only=True):
    """No step is made from here on; a run under way stores a checkpoint first. It may come before Funded."""

    caller: str
    request_id: str = ""


class ResumeRequested(Event, kw_only=True):
    """A paused job waits for a node again; of one that is not paused it changes nothing."""

    caller: str
    request_id: str = ""


class PriorityChanged(Event, kw_only=True):
    """The owner gave the job another priority: it counts whenever the job waits for a node from here on."""

    priority: int
    caller: str
    request_id: str = ""


class DeadlineNear(Event, kw_only=True):
    """Soon anybody may have the escrow refunded: no more steps are made, and those that are stored are paid.

    deadline_s: that of the escrow's terms, Unix seconds.
    """

    deadline_s: int


class Settled(Event, kw_only=True):
    """The escrow account was emptied and closed, finally. The three parts sum to the amount.

    payees: whose steps were paid; absent in old events, where node_base_units went to the last attempt's node.
    """

    signature: str
    node_base_units: int
    platform_base_units: int
    client_base_units: int
    payees: list[Payee] = []


class Refunded(Event, kw_only=True):
    """Somebody sent the escrow program's refund after the deadline: it is final, the client has the whole amount.

    Nobody is paid, and no node is to blame for it. signature: of the refund, which need not be central's.
    """

    signature: str
    client_base_units: int


class NodeRegistered(Event, kw_only=True):
    """dated: what this session signs names the network, a sequence and an expiry; what does not is refused.

    signed_commands: it takes commands that central signed, and no others. checks, shared_signatures, signed_goodbyes:
    as of Register.
    """

    node_id: str
    session: str
    name: str
    public_key: str
    wallet: str
    hardware: Hardware
    max_runs: int
    region: str = ""
    price_per_hour_base_units: int = 0
    version: str = ""
    began_ms: int = 0
    dated: bool = False
    signed_commands: bool = False
    checks: bool = False
    shared_signatures: bool = False
    signed_goodbyes: bool = False


class NodeLost(Event, kw_only=True):
    """No heartbeat for a whole lease, or the node said goodbye."""

    node_id: str
    session: str
    reason: str
    graceful: bool = False  # no failure: it said goodbye, or was banned and thrown out


class NodeDraining(Event, kw_only=True):
    """The node takes no new runs, because its operator wants to look after it; those it has go on to their end."""

    session: str


class NodeUndrained(Event, kw_only=True):
    """A draining node takes runs again."""

    session: str


class NodeBanned(Event, kw_only=True):
    """The node gets no work until then, whatever it says. Central bans; so may an operator, who is the caller then."""

    until_ms: int
    reason: str
    caller: str = ""
    request_id: str = ""


class NodePardoned(Event, kw_only=True):
    """An operator ends a ban, or forgives strikes."""

    reason: str
    caller: str = ""
    request_id: str = ""


class ClientBanned(Event, kw_only=True):
    """An operator shut the client out until then. Its jobs go on."""

    until_ms: int
    reason: str
    caller: str
    request_id: str = ""


class ClientPardoned(Event, kw_only=True):
    """An operator ends a client's ban."""

    reason: str
    caller: str
    request_id: str = ""


class MintSigned(Event, kw_only=True):
    """A faucet payment, signed and not yet known to have landed."""

    to: str
    amount_base_units: int
    signed: SignedTransaction


class Minted(Event, kw_only=True):
    to: str
    amount_base_units: int
    signature: str


class MintFailed(Event, kw_only=True):
    reason: str


class PayoutsFrozen(Event, kw_only=True):
    """Nothing is paid any more: the log, the ledger and the chain differ, or an operator wants it so.

    differences: what was found, word for word; none from an operator. caller: the operator, "" for central itself.
    """

    reason: str
    differences: list[str] = []
    caller: str = ""


class PayoutsReleased(Event, kw_only=True):
    """An operator has looked at what was found, and lets payments go on. The same differences freeze nothing again."""

    reason: str
    caller: str


JobEvent = (
    Submitted
    | TransactionSigned
    | Funded
    | FundFailed
    | Leased
    | Started
    | Checkpointed
    | LeaseLost
    | Completed
    | CheckLeased
    | CheckLost
    | Checked
    | CheckDiffers
    | Rejected
    | CheckGivenUp
    | TimeUsed
    | ScaledUp
    | ScaledDown
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | PriorityChanged
    | DeadlineNear
    | Settled
    | Refunded
)
NodeEvent = NodeRegistered | NodeLost | NodeDraining | NodeUndrained | NodeBanned | NodePardoned
ClientEvent = ClientBanned | ClientPardoned
MintEvent = MintSigned | Minted | MintFailed
PayoutsEvent = PayoutsFrozen | PayoutsReleased
AnyEvent = JobEvent | NodeEvent | MintEvent | PayoutsEvent | ClientEvent


class Record(Struct, kw_only=True, gc=False):
    """An event as it lies in the log. command_id tells a retry from a second command.

    prev: SHA-256 (hex) of the message before it on the same subject, as it lies there; empty for the first one.
    """

    command_id: str
    at_ms: int
    by: str
    event: AnyEvent
    prev: str = ""


class TelemetryRecord(Struct, kw_only=True, omit_defaults=True):
    """Metrics as they lie in the telemetry stream."""

    at_ms: int
    node_id: str
    job_id: str = ""
    attempt: int = 0
    batch: BatchMetrics | None = None
    epoch: EpochMetrics | None = None
    hardware: HardwareMetrics | None = None


class ErrorBody(Struct, kw_only=True, omit_defaults=True):
    """What an API error carries besides its headers. err_code is stable; people read message.

    now_ms: the time by the clock of who answers, where that is why.
    """

    err_code: str
    message: str
    retry_after_ms: int | None = None
    now_ms: int | None = None


def price_bytes(price: Price) -> bytes:
    """What the network signs when it quotes: domain, then all that the price is for."""
    words = [price.job_sha256, price.client, str(price.max_base_units), str(price.expires_ms)]
    return "\n".join(["cyx/v1/price", *words]).encode()


NodeSigned = Register | RunCheckpoint | RunCompleted | SegmentTrained | Goodbye


def _signed(what: str, said: NodeSigned, *words: str) -> bytes:
    """The bytes of one domain: its name, for which network, in which place, until when; then what is said.

    A node of a version that knew no expiry signs under version 1 of the domain, without any of that.
    """
    dated = [f"cyx/v2/{what}", said.network_id, str(said.sequence), str(said.expires_ms)]
    return "\n".join([*(dated if said.expires_ms else [f"cyx/v1/{what}"]), *words]).encode()


def completion_bytes(done: RunCompleted) -> bytes:
    """What a node signs when it delivers: domain, then every field that binds it to one attempt."""
    run = (done.node_id, done.session, done.job_id, str(done.attempt))
    return _signed("completion", done, *run, done.model.sha256, str(done.model.size), done.graph_sha256)


def checkpoint_bytes(said: RunCheckpoint) -> bytes:
    """What a node signs when it stores its state: another domain than a completion, the same binding."""
    run, stored = (said.node_id, said.session, said.job_id, str(said.attempt)), said.checkpoint
    state = (str(stored.step), str(stored.steps), stored.state.sha256, str(stored.state.size))
    return _signed("checkpoint", said, *run, *state)


def goodbye_bytes(said: Goodbye) -> bytes:
    """What a node signs when it leaves: the session that is over."""
    return _signed("goodbye", said, said.node_id, said.session)


def segment_bytes(said: SegmentTrained) -> bytes:
    """What a node signs when it has checked: which segment it trained, and the digest that it found."""
    run, start = (said.node_id, said.session, said.job_id, str(said.attempt)), said.segment.start
    began = (str(start.step), start.state.sha256) if start else ("0", "")
    return _signed("segment", said, *run, *began, str(said.segment.end_step), said.end.sha256, str(said.end.size))


def registration_bytes(node: Register) -> bytes:
    """What a node signs when it registers: its key owns the id, the session and the wallet."""
    began = [str(node.began_ms)] if node.began_ms else []  # older nodes neither say nor sign it
    words = {
        "signed-commands": node.signed_commands,
        "checks": node.checks,
        "shared-signatures": node.shared_signatures,
        "signed-goodbyes": node.signed_goodbyes,
    }
    wants = [word for word, said in words.items() if said]
    return _signed("register", node, node.node_id, node.session, node.public_key, node.wallet, *began, *wants)


def command_key_bytes(network_id: str, key: CommandKey) -> bytes:
    """What the platform's key signs of a key that commands are signed with."""
    return "\n".join(["cyx/v1/command-key", network_id, str(key.number), key.public_key]).encode()


def command_bytes(said: SignedCommand, session: str, kind: str, job_id: str, attempt: int) -> bytes:
    """What central signs when it commands: domain, for whom, about which run, in which place, until when, and what.

    kind: the tag of the command in `said`; job_id "" and attempt 0 of Orders.
    """
    whom = ("cyx/v1/command", said.network_id, said.node_id, session)
    what = (kind, job_id, str(attempt), str(said.sequence), str(said.expires_ms))
    return "\n".join([*whom, *what, hashlib.sha256(said.payload).hexdigest()]).encode()


def leaf_of(command: bytes) -> bytes:
    """A command in the tree of those that share a signature: command_bytes() as 32 bytes.

    A leaf and what is made of two branches begin differently (RFC 9162, 2.1.1): none can be shown for the other.
    """
    return hashlib.sha256(b"\x00" + command).digest()


def branch_of(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def shared_bytes(network_id: str, root: bytes) -> bytes:
    """What central signs for all commands of one tree: domain, network, root."""
    return "\n".join(["cyx/v1/commands", network_id, root.hex()]).encode()
