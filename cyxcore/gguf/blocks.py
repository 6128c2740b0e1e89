"""How GGUF stores the elements of a tensor: plain numbers, or blocks of small integers with shared scales.

The layouts are those of ggml (https://github.com/ggml-org/ggml, ggml-common.h). A row of a tensor is a whole number of
blocks; an element of a block is scale (q - offset) - minimum, with the scale and minimum of its group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import DataError, FormatError

Array = np.ndarray[Any, Any]

SUPER = 256  # elements in a block of the K formats
CHUNK_BLOCKS = 4096  # blocks unpacked at once: bounds the memory beside the result


class TensorType(NamedTuple):
    """One way to store elements."""

    name: str
    number: int
    block_size: int
    """Elements in a block."""
    block_bytes: int

    def bytes_of(self, elements: int) -> int:
        return elements // self.block_size * self.block_bytes


_TYPES = (
    TensorType("F32", 0, 1, 4),
    TensorType("F16", 1, 1, 2),
    TensorType("Q4_0", 2, 32, 18),
    TensorType("Q4_1", 3, 32, 20),
    TensorType("Q5_0", 6, 32, 22),
    TensorType("Q5_1", 7, 32, 24),
    TensorType("Q8_0", 8, 32, 34),
    TensorType("Q8_1", 9, 32, 36),
    TensorType("Q2_K", 10, SUPER, 84),
    TensorType("Q3_K", 11, SUPER, 110),
    TensorType("Q4_K", 12, SUPER, 144),
    TensorType("Q5_K", 13, SUPER, 176),
    TensorType("Q6_K", 14, SUPER, 210),
    TensorType("Q8_K", 15, SUPER, 292),
    TensorType("IQ4_NL", 20, 32, 18),
    TensorType("IQ4_XS", 23, SUPER, 136),
    TensorType("I8", 24, 1, 1),
    TensorType("I16", 25, 1, 2),
    TensorType("I32", 26, 1, 4),
    TensorType("I64", 27, 1, 8),
    TensorType("F64", 28, 1, 8),
    TensorType("BF16", 30, 1, 2),
)
BY_NAME = {kind.name: kind for kind in _TYPES}
BY_NUMBER = {kind.number: kind for kind in _TYPES}
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


class Unpacked(NamedTuple):
    """Blocks taken apart. An element is scale[g] (q - offset) - minimum[g], where g is its group."""

    q: Array
    """uint8 (blocks, block_size)"""
    offset: int
    halves: Array
    """float16 (blocks, 1 or 2): of the scales, and of the minima where there are any"""
    subs: Array | None = None
    """uint8 or int8 (blocks, 1 or 2, groups): what each group has of them; None: one group with all"""

    def scales(self) -> Array:
        """float32 (blocks, groups)"""
        return self._of_groups(0)

    def minima(self) -> Array | None:
        return self._of_groups(1) if self.halves.shape[1] == 2 else None

    def _of_groups(self, which: int) -> Array:
        whole = self.halves[:, which : which + 1].astype(np.float32)
        return whole if self.subs is None else whole * self.subs[:, which].astype(np.float32)


def _halves(raw: Array) -> Array:
    """(blocks, 2 n) bytes -> float16 (blocks, n)."""
    return np.ascontiguousarray(raw).view("<f2")


def _nibbles(raw: Array, run: int) -> Array:
    """Runs of `run` bytes, whose low halves come first, then their high ones: (blocks, n) -> (blocks, 2 n)."""
    runs = raw.reshape(len(raw), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], 2).reshape(len(raw), -1)


def _unpack_q8_0(raw: Array) -> Unpacked:
    return Unpacked(raw[:, 2:] ^ 128, 128, _halves(raw[:, :2]))  # from two's complement to an offset of 128


def _unpack_q4_0(raw: Array) -> Unpacked:
    return Unpacked(_nibbles(raw[:, 2:], 16), 8, _halves(raw[:, :2]))


def _six_bits(raw: Array) -> Array:
    """Twelve bytes hold eight scales and eight minima of 6 bits: (blocks, 12) -> uint8 (blocks, 2, 8).

    Bytes 0-3 and 4-7 have the first four of each in their low 6 bits, and above them the top 2 bits of the last four,
    whose low halves share bytes 8-11.
    """
    a, b, c = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales, minima = [a & 63, (c & 15) | (a >> 6 << 4)], [b & 63, (c >> 4) | (b >> 6 << 4)]
    return np.concatenate([*scales, *minima], 1).reshape(-1, 2, 8)


def _unpack_q4_k(raw: Array) -> Unpacked:
    return Unpacked(_nibbles(raw[:, 16:], 32), 0, _halves(raw[:, :4]), _six_bits(raw[:, 4:16]))


def _unpack_q5_k(raw: Array) -> Unpacked:
    fifth = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # bit g of byte i: element 32 g + i
    q = _nibbles(raw[:, 48:], 32) | fifth.reshape(len(raw), SUPER) << 4
    return Unpacked(q, 0, _halves(raw[:, :4]), _six_bits(raw[:, 4:16]))


def _unpack_q6_k(raw: Array) -> Unpacked:
    high = raw[:, 128:192].reshape(len(raw), 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    q = _nibbles(raw[:, :128], 64) | high.reshape(len(raw), SUPER) << 4
    return Unpacked(q, 32, _halves(raw[:, 208:210]), raw[:, None, 192:208].view(np.int8))


UNPACK: dict[str, Callable[[Array], Unpacked]] = {
    "Q8_0": _unpack_q8_0,
    "Q4_0": _unpack_q4_0,
    "Q4_K": _unpack_q4_k,
    "Q5_K": _unpack_q5_k,
    "Q6_K": _unpack_q6_k,
}
READABLE = (*PLAIN, "BF16", *UNPACK)


def unpack(raw: Array, name: str) -> Unpacked:
    """Blocks of a quantised type taken apart. raw: uint8, whole blocks."""
    return UNPACK[name](raw.reshape(-1, BY_NAME[name].block_bytes))


def dequantize(raw: Array, name: str) -> Array:
    """float32 (elements,) of a tensor's bytes (uint8). The numbers are those of ggml, bit for bit."""
    if name in PLAIN:
        return np.ascontiguousarray(raw).view(PLAIN[name]).astype(np.float32)
    if name == "BF16":
        return (np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16).view(np.float32)
    if name not in UNPACK:
        raise FormatError(f"gguf: cannot read {name}; those that can be read are {', '.join(READABLE)}")
    kind = BY_NAME[name]
    blocks = raw.reshape(-1, kind.block_bytes)
    out = np.empty((len(blocks), kind.block_size), np.float32)
    for start in range(0, len(blocks), CHUNK_BLOCKS):
        with np.errstate(invalid="ignore", over="ignore"):  # a file may hold scales that are infinite
            got = UNPACK[name](blocks[start : start + CHUNK_BLOCKS])
            scales, minima = got.scales(), got.minima()
            values = (got.q.astype(np.float32) - np.float32(got.offset)).reshape(len(got.q), scales.shape[1], -1)
            values *= scales[:, :, None]
            if minima is not None:
                values -= minima[:, :, None]
        out[start : start + CHUNK_BLOCKS] = values.reshape(len(got.q), -1)
    return out.reshape(-1)


