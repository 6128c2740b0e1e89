"""Linear algebra against array-api-strict, and its gradients against PyTorch."""

import ctypes
import inspect
import mmap
import platform
from collections.abc import Iterator
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import forks, linalg
from cyxcore.errors import AxisError, DataError, DtypeError, GradientError, GraphError, ShapeError, SpecError
from cyxcore.kernels import lapack
from tests.core.oracle import COMPLEX, FLOATS, NUMBERS, agree, numbers, same, signature_differences

BEYOND_STRICT = ("eig", "eigvals")
IN_NAMESPACE = ("matmul", "matrix_transpose", "tensordot", "vecdot")


@pytest.mark.parametrize("name", [f"linalg.{name}" for name in linalg.__all__ if name not in BEYOND_STRICT])
def test_the_parameters_are_the_standards(name: str) -> None:
    assert signature_differences(name) == []


def test_the_functions_of_the_namespace_are_those_of_the_extension() -> None:
    assert all(inspect.unwrap(getattr(cx, name)) is inspect.unwrap(getattr(linalg, name)) for name in IN_NAMESPACE)


PRODUCTS: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    *(("matmul", a, b, {}) for a, b in [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((2, 3), (3, 4))]),
    *(
        ("matmul", a, b, {})
        for a, b in [((2, 1, 2, 3), (4, 3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((3,), (2, 3, 1))]
    ),
    *(("tensordot", (2, 3), (2, 3), {"axes": axes}) for axes in (0, 2, ([0], [0]), ((1, 0), (-1, 0)), ([], []))),
    ("tensordot", (2, 3, 4), (3, 4, 5), {}),
    ("tensordot", (2, 0), (0, 3), {"axes": 1}),
    *(("vecdot", a, b, {}) for a, b in [((3,), (3,)), ((2, 1, 3), (4, 3)), ((0,), (0,)), ((2, 0), (1, 0))]),
    ("vecdot", (3, 2), (3, 1), {"axis": -2}),
]


@pytest.mark.parametrize("call", PRODUCTS, ids=str)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_products(call: Any, dtype: str) -> None:
    name, left, right, options = call
    x, y = numbers(dtype, *left), numbers(dtype, *right, seed=1)
    agree(name, x, y, **options)
    agree(f"linalg.{name}", x, y, **options)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_vectors_and_parts(dtype: str) -> None:
    x = numbers(dtype, 2, 3, 4)
    agree("linalg.outer", x[0, 0], x[0, :, 0])
    agree("linalg.cross", x[0], x[1, :, :1], axis=-2)
    agree("linalg.cross", numbers(dtype, 2, 3), numbers(dtype, 3, seed=1))
    for offset in (-3, -1, 0, 1, 4):
        agree("linalg.diagonal", x, offset=offset)
        agree("linalg.trace", x, offset=offset)
    agree("linalg.trace", numbers(dtype, 0, 0))
    agree("matrix_transpose", x)


def test_products_promote() -> None:
    agree("matmul", numbers("float32", 2, 3), numbers("float64", 3))
    agree("vecdot", numbers("int8", 3), numbers("int16", 3))


def invertible(dtype: str, *shape: int) -> np.ndarray:
    return np.asarray(numbers(dtype, *shape) + 9 * np.eye(shape[-2], shape[-1], dtype=dtype)).astype(dtype)


SQUARES = [(3, 3), (2, 3, 3), (1, 1), (0, 0), (0, 2, 2), (2, 0, 0)]


@pytest.mark.parametrize("shape", SQUARES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
def test_square_matrices(shape: tuple[int, ...], dtype: str) -> None:
    x = invertible(dtype, *shape)
    definite = np.asarray(x @ x.conj().swapaxes(-1, -2)).astype(dtype)
    agree("linalg.inv", x, scale=4)
    agree("linalg.det", x, scale=50)
    agree("linalg.slogdet", x, scale=4)
    agree("linalg.solve", x, numbers(dtype, shape[-1], 2), scale=4)
    agree("linalg.solve", x, numbers(dtype, shape[-1]), scale=4)
    agree("linalg.cholesky", definite, scale=8)
    agree("linalg.cholesky", definite, upper=True, scale=8)
    agree("linalg.eigvalsh", definite, scale=99)
    for n in (0, 1, 2, 3, 5):
        agree("linalg.matrix_power", x / 8, n, scale=20)
    agree("linalg.matrix_power", x, -2, scale=20)


@pytest.mark.parametrize("shape", [*SQUARES, (4, 2), (2, 4), (2, 3, 2), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
def test_factors_make_the_matrix_again(shape: tuple[int, ...], dtype: str) -> None:
    x = cx.asarray(numbers(dtype, *shape))
    for full in (False, True):
        u, s, vh = cx.linalg.svd(x, full_matrices=full)
        k = s.shape[-1]
        same((u[..., :, :k] * s.astype(dtype).expand_dims(-2)) @ vh[..., :k, :], x.numpy(), scale=99)
        q, r = cx.linalg.qr(x, mode="complete" if full else "reduced")
        same(q @ r, x.numpy(), scale=99)
        assert u.shape[-1] == (x.shape[-2] if full else min(x.shape[-2:])) == q.shape[-1]
    agree("linalg.svdvals", x.numpy(), scale=20)
    if 0 in shape[-2:]:
        same(cx.linalg.matrix_rank(x), np.zeros(shape[:-2], np.int64))
    else:
        agree("linalg.matrix_rank", x.numpy())
        agree("linalg.matrix_rank", x.numpy(), rtol=0.4)
        agree("linalg.pinv", x.numpy(), scale=20)


@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
def test_eigenvectors_are_stretched_by_their_values(dtype: str) -> None:
    x = cx.asarray(numbers(dtype, 2, 4, 4))
    found = cx.linalg.eig(x)
    assert found.eigenvalues.dtype == ("complex128" if dtype in ("float64", "complex128") else "complex64")
    wanted = (found.eigenvectors * found.eigenvalues.expand_dims(-2)).numpy()
    same(x.astype(found.eigenvalues.dtype) @ found.eigenvectors, wanted, scale=99)
    same(cx.linalg.eigvals(x), found.eigenvalues.numpy(), scale=99)
    hermitian = x + cx.conj(x.mT)
    values, vectors = cx.linalg.eigh(hermitian)
    same(hermitian @ vectors, (vectors * values.astype(dtype).expand_dims(-2)).numpy(), scale=99)


NORMS = ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf)


@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
@pytest.mark.parametrize("keepdims", [False, True])
def test_norms(dtype: str, keepdims: bool) -> None:
    x = numbers(dtype, 2, 3, 4)
    for order in NORMS:
        agree("linalg.matrix_norm", x, ord=order, keepdims=keepdims, scale=20)
    for power in (0, 1, 2, 3, 0.5, -1, np.inf, -np.inf):
        for axis in (None, 0, (0, 2), -1):
            agree("linalg.vector_norm", np.abs(x) + 1, ord=power, axis=axis, keepdims=keepdims, scale=20)
    agree("linalg.vector_norm", x[:0], keepdims=keepdims)


def test_odd_values_pass_through_norms_and_products() -> None:
    x = np.array([[np.nan, 1.0], [np.inf, -0.0]], np.float32)
    agree("linalg.vector_norm", x, axis=1)
    agree("linalg.matrix_norm", x)
    agree("vecdot", x, x[::-1].copy())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: cx.linalg.inv(x), ShapeError, r"inv: expected square matrices .* got shape \(2, 3\)"),
        (lambda x: cx.linalg.inv(x[:, :2] * 0), DataError, "inv: expected invertible matrices"),
        (lambda x: cx.linalg.solve(x[:, :2] * 0, x), DataError, "solve: expected invertible"),
        (lambda x: cx.linalg.solve(x[:, :2], x.T), ShapeError, "solve: expected"),
        (lambda x: cx.linalg.cholesky(-x[:, :2]), DataError, "cholesky: expected positive definite"),
        (lambda x: cx.linalg.qr(x, mode="r"), SpecError, "reduced"),
        (lambda x: cx.linalg.matrix_norm(x, ord=3), SpecError, "matrix_norm: expected ord"),
        (lambda x: cx.linalg.eigh(x.astype("float16") @ x.astype("float16").T), DtypeError, "eigh: expected"),
        (lambda x: cx.linalg.outer(x, x), ShapeError, "outer: expected vectors"),
        (lambda x: cx.linalg.svd(x[0]), ShapeError, "svd: expected matrices"),
        (lambda x: cx.vecdot(x, x, axis=3), AxisError, "vecdot: expected an axis"),
        (lambda x: cx.vecdot(x, x[:, :2]), ShapeError, "vecdot: expected one size"),
        (lambda x: cx.tensordot(x, x), None, None),
        (lambda x: cx.tensordot(x, x, axes=3), AxisError, "tensordot: expected"),
        (lambda x: cx.tensordot(x, x, axes=1), ShapeError, "tensordot: expected"),
        (lambda x: cx.matmul(x, 2.0), DtypeError, "matmul: expected a tensor"),
    ],
)
def test_a_bad_argument_is_one_clear_error(call: Any, error: Any, words: str | None) -> None:
    x = cx.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    if error is None:
        call(x)
        return
    with pytest.raises(error, match=words):
        call(x)


