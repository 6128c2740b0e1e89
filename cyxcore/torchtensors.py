"""What of PyTorch's names only tensors have, for they have memory: x.add_(y), x.zero_(), x.data, x.new_zeros(…)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from cyxcore import drawing, variates
from cyxcore.device import OWN_MEMORY
from cyxcore.dtype import FLOATS, INEXACT, dtype_name, iinfo
from cyxcore.errors import DtypeError, GradientError, SpecError
from cyxcore.inplace import InPlace
from cyxcore.keys import next_key
from cyxcore.torchsymbols import Placed
from cyxcore.values import Value

# x.name_(…) is x.name(…) written into x.
WRITTEN = (
    "abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr arccos arcsin arctan asin asinh atan atan2 "
    "atanh baddbmm bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil clamp "
    "clamp_max clamp_min clip copysign cos cosh cumprod cumsum deg2rad digamma div divide eq erf erfc erfinv exp "
    "exp2 expm1 fix float_power floor floor_divide fmod frac gcd ge greater greater_equal gt heaviside hypot "
    "index_add index_copy index_fill index_put index_reduce lcm ldexp le lerp less less_equal lgamma log log10 log1p "
    "log2 logical_and logical_not logical_or logical_xor logit lt masked_fill masked_scatter mul multiply nan_to_num "
    "ne neg negative nextafter not_equal pow put rad2deg reciprocal relu remainder renorm round rsqrt scatter "
    "scatter_add scatter_reduce sgn sigmoid sign sin sinc sinh sqrt square sub subtract tan tanh tril triu true_divide "
    "trunc xlogy"
).split()

# Of which the gradient does not read what x was, that of mul only where the other factor is asked for its own.
UNREAD = frozenset(
    "add sub subtract mul multiply div divide true_divide neg relu exp sqrt sigmoid tanh masked_fill".split()
)

WHOLE = {"bool": 2, "bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}  # how far each holds them

# What other memory than ours has: what to do instead.
ELSEWHERE = {
    "apply_ map_ map2_": "write it with operations, or make one of a Python function with cx.op",
    "as_strided as_strided_": "take slices, reshape and permute; x.unfold(axis, size, step) gives windows",
    "data_ptr const_data_ptr storage untyped_storage storage_type set_": (
        "x.numpy() shares the memory: x.numpy().ctypes.data"
    ),
    "share_memory_ is_shared pin_memory is_pinned": "threads share tensors as they are; leave it out",
    "resize resize_ resize_as_ squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_": (
        "a tensor keeps its shape; write x = x.squeeze(...), and so on"
    ),
    "detach_": "write x = x.detach()",
    "retain_grad retains_grad": "x.register_hook(print) sees the gradient of a result",
    "grad_fn output_nr": "the tape keeps no functions that can be asked; is_leaf and requires_grad tell what there is",
    "to_sparse to_sparse_csr to_sparse_coo coalesce sparse_dim dense_dim sparse_mask": ("there are no sparse tensors"),
    "values indices": "x.max(dim=1), x.sort(dim=1), … give (values, indices); x.max(1) gives the values alone",
    "dequantize int_repr q_scale q_zero_point qscheme": "cx.quantize works on whole models",
    "eig symeig lstsq lu lu_solve cholesky_solve cholesky_inverse solve triangular_solve geqrf orgqr ormqr": (
        "cx.linalg has eig, svd, solve, cholesky, qr and pinv"
    ),
    "i0 polygamma mvlgamma": "cx.special has i0, polygamma and multigammaln",
    "igamma igammac": "of the gamma functions cx.special has gammaln, digamma, polygamma and multigammaln",
}
_INSTEAD = {name: said for names, said in ELSEWHERE.items() for name in names.split()}


class InMemory(InPlace):
    """The methods that write into a tensor, or ask about its memory."""

    _data: Any
    requires_grad: bool

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there."""
            said = _INSTEAD.get(name)
            raise AttributeError(f"a tensor has no {name!r}" + (f": {said}" if said else ""))

    def copy_(self, source: Any) -> Self:
        """The values of `source`, broadcast and converted, in this memory."""
        given = source if isinstance(source, Value) else self._constant(source)
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
        return self.copy_(drawing.normal(seed, step, 0, self.shape, std=std, mean=mean, dtype=self.dtype))

    def uniform_(self, low: float = 0.0, high: float = 1.0) -> Self:
        """Numbers low <= x < high of the generator cx.manual_seed sets."""
        seed, step = self._drawn_key("uniform_")
        drawn = drawing.fitted(drawing.uniform(seed, step, 0, self.shape), self.dtype)
        return self.copy_(drawn * (high - low) + low)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Ask for a gradient of this leaf, or no longer. What was computed with it while it was frozen gives it none.

        Raises GradientError for what can have none.
        """
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

    def cuda(self, device: None = None, non_blocking: bool = False) -> Self:
        """This tensor on the GPU. Raises MissingExtra or KernelError where none runs."""
        return self.to("cuda")  # type: ignore[attr-defined]

    def type(self, dtype: Any = None) -> Any:
        """This tensor in a dtype; without one the name of its own."""
        return self.dtype if dtype is None else self.astype(dtype)

    def random_(self, low: int = 0, high: int | None = None) -> Self:
        """Whole numbers low <= x < high, or 0 <= x < low where only that is given, each equally likely."""
        first, last = (0, low) if high is None else (low, high)
        if high is None and not low:
            last = WHOLE.get(self.dtype) or min(int(iinfo(self.dtype).max) + 1, 2**63)
        if not first < last:
            raise SpecError(f"random_: expected low below high, got {first} and {last}")
        seed, step = next_key().tolist()
        return self.copy_(variates.integers(variates.Source(seed, step), first, last, self.size).reshape(self.shape))

    def bernoulli_(self, p: float = 0.5) -> Self:
        """1 with probability p, else 0."""
        if not 0.0 <= p <= 1.0:
            raise SpecError(f"bernoulli_: expected a probability of 0..1, got {p}")
        seed, step = next_key().tolist()
        return self.copy_(drawing.uniform(seed, step, 0, self.shape) < p)

    def exponential_(self, lambd: float = 1.0) -> Self:
        """Exponential numbers of the rate lambd."""
        if not lambd > 0.0:
            raise SpecError(f"exponential_: expected a rate above 0, got {lambd}")
        seed, step = self._drawn_key("exponential_")
        drawn = variates.exponential(variates.Source(seed, step), self.size)
        return self.copy_(drawn.reshape(self.shape) / lambd)

    def fill_diagonal_(self, fill_value: float, wrap: bool = False) -> Self:
        """One number on the diagonal. wrap: refused, a tall matrix has one diagonal."""
        if wrap or self.ndim < 2:
            raise SpecError(f"fill_diagonal_: expected a matrix and no wrap, got shape {self.shape}")
        places = np.arange(min(self.shape))
        self[(places,) * self.ndim] = fill_value  # type: ignore[index]
        return self

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self._data.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(self._data.nbytes)

    @property
    def H(self) -> Any:  # noqa: N802 - PyTorch's
        """A matrix transposed and conjugated."""
        return self.adjoint()  # type: ignore[attr-defined]

    mH = H

    def get_device(self) -> int:
        """-1 on the CPU, 0 on the GPU."""
        return 0 if self.is_cuda else -1

    @property
    def is_cpu(self) -> bool:
        """Whether the memory is the host's."""
        return not self.is_cuda

    @property
    def is_sparse(self) -> bool:
        """Never: there are no sparse tensors."""
        return False

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

    new = Placed.new

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
        others = (*args, *options.values())
        is_asked = name in ("mul", "multiply") and any(getattr(x, "requires_grad", False) for x in others)
        readers = others if is_asked or name not in UNREAD else None

        def operate(x: Any, _: Any) -> Any:  # x stands for this tensor among the others too: x.mul_(x)
            named = {word: x if each is self else each for word, each in options.items()}
            return getattr(x, name)(*[x if each is self else each for each in args], **named)

        alone = len(others) == len(args) == 1 and (isinstance(args[0], InPlace) or type(args[0]) in (int, float))
        return self._in_place(f"{name}_", operate, args[0] if alone else None, readers)

    method.__doc__ = f"x.{name}(...) in the memory of x; x itself."
    return method


for _name in WRITTEN:
    setattr(InMemory, f"{_name}_", _written(_name))
