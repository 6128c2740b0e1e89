"""What a walk back gives back, and what it keeps: as PyTorch does, and with the gradients' bits untouched."""

import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import composed, device, nn, tape
from cyxcore.errors import GradientError

pytestmark = pytest.mark.usefixtures("each_device")

GIVEN_BACK = "was given back .* pass retain_graph=True"


def drawn(*shape: int, seed: int = 0, requires_grad: bool = False) -> Any:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return cx.tensor(values, requires_grad=requires_grad)


class Saved:
    """What a function keeps for its gradient."""


class Keeping(cx.Function):
    """x * 1, which keeps something."""

    kept: list[Any] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.saved = Saved()
        Keeping.kept.append(weakref.ref(ctx.saved))
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        assert isinstance(ctx.saved, Saved)
        return g * 1.0


WAYS = {
    "backward": lambda y, w, **how: y.backward(**how),
    "backward of inputs": lambda y, w, **how: y.backward(inputs=[w], **how),
    "backward of several": lambda y, w, **how: cx.autograd.backward([y], **how),
    "grad": lambda y, w, **how: cx.autograd.grad(y, [w], **how),
}


def general_way() -> Any:
    """In which every rule is asked in Python."""
    return cx.autograd.detect_anomaly()


@pytest.mark.parametrize("around", [nullcontext, general_way])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("retain_graph", [None, False, True])
def test_what_was_walked_back_through_is_given_back_on_the_way(around: Any, way: str, retain_graph: Any) -> None:
    w, seen = drawn(3, 3, requires_grad=True), []
    Keeping.kept.clear()
    h = Keeping.apply(w)
    h.register_hook(lambda g: seen.append([kept() is not None for kept in Keeping.kept]))
    y = h
    for _ in range(3):
        y = Keeping.apply(y).tanh()
    y = y.sum()
    with around():
        WAYS[way](y, w, **({} if retain_graph is None else {"retain_graph": retain_graph}))
    # When the gradient of the first comes, those of the later ones are through.
    assert seen == [[True] * 4 if retain_graph else [True, False, False, False]]
    assert [kept() is not None for kept in Keeping.kept] == [bool(retain_graph)] * 4


@pytest.mark.parametrize("around", [nullcontext, general_way])
@pytest.mark.parametrize("way", WAYS)
def test_a_second_way_back_through_what_was_given_back_is_an_error(around: Any, way: str) -> None:
    w = drawn(3, 3, requires_grad=True)
    y = (w.exp() @ w).sum()
    with around():
        WAYS[way](y, w, retain_graph=True)
        WAYS[way](y, w)
        for again in WAYS.values():
            with pytest.raises(GradientError, match=GIVEN_BACK):
                again(y, w)
        with pytest.raises(GradientError, match=GIVEN_BACK):
            y.backward(create_graph=True)


@pytest.mark.parametrize("around", [nullcontext, general_way])
def test_two_losses_of_one_trunk(around: Any) -> None:
    def run(retain_graph: bool, apart: bool = False) -> Any:
        w, x = drawn(4, 3, requires_grad=True), drawn(5, 4, seed=1)
        h = (x @ w).tanh()
        (h * 2.0).exp().sum().backward(retain_graph=retain_graph)
        if apart:
            h = (x @ w).tanh()
        h.square().sum().backward()
        return w.grad.tolist()

    with around():
        assert run(True) == run(True, apart=True) == run(False, apart=True)
        with pytest.raises(GradientError, match=GIVEN_BACK):
            run(False)


def test_what_is_made_of_leaves_by_views_and_sums_may_be_walked_again() -> None:
    w, v = drawn(4, 3, requires_grad=True), drawn(4, 3, seed=1, requires_grad=True)
    flat = cx.concat([w.reshape(12), (v * 2.0).T.reshape(12)])[2:] - 1.0
    for _ in range(3):  # as parameters are that were put together before a loop
        flat.exp().sum().backward()
    once = (cx.concat([w.reshape(12), (v * 2.0).T.reshape(12)])[2:] - 1.0).exp().sum()
    of_w, of_v = cx.autograd.grad(once, [w, v])
    assert w.grad.tolist() == (of_w + of_w + of_w).tolist()
    assert v.grad.tolist() == (of_v + of_v + of_v).tolist()
    total = (w * 2.0).sum()
    total.backward()
    total.backward()


def test_a_gradient_of_a_gradient_keeps_what_it_comes_from() -> None:
    w = drawn(3, requires_grad=True)
    y = (w.exp() * w).sum()
    (first,) = cx.autograd.grad(y, [w], create_graph=True)
    (first.square().sum() + y).backward()
    x = w.detach().numpy().astype(np.float64)
    slope = np.exp(x) * (x + 1.0)
    np.testing.assert_allclose(w.grad.numpy(), 2.0 * slope * np.exp(x) * (x + 2.0) + slope, rtol=1e-4)
    with pytest.raises(GradientError, match=GIVEN_BACK):
        y.backward()
    (slope_again,) = cx.autograd.grad((w.exp() * w).sum(), [w], create_graph=True, retain_graph=False)
    assert slope_again.requires_grad


def test_several_outputs_may_come_from_the_same() -> None:
    w = drawn(3, requires_grad=True)
    h = w.exp()
    outputs = [h.sum(), (h * h).sum(), h.tanh().sum()]
    (found,) = cx.autograd.grad(outputs, [w])
    (wanted,) = cx.autograd.grad(w.exp().sum() + w.exp().square().sum() + w.exp().tanh().sum(), [w])
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-5)
    outputs = [(w.exp() * n).sum() for n in range(1, 3)] + [h.detach().sum() + (w.exp() + w.exp()).sum()]
    cx.autograd.backward(outputs)
    with pytest.raises(GradientError, match=GIVEN_BACK):
        outputs[2].backward()


