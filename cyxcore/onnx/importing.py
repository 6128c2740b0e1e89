"""Reading ONNX: a file becomes an OnnxModel, which runs op by op on tensors or is written into a graph of ours.

Translations compute with Values. On tensors they run at once; with symbols they make nodes, while all that is known
without an input (shapes, axes, what is computed of them) is computed right there: that is the constant folding.
"""

import inspect
import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cyxcore.attrs import MAX_NAME_CHARS
from cyxcore.dtype import is_float
from cyxcore.eager import Tensor, no_grad
from cyxcore.errors import CyxError, FormatError, GraphError, ShapeError
from cyxcore.graph import MAX_NODES, Graph
from cyxcore.onnx import (
    control,
    elementwise,
    movement,
    nn,
    products,
    quantised,
    recurrent,
    reductions,
    sequences,
    signals,
    vision,
)
from cyxcore.onnx.attributes import ATTRIBUTES
from cyxcore.onnx.proto import decode
from cyxcore.onnx.table import MAX_OPSET, MIN_OPSET, OPERATORS, Call, Operator
from cyxcore.onnx.tensors import dtype_of, to_array
from cyxcore.ops import infer_op
from cyxcore.symbols import MOST_NODES, PROBE_BATCH_SIZES, Builder, Symbol, batch_free
from cyxcore.values import Value

Array = np.ndarray[Any, Any]

ROWS = (control, elementwise, movement, nn, products, quantised, recurrent, reductions, sequences, signals, vision)

MAX_KNOWN_ELEMENTS = 2**24  # of a value that is computed while a graph is made, or 4 times all of the file's
MAX_ALL_KNOWN = 2**29  # elements of all such values together, or 16 times the file's
MAX_CONSTANT_ELEMENTS = 4096  # of what is no weight of the file: beyond it is a parameter of the graph
MAX_GRAPH_DEPTH = 8
MAX_CALLS = 30_000  # operations that a graph is made of, those of loops as often as they go round

# What a malformed node makes of a translation that takes it at its word.
_MALFORMED = (
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    OverflowError,
    MemoryError,
)


class Signature(NamedTuple):
    """An input or output as the file describes it. A size that is not fixed is a name, or None."""

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None


class Room:
    """What is left while one graph is made of a file with so many elements: a small file can fold to any size."""

    def __init__(self, elements: int) -> None:
        self.each = max(MAX_KNOWN_ELEMENTS, 4 * elements)
        self.all = max(MAX_ALL_KNOWN, 16 * elements)

    def take(self, op: str, shape: Sequence[int]) -> None:
        """Counts a value before it is computed. Raises ShapeError."""
        size = math.prod(shape)
        self.all -= size
        if size > self.each or self.all < 0:
            whole = "" if size > self.each else ", too many with those before"
            raise ShapeError(
                f"{op} makes {shape}, {size} elements{whole}, of known values; a graph is refused that hides so many"
            )


class Known(Tensor):
    """A tensor whose values are known while a graph is made. What is made of it may not outgrow all bounds."""

    _rank = 1.5  # type: ignore[assignment]

    def __init__(self, data: Any, room: Room) -> None:
        super().__init__(data)
        self.room = room

    def _apply(self, op: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> "Known":
        tensors = [value if isinstance(value, Tensor) else Tensor(value) for value in inputs]
        (shape, _), _ = infer_op(op, tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors), attrs)
        self.room.take(op, shape)
        return Known(super()._apply(op, tensors, attrs), self.room)

    def _constant(self, value: Any, dtype: str | None = None) -> "Known":
        return Known(super()._constant(value, dtype), self.room)

    def astype(self, dtype: Any) -> "Known":
        return Known(super().astype(dtype), self.room)


