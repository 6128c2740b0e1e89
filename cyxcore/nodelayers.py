"""How the nodes of a graph file compute: what a list of layers has no row for, on one or several inputs.

A build takes (scope, inputs, options) and gives the node's outputs, one symbol or several; an input that is not
connected is None. Axes count the batch as 0, as in PyTorch. What does not fit raises ShapeError or SpecError.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cyxcore import functional as F
from cyxcore import layertable
from cyxcore.attrs import MAX_CONST_ELEMENTS
from cyxcore.errors import ShapeError, SpecError
from cyxcore.layertable import LAYERS, Scope, attention, cell_of, recurrent_layers, transformer_layer
from cyxcore.symbols import Symbol
from cyxcore.values import TRACED, by_mode

Options = Mapping[str, Any]
Built = Symbol | tuple[Symbol, ...]
Build = Callable[[Scope, Sequence[Any], Options], Built]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "swish": F.silu,
    "mish": F.mish,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "softmax": F.softmax,
}


def layer(kind: str, **names: str) -> Build:
    """A row of the table of layers. names: its options by what the node calls them."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        row = LAYERS[kind]
        given = {name: options[names.get(name, name)] for name in row.options if names.get(name, name) in options}
        defaults = {name: option.default for name, option in row.options.items() if name not in given}
        return row.build(scope, inputs[0], {**defaults, **given})

    return build


def function(call: Callable[..., Any], *names: str) -> Build:
    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        result: Symbol = call(inputs[0], *(options[name] for name in names))
        return result

    return build


def _axes_of_sample(x: Any, count: int, what: str) -> None:
    if x.ndim != count + 1:
        raise ShapeError(f"expected {what} per sample, got {list(x.shape[1:])}; put a Reshape before it")


def _axis(x: Any, dim: int) -> int:
    """A dim of the file, in which 0 is the batch, as an axis of x."""
    axis = dim + x.ndim if dim < 0 else dim
    if not 1 <= axis < x.ndim:
        raise ShapeError(f"dim = {dim}: expected an axis 1..{x.ndim - 1} (0 is the batch) of {list(x.shape)}")
    return axis


