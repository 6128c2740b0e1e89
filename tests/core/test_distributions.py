"""Distributions against torch.distributions: logarithms, entropies, divergences, their gradients; and what is drawn."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import CyxError, SpecError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the oracle, PyTorch, is not installed")

A = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
B = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
CHOSEN, ONES = np.array([0, 3, 1]), (A > 0).astype(np.float32)

SHARES = np.random.default_rng(3).uniform(0.05, 0.95, (3, 4)).astype(np.float32)
COUNTS = np.random.default_rng(4).integers(0, 6, (3, 4)).astype(np.float32)


def spread(x: Any) -> Any:
    """A positive definite matrix."""
    return x.T @ x + 0.5 * (x.T @ x).diagonal().diag()


# Of a library m and tensors a and b of it: a distribution, another of its kind, and a value.
KINDS: dict[str, Callable[[Any, Any, Any], tuple[Any, Any, Any]]] = {
    "Normal": lambda m, a, b: (m.Normal(a, b.exp()), m.Normal(b, a.exp()), A),
    "Normal of numbers": lambda m, a, b: (m.Normal(0.5, a.exp()), m.Normal(b, 2.0), A),
    "Bernoulli": lambda m, a, b: (m.Bernoulli(logits=a), m.Bernoulli(probs=b.sigmoid()), ONES),
    "Laplace": lambda m, a, b: (m.Laplace(a, b.exp()), m.Laplace(b, a.exp()), A),
    "Gumbel": lambda m, a, b: (m.Gumbel(a, b.exp()), m.Gumbel(b, a.exp()), A),
    "Cauchy": lambda m, a, b: (m.Cauchy(a, b.exp()), m.Cauchy(b, a.exp()), A),
    "HalfNormal": lambda m, a, b: (m.HalfNormal(b.exp()), m.HalfNormal(a.exp()), np.abs(A)),
    "HalfCauchy": lambda m, a, b: (m.HalfCauchy(b.exp()), None, np.abs(A)),
    "LogNormal": lambda m, a, b: (m.LogNormal(a, b.exp()), m.LogNormal(b, a.exp()), np.exp(A)),
    "Uniform": lambda m, a, b: (m.Uniform(a, a + b.exp()), m.Uniform(a - 1.0, a + b.exp() + 1.0), A + 0.01),
    "Exponential": lambda m, a, b: (m.Exponential(a.exp()), m.Exponential(b.exp()), np.exp(B)),
    "Gamma": lambda m, a, b: (m.Gamma(a.exp(), b.exp()), m.Gamma(b.exp(), a.exp()), np.exp(A)),
    "Chi2": lambda m, a, b: (m.Chi2(a.exp()), m.Chi2(b.exp()), np.exp(A)),
    "Beta": lambda m, a, b: (m.Beta(a.exp(), b.exp()), m.Beta(b.exp(), a.exp()), SHARES),
    "StudentT": lambda m, a, b: (m.StudentT(a.exp() + 1.0, b, 2.0), None, A),
    "Geometric": lambda m, a, b: (m.Geometric(a.sigmoid()), m.Geometric(logits=b), COUNTS),
    "Poisson": lambda m, a, b: (m.Poisson(a.exp()), m.Poisson(b.exp()), COUNTS),
    "Binomial": lambda m, a, b: (m.Binomial(9, logits=a), None, COUNTS),
    "NegativeBinomial": lambda m, a, b: (m.NegativeBinomial(b.exp(), logits=a), None, COUNTS),
    "OneHotCategorical": lambda m, a, b: (
        m.OneHotCategorical(logits=a), m.OneHotCategorical(logits=b), np.eye(4, dtype=np.float32)[CHOSEN]
    ),
    "Dirichlet": lambda m, a, b: (m.Dirichlet(a.exp()), m.Dirichlet(b.exp()), SHARES / SHARES.sum(-1, keepdims=True)),
    "Multinomial": lambda m, a, b: (m.Multinomial(int(COUNTS[0].sum()), logits=a[0]), None, COUNTS[0]),
    "MultivariateNormal": lambda m, a, b: (
        m.MultivariateNormal(a[:2], spread(a)), m.MultivariateNormal(b[0], scale_tril=(spread(b) * 0.5).tril()), B[:2]
    ),
    "MultivariateNormal by precision": lambda m, a, b: (
        m.MultivariateNormal(a[0], precision_matrix=spread(b)), None, A
    ),
    "Independent": lambda m, a, b: (
        m.Independent(m.Normal(a, b.exp()), 1), m.Independent(m.Normal(b, a.exp()), 1), A
    ),
    "MixtureSameFamily": lambda m, a, b: (
        m.MixtureSameFamily(m.Categorical(logits=a), m.Normal(b, 1.5)), None, A[:, 0]
    ),
    "Mixture of vectors": lambda m, a, b: (
        m.MixtureSameFamily(m.Categorical(logits=a[:, 0]), m.Independent(m.Normal(b, a.exp()), 1)), None, A[0]
    ),
    "logistic": lambda m, a, b: (
        m.TransformedDistribution(
            m.Uniform(a * 0.0, a * 0.0 + 1.0), [m.SigmoidTransform().inv, m.AffineTransform(loc=a, scale=b.exp())]
        ),
        None,
        SHARES,
    ),
    "composed": lambda m, a, b: (
        m.TransformedDistribution(
            m.Normal(a, b.exp()), m.ComposeTransform([m.AffineTransform(0.5, 2.0), m.TanhTransform()])
        ),
        None,
        SHARES,
    ),
    "tanh": lambda m, a, b: (m.TransformedDistribution(m.Normal(a, b.exp()), [m.TanhTransform()]), None, SHARES),
    "affine sigmoid": lambda m, a, b: (
        m.TransformedDistribution(m.Normal(a, b.exp()), [m.SigmoidTransform(), m.AffineTransform(1.0, -2.0)]),
        None,
        1.0 - 2.0 * SHARES,
    ),
    "exp of an event": lambda m, a, b: (
        m.TransformedDistribution(m.Independent(m.Normal(a, b.exp()), 1), m.ExpTransform()), None, SHARES
    ),
    "Categorical": lambda m, a, b: (m.Categorical(logits=a), m.Categorical(probs=b.exp()), CHOSEN),
}  # fmt: skip


# What PyTorch sums over all that can come up, and the mean of a choice, which it says is NaN.
LACKING = {"Binomial": {"entropy"}, "Multinomial": {"entropy"}, "Categorical": {"mean", "variance", "stddev"}}


def facts(m: Any, name: str) -> dict[str, Any]:
    """What a distribution of a library says, with the gradients of all of it."""
    a, b = m.tensor(A, requires_grad=True), m.tensor(B, requires_grad=True)
    one, other, value = KINDS[name](m.distributions, a, b)
    found = {"log_prob": one.log_prob(m.tensor(value))}
    for about in {"entropy", "mean", "variance", "stddev"} - LACKING.get(name, set()):
        try:
            known = getattr(one, about)
            found[about] = known() if callable(known) else known
        except (NotImplementedError, SpecError):
            found[about] = m.tensor(-1.0)  # there is no formula
    if other is not None:
        found["divergence"] = m.distributions.kl_divergence(one, other)
    known = [x for x in found.values() if x.requires_grad and np.isfinite(x.detach().numpy()).all()]
    sum((x**2).sum() for x in known).backward()
    found |= {name: x.grad for name, x in (("a", a), ("b", b)) if x.grad is not None}
    found["shapes"] = m.tensor([*one.sample((5, 2)).shape, *one.batch_shape, *one.event_shape])
    return {name: x.detach().numpy() for name, x in found.items()}


@pytest.mark.parametrize("name", KINDS)
def test_logarithms_entropies_and_divergences(name: str) -> None:
    ours, theirs = facts(cx, name), facts(torch, name)
    assert set(ours) == set(theirs)
    for about, value in theirs.items():
        np.testing.assert_allclose(ours[about], value, rtol=5e-4, atol=2e-5, err_msg=about)


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
        (lambda d: d.Gamma(1.0, 0.0), "Gamma: expected a rate above 0"),
        (lambda d: d.Binomial(1.5, probs=0.5), "a total_count 0, 1, 2"),
        (lambda d: d.Independent(d.Normal(0.0, 1.0), 1), r"expected 0\.\.0 axes"),
        (lambda d: d.MultivariateNormal(cx.zeros(2)), "expected one of covariance_matrix"),
        (lambda d: d.MultivariateNormal(cx.zeros(2), cx.ones(3, 3)), r"\(\.\.\., N, N\)"),
        (lambda d: d.MixtureSameFamily(d.Categorical(cx.ones(3)), d.Normal(cx.zeros(2), 1.0)), "over the last axis"),
        (lambda d: d.Poisson(3.0).rsample(), "Poisson has no rsample"),
        (lambda d: d.Binomial(3, probs=0.5).entropy(), "Binomial has no entropy"),
        (lambda d: d.TransformedDistribution(d.Normal(0.0, 1.0), [abs]), "expected transforms"),
        (lambda d: d.kl_divergence(d.Normal(0.0, 1.0), d.Uniform(0.0, 1.0)), "expected two of one of Normal"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(CyxError, match=message):
        make(cx.distributions)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("Cauchy", "HalfCauchy", "StudentT")])
def test_draws_have_the_mean_and_the_variance(name: str) -> None:
    cx.manual_seed(0)
    a, b = cx.tensor(A * 0.3), cx.tensor(B * 0.3)
    d = KINDS[name](cx.distributions, a, b)[0]
    drawn = d.sample((20_000,)).astype("float64").numpy()
    assert not d.sample().requires_grad and np.isfinite(d.log_prob(d.sample()).numpy()).all()
    try:
        mean, variance = d.mean.numpy(), d.variance.numpy()
    except SpecError:
        return
    close = 6 * np.sqrt(variance / 20_000) + 1e-6
    assert (np.abs(drawn.mean(0) - mean) < close).all()
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.35, atol=0.01)


def test_gradients_of_gamma_draws() -> None:
    """How a draw moves with its concentration is PyTorch's."""
    from cyxcore.distributions.continuous import _slope

    a = np.array([0.05, 0.3, 0.9, 1.0, 2.5, 8.0, 30.0, 49.0, 60.0, 300.0])
    quantiles = torch.distributions.Gamma(torch.tensor(a), 1.0).sample((50,))
    theirs = torch._standard_gamma_grad(torch.tensor(a).expand(50, 10), quantiles).numpy()
    ours = _slope(np.broadcast_to(a, (50, 10)), quantiles.numpy())
    np.testing.assert_allclose(ours, theirs, rtol=6e-3, atol=1e-6)
    np.testing.assert_allclose(ours[:, 1:8], theirs[:, 1:8], rtol=2e-3, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["Gamma", "Beta", "Dirichlet", "StudentT", "Chi2", "MultivariateNormal", "LogNormal", "tanh"]
)
def test_gradients_flow_through_draws(name: str) -> None:
    cx.manual_seed(0)
    a, b = cx.tensor(A, requires_grad=True), cx.tensor(B, requires_grad=True)
    d = KINDS[name](cx.distributions, a, b)[0]
    assert d.has_rsample
    (d.rsample((3,)) ** 2).sum().backward()
    assert a.grad is not None and np.isfinite(a.grad.numpy()).all() and (a.grad != 0).any().item()