def test_functions_of_functions_go_back_as_often_as_they_are_asked() -> None:
    outside = drawn(3, requires_grad=True).exp()
    value, pull = cx.vjp(lambda x: x.exp() * outside, drawn(3))
    assert pull(cx.ones(3)).tolist() == pull(cx.ones(3)).tolist() == (value * 1.0).tolist()
    assert cx.jacobian(lambda x: x.exp() * outside)(drawn(3)).shape == (3, 3)
    cx.grad(lambda x: (x * outside).sum())(drawn(3))
    outside.sum().backward()  # which is no part of any of them


def test_what_is_computed_again_gives_back_nothing_around_it() -> None:
    w = drawn(3, requires_grad=True)

    def run(remat: bool) -> Any:
        w.grad = None
        h = w.exp()
        block: Callable[[Any], Any] = lambda x: (x.tanh() * x).exp()  # noqa: E731
        y = cx.remat(block, h) if remat else block(h)
        (y.sum() + h.square().sum()).backward(retain_graph=True)
        first = w.grad.numpy().copy()
        (y * 2.0).sum().backward()
        with pytest.raises(GradientError, match=GIVEN_BACK):
            h.sum().backward()
        return first, w.grad.numpy()

    np.testing.assert_allclose(run(True), run(False), rtol=1e-6)


@pytest.mark.parametrize("retain_graph", [False, True])
def test_writes_in_place_and_hooks_do_what_they_did(retain_graph: bool) -> None:
    w, seen = drawn(3, requires_grad=True), []
    changed = w.tanh()
    out = changed.square()
    changed += 1.0
    with pytest.raises(GradientError, match="changed in place"):
        out.sum().backward(retain_graph=retain_graph)
    h = w * 2.0
    y = h.exp()
    h[0] = 5.0  # which goes the general way, and is asked for what it was before
    h.register_hook(lambda g: seen.append(g.tolist()))
    loss = h.square().sum() + y.sum()
    w.grad = None
    loss.backward(retain_graph=retain_graph)
    x = w.detach().numpy()
    wanted = 2.0 * np.exp(2.0 * x) + np.array([0.0, 8.0, 8.0], np.float32) * x
    np.testing.assert_allclose(w.grad.numpy(), wanted, rtol=1e-5)
    assert seen[0] == (2.0 * h).tolist()
    with nullcontext() if retain_graph else pytest.raises(GradientError, match=GIVEN_BACK):
        loss.backward()


def test_a_result_of_several_cannot_be_gone_through_again() -> None:
    cx.manual_seed(0)
    layer = nn.LSTM(3, 4)
    for _ in range(6):  # from the fourth on it is planned
        output, (last, _) = layer(drawn(5, 2, 3))
        output.sum().backward()
        for create_graph in (False, True):
            with pytest.raises(GradientError, match=GIVEN_BACK):
                last.sum().backward(create_graph=create_graph)


def test_large_compositions_are_given_back_too() -> None:
    norm, x = nn.LayerNorm(256), drawn(512, 256, requires_grad=True)
    h = norm(x)
    h.sum().backward(retain_graph=True)
    h.sum().backward()
    for create_graph in (False, True):
        with pytest.raises(GradientError, match=GIVEN_BACK):
            h.sum().backward(create_graph=create_graph)


def test_what_another_walk_gives_back_while_it_is_needed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two lines of a walk another thread may have gone the whole way."""
    looked = tape._then

    def meanwhile(x: Any, since: float) -> Any:
        monkeypatch.setattr(tape, "_then", looked)
        cx.autograd.grad(y, [w])
        return looked(x, since)

    w = drawn(4, 4, requires_grad=True)
    for _ in range(3):
        y = (w @ w).tanh().sum()
        monkeypatch.setattr(tape, "_then", meanwhile)
        with cx.autograd.detect_anomaly(), pytest.raises(GradientError, match=GIVEN_BACK):
            cx.autograd.grad(y, [w])
        assert tape._then is looked


def test_what_another_walk_gives_back_of_a_composition_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = composed.check_unchanged

    def meanwhile(node: Any, needed: Any) -> None:
        checked(node, needed)
        monkeypatch.setattr(composed, "check_unchanged", checked)
        cx.autograd.grad(y, [x])

    with device.use_device("cpu"):  # where it is one call
        norm, x = nn.LayerNorm(256), drawn(512, 256, requires_grad=True)
        for _ in range(3):
            y = norm(x.tanh()).tanh().sum()
            monkeypatch.setattr(composed, "check_unchanged", meanwhile)
            with pytest.raises(GradientError, match=GIVEN_BACK):
                cx.autograd.grad(y, [x])
            assert composed.check_unchanged is checked


def test_threads_that_go_back_through_the_same_at_once_end() -> None:
    """One of them has what it needs; others may be told that it was given back meanwhile."""
    w, ended = drawn(64, 64, requires_grad=True), []

    def back(y: Any, start: threading.Barrier) -> None:
        start.wait()
        try:
            found = cx.autograd.grad(y, [w])[0].tolist()
        except GradientError as error:
            found = str(error)
        ended.append(found)

    for _ in range(5):
        y = w
        for _ in range(20):
            y = (y @ w * 0.1).tanh()
        y = y.sum()
        wanted = cx.autograd.grad(y, [w], retain_graph=True)[0].tolist()
        start = threading.Barrier(3)
        threads = [threading.Thread(target=back, args=(y, start)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ended) == 3
        assert all(found == wanted or "retain_graph=True" in found for found in ended)
        ended.clear()
