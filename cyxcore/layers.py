"""Models as a list of layers: {"kind": "Conv2d", "out_channels": 16, "kernel_size": 3}, …

Kinds and options are those of cyxcore/layertable.py. Parameters are named "<index>.weight" as in torch's Sequential, so
weights travel between the two.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cyxcore.errors import CyxError, GraphError, SpecError
from cyxcore.graph import Graph
from cyxcore.layertable import LAYERS, Scope
from cyxcore.options import REQUIRED
from cyxcore.spec import ModelSpec
from cyxcore.symbols import MOST_NODES, Builder, batch_free


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
        builder = Builder(batch_size, MOST_NODES)
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
