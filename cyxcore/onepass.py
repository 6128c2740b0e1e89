"""Element-wise calls of one size, and the sums of what they make, come right behind each other: graph to graph.

A sum whose terms lie in runs of memory is made together with the calls before it, tile by tile (kernels/src/fused.c): a
batch norm then goes over its images once and keeps nothing of what only the sum reads. No bit changes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape
from cyxcore.ops import OPS

try:
    from cyxcore.kernels.cpu import LONGEST_RUN, MOST_CALLS, SHORTEST_RUN
except ImportError:  # plans run on other devices without them, and make nothing in one pass
    SHORTEST_RUN, LONGEST_RUN, MOST_CALLS = 1, 0, 1

LEAST_ELEMENTS = 65536  # smaller arrays stay in the cache
MASKS = frozenset(
    "cast equal not_equal less less_equal greater greater_equal logical_not logical_and logical_or".split()
)
AHEAD = 96  # nodes in which members of a row are looked for


def run_of(node: Node, shape: Shape) -> int:
    """How many terms lie in a row, of a sum that can be made with the calls before it; 0: it cannot."""
    if node.op not in ("sum", "mean"):
        return 0
    axes, run = node.attrs["axes"], 1
    for axis in reversed(range(len(shape))):
        if axis not in axes and shape[axis] != 1:
            break
        run *= shape[axis]
    return run if SHORTEST_RUN <= run <= LONGEST_RUN else 0


def gather(graph: Graph) -> Graph:
    """The graph with its nodes in an order in which such calls follow each other, where that saves passes."""
    known = graph.infer(1)
    readers = _readers(graph)
    order = _late(graph, known)
    at = 0
    while at < len(order):
        window = order[at : at + AHEAD]
        row = _row(graph, known, window, readers)
        if row:
            members = set(row)
            order[at : at + AHEAD] = [*row, *(place for place in window if place not in members)]
        at += len(row) or 1
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


def _late(graph: Graph, known: Inferred) -> list[int]:
    """The nodes in order, but masks and slices as late as their first reader, where that is an element-wise call of
    their size.
    """
    sizes = [math.prod(shape) for shape in known.shapes]
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


def rows_across(graph: Graph, known: Inferred, order: Sequence[int]) -> list[tuple[int, int]]:
    """(first, behind the last) in `order` of rows with a sum over axis 0, which no band of axis 0 can make."""
    readers = _readers(graph)
    found = []
    at = 0
    while at < len(order):
        row = _row(graph, known, order[at : at + MOST_CALLS], readers, in_order=True)
        sums = [place for place in row if run_of(graph.nodes[place], known.shapes[graph.nodes[place].inputs[0]])]
        if any(0 in graph.nodes[place].attrs["axes"] for place in sums):
            found.append((at, at + len(row)))
        at += len(row) or 1
    return found


def _readers(graph: Graph) -> Counter[int]:
    readers = Counter(i for node in graph.nodes for i in node.inputs)
    readers.update((*graph.outputs, *(value for _, value in graph.updates)))
    return readers


def _row(
    graph: Graph, known: Inferred, window: Sequence[int], readers: Mapping[int, int], in_order: bool = False
) -> list[int]:
    """The row that begins with the first of `window`, up to its last sum; empty where a row saves nothing.

    in_order: only calls that follow each other as it is.
    """
    size = math.prod(known.shapes[window[0]])
    if OPS[graph.nodes[window[0]].op].group != "elementwise" or size < LEAST_ELEMENTS:
        return []
    taken, made = [], set[int]()
    later: set[int] = set()  # left where it is, or known only when the row is through
    run = calls = length = saved = 0
    for place in window:
        if calls == MOST_CALLS:
            break
        node, shape = graph.nodes[place], known.shapes[place]
        if not any(i in later for i in node.inputs):
            if OPS[node.op].group == "source":
                taken.append(place)
                continue
            if OPS[node.op].group == "elementwise" and math.prod(shape) == size:
                taken.append(place)
                made.add(place)
                calls += 1
                continue
            source = node.inputs[0] if node.inputs else place
            own_run = run_of(node, known.shapes[source])
            if own_run and source in made and own_run == (run or own_run):
                taken.append(place)
                later.add(place)
                calls, run, length = calls + 1, own_run, len(taken)
                saved += 2 if readers[source] == 1 else 1
                continue
        if in_order:
            break
        later.add(place)
    return taken[:length] if saved > 1 else []
