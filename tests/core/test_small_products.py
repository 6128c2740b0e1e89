"""Products of few rows or columns, and of transposed views: each output is the chain that it is in a large product."""

from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.kernels import cpu

pytestmark = pytest.mark.usefixtures("own_machine")

Array = np.ndarray[Any, Any]


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def turned(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(-1, -2))


packed = np.ascontiguousarray


def product(a: Array, b: Array, ta: bool = False, tb: bool = False) -> Array:
    """a @ b by the kernel that reads the factors as they lie, or transposed where it is told so."""
    out = np.full((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), 77, a.dtype)
    cpu.call(
        "matmul",
        out,
        [turned(a) if ta else packed(a), turned(b) if tb else packed(b)],
        {"transpose_a": ta, "transpose_b": tb},
    )
    return out


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_rows_and_columns_have_the_bits_of_a_large_product(dtype: str, isa: str) -> None:
    try:
        cpu.set_isa(isa)
    except ValueError:
        pytest.skip(f"a processor without {isa}")
    a, b = numbers((70, 67), dtype), numbers((67, 150), dtype)
    whole = product(a, b)
    np.testing.assert_allclose(whole, a.astype("float64") @ b.astype("float64"), atol=1e-4)
    for ta in (False, True):
        for tb in (False, True):
            for m in (1, 2, 3, 4, 5, 8, 9):
                for n in (1, 2, 7, 8, 15, 16, 17, 33, 48, 96, 100, 150):
                    found = product(a[:m], b[:, :n], ta, tb)
                    assert found.tobytes() == whole[:m, :n].tobytes(), (m, n, ta, tb)
            for n in (1, 2, 10):
                assert product(a, b[:, :n], ta, tb).tobytes() == whole[:, :n].tobytes(), (
                    n,
                    ta,
                    tb,
                )
    for m, n in ((8, 48), (48, 48), (16, 24), (16, 96), (9, 48)):
        assert product(a[:m], b[:, :n]).tobytes() == whole[:m, :n].tobytes(), (m, n)
        assert product(a[:m], b[:, :n], True).tobytes() == whole[:m, :n].tobytes(), (m, n)
    for k in (0, 1, 15, 16, 31):
        left, right = np.ascontiguousarray(a[:, :k]), np.ascontiguousarray(b[:k])
        whole = product(left, right)
        for ta, tb in ((False, False), (True, True)):
            assert product(left[:3], right, ta, tb).tobytes() == whole[:3].tobytes(), k
            assert product(left, right[:, :1], ta, tb).tobytes() == whole[:, :1].tobytes(), k
            assert product(left[:1], right[:, :1], ta, tb).tobytes() == whole[:1, :1].tobytes(), k


@pytest.mark.parametrize("threads", [1, 3])
def test_stacks_of_small_products_have_the_bits_of_single_ones(threads: int) -> None:
    cpu.set_num_threads(threads)
    for m, k, n in ((1, 40, 33), (1, 100, 1), (3, 3, 3), (8, 8, 8), (5, 20, 1), (1, 9, 1), (6, 33, 20)):
        a, b = numbers((3, 30, m, k)), numbers((3, 1, k, n))
        for ta in (False, True):
            for tb in (False, True):
                found = product(a, b, ta, tb)
                for i in range(3):
                    for j in range(30):
                        assert found[i, j].tobytes() == product(a[i, j], b[i, 0]).tobytes(), (m, k, n, ta, tb)


def test_rows_by_as_many_rows_have_the_bits_of_single_dot_products() -> None:
    a, b = numbers((19, 1, 45)), numbers((19, 45, 1))
    found = product(a, b)
    for i in range(19):
        assert found[i].tobytes() == product(a[i], b[i]).tobytes()
    x, y = cx.tensor(a[:, 0]), cx.tensor(b[..., 0])
    added_up = cx.einsum("ij,ij->i", x, y)  # side by side, not in one chain
    assert added_up.tolist() == (x * y).sum(-1).tolist()
    np.testing.assert_allclose(added_up.numpy(), found[:, 0, 0], rtol=1e-6)


def test_the_diagonal_of_an_einsum_passes_its_gradient_on() -> None:
    x = cx.tensor(numbers((3, 4, 3)), requires_grad=True)
    found = cx.einsum("iji->ij", x)
    assert found.numpy().tolist() == np.einsum("iji->ij", x.numpy()).tolist()
    found.sum().backward()
    assert x.grad.numpy().tolist() == np.broadcast_to(np.eye(3)[:, None], (3, 4, 3)).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((5, 7), (7, 9)),
        ((1, 40), (40, 3)),
        ((3, 4, 6), (3, 6, 5)),
        ((2, 3, 4, 6), (3, 6, 1)),
        ((4, 6), (3, 6, 5)),
        ((2, 0), (0, 3)),
    ],
)
def test_a_transposed_view_is_multiplied_as_its_copy(left: Any, right: Any, dtype: str) -> None:
    a, b = (10 * numbers(left)).astype(dtype), (10 * numbers(right)).astype(dtype)
    expected = (cx.tensor(a) @ cx.tensor(b)).numpy().tobytes()
    for _ in range(3):  # the first two of a kind go the general way
        views = [(x, x.transpose(-1, -2)) for x in map(cx.tensor, (turned(a), turned(b)))]
        assert (views[0][1] @ cx.tensor(b)).numpy().tobytes() == expected
        assert (cx.tensor(a) @ views[1][1]).numpy().tobytes() == expected
        assert (views[0][1] @ views[1][1]).numpy().tobytes() == expected


def test_gradients_of_a_product_of_transposed_views() -> None:
    a, b = numbers((4, 6)), numbers((6, 5))
    for _ in range(4):
        x, y = (cx.tensor(value, requires_grad=True) for value in (a, b))
        (x @ y).square().sum().backward()
        u, v = (cx.tensor(turned(value), requires_grad=True) for value in (a, b))
        (u.T @ v.T).square().sum().backward()
        assert u.grad.numpy().T.tolist() == x.grad.numpy().tolist()
        assert v.grad.numpy().T.tolist() == y.grad.numpy().tolist()


@pytest.mark.parametrize(
    ("left", "right"), [((5, 7), (7,)), ((7,), (7, 5)), ((7,), (7,)), ((2, 5, 7), (7,)), ((7,), (2, 7, 5))]
)
def test_vectors_are_multiplied_as_matrices_of_one_row_or_column(left: Any, right: Any) -> None:
    a, b = numbers(left), numbers(right)
    expected = a @ b
    for _ in range(4):
        x, y = cx.tensor(a, requires_grad=True), cx.tensor(b, requires_grad=True)
        found = x @ y
        assert found.shape == expected.shape
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        found.sum().backward()
        p, q = cx.tensor(a, requires_grad=True), cx.tensor(b, requires_grad=True)
        rows = p.reshape(1, 7) if a.ndim == 1 else p
        (rows @ (q.reshape(7, 1) if b.ndim == 1 else q)).sum().backward()
        assert x.grad.numpy().tobytes() == p.grad.numpy().tobytes()
        assert y.grad.numpy().tobytes() == q.grad.numpy().tobytes()
