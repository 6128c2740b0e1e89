"""Serving beside onnxruntime behind FastAPI and Litestar: requests a second, how evenly, under too much, and alone.

    python -m benchmarks.bench_serve                    # everything: five rounds of 5 s, ten minutes
    python -m benchmarks.bench_serve --save benchmarks/results/serve
    python -m benchmarks.bench_serve --quick            # one round of 2 s, HTTP only, ours only where peers are missing
    python -m benchmarks.bench_serve --network          # a deployment asked over NATS, beside FastAPI, and nothing else

Targets: POST /v1/predict from 64 connections ≥ 2.5 × FastAPI's rate, p99 ≤ 3 × p50; a deployment on a network of this
machine, asked by 64 over NATS, ≥ 4 × FastAPI's rate; at three times the rate that it can do, ≥ 90 % of its best goes on
being answered, the rest gets 429, and memory does not grow; a single sample takes no longer than onnxruntime's
(geometric mean of MLP, CNN and encoder, one thread each). The last table says which are met.

Too much is tried on two models: of the small CNN an answer costs only a few times what the kernel takes to bring a
request and carry a refusal away, twice for each answer. offered_per_s says what the client really came to.

Servers are asked in turn within each round, so that what the machine does besides falls on all; figures are medians of
the rounds. Who asks is one process of ours for all of them (benchmarks/serving/load.py). `us/request` is the
server's processor time for a request, which other work on the machine disturbs least.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.figures import add_save, beside, environment, save
from benchmarks.serving.models import MODULES, Case, make
from benchmarks.tables import about

CONNECTIONS, CONNECTIONS_OVERLOAD = 64, 200
OVERLOAD = 3.0


class Process:
    """A server under test."""

    def __init__(self, name: str, command: list[str], url: str | None = None):
        self.name = name
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE if url is None else subprocess.DEVNULL)
        if url is None:
            assert self._process.stdout
            url = json.loads(self._process.stdout.readline())["data"]["url"]
        self.url = f"{url}/v1/predict"
        self.measured = psutil.Process(self._process.pid)

    def wait_ready(self, body: bytes) -> None:
        for _ in range(300):
            with contextlib.suppress(OSError):
                request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request) as answer:
                    assert len(json.load(answer)["output"]) == 10
                    return
            time.sleep(0.1)
        raise SystemExit(f"{self.name} does not answer at {self.url}")

    def cpu_s(self) -> float:
        times = self.measured.cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def ours(case: Case, *options: str) -> Process:
    command = [sys.executable, "-m", "cyxnode.serving", str(case.ours), "--port=0", "--json", "--threads=1"]
    return Process("cyx", [*command, *options])


def peer(name: str, case: Case) -> Process:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.serving.peers", name, str(case.onnx), str(port)]
    return Process(name, command, f"http://127.0.0.1:{port}")


def load(server: Process, case: Case, seconds: float, **options: float) -> dict[str, Any]:
    words = [f"--{name}={value}" for name, value in ({"connections": CONNECTIONS} | options).items()]
    command = [sys.executable, "-m", "benchmarks.serving.load", server.url, str(case.body), f"--seconds={seconds}"]
    before_s, began_s = server.cpu_s(), time.perf_counter()
    said = subprocess.run([*command, *words], capture_output=True, check=True, text=True).stdout
    found: dict[str, Any] = json.loads(said)
    share = seconds / (seconds + min(1.0, seconds / 3))  # the load warms up before it counts
    used_s = (server.cpu_s() - before_s) * share
    found["us_per_request"] = round(1e6 * used_s / max(1, found["per_s"] * seconds), 1)
    found["cores"] = round(used_s / (time.perf_counter() - began_s), 2)
    return found


@contextlib.contextmanager
def servers(case: Case, names: list[str]) -> Iterator[list[Process]]:
    started: list[Process] = []
    try:
        for name in names:
            started.append(ours(case) if name == "cyx" else peer(name, case))
            started[-1].wait_ready(case.body.read_bytes())
        yield started
    finally:
        for server in started:
            server.close()


def throughput(case: Case, names: list[str], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with servers(case, names) as started:
        for _ in range(rounds):
            for server in started:
                found[server.name].append(load(server, case, seconds))
    keys = ("good_per_s", "p50_ms", "p99_ms", "us_per_request", "cores")
    figures = {
        name: {key: statistics.median(each[key] for each in runs) for key in keys} for name, runs in found.items()
    }
    for name, runs in found.items():
        figures[name]["evenness"] = statistics.median(each["p99_ms"] / each["p50_ms"] for each in runs)
    return figures


def overload(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """At three times what it can do, with a queue for as many as reach its peak; peak: measured in turn with that.

    offered_per_s: what the client came to, which shares the machine with the server; wanted_per_s: what it was to.
    """
    server = ours(case, f"--max-queue={CONNECTIONS}")
    runs = []
    try:
        server.wait_ready(case.body.read_bytes())
        before = load(server, case, seconds)
        first_rss = server.measured.memory_info().rss
        for _ in range(rounds):
            wanted = OVERLOAD * before["good_per_s"]
            found = load(server, case, seconds, connections=CONNECTIONS_OVERLOAD, rate=wanted)
            after = load(server, case, seconds)
            peak = {key: (before[key] + after[key]) / 2 for key in ("good_per_s", "us_per_request")}
            runs.append((found, peak, wanted))
            before = after
        grown = server.measured.memory_info().rss - first_rss
    finally:
        server.close()
    found, peak, wanted = sorted(runs, key=lambda run: run[0]["good_per_s"] / run[1]["good_per_s"])[len(runs) // 2]
    return {
        "peak_per_s": round(peak["good_per_s"], 1),
        "wanted_per_s": round(wanted, 1),
        "offered_per_s": found["offered_per_s"],
        "good_per_s": found["good_per_s"],
        "goodput": round(found["good_per_s"] / peak["good_per_s"], 3),
        "statuses": found["statuses"],
        "us_per_answer": round(peak["us_per_request"], 1),
        "us_per_refusal": us_per_refusal(found, peak["us_per_request"]),
        "p99_ms": found["p99_ms"],
        "grown_mib": round(grown / 2**20, 1),
    }


def us_per_refusal(found: dict[str, Any], us_per_answer: float) -> float | None:
    """What is left of the server's processor time when each good answer costs what it does at the peak."""
    refused_per_s = found["per_s"] - found["good_per_s"]
    if refused_per_s <= 0:
        return None
    left = found["us_per_request"] * found["per_s"] - us_per_answer * found["good_per_s"]
    return round(max(left, 0.0) / refused_per_s, 1)


