"""Weight norm and spectral norm, as torch.nn.utils.parametrizations names them."""

from typing import Any

from cyxcore.creation import randn
from cyxcore.eager import no_grad
from cyxcore.errors import AxisError, SpecError
from cyxcore.functional import normalize
from cyxcore.nn.module import Module
from cyxcore.nn.utils.parametrize import register_parametrization
from cyxcore.values import by_mode

__all__ = ["spectral_norm", "weight_norm"]


class _WeightNorm(Module):
    """g * v / |v|, with a norm for each place of an axis `dim`, or one of all (Salimans and Kingma 2016)."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim = None if dim == -1 else dim

    def _norm(self, x: Any) -> Any:
        if self.dim is None:
            return x.square().sum().sqrt()
        if not -x.ndim <= self.dim < x.ndim:
            raise AxisError(f"weight_norm: expected an axis of {x.shape}, got dim {self.dim}")
        others = tuple(axis for axis in range(x.ndim) if axis != self.dim % x.ndim)
        return x.square().sum(others, keepdims=True).sqrt()

    def forward(self, g: Any, v: Any) -> Any:
        return v * (g / self._norm(v))

    def right_inverse(self, weight: Any) -> tuple[Any, Any]:
        return self._norm(weight), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Length and direction of a weight are trained apart: original0 (g) and original1 (v) in the state dict.

    dim: the axis whose places have a length each; None or, as in PyTorch, -1: one length of all. Returns the module.
    """
    return register_parametrization(module, name, _WeightNorm(dim))


class _SpectralNorm(Module):
    """A weight over its largest singular value, which each call in training follows (Miyato et al. 2018)."""

    def __init__(self, weight: Any, n_power_iterations: int, dim: int, eps: float) -> None:
        super().__init__()
        self.n_power_iterations, self.dim, self.eps = n_power_iterations, dim, eps
        rows, columns = self._matrix(weight).shape
        with no_grad():
            self.register_buffer("_u", self._unit(randn(rows)))
            self.register_buffer("_v", self._unit(randn(columns)))
            self._follow(self._matrix(weight.detach()), 15)

    def _unit(self, x: Any) -> Any:
        return normalize(x, dim=0, eps=self.eps)

    def _matrix(self, weight: Any) -> Any:
        """(places of axis dim, everything else)"""
        if weight.ndim < 2:
            return weight.reshape(-1, 1)
        place = weight._axis(self.dim)
        order = (place, *(axis for axis in range(weight.ndim) if axis != place))
        return weight.permute(*order).reshape(weight.shape[place], -1)

    def _follow(self, matrix: Any, iterations: int) -> tuple[Any, Any]:
        """(u, v) of the largest singular value, nearer by some steps of the power method; both are kept."""
        u, v = self._u._following(), self._v._following()
        for _ in range(iterations):
            u = self._unit(matrix @ v)
            v = self._unit(matrix.mT @ u)
        self._u._assign(u)
        self._v._assign(v)
        return u, v

    def forward(self, weight: Any) -> Any:
        matrix = self._matrix(weight)

        def scaled(u: Any, v: Any) -> Any:
            return weight / (u.detach() * (matrix @ v.detach())).sum()

        def in_training() -> Any:
            with no_grad():
                found = self._follow(matrix.detach(), self.n_power_iterations)
            return scaled(*found)

        return by_mode(self.training, in_training, lambda: scaled(self._u.copy(), self._v.copy()))


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> Module:
    """The weight is divided by its largest singular value, so the layer stretches nothing by more than 1.

    n_power_iterations: steps towards that value in each call in training. dim: the axis of the outputs; None: 1 for
    transposed convolutions, else 0. Returns the module. Raises SpecError for less than one step.
    """
    if n_power_iterations < 1:
        raise SpecError(f"spectral_norm: expected n_power_iterations of at least 1, got {n_power_iterations}")
    own = (1 if "ConvTranspose" in type(module).__name__ else 0) if dim is None else dim
    return register_parametrization(module, name, _SpectralNorm(getattr(module, name), n_power_iterations, own, eps))
