"""Attention of tensors beside PyTorch's, there and back: milliseconds, and the memory that they add to the process.

    python -m benchmarks.bench_attention              # one thread and two
    python -m benchmarks.bench_attention --quick --threads 1
    python -m benchmarks.bench_attention --save NAME  # and NAME.json

Ours is F.scaled_dot_product_attention in the exact class. Rounds alternate between both, and a figure is the median;
each peak is that of a process of its own, above what it held before. Target: no slower than PyTorch's, in memory that
grows with the length and not with its square.
"""

import argparse
import importlib.util
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
from benchmarks.figures import add_save, save
from benchmarks.threads import REST_S, add_threads
from cyxcore import functional as F
from cyxcore.kernels import cpu

HEADS, FEATURES = 4, 64
Times = tuple[float, float]


class Case(NamedTuple):
    batch: int
    length: int
    causal: bool

    def __str__(self) -> str:
        return f"{self.batch} x {HEADS} x {self.length} x {FEATURES}{', causal' if self.causal else ''}"

    def arrays(self) -> list[Any]:
        """Query, key, value and gradient."""
        rng = np.random.default_rng(0)
        shape = (self.batch, HEADS, self.length, FEATURES)
        return [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]


CASES = [
    Case(batch, length, causal)
    for batch, length in ((16, 128), (4, 512), (1, 2048), (1, 4096))
    for causal in (False, True)
]


def call_of(who: str, case: Case, threads: int) -> Callable[[], Times]:
    """A call that returns milliseconds there and back."""
    attention: Any
    if who == "cyx":
        cpu.set_num_threads(threads)
        tensor: Any = cx.tensor
        attention = F.scaled_dot_product_attention
    else:
        import torch

        torch.set_num_threads(threads)
        tensor, attention = torch.tensor, torch.nn.functional.scaled_dot_product_attention
    *given, gradient = map(tensor, case.arrays())
    for x in given:
        x.requires_grad = True

    def call() -> Times:
        for x in given:
            x.grad = None
        began_s = time.perf_counter()
        mixed = attention(*given, is_causal=case.causal)
        there_s = time.perf_counter()
        mixed.backward(gradient)
        return 1e3 * (there_s - began_s), 1e3 * (time.perf_counter() - there_s)

    return call


def times(case: Case, threads: int, rounds: int) -> dict[str, Times]:
    calls = {who: call_of(who, case, threads) for who in ("cyx", "torch")}
    found: dict[str, list[Times]] = {who: [] for who in calls}
    for _ in range(1 + rounds):
        for who, call in calls.items():
            found[who].append(call())
            time.sleep(REST_S)
    medians = {
        who: [statistics.median(each) for each in zip(*all_of[1:], strict=True)] for who, all_of in found.items()
    }
    return {who: (there, back) for who, (there, back) in medians.items()}


def peak_mib(who: str, case: Case, threads: int) -> float:
    """In a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_attention",
        "--threads",
        str(threads),
        "--peak",
        who,
        *map(str, case),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def own_peak_mib(who: str, case: Case, threads: int) -> float:
    """What one call there and back adds, after one of short sequences, which loads what is needed once."""
    call_of(who, case._replace(batch=1, length=64), threads)()
    call = call_of(who, case, threads)

    def mib(name: str) -> float:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = mib("VmRSS")
    call()
    return mib("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds, and nothing longer than 512")
    add_threads(parser)
    add_save(parser)
    parser.add_argument("--peak", nargs=4, metavar=("WHO", "BATCH", "LENGTH", "CAUSAL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch, beside which it measures, is missing: pip install torch")
    if args.peak:
        who, batch, length, causal = args.peak
        print(own_peak_mib(who, Case(int(batch), int(length), causal == "True"), *args.threads))
        return
    measured: dict[str, dict[str, Any]] = {}
    for threads in args.threads:
        rows = measured.setdefault(str(threads), {})
        for case in CASES:
            if args.quick and case.length > 512:
                continue
            found = times(case, threads, 3 if args.quick else 7)
            peaks = {who: peak_mib(who, case, threads) for who in found}
            (ours, our_back), (theirs, their_back) = found["cyx"], found["torch"]
            ratio = (theirs + their_back) / (ours + our_back)
            rows[str(case)] = {"ms": found, "peak_mib": peaks, "times": ratio}
            print(
                f"{threads} thread{'s' * (threads > 1)}, {case}: there {ours:.2f} ms (PyTorch {theirs:.2f}), "
                f"back {our_back:.2f} ({their_back:.2f}), {peaks['cyx']:.0f} MiB ({peaks['torch']:.0f}); "
                f"{ratio:.2f} x as fast"
            )
    save(args.save, {"threads": measured})


if __name__ == "__main__":
    main()
