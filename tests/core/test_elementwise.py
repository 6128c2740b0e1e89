"""The standard's element-wise functions, on every dtype and odd value, against array-api-strict."""

import math
import operator
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import elementwise
from cyxcore.errors import DataError, DtypeError
from tests.core.oracle import ALL, COMPLEX, FLOATS, INTEGERS, NUMBERS, REAL, agree, signature_differences, specials

INEXACT = FLOATS + COMPLEX
UNARY = {
    **dict.fromkeys("abs negative positive sign square conj isfinite isinf isnan round".split(), NUMBERS),
    **dict.fromkeys("ceil floor trunc".split(), REAL),
    **dict.fromkeys("acos acosh asin asinh atan atanh cos cosh sin sinh tan tanh".split(), INEXACT),
    **dict.fromkeys("exp expm1 log log1p log2 log10 reciprocal sqrt".split(), INEXACT),
    **dict.fromkeys("real imag".split(), COMPLEX),
    "signbit": FLOATS,
    "bitwise_invert": ("bool", *INTEGERS),
    "logical_not": ("bool",),
}
BINARY = {
    **dict.fromkeys("add subtract multiply".split(), NUMBERS),
    **dict.fromkeys("equal not_equal".split(), ALL),
    **dict.fromkeys("greater greater_equal less less_equal maximum minimum".split(), REAL),
    **dict.fromkeys("atan2 copysign hypot logaddexp nextafter".split(), FLOATS),
    **dict.fromkeys("floor_divide remainder".split(), REAL),
    **dict.fromkeys("bitwise_and bitwise_or bitwise_xor".split(), ("bool", *INTEGERS)),
    **dict.fromkeys("logical_and logical_or logical_xor".split(), ("bool",)),
    "divide": INEXACT,
    "pow": FLOATS,
}


def test_every_function_is_tried() -> None:
    others = {"astype", "clip", "bitwise_left_shift", "bitwise_right_shift"}
    assert set(UNARY) | set(BINARY) | others == {*elementwise.__all__, "maximum", "minimum"}


@pytest.mark.parametrize("name", [*elementwise.__all__, "maximum", "minimum"])
def test_the_parameters_are_the_standards(name: str) -> None:
    assert signature_differences(name) == []


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in UNARY.items() for dtype in dtypes])
def test_a_function_of_one_tensor(name: str, dtype: str) -> None:
    agree(name, specials(dtype))


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in BINARY.items() for dtype in dtypes])
def test_a_function_of_two_tensors(name: str, dtype: str) -> None:
    x = specials(dtype)
    agree(name, x[:, None], x)


INF, NAN = math.inf, math.nan
COMPLEX_CASES = {  # as the standard lists them; NumPy's differ
    "expm1": [
        *((complex(a, b), complex(0, b)) for a in (0.0, -0.0) for b in (0.0, -0.0)),
        *((complex(a, b), complex(NAN, NAN)) for a in (2.0, -800.0) for b in (INF, -INF, NAN)),
        *((complex(INF, b), complex(INF, b)) for b in (0.0, -0.0)),
        *((complex(INF, b), complex(INF, NAN)) for b in (INF, -INF, NAN)),
        (complex(INF, 2), complex(-INF, INF)),
        *((complex(-INF, b), complex(-1, 0)) for b in (0.0, 1.0, INF, -INF, NAN)),
        (complex(-INF, 4), complex(-1, -0.0)),
        *((complex(NAN, b), complex(NAN, b)) for b in (0.0, -0.0)),
        *((complex(NAN, b), complex(NAN, NAN)) for b in (1.0, INF, NAN)),
    ],
    "tanh": [(complex(a, b), complex(math.copysign(1, a), b * 0)) for a in (INF, -INF) for b in (1.0, 2.0, 4.0, -2.0)],
    "tan": [(complex(a, b), complex(a * 0, math.copysign(1, b))) for a in (1.0, 2.0, 4.0, -2.0) for b in (INF, -INF)],
    "sign": [
        *((complex(a, b), 0j) for a in (0.0, -0.0) for b in (0.0, -0.0)),
        *((complex(a, b), complex(NAN, NAN)) for a, b in ((NAN, 1.0), (0.0, NAN), (NAN, NAN))),
        (3 - 4j, 0.6 - 0.8j),
    ],
}


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("name", COMPLEX_CASES)
def test_special_cases_of_complex_numbers(name: str, dtype: str) -> None:
    for x, wanted in COMPLEX_CASES[name]:
        got = complex(getattr(cx, name)(cx.asarray(x, dtype=dtype)))
        for mine, theirs in ((got.real, wanted.real), (got.imag, wanted.imag)):
            assert mine == pytest.approx(theirs, nan_ok=True), (x, got)
            assert math.isnan(theirs) or math.copysign(1, mine) == math.copysign(1, theirs), (x, got)


