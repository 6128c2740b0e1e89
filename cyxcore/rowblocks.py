"""Attention of long sequences: which calls of a plan run on blocks of rows of a stack of matrices.

Of T positions that look at S others, scores, mask, softmax and their gradients are T x S numbers for each head. Rows
do not depend on each other in any of these calls, so a block of rows goes through all of them before the next one, and
none of those matrices is ever there whole: bands (bands.py) within one matrix. The gradients of keys and values are
products by a transposed matrix of weights: each block goes on adding where the one before it ended. The gradient of
what is added to the scores of several matrices is a sum over these: each block adds to its rows of the matrices before.
So the chains of sums, and with them all bits, are those of the whole matrices.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cyxcore.bands import Blocks, Stretch
from cyxcore.dtype import item_bytes
from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape
from cyxcore.ops import OPS
from cyxcore.passes import dead_code

LEAST_BYTES = 4 * 1024 * 1024  # of the weights of one matrix: fewer are made whole in the cache
BLOCK_BYTES = 1024 * 1024  # of weights in a block
LEAST_ROWS = 16  # of a block: fewer do not pay for reading keys and values again
ROWS_ALIKE = 4  # a multiple of that
SPLIT_ROWS_ALIKE = 32  # the same where products are split: so many terms are added to a sum at once (amx_tiles.inl)
FLOATS = ("float32", "float64")
INT32_END = 2**31
FEW_TERMS = 4  # of scores, so many times fewer than rows and columns: as of attention


class Place(NamedTuple):
    """A call on blocks of rows."""

    cut: tuple[bool, ...]  # which inputs are cut; of the others each block needs one matrix whole
    adds: bool = False  # whether all blocks of a matrix add up to one output
    over_matrices: bool = False  # whether a block adds to the same rows of what other matrices have come to


def take_out(
    graph: Graph,
    known: Inferred,
    order: Sequence[int],
    alias: Mapping[int, int],
    unmade: Collection[int] = (),
    exact: bool = True,
) -> tuple[list[int], list[Stretch]]:
    """The calls in an order in which those of a stretch follow each other, and the stretches. unmade: calls that are
    made elsewhere. exact: or else products may be split (precision.py).
    """
    stacks = _stacks(graph, known, order, exact)
    if not stacks:
        return list(order), []
    readers: dict[int, list[int]] = {}
    for place in order:
        for source in graph.nodes[place].inputs:
            readers.setdefault(alias.get(source, source), []).append(place)
    for place in (*graph.outputs, *(i for update in graph.updates for i in update)):
        readers.setdefault(alias.get(place, place), []).append(-1)
    segments: list[list[int] | Stretch] = [list(order)]
    joined = _joined_masks(graph, known, stacks)
    for blocks, widths, of_masks in stacks:
        places = {}
        for place in order:
            # How much a mask shows of each row is counted before anything is multiplied: in a stretch of its own.
            is_float = known.dtypes[place] in FLOATS
            is_mask = graph.nodes[place].op in MASKS or place in joined
            fitting = is_mask or not is_float if of_masks else is_mask or is_float
            found = _place(graph, known, place, blocks, widths) if fitting and place not in unmade else None
            if found is not None:
                places[place] = found
        if not of_masks:
            places |= _of_their_rows(graph, known, order, alias, places, readers, blocks)
        segments = [
            piece
            for segment in segments
            for piece in (
                [segment]
                if isinstance(segment, Stretch)
                else _split(graph, known, segment, alias, places, readers, blocks)
            )
        ]
    arranged: list[int] = []
    for segment in segments:
        arranged += segment.places if isinstance(segment, Stretch) else segment
    return arranged, [segment for segment in segments if isinstance(segment, Stretch)]


class _Stack(NamedTuple):
    blocks: Blocks
    widths: Collection[int]  # how many columns its matrices have
    of_masks: bool = False


def _stacks(graph: Graph, known: Inferred, order: Sequence[int], exact: bool) -> list[_Stack]:
    """The stacks of matrices of scores that are worth it, and then those that masks may be, with fewer matrices."""
    found: dict[tuple[Shape, int], set[int]] = {}
    row_bytes: dict[tuple[Shape, int], int] = {}
    for place in order:
        node, shape = graph.nodes[place], known.shapes[place]
        if node.op != "matmul" or len(shape) < 3 or known.dtypes[place] not in FLOATS:
            continue
        left, right = (known.shapes[i] for i in node.inputs)
        lead, (rows, columns) = shape[:-2], shape[-2:]
        if node.attrs["transpose_a"] or left[:-2] != lead or len(right) != len(shape):
            continue
        if not Blocks(lead, rows, rows).fits(right, False):  # heads may share keys
            continue
        terms = known.shapes[node.inputs[0]][-1]
        in_row = columns * item_bytes(known.dtypes[place])
        if math.prod(lead) and rows * in_row >= LEAST_BYTES and 0 < terms * FEW_TERMS <= min(rows, columns):
            found.setdefault((lead, rows), set()).add(columns)
            row_bytes[lead, rows] = max(in_row, row_bytes.get((lead, rows), 0))
    stacks: list[_Stack] = []
    for (lead, rows), widths in found.items():
        count = -(-rows * row_bytes[lead, rows] // BLOCK_BYTES)
        block = max(-(-rows // count), LEAST_ROWS)
        alike = ROWS_ALIKE if exact else SPLIT_ROWS_ALIKE
        block = -(-block // alike) * alike
        if block < rows:
            stacks.append(_Stack(Blocks(lead, rows, block), widths))
    for stack in list(stacks):
        choices: list[set[int]] = [{1, size} for size in stack.blocks.lead]
        for fewer in sorted(itertools.product(*choices), key=lambda each: -math.prod(each)):
            stacks.append(_Stack(stack.blocks._replace(lead=fewer), stack.widths, of_masks=True))
    return stacks


def _joined_masks(graph: Graph, known: Inferred, stacks: Sequence[_Stack]) -> set[int]:
    """What is added to scores made of two masks, of positions and of padding, and the same for several heads."""

    def is_joined(shape: Shape) -> bool:
        large = [stack for stack in stacks if _is_large(shape, stack.blocks, stack.widths)]
        return bool(large) and not any(stack.blocks.is_whole(shape) for stack in large if not stack.of_masks)

    return {
        place
        for place, node in enumerate(graph.nodes)
        if node.op in JOINS and known.dtypes[place] in FLOATS and is_joined(known.shapes[place])
    }


def _place(graph: Graph, known: Inferred, place: int, blocks: Blocks, widths: Collection[int]) -> Place | None:
    """How a call runs on blocks of rows; None: it does not."""
    node, out = graph.nodes[place], known.shapes[place]
    shapes = [known.shapes[i] for i in node.inputs]
    if not any(_is_large(shape, blocks, widths) for shape in (out, *shapes)):
        return None
    rule = RULES.get(node.op) or GROUP_RULES.get(OPS[node.op].group)
    found = rule(node, shapes, out, blocks) if rule else None
    if found is None or not blocks.fits(out, not found.adds):
        return None
    if (found.adds or found.over_matrices) and known.dtypes[place] not in FLOATS:
        return None
    if found.adds and _is_large(out, blocks, widths):
        return None
    return found if all(map(blocks.fits, shapes, found.cut)) else None


def _of_their_rows(
    graph: Graph,
    known: Inferred,
    order: Sequence[int],
    alias: Mapping[int, int],
    places: Mapping[int, Place],
    readers: Mapping[int, Sequence[int]],
    blocks: Blocks,
) -> dict[int, Place]:
    """Element-wise calls on what is given, as the scale of queries, of which each block reads its own rows only."""
    found: dict[int, Place] = {}
    made = set(order)
    for place in order:
        node, out = graph.nodes[place], known.shapes[place]
        if place in places or OPS[node.op].group != "elementwise" or known.dtypes[place] not in FLOATS:
            continue
        if len(out) < 2 or any(alias.get(i, i) in made for i in node.inputs):
            continue
        shapes = [known.shapes[i] for i in node.inputs]
        how = _elementwise(node, shapes, out, blocks)
        if how is None or not blocks.is_whole(out) or not all(map(blocks.fits, (out, *shapes), (True, *how.cut))):
            continue
        if all(_reads_rows(graph, reader, place, alias, places) for reader in readers.get(place, ())):
            found[place] = how
    return found


def _reads_rows(graph: Graph, reader: int, place: int, alias: Mapping[int, int], places: Mapping[int, Place]) -> bool:
    """Whether a call on blocks of rows reads of another one its own rows only."""
    return reader in places and all(
        cut or alias.get(source, source) != place
        for source, cut in zip(graph.nodes[reader].inputs, places[reader].cut, strict=True)
    )


def _is_large(shape: Shape, blocks: Blocks, widths: Collection[int]) -> bool:
    return len(shape) > 1 and shape[-2] == blocks.length and shape[-1] in widths and blocks.fits(shape, True)


def _split(
    graph: Graph,
    known: Inferred,
    order: Sequence[int],
    alias: Mapping[int, int],
    places: Mapping[int, Place],
    readers: Mapping[int, Sequence[int]],
    blocks: Blocks,
) -> list[list[int] | Stretch]:
    """Calls as rows of them and the stretches between."""
    pieces: list[list[int] | Stretch] = []
    plain: list[int] = []
    waiting, left = list(order), dict(places)
    while waiting:
        if waiting[0] not in left:
            plain.append(waiting.pop(0))
            continue
        taken, before, rest = _gather(graph, waiting, alias, left)
        wrong = _wrong(graph, known, taken, alias, left, readers, blocks)
        if wrong:
            for place in wrong:
                del left[place]
            continue
        if len(taken) < 2:
            del left[waiting[0]]
            continue
        pieces += [
            [*plain, *before],
            Stretch(
                _before_readers(graph, _masks_first(graph, taken, alias), alias, readers),
                {place: left[place].cut for place in taken},
                blocks.bands,
                frozenset(place for place in taken if left[place].adds),
                blocks,
                frozenset(place for place in taken if left[place].over_matrices),
            ),
        ]
        plain, waiting = [], rest
    return [*pieces, plain]


def _masks_first(graph: Graph, taken: Sequence[int], alias: Mapping[int, int]) -> list[int]:
    """Calls with the masks of scores before these: a product and the mask behind it are made in one pass, which leaves
    out what is hidden (kernels/src/masked.inl).
    """
    waiting, masks = set(taken), list[int]()
    for place in taken:
        if graph.nodes[place].op in MASKS and waiting.isdisjoint(alias.get(i, i) for i in graph.nodes[place].inputs):
            waiting.discard(place)
            masks.append(place)
    return masks + [place for place in taken if place in waiting]


def _before_readers(
    graph: Graph, calls: Sequence[int], alias: Mapping[int, int], readers: Mapping[int, Sequence[int]]
) -> list[int]:
    """Calls with each product right before what alone reads it: a kernel can make both at once, and it needs memory for
    a shorter time.
    """
    held: dict[int, list[int]] = {}
    inside = set(calls)
    for place in calls:
        reading = set(readers.get(place, ()))
        if graph.nodes[place].op == "matmul" and len(reading) == 1 and reading <= inside:
            held.setdefault(reading.pop(), []).append(place)
    moved = {place for products in held.values() for place in products}

    def with_products(place: int) -> list[int]:
        return [*(each for product in held.get(place, ()) for each in with_products(product)), place]

    return [each for place in calls if place not in moved for each in with_products(place)]


def with_shared_masks(graph: Graph, stretches: Collection[Stretch]) -> Graph:
    """The graph in which calls of one stretch read one mask where for_blocks() gave each its own; the same graph where
    there are none.
    """
    new = list(range(len(graph.nodes)))
    for stretch in stretches:
        known: dict[tuple[str, tuple[int, ...]], int] = {}
        for place in sorted(stretch.places) if stretch.blocks else ():
            node = graph.nodes[place]
            if node.op in MASKS or node.op in JOINS:
                new[place] = known.setdefault((node.op, tuple([new[i] for i in node.inputs])), place)
    if new == list(range(len(new))):
        return graph
    nodes = [Node(node.op, tuple([new[i] for i in node.inputs]), node.attrs, node.layer) for node in graph.nodes]
    return dead_code(Graph(nodes, graph.outputs, graph.updates, graph.infer(1)))


def _gather(
    graph: Graph,
    waiting: Sequence[int],
    alias: Mapping[int, int],
    places: Mapping[int, Place],
    wanted: Collection[int] = (),
) -> tuple[list[int], list[int], list[int]]:
    """(calls of one stretch, what they need before, the rest), each in order.

    What needs a matrix of the stretch whole comes behind it. From then on only calls that go on from those of the
    stretch belong to it, masks, and what is wanted, as such a call reads it: others may be for a later one, as weights
    that are made again for gradients.
    """
    taken, apart = list[int](), list[int]()
    inside, masks, sums, later = set[int](), set[int](), set[int](), set[int]()
    for place in waiting:
        sources = [alias.get(i, i) for i in graph.nodes[place].inputs]
        how = places.get(place)
        ready = how is not None and not any(
            source in later or source in sums or (source in inside and not cut)
            for source, cut in zip(sources, how.cut, strict=True)
        )
        goes_on = any(source in inside for source in sources)
        if ready and how is not None and (goes_on or not later or place in wanted):
            taken.append(place)
            (sums if how.adds or how.over_matrices else inside).add(place)
        elif ready and graph.nodes[place].op in MASKS:
            taken.append(place)
            masks.add(place)
        elif goes_on or any(source in later or source in sums or source in masks for source in sources):
            later.add(place)
        else:
            apart.append(place)
    needed = {alias.get(i, i) for place in taken for i in graph.nodes[place].inputs}
    others = [place for place in taken if place not in needed and graph.nodes[place].op in MASKS]
    # What reads these has come behind the stretch. Without them more may belong to it, and need other masks.
    others = [place for place in others if place not in masks] or others
    if others:
        places = {place: how for place, how in places.items() if place not in others}
        return _gather(graph, waiting, alias, places, wanted)
    more = {place for place in apart if place in needed & places.keys()} - _read_whole(graph, taken, alias, places)
    if more:
        return _gather(graph, waiting, alias, places, more.union(wanted))
    for place in reversed(apart):
        if place in needed:
            needed.update(alias.get(i, i) for i in graph.nodes[place].inputs)
    before = [place for place in apart if place in needed]
    gone = {*taken, *before}
    return taken, before, [place for place in waiting if place not in gone]


def _read_whole(graph: Graph, taken: Sequence[int], alias: Mapping[int, int], places: Mapping[int, Place]) -> set[int]:
    """What calls of a stretch read of which a block of rows is not enough."""
    return {
        alias.get(source, source)
        for place in taken
        for source, cut in zip(graph.nodes[place].inputs, places[place].cut, strict=True)
        if not cut
    }


def _wrong(
    graph: Graph,
    known: Inferred,
    taken: Sequence[int],
    alias: Mapping[int, int],
    places: Mapping[int, Place],
    readers: Mapping[int, Sequence[int]],
    blocks: Blocks,
) -> set[int]:
    """The calls that cannot run in a stretch: what several heads share must stay within it, as each of them makes it;
    and nothing in it is seen in another shape.
    """
    inside, found = set(taken), set[int]()
    for place in taken:
        whole = blocks.is_whole(known.shapes[place])
        if not whole and not places[place].over_matrices and not inside.issuperset(readers.get(place, ())):
            found.add(place)
        for source in graph.nodes[place].inputs:
            root = alias.get(source, source)
            if root != source and root in inside and known.shapes[root] != known.shapes[source]:
                found.add(place)
    return found


def _elementwise(node: Node, shapes: Sequence[Shape], out: Shape, blocks: Blocks) -> Place | None:
    return Place(tuple([len(shape) > 1 and shape[-2] == out[-2] for shape in shapes]))


def _along(node: Node, shapes: Sequence[Shape], out: Shape, blocks: Blocks) -> Place | None:
    return Place((True,) * len(shapes)) if node.attrs["axis"] == len(out) - 1 else None


def _reduce(node: Node, shapes: Sequence[Shape], out: Shape, blocks: Blocks) -> Place | None:
    columns = tuple(node.attrs["axes"]) == (len(shapes[0]) - 1,) and node.attrs["keepdims"]
    if columns and blocks.is_whole(out):
        return Place((True,))
    over_matrices = _is_over_matrices(node, shapes[0]) and node.attrs["keepdims"] and blocks.is_whole(shapes[0])
    return Place((True,), over_matrices=True) if over_matrices else None


def _is_over_matrices(node: Node, shape: Shape) -> bool:
    """Whether a call is a sum over matrices of a stack, as the gradient of a mask that is added to several of them."""
    return node.op == "sum" and 0 < len(node.attrs["axes"]) and max(node.attrs["axes"]) < len(shape) - 2


def _matmul(node: Node, shapes: Sequence[Shape], out: Shape, blocks: Blocks) -> Place | None:
    if not blocks.is_whole(out):
        return None
    if not node.attrs["transpose_a"]:
        return Place((True, False))
    if node.attrs["transpose_b"] or not all(map(blocks.is_whole, shapes)):
        return None
    return Place((True, True), adds=True)


def _uniform(node: Node, shapes: Sequence[Shape], out: Shape, blocks: Blocks) -> Place | None:
    return Place((False,)) if blocks.is_whole(out) else None


MASKS = frozenset("equal not_equal less less_equal greater greater_equal logical_not logical_and logical_or".split())
JOINS = ("add", "where")  # of float masks
Rule = Callable[[Node, Sequence[Shape], Shape, Blocks], Place | None]
GROUP_RULES: dict[str, Rule] = {"elementwise": _elementwise, "reduce": _reduce}
RULES: dict[str, Rule] = {
    "matmul": _matmul,
    "broadcast_to": _elementwise,
    "uniform": _uniform,
    "softmax": _along,
    "log_softmax": _along,
    "softmax_grad": _along,
    "log_softmax_grad": _along,
}


def for_blocks(graph: Graph, exact: bool = True) -> Graph:
    """The graph in which everything that reads a mask of long sequences has a mask of its own: made in each block of
    rows, it is never there whole; of positions that int32 holds, as those are compared twice as fast. And the gradient
    of keys, a product that is transposed, is the product of its factors in the other order, as that of values is: the
    same numbers, and the kernel leaves out what a mask hides. Where products are split (not exact) it stays as it is:
    then the terms of both meet in an order. A sum over matrices keeps their axes, which say where each lies.
    """
    known = graph.infer(1)
    stacks = _stacks(graph, known, range(len(graph.nodes)), exact)
    if not stacks:
        return graph

    def is_large(place: int) -> bool:
        return any(_is_large(known.shapes[place], stack.blocks, stack.widths) for stack in stacks)

    masks = {place for place, node in enumerate(graph.nodes) if node.op in MASKS and is_large(place)}
    masks |= _joined_masks(graph, known, stacks)
    results = {*graph.outputs, *(i for update in graph.updates for i in update)}
    readers = Counter(i for node in graph.nodes for i in node.inputs)
    turned = set[int]()  # products, and what goes on from them alone up to what transposes them
    straight: dict[int, int] = {}  # what transposes -> what it reads, which is made the other way round
    for place, node in enumerate(graph.nodes):
        chain = [node.inputs[0]] if exact and node.op == "transpose" else []
        while chain and readers[chain[-1]] == 1 and chain[-1] not in results:
            source, of = graph.nodes[chain[-1]], known.shapes[chain[-1]]
            if source.op == "matmul":
                rank, attrs = len(known.shapes[node.inputs[0]]), source.attrs
                swapped = node.attrs["axes"] == (*range(rank - 2), rank - 1, rank - 2)
                if swapped and attrs["transpose_a"] and not attrs["transpose_b"] and is_large(source.inputs[1]):
                    turned.update(chain)
                    straight[place] = chain[0]
                break
            before = known.shapes[source.inputs[0]] if source.inputs else ()
            if not _is_over_matrices(source, before) and not (source.op == "reshape" and before[-2:] == of[-2:]):
                break
            chain.append(source.inputs[0])
    nodes: list[Node] = []
    shapes: list[Shape] = []
    dtypes: list[str] = []
    new: dict[int, int] = {}
    narrow: dict[int, int] = {}  # the same as int32

    def add(node: Node, shape: Shape, dtype: str) -> int:
        nodes.append(node)
        shapes.append(shape)
        dtypes.append(dtype)
        return len(nodes) - 1

    def is_narrow(place: int) -> bool:
        node = graph.nodes[place]
        if node.op == "reshape":
            return is_narrow(node.inputs[0])
        if node.op != "const" or known.dtypes[place] != "int64":
            return False
        values = np.asarray(node.attrs["value"])
        return values.size > 0 and -INT32_END <= values.min() and values.max() < INT32_END

    def narrowed(place: int) -> int:
        if place not in narrow:
            node = graph.nodes[place]
            attrs = {**node.attrs, "dtype": "int32"} if node.op == "const" else node.attrs
            inputs = tuple(map(narrowed, node.inputs))
            narrow[place] = add(Node(node.op, inputs, attrs, node.layer), known.shapes[place], "int32")
        return narrow[place]

    def emit(place: int) -> int:
        node = graph.nodes[place]
        if place in masks and len(node.inputs) == 2 and all(map(is_narrow, node.inputs)):
            inputs = tuple(map(narrowed, node.inputs))
            return add(Node(node.op, inputs, node.attrs, node.layer), known.shapes[place], "bool")
        if place in straight:
            return new[straight[place]]
        shape, dtype = known.shapes[place], known.dtypes[place]
        if place in turned:
            shape = (*shape[:-2], shape[-1], shape[-2])
            if node.op == "matmul":
                node = Node("matmul", node.inputs[::-1], node.attrs, node.layer)
            elif node.op == "reshape":
                node = Node("reshape", node.inputs, {"shape": shape}, node.layer)
        inputs = tuple([emit(i) if i in masks else new[i] for i in node.inputs])
        if node.op == "sum" and is_large(node.inputs[0]):
            given, axes = known.shapes[node.inputs[0]], node.attrs["axes"]
            if _is_over_matrices(node, given):
                kept = tuple([1 if axis in axes else size for axis, size in enumerate(given)])
                total = add(Node("sum", inputs, {"axes": axes, "keepdims": True}, node.layer), kept, dtype)
                node, inputs = Node("reshape", (total,), {"shape": shape}, node.layer), (total,)
        return add(Node(node.op, inputs, node.attrs, node.layer), shape, dtype)

    for place in range(len(graph.nodes)):
        if place not in masks or place in results:
            new[place] = emit(place)
    return Graph(
        nodes,
        [new[place] for place in graph.outputs],
        [(new[target], new[value]) for target, value in graph.updates],
        Inferred(tuple(shapes), tuple(dtypes)),
    )
