"""Runs random training steps plain and compiled, and compares every bit: python -m tests.bits --programs 20000

Every program is made from its seed, and so is how it is compiled: kernels, threads, which of its steps, the bounds of
the passes. One that differs is shrunk and printed, and the exit status is 1.
"""

import argparse
import sys

from tests.bits.programs import difference, drawn, setting_of, shrunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bits", description=__doc__)
    parser.add_argument("--programs", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.start, options.start + options.programs):
        failed += not is_same(seed)
        if sys.stderr.isatty():
            print(f"\r{seed - options.start + 1:,} programs, {failed} differ", end="", file=sys.stderr)
    print(f"{options.programs:,} programs, {failed} differ")
    return 1 if failed else 0


def is_same(seed: int) -> bool:
    """Runs the program of a seed; tells what differs, and of how small a program."""
    setting = setting_of(seed)
    found = difference(drawn(seed), setting)
    if found:
        print(f"seed {seed}, {setting.isa}, {setting.threads} threads: {found}", file=sys.stderr)
        small = shrunk(drawn(seed), lambda program: bool(difference(program, setting)))
        print(f"    {small}\n    differs in {difference(small, setting)}", file=sys.stderr)
    return not found


if __name__ == "__main__":
    sys.exit(main())
