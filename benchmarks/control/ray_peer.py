"""Ray: tasks and the Jobs API, inside a network of its own, because a head listens on all interfaces.

Ray listens on all interfaces whatever --node-ip-address says. So this process moves itself into a network namespace
with nothing but loopback (Linux with user namespaces) before it starts a head, and refuses otherwise.
"""

import ctypes
import fcntl
import logging
import os
import signal
import socket
import struct
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

PACKAGES = {"ray": "ray[default]"}
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
OBJECT_STORE_BYTES = 150_000_000
JOB_TIMEOUT_S = 60.0


def enter_private_network() -> None:
    """Move this process, and what it starts, to a network with loopback only. Raises OSError when it may not."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER | CLONE_NEWNET) was refused")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
    child.end_with_parent()  # again: who gets other rights loses it


def why_not() -> str | None:
    """Why Ray cannot be measured here; tried in a process of its own."""
    code = "from benchmarks.control.ray_peer import enter_private_network as enter; enter()"
    tried = subprocess.run([sys.executable, "-c", code], cwd=child.ROOT, capture_output=True, text=True)
    if tried.returncode == 0:
        return None
    said = tried.stderr.strip().splitlines()
    return f"it would listen on all interfaces, and no private network can be made here ({said[-1] if said else '?'})"


def connect(port: int) -> Any:
    """This process as the driver of the head there."""
    import ray

    ray.init(
        address=f"127.0.0.1:{port}",
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    return ray


class Ray:
    """A head, perhaps with worker nodes, in a network of this process and what it starts."""

    def __init__(self, folder: Path, cpus: int, dashboard: bool = False):
        enter_private_network()
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(child.ROOT), "RAY_DEDUP_LOGS": "0"}
        self.lines = child.Lines(folder / "lines")
        self.port, self.dashboard_port = child.free_port(), child.free_port()
        board = ["--dashboard-host", "127.0.0.1", "--dashboard-port", self.dashboard_port] if dashboard else []
        self._start(
            "--head", "--port", self.port, "--num-cpus", cpus, "--include-dashboard", str(dashboard).lower(),
            "--temp-dir", folder, *board,
        )  # fmt: skip

    def _start(self, *options: object) -> None:
        common = ["--node-ip-address", "127.0.0.1", "--object-store-memory", OBJECT_STORE_BYTES]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *map(str, (*options, *common))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"ray start failed: {(done.stdout + done.stderr)[-500:]}")

    def add_node(self) -> None:
        """A worker node with two processors; its raylet is the newest one."""
        self._start("--address", f"127.0.0.1:{self.port}", "--num-cpus", 2)
        self.raylet = child.matching("/raylet/raylet ")[-1]

    def strike(self, victim: str) -> bool:
        """kill -9; a killed raylet's node is started again, as a supervisor would."""
        if victim == "raylet":
            child.kill(self.raylet)
            self.add_node()
            return True
        workers = child.matching("ray::work")
        for process in workers[:1]:
            child.kill(process)
        return bool(workers)

    def tend(self) -> None:
        """Nothing: raylets start their workers again, and we the raylet that we killed."""

    def done(self) -> int:
        return self.lines.count()


def speed(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    yield Progress("starting a head")
    cluster = Ray(folder, cpus=2, dashboard=True)
    ray = connect(cluster.port)
    remote_noop, remote_stamp = ray.remote(noop), ray.remote(stamp)
    ray.get([remote_noop.remote(number) for number in range(20)])
    yield Progress("starts of tasks")
    values = []
    for _ in range(scale.starts):
        time.sleep(0.02)
        values.append(ray.get(remote_stamp.remote(time.monotonic())) * 1000)
    yield Start(
        system="Ray: task",
        values_ms=values,
        means="a function call in a worker process that stays; no isolation, no payment, nothing stored",
    )
    yield Progress("submissions")
    begun = time.perf_counter()
    handles = [remote_noop.remote(number) for number in range(scale.submissions)]
    took_s = time.perf_counter() - begun
    ray.get(handles)
    yield Rate(
        system="Ray, .remote()",
        per_s=scale.submissions / took_s,
        samples=scale.submissions,
        durable=False,
        means="none: the call returns before anybody else knows of the task",
    )
    ray.shutdown()
    yield from _jobs(cluster, scale)


def _jobs(cluster: Ray, scale: Scale) -> Iterator[Report]:
    from ray.job_submission import JobSubmissionClient

    address = f"http://127.0.0.1:{cluster.dashboard_port}"
    client = JobSubmissionClient(address)
    code = "import sys, time; open(sys.argv[1], 'a').write(repr(time.monotonic()) + chr(10))"
    entry = [sys.executable, "-S", "-c", code, str(cluster.lines.path)]
    shell = " ".join(f'"{word}"' for word in entry)

    def api() -> None:
        client.submit_job(entrypoint=shell)

    def command() -> None:
        words = ["job", "submit", "--no-wait", "--address", address, "--", *entry]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True, capture_output=True)

    isolated = "a process of its own for the job, with a supervisor; no payment, lost with the head"
    for system, submit in (("Ray: Jobs API", api), ("Ray: ray job submit", command)):
        yield Progress(f"starts by {system}")
        values = []
        for _ in range(scale.slow_starts + 1):
            before, begun = len(cluster.lines.read()), time.monotonic()
            submit()
            values.append((float(cluster.lines.wait(before + 1, JOB_TIMEOUT_S)[-1]) - begun) * 1000)
            time.sleep(0.5)
        yield Start(system=system, values_ms=values[1:], means=isolated)  # the first one warms up


