"""The generator behind randn, dropout and new layers: Philox keyed by a seed, one step per draw."""

from typing import Any

import numpy as np

from cyxcore.errors import ShapeError

Array = np.ndarray[Any, Any]


class Generator:
    """The eager random numbers: Philox keyed by a seed, one step per draw."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.step = 0

    def next_key(self) -> Array:
        self.step += 1
        return np.array([self.seed, self.step], np.uint64)


_generator = Generator()


def manual_seed(seed: int) -> None:
    """Start the random numbers of randn, dropout and new layers anew."""
    if not 0 <= seed < 2**64:
        raise ShapeError(f"manual_seed: expected 0 <= seed < 2**64, got {seed}")
    _generator.seed, _generator.step = seed, 0


def generator_state() -> tuple[int, int]:
    """(seed, step) of the eager generator, for set_generator_state."""
    return _generator.seed, _generator.step


def set_generator_state(state: tuple[int, int]) -> None:
    _generator.seed, _generator.step = state


def next_key() -> Array:
    """A fresh (seed, step) pair of the eager generator."""
    return _generator.next_key()
