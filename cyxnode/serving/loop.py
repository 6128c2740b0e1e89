"""How a process that serves shares its one interpreter between the event loop and who computes."""

import asyncio
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

GIL_SWITCH_S = 0.0005  # how long the event loop may keep the interpreter from who computes, and the other way round

# Python looks for cycles of garbage after so many new objects. A request leaves none, and makes dozens of objects: by
# default that took a tenth of the time of a busy server.
COLLECT_AFTER = (50_000, 10, 10)


def runner() -> asyncio.Runner:
    """For the process that serves: with uvloop's event loop, where it is installed (the extra `fast`)."""
    sys.setswitchinterval(GIL_SWITCH_S)
    gc.set_threshold(*COLLECT_AFTER)
    gc.freeze()  # what was imported stays: no use in looking through it again and again
    found: Any = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None
    factory: Callable[[], asyncio.AbstractEventLoop] | None = found.new_event_loop if found else None
    return asyncio.Runner(loop_factory=factory)
