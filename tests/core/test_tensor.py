"""What a user types: NumPy's semantics, on every device."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import DtypeError, GradientError, ShapeError, SpecError

pytestmark = pytest.mark.usefixtures("each_device")

A = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7 - 1.3
B = np.array([[1.5], [-2.0], [0.25]], np.float32)


@pytest.mark.parametrize(
    "compute",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: b * a,
        lambda a, b: a / b,
        lambda a, b: 2 - a,
        lambda a, b: 2.5 / b,
        lambda a, b: -a + 1,
        lambda a, b: a**2,
        lambda a, b: abs(a) ** 1.5,
        lambda a, b: 2.0**b,
        lambda a, b: a > b,
        lambda a, b: (a <= 0) | ~(b == 1.5),
        lambda a, b: (a != b) & (a >= -1),
        lambda a, b: a @ a.transpose(0, 2, 1),
        lambda a, b: a[0] @ np.ones(4, np.float32),
        lambda a, b: np.ones((5, 3), np.float32) @ a,
        lambda a, b: np.ones(3, np.float32) @ a[1],
        lambda a, b: a.sum(),
        lambda a, b: a.sum(axis=(0, 2), keepdims=True),
        lambda a, b: a.mean(axis=-1),
        lambda a, b: a.max(axis=1),
        lambda a, b: a.min(),
        lambda a, b: a.argmax(),
        lambda a, b: a.argmax(axis=-2),
        lambda a, b: a.var(axis=0),
        lambda a, b: a.std(),
        lambda a, b: (a > 0).sum(axis=0),
        lambda a, b: a.T,
        lambda a, b: a.reshape(-1, 6),
        lambda a, b: a.reshape((4, 6)).transpose(),
        lambda a, b: a.astype("int32"),
        lambda a, b: a.astype(np.float64),
        lambda a, b: a[1],
        lambda a, b: a[-1, 1:],
        lambda a, b: a[..., 0],
        lambda a, b: a[:, None, 1],
        lambda a, b: a[:, ::-1, ::2],
        lambda a, b: a[0, 3:0:-2],
        lambda a, b: a[:, 2:2],
        lambda a, b: a[:, [2, 0, -1]],
        lambda a, b: a[np.array([[1, 0], [0, 0]])],
        lambda a, b: a[1, :, np.array([3, 1])].T if isinstance(a, cx.Tensor) else a[1][:, [3, 1]].T,
    ],
)
def test_a_tensor_computes_what_numpy_computes(compute: Callable[[Any, Any], Any]) -> None:
    expected = np.asarray(compute(A, B))
    got = compute(cx.tensor(A), cx.tensor(B))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sin", "cos", "floor", "sign", "square", "abs"])
def test_a_function_of_a_tensor_is_numpys(name: str) -> None:
    x = np.linspace(0.1, 3, 17, dtype=np.float32)
    np.testing.assert_allclose(getattr(cx.tensor(x), name)().numpy(), getattr(np, name)(x), rtol=3e-6)


def test_python_numbers_keep_the_dtype_of_the_tensor() -> None:
    assert (cx.tensor([1.0]) * 2).dtype == "float32"
    assert (cx.tensor([1], dtype="int32") + 1).dtype == "int32"
    assert (cx.tensor([1]) * 0.5).dtype == "float32"
    assert (cx.tensor([1.0], dtype="float64") + 1).dtype == "float64"


def test_integers_divide_to_float32() -> None:
    assert (cx.tensor([1, 2]) / 2).tolist() == [0.5, 1.0]


def test_integers_meeting_floats_become_floats() -> None:
    assert (cx.tensor([1, 2]) + cx.tensor([0.5, 0.5])).dtype == "float32"


def test_python_floats_become_float32_and_ints_int64() -> None:
    assert cx.tensor([1.0, 2.0]).dtype == "float32" and cx.tensor([1, 2]).dtype == "int64"


def test_a_numpy_array_keeps_its_dtype() -> None:
    assert cx.tensor(np.zeros(2)).dtype == "float64"


def test_tensor_copies_and_from_numpy_does_not() -> None:
    array = np.zeros(2, np.float32)
    copied, shared = cx.tensor(array), cx.from_numpy(array)
    array[0] = 7
    assert copied.tolist() == [0.0, 0.0] and shared.tolist() == [7.0, 0.0]


def test_numpy_reads_a_tensor() -> None:
    assert np.asarray(cx.ones(2)).sum() == 2.0 and np.from_dlpack(cx.ones(3, device="cpu")).shape == (3,)


def test_where_takes_numbers() -> None:
    x = cx.tensor([-1.0, 2.0])
    assert cx.where(x > 0, x, 0.0).tolist() == [0.0, 2.0]


def test_concat_and_stack() -> None:
    a, b = cx.tensor([1.0, 2.0]), cx.tensor([3.0, 4.0])
    assert cx.concat([a, b]).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert cx.stack([a, b], axis=1).tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_creation_functions() -> None:
    assert cx.arange(3).tolist() == [0, 1, 2] and cx.arange(1.0, 2.0, 0.5).dtype == "float32"
    assert cx.full((2,), 1.5).tolist() == [1.5, 1.5] and cx.zeros((2, 1)).shape == (2, 1)


def test_a_seed_gives_the_same_random_numbers_again() -> None:
    cx.manual_seed(3)
    first = cx.randn(4).tolist() + cx.rand(2).tolist()
    cx.manual_seed(3)
    assert cx.randn(4).tolist() + cx.rand(2).tolist() == first


def test_two_draws_differ() -> None:
    cx.manual_seed(3)
    assert cx.randn(4).tolist() != cx.randn(4).tolist()


def test_randn_is_about_normal() -> None:
    cx.manual_seed(0)
    x = cx.randn(20_000).numpy()
    assert abs(x.mean()) < 0.03 and abs(x.std() - 1) < 0.03


def test_repr_shows_values_shape_and_dtype() -> None:
    assert repr(cx.tensor([1.0, 2.0], device="cpu")) == "Tensor([1., 2.], shape=(2,), dtype=float32)"


def test_iteration_gives_rows() -> None:
    assert [row.tolist() for row in cx.tensor([[1, 2], [3, 4]])] == [[1, 2], [3, 4]]


def test_an_integer_scalar_is_an_index() -> None:
    assert [10, 20][cx.tensor([1.0, 3.0]).argmax()] == 20


def test_shapes_that_do_not_broadcast_are_named() -> None:
    with pytest.raises(ShapeError, match=r"add: shapes \(2,\) and \(3,\)"):
        cx.zeros(2) + cx.zeros(3)


def test_matrices_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match=r"matmul: expected .* got \(3, 4\) @ \(5, 6\): 4 is not 5"):
        cx.zeros(3, 4) @ cx.zeros(5, 6)


def test_an_index_out_of_range_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="index 3 is out of range for axis 0"):
        cx.zeros(3)[3]
    with pytest.raises(IndexError, match="expected -3..2"):
        cx.zeros(3)[[0, 5]]


def test_a_boolean_mask_picks_elements_or_rows_and_their_gradients() -> None:
    x = cx.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    assert x[cx.tensor([False, True])].tolist() == [[3.0, 4.0]] and x[np.array([False, False])].shape == (0, 2)
    x[x > 0].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"a mask of the sizes \(3,\) it covers of \(3, 4\), got \(2,\)"):
        cx.zeros(3, 4)[cx.zeros(2) > 0]
    with pytest.raises(ShapeError, match="at most 1 indices"):
        cx.zeros(3)[cx.zeros(3, 1) > 0]


@pytest.mark.parametrize("index", [cx.zeros(2) > 0, cx.zeros(3, 1, 1) > 0, (0, 0, 0), (..., 3)])
def test_an_index_that_does_not_fit_the_shape_is_an_index_error(index: object) -> None:
    with pytest.raises(IndexError):
        cx.zeros(3, 2)[index]
    with pytest.raises(IndexError):
        cx.zeros(3, 2)[index] = 1.0


def test_a_vector_is_no_matrix_to_transpose() -> None:
    with pytest.raises(ShapeError, match="mT: expected at least two axes"):
        cx.zeros(3).mT  # noqa: B018


def test_the_maximum_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError, match="empty axis"):
        cx.zeros(0, 2).max()


def test_text_is_no_tensor() -> None:
    with pytest.raises(DtypeError, match="expected numbers, got 'a' of str"):
        cx.tensor(["a"])


def test_only_floats_have_gradients() -> None:
    with pytest.raises(GradientError, match="int64"):
        cx.tensor([1], requires_grad=True)


def test_item_of_many_elements_is_refused() -> None:
    with pytest.raises(ShapeError, match="one element"):
        cx.zeros(2).item()


def test_embedding_checks_its_indices() -> None:
    with pytest.raises(IndexError, match="expected -4..3, got 0..4"):
        cx.functional.embedding(cx.tensor([0, 4]), cx.zeros(4, 2))


def test_cross_entropy_checks_its_labels() -> None:
    with pytest.raises(IndexError, match="expected labels of 0..2"):
        cx.functional.cross_entropy(cx.zeros(2, 3), cx.tensor([0, 3]))


def test_a_silent_broadcast_in_a_loss_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 1\) and \(4,\)"):
        cx.functional.mse_loss(cx.zeros(4, 1), cx.zeros(4))


def test_a_deep_copy_has_its_own_memory_and_class() -> None:
    x = cx.nn.Parameter([1.0, 2.0])
    (x * x).sum().backward()
    y = copy.deepcopy({"a": x, "b": x})
    assert y["a"] is y["b"] and type(y["a"]) is cx.nn.Parameter and y["a"].requires_grad and y["a"].init == x.init
    assert y["a"].grad is not x.grad and y["a"].grad is not None and y["a"].grad.tolist() == [2.0, 4.0]
    y["a"].numpy()[0] = 7
    assert x.tolist() == [1.0, 2.0]
    with pytest.raises(GradientError, match="deepcopy"):
        copy.deepcopy(x * 2.0)


def test_a_tensor_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="use cx.save"):
        pickle.dumps(cx.zeros(1))


def test_a_tensor_knows_its_device() -> None:
    x = cx.zeros(1)
    assert x.to_device(x.device) is x and cx.astype(x, "int32", device=x.device).dtype == "int32"
    with pytest.raises(SpecError, match="device: expected one of"):
        x.to_device("tpu")


def test_an_axis_may_be_one_of_numpys_integers() -> None:
    x = cx.tensor(np.arange(6.0).reshape(2, 3))
    assert x.sum(np.int64(0)).tolist() == [3.0, 5.0, 7.0] and x.argmax(np.int8(1)).tolist() == [2, 2]
    assert x.mean((np.int64(0), np.int64(-1))).item() == 2.5


def test_a_tensor_of_one_number_is_formatted_as_it_is() -> None:
    assert f"{cx.tensor(A).mean():.2f} {cx.tensor(3):04d} {cx.tensor(0.5)}" == f"{A.mean():.2f} 0003 0.5"
    assert f"{cx.tensor([1.0])}" == "Tensor([1.], shape=(1,), dtype=float32)"
    with pytest.raises(TypeError, match=r"format: expected a 0-d tensor for '\.2f', got shape \(2, 3, 4\)"):
        f"{cx.tensor(A):.2f}"


def test_in_looks_at_the_elements() -> None:
    x = cx.tensor([[1, 2], [3, 4]])
    assert 3 in x and 5 not in x and None not in x and "3" not in x


def test_a_tensor_is_neither_none_nor_text() -> None:
    x = cx.tensor([1.0, 2.0])
    assert (x == None) is (None == x) is (x == "a") is False and (x != None) is ("a" != x) is True  # noqa: E711
