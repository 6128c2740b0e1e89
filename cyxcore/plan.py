"""A graph made ready to run: one arena of memory with reuse, and a flat list of kernel calls.

    plan = Plan(graph, state={"0.weight": w, ...}, device="cpu")
    plan.inputs["x"][...] = batch
    plan.run()
    plan.outputs[0]            # a view into the arena, valid until the next run

The graph has one batch size (no nulls) and no by_mode nodes. Parameters live in the caller's
`state` arrays, which the plan reads in place and its updates write in place: two plans (a full
and a partial batch) can share them. On a device with its own memory they must be there already
(device.put), or the plan reads copies; inputs and outputs are host arrays that a run copies in
and out, unless the plan is made resident.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore import device as devices
from cyxcore import precision
from cyxcore.accumulating import Joined, accumulations, beside_readers, joined_rows, together
from cyxcore.bands import Stretch, arrange, attrs_of_band
from cyxcore.device import ALIGN_BYTES, Banded, Call
from cyxcore.dtype import IN_GRAPHS
from cyxcore.errors import GraphError, ShapeError
from cyxcore.graph import Graph, Inferred
from cyxcore.infer import Shape
from cyxcore.onepass import gather
from cyxcore.ops import OPS
from cyxcore.order import products_before_sums, terms_before_updates
from cyxcore.passes import cut_products, optimise, turn_once
from cyxcore.recompute import recompute, recompute_in_bands

Array = Any  # numpy.ndarray, or cupy.ndarray on a device with its own memory


SMALL = 16  # an array this many times smaller than what a call writes is kept until its readers are through

observer: "Callable[[Plan], None] | None" = None  # makes the calls of a plan while it is profiled (profiling.py)


class Slot(NamedTuple):
    """A place in the arena."""

    offset: int
    bytes: int


class Arena:
    """Offsets by first fit over the free gaps. Pure bookkeeping: the memory is allocated once at the end."""

    def __init__(self) -> None:
        self.free: list[tuple[int, int]] = []  # (offset, bytes), ascending, never adjacent
        self.end = 0

    def take(self, needed_bytes: int) -> Slot:
        size = -(-max(needed_bytes, 1) // ALIGN_BYTES) * ALIGN_BYTES
        fitting = [(gap, place) for place, (_, gap) in enumerate(self.free) if gap >= size]
        if fitting:
            gap, place = min(fitting)
            offset, _ = self.free[place]
            self.free[place : place + 1] = [(offset + size, gap - size)] if gap > size else []
            return Slot(offset, size)
        if self.free and sum(self.free[-1]) == self.end:  # grow the last gap
            offset, _ = self.free.pop()
        else:
            offset = self.end
        self.end = offset + size
        return Slot(offset, size)

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
        self.free[first:last] = [(offset, size)]


class Schedule(NamedTuple):
    """Decisions about a graph, before any memory exists."""

    order: list[int]  # nodes with a kernel call
    alias: dict[int, int]  # reshape or detach -> the node whose memory it shares
    in_place: dict[int, int]  # update op -> the param whose array it writes
    copies: list[tuple[int, int]]  # (param, value) written at the end
    stretches: list[Stretch]  # calls that follow each other in `order` and run band by band
    onto: dict[int, int]  # sum -> what it adds to, whose memory it has
    joined: list[Joined]  # concatenations that are not made: what they join is there until their readers are through

    def stretch_of(self) -> dict[int, int]:
        """The number of the stretch of each call in bands."""
        return {place: number for number, each in enumerate(self.stretches) for place in each.places}

    def within(self, graph: Graph, known: Inferred) -> set[int]:
        """The nodes that nothing outside of their own stretch reads: they need memory for one band only."""
        stretch_of = self.stretch_of()
        kept = {self.alias.get(i, i) for i in (*graph.outputs, *(value for _, value in self.copies), *self.in_place)}
        for place in self.order:
            sources = {self.alias.get(i, i) for i in graph.nodes[place].inputs}
            kept |= {source for source in sources if stretch_of.get(source, -1) != stretch_of.get(place, -2)}
        for place, root in self.alias.items():  # seen with other rows
            if root in stretch_of and (known.shapes[place] or (1,))[0] % self.stretches[stretch_of[root]].bands:
                kept.add(root)
        return set(stretch_of) - kept


def schedule(graph: Graph, in_bands: bool = False, lanes: int = 1) -> Schedule:
    """Which nodes need a call and in what order.

    Optimiser ops move to the end, where nobody reads the old parameter any more, and then write it
    in place. Other updates (running statistics) are copied last of all. What can run in bands comes first; lanes: on
    how many threads.
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
        elif graph.nodes[alias.get(value, value)].op == "param" and alias.get(value, value) != target:
            raise GraphError(f"plan: {graph.nodes[target].attrs['name']!r} cannot become another parameter in place")
        else:
            copies.append((target, value))
    late = _after(graph, set(target_of))
    early = products_before_sums(graph, [place for place in order if place not in late], alias)
    stretches: list[Stretch] = []
    onto: dict[int, int] = {}
    joined: list[Joined] = []
    if in_bands:
        known = graph.infer(1)
        joined = joined_rows(graph, known, early, alias)
        early, stretches = arrange(graph, known, early, alias, lanes, [each.place for each in joined])
        elsewhere = {place for each in stretches for place in each.places}
        added_up = accumulations(graph, known, early, alias, elsewhere)
        if lanes > 1:  # one thread finds in its cache what it multiplies right behind its making
            early = together(early, added_up)
        elsewhere |= {place for each in added_up for place in each.places}
        early, joined = beside_readers(graph, early, alias, joined, elsewhere)
        onto = {place: source for each in added_up for place, source in each.onto().items()}
        fixed = {*elsewhere, *onto, *onto.values()}
        order = terms_before_updates(graph, known, early, [p for p in order if p in late], alias, fixed)
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
    return Schedule(order, alias, in_place, copies, stretches, onto, joined)


