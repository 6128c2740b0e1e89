"""How much one identity may ask for: a token bucket each. Pure: the caller brings the time."""

from collections import OrderedDict

from msgspec import Struct

IDENTITIES = 100_000  # beyond that, who was silent longest starts with a full bucket again


class Rate(Struct, frozen=True, kw_only=True):
    """A lasting rate, and how much may come at once on top of it."""

    per_s: float
    burst: float


class RateLimiter:
    """One bucket for each identity; a bucket begins full and refills at the rate."""

    def __init__(self, rate: Rate, identities: int = IDENTITIES):
        if rate.per_s <= 0 or rate.burst < 1:
            raise ValueError(f"expected a positive rate and a burst of at least 1, got {rate}")
        self._rate = rate
        self._identities = identities
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # identity -> (tokens, at_s)

    def wait_ms(self, identity: str, now_s: float, cost: float = 1.0) -> int:
        """0 when `identity` may go on now (its bucket is charged), else how long it has to wait."""
        tokens, at_s = self._buckets.get(identity, (self._rate.burst, now_s))
        tokens = min(self._rate.burst, tokens + max(0.0, now_s - at_s) * self._rate.per_s)
        missing = cost - tokens
        self._buckets[identity] = (tokens if missing > 0 else tokens - cost, now_s)
        self._buckets.move_to_end(identity)
        if len(self._buckets) > self._identities:
            self._buckets.popitem(last=False)
        return int(1000 * missing / self._rate.per_s) + 1 if missing > 0 else 0
