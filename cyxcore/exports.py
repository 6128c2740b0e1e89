"""How a tensor leaves: to NumPy, DLPack, buffers, Python numbers, text."""

import importlib
from collections.abc import Iterable, Iterator, Sized
from html import escape
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore.dtype import is_float
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.kernels.bfloat16 import widened
from cyxcore.torchtensors import InMemory

Array = Any  # numpy.ndarray, or cupy.ndarray for a tensor on a device with its own memory

API_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12", "2025.12")  # of the array API standard; the last is ours

_OF_SHAPES = (np.shape, np.ndim)


class Leaving(InMemory):
    """The half of Tensor that gives its numbers away."""

    _data: Array
    requires_grad: bool

    @property
    def device(self) -> devices.Device:
        """Where ops of this tensor run: a name of cyxcore.device.DEVICES."""
        return devices.named(devices.name_of(self._data))

    def numpy(self) -> np.ndarray[Any, Any]:
        """The array itself, not a copy, where it is in the host's memory; otherwise a copy."""
        if self.dtype == "bfloat16":
            raise DtypeError("numpy: NumPy has no bfloat16; use astype('float32') first, which loses nothing")
        return devices.host(self._data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """The array itself, or a copy where `dtype` or `copy` ask for one.

        Raises ValueError for copy=False with another dtype.
        """
        array = self.numpy()
        if dtype is None or np.dtype(dtype) == array.dtype:
            return array.copy() if copy else array
        if copy is False:
            raise ValueError(f"__array__: {self.dtype} as {np.dtype(dtype)} is a copy; leave copy=False out")
        return array.astype(dtype)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """NumPy's functions see the tensors they are given as arrays, and give arrays: np.sum(x)."""
        if function in _OF_SHAPES and len(arguments) == 1 and isinstance(arguments[0], Leaving):
            return getattr(arguments[0], function.__name__)  # no elements are needed, which may be elsewhere
        return function(*_as_arrays(arguments), **_as_arrays(options))

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """The memory itself for another library. Raises BufferError for what has a gradient."""
        self._shareable("__dlpack__")
        wanted = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        options = {name: value for name, value in wanted.items() if value is not None}
        if type(self._data) is np.ndarray:
            return importlib.import_module("cyxcore.dlpack").exported(self._data, options)
        return self._data.__dlpack__(**options)

    def _shareable(self, name: str) -> None:
        if self.requires_grad:
            raise BufferError(f"{name}: a tensor that requires a gradient cannot be shared; detach() it first")

    def _exported(self) -> Array:
        """What memoryview(tensor) sees: the memory itself."""
        self._shareable("memoryview")
        if self.dtype == "bfloat16" or type(self._data) is not np.ndarray:
            what = "bfloat16" if self.dtype == "bfloat16" else f"the memory of {self.device}"
            raise BufferError(f"memoryview: {what} has no buffer; use astype('float32') or to('cpu') first")
        return self._data

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        """The module with the array API standard's functions. Raises SpecError for a version it does not have."""
        if api_version not in (None, *API_VERSIONS):
            raise SpecError(f"__array_namespace__: expected one of {', '.join(API_VERSIONS)}, got {api_version!r}")
        return importlib.import_module("cyxcore")

    @property
    def _readable(self) -> Array:
        """The numbers in a dtype NumPy knows."""
        held = devices.host(self._data)
        return widened(held) if self.dtype == "bfloat16" else held

    def item(self) -> Any:
        """The one element as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}")
        return self._readable.item()

    def tolist(self) -> Any:
        return self._readable.tolist()

    def __complex__(self) -> complex:
        return complex(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __index__(self) -> int:
        if self.shape != () or is_float(self.dtype) or self.dtype == "bool":
            raise TypeError(f"index: expected an integer scalar, got {self.shape} {self.dtype}")
        return int(self._data.item())

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __contains__(self, number: Any) -> bool:
        """Whether an element is the number, whatever the axes."""
        found = self == number
        return isinstance(found, Leaving) and bool(found._readable.any())

    def __format__(self, spec: str) -> str:
        """A 0-d tensor as its number is formatted, f"{loss:.3f}"; others as text, without a format."""
        if spec and self.shape:
            raise TypeError(f"format: expected a 0-d tensor for {spec!r}, got shape {self.shape}; take item() of one")
        return str(self) if self.shape else format(self.item(), spec)

    def _repr_html_(self) -> str:
        """For notebooks: a table of up to two axes of moderate size, otherwise the text."""
        about = escape(f"{self.shape} {self.dtype}{' requires_grad' if self.requires_grad else ''} on {self.device}")
        if self.ndim not in (1, 2) or not 0 < self.size <= 400 or max(self.shape) > 40:
            return f"<pre>{escape(repr(self))}</pre>"
        rows = self._readable.reshape(-1, self.shape[-1])
        cells = ("".join(f"<td>{escape(f'{x:.6g}')}</td>" for x in row.tolist()) for row in rows)
        return f"<table><caption>{about}</caption>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"

    def __repr__(self) -> str:
        text = np.array2string(self._readable, separator=", ", prefix="Tensor(", threshold=100)
        gradient = ", requires_grad=True" if self.requires_grad else ""
        place = "" if type(self._data) is np.ndarray else f", device={self.device}"
        return f"Tensor({text}, shape={self.shape}, dtype={self.dtype}{place}{gradient})"


def _as_arrays(given: Any) -> Any:
    """The same arguments, tensors among them (in lists and what else holds several) as arrays of their memory."""
    if isinstance(given, Leaving):
        return given.numpy()
    if type(given) is dict:
        return {name: _as_arrays(value) for name, value in given.items()}
    if isinstance(given, (str, bytes)) or not (isinstance(given, Sized) and isinstance(given, Iterable)):
        return given
    if hasattr(given, "__array__"):
        return given
    items = list(given)
    arrays = [*map(_as_arrays, items)]
    if all(array is item for array, item in zip(arrays, items, strict=True)):
        return given
    return tuple(arrays) if isinstance(given, tuple) else arrays
