"""Every subject and stream, and who may speak on it. The picture in one table:

account  subject                              from → to           carries
EDGE     cyx.v1.api.<caller>.<group>.<verb>   client → central    requests (VERBS below), JSON or MessagePack
EDGE     cyx.v1.update.<job>                  central → clients   Update, live
EDGE     cyx.v1.node.<node>.<verb>            node → central      register heartbeat progress hardware report
EDGE     cyx.v1.cmd.<node>                    central → node      Command
EDGE     cyx.v1.infer.<deployment>.<caller>   client → replica    what the model is asked (cyxnet/asking.py)
EDGE     cyx.v1.reply.<caller>.<token>        replica → client    its answer, in parts
EDGE     cyx.v1.taken.<deployment>.<caller>.<replica> client → replica  how many parts were taken, or stop; or to `all`
EDGE     cyx.v1.ping.<node>.<job>.<attempt>   central → replica   whether it answers; it does on cyx.v1.reply.…
CORE     cyx.v1.event.job|node|mint|client.<id> central             Record: stream EVENTS, the truth
CORE     cyx.v1.event.payouts.platform        central             Record: whether the platform pays
CORE     cyx.v1.telemetry.<node>              central             TelemetryRecord: stream TELEMETRY
CORE     cyx.v1.blob.chunk.<sha256>           central             chunk bytes: stream BLOBS
CORE     cyx.v1.blob.manifest.<sha256>        central             ArtifactManifest: stream BLOBS
CORE     cyx.v1.blob.condemned.<sha256>       central             ArtifactManifest that is swept: stream BLOBS
CORE     cyx.v1.blob.sent.<sha256>.<caller>   central             that he sent these bytes: stream BLOBS
CORE     cyx.v1.access.<id>                   central             Grant: stream ACCESS, the newest of each
"""

import hashlib
import re
import secrets

from msgspec import Struct

from cyxnet import messages as m
from cyxnet.messages import Role

ROOT = "cyx.v1"
EVENTS, TELEMETRY, BLOBS, ACCESS = "CYX_EVENTS", "CYX_TELEMETRY", "CYX_BLOBS", "CYX_ACCESS"
EVENT_SUBJECTS, TELEMETRY_SUBJECTS, BLOB_SUBJECTS, ACCESS_SUBJECTS = (
    f"{ROOT}.event.>",
    f"{ROOT}.telemetry.>",
    f"{ROOT}.blob.>",
    f"{ROOT}.access.>",
)
SERVICE_NAME = "cyx"


class Verb(Struct, frozen=True):
    """One request a caller may make: its types and what it is for (shown by $SRV.INFO)."""

    name: str  # "job.submit"
    request: type
    reply: type
    about: str
    raw_request: bool = False  # the payload is plain bytes, not a message
    raw_reply: bool = False
    operator: bool = False  # only an operator of the platform may ask


