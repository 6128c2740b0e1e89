"""The device `cuda` beside torch on the same card, in one run.

    python -m benchmarks.gpu                                  # everything; minutes, most of them torch.compile's
    python -m benchmarks.gpu --quick                          # three models, no torch.compile
    python -m benchmarks.gpu --save benchmarks/results/gpu    # also writes gpu.json and gpu.md

A training step is timed from the host, its batch on the card already, with a wait for the device after each: the
median of many. Cyx runs what cx.compile made of the step. Kernels are timed by CUDA events around
a burst, the median of bursts. Who is compared runs in turn, in one process, round by round. fp32 is float32 products
throughout (class cuda/1; torch with TF32 off), tf32 the faster products of both. Without torch the table has Cyx alone;
without a device the program says so and ends with status 0.

Products are made by cuBLAS and by cuBLASLt ("cyx cublaslt", what CYX_CUBLASLT=1 chooses), alone and with a bias and
ReLU behind them, and compared with each other: a line says by how much they differ, and whether what cuBLASLt makes in
one launch has the bits of three. Where they differ by more than rounding, or in bits, the program ends with status 1.
"""

import argparse
import datetime
import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.figures import add_save, beside, commit, save
from benchmarks.gpu import models, peers
from cyxcore import device as devices
from cyxcore.device import Call
from cyxcore.errors import CyxError

Row = dict[str, Any]
DEVICES = {"fp32": "cuda", "tf32": "cuda-tf32"}
PRECISIONS = {"fp32": "ieee", "tf32": "tf32"}
ROUNDING = {"fp32": 1e-5, "tf32": 1e-2}  # of products of up to 8192 terms in another order, of the largest


def rounds(steps: Mapping[str, Callable[[], Any]], wait: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Median microseconds of a step of each, measured in turn: five rounds, each `seconds` / 5 long."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(5):
            step()
        wait()
    for _ in range(5):
        for name, step in steps.items():
            end, times = time.perf_counter() + seconds / 5, list[float]()
            while time.perf_counter() < end or len(times) < 5:
                begin = time.perf_counter()
                step()
                wait()
                times.append(time.perf_counter() - begin)
            found[name].append(statistics.median(times) * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def burst(cupy: Any, stream: Any, action: Callable[[], Any], count: int = 20, repeats: int = 7) -> float:
    """Microseconds of one action on the device: the median over bursts, by events."""
    action()
    begin, end, times = cupy.cuda.Event(), cupy.cuda.Event(), []
    for _ in range(repeats):
        stream.synchronize()
        begin.record(stream)
        for _ in range(count):
            action()
        end.record(stream)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) * 1000 / count)
    return statistics.median(times)