def _drive(told: str, port: int, scale: Scale, path: str) -> None:
    """The driver of a run in which that is killed."""
    remote_work = connect(port).remote(work)
    handles = []
    for number in range(scale.tasks):
        handles.append(remote_work.remote(number, scale.task_ms, path))
        child.append(told, str(number))
    signal.pause()


def kill_driver(scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    """Who submitted goes, everything else stays."""
    yield Progress("starting a head and a node")
    cluster = Ray(folder, cpus=0)
    cluster.add_node()
    path, told = str(cluster.lines.path), folder / "acknowledged"
    acknowledged = child.kill_who_submitted(
        _drive, scale.tasks, told, cluster.port, scale, path, once=lambda: cluster.done() >= scale.tasks // 3
    )
    struck = child.Struck(Counter({"driver": 1}), 0.0)
    yield from child.kill_while_it_works(cluster, [], scale.tasks, struck)
    found = tally(acknowledged, cluster.lines.read())
    yield Kills(
        system="Ray, kill of the driver",
        unit="tasks",
        acknowledged=len(acknowledged),
        faults=dict(struck.faults),
        lost=len(found.missing),
        stuck=0,
        repeated=found.repeated,
        extra=found.extra,
        last_effect_s=struck.last_s,
        means="as it comes: once, when a third was done; tasks belong to who called",
    )


def kills(victims: list[str], scale: Scale, seed: int, folder: Path) -> Iterator[Report]:
    yield Progress("starting a head and a node")
    cluster = Ray(folder, cpus=0)
    cluster.add_node()
    ray = connect(cluster.port)
    remote_work, path = ray.remote(work), str(cluster.lines.path)
    ray.get(remote_work.remote(-1, 0, path))
    cluster.lines.path.write_text("")
    handles = [remote_work.remote(number, scale.task_ms, path) for number in range(scale.tasks)]
    struck = child.Struck(Counter(), 0.0)
    faults = plan_faults(victims, scale.faults, scale.fault_gap_s, seed)
    yield from child.kill_while_it_works(cluster, faults, scale.tasks, struck)
    found = tally(map(str, range(scale.tasks)), cluster.lines.read())
    ready = ray.wait(handles, num_returns=len(handles), timeout=1, fetch_local=False)[0]
    ended = {handles.index(each) for each in ready} if found.missing else set()
    waiting = sum(int(number) not in ended for number in found.missing)
    yield Kills(
        system=f"Ray, kills of {' and '.join(victims)}",
        unit="tasks",
        acknowledged=scale.tasks,
        faults=dict(struck.faults),
        lost=len(found.missing) - waiting,
        stuck=waiting,
        repeated=found.repeated,
        extra=found.extra,
        last_effect_s=struck.last_s,
        means="as it comes: max_retries 3, the driver stays alive; head and its store are not killed",
    )


def _killing(*victims: str) -> Callable[[Scale, int, Path], Iterator[Report]]:
    return lambda *given: kills(list(victims), *given)


def main() -> int:
    measures = {
        "speed": speed,
        "kill workers": _killing("worker"),
        "kill raylet": _killing("worker", "raylet"),
        "kill driver": kill_driver,
    }
    return child.main(["ray"], measures)


if __name__ == "__main__":
    sys.exit(main())
