"""Whose messages are heard: each sender's rate, an end to who floods, and what a standstill excuses. Pure: the caller
brings the time.
"""

from cyxnet.ratelimit import Floods, Rate, RateLimiter

SHUT_OUT_S = 60.0  # who floods
PATIENCE = Rate(per_s=500, burst=500)  # with who goes on although refused
DEAF_S, CATCH_UP_S = 2.0, 5.0  # one was stopped for longer than that; and then is read for so long at the most


class Hearing:
    """Of many senders, by family (what they speak as: "api", "node") and identity."""

    def __init__(self, rates: dict[str, Rate], now_s: float):
        self._limiters = {family: RateLimiter(rate) for family, rate in rates.items()}
        self._floods = Floods(PATIENCE, SHUT_OUT_S)
        self._ran_s = self._read_s = now_s  # when this process ran, and when it heard the broker, for the last time
        self._caught_up_s = self._missed_s = 0.0

    def is_out(self, identity: str, now_s: float) -> bool:
        """Whether this sender has flooded us a short while ago."""
        return self._floods.is_out(identity, now_s)

    def wait_ms(self, family: str, identity: str, now_s: float, cost: float = 1.0) -> int:
        """0 when who asks may go on (and is charged for it), else how long he has to wait."""
        limiter = self._limiters.get(family)
        if limiter is None:
            return 0
        if now_s - self._ran_s > DEAF_S:  # what came is read before timers are looked at
            self.ran(now_s)
        return limiter.wait_ms(identity, now_s, cost)

    def refused(self, identity: str, now_s: float, cost: float = 1.0) -> bool:
        """A message of his was refused. True when that makes it a flood: once, until he is let in again."""
        return self._floods.refused(identity, now_s, cost)

    def ran(self, now_s: float) -> None:
        """This process runs: said every now and then. Who did not speak too often while it was stopped floods it with
        nothing when it goes on.
        """
        if now_s - self._ran_s > DEAF_S:
            self._was_deaf(now_s - self._ran_s, now_s)
        elif self._caught_up_s and now_s >= self._caught_up_s:
            self._caught_up_s = self._missed_s = 0.0
            for limiter in self._limiters.values():
                limiter.not_heard(0.0)
        self._ran_s = now_s

    def read(self, now_s: float) -> None:
        """Something came from the broker, which is asked so often that it is silent only while it is stopped."""
        if now_s - self._read_s > DEAF_S:
            self._was_deaf(now_s - self._read_s, now_s)
        self._read_s = now_s

    def _was_deaf(self, seconds: float, now_s: float) -> None:
        self._caught_up_s, self._missed_s = now_s + CATCH_UP_S, max(self._missed_s, seconds)
        for limiter in self._limiters.values():
            limiter.not_heard(self._missed_s)