class Bench:
    def __init__(self, quick: bool, no_compile: bool) -> None:
        import cupy

        self.cupy, self.quick, self.no_compile = cupy, quick, no_compile
        self.torch = peers.load_torch()
        self.rows: list[Row] = []
        self.wrong: list[str] = []
        self._lt: dict[str, Any] = {}  # backends whose products are cuBLASLt's, by precision; None: it does not work

    def add(self, group: str, what: str, unit: str, values: Mapping[str, float], better: str) -> None:
        shown = {name: float(f"{value:.4g}") for name, value in values.items()}
        self.rows.append({"group": group, "what": what, "unit": unit, "better": better, **shown})
        print(
            f"{group:<10} {what:<34} {unit:<8} " + "  ".join(f"{name} {value}" for name, value in shown.items()),
            flush=True,
        )

    # single ops ---------------------------------------------------------------------------------

    def _both(
        self, precision: str, op: str, inputs: list[Any], attrs: Any, shape: tuple[int, ...], theirs: Any
    ) -> dict[str, float]:
        """Microseconds of an op, by Cyx and by torch's function of the same inputs."""
        cuda = devices.backend(DEVICES[precision])
        held, out = [cuda.put(x) for x in inputs], cuda.empty(shape, "float32")
        run = cuda.program([Call(op, out, tuple(held), attrs)], results=[out])
        program: Any = run.__self__  # type: ignore[attr-defined]

        def ours() -> None:
            with program.cuda.stream:
                program.direct()

        found = {"cyx": burst(self.cupy, program.cuda.stream, ours)}
        if self.torch is not None:
            found["torch"] = self._theirs(precision, inputs, theirs)
        return found

    def _theirs(self, precision: str, inputs: list[Any], theirs: Any) -> float:
        peers.set_precision(self.torch, precision)
        tensors = [self.torch.from_numpy(x).cuda() for x in inputs]
        stream = self.cupy.cuda.Stream.from_external(self.torch.cuda.current_stream())
        return burst(self.cupy, stream, lambda: theirs(*tensors))

    def lt(self, precision: str) -> Any:
        if precision not in self._lt:
            from cyxcore.kernels.gpu.cuda import Cuda

            made = Cuda(PRECISIONS[precision], lt=True)  # warns where cuBLASLt does not work
            self._lt[precision] = made if made.lt else None
            relu = "ours" if made.lt and made.lt.relu else "not ours: a kernel makes it"
            print(f"cuBLASLt {precision}: {'works' if made.lt else 'does not work'}, its ReLU is {relu}", flush=True)
            if not made.lt:
                self.wrong.append(f"cuBLASLt {precision} does not work")
        return self._lt[precision]

    def _beside_lt(self, what: str, precision: str, inputs: list[Any], attrs: Any, ends: bool) -> dict[str, float]:
        """Microseconds of a product by cuBLAS and by cuBLASLt, which are compared. ends: + inputs[2], then ReLU."""
        found, results, launched = {}, {}, {}
        cuda, lt = devices.backend(DEVICES[precision]), self.lt(precision)
        for name, backend in {"cyx": cuda, "cyx cublaslt": lt}.items():
            if backend is None:
                continue
            x, y, *bias = (backend.put(x) for x in inputs)
            shape = (x.shape[0], y.shape[0] if attrs["transpose_b"] else y.shape[1])
            memory = backend.memory(3 * 4 * shape[0] * shape[1])
            outs = [backend.view(memory, place * 4 * shape[0] * shape[1], shape, "float32") for place in range(3)]
            calls = [Call("matmul", outs[0], (x, y), attrs)]
            if ends:
                calls += [Call("add", outs[1], (outs[0], bias[0]), {}), Call("relu", outs[2], (outs[1],), {})]
            run = backend.program(calls, scratch=memory, results=[calls[-1].out])
            program: Any = run.__self__

            def direct(program: Any = program) -> None:
                with program.cuda.stream:
                    program.direct()

            found[name], launched[name] = burst(self.cupy, backend.stream, direct), len(program.launches)
            run()
            run()
            results[name] = calls[-1].out.get(stream=backend.stream)  # of the recorded graph
            for call in calls:
                backend.call(call.op, call.out, call.inputs, call.attrs)
            same = np.array_equal(results[name], calls[-1].out.get(stream=backend.stream))
            if not same:
                self.wrong.append(f"{what}: {name} has other bits in a program than call by call")
        if lt is not None:
            ours, theirs = results.values()
            differ = float(np.abs(ours - theirs).max() / np.abs(ours).max())
            print(f"{'':<10} {what}: cuBLASLt differs by {differ:.1e} of the largest; launches {launched}", flush=True)
            if not differ <= ROUNDING[precision]:
                self.wrong.append(f"{what}: cuBLASLt differs from cuBLAS by {differ:.1e} of the largest")
        return found

    def linear(self) -> None:
        """relu(x @ w.T + b): where products of the transformers and perceptrons of `models` have most of their time."""
        rng = np.random.default_rng(4)
        functions: Any = None if self.torch is None else self.torch.nn.functional
        shapes = [(512, 784, 1024), (2048, 256, 1024), (4096, 1024, 4096), (8192, 4096, 4096)]
        for rows, inner, columns in shapes[:2] if self.quick else shapes:
            x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((rows, inner), (columns, inner), (columns,)))
            attrs = {"transpose_a": False, "transpose_b": True}
            for precision in DEVICES:
                what = f"{rows}×{inner} → {columns} {precision}"
                found = self._beside_lt(what, precision, [x, w, b], attrs, ends=True)
                if self.torch is not None:
                    found["torch"] = self._theirs(precision, [x, w, b], lambda *a: functions.linear(*a).relu())
                rates = {name: 2 * rows * inner * columns / us / 1e6 for name, us in found.items()}
                self.add("linear", what, "TFLOP/s", rates, "more")

    def matmul(self) -> None:
        rng = np.random.default_rng(1)
        for size in (256, 1024, 4096) if self.quick else (256, 512, 1024, 2048, 4096, 8192):
            a, b = (rng.normal(size=(size, size)).astype(np.float32) for _ in range(2))
            for precision in DEVICES:
                attrs = {"transpose_a": False, "transpose_b": False}
                found = self._beside_lt(f"{size}³ {precision}", precision, [a, b], attrs, ends=False)
                if self.torch is not None:
                    found["torch"] = self._theirs(precision, [a, b], lambda a, b: a @ b)
                rates = {name: 2 * size**3 / us / 1e6 for name, us in found.items()}
                self.add("matmul", f"{size}³ {precision}", "TFLOP/s", rates, "more")

    def convolution(self) -> None:
        rng = np.random.default_rng(2)
        cases = [((32, 64, 32, 32), 64, 3, 1, 1), ((64, 32, 26, 26), 64, 3, 0, 1), ((32, 128, 28, 28), 128, 3, 1, 1)]
        for shape, out_channels, kernel, padding, stride in cases[:1] if self.quick else cases:
            x = rng.normal(size=shape).astype(np.float32)
            w = rng.normal(size=(out_channels, shape[1], kernel, kernel)).astype(np.float32)
            side = (shape[2] + 2 * padding - kernel) // stride + 1
            result = (shape[0], out_channels, side, side)
            g = rng.normal(size=result).astype(np.float32)
            pairs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": 1}
            flops = 2 * g.size * w[0].size
            named = f"{'×'.join(map(str, shape))} → {out_channels}, {kernel}×{kernel}"
            for precision in DEVICES:
                grad: Any = None if self.torch is None else self.torch.nn.grad
                parts: list[tuple[str, str, list[Any], Any, tuple[int, ...], Any]] = [
                    ("", "conv2d", [x, w], pairs, result,
                     lambda x, w: self.torch.nn.functional.conv2d(x, w, padding=padding)),  # noqa: B023
                    (" d/dx", "conv2d_grad_input", [g, w], {**pairs, "input_shape": shape}, shape,
                     lambda g, w: grad.conv2d_input(shape, w, g, padding=padding)),  # noqa: B023
                    (" d/dw", "conv2d_grad_weight", [g, x], {**pairs, "weight_shape": w.shape}, w.shape,
                     lambda g, x: grad.conv2d_weight(x, w.shape, g, padding=padding)),  # noqa: B023
                ]  # fmt: skip
                for suffix, op, inputs, attrs, out, theirs in parts:
                    found = self._both(precision, op, inputs, attrs, out, theirs)
                    rates = {name: flops / us / 1e6 for name, us in found.items()}
                    self.add("conv", f"{named}{suffix} {precision}", "TFLOP/s", rates, "more")

    def memory(self) -> None:
        """Ops that do little more than read and write."""
        rng, n = np.random.default_rng(3), 2**22 if self.quick else 2**26
        x, y = (rng.normal(size=n).astype(np.float32) for _ in range(2))
        rows, torch = x.reshape(-1, 1024), self.torch
        bias = y[:1024]
        functions: Any = None if torch is None else torch.nn.functional
        cases: list[tuple[str, str, list[Any], Any, tuple[int, ...], int, Any]] = [
            ("add", "add", [x, y], {}, (n,), 3 * n, lambda a, b: a + b),
            ("add a row", "add", [rows, bias], {}, rows.shape, 2 * n, lambda a, b: a + b),
            ("exp", "exp", [x], {}, (n,), 2 * n, lambda a: a.exp()),
            ("sum of all", "sum", [x], {"axes": (0,), "keepdims": False}, (), n, lambda a: a.sum()),
            ("sum of rows", "sum", [rows], {"axes": (1,), "keepdims": False}, rows.shape[:1], n, lambda a: a.sum(1)),
            ("sum of columns", "sum", [rows], {"axes": (0,), "keepdims": False}, (1024,), n, lambda a: a.sum(0)),
            ("softmax of rows", "softmax", [rows], {"axis": 1}, rows.shape, 2 * n, lambda a: functions.softmax(a, 1)),
            ("transpose", "transpose", [rows], {"axes": (1, 0)}, rows.shape[::-1], 2 * n, lambda a: a.T.contiguous()),
        ]  # fmt: skip
        for name, op, inputs, attrs, shape, moved, theirs in cases:
            found = self._both("fp32", op, inputs, attrs, shape, theirs)
            self.add("memory", f"{name}, {n:,}", "GB/s", {k: moved * 4 / us / 1e3 for k, us in found.items()}, "more")

    # whole steps ----------------------------------------------------------------------------------

    def launches(self) -> None:
        """A hundred small additions: what a launch costs."""
        cuda = devices.backend("cuda")
        arrays = [cuda.put(np.ones(1024, np.float32)) for _ in range(3)]
        calls = [Call("transpose", arrays[k % 2], (arrays[1 - k % 2],), {"axes": (0,)}) for k in range(100)]
        run = cuda.program(calls, results=arrays)
        program: Any = run.__self__  # type: ignore[attr-defined]
        adds = [Call("add", arrays[2], (arrays[0], arrays[1]), {})] * 100

        def direct() -> None:
            with program.cuda.stream:
                program.direct()

        def eager() -> None:
            for call in adds:
                cuda.call(call.op, call.out, call.inputs, call.attrs)

        steps: dict[str, Any] = {"direct": direct, "graph": run, "eager call": eager}
        found = rounds(steps, program.cuda.stream.synchronize, 1.0)
        self.add("launch", "one of 100 small kernels", "us", {k: us / 100 for k, us in found.items()}, "less")

    def training(self) -> None:
        for load in models.workloads(self.quick):
            for precision, device in DEVICES.items():
                step, compiled = models.cyx_step(load, device)
                steps: dict[str, Callable[[], Any]] = {"cyx": step}
                if self.torch is not None:
                    peers.set_precision(self.torch, precision)
                    for name, make in peers.PEERS.items():
                        if self.no_compile and name == "torch.compile":
                            continue
                        try:
                            steps[name] = make(self.torch, load)
                        except Exception as error:  # a peer that fails is left out, and said so
                            print(f"{load.name} {precision}: {name} left out: {str(error)[:200]}")
                wait = self.torch.cuda.synchronize if self.torch is not None else lambda: None
                found = rounds(steps, wait, 1.0 if self.quick else 1.25)
                self.add("step", f"{load.name} {precision}", "us", found, "less")
                (traced,) = compiled._plans.values()
                plan: Any = traced.plan
                kernels = len(plan.run.__self__.launches)
                self.rows[-1].update(calls=len(plan), launches=kernels, arena_bytes=plan.arena_bytes)
                print(
                    f"{'':<10} {len(plan)} calls, {kernels} launches, arena {plan.arena_bytes / 2**20:.1f} MiB",
                    flush=True,
                )

    def environment(self) -> dict[str, Any]:
        runtime = self.cupy.cuda.runtime
        about = runtime.getDeviceProperties(0)
        packages = ("cupy-cuda13x", "cupy-cuda12x", "triton", "numpy", "torch")
        versions = {}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        driver = runtime.driverGetVersion()
        return {
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "card": about["name"].decode(),
            "compute_capability": f"{about['major']}.{about['minor']}",
            "memory_gib": round(about["totalGlobalMem"] / 2**30, 1),
            "cuda_driver": f"{driver // 1000}.{driver % 1000 // 10}",
            "driver": _driver_version(),
            "python": sys.version.split()[0],
            **versions,
        }