def alone(case: Case, rounds: int) -> dict[str, float]:
    """Microseconds for one sample within this process, one thread: medians, asked in turn."""
    from benchmarks.serving.peers import session
    from cyxcore import device
    from cyxcore.model import load_model
    from cyxnode.serving.predictor import Predictor

    kernels: Any = device.backend("cpu")
    kernels.kernels.set_num_threads(1)
    model = load_model(case.ours)
    predictor, held = Predictor(model.graph, model.weights, 1), session(str(case.onnx))
    x = np.random.default_rng(0).standard_normal((1, *case.shape)).astype(np.float32)
    name = held.get_inputs()[0].name

    def by_us() -> Any:
        predictor.places(1)[...] = x
        return predictor.run(1).copy()

    def by_onnxruntime() -> Any:
        return held.run(None, {name: x})[0]

    assert np.allclose(by_us(), by_onnxruntime(), atol=1e-4)
    found: dict[str, list[float]] = {"cyx": [], "onnxruntime": []}
    each: list[tuple[str, Callable[[], Any]]] = [("cyx", by_us), ("onnxruntime", by_onnxruntime)]
    for _ in range(50 * rounds):
        for who, run in each:
            run()
            begun = time.perf_counter_ns()
            for _ in range(20):
                run()
            found[who].append((time.perf_counter_ns() - begun) / 20_000)
    figures = {f"{who}_us": round(statistics.median(times), 2) for who, times in found.items()}
    return figures | {"ratio": round(figures["cyx_us"] / figures["onnxruntime_us"], 3)}


