"""A model as data: a list of nodes that refer only to earlier nodes. Only graphs travel, never code.

The batch size is not part of a graph: a null in a shape stands for it, and shapes are inferred for
a batch size when they are needed. A graph holds both modes of a model: a `by_mode` node is its
first input in training and its second in inference, `updates` says which buffers hold which
values after a training step (the running statistics of batch norm), and `penalties` are added to the
loss of each row in training. `key` is the (seed, step) pair of the random ops. Canonical bytes are
JSON with sorted keys and no spaces; their SHA-256 is the model's id.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from cyxcore import attrs as kind
from cyxcore.dtype import is_float, item_bytes
from cyxcore.errors import CyxError, DtypeError, GraphError, ShapeError
from cyxcore.infer import Shape
from cyxcore.ops import OPS, USER

FORMAT = "cyx-graph/1"
MAX_NODES = 100_000
MAX_BYTES = 64 * 2**20
SIZES = ("shape", "stops", "input_shape")  # where a null may stand for the batch size; no op has two of them


class Node(NamedTuple):
    op: str
    inputs: tuple[int, ...]
    attrs: Mapping[str, Any]  # in normal form (cyxcore/attrs.py)
    layer: str = ""  # the layer of the model it came from, e.g. "2: Conv2d"


class Param(NamedTuple):
    """A trained parameter or (trainable=False) a buffer. Its values travel beside the graph."""

    node: int
    name: str
    shape: Shape
    dtype: str
    init: Mapping[str, Any]
    trainable: bool


class Inferred(NamedTuple):
    """Shapes and dtypes of every node at one batch size."""

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]

    def bytes_of(self, node: int) -> int:
        return math.prod(self.shapes[node]) * item_bytes(self.dtypes[node])


def at_batch(attrs: Mapping[str, Any], batch_size: int) -> Mapping[str, Any]:
    """Attributes with every null replaced by the batch size."""
    for key in SIZES:
        if None in attrs.get(key, ()):
            return {**attrs, key: tuple([batch_size if entry is None else entry for entry in attrs[key]])}
    return attrs


class Graph:
    """An immutable graph.

    Made by trace, by layers.build or from JSON; `verify` tells whether it is a model.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        outputs: Sequence[int],
        updates: Iterable[tuple[int, int]] = (),
        fixed: Inferred | None = None,
        penalties: Iterable[int] = (),
    ) -> None:
        """fixed: shapes and dtypes of a graph without nulls, which are the same at any batch size, from a maker
        that inferred them node by node.
        """
        self.nodes: tuple[Node, ...] = tuple(nodes)
        self.outputs: tuple[int, ...] = tuple(outputs)
        self.updates: tuple[tuple[int, int], ...] = tuple(updates)
        self.penalties: tuple[int, ...] = tuple(penalties)
        self._fixed = fixed
        self._inferred: dict[int, Inferred] = {}

    # bytes ------------------------------------------------------------------------------------

    @classmethod
    def from_json(cls, source: bytes | str | Mapping[str, Any]) -> "Graph":
        """A verified model graph. Raises GraphError or ShapeError for anything else."""
        data = _decode(source) if isinstance(source, (bytes, str)) else source
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise GraphError(f"graph: expected an object with format {FORMAT!r}, got {_short(data)}")
        _only(data, "graph", {"format", "nodes", "outputs", "updates", "penalties"})
        nodes = _list(data.get("nodes"), "nodes")
        if len(nodes) > MAX_NODES:
            raise GraphError(f"graph: expected at most {MAX_NODES} nodes, got {len(nodes)}")
        parsed = [_node(place, node) for place, node in enumerate(nodes)]
        outputs = [_place(place, len(parsed), "outputs") for place in _list(data.get("outputs"), "outputs")]
        updates = []
        for pair in _list(data.get("updates", []), "updates"):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise GraphError(f"updates: expected [buffer, value] pairs of nodes, got {_short(pair)}")
            updates.append((_place(pair[0], len(parsed), "updates"), _place(pair[1], len(parsed), "updates")))
        penalties = [_place(place, len(parsed), "penalties") for place in _list(data.get("penalties", []), "penalties")]
        graph = cls(parsed, outputs, updates, penalties=penalties)
        graph.verify()
        return graph

    def to_json(self) -> dict[str, Any]:
        """The graph as plain JSON types."""
        result: dict[str, Any] = json.loads(self.to_bytes())
        return result

    @cached_property
    def _bytes(self) -> bytes:
        nodes = []
        for node in self.nodes:
            entry: dict[str, Any] = {"op": node.op}
            if node.inputs:
                entry["in"] = node.inputs
            if node.attrs:
                entry["attrs"] = node.attrs
            if node.layer:
                entry["layer"] = node.layer
            nodes.append(entry)
        whole = {"format": FORMAT, "nodes": nodes, "outputs": self.outputs, "updates": self.updates}
        if self.penalties:  # a graph without any keeps the bytes, and the id, that it had before there were any
            whole["penalties"] = self.penalties
        return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def to_bytes(self) -> bytes:
        """Canonical JSON: equal graphs give equal bytes. Raises GraphError where an operation is a user's own."""
        for node in self.nodes:
            if node.op.startswith(USER):
                raise GraphError(
                    f"graph: it holds {node.op.removeprefix(USER)!r}, an operation of your own; only graphs of known "
                    "operations are saved and sent: write it of cyxcore's own operations"
                )
            if OPS[node.op].group == "standard":
                raise GraphError(
                    f"graph: it holds {node.op!r}, which only plans of this machine's cpu do; compose it of other "
                    "operations"
                )
        return self._bytes

    @cached_property
    def sha256(self) -> str:
        """The model's id: SHA-256 of the canonical bytes, lower-case hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Graph({len(self.nodes)} nodes, {self.parameter_count:,} parameters, {self.sha256[:12]})"

    # meaning ----------------------------------------------------------------------------------

    def infer(self, batch_size: int) -> Inferred:
        """Shapes and dtypes of every node. Raises ShapeError or DtypeError naming the layer."""
        known = self._fixed or self._inferred.get(batch_size)
        if known is None:
            if len(self._inferred) >= 8:
                self._inferred.clear()
            known = self._inferred[batch_size] = self._infer(batch_size)
        return known

    def _infer(self, batch_size: int) -> Inferred:
        shapes: list[Shape] = []
        dtypes: list[str] = []
        for place, node in enumerate(self.nodes):
            given, given_dtypes = tuple([shapes[i] for i in node.inputs]), tuple([dtypes[i] for i in node.inputs])
            try:
                shape, dtype = OPS[node.op].infer_in_graph(given, given_dtypes, at_batch(node.attrs, batch_size))
            except CyxError as error:
                raise at_layer(error, node.layer or f"node {place}") from None
            shapes.append(shape)
            dtypes.append(dtype)
        return Inferred(tuple(shapes), tuple(dtypes))

    def verify(self) -> None:
        """Raise GraphError (or ShapeError, DtypeError) unless this is a model: one input, one output,
        shapes that fit.
        """
        if not 0 < len(self.nodes) <= MAX_NODES:
            raise GraphError(f"graph: expected 1..{MAX_NODES} nodes, got {len(self.nodes)}")
        inputs = [node for node in self.nodes if node.op == "input"]
        if len(inputs) != 1 or len(self.outputs) != 1:
            raise GraphError(f"graph: expected one input and one output, got {len(inputs)} and {len(self.outputs)}")
        shape = inputs[0].attrs["shape"]
        if not shape or shape[0] is not None or None in shape[1:]:
            raise GraphError(f"graph: expected an input shape that starts with null, the batch, got {list(shape)}")
        names = [param.name for param in self._params]
        if len(set(names)) != len(names):
            raise GraphError(f"graph: parameter names repeat: {_repeated(names)}")
        for param in self._params:
            if not is_float(param.dtype):
                raise DtypeError(f"parameter {param.name}: expected a float dtype, got {param.dtype}")
        for batch_size in (2, 1):
            self._verify_at(batch_size, self.infer(batch_size))

    def _verify_at(self, batch_size: int, known: Inferred) -> None:
        out = known.shapes[self.outputs[0]]
        if not out or out[0] != batch_size:
            raise ShapeError(f"graph: expected an output with a row per sample ({batch_size}, ...), got {out}")
        if not is_float(known.dtypes[self.outputs[0]]):
            raise DtypeError(f"graph: expected a float output, got {known.dtypes[self.outputs[0]]}")
        for place in self.penalties:
            if known.shapes[place] != (batch_size,) or not is_float(known.dtypes[place]):
                raise ShapeError(
                    f"penalties: expected a float number per sample ({batch_size},), got {known.shapes[place]}"
                )
        buffers = {param.node for param in self._params if not param.trainable}
        if len({target for target, _ in self.updates}) != len(self.updates):
            raise GraphError("updates: a buffer is updated twice")
        for target, value in self.updates:
            if target not in buffers:
                raise GraphError(f"updates: expected a buffer (a parameter that is not trainable), got node {target}")
            if (known.shapes[target], known.dtypes[target]) != (known.shapes[value], known.dtypes[value]):
                raise ShapeError(
                    f"updates: buffer {self.nodes[target].attrs['name']!r} is {known.shapes[target]}, "
                    f"its new value {known.shapes[value]}"
                )

    @cached_property
    def _params(self) -> tuple[Param, ...]:
        return tuple(
            Param(place, a["name"], a["shape"], a["dtype"], a["init"], a["trainable"])
            for place, (op, _, a, _) in enumerate(self.nodes)
            if op == "param"
        )

    @property
    def parameters(self) -> tuple[Param, ...]:
        """What training changes, in graph order."""
        return tuple(param for param in self._params if param.trainable)

    @property
    def buffers(self) -> tuple[Param, ...]:
        """State that is not trained: running statistics, input scaling."""
        return tuple(param for param in self._params if not param.trainable)

    @property
    def all_parameters(self) -> tuple[Param, ...]:
        """Parameters and buffers in graph order: the names of the model's weights."""
        return self._params

    @cached_property
    def input(self) -> int:
        return next(place for place, node in enumerate(self.nodes) if node.op == "input")

    @property
    def input_shape(self) -> Shape:
        """Shape of one sample."""
        return tuple(self.nodes[self.input].attrs["shape"][1:])

    @property
    def output_shape(self) -> Shape:
        """Shape of the output for one sample."""
        return self.infer(1).shapes[self.outputs[0]][1:]

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(param.shape) for param in self.parameters)

    def reachable(self, training: bool) -> set[int]:
        """Nodes that matter in a mode: what the outputs (and in training updates and penalties) need."""
        waiting = [*self.outputs, *(place for pair in self.updates for place in pair if training)]
        waiting += self.penalties if training else ()
        found: set[int] = set()
        while waiting:
            place = waiting.pop()
            if place not in found:
                found.add(place)
                node = self.nodes[place]
                waiting += [node.inputs[0 if training else 1]] if node.op == "by_mode" else node.inputs
        return found

    def flops(self, batch_size: int) -> int:
        """Floating-point operations of one inference at a batch size; a training step takes about three
        times that.
        """
        known = self.infer(batch_size)
        total = 0
        for place in self.reachable(training=False):
            node = self.nodes[place]
            shapes = tuple(known.shapes[i] for i in node.inputs)
            total += OPS[node.op].flops(shapes, known.shapes[place], at_batch(node.attrs, batch_size))
        return total

    def bytes_moved(self, batch_size: int) -> int:
        """Bytes read and written by one inference at a batch size, every operand counted once for each operation."""
        known = self.infer(batch_size)
        total = 0
        for place in self.reachable(training=False):
            node = self.nodes[place]
            if node.inputs:
                total += known.bytes_of(place) + sum(known.bytes_of(i) for i in node.inputs)
        return total

    def memory_bytes(self, batch_size: int, training: bool = True) -> int:
        """About how much memory a run takes, for placement: parameters plus activations.

        Training counts every parameter four times (value, gradient, two optimiser slots) and every
        activation twice (value, gradient); inference counts the largest sum alive at once.
        """
        known = self.infer(batch_size)
        params = sum(known.bytes_of(param.node) for param in self._params)
        places = sorted(self.reachable(training))
        activations = [place for place in places if self.nodes[place].op != "param"]
        if training:
            return 4 * params + 2 * sum(known.bytes_of(place) for place in activations)
        last_use = {source: place for place in places for source in self.nodes[place].inputs}
        ending: dict[int, list[int]] = {}
        for source, place in last_use.items():
            ending.setdefault(place, []).append(source)
        alive = peak = 0
        live = set()
        for place in activations:
            live.add(place)
            alive += known.bytes_of(place)
            peak = max(peak, alive)
            for source in ending.get(place, ()):
                if source in live:
                    live.remove(source)
                    alive -= known.bytes_of(source)
        return params + peak


