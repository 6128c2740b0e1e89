"""What a child of fork makes anew: locks that threads of its parent hold, which it does not have and nobody releases.
And what it must not meet half done: a fork waits for that, and so does another thread that looks at the same.

`multiprocessing` forks on Linux, and a thread may compute meanwhile. The kernels' own threads: kernels/src/pool.c.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

WAITS_S = 10.0  # a fork, for what is undivided; no longer, for that may wait for who forks

_with_locks: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
_turn, _undivided = Condition(), Counter[int]()  # by thread: how many such blocks it is in
turn = RLock()  # of threads that trace, or look at what one that traces has replaced; another one in every child


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


class _Own(threading.local):
    traces = 0  # how many blocks of tracing() this thread is in


_own = _Own()


@contextmanager
def tracing() -> Iterator[None]:
    """An undivided block within `turn`: what it changes for a while others do not look at."""
    with turn, undivided():
        _own.traces += 1
        try:
            yield
        finally:
            _own.traces -= 1


def is_tracing() -> bool:
    """Whether this thread is in a block of tracing()."""
    return _own.traces > 0


def _renew(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(owner, name, Lock())


def _before_a_fork() -> None:
    _turn.acquire()
    _turn.wait_for(lambda: _undivided.keys() <= {get_ident()}, WAITS_S)


def _in_a_child() -> None:
    global _turn, turn
    _turn, turn = Condition(), RLock()
    for thread in _undivided.keys() - {get_ident()}:
        del _undivided[thread]
    for owner, names in list(_with_locks.items()):
        _renew(owner, names)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(before=_before_a_fork, after_in_parent=lambda: _turn.release(), after_in_child=_in_a_child)
