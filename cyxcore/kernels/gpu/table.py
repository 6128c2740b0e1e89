"""op -> launches: which kernel computes an op, over which grid, with which block sizes.

A row takes (runtime, out, inputs, attrs) and returns what is to be launched, in order, on arrays that stay where they
are. It runs nothing itself, so that a plan can keep the launches and a graph can record them. Deterministic: no kernel
adds floats with atomics, and block sizes depend on shapes alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from cyxcore.kernels.gpu import chains, fixed, fusion
from cyxcore.kernels.gpu.compiling import chain_function

Array = Any  # numpy.ndarray or cupy.ndarray
Launch = Callable[[], object]
Row = Callable[["Runtime", Array, Sequence[Array], Mapping[str, Any]], list[Launch]]

FAULTY = ("take", "take_along", "take_grad", "one_hot", "cross_entropy", "cross_entropy_grad")
MANY_BLOCKS = 264  # two for each multiprocessor of a large device: fewer leave some idle


class Product(NamedTuple):
    """out[b] = x[b] @ y[b] for b < batch; m, n, k as multiplied. Strides in elements, 0: the same matrix."""

    out: Array
    x: Array
    y: Array
    batch: int
    m: int
    n: int
    k: int
    transpose_x: bool
    transpose_y: bool
    stride_x: int
    stride_y: int
    bias: Array | None = None  # n numbers added to every row, then ReLU: of a product that a runtime `ended`
    relu: bool = False


class Runtime(Protocol):
    """Where launches come from: a device (cuda.py), or the interpreter of the tests."""

    xp: Any  # numpy or cupy, for views only
    precision: str  # of float32 products: "ieee" or "tf32"

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Scratch memory that lives as long as the launch that holds it."""

    def kernel(
        self, function: Any, grid: tuple[int, ...], args: Sequence[Any], constants: Mapping[str, Any], warps: int = 4
    ) -> Launch: ...

    def copy(self, target: Array, view: Array) -> Launch: ...

    def fill(self, target: Array, value: float) -> Launch: ...

    def product(self, product: Product) -> Launch: ...

    def ended(self, product: Product, apart: Callable[[], list[Launch]]) -> Launch | None:
        """The product with its bias and ReLU as one launch; None where that would not have the bits of `apart`, which
        prepares one after the other."""

    def fault(self, op: str) -> Array:
        """The int32 a kernel of this op writes 1 into when an index is out of range."""


TABLE: dict[str, Row] = {}


