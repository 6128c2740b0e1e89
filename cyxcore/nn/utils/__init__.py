"""What PyTorch keeps in torch.nn.utils: gradients kept small, parameters as one vector, padded sequences (rnn),
computed weights (parametrize, parametrizations).
"""

import importlib
import math
from collections.abc import Iterable
from typing import Any

from cyxcore import torchpaths
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import GradientError, ShapeError
from cyxcore.functional import concat, maximum, minimum, stack, total_norm
from cyxcore.nn.utils import rnn as rnn
from cyxcore.values import Value

__all__ = (
    "clip_grad_norm_ clip_grad_value_ clip_grads_with_norm_ get_total_norm parameters_to_vector rnn "
    "vector_to_parameters"
).split()


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Any:
    """Scale all gradients so that their norm, taken together, is at most max_norm. Returns the norm before.

    norm_type: p of the p-norm; infinity: the largest element. foreach: accepted and without effect. Raises
    GradientError for a norm that is not finite, if asked to.
    """
    given = [parameters] if isinstance(parameters, Tensor) else parameters
    held = [p for p in given if p.grad is not None]
    norm = get_total_norm([p.grad for p in held], norm_type, error_if_nonfinite)
    clip_grads_with_norm_(held, max_norm, norm)
    return norm


def get_total_norm(
    tensors: Iterable[Any] | Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Any:
    """The norm of all tensors taken together. Raises GradientError for one that is not finite, if asked to."""
    given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not given:
        return Tensor(0.0)
    with no_grad():
        norm = total_norm([g.square().sum() for g in given]) if norm_type == 2 else _norm(given, float(norm_type))
        if error_if_nonfinite and not norm.isfinite().item():
            raise GradientError(f"the norm of the gradients is {norm.item()}")
        return norm


def clip_grads_with_norm_(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, total_norm: Any, foreach: bool | None = None
) -> None:
    """Scale all gradients, whose norm is total_norm (a number or a tensor), so that it is at most max_norm."""
    with no_grad():
        norm = total_norm if isinstance(total_norm, Value) else Tensor(float(total_norm))
        scale = minimum(max_norm / (norm + 1e-6), 1.0)
        for p in [parameters] if isinstance(parameters, Tensor) else parameters:
            if p.grad is not None:
                p.grad = p.grad * scale.astype(p.grad.dtype)


def _norm(gradients: list[Any], p: float) -> Any:
    """The p-norm of all elements together."""
    if p == math.inf:
        return stack([g.abs().max() for g in gradients]).max()
    return stack([(g.abs() ** p).sum() for g in gradients]).sum() ** (1.0 / p)


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float, foreach: bool | None = None) -> None:
    """Keep each element of each gradient within -clip_value … clip_value."""
    bounds: dict[tuple[str, str], tuple[Any, Any]] = {}  # tensors that are made once
    with no_grad():
        for p in [parameters] if isinstance(parameters, Tensor) else parameters:
            if (g := p.grad) is not None:
                kind = g.dtype, g.device
                if kind not in bounds:
                    bounds[kind] = g._constant(-clip_value, g.dtype), g._constant(clip_value, g.dtype)
                low, high = bounds[kind]
                p.grad = maximum(minimum(g, high), low)


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
    return torchpaths.below("nn.utils")(name)
