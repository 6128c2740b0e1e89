"""Where the arrays of a plan lie: in one arena, which an array leaves to others after its last reader.

Pure bookkeeping: the memory is allocated once, when everything has its place.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import NamedTuple

from cyxcore.bands import Stretch
from cyxcore.device import ALIGN_BYTES
from cyxcore.dtype import item_bytes
from cyxcore.graph import Graph, Inferred
from cyxcore.ops import OPS
from cyxcore.order import Schedule

SMALL = 16  # an array this many times smaller than what a call writes is kept until its readers are through
WASTE = 0.01  # of what lives at once: with no more than that nothing better is looked for
SHARES = (4, 16, 64, 256)  # blocks of this share of what lives at once are placed first
IN_ORDER = frozenset(("max_pool2d_grad", "avg_pool2d_grad"))  # write line after line, which processors fetch ahead
MANY_BLOCKS = 1000  # more are laid out once more at most, as each time takes milliseconds


class Slot(NamedTuple):
    """A place in the arena."""

    offset: int
    bytes: int


class Block(NamedTuple):
    """What needs memory from the beginning of one step to the end of another."""

    bytes: int
    first: int
    last: int


class Arena:
    """Offsets by best fit over the free gaps. size: of the first gap, bytes; more is added where nothing fits."""

    def __init__(self, size: int = 0) -> None:
        self.free: list[Slot] = [Slot(0, size)] if size else []  # ascending, never adjacent
        self.end = size

    def take(self, needed_bytes: int, avoided: Sequence[Slot] = ()) -> Slot:
        """A slot of at least so many bytes, apart from those `avoided` (by their offsets)."""
        size, offset, least = _aligned(needed_bytes), self.end, 0
        for gap in _gaps(self.free, avoided) if avoided else self.free:
            if gap.bytes >= size and (not least or gap.bytes < least):
                offset, least = gap
            elif not least and sum(gap) == self.end:  # grow the last gap
                offset = gap.offset
        if not least:
            grown = offset + size - self.end
            if self.free and sum(self.free[-1]) == self.end:
                self.free[-1] = Slot(self.free[-1].offset, self.free[-1].bytes + grown)
            else:
                self.free.append(Slot(self.end, grown))
            self.end += grown
        slot = Slot(offset, size)
        self.claim(slot)
        return slot

    def has(self, slot: Slot) -> bool:
        """Whether nobody has any of it."""
        place = bisect_right(self.free, slot.offset, key=lambda gap: gap.offset) - 1
        return place >= 0 and sum(slot) <= sum(self.free[place])

    def claim(self, slot: Slot) -> None:
        """Takes a slot that lies in one gap."""
        place = bisect_right(self.free, slot.offset, key=lambda gap: gap.offset) - 1
        gap = self.free[place]
        rest = Slot(gap.offset, slot.offset - gap.offset), Slot(sum(slot), sum(gap) - sum(slot))
        self.free[place : place + 1] = [each for each in rest if each.bytes]

    def give(self, slot: Slot) -> None:
        offset, size = slot
        place = bisect_left(self.free, slot)
        first, last = place, place
        if place > 0 and sum(self.free[place - 1]) == offset:  # the gap before it ends where it begins
            first = place - 1
            offset, size = self.free[first][0], size + self.free[first][1]
        if place < len(self.free) and self.free[place][0] == sum(slot):  # and the gap behind begins where it ends
            last = place + 1
            size += self.free[place][1]
        self.free[first:last] = [Slot(offset, size)]


def _aligned(size: int) -> int:
    return -(-max(size, 1) // ALIGN_BYTES) * ALIGN_BYTES


def _gaps(free: Iterable[Slot], avoided: Sequence[Slot]) -> Iterator[Slot]:
    """What is left of free slots between those avoided; both by their offsets, the avoided ones may overlap."""
    for offset, size in free:
        end = offset + size
        for begin, taken in avoided:
            if begin >= end:
                break
            if begin > offset:
                yield Slot(offset, begin - offset)
            offset = max(offset, begin + taken)
        if offset < end:
            yield Slot(offset, end - offset)


def lay_out(blocks: Sequence[Block]) -> tuple[list[Slot], int]:
    """A slot for every block, those that are there at the same time apart, and where the last one ends (bytes).

    Each lies where it fits best when it comes. Where that wastes memory, large ones are placed before.
    """
    least = _most_at_once(blocks)
    slots, end = _around(blocks, [])
    for share in SHARES if len(blocks) <= MANY_BLOCKS else SHARES[-1:]:
        if end <= least * (1 + WASTE):
            break
        large = [number for number, block in enumerate(blocks) if block.bytes * share >= least]
        large.sort(key=lambda number: (-blocks[number].bytes, number))
        slots, end = min((slots, end), _around(blocks, large), key=lambda found: found[1])
    return slots, end


def _most_at_once(blocks: Iterable[Block]) -> int:
    """The bytes of those that are there together at the worst moment."""
    change = Counter[int]()
    for block in blocks:
        change[block.first] += _aligned(block.bytes)
        change[block.last + 1] -= _aligned(block.bytes)
    return max(accumulate(change[step] for step in sorted(change)), default=0)


def _around(blocks: Sequence[Block], large: Sequence[int]) -> tuple[list[Slot], int]:
    """The large ones first, in the order given, then each of the others when it comes, apart from large ones that come
    while it is there.
    """
    slots: list[Slot] = [Slot(0, 0)] * len(blocks)
    placed: list[int] = []
    size = 0
    for number in large:
        first, last = blocks[number][1:]
        arena = Arena(size)
        avoided = sorted({slots[i] for i in placed if blocks[i].first <= last and first <= blocks[i].last})
        slots[number] = arena.take(blocks[number].bytes, avoided)
        size = arena.end
        placed.append(number)
    arena = Arena(size)
    gone = dict[int, Slot]()  # of each size the last that was given back: a group may write there while it reads
    coming = sorted(placed, key=lambda number: blocks[number].first)
    starts = [blocks[number].first for number in coming]
    among, ending, now = set(placed), dict[int, list[Slot]](), 0
    for number in sorted(range(len(blocks)), key=lambda number: (blocks[number].first, number not in among)):
        needed, first, last = blocks[number]
        for step in range(now, first):
            for slot in ending.pop(step, ()):
                arena.give(slot)
                gone[slot.bytes] = slot
        now = first
        if number in among:
            arena.claim(slots[number])
        else:
            later = coming[bisect_right(starts, first) : bisect_right(starts, last)]
            before = gone.get(_aligned(needed))
            if before and not later and arena.has(before):
                arena.claim(before)
                slots[number] = before
            else:
                slots[number] = arena.take(needed, sorted({slots[i] for i in later}))
        ending.setdefault(last, []).append(slots[number])
    return slots, arena.end


def made_where_kept(
    graph: Graph, known: Inferred, decided: Schedule, within: Collection[int], apart: Collection[int] = ()
) -> dict[int, int]:
    """Of what stays within a stretch that which lies where a later array of its size will: array -> the later one.

    The calls from one to the other are element-wise, so they read and write one place, which is fetched once; else what
    they write is fetched from memory as well, only to be written over. apart: as of place_arrays().
    """
    found: dict[int, int] = {}
    elsewhere = {*within, *decided.onto, *decided.in_place}
    for stretch in decided.stretches:
        readers: dict[int, list[int]] = {}
        for place in stretch.places:
            for source in {decided.alias.get(i, i) for i in graph.nodes[place].inputs}:
                readers.setdefault(source, []).append(place)
        at = {place: number for number, place in enumerate(stretch.places)}
        for place in stretch.places:
            reading = readers.get(place, ())
            if place not in within or graph.nodes[place].op not in IN_ORDER or not reading:
                continue
            if not all(_is_by_elements(graph, known, reader, place) for reader in reading):
                continue
            last, reached = max(at[reader] for reader in reading), {place}
            for later in stretch.places[at[place] + 1 :]:
                sources = {decided.alias.get(i, i) for i in graph.nodes[later].inputs}
                if reached.isdisjoint(sources) or not _is_by_elements(graph, known, later, place):
                    continue
                reached.add(later)
                free = later not in elsewhere and decided.home(later) not in apart
                if free and at[later] >= last and known.bytes_of(later) == known.bytes_of(place):
                    found[place] = later
                    elsewhere.add(later)
                    break
    return found


def _is_by_elements(graph: Graph, known: Inferred, place: int, like: int) -> bool:
    """Whether a call makes each element from those of its place, of as many as another array has."""
    return OPS[graph.nodes[place].op].group == "elementwise" and known.shapes[place] == known.shapes[like]


def place_arrays(
    graph: Graph,
    known: Inferred,
    decided: Schedule,
    within: set[int],
    lanes: int,
    apart: Collection[int] = (),
    early: Mapping[int, int] = MappingProxyType({}),
) -> tuple[dict[int, Slot], dict[int, int], int]:
    """A slot per computed node, reused after its last reader; for what stays within a stretch the slot of its first
    lane, and how many bytes further on that of the next lane is; and the arena's size in bytes. apart: nodes whose
    memory is elsewhere. early: those that lie where another array will (made_where_kept).
    """

    def root(place: int) -> int:
        return decided.alias.get(place, place)

    begins = {stretch.places[0]: stretch for stretch in decided.stretches}
    inside = {place for stretch in decided.stretches for place in stretch.places[1:]}
    # What is taken and given back together: a stretch needs all of its arrays until its last band is through.
    steps = [begins[p].places if p in begins else [p] for p in decided.order if p not in inside]
    end = len(steps)
    last = {root(source): step for step, places in enumerate(steps) for p in places for source in graph.nodes[p].inputs}
    for place in (*graph.outputs, *(value for _, value in decided.copies)):
        last[root(place)] = end
    for each in decided.joined:
        for source in graph.nodes[each.place].inputs:
            last[root(source)] = max(last[root(source)], last[each.place])
    step_of = {place: step for step, places in enumerate(steps) for place in places}
    for product, group in decided.masked.items():  # made at once: what comes out lies apart from all that goes in
        for source in {root(i) for place in group for i in graph.nodes[place].inputs}:
            last[source] = max(last[source], step_of[product])
    not_over = set(decided.onto.values()) | {root(i) for each in decided.joined for i in graph.nodes[each.place].inputs}
    group_end = _ends_of_groups([graph.nodes[places[0]].op for places in steps])
    blocks = list[Block]()
    block_of = dict[int, int]()  # node -> its block
    elsewhere = within | decided.in_place.keys() | {place for place in decided.order if decided.home(place) in apart}
    paired = {*early, *early.values()}
    inner = list[tuple[int, dict[int, Slot], int]]()  # of a stretch: the block of its lanes, slots, size of a lane
    for step, places in enumerate(steps):
        over: Mapping[int, int] = decided.onto
        if places[0] in begins:
            through = {i for i in {root(i) for p in places for i in graph.nodes[p].inputs} if last[i] == step}
            new = [p for p in places if p not in elsewhere and p not in decided.onto and p not in paired]
            added = begins[places[0]].adds | begins[places[0]].over_matrices
            new = [p for p in new if p not in added]  # those are written from the first band on
            candidates = (through & block_of.keys()) - not_over
            over = {**decided.onto, **early, **_taken_over(graph, known, begins[places[0]], root, candidates, new)}
        for place in sorted(places, key=lambda place: (place in early, -last.get(place, step))):
            if place in elsewhere:
                continue
            until = last.get(place, step)
            if place in last and until < end:
                # A group reads it to the end: in its place nothing may lie that the group writes.
                if _reads_on(graph, known, place, steps[until][0]):
                    until = group_end[until]
            if place in over:
                block_of[place] = number = block_of[over[place]]
                if place not in early:
                    blocks[number] = blocks[number]._replace(last=until)
            else:
                block_of[place] = len(blocks)
                blocks.append(Block(known.bytes_of(place), step, until))
        if places[0] in begins:
            slots_within, size = _place_within(graph, known, begins[places[0]], within, root)
            inner.append((len(blocks), slots_within, size))
            blocks.append(Block(size * min(lanes, begins[places[0]].bands), step, step))
    slots, arena_bytes = lay_out(blocks)
    found, lane_bytes = {place: slots[number] for place, number in block_of.items()}, dict[int, int]()
    for number, slots_within, size in inner:
        for place, slot in slots_within.items():
            found[place], lane_bytes[place] = Slot(slots[number].offset + slot.offset, slot.bytes), size
    return found, lane_bytes, arena_bytes


def _place_within(
    graph: Graph, known: Inferred, stretch: Stretch, within: set[int], root: Callable[[int], int]
) -> tuple[dict[int, Slot], int]:
    """Slots of one band in the memory of a lane, and the size of that."""
    last = {root(source): number for number, p in enumerate(stretch.places) for source in graph.nodes[p].inputs}
    group_end = _ends_of_groups([graph.nodes[place].op for place in stretch.places])
    places = [place for place in stretch.places if place in within]
    # Products that the call behind finishes, as by adding to them: both are one, if that writes apart from factors.
    finished = {
        number
        for number, (place, following) in enumerate(pairwise(stretch.places))
        if graph.nodes[place].op == "matmul"
        and graph.nodes[following].op in ("add", "where")
        and place in map(root, graph.nodes[following].inputs)
    }
    blocks = list[Block]()
    for number, place in enumerate(stretch.places):
        if place in within:
            until = last.get(place, number)
            if place in last:
                reader = stretch.places[until]
                if _reads_on(graph, known, place, reader):
                    until = group_end[until]
                elif until in finished:
                    until += 1
            band = math.prod(stretch.band_shape(known.shapes[place])) * item_bytes(known.dtypes[place])
            blocks.append(Block(band, number, until))
    slots, size = lay_out(blocks)
    return dict(zip(places, slots, strict=True)), size


def _taken_over(
    graph: Graph, known: Inferred, stretch: Stretch, root: Callable[[int], int], through: set[int], new: Sequence[int]
) -> dict[int, int]:
    """Of the arrays that a stretch writes for later (`new`) those that can lie where one of `through` lies, which
    nobody reads behind this stretch: each band writes its rows when it has read the old ones for the last time.
    """
    last: dict[int, int] = {}
    for number, place in enumerate(stretch.places):
        node = graph.nodes[place]
        for source, cut in zip(map(root, node.inputs), stretch.by_rows[place], strict=True):
            # What may be one of a group is made tile by tile: it has to read the tile that is written then.
            apart = _may_be_grouped(node.op) and (
                OPS[node.op].group != "elementwise" or known.bytes_of(place) != known.bytes_of(source)
            )
            if not cut or apart:
                through.discard(source)
            last[source] = number
    found: dict[int, int] = {}
    for number, place in enumerate(stretch.places):
        if place in new:
            fitting = [
                source
                for source in sorted(through)
                if last.get(source, number) < number
                and known.bytes_of(source) == known.bytes_of(place)
                and (not stretch.blocks or known.shapes[source] == known.shapes[place])
            ]
            if fitting:
                found[place] = fitting[0]
                through.discard(fitting[0])
    return found


def _reads_on(graph: Graph, known: Inferred, place: int, reader: int) -> bool:
    """Whether a group that begins with `reader` reads an array to its end, and not tile by tile as it writes."""
    return graph.nodes[reader].op == "slice" or known.bytes_of(place) * SMALL <= known.bytes_of(reader)


def _may_be_grouped(op: str) -> bool:
    """Whether a call can be one of a group, which is made tile by tile (kernels/src/fused.c)."""
    return op == "slice" or OPS[op].group in ("elementwise", "reduce")


def _ends_of_groups(ops: Sequence[str]) -> list[int]:
    """For each of the calls one after the other: the last one of the group in which it can be."""
    ends, end = [0] * len(ops), len(ops)
    for number in range(len(ops) - 1, -1, -1):
        if number + 1 < len(ops) and not _may_be_grouped(ops[number + 1]):
            end = number
        ends[number] = end
    return ends
