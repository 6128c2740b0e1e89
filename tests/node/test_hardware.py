"""What a node says of its machine."""

import itertools
import os
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from cyxnet.codec import MSGPACK, decode, encode
from cyxnet.messages import HardwareMetrics, RunRef
from cyxnode import hardware
from cyxnode.hardware import Limits, Meter, busy_percent, cgroup_limits, usable_cores
from tests.node import fake_nvml

Times = namedtuple("Times", ["user", "system", "idle", "iowait", "guest"])


def test_the_facts_of_this_machine_are_sane() -> None:
    facts = hardware.measure()
    assert 1 <= facts.cores <= len(os.sched_getaffinity(0))
    assert 0 < facts.memory_free_bytes <= facts.memory_bytes <= psutil.virtual_memory().total
    assert facts.cpu and facts.os
    assert 1e8 < facts.flops_per_s < 1e15


def test_a_machine_that_stands_still_while_it_is_measured_is_slow_and_not_without_speed(monkeypatch) -> None:
    seconds = itertools.count()  # each look at the clock comes a second after the one before
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(seconds))
    assert hardware.measure_flops_per_s() == 2 * hardware.FLOPS_MATRIX**3
    assert hardware.measure_bytes_per_s() == 2 * hardware.COPY_BYTES


def test_the_offer_bounds_the_memory() -> None:
    assert hardware.memory(Limits(None, None, 0), 10**8) == (10**8, 10**8)


def test_the_control_group_bounds_the_memory_by_what_is_left_in_it() -> None:
    assert hardware.memory(Limits(None, 10**8, 4 * 10**7)) == (10**8, 6 * 10**7)


def test_a_quota_below_one_core_still_counts_as_one() -> None:
    assert usable_cores(0.5) == 1


def test_the_tightest_limit_from_the_group_to_the_root_counts(tmp_path: Path) -> None:
    inner = tmp_path / "pod" / "node"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/pod/node\n")
    (tmp_path / "pod" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "pod" / "memory.max").write_text("1000\n")
    (tmp_path / "pod" / "memory.current").write_text("700\n")
    (tmp_path / "pod" / "memory.stat").write_text("anon 400\ninactive_file 300\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    assert cgroup_limits(tmp_path, tmp_path / "own") == Limits(1.5, 1000, 400)


def test_a_machine_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path, tmp_path / "own") == Limits(None, None, 0)


def test_metrics_carry_every_field_and_pass_the_codec() -> None:
    metrics = Meter("node-a", "00" * 16).read([RunRef(job_id="job-1", attempt=2)])
    assert len(metrics.cpu.per_core_percent) == psutil.cpu_count()
    assert 0 < metrics.ram_used_bytes < metrics.ram_total_bytes
    assert decode(HardwareMetrics, encode(metrics, MSGPACK), MSGPACK) == metrics


@pytest.mark.parametrize(
    ("after", "percent"),
    [
        (Times(1, 1, 2, 0, 0), 50.0),
        (Times(0, 0, 0, 0, 0), 0.0),
        (Times(2, 0, 0, 2, 2), 50.0),
        (Times(3, 0, 0, 0, 0), 100.0),
    ],
)
def test_busy_is_what_is_neither_idle_nor_waiting_for_a_disk(after: Times, percent: float) -> None:
    assert busy_percent(Times(0, 0, 0, 0, 0), after) == percent


def test_connections_are_read_from_the_kernels_own_count(tmp_path: Path) -> None:
    (tmp_path / "sockstat").write_text("sockets: used 90\nTCP: inuse 7 orphan 0 tw 1\n")
    assert hardware.tcp_connections(tmp_path / "sockstat") == 7


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with three NVIDIA devices, of which other programs use something."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module([0, 2**30, fake_nvml.MEMORY_BYTES], [0, 50, 100]))


@pytest.mark.usefixtures("three_gpus")
def test_devices_are_read_with_what_is_free_and_how_busy_they_are() -> None:
    whole = fake_nvml.MEMORY_BYTES
    assert [(each.index, each.uuid, each.memory_bytes, each.free_bytes) for each in hardware.devices()] == [
        (0, "GPU-0", whole, whole),
        (1, "GPU-1", whole, whole - 2**30),
        (2, "GPU-2", whole, 0),
    ]
    assert [each.busy_percent for each in hardware.devices()] == [0.0, 50.0, 100.0]


def test_a_device_that_cannot_say_how_busy_it_is_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module([5]))
    assert [each.busy_percent for each in hardware.devices()] == [0.0]


def test_a_device_that_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had fallen off its bus was an error, and the node told no figures of its machine any more."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module([0, None, 0]))
    assert [each.index for each in hardware.devices()] == [0, 2]
    assert [gpu.index for gpu in Meter("node-a", "s").read([]).gpus] == [0, 2]
    assert [gpu.name for gpu in hardware.gpus()] == ["card 0", "card 2"]


@pytest.mark.usefixtures("three_gpus")
def test_only_devices_that_are_lent_are_announced_and_metered() -> None:
    assert [gpu.name for gpu in hardware.measure().gpus] == ["card 0", "card 1", "card 2"]
    assert [gpu.name for gpu in hardware.measure(offer_gpus=[0, 2]).gpus] == ["card 0", "card 2"]
    assert hardware.measure(offer_gpus=[]).gpus == []
    assert [gpu.index for gpu in Meter("node-a", "s", [1]).read([]).gpus] == [1]
