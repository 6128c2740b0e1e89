"""Functions of 10⁶ numbers, there and back, beside PyTorch and NumPy, and how much of the memory they use.

    pip install torch                             # the peer of most rows; without it NumPy alone
    python -m benchmarks.bench_functions [--quick] [--threads N,N] [--only TEXT] [--elements N]

Each row is a call as users write it, float32, nothing compiled; "and back" is the call with its gradient, of which that
of the result is given. Rounds of all alternate, and each comes first in turn; figures are medians. Behind each time
stands the error against PyTorch in float64, of the norm (of several gradients the greatest); of functions of single
numbers the greatest one in units of the last place as well.

Target: 1.5 times as fast as the faster peer, or 80 % of what the memory gives: of the fastest of all sums where a row
only reads, else of a copy. Counted is what a row cannot do without: its inputs and its result, or the gradient of that
and those of its inputs.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import cyxcore as cx
import cyxcore.functional as F
from benchmarks.bench_kernels import torch_here
from benchmarks.figures import add_save, greatest_ulp, relative_error, save, times_faster, with_error
from benchmarks.threads import REST_S, add_threads, alone, one_by_one
from cyxcore.kernels import cpu

Array = np.ndarray[Any, Any]
Work = Callable[[], object]
TARGET, SHARE = 1.5, 0.8
WARM_UP = 5  # calls before the first burst: what comes again is planned by then


class Row(NamedTuple):
    """A call of a library, its module of functions, and tensors of these arrays; what NumPy calls of them, or None."""

    name: str
    call: Callable[..., Any]
    inputs: tuple[Array, ...]
    of_numpy: Callable[..., Any] | None = None
    back: bool = True  # whether it has a gradient
    of_single: bool = False  # each result is of one number


def rows(elements: int) -> Iterator[Row]:
    rng = np.random.default_rng(0)

    def f32(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    side = max(1, round(elements**0.5))
    pixels = max(1, round((elements / (16 * 21)) ** 0.5))
    channels = max(1, elements // (32 * 22 * 22))
    x, image, batch = f32(side, side), f32(16, 21, pixels, pixels), f32(32, channels, 22, 22)
    labels, of_pixels = rng.integers(0, side, side), rng.integers(0, 21, (16, pixels, pixels))
    weight, of_channels = f32(side), np.abs(f32(channels))
    for name in ("exp", "tanh", "sin", "cos"):
        yield Row(name, lambda m, _, x, name=name: getattr(m, name)(x), (x,), getattr(np, name), of_single=True)
    yield Row("log", lambda m, _, x: m.log(x), (np.abs(x),), np.log, of_single=True)
    for name in ("erf", "sigmoid"):
        yield Row(name, lambda m, _, x, name=name: getattr(m, name)(x), (x,), of_single=True)
    for name in ("gelu", "silu", "softplus"):
        yield Row(name, lambda _, f, x, name=name: getattr(f, name)(x), (x,), of_single=True)
    yield Row("gelu by tanh", lambda _, f, x: f.gelu(x, approximate="tanh"), (x,), of_single=True)
    for name in ("softmax", "log_softmax"):
        for text, dim, values in (("last axis", -1, x), ("first axis", 0, x), ("NCHW axis 1", 1, image)):
            yield Row(f"{name} {text}", lambda _, f, x, name=name, dim=dim: getattr(f, name)(x, dim=dim), (values,))
    yield Row("cross_entropy", lambda _, f, x, y: f.cross_entropy(x, y), (x, labels))
    yield Row("cross_entropy NCHW", lambda _, f, x, y: f.cross_entropy(x, y), (image, of_pixels))
    yield Row("logsumexp last axis", lambda m, _, x: m.logsumexp(x, -1), (x,))
    for name, words in (("sum", {}), ("mean", {}), ("var", {"correction": 0})):  # PyTorch's own correction is 1
        numpys = getattr(np, name)
        yield Row(f"{name} of all", lambda _, f, x, n=name, w=words: getattr(x, n)(**w), (x,), numpys)
        for text, axis in (("last axis", -1), ("first axis", 0)):
            of_numpy = partial(numpys, axis=axis)
            yield Row(f"{name} {text}", lambda _, f, x, n=name, a=axis, w=words: getattr(x, n)(a, **w), (x,), of_numpy)
    for text, dims in (("of all", (0, 1)), ("last axis", -1)):
        yield Row(f"amax {text}", lambda m, _, x, dims=dims: m.amax(x, dims), (x,), partial(np.max, axis=dims))
    yield Row("argmax of all", lambda _, f, x: x.argmax(), (x,), np.argmax, back=False)
    yield Row("argmax last axis", lambda _, f, x: x.argmax(-1), (x,), partial(np.argmax, axis=-1), back=False)
    yield Row("norm of all", lambda _, f, x: x.norm(), (x,), np.linalg.norm)
    yield Row("norm last axis", lambda _, f, x: x.norm(dim=-1), (x,), partial(np.linalg.norm, axis=-1))
    yield Row("layer_norm, weight and bias", lambda _, f, x, w, b: f.layer_norm(x, w.shape, w, b), (x, weight, weight))
    yield Row("rms_norm, weight", lambda _, f, x, w: f.rms_norm(x, w.shape, w, eps=1e-6), (x, weight))
    yield Row(
        "batch_norm in training",
        lambda _, f, x, w, b: f.batch_norm(x, None, None, w, b, True),
        (batch, *[of_channels] * 2),
    )
    yield Row(
        "batch_norm",
        lambda _, f, x, m, v, w, b: f.batch_norm(x, m, v, w, b, False),
        (batch, *[of_channels] * 4),
        back=False,
    )
    yield Row("group_norm", lambda _, f, x, w, b: f.group_norm(x, len(w), w, b), (batch, of_channels, of_channels))


def there(row: Row, library: Any, functions: Any) -> Work:
    tensors = [library.tensor(each) for each in row.inputs]
    return partial(row.call, library, functions, *tensors)


def there_and_back(row: Row, library: Any, functions: Any) -> Work:
    tensors = [library.tensor(each) for each in row.inputs]
    followed = [x for x, each in zip(tensors, row.inputs, strict=True) if each.dtype.kind == "f"]
    for x in followed:
        x.requires_grad_(True)
    shape = tuple(row.call(library, functions, *tensors).shape)
    gradient = library.tensor(np.random.default_rng(1).standard_normal(shape, np.float32).astype(row.inputs[0].dtype))

    def work() -> list[Any]:
        for x in followed:
            x.grad = None
        row.call(library, functions, *tensors).backward(gradient)
        return [x.grad for x in followed]

    return work


def true_results(row: Row, way: Callable[..., Work], torch: Any) -> list[Any]:
    """PyTorch's in float64; each a tensor."""
    wide = [each.astype(np.float64) if each.dtype == np.float32 else each for each in row.inputs]
    return as_list(way(row._replace(inputs=tuple(wide)), torch, torch.nn.functional)())


