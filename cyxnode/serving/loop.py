"""How a process that serves shares its one interpreter between the event loop and who computes."""

import asyncio
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

GIL_SWITCH_S = 0.0005  # how long the event loop may keep the interpreter from who computes, and the other way round
GARBAGE = (20_000, 20, 50)  # objects, before the collector looks through those of a batch that waits for its answers


def runner() -> asyncio.Runner:
    """For the process that serves: with uvloop's event loop, where it is installed (the extra `fast`)."""
    sys.setswitchinterval(GIL_SWITCH_S)
    gc.set_threshold(*GARBAGE)
    found: Any = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None
    factory: Callable[[], asyncio.AbstractEventLoop] | None = found.new_event_loop if found else None
    return asyncio.Runner(loop_factory=factory)


def settle() -> None:
    """Once the model is loaded: what is there stays, and is not looked through any more."""
    gc.collect()
    gc.freeze()
