"""Recurrences as one on the tape: a thousand operations on small arrays, of which plans make long groups and bands.

As in composed.py the function has a plan there and plans back, which have the bits of its operations one by one. But
what it makes is kept, not made again: that would be all of its products once more. So the plans of a call stay where
they are, the way back reads what it needs where the way there left it, and both have such a place until the way back
is through. A plan of a whole sequence takes as long to make as several calls: it is made of what comes again.

Where more is asked than gradients (a second derivative, anomalies), the operations take the place of the one on the
tape: _Part.expand.
"""

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore.composed import (
    DTYPES,
    MOST_OPERATIONS,
    Kind,
    Unplanned,
    array_of,
    check_unchanged,
    described,
    in_place_of,
    needed_for,
    remade,
    traced,
)
from cyxcore.eager import Tensor, wrap
from cyxcore.forks import renew_in_children
from cyxcore.gradients import Piece, Sum, totals
from cyxcore.graph import Graph
from cyxcore.held import Node, later
from cyxcore.plan import Plan
from cyxcore.recurrences import Kept, Recurrence, recurrence_of
from cyxcore.symbols import Builder, Symbol
from cyxcore.tape import Composed, check_kept, pending_total

Array = Any

LEAST_MEETINGS = 4  # of calls of a kind, from which on there are plans
CALLS_PER_PLAN = 16  # in the mean: where shapes are always new ones, plans do not pay
MOST_KINDS = 16  # with plans
MOST_MET = 1024  # kinds whose calls are counted
MOST_NODES = 6000  # of the way there: those of some 300 steps, whose plans take 2 s to make
MOST_AT_ONCE = 4  # calls of a kind whose way back is still to come
MOST_OF_A_STEP = 64  # operations of a step at most
MOVING = frozenset("reshape slice transpose broadcast_to".split())  # made again on the way back, not kept


class _Ways:
    """What calls of a kind have in common."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        builder, symbols, results = traced(kind)
        self.count, self.operations = len(results), len(builder.nodes)
        if self.operations > MOST_NODES:
            raise Unplanned
        self.kept: list[int] = []  # the nodes that the way back reads
        self.needed: set[int] = set()  # the tensors that it reads
        if any(kind.followed):
            found = self._gradients(builder, symbols, results, (True,) * self.count, ())
            read = _read(builder, [x.node for x in found if x is not None], self.operations)
            self.kept = sorted(place for place in read if builder.nodes[place].op != "input")
            self.needed = {place for place, x in enumerate(symbols) if x.node in read}
        self.there = _cut(builder, [*(x.node for x in results), *self.kept], ())
        self.free: list[_Place] = []
        self.places = 0

    def _gradients(
        self,
        builder: Builder,
        symbols: list[Symbol],
        results: list[Symbol],
        asked: Sequence[bool],
        sums: Sequence[bool],
    ) -> list[Symbol | None]:
        """Those of what is followed. asked: which results have one. sums: which tensors have some already."""
        given = {
            x.node: builder.input(f"g {place}", x.shape, x.dtype)
            for place, (x, has_one) in enumerate(zip(results, asked, strict=True))
            if has_one
        }
        so_far = {
            x.node: builder.input(f"sum {place}", x.shape, x.dtype)
            for place, (x, added) in enumerate(zip(symbols, sums, strict=False))
            if added
        }
        last = max(given)
        wanted = [x for x, followed in zip(symbols, self.kind.followed, strict=True) if followed]
        return totals(builder, builder.at(last), given.pop(last), wanted, {**so_far, **given})

    def back(self, asked: Sequence[bool], sums: Sequence[bool]) -> tuple[Graph, list[bool]]:
        """The graph of the gradients that there are, and which of what is followed has one. Nodes that are kept and
        tensors are parameters of it, by their number.
        """
        builder, symbols, results = traced(self.kind)
        found = self._gradients(builder, symbols, results, asked, sums)
        held = {*self.kept, *(x.node for x in symbols)}
        return _cut(builder, [x.node for x in found if x is not None], held), [x is not None for x in found]

    def place(self) -> "_Place | None":
        """A place for a call; None where too many are in use."""
        try:
            return self.free.pop()
        except IndexError:
            if self.places >= MOST_AT_ONCE:
                return None
            self.places += 1
            return _Place(self)


def _read(builder: Builder, gradients: list[int], end: int) -> set[int]:
    """The nodes before `end` that gradients are made of, beside constants."""
    read, seen, waiting = set[int](), set[int](), list(gradients)
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        node = builder.nodes[place]
        if place >= end or node.op in MOVING:
            waiting += node.inputs
        elif node.op != "const":
            read.add(place)
    return read


def _cut(builder: Builder, outputs: list[int], held: Any) -> Graph:
    """The graph of some nodes. held: those that are its parameters."""
    made = Builder(merging=False, travels=False)
    new: dict[int, Symbol] = {}
    for place in sorted(needed_for(builder, outputs, held)):
        node = builder.nodes[place]
        if place in held:
            shape, dtype = builder.shapes[place], builder.dtypes[place]
            new[place] = made.input(str(place), shape, dtype)
        else:
            new[place] = made.copy(node.op, [new[source] for source in node.inputs], node.attrs)
    return made.graph(*(new[place] for place in outputs))


class _Place:
    """The plans of one call at a time, with memory of their own."""

    def __init__(self, ways: _Ways) -> None:
        self._ways = ways
        self.call: object = None  # which one it made last
        self._there = _plan(ways.there, {})
        self._given = {
            str(node): array for node, array in zip(ways.kept, self._there.outputs[ways.count :], strict=True)
        }
        # Nodes of tensors are the first ones, in their order.
        self._given.update(self._there.inputs)
        self._backs: dict[tuple[tuple[bool, ...], tuple[bool, ...]], tuple[Plan, list[bool]]] = {}

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        for name, array in self._there.inputs.items():
            np.copyto(array, array_of(tensors[int(name)]))
        self._there.run()
        return [_copied(array) for array in self._there.outputs[: self._ways.count]]

    def run_back(self, given: Sequence[Tensor | None], sums: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of what is followed. given: those of the results; sums: what there is of them so far."""
        which = tuple([x is not None for x in given]), tuple([x is not None for x in sums])
        known = self._backs.get(which)
        if known is None:
            graph, there_are = self._ways.back(*which)
            known = self._backs[which] = _plan(graph, self._given), there_are
        plan, there_are = known
        for what, tensors in (("g", given), ("sum", sums)):
            for place, x in enumerate(tensors):
                if x is not None and f"{what} {place}" in plan.inputs:
                    np.copyto(plan.inputs[f"{what} {place}"], array_of(x))
        plan.run()
        made = iter(plan.outputs)
        return [_copied(next(made)) if there_is else None for there_is in there_are]


