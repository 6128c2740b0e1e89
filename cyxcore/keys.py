"""The generator behind randn, dropout and new layers: Philox keyed by a seed, one step per draw."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from cyxcore.errors import GraphError, ShapeError

Array = np.ndarray[Any, Any]


Draw = Callable[[], Any]


class _Drawing(threading.local):
    """Of a thread in which a function is being compiled: what takes a draw, and gives what stands for it there."""

    again: "Callable[[Generator, Draw], Any] | None" = None


_drawing = _Drawing()


def _refuse(what: str) -> NoReturn:
    raise GraphError(
        f"compile: {what} would be of the first call alone; set seeds outside, and give what you draw as an argument "
        "(rand, randn, cx.random and dropout draw anew in each call)"
    )


class Generator:
    """The eager random numbers: Philox keyed by a seed, one step per draw."""

    passing = False  # made in a function that is being compiled: what it draws is the same in every call

    def __init__(self, seed: int = 0) -> None:
        if _drawing.again is not None:
            if hasattr(self, "seed"):  # one that is there already starts anew
                _refuse("a seed")
            self.passing = True
        self.seed = seed
        self.step = 0

    def next_key(self) -> Array:
        if _drawing.again is not None:
            _refuse("what is drawn here")
        self.step += 1
        return np.array([self.seed, self.step], np.uint64)

    def go_back(self, step: int) -> None:
        """To where it was after so many draws."""
        self.step = step


_generator = Generator()


@contextmanager
def drawing_again(by: "Callable[[Generator, Draw], Any] | None") -> Iterator[None]:
    """Within the block `by` takes the draws of this thread, as a compiled function makes them anew in each call."""
    before, _drawing.again = _drawing.again, by
    try:
        yield
    finally:
        _drawing.again = before


def drawn(generator: Generator | None, draw: Draw) -> Any:
    """draw(), which takes keys of a generator (None: of the one manual_seed sets), or what stands for it in a graph."""
    by = _drawing.again
    if by is None:
        return draw()
    with drawing_again(None):
        return draw() if generator is not None and generator.passing else by(generator or _generator, draw)


def manual_seed(seed: int) -> None:
    """Start the random numbers of randn, dropout and new layers anew."""
    if _drawing.again is not None:
        _refuse("manual_seed")
    if not 0 <= seed < 2**64:
        raise ShapeError(f"manual_seed: expected 0 <= seed < 2**64, got {seed}")
    _generator.seed, _generator.step = seed, 0


def generator_state() -> tuple[int, int]:
    """(seed, step) of the eager generator, for set_generator_state."""
    return _generator.seed, _generator.step


def check_may_go_back() -> None:
    """Raises GraphError in a function that is being compiled: its draws are made anew, in the calls."""
    if _drawing.again is not None:
        _refuse("the same draws again")


def set_generator_state(state: tuple[int, int]) -> None:
    _generator.seed, _generator.step = state


def next_key() -> Array:
    """A fresh (seed, step) pair of the eager generator."""
    return _generator.next_key()
