"""The standard's manipulation and indexing functions against array-api-strict."""

from collections.abc import Callable
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest

import cyxcore as cx
from cyxcore import manipulation
from cyxcore.errors import AxisError, CyxError, ShapeError
from tests.core.oracle import agree, numbers, same, signature_differences

FROM_FUNCTIONAL = ("concat", "stack", "take_along_axis", "where")
DTYPES = ("bool", "int8", "uint64", "float32", "complex128")
SHAPES = [(), (3,), (0,), (2, 3), (2, 1, 3), (2, 0, 3)]


@pytest.mark.parametrize("name", [*manipulation.__all__, *FROM_FUNCTIONAL])
def test_the_parameters_are_the_standards(name: str) -> None:
    assert signature_differences(name) == []


CALLS: list[tuple[str, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = [
    ("broadcast_to", (), ((2, 3),), {}),
    ("broadcast_to", (2, 1, 3), ((4, 2, 5, 3),), {}),
    ("broadcast_to", (0,), ((2, 0),), {}),
    ("reshape", (2, 3), ((3, 2),), {}),
    ("reshape", (2, 3), ((-1,),), {}),
    ("reshape", (2, 3), ((6, -1, 1),), {"copy": True}),
    ("reshape", (2, 3), ((6,),), {"copy": False}),
    ("reshape", (0, 3), ((0,),), {}),
    ("reshape", (1,), ((),), {}),
    ("expand_dims", (2, 3), (0,), {}),
    ("expand_dims", (2, 3), (-1,), {}),
    ("expand_dims", (2, 3), ((0, -1),), {}),
    ("expand_dims", (), (0,), {}),
    ("squeeze", (2, 1, 3), (1,), {}),
    ("squeeze", (1, 2, 1), ((0, -1),), {}),
    ("permute_dims", (2, 1, 3), ((2, 0, 1),), {}),
    ("permute_dims", (2, 1, 3), ((-1, 0, -2),), {}),
    ("permute_dims", (), ((),), {}),
    ("moveaxis", (2, 1, 3), (0, -1), {}),
    ("moveaxis", (2, 1, 3), ((0, 2), (1, 0)), {}),
    *(("flip", shape, (), {}) for shape in SHAPES),
    ("flip", (2, 3), (), {"axis": -1}),
    ("flip", (2, 1, 3), (), {"axis": (0, 2)}),
    *(("roll", shape, (2,), {}) for shape in SHAPES),
    ("roll", (2, 3), (-4,), {"axis": 1}),
    ("roll", (2, 3), ((1, -1),), {"axis": (0, 1)}),
    ("roll", (4, 3), (7,), {"axis": (0, 0)}),
    ("repeat", (2, 3), (2,), {}),
    ("repeat", (2, 3), (3,), {"axis": 0}),
    ("repeat", (2, 3), (0,), {"axis": -1}),
    ("repeat", (2, 3), (np.array([2, 0, 1]),), {"axis": 1}),
    ("repeat", (3,), (np.array([1, 0, 2]),), {}),
    ("tile", (2, 3), ((2,),), {}),
    ("tile", (2, 3), ((2, 1, 3),), {}),
    ("tile", (2, 3), ((1, 1),), {}),
    ("tile", (3,), ((0, 2),), {}),
    ("tile", (), ((2,),), {}),
    ("unstack", (2, 3), (), {}),
    ("unstack", (2, 3), (), {"axis": -1}),
    ("unstack", (0, 3), (), {}),
    ("take", (2, 3), (np.array([1, 0, 1]),), {"axis": 0}),
    ("take", (2, 3), (np.array([], np.int64),), {"axis": 1}),
    ("take", (4,), (np.array([3, 1], np.int32),), {}),
]


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_does_what_the_standard_says(call: Any, dtype: str) -> None:
    name, shape, args, options = call
    agree(name, numbers(dtype, *shape), *args, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_joining(dtype: str) -> None:
    x, y = numbers(dtype, 2, 3), numbers(dtype, 2, 3, seed=1)
    for axis in (0, 1, -1):
        agree("concat", [x, y, x], axis=axis)
        agree("stack", (x, y), axis=axis)
    agree("stack", (x, y), axis=2)
    agree("concat", [x, y[0]], axis=None)
    agree("concat", [x, x[:0]], axis=0)


def test_joining_promotes() -> None:
    agree("concat", [numbers("int8", 2), numbers("uint8", 2)])
    agree("stack", [numbers("float32", 2), numbers("float64", 2)])
    agree("where", np.array([True, False]), numbers("float32", 2), numbers("float64", 2, 2))
    agree("where", np.array([True, False]), numbers("int8", 2), 3)


def test_broadcasting_shapes_and_arrays() -> None:
    agree("broadcast_arrays", numbers("int8", 2, 1), numbers("float32", 3))
    assert cx.broadcast_shapes((2, 1), (3,), ()) == (2, 3) and cx.broadcast_shapes() == ()
    with pytest.raises(ShapeError, match="do not broadcast"):
        cx.broadcast_shapes((2,), (3,))


def test_take_along_axis() -> None:
    x, places = numbers("float32", 3, 4), np.array([[2, 0, 1, 1]])
    agree("take_along_axis", x, places, axis=0)
    agree("take_along_axis", x, np.array([[0], [3], [2]]))
    agree("take_along_axis", x, np.array([[0, -1]]))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: cx.expand_dims(x, axis=3), AxisError),
        (lambda x: cx.expand_dims(x, axis=(0, 0)), AxisError),
        (lambda x: cx.squeeze(x, axis=0), ShapeError),
        (lambda x: cx.squeeze(x, axis=5), AxisError),
        (lambda x: cx.permute_dims(x, (0, 0)), AxisError),
        (lambda x: cx.moveaxis(x, (0, 1), 0), AxisError),
        (lambda x: cx.flip(x, axis=2), AxisError),
        (lambda x: cx.roll(x, (1, 2), axis=0), ShapeError),
        (lambda x: cx.repeat(x, -1), ShapeError),
        (lambda x: cx.repeat(x, cx.asarray([1, 2, 3, 4]), axis=0), ShapeError),
        (lambda x: cx.take(x, cx.asarray([0])), AxisError),
        (lambda x: cx.take(x, cx.asarray([2]), axis=0), IndexError),
        (lambda x: cx.reshape(x, (4, 2)), ShapeError),
        (lambda x: cx.concat([x, x[0]]), ShapeError),
        (lambda x: cx.stack([x, x[0]]), ShapeError),
        (lambda x: cx.broadcast_to(x, (3,)), ShapeError),
    ],
)
def test_a_bad_argument_is_one_clear_error(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"expected|does not broadcast|is not 1"):
        call(cx.zeros(2, 3))


