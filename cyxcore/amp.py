"""PyTorch's torch.amp. Lower precision is a numeric class here (cx.set_numerics), or tensors of such a dtype.

A program that asks for autocast runs in the dtypes its tensors have, which is never less exact.
"""

from collections.abc import Callable
from typing import Any

from cyxcore.eager import Tensor

__all__ = ["GradScaler", "autocast"]


class autocast:  # noqa: N801 - PyTorch's
    """Within the block, or the function it decorates, nothing changes; all arguments are accepted."""

    def __init__(
        self, device_type: str = "cpu", dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device_type, self.dtype, self.enabled = device_type, dtype, enabled

    def __enter__(self) -> "autocast":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


class GradScaler:
    """Scales by 1: gradients of float32 need no scale. PyTorch's verbs, so that a loop written for one runs."""

    def __init__(
        self,
        device: str = "cpu",
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        """All arguments are accepted and without effect."""

    def scale(self, outputs: Tensor) -> Tensor:
        """The outputs as they are."""
        return outputs

    def unscale_(self, optimizer: Any) -> None:
        """Nothing is scaled."""

    def step(self, optimizer: Any, *args: Any, **options: Any) -> Any:
        """optimizer.step()."""
        return optimizer.step(*args, **options)

    def update(self, new_scale: float | None = None) -> None:
        """The scale stays 1."""

    def get_scale(self) -> float:
        """1."""
        return 1.0

    def is_enabled(self) -> bool:
        """False: nothing is scaled."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Empty, as that of a scaler that is not enabled."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Whatever the state, the scale stays 1."""
