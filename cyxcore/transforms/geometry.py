"""Where the pixels of a batch are: images (N, C, H, W) float32, one parameter per row.

Sums are made one term after the other and sines by the compiled kernels, so every machine gets the same bits.
"""

from typing import Any

import numpy as np

from cyxcore.variates import _by_kernel

Array = np.ndarray[Any, Any]

_MODES = {"constant": "constant", "edge": "edge", "reflect": "reflect"}
_BLOCK = 1 << 18  # pixels that are moved at a time: what is in between stays in the cache


def pad(x: Array, padding: int, fill: float, mode: str) -> Array:
    """`padding` pixels on every side."""
    if not padding:
        return x
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return np.pad(x, around, _MODES[mode], **({"constant_values": fill} if mode == "constant" else {}))  # type: ignore[call-overload]


def crop(x: Array, tops: Array, lefts: Array, size: tuple[int, int]) -> Array:
    """The part of each image that begins at (its top, its left)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))
    result: Array = windows[np.arange(len(x)), :, tops, lefts]
    return result


def center_crop(x: Array, size: tuple[int, int]) -> Array:
    """The middle; black where the image is smaller."""
    missing = [max(0, wanted - have) for wanted, have in zip(size, x.shape[2:], strict=True)]
    if any(missing):
        around = [(lack // 2, lack - lack // 2) for lack in missing]
        x = np.pad(x, ((0, 0), (0, 0), *around))
    top, left = ((have - wanted + 1) // 2 for wanted, have in zip(size, x.shape[2:], strict=True))
    return np.ascontiguousarray(x[:, :, top : top + size[0], left : left + size[1]])


def flip(x: Array, rows: Array, axis: int) -> Array:
    """The images where `rows` is true, mirrored along an axis."""
    out = x.copy()
    out[rows] = np.flip(x[rows], axis)
    return out


def resize(x: Array, size: tuple[int, int], sampling: str) -> Array:
    """To another size. bilinear: a triangle as wide as the shrinking (1 when it grows), as Pillow's."""
    if sampling == "nearest":
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * (have / n)).astype(np.int64), have - 1)
            for n, have in zip(size, x.shape[2:], strict=True)
        )
        return np.ascontiguousarray(x[:, :, rows[:, None], columns])
    for axis, wanted in ((3, size[1]), (2, size[0])):
        if x.shape[axis] != wanted:
            x = _stretched(x, axis, wanted)
    return x


def _stretched(x: Array, axis: int, wanted: int) -> Array:
    """Along one axis: each output is a weighted sum of at most `taps` neighbours."""
    have = x.shape[axis]
    scale = have / wanted
    reach = max(scale, 1.0)
    middle = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((middle - reach + 0.5).astype(np.int64), 0)
    taps = int(np.ceil(reach)) * 2 + 1
    places = first[:, None] + np.arange(taps)
    weights = np.maximum(0.0, 1.0 - np.abs((places + 0.5 - middle[:, None]) / reach))
    weights[places >= have] = 0.0
    weights /= np.cumsum(weights, 1)[:, -1:]
    places = np.minimum(places, have - 1)
    shape = [1] * x.ndim
    shape[axis] = wanted
    out = np.zeros((*x.shape[:axis], wanted, *x.shape[axis + 1 :]), np.float32)
    for tap in range(taps):
        if weights[:, tap].any():
            out += x.take(places[:, tap], axis) * weights[:, tap].astype(np.float32).reshape(shape)
    return out


def resized_crop(
    x: Array, tops: Array, lefts: Array, heights: Array, widths: Array, size: tuple[int, int], sampling: str
) -> Array:
    """The part (top, left, height, width) of each image, brought to one size."""
    out = np.empty((*x.shape[:2], *size), np.float32)
    for row, (top, left, height, width) in enumerate(
        zip(tops.tolist(), lefts.tolist(), heights.tolist(), widths.tolist(), strict=True)
    ):
        out[row] = resize(x[row : row + 1, :, top : top + height, left : left + width], size, sampling)[0]
    return out


# projections ----------------------------------------------------------------------------------------


def affine(rows: int, **parts: Any) -> Array:
    """(rows, 8) coefficients a … h of where an output pixel comes from: ((a x + b y + c) / (g x + h y + 1), …)."""
    out = np.zeros((rows, 8))
    for place, name in enumerate("abcdefgh"):
        out[:, place] = parts.get(name, 1.0 if name in "ae" else 0.0)
    return out