@pytest.mark.parametrize(
    "move",
    [
        lambda xp, x: xp.roll(x, 1, axis=1),
        lambda xp, x: xp.flip(x),
        lambda xp, x: xp.tile(x, (2, 1)),
        lambda xp, x: xp.repeat(x, 2, axis=0),
        lambda xp, x: xp.moveaxis(x, 0, 1),
        lambda xp, x: xp.take(x, xp.asarray([1, 1]), axis=0),
        lambda xp, x: xp.unstack(x)[1],
        lambda xp, x: xp.broadcast_to(x, (2, 2, 3)),
    ],
)
def test_what_moves_elements_moves_their_gradients_back(move: Any) -> None:
    """The gradient of (w * move(x)).sum() counts where each element went: moving one-hot tensors tells."""
    x = cx.tensor(numbers("float64", 2, 3), requires_grad=True)
    out = move(cx, x)
    weight = np.arange(1.0, out.size + 1).reshape(out.shape)
    (out * weight).sum().backward()
    wanted = np.zeros((2, 3))
    for place in np.ndindex(2, 3):
        unit = np.zeros((2, 3))
        unit[place] = 1
        wanted[place] = (np.asarray(move(strict, strict.asarray(unit))) * weight).sum()
    same(x.grad, wanted)


X, M = cx.arange(6.0), cx.arange(6.0).reshape(2, 3)

# Each with Python's integers in place of NumPy's gives the same.
WHOLE: dict[str, Callable[[Any], Any]] = {
    "broadcast_to": lambda i: cx.broadcast_to(X, (i(2), i(6))),
    "expand": lambda i: X.expand(i(2), i(6)),
    "zeros": lambda i: cx.zeros(i(2), i(3)),
    "full": lambda i: cx.full((i(2),), i(3)),
    "reshape": lambda i: X.reshape(i(2), -1),
    "repeat": lambda i: cx.repeat(X, i(2)),
    "tile": lambda i: cx.tile(X, (i(2),)),
    "roll": lambda i: cx.roll(M, i(1), axis=i(1)),
    "flip": lambda i: cx.flip(M, axis=i(0)),
    "expand_dims": lambda i: cx.expand_dims(M, axis=i(0)),
    "moveaxis": lambda i: cx.moveaxis(M, i(0), i(1)),
    "stack": lambda i: cx.stack([X, X], axis=i(1)),
    "split": lambda i: cx.stack(cx.split(X, i(2))),
    "tensor_split": lambda i: cx.stack(cx.tensor_split(X, i(3))),
    "tensordot": lambda i: cx.tensordot(M, M, axes=i(2)),
    "cross": lambda i: cx.linalg.cross(M, M + 1, axis=i(1)),
    "fftshift": lambda i: cx.fft.fftshift(M, axes=i(1)),
    "one_hot": lambda i: cx.nn.functional.one_hot(cx.asarray([0]), i(3)),
    "pad": lambda i: cx.nn.functional.pad(X, (i(1), i(2))),
    "layer_norm": lambda i: cx.nn.LayerNorm(i(3))(M),
    "padding": lambda i: cx.nn.ConstantPad1d(i(1), 0.5)(M),
    "adaptive": lambda i: cx.nn.AdaptiveAvgPool1d(i(2))(M[None]),
    "bincount": lambda i: cx.bincount(cx.asarray([1]), minlength=i(3)),
    "generator": lambda i: cx.Generator(i(3)).permutation(i(4)),
    "batches": lambda i: next(iter(cx.data.DataLoader(cx.data.TensorDataset(M), batch_size=i(2))))[0],
}


@pytest.mark.parametrize("name", WHOLE)
def test_sizes_and_axes_may_be_integers_of_numpys(name: str) -> None:
    wanted = WHOLE[name](int)
    for kind in (np.int64, np.uint8):
        got = WHOLE[name](kind)
        assert got.shape == wanted.shape and all(type(size) is int for size in got.shape)
        assert got.tolist() == wanted.tolist()
    if name in ("broadcast_to", "expand", "stack"):
        assert WHOLE[name](cx.tensor).tolist() == wanted.tolist()


def test_a_bool_or_a_float_is_no_size() -> None:
    for bad in (True, 2.0, np.bool_(True), np.float32(2)):
        with pytest.raises(CyxError, match="broadcast_to.shape: expected an integer"):
            cx.broadcast_to(X, (bad, 6))
