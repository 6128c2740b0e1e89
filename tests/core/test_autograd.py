"""Gradients as functions: derivatives of derivatives, along directions, of one's own making, and recomputed."""

import math
import threading
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import functional as F
from cyxcore import nn
from cyxcore.errors import GradientError, SpecError

pytestmark = pytest.mark.usefixtures("each_device")

X = cx.tensor([0.3, -1.2, 2.0])
MATRIX = cx.tensor([[1.0, 2.0, 0.5], [-1.0, 0.3, 2.0]])


def cubes(x: Any) -> Any:
    return (x**3).sum()


def two(x: Any, y: Any) -> Any:
    return x * y + x.sin()


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6)


def test_a_gradient_and_its_gradient() -> None:
    close(cx.grad(cubes)(X), 3 * X.numpy() ** 2)
    close(cx.grad(lambda x: cx.grad(cubes)(x).sum())(X), 6 * X.numpy())
    close(cx.grad(lambda x: cx.grad(lambda y: cx.grad(cubes)(y).sum())(x).sum())(X), [6.0, 6.0, 6.0])


def test_the_value_and_several_gradients_at_once() -> None:
    value, (of_x, of_y) = cx.value_and_grad(lambda x, y: two(x, y).sum(), (0, 1))(X, X + 1.0)
    close(value, np.sum(X.numpy() * (X.numpy() + 1) + np.sin(X.numpy())))
    close(of_x, X.numpy() + 1 + np.cos(X.numpy()))
    close(of_y, X)


def test_what_is_returned_beside_the_loss() -> None:
    gradient, shown = cx.grad(lambda x: (cubes(x), "beside"), has_aux=True)(X)
    assert shown == "beside"
    close(gradient, 3 * X.numpy() ** 2)


def test_a_result_remembers_nothing_unless_somebody_follows_its_argument() -> None:
    assert not cx.grad(cubes)(X).requires_grad
    followed = cx.tensor([2.0], requires_grad=True)
    cx.grad(cubes)(followed).sum().backward()
    close(followed.grad, [12.0])


def test_an_argument_that_does_not_count_has_a_gradient_of_zeros() -> None:
    close(cx.grad(lambda x, y: y.sum(), 0)(X, X), [0.0, 0.0, 0.0])


def test_rows_and_columns_of_the_jacobian() -> None:
    value, pull = cx.vjp(two, X, X + 1.0)
    close(value, two(X, X + 1.0))
    of_x, of_y = pull(cx.ones(3, device=X.device))
    close(of_x, X.numpy() + 1 + np.cos(X.numpy()))
    close(of_y, X)
    value, change = cx.jvp(two, (X, X + 1.0), (cx.ones(3, device=X.device), X))
    close(change, (X + 1.0 + X.cos()) + X * X)
    close(cx.jacobian(lambda x: MATRIX @ x)(X), MATRIX)


def test_the_hessian_of_a_network_is_that_of_finite_differences() -> None:
    cx.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    for p in net.parameters():
        p.numpy()[...] = p.numpy().astype(np.float32)
    net.to(X.device)

    def loss(x: Any) -> Any:
        return cx.functional.cross_entropy(net(x.reshape(1, 3)), cx.tensor([2], device=X.device))

    h, step = cx.hessian(loss)(X).numpy(), 1e-2
    for place in range(3):
        moved = np.zeros(3, np.float32)
        moved[place] = step
        above, below = (cx.grad(loss)(X + cx.tensor(sign * moved, device=X.device)).numpy() for sign in (1, -1))
        np.testing.assert_allclose(h[place], (above - below) / (2 * step), rtol=2e-2, atol=2e-3)
    close(h, h.T)


def test_a_backward_pass_that_can_be_differentiated_again() -> None:
    w = cx.tensor([2.0], requires_grad=True)
    cubes(w).backward(create_graph=True)
    first, w.grad = w.grad, None
    first.sum().backward()
    close(w.grad, [12.0])


