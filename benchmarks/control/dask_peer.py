"""Dask: a scheduler and two workers with nannies, as `dask scheduler` and `dask worker` start them."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.control import child
from benchmarks.control.report import Kills, Progress, Rate, Report, Scale, Start, plan_faults, tally
from benchmarks.control.tasks import noop, stamp, work

PACKAGES = {"distributed": "distributed"}
WORKERS = 2


class Dask:
    """The processes of one cluster and a client of it."""

    def __init__(self, folder: Path):
        from distributed import Client

        self.lines = child.Lines(folder / "lines")
        self._folder = folder
        self._port = child.free_port()
        self.scheduler = self._start_scheduler()
        self.workers = [self._start_worker() for _ in range(WORKERS)]
        self.client: Any = Client(f"tcp://127.0.0.1:{self._port}", timeout=30)
        self.client.wait_for_workers(WORKERS, timeout=30)

    def _start(self, *arguments: object) -> "subprocess.Popen[bytes]":
        environment = {**child.os.environ, "PYTHONPATH": str(child.ROOT)}  # the workers import this module
        command = [sys.executable, "-m", "dask", *map(str, arguments), "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen(command, cwd=self._folder, env=environment)

    def _start_scheduler(self) -> "subprocess.Popen[bytes]":
        return self._start("scheduler", "--port", self._port, "--dashboard-address", "127.0.0.1:0")

    def _start_worker(self) -> "subprocess.Popen[bytes]":
        where = f"tcp://127.0.0.1:{self._port}"
        return self._start("worker", where, "--nthreads", 1, "--nworkers", 1, "--local-directory", self._folder)

    def acknowledge(self, future: Any) -> None:
        """Return when the scheduler has answered that it knows the future: Dask itself acknowledges nothing."""
        self.client.sync(self.client.scheduler.who_has, keys=[future.key])

    def strike(self, victim: str) -> bool:
        """kill -9; a nanny starts its worker again, we start the scheduler as a supervisor would."""
        if victim == "scheduler":
            self.scheduler.kill()
            self.scheduler.wait()
            self.scheduler = self._start_scheduler()
            return True
        workers = child.matching("--multiprocessing-fork")  # below the nannies; newest last
        for process in workers[:1]:
            child.kill(process)
        return bool(workers)

    def done(self) -> int:
        return self.lines.count()

    def tend(self) -> None:
        """Start nannies again that ended by themselves, as they do when the scheduler is gone."""
        self.workers = [each if each.poll() is None else self._start_worker() for each in self.workers]


def speed(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    dask, count = Dask(folder), scale.submissions
    dask.client.gather([dask.client.submit(noop, number, pure=False) for number in range(20)])  # warm both workers
    yield Progress("starts")
    values = []
    for _ in range(scale.starts):
        time.sleep(0.02)
        values.append(dask.client.submit(stamp, time.monotonic(), pure=False).result() * 1000)
    yield Start(
        system="Dask: task",
        values_ms=values,
        means="a function call in a worker process that stays; no isolation, no payment, nothing stored",
    )
    yield Progress("submissions")
    begun = time.perf_counter()
    futures = [dask.client.submit(noop, number, pure=False) for number in range(count)]
    dask.acknowledge(futures[-1])
    took_s = time.perf_counter() - begun
    yield Rate(
        system="Dask, submit(), then one answer for all",
        per_s=count / took_s,
        samples=count,
        durable=False,
        means="the scheduler has it in memory",
    )
    del futures


def kills(victims: list[str], scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    dask = Dask(folder)
    yield Progress(f"submitting {scale.tasks} tasks")
    path = str(dask.lines.path)
    futures = [dask.client.submit(work, number, scale.task_ms, path, pure=False) for number in range(scale.tasks)]
    dask.acknowledge(futures[-1])
    struck = child.Struck(Counter(), 0.0)
    faults = plan_faults(victims, scale.faults, scale.fault_gap_s, seed)
    yield from child.kill_while_it_works(dask, faults, scale.tasks, struck)
    found = tally(map(str, range(scale.tasks)), dask.lines.read())
    waiting = sum(futures[int(number)].status == "pending" for number in found.missing)
    yield Kills(
        system=f"Dask, kills of {' and '.join(victims)}",
        unit="tasks",
        acknowledged=scale.tasks,
        faults=dict(struck.faults),
        lost=len(found.missing) - waiting,
        stuck=waiting,
        repeated=found.repeated,
        extra=found.extra,
        last_effect_s=struck.last_s,
        means="as it comes: 2 workers with nannies, the client stays alive; results live in the workers",
    )


def _killing(*victims: str) -> Callable[[Scale, int, Path], Iterator[Report]]:
    return lambda *given: kills(list(victims), *given)


def main() -> int:
    measures = {
        "speed": speed,
        "kill workers": _killing("worker"),
        "kill scheduler": _killing("worker", "scheduler"),
    }
    return child.main([*PACKAGES], measures)


if __name__ == "__main__":
    sys.exit(main())
