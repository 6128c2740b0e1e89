"""From a model's description to its first training step, in a warm process: milliseconds per stage.

    python -m benchmarks.bench_startup            # 30 rounds
    python -m benchmarks.bench_startup --quick    # 5 rounds, without torch.compile

Stages: build (layers to a checked graph), weights, step (forward, backward and update as one graph), passes, plan, and
the first step itself. Targets: everything before the first step in 6 ms for the MLP of examples/digits.toml and 10 ms
for the CNN of examples/digits_cnn.toml. Where torch is installed, the same models are built and trained for one step in
the same rounds, eagerly and (once, it takes seconds) by torch.compile; torch plans nothing, so its eager time is that
of making the modules and of one step. The last line is the time of `import cyxcore` with its tensors, beyond NumPy's
own. Each figure is the median and, behind it, the best of all rounds: on a busy machine the best says what the code
costs.
"""

import argparse
import importlib
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.figures import add_save, save
from cyxcore import graphlearner, layers
from cyxcore.kernels import cpu
from cyxcore.objectives import training_step
from cyxcore.passes import optimise
from cyxcore.plan import Plan
from cyxcore.spec import OptimizerSpec, TrainingSpec

EXAMPLES = Path(__file__).parents[1] / "examples"
STAGES = ("build", "weights", "step", "passes", "plan", "ready", "first step")
IMPORT_TARGET_MS = 150.0
OPTIMIZER = OptimizerSpec(name="adam", learning_rate=0.002)


class Workload(NamedTuple):
    name: str
    layers: list[dict[str, Any]]
    normalize: Literal["standard", "none"]
    batch_size: int
    target_ms: float | None  # for everything before the first step


def workloads() -> list[Workload]:
    def example(name: str) -> tuple[list[dict[str, Any]], int]:
        job = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())
        return job["model"]["layers"], job["training"]["batch_size"]

    deep = [layer for _ in range(99) for layer in ({"kind": "Linear", "out_features": 64}, {"kind": "ReLU"})]
    (mlp, mlp_batch), (cnn, cnn_batch) = example("digits"), example("digits_cnn")
    return [
        Workload("MLP", mlp, "standard", mlp_batch, 6.0),
        Workload("CNN", cnn, "standard", cnn_batch, 10.0),
        Workload("100 layers", [*deep, {"kind": "Linear", "out_features": 10}], "none", 32, None),
    ]


def timed(found: dict[str, float], stage: str, work: Callable[[], Any]) -> Any:
    began_s = time.perf_counter()
    result = work()
    found[stage] = (time.perf_counter() - began_s) * 1000.0
    return result


def ours(work: Workload) -> dict[str, float]:
    """Milliseconds per stage, once."""
    found: dict[str, float] = {}
    batch = work.batch_size
    graph = timed(found, "build", lambda: layers.build(input_shape=[64], layers=work.layers, normalize=work.normalize))
    state = timed(found, "weights", lambda: graphlearner.initial_weights(graph, 7))
    step = timed(found, "step", lambda: training_step(graph, batch, TrainingSpec(optimizer=OPTIMIZER)))
    for param in step.all_parameters:
        state.setdefault(param.name, np.zeros(param.shape, param.dtype))
    smaller = timed(found, "passes", lambda: optimise(step))
    plan = timed(found, "plan", lambda: Plan(smaller, state, "cpu", optimised=False))
    found["ready"] = sum(found.values())
    plan.inputs["x"][...], plan.inputs["target"][...] = 0.5, 3
    plan.inputs["learning_rate"][...], plan.inputs["step"][...] = OPTIMIZER.learning_rate, 1
    timed(found, "first step", plan.run)
    return found


