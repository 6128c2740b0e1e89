"""Pooling to a given size: adaptive and fractional. Names, arguments and results are torch.nn.functional's."""

import math
from typing import Any

from cyxcore.attrs import is_whole
from cyxcore.casting import in_float32
from cyxcore.errors import SpecError
from cyxcore.functional.basic import Pair, concat, numbers, take_along_axis
from cyxcore.functional.convolutions import Triple
from cyxcore.functional.pooling import largest_at, largest_in, one_sample, pooled
from cyxcore.values import apply


def _sizes(x: Any, wanted: Any) -> list[int]:
    """The sizes of the axes after C: one for all, or one each; None: as it is. Raises SpecError."""
    own = x.shape[2:]
    each = [wanted] * len(own) if is_whole(wanted) or wanted is None else list(wanted)
    if len(each) != len(own):
        raise SpecError(f"adaptive pooling: expected one or {len(own)} sizes for x {x.shape}, got {wanted}")
    sizes = [old if new is None else int(new) for old, new in zip(own, each, strict=True)]
    if min(sizes) < 1 or min(own) < 1:
        raise SpecError(f"adaptive pooling: expected sizes of at least 1, got {tuple(sizes)} of x {x.shape}")
    return sizes


def _windows(size: int, wanted: int) -> list[tuple[int, int]]:
    """Window i is from floor(i size / wanted) to ceil((i + 1) size / wanted)."""
    return [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]


def _adaptive(name: str, rank: int, x: Any, output_size: Any) -> Any:
    if one_sample(name, x, rank):
        return _adaptive(name, rank, x.expand_dims(0), output_size).squeeze(0)
    sizes = _sizes(x, output_size)
    whole = tuple(axis for axis, wanted in enumerate(sizes, start=2) if wanted == 1 != x.shape[axis])
    if whole:  # one window, so its mean
        x = x.mean(whole, keepdims=True)
    for axis, (size, wanted) in enumerate(zip(x.shape[2:], sizes, strict=True), start=2):
        if wanted == size:
            continue
        windows = _windows(size, wanted)
        weights = [[1.0 / (stop - start) if start <= k < stop else 0.0 for k in range(size)] for start, stop in windows]
        order = [a for a in range(x.ndim) if a != axis] + [axis]
        back = [order.index(a) for a in range(x.ndim)]
        means = x.permute(*order) @ x._constant(weights, x.dtype).transpose(1, 0)
        x = means.permute(*back)
    return x


def adaptive_avg_pool1d(x: Any, output_size: int) -> Any:
    """(N, C, L) -> (N, C, output_size); window i is from floor(i L / n) to ceil((i + 1) L / n), as in torch."""
    return _adaptive("adaptive_avg_pool1d", 1, x, output_size)


def adaptive_avg_pool2d(x: Any, output_size: Pair) -> Any:
    """(N, C, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is."""
    return _adaptive("adaptive_avg_pool2d", 2, x, output_size)


@in_float32
def adaptive_avg_pool3d(x: Any, output_size: Triple) -> Any:
    """(N, C, D, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is."""
    return _adaptive("adaptive_avg_pool3d", 3, x, output_size)


def _adaptive_max(name: str, rank: int, x: Any, output_size: Any, return_indices: bool) -> Any:
    if one_sample(name, x, rank):
        found = _adaptive_max(name, rank, x.expand_dims(0), output_size, return_indices)
        return tuple(each.squeeze(0) for each in found) if return_indices else found.squeeze(0)
    result, places = x, []
    for axis, (size, wanted) in enumerate(zip(x.shape[2:], _sizes(x, output_size), strict=True), start=2):
        before, windows = (slice(None),) * axis, _windows(size, wanted)
        parts = [result[(*before, slice(low, high))].max(axis, keepdims=True) for low, high in windows]
        result = concat(parts, axis)
        longest = max(high - low for low, high in windows)
        places.append([[min(low + k, high - 1) for k in range(longest)] for low, high in windows])
    return (result, largest_at(x, places)) if return_indices else result


def adaptive_max_pool1d(x: Any, output_size: int, return_indices: bool = False) -> Any:
    """(N, C, L) -> (N, C, output_size): the largest of each window of adaptive_avg_pool1d.

    return_indices: also where they are, int64, for max_unpool1d.
    """
    return _adaptive_max("adaptive_max_pool1d", 1, x, output_size, return_indices)


def adaptive_max_pool2d(x: Any, output_size: Pair, return_indices: bool = False) -> Any:
    """(N, C, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is.

    return_indices: also where they are, int64, counted through H and W.
    """
    return _adaptive_max("adaptive_max_pool2d", 2, x, output_size, return_indices)


def adaptive_max_pool3d(x: Any, output_size: Triple, return_indices: bool = False) -> Any:
    """(N, C, D, H, W) -> (N, C, *output_size), by the windows of adaptive_avg_pool1d; a size of None: as it is.

    return_indices: also where they are, int64, counted through D, H and W.
    """
    return _adaptive_max("adaptive_max_pool3d", 3, x, output_size, return_indices)


