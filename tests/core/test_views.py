"""Indexing, assignment, views and operations in place: NumPy's semantics, and gradients that notice."""

import math
import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cyxcore as cx
from cyxcore.errors import DtypeError, GradientError, GraphError, ShapeError
from tests.core.oracle import ALL, numbers, same, specials

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
# NumPy turns an integer beside arrays into an array; we drop its axis first, as PyTorch does. So: no integers there.
X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)

ARRAY_INDICES: list[Any] = [
    [2, 0, -1],
    np.array([[0, 1], [2, 2]]),
    ([0, 2], [1, -1]),
    ([0, 2], slice(1, 3), [1, -1]),
    (slice(None), [[0], [1]], [3, 4]),
    (None, [0, 1], None, [1, 1]),
    (..., [0, 1]),
    (np.array([[0], [1]]), np.array([[1, 2]]), np.array([3, 4])),
    (slice(None, None, -1), np.array([0, 3]), slice(None, None, 2)),
    ([], slice(None), []),
    X[..., 0] > 20,
    X > 30,
    (slice(None), X[0] > 7),
    (X[:, 0, 0] > 10, slice(2)),
    (X[:, 0, 0] > 10, slice(None), [0, 1]),
    np.array(True),
    np.array(False),
    (True, [0, 1]),
    np.zeros((3, 4, 5), bool),
    np.int64(1),
]


def as_ours(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(as_ours, index))
    return cx.asarray(index) if isinstance(index, np.ndarray) else index


@pytest.mark.parametrize("index", ARRAY_INDICES, ids=repr)
def test_arrays_and_masks_pick_what_numpy_picks(index: Any) -> None:
    same(cx.asarray(X)[as_ours(index)], X[index])
    same(cx.asarray(X)[index], X[index])


@pytest.mark.parametrize("index", ARRAY_INDICES, ids=repr)
def test_arrays_and_masks_are_assigned_to_as_in_numpy(index: Any) -> None:
    wanted = X.copy()
    value = np.arange(wanted[index].size, dtype=np.float32).reshape(wanted[index].shape)
    x = cx.tensor(X)
    x[as_ours(index)] = cx.asarray(value)
    wanted[index] = value
    same(x, wanted)
    x[index], wanted[index] = -1, -1
    same(x, wanted)