def torch_modules(work: Workload) -> Any:
    """The same layers as a torch Sequential: our kinds and options are torch's, sizes of inputs aside."""
    nn = importlib.import_module("torch.nn")

    def made() -> Iterator[Any]:
        width, channels = 64, 1
        for layer in work.layers:
            options = {key: value for key, value in layer.items() if key != "kind"}
            if layer["kind"] == "Linear":
                width_before, width = width, options.pop("out_features")
                yield nn.Linear(width_before, width, **options)
            elif layer["kind"] == "Conv2d":
                channels_before, channels = channels, options.pop("out_channels")
                yield nn.Conv2d(channels_before, channels, **options)
            elif layer["kind"] == "BatchNorm2d":
                yield nn.BatchNorm2d(channels, **options)
            elif layer["kind"] == "Reshape":
                yield nn.Unflatten(1, options["shape"])
            else:
                width = 128 if layer["kind"] == "Flatten" else width  # of digits_cnn: 32 channels of 2 x 2
                yield getattr(nn, layer["kind"])(**options)

    return nn.Sequential(*made())


def torch_step(work: Workload, compiled: bool) -> dict[str, float]:
    """Milliseconds to make the modules with their optimiser, and of the first step."""
    torch = importlib.import_module("torch")
    found: dict[str, float] = {}

    def make() -> Any:
        modules = torch_modules(work)
        return modules, torch.optim.Adam(modules.parameters(), lr=OPTIMIZER.learning_rate)

    modules, optimizer = timed(found, "ready", make)
    x, target = torch.full((work.batch_size, 64), 0.5), torch.full((work.batch_size,), 3)
    forward = torch.compile(modules) if compiled else modules

    def step() -> None:
        torch.nn.functional.cross_entropy(forward(x), target).backward()
        optimizer.step()

    timed(found, "first step", step)
    return found


def figures(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {"p50_ms": round(float(statistics.median(found)), 2), "best_ms": round(min(found), 2)}


def per_stage(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {stage: figures(row[stage] for row in rows) for stage in rows[0]}


def imports(rounds: int) -> dict[str, float]:
    """`import cyxcore` and its Tensor, NumPy being there already, in fresh processes."""

    code = "import time, numpy; began = time.perf_counter(); import cyxcore; cyxcore.Tensor; "
    code += "print(1000 * (time.perf_counter() - began))"
    command = [sys.executable, "-c", code]
    return figures(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)
    )


def measure(quick: bool) -> dict[str, Any]:
    """Medians by workload and program, the programs taking turns."""
    rounds = 5 if quick else 30
    result: dict[str, Any] = {}
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch:
        importlib.import_module("torch").set_num_threads(1)
    cpu.set_num_threads(1)
    for work in workloads():
        ours(work)  # imports and first touches
        rows: list[dict[str, float]] = []
        theirs: list[dict[str, float]] = []
        if has_torch:
            torch_step(work, compiled=False)
        for _ in range(rounds):
            rows.append(ours(work))
            if has_torch:
                theirs.append(torch_step(work, compiled=False))
        result[work.name] = {"cyx": per_stage(rows), "target_ms": work.target_ms}
        if has_torch:
            result[work.name]["torch eager"] = per_stage(theirs)
            if not quick:
                result[work.name]["torch.compile"] = per_stage([torch_step(work, compiled=True)])
    result["import"] = imports(3 if quick else 9)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 30, no torch.compile")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_save(parser)
    options = parser.parse_args()
    found = measure(options.quick)
    save(options.save, found)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"description → first training step, ms, one thread, {platform.processor() or platform.machine()}")
    print(f"{'':26}" + "".join(f"{stage:>18}" for stage in STAGES))
    for work in workloads():
        for program in ("cyx", "torch eager", "torch.compile"):
            if program in found[work.name]:
                stages = found[work.name][program]
                cells = (
                    f"{stages[s]['p50_ms']:.2f} / {stages[s]['best_ms']:.2f}" if s in stages else "" for s in STAGES
                )
                print(f"{work.name:11}{program:15}" + "".join(f"{cell:>18}" for cell in cells))
        if work.target_ms is not None:
            print(f"{'':11}{'target: ready in less than ' + format(work.target_ms, 'g') + ' ms':>40}")
    whole = found["import"]
    print(f"import beyond NumPy: {whole['p50_ms']} / {whole['best_ms']} ms (target < {IMPORT_TARGET_MS:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
