"""Tensor: what a user types. Eager, NumPy semantics, gradients by `backward()`.

An op runs at once where its tensors are (device.py); when a gradient may be asked for, the result
remembers the op and its inputs, and `backward` walks back with the rules of gradients.py.
"""

import copy
import importlib
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from cyxcore import casting, indexing, infer, torchstatistics  # noqa: F401 - tensors have PyTorch's names too
from cyxcore import device as devices
from cyxcore.conversion import as_array as as_array
from cyxcore.device import DTYPE_NAMES
from cyxcore.dispatch import PURE, SHORT, dispatched
from cyxcore.dtype import (
    COMPLEX,
    DEFAULTS,
    INTEGERS,
    holds_kind,
    item_bytes,
    out_of_range,
    scalar_dtype,
)
from cyxcore.errors import DataError, DtypeError, GradientError, ShapeError, SpecError
from cyxcore.exports import Leaving
from cyxcore.gradients import NO_GRADIENT
from cyxcore.held import Held, Node, connect, copied, is_recording
from cyxcore.infer import Shape, Typed
from cyxcore.inplace import InPlace, check_fits
from cyxcore.kernels.bfloat16 import NUMPY_DTYPES
from cyxcore.keys import Generator as Generator
from cyxcore.keys import generator_state as generator_state
from cyxcore.keys import manual_seed as manual_seed
from cyxcore.keys import next_key as next_key
from cyxcore.keys import set_generator_state as set_generator_state
from cyxcore.memory import GONE, VIEWS, Memory, Put, Region, View, picked, put, seen
from cyxcore.ops import infer_op
from cyxcore.tape import DIFFERENTIABLE, Composed, into_leaves
from cyxcore.tape import enable_grad as enable_grad
from cyxcore.tape import no_grad as no_grad
from cyxcore.tape import now as now
from cyxcore.tape import pull as pull
from cyxcore.tape import recorded as recorded
from cyxcore.tape import recording as recording
from cyxcore.tape import unchanged as unchanged
from cyxcore.values import Value, apply, binary, of_one_dtype, to_inexact

Array = Any  # numpy.ndarray, or cupy.ndarray for a tensor on a device with its own memory


FEW_OF = 4  # of so many the best one is found faster than by sorting all
FEW_RANKS = 8  # so many are found faster than by sorting all
_ALIKE = frozenset(("float32", "float64", *INTEGERS))  # dtypes of which equals are alike, but for zeros and NaN


LEAST_COMPOSED = 65536  # elements; less stays in the cache, and one operation after the other takes less time