def _driver_version() -> str:
    from cyxnode import hardware

    found = hardware.gpus()
    return found[0].driver if found else "not read (install nvidia-ml-py)"


def markdown(result: Mapping[str, Any]) -> str:
    about = result["environment"]
    lines = [
        "# The device `cuda` beside torch",
        "",
        "Written by `python -m benchmarks.gpu --save benchmarks/results/gpu`: its docstring says what is timed.",
        "",
        "; ".join(f"{name} {value}" for name, value in about.items()) + ".",
    ]
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["group"] == group]
        known = ("group", "what", "unit", "better", "calls", "launches", "arena_bytes")
        columns = list(dict.fromkeys(name for row in rows for name in row if name not in known))
        better = "more is better" if rows[0]["better"] == "more" else "less is better"
        peers_of = [name for name in columns if name.startswith("torch")]
        extra = ["cyx ÷ best torch"] if peers_of else []
        lines += ["", f"## {group}: {rows[0]['unit']}, {better}", ""]
        lines += ["| | " + " | ".join(columns + extra) + " |", "|---" * (1 + len(columns) + len(extra)) + "|"]
        for row in rows:
            cells = [str(row.get(name, "–")) for name in columns]
            held = [row[name] for name in peers_of if name in row]
            if extra:
                best = (max(held) if rows[0]["better"] == "more" else min(held)) if held else 0.0
                ratio = row["cyx"] / best if rows[0]["better"] == "more" and best else best / row["cyx"]
                cells.append(f"{ratio:.2f}× as fast" if held else "–")
            lines.append(f"| {row['what']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="The device cuda beside torch.")
    parser.add_argument("--quick", action="store_true", help="small sizes, three models, no torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes")
    parser.add_argument(
        "--only", default="", help="comma-separated: matmul,linear,convolution,memory,launches,training"
    )
    add_save(parser, "NAME.json and NAME.md")
    options = parser.parse_args()
    try:
        devices.backend("cuda")
    except CyxError as error:
        print(f"nothing to measure: {error}")
        return 0
    bench = Bench(options.quick, options.no_compile or options.quick)
    everything = ("launches", "memory", "matmul", "linear", "convolution", "training")
    for name in options.only.split(",") if options.only else everything:
        getattr(bench, name)()
    result = {"environment": bench.environment(), "rows": bench.rows}
    if options.save:
        save(options.save, result)
        beside(options.save, "md").write_text(markdown(result))
    for line in bench.wrong:
        print(f"WRONG: {line}")
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
