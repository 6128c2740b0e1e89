"""PyTorch's functions that make tensors, beside NumPy's in cx.random and the standard's: randint, multinomial, ….

The numbers are those of the generator cx.manual_seed sets.
"""

import importlib
import math
import secrets
from typing import Any

import numpy as np

from cyxcore import creation, random
from cyxcore.dtype import DEFAULTS, dtype_name
from cyxcore.eager import Tensor, generator_state, manual_seed
from cyxcore.errors import DtypeError, SpecError
from cyxcore.functional.basic import stack
from cyxcore.held import is_recording
from cyxcore.hosted import is_symbolic
from cyxcore.precision import numerics, set_numerics
from cyxcore.tape import inference_mode as inference_mode
from cyxcore.tape import set_grad_enabled as set_grad_enabled

__all__ = (  # also in cyxcore/__init__.py
    "BoolTensor ByteTensor DoubleTensor FloatTensor HalfTensor IntTensor LongTensor Size complex logspace seed "
    "get_float32_matmul_precision set_float32_matmul_precision "
    "channels_last channels_last_3d contiguous_format preserve_format "
    "are_deterministic_algorithms_enabled set_default_dtype set_printoptions use_deterministic_algorithms "
    "as_tensor bernoulli get_default_dtype get_num_threads get_rng_state inference_mode initial_seed "
    "is_grad_enabled multinomial normal poisson rand_like randint randint_like randn_like randperm set_grad_enabled "
    "set_num_threads set_rng_state tril_indices triu_indices"
).split()


# Memory formats by PyTorch's names: the order of a tensor's memory is that of its axes, whatever is asked for.
channels_last, channels_last_3d = "channels_last", "channels_last_3d"
contiguous_format, preserve_format = "contiguous_format", "preserve_format"


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
    """Normal numbers; mean and std may be tensors, of whose dtype they are then."""
    kind = next((x.dtype for x in (mean, std) if isinstance(x, Tensor)), "float32")
    return _of(generator).normal(mean, std, size, dtype=kind)


def bernoulli(p: Tensor, *, generator: Any = None) -> Tensor:
    """1 with the probability each element of p names, else 0; of p's dtype."""
    return _of(generator).bernoulli(p).astype(p.dtype)


def multinomial(weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None) -> Tensor:
    """Places 0 … N-1 drawn by weights (N,) or (rows, N), which need not add up to 1. Returns (num_samples,) or rows.

    Raises SpecError for negative weights, and where without replacement there are not as many above 0.
    """
    if num_samples < 0:
        raise SpecError(f"multinomial: expected a count of at least 0, got {num_samples}")
    if weights.ndim not in (1, 2):
        raise SpecError(f"multinomial: expected weights (N,) or (rows, N), got {weights.shape}")
    if is_symbolic(weights):
        of_rows = [weights] if weights.ndim == 1 else [weights[place] for place in range(len(weights))]
        found = [_of(generator).choice(weights.shape[-1], num_samples, replacement, row) for row in of_rows]
        return found[0] if weights.ndim == 1 else stack(found)
    rows = np.atleast_2d(weights.astype("float64").numpy())
    if not np.isfinite(rows).all() or (rows < 0).any() or (rows.sum(1) <= 0).any():
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


def poisson(rate: Tensor, *, generator: Any = None) -> Tensor:
    """Whole numbers of the mean that each element of `rate` names, of its dtype."""
    return _of(generator).poisson(rate).astype(rate.dtype)


def is_grad_enabled() -> bool:
    """Whether results remember what they came from, in this thread."""
    return bool(is_recording())


def get_default_dtype() -> str:
    """The dtype of Python's floats: float32."""
    return DEFAULTS[float]


class Size(tuple[int, ...]):
    """A shape as PyTorch's code writes it: a tuple, which a tensor's shape is here."""

    __slots__ = ()

    def numel(self) -> int:
        """How many elements."""
        return math.prod(self)


def logspace(
    start: float, end: float, steps: int, base: float = 10.0, *, dtype: Any = None, device: Any = None
) -> Tensor:
    """`steps` powers of base, from base ** start to base ** end."""
    return creation.asarray(np.logspace(start, end, steps, base=base), dtype=dtype or "float32", device=device)


def complex(real: Tensor, imag: Tensor) -> Tensor:
    """Complex numbers of their parts, which are floats of one dtype."""
    if real.dtype != imag.dtype or real.dtype not in ("float32", "float64"):
        raise DtypeError(f"complex: expected two tensors of float32 or of float64, got {real.dtype} and {imag.dtype}")
    return real + imag * 1j


def seed() -> int:
    """A seed that nobody knew before, set by manual_seed and returned."""
    chosen = secrets.randbits(63)
    manual_seed(chosen)
    return chosen


_PRECISIONS = {"highest": "exact", "high": "fast", "medium": "bf16"}


def set_float32_matmul_precision(precision: str) -> None:
    """set_numerics by PyTorch's names: highest (exact), high (fast: float32 in three terms), medium (bf16)."""
    if precision not in _PRECISIONS:
        raise SpecError(f"set_float32_matmul_precision: expected highest, high or medium, got {precision!r}")
    set_numerics(_PRECISIONS[precision])


def get_float32_matmul_precision() -> str:
    """What set_float32_matmul_precision set: highest at first."""
    return next((name for name, own in _PRECISIONS.items() if own == numerics().name), "high")


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Without effect: there are no others."""


def are_deterministic_algorithms_enabled() -> bool:
    """True."""
    return True


def set_default_dtype(d: Any) -> None:
    """float32 is the dtype of Python's floats. Raises DtypeError for another."""
    if dtype_name(d) != DEFAULTS[float]:
        raise DtypeError(
            f"set_default_dtype: it is always {DEFAULTS[float]} here, got {d}; say dtype= or model.double()"
        )


def set_printoptions(**options: Any) -> None:
    """NumPy's, which print tensors: precision, threshold, edgeitems, linewidth, sci_mode (its suppress, reversed)."""
    if "sci_mode" in options:
        sci_mode = options.pop("sci_mode")
        options["suppress"] = None if sci_mode is None else not sci_mode
    options.pop("profile", None)
    np.set_printoptions(**options)


def _typed(name: str, dtype: str) -> Any:
    def make(*data: Any) -> Tensor:
        if len(data) == 1 and not isinstance(data[0], int):
            return creation.tensor(data[0], dtype=dtype)
        return creation.zeros(data or (0,), dtype=dtype)

    make.__name__ = make.__qualname__ = name
    make.name = dtype  # type: ignore[attr-defined]  # what x.type(FloatTensor) asks for
    make.__doc__ = f"A tensor of {dtype} of data; of sizes, zeros. Newer code writes tensor(data, dtype=...)."
    return make


FloatTensor = _typed("FloatTensor", "float32")
DoubleTensor = _typed("DoubleTensor", "float64")
HalfTensor = _typed("HalfTensor", "float16")
LongTensor = _typed("LongTensor", "int64")
IntTensor = _typed("IntTensor", "int32")
ByteTensor = _typed("ByteTensor", "uint8")
BoolTensor = _typed("BoolTensor", "bool")
