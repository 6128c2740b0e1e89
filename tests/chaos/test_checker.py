"""The checker catches each lie: a true log passes, and a log forged in one place breaks the promise it forges."""

import hashlib

import pytest
from msgspec.structs import replace

from cyxnet import messages as m
from cyxnet.identity import Identity
from cyxnet.solana import HistoryEntry
from tests.central import facts
from tests.chaos.checker import RULES, violations
from tests.chaos.evidence import Entry, Evidence, LedgerFacts
from tests.chaos.faults import Fault, Harm
from tests.chaos.fleet import Restart
from tests.chaos.load import Told

NODE = Identity(b"n" * 32)
SESSION, OTHER_SESSION = "0" * 32, "1" * 32
AMOUNT, FEE = facts.AMOUNT, facts.AMOUNT // 10
MODEL, OTHER_MODEL = (m.ArtifactRef(sha256=letter * 64, size=99) for letter in "be")
EQUAL = "equal jobs deliver the same, however often they were interrupted"


def completion(job_id, attempt=1, session=SESSION, key=NODE):
    said = m.RunCompleted(
        node_id="node-a",
        session=session,
        job_id=job_id,
        attempt=attempt,
        model=MODEL,
        graph_sha256="c" * 64,
        summary=facts.summary(),
        signature="0" * 128,
    )
    return replace(facts.completed(attempt), signature=key.sign(m.completion_bytes(said)))


def settlement(job_id, node=AMOUNT - FEE, platform=FEE, client=0):
    return replace(facts.settled(node, platform, client), signature=f"out-{job_id}")


def submitted(job_id):
    return facts.submitted(job_id, **ONCE_ONLY) if job_id == FAILED else facts.submitted(job_id)


def funded(job_id):
    return m.Funded(signature=f"in-{job_id}")


def log_of(events):
    """A log of (subject, event) pairs."""
    entries = []
    for seq, (subject, event) in enumerate(events, start=1):
        record = m.Record(command_id=f"{seq}", at_ms=seq * 1000, by="central-a", event=event)
        digest = hashlib.sha256(f"{seq} {event}".encode()).hexdigest()
        entries.append(Entry(seq=seq, subject=f"cyx.v1.event.{subject}", sha256=digest, record=record))
    return entries


def stored(job_id, attempt=1, step=50, key=NODE):
    """A checkpoint, signed by the node."""
    event = facts.checkpointed(attempt, step)
    said = m.RunCheckpoint(
        node_id="node-a",
        session=SESSION,
        job_id=job_id,
        attempt=attempt,
        checkpoint=event.checkpoint,
        signature="0" * 128,
    )
    return replace(event, signature=key.sign(m.checkpoint_bytes(said)))


DONE, FAILED, CANCELLED = "job-done", "job-failed", "job-cancelled"
ONCE_ONLY = {"max_attempts": 1}
EVENTS = [
    ("node.node-a", facts.registered(public_key=NODE.public_key)),
    ("mint.x", m.Minted(to=facts.CLIENT, amount_base_units=10 * AMOUNT, signature="s")),
    (f"job.{DONE}", submitted(DONE)),
    (f"job.{FAILED}", submitted(FAILED)),
    (f"job.{CANCELLED}", submitted(CANCELLED)),
    (f"job.{DONE}", funded(DONE)),
    (f"job.{FAILED}", funded(FAILED)),
    (f"job.{CANCELLED}", m.CancelRequested(reason="changed my mind", caller="alice")),
    (f"job.{CANCELLED}", m.FundFailed(reason="expired")),
    (f"job.{FAILED}", facts.leased()),
    (f"job.{FAILED}", facts.lost(code="process_died")),
    (f"job.{FAILED}", settlement(FAILED, 0, 0, AMOUNT)),
    (f"job.{DONE}", facts.leased()),
    (f"job.{DONE}", facts.STARTED),
    (f"job.{DONE}", stored(DONE)),
    (f"job.{DONE}", facts.lost()),
    (f"job.{DONE}", facts.leased(2, resume=facts.checkpoint())),
    (f"job.{DONE}", completion(DONE, 2)),
    (f"job.{DONE}", settlement(DONE)),
]
LOST_S = 1 + next(n for n, (_, event) in enumerate(EVENTS) if isinstance(event, m.LeaseLost))  # when it was written
UNPAID = (submitted("unpaid"), facts.FUND_FAILED)
WALLETS = {
    "supply": -10 * AMOUNT,
    f"wallet:{facts.CLIENT}": 9 * AMOUNT,
    f"wallet:{facts.NODE_WALLET}": AMOUNT - FEE,
    f"wallet:{facts.PLATFORM}": FEE,
}
STATUSES = {DONE: "completed", FAILED: "failed", CANCELLED: "cancelled"}


