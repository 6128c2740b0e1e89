"""Central's state as callers see it. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from cyxcentral import dependencies, jobs, nodes, schedule, segments
from cyxcentral.matching import Matching
from cyxnet import messages as m

SHOWN = 10  # of the jobs that one waits for


def job_view(job: jobs.Job, node: nodes.Node | None, latest: dict[str, Any] | None) -> m.JobView:
    """One job. `latest` is its newest metrics, if known."""
    done, shares = job.completed, job.shares
    return m.JobView(
        job_id=job.job_id,
        name=job.job.name,
        sealed=job.job.sealed,
        status=job.status,
        client=job.terms.client,
        amount_base_units=job.terms.amount_base_units,
        attempt=job.attempt,
        max_attempts=job.job.max_attempts,
        node_id=job.attempts[-1].node_id if job.attempts else None,
        node_name=node.name if node else None,
        progress=progress(job, latest),
        latest=latest,
        error=job.error,
        model=done.model if done and job.status != "checking" else None,
        summary=done.summary if done else None,
        submitted_at_ms=job.submitted_at_ms,
        ended_at_ms=job.ended_at_ms,
        terms=job.terms,
        deposit_signature=job.deposit_signature,
        settle_signature=job.settle_signature,
        node_base_units=shares.node_base_units if shares else None,
        platform_base_units=shares.platform_base_units if shares else None,
        client_base_units=shares.client_base_units if shares else None,
        priority=job.priority,
        pause_requested=job.pause_requested,
        checkpoint=job.checkpoint,
        payees=list(job.payees) if shares else [],
        price_base_units=job.price_base_units,
        deployment=job.job.serve.deployment if job.job.serve else "",
        check=segments.in_words(job),
        after=list(job.job.after),
        best_by=job.job.best_by,
    )


def is_fresh(view: m.JobView, job: jobs.Job, node: nodes.Node | None) -> bool:
    """Whether a view that was kept still tells the state of the job: all that follows from events is compared."""
    now = job_view(job, node, None)
    return replace(view, latest=None, progress=now.progress) == now and 0.0 <= view.progress <= 1.0


def progress(job: jobs.Job, latest: dict[str, Any] | None) -> float:
    """Share of its steps that a job has behind it: what its checkpoint holds, where no attempt has told of more."""
    if job.completed:
        return 1.0
    if job.status != "leased" or not latest or latest.get("attempt") != job.attempt:
        return min(1.0, job.checkpoint.step / max(1, job.checkpoint.steps)) if job.checkpoint else 0.0
    epochs = max(1, int(latest.get("epochs", 1)))
    if "batch" in latest:
        return min(1.0, (latest["epoch"] - 1 + latest["batch"] / max(1, latest["batches"])) / epochs)
    return min(1.0, latest.get("epoch", 0) / epochs)


def replica_view(job: jobs.Job, node: nodes.Node | None, said: m.RunRef | None, now_ms: int) -> m.ReplicaView:
    """One replica of a deployment. said: what its node said of it last, if it holds the lease."""
    shares, last = job.shares, job.attempts[-1] if job.attempts else None
    state = replica_state(job, said)
    since_ms = last.started_at_ms if state == "ready" and last and last.started_at_ms else job.changed_at_ms
    return m.ReplicaView(
        job_id=job.job_id,
        state=state,
        status=job.status,
        since_ms=since_ms,
        node_id=last.node_id if last else None,
        node_name=node.name if node else None,
        attempt=job.attempt,
        requests=said.requests if said else 0,
        waiting=said.waiting if said else 0,
        served_ms=min(job.served_ms(now_ms), jobs.bought_ms(job)),
        bought_s=jobs.bought_ms(job) // 1000,
        amount_base_units=job.terms.amount_base_units,
        node_base_units=shares.node_base_units if shares else None,
        platform_base_units=shares.platform_base_units if shares else None,
        client_base_units=shares.client_base_units if shares else None,
        error=None if state == "ready" else job.error,  # what ended an earlier attempt is over then
        region=job.job.needs.region,
        submitted_at_ms=job.submitted_at_ms,
        scaled=job.scaled,
    )


def replica_state(job: jobs.Job, said: m.RunRef | None) -> m.ReplicaState:
    """A replica's state, in the word that people have for it."""
    if job.current is None:
        if job.standby and job.outcome is None and not job.pause_requested:
            return "standby"
        return _STATE_OF_IDLE.get(job.outcome or job.status, "pending")
    if job.current.started_at_ms is not None:
        return "ready"
    return "loading" if said and said.phase not in ("", "fetching") else "provisioning"


