"""The control plane of Cyx beside those of Celery, Dask and Ray: speed, and what kill -9 costs.

    pip install -e '.[peers]'                          # the others; who is missing is named and left out
    python -m benchmarks.bench_control --quick         # 300 tasks and 60 jobs under kill -9
    python -m benchmarks.bench_control                 # 2,000 tasks and 200 jobs
    python -m benchmarks.bench_control --only cyx,celery --json
    python -m benchmarks.bench_control --save benchmarks/results/control

Targets: >= 5,000 durable submissions/s through one central and >= 3 times durable Celery; after kill -9 of anything 0
jobs lost, 0 paid twice, 0 stuck. Every system runs as a process of its own, in rounds that alternate between the
systems, so that a busy machine slows all of them; figures are medians. Every process ends with the benchmark.

Celery and Cyx are asked alike: the same number of submissions after the same warm-up, from one client process that
submits as well as it can (Celery's blocks, so it has one thread or eight; Cyx's has 480 requests in flight), while
nothing works on what is submitted; each answer that counts is on a disk that was synced. The promise is about these.
One process cannot ask Celery for all that it takes: a submission costs its client 0.5 ms and Valkey 0.1, one of Cyx
0.03 ms and central with the broker 0.2. So both are also asked by two processes at the same time.
"""

import argparse
import contextlib
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.control import celery_peer, child, cyx_peer, dask_peer, jetstream_peer, ray_peer, report, tables
from benchmarks.figures import add_save, beside, commit, machine, save

LIMIT_S = 900.0  # of one step; far beyond what any takes


class Peer(Struct, frozen=True, kw_only=True):
    """A system: the module of its process, what that imports, and what it can measure."""

    module: str
    packages: dict[str, str]  # module -> distribution
    kills: list[str] = []
    why_not: Callable[[], str | None] = lambda: None


PEERS = {
    "jetstream": Peer(module="jetstream_peer", packages=jetstream_peer.PACKAGES),
    "celery": Peer(module="celery_peer", packages=celery_peer.PACKAGES, kills=["kill default", "kill durable"]),
    "dask": Peer(module="dask_peer", packages=dask_peer.PACKAGES, kills=["kill workers", "kill scheduler"]),
    "ray": Peer(
        module="ray_peer",
        packages=ray_peer.PACKAGES,
        kills=["kill workers", "kill raylet", "kill driver"],
        why_not=ray_peer.why_not,
    ),
    "cyx": Peer(module="cyx_peer", packages=cyx_peer.PACKAGES, kills=["kill"]),
}


class StepFailed(Exception):
    """The process of a system ended badly. The message is its own last line."""


def run_step(
    peer: Peer, measure: str, scale: report.Scale, seed: int, log: Path, say: Callable[[str], None]
) -> Iterator[report.Report]:
    """One measure in a process of its own; everything that it started is killed at the end, also after Ctrl-C."""
    command = [sys.executable, "-m", f"benchmarks.control.{peer.module}", measure]
    arguments = [msgspec.json.encode(scale).decode(), str(seed)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=child.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the others in order
        )
    assert process.stdout is not None
    too_long = threading.Timer(LIMIT_S, process.kill)
    too_long.start()
    try:
        for line in process.stdout:
            said = msgspec.json.decode(line, type=report.Report)
            if isinstance(said, report.Progress):
                say(said.text)
            else:
                yield said
        if process.wait() != 0:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise StepFailed(f"{measure}: {lines[-1] if lines else f'exit code {process.returncode}'} (see {log})")
    finally:
        too_long.cancel()
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        child.kill_descendants()
        process.wait()


def usable(only: list[str]) -> tuple[list[str], dict[str, str]]:
    """The names of the systems that can be measured here, and why the others cannot."""
    skipped = {}
    for name in only:
        absent = child.missing(PEERS[name].packages)
        if absent:
            skipped[name] = f"{', '.join(absent)} not installed; run: pip install -e '.[peers]'"
        elif why := PEERS[name].why_not():
            skipped[name] = why
    return [name for name in only if name not in skipped], skipped


def this_machine(load_before: float) -> tables.Machine:
    return tables.Machine(
        name=machine(),
        cores=os.cpu_count() or 1,
        memory_gb=psutil.virtual_memory().total / 2**30,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=load_before,
        load_after=os.getloadavg()[0],
        fdatasync_ms=_fdatasync_ms(),
    )


def _fdatasync_ms(count: int = 200) -> float:
    """Median milliseconds to append 1,500 bytes to a file and have them on disk."""
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(count):
            begun = time.perf_counter()
            os.write(file.fileno(), b"x" * jetstream_peer.RECORD_BYTES)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def measure_all(names: list[str], results: tables.Results, logs: Path, console: Console) -> bool:
    """Run every step and put its reports into `results`. False when a step failed; the others are run all the same."""
    steps = [(name, "speed") for _ in range(results.scale.rounds) for name in names]
    steps += [(name, measure) for name in names for measure in PEERS[name].kills]
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(20),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    well = True
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for number, (name, measure) in enumerate(steps):
            title = f"{name}, {measure}"

            def say(text: str, title: str = title) -> None:
                progress.update(task, description=f"{title}: {text}")

            say("starting")
            begun = time.monotonic()
            log = logs / f"{number}-{name}-{measure.replace(' ', '-')}.log"
            try:
                for said in run_step(PEERS[name], measure, results.scale, results.seed, log, say):
                    _put(results, said)
                console.print(f"{title}: {time.monotonic() - begun:.0f} s", highlight=False)
            except StepFailed as error:
                well = False
                results.skipped[f"{name} ({measure})"] = str(error)
                console.print(f"{title} failed: {error}", highlight=False, markup=False)
            progress.advance(task)
    return well


def _put(results: tables.Results, said: report.Report) -> None:
    match said:
        case report.Rate():
            results.rates.append(said)
        case report.Start():
            results.starts.append(said)
        case report.Kills():
            results.kills.append(said)
        case report.Versions():
            results.packages |= said.packages


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks and jobs under kill -9")
    parser.add_argument("--only", default=",".join(PEERS), help=f"some of {','.join(PEERS)}, separated by commas")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and victims of kill -9 (default 1)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    add_save(parser, "NAME.json and NAME.md")
    found = parser.parse_args()
    found.only = [name.strip() for name in found.only.split(",")]
    if unknown := [name for name in found.only if name not in PEERS]:
        parser.error(f"--only: expected some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    return found


def main() -> int:
    args = options()
    console = Console(stderr=True)
    child.adopt_orphans()
    names, skipped = usable(args.only)
    for name, why in skipped.items():
        console.print(f"{name} is left out: {why}", highlight=False, markup=False)
    load_before = os.getloadavg()[0]
    results = tables.Results(
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=" ".join(["python -m benchmarks.bench_control", *sys.argv[1:]]),
        commit=commit(),
        seed=args.seed,
        scale=report.QUICK if args.quick else report.FULL,
        machine=this_machine(load_before),
        packages={},
        rates=[],
        starts=[],
        kills=[],
        skipped=skipped,
    )
    logs = Path(tempfile.mkdtemp(prefix="cyx-bench-control-"))
    try:
        well = measure_all(names, results, logs, console)
    except KeyboardInterrupt:
        console.print("stopped; every process was ended")
        return 130
    results.machine = this_machine(load_before)
    if args.save:
        save(args.save, msgspec.to_builtins(results))
        beside(args.save, "md").write_text(tables.markdown(results))
    if args.json:
        print(msgspec.json.encode(results).decode())
    else:
        tables.show(results, Console())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