@cache
def _planned(module: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


@lru_cache(4096)
def _infer(op: str, shapes: tuple[Shape, ...], dtypes: tuple[str, ...]) -> tuple[Typed, dict[str, Any]]:
    """infer_op of a call without attributes: loops ask the same question again and again."""
    return infer_op(op, shapes, dtypes, {})


_quiet = [0, 0]  # a time, and the last one up to which nothing was recorded since


def _pass(time: int) -> list[int]:
    """Let a time at which nothing is recorded go by. Returns `_quiet`."""
    if _quiet[1] != time - 1:
        _quiet[0] = time - 1
    _quiet[1] = time
    return _quiet


_FLOAT = ("float32", "float64")
_EXACT = (*_FLOAT, "int64", "int32")  # whose operations have kernels that may write over what they read
_UFUNCS: dict[str, np.ufunc] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
_READ_WITH_GAPS = ("cast", "concat", *_UFUNCS)
_IN_PLACE = {
    **dict.fromkeys(("+=", "add_"), "add"),
    **dict.fromkeys(("-=", "sub_", "subtract_"), "sub"),
    **dict.fromkeys(("*=", "mul_", "multiply_"), "mul"),
    **dict.fromkeys(("/=", "div_", "divide_", "true_divide_"), "div"),
}


class Tensor(Held, Leaving):
    """An array and, where one was asked for, its gradient. Made by tensor(), zeros(), ... or from_numpy()."""

    _rank = 1
    _hooks: "list[Callable[[Tensor], Tensor | None]] | None"  # set by register_hook: most tensors never have any
    _op: Node | None
    grad: "Tensor | None"

    def __init__(self, data: Any, dtype: Any = None, requires_grad: bool = False) -> None:
        self._data = as_array(data, dtype)
        self.shape: tuple[int, ...] = self._data.shape
        self.dtype: str = DTYPE_NAMES[self._data.dtype]
        self.grad = None
        self.requires_grad = requires_grad
        self._view: View | None = None
        self._memory: Memory | None = None  # of nobody else
        if isinstance(data, Tensor) and np.may_share_memory(self._data, data._data):
            self._memory = data._shared()
        self._op = None
        if requires_grad and self.dtype not in DIFFERENTIABLE:
            raise GradientError(f"tensor: only float and complex tensors have gradients, got {self.dtype}")

    # how an op is applied ---------------------------------------------------------------------

    def _apply_generally(self, op: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> "Tensor":
        """One op on whatever there is; Held._apply takes a shorter way where a call is known."""
        tensors = tuple(value if isinstance(value, Tensor) else Tensor(value) for value in inputs)
        shapes, dtypes = tuple([t.shape for t in tensors]), tuple([t.dtype for t in tensors])
        (shape, dtype), normal = infer_op(op, shapes, dtypes, attrs) if attrs else _infer(op, shapes, dtypes)
        moved = tensors[0]._moved(op, tensors, shape, dtype, normal) if op in _READ_WITH_GAPS else None
        if moved is not None:
            result = moved
        elif op in VIEWS:
            result = tensors[0]._seen(op, shape, normal)
        else:
            arrays = [t._data if t._view is None else t._dense() for t in tensors]
            backend = _backend(op, arrays)
            result = wrap(backend.empty(shape, dtype))
            backend.call(op, result._data, arrays, normal)
        if (
            is_recording()
            and op not in NO_GRADIENT
            and dtype in DIFFERENTIABLE
            and any(t.requires_grad for t in tensors)
        ):
            result.requires_grad = True
            result._op = Node(op, tensors, normal, now())
        return result

    def _composed(
        self, function: Callable[..., Any], inputs: Sequence[Any], options: tuple[Any, ...], elements: int = 0
    ) -> Any:
        if casting.inside[0] and casting.composed_of_halves(self):
            return self._in_halves(function, inputs, options, None)
        if not devices.planned[0] or (elements or math.prod(self.shape)) < LEAST_COMPOSED:
            return function(*inputs, *options)
        return _planned("cyxcore.composed", "composed")(function, inputs, options)

    def _in_halves(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        options: tuple[Any, ...],
        half: str | None,
        elements: int = 0,
    ) -> Any:
        if devices.planned[0] and (elements or math.prod(self.shape)) >= LEAST_COMPOSED:
            with casting.of_thread(None):
                found = _planned("cyxcore.composed", "in_halves")(function, inputs, options, half)
            if found is not None:
                return found
        return casting.step_by_step(function, inputs, options, half)

    def _sequenced(self, function: Callable[..., Any], inputs: Sequence[Any], options: tuple[Any, ...]) -> Any:
        if not devices.straight[0]:
            return function(*inputs, *options)
        return _planned("cyxcore.sequences", "sequence")(function, inputs, options)

    def _picked(self, index: Any) -> "Tensor":
        result: Tensor = indexing.get(self, index)
        return result

    def _reversed(self, axes: tuple[int, ...]) -> "Tensor":
        return self._apply("flip", [self], {"axes": axes})

    def _moved(
        self, op: str, tensors: Sequence["Tensor"], shape: Shape, dtype: str, attrs: dict[str, Any]
    ) -> "Tensor | None":
        """What NumPy makes of memory with gaps where it lies, to the same bits; None: it is for a kernel.

        Kernels read memory without gaps, so that every number would be copied first.
        """
        if all(t._data.flags.c_contiguous for t in tensors):
            return None
        if op == "cast":
            return wrap(self._dense()) if dtype == self.dtype else None
        for t in tensors:
            t._refresh()
        parts = [t._data for t in tensors]
        if any(type(part) is not np.ndarray for part in parts):
            return None
        function = _UFUNCS.get(op)
        if function is None:
            return wrap(np.concatenate(parts, attrs["axis"], out=devices.backend(self.device).empty(shape, dtype)))
        if any(t.dtype not in _EXACT or not t.ndim or t._data.strides[-1] != t._data.itemsize for t in tensors):
            return None  # by columns NumPy is slower than a kernel that moves blocks
        with np.errstate(all="ignore"):
            return wrap(function(*parts, out=devices.backend(self.device).empty(shape, dtype)))

    # memory -----------------------------------------------------------------------------------

    def _shared(self) -> Memory:
        if self._memory is None:
            self._memory = Memory()
        return self._memory

    def _seen(self, op: str, shape: Shape, attrs: dict[str, Any]) -> "Tensor":
        """A view of this tensor, or a copy where a reshape of memory with gaps needs one."""
        if self._view is not None:
            self._refresh()
        result = wrap(seen(self._data, op, attrs, shape))
        if op == "reshape" and not self._data.flags.c_contiguous and not result.shares_memory(self):
            return result
        result._memory = memory = self._shared()
        if self._view is None or self._view.base is None:
            result._view = View(self, ((op, attrs),), memory.put)
        else:
            result._view = View(self._view.base, (*self._view.steps, (op, attrs)), memory.put)
        return result

    def _dense(self) -> Array:
        """The array of a view for a kernel: without gaps. What the view remembers is brought up to date."""
        self._refresh()
        return self._data if self._data.flags.c_contiguous else self._contiguous()

    def _contiguous(self) -> Array:
        backend = devices.backend(self.device)
        if type(self._data) is np.ndarray and self.size and min(self._data.strides, default=0) < 0:
            steps = tuple(-1 if stride < 0 else 1 for stride in self._data.strides)
            forwards = self._data[tuple(slice(None, None, step) for step in steps)]
            if forwards.flags.c_contiguous:
                result = backend.empty(self.shape, self.dtype)
                starts = tuple(0 if step > 0 else n - 1 for step, n in zip(steps, self.shape, strict=True))
                stops = tuple(n if step > 0 else -1 for step, n in zip(steps, self.shape, strict=True))
                backend.call("slice", result, [forwards], {"starts": starts, "stops": stops, "steps": steps})
                return result
        order = sorted(range(len(self.shape)), key=lambda axis: -self._data.strides[axis])
        packed = self._data.transpose(order)
        if not packed.flags.c_contiguous:
            return devices.put(self._data, self.device)
        result = backend.empty(self.shape, self.dtype)
        backend.call("transpose", result, [packed], {"axes": tuple(order.index(axis) for axis in range(len(order)))})
        return result

    def contiguous(self, *, memory_format: Any = None) -> "Tensor":
        """This tensor if its memory has no gaps, otherwise a copy. memory_format: accepted and without effect."""
        return self if self._data.flags.c_contiguous else self.copy()

    def _refresh(self) -> None:
        """What a view remembers after its base was assigned to: that it is a view of the base as it is now."""
        view, memory = self._view, self._memory
        if view is None or view.base is None or memory is None or memory.put <= view.since:
            return
        view.since = memory.put
        if not view.base.requires_grad:
            return
        before, base = self._as_it_was(), view.base
        with recording(True):
            for op, attrs in view.steps:
                base = base._apply(op, [base], dict(attrs))
        self._op, self.requires_grad = Node(Put(None), (before, base), {}, now()), True

    def _as_it_was(self) -> "Tensor":
        """What this tensor remembers, as a tensor whose values are gone."""
        before = wrap(self._data)
        before._op, before.requires_grad, before._memory = self._op, self.requires_grad, Memory(GONE)
        before._hooks, self._hooks = self._hooks, None
        return before

    def _kept(self, *others: Any) -> "Tensor":
        if not is_recording() or self.dtype not in DIFFERENTIABLE:
            return self
        return self.copy() if self._followed() or any(getattr(x, "requires_grad", False) for x in others) else self

    def _at_once(self, name: str, other: Any) -> bool:
        op = _IN_PLACE.get(name)
        if op is None or self.dtype not in (_FLOAT if op == "div" else _EXACT):
            return False
        if is_recording() and (self._followed() or getattr(other, "requires_grad", False)):
            return False
        if type(other) in (int, float) and scalar_dtype(other, self.dtype) == self.dtype:
            given = self._constant(other, self.dtype)._data
        elif isinstance(other, Tensor) and other.dtype == self.dtype and other.shape == self.shape:
            given = other._data
        else:
            return False
        own = self._data
        if type(own) is not np.ndarray or type(given) is not np.ndarray or not own.flags.writeable:
            return False
        if not (own.flags.c_contiguous and given.flags.c_contiguous):
            return False
        if other is not self and np.may_share_memory(own, given):
            return False
        if self._view is not None:
            self._refresh()
        devices.backend(self.device).call(op, own, [own, given], {})
        self._wrote()
        return True

    def _is_newest(self) -> bool:
        node = self._op
        if node is None or self._memory is not None or self._view is not None or not is_recording():
            return False
        if type(node.op) is not str and not isinstance(node.op, Composed):
            return False  # the user's, whose backward may read this tensor
        return node.time in _pass(now())

    def _become(self, name: str, operate: Callable[[Any, Any], Any], other: Any) -> "Tensor":
        before = wrap(self._data)
        before._op, before.requires_grad = self._op, True
        result = operate(before, before if other is self else other)
        if not isinstance(result, Tensor):
            return result._written_to(self, name)
        check_fits(name, self, result)
        if result is before:
            return self
        if result._memory is not None:  # a view of something
            result = result.copy()
        result = result.astype(self.dtype)
        before._hooks, self._hooks = self._hooks, None
        self._data, self._op = result._data, result._op
        return self

    def _wrote(self) -> int:
        """Tell everybody with this memory that it was written to. Returns the time."""
        self._shared().written = time = now()
        return time

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into this tensor's memory, whoever else sees it. An index is what reading takes.

        Raises DtypeError for values of a kind the dtype cannot hold, ShapeError, IndexError, and GradientError for
        a leaf that requires a gradient.
        """
        if (
            isinstance(index, Tensor)
            and index.dtype == "bool"
            and type(value) in DEFAULTS
            and self._filled(index, value)
        ):
            return
        for part in (value, *(index if type(index) is tuple else (index,))):
            if getattr(part, "is_symbolic", False):
                _planned("cyxcore.becoming", "value_of")(self, part, "assignment")[index] = value
                return
        basic: list[Any] = [slice(None)] * self.ndim
        arrays: dict[int, Array] = {}
        shape = self.shape
        if index is not Ellipsis:
            basic, found = indexing.split(self, index)
            arrays = {axis: part._data for axis, part in found.items()}
            shape = picked(self.shape, basic, arrays)
        given = self._fitting(value)
        if given.size == 1 and given.ndim > len(shape):
            given = given.reshape(())
        if not infer.stretches(given.shape, shape):
            raise ShapeError(f"assignment: expected a value for shape {shape}, got {given.shape}")
        self._put(given, tuple(basic), arrays)

    def _filled(self, mask: "Tensor", number: Any) -> bool:
        """Whether a number was written where a mask is true: of memory of the host of which nothing is remembered."""
        plain = type(self._data) is np.ndarray and self._data.flags.writeable and type(mask._data) is np.ndarray
        if not plain or not mask.shape or 0 in mask.shape or (is_recording() and self._followed()):
            return False
        indexing.fitting_mask(mask, self)
        given = self._fitting(number)
        if self._view is not None:
            self._refresh()
        wide = mask._data.reshape(mask.shape + (1,) * (self.ndim - mask.ndim))
        np.copyto(self._data, given._data, where=wide)
        self._wrote()
        return True

    def _true_places(self) -> "Tensor":
        """Where a mask, flattened, is true: int64."""
        return self._constant(np.flatnonzero(devices.host(self._data)))

    def _sorted(self, axis: int, descending: bool) -> "Tensor | None":
        """Sorted where equals are alike, so that no order among them is to be kept; None where they may not be."""
        if type(self._data) is not np.ndarray or self.requires_grad or self.dtype not in _ALIKE:
            return None
        if self.dtype in devices.ORDERED and self.shape[axis] >= devices.LEAST_ORDERED and self._on_host:
            return None  # the places are found faster
        if self.dtype in DIFFERENTIABLE and (
            np.isnan(self._data).any() or np.signbit(self._data[self._data == 0]).any()
        ):
            return None
        found = np.sort(self._data, axis=axis)
        return wrap(np.ascontiguousarray(np.flip(found, axis) if descending else found))

    def _places_of_best(self, k: int, axis: int, largest: bool) -> "Tensor | None":
        """Where the k largest (or smallest) along an axis are, as a stable sort has them; None: let it find them."""
        if not isinstance(self._data, np.ndarray) or not self.shape or self.dtype not in _ALIKE:
            return None
        count = self.shape[axis]
        quick = (
            None if not 0 < k <= count // FEW_OF else devices.backend(self.device).best(self._data, k, axis, largest)
        )
        if quick is not None:
            return self._constant(quick, "int64")
        rows = np.moveaxis(self._data, axis, -1)
        if not 0 < k <= count // FEW_OF or (self.dtype in DIFFERENTIABLE and np.isnan(rows).any()):
            return None
        edge = count - k if largest else k - 1
        last = np.partition(rows, edge, axis=-1)[..., edge : edge + 1]
        better, equal = (rows > last if largest else rows < last), rows == last
        missing = k - np.count_nonzero(better, axis=-1, keepdims=True)
        if (missing != np.count_nonzero(equal, axis=-1, keepdims=True)).any():  # the first of equals
            equal &= np.cumsum(equal, axis=-1, dtype=np.int64) <= missing
        found = np.nonzero(better | equal)[-1].reshape(*rows.shape[:-1], k)
        taken = np.take_along_axis(rows, found, -1)
        order = np.argsort(taken, axis=-1, kind="stable")
        if largest:  # equals stay in their order
            order = k - 1 - np.argsort(taken[..., ::-1], axis=-1, kind="stable")[..., ::-1]
        best = np.take_along_axis(found, order, -1)
        return self._constant(np.ascontiguousarray(np.moveaxis(best, -1, axis)), "int64")

    def _places_of_ranks(self, ranks: Sequence[int], axis: int) -> "Tensor | None":
        """Where the elements are that a stable sort would put at a few ranks along an axis, which has as many in the
        result; None: let it find them.
        """
        if not isinstance(self._data, np.ndarray) or self.dtype not in _ALIKE or not 0 < len(ranks) <= FEW_RANKS:
            return None
        rows = np.moveaxis(self._data, axis, -1)
        if not rows.size or (self.dtype in DIFFERENTIABLE and np.isnan(rows).any()):
            return None
        parted, found = np.partition(rows, sorted(set(ranks)), axis=-1), []
        for rank in ranks:
            value = parted[..., rank : rank + 1]
            equal = rows == value
            before = rank - np.count_nonzero(rows < value, axis=-1, keepdims=True)
            if before.any():  # of equals, not the first of each row
                equal &= np.cumsum(equal, axis=-1, dtype=np.int64) == before + 1
            found.append(equal.argmax(axis=-1))
        return self._constant(np.stack(found, axis), "int64")

    def _counts(self, size: int) -> "Tensor":
        """How often each of 0 ... size - 1 is in this vector, which holds no others: int64."""
        return self._constant(np.bincount(devices.host(self._data).astype(np.int64, copy=False), minlength=size))

    def _fitting(self, value: Any) -> "Tensor":
        """A value in this tensor's dtype and place, which must be of a kind that dtype holds."""
        if type(value) in DEFAULTS and scalar_dtype(value, self.dtype) == self.dtype:
            return self._constant(value, self.dtype)
        given = value if isinstance(value, Tensor) else Tensor(value)
        plain = isinstance(value, (list, tuple)) and {given.dtype, self.dtype} <= set(INTEGERS)  # of no dtype yet
        if not plain and not holds_kind(self.dtype, given.dtype):
            raise DtypeError(f"assignment: {self.dtype} does not hold {given.dtype}; use astype on one of them")
        if isinstance(value, (list, tuple)):
            given = Tensor(value, self.dtype)
        return given.astype(self.dtype).to(self.device)

    def _put(self, value: "Tensor", basic: tuple[Any, ...] | None = None, arrays: Any = None) -> None:
        """Write a value of this dtype that fits, and remember where it came from."""
        tracked = is_recording() and self.dtype in DIFFERENTIABLE and (value.requires_grad or self._followed())
        if self._view is not None:
            self._refresh()
        base = self if self._view is None or self._view.base is None else self._view.base
        if tracked and base.requires_grad and base._op is None:
            raise GradientError(
                "assignment: a leaf that requires a gradient is not changed in place; do it within no_grad(), "
                "or change a copy"
            )
        if type(self._data) is np.ndarray and not self._data.flags.writeable:
            raise DataError("assignment: this memory is read-only, it belongs to somebody else; change a copy()")
        if not value.size or value.shares_memory(self):  # of nothing there is no telling
            with recording(tracked):
                value = value.copy()  # of what it is, and came from, before it is written to
        elif tracked:
            value._refresh()
        before = base._as_it_was() if tracked else None
        self._write(basic, arrays or {}, value._data)
        now = self._wrote()
        if before is None:
            return
        steps = () if base is self else self._view.steps  # type: ignore[union-attr]
        region = Region(steps, basic, {axis: devices.host(part) for axis, part in (arrays or {}).items()})
        whole = picked(self.shape, basic, region.arrays) if basic is not None else self.shape
        with recording(True):
            value = value.broadcast_to(whole)
        op = Put(None if not steps and basic is None else region)
        base._op, base.requires_grad = Node(op, (before, value), {}, now), True
        base._shared().put = now
        self._refresh()

    def _write(self, basic: tuple[Any, ...] | None, arrays: dict[int, Array], value: Array) -> None:
        if type(self._data) is np.ndarray:
            put(self._data, basic, arrays, devices.host(value))
            return
        target = self._data if basic is None else self._data[(*basic, ...)]
        if arrays:
            held = devices.host(target).copy()
            put(held, (), {axis: devices.host(part) for axis, part in arrays.items()}, devices.host(value))
            value = devices.put(held, self.device)
        devices.backend(self.device).assign(target, value)

    def _followed(self) -> bool:
        return (
            self.requires_grad
            or self._view is not None
            and self._view.base is not None
            and (self._view.base.requires_grad)
        )

    def shares_memory(self, other: Any) -> bool:
        return isinstance(other, Tensor) and np.may_share_memory(self._data, other._data)

    def _constant(self, value: Any, dtype: str | None = None) -> "Tensor":
        if dtype is None or dtype == "bfloat16" or type(value) not in DEFAULTS:
            made = Tensor(np.arange(value.start, value.stop, value.step) if type(value) is range else value, dtype)
            return made if self._on_host else wrap(devices.constant(made._data, self.device))
        try:  # the short way for numbers, which stand beside a tensor in every other expression
            number = (np.array if -6e4 < abs(value) < 6e4 else _infinite)(value, NUMPY_DTYPES[dtype])
            return wrap(number if self._on_host else devices.constant(number, self.device))
        except OverflowError:
            raise out_of_range(value, dtype) from None

    def _next_key(self) -> "Tensor":
        """A fresh key of the eager generator, on the tensor's device: uint64 (2,), for the op `uniform`."""
        return wrap(devices.put(next_key(), self.device))

    def _uniform(self, shape: tuple[int, ...]) -> "Tensor":
        return self._apply("uniform", [self._next_key()], {"shape": shape, "stream": 0})

    def _assign(self, value: Any) -> None:
        self._data[...] = value._data
        _pass(self._wrote())

    def _next_generally(self, op: str, *others: Any, **attrs: Any) -> "Tensor":
        inputs = [self._data, *(x._data if x._view is None else x._dense() for x in others)]
        _backend(op, inputs).call(op, self._data, inputs, attrs)
        self._wrote()
        return self

    def _check_indices(self, indices: Any, size: int) -> Any:
        if not isinstance(indices, Tensor):
            return indices
        if indices._all_below(size):
            return indices
        held = devices.host(indices._data)
        if held.size and (held.min() < -size or held.max() >= size):
            raise IndexError(f"index: expected {-size}..{size - 1}, got {held.min()}..{held.max()}")
        return indices._constant(np.where(held < 0, held + size, held)) if held.size and held.min() < 0 else indices

    # gradients --------------------------------------------------------------------------------

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf it depends on.

        gradient: of this tensor's shape; may be left out for one element. retain_graph: True keeps what the tensor came
        from, for another walk back through it; else that is given back on the way (None: kept with create_graph).
        create_graph: the gradients remember how they were computed, so that they have gradients themselves. inputs: a
        tensor or several that alone get theirs. Raises GradientError, also where what is needed was given back.
        """
        retain_graph = create_graph if retain_graph is None else retain_graph
        if inputs is None:
            into_leaves(self, self._start(gradient), create_graph, retain_graph)
        else:
            only = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            if not only:
                raise GradientError("backward: inputs is empty; name a tensor, or leave it out for all leaves")
            for place, x in enumerate(only):
                if not (isinstance(x, Tensor) and x.requires_grad):
                    raise GradientError(f"backward: input {place} requires no gradient; call requires_grad_() before")
            into_leaves(self, self._start(gradient), create_graph, retain_graph, {id(x) for x in only})

    def _start(self, gradient: Any) -> "Tensor":
        """The gradient a walk back from here begins with."""
        self._refresh()
        if not self.requires_grad:
            raise GradientError(
                "backward: this tensor depends on nothing that requires a gradient; what a compiled module or function "
                "returns does not: compile the training step, with backward() and optimizer.step() in it"
            )
        if gradient is None and self.size != 1:
            raise GradientError(
                f"backward: expected a scalar, got {self.shape}; reduce it with mean() or pass a gradient"
            )
        if gradient is None and self.dtype in COMPLEX:
            raise GradientError(
                "backward: expected a real scalar, got a complex one; take abs() or .real, or pass a gradient"
            )
        if gradient is None and self._on_host:
            one = self._constant(1.0, self.dtype)
            return one if self.shape == () else one.reshape(*self.shape)
        if isinstance(gradient, Tensor) and gradient.dtype == self.dtype:
            start = gradient if gradient._on_host and self._on_host else gradient.to(self.device)
        else:
            start = Tensor(1.0 if gradient is None else gradient, self.dtype).to(self.device)
            start = start.reshape(*self.shape) if gradient is None else start
        if start.shape != self.shape:
            raise ShapeError(f"backward: expected a gradient of shape {self.shape}, got {start.shape}")
        return start

    def register_hook(self, hook: "Callable[[Tensor], Tensor | None]") -> Callable[[], None]:
        """Call hook(gradient) whenever a backward pass knows the gradient of this tensor; what it returns replaces it.

        Returns a function that takes the hook off again. Raises GradientError where no gradient will come.
        """
        if not self.requires_grad:
            raise GradientError("register_hook: this tensor requires no gradient")
        if self._hooks is None:
            self._hooks = []
        hooks = self._hooks  # the list goes along where the tensor is written in place
        hooks.append(hook)
        return lambda: hooks.remove(hook) if hook in hooks else None

    def _detached(self) -> "Tensor":
        result = wrap(self._data)
        result._memory = self._shared()
        if not self._data.flags.c_contiguous:
            result._view = View(None, (), 0)
        return result

    def _read_as(self, dtype: str) -> "Tensor":
        """The same bytes as elements of another dtype, in the same memory and without a past: view(dtype).

        Raises DtypeError and ShapeError where they are no such elements.
        """
        have, want, array = item_bytes(self.dtype), item_bytes(dtype), self._data
        if dtype == "bool" != self.dtype:
            raise DtypeError("view: bytes may be other than 0 and 1, which bools are not; compare with 0 instead")
        if have != want:
            if not self.shape or self.shape[-1] * have % want:
                raise ShapeError(f"view: {self.shape} {self.dtype} is no whole number of {dtype} along its last axis")
            if self.shape[-1] > 1 and array.size and array.strides[-1] != have:
                raise ShapeError("view: elements of another size need a last axis without gaps; use contiguous() first")
        result = wrap(array.view(NUMPY_DTYPES[dtype]))
        if not result._data.flags.aligned:
            raise ShapeError(f"view: the memory does not begin at a whole {dtype}; use copy() first")
        result._memory = self._shared()
        if not result._data.flags.c_contiguous:
            result._view = View(None, (), 0)
        return result

    @property
    def is_leaf(self) -> bool:
        return self._op is None

    # where it is ------------------------------------------------------------------------------

    def to(
        self,
        *where: Any,
        device: Any = None,
        dtype: Any = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: Any = None,
    ) -> "Tensor":
        """This tensor on a device, or of a dtype, or both, as another tensor is: itself if it is so already.

        copy: never itself. On another device it is a copy without a past. non_blocking, memory_format: accepted and
        without effect.
        Raises SpecError for an unknown device, KernelError or MissingExtra for one that does not run here.
        """
        for one in where:
            if isinstance(one, Tensor):
                device, dtype = one.device, one.dtype
            elif one in DTYPE_NAMES or one in NUMPY_DTYPES:
                dtype = one
            else:
                device = one
        if copy:
            made = self.to(*where, device=device, dtype=dtype)
            return made.copy() if made is self else made
        if dtype is not None:
            converted: Tensor = self.astype(dtype)
            return converted if device is None else converted.to(device)
        moved = devices.put(self._data, device)
        if moved is self._data or (type(moved) is np.ndarray and type(self._data) is np.ndarray):
            return self
        result = wrap(moved)
        result.requires_grad = self.requires_grad
        return result

    # out of the tensor world ------------------------------------------------------------------

    def to_device(self, device: str, /, *, stream: Any = None) -> "Tensor":
        """`to` by the standard's name. Raises SpecError for a device that is not there or a stream, which none has."""
        if stream is not None:
            raise SpecError(f"to_device: expected no stream on {device}, got {stream!r}")
        return self.to(device)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("pickle: a tensor is not pickled, a pickle can run code; use cx.save")

    def __copy__(self) -> "Tensor":
        return self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tensor":
        """A leaf of the same class with memory of its own. Raises GradientError for a result with a past."""
        if self._op is not None:
            raise GradientError("deepcopy: a result that remembers its inputs is not copied; detach() it first")
        result = memo[id(self)] = type(self).__new__(type(self))
        result._data, result.grad = self._data.copy(), copy.deepcopy(self.grad, memo)
        result.shape, result.dtype, result.requires_grad = self.shape, self.dtype, self.requires_grad
        result._hooks = None if self._hooks is None else list(self._hooks)
        result.__dict__.update(self.__dict__)
        return result


def _infinite(value: Any, dtype: Any) -> Array:
    """A large number as an array: infinite where the dtype does not hold it, and no warning of NumPy's."""
    with np.errstate(over="ignore"):
        return np.array(value, dtype)


def around(array: Array) -> Tensor:
    """A tensor around an array of ours, gaps and all, or a copy of an array whose elements are not ours."""
    if DTYPE_NAMES.get(array.dtype) is None or not array.flags.aligned or array.flags.c_contiguous:
        return Tensor(array)
    result = wrap(array)
    result._view = View(None, (), 0)
    return result


def wrap(data: Array) -> Tensor:
    """A tensor around an array that is already contiguous and of our dtypes."""
    tensor = Tensor.__new__(Tensor)
    tensor._data = data
    tensor.shape = data.shape
    tensor.dtype = DTYPE_NAMES[data.dtype]
    return tensor


def copy_of(data: Array) -> Tensor:
    """A tensor around a copy of such an array."""
    made: Tensor | None = copied(data, DTYPE_NAMES[data.dtype])
    return wrap(data.copy()) if made is None else made


def alias(x: Tensor) -> Tensor:
    """The same data as a leaf that requires a gradient."""
    result = x.detach()
    result.requires_grad = True
    return result


def _backend(op: str, arrays: Sequence[Array]) -> devices.Backend:
    """Of the device these arrays are on. Scalars may be anywhere; the rest is for the caller to move."""
    for x in arrays:
        if type(x) is not np.ndarray:
            break
    else:
        return devices.backend(devices.name_of(arrays[0]))
    if any(x.ndim for x in arrays if type(x) is np.ndarray):
        places = ", ".join(devices.name_of(x) for x in arrays)
        raise SpecError(f"{op}: expected tensors on one device, got {places}; move them with .to(device)")
    return devices.backend(devices.name_of(x))


def _divided(left: Any, right: Any) -> Any:
    return apply("div", *map(to_inexact, of_one_dtype(left, right)))


_OPERATED = "add sub mul less less_equal equal not_equal greater greater_equal".split()
_operate: dict[str, Callable[[Any, Any], Any]] = {op: partial(binary, op) for op in _OPERATED} | {"div": _divided}
for _name in PURE - SHORT:
    if hasattr(Tensor, _name):
        setattr(Tensor, _name, dispatched(_name, getattr(Tensor, _name)))
_methods = {**vars(Value), **vars(InPlace), **vars(Leaving)}
connect(Tensor, vars(devices), infer_op, seen, _methods, _operate, VIEWS, NO_GRADIENT, DIFFERENTIABLE)
