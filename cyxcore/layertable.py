"""Every kind of layer a list of layers may name: its options, and how it is built. To add one: a row in LAYERS.

Kinds, options and defaults are torch's; input sizes are inferred.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cyxcore import functional as F
from cyxcore.errors import ShapeError, SpecError
from cyxcore.options import Option, axes, choice, flag, natural, number, optional, pair, sizes
from cyxcore.symbols import Builder, Symbol
from cyxcore.values import TRACED


class Scope(NamedTuple):
    """Where a layer's parameters go."""

    builder: Builder
    prefix: str  # "2." for the third layer

    def param(self, name: str, shape: Sequence[int], init: Mapping[str, Any], trainable: bool = True) -> Symbol:
        return self.builder.param(self.prefix + name, shape, init, trainable)


class Layer(NamedTuple):
    options: Mapping[str, Option]
    build: Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]


# layers -------------------------------------------------------------------------------------------


def _fan(fan_in: int) -> dict[str, Any]:
    return {"kind": "kaiming_uniform", "fan_in": fan_in}


def _linear(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    if x.ndim < 2:
        raise ShapeError(f"Linear: expected at least one feature per sample, got {x.shape[1:]}")
    inputs, outputs = x.shape[-1], options["out_features"]
    weight = scope.param("weight", (outputs, inputs), _fan(inputs))
    return F.linear(x, weight, scope.param("bias", (outputs,), _fan(inputs)) if options["bias"] else None)


def _image(kind: str, x: Symbol) -> None:
    if x.ndim != 4:
        raise ShapeError(
            f"{kind}: expected an image (channels, height, width) per sample, got {x.shape[1:]}; "
            f"put a Reshape before it"
        )


def _sequence(kind: str, x: Symbol) -> None:
    if x.ndim != 3:
        raise ShapeError(
            f"{kind}: expected a sequence of two axes per sample, got {x.shape[1:]}; put a Reshape before it"
        )


def _grouped(kind: str, x: Symbol, options: Mapping[str, Any]) -> None:
    groups, outputs = options["groups"], options["out_channels"]
    if x.shape[1] % groups or outputs % groups:
        raise SpecError(f"{kind}: groups={groups} must divide the {x.shape[1]} input and {outputs} output channels")


def _fitting(
    kind: str, check: Callable[[str, Symbol], None], call: Callable[..., Any], *names: str
) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    """A function of samples that have the right axes, and of some options."""

    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        check(kind, x)
        result: Symbol = call(x, *(options[name] for name in names))
        return result

    return build


def _conv2d(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _image("Conv2d", x)
    groups, outputs, kernel = options["groups"], options["out_channels"], options["kernel_size"]
    _grouped("Conv2d", x, options)
    fan_in = x.shape[1] // groups * kernel[0] * kernel[1]
    weight = scope.param("weight", (outputs, x.shape[1] // groups, *kernel), _fan(fan_in))
    bias = scope.param("bias", (outputs,), _fan(fan_in)) if options["bias"] else None
    return F.conv2d(x, weight, bias, options["stride"], options["padding"], options["dilation"], groups)


def _batch_norm(kind: str, ranks: tuple[int, ...]) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        if x.ndim not in ranks:
            raise ShapeError(
                f"{kind}: expected {' or '.join(str(r - 1) for r in ranks)} axes per sample, got {x.shape[1:]}"
            )
        return batch_norm(scope, x, options)

    return build


def batch_norm(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    """Per feature or channel, the first axis of a sample; running statistics in inference."""
    size = (x.shape[1],)
    weight = scope.param("weight", size, {"kind": "ones"}) if options["affine"] else None
    bias = scope.param("bias", size, {"kind": "zeros"}) if options["affine"] else None
    mean = scope.param("running_mean", size, {"kind": "zeros"}, trainable=False)
    var = scope.param("running_var", size, {"kind": "ones"}, trainable=False)
    result: Symbol = F.batch_norm(x, mean, var, weight, bias, TRACED, options["momentum"], options["eps"])
    return result


def _layer_norm(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    """Over the last axis, or over the last axes named by normalized_shape."""
    shape = options["normalized_shape"] or x.shape[-1:]
    weight = scope.param("weight", shape, {"kind": "ones"}) if options["affine"] else None
    bias = scope.param("bias", shape, {"kind": "zeros"}) if options["affine"] else None
    result: Symbol = F.layer_norm(x, shape, weight, bias, options["eps"])
    return result


def _flatten(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    return x.flatten(1)


def _reshape(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    wanted, have = options["shape"], x.size // x.shape[0]
    known = 1
    for size in wanted:
        known *= size if size != -1 else 1
    if have % known or (-1 not in wanted and have != known):
        raise ShapeError(f"Reshape: the {have} elements of {x.shape[1:]} do not fill {wanted}")
    return x.reshape(x.shape[0], *(have // known if size == -1 else size for size in wanted))


def statistic_shape(sample: Sequence[int]) -> tuple[int, ...]:
    """What shares a mean when inputs are scaled: each feature (F,), (T, F); each channel of an image (C,
    H, W).
    """
    if len(sample) == 3:
        return sample[0], 1, 1
    return (sample[-1],) if 1 <= len(sample) <= 2 else ()


def _normalize(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    """(x - mean) / std, or (x - min) / range; filled from the training rows, constant features stay 0."""
    if x.builder.nodes[x.node].op != "input":
        raise SpecError("Normalize: its statistics are those of the raw input, so it must be the first layer")
    shift, scale = ("mean", "std") if options["method"] == "standard" else ("min", "range")
    shape = statistic_shape(x.shape[1:])
    low = scope.param(shift, shape, {"kind": f"input_{shift}"}, trainable=False)
    return (x - low) / scope.param(scale, shape, {"kind": f"input_{scale}"}, trainable=False)


def _denormalize(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    """x * std + mean of the training targets: a regression model computes in scaled units, answers in raw
    ones.
    """
    mean = scope.param("mean", x.shape[1:], {"kind": "target_mean"}, trainable=False)
    return x * scope.param("std", x.shape[1:], {"kind": "target_std"}, trainable=False) + mean


def _function(call: Callable[..., Any], *names: str) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        result: Symbol = call(x, *(options[name] for name in names))
        return result

    return build


def _dropout(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    result: Symbol = F.dropout(x, options["p"], TRACED)
    return result


def _conv1d(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _sequence("Conv1d", x)
    groups, outputs, kernel = options["groups"], options["out_channels"], options["kernel_size"]
    _grouped("Conv1d", x, options)
    fan = _fan(x.shape[1] // groups * kernel)
    weight = scope.param("weight", (outputs, x.shape[1] // groups, kernel), fan)
    bias = scope.param("bias", (outputs,), fan) if options["bias"] else None
    result: Symbol = F.conv1d(x, weight, bias, options["stride"], options["padding"], options["dilation"], groups)
    return result


def _depthwise(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _image("DepthwiseConv2d", x)
    channels, kernel = x.shape[1], options["kernel_size"]
    outputs, fan = channels * options["depth_multiplier"], _fan(kernel[0] * kernel[1])
    weight = scope.param("weight", (outputs, 1, *kernel), fan)
    bias = scope.param("bias", (outputs,), fan) if options["bias"] else None
    result: Symbol = F.conv2d(x, weight, bias, options["stride"], options["padding"], options["dilation"], channels)
    return result


def _conv_transpose2d(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _image("ConvTranspose2d", x)
    groups, outputs, kernel = options["groups"], options["out_channels"], options["kernel_size"]
    _grouped("ConvTranspose2d", x, options)
    fan = _fan(outputs // groups * kernel[0] * kernel[1])
    weight = scope.param("weight", (x.shape[1], outputs // groups, *kernel), fan)
    bias = scope.param("bias", (outputs,), fan) if options["bias"] else None
    places = (options["stride"], options["padding"], options["output_padding"], groups, options["dilation"])
    result: Symbol = F.conv_transpose2d(x, weight, bias, *places)
    return result


def _channel_norm(kind: str) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    """Group and instance norm."""

    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        if x.ndim < 2 or (kind != "GroupNorm" and x.ndim < 3):
            raise ShapeError(f"{kind}: expected channels in front of each sample, got {x.shape[1:]}")
        size = (x.shape[1],)
        weight = scope.param("weight", size, {"kind": "ones"}) if options["affine"] else None
        bias = scope.param("bias", size, {"kind": "zeros"}) if options["affine"] else None
        result: Symbol = F.group_norm(x, options.get("num_groups", x.shape[1]), weight, bias, options["eps"])
        return result

    return build


def _rms_norm(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    shape = options["normalized_shape"] or x.shape[-1:]
    weight = scope.param("weight", shape, {"kind": "ones"}) if options["affine"] else None
    result: Symbol = F.rms_norm(x, shape, weight, options["eps"])
    return result


def _embedding(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    """Numbers of a sample as indices."""
    shape = (options["num_embeddings"], options["embedding_dim"])
    result: Symbol = F.embedding(x, scope.param("weight", shape, {"kind": "normal", "std": 1.0}))
    return result


def recurrent_layers(
    scope: Scope, x: Symbol, cell: str, options: Mapping[str, Any], start: Sequence[Symbol] | None = None
) -> tuple[Symbol, list[tuple[Symbol, ...]]]:
    """(N, T, C) -> (N, T, H) of the last layer, both directions side by side; and its last state in each direction.

    start: the first state, (N, H) each, of one layer in one direction; zeros when absent.
    """
    size, directions = options["hidden_size"], ("", "_reverse") if options["bidirectional"] else ("",)
    rows, fan = F.CELLS[cell].gates * size, _fan(size)
    ended: list[tuple[Symbol, ...]] = []
    for layer in range(options["num_layers"]):
        if layer:
            x = F.dropout(x, options["dropout"], TRACED)
        outputs, ended = [], []
        for suffix in directions:
            name = f"l{layer}{suffix}"
            parts = [
                scope.param(f"weight_ih_{name}", (rows, x.shape[2]), fan),
                scope.param(f"weight_hh_{name}", (rows, size), fan),
            ]
            if options["bias"]:
                parts += [scope.param(f"bias_{which}_{name}", (rows,), fan) for which in ("ih", "hh")]
            found, state = F.recur(cell, x, F.Weights(*parts), start, reverse=bool(suffix))
            outputs.append(found)
            ended.append(state)
        x = F.concat(outputs, 2) if len(outputs) > 1 else outputs[0]
    return x, ended


def cell_of(kind: str, options: Mapping[str, Any]) -> str:
    """A key of functional.CELLS."""
    return f"rnn_{options['nonlinearity']}" if kind == "RNN" else kind.lower()


def _recurrent(kind: str) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        """(T, C) -> (T, H), or the last states of the last layer (H): both directions' side by side."""
        _sequence(kind, x)
        outputs, ended = recurrent_layers(scope, x, cell_of(kind, options), options)
        if options["return_sequences"]:
            return outputs
        result: Symbol = F.concat([state[0] for state in ended], 1) if len(ended) > 1 else ended[0][0]
        return result

    return build


def attention(
    kind: str,
    scope: Scope,
    query: Symbol,
    key: Symbol,
    value: Symbol,
    options: Mapping[str, Any],
    prefix: str = "",
) -> Symbol:
    """torch's MultiheadAttention with batch_first, by the same parameter names.

    query: (N, T, E), key and value: (N, S, E).
    """
    for x in (query, key, value):
        _sequence(kind, x)
    size, heads = query.shape[2], options["num_heads"]
    if size % heads:
        raise SpecError(f"{kind}: num_heads={heads} must divide the {size} features")
    result, _ = F.multi_head_attention(
        query,
        key,
        value,
        heads,
        scope.param(f"{prefix}in_proj_weight", (3 * size, size), {"kind": "uniform", "bound": (1.5 / size) ** 0.5}),
        scope.param(f"{prefix}in_proj_bias", (3 * size,), {"kind": "zeros"}),
        scope.param(f"{prefix}out_proj.weight", (size, size), _fan(size)),
        scope.param(f"{prefix}out_proj.bias", (size,), {"kind": "zeros"}),
        is_causal=options["causal"],
        dropout_p=options["dropout"],
        training=TRACED,
    )
    return result


def _self_attention(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    return attention("SelfAttention", scope, x, x, x, options)


def transformer_layer(
    kind: str, scope: Scope, x: Symbol, options: Mapping[str, Any], memory: Symbol | None = None
) -> Symbol:
    """torch's TransformerEncoderLayer with batch_first, or with a memory its TransformerDecoderLayer, by the same
    parameter names.
    """
    _sequence(kind, x)
    size, wide, p = x.shape[2], options["dim_feedforward"], options["dropout"]

    def norm(place: int, value: Symbol) -> Symbol:
        weight = scope.param(f"norm{place}.weight", (size,), {"kind": "ones"})
        bias = scope.param(f"norm{place}.bias", (size,), {"kind": "zeros"})
        result: Symbol = F.layer_norm(value, (size,), weight, bias, options["eps"])
        return result

    def dense(place: int, value: Symbol, inputs: int, outputs: int) -> Symbol:
        weight = scope.param(f"linear{place}.weight", (outputs, inputs), _fan(inputs))
        result: Symbol = F.linear(value, weight, scope.param(f"linear{place}.bias", (outputs,), _fan(inputs)))
        return result

    def feed_forward(value: Symbol) -> Symbol:
        inner = dense(1, value, size, wide)
        inner = F.gelu(inner) if options["activation"] == "gelu" else F.relu(inner)
        return dense(2, F.dropout(inner, p, TRACED), wide, size)

    def attend(value: Symbol) -> Symbol:
        return attention(kind, scope, value, value, value, options, "self_attn.")

    def look(value: Symbol) -> Symbol:
        assert memory is not None
        return attention(kind, scope, value, memory, memory, {**options, "causal": False}, "multihead_attn.")

    parts = [attend, feed_forward] if memory is None else [attend, look, feed_forward]
    for place, part in enumerate(parts, 1):
        if options["norm_first"]:
            x = x + F.dropout(part(norm(place, x)), p, TRACED)
        else:
            x = norm(place, x + F.dropout(part(x), p, TRACED))
    return x


def _encoder_layer(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    return transformer_layer("TransformerEncoderLayer", scope, x, options)


def _positions(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _sequence("PositionalEncoding", x)
    place = F.sinusoidal_positions(x, x.shape[1], x.shape[2])
    if options["learned"]:
        place = scope.param("weight", x.shape[1:], {"kind": "normal", "std": 0.02})
    result: Symbol = F.dropout(x + place, options["dropout"], TRACED)
    return result


def _prelu(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    shape = (options["num_parameters"],)
    result: Symbol = F.prelu(x, scope.param("weight", shape, {"kind": "constant", "value": options["init"]}))
    return result


def _permute(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    dims = options["dims"]
    if sorted(dims) != list(range(x.ndim - 1)):
        raise ShapeError(f"Permute: expected each axis 0..{x.ndim - 2} of {x.shape[1:]} once, got {list(dims)}")
    return x.permute(0, *(dim + 1 for dim in dims))


_BIAS = Option(flag, True)
_EPS = Option(number(0.0, 1.0), 1e-5)
_WINDOW = ("kernel_size", "stride", "padding")
_POOL = {
    "kernel_size": Option(pair(1)),
    "stride": Option(optional(pair(1)), None),
    "padding": Option(pair(0), (0, 0)),
}
_CONV = {
    "out_channels": Option(natural(1)),
    "kernel_size": Option(pair(1)),
    "stride": Option(pair(1), (1, 1)),
    "padding": Option(pair(0), (0, 0)),
    "dilation": Option(pair(1), (1, 1)),
    "groups": Option(natural(1), 1),
    "bias": _BIAS,
}
_NORM = {"eps": _EPS, "momentum": Option(number(0.0, 1.0), 0.1), "affine": Option(flag, True)}

_POOL_1D = {
    "kernel_size": Option(natural(1)),
    "stride": Option(optional(natural(1)), None),
    "padding": Option(natural(0), 0),
}
_CONV_1D = {
    "out_channels": Option(natural(1)),
    "kernel_size": Option(natural(1)),
    "stride": Option(natural(1), 1),
    "padding": Option(natural(0), 0),
    "dilation": Option(natural(1), 1),
    "groups": Option(natural(1), 1),
    "bias": _BIAS,
}
_DEPTHWISE = {key: option for key, option in _CONV.items() if key not in ("out_channels", "groups")}
_SHAPED = {"normalized_shape": Option(optional(sizes), None), "affine": Option(flag, True)}
_DROP = Option(number(0.0, 1.0), 0.0)
_RECURRENT = {
    "hidden_size": Option(natural(1)),
    "num_layers": Option(natural(1), 1),
    "bidirectional": Option(flag, False),
    "bias": _BIAS,
    "dropout": _DROP,
    "return_sequences": Option(flag, False),
}
_ATTENTION = {"num_heads": Option(natural(1)), "dropout": _DROP, "causal": Option(flag, False)}
_ALPHA = {"alpha": Option(number(0.0, 1000.0), 1.0)}

LAYERS: dict[str, Layer] = {
    "Linear": Layer({"out_features": Option(natural(1)), "bias": _BIAS}, _linear),
    "Conv2d": Layer(_CONV, _conv2d),
    "MaxPool2d": Layer(_POOL, _fitting("MaxPool2d", _image, F.max_pool2d, *_WINDOW)),
    "AvgPool2d": Layer(_POOL, _fitting("AvgPool2d", _image, F.avg_pool2d, *_WINDOW)),
    "GlobalAvgPool2d": Layer({}, _fitting("GlobalAvgPool2d", _image, F.global_avg_pool2d)),
    "BatchNorm1d": Layer(_NORM, _batch_norm("BatchNorm1d", (2, 3))),
    "BatchNorm2d": Layer(_NORM, _batch_norm("BatchNorm2d", (4,))),
    "LayerNorm": Layer(
        {"normalized_shape": Option(optional(sizes), None), "eps": _EPS, "affine": Option(flag, True)},
        _layer_norm,
    ),
    "Dropout": Layer({"p": Option(number(0.0, 1.0), 0.5)}, _dropout),
    "Flatten": Layer({}, _flatten),
    "Reshape": Layer({"shape": Option(sizes)}, _reshape),
    "ReLU": Layer({}, _function(F.relu)),
    "LeakyReLU": Layer({"negative_slope": Option(number(0.0, 10.0), 0.01)}, _function(F.leaky_relu, "negative_slope")),
    "GELU": Layer({"approximate": Option(choice("none", "tanh"), "none")}, _function(F.gelu, "approximate")),
    "Tanh": Layer({}, _function(F.tanh)),
    "Sigmoid": Layer({}, _function(F.sigmoid)),
    "SiLU": Layer({}, _function(F.silu)),
    "Softmax": Layer({}, _function(F.softmax)),
    "Conv1d": Layer(_CONV_1D, _conv1d),
    "DepthwiseConv2d": Layer({**_DEPTHWISE, "depth_multiplier": Option(natural(1), 1)}, _depthwise),
    "ConvTranspose2d": Layer({**_CONV, "output_padding": Option(pair(0), (0, 0))}, _conv_transpose2d),
    "MaxPool1d": Layer(_POOL_1D, _fitting("MaxPool1d", _sequence, F.max_pool1d, *_WINDOW)),
    "AvgPool1d": Layer(_POOL_1D, _fitting("AvgPool1d", _sequence, F.avg_pool1d, *_WINDOW)),
    "AdaptiveAvgPool2d": Layer(
        {"output_size": Option(pair(1))}, _fitting("AdaptiveAvgPool2d", _image, F.adaptive_avg_pool2d, "output_size")
    ),
    "GlobalMaxPool2d": Layer({}, _fitting("GlobalMaxPool2d", _image, F.global_max_pool2d)),
    "GlobalAvgPool1d": Layer({}, _fitting("GlobalAvgPool1d", _sequence, lambda x: x.mean(1))),
    "GroupNorm": Layer(
        {"num_groups": Option(natural(1)), "eps": _EPS, "affine": Option(flag, True)}, _channel_norm("GroupNorm")
    ),
    "InstanceNorm": Layer({"eps": _EPS, "affine": Option(flag, False)}, _channel_norm("InstanceNorm")),
    "RMSNorm": Layer({**_SHAPED, "eps": Option(number(0.0, 1.0), 1e-6)}, _rms_norm),
    "Embedding": Layer({"num_embeddings": Option(natural(1)), "embedding_dim": Option(natural(1))}, _embedding),
    "RNN": Layer({**_RECURRENT, "nonlinearity": Option(choice("tanh", "relu"), "tanh")}, _recurrent("RNN")),
    "LSTM": Layer(_RECURRENT, _recurrent("LSTM")),
    "GRU": Layer(_RECURRENT, _recurrent("GRU")),
    "SelfAttention": Layer(_ATTENTION, _self_attention),
    "TransformerEncoderLayer": Layer(
        {
            **_ATTENTION,
            "dropout": Option(number(0.0, 1.0), 0.1),
            "dim_feedforward": Option(natural(1), 2048),
            "activation": Option(choice("relu", "gelu"), "relu"),
            "norm_first": Option(flag, False),
            "eps": _EPS,
        },
        _encoder_layer,
    ),
    "PositionalEncoding": Layer({"learned": Option(flag, False), "dropout": _DROP}, _positions),
    "Permute": Layer({"dims": Option(axes)}, _permute),
    "PReLU": Layer({"num_parameters": Option(natural(1), 1), "init": Option(number(-10.0, 10.0), 0.25)}, _prelu),
    "ELU": Layer(_ALPHA, _function(F.elu, "alpha")),
    "CELU": Layer(_ALPHA, _function(F.celu, "alpha")),
    "SELU": Layer({}, _function(F.selu)),
    "Mish": Layer({}, _function(F.mish)),
    "Softplus": Layer({}, _function(F.softplus)),
    "Softsign": Layer({}, _function(F.softsign)),
    "Hardtanh": Layer({}, _function(F.hardtanh)),
    "Hardswish": Layer({}, _function(F.hardswish)),
    "Hardsigmoid": Layer({}, _function(F.hardsigmoid)),
    "ReLU6": Layer({}, _function(F.relu6)),
    "LogSoftmax": Layer({}, _function(F.log_softmax)),
    "GLU": Layer({}, _function(F.glu)),
    "Normalize": Layer({"method": Option(choice("standard", "minmax"), "standard")}, _normalize),
    "Denormalize": Layer({}, _denormalize),
}
