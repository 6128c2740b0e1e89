"""python -m tests.simulation --seeds 2000 [--start N] [--jobs N] [--mutation NAME] [--json] | --replay SEED [-v]"""

import argparse
import os
import sys

import msgspec

from tests.simulation.explore import Summary, explore, replay_command, run_one
from tests.simulation.mutations import MUTATIONS
from tests.simulation.trial import trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="plant this bug, and stop where it is found")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --replay: every event and every crash")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay, options.mutation, options.verbose, options.json)
    found = explore(
        range(options.start, options.start + options.seeds),
        options.jobs,
        options.mutation,
        stop_after=1 if options.mutation else 0,
        progress=show,
    )
    if options.json:
        print(as_json(found, options.mutation))
        return int(bool(found.failures) != bool(options.mutation))
    print(found.text())
    for result in found.failures[:20]:
        print(f"seed {result.seed}: {result.failure}\n    {replay_command(result, options.mutation)}")
    if options.mutation:
        print("found" if found.failures else f"{options.mutation} was NOT found")
        return 0 if found.failures else 1
    print(f"{len(found.failures)} of {found.seeds} seeds failed")
    return 1 if found.failures else 0


def show(summary: Summary) -> None:
    if sys.stderr.isatty() and summary.seeds % 20 == 0:
        print(f"\r{summary.seeds} seeds, {len(summary.failures)} failed", end="", file=sys.stderr)


def as_json(found: Summary, mutation: str | None) -> str:
    """The summary, with the command that replays each failing seed."""
    failures = [
        {"seed": result.seed, "failure": result.failure, "replay": replay_command(result, mutation)}
        for result in found.failures
    ]
    return msgspec.json.encode(msgspec.to_builtins(found) | {"failures": failures}).decode()


def replay(seed: int, mutation: str | None, verbose: bool, json: bool) -> int:
    if mutation:
        with MUTATIONS[mutation]():
            result = trial(seed, keep_trace=verbose)
    else:
        result = trial(seed, keep_trace=verbose) if verbose else run_one((seed, None))
    if json:
        print(msgspec.json.encode(result).decode())
        return 1 if result.failure else 0
    for line in result.trace:
        print(line)
    print(f"seed {seed}: trace {result.trace_hash}, {result.steps:,} steps, {result.virtual_s:.1f} virtual s")
    print("faults  " + ", ".join(f"{kind} {count}" for kind, count in sorted(result.faults.items())))
    print(result.failure or "every invariant held")
    return 1 if result.failure else 0


if __name__ == "__main__":
    sys.exit(main())
