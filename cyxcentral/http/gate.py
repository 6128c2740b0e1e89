"""Who asks over HTTP, and whether he asks too often. What he may ask for is in cyxnet.subjects."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from cyxcentral.access import Access, Refused
from cyxcentral.http.clock import BrokerClock
from cyxcentral.http.tokens import NONCE_S, Tokens
from cyxcentral.nodes import Node
from cyxnet import messages as m
from cyxnet.credentials import refused_session
from cyxnet.outcomes import ApiError
from cyxnet.ratelimit import Newcomers, Rate, RateLimiter

KEYS_LIMITED = 10_000  # at a time; beyond that, who was silent longest starts afresh
OPEN_COST = 10.0  # of a request that anybody may make, in requests: signatures are checked and sessions stored


class Who(Struct, frozen=True, kw_only=True):
    """Who a credential acts for. grant_id: the session or key; token: an access token, else an API key."""

    identity: str
    role: m.Role
    grant_id: str
    is_key: bool
    ends_at_s: int = 0  # of the token; 0: as long as the key is good
    requests_per_s: float = 0.0


class Gate:
    """node_of: a node as the log knows it. wait_ms: how long an identity has to wait, charged with so many requests.

    newcomers_per_s: how many identities that nobody knows may open a session from one address; 0 for any number.
    """

    def __init__(
        self,
        access: Access,
        tokens: Tokens,
        clock: BrokerClock,
        network_id: str,
        roles: Callable[[str], frozenset[m.Role]],
        node_of: Callable[[str], Node | None],
        wait_ms: Callable[[str, float], int],
        of_an_address: Rate,
        newcomers_per_s: float,
    ):
        self._access = access
        self._tokens = tokens
        self._clock = clock
        self._network_id = network_id
        self._roles = roles
        self._node_of = node_of
        self._wait_ms = wait_ms
        self._addresses = RateLimiter(of_an_address)
        self._newcomers = Newcomers(newcomers_per_s)
        self._keys: OrderedDict[str, RateLimiter] = OrderedDict()

    async def who(self, authorization: list[str]) -> Who | None:
        """Whoever these headers show, None for nobody. Raises Refused for what is not good, BusError."""
        if not authorization:
            return None
        scheme, _, credential = authorization[0].partition(" ")
        if len(authorization) > 1 or scheme.lower() != "bearer" or not credential:
            raise Refused("expected one header: Authorization: Bearer, and an access token or an API key behind it")
        if credential.startswith("cyxk_"):
            key = await self._access.key(credential)
            return Who(
                identity=key.identity,
                role=key.role,
                grant_id=key.id,
                is_key=True,
                ends_at_s=key.ends_at_ms // 1000,
                requests_per_s=key.requests_per_s,
            )
        await self._clock.look()
        claims = self._tokens.check(credential)
        session = await self._access.good(claims.sid)
        if not isinstance(session, m.HttpSession) or (session.identity, session.role) != (claims.sub, claims.role):
            raise Refused("the access token is not of this session")
        return Who(identity=claims.sub, role=claims.role, grant_id=claims.sid, is_key=False, ends_at_s=claims.exp)

    async def refuse_gone(self, who: Who) -> None:
        """For answers that take long. Raises Refused when the credential is not good any more, BusError."""
        await self._clock.look()
        if who.ends_at_s and self._clock.now_ms() // 1000 >= who.ends_at_s:
            raise Refused("the credential is over")
        await self._access.good(who.grant_id)

    # -- too often -----------------------------------------------------------------------------------

    def charge_address(self, address: str, cost: float = 1.0) -> None:
        """Raises ApiError (429) when this address asks too often."""
        if wait_ms := self._addresses.wait_ms(address, self._now_s(), cost):
            raise ApiError("rate_limited", f"{address} asks too often; again in {wait_ms} ms", 429, wait_ms)

    def charge(self, who: Who, cost: float = 1.0) -> None:
        """A request of an identity, counted with those it makes over NATS, and of its key. Raises ApiError (429).

        cost: as how many requests of the identity it counts.
        """
        wait_ms = self._wait_ms(who.identity, cost)
        if who.requests_per_s and not wait_ms:
            limiter = self._keys.get(who.grant_id)
            if limiter is None:
                rate = Rate(per_s=who.requests_per_s, burst=max(1.0, who.requests_per_s))
                limiter = self._keys[who.grant_id] = RateLimiter(rate, identities=1)
            self._keys.move_to_end(who.grant_id)
            if len(self._keys) > KEYS_LIMITED:
                self._keys.popitem(last=False)
            wait_ms = limiter.wait_ms("", self._now_s())
        if wait_ms:
            raise ApiError("rate_limited", f"{who.identity} asks too often; again in {wait_ms} ms", 429, wait_ms)

    def _charge_identity(self, identity: str) -> None:
        if wait_ms := self._wait_ms(identity, 1.0):
            raise ApiError("rate_limited", f"{identity} asks too often; again in {wait_ms} ms", 429, wait_ms)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    # -- sessions ------------------------------------------------------------------------------------

    async def nonce(self, address: str, _: None) -> m.NonceReply:
        await self._clock.look()
        return m.NonceReply(nonce=self._tokens.nonce(), network_id=self._network_id, expires_in=NONCE_S)

    async def open_session(self, address: str, ask: m.HttpSessionRequest) -> m.SessionTokens:
        await self._clock.look()
        self._tokens.check_nonce(ask.nonce)
        if why_not := refused_session(ask, self._network_id):
            raise Refused(why_not)
        if ask.role not in self._roles(ask.identity):
            raise Refused(f"{ask.identity} may not be {ask.role} now")
        known = self._node_of(ask.identity) if ask.role == "node" else None
        if known is not None and known.public_key != ask.public_key:
            raise Refused(f"{ask.identity} is registered with another key")
        self._charge_identity(ask.identity)
        if self._access.is_new(ask.identity):
            if wait_ms := self._newcomers.wait_ms(address, self._now_s()):
                why = f"too many identities that nobody knows come from {address}; again in {wait_ms} ms"
                raise ApiError("too_many_newcomers", why, 429, wait_ms)
        return self._given(*await self._access.open_session(ask.nonce, ask.identity, ask.role, ask.public_key))

    async def refresh(self, address: str, ask: m.RefreshRequest) -> m.SessionTokens:
        await self._clock.look()
        return self._given(*await self._access.refresh(ask.refresh_token))

    def _given(self, session: m.HttpSession, refresh_token: str) -> m.SessionTokens:
        token, lasts_s = self._tokens.issue(session)
        return m.SessionTokens(
            access_token=token,
            token_type="Bearer",
            expires_in=lasts_s,
            refresh_token=refresh_token,
            session_id=session.id,
            identity=session.identity,
            role=session.role,
        )
