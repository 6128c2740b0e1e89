"""Job files: a training job as TOML, checked completely before anything is sent or paid.

    name = "digits"
    amount = "2.5"                 # CYX
    [data]
    path = "digits.csv"            # relative to this file
    target = "label"
    [model]
    layers = [ { kind = "Linear", out_features = 64 }, { kind = "ReLU" }, { kind = "Linear", out_features = 10 } ]
    [training]
    epochs = 30

docs/cli.md lists every key. Tables, Parquet, JSON lines and NPZ files travel as they are; folders of images and .npy
pairs are packed into one NPZ first.
"""

import difflib
import hashlib
import json
import math
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError, DataError, SpecError
from cyxcore.spec import DataFormat, DataSpec, ModelSpec, OptimizerSpec, Positive, TrainingSpec
from cyxnet import amounts
from cyxnet.messages import ArtifactRef, DatasetFacts, JobRequest, Name, Needs

if TYPE_CHECKING:
    from cyxcore.data import DatasetInfo
    from cyxcore.graph import Graph

MAX_FILE_BYTES = 4_000_000
MAX_MESSAGE_JOB_BYTES = 900_000  # a job travels in one message; the broker and codec stop at 1 MB
BYTES_PER_UNIT = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


class DataSection(DataSpec, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[data]: where the data is, and how to read it (the fields of cyxcore.spec.DataSpec).

    target_path: the second file of a pair of .npy files.
    image_size: [width, height] that the images of a folder are brought to.
    """

    path: str
    format: DataFormat | None = None  # type: ignore[assignment]  # absent: seen from the file itself
    target_path: str | None = None
    image_size: tuple[Positive, Positive] | None = None


class ModelSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[model]: a list of layers, or the path of a graph in its JSON form."""

    layers: list[dict[str, Any]] | None = None
    input: list[Positive] | None = None
    graph: str | None = None


class NeedsSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """[needs]: what the node must have. memory: "512 MB", "2 GiB" or a number of bytes."""

    device: Literal["cpu", "cuda", "any"] = "any"
    memory: str | int = 0
    cores: int = 1


class JobFile(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A whole job file."""

    name: Name
    amount: Any
    data: DataSection
    model: ModelSection
    training: TrainingSpec = TrainingSpec()
    needs: NeedsSection = NeedsSection()
    max_attempts: int = 3


class LoadedJob(Struct, kw_only=True, frozen=True):
    """A job that was checked here: its data was read and its model built."""

    name: str
    amount_base_units: int
    data_path: Path  # the one file that travels
    model: ModelSpec
    data: DataSpec
    facts: DatasetFacts
    training: TrainingSpec
    needs: Needs
    max_attempts: int
    parameters: int
    warnings: list[str] = []

    def request(self, dataset: ArtifactRef) -> JobRequest:
        """The job as it is sent, once the digest of the data is known."""
        return JobRequest(
            name=self.name,
            model=self.model,
            dataset=dataset,
            data=self.data,
            facts=self.facts,
            training=self.training,
            needs=self.needs,
            amount_base_units=self.amount_base_units,
            max_attempts=self.max_attempts,
        )


def load(path: str | Path, work_folder: Path | None = None) -> LoadedJob:
    """Read and check a job file.

    work_folder: where packed data is kept until it is uploaded; a fresh temporary folder when absent.
    Raises SpecError, AmountError, DataError, ShapeError or GraphError; each message starts with the file it is about.
    """
    from cyxcore import data

    path = Path(path)
    file = parse(_read_text(path), path)
    amount_base_units = amounts.parse(file.amount, f"{path}: amount")
    needs = _needs(file.needs, path)
    data_path, section = _data_file(file.data, path, work_folder)
    spec = _data_spec(section, data_path, file.training, path)
    info = data.inspect(data_path, spec, loss=file.training.loss)
    model, graph = _model(file.model, info, path)
    return _fitted(
        LoadedJob(
            name=file.name,
            amount_base_units=amount_base_units,
            data_path=data_path,
            model=model,
            data=spec,
            facts=_facts(info),
            training=file.training,
            needs=needs,
            max_attempts=file.max_attempts,
            parameters=graph.parameter_count,
        ),
        info,
        graph,
        str(path),
    )


def from_module(
    module: Any,
    data_path: Path,
    amount: str | int,
    *,
    name: str,
    spec: DataSpec,
    training: TrainingSpec,
    needs: Needs,
    weights_path: Path,
) -> LoadedJob:
    """A job from a cyxcore module: traced here, its weights saved to `weights_path` for upload."""
    import cyxcore
    from cyxcore import data, safetensors

    amount_base_units = amounts.parse(amount)
    task = data.task_of(spec, training.loss)
    spec = msgspec.structs.replace(spec, format=data.detect_format(data_path), task=task)
    info = data.inspect(data_path, spec, loss=training.loss)
    graph, weights = cyxcore.trace(module, input_shape=tuple(info.input_shape))
    safetensors.save(weights_path, weights, {})
    digest = hashlib.sha256(weights_path.read_bytes()).hexdigest()
    job = LoadedJob(
        name=name,
        amount_base_units=amount_base_units,
        data_path=data_path,
        model=ModelSpec(graph=graph.to_json(), weights=digest),
        data=spec,
        facts=_facts(info),
        training=training,
        needs=needs,
        max_attempts=3,
        parameters=graph.parameter_count,
    )
    return _fitted(job, info, graph, name)


def _facts(info: "DatasetInfo") -> DatasetFacts:
    return DatasetFacts(rows=info.rows, input_shape=list(info.input_shape), classes=len(info.classes or []))


def _fitted(job: LoadedJob, info: "DatasetInfo", graph: "Graph", where: str) -> LoadedJob:
    """The job with its warnings. Raises SpecError when its parts do not fit or it is too large to send."""
    size = len(msgspec.json.encode(job.request(ArtifactRef(sha256="0" * 64, size=1))))
    if size > MAX_MESSAGE_JOB_BYTES:
        raise SpecError(f"{where}: expected a job of at most {MAX_MESSAGE_JOB_BYTES} bytes, its model takes {size}")
    return msgspec.structs.replace(job, warnings=_check_fit(info, graph, job.training, where))


def parse(text: str, path: Path) -> JobFile:
    """TOML text to a JobFile. `path` is only named in errors. Raises SpecError, never another exception."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    except (RecursionError, ValueError) as error:
        raise SpecError(f"{path}: not valid TOML: {_one_line(error)}") from None
    for problem in _unknown_keys(table, JobFile, ""):
        raise SpecError(f"{path}: {problem}")
    for place in _non_finite(table, ""):
        raise SpecError(f"{path}: {place}: expected a finite number")
    try:
        return msgspec.convert(table, JobFile)
    except msgspec.ValidationError as error:
        raise SpecError(f"{path}: {_retell(str(error))}") from None


def parse_bytes(value: str | int, what: str) -> int:
    """A size: bytes as a number, or text with a unit (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)."""
    if isinstance(value, int):
        size = value
    else:
        match = re.fullmatch(r"([0-9]{1,15})(\.[0-9]{1,9})? ?([A-Za-z]+)", value.strip(), re.ASCII)
        if match is None or match[3].upper() not in BYTES_PER_UNIT:
            raise SpecError(f'{what}: expected a size such as "512 MB" or "2 GiB", got {value[:40]!r}')
        unit = BYTES_PER_UNIT[match[3].upper()]
        size = int(match[1]) * unit + int(float(match[2] or 0) * unit)
    if not 0 <= size < 2**63:
        raise SpecError(f"{what}: expected 0 to 2**63-1 bytes, got {value}")
    return size


# ---------------------------------------------------------------------------------------------------
# Reading the file


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise SpecError(f"{path}: expected a job file, this is a folder")
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise SpecError(f"{path}: there is no such file{hint}")
    if not path.is_file():
        raise SpecError(f"{path}: expected a plain file")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError(f"{path}: expected a job file of at most {MAX_FILE_BYTES} bytes; is this data?")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not"
        raise SpecError(f"{path}: expected text in UTF-8, {where}; is this a job file?") from None


SECTIONS: dict[tuple[Any, str], Any] = {
    (JobFile, "data"): DataSection,
    (JobFile, "model"): ModelSection,
    (JobFile, "training"): TrainingSpec,
    (JobFile, "needs"): NeedsSection,
    (TrainingSpec, "optimizer"): OptimizerSpec,
}


def _unknown_keys(table: dict[str, Any], kind: Any, prefix: str) -> Iterator[str]:
    """A sentence for each key that `kind` does not have, with the nearest one it has."""
    known = list(kind.__struct_fields__)
    for key, value in table.items():
        if key not in known:
            yield f"unknown key {prefix}{key}{_suggestion(key, kind, prefix)}"
        elif isinstance(value, dict) and (kind, key) in SECTIONS:
            yield from _unknown_keys(value, SECTIONS[kind, key], f"{prefix}{key}.")


def _suggestion(key: str, kind: Any, prefix: str) -> str:
    known = list(kind.__struct_fields__)
    if near := difflib.get_close_matches(key.lower(), known, 1, 0.6):
        return f"; did you mean {prefix}{near[0]}?"
    for (section, name), inner in SECTIONS.items():  # the right word in the wrong section
        if key in inner.__struct_fields__ and inner is not kind:
            return f"; it belongs in [{'training.' if section is TrainingSpec else ''}{name}]"
    return f"; known here: {', '.join(known)}"


def _non_finite(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _non_finite(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{place}[{index}]")


def _retell(said: str) -> str:
    """msgspec's sentence in ours: "Expected `int`, got `str` - at `$.training.epochs`" → "training.epochs: …"."""
    text, _, place = said.partition(" - at ")
    place = place.strip("`").removeprefix("$").lstrip(".")
    if missing := re.search(r"missing required field `(\w+)`", text):
        return f"{f'{place}.' if place else ''}{missing[1]} is missing"
    text = text.replace("`", "")
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---------------------------------------------------------------------------------------------------
# What the file means


def _needs(section: NeedsSection, path: Path) -> Needs:
    if not 1 <= section.cores <= 4096:
        raise SpecError(f"{path}: needs.cores: expected 1 to 4096, got {section.cores}")
    memory_bytes = parse_bytes(section.memory, f"{path}: needs.memory")
    return Needs(device=section.device, memory_bytes=memory_bytes, cores=section.cores)


def _data_file(section: DataSection, path: Path, work_folder: Path | None) -> tuple[Path, DataSection]:
    """The one file that travels, and the section that describes it: packed when the source is not one file."""
    from cyxcore import data

    source = path.parent / section.path
    if not section.path or not source.exists():
        near = difflib.get_close_matches(source.name, [p.name for p in source.parent.glob("*")], 1)
        hint = f"; did you mean {near[0]}?" if near else " (paths are relative to the job file)"
        raise DataError(f"{path}: data.path: there is no {source}{hint}")
    for key, given, wanted in [
        ("target_path", section.target_path, source.suffix == ".npy"),
        ("image_size", section.image_size, source.is_dir()),
    ]:
        if given is not None and not wanted:
            raise SpecError(f"{path}: data.{key} does not go with data.path = {section.path!r}")
    if source.is_file() and source.suffix != ".npy":
        return source, section
    folder = work_folder or Path(tempfile.mkdtemp(prefix="cyx-packed-"))
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / f"{source.name.removesuffix('.npy')}.npz"
    if source.is_dir():
        data.pack_images(source, section.image_size, packed)
    elif section.target_path is None:
        raise SpecError(f"{path}: data.target_path is missing: the .npy file with the labels of {section.path}")
    else:
        data.pack(source, path.parent / section.target_path, packed)
    return packed, msgspec.structs.replace(section, format="npz", target="y")


def _data_spec(section: DataSection, data_path: Path, training: TrainingSpec, path: Path) -> DataSpec:
    from cyxcore import data

    fields = {name: getattr(section, name) for name in DataSpec.__struct_fields__}
    spec = DataSpec(**fields | {"format": section.format or data.detect_format(data_path)})
    try:
        return msgspec.structs.replace(spec, task=data.task_of(spec, training.loss))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _model(section: ModelSection, info: "DatasetInfo", path: Path) -> tuple[ModelSpec, "Graph"]:
    """The model as it is sent and its graph, built here so that every shape is known to fit."""
    from cyxcore import layers

    sample = list(info.input_shape)
    if (section.layers is None) == (section.graph is None):
        raise SpecError(f"{path}: model: expected exactly one of layers and graph")
    if section.input is not None and section.input != sample:
        raise SpecError(
            f"{path}: model.input is {section.input}, one sample of the data is {sample}; leave model.input out,"
            ' and begin the layers with { kind = "Reshape", shape = [...] } to view it differently'
        )
    if section.graph is not None:
        model = ModelSpec(graph=_graph_json(path.parent / section.graph, path))
    else:
        model = ModelSpec(input=sample, layers=section.layers)
    try:
        graph = layers.build(model)
    except CyxError as error:
        raise type(error)(f"{path}: model: {str(error).removeprefix('model: ')}") from None
    if list(graph.input_shape) != sample:
        raise SpecError(f"{path}: model: the graph takes {list(graph.input_shape)}, one sample is {sample}")
    return model, graph


def _graph_json(graph_path: Path, path: Path) -> dict[str, Any]:
    try:
        graph = json.loads(graph_path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: model.graph: {graph_path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: model.graph: {graph_path} is not JSON ({_one_line(error)})") from None
    if not isinstance(graph, dict):
        raise SpecError(f"{path}: model.graph: {graph_path}: expected a JSON object")
    return graph


def _check_fit(info: "DatasetInfo", graph: "Graph", training: TrainingSpec, where: str) -> list[str]:
    """Model, data and loss fit each other, or an error; what is odd but possible is returned as warnings."""
    from cyxcore import data

    output = list(graph.output_shape)
    if len(output) != 1:
        raise SpecError(f"{where}: expected a model that gives one row of numbers per sample, it gives {output}")
    try:
        data.check_labels(info, output[0], loss=training.loss)
    except CyxError as error:
        raise type(error)(f"{where}: {error}") from None
    classes = len(info.classes or [])
    if training.loss == "cross_entropy" and output[0] != classes:
        raise SpecError(
            f"{where}: the model ends in {output[0]} outputs, the data has {classes} classes;"
            f" make the last layer give {classes}"
        )
    if training.batch_size > info.rows:
        return [f"batch_size {training.batch_size} is more than the {info.rows} rows: one batch per epoch"]
    return []