def test_gradients_inside_a_compiled_function() -> None:
    @cx.compile
    def newton(x: Any) -> Any:
        return x - cx.grad(cubes)(x) / cx.grad(lambda y: cx.grad(cubes)(y).sum())(x)

    close(newton(X), X.numpy() / 2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: cx.grad(lambda x: x)(X), "expected a scalar, got \\(3,\\)"),
        (
            lambda: cx.grad(cubes)(cx.tensor([1])),
            "expected a float or complex tensor as argument 0, got a tensor \\(1,\\) int64",
        ),
        (lambda: cx.grad(cubes)(1.0), "expected a float or complex tensor as argument 0, got float"),
        (lambda: cx.grad(cubes, 1)(X), "argnums 1 of a call with 1 arguments"),
        (lambda: cx.grad(lambda x: 1.0)(X), "expected the function to return a tensor, got float"),
        (lambda: cx.jvp(cubes, (X,), (cx.ones(2),)), "a tangent for each primal, of its shape"),
        (lambda: X.register_hook(print), "requires no gradient"),
    ],
)
def test_what_has_no_gradient_is_said(call: Any, said: str) -> None:
    with pytest.raises(GradientError, match=said):
        call()


def test_a_hook_sees_and_changes_a_gradient_and_goes_when_it_is_told() -> None:
    x, seen = cx.tensor([1.0, 2.0], requires_grad=True), []
    middle = x * 3.0

    def halve(g: Any) -> Any:
        seen.append(g.tolist())
        return g * 0.5

    take_off = middle.register_hook(halve)
    middle.sum().backward()
    assert (seen, x.grad.tolist()) == ([[1.0, 1.0]], [1.5, 1.5])
    take_off()
    x.grad = None
    middle.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


class Doubled(cx.Function):
    """Half of the truth: its gradient is twice what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Any, factor: float) -> Any:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        (x,) = ctx.saved_tensors
        assert x.shape == g.shape
        return g * (2.0 * ctx.factor), None


def test_a_function_with_its_own_gradient() -> None:
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    y = Doubled.apply(x * 1.0, 3.0)
    y.sum().backward()
    assert (y.tolist(), x.grad.tolist()) == ([3.0, 6.0], [6.0, 6.0])
    assert not Doubled.apply(cx.ones(2), 3.0).requires_grad


class Fivefold(cx.Function):
    """exp with five times its gradient, which is computed from the result."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return 5.0 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("way", [lambda function: function, cx.compile])
def test_a_gradient_of_the_gradient_goes_through_a_saved_result(way: Any) -> None:
    second = way(cx.grad(lambda x: cx.grad(lambda x: Fivefold.apply(x).sum())(x).sum()))
    x = cx.tensor([0.5, 1.0])
    assert cx.allclose(second(x), 25.0 * x.exp())


def test_a_function_with_its_own_gradient_goes_into_no_graph_that_travels() -> None:
    with pytest.raises(GradientError, match="Doubled: a graph that is saved or sent holds only known"):
        cx.trace(lambda x: Doubled.apply(x, 2.0), (3,))


class Wrong(Doubled):
    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return g.sum(), None


def test_a_gradient_of_another_shape_is_refused() -> None:
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(GradientError, match="Wrong.backward: expected a gradient of shape \\(2,\\), got \\(\\)"):
        Wrong.apply(x, 1.0).sum().backward()


def test_recomputing_changes_no_bit_also_of_what_is_random() -> None:
    def gradients(recomputed: bool) -> list[Any]:
        cx.manual_seed(3)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        x = cx.tensor(np.arange(12.0, dtype=np.float32).reshape(3, 4) / 7, requires_grad=True)
        out = cx.remat(net, x * 1.0) if recomputed else net(x * 1.0)
        (out * out).sum().backward()
        return [p.grad.tolist() for p in (x, *net.parameters())] + [cx.rand(2).tolist()]

    assert gradients(True) == gradients(False)


def test_recomputing_forgets_what_is_between() -> None:
    x = cx.tensor([1.0], requires_grad=True)
    y = cx.remat(lambda v: ((v * 2.0).exp() + 1.0).log(), x)
    assert y._op.inputs == (x,)


