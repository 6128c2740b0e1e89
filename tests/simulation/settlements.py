"""Settlements on a chain at its worst: python -m tests.simulation.settlements --count 10000 [--jobs N] [--json]

Every trial is one of the simulation's, with more jobs and one bad chain for all: three of ten transactions are
dropped, the machines behind the RPC endpoint are up to 40 blocks apart, which is as long as a blockhash lives, answers
fail, blocks are forked away, and both centrals are killed at any of their waits. The invariants are the simulation's:
nothing is sent before its bytes are in the log, nothing new is signed while the old may land, what is called settled is
final and moved what the log says, every escrow was emptied once, and the supply never changes.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from random import Random
from unittest import mock

import msgspec
from msgspec import Struct

from tests.simulation import trial as trials
from tests.simulation.explore import pool
from tests.simulation.faults import Faults
from tests.simulation.loop import Scheduler
from tests.simulation.trial import Result, trial

JOBS = 12  # of one trial
KEPT = ("dropped", "late", "rpc_error", "fork", "central_crash", "crash_at_io", "kill_central")


class BadChain(Faults):
    def __init__(self, dice: Random, scheduler: Scheduler, until_s: float):
        super().__init__(dice, scheduler, until_s)
        self.dropped, self.late, self.rpc_error, self.rpc_lag_blocks = 0.3, 0.1, 0.04, 40
        self.crash_at_io = 0.012
        self.refunded, self.weeks_pass_at_s = 0.0, None  # what is refunded is not settled


class Found(Struct, kw_only=True):
    """What the trials came to. signed: settlements signed, those after an expiry or a failure included."""

    settled: int = 0
    signed: int = 0
    trials: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = {}
    failures: list[str] = []

    def add(self, result: Result) -> None:
        self.trials += 1
        self.settled += result.events.get("Settled", 0)
        self.signed += result.events.get("TransactionSigned", 0)
        for kind in KEPT:
            self.faults[kind] = self.faults.get(kind, 0) + result.faults.get(kind, 0)
        if result.failure is not None:
            again = f"python -m tests.simulation.settlements --replay {result.seed}"
            self.failures.append(f"seed {result.seed}: {result.failure}\n    {again}")

    def text(self) -> str:
        again = self.signed - self.settled
        faults = ", ".join(f"{kind} {count:,}" for kind, count in self.faults.items())
        held = "each paid once, every sum kept" if not self.failures else f"{len(self.failures)} trials FAILED"
        return (
            f"{self.settled:,} settlements in {self.trials:,} trials ({self.seconds:.0f} s): {held}; "
            f"{again:,} were signed again\nfaults  {faults}"
        )


@contextlib.contextmanager
def bad_chain() -> Iterator[None]:
    with mock.patch.object(trials, "Faults", BadChain), mock.patch.object(trials, "CLIENTS", JOBS):
        yield


def one(seed: int) -> Result:
    with bad_chain():
        return trial(seed)


def settle(count: int, processes: int, first: int = 0) -> Found:
    """Trials from the seed `first` on, until so many settlements are final or something does not hold."""
    found, begun_s = Found(), time.monotonic()
    seeds = range(first, first + count)  # more than enough
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(pool(processes)) if processes > 1 else None
        for result in workers.imap_unordered(one, seeds) if workers else map(one, seeds):
            found.add(result)
            found.seconds = time.monotonic() - begun_s
            if found.settled >= count or found.failures:
                break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.settlements", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="settlements (default: 10000)")
    parser.add_argument("--start", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    options = parser.parse_args()
    if options.replay is not None:
        result = one(options.replay)
        print(result.failure or "every invariant held")
        return 1 if result.failure else 0
    found = settle(options.count, options.jobs, options.start)
    print(msgspec.json.encode(found).decode() if options.json else found.text())
    for failure in found.failures:
        print(failure)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
