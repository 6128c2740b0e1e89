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

docs/cli.md lists every key. A graph file that says its data and amount is a job too (cyxnet/jobgraph.py). Tables,
Parquet, JSON lines and NPZ files travel as they are; folders of images and .npy pairs are packed into one NPZ first.
"""

import contextlib
import difflib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError, DataError, SpecError
from cyxcore.spec import DataSpec, ModelSpec, NumericsName, TrainingSpec, check_metrics
from cyxnet import amounts, envelope, jobgraph, subjects
from cyxnet.artifacts import describe
from cyxnet.identity import Identity
from cyxnet.jobtoml import DataSection, JobFile, ModelSection, NeedsSection, one_line, parse_bytes, read_text
from cyxnet.messages import After, ArtifactRef, CheckpointPolicy, DatasetFacts, JobRequest, Needs, SummaryMetric

if TYPE_CHECKING:
    from cyxcore.data import DatasetInfo
    from cyxcore.graph import Graph

# Arrays as large as the weights, at the least: those of momentum and of a centred rmsprop are left out, and adafactor
# keeps less of matrices.
OPTIMIZER_SLOTS = {
    **{"sgd": 0, "adam": 2, "adamw": 2, "nadam": 2, "rmsprop": 1, "adagrad": 1, "lion": 1},
    **{"adamax": 2, "radam": 2, "adadelta": 2, "adafactor": 1, "rprop": 2, "asgd": 1},
}
PACKED, FETCHED = "cyx-packed-", "cyx-fetched-"  # how the names of such folders begin
REMOTE_DATA = "CYX_REMOTE_DATA"  # names in the environment what kinds of addresses data may come from: https, s3
MAX_MESSAGE_JOB_BYTES = 900_000  # a job travels in one message; the broker and codec stop at 1 MB


class LoadedJob(Struct, kw_only=True, frozen=True):
    """A job that was checked here: its data was read and its model built."""

    name: str
    amount_base_units: int
    data_path: Path  # the one file that travels
    model: ModelSpec
    data: DataSpec
    facts: DatasetFacts
    training: TrainingSpec
    needs: Needs  # node_id as the file says it; whoever submits finds the id (Caller.node_called)
    max_attempts: int
    parameters: int
    priority: int = 0
    checkpoints: CheckpointPolicy = CheckpointPolicy()
    warnings: list[str] = []
    sealed: bool = False  # its data is, to one node
    job_id: str = ""  # chosen already, since it is sealed with the data, or others name it; "": by the submission
    after: list[After] = []  # jobs that have to be completed first
    best_by: SummaryMetric | None = None  # of several whose model it could begin with
    fetched: bool = False  # or packed: its data was made for it, in a folder of its own; discard() it when all is sent

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
            priority=self.priority,
            checkpoints=self.checkpoints,
            sealed=self.sealed,
            after=self.after,
            best_by=self.best_by,
        )


def load(
    path: str | Path,
    work_folder: Path | None = None,
    numerics: NumericsName | None = None,
    changes: Mapping[str, Any] | None = None,
    sources: dict[Any, Path] | None = None,
) -> LoadedJob:
    """Read and check a job file.

    work_folder: where data that is packed or fetched lies, each in a new folder within it, until discard() of the
    data's path; the system's temporary folder when absent. numerics: instead of the file's. changes: values by the
    names of their keys, such as "training.epochs", that count instead of the file's. sources: data that was packed or
    fetched for other jobs, which this one may share; what is made for it is added, and stays when it is refused.
    Raises SpecError, AmountError, DataError, ShapeError or GraphError; each message starts with the file it is about.
    """
    from cyxcore import data

    path = Path(path)
    if path.suffix != jobgraph.SUFFIX:
        file = jobgraph.parse(read_text(path), path, changes or {})
    elif changes:
        raise SpecError(f"{path}: {next(iter(changes))} can be set of a job file (TOML), this is a graph file")
    else:
        file = jobgraph.job_of(path)
    if numerics is not None:
        file = msgspec.structs.replace(file, training=msgspec.structs.replace(file.training, numerics=numerics))
    amount_base_units = amounts.parse(file.amount, f"{path}: amount")
    needs = _needs(file.needs, path)
    data_path, section = _data_file(file.data, path, work_folder, sources)
    fetched = data_path.parent.name.startswith((PACKED, FETCHED))
    try:
        spec = _data_spec(section, data_path, file, path)
        info = data.inspect(data_path, spec, loss=file.training.loss)
        model, graph = _model(file.model, info, spec.normalize, path)
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
                priority=file.priority,
                checkpoints=file.checkpoints,
                parameters=graph.parameter_count,
                fetched=fetched,
            ),
            info,
            graph,
            str(path),
        )
    except BaseException:
        if fetched and sources is None:
            discard(data_path)
        raise


def seal(job: LoadedJob, mine: Identity, node_id: str, key: str, work_folder: Path | None = None) -> LoadedJob:
    """The job for one node alone, its data sealed to that node's key in a new file, until discard() of its path.

    Its id is chosen here: the node trains this data under no other. Data that was packed or fetched for it in plain
    text goes. Raises SealError, DiskFault or SpecError.
    """
    if job.model.weights is not None:
        raise SpecError(f"{job.name}: a job that starts from weights cannot be sealed: everybody could read them")
    if not node_id.startswith(job.needs.node_id):
        raise SpecError(f"{job.name}: it is for node {job.needs.node_id}, and would be sealed for {node_id}")
    needs, job_id = msgspec.structs.replace(job.needs, node_id=node_id), subjects.new_job_id(job.name)
    job = msgspec.structs.replace(job, needs=needs, sealed=True, job_id=job_id)
    found = describe(job.data_path)
    plain = job.request(ArtifactRef(sha256=found.sha256, size=found.size))
    folder = _new_folder(PACKED, work_folder)
    target = folder / f"{job.data_path.name}.sealed"
    try:
        about = envelope.About(job=plain, job_id=job_id)
        envelope.seal(job.data_path, target, envelope.new_envelope(mine, key), "data", about)
    except BaseException:
        discard(target)
        raise
    if job.fetched:
        discard(job.data_path)
    return msgspec.structs.replace(job, data_path=target, fetched=True)


def discard(data_path: Path) -> None:
    """Remove data that was fetched or packed, and its folder with it; what is gone already is no error."""
    with contextlib.suppress(OSError):
        data_path.unlink(missing_ok=True)
        data_path.parent.rmdir()


def from_module(
    module: Any,
    source: "str | Path | tuple[Any, Any]",
    amount: str | int,
    *,
    name: str,
    spec: DataSpec,
    training: TrainingSpec,
    needs: Needs,
    weights_path: Path,
) -> LoadedJob:
    """A job from a cyxcore module: traced here, its weights saved to `weights_path` for upload.

    source: a file, or arrays (x, y), which are written beside the weights.
    """
    import cyxcore
    from cyxcore import data
    from cyxcore.data.arrays import pack_arrays

    amount_base_units = amounts.parse(amount)
    if isinstance(source, str | Path):
        data_path = Path(source)
    elif isinstance(source, tuple) and len(source) == 2:
        data_path = weights_path.with_name("data.npz")
        pack_arrays(*source, data_path)
        spec = msgspec.structs.replace(spec, target="y")
    else:
        got = f"{len(source)} of them" if isinstance(source, tuple) else f"a {type(source).__name__}"
        raise DataError(f"data: expected the path of a file, or two arrays (inputs, targets), got {got}")
    task = data.task_of(spec, training.loss)
    spec = msgspec.structs.replace(spec, format=data.detect_format(data_path), task=task)
    info = data.inspect(data_path, spec, loss=training.loss)
    graph, weights = cyxcore.trace(module, input_shape=tuple(info.input_shape))
    cyxcore.save_model(weights_path, graph, weights)
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
    if job.training.numerics != "exact" and job.needs.device == "cuda":
        raise SpecError(
            f"{where}: training.numerics: {job.training.numerics} is a class of products on a CPU, and needs.device is"
            ' cuda; leave numerics out, or ask for device = "cpu"'
        )
    rule = job.training.optimizer
    least = 4 * graph.parameter_count * (2 + OPTIMIZER_SLOTS[rule.name] + rule.amsgrad)
    for name, own in (("memory", job.needs.memory_bytes), ("gpu_memory", job.needs.gpu_memory_bytes)):
        if 0 < own < least:
            raise SpecError(
                f"{where}: needs.{name}: expected at least {least // 10**6 + 1} MB, for weights, gradients and the"
                f" optimizer of {job.parameters:,} parameters, got {own // 10**6} MB; raise it or leave it out"
            )
    return msgspec.structs.replace(
        job, warnings=_check_fit(info, graph, job.training, job.data.validation > 0.0, where)
    )


# ---------------------------------------------------------------------------------------------------
# What the file means


def _needs(section: NeedsSection, path: Path) -> Needs:
    gpu_memory_bytes = parse_bytes(section.gpu_memory, f"{path}: needs.gpu_memory")
    if gpu_memory_bytes and section.device != "cuda":
        raise SpecError(
            f'{path}: needs.gpu_memory: only a job with needs.device = "cuda" has a GPU, got device ='
            f' "{section.device}"; ask for "cuda", or leave gpu_memory out'
        )
    return Needs(
        device=section.device,
        memory_bytes=parse_bytes(section.memory, f"{path}: needs.memory"),
        gpu_memory_bytes=gpu_memory_bytes,
        cores=section.cores,
        region=section.region,
        node_id=section.node,
    )


def _data_file(
    section: DataSection, path: Path, work_folder: Path | None, sources: dict[Any, Path] | None
) -> tuple[Path, DataSection]:
    """The one file that travels, and the section that describes it: packed when the source is not one file."""
    from cyxcore import data

    made = {} if sources is None else sources
    same = (path.parent, section.path, section.target_path, section.image_size)
    if section.path.startswith(("https://", "s3://")):
        if same not in made:
            made[same] = _fetched(section.path, path, work_folder)
        return made[same], section
    source = path.parent / (_of_uri(section.path, path) if section.path.startswith("file:") else section.path)
    if not section.path or "://" in str(section.path).removeprefix("file://"):
        raise DataError(f"{path}: data.path: expected a file or folder of this machine, got {section.path!r}")
    if not source.exists():
        there = [each.name for each in source.parent.glob("*") if each.suffix != ".toml"]  # no data: job files
        near = difflib.get_close_matches(source.name, there, 1)
        hint = f"; did you mean {near[0]}?" if near else " (paths are relative to the job file)"
        raise DataError(f"{path}: data.path: there is no {source}{hint}")
    for key, given, wanted in [
        ("target_path", section.target_path, source.suffix == ".npy"),
        ("image_size", section.image_size, source.is_dir()),
    ]:
        if given is not None and not wanted:
            raise SpecError(f"{path}: data.{key} does not go with data.path = {section.path!r}")
    if not source.is_dir() and source.suffix != ".npy":
        return source, section
    if not source.is_dir() and section.target_path is None:
        raise SpecError(f"{path}: data.target_path is missing: the .npy file with the labels of {section.path}")
    if same not in made:
        packed = _new_folder(PACKED, work_folder) / f"{source.name.removesuffix('.npy')}.npz"
        try:
            if section.target_path is None:
                data.pack_images(source, section.image_size, packed)
            else:
                data.pack(source, path.parent / section.target_path, packed)
        except BaseException:
            discard(packed)
            raise
        made[same] = packed
    return made[same], msgspec.structs.replace(section, format="npz", target="y")


def _new_folder(prefix: str, work_folder: Path | None) -> Path:
    """For one job's data: two sources may have the same name, and two jobs be sent at once."""
    if work_folder:
        work_folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=work_folder))


