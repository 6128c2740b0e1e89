"""Making tensors: the array API standard's creation functions, random ones, and those from NumPy.

A shape is an integer or a tuple of them. Without a dtype floats are float32 and integers int64.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from cyxcore import dlpack, drawing
from cyxcore.becoming import note, noting
from cyxcore.device import DEVICES, OWN_MEMORY, default_device
from cyxcore.dtype import DEFAULTS, FLOATS, dtype_name
from cyxcore.eager import Tensor, around, as_array, copy_of, next_key, wrap
from cyxcore.elementwise import or_method, value_of
from cyxcore.errors import DtypeError, ShapeError, SpecError
from cyxcore.functional.basic import where
from cyxcore.held import filled
from cyxcore.hosted import is_symbolic
from cyxcore.infer import Shape
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES
from cyxcore.keys import drawn

__all__ = (  # also in cyxcore/__init__.py
    "arange asarray empty empty_like eye from_dlpack from_numpy full full_like linspace meshgrid ones ones_like rand "
    "randn tensor tril triu zeros zeros_like"
).split()

Array = np.ndarray[Any, Any]


Make = TypeVar("Make", bound=Callable[..., Tensor])


def placed(make: Make, is_new: bool = True) -> Make:
    """What `make` makes, on the device it is asked for (None: the default one)."""

    @functools.wraps(make)
    def on_device(*args: Any, **options: Any) -> Tensor:
        made, name = make(*args, **options), options.get("device") if options else None
        if noting[0] and is_new:
            note(made)
        if name is None:
            name = default_device()
            if name not in OWN_MEMORY:
                return made
        return made if name is None or not {name, made.device} & {*OWN_MEMORY} else made.to(name)

    return on_device  # type: ignore[return-value]


def _on(device: Any) -> None:
    """Raises SpecError for a device that is not there."""
    if device is not None and device not in DEVICES:
        raise SpecError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")


def _shape(shape: Any, more: tuple[Any, ...] = ()) -> Shape:
    """Sizes given as an integer, as a tuple, or one by one."""
    if type(shape) is int and shape >= 0 and not more:  # what loops ask
        return (shape,)
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) and not more else (shape, *more)
    for size in sizes:
        if type(size) is not int or size < 0:
            break
    else:
        return sizes
    try:
        whole = tuple(size.__index__() for size in sizes)
    except (AttributeError, TypeError):
        raise ShapeError(f"shape: expected integers, got {sizes}") from None
    if any(size < 0 for size in whole):
        raise ShapeError(f"shape: expected sizes >= 0, got {whole}")
    return whole


@placed
def tensor(data: Any, dtype: Any = None, requires_grad: bool = False, *, device: Any = None) -> Tensor:
    """A tensor with a copy of `data` (numbers, nested lists, an array). Python floats become float32."""
    made = copy_of(as_array(data, dtype))
    return made.requires_grad_() if requires_grad else made


@functools.partial(placed, is_new=False)
def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """obj as a tensor: itself if it is one of that dtype, around its memory where that can be, else a copy.

    obj: a tensor, numbers, nested lists, an array or a buffer. copy: True always copies; False raises
    ValueError where it would have to.
    """
    _on(device)
    if is_symbolic(obj):
        value: Any = obj if obj.number is None else obj.as_tensor()
        value = value if dtype is None else value.astype(dtype)
        return value.copy() if copy else value
    if isinstance(obj, Tensor):
        if dtype is None or dtype_name(dtype) == obj.dtype:
            return obj.copy() if copy else obj
        if copy is False:
            raise ValueError(f"asarray: {obj.dtype} as {dtype_name(dtype)} is a copy; leave copy=False out")
        return obj.astype(dtype)
    if isinstance(obj, (list, tuple)):
        obj = _nested(obj)
    source = memoryview(obj) if isinstance(obj, (bytearray, bytes)) else obj
    result = Tensor(source, dtype)
    held = np.asarray(source) if isinstance(source, (np.ndarray, memoryview)) or hasattr(source, "typecode") else None
    shared = held is not None and np.shares_memory(held, result._data)
    if copy is False and not shared:
        raise ValueError("asarray: this needs a copy; leave copy=False out")
    return result.copy() if copy and shared else result


def _nested(obj: Any) -> Any:
    """Nested lists with tensors in them as nested lists of arrays NumPy can read."""
    if isinstance(obj, Tensor):
        return obj._readable
    return [_nested(entry) for entry in obj] if isinstance(obj, (list, tuple)) else obj


def from_numpy(array: Array) -> Tensor:
    """A tensor around the array itself: what is written to one is seen by the other."""
    return around(array)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor around memory of another library, by DLPack, or a copy of it where `copy` is true.

    device: where it is wanted, otherwise where it is. Raises BufferError (copy=False) for memory that must be copied.
    """
    _on(device)
    made = around(dlpack.imported(x, copy))
    moved = made if device is None else made.to(device)
    if moved is not made and copy is False:
        raise BufferError(f"from_dlpack: memory on {made.device} is copied to {device}; leave copy=False out")
    return moved


