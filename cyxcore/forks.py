"""What a child of fork makes anew: locks that threads of its parent hold, which it does not have and nobody releases.
And what neither a child nor another thread that compiles must meet half done: both wait for that.

`multiprocessing` forks on Linux, and a thread may compute meanwhile. The kernels' own threads: kernels/src/pool.c.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

WAITS_S = 10.0  # a fork, for what is undivided; no longer, for that may wait for who forks

_with_locks: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
_next, _turn = Lock(), Lock()  # who comes next holds the first while it waits for the second: nobody overtakes it


class _Own(threading.local):
    """Of a thread: how many undivided blocks it is in, and the lock of a fork of it that waited for its turn."""

    blocks = 0
    fork: Any = None


_own = _Own()


def renew_in_children(owner: Any, *names: str) -> None:
    """Give these attributes of `owner`, an object or a module, a Lock, and another one in every child of a fork."""
    _with_locks[owner] = names
    _renew(owner, names)


@contextmanager
def undivided() -> Iterator[None]:
    """Within the block no other thread is in such a block, and none forks: its child would have for good what is
    changed here for a while.
    """
    turn = None
    if not _own.blocks:
        with _next:
            turn = _turn  # a fork within the block makes another one
            turn.acquire()
    _own.blocks += 1
    try:
        yield
    finally:
        _own.blocks -= 1
        if turn is not None:
            turn.release()


def is_undivided() -> bool:
    """Whether this thread is in such a block."""
    return _own.blocks > 0


def _renew(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(owner, name, Lock())


def _before_a_fork() -> None:
    _own.fork = None
    if not _own.blocks and _next.acquire(timeout=WAITS_S):
        _own.fork = _turn if _turn.acquire(timeout=WAITS_S) else None
        _next.release()


def _in_the_parent() -> None:
    if _own.fork is not None:
        _own.fork.release()


def _in_a_child() -> None:
    global _next, _turn
    _next, _turn = Lock(), Lock()
    for owner, names in list(_with_locks.items()):
        _renew(owner, names)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(before=_before_a_fork, after_in_parent=_in_the_parent, after_in_child=_in_a_child)
