"""Dtypes, their promotion and limits, against array-api-strict and NumPy."""

from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import cyxcore as cx
from cyxcore.dtype import ALL, DTYPES, IN_GRAPHS
from cyxcore.errors import DtypeError, GraphError, SpecError

STANDARD = [name for name in ALL if hasattr(strict, name)]
KINDS = ["bool", "signed integer", "unsigned integer", "integral", "real floating", "complex floating", "numeric"]


def standard_result(a: str, b: str) -> str | None:
    try:
        return np.dtype(strict.result_type(getattr(strict, a), getattr(strict, b))._np_dtype).name
    except TypeError:
        return None


@pytest.mark.parametrize("a", STANDARD)
@pytest.mark.parametrize("b", STANDARD)
def test_dtypes_meet_as_the_standard_says(a: str, b: str) -> None:
    wanted = standard_result(a, b)
    if wanted is not None:
        assert cx.result_type(a, b) == wanted
        assert (cx.zeros(1, dtype=a) == cx.zeros((2, 1), dtype=b)).dtype == "bool"
    assert cx.can_cast(a, b) == strict.can_cast(getattr(strict, a), getattr(strict, b))


def test_uint64_meets_no_signed_integer() -> None:
    with pytest.raises(DtypeError, match="no integer dtype holds both uint64 and int8"):
        cx.tensor([1], dtype="uint64") + cx.tensor([1], dtype="int8")


def test_where_the_standard_is_silent_floats_win_and_bools_give_way() -> None:
    assert cx.result_type("int64", "float32") == "float32" and cx.result_type("uint8", "complex64") == "complex64"
    assert cx.result_type("bool", "int8") == "int8" and cx.result_type("bfloat16", "float16") == "float32"
    assert not cx.can_cast("int64", "float32") and not cx.can_cast("bool", "int8")


@pytest.mark.parametrize("kind", [*KINDS, ("bool", "integral"), "float32", ("int8", "real floating")])
@pytest.mark.parametrize("dtype", STANDARD)
def test_isdtype_is_the_standards(dtype: str, kind: Any) -> None:
    theirs = tuple(getattr(strict, k, k) for k in kind) if isinstance(kind, tuple) else getattr(strict, kind, kind)
    assert cx.isdtype(dtype, kind) == strict.isdtype(getattr(strict, dtype), theirs)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DtypeError, match="isdtype: expected a dtype or one of bool, signed integer"):
        cx.isdtype("int8", "floating")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_finfo_has_ieees_limits(dtype: str) -> None:
    ours, numpys = cx.finfo(dtype), np.finfo(dtype)
    for name in ("bits", "eps", "max", "min", "smallest_normal"):
        assert getattr(ours, name) == getattr(numpys, name), name
    assert ours.dtype == numpys.dtype.name and type(ours.eps) is float


@pytest.mark.parametrize("dtype", [n for n in ALL if DTYPES[n].kind.endswith("integer")])
def test_iinfo_has_the_limits_of_two_complement(dtype: str) -> None:
    ours, numpys = cx.iinfo(cx.zeros(2, dtype=dtype)), np.iinfo(dtype)
    assert (ours.bits, ours.max, ours.min, ours.dtype) == (numpys.bits, numpys.max, numpys.min, dtype)


def test_limits_of_the_wrong_kind_say_where_to_ask() -> None:
    with pytest.raises(DtypeError, match="iinfo has the limits of integers"):
        cx.finfo("int8")
    with pytest.raises(DtypeError, match="finfo has the limits of floats"):
        cx.iinfo("float32")


@pytest.mark.parametrize(
    ("dtype", "number", "wanted"),
    [
        ("int8", 1, "int8"),
        ("int8", 1.0, "float32"),
        ("float64", 1, "float64"),
        ("float32", 1j, "complex64"),
        ("float64", 1j, "complex128"),
        ("uint8", True, "uint8"),
        ("complex64", 2.5, "complex64"),
        ("bfloat16", 2.5, "bfloat16"),
    ],
)
def test_a_python_number_takes_the_dtype_beside_it(dtype: str, number: Any, wanted: str) -> None:
    x = cx.tensor([1], dtype=dtype)
    assert cx.result_type(x, number) == (x + number).dtype == (number * x).dtype == wanted


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("function", [lambda x: x * 10**400, lambda x: cx.clip(x, -(10**400), 1.0)])
def test_an_integer_beyond_all_floats_is_refused_with_what_to_do(dtype: str, compiled: bool, function: Any) -> None:
    with pytest.raises(DtypeError, match=f"beside {dtype}, got an integer of 1329 bits; use math.inf"):
        (cx.compile(function) if compiled else function)(cx.tensor([1.0], dtype=dtype))


