"""What a round amounts to, from forged records."""

from collections import Counter

import pytest

from cyxnet import messages as m
from tests.chaos import report
from tests.chaos.evidence import Entry, Evidence
from tests.chaos.faults import Fault, Harm
from tests.chaos.fleet import Restart
from tests.chaos.report import Outcome

SESSION = "0" * 32


def lost_at(at_ms, reason="no heartbeat for 2400 ms", graceful=False):
    event = m.NodeLost(node_id="node-1-abc", session=SESSION, reason=reason, graceful=graceful)
    record = m.Record(command_id="1", at_ms=at_ms, by="central-a", event=event)
    return Entry(seq=7, subject="cyx.v1.event.node.node-1-abc", sha256="", record=record)


def evidence(*log, **more):
    nothing = {"watched": {}, "told": [], "asked": {}, "escrows": {}, "balances": {}, "ledgers": {}, "artifacts": {}}
    return Evidence(log=list(log), last_seq=len(log), names={"node-1-abc": "node-1"}, **(nothing | more))


def harm(victim, at_ms, lasts_s=1.0, deed="stop"):
    return Harm(at_ms=at_ms, fault=Fault(wait_s=0.0, deed=deed, victim=victim, lasts_s=lasts_s))


def false_losses(entry, *harms, **more):
    return report.false_losses(evidence(entry, harms=list(harms), **more))


def test_a_node_that_says_goodbye_is_lost_with_a_reason():
    # every round ends so, and one whose last jobs took longer than LINGERS_MS counted all of its nodes
    assert false_losses(lost_at(60_000, "the node got SIGTERM", graceful=True)) == []


@pytest.mark.parametrize("victim", ["node-1", "broker", "central-a", "central-b.edge"])
def test_what_was_done_to_it_or_to_who_listens_explains_a_loss(victim):
    assert false_losses(lost_at(60_000), harm(victim, 54_500)) == []  # it lasted a second


def test_a_central_that_was_killed_explains_losses_until_it_is_ready_again():
    ready = Restart(name="central-a", ended_at_ms=50_000, ready_at_ms=58_000, killed=True)
    killed = harm("central-a", 50_000, deed="kill")
    assert false_losses(lost_at(60_000), killed, restarts=[ready]) == []
    assert false_losses(lost_at(63_000), killed, restarts=[ready]) != []


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
        failures=[],
        false_losses=losses,
        other_metrics=0,
        seconds=1.0,
        settle_s=0.0,
        replay="",
    )
