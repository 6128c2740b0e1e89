"""An ordered map whose every subtree carries a summary of what is in it. Pure; a tree never changes, a new one is made.

A weight-balanced binary tree (Adams 1993, with the parameters Hirai and Yamamoto 2011 proved): `put` and `drop` cost
O(log n) and share everything else with the tree before. The summary of a subtree, e.g. the best score in it, lets
a search leave out whatever cannot hold what it looks for. Keys are compared with < and ==; None is the empty tree.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

from msgspec import Struct

DELTA, RATIO = 3, 2  # no side is more than DELTA times as heavy as the other; RATIO picks the rotation


class Tree(Struct, frozen=True, gc=False):
    """One key with its value, what is before it and what is after it. gc=False: a tree cannot hold itself."""

    key: Any
    value: Any
    before: Optional["Tree"]
    after: Optional["Tree"]
    size: int
    summary: Any


# (value, key, summary of what is before or None, of what is after or None) -> the summary of all of it
Summarise = Callable[[Any, Any, Any, Any], Any]


def put(tree: Tree | None, key: Any, value: Any, summarise: Summarise) -> Tree:
    """The tree with `key`; its old value is replaced."""
    if tree is None:
        return Tree(key, value, None, None, 1, summarise(value, key, None, None))
    if key == tree.key:
        return _node(key, value, tree.before, tree.after, summarise)
    if key < tree.key:
        return _balanced(tree.key, tree.value, put(tree.before, key, value, summarise), tree.after, summarise)
    return _balanced(tree.key, tree.value, tree.before, put(tree.after, key, value, summarise), summarise)


def drop(tree: Tree | None, key: Any, summarise: Summarise) -> Tree | None:
    """The tree without `key`. Raises KeyError when it is not there: who keeps an index knows what is in it."""
    if tree is None:
        raise KeyError(key)
    if key == tree.key:
        return _joined(tree.before, tree.after, summarise)
    if key < tree.key:
        return _balanced(tree.key, tree.value, drop(tree.before, key, summarise), tree.after, summarise)
    return _balanced(tree.key, tree.value, tree.before, drop(tree.after, key, summarise), summarise)


def built(items: Sequence[tuple[Any, Any]], summarise: Summarise) -> Tree | None:
    """The tree of (key, value) pairs that are sorted by their keys, in linear time."""
    if not items:
        return None
    middle = len(items) // 2
    key, value = items[middle]
    return _node(key, value, built(items[:middle], summarise), built(items[middle + 1 :], summarise), summarise)


def walk(tree: Tree | None) -> Iterator[tuple[Any, Any]]:
    """Every (key, value), in order."""
    if tree is not None:
        yield from walk(tree.before)
        yield tree.key, tree.value
        yield from walk(tree.after)


def size(tree: Tree | None) -> int:
    return tree.size if tree else 0


def count_below(tree: Tree | None, key: Any) -> int:
    """How many keys are less than `key`."""
    count = 0
    while tree is not None:
        if tree.key < key:
            count += 1 + size(tree.before)
            tree = tree.after
        else:
            tree = tree.before
    return count


def _node(key: Any, value: Any, before: Tree | None, after: Tree | None, summarise: Summarise) -> Tree:
    count, first, last = 1, None, None
    if before is not None:
        count, first = count + before.size, before.summary
    if after is not None:
        count, last = count + after.size, after.summary
    return Tree(key, value, before, after, count, summarise(value, key, first, last))


def _balanced(key: Any, value: Any, before: Tree | None, after: Tree | None, summarise: Summarise) -> Tree:
    """The node, rotated when one side has become too heavy by one key."""
    lighter = before.size if before is not None else 0
    heavier = after.size if after is not None else 0
    if lighter + heavier > 1:
        if heavier > DELTA * lighter:
            return _turned_left(key, value, before, after, summarise)
        if lighter > DELTA * heavier:
            return _turned_right(key, value, before, after, summarise)
    return _node(key, value, before, after, summarise)


def _turned_left(key: Any, value: Any, before: Tree | None, after: Tree | None, summarise: Summarise) -> Tree:
    assert after is not None
    inner, outer = after.before, after.after
    if inner is None or size(inner) < RATIO * size(outer):
        moved = _node(key, value, before, inner, summarise)
        return _node(after.key, after.value, moved, outer, summarise)
    moved = _node(key, value, before, inner.before, summarise)
    rest = _node(after.key, after.value, inner.after, outer, summarise)
    return _node(inner.key, inner.value, moved, rest, summarise)


def _turned_right(key: Any, value: Any, before: Tree | None, after: Tree | None, summarise: Summarise) -> Tree:
    assert before is not None
    outer, inner = before.before, before.after
    if inner is None or size(inner) < RATIO * size(outer):
        moved = _node(key, value, inner, after, summarise)
        return _node(before.key, before.value, outer, moved, summarise)
    moved = _node(key, value, inner.after, after, summarise)
    rest = _node(before.key, before.value, outer, inner.before, summarise)
    return _node(inner.key, inner.value, rest, moved, summarise)


def _joined(before: Tree | None, after: Tree | None, summarise: Summarise) -> Tree | None:
    """Two trees as one; every key of the first is less than every key of the second."""
    if before is None or after is None:
        return before or after
    if before.size > after.size:
        top = before
        while top.after is not None:
            top = top.after
        return _balanced(top.key, top.value, drop(before, top.key, summarise), after, summarise)
    top = after
    while top.before is not None:
        top = top.before
    return _balanced(top.key, top.value, before, drop(after, top.key, summarise), summarise)