@pytest.mark.parametrize(
    ("mask", "shape"), [((0,), (0, 4, 5)), ((0, 4), (0, 5)), ((3, 0), (0, 5)), ((0, 0, 0), (0,)), ((3, 4, 0), (0,))]
)
def test_a_mask_with_an_axis_of_size_0_picks_nothing_whatever_size_it_covers(mask: Any, shape: Any) -> None:
    x = cx.asarray(X)
    index = cx.zeros(mask, dtype=cx.bool)
    assert x[index].shape == shape and x[index].dtype == x.dtype
    x[index] = 7
    same(x, X)
    with pytest.raises(IndexError, match="a mask of the sizes"):
        x[cx.zeros((0, 3), dtype=cx.bool)]  # the axis beside it does not fit


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_basic_indices_read_write_and_share_as_in_numpy(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, max_dims=6))
    theirs = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    ours = cx.tensor(theirs)
    view = ours[index]
    same(view, theirs[index])
    ours[index] = 100.0
    theirs[index] = 100.0
    same(ours, theirs)
    same(view, theirs[index])
    view += 1
    theirs[index] += 1
    same(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_integer_arrays_read_and_write_as_in_numpy(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    index = data.draw(hnp.integer_array_indices(shape))
    theirs = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    ours = cx.tensor(theirs)
    same(ours[as_ours(index)], theirs[index])
    ours[as_ours(index)] = 7
    theirs[index] = 7
    same(ours, theirs)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_operations_take_views_with_gaps(data: st.DataObject) -> None:
    """A view is computed with like a copy, also NaN, infinities and -0.0 in it."""
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
    # without the largest numbers: whether a sum of them comes to an infinity goes by its order
    odd = st.sampled_from([each for each in specials("float32") if not 1e30 < abs(each) < math.inf])
    theirs = data.draw(hnp.arrays(np.float32, shape, elements=odd))
    index = data.draw(hnp.basic_indices(shape))
    ours = cx.asarray(theirs)[index].T
    theirs = theirs[index].T if isinstance(theirs[index], np.ndarray) else theirs[index]
    for operate in (operator.neg, lambda v: v + v, lambda v: v > 0, lambda v: v.reshape(-1), lambda v: v.sum()):
        with np.errstate(all="ignore"):
            same(operate(ours), np.asarray(operate(theirs)))


@pytest.mark.parametrize("dtype", [*ALL, "float16", "bfloat16"])
def test_every_dtype_has_views_and_assignment(dtype: str) -> None:
    values = numbers("float32" if dtype == "bfloat16" else dtype, 3, 4)
    x = cx.asarray(values).astype(dtype).copy()
    view = x.T[1:, ::-1]
    assert view.shares_memory(x) and view.tolist() == values.T[1:, ::-1].tolist()
    x[0] = x[2]
    values[0] = values[2]
    assert view.tolist() == values.T[1:, ::-1].tolist() and view.contiguous().tolist() == view.tolist()
    assert view.copy().shares_memory(x) is False


def test_what_shares_memory_and_what_does_not() -> None:
    x = cx.zeros(4, 6)
    for view in (x[1], x[:, 2], x.T, x.reshape(2, 12), x[None], x[::2, ::-1], x.mT, x.detach(), x[1:].reshape(-1)):
        assert view.shares_memory(x)
    for own in (x[[0, 1]], x[x == 0], x.T.reshape(-1), x.copy(), x + 0, x.astype("float64"), x.broadcast_to(2, 4, 6)):
        assert not own.shares_memory(x)


def test_what_is_flipped_is_a_copy_as_in_pytorch() -> None:
    x = cx.tensor([[1.0, 2.0], [3.0, 4.0]])
    for flipped in (x.flip(0), x.fliplr(), x.flipud(), cx.flip(x), x.rot90(2)):
        flipped[...] = 9.0
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_assigning_a_view_of_itself_reads_before_it_writes() -> None:
    x, theirs = cx.arange(5), np.arange(5)
    x[1:], theirs[1:] = x[:-1], theirs[:-1].copy()
    same(x, theirs)
    x += x[::-1]
    same(x, theirs + theirs[::-1])


@pytest.mark.parametrize("name", "iadd isub imul itruediv ifloordiv imod ipow".split())
def test_operators_in_place_keep_memory_and_dtype(name: str) -> None:
    for dtype, other in (("float32", 2), ("float32", np.float32(3)), ("float64", numbers("float64", 3) + 9)):
        x, theirs = cx.tensor(numbers(dtype, 2, 3) + 5), numbers(dtype, 2, 3) + 5
        alias, before = x[0], x
        x = getattr(operator, name)(x, cx.asarray(other) if isinstance(other, np.ndarray) else other)
        theirs = getattr(operator, name)(theirs, other)
        assert x is before
        same(x, theirs, scale=4)
        same(alias, theirs[0], scale=4)


@pytest.mark.parametrize("name", "iand ior ixor ilshift irshift".split())
def test_bitwise_operators_in_place(name: str) -> None:
    x, theirs = cx.tensor(np.array([5, 2], np.uint8)), np.array([5, 2], np.uint8)
    same(getattr(operator, name)(x, 1), getattr(operator, name)(theirs, np.uint8(1)))


def test_matmul_in_place() -> None:
    x = cx.tensor([[1.0, 2.0], [3.0, 4.0]])
    alias = x[0]
    x @= cx.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert alias.tolist() == [2.0, 1.0]


# gradients ----------------------------------------------------------------------------------------


def both(compute: Any, *shapes: tuple[int, ...]) -> None:
    """compute(xp, *leaves) has torch's values and gradients; leaves are float64."""
    torch = pytest.importorskip("torch")
    starts = [numbers("float64", *shape, seed=place) + 0.3 for place, shape in enumerate(shapes)]
    mine = [cx.tensor(start, requires_grad=True) for start in starts]
    theirs = [torch.tensor(start, requires_grad=True) for start in starts]
    got, wanted = compute(cx, *mine), compute(torch, *theirs)
    got.sum().backward()
    wanted.sum().backward()
    same(got.detach(), wanted.detach().numpy())
    for x, y in zip(mine, theirs, strict=True):
        same(
            x.grad if x.grad is not None else cx.zeros(x.shape, dtype="float64"),
            (y.grad if y.grad is not None else 0 * y).detach().numpy(),
        )


def _part(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y[0] = w
    return y * y


def _into_zeros(xp: Any, x: Any, w: Any) -> Any:
    y = xp.zeros(2, 3, dtype=xp.float64)
    before = y + w
    y[1] = w
    y[:, 0] += x[:, 1]
    return y * y + before


def _through_a_view(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    row, column = y[0], y.T[1]
    row += w
    column *= 2.0
    return y * y + row.sum() + column.sum()


def _older_reader(xp: Any, x: Any, w: Any) -> Any:
    y = x + 1.0
    first = y + 2.0
    y[1] = w
    return first * 3.0 + y


def _twice(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y += w
    y *= 2.0
    y[0, 1:] = y[1, :2] + w[:2]
    return y


def _picked(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y[xp.asarray([1, 0]), xp.asarray([2, 0])] = w[:2]
    y[y > 1.0] = 0.5
    return y * y


def _reshaped(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    flat = y.reshape(6)
    flat[1:4] = w
    return y * y + flat.sum()


def _masked_read(xp: Any, x: Any, w: Any) -> Any:
    return x[x > 0].sum() * x[xp.asarray([0, 1]), xp.asarray([1, 1])] + (x[:, xp.asarray([0, 0])] * w[:2]).sum()


def _view_before_history(xp: Any, x: Any, w: Any) -> Any:
    y = xp.zeros(2, 3, dtype=xp.float64)
    row = y[0]
    y[0] = w
    return row * x


def _onto_itself(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y[...] = y
    row = y[1]
    row.copy_(row)
    row *= w
    return y * y


def _exchanged(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y[0], y[1] = y[1], y[0]  # the second view shows what the first write left there
    return y * w


def _older_view_as_a_source(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    row, z = y[1], xp.zeros(3, dtype=xp.float64)
    y *= w
    z[:] = row
    y[0] = row
    return y * z


@pytest.mark.parametrize(
    "compute",
    [
        _part,
        _into_zeros,
        _through_a_view,
        _older_reader,
        _twice,
        _picked,
        _reshaped,
        _masked_read,
        _view_before_history,
        _onto_itself,
        _exchanged,
        _older_view_as_a_source,
    ],
)
def test_gradients_through_writes_in_place_are_pytorchs(compute: Any) -> None:
    both(compute, (2, 3), (3,))


def _power(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y **= 2.0
    y *= w
    y.abs_().clamp_(max=0.5)
    return y


def _through_sines(xp: Any, x: Any, w: Any) -> Any:
    y = x * 1.0
    y[:, 1:].sin_().mul_(w[1:])
    return y.log1p_().square_()


def _plain_by_followed(xp: Any, x: Any, w: Any) -> Any:
    y = xp.asarray([1.0, 2.0, 3.0], dtype=xp.float64)
    y[1:] *= w[1:]
    y.hypot_(w)
    return x * y


def _ratio_written_over(xp: Any, x: Any, w: Any) -> Any:
    y = x / (w * w + 1.0)
    y *= 3.0
    z = xp.maximum(x, w)
    z[0] = 0.0
    low = xp.minimum(x, w)
    low.zero_()
    return y + z + low


@pytest.mark.parametrize("compute", [_power, _through_sines, _plain_by_followed, _ratio_written_over])
def test_gradients_of_operations_in_place_that_read_what_they_write_over_are_pytorchs(compute: Any) -> None:
    both(compute, (2, 3), (3,))


@pytest.mark.parametrize("shape", [(0, 3), (3,)])
def test_a_view_of_nothing_written_onto_itself_leaves_the_gradient(shape: tuple[int, ...]) -> None:
    x = cx.zeros(shape, requires_grad=True)
    y = x * 1.0
    view = y[:0]
    view[...] = view
    y[:0] = view
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == cx.ones(shape).tolist()


def test_a_value_written_over_is_noticed_when_it_is_needed() -> None:
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3.0
    z = y * y
    y += 1.0
    with pytest.raises(GradientError, match=r"the gradient of mul needs a tensor \(2,\) as it was.*changed in place"):
        z.sum().backward()
    y = x.exp()
    z = y * 2.0
    y[0] = 0.0
    with pytest.raises(GradientError, match="the gradient of exp needs"):
        z.sum().backward()


def test_a_value_written_over_that_nobody_needs_is_no_error() -> None:
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    mask = cx.tensor([0.0, 1.0])
    y = x + 1.0
    z = y * mask + 2.0 * y
    y *= 5.0
    z.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 3.0]


def test_a_step_of_an_optimiser_between_forward_and_backward_is_noticed() -> None:
    layer = cx.nn.Linear(2, 2)
    hidden = layer(cx.ones(1, 2)) * 2.0
    loss = layer(hidden).sum()
    optimizer = cx.optim.SGD(layer.parameters(), lr=0.1)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(GradientError, match="changed in place"):
        loss.backward()


def test_a_compiled_step_between_forward_and_backward_is_noticed() -> None:
    layer = cx.nn.Linear(2, 1)
    optimizer = cx.optim.SGD(layer.parameters(), lr=0.1)

    @cx.compile
    def step(x: Any) -> Any:
        loss = layer(x).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    loss = layer(layer(cx.ones(1, 2)) * cx.ones(1, 2)).sum()
    step(cx.ones(1, 2))
    with pytest.raises(GradientError, match="changed in place"):
        loss.backward()


def test_a_write_to_the_shared_memory_of_a_detached_tensor_is_noticed() -> None:
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    x.detach()[0] = 5.0
    with pytest.raises(GradientError, match="changed in place"):
        y.sum().backward()


def test_saved_tensors_of_a_function_and_arguments_of_remat_are_checked() -> None:
    class Double(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * 2.0 * ctx.saved_tensors[0]

    x = cx.tensor([1.0], requires_grad=True)
    for f in (Double.apply, lambda v: cx.remat(lambda u: u * u, v)):
        y = x * 1.0
        z = f(y)
        y += 1.0
        with pytest.raises(GradientError, match="changed in place"):
            z.sum().backward()


def test_a_leaf_with_a_gradient_changes_only_without_recording() -> None:
    x = cx.ones(2, requires_grad=True)
    for change in (lambda: x.__iadd__(1.0), lambda: x.__setitem__(0, 1.0), lambda: x[0].__iadd__(1.0)):
        with pytest.raises(GradientError, match="a leaf that requires a gradient"):
            change()
    with cx.no_grad():
        x += 1.0
        x[0] = 7.0
    assert x.tolist() == [7.0, 2.0] and x.is_leaf


def test_the_gradient_of_a_gradient_goes_through_an_assignment() -> None:
    def f(x: Any) -> Any:
        y = x * 1.0
        y[0] = x[1] ** 3
        return (y * y).sum()

    hessian = cx.hessian(f)(cx.tensor([1.0, 2.0], dtype="float64"))
    assert hessian.tolist() == [[0.0, 0.0], [0.0, 30.0 * 16 + 2.0]]


def test_views_reach_compiled_steps_whole() -> None:
    x = cx.arange(6).astype("float32").reshape(2, 3)
    assert cx.compile(lambda v: v * 2.0)(x.T).tolist() == (x.T * 2.0).tolist()
    places = cx.asarray([1, 0])
    assert cx.compile(lambda v: v[places, places])(x).tolist() == x[places, places].tolist()


# errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (lambda x: x.__setitem__(0, [1, 2]), ShapeError, r"expected a value for shape \(3,\), got \(2,\)"),
        (lambda x: x.__setitem__((0, 0), cx.ones(2)), ShapeError, r"shape \(\), got \(2,\)"),
        (lambda x: x.__setitem__(0, 1j), DtypeError, "float32 does not hold complex64"),
        (lambda x: x.astype("int32").__setitem__(0, 1.5), DtypeError, "int32 does not hold float32"),
        (lambda x: x.astype("uint8").__setitem__(0, 300), DtypeError, "uint8 holds 0..255, got 300"),
        (lambda x: x.astype("uint8").__setitem__(0, [300, 1, 1]), DtypeError, "uint8 holds 0..255"),
        (lambda x: x.__setitem__(5, 1.0), IndexError, "index 5 is out of range for axis 0"),
        (lambda x: x.__setitem__(([0, 9], [0, 1]), 1.0), IndexError, "expected -2..1, got 0..9"),
        (lambda x: x.__setitem__("a", 1.0), ShapeError, "expected integers, slices"),
        (lambda x: x.__setitem__(cx.ones(2), 1.0), ShapeError, "expected integers, slices"),
        (lambda x: x.__iadd__(cx.ones(2, 2, 3)), ShapeError, r"\+=: the result is \(2, 2, 3\)"),
        (lambda x: x.astype("int32").__iadd__(0.5), DtypeError, r"\+=: int32 does not hold float32"),
        (lambda x: x.__getitem__(([0, 1], [0, 1, 2])), ShapeError, "do not broadcast"),
        (lambda x: x.__getitem__((0, 0, 0)), ShapeError, "at most 2 indices"),
        (lambda x: x.__getitem__(0.5), ShapeError, "expected integers, slices"),
    ],
)
def test_a_bad_index_or_value_is_one_clear_error_and_changes_nothing(write: Any, error: Any, words: str) -> None:
    x = cx.ones(2, 3)
    with pytest.raises(error, match=words):
        write(x)
    assert x.tolist() == cx.ones(2, 3).tolist()


def test_a_graph_has_no_memory_of_arguments_to_assign_to() -> None:
    def write(x: Any) -> Any:
        x[0] = 1.0
        return x

    with pytest.raises(GraphError, match="assignment writes to an argument"):
        cx.compile(write)(cx.ones(2))
    with pytest.raises(GraphError, match=r"assignment: .* no memory to write to; write x = x.clone\(\) before it"):
        cx.trace(write, (2,))
    outside = cx.ones(2)

    def add(x: Any) -> Any:
        nonlocal outside
        outside += x
        return x

    with pytest.raises(GraphError, match="buffer"):
        cx.trace(add, (2,))
    cx.compile(add)(cx.ones(2))  # which is run here, and has it
    assert outside.tolist() == [2.0, 2.0]


def test_a_tensor_made_of_another_shares_its_writes_only_where_it_shares_memory() -> None:
    y = cx.ones(2)
    same_memory, converted = cx.Tensor(y, requires_grad=True), cx.Tensor(y, "float64", requires_grad=True)
    products = same_memory * same_memory, converted * converted
    y += 1.0
    assert same_memory.tolist() == [2.0, 2.0]
    with pytest.raises(GradientError, match="changed in place"):
        products[0].sum().backward()
    products[1].sum().backward()
    assert converted.grad is not None and converted.grad.tolist() == [2.0, 2.0]


def test_loading_weights_between_forward_and_backward_is_noticed() -> None:
    layer = cx.nn.Linear(2, 2)
    loss = layer(layer(cx.ones(1, 2))).sum()
    layer.load_state_dict({name: array * 0 for name, array in layer.state_dict().items()})
    with pytest.raises(GradientError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_mask_of_the_first_axes_picks_and_fills(axes: int) -> None:
    truth = np.random.default_rng(axes).uniform(size=X.shape[:axes]) < 0.5
    for base, mask in (
        (X, truth),
        (
            X.transpose(2, 0, 1),
            truth.transpose(2, 0, 1) if axes == 3 else np.ones(X.transpose(2, 0, 1).shape[:axes], bool),
        ),
    ):
        held, expected = cx.tensor(X.copy()), base.copy()
        tensor = held.permute(2, 0, 1) if base is not X else held
        picked = tensor[cx.tensor(mask)]
        assert picked.numpy().tolist() == expected[mask].tolist()
        tensor[cx.tensor(mask)] = -1.5
        expected[mask] = -1.5
        assert tensor.numpy().tolist() == expected.tolist()
        assert (held.permute(2, 0, 1) if base is not X else held).numpy().tolist() == expected.tolist()  # its memory
    with pytest.raises(IndexError):
        cx.tensor(X)[cx.tensor(np.ones((2, *X.shape[1:axes]), bool))] = 1.0
    with pytest.raises(DtypeError):
        cx.arange(3)[cx.tensor([True, False, True])] = 0.5


def test_a_mask_picks_and_fills_what_has_a_gradient() -> None:
    mask = cx.tensor(X > 20)
    x = cx.tensor(X, requires_grad=True)
    x[mask].square().sum().backward()
    assert x.grad.numpy().tolist() == np.where(X > 20, 2 * X, 0).tolist()
    x.grad = None
    y = x * 2.0
    y[mask] = 3.0
    y.sum().backward()
    assert x.grad.numpy().tolist() == np.where(X > 20, 0, 2).tolist()


def test_the_third_power_is_two_products() -> None:
    x = cx.tensor(X - 30.0, requires_grad=True)
    cubed = x**3
    assert cubed.numpy().tobytes() == ((X - 30) * (X - 30) * (X - 30)).tobytes()
    cubed.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 3 * (X - 30) ** 2, rtol=1e-6)
    assert (cx.tensor([2, -3]) ** 3).numpy().tolist() == [8, -27]


SEEN = {
    "slice": lambda x: x[1:, 2:],
    "slice by steps": lambda x: x[::2, ::-3],
    "transposed": lambda x: x.T,
    "backwards": lambda x: x[::-1],
    "broadcast": lambda x: x[:, :1].broadcast_to(*x.shape) if isinstance(x, cx.Tensor) else x[:, :1] + 0 * x,
}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16"])
def test_copies_and_concatenations_of_views_have_memory_of_their_own(name: str, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2, (300, 310)).astype("float32" if dtype == "bfloat16" else dtype)
    for count in (20, 300):  # rows: of few and of many numbers
        x = cx.tensor(array[:count]).astype(dtype)
        seen, wanted = SEEN[name](x), np.ascontiguousarray(SEEN[name](array[:count]))
        copied, joined = seen.copy(), cx.concat([seen, x[:0, : seen.shape[1]], seen, seen.copy()], axis=0)
        shifted = cx.roll(seen, 3, axis=1)
        x.zero_()
        for found, expected in (
            (copied, wanted),
            (joined, np.concatenate([wanted] * 3)),
            (shifted, np.roll(wanted, 3, 1)),
        ):
            assert found.dtype == dtype and (found.astype("float32").numpy() == expected.astype(np.float32)).all()


@pytest.mark.parametrize("name", ["slice", "slice by steps", "transposed", "backwards"])
def test_gradients_go_through_copies_and_concatenations_of_views(name: str) -> None:
    x = cx.tensor(np.ones((200, 310), np.float32), requires_grad=True)
    seen = SEEN[name](x)
    (seen.copy() * 2.0 + cx.concat([seen, seen], axis=1)[:, : seen.shape[1]]).sum().backward()
    wanted = np.zeros((200, 310), np.float32)
    SEEN[name](wanted)[...] = 3.0
    assert (x.grad.numpy() == wanted).all()


OTHERS = {
    "another": lambda x, y: (x, y),
    "itself": lambda x, y: (x, x),
    "a number": lambda x, y: (x, 3),
    "a row": lambda x, y: (x, y[1]),
    "what overlaps": lambda x, y: (x[1:], x[:-1]),
    "what lies backwards": lambda x, y: (x, x[::-1]),
    "columns": lambda x, y: (x[:, ::2], y[:, 1::2]),
    "a part in one piece": lambda x, y: (x[2:5], y[1:4]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("operator_", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_operators_in_place_write_what_operators_compute(operator_: Any, name: str, dtype: str) -> None:
    if operator_ is operator.itruediv and not dtype.startswith("float"):
        return
    arrays = [np.random.default_rng(seed).integers(1, 9, (7, 6)).astype(dtype) for seed in (0, 1)]
    wanted, y = (array.copy() for array in arrays)
    into, by = OTHERS[name](wanted, y)
    into[...] = operator_(into.copy(), by.copy() if isinstance(by, np.ndarray) else np.array(by, dtype))
    for method in (False, True):
        x, y = (cx.tensor(array) for array in arrays)
        into, by = OTHERS[name](x, y)
        written = getattr(into, METHODS[operator_])(by) if method else operator_(into, by)
        assert written is into and x.dtype == dtype and x.numpy().tobytes() == wanted.tobytes()
        assert y.numpy().tobytes() == arrays[1].tobytes()


METHODS = {operator.iadd: "add_", operator.isub: "sub_", operator.imul: "mul_", operator.itruediv: "div_"}


@pytest.mark.parametrize("write", [lambda x: x.add_(1.0), lambda x: operator.imul(x, x), lambda x: x.div_(cx.ones(3))])
def test_what_is_computed_in_place_without_recording_is_noticed_by_gradients(write: Any) -> None:
    x = cx.ones(3)
    w = cx.ones(3, requires_grad=True)
    loss = (w * x).sum()
    with cx.no_grad():
        write(x)
    with pytest.raises(GradientError, match="in place|written"):
        loss.backward()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
@pytest.mark.parametrize("operate", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_operators_on_large_views_are_those_on_copies_of_them(operate: Any, dtype: str) -> None:
    if operate is operator.truediv and not dtype.startswith("float"):
        return
    x, y = (np.random.default_rng(seed).integers(-9, 9, (170, 310)).astype(dtype) for seed in (0, 1))
    if dtype.startswith("float"):
        x[::7, ::3], y[::5, ::4] = np.inf, -0.0
    a, b = cx.tensor(x), cx.tensor(y)
    for left, right in (
        (a[:, 1:], a[:, :-1]),
        (a[1:, 5:300], b[:-1, 3:298]),
        (a[:, ::2], b[:, 1::2]),
        (a.T, b.T),
        (a.T, b[:, 0]),
        (a[:, 2:], b[0, 2:]),
        (a[:, 2:], b[:, :1]),
        (a[:, 1:], a._constant(2, dtype)),
    ):
        found = operate(left, right)
        assert found.shape == left.shape and found.dtype == dtype and found.is_contiguous()
        assert found.numpy().tobytes() == operate(left.copy(), right.copy()).numpy().tobytes()


def test_gradients_go_through_operators_on_large_views() -> None:
    x, y = (np.random.default_rng(seed).normal(size=(170, 310)).astype(np.float32) for seed in (0, 1))
    a, b = cx.tensor(x, requires_grad=True), cx.tensor(y, requires_grad=True)
    (a[:, 1:] * b[:, :-1]).sum().backward()
    assert (a.grad[:, 1:].numpy() == y[:, :-1]).all() and (a.grad[:, 0].numpy() == 0).all()
    assert (b.grad[:, :-1].numpy() == x[:, 1:]).all() and (b.grad[:, -1].numpy() == 0).all()
