"""Named pieces that tests of central are built from."""

from cyxcentral import jobfold, jobrules
from cyxcore.spec import ModelSpec, TrainingSummary
from cyxnet import messages as m
from cyxnet import subjects

SIGNATURE = "5" * 88
CLIENT, PLATFORM, NODE_WALLET = "C" * 43, "P" * 43, "N" * 43
AMOUNT = 2_500_000_000


def job_request(**changes):
    fields = {
        "name": "digits",
        "model": ModelSpec(input=[4], layers=[{"kind": "Linear", "out_features": 3}]),
        "dataset": m.ArtifactRef(sha256="a" * 64, size=1000),
        "amount_base_units": AMOUNT,
    }
    return m.JobRequest(**(fields | changes))


def terms(job_id="job-1", amount=AMOUNT):
    return m.EscrowTerms(
        job_id=job_id,
        mint="M" * 43,
        authority="A" * 43,
        client=CLIENT,
        platform=PLATFORM,
        amount_base_units=amount,
        fee_basis_points=1000,
        escrow="E" * 43,
    )


def signed(text=b"bytes"):
    return m.SignedTransaction(transaction=text, signature=SIGNATURE, last_valid_block_height=9)


def summary():
    return TrainingSummary(
        total_time_ms=1.5,
        steps=3,
        final_loss=0.25,
        best_epoch=1,
        delivered_epoch=1,
        train_rows=8,
        validation_rows=2,
        parameters=15,
    )


def submitted(job_id="job-1", gpu_memory_bytes=0, **changes):
    return m.Submitted(
        job=job_request(**changes),
        terms=terms(job_id),
        caller="alice",
        memory_bytes=2**28,
        gpu_memory_bytes=gpu_memory_bytes,
        deposit=signed(),
    )


FUNDED = m.Funded(signature=SIGNATURE)
FUND_FAILED = m.FundFailed(reason="expired")
PAUSED = m.PauseRequested(caller="alice")
RESUMED = m.ResumeRequested(caller="alice")
CANCELLED = m.CancelRequested(reason="changed my mind", caller="alice")
STARTED = m.Started(attempt=1)
SIGNED_SETTLE = m.TransactionSigned(purpose="settle", signed=signed(b"settle"), pay_base_units=AMOUNT)


def payee(base_units=AMOUNT, wallet=NODE_WALLET, attempt=1):
    return m.Payee(wallet=wallet, pay_base_units=base_units, attempt=attempt)


def leased(attempt=1, node_id="node-a", wallet=NODE_WALLET, resume=None):
    return m.Leased(attempt=attempt, node_id=node_id, session="0" * 32, wallet=wallet, lease_ms=40_000, resume=resume)


def checkpoint(step=50, steps=100):
    return m.Checkpoint(step=step, steps=steps, state=m.ArtifactRef(sha256="f" * 64, size=77))


def checkpointed(attempt=1, step=50, node_id="node-a", steps=100, kept=False):
    stored = checkpoint(step, steps)
    return m.Checkpointed(attempt=attempt, node_id=node_id, checkpoint=stored, signature="d" * 128, kept=kept)


def lost(attempt=1, deterministic=False, code="died", sole=False, discards=None):
    return m.LeaseLost(
        attempt=attempt, code=code, reason="it died", deterministic=deterministic, sole=sole, discards=discards
    )


def segment(attempt=1, start=None, end_step=0, sha256="b" * 64, size=99):
    return m.SignedSegment(attempt=attempt, start=start, end_step=end_step, end=m.ArtifactRef(sha256=sha256, size=size))


def check_leased(number=m.FIRST_CHECK, node_id="node-c"):
    return m.CheckLeased(number=number, node_id=node_id, session="c" * 32, lease_ms=40_000)


def finding(sha256="b" * 64, number=m.FIRST_CHECK, node_id="node-c"):
    return m.Finding(number=number, node_id=node_id, end=m.ArtifactRef(sha256=sha256, size=99), signature="d" * 128)


def rejected(one, two, attempt=1, node_id="node-a", of=None):
    return m.Rejected(attempt=attempt, node_id=node_id, segment=of or segment(attempt), findings=[one, two])


def completed(attempt=1, node_id="node-a", **changes):
    return m.Completed(
        **changes,
        attempt=attempt,
        node_id=node_id,
        model=m.ArtifactRef(sha256="b" * 64, size=99),
        graph_sha256="c" * 64,
        summary=summary(),
        signature="d" * 128,
    )


def settled(node=AMOUNT * 9 // 10, platform=AMOUNT // 10, client=0):
    return m.Settled(signature=SIGNATURE, node_base_units=node, platform_base_units=platform, client_base_units=client)


REFUNDED = m.Refunded(signature=SIGNATURE, client_base_units=AMOUNT)


PRIORITY_CHANGED = m.PriorityChanged(priority=7, caller="alice")
DEADLINE_NEAR = m.DeadlineNear(deadline_s=0)


def draining(session="0" * 32):
    return m.NodeDraining(session=session)


def node_lost(node_id="node-a", session="0" * 32, graceful=False):
    return m.NodeLost(node_id=node_id, session=session, reason="silent", graceful=graceful)


def job_after(*events, **changes):
    """The job after Submitted and these events, one second apart; each must be legal."""
    job = jobfold.evolve(None, submitted(**changes), 0)
    for second, event in enumerate(events, start=1):
        assert jobrules.illegal(job, event) is None, (job.status, event)
        job = jobfold.evolve(job, event, second * 1000)
    return job


def registered(node_id="node-a", session="0" * 32, **changes):
    hardware = {"cores": 2, "memory_bytes": 8 * 2**30, "memory_free_bytes": 6 * 2**30, "flops_per_s": 1e11}
    fields = {
        "node_id": node_id,
        "session": session,
        "name": node_id,
        "public_key": "e" * 64,
        "wallet": NODE_WALLET,
        "hardware": m.Hardware(**(hardware | changes.pop("hardware", {}))),
        "max_runs": 1,
    }
    return m.NodeRegistered(**(fields | changes))


# -- jobs that serve -------------------------------------------------------------------------------------------

DEPLOYMENT = subjects.deployment_id("digits", "alice")
HOUR_S = 3600


def serve_request(seconds=HOUR_S, deployment=DEPLOYMENT, **changes):
    spec = m.ServeSpec(deployment=deployment, format="cyxmodel", seconds=seconds)
    return job_request(**({"model": ModelSpec(), "serve": spec} | changes))


def serving_after(*timed, seconds=HOUR_S, **changes):
    """A job that serves, after these (second, event); each must be legal."""
    first = m.Submitted(
        job=serve_request(seconds, **changes), terms=terms(), caller="alice", memory_bytes=2**28, deposit=signed()
    )
    job = jobfold.evolve(None, first, 0)
    for second, event in timed:
        assert jobrules.illegal(job, event) is None, (job.status, event, jobrules.illegal(job, event))
        job = jobfold.evolve(job, event, second * 1000)
    return job


CALLED = m.ScaledUp(reason="replicas with time left: 0; at least: 1")
SENT_BACK = m.ScaledDown(reason="fewer do")


def started(attempt=1):
    return m.Started(attempt=attempt)


def time_used(attempt=1):
    return m.TimeUsed(attempt=attempt)