def quantize(values: Array, name: str) -> Array:
    """The bytes (uint8) of float32 values. Q8_0, Q4_0, F16 and BF16 are those that ggml makes, bit for bit; the K
    formats search their scales in our own way.

    Raises DataError for values that are no numbers or too large, FormatError where they are no whole blocks.
    """
    if name not in QUANTIZE:
        raise FormatError(f"gguf: cannot write {name}; those that can be written are {', '.join(QUANTIZE)}")
    kind = BY_NAME[name]
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if flat.size % kind.block_size:
        raise FormatError(f"gguf: {name} has blocks of {kind.block_size} elements, got {flat.size}")
    if name in ("F32", "BF16"):
        return QUANTIZE[name](flat)
    if not np.isfinite(flat).all():
        raise DataError(f"gguf: {name} cannot hold values that are infinite or no number")
    with np.errstate(over="raise"):
        try:
            if kind.block_size == 1:
                return QUANTIZE[name](flat)
            blocks = flat.reshape(-1, kind.block_size)
            parts = [QUANTIZE[name](blocks[i : i + CHUNK_BLOCKS]) for i in range(0, len(blocks), CHUNK_BLOCKS)]
        except FloatingPointError:
            raise DataError(f"gguf: {name} cannot hold values as large as {np.abs(flat).max()}") from None
    return np.concatenate(parts).reshape(-1) if parts else np.empty(0, np.uint8)


def _bytes(values: Array, dtype: str) -> Array:
    return np.ascontiguousarray(values.astype(dtype)).view(np.uint8)


def _bf16(flat: Array) -> Array:
    """To nearest, ties to even; a NaN stays one."""
    bits = flat.view(np.uint32)
    nan = bits & 0x7FFFFFFF > 0x7F800000
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return _bytes(np.where(nan, bits >> 16 | 0x40, rounded), "<u2")


def _inverse(scale: Array) -> Array:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0)).astype(np.float32)


def _q8_0(x: Array) -> Array:
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(scale)
    whole = np.floor(np.abs(scaled))
    away = whole + np.floor(2 * (np.abs(scaled) - whole))  # halves away from zero, as C's roundf
    return np.concatenate([_bytes(scale, "<f2"), _bytes(np.sign(scaled) * away, "i1")], 1)