VERBS = {
    verb.name: verb
    for verb in [
        Verb("network.info", m.NetworkInfoRequest, m.NetworkInfo, "what network this is and how to pay on it"),
        Verb("job.quote", m.QuoteRequest, m.Quote, "check a job and learn its terms; nothing is stored"),
        Verb("job.submit", m.SubmitRequest, m.SubmitReply, "take a job, durably"),
        Verb("job.status", m.JobRef, m.JobView, "one job"),
        Verb("job.list", m.JobListRequest, m.JobList, "jobs, newest first"),
        Verb("job.updates", m.UpdatesRequest, m.Updates, "what happened to a job, from the first event"),
        Verb("job.cancel", m.CancelRequest, m.JobView, "stop a job and refund what was not earned"),
        Verb("job.pause", m.JobRef, m.JobView, "store a checkpoint, stop, and wait to be resumed"),
        Verb("job.resume", m.JobRef, m.JobView, "let a paused job go on"),
        Verb("job.priority", m.PriorityRequest, m.JobView, "give a job that has not ended another priority, 0 to 9"),
        Verb("deployment.list", m.DeploymentListRequest, m.DeploymentList, "your deployments and their replicas"),
        Verb("job.explain", m.JobRef, m.ExplainReply, "why a job is where it is"),
        Verb("node.list", m.NodeListRequest, m.NodeList, "nodes with hardware, load and reputation"),
        Verb("node.why", m.NodeWhyRequest, m.NodeWhyReply, "why a node gets the jobs that it gets"),
        Verb("node.ban", m.NodeBanRequest, m.NodeView, "shut a node out, for operators", operator=True),
        Verb("node.pardon", m.NodePardonRequest, m.NodeView, "end a node's ban, for operators", operator=True),
        Verb("client.ban", m.ClientBanRequest, m.ClientView, "shut a client out, for operators", operator=True),
        Verb("client.pardon", m.ClientPardonRequest, m.ClientView, "end a client's ban, for operators", operator=True),
        Verb("client.list", m.ClientListRequest, m.ClientList, "clients that are or were banned", operator=True),
        Verb("wallet.balance", m.WalletRequest, m.WalletReply, "balances of an address"),
        Verb("wallet.faucet", m.FaucetRequest, m.FaucetReply, "test money, on local networks only"),
        Verb("ledger.query", m.LedgerRequest, m.LedgerReply, "one read-only SELECT over the ledger"),
        Verb("ledger.verify", m.AuditRequest, m.AuditReply, "compare log, ledger and chain", operator=True),
        Verb("payouts.freeze", m.PayoutsRequest, m.PayoutsReply, "stop all payments", operator=True),
        Verb("payouts.release", m.PayoutsRequest, m.PayoutsReply, "let payments go on", operator=True),
        Verb("artifact.stat", m.ArtifactManifest, m.ArtifactStatReply, "which chunks are missing"),
        Verb("artifact.put", bytes, m.ChunkReply, "store one chunk: the payload is its bytes", raw_request=True),
        Verb("artifact.commit", m.ArtifactManifest, m.ArtifactRef, "declare an artifact whole; verified here"),
        Verb("artifact.manifest", m.ArtifactRefRequest, m.ArtifactManifest, "the chunks of an artifact"),
        Verb("artifact.chunk", m.ArtifactRefRequest, bytes, "the bytes of one chunk", raw_reply=True),
        Verb("key.new", m.KeyNewRequest, m.NewKey, "make an API key for HTTP, shown once"),
        Verb("key.list", m.KeyListRequest, m.KeyList, "API keys and HTTP sessions"),
        Verb("key.revoke", m.KeyRevokeRequest, m.KeyList, "refuse an API key or an HTTP session from now on"),
    ]
}

NODE_VERBS = {
    "register": (m.Register, m.RegisterReply),
    "heartbeat": (m.Heartbeat, m.HeartbeatReply),
    "started": (m.RunStarted, m.ReportReply),
    "checkpoint": (m.RunCheckpoint, m.ReportReply),
    "failed": (m.RunFailed, m.ReportReply),
    "completed": (m.RunCompleted, m.ReportReply),
    "segment": (m.SegmentTrained, m.ReportReply),
    "goodbye": (m.Goodbye, m.ReportReply),
}
NODE_TELEMETRY: dict[str, type[m.Progress | m.HardwareMetrics]] = {
    "progress": m.Progress,
    "hardware": m.HardwareMetrics,
}


def api(caller: str, verb: str) -> str:
    return f"{ROOT}.api.{caller}.{verb}"


def asked(subject: str) -> str:
    """What a subject asks for, for people: of a request of a caller, who knows who he is, the verb alone."""
    tokens = subject.split(".")
    return ".".join(tokens[4:]) if tokens[2:3] == ["api"] else subject


def node(node_id: str, verb: str) -> str:
    return f"{ROOT}.node.{node_id}.{verb}"


def command(node_id: str) -> str:
    return f"{ROOT}.cmd.{node_id}"


def update(job_id: str) -> str:
    return f"{ROOT}.update.{job_id}"


REPLICAS = "replicas"  # the queue group in which they answer
CENTRAL = "central"  # who asks replicas whether they answer: no caller is called so


def infer(deployment: str, caller: str) -> str:
    """Where this caller asks this deployment."""
    return f"{ROOT}.infer.{deployment}.{caller}"


def reply(caller: str, token: str) -> str:
    """Where this caller alone hears answers. token: drawn for each question, so that nobody can guess it."""
    return f"{ROOT}.reply.{caller}.{token}"


EVERY = "all"  # in the place of a replica