def _fetched(url: str, path: Path, work_folder: Path | None) -> Path:
    """The file at an https or s3 address, where whoever submits has allowed it: a job file may come from a stranger."""
    scheme = url.partition(":")[0]
    if scheme not in os.environ.get(REMOTE_DATA, "").split(","):
        raise DataError(
            f"{path}: data.path: expected a file or folder of this machine, got {url!r}; "
            f"to have it fetched from there set {REMOTE_DATA}={scheme}"
        )
    from cyxnet.fetch import FetchError, fetch, signed

    folder = _new_folder(FETCHED, work_folder)
    try:
        return fetch(signed(url) if scheme == "s3" else url, folder)
    except FetchError as error:
        raise DataError(f"{path}: data.path: {error}") from None
    finally:
        with contextlib.suppress(OSError):  # only when it is empty
            folder.rmdir()


def _of_uri(uri: str, path: Path) -> Path:
    """The file that a file: URI names. It must lie in the folder of the job file or the one one works in."""
    parts = urlsplit(uri)
    named = Path(unquote(parts.path))
    roots = [path.parent.resolve(), Path.cwd()]
    if parts.netloc not in ("", "localhost") or not named.is_absolute() or "\0" in parts.path or "%00" in parts.path:
        raise DataError(f"{path}: data.path: expected file:///FOLDER/FILE, got {uri!r}")
    if not any(named.resolve().is_relative_to(root) for root in roots):
        raise DataError(f"{path}: data.path: {uri} is neither in {roots[0]} nor in {roots[1]}; name it by its path")
    return named


