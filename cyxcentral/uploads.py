"""How many bytes may be uploaded, in chunks that nobody may ever use. Pure: the caller brings the time.

Buckets of bytes: one for each identity; one for all together that never paid for or trained anything, since an identity
costs nothing; a larger one for a node that holds a lease, which stores what it was asked for, but not without end.
"""

from collections.abc import Callable

from cyxnet.outcomes import ApiError
from cyxnet.ratelimit import Rate, RateLimiter

DAY_S = 86_400
STRANGERS_SHARE = 10  # each of those gets a tenth of what an identity gets that is known
WORKERS_SHARE = 10  # and a node that holds a lease ten times as much: checkpoints of large models, often


class Uploads:
    """bytes_per_day: of one identity, as many at once; 0 for any number.

    is_known: whether an identity is worth something. works: whether it is a node that holds a lease.
    """

    def __init__(self, bytes_per_day: int, is_known: Callable[[str], bool], works: Callable[[str], bool]):
        self._is_known, self._works = is_known, works
        self._known = self._worker = self._stranger = self._strangers = None
        if bytes_per_day > 0:
            each = max(1.0, bytes_per_day / STRANGERS_SHARE)
            self._known = _a_day(bytes_per_day)
            self._worker = _a_day(bytes_per_day * WORKERS_SHARE)
            self._stranger = _a_day(each)
            self._strangers = _a_day(bytes_per_day)

    def charge(self, identity: str, size_bytes: int, now_s: float) -> None:
        """Count bytes that are about to be stored. Raises ApiError quota (429), which says when to come again."""
        if self._known is None:
            return
        assert self._worker is not None and self._stranger is not None and self._strangers is not None
        if self._works(identity):
            self._refuse(self._worker, identity, identity, size_bytes, now_s)
        elif self._is_known(identity):
            self._refuse(self._known, identity, identity, size_bytes, now_s)
        else:
            self._refuse(self._stranger, identity, identity, size_bytes, now_s)
            try:
                self._refuse(self._strangers, "", "all who have not paid for a job yet", size_bytes, now_s)
            except ApiError:
                self._stranger.give_back(identity, size_bytes)
                raise

    @staticmethod
    def _refuse(of: RateLimiter, key: str, whose: str, size_bytes: int, now_s: float) -> None:
        if wait_ms := of.wait_ms(key, now_s, size_bytes):
            raise ApiError(
                "quota",
                f"{whose} uploaded as much as may be in a day (upload_bytes_per_day); again in {wait_ms // 1000 + 1} s",
                429,
                wait_ms,
            )


def _a_day(size_bytes: float) -> RateLimiter:
    return RateLimiter(Rate(per_s=size_bytes / DAY_S, burst=float(size_bytes)))
