"""How many cores a process may use, and by which instruction set its kernels run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cyxcore import cores
from cyxcore.kernels import cpu


def groups(folder: Path, own: str, **files: str) -> float | None:
    """The quota of a process that says `own` of its groups, where the files hold these texts."""
    for name, text in files.items():
        (file := folder / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (folder / "own").write_text(own + "\n")
    return cores.quota(folder / "mounted", folder / "own")


def test_the_least_that_a_group_around_the_process_grants_counts(tmp_path: Path) -> None:
    files = {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "other/cpu.max": "10000 100000"}
    assert groups(tmp_path, "0::/a/b", **files) == 1.5


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/", **{"cpu.max": "300000 100000"}) == 3.0


def test_groups_of_version_1_count_too(tmp_path: Path) -> None:
    files = {"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "100000"}
    files |= {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "cpu/a/cpu.cfs_quota_us": "1"}
    assert groups(tmp_path, "5:cpuset:/a\n4:cpu,cpuacct:/job\n0::/", **files) == 0.5


def test_where_nothing_is_said_there_is_no_limit(tmp_path: Path) -> None:
    assert cores.quota(tmp_path / "none", tmp_path / "none") is None
    assert groups(tmp_path, "1:cpu:/\n0::/", **{"cpu/cpu.cfs_quota_us": "-1", "cpu.max": "max 100000"}) is None


@pytest.mark.parametrize(("granted", "used"), [(None, 4), (0.2, 1), (1.5, 2), (3.0, 3), (9.0, 4)])
def test_a_part_of_a_core_counts_as_one(granted: float | None, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "quota", lambda: granted)
    assert cores.usable() == used


def started(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from cyxcore.kernels import cpu\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_process_begins_with_as_many_threads_as_it_may_use() -> None:
    bound = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
    command = [sys.executable, "-c", f"{bound} from cyxcore.kernels import cpu; print(cpu.get_num_threads())"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


def test_an_environment_variable_chooses_the_instruction_set(isa: str) -> None:
    assert started("print(cpu.isa())", CYX_ISA=isa).stdout == f"{isa}\n"


def test_an_instruction_set_that_is_none_is_named() -> None:
    ended = started("", CYX_ISA="sse9")
    assert ended.returncode == 1
    assert "KernelError: CYX_ISA: expected an instruction set of this machine" in ended.stderr
    assert cpu.isa() in ended.stderr and "'sse9'" in ended.stderr
