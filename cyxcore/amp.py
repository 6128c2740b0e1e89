"""PyTorch's torch.amp: products in halves where they are asked for, and loss scaling. docs/numerics.md says more."""

from contextlib import ContextDecorator
from typing import Any

from cyxcore import casting
from cyxcore.dtype import dtype_name
from cyxcore.eager import Tensor
from cyxcore.errors import SpecError

__all__ = ["GradScaler", "autocast"]


class autocast(ContextDecorator):  # noqa: N801 - PyTorch's
    """Within the block, or the function it decorates, products of this thread are made of halves.

    Of float32 tensors on the cpu matrix products, convolutions and attention take the nearest bfloat16 (or float16)
    numbers, are summed in float32 and rounded once; losses, and what PyTorch's lists for the CPU name with them, are
    computed in float32. Everything else has the dtype of its inputs: normalisations and activations of halves are
    computed in float32 and rounded to halves. Parameters stay float32, and so do their gradients. float64 and tensors
    of other devices are left as they are. A graph that is traced to be saved or sent (cx.trace, jobs) raises
    GraphError.

    device_type: cpu; with cuda nothing changes, whose kernels have no halves. dtype: bfloat16 (also by default) or
    float16, which needs a GradScaler. enabled: False computes in the tensors' dtypes, also within another autocast.
    cache_enabled: accepted and without effect: a parameter is cast where it is used. Raises SpecError for others.
    """

    def __init__(
        self, device_type: str = "cpu", dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        self.device_type, self.enabled = str(device_type), bool(enabled)
        if self.device_type not in ("cpu", "cuda"):
            raise SpecError(f"autocast: expected the device_type cpu or cuda, got {self.device_type!r}")
        self.dtype = "bfloat16" if dtype is None else dtype_name(dtype)
        if self.enabled and self.dtype not in casting.HALVES:
            raise SpecError(f"autocast: expected bfloat16 or float16, got {self.dtype}")
        self._before: list[str | None] = []  # a function that it decorates may call itself

    def _recreate_cm(self) -> "autocast":
        return autocast(self.device_type, self.dtype, self.enabled)

    def __enter__(self) -> "autocast":
        if self.device_type == "cpu":
            self._before.append(casting.set_current(self.dtype if self.enabled else None))
        return self

    def __exit__(self, *_: object) -> None:
        if self.device_type == "cpu":
            casting.set_current(self._before.pop())


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
