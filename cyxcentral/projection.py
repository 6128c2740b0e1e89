"""What the ledger writes down of each message of the event log, once. Pure but for the ledger it fills."""

from typing import Any

from cyxcentral import earnings, money
from cyxcentral.ledger import Ledger
from cyxcentral.world import JUDGED, World
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.outcomes import Stored


def project(world: World, ledger: Ledger, known_seq: int, stored: Stored, record: m.Record) -> None:
    """The rows of a record that the world has just taken in. known_seq: what the ledger had when this central began."""
    if stored.seq <= known_seq:
        return
    _, kind, about = stored.subject.rsplit(".", 2)
    event: Any = record.event  # one of those that are said of this kind
    ledger.add_event(subjects.EVENTS, stored.seq, stored.subject, record, world.sha256.hex())
    if kind == "job":
        job = world.jobs[about]
        ledger.put_job(job)
        if type(event) in earnings.MOVES_MONEY:
            ledger.add_entries(stored.seq, about, earnings.entries(job, event), record.at_ms)
        if type(event) in JUDGED:  # its nodes are judged by it, also those that failed before
            for attempt in job.attempts:
                if node := world.nodes.get(attempt.node_id):
                    ledger.put_node(node)
    elif kind == "node":
        ledger.put_node(world.nodes[about])
    elif isinstance(event, m.Minted):
        ledger.add_entries(stored.seq, "", money.mint(event), record.at_ms)


def note(ledger: Ledger, known_seq: int, stored: Stored, why: str) -> None:
    """A message in quarantine is written down too, with the reason."""
    if stored.seq > known_seq:
        ledger.add_quarantined(subjects.EVENTS, stored.seq, stored.subject, why, stored.sha256)
