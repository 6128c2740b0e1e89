"""Cheap values are made again where they are needed late, instead of being kept: graph to graph, the same bits.

A kernel of a chain that runs tile by tile (kernels/src/fused.c) costs a fraction of what it takes to write an array
of megabytes and to read it again later. So what the backward pass wants of an activation is computed a second time
from the arrays that are kept in any case, inside the chain that wants it. So is what one stretch of bands would keep
for a later one or for gradients of weights behind that.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cyxcore.graph import Graph, Inferred, Node
from cyxcore.onepass import run_of
from cyxcore.ops import OPS
from cyxcore.passes import dead_code

# Element-wise ops whose arithmetic takes less time than the memory of their result.
CHEAP = frozenset(
    "neg abs relu square sign floor add sub mul div maximum minimum where cast logical_not logical_and logical_or "
    "equal not_equal less less_equal greater greater_equal".split()
)
LEAST_ELEMENTS = 16384  # smaller arrays stay in the cache
MOST_AGAIN = 8  # calls made again for one value
SMALL = 16  # an input of that fraction of the result costs nothing to read
FEW_TERMS = 4  # a stack of products this many times larger than its left factor is made again, too: attention's scores
IN_BANDS = CHEAP | {"tanh", "sigmoid", "gelu", "softmax"}  # the same where what they read is in the cache
LEAST_BYTES = 1024 * 1024  # of what is not kept for later bands; for less the calls made again take longer
MOST_IN_BANDS = 16  # calls made again for one of them
SHARE_OF_WEIGHTS = 16  # of what is kept for later bands, the part that may go to weights of attention


def recompute(graph: Graph) -> Graph:
    """The graph with nodes of its chains repeated in later chains, and without those that nobody needs any more."""
    return dead_code(_Again(graph).graph())


class _Again:
    def __init__(self, graph: Graph) -> None:
        self.nodes, self.source = graph.nodes, graph
        self.known = graph.infer(1)
        self.sizes = [math.prod(shape) for shape in self.known.shapes]
        self.chain = self._chains()
        self.kept = self._kept_anyway()
        self.near: dict[int, set[int]] = {}  # what each chain reads or has made again

    def _chains(self) -> list[int]:
        """The number of the chain each node belongs to: element-wise calls of one size in a row; -1 for the others."""
        chains, number, size = [-1] * len(self.nodes), 0, -1
        for place, node in enumerate(self.nodes):
            group = OPS[node.op].group
            if group == "elementwise" and self.sizes[place] >= LEAST_ELEMENTS:
                if self.sizes[place] != size:
                    number, size = number + 1, self.sizes[place]
                chains[place] = number
            elif group != "source" and not self._in_between(place, size):
                size = -1
        return chains

    def _in_between(self, place: int, size: int) -> bool:
        """Whether a call of a row ends no chain of that size: a slice of it, or a sum made in one pass with it."""
        node = self.nodes[place]
        return node.op == "reshape" or node.op == "slice" and self.sizes[place] == size or self._summed(node, size)

    def _summed(self, node: Node, size: int) -> bool:
        """Whether a sum is made in one pass with the chain before it (onepass.py)."""
        shape = self.known.shapes[node.inputs[0]] if node.inputs else ()
        return math.prod(shape) == size and run_of(node, shape) > 0

    def _kept_anyway(self) -> set[int]:
        """What somebody other than a chain reads: it is in memory whatever is decided here."""
        kept = {*self.source.outputs, *(place for update in self.source.updates for place in update)}
        for place, node in enumerate(self.nodes):
            if self.chain[place] < 0 and not (node.inputs and self._summed(node, self.sizes[node.inputs[0]])):
                kept.update(node.inputs)
        return kept

    def _again(self, place: int, size: int, near: set[int]) -> tuple[list[int], set[int]] | None:
        """(the calls to repeat for a value, inputs first; the large arrays they read beside `near`), if that pays."""
        calls: list[int] = []
        read: set[int] = set()
        stack = [(place, False)]
        while stack:
            at, entered = stack.pop()
            if entered:
                if at not in calls:
                    calls.append(at)
            elif at in near or self.sizes[at] * SMALL <= size:
                continue
            elif self.nodes[at].op in CHEAP and self.chain[at] >= 0 and self.sizes[at] == size and at not in self.kept:
                stack.append((at, True))
                stack += [(source, False) for source in self.nodes[at].inputs]
            else:
                read.add(at)
            if len(stack) > 4 * MOST_AGAIN or len(calls) > MOST_AGAIN or len(read) > 1:
                return None
        return calls, read

    def graph(self) -> Graph:
        nodes: list[Node] = []
        new: list[int] = []  # where each node of the source is
        origin: list[int] = []  # which node of the source each new one computes
        made: dict[tuple[int, int], int] = {}  # (chain, node of the source) -> where it was made again

        def emit(place: int, inputs: tuple[int, ...]) -> int:
            node = self.nodes[place]
            nodes.append(Node(node.op, inputs, node.attrs, node.layer))
            origin.append(place)
            return len(nodes) - 1

        for place, node in enumerate(self.nodes):
            chain = self.chain[place]
            if chain >= 0:
                near = self.near.setdefault(chain, set())
                for source in node.inputs:
                    far = self.chain[source] >= 0 and self.chain[source] != chain
                    found = self._again(source, self.sizes[place], near) if far and source not in near else None
                    if found is not None:
                        calls, read = found
                        near |= read
                        for call in calls:
                            given = tuple(made.get((chain, i), new[i]) for i in self.nodes[call].inputs)
                            made[chain, call] = emit(call, given)
                            near.add(call)
                near |= {source for source in node.inputs if self.sizes[source] * SMALL > self.sizes[place]}
                near.add(place)
            new.append(emit(place, tuple(made.get((chain, i), new[i]) for i in node.inputs)))
        known = Inferred(tuple(self.known.shapes[i] for i in origin), tuple(self.known.dtypes[i] for i in origin))
        updates: list[Any] = [(new[target], new[value]) for target, value in self.source.updates]
        return Graph(nodes, [new[place] for place in self.source.outputs], updates, known)


def recompute_in_bands(
    graph: Graph,
    order: Sequence[int],
    alias: Mapping[int, int],
    stretch: Mapping[int, int],
    shared: Collection[int] = (),
    in_blocks: Collection[int] = (),
) -> Graph:
    """The graph without cheap arrays that one stretch of bands would keep for a later one, which reads anyway what they
    are made of: there they are made again. The same graph where there are none.

    order: the calls; alias: what shares the memory of which; stretch: the number of the stretch of a call in bands.
    shared: those of them, as masks, that every matrix of a stack makes for itself (rowblocks.py): nobody can keep them.
    in_blocks: those that make matrices on blocks of rows (rowblocks.py), which are not to be there whole.
    """
    return _InBands(graph, order, alias, stretch, shared, in_blocks).graph() if stretch else graph


class _InBands:
    def __init__(
        self,
        graph: Graph,
        order: Sequence[int],
        alias: Mapping[int, int],
        stretch: Mapping[int, int],
        shared: Collection[int],
        in_blocks: Collection[int],
    ) -> None:
        self.nodes, self.source, self.alias, self.stretch, self.shared = graph.nodes, graph, alias, stretch, shared
        self.in_blocks = in_blocks
        self.known = graph.infer(1)
        at = {place: index for index, place in enumerate(order)}
        self.begins: dict[int, int] = {}  # of each stretch, where in the order
        for place in order:
            if place in stretch:
                self.begins.setdefault(stretch[place], at[place])
        self.read_in: dict[int, list[int]] = {}  # by which calls each array is read, outside of its own stretch
        self.first: dict[int, int] = {}  # and where in the order first
        for place in order:
            for source in {alias.get(i, i) for i in graph.nodes[place].inputs}:
                if stretch.get(source, -1) != stretch.get(place, -2):
                    self.read_in.setdefault(source, []).append(place)
                    self.first.setdefault(source, at[place])
        self.results = {alias.get(i, i) for i in (*graph.outputs, *(i for update in graph.updates for i in update))}
        crossing = [place for place in self.read_in if place in stretch and not self._is_weights(place)]
        self.room = sum(map(self.known.bytes_of, crossing)) // SHARE_OF_WEIGHTS  # for weights of attention
        self.calls: dict[int, set[int]] = {}  # array that is not kept -> the calls that make it again
        self.reads: dict[int, set[int]] = {}  # and the kept arrays that these read
        for place in sorted(self.read_in, reverse=True):
            self._leave(place)

    def _leave(self, place: int) -> None:
        """Not to keep an array, if that pays."""
        made, later = self.stretch.get(place, -1), None
        if made >= 0 and self._is_cheap(place) and place not in self.results:
            later = self.begins.get(made + 1)
        if later is None or self.first[place] < later or self.known.bytes_of(place) < LEAST_BYTES:
            return
        relying = [other for other, reads in self.reads.items() if place in reads]
        # What a call behind the bands reads is written once in any case, earlier or later; the rest pays only with it.
        weights = self._is_weights(place)
        written = weights or relying or any(reader not in self.stretch for reader in self.read_in[place])
        found = self._again(place) if written else None
        if found is None:
            return
        if any(len(self.calls[other] | found[0]) > MOST_IN_BANDS for other in relying):
            return
        if weights and self.known.bytes_of(place) <= self.room:  # of the last layers, as those are not kept for long
            self.room -= self.known.bytes_of(place)
            return
        self.calls[place], self.reads[place] = found
        for other in relying:
            self.calls[other] |= found[0]
            self.reads[other] = self.reads[other] - {place} | found[1]

    def _again(self, place: int) -> tuple[set[int], set[int]] | None:
        """(the calls that make it again, the large arrays these read), if all of those are there."""
        calls, reads = {place}, set[int]()
        waiting = list(self.nodes[place].inputs)
        while waiting:
            at = waiting.pop()
            root = self.alias.get(at, at)
            if at in self.shared:
                calls.add(at)
                waiting += self.nodes[at].inputs
            elif self._is_there(root, self.known.bytes_of(place)):
                reads.add(root)
            elif at != root:
                waiting.append(root)
            elif self._is_cheap(at) and math.prod(self.known.shapes[at]) == math.prod(self.known.shapes[place]):
                calls.add(at)
                waiting += self.nodes[at].inputs
            else:
                return None
            if len(calls) > MOST_IN_BANDS:
                return None
        return calls, reads

    def _is_weights(self, place: int) -> bool:
        """Whether an array holds weights of attention, or what is as large: the larger part of what a step keeps."""
        return self.nodes[place].op == "softmax" or place in self.in_blocks

    def _is_cheap(self, place: int) -> bool:
        node, shapes = self.nodes[place], self.known.shapes
        if node.op == "matmul":
            return len(shapes[place]) > 2 and math.prod(shapes[node.inputs[0]]) * FEW_TERMS <= math.prod(shapes[place])
        return node.op in IN_BANDS or node.op == "uniform" and place in self.in_blocks

    def _is_there(self, root: int, size: int) -> bool:
        """Whether an array costs nothing: it is small, or another call in later bands reads it."""
        if OPS[self.nodes[root].op].group == "source" or self.known.bytes_of(root) * SMALL <= size:
            return True
        return root not in self.calls and any(reader in self.stretch for reader in self.read_in.get(root, ()))

    def graph(self) -> Graph:
        if not self.calls:
            return self.source
        nodes: list[Node] = []
        new: list[int] = []
        origin: list[int] = []
        again: dict[int, int] = {}  # what is made again -> where

        def emit(place: int, inputs: tuple[int, ...]) -> int:
            node = self.nodes[place]
            nodes.append(Node(node.op, inputs, node.attrs, node.layer))
            origin.append(place)
            return len(nodes) - 1

        def made_again(place: int, calls: set[int]) -> int:
            root = self.alias.get(place, place)
            if root not in calls:
                return new[place]
            if place not in again:
                calls = self.calls.get(root, calls)
                again[place] = emit(place, tuple(made_again(i, calls) for i in self.nodes[place].inputs))
            return again[place]

        for place, node in enumerate(self.nodes):
            given = []
            for i in node.inputs:
                root = self.alias.get(i, i)
                inside = place in self.alias or self.stretch.get(place, -1) == self.stretch.get(root, -2)
                given.append(made_again(i, self.calls[root]) if root in self.calls and not inside else new[i])
            new.append(emit(place, tuple(given)))
        known = Inferred(tuple(self.known.shapes[i] for i in origin), tuple(self.known.dtypes[i] for i in origin))
        updates: list[Any] = [(new[target], new[value]) for target, value in self.source.updates]
        return dead_code(Graph(nodes, [new[place] for place in self.source.outputs], updates, known))
