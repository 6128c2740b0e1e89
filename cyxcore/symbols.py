"""Building graphs: a Builder collects nodes, a Symbol is one of them and computes like a tensor.

A builder works at one concrete batch size. `batch_free` compares two graphs built at two batch
sizes and puts null where they differ by exactly that: so a model is never tied to a batch size by
accident, and code that is tied to one is told so.
"""

import cmath
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, partialmethod
from threading import get_ident
from typing import Any, NamedTuple

from cyxcore import hosted, indexing, torchstatistics  # noqa: F401 - symbols have PyTorch's names too
from cyxcore.attrs import MAX_CONST_ELEMENTS, finite, init_rule, numbers
from cyxcore.dtype import COMPLEX, DEFAULTS, FLOATS, INEXACT, INTEGERS, out_of_range
from cyxcore.errors import CyxError, DtypeError, GradientError, GraphError
from cyxcore.graph import MAX_NODES, SIZES, Graph, Inferred, Node, at_batch, at_layer
from cyxcore.infer import Shape, Typed
from cyxcore.inplace import InPlace, check_fits, references_of_a_name
from cyxcore.ops import OPS, normal_attrs
from cyxcore.torchsymbols import Placed
from cyxcore.values import Value, apply

# Two batch sizes no layer is likely to use as a size of its own.
PROBE_BATCH_SIZES = (1009, 2003)
MOST_NODES = 2 * MAX_NODES  # of a model under construction: what nothing needs is dropped at the end


_ASSIGNED = "assignment"  # x[i] = y, where others are called by their names
_FILLS = ("copy_", "fill_", "zero_")  # which overwrite what is there
_SHOWN = ("reshape", "slice", "transpose", "flip")  # of tensors these are views (memory.VIEWS)


class ValueNeeded(GraphError):
    """Raised where a number is asked for that is not there yet."""


class GradientsAsked(Exception):  # noqa: N818 - no error: the function asks for gradients, which it was not known to
    pass


class NotInAGraph(GraphError, AttributeError):
    """Raised where something is asked for that only tensors have."""


class Write(NamedTuple):
    """That memory was written to: where, and whether within no_grad()."""

    layout: Any
    unrecorded: bool


class Memory:
    """What a symbol and its views have in common, as tensors have memory: what of it was written to, and in order."""

    __slots__ = ("outside", "written")

    def __init__(self, outside: bool) -> None:
        self.outside = outside  # of an argument, a parameter or a tensor from outside
        self.written: list[Write] = []


class Source(NamedTuple):
    """What a view was taken of, and how."""

    symbol: "Symbol"
    op: str
    attrs: dict[str, Any]


