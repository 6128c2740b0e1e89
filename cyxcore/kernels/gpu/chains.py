"""Element-wise calls as the source of one Triton kernel.

A chain is calls whose results have one shape, each reading arrays of that shape or of one that broadcasts to it. A
value that a later call of the chain reads stays in a register; only what is needed afterwards is stored.
Contraction of a * b + c is off (cuda.py), so that a chain gives the bits its calls would give one by one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Shape = tuple[int, ...]

TYPES = {
    "bool": "tl.int1",
    "uint8": "tl.uint8",
    "int32": "tl.int32",
    "int64": "tl.int64",
    "float32": "tl.float32",
    "float64": "tl.float64",
}

# op -> its expression; {0}, {1}, ... are its inputs and {name} its attributes. `kind:` before it: for that kind only.
EXPRESSIONS: dict[str, str | dict[str, str]] = {
    "neg": {"int": "0 - {0}", "": "-{0}"},
    "abs": {"bool": "{0}", "uint": "{0}", "": "tl.abs({0})"},
    "relu": {"uint": "{0}", "": "tl.where({0} < 0, 0, {0})"},
    "square": "{0} * {0}",
    "sign": {"uint": "tl.where({0} > 0, 1, {0})", "": "tl.where({0} > 0, 1, tl.where({0} < 0, -1, {0}))"},
    "floor": {"float": "tl.floor({0})", "": "{0}"},
    "exp": "exp({0})",
    "log": "log({0})",
    "log1p": "log1p({0})",
    "sqrt": "sqrt({0})",
    "tanh": "tanh({0})",
    "sigmoid": "sigmoid({0})",
    "erf": "erf({0})",
    "erfc": "erfc({0})",
    "ndtr": "ndtr({0})",
    "gelu": "gelu({0})",
    "gelu_grad": "gelu_grad({0}, {1})",
    "softplus": "softplus({0})",
    "softplus_grad": "softplus_grad({0}, {1})",
    "sin": "sin({0})",
    "cos": "cos({0})",
    "logical_not": "{0} == 0",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "maximum": "maximum({0}, {1})",
    "minimum": "minimum({0}, {1})",
    "div": "div({0}, {1})",
    "pow": "power({0}, {1})",
    "atan2": "atan2({0}, {1})",
    "equal": "{0} == {1}",
    "not_equal": "{0} != {1}",
    "less": "{0} < {1}",
    "less_equal": "{0} <= {1}",
    "greater": "{0} > {1}",
    "greater_equal": "{0} >= {1}",
    "logical_and": "({0} != 0) & ({1} != 0)",
    "logical_or": "({0} != 0) | ({1} != 0)",
    "where": "tl.where({0}, {1}, {2})",
    "cast": "{0}",
    "broadcast_to": "{0}",
    "reshape": "{0}",
    "sgd_update": "{0} - {2} * decayed({1}, {0}, {weight_decay})",
    "momentum": "{momentum} * {0} + decayed({1}, {2}, {weight_decay})",
    "nesterov_update": "{0} - {3} * (decayed({1}, {0}, {weight_decay}) + {momentum} * {2})",
    "axpy_update": "{0} - {2} * {1}",
    "adam_m": "{beta} * {0} + {one_less_beta} * decayed({1}, {2}, {weight_decay})",
    "adam_v": "{beta} * {0} + {one_less_beta} * decayed_square({1}, {2}, {weight_decay})",
    "adam_update": "adam({0}, {1}, {2}, {3}, {4}, {beta1}, {beta2}, {eps}, {decoupled_weight_decay})",
}
FUNCTIONS = (
    "maximum minimum div sqrt exp log log1p tanh erf erfc ndtr gelu gelu_grad sin cos power atan2 sigmoid softplus "
    "softplus_grad decayed decayed_square adam".split()
)  # of helpers.py
_AS_INTEGERS = frozenset("equal not_equal less less_equal greater greater_equal".split())


class Read(NamedTuple):
    """An array that a chain loads."""

    dtype: str
    strides: tuple[int, ...] | None  # per axis of `sizes`, in elements; None: element i of the result reads element i


class Step(NamedTuple):
    """One call. Inputs are places: of reads, then of the results of earlier steps."""

    op: str
    inputs: tuple[int, ...]
    attrs: tuple[tuple[str, float], ...]
    dtype: str


class Chain(NamedTuple):
    """What a kernel's source depends on, and nothing else (it is the key it is kept under)."""

    sizes: tuple[int, ...]  # of the axes that strided reads tell apart, the outermost left out
    reads: tuple[Read, ...]
    steps: tuple[Step, ...]
    stores: tuple[int, ...]  # places of steps
    wide: bool  # 2**31 elements or more


def kind_of(dtype: str) -> str:
    return "float" if dtype.startswith("float") else dtype.rstrip("0123456789")


