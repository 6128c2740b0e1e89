"""CPU kernels against NumPy and PyTorch, side by side in one process: time and error of each.

    python -m benchmarks.bench_kernels [--quick] [--threads N,N] [--isa NAME] [--only TEXT] [--numerics CLASS]

Rounds of the three alternate, so that a busy machine slows all, and each comes first in turn, since who does finds a
colder cache; each figure is the median, with --processor-time the least. NumPy's BLAS (OpenBLAS) and PyTorch (MKL,
oneDNN) get as many threads as we do. PyTorch takes part where it is installed. Behind each time of float32 stands the
error against the reference kernels (NumPy) in float64, of the norm: docs/numerics.md. Rows of `@` are products of
tensors, with the way to the kernel and memory of their own for the result; NumPy's and PyTorch's go into an array that
is there.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import cyxcore as cx
from benchmarks.figures import add_save, relative_error, save, times_faster, with_error
from benchmarks.threads import REST_S, add_threads, alone, one_by_one
from cyxcore import precision
from cyxcore.kernels import cpu, reference

Array = np.ndarray[Any, Any]
Attrs = dict[str, Any]
Work = Callable[[], object]
THIN = [  # rows, terms, columns: layers at small batches, and vectors
    *((m, 784, 1024) for m in (1, 2, 4, 8)),
    *((128, 784, 256), (32, 512, 2048), (128, 256, 10), (1, 64, 64), (1, 4096, 4096)),
    *((784, 1024, 1), (64, 64, 1), (4096, 4096, 1), (1, 1000, 1), (1024, 1, 1024)),
]
STACKS = [(8, 64, 64, 64), (256, 8, 8, 8), (64, 1, 64, 64), (16, 197, 64, 197)]  # stack, rows, terms, columns
Row = tuple[str, str, Array, list[Array], Attrs, Work | None, float]  # name, op, output, inputs, attrs, NumPy's, flops


def f32(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def elementwise() -> Iterator[Row]:
    x, row, column = f32(1024, 1024), f32(1024), f32(1024, 1)
    y = np.flip(x).copy()
    out, truth = np.empty_like(x), np.empty(x.shape, bool)
    target = np.empty_like(x)
    for op, function in (("add", np.add), ("mul", np.multiply), ("div", np.divide), ("maximum", np.maximum)):
        yield f"{op} 1M", op, out, [x, y], {}, partial(function, x, y, out=target), 0.0
    yield "add 1M + row", "add", out, [x, row], {}, lambda: np.add(x, row, out=target), 0.0
    yield "add 1M + column", "add", out, [x, column], {}, lambda: np.add(x, column, out=target), 0.0
    small, result = f32(64), np.empty(64, np.float32)
    yield (
        "add 64",
        "add",
        np.empty(64, np.float32),
        [small, small],
        {},
        lambda: np.add(small, small, out=result),
        0.0,
    )
    yield "less 1M", "less", truth, [x, y], {}, lambda: np.less(x, y), 0.0
    for op in UNARY:
        unary = getattr(np, op, None)  # NumPy has no sigmoid and no erf
        positive = np.abs(x)
        yield f"{op} 1M", op, out, [positive], {}, unary and partial(unary, positive, out=target), 0.0
    yield "transpose 1M", "transpose", out, [x], {"axes": (1, 0)}, lambda: np.copyto(target, x.T), 0.0


def reductions() -> Iterator[Row]:
    x = f32(2048, 1024)
    labels = np.arange(2048) % 1024
    for name, axes in (("all", (0, 1)), ("last axis", (1,)), ("first axis", (0,))):
        out = np.empty(x.sum(axes).shape, np.float32)
        yield (
            f"sum {name} 2M",
            "sum",
            out,
            [x],
            {"axes": axes, "keepdims": False},
            partial(np.sum, x, axis=axes),
            0.0,
        )
        yield (
            f"max {name} 2M",
            "max",
            np.empty_like(out),
            [x],
            {"axes": axes, "keepdims": False},
            partial(np.max, x, axis=axes),
            0.0,
        )
    for op in ("softmax", "log_softmax"):
        attrs = {"axis": 1}
        yield (
            f"{op} 2048x1024",
            op,
            np.empty_like(x),
            [x],
            attrs,
            partial(reference.KERNELS[op], attrs, x),
            0.0,
        )
    yield "cross_entropy 2048x1024", "cross_entropy", np.empty(2048, np.float32), [x, labels], {}, (
        lambda: reference.KERNELS["cross_entropy"]({}, x, labels)
    ), 0.0  # fmt: skip


def products(sizes: tuple[int, ...]) -> Iterator[Row]:
    for n in sizes:
        for ta, tb in ((False, False), (False, True), (True, False)):
            if n > 1024 and (ta or tb):
                continue
            a, b = f32(n, n), f32(n, n)
            out, target = np.empty((n, n), np.float32), np.empty((n, n), np.float32)
            attrs = {"transpose_a": ta, "transpose_b": tb}
            x, y = a.T if ta else a, b.T if tb else b
            name = f"matmul {n} {'T' if ta else 'N'}{'T' if tb else 'N'}"
            yield (
                name,
                "matmul",
                out,
                [a, b],
                attrs,
                partial(np.matmul, x, y, out=target),
                2.0 * n**3,
            )
    for m, k, n in ((64, 64, 128), (256, 784, 1024), (64, 9216, 128), (1, 784, 1024)):
        a, b = f32(m, k), f32(n, k)
        out, target = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
        attrs = {"transpose_a": False, "transpose_b": True}
        yield f"linear {m}x{k} -> {n}", "matmul", out, [a, b], attrs, (
            partial(np.matmul, a, b.T, out=target)
        ), 2.0 * m * n * k  # fmt: skip


def tensor_products() -> Iterator[Row]:
    """`a @ b` of tensors: small and thin matrices, transposed views among them (T), and stacks."""
    sizes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        *((f"{n}", (n, n), (n, n)) for n in (8, 16, 32, 48, 64, 96, 128, 256)),
        *((f"{m}x{k}x{n}", (m, k), (k, n)) for m, k, n in THIN),
        *((f"{b} of {m}x{k}x{n}", (b, m, k), (b, k, n)) for b, m, k, n in STACKS),
    ]
    for dtype in ("float32", "float64"):
        for name, left, right in sizes:
            for ta, tb in ((False, False), (False, True), (True, False)):
                a, b = f32(*left).astype(dtype), f32(*right).astype(dtype)
                a, b = (
                    np.ascontiguousarray(a.swapaxes(-1, -2)) if ta else a,
                    np.ascontiguousarray(b.swapaxes(-1, -2)) if tb else b,
                )
                x, y = a.swapaxes(-1, -2) if ta else a, b.swapaxes(-1, -2) if tb else b
                target = np.matmul(x, y)
                attrs = {"transpose_a": ta, "transpose_b": tb}
                label = f"@ {name} {'T' if ta else 'N'}{'T' if tb else 'N'}{' f64' if dtype == 'float64' else ''}"
                yield (
                    label,
                    "@",
                    target,
                    [a, b],
                    attrs,
                    partial(np.matmul, x, y, out=target),
                    2.0 * target.size * x.shape[-1],
                )


def networks() -> Iterator[Row]:
    for name, x, w, stride, padding in (
        ("3x3 1->32 28x28", f32(64, 1, 28, 28), f32(32, 1, 3, 3), 1, 0),
        ("3x3 32->64 26x26", f32(64, 32, 26, 26), f32(64, 32, 3, 3), 1, 0),
        ("3x3 64->64 32x32", f32(32, 64, 32, 32), f32(64, 64, 3, 3), 1, 1),
        ("3x3 64->128 32x32 by 2", f32(32, 64, 32, 32), f32(128, 64, 3, 3), 2, 1),
        ("4x4 32->64 32x32 by 2", f32(32, 32, 32, 32), f32(64, 32, 4, 4), 2, 1),
    ):
        attrs = {"stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
        side = (x.shape[2] + 2 * padding - w.shape[2]) // stride + 1
        g = f32(x.shape[0], w.shape[0], side, side)
        work = 2.0 * g.size * w[0].size
        for op, out, inputs, more in (
            ("conv2d", np.empty_like(g), [x, w], {}),
            ("conv2d_grad_input", np.empty_like(x), [g, w], {"input_shape": x.shape}),
            ("conv2d_grad_weight", np.empty_like(w), [g, x], {"weight_shape": w.shape}),
        ):
            full = {**attrs, **more}
            yield f"{op} {name}", op, out, inputs, full, (
                partial(reference.KERNELS[op], full, *inputs)
            ), work  # fmt: skip
    x = f32(64, 64, 24, 24)
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    g = f32(64, 64, 12, 12)
    yield "max_pool2d 2x2", "max_pool2d", np.empty_like(g), [x], pool, (
        lambda: reference.KERNELS["max_pool2d"](pool, x)
    ), 0.0  # fmt: skip
    yield "max_pool2d_grad 2x2", "max_pool2d_grad", np.empty_like(x), [g, x], pool, (
        lambda: reference.KERNELS["max_pool2d_grad"](pool, g, x)
    ), 0.0  # fmt: skip
    p, m, v = f32(1_000_000), f32(1_000_000), np.abs(f32(1_000_000))
    lr, step = np.array(0.001, np.float32), np.array(7.0, np.float32)
    adam = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decoupled_weight_decay": 0.01}
    yield "adam_update 1M", "adam_update", np.empty_like(p), [p, m, v, lr, step], adam, (
        lambda: reference.KERNELS["adam_update"](adam, p, m, v, lr, step)
    ), 0.0  # fmt: skip


# -- PyTorch's ----------------------------------------------------------------------------------------------------


def _convolution(a: Attrs) -> tuple[Any, ...]:
    return a["stride"], a["padding"], a["dilation"]


def _gradient(torch: Any, g: Any, x: Any, w: Any, a: Attrs, wanted: list[bool]) -> Any:
    sizes = (*_convolution(a), False, [0, 0], a["groups"])
    return torch.ops.aten.convolution_backward(g, x, w, None, *sizes, [*wanted, False])


def _pool_gradient(torch: Any, g: Any, x: Any, a: Attrs) -> Work:
    """PyTorch looked for the places of the maxima in the forward pass; ours finds them again."""
    window = (a["kernel"], a["stride"], a["padding"], (1, 1), False)
    _, places = torch.ops.aten.max_pool2d_with_indices(x, *window)
    return lambda: torch.ops.aten.max_pool2d_with_indices_backward(g, x, *window, places)


def _named(name: str) -> Callable[..., Work]:
    return lambda torch, a, out, *inputs: partial(getattr(torch, name), *inputs, out=out)


ALL = ("cyx", "numpy", "torch")
UNARY = ("exp", "log", "tanh", "sqrt", "sin", "cos", "sigmoid", "erf")
IN_TORCH: dict[str, Callable[..., Work]] = {  # op -> (torch, attributes, output, inputs) -> the same work
    **{op: _named(op) for op in ("add", "mul", "div", "maximum", "less", *UNARY)},
    "transpose": lambda t, a, out, x: partial(out.copy_, x.T),
    "sum": lambda t, a, out, x: lambda: t.sum(x, a["axes"], out=out),
    "max": lambda t, a, out, x: lambda: t.amax(x, a["axes"], out=out),
    "softmax": lambda t, a, out, x: lambda: t.softmax(x, a["axis"]),
    "log_softmax": lambda t, a, out, x: lambda: t.log_softmax(x, a["axis"]),
    "cross_entropy": lambda t, a, out, x, y: lambda: t.nn.functional.cross_entropy(x, y, reduction="none"),
    "matmul": lambda t, a, out, x, y: partial(
        t.matmul, x.T if a["transpose_a"] else x, y.T if a["transpose_b"] else y, out=out
    ),
    "@": lambda t, a, out, x, y: partial(
        t.matmul, x.mT if a["transpose_a"] else x, y.mT if a["transpose_b"] else y, out=out
    ),
    "conv2d": lambda t, a, out, x, w: lambda: t.nn.functional.conv2d(x, w, None, *_convolution(a), a["groups"]),
    "conv2d_grad_input": lambda t, a, out, g, w: partial(_gradient, t, g, out, w, a, [True, False]),
    "conv2d_grad_weight": lambda t, a, out, g, x: partial(_gradient, t, g, x, out, a, [False, True]),
    "max_pool2d": lambda t, a, out, x: lambda: t.nn.functional.max_pool2d(x, a["kernel"], a["stride"], a["padding"]),
    "max_pool2d_grad": lambda t, a, out, g, x: _pool_gradient(t, g, x, a),
}


def torch_here(threads: int, gradients: bool = False) -> Any:
    """PyTorch on as many threads, with or without remembering for gradients; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    torch.set_grad_enabled(gradients)
    return torch


