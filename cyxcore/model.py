"""A finished model: graph, weights and where they came from, in one file.

FORMATS is the table of the kinds of files: to add one, a row with how it is read and written.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from cyxcore import cyxmodel, oldmodels, precision, safetensors
from cyxcore.columns import by_name
from cyxcore.errors import DtypeError, FormatError, GraphError, ShapeError, SpecError
from cyxcore.evaluation import Evaluator
from cyxcore.gguf import GGUFFile
from cyxcore.graph import Graph
from cyxcore.safetensors import Advance
from cyxcore.spec import EpochMetrics, TrainingSpec, TrainingSummary

Array = np.ndarray[Any, Any]

GRAPH_KEY, FACTS_KEY = "cyx.graph", "cyx.facts"


class Facts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is known about a model besides graph and weights.

    training: how it was trained. about: free text of its maker: name, description, … stored: the dtype that a weight
    has in files where it is smaller than in the graph (cyxcore/quantization.py): "int8" or "float16". numerics: the
    class of the process that saved it (precision.in_effect), where no summary says in which it was trained.
    """

    history: list[EpochMetrics] = []
    classes: list[str] | None = None
    feature_names: list[str] | None = None
    loss: str | None = None
    summary: TrainingSummary | None = None
    training: TrainingSpec | None = None
    about: dict[str, str] = {}
    stored: dict[str, Literal["int8", "float16"]] = {}
    numerics: str | None = None


class Content(NamedTuple):
    """What a model file holds. training: the bytes of a checkpoint (cyxcore/checkpoint.py)."""

    graph: Graph
    weights: Mapping[str, Array]
    facts: Facts
    training: bytes | None


class Model:
    """A loaded model. `predict` takes raw features where the graph normalises them itself."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        facts: Facts | None = None,
        device: str | None = None,
        training: bytes | None = None,
    ) -> None:
        """training: the bytes of a checkpoint to go on from; a .cyxmodel keeps it."""
        self.graph = graph
        self.weights = dict(weights)
        self.facts = facts or Facts()
        self.training = training
        self._evaluator = Evaluator(graph, self.weights, device)

    @property
    def history(self) -> list[EpochMetrics]:
        return self.facts.history

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the outputs."""
        return self.facts.classes

    @property
    def numerics(self) -> str | None:
        """The numeric class in which it was trained, or that of the process that saved it; None of other files."""
        return self.facts.summary.numerics if self.facts.summary is not None else self.facts.numerics

    @property
    def summary(self) -> TrainingSummary | None:
        return self.facts.summary

    def predict(self, x: Any) -> Array:
        """The raw outputs (logits of a classifier). x: (rows, *graph.input_shape), or a table with named columns.

        Of a table the model's own columns are taken, by name. Returns (rows, *output_shape).
        """
        return self._evaluator.predict(by_name(x, self.facts.feature_names))

    def predict_classes(self, x: Any) -> list[str]:
        """The most likely class of each row, by name. Raises SpecError for a model without a name for each output."""
        if self.classes is None:
            raise SpecError("predict_classes: the model holds no class names; use predict")
        names = self.classes
        if self.graph.output_shape != (len(names),):
            raise SpecError(
                f"predict_classes: the model has {len(names)} class names and gives {list(self.graph.output_shape)} "
                "for each row, expected one number a class; use predict"
            )
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
        return self._evaluator.evaluate(by_name(x, self.facts.feature_names), y, chosen)

    def save(self, path: str | os.PathLike[str], advance: Advance | None = None, **options: Any) -> None:
        """Write it; the name's ending says the format. advance: told how many bytes are written. options: as export."""
        found = format_of(path)
        content = Content(self.graph, _packed(self.weights, self.facts, str(path)), self.facts, self.training)
        found.save(path, content, advance, **known_options(options, found.save_options, path))

    def export(self, path: str | os.PathLike[str], opset: int | None = None) -> None:
        """Write the model for other tools: .onnx (opset: 13 to 21, 18 unless given), or any ending `save` takes.

        Raises FormatError for an operation the format has not, naming its layer.
        """
        self.save(path, opset=opset)

    def __repr__(self) -> str:
        return f"Model({self.graph!r}, classes={self.classes})"


def _facts_json(facts: Facts) -> bytes:
    return msgspec.json.encode(facts, order="sorted")


def _read_facts(raw: bytes, where: str) -> Facts:
    try:
        return msgspec.json.decode(raw, type=Facts)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"{where}: the training facts are unreadable: {error}") from None


# formats ------------------------------------------------------------------------------------------


def _save_safetensors(path: Any, model: Content, advance: Advance | None = None) -> None:
    metadata = {
        "format": "cyx",
        GRAPH_KEY: model.graph.to_bytes().decode(),
        FACTS_KEY: _facts_json(model.facts).decode(),
    }
    safetensors.save(path, model.weights, metadata, advance=advance)