def test_the_sign_of_a_complex_zero_has_no_slope() -> None:
    x = cx.tensor([0j, 3 + 4j], requires_grad=True)
    cx.sign(x).real.sum().backward()
    assert x.grad is not None and complex(x.grad[0]) == 0 and complex(x.grad[1]) == pytest.approx(0.128 - 0.096j)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_to_integer_powers_and_shifted(dtype: str) -> None:
    bases, small = specials(dtype), np.arange(5).astype(dtype)
    for name in ("pow", "bitwise_left_shift", "bitwise_right_shift"):
        agree(name, bases[:, None], small)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_powers_of_complex_numbers(dtype: str) -> None:
    x = specials(dtype)
    agree("pow", x[x != 0][:, None], x[:9], scale=20)


def test_a_negative_power_of_an_integer_is_refused() -> None:
    with pytest.raises(DataError, match="pow: expected integer powers >= 0, got -1"):
        cx.pow(cx.tensor([2]), cx.tensor([-1]))


@pytest.mark.parametrize(("low", "high"), [(None, None), (-1, None), (None, 2), (-1, 2)])
@pytest.mark.parametrize("dtype", ["int8", "int64", "float32", "float64"])
def test_clip(dtype: str, low: int | None, high: int | None) -> None:
    x = specials(dtype)
    agree("clip", x, low, high)
    as_arrays = [None if bound is None else np.full((2, 1), bound, dtype) for bound in (low, high)]
    agree("clip", x, *as_arrays)


def test_a_bound_that_would_change_the_dtype_is_refused() -> None:
    with pytest.raises(DtypeError, match="clip: a bound of float32 does not fit int64"):
        cx.clip(cx.tensor([1]), 0.5)


OPERATORS = "add sub mul truediv floordiv mod pow and_ or_ xor lshift rshift eq ne lt le gt ge".split()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in OPERATORS
        for dtype in ("int8", "uint16", "int64", "float32", "float64")
        if (dtype not in INTEGERS if name == "truediv" else dtype in INTEGERS or name not in OPERATORS[7:12])
    ],
)
def test_an_operator_is_its_function_either_way_round(name: str, dtype: str) -> None:
    compute = getattr(operator, name)
    x = np.array([1, 2, 5], dtype)
    for left, right in ((x, 3), (3, x), (x, x[:1])):
        got = compute(*(cx.asarray(v) if isinstance(v, np.ndarray) else v for v in (left, right)))
        wanted = compute(left, right)
        assert got.dtype == wanted.dtype.name and got.tolist() == pytest.approx(wanted.tolist())


def test_bools_combine_bit_by_bit_and_unary_operators() -> None:
    x, y = cx.tensor([True, False]), cx.tensor([True, True])
    assert ((x & y).tolist(), (x ^ y).tolist(), (~x).tolist()) == ([1, 0], [0, 1], [0, 1])
    z = cx.tensor([1, -2])
    assert ((-z).tolist(), (~z).tolist(), abs(z).tolist(), (+z).tolist()) == ([-1, 2], [-2, 1], [1, 2], [1, -2])
    assert +z is not z


@pytest.mark.parametrize("to", ALL)
@pytest.mark.parametrize("dtype", ALL)
def test_astype(dtype: str, to: str) -> None:
    if dtype in COMPLEX and to not in COMPLEX:
        return  # refused: test_dtypes.py
    x = np.array([0, 1, 3], dtype)
    agree("astype", x, to)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint64", "complex64"])
