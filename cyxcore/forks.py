"""What a child of fork makes anew: locks that threads of its parent hold, which it does not have and nobody releases.

`multiprocessing` forks on Linux, and a thread may compute meanwhile. The kernels' own threads: kernels/src/pool.c.
"""

import os
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

_with_locks: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()


def renew_in_children(owner: Any, *names: str) -> None:
    """Give these attributes of `owner`, an object or a module, a Lock, and another one in every child of a fork."""
    _with_locks[owner] = names
    _renew(owner, names)


def _renew(owner: Any, names: tuple[str, ...]) -> None:
    for name in names:
        setattr(owner, name, Lock())


def _renew_all() -> None:
    for owner, names in list(_with_locks.items()):
        _renew(owner, names)


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_renew_all)
