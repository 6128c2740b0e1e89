from cyxcentral import nodes
from cyxnet import messages as m
from tests.central import facts as f


def node_after(*events):
    node = None
    for second, event in enumerate(events):
        node = nodes.evolve(node, event, second * 1000)
    return node


LOST = m.NodeLost(node_id="node-a", session="0" * 32, reason="silent")


def test_a_node_comes_and_goes():
    assert node_after(f.registered()).online
    assert not node_after(f.registered(), LOST).online


def test_registering_again_keeps_the_record_and_the_reputation():
    node = nodes.judged(node_after(f.registered()), f.completed())
    again = nodes.evolve(node, f.registered(session="1" * 32), 9000)
    assert (again.jobs_completed, again.reputation, again.registered_at_ms) == (1, 76.0, 0)
    assert again.session == "1" * 32


def test_a_failure_costs_reputation_unless_it_was_the_job():
    node = node_after(f.registered())
    assert nodes.judged(node, f.lost()).reputation == 73.0
    assert nodes.judged(node, f.lost(deterministic=True)) == node


def test_silence_of_a_whole_lease_is_loss_and_an_unheard_node_gets_a_fresh_one():
    known = {"node-a": node_after(f.registered()), "node-b": node_after(f.registered("node-b"))}
    assert nodes.silent({"node-a": 0.0}, known, lease_ms=100, now_ms=100.0) == []
    assert nodes.silent({"node-a": 0.0}, known, lease_ms=100, now_ms=100.1) == ["node-a"]
