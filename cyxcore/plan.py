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
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cyxcore import device as devices
from cyxcore.device import ALIGN_BYTES, Call
from cyxcore.errors import GraphError, ShapeError
from cyxcore.graph import Graph, Inferred
from cyxcore.infer import Shape
from cyxcore.ops import OPS
from cyxcore.passes import optimise, turn_once
from cyxcore.recompute import recompute

Array = Any  # numpy.ndarray, or cupy.ndarray on a device with its own memory


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
    alias: dict[int, int]  # reshape -> the node whose memory it shares
    in_place: dict[int, int]  # update op -> the param whose array it writes
    copies: list[tuple[int, int]]  # (param, value) written at the end


def schedule(graph: Graph) -> Schedule:
    """Which nodes need a call and in what order.

    Optimiser ops move to the end, where nobody reads the old parameter any more, and then write it
    in place. Other updates (running statistics) are copied last of all.
    """
    alias: dict[int, int] = {}
    order = []
    for place, node in enumerate(graph.nodes):
        if node.op == "reshape":
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
    order = [place for place in order if place not in late] + [place for place in order if place in late]
    position = {place: index for index, place in enumerate(order)}
    last_read = {alias.get(i, i): position[place] for place in order for i in graph.nodes[place].inputs}
    results = {alias.get(place, place) for place in graph.outputs}
    in_place = {}
    for value, target in target_of.items():
        if last_read.get(target, -1) > position[value] or target in results:
            copies.append((target, value))
        else:
            in_place[value] = target
    return Schedule(order, alias, in_place, copies)


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
    ) -> None:
        """resident: the inputs that are arrays of the device. fetch: whether outputs are copied to the host; otherwise
        they are arrays of the device. No difference where that is the host.
        """
        if any(node.op == "by_mode" for node in graph.nodes):
            raise GraphError("plan: the graph still holds both modes; embed it with training=True or False first")
        self.graph = graph = optimise(graph) if optimised else graph
        self.device = devices.default_device() if device is None else device
        if optimised and self.device == "cpu":
            self.graph = graph = recompute(turn_once(graph))
        known = graph.infer(1)
        decided = schedule(graph)
        slots, self.arena_bytes = _place(graph, known, decided)
        self.backend = devices.backend(self.device)
        arena = self.backend.memory(self.arena_bytes)
        self._sends: list[tuple[Array, Array]] = []  # (device, host)
        self.inputs: dict[str, Array] = {}
        self.key: Array
        self._device_key: Array
        drawn = any(node.op == "key" for node in graph.nodes)
        self.key, self._device_key = (
            self._fed((2,), "uint64", resident=False) if drawn else (np.zeros(2, np.uint64),) * 2
        )
        self._device_inputs: dict[str, Array] = {}
        self.arrays: list[Array] = []
        for place in range(len(graph.nodes)):
            self.arrays.append(self._array(place, known, decided, slots, arena, state or {}, resident))
        calls = [
            Call(node.op, self.arrays[place], tuple(self.arrays[i] for i in node.inputs), node.attrs)
            for place in decided.order
            for node in [graph.nodes[place]]
        ]
        for target, value in decided.copies:
            array = self.arrays[target]
            calls.append(Call("reshape", array, (self.arrays[value],), {"shape": array.shape}))
        self.calls: Sequence[Call] = calls
        results = [self.arrays[place] for place in graph.outputs]
        own = self.device in devices.OWN_MEMORY and fetch
        self.outputs = [self.backend.staging(array.shape, array.dtype.name) for array in results] if own else results
        fetches = list(zip(self.outputs, results, strict=True)) if own else []
        self.run = self.backend.program(calls, self._sends, fetches, arena, results)

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
            return self.backend.put(np.array(node.attrs["value"], dtype=dtype).reshape(shape))
        if node.op == "key":
            return self._device_key
        if node.op == "input":
            name = node.attrs["name"]
            if name not in self.inputs:
                self.inputs[name], self._device_inputs[name] = self._fed(shape, dtype, name in resident)
            return self._device_inputs[name]
        if place in decided.alias:
            return self.arrays[decided.alias[place]].reshape(shape)
        if place in decided.in_place:
            return self.arrays[decided.in_place[place]]
        return self.backend.view(arena, slots[place].offset, shape, dtype)

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


def _place(graph: Graph, known: Inferred, decided: Schedule) -> tuple[dict[int, Slot], int]:
    """A slot per computed node, reused after its last reader; and the arena's size in bytes."""

    def root(place: int) -> int:
        return decided.alias.get(place, place)

    last: dict[int, int] = {}
    for position, place in enumerate(decided.order):
        for source in graph.nodes[place].inputs:
            last[root(source)] = position
    for place in (*graph.outputs, *(value for _, value in decided.copies)):
        last[root(place)] = len(decided.order)
    ending: dict[int, list[int]] = {}
    for place, position in last.items():
        ending.setdefault(position, []).append(place)
    arena, slots = Arena(), {}
    for position, place in enumerate(decided.order):
        if place not in decided.in_place:
            slots[place] = arena.take(known.bytes_of(place))
        for source in ending.get(position, ()):
            if source in slots:
                arena.give(slots[source])
        if place not in last and place in slots:
            arena.give(slots[place])
    return slots, arena.end
