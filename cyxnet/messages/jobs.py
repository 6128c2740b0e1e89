"""What a job is: what a client asks for, how it is paid, and what its work consists of."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from cyxcore.spec import DataSpec, Digest, ModelSpec, TrainingSpec
from cyxnet.messages.fields import U63, Address, Amount, DeploymentId, JobId, Name, Request, Signature

JobStatus = Literal[
    "funding", "waiting", "queued", "leased", "paused", "checking", "settling", "completed", "failed", "cancelled"
]  # of a job: cyxcentral/jobs.py
SummaryMetric = Literal["final_loss", "final_accuracy", "validation_loss", "validation_accuracy", "validation_r2"]


class ArtifactRef(Request, kw_only=True, frozen=True):
    """Bytes by their digest. size in bytes."""

    sha256: Digest
    size: U63


class Needs(Request, kw_only=True, frozen=True):
    """What a node must have. memory_bytes and gpu_memory_bytes, which is of one GPU and only for device cuda: 0 lets
    central estimate them from the graph and the data.
    """

    device: Literal["cpu", "cuda", "any"] = "any"
    memory_bytes: U63 = 0
    gpu_memory_bytes: U63 = 0
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


class After(Request, kw_only=True, frozen=True):
    """A job of the same client that has to be completed before another one begins.

    model: the other one begins with the weights of its model, or, of several of which that is said, with those of the
    best by JobRequest.best_by; those that fail are passed over while one is left. metric: of its summary, which has to
    be at_least or at_most so much: else it is as if this one had failed, and the other one is cancelled.
    """

    job_id: JobId
    model: bool = False
    metric: SummaryMetric | None = None
    at_least: float | None = None
    at_most: float | None = None


class JobRequest(Request, kw_only=True, frozen=True):
    """One job, complete: everything a node needs and nothing that runs Python.

    serve None: it trains `model` on `dataset`. Else it serves: dataset is the model file, model is ModelSpec(), and
    data, facts, training and checkpoints mean nothing.

    sealed: the dataset is readable by the node of needs.node_id only, and the states and the model by it and the
    client (cyxnet/envelope.py).

    after: the jobs that have to be completed first; until then it waits, and its deposit with it. best_by: of those
    whose model it could begin with, which is best: the least loss, or the greatest of any other metric.
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
    after: Annotated[list[After], Meta(max_length=100)] = []
    best_by: SummaryMetric | None = None


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
