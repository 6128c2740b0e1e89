"""python -m tests.chaos: kill everything, under load, and check every promise. Exit status 1 when one is broken."""

import argparse
import asyncio
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.chaos import report
from tests.chaos.chaos import Options, play
from tests.chaos.report import Outcome

DISK = "size=192m"


def main() -> int:
    defaults = Options()
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=defaults.kills, help="how many SIGKILLs (200)")
    parser.add_argument("--jobs", type=int, default=defaults.jobs, help="at least so many jobs (150)")
    parser.add_argument("--nodes", type=int, default=defaults.nodes, help="worker nodes (4)")
    parser.add_argument("--clients", type=int, default=defaults.clients, help="clients (4)")
    parser.add_argument("--gap", type=float, default=defaults.mean_gap_s, help="seconds between faults, mean (1.2)")
    parser.add_argument("--seed", type=int, help="of the plan; default: a new one each time")
    parser.add_argument("--keep", type=Path, help="folder to work in, kept afterwards")
    parser.add_argument("--full-disk", action="store_true", help="also fill the broker's disk, a small one of its own")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the disk may be mounted
    asked = parser.parse_args()
    if asked.full_disk and not asked.inside:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--inside"])
    options = Options(
        seed=secrets.randbelow(10**6) if asked.seed is None else asked.seed,
        kills=asked.kills,
        jobs=asked.jobs,
        nodes=asked.nodes,
        clients=asked.clients,
        mean_gap_s=asked.gap,
        full_disk=asked.full_disk,
    )
    folder = (asked.keep or Path(tempfile.mkdtemp(prefix="cyx-chaos-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if asked.full_disk:
        (folder / "broker").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(folder / "broker")], check=True)
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    shown = sys.stderr if asked.json else sys.stdout
    print(f"seed {options.seed}, {os.cpu_count()} processors, in {folder}", file=shown, flush=True)
    outcome, evidence = asyncio.run(play(folder, options, lambda line: print(line, file=shown, flush=True)))
    for violation in outcome.violations:
        print(report.evidence_of(violation, evidence), file=shown)
    print(report.table(outcome), file=shown)
    if asked.json:
        print(msgspec.json.encode(as_json(outcome)).decode())
    if outcome.violations:
        print(f"replay: {outcome.replay}; logs and stores are in {folder}", file=shown)
        return 1
    if asked.keep is None:
        if asked.full_disk:
            subprocess.run(["umount", str(folder / "broker")], check=True)
        shutil.rmtree(folder)
    return 0


def as_json(outcome: Outcome) -> dict[str, object]:
    """The outcome with percentiles in place of lists."""
    lost, doubled, stuck = report.lost_doubled_stuck(outcome.violations)
    recovery = {
        group: {"p50": report.percentile(waits, 0.5), "p99": report.percentile(waits, 0.99), "times": len(waits)}
        for group, waits in outcome.recovery_ms.items()
    }
    return msgspec.to_builtins(outcome) | {
        "lost_jobs": lost,
        "double_payments": doubled,
        "stuck_jobs": stuck,
        "goodput_per_s": round(outcome.goodput, 3),
        "recovery_ms": recovery,
        "up_again_ms": {group: report.percentile(waits, 0.5) for group, waits in outcome.up_again_ms.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