def test_a_graph_that_travels_holds_products_but_no_factorization() -> None:
    x = cx.ones(2, 2)
    assert (
        cx.compile(lambda v: cx.linalg.matrix_power(v, 3).sum() + cx.linalg.trace(v) + cx.vecdot(v, v).sum())(x).item()
        == 22
    )
    with pytest.raises(GraphError, match="inv: runs on tensors, and in cx.compile on the cpu"):
        cx.trace(lambda v: cx.linalg.inv(v), (2, 2))


@pytest.mark.parametrize(
    "compute",
    [
        lambda la, x: la.inv(x).sum(),
        lambda la, x: la.det(x).sum(),
        lambda la, x: la.slogdet(x)[1].sum(),
        lambda la, x: (la.solve(x, x[..., :2] * 2.0) ** 2).sum(),
        lambda la, x: la.cholesky(x @ x.mT)[..., 1, 0].sum(),
        lambda la, x: (la.eigh(x + x.mT)[1][..., 0, :] ** 2)[..., 0].sum(),
        lambda la, x: (la.eigvalsh(x + x.mT) ** 3).sum(),
        lambda la, x: la.svdvals(x[..., :2]).sum(),
        lambda la, x: (la.svd(x[..., :2], full_matrices=False)[0] ** 2)[..., 0].sum(),
        lambda la, x: (la.qr(x[..., :2])[1] ** 2)[..., 0, 1].sum(),
        lambda la, x: la.pinv(x[..., :2]).sum(),
        lambda la, x: abs(la.eigvals(x) ** 2).sum(),
        lambda la, x: (abs(la.eig(x)[0]) + abs(la.eig(x)[1][..., 0, :]) ** 2)[..., 0].sum(),
        lambda la, x: la.vector_norm(x).sum(),
        lambda la, x: la.matrix_norm(x, ord="nuc").sum(),
    ],
)
def test_a_gradient_is_pytorchs(compute: Any) -> None:
    torch = pytest.importorskip("torch")
    values = invertible("float64", 2, 3, 3)
    mine, theirs = cx.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    compute(cx.linalg, mine).backward()
    compute(torch.linalg, theirs).backward()
    assert mine.grad is not None
    np.testing.assert_allclose(mine.grad.numpy(), theirs.grad.numpy(), rtol=1e-9, atol=1e-11)


