"""Node to central: cyx.v1.node.<node>.<verb>. What a node signs of its reports is here too."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cyxcore.spec import BatchMetrics, Digest, EpochMetrics, Int64, TrainingSummary
from cyxnet.messages.commands import RunRef, SignedCommand
from cyxnet.messages.fields import (
    U63,
    Address,
    Gauge,
    JobId,
    Name,
    NetworkId,
    NodeId,
    Percent,
    PublicKey,
    Request,
    SeedSignature,
    SessionId,
    Text,
)
from cyxnet.messages.jobs import FIRST_CHECK, ArtifactRef, Checkpoint, Segment


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


class Heartbeat(Request, kw_only=True, frozen=True):
    """number: counts the heartbeats of a session, from 1 on. now_ms: the time by the node's clock, which commands to it
    are good until: that of its machine when the session began, and what passed since. Both 0 from older nodes.
    gpus_free_bytes: what other programs leave of its GPUs, of each; empty while nobody has missed any of it.
    """

    node_id: NodeId
    session: SessionId
    runs: Annotated[list[RunRef], Meta(max_length=1024)] = []
    memory_free_bytes: U63 = 0
    draining: bool = False  # it takes no new runs, as its operator wants or because its disk is full
    gpus_free_bytes: Annotated[list[U63], Meta(max_length=64)] = []
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
    orders: SignedCommand | None = None


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
    memory_bytes: of a run that ran out of memory, what it was allowed to have. gpu_memory_bytes: likewise, of its GPU.
    """

    node_id: NodeId
    session: SessionId
    job_id: JobId
    attempt: Annotated[int, Meta(ge=1, le=1000)]
    code: Annotated[str, Meta(max_length=64)]
    message: Text
    deterministic: bool = False
    memory_bytes: U63 = 0
    gpu_memory_bytes: U63 = 0


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


class TelemetryRecord(Struct, kw_only=True, omit_defaults=True):
    """Metrics as they lie in the telemetry stream."""

    at_ms: int
    node_id: str
    job_id: str = ""
    attempt: int = 0
    batch: BatchMetrics | None = None
    epoch: EpochMetrics | None = None
    hardware: HardwareMetrics | None = None


NodeSigned = Register | RunCheckpoint | RunCompleted | SegmentTrained | Goodbye


def _signed(what: str, said: NodeSigned, *words: str) -> bytes:
    """The bytes of one domain: its name, for which network, in which place, until when; then what is said.

    A node of a version that knew no expiry signs under version 1 of the domain, without any of that.
    """
    dated = [f"cyx/v2/{what}", said.network_id, str(said.sequence), str(said.expires_ms)]
    return "\n".join([*(dated if said.expires_ms else [f"cyx/v1/{what}"]), *words]).encode()


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


def checkpoint_bytes(said: RunCheckpoint) -> bytes:
    """What a node signs when it stores its state: another domain than a completion, the same binding."""
    run, stored = (said.node_id, said.session, said.job_id, str(said.attempt)), said.checkpoint
    state = (str(stored.step), str(stored.steps), stored.state.sha256, str(stored.state.size))
    return _signed("checkpoint", said, *run, *state)


def completion_bytes(done: RunCompleted) -> bytes:
    """What a node signs when it delivers: domain, then every field that binds it to one attempt."""
    run = (done.node_id, done.session, done.job_id, str(done.attempt))
    return _signed("completion", done, *run, done.model.sha256, str(done.model.size), done.graph_sha256)


def segment_bytes(said: SegmentTrained) -> bytes:
    """What a node signs when it has checked: which segment it trained, and the digest that it found."""
    run, start = (said.node_id, said.session, said.job_id, str(said.attempt)), said.segment.start
    began = (str(start.step), start.state.sha256) if start else ("0", "")
    return _signed("segment", said, *run, *began, str(said.segment.end_step), said.end.sha256, str(said.end.size))


def goodbye_bytes(said: Goodbye) -> bytes:
    """What a node signs when it leaves: the session that is over."""
    return _signed("goodbye", said, said.node_id, said.session)
