"""A finished model: graph, weights and where they came from, in one file.

Two forms hold the same: .safetensors (the graph and facts in its metadata; any safetensors reader
gets the weights) and .cyxmodel (a zip whose parts can be looked at one by one).
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cyxcore import cyxmodel, safetensors
from cyxcore.errors import FormatError, SpecError
from cyxcore.evaluation import Evaluator
from cyxcore.graph import Graph
from cyxcore.spec import EpochMetrics, TrainingSummary

Array = np.ndarray[Any, Any]

GRAPH_KEY, FACTS_KEY = "cyx.graph", "cyx.facts"


class Facts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known about a model besides graph and weights."""

    history: list[EpochMetrics] = []
    classes: list[str] | None = None
    feature_names: list[str] | None = None
    loss: str | None = None
    summary: TrainingSummary | None = None


class Model:
    """A loaded model. `predict` takes raw features where the graph normalises them itself."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        facts: Facts | None = None,
        device: str | None = None,
    ) -> None:
        self.graph = graph
        self.weights = dict(weights)
        self.facts = facts or Facts()
        self._evaluator = Evaluator(graph, self.weights, device)

    @property
    def history(self) -> list[EpochMetrics]:
        return self.facts.history

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the outputs."""
        return self.facts.classes

    @property
    def summary(self) -> TrainingSummary | None:
        return self.facts.summary

    def predict(self, x: Any) -> Array:
        """The raw outputs (logits of a classifier). x: (rows, *graph.input_shape).

        Returns (rows, *output_shape).
        """
        return self._evaluator.predict(x)

    def predict_classes(self, x: Any) -> list[str]:
        """The most likely class of each row, by name. Raises SpecError for a model without class names."""
        if self.classes is None:
            raise SpecError("predict_classes: the model holds no class names; use predict")
        names = self.classes
        return [names[place] for place in self.predict(x).argmax(-1)]

    def evaluate(self, x: Any, y: Any, loss: str | None = None) -> dict[str, float]:
        """The numbers training reported, on any rows: see Evaluator.evaluate.

        The loss is the model's own by default.
        """
        chosen = loss or self.facts.loss
        if chosen is None:
            raise SpecError(
                "evaluate: the model does not say its loss; pass loss='cross_entropy', 'bce', 'mse', 'l1' or 'huber'"
            )
        return self._evaluator.evaluate(x, y, chosen)

    def save(self, path: str | os.PathLike[str]) -> None:
        _writer(path)(path, self.graph, self.weights, self.facts)

    def export(self, path: str | os.PathLike[str], opset: int | None = None) -> None:
        """Write the model for other tools: .onnx (opset: 13 to 21, 18 unless given), or any ending `save` takes.

        Raises FormatError for an operation the format has not, naming its layer.
        """
        if opset is None:
            self.save(path)
        elif _extension(path) == ".onnx":
            _save_onnx(path, self.graph, self.weights, self.facts, opset)
        else:
            raise FormatError(f"{path}: only .onnx has an opset")

    def __repr__(self) -> str:
        return f"Model({self.graph!r}, classes={self.classes})"


def _facts_json(facts: Facts) -> bytes:
    return msgspec.json.encode(facts, order="sorted")


def _save_safetensors(path: Any, graph: Graph, weights: Mapping[str, Array], facts: Facts) -> None:
    metadata = {"format": "cyx", GRAPH_KEY: graph.to_bytes().decode(), FACTS_KEY: _facts_json(facts).decode()}
    safetensors.save(path, weights, metadata)


def _save_cyxmodel(path: Any, graph: Graph, weights: Mapping[str, Array], facts: Facts) -> None:
    parts = {
        "graph.json": graph.to_bytes(),
        "weights.safetensors": safetensors.to_bytes(weights),
        "history.json": _facts_json(facts),
    }
    cyxmodel.save(path, parts)


