"""Writing ONNX: the inference half of a graph, one or a few ONNX nodes for each of ours.

Weights are initializers by their own names, a node carries the label of its layer, and the batch is an open size. What
ONNX cannot say is refused by name. Equal models give equal bytes.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore import safetensors
from cyxcore.errors import FormatError
from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape
from cyxcore.onnx.proto import Piece, encode
from cyxcore.onnx.tensors import NUMBERS, to_proto

Array = np.ndarray[Any, Any]

DEFAULT_OPSET = 18
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}  # opset -> the format it came with
MAX_BYTES = 2**31 - 1  # of one protobuf message
_PROBE = 1009  # a batch size that no layer has as a size of its own

_FLOAT, _INT, _STRING, _TENSOR, _INTS = 1, 2, 3, 4, 7  # AttributeProto.AttributeType


def _attribute(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, float):
        return {"name": name, "f": value, "type": _FLOAT}
    if isinstance(value, int):
        return {"name": name, "i": int(value), "type": _INT}
    if isinstance(value, str):
        return {"name": name, "s": value.encode(), "type": _STRING}
    return {"name": name, "ints": [int(entry) for entry in value], "type": _INTS}


class _Writer:
    """The nodes and initializers of one model, as they are made."""

    def __init__(self, graph: Graph, opset: int) -> None:
        self.graph, self.opset = graph, opset
        self.known: Inferred = graph.infer(_PROBE)
        self.nodes: list[dict[str, Any]] = []
        self.initializers: list[dict[str, Any]] = []
        self.names: dict[int, str] = {}  # of our nodes' values
        self.taken: set[str] = {param.name for param in graph.all_parameters}
        self._constants: dict[bytes, str] = {}
        self._batch = ""
        self.layer = ""

    def fresh(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def node(self, op_type: str, inputs: Sequence[str], wanted: str = "", **attrs: Any) -> str:
        """One ONNX node. Returns the name of its output."""
        label = f"{self.layer}/{op_type}" if self.layer else op_type
        output = self.fresh(wanted or label)
        self.nodes.append(
            {
                "input": list(inputs),
                "output": [output],
                "name": output,
                "op_type": op_type,
                "attribute": [_attribute(key, attrs[key]) for key in sorted(attrs)],
            }
        )
        return output

    def cast(self, source: str, name: str, dtype: str) -> None:
        """A value of another dtype by a name that is reserved for it."""
        to = [_attribute("to", NUMBERS[dtype])]
        self.nodes.append({"input": [source], "output": [name], "name": name, "op_type": "Cast", "attribute": to})

    def constant(self, array: Array) -> str:
        key = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        if key not in self._constants:
            name = self._constants[key] = self.fresh("constant")
            value = {"name": "value", "t": to_proto("", array), "type": _TENSOR}
            self.nodes.append({"output": [name], "name": name, "op_type": "Constant", "attribute": [value]})
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    @property
    def batch(self) -> str:
        """The number of rows, as an int64 vector of one element."""
        if not self._batch:
            layer, self.layer = self.layer, ""
            shape = self.node("Shape", [self.names[self.graph.input]])
            self._batch = self.node("Slice", [shape, self.ints([0]), self.ints([1])], "batch_size")
            self.layer = layer
        return self._batch

    def sizes(self, shape: Sequence[int | None]) -> str:
        """A shape as a tensor; a null is the number of rows."""
        if None not in shape:
            return self.ints([int(size) for size in shape if size is not None])
        parts: list[str] = []
        run: list[int] = []
        for size in shape:
            if size is not None:
                run.append(size)
                continue
            if run:
                parts.append(self.ints(run))
                run = []
            parts.append(self.batch)
        if run:
            parts.append(self.ints(run))
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)


Translate = Callable[[_Writer, Node, list[str], list[Shape], Shape], str]
_PLAIN = {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "sin": "Sin", "cos": "Cos",
    "sigmoid": "Sigmoid", "erf": "Erf", "relu": "Relu", "floor": "Floor", "sign": "Sign", "logical_not": "Not",
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or", "where": "Where",
    "detach": "Identity", "softplus": "Softplus",
}  # fmt: skip
_REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}


def _plain(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    return writer.node(_PLAIN[node.op], inputs)


def _reduce(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    kind, axes, keep = _REDUCTIONS[node.op], node.attrs["axes"], int(node.attrs["keepdims"])
    if not axes:
        return inputs[0]
    if writer.opset < 18 and kind != "ReduceSum":
        return writer.node(kind, inputs, axes=axes, keepdims=keep)
    return writer.node(kind, [*inputs, writer.ints(axes)], keepdims=keep)


def _matmul(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    turned = [node.attrs["transpose_a"], node.attrs["transpose_b"]]
    if any(turned) and len(shapes[0]) == len(shapes[1]) == 2:
        return writer.node("Gemm", inputs, transA=int(turned[0]), transB=int(turned[1]))
    ready = []
    for name, shape, turn in zip(inputs, shapes, turned, strict=True):
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        ready.append(writer.node("Transpose", [name], perm=order) if turn else name)
    return writer.node("MatMul", ready)


def _reshape(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    wanted = node.attrs["shape"]
    if list(wanted).count(None) == 1 and -1 not in wanted and 0 not in wanted:
        wanted = tuple(-1 if size is None else size for size in wanted)  # what is left is the number of rows
    sizes = writer.sizes(wanted)
    if 0 in wanted:
        return writer.node("Reshape", [*inputs, sizes], allowzero=1)
    return writer.node("Reshape", [*inputs, sizes])


def _slice(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    a = node.attrs
    cut = [
        axis
        for axis, size in enumerate(shapes[0])
        if (a["starts"][axis], a["stops"][axis] or _PROBE, a["steps"][axis]) != (0, size, 1)
    ]
    if not cut:
        return inputs[0]
    bounds = [writer.ints([a["starts"][k] for k in cut]), writer.sizes([a["stops"][k] for k in cut])]
    return writer.node("Slice", [*inputs, *bounds, writer.ints(cut), writer.ints([a["steps"][k] for k in cut])])


def _pad(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    dtype = writer.known.dtypes[node.inputs[0]]
    pads = [low for low, _ in node.attrs["pads"]] + [high for _, high in node.attrs["pads"]]
    value = writer.constant(np.array(node.attrs["value"]).astype(dtype))
    return writer.node("Pad", [*inputs, writer.ints(pads), value])


def _one_hot(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    depth = writer.constant(np.array(node.attrs["depth"], np.int64))
    return writer.node("OneHot", [*inputs, depth, writer.constant(np.array([0.0, 1.0], np.float32))])


def _both_sides(pads: Sequence[int]) -> list[int]:
    return [*pads, *pads]


def _kernel(node: Node, shapes: list[Shape]) -> dict[str, Any]:
    """What a convolution and a transposed one say of their kernel."""
    a = node.attrs
    return {
        "strides": a["stride"],
        "pads": _both_sides(a["padding"]),
        "dilations": a["dilation"],
        "group": a["groups"],
        "kernel_shape": shapes[1][2:],
    }


def _conv(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    return writer.node("Conv", inputs, **_kernel(node, shapes))


def _conv_transpose(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    a = node.attrs
    extra = [
        size - ((have - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, have, s, p, d, k in zip(
            out[2:], shapes[0][2:], a["stride"], a["padding"], a["dilation"], shapes[1][2:], strict=True
        )
    ]
    return writer.node("ConvTranspose", inputs, **_kernel(node, shapes), output_padding=extra)


def _pool(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    a = node.attrs
    window = {"kernel_shape": a["kernel"], "strides": a["stride"], "pads": _both_sides(a["padding"])}
    if node.op == "max_pool2d":
        return writer.node("MaxPool", inputs, **window)
    return writer.node("AveragePool", inputs, **window, count_include_pad=1)


def _by_erf(writer: _Writer, node: Node, inputs: list[str], shapes: list[Shape], out: Shape) -> str:
    """erfc, Φ and x Φ(x) of what ONNX has: erf, and Gelu from opset 20 on."""
    if node.op == "gelu" and writer.opset >= 20:
        return writer.node("Gelu", inputs)
    dtype = writer.known.dtypes[node.inputs[0]]
    half, root = (writer.constant(np.array(value, dtype)) for value in (0.5, math.sqrt(0.5)))
    if node.op == "erfc":
        return writer.node("Sub", [writer.constant(np.array(1.0, dtype)), writer.node("Erf", inputs)])
    error = writer.node("Erf", [writer.node("Mul", [*inputs, root])])
    share = writer.node("Add", [writer.node("Mul", [error, half]), half])
    return share if node.op == "ndtr" else writer.node("Mul", [share, *inputs])


def _axis_op(op_type: str) -> Translate:
    return lambda writer, node, inputs, shapes, out: writer.node(op_type, inputs, axis=node.attrs["axis"])


TRANSLATIONS: dict[str, Translate] = {
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("erfc", "ndtr", "gelu"), _by_erf),
    "square": lambda writer, node, inputs, shapes, out: writer.node("Mul", [*inputs, *inputs]),
    "not_equal": lambda writer, node, inputs, shapes, out: writer.node("Not", [writer.node("Equal", inputs)]),
    "cast": lambda writer, node, inputs, shapes, out: writer.node("Cast", inputs, to=NUMBERS[node.attrs["dtype"]]),
    "argmax": lambda writer, node, inputs, shapes, out: writer.node(
        "ArgMax", inputs, axis=node.attrs["axis"], keepdims=0
    ),
    "matmul": _matmul,
    "reshape": _reshape,
    "transpose": lambda writer, node, inputs, shapes, out: writer.node("Transpose", inputs, perm=node.attrs["axes"]),
    "broadcast_to": lambda writer, node, inputs, shapes, out: writer.node(
        "Expand", [*inputs, writer.sizes(node.attrs["shape"])]
    ),
    "slice": _slice,
    "pad": _pad,
    "concat": _axis_op("Concat"),
    "take": _axis_op("Gather"),
    "take_along": _axis_op("GatherElements"),
    "one_hot": _one_hot,
    "conv2d": _conv,
    "conv2d_grad_input": _conv_transpose,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "softmax": _axis_op("Softmax"),
    "log_softmax": _axis_op("LogSoftmax"),
}


def to_bytes(
    graph: Graph, weights: Mapping[str, Array], metadata: Mapping[str, str] | None = None, opset: int | None = None
) -> list[Piece]:
    """The file's bytes, in pieces: see save."""
    opset = DEFAULT_OPSET if opset is None else opset
    if opset not in IR_VERSIONS:
        raise FormatError(f"onnx: expected an opset {min(IR_VERSIONS)} to {max(IR_VERSIONS)}, got {opset}")
    writer = _Writer(graph, opset)
    for place in sorted(graph.reachable(training=False) | {graph.input}):
        _write_node(writer, place, graph.nodes[place], weights)
    out = graph.outputs[0]
    result = writer.names[out]
    writer.layer = ""
    writer.node("Identity", [result], "output")
    message = {
        "ir_version": IR_VERSIONS[opset],
        "producer_name": "cyx",
        "graph": {
            "node": writer.nodes,
            "name": "model",
            "initializer": writer.initializers,
            "input": [_value_info(writer, writer.names[graph.input], graph.input)],
            "output": [_value_info(writer, writer.nodes[-1]["output"][0], out)],
        },
        "opset_import": [{"domain": "", "version": opset}],
        "metadata_props": [{"key": key, "value": value} for key, value in sorted((metadata or {}).items())],
    }
    pieces = encode("Model", message)
    size = sum(len(piece) for piece in pieces)
    if size > MAX_BYTES:
        raise FormatError(
            f"onnx: the model takes {size} bytes, an .onnx file holds {MAX_BYTES}; save it as .safetensors"
        )
    return pieces


