"""The life of a node, as facts that happened to it: who is there, what they have, how they behave. Pure.

         NodeRegistered              NodeLost
   new ────────────────▶ online ◀──────────────▶ offline
                           │    NodeRegistered      │
                 NodeBanned│                        │NodeBanned
                           ▼                        ▼
                         banned (whatever it says: it registers, it is heard, it stays banned)
                           │
                           └── time (banned_until_ms) or NodePardoned ──▶ online or offline, as it is connected

A node that its operator drains, or whose disk is full, is online and takes nothing new (`draining`), until
NodeUndrained or its next session.

`STATES` says what each event does in each state. How a node behaves follows from what happened to the jobs it held
(`judged`, `rewarded`, `blamed`): reputation with its reasons, and strikes. Central bans a node that has too many
(`ban_due`); the ban is an event with its end in it, so what is a banned node is the same for every central, whatever
its settings.

Identities cost nothing, neither those of nodes nor those of clients. So a reputation is bought with what cannot be made
up: money that a client is really charged. What a finished job does for its node grows with the fee that it left with
the platform, up to the reference fee of its submission, and less with each more for the same client. A node is proven
once PROVEN_CLIENTS clients have paid for its work; what it gets before is a setting of central (schedule.Unproven).

When a node was last heard is memory of one central only: after a restart every node gets a full fresh lease.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cyxcentral.jobs import CANCELLED, NODE_STOPPED, PAUSED, REFUSED, UNFUNDED, ran_out
from cyxnet import messages as m

State = Literal["new", "online", "draining", "offline", "banned", "banned_offline"]

START_REPUTATION = 75.0  # of 100
UNBANNED_REPUTATION = 25.0  # of a node whose ban is over
REJECTED_LOSS = 25.0  # for what two runs of a checker found false: no accident does that
TIERS = ((80.0, "premium"), (50.0, "normal"), (25.0, "probation"), (0.0, "banned"))  # from this reputation
SUCCESS_GAIN = 1.0  # of a job that left the reference fee, for a client that is new to the node
MOST_FROM_ONE = 2.0  # what one client can gain a node, however much it pays: 1, then 1/2, 1/4, …
GAIN_HALVES_MS = 7 * 24 * 3_600_000  # what one client gained a node counts half after each whole week without it
PROVEN_CLIENTS = 3
WHOLE_PPM = 1_000_000  # a client proves something of a node once it has left a whole reference fee for its work
PAYERS_KEPT = 32  # above PROVEN_CLIENTS: who gives way is never one that is needed for that
FAILURE_LOSS = 2.0  # an attempt that ended without a model
SILENCE_LOSS = 2.0  # lost while it held nothing
DISCONNECT_LOSS = 5.0  # lost with leases in its hands

STRIKES_TO_BAN = 3
BAN_MS = tuple(hours * 3_600_000 for hours in (24, 48, 168))  # the first, the second, every later one
STRIKE_FADES_MS = 7 * 24 * 3_600_000  # one strike is forgiven for each week without another
CHANGES_KEPT = 20
REQUESTS_KEPT = 8

NODE_LOST, RUN_MISSING = "node_lost", "run_missing"  # codes of leases that central took back
NOT_ITS_FAULT = (REFUSED, PAUSED, NODE_STOPPED, UNFUNDED, CANCELLED, NODE_LOST)  # the last was counted with the node
AT_ONCE = (RUN_MISSING,)  # failures that no job can cause: a strike without waiting for another node's success

_UNMOVED: dict[State, State | None] = {
    "new": None,
    "online": "online",
    "draining": "draining",
    "offline": "offline",
    "banned": "banned",
    "banned_offline": "banned_offline",
}
_NOWHERE: dict[State, State | None] = dict.fromkeys(_UNMOVED)
STATES: dict[type, dict[State, State | None]] = {  # None: it cannot happen
    m.NodeRegistered: {
        "new": "online",
        "online": "online",
        "draining": "online",
        "offline": "online",
        "banned": "banned",
        "banned_offline": "banned",
    },
    m.NodeLost: _UNMOVED
    | {"online": "offline", "draining": "offline", "offline": None, "banned": "banned_offline", "banned_offline": None},
    m.NodeDraining: _NOWHERE | {"online": "draining"},
    m.NodeUndrained: _NOWHERE | {"draining": "online"},
    m.NodeGpusRead: _NOWHERE | {"online": "online", "draining": "draining"},
    m.NodeBanned: _UNMOVED | {"online": "banned", "draining": "banned", "offline": "banned_offline"},
    m.NodePardoned: _UNMOVED | {"banned": "online", "banned_offline": "offline"},
    m.Completed: _UNMOVED,
    m.TimeUsed: _UNMOVED,
    m.LeaseLost: _UNMOVED,
    m.Checked: _UNMOVED,
    m.CheckGivenUp: _UNMOVED,
    m.Rejected: _UNMOVED,
}


class Payer(Struct, frozen=True, kw_only=True):
    """A client that paid for a node's work. gained: what that did for the node's reputation, as of at_ms.

    paid_ppm: the fees that it left, as millionths of the reference fees of its jobs; a whole one is enough to know.
    """

    wallet: str
    gained: float
    at_ms: int
    paid_ppm: int = 0

    @property
    def proves(self) -> bool:
        """Whether it is known to be no client that somebody made up for next to nothing."""
        return self.paid_ppm >= WHOLE_PPM


class Node(Struct, frozen=True, kw_only=True):
    """One node: the fold of its events. online: a session of it is connected; a banned node may be online too."""

    node_id: str
    session: str
    name: str
    public_key: str
    wallet: str
    hardware: m.Hardware
    max_runs: int
    region: str
    price_per_hour_base_units: int
    version: str
    began_ms: int = 0  # of its session; the next one's is larger
    dated: bool = False  # what its session signs says for which network, in which place and until when
    signed_commands: bool = False  # its session takes no others
    checks: bool = False  # its session can train a segment of a job once more
    shared_signatures: bool = False  # its session takes commands of which many share a signature
    signed_goodbyes: bool = False  # one that is not signed is not its own
    online: bool
    draining: bool = False
    registered_at_ms: int
    changed_at_ms: int
    jobs_completed: int = 0
    jobs_failed: int = 0
    jobs_checked: int = 0  # of its work a segment was trained again, and found right
    checked_base_units: int = 0  # what those jobs were worth
    reputation: float = START_REPUTATION
    strikes: int = 0
    struck_at_ms: int = 0  # the last strike, or the last that was forgiven
    bans: int = 0  # so far
    banned_until_ms: int = 0  # 0: not banned
    changes: tuple[m.StandingChange, ...] = ()  # the newest last
    requests: tuple[str, ...] = ()  # ids of what operators asked for and got, the newest last
    payers: tuple[Payer, ...] = ()  # the last one paid last; forgotten at the end of a ban
    gpus_free_bytes: tuple[int, ...] = ()  # what other programs leave of each; empty: all of it
    mended: float = 0.0  # gained since it has strikes, or since one was forgiven: a whole point forgives the next


def state(node: Node | None) -> State:
    """Which row of `STATES` a node is in. Ask `at` first when time may have passed."""
    if node is None:
        return "new"
    if node.banned_until_ms:
        return "banned" if node.online else "banned_offline"
    if not node.online:
        return "offline"
    return "draining" if node.draining else "online"


def tier(node: Node) -> str:
    """What a node's reputation is called."""
    return "banned" if node.banned_until_ms else next(name for least, name in TIERS if node.reputation >= least)


