"""Every kind of node a graph file may hold: its pins, its options, how it is built. To add one: a row in KINDS.

Defaults are the visual editor's. `number` is what files of version 1 call the kind; kinds without one are newer.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cyxcore import functional as F
from cyxcore import nodelayers as n
from cyxcore.errors import SpecError
from cyxcore.layertable import Scope
from cyxcore.nodelayers import Build, Built
from cyxcore.options import (
    REQUIRED,
    Option,
    axes,
    between,
    choice,
    counts,
    each,
    finite,
    flag,
    integer,
    natural,
    nested,
    number,
    numbers,
    optional,
    padding,
    sizes,
    table,
    text,
    texts,
)

MOST_LAYERS = 1000  # in one node

# What a pin carries
TENSOR, LABELS, LOSS, OPTIMIZER = "a tensor", "labels", "a loss", "an optimizer"


class Pin(NamedTuple):
    name: str
    carries: tuple[str, ...]
    required: bool = True


class Kind(NamedTuple):
    """A row of KINDS.

    group: layer, activation, shape, merge, source, data, output, loss, penalty, optimizer, schedule, regularization.
    at_least: of a kind that takes any number of inputs on its one input pin, how many it needs; else 0.
    outputs: names of the pins; those of Split are numbers only, a penalty has none.
    build: None where the node only says how to train.
    aliases: other names of options, found in older files.
    """

    number: int | None
    group: str
    options: Mapping[str, Option]
    build: Build | None
    inputs: tuple[Pin, ...] = (Pin("input", (TENSOR,)),)
    outputs: tuple[str, ...] = ("output",)
    carries: str = TENSOR
    at_least: int = 0
    aliases: Mapping[str, str] = {}


def nearest(name: Any, known: Sequence[str]) -> str:
    """ "; did you mean …?", or what there is."""
    lower = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(str(name).lower(), lower, 1, 0.5)
    if close:
        return f"; did you mean {lower[close[0]]!r}?"
    more = f" and {len(known) - 30} more" if len(known) > 30 else ""
    return f"; known: {', '.join(known[:30]) or 'none'}{more}"


def checked(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a node of this kind in normal form, with defaults. Raises SpecError."""
    row, found = KINDS[kind], {}
    for name, value in given.items():
        option = row.aliases.get(name, name)
        if option not in row.options:
            raise SpecError(f"there is no parameter {name!r}{nearest(name, list(row.options))}")
        if option in found:
            raise SpecError(f"{option} is given twice, once as {name}")
        try:
            found[option] = row.options[option].check(value)
        except ValueError as error:
            raise SpecError(f"{name}: expected {error}, got {_short(value)}") from None
        except RecursionError:
            raise SpecError(f"{name}: is nested too deeply") from None
    for name, option_row in row.options.items():
        if name not in found:
            if option_row.default is REQUIRED:
                raise SpecError(f"the parameter {name!r} is missing")
            found[name] = option_row.default
    return found


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _time_distributed(scope: Scope, inputs: Sequence[Any], options: Mapping[str, Any]) -> Built:
    name = options["layer"]
    row = KINDS.get(name)
    if row is None or row.build is None or not _one_to_one(row):
        usable = [name for name, row in KINDS.items() if _one_to_one(row)]
        raise SpecError(f"layer: expected a kind of one input and one output, got {name!r}{nearest(name, usable)}")
    try:
        inner = checked(name, options["parameters"])
    except SpecError as error:
        raise SpecError(f"parameters: {name}: {error}") from None
    if name == "Dropout":  # it draws for each element, of whichever step
        return row.build(scope, inputs, inner)
    return n.time_distributed(scope, inputs, row.build, inner)


def _one_to_one(row: Kind) -> bool:
    return row.group in ("layer", "activation", "shape") and len(row.inputs) == len(row.outputs) == 1


_BIAS, _EPS = Option(flag, True), Option(number(0.0, 1.0), 1e-5)
_ACTIVATION = Option(choice(*n.ACTIVATIONS), "none")
_RATE = number(0.0, 1.0)
_UNITS = {"out_features": "units", "use_bias": "bias"}
_FILTERS = {"out_channels": "filters", "kernel": "kernel_size", "strides": "stride", "use_bias": "bias"}
_POOLING = {"kernel_size": "pool_size", "strides": "stride"}
_HIDDEN = {"units": "hidden_size", "layers": "num_layers"}
_HEADS = {"heads": "num_heads"}


