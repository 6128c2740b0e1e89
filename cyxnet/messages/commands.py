"""Central to node: cyx.v1.cmd.<node>. A command is signed; what is signed of each is here too."""

import hashlib
from typing import Annotated

from msgspec import Meta, Struct

from cyxnet.messages.fields import U63, JobId, NetworkId, NodeId, PublicKey, Request, SeedSignature, SessionId, Text
from cyxnet.messages.jobs import Checkpoint, JobRequest, Segment


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
    gpu_memory_bytes: U63 = 0  # that its GPU must have free; 0: of a job without one


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