def proven(node: Node) -> bool:
    """Whether enough clients have paid for the node's work since it was new, or since its last ban ended."""
    return proofs(node) >= PROVEN_CLIENTS


def proofs(node: Node) -> int:
    """Clients whose payment says something of the node."""
    return sum(payer.proves for payer in node.payers)


def at(node: Node, now_ms: int) -> Node:
    """The node once time has passed until `now_ms`: bans end, strikes fade. Time never runs backwards here."""
    if node.banned_until_ms and now_ms >= node.banned_until_ms:
        over = replace(node, banned_until_ms=0, strikes=0, payers=(), mended=0.0)
        change = UNBANNED_REPUTATION - node.reputation
        node = _changed(over, change, "the ban is over", node.banned_until_ms)
    weeks = min(node.strikes, (now_ms - node.struck_at_ms) // STRIKE_FADES_MS) if node.strikes else 0
    if weeks > 0:
        since_ms = node.struck_at_ms + weeks * STRIKE_FADES_MS
        faded = replace(node, strikes=node.strikes - weeks, struck_at_ms=since_ms)
        node = _changed(faded, 0.0, f"{weeks} of {node.strikes} strikes forgiven with time", since_ms)
    return node


# -- what happens to it ------------------------------------------------------------------------------------


def illegal(node: Node | None, event: m.NodeEvent) -> str | None:
    """Why `event` cannot happen to `node`, which is as of now; None when it can."""
    now = state(node)
    if STATES[type(event)][now] is None:
        return "there is no such node" if node is None else f"the node is {now.replace('banned_', 'banned and ')}"
    if (
        isinstance(event, m.NodeLost | m.NodeDraining | m.NodeUndrained | m.NodeGpusRead)
        and node is not None
        and event.session != node.session
    ):
        return "another session of the node is connected"
    if isinstance(event, m.NodeGpusRead) and node is not None and len(event.free_bytes) != len(node.hardware.gpus):
        return f"the node has {len(node.hardware.gpus)} GPUs, and not {len(event.free_bytes)}"
    if isinstance(event, m.NodeRegistered) and node is not None and 0 < event.began_ms < node.began_ms:
        return "a later session of the node is registered: this one is over, or two processes use one key"
    return None


def evolve(node: Node | None, event: m.NodeEvent, at_ms: int, leases: int = 0) -> Node:
    """The node after `event`. leases: how many it held. Events are facts: `illegal` was asked before the append."""
    if node is None:
        assert isinstance(event, m.NodeRegistered), f"{type(event).__name__} before NodeRegistered"
        return _registered(None, event, at_ms)
    node = at(node, at_ms)
    if isinstance(event, m.NodeBanned | m.NodePardoned) and event.request_id:
        node = replace(node, requests=(*node.requests, event.request_id)[-REQUESTS_KEPT:])
    match event:
        case m.NodeRegistered():
            if node.online and leases and event.session != node.session:
                node = _disconnected(node, f"came back as a new session and dropped {_leases(leases)}", at_ms)
            return _registered(node, event, at_ms)
        case m.NodeLost():
            gone = replace(node, online=False, draining=False, changed_at_ms=at_ms)
            if event.graceful:
                return gone
            if leases:
                return _disconnected(gone, f"was lost with {_leases(leases)}", at_ms)
            return _changed(gone, -SILENCE_LOSS, "fell silent", at_ms)
        case m.NodeDraining() | m.NodeUndrained():
            return replace(node, draining=isinstance(event, m.NodeDraining), changed_at_ms=at_ms)
        case m.NodeGpusRead():
            return replace(node, gpus_free_bytes=tuple(event.free_bytes), changed_at_ms=at_ms)
        case m.NodeBanned():
            bans = node.bans + (not node.banned_until_ms)
            banned = replace(node, banned_until_ms=event.until_ms, bans=bans, draining=False, changed_at_ms=at_ms)
            return _changed(banned, 0.0, f"banned: {event.reason}", at_ms)
        case m.NodePardoned():
            free = replace(node, banned_until_ms=0, strikes=0, changed_at_ms=at_ms)
            return _changed(free, max(0.0, UNBANNED_REPUTATION - node.reputation), f"pardoned: {event.reason}", at_ms)
    raise AssertionError(f"no rule for {type(event).__name__}")


def _registered(node: Node | None, event: m.NodeRegistered, at_ms: int) -> Node:
    """What it says of itself is new; its record is not: registering again washes nothing off."""
    said = {name: getattr(event, name) for name in m.NodeRegistered.__struct_fields__}
    if node is not None:
        return replace(node, online=True, draining=False, gpus_free_bytes=(), changed_at_ms=at_ms, **said)
    return Node(online=True, registered_at_ms=at_ms, changed_at_ms=at_ms, **said)


# -- how it behaves ----------------------------------------------------------------------------------------


def judged(node: Node, job_id: str, event: m.JobEvent, at_ms: int, by_fee: bool = False) -> Node:
    """The node after an attempt of it ended: its record and its reputation.

    by_fee: what it completed counts when it is paid (`rewarded`); else it counts at once, as it did in older versions.

    A job that fails may be at fault itself, and clients could ruin nodes with such jobs. So a failure costs reputation,
    but it is a strike only once another node has completed the job (`blamed`). A failure that the node puts down to
    the job costs nothing until then.
    """
    node = at(node, at_ms)
    if isinstance(event, m.Rejected):
        return _struck_out(node, job_id, at_ms)
    if not isinstance(event, m.LeaseLost):
        if by_fee:
            return replace(node, jobs_completed=node.jobs_completed + 1)
        done = replace(node, jobs_completed=node.jobs_completed + 1, strikes=max(0, node.strikes - 1))
        return _changed(done, SUCCESS_GAIN, f"completed {job_id}", at_ms)
    if event.discards or ran_out(event):  # what was stored was bad; the job needs more than was thought
        return node
    if event.code in NOT_ITS_FAULT:
        return replace(node, jobs_failed=node.jobs_failed + 1) if event.code == NODE_LOST else node
    if event.deterministic:
        return node
    failed = replace(node, jobs_failed=node.jobs_failed + 1)
    failed = _changed(failed, -FAILURE_LOSS, f"lost {job_id} ({event.code})", at_ms)
    return _struck(failed, at_ms) if event.code in AT_ONCE else failed


def rewarded(node: Node, job_id: str, wallet: str, fee_base_units: int, reference_base_units: int, at_ms: int) -> Node:
    """The node after a job that it completed was paid for from this wallet, and the platform had this fee of it.

    No sum of fees buys more than SUCCESS_GAIN for each reference fee, from whatever clients, and no client more than
    MOST_FROM_ONE. A whole point gained forgives a strike. A node that pays itself gains nothing.
    """
    node = at(node, at_ms)
    if fee_base_units <= 0 or wallet == node.wallet:
        return node
    payer = next((each for each in node.payers if each.wallet == wallet), Payer(wallet=wallet, gained=0.0, at_ms=at_ms))
    gained = payer.gained * 0.5 ** max(0, (at_ms - payer.at_ms) // GAIN_HALVES_MS)
    share = min(1.0, fee_base_units / reference_base_units)
    paid_ppm = min(WHOLE_PPM, payer.paid_ppm + fee_base_units * WHOLE_PPM // reference_base_units)
    gain = SUCCESS_GAIN * share * (1.0 - gained / MOST_FROM_ONE)
    others = [each for each in node.payers if each.wallet != wallet]
    if len(others) == PAYERS_KEPT:
        others.remove(min(others, key=lambda each: (each.proves, each.at_ms)))
    payer = replace(payer, gained=gained + gain, at_ms=max(at_ms, payer.at_ms), paid_ppm=paid_ppm)
    mended = node.mended + gain if node.strikes else 0.0
    forgiven = int(mended)
    node = replace(node, payers=(*others, payer), mended=mended - forgiven, strikes=max(0, node.strikes - forgiven))
    return _changed(node, gain, f"was paid for {job_id}", at_ms)


def checked(node: Node, worth_base_units: int) -> Node:
    """The node after a segment of its work on a job that is worth so much was trained again, and found right."""
    worth = node.checked_base_units + worth_base_units
    return replace(node, jobs_checked=node.jobs_checked + 1, checked_base_units=worth)


def _struck_out(node: Node, job_id: str, at_ms: int) -> Node:
    """A wrong result is no accident: as many strikes as a ban needs, whatever the node did before."""
    strikes = node.strikes if node.banned_until_ms else max(node.strikes, STRIKES_TO_BAN)
    record = {"jobs_checked": 0, "checked_base_units": 0, "payers": (), "mended": 0.0}  # it proves nothing any more
    node = replace(node, jobs_failed=node.jobs_failed + 1, strikes=strikes, struck_at_ms=at_ms, **record)
    return _changed(node, -REJECTED_LOSS, f"its work on {job_id} was rejected: it is not what its data gives", at_ms)


def blamed(node: Node, job_id: str, lost: m.LeaseLost, at_ms: int) -> Node:
    """The node after another one completed a job that this one had failed at: it was not the job."""
    if lost.code in NOT_ITS_FAULT or lost.code in AT_ONCE or lost.discards or ran_out(lost):
        return node
    node = _struck(at(node, at_ms), at_ms)
    change = -FAILURE_LOSS if lost.deterministic else 0.0
    return _changed(node, change, f"a strike: another node completed {job_id}, lost here ({lost.code})", at_ms)


def granted(node: Node, request_id: str) -> bool:
    """Whether an operator's wish of this id was carried out already: then this is a repetition of it."""
    return bool(request_id) and request_id in node.requests


def next_ban_ms(node: Node) -> int:
    """How long the next ban of a node lasts, unless somebody says otherwise; one that it has now counts as that one."""
    earlier = node.bans - bool(node.banned_until_ms)
    return BAN_MS[min(earlier, len(BAN_MS) - 1)]


def ban_due(node: Node, now_ms: int) -> m.NodeBanned | None:
    """The ban that a node has earned; None when it has not, or is banned already."""
    node = at(node, now_ms)
    if node.banned_until_ms:
        return None
    if node.strikes >= STRIKES_TO_BAN:
        reason = f"{node.strikes} strikes"
    elif node.reputation < UNBANNED_REPUTATION:
        reason = f"a reputation of {node.reputation:g}"
    else:
        return None
    return m.NodeBanned(until_ms=now_ms + next_ban_ms(node), reason=reason)


def _disconnected(node: Node, what: str, at_ms: int) -> Node:
    """One strike, however many leases it held: it was one incident."""
    return _changed(_struck(node, at_ms), -DISCONNECT_LOSS, what, at_ms)


def _struck(node: Node, at_ms: int) -> Node:
    """While it is banned, what it loses is what it held before: no new strikes for old leases."""
    return node if node.banned_until_ms else replace(node, strikes=node.strikes + 1, struck_at_ms=at_ms)


def _changed(node: Node, change: float, reason: str, at_ms: int) -> Node:
    """The node with another reputation, within 0 to 100, and the reason of it."""
    reputation = min(100.0, max(0.0, node.reputation + change))
    entry = m.StandingChange(
        at_ms=at_ms, change=reputation - node.reputation, reputation=reputation, strikes=node.strikes, reason=reason
    )
    return replace(node, reputation=reputation, changes=(*node.changes[-CHANGES_KEPT + 1 :], entry))


def _leases(count: int) -> str:
    return f"{count} lease{'' if count == 1 else 's'} in its hands"


def silent(heard_ms: dict[str, float], nodes: dict[str, Node], lease_ms: int, now_ms: float) -> list[str]:
    """Ids of the online nodes not heard of for a whole lease. Times are the observer's monotonic clock."""
    return [
        node_id for node_id, node in nodes.items() if node.online and now_ms - heard_ms.get(node_id, now_ms) > lease_ms
    ]