def as_list(results: Any) -> list[Any]:
    return results if isinstance(results, list) else [results]


def error(work: Work, true: list[Any]) -> float:
    """The greatest of its results', each of the norm."""
    return max(map(relative_error, as_list(work()), true))


def least_bytes(row: Row, back: bool) -> tuple[int, bool]:
    """(what a row moves at least, whether it reads and writes next to nothing)"""
    read = sum(each.nbytes for each in row.inputs)
    result = row.call(cx, F, *map(cx.tensor, row.inputs)).size * 4
    gradients = sum(each.nbytes for each in row.inputs if each.dtype == np.float32) if back else 0
    return read + result + gradients, result + gradients < read // 8


def measure(works: dict[str, Work], rounds: int, budget_s: float) -> dict[str, float]:
    """Seconds of each: the median of alternating bursts."""
    found: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for work in works.values():
        for _ in range(WARM_UP):
            work()
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            if cpu.get_num_threads() > 1:
                time.sleep(REST_S)
            started, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - started) < budget_s:
                works[name]()
                count += 1
            found[name].append(spent / count)
    return {name: statistics.median(times) for name, times in found.items()}


def bandwidth(elements: int, torch: Any, rounds: int, budget_s: float) -> tuple[float, float]:
    """Bytes a second, of as many elements: of the fastest sum of all, and of a copy, read and written."""
    x = np.random.default_rng(0).standard_normal(elements, dtype=np.float32)
    to, ours = np.empty_like(x), cx.tensor(x)
    works: dict[str, Work] = {"copy": lambda: np.copyto(to, x), "numpy": x.sum, "cyx": ours.sum}
    if torch is not None:
        works["torch"] = torch.from_numpy(x).sum
    found = measure(works, rounds, budget_s)
    copied = found.pop("copy")
    return x.nbytes / min(found.values()), 2 * x.nbytes / copied


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    add_threads(parser)
    parser.add_argument("--elements", type=int, default=1_000_000, help="of each input, about (default 10⁶)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    add_save(parser)
    options = parser.parse_args()
    if not alone(options.threads):
        return one_by_one("benchmarks.bench_functions", options.threads, options.save)
    [threads] = options.threads
    cpu.set_num_threads(threads)
    torch = torch_here(threads, gradients=True)
    rounds, budget_s = (5, 0.004) if options.quick else (15, 0.02)
    read, copied = bandwidth(options.elements, torch, rounds, budget_s)
    print(f"{cpu.isa()}, {threads} thread(s), numpy {np.__version__}, torch {torch and torch.__version__}")
    print(f"memory: {read / 1e9:.0f} GB/s read, {copied / 1e9:.0f} GB/s copied")
    print(f"{'µs (error)':40}{'cyx':>14}{'torch':>14}{'numpy':>14}{'x faster':>10}{'memory':>8}")
    memory = {"read_gb_s": round(read / 1e9, 1), "copied_gb_s": round(copied / 1e9, 1)}
    figures: dict[str, Any] = {"memory": memory, "us": {}, "error": {}, "ulp": {}, "share": {}, "met": []}
    for row in rows(options.elements):
        for way in (there, there_and_back)[: 1 + row.back]:
            name = row.name if way is there else f"{row.name}, and back"
            if options.only not in name:
                continue
            works = {"cyx": way(row, cx, F)}
            if torch is not None:
                works["torch"] = way(row, torch, torch.nn.functional)
            if row.of_numpy is not None and way is there:
                works["numpy"] = partial(row.of_numpy, *row.inputs)
            lost: dict[str, float] = {}
            if torch is not None:
                true = true_results(row, way, torch)
                lost = {who: error(work, true) for who, work in works.items()}
                if row.of_single and way is there:
                    ulp = {who: round(greatest_ulp(work(), true[0]), 2) for who, work in works.items()}
                    figures["ulp"][name] = ulp
            found = measure(works, rounds, budget_s)
            moved, reads = least_bytes(row, way is there_and_back)
            share = moved / found["cyx"] / (read if reads else copied)
            ratio = times_faster(found)
            if met := ratio >= TARGET or share >= SHARE:
                figures["met"].append(name)
            figures["us"][name] = {who: round(time_s * 1e6, 1) for who, time_s in found.items()}
            figures["error"][name] = {who: float(f"{each:.2e}") for who, each in lost.items()}
            figures["share"][name] = round(share, 3)
            cells = [
                with_error(f"{found[who] * 1e6:.0f}", lost.get(who)) if who in found else ""
                for who in ("cyx", "torch", "numpy")
            ]
            shown = "".join(f"{cell:>14}" for cell in cells)
            print(f"{name:40}{shown}{ratio:10.2f}{share:8.0%} {'met' * met}", flush=True)
    save(options.save, {"isa": cpu.isa(), "threads": {str(threads): figures}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