def turned(
    shape: tuple[int, ...], degrees: Array, moved_x: Any = 0.0, moved_y: Any = 0.0, scale: Any = 1.0, shear: Any = 0.0
) -> Array:
    """Coefficients for images (N, C, H, W) sheared along x, scaled and turned counter-clockwise by `degrees` about the
    middle, then moved by pixels."""
    radians = np.asarray(degrees, np.float64) * (np.pi / 180.0)
    slant = np.asarray(shear, np.float64) * (np.pi / 180.0) * np.ones_like(radians)
    sine, cosine = _by_kernel("sin", radians), _by_kernel("cos", radians)
    tangent = _by_kernel("sin", slant) / _by_kernel("cos", slant)
    scale = np.asarray(scale, np.float64)
    # forward: turn * scale * (1 tangent; 0 1). Backward, which is wanted: (1 -tangent; 0 1) / scale * turn⁻¹.
    a, b = (cosine - tangent * sine) / scale, (-sine - tangent * cosine) / scale
    d, e = sine / scale, cosine / scale
    x0, y0 = shape[3] * 0.5, shape[2] * 0.5
    c = x0 - a * (x0 + moved_x) - b * (y0 + moved_y)
    f = y0 - d * (x0 + moved_x) - e * (y0 + moved_y)
    return affine(len(radians), a=a, b=b, c=c, d=d, e=e, f=f)


def perspective(shape: tuple[int, ...], corners: Array) -> Array:
    """Coefficients that bring the image's corners to `corners` (N, 4, 2): (x, y) of top left, top right, bottom right
    and bottom left. From square to quadrilateral by P. Heckbert (1989, §2.2.3), and back by the adjugate."""
    height, width = shape[2], shape[3]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (corners[:, place].T for place in range(4))
    dx1, dx2, sx = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, sy = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    size = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / size, (dx1 * sy - sx * dy1) / size
    m = [[x1 - x0 + g * x1, x3 - x0 + h * x3, x0], [y1 - y0 + g * y1, y3 - y0 + h * y3, y0], [g, h, np.ones_like(g)]]
    back = [
        [
            m[(c + 1) % 3][(r + 1) % 3] * m[(c + 2) % 3][(r + 2) % 3]
            - m[(c + 1) % 3][(r + 2) % 3] * m[(c + 2) % 3][(r + 1) % 3]
            for c in range(3)
        ]
        for r in range(3)
    ]
    whole = back[2][2]
    parts = [*(part * width / whole for part in back[0]), *(part * height / whole for part in back[1])]
    return np.stack([*parts, back[2][0] / whole, back[2][1] / whole], 1)


def warp(x: Array, coefficients: Array, fill: float, sampling: str) -> Array:
    """Each output pixel from where its coefficients (N, 8) say: `fill` outside, the border repeated half a pixel in.

    Pixels are squares whose middles lie at halves, as in Pillow's Image.transform.
    """
    out = np.empty_like(x)
    step = max(1, _BLOCK // max(1, x.shape[2] * x.shape[3]))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        out[rows] = _warped(x[rows], coefficients[rows, :, None, None], fill, sampling)
    return out


def _warped(x: Array, k: Array, fill: float, sampling: str) -> Array:
    count, channels, height, width = x.shape
    at_x, at_y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    from_x = k[:, 0] * at_x + k[:, 1] * at_y + k[:, 2]
    from_y = k[:, 3] * at_x + k[:, 4] * at_y + k[:, 5]
    if k[:, 6:].any():
        depth = k[:, 6] * at_x + k[:, 7] * at_y + 1.0
        depth = np.where(depth > 1e-9, depth, np.nan)  # behind the eye: outside
        from_x, from_y = from_x / depth, from_y / depth
    inside = (from_x >= 0.0) & (from_x < width) & (from_y >= 0.0) & (from_y < height)
    from_x, from_y = np.where(inside, from_x, 0.0), np.where(inside, from_y, 0.0)
    flat = x.reshape(count, channels, height * width)
    if sampling == "nearest":
        places = from_y.astype(np.int64) * width + from_x.astype(np.int64)
        found = _taken(flat, places)
    else:
        from_x, from_y = from_x - 0.5, from_y - 0.5
        left, top = np.floor(from_x), np.floor(from_y)
        across, down = ((from_x - left).astype(np.float32), (from_y - top).astype(np.float32))
        x0, x1 = (np.clip(left + n, 0, width - 1).astype(np.int64) for n in (0, 1))
        y0, y1 = (np.clip(top + n, 0, height - 1).astype(np.int64) * width for n in (0, 1))
        across, down = across.reshape(count, 1, -1), down.reshape(count, 1, -1)
        upper, lower = _taken(flat, y0 + x0), _taken(flat, y1 + x0)
        upper += (_taken(flat, y0 + x1) - upper) * across
        lower += (_taken(flat, y1 + x1) - lower) * across
        found = upper + (lower - upper) * down
    found = np.where(inside.reshape(count, 1, -1), found, np.float32(fill))
    return found.reshape(x.shape)


def _taken(flat: Array, places: Array) -> Array:
    """(N, C, P) of pixels (N, C, H W) at places (N, H, W) of each image."""
    count, channels, size = flat.shape
    offsets = (np.arange(count * channels) * size).reshape(count, channels, 1)
    result: Array = flat.reshape(-1).take(places.reshape(count, 1, -1) + offsets)
    return result