_STATE_OF_IDLE: dict[str, m.ReplicaState] = {
    "paused": "paused",
    "completed": "stopped",
    "cancelled": "stopped",
    "failed": "failed",
}


def node_view(
    candidate: schedule.Candidate, runs: list[jobs.Job], last_seen_ms: int, metrics: dict[str, Any] | None
) -> m.NodeView:
    node = candidate.node
    return m.NodeView(
        node_id=node.node_id,
        name=node.name,
        online=node.online,
        reputation=node.reputation,
        hardware=node.hardware,
        active_jobs=[job.job_id for job in runs],
        jobs_completed=node.jobs_completed,
        jobs_failed=node.jobs_failed,
        last_seen_ms=last_seen_ms,
        wallet=node.wallet,
        region=node.region,
        price_per_hour_base_units=node.price_per_hour_base_units,
        metrics=metrics,
        state=node_state(candidate, len(runs)),
        tier=nodes.tier(node),
        strikes=node.strikes,
        banned_until_ms=node.banned_until_ms,
        changes=list(node.changes),
        proofs=nodes.proofs(node),
        limit_base_units=candidate.limit_base_units,
    )


def node_state(candidate: schedule.Candidate, runs: int) -> str:
    """online, busy, draining, drained (nothing runs there any more), offline or banned: in one word."""
    node = candidate.node
    if node.banned_until_ms:
        return "banned"
    if not node.online:
        return "offline"
    if node.draining:
        return "draining" if runs else "drained"
    return "busy" if runs >= candidate.max_runs else "online"


def explanation(job: jobs.Job, candidates: list[schedule.Candidate], now_ms: int) -> m.ExplainReply:
    """Every decision made about a job, and what it waits for now."""
    decisions: list[dict[str, Any]] = []
    for attempt in job.attempts:
        decision: dict[str, Any] = {
            "attempt": attempt.number,
            "at_ms": attempt.leased_at_ms,
            "node_id": attempt.node_id,
            **attempt.explanation,
        }
        if attempt.resume:
            decision["first_step"] = attempt.first_step
        if attempt.lost:
            decision["lost"] = msgspec.to_builtins(attempt.lost)
        if attempt.rejected:
            decision["rejected"] = segments.rejected_in_words(attempt.rejected)
        decisions.append(decision)
    return m.ExplainReply(
        job_id=job.job_id,
        status=job.status,
        decisions=decisions,
        waiting_for=_waiting_for(job, candidates, now_ms),
        error=job.error if job.status in jobs.ENDED else None,
        check=segments.in_words(job),
    )


def waiting_prospect(job: jobs.Job, candidate: schedule.Candidate, matching: Matching, now_ms: int) -> m.Prospect:
    """A job that waits, as it is for one node."""
    rests_ms = max(0, job.not_before_ms - now_ms)
    why: dict[str, Any] = matching.explain(job, now_ms)
    held = matching.room.held_back(job)
    if refused := schedule.refusal_beside(job, candidate, held):
        return m.Prospect(job_id=job.job_id, refused=refused, rests_ms=rests_ms)
    own = schedule.scored(job, candidate, matching.weights)
    best = next((line for line in why["candidates"] if "refused" not in line), None)
    return m.Prospect(job_id=job.job_id, rests_ms=rests_ms, own=own, best=best)


