"""A checkpoint: all that the next training step depends on, as one safetensors file.

Data order and dropout are keyed by (seed, epoch) and (seed, step), so a position takes the place of a generator's
state. The bytes say nothing of when or where they were written: the same job at the same point has one digest. A
CRC-32 (eight times faster here than SHA-256) finds damage; who fetches a checkpoint from others knows its SHA-256.
"""

import io
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct

from cyxcore import cyxmodel, safetensors
from cyxcore.errors import CheckpointError, FormatError, other_format
from cyxcore.spec import EpochMetrics

Array = np.ndarray[Any, Any]
Count = Annotated[int, Meta(ge=0, le=2**53)]

FORMAT = "cyx-checkpoint/1"
HISTORY_COLUMNS = ("epoch_loss", "epoch_accuracy", "validation_loss", "validation_accuracy", "validation_r2")
STATE, DELIVERED, HISTORY = "state.", "delivered.", "history."  # how the names of the tensors begin
SCORES = HISTORY + "scores."
LOSSES, RIGHT = "epoch.losses", "epoch.right"
PARAMETER_BYTES = 64  # at most: itself, what would be delivered, and what an optimiser keeps; with room to spare
ROW_BYTES = 16  # at most one batch a row, and two numbers each
EPOCH_BYTES = 8 * 64  # of the history: one number a metric
REST_BYTES = 2**25  # names and metadata