def told(what, job_id, status=""):
    return Told(what=what, job_id=job_id, client="alice", at_ms=2, asked_at_ms=1, status=status)


def landed(signature, **changes):
    return HistoryEntry(**({"signature": signature, "slot": 1, "err": None, "memo": None, "finalized": True} | changes))


def truth(events=EVENTS, **changes):
    """Evidence of a network that kept every promise, but for `changes`."""
    log = log_of(events)
    ledger = LedgerFacts(
        content_hash="h", metrics_hash="m", balances=WALLETS | {f"escrow:{DONE}": 0}, statuses=STATUSES
    )
    fields = {
        "log": log,
        "watched": {entry.seq: entry.sha256 for entry in log},
        "last_seq": len(log),
        "told": [told("submitted", job) for job in STATUSES] + [told("ended", DONE, "completed")],
        "asked": {job: submitted(job).job for job in STATUSES},
        "escrows": {
            job: [landed(f"out-{job}"), landed("try", err='"x"'), landed(f"in-{job}")] for job in (DONE, FAILED)
        },
        "balances": WALLETS,
        "ledgers": {"central-a": ledger, "rebuilt": ledger},
        "artifacts": {MODEL.sha256: ""},
        "harms": [harm("training", part="node-1")],
        "names": {"node-a": "node-1"},
    }
    return Evidence(**(fields | changes))


def with_event(kind, event):
    """The events with the first one of `kind` replaced."""
    at = next(n for n, (_, each) in enumerate(EVENTS) if isinstance(each, kind))
    return [*EVENTS[:at], (EVENTS[at][0], event), *EVENTS[at + 1 :]]


def before(subject, kind, extra):
    """The events with one more, before the last one of `kind` on `subject`."""
    at = max(n for n, (s, each) in enumerate(EVENTS) if s == f"job.{subject}" and isinstance(each, kind))
    return [*EVENTS[:at], (f"job.{subject}", extra), *EVENTS[at:]]


def after_all(subject, *extra):
    return [*EVENTS, *((f"job.{subject}", event) for event in extra)]


def without(subject, kind):
    return [(s, each) for s, each in EVENTS if not (s == f"job.{subject}" and isinstance(each, kind))]


def harm(victim, part="", deed="kill", at_ms=1000 * LOST_S - 40):
    return Harm(at_ms=at_ms, fault=Fault(wait_s=0.0, deed=deed, victim=victim, lasts_s=0.0), part=part)


def failing(lost=None, **changes):
    """Another end of the one try of the job that failed, or none."""
    others = [(about, event) for about, event in EVENTS if (about, type(event)) != (f"job.{FAILED}", m.LeaseLost)]
    at = next(n for n, (about, event) in enumerate(others) if about == f"job.{FAILED}" and isinstance(event, m.Leased))
    return truth([*others[: at + 1], *([(f"job.{FAILED}", lost)] if lost else []), *others[at + 1 :]], **changes)


def ledgers(**changes):
    good = truth().ledgers["rebuilt"]
    return {"central-a": replace(good, **changes), "rebuilt": good}


def log_with(position, **changes):
    log = truth().log
    return [*log[:position], replace(log[position], **changes), *log[position + 1 :]]


def another_state(event):
    return replace(event, checkpoint=replace(event.checkpoint, state=OTHER_MODEL))


