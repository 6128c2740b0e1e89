"""A stack of products and what a mask leaves of it are made in one pass, with the bits of both one after the other."""

from typing import Any

import numpy as np
import pytest

from cyxcore.kernels import cpu

Array = np.ndarray[Any, Any]
NEVER = -1e9


def masks(m: int, n: int) -> list[Array]:
    rng = np.random.default_rng(m)
    causal, scattered, few = np.tri(m, n, dtype=np.bool_), rng.random((m, n)) < 0.5, np.zeros((m, n), np.bool_)
    few[m // 2, n - 1] = few[3, 0] = True
    return [causal, np.tri(m, n, 5, dtype=np.bool_), np.ones((m, n), np.bool_), scattered, few, ~causal]


def calls(a: Array, b: Array, mask: Array, turned: bool) -> tuple[Array, Array, Array, list[Any]]:
    """(memory of the product, the product, what comes out, the two calls)"""
    scratch = np.full(a.shape[0] * a.shape[1] * mask.shape[-2] * mask.shape[-1], 77, a.dtype)
    product = scratch.reshape(*a.shape[:2], *mask.shape[-2:])
    out, number = np.full_like(product, 55), np.array(NEVER, a.dtype)
    attrs = {"transpose_a": False, "transpose_b": turned}
    return scratch, product, out, [("matmul", product, [a, b], attrs), ("where", out, [mask, product, number], {})]


def same_bits(a: Array, b: Array) -> bool:
    """Equal byte for byte, except that a NaN is a NaN."""
    nan = np.isnan(a)
    return np.where(nan, 0, a).tobytes() == np.where(np.isnan(b), 0, b).tobytes() and bool((nan == np.isnan(b)).all())


def check(a: Array, b: Array, mask: Array, turned: bool, fused: bool = True) -> None:
    scratch, product, out, made = calls(a, b, mask, turned)
    program = cpu.Program()
    for call in made:
        program.add(*call)
    assert program.fuse(scratch) == ([(0, [False, True])] if fused else [])
    program.run()
    assert (product == 77).all() == fused  # it is never written
    cpu.call("matmul", product, [a, b], {"transpose_a": False, "transpose_b": turned})
    assert same_bits(out, np.where(mask, product, np.array(NEVER, a.dtype)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "k"), [(32, 32, 1), (128, 128, 32), (50, 77, 20), (90, 200, 64), (33, 400, 40)])
def test_scores_and_their_mask_are_made_together(isa: str, dtype: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, m, k)).astype(dtype), rng.normal(size=(2, 2, k, n)).astype(dtype)
    a[0, 0, 5, 0], a[1, 1, 7, k - 1], b[0, 1, 0, 9] = np.inf, np.nan, -np.inf
    for mask in masks(m, n):
        check(a, b, mask, False)
        check(a, np.ascontiguousarray(b.swapaxes(2, 3)), mask, True)
        check(a, np.ascontiguousarray(b[:, :1]), mask[None, None], False)  # heads that share their keys


def weights_made(a: Array, b: Array, mask: Array, number: float, fused: bool = True) -> Array:
    """softmax(where(mask, a bᵀ, number)), made at once or call by call."""
    shape = (*a.shape[:2], *mask.shape)
    scratch, out = np.full((2, *shape), 77, a.dtype), np.full(shape, 55, a.dtype)
    program = cpu.Program()
    program.add("matmul", scratch[0], [a, b], {"transpose_a": False, "transpose_b": True})
    program.add("where", scratch[1], [mask, scratch[0], np.array(number, a.dtype)], {})
    program.add("softmax", out, [scratch[1]], {"axis": 3})
    assert not fused or program.fuse(scratch) == [(0, [False, False, True])]
    program.run()
    assert (scratch[1] == 77).all() == fused
    return out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "k"), [(32, 32, 1), (128, 128, 32), (50, 77, 20), (90, 400, 64)])
def test_scores_their_mask_and_softmax_are_made_together(isa: str, dtype: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, m, k)).astype(dtype), rng.normal(size=(2, 2, n, k)).astype(dtype)
    a[0, 0, 5, 0], a[1, 1, 7, k - 1], a[1, 0, 9, 0], b[0, 1, 9, 0] = np.inf, np.nan, -np.inf, -np.inf
    a[1, 1, 20] = 0
    for mask in masks(m, n):
        for number in (NEVER, -np.inf, -900.0, 0.5, np.nan):  # the last three are not without weight
            made = weights_made(a, b, mask, number)
            assert same_bits(made, weights_made(a, b, mask, number, fused=False)), number


def masked_gradient(a: Array, b: Array, weights: Array, mask: Array, fused: bool = True) -> Array:
    """where(mask, the gradient of softmax from a bᵀ, 0), made at once or call by call."""
    shape = weights.shape
    scratch = np.full((2, *shape), 77, a.dtype)
    out, number = np.full(shape, 55, a.dtype), np.zeros((), a.dtype)
    program = cpu.Program()
    program.add("matmul", scratch[0], [a, b], {"transpose_a": False, "transpose_b": True})
    program.add("softmax_grad", scratch[1], [scratch[0], weights], {"axis": len(shape) - 1})
    program.add("where", out, [mask, scratch[1], number], {})
    assert not fused or program.fuse(scratch) == [(0, [False, False, True])]
    program.run()
    assert (scratch[1] == 77).all() == fused
    return out