class Position(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place between two steps: `batch` batches of epoch `epoch` (1-based) are done, `step` steps in all.

    best_epoch: the best of the epochs that ended, 0 before the first did.
    """

    epoch: Count
    batch: Count
    step: Count
    best_epoch: Count


class Identity(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint belongs to. training: the TrainingSpec in canonical JSON. rows: see describe_rows."""

    graph_sha256: str
    training: str
    rows: str
    numerics: str


class Checkpoint(Struct, frozen=True, kw_only=True):
    """state: parameters, buffers and the optimiser's own arrays. delivered: what would be delivered now.

    losses, right: of each batch of the epoch under way, sums over its rows. history holds no timings: epochs that
    ended before a checkpoint have epoch_time_ms and samples_per_s 0.0. notes: what a learner adds, JSON; None: nothing.
    """

    identity: Identity
    position: Position
    state: Mapping[str, Array]
    delivered: Mapping[str, Array]
    losses: list[float]
    right: list[float]
    history: list[EpochMetrics]
    notes: dict[str, Any] | None = None


def describe_rows(arrays: Iterable[Array]) -> str:
    """Shape, dtype and CRC-32 of each array."""
    return ", ".join(f"{array.shape} {array.dtype.name} {_crc32([_raw(array)])}" for array in arrays)


def untimed(metrics: EpochMetrics) -> EpochMetrics:
    """The same epoch without its timings: what is equal on every machine."""
    return msgspec.structs.replace(metrics, epoch_time_ms=0.0, samples_per_s=0.0)


def with_one_nan(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The same numbers, with one bit pattern for every NaN.

    IEEE 754 leaves sign and payload of a NaN to the processor and the order of operands (section 6.2.3), so honest
    machines may differ in them alone; and states and models are compared by their digests.
    """
    return {name: _with_one_nan(array) for name, array in arrays.items()}


def _with_one_nan(array: Array) -> Array:
    if array.dtype.kind != "f" or not (found := np.isnan(array)).any():
        return array
    return np.where(found, array.dtype.type(np.nan), array)


def save(path: str | os.PathLike[str], checkpoint: Checkpoint, synced: bool = True) -> None:
    """Write it, complete or not at all. Raises OSError when the disk cannot take it."""
    tensors = {
        **{STATE + name: array for name, array in with_one_nan(checkpoint.state).items()},
        **{DELIVERED + name: array for name, array in with_one_nan(checkpoint.delivered).items()},
        **_history_tensors(checkpoint.history),
        LOSSES: np.array(checkpoint.losses, np.float64),
        RIGHT: np.array(checkpoint.right, np.float64),
    }
    metadata = {
        "format": FORMAT,
        "identity": _json(checkpoint.identity),
        "position": _json(checkpoint.position),
        "data_crc32": _data_crc32(tensors),
        **({} if checkpoint.notes is None else {"notes": _json(checkpoint.notes)}),
    }
    safetensors.save(path, tensors, metadata, synced)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and check a file, or the checkpoint within a .cyxmodel.

    Raises CheckpointError for one that is missing, damaged or no checkpoint.
    """
    where = f"checkpoint {path}"
    try:
        if str(path).endswith(".cyxmodel"):
            held = cyxmodel.load(path).training()
            if held is None:
                raise CheckpointError(f"{where}: the model holds no training state; it was saved without checkpoint=")
            tensors, metadata = safetensors.load_from(io.BytesIO(held), len(held), str(path))
        else:
            tensors, metadata = safetensors.load(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read ({error.strerror})") from None
    except FormatError as error:
        raise CheckpointError(f"{where}: the file is damaged or no checkpoint: {error}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{where}: {other_format(metadata.get('format', 'none'), FORMAT)}")
    if metadata.get("data_crc32") != _data_crc32(tensors):
        raise CheckpointError(f"{where}: its arrays have another CRC-32 than its metadata says: the file is damaged")
    try:
        identity = msgspec.json.decode(metadata.get("identity", ""), type=Identity)
        position = msgspec.json.decode(metadata.get("position", ""), type=Position)
        notes = msgspec.json.decode(metadata.get("notes", "null"), type=dict[str, Any] | None)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise CheckpointError(f"{where}: its metadata is unreadable: {error}") from None
    losses, right = _column(tensors, LOSSES, position.batch, where), tensors.get(RIGHT, np.zeros(0))
    return Checkpoint(
        identity=identity,
        position=position,
        state={name[len(STATE) :]: array for name, array in tensors.items() if name.startswith(STATE)},
        delivered={name[len(DELIVERED) :]: array for name, array in tensors.items() if name.startswith(DELIVERED)},
        losses=losses,
        right=_column(tensors, RIGHT, position.batch, where) if right.size else [],
        history=_history(tensors, position, where),
        notes=notes,
    )


def check_identity(found: Identity, wanted: Identity) -> None:
    """Raises CheckpointError that names all in which a checkpoint differs from the run that is to go on from it."""
    differences = []
    for name in ("graph_sha256", "rows", "numerics"):
        have, want = getattr(found, name), getattr(wanted, name)
        if have != want:
            differences.append(f"{name}: expected {want[:400]}, got {have[:400]}")
    if found.training != wanted.training:
        differences.append(_training_difference(found.training, wanted.training))
    if differences:
        raise CheckpointError(
            f"checkpoint: it belongs to another run ({'; '.join(differences)}); "
            "go on from a checkpoint of this one, or from the beginning"
        )


def check_size(path: str | os.PathLike[str], parameters: Iterable["Wanted"], rows: int, epochs: int) -> None:
    """Raises CheckpointError for a file that is larger than any checkpoint of such a run can be, before it is read.

    Who signs such a state would else be found out by nobody: who tries to go on from it runs out of memory.
    """
    count = sum(math.prod(param.shape) for param in parameters)
    most_bytes = PARAMETER_BYTES * count + ROW_BYTES * rows + EPOCH_BYTES * epochs + REST_BYTES
    try:
        size_bytes = os.stat(path).st_size
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error.strerror})") from None
    if size_bytes > most_bytes:
        raise CheckpointError(
            f"checkpoint {path}: expected at most {most_bytes} bytes for a run of this model, got {size_bytes}"
        )


class Wanted(Protocol):
    """What an array must be; a Param of a graph is one."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


def check_arrays(arrays: Mapping[str, Array], wanted: Iterable[Wanted], what: str) -> None:
    """Exactly the wanted arrays must be there. Raises CheckpointError naming what is off."""
    params = {param.name: param for param in wanted}
    if set(params) != set(arrays):
        missing, extra = sorted(set(params) - set(arrays)), sorted(set(arrays) - set(params))
        raise CheckpointError(f"checkpoint: {what}: missing {missing or 'none'}, not known {extra or 'none'}")
    for name, param in params.items():
        array = arrays[name]
        if array.shape != param.shape or array.dtype.name != param.dtype:
            raise CheckpointError(
                f"checkpoint: {what}: {name}: expected {param.dtype} {param.shape}, got {array.dtype} {array.shape}"
            )


def check_position(position: Position, batches: int | None, epochs: int) -> None:
    """Raises CheckpointError for a position that a run of this length never has. batches: None where not known."""
    epoch, batch = position.epoch, position.batch
    ended = epoch == epochs + 1 and batch == 0
    if not (ended or (1 <= epoch <= epochs and (batches is None or batch <= batches))):
        raise CheckpointError(
            f"checkpoint: batch {batch} of epoch {epoch} is not in a run of {epochs} epochs with {batches} batches"
        )
    if batches is not None and position.step != (epoch - 1) * batches + batch:
        raise CheckpointError(f"checkpoint: batch {batch} of epoch {epoch} does not follow {position.step} steps")
    if not min(1, epoch - 1) <= position.best_epoch <= epoch - 1:
        raise CheckpointError(f"checkpoint: epoch {position.best_epoch} cannot be the best before epoch {epoch}")


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _training_difference(found: str, wanted: str) -> str:
    """Which fields of the training differ."""
    try:
        have, want = msgspec.json.decode(found), msgspec.json.decode(wanted)
        names = sorted(name for name in {*have, *want} if have.get(name) != want.get(name))
        return "; ".join(f"training.{name}: expected {want.get(name)}, got {have.get(name)}" for name in names)[:400]
    except (msgspec.MsgspecError, RecursionError, TypeError, AttributeError):
        return "training: not comparable"


def _data_crc32(tensors: Mapping[str, Array]) -> str:
    return _crc32(raw for _, raw in safetensors.in_file_order(tensors))


def _crc32(parts: Iterable[memoryview]) -> str:
    value = 0
    for raw in parts:
        value = zlib.crc32(raw, value)
    return f"{value:08x}"


def _raw(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _history_tensors(history: list[EpochMetrics]) -> dict[str, Array]:
    """One float64 column per number; a number that the epochs do not have has none."""
    columns = {}
    for column in HISTORY_COLUMNS:
        values = [getattr(metrics, column) for metrics in history]
        if values and values[0] is not None:
            columns[HISTORY + column] = np.array(values, np.float64)
    scores = [metrics.scores or {} for metrics in history]
    for name in sorted({name for row in scores for name in row}):
        columns[SCORES + name] = np.array([row.get(name, math.nan) for row in scores], np.float64)
    return columns


def _history(tensors: Mapping[str, Array], position: Position, where: str) -> list[EpochMetrics]:
    ended = position.epoch - 1
    if ended < 0 or (ended and HISTORY + "epoch_loss" not in tensors):
        raise CheckpointError(f"{where}: expected the losses of {ended} epochs, got none")
    columns: dict[str, Any] = {
        column: _column(tensors, HISTORY + column, ended, where)
        for column in HISTORY_COLUMNS
        if HISTORY + column in tensors
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    scores = {name: _column(tensors, name, ended, where) for name in sorted(tensors) if name.startswith(SCORES)}
    for number, row in enumerate(rows):
        found = {name[len(SCORES) :]: values[number] for name, values in scores.items()}
        row["scores"] = {name: value for name, value in found.items() if not math.isnan(value)} if found else UNSET
    return [
        EpochMetrics(epoch=epoch, epochs=0, step=0, epoch_time_ms=0.0, samples_per_s=0.0, **row)
        for epoch, row in enumerate(rows, 1)
    ]


def _column(tensors: Mapping[str, Array], name: str, length: int, where: str) -> list[float]:
    array = tensors.get(name)
    if array is None or array.dtype != np.float64 or array.shape != (length,):
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise CheckpointError(f"{where}: {name}: expected float64 ({length},), got {got}")
    return [float(value) for value in array]


def judged(metrics: EpochMetrics) -> float:
    """The loss by which epochs are compared: of the held-out rows where there are any."""
    return metrics.epoch_loss if metrics.validation_loss is None else metrics.validation_loss
