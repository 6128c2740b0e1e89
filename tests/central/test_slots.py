"""The life of a deployment slot."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcentral import slots
from cyxnet import messages as m

MODEL = m.ArtifactRef(sha256="a" * 64, size=10)
FAILED = m.SlotFailed(attempt=1, code="died", reason="it died")


def assigned(attempt=1):
    return m.SlotAssigned(
        attempt=attempt, deployment_id="d-1", node_id="node-a", session="0" * 32, model=MODEL, lease_ms=1
    )


EVENTS = {
    "assigned": assigned(),
    "ready": m.SlotReady(attempt=1),
    "draining": m.SlotDraining(attempt=1, reason="scaled down"),
    "drained": m.SlotDrained(attempt=1),
    "failed": FAILED,
    "lost": m.SlotLost(attempt=1, reason="the node is gone"),
}


def slot_after(*names):
    """A slot after these events, one second apart, each of the attempt that is current."""
    slot = slots.Slot(slot_id="slot-1")
    for second, name in enumerate(names, start=1):
        event = replace(EVENTS[name], attempt=slot.attempt + (name == "assigned"))
        assert slots.illegal(slot, event) is None, (slot.state, name)
        slot = slots.evolve(slot, event, second * 1000)
    return slot


STATES = {
    "empty": slot_after(),
    "loading": slot_after("assigned"),
    "ready": slot_after("assigned", "ready"),
    "draining": slot_after("assigned", "ready", "draining"),
    "failed": slot_after("assigned", "failed"),
}
NEXT = {  # what is not here cannot happen
    ("empty", "assigned"): "loading",
    ("failed", "assigned"): "loading",
    ("loading", "ready"): "ready",
    ("loading", "draining"): "draining",
    ("ready", "draining"): "draining",
    ("draining", "drained"): "empty",
    ("loading", "failed"): "failed",
    ("ready", "failed"): "failed",
    ("draining", "failed"): "empty",
    ("loading", "lost"): "empty",
    ("ready", "lost"): "empty",
    ("draining", "lost"): "empty",
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_every_pair_of_state_and_event_leads_where_the_table_says(state, event):
    slot = STATES[state]
    said = replace(EVENTS[event], attempt=slot.attempt + (event == "assigned"))
    assert slot.state == state
    assert (slots.illegal(slot, said) is None) == ((state, event) in NEXT)
    if (state, event) in NEXT:
        assert slots.evolve(slot, said, 9_000).state == NEXT[state, event]


@pytest.mark.parametrize("event", sorted(set(EVENTS) - {"assigned"}))
def test_what_an_old_attempt_says_changes_nothing(event):
    slot = slot_after("assigned", "lost", "assigned", *([] if event == "ready" else ["ready"]))
    if event == "drained":
        slot = slot_after("assigned", "lost", "assigned", "draining")
    assert slots.illegal(slot, EVENTS[event]) == "attempt 1 is over; the current one is 2"


def test_an_attempt_is_the_one_after_the_last():
    assert slots.illegal(STATES["failed"], assigned(1)) == "not the next attempt"


def test_failures_in_a_row_wait_longer_each_time_until_the_slot_is_given_up():
    names, waits = [], []
    for _ in range(slots.MAX_FAILURES):
        names += ["assigned", "failed"]
        slot = slot_after(*names)
        waits.append(slot.not_before_ms - slot.changed_at_ms)
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000]
    assert slots.illegal(slot, assigned(6)) == "it is given up after 5 failures in a row: it died"
    assert not slots.wants_node(slot, 10**12)


def test_being_ready_forgets_the_failures_before():
    assert slot_after("assigned", "failed", "assigned", "ready").failures == 0


def test_a_model_that_loads_nowhere_is_given_up_at_once():
    broken = slots.evolve(STATES["loading"], replace(FAILED, deterministic=True), 9_000)
    assert broken.given_up


def test_a_lost_node_is_no_failure_of_the_slot_and_another_may_take_it_at_once():
    lost = slot_after("assigned", "ready", "lost")
    assert (lost.failures, lost.assigned) == (0, None)
    assert slots.wants_node(lost, lost.changed_at_ms)


def test_a_failed_slot_wants_a_node_when_its_back_off_is_over():
    failed = STATES["failed"]
    assert not slots.wants_node(failed, failed.not_before_ms - 1)
    assert slots.wants_node(failed, failed.not_before_ms)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=40))
def test_whatever_is_tried_a_slot_is_held_by_the_newest_attempt_or_by_nobody(names):
    slot, attempts = slots.Slot(slot_id="slot-1"), 0
    for step, name in enumerate(names):
        event = replace(EVENTS[name], attempt=slot.attempt + (name == "assigned"))
        if slots.illegal(slot, event):
            continue
        slot = slots.evolve(slot, event, step)
        assert slot.attempt == attempts + (name == "assigned")
        attempts = slot.attempt
        held = slot.state in slots.HELD
        assert (slot.assigned.attempt if slot.assigned else None) == (attempts if held else None)
