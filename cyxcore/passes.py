"""Graph to graph: the same meaning with less work. `optimise` runs them all; each is safe alone.

They work on graphs at one batch size (no nulls). A pass only removes or replaces work whose result
is bit for bit the same: x * 1 goes, x + 0 stays (it turns -0.0 into 0.0).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cyxcore.dtype import COMPLEX, IN_GRAPHS, INEXACT, is_float
from cyxcore.graph import Graph, Inferred, Node
from cyxcore.infer import Shape, broadcast
from cyxcore.ops import OPS, OWN_GRADIENT
from cyxcore.symbols import CONSTANTS, Builder, Symbol

MAX_FOLDED_ELEMENTS = 4096
THIN_TERMS = 16  # a stack of products of so few terms takes less time than to transpose it,
LEAST_TURNED = 8  # where each has so many rows and columns
SHORT_ROWS, OFTEN = 48, 3  # of matrices whose products do not pay for turning the other one, and how many of them
LONG_ROWS, NEAR_ELEMENTS = 1024, 128 * 1024  # of matrices cut into bands, which multiply by one that stays in the cache

# Ops whose result IEEE 754 fixes to the bit, so that folding on any backend changes nothing.
_EXACT = frozenset(
    "neg abs relu square sign floor sqrt logical_not add sub mul div maximum minimum equal "
    "not_equal less less_equal "
    "greater greater_equal logical_and logical_or where cast max min argmax reshape transpose "
    "broadcast_to slice pad "
    "concat take one_hot".split()
)

# (builder, node, its inputs in the builder, its shape) -> what stands for it; None: nothing simpler is known
Rewrite = Callable[[Builder, Node, list[Symbol], Shape], Symbol | None]


def optimise(graph: Graph) -> Graph:
    """Simplified, constants folded, equal calls merged (by the builder), dead code gone."""
    return dead_code(simplify(graph))


def copied_before_updates(simplified: Graph) -> Graph:
    """Where an output is what a parameter was before its update, or another parameter becomes that, it is copied."""
    written = {target for target, _ in simplified.updates}
    nodes, known = list(simplified.nodes), simplified.infer(1)
    shapes, dtypes = list(known.shapes), list(known.dtypes)

    def root(place: int) -> int:
        while simplified.nodes[place].op in ("reshape", "detach"):
            place = simplified.nodes[place].inputs[0]
        return place

    def copy_of(place: int) -> int:
        shape = shapes[place]
        for op, to in (("reshape", (math.prod(shape),)), ("concat", (math.prod(shape),)), ("reshape", shape)):
            nodes.append(Node(op, (place,), {"axis": 0} if op == "concat" else {"shape": to}, nodes[place].layer))
            shapes.append(to)
            dtypes.append(dtypes[place])
            place = len(nodes) - 1
        return place

    outputs = [copy_of(place) if root(place) in written else place for place in simplified.outputs]
    updates = [
        (target, copy_of(value) if simplified.nodes[root(value)].op == "param" and root(value) != target else value)
        for target, value in simplified.updates
    ]
    if len(nodes) == len(simplified.nodes):
        return simplified
    return Graph(nodes, outputs, updates, Inferred(tuple(shapes), tuple(dtypes)))


def simplify(graph: Graph) -> Graph:
    """A copy in which the op's rule, or folding, replaces a node. Equal calls become one node.

    What replaces a value has its shape and dtype, so those of the copy are known without inferring them again.
    """
    builder = Builder(travels=False)
    known = graph.infer(builder.batch_size)
    copies: list[Symbol] = []
    for node, shape, dtype in zip(graph.nodes, known.shapes, known.dtypes, strict=True):
        builder.layer = node.layer
        inputs = [copies[i] for i in node.inputs]
        new = None
        if OPS[node.op].group == "elementwise":
            new = _before_stretching(builder, node, inputs, shape, dtype)
            inputs = _unstretched(inputs, shape) if len(inputs) > 1 else inputs
        simpler = RULES.get(node.op)
        if new is None and simpler:
            new = simpler(builder, node, inputs, shape)
        if new is None:
            new = _folded(builder, node, inputs, shape, dtype)
        if new is None:
            new = builder.copy(node.op, inputs, node.attrs, (shape, dtype))
        copies.append(new)
    for target, value in graph.updates:
        builder.updates[copies[target].node] = copies[value].node
    return builder.graph(*(copies[place] for place in graph.outputs))


def turn_once(graph: Graph) -> Graph:
    """A matrix by whose transpose many short ones are multiplied, or the bands of a long one, is turned once.

    A product that turns it itself pays for that every time, which only many rows make up for.
    """
    known = graph.infer(1)
    short, often = dict[int, list[int]](), dict[int, list[int]]()  # matrix -> the products that turn it
    for place, node in enumerate(graph.nodes):
        if node.op == "matmul" and node.attrs["transpose_b"] and _is_ours(known, place, 2):
            matrix, rows = node.inputs[1], known.shapes[place][0]
            if rows <= SHORT_ROWS:
                short.setdefault(matrix, []).append(place)
            elif rows >= LONG_ROWS and math.prod(known.shapes[matrix]) <= NEAR_ELEMENTS:
                often.setdefault(matrix, []).append(place)
    for matrix, places in short.items():
        if len(places) >= OFTEN:
            often.setdefault(matrix, []).extend(places)
    if not often:
        return graph
    first = {min(places): matrix for matrix, places in often.items()}
    turning = {place: matrix for matrix, places in often.items() for place in places}
    nodes: list[Node] = []
    new: list[int] = []
    shapes, dtypes = list[Shape](), list[str]()
    turned: dict[int, int] = {}
    for place, node in enumerate(graph.nodes):
        inputs, attrs = tuple(new[i] for i in node.inputs), node.attrs
        if place in first:
            matrix = first[place]
            turned[matrix] = len(nodes)
            nodes.append(Node("transpose", (new[matrix],), {"axes": (1, 0)}, node.layer))
            shapes.append(known.shapes[matrix][::-1])
            dtypes.append(known.dtypes[matrix])
        if place in turning:
            inputs, attrs = (inputs[0], turned[turning[place]]), {**node.attrs, "transpose_b": False}
        new.append(len(nodes))
        nodes.append(Node(node.op, inputs, attrs, node.layer))
        shapes.append(known.shapes[place])
        dtypes.append(known.dtypes[place])
    updates = [(new[target], new[value]) for target, value in graph.updates]
    return Graph(nodes, [new[i] for i in graph.outputs], updates, Inferred(tuple(shapes), tuple(dtypes)))


def cut_products(graph: Graph) -> Graph:
    """Where rows are cut out of a product and nobody needs it whole, the rows are cut out of its left factor.

    A recurrence then multiplies its inputs step by step, and what comes out is in the cache when the step reads it.
    """
    known = graph.infer(1)
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(graph.nodes):
        for i in node.inputs:
            readers.setdefault(i, []).append(place)
    for i in (*graph.outputs, *(place for update in graph.updates for place in update)):
        readers.setdefault(i, []).append(len(graph.nodes))
    cuts: dict[int, _Product] = {}  # slice -> what it cuts
    for place in range(len(graph.nodes)):
        product = _product_in_slices(graph, known, readers, place)
        if product is not None:
            cuts.update(dict.fromkeys(readers[place], product))
    if not cuts:
        return graph
    nodes: list[Node] = []
    new: list[int] = []
    shapes, dtypes = list[Shape](), list[str]()

    def emit(op: str, inputs: tuple[int, ...], attrs: Mapping[str, Any], shape: Shape, like: int) -> int:
        nodes.append(Node(op, inputs, attrs, graph.nodes[like].layer))
        shapes.append(shape)
        dtypes.append(known.dtypes[like])
        return len(nodes) - 1

    for place, node in enumerate(graph.nodes):
        if place not in cuts:
            new.append(emit(node.op, tuple([new[i] for i in node.inputs]), node.attrs, known.shapes[place], place))
            continue
        left, right, row, attrs = cuts[place]
        shape, terms = known.shapes[place], known.shapes[left][-1]
        rows, columns = math.prod(shape[:-1]), shape[-1]
        cut = {**node.attrs, "stops": (*node.attrs["stops"][:-1], terms)}
        part = emit("slice", (new[left],), cut, (*shape[:-1], terms), place)
        flat = emit("reshape", (part,), {"shape": (rows, terms)}, (rows, terms), place)
        made = emit("matmul", (flat, new[right]), attrs, (rows, columns), place)
        if row is not None:
            made = emit("add", (made, new[row]), {}, (rows, columns), place)
        new.append(emit("reshape", (made,), {"shape": shape}, shape, place))
    updates = [(new[target], new[value]) for target, value in graph.updates]
    return Graph(nodes, [new[i] for i in graph.outputs], updates, Inferred(tuple(shapes), tuple(dtypes)))


class _Product(NamedTuple):
    """left (..., k) times right, plus a row where there is one."""

    left: int
    right: int
    row: int | None
    attrs: Mapping[str, Any]


def _product_in_slices(
    graph: Graph, known: Inferred, readers: Mapping[int, Sequence[int]], place: int
) -> _Product | None:
    """The product of which a reshape to (..., n) shows the rows, where all that read it are many slices of few rows."""
    nodes, shapes = graph.nodes, known.shapes
    shape, slices = shapes[place], readers.get(place, ())
    if nodes[place].op != "reshape" or len(shape) < 3 or len(slices) < OFTEN:
        return None
    for i in slices:
        if i >= len(nodes) or nodes[i].op != "slice" or any(step != 1 for step in nodes[i].attrs["steps"]):
            return None
        if shapes[i][-1] != shape[-1] or math.prod(shapes[i][:-1]) > SHORT_ROWS:
            return None
    if sum(math.prod(shapes[i][:-1]) for i in slices) > math.prod(shape[:-1]):
        return None  # some rows would be multiplied twice
    made, row = nodes[place].inputs[0], None
    if nodes[made].op == "add" and len(readers[made]) == 1:
        added = nodes[made].inputs
        rows = [i for i in added if shapes[i] == shape[-1:]]
        if len(rows) != 1:
            return None
        row, made = rows[0], added[0] if added[1] == rows[0] else added[1]
    product = nodes[made]
    if product.op != "matmul" or len(readers[made]) != 1 or not _is_ours(known, made, 2):
        return None
    if shapes[made] != (math.prod(shape[:-1]), shape[-1]):
        return None
    flat, right = product.inputs
    if product.attrs["transpose_a"] or len(shapes[right]) != 2 or nodes[flat].op != "reshape":
        return None
    left = nodes[flat].inputs[0]
    same_rows = len(shapes[left]) == len(shape) and shapes[left][:-1] == shape[:-1]
    return _Product(left, right, row, product.attrs) if same_rows else None


def _is_ours(known: Inferred, place: int, rank: int) -> bool:
    """Whether a product of some rank has a kernel of ours, whose bits do not depend on how its operands lie."""
    return known.dtypes[place] in IN_GRAPHS and len(known.shapes[place]) == rank


def dead_code(graph: Graph) -> Graph:
    """Only what outputs and updates need; inputs and parameters stay, they are the graph's interface."""
    needed, known = graph.reachable(training=True), graph.infer(1)
    kept = [place for place, node in enumerate(graph.nodes) if place in needed or node.op in ("input", "param")]
    places = {old: new for new, old in enumerate(kept)}
    nodes = [
        Node(op, tuple([places[i] for i in inputs]), attrs, layer)
        for op, inputs, attrs, layer in (graph.nodes[place] for place in kept)
    ]
    return Graph(
        nodes,
        [places[i] for i in graph.outputs],
        [(places[a], places[b]) for a, b in graph.updates],
        Inferred(tuple([known.shapes[i] for i in kept]), tuple([known.dtypes[i] for i in kept])),
    )


