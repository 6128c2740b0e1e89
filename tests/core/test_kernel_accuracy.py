"""How far a kernel is from the true value: functions, powers, long sums, and Philox with its published answer."""

import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.kernels import cpu, reference
from cyxcore.kernels.philox import philox4x32
from tests.core.kernelcases import FLOATS, Array, Case

pytestmark = pytest.mark.usefixtures("own_machine")


DENSE = {
    "exp": 88.0, "log": 3e38, "log1p": 3e38, "tanh": 9.5, "sigmoid": 90.0, "erf": 4.2, "sin": 1e5, "cos": 1e5,
    "softplus": 100.0, "erfc": 27.0, "ndtr": 37.0, "gelu": 37.0,
}  # fmt: skip
ALLOWED = {"softplus": 2.5}  # units in the last place; of the others 2
BY_MATH = {"erf", "erfc", "ndtr", "gelu"}  # by Python's math, which is itself off by one or two in float64


def share_below(wide: Any) -> Any:
    """The normal distribution function of -x sqrt(2) for x as it rounds, and what that loses by the slope."""
    place = np.array([-float(v) * math.sqrt(0.5) for v in wide])
    lost = -wide * np.sqrt(wide.dtype.type(0.5)) - place
    wrong = np.exp(-(place.astype(wide.dtype) ** 2)) * lost * 2 / np.sqrt(wide.dtype.type(math.pi))
    return (np.array([math.erfc(v) for v in place]).astype(wide.dtype) - wrong) / 2


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[Executor]:
    """Where extended precision can be trusted: an embedded chain leaves its process' x87 registers in disorder."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def units_off(op: str, x: Array, got: Array) -> float:
    """The largest error of `got` in units in the last place, judged in float64 (x87 extended for float64)."""
    wide: Any = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    if op == "sigmoid":
        true = np.asarray(1 / (1 + np.exp(-wide)))
    elif op == "softplus":
        true = np.logaddexp(0, wide)
    elif op in ("erf", "erfc"):
        true = np.array([getattr(math, op)(v) for v in wide])
    elif op in ("ndtr", "gelu"):
        true = share_below(wide) * (wide if op == "gelu" else 1)
    else:
        functions = {"exp": np.exp, "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "sin": np.sin, "cos": np.cos}
        true = np.asarray(functions[op](wide))
    unit = np.spacing(np.abs(true).astype(x.dtype)).astype(true.dtype)
    return float((np.abs(got.astype(true.dtype) - true) / unit).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", sorted(DENSE))
def test_a_transcendental_function_is_within_few_units_in_the_last_place(
    op: str, dtype: str, fresh_process: Executor
) -> None:
    if dtype == "float64" and np.finfo(np.longdouble).nmant < 63:
        pytest.skip("needs extended precision to judge float64")
    rng = np.random.default_rng(11)
    if op == "log":
        x = np.exp(rng.uniform(-87, 88, 40_000)).astype(dtype)
    elif op == "log1p":
        near = np.exp(rng.uniform(-87, -0.1, 20_000))
        x = np.concatenate([np.exp(rng.uniform(-87, 88, 20_000)), -near, near - 1.0]).astype(dtype)
        x = x[x > -1.0]
    else:
        x = np.concatenate([rng.uniform(-DENSE[op], DENSE[op], 20_000), rng.normal(0, 1, 20_000)]).astype(dtype)
    got = np.empty_like(x)
    cpu.call(op, got, [x], {})
    allowed = 4.0 if op in BY_MATH and dtype == "float64" else ALLOWED.get(op, 2.0)
    assert fresh_process.submit(units_off, op, x, got).result() <= allowed


@pytest.mark.parametrize("op", sorted(set(DENSE) - BY_MATH))  # math.erf would take long
def test_every_four_thousandth_float32_has_its_function_within_few_units(op: str, fresh_process: Executor) -> None:
    """From the least denormal to infinity and the NaNs, of both signs."""
    x = np.arange(0, 2**32, 4001, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, np.array([0.0, -0.0, math.inf, -math.inf, math.nan], np.float32)])
    got = np.empty_like(x)
    cpu.call(op, got, [x], {})
    with np.errstate(all="ignore"):
        true = np.asarray(reference.KERNELS[op]({}, x.astype(np.float64)))
        odd = ~np.isfinite(true.astype(np.float32))
        np.testing.assert_array_equal(got[odd], true[odd].astype(np.float32))
    assert fresh_process.submit(units_off, op, x[~odd], got[~odd]).result() <= ALLOWED.get(op, 2.0)


@pytest.mark.parametrize(
    ("op", "x", "units"),
    [
        ("exp", -87.74549102783203, "0.93"),
        ("log", 0.9836542010307312, "1.24"),
        ("tanh", 0.23814699053764343, "1.86"),
        ("sigmoid", -1.9471776485443115, "1.87"),
        ("erf", 0.12938559055328369, "1.29"),
        ("erfc", 1.0918492078781128, "0.52"),
        ("gelu", -3.8539793491363525, "1.80"),
        ("sin", 931878.125, "1.67"),
        ("cos", 993335.5, "1.81"),
    ],
)
def test_the_largest_error_of_a_function_is_the_one_that_is_written_down(
    op: str, x: float, units: str, fresh_process: Executor
) -> None:
    """Of every float32 there is: docs/numerics.md. Its bits are those of every processor."""
    at = np.array([x], np.float32)
    got = np.empty_like(at)
    cpu.call(op, got, [at], {})
    assert f"{fresh_process.submit(units_off, op, at, got).result():.2f}" == units


@pytest.mark.parametrize("op", ["log1p", "atan2"])
def test_what_is_computed_in_float64_rounds_once(isa: str, op: str) -> None:
    """Of bit patterns at random, of usual numbers, and of numbers near each other."""
    rng = np.random.default_rng(6)
    y, x = rng.integers(0, 2**32, (2, 100_003), dtype=np.uint32).view(np.float32)
    near = rng.normal(0, 1, (2, 100_003)).astype(np.float32)
    y, x = np.concatenate([y, near[0], near[0]]), np.concatenate([x, near[1], near[0] * np.float32(1.001)])
    given, got = [y, x][: 1 + (op == "atan2")], np.empty_like(y)
    cpu.call(op, got, given, {})
    with np.errstate(all="ignore"):
        true = np.asarray(reference.KERNELS[op]({}, *(each.astype(np.float64) for each in given)))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(true))
    np.testing.assert_array_equal(got[np.isinf(true)], true[np.isinf(true)])
    there = np.isfinite(true)
    np.testing.assert_array_equal(np.signbit(got[there]), np.signbit(true[there]))
    unit = np.spacing(np.abs(true[there]).astype(np.float32)).astype(np.float64)
    assert (np.abs(got[there].astype(np.float64) - true[there]) / unit).max() <= 0.51


def test_silu_is_within_three_units_where_sigmoid_is_a_normal_number() -> None:
    x = np.arange(0x00800000, 0x42AE0000, 4001, dtype=np.uint32).view(np.float32)  # up to 87
    x = np.concatenate([x, -x, np.array([0.00048774536], np.float32)])
    wide = x.astype(np.float64)
    true = wide / (1 + np.exp(-wide))
    error = np.abs(cx.functional.silu(cx.tensor(x)).numpy() - true)
    assert (error / np.spacing(np.abs(true).astype(np.float32)))[np.abs(true) > 1.2e-38].max() <= 3.0


def test_gelu_by_tanh_is_within_three_units_from_minus_one_on_and_by_a_number_below() -> None:
    x = np.concatenate([np.linspace(-14, 14, 40_001), np.random.default_rng(2).normal(size=40_000)]).astype(np.float32)
    wide = x.astype(np.float64)
    true = wide / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    error = np.abs(cx.functional.gelu(cx.tensor(x), approximate="tanh").numpy() - true)
    assert (error / np.spacing(np.abs(true).astype(np.float32)))[x >= -1].max() <= 3.0
    assert error[x < -1].max() <= 5e-8


def test_what_is_made_of_the_normal_distribution_is_within_two_units_down_to_the_least_number(isa: str) -> None:
    """Also where the result is no normal number; near -0.7518, where the gradient of gelu is 0, by a number."""
    rng = np.random.default_rng(2)
    x = np.concatenate([np.linspace(-15, 15, 30_001), rng.normal(size=10_000), rng.normal(size=1000) * 1e-9])
    x = np.concatenate([x, [3.8539793, -3.8539793, 5.41, -5.41, 5.4100003, -5.4100003, 15.0, -15.0]]).astype(np.float32)
    wide, got = x.astype(np.float64), np.empty_like(x)
    share = share_below(wide)
    slope = share + wide * np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)
    for op, true, units in (("ndtr", share, 0.6), ("gelu", wide * share, 2.0), ("gelu_grad", slope, 2.0)):
        cpu.call(op, got, [np.ones_like(x), x] if op == "gelu_grad" else [x], {})
        error = np.abs(got - true)
        near = (np.abs(wide + 0.7518) < 0.1) if op == "gelu_grad" else np.zeros(len(x), bool)
        assert (error / np.spacing(np.abs(true).astype(np.float32)))[~near].max() <= units
        assert error[near].max(initial=0.0) <= 5e-9


@pytest.mark.parametrize("dtype", FLOATS)
def test_gelu_is_defined_at_the_ends(isa: str, dtype: str) -> None:
    x = np.array([0.0, -0.0, math.inf, -math.inf, math.nan, 1e30, -1e30] * 9, dtype)
    got, slope = np.empty_like(x), np.empty_like(x)
    cpu.call("gelu", got, [x], {})
    cpu.call("gelu_grad", slope, [np.ones_like(x), x], {})
    np.testing.assert_array_equal(got, np.array([0, 0, math.inf, 0, math.nan, 1e30, 0] * 9, dtype))
    np.testing.assert_array_equal(np.signbit(got[np.isfinite(x)]), np.signbit(x[np.isfinite(x)]))
    np.testing.assert_array_equal(slope, np.array([0.5, 0.5, 1, 0, math.nan, 1, 0] * 9, dtype))


@pytest.mark.parametrize(
    ("op", "x", "true"),
    [
        ("sin", 1e22, -0.8522008497671888),
        ("cos", 1e22, 0.5232147853951389),
        ("sin", 2.0**1000, -0.15920170308624246),
        ("sin", math.pi, 1.2246467991473532e-16),
        ("cos", math.pi / 2, 6.123233995736766e-17),
        ("exp", 709.0, 8.218407461554972e307),
        ("exp", -745.0, 5e-324),
        ("log", 5e-324, -744.4400719213812),
        ("erf", 1e-300, 1.1283791670955126e-300),
    ],
)
def test_a_known_value_far_out_is_met(op: str, x: float, true: float) -> None:
    got = np.empty(1)
    cpu.call(op, got, [np.array([x])], {})
    assert got[0] == pytest.approx(true, rel=3e-16)


POWERS = [
    (2.0, 0.5),
    (-2.0, 3.0),
    (-2.0, 2.5),
    (0.0, -1.0),
    (-0.0, -3.0),
    (1.0, math.nan),
    (math.nan, 0.0),
    (-1.0, math.inf),
    (0.5, -math.inf),
    (math.inf, -2.0),
    (-math.inf, 3.0),
    (1.0000001, 1e7),
    (10.0, 300.0),
    (10.0, 400.0),
    (3.7, -500.5),
]


@pytest.mark.parametrize(("base", "exponent"), POWERS)
def test_a_power_is_what_c_says(base: float, exponent: float) -> None:
    got = np.empty(1)
    cpu.call("pow", got, [np.array([base]), np.array([exponent])], {})
    with np.errstate(all="ignore"):
        true = np.power(np.float64(base), np.float64(exponent))
    np.testing.assert_allclose(got[0], true, rtol=2.3e-16)


@pytest.mark.parametrize("exponents", [None, -1.0, 1.5, 3.0])
def test_powers_of_float32_are_what_c_says_among_others(isa: str, exponents: float | None) -> None:
    known = np.array([*POWERS, *((0.05 * k, 0.1 * k - 5.0) for k in range(1, 131))], np.float32)
    bases, each = np.ascontiguousarray(known.T)
    exponent = each if exponents is None else np.array(exponents, np.float32)
    got = np.empty_like(bases)
    cpu.call("pow", got, [bases, exponent], {})
    with np.errstate(all="ignore"):
        true = np.power(bases.astype(np.float64), exponent.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(got, true, rtol=1.2e-7)
    np.testing.assert_array_equal(np.signbit(got[got == 0.0]), np.signbit(true[true == 0.0]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["sin", "tanh", "erf", "log1p", "sqrt", "neg", "abs", "floor"])
def test_zero_keeps_the_sign_numpy_gives_it(op: str, dtype: str) -> None:
    case = Case(op, [np.array([0.0, -0.0] * 20, dtype)])
    expected = case.inputs[0] if op == "erf" else case.expected()
    np.testing.assert_array_equal(np.signbit(case.run()), np.signbit(expected))


def test_a_long_sum_in_float32_keeps_six_digits() -> None:
    x = np.full(2_000_000, 0.1, np.float32)
    out = np.empty((), np.float32)
    cpu.call("sum", out, [x], {"axes": (0,), "keepdims": False})
    assert float(out) == pytest.approx(float(x.astype(np.float64).sum()), rel=1e-6)


# Philox ---------------------------------------------------------------------------------------------------

# Random123 1.14, kat_vectors: philox4x32 10: counter (4 words), key (2 words), result (4 words)
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_random_numbers_are_philox_with_its_published_answer() -> None:
    counter, key, words = PHILOX[0]
    out = np.empty(4, np.float32)
    cpu.call("uniform", out, [np.array([0, 0], np.uint64)], {"shape": (4,), "stream": 0})
    assert (counter, key) == ((0, 0, 0, 0), (0, 0))
    np.testing.assert_array_equal(out, np.array([w >> 8 for w in words], np.float32) * np.float32(2**-24))


def test_key_stream_and_step_are_where_the_definition_puts_them() -> None:
    seed, step, stream = 0x299F31D0_A4093822, 0x03707344_13198A2E, 0x85A308D3
    out = np.empty((1 << 16) + 4, np.float32)
    cpu.call("uniform", out, [np.array([seed, step], np.uint64)], {"shape": out.shape, "stream": stream})
    counter = np.array([1 << 14, stream, step & 0xFFFFFFFF, step >> 32], np.uint32)
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    np.testing.assert_array_equal(out[-4:], (words >> np.uint32(8)).astype(np.float32) * np.float32(2**-24))
    answer = philox4x32(np.array(PHILOX[1][0], np.uint32), PHILOX[1][1])
    assert tuple(int(w) for w in answer) == PHILOX[1][2]


@pytest.mark.parametrize("op", ["lgamma", "digamma", "trigamma", "erfinv"])
def test_gamma_functions_and_erfinv_of_float32_round_little_more_than_once(isa: str, op: str) -> None:
    """Next to where they are 0 or infinite, of usual, large and small numbers. Below 0 the terms of lgamma
    and digamma may cancel, and then their errors are what is left.
    """
    rng = np.random.default_rng(8)
    near = 10.0 ** rng.uniform(-7, -1, 500)
    if op == "erfinv":
        x = np.concatenate([rng.uniform(-1, 1, 2000), near, near - 1, 1 - near, 10 ** rng.uniform(-44, 0, 500)])
    else:
        x = np.concatenate(
            [rng.uniform(0, 20, 2000), 1 - near, 1 + near, 2 - near, 2 + near, 10 ** rng.uniform(-38, 38, 500)]
        )
    x = np.concatenate([x, [0.0, 1.0, 2.0, 0.5, math.inf, math.nan, 2 - 2**-23, 1 - 2**-24, 1.4616321, 8.0]])
    x = np.concatenate([x, -x, -rng.uniform(0, 9, 2000), [-1e9, -1e18]]).astype(np.float32)
    got, wide = np.empty_like(x), x.astype(np.float64)
    cpu.call(op, got, [x], {})
    with np.errstate(all="ignore"):
        true = np.asarray(reference.KERNELS[op]({}, wide))
        true = np.where(np.abs(true) > np.finfo(np.float32).max, np.copysign(math.inf, true), true)
    there = np.isfinite(true.astype(np.float32))
    np.testing.assert_array_equal(got[~there], true[~there].astype(np.float32))
    error = np.abs(got[there] - true[there])
    units = error / np.spacing(np.abs(true[there]).astype(np.float32))
    assert units[(wide[there] > 0) | (op in ("trigamma", "erfinv"))].max() <= 0.6
    assert np.minimum(error / 1e-13, units).max() <= 1.0


@pytest.mark.parametrize("op", ["lgamma", "digamma", "trigamma", "erfinv"])
def test_gamma_functions_and_erfinv_of_float64_have_fourteen_digits(isa: str, op: str) -> None:
    rng = np.random.default_rng(8)
    x = (
        rng.uniform(-0.99999, 0.99999, 500)
        if op == "erfinv"
        else np.concatenate([rng.uniform(-9, 20, 500), [1e200, 3.0]])
    )
    x = np.concatenate([x, 10.0 ** rng.uniform(-300, -1, 100)])
    got = np.empty_like(x)
    cpu.call(op, got, [x], {})
    with np.errstate(all="ignore"):
        true = np.asarray(reference.KERNELS[op]({}, x))
    np.testing.assert_allclose(got, true, rtol=1e-14, atol=0 if op == "erfinv" else 1e-13)
