"""Cheap values are made again where they are needed late, instead of being kept: graph to graph, the same bits.

A kernel of a chain that runs tile by tile (kernels/src/fused.c) costs a fraction of what it takes to write an array
of megabytes and to read it again later. So what the backward pass wants of an activation is computed a second time
from the arrays that are kept in any case, inside the chain that wants it.
"""

import math
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