def _after(graph: Graph, updates: set[int]) -> set[int]:
    """The update ops and everything computed from them."""
    late = set(updates)
    for place, node in enumerate(graph.nodes):
        if any(source in late for source in node.inputs):
            late.add(place)
    return late


class Plan:
    """One graph at one batch size on one device, compiled. Raises KernelError for an op the device lacks."""

    def __init__(
        self,
        graph: Graph,
        state: Mapping[str, Array] | None = None,
        device: str | None = None,
        optimised: bool = True,
        resident: Collection[str] = (),
        fetch: bool = True,
        numerics: str | None = None,
        draws: Iterable[int] = (),
    ) -> None:
        """resident: the inputs that are arrays of the device. fetch: whether outputs are copied to the host; otherwise
        they are arrays of the device. No difference where that is the host. numerics: of products on the cpu, see
        cyxcore.set_numerics; None: the class that is set. draws: the streams of random numbers that have each a key of
        its own, in `keys`, as draws of tensors have; the others are of `key`.
        """
        if any(node.op == "by_mode" for node in graph.nodes):
            raise GraphError("plan: the graph still holds both modes; embed it with training=True or False first")
        self.graph = graph = optimise(graph) if optimised else graph
        self.device = devices.default_device() if device is None else device
        self.numerics = precision.chosen(numerics, self.device)
        if optimised and self.device == "cpu":
            if self.numerics == "exact":  # in other classes the bits of a product depend on its size
                graph = cut_products(graph)
            self.graph = graph = recompute(gather(turn_once(graph)))
        self.backend = precision.backend(self.device, self.numerics)
        self._lanes: int = getattr(self.backend, "lanes", 0)
        in_bands = optimised and self._lanes > 0 and set(graph.infer(1).dtypes) <= IN_GRAPHS
        decided = schedule(graph, in_bands, self._lanes)
        shorter = recompute_in_bands(graph, decided.order, decided.alias, decided.stretch_of())
        if shorter is not graph:
            self.graph = graph = shorter
            decided = schedule(graph, in_bands, self._lanes)
        known = graph.infer(1)
        self._within = decided.within(graph, known)
        slots, self._lane_bytes, self.arena_bytes = _place(graph, known, decided, self._within, self._lanes)
        arena = self.backend.memory(self.arena_bytes)
        self._sends: list[tuple[Array, Array]] = []  # (device, host)
        self.inputs: dict[str, Array] = {}
        self.key: Array
        self._device_key: Array
        drawn = any(node.op == "key" for node in graph.nodes)
        self.key, self._device_key = (
            self._fed((2,), "uint64", resident=False) if drawn else (np.zeros(2, np.uint64),) * 2
        )
        fed = {stream: self._fed((2,), "uint64", resident=False) for stream in draws}
        self.keys = {stream: host for stream, (host, _) in fed.items()}
        self._device_keys = {stream: there for stream, (_, there) in fed.items()}
        self._device_inputs: dict[str, Array] = {}
        self._root = [decided.alias.get(place, place) for place in range(len(graph.nodes))]
        self._bands = {place: stretch.bands for stretch in decided.stretches for place in stretch.places}
        self.arrays: list[Array] = []  # of what stays within a stretch those of its first band
        for place in range(len(graph.nodes)):
            self.arrays.append(self._array(place, known, decided, slots, arena, state or {}, resident))
        in_stretch = {place: stretch for stretch in decided.stretches for place in stretch.places}
        calls = [self._call(place, in_stretch.get(place)) for place in decided.order]
        stretches = [self._banded(stretch, decided) for stretch in decided.stretches]
        for target, value in decided.copies:
            array = self.arrays[target]
            calls.append(Call("reshape", array, (self.arrays[value],), {"shape": array.shape}))
        self.calls: Sequence[Call] = calls
        results = [self.arrays[place] for place in graph.outputs]
        own = self.device in devices.OWN_MEMORY and fetch
        self.outputs = [self.backend.staging(array.shape, array.dtype.name) for array in results] if own else results
        fetches = list(zip(self.outputs, results, strict=True)) if own else []
        self.program = self.backend.program(calls, self._sends, fetches, arena, results, stretches)
        # What matrices take that are packed beside the arena: by a fast class, and for all bands of a stretch.
        self.packed_bytes: int = getattr(getattr(self.program, "__self__", None), "packed_bytes", 0)

    def _call(self, place: int, stretch: Stretch | None) -> Call:
        """A call on whole arrays, or on those of the first band."""
        node = self.graph.nodes[place]
        inputs = [self.arrays[i] for i in node.inputs]
        if node.op == "uniform" and node.attrs["stream"] in self._device_keys:
            own = self._device_keys[node.attrs["stream"]]
            return Call(node.op, self.arrays[place], (own,), {**node.attrs, "stream": 0})
        if stretch is None:
            return Call(node.op, self.arrays[place], tuple(inputs), node.attrs)
        bands = stretch.bands
        for number, (source, cut) in enumerate(zip(node.inputs, stretch.by_rows[place], strict=True)):
            if cut and self._root[source] not in self._within:
                inputs[number] = inputs[number][: len(inputs[number]) // bands]
        out = self.arrays[place]
        return Call(
            node.op,
            out if place in self._within else out[: len(out) // bands],
            tuple(inputs),
            attrs_of_band(node, bands),
        )

    def _banded(self, stretch: Stretch, decided: Schedule) -> Banded:
        def step(source: int, cut: bool) -> tuple[int, int]:
            if self._root[source] in self._within:
                return 0, self._lane_bytes[self._root[source]]
            return (self.arrays[source].nbytes // stretch.bands if cut else 0), 0

        steps = [
            [step(place, True), *map(step, self.graph.nodes[place].inputs, stretch.by_rows[place])]
            for place in stretch.places
        ]
        lanes = min(self._lanes, stretch.bands)
        return Banded(decided.order.index(stretch.places[0]), stretch.bands, lanes, steps)

    def _fed(self, shape: Shape, dtype: str, resident: bool) -> tuple[Array, Array]:
        """(what the caller fills, what the kernels read): two arrays where the device cannot read the host's."""
        host = self.backend.staging(shape, dtype)
        if self.device not in devices.OWN_MEMORY:
            return host, host
        there = self.backend.put(host)
        if resident:
            return there, there
        self._sends.append((there, host))
        return host, there

    def _array(
        self,
        place: int,
        known: Inferred,
        decided: Schedule,
        slots: Mapping[int, Slot],
        arena: Array,
        state: Mapping[str, Array],
        resident: Collection[str],
    ) -> Array:
        node, shape, dtype = self.graph.nodes[place], known.shapes[place], known.dtypes[place]
        if node.op == "param":
            array = _state_array(node.attrs["name"], shape, dtype, state)
            if self.device not in devices.OWN_MEMORY:
                return array
            if isinstance(array, np.ndarray) and place in {target for target, _ in self.graph.updates}:
                raise GraphError(
                    f"plan: {node.attrs['name']!r} is updated on {self.device}, but its array is the host's, which "
                    f"would not change; give the plan cyxcore.device.put(array, {self.device!r})"
                )
            return self.backend.put(array)
        if node.op == "const":
            with np.errstate(over="ignore"):  # infinite where the dtype does not hold it
                return self.backend.put(np.array(node.attrs["value"], dtype=dtype).reshape(shape))
        if node.op == "key":
            return self._device_key
        if node.op == "input":
            name = node.attrs["name"]
            if name not in self.inputs:
                self.inputs[name], self._device_inputs[name] = self._fed(shape, dtype, name in resident)
            return self._device_inputs[name]
        if self._root[place] in self._within:
            shape = (shape[0] // self._bands[self._root[place]], *shape[1:])
        if place in decided.alias:
            return self.arrays[decided.alias[place]].reshape(shape)
        if place in decided.in_place:
            return self.arrays[decided.in_place[place]]
        return self.backend.view(arena, slots[place].offset, shape, dtype)

    def run(self) -> None:
        """Make all calls. Raises DataError where the data is out of range."""
        watching = observer  # read once: another thread may close its profile now
        if watching is None:
            self.program()
        else:
            watching(self)

    def __len__(self) -> int:
        return len(self.calls)

    def __repr__(self) -> str:
        return f"Plan({len(self.calls)} calls, {self.arena_bytes:,} bytes, {self.device})"


def _state_array(name: str, shape: Shape, dtype: str, state: Mapping[str, Array]) -> Array:
    if name not in state:
        raise GraphError(f"plan: expected the array of parameter {name!r} in state, got {', '.join(state) or 'none'}")
    array = state[name]
    if array.shape != shape or array.dtype.name != dtype or not array.flags.c_contiguous:
        raise ShapeError(
            f"plan: parameter {name!r}: expected a contiguous {dtype} array {shape}, got {array.dtype} {array.shape}"
        )
    return array


def _place(
    graph: Graph, known: Inferred, decided: Schedule, within: set[int], lanes: int
) -> tuple[dict[int, Slot], dict[int, int], int]:
    """A slot per computed node, reused after its last reader; for what stays within a stretch the slot of its first
    lane, and how many bytes further on that of the next lane is; and the arena's size in bytes.
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
    ending: dict[int, list[int]] = {}
    for place, step in last.items():
        ending.setdefault(step, []).append(place)
    arena, slots, lane_bytes = Arena(), dict[int, Slot](), dict[int, int]()
    held: list[Slot] = []  # a group reads it to the end: in its place nothing may lie that the group writes
    handed_on = set(decided.onto.values())
    for step, places in enumerate(steps):
        op = graph.nodes[places[0]].op
        if not _may_be_grouped(op):
            while held:
                arena.give(held.pop())
        for place in places:
            if place in decided.onto:
                slots[place] = slots[decided.onto[place]]
            elif place not in decided.in_place and place not in within:
                slots[place] = arena.take(known.bytes_of(place))
        if places[0] in begins:
            inner, size = _place_within(graph, known, begins[places[0]], within, root)
            lane_count = min(lanes, begins[places[0]].bands)
            memory = arena.take(size * lane_count)
            for place, slot in inner.items():
                slots[place], lane_bytes[place] = Slot(memory.offset + slot.offset, slot.bytes), size
            arena.give(memory)
        for source in ending.get(step, ()):
            if source in slots and source not in within and source not in handed_on:
                if op == "slice" or known.bytes_of(source) * SMALL <= known.bytes_of(places[0]):
                    held.append(slots[source])
                else:
                    arena.give(slots[source])
        for place in places:
            if place not in last and place in slots and place not in within:
                arena.give(slots[place])
    return slots, lane_bytes, arena.end


def _may_be_grouped(op: str) -> bool:
    """Whether a call can be one of a group, which is made tile by tile (kernels/src/fused.c)."""
    return op == "slice" or OPS[op].group in ("elementwise", "reduce")


def _place_within(
    graph: Graph, known: Inferred, stretch: Stretch, within: set[int], root: Callable[[int], int]
) -> tuple[dict[int, Slot], int]:
    """Slots of one band in the memory of a lane, and the size of that."""
    last = {root(source): number for number, p in enumerate(stretch.places) for source in graph.nodes[p].inputs}
    arena, slots = Arena(), dict[int, Slot]()
    held: list[Slot] = []  # as in _place
    for number, place in enumerate(stretch.places):
        op = graph.nodes[place].op
        if not _may_be_grouped(op):
            while held:
                arena.give(held.pop())
        if place in within:
            slots[place] = arena.take(known.bytes_of(place) // stretch.bands)
        for source in {root(i) for i in graph.nodes[place].inputs}:
            if source in slots and last[source] == number:
                if op == "slice":
                    held.append(slots[source])
                else:
                    arena.give(slots[source])
        if place in slots and place not in last:
            arena.give(slots[place])
    return slots, arena.end
