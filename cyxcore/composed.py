"""Functions of several operations as one on the tape: layer norms, GELU, attention, a product and its bias, ...

Each operation of such a function would keep what it was given until the way back is through. Here only the inputs are
kept, and the small sums that the way back needs of them; both ways are plans (plan.py), which make element-wise chains
tile by tile and rows band by band, in memory that is there for the time of a run. They are made when the function first
meets inputs of these shapes, and run on other arrays each time. No bit changes by that: a plan has the bits of its
operations one after the other, and what a function adds to the gradient of an input it adds in the order in which its
operations would.

Where more is asked than gradients (a second derivative, anomalies), the operations take the place of the one on the
tape: _Call.expand.
"""

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from cyxcore import device as devices
from cyxcore import precision
from cyxcore.casting import widened
from cyxcore.eager import Tensor, enable_grad, no_grad, wrap
from cyxcore.errors import DtypeError
from cyxcore.forks import renew_in_children
from cyxcore.gradients import Sum, totals
from cyxcore.graph import Graph
from cyxcore.held import Node, is_recording, later
from cyxcore.kernels import tensors
from cyxcore.memory import Overwritten
from cyxcore.ops import OPS
from cyxcore.plan import Plan
from cyxcore.rownorms import Norm, norm_of
from cyxcore.symbols import Builder, Symbol
from cyxcore.tape import Composed, pending_total, together

Array = Any
Function = Callable[..., Any]

MOST_OPERATIONS = 512  # of a function: so many times are left free for them
SMALL = 8  # a sum that is so many times smaller than the result is kept, not made again
MOST_KNOWN = 256  # kinds of calls
LEAST_USES = 4  # of plans in the mean, for more to be made: where shapes are always new ones, plans do not pay
FIRST_PLANS = 64
FIXED = (int, float, str, tuple, type(None), np.generic)  # options that stay what they are, as a tensor does not


DTYPES = ("float32", "float64", "bool")
KEYED = (*DTYPES, "uint64")  # and keys, of what is drawn
_cpu: Any = devices.backend("cpu")


class Unplanned(Exception):  # noqa: N818 - no error: the function runs operation by operation
    pass


class _Moving:
    """A plan whose arrays are others each time. names: of its inputs, in the order in which run() takes them, each in
    two: what it is, and the place among these.
    """

    def __init__(self, graph: Graph, numerics: str) -> None:
        known = graph.infer(1)
        fed = {
            node.attrs["name"]: _cpu.empty(known.shapes[place], known.dtypes[place])  # nobody touches it
            for place, node in enumerate(graph.nodes)
            if node.op == "input"
        }
        plan = Plan(graph, device="cpu", numerics=numerics, outputs_apart=True, given=fed)
        program: Any = getattr(plan.program, "__self__", None)
        self._program = program
        if not hasattr(program, "run_on"):
            raise Unplanned  # an operation has NumPy's kernel only
        names = [node.attrs["name"] for node in plan.graph.nodes if node.op == "input"]
        self.names = [_named(name) for name in names]
        arrays: list[Array] = [fed[name] for name in names]
        places = {array.ctypes.data: place for place, array in enumerate(arrays)}
        self._made: list[tuple[tuple[int, ...], int]] = []
        self._results: list[tuple[int, tuple[int, ...]]] = []
        for array in plan.outputs:
            if array.ctypes.data not in places:
                if not any(array is each or array.base is each for each in plan.apart):
                    raise Unplanned  # a constant
                places[array.ctypes.data] = len(arrays)
                arrays.append(array)
                self._made.append((array.shape, array.dtype.num))
            self._results.append((places[array.ctypes.data], array.shape))
        self._made.append(((plan.arena_bytes,), np.dtype(np.uint8).num))
        self._constants = [
            array for node, array in zip(plan.graph.nodes, plan.arrays, strict=True) if node.op == "const"
        ]
        self._program.moving([*arrays, plan.arena])

    def run(self, arrays: list[Array]) -> list[Array]:
        """arrays: a list of its own, which gets what is made."""
        self._program.run_on(arrays, self._made)
        return [
            arrays[place] if arrays[place].shape == shape else arrays[place].reshape(shape)
            for place, shape in self._results
        ]


