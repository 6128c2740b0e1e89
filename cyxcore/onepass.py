"""Element-wise calls of one size, and the sums of what they make, come right behind each other: graph to graph.

A sum whose terms lie in runs of memory is made together with the calls before it, tile by tile (kernels/src/fused.c): a
batch norm then goes over its images once and keeps nothing of what only the sum reads. No bit changes.
"""

import math
from collections import Counter
from collections.abc import Sequence

from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape
from cyxcore.ops import OPS

try:
    from cyxcore.kernels.cpu import LONGEST_RUN, MOST_CALLS, RUN_BLOCK, SHORTEST_RUN
except ImportError:  # plans run on other devices without them, and make nothing in one pass
    SHORTEST_RUN, LONGEST_RUN, RUN_BLOCK, MOST_CALLS = 1, 0, 1, 1

SUMS = ("sum", "mean")
LEAST_ELEMENTS = 65536  # smaller arrays stay in the cache
MASKS = frozenset(
    "cast equal not_equal less less_equal greater greater_equal logical_not logical_and logical_or".split()
)
AHEAD = 96  # nodes in which members of a row are looked for


def run_of(node: Node, shape: Shape) -> int:
    """How many terms lie in a row, of a sum that can be made with the calls before it; 0: it cannot."""
    if node.op not in SUMS:
        return 0
    axes, run = node.attrs["axes"], 1
    for axis in reversed(range(len(shape))):
        if axis not in axes and shape[axis] != 1:
            break
        run *= shape[axis]
    if run > LONGEST_RUN > 0 and run == math.prod([shape[axis] for axis in axes]):  # its blocks are runs
        return RUN_BLOCK if run % RUN_BLOCK == 0 or run == math.prod(shape) else 0
    return run if SHORTEST_RUN <= run <= LONGEST_RUN else 0


def gather(graph: Graph) -> Graph:
    """The graph with its nodes in an order in which such calls follow each other, where that saves passes."""
    rows = _Rows(graph, graph.infer(1))
    known = rows.known
    order = _late(graph, rows.sizes)
    at = 0
    while at < len(order):
        row = rows.row(order, at, AHEAD)
        if row:
            members = set(row)
            window = order[at : at + AHEAD]
            order[at : at + AHEAD] = [*row, *(place for place in window if place not in members)]
        at += len(row) or 1
    order = _undivided(rows, order)
    if order == list(range(len(order))):
        return graph
    new = {place: index for index, place in enumerate(order)}
    nodes = [
        Node(node.op, tuple([new[i] for i in node.inputs]), node.attrs, node.layer)
        for node in (graph.nodes[place] for place in order)
    ]
    return Graph(
        nodes,
        [new[place] for place in graph.outputs],
        [(new[target], new[value]) for target, value in graph.updates],
        Inferred(tuple([known.shapes[place] for place in order]), tuple([known.dtypes[place] for place in order])),
    )


def _late(graph: Graph, sizes: Sequence[int]) -> list[int]:
    """The nodes in order, but masks and slices as late as their first reader, where that is an element-wise call of
    their size.
    """
    anchor = list(range(len(graph.nodes)))  # before which node each comes; itself, where it stays
    first = [len(anchor)] * len(anchor)  # the first that reads it, as they are ordered now
    for place in reversed(range(len(anchor))):
        node, reader = graph.nodes[place], first[place]
        can_wait = node.op in ("slice", "reshape") or node.op in MASKS and sizes[place] >= LEAST_ELEMENTS
        if can_wait and reader < len(anchor) and sizes[reader] == sizes[place]:
            if OPS[graph.nodes[reader].op].group == "elementwise":
                anchor[place] = reader
        for i in node.inputs:
            # A reshape is no call of its own: what reads it reads what it shows.
            first[i] = min(first[i], anchor[place])
    return sorted(range(len(anchor)), key=lambda place: (anchor[place], place))


def _undivided(rows: "_Rows", order: Sequence[int]) -> list[int]:
    """Small calls between large element-wise ones, as of numbers of channels, before those that they do not read: what
    follows each other then is made in one pass.
    """
    made, chain = list[int](), list[int]()
    for place in order:
        group, size, reads = rows.groups[place], rows.sizes[place], rows.nodes[place].inputs
        if chain and group == "elementwise" and size == rows.sizes[chain[0]]:
            chain.append(place)
        elif chain and group in ("elementwise", "source") and size < LEAST_ELEMENTS and set(chain).isdisjoint(reads):
            made.append(place)
        else:
            made += chain
            chain = [place] if group == "elementwise" and size >= LEAST_ELEMENTS else []
            made += [] if chain else [place]
    return made + chain


def rows_across(graph: Graph, known: Inferred, order: Sequence[int]) -> list[tuple[int, int]]:
    """(first, behind the last) in `order` of rows with a sum over axis 0, which no band of axis 0 can make."""
    rows = _Rows(graph, known)
    found = []
    at = 0
    while at < len(order):
        row = rows.row(order, at, MOST_CALLS, in_order=True)
        sums = [place for place in row if rows.run_of(place)]
        if any(0 in graph.nodes[place].attrs["axes"] for place in sums):
            found.append((at, at + len(row)))
        at += len(row) or 1
    return found


class _Rows:
    """Looks for rows in a graph; what that asks of its nodes many times is found out once."""

    def __init__(self, graph: Graph, known: Inferred) -> None:
        self.nodes, self.known = graph.nodes, known
        self.sizes = [math.prod(shape) for shape in known.shapes]
        self.groups = [OPS[node.op].group for node in graph.nodes]
        self.readers = Counter(i for node in graph.nodes for i in node.inputs)
        self.readers.update((*graph.outputs, *(value for _, value in graph.updates)))

    def run_of(self, place: int) -> int:
        """As run_of() above, of a node."""
        node = self.nodes[place]
        return run_of(node, self.known.shapes[node.inputs[0]]) if node.op in SUMS else 0

    def row(self, order: Sequence[int], at: int, ahead: int, in_order: bool = False) -> list[int]:
        """The row that begins with the call at `at` of the order, up to its last sum; empty where a row saves nothing.

        ahead: how far it goes at most. in_order: only calls that follow each other as it is.
        """
        sizes, groups, nodes = self.sizes, self.groups, self.nodes
        size = sizes[order[at]]
        if groups[order[at]] != "elementwise" or size < LEAST_ELEMENTS:
            return []
        taken, made = [], set[int]()
        later: set[int] = set()  # left where it is, or known only when the row is through
        run = calls = length = saved = 0
        for place in order[at : at + ahead]:
            if calls == MOST_CALLS:
                break
            if later.isdisjoint(nodes[place].inputs):
                group = groups[place]
                if group == "source":
                    taken.append(place)
                    continue
                if group == "elementwise" and sizes[place] == size:
                    taken.append(place)
                    made.add(place)
                    calls += 1
                    continue
                own_run = self.run_of(place)
                if own_run and nodes[place].inputs[0] in made and own_run == (run or own_run):
                    taken.append(place)
                    later.add(place)
                    calls, run, length = calls + 1, own_run, len(taken)
                    saved += 2 if self.readers[nodes[place].inputs[0]] == 1 else 1
                    continue
            if in_order:
                break
            later.add(place)
        return taken[:length] if saved > 1 else []
