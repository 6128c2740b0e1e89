"""Philox4x32-10 in NumPy: random words that depend on nothing but (seed, step, stream, index).

J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11. Integer arithmetic only,
so every machine draws the same bits.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: Array, key: tuple[int, int]) -> Array:
    """Ten rounds. counter: uint32 (..., 4), key: two words of 32 bits. Returns uint32 (..., 4)."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def uniform_words(seed: int, step: int, stream: int, count: int) -> Array:
    """`count` words of 32 random bits: key = seed, counter = (block, stream, step low, step high)."""
    blocks = -(-count // 4)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks, dtype=np.uint64) & _LOW
    counter[:, 1:] = stream, step & 0xFFFFFFFF, step >> 32 & 0xFFFFFFFF
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)).reshape(-1)[:count]
