"""How much one identity may ask for: a token bucket each, a share of the places, and an end to who floods. Pure: the
caller brings the time.
"""

import ipaddress
from collections import Counter, OrderedDict

from msgspec import Struct

LONGEST_WAIT_MS = 86_400_000  # that anybody is told
IDENTITIES = 100_000  # beyond that, who was silent longest starts with a full bucket again


def household(address: str) -> str:
    """What counts as one who asks: an IPv4 address, or the /64 of an IPv6 one, all of which one customer has."""
    if ":" not in address:
        return address
    try:
        full = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if full.ipv4_mapped:
        return str(full.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(full) >> 64 << 64)}/64"


class Rate(Struct, frozen=True, kw_only=True):
    """A lasting rate, and how much may come at once on top of it."""

    per_s: float
    burst: float


NEWCOMERS_AT_ONCE = 50.0  # identities that nobody knew, from one address


class RateLimiter:
    """One bucket for each identity; a bucket begins full and refills at the rate."""

    def __init__(self, rate: Rate, identities: int = IDENTITIES):
        if rate.per_s <= 0 or rate.burst < 1:
            raise ValueError(f"expected a positive rate and a burst of at least 1, got {rate}")
        self._rate = rate
        self._missed = 0.0  # what each may have sent while nobody listened
        self._identities = identities
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # identity -> (tokens, at_s)

    def wait_ms(self, identity: str, now_s: float, cost: float = 1.0) -> int:
        """0 when `identity` may go on now (its bucket is charged), else how long it has to wait.

        What costs more than a bucket holds takes a full one: else it would wait for ever.
        """
        cost = min(cost, self._rate.burst)
        tokens, at_s = self._buckets.get(identity, (self._rate.burst + self._missed, now_s))
        tokens = min(self._rate.burst + self._missed, tokens + max(0.0, now_s - at_s) * self._rate.per_s)
        missing = cost - tokens
        self._buckets[identity] = (tokens if missing > 0 else tokens - cost, now_s)
        self._buckets.move_to_end(identity)
        if len(self._buckets) > self._identities:
            self._buckets.popitem(last=False)
        return int(min(1000 * missing / self._rate.per_s, LONGEST_WAIT_MS)) + 1 if missing > 0 else 0

    def not_heard(self, seconds: float) -> None:
        """From now on a bucket holds besides what may come in so many seconds, in which nobody listened; 0: no more."""
        self._missed = seconds * self._rate.per_s

    def give_back(self, identity: str, cost: float) -> None:
        """What was charged a moment ago is not used after all."""
        tokens, at_s = self._buckets[identity]
        self._buckets[identity] = (min(self._rate.burst, tokens + cost), at_s)


class Newcomers:
    """How many identities that nobody knew may come from one address (or IPv6 /64): making one costs nothing.

    This machine's own addresses are not limited: who is there is somebody already, or a proxy.
    """

    def __init__(self, per_s: float, at_once: float = NEWCOMERS_AT_ONCE):
        """per_s: 0 for any number."""
        self._limiter = RateLimiter(Rate(per_s=per_s, burst=at_once)) if per_s > 0 else None

    def wait_ms(self, address: str, now_s: float) -> int:
        """0 when one more may come from there, which is counted; else how long it has to wait."""
        where = household(address)
        if self._limiter is None or "::1" == address or where.startswith("127."):
            return 0
        return self._limiter.wait_ms(where, now_s)


class Floods:
    """Who asks on and on although refused: when his refusals alone exceed the rate, he is shut out for a while."""

    def __init__(self, rate: Rate, out_s: float, identities: int = IDENTITIES):
        self._refusals = RateLimiter(rate, identities)
        self._out_s = out_s
        self._identities = identities
        self._until_s: OrderedDict[str, float] = OrderedDict()

    def refused(self, identity: str, now_s: float, cost: float = 1.0) -> bool:
        """Another request of his was refused. True when that makes it a flood: once, until he is let in again."""
        if self.is_out(identity, now_s) or not self._refusals.wait_ms(identity, now_s, cost):
            return False
        self._until_s[identity] = now_s + self._out_s
        if len(self._until_s) > self._identities:
            self._until_s.popitem(last=False)
        return True

    def is_out(self, identity: str, now_s: float) -> bool:
        until_s = self._until_s.get(identity)
        if until_s is None or until_s > now_s:
            return until_s is not None
        del self._until_s[identity]
        return False


class Places:
    """Room for so many things at a time. Nobody gets more places than are left, so somebody else always gets one:

    one alone gets half of them, two get a third each, and so on.
    """

    def __init__(self, most: int):
        self._most = most
        self._taken: Counter[str] = Counter()
        self.total = 0

    def take(self, identity: str, count: int = 1) -> bool:
        """Whether there is room for him; he has so many places then. Who has none gets them although they are many."""
        taken = self._taken.get(identity, 0)
        if taken >= self._most - self.total or (taken and taken + count > self._most - self.total):
            return False
        self._taken[identity] += count
        self.total += count
        return True

    def give_back(self, identity: str, count: int = 1) -> None:
        self.total -= count
        self._taken[identity] -= count
        if not self._taken[identity]:
            del self._taken[identity]