def _filled(
    make: Callable[..., Array],
    shape: Shape,
    dtype: Any,
    device: Any,
    followed: bool = False,
    number: float | None = None,
) -> Tensor:
    """What NumPy's `make` makes. number: where it is this one everywhere."""
    if device is not None:
        _on(device)
    if not followed and (dtype is None or (type(dtype) is str and dtype == "float32")):
        made: Tensor | None = None if number is None else filled(number, shape)
        return wrap(make(shape, np.float32)) if made is None else made
    name = "float32" if dtype is None else dtype_name(dtype)
    if name == "bfloat16":
        return Tensor(make(shape, np.float32), name, followed)
    return Tensor(make(shape, name), requires_grad=True) if followed else wrap(make(shape, name))


@placed
def zeros(shape: Any, *more: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros. The sizes may also be given one by one, as in torch."""
    return _filled(np.zeros, _shape(shape, more), dtype, device, requires_grad, 0.0)


@placed
def ones(shape: Any, *more: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones. The sizes may also be given one by one, as in torch."""
    return _filled(np.ones, _shape(shape, more), dtype, device, requires_grad, 1.0)


@placed
def empty(shape: Any, *more: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Whatever the memory held before: to be written to."""
    if dtype is None and not requires_grad:
        return _filled(np.empty, _shape(shape, more), None, device, number=0.0)
    _on(device)
    made = wrap(np.empty(_shape(shape, more), NUMPY_DTYPES["float32" if dtype is None else dtype_name(dtype)]))
    return made.requires_grad_() if requires_grad else made


@placed
def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """One number everywhere; its kind gives the dtype, as that of a 0-d tensor does."""
    _on(device)
    if type(fill_value) is float and dtype is None and not requires_grad:
        small: Tensor | None = filled(fill_value, _shape(shape))
        if small is not None:
            return small
    if isinstance(fill_value, (Tensor, np.generic)) and not fill_value.shape:
        dtype, fill_value = dtype or dtype_name(fill_value.dtype), fill_value.item()
    if type(fill_value) not in DEFAULTS:
        raise DtypeError(f"full: expected a number, got {type(fill_value).__name__}")
    number = Tensor(fill_value, dtype)._data
    made = wrap(np.full(_shape(shape), number, number.dtype))
    return made.requires_grad_() if requires_grad else made


def zeros_like(
    x: Any, /, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, memory_format: Any = None
) -> Tensor:
    """A tensor of x's shape (and dtype, unless given) filled with 0."""
    made = zeros(value_of("zeros_like", x).shape, dtype=dtype or x.dtype, device=device or getattr(x, "device", None))
    return made.requires_grad_() if requires_grad else made


def ones_like(
    x: Any, /, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, memory_format: Any = None
) -> Tensor:
    """A tensor of x's shape (and dtype, unless given) filled with 1."""
    made = ones(value_of("ones_like", x).shape, dtype=dtype or x.dtype, device=device or getattr(x, "device", None))
    return made.requires_grad_() if requires_grad else made


def empty_like(
    x: Any, /, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, memory_format: Any = None
) -> Tensor:
    """A tensor of x's shape (and dtype, unless given) whose values are not set."""
    made = empty(value_of("empty_like", x).shape, dtype=dtype or x.dtype, device=device or getattr(x, "device", None))
    return made.requires_grad_() if requires_grad else made


def full_like(
    x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of x's shape (and dtype, unless given) filled with one value."""
    made = full(
        value_of("full_like", x).shape, fill_value, dtype=dtype or x.dtype, device=device or getattr(x, "device", None)
    )
    return made.requires_grad_() if requires_grad else made


@placed
def arange(start: Any = None, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Tensor:
    """Numbers from start (0 when only one is given) to below stop."""
    _on(device)
    first, last = (0, start) if stop is None else (start or 0, stop)
    if last is None:
        raise ShapeError("arange: expected where to end")
    if step == 0:
        raise ShapeError("arange: expected a step other than 0")
    whole = all(isinstance(n, int) for n in (first, last, step))
    return Tensor(np.arange(first, last, step), dtype=dtype or ("int64" if whole else "float32"))


@placed
def linspace(
    start: Any,
    stop: Any,
    /,
    num: int | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    endpoint: bool = True,
    steps: int | None = None,
) -> Tensor:
    """num numbers at equal distances from start to stop, without stop itself unless `endpoint`. steps: num."""
    _on(device)
    num = steps if num is None else num
    if num is None:
        raise ShapeError("linspace: expected num, how many numbers")
    if num < 0:
        raise ShapeError(f"linspace: expected num >= 0, got {num}")
    found = np.linspace(start, stop, num, endpoint=endpoint)
    return Tensor(found, dtype or ("complex64" if found.dtype.kind == "c" else "float32"))


@placed
def eye(n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None) -> Tensor:
    """Ones on a diagonal (k above the main one), zeros elsewhere."""
    sizes = _shape((n_rows, n_rows if n_cols is None else n_cols))
    return _filled(lambda shape, name: np.eye(shape[0], shape[1], k, name), sizes, dtype, device)


def _triangle(name: str, x: Any, k: int, lower: bool) -> Any:
    value = value_of(name, x)
    if value.ndim < 2:
        raise ShapeError(f"{name}: expected at least 2 axes, got {value.shape}")
    rows, columns = value.shape[-2:]
    kept = np.tri(rows, columns, k if lower else k - 1, dtype=np.bool_)
    return where(Tensor(kept if lower else ~kept), value, value._constant(0, value.dtype))


@or_method
def tril(x: Any, /, *, k: int = 0) -> Any:
    """x (..., M, N) with zeros above the diagonal k."""
    return _triangle("tril", x, k, lower=True)


@or_method
def triu(x: Any, /, *, k: int = 0) -> Any:
    """x (..., M, N) with zeros below the diagonal k."""
    return _triangle("triu", x, k, lower=False)


def meshgrid(*arrays: Any, indexing: str = "xy") -> tuple[Any, ...]:
    """The coordinates of a grid, one tensor for each vector.

    indexing: "ij" for axes in the order of the vectors, "xy" for the first two exchanged.
    """
    if indexing not in ("xy", "ij"):
        raise SpecError(f'meshgrid: expected indexing "xy" or "ij", got {indexing!r}')
    if any(value_of("meshgrid", x).ndim != 1 for x in arrays) or len({x.dtype for x in arrays}) > 1:
        raise ShapeError(f"meshgrid: expected vectors of one dtype, got {[(x.shape, x.dtype) for x in arrays]}")
    order = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        order[:2] = 1, 0
    shape = tuple(arrays[place].size for place in order)
    rows = (
        x.reshape(*(-1 if order[axis] == place else 1 for axis in range(len(order)))) for place, x in enumerate(arrays)
    )
    return tuple(row.broadcast_to(shape).copy() for row in rows)


@placed
def rand(
    *shape: Any, dtype: Any = "float32", requires_grad: bool = False, device: Any = None, generator: Any = None
) -> Tensor:
    """Uniform numbers in [0, 1), of a generator or of the one manual_seed sets; no finer than float32 in any dtype."""

    def draw(*place: Any, dtype: str) -> Array:
        return drawing.fitted(drawing.uniform(*place), dtype)

    return _drawn("rand", draw, shape, dtype, requires_grad, generator)


@placed
def randn(
    *shape: Any, dtype: Any = "float32", requires_grad: bool = False, device: Any = None, generator: Any = None
) -> Tensor:
    """About normal numbers (cyxcore.drawing.normal), of a generator or of the one manual_seed sets."""
    return _drawn("randn", drawing.normal, shape, dtype, requires_grad, generator)


def _drawn(
    name: str, draw: Callable[..., Array], shape: tuple[Any, ...], dtype: Any, requires_grad: bool, generator: Any
) -> Tensor:
    wanted = dtype_name("float32" if dtype is None else dtype)
    if wanted not in FLOATS:
        raise DtypeError(f"{name}: expected a float dtype, got {wanted}; see randint for integers")
    sizes = _shape(shape[0], shape[1:]) if shape else ()
    if generator is not None and not hasattr(generator, "next_key"):
        raise SpecError(f"{name}: expected a cx.Generator, got {type(generator).__name__}")

    def made() -> Tensor:
        seed, step = (next_key() if generator is None else generator.next_key()).tolist()
        return Tensor(draw(seed, step, 0, sizes, dtype=wanted), wanted, requires_grad)

    tensor: Tensor = drawn(generator, made)
    return tensor
