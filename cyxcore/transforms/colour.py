"""Which colours a batch has: images (N, C, H, W) float32 between 0 and `white`, one parameter per row (N,).

The definitions are Pillow's (ImageEnhance, ImageOps) without its rounding. Sums are made one term after the other.
"""

from typing import Any

import numpy as np

from cyxcore.variates import exp

Array = np.ndarray[Any, Any]

LEVELS = 256  # of brightness, for what is defined by a histogram or by bits


def wide(values: Any) -> Array:
    """(N,) -> (N, 1, 1, 1) float32."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1, 1)


def gray(x: Array) -> Array:
    """(N, 1, H, W): ITU-R BT.601's luma of three channels; other numbers of channels are averaged."""
    if x.shape[1] == 1:
        return x
    shares = (0.299, 0.587, 0.114) if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]
    total: Array = x[:, :1] * np.float32(shares[0])
    for channel, share in enumerate(shares[1:], 1):
        total = total + x[:, channel : channel + 1] * np.float32(share)
    return total


def blend(x: Array, other: Array, factors: Array, white: float) -> Array:
    """other + (x - other) * factor: 0 is `other`, 1 is `x`, more goes beyond."""
    mixed: Array = other + (x - other) * wide(factors)
    return np.clip(mixed, 0.0, np.float32(white), out=mixed)


def brightness(x: Array, factors: Array, white: float) -> Array:
    return blend(x, np.zeros((1, 1, 1, 1), np.float32), factors, white)


def contrast(x: Array, factors: Array, white: float) -> Array:
    """Away from the mean of the grey image."""
    pixels = gray(x).reshape(len(x), -1)
    means = np.cumsum(pixels, 1, dtype=np.float64)[:, -1] / pixels.shape[1]  # np.sum has an order of its own
    return blend(x, wide(means), factors, white)


def saturation(x: Array, factors: Array, white: float) -> Array:
    return blend(x, gray(x), factors, white)


def hue(x: Array, turns: Array, white: float) -> Array:
    """Turned by a share of the circle; three channels only, others are left alone."""
    if x.shape[1] != 3:
        return x
    red, green, blue = (x[:, channel] for channel in range(3))
    value, least = x.max(1), x.min(1)
    span = value - least
    safe = np.where(span > 0, span, np.float32(1.0))
    sector = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, (blue - red) / safe + np.float32(2.0), (red - green) / safe + np.float32(4.0)),
    )
    sector = np.mod(sector + np.asarray(turns, np.float32).reshape(-1, 1, 1) * np.float32(6.0), np.float32(6.0))
    channels = []
    for offset in (5.0, 3.0, 1.0):  # A. R. Smith's hexcone, as max - span * clip(min(k, 4 - k))
        k = np.mod(np.float32(offset) + sector, np.float32(6.0))
        channels.append(value - span * np.clip(np.minimum(k, np.float32(4.0) - k), 0.0, 1.0))
    return np.stack(channels, 1)


def invert(x: Array, white: float) -> Array:
    return np.float32(white) - x


def solarize(x: Array, thresholds: Array, white: float) -> Array:
    """thresholds: of brightness, in the images' own scale."""
    return np.where(x >= wide(thresholds), np.float32(white) - x, x)


def levels(x: Array, white: float) -> Array:
    """Brightness as 0 … 255, int64; NaN is black."""
    found = np.rint(x * np.float32((LEVELS - 1) / white))
    result: Array = np.fmin(np.fmax(found, np.float32(0.0)), np.float32(LEVELS - 1)).astype(np.int64)
    return result


def posterize(x: Array, bits: Array, white: float) -> Array:
    masks = (LEVELS - 1) & ~((LEVELS >> np.asarray(bits, np.int64)) - 1)
    kept = levels(x, white) & masks.reshape(-1, 1, 1, 1)
    return (kept * np.float32(white / (LEVELS - 1))).astype(np.float32)


def equalize(x: Array, white: float) -> Array:
    """Pillow's: the last level that occurs keeps its place, and a channel of one level stays."""
    rows, channels = x.shape[:2]
    flat = levels(x, white).reshape(rows * channels, -1)
    counts = np.bincount((flat + np.arange(len(flat))[:, None] * LEVELS).reshape(-1), minlength=len(flat) * LEVELS)
    counts = counts.reshape(-1, LEVELS)
    last = counts[np.arange(len(counts)), LEVELS - 1 - (counts[:, ::-1] > 0).argmax(1)]
    step = (flat.shape[1] - last) // (LEVELS - 1)
    below = np.cumsum(counts, 1) - counts
    table = np.minimum((step[:, None] // 2 + below) // np.maximum(step, 1)[:, None], LEVELS - 1)
    table[step == 0] = np.arange(LEVELS)
    found = np.take_along_axis(table, flat, 1).reshape(x.shape) * np.float32(white / (LEVELS - 1))
    alone = (step == 0).reshape(rows, channels, 1, 1)
    return np.where(alone, x, found).astype(np.float32)


def autocontrast(x: Array, white: float) -> Array:
    low, high = x.min((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
    span = high - low
    stretched = (x - low) * (np.float32(white) / np.where(span > 0, span, np.float32(1.0)))
    return np.where(span > 0, np.minimum(stretched, np.float32(white)), x)


def sharpness(x: Array, factors: Array, white: float) -> Array:
    """Against the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13; pixels at the border stay."""
    if min(x.shape[2:]) < 3:
        return x
    height, width = x.shape[2:]
    total = x[:, :, 1:-1, 1:-1] * np.float32(4.0)
    for top in range(3):
        for left in range(3):
            total = total + x[:, :, top : height - 2 + top, left : width - 2 + left]
    smooth = x.copy()
    smooth[:, :, 1:-1, 1:-1] = total / np.float32(13.0)
    return blend(x, smooth, factors, white)


def blur(x: Array, size: int, deviations: Array) -> Array:
    """exp(-d² / 2 deviation²) over `size` pixels along both axes, in float64 weights that sum to 1."""
    distance = np.arange(size) - size // 2
    weights = exp(-0.5 * (distance / np.asarray(deviations, np.float64)[:, None]) ** 2)
    weights = (weights / np.cumsum(weights, 1)[:, -1:]).astype(np.float32)
    for axis in (2, 3):
        around = [(0, 0)] * 4
        around[axis] = (size // 2, size // 2)
        padded = np.pad(x, around, "reflect" if x.shape[axis] > size // 2 else "symmetric")
        length, total = x.shape[axis], np.zeros_like(x)
        for tap in range(size):
            part = padded[:, :, tap : tap + length] if axis == 2 else padded[:, :, :, tap : tap + length]
            total += part * wide(weights[:, tap])
        x = total
    return x
