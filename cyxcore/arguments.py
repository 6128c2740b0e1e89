"""What a compiled function is called with: tensors, also in dicts, lists, tuples and dataclasses, and what decides how
it runs.

Arrays and lists of numbers become tensors. A number is read anew in each call and has the dtype of what it meets, until
the function asks for its value: then numbers, integers first, are a part of the plan. So are texts, None, True and
False, and the form of what holds the tensors.
"""

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from cyxcore.eager import Tensor
from cyxcore.errors import CyxError, GraphError
from cyxcore.symbols import Number, Symbol

_PARTS = (str, bool, type(None))  # of the plan


class IsAPart(Exception):  # noqa: N818 - no error: what is compiled around a function has made symbols of what it reads
    pass


class NumbersAsked(Exception):  # noqa: N818 - no error: the function asks for values of numbers it was given
    pass


Given = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a call, and those with names


class Form(NamedTuple):
    """What decides which plan serves, besides shapes and dtypes."""

    tree: tuple[Any, ...]
    numbers: frozenset[type]  # the kinds of those that are read in each call


NO_FORM = Form((), frozenset())


def taken_apart(given: Given, fixed: tuple[type, ...] = ()) -> tuple[list[Tensor], Form]:
    """The tensors of arguments in order, and their form.

    fixed: of which kinds (int, float) numbers are a part of the plan. Raises IsAPart where there are symbols in it,
    GraphError for what is neither.
    """
    found: list[Tensor] = []
    numbers: set[type] = set()

    def form(tree: Any) -> Any:
        if isinstance(tree, Symbol):
            raise IsAPart
        if isinstance(tree, (*_PARTS, *fixed)):
            return type(tree), repr(tree)
        if isinstance(tree, dict):
            return type(tree), tuple(tree), *[form(part) for part in tree.values()]
        if _is_record(tree):
            held = _attributes(tree)
            return type(tree), tuple(held), *[form(part) for part in held.values()]
        if _is_held(tree):
            return type(tree), *[form(part) for part in _parts(tree)]
        kind = _kind(tree)
        if kind is not None:
            numbers.add(kind)
        found.append(tree if isinstance(tree, Tensor) else _tensor_of(tree, kind))
        return kind

    inputs, named = given
    tree = [form(each) for each in (*inputs, *named.values())]
    return found, Form((*tree, len(inputs), *named), frozenset(numbers))


def with_others(given: Given, others: Iterable[Any], fixed: tuple[type, ...] = ()) -> Given:
    """The arguments with others in the places of taken_apart's tensors, in new dicts, lists, tuples and dataclasses."""
    rest = iter(others)

    def put(tree: Any) -> Any:
        if isinstance(tree, (*_PARTS, *fixed)):
            return tree
        if isinstance(tree, dict):
            made = copy.copy(tree)
            made.update({key: put(part) for key, part in tree.items()})
            return made
        if _is_record(tree):
            made = copy.copy(tree)
            for name, part in _attributes(tree).items():
                object.__setattr__(made, name, put(part))  # also of one that is frozen
            return made
        if _is_held(tree):
            parts = [put(part) for part in _parts(tree)]
            return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
        other = next(rest)
        is_number = _kind(tree) is not None and isinstance(other, Symbol)
        return Number(other.builder, other.node) if is_number else other

    return tuple([put(each) for each in given[0]]), {name: put(each) for name, each in given[1].items()}


def _is_record(tree: Any) -> bool:
    """Whether it is an object of a dataclass."""
    return dataclasses.is_dataclass(tree) and not isinstance(tree, (type, Tensor, Symbol))


def _attributes(record: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(record) if hasattr(record, field.name)]
    return {name: getattr(record, name) for name in (*names, *getattr(record, "__dict__", {}))}


def _is_held(tree: Any) -> bool:
    """Whether a list or tuple holds arguments, and is not itself the numbers of a tensor."""
    if not isinstance(tree, (list, tuple)):
        return False
    held = (Tensor, Symbol, np.ndarray, dict, str, type(None))
    return not tree or any(isinstance(part, held) or _is_record(part) or _is_held(part) for part in _parts(tree))


def _parts(tree: Any) -> Iterable[Any]:
    return tuple.__iter__(tree) if isinstance(tree, tuple) else tree  # what a PackedSequence is made of, not shows


def _kind(value: Any) -> type | None:
    """Of a Python number, whose dtype is that of the tensor beside it; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float if isinstance(value, float) else int


def _tensor_of(value: Any, kind: type | None) -> Tensor:
    try:
        return Tensor(value, None if kind is None else "float64" if kind is float else "int64")
    except CyxError as error:
        raise GraphError(
            "compile: expected arguments of tensors, arrays, numbers, texts and None, also in dicts, lists, tuples and "
            f"dataclasses, got a {type(value).__name__} ({error})"
        ) from None
