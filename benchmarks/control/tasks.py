"""The functions that Dask and Ray run. In a module of their own, so that they travel as a name."""

import time

from benchmarks.control.child import append


def noop(number: int) -> None:
    pass


def stamp(sent_s: float) -> float:
    """Seconds since it was sent, on the clock that all processes of a machine share."""
    return time.monotonic() - sent_s


def work(number: int, task_ms: int, lines: str) -> None:
    """Some work with one effect at its end."""
    time.sleep(task_ms / 1000)
    append(lines, str(number))