def _load_safetensors(path: Any) -> tuple[bytes, dict[str, Array], bytes]:
    tensors, metadata = safetensors.load(path)
    if GRAPH_KEY not in metadata:
        raise FormatError(
            f"{path}: the file holds weights but no model graph; it was not written by cyxcore.save_model"
        )
    return (
        metadata[GRAPH_KEY].encode("utf-8", "surrogatepass"),
        tensors,
        metadata.get(FACTS_KEY, "{}").encode("utf-8", "surrogatepass"),
    )


def _load_cyxmodel(path: Any) -> tuple[bytes, dict[str, Array], bytes]:
    parts = cyxmodel.load(path)
    raw = parts["weights.safetensors"]
    tensors, _ = safetensors.load_from(io.BytesIO(raw), len(raw), f"{path}: weights.safetensors")
    return parts["graph.json"], tensors, parts["history.json"]


def _save_onnx(path: Any, graph: Graph, weights: Mapping[str, Array], facts: Facts, opset: int | None = None) -> None:
    from cyxcore import onnx  # its table of operators is for who wants it

    onnx.save(path, graph, weights, {FACTS_KEY: _facts_json(facts).decode()}, opset)


def _load_onnx(path: Any) -> tuple[bytes, dict[str, Array], bytes]:
    from cyxcore import onnx

    found = onnx.load(path)
    graph, weights = onnx.to_graph(found)
    return graph.to_bytes(), weights, found.metadata.get(FACTS_KEY, "{}").encode("utf-8", "surrogatepass")


WRITERS: dict[str, Callable[[Any, Graph, Mapping[str, Array], Facts], None]] = {
    ".safetensors": _save_safetensors,
    ".cyxmodel": _save_cyxmodel,
    ".onnx": _save_onnx,
}
READERS: dict[str, Callable[[Any], tuple[bytes, dict[str, Array], bytes]]] = {
    ".safetensors": _load_safetensors,
    ".cyxmodel": _load_cyxmodel,
    ".onnx": _load_onnx,
}


def _writer(path: str | os.PathLike[str]) -> Callable[[Any, Graph, Mapping[str, Array], Facts], None]:
    return WRITERS[_extension(path)]


def _extension(path: str | os.PathLike[str]) -> str:
    extension = Path(path).suffix.lower()
    if extension not in READERS:
        raise FormatError(
            f"{path}: expected a name ending in {' or '.join(READERS)}, got {extension or 'no extension'!r}"
        )
    return extension


def save_model(
    path: str | os.PathLike[str],
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    history: Sequence[EpochMetrics] = (),
    classes: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    loss: str | None = None,
    summary: TrainingSummary | None = None,
) -> None:
    """Write a model; the form follows the name's ending. Equal models give equal bytes."""
    checked = _checked_weights(graph, weights, str(path))
    facts = Facts(
        history=list(history),
        classes=None if classes is None else [str(name) for name in classes],
        feature_names=None if feature_names is None else list(feature_names),
        loss=loss,
        summary=summary,
    )
    _writer(path)(path, graph, checked, facts)


def load_model(path: str | os.PathLike[str], device: str | None = None) -> Model:
    """A model from a .safetensors or .cyxmodel file. Raises FormatError, GraphError or ShapeError."""
    graph_json, tensors, facts_json = READERS[_extension(path)](path)
    graph = Graph.from_json(graph_json)
    try:
        facts = msgspec.json.decode(facts_json, type=Facts)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"{path}: the training facts are unreadable: {error}") from None
    return Model(graph, _checked_weights(graph, tensors, str(path)), facts, device)


def _checked_weights(graph: Graph, weights: Mapping[str, Array], where: str) -> dict[str, Array]:
    """The graph's parameters out of `weights`, exactly. Raises FormatError naming what is off."""
    wanted = {param.name: param for param in graph.all_parameters}
    if set(wanted) != set(weights):
        missing, extra = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
        raise FormatError(f"{where}: weights and graph differ: missing {missing or 'none'}, extra {extra or 'none'}")
    for name, param in wanted.items():
        array = weights[name]
        if array.shape != param.shape or array.dtype.name != param.dtype:
            raise FormatError(f"{where}: {name}: expected {param.dtype} {param.shape}, got {array.dtype} {array.shape}")
    return dict(weights)
