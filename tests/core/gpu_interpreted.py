"""The device's kernels on NumPy arrays, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.core.gpu_interpreted

A program of its own, since Triton decides at import whether it compiles or interprets. Prints one line per failure and
ends with status 1 if there was one. test_gpu_kernels.py runs it.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cyxcore.graphlearner import initial_weights
from cyxcore.kernels.gpu import fusion, table
from cyxcore.objectives import training_step
from cyxcore.plan import Plan
from cyxcore.spec import ModelSpec, OptimizerSpec, TrainingSpec
from tests.core.gpu_runtimes import Interpreted
from tests.core.kernelcases import CASES, HOST_ONLY, Case

Array = np.ndarray[Any, Any]

PER_OP = 6  # cases; the interpreter takes milliseconds for what a device does in microseconds
LARGEST = 3000  # elements
SLACK = 4.0  # as in test_gpu.py


def chosen(op: str) -> list[Case]:
    """Cases of every dtype, spread over the shapes there are."""
    small = [case for case in CASES[op] if max(x.size for x in case.inputs) <= LARGEST and case.expected().size]
    return small[:: max(1, len(small) // PER_OP)]


def failure(case: Case) -> str:
    rt, expected = Interpreted(), case.expected()
    out = np.full(expected.shape, 77, expected.dtype)
    inputs = [np.array(x, order="C") for x in case.inputs]
    try:
        for launch in table.launches(rt, case.op, out, inputs, case.attrs):
            launch()
        if case.tolerance == 0.0:
            np.testing.assert_array_equal(out, expected)
        else:
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
            np.testing.assert_allclose(out, expected, rtol=0, atol=max(case.tolerance * SLACK, 2e-15) * largest)
        assert not rt.faults.any(), "a fault was reported"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def span(array: Array) -> fusion.Span:
    start = int(array.__array_interface__["data"][0])
    return start, start + array.nbytes


def plan() -> Plan:
    """A small training step: convolution, norm, pooling, dropout, linear, ReLU, linear, AdamW."""
    layers: list[dict[str, Any]] = [
        {"kind": "Conv2d", "out_channels": 3, "kernel_size": 3, "padding": 1, "bias": False},
        {"kind": "BatchNorm2d"},
        {"kind": "ReLU"},
        {"kind": "MaxPool2d", "kernel_size": 2},
        {"kind": "Flatten"},
        {"kind": "Dropout", "p": 0.25},
        {"kind": "Linear", "out_features": 6},
        {"kind": "ReLU"},
        {"kind": "Linear", "out_features": 5},
    ]
    from cyxcore.layers import build

    model = build(ModelSpec(input=[1, 6, 6], layers=layers))
    step = training_step(model, 8, TrainingSpec(optimizer=OptimizerSpec(name="adamw", learning_rate=0.01)))
    made = Plan(step, initial_weights(step, 3))
    made.inputs["x"][...] = np.random.default_rng(4).normal(size=(8, 1, 6, 6))
    made.inputs["target"][...] = np.arange(8) % 5
    made.inputs["learning_rate"][...] = 0.01
    return made


def run_chained(calls: Sequence[Any], results: Sequence[Array], scratch: fusion.Span, endings: bool = False) -> int:
    """A program as the device would run it. Returns how many kernels it took."""
    rt, count = Interpreted(), 0
    for part in fusion.parts(calls, span, scratch, results, endings):
        if part.steps:
            launches = table.chain(rt, part.inputs, part.steps, part.stores)
        elif part.ending:
            launches = table.ended_product(rt, calls[part.first], part.ending)
        else:
            call = calls[part.first]
            launches = table.launches(rt, call.op, call.out, part.inputs, call.attrs)
        for launch in launches:
            launch()
        count += len(launches)
    return count


def arena(made: Plan) -> fusion.Span:
    """From the first to the last byte of what is computed, parameters left out."""
    roots = [array.base for array in made.arrays if array.base is not None and array.base.dtype == np.uint8]
    return span(max(roots, key=lambda root: root.nbytes)) if roots else (0, 0)


def step_failures(endings: bool) -> Iterator[str]:
    """Three training steps, chained on the interpreter and by the CPU's kernels, each from its own state.

    endings: products make their bias and ReLU.
    """
    ours, theirs = plan(), plan()
    parts = fusion.parts(ours.calls, span, arena(ours), ours.outputs, endings)
    ended = [part.ending.relu for part in parts if part.ending]
    if ended != ([True, False] if endings else []):
        yield f"step: the products that end with a chain are {ended}"
    for number in (1, 2, 3):
        for made in (ours, theirs):
            made.inputs["step"][...] = number
            made.key[:] = 5, number
        kernels = run_chained(ours.calls, ours.outputs, arena(ours), endings)
        theirs.run()
        if kernels >= len(ours.calls):
            yield f"step: {kernels} kernels for {len(ours.calls)} calls: nothing was chained"
        if abs(float(ours.outputs[0]) - float(theirs.outputs[0])) > 1e-4:
            yield f"step {number}: loss {float(ours.outputs[0])}, the cpu has {float(theirs.outputs[0])}"
    for place, node in enumerate(ours.graph.nodes):
        if node.op == "param" and not np.allclose(ours.arrays[place], theirs.arrays[place], rtol=0, atol=2e-3):
            yield f"step: {node.attrs['name']} differs from the cpu's"


def fault_failures() -> Iterator[str]:
    rt, out = Interpreted(), np.zeros((2, 3), np.float32)
    inputs = [np.zeros((2, 3), np.float32), np.array([0, 2])]
    for launch in table.launches(rt, "take", out, inputs, {"axis": 0}):
        launch()
    if rt.faults.tolist() != [1, 0, 0, 0, 0, 0]:
        yield f"take: an index out of range left the faults {rt.faults.tolist()}"


def main(ops: Sequence[str]) -> int:
    if os.environ.get("TRITON_INTERPRET") != "1":
        print("set TRITON_INTERPRET=1")
        return 2
    warnings.simplefilter("ignore")
    found, count = [], 0
    for op in ops or sorted(CASES.keys() - HOST_ONLY):
        for case in chosen(op):
            count += 1
            said = failure(case)
            if said:
                found.append(f"{op} {[(x.shape, x.dtype.name) for x in case.inputs]} {case.attrs}: {said}")
    found += [*fault_failures(), *step_failures(endings=False), *step_failures(endings=True)]
    print(*found, f"{count} cases, {len(found)} failures", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
