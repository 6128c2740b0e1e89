"""Many seeds on several processes, and what they came to together."""

import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool

from msgspec import Struct

from tests.simulation.mutations import MUTATIONS
from tests.simulation.trial import Result, trial


class Summary(Struct, kw_only=True):
    """What a range of seeds came to. faults: how often each kind was injected; events: how often each was stored."""

    seeds: int = 0
    seconds: float = 0.0
    steps: int = 0
    virtual_s: float = 0.0
    faults: Counter[str] = Counter()
    events: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    failures: list[Result] = []

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.steps += result.steps
        self.virtual_s += result.virtual_s
        self.faults.update(result.faults)
        self.events.update(result.events)
        self.ends.update(result.ends)
        if result.failure is not None:
            self.failures.append(result)

    def text(self) -> str:
        per_seed = sum(self.faults.values()) / max(1, self.seeds)
        rows = [
            f"{self.seeds} seeds in {self.seconds:.1f} s ({self.seeds / max(self.seconds, 1e-9):.1f} a second), "
            f"{self.steps:,} steps, {self.virtual_s / 3600:.1f} virtual hours, {per_seed:.0f} faults a seed",
            "faults  " + ", ".join(f"{kind} {count:,}" for kind, count in self.faults.most_common()),
            "events  " + ", ".join(f"{kind} {count:,}" for kind, count in self.events.most_common()),
            "jobs    " + ", ".join(f"{kind} {count:,}" for kind, count in self.ends.most_common()),
        ]
        return "\n".join(rows)


def run_one(task: tuple[int, str | None]) -> Result:
    """A seed, with one of the planted bugs if it is named."""
    seed, mutation = task
    if mutation is None:
        return trial(seed)
    with MUTATIONS[mutation]():
        return trial(seed)


def explore(
    seeds: range,
    processes: int,
    mutation: str | None = None,
    stop_after: int = 0,
    progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Run every seed of the range; end early after `stop_after` failures (0: never)."""
    summary, begun_s = Summary(), time.monotonic()
    for result in results(((seed, mutation) for seed in seeds), processes):
        summary.add(result)
        summary.seconds = time.monotonic() - begun_s
        progress(summary)
        if stop_after and len(summary.failures) >= stop_after:
            break
    summary.failures.sort(key=lambda result: result.seed)
    return summary


def results(tasks: Iterator[tuple[int, str | None]], processes: int) -> Iterator[Result]:
    if processes == 1:
        yield from map(run_one, tasks)
        return
    with pool(processes) as workers:
        yield from workers.imap_unordered(run_one, tasks, chunksize=4)


def pool(processes: int) -> Pool:
    return multiprocessing.get_context("spawn").Pool(processes, be_silent)


def be_silent() -> None:
    logging.disable(logging.CRITICAL)


def replay_command(result: Result, mutation: str | None = None) -> str:
    named = f" --mutation {mutation}" if mutation else ""
    return f"python -m tests.simulation --replay {result.seed} -v{named}"
