"""How many cores this process may use at once: what it is bound to, and what its control groups grant.

It imports nothing that takes time.
"""

import os
from pathlib import Path

MOUNTED, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def usable() -> int:
    """Of its affinity, no more than its control groups grant time for, a part of one counted as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = quota()
    return cores if granted is None else max(1, min(cores, -int(-granted // 1)))


def quota(mounted: Path = MOUNTED, own: Path = OWN) -> float | None:
    """Cores' worth of time: the least that a group from this process's own up to the root grants. None: no limit.

    Groups of version 2, and those of version 1 where its cpu controller is mounted as "cpu".
    """
    found: list[float] = []
    for line in _read(own).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / "cpu" if controllers else mounted
        group = root / path.lstrip("/")
        found += [_share(each) for each in (group, *group.parents) if each.is_relative_to(root)]
    least = min(found, default=float("inf"))
    return None if least == float("inf") else least


def _share(group: Path) -> float:
    text = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
    match text.split():
        case [granted, period] if granted.isdigit() and period.isdigit() and int(period):  # otherwise max, or -1
            return int(granted) / int(period)
    return float("inf")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