def normalize_of(section: DataSection, model: ModelSection, path: Path) -> Literal["standard", "minmax", "none"]:
    """A list of layers gets the scaling put before it; a graph only when that is asked for, a cyxcore Graph never."""
    if model.layers is not None:
        return section.normalize or "standard"
    if section.normalize not in (None, "none") and not jobgraph.is_file(model):
        raise SpecError(
            f"{path}: data.normalize = {section.normalize!r} does not go with model.graph, which is trained as it"
            " stands; scale inside the graph, and leave data.normalize out"
        )
    return section.normalize or "none"


def _data_spec(section: DataSection, data_path: Path, file: JobFile, path: Path) -> DataSpec:
    from cyxcore import data

    fields = {name: getattr(section, name) for name in DataSpec.__struct_fields__}
    fields["format"] = section.format or data.detect_format(data_path)
    fields["normalize"] = normalize_of(section, file.model, path)
    spec = DataSpec(**fields)
    try:
        return msgspec.structs.replace(spec, task=data.task_of(spec, file.training.loss))
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def _model(
    section: ModelSection, info: "DatasetInfo", normalize: Literal["standard", "minmax", "none"], path: Path
) -> tuple[ModelSpec, "Graph"]:
    """The model as it is sent and its graph, built here so that every shape is known to fit."""
    from cyxcore import layers

    sample = list(info.input_shape)
    if sum(one is not None for one in (section.layers, section.graph, section.pattern)) != 1:
        raise SpecError(f"{path}: model: expected exactly one of layers, graph and pattern")
    if section.input is not None and section.input != sample:
        raise SpecError(
            f"{path}: model.input is {section.input}, one sample of the data is {sample}; leave model.input out,"
            ' and begin the layers with { kind = "Reshape", shape = [...] } to view it differently'
        )
    if jobgraph.is_file(section):
        model = ModelSpec(graph=jobgraph.compiled(section, sample, normalize, path).to_json())
    elif section.graph is not None:
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
        raise SpecError(f"{path}: model.graph: {graph_path} is not JSON ({one_line(error)})") from None
    if not isinstance(graph, dict):
        raise SpecError(f"{path}: model.graph: {graph_path}: expected a JSON object")
    return graph


