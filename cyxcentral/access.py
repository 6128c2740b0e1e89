"""API keys and HTTP sessions: what is kept of them, and what may become of them.

They lie in a stream of CORE that holds the newest state of each, one subject for every key and session; a change is a
compare-and-swap, so any number of centrals agree on which refresh token is good. No secret is stored: of an API key the
SHA-256 of its random half, of a session the number of its refresh token, which is an HMAC only centrals can make.

Every central follows the stream. One that has not taken in all of it for SILENT_S no longer knows what was revoked: it
refuses to say whether anything is good.
"""

import asyncio
import contextlib
import hashlib
import heapq
import hmac
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from cyxcentral.machine import Machine
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.codec import MSGPACK, BadMessage, decode, encode
from cyxnet.follower import Follower
from cyxnet.outcomes import AppendUnknown, Conflict, Stored

KEYS_PER_IDENTITY, SESSIONS_PER_IDENTITY = 100, 64
SESSIONS_REMEMBERED = 1_000  # of one identity: those that newer ones took the place of are remembered for a day
STRANGERS_REMEMBERED = 50_000  # keys and sessions of identities that never had a job, were a node or an operator
STRANGER_SAFE_MS = 300_000  # one that was made since is not forgotten: its nonce may be good still
FORGOTTEN_AT_MS = 1  # of a stranger's grant that gave way: revoked so long ago that nobody remembers it
SESSION_MS = 7 * 24 * 3600 * 1000  # from its opening, however often it is refreshed
REMEMBERED_MS = 24 * 3600 * 1000  # so long what has ended or was revoked is still shown, and its id not free
SILENT_S = 10.0
TRIES = 5
PAST_END_S = 3600  # kept a little longer than it is good, as clocks differ
API_KEY = re.compile(r"cyxk_([0-9a-f]{12})_([0-9a-f]{64})")
REFRESH = re.compile(r"cyxr_([0-9a-f]{32})_([1-9][0-9]{0,8})_([0-9a-f]{64})")

Roles = Callable[[str], Collection[m.Role]]  # of an identity: those it may have now


class Refused(CyxError):
    """A key, session or token is not good. The message says why, without helping to make a better one."""

    code = "unauthorized"
    status = 401


