"""The process of one measured system: it reports on stdout, and takes down all it started when it ends."""

import contextlib
import ctypes
import importlib
import importlib.metadata
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import psutil
from msgspec import Struct

from benchmarks.control.report import STUCK_AFTER_S, Fault, Progress, Report, Scale, Versions

ROOT = Path(__file__).parents[2]
Measure = Callable[[Scale, int, Path], Iterator[Report]]  # (scale, seed, an empty folder)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GIVE_UP_ON_A_VICTIM_S = 5.0


def main(packages: list[str], measures: dict[str, Measure]) -> int:
    """Run `measures[argv[1]]` on the scale argv[2] (JSON) with the seed argv[3]. Reports are lines of JSON."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no report
    end_with_parent()
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = msgspec.json.decode(sys.argv[2], type=Scale)

    def say(report: Report) -> None:
        reports.write(msgspec.json.encode(report).decode() + "\n")

    say(Versions({name: importlib.metadata.version(name) for name in packages}))
    with tempfile.TemporaryDirectory(prefix="cyxb-", ignore_cleanup_errors=True) as folder:
        try:
            for report in measures[sys.argv[1]](scale, int(sys.argv[3]), Path(folder)):
                say(report)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            kill_descendants()
    return 0


def adopt_orphans() -> None:
    """Linux: processes whose parent dies become our children, so that none of them can be left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Linux: SIGTERM for this process when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def kill_descendants() -> None:
    """kill -9 of everything below this process, until nothing is there."""
    deadline = time.monotonic() + 10
    while (found := descendants()) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)


def matching(words: str) -> list[psutil.Process]:
    """Living processes below this one with `words` in their command line, oldest first."""
    found = []
    for process in descendants():
        with contextlib.suppress(psutil.Error):
            if words in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def kill(process: psutil.Process) -> None:
    """kill -9, and wait until it is gone."""
    with contextlib.suppress(psutil.Error):
        process.kill()
        process.wait(10)


class Cluster(Protocol):
    """What a kill run does to a system."""

    def strike(self, victim: str) -> bool:
        """kill -9 one process of the kind; False while there is none."""

    def tend(self) -> None:
        """What a supervisor does: start again what has ended."""

    def done(self) -> int:
        """How many acknowledged tasks or jobs have ended."""


class Struck(Struct):
    """What a kill run did: kill -9 per victim, and when the last work ended, in seconds after the last of them."""

    faults: Counter[str]
    last_s: float


def kill_while_it_works(cluster: Cluster, faults: list[Fault], wanted: int, struck: Struck) -> Iterator[Progress]:
    """Perform the faults at their moments, as long as there is work; then wait until all is done or nothing moves."""
    for number, fault in enumerate(faults, 1):
        time.sleep(fault.pause_s)
        cluster.tend()
        if cluster.done() >= wanted:
            break
        yield Progress(f"kill -9 {number} of {len(faults)}: {fault.victim}")
        deadline = time.monotonic() + GIVE_UP_ON_A_VICTIM_S
        while not (hit := cluster.strike(fault.victim)) and time.monotonic() < deadline:
            time.sleep(0.02)
        struck.faults[fault.victim] += hit
    begun = moved = time.monotonic()
    count = cluster.done()
    while count < wanted and (still_s := time.monotonic() - moved) < STUCK_AFTER_S:
        yield Progress(f"{count} of {wanted} done, nothing new for {still_s:.0f} s")
        cluster.tend()
        time.sleep(0.2)
        if (now := cluster.done()) != count:
            count, moved = now, time.monotonic()
            struck.last_s = moved - begun


def kill_who_submitted(
    submit: Callable[..., None], wanted: int, path: Path, *given: object, once: Callable[[], bool] = lambda: True
) -> list[str]:
    """kill -9 a process that runs submit(path, *given), when it has told of so many in the file and `once` is true.

    submit appends a line for each submission that was acknowledged, and does not return. Returns these lines.
    """
    told = Lines(path)
    client = multiprocessing.get_context("spawn").Process(target=submit, args=(str(path), *given))
    client.start()
    while (count := told.count()) < wanted or not once():
        if client.exitcode is not None:
            raise RuntimeError(f"the client ended (exit {client.exitcode}) after {count} of {wanted} submissions")
        time.sleep(0.01)
    client.kill()
    client.join()
    return told.read()


def missing(modules: dict[str, str]) -> list[str]:
    """Those distributions of {module: distribution} that cannot be imported here."""
    absent = []
    for module, distribution in modules.items():
        try:
            importlib.import_module(module)
        except ImportError:
            absent.append(distribution)
    return absent


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Lines:
    """A file to which tasks append one line per fact; each line is one write, so a kill tears none."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()

    def read(self) -> list[str]:
        return self.path.read_text().splitlines()

    def count(self) -> int:
        return len(set(self.read()))

    def wait(self, count: int, timeout_s: float = 30.0) -> list[str]:
        """Until there are `count` lines. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while len(lines := self.read()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"expected {count} lines in {self.path.name} within {timeout_s:g} s, got {len(lines)}"
                )
            time.sleep(0.0005)
        return lines


def append(path: str, line: str) -> None:
    """One line in one write, from whatever process."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)
