"""What a compiled function is called with: tensors, also in dicts, lists and tuples, and what decides how it runs.

Arrays, numbers and lists of numbers become tensors. Texts, None, True and False stay what they are, and are a part of
the plan, as is the form of what holds the tensors.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cyxcore.eager import Tensor
from cyxcore.errors import CyxError, GraphError
from cyxcore.symbols import Symbol

_PARTS = (str, bool, type(None))  # of the plan


class IsAPart(Exception):  # noqa: N818 - no error: what is compiled around a function has made symbols of what it reads
    pass


Given = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a call, and those with names


def taken_apart(given: Given) -> tuple[list[Tensor], Any]:
    """The tensors of arguments in order, and their form, which is equal where one plan serves.

    Raises IsAPart where there are symbols in it, GraphError for what is neither.
    """
    found: list[Tensor] = []
    inputs, named = given
    form = [_form(each, found) for each in (*inputs, *named.values())]
    return found, (*form, len(inputs), *named)


def with_others(given: Given, others: Iterable[Any]) -> Given:
    """The arguments with others in the places of taken_apart's tensors, in new dicts, lists and tuples."""
    rest = iter(others)
    inputs = tuple([_changed(each, lambda _: next(rest)) for each in given[0]])
    return inputs, {name: _changed(each, lambda _: next(rest)) for name, each in given[1].items()}


def _form(tree: Any, found: list[Tensor]) -> Any:
    if isinstance(tree, Symbol):
        raise IsAPart
    if isinstance(tree, _PARTS):
        return type(tree), tree
    if isinstance(tree, dict):
        return type(tree), tuple(tree), *[_form(part, found) for part in tree.values()]
    if _is_held(tree):
        return type(tree), *[_form(part, found) for part in _parts(tree)]
    found.append(tree if isinstance(tree, Tensor) else _tensor_of(tree))
    return None


def _changed(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, _PARTS):
        return tree
    if isinstance(tree, dict):
        made = copy.copy(tree)
        made.update({key: _changed(part, change) for key, part in tree.items()})
        return made
    if not _is_held(tree):
        return change(tree)
    parts = [_changed(part, change) for part in _parts(tree)]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _is_held(tree: Any) -> bool:
    """Whether a list or tuple holds arguments, and is not itself the numbers of a tensor."""
    if not isinstance(tree, (list, tuple)):
        return False
    held = (Tensor, Symbol, np.ndarray, dict, str, type(None))
    return not tree or any(isinstance(part, held) or _is_held(part) for part in _parts(tree))


def _parts(tree: Any) -> Iterable[Any]:
    return tuple.__iter__(tree) if isinstance(tree, tuple) else tree  # what a PackedSequence is made of, not shows


def _tensor_of(value: Any) -> Tensor:
    try:
        return Tensor(value)
    except CyxError as error:
        raise GraphError(
            "compile: expected arguments of tensors, arrays, numbers, texts and None, also in dicts, lists and tuples, "
            f"got a {type(value).__name__} ({error})"
        ) from None