# -- measured -----------------------------------------------------------------------------------------------------


def seconds(function: Work, budget: float, clock: Callable[[], float]) -> float:
    """Mean time of a burst that fills about `budget` seconds."""
    started, count = clock(), 0
    while True:
        function()
        count += 1
        spent = clock() - started
        if spent > budget:
            return spent / count


def ours(op: str, out: Array, inputs: list[Array], attrs: Attrs) -> Work:
    """The call of the kernel; of a product of tensors the whole way to it."""
    if op != "@":
        return lambda: cpu.call(op, out, inputs, attrs)
    a, b = map(cx.tensor, inputs)
    left, right = a.mT if attrs["transpose_a"] else a, b.mT if attrs["transpose_b"] else b
    return lambda: left @ right


def works_of(row: Row, torch: Any) -> dict[str, Work]:
    """Ours, NumPy's and PyTorch's, of those that have the work."""
    _, op, out, inputs, attrs, numpys, _ = row
    works: dict[str, Work] = {"cyx": ours(op, out, inputs, attrs)}
    if numpys is not None:
        works["numpy"] = numpys
    if torch is not None and op in IN_TORCH:
        works["torch"] = IN_TORCH[op](torch, attrs, *map(torch.from_numpy, (np.zeros_like(out), *inputs)))
    return works


