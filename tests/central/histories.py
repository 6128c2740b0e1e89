"""Histories that are kept for ever: logs as they were written, and the state that they fold to.

    python -m tests.central.histories      writes what is new in HISTORIES; what is there already is never written again

A file holds the bytes of every record, so that a change of a message that an old log cannot survive is seen, and the
SHA-256 of the state, so that a change of a rule that gives an old log another meaning is seen too. Fields that have
their default do not count: a new field with a default changes nothing that happened.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from cyxcentral.records import read
from cyxcentral.world import World
from cyxcore.spec import ModelSpec
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.codec import MSGPACK, encode
from cyxnet.outcomes import Stored
from tests.central import facts as f

FOLDER = Path(__file__).parents[1] / "golden" / "histories"
FIRST_MS = 1_700_000_000_000
JOB, NODE_A, NODE_B = subjects.job_event("job-1"), subjects.node_event("node-a"), subjects.node_event("node-b")
NEXT, LAST = subjects.job_event("job-2"), subjects.job_event("job-3")
NODE_C = subjects.node_event("node-c")
MINT = subjects.mint_event("mint-1")
CLIENT = subjects.client_event(f"c-{'7' * 32}")
DAY_MS = 86_400_000
Said = tuple[str, Any]


class Unchained(NamedTuple):
    """An event whose record does not name the message before it."""

    event: Any


def checkpoint(step: int, steps: int = 10) -> m.Checkpoint:
    return m.Checkpoint(step=step, steps=steps, state=m.ArtifactRef(sha256="e" * 64, size=step))


def checkpointed(step: int, attempt: int = 1, node_id: str = "node-a") -> m.Checkpointed:
    return m.Checkpointed(attempt=attempt, node_id=node_id, checkpoint=checkpoint(step), signature="d" * 128)


def dated(event: Any, sequence: int) -> Any:
    return replace(event, network_id="net-1", sequence=sequence, expires_ms=FIRST_MS + 600_000)


def lease(attempt: int, node_id: str = "node-a", step: int = 0) -> m.Leased:
    return m.Leased(
        attempt=attempt,
        node_id=node_id,
        session="0" * 32,
        wallet=f.NODE_WALLET if node_id == "node-a" else "Q" * 43,
        lease_ms=40_000,
        resume=checkpoint(step) if step else None,
    )


def settled(node: int, platform: int, client: int, *payees: m.Payee) -> m.Settled:
    return m.Settled(
        signature=f.SIGNATURE,
        node_base_units=node,
        platform_base_units=platform,
        client_base_units=client,
        payees=list(payees),
    )


A, B = (NODE_A, f.registered("node-a")), (NODE_B, f.registered("node-b"))
LOST = m.NodeLost(node_id="node-a", session="0" * 32, reason="no heartbeat for 40000 ms")
PAUSE, RESUME = m.PauseRequested(caller="alice"), m.ResumeRequested(caller="alice")
HALF = f.AMOUNT // 2
WHOLE = settled(
    f.AMOUNT * 9 // 10, f.AMOUNT // 10, 0, m.Payee(wallet=f.NODE_WALLET, pay_base_units=f.AMOUNT, attempt=1)
)


def job(*events: Any) -> list[Said]:
    return [(JOB, f.submitted()), *((JOB, event) for event in events)]


LAST_HALF = f.segment(1, checkpoint(5))
SERVED = f.AMOUNT // 4, f.AMOUNT * 3 // 4  # for one second of four, and for three
HISTORIES: dict[str, list[Said]] = {
    "a replica that was lost and the one that took its place are paid for their time": [
        A,
        B,
        (JOB, f.submitted(model=ModelSpec(), serve=m.ServeSpec(deployment=f.DEPLOYMENT, format="onnx", seconds=4))),
        *((JOB, event) for event in (f.FUNDED, lease(1), f.STARTED, f.lost(code="node_lost"))),
        *(
            (JOB, event)
            for event in (lease(2, "node-b"), m.Started(attempt=2), f.PRIORITY_CHANGED, PAUSE, f.time_used(2))
        ),
        (JOB, m.TransactionSigned(purpose="settle", signed=f.signed(b"settle"), pay_base_units=f.AMOUNT)),
        (
            JOB,
            settled(
                f.AMOUNT * 9 // 10,
                f.AMOUNT // 10,
                0,
                m.Payee(wallet="Q" * 43, pay_base_units=SERVED[1], attempt=2),
                m.Payee(wallet=f.NODE_WALLET, pay_base_units=SERVED[0], attempt=1),
            ),
        ),
    ],
    "a job that went well": [A, *job(f.FUNDED, lease(1), f.STARTED, f.completed(), f.SIGNED_SETTLE, WHOLE)],
    "a completion that counts for its node when it is paid by its fee": [
        A,
        (JOB, replace(f.submitted(), reference_fee_base_units=f.AMOUNT // 5)),
        *((JOB, event) for event in (f.FUNDED, lease(1), f.lost(code="run_missing"), lease(2), m.Started(attempt=2))),
        *((JOB, event) for event in (f.completed(attempt=2), f.SIGNED_SETTLE, WHOLE)),
    ],
    "a job whose node signed for the network in a sequence and until a time": [
        (NODE_A, replace(f.registered("node-a"), dated=True)),
        *job(f.FUNDED, lease(1), f.STARTED, dated(checkpointed(5), 2), dated(f.completed(), 3), f.SIGNED_SETTLE, WHOLE),
    ],
    "a settlement as it was before nodes were paid by steps": [
        A,
        *job(f.FUNDED, lease(1), f.STARTED, f.completed(), f.SIGNED_SETTLE, f.settled()),
    ],
    "a retry on another node goes on from the checkpoint and both are paid": [
        A,
        B,
        *job(
            f.FUNDED,
            lease(1),
            f.STARTED,
            checkpointed(5),
            f.lost(),
            lease(2, "node-b", step=5),
            m.Started(attempt=2),
            f.completed(attempt=2, node_id="node-b"),
            m.TransactionSigned(purpose="settle", signed=f.signed(b"settle"), pay_base_units=f.AMOUNT),
            settled(
                f.AMOUNT * 9 // 10,
                f.AMOUNT // 10,
                0,
                m.Payee(wallet=f.NODE_WALLET, pay_base_units=HALF, attempt=1),
                m.Payee(wallet="Q" * 43, pay_base_units=HALF, attempt=2),
            ),
        ),
    ],
    "a cancel while the deposit was on its way": [
        A,
        *job(f.CANCELLED, f.FUNDED, f.SIGNED_SETTLE, settled(0, 0, f.AMOUNT)),
    ],
    "a cancel of a deposit that never landed": [A, *job(f.CANCELLED, f.FUND_FAILED)],
    "a job that was delivered and refunded by somebody after the deadline": [
        A,
        *job(f.FUNDED, lease(1), f.STARTED, f.completed(), f.SIGNED_SETTLE, f.REFUNDED),
    ],
    "a refund before it was known that the deposit had landed": [A, *job(lease(1), f.REFUNDED)],
    "a refund that gives back another sum, in quarantine": [
        A,
        *job(f.FUNDED, lease(1), f.completed(), m.Refunded(signature=f.SIGNATURE, client_base_units=1)),
    ],
    "a job whose priority was changed twice": [
        A,
        (JOB, f.submitted(priority=3)),
        (JOB, f.FUNDED),
        (JOB, m.PriorityChanged(priority=9, caller="alice", request_id="first")),
        (JOB, lease(1)),
        (JOB, m.PriorityChanged(priority=1, caller="alice", request_id="second")),
        (JOB, f.lost()),
    ],
    "a pause and a resume": [
        A,
        *job(
            f.FUNDED,
            lease(1),
            f.STARTED,
            PAUSE,
            checkpointed(4),
            m.LeaseLost(attempt=1, code="paused", reason="as asked"),
            RESUME,
            lease(2, step=4),
            m.Started(attempt=2),
            f.completed(attempt=2),
            f.SIGNED_SETTLE,
            WHOLE,
        ),
    ],
    "a job paused until its deadline was near pays the steps that were stored": [
        A,
        *job(
            f.FUNDED,
            lease(1),
            f.STARTED,
            PAUSE,
            checkpointed(5),
            m.LeaseLost(attempt=1, code="paused", reason="as asked"),
            f.DEADLINE_NEAR,
            f.SIGNED_SETTLE,
            settled(HALF * 9 // 10, HALF // 10, HALF, m.Payee(wallet=f.NODE_WALLET, pay_base_units=HALF, attempt=1)),
        ),
    ],
    "a run that stored its state when the deadline was near, and then ended": [
        A,
        *job(
            f.FUNDED,
            lease(1),
            checkpointed(2),
            f.DEADLINE_NEAR,
            checkpointed(5),
            m.LeaseLost(attempt=1, code="paused", reason="as asked"),
        ),
    ],
    "a job whose attempts are used up pays the steps that were stored": [
        A,
        *job(
            f.FUNDED,
            lease(1),
            f.STARTED,
            checkpointed(2),
            f.lost(),
            lease(2, step=2),
            f.lost(attempt=2),
            lease(3, step=2),
            f.lost(attempt=3),
            f.SIGNED_SETTLE,
            settled(
                f.AMOUNT * 18 // 100,
                f.AMOUNT * 2 // 100,
                f.AMOUNT * 8 // 10,
                m.Payee(wallet=f.NODE_WALLET, pay_base_units=f.AMOUNT // 5, attempt=1),
            ),
        ),
    ],
    "a job that is itself at fault": [
        A,
        B,
        *job(
            f.FUNDED,
            lease(1),
            f.lost(deterministic=True),
            lease(2, "node-b"),
            f.lost(attempt=2, deterministic=True),
            f.SIGNED_SETTLE,
            settled(0, 0, f.AMOUNT),
        ),
    ],
    "a lease before the deposit was final": [
        A,
        *job(lease(1), f.FUNDED, f.STARTED, f.completed(), f.SIGNED_SETTLE, WHOLE),
    ],
    "a settlement that had to be signed twice": [
        A,
        *job(f.FUNDED, lease(1), f.completed(), f.SIGNED_SETTLE, f.SIGNED_SETTLE, WHOLE),
    ],
    "a node that is lost, comes back, is banned and pardoned": [
        A,
        *job(f.FUNDED, lease(1), f.STARTED),
        (NODE_A, LOST),
        (JOB, m.LeaseLost(attempt=1, code="node_lost", reason="the node that held the lease is gone")),
        (NODE_A, f.registered("node-a", session="1" * 32)),
        (NODE_A, m.NodeBanned(until_ms=FIRST_MS + DAY_MS, reason="three strikes")),
        (NODE_A, f.registered("node-a", session="2" * 32)),
        (NODE_A, m.NodePardoned(reason="it was the power cut")),
    ],
    "quarantine of what is no record and of what cannot have happened": [
        A,
        (JOB, b"written by somebody else"),
        *job(f.FUNDED, lease(1), f.STARTED),
        (JOB, lease(3)),
        (JOB, f.submitted()),
        (JOB, f.completed()),
        (JOB, f.SIGNED_SETTLE),
        (JOB, settled(1, 2, 3)),
        (JOB, WHOLE),
    ],
    "quarantine of a subject whose chain was broken": [
        A,
        *job(f.FUNDED, lease(1)),
        (JOB, Unchained(f.STARTED)),
        (JOB, f.completed()),
        (NODE_A, LOST),
    ],
    "a node that is drained while it works, and taken back": [
        A,
        *job(f.FUNDED, lease(1), f.STARTED),
        (NODE_A, m.NodeDraining(session="0" * 32)),
        (JOB, f.completed()),
        (NODE_A, m.NodeUndrained(session="0" * 32)),
        (NODE_A, m.NodeDraining(session="0" * 32)),
        (NODE_A, f.registered("node-a", session="1" * 32)),
    ],
    "a node that says what other programs leave of its GPU, and comes back": [
        (NODE_A, f.registered("node-a", hardware={"gpus": [m.Gpu(name="gpu", memory_bytes=2**34)]})),
        (NODE_A, m.NodeGpusRead(session="0" * 32, free_bytes=[2**30])),
        *job(f.FUNDED, lease(1), f.STARTED),
        (NODE_A, m.NodeGpusRead(session="0" * 32, free_bytes=[2**33])),
        (NODE_A, f.registered("node-a", session="1" * 32)),
    ],
    "a checkpoint that was given up for the one before it": [
        A,
        B,
        *job(
            f.FUNDED,
            lease(1),
            checkpointed(3),
            checkpointed(5),
            f.lost(),
            lease(2, "node-b", step=5),
            f.lost(2, code="bad_checkpoint", discards=checkpoint(5)),
            lease(3, "node-b", step=3),
            checkpointed(6, 3, "node-b"),
            m.PauseRequested(caller="alice", request_id="first"),
            f.lost(3, code="paused"),
            m.CancelRequested(reason="enough", caller="alice", request_id="second"),
        ),
    ],
    "a job that is charged its quoted price and not its amount": [
        A,
        (JOB, replace(f.submitted(), price_base_units=HALF)),
        *((JOB, event) for event in (f.FUNDED, lease(1), f.completed(), f.SIGNED_SETTLE)),
        (
            JOB,
            settled(HALF * 9 // 10, HALF // 10, HALF, m.Payee(wallet=f.NODE_WALLET, pay_base_units=HALF, attempt=1)),
        ),
    ],
    "a client that was banned twice and pardoned": [
        (CLIENT, m.ClientBanned(until_ms=FIRST_MS + DAY_MS, reason="floods", caller="c-operator")),
        (CLIENT, m.ClientBanned(until_ms=FIRST_MS + 9 * DAY_MS, reason="again", caller="c-operator", request_id="w1")),
        (CLIENT, m.ClientPardoned(reason="said sorry", caller="c-operator", request_id="w2")),
    ],
    "payouts that were frozen, and released by an operator": [
        (subjects.PAYOUTS_EVENT, m.PayoutsFrozen(reason="an escrow is gone", differences=["an escrow is gone"])),
        (subjects.PAYOUTS_EVENT, m.PayoutsReleased(reason="it was refunded", caller="c-1")),
        (subjects.PAYOUTS_EVENT, m.PayoutsFrozen(reason="the night", caller="c-1")),
    ],
    "a model that was checked and paid": [
        A,
        (NODE_C, f.registered("node-c", session="c" * 32, checks=True)),
        *job(
            *(f.FUNDED, lease(1), checkpointed(4), replace(checkpointed(7), kept=True)),
            f.completed(segment=f.segment(1, checkpoint(4), 7, "e" * 64, 7)),
            *(f.check_leased(), m.Checked(finding=f.finding("e" * 64)), f.SIGNED_SETTLE, WHOLE),
        ),
    ],
    "a model whose check was given up and which is paid": [
        A,
        *job(
            *(f.FUNDED, lease(1), f.completed(segment=f.segment()), f.check_leased()),
            m.CheckLost(number=m.FIRST_CHECK, code="node_lost", reason="silent"),
            m.CheckGivenUp(reason="nobody was done within 3600 s"),
            *(f.SIGNED_SETTLE, WHOLE),
        ),
    ],
    "a model that two runs found false is not paid, and another node delivers again": [
        A,
        B,
        (NODE_C, f.registered("node-c", session="c" * 32, checks=True)),
        *job(
            *(f.FUNDED, lease(1), replace(checkpointed(5), kept=True), f.completed(segment=LAST_HALF)),
            *(f.check_leased(), m.CheckDiffers(finding=f.finding("9" * 64))),
            f.check_leased(m.FIRST_CHECK + 1),
            f.rejected(f.finding("9" * 64), f.finding("9" * 64, m.FIRST_CHECK + 1), of=LAST_HALF),
        ),
        (NODE_A, m.NodeBanned(until_ms=FIRST_MS + DAY_MS, reason="3 strikes")),
        *(
            (JOB, event)
            for event in (
                lease(2, "node-b"),
                replace(f.completed(2, "node-b"), not_checked="it was not drawn"),
                f.SIGNED_SETTLE,
                settled(
                    f.AMOUNT * 9 // 10,
                    f.AMOUNT // 10,
                    0,
                    m.Payee(wallet="Q" * 43, pay_base_units=f.AMOUNT, attempt=2),
                ),
            )
        ),
    ],
    "a replica that stood by, was called, sent back while it worked, and called again": [
        A,
        (
            JOB,
            f.submitted(
                model=ModelSpec(),
                serve=m.ServeSpec(
                    deployment=f.DEPLOYMENT, format="onnx", seconds=60, standby=True, least=1, most=2, drain_s=5
                ),
            ),
        ),
        *(
            (JOB, event)
            for event in (
                *(f.FUNDED, f.CALLED, lease(1), f.STARTED, f.SENT_BACK),
                m.LeaseLost(attempt=1, code="paused", reason="as asked"),
                *(f.CALLED, lease(2), m.Started(attempt=2), m.CancelRequested(reason="enough", caller="alice")),
            )
        ),
    ],
    "jobs that come after another begin with its model or are cancelled and refunded": [
        A,
        *job(f.FUNDED, lease(1), f.STARTED),
        (NEXT, f.submitted("job-2", after=[m.After(job_id="job-1", model=True)])),
        (NEXT, f.FUNDED),
        (LAST, f.submitted("job-3", after=[m.After(job_id="job-1", metric="final_loss", at_most=0.1)])),
        (LAST, f.FUNDED),
        (JOB, f.completed()),
        (NEXT, m.DependenciesMet(weights=f.completed().model.sha256)),
        (LAST, m.DependencyFailed(job_id="job-1", reason="final_loss of job-1 is to be at most 0.1, and is 0.25")),
        *((NEXT, event) for event in (lease(1), f.STARTED)),
        *((LAST, event) for event in (f.SIGNED_SETTLE, settled(0, 0, f.AMOUNT))),
        *((JOB, event) for event in (f.SIGNED_SETTLE, WHOLE)),
    ],
    "a faucet that paid and one that could not": [
        (MINT, m.MintSigned(to=f.CLIENT, amount_base_units=5, signed=f.signed())),
        (MINT, m.Minted(to=f.CLIENT, amount_base_units=5, signature=f.SIGNATURE)),
        (f"{MINT}b", m.MintSigned(to=f.CLIENT, amount_base_units=7, signed=f.signed())),
        (f"{MINT}b", m.MintFailed(reason="expired")),
    ],
}


def records_of(said: list[Said]) -> list[Stored]:
    """The records as a central would have written them, a second apart; bytes are what somebody else wrote."""
    stored: list[Stored] = []
    last: dict[str, str] = {}  # subject -> SHA-256 of its last message
    for number, (subject, event) in enumerate(said, start=1):
        prev = "" if isinstance(event, Unchained) else last.get(subject, "")
        payload = event if isinstance(event, bytes) else encode(record_of(number, event, prev), MSGPACK)
        last[subject] = hashlib.sha256(payload).hexdigest()
        stored.append(Stored(subject, number, payload))
    return stored


def record_of(number: int, event: Any, prev: str) -> m.Record:
    fact = event.event if isinstance(event, Unchained) else event
    at_ms = FIRST_MS + number * 1000
    return m.Record(command_id=f"{number:032x}", at_ms=at_ms, by="central-a", event=fact, prev=prev)


def fold(stored: list[Stored]) -> World:
    world = World()
    for each in stored:
        world.apply(each.seq, each.subject, read(each.payload), hashlib.sha256(each.payload).digest())
    return world


def plain(value: Any) -> Any:
    """Structs as dicts without the fields that have their default."""
    if isinstance(value, msgspec.Struct):
        kept = {}
        for field in msgspec.structs.fields(value):
            found = getattr(value, field.name)
            default = field.default if field.default is not msgspec.NODEFAULT else None
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            if field.required or found != default:
                kept[field.name] = plain(found)
        return {"type": type(value).__name__, **kept}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def state_of(world: World) -> str:
    """The SHA-256 of all that a world knows."""
    state = {what: plain(getattr(world, what)) for what in ("jobs", "nodes", "mints", "last_seq", "seq")}
    if world.quarantined:
        state |= {"quarantined": world.quarantined, "damaged": plain(world.damaged)}
    if world.clients:
        state |= {"clients": plain(world.clients)}
    if world.payouts.since_ms:
        state |= {"payouts": plain(world.payouts)}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def path_of(name: str) -> Path:
    return FOLDER / (name.replace(",", "").replace(" ", "-") + ".json")


def write_new() -> list[Path]:
    """Write every history that has no file yet. Those that have one are what they are."""
    FOLDER.mkdir(exist_ok=True)
    written = []
    for name, said in HISTORIES.items():
        path = path_of(name)
        if path.exists():
            continue
        stored = records_of(said)
        lines = [{"subject": each.subject, "payload": each.payload.hex()} for each in stored]
        kept = {"about": name, "state_sha256": state_of(fold(stored)), "records": lines}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        written.append(path)
    return written


if __name__ == "__main__":
    for path in write_new():
        print(path.name)
