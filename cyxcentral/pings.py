"""Whether replicas answer that say they are ready: each is asked, over its own subject, once in a heartbeat.

A replica is paid for the time in which it is ready, and that it is, is its node's word. So every central asks it, as
often as nodes are heard, and its model's process has to answer. One that answered nothing of what it was asked within a
whole lease loses that, and is paid until then. Only silence while this central could hear counts, and only until its
node was heard last: a node that is gone with its replica is lost as a node. Losing what is remembered here costs a
replica a fresh lease. A node of an earlier version does not say that its replicas answer: they are not asked.
"""

import secrets
from collections import deque
from collections.abc import Callable, Collection

from cyxnet import asking, subjects
from cyxnet.asking import BadQuestion, Question
from cyxnet.bus import Bus, BusError
from cyxnet.connection import Message
from cyxnet.credentials import replica_id

Replica = tuple[str, str, int]  # node id, job id, attempt


class Pings:
    """Times are the observer's monotonic clock, in milliseconds. counts_ms: an answer that takes longer is none."""

    def __init__(
        self, edge: Bus, every_ms: float, counts_ms: float, token_hex: Callable[[int], str] = secrets.token_hex
    ):
        self._edge = edge
        self._every_ms = every_ms
        self._counts_ms = counts_ms
        self._token_hex = token_hex
        self._answered_ms: dict[Replica, float] = {}  # when it was asked what it answered, or since when it is asked
        self._asked: dict[Replica, deque[tuple[float, str]]] = {}  # when, and with which token; the newest is last
        self._by_token: dict[str, tuple[Replica, float]] = {}  # whose answer is awaited, and when it was asked

    async def start(self) -> None:
        """Raises BusError."""
        await self._edge.attend(subjects.reply(subjects.CENTRAL, "*"), self._take)

    def look(self, ready: Collection[Replica], now_ms: float) -> None:
        """Ask those whose turn it is, of all that are ready, and forget the others."""
        for gone in self._answered_ms.keys() - ready:
            del self._answered_ms[gone]
            for _, token in self._asked.pop(gone):
                del self._by_token[token]
        for replica in ready:
            self._answered_ms.setdefault(replica, now_ms)
            asked = self._asked.setdefault(replica, deque())
            if not asked or now_ms - asked[-1][0] >= self._every_ms:
                while asked and now_ms - asked[0][0] > self._counts_ms:
                    del self._by_token[asked.popleft()[1]]
                self._ask(replica, now_ms)

    def silent_ms(self, replica: Replica, heard_ms: float) -> float:
        """For how long it had answered nothing when its node was heard; 0 for one that is not asked yet."""
        return max(0.0, heard_ms - self._answered_ms.get(replica, heard_ms))

    def forgive(self, now_ms: float) -> None:
        """What was not heard until now does not count: we could not hear."""
        self._answered_ms = dict.fromkeys(self._answered_ms, now_ms)

    def _ask(self, replica: Replica, now_ms: float) -> None:
        token = self._token_hex(16)
        self._asked[replica].append((now_ms, token))
        self._by_token[token] = replica, now_ms
        headers = asking.question_headers(Question(route=asking.PING))
        try:
            self._edge.send(subjects.ping(replica_id(*replica)), b"", headers, subjects.reply(subjects.CENTRAL, token))
        except BusError:
            pass  # we are cut off: that counts as no silence of its

    def _take(self, message: Message) -> None:
        known = self._by_token.get(subjects.last_token(message.subject))
        if known is None or message.status:  # an old answer, another central's, or the broker: nobody listens
            return
        try:
            answered = asking.part_of(message.data, message.headers).status == 200
        except BadQuestion:
            return
        if answered:
            replica, asked_ms = known
            self._answered_ms[replica] = max(self._answered_ms[replica], asked_ms)