def _load_safetensors(path: Path, advance: Advance | None = None) -> Content:
    return safetensors_content(path, *safetensors.load(path, advance))


def safetensors_content(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> Content:
    """Of what safetensors.load gives. Raises FormatError, and what Graph.from_json does."""
    if GRAPH_KEY not in metadata:
        raise FormatError(
            f"{path}: the file holds weights but no model graph; it was not written by cyxcore.save_model"
        )
    graph = Graph.from_json(metadata[GRAPH_KEY].encode("utf-8", "surrogatepass"))
    facts = _read_facts(metadata.get(FACTS_KEY, "{}").encode("utf-8", "surrogatepass"), str(path))
    return Content(graph, tensors, facts, None)


def _save_cyxmodel(path: Any, model: Content, advance: Advance | None = None) -> None:
    cyxmodel.save(path, cyxmodel_parts(model.graph, model.facts), model.weights, model.training, advance)


def cyxmodel_parts(graph: Graph, facts: Facts) -> dict[str, bytes]:
    """The JSON parts of a .cyxmodel."""
    config = msgspec.structs.replace(facts, history=[])
    return {
        "graph.json": graph.to_bytes(),
        "config.json": _facts_json(config),
        "history.json": msgspec.json.encode(facts.history, order="sorted"),
    }


def _load_cyxmodel(path: Path, advance: Advance | None = None) -> Content:
    if path.is_dir() or _begins(path, oldmodels.MAGIC):
        old = oldmodels.read(path)
        return Content(old.graph, old.weights, Facts(about=old.about), None)
    found = cyxmodel.load(path)
    small = found.small
    if "config.json" in small:
        facts = _read_facts(small["config.json"], found.where)
        try:
            facts.history = msgspec.json.decode(small["history.json"], type=list[EpochMetrics])
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise FormatError(f"{found.where}: history.json is unreadable: {error}") from None
    else:
        facts = _read_facts(small["history.json"], found.where)  # version 1 keeps all facts there
    return Content(Graph.from_json(small["graph.json"]), found.weights(advance), facts, found.training())


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _save_onnx(path: Any, model: Content, advance: Advance | None = None, opset: int | None = None) -> None:
    from cyxcore import onnx  # its table of operators is for who wants it

    onnx.save(path, model.graph, model.weights, {FACTS_KEY: _facts_json(model.facts).decode()}, opset, advance)


def _load_onnx(
    path: Path,
    advance: Advance | None = None,
    external_data: bool = False,
    input_shape: Sequence[int] | None = None,
    output: str | None = None,
) -> Content:
    from cyxcore import onnx

    return onnx_content(onnx.load(path, external_data), input_shape, output)


def onnx_content(found: Any, input_shape: Sequence[int] | None = None, output: str | None = None) -> Content:
    """Of what onnx.load gives. Raises FormatError, and what Graph.from_json does."""
    from cyxcore import onnx

    facts = _read_facts(found.metadata.get(FACTS_KEY, "{}").encode("utf-8", "surrogatepass"), found.where)
    graph, weights = onnx.to_graph(found, input_shape, output, facts.stored)
    facts.stored = {name: dtype for name, dtype in facts.stored.items() if name in weights}
    return Content(graph, weights, facts, None)


def _load_gguf(path: Path, advance: Advance | None = None) -> Content:
    GGUFFile(path)  # a damaged file says that it is one
    raise FormatError(f"{path}: holds a language model, and no graph: cx.llm.LanguageModel opens it")


def _save_gguf(path: Any, model: Content, advance: Advance | None = None) -> None:
    raise FormatError(f"{path}: a graph cannot become a language model; cx.llm.save_gguf writes a cx.llm.Decoder")


class Format(NamedTuple):
    """A kind of model file: how it is read and written, and what of a model it keeps, in words.

    load(path, advance, **options) and save(path, content, advance, **options); `options` names those there are.
    """

    load: Callable[..., Content]
    save: Callable[..., None]
    keeps: str
    load_options: tuple[str, ...] = ()
    save_options: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    ".cyxmodel": Format(_load_cyxmodel, _save_cyxmodel, "everything: graph, weights, facts, history, training state"),
    ".safetensors": Format(_load_safetensors, _save_safetensors, "graph, weights, facts and history"),
    ".onnx": Format(
        _load_onnx,
        _save_onnx,
        "the inference half of the graph, weights, facts and history",
        ("external_data", "input_shape", "output"),
        ("opset",),
    ),
    ".gguf": Format(_load_gguf, _save_gguf, "language models, which have no graph: cyxcore.llm runs them"),
}
# Files in which code may hide: they are never opened. Who made them, and how he says the same without code.
_ELSE = "in the program that made it, export the model to .onnx, or save the weights as safetensors: safetensors."
_TORCH = f"{_ELSE}torch.save_file(model.state_dict(), 'weights.safetensors')"
_KERAS = "in Keras, export the model to .onnx: model.export('model.onnx', format='onnx')"
_NUMPY = f"{_ELSE}numpy.save_file(dict(numpy.load(path)), 'weights.safetensors')"
_PYTHON = f"{_ELSE}numpy.save_file(arrays, 'weights.safetensors')"
PICKLES = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".mar"), _TORCH),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _KERAS),
    **dict.fromkeys((".npy", ".npz"), _NUMPY),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PYTHON),
}


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format a name's ending says. Raises FormatError."""
    extension = Path(path).suffix.lower()
    if extension in PICKLES:
        raise FormatError(f"{path}: files of this kind may hold code, and are never opened; {PICKLES[extension]}")
    if extension not in FORMATS:
        raise FormatError(
            f"{path}: expected a name ending in {' or '.join(FORMATS)}, got {extension or 'no extension'!r}"
        )
    return FORMATS[extension]


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
    training: TrainingSpec | None = None,
    about: Mapping[str, str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> None:
    """Write a model; the form follows the name's ending. Equal models give equal bytes.

    training: how it was trained. checkpoint: a file of Trainer.checkpoint, which a .cyxmodel takes in: training goes
    on from it with Trainer.of_job(..., resume="model.cyxmodel").
    """
    checked = _checked_weights(graph, weights, str(path))
    facts = Facts(
        history=list(history),
        classes=None if classes is None else [str(name) for name in classes],
        feature_names=None if feature_names is None else list(feature_names),
        loss=loss,
        summary=summary,
        training=training,
        about=dict(about or {}),
        numerics=None if summary is not None else precision.in_effect(),
    )
    state = None if checkpoint is None else Path(checkpoint).read_bytes()
    if state is not None and format_of(path) is not FORMATS[".cyxmodel"]:
        raise FormatError(f"{path}: only a .cyxmodel holds the state of a training run; leave checkpoint= out")
    format_of(path).save(path, Content(graph, checked, facts, state))


def load_model(
    path: str | os.PathLike[str], device: str | None = None, advance: Advance | None = None, **options: Any
) -> Model:
    """A model from a .cyxmodel, .safetensors or .onnx file. Raises FormatError.

    advance: told how many bytes are read. options, of .onnx files: external_data=True reads values that lie in another
    file of the same folder, which is refused otherwise; input_shape and output as in cyxcore.onnx.to_graph.
    """
    found = format_of(path)
    chosen = known_options(options, found.load_options, path)
    return assembled(path, lambda: found.load(Path(path), advance, **chosen), device)


def assembled(path: str | os.PathLike[str], read: Callable[[], Content], device: str | None = None) -> Model:
    """The model of the content of a file. Raises FormatError."""
    try:
        content = read()
    except (GraphError, ShapeError, DtypeError, SpecError) as error:  # of the graph in the file
        raise FormatError(f"{path}: {error}") from None
    return Model(
        content.graph,
        _checked_weights(content.graph, _unpacked(content.weights, content.facts, str(path)), str(path)),
        content.facts,
        device,
        content.training,
    )


def _packed(weights: Mapping[str, Array], facts: Facts, where: str) -> Mapping[str, Array]:
    """Weights as files hold them. Raises FormatError for one that would change."""
    small = {}
    _check_stored(weights, facts, where)
    for name, dtype in facts.stored.items():
        with np.errstate(over="ignore", invalid="ignore"):
            small[name] = weights[name].astype(dtype)
        if not np.array_equal(small[name].astype(weights[name].dtype), weights[name]):
            raise FormatError(f"{where}: {name} is not {dtype} any more; quantise the model again")
    return {**weights, **small}


def _unpacked(weights: Mapping[str, Array], facts: Facts, where: str) -> Mapping[str, Array]:
    """Weights as the graph has them: small ones in float32."""
    whole = {}
    _check_stored(weights, facts, where)
    for name, dtype in facts.stored.items():
        if weights[name].dtype.name == dtype:
            whole[name] = weights[name].astype(np.float32)
    return {**weights, **whole}


def _check_stored(weights: Mapping[str, Array], facts: Facts, where: str) -> None:
    unknown = sorted(facts.stored.keys() - weights.keys())
    if unknown:
        raise FormatError(f"{where}: says how {unknown[0][:80]!r} is stored, which is none of its weights")


def known_options(options: Mapping[str, Any], known: Sequence[str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The options that were given. Raises FormatError for one that the format has not."""
    for name, value in options.items():
        if name not in known and value is not None:
            raise FormatError(f"{path}: files of this kind have no {name}; they have: {', '.join(known) or 'none'}")
    return {name: value for name, value in options.items() if value is not None}


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
