"""Which part of a job's training is trained once more before it is paid, by which checker, and when not. Pure.

A node stores its states and its model, and signs the digest of each; what lies between two neighbours is a segment.
One segment of a job is kept for the check, by a weighted reservoir (Efraimidis and Spirakis 2006): each gets a number
-ln(u) / weight, u a hash under the platform's secret of what the node had signed by then, and the least number wins.
So a segment is chosen with the share that its weight has of all, and no node knows more before it has signed. Every
central knows the secret and comes to the same; the log says only which segment is kept (`Checkpointed.kept`), never by
which number: from a small one a node could tell that what comes later is hardly chosen any more.

A segment weighs as much as it has steps: so a false part is found by its share of them. The last one, which ends with
the model, is chosen at least once in LAST_AT_LEAST times, however short it is: what is false there the client gets as
it is. Not more often: who makes up a state just before the end and goes on from it honestly hopes for that.
"""

import hmac
import math
from collections.abc import Collection, Iterable

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral import intake, prices
from cyxcentral.jobs import Job, near, node_of, segment_to, worth_base_units
from cyxcentral.nodes import Node, proven
from cyxcentral.schedule import Candidate
from cyxcore.errors import CyxError
from cyxnet import messages as m

PROVEN_AFTER = 10  # jobs of a node that were checked and found right, besides that clients have paid for its work
LAST_AT_LEAST = 10  # once in so many times the last segment is chosen
TOO_LONG = 2  # times what a job asks for: a segment so long is its node's doing
MOST_LOST = 10  # leases of one check that ended without a finding
REST_MS = (0, *(1_000 << doublings for doublings in range(9)))  # after so many of them; all in all 8 minutes
NAMED = 3  # checkers whose reason is told when a check is given up


class Policy(Struct, frozen=True, kw_only=True):
    """secret: of the platform, 32 bytes. checkers: ids of its nodes that check; none: nothing is checked.

    share: of the jobs of proven nodes that is checked, 0 to 1. longest_s: a longer segment is not checked, unless its
    node stored states far more seldom than the job asks; within_s: so long a delivered job waits for its check.
    """

    secret: bytes = b""
    checkers: frozenset[str] = frozenset()
    share: float = 0.05
    longest_s: int = 1800
    within_s: int = 3600


NO_CHECKS = Policy()


# -- which segment ----------------------------------------------------------------------------------------------


def asked(job: Job) -> m.Segment | None:
    """What a checker of the job is told to train: without what it is to find."""
    if job.check is None:
        return None
    return m.Segment(start=job.check.segment.start, end_step=job.check.segment.end_step)


def keeps(policy: Policy, job: Job, stored: m.Checkpoint) -> bool:
    """Whether the segment that ends with this state is kept from now on, instead of the one kept so far.

    What a checker trained takes no part: it would not be checked, and nor would what others did for the job.
    """
    if not policy.checkers or job.attempts[-1].node_id in policy.checkers:
        return False
    new = segment_to(job, stored.step, stored.state)
    return job.kept is None or _number(policy, job, new) < _number(policy, job, job.kept)


def chosen(policy: Policy, job: Job, model: m.ArtifactRef) -> m.SignedSegment:
    """The segment of a job to check, once its holder delivers this model."""
    last = segment_to(job, 0, model)
    if job.kept and node_of(job, last) in policy.checkers:
        return job.kept
    return last if job.kept is None or _number(policy, job, last) < _number(policy, job, job.kept) else job.kept


def _number(policy: Policy, job: Job, segment: m.SignedSegment) -> float:
    """The least is chosen: an exponential variate with the weight for its rate."""
    u = (_hashed(policy, "segment", job.job_id, segment.attempt, segment.end_step, segment.end.sha256) + 1) / 2**64
    before = segment.start.step if segment.start else 0
    weight: float = segment.end_step - before
    if not segment.end_step:
        whole = segment.start.steps if segment.start else 1
        weight = max(whole - before, before / (LAST_AT_LEAST - 1))
    return -math.log(u) / max(1.0, weight)


def _hashed(policy: Policy, *words: object) -> int:
    """64 bits that nobody knows without the secret."""
    return int.from_bytes(hmac.digest(policy.secret, "\n".join(map(str, words)).encode(), "sha256")[:8])


# -- whether it is checked --------------------------------------------------------------------------------------


def completion(
    policy: Policy,
    job: Job,
    event: m.Completed,
    nodes: dict[str, Node],
    now_ms: int,
    in_check: Collection[str] = (),
) -> m.Completed:
    """What is stored when a node delivers: with the segment to check, or with why none is.

    nodes: all there are. in_check: ids of those of whose work some is being checked.
    """
    if not policy.checkers:
        return event
    segment = chosen(policy, job, event.model)
    why_not = _uncheckable(policy, job, segment, nodes, now_ms)
    if node_of(job, segment) not in in_check:  # else it is seen what comes of that, before anything more is paid
        why_not = why_not or _spared(policy, job, segment, nodes)
    return replace(event, segment=None if why_not else segment, not_checked=why_not)


