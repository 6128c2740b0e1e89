"""Which calls of a plan run band by band: a few rows of axis 0 through all of them, then the next few.

What one call writes the next reads while it is in the cache, what only the band itself reads needs memory for one band,
and threads take whole bands instead of meeting after every call. Rows do not depend on each other in any of these
calls, and a kernel's sums have an order that no cut changes: the bits are those of one call after the other.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import accumulate, compress
from typing import Any, NamedTuple

from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape
from cyxcore.onepass import rows_across
from cyxcore.ops import OPS

BAND_BYTES = 256 * 1024  # of the largest array of a band: several of them fit the second-level cache
LEAST_SHARE = 1 / 16  # of that; what many smaller bands cost is more than the cache gives: batches of prime sizes
LEAST_ROWS = 64  # of a band of a matrix, for its product with another one
LEAST_SHORT_ROWS = 8  # the same where a recurrence is shared out among threads
MANY_PRODUCTS = 16  # of few rows make a recurrence: threads that share each of them meet more often than that pays
LEAST_BYTES = 2 * 1024 * 1024  # of the arrays of a stretch together: fewer stay in the cache anyway
MOST_SHARED = 128 * 1024  # elements of a matrix that every band multiplies by: it must stay in the cache as well
LEAST_FREED = 2 * 1024 * 1024  # by a cut through a stretch, at which threads meet
MOST_CARRIED = 1 / 16  # of what a cut frees: what it makes later bands read from memory
BLOCK_ROWS = 32  # of a sum: as many rows, and two, four, eight times as many, are a part of it (kernels/src/reduce.inl)
BANDS_OF_A_LANE = 8  # or more, where bands add up: a lane waits once for each of the others

# (node, shapes of its inputs, shape of its output) -> for each input whether a band of the output needs that band of it
# alone (else all of it); None: the rows depend on each other
Rule = Callable[[Node, Sequence[Shape], Shape], tuple[bool, ...] | None]


class Blocks(NamedTuple):
    """Blocks of rows of a stack of matrices (rowblocks.py): of each whole ones, and perhaps a shorter last one."""

    lead: Shape  # the dimensions of the stack
    length: int  # rows of each matrix
    rows: int  # of a block

    @property
    def matrices(self) -> int:
        return math.prod(self.lead)

    @property
    def whole(self) -> int:
        """The blocks of a matrix that have all their rows."""
        return self.length // self.rows

    @property
    def last(self) -> int:
        """The rows of the block behind those."""
        return self.length % self.rows

    @property
    def bands(self) -> int:
        return self.matrices * self.whole

    def is_whole(self, shape: Shape) -> bool:
        """Whether an array that fits has all matrices of the stack."""
        return math.prod(shape[:-2]) == self.matrices

    def fits(self, shape: Shape, cut: bool) -> bool:
        """Whether an array lies so that a band finds its block of rows, or its whole matrix, at even steps."""
        if cut and (len(shape) < 2 or shape[-2] != self.length):
            return False
        return len(shape) <= 2 or self._turns(shape) is not None

    def _turns(self, shape: Shape) -> tuple[int, int] | None:
        """(how many matrices an array has, for how many of the stack in a row each is); None: not at even steps."""
        lead = (1,) * (len(self.lead) + 2 - len(shape)) + shape[:-2]
        if len(lead) != len(self.lead) or any(
            size not in (1, full) for size, full in zip(lead, self.lead, strict=True)
        ):
            return None
        own = [axis for axis, size in enumerate(lead) if size > 1]
        if not own:
            return 1, 1
        first, last = own[0], own[-1]
        if lead[first : last + 1] != self.lead[first : last + 1]:
            return None
        return math.prod(lead), math.prod(self.lead[last + 1 :])

    def view(self, shape: Shape, cut: bool, rows: int) -> Shape:
        """What a band sees of an array."""
        return (rows, shape[-1]) if cut else shape[-2:]

    def steps(self, shape: Shape, cut: bool, item_bytes: int) -> tuple[int, int, int, int]:
        """(bytes to the next matrix, to the next block, matrices, for how many of the stack in a row each is)."""
        turns, repeats = (self._turns(shape) if len(shape) > 2 else None) or (1, 1)
        matrix = math.prod(shape[-2:]) * item_bytes
        return matrix, self.rows * shape[-1] * item_bytes if cut else 0, turns, repeats


class Stretch(NamedTuple):
    """Calls that run together, band by band."""

    places: list[int]
    by_rows: dict[int, tuple[bool, ...]]  # of each call: which inputs are cut
    bands: int
    adds: frozenset[int] = frozenset()  # the calls whose one output is the sum of what all bands come to
    blocks: Blocks | None = None  # where bands are blocks of rows of matrices; adds: for each matrix a sum of its own
    over_matrices: frozenset[int] = frozenset()  # the calls whose rows are the sum of those of several matrices

    def band_shape(self, shape: Shape) -> Shape:
        """Of what one band makes of an array, that is cut."""
        if self.blocks is not None:
            return self.blocks.view(shape, True, self.blocks.rows)
        return (shape[0] // self.bands, *shape[1:])


def arrange(
    graph: Graph,
    known: Inferred,
    order: Sequence[int],
    alias: Mapping[int, int],
    lanes: int = 1,
    unmade: Collection[int] = (),
    exact: bool = False,
    made: Sequence[Stretch] = (),
) -> tuple[list[int], list[Stretch]]:
    """The calls in an order in which those of a stretch follow each other, and the stretches. lanes: how many threads
    there are to take bands. unmade: what nobody makes where it is in no band. exact: whether the bits of a product do
    not depend on where its sums are cut. made: stretches that are there already, whose calls follow each other.
    """
    elsewhere = {place for stretch in made for place in stretch.places}
    rules = _rules(graph, known, [place for place in order if place not in elsewhere])
    rules.update(dict.fromkeys(elsewhere, ()))
    bands, least_rows = _recurrence(graph, known, rules, lanes), LEAST_SHORT_ROWS
    if bands == 1:
        bands, least_rows = _band_count(graph, known, rules), LEAST_ROWS
    cuts = _cuts(graph, known, rules, bands, least_rows) if bands > 1 else {}
    for place in unmade:
        cuts.pop(place, None)
    needed = _needed(graph, order, alias, cuts)
    adds = _added_up(graph, known, order, alias, bands) if exact and bands >= BANDS_OF_A_LANE * lanes else {}
    for place in elsewhere & adds.keys():
        del adds[place]
    found: list[Stretch] = []
    arranged: list[int] = []
    at = 0
    for stretch in (*made, None):
        stop = len(order) if stretch is None else order.index(stretch.places[0], at)
        calls, begin = order[at:stop], 0
        for first, end in [*rows_across(graph, known, calls), (len(calls), len(calls))]:  # which are made as they are
            arranged += _arranged(graph, known, calls[begin:first], alias, bands, cuts, needed, adds, found, lanes)
            arranged += calls[first:end]
            begin = end
        if stretch is not None:
            found.append(stretch)
            arranged += stretch.places
            at = stop + len(stretch.places)
    return arranged, found


def _arranged(
    graph: Graph,
    known: Inferred,
    order: Sequence[int],
    alias: Mapping[int, int],
    bands: int,
    cuts: Mapping[int, tuple[bool, ...]],
    needed: set[int],
    adds: Mapping[int, tuple[bool, ...]],
    found: list[Stretch],
    lanes: int,
) -> list[int]:
    """Calls as arrange() puts them; their stretches are added to `found`."""
    arranged: list[int] = []
    waiting = list(order)
    while waiting:
        gathered = _gather(graph, waiting, alias, cuts, needed) if waiting[0] in cuts else ([], [], [], [])
        before, taken, put_off, rest = gathered
        if len(taken) > 1 and sum(map(known.bytes_of, taken)) >= LEAST_BYTES:
            arranged += before
            for piece, readers in _pieces(graph, known, taken, put_off, alias, adds, lanes):
                inside = frozenset(piece) & adds.keys()
                by_rows = {place: adds[place] if place in inside else cuts[place] for place in piece}
                found.append(Stretch(piece, by_rows, bands, inside))
                arranged += [*piece, *readers]
            waiting = rest
        else:
            arranged.append(waiting.pop(0))
    return arranged


def _recurrence(graph: Graph, known: Inferred, rules: Mapping[int, tuple[bool, ...]], lanes: int) -> int:
    """As many bands as threads for a recurrence, each step of which is too short to be shared out; 1: it is none."""
    rows = _common_rows(graph, known)
    if lanes == 1 or rows % lanes or not LEAST_SHORT_ROWS <= rows // lanes < LEAST_ROWS:
        return 1
    cuts = _cuts(graph, known, rules, lanes, LEAST_SHORT_ROWS)
    products = [known.shapes[place] for place in cuts if graph.nodes[place].op == "matmul"]
    short = [shape for shape in products if len(shape) == 2 and shape[0] == rows]  # not stacks, as of attention
    return lanes if len(short) >= MANY_PRODUCTS else 1


def _common_rows(graph: Graph, known: Inferred) -> int:
    """Into how many bands the rows of all inputs can be cut at most."""
    rows = [known.shapes[place][0] for place, node in enumerate(graph.nodes) if _is_batch(node, known.shapes[place])]
    return math.gcd(*rows) if rows else 1


def _band_count(graph: Graph, known: Inferred, rules: Mapping[int, tuple[bool, ...]]) -> int:
    """How many bands: the fewest into which the rows of all inputs can be cut that are small enough; 1: tiny ones."""
    together = _common_rows(graph, known)
    found = _cuts(graph, known, rules, together, LEAST_ROWS) if together > 1 else {}
    largest = max(map(known.bytes_of, found), default=0)
    divisors = [count for count in range(1, together + 1) if together % count == 0]
    count = next((count for count in divisors if count * BAND_BYTES >= largest), together)
    return count if largest >= count * BAND_BYTES * LEAST_SHARE else 1


def _is_batch(node: Node, shape: Shape) -> bool:
    return node.op == "input" and len(shape) > 0


def _cuts(
    graph: Graph, known: Inferred, rules: Mapping[int, tuple[bool, ...]], bands: int, least_rows: int
) -> dict[int, tuple[bool, ...]]:
    """The calls that can run in bands, whose rows come from those of an input; and which of their inputs are cut.
    least_rows: of a band of a product.
    """
    batch = {place for place, node in enumerate(graph.nodes) if _is_batch(node, known.shapes[place])}
    found = dict[int, tuple[bool, ...]]()
    for place, node in enumerate(graph.nodes):
        cut = rules.get(place)
        if (
            cut
            and _fits(node, known, place, cut, bands, least_rows)
            and not batch.isdisjoint(compress(node.inputs, cut))
        ):
            found[place] = cut
            batch.add(place)
        elif node.op in ROWS_STAY and node.inputs[0] in batch or cut == () and not batch.isdisjoint(node.inputs):
            batch.add(place)
    return found


def _needed(
    graph: Graph, order: Sequence[int], alias: Mapping[int, int], cuts: Mapping[int, tuple[bool, ...]]
) -> set[int]:
    """The calls on which one in bands depends. The others, as gradients of weights, can wait."""
    needed: set[int] = set()
    for place in reversed(order):
        if place in cuts or place in needed:
            needed.update(alias.get(i, i) for i in graph.nodes[place].inputs)
    return needed


def _gather(
    graph: Graph,
    waiting: Sequence[int],
    alias: Mapping[int, int],
    cuts: Mapping[int, tuple[bool, ...]],
    needed: set[int],
) -> tuple[list[int], list[int], list[int], list[int]]:
    """(what can be done before, the calls in bands, what is put off, the rest), up to a call that needs all rows of one
    in bands.
    """
    before, taken, put_off = list[int](), list[int](), list[int]()
    inside, later = set[int](), set[int]()
    for index, place in enumerate(waiting):
        sources = [alias.get(i, i) for i in graph.nodes[place].inputs]
        cut = cuts.get(place, ())
        whole = any(source in inside and not rows for source, rows in zip(sources, cut, strict=False))
        if cut and not whole and not any(source in later for source in sources):
            taken.append(place)
            inside.add(place)
        elif place not in needed:
            put_off.append(place)
            later.add(place)
        elif any(source in inside or source in later for source in sources):
            return before, taken, put_off, list(waiting[index:])
        else:
            before.append(place)
    return before, taken, put_off, []


def _added_up(
    graph: Graph, known: Inferred, order: Sequence[int], alias: Mapping[int, int], bands: int
) -> dict[int, tuple[bool, ...]]:
    """Gradients of weights: calls that need all rows, but whose sums can be cut into bands that follow each other.

    Not those that are added to each other, as of each step of a recurrence: all of them would need memory at once.
    """
    found = dict[int, tuple[bool, ...]]()
    for place in order:
        node, shapes = graph.nodes[place], [known.shapes[i] for i in graph.nodes[place].inputs]
        if known.dtypes[place] not in ("float32", "float64") or not shapes or not shapes[0] or shapes[0][0] % bands:
            continue
        rows = shapes[0][0] // bands
        if node.op == "matmul" and len(shapes[0]) == len(shapes[1]) == 2:
            turned = node.attrs["transpose_a"] and not node.attrs["transpose_b"]
            if turned and rows >= LEAST_ROWS and math.prod(known.shapes[place]) <= MOST_SHARED:
                found[place] = (True, True)
        elif node.op == "sum" and known.dtypes[node.inputs[0]] == known.dtypes[place]:
            axes = tuple(node.attrs["axes"])
            blocks, rest = divmod(rows * math.prod(shapes[0][1 : len(axes)]), BLOCK_ROWS)
            leading = axes == tuple(range(len(axes))) and math.prod(shapes[0][len(axes) :]) > 1
            if axes and leading and not rest and blocks and not blocks & blocks - 1:
                found[place] = (True,)
    parts = set(found)
    for place in order:
        sources = {alias.get(i, i) for i in graph.nodes[place].inputs}
        if graph.nodes[place].op == "add" and sources <= parts:
            parts.add(place)
            for source in sources & found.keys():
                del found[source]
    return found


def _pieces(
    graph: Graph,
    known: Inferred,
    taken: list[int],
    put_off: Sequence[int],
    alias: Mapping[int, int],
    adds: Collection[int],
    lanes: int,
) -> list[tuple[list[int], list[int]]]:
    """A stretch cut where that frees memory: (calls in bands, what was put off and can be done behind them), in order.

    Of what was put off, that of `adds` needs no waiting: each band adds to it. What only the rest still reads has its
    memory until that is done. So that is done as soon as enough of it has come together, where hardly anything else
    goes on from the bands before to those behind. One lane alone ends a stretch as if nothing were added up: then few
    weights and gradients are in the cache at once, where several lanes would meet and wait for each other anew.
    """
    sources_of = {p: {alias.get(i, i) for i in graph.nodes[p].inputs} for p in (*taken, *put_off)}
    at = {place: index for index, place in enumerate(taken)}
    ready = dict(at)  # behind which of the calls in bands each can be done
    for place in put_off:
        ready[place] = max((ready.get(source, 0) for source in sources_of[place]), default=0)
    late = set(put_off)
    added = [p for p in put_off if p in adds and sources_of[p] & at.keys() and not sources_of[p] & late]
    late.difference_update(added)
    in_bands = sorted((*taken, *added), key=lambda place: ready[place])
    last = {source: ready[place] for place in in_bands for source in sources_of[place] if source in at}
    read_until: dict[int, int] = {}
    for place in put_off:
        for source in sources_of[place] & at.keys() if lanes == 1 or place in late else ():
            read_until[source] = max(read_until.get(source, 0), ready[place], last.get(source, 0))
    freed, carried = [0] * len(taken), [0] * len(taken)
    for source, index in read_until.items():
        freed[index] += known.bytes_of(source)
    for source, index in last.items():
        if source not in read_until:
            carried[at[source]] += known.bytes_of(source)
            carried[index] -= known.bytes_of(source)
    pieces: list[tuple[list[int], list[int]]] = []
    begin, together = 0, 0
    for index, goes_on in enumerate(accumulate(carried)):
        together += freed[index]
        end = index + 1 == len(taken)
        if end or together >= LEAST_FREED and goes_on <= MOST_CARRIED * together:
            piece = _with_sums(graph, taken[begin : index + 1], [p for p in added if begin <= ready[p] <= index], ready)
            pieces.append((piece, [p for p in put_off if p in late and begin <= ready[p] <= index]))
            begin, together = index + 1, 0
    return pieces


def _with_sums(graph: Graph, calls: Sequence[int], added: Sequence[int], ready: Mapping[int, int]) -> list[int]:
    """Calls in bands, and each of `added` soon behind what it reads: not between element-wise calls, which are made as
    one group. ready: as of _pieces().
    """
    behind: dict[int, list[int]] = {}
    for place in added:
        behind.setdefault(ready[place], []).append(place)
    found, waiting = list[int](), list[int]()
    for place in calls:
        if OPS[graph.nodes[place].op].group not in ("elementwise", "reduce"):
            found += waiting
            waiting = []
        found.append(place)
        waiting += behind.get(ready[place], ())
    return found + waiting


def _rules(graph: Graph, known: Inferred, order: Sequence[int]) -> dict[int, tuple[bool, ...]]:
    """What the rules of the ops say of calls whose rows do not depend on each other, whatever the number of bands."""
    found = dict[int, tuple[bool, ...]]()
    for place in order:
        node, out = graph.nodes[place], known.shapes[place]
        find = RULES.get(node.op) or GROUP_RULES.get(OPS[node.op].group)
        if find is not None and out and out[0]:
            cut = find(node, [known.shapes[i] for i in node.inputs], out)
            if cut is not None:
                found[place] = cut
    return found


def _fits(node: Node, known: Inferred, place: int, cut: tuple[bool, ...], bands: int, least_rows: int) -> bool:
    """Whether the arrays of a call can be cut into so many bands."""
    out = known.shapes[place]
    if out[0] % bands or node.op == "matmul" and len(out) == 2 and out[0] // bands < least_rows:
        return False
    shapes = [known.shapes[i] for i in compress(node.inputs, cut)]
    return all([shape and not shape[0] % bands for shape in shapes])


def attrs_of_band(node: Node, bands: int) -> Mapping[str, Any]:
    """The attributes of the call for one band."""
    sizes = {key: node.attrs[key] for key in ("shape", "stops", "input_shape") if key in node.attrs}
    return {**node.attrs, **{key: (size[0] // bands, *size[1:]) for key, size in sizes.items()}}


def _broadcast(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return tuple([len(shape) == len(out) and shape[0] == out[0] for shape in shapes])


def _all(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return (True,) * len(shapes)


def _reduce(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return None if 0 in node.attrs["axes"] else (True,)


def _along(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return None if node.attrs["axis"] == 0 else (True,) * len(shapes)


def _matmul(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    first, second = (len(shape) == len(out) > 2 and shape[0] == out[0] for shape in shapes)
    if len(out) == 2:
        first = not node.attrs["transpose_a"]
    return (True, second) if first and (second or math.prod(shapes[1]) <= MOST_SHARED) else None


def _transpose(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return (True,) if node.attrs["axes"][0] == 0 else None


def _slice(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return (True,) if node.attrs["starts"][0] == 0 and node.attrs["steps"][0] == 1 and out[0] == shapes[0][0] else None


def _pad(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return (True,) if out[0] == shapes[0][0] else None


def _take(node: Node, shapes: Sequence[Shape], out: Shape) -> tuple[bool, ...] | None:
    return (False, True) if node.attrs["axis"] == 0 else (True, False)


ROWS_STAY = ("reshape", "conv2d", "conv2d_grad_input")  # run in no bands, but what they make may
GROUP_RULES: dict[str, Rule] = {"elementwise": _broadcast, "reduce": _reduce}
RULES: dict[str, Rule] = {
    "argmax": _along,
    "matmul": _matmul,
    "transpose": _transpose,
    "broadcast_to": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "concat": _along,
    "take": _take,
    "softmax": _along,
    "log_softmax": _along,
    "softmax_grad": _along,
    "log_softmax_grad": _along,
    "max_pool2d": _all,
    "max_pool2d_grad": _all,
    "avg_pool2d": _all,
    "avg_pool2d_grad": _all,
    "cross_entropy": _all,
    "cross_entropy_grad": _all,
}
