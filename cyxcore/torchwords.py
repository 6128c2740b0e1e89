"""PyTorch's words for an axis, beside NumPy's: dim and keepdim, size(0), (values, indices) of a search.

A call that says `dim` means what it means in PyTorch, one that says `axis` what it means in NumPy.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from cyxcore.errors import AxisError, SpecError


class Count(int):
    """How many elements a value has. NumPy's x.size is a number and PyTorch's x.size(0) a call: this is both."""

    shape: tuple[int, ...]

    def __new__(cls, count: int, shape: tuple[int, ...]) -> Self:
        made = super().__new__(cls, count)
        made.shape = shape
        return made

    def __reduce__(self) -> Any:
        return int, (int(self),)  # copied and stored it is the number

    def __call__(self, dim: int | None = None) -> Any:
        if dim is None:
            return self.shape
        if not -len(self.shape) <= dim < len(self.shape):
            raise AxisError(f"size: expected an axis {-len(self.shape)}..{len(self.shape) - 1}, got {dim}")
        return self.shape[dim]


class Picked(NamedTuple):
    """What a search along an axis found, and where."""

    values: Any
    indices: Any


def in_words(method: str, axis: Any, keepdims: bool, words: dict[str, Any]) -> tuple[Any, bool]:
    """(axis, keepdims) where they may be given by PyTorch's words, dim and keepdim. Raises TypeError for others."""
    if unknown := set(words) - {"dim", "keepdim"}:
        raise TypeError(f"{method}() got an unexpected keyword argument {min(unknown)!r}")
    return words.get("dim", axis), words.get("keepdim", keepdims)


def worded(function: Any, words: Mapping[str, str], places: str = "") -> Any:
    """A function of keywords that takes PyTorch's words for them too: {its word: ours}.

    places: what PyTorch gives by its place after the first argument, by our words. None for a norm is the usual one.
    """
    order = places.split()

    @functools.wraps(function)
    def call(x: Any, /, *given: Any, **options: Any) -> Any:
        if not words.keys().isdisjoint(options):
            options = {words.get(name, name): value for name, value in options.items()}
        if order:
            options = dict(zip(order, given, strict=False)) | options
            given = given[len(order) :]
            if options.get("norm", "") is None:
                del options["norm"]
        return function(x, *given, **options)

    return call


def accept(makers: Iterable[Any], only: Mapping[str, Any], ignored: str = "") -> None:
    """Let classes be made with options that PyTorch has and they have not.

    only: {option: the one value it may have here}; any other is a SpecError that says so. ignored: names of options
    that say how to be fast, and change nothing here.
    """
    names = {*only, *ignored.split()}

    def wrapped(init: Any) -> Any:
        @functools.wraps(init)
        def made(self: Any, *args: Any, **options: Any) -> None:
            if options and not names.isdisjoint(options):
                for name in names & set(options):
                    value = options.pop(name)
                    each = value if isinstance(value, (tuple, list)) else (value,)  # of each axis
                    if name in only and any(one != only[name] for one in each):
                        raise SpecError(f"{type(self).__name__}: {name} is always {only[name]} here, got {value!r}")
            init(self, *args, **options)

        return made

    for maker in makers:
        maker.__init__ = wrapped(maker.__init__)


def placed(makers: Iterable[Any]) -> None:
    """Let modules be made with device= and dtype=: where their parameters are, and what float dtype they have."""

    def wrapped(init: Any) -> Any:
        @functools.wraps(init)
        def made(self: Any, *args: Any, device: Any = None, dtype: Any = None, **options: Any) -> None:
            init(self, *args, **options)
            if device is not None or dtype is not None:
                self.to(device=device, dtype=dtype)

        return made

    for maker in makers:
        maker.__init__ = wrapped(maker.__init__)
