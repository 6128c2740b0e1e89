"""What a round amounts to, from forged records."""

from collections import Counter

import pytest

from cyxnet import messages as m
from tests.chaos import report
from tests.chaos.evidence import Entry, Evidence
from tests.chaos.faults import Fault
from tests.chaos.report import Harm, Outcome

SESSION = "0" * 32
MEMORY_MS = 5_000


def lost_at(at_ms, reason="no heartbeat for 2400 ms", graceful=False):
    event = m.NodeLost(node_id="node-1-abc", session=SESSION, reason=reason, graceful=graceful)
    record = m.Record(command_id="1", at_ms=at_ms, by="central-a", event=event)
    return Entry(seq=7, subject="cyx.v1.event.node.node-1-abc", sha256="", record=record)


def evidence(*log):
    nothing = {"watched": {}, "told": [], "asked": {}, "escrows": {}, "balances": {}, "ledgers": {}, "artifacts": {}}
    return Evidence(log=list(log), last_seq=len(log), **nothing)


def harm(victim, at_ms, lasts_s=1.0):
    return Harm(at_ms=at_ms, fault=Fault(wait_s=0.0, deed="stop", victim=victim, lasts_s=lasts_s))


def false_losses(entry, *harms):
    return report.false_losses(evidence(entry), list(harms), {"node-1-abc": "node-1"}, MEMORY_MS)


def test_a_node_that_says_goodbye_is_lost_with_a_reason():
    # every round ends so, and one whose last jobs took longer than MEMORY_MS counted all of its nodes
    assert false_losses(lost_at(60_000, "the node got SIGTERM", graceful=True)) == []


@pytest.mark.parametrize("victim", ["node-1", "broker", "central-a", "central-b.edge"])
def test_what_was_done_to_it_or_to_who_listens_explains_a_loss(victim):
    assert false_losses(lost_at(60_000), harm(victim, 54_000)) == []  # it lasted a second


@pytest.mark.parametrize(
    ("harms", "said"),
    [
        ([], "node-1 at 7 by central-a: no heartbeat for 2400 ms, before any harm to it"),
        ([harm("node-1", 60_001)], "before any harm to it"),
        ([harm("node-2", 59_000)], "before any harm to it"),
        ([harm("node-1", 40_000), harm("broker", 53_000)], "7000 ms after stop broker (1.00 s)"),
    ],
)
def test_a_loss_that_nothing_explains_is_told_with_its_reason_and_the_last_harm(harms, said):
    [told] = false_losses(lost_at(60_000), *harms)
    assert said in told
    assert f"lost without a reason: {told}" in report.table(outcome([told]))


def outcome(losses):
    return Outcome(
        seed=1,
        kills=Counter(node=1),
        pauses=0,
        network_faults=0,
        full_disks=0,
        violations=[],
        recovery_ms={},
        up_again_ms={},
        acknowledged=0,
        statuses=Counter(),
        leases=0,
        false_losses=losses,
        other_metrics=0,
        seconds=1.0,
        settle_s=0.0,
        replay="",
    )
