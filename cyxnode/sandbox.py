"""What a training process takes away from itself before it touches a stranger's data.

On Linux: it dies with its parent, gains no new privileges, has no network (an empty network namespace of its
own) and lives under hard limits. Elsewhere only the limits hold, and isolate() says so by its answer.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
OPEN_FILES = 1024


def isolate(parent_pid: int) -> bool:
    """Tie this process to its parent and take its network away. Returns whether the network is gone.

    Must run before any thread starts: the kernel gives a user namespace only to a single-threaded process.
    Raises ProcessLookupError when the parent died before this call: no signal would come any more.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise ProcessLookupError("the agent died while this process was starting")
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # some systems give the namespace and then refuse the mapping, which would leave a process that can make
    # no file: so a copy of this process goes first
    if not works_in_a_copy(lambda: _leave_network(libc)):
        return False
    _leave_network(libc)
    return True


def works_in_a_copy(action: Callable[[], object]) -> bool:
    """Whether the action succeeds in a forked copy of this process, which then ends."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _leave_network(libc: ctypes.CDLL) -> None:
    """Move into a new, empty network namespace, as the same user. Raises OSError when the kernel refuses."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    # without a mapping to itself the process could make no file: its user would not exist in the namespace
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def limit(memory_bytes: int, file_bytes: int) -> None:
    """Hard limits for the run: memory beyond what is in use now (0: none), size of a file, no core dumps.

    On Linux the memory limit counts private writable memory (RLIMIT_DATA): address space that a library
    reserves without access costs nothing. Elsewhere it is the address space.
    """
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_FSIZE, file_bytes)
    _set(resource.RLIMIT_NOFILE, OPEN_FILES)
    if memory_bytes:
        linux = sys.platform == "linux"
        memory = psutil.Process().memory_info()
        used_bytes = memory.data if linux else memory.vms
        _set(resource.RLIMIT_DATA if linux else resource.RLIMIT_AS, used_bytes + memory_bytes)


def _set(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
