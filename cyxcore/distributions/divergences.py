"""Kullback-Leibler divergences of two distributions of one kind."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cyxcore import linalg, special
from cyxcore.distributions.base import Distribution, Independent
from cyxcore.distributions.continuous import (
    Beta,
    Cauchy,
    Chi2,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Laplace,
    Normal,
    Uniform,
)
from cyxcore.distributions.discrete import Bernoulli, Categorical, Geometric, OneHotCategorical, Poisson
from cyxcore.distributions.joint import Dirichlet, MultivariateNormal
from cyxcore.distributions.transformed import LogNormal
from cyxcore.errors import ShapeError, SpecError
from cyxcore.functional import softplus, where


def _normals(p: Any, q: Any) -> Any:
    ratio = (p.scale / q.scale).square()
    return (ratio + ((p.loc - q.loc) / q.scale).square() - 1.0 - ratio.log()) * 0.5


def _bernoullis(p: Bernoulli, q: Bernoulli) -> Any:
    rows = p.probs * (p.logits - q.logits) + softplus(q.logits) - softplus(p.logits)
    impossible = ((q.probs == 0.0) & (p.probs > 0.0)) | ((q.probs == 1.0) & (p.probs < 1.0))
    return where(impossible, float("inf"), rows)


def _gammas(p: Gamma, q: Gamma) -> Any:
    a, b = p.concentration, q.concentration
    shape = (a - b) * special.digamma(a) - special.gammaln(a) + special.gammaln(b)
    return shape + b * (p.rate / q.rate).log() + a * (q.rate / p.rate - 1.0)


def _betas(p: Beta, q: Beta) -> Any:
    result = q.log_integral() - p.log_integral()
    for own, other in ((p.concentration1, q.concentration1), (p.concentration0, q.concentration0)):
        result = result + (own - other) * (special.digamma(own) - special.digamma(p.total))
    return result


def _dirichlets(p: Dirichlet, q: Dirichlet) -> Any:
    a, b = p.concentration, q.concentration
    total = a.sum(-1, keepdims=True)
    shape = special.gammaln(total.squeeze(-1)) - special.gammaln(b.sum(-1))
    inner = (a - b) * (special.digamma(a) - special.digamma(total)) - special.gammaln(a) + special.gammaln(b)
    return shape + inner.sum(-1)


def _laplaces(p: Laplace, q: Laplace) -> Any:
    apart = (p.loc - q.loc).abs()
    return (q.scale / p.scale).log() + (p.scale * (-apart / p.scale).exp() + apart) / q.scale - 1.0


def _uniforms(p: Uniform, q: Uniform) -> Any:
    inside = (q.low <= p.low) & (p.high <= q.high)
    return where(inside, ((q.high - q.low) / (p.high - p.low)).log(), float("inf"))


def _multivariate(p: MultivariateNormal, q: MultivariateNormal) -> Any:
    solved = linalg.solve(q.scale_tril, p.scale_tril).square().sum((-2, -1))
    away = linalg.solve(q.scale_tril, (q.loc - p.loc).expand_dims(-1)).squeeze(-1).square().sum(-1)
    volume = (linalg.diagonal(q.scale_tril).log() - linalg.diagonal(p.scale_tril).log()).sum(-1)
    return volume + (solved + away - float(p.event_shape[0])) * 0.5


def _independents(p: Independent, q: Independent) -> Any:
    if p.count != q.count:
        raise ShapeError(f"kl_divergence: expected as many axes in both events, got {p.count} and {q.count}")
    return p.summed(kl_divergence(p.base_dist, q.base_dist))


def _choices(p: Categorical, q: Categorical) -> Any:
    rows = where((q.probs == 0.0) & (p.probs > 0.0), float("inf"), p.probs * (p.logits - q.logits))
    return rows.sum(-1)


def _cauchys(p: Cauchy, q: Cauchy) -> Any:
    """Chyzak and Nielsen 2019, arXiv 1905.10965"""
    return (((p.scale + q.scale).square() + (p.loc - q.loc).square()) / (p.scale * q.scale * 4.0)).log()


def _gumbels(p: Gumbel, q: Gumbel) -> Any:
    """Gil 2011, On Rényi Divergence Measures for Continuous Alphabet Sources, table 2"""
    ratio, apart, euler = p.scale / q.scale, (p.loc - q.loc) / q.scale, float(np.euler_gamma)
    return apart - ratio.log() + euler * (ratio - 1.0) + (special.gammaln(ratio + 1.0) - apart).exp() - 1.0


_DIVERGENCES: dict[type[Distribution], Callable[..., Any]] = {
    Normal: _normals,
    LogNormal: _normals,
    Bernoulli: _bernoullis,
    Categorical: _choices,
    OneHotCategorical: _choices,
    Gamma: _gammas,
    Chi2: _gammas,
    Cauchy: _cauchys,
    Gumbel: _gumbels,
    HalfNormal: lambda p, q: _normals(p.base_dist, q.base_dist),
    Beta: _betas,
    Dirichlet: _dirichlets,
    Laplace: _laplaces,
    Uniform: _uniforms,
    Exponential: lambda p, q: (p.rate / q.rate).log() + q.rate / p.rate - 1.0,
    Poisson: lambda p, q: special.xlogy(p.rate, p.rate / q.rate) - p.rate + q.rate,
    Geometric: lambda p, q: -p.entropy() - special.log1p(-q.probs) / p.probs - q.logits,
    MultivariateNormal: _multivariate,
    Independent: _independents,
}


def kl_divergence(p: Distribution, q: Distribution) -> Any:
    """The Kullback-Leibler divergence of q from p, both of one kind. Raises SpecError for others."""
    known = _DIVERGENCES.get(type(p))
    if known is None or type(q) is not type(p):
        kinds = ", ".join(kind.__name__ for kind in _DIVERGENCES)
        raise SpecError(f"kl_divergence: expected two of one of {kinds}, got {type(p).__name__} and {type(q).__name__}")
    return known(p, q)