def test_a_number_a_dtype_cannot_hold_is_refused() -> None:
    with pytest.raises(DtypeError, match=r"int8 holds -128\.\.127, got 300"):
        cx.tensor([1], dtype="int8") + 300
    with pytest.raises(DtypeError, match="float32 cannot hold complex"):
        cx.tensor([1j], dtype="float32")


def test_a_cast_from_complex_to_real_is_refused() -> None:
    with pytest.raises(DtypeError, match="float32 cannot hold complex64; take real"):
        cx.tensor([1j]).astype("float32")


def test_python_complex_numbers_become_complex64() -> None:
    assert cx.tensor([1j]).dtype == "complex64" and complex(cx.tensor(2 + 1j)) == 2 + 1j


# bfloat16 -----------------------------------------------------------------------------------------


def test_bfloat16_rounds_to_nearest_even() -> None:
    exact = np.array([0, 1, -1.5, 2.0**127, np.inf, -np.inf, 2.0**-133], np.float32)
    assert cx.tensor(exact, dtype="bfloat16").astype("float32").tolist() == exact.tolist()
    between = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]
    assert cx.tensor(between, dtype="bfloat16").tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]
    assert cx.isnan(cx.tensor([np.nan], dtype="bfloat16")).tolist() == [True]


def test_bfloat16_computes_by_way_of_float32() -> None:
    x = cx.tensor([[1.0, 2.0], [3.0, 4.0]], dtype="bfloat16")
    assert ((x + 0.5) @ x.T).dtype == "bfloat16" and (x @ x).tolist() == [[7.0, 10.0], [15.0, 22.0]]
    assert x[1, ::-1].tolist() == [4.0, 3.0] and x.sum().item() == 10.0 and (x > 2).tolist() == [[0, 0], [1, 1]]
    assert "1., 2." in repr(x) and "bfloat16" in repr(x)


def test_bfloat16_learns() -> None:
    x = cx.tensor([1.0, 2.0], dtype="bfloat16", requires_grad=True)
    (x * x).sum().backward()
    assert x.grad is not None and x.grad.dtype == "bfloat16" and x.grad.tolist() == [2.0, 4.0]


def test_numpy_is_told_how_to_read_bfloat16() -> None:
    with pytest.raises(DtypeError, match=r"astype\('float32'\)"):
        np.asarray(cx.tensor([1.0], dtype="bfloat16"))


# what a graph holds -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [n for n in ALL if n not in IN_GRAPHS or n == "uint64"])
def test_a_graph_refuses_a_dtype_not_every_device_trains_with(dtype: str) -> None:
    class Casting(cx.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.astype(dtype).astype("float32")

    with pytest.raises(DtypeError, match="cast: .* graph .* use astype"):
        cx.trace(Casting(), (3,))


def test_a_graph_refuses_an_op_that_has_no_exact_kernel() -> None:
    class Tangent(cx.nn.Module):
        def forward(self, x: Any) -> Any:
            return cx.tan(x)

    with pytest.raises(GraphError, match="tan: runs on tensors, and in cx.compile"):
        cx.trace(Tangent(), (3,))


def test_a_graph_cannot_compute_with_its_random_key() -> None:
    source = {
        "format": "cyx-graph/1",
        "nodes": [
            {"op": "input", "attrs": {"name": "x", "shape": [None, 2]}},
            {"op": "key"},
            {"op": "cast", "in": [1], "attrs": {"dtype": "float32"}},
            {"op": "add", "in": [0, 2]},
        ],
        "outputs": [3],
    }
    with pytest.raises(DtypeError, match="cast: a graph holds no float32 made of uint64"):
        cx.Graph.from_json(source)


# inspection ---------------------------------------------------------------------------------------


def test_a_tensor_knows_its_namespace() -> None:
    assert cx.zeros(1).__array_namespace__() is cx and cx.zeros(1).__array_namespace__(api_version="2025.12") is cx
    with pytest.raises(SpecError, match="expected one of 2021.12"):
        cx.zeros(1).__array_namespace__(api_version="2020.12")


def test_the_namespace_says_what_it_can_do() -> None:
    info = cx.__array_namespace_info__()
    assert info.capabilities() == {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 8}
    assert info.default_device() in info.devices()
    for device in info.devices():
        assert cx.from_dlpack(cx.zeros(2), device=device).device == cx.zeros(2, device=device).device == device
    assert info.default_dtypes() == {
        "real floating": cx.asarray(1.0).dtype,
        "complex floating": cx.asarray(1j).dtype,
        "integral": cx.asarray(1).dtype,
        "indexing": cx.zeros(2).argmax().dtype,
    }
    assert set(info.dtypes()) == set(strict.__array_namespace_info__().dtypes())
    assert info.dtypes(kind="bool") == {"bool": cx.bool}
    assert info.dtypes(kind="real floating") == {"float32": cx.float32, "float64": cx.float64}
    with pytest.raises(SpecError, match="device: expected one of"):
        info.dtypes(device="tpu")
