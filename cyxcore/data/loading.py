"""A dataset for a job: look at it before it is submitted, load it to train.

`inspect` reads all of it, exactly as `load` will on the node: what one accepts, the other accepts, so
a defect is found before anything is paid.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import Struct

from cyxcore.data.arrays import read_arrays
from cyxcore.data.augment import Augment, augment_of
from cyxcore.data.checks import MAX_BYTES, Path
from cyxcore.data.formats import check_start
from cyxcore.data.kept import Reading, keep, place, recall
from cyxcore.data.labels import check_classes, check_probabilities, encode
from cyxcore.data.split import split
from cyxcore.data.tables import read_table
from cyxcore.errors import DataError, SpecError
from cyxcore.spec import DataFormat, DataSpec, Task

if TYPE_CHECKING:
    from numpy import ndarray

TASK_OF_LOSS: dict[str, Task] = {
    "cross_entropy": "classification",
    "bce": "classification",
    "mse": "regression",
    "l1": "regression",
    "huber": "regression",
}


class DatasetInfo(Struct, kw_only=True, frozen=True):
    """What is in a dataset.

    rows: all of them, before any are held out. feature_names: empty for NPZ.
    input_shape: of one sample. classes: by index, None for regression.
    target_width: numbers to predict per row (1 for classification).
    """

    format: DataFormat
    rows: int
    feature_names: list[str]
    input_shape: list[int]
    task: Task
    classes: list[str] | None
    target: str
    target_width: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class LoadedData:
    """Arrays to train with. Inputs are raw: scaling is the model's, learnt from the training rows.

    x_train (N, …) and x_val (M, …): float32. y_train, y_val: (N,) int64 class indices, or (N, K) float32.
    Both sides are in the order of the file. M is 0 when nothing is held out. augment: for the rows of a training step.
    """

    x_train: ndarray
    y_train: ndarray
    x_val: ndarray
    y_val: ndarray
    classes: list[str] | None
    feature_names: list[str]
    task: Task
    augment: Augment | None = None


def task_of(spec: DataSpec, loss: str | None = None) -> Task:
    """data.task, or what the loss implies; classification if neither says.

    Raises SpecError if the two contradict each other, or for an unknown loss.
    """
    if loss is None:
        return spec.task or "classification"
    if loss not in TASK_OF_LOSS:
        raise SpecError(f"training.loss: expected one of {', '.join(TASK_OF_LOSS)}, got {loss!r}")
    implied = TASK_OF_LOSS[loss]
    if loss == "bce" and (spec.task == "regression" or spec.target_is_input):
        return "regression"
    if spec.target_is_input and implied == "classification":
        raise SpecError(f'training.loss: "{loss}" is for classes, and the target is the input; use "mse" or "bce"')
    if spec.task not in (None, implied):
        raise SpecError(
            f'training.loss: expected a loss for data.task = "{spec.task}", got "{loss}" ({implied}); '
            "change one of the two"
        )
    return implied


def inspect(path: Path, spec: DataSpec, *, loss: str | None = None, limit_bytes: int = MAX_BYTES) -> DatasetInfo:
    """What is in the file, once all of it has been read and found fit to train on.

    Raises DataError as `load` does, also if no rows can be held out.
    """
    read = _read(path, spec, loss, limit_bytes)
    split(path, len(read.x), None if read.classes is None else read.y, spec.validation, 0)
    augment_of(path, spec, read.x)
    return DatasetInfo(
        format=spec.format,
        rows=len(read.x),
        feature_names=read.feature_names,
        input_shape=list(read.x.shape[1:]),
        task=read.task,
        classes=read.classes,
        target="the input" if spec.target_is_input else spec.target,
        target_width=1 if read.y.ndim == 1 else read.y.shape[1],
    )


def load(
    path: Path,
    spec: DataSpec,
    *,
    loss: str | None = None,
    seed: int = 0,
    limit_bytes: int = MAX_BYTES,
    kept_in: Path | None = None,
    sha256: str | None = None,
) -> LoadedData:
    """The dataset in memory, with data.validation of its rows held out, chosen by the seed.

    loss: the job's, which says the task where data.task does not. limit_bytes: refuse what would take
    more memory than this (or than the machine has free). kept_in: a folder where the arrays of a table are
    kept for the next call. sha256: of the file, when the caller has just verified it. Raises DataError for every
    defect of the file, SpecError if loss and data.task contradict each other.
    """
    read = _read_once(path, spec, loss, limit_bytes, kept_in, sha256)
    train, held = split(path, len(read.x), None if read.classes is None else read.y, spec.validation, seed)
    return LoadedData(
        x_train=read.x[train] if len(held) else read.x,
        y_train=read.y[train] if len(held) else read.y,
        x_val=read.x[held],
        y_val=read.y[held],
        classes=read.classes,
        feature_names=read.feature_names,
        task=read.task,
        augment=augment_of(path, spec, read.x),
    )


def _read_once(
    path: Path, spec: DataSpec, loss: str | None, limit_bytes: int, kept_in: Path | None, sha256: str | None
) -> Reading:
    """_read, or what it gave the last time. NPZ is arrays already."""
    file = pathlib.Path(path)
    if kept_in is None or spec.format == "npz" or not file.is_file():
        return _read(path, spec, loss, limit_bytes)
    how = [spec.format, spec.target, spec.features, spec.ignore, task_of(spec, loss), loss, spec.target_is_input]
    where = place(pathlib.Path(kept_in), file, how, sha256)
    reading = recall(where)
    if reading is None:
        reading = _read(path, spec, loss, limit_bytes)
        keep(where, reading)
    return reading


def _read(path: Path, spec: DataSpec, loss: str | None, limit_bytes: int) -> Reading:
    task = task_of(spec, loss)
    check_start(path, spec.format)
    feature_names: list[str] = []
    if spec.format == "npz":
        x, y, classes = read_arrays(path, spec, task, limit_bytes)
    else:
        x, target, feature_names, decode = read_table(path, spec, task, limit_bytes)
        y, classes = encode(path, spec.target, target, decode) if isinstance(target, list) else (target, None)
    if classes is not None:
        check_classes(path, spec.target, classes, loss)
    elif loss == "bce":
        check_probabilities(path, spec.target, y)
    return Reading(x, y, classes, feature_names, task)


def check_labels(info: DatasetInfo, outputs: int, *, loss: str | None = None) -> None:
    """Raises DataError if a model with this many outputs per row cannot be trained on the dataset.

    Classification needs an output for each class (with loss "bce", one output for two classes);
    regression as many as there are numbers to predict.
    """
    if info.classes is None:
        if outputs != info.target_width:
            raise DataError(
                f"column {info.target!r}: expected a model with {info.target_width} outputs, got {outputs}; "
                f"set out_features = {info.target_width} in the last layer"
            )
        return
    needed = 1 if loss == "bce" else len(info.classes)
    if outputs < needed or (loss == "bce" and outputs != 1):
        raise DataError(
            f"column {info.target!r}: expected a model with {needed} outputs for labels 0 to "
            f"{len(info.classes) - 1} ({len(info.classes)} classes), got {outputs}; "
            f"set out_features = {needed} in the last layer"
        )
