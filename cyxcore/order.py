"""Where calls of a plan wait until right before who reads them: a kernel can then make both at once."""

import math
from collections import Counter
from collections.abc import Mapping

from cyxcore.graph import Graph, Inferred
from cyxcore.ops import OPS

NEAR = 4  # calls by which a product may come later than it could: what it multiplies needs memory until then


def products_before_sums(graph: Graph, order: list[int], alias: Mapping[int, int]) -> list[int]:
    """A product that only a sum soon after it reads comes right before that: a kernel can make both at once."""
    read = Counter(alias.get(i, i) for place in order for i in graph.nodes[place].inputs)
    read.update(alias.get(i, i) for i in (*graph.outputs, *(value for _, value in graph.updates)))
    index_of = {place: index for index, place in enumerate(order)}
    held: dict[int, int] = {}  # product -> the sum it waits for
    for index, place in enumerate(order):
        if graph.nodes[place].op == "add":
            for product in {alias.get(i, i) for i in graph.nodes[place].inputs}:
                alone = read[product] == 1 and graph.nodes[product].op == "matmul"
                if alone and product in index_of and index - index_of[product] <= NEAR:
                    held[product] = place
    waiting: dict[int, list[int]] = {}
    for product, place in held.items():
        waiting.setdefault(place, []).append(product)
    return [each for place in order if place not in held for each in (*waiting.get(place, ()), place)]


def terms_before_updates(
    graph: Graph, known: Inferred, early: list[int], late: list[int], alias: Mapping[int, int], fixed: set[int]
) -> list[int]:
    """An element-wise call that only one late call of its size reads comes right before that: both are made tile by
    tile. fixed: calls that stay where they are.
    """
    written: dict[int, int] = {}  # what late calls may write in place -> the first that does
    for index, place in enumerate(late):
        if OPS[graph.nodes[place].op].group == "update":
            written.setdefault(graph.nodes[place].inputs[0], index)
    readers: dict[int, list[int]] = {}
    for place in (*early, *late):
        for source in {alias.get(i, i) for i in graph.nodes[place].inputs}:
            readers.setdefault(source, []).append(place)
    results = {alias.get(i, i) for i in (*graph.outputs, *(value for _, value in graph.updates))}
    at = {place: index for index, place in enumerate(late)}  # of the late call before which each comes
    moved: dict[int, list[int]] = {}
    for place in reversed(early):
        node, reading = graph.nodes[place], readers.get(place, [])
        if len(reading) != 1 or reading[0] not in at or place in fixed or place in results:
            continue
        index, sources = at[reading[0]], {alias.get(i, i) for i in node.inputs}
        same_size = math.prod(known.shapes[place]) == math.prod(known.shapes[late[index]])
        in_time = all(written.get(source, index) >= index for source in sources)
        # What only it reads is kept until then: no more than one array, in place of what it makes itself.
        alone = [
            source for source in sources if readers[source] == [place] and OPS[graph.nodes[source].op].group != "source"
        ]
        with_product = node.op == "add" and any(graph.nodes[source].op == "matmul" for source in sources)
        if OPS[node.op].group == "elementwise" and same_size and in_time and len(alone) <= 1 and not with_product:
            at[place] = index
            moved.setdefault(index, []).append(place)
    order = [place for place in early if place not in at]
    for index, place in enumerate(late):
        order += [*reversed(moved.get(index, [])), place]
    return order
