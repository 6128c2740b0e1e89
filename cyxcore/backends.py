"""PyTorch's torch.backends: switches that programs set. Results have the same bits whatever they say."""

from types import SimpleNamespace

__path__: list[str] = []  # cyxcore.backends.cudnn: cyxcore/torchpaths.py

cudnn = SimpleNamespace(
    enabled=False,
    benchmark=False,
    deterministic=True,
    allow_tf32=False,
    is_available=lambda: False,
    version=lambda: None,
)
mps = SimpleNamespace(is_available=lambda: False, is_built=lambda: False)
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False), is_built=lambda: False)