def at_layer(error: CyxError, layer: str) -> CyxError:
    """The same error, its message starting with the layer it happened in."""
    text = str(error)
    return error if not layer or text.startswith("layer ") else type(error)(f"layer {layer}: {text}")


def _decode(source: bytes | str) -> Any:
    raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(raw) > MAX_BYTES:
        raise GraphError(f"graph: expected at most {MAX_BYTES} bytes, got {len(raw)}")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise GraphError(f"graph: expected JSON, got {_short(raw)}: {error}") from None


def _node(place: int, data: Any) -> Node:
    where = f"node {place}"
    if not isinstance(data, Mapping):
        raise GraphError(f"{where}: expected an object, got {_short(data)}")
    _only(data, where, {"op", "in", "attrs", "layer"})
    op, layer, attrs = data.get("op"), data.get("layer", ""), data.get("attrs", {})
    if not isinstance(op, str) or op not in OPS:
        raise GraphError(f"{where}: unknown op {_short(op)}; the op table is cyxcore/ops.py")
    if not isinstance(layer, str) or len(layer) > kind.MAX_NAME_CHARS or not layer.isprintable():
        raise GraphError(f"{where}: expected a short printable layer label, got {_short(layer)}")
    if not isinstance(attrs, Mapping):
        raise GraphError(f"{where}: expected attrs to be an object, got {_short(attrs)}")
    inputs = tuple(_place(source, place, where) for source in _list(data.get("in", []), where))
    return Node(op, inputs, kind.normalise(f"{where}: {op}", OPS[op].attrs, attrs), layer)


def _place(value: Any, below: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise GraphError(f"{where}: expected an earlier node 0..{below - 1}, got {_short(value)}")
    return value


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise GraphError(f"{where}: expected a list, got {_short(value)}")
    return value


def _only(data: Mapping[str, Any], where: str, known: set[str]) -> None:
    for key in data:
        if key not in known:
            raise GraphError(f"{where}: unknown field {_short(key)}; it has: {', '.join(sorted(known))}")


def _short(value: Any) -> str:
    try:
        text = ascii(value[:60] if isinstance(value, (str, bytes, list)) else value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= 60 else text[:57] + "..."


def _repeated(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
