"""The kernels of the device `cuda` on machines without one: interpreted, compiled for the devices there are, and
launched on a driver that only writes down what it gets."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cyxcore.errors import KernelError
from cyxcore.ops import KERNEL_OPS
from tests.core.gpu_libraries import Driver
from tests.core.kernelcases import CASES, HOST_ONLY

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

    assert [op for op in KERNEL_OPS if op in CASES.keys() - HOST_ONLY and not table.supports(op)] == []


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_compile_within_what_a_device_has(
    arch: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """compiling.compiled itself refuses too much shared memory and parameters other than expected.

    A block's registers are 65,536; what does not fit in those of a thread would lie in its local memory. The stack is
    that of CUDA's sin and cos for numbers from 10^5 on.
    """
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
    for binary in rt.binaries.values():
        registers, stack, local = resources(binary.code, tmp_path_factory.mktemp("cubin") / "kernel")
        assert registers * 32 * binary.warps <= 65_536 and stack <= 32 and local == 0, binary.name


def resources(code: bytes, path: Path) -> tuple[int, int, int]:
    """Registers, bytes of stack and of local memory of a thread, as the tool that comes with Triton reads them."""
    import triton

    path.write_bytes(code)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found, said
    registers, stack, local = map(int, found.groups())
    return registers, stack, local


@needs_triton
@pytest.mark.slow
def test_a_launch_hands_the_driver_what_the_kernel_was_asked_for(driver: tuple[Driver, Any]) -> None:
    from cyxcore.kernels.gpu import compiling, table

    fake, module = driver
    asked: list[tuple[Any, ...]] = []

    class Cuda(module.Cuda):  # type: ignore[misc]
        xp = np

        def __init__(self) -> None:
            self.arch, self.precision, self.stream = 90, "ieee", SimpleNamespace(ptr=0x5EED)
            self.faults = np.zeros(len(table.FAULTY), np.int32)
            self._functions, self._modules = {}, []

        def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
            return np.empty(shape, dtype)

        def kernel(self, function: Any, grid: Any, args: Any, constants: Any, warps: int = 4) -> Any:
            asked.append((function, grid, args, constants, warps))
            launch = super().kernel(function, grid, args, constants, warps)
            for handle, binary in self._functions.values():
                fake.sizes[handle] = compiling._parameter_bytes(binary.ptx)
            return launch

    cuda = Cuda()
    for op in ("add", "where", "adam_update", "sum", "softmax", "take", "conv2d", "uniform"):
        case = next(case for case in CASES[op] if case.expected().size)
        out = np.empty(case.expected().shape, case.expected().dtype)
        for launch in table.launches(cuda, op, out, [np.array(x, order="C") for x in case.inputs], case.attrs):
            launch()
            launch()  # a launch may be made again
    binaries = dict(cuda._functions.values())
    assert len(fake.launches) == 2 * len(asked) >= 12
    for place, (function, grid, args, constants, warps) in enumerate(each for each in asked for _ in range(2)):
        handle, *numbers, stream, extra = fake.launches[place]
        binary = binaries[handle]
        assert numbers == [*(*grid, 1, 1)[:3], 32 * warps, 1, 1, binary.shared_bytes]
        assert (stream, extra) == (0x5EED, 0)
        names = [name for name in function.arg_names if name not in constants]
        given = [value for name, value in zip(names, args, strict=True) if name != "inner" or value != 1]
        values = [value if isinstance(value, int) else value.ctypes.data for value in given]
        assert fake.parameters[place] == values + [0] * binary.trailing
    function, grid, (*arrays, _), constants, warps = asked[0]
    cuda.kernel(function, grid, [*arrays, 2**33], constants, warps)()
    assert fake.parameters[-1][len(arrays)] == 2**33
    with pytest.raises(KernelError, match="would need a grid of .*, the device takes"):
        cuda.kernel(function, (1, 70_000), [*arrays, 5], constants, warps)


@needs_triton
def test_a_kernel_of_much_shared_memory_asks_for_it(driver: tuple[Driver, Any]) -> None:
    from cyxcore.kernels.gpu.compiling import Binary

    fake, module = driver
    cuda = object.__new__(module.Cuda)
    cuda._modules = []
    few, many = (Binary("one", b".text.one", (), 4, size, 0, "") for size in (49_152, 49_153))
    assert (cuda._load(few), fake.attributes) == (1001, [])
    assert (cuda._load(many), fake.attributes) == (1002, [(1002, 8, 49_153)])
