"""Memory shared with NumPy, PyTorch and whatever reads buffers."""

import array
import copy
import inspect
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError, DataError, DtypeError
from tests.core.oracle import ALL, numbers, same

DLPACK = [*ALL, "float16"]


@pytest.mark.parametrize("dtype", DLPACK)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_numpy_and_a_tensor_share_memory_both_ways(dtype: str, shape: tuple[int, ...]) -> None:
    values = numbers("float32" if dtype == "float16" else dtype, *shape).astype(dtype)
    x = cx.from_numpy(values)
    for seen in (np.asarray(x), np.from_dlpack(x), x.numpy(), np.asarray(memoryview(x))):
        assert seen.dtype == values.dtype and seen.shape == shape
        assert not values.size or np.shares_memory(seen, values)
    back = cx.from_dlpack(values)
    same(back, values)
    assert not values.size or back.shares_memory(x)


def test_strides_are_kept_both_ways() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    for theirs in (values.T, values[:, ::2], values[::-1]):
        for x in (cx.from_numpy(theirs), cx.from_dlpack(theirs)):
            same(x, theirs)
            same(x * 2, theirs * 2)
            assert np.shares_memory(x.numpy(), values)
    x = cx.from_numpy(values.T)
    x[0] = -1.0
    assert values[:, 0].tolist() == [-1.0, -1.0, -1.0]
    assert memoryview(x[1:]).tolist() == values.T[1:].tolist() and np.from_dlpack(x[1:]).strides == values.T[1:].strides


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int16", "complex64", "bool", "uint8"])
def test_pytorch_and_a_tensor_share_memory_both_ways(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = cx.asarray([[1, 0, 3], [4, 5, 6]]).astype(dtype)
    theirs = torch.from_dlpack(x)
    assert str(theirs.dtype) == f"torch.{dtype}" and theirs.tolist() == x.tolist()
    theirs[0, 1] = 1
    assert x[0, 1].item() == 1
    back = cx.from_dlpack(theirs.T)
    assert back.dtype == dtype and back.shape == (3, 2) and back.shares_memory(x)
    back[2] = cx.zeros(2).astype(dtype)
    assert theirs[:, 2].tolist() == [0, 0]


@pytest.mark.parametrize("options", [{}, {"max_version": (1, 0)}, {"max_version": (0, 8)}, {"copy": True}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_capsules_are_versioned_where_the_reader_knows_versions(options: dict[str, Any], dtype: str) -> None:
    name = "dltensor_versioned" if options.get("max_version", (0,))[0] >= 1 else "dltensor"
    assert f'"{name}"' in repr(cx.ones(2, dtype=dtype).__dlpack__(**options))


def test_the_options_of_a_capsule_can_be_seen_and_left_open() -> None:
    options = inspect.signature(cx.ones(2).__dlpack__).parameters
    assert list(options) == ["stream", "max_version", "dl_device", "copy"]
    assert '"dltensor"' in repr(cx.ones(2).__dlpack__(**dict.fromkeys(options)))
    with pytest.raises(TypeError, match="strem"):
        cx.ones(2).__dlpack__(strem=None)


@pytest.mark.parametrize("name", "sum mean std var prod max min any all squeeze median argmax cumsum sort".split())
def test_functions_of_numpy_take_tensors_as_arrays(name: str) -> None:
    array = numbers("float32", 2, 3)
    found, wanted = getattr(np, name)(cx.asarray(array)), getattr(np, name)(array)
    assert type(found) is type(wanted) and np.array_equal(found, wanted)
    assert np.array_equal(getattr(np, name)(cx.asarray(array), axis=None), getattr(np, name)(array, axis=None))


def test_functions_of_numpy_find_tensors_in_lists_and_write_where_they_are_told() -> None:
    x = cx.asarray([1.0, 2.0])
    assert type(np.stack([x, x])) is np.ndarray and np.stack((x, x.numpy())).tolist() == [[1, 2], [1, 2]]
    assert np.block([[x, x], [x, x]]).shape == (2, 4) and np.allclose(x, [1, 2]) and np.shape(x) == (2,)
    assert np.shape(x.astype("bfloat16")) == (2,) and np.ndim(x.astype("bfloat16")) == 1
    both = cx.asarray([[1.0, 4.0], [3.0, 2.0]]).max(dim=1)  # values and their places, a named tuple
    assert np.stack(both).tolist() == [[4, 3], [1, 0]] and np.vstack(cx.nn.ParameterList([both.values])).shape == (1, 2)
    out = cx.zeros(())
    np.sum(x, out=out)
    assert out.item() == 3.0
    with pytest.raises(DtypeError, match="use astype"):
        np.sum(x.astype("bfloat16"))
    with pytest.raises(TypeError, match="__array_ufunc__"):  # an operator of an array and a tensor is the tensor's
        np.exp(x)


def test_a_copy_can_be_asked_for_or_refused() -> None:
    x = cx.ones(2)
    assert not cx.from_dlpack(x, copy=True).shares_memory(x) and cx.from_dlpack(x, copy=False).shares_memory(x)
    assert np.asarray(x, copy=True) is not np.asarray(x) and np.shares_memory(np.asarray(x, copy=False), x.numpy())


def test_buffers_become_tensors_of_their_dtype() -> None:
    row = array.array("d", [1.0, 2.0])
    x = cx.asarray(row)
    assert x.dtype == "float64"
    x[0] = 5.0
    assert row[0] == 5.0
    assert cx.asarray(bytearray(b"\x01\x02")).tolist() == [1, 2] and cx.tensor(memoryview(row)).tolist() == [5.0, 2.0]


def test_what_has_a_gradient_or_no_buffer_is_refused_with_the_way_out() -> None:
    x = cx.ones(2, requires_grad=True)
    for share in (memoryview, lambda v: v.__dlpack__()):
        with pytest.raises(BufferError, match=r"detach\(\) it first"):
            share(x)
    with pytest.raises(BufferError, match="bfloat16 has no buffer; use astype"):
        memoryview(cx.ones(2, dtype="bfloat16"))
    assert memoryview(x.detach()).tolist() == [1.0, 1.0]


def test_read_only_memory_is_not_written_to() -> None:
    values = np.ones(2)
    values.flags.writeable = False
    x = cx.from_numpy(values)
    with pytest.raises(DataError, match="read-only"):
        x[0] = 2.0
    with pytest.raises(DataError, match="read-only"):
        x += 1.0
    assert (x + 1.0).tolist() == [2.0, 2.0]


def test_a_deep_copy_of_a_view_has_memory_without_gaps() -> None:
    x = cx.arange(6).reshape(2, 3)
    twin = copy.deepcopy(x.T)
    assert twin.tolist() == x.T.tolist() and not twin.shares_memory(x) and twin.contiguous() is twin


def test_a_notebook_shows_a_table() -> None:
    html = cx.tensor([[1.5, 2.0], [3.0, float("nan")]])._repr_html_()
    assert html.startswith("<table><caption>(2, 2) float32 on ") and html.count("<tr>") == 2
    assert "<td>1.5</td>" in html and "<td>nan</td>" in html
    assert cx.zeros(2, 2, 2)._repr_html_().startswith("<pre>Tensor(") and cx.zeros(50, 50)._repr_html_().startswith(
        "<pre>"
    )
    for odd in (cx.asarray(True), cx.asarray([True]), cx.asarray([1j]), cx.zeros(0), cx.ones(1, dtype="bfloat16")):
        assert odd._repr_html_().startswith("<")


def test_memory_taken_over_for_a_device_is_there_or_refused() -> None:
    x = np.ones(3, np.float32)
    assert cx.from_dlpack(x, device="cpu").shares_memory(cx.from_dlpack(x))
    if "cuda" not in cx.__array_namespace_info__().devices():
        with pytest.raises(CyxError, match="cuda"):
            cx.from_dlpack(x, device="cuda")


CONSUMER = """
import numpy as np, sklearn, cyxcore as cx
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

x = np.random.default_rng(0).normal(size=(80, 4))
y = (x @ [1.0, -1.0, 0.5, 0.0] + 0.3 * x[:, 3] ** 2 > 0).astype("int64")
found = []
for make in (np.asarray, cx.asarray):
    points, labels = make(x), make(y)
    with sklearn.config_context(array_api_dispatch=True):
        flat = make_pipeline(StandardScaler(), PCA(2, svd_solver="full")).fit_transform(points)
        curve = Ridge(solver="svd").fit(points, points[:, 0] * 2).predict(points)
        model = LogisticRegression().fit(points, labels)
        scores = model.decision_function(points)
        figures = roc_auc_score(labels, scores), f1_score(labels, model.predict(points))
    assert type(flat) is type(curve) is type(scores) is type(points)
    found.append([np.asarray(flat), np.asarray(curve), np.asarray(scores), np.asarray(figures, float)])
for wanted, got in zip(*found):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
print("as with NumPy")
"""


def test_scikit_learn_computes_on_tensors_by_the_standard() -> None:
    # SciPy asks for the variable at its import.
    ran = subprocess.run(
        [sys.executable, "-c", CONSUMER], env={**os.environ, "SCIPY_ARRAY_API": "1"}, capture_output=True, text=True
    )
    assert ran.stdout == "as with NumPy\n", ran.stderr