def test_the_mean_of_rsample_moves_as_the_mean() -> None:
    cx.manual_seed(0)
    c = cx.tensor([0.5, 2.0, 7.0], requires_grad=True)
    cx.distributions.Gamma(c, 2.0).rsample((20_000,)).mean(0).sum().backward()
    assert c.grad is not None
    np.testing.assert_allclose(c.grad.numpy(), [0.5, 0.5, 0.5], atol=0.03)


def test_quantiles() -> None:
    p = cx.tensor([0.01, 0.3, 0.5, 0.99])
    for d in (cx.distributions.Normal(1.0, 2.0), cx.distributions.Uniform(-1.0, 3.0)):
        np.testing.assert_allclose(d.cdf(d.icdf(p)).numpy(), p.numpy(), rtol=1e-5)
    for name, own in (("Laplace", (0.5, 2.0)), ("Exponential", (2.0,))):
        x = np.array([0.1, 0.5, 3.0], np.float32)
        found = getattr(cx.distributions, name)(*own).cdf(cx.tensor(x)).numpy()
        wanted = getattr(torch.distributions, name)(*own).cdf(torch.tensor(x)).numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "outside"),
    [
        (lambda m, a: m.Exponential(a), -1.0),
        (lambda m, a: m.Gamma(a, 1.0), -1.0),
        (lambda m, a: m.Chi2(a), -0.5),
        (lambda m, a: m.Beta(a, 3.0), 2.0),
        (lambda m, a: m.Beta(a, 3.0), -1.0),
        (lambda m, a: m.LogNormal(a, 1.0), -1.0),
        (lambda m, a: m.HalfNormal(a), -1.0),
        (lambda m, a: m.Uniform(0.0, a), 5.0),
    ],
)
def test_a_value_that_is_never_drawn_has_no_probability_and_no_gradient(make: Any, outside: float) -> None:
    a = cx.tensor(2.0, requires_grad=True)
    value = cx.tensor([outside, 0.5])
    found = make(cx.distributions, a).log_prob(value)
    found[1:].sum().backward()
    theirs = torch.tensor(2.0, requires_grad=True)
    expected = make(torch.distributions, theirs).log_prob(torch.tensor(0.5))
    expected.backward()
    assert found.tolist()[0] == -np.inf and found.tolist()[1] == pytest.approx(expected.item(), rel=1e-5)
    assert a.grad.item() == pytest.approx(theirs.grad.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["Categorical", "OneHotCategorical", "Bernoulli"])