def taken(deployment: str, caller: str, replica: str) -> str:
    """Where this caller tells a replica to go on with an answer, or to stop. replica: the token it drew, or EVERY."""
    return f"{ROOT}.taken.{deployment}.{caller}.{replica}"


def ping(replica: str) -> str:
    """Where central asks one replica, by the id of its connection, whether it answers."""
    return f"{ROOT}.ping.{replica.replace('/', '.')}"


def new_job_id(name: str) -> str:
    """A readable, unguessable id: the name's letters and ten random hex digits."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "job"
    return f"{slug}-{secrets.token_hex(5)}"


def deployment_id(slug: str, owner: str) -> str:
    """The deployment that `owner` calls `slug`: the digest at its end makes it nobody else's."""
    return f"{slug}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}"


def is_owned(deployment: str, caller: str) -> bool:
    """Whether this caller is the one who may offer replicas of a deployment."""
    return deployment == deployment_id(deployment[: -len(owners_end(deployment))], caller)


def owners_end(deployment: str) -> str:
    """The end of a deployment's id, which is the same of all that its owner has: deployment_id("", owner)."""
    return deployment[-13:]


def job_event(job_id: str) -> str:
    return f"{ROOT}.event.job.{job_id}"


def node_event(node_id: str) -> str:
    return f"{ROOT}.event.node.{node_id}"


def client_event(client_id: str) -> str:
    return f"{ROOT}.event.client.{client_id}"


def mint_event(mint_id: str) -> str:
    return f"{ROOT}.event.mint.{mint_id}"


PAYOUTS_EVENT = f"{ROOT}.event.payouts.platform"


def telemetry(node_id: str) -> str:
    return f"{ROOT}.telemetry.{node_id}"


def chunk(sha256: str) -> str:
    return f"{ROOT}.blob.chunk.{sha256}"


def manifest(sha256: str) -> str:
    return f"{ROOT}.blob.manifest.{sha256}"


def condemned(sha256: str) -> str:
    return f"{ROOT}.blob.condemned.{sha256}"


def sent(sha256: str, caller: str) -> str:
    return f"{ROOT}.blob.sent.{sha256}.{caller}"


def access(grant_id: str) -> str:
    return f"{ROOT}.access.{grant_id}"


def last_token(subject: str) -> str:
    """The id at the end of a subject: the job, node, mint or digest it is about."""
    return subject.rsplit(".", 1)[-1]


DISCOVERY = ["$SRV.PING", "$SRV.PING.>", "$SRV.INFO", "$SRV.INFO.>", "$SRV.STATS", "$SRV.STATS.>"]


class Permissions(Struct, frozen=True, kw_only=True):
    """What one connection may do in the EDGE account: nothing but this.

    answers: whether it may answer a message it was sent, once, to the reply subject in it.
    """

    publish: list[str]
    subscribe: list[str]
    answers: bool = False


def inbox(identity: str) -> str:
    """The prefix of the inboxes of a connection. No other connection but central's may listen there."""
    return f"_INBOX_{identity}"


def may_ask(role: Role, verb: Verb) -> bool:
    """Whether callers of this role may make this request, however it comes."""
    if role == "node":
        return verb.name.startswith(("artifact.", "key."))
    return role == "operator" or not verb.operator


def permissions(role: Role, identity: str) -> Permissions:
    """What a client, operator or node may do: its own id is in every subject it speaks on, and in its inboxes."""
    asked = [api(identity, verb.name) for verb in VERBS.values() if may_ask(role, verb)]
    if role == "node":
        own = [node(identity, verb) for verb in [*NODE_VERBS, *NODE_TELEMETRY]] + asked
        return Permissions(publish=own, subscribe=[command(identity), f"{inbox(identity)}.>"], answers=True)
    return Permissions(
        publish=[*asked, *DISCOVERY, infer("*", identity), taken("*", identity, "*")],
        subscribe=[update("*"), f"{inbox(identity)}.>", reply(identity, ">")],
    )


def replica_permissions(deployment: str, replica: str) -> Permissions:
    """What the connection of one replica may do: answer in turn with the others, and central. It has no inbox.

    Where it is asked it may subscribe in the queue group only, so it never gets a copy of what another replica answers.
    """
    asked = f"{infer(deployment, '*')} {REPLICAS}"
    return Permissions(publish=[reply("*", ">")], subscribe=[asked, taken(deployment, "*", "*"), ping(replica)])
