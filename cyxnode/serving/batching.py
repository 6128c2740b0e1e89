"""How many waiting samples go into the next run of a model, and when. Pure: the caller brings times and samples."""

from collections.abc import Mapping


def sizes(most: int) -> list[int]:
    """The batch sizes that plans are made for: powers of two up to `most`, and `most` itself."""
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found if found[-1] == most else [*found, most]


def size_for(waiting: int, run_ns: Mapping[int, float], between_ns: float = 0.0) -> int:
    """The batch size whose run answers the most samples per nanosecond, of those that `run_ns` has times for.

    A size above `waiting` is a run with empty places: worth it where a run costs nearly the same however full it is.
    between_ns: what passes between two runs, whatever their size.
    """
    return max(sorted(run_ns), key=lambda size: min(size, waiting) / (run_ns[size] + between_ns))


def without_interruptions(run_ns: Mapping[int, float]) -> dict[int, float]:
    """Times in which no size costs more for a sample than a smaller one: more is what the machine did besides.

    A size that was measured while others had the processor would not be chosen again as long as the server runs.
    """
    found: dict[int, float] = {}
    least = float("inf")
    for size in sorted(run_ns):
        least = min(least, run_ns[size] / size)
        found[size] = least * size
    return found