def _conv(rank: int) -> dict[str, Option]:
    return {
        "filters": Option(natural(1), 32),
        "kernel_size": Option(each(rank, 1), (3,) * rank),
        "stride": Option(each(rank, 1), (1,) * rank),
        "padding": Option(padding(rank), "same"),
        "dilation": Option(each(rank, 1), (1,) * rank),
        "groups": Option(natural(1), 1),
        "bias": _BIAS,
        "activation": _ACTIVATION,
    }


def _conv_transpose(rank: int) -> dict[str, Option]:
    return {
        "filters": Option(natural(1), 32),
        "kernel_size": Option(each(rank, 1), (2,) * rank),
        "stride": Option(each(rank, 1), (2,) * rank),
        "padding": Option(each(rank, 0), (0,) * rank),
        "output_padding": Option(each(rank, 0), (0,) * rank),
        "bias": _BIAS,
        "activation": _ACTIVATION,
    }


_POOL = {
    "pool_size": Option(each(2, 1), (2, 2)),
    "stride": Option(each(2, 1), (2, 2)),
    "padding": Option(each(2, 0), (0, 0)),
}
_GLOBAL = {"data_format": Option(choice("channels_first", "channels_last"), "channels_first")}
_AFFINE = Option(flag, True)
_RECURRENT = {
    "hidden_size": Option(natural(1), 128),
    "num_layers": Option(between(1, MOST_LAYERS), 1),
    "bidirectional": Option(flag, False),
    "bias": _BIAS,
    "dropout": Option(_RATE, 0.0),
    "return_sequences": Option(flag, False),
}
_PLAIN = {"nonlinearity": Option(choice("tanh", "relu"), "tanh")}
_ATTENTION = {
    "embed_dim": Option(natural(1), 512),
    "num_heads": Option(natural(1), 8),
    "dropout": Option(_RATE, 0.0),
    "causal": Option(flag, False),
}
_TRANSFORMER = {
    "d_model": Option(natural(1), 512),
    "nhead": Option(natural(1), 8),
    "num_layers": Option(between(1, MOST_LAYERS), 6),
    "dim_feedforward": Option(natural(1), 2048),
    "dropout": Option(_RATE, 0.1),
    "activation": Option(choice("relu", "gelu"), "relu"),
    "norm_first": Option(flag, False),
    "causal": Option(flag, False),
    "eps": _EPS,
}
_IN = Pin("input", (TENSOR,))


def _sequence_pins(*others: str) -> tuple[Pin, ...]:
    return (_IN, *(Pin(name, (TENSOR,), required=False) for name in others))


def _layer(code: int | None, options: Mapping[str, Option], build: Build, **more: Any) -> Kind:
    return Kind(code, "layer", options, build, **more)


def _activation(code: int | None, call: Any, options: Mapping[str, Option] | None = None, **more: Any) -> Kind:
    return Kind(code, "activation", options or {}, n.function(call, *(options or {})), **more)


def _shape(code: int, options: Mapping[str, Option], build: Build, **more: Any) -> Kind:
    return Kind(code, "shape", options, build, **more)


# training -----------------------------------------------------------------------------------------

_MEAN_ONLY = {"reduction": Option(choice("mean"), "mean")}
_LOSS_PINS = (Pin("prediction", (TENSOR,)), Pin("target", (LABELS, TENSOR), required=False))
_WEIGHT_DECAY = Option(number(0.0, 100.0), 0.0)
_BETAS = {"beta1": Option(_RATE, 0.9), "beta2": Option(_RATE, 0.999)}
_SMALL = Option(number(1e-38, 1.0), 1e-8)


def _loss(code: int, **options: Option) -> Kind:
    return Kind(code, "loss", {**options, **_MEAN_ONLY}, None, _LOSS_PINS, ("loss",), LOSS)


def _optimizer(code: int | None, learning_rate: float, **options: Option) -> Kind:
    rate = {"learning_rate": Option(_above_zero, learning_rate)}
    pins = (Pin("loss", (LOSS,)),)
    aliases = {"lr": "learning_rate", "rho": "alpha", "epsilon": "eps"}
    upwards = {"maximize": Option(flag, False)}
    return Kind(
        code, "optimizer", {**rate, **options, **upwards}, None, pins, ("optimizer",), OPTIMIZER, aliases=aliases
    )