def test_what_one_thread_does_without_gradients_leaves_the_tapes_of_others():
    x = cx.tensor([1.0, 2.0], requires_grad=True)
    inside, made = threading.Event(), threading.Event()
    found = []

    def judge():
        with cx.no_grad():
            inside.set()
            made.wait(60)
            found.append((x * x).requires_grad)

    thread = threading.Thread(target=judge)
    thread.start()
    assert inside.wait(60)
    with cx.no_grad():
        made.set()
        thread.join()
    assert found == [False] and (x * x).requires_grad
    inside.clear()
    made.clear()
    thread = threading.Thread(target=judge)
    thread.start()
    assert inside.wait(60)
    (x * x).sum().backward()
    made.set()
    thread.join()
    assert found == [False, False] and x.grad.tolist() == [2.0, 4.0]


def test_what_is_recomputed_gives_its_parameters_gradients_also_where_its_argument_needs_none() -> None:
    x = cx.tensor([[1.0, 2.0], [3.0, 4.0]])

    def gradients(run: Any) -> list[Any]:
        cx.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 1))
        run(net, x).sum().backward()
        return [None if p.grad is None else p.grad.tolist() for p in net.parameters()]

    checkpoint = cx.utils.checkpoint
    plain = gradients(lambda net, x: net(x))
    assert gradients(lambda net, x: cx.remat(net, x)) == plain
    assert gradients(lambda net, x: checkpoint.checkpoint(net, x, use_reentrant=False)) == plain
    assert gradients(lambda net, x: checkpoint.checkpoint_sequential(net, 2, x, use_reentrant=True)) == plain
    with cx.no_grad():
        assert not cx.remat(nn.Linear(2, 1), x).requires_grad
    with pytest.raises(SpecError, match=r"1\.\.2 segments, got 3"):
        checkpoint.checkpoint_sequential([abs, abs], 3, x)


def test_what_is_written_to_one_of_several_gradients_changes_no_other_and_nothing_given() -> None:
    x, y, given = cx.ones(2, 2), cx.ones(2, 2), cx.tensor([[1.0, 2.0], [3.0, 4.0]])

    def total(x: Any, y: Any) -> Any:
        return (x + y) + (x + y).reshape(-1).reshape(2, 2)

    a, b = cx.ones(2, 2, requires_grad=True), cx.ones(2, 2, requires_grad=True)
    c, d = cx.ones(2, 2, requires_grad=True), cx.ones(2, 2, requires_grad=True)
    cx.remat(lambda x: x + c + d, x).backward(given)
    for found in (
        cx.grad(a + b, [a, b, a], grad_outputs=given),
        cx.grad(a.reshape(-1) + b.reshape(-1), [a, b], grad_outputs=given.reshape(-1)),
        cx.vjp(lambda x, y: x + y, x, y)[1](given),
        cx.vjp(lambda x, y: x.reshape(-1) + y.reshape(-1), x, y)[1](given.reshape(-1)),
        cx.grad(lambda x, y: (total(x, y) * given).sum(), (0, 1))(x, y),
        (c.grad, d.grad),
    ):
        for place, g in enumerate(found):
            expected = g.numpy().copy()
            assert not g.shares_memory(given)
            g *= place + 2.0
            assert g.numpy().tolist() == (expected * (place + 2.0)).tolist()
            assert all(not g.shares_memory(other) for other in found if other is not g)
        assert len({id(g) for g in found}) == len(found) and given.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_function_of_one_thread_is_not_inside_that_of_another() -> None:
    inside, done = threading.Event(), threading.Event()

    def waits(x: Any) -> Any:
        inside.set()
        assert done.wait(60)
        return (x * x).sum()

    other = threading.Thread(target=lambda: cx.grad(waits)(X.copy()))
    other.start()
    assert inside.wait(60)
    try:
        g = cx.grad(cubes)(X)
    finally:
        done.set()
        other.join()
    assert not g.requires_grad


GRADIENTS_IN_A_GRAPH = {
    "what the function reads beside its argument": lambda x: cx.grad(lambda v: (v * x).sum())(x),
    "one tensor as two arguments": lambda x: cx.grad(lambda a, b: (a * b.exp()).sum(), argnums=(0, 1))(x, x),
    "an argument that is not used": lambda x: cx.grad(lambda a, b: a.sum(), argnums=1)(x, -x),
    "a gradient of a gradient": lambda x: cx.grad(lambda v: (cx.grad(lambda u: (u**3 * x).sum())(v) * v).sum())(x),
    "vjp": lambda x: cx.vjp(lambda v: v.exp() * x, x)[1](x),
    "jvp": lambda x: cx.jvp(lambda v: v.exp() * x, (x,), (x,)),
    "hessian": lambda x: cx.hessian(lambda v: (v**3 * x[0]).sum())(x[0]),
    "remat": lambda x: cx.grad(lambda v: (cx.remat(lambda u: (u * u).exp() * u, v) * v + v.tanh()).sum())(x),
}


