"""Graph to graph: the same meaning with less work. `optimise` runs them all; each is safe alone.

They work on graphs at one batch size (no nulls). A pass only removes or replaces work whose result
is bit for bit the same: x * 1 goes, x + 0 stays (it turns -0.0 into 0.0).
"""

import math
from collections.abc import Callable
from typing import Any

from cyxcore.graph import Graph, Node
from cyxcore.symbols import Builder, Symbol

MAX_FOLDED_ELEMENTS = 4096

# Ops whose result IEEE 754 fixes to the bit, so that folding on any backend changes nothing.
_EXACT = frozenset(
    "neg abs relu square sign floor sqrt logical_not add sub mul div maximum minimum equal "
    "not_equal less less_equal "
    "greater greater_equal logical_and logical_or where cast max min argmax reshape transpose "
    "broadcast_to slice pad "
    "concat take one_hot".split()
)

Rewrite = Callable[[Builder, Node, list[Symbol]], Symbol | None]


def optimise(graph: Graph) -> Graph:
    """Simplified, constants folded, equal calls merged (by the builder), dead code gone."""
    return dead_code(rewrite(graph, [_redundant_movement, _identity, _folded]))


def rewrite(graph: Graph, rules: list[Rewrite]) -> Graph:
    """A copy in which the first rule that answers replaces a node. Equal calls become one node."""
    builder = Builder()
    copies: list[Symbol] = []
    for node in graph.nodes:
        builder.layer = node.layer
        inputs = [copies[i] for i in node.inputs]
        replaced = next((new for new in (rule(builder, node, inputs) for rule in rules) if new is not None), None)
        copies.append(builder.apply(node.op, inputs, node.attrs) if replaced is None else replaced)
    for target, value in graph.updates:
        builder.updates[copies[target].node] = copies[value].node
    return builder.graph(*(copies[place] for place in graph.outputs))


def dead_code(graph: Graph) -> Graph:
    """Only what outputs and updates need; inputs and parameters stay, they are the graph's interface."""
    needed = graph.reachable(training=True)
    places: dict[int, int] = {}
    nodes: list[Node] = []
    for place, node in enumerate(graph.nodes):
        if place in needed or node.op in ("input", "param"):
            places[place] = len(nodes)
            nodes.append(node._replace(inputs=tuple(places[i] for i in node.inputs)))
    return Graph(nodes, [places[i] for i in graph.outputs], [(places[a], places[b]) for a, b in graph.updates])


def _producer(value: Symbol) -> Node:
    return value.builder.nodes[value.node]


def _redundant_movement(builder: Builder, node: Node, inputs: list[Symbol]) -> Symbol | None:
    """Reshapes of reshapes, transposes of transposes, transposes a matmul can do itself, and copies of
    nothing.
    """
    if node.op == "reshape":
        x = inputs[0]
        shape = builder.shapes[builder.apply("reshape", [x], node.attrs).node]
        if _producer(x).op == "reshape":
            x = Symbol(builder, _producer(x).inputs[0])
        return x if x.shape == shape else builder.apply("reshape", [x], {"shape": shape})
    if node.op == "transpose":
        x, axes = inputs[0], node.attrs["axes"]
        inner = _producer(x)
        if inner.op == "transpose":
            axes = tuple(inner.attrs["axes"][axis] for axis in axes)
            x = Symbol(builder, inner.inputs[0])
        return x if axes == tuple(range(len(axes))) else builder.apply("transpose", [x], {"axes": axes})
    if node.op == "broadcast_to" and inputs[0].shape == node.attrs["shape"]:
        return inputs[0]
    if node.op == "cast" and inputs[0].dtype == node.attrs["dtype"]:
        return inputs[0]
    if node.op in ("sum", "mean", "max", "min") and not node.attrs["axes"]:
        return inputs[0]
    if node.op == "matmul":
        return _absorb_transposes(builder, node, inputs)
    return None


def _absorb_transposes(builder: Builder, node: Node, inputs: list[Symbol]) -> Symbol | None:
    attrs, operands = dict(node.attrs), list(inputs)
    for place, flag in enumerate(("transpose_a", "transpose_b")):
        inner, rank = _producer(operands[place]), operands[place].ndim
        if inner.op == "transpose" and inner.attrs["axes"] == (*range(rank - 2), rank - 1, rank - 2):
            operands[place] = Symbol(builder, inner.inputs[0])
            attrs[flag] = not attrs[flag]
    return None if attrs == node.attrs else builder.apply("matmul", operands, attrs)


def _number(value: Symbol) -> float | None:
    """The value of a constant whose elements are all the same."""
    node = _producer(value)
    numbers = node.attrs["value"] if node.op == "const" else ()
    return float(numbers[0]) if numbers and all(repr(n) == repr(numbers[0]) for n in numbers) else None


def _identity(builder: Builder, node: Node, inputs: list[Symbol]) -> Symbol | None:
    """x * 1, 1 * x, x / 1, x - 0 are x, bit for bit."""
    if node.op in ("mul", "div", "sub"):
        shape = builder.apply(node.op, inputs, node.attrs).shape
        neutral = 0.0 if node.op == "sub" else 1.0
        if repr(_number(inputs[1])) == repr(neutral) and inputs[0].shape == shape:
            return inputs[0]
        if node.op == "mul" and _number(inputs[0]) == 1.0 and inputs[1].shape == shape:
            return inputs[1]
    return None


def _whole(numbers: tuple[float, ...]) -> bool:
    """Whole numbers so small that their sum is exact in any order."""
    return all(float(n).is_integer() for n in numbers) and sum(abs(n) for n in numbers) < 2**24


def _folded(builder: Builder, node: Node, inputs: list[Symbol]) -> Symbol | None:
    """The result itself, where every input is a constant and the result is small and finite."""
    if not inputs or any(_producer(value).op != "const" for value in inputs):
        return None
    if node.op not in _EXACT and not (node.op == "sum" and _whole(_producer(inputs[0]).attrs["value"])):
        return None
    import numpy as np

    from cyxcore.kernels import reference

    result = builder.apply(node.op, inputs, node.attrs)
    if math.prod(result.shape) > MAX_FOLDED_ELEMENTS:
        return result
    arrays: list[Any] = []
    for value in inputs:
        attrs = _producer(value).attrs
        arrays.append(np.array(attrs["value"], dtype=attrs["dtype"]).reshape(attrs["shape"]))
    out = np.empty(result.shape, result.dtype)
    reference.call(node.op, out, arrays, node.attrs)
    return builder.constant(out) if np.isfinite(out).all() else result
