"""Transforms at work: a row per kind in RUN, and the loop over them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cyxcore import transforms as T
from cyxcore import variates
from cyxcore.creation import from_numpy
from cyxcore.data.datasets import host_array
from cyxcore.eager import Tensor
from cyxcore.errors import DataError, DtypeError, ShapeError, SpecError
from cyxcore.transforms import colour, geometry, policies
from cyxcore.transforms.draws import Draws
from cyxcore.transforms.policies import Scene

Array = np.ndarray[Any, Any]


class Mixed(NamedTuple):
    """Targets of images that were mixed: loss = share * loss(output, first) + (1 - share) * loss(output, second).

    first, second: (N, …), as the targets were; share: (N,) float32. `soft(classes)` is the same as probabilities.
    """

    first: Any
    second: Any
    share: Any

    def soft(self, classes: int) -> Tensor:
        """(N, classes) float32, for losses that take probabilities. Raises DataError for targets that are no classes
        below `classes`.
        """
        first, second, share = (np.asarray(_array(part)) for part in self)
        if first.dtype.kind not in "iu" or (first.size and not 0 <= first.min() <= first.max() < classes):
            got = f"{first.min()} to {first.max()}" if first.dtype.kind in "iu" else str(first.dtype)
            raise DataError(f"soft: expected targets that are classes from 0 to {classes - 1}, got {got}")
        one_hot = np.eye(classes, dtype=np.float32)
        return from_numpy(share[:, None] * one_hot[first] + (1 - share[:, None]) * one_hot[second])


class Batch:
    """What a transform is given: images (N, C, H, W) float32, white, the draws, and how rows were mixed so far."""

    def __init__(self, images: Array, white: float, draws: Draws) -> None:
        self.x, self.white, self.draws = images, white, draws
        self.partners: Array | None = None
        self.shares: Array | None = None
        self.is_normal = False

    def some(self, p: float, run: Callable[[Array], Array]) -> None:
        """run on the rows that a coin chooses."""
        rows = np.flatnonzero(self.draws.chosen(p))
        if rows.size:
            self.x = self.x.copy()
            self.x[rows] = run(self.x[rows])


def _random_crop(batch: Batch, t: T.RandomCrop) -> None:
    x = geometry.pad(batch.x, t.padding, t.fill * batch.white, t.padding_mode)
    size = T.pair(t.size)
    room = [have - wanted for have, wanted in zip(x.shape[2:], size, strict=True)]
    if min(room) < 0:
        raise ShapeError(f"RandomCrop: expected a size within {x.shape[2]} x {x.shape[3]}, got {size}")
    tops, lefts = (batch.draws.below(spare + 1) for spare in room)
    batch.x = geometry.crop(x, tops, lefts, size)


def _rectangles(batch: Batch, areas: Array, ratios: Array) -> tuple[Array, Array, Array, Array]:
    """(tops, lefts, heights, widths) inside the images, of shares of the area and ratios of height to width."""
    height, width = batch.x.shape[2:]
    pixels = areas * (height * width)
    heights = np.clip(np.rint(np.sqrt(pixels * ratios)), 1, height).astype(np.int64)
    widths = np.clip(np.rint(np.sqrt(pixels / ratios)), 1, width).astype(np.int64)
    return batch.draws.below(height - heights + 1), batch.draws.below(width - widths + 1), heights, widths


def _ratios(batch: Batch, least: float, most: float) -> Array:
    """As likely above 1 as below: exp of a number between the logarithms."""
    low, high = (float(variates.log(np.array([value]))[0]) for value in (least, most))
    return variates.exp(batch.draws.uniform(low, high))


def _random_resized_crop(batch: Batch, t: T.RandomResizedCrop) -> None:
    areas, ratios = batch.draws.uniform(*t.scale), 1.0 / _ratios(batch, *t.ratio)
    places = _rectangles(batch, areas, ratios)
    batch.x = geometry.resized_crop(batch.x, *places, T.pair(t.size), t.interpolation)


def _flip(axis: int) -> Callable[[Batch, Any], None]:
    def run(batch: Batch, t: Any) -> None:
        batch.x = geometry.flip(batch.x, batch.draws.chosen(t.p), axis)

    return run


def _rotation(batch: Batch, t: T.RandomRotation) -> None:
    degrees = batch.draws.uniform(-t.degrees, t.degrees)
    _warp(batch, geometry.turned(batch.x.shape, degrees), t.fill, t.interpolation)


def _affine(batch: Batch, t: T.RandomAffine) -> None:
    draws, (height, width) = batch.draws, batch.x.shape[2:]
    degrees, shear = draws.uniform(-t.degrees, t.degrees), draws.uniform(-t.shear, t.shear)
    moved_x, moved_y = (
        np.rint(draws.uniform(-part, part) * side) for part, side in zip(t.translate, (width, height), strict=True)
    )
    coefficients = geometry.turned(batch.x.shape, degrees, moved_x, moved_y, draws.uniform(*t.scale), shear)
    _warp(batch, coefficients, t.fill, t.interpolation)


def _perspective(batch: Batch, t: T.RandomPerspective) -> None:
    draws, (height, width) = batch.draws, batch.x.shape[2:]
    inwards = [
        [draws.uniform(0.0, t.distortion_scale * side / 2) for side in (width, height)] for _ in range(4)
    ]  # top left, top right, bottom right, bottom left
    corners = np.stack(
        [
            np.stack([x if left else width - x, y if top else height - y], 1)
            for (x, y), left, top in zip(inwards, (1, 0, 0, 1), (1, 1, 0, 0), strict=True)
        ],
        1,
    )
    coefficients = geometry.perspective(batch.x.shape, corners)
    coefficients[~draws.chosen(t.p)] = geometry.affine(1)[0]
    _warp(batch, coefficients, t.fill, t.interpolation)


def _warp(batch: Batch, coefficients: Array, fill: float, sampling: str) -> None:
    batch.x = geometry.warp(batch.x, coefficients, fill * batch.white, sampling)


def _color_jitter(batch: Batch, t: T.ColorJitter) -> None:
    for amount, run in (
        (t.brightness, colour.brightness),
        (t.contrast, colour.contrast),
        (t.saturation, colour.saturation),
    ):
        if amount:
            batch.x = run(batch.x, batch.draws.uniform(max(0.0, 1.0 - amount), 1.0 + amount), batch.white)
    if t.hue:
        batch.x = colour.hue(batch.x, batch.draws.uniform(-t.hue, t.hue), batch.white)


def _all_gray(x: Array) -> Array:
    return np.ascontiguousarray(np.broadcast_to(colour.gray(x), x.shape))


def _permuted(batch: Batch, t: T.RandomChannelPermutation) -> None:
    batch.x = np.take_along_axis(batch.x, batch.draws.order(batch.x.shape[1])[:, :, None, None], 1)


def _noise(batch: Batch, t: T.GaussianNoise) -> None:
    drawn = variates.normal(batch.draws.source(), batch.x.size).reshape(batch.x.shape)
    noisy = batch.x + ((drawn * t.sigma + t.mean) * batch.white).astype(np.float32)
    batch.x = np.clip(noisy, 0.0, np.float32(batch.white))


def _normalize(batch: Batch, t: T.Normalize) -> None:
    if len(t.mean) not in (1, batch.x.shape[1]):
        raise ShapeError(f"Normalize: expected 1 or {batch.x.shape[1]} means, got {len(t.mean)}")
    mean, std = (np.array(part, np.float32).reshape(1, -1, 1, 1) for part in (t.mean, t.std))
    batch.x, batch.is_normal = (batch.x / np.float32(batch.white) - mean) / std, True


def _inside(batch: Batch, tops: Array, lefts: Array, heights: Array, widths: Array) -> Array:
    """(N, 1, H, W) bool: the rectangle of each image."""
    rows, columns = np.arange(batch.x.shape[2])[:, None], np.arange(batch.x.shape[3])
    tops, lefts, heights, widths = (part.reshape(-1, 1, 1) for part in (tops, lefts, heights, widths))
    inside = (rows >= tops) & (rows < tops + heights) & (columns >= lefts) & (columns < lefts + widths)
    result: Array = inside[:, None]
    return result


def _erasing(batch: Batch, t: T.RandomErasing) -> None:
    places = _rectangles(batch, batch.draws.uniform(*t.scale), _ratios(batch, *t.ratio))
    erased = _inside(batch, *places) & batch.draws.chosen(t.p).reshape(-1, 1, 1, 1)
    batch.x = np.where(erased, np.float32(t.value * batch.white), batch.x)


def _cutout(batch: Batch, t: T.Cutout) -> None:
    tops, lefts = (batch.draws.below(side) - t.size // 2 for side in batch.x.shape[2:])
    sides = np.full(len(batch.x), t.size)
    cut = _inside(batch, tops, lefts, sides, sides) & batch.draws.chosen(t.p).reshape(-1, 1, 1, 1)
    batch.x = np.where(cut, np.float32(t.value * batch.white), batch.x)


def _begin_mixing(batch: Batch, alpha: float, name: str) -> tuple[float, Array]:
    """(the share that stays, each row's partner)."""
    if batch.partners is not None:
        raise SpecError(f"{name}: expected at most one of Mixup and CutMix, as an image has two targets at most")
    one = np.full(1, alpha)
    share = float(variates.beta(batch.draws.source(), one, one)[0])
    batch.partners = np.argsort(batch.draws.uniform(), kind="stable")
    return share, batch.partners


def _mixup(batch: Batch, t: T.Mixup) -> None:
    share, partners = _begin_mixing(batch, t.alpha, "Mixup")
    batch.x = batch.x * np.float32(share) + batch.x[partners] * np.float32(1.0 - share)
    batch.shares = np.full(len(batch.x), share, np.float32)


def _cutmix(batch: Batch, t: T.CutMix) -> None:
    share, partners = _begin_mixing(batch, t.alpha, "CutMix")
    height, width = batch.x.shape[2:]
    side = math.sqrt(1.0 - share)
    ends = []
    for length in (height, width):
        middle, half = batch.draws.below(length), int(length * side) // 2
        ends.append((np.clip(middle - half, 0, length), np.clip(middle + half, 0, length)))
    (top, bottom), (left, right) = ends
    inside = _inside(batch, top, left, bottom - top, right - left)
    batch.x = np.where(inside, batch.x[partners], batch.x)
    batch.shares = (1.0 - (bottom - top) * (right - left) / (height * width)).astype(np.float32)


def _set(run: Callable[[Batch, Any], Array]) -> Callable[[Batch, Any], None]:
    """A transform of all rows by a function that returns them."""

    def apply(batch: Batch, t: Any) -> None:
        batch.x = run(batch, t)

    return apply


def _some(run: Callable[[Array, Any, float], Array]) -> Callable[[Batch, Any], None]:
    """A transform of the rows that a coin of chance t.p chooses."""
    return lambda batch, t: batch.some(t.p, lambda x: run(x, t, batch.white))


def _same(value: float, x: Array) -> Array:
    return np.full(len(x), value)


RUN: dict[type[T.Transform], Callable[[Batch, Any], None]] = {
    T.Resize: _set(lambda batch, t: geometry.resize(batch.x, T.pair(t.size), t.interpolation)),
    T.Pad: _set(lambda batch, t: geometry.pad(batch.x, t.padding, t.fill * batch.white, t.padding_mode)),
    T.CenterCrop: _set(lambda batch, t: geometry.center_crop(batch.x, T.pair(t.size))),
    T.RandomCrop: _random_crop,
    T.RandomResizedCrop: _random_resized_crop,
    T.RandomHorizontalFlip: _flip(3),
    T.RandomVerticalFlip: _flip(2),
    T.RandomRotation: _rotation,
    T.RandomAffine: _affine,
    T.RandomPerspective: _perspective,
    T.ColorJitter: _color_jitter,
    T.Grayscale: _set(lambda batch, t: _all_gray(batch.x)),
    T.RandomGrayscale: _some(lambda x, t, white: _all_gray(x)),
    T.RandomChannelPermutation: _permuted,
    T.RandomInvert: _some(lambda x, t, white: colour.invert(x, white)),
    T.RandomSolarize: _some(lambda x, t, white: colour.solarize(x, _same(t.threshold * white, x), white)),
    T.RandomPosterize: _some(lambda x, t, white: colour.posterize(x, _same(t.bits, x), white)),
    T.RandomEqualize: _some(lambda x, t, white: colour.equalize(x, white)),
    T.RandomAutocontrast: _some(lambda x, t, white: colour.autocontrast(x, white)),
    T.RandomAdjustSharpness: _some(lambda x, t, white: colour.sharpness(x, _same(t.sharpness_factor, x), white)),
    T.GaussianBlur: _set(lambda batch, t: colour.blur(batch.x, t.kernel_size, batch.draws.uniform(*t.sigma))),
    T.GaussianNoise: _noise,
    T.Normalize: _normalize,
    T.RandomErasing: _erasing,
    T.Cutout: _cutout,
    T.Mixup: _mixup,
    T.CutMix: _cutmix,
    T.RandAugment: _set(
        lambda b, t: policies.rand_augment(b.x, t.num_ops, t.magnitude, b.draws, Scene(b.white, t.fill * b.white))
    ),
    T.AutoAugment: _set(lambda b, t: policies.auto_augment(b.x, t.policy, b.draws, Scene(b.white, t.fill * b.white))),
    T.TrivialAugmentWide: _set(
        lambda b, t: policies.trivial_augment_wide(b.x, b.draws, Scene(b.white, t.fill * b.white))
    ),
}


def perform(transforms: list[T.Transform], images: Array, seed: int, step: int, white: float) -> Batch:
    """Images (N, C, H, W) float32 through all of them. Raises ShapeError."""
    batch = Batch(images, white, Draws(seed, step, len(images)))
    for transform in transforms:
        if batch.is_normal:
            name = type(transform).__name__
            raise SpecError(f"{name}: expected images, Normalize comes before it; put Normalize last")
        RUN[type(transform)](batch, transform)
    return batch


def run(transforms: list[T.Transform], images: Any, key: Any, targets: Any, white: float) -> Any:
    """What Compose.__call__ says."""
    array = _array(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DtypeError(f"transforms: expected images of uint8 or floats, got {array.dtype}")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ShapeError(f"transforms: expected images (N, C, H, W) or (C, H, W), got {array.shape}")
    single = array.ndim == 3
    seed, step = _seed_and_step(key)
    of_bytes = array.dtype == np.uint8
    rows = array[None] if single else array
    batch = perform(transforms, rows.astype(np.float32, copy=False), seed, step, 255.0 if of_bytes else white)
    out = batch.x
    if not batch.is_normal:
        out = np.clip(np.rint(out), 0, 255).astype(np.uint8) if of_bytes else out.astype(array.dtype, copy=False)
    out = np.ascontiguousarray(out[0] if single else out)
    result = from_numpy(out) if isinstance(images, Tensor) else out
    return result if targets is None else (result, _mixed(batch, targets))


def _mixed(batch: Batch, targets: Any) -> Any:
    if batch.partners is None:
        return targets
    array = _array(targets)
    if len(array) != len(batch.x):
        raise ShapeError(f"transforms: expected a target for each of {len(batch.x)} images, got {len(array)}")
    second = array[batch.partners]
    if isinstance(targets, Tensor):
        return Mixed(targets, from_numpy(second), from_numpy(np.asarray(batch.shares)))
    return Mixed(targets, second, batch.shares)


def _array(value: Any) -> Array:
    return host_array(value) if isinstance(value, Tensor) else np.asarray(value)


def _seed_and_step(key: Any) -> tuple[int, int]:
    parts = np.asarray(_array(key) if isinstance(key, Tensor) else key, object).reshape(-1).tolist()
    whole = all(isinstance(part, int | np.integer) for part in parts)
    if not whole or len(parts) not in (1, 2) or not all(0 <= part < 2**64 for part in parts):
        raise SpecError(f"transforms: expected a key as a seed or (seed, step), each 0 <= n < 2**64, got {key!r}")
    return int(parts[0]), int(parts[1]) if len(parts) == 2 else 0
