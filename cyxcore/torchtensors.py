"""What of PyTorch's names only tensors have, for they have memory: x.add_(y), x.zero_(), x.data, x.new_zeros(…)."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from cyxcore import drawing
from cyxcore.device import OWN_MEMORY
from cyxcore.dtype import FLOATS, INEXACT, dtype_name
from cyxcore.errors import DtypeError, GradientError
from cyxcore.inplace import InPlace
from cyxcore.keys import next_key

# x.name_(…) is x.name(…) written into x.
WRITTEN = (
    "abs add addcdiv addcmul ceil clamp cos cumsum div exp floor index_add index_fill lerp log masked_fill mul "
    "nan_to_num neg pow reciprocal relu remainder round rsqrt scatter scatter_add sigmoid sin sqrt square sub tanh "
    "tril triu trunc"
).split()


class InMemory(InPlace):
    """The methods that write into a tensor, or ask about its memory."""

    _data: Any
    requires_grad: bool

    def copy_(self, source: Any) -> Self:
        """The values of `source`, broadcast and converted, in this memory."""
        given = source if isinstance(source, InPlace) else self._constant(source)
        self[...] = given.astype(self.dtype)  # type: ignore[index]
        return self

    def fill_(self, value: float) -> Self:
        """One number everywhere."""
        self[...] = value  # type: ignore[index]
        return self

    def zero_(self) -> Self:
        """0 everywhere."""
        return self.fill_(False if self.dtype == "bool" else 0)

    def _drawn_key(self, name: str) -> Any:
        if self.dtype not in FLOATS:
            raise DtypeError(f"{name}: expected a float tensor to draw numbers into, got {self.dtype}")
        return next_key().tolist()

    def normal_(self, mean: float = 0.0, std: float = 1.0) -> Self:
        """Normal numbers of the generator cx.manual_seed sets."""
        seed, step = self._drawn_key("normal_")
        return self.copy_(drawing.normal(seed, step, 0, self.shape) * std + mean)

    def uniform_(self, low: float = 0.0, high: float = 1.0) -> Self:
        """Numbers low <= x < high of the generator cx.manual_seed sets."""
        seed, step = self._drawn_key("uniform_")
        return self.copy_(drawing.uniform(seed, step, 0, self.shape) * (high - low) + low)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Ask for a gradient of this leaf, or no longer. Raises GradientError for what can have none."""
        if not requires_grad and not self.is_leaf:  # type: ignore[attr-defined]
            raise GradientError("requires_grad_: a result has a gradient as long as its inputs do; detach() it")
        if requires_grad and self.dtype not in INEXACT:
            raise GradientError(f"requires_grad_: only float and complex tensors have gradients, got {self.dtype}")
        self.requires_grad = requires_grad
        return self

    @property
    def data(self) -> Self:
        """The same memory without a past; what is assigned is copied into it."""
        return self.detach()  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Any) -> None:
        self.detach().copy_(value)  # type: ignore[attr-defined]

    def cpu(self) -> Self:
        """This tensor in the host's memory."""
        return self.to("cpu")  # type: ignore[attr-defined]

    def cuda(self) -> Self:
        """This tensor on the GPU. Raises MissingExtra or KernelError where none runs."""
        return self.to("cuda")  # type: ignore[attr-defined]

    def type(self, dtype: Any) -> Self:
        """This tensor in a dtype."""
        return self.astype(dtype)

    @property
    def is_cuda(self) -> bool:
        return self.device in OWN_MEMORY  # type: ignore[attr-defined]

    def is_contiguous(self) -> bool:
        """Whether the memory has no gaps."""
        return bool(self._data.flags.c_contiguous)

    def stride(self, dim: int | None = None) -> Any:
        """How many elements from one place of an axis to the next."""
        steps = tuple(step // self._data.itemsize for step in self._data.strides)
        return steps if dim is None else steps[self._axis(dim)]

    def element_size(self) -> int:
        """Bytes of an element."""
        return int(self._data.itemsize)

    def new_tensor(self, data: Any, dtype: Any = None) -> Any:
        """Data as a tensor of this dtype and device."""
        return self._constant(data, dtype_name(dtype or self.dtype))

    def new_full(self, size: Any, fill_value: float, dtype: Any = None) -> Any:
        """One number everywhere, in this dtype and on this device."""
        wanted = dtype_name(dtype or self.dtype)
        return self._constant(np.full(size, fill_value), wanted)

    def new_zeros(self, *size: Any, dtype: Any = None) -> Any:
        """Zeros in this dtype and on this device."""
        return self.new_full(size[0] if len(size) == 1 else size, 0, dtype)

    def new_ones(self, *size: Any, dtype: Any = None) -> Any:
        """Ones in this dtype and on this device."""
        return self.new_full(size[0] if len(size) == 1 else size, 1, dtype)

    new_empty = new_zeros


def _written(name: str) -> Callable[..., Any]:
    def method(self: InMemory, *args: Any, **options: Any) -> Any:
        return self._in_place(f"{name}_", lambda x, _: getattr(x, name)(*args, **options), None)

    method.__doc__ = f"x.{name}(...) in the memory of x; x itself."
    return method


for _name in WRITTEN:
    setattr(InMemory, f"{_name}_", _written(_name))
