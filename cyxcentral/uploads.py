"""How many bytes may be uploaded, in chunks that nobody may ever use, and how many read back to see whether a commit
is true. Pure: the caller brings the time.

Buckets of bytes: one for each identity; one for all together that never paid for or trained anything, since an identity
costs nothing; a larger one for a node that holds a lease, which stores what it was asked for, but not without end. Of
what is read back there are as many again: a manifest that names one chunk ten thousand times costs its sender nothing
to send.
"""

from collections.abc import Callable

from cyxnet.outcomes import ApiError
from cyxnet.ratelimit import Rate, RateLimiter

DAY_S = 86_400
STRANGERS_SHARE = 10  # each of those gets a tenth of what an identity gets that is known
WORKERS_SHARE = 10  # and a node that holds a lease ten times as much: checkpoints of large models, often
BESIDE_BYTES = 1024  # charged with what is stored: for its place, and a note of who sent it, on disk and in memory
MANIFEST_BYTES_PER_CHUNK = 67  # a digest in JSON


class Uploads:
    """bytes_per_day: of one identity, as many at once; 0 for any number.

    is_known: whether an identity is worth something. works: whether it is a node that holds a lease.
    """

    def __init__(self, bytes_per_day: int, is_known: Callable[[str], bool], works: Callable[[str], bool]):
        self._stored, self._read = (_Day(bytes_per_day, is_known, works) if bytes_per_day > 0 else None for _ in "sr")

    def charge(self, identity: str, size_bytes: int, now_s: float) -> None:
        """Count bytes that are about to be stored, and what is kept beside them.

        Raises ApiError quota (429), which says when to come again.
        """
        if self._stored:
            self._stored.charge(identity, size_bytes + BESIDE_BYTES, "uploaded", now_s)

    def charge_manifest(self, identity: str, chunks: int, now_s: float) -> None:
        """Count a manifest that is about to be stored. Raises ApiError quota (429)."""
        self.charge(identity, MANIFEST_BYTES_PER_CHUNK * chunks, now_s)

    def charge_reading(self, identity: str, size_bytes: int, now_s: float) -> None:
        """Count bytes that are about to be read back and hashed for a commit. Raises ApiError quota (429)."""
        if self._read:
            self._read.charge(identity, size_bytes, "had read back for its commits", now_s)


class _Day:
    """The buckets of one kind of bytes."""

    def __init__(self, size_bytes: int, is_known: Callable[[str], bool], works: Callable[[str], bool]):
        self._is_known, self._works = is_known, works
        self._known, self._worker = _a_day(size_bytes), _a_day(size_bytes * WORKERS_SHARE)
        self._stranger, self._strangers = _a_day(max(1.0, size_bytes / STRANGERS_SHARE)), _a_day(size_bytes)

    def charge(self, identity: str, size_bytes: int, did: str, now_s: float) -> None:
        if self._works(identity):
            _refuse(self._worker, identity, f"{identity} {did}", size_bytes, now_s)
        elif self._is_known(identity):
            _refuse(self._known, identity, f"{identity} {did}", size_bytes, now_s)
        else:
            _refuse(self._stranger, identity, f"{identity} {did}", size_bytes, now_s)
            try:
                _refuse(self._strangers, "", f"all who have not paid for a job yet {did}", size_bytes, now_s)
            except ApiError:
                self._stranger.give_back(identity, size_bytes)
                raise


def _refuse(of: RateLimiter, key: str, who_did: str, size_bytes: int, now_s: float) -> None:
    if wait_ms := of.wait_ms(key, now_s, size_bytes):
        raise ApiError(
            "quota",
            f"{who_did} as much as may be in a day (upload_bytes_per_day); again in {wait_ms // 1000 + 1} s",
            429,
            wait_ms,
        )


def _a_day(size_bytes: float) -> RateLimiter:
    return RateLimiter(Rate(per_s=size_bytes / DAY_S, burst=float(size_bytes)))