class Kind(NamedTuple):
    """What calls have in common that one pair of plans is for."""

    function: Function
    options: tuple[Any, ...]
    places: tuple[int | None, ...]  # of each argument, which of the tensors it is
    typed: tuple[tuple[tuple[int, ...], str], ...]  # the shape and dtype of each tensor
    followed: tuple[bool, ...]
    threads: int
    numerics: str

    def call(self, tensors: Sequence[Any]) -> Any:
        return self.function(*(None if place is None else tensors[place] for place in self.places), *self.options)


def traced(kind: Kind) -> tuple[Builder, list[Symbol], list[Symbol]]:
    """The operations of a call: where they are, its tensors and its results. Raises Unplanned for mixed dtypes, and for
    those that tensors have and graphs do not.
    """
    builder = Builder(merging=False, travels=False)
    symbols = [builder.input(str(place), *typed) for place, typed in enumerate(kind.typed)]
    try:
        result = kind.call(symbols)
    except DtypeError as problem:
        raise Unplanned from problem
    results = list(result) if isinstance(result, tuple) else [result]
    if any(x.dtype != kind.typed[0][1] for x in results):
        raise Unplanned
    return builder, symbols, results


def _remembered(kind: Kind, needed: Collection[int], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the way back is from: the tensors, but running statistics, which move on, as they are now."""
    return tuple(
        [
            wrap(array_of(x).copy()) if len(x.shape) == 1 and not followed and place in needed else x
            for place, (x, followed) in enumerate(zip(tensors, kind.followed, strict=True))
        ]
    )


class _Ways:
    """The plans of a kind of calls: one there, and those back, by which gradients have a sum to be added to."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self._backs = kind, dict[tuple[tuple[bool, ...], str], _Moving]()
        builder, symbols, results = self._traced()
        self.count = len(results)
        self.kept: list[int] = []
        self.needed: set[int] = set()  # the tensors that the way back reads
        if any(kind.followed):
            self.kept = self._small_sums(builder, results[0])
            found = self._way_back(builder, symbols, results[0], ())
            self.needed = {place for place, x in enumerate(symbols) if x.node in _sources(builder, found, self.kept)}
        forward = self._cut(builder, [*(x.node for x in results), *self.kept], {})
        self._there = _Moving(forward, kind.numerics)
        if any(kind.followed):  # now: what cannot be walked back over by a plan runs operation by operation
            self.back((False,) * len(symbols))

    def _traced(self) -> tuple[Builder, list[Symbol], list[Symbol]]:
        found = traced(self.kind)
        if len(found[0].nodes) > MOST_OPERATIONS:
            raise Unplanned
        return found

    def _small_sums(self, builder: Builder, result: Symbol) -> list[int]:
        """The nodes whose values are kept for the way back."""
        size = result.size // SMALL
        symbols = [builder.at(place) for place in range(result.node + 1)]
        return [x.node for x in symbols if OPS[builder.nodes[x.node].op].group == "reduce" and x.size <= size]

    def _way_back(self, builder: Builder, symbols: list[Symbol], result: Symbol, sums: Sequence[bool]) -> list[int]:
        """The nodes of the gradients of what is followed. sums: to which tensors' gradients they are added."""
        g = builder.input("g", result.shape, result.dtype)
        so_far = {
            x.node: builder.input(f"sum {place}", x.shape, x.dtype)
            for place, (x, added) in enumerate(zip(symbols, sums, strict=False))
            if added
        }
        wanted = [x for x, followed in zip(symbols, self.kind.followed, strict=True) if followed]
        found = totals(builder, result, g, wanted, so_far)
        if any(x is None for x in found):
            raise Unplanned
        return [x.node for x in found if x is not None]

    def _cut(self, builder: Builder, outputs: list[int], given: dict[int, str]) -> Graph:
        """The graph of some nodes, with others as inputs."""
        made = Builder(merging=False, travels=False)
        new: dict[int, Symbol] = {}
        for place in sorted(needed_for(builder, outputs, given)):
            node = builder.nodes[place]
            if place in given:
                new[place] = made.input(given[place], builder.shapes[place], builder.dtypes[place])
            else:
                new[place] = made.copy(node.op, [new[source] for source in node.inputs], node.attrs)
        return made.graph(*(new[place] for place in outputs))

    def back(self, sums: tuple[bool, ...]) -> _Moving:
        numerics = precision.in_use()  # which may be another one than on the way there
        known = self._backs.get((sums, numerics))
        if known is None:
            builder, symbols, results = self._traced()
            found = self._way_back(builder, symbols, results[0], sums)
            given = {node: f"kept {place}" for place, node in enumerate(self.kept)}
            known = self._backs[sums, numerics] = _Moving(self._cut(builder, found, given), numerics)
        return known

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """The results, and what is kept for the way back. arrays: of the tensors."""
        found = self._there.run([arrays[place] for _, place in self._there.names])
        return found[: self.count], found[self.count :]


def needed_for(builder: Builder, outputs: Sequence[int], given: Any) -> set[int]:
    """The nodes that outputs are made of, up to those that are given."""
    seen, waiting = set(outputs), list(outputs)
    while waiting:
        place = waiting.pop()
        new = [] if place in given else [source for source in builder.nodes[place].inputs if source not in seen]
        seen.update(new)
        waiting += new
    return seen


def _sources(builder: Builder, outputs: Sequence[int], given: Any) -> set[int]:
    return {place for place in needed_for(builder, outputs, given) if builder.nodes[place].op == "input"}


def _named(name: str) -> tuple[str, int]:
    what, _, place = name.rpartition(" ")
    return ("g", 0) if name == "g" else (what, int(place))


def array_of(x: Tensor) -> Array:
    """The tensor's array without gaps."""
    return x._data if x._view is None else x._dense()


def check_unchanged(node: Any, needed: Iterable[int]) -> None:
    """Raises GradientError where one of the inputs that are needed was written to since the operation."""
    for place in needed:
        x = node.inputs[place]
        if x._memory is not None and x._memory.written > node.time:
            raise Overwritten(x.shape, x.dtype, node.op.__name__).error()


def in_place_of(so_far: Any, total: Tensor | None, new: Tensor) -> Any:
    """What there is of a gradient when `total` of it, all but pieces of what was there so far, has become `new`."""
    if so_far is None or (type(so_far) is not Sum and total is not None):
        return new
    both = so_far if type(so_far) is Sum else Sum()
    if both is not so_far:
        both.add(so_far)
    if total is None:  # there were pieces only
        both.add(new)
    else:
        both.replace(new)
    return both


def remade(kind: Kind, inputs: Sequence[Tensor], start: int, step: int) -> tuple[Tensor, ...]:
    """The results, remembering single operations at the times start + step, start + 2 step and so on."""
    # What was frozen then has no gradient to come, also where it is trained now.
    given = [x if followed else x.detach() for x, followed in zip(inputs, kind.followed, strict=True)]
    known = {id(x) for x in given}
    began = later(1)
    with enable_grad():
        result = kind.call(given)
    results = result if isinstance(result, tuple) else (result,)
    found: dict[int, Tensor] = {}
    waiting = list(results)
    while waiting:
        x = waiting.pop()
        if id(x) not in found and id(x) not in known and x._op is not None and x._op.time > began:
            found[id(x)] = x
            waiting += x._op.inputs
    for place, x in enumerate(sorted(found.values(), key=lambda each: each._op.time)):  # type: ignore[union-attr]
        was: Any = x._op
        x._op = Node(was.op, was.inputs, was.attrs, start + step * (1 + place))
    return results


class _Call(Composed):
    """One call, as the operation that its result remembers."""

    def __init__(self, ways: _Ways | Norm, kept: list[Array]) -> None:
        self._ways, self._kept = ways, kept

    @property
    def __name__(self) -> str:
        return self._ways.kind.function.__name__.strip("_")

    def totals(self, node: Any, g: Tensor, pending: list[Any]) -> list[Any]:
        """The gradient of each input so far and what this call adds to it. pending: what there is of each, or None."""
        check_unchanged(node, self._ways.needed)
        kind = self._ways.kind
        sums = [
            None if x is None or not followed else pending_total(x)
            for x, followed in zip(pending, kind.followed, strict=True)
        ]
        way = self._ways.back(tuple([x is not None for x in sums]))
        held: dict[str, Any] = {"": node.inputs, "sum": sums, "g": (g,)}
        given = [self._kept[place] if what == "kept" else array_of(held[what][place]) for what, place in way.names]
        made = iter([wrap(array) for array in way.run(given)])
        return [
            (next(made) if so_far is None else in_place_of(so_far, total, next(made))) if followed else None
            for so_far, total, followed in zip(pending, sums, kind.followed, strict=True)
        ]

    def expand(self, tensor: Tensor) -> None:
        """Let the tensor remember the operations themselves, at the times they would have had."""
        with _expanding:  # once: another thread may walk back over it
            node: Any = tensor._op
            if node.op is self:
                self._expand(tensor, node)

    def _expand(self, tensor: Tensor, node: Any) -> None:
        check_unchanged(node, self._ways.needed)
        tensor._op = remade(self._ways.kind, node.inputs, node.time - MOST_OPERATIONS, 1)[0]._op


class _Known:
    """What is known of a kind of calls, and when it was asked for last. ways: None where there are no plans, or when it
    is forgotten.
    """

    def __init__(self, kind: Kind) -> None:
        self.used = _used
        self.ways: _Ways | Norm | None = norm_of(kind)
        if self.ways is None:
            with contextlib.suppress(Unplanned):
                self.ways = _Ways(kind)


_ways: dict[Kind, _Known] = {}
_lock, _expanding = threading.Lock(), threading.Lock()
renew_in_children(sys.modules[__name__], "_lock", "_expanding")
_made = _used = 0


def _known_of(kind: Kind) -> _Known | None:
    """None where no more plans are made."""
    global _made, _used
    with _lock:
        _used += 1
        known = _ways.get(kind)
        if known is not None:
            known.used = _used
            return known
        if _made > FIRST_PLANS and _made * LEAST_USES > _used:
            return None
        if len(_ways) >= MOST_KNOWN:
            _ways.pop(min(_ways, key=lambda each: _ways[each].used)).ways = None
        _made += 1
        known = _ways[kind] = _Known(kind)
        return known


def described(
    function: Function, inputs: Sequence[Any], options: tuple[Any, ...], dtypes: Collection[str] = DTYPES
) -> tuple[Kind, list[Tensor]] | None:
    """The kind of a call, and its tensors; None where it has none: an option that may change, an empty tensor, ..."""
    found = tensors.described(inputs, options, dtypes, FIXED)
    if found is None:
        return None
    places, typed, followed, given = found
    # As Kind() does, which takes twice as long.
    return tuple.__new__(Kind, (function, options, places, typed, followed, _cpu.lanes, precision.in_use())), given


def composed(function: Function, inputs: Sequence[Any], options: tuple[Any, ...]) -> Any:
    """function(*inputs, *options), which gives a tensor, or several of which only the first is followed.

    inputs: tensors on the host, or None. Its operations run one by one where there is no plan for them.
    """
    found = described(function, inputs, options, KEYED)
    known = None if found is None else _known_of(found[0])
    if found is None or known is None or known.ways is None:
        return function(*inputs, *options)
    kind, given = found
    result = tensors.noted(_again(known, kind), given) if tensors.is_watched() else None
    return _made_of(known.ways, kind, given) if result is None else result


def _again(known: _Known, kind: Kind) -> Callable[[list[Tensor]], Any]:
    """What makes such calls of other tensors of these kinds on the host, or returns None where they go another way."""
    now = kind, known  # replaced as one: threads may call at the same time

    def again(given: list[Tensor]) -> Any:
        nonlocal now
        global _used
        if not devices.planned[0]:
            return None
        kind, known = now
        ways, threads, numerics = known.ways, _cpu.lanes, precision.in_use()
        if ways is None or kind.threads != threads or kind.numerics != numerics:
            kind = kind._replace(threads=threads, numerics=numerics)
            found = _known_of(kind)
            if found is None or found.ways is None:
                return None
            ways, known = found.ways, found
            now = kind, known
        _used += 1  # counts that get lost among threads do not matter
        known.used = _used
        return _made_of(ways, kind, given)

    return again


def _made_of(ways: _Ways | Norm, kind: Kind, given: list[Tensor]) -> Any:
    arrays, kept = ways.run([array_of(x) for x in given])
    if ways.count == 1 and True not in kind.followed:
        return wrap(arrays[0])
    results = [wrap(array) for array in arrays]
    if True in kind.followed:
        results[0].requires_grad = True
        results[0]._op = Node(_Call(ways, kept), _remembered(kind, ways.needed, given), {}, later(MOST_OPERATIONS + 1))
    return results[0] if ways.count == 1 else tuple(results)


class _InHalves(Composed):
    """A call in float32 of inputs that were rounded to halves, as the operation that its rounded result remembers.

    The tape keeps the inputs as they were given, and no float32 of what is half: those are made again on the way back.
    """

    def __init__(self, call: _Call, half: str | None, sources: list[int], chain: Function) -> None:
        """sources: of each tensor of the call, which input of the node it is made of. chain: the same step by step."""
        self._call, self._half, self._sources, self._chain = call, half, sources, chain

    @property
    def __name__(self) -> str:
        return self._call.__name__

    def totals(self, node: Any, g: Tensor, pending: list[Any]) -> list[Any]:
        """As a _Call's."""
        self._check(node)
        inputs = [node.inputs[source] for source in self._sources]
        wide = [widened(x, self._half) for x in inputs]
        given = [pending[source] if x is y else None for source, x, y in zip(self._sources, inputs, wide, strict=True)]
        found = self._call.totals(SimpleNamespace(inputs=wide, time=math.inf), g.astype("float32"), given)
        sums = list(pending)
        for place in reversed(range(len(found))):  # the order in which the steps would be gone back
            new, x, source = found[place], inputs[place], self._sources[place]
            if new is None or x is wide[place]:
                sums[source] = sums[source] if new is None else new
            else:
                new = new.astype(self._half or x.dtype).astype(x.dtype)
                so_far = sums[source]
                if so_far is None or isinstance(so_far, Tensor):
                    sums[source] = new if so_far is None else so_far + new
                else:
                    sums[source] = together(so_far, new)
        return sums

    def expand(self, tensor: Tensor) -> None:
        with _expanding:  # once: another thread may walk back over it
            node: Any = tensor._op
            if node.op is self:
                self._check(node)
                made: Any = SimpleNamespace(followed=node.followed, call=self._chain)
                tensor._op = remade(made, node.inputs, node.time - 2 * MOST_OPERATIONS, 1)[0]._op

    def _check(self, node: Any) -> None:
        check_unchanged(node, {self._sources[place] for place in self._call._ways.needed})


def in_halves(function: Function, inputs: Sequence[Any], options: tuple[Any, ...], half: str | None) -> Any:
    """Value._in_halves of tensors on the host as one operation on the tape; None where there is no plan for it."""
    followed = [x is not None and is_recording() and x.requires_grad for x in inputs]
    with no_grad():
        wide = [widened(x, half) for x in inputs]
    for x, y, asked in zip(inputs, wide, followed, strict=True):
        if y is not x:
            y.requires_grad = asked
    found = described(function, wide, options, KEYED)
    known = None if found is None else _known_of(found[0])
    ways = None if known is None else known.ways
    if found is None or ways is None:
        return None
    kind, tensors = found
    origins = [next(x for x, y in zip(inputs, wide, strict=True) if y is tensor) for tensor in tensors]
    given = list({id(x): x for x in origins}.values())  # each once
    sources = [next(place for place, x in enumerate(given) if x is origin) for origin in origins]
    arrays, kept = ways.run([array_of(x) for x in tensors])
    with no_grad():
        results = [wrap(array) for array in arrays]
        dtype = half or inputs[0].dtype
        results[0] = results[0].astype(dtype)
    if any(kind.followed):
        places = [None if x is None else next(at for at, y in enumerate(given) if y is x) for x in inputs]

        def chain(values: Sequence[Tensor]) -> Any:
            again = [None if place is None else widened(values[place], half) for place in places]
            return function(*again, *options).astype(dtype)

        results[0].requires_grad = True
        call = _InHalves(_Call(ways, kept), half, sources, chain)
        results[0]._op = Node(call, tuple(given), {}, later(2 * MOST_OPERATIONS + 1))
    return results[0] if ways.count == 1 else tuple(results)