@pytest.mark.parametrize("name", GRADIENTS_IN_A_GRAPH)
def test_a_gradient_in_a_compiled_function_is_that_of_tensors(name: str) -> None:
    x = cx.tensor(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
    plain, compiled = GRADIENTS_IN_A_GRAPH[name](x), cx.compile(GRADIENTS_IN_A_GRAPH[name])(x)
    plain, compiled = ([*found] if isinstance(found, tuple) else [found] for found in (plain, compiled))
    assert [one.numpy().tobytes() for one in compiled] == [one.numpy().tobytes() for one in plain]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_polynomial_has_its_gradient_at_zero(compiled: bool) -> None:
    powers = cx.tensor([0.0, 1.0, 2.0])
    for polynomial in (lambda x: (x**0 + x**1 + x**2).sum(), lambda x: (x[:, None] ** powers).sum()):
        grad = cx.grad(polynomial)
        found = (cx.compile(grad) if compiled else grad)(cx.tensor([0.0, 3.0, -1.0]))
        assert found.tolist() == [1.0, 7.0, -1.0]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("exponent", [0, cx.zeros(4)], ids=["number", "tensor"])
def test_a_power_of_nought_is_the_same_everywhere(exponent: Any, compiled: bool) -> None:
    grad = cx.grad(lambda x: (x**exponent).sum())
    x = cx.tensor([0.0, math.inf, -math.inf, math.nan])
    assert (cx.compile(grad) if compiled else grad)(x).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_an_infinite_argument_that_is_not_used_has_the_gradient_0() -> None:
    assert cx.grad(lambda a, b: a.sum(), argnums=1)(cx.tensor([1.0]), cx.tensor([float("inf")])).tolist() == [0.0]


@pytest.mark.parametrize("followed", [True, False])
def test_a_penalty_on_gradients_is_followed_in_a_compiled_step_where_it_is_in_a_plain_one(followed: bool) -> None:
    """As a term of a loss: through an argument that depends on weights a gradient goes on, through another none."""

    def weights(compiled: bool) -> list[Any]:
        cx.manual_seed(0)
        maker, critic = cx.nn.Linear(4, 4), cx.nn.Sequential(cx.nn.Linear(4, 8), cx.nn.Tanh(), cx.nn.Linear(8, 1))
        parameters = [*maker.parameters(), *critic.parameters()]
        optimizer = cx.optim.SGD(parameters, lr=0.1)

        def step(x: Any) -> Any:
            given = maker(x) if followed else x
            slope = cx.grad(lambda v: critic(v).sum())(given)
            loss = slope.square().mean() + critic(maker(x)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made = cx.compile(step) if compiled else step
        x = cx.tensor(np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32))
        losses = [made(x).item() for _ in range(3)]
        return [losses, *(p.tolist() for p in parameters)]

    assert weights(True) == weights(False)


def test_what_a_function_is_asked_for_and_a_context_that_is_set_up_apart() -> None:
    asked: list[tuple[bool, ...]] = []

    class Scaled(cx.Function):
        @staticmethod
        def forward(x: Any, y: Any, by: float) -> Any:
            return x * y * by

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            x, y, ctx.by = inputs
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, y)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            x, y = ctx.saved_tensors
            asked.append(ctx.needs_input_grad)
            return g * y * ctx.by, g * x * ctx.by if ctx.needs_input_grad[1] else None, None

    x, y = cx.tensor([1.0, 2.0], requires_grad=True), cx.tensor([3.0, 4.0])
    Scaled.apply(x, y, 2.0).sum().backward()
    assert x.grad.tolist() == [6.0, 8.0] and asked == [(True, False, False)]
    slope = cx.compile(cx.grad(lambda v: Scaled.apply(v, v * 1.0, 2.0).sum()))
    assert slope(x.detach()).tolist() == [4.0, 8.0] and asked[-1] == (True, True, False)


