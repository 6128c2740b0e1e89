"""NVIDIA's management library as nvidia-ml-py offers it, for a machine with devices that there are not."""

from types import ModuleType, SimpleNamespace
from typing import Any

MEMORY_BYTES = 80 * 2**30


class NVMLError(Exception):
    pass


NVMLError.__module__ = "pynvml"


def module(used_bytes: list[int] | list[int | None], busy_percent: list[int] | None = None) -> Any:
    """`pynvml` with a device for each number: what is used of its memory, and how busy it is (None: it cannot say).

    A device of which None is used does not answer.
    """

    def memory(index: int) -> Any:
        used = used_bytes[index]
        if used is None:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(total=MEMORY_BYTES, used=used)

    def utilization(index: int) -> Any:
        if busy_percent is None:
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=busy_percent[index])

    def lacking(*_: Any) -> Any:
        raise NVMLError("not supported")

    made = ModuleType("pynvml")
    vars(made).update(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(used_bytes),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda index: f"GPU-{index}",
        nvmlDeviceGetName=lambda index: f"card {index}",
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetCudaComputeCapability=lambda index: (9, 0),
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        nvmlDeviceGetUtilizationRates=utilization,
        nvmlDeviceGetPowerUsage=lacking,
        nvmlDeviceGetTemperature=lacking,
    )
    return made
