"""The life of a deployment slot, one place where one copy of a model is served. Pure: no clock, no network.

         SlotAssigned          SlotReady          SlotDraining           SlotDrained
   empty ───────────▶ loading ──────────▶ ready ──────────────▶ draining ───────────▶ empty
     ▲   ▲               │ │                │ │                   │ │
     │   └── SlotLost ───┼─┴────────────────┼─┴───────────────────┼─┘
     │                   └─── SlotFailed ───┴──▶ failed           └── SlotFailed ──▶ empty
     │                                             │
     └──────── (given up after MAX_FAILURES) ──────┴── SlotAssigned, after its back-off ──▶ loading

A slot that is loading may be drained too: it was not wanted after all. What dies while it drains is merely empty: it
was going to be. `RULES` says where each event leads from each state; a pair that is not there cannot happen. An
attempt number fences a slot like a job's: what an earlier holder of the slot says changes nothing.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from cyxnet import messages as m

State = Literal["empty", "loading", "ready", "draining", "failed"]

BACKOFF_MS = (1_000, 2_000, 4_000, 8_000, 16_000)  # after the first, the second, … failure in a row
MAX_FAILURES = 5  # in a row: then the slot is given up
HELD: tuple[State, ...] = ("loading", "ready", "draining")  # a node has it

RULES: dict[type, dict[State, State]] = {
    m.SlotAssigned: {"empty": "loading", "failed": "loading"},
    m.SlotReady: {"loading": "ready"},
    m.SlotDraining: {"loading": "draining", "ready": "draining"},
    m.SlotDrained: {"draining": "empty"},
    m.SlotFailed: {"loading": "failed", "ready": "failed", "draining": "empty"},
    m.SlotLost: {"loading": "empty", "ready": "empty", "draining": "empty"},
}


class Slot(Struct, frozen=True, kw_only=True):
    """The state of one slot: the fold of its events."""

    slot_id: str
    state: State = "empty"
    attempt: int = 0  # the newest; it holds the slot while the state is in HELD
    assigned: m.SlotAssigned | None = None  # to whom, while it is held
    failures: int = 0  # in a row
    not_before_ms: int = 0  # of the next attempt
    error: str | None = None  # of the last failure or loss, until it is ready again
    changed_at_ms: int = 0

    @property
    def given_up(self) -> bool:
        return self.state == "failed" and self.failures >= MAX_FAILURES


def illegal(slot: Slot, event: m.SlotEvent) -> str | None:
    """Why `event` cannot happen to `slot` now; None when it can."""
    states = RULES[type(event)]
    if slot.state not in states:
        return f"the slot is {slot.state}, not {' or '.join(states)}"
    if isinstance(event, m.SlotAssigned):
        if slot.given_up:
            return f"it is given up after {slot.failures} failures in a row: {slot.error}"
        return None if event.attempt == slot.attempt + 1 else "not the next attempt"
    if event.attempt != slot.attempt:
        return f"attempt {event.attempt} is over; the current one is {slot.attempt}"
    return None


def evolve(slot: Slot, event: m.SlotEvent, at_ms: int) -> Slot:
    """The slot after `event`. Events are facts: the caller made sure with `illegal` before it appended."""
    state = RULES[type(event)][slot.state]
    moved = replace(slot, state=state, changed_at_ms=at_ms, assigned=slot.assigned if state in HELD else None)
    match event:
        case m.SlotAssigned():
            return replace(moved, attempt=event.attempt, assigned=event)
        case m.SlotReady():
            return replace(moved, failures=0, error=None)
        case m.SlotFailed() if state == "failed":
            failures = MAX_FAILURES if event.deterministic else slot.failures + 1
            backoff_ms = BACKOFF_MS[min(failures, len(BACKOFF_MS)) - 1]
            return replace(moved, failures=failures, error=event.reason, not_before_ms=at_ms + backoff_ms)
        case m.SlotLost():
            return replace(moved, error=event.reason, not_before_ms=at_ms)
    return moved


def wants_node(slot: Slot, now_ms: int) -> bool:
    """Whether the slot may be assigned now."""
    return slot.state in RULES[m.SlotAssigned] and not slot.given_up and slot.not_before_ms <= now_ms