def weights_of(shape: tuple[int, ...], mask: Array, dtype: str) -> Array:
    scores = np.where(mask, np.random.default_rng(3).normal(size=shape), NEVER).astype(dtype)
    weights = np.empty_like(scores)
    cpu.call("softmax", weights, [scores], {"axis": len(shape) - 1})
    return weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "k"), [(32, 32, 1), (128, 128, 32), (50, 77, 20), (90, 200, 64)])
def test_the_gradient_of_softmax_and_its_mask_are_made_together(isa: str, dtype: str, m: int, n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, m, k)).astype(dtype), rng.normal(size=(2, 2, n, k)).astype(dtype)
    a[0, 1, 4] = 0  # a gradient that is nowhere
    for mask in masks(m, n):
        weights = weights_of((2, 2, m, n), mask, dtype)  # those of rows that see nothing are nowhere zero
        assert same_bits(masked_gradient(a, b, weights, mask), masked_gradient(a, b, weights, mask, fused=False))


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3e38, -3e38, 1e18])
@pytest.mark.parametrize("of_keys", [False, True])
def test_a_hidden_number_that_a_product_may_not_hold_is_not_left_out(isa: str, number: float, of_keys: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(2, 2, 96, 16)).astype(np.float32) for _ in range(2))
    if of_keys:
        b[:, :, 90, 3] = number
    else:
        a[:, :, 5, 3] = number
    mask = np.tri(96, dtype=np.bool_)
    weights = weights_of((2, 2, 96, 96), mask, "float32")
    # A zero weight times what is no number makes NaN of all of its row.
    assert same_bits(masked_gradient(a, b, weights, mask), masked_gradient(a, b, weights, mask, fused=False))


def test_hidden_zeros_change_no_sign(isa: str) -> None:
    tiny = np.float32(1e-45)
    mask = np.tri(64, dtype=np.bool_)
    weights = weights_of((2, 2, 64, 64), mask, "float32")
    for sign in (1, -1):
        a, b = np.full((2, 2, 64, 1), -tiny), np.full((2, 2, 64, 1), tiny)  # products that come to -0
        b[:, :, 40:] *= sign
        expected = masked_gradient(a, b, weights, mask, fused=False)
        assert np.signbit(expected).any()
        assert same_bits(masked_gradient(a, b, weights, mask), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_the_products(threads: int) -> None:
    cpu.set_num_threads(threads)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(4, 4, *shape)).astype(np.float32) for shape in ((128, 64), (64, 128)))
    check(a, b, np.tri(128, dtype=np.bool_), False)
    cpu.set_num_threads(1)


def test_what_is_no_mask_of_a_product_is_made_one_by_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 40, 8)).astype(np.float32), rng.normal(size=(2, 2, 8, 40)).astype(np.float32)
    check(a, b, rng.random((2, 2, 40, 40)) < 0.5, False, fused=False)  # one for each product
    check(a[:1, :1], b[:1, :1], np.tri(40, dtype=np.bool_), False, fused=False)  # which threads share
    scratch, product, out, (first, second) = calls(a, b, np.tri(40, dtype=np.bool_), False)
    for change in (
        [first, ("where", out, [second[2][0], second[2][2], product], {})],  # the mask shows the number
        [first, second, ("neg", np.empty_like(product), [product], {})],  # somebody else reads it
    ):
        program = cpu.Program()
        for call in change:
            program.add(*call)
        assert (0, [False, True]) not in program.fuse(scratch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_of_rows_whose_end_is_hidden_has_the_bits_of_its_definition(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for n in (16, 48, 77, 128, 304, 1000, 3000):  # eight rows at a time, fewer of long ones, and one
        x = (rng.normal(size=(43, n)) * 5).astype(dtype)
        for row in range(30):
            x[row, rng.integers(1, n) :] = rng.choice([NEVER, -np.inf, -3e5, -1100.0, -700.0, -90.0])
        x[30, 5], x[31, 5], x[32, n - 1] = np.nan, np.inf, np.nan
        x[30:33, 9 : n - 1] = NEVER
        x[33], x[34], x[35, 2:], x[36] = NEVER, -np.inf, NEVER, 1e9
        x[36, 3:] = 9e8
        out, power, total = np.empty_like(x), np.empty_like(x), np.empty((43, 1), dtype)
        cpu.call("softmax", out, [x], {"axis": 1})
        with np.errstate(invalid="ignore"):
            cpu.call("exp", power, [x - x.max(1, keepdims=True)], {})
            cpu.call("sum", total, [power], {"axes": (1,), "keepdims": True})
            assert same_bits(out, power * (1 / total)), n
        cpu.call("softmax", x, [x], {"axis": 1})
        assert same_bits(x, out), n
