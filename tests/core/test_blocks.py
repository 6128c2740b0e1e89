"""Memory of large arrays is kept for the next ones (cyxcore/kernels/src/blocks.c)."""

import subprocess
import sys

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.kernels import cpu

MIB = 1 << 20


def _address(x):
    return np.asarray(x).__array_interface__["data"][0]


@pytest.mark.parametrize("make", [lambda x: x + x, lambda x: cx.linalg.vector_norm(x, axis=1), cx.functional.gelu])
def test_an_array_gets_the_memory_of_one_that_is_gone(make):
    x = cx.ones(1000, 1000)
    make(x)
    first = make(x)
    place = _address(first)
    del first
    assert _address(make(x)) == place


def test_what_is_kept_goes_back_when_asked_for():
    x = cx.ones(4 * MIB) + 1
    del x
    assert cpu.kept_bytes() >= 16 * MIB
    cpu.release_kept(3 * MIB)
    assert cpu.kept_bytes() <= 3 * MIB
    cpu.release_kept()
    assert cpu.kept_bytes() == 0


def test_a_loop_of_large_operations_asks_the_system_for_no_memory():
    resource = pytest.importorskip("resource")
    x = cx.ones(1000, 1000)

    def work():
        y = x * x
        z = y + x
        return (z - y) * z

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    work()
    work()
    before = faults()
    for _ in range(20):
        work()
    assert faults() - before < 1000  # 20 times 3,900 pages, were they given back each time


def test_kept_and_used_memory_are_never_much_more_than_was_used_at_the_peak():
    program = f"""
import cyxcore as cx
from cyxcore.kernels import cpu
one = cx.ones({MIB})
many = [one + 1 for _ in range(20)]  # 80 MiB
del many
assert cpu.kept_bytes() >= 80 * {MIB}, cpu.kept_bytes()
large = cx.ones(18 * {MIB}) + 1  # 72 MiB, which no block of those is large enough for
assert cpu.kept_bytes() <= (80 * 1.25 * 1.125 - 72) * {MIB}, cpu.kept_bytes()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tensor_that_no_memory_is_left_for_says_so():
    pytest.importorskip("resource")
    program = f"""
import resource
import cyxcore as cx
resource.setrlimit(resource.RLIMIT_AS, (2048 * {MIB}, 2048 * {MIB}))
try:
    cx.ones(1 << 20, 1) + cx.ones(1 << 10)  # 4 GiB
except MemoryError:
    print((cx.ones(3) + 1).tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[2.0, 2.0, 2.0]\n", done.stderr
