"""Hooks of modules against PyTorch's, and where they cannot be."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import GradientError, GraphError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def pair() -> tuple[nn.Module, Any]:
    cx.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    theirs.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in ours.state_dict().items()})
    return ours, theirs


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # where the input needs no gradient
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("needed", [False, True])
def test_a_backward_hook_sees_and_changes_what_pytorchs_does(place: int, changing: bool, needed: bool) -> None:
    seen: list[list[Any]] = []
    for model, made in zip(pair(), (cx.tensor, torch.tensor), strict=True):
        found: list[Any] = []

        def hook(module: Any, of_inputs: Any, of_outputs: Any, found: list[Any] = found) -> Any:
            found += [None if g is None else np.array(g.detach().numpy()) for g in (*of_inputs, *of_outputs)]
            return tuple(None if g is None else g * 3.0 for g in of_inputs) if changing else None

        model[place].register_full_backward_hook(hook)
        x = made(X, requires_grad=needed)
        (model(x) ** 2).sum().backward()
        found += [np.array(p.grad.numpy()) for p in model.parameters()]
        found += [np.array(x.grad.numpy())] if needed else []
        seen.append(found)
    for one, other in zip(*seen, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_forward_hooks_may_change_what_goes_in_and_out() -> None:
    outputs = []
    for model, made in zip(pair(), (cx.tensor, torch.tensor), strict=True):
        model[1].register_forward_pre_hook(lambda module, inputs: inputs[0] * 2.0)
        handle = model[1].register_forward_hook(lambda module, inputs, output: output + inputs[0])
        first = model(made(X)).detach().numpy()
        handle.remove()
        handle.remove()
        outputs.append((first, model(made(X)).detach().numpy()))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_in_a_compiled_function_forward_hooks_are_part_of_it_and_backward_hooks_are_refused() -> None:
    model, _ = pair()
    model[1].register_forward_hook(lambda module, inputs, output: output * 2.0)
    expected = model(cx.tensor(X)).numpy()
    np.testing.assert_array_equal(cx.compile(model)(cx.tensor(X)).numpy(), expected)
    model[1].register_full_backward_hook(lambda *given: None)
    with pytest.raises(GraphError, match="Tanh: a backward hook runs on tensors"):
        cx.compile(model)(cx.tensor(X))


def test_a_backward_hook_says_what_it_cannot_see() -> None:
    lstm = nn.LSTM(4, 5)
    lstm.register_full_backward_hook(lambda *given: None)
    with pytest.raises(GradientError, match="LSTM: a backward hook needs a module that returns one tensor, got tuple"):
        lstm(cx.tensor(X[None], requires_grad=True))
    bilinear = nn.Module()
    bilinear.forward = lambda a, b: a * b  # type: ignore[method-assign]
    bilinear.register_full_backward_hook(lambda *given: None)
    with pytest.raises(GradientError, match="one input that requires a gradient, this call has 2"):
        bilinear(cx.tensor(X, requires_grad=True), cx.tensor(X, requires_grad=True))


def test_a_handle_takes_its_own_hook_off_once_where_the_hook_is_there_twice() -> None:
    calls: list[str] = []

    def same(*_: Any) -> None:
        calls.append("same")

    module = nn.Linear(2, 2)
    first = module.register_forward_hook(same)
    module.register_forward_hook(lambda *_: calls.append("other"))
    last = module.register_forward_hook(same)
    last.remove()
    last.remove()
    module(cx.zeros(1, 2))
    assert calls == ["same", "other"]
    first.remove()
    module(cx.zeros(1, 2))
    assert calls == ["same", "other", "other"]


def test_a_tensors_hook_is_taken_off_after_the_tensor_was_written_in_place() -> None:
    x = cx.tensor(X, requires_grad=True) * 1.0
    calls: list[Any] = []
    remove = x.register_hook(calls.append)
    x += 1.0
    remove()
    remove()
    x.sum().backward()
    assert calls == []


@pytest.mark.parametrize("assigned", [False, True], ids=["the short way", "the general way"])
def test_what_a_hook_assigns_to_on_the_way_back_is_an_error(assigned: bool) -> None:
    for _ in range(4):
        x = cx.tensor([1.0, 2.0], requires_grad=True)
        y = x.exp()
        z = y * 2.0
        if assigned:
            y[0] = 1.0
            z = y * 2.0
        w = z * 3.0

        def assign(g: cx.Tensor, z: cx.Tensor = z) -> None:
            z[0] = 5.0

        z.register_hook(assign)
        with pytest.raises(GradientError, match=r"shape \(2,\) was assigned to on the way back"):
            w.sum().backward()


def test_a_hook_of_a_copy_is_not_one_of_the_original() -> None:
    x, seen = cx.ones(2, requires_grad=True), []
    x.register_hook(lambda g: seen.append("both"))
    copied = copy.deepcopy(x)
    copied.register_hook(lambda g: seen.append("copy"))
    (x * 2.0).sum().backward()
    assert seen == ["both"]
    (copied * 2.0).sum().backward()
    assert seen == ["both", "both", "copy"]
