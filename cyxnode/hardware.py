"""What this machine has and how busy it is, measured. Nothing is guessed: what cannot be read is left out."""

import contextlib
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from msgspec.structs import replace

from cyxcore import cores
from cyxnet.messages import CpuMetrics, Gpu, GpuMetrics, Hardware, HardwareMetrics, RunRef
from cyxnode.devicepool import Device

FLOPS_MATRIX = 384  # three of these fit in a second-level cache
FLOPS_BUDGET_S = 0.05
COPY_BYTES, BYTES_BUDGET_S = 2**25, 0.03  # larger than most caches; with two of them still little memory
TEMPERATURE_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")


class Limits(NamedTuple):
    """What the control groups of this process allow; None: no limit."""

    cores: float | None
    memory_bytes: int | None
    memory_used_bytes: int


def measure(offer_bytes: int | None = None, offer_gpus: Collection[int] | None = None) -> Hardware:
    """All facts of this machine. offer_bytes, offer_gpus (nvidia-smi's numbers): what the operator lends at most; None:
    all. Takes about 0.1 s.
    """
    limits = cgroup_limits()
    total_bytes, free_bytes = memory(limits, offer_bytes)
    return Hardware(
        cores=usable_cores(limits.cores),
        memory_bytes=total_bytes,
        memory_free_bytes=free_bytes,
        cpu=cpu_name(),
        isa=kernel_isa(),
        gpus=gpus(offer_gpus),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        flops_per_s=measure_flops_per_s(),
        bytes_per_s=measure_bytes_per_s(),
    )


def memory(limits: Limits, offer_bytes: int | None = None) -> tuple[int, int]:
    """(total, free) bytes that runs may use: the machine's, within the control group, within the offer."""
    machine = psutil.virtual_memory()
    total = min(value for value in (machine.total, limits.memory_bytes, offer_bytes) if value is not None)
    free = min(machine.available, total)
    if limits.memory_bytes is not None:
        free = min(free, max(limits.memory_bytes - limits.memory_used_bytes, 0))
    return total, free


def usable_cores(quota: float | None) -> int:
    """Cores that this process may run on at once: its affinity, and the quota of its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(logical=True)
    cores = affinity or 1
    return max(1, cores if quota is None else min(cores, int(quota)))


def cgroup_limits(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """The tightest limits from this process's control group up to the root (memory: version 2 of the interface)."""
    path = _cgroup_path(own)
    cores_granted = cores.quota(mounted, own)
    memory_bytes: int | None = None
    used_bytes = 0
    if path is None:
        return Limits(cores_granted, None, 0)
    for group in (mounted / path, *(mounted / path).parents):
        if not group.is_relative_to(mounted):
            break
        most = _read(group / "memory.max")
        if most.isdigit() and (memory_bytes is None or int(most) < memory_bytes):
            memory_bytes = int(most)
            # page cache counts as used there, but is given back when somebody needs it
            used_bytes = int(_read(group / "memory.current") or 0) - _inactive_file_bytes(group)
    return Limits(cores_granted, memory_bytes, max(used_bytes, 0))


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    for line in _read(info).splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def kernel_isa() -> str:
    """The instruction set of the compiled kernels; empty when they are not built."""
    try:
        return str(importlib.import_module("cyxcore.kernels.cpu").isa())
    except ImportError:
        return ""


def measure_flops_per_s(budget_s: float = FLOPS_BUDGET_S) -> float:
    """float32 operations a second in a matrix product (2 n³ each): the best of those within the budget."""
    import numpy

    square = numpy.full((FLOPS_MATRIX, FLOPS_MATRIX), 0.5, numpy.float32)
    product = square @ square  # the first one pays for thread start and page faults
    return 2 * FLOPS_MATRIX**3 / _best_s(lambda: numpy.matmul(square, square, out=product), budget_s)


def measure_bytes_per_s(budget_s: float = BYTES_BUDGET_S) -> float:
    """Bytes read and written a second in a copy that no cache holds, by one thread: the best within the budget."""
    import numpy

    source = numpy.ones(COPY_BYTES // 8)
    target = numpy.empty_like(source)
    return 2 * COPY_BYTES / _best_s(lambda: numpy.copyto(target, source), budget_s)


def _best_s(run: Callable[[], object], budget_s: float) -> float:
    """Seconds of the fastest of the runs that begin within the budget; the first does, however late it is."""
    best_s, begun_s = float("inf"), time.perf_counter()
    end_s = begun_s + budget_s
    while True:
        run()
        now_s = time.perf_counter()
        best_s, begun_s = min(best_s, now_s - begun_s), now_s
        if now_s >= end_s:
            return best_s


def devices() -> tuple[Device, ...]:
    """What runs can be given, as it is now; none without the driver or the optional package nvidia-ml-py."""
    found = []
    for nvml, handle, index, memory in _nvml_devices():
        busy = _try(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)  # noqa: B023
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        free_bytes = memory.total - memory.used
        device = Device(index=index, uuid=uuid, memory_bytes=memory.total, free_bytes=free_bytes)
        found.append(device if busy is None else replace(device, busy_percent=float(busy)))
    return tuple(found)


def gpus(only: Collection[int] | None = None) -> list[Gpu]:
    """NVIDIA devices with these numbers (None: all), by NVML; none without the driver or the package nvidia-ml-py."""
    found = []
    for nvml, handle, _, memory in _nvml_devices(only):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        found.append(
            Gpu(
                name=_text(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=memory.total,
                compute_capability=f"{major}.{minor}",
                driver=_text(nvml.nvmlSystemGetDriverVersion()),
            )
        )
    return found


def gpu_metrics(only: Collection[int] | None = None) -> list[GpuMetrics]:
    found = []
    for nvml, handle, index, memory in _nvml_devices(only):
        milliwatts = _try(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle))  # noqa: B023
        celsius = _try(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))  # noqa: B023
        busy = _try(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)  # noqa: B023
        found.append(
            GpuMetrics(
                index=index,
                util_percent=float(busy or 0),
                memory_used_bytes=memory.used,
                memory_total_bytes=memory.total,
                temperature_c=None if celsius is None else float(celsius),
                power_w=None if milliwatts is None else milliwatts / 1000,
            )
        )
    return found


