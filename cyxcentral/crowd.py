"""How many connections each identity has, over all brokers: counted from what brokers say as it happens. Pure.

An identity that was let in counts until its broker says that it is connected, or PENDING_S are over. A connection
counts until its broker says that it ended, or until it must have ended (its time is over): a broker that died says
nothing.
"""

from collections import deque

PENDING_S = 5.0
LATE_S = 30.0  # a connection whose time is over is ended by its broker; that much later it is gone for certain

Key = tuple[str, int]  # the server's id, and the connection's number there


class Crowd:
    """Times in seconds, of one clock that only runs forward."""

    def __init__(self) -> None:
        self._inside: dict[str, dict[Key, float]] = {}  # identity -> connection -> when it is gone at the latest
        self._pending: dict[str, deque[float]] = {}  # identity -> when each is forgotten; the oldest first

    def count(self, identity: str, now_s: float) -> int:
        """Connections of an identity, those included that were let in a moment ago."""
        inside, pending = self._inside.get(identity), self._pending.get(identity)
        if inside:
            for key in [key for key, until_s in inside.items() if until_s <= now_s]:
                self.left(identity, key)
        while pending and pending[0] <= now_s:
            pending.popleft()
        if pending is not None and not pending:
            del self._pending[identity]
        return len(self._inside.get(identity, ())) + len(self._pending.get(identity, ()))

    def let_in(self, identity: str, now_s: float) -> None:
        self._pending.setdefault(identity, deque()).append(now_s + PENDING_S)

    def came(self, identity: str, key: Key, lasts_s: float, now_s: float) -> int:
        """A broker says that it is connected. Returns how many of the identity are, without those on their way."""
        if pending := self._pending.get(identity):
            pending.popleft()
        self._inside.setdefault(identity, {})[key] = now_s + lasts_s + LATE_S
        return len(self._inside[identity])

    def left(self, identity: str, key: Key) -> None:
        inside = self._inside.get(identity, {})
        inside.pop(key, None)
        if not inside:
            self._inside.pop(identity, None)
