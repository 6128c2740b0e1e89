"""Distributions to draw from and to take logarithms of, with torch.distributions' names: policies, latent variables.

Parameters are tensors that broadcast, or numbers. sample(shape) gives (*shape, *batch, *event) without a gradient,
rsample one with; log_prob and entropy have gradients. Draws are those of the generator cx.manual_seed sets.
"""

from cyxcore.distributions.base import Distribution, Independent
from cyxcore.distributions.continuous import (
    Beta,
    Cauchy,
    Chi2,
    Exponential,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Laplace,
    Normal,
    StudentT,
    Uniform,
)
from cyxcore.distributions.discrete import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)
from cyxcore.distributions.divergences import kl_divergence
from cyxcore.distributions.joint import Dirichlet, MixtureSameFamily, Multinomial, MultivariateNormal
from cyxcore.distributions.transformed import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    LogNormal,
    SigmoidTransform,
    TanhTransform,
    Transform,
    TransformedDistribution,
)
from cyxcore.torchwords import accept

__all__ = [
    "AffineTransform",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "ComposeTransform",
    "Dirichlet",
    "Distribution",
    "ExpTransform",
    "Exponential",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfCauchy",
    "HalfNormal",
    "Independent",
    "Laplace",
    "LogNormal",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "Poisson",
    "SigmoidTransform",
    "StudentT",
    "TanhTransform",
    "Transform",
    "TransformedDistribution",
    "Uniform",
    "kl_divergence",
]

_KINDS = [each for each in map(globals().get, __all__) if isinstance(each, type)]
accept([each for each in _KINDS if issubclass(each, Distribution)], {}, "validate_args")