def numbers(attrs: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """The attributes an expression may name, sorted."""
    found = {name: float(value) for name, value in attrs.items() if isinstance(value, (int, float))}
    if "beta" in found:
        found["one_less_beta"] = 1.0 - found["beta"]
    return tuple(sorted(found.items()))


def expression(op: str, dtype: str, inputs: Sequence[str], attrs: Mapping[str, float]) -> str:
    found = EXPRESSIONS[op]
    if isinstance(found, dict):
        kind = kind_of(dtype)
        found = found.get(kind) or (found.get("int") if kind == "uint" else None) or found[""]
    if dtype == "bool" and op in _AS_INTEGERS:  # of one bit, 1 would be -1
        inputs = [f"{name}.to(tl.int32)" for name in inputs]
    return found.format(*inputs, **{name: repr(value) for name, value in attrs.items()})


def broadcast_strides(shape: Shape, result: Shape) -> tuple[int, ...]:
    """Strides in elements by which a contiguous array of `shape` is read as one of shape `result`."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(0 if size == 1 else step)
        step *= size
    return (0,) * (len(result) - len(shape)) + tuple(reversed(strides))


def collapse(result: Shape, strides: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Axes merged where every reader walks through them as through one; axes of size 1 are gone."""
    axes = [axis for axis, size in enumerate(result) if size != 1]
    merged: list[list[int]] = []  # [size, stride of each reader...], outermost first
    for axis in axes:
        row = [result[axis], *(one[axis] for one in strides)]
        if merged and all(before == now * row[0] for before, now in zip(merged[-1][1:], row[1:], strict=True)):
            merged[-1] = [merged[-1][0] * row[0], *row[1:]]
        else:
            merged.append(row)
    sizes = tuple(row[0] for row in merged)
    return sizes, [tuple(row[1 + place] for row in merged) for place in range(len(strides))]


def reads(result: Shape, inputs: Sequence[tuple[Shape, str]]) -> tuple[tuple[int, ...], tuple[Read, ...]]:
    """(sizes of the inner axes, how each input is read)."""
    strided = [place for place, (shape, _) in enumerate(inputs) if math.prod(shape) != math.prod(result)]
    sizes, strides = collapse(result, [broadcast_strides(inputs[place][0], result) for place in strided])
    found = dict(zip(strided, strides, strict=True))
    rows = tuple(Read(dtype, found.get(place)) for place, (_, dtype) in enumerate(inputs))
    only_scalars = all(not any(row) for row in strides)
    return () if only_scalars else sizes[1:], rows


def _load(name: str, pointer: str, read: Read, scalar: bool) -> str:
    if read.strides is None:
        text = f"tl.load({pointer} + i, mask=inside)"
    elif scalar:
        text = f"tl.load({pointer})"
    else:
        terms = [
            f"x{axis} * {stride}" if stride != 1 else f"x{axis}" for axis, stride in enumerate(read.strides) if stride
        ]
        text = f"tl.load({pointer} + {' + '.join(terms)}, mask=inside)"
    return f"    {name} = {text} != 0" if read.dtype == "bool" else f"    {name} = {text}"


def source(chain: Chain, name: str) -> str:
    """The kernel's source. Its arguments: a pointer per read, a pointer per store, n, BLOCK."""
    pointers = [f"p{place}" for place in range(len(chain.reads))] + [f"q{place}" for place in range(len(chain.stores))]
    block = "tl.program_id(0).to(tl.int64)" if chain.wide else "tl.program_id(0)"
    lines = [
        "@triton.jit",
        f"def {name}({', '.join(pointers)}, n, BLOCK: tl.constexpr):",
        f"    i = {block} * BLOCK + tl.arange(0, BLOCK)",
        "    inside = i < n",
    ]
    rest = "i"
    for axis in range(len(chain.sizes), 0, -1):
        lines.append(f"    x{axis} = {rest} % {chain.sizes[axis - 1]}")
        lines.append(f"    r{axis} = {rest} // {chain.sizes[axis - 1]}")
        rest = f"r{axis}"
    lines.append(f"    x0 = {rest}")
    for place, read in enumerate(chain.reads):
        scalar = read.strides is not None and not any(read.strides)
        lines.append(_load(f"v{place}", f"p{place}", read, scalar))
    types = [read.dtype for read in chain.reads] + [step.dtype for step in chain.steps]
    for place, step in enumerate(chain.steps, len(chain.reads)):
        inputs = [f"v{one}" for one in step.inputs]
        text = expression(step.op, types[step.inputs[-1]], inputs, dict(step.attrs))
        if step.dtype == "bool" and step.op in ("cast", "broadcast_to", "reshape"):
            text = f"{text} != 0"
        lines.append(f"    v{place} = ({text}).to({TYPES[step.dtype]})")
    for place, value in enumerate(chain.stores):
        stored = f"v{value}.to(tl.uint8)" if types[value] == "bool" else f"v{value}"
        lines.append(f"    tl.store(q{place} + i, {stored}, mask=inside)")
    return "\n".join(lines) + "\n"