class Access:
    """secret: for refresh tokens, the same at all centrals. roles: those an identity may have now.

    is_known: whether an identity has something that costs more than a key: a job, a registered node. An identity costs
    nothing, so the grants of all others together are bounded; the one that was used longest ago gives way.
    """

    def __init__(
        self,
        core: Bus,
        machine: Machine,
        secret: bytes,
        roles: Roles,
        replicas: int = 1,
        is_known: Callable[[str], bool] = lambda identity: False,
    ):
        self._core = core
        self._machine = machine
        self._secret = secret
        self._roles = roles
        self._is_known = is_known
        self._strangers: OrderedDict[str, None] = OrderedDict()  # ids of grants, that used longest ago first
        self._replicas = replicas
        self._held: dict[str, tuple[int, m.Grant]] = {}  # id -> its sequence, and what lies there
        self._of: dict[str, set[str]] = {}  # identity -> ids
        self._to_forget: list[tuple[int, str]] = []  # a heap: when (ms), and the id
        self._follower: Follower | None = None
        self._opening = asyncio.Lock()
        self._reached: dict[int, asyncio.Event] = {}
        self._storing: Counter[tuple[type, str]] = Counter()  # kind and identity: those that are on their way

    def handlers(self) -> dict[str, Callable[[str, Any], Any]]:
        return {"key.new": self._key_new, "key.list": self._key_list, "key.revoke": self._key_revoke}

    # -- reading -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the stream if needed, and read it. Only networks that use HTTP have one. Raises BusError."""
        async with self._opening:
            if self._follower is not None:
                return
            await self._core.ensure_stream(
                subjects.ACCESS,
                [subjects.ACCESS_SUBJECTS],
                replicas=self._replicas,
                max_msgs_per_subject=1,
                allow_msg_ttl=True,
                deny_delete=True,
                deny_purge=True,
            )
            # what came before this message of ours has been read when it comes; sequences alone do not say, as what
            # is at the end of the stream may be gone
            end = await self._core.append(subjects.access("opened"), b"")
            arrived = self._reached[end] = asyncio.Event()
            follower = await self._core.follow(
                subjects.ACCESS, subjects.ACCESS_SUBJECTS, 0, self._stored, self._rewound, stall_s=math.inf
            )
            try:
                await _read_until(arrived, follower)
            except BaseException:
                follower.close()
                raise
            finally:
                self._reached.clear()
            self._follower = follower

    async def _stored(self, stored: Stored) -> None:
        self._take(stored)
        for seq, arrived in self._reached.items():
            if stored.seq >= seq:
                arrived.set()

    def _take(self, stored: Stored) -> None:
        """What lies in the stream; of two that are taken in, the newer one counts."""
        with contextlib.suppress(BadMessage):  # of somebody who is no central, or of a later version: it counts as none
            grant: m.Grant = decode(m.Grant, stored.payload, MSGPACK)  # type: ignore[arg-type]
            seq, before = self._held.get(grant.id, (0, None))
            if stored.subject == subjects.access(grant.id) and stored.seq > seq:
                self._held[grant.id] = (stored.seq, grant)
                self._of.setdefault(grant.identity, set()).add(grant.id)
                if before is None and not self._is_known(grant.identity):
                    self._strangers[grant.id] = None
                forget_ms = _forget_ms(grant)
                if forget_ms and (before is None or forget_ms != _forget_ms(before)):  # not again with each refresh
                    heapq.heappush(self._to_forget, (forget_ms, grant.id))
                self._forget_past()

    def _forget_past(self) -> None:
        now_ms = self._machine.wall_ms()
        while self._to_forget and self._to_forget[0][0] < now_ms:
            _, grant_id = heapq.heappop(self._to_forget)
            held = self._held.get(grant_id)
            if held and 0 < _forget_ms(held[1]) < now_ms:
                self._drop(held[1])

    def _drop(self, grant: m.Grant) -> None:
        del self._held[grant.id]
        self._strangers.pop(grant.id, None)
        self._of[grant.identity].discard(grant.id)
        if not self._of[grant.identity]:
            del self._of[grant.identity]

    def _rewound(self, same_until: int) -> None:
        """The broker lost its newest messages: what they said is looked up again when it is asked for."""
        for seq, grant in list(self._held.values()):
            if seq > same_until:
                self._drop(grant)

    async def find(self, grant_id: str) -> m.Grant | None:
        """A key or session, good or not; None when there is none. Raises BusError when that is not known now."""
        await self.open()
        assert self._follower is not None
        if self._follower.behind_s > SILENT_S:
            raise BusError("this central does not hear which keys and sessions were revoked; ask again, or another one")
        if grant_id not in self._held:  # made at another central a moment ago, or by nobody
            await self._read(grant_id)
        held = self._held.get(grant_id)
        return held[1] if held else None

    async def _read(self, grant_id: str) -> int:
        """Take in what the stream's leader holds; returns its sequence, 0 for none."""
        stored = await self._core.last(subjects.ACCESS, subjects.access(grant_id))
        if stored is None:
            return 0
        self._take(stored)
        return stored.seq

    async def good(self, grant_id: str) -> m.Grant:
        """A key or session that may be used now. Raises Refused, BusError."""
        grant = await self.find(grant_id)
        if grant is None:
            raise Refused("there is no such key or session, or it is long over")
        if grant.revoked_at_ms:
            raise Refused(f"{_noun(grant)} {grant.id} was revoked")
        if grant.ends_at_ms and self._machine.wall_ms() >= grant.ends_at_ms:
            raise Refused(f"{_noun(grant)} {grant.id} is over")
        if grant.role not in self._roles(grant.identity):
            raise Refused(f"{grant.identity} may not be {grant.role} now")
        if grant_id in self._strangers:
            self._strangers.move_to_end(grant_id)
        return grant

    async def key(self, text: str) -> m.ApiKey:
        """The API key that this text is. Raises Refused, BusError."""
        parts = API_KEY.fullmatch(text)
        if parts is None:
            raise Refused("this is not an API key")
        found = await self.find(parts[1])
        sha256 = found.sha256 if isinstance(found, m.ApiKey) else "0" * 64
        same = hmac.compare_digest(hashlib.sha256(parts[2].encode()).hexdigest(), sha256)
        if not same or not isinstance(found, m.ApiKey):
            raise Refused("this is not an API key of this network")
        await self.good(found.id)
        return found

    # -- changing ------------------------------------------------------------------------------------

    async def _change(self, grant_id: str, decide: Callable[[m.Grant | None], m.Grant | None]) -> m.Grant | None:
        """Store what `decide` makes of what is there; None from it changes nothing. Raises what it raises, BusError."""
        await self.open()
        seq, now = self._held.get(grant_id, (0, None))
        for _ in range(TRIES):
            wanted = decide(now)
            if wanted is None:
                return now
            payload, subject = encode(wanted), subjects.access(grant_id)
            try:
                seq = await self._core.append(subject, payload, expected_seq=seq, keep_s=self._keep_s(wanted))
            except (Conflict, AppendUnknown) as error:
                seq = await self._read(grant_id)
                now = self._held[grant_id][1] if grant_id in self._held else None
                if isinstance(error, AppendUnknown) and now == wanted:
                    return wanted
                continue
            self._take(Stored(subject, seq, payload))
            return wanted
        raise BusError(f"{grant_id} could not be changed: others change it all the time; ask again")

    def _keep_s(self, grant: m.Grant) -> int:
        """What is over is of no use to anybody: the stream forgets it by itself."""
        forget_ms = _forget_ms(grant)  # of a session that is long after its nonce is good: a nonce is used once
        return max(1, (forget_ms - self._machine.wall_ms()) // 1000) + PAST_END_S if forget_ms else 0

    def _live(self, identity: str, kind: type) -> list[Any]:
        now_ms = self._machine.wall_ms()
        held = (self._held[grant_id][1] for grant_id in self._of.get(identity, ()))
        return [
            grant
            for grant in held
            if isinstance(grant, kind) and not grant.revoked_at_ms and (grant.ends_at_ms or math.inf) > now_ms
        ]

    @contextlib.contextmanager
    def _one_more(self, kind: type, identity: str, are: int, at_most: int, no: ApiError) -> Iterator[None]:
        """A place below a limit, from now until what takes it is stored. Raises `no` when there is none.

        are: how many there are. What others are about to store counts too: they asked before it could be seen.
        """
        if are + self._storing[kind, identity] >= at_most:
            raise no
        self._storing[kind, identity] += 1
        try:
            yield
        finally:
            self._storing[kind, identity] -= 1
            if not self._storing[kind, identity]:
                del self._storing[kind, identity]

    def is_new(self, identity: str) -> bool:
        """Whether nothing is known of an identity, not even a key or session."""
        return identity not in self._of and not self._is_known(identity)

    async def _make_room(self, identity: str) -> None:
        """For a grant of somebody who may be a stranger. Raises ApiError (429) when all of theirs are in fresh use."""
        while len(self._strangers) >= STRANGERS_REMEMBERED and not self._is_known(identity):
            oldest = next(iter(self._strangers))
            grant = self._held[oldest][1]
            if self._is_known(grant.identity):  # by now
                del self._strangers[oldest]
                continue
            made_ms = grant.made_at_ms if isinstance(grant, m.ApiKey) else grant.opened_at_ms
            if self._machine.wall_ms() < made_ms + STRANGER_SAFE_MS:
                why = "too many keys and sessions are made by newcomers at present; try again in a few minutes"
                raise ApiError("busy", why, 429, retry_after_ms=60_000)
            self._strangers.move_to_end(oldest)  # others who make room meanwhile take the next one
            await self._change(oldest, _forgotten)

    async def _key_new(self, caller: str, ask: m.KeyNewRequest) -> m.NewKey:
        await self.open()
        if ask.role not in self._roles(caller):
            who = " (its operators stand in every central's network.json)" if ask.role == "operator" else ""
            raise ApiError("not_allowed", f"{caller} may not be {ask.role} here{who}: ask for another role", 403)
        if len(self._of.get(caller, ())) >= KEYS_PER_IDENTITY + SESSIONS_PER_IDENTITY:
            raise ApiError("too_many_keys", f"{caller} has too many keys; revoke some, and wait a day", 409)
        now_ms, secret = self._machine.wall_ms(), self._machine.token_hex(32)
        made = m.ApiKey(
            id=self._machine.token_hex(6),
            identity=caller,
            role=ask.role,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            name=ask.name,
            requests_per_s=ask.requests_per_s,
            made_at_ms=now_ms,
            ends_at_ms=now_ms + ask.days * 86_400_000 if ask.days else 0,
        )
        await self._make_room(caller)
        no = ApiError("too_many_keys", f"{caller} has {KEYS_PER_IDENTITY} keys; revoke one first", 409)
        with self._one_more(m.ApiKey, caller, len(self._live(caller, m.ApiKey)), KEYS_PER_IDENTITY, no):
            await self._change(made.id, lambda now: _unless_taken(now, made))
        return m.NewKey(key=f"cyxk_{made.id}_{secret}", view=_view(made))

    async def _key_list(self, caller: str, ask: m.KeyListRequest) -> m.KeyList:
        await self.open()
        self._refuse_unless_operator(caller, ask.as_operator)
        ids = self._held if ask.as_operator else self._of.get(caller, ())
        found = sorted((self._held[grant_id][1] for grant_id in ids), key=_newest_first)
        if ask.after is not None:
            if ask.after not in ids:
                raise ApiError(
                    "unknown_key", f"there is no key or session {ask.after} any more; begin the list anew", 404
                )
            last = _newest_first(self._held[ask.after][1])
            found = [grant for grant in found if _newest_first(grant) > last]
        listed = _listed(found[: ask.limit])
        listed.after = found[ask.limit - 1].id if len(found) > ask.limit else ""
        return listed

    async def _key_revoke(self, caller: str, ask: m.KeyRevokeRequest) -> m.KeyList:
        self._refuse_unless_operator(caller, ask.as_operator)
        found = await self.find(ask.id)
        if found is None or not (ask.as_operator or found.identity == caller):
            raise ApiError("unknown_key", f"{caller} has no key or session {ask.id}; see: cyx key list", 404)
        why = "revoked by an operator" if ask.as_operator else "revoked by its owner"
        return _listed([await self.revoke(found.id, why)])

    def _refuse_unless_operator(self, caller: str, as_operator: bool) -> None:
        if as_operator and "operator" not in self._roles(caller):
            raise ApiError("not_allowed", f"{caller} is no operator of this network", 403)

    async def revoke(self, grant_id: str, why: str) -> m.Grant:
        """From the answer on it is refused here, and as soon as they hear of it at the other centrals."""

        def decide(now: m.Grant | None) -> m.Grant | None:
            if now is None or now.revoked_at_ms:
                return None
            at_ms = self._machine.wall_ms()
            if isinstance(now, m.ApiKey):
                return replace(now, revoked_at_ms=at_ms)
            return replace(now, revoked_at_ms=at_ms, reason=why)

        revoked = await self._change(grant_id, decide)
        if revoked is None:
            raise ApiError("unknown_key", f"there is no key or session {grant_id}", 404)
        return revoked

    # -- sessions ------------------------------------------------------------------------------------

    async def open_session(self, nonce: str, identity: str, role: m.Role, public_key: str) -> tuple[m.HttpSession, str]:
        """A new session, and its refresh token. Raises Refused when the nonce has opened one already."""
        await self.open()
        await self._make_room(identity)
        remembered = (self._held[grant_id][1] for grant_id in self._of.get(identity, ()))
        are = sum(isinstance(grant, m.HttpSession) for grant in remembered)
        no = ApiError(
            "too_many_sessions",
            f"{identity} opened {SESSIONS_REMEMBERED} sessions in a day: refresh one of them, or use an API key",
            429,
            retry_after_ms=60_000,
        )
        now_ms = self._machine.wall_ms()
        session = m.HttpSession(
            id=hashlib.sha256(nonce.encode()).hexdigest()[:32],  # so one nonce opens one session, whoever is asked
            identity=identity,
            role=role,
            public_key=public_key,
            generation=1,
            opened_at_ms=now_ms,
            refreshed_at_ms=now_ms,
            ends_at_ms=now_ms + SESSION_MS,
        )

        def decide(now: m.Grant | None) -> m.Grant:
            if now is not None:
                raise Refused("this nonce was used already: ask for a new one")
            return session

        with self._one_more(m.HttpSession, identity, are, SESSIONS_REMEMBERED, no):
            await self._change(session.id, decide)
        # by the order of the stream, as their times are of several centrals' clocks, and may be the same
        live = sorted(self._live(identity, m.HttpSession), key=lambda each: self._held[each.id][0])
        for old in live[:-SESSIONS_PER_IDENTITY]:
            await self.revoke(old.id, "newer sessions took its place")
        return session, self._refresh_token(session)

    async def refresh(self, token: str) -> tuple[m.HttpSession, str]:
        """The session of a refresh token, and the token that takes its place.

        One that was used before tells that two have it: the session is revoked. Raises Refused, BusError.
        """
        parts = REFRESH.fullmatch(token)
        if parts is None:
            raise Refused("this is not a refresh token")
        session_id, generation = parts[1], int(parts[2])
        if not hmac.compare_digest(parts[3], self._proof(session_id, generation)):
            raise Refused("this is not a refresh token of this network")
        await self.good(session_id)
        ours = set()  # the changes we tried: another use of the token makes the same generation of it

        def decide(now: m.Grant | None) -> m.Grant | None:
            if not isinstance(now, m.HttpSession) or now.revoked_at_ms or now.generation > generation:
                return None
            change = self._machine.token_hex(8)
            ours.add(change)
            now_ms = self._machine.wall_ms()
            return replace(now, generation=generation + 1, refreshed_at_ms=now_ms, change=change)

        found = await self._change(session_id, decide)
        if not isinstance(found, m.HttpSession) or found.revoked_at_ms:
            raise Refused("the session of this refresh token was revoked")
        if found.change not in ours:
            await self.revoke(session_id, "a refresh token was used twice")
            raise Refused("this refresh token was used before: its session is revoked, log in again")
        return found, self._refresh_token(found)

    def _refresh_token(self, session: m.HttpSession) -> str:
        return f"cyxr_{session.id}_{session.generation}_{self._proof(session.id, session.generation)}"

    def _proof(self, session_id: str, generation: int) -> str:
        said = f"cyx/v1/http-refresh\n{session_id}\n{generation}"
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()


async def _read_until(arrived: asyncio.Event, follower: Follower) -> None:
    """Wait for it as long as the stream is read on. Raises BusError when nothing came for SILENT_S."""
    while not arrived.is_set():
        seen_seq = follower.seen_seq
        try:
            async with asyncio.timeout(SILENT_S):
                await arrived.wait()
        except TimeoutError:
            if follower.seen_seq == seen_seq:
                raise BusError(f"of the stream {subjects.ACCESS} nothing came for {SILENT_S:g} s") from None


def _forget_ms(grant: m.Grant) -> int:
    """From when on nobody needs it any more, 0 for never."""
    over_ms = grant.revoked_at_ms or grant.ends_at_ms
    return over_ms + REMEMBERED_MS if over_ms else 0


def _forgotten(now: m.Grant | None) -> m.Grant | None:
    return None if now is None else replace(now, revoked_at_ms=FORGOTTEN_AT_MS)


def _noun(grant: m.Grant) -> str:
    return "key" if isinstance(grant, m.ApiKey) else "session"


def _unless_taken(now: m.Grant | None, made: m.ApiKey) -> m.ApiKey:
    if now is not None and now != made:
        raise ApiError("busy", "that id is taken; ask again", 503)
    return made


def _view(key: m.ApiKey) -> m.KeyView:
    return msgspec.convert({f: getattr(key, f) for f in m.KeyView.__struct_fields__}, m.KeyView)


def _session_view(session: m.HttpSession) -> m.HttpSessionView:
    fields = {f: getattr(session, f) for f in m.HttpSessionView.__struct_fields__}
    return msgspec.convert(fields, m.HttpSessionView)


def _newest_first(grant: m.Grant) -> tuple[int, str]:
    return -(grant.made_at_ms if isinstance(grant, m.ApiKey) else grant.opened_at_ms), grant.id


def _listed(grants: Collection[m.Grant]) -> m.KeyList:
    return m.KeyList(
        keys=[_view(each) for each in grants if isinstance(each, m.ApiKey)],
        sessions=[_session_view(each) for each in grants if isinstance(each, m.HttpSession)],
    )
