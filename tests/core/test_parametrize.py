"""Weights computed from other parameters: weight norm, spectral norm and one's own, against PyTorch's."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import nn
from cyxcore.errors import SpecError
from cyxcore.nn.utils import parametrizations, parametrize

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

RNG = np.random.default_rng(0)


def in_both(make: Any, x: np.ndarray, steps: int = 3) -> None:
    """Some steps of SGD on a module of each library, from the same state: same keys, outputs and state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = make(torch.nn, torch.nn.utils.parametrizations)
    ours = make(nn, parametrizations)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for m, model in ((cx, ours), (torch, theirs)):
        optimizer = m.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            loss = (model(m.tensor(x)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], value.numpy(), rtol=2e-4, atol=2e-6, err_msg=name)
    ours.eval()
    theirs.eval()
    found, wanted = ours(cx.tensor(x)).detach().numpy(), theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-5)


ROWS, IMAGES = RNG.normal(size=(5, 4)).astype(np.float32), RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("dim", [0, 1, None, -1])
def test_weight_norm(dim: int | None) -> None:
    in_both(lambda m, p: p.weight_norm(m.Linear(4, 3), dim=dim), ROWS)


def test_weight_norm_of_a_convolution() -> None:
    in_both(lambda m, p: p.weight_norm(m.Conv2d(3, 4, 3)), IMAGES)


@pytest.mark.parametrize("iterations", [1, 3])
def test_spectral_norm(iterations: int) -> None:
    in_both(lambda m, p: p.spectral_norm(m.Linear(4, 3), n_power_iterations=iterations), ROWS)
    in_both(lambda m, p: p.spectral_norm(m.Conv2d(3, 4, 3), n_power_iterations=iterations), IMAGES)
    in_both(lambda m, p: p.spectral_norm(m.ConvTranspose2d(3, 4, 3), n_power_iterations=iterations), IMAGES)


def test_spectral_norm_bounds_the_largest_singular_value() -> None:
    cx.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(20, 30))
    for _ in range(20):
        layer(cx.randn(2, 20))
    assert cx.linalg.svdvals(layer.eval().weight.detach())[0].item() == pytest.approx(1.0, abs=1e-3)


def test_a_compiled_step_gives_the_bits_of_the_plain_one() -> None:
    def run(compiled: bool) -> dict[str, Any]:
        cx.manual_seed(0)
        model = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 1))
        )
        optimizer = cx.optim.Adam(model.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        made_ready = cx.compile(step) if compiled else step
        for _ in range(3):
            made_ready(cx.tensor(ROWS))
        return {name: value.tolist() for name, value in model.state_dict().items()}

    assert run(compiled=True) == run(compiled=False)


def test_a_traced_model_has_the_weight_of_eval() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Tanh())
    graph, weights = cx.trace(model, (4,))
    found = cx.Model(graph, weights).predict(ROWS)
    np.testing.assert_allclose(found, model.eval()(cx.tensor(ROWS)).detach().numpy(), rtol=1e-6)


class Symmetric(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.triu() + x.triu(1).mT

    def right_inverse(self, x: Any) -> Any:
        return x.triu()


class Doubled(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2.0


def test_parametrizations_of_ones_own() -> None:
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().triu()
    parametrize.register_parametrization(layer, "weight", Symmetric())
    assert parametrize.is_parametrized(layer) and parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
    assert (layer.weight == layer.weight.mT).all().item() and (layer.weight.triu() == before).all().item()
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert (layer.weight.triu() == before * 2.0).all().item()
    assert sorted(layer.state_dict()) == ["bias", "parametrizations.weight.original"]
    layer(cx.ones(1, 3)).sum().backward()
    assert layer.parametrizations.weight.original.grad is not None
    other = copy.deepcopy(layer)
    assert other.weight.tolist() == layer.weight.tolist() and type(other).__name__ == "ParametrizedLinear"
    kept = layer.weight.tolist()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear and layer.weight.tolist() == kept and isinstance(layer.weight, nn.Parameter)
    parametrize.remove_parametrizations(other, "weight", leave_parametrized=False)
    assert other.weight.tolist() == before.tolist()


def test_old_names() -> None:
    layer = nn.utils.remove_weight_norm(nn.utils.weight_norm(nn.Linear(3, 2)))
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    layer = nn.utils.remove_spectral_norm(nn.utils.spectral_norm(nn.Linear(3, 2)))
    assert sorted(layer.state_dict()) == ["bias", "weight"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: parametrize.register_parametrization(nn.ReLU(), "weight", Doubled()),
            "ReLU has no parameter 'weight'",
        ),
        (lambda: parametrize.remove_parametrizations(nn.Linear(1, 1), "weight"), "'weight' is not parametrized"),
        (lambda: setattr(parametrizations.spectral_norm(nn.Linear(2, 2)), "weight", cx.zeros(2, 2)), "is computed"),
        (lambda: parametrizations.spectral_norm(nn.Linear(2, 2), n_power_iterations=0), "n_power_iterations"),
        (lambda: parametrizations.weight_norm(nn.Linear(2, 2), dim=4), "axis"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert isinstance(caught.value, (SpecError, cx.errors.CyxError))


def test_a_frozen_weight_stays_frozen() -> None:
    for make, remove in (
        (parametrizations.weight_norm, "weight"),
        (parametrizations.spectral_norm, "weight"),
    ):
        layer = nn.Linear(3, 2)
        layer.weight.requires_grad_(False)
        make(layer)
        assert [p.requires_grad for p in layer.parametrizations.parameters()] == [False] * len(
            list(layer.parametrizations.parameters())
        )
        assert not nn.utils.parametrize.remove_parametrizations(layer, remove).weight.requires_grad
