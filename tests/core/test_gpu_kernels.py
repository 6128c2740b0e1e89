"""The kernels of the device `cuda` on machines without one: interpreted, and compiled for the devices there are."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cyxcore.ops import KERNEL_OPS
from tests.core.kernelcases import CASES

WITHOUT_TRITON = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(WITHOUT_TRITON, reason="triton is not installed: pip install 'cyx[gpu-test]'")
COMPILED_PER_OP = 2


@needs_triton
@pytest.mark.slow
def test_every_kernel_interpreted_agrees_with_its_definition() -> None:
    """In a process of its own, since Triton decides at import whether it compiles or interprets."""
    command = [sys.executable, "-m", "tests.core.gpu_interpreted"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        command, cwd=root, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=110
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


@needs_triton
def test_every_op_of_a_graph_has_a_kernel() -> None:
    from cyxcore.kernels.gpu import table

    assert [op for op in KERNEL_OPS if op in CASES and not table.supports(op)] == []


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_within_what_a_device_has(
    arch: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compiling.compiled itself refuses too much shared memory and parameters other than expected."""
    from tests.core.gpu_runtimes import Compiled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    from cyxcore.kernels.gpu import table

    rt = Compiled(arch)
    for op in ("add", "where", "adam_update", "sum", "argmax", "softmax", "softmax_grad", "cross_entropy_grad",
               "take_grad", "conv2d", "conv2d_grad_input", "conv2d_grad_weight", "max_pool2d_grad",
               "uniform"):  # fmt: skip
        for case in [case for case in CASES[op] if case.expected().size][:COMPILED_PER_OP]:
            out = np.empty(case.expected().shape, case.expected().dtype)
            table.launches(rt, op, out, [np.array(x, order="C") for x in case.inputs], case.attrs)
    assert len(rt.binaries) >= 13
    assert all(binary.code[:4] == b"\x7fELF" for binary in rt.binaries.values())
