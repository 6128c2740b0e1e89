"""A program once for each number of threads, as a process of its own: OpenBLAS reads how many it gets at import."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import save

REST_S = 0.02  # before a burst on several threads: those of the library before look out for work for about 10 ms


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_counts, default=[1, 2], metavar="N,N", help="of each library (default 1,2)")


def _counts(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def alone(counts: list[int]) -> bool:
    """Whether this process can measure: for one number of threads, which OpenBLAS has got."""
    return [os.environ.get("OPENBLAS_NUM_THREADS")] == [str(count) for count in counts]


def one_by_one(module: str, counts: list[int], name: Path | None) -> int:
    """Start the program with its own options for each, and save what they found together, as {"threads": {count: …}}.

    Returns the exit status of the first one that failed, or 0.
    """
    found: dict[str, Any] = {}
    packages: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            ours = ["--threads", str(count), "--save", str(Path(folder) / "found")]
            ran = subprocess.run(
                [sys.executable, "-m", module, *sys.argv[1:], *ours],
                env=os.environ | {"OPENBLAS_NUM_THREADS": str(count)},
            )
            if ran.returncode:
                return ran.returncode
            one = json.loads((Path(folder) / "found.json").read_bytes())
            packages = one.pop("environment")["packages"]
            found = one | {"threads": found.get("threads", {}) | one["threads"]}
    save(name, found, **packages)
    return 0