def test_a_backward_that_is_differentiable_once() -> None:
    class Square(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @cx.autograd.once_differentiable
        def backward(ctx: Any, g: Any) -> Any:
            return cx.tensor(2.0 * ctx.saved_tensors[0].detach().numpy()) * g

    x = cx.tensor([1.0, 2.0], requires_grad=True)
    Square.apply(x).sum().backward()
    assert x.grad.tolist() == [2.0, 4.0]
    with pytest.raises(GradientError, match="Square.backward: it has no gradient of its own"):
        cx.autograd.grad(Square.apply(x).sum(), x, create_graph=True)


def test_nan_is_found_where_it_is_made_on_the_way_back() -> None:
    x = cx.tensor([0.0, 1.0], requires_grad=True)

    def loss() -> Any:
        return (x.sqrt() * 0.0).sum()  # 0 times infinity

    with cx.autograd.detect_anomaly():
        for walk in (lambda: loss().backward(), lambda: cx.autograd.grad(loss(), x)):
            with pytest.raises(GradientError, match=r"NaN in the gradient that sqrt gives to input 0, of shape \(2,\)"):
                walk()
        (x * 2.0).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    try:
        cx.autograd.set_detect_anomaly(True)
        with cx.autograd.set_detect_anomaly(False):
            loss().backward()
        with pytest.raises(GradientError, match="NaN"):
            loss().backward()
    finally:
        cx.autograd.set_detect_anomaly(False)
    loss().backward()
    assert np.isnan(x.grad.numpy()[0])


def test_anomalies_are_looked_for_from_where_the_block_begins() -> None:
    # as a decorator it looked from its making on, and of two blocks across each other the last put it back for good
    looks = cx.autograd.set_detect_anomaly

    @cx.autograd.detect_anomaly()
    def inside(again: int = 1) -> bool:
        return looks.looks and (not again or inside(again - 1)) and looks.looks

    assert not looks.looks and inside() and not looks.looks
    block = looks(False)
    with block, cx.autograd.detect_anomaly(), block:
        assert not looks.looks
    assert not looks.looks


@pytest.mark.parametrize("materialize", [True, False])
def test_a_function_of_several_results(materialize: bool) -> None:
    class Split(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, y: Any) -> Any:
            ctx.set_materialize_grads(materialize)
            ctx.save_for_backward(x, y)
            nearest = x.argmax()
            halved = x / 2.0
            ctx.mark_non_differentiable(nearest, halved)
            return x * y, x + y, nearest, halved

        @staticmethod
        def backward(ctx: Any, of_product: Any, of_sum: Any, of_nearest: Any, of_halved: Any) -> Any:
            x, y = ctx.saved_tensors
            assert (of_nearest is None) == (of_halved is None) == (not materialize)
            into_x, into_y = cx.zeros(2), cx.zeros(2)
            if of_product is not None:
                into_x, into_y = into_x + of_product * y, into_y + of_product * x
            if of_sum is not None:
                into_x, into_y = into_x + of_sum, into_y + of_sum
            return into_x, into_y

    x, y = cx.tensor([1.0, 2.0], requires_grad=True), cx.tensor([3.0, 4.0], requires_grad=True)
    product, total, nearest, halved = Split.apply(x, y)
    assert nearest.item() == 1 and halved.tolist() == [0.5, 1.0] and not halved.requires_grad
    (product * 10.0 + total).sum().backward()
    assert x.grad.tolist() == [31.0, 41.0] and y.grad.tolist() == [11.0, 21.0]
    again = cx.autograd.grad(Split.apply(x, y)[0].sum(), x, create_graph=True)[0]
    assert cx.autograd.grad(again.sum(), y)[0].tolist() == [1.0, 1.0]
    with pytest.raises(GradientError, match=r"Split.forward: expected a tensor in cx.compile, got"):
        cx.compile(lambda x, y: Split.apply(x, y)[0])(x.detach(), y.detach())


def test_backward_of_several_results_is_called_once_with_all_their_gradients() -> None:
    # it was called for each with zeros for the others, and the answers added up: 2.0
    class Clipped(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1.0, x * 1.0

        @staticmethod
        def backward(ctx: Any, first: Any, second: Any) -> Any:
            return cx.clip(first + second, -1.0, 1.0)

    x = cx.tensor([0.5], requires_grad=True)
    first, second = Clipped.apply(x)
    (first + second).sum().backward()
    assert x.grad.tolist() == [1.0]


def test_a_second_derivative_goes_through_a_saved_result_of_several() -> None:
    # y = exp(x) is saved: of y² the second derivative is 4 exp(2x); it was lost without a word
    class Both(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            y = x.exp()
            ctx.save_for_backward(y)
            return x * 3.0, y

        @staticmethod
        def backward(ctx: Any, of_triple: Any, of_y: Any) -> Any:
            (y,) = ctx.saved_tensors
            return of_triple * 3.0 + of_y * y

    x = cx.tensor([0.5, -1.0], dtype="float64", requires_grad=True)
    triple, y = Both.apply(x)
    (first,) = cx.autograd.grad((y * y + triple).sum(), [x], create_graph=True)
    (second,) = cx.autograd.grad(first.sum(), [x])
    np.testing.assert_allclose(first.detach().numpy(), 2 * np.exp([1.0, -2.0]) + 3, rtol=1e-12)
    np.testing.assert_allclose(second.numpy(), 4 * np.exp([1.0, -2.0]), rtol=1e-12)


def test_results_with_gradients_of_several_dtypes_are_refused() -> None:
    class Mixed(cx.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1.0, x.double()

    with pytest.raises(GradientError, match=r"Mixed.forward: expected results with gradients of one dtype"):
        Mixed.apply(cx.tensor([0.5], requires_grad=True))


def test_a_loss_of_one_element_goes_back_whatever_its_shape() -> None:
    for shape in ((1,), (1, 1, 1)):
        x = cx.tensor([1.0, 2.0], requires_grad=True)
        (x * x).sum().reshape(*shape).backward()
        assert x.grad.tolist() == [2.0, 4.0]
        assert cx.autograd.grad((x * 3.0).sum().reshape(*shape), x)[0].tolist() == [3.0, 3.0]
    with pytest.raises(GradientError, match="expected a scalar, got \\(2,\\)"):
        (x * x).backward()


TARGET = cx.tensor([0.0, 1.0, 0.5])
SMOOTH: dict[str, tuple[Any, list[float]]] = {
    "softplus": (F.softplus, [0.5] * 3),
    "logsigmoid": (F.logsigmoid, [0.5] * 3),
    "mish": (F.mish, [0.6] * 3),
    "elu": (F.elu, [1.0] * 3),
    "celu": (lambda x: F.celu(x, 0.5), [1.0] * 3),
    "binary cross-entropy": (lambda x: F.binary_cross_entropy_with_logits(x, TARGET, "none"), [0.5, -0.5, 0.0]),
    "soft margin": (lambda x: F.soft_margin_loss(x, TARGET * 2 - 1, "none"), [0.5, -0.5, 0.0]),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", SMOOTH)
def test_functions_that_are_smooth_at_0_have_their_gradient_there(name: str, compiled: bool) -> None:
    function, wanted = SMOOTH[name]

    def slope(x: Any) -> Any:
        return cx.autograd.grad(function(x).sum(), [x])[0]

    x = cx.tensor([0.0, -0.0, 0.0], requires_grad=True)
    close((cx.compile(slope) if compiled else slope)(x), wanted)


def records() -> bool:
    return bool((cx.ones(2, requires_grad=True) * 2.0).requires_grad)


def test_gradients_are_switched_by_a_statement_in_a_block_and_around_a_function() -> None:
    with cx.enable_grad():  # so that no other test meets what a failure leaves behind
        cx.set_grad_enabled(False)  # a statement: from now on
        assert not records()
        with cx.autograd.set_grad_enabled(mode=True):
            assert records()
        assert not records()
        cx.set_grad_enabled(True)
        with cx.set_grad_enabled(False):
            assert not records()
        assert records() and not cx.set_grad_enabled(False)(records)() and records()
        for off in (cx.no_grad, cx.no_grad(), cx.inference_mode, cx.inference_mode()):
            decorated = off(records)
            assert records() and not decorated() and records() and decorated.__name__ == "records"
        with cx.no_grad():
            assert cx.enable_grad(records)() and cx.inference_mode(False)(records)() and not records()
            with cx.inference_mode(mode=False):
                assert records()