def placed_prospect(job: jobs.Job, node_id: str) -> m.Prospect:
    """A job that another node works on, by what was written down when it went there."""
    attempt = job.attempts[-1]
    why: dict[str, Any] = attempt.explanation
    lines = {line["node_id"]: line for line in why.get("candidates", ())}
    own, best = lines.get(node_id), lines.get(attempt.node_id, {"node_id": attempt.node_id})
    if own and (refused := own.get("refused")):
        return m.Prospect(job_id=job.job_id, refused=refused, best=best)
    return m.Prospect(job_id=job.job_id, own=own, best=best)


def waited_for(job: jobs.Job, known: Mapping[str, jobs.Job]) -> str:
    """The jobs that a job still waits for, each with how far it is."""
    names = dependencies.unfinished(job, known)
    told = (f"{job_id} ({known[job_id].status if job_id in known else 'not known here'})" for job_id in names[:SHOWN])
    return ", ".join(told) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


LIFT = (
    ". To nodes that are not proven goes what may cost less: an operator may vouch for one (vouched in network.json) "
    "or give them more (unproven_limit_base_units); a client may offer less, or name a node (needs.node_id)"
)


def _waiting_for(job: jobs.Job, candidates: list[schedule.Candidate], now_ms: int) -> str | None:
    match job.status:
        case "funding" if job.pause_requested:
            return "the deposit to be final on the chain, then its owner to resume it: cyx resume " + job.job_id
        case "funding":
            return "the deposit to be final on the chain"
        case "paused" if job.standby and not job.pause_requested:
            return "its turn: it stands by until its deployment needs one more replica"
        case "paused":
            return "its owner to resume it: cyx resume " + job.job_id
        case "queued" if job.not_before_ms > now_ms:
            return f"{job.not_before_ms - now_ms} ms of back-off after attempt {job.attempt} was lost"
        case "queued" if not candidates:
            return "a node: none is online"
        case "queued" if wanted := job.job.needs.node_id:
            found = [c for c in candidates if c.node.node_id == wanted]
            why_not = (schedule.refusal(job, found[0]) or "free") if found else "offline"
            return f"node {wanted}, which is asked for and no other ({why_not})"
        case "queued":
            held = schedule.held_back(job, candidates, now_ms)
            why = [f"{c.node.name}: {schedule.refusal_beside(job, c, held) or 'free'}" for c in candidates[:10]]
            lift = LIFT if any(schedule.for_proven(job, c.limit_base_units) for c in candidates) else ""
            return "a free node (" + "; ".join(why) + ")" + lift
        case "leased" if job.job.serve and job.halts:
            return f"node {job.attempts[-1].node_id} to answer what its replica has taken, and stop"
        case "leased" if job.job.serve and job.attempts[-1].started_at_ms is not None:
            left_s = jobs.left_ms(job, now_ms) // 1000
            return f"the time that was bought to be used up: {max(left_s, 0)} s are left"
        case "leased" if job.pause_requested:
            return f"node {job.attempts[-1].node_id} to store its state and stop"
        case "leased" if not job.funded:
            return f"the deposit to be final on the chain; node {job.attempts[-1].node_id} prepares the job meanwhile"
        case "leased" if job.job.serve:
            return f"node {job.attempts[-1].node_id} to fetch the model, and to load it"
        case "leased" if job.attempts[-1].started_at_ms is None:
            node_id = job.attempts[-1].node_id
            return f"node {node_id} to fetch the data, to read it, and to make the first step of attempt {job.attempt}"
        case "leased":
            return f"node {job.attempts[-1].node_id} to deliver attempt {job.attempt}"
        case "checking":
            lease = job.check.lease if job.check else None
            if lease:
                return f"checker {lease.node_id} to train a segment of it again"
            return "a checker, to train a segment of it, or of its node's earlier work, again before it is paid"
        case "settling":
            return "the settlement to be final on the chain"
    return None
