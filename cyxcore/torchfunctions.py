"""PyTorch's functions that make tensors, beside NumPy's in cx.random and the standard's: randint, multinomial, ….

The numbers are those of the generator cx.manual_seed sets.
"""

import importlib
from typing import Any

import numpy as np

from cyxcore import creation, random
from cyxcore.dtype import DEFAULTS
from cyxcore.eager import Tensor, enable_grad, generator_state, no_grad
from cyxcore.errors import SpecError
from cyxcore.functional.basic import stack
from cyxcore.held import is_recording

__all__ = (  # also in cyxcore/__init__.py
    "as_tensor bernoulli get_default_dtype get_num_threads get_rng_state inference_mode initial_seed "
    "is_grad_enabled multinomial normal poisson rand_like randint randint_like randn_like randperm set_grad_enabled "
    "set_num_threads set_rng_state tril_indices triu_indices"
).split()


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of data, sharing its memory where that is possible: cx.asarray."""
    return creation.asarray(data, dtype=dtype, device=device)


def _of(generator: Any) -> Any:
    """What draws: a generator, or the functions of the one that manual_seed sets."""
    if generator is not None and not isinstance(generator, random.Generator):
        raise SpecError(f"generator: expected a cx.Generator, got {type(generator).__name__}")
    return random if generator is None else generator


def randint(
    low: int, high: Any = None, size: Any = None, *, dtype: Any = "int64", device: Any = None, generator: Any = None
) -> Tensor:
    """Integers low <= x < high of shape `size`; randint(high, size) begins at 0."""
    if size is None:
        low, high, size = 0, low, high
    return _on(_of(generator).integers(low, high, size, dtype=dtype), device)


def randperm(n: int, *, dtype: Any = "int64", device: Any = None, generator: Any = None) -> Tensor:
    """The numbers 0 … n-1 in a random order."""
    return _on(_of(generator).permutation(n).astype(dtype), device)


def _on(x: Tensor, device: Any) -> Tensor:
    return x if device is None else x.to(device)


def rand_like(x: Tensor, *, dtype: Any = None, device: Any = None, generator: Any = None) -> Tensor:
    """Numbers 0 <= u < 1 of x's shape, dtype and device."""
    return _of(generator).uniform(0.0, 1.0, x.shape, dtype=dtype or x.dtype).to(device or x.device)


def randn_like(x: Tensor, *, dtype: Any = None, device: Any = None, generator: Any = None) -> Tensor:
    """Standard normal numbers of x's shape, dtype and device."""
    return _of(generator).normal(0.0, 1.0, x.shape, dtype=dtype or x.dtype).to(device or x.device)


def randint_like(x: Tensor, low: int, high: int | None = None, *, generator: Any = None) -> Tensor:
    """Integers low <= x < high (0 <= x < low) of x's shape, dtype and device."""
    first, last = (0, low) if high is None else (low, high)
    return _of(generator).integers(first, last, x.shape).astype(x.dtype).to(x.device)


def normal(mean: Any = 0.0, std: Any = 1.0, size: Any = None, *, generator: Any = None) -> Tensor:
    """Normal numbers; mean and std may be tensors."""
    return _of(generator).normal(mean, std, size)


def bernoulli(p: Tensor, *, generator: Any = None) -> Tensor:
    """1 with the probability each element of p names, else 0; of p's dtype."""
    return _of(generator).bernoulli(p).astype(p.dtype)


def multinomial(weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None) -> Tensor:
    """Places 0 … N-1 drawn by weights (N,) or (rows, N), which need not add up to 1. Returns (num_samples,) or rows.

    Raises SpecError for negative weights, and where without replacement there are not as many above 0.
    """
    if num_samples < 0:
        raise SpecError(f"multinomial: expected a count of at least 0, got {num_samples}")
    rows = np.atleast_2d(weights.numpy().astype(np.float64))
    if weights.ndim not in (1, 2) or not np.isfinite(rows).all() or (rows < 0).any() or (rows.sum(1) <= 0).any():
        raise SpecError(f"multinomial: expected weights (N,) or (rows, N) >= 0 with some above 0, got {weights.shape}")
    if not replacement and (rows > 0).sum(1).min() < num_samples:
        raise SpecError(f"multinomial: expected at least {num_samples} weights above 0 without replacement")
    drawn = [_of(generator).choice(rows.shape[1], num_samples, replacement, row) for row in rows]
    return drawn[0] if weights.ndim == 1 else stack(drawn)


def get_rng_state() -> Tensor:
    """(seed, step) of the generator that manual_seed sets, for set_rng_state."""
    return random.default.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Go on from what get_rng_state gave. Raises ShapeError for anything else."""
    random.default.set_state(new_state)


def initial_seed() -> int:
    """What manual_seed was given; 0 before."""
    return generator_state()[0]


def get_num_threads() -> int:
    """How many threads the kernels use."""
    return int(_kernels().get_num_threads())


def set_num_threads(count: int) -> None:
    """Let the kernels use so many threads: the results are the same bits with any."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise SpecError(f"set_num_threads: expected a count of at least 1, got {count!r}")
    _kernels().set_num_threads(count)


def _kernels() -> Any:
    return importlib.import_module("cyxcore.kernels.cpu")


def tril_indices(row: int, col: int, offset: int = 0) -> Tensor:
    """(2, count): the places on and below a diagonal of a matrix."""
    return Tensor(np.stack(np.tril_indices(row, offset, col)))


def triu_indices(row: int, col: int, offset: int = 0) -> Tensor:
    """(2, count): the places on and above a diagonal of a matrix."""
    return Tensor(np.stack(np.triu_indices(row, offset, col)))


def set_grad_enabled(mode: bool) -> Any:
    """enable_grad() or no_grad()."""
    return enable_grad() if mode else no_grad()


inference_mode = no_grad


def poisson(rate: Tensor, *, generator: Any = None) -> Tensor:
    """Whole numbers of the mean that each element of `rate` names, of its dtype."""
    return _of(generator).poisson(rate).astype(rate.dtype)


def is_grad_enabled() -> bool:
    """Whether results remember what they came from, in this thread."""
    return bool(is_recording())


def get_default_dtype() -> str:
    """The dtype of Python's floats: float32."""
    return DEFAULTS[float]