def measure(works: dict[str, Work], rounds: int, budget: float, processor: bool) -> dict[str, float]:
    """Seconds of each, in alternating bursts."""
    found: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            if cpu.get_num_threads() > 1:
                time.sleep(REST_S)
            found[name].append(seconds(works[name], budget, time.process_time if processor else time.perf_counter))
    return {name: (min if processor else statistics.median)(times) for name, times in found.items()}


def errors(row: Row, works: dict[str, Work]) -> dict[str, float]:
    """|theirs - true| / |true| of the norms, of each result that is float32."""
    _, op, out, inputs, attrs, _, _ = row
    if out.dtype != np.float32:
        return {}
    true = np.empty(out.shape)
    wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs]
    reference.call("matmul" if op == "@" else op, true, wide, attrs)
    found = {}
    for name, work in works.items():
        result: Any = work()
        if isinstance(result, tuple):  # of PyTorch's gradients, those that were not asked for are None
            result = next(each for each in result if each is not None)
        if result is None and name == "cyx":
            result = out
        if result is not None:
            found[name] = relative_error(result, true)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    add_threads(parser)
    parser.add_argument("--isa", default=cpu.isa(), help="avx512, avx2 or portable")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="the least time of the processor instead of the median of the clock, for a machine that others use too",
    )
    parser.add_argument(
        "--numerics", choices=list(precision.CLASSES), default="exact", help="the class of our products (default exact)"
    )
    add_save(parser)
    options = parser.parse_args()
    if not alone(options.threads):
        return one_by_one("benchmarks.bench_kernels", options.threads, options.save)
    [threads] = options.threads
    cpu.set_num_threads(threads)
    cpu.set_isa(options.isa)
    precision.set_numerics(options.numerics)
    torch = torch_here(threads)
    rounds, budget = (3, 0.01) if options.quick else (5, 0.05)
    used = precision.numerics()
    print(f"{cpu.isa()}, {used.name} by {used.by}, {threads} thread(s); numpy {np.__version__}", end="; ")
    print(f"torch {torch.__version__}" if torch else "no torch here")
    print(f"{'µs (error)':34}{'cyx':>20}{'numpy':>20}{'torch':>20}{'GFLOP/s':>9}{'x faster':>10}")
    sizes = (64, 128, 256, 512, 1024) if options.quick else (16, 32, 48, 64, 96, 128, 256, 512, 1024, 2048)
    figures: dict[str, dict[str, Any]] = {"us": {}, "error": {}, "gflop_s": {}}
    for row in (*elementwise(), *reductions(), *products(sizes), *tensor_products(), *networks()):
        name, flops = row[0], row[6]
        if options.only not in name:
            continue
        works = works_of(row, torch)
        lost = errors(row, works)
        took = measure(works, rounds, budget, options.processor_time)
        figures["us"][name] = {who: round(time_s * 1e6, 2) for who, time_s in took.items()}
        figures["error"][name] = {who: float(f"{error:.2e}") for who, error in lost.items()}
        if flops:
            figures["gflop_s"][name] = round(flops / took["cyx"] / 1e9, 1)
        cells = [with_error(f"{took[who] * 1e6:.2f}", lost.get(who)) if who in took else "" for who in ALL]
        rate = f"{figures['gflop_s'][name]:9.1f}" if flops else " " * 9
        ratio = f"{times_faster(took):10.2f}" if len(took) > 1 else ""
        print(f"{name:34}{''.join(f'{cell:>20}' for cell in cells)}{rate}{ratio}", flush=True)
    save(options.save, {"isa": cpu.isa(), "numerics": used.name, "threads": {str(threads): figures}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
