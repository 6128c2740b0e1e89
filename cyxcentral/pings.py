"""Whether replicas answer that say they are ready: each is asked, over its own subject, once in a heartbeat.

A replica is paid for the time in which it is ready, and that it is, is its node's word. So every central asks it, as
often as nodes are heard, and its model's process has to answer. One that does not for a whole lease loses that, and is
paid until then. Only silence while this central could hear counts; losing what is remembered here costs a replica a
fresh lease. A node of an earlier version does not say that its replicas answer: they are not asked.
"""

import secrets
from collections.abc import Collection

from cyxnet import asking, subjects
from cyxnet.asking import BadQuestion, Question
from cyxnet.bus import Bus, BusError
from cyxnet.connection import Message
from cyxnet.credentials import replica_id

Replica = tuple[str, str, int]  # node id, job id, attempt


class Pings:
    """Times are the observer's monotonic clock, in milliseconds."""

    def __init__(self, edge: Bus, every_ms: float):
        self._edge = edge
        self._every_ms = every_ms
        self._answered_ms: dict[Replica, float] = {}  # or since when it is asked
        self._asked_ms: dict[Replica, float] = {}
        self._by_token: dict[str, Replica] = {}  # whose answer is awaited
        self._tokens: dict[Replica, str] = {}
        self._answers: set[Replica] = set()  # since look() was called

    async def start(self) -> None:
        """Raises BusError."""
        await self._edge.attend(subjects.reply(subjects.CENTRAL, "*"), self._take)

    def look(self, ready: Collection[Replica], now_ms: float) -> None:
        """Ask those whose turn it is, of all that are ready, and forget the others."""
        for replica in self._answers:
            self._answered_ms[replica] = now_ms
        self._answers.clear()
        for gone in self._answered_ms.keys() - ready:
            del self._answered_ms[gone], self._asked_ms[gone]
            self._by_token.pop(self._tokens.pop(gone, ""), None)
        for replica in ready:
            self._answered_ms.setdefault(replica, now_ms)
            if now_ms - self._asked_ms.get(replica, -self._every_ms) >= self._every_ms:
                self._asked_ms[replica] = now_ms
                self._ask(replica)

    def silent_ms(self, replica: Replica, now_ms: float) -> float:
        """How long it has not answered; 0 for one that is not asked yet, or has just answered."""
        return 0.0 if replica in self._answers else now_ms - self._answered_ms.get(replica, now_ms)

    def forgive(self, now_ms: float) -> None:
        """What was not heard until now does not count: we could not hear."""
        self._answered_ms = dict.fromkeys(self._answered_ms, now_ms)

    def _ask(self, replica: Replica) -> None:
        self._by_token.pop(self._tokens.pop(replica, ""), None)
        token = secrets.token_hex(16)
        self._by_token[token], self._tokens[replica] = replica, token
        headers = asking.question_headers(Question(route=asking.PING))
        try:
            self._edge.send(subjects.ping(replica_id(*replica)), b"", headers, subjects.reply(subjects.CENTRAL, token))
        except BusError:
            pass  # we are cut off: that counts as no silence of its

    def _take(self, message: Message) -> None:
        replica = self._by_token.get(subjects.last_token(message.subject))
        if replica is None or message.status:  # an old answer, another central's, or the broker: nobody listens
            return
        try:
            answered = asking.part_of(message.data, message.headers).status == 200
        except BadQuestion:
            return
        if answered:
            self._answers.add(replica)