def _before_stretching(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape, dtype: str) -> Symbol | None:
    """An element-wise op of nothing but what was stretched: made before, and stretched then."""
    short = [Symbol(builder, _producer(x).inputs[0]) if _producer(x).op == "broadcast_to" else x for x in inputs]
    small = broadcast(node.op, *(x.shape for x in short))
    if math.prod(small) == math.prod(shape):
        return None
    made = builder.copy(node.op, short, node.attrs, (small, dtype))
    return builder.apply("broadcast_to", [made], {"shape": shape})


def _unstretched(inputs: list[Symbol], shape: Shape) -> list[Symbol]:
    """Inputs of an element-wise op, which broadcasts them by itself: what was stretched only for it, as it was."""
    found = list(inputs)
    for place, x in enumerate(inputs):
        if _producer(x).op == "broadcast_to":
            short = Symbol(x.builder, _producer(x).inputs[0])
            others = [found[i].shape for i in range(len(found)) if i != place]
            if broadcast("broadcast", short.shape, *others) == shape:
                found[place] = short
    return found


def _producer(value: Symbol) -> Node:
    return value.builder.nodes[value.node]


def _reshape(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Of a reshape; to the shape it has."""
    x = inputs[0]
    if _producer(x).op == "reshape":
        x = Symbol(builder, _producer(x).inputs[0])
    return x if x.shape == shape else builder.apply("reshape", [x], {"shape": shape})


def _transpose(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Of a transpose; to the order it has."""
    x, axes = inputs[0], node.attrs["axes"]
    inner = _producer(x)
    if inner.op == "transpose":
        axes = tuple(inner.attrs["axes"][axis] for axis in axes)
        x = Symbol(builder, inner.inputs[0])
        inner = _producer(x)
    if axes == tuple(range(len(axes))):
        return x
    if inner.op == "matmul" and axes == (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2) and _is_thin(builder, inner, x):
        # As of the gradient of a mean over an axis: to transpose it would take longer than to make it.
        turned = {"transpose_a": not inner.attrs["transpose_b"], "transpose_b": not inner.attrs["transpose_a"]}
        return builder.apply("matmul", [Symbol(builder, place) for place in reversed(inner.inputs)], turned)
    return builder.apply("transpose", [x], {"axes": axes})


def _is_thin(builder: Builder, product: Node, x: Symbol) -> bool:
    """Whether a stack of products that are no mere rows has few terms: in either order of its factors the same bits."""
    terms = Symbol(builder, product.inputs[0]).shape[-2 if product.attrs["transpose_a"] else -1]
    return x.ndim > 2 and min(x.shape[-2:]) >= LEAST_TURNED and x.dtype in IN_GRAPHS and terms <= THIN_TERMS


def _broadcast(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    return inputs[0] if inputs[0].shape == shape else None


def _detach(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Its input: gradients are nodes of a graph that comes here."""
    return inputs[0]


def _own_gradient(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """The result, whose gradient is there."""
    return inputs[-1]


def _cast(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    return inputs[0] if inputs[0].dtype == node.attrs["dtype"] else None


def _reduce(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Over no axis. A sum begins at 0, so that of -0.0 it is 0.0."""
    if node.attrs["axes"]:
        return None
    return inputs[0] + 0.0 if node.op in ("sum", "mean") and inputs[0].dtype in INEXACT else inputs[0]


def _matmul(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Of matrices whose last two axes are exchanged, which it can do itself."""
    if inputs[0].dtype not in IN_GRAPHS:  # BLAS, by which NumPy multiplies, has other bits then
        return None
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
    numbers = node.attrs["value"] if node.op == "const" and value.dtype not in COMPLEX else ()
    return float(numbers[0]) if numbers and all(repr(n) == repr(numbers[0]) for n in numbers) else None


def _mul(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """x * 1 and 1 * x are x, bit for bit."""
    for x, factor in (inputs, inputs[::-1]):
        if _number(factor) == 1.0 and x.shape == shape:
            return x
    return None


def _div(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """x / 1 is x."""
    return inputs[0] if _number(inputs[1]) == 1.0 and inputs[0].shape == shape else None


def _sub(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """x - 0 is x; x - -0.0 is not, where x is -0.0."""
    return inputs[0] if repr(_number(inputs[1])) == "0.0" and inputs[0].shape == shape else None


def _where(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """root() of values.py, of which gradients have their own nodes: where(x == 0, x, sqrt(where(x == 0, y, x))) is
    sqrt(x), bit for bit, as the roots of 0.0 and -0.0 are these.
    """
    zero, x, root = inputs
    test = _producer(zero)
    if test.op != "equal" or _producer(root).op != "sqrt" or test.inputs[0] != x.node or x.shape != shape:
        return None
    safe = _producer(Symbol(builder, _producer(root).inputs[0]))
    if safe.op != "where" or (safe.inputs[0], safe.inputs[2]) != (zero.node, x.node):
        return None
    return builder.apply("sqrt", [x], {}) if _number(Symbol(builder, test.inputs[1])) == 0.0 else None


def _flip(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Places chosen the other way round, for which there is a kernel of ours."""
    x = inputs[0]
    for axis in node.attrs["axes"]:
        order = builder.constant(list(range(shape[axis] - 1, -1, -1)), "int64")
        x = builder.apply("take", [x, order], {"axis": axis})
    return x


def _slice(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape) -> Symbol | None:
    """Of a pad: of what was padded, or of a number around it; of a concat: of the one piece that it reaches."""
    source = _producer(inputs[0])
    if source.op == "concat":
        return _slice_of_concat(builder, node, source)
    if source.op == "pad" and is_float(inputs[0].dtype) and all(step == 1 for step in node.attrs["steps"]):
        return _slice_of_pad(builder, node, source, inputs[0].dtype, shape)
    return None


def _slice_of_concat(builder: Builder, node: Node, joined: Node) -> Symbol | None:
    axis, begin = joined.attrs["axis"], 0
    starts, stops = list(node.attrs["starts"]), list(node.attrs["stops"])
    if node.attrs["steps"][axis] < 1:
        return None
    for place in joined.inputs:
        piece = Symbol(builder, place)
        end = begin + piece.shape[axis]
        if begin <= starts[axis] and stops[axis] <= end:
            starts[axis], stops[axis] = starts[axis] - begin, stops[axis] - begin
            if not any(starts) and tuple(stops) == piece.shape and all(step == 1 for step in node.attrs["steps"]):
                return piece
            return builder.apply("slice", [piece], {**node.attrs, "starts": tuple(starts), "stops": tuple(stops)})
        begin = end
    return None


def _slice_of_pad(builder: Builder, node: Node, padded: Node, dtype: str, shape: Shape) -> Symbol | None:
    source = Symbol(builder, padded.inputs[0])
    starts, stops = list[int](), list[int]()
    for start, stop, (before, _), size in zip(
        node.attrs["starts"], node.attrs["stops"], padded.attrs["pads"], source.shape, strict=True
    ):
        if stop <= before or start >= before + size:
            return builder.constant(padded.attrs["value"], dtype).broadcast_to(*shape)
        starts.append(start - before)
        stops.append(stop - before)
    if any(start < 0 for start in starts) or any(stop > size for stop, size in zip(stops, source.shape, strict=True)):
        return None
    return builder.apply("slice", [source], {**node.attrs, "starts": tuple(starts), "stops": tuple(stops)})


RULES: dict[str, Rewrite] = {
    "reshape": _reshape,
    "slice": _slice,
    "flip": _flip,
    "transpose": _transpose,
    "broadcast_to": _broadcast,
    "detach": _detach,
    OWN_GRADIENT: _own_gradient,
    "cast": _cast,
    "sum": _reduce,
    "mean": _reduce,
    "max": _reduce,
    "min": _reduce,
    "matmul": _matmul,
    "mul": _mul,
    "div": _div,
    "sub": _sub,
    "where": _where,
}


def _whole(numbers: tuple[float, ...]) -> bool:
    """Whole numbers so small that their sum is exact in any order."""
    return all(float(n).is_integer() for n in numbers) and sum(abs(n) for n in numbers) < 2**24


def _folded(builder: Builder, node: Node, inputs: list[Symbol], shape: Shape, dtype: str) -> Symbol | None:
    """The result itself, where every input is a constant and the result is small and finite."""
    for x in inputs:
        if x.builder.nodes[x.node].op != "const":
            return None
    if not inputs or math.prod(shape) > MAX_FOLDED_ELEMENTS:
        return None
    if not {dtype, *(x.dtype for x in inputs)} <= set(CONSTANTS):
        return None
    if node.op not in _EXACT and not (node.op == "sum" and _whole(_producer(inputs[0]).attrs["value"])):
        return None
    import numpy as np

    from cyxcore.kernels import reference

    arrays: list[Any] = []
    for value in inputs:
        attrs = _producer(value).attrs
        arrays.append(np.array(attrs["value"], dtype=attrs["dtype"]).reshape(attrs["shape"]))
    out = np.empty(shape, dtype)
    reference.call(node.op, out, arrays, node.attrs)
    return builder.constant(out) if np.isfinite(out).all() else None
