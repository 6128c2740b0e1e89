"""The compiled kernels: each agrees with the NumPy definition, and gives the same bits whatever runs it."""

import itertools
import math
import os
import platform
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cyxcore.kernels import cpu, reference
from tests.core.kernelcases import (
    ARITHMETIC,
    BIG,
    CASES,
    COMPARE,
    EXACT_UNARY,
    FLOATS,
    ISAS,
    ODD,
    ROUNDED_UNARY,
    SIZED,
    SPECIALS,
    Array,
    Case,
    same_bits,
    special,
    values,
)

pytestmark = pytest.mark.usefixtures("own_machine")


def test_every_operation_of_the_table_has_a_case() -> None:
    assert set(CASES) == cpu.ops()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(CASES))
def test_a_kernel_agrees_with_numpy(op: str, isa: str) -> None:
    cpu.set_isa(isa)
    for case in [*CASES[op], *(c for c in SIZED if c.op == op)]:
        with np.errstate(all="ignore"):
            expected, got = case.expected(), case.run()
        described = f"{[(x.shape, x.dtype.name) for x in case.inputs]} {case.attrs}"
        if case.tolerance == 0.0:
            np.testing.assert_array_equal(got, expected, err_msg=described)
        else:
            scale = float(np.nanmax(np.abs(expected), initial=0.0))
            np.testing.assert_allclose(
                got, expected, rtol=case.tolerance, atol=case.tolerance * scale, err_msg=described
            )


@pytest.mark.parametrize("op", sorted(CASES))
def test_bits_do_not_depend_on_the_instruction_set(op: str) -> None:
    for case in [*CASES[op], *(c for c in (*BIG, *ODD, *SIZED) if c.op == op)]:
        with np.errstate(all="ignore"):
            cpu.set_isa(ISAS[0])
            first = case.run()
            for isa in ISAS[1:]:
                cpu.set_isa(isa)
                assert same_bits(first, case.run()), (
                    isa,
                    [(x.shape, x.dtype.name) for x in case.inputs],
                    case.attrs,
                )


@pytest.mark.parametrize("op", sorted(ROUNDED_UNARY))
def test_any_float32_has_one_result_whatever_the_instruction_set(op: str) -> None:
    """Their vectors are written by hand for some of them. Bit patterns at random: every exponent, NaNs, infinities."""
    bits = np.random.default_rng(4).integers(0, 2**32, 300_007, dtype=np.uint32)
    near = np.random.default_rng(5).normal(0, 3, 100_003).astype(np.float32)
    case = Case(op, [np.concatenate([bits.view(np.float32), near, np.arange(-105, 90, 0.01, np.float32)])])
    cpu.set_isa(ISAS[0])
    with np.errstate(all="ignore"):
        first = case.run()
        for isa in ISAS[1:]:
            cpu.set_isa(isa)
            assert same_bits(first, case.run()), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_small_product_has_the_bits_of_its_rows_in_a_tall_one(isa: str, dtype: str) -> None:
    """A short way of its own leads to the blocks of a small one."""
    cpu.set_isa(isa)
    for m, k, n in [
        (2, 1, 1),
        (8, 8, 8),
        (13, 7, 70),
        (48, 48, 48),
        (5, 64, 500),
        (61, 130, 35),
        (128, 64, 48),
        (6, 3, 0),
        (64, 64, 10),  # of a turned B with fewer columns than a vector has lanes
        (32, 130, 2),
        (96, 45, 3),
        (64, 33, 6),
    ]:
        a, b = values((m, k), dtype), values((k, n), dtype, seed=1)
        tall = Case("matmul", [np.tile(a, (40, 1)), b], {"transpose_a": False, "transpose_b": False}).run()
        for ta, tb in itertools.product((False, True), repeat=2):
            left = np.ascontiguousarray(a.T) if ta else a
            right = np.ascontiguousarray(b.T) if tb else b
            small = Case("matmul", [left, right], {"transpose_a": ta, "transpose_b": tb}).run()
            assert same_bits(small, np.ascontiguousarray(tall[:m])), (m, k, n, ta, tb)