class OnnxModel:
    """A graph as an .onnx file holds it, checked: every operator is one we run.

    `run` computes it op by op, for any number of inputs and outputs; `graph_at` writes it into a graph for inputs of
    fixed shapes, and to_graph makes a model of ours of one that has one input and one output.
    """

    def __init__(self, proto: Mapping[str, Any], where: str = "onnx", folder: Path | None = None) -> None:
        """folder: where external data may be read from; None refuses it. Raises FormatError."""
        self.where, self.folder = where, folder
        self.opset = _opset(proto, where)
        self.proto = proto
        self.metadata = {entry["key"]: entry["value"] for entry in proto["metadata_props"]}
        graph = proto["graph"]
        if graph is None:
            raise FormatError(f"{where}: the file holds no graph")
        self.initializers = _initializers(graph, where, folder)
        _check_nodes(graph, self.opset, where, set(), 0)
        self.inputs = [_signature(value, where) for value in graph["input"] if value["name"] not in self.initializers]
        self.outputs = [_signature(value, where) for value in graph["output"]]
        if not self.outputs:
            raise FormatError(f"{where}: the graph has no output")

    @cached_property
    def operators(self) -> list[str]:
        """The operators of the graph and its inner graphs, sorted."""
        return sorted(set(_operators(self.proto["graph"])))

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs for named inputs: arrays (bfloat16 as float32), lists of them for sequences, None if absent.

        Raises GraphError for a missing input and, naming the node, for what an operator refuses.
        """
        given = {name: _as_value(value) for name, value in feeds.items()}
        self._all_given(given)
        with no_grad():
            run = _Run(self, None)
            return [_as_arrays(value) for value in run.whole(given)]

    def graph_at(
        self, feeds: Mapping[str, tuple[Sequence[int], str]], known: Mapping[str, Any]
    ) -> tuple[Graph, dict[str, Array]]:
        """(graph, weights) for inputs of fixed (shape, dtype), any number of inputs and outputs; for a Plan.

        known: the values of inputs that say shapes or axes.
        """
        builder = Builder(1, MOST_NODES)
        given: dict[str, Any] = {name: builder.input(name, shape, dtype) for name, (shape, dtype) in feeds.items()}
        run = _Run(self, builder)
        given |= {name: run.known(np.asarray(value)) for name, value in known.items()}
        self._all_given(given)
        with no_grad():
            outputs = [
                run.lifted(value, signature.name)
                for value, signature in zip(run.whole(given), self.outputs, strict=True)
            ]
        return builder.graph(*outputs), run.weights

    def _all_given(self, given: Mapping[str, Any]) -> None:
        names = [signature.name for signature in self.inputs]
        missing, extra = (
            [n for n in names if n not in given],
            [n for n in given if n not in {*names, *self.initializers}],
        )
        if missing or extra:
            raise GraphError(
                f"onnx: expected the inputs {', '.join(names)}; missing {missing or 'none'}, unknown {extra or 'none'}"
            )

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(s.name for s in part) for part in (self.inputs, self.outputs))
        return f"OnnxModel({inputs} -> {outputs}, opset {self.opset})"


def _opset(proto: Mapping[str, Any], where: str) -> int:
    versions = {entry["domain"]: entry["version"] for entry in proto["opset_import"]}
    opset = int(versions.get("", versions.get("ai.onnx", 0)))
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise FormatError(f"{where}: expected an ONNX model of opset {MIN_OPSET} to {MAX_OPSET}, got {opset or 'none'}")
    return opset


def _initializers(graph: Mapping[str, Any], where: str, folder: Path | None) -> dict[str, Array]:
    if graph["sparse_initializer"]:
        raise FormatError(f"{where}: sparse initializers are not supported; export them dense")
    found: dict[str, Array] = {}
    for tensor in graph["initializer"]:
        if tensor["name"] in found:
            raise FormatError(f"{where}: the initializer {tensor['name'][:80]!r} is there twice")
        found[tensor["name"]] = to_array(tensor, where, folder)
    return found


def _operators(graph: Mapping[str, Any]) -> list[str]:
    found = []
    for node in graph["node"]:
        found.append(node["op_type"])
        for attribute in node["attribute"]:
            for inner in _inner_graphs(attribute):
                found += _operators(inner)
    return found


def _inner_graphs(attribute: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [inner for inner in (attribute["g"], *attribute["graphs"]) if inner is not None]


def _title(node: Mapping[str, Any], place: int) -> str:
    return f"node {node['name'][:80] or place!r} ({node['op_type'][:60]})"


def _check_nodes(graph: Mapping[str, Any], opset: int, where: str, outer: set[str], depth: int) -> None:
    """Every operator is in the table, every value is made once and before it is used."""
    if depth > MAX_GRAPH_DEPTH or len(graph["node"]) > MAX_NODES:
        raise FormatError(
            f"{where}: expected at most {MAX_NODES} nodes, and graphs within graphs {MAX_GRAPH_DEPTH} deep"
        )
    known = {*outer, *(tensor["name"] for tensor in graph["initializer"]), *(value["name"] for value in graph["input"])}
    for place, node in enumerate(graph["node"]):
        title = f"{where}: {_title(node, place)}"
        row = OPERATORS.get(node["op_type"]) if node["domain"] in ("", "ai.onnx") else None
        if row is None:
            domain = f" of domain {node['domain'][:60]!r}" if node["domain"] else ""
            raise FormatError(
                f"{title}: operator {node['op_type'][:60]!r}{domain} (opset {opset}) is none Cyx runs; "
                "docs/onnx.md lists them"
            )
        if opset < row.since:
            raise FormatError(f"{title}: Cyx runs {row.name} from opset {row.since} on, the model says {opset}")
        for name in node["input"]:
            if name and name not in known:
                raise FormatError(f"{title}: its input {name[:80]!r} is made by no node before it")
        for attribute in node["attribute"]:
            for inner in _inner_graphs(attribute):
                _check_nodes(inner, opset, where, known, depth + 1)
        for name in node["output"]:
            if name and name in known - outer:
                raise FormatError(f"{title}: {name[:80]!r} is made twice")
            known.add(name)
    for value in graph["output"]:
        if value["name"] not in known:
            raise FormatError(f"{where}: the output {value['name'][:80]!r} is made by no node")


def _signature(value: Mapping[str, Any], where: str) -> Signature:
    kind = value["type"] or {}
    tensor = kind.get("tensor_type")
    if tensor is None:
        return Signature(value["name"], None, None)
    dtype = dtype_of(tensor["elem_type"], f"{where}: {value['name'][:80]!r}") if tensor["elem_type"] else None
    if tensor["shape"] is None:
        return Signature(value["name"], dtype, None)
    sizes = tuple(
        dimension["dim_value"] if dimension["dim_value"] else dimension["dim_param"] or None
        for dimension in tensor["shape"]["dim"]
    )
    return Signature(value["name"], dtype, sizes)


def load(path: str | os.PathLike[str], external_data: bool = False) -> OnnxModel:
    """The model of an .onnx file. Raises FormatError for anything Cyx does not run, by name.

    external_data: read values that lie in another file of the same folder, which is refused otherwise.
    """
    data = Path(path).read_bytes()
    return load_bytes(data, f"onnx {path}", Path(path).parent if external_data else None)


def load_bytes(data: bytes, where: str = "onnx", folder: Path | None = None) -> OnnxModel:
    """See load; of the bytes of a file."""
    return OnnxModel(decode("Model", data, where), where, folder)


def to_graph(
    model: OnnxModel,
    input_shape: Sequence[int] | None = None,
    output: str | None = None,
    parameters: Collection[str] = (),
) -> tuple[Graph, dict[str, Array]]:
    """(graph, weights): a model of ours, its first axis being the batch.

    input_shape: of one sample, where the file leaves sizes open. output: its name, where there are several.
    parameters: names of values computed of weights alone that are to be parameters, however small.
    Raises FormatError for a model of several inputs, or one a graph cannot hold; the message names the node.
    """
    where = model.where
    if len(model.inputs) != 1:
        names = ", ".join(signature.name for signature in model.inputs) or "none"
        raise FormatError(
            f"{where}: a Cyx model has one input, this has {names}; cyxcore.onnx.load(path).run(...) runs it"
        )
    outputs = [signature.name for signature in model.outputs]
    if output is None and len(outputs) > 1:
        raise FormatError(
            f"{where}: a Cyx model has one output, this has {', '.join(outputs)}; choose one with output="
        )
    if output is not None and output not in outputs:
        raise FormatError(f"{where}: expected output to be one of {', '.join(outputs)}, got {output!r}")
    place = outputs.index(output) if output else 0
    name, dtype, shape = model.inputs[0]
    sample = _sample_shape(where, shape, input_shape)
    weights: dict[str, Array] = {}

    def at(batch_size: int) -> Graph:
        builder = Builder(batch_size, MOST_NODES)
        x = builder.input("x", (batch_size, *sample), dtype or "float32")
        run = _Run(model, builder, frozenset(parameters))
        result = run.whole({name: x})[place]
        if not isinstance(result, Symbol):
            raise GraphError("the output does not depend on the input")
        weights.update(run.weights)
        return builder.graph(result)

    try:
        with no_grad():
            graph = batch_free(at)
    except FormatError:
        raise
    except CyxError as error:
        raise FormatError(f"{where}: {error}") from None
    return graph, {param.name: weights[param.name] for param in graph.all_parameters}


def _sample_shape(where: str, shape: Any, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        return tuple(int(size) for size in given)
    if not shape:
        raise FormatError(f"{where}: the file does not say the shape of its input; give input_shape=, of one sample")
    if any(not isinstance(size, int) or size < 1 for size in shape[1:]):
        raise FormatError(f"{where}: the input is {list(shape)}: sizes are open; give input_shape=, of one sample")
    return tuple(shape[1:])


def _as_value(value: Any) -> Any:
    if value is None or isinstance(value, Value):
        return value
    return [_as_value(entry) for entry in value] if isinstance(value, list) else Tensor(np.asarray(value))


def _as_arrays(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_arrays(entry) for entry in value]
    if value is None:
        return None
    return value.astype("float32").numpy() if value.dtype == "bfloat16" else value.numpy()


def _attributes(node: Mapping[str, Any], where: str, folder: Path | None) -> dict[str, Any]:
    """name -> float, int, bytes, array, graph or a list of them, as the attribute's type says."""
    found: dict[str, Any] = {}
    for attribute in node["attribute"]:
        kind = attribute["type"]
        field = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors"}.get(kind)
        if field is None or attribute["ref_attr_name"]:
            raise FormatError(
                f"{where}: attribute {attribute['name'][:80]!r} is of type {kind}, which Cyx does not read"
            )
        value = attribute[field]
        if field == "t":
            if value is None:
                raise FormatError(f"{where}: attribute {attribute['name'][:80]!r} holds no tensor")
            value = to_array(value, where, folder)
        elif field in ("floats", "ints"):
            value = [entry.item() for entry in np.asarray(value)]
        found[attribute["name"]] = value
    return found


