"""The matrices of a model as its kernels want them: panels of 16 rows, still quantised.

The bytes of a GGUF tensor are reordered once, when a model is opened; what each number means does not change.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cyxcore.errors import FormatError
from cyxcore.gguf.blocks import BY_NAME, PLAIN, unpack
from cyxcore.kernels.language import BLOCK_COLUMNS, KINDS, PANEL_ROWS, Matrix

Array = np.ndarray[Any, Any]

NIBBLES = ("Q4_0", "Q4_K")
CHUNK_ELEMENTS = 1 << 22  # how much is taken apart at once: bounds the memory beside the result


def pack(raw: Array, kind: str, rows: int, columns: int) -> Matrix:
    """The matrix of a tensor's bytes (uint8). Raises FormatError for a type that no kernel multiplies with."""
    return stack([(raw, rows)], kind, columns)


def stack(parts: Sequence[tuple[Array, int]], kind: str, columns: int) -> Matrix:
    """Tensors of one type and width above each other, as one matrix: (bytes, rows) of each."""
    if kind not in KINDS:
        raise FormatError(f"llm: cannot multiply with {kind}; those that can be are {', '.join(KINDS)}")
    row_bytes = BY_NAME[kind].bytes_of(columns)
    together = [raw.reshape(rows, row_bytes) for raw, rows in parts]
    raw = together[0] if len(together) == 1 else np.concatenate(together)
    panels = -(-len(raw) // PANEL_ROWS)
    _, value_bytes, half_bytes, sub_bytes, unit = KINDS[kind]
    units = panels * (columns // unit)
    values, halves, subs = (np.empty(units * size, np.uint8) for size in (value_bytes, half_bytes, sub_bytes))
    at_once = max(1, CHUNK_ELEMENTS // (columns * PANEL_ROWS))
    for first in range(0, panels, at_once):
        last = min(first + at_once, panels)
        chunk = raw[first * PANEL_ROWS : last * PANEL_ROWS]
        missing = (last - first) * PANEL_ROWS - len(chunk)
        if missing:
            chunk = np.concatenate([chunk, np.zeros((missing, row_bytes), np.uint8)])
        for whole, part in zip((values, halves, subs), _panels(chunk, kind, columns), strict=True):
            each = whole.size // panels
            whole[first * each : last * each] = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    return Matrix(kind, len(raw), columns, values, halves, subs)


def _panels(raw: Array, kind: str, columns: int) -> tuple[Array, Array, Array]:
    """Values, halves and subs of whole panels. raw: uint8 (rows, bytes of a row)."""
    panels, nothing = len(raw) // PANEL_ROWS, np.empty(0, np.uint8)
    if kind in PLAIN or kind == "BF16":
        size = BY_NAME[kind].block_bytes
        return raw.reshape(panels, PANEL_ROWS, columns, size).transpose(0, 2, 1, 3), nothing, nothing
    got = unpack(raw, kind)
    if kind in NIBBLES:
        pairs = got.q.reshape(panels, PANEL_ROWS, columns // 8, 2, 4)
        values = (pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4).transpose(0, 2, 1, 3)
    else:
        values = got.q.reshape(panels, PANEL_ROWS, columns // 4, 4).transpose(0, 2, 1, 3)
    halves = got.halves.reshape(panels, PANEL_ROWS, -1, got.halves.shape[1]).transpose(0, 2, 3, 1)
    if got.subs is None:
        return values, halves, nothing
    return values, halves, got.subs.reshape(panels, PANEL_ROWS, -1, *got.subs.shape[1:]).transpose(0, 2, 4, 3, 1)


def quantised_activations(x: Array) -> tuple[Array, Array]:
    """What a kernel makes of activations before it multiplies them with quantised weights, said in NumPy.

    x: float32 (N, columns). Returns q: int8 of that shape, and scale: float32 (N, columns / 32).
    """
    blocks = x.reshape(len(x), -1, BLOCK_COLUMNS)
    greatest = np.abs(blocks).max(2, keepdims=True)
    usable = greatest > np.float32(2.0**-100)
    inverse = np.where(usable, np.float32(127) / np.where(usable, greatest, 1), np.float32(0)).astype(np.float32)
    scale = np.where(usable, greatest / np.float32(127), 0).astype(np.float32)
    return np.rint(blocks * inverse).astype(np.int8).reshape(x.shape), scale[:, :, 0]