@pytest.mark.parametrize("case", BIG, ids=lambda case: f"{case.op}-{'x'.join(map(str, case.inputs[0].shape))}")
def test_bits_do_not_depend_on_the_number_of_threads(case: Case) -> None:
    cpu.set_num_threads(1)
    alone = case.run()
    for threads in (2, 3):
        cpu.set_num_threads(threads)
        assert same_bits(alone, case.run())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", [*EXACT_UNARY, *ARITHMETIC, "div", *COMPARE])
def test_nan_infinity_and_signed_zero_are_treated_as_numpy_does(op: str, dtype: str) -> None:
    x = special(dtype)
    inputs = [x] if op in EXACT_UNARY else [np.repeat(x, len(SPECIALS)), np.tile(x[: len(SPECIALS)], len(x))]
    case = Case(op, inputs)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(case.run(), case.expected())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_times_a_matrix_has_the_bits_of_that_row_of_a_product(isa: str, dtype: str, transposed: bool) -> None:
    cpu.set_isa(isa)
    attrs = {"transpose_a": False, "transpose_b": transposed}
    for k, n in itertools.product((1, 7, 16, 33, 300), (1, 5, 16, 31, 32, 300)):
        rows, b = values((2, k)).astype(dtype), values((n, k) if transposed else (k, n)).astype(dtype)
        both, one = np.empty((2, n), dtype), np.empty((1, n), dtype)
        cpu.call("matmul", both, [rows, b], attrs)
        cpu.call("matmul", one, [rows[:1], b], attrs)
        assert one.tobytes() == both[:1].tobytes(), (k, n)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_rows_times_a_matrix_that_no_cache_holds_have_the_bits_of_its_parts(isa: str, dtype: str, rows: int) -> None:
    cpu.set_isa(isa)
    attrs = {"transpose_a": False, "transpose_b": True}
    a, b = values((rows, 71), dtype), values((2501, 71), dtype)
    cpu.call("matmul", whole := np.empty((rows, 2501), dtype), [a, b], attrs)
    for begin in range(0, 2501, 500):
        part = np.ascontiguousarray(b[begin : begin + 500])
        cpu.call("matmul", expected := np.empty((rows, len(part)), dtype), [a, part], attrs)
        assert same_bits(np.ascontiguousarray(whole[:, begin : begin + 500]), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lead", [(3, 5), (1, 12), (3, 1), (2, 2, 2)])
def test_single_rows_that_share_a_matrix_have_the_bits_of_each(
    isa: str, dtype: str, transposed: bool, lead: tuple[int, ...]
) -> None:
    cpu.set_isa(isa)
    attrs = {"transpose_a": False, "transpose_b": transposed}
    for shared in {(*lead[:-1], 1), (*(1 for _ in lead[:-1]), lead[-1]), tuple(1 for _ in lead)}:
        a = values((*lead, 1, 37), dtype)
        b = values((*shared, 41, 37) if transposed else (*shared, 37, 41), dtype)
        cpu.call("matmul", found := np.empty((*lead, 1, 41), dtype), [a, b], attrs)
        every = np.broadcast_to(b, (*lead, *b.shape[-2:]))
        for place in np.ndindex(*lead):
            one = [np.ascontiguousarray(a[place]), np.ascontiguousarray(every[place])]
            cpu.call("matmul", expected := np.empty((1, 41), dtype), one, attrs)
            assert same_bits(found[place], expected)


@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16])
def test_the_gradient_of_a_small_weight_stays_within_its_memory(channels: int) -> None:
    rng = np.random.default_rng(0)
    g, x = rng.normal(size=(2, 16, 4, 4)).astype(np.float32), rng.normal(size=(2, channels, 8, 8)).astype(np.float32)
    held = np.full(16 * channels + 64, 7.0, np.float32)
    out = held[: 16 * channels].reshape(16, channels, 1, 1)
    attrs = {"stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "weight_shape": out.shape}
    cpu.call("conv2d_grad_weight", out, [g, x], attrs)
    assert (held[16 * channels :] == 7.0).all()
    np.testing.assert_allclose(out[:, :, 0, 0], np.einsum("nohw,nchw->oc", g, x[:, :, ::2, ::2]), rtol=1e-4, atol=1e-4)


BLOCKED = {  # images, channels, outputs, size, kernel, stride, padding, dilation, groups: threads share these
    "few channels": (4, 1, 33, (28, 30), (3, 3), 1, 0, 1, 1),
    "large steps": (2, 3, 40, (37, 41), (7, 7), 2, 3, 1, 1),
    "1 x 1": (3, 70, 37, (14, 13), (1, 1), 1, 0, 1, 1),
    "depthwise": (3, 50, 50, (23, 24), (3, 3), 1, 1, 1, 50),
    "depthwise, larger than what is at work at once": (2, 20, 20, (70, 90), (5, 3), 2, 2, 1, 20),
    "groups, far apart": (3, 24, 36, (17, 19), (3, 2), 1, 2, 2, 2),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("what", BLOCKED)
def test_a_weights_gradient_that_threads_share_has_the_bits_of_one_and_stays_within_its_memory(
    what: str, dtype: str
) -> None:
    images, channels, outputs, size, kernel, stride, padding, dilation, groups = BLOCKED[what]
    rng = np.random.default_rng(0)
    made = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(size, kernel, strict=True)]
    g, x = rng.normal(size=(images, outputs, *made)), rng.normal(size=(images, channels, *size))
    shape = (outputs, channels // groups, *kernel)
    attrs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (dilation,) * 2, "groups": groups}
    attrs["weight_shape"] = shape
    expected = reference.KERNELS["conv2d_grad_weight"](attrs, g, x)
    found = set()
    for isa, threads in itertools.product(ISAS, (1, 2, 3)):
        cpu.set_isa(isa)
        cpu.set_num_threads(threads)
        held = np.full(math.prod(shape) + 128, np.nan, dtype)
        out = held[64:-64].reshape(shape)
        cpu.call("conv2d_grad_weight", out, [g.astype(dtype), x.astype(dtype)], attrs)
        assert np.isnan(held[:64]).all() and np.isnan(held[-64:]).all()
        found.add(out.tobytes())
    assert len(found) == 1
    np.testing.assert_allclose(
        out, expected, rtol=0, atol=np.abs(expected).max() * (1e-5 if dtype == "float32" else 1e-13)
    )


@pytest.mark.parametrize("rest", [1, 17, 64, 100, 128, 129, 1024])
def test_a_long_sum_has_the_same_bits_on_any_number_of_threads_whatever_its_last_part_is(rest):
    threads = cpu.get_num_threads()
    x = np.zeros(2 * 65536 + rest, np.float32)
    try:
        for seed in range(8):
            x[-rest:] = np.random.default_rng(seed).normal(size=rest)
            found = set()
            for count in (1, 3):
                cpu.set_num_threads(count)
                out = np.zeros((), np.float32)
                cpu.call("sum", out, [x], {"axes": (0,), "keepdims": False})
                found.add(out.tobytes())
            assert len(found) == 1
    finally:
        cpu.set_num_threads(threads)


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_a_large_batch_is_folded_in_the_order_of_memory_with_the_bits_of_a_few_channels(op: str) -> None:
    """Two channels alone are small, and folded one after the other."""
    x = np.random.default_rng(4).standard_normal((41, 26, 1000), np.float32)
    threads, attrs = cpu.get_num_threads(), {"axes": (0, 2), "keepdims": False}
    expected = np.empty(26, np.float32)
    for c in range(0, 26, 2):
        cpu.call(op, expected[c : c + 2], [np.ascontiguousarray(x[:, c : c + 2])], attrs)
    try:
        for count in (1, 3):
            cpu.set_num_threads(count)
            cpu.call(op, out := np.empty(26, np.float32), [x], attrs)
            assert out.tobytes() == expected.tobytes()
    finally:
        cpu.set_num_threads(threads)


def test_a_flat_product_that_threads_share_has_the_same_bits() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.standard_normal((15, 384), np.float32), rng.standard_normal((384, 512), np.float32)
    found = set()
    for threads in (1, 2, 3):
        cpu.set_num_threads(threads)
        cpu.call("matmul", out := np.empty((15, 512), np.float32), [a, b], {"transpose_a": 0, "transpose_b": 0})
        found.add(out.tobytes())
    assert len(found) == 1 and np.allclose(out, a @ b, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
def test_the_first_greatest_is_found_wherever_it_lies(isa: str, dtype: str) -> None:
    """In any lane, block or column; among equals, zeros of both signs, infinities and NaN."""
    cpu.set_isa(isa)
    dice = np.random.default_rng(5)
    odd = [0.0, -0.0, -math.inf, math.inf, math.nan]
    for n in (1, 2, 63, 64, 65, 100, 250, 1000, 1023, 1024, 1025, 2500):
        for high in (2, 4, 1000):
            x = dice.integers(0, high, (3, n, 1)).astype(dtype)
            if dtype.startswith("float"):
                x = np.where(dice.uniform(size=x.shape) < 1 / n, dice.choice(odd, x.shape), x - high / 2).astype(dtype)
                x[0] = -math.inf
            for inner in (1, 2, 17, 300):
                y = np.ascontiguousarray(np.concatenate([np.roll(x, i, axis=1) for i in range(inner)], axis=2))
                cpu.call("argmax", out := np.empty((3, inner), np.int64), [y], {"axis": 1})
                assert out.tolist() == y.argmax(1).tolist(), (n, high, inner)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_that_share_a_long_run_find_its_first_greatest(isa: str, dtype: str) -> None:
    """In any group of 65,536; among equals and infinities, and the first NaN before all."""
    cpu.set_isa(isa)
    cpu.set_num_threads(3)
    n, dice = 3 * 65536 + 17, np.random.default_rng(6)
    plain = dice.uniform(size=n).astype(dtype)
    for odd in (1.0, math.inf, math.nan):
        for places in ([0], [65535], [65536], [n - 1], [n - 20, 70000], [2 * 65536, 2 * 65536 - 1, 5]):
            x = plain.copy()
            x[places] = odd
            cpu.call("argmax", out := np.empty((), np.int64), [x], {"axis": 0})
            assert out == min(places), (odd, places)
    x[70000], x[3] = math.nan, math.inf
    cpu.call("argmax", out, [x[10:]], {"axis": 0})
    assert out == 70000 - 10
    cpu.call("argmax", out, [np.full(n, -math.inf, dtype)], {"axis": 0})
    assert out == 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["sum", "mean", "max", "prod"])
def test_few_columns_of_many_rows_have_the_same_bits_on_any_number_of_threads(isa: str, op: str) -> None:
    """Threads share the rows where they come out even, else the columns."""
    cpu.set_isa(isa)
    dice = np.random.default_rng(7)
    for shape in ((1000, 333), (1024, 200), (700, 250), (513, 1000), (769, 171), (3001, 47), (2, 1000, 70)):
        for dtype in ("float32", "float64"):
            x = dice.uniform(0.5, 1.5, shape).astype(dtype)
            found = set()
            for threads in (1, 2, 3, 5):
                cpu.set_num_threads(threads)
                out = np.full((*shape[:-2], shape[-1]), np.nan, dtype)
                cpu.call(op, out, [x], {"axes": (x.ndim - 2,), "keepdims": False})
                found.add(out.tobytes())
            assert len(found) == 1, shape
            assert np.allclose(out, getattr(np, op)(x, axis=-2), rtol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_what_is_taken_is_what_numpy_takes(isa: str, dtype: str) -> None:
    """Elements and short rows, which are moved without memcpy, in threads that begin anywhere."""
    cpu.set_isa(isa)
    dice = np.random.default_rng(6)
    for inner in (1, 2, 3, 5):
        x = dice.integers(0, 200, (5, 7, inner)).astype(dtype)
        index, along = dice.integers(-7, 7, 11), dice.integers(-7, 7, (5, 9, inner))
        for threads in (1, 3):
            cpu.set_num_threads(threads)
            cpu.call("take", out := np.empty((5, 11, inner), dtype), [x, index], {"axis": 1})
            assert out.tolist() == x[:, index].tolist()
            cpu.call("take_along", out := np.empty((5, 9, inner), dtype), [x, along], {"axis": 1})
            assert out.tolist() == np.take_along_axis(x, along, 1).tolist()
            long = dice.integers(-7, 7, 20001)
            cpu.call("take", out := np.empty((5, 20001, inner), dtype), [x, long], {"axis": 1})
            assert out.tobytes() == x[:, long].tobytes()


def test_a_product_fetches_what_the_calls_behind_it_read_and_have_not_read_lately() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(32, 128)).astype(np.float32), rng.normal(size=(128, 512)).astype(np.float32)
    old, large = np.ones((32, 128), np.float32), np.ones((512, 256), np.float32)
    product, twice, halved = np.empty((32, 512), np.float32), np.empty_like(old), np.empty_like(large)

    def lines(*behind: tuple[str, Any, list[Any]], terms: int = 128) -> list[int]:
        program = cpu.Program()
        left = np.ascontiguousarray(a[:, :terms])
        program.add("matmul", product, [left, b[:terms]], {"transpose_a": False, "transpose_b": False})
        for op, out, inputs in behind:
            program.add(op, out, inputs, {})
        program.fuse()
        program.run()
        assert np.allclose(product, left @ b[:terms], atol=1e-4)
        return program.lines_ahead

    tiny = np.ones(1, np.float32)
    record = lines(("add", tiny, [tiny, tiny]))[0]
    assert 0 < record < 64
    of_old = 2 * old.nbytes // 64  # what is read, and where the result goes
    assert of_old <= lines(("add", twice, [old, old]))[0] <= of_old + record + 2
    assert lines(("add", twice, [a, a]))[0] < of_old  # the product has just read it
    assert lines(("add", halved, [large, large]))[0] <= record  # it would displace what the product needs
    assert lines()[0] == 0
    assert lines(("add", twice, [old, old]), terms=0) == [0, 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_a_product_fetches_changes_no_bit_of_it(isa: str, dtype: str) -> None:
    cpu.set_isa(isa)
    dice = np.random.default_rng(0)
    b = dice.normal(size=(400, 64)).astype(dtype)
    old = np.ones((64, 100), dtype)
    for rows in (4, 5, 6, *range(7, 13), 16, 20, 32):  # blocks of every height
        a = dice.normal(size=(rows, 400)).astype(dtype)
        cpu.call("matmul", alone := np.empty((rows, 64), dtype), [a, b], {"transpose_a": False, "transpose_b": False})
        program = cpu.Program()
        product, twice = np.empty_like(alone), np.empty_like(old)
        program.add("matmul", product, [a, b], {"transpose_a": False, "transpose_b": False})
        program.add("add", twice, [old, old], {})
        program.fuse()
        program.run()
        assert program.lines_ahead[0] > 0
        assert product.tobytes() == alone.tobytes()
        assert (twice == 2).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_many_rows_have_the_bits_of_each_row_alone(isa: str, dtype: str) -> None:
    """Rows of few classes go side by side in the lanes of vectors."""
    for classes in (1, 2, 10, 16, 17, 31, 48, 49):
        logits, upstream = 30 * values((37, classes), dtype), values((37,), dtype, seed=1)
        labels = np.arange(37) * 5 % classes
        logits[3, -1], logits[5, 0], logits[7] = np.inf, np.nan, -np.inf
        losses, gradients = np.empty(37, dtype), np.empty_like(logits)
        cpu.call("cross_entropy", losses, [logits, labels], {})
        cpu.call("cross_entropy_grad", gradients, [upstream, logits, labels], {})
        for row in range(37):
            one, loss, gradient = slice(row, row + 1), np.empty(1, dtype), np.empty((1, classes), dtype)
            cpu.call("cross_entropy", loss, [logits[one], labels[one]], {})
            cpu.call("cross_entropy_grad", gradient, [upstream[one], logits[one], labels[one]], {})
            for alone, among in ((loss, losses[one]), (gradient, gradients[one])):
                assert np.array_equal(alone, among, equal_nan=True)
                assert np.array_equal(np.signbit(alone), np.signbit(among)) or np.isnan(alone).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_pixels_have_the_bits_of_those_of_rows(isa: str, dtype: str) -> None:
    """Classes that lie below each other go by columns, in the lanes of vectors."""
    for classes, pixels in ((1, 20), (2, 64), (17, 3), (21, 131), (129, 40), (1030, 19)):
        logits, upstream = 30 * values((2, classes, pixels), dtype), values((2, pixels), dtype, seed=1)
        logits[1, 0, 0], logits[1, -1, 1], logits[0, :, 2] = np.nan, np.inf, -np.inf
        labels = np.arange(2 * pixels).reshape(2, pixels) * 5 % classes
        rows = np.ascontiguousarray(logits.transpose(0, 2, 1)).reshape(-1, classes)
        losses, gradients, of_row, of_rows = (np.empty_like(x) for x in (upstream, logits, upstream.ravel(), rows))
        cpu.call("cross_entropy", losses, [logits, labels], {})
        cpu.call("cross_entropy_grad", gradients, [upstream, logits, labels], {})
        cpu.call("cross_entropy", of_row, [rows, labels.ravel()], {})
        cpu.call("cross_entropy_grad", of_rows, [upstream.ravel(), rows, labels.ravel()], {})
        assert same_bits(losses.ravel(), of_row)
        assert same_bits(gradients.transpose(0, 2, 1).reshape(-1, classes), of_rows)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_a_softmax_over_any_axis_has_the_bits_of_one_over_the_last(isa: str, dtype: str, op: str) -> None:
    """Columns go side by side in lanes of vectors; few, and those of more than 8,192 numbers, are turned into rows."""
    shapes = [(1, 20), (2, 64), (17, 3), (21, 131), (1, 300), (35, 280), (128, 140), (128, 40), (129, 40)]
    shapes += [(1030, 19), (3100, 9), (70_000, 2)]
    for terms, columns in shapes:
        x = 30 * values((2, terms, columns), dtype)
        x[1, 0, 0], x[1, -1, 1], x[0, :, 2 % columns] = np.nan, np.inf, -np.inf
        rows = np.ascontiguousarray(x.transpose(0, 2, 1))
        got, expected = np.empty_like(x), np.empty_like(rows)
        cpu.call(op, got, [x], {"axis": 1})
        cpu.call(op, expected, [rows], {"axis": 2})
        assert same_bits(got, expected.transpose(0, 2, 1))
        cpu.call(op, x, [x], {"axis": 1})
        assert same_bits(x, got)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("terms", [1, 16, 33, 129, 1100])
def test_gradients_of_softmax_have_the_bits_of_their_operations_one_by_one(isa: str, dtype: str, terms: int) -> None:
    def made(op: str, *inputs: Array, **attrs: Any) -> Array:
        shape = tuple(1 if axis in attrs.get("axes", ()) else size for axis, size in enumerate(inputs[0].shape))
        out = np.empty(shape, dtype)
        cpu.call(op, out, list(inputs), attrs)
        return out

    for shape, axis in (((5, terms), 1), ((2, terms, 3), 1), ((terms, 300), 0)):
        g, y = values(shape, dtype), values(shape, dtype, seed=1)
        sums = {"axes": (axis,), "keepdims": True}
        total = made("sum", made("mul", g, y), **sums)
        assert same_bits(made("softmax_grad", g, y, axis=axis), made("mul", y, made("sub", g, total)))
        spread = made("mul", made("exp", y), made("sum", g, **sums))
        assert same_bits(made("log_softmax_grad", g, y, axis=axis), made("sub", g, spread))


@pytest.mark.parametrize("dtype", FLOATS)
def test_softplus_and_its_gradient_have_the_bits_of_operations_one_by_one(isa: str, dtype: str) -> None:
    def made(op: str, *inputs: Array, **attrs: Any) -> Array:
        out = np.empty(inputs[-1].shape, "bool" if op == "greater" else dtype)
        cpu.call(op, out, list(inputs), attrs)
        return out

    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 104.0, -104.0], dtype)
    x = np.concatenate([odd, 30 * values((1031,), dtype)])
    g, one, nought = values(x.shape, dtype, seed=1), np.ones_like(x), np.zeros_like(x)
    g[::7], g[3::7] = 0.0, -0.0
    above = made("greater", x, nought)
    power = made("exp", made("where", above, made("neg", x), x))
    more = made("add", power, one)
    lost = made("sub", power, made("sub", more, one))
    rest = made("mul", lost, made("sub", one, made("mul", power, one / 2)))
    assert same_bits(made("softplus", x), made("add", made("relu", x), made("add", made("log", more), rest)))
    through = made("mul", made("div", g, more), power)
    sides = made("add", made("where", above, nought, through), made("neg", made("where", above, through, nought)))
    expected = made("add", sides, made("mul", g, made("cast", above, dtype=dtype)))
    assert same_bits(made("softplus_grad", g, x), expected)


FAULTS = """
import resource
import cyxcore as cx
x = cx.randn(1000, 1000).requires_grad_()
for turn in range(40):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x.grad = None
    x.exp().sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems keep freed memory by rules of their own")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer allocates by itself")
def test_freed_arrays_of_megabytes_are_used_again_without_a_fault_for_each_page() -> None:
    """A step here makes 8 MB, which are 2,000 pages."""
    clean = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=clean)
    assert int(ran.stdout) < 20 * 100