def _above_zero(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value <= 100.0:
        raise ValueError("a number above 0, at most 100")
    return float(value)


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1.0:
        raise ValueError("a number between 0 and 1")
    return float(value)


def _schedule(code: int, aliases: Mapping[str, str] | None = None, **options: Option) -> Kind:
    pins = (Pin("optimizer", (OPTIMIZER,)),)
    return Kind(code, "schedule", options, None, pins, ("optimizer",), OPTIMIZER, aliases=aliases or {})


def _regularization(code: int, **options: Option) -> Kind:
    pins, strength = (Pin("loss", (LOSS,)),), {"lambda": Option(number(0.0, 100.0), 0.01)}
    names = {"weight_decay": "lambda", "l1_lambda": "lambda", "l2_lambda": "lambda", "strength": "lambda"}
    return Kind(code, "regularization", {**strength, **options}, None, pins, ("loss",), LOSS, aliases=names)


def _data(code: int, options: Mapping[str, Option], build: Build | None, **more: Any) -> Kind:
    pins = (_IN, Pin("labels", (LABELS,), required=False))
    return Kind(code, "data", options, build, pins, ("data", "labels"), **more)


KINDS: dict[str, Kind] = {
    "Dense": _layer(
        0, {"units": Option(natural(1), 128), "bias": _BIAS, "activation": _ACTIVATION}, n.dense, aliases=_UNITS
    ),
    "Conv1D": _layer(1, _conv(1), n.convolution(1), aliases=_FILTERS),
    "Conv2D": _layer(2, _conv(2), n.convolution(2), aliases=_FILTERS),
    "Conv3D": _layer(3, _conv(3), n.convolution(3), aliases=_FILTERS),
    "DepthwiseConv2D": _layer(
        4,
        {
            **{name: option for name, option in _conv(2).items() if name not in ("filters", "groups")},
            "depth_multiplier": Option(natural(1), 1),
        },
        n.convolution(2, depthwise=True),
        aliases=_FILTERS,
    ),
    "MaxPool2D": _layer(5, _POOL, n.pool("max"), aliases=_POOLING),
    "AvgPool2D": _layer(6, _POOL, n.pool("avg"), aliases=_POOLING),
    "GlobalMaxPool": _layer(7, _GLOBAL, n.global_pool("max")),
    "GlobalAvgPool": _layer(8, _GLOBAL, n.global_pool("avg")),
    "AdaptiveAvgPool": _layer(9, {"output_size": Option(counts, (1,))}, n.adaptive_pool),
    "BatchNorm": _layer(10, {"eps": _EPS, "momentum": Option(_RATE, 0.1), "affine": _AFFINE}, n.batch_norm),
    "LayerNorm": _layer(
        11,
        {"normalized_shape": Option(optional(counts), None), "eps": _EPS, "affine": _AFFINE},
        n.layer("LayerNorm"),
    ),
    "GroupNorm": _layer(
        12, {"num_groups": Option(natural(1), 8), "eps": _EPS, "affine": _AFFINE}, n.layer("GroupNorm")
    ),
    "InstanceNorm": _layer(13, {"eps": _EPS, "affine": Option(flag, False)}, n.layer("InstanceNorm")),
    "Dropout": _layer(14, {"p": Option(_RATE, 0.5)}, n.layer("Dropout"), aliases={"rate": "p"}),
    "Flatten": _shape(15, {}, n.layer("Flatten")),
    "RNN": _layer(
        16,
        {**_RECURRENT, **_PLAIN},
        n.recurrent("RNN"),
        inputs=_sequence_pins("state"),
        outputs=("output", "state"),
        aliases=_HIDDEN,
    ),
    "LSTM": _layer(
        17,
        _RECURRENT,
        n.recurrent("LSTM"),
        inputs=_sequence_pins("state", "cell"),
        outputs=("output", "state", "cell"),
        aliases=_HIDDEN,
    ),
    "GRU": _layer(
        18,
        _RECURRENT,
        n.recurrent("GRU"),
        inputs=_sequence_pins("state"),
        outputs=("output", "state"),
        aliases=_HIDDEN,
    ),
    "Bidirectional": _layer(
        19,
        {
            "layer": Option(choice("LSTM", "GRU", "RNN"), "LSTM"),
            **{name: option for name, option in _RECURRENT.items() if name != "bidirectional"},
            **_PLAIN,
            "merge_mode": Option(choice("concat", "sum", "multiply", "average"), "concat"),
        },
        n.bidirectional,
        aliases=_HIDDEN,
    ),
    "TimeDistributed": _layer(
        20, {"layer": Option(text(64), "Dense"), "parameters": Option(table, {})}, _time_distributed
    ),
    "Embedding": _layer(
        21,
        {"num_embeddings": Option(natural(1), 10000), "embedding_dim": Option(natural(1), 256)},
        n.layer("Embedding"),
        aliases={"input_dim": "num_embeddings", "output_dim": "embedding_dim"},
    ),
    "MultiHeadAttention": _layer(
        22,
        _ATTENTION,
        n.attend("MultiHeadAttention"),
        inputs=(Pin("query", (TENSOR,)), Pin("key", (TENSOR,), False), Pin("value", (TENSOR,), False)),
        aliases=_HEADS,
    ),
    "SelfAttention": _layer(23, _ATTENTION, n.attend("SelfAttention"), aliases=_HEADS),
    "CrossAttention": _layer(
        24,
        _ATTENTION,
        n.attend("CrossAttention"),
        inputs=(Pin("query", (TENSOR,)), Pin("key", (TENSOR,)), Pin("value", (TENSOR,), False)),
        aliases=_HEADS,
    ),
    "LinearAttention": _layer(
        25, {name: _ATTENTION[name] for name in ("embed_dim", "num_heads")}, n.linear_attention, aliases=_HEADS
    ),
    "TransformerEncoder": _layer(26, _TRANSFORMER, n.transformer("TransformerEncoder")),
    "TransformerDecoder": _layer(
        27,
        {**_TRANSFORMER, "causal": Option(flag, True)},
        n.transformer("TransformerDecoder"),
        inputs=(Pin("target", (TENSOR,)), Pin("memory", (TENSOR,))),
    ),
    "PositionalEncoding": _layer(
        28,
        {"max_len": Option(natural(1), 5000), "learned": Option(flag, False), "dropout": Option(_RATE, 0.0)},
        n.positional_encoding,
    ),
    "ReLU": _activation(29, F.relu),
    "LeakyReLU": _activation(
        30,
        F.leaky_relu,
        {"negative_slope": Option(number(0.0, 10.0), 0.01)},
        aliases={"alpha": "negative_slope"},
    ),
    "PReLU": Kind(
        31,
        "activation",
        {"num_parameters": Option(natural(1), 1), "init": Option(number(-10.0, 10.0), 0.25)},
        n.layer("PReLU"),
    ),
    "ELU": _activation(32, F.elu, {"alpha": Option(number(0.0, 1000.0), 1.0)}),
    "SELU": _activation(33, F.selu),
    "GELU": _activation(34, F.gelu, {"approximate": Option(choice("none", "tanh"), "none")}),
    "Swish": _activation(35, F.silu),
    "Mish": _activation(36, F.mish),
    "Sigmoid": _activation(37, F.sigmoid),
    "Tanh": _activation(38, F.tanh),
    "Softmax": Kind(39, "activation", {"dim": Option(integer, -1)}, n.softmax(F.softmax)),
    "Reshape": _shape(40, {"shape": Option(sizes)}, n.layer("Reshape")),
    "Permute": _shape(41, {"dims": Option(axes)}, n.permute),
    "Squeeze": _shape(42, {"dim": Option(optional(integer), None)}, n.squeeze),
    "Unsqueeze": _shape(43, {"dim": Option(integer, 1)}, n.unsqueeze),
    "View": _shape(44, {"shape": Option(sizes)}, n.layer("Reshape")),
    "Split": _shape(
        45,
        {
            "num_splits": Option(between(1, 10_000), 2),
            "dim": Option(integer, 1),
            "sizes": Option(optional(counts), None),
        },
        n.split,
        outputs=(),
    ),
    "Concatenate": Kind(46, "merge", {"dim": Option(integer, 1)}, n.concatenate, at_least=2, aliases={"axis": "dim"}),
    "Add": Kind(47, "merge", {}, n.merge("add"), at_least=2),
    "Multiply": Kind(48, "merge", {}, n.merge("multiply"), at_least=2),
    "Average": Kind(49, "merge", {}, n.merge("average"), at_least=2),
    "Output": Kind(50, "output", {}, n.same),
    "MSELoss": _loss(51),
    "CrossEntropyLoss": _loss(52, label_smoothing=Option(_RATE, 0.0)),
    "BCELoss": _loss(53),
    "BCEWithLogits": _loss(54),
    "L1Loss": _loss(55),
    "SmoothL1Loss": _loss(56, beta=Option(finite, 1.0)),
    "HuberLoss": _loss(57, delta=Option(finite, 1.0)),
    "NLLLoss": _loss(58),
    "SGD": _optimizer(
        59,
        0.01,
        momentum=Option(_RATE, 0.9),
        nesterov=Option(flag, False),
        weight_decay=_WEIGHT_DECAY,
        dampening=Option(number(0.0, 1.0000001), 0.0),
    ),
    "Adam": _optimizer(60, 0.001, **_BETAS, eps=_SMALL, weight_decay=_WEIGHT_DECAY, amsgrad=Option(flag, False)),
    "AdamW": _optimizer(
        61,
        0.001,
        **_BETAS,
        eps=_SMALL,
        weight_decay=Option(number(0.0, 100.0), 0.01),
        amsgrad=Option(flag, False),
    ),
    "RMSprop": _optimizer(
        62,
        0.01,
        alpha=Option(_RATE, 0.99),
        momentum=Option(_RATE, 0.0),
        centered=Option(flag, False),
        eps=_SMALL,
        weight_decay=_WEIGHT_DECAY,
    ),
    "Adagrad": _optimizer(
        63, 0.01, lr_decay=_WEIGHT_DECAY, eps=Option(number(1e-38, 1.0), 1e-10), weight_decay=_WEIGHT_DECAY
    ),
    "NAdam": _optimizer(
        64,
        0.002,
        **_BETAS,
        eps=_SMALL,
        weight_decay=_WEIGHT_DECAY,
        momentum_decay=Option(number(0.0, 100.0), 0.004),
    ),
    "StepLR": _schedule(65, step_size=Option(natural(1), 30), gamma=Option(_share, 0.1)),
    "CosineAnnealing": _schedule(66, T_max=Option(optional(natural(1)), None), eta_min=Option(number(0.0, 100.0), 0.0)),
    "ReduceOnPlateau": _schedule(67, factor=Option(_share, 0.1), patience=Option(natural(0), 10)),
    "ExponentialLR": _schedule(68, gamma=Option(_share, 0.95)),
    "WarmupScheduler": _schedule(69, warmup_steps=Option(natural(1), 1000)),
    "L1Regularization": _regularization(70),
    "L2Regularization": _regularization(71),
    "ElasticNet": _regularization(72, l1_ratio=Option(number(0.0, 1.0000001), 0.5)),
    "Lambda": Kind(73, "refused", {}, None),
    "Identity": _activation(74, n.ACTIVATIONS["none"]),
    "Constant": Kind(
        75,
        "source",
        {"value": Option(nested, 0.0), "shape": Option(optional(counts), None)},
        n.constant,
        inputs=(),
    ),
    "Parameter": Kind(
        76,
        "source",
        {
            "shape": Option(counts),
            "init": Option(choice("zeros", "ones", "normal"), "normal"),
            "std": Option(number(0.0, 1000.0), 0.02),
        },
        n.parameter,
        inputs=(),
    ),
    "DatasetInput": Kind(
        77,
        "input",
        {
            "shape": Option(optional(counts), None),
            "path": Option(text(4096), ""),
            "target": Option(text(256), "label"),
            "features": Option(optional(texts), None),
            "ignore": Option(texts, ()),
            "task": Option(optional(choice("classification", "regression")), None),
        },
        None,
        inputs=(),
        outputs=("data", "labels"),
        aliases={"input_shape": "shape"},
    ),
    "DataLoader": _data(
        78,
        {
            "batch_size": Option(natural(1), 32),
            "shuffle": Option(flag, True),
            "num_workers": Option(natural(0), 4),
            "drop_last": Option(flag, False),
        },
        n.same,
        aliases={"workers": "num_workers"},
    ),
    "Augmentation": _data(
        79,
        {
            "horizontal_flip": Option(number(0.0, 1.0000001), 0.5),
            "vertical_flip": Option(number(0.0, 1.0000001), 0.0),
            "brightness": Option(number(0.0, 1000.0), 0.0),
            "noise": Option(number(0.0, 1000.0), 0.0),
        },
        n.augmentation,
    ),
    "DataSplit": _data(
        80,
        {
            "train": Option(_share, 0.8),
            "validation": Option(_RATE, 0.1),
            "test": Option(_RATE, 0.1),
            "stratified": Option(flag, True),
            "seed": Option(natural(0), 42),
        },
        n.same,
        aliases={"train_ratio": "train", "val": "validation", "val_ratio": "validation", "test_ratio": "test"},
    ),
    "TensorReshape": _data(81, {"shape": Option(sizes)}, n.layer("Reshape")),
    "Normalize": _data(
        82,
        {
            "method": Option(choice("standard", "minmax"), "standard"),
            "mean": Option(optional(numbers), None),
            "std": Option(optional(numbers), None),
        },
        n.normalize,
    ),
    "OneHotEncode": Kind(
        83,
        "data",
        {"num_classes": Option(natural(2), 10)},
        n.one_hot,
        inputs=(Pin("input", (TENSOR, LABELS)),),
    ),
    "Subgraph": Kind(84, "subgraph", {"graph": Option(text(256)), "params": Option(table, {})}, None, at_least=1),
    # newer than version 1 of the format
    "ConvTranspose1D": _layer(None, _conv_transpose(1), n.conv_transpose(1), aliases=_FILTERS),
    "ConvTranspose2D": _layer(None, _conv_transpose(2), n.conv_transpose(2), aliases=_FILTERS),
    "Upsample2D": _layer(None, {"scale_factor": Option(natural(1), 2)}, n.upsample),
    "RMSNorm": _layer(
        None,
        {
            "normalized_shape": Option(optional(counts), None),
            "eps": Option(number(0.0, 1.0), 1e-6),
            "affine": _AFFINE,
        },
        n.layer("RMSNorm"),
    ),
    "LogSoftmax": Kind(None, "activation", {"dim": Option(integer, -1)}, n.softmax(F.log_softmax)),
    "GaussianSample": _layer(
        None,
        {},
        n.gaussian_sample,
        inputs=(Pin("mean", (TENSOR,)), Pin("log_variance", (TENSOR,))),
    ),
    "KLDivergence": Kind(
        None,
        "penalty",
        {"weight": Option(number(0.0, 1e6), 1.0)},
        n.kl_divergence,
        inputs=(Pin("mean", (TENSOR,)), Pin("log_variance", (TENSOR,))),
        outputs=(),
    ),
    "GradientReversal": _activation(None, n.gradient_reversal),
    "Denormalize": _layer(None, {}, n.layer("Denormalize")),
    "Lion": _optimizer(None, 0.0001, beta1=Option(_RATE, 0.9), beta2=Option(_RATE, 0.99), weight_decay=_WEIGHT_DECAY),
    "Input": Kind(None, "input", {}, None, inputs=()),
}
KIND_OF_NUMBER: dict[int, str] = {row.number: name for name, row in KINDS.items() if row.number is not None}


def described(name: str) -> tuple[str, str, str, str]:
    """(number, input pins, output pins, parameters with their defaults) of a kind, in words. Brackets: optional."""
    row = KINDS[name]
    pins = ", ".join(pin.name if pin.required else f"[{pin.name}]" for pin in row.inputs) or "-"
    options = [
        f"**{option}**" if default is REQUIRED else f"{option} = {_in_words(default)}"
        for option, (_, default) in row.options.items()
    ]
    return (
        "" if row.number is None else str(row.number),
        f"{row.at_least} or more" if row.at_least else pins,
        ", ".join(row.outputs) or ("parts, by number" if name == "Split" else "-"),
        ", ".join(options) or "-",
    )


def _in_words(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return str(default[0]) if default and len(set(default)) == 1 else str(list(default))
    return '""' if default == "" else str(default)
