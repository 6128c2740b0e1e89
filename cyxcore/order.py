"""In what order a plan makes its calls, and what is decided about them before any memory exists.

Some wait until right before who reads them: a kernel can then make both at once.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from cyxcore.accumulating import Joined, accumulations, beside_readers, joined_rows, together
from cyxcore.bands import Stretch, arrange
from cyxcore.dtype import IN_GRAPHS
from cyxcore.graph import Graph, Inferred
from cyxcore.ops import OPS
from cyxcore.rowblocks import take_out

LEAST_GRADIENT = 65536  # elements: a smaller one is in the cache either way
FAR = 16  # calls by which a gradient may come later than it could
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


def masked_gradients(
    graph: Graph, known: Inferred, order: list[int], alias: Mapping[int, int], op: str, elsewhere: Collection[int] = ()
) -> dict[int, list[int]]:
    """Gradients made by `op`, conv2d_grad_input or matmul of a matrix, that only the mask of a ReLU reads. By the
    product of both: the gradient, the two calls that make the mask, and the product, which a kernel can make at once.
    elsewhere: calls that have their places.

    Not where an element-wise call goes on from the product: that begins a longer group, as the sums of a batch norm.
    """
    readers: dict[int, list[int]] = {}
    for place in order:
        for source in {alias.get(i, i) for i in graph.nodes[place].inputs}:
            readers.setdefault(source, []).append(place)
    kept = {alias.get(i, i) for i in (*graph.outputs, *(value for _, value in graph.updates))}
    at, found = {place: index for index, place in enumerate(order)}, dict[int, list[int]]()
    for index, place in enumerate(order):
        if graph.nodes[place].op != op or len(readers.get(place, ())) != 1 or place in kept:
            continue
        if op == "matmul" and len(known.shapes[graph.nodes[place].inputs[1]]) != 2:
            continue
        product = readers[place][0]
        others = [i for i in graph.nodes[product].inputs if i != place]
        if graph.nodes[product].op != "mul" or len(others) != 1 or at[product] - index > FAR:
            continue
        cast = others[0]
        greater = graph.nodes[cast].inputs[0] if graph.nodes[cast].op == "cast" else place
        one_reader = readers.get(cast) == [product] and readers.get(greater) == [cast]
        if not one_reader or graph.nodes[greater].op != "greater" or kept & {cast, greater}:
            continue
        if any(known.shapes[i] != known.shapes[product] for i in (place, cast, graph.nodes[greater].inputs[0])):
            continue
        goes_on = any(OPS[graph.nodes[reader].op].group == "elementwise" for reader in readers.get(product, ()))
        if not goes_on and not {place, greater, cast, product} & set(elsewhere):
            found[product] = [place, greater, cast, product]
    return found


def together_at_last(order: list[int], groups: Mapping[int, list[int]]) -> list[int]:
    """The calls of each group right behind each other, where its last one stands."""
    moved = {place for group in groups.values() for place in group}
    return [each for place in order if place in groups or place not in moved for each in groups.get(place, [place])]


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


def gradients_before_updates(
    graph: Graph, known: Inferred, order: list[int], alias: Mapping[int, int], fixed: set[int]
) -> list[int]:
    """A product that is nothing but the gradient of a large weight comes right before its update, which finds it in the
    cache; and no two of them need memory at once. fixed: calls that stay where they are.

    Only where it is as large as what it multiplies, which needs memory until then.
    """
    readers: dict[int, list[int]] = {}
    written: dict[int, int] = {}  # what updates may write in place -> the first that does
    for index, place in enumerate(order):
        for source in {alias.get(i, i) for i in graph.nodes[place].inputs}:
            readers.setdefault(source, []).append(index)
        if OPS[graph.nodes[place].op].group == "update":
            written.setdefault(graph.nodes[place].inputs[0], index)
    results = {alias.get(i, i) for i in (*graph.outputs, *(value for _, value in graph.updates))}
    before: dict[int, int] = {}  # the first call of an update -> the gradient
    for place in order:
        node, reading = graph.nodes[place], readers.get(place, [])
        if node.op != "matmul" or not reading or place in fixed or place in results:
            continue
        updates = all(OPS[graph.nodes[order[index]].op].group == "update" for index in reading)
        factors = sum(math.prod(known.shapes[i]) for i in node.inputs)
        fits = max(factors, LEAST_GRADIENT) <= math.prod(known.shapes[place])
        in_time = all(written.get(alias.get(i, i), reading[0]) >= reading[0] for i in node.inputs)
        if updates and fits and in_time:
            before[order[reading[0]]] = place
    moved = set(before.values())
    return [
        each
        for place in order
        if place not in moved
        for each in ((before[place], place) if place in before else (place,))
    ]


class Schedule(NamedTuple):
    """Decisions about a graph, before any memory exists."""

    order: list[int]  # nodes with a kernel call
    alias: dict[int, int]  # reshape or detach -> the node whose memory it shares
    in_place: dict[int, int]  # update op -> the param whose array it writes
    copies: list[tuple[int, int]]  # (param, value) written at the end
    stretches: list[Stretch]  # calls that follow each other in `order` and run band by band
    onto: dict[int, int]  # sum -> what it adds to, whose memory it has
    joined: list[Joined]  # concatenations that are not made: what they join is there until their readers are through
    masked: dict[int, list[int]]  # the last call of those that are made at once as one masked gradient -> all of them

    def stretch_of(self, with_sums: bool = True) -> dict[int, int]:
        """The number of the stretch of each call in bands. with_sums: also of those that add up all bands of axis 0."""
        return {
            place: number
            for number, each in enumerate(self.stretches)
            for place in each.places
            if with_sums or each.blocks or place not in each.adds
        }

    def shared(self, known: Inferred) -> set[int]:
        """The calls on blocks of rows that every matrix of a stack makes for itself, as masks of all heads."""
        return {
            place
            for each in self.stretches
            for place in each.places
            if each.blocks and place not in each.over_matrices and not each.blocks.is_whole(known.shapes[place])
        }

    def largest_in_blocks(self, known: Inferred) -> set[int]:
        """The calls on blocks of rows that make a number for each column of those: what is not to be there whole."""
        found = set[int]()
        for each in self.stretches:
            sizes = {place: math.prod(known.shapes[place]) for place in each.places if each.blocks}
            found.update(place for place, size in sizes.items() if size == max(sizes.values()))
        return found

    def home(self, place: int) -> int:
        """The node in whose memory a value is made."""
        place = self.alias.get(place, place)
        while place in self.onto:
            place = self.onto[place]
        return place

    def within(self, graph: Graph, known: Inferred) -> set[int]:
        """The nodes that nothing outside of their own stretch reads: they need memory for one band only."""
        stretch_of = self.stretch_of()
        kept = {self.alias.get(i, i) for i in (*graph.outputs, *(value for _, value in self.copies), *self.in_place)}
        for place in self.order:
            sources = {self.alias.get(i, i) for i in graph.nodes[place].inputs}
            kept |= {source for source in sources if stretch_of.get(source, -1) != stretch_of.get(place, -2)}
        for place, root in self.alias.items():  # seen with other rows
            stretch = self.stretches[stretch_of[root]] if root in stretch_of else None
            if stretch and not stretch.blocks and (known.shapes[place] or (1,))[0] % stretch.bands:
                kept.add(root)
        return set(stretch_of) - kept


def schedule(graph: Graph, in_bands: bool = False, lanes: int = 1, exact: bool = False) -> Schedule:
    """Which nodes need a call and in what order.

    Optimiser ops move to the end, where nobody reads the old parameter any more, and then write it
    in place. Other updates (running statistics) are copied last of all. What can run in bands comes first; lanes: on
    how many threads; exact: as of arrange().
    """
    alias: dict[int, int] = {}
    order = []
    for place, node in enumerate(graph.nodes):
        if node.op in ("reshape", "detach"):
            alias[place] = alias.get(node.inputs[0], node.inputs[0])
        elif OPS[node.op].group != "source":
            order.append(place)
    target_of: dict[int, int] = {}
    copies = []
    for target, value in graph.updates:
        node = graph.nodes[value]
        if OPS[node.op].group == "update" and node.inputs[0] == target and value not in target_of:
            target_of[value] = target
        else:
            copies.append((target, value))
    late = _after(graph, set(target_of))
    early = products_before_sums(graph, [place for place in order if place not in late], alias)
    stretches: list[Stretch] = []
    onto: dict[int, int] = {}
    joined: list[Joined] = []
    masked: dict[int, list[int]] = {}
    if in_bands:
        known = graph.infer(1)
        others = _without_kernels(graph, known, early)
        masked = masked_gradients(graph, known, early, alias, "conv2d_grad_input", others)
        early = together_at_last(early, masked)
        joined = joined_rows(graph, known, early, alias)
        joined = [each for each in joined if others.isdisjoint([each.place, *each.readers])]
        alone = {*others, *(each.place for each in joined), *(place for group in masked.values() for place in group)}
        early, by_blocks = take_out(graph, known, early, alias, alone, exact)
        early, stretches = arrange(graph, known, early, alias, lanes, alone, exact, by_blocks)
        elsewhere = {*others, *(place for each in stretches for place in each.places)}
        of_products = masked_gradients(graph, known, early, alias, "matmul", elsewhere)
        early = together_at_last(early, of_products)
        masked |= of_products
        added_up = accumulations(graph, known, early, alias, elsewhere, lanes)
        if lanes > 1:  # one thread finds in its cache what it multiplies right behind its making
            early = together(early, added_up)
        elsewhere |= {place for each in added_up for place in each.places}
        early, joined = beside_readers(graph, early, alias, joined, elsewhere)
        onto = {place: source for each in added_up for place, source in each.onto().items()}
        fixed = {*elsewhere, *onto, *onto.values(), *(place for group in masked.values() for place in group)}
        order = terms_before_updates(graph, known, early, [p for p in order if p in late], alias, fixed)
        fixed.update(reader for each in joined for reader in each.readers)
        order = gradients_before_updates(graph, known, order, alias, fixed)
    else:
        order = early + [place for place in order if place in late]
    position = {place: index for index, place in enumerate(order)}
    last_read = {alias.get(i, i): position[place] for place in order for i in graph.nodes[place].inputs}
    results = {alias.get(place, place) for place in graph.outputs}
    in_place = {}
    for value, target in target_of.items():
        if last_read.get(target, -1) > position[value] or target in results:
            copies.append((target, value))
        else:
            in_place[value] = target
    return Schedule(order, alias, in_place, copies, stretches, onto, joined, masked)


def _without_kernels(graph: Graph, known: Inferred, order: Sequence[int]) -> set[int]:
    """The calls on dtypes that only NumPy's kernels take, as those of halves: they run by themselves."""
    return {
        place
        for place in order
        if not IN_GRAPHS.issuperset([known.dtypes[i] for i in (place, *graph.nodes[place].inputs)])
    }


def _after(graph: Graph, updates: set[int]) -> set[int]:
    """The update ops and everything computed from them."""
    late = set(updates)
    for place, node in enumerate(graph.nodes):
        if any(source in late for source in node.inputs):
            late.add(place)
    return late