class Meter:
    """Readings over time. Shares are those since the reading before."""

    def __init__(self, node_id: str, session: str, gpus: Collection[int] | None = None):
        """gpus: the NVIDIA devices to be read, by nvidia-smi's numbers; None: all."""
        self._gpus = gpus
        self._node_id = node_id
        self._session = session
        self._before = psutil.cpu_times(percpu=True)

    def read(self, runs: Iterable[RunRef]) -> HardwareMetrics:
        now = psutil.cpu_times(percpu=True)
        percents = [busy_percent(a, b) for a, b in zip(self._before, now, strict=False)]
        self._before = now
        memory, swap, net = psutil.virtual_memory(), psutil.swap_memory(), psutil.net_io_counters()
        return HardwareMetrics(
            node_id=self._node_id,
            session=self._session,
            runs=list(runs),
            cpu=CpuMetrics(per_core_percent=percents, frequency_mhz=frequency_mhz(), temperature_c=temperature_c()),
            gpus=gpu_metrics(self._gpus),
            ram_used_bytes=memory.total - memory.available,
            ram_total_bytes=memory.total,
            swap_used_bytes=swap.used,
            swap_total_bytes=swap.total,
            net_sent_bytes=net.bytes_sent if net else 0,
            net_received_bytes=net.bytes_recv if net else 0,
            net_connections=tcp_connections(),
        )


def busy_percent(before: Any, after: Any) -> float:
    """Share of the time between two psutil.cpu_times() of a core in which it did not idle, 0 to 100."""
    # guest time is contained in user time, so it is not added again
    names = [name for name in after._fields if not name.startswith("guest")]
    total_s = sum(getattr(after, name) - getattr(before, name) for name in names)
    idle_s = sum(getattr(after, name) - getattr(before, name) for name in ("idle", "iowait") if name in names)
    return 0.0 if total_s <= 0 else round(min(max(100 * (1 - idle_s / total_s), 0.0), 100.0), 1)


def frequency_mhz() -> float:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return 0.0
    return float(frequency.current) if frequency else 0.0


def temperature_c() -> float | None:
    """The hottest CPU sensor; None when there is none to read."""
    read = getattr(psutil, "sensors_temperatures", None)  # not on every system
    sensors: dict[str, Any] = read() if read else {}
    celsius = [entry.current for name in TEMPERATURE_SENSORS for entry in sensors.get(name, [])]
    return max(celsius, default=None)


def tcp_connections(sockstat: Path = Path("/proc/net/sockstat")) -> int:
    """TCP sockets in use on this machine; 0 where the system keeps it from us."""
    for line in _read(sockstat).splitlines():
        words = line.split()
        if words[:2] == ["TCP:", "inuse"]:
            return int(words[2])
    if sys.platform == "linux":
        return 0
    try:
        return len(psutil.net_connections("tcp"))
    except psutil.AccessDenied:
        return 0


def _nvml_devices(only: Collection[int] | None = None) -> Iterator[tuple[Any, Any, int, Any]]:
    """(module, handle, index, memory) of every device with such a number (None: any) that answers: one may fall off its
    bus. Nothing without package or driver.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # NVMLError is a class of the optional package
        if isinstance(error, ImportError) or type(error).__module__ == "pynvml":
            return
        raise
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            if only is not None and index not in only:
                continue
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            except nvml.NVMLError:
                continue
            yield nvml, handle, index, memory
    finally:
        nvml.nvmlShutdown()


def _try(nvml: Any, read: Any) -> Any:
    """A reading, or None: some devices (parts of one, virtual ones) do not offer every sensor."""
    with contextlib.suppress(nvml.NVMLError):
        return read()
    return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _cgroup_path(own: Path) -> str | None:
    for line in _read(own).splitlines():
        if line.startswith("0::/"):
            return line[4:]
    return None


def _inactive_file_bytes(group: Path) -> int:
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
