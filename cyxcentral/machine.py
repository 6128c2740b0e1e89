"""What a central asks of the machine it runs on: two clocks and dice. A simulation gives it others."""

import secrets
import time
from collections.abc import Callable

from msgspec import Struct


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> float:
    return time.monotonic() * 1000


class Machine(Struct, frozen=True, kw_only=True):
    """The ports of time and chance. What waits uses the clock of the event loop, which a simulation owns too.

    wall_ms: Unix milliseconds, for people and for the dates of events; it may jump and may be wrong by hours.
    monotonic_ms: only differences mean anything; leases are measured on it. token_hex: this many random bytes, in hex.
    """

    wall_ms: Callable[[], int] = _wall_ms
    monotonic_ms: Callable[[], float] = _monotonic_ms
    token_hex: Callable[[int], str] = secrets.token_hex


MACHINE = Machine()  # the one we run on