def _check_fit(info: "DatasetInfo", graph: "Graph", training: TrainingSpec, held_out: bool, where: str) -> list[str]:
    """Model, data and loss fit each other, or an error; what is odd but possible is returned as warnings."""
    from cyxcore import data

    check_metrics(training, held_out)
    output = list(graph.output_shape)
    if info.classes is not None and len(output) != 1:
        raise SpecError(
            f"{where}: expected a model that gives one row of numbers per sample, it gives {output}; "
            'put { kind = "Flatten" } before its last Linear layer'
        )
    try:
        data.check_labels(info, math.prod(output), loss=training.loss)
    except CyxError as error:
        raise type(error)(f"{where}: {error}") from None
    classes = len(info.classes or [])
    if training.loss == "cross_entropy" and output[0] != classes:
        raise SpecError(
            f"{where}: the model ends in {output[0]} outputs, the data has {classes} classes;"
            f" make the last layer give {classes}"
        )
    warnings = [
        f"the column {name!r} is taken for a feature, and is pandas' row numbers: name it in data.ignore"
        for name in info.feature_names
        if re.fullmatch(r"__index_level_\d+__|Unnamed: \d+", name)
    ]
    if training.batch_size > info.rows:
        warnings.append(f"batch_size {training.batch_size} is more than the {info.rows} rows: one batch per epoch")
    return warnings
