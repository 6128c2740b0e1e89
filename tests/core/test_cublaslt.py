"""Products by cuBLASLt on machines without a device: what it is told, by NVIDIA's library where that is installed, and
what comes of it, by one that multiplies on the host; and that all goes cuBLAS's way where it refuses."""

import ctypes
import importlib.util
import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cyxcore.device import Call
from cyxcore.errors import KernelError
from tests.core import gpu_libraries
from tests.core.kernelcases import CASES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'cyx[gpu-test]'"
)
Array = np.ndarray[Any, Any]
NOT_TRANSPOSED = {"transpose_a": False, "transpose_b": False}


class Scene(NamedTuple):
    """A Cuda of these libraries. chains: the steps of each kernel that was launched beside products."""

    cuda: Any
    lt: gpu_libraries.CublasLt
    blas: gpu_libraries.Cublas
    chains: list[list[str]]

    def open(self) -> None:
        self.cuda.lt = self.cuda._open_lt()

    def made(self, calls: list[Call]) -> Any:
        """The program of them, run once; nothing but the last result is read behind it."""
        out = calls[-1].out
        run = self.cuda.program(calls, scratch=out.base, results=[out])
        run()
        return run.__self__


@pytest.fixture
def scene(driver: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    from cyxcore.kernels.gpu import cublas, cublaslt, table

    lt, blas, chains = gpu_libraries.CublasLt(), gpu_libraries.Cublas(), list[list[str]]()
    libraries = {"libcublas": blas, "libcublasLt": lt}
    for module in (cublas, cublaslt):
        monkeypatch.setattr(module, "load", libraries.__getitem__)

    class Cuda(driver[1].Cuda):  # type: ignore[misc]
        xp, precision, lt = np, "ieee", None

        def __init__(self) -> None:
            self.stream = gpu_libraries.Stream()
            self._blas = cublas.Cublas(self.stream.ptr, 64, "ieee")

    def chain(rt: Any, inputs: Any, steps: Any, stores: Any) -> list[table.Launch]:
        """NumPy's sums and ReLUs."""
        return [lambda: (chains.append([step.op for step in steps]), numpy_chain(inputs, steps, stores))]

    monkeypatch.setattr(table, "chain", chain)
    yield Scene(Cuda(), lt, blas, chains)
    assert (lt.errors, blas.errors) == ([], [])


def numpy_chain(inputs: Any, steps: Any, stores: Any) -> None:
    values = list(inputs)
    for step in steps:
        given = [values[place] for place in step.inputs]
        values.append(given[0] + given[1] if step.op == "add" else np.maximum(given[0], 0))
    for place, array in stores.items():
        array[...] = values[place]


def whole(*shape: int, seed: int = 1) -> Array:
    """Small whole numbers, whose products are exact in any order."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def linear(relu: bool = True, biased: bool = True, **shapes: tuple[int, ...]) -> list[Call]:
    """x @ y, then a bias, then ReLU, as a plan has them."""
    x, y = whole(*shapes.get("x", (6, 8))), whole(*shapes.get("y", (8, 12)), seed=2)
    outs = np.full((3, *x.shape[:-1], y.shape[-1]), 77, np.float32)
    calls = [Call("matmul", outs[0], (x, y), NOT_TRANSPOSED)]
    if biased:
        calls.append(Call("add", outs[1], (calls[-1].out, whole(y.shape[-1], seed=3)), {}))
    if relu:
        calls.append(Call("relu", outs[2], (calls[-1].out,), {}))
    return calls


def expected(calls: list[Call]) -> Array:
    x, y = calls[0].inputs
    found = x @ y
    for call in calls[1:]:
        found = found + call.inputs[1] if call.op == "add" else np.maximum(found, 0)
    return found


def test_every_product_is_what_its_definition_says(scene: Scene) -> None:
    from cyxcore.kernels.gpu import table

    scene.open()
    multiplied = scene.lt.calls.count("cublasLtMatmul")
    for case in CASES["matmul"]:
        wanted = case.expected()
        out, inputs = np.empty(wanted.shape, wanted.dtype), [np.array(x, order="C") for x in case.inputs]
        if wanted.dtype.kind != "f":
            continue
        for launch in table.launches(scene.cuda, "matmul", out, inputs, case.attrs):
            launch()
        np.testing.assert_allclose(out, wanted, rtol=0, atol=case.tolerance * 4 * max(1, np.abs(wanted).max(initial=0)))
    assert scene.lt.calls.count("cublasLtMatmul") - multiplied > 10
    assert scene.blas.calls.count("cublasGemmStridedBatchedEx") > 0  # float64


@pytest.mark.parametrize("shapes", [{}, {"x": (3, 6, 8)}, {"x": (3, 6, 8), "y": (3, 8, 12)}, {"y": (8, 1)}])
@pytest.mark.parametrize(("biased", "relu"), [(True, True), (True, False), (False, True)])
def test_a_bias_and_relu_behind_a_product_are_made_by_it(scene: Scene, shapes: Any, biased: bool, relu: bool) -> None:
    scene.open()
    calls = linear(relu, biased, **shapes)
    program = scene.made(calls)
    assert np.array_equal(calls[-1].out, expected(calls))
    assert (len(program.launches), scene.chains, scene.lt.epilogues[-1]) == (1, [], 2 * relu + 4 * biased)
    program.run()
    program.run()
    assert (scene.cuda.stream.captures, scene.cuda.stream.launched) == (1, 2)


def test_a_shape_is_asked_for_once(scene: Scene) -> None:
    scene.open()
    asked = scene.lt.calls.count("cublasLtMatmulAlgoGetHeuristic")
    for calls in (linear(), linear(), linear(relu=False), linear(x=(7, 8))):
        scene.made(calls)
    assert scene.lt.calls.count("cublasLtMatmulAlgoGetHeuristic") - asked == 2


def test_what_a_product_was_told_of_goes_with_it(scene: Scene) -> None:
    scene.open()
    before = len(scene.lt.objects)
    program = scene.made(linear())
    assert len(scene.lt.objects) == before + 9  # the product alone is kept: two descriptions, one preference
    del program
    assert len(scene.lt.objects) == before + 5


def test_arrays_that_lie_badly_are_told_of(scene: Scene) -> None:
    """The library multiplies only where all addresses are what its algorithm was chosen for."""
    scene.open()
    calls = linear()
    x, y = calls[0].inputs
    shifted = np.empty(x.size + 1, np.float32)[1:].reshape(x.shape)
    shifted[...] = x
    calls[0] = calls[0]._replace(inputs=(shifted, y))
    scene.made(calls)
    assert np.array_equal(calls[-1].out, expected(calls)) and scene.chains == []


def test_where_arrays_lie_chooses_no_other_algorithm(scene: Scene) -> None:
    scene.open()
    memory = np.zeros(4096, np.uint8)
    first = -memory.ctypes.data % 256
    asked = scene.lt.calls.count("cublasLtMatmulAlgoGetHeuristic")
    for offset in (0, 16, 64, 256):
        x, y, out = (
            memory[start:][: 4 * rows * columns].view(np.float32).reshape(rows, columns)
            for start, rows, columns in ((first + offset, 6, 8), (first + 1024, 8, 12), (first + 2048, 6, 12))
        )
        x[...], y[...] = whole(6, 8), whole(8, 12, seed=2)
        scene.made([Call("matmul", out, (x, y), NOT_TRANSPOSED)])
        assert np.array_equal(out, x @ y)
    assert scene.lt.calls.count("cublasLtMatmulAlgoGetHeuristic") - asked == 1


# where it refuses -----------------------------------------------------------------------------------


def assert_by_cublas(scene: Scene, calls: list[Call]) -> None:
    before = scene.blas.calls.count("cublasGemmStridedBatchedEx")
    scene.made(calls)
    assert np.array_equal(calls[-1].out, expected(calls))
    assert scene.blas.calls.count("cublasGemmStridedBatchedEx") == before + 1


@pytest.mark.parametrize("lack", ["library", "function", "algorithm", "product", "right product"])
def test_without_a_working_cublaslt_there_is_one_notice_and_cublas(
    scene: Scene, lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cyxcore.kernels.gpu import cublaslt

    def missing(name: str) -> Any:
        raise KernelError(f"cuda: {name} was not found")

    if lack == "library":
        monkeypatch.setattr(cublaslt, "load", missing)
    elif lack == "function":
        del scene.lt.cublasLtMatmulAlgoCheck
    scene.lt.known, scene.lt.status = lack != "algorithm", 13 if lack == "product" else 0
    scene.lt.wrong = 1.0 if lack == "right product" else 0.0
    with pytest.warns(RuntimeWarning, match="cuBLASLt does not make any product, so cuBLAS does") as said:
        scene.open()
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_by_cublas(scene, linear())


@pytest.mark.parametrize("lack", ["algorithm", "product"])
def test_a_shape_that_cublaslt_refuses_goes_by_cublas_with_one_notice_for_all(scene: Scene, lack: str) -> None:
    scene.open()
    scene.lt.known, scene.lt.status = lack != "algorithm", 13 if lack == "product" else 0
    with pytest.warns(
        RuntimeWarning, match=r"some products, so cuBLAS does: cuda: .*Shape\(kind=0, batch=1, m=6"
    ) as said:
        assert_by_cublas(scene, linear(relu=False, biased=False))
        assert_by_cublas(scene, linear(x=(7, 8)))
    assert len(said) == 1
    scene.lt.known, scene.lt.status = True, 0
    assert_by_cublas(scene, linear(relu=False, biased=False))  # what was refused stays so: one shape, one way


def test_an_algorithm_that_takes_no_bias_leaves_it_to_a_kernel(scene: Scene) -> None:
    scene.open()
    scene.lt.goes = False
    scene.made(calls := linear())
    assert np.array_equal(calls[-1].out, expected(calls))
    assert (scene.chains, scene.lt.epilogues[-1]) == ([["add", "relu"]], 1)


def test_a_product_that_fails_with_its_bias_is_made_without(scene: Scene) -> None:
    scene.open()
    scene.lt.ends = False
    with pytest.warns(RuntimeWarning, match="cublasLtMatmul failed with status 15") as said:
        scene.made(calls := linear())
        scene.made(linear())
    assert len(said) == 1
    assert np.array_equal(calls[-1].out, expected(calls))
    assert scene.chains == [["add", "relu"]] * 2 and scene.lt.epilogues[-2:] == [1, 1]
    assert "cublasGemmStridedBatchedEx" not in scene.blas.calls


def test_a_relu_that_swallows_nan_is_left_to_a_kernel(scene: Scene) -> None:
    scene.lt.keeps_nan = False
    scene.open()
    scene.made(calls := linear())
    assert np.array_equal(calls[-1].out, expected(calls)) and scene.chains == [["add", "relu"]]
    scene.made(calls := linear(relu=False))
    assert np.array_equal(calls[-1].out, expected(calls)) and len(scene.chains) == 1


def test_only_the_environment_asks_for_it(driver: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = driver[1].lt_asked
    for said, wanted in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("CYX_CUBLASLT", said)
        assert asked() is wanted
    monkeypatch.setenv("CYX_CUBLASLT", "yes")
    with pytest.raises(KernelError, match="expected 1 or 0, got 'yes'"):
        asked()


# which chains a product may end with ---------------------------------------------------------------


def span(array: Array) -> tuple[int, int]:
    start = int(array.__array_interface__["data"][0])
    return start, start + array.nbytes


def endings(calls: list[Call], results: list[Array]) -> int:
    from cyxcore.kernels.gpu import fusion

    found = fusion.parts(calls, span, (0, 2**63), results, endings=True)
    return sum(part.ending is not None for part in found)


def test_a_product_ends_only_with_what_nobody_reads_between() -> None:
    calls = linear()
    product, added, last = (call.out for call in calls)
    assert endings(calls, [last]) == 1
    assert endings(calls, [last, product]) == 0
    assert endings(calls, [last, added]) == 0
    x, y = calls[0].inputs
    reads_product = Call("sum", np.empty((), np.float32), (product,), {"axes": (0, 1), "keepdims": False})
    assert endings([*calls, reads_product], [last]) == 0
    assert endings([calls[0], calls[2]._replace(inputs=(product,))], [last]) == 1
    assert (
        endings([calls[0], Call("relu", added, (product,), {}), Call("add", last, (added, whole(12)), {})], [last]) == 0
    )


@pytest.mark.parametrize(("size", "wanted"), [(36, 0), (71, 0), (72, 1), (90, 1)])
def test_what_is_written_over_in_pieces_before_it_is_read_is_not_needed(size: int, wanted: int) -> None:
    """A product whose memory is reused for smaller results: it is needed while one number of it is read."""
    memory = np.zeros(400, np.float32)
    x, y, first, last = whole(6, 8), whole(8, 12), memory[:72].reshape(6, 12), memory[100:172].reshape(6, 12)
    calls = [Call("matmul", first, (x, y), NOT_TRANSPOSED), Call("relu", last, (first,), {})]
    for start, stop in ((0, 20), (20, size)):
        calls.append(Call("transpose", memory[start:stop], (memory[200 : 200 + stop - start],), {"axes": (0,)}))
    calls.append(Call("sum", memory[399:].reshape(()), (memory[:72],), {"axes": (0,), "keepdims": False}))
    assert endings(calls, [last]) == wanted


@pytest.mark.parametrize("bias", [whole(1), whole(6, 1), whole(6, 12), whole(12).astype(np.float64)])
def test_a_bias_is_one_number_for_each_column(bias: Array) -> None:
    calls = linear(relu=False)
    dtype = np.result_type(bias, np.float32)
    out = np.empty((6, 12), dtype)
    assert endings([calls[0], Call("add", out, (calls[0].out, bias), {})], [out]) == 0


def test_a_product_does_not_end_where_its_operands_lie() -> None:
    memory = np.zeros(400, np.float32)
    x, y, between = memory[:48].reshape(6, 8), memory[48:144].reshape(8, 12), memory[144:216].reshape(6, 12)
    for start, wanted in ((0, 0), (47, 0), (100, 0), (144, 1), (216, 1)):
        out = memory[start : start + 72].reshape(6, 12)
        calls = [Call("matmul", between, (x, y), NOT_TRANSPOSED), Call("relu", out, (between,), {})]
        assert endings(calls, [out]) == wanted, start


# NVIDIA's own library -------------------------------------------------------------------------------


@pytest.fixture
def nvidia() -> Any:
    """libcublasLt as NVIDIA's packages install it, which takes descriptions without a driver."""
    folders = [Path(folder) / "nvidia" for folder in sys.path]
    found = [path for folder in folders for path in folder.glob("*/lib/libcublasLt.so.*")]
    if not found:
        pytest.skip("libcublasLt is not installed: pip install nvidia-cublas")
    from cyxcore.kernels.gpu import cublaslt

    library = ctypes.CDLL(str(found[0]))
    for name, types in cublaslt.FUNCTIONS.items():
        getattr(library, name).argtypes = types
    return library


def test_nvidias_library_takes_descriptions_as_they_are_meant(nvidia: Any) -> None:
    from cyxcore.kernels.gpu import cublaslt

    def said(what: str, of: Any, attribute: int, kind: Any) -> int:
        value, size = kind(), ctypes.c_size_t()
        get = getattr(nvidia, f"cublasLt{what}GetAttribute")
        assert get(of, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)), ctypes.byref(size)) == 0
        return int(value.value or 0)

    i32, u32, i64, u64 = ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
    flags = itertools.product(cublaslt.KINDS.values(), (1, 5), (False, True), (False, True), (0, 4096), (False, True))
    for kind, batch, transpose_x, transpose_y, bias, relu in flags:
        shape = cublaslt.Shape(kind, batch, 6, 12, 8, transpose_x, transpose_y, 48, 0, 16)
        for compute in (68, 77):
            told = cublaslt.Description(nvidia, shape, compute, bias, relu)
            product = [said("MatmulDesc", told.product, number, i32) for number in (0, 1, 3, 4)]
            assert product == [compute, 0, transpose_y, transpose_x]
            assert said("MatmulDesc", told.product, 7, u32) == (4 * bool(bias) + 2 * relu or 1)
            assert said("MatmulDesc", told.product, 8, u64) == bias
            assert said("MatmulDesc", told.product, 26, i32) == (kind if bias else -1)
            a, b = (8, 12) if transpose_y else (12, 8), (6, 8) if transpose_x else (8, 6)
            for layout, (rows, columns), stride in ((told.a, a, 0), (told.b, b, 48), (told.out, (12, 6), 72)):
                numbers = [said("MatrixLayout", layout, *each) for each in ((0, u32), (2, u64), (3, u64), (4, i64))]
                assert numbers == [kind, rows, columns, rows]
                batches = [said("MatrixLayout", layout, *each) for each in ((5, i32), (6, i64))]
                assert batches == [batch, stride if batch > 1 else 0]
            preference = told.preference(16)
            assert said("MatmulPreference", preference, 1, u64) == cublaslt.WORKSPACE_BYTES
            assert [said("MatmulPreference", preference, number, u32) for number in (5, 6, 7, 8)] == [16] * 4


def test_without_a_driver_nvidias_library_is_not_opened(nvidia: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cyxcore.kernels.gpu import cublaslt

    handle = ctypes.c_void_p()
    if nvidia.cublasLtCreate(ctypes.byref(handle)) == 0:
        pytest.skip("there is a driver")
    monkeypatch.setattr(cublaslt, "load", lambda name: nvidia)
    with pytest.raises(KernelError, match="cublasLtCreate failed with status 1"):
        cublaslt.CublasLt(1, 2, "ieee", lambda why: None)
