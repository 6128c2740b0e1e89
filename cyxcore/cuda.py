"""PyTorch's torch.cuda, as far as programs ask it: whether a GPU is there, which, and what of its memory is used.

Tensors go there with x.to("cuda"). A process uses one GPU, the first of CUDA_VISIBLE_DEVICES, so it is number 0
wherever a number is given, and another one is an error.
"""

from typing import Any

from cyxcore import torchpaths
from cyxcore.device import backend, missing
from cyxcore.errors import SpecError

__path__: list[str] = []  # cyxcore.cuda.amp: cyxcore/torchpaths.py
__getattr__ = torchpaths.below("cuda")
__all__ = (
    "current_device device_count empty_cache get_device_capability get_device_name is_available is_bf16_supported "
    "manual_seed manual_seed_all mem_get_info memory_allocated memory_reserved set_device synchronize"
).split()


def is_available() -> bool:
    """Whether tensors can be put on the device "cuda"."""
    return not missing("cuda")


def device_count() -> int:
    """1 or 0: a process uses one GPU."""
    return int(is_available())


def current_device() -> int:
    """0, the only one. Raises KernelError or MissingExtra where none runs."""
    backend("cuda")
    return 0


def set_device(device: object) -> None:
    """Without effect for the only one. Raises SpecError for another, KernelError or MissingExtra where none runs."""
    _cupy(device)


def get_device_name(device: object = None) -> str:
    """What its maker calls it, e.g. "NVIDIA H100 80GB HBM3". Raises as `set_device` does; so do those below."""
    name: str | bytes = _cupy(device).cuda.runtime.getDeviceProperties(0)["name"]
    return name.decode() if isinstance(name, bytes) else name


def get_device_capability(device: object = None) -> tuple[int, int]:
    """Its compute capability, e.g. (9, 0)."""
    about = _cupy(device).cuda.runtime.getDeviceProperties(0)
    return int(about["major"]), int(about["minor"])


def mem_get_info(device: object = None) -> tuple[int, int]:
    """(free, all) bytes of its memory, whoever uses the rest."""
    free_bytes, all_bytes = _cupy(device).cuda.runtime.memGetInfo()
    return int(free_bytes), int(all_bytes)


def memory_allocated(device: object = None) -> int:
    """Bytes of it that this process's arrays take: of tensors, plans and workspaces."""
    return int(_cupy(device).get_default_memory_pool().used_bytes())


def memory_reserved(device: object = None) -> int:
    """The same and what is kept of freed arrays for the next ones."""
    return int(_cupy(device).get_default_memory_pool().total_bytes())


def is_bf16_supported() -> bool:
    """Whether there is a GPU: all that run have bfloat16."""
    return is_available()


def manual_seed(seed: int) -> None:
    """Without effect: every device draws from the one generator that cx.manual_seed sets."""


manual_seed_all = manual_seed


def synchronize(device: object = None) -> None:
    """Wait until the GPU has done all that it was told; who reads a number of it need not. Without one: nothing."""
    if is_available():
        _cupy(device).cuda.runtime.deviceSynchronize()


def empty_cache() -> None:
    """Give back what is kept of freed arrays, so that other processes can have it. Without a GPU: nothing."""
    if is_available():
        _cupy().get_default_memory_pool().free_all_blocks()


def _cupy(device: object = None) -> Any:
    """The package with whose words a device is asked."""
    if device not in (None, 0, "cuda", "cuda:0"):
        raise SpecError(
            f"cuda: a process uses one GPU, which is number 0, got {device!r}; choose another one with "
            "CUDA_VISIBLE_DEVICES in the environment before the process begins"
        )
    cuda: Any = backend("cuda")
    return cuda.xp
