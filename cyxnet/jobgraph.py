"""Jobs whose model is a graph file (docs/graph-format.md): named, made of a pattern, or the job itself."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cyxcore.errors import CyxError, SpecError
from cyxnet import jobtoml
from cyxnet.jobtoml import JobFile, ModelSection

if TYPE_CHECKING:
    from cyxcore.graph import Graph
    from cyxcore.graphfile import GraphFile
    from cyxcore.recipe import Settings

Normalization = Literal["standard", "minmax", "none"]

SUFFIX = ".cyxgraph"
DECIDED = ("loss", "optimizer", "schedule", "label_smoothing")  # keys of [training] that a graph file says


def job_of(path: Path) -> JobFile:
    """The job of a graph file that says all of it: its data at the DatasetInput, its amount under "job"."""
    from cyxcore.recipe import read_settings

    settings = read_settings(path)
    if settings.job.amount is None:
        raise SpecError(f'{path}: job.amount is missing: what the job pays, such as "job": {{"amount": "2.5"}}')
    if not settings.data_path:
        raise SpecError(f"{path}: its DatasetInput has no path; add the parameter path, the file with the data")
    table = {
        "name": settings.job.name or settings.name or path.stem,
        "amount": settings.job.amount,
        "data": {"path": settings.data_path},
        "model": {"graph": path.name},
    }
    return _settled(jobtoml.convert(table, path), table, settings, path)


def parse(text: str, path: Path, changes: Mapping[str, Any] | None = None) -> JobFile:
    """A job file; where its model is a graph file or a pattern, with what that says of training and data.

    changes: values by the names of their keys, that count instead of the file's.
    """
    table = jobtoml.table_of(text, path, changes or {})
    file = jobtoml.convert(table, path)
    if file.model.parameters is not None and file.model.pattern is None:
        raise SpecError(f"{path}: model.parameters goes with model.pattern")
    if not is_file(file.model):
        return file
    from cyxcore.recipe import read_settings

    key = "pattern" if file.model.graph is None else "graph"
    with _told(path, key):
        settings = read_settings(_source(file.model, path))
    for name in DECIDED:
        if name in table.get("training", {}):
            raise SpecError(f"{path}: training.{name} is said by the graph of model.{key}; change it there")
    return _settled(file, table, settings, path)


def is_file(model: ModelSection) -> bool:
    """Whether the model is in the format of graph files."""
    return model.pattern is not None or model.graph is not None and model.graph.endswith(SUFFIX)


def _source(model: ModelSection, path: Path) -> "GraphFile | Path":
    from cyxcore import patterns

    if model.pattern is not None:
        return patterns.get(model.pattern, **(model.parameters or {}))
    assert model.graph is not None
    return path.parent / model.graph


@contextlib.contextmanager
def _told(path: Path, key: str) -> Iterator[None]:
    """Errors name the job file too, unless the two are one."""
    try:
        yield
    except CyxError as error:
        before = "" if str(error).startswith(f"{path}: ") else f"{path}: model.{key}: "
        raise type(error)(f"{before}{error}") from None


def _settled(file: JobFile, table: dict[str, Any], settings: "Settings", path: Path) -> JobFile:
    """A job file whose sections say what the graph says, except where they say it themselves."""
    said = {name: getattr(file.training, name) for name in table.get("training", {})}
    fields = {
        name: getattr(settings.data, name)
        for name in ("target", "features", "ignore", "validation", "task", "target_is_input")
        if name not in table["data"]
    }
    return msgspec.structs.replace(
        file,
        training=msgspec.structs.replace(settings.training, **said),
        data=msgspec.structs.replace(file.data, **fields),
    )


def compiled(model: ModelSection, sample: list[int], normalize: Normalization, path: Path) -> "Graph":
    """The model's graph for samples of this shape."""
    from cyxcore.recipe import load_graph

    with _told(path, "graph" if model.pattern is None else "pattern"):
        return load_graph(_source(model, path), sample, normalize).graph