def dense(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    given = {"out_features": options["units"], "bias": options["bias"]}
    result: Symbol = ACTIVATIONS[options["activation"]](LAYERS["Linear"].build(scope, inputs[0], given))
    return result


# convolutions -------------------------------------------------------------------------------------

IMAGE_AXES = {1: "(channels, length)", 2: "(channels, height, width)", 3: "(channels, depth, height, width)"}
_CONVOLUTIONS: dict[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _padding(options: Options, rank: int) -> tuple[tuple[int, int], ...]:
    """What goes before and behind each axis. "same": ceil(size / stride) windows, the odd element behind."""
    if options["padding"] == "valid":
        return ((0, 0),) * rank
    if options["padding"] == "same":
        spans = [d * (k - 1) for d, k in zip(options["dilation"], options["kernel_size"], strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)
    return tuple((side, side) for side in options["padding"])


def convolution(rank: int, depthwise: bool = False) -> Build:
    """weight: (filters, channels / groups, *kernel_size), as in torch's Conv1d, Conv2d and Conv3d."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        x = inputs[0]
        _axes_of_sample(x, rank + 1, IMAGE_AXES[rank])
        channels, kernel = x.shape[1], options["kernel_size"]
        groups = channels if depthwise else options["groups"]
        filters = channels * options["depth_multiplier"] if depthwise else options["filters"]
        if channels % groups or filters % groups:
            raise SpecError(f"groups = {groups} must divide the {channels} input channels and the {filters} filters")
        fan = {"kind": "kaiming_uniform", "fan_in": channels // groups * math.prod(kernel)}
        weight = scope.param("weight", (filters, channels // groups, *kernel), fan)
        bias = scope.param("bias", (filters,), fan) if options["bias"] else None
        sides = _padding(options, rank)
        even = all(low == high for low, high in sides)
        if not even:
            x = F.pad(x, ((0, 0), (0, 0), *sides))
        places = [options["stride"], tuple(low if even else 0 for low, _ in sides), options["dilation"]]
        if rank == 1:
            places = [one[0] for one in places]
        result: Symbol = ACTIVATIONS[options["activation"]](_CONVOLUTIONS[rank](x, weight, bias, *places, groups))
        return result

    return build


def conv_transpose(rank: int) -> Build:
    """weight: (channels, filters, *kernel_size), as in torch's ConvTranspose1d and ConvTranspose2d."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        x = inputs[0]
        _axes_of_sample(x, rank + 1, IMAGE_AXES[rank])
        kernel, filters = options["kernel_size"], options["filters"]
        fan = {"kind": "kaiming_uniform", "fan_in": filters * math.prod(kernel)}
        weight = scope.param("weight", (x.shape[1], filters, *kernel), fan)
        bias = scope.param("bias", (filters,), fan) if options["bias"] else None
        places = [options["stride"], options["padding"], options["output_padding"]]
        if rank == 1:
            result = F.conv_transpose1d(x, weight, bias, *(one[0] for one in places))
        else:
            result = F.conv_transpose2d(x, weight, bias, *places)
        activated: Symbol = ACTIVATIONS[options["activation"]](result)
        return activated

    return build


def pool(kind: str) -> Build:
    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        _axes_of_sample(inputs[0], 3, IMAGE_AXES[2])
        call = F.max_pool2d if kind == "max" else F.avg_pool2d
        result: Symbol = call(inputs[0], options["pool_size"], options["stride"], options["padding"])
        return result

    return build


def global_pool(kind: str) -> Build:
    """(C, ...) -> (C), or with channels_last (..., C) -> (C)."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        x = inputs[0]
        if x.ndim < 3:
            raise ShapeError(
                f"expected channels and at least one axis to pool over per sample, got {list(x.shape[1:])}"
            )
        first = options["data_format"] == "channels_first"
        axes = tuple(range(2, x.ndim) if first else range(1, x.ndim - 1))
        result: Symbol = x.max(axes) if kind == "max" else x.mean(axes)
        return result

    return build


def adaptive_pool(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """The window count of each axis; one number stands for all of them."""
    x, wanted = inputs[0], options["output_size"]
    if x.ndim not in (3, 4):
        raise ShapeError(f"expected {IMAGE_AXES[1]} or {IMAGE_AXES[2]} per sample, got {list(x.shape[1:])}")
    sizes = wanted * (x.ndim - 2) if len(wanted) == 1 else wanted
    if len(sizes) != x.ndim - 2:
        raise ShapeError(f"output_size = {list(wanted)}: expected one size, or one for each of {list(x.shape[2:])}")
    for size, wanted in zip(x.shape[2:], sizes, strict=True):
        if size * wanted > MOST_WINDOWS:
            raise ShapeError(f"output_size = {list(sizes)}: too many windows over {list(x.shape[2:])}")
    result: Symbol = F.adaptive_avg_pool1d(x, sizes[0]) if x.ndim == 3 else F.adaptive_avg_pool2d(x, sizes)
    return result


def upsample(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    _axes_of_sample(inputs[0], 3, IMAGE_AXES[2])
    result: Symbol = F.upsample_nearest2d(inputs[0], options["scale_factor"])
    return result


def batch_norm(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    x = inputs[0]
    if x.ndim < 2:
        raise ShapeError("expected at least one feature per sample")
    return layertable.batch_norm(scope, x, options)


# sequences ----------------------------------------------------------------------------------------


MOST_STEPS = 10_000  # that a recurrence takes one by one, each with nodes of its own in the graph
MOST_WINDOWS = 65_536  # of adaptive pooling, times the size of its axis: they are a matrix in the graph


def _steps(x: Any) -> None:
    _axes_of_sample(x, 2, "a sequence (steps, features)")


def _unrolled(x: Any) -> None:
    _steps(x)
    if x.shape[1] > MOST_STEPS:
        raise ShapeError(f"expected at most {MOST_STEPS} steps, got {list(x.shape[1:])}; take shorter pieces")


def recurrent(kind: str) -> Build:
    """Outputs: the sequence or its end, then the last state and (LSTM) cell of the last layer, (H) each.

    A first state, and of an LSTM its cell, goes with one layer in one direction.
    """

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        x, *given = inputs
        _unrolled(x)
        size, states = options["hidden_size"], F.CELLS[cell_of(kind, options)].states
        start = None
        if any(one is not None for one in given):
            if options["num_layers"] != 1 or options["bidirectional"]:
                raise SpecError("a first state goes with num_layers = 1 and bidirectional = false")
            for one in given:
                if one is not None and one.shape[1:] != (size,):
                    raise ShapeError(f"expected a first state [{size}], got {list(one.shape[1:])}")
            zeros = x._constant(0.0, x.dtype).broadcast_to(x.shape[0], size)
            start = [zeros if one is None else one for one in given][:states]
        outputs, ended = recurrent_layers(scope, x, cell_of(kind, options), options, start)
        ends = [F.concat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*ended, strict=True)]
        return (outputs if options["return_sequences"] else ends[0], *ends)

    return build


_MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "concat": lambda a, b: F.concat([a, b], a.ndim - 1),
    "sum": lambda a, b: a + b,
    "multiply": lambda a, b: a * b,
    "average": lambda a, b: (a + b) * 0.5,
}


def bidirectional(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """A recurrent layer in both directions, by torch's parameter names; merge_mode says what becomes of the two."""
    x, size = inputs[0], options["hidden_size"]
    _unrolled(x)
    outputs, ended = recurrent_layers(scope, x, cell_of(options["layer"], options), {**options, "bidirectional": True})
    merge = _MERGES[options["merge_mode"]]
    if options["return_sequences"]:
        result: Symbol = merge(outputs[:, :, :size], outputs[:, :, size:])
    else:
        result = merge(ended[0][0], ended[1][0])
    return result


def _of_size(x: Any, size: int, name: str) -> None:
    if x.shape[-1] != size:
        raise ShapeError(f"{name} = {size}: expected a sequence of {size} features, got {list(x.shape[1:])}")


def attend(kind: str) -> Build:
    """Attention of torch's parameter names. Keys and values that are not connected: self-attention, or the keys."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        query, key, value = (*inputs, None, None)[:3]
        key = query if key is None else key
        value = key if value is None else value
        for x in (query, key, value):
            _steps(x)
            _of_size(x, options["embed_dim"], "embed_dim")
        if key.shape != value.shape:
            raise ShapeError(
                f"expected keys and values of one shape, got {list(key.shape[1:])}, {list(value.shape[1:])}"
            )
        return attention(kind, scope, query, key, value, options)

    return build


def linear_attention(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    x, size, heads = inputs[0], options["embed_dim"], options["num_heads"]
    _steps(x)
    _of_size(x, size, "embed_dim")
    fan = {"kind": "kaiming_uniform", "fan_in": size}
    weight, bias = scope.param("in_proj.weight", (3 * size, size), fan), scope.param("in_proj.bias", (3 * size,), fan)
    both = F.linear(x, weight, bias)
    q, k, v = (F.split_heads(both[:, :, n * size : (n + 1) * size], heads) for n in range(3))
    mixed = F.join_heads(F.linear_attention(q, k, v))
    out, out_bias = scope.param("out_proj.weight", (size, size), fan), scope.param("out_proj.bias", (size,), fan)
    result: Symbol = F.linear(mixed, out, out_bias)
    return result


def transformer(kind: str) -> Build:
    """torch's TransformerEncoder, or with a memory TransformerDecoder, by the same parameter names (layers.0. …)."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        x, *memory = inputs
        for given in inputs:
            _steps(given)
            _of_size(given, options["d_model"], "d_model")
        inner = {**options, "num_heads": options["nhead"]}
        for number in range(options["num_layers"]):
            x = transformer_layer(kind, Scope(scope.builder, f"{scope.prefix}layers.{number}."), x, inner, *memory)
        result: Symbol = x
        return result

    return build


def positional_encoding(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    x = inputs[0]
    _steps(x)
    if x.shape[1] > options["max_len"]:
        raise ShapeError(f"max_len = {options['max_len']}: expected at most so many steps, got {list(x.shape[1:])}")
    if x.shape[1] > MAX_CONST_ELEMENTS and not options["learned"]:
        raise ShapeError(f"expected at most {MAX_CONST_ELEMENTS} steps, got {list(x.shape[1:])}; or learned = true")
    return LAYERS["PositionalEncoding"].build(scope, x, options)


def time_distributed(scope: Scope, inputs: Sequence[Any], inner: Build, options: Options) -> Built:
    """A node on each step of (T, ...) by itself; its parameters are called module.*, as in nn.TimeDistributed."""
    x = inputs[0]
    if x.ndim < 3:
        raise ShapeError(f"expected (steps, …) per sample, got {list(x.shape[1:])}")
    rows = x.reshape(-1, *x.shape[2:])
    y: Any = inner(Scope(scope.builder, f"{scope.prefix}module."), [rows], options)
    result: Symbol = y.reshape(x.shape[0], x.shape[1], *y.shape[1:])
    return result


# shapes -------------------------------------------------------------------------------------------


def permute(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    x, dims = inputs[0], options["dims"]
    if sorted(dims) != list(range(x.ndim)) or dims[0] != 0:
        raise ShapeError(f"dims = {list(dims)}: expected 0 (the batch), then each of 1..{x.ndim - 1} once")
    result: Symbol = x.permute(*dims)
    return result


def squeeze(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    x, dim = inputs[0], options["dim"]
    axes = [axis for axis in range(1, x.ndim) if x.shape[axis] == 1] if dim is None else [_axis(x, dim)]
    if dim is not None and x.shape[axes[0]] != 1:
        raise ShapeError(f"dim = {dim}: expected an axis of size 1 of {list(x.shape)}")
    result: Symbol = x.squeeze(tuple(axes))
    return result


def unsqueeze(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    x, dim = inputs[0], options["dim"]
    axis = dim + x.ndim + 1 if dim < 0 else dim
    if not 1 <= axis <= x.ndim:
        raise ShapeError(f"dim = {dim}: expected a place 1..{x.ndim} (0 is the batch) in {list(x.shape)}")
    result: Symbol = x.expand_dims(axis)
    return result


def softmax(call: Callable[..., Any]) -> Build:
    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        result: Symbol = call(inputs[0], _axis(inputs[0], options["dim"]))
        return result

    return build


def split(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """Parts along an axis: num_splits equal ones, or those of the given sizes."""
    x = inputs[0]
    axis, count = _axis(x, options["dim"]), options["num_splits"]
    sizes = options["sizes"]
    if sizes is None:
        if x.shape[axis] % count:
            raise ShapeError(f"num_splits = {count} does not divide axis {axis} of {list(x.shape)}")
        sizes = (x.shape[axis] // count,) * count
    if sum(sizes) != x.shape[axis]:
        raise ShapeError(f"sizes = {list(sizes)}: expected a sum of {x.shape[axis]}, axis {axis} of {list(x.shape)}")
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(low, low + size))] for low, size in zip(starts, sizes, strict=True))


def concatenate(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    axis = _axis(inputs[0], options["dim"])
    shapes = [x.shape[:axis] + x.shape[axis + 1 :] for x in inputs]
    if len({x.ndim for x in inputs}) > 1 or len(set(shapes)) > 1:
        raise ShapeError(f"expected inputs that differ in axis {axis} only")
    result: Symbol = F.concat(inputs, axis)
    return result


def merge(kind: str) -> Build:
    """Sum, product or mean of two or more inputs. An axis of size 1 stretches to the others' size."""

    def build(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
        ranks = {x.ndim for x in inputs}
        sizes = [{size for size in axis if size != 1} for axis in zip(*(x.shape for x in inputs), strict=False)]
        if len(ranks) > 1 or any(len(axis) > 1 for axis in sizes):
            raise ShapeError("expected inputs of one shape (a size of 1 stretches)")
        result = inputs[0]
        for x in inputs[1:]:
            result = result * x if kind == "multiply" else result + x
        out: Symbol = result * (1.0 / len(inputs)) if kind == "average" else result
        return out

    return build


# values -------------------------------------------------------------------------------------------


def constant(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    value = scope.builder.constant(options["value"], "float32")
    shape = value.shape if options["shape"] is None else options["shape"]
    if value.ndim and shape != value.shape:
        raise ShapeError(f"shape = {list(shape)}: the value has the shape {list(value.shape)}; leave shape out")
    return value.broadcast_to(scope.builder.batch_size, *shape)


def parameter(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """A trained tensor of its own, the same for every row."""
    kind = options["init"]
    init = {"kind": kind, **({"std": options["std"]} if kind == "normal" else {})}
    return scope.param("value", options["shape"], init).broadcast_to(scope.builder.batch_size, *options["shape"])


def _standard_normal(like: Any) -> Any:
    """Box and Muller's transform of two uniform draws."""
    radius = ((1.0 - like._uniform(like.shape)).log() * -2.0).sqrt()
    return radius * (like._uniform(like.shape) * (2.0 * math.pi)).cos()


def gaussian_sample(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """mean + exp(log_variance / 2) ε, ε drawn anew for each row and step; the mean in inference (Kingma 2014)."""
    mean, log_variance = inputs
    if mean.shape != log_variance.shape:
        raise ShapeError("expected a mean and a log_variance of one shape")
    drawn = mean + (log_variance * 0.5).exp() * _standard_normal(mean)
    result: Symbol = by_mode(TRACED, lambda: drawn, lambda: mean)
    return result


def kl_divergence(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """weight times the distance of N(mean, exp(log_variance)) from N(0, 1), per row (Kingma 2014, appendix B): (N,)."""
    mean, log_variance = inputs
    if mean.shape != log_variance.shape:
        raise ShapeError("expected a mean and a log_variance of one shape")
    terms = mean.square() + log_variance.exp() - 1.0 - log_variance
    result: Symbol = terms.flatten(1).sum(1) * (0.5 * options["weight"])
    return result


def gradient_reversal(x: Any) -> Any:
    """x to within 2^-16, and minus its gradient (Ganin 2015, arXiv 1409.7495): 2 round(x) - x, as rounding has none."""
    rounded = (x * 65536.0 + 0.5).floor() * (1.0 / 65536.0)
    return rounded * 2.0 - x


def _flipped(x: Any, axis: int, probability: float) -> Any:
    chosen = x._uniform((x.shape[0],) + (1,) * (x.ndim - 1)) < probability
    return F.where(chosen, x[(slice(None),) * axis + (slice(None, None, -1),)], x)


def augmentation(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """Random changes of each row, in training only."""
    x = changed = inputs[0]
    for name, axis in (("horizontal_flip", -1), ("vertical_flip", -2)):
        if options[name]:
            _axes_of_sample(x, 3, IMAGE_AXES[2])
            changed = _flipped(changed, x.ndim + axis, options[name])
    if options["brightness"]:
        low = x._uniform((x.shape[0],) + (1,) * (x.ndim - 1)) * 2.0 - 1.0
        changed = changed + low * options["brightness"]
    if options["noise"]:
        changed = changed + _standard_normal(x) * options["noise"]
    result: Symbol = by_mode(TRACED, lambda: changed, lambda: x)
    return result


def normalize(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """By statistics of the training rows (method), or by the numbers given: one, or one per channel or feature."""
    x, mean, std = inputs[0], options["mean"], options["std"]
    if mean is None and std is None:
        return LAYERS["Normalize"].build(scope, x, {"method": options["method"]})
    count = x.shape[1] if x.ndim == 4 else x.shape[-1]
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) not in (1, count):
            raise ShapeError(f"{name}: expected 1 or {count} numbers for {list(x.shape[1:])}, got {len(given)}")

    def shaped(values: tuple[float, ...]) -> Any:
        return scope.builder.constant(list(values), "float32").reshape(*((-1, 1, 1) if x.ndim == 4 else (-1,)))

    result: Symbol = (x - shaped(mean or (0.0,))) / shaped(std or (1.0,))
    return result


def one_hot(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    """Numbers of a sample as indices: (...) -> (..., num_classes)."""
    result: Symbol = F.one_hot(inputs[0].astype("int64"), options["num_classes"]).astype("float32")
    return result


def same(scope: Scope, inputs: Sequence[Any], options: Options) -> Built:
    result: Symbol = inputs[0]
    return result