class _Run:
    """One pass over a graph: on tensors (builder None), or into a builder."""

    def __init__(self, model: OnnxModel, builder: Builder | None, parameters: frozenset[str] = frozenset()) -> None:
        self.model, self.builder, self.parameters = model, builder, parameters
        self.calls = 0
        self.weights: dict[str, Array] = {}
        self.room = Room(sum(array.size for array in model.initializers.values()))
        self.like = self.known(np.zeros(1, np.float32))

    def whole(self, given: Mapping[str, Any]) -> list[Any]:
        with np.errstate(all="ignore"):  # a file may divide by zero
            return self.graph(self.model.proto["graph"], given, {}, self.model.initializers)

    def graph(
        self, graph: Mapping[str, Any], given: Mapping[str, Any], outer: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> list[Any]:
        values: dict[str, Any] = {**outer, **{name: self.known(array) for name, array in arrays.items()}, **given}
        for place, node in enumerate(graph["node"]):
            try:
                results = self.node(node, values)
            except FormatError:
                raise
            except CyxError as error:
                own = f"layer {self.builder.layer}: " if self.builder else ""  # the title says it already
                raise GraphError(f"{_title(node, place)}: {str(error).removeprefix(own)}") from None
            except _MALFORMED as error:
                raise GraphError(f"{_title(node, place)}: its inputs or attributes do not fit: {error}") from None
            for name, value in zip(node["output"], results, strict=False):
                values[name] = value
        missing = [value["name"] for value in graph["output"] if value["name"] not in values]
        if missing:
            raise GraphError(f"the outputs {', '.join(missing)[:80]} were not made")
        return [values[value["name"]] for value in graph["output"]]

    def known(self, array: Any) -> Any:
        return Tensor(array) if self.builder is None else Known(array, self.room)

    def node(self, node: Mapping[str, Any], values: Mapping[str, Any]) -> Sequence[Any]:
        row = OPERATORS[node["op_type"]]
        if self.builder is not None:
            self.calls += 1
            if self.calls > MAX_CALLS:
                raise GraphError(
                    f"loops make more than {MAX_CALLS} operations; cyxcore.onnx.load(path).run(...) runs it"
                )
            label = node["name"] or (node["output"][0] if node["output"] else "")
            self.builder.layer = label if label.isprintable() and len(label) <= MAX_NAME_CHARS else row.name
        inputs = [values[name] if name else None for name in node["input"]]
        if self.builder is not None:
            inputs = self.together(row, node["input"], inputs)
        _check_arity(row, inputs)

        def run(graph: Mapping[str, Any], given: Sequence[Any]) -> list[Any]:
            names = [value["name"] for value in graph["input"]]
            if len(names) != len(given):
                raise GraphError(f"an inner graph takes {len(names)} inputs, got {len(given)}")
            arrays = _initializers(graph, self.model.where, self.model.folder)
            return self.graph(graph, dict(zip(names, given, strict=True)), values, arrays)

        like = next((value for value in inputs if isinstance(value, Symbol)), self.like)
        attrs = _attributes(node, self.model.where, self.model.folder)
        strange = attrs.keys() - ATTRIBUTES.get(row.name, frozenset())
        if strange:
            raise GraphError(f"attribute {sorted(strange)[0][:60]!r} is not one Cyx knows of")
        call = Call(row.name, self.model.opset, attrs, sum(1 for name in node["output"] if name), like, run)
        result = row.translate(call, *inputs)
        results = result if isinstance(result, tuple) else (result,)
        return results if self.builder is None else [self.of_any_batch(value) for value in results]

    def of_any_batch(self, value: Any) -> Any:
        """An output while a graph is made.

        What is one number for each row becomes a symbol at once: computed on, it would have one batch size.
        """
        if type(value) is Tensor:  # of a Constant: what is made of it is bounded too
            value = self.known(value)
        size = self.builder.batch_size if self.builder else 0
        if isinstance(value, Known) and size in PROBE_BATCH_SIZES and size in value.shape and is_float(value.dtype):
            array = value.numpy()
            if bool((array == array.reshape(-1)[0]).all()):
                return self.lifted(value, "")
        return value

    def together(self, row: Operator, names: Sequence[str], inputs: list[Any]) -> list[Any]:
        """The inputs of one call: where one is a symbol or a weight, all become nodes of the graph."""
        if not any(
            isinstance(value, Symbol) or self.is_weight(name)
            for place, (name, value) in enumerate(zip(names, inputs, strict=True))
            if place not in row.known
        ):
            return inputs
        return [
            value if value is None or place in row.known else self.lifted(value, names[place], place)
            for place, value in enumerate(inputs)
        ]

    def is_weight(self, name: str) -> bool:
        """Whether a value of the file becomes a parameter, by its own name and shape."""
        array = self.model.initializers.get(name)
        return array is not None and array.size > 1 and array.dtype.name in ("float32", "float64")

    def lifted(self, value: Any, name: str, place: int = 0) -> Any:
        if not isinstance(value, Tensor) or self.builder is None:
            return value
        array = value.numpy()
        first = array.reshape(-1)[:1]
        many = array.size > 1 and array.shape and name not in self.parameters
        if many and np.isfinite(first).all() and bool((array == first).all()):
            return self.builder.constant(first.item(), value.dtype).broadcast_to(*array.shape)
        named = self.is_weight(name) or name in self.parameters
        finite = not is_float(value.dtype) or bool(np.isfinite(array).all())
        if named or not finite or is_float(value.dtype) and array.size > MAX_CONSTANT_ELEMENTS:
            return self.parameter(name, np.ascontiguousarray(array), named)
        return self.builder.constant(array, value.dtype)

    def parameter(self, name: str, array: Array, trainable: bool) -> Any:
        """A parameter by the name of a value, or, where it has another value by now (in a loop), by that and a number.

        What is no weight of the file (a constant too large for a graph, or with infinities) is a buffer.
        """
        assert self.builder is not None
        name = wanted = name or "constant"
        number = 1
        while name in self.weights and not _same(self.weights[name], array):
            number += 1
            name = f"{wanted}.{number}"
        if not name.isprintable() or len(name) > MAX_NAME_CHARS:
            raise GraphError(f"the name {name[:60]!r} is not one a parameter can have")
        self.weights[name] = array
        return self.builder.param(name, array.shape, {"kind": "zeros"}, trainable, array.dtype.name)


def _same(a: Array, b: Array) -> bool:
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def _check_arity(row: Operator, inputs: Sequence[Any]) -> None:
    parameters = list(inspect.signature(row.translate).parameters.values())[1:]
    several = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL
    single = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    needed = sum(1 for p in single if p.default is inspect.Parameter.empty)
    if several and not single:
        needed = 1
    if len(inputs) < needed or not several and len(inputs) > len(single) or any(v is None for v in inputs[:needed]):
        raise GraphError(
            f"expected {needed} to {'any number of' if several else len(single)} inputs, got {len(inputs)}"
        )