def test_numbers_other_than_zero_are_true(dtype: str) -> None:
    x = np.array([0, 1, 2, 0]) if dtype in INTEGERS else np.array([0.0, np.nan, 2.0, -0.0])
    ours, y = cx.asarray(x).astype(dtype), np.array([True, False, True, False])
    assert cx.logical_not(ours).tolist() == ours.logical_not().tolist() == np.logical_not(x).tolist()
    for name in ("logical_and", "logical_or", "logical_xor"):
        compute, wanted = getattr(cx, name), getattr(np, name)
        assert compute(ours, cx.asarray(y)).tolist() == wanted(x, y).tolist()
        assert compute(cx.asarray(x), ours).tolist() == wanted(x, x).tolist()
        assert compute(ours, True).tolist() == wanted(x, True).tolist()
        assert compute(cx.asarray(y), 0).tolist() == wanted(y, 0).tolist()


def test_bools_are_added_and_multiplied_as_in_numpy_and_pytorch() -> None:
    x, y = np.array([True, True, False, False]), np.array([True, False, True, False])
    ours, other = cx.asarray(x), cx.asarray(y)
    for compute, name in ((operator.add, "add"), (operator.mul, "multiply")):
        for got in (compute(ours, other), getattr(cx, name)(ours, other), cx.compile(compute)(ours, other)):
            assert got.dtype == "bool" and got.tolist() == compute(x, y).tolist()
        assert compute(ours, True).tolist() == compute(x, True).tolist()
    with pytest.raises(DtypeError, match="sub: expected a numeric dtype, got bool, bool; use astype"):
        ours - other


def test_where_of_a_condition_alone_has_its_places() -> None:
    x = np.array([[0, 2, 0], [4, 0, 5]])
    for got, wanted in zip(cx.where(cx.asarray(x) > 0), np.where(x > 0), strict=True):
        assert got.dtype == "int64" and got.tolist() == wanted.tolist()
    with pytest.raises(DtypeError, match="where: expected a condition with both x1 and x2, or alone"):
        cx.where(cx.asarray(x) > 0, 1)


def test_astype_copies_unless_told_not_to() -> None:
    x = cx.zeros(2)
    assert cx.astype(x, "float32") is not x and cx.astype(x, "float32", copy=False) is x


@pytest.mark.parametrize("name", ["exp", "isnan", "abs", "clip", "astype"])
def test_what_is_no_tensor_is_refused(name: str) -> None:
    arguments: Any = ["float32"] if name == "astype" else []
    with pytest.raises(DtypeError, match="expected a tensor, got float"):
        getattr(cx, name)(1.0, *arguments)


def test_two_numbers_are_no_tensor() -> None:
    with pytest.raises(DtypeError, match="add: expected at least one tensor, got int and float"):
        cx.add(1, 2.0)
    with pytest.raises(DtypeError, match="maximum: expected at least one tensor, got int, float"):
        cx.maximum(1, 2.0)


@pytest.mark.parametrize("name", ["remainder", "floor_divide"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3, 1e7, 1e12])
def test_quotients_and_remainders_of_many_float32_are_numpys_to_the_bit(scale: float, name: str) -> None:
    """Also of neighbours of multiples, of quotients too large for exact products, of infinities, NaN and zeros."""
    rng, count = np.random.default_rng(0), 40_000
    y = rng.normal(size=count).astype(np.float32)
    multiples = (rng.integers(1, 2**24, count).astype(np.float32) * y).astype(np.float32)
    odd = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -1e-20], np.float32)
    pairs = [
        ((rng.normal(size=count) * scale).astype(np.float32), y),
        (multiples, y),
        (np.nextafter(multiples, np.float32(0.0)), y),
        (np.resize(odd, count), np.resize(np.repeat(odd, len(odd)), count)),
        ((y * np.float32(scale)).reshape(200, 200), y[:200]),
        (y * np.float32(scale), np.float32(-0.7)),
    ]
    for a, b in pairs:
        with np.errstate(all="ignore"):
            wanted = getattr(np, name)(a, b)
        found = getattr(cx, name)(cx.tensor(a), cx.tensor(b)).numpy()
        numbers = ~np.isnan(wanted)
        assert (np.isnan(found) != numbers).all() and found[numbers].tobytes() == wanted[numbers].tobytes()