def crash(**changes):
    return Restart(**({"name": "chain", "ended_at_ms": 1, "ready_at_ms": 2, "killed": False} | changes))


AFTER = "a job begins after those that it comes after"
NEXT = {"job_id": "job-next", "after": [m.After(job_id=DONE, model=True)]}
MET = m.DependenciesMet(weights=MODEL.sha256)


def followed(*events):
    """A job that comes after the one that is done, and what happened to it when that was over."""
    return truth(after_all("job-next", facts.submitted(**NEXT), *events))


FORGERIES = [
    (AFTER, lambda: truth([("job.job-next", facts.submitted(**NEXT)), ("job.job-next", MET), *EVENTS])),
    (AFTER, lambda: truth([("job.job-next", facts.submitted(**NEXT)), ("job.job-next", facts.leased()), *EVENTS])),
    (AFTER, lambda: followed(m.DependenciesMet(weights=OTHER_MODEL.sha256))),
    (AFTER, lambda: followed(m.DependencyFailed(job_id=DONE, reason="it failed"))),
    ("the log has no gap", lambda: truth(log=truth().log[:3] + truth().log[4:])),
    ("the log has no gap", lambda: truth(last_seq=99)),
    ("the log has no gap", lambda: truth(log=log_with(2, record=None))),
    ("what was read from the log stays", lambda: truth(log=log_with(2, sha256="0" * 64))),
    ("what was read from the log stays", lambda: truth(watched=truth().watched | {99: "0" * 64})),
    ("an acknowledged job exists", lambda: truth(told=[told("submitted", "job-gone")])),
    ("a job ends", lambda: truth(without(DONE, m.Settled))),
    ("an id is one job", lambda: truth(before(DONE, m.Funded, submitted(DONE)))),
    ("an id is one job", lambda: truth(asked={DONE: facts.job_request(name="another")})),
    ("an id is one job", lambda: truth(without(DONE, m.Submitted))),
    ("one lease at a time, attempts count up", lambda: truth(without(DONE, m.LeaseLost))),
    ("one lease at a time, attempts count up", lambda: truth(with_event(m.Leased, facts.leased(2)))),
    ("only the holder of the lease reports", lambda: truth(with_event(m.Completed, completion(DONE, 1)))),
    (
        "only the holder of the lease reports",
        lambda: truth(with_event(m.Completed, completion(DONE, 2, session=OTHER_SESSION))),
    ),
    (
        "only the holder of the lease reports",
        lambda: truth(with_event(m.Completed, completion(DONE, 2, key=Identity(b"x" * 32)))),
    ),
    ("only the holder of the lease reports", lambda: truth(before(DONE, m.Leased, facts.STARTED))),
    (
        "only the holder of the lease reports",
        lambda: truth(with_event(m.Checkpointed, stored(DONE, key=Identity(b"x" * 32)))),
    ),
    ("only the holder of the lease reports", lambda: truth(before(DONE, m.Completed, stored(DONE, 1, 60)))),
    ("an attempt goes on from the newest checkpoint", lambda: truth(without(DONE, m.Checkpointed))),
    ("an attempt goes on from the newest checkpoint", lambda: truth(before(DONE, m.Completed, stored(DONE, 2, 50)))),
    ("an ended job does not change", lambda: truth(after_all(DONE, facts.CANCELLED))),
    ("an ended job does not change", lambda: truth(after_all(CANCELLED, funded(CANCELLED)))),
    ("an ended job does not change", lambda: truth(before(DONE, m.Settled, facts.CANCELLED))),
    ("clients were told the truth", lambda: truth(told=[told("ended", FAILED, "completed")])),
    ("clients were told the truth", lambda: truth(told=[told("cancel accepted", DONE, "settling")])),
    ("a job fails for a fault that explains it", lambda: truth(harms=[])),
    ("a job fails for a fault that explains it", lambda: truth(harms=[harm("training", part="node-2")])),
    ("a job fails for a fault that explains it", lambda: truth(harms=[harm("broker")])),  # that kills no process
    ("a job fails for a fault that explains it", lambda: truth(harms=[harm("training", "node-1", at_ms=10**6)])),
    ("a job fails for a fault that explains it", lambda: failing(facts.lost(code="bad_data", deterministic=True))),
    ("a job fails for a fault that explains it", lambda: failing(facts.lost(code="refused"))),
    ("a job fails for a fault that explains it", lambda: failing()),
    ("a job fails for a fault that explains it", lambda: failing(facts.lost(code="node_lost"), harms=[harm("chain")])),
    ("a job fails for a fault that explains it", lambda: truth(after_all("unpaid", *UNPAID), harms=truth().harms)),
    (EQUAL, lambda: truth(before(DONE, m.Settled, replace(completion(DONE, 2), model=OTHER_MODEL)))),
    (EQUAL, lambda: truth(before(DONE, m.Completed, another_state(stored(DONE, 2, 50))))),
    ("a job is paid once", lambda: truth(escrows={DONE: [landed("in-job-done")]})),
    (
        "a job is paid once",
        lambda: truth(escrows=truth().escrows | {DONE: [landed("again"), *truth().escrows[DONE]]}),
    ),
    (
        "a job is paid once",
        lambda: truth(
            escrows=truth().escrows | {DONE: [landed("out-job-done", finalized=False), landed("in-job-done")]}
        ),
    ),
    ("a job is paid once", lambda: truth(escrows=truth().escrows | {CANCELLED: [landed("in-job-cancelled")]})),
    ("a job is paid once", lambda: truth(after_all(DONE, settlement(DONE)))),
    ("shares add up", lambda: truth(with_event(m.Settled, settlement(FAILED, 0, 0, AMOUNT - 1)))),
    ("shares add up", lambda: truth(with_event(m.Settled, settlement(FAILED)))),
    ("ledger and chain agree", lambda: truth(balances=WALLETS | {f"wallet:{facts.CLIENT}": 0})),
    ("ledger and chain agree", lambda: truth(ledgers=ledgers(balances=WALLETS | {"supply": 0}))),
    ("ledger and chain agree", lambda: truth(ledgers=ledgers(balances=WALLETS | {"escrow:job-x": 5}))),
    ("a ledger is the log", lambda: truth(ledgers=ledgers(content_hash="other"))),
    ("a ledger is the log", lambda: truth(ledgers=ledgers(statuses=STATUSES | {FAILED: "completed"}))),
    ("a ledger is the log", lambda: truth(ledgers=ledgers(statuses=STATUSES | {"job-made-up": "failed"}))),
    ("artifacts are whole", lambda: truth(artifacts={MODEL.sha256: "chunk is damaged"})),
    ("no process is left", lambda: truth(left_behind=["4711 python"])),
    ("no part ends by itself", lambda: truth(restarts=[crash(said="Traceback")])),
]


def test_a_network_that_kept_its_promises_breaks_no_rule():
    assert violations(truth(restarts=[crash(killed=True)])) == []


@pytest.mark.parametrize("rule, forge", FORGERIES, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(FORGERIES)])
def test_a_forgery_is_caught(rule, forge):
    assert rule in {violation.rule for violation in violations(forge())}


def test_a_job_may_begin_with_the_model_of_one_that_is_done():
    assert AFTER not in {violation.rule for violation in violations(followed(MET, facts.leased()))}


@pytest.mark.parametrize("victim", ["node-1", "broker", "central-b.core"])
def test_a_node_is_lost_by_what_is_done_to_it_or_to_who_listens(victim):
    assert violations(failing(facts.lost(code="node_lost"), harms=[harm(victim, deed="stop")])) == []


def test_a_deposit_may_fail_while_the_chain_is_away():
    killed = harm("chain", at_ms=1000 * len(EVENTS) + 1500)
    about_it = {(each.rule, each.about) for each in violations(truth(after_all("unpaid", *UNPAID), harms=[killed]))}
    assert ("a job fails for a fault that explains it", "unpaid") not in about_it


def test_every_rule_has_a_forgery():
    assert {rule for rule, _ in FORGERIES} == set(RULES)
