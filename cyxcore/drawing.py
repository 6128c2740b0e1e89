"""Random numbers for initial weights, data order and the eager generator: all Philox, same bits on every
machine.

Four uses share a seed and never meet, because their steps differ: dropout counts steps from 1,
the data order uses 2**63 + epoch, transforms of a step's rows 2**63 + 2**62 + step, initial weights 2**64 - 1.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore.kernels.philox import uniform_words

Array = np.ndarray[Any, Any]

INIT_STEP = 2**64 - 1
ORDER_STEP = 2**63
AUGMENT_STEP = 2**63 + 2**62


def compiled(device: str | None = None) -> Any:
    """The compiled kernels, which draw what the definitions here do; None on the device of definitions."""
    name = devices.default_device() if device is None else device
    return None if name == "reference" else devices.backend("cpu").kernels  # type: ignore[attr-defined]


def uniform(seed: int, step: int, stream: int, shape: tuple[int, ...], device: str | None = None) -> Array:
    """float64 multiples of 2**-24 in [0, 1), drawn by the op `uniform`. Every device draws the same."""
    backend = devices.backend(devices.default_device() if device is None else device)
    drawn = np.empty(math.prod(shape), np.float32)  # of the host, whatever the device; holds them exactly
    backend.call("uniform", drawn, [np.array([seed, step], np.uint64)], {"shape": drawn.shape, "stream": stream})
    return drawn.astype(np.float64).reshape(shape)


DIGITS = {"float16": 11, "bfloat16": 8}


def fitted(u: Array, dtype: str) -> Array:
    """Numbers of [0, 1) with as many digits as a dtype holds, cut off: rounding would reach 1."""
    digits = DIGITS.get(dtype)
    return u if digits is None else np.floor(u * 2.0**digits) / 2.0**digits


def permutation(seed: int, epoch: int, count: int) -> Array:
    """The order of `count` rows in an epoch, int64: a stable sort of random words."""
    kernels = compiled()
    if kernels is not None:
        order = np.empty(count, np.int64)
        kernels.draw_order(seed, ORDER_STEP + epoch, 0, False, order)
        return order
    return np.argsort(uniform_words(seed, ORDER_STEP + epoch, 0, count), kind="stable").astype(np.int64)


def normal(
    seed: int,
    step: int,
    stream: int,
    shape: tuple[int, ...],
    device: str | None = None,
    *,
    std: float = 1.0,
    mean: float = -0.0,  # which adds nothing to any number
    dtype: str = "float64",
) -> Array:
    """Approximately normal numbers: the sum of twelve uniforms minus six (Irwin-Hall), computed in float64.

    Exact arithmetic only: a logarithm or cosine would differ in the last bit between machines.
    The tails end at ±6, which serves weights and noise but not statistics of rare events. dtype: "float32" for an array
    of that; any other has float64, which the caller rounds.
    """
    kernels, kind = compiled(device), np.float32 if dtype == "float32" else np.float64
    if kernels is None:
        drawn = mean + std * (uniform(seed, step, stream, (*shape, 12), device).sum(-1) - 6.0)
    else:
        drawn = np.empty(shape, kind)
        kernels.draw_reals("twelves", seed, step, stream, std, mean, drawn)
    result: Array = drawn.astype(kind, copy=False)
    return result


def initial(
    rule: Mapping[str, Any], shape: tuple[int, ...], dtype: str, seed: int, index: int, device: str | None = None
) -> Array:
    """First values of the parameter number `index` of a graph, by its init rule."""
    return drawn(rule, shape, dtype, seed, INIT_STEP, index, device)


CONSTANTS: dict[str, float] = {  # what is filled from data starts neutral: shift 0, scale 1
    "zeros": 0.0,
    "input_mean": 0.0,
    "input_min": 0.0,
    "target_mean": 0.0,
    "ones": 1.0,
    "input_std": 1.0,
    "input_range": 1.0,
    "target_std": 1.0,
}


def drawn(
    rule: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: str,
    seed: int,
    step: int,
    stream: int,
    device: str | None = None,
) -> Array:
    """Values by an init rule (cyxcore/attrs.py, INIT_RULES)."""
    kind = rule["kind"]
    values: Any
    if kind in CONSTANTS or kind == "constant":
        values = CONSTANTS.get(kind, rule.get("value"))
    elif kind == "normal":
        values = normal(seed, step, stream, shape, device, std=rule["std"], dtype=dtype)
    else:
        bound = 1.0 / math.sqrt(rule["fan_in"]) if kind == "kaiming_uniform" else rule["bound"]
        values = (uniform(seed, step, stream, shape, device) * 2.0 - 1.0) * bound
    made = _lines(shape, dtype, device)
    made[...] = values
    return made


def _lines(shape: tuple[int, ...], dtype: str, device: str | None) -> Array:
    """Memory for an array that begins with a line of the cache, as kernels read and write whole lines of parameters."""
    kernels = compiled(device)
    if kernels is None:
        return np.empty(shape, dtype)
    made: Array = kernels.aligned((math.prod(shape),), np.dtype(dtype).num).reshape(shape)
    return made
