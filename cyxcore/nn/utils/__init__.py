"""What PyTorch keeps in torch.nn.utils: gradients kept small, parameters as one vector, padded sequences (rnn),
computed weights (parametrize, parametrizations).
"""

import importlib
from collections.abc import Iterable
from typing import Any

from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import ShapeError
from cyxcore.functional import clip_scale, concat, maximum, minimum, total_norm
from cyxcore.nn.utils import rnn as rnn

__all__ = ["clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "rnn", "vector_to_parameters"]


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Any:
    """Scale all gradients so that their 2-norm, taken together, is at most max_norm. Returns the norm before."""
    given = [parameters] if isinstance(parameters, Tensor) else parameters
    held = [p for p in given if p.grad is not None]
    gradients: list[Any] = [p.grad for p in held]
    if not gradients:
        return 0.0
    with no_grad():
        squares = [g.square().sum() for g in gradients]
        scale = clip_scale(squares, max_norm)
        for p, gradient in zip(held, gradients, strict=True):
            p.grad = gradient * scale
        return total_norm(squares)


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Keep each element of each gradient within -clip_value … clip_value."""
    with no_grad():
        for p in [parameters] if isinstance(parameters, Tensor) else parameters:
            if p.grad is not None:
                p.grad = maximum(minimum(p.grad, clip_value), -clip_value)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Any:
    """All of them as one vector."""
    return concat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vector: Any, parameters: Iterable[Tensor]) -> None:
    """A vector's numbers into the parameters, in order. Raises ShapeError where there are not as many."""
    held = list(parameters)
    wanted = sum(p.size for p in held)
    if vector.shape != (wanted,):
        raise ShapeError(f"vector_to_parameters: expected a vector of {wanted} numbers, got {vector.shape}")
    start = 0
    with no_grad():
        for p in held:
            p[...] = vector[start : start + p.size].reshape(*p.shape)
            start += p.size


def __getattr__(name: str) -> Any:
    """Computed weights stand on modules, which stand on this: they are loaded when they are asked for."""
    home = importlib.import_module
    if name in ("parametrize", "parametrizations"):
        return home(f"cyxcore.nn.utils.{name}")
    if name in ("weight_norm", "spectral_norm"):
        return getattr(home("cyxcore.nn.utils.parametrizations"), name)
    if name in ("remove_weight_norm", "remove_spectral_norm"):
        remove = home("cyxcore.nn.utils.parametrize").remove_parametrizations
        return lambda module, name="weight": remove(module, name)
    raise AttributeError(f"cyxcore.nn.utils has no {name!r}")