class Symbol(Placed):
    """The output of a node under construction."""

    _rank = 2
    is_symbolic = True
    _memory: Memory | None = None  # None: there is no view of it
    _layout: Any = None  # an array that nobody fills, of this shape, which shares memory with those of its views
    _writes = 0  # how often its memory was written to when its node was right
    _source: Source | None = None  # of a view; None where a write made its node
    tensor: Any = None  # in whose place it is: a set of parameters has the order that it has outside

    def __init__(self, builder: "Builder", node: int) -> None:
        self.builder = builder
        self.node = node  # of its value; another one after a write to a parameter
        self.home = node  # of the parameter
        self.shape = builder.shapes[node]
        self.dtype = builder.dtypes[node]

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """A tensor's for programs, which ask isinstance(x, cx.Tensor) also while they are traced.

        Modules of the library tell both apart, and see the class that it is.
        """
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "cyxcore":
            return type(self)
        return self._seen_as()

    def _seen_as(self) -> type:
        found: type = importlib.import_module("cyxcore.eager").Tensor if self.tensor is None else type(self.tensor)
        return found

    def __hash__(self) -> int:
        return object.__hash__(self if self.tensor is None else self.tensor)

    @property
    def is_compiled(self) -> bool:  # type: ignore[override]
        return not self.builder.merging

    def _apply(self, op: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> Any:
        builder = self.builder
        if builder.thread != get_ident():
            there = [x.tensor if isinstance(x, Symbol) else x for x in inputs]
            if all(x is not None for x in there):  # another thread has met what is a symbol while this one traces
                return apply(op, *there, **attrs)
        lifted = [
            x if type(x) is Symbol and x.builder is builder and x._memory is None else builder.lift(x) for x in inputs
        ]
        if op != "cast" and any(x.number is not None for x in lifted):
            if all(isinstance(x, Number) or x.dtype == "bool" for x in lifted):  # nothing whose dtype it could have
                lifted = [x.as_tensor() if isinstance(x, Number) else x for x in lifted]
        result = builder.apply(op, lifted, attrs)
        if builder.recording is not None and not builder.recording():
            result = builder.apply("detach", [result], {})
        return result._shows(lifted[0], op, attrs) if op in _SHOWN else result

    def _shows(self, source: "Symbol", op: str, attrs: dict[str, Any]) -> "Symbol":
        """Itself, as a view of a symbol where that is one of tensors: a reshape of memory with gaps is a copy."""
        memory = source._remembered(self.builder.nodes[source.home].op in ("input", "param"))
        seen = importlib.import_module("cyxcore.memory").seen
        layout = source._layout if op == "detach" else seen(source._layout, op, attrs, self.shape)
        if _may_overlap(layout, source._layout):
            self._memory, self._layout = memory, layout
            self._writes, self._source = len(memory.written), Source(source, op, attrs)
        return self

    def _remembered(self, outside: bool) -> Memory:
        if self._memory is None:
            self._memory, self._layout = Memory(outside), importlib.import_module("numpy").empty(self.shape, "bool")
        return self._memory

    def up_to_date(self) -> "Symbol":
        """Itself; a view of what was written to since then is taken anew: that of a tensor shows what is there now."""
        memory = self._memory
        if memory is None or self._writes == len(memory.written):
            return self
        new = [write for write in memory.written[self._writes :] if _may_overlap(self._layout, write.layout)]
        if self._source is not None and new:
            before, (whole, steps) = self.node, self._taken()
            value = (whole if steps else self._source.symbol).up_to_date()
            for step in steps:
                value = self.builder.apply(step.op, [value], step.attrs)
            if not steps or all(write.unrecorded for write in new):  # its gradient goes on as before
                value = self.builder.apply("detach", [value], {})
                self.builder.written[value.node] = before
            self.node = self.home = value.node
        self._writes = len(memory.written)
        return self

    def _taken(self) -> tuple["Symbol", list[Source]]:
        """Of what it is a view, which is none itself (or is detached), and how it was taken, step by step."""
        whole, steps = self, list[Source]()
        while whole._source is not None and whole._source.op != "detach":
            steps.insert(0, whole._source)
            whole = whole._source.symbol
        return whole, steps

    def __getitem__(self, index: Any) -> "Symbol":
        result: Symbol = indexing.get(self, index)
        return result

    @property
    def device(self) -> Any:
        """As a tensor's: a name, with PyTorch's `type`."""
        return importlib.import_module("cyxcore.device").named(self.builder.device)

    def _reversed(self, axes: tuple[int, ...]) -> "Symbol":
        """As a tensor's, with its gradient; in a graph that travels it is a choice of places."""
        return super()._reversed(axes) if self.builder.travels else self._apply("flip", [self], {"axes": axes})

    def copy(self) -> "Symbol":
        """The same value, which is no view; where gradients must be added up as those of tensors are, it is a node of
        its own.
        """
        if self.builder.merging:
            result = self.builder.at(self.up_to_date().node)
            result._remembered(outside=False)
            return result
        result = self._apply("reshape", [self], {"shape": self.shape})
        result._memory = result._source = None
        return result

    def contiguous(self, *, memory_format: Any = None) -> "Symbol":
        """Itself, or a copy where a tensor would have gaps. memory_format: accepted and without effect."""
        if self._memory is None or self._layout.flags.c_contiguous:
            return self
        return self.copy()

    def __getattr__(self, name: str) -> Any:
        if name in _FILLS or name.endswith("_") and not name.startswith("_") and hasattr(Placed, name[:-1]):
            return partial(self._write, name)
        if name == "_data":
            raise NotInAGraph(
                "a value of a graph has no numbers yet, as state_dict(), saving and the like need; call them outside "
                "of the compiled function"
            )
        raise NotInAGraph(f"a value of a graph has no {name!r}, which only tensors have; use it outside")

    def _check_written(self, name: str, unrecorded: bool) -> None:
        """Raises GraphError for what is not written to: an argument, and a parameter that has a gradient to come.

        A parameter, a buffer or a tensor from outside is updated by the plan, and other values are other nodes.
        """
        builder = self.builder
        if not self._is_outside():
            return
        recording = builder.recording or builder.recording_outside
        has_no_past = unrecorded or recording is not None and not recording()
        if self.is_compiled and builder.nodes[self.home].op == "param" and (has_no_past or not self.requires_grad):
            return
        if not self.is_compiled:
            instead = "another value" if name in _FILLS else f"x.{name[:-1]}(...)"
            instead = "x.clone() before it" if name == _ASSIGNED else instead
            raise GraphError(f"{name}: a graph has no memory to write to; write x = {instead}")
        raise GraphError(
            f"compile: {name} writes to an argument, or to a parameter or tensor from outside, which is only done to "
            "the latter, under cx.no_grad(); keep it in a buffer of a module, or make a new value"
        )

    def _is_outside(self) -> bool:
        """Whether its memory is that of an argument, of a parameter or of a tensor from outside."""
        if self._memory is not None:
            return self._memory.outside
        return self.builder.nodes[self.home].op in ("input", "param")

    def _write(self, name: str, *given: Any, **options: Any) -> "Symbol":
        """x.name(...) of x that is updated: what reads it from here on reads the new value."""
        builder = self.builder
        if name not in _FILLS:
            count = len(builder.nodes)
            return self._take(name, getattr(self, name[:-1])(*given, **options), count)
        value = builder.lift(given[0] if given else False if self.dtype == "bool" else 0)
        value = (value.astype(self.dtype) if name == "copy_" else value).broadcast_to(self.shape)
        is_all = self._source is None or self._source.op == "detach"
        if is_all and (builder.recording is None or builder.recording()) and self.requires_grad:
            check_fits(name, self, value)
            everywhere = builder.constant(True).broadcast_to(self.shape)  # what was there gets zeros, as of a tensor
            value = builder.apply("where", [everywhere, value.astype(self.dtype), self.up_to_date()], {})
        return self._take(name, value)

    def _take(self, name: str, value: "Symbol", count: int | None = None) -> "Symbol":
        """count: of the nodes before the value was computed; what is none of them is the value of nobody else."""
        check_fits(name, self, value)
        is_new = count is not None and value.node >= count and value._memory is None
        recording = self.builder.recording
        self._receive(name, value.astype(self.dtype), is_new, recording is not None and not recording())
        return self.up_to_date()

    def _receive(self, name: str, value: "Symbol", is_new: bool, unrecorded: bool) -> None:
        """This is `value` from here on, and so is that part of what it is a view of.

        unrecorded: no gradient goes on to `value`; what comes to this goes on as before the write.
        """
        self.up_to_date()
        whole, steps = self._taken()
        if steps:
            return whole._receive(name, _with_part(whole.up_to_date(), steps, value), True, unrecorded)
        if self._source is not None:  # detached
            shown = self._source.symbol
            shown._receive(name, value, False, True)
            if not unrecorded:  # a value without a past may get one, which what it shows has not
                self.node = self.home = value.node
                self._writes = len(shown._remembered(outside=False).written)
            return None
        self._check_written(name, unrecorded)
        if self.builder.nodes[self.home].op == "param":
            if not self.requires_grad and value.requires_grad:
                raise GradientError(
                    f"compile: {name} writes a value that has a gradient to a buffer or a tensor from outside, which "
                    "keeps none; write value.detach()"
                )
            self._assign(value)
        elif unrecorded:
            self._write_unrecorded(value)
            self.home = self.node
        else:
            # What is copied into it is written to by itself.
            self.node = self.home = value.node if is_new else value.copy().node
            self._wrote()

    def _wrote(self, unrecorded: bool = False) -> None:
        if self._memory is not None:
            self._memory.written.append(Write(self._layout, unrecorded))
            self._writes = len(self._memory.written)

    def _in_place(self, name: str, operate: Callable[[Any, Any], Any], other: Any, readers: Any = None) -> Any:
        """x += y: whoever else has x, or a view of it, reads the new value. Of a model that is traced x = x + y."""
        if not self.is_compiled and self._is_outside():
            return operate(self, other)
        count = len(self.builder.nodes)
        return self._take(name, operate(self, other), count)

    def _in_place_of(self, tensor: Any, references: int, name: str, operate: Callable[[Any, Any], Any]) -> Any:
        """x += self of a tensor x: of one that a compiled step made (total = cx.zeros(())) x is a symbol from here on.

        references: to x. Where something else has x too it is one there as well, if the step made it (becoming.py).
        """
        alone = tensor._memory is None and references <= references_of_a_name(type(tensor))
        if self.is_compiled and alone:
            return self.builder.lift(tensor).copy()._in_place(name, operate, self)
        return importlib.import_module("cyxcore.becoming").value_of(tensor, self, name)._in_place(name, operate, self)

    def _written_to(self, tensor: Any, name: str) -> Any:
        """x.name(...) of a tensor x, of which this is the result: x is a symbol from here on."""
        importlib.import_module("cyxcore.becoming").value_of(tensor, self, name)._take(name, self)
        return tensor

    def __setitem__(self, index: Any, value: Any) -> None:
        """As of a tensor: whoever else has this value, or a view of it, reads the new one.

        Raises as that of a tensor, and ShapeError where there is a value for each true place of a mask: nobody knows
        yet how many those are.
        """
        if isinstance(index, Symbol) and index.dtype == "bool" and index.ndim:
            indexing.fitting_mask(index, self)
            rest = self.shape[index.ndim :]
            given = hosted.fitting(self, value, rest)
            wide = index.reshape(*index.shape, *(1,) * len(rest))
            self._take(_ASSIGNED, self._apply("where", [wide, given, self], {}), len(self.builder.nodes))
            return
        count = len(self.builder.nodes)
        basic, arrays = indexing.split(self, index)
        part = None if arrays else indexing.get(self, index)
        if part is not None and part._memory is not None and part._memory is self._memory:
            given = self.builder.lift(hosted.fitting(part, value, part.shape))
            part._take(_ASSIGNED, given.broadcast_to(*part.shape))
            self.up_to_date()
        else:
            self._take(_ASSIGNED, hosted.written(self, index, value), count)

    def _constant(self, value: Any, dtype: str | None = None) -> "Symbol":
        return self.builder.constant(value, dtype)

    def _uniform(self, shape: tuple[int, ...]) -> "Symbol":
        return self.builder.uniform(shape)

    def _assign(self, value: Any) -> None:
        """Of a parameter of a compiled step: what reads it from here on reads the new value."""
        new = self.builder.lift(value)
        self.builder.update(self, new)
        if self.is_compiled:
            self._write_unrecorded(new)

    def _write_unrecorded(self, value: "Symbol") -> None:
        """From here on this is `value`, of which no gradient goes on; what comes to it goes on as before the write."""
        before, self.node = self.node, self.builder.apply("detach", [value], {}).node
        self.builder.written[self.node] = before
        self._wrote(unrecorded=True)

    def _following(self) -> "Symbol":
        return self.builder.at(self.builder.updates.get(self.home, self.node))

    def __repr__(self) -> str:
        return f"Symbol(node {self.node}: {self.builder.nodes[self.node].op} {self.shape} {self.dtype})"

    def _no_value(self, what: str) -> GraphError:
        if self.builder.ended:
            return _kept()
        return ValueNeeded(
            f"trace: {what} needs a number, but while tracing a tensor of shape {self.shape} has none yet; "
            "use tensor operations (cx.where instead of if, .mean() instead of float)"
        )

    def _how_many(self) -> int:
        raise ValueNeeded(
            "trace: the shape of the result depends on the data (nonzero, unique, an index that is a mask), and a "
            "graph is made before there are any; keep the shape: cx.where(mask, x, other), x * mask, topk"
        )

    def __bool__(self) -> bool:
        raise self._no_value("a condition (if, while, and, or)")

    def __float__(self) -> float:
        raise self._no_value("float()")

    def __int__(self) -> int:
        raise self._no_value("int()")

    def __index__(self) -> int:
        raise self._no_value("an index or a range")

    def item(self) -> Any:
        raise self._no_value(".item()")

    def numpy(self) -> Any:
        raise self._no_value(".numpy()")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise self._no_value("a conversion to a NumPy array")

    def tolist(self) -> Any:
        raise self._no_value(".tolist()")

    @property
    def grad(self) -> "Symbol | None":
        """What backward() found, as a tensor's `grad`, and what was there before the step."""
        builder, home = self.builder, self.home
        if builder.given is not None and builder.nodes[home].op != "param":
            raise self._no_gradient()
        if home not in builder.begun and builder.given is not None:
            builder.begun.add(home)
            builder.added.add(home)
            first = builder.given(home)
            if first is not None:
                builder.gradients[home] = first
        return builder.gradients.get(home)

    @grad.setter
    def grad(self, value: "Symbol | None") -> None:
        builder, home = self.builder, self.home
        if builder.given is not None and builder.nodes[home].op != "param":
            raise self._no_gradient()
        builder.begun.add(home)
        if value is None:
            builder.gradients.pop(home, None)
            builder.waiting.discard(home)
        else:
            builder.gradients[home] = value
            builder.waiting.add(home)

    def _no_gradient(self) -> GraphError:
        return GraphError(
            "grad: in a compiled step only parameters keep one, not its arguments and what it computes; use "
            "cx.autograd.grad(loss, [x])"
        )

    def _is_trained(self) -> bool:
        """Whether it is a parameter that gets a gradient now."""
        builder = self.builder
        node = builder.nodes[self.home]
        return node.op == "param" and bool(builder.trained.get(self.home, node.attrs["trainable"]))

    @property
    def requires_grad(self) -> bool:
        builder = self.builder
        if builder.differentiate is None or builder.nodes[self.home].op == "param":
            return self._is_trained()
        return self.dtype in INEXACT and builder.is_followed(self)

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.requires_grad_(wanted)

    def requires_grad_(self, requires_grad: bool = True) -> "Symbol":
        """Itself: cx.autograd.grad(outputs, inputs) finds the gradient of every value of a graph.

        A parameter is frozen from here on, or no longer; what was computed with it before goes on as it would have.
        """
        builder = self.builder
        is_param = self.is_compiled and builder.nodes[self.home].op == "param"
        if is_param and builder.differentiate is not None and requires_grad != self.requires_grad:
            used = (node.op != "detach" and self.home in node.inputs for node in builder.nodes)
            if requires_grad and not builder.nodes[self.home].attrs["trainable"] and any(used):
                raise GraphError(
                    "compile: the step trains a parameter that it used while it was frozen, by a name that its code "
                    "does not have; write p.requires_grad_() or p.requires_grad = True in it"
                )
            builder.trained[self.home] = requires_grad
            self.node = builder.apply("detach", [self], {}).node
            if requires_grad:
                builder.written[self.node] = self.home
                builder.begins.add(self.node)
        elif not is_param and self.is_compiled:
            builder.trained[self.home] = requires_grad
        return self

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        """Add the gradient of this scalar to `.grad` of every trained parameter it depends on: in a compiled step.

        retain_graph: without effect, as a plan keeps what it needs. inputs: a trained parameter or several that alone
        get theirs. Raises GradientError for other inputs, none, and the other arguments of a tensor's backward.
        """
        builder, differentiate = self.builder, self.builder.differentiate
        if differentiate is None:
            raise self._no_value(".backward()")
        if gradient is not None or create_graph:
            instead = "cx.grad" if create_graph else "(y * gradient).sum().backward()"
            raise GradientError(f"backward: in a compiled step expected a scalar, and neither argument; use {instead}")
        given: Any = None if inputs is None else [inputs] if isinstance(inputs, Value) else list(inputs)
        if given is not None and not given:
            raise GradientError("backward: inputs is empty; name a parameter, or leave it out for all of them")
        for place, x in enumerate(given or ()):
            if not (isinstance(x, Symbol) and x._is_trained()):
                raise GradientError(
                    f"backward: in a compiled step expected trained parameters as inputs, input {place} is none; use "
                    "cx.autograd.grad(loss, [x])"
                )
        only = None if given is None else {x.home for x in given}
        trained = [value for value in map(builder.at, range(len(builder.nodes))) if value._is_trained()]
        if only is not None:
            trained = [value for value in trained if value.home in only]
        for p, g in zip(trained, differentiate(builder, self.up_to_date(), trained), strict=True):
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g

    def detach(self) -> "Symbol":
        """The same value, through which no gradient goes."""
        builder = self.builder
        if builder.nodes[self.up_to_date().node].op == "detach" and builder.merging:
            return self
        return builder.apply("detach", [self], {})._shows(self, "detach", {})


def _kept() -> GraphError:
    return GraphError(
        "compile: a value of a compiled function is used outside of it, where it was put into an attribute or a list; "
        "return it from the function, whose results are tensors"
    )


def _with_part(whole: Symbol, steps: Sequence[Source], part: Symbol) -> Symbol:
    """A value of which the view that was taken by these steps is `part`."""
    placed = _spread(steps, part)
    if all(step.op != "slice" for step in steps):
        return placed
    here = _spread(steps, part._constant(True).broadcast_to(*part.shape))
    return part._apply("where", [here, placed, whole], {})


def _spread(steps: Sequence[Source], part: Symbol) -> Symbol:
    """Of the shape of what a view was taken of: `part` at its places, zeros elsewhere."""
    for source, op, attrs in reversed(steps):
        if op == "slice":
            part = indexing.spread(part, source.shape, attrs["starts"], attrs["steps"])
        elif op == "transpose":
            part = part.permute(*(attrs["axes"].index(axis) for axis in range(part.ndim)))
        elif op == "flip":
            part = part._reversed(attrs["axes"])
        else:
            part = part.reshape(*source.shape)
    return part


def _may_overlap(one: Any, other: Any) -> bool:
    """Whether two layouts have an element in common; True where that takes long to find out."""
    numpy = importlib.import_module("numpy")
    try:
        return bool(numpy.shares_memory(one, other, max_work=10_000))
    except numpy.exceptions.TooHardError:
        return True


for _name, _method in vars(InPlace).items():  # += and its kind
    if _name.startswith("__i") and _name != "__init__":
        setattr(Symbol, _name, _method)


# Ops whose attributes are integers, flags and names, equal only if they are the same. Elsewhere there are floats, of
# which 0.0 == -0.0, and only their text tells. The normal form has one order of keys.
_EQUAL_IF_SAME = frozenset(
    op.name for op in OPS.values() if not {attr.check for attr in op.attrs.values()} & {finite, numbers, init_rule}
)


class Number(Symbol):
    """A Python number that a compiled function was given.

    Beside a tensor it has that one's dtype, as a number does that is written there; beside others it is computed with
    as Python does, in 64 bits.
    """

    __hash__ = object.__hash__

    def __init__(self, builder: "Builder", node: int) -> None:
        super().__init__(builder, node)
        self.number = 0.0 if self.dtype in FLOATS else 0

    def _seen_as(self) -> type:
        return type(self)

    def as_tensor(self) -> Symbol:
        """What cx.tensor makes of a number."""
        value = Symbol(self.builder, self.node)
        return value.astype("float32") if self.dtype in FLOATS else value

    def astype(self, dtype: Any) -> Symbol:  # type: ignore[override]
        return Symbol(self.builder, self.node).astype(dtype)

    def _with(self, name: str, *others: Any) -> Any:
        """What an operator makes of it and of another one, or of it alone."""
        operate = getattr(Symbol, name)
        if not all(isinstance(other, (Number, int, float)) for other in others):
            return operate(self, *others)
        numbers = [other.number if isinstance(other, Number) else other for other in (self, *others)]
        dtype = "float64" if "truediv" in name or any(isinstance(number, float) for number in numbers) else "int64"
        values = [
            x.astype(dtype) if isinstance(x, Number) else self.builder.constant(x, dtype) for x in (self, *others)
        ]
        result = operate(*values)
        return Number(self.builder, result.node) if result.dtype == dtype else result

    def _in_place(self, name: str, operate: Callable[[Any, Any], Any], other: Any, readers: Any = None) -> Any:
        """n += 1 makes another number, as of Python's."""
        return operate(self, other)

    def _asked(self, *_: Any) -> Any:
        """Of powers some are products and roots; what is left over has rules for zeros."""
        raise self._no_value("a power or a remainder of a number")


for _name in ("pow", "rpow", "floordiv", "rfloordiv", "mod", "rmod"):
    setattr(Number, f"__{_name}__", Number._asked)
for _name in "neg abs pos add radd sub rsub mul rmul truediv rtruediv eq ne lt le gt ge".split():
    setattr(Number, f"__{_name}__", partialmethod(Number._with, f"__{_name}__"))


class Builder:
    """Collects nodes. Equal calls give the same node, so common subexpressions never arise."""

    def __init__(
        self, batch_size: int = 1, most_nodes: int | None = None, merging: bool = True, travels: bool = True
    ) -> None:
        """most_nodes: beyond so many a call raises GraphError, so that no list of layers grows for minutes.

        merging: False where gradients must have the bits that tensors give: a value made twice has two gradients, and
        their sum rounds elsewhere than that of one. What is equal is merged when all gradients are there (passes.py).
        travels: False for a graph that is only there to be run here: it may hold whatever tensors do, calls that have
        NumPy's kernels among them.
        """
        self.batch_size, self.most_nodes, self.merging, self.travels = batch_size, most_nodes, merging, travels
        self.thread = get_ident()  # whose values its symbols are
        self.nodes: list[Node] = []
        self.shapes: list[Shape] = []
        self.dtypes: list[str] = []
        self.updates: dict[int, int] = {}
        self.penalties: list[int] = []
        self.gradients: dict[int, Symbol] = {}  # of a compiled training step: of a parameter's node, so far
        self.given: Callable[[int], Symbol | None] | None = None  # the gradient a parameter has before the step
        self.begun: set[int] = set()  # parameters whose gradient was read or assigned,
        self.added: set[int] = set()  # those of which it was read first, to add to it,
        self.waiting: set[int] = set()  # and those for whose gradient no optimiser made a step yet
        # What was written without being recorded -> what was there: its gradient is that of the same tensor.
        self.written: dict[int, int] = {}
        self.trained: dict[int, bool] = {}  # values whose requires_grad the step has set, and to what
        self.walked: set[int] = set()  # values whose gradients were asked for
        self.begins: set[int] = set()  # what parameters are that are trained again from there on
        self.differentiate: Callable[[Builder, Symbol, list[Symbol]], list[Symbol | None]] | None = None
        self.recording: Callable[[], bool] | None = None  # of a compiled training step: False within no_grad()
        self.recording_outside: Callable[[], bool] | None = None  # the same of a function whose values have no gradient
        self.device = "cpu"  # where the plan will run
        self.at_end: list[Callable[[], None]] = []  # checks when the function has returned
        self.ended = False  # of a compiled function: it has returned, and its values are of no use any more
        self.before: Callable[[int, Node], None] | None = None  # compares each new node with that of a trace before
        self.layer = ""
        self._known: dict[tuple[Any, ...], int] = {}
        self._numbers: dict[tuple[str | None, str], int] = {}  # the constants that are one plain number
        self.draws: list[Any] = []  # of random numbers in their order: None for a stream of the key

    def _add(
        self,
        op: str,
        inputs: tuple[int, ...],
        attrs: Mapping[str, Any],
        typed: Typed | None = None,
        merging: bool = True,
    ) -> Symbol:
        """The node of a call: the one that is there, or a new one. attrs: in normal form. merging: False for a new one,
        of nobody else.
        """
        call = (op, inputs, tuple(attrs.values()) if op in _EQUAL_IF_SAME else repr(attrs))
        merged = merging and (self.merging or not inputs)
        place = self._known.get(call) if merged else None
        if place is None:
            row = OPS[op]
            shape, dtype = typed or (row.infer_in_graph if self.travels else row.infer)(
                tuple([self.shapes[i] for i in inputs]), tuple([self.dtypes[i] for i in inputs]), attrs
            )
            place = len(self.nodes)
            if merged:
                self._known[call] = place
            if self.most_nodes is not None and place >= self.most_nodes:
                raise GraphError(
                    f"the graph grows beyond {MAX_NODES} nodes; take fewer layers, or shorter pieces of a sequence "
                    "(a recurrent layer takes some nodes for each step)"
                )
            node = Node(op, inputs, attrs, self.layer)
            if self.before is not None:
                self.before(place, node)
            self.nodes.append(node)
            self.shapes.append(shape)
            self.dtypes.append(dtype)
        return Symbol(self, place)

    def apply(self, op: str, inputs: Sequence[Symbol], attrs: Mapping[str, Any]) -> Symbol:
        """One op call. Raises GraphError, ShapeError or DtypeError naming the layer."""
        if self.ended:
            raise _kept()
        try:
            return self._add(op, tuple([value.node for value in inputs]), normal_attrs(op, attrs))
        except CyxError as error:
            raise at_layer(error, self.layer) from None

    def copy(self, op: str, inputs: Sequence[Symbol], attrs: Mapping[str, Any], typed: Typed | None = None) -> Symbol:
        """The call of a node of another graph, whose attributes are in normal form.

        typed: its shape and dtype, where the caller knows them; otherwise they are inferred.
        """
        try:
            return self._add(op, tuple([value.node for value in inputs]), attrs, typed)
        except CyxError as error:
            raise at_layer(error, self.layer) from None

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Symbol:
        return self.apply("input", (), {"name": name, "shape": tuple(shape), "dtype": dtype})

    def param(
        self,
        name: str,
        shape: Sequence[int],
        init: Mapping[str, Any],
        trainable: bool = True,
        dtype: str = "float32",
    ) -> Symbol:
        attrs = {
            "name": name,
            "shape": tuple(shape),
            "dtype": dtype,
            "init": dict(init),
            "trainable": trainable,
        }
        return self.apply("param", (), attrs)

    def at(self, node: int) -> Symbol:
        return Symbol(self, node)

    def apart(self, value: Symbol) -> Symbol:
        """The same value as a node of its own: a gradient of it is not one of what else reads `value`."""
        return self._add("reshape", (value.node,), normal_attrs("reshape", {"shape": value.shape}), None, merging=False)

    def is_followed(self, value: Symbol) -> bool:
        """Whether a gradient of a value goes on to a parameter, which was trained when it was used, or to a value that
        asked for one.
        """
        seen, waiting = {value.node}, [value.node]
        while waiting:
            place = waiting.pop()
            node = self.nodes[place]
            if place in self.begins or (node.attrs["trainable"] if node.op == "param" else self.trained.get(place)):
                return True
            sources = node.inputs if node.op != "detach" else [self.written[place]] if place in self.written else ()
            new = [source for source in sources if source not in seen]
            seen.update(new)
            waiting += new
        return False

    def check_recorded(self) -> None:
        """Before gradients. Raises GradientsAsked where it was not noted what was computed within no_grad()."""
        if self.recording is None and self.recording_outside is not None:
            raise GradientsAsked

    def key(self) -> Symbol:
        """The (seed, step) pair of the random ops."""
        return self.apply("key", (), {})

    def uniform(self, shape: tuple[int, ...]) -> Symbol:
        self.draws.append(None)
        return self.apply("uniform", [self.key()], {"shape": shape, "stream": len(self.draws) - 1})

    def constant(self, value: Any, dtype: str | None = None) -> Symbol:
        """A value written into the graph: a number, nested lists of numbers, or an array."""
        if type(value) not in (bool, int, float, complex):
            return self._constant(value, dtype)
        number = (dtype, repr(value))
        if number not in self._numbers:
            self._numbers[number] = self._constant(value, dtype).node
        return Symbol(self, self._numbers[number])

    def _constant(self, value: Any, dtype: str | None) -> Symbol:
        if not self.travels and getattr(value, "size", 0) > MAX_CONST_ELEMENTS:
            return self._large_constant(value, dtype or str(value.dtype))
        if hasattr(value, "tolist"):
            dtype = dtype or str(value.dtype)
            shape, flat = tuple(value.shape), value.reshape(-1).tolist() if value.shape else [value.tolist()]
        else:
            shape, flat = _flatten(value)
        if dtype is None:
            kinds = {type(entry) for entry in flat}
            dtype = next((DEFAULTS[kind] for kind in (complex, float, int, bool) if kind in kinds), "float32")
        held = CONSTANTS if self.travels else CONSTANTS_HERE
        if not self.travels and not _is_written_down(dtype, flat):
            return self._large_constant(importlib.import_module("numpy").array(flat, dtype).reshape(shape), dtype)
        if not self.travels and dtype in _WIDER:
            return self._constant(value, _WIDER[dtype]).astype(dtype)
        if dtype not in held:
            raise DtypeError(f"trace: a graph holds {', '.join(CONSTANTS)}, got a constant of {dtype}")
        if (rows := self.batch_size) in PROBE_BATCH_SIZES and shape.count(rows) == 1 and len(set(map(repr, flat))) == 1:
            # zeros(len(x), 8), as states to begin with are made: the same number for each row of any batch.
            return self.constant(flat[0], dtype).broadcast_to(*shape)
        if len(flat) > MAX_CONST_ELEMENTS and not self.travels:
            return self._large_constant(importlib.import_module("numpy").array(flat, dtype).reshape(shape), dtype)
        if len(flat) > MAX_CONST_ELEMENTS:
            raise GraphError(
                f"trace: a constant of {len(flat)} elements is too large for a graph (at most "
                f"{MAX_CONST_ELEMENTS}); "
                "make it an nn.Parameter or a buffer of the module"
            )
        as_kind = held[dtype]
        try:
            entries = [as_kind(entry) for entry in flat]
        except OverflowError:
            raise out_of_range(max(flat, key=abs), dtype) from None
        if as_kind is float and not all(map(math.isfinite, entries)):
            return self._not_finite(shape, dtype, entries)
        return self.apply("const", (), {"shape": shape, "dtype": dtype, "value": tuple(entries)})

    def _large_constant(self, array: Any, dtype: str) -> Symbol:
        """An array that no text of a graph has to hold, or can: a plan copies it each time."""
        held = array.astype(dtype)
        attrs = {"function": lambda _: held, "shape": held.shape, "dtype": dtype}
        return self.apply("host_call", [self.constant(0)], attrs)

    def _not_finite(self, shape: Shape, dtype: str, entries: list[float]) -> Symbol:
        """A graph is written down in finite numbers: infinity is computed, as -log(0), and NaN from it."""
        finite = tuple([entry if math.isfinite(entry) else 0.0 for entry in entries])
        result = self.apply("const", (), {"shape": shape, "dtype": dtype, "value": finite})
        below = self.apply("log", [self.apply("const", (), {"shape": (), "dtype": dtype, "value": (0.0,)})], {})
        for special, kind in ((below, -math.inf), (-below, math.inf), (below - below, math.nan)):
            here = tuple([entry == kind or (entry != entry and kind != kind) for entry in entries])
            if any(here):
                mask = self.apply("const", (), {"shape": shape, "dtype": "bool", "value": here})
                result = self.apply("where", [mask, special, result], {}) if not all(here) or shape else special
        return result

    def lift(self, value: Any) -> Symbol:
        """A symbol of this builder for a symbol, a tensor, an array or a number."""
        if isinstance(value, Symbol):
            if value.builder is not self:
                raise GraphError(
                    "trace: a value of another trace is used; create everything inside the traced function"
                )
            return value.up_to_date()
        if getattr(value, "requires_grad", False):
            raise GraphError(
                "trace: the function uses a tensor that requires a gradient but belongs to no traced module; "
                "make it an nn.Parameter of the module you trace"
            )
        if getattr(value, "dtype", None) == "bfloat16":  # which NumPy has not
            return self.lift(value.astype("float32")).astype("bfloat16")
        return self.constant(value.__array__() if hasattr(value, "__array__") else value)

    def update(self, buffer: Symbol, value: Symbol) -> None:
        """After a training step `buffer` holds `value`."""
        if self.nodes[buffer.home].op != "param":
            raise GraphError("trace: only a buffer of a module can be assigned to")
        if (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
            name = self.nodes[buffer.home].attrs["name"]
            raise GraphError(
                f"{name!r} is {buffer.dtype} {buffer.shape} and is assigned a value of {value.dtype} {value.shape}: in "
                "a graph a buffer keeps its shape and dtype; give it those of the value, or keep the value in an "
                "attribute that is no buffer"
            )
        self.updates[buffer.home] = value.node

    def penalise(self, value: Symbol) -> None:
        """Add `value`, a number per row (N,), to the loss of each row in training."""
        self.penalties.append(value.node)

    def graph(self, *outputs: Symbol) -> Graph:
        places = [value.up_to_date().node for value in outputs]
        fixed = Inferred(tuple(self.shapes), tuple(self.dtypes))
        return Graph(self.nodes, places, sorted(self.updates.items()), fixed, self.penalties)

    def embed(self, graph: Graph, inputs: Mapping[str, Symbol], training: bool) -> list[Symbol]:
        """A copy of `graph` in one mode, at this builder's batch size. Returns its outputs.

        Unneeded nodes stay behind; in training the graph's updates and penalties become the builder's.
        """
        needed = graph.reachable(training)
        copies: dict[int, Symbol] = {}
        for place, node in enumerate(graph.nodes):
            if place not in needed:
                continue
            if node.op == "input":
                copies[place] = inputs[node.attrs["name"]]
            elif node.op == "by_mode":
                copies[place] = copies[node.inputs[0 if training else 1]]
            else:
                self.layer = node.layer
                inner = [copies[i] for i in node.inputs]
                copies[place] = self.copy(node.op, inner, at_batch(node.attrs, self.batch_size))
        self.layer = ""
        if training:
            for target, value in graph.updates:
                self.update(copies[target], copies[value])
            for place in graph.penalties:
                self.penalise(copies[place])
        return [copies[place] for place in graph.outputs]


CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "uint8": int,
    "int32": int,
    "int64": int,
    "float32": float,
    "float64": float,
}
# In a graph that does not travel: complex numbers too, and the rest is made of what is as exact.
CONSTANTS_HERE: dict[str, Callable[[Any], Any]] = {**CONSTANTS, **dict.fromkeys(COMPLEX, complex)}
_WIDER = {
    **dict.fromkeys(set(INTEGERS) - set(CONSTANTS), "int64"),
    **dict.fromkeys(set(FLOATS) - set(CONSTANTS), "float64"),
}


def _is_written_down(dtype: str, numbers: list[Any]) -> bool:
    """Whether a graph can say constants of a dtype: integers of 64 bits with a sign, and finite complex numbers."""
    if dtype == "uint64":
        return all(number < 2**63 for number in numbers)
    return dtype not in COMPLEX or all(cmath.isfinite(number) for number in numbers)


def _flatten(value: Any) -> tuple[Shape, list[Any]]:
    if not isinstance(value, (list, tuple, range)):
        return (), [value]
    rows = [_flatten(entry) for entry in value]
    if any(shape != rows[0][0] for shape, _ in rows):
        raise GraphError("trace: expected nested lists of equal lengths")
    inner = rows[0][0] if rows else ()
    return (len(rows), *inner), [entry for _, flat in rows for entry in flat]


def batch_free(make: Callable[[int], Graph]) -> Graph:
    """The model `make(batch_size)` builds, without the batch size.

    Raises GraphError when it is tied to one.
    """
    first_size, second_size = PROBE_BATCH_SIZES
    first, second = make(first_size), make(second_size)
    structure = [(node.op, node.inputs) for node in first.nodes]
    if structure != [(node.op, node.inputs) for node in second.nodes]:
        raise GraphError(_tied("its operations differ between batch sizes"))
    nodes = [
        Node(a.op, a.inputs, {key: _free(a, key, b.attrs[key]) for key in a.attrs}, a.layer)
        for a, b in zip(first.nodes, second.nodes, strict=True)
    ]
    graph = tidy(Graph(nodes, first.outputs, first.updates, penalties=first.penalties))
    graph.verify()
    return graph


def tidy(graph: Graph) -> Graph:
    """The canonical order: only what outputs, updates and penalties need, every input and parameter just before its
    first use.

    So a model has one id, whether it was traced or built from a list of layers.
    """
    needed: set[int] = set()
    waiting = [*graph.outputs, *(place for pair in graph.updates for place in pair), *graph.penalties, graph.input]
    while waiting:
        place = waiting.pop()
        if place not in needed:
            needed.add(place)
            waiting += graph.nodes[place].inputs
    places: dict[int, int] = {}
    nodes: list[Node] = []

    def put(place: int, layer: str) -> None:
        node = graph.nodes[place]
        places[place] = len(nodes)
        nodes.append(Node(node.op, tuple(places[i] for i in node.inputs), node.attrs, layer))

    put(graph.input, "")
    for place, node in enumerate(graph.nodes):
        if place in needed and node.inputs:
            for source in node.inputs:
                if source not in places:
                    put(source, node.layer)
            put(place, node.layer)
    for place in sorted(needed - set(places)):  # outputs and buffers no op reads
        put(place, graph.nodes[place].layer)
    updates = sorted((places[a], places[b]) for a, b in graph.updates)
    return Graph(nodes, [places[i] for i in graph.outputs], updates, penalties=[places[i] for i in graph.penalties])


def _tied(why: str) -> str:
    return (
        f"trace: the model depends on the batch size: {why}; write it for any number of rows "
        "(reshape(len(x), -1), .mean() instead of dividing by a size, batch_first=True for layers of sequences)"
    )


def _free(node: Node, key: str, second: Any) -> Any:
    """One attribute without the batch size, from its two values."""
    first = node.attrs[key]
    if first == second:
        return first
    sizes = PROBE_BATCH_SIZES
    if isinstance(first, tuple) and len(first) == len(second) and key in SIZES:
        entries = [a if a == b else None if (a, b) == sizes else -1 for a, b in zip(first, second, strict=True)]
        multiples = all(
            entry != -1 or a % sizes[0] == 0 and a // sizes[0] * sizes[1] == b
            for entry, a, b in zip(entries, first, second, strict=True)
        )
        if -1 not in entries or node.op == "reshape" and entries.count(-1) == 1 and multiples:
            return tuple(entries)
    place = f"layer {node.layer}: " if node.layer else ""
    raise GraphError(
        _tied(f"{place}{node.op}.{key} is {_brief(first)} for {sizes[0]} rows and {_brief(second)} for {sizes[1]}")
    )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