def _uncheckable(policy: Policy, job: Job, segment: m.SignedSegment, nodes: dict[str, Node], now_ms: int) -> str:
    request, deadline_s = job.job, job.terms.deadline_s
    if request.sealed:
        return "its data is sealed, and a checker cannot read it"
    if request.needs.device == "cuda":
        return "it was trained on a GPU, where bits depend on the card"
    if request.training.numerics != "exact":
        return f"it was trained with numerics {request.training.numerics}, where bits depend on the processor"
    if node_of(job, segment) in policy.checkers:
        return f"{node_of(job, segment)}, which trained it, is a checker itself"
    if near(job, now_ms + policy.within_s * 1000):
        return f"its escrow's deadline is near ({deadline_s} s): there is no time left for a check"
    needed_s = seconds(job, segment, (nodes[each] for each in sorted(policy.checkers & nodes.keys())), now_ms)
    name, limit_s = "longest_check_s", policy.longest_s
    if needed_s > TOO_LONG * _asked_s(job, segment, needed_s):  # else who stores no states is never looked at
        name, limit_s = "check_within_s", max(policy.within_s, limit_s)
    return f"the segment takes about {needed_s:.0f} s, and {name} is {limit_s}" if needed_s > limit_s else ""


def _asked_s(job: Job, segment: m.SignedSegment, needed_s: float) -> float:
    """How long a segment takes where its node stores its states as often as the job asks; infinite if it never asks."""
    asked, last = job.job.checkpoints, job.attempts[segment.attempt - 1].checkpoint or segment.start
    possible = intake.possible_steps(job.job)
    steps = segment.end_step or (last.steps if last else possible.stop - 1 if possible else 0)
    made = steps - (segment.start.step if segment.start else 0)
    by_steps = needed_s * asked.every_steps / made if asked.every_steps and made > 0 else math.inf
    return min(asked.every_s or math.inf, by_steps)


def _spared(policy: Policy, job: Job, segment: m.SignedSegment, nodes: dict[str, Node]) -> str:
    """Why a job that could be checked is not: its node is proven, and the job is none of the share that is drawn."""
    node_id = node_of(job, segment)
    share = share_of(policy, nodes.get(node_id), worth_base_units(job))
    if _hashed(policy, "share", job.job_id, segment.attempt, segment.end.sha256) < share * 2**64:
        return ""
    return f"{node_id} is proven, and this job is not among the {share:.0%} of its jobs that are drawn"


def checked_node(job: Job) -> str:
    """Whose work it is that is checked of a job; empty when nothing is."""
    return node_of(job, job.check.segment) if job.check else ""


def spared(policy: Policy, job: Job, nodes: dict[str, Node]) -> str:
    """Why a job that waits with those that are checked is none of them; empty for one that is drawn, or begun with."""
    check = job.check
    if check is None or check.lease or check.lost or check.findings:
        return ""
    return _spared(policy, job, check.segment, nodes)


def share_of(policy: Policy, node: Node | None, worth_base_units: int) -> float:
    """The share of a node's jobs of this worth that is checked, 0 to 1: all, until its work was paid for and found
    right often.

    From then on it falls with what was found right, by number and by worth: else many small jobs would buy a large
    one. Who cheats from some point on, whenever that is, is paid on average less for false jobs than a tenth of what
    the true ones were worth that were checked before: see tests/central/test_strangers.py.
    """
    if node is None or not proven(node) or node.jobs_checked <= PROVEN_AFTER:
        return 1.0
    by_worth = PROVEN_AFTER * worth_base_units / max(1, node.checked_base_units)
    return min(1.0, max(policy.share, PROVEN_AFTER / node.jobs_checked, by_worth))


def seconds(job: Job, segment: m.SignedSegment, checkers: Iterable[Node], now_ms: int) -> float:
    """How long the segment takes at most: by the speed of the fastest checker, or by how long its node took.

    The less of the two counts: a node could take its time so that nobody looks at what it did.
    """
    attempt = job.attempts[segment.attempt - 1]
    last = attempt.checkpoint or segment.start
    whole = last.steps if last else 1
    first = segment.start.step if segment.start else 0
    share = ((segment.end_step or whole) - first) / whole
    begun_ms = attempt.leased_at_ms if attempt.started_at_ms is None else attempt.started_at_ms
    done = (whole if attempt is job.attempts[-1] or not last else last.step) - attempt.first_step
    took_s = max(0.0, now_ms - begun_ms) / 1000 * share * whole / max(1, done)
    try:
        plan = intake.examine(job.job)
    except CyxError:  # of a version that knew another rule
        return took_s
    epochs = job.job.training.epochs
    found = (prices.price_at(each, plan.flops_per_epoch * epochs, plan.bytes_per_epoch * epochs) for each in checkers)
    return min([took_s, *(each.seconds * share for each in found if each.seconds)])