def _q4_0(x: Array) -> Array:
    extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    scale = extreme / np.float32(-8)
    q = (x * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate([_bytes(scale, "<f2"), q[:, :16] | q[:, 16:] << 4], 1)


def _fit_with_minimum(x: Array, levels: int) -> tuple[Array, Array]:
    """Scales and minima >= 0 of groups x (n, 32) so that scale q - minimum with q in [0, levels] is near x.

    Candidates around the range of the group are rounded, refitted by least squares, and the best one stays. Larger
    values count more: the weight is |x| + the root mean square, as the product with an activation would have it.
    """
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    weight = np.abs(x) + np.sqrt((x * x).mean(1, keepdims=True))
    best_error = np.full(len(x), np.inf, np.float32)
    best_scale, best_minimum = (high - low) / np.float32(levels), -low
    total, sum_x = weight.sum(1), (weight * x).sum(1)
    for step in range(-6, 7):
        inverse = _inverse((high - low) / np.float32(levels + 0.1 * step))
        q = np.rint((x - low[:, None]) * inverse[:, None]).clip(0, levels)
        wq = weight * q
        sum_q, sum_qq, sum_qx = wq.sum(1), (wq * q).sum(1), (wq * x).sum(1)
        determinant = total * sum_qq - sum_q * sum_q
        scale = (total * sum_qx - sum_q * sum_x) * _inverse(determinant)
        minimum = -(sum_qq * sum_x - sum_q * sum_qx) * _inverse(determinant)
        below = minimum < 0  # a minimum cannot be added: then the line goes through zero
        scale = np.where(below, sum_qx * _inverse(sum_qq), scale)
        minimum = np.where(below, 0, minimum)
        off = scale[:, None] * q - minimum[:, None] - x
        error = (weight * off * off).sum(1)
        better = (error < best_error) & (determinant > 0) & (scale > 0)
        best_error = np.where(better, error, best_error)
        best_scale, best_minimum = np.where(better, scale, best_scale), np.where(better, minimum, best_minimum)
    return best_scale.astype(np.float32), best_minimum.astype(np.float32)


def _with_minima(x: Array, levels: int) -> tuple[Array, Array]:
    """Blocks x (n, 256) as the 16 bytes of their scales, and q: uint8 (n, 256)."""
    fitted_scale, fitted_minimum = (part.reshape(-1, 8) for part in _fit_with_minimum(x.reshape(-1, 32), levels))
    halves, sixes = [], []
    for part in (fitted_scale, fitted_minimum):
        super_scale = _bytes(part.max(1, keepdims=True) / np.float32(63), "<f2")
        halves.append(super_scale)
        sixes.append(np.rint(part * _inverse(_halves(super_scale).astype(np.float32))).clip(0, 63).astype(np.uint8))
    scales, minima = sixes
    packed = np.concatenate(
        [
            scales[:, :4] | scales[:, 4:] >> 4 << 6,
            minima[:, :4] | minima[:, 4:] >> 4 << 6,
            (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4,
        ],
        1,
    )
    head = np.concatenate([*halves, packed], 1)
    super_scales, subs = _halves(head[:, :4]).astype(np.float32), _six_bits(head[:, 4:16])
    scale, minimum = ((super_scales[:, i, None] * subs[:, i]).reshape(-1, 1) for i in (0, 1))
    q = np.rint((x.reshape(-1, 32) + minimum) * _inverse(scale)).clip(0, levels).astype(np.uint8)
    return head, q.reshape(-1, SUPER)


def _low_halves(q: Array, run: int) -> Array:
    """The inverse of _nibbles, for the low 4 bits of q."""
    runs = q.reshape(len(q), -1, 2, run) & 15
    return (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(len(q), -1)


def _q4_k(x: Array) -> Array:
    head, q = _with_minima(x, 15)
    return np.concatenate([head, _low_halves(q, 32)], 1)


def _q5_k(x: Array) -> Array:
    head, q = _with_minima(x, 31)
    fifth = (q.reshape(-1, 8, 32) >> 4 << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    return np.concatenate([head, fifth, _low_halves(q, 32)], 1)


def _q6_k(x: Array) -> Array:
    groups = x.reshape(-1, 16)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    best, best_error = extreme / np.float32(-32), np.full((len(groups), 1), np.inf, np.float32)
    weight = groups * groups
    for step in range(-9, 10):
        inverse = _inverse(extreme / np.float32(-(32 + 0.1 * step)))
        q = np.rint(groups * inverse).clip(-32, 31)
        scale = (weight * q * groups).sum(1, keepdims=True) * _inverse((weight * q * q).sum(1, keepdims=True))
        error = (weight * (scale * q - groups) ** 2).sum(1, keepdims=True)
        better = error < best_error
        best_error, best = np.where(better, error, best_error), np.where(better, scale, best)
    wanted = best.reshape(-1, 16)
    largest = np.take_along_axis(wanted, np.abs(wanted).argmax(1)[:, None], 1)
    super_scale = _bytes(largest / np.float32(-128), "<f2")
    sub = np.rint(wanted * _inverse(_halves(super_scale).astype(np.float32))).clip(-128, 127)
    scale = (_halves(super_scale).astype(np.float32) * sub).astype(np.float32).reshape(-1, 1)
    q = (np.rint(groups * _inverse(scale)).clip(-32, 31) + 32).astype(np.uint8).reshape(-1, SUPER)
    high = q.reshape(-1, 2, 4, 32) >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return np.concatenate(
        [_low_halves(q, 64), high.sum(2, dtype=np.uint8).reshape(-1, 64), _bytes(sub, "i1"), super_scale], 1
    )


QUANTIZE: dict[str, Callable[[Array], Array]] = {
    "F32": lambda flat: _bytes(flat, "<f4"),
    "F16": lambda flat: _bytes(flat, "<f2"),
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
