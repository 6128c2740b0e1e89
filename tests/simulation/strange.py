"""Messages in the log that count for nothing: bytes that are no record, and records of what cannot have happened.

A broken disk or a faulty tool of an operator may have put them there. Every central has to read past them, in the same
way, and what it writes next has to name them as its predecessors. Dice of its own: most seeds have none of them.
"""

import hashlib
from random import Random
from typing import Any

from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.codec import MSGPACK, decode, encode
from tests.simulation.faults import FIRST_WALL_MS
from tests.simulation.nodes import summary_of

SHARE = 0.25  # of the seeds
ACTS_EVERY_S = 2.5  # on average
NEVER_BEGUN = 90  # attempts after the last one: so many leases no job here gets
SESSION = "f" * 32  # of no node
NO_MODEL = m.ArtifactRef(sha256="0" * 64, size=1)


class Strange:
    """Puts them there; `seqs` says where they are."""

    def __init__(self, seed: int, network: Any):
        self.seqs: set[int] = set()
        self._network = network
        self._dice = Random(f"strange messages of {seed}")
        self._comes = self._dice.random() < SHARE
        self._kinds = (self._no_record, self._again, self._delivered, self._lost, self._node_lost)

    def begin(self) -> None:
        if self._comes:
            scheduler = self._network.scheduler
            scheduler.at(self._network.chaos, scheduler.now_s + self._dice.expovariate(1 / ACTS_EVERY_S), self._act)

    def _act(self) -> None:
        if not self._network.faults.active:
            return
        jobs = [subject for subject in self._network.checks.last_payload if ".event.job." in subject]
        if jobs:
            subject, payload = self._dice.choice(self._kinds)(self._dice.choice(jobs))
            core = self._network.core
            self.seqs.add(len(core.streams[subjects.EVENTS].messages) + 1)
            self._network.faults.count("strange_message")
            core.store([(subject, payload, None)])
        self.begin()

    def _no_record(self, subject: str) -> tuple[str, bytes]:
        return subject, self._dice.randbytes(40)

    def _again(self, subject: str) -> tuple[str, bytes]:
        """The submission once more."""
        messages = self._network.core.streams[subjects.EVENTS].messages
        return self._record(subject, next(_event(each.payload) for each in messages if each.subject == subject))

    def _delivered(self, subject: str) -> tuple[str, bytes]:
        attempt = self._never(subject)
        event = m.Completed(
            attempt=attempt,
            node_id="node-0",
            model=NO_MODEL,
            graph_sha256="0" * 64,
            summary=summary_of("strange", 1),
            signature="",
        )
        return self._record(subject, event)

    def _lost(self, subject: str) -> tuple[str, bytes]:
        return self._record(subject, m.LeaseLost(attempt=self._never(subject), code="strange", reason="strange"))

    def _node_lost(self, subject: str) -> tuple[str, bytes]:
        """A node that is there, in a session that it never had. subject: of a job; only the dice want it."""
        node_id = self._dice.choice([node.node_id for node in self._network.nodes.values()])
        about = subjects.node_event(node_id)
        if about not in self._network.checks.last_payload:
            return self._no_record(subject)
        return self._record(about, m.NodeLost(node_id=node_id, session=SESSION, reason="strange"))

    def _never(self, subject: str) -> int:
        return len(self._network.checks.jobs[subjects.last_token(subject)].leases) + NEVER_BEGUN

    def _record(self, subject: str, event: Any) -> tuple[str, bytes]:
        before = hashlib.sha256(self._network.checks.last_payload[subject]).hexdigest()
        at_ms = FIRST_WALL_MS + self._network.faults.date_ms(self._network.scheduler.now_s)
        command_id = f"strange-{len(self.seqs)}"
        record = m.Record(command_id=command_id, at_ms=at_ms, by="nobody", event=event, prev=before)
        return subject, encode(record, MSGPACK)


def _event(payload: bytes) -> Any:
    return decode(m.Record, payload, MSGPACK, max_bytes=2**31).event
