"""Products that are added up one after the other, as the gradient of a weight that every step of a recurrence reads.

They come right behind each other, and each sum lies in the place of the one before it: kernels/src/gemm.inl then adds
all of them to a few rows of the result while those are in the cache, and threads share the rows instead of meeting
after every product. The sums keep their order, so no bit changes. Sums over rows that are added up, as the gradient of
a bias, are alike where there are threads to share them (kernels/src/reduce.inl): none of them alone is worth it.

And concatenations of which only rows are read, as of the gradients of all steps' gates, by products and sums over rows:
where these come right behind one, they read the pieces and it is never made (kernels/src/fused.c).
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from cyxcore.dtype import is_float
from cyxcore.graph import Graph, Inferred

try:
    from cyxcore.kernels.cpu import MOST_SUMMED, MOST_TERMS
except ImportError:  # plans run on other devices without them
    MOST_SUMMED = MOST_TERMS = 0

LEAST_PIECES = 8  # of a concatenation that is not made
LEAST_PRODUCTS = 5  # fewer are not worth keeping what they multiply


class Accumulation(NamedTuple):
    """Nodes: a first product or sum over rows, then one more and the sum of all so far, and so on."""

    places: list[int]

    @property
    def sums(self) -> list[int]:
        return self.places[2::2]

    def onto(self) -> dict[int, int]:
        """Each sum of all so far -> what comes before it, in whose memory it lies."""
        return dict(zip(self.sums, [self.places[0], *self.sums], strict=False))


def accumulations(
    graph: Graph,
    known: Inferred,
    order: Sequence[int],
    alias: Mapping[int, int],
    elsewhere: Collection[int],
    lanes: int = 1,
) -> list[Accumulation]:
    """Those of `order`. elsewhere: calls that have their place already. lanes: how many threads there are."""
    read = Counter(alias.get(i, i) for place in order for i in graph.nodes[place].inputs)
    read.update(alias.get(i, i) for i in (*graph.outputs, *(value for _, value in graph.updates)))
    free = set(order) - set(elsewhere)

    def is_term(place: int) -> bool:
        node = graph.nodes[place]
        if place not in free or read[place] != 1:
            return False
        if node.op == "sum":  # one thread does best to make each while it has the rows in its cache
            shape = known.shapes[node.inputs[0]]
            over_rows = len(shape) == 2 and tuple(node.attrs["axes"]) == (0,)
            return lanes > 1 and over_rows and math.prod(shape) <= MOST_SUMMED
        if node.op != "matmul" or node.attrs["transpose_b"]:
            return False
        terms = known.shapes[node.inputs[0]][-2 if node.attrs["transpose_a"] else -1]
        return len(known.shapes[place]) == 2 and terms <= MOST_TERMS

    ends: dict[int, list[int]] = {}  # the last sum so far -> the nodes
    for place in order:
        node = graph.nodes[place]
        if node.op != "add" or place not in free or len(set(node.inputs)) != 2:
            continue
        for before, term in (node.inputs, node.inputs[::-1]):
            if known.shapes[before] != known.shapes[place] or not is_term(term):
                continue
            first = ends[before][0] if before in ends else before
            if graph.nodes[first].op != graph.nodes[term].op:
                continue
            if before in ends and read[before] == 1:
                ends[place] = [*ends.pop(before), term, place]
                break
            if is_term(before):
                ends[place] = [before, term, place]
                break
    return [Accumulation(places) for places in ends.values() if len(places) >= 2 * LEAST_PRODUCTS - 1]


def together(order: Sequence[int], found: Sequence[Accumulation]) -> list[int]:
    """The calls of each accumulation where its last one was."""
    last = {each.places[-1]: each.places for each in found}
    moved = {place for each in found for place in each.places}
    return [each for place in order if place in last or place not in moved for each in last.get(place, [place])]


class Joined(NamedTuple):
    """A concatenation that need not be made, and the products and sums that read its rows."""

    place: int
    readers: list[int]


def joined_rows(graph: Graph, known: Inferred, order: Sequence[int], alias: Mapping[int, int]) -> list[Joined]:
    """Those of `order`."""
    readers: dict[int, list[int]] = {}
    for place in order:
        for source in {alias.get(i, i) for i in graph.nodes[place].inputs}:
            readers.setdefault(source, []).append(place)
    outside = {alias.get(i, i) for i in (*graph.outputs, *(value for _, value in graph.updates))}
    found = []
    for place in order:
        node = graph.nodes[place]
        if node.op != "concat" or len(node.inputs) < LEAST_PIECES or place in outside:
            continue
        if is_float(known.dtypes[place]) and node.attrs["axis"] < len(known.shapes[place]) - 1:
            if all(_reads_rows(graph, known, reader, place, alias) for reader in readers.get(place, ())):
                found.append(Joined(place, readers.get(place, [])))
    return [each for each in found if each.readers]


def _reads_rows(graph: Graph, known: Inferred, reader: int, place: int, alias: Mapping[int, int]) -> bool:
    node, length = graph.nodes[reader], known.shapes[place][-1]
    shape = known.shapes[node.inputs[0]]
    if node.op in ("sum", "mean"):
        return shape[-1:] == (length,) and sorted(node.attrs["axes"]) == list(range(len(shape) - 1))
    if node.op != "matmul" or not node.attrs["transpose_a"]:
        return False
    other = node.inputs[1]
    return len(shape) == 2 and shape[1] == length and len(known.shapes[other]) == 2 and alias.get(other, other) != place


def beside_readers(
    graph: Graph, order: Sequence[int], alias: Mapping[int, int], found: Sequence[Joined], elsewhere: Collection[int]
) -> tuple[list[int], list[Joined]]:
    """The calls with each concatenation and its readers where the last of these was, and those of which that holds.

    elsewhere: calls that have their place already.
    """
    position = {place: index for index, place in enumerate(order)}
    first_read: dict[int, int] = {}
    for index, place in enumerate(order):
        for i in graph.nodes[place].inputs:
            first_read.setdefault(alias.get(i, i), index)
    fitting = []
    for each in found:
        last = max(position[reader] for reader in each.readers)
        free = not any(place in elsewhere for place in (each.place, *each.readers))
        if free and all(first_read.get(reader, last + 1) > last for reader in each.readers):
            fitting.append(each)
    at = {max(each.readers, key=position.__getitem__): [each.place, *each.readers] for each in fitting}
    moved = {place for places in at.values() for place in places}
    arranged = [each for place in order if place in at or place not in moved for each in at.get(place, [place])]
    return arranged, fitting
