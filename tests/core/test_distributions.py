"""Distributions against torch.distributions: logarithms, entropies, divergences, their gradients; and what is drawn."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

A = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
B = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
CHOSEN, ONES = np.array([0, 3, 1]), (A > 0).astype(np.float32)

# Of a library m and tensors a and b of it: a distribution, another of its kind, and a value.
KINDS: dict[str, Callable[[Any, Any, Any], tuple[Any, Any, Any]]] = {
    "Normal": lambda m, a, b: (m.Normal(a, b.exp()), m.Normal(b, a.exp()), A),
    "Normal of numbers": lambda m, a, b: (m.Normal(0.5, a.exp()), m.Normal(b, 2.0), A),
    "Bernoulli": lambda m, a, b: (m.Bernoulli(logits=a), m.Bernoulli(probs=b.sigmoid()), ONES),
    "Categorical": lambda m, a, b: (m.Categorical(logits=a), m.Categorical(probs=b.exp()), CHOSEN),
}


@pytest.mark.parametrize("name", KINDS)
def test_logarithms_entropies_and_divergences(name: str) -> None:
    results = []
    for m in (cx, torch):
        a, b = m.tensor(A, requires_grad=True), m.tensor(B, requires_grad=True)
        one, other, value = KINDS[name](m.distributions, a, b)
        found = [one.log_prob(m.tensor(value)), one.entropy(), m.distributions.kl_divergence(one, other)]
        (found[0].sum() + (found[1] ** 2).sum() + found[2].sum() * 3).backward()
        results.append([x.detach().numpy() for x in (*found, a.grad, b.grad)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


def test_what_is_drawn() -> None:
    cx.manual_seed(0)
    d = cx.distributions
    p = cx.tensor([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    places = d.Categorical(p).sample((4000,))
    assert places.shape == (4000, 2) and places.dtype == "int64" and places[:, 1].max().item() == 0
    shares = cx.bincount(places[:, 0], minlength=3).numpy() / 4000
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.03)
    loc = cx.tensor([1.0, -2.0], requires_grad=True)
    drawn = d.Normal(loc, cx.tensor([0.5, 1.0])).rsample((3000,))
    np.testing.assert_allclose(drawn.detach().mean(0).numpy(), [1.0, -2.0], atol=0.08)
    drawn.sum().backward()
    assert loc.grad is not None and loc.grad.tolist() == [3000.0, 3000.0]
    assert not d.Normal(loc, 1.0).sample().requires_grad
    assert set(d.Bernoulli(cx.tensor([0.5])).sample((50,)).reshape(-1).tolist()) == {0.0, 1.0}
    u = d.Uniform(2.0, 3.0)
    assert 2.0 <= u.sample((100,)).min().item() and u.log_prob(cx.tensor([2.5, 3.5])).tolist() == [0.0, float("-inf")]
    assert d.Normal(0.0, 1.0).cdf(cx.tensor(0.0)).item() == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d.Normal(0.0, 0.0), "expected a scale above 0"),
        (lambda d: d.Uniform(1.0, 1.0), "expected low below high"),
        (lambda d: d.Bernoulli(), "expected one of probs and logits"),
        (lambda d: d.Bernoulli(probs=1.5), r"probabilities of 0\.\.1"),
        (lambda d: d.Categorical(probs=cx.tensor([0.0, 0.0])), "some above 0"),
        (lambda d: d.Categorical(logits=cx.tensor(1.0)), r"expected \(\.\.\., N\)"),
        (lambda d: d.Categorical(logits=cx.ones(3)).rsample(), "has no rsample"),
        (lambda d: d.kl_divergence(d.Normal(0.0, 1.0), d.Uniform(0.0, 1.0)), "expected two of one of Normal"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(CyxError, match=message):
        make(cx.distributions)
