"""Events: facts in the log, cyx.v1.event.<kind>.<id>. Never changed once stored."""

from typing import Any, Literal

from msgspec import Struct

from cyxcore.spec import TrainingSummary
from cyxnet.messages.jobs import (
    ArtifactRef,
    Checkpoint,
    EscrowTerms,
    Finding,
    JobRequest,
    Payee,
    SignedSegment,
    SignedTransaction,
)
from cyxnet.messages.reports import Hardware


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
    gpu_memory_bytes: int = 0  # of one GPU; 0: it needs none


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
    gpu_memory_bytes: likewise, of its GPU.
    discards: the checkpoint it was to go on from, which cannot be used: the next attempt goes on from the one before.
    """

    attempt: int
    code: str
    reason: str
    deterministic: bool = False
    sole: bool = False
    discards: Checkpoint | None = None
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0


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


class DependenciesMet(Event, kw_only=True):
    """The jobs that this one comes after are completed: it waits for a node from here on.

    weights: SHA-256 of the model among theirs that it begins with; "": it begins with its own.
    """

    weights: str = ""


class DependencyFailed(Event, kw_only=True):
    """A job that this one comes after came to nothing, or its model is worth too little: this one is cancelled."""

    job_id: str
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
    | DependenciesMet
    | DependencyFailed
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | PriorityChanged
    | DeadlineNear
    | Settled
    | Refunded
)


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
    """The node takes no new runs, as its operator wants or because its disk is full; those it has go on."""

    session: str


class NodeUndrained(Event, kw_only=True):
    """A draining node takes runs again."""

    session: str


class NodeGpusRead(Event, kw_only=True):
    """What other programs leave of the memory of a node's GPUs, of each, since a run missed some of it."""

    session: str
    free_bytes: list[int]


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


NodeEvent = NodeRegistered | NodeLost | NodeDraining | NodeUndrained | NodeGpusRead | NodeBanned | NodePardoned


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


ClientEvent = ClientBanned | ClientPardoned


class MintSigned(Event, kw_only=True):
    """A faucet payment, signed and not yet known to have landed.

    lamports: of older versions, which had the chain give them beside it; now they are in what is signed.
    """

    to: str
    amount_base_units: int
    signed: SignedTransaction
    lamports: int = 0


class Minted(Event, kw_only=True):
    to: str
    amount_base_units: int
    signature: str


class MintFailed(Event, kw_only=True):
    reason: str


MintEvent = MintSigned | Minted | MintFailed


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
