"""Models as a list of layers: {"kind": "Conv2d", "out_channels": 16, "kernel_size": 3}, …

Kinds and options are torch's; input sizes are inferred. Parameters are named "<index>.weight" as
in torch's Sequential, so weights travel between the two. To add a layer: a row in LAYERS.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from cyxcore import functional as F
from cyxcore.errors import CyxError, GraphError, ShapeError, SpecError
from cyxcore.graph import Graph
from cyxcore.spec import ModelSpec
from cyxcore.symbols import Builder, Symbol, batch_free
from cyxcore.values import TRACED

REQUIRED = object()


class Scope(NamedTuple):
    """Where a layer's parameters go."""

    builder: Builder
    prefix: str  # "2." for the third layer

    def param(self, name: str, shape: Sequence[int], init: Mapping[str, Any], trainable: bool = True) -> Symbol:
        return self.builder.param(self.prefix + name, shape, init, trainable)


class Option(NamedTuple):
    check: Callable[[Any], Any]  # returns the normal form or raises ValueError(what was expected)
    default: Any = REQUIRED


class Layer(NamedTuple):
    options: Mapping[str, Option]
    build: Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]


# options ------------------------------------------------------------------------------------------


def _natural(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise ValueError(f"an integer of at least {least}")
        return value

    return check


def _pair(least: int) -> Callable[[Any], tuple[int, int]]:
    def check(value: Any) -> tuple[int, int]:
        both = [value, value] if isinstance(value, int) else value
        if not isinstance(both, (list, tuple)) or len(both) != 2:
            raise ValueError("an integer or [height, width]")
        return _natural(least)(both[0]), _natural(least)(both[1])

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
            raise ValueError(f"a number from {low} to below {high}")
        return float(value)

    return check


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 15 or list(value).count(-1) > 1:
        raise ValueError("a list of 1 to 15 sizes, at most one of them -1")
    return tuple(-1 if size == -1 else _natural(1)(size) for size in value)


def _choice(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return str(value)

    return check


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


def _conv2d(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _image("Conv2d", x)
    groups, outputs, kernel = options["groups"], options["out_channels"], options["kernel_size"]
    if x.shape[1] % groups or outputs % groups:
        raise SpecError(f"Conv2d: groups={groups} must divide the {x.shape[1]} input and {outputs} output channels")
    fan_in = x.shape[1] // groups * kernel[0] * kernel[1]
    weight = scope.param("weight", (outputs, x.shape[1] // groups, *kernel), _fan(fan_in))
    bias = scope.param("bias", (outputs,), _fan(fan_in)) if options["bias"] else None
    return F.conv2d(x, weight, bias, options["stride"], options["padding"], options["dilation"], groups)


def _pool(kind: str, pool: Callable[..., Any]) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        _image(kind, x)
        result: Symbol = pool(x, options["kernel_size"], options["stride"], options["padding"])
        return result

    return build


def _global_pool(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
    _image("GlobalAvgPool2d", x)
    result: Symbol = F.global_avg_pool2d(x)
    return result


def _batch_norm(kind: str, ranks: tuple[int, ...]) -> Callable[[Scope, Symbol, Mapping[str, Any]], Symbol]:
    def build(scope: Scope, x: Symbol, options: Mapping[str, Any]) -> Symbol:
        if x.ndim not in ranks:
            raise ShapeError(
                f"{kind}: expected {' or '.join(str(r - 1) for r in ranks)} axes per sample, got {x.shape[1:]}"
            )
        size = (x.shape[1],)
        weight = scope.param("weight", size, {"kind": "ones"}) if options["affine"] else None
        bias = scope.param("bias", size, {"kind": "zeros"}) if options["affine"] else None
        mean = scope.param("running_mean", size, {"kind": "zeros"}, trainable=False)
        var = scope.param("running_var", size, {"kind": "ones"}, trainable=False)
        result: Symbol = F.batch_norm(x, mean, var, weight, bias, TRACED, options["momentum"], options["eps"])
        return result

    return build


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


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


_BIAS = Option(_flag, True)
_EPS = Option(_number(0.0, 1.0), 1e-5)
_POOL = {
    "kernel_size": Option(_pair(1)),
    "stride": Option(_optional(_pair(1)), None),
    "padding": Option(_pair(0), (0, 0)),
}
_CONV = {
    "out_channels": Option(_natural(1)),
    "kernel_size": Option(_pair(1)),
    "stride": Option(_pair(1), (1, 1)),
    "padding": Option(_pair(0), (0, 0)),
    "dilation": Option(_pair(1), (1, 1)),
    "groups": Option(_natural(1), 1),
    "bias": _BIAS,
}
_NORM = {"eps": _EPS, "momentum": Option(_number(0.0, 1.0), 0.1), "affine": Option(_flag, True)}

LAYERS: dict[str, Layer] = {
    "Linear": Layer({"out_features": Option(_natural(1)), "bias": _BIAS}, _linear),
    "Conv2d": Layer(_CONV, _conv2d),
    "MaxPool2d": Layer(_POOL, _pool("MaxPool2d", F.max_pool2d)),
    "AvgPool2d": Layer(_POOL, _pool("AvgPool2d", F.avg_pool2d)),
    "GlobalAvgPool2d": Layer({}, _global_pool),
    "BatchNorm1d": Layer(_NORM, _batch_norm("BatchNorm1d", (2, 3))),
    "BatchNorm2d": Layer(_NORM, _batch_norm("BatchNorm2d", (4,))),
    "LayerNorm": Layer(
        {"normalized_shape": Option(_optional(_sizes), None), "eps": _EPS, "affine": Option(_flag, True)},
        _layer_norm,
    ),
    "Dropout": Layer({"p": Option(_number(0.0, 1.0), 0.5)}, _dropout),
    "Flatten": Layer({}, _flatten),
    "Reshape": Layer({"shape": Option(_sizes)}, _reshape),
    "ReLU": Layer({}, _function(F.relu)),
    "LeakyReLU": Layer({"negative_slope": Option(_number(0.0, 10.0), 0.01)}, _function(F.leaky_relu, "negative_slope")),
    "GELU": Layer({}, _function(F.gelu)),
    "Tanh": Layer({}, _function(F.tanh)),
    "Sigmoid": Layer({}, _function(F.sigmoid)),
    "SiLU": Layer({}, _function(F.silu)),
    "Softmax": Layer({}, _function(F.softmax)),
    "Normalize": Layer({"method": Option(_choice("standard", "minmax"), "standard")}, _normalize),
    "Denormalize": Layer({}, _denormalize),
}


def _nearest(name: Any, known: Sequence[str]) -> str:
    lower = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(str(name).lower(), lower, 1, 0.5)
    return f"; did you mean {lower[close[0]]!r}?" if close else f"; known: {', '.join(known)}"


def _checked(index: int, layer: Any) -> tuple[str, dict[str, Any]]:
    """(kind, options in normal form) of one entry of a layer list."""
    if not isinstance(layer, Mapping) or not isinstance(layer.get("kind"), str):
        raise SpecError(f'layer {index}: expected {{"kind": ..., options}}, got {str(layer)[:80]}')
    kind = layer["kind"]
    if kind not in LAYERS:
        raise SpecError(f"layer {index}: unknown kind {kind!r}{_nearest(kind, list(LAYERS))}")
    schema, options = LAYERS[kind].options, {}
    for name in layer:
        if name != "kind" and name not in schema:
            raise SpecError(f"layer {index}: {kind} has no option {name!r}{_nearest(name, list(schema) or ['none'])}")
    for name, option in schema.items():
        if name not in layer:
            if option.default is REQUIRED:
                raise SpecError(f"layer {index}: {kind} needs the option {name!r}")
            options[name] = option.default
            continue
        try:
            options[name] = option.check(layer[name])
        except ValueError as error:
            raise SpecError(f"layer {index}: {kind}.{name}: expected {error}, got {layer[name]!r}") from None
    return kind, options


def build(
    model: ModelSpec | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    layers: Sequence[Mapping[str, Any]] | None = None,
    normalize: Literal["standard", "minmax", "none"] = "none",
    denormalize: bool = False,
) -> Graph:
    """A model's graph from its description: a ModelSpec, or a sample's input_shape and a list of layers.

    normalize puts a Normalize before the layers (parameters "normalize.*") and denormalize a
    Denormalize behind them ("denormalize.*"), unless the list has its own. A spec that holds a
    graph is returned as that graph, verified, and takes neither.
    Raises SpecError for a bad description and ShapeError, naming the layer, when sizes do not fit.
    """
    if model is not None:
        input_shape = model.input if input_shape is None else input_shape
        layers = model.layers if layers is None else layers
        if (model.graph is None) == (model.layers is None):
            raise SpecError("model: expected exactly one of layers and graph")
        if model.graph is not None:
            return Graph.from_json(model.graph)
    if input_shape is None or layers is None:
        raise SpecError("model: expected the shape of one sample (input) and a list of layers")
    if not 0 < len(layers) <= 10_000:
        raise SpecError(f"model: expected 1 to 10000 layers, got {len(layers)}")
    if not 0 < len(input_shape) <= 8 or any(
        isinstance(s, bool) or not isinstance(s, int) or not 1 <= s < 2**31 for s in input_shape
    ):
        raise SpecError(f"model: expected an input shape of 1 to 8 positive sizes, got {list(input_shape)}")
    steps = [
        (f"{index}: {kind}", f"{index}.", kind, options)
        for index, (kind, options) in enumerate(_checked(index, layer) for index, layer in enumerate(layers))
    ]
    kinds = {kind for _, _, kind, _ in steps}
    if normalize != "none" and "Normalize" not in kinds:
        steps.insert(0, ("Normalize", "normalize.", "Normalize", {"method": normalize}))
    if denormalize and "Denormalize" not in kinds:
        steps.append(("Denormalize", "denormalize.", "Denormalize", {}))

    def at(batch_size: int) -> Graph:
        builder = Builder(batch_size)
        value = builder.input("x", (batch_size, *input_shape))
        for label, prefix, kind, options in steps:
            builder.layer = label
            try:
                value = LAYERS[kind].build(Scope(builder, prefix), value, options)
            except CyxError as error:
                text = str(error).removeprefix(f"{kind}: ")
                text = re.sub(rf"\b{batch_size}\b", "batch", text)  # a size of ours, to find where batches go
                named = text if text.startswith("layer ") else f"layer {label}: {text}"
                inputs = f" (its input is {list(value.shape[1:])} per sample)"
                raise type(error)(named + inputs) from None
        return builder.graph(value)

    try:
        return batch_free(at)
    except GraphError as error:
        raise SpecError(f"model: {error}") from None
