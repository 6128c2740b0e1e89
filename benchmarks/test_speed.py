"""What a change does to our own times: kernels, functions and training steps, stored and compared by pytest-benchmark.

    python -m pytest benchmarks/test_speed.py --benchmark-save before          # then the change, and a build
    python -m pytest benchmarks/test_speed.py --benchmark-compare --benchmark-group-by name
    python -m pytest benchmarks/test_speed.py --benchmark-compare --benchmark-compare-fail median:10%
    python -m pytest benchmarks/test_speed.py -k "matmul or gpt" --benchmark-max-time 0.2

One thread, float32, the rows of bench_kernels, bench_functions and bench_train, without their peers and errors: those
programs are for how we stand beside others in one run, this is for how we stand beside ourselves of yesterday. It is
not among the tests (`pytest` alone runs tests/). With --benchmark-disable every row runs once.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from benchmarks import bench_functions, bench_kernels, bench_train
from cyxcore import functional as F
from cyxcore.kernels import cpu

Timed = Callable[[Callable[[], object]], object]  # the fixture `benchmark`

KERNELS = {
    row[0]: row
    for row in chain(
        bench_kernels.elementwise(),
        bench_kernels.reductions(),
        bench_kernels.products((64, 256, 1024)),
        bench_kernels.networks(),
    )
}
FUNCTIONS = {row.name: row for row in bench_functions.rows(1_000_000)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cpu.get_num_threads()
    cpu.set_num_threads(1)
    yield
    cpu.set_num_threads(before)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.benchmark(group="kernels")
def test_kernel(benchmark: Timed, name: str) -> None:
    _, op, out, inputs, attrs, _, _ = KERNELS[name]
    benchmark(bench_kernels.ours(op, out, inputs, attrs))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.benchmark(group="functions of 10⁶ numbers")
def test_function(benchmark: Timed, name: str) -> None:
    benchmark(bench_functions.there(FUNCTIONS[name], cx, F))


@pytest.mark.parametrize("name", [name for name, row in FUNCTIONS.items() if row.back])
@pytest.mark.benchmark(group="functions of 10⁶ numbers, and back")
def test_function_and_back(benchmark: Timed, name: str) -> None:
    benchmark(bench_functions.there_and_back(FUNCTIONS[name], cx, F))


@pytest.mark.parametrize("name", bench_train.MODELS)
@pytest.mark.benchmark(group="compiled training steps")
def test_step(benchmark: Timed, name: str) -> None:
    cx.manual_seed(0)
    case = bench_train.MODELS[name]
    batch: Any = case.inputs(np.random.default_rng(0))
    _, training = bench_train.ours(case, None, batch)
    for _ in range(2):  # the plan is made, and traced again
        training.step()
    benchmark(training.step)