def row(*names: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return register


def launches(rt: Runtime, op: str, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    """What computes one op. Nothing for an empty result (of an op that checks no index)."""
    if op in chains.EXPRESSIONS:
        step = chains.Step(op, tuple(range(len(inputs))), chains.numbers(attrs), out.dtype.name)
        return chain(rt, inputs, [step], {len(inputs): out})
    return TABLE[op](rt, out, inputs, attrs) if out.size else []


def supports(op: str) -> bool:
    return op in chains.EXPRESSIONS or op in TABLE


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def power_of_2(count: int) -> int:
    """The next one."""
    return 1 << max(count - 1, 0).bit_length()


# element-wise -------------------------------------------------------------------------------------


def chain(
    rt: Runtime, inputs: Sequence[Array], steps: Sequence[chains.Step], stores: Mapping[int, Array]
) -> list[Launch]:
    """One kernel for steps over `inputs`; `stores` says which results go to which array."""
    out = next(iter(stores.values()))
    n = out.size
    if not n:
        return []
    sizes, reads = chains.reads(out.shape, [(x.shape, x.dtype.name) for x in inputs])
    found = chains.Chain(sizes, reads, tuple(steps), tuple(stores), n >= 2**31)
    block = 1024 if n >= 1024 * MANY_BLOCKS else 256
    return [rt.kernel(chain_function(found), (ceil_div(n, block),), [*inputs, *stores.values(), n], {"BLOCK": block})]


# reductions -----------------------------------------------------------------------------------------


def _tile(outputs: int, n: int, inner: int) -> tuple[int, int]:
    """Block sizes (outputs, summed) of about 1024 elements: along whichever of the two is contiguous."""
    if inner == 1:
        wide = min(power_of_2(n), 1024)
        return min(power_of_2(outputs), max(1, 1024 // wide)), wide
    high = min(power_of_2(n), 16)
    return min(power_of_2(outputs), 1024 // high, 128), high


def _groups(shape: tuple[int, ...], axes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(outer, n, inner) of each run of neighbouring axes to reduce, the innermost run first."""
    left, found = list(shape), list[tuple[int, int, int]]()
    for axis in sorted(axes, reverse=True):
        left[axis] = 1
        outer, inner = math.prod(shape[:axis]), math.prod(left[axis:])
        if found and axis + 1 in axes:
            found[-1] = (outer, shape[axis] * found[-1][1], inner)
        else:
            found.append((outer, shape[axis], inner))
    return found


def _reduced(rt: Runtime, x: Array, out: Array, sizes: tuple[int, int, int], how: Any, count: int) -> list[Launch]:
    """One run of axes, in two stages where the result is small and the sum long. count: 0, or the divisor of a mean."""
    outer, n, inner = sizes
    outputs = outer * inner
    bj, bn = _tile(outputs, n, inner)
    blocks = ceil_div(outputs, bj)
    splits = min(ceil_div(MANY_BLOCKS, blocks), ceil_div(n, 8 * bn)) if blocks < MANY_BLOCKS // 2 else 1
    chunk = ceil_div(ceil_div(n, splits), bn) * bn
    splits = ceil_div(n, chunk)

    def one(x: Array, out: Array, n: int, chunk: int, splits: int, mean: bool) -> Launch:
        bj, bn = _tile(outputs, n, inner)
        constants = {"HOW": how.value, "MEAN": mean, "BJ": bj, "BN": bn}
        return rt.kernel(
            fixed.reduce, (ceil_div(outputs, bj), splits), [x, out, outputs, n, chunk, inner, count or 1], constants
        )

    if splits == 1:
        return [one(x, out, n, n, 1, bool(count))]
    parts = rt.empty((outer, splits, inner), x.dtype.name)
    return [one(x, parts, n, chunk, splits, False), one(parts, out, splits, splits, 1, bool(count))]


HOW = {"min": fixed.MIN, "all": fixed.MIN, "prod": fixed.PROD}  # the others: the greatest


def _reduction(op: str) -> Row:
    def prepare(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
        (x,), axes = inputs, attrs["axes"]
        if not axes:
            return [rt.copy(out, x)]
        if not x.size:
            return [rt.fill(out, op in ("prod", "all"))]
        adds = op in ("sum", "mean") and x.dtype.name != "bool"  # a sum of bools in bool is "any"
        how = fixed.SUM if adds else HOW.get(op, fixed.MAX)
        groups, divisor = _groups(x.shape, axes), math.prod(x.shape[axis] for axis in axes)
        found: list[Launch] = []
        for place, sizes in enumerate(groups):
            last = place == len(groups) - 1
            target = out if last else rt.empty((sizes[0], sizes[2]), x.dtype.name)
            count = divisor if last and op == "mean" else 0
            found += _reduced(rt, x, target, sizes, how, count)
            x = target
        return found

    return prepare


TABLE.update({op: _reduction(op) for op in ("sum", "mean", "max", "min", "prod", "all", "any")})


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@row("argmax")
def _argmax(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    (x,) = inputs
    outer, n, inner = _around(x.shape, attrs["axis"])
    bj, bn = _tile(outer * inner, n, inner)
    args = [x, out, outer * inner, n, inner]
    return [rt.kernel(fixed.argmax, (ceil_div(outer * inner, bj),), args, {"BJ": bj, "BN": bn})]


def _cumulative(how: Any) -> Row:
    def prepare(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
        (x,) = inputs
        if not x.shape:
            return [rt.copy(out, x)]
        outer, n, inner = _around(x.shape, attrs["axis"])
        bj = min(power_of_2(outer * inner), 128)
        args, constants = [x, out, outer * inner, n, inner], {"HOW": how.value, "BJ": bj}
        return [rt.kernel(fixed.cumulative, (ceil_div(outer * inner, bj),), args, constants)]

    return prepare


TABLE.update(cumulative_sum=_cumulative(fixed.SUM), cumulative_prod=_cumulative(fixed.PROD))


def _softmax(logarithm: bool) -> Row:
    def prepare(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
        (x,) = inputs
        outer, n, inner = _around(x.shape, attrs["axis"])
        bj, bn = _tile(outer * inner, n, inner)
        constants = {"LOG": logarithm, "BJ": bj, "BN": bn}
        return [rt.kernel(fixed.softmax, (ceil_div(outer * inner, bj),), [x, out, outer * inner, n, inner], constants)]

    return prepare


def _softmax_grad(logarithm: bool) -> Row:
    def prepare(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
        outer, n, inner = _around(out.shape, attrs["axis"])
        bj, bn = _tile(outer * inner, n, inner)
        args = [*inputs, out, outer * inner, n, inner]
        constants = {"LOG": logarithm, "BJ": bj, "BN": bn}
        return [rt.kernel(fixed.softmax_grad, (ceil_div(outer * inner, bj),), args, constants)]

    return prepare


TABLE.update(softmax=_softmax(False), log_softmax=_softmax(True))
TABLE.update(softmax_grad=_softmax_grad(False), log_softmax_grad=_softmax_grad(True))


@row("cross_entropy")
def _cross_entropy(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    logits, labels = inputs
    outer, n, inner = _around(logits.shape, 1)
    rows = outer * inner
    bj, bn = _tile(rows, n, inner)
    args = [logits, labels, out, rt.fault("cross_entropy"), rows, n, inner]
    return [rt.kernel(fixed.cross_entropy, (ceil_div(rows, bj),), args, {"BJ": bj, "BN": bn})]


@row("cross_entropy_grad")
def _cross_entropy_grad(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    g, logits, labels = inputs
    outer, n, inner = _around(logits.shape, 1)
    rows = outer * inner
    bj, bn = _tile(rows, n, inner)
    args = [g, logits, labels, out, rt.fault("cross_entropy_grad"), rows, n, inner]
    return [rt.kernel(fixed.cross_entropy_grad, (ceil_div(rows, bj),), args, {"BJ": bj, "BN": bn})]


# movement -------------------------------------------------------------------------------------------


@row("transpose")
def _transpose(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    return [rt.copy(out, inputs[0].transpose(attrs["axes"]))]


@row("slice")
def _slice(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    return [rt.copy(out, inputs[0][tuple(map(slice, attrs["starts"], attrs["stops"], attrs["steps"]))])]


@row("pad")
def _pad(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    (x,) = inputs
    inside = out[tuple(slice(low, low + size) for (low, _), size in zip(attrs["pads"], x.shape, strict=True))]
    return [rt.fill(out, attrs["value"]), *([rt.copy(inside, x)] if x.size else [])]


@row("concat")
def _concat(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    found, start, axis = [], 0, attrs["axis"]
    for x in inputs:
        end = start + x.shape[axis]
        if x.size:
            found.append(rt.copy(out[(slice(None),) * axis + (slice(start, end),)], x))
        start = end
    return found


@row("take")
def _take(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    x, indices = inputs
    _, size, inner = _around(x.shape, attrs["axis"])
    args = [x, indices, out, rt.fault("take"), out.size, indices.size, size, inner]
    return [rt.kernel(fixed.take, (ceil_div(out.size, 512),), args, {"BLOCK": 512})]


@row("take_along")
def _take_along(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    x, indices = inputs
    _, size, inner = _around(x.shape, attrs["axis"])
    args = [x, indices, out, rt.fault("take_along"), out.size, indices.shape[attrs["axis"]], size, inner]
    return [rt.kernel(fixed.take_along, (ceil_div(out.size, 512),), args, {"BLOCK": 512})]


@row("take_grad")
def _take_grad(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    g, indices = inputs
    outer, size, inner = _around(out.shape, attrs["axis"])
    tiles = ceil_div(inner, 32)
    args = [g, indices, out, rt.fault("take_grad"), indices.size, size, inner, tiles]
    return [rt.kernel(fixed.take_grad, (ceil_div(size, 8) * tiles, outer), args, {"BV": 8, "BT": 32, "BI": 32})]


@row("one_hot")
def _one_hot(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    args = [inputs[0], out, rt.fault("one_hot"), out.size, attrs["depth"]]
    return [rt.kernel(fixed.one_hot, (ceil_div(out.size, 512),), args, {"BLOCK": 512})]


@row("uniform")
def _uniform(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    constants = {"STREAM": attrs["stream"], "BLOCK": 256}
    return [rt.kernel(fixed.uniform, (ceil_div(out.size, 1024),), [inputs[0], out, out.size], constants)]


# products -------------------------------------------------------------------------------------------


@row("matmul")
def _matmul(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    if not inputs[0].size:
        return [rt.fill(out, 0)]
    found, product = _product(rt, out, inputs, attrs)
    return [*found, rt.product(product) if out.dtype.kind == "f" else whole_product(rt, product)]


def _product(
    rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]
) -> tuple[list[Launch], Product]:
    """(what is to be launched before, the product)."""
    x, y = inputs
    tx, ty = attrs["transpose_a"], attrs["transpose_b"]
    m, n = out.shape[-2:]
    batch = out.shape[:-2]
    k = x.shape[-2 if tx else -1]
    found: list[Launch] = []
    operands, strides = [], []
    for array in (x, y):
        if math.prod(array.shape[:-2]) not in (1, math.prod(batch)):
            whole = rt.empty((*batch, *array.shape[-2:]), array.dtype.name)
            found.append(rt.copy(whole, rt.xp.broadcast_to(array, whole.shape)))
            array = whole
        operands.append(array)
        strides.append(0 if math.prod(array.shape[:-2]) == 1 else array.shape[-1] * array.shape[-2])
    count = math.prod(batch)
    if strides[1] == 0 and not tx and count > 1 and strides[0]:  # one matrix for all: its rows are rows of one product
        m, count, strides = m * count, 1, [0, 0]
    (left, right), (step_x, step_y) = operands, strides
    return found, Product(out, left, right, count, m, n, k, tx, ty, step_x, step_y)


def ended_product(rt: Runtime, call: Any, ending: fusion.Ending) -> list[Launch]:
    """A product and the chain behind it: in one launch where that can be, otherwise one after the other."""
    after = ending.chain

    def apart() -> list[Launch]:
        first = launches(rt, call.op, call.out, call.inputs, call.attrs)
        return [*first, *chain(rt, after.inputs, after.steps, after.stores)]

    found, product = _product(rt, call.out, call.inputs, call.attrs)
    one = rt.ended(product._replace(out=ending.out, bias=ending.bias, relu=ending.relu), apart)
    return apart() if one is None else [*found, one]


def whole_product(rt: Runtime, p: Product) -> Launch:
    """Of integers, which no library multiplies."""
    xm, xk = (1, p.m) if p.transpose_x else (p.k, 1)
    yk, yn = (1, p.k) if p.transpose_y else (p.n, 1)
    grid = (ceil_div(p.m, 32), ceil_div(p.n, 32), p.batch)
    args = [p.x, p.y, p.out, p.m, p.n, p.k, xm, xk, yk, yn, p.stride_x, p.stride_y]
    return rt.kernel(fixed.whole_matmul, grid, args, {"BM": 32, "BN": 32})


def _geometry(
    image: tuple[int, ...], filters: tuple[int, ...], result: tuple[int, ...], attrs: Mapping[str, Any]
) -> dict[str, int]:
    names = ("S", "stride"), ("P", "padding"), ("D", "dilation")
    pairs = {f"{short}{side}": attrs[name][place] for short, name in names for place, side in enumerate("HW")}
    return {
        "C": image[1], "H": image[2], "W": image[3], "O": filters[0], "OH": result[2], "OW": result[3],
        "KH": filters[2], "KW": filters[3], **pairs, "GROUPS": attrs["groups"],
    }  # fmt: skip


def _blocks(rt: Runtime, dtype: str, columns: int) -> dict[str, Any]:
    """Tiles of a convolution: as wide as its channels allow, so that few lanes are wasted. Sizes that won a race on an
    H100; float64 takes what fits.
    """
    wide = min(max(power_of_2(columns), 16), 64)
    precision = rt.precision if dtype == "float32" else "ieee"
    high = 128 if precision == "ieee" and dtype == "float32" and wide == 64 else 64
    return {"PRECISION": precision, "BM": high, "BN": wide, "BK": 16}


@row("conv2d")
def _conv2d(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    x, w = inputs
    rows, columns = out.size // out.shape[1], w.shape[0] // attrs["groups"]
    blocks = _blocks(rt, x.dtype.name, columns)
    grid = (ceil_div(rows, blocks["BM"]), ceil_div(columns, blocks["BN"]), attrs["groups"])
    constants = {**_geometry(x.shape, w.shape, out.shape, attrs), **blocks}
    return [rt.kernel(fixed.conv2d, grid, [x, w, out, rows], constants)]


@row("conv2d_grad_input")
def _conv2d_grad_input(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    g, w = inputs
    rows, columns = out.size // out.shape[1], w.shape[1]
    blocks = _blocks(rt, g.dtype.name, columns)
    grid = (ceil_div(rows, blocks["BM"]), ceil_div(columns, blocks["BN"]), attrs["groups"])
    constants = {**_geometry(out.shape, w.shape, g.shape, attrs), **blocks}
    return [rt.kernel(fixed.conv2d_grad_input, grid, [g, w, out, rows], constants)]


@row("conv2d_grad_weight")
def _conv2d_grad_weight(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    g, x = inputs
    if not x.size:
        return [rt.fill(out, 0)]
    groups, rows, columns = attrs["groups"], g.size // g.shape[1], math.prod(out.shape[1:])
    blocks = _blocks(rt, g.dtype.name, columns)
    blocks["BK"] = 32 if g.dtype.name == "float32" else 16
    high = blocks["BM"] = min(max(power_of_2(out.shape[0] // groups), 16), 64)
    grid = (ceil_div(out.shape[0] // groups, high), ceil_div(columns, blocks["BN"]))
    splits = max(1, min(ceil_div(2 * MANY_BLOCKS, grid[0] * grid[1] * groups), ceil_div(rows, 8 * blocks["BK"])))
    chunk = ceil_div(ceil_div(rows, splits), blocks["BK"]) * blocks["BK"]
    splits = ceil_div(rows, chunk)
    parts = out if splits == 1 else rt.empty((splits, *out.shape), out.dtype.name)
    constants = {**_geometry(x.shape, out.shape, g.shape, attrs), **blocks}
    found = [rt.kernel(fixed.conv2d_grad_weight, (*grid, groups * splits), [g, x, parts, rows, chunk], constants)]
    return found if splits == 1 else [*found, *_reduced(rt, parts, out, (1, splits, out.size), fixed.SUM, 0)]


# pooling --------------------------------------------------------------------------------------------


def _window(image: tuple[int, ...], result: tuple[int, ...], attrs: Mapping[str, Any]) -> dict[str, Any]:
    names = ("K", "kernel"), ("S", "stride"), ("P", "padding")
    pairs = {f"{short}{side}": attrs[name][place] for short, name in names for place, side in enumerate("HW")}
    return {"H": image[2], "W": image[3], "OH": result[2], "OW": result[3], **pairs, "BLOCK": 256}


def _pool(maximum: bool) -> Row:
    def prepare(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
        (x,) = inputs
        constants = {**_window(x.shape, out.shape, attrs), "MAXIMUM": maximum}
        return [rt.kernel(fixed.pool2d, (ceil_div(out.size, 256),), [x, out, out.size], constants)]

    return prepare


TABLE.update(max_pool2d=_pool(True), avg_pool2d=_pool(False))


@row("max_pool2d_grad")
def _max_pool2d_grad(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    g, x = inputs
    constants = _window(x.shape, g.shape, attrs)
    return [rt.kernel(fixed.max_pool2d_grad, (ceil_div(out.size, 256),), [g, x, out, out.size], constants)]


@row("avg_pool2d_grad")
def _avg_pool2d_grad(rt: Runtime, out: Array, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[Launch]:
    (g,) = inputs
    constants = _window(out.shape, g.shape, attrs)
    return [rt.kernel(fixed.avg_pool2d_grad, (ceil_div(out.size, 256),), [g, out, out.size], constants)]