def test_a_second_derivative_of_the_determinant() -> None:
    x = invertible("float64", 2, 2)
    hessian = cx.hessian(lambda v: cx.linalg.det(v))(cx.tensor(x)).numpy().reshape(4, 4)
    np.testing.assert_allclose(hessian, np.fliplr(np.diag([1.0, -1.0, -1.0, 1.0])), atol=1e-12)


def test_the_norm_of_zeros_has_gradient_zero() -> None:
    x = cx.zeros(3, requires_grad=True)
    cx.linalg.vector_norm(x).backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.0]


def test_a_gradient_that_is_not_unique_is_refused() -> None:
    x = cx.tensor(numbers("float32", 2, 3), requires_grad=True)
    with pytest.raises(GradientError, match="full_matrices=False"):
        cx.linalg.svd(x).S.sum().backward()
    with pytest.raises(GradientError, match="rows >= columns"):
        cx.linalg.qr(x).R.sum().backward()


def test_a_factorization_says_that_the_matrix_was_not_finite() -> None:
    with pytest.raises(DataError, match=r"svd: expected finite matrices, got NaN or infinity in matrices \(2, 2\)"):
        cx.linalg.svdvals(cx.tensor([[float("nan"), 1.0], [0.0, 1.0]]))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its registers")
def test_what_others_left_in_the_registers_of_mmx_stops_no_factorization() -> None:
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\x6e\xc0\xc3")  # movd mm0, eax; ret: as compiled programs do that do not empty them
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(None)(start)()
    assert cx.linalg.svdvals(cx.tensor(np.diag([1.0, 2.0, 3.0, 4.0]))).tolist() == [4.0, 3.0, 2.0, 1.0]


@pytest.fixture
def blas_threads() -> Iterator[Any]:
    """(threads, set_threads) of NumPy's OpenBLAS, which has two threads meanwhile."""
    if (openblas := lapack._openblas()) is None:
        pytest.skip("NumPy's LAPACK is in no OpenBLAS")
    threads, set_threads = openblas
    before = threads()
    set_threads(2)
    yield openblas
    set_threads(before)


def test_factorizations_of_threads_wait_neither_for_each_other_nor_for_one_that_traces(
    blas_threads: Any,
) -> None:
    together = Barrier(3, timeout=20)

    def within(block: Any) -> None:
        with block:
            together.wait()

    blocks = [forks.tracing(), *(lapack._by_one_thread() for _ in range(2))]
    running = [Thread(target=within, args=(block,)) for block in blocks]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not together.broken
    assert blas_threads[0]() == 2


@pytest.mark.parametrize("name", ["inv", "cholesky", "solve"])
def test_the_bits_of_a_factorization_depend_on_no_count_of_blas_threads(name: str, blas_threads: Any) -> None:
    square = np.random.default_rng(0).standard_normal((256, 256))
    positive = square @ square.T + 256 * np.eye(256)
    inputs = [cx.asarray(positive)] * (2 if name == "solve" else 1)
    by_two = getattr(cx.linalg, name)(*inputs).numpy()
    assert blas_threads[0]() == 2  # as it was: NumPy's own products take what they had
    blas_threads[1](1)
    assert by_two.tobytes() == getattr(cx.linalg, name)(*inputs).numpy().tobytes()


def test_blas_threads_are_back_after_the_last_of_several_factorizations_and_a_failed_one(blas_threads: Any) -> None:
    with lapack._by_one_thread():
        with pytest.raises(DataError, match="cholesky"):
            cx.linalg.cholesky(-cx.eye(64))
        assert blas_threads[0]() == 1
    assert blas_threads[0]() == 2
