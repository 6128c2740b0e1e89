"""Compares the escrow program with its model: python -m tests.escrow --sequences 100000

Every sequence is made from its seed, so a difference is printed with the command that shows it again.
"""

import argparse
import json
import sys
import time
import traceback

from tests.escrow.fuzz import Arena, Life


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.escrow", description=__doc__)
    parser.add_argument("--sequences", type=int, default=1_000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default 0); the others follow")
    parser.add_argument("--replay", type=int, metavar="SEED", help="this one alone")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end instead of a table")
    arguments = parser.parse_args(argv)
    seeds = range(arguments.seed, arguments.seed + arguments.sequences)
    if arguments.replay is not None:
        seeds = range(arguments.replay, arguments.replay + 1)
    arena, divergences, began_s, cpu_s = Arena(), [], time.perf_counter(), time.process_time()
    for seed in seeds:
        try:
            Life(arena, seed).play()
        except Exception as error:  # a mistake of the fuzz is as much of a finding as a difference
            divergences.append(seed)
            traceback.print_exc()
            print(f"seed {seed}: {error}\n  python -m tests.escrow --replay {seed}", file=sys.stderr)
    found = {
        "sequences": len(seeds),
        "transactions": arena.transactions,
        "divergences": divergences,
        "seconds": round(time.perf_counter() - began_s, 1),
        "cpu_seconds": round(time.process_time() - cpu_s, 1),
        "outcomes": dict(arena.outcomes.most_common()),
    }
    if arguments.json:
        print(json.dumps(found))
        return 1 if divergences else 0
    for outcome, count in arena.outcomes.most_common(30):
        print(f"{count:9,}  {outcome}")
    print(
        f"{len(seeds):,} sequences, {arena.transactions:,} transactions in {found['seconds']} s "
        f"({found['cpu_seconds']} s of processor time): {len(divergences)} divergences"
    )
    return 1 if divergences else 0


if __name__ == "__main__":
    sys.exit(main())
