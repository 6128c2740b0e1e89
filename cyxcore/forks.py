"""What a child of fork makes anew: locks that threads of its parent hold, which it does not have and nobody releases.
And what it must not meet half done: a fork waits for that.

`multiprocessing` forks on Linux, and a thread may compute meanwhile. The kernels' own threads: kernels/src/pool.c.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

WAITS_S = 10.0  # a fork, for what is undivided; no longer, for that may wait for who forks

_with_locks: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
_turn, _undivided = Condition(), Counter[int]()  # by thread: how many such blocks it is in


def renew_in_children(owner: Any, *names: str) -> None:
    """Give these attributes of `owner`, an object or a module, a Lock, and another one in every child of a fork."""
    _with_locks[owner] = names
    _renew(owner, names)


@contextmanager
def undivided() -> Iterator[None]:
    """Within the block other threads do not fork: their children would have what it changes for a while, for good."""
    thread = get_ident()
    with _turn:
        _undivided[thread] += 1
    try:
        yield
    finally:
        with _turn:
            _undivided[thread] -= 1
            if not _undivided[thread]:
                del _undivided[thread]
                _turn.notify_all()


def _renew(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(owner, name, Lock())


def _before_a_fork() -> None:
    _turn.acquire()
    _turn.wait_for(lambda: _undivided.keys() <= {get_ident()}, WAITS_S)


def _in_a_child() -> None:
    global _turn
    _turn = Condition()
    for thread in _undivided.keys() - {get_ident()}:
        del _undivided[thread]
    for owner, names in list(_with_locks.items()):
        _renew(owner, names)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(before=_before_a_fork, after_in_parent=lambda: _turn.release(), after_in_child=_in_a_child)
