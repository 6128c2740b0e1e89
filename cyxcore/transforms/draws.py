"""The random numbers of a batch of images: one per row and use, of nothing but (seed, step, row)."""

from typing import Any

import numpy as np

from cyxcore.kernels.philox import uniform_words
from cyxcore.variates import Source

Array = np.ndarray[Any, Any]


class Draws:
    """Each call draws anew, with a number for each of `rows` rows. Every machine draws the same."""

    def __init__(self, seed: int, step: int, rows: int) -> None:
        self.seed, self.step, self.rows, self._stream = seed, step, rows, 0

    def _next(self) -> int:
        self._stream += 1
        return self._stream - 1

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Array:
        """(rows,) float64, low <= u < high."""
        words = uniform_words(self.seed, self.step, self._next(), self.rows)
        result: Array = low + (high - low) * (words * 2.0**-32)
        return result

    def below(self, count: int | Array) -> Array:
        """(rows,) int64, 0 <= n < count."""
        words = uniform_words(self.seed, self.step, self._next(), self.rows).astype(np.uint64)
        result: Array = (words * np.asarray(count, np.uint64) >> np.uint64(32)).astype(np.int64)
        return result

    def chosen(self, p: float) -> Array:
        """(rows,) bool: True with probability p."""
        return self.uniform() < p

    def signs(self) -> Array:
        """(rows,) float64: 1 or -1."""
        return np.where(self.chosen(0.5), 1.0, -1.0)

    def order(self, count: int) -> Array:
        """(rows, count) int64: the numbers below count in an order for each row."""
        words = uniform_words(self.seed, self.step, self._next(), self.rows * count)
        return np.argsort(words.reshape(self.rows, count), axis=1, kind="stable")

    def source(self) -> Source:
        """For distributions that need more: numbers of streams that no other call uses."""
        source = Source(self.seed, self.step)
        source.stream = (self._next() + 1) << 16
        return source
