"""What of PyTorch's names that ask where a tensor is, or make one like it, symbols have too: x.device, x.to(…)."""

from numbers import Integral
from typing import Any, Self

from cyxcore.dtype import dtype_name
from cyxcore.errors import DtypeError, GraphError
from cyxcore.values import Value


def _is_size(given: Any) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


class Placed(Value):
    """A value that will be where its plan runs: only its dtype can be another one."""

    @property
    def device(self) -> str:
        """Where the plan runs that is being made; "cpu" for a graph that travels."""
        raise NotImplementedError

    def to(
        self,
        *where: Any,
        device: Any = None,
        dtype: Any = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: Any = None,
    ) -> Self:
        """This value in a dtype, or as another one is. Raises GraphError for a device that is not the plan's."""
        for one in where:
            if isinstance(one, Value):
                device, dtype = one.device, one.dtype  # type: ignore[attr-defined]
            else:
                named = _as_dtype(one)
                device, dtype = (one, dtype) if named is None else (device, named)
        if device is not None and device != self.device:
            raise GraphError(
                f"to: a plan runs on one device, here on {self.device}, and not on {device}; give compile the device, "
                "or move the result"
            )
        made = self if dtype is None else self.astype(dtype)
        return made.copy() if copy and made is self else made

    @property
    def is_cuda(self) -> bool:
        """Whether the plan runs on a GPU."""
        return self.device.startswith("cuda")

    def is_contiguous(self) -> bool:
        """Always: the values of a graph have no gaps."""
        return True

    def cpu(self) -> Self:
        """Itself. Raises GraphError where the plan runs elsewhere."""
        return self.to(device="cpu")

    def cuda(self, device: None = None, non_blocking: bool = False) -> Self:
        """Itself. Raises GraphError where the plan runs elsewhere."""
        return self.to(device="cuda")

    def type(self, dtype: Any) -> Self:
        """This value in a dtype."""
        return self.astype(dtype)

    def contiguous(self, *, memory_format: Any = None) -> Self:
        """Itself: the values of a graph have no gaps."""
        return self

    @property
    def data(self) -> Any:
        """The value, through which no gradient goes; what is assigned is copied into it."""
        return self.detach()  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Any) -> None:
        self.detach().copy_(value)  # type: ignore[attr-defined]

    def new(self, *given: Any) -> Any:
        """Data as a value of this dtype, or zeros of a size (a tuple, or numbers one by one), as in older programs."""
        one = given[0] if len(given) == 1 else None
        if isinstance(one, tuple) and all(map(_is_size, one)):
            return self.new_zeros(one or (0,))  # x.new(x.size()): a size is a tuple here
        if one is not None and not _is_size(one):
            return self.new_tensor(one)
        return self.new_zeros(*given or (0,))

    def new_tensor(self, data: Any, dtype: Any = None) -> Any:
        """Data as a value of this dtype."""
        return self._constant(data, dtype_name(dtype or self.dtype))

    def new_full(self, size: Any, fill_value: float, dtype: Any = None) -> Any:
        """One number everywhere, in this dtype."""
        return self._constant(fill_value, dtype_name(dtype or self.dtype)).broadcast_to(size)

    def new_zeros(self, *size: Any, dtype: Any = None) -> Any:
        """Zeros in this dtype."""
        return self.new_full(size[0] if len(size) == 1 else size, 0, dtype)

    def new_ones(self, *size: Any, dtype: Any = None) -> Any:
        """Ones in this dtype."""
        return self.new_full(size[0] if len(size) == 1 else size, 1, dtype)

    new_empty = new_zeros


def _as_dtype(named: Any) -> str | None:
    """The name of a dtype; None where it is none."""
    try:
        return dtype_name(named)
    except DtypeError:
        return None