def _plan(graph: Graph, given: Mapping[str, Array]) -> Plan:
    return Plan(graph, device="cpu", numerics="exact", outputs_apart=True, given=given)


def _copied(array: Array) -> Tensor:
    return wrap(array).copy()


class _Call(Composed):
    """One call, as the operation of what stands for all of its results: its gradient is a Sum of a Piece of each.

    ways: what calls of its kind have in common: `kind`, `count` results, the tensors that are `needed` on the way back.
    """

    several = True

    def __init__(self, ways: Any, operations: int) -> None:
        """operations: of the function, at most."""
        self.step = MOST_OPERATIONS + 1  # times of each operation, which may be one of composed.py
        self.room = self.step * (operations + 1)
        self._ways = ways
        self._lock = threading.Lock()
        self._operations: tuple[Tensor, ...] | None = None

    @property
    def __name__(self) -> str:
        return self._ways.kind.function.__name__.strip("_")

    def _back(
        self, node: Node, given: Sequence[Tensor | None], sums: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """The gradient of each tensor that is followed. given: those of the results; sums: what there is so far."""
        raise NotImplementedError

    def totals(self, node: Any, g: Any, pending: list[Any]) -> list[Any]:
        check_unchanged(node, self._ways.needed)
        followed = self._ways.kind.followed
        given: list[Tensor | None] = [None] * self._ways.count
        for piece in g.pieces:
            given[piece.starts[0]] = piece.g
        sums = [pending_total(x) if follow else None for x, follow in zip(pending, followed, strict=True)]
        made = iter(self._back(node, given, sums))
        found = []
        for so_far, total, follow in zip(pending, sums, followed, strict=True):
            new = next(made) if follow else None
            found.append(None if new is None else in_place_of(so_far, total, new))
        return found

    def expand(self, tensor: Tensor) -> None:
        """Nothing: its parts are expanded, and nobody else has it."""

    def operations(self, node: Node) -> tuple[Tensor, ...]:
        """The results, remembering single operations with times before that of the node."""
        with self._lock:
            if self._operations is None:
                check_unchanged(node, range(len(node.inputs)))  # as the states are made again
                self._operations = remade(self._ways.kind, node.inputs, node.time - self.room, self.step)
            return self._operations


class _AtOnce(_Call):
    """A call by the kernel."""

    def __init__(self, layer: Recurrence, kept: Kept) -> None:
        super().__init__(layer, MOST_OF_A_STEP * (1 + kept.gates.shape[1]))
        self._kept = kept

    def _back(
        self, node: Node, given: Sequence[Tensor | None], sums: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        arrays, g, so_far = ([None if x is None else array_of(x) for x in each] for each in (node.inputs, given, sums))
        found = self._ways.back(arrays, self._kept, g, so_far)
        return [wrap(found[place]) for place, followed in enumerate(self._ways.kind.followed) if followed]


class _Planned(_Call):
    """A call by plans, in a place of theirs."""

    def __init__(self, ways: _Ways, place: _Place) -> None:
        super().__init__(ways, ways.operations)
        self._place = place
        self._call = object()
        self._holds = True  # the place; nobody else gets it until the way back is through

    def __del__(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        if self._holds:
            self._holds = False
            self._ways.free.append(self._place)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self._place.call = self._call
        return self._place.run(tensors)

    def _take_again(self, node: Node) -> None:
        """The place with what the way there left: made again where another call had it since the last way back."""
        if not self._holds:
            try:
                self._ways.free.remove(self._place)
                self._holds = True
            except ValueError:  # another call has it
                place = self._ways.place()
                self._holds = place is not None
                self._place = place or _Place(self._ways)
        if self._place.call is not self._call:
            check_unchanged(node, range(len(node.inputs)))
            self.run(node.inputs)

    def _back(
        self, node: Node, given: Sequence[Tensor | None], sums: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        with self._lock:
            try:
                self._take_again(node)
                return self._place.run_back(given, sums)
            finally:
                self.let_go()


class _Part(Composed):
    """The operation of one of the results: of what stands for all of them."""

    def __init__(self, number: int) -> None:
        self._number = number

    def totals(self, node: Any, g: Tensor, pending: list[Any]) -> list[Any]:
        total = pending[0] or Sum()
        total.add(Piece(g, (self._number,), (self._number + 1,)))
        return [total]

    def expand(self, tensor: Tensor) -> None:
        """Let the tensor be a view of what the operations made."""
        with _expanding:  # once: another thread may walk back over it
            node: Any = tensor._op
            if node.op is self:
                check_kept(node.inputs[0])
                of_all = node.inputs[0]._op
                result = of_all.op.operations(of_all)[self._number]
                tensor._op = Node("reshape", (result,), {"shape": tensor.shape}, node.time)


_planned: dict[Kind, _Ways | None] = {}  # the one that was used last at the end; None: there is no plan of it
_met: dict[Kind, int] = {}  # how often the others came
_lock, _expanding = threading.Lock(), threading.Lock()
renew_in_children(sys.modules[__name__], "_lock", "_expanding")
_calls = _made = 0


def _ways_of(kind: Kind) -> _Ways | None:
    global _calls, _made
    with _lock:
        _calls += 1
        if kind in _planned:
            ways = _planned[kind] = _planned.pop(kind)
            return ways
        met = _met[kind] = _met.pop(kind, 0) + 1
        if len(_met) > MOST_MET:
            del _met[next(iter(_met))]
        if met < LEAST_MEETINGS or _made * CALLS_PER_PLAN > _calls:
            return None
        if len(_planned) >= MOST_KINDS:
            del _planned[next(iter(_planned))]
        del _met[kind]
        _made += 1
        try:
            ways = _planned[kind] = _Ways(kind)
        except Unplanned:
            ways = _planned[kind] = None
        return ways


def sequence(
    function: Callable[..., tuple[Any, ...]], inputs: Sequence[Any], options: tuple[Any, ...]
) -> tuple[Any, ...]:
    """function(*inputs, *options), which gives several tensors.

    inputs: tensors on the host, or None. Its operations run one by one where there is no plan for them.
    """
    found = described(function, inputs, options, (*DTYPES, "int32", "int64"))
    if found is None:
        return function(*inputs, *options)
    kind, tensors = found
    layer = recurrence_of(kind)
    call: _Call
    if layer is not None:
        arrays, kept = layer.run([array_of(x) for x in tensors])
        results, call = [wrap(array) for array in arrays], _AtOnce(layer, kept)
    else:
        ways = _ways_of(kind)
        place = None if ways is None else ways.place()
        if ways is None or place is None:
            return function(*inputs, *options)
        call = _Planned(ways, place)
        results = call.run(tensors)
    if any(kind.followed):
        of_all = wrap(np.empty(0, results[0].dtype))
        last = later(call.room + 1 + len(results))
        of_all.requires_grad, of_all._op = True, Node(call, tuple(tensors), {}, last - len(results))
        for number, x in enumerate(results):
            x.requires_grad = True
            x._op = Node(_Part(number), (of_all,), {}, last - len(results) + 1 + number)
    return tuple(results)