def save(
    path: str | os.PathLike[str],
    graph: Graph,
    weights: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    advance: safetensors.Advance | None = None,
) -> None:
    """Write the model for inference. opset: 18 unless given.

    Raises FormatError for an operation ONNX has not, naming its layer.
    """
    pieces = to_bytes(graph, weights, metadata, opset)
    safetensors.write_parts_atomically(path, safetensors.counted(pieces, advance), synced=True)


def _write_node(writer: _Writer, place: int, node: Node, weights: Mapping[str, Array]) -> None:
    known = writer.known
    writer.layer = node.layer
    if node.op == "input":
        writer.names[place] = writer.fresh(node.attrs["name"])
    elif node.op == "param":
        name, array = node.attrs["name"], weights[node.attrs["name"]]
        if array.dtype.name == node.attrs["dtype"]:
            writer.initializers.append(to_proto(name, array))
        else:  # of a quantised model
            held = writer.fresh(f"{name}.{array.dtype.name}")
            writer.initializers.append(to_proto(held, array))
            writer.cast(held, name, node.attrs["dtype"])
        writer.names[place] = name
    elif node.op == "const":
        values = np.array(node.attrs["value"], node.attrs["dtype"]).reshape(node.attrs["shape"])
        writer.names[place] = writer.constant(values)
    elif node.op == "by_mode":
        writer.names[place] = writer.names[node.inputs[1]]
    elif node.op == "key":
        return  # the op that draws with it says what is wrong
    elif node.op not in TRANSLATIONS:
        where = f"layer {node.layer}: " if node.layer else ""
        raise FormatError(f"onnx: {where}{node.op} cannot be said in ONNX; save the model as .cyxmodel or .safetensors")
    else:
        inputs = [writer.names[source] for source in node.inputs]
        shapes = [known.shapes[source] for source in node.inputs]
        writer.names[place] = TRANSLATIONS[node.op](writer, node, inputs, shapes, known.shapes[place])


def _value_info(writer: _Writer, name: str, place: int) -> dict[str, Any]:
    shape = writer.known.shapes[place]
    dims = [
        {"dim_param": "batch"} if size == _PROBE and axis == 0 else {"dim_value": size}
        for axis, size in enumerate(shape)
    ]
    kind = {"tensor_type": {"elem_type": NUMBERS[writer.known.dtypes[place]], "shape": {"dim": dims}}}
    return {"name": name, "type": kind}