# -- who checks, and when nobody does ---------------------------------------------------------------------------


def due(
    policy: Policy,
    job: Job,
    candidates: list[Candidate],
    lease_ms: int,
    now_ms: int,
    waited_ms: float,
    rested_ms: float,
    spared: str = "",
    held: bool = False,
) -> m.CheckLeased | m.CheckGivenUp | None:
    """What is to be done about a job that is checked. candidates: the checkers that are known.

    waited_ms: since it was delivered; rested_ms: since the last lease of the check ended without a finding. Both by the
    clock of this central that only runs forward. spared: why the job is not drawn; then it is paid, unless it is held:
    work that its node delivered before is being checked, and until then all of it may be false.
    """
    check = job.check
    assert check is not None
    if not policy.checkers:
        return m.CheckGivenUp(reason="this network has no checkers any more")
    if near(job, now_ms):
        return m.CheckGivenUp(reason="its escrow's deadline is near, after which anybody could refund it")
    if spared and not held:
        return m.CheckGivenUp(reason=spared, drawn=False)
    if len(check.lost) >= MOST_LOST:
        return m.CheckGivenUp(
            reason=f"{len(check.lost)} tries ended without a finding, the last: {check.lost[-1].reason}"
        )
    refusals = {each.node.node_id: _refusal(job, each) for each in candidates}
    if waited_ms > policy.within_s * 1000:
        why = [f"{node_id}: {why or 'free'}" for node_id, why in sorted(refusals.items())] or ["none is registered"]
        if check.lease:
            why = [f"{check.lease.node_id} is at it"]
        named = "; ".join([*([check.lost[-1].reason] if check.lost else []), *why[:NAMED]])
        return m.CheckGivenUp(reason=f"no checker was done within {policy.within_s} s ({named})")
    if spared or check.lease or rested_ms < REST_MS[min(len(check.lost), len(REST_MS) - 1)]:
        return None
    able = [each for each in candidates if not refusals[each.node.node_id]]
    if not able:
        return None
    had = [check.denied_by, *(finding.node_id for finding in check.findings)]
    best = min(able, key=lambda each: (each.node.node_id in had, -each.memory_free_bytes, each.node.node_id))
    return m.CheckLeased(
        number=m.FIRST_CHECK + job.checks,
        node_id=best.node.node_id,
        session=best.node.session,
        lease_ms=lease_ms,
    )


def _refusal(job: Job, candidate: Candidate) -> str:
    """Why a checker cannot check this job now; empty when it can."""
    node = candidate.node
    if job.check and node.node_id == node_of(job, job.check.segment):
        return "the work is its own"  # it was named a checker since
    if not node.online:
        return "offline"
    if node.banned_until_ms or node.draining:
        return "banned" if node.banned_until_ms else "draining"
    if not node.checks:
        return f"of version {node.version or 'unknown'}, which cannot check: upgrade it"
    if candidate.active_runs >= node.max_runs:
        return f"busy with {candidate.active_runs} of {node.max_runs} runs"
    if node.hardware.cores < job.job.needs.cores or candidate.memory_free_bytes < job.memory_bytes:
        return "too small or too full for it"
    return ""


# -- in words ---------------------------------------------------------------------------------------------------


def in_words(job: Job) -> str:
    """Whether a job's training was checked before it is paid; empty before it is delivered, and of one that serves."""
    done, check = job.completed, job.check
    if job.job.serve or (done is None and not any(attempt.rejected for attempt in job.attempts)):
        return ""
    if done is None:
        rejected = next(attempt.rejected for attempt in job.attempts if attempt.rejected)
        return f"rejected: {rejected_in_words(rejected)}; {'nothing was' if job.outcome else 'not yet'} delivered again"
    if check is None:
        return f"not checked: {done.not_checked or 'this network had no checkers'}"
    what = _span(check.segment)
    if check.given_up:
        return f"not checked: {check.given_up} ({what})"
    if job.status == "checking":
        who = f"{check.lease.node_id} trains it again" if check.lease else "it waits for a checker"
        return f"being checked: {what}; {who}{', one run found something else' if check.findings else ''}"
    return f"checked: {what}, trained again by {check.findings[-1].node_id}: the same bytes"


def rejected_in_words(event: m.Rejected) -> str:
    """What was found false, in whose work, and by whom."""
    found = sorted({finding.node_id for finding in event.findings})
    why = f"{' and '.join(found)} found something else, twice"
    if event.impossible:
        why = f"no training goes on from its start ({event.impossible})"
    return f"the work of {event.node_id}, {_span(event.segment)}: {why}"


def _span(segment: m.SignedSegment) -> str:
    first = segment.start.step if segment.start else 0
    end = f"step {segment.end_step}" if segment.end_step else "the model"
    return f"from step {first} to {end}, of attempt {segment.attempt}"
