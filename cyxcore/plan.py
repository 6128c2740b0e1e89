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

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from cyxcore import device as devices
from cyxcore import precision
from cyxcore.bands import Blocks, Stretch, attrs_of_band
from cyxcore.device import Banded, Call
from cyxcore.errors import GraphError, ShapeError
from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape
from cyxcore.onepass import gather
from cyxcore.order import Schedule, schedule
from cyxcore.passes import copied_before_updates, cut_products, optimise, turn_once
from cyxcore.placement import Slot, made_where_kept, place_arrays
from cyxcore.recompute import recompute, recompute_in_bands
from cyxcore.rowblocks import for_blocks, with_shared_masks

Array = Any  # numpy.ndarray, or cupy.ndarray on a device with its own memory


observer: "Callable[[Plan], None] | None" = None  # makes the calls of a plan while it is profiled (profiling.py)


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
        outputs_apart: bool = False,
        given: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        """resident: the inputs that are arrays of the device. fetch: whether outputs are copied to the host; otherwise
        they are arrays of the device. No difference where that is the host. numerics: of products on the cpu, see
        cyxcore.set_numerics; None: the class that is set. draws: the streams of random numbers that have each a key of
        its own, in `keys`, as draws of tensors have; the others are of `key`. outputs_apart: each output has memory of
        its own beside the arena. given: inputs that are where something else fills them, on the cpu.
        """
        if any(node.op == "by_mode" for node in graph.nodes):
            raise GraphError("plan: the graph still holds both modes; embed it with training=True or False first")
        self.graph = graph = copied_before_updates(optimise(graph) if optimised else graph)
        self.device = devices.default_device() if device is None else device
        self.numerics = precision.chosen(numerics, self.device)
        exact = not precision.splits(self.numerics)
        if optimised and self.device == "cpu":
            if exact:  # in other classes the bits of a product depend on its size
                graph = cut_products(graph)
            self.graph = graph = for_blocks(recompute(gather(turn_once(graph))), exact)
        self.backend = precision.backend(self.device, "exact" if exact else self.numerics)
        self._lanes: int = getattr(self.backend, "lanes", 0)
        in_bands = optimised and self._lanes > 0
        how = in_bands, self._lanes, exact
        decided = schedule(graph, *how)
        in_stretches = decided.stretch_of(with_sums=False)
        known = graph.infer(1)
        of_blocks = decided.shared(known), decided.largest_in_blocks(known)
        shorter = recompute_in_bands(graph, decided.order, decided.alias, in_stretches, *of_blocks)
        if shorter is not graph:
            self.graph = graph = shorter
            decided = schedule(graph, *how)
        shorter = with_shared_masks(graph, decided.stretches)
        if shorter is not graph:
            self.graph = graph = shorter
            decided = schedule(graph, *how)
        known = graph.infer(1)
        self._apart: dict[int, Array] = {decided.home(place): None for place in graph.outputs} if outputs_apart else {}
        within = decided.within(graph, known)
        early = made_where_kept(graph, known, decided, within, self._apart)
        self._within = within - early.keys()
        placed = place_arrays(graph, known, decided, self._within, self._lanes, self._apart, early)
        slots, self._lane_bytes, self.arena_bytes = placed
        self.arena = arena = self.backend.memory(self.arena_bytes)
        self._sends: list[tuple[Array, Array]] = []  # (device, host)
        self.inputs: dict[str, Array] = {}
        self._given = given
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
        self.arrays: list[Array] = []  # of what stays within a stretch those of its first band
        self._stretch_of = in_stretch = {place: stretch for stretch in decided.stretches for place in stretch.places}
        for place in range(len(graph.nodes)):
            self.arrays.append(self._array(place, known, decided, slots, arena, state or {}, resident))
        calls, stretches = list[Call](), list[Banded]()
        for place in decided.order:
            stretch = in_stretch.get(place)
            if stretch is None or stretch.blocks is None:
                calls.append(self._call(place, stretch))
            if stretch is None or place != stretch.places[0]:
                continue
            if stretch.blocks is None:
                stretches.append(self._banded(stretch, len(calls) - 1))
                continue
            for last in (False, True) if stretch.blocks.last else (False,):
                stretches.append(self._in_blocks(stretch, stretch.blocks, known, len(calls), last))
                calls += [self._call_on_block(p, stretch, stretch.blocks, known, last) for p in stretch.places]
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
        if node.op == "uniform":
            return self._drawing(node, self.arrays[place])
        if stretch is None:
            return Call(node.op, self.arrays[place], tuple(inputs), node.attrs)
        bands = stretch.bands
        for number, (source, cut) in enumerate(zip(node.inputs, stretch.by_rows[place], strict=True)):
            if cut and self._root[source] not in self._within:
                inputs[number] = inputs[number][: len(inputs[number]) // bands]
        out = self.arrays[place]
        return Call(
            node.op,
            out if place in self._within or place in stretch.adds else out[: len(out) // bands],
            tuple(inputs),
            attrs_of_band(node, bands),
        )

    def _drawing(self, node: Node, out: Array) -> Call:
        own = self._device_keys.get(node.attrs["stream"])
        key, stream = (self.arrays[node.inputs[0]], node.attrs["stream"]) if own is None else (own, 0)
        return Call(node.op, out, (key,), {"shape": out.shape, "stream": stream})

    def _call_on_block(self, place: int, stretch: Stretch, blocks: Blocks, known: Inferred, last: bool) -> Call:
        """A call on the first block of rows. last: on the last one of the first matrix, which has fewer rows."""
        rows, first = (blocks.last, blocks.whole * blocks.rows) if last else (blocks.rows, 0)

        def seen(source: int, cut: bool) -> Array:
            shape = known.shapes[source]
            view = blocks.view(shape, cut, rows)
            begin = first * shape[-1] if cut and self._root[source] not in self._within else 0
            return self.arrays[source].reshape(-1)[begin : begin + math.prod(view)].reshape(view)

        node = self.graph.nodes[place]
        out = seen(place, place not in stretch.adds)
        if node.op == "uniform":
            return self._drawing(node, out)
        if place in stretch.over_matrices:
            rows_of = seen(node.inputs[0], True)[None]
            return Call(node.op, out, (rows_of,), {"axes": (0,), "keepdims": False})
        attrs = {**node.attrs, **{key: 1 for key in ("axis",) if key in node.attrs}}
        attrs |= {key: value for key, value in (("axes", (1,)), ("shape", out.shape)) if key in node.attrs}
        return Call(node.op, out, tuple(map(seen, node.inputs, stretch.by_rows[place])), attrs)

    def _in_blocks(self, stretch: Stretch, blocks: Blocks, known: Inferred, first: int, last: bool) -> Banded:
        def step(source: int, cut: bool) -> tuple[int, ...]:
            if self._root[source] in self._within:
                return 0, self._lane_bytes[self._root[source]], 0, 1, 1
            matrix, block, turns, repeats = blocks.steps(known.shapes[source], cut, self.arrays[source].itemsize)
            return matrix, 0, block, turns, repeats

        steps = [
            [step(place, place not in stretch.adds), *map(step, self.graph.nodes[place].inputs, stretch.by_rows[place])]
            for place in stretch.places
        ]
        added = stretch.adds | stretch.over_matrices
        adds = [number for number, place in enumerate(stretch.places) if place in added]
        bands = blocks.matrices if last else stretch.bands
        kept = [number for number, place in enumerate(stretch.places) if place not in self._within]
        count = 1 if last else blocks.whole
        return Banded(first, bands, min(self._lanes, bands), steps, adds, count, last, kept, blocks.length)

    def _banded(self, stretch: Stretch, first: int) -> Banded:
        def step(source: int, cut: bool) -> tuple[int, ...]:
            if self._root[source] in self._within:
                return 0, self._lane_bytes[self._root[source]]
            return (self.arrays[source].nbytes // stretch.bands if cut else 0), 0

        steps = [
            [step(place, place not in stretch.adds), *map(step, self.graph.nodes[place].inputs, stretch.by_rows[place])]
            for place in stretch.places
        ]
        lanes = min(self._lanes, stretch.bands)
        adds = [number for number, place in enumerate(stretch.places) if place in stretch.adds]
        return Banded(first, stretch.bands, lanes, steps, adds)

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
            if name in self._given:
                return _state_array(name, shape, dtype, self._given)
            if name not in self.inputs:
                self.inputs[name], self._device_inputs[name] = self._fed(shape, dtype, name in resident)
            return self._device_inputs[name]
        if self._root[place] in self._within:
            shape = self._stretch_of[self._root[place]].band_shape(shape)
        if place in decided.alias:
            return self.arrays[decided.alias[place]].reshape(shape)
        if place in decided.in_place:
            return self.arrays[decided.in_place[place]]
        home = decided.home(place)
        if home in self._apart:
            if self._apart[home] is None:
                self._apart[home] = self.backend.empty(shape, dtype)
            return self._apart[home].reshape(shape)
        return self.backend.view(arena, slots[place].offset, shape, dtype)

    @property
    def apart(self) -> list[Array]:
        """The memory of outputs beside the arena."""
        return [array for array in self._apart.values() if array is not None]

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
