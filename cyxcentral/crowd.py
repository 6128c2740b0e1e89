"""How many connections each identity has, over all brokers: counted from what brokers say as it happens. Pure.

An identity that was let in counts until its broker says that it is connected, or PENDING_S are over. A connection
counts until its broker says that it ended, or until it must have ended (its time is over). A broker that died says
nothing, and what is said while a central's link is down is lost: so who seems to have many is counted again
(`doubt`, `counted`, `settle`).
"""

from collections import deque

PENDING_S = 5.0
LATE_S = 30.0  # a connection whose time is over is ended by its broker; that much later it is gone for certain

Key = tuple[str, int]  # the server's id, and the connection's number there


class Crowd:
    """Times in seconds, of one clock that only runs forward."""

    def __init__(self) -> None:
        self._inside: dict[str, dict[Key, float]] = {}  # identity -> connection -> when it is gone at the latest
        self._doubtful: dict[str, set[Key]] = {}  # identity -> what a count that is under way has not confirmed
        self._answered: set[str] = set()  # identities of which some broker has been counted
        self._pending: dict[str, deque[float]] = {}  # identity -> when each is forgotten; the oldest first
        self._ends: deque[tuple[float, str, Key]] = deque()  # of those inside: when each is gone, about in order
        self._let_in: deque[tuple[float, str]] = deque()  # (when it is forgotten, identity): the same for all of them

    def count(self, identity: str, now_s: float) -> int:
        """Connections of an identity, those included that were let in a moment ago."""
        inside, pending = self._inside.get(identity), self._pending.get(identity)
        if inside:
            for key in [key for key, until_s in inside.items() if until_s <= now_s]:
                self.left(identity, key)
        while pending and pending[0] <= now_s:
            self._arrived(identity)
        return len(self._inside.get(identity, ())) + len(self._pending.get(identity, ()))

    def inside(self, identity: str) -> list[Key]:
        """The connections of an identity that brokers have told of."""
        return list(self._inside.get(identity, ()))

    def let_in(self, identity: str, now_s: float) -> None:
        while self._let_in and self._let_in[0][0] <= now_s:  # who never came and is not asked about any more
            until_s, gone = self._let_in.popleft()
            if (pending := self._pending.get(gone)) and pending[0] <= until_s:
                self._arrived(gone)
        self._pending.setdefault(identity, deque()).append(now_s + PENDING_S)
        self._let_in.append((now_s + PENDING_S, identity))

    def came(self, identity: str, key: Key, lasts_s: float, now_s: float) -> int:
        """A broker says that it is connected. Returns how many of the identity are, without those on their way."""
        self._arrived(identity)
        while self._ends and self._ends[0][0] <= now_s:  # of a broker that died, which said of nobody that he left
            until_s, gone, its_key = self._ends.popleft()
            if self._inside.get(gone, {}).get(its_key) == until_s:
                self.left(gone, its_key)
        until_s = now_s + lasts_s + LATE_S
        self._ends.append((until_s, identity, key))
        self._inside.setdefault(identity, {})[key] = until_s
        return len(self._inside[identity])

    def _arrived(self, identity: str) -> None:
        """The oldest of those on their way is not any more."""
        if pending := self._pending.get(identity):
            pending.popleft()
            if not pending:
                del self._pending[identity]

    def left(self, identity: str, key: Key) -> None:
        inside = self._inside.get(identity, {})
        inside.pop(key, None)
        if not inside:
            self._inside.pop(identity, None)

    def doubt(self, identity: str) -> bool:
        """A count of this identity begins: each broker is asked. False when one is under way already."""
        if identity in self._doubtful:
            return False
        self._doubtful[identity] = set(self._inside.get(identity, ()))
        return True

    def counted(self, identity: str, server_id: str, numbers: set[int]) -> None:
        """A broker says which connections of the identity it has. Those that came since the count began stay."""
        if (doubtful := self._doubtful.get(identity)) is None:
            return
        self._answered.add(identity)
        for key in [key for key in doubtful if key[0] == server_id]:
            doubtful.discard(key)
            if key[1] not in numbers:
                self.left(identity, key)

    def settle(self, identity: str) -> None:
        """The count is over: the connections of brokers that did not answer are gone, if any broker did."""
        gone = self._doubtful.pop(identity, ())
        if identity in self._answered:
            self._answered.discard(identity)
            for key in gone:
                self.left(identity, key)