def test_what_the_other_holds_for_impossible_is_infinitely_far(kind: str) -> None:
    for p, q in (([0.2, 0.8], [0.0, 1.0]), ([0.0, 1.0], [0.2, 0.8]), ([0.0, 1.0], [0.0, 1.0])):
        ours, theirs = (
            m.distributions.kl_divergence(*[getattr(m.distributions, kind)(m.tensor(x)) for x in (p, q)])
            for m in (cx, torch)
        )
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_what_is_no_number_is_refused_before_it_is_drawn_from() -> None:
    nan = cx.tensor([float("nan"), 1.0])
    for make in (
        lambda: cx.distributions.Categorical(logits=nan),
        lambda: cx.distributions.Categorical(logits=cx.tensor([-float("inf")] * 2)),
        lambda: cx.distributions.Bernoulli(logits=nan),
        lambda: cx.distributions.Normal(nan, 1.0),
    ):
        with pytest.raises(CyxError, match="expected (logits|a loc)"):
            make()
    masked = cx.distributions.Categorical(logits=cx.tensor([0.0, -float("inf")]))
    assert masked.sample((50,)).tolist() == [0] * 50


def test_a_choice_that_there_is_not_is_refused() -> None:
    chosen = cx.distributions.Categorical(cx.tensor([0.2, 0.8]))
    for given in (-1, 2):
        with pytest.raises(CyxError, match=rf"Categorical.log_prob: expected 0..1, got {given}"):
            chosen.log_prob(cx.tensor([0, given]))


def test_whole_numbers_are_parameters_like_others() -> None:
    cx.manual_seed(1)
    drawn = cx.distributions.Exponential(cx.tensor([2, 3])).sample((50,))
    assert drawn.dtype == "float32" and drawn.unique().size == 100
    assert cx.distributions.Dirichlet(cx.tensor([2, 3])).sample().dtype == "float32"
    with pytest.raises(SpecError, match="expected low below high everywhere"):
        cx.distributions.Uniform(cx.tensor([2]), cx.tensor([1]))


def test_shares_of_very_small_concentrations_are_numbers() -> None:
    cx.manual_seed(2)
    for shares in (cx.distributions.Beta(0.01, 0.01), cx.distributions.Dirichlet(cx.full((3,), 0.01))):
        assert np.isfinite(shares.sample((1000,)).numpy()).all()