async def over_network(case: Case, with_peer: bool, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """A replica on a network of its own beside FastAPI; asked in turn. us_per_request: of the node and its replica."""
    from cyxnet.client import AsyncClient
    from cyxnet.local import LocalNetwork

    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, servers(case, ["fastapi"] if with_peer else []) as peers:
        async with LocalNetwork(Path(folder) / "net") as network, await AsyncClient.connect(network.folder) as client:
            await client.faucet(10_000_000_000)
            source = await client.deployments.source(case.ours)
            deployment = client.deployments.id_of("bench")
            job = await client.deployments.request(source, deployment, amount_base_units=10**9, threads=1)
            await client.deployments.ready(deployment, await client.deployments.add(job, 1, source.path))
            node = psutil.Process(network.process_ids["node-1"])
            command = [sys.executable, "-m", "benchmarks.serving.network", str(network.folder), deployment]
            words = [str(case.body), f"--askers={CONNECTIONS}", f"--seconds={seconds}"]
            for _ in range(rounds):
                for peer_server in peers:
                    measured = await asyncio.to_thread(load, peer_server, case, seconds)
                    found.setdefault(peer_server.name, []).append(measured)
                before_s = _cpu_s(node)
                said = await asyncio.to_thread(
                    subprocess.run, [*command, *words], capture_output=True, check=True, text=True
                )
                figures: dict[str, Any] = json.loads(said.stdout)
                used_s = (_cpu_s(node) - before_s) * seconds / (seconds + min(1.0, seconds / 3))
                figures["us_per_request"] = round(1e6 * used_s / max(1, figures["per_s"] * seconds), 1)
                found.setdefault("cyx over NATS", []).append(figures)
    keys = ("good_per_s", "p50_ms", "p99_ms", "us_per_request")
    return {name: {key: statistics.median(each[key] for each in runs) for key in keys} for name, runs in found.items()}


def _cpu_s(node: psutil.Process) -> float:
    """Of a node and its processes."""
    return sum(sum(process.cpu_times()[:2]) for process in [node, *node.children(recursive=True)])


def network_report(found: dict[str, dict[str, Any]]) -> str:
    peer_per_s = found.get("fastapi", {}).get("good_per_s")
    rows = [
        [who, f"{each['good_per_s']:,.0f}", each["p50_ms"], each["p99_ms"], each["us_per_request"]]
        + [f"{each['good_per_s'] / peer_per_s:.2f}" if peer_per_s else ""]
        for who, each in found.items()
    ]
    columns = ["", "req/s", "p50 ms", "p99 ms", "us/request", "× of FastAPI"]
    return f"**/v1/predict of a deployment, mlp, {CONNECTIONS} askers**\n\n{table(columns, rows)}"


def table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdicts(found: dict[str, Any]) -> str:
    """Each figure beside its target; also by processor time, which other work on the machine disturbs least."""
    rows: list[tuple[str, float, str, float, str]] = []  # what, figure, relation, target, how it is written
    network = found.get("network", {})
    for name, figures in found.get("throughput", {}).items():
        if "fastapi" in figures:
            ours_, theirs = figures["cyx"], figures["fastapi"]
            rows += [
                (f"HTTP, {name}: req/s ÷ FastAPI's", ours_["good_per_s"] / theirs["good_per_s"], "≥", 2.5, ".2f"),
                ("the same by processor time", theirs["us_per_request"] / ours_["us_per_request"], "≥", 2.5, ".2f"),
            ]
        rows.append((f"HTTP, {name}: p99 ÷ p50", figures["cyx"]["evenness"], "≤", 3.0, ".1f"))
    if "fastapi" in network:
        ours_, theirs = network["cyx over NATS"], network["fastapi"]
        rows += [
            ("NATS, mlp: req/s ÷ FastAPI's", ours_["good_per_s"] / theirs["good_per_s"], "≥", 4.0, ".2f"),
            ("the same by processor time", theirs["us_per_request"] / ours_["us_per_request"], "≥", 4.0, ".2f"),
            ("NATS, mlp: p99 ÷ p50", ours_["p99_ms"] / ours_["p50_ms"], "≤", 3.0, ".1f"),
        ]
    for name, each in found.get("overload", {}).items():
        rows.append((f"three times too much, {name}: goodput", each["goodput"], "≥", 0.9, ".2f"))
    if single := found.get("alone"):
        mean = statistics.geometric_mean(each["ratio"] for each in single.values())
        rows.append(("one sample: time ÷ onnxruntime's, geometric mean", mean, "≤", 1.0, ".2f"))
    lines = [
        [what, f"{figure:{written}}", f"{relation} {target:g}", "yes" if _met(figure, relation, target) else "NO"]
        for what, figure, relation, target, written in rows
    ]
    return f"**Targets**\n\n{table(['figure', 'here', 'target', 'met'], lines)}" if lines else ""


def _met(figure: float, relation: str, target: float) -> bool:
    return figure >= target if relation == "≥" else figure <= target


def report(found: dict[str, Any]) -> str:
    parts = []
    for name, figures in found.get("throughput", {}).items():
        rows = []
        for who, each in figures.items():
            times = [f"{each['good_per_s'] / figures[other]['good_per_s']:.2f}" for other in figures if other != "cyx"]
            rows.append(
                [who, f"{each['good_per_s']:,.0f}", each["p50_ms"], each["p99_ms"], f"{each['evenness']:.1f}"]
                + [each["us_per_request"], ", ".join(times) if who == "cyx" else ""]
            )
        columns = ["", "req/s", "p50 ms", "p99 ms", "p99/p50", "us/request", "cyx is × of the others"]
        parts.append(f"**POST /v1/predict, {name}, {CONNECTIONS} connections**\n\n{table(columns, rows)}")
    if over := found.get("overload"):
        said = [[name, *each.values()] for name, each in over.items()]
        short = [name for name, each in over.items() if each["offered_per_s"] < 0.9 * each["wanted_per_s"]]
        note = f"\n\n{', '.join(short)}: the client did not come to the rate that it was to offer." if short else ""
        parts.append(f"**{OVERLOAD:g} × what it can do**\n\n{table(['', *next(iter(over.values()))], said)}{note}")
    if single := found.get("alone"):
        mean = statistics.geometric_mean(each["ratio"] for each in single.values())
        rows = [[name, *each.values()] for name, each in single.items()] + [["geometric mean", "", "", f"{mean:.3f}"]]
        parts.append(
            f"**One sample, one thread**\n\n{table(['', 'cyx us', 'onnxruntime us', 'cyx/onnxruntime'], rows)}"
        )
    if network := found.get("network"):
        parts.append(network_report(network))
    return "\n\n".join([*parts, verdicts(found)])


def over_http(folder: Path, have: dict[str, bool], rounds: int, seconds: float) -> dict[str, Any]:
    """Requests a second, under too much, and alone, beside the peers that are installed."""
    names = ["cyx"] + [name for name in ("fastapi", "litestar") if have["onnxruntime"] and have[name]]
    found: dict[str, Any] = {"throughput": {}, "overload": {}, "alone": {}}
    cases = {name: make(name, folder) for name in MODULES}
    for name in ("mlp", "cnn"):
        found["throughput"][name] = throughput(cases[name], names, rounds, seconds)
    for name in ("cnn", "wide_cnn"):
        found["overload"][name] = overload(cases[name], rounds, seconds)
    if have["onnxruntime"]:
        found["alone"] = {name: alone(cases[name], rounds) for name in ("mlp", "cnn", "encoder")}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 2 s")
    parser.add_argument("--network", action="store_true", help="a deployment over NATS, and nothing else")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser, "NAME.json and NAME.md")
    options = parser.parse_args()
    if importlib.util.find_spec("uvloop") is None:
        parser.error("who asks is uvloop's: the package uvloop is missing; pip install 'cyx[fast]'")
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    have = {name: importlib.util.find_spec(name) is not None for name in ("onnxruntime", "fastapi", "litestar")}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not options.network:
            found = over_http(Path(folder), have, rounds, seconds)
        if options.network or not options.quick:
            case = make("mlp", Path(folder))
            found["network"] = asyncio.run(over_network(case, have["fastapi"] and have["onnxruntime"], rounds, seconds))
    table = report(found)
    busy = os.getloadavg()[0]
    missing = [name for name, there in have.items() if not there]
    notes = [f"Load {busy:.1f} at the end; {rounds} rounds of {seconds:g} s."]
    notes += [f"Missing and left out: {', '.join(missing)} (pip install 'cyx[peers]' onnxruntime)."] if missing else []
    text = table + "\n\n" + " ".join(notes)
    print(json.dumps(found) if options.json else text)
    if options.save:
        peers = {name: importlib.metadata.version(name) for name in have if name not in missing}
        save(options.save, found, **peers)
        beside(options.save, "md").write_text(f"# Serving\n\n{about(environment(**peers))}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