def _fractional(
    name: str, rank: int, x: Any, kernel_size: Any, output_size: Any, output_ratio: Any, indices: bool, samples: Any
) -> Any:
    if one_sample(name, x, rank):
        drawn = None if samples is None else samples.reshape(1, *samples.shape[-2:])
        found = _fractional(name, rank, x.expand_dims(0), kernel_size, output_size, output_ratio, indices, drawn)
        return tuple(each.squeeze(0) for each in found) if indices else found.squeeze(0)
    kernel, sizes = numbers(kernel_size, rank), x.shape[2:]
    if (output_size is None) == (output_ratio is None):
        raise SpecError(f"{name}: expected one of output_size and output_ratio")
    if output_size is None:
        ratios = (output_ratio,) * rank if isinstance(output_ratio, (int, float)) else tuple(output_ratio)
        if len(ratios) != rank or not all(0.0 < ratio < 1.0 for ratio in ratios):
            raise SpecError(f"{name}: expected output_ratio one or {rank} numbers between 0 and 1, got {output_ratio}")
        wanted = tuple(int(size * ratio) for size, ratio in zip(sizes, ratios, strict=True))
    else:
        wanted = numbers(output_size, rank)
    if not all(n >= 1 and k >= 1 and n + k - 1 <= size for n, k, size in zip(wanted, kernel, sizes, strict=True)):
        raise SpecError(f"{name}: expected output_size + kernel_size - 1 up to {sizes}, got {wanted} and {kernel}")
    if samples is None:
        samples = x._uniform((*x.shape[:2], rank)).astype(x.dtype)
    elif samples.shape != (*x.shape[:2], rank):
        raise SpecError(f"{name}: expected _random_samples {(*x.shape[:2], rank)}, got {samples.shape}")
    # PyTorch takes the samples of an image backwards, width first, and those of a volume as they are.
    starts = [
        _starts(samples[:, :, axis if rank == 3 else rank - 1 - axis], size, n, k)
        for axis, (size, n, k) in enumerate(zip(sizes, wanted, kernel, strict=True))
    ]
    parts = x
    for axis, (first, n, k) in enumerate(zip(starts, wanted, kernel, strict=True)):
        at = (first.expand_dims(3) + x._constant(range(k), "int64")).reshape(*x.shape[:2], n * k)
        shape = [1] * rank
        shape[axis] = n * k
        parts = take_along_axis(parts, at.reshape(*x.shape[:2], *shape), 2 + axis)
    result = pooled("max_pool2d", parts, kernel, kernel, (0,) * rank)
    if not indices:
        return result
    best, total = largest_in(parts, wanted, kernel), x._constant(0, "int64")
    for axis, (first, n) in enumerate(zip(starts, wanted, strict=True)):
        inner = math.prod(kernel[axis + 1 :])
        offsets = x._constant([place // inner % kernel[axis] for place in range(math.prod(kernel))], "int64")
        shape = [n if each == axis else 1 for each in range(rank)]
        place = first.reshape(*x.shape[:2], *shape) + apply("take", offsets, best, axis=0)
        total = total + place * math.prod(sizes[axis + 1 :])
    return result, total


def _starts(sample: Any, size: int, wanted: int, kernel: int) -> Any:
    """Where the windows of an axis begin, int64 (N, C, wanted): Graham 2014, arXiv 1412.6071, as PyTorch counts it."""
    if wanted == 1:
        return (sample.expand_dims(2) * 0.0).astype("int64") + (size - kernel)
    alpha = (size - kernel) / (wanted - 1)
    number = sample._constant(range(wanted - 1), sample.dtype)
    u = sample.expand_dims(2)
    at = ((number + u) * alpha).floor() - (u * alpha).floor()
    last = (u * 0.0).astype("int64") + (size - kernel)
    return concat([at.astype("int64"), last], 2)


def fractional_max_pool2d(
    x: Any,
    kernel_size: Pair,
    output_size: Pair | None = None,
    output_ratio: float | tuple[float, float] | None = None,
    return_indices: bool = False,
    _random_samples: Any = None,
) -> Any:
    """The largest of windows at random places of x (N, C, H, W), as many as output_size says (Graham 2014).

    output_ratio: their number as a part of H and W. return_indices: also where the largest are. _random_samples:
    (N, C, 2) of [0, 1), instead of drawn ones. Raises SpecError for sizes that do not fit.
    """
    options = (kernel_size, output_size, output_ratio, return_indices, _random_samples)
    return _fractional("fractional_max_pool2d", 2, x, *options)


def fractional_max_pool3d(
    x: Any,
    kernel_size: Triple,
    output_size: Triple | None = None,
    output_ratio: float | tuple[float, float, float] | None = None,
    return_indices: bool = False,
    _random_samples: Any = None,
) -> Any:
    """fractional_max_pool2d of (N, C, D, H, W); _random_samples: (N, C, 3)."""
    options = (kernel_size, output_size, output_ratio, return_indices, _random_samples)
    return _fractional("fractional_max_pool3d", 3, x, *options)
