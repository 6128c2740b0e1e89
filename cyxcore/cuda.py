"""PyTorch's torch.cuda, as far as programs ask it: whether a GPU is there. Tensors go there with x.to("cuda")."""

from cyxcore import torchpaths
from cyxcore.device import backend, missing

__path__: list[str] = []  # cyxcore.cuda.amp: cyxcore/torchpaths.py
__getattr__ = torchpaths.below("cuda")
__all__ = (
    "current_device device_count empty_cache is_available is_bf16_supported manual_seed manual_seed_all set_device "
    "synchronize"
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
    """Without effect: a process uses one GPU. Raises KernelError or MissingExtra where none runs."""
    backend("cuda")


def is_bf16_supported() -> bool:
    """Whether there is a GPU: all that run have bfloat16."""
    return is_available()


def manual_seed(seed: int) -> None:
    """Without effect: every device draws from the one generator that cx.manual_seed sets."""


manual_seed_all = manual_seed


def synchronize(device: object = None) -> None:
    """Without effect: whoever reads a number of the GPU waits for it."""


def empty_cache() -> None:
    """Without effect: memory is given back when tensors go."""
