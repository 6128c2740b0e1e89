"""Warm submit → first training step, on a local network: where the time goes.

    python -m benchmarks.bench_submit            # 30 jobs
    python -m benchmarks.bench_submit --quick    # 5 jobs

Target: p50 < 50 ms beyond process start. The network is warm and idle (a pause between jobs lets the node start its
next training process), and it has seen the dataset before. The clock starts when the client asks for a quote; it
covers the quote, the check of the dataset, the signed deposit, the submit, the deposit's finality on the chain,
scheduling, and all that the node does until it reports the first training step. The stages are the times of the
job's events. A lease that is stored right behind its submission has the time of that: it counts from when the deposit
is final, which stands behind both in the log.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from msgspec.structs import replace

from benchmarks.figures import add_save, save
from cyxnet import jobfile
from cyxnet.client import AsyncClient
from cyxnet.local import LocalNetwork

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
STAGES = ("Submitted", "Funded", "Leased", "Started")
TARGET_MS = 50.0
IDLE_S = 2.0


async def measure(jobs: int) -> dict[str, list[float]]:
    """Milliseconds per stage, one value per job."""
    job = jobfile.load(EXAMPLE)
    job = replace(job, training=replace(job.training, epochs=1))
    found: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "total")}
    with tempfile.TemporaryDirectory() as folder:
        async with LocalNetwork(Path(folder)) as network, await AsyncClient.connect(network.folder) as client:
            await client.faucet(10_000_000_000_000)
            for number in range(jobs + 1):
                await asyncio.sleep(IDLE_S)
                begun_ms = time.time_ns() / 1e6
                submitted = await client.submit(job)
                before_ms, events = begun_ms, {}
                async for update in client.watch(submitted.job_id):
                    if update.source == "event":
                        events[update.kind] = update.at_ms
                events["Leased"] = max(events["Leased"], events["Funded"])
                if number == 0:
                    continue  # the first job fills the caches
                for stage in STAGES:
                    found[stage].append(events[stage] - before_ms)
                    before_ms = events[stage]
                found["total"].append(events["Started"] - begun_ms)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 jobs instead of 30")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    found = asyncio.run(measure(5 if options.quick else 30))
    figures = {
        stage: {"p50_ms": round(statistics.median(values), 1), "max_ms": round(max(values), 1)}
        for stage, values in found.items()
    }
    save(options.save, figures)
    if options.json:
        print(json.dumps(figures))
        return 0
    print(
        f"warm submit → first training step, {len(found['total'])} jobs, {platform.processor() or platform.machine()}"
    )
    for stage, figure in figures.items():
        label = stage if stage != "total" else f"total (target p50 < {TARGET_MS:g})"
        print(f"  {label:<28} p50 {figure['p50_ms']:>7.1f} ms   max {figure['max_ms']:>7.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
