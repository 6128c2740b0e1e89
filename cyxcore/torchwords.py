"""PyTorch's words beside NumPy's: dim and keepdim, size(0), (values, indices) of a search, names of arguments.

A call that says `dim` means what it means in PyTorch, one that says `axis` what it means in NumPy.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

from cyxcore.errors import AxisError, SpecError

# What PyTorch calls the arguments of a function, in its order; of what is not here the first is `input`. A word for
# which the function here has none of that name stands for what has its place.
ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(("allclose", "isclose"), "input other rtol atol equal_nan"),
    "arange": "start end step",
    **dict.fromkeys(("bmm", "mm"), "input mat2"),
    "broadcast_to": "input size",
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), "tensors dim"),
    **dict.fromkeys(("column_stack", "dstack", "hstack", "row_stack", "vstack"), "tensors"),
    "cdist": "x1 x2",
    "cholesky_solve": "input input2",
    "cosine_similarity": "x1 x2",
    **dict.fromkeys(("empty", "ones", "rand", "randn", "zeros"), "size"),
    "expand_dims": "input dim",
    "eye": "n m",
    "flip": "input dims",
    "full": "size fill_value",
    "isin": "elements test_elements",
    "linspace": "start end steps",
    "matrix_power": "input n",
    **dict.fromkeys(("moveaxis", "movedim"), "input source destination"),
    "mv": "input vec",
    "outer": "input vec2",
    "permute": "input dims",
    "polar": "abs angle",
    "reshape": "input shape",
    "roll": "input shifts dims",
    "searchsorted": "sorted_sequence input",
    "split": "tensor split_size_or_sections dim",
    "swapaxes": "input axis0 axis1",
    "take": "input index",
    "tensordot": "a b dims",
    "tile": "input dims",
    "topk": "input k dim largest sorted",
    "transpose": "input dim0 dim1",
    "trapezoid": "y x",
    "trapz": "y x",
    **dict.fromkeys(("tril", "triu"), "input diagonal"),
    "where": "condition input other",
}
LINALG: dict[str, str] = {
    **dict.fromkeys("cholesky det eig eigh eigvals eigvalsh inv matrix_norm pinv qr slogdet svdvals".split(), "A"),
    "cross": "input other",
    "diagonal": "A offset",
    "matrix_power": "A n",
    "matrix_rank": "A",
    "norm": "A ord dim",
    "solve": "A B",
    "svd": "A full_matrices",
    "vecdot": "x y",
}


def _places(function: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str], bool]:
    """The names a function's arguments have by their place, all their names, and whether it takes any number."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return ("",), frozenset(), False
    count = code.co_argcount
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    return names[:count], frozenset(names), bool(code.co_flags & inspect.CO_VARARGS)


def spoken(home: str, name: str, function: Callable[..., Any], said: str) -> Callable[..., Any]:
    """A function that takes PyTorch's words for its arguments too, and says that there is no out=.

    home: the module whose name it is, by which it is pickled. said: the words, as in ARGUMENTS.
    """
    by_place, known, any_number = _places(function)
    words, most = said.split(), len(by_place)
    own = [word if word in known else by_place[at] if at < most else word for at, word in enumerate(words)]
    rest = [] if any_number or not known.issuperset(own[most:]) else own[most:]  # which only have names here

    @functools.wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        if options:
            if options.pop("out", None) is not None:
                raise SpecError(
                    f"{name}: there is no out=, a result is a new tensor; write y = {name}(...) or y.copy_(...)"
                )
            in_order = True
            for at in range(len(given), len(words)):
                if words[at] not in options:
                    in_order = False
                elif in_order and (at < most or any_number):
                    given = (*given, options.pop(words[at]))
                else:
                    options[own[at]] = options.pop(words[at])
        if rest and len(given) > most:
            options.update(zip(rest, given[most:], strict=False))
            given = given[:most] + given[most + len(rest) :]
        return function(*given, **options)

    call.__module__, call.__qualname__ = home, name
    return call


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
