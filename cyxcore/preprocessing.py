"""Features made fit to learn from: scaling, missing values, logarithms, categories. Names are scikit-learn's.

    prepare = cx.preprocessing.Pipeline([Imputer("median"), LogTransform(), StandardScaler()]).fit(x_train)
    x_val = prepare(x_val)                               # with the statistics of the training rows
    model = cx.nn.Sequential(prepare.module(), net)      # which travel with the model: it takes raw features
    prepare.save("prepare.json"); prepare = cx.preprocessing.load("prepare.json")

Everything takes (N, …) and works feature by feature over the rows. A step that was fitted is a new value; `fit` never
changes what it is called on. Statistics are computed in float64, values in float32, with the same kernels as a model's.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from cyxcore import elementwise as E
from cyxcore import functional as F
from cyxcore.data.datasets import host_array
from cyxcore.eager import Tensor
from cyxcore.errors import DataError, FormatError, ShapeError, SpecError, other_format
from cyxcore.manipulation import reshape
from cyxcore.nn.module import Module

Array = np.ndarray[Any, Any]
Finite = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
Statistics = list[Finite]
Self = TypeVar("Self", bound="Step")

MAX_FILE_BYTES = 256 * 2**20
FORMAT = "cyx-preprocessing/1"


class Step(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag=True):
    """The base of all: `fit`, call, `inverse`, `module`. shape: of one row, known once it is fitted."""

    def fit(self: Self, x: Any) -> Self:
        """A step with the statistics of these rows. Raises DataError where they have none."""
        raise NotImplementedError

    def __call__(self, x: Any) -> Any:
        """The rows, prepared; an array (float32) for an array, a tensor for a tensor."""
        return _through(self, self.forward, x)

    def inverse(self, x: Any) -> Any:
        """What was prepared, as it was before. Raises SpecError for a step that cannot be undone."""
        return _through(self, self.backward, x)

    def numbers(self) -> dict[str, Tensor]:
        """The statistics as tensors, for `forward` and `backward`."""
        return {}

    def forward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        """The same on tensors and on symbols of a trace."""
        raise NotImplementedError

    def backward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        raise SpecError(f"{type(self).__name__}: it cannot be undone")

    def module(self) -> Module:
        """A layer that does the same, for the front of a model; it has nothing that is trained."""
        _fitted(self)
        return Prepare(self)


class _Scaler(Step, frozen=True):
    """(x - shift) / scale, feature by feature; a feature that never changes has scale 1."""

    shape: list[int] | None = None
    shift: Statistics | None = None
    scale: Statistics | None = None

    def _measured(self, rows: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def fit(self: Self, x: Any) -> Self:
        rows = _rows(self, x)
        shift, scale = self._measured(rows)  # type: ignore[attr-defined]
        scale = np.where(scale > 0.0, scale, 1.0)
        return replace(self, shape=list(rows.shape[1:]), shift=shift.ravel().tolist(), scale=scale.ravel().tolist())

    def numbers(self) -> dict[str, Tensor]:
        return {"shift": _row(self.shift, self.shape), "scale": _row(self.scale, self.shape)}

    def forward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        return (x - numbers["shift"]) / numbers["scale"]

    def backward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        return x * numbers["scale"] + numbers["shift"]


class StandardScaler(_Scaler, frozen=True):
    """Mean 0 and standard deviation 1 (of N, not N - 1)."""

    def _measured(self, rows: Array) -> tuple[Array, Array]:
        return rows.mean(0), rows.std(0)


class MinMaxScaler(_Scaler, frozen=True):
    """The least value 0 and the greatest 1."""

    def _measured(self, rows: Array) -> tuple[Array, Array]:
        return rows.min(0), rows.max(0) - rows.min(0)


class RobustScaler(_Scaler, frozen=True):
    """The median 0 and the range between the quartiles 1: outliers hardly matter."""

    def _measured(self, rows: Array) -> tuple[Array, Array]:
        low, middle, high = np.percentile(rows, [25, 50, 75], axis=0)
        return middle, high - low


class LogTransform(Step, frozen=True):
    """sign(x) log(1 + |x|): for what spans powers of ten; 0 stays 0."""

    def fit(self, x: Any) -> "LogTransform":
        _rows(self, x)
        return self

    def forward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        size = E.abs(x)
        above = size + 1.0
        lost = above - 1.0  # W. Kahan's log1p, which graphs lack: log(u) x / (u - 1), however u was rounded
        whole = E.log(above) * (size / F.where(lost == 0.0, 1.0, lost))
        return E.sign(x) * F.where(lost == 0.0, size, whole)

    def backward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        return E.sign(x) * E.expm1(E.abs(x))


class Imputer(Step, frozen=True):
    """Missing values (NaN) become the feature's mean, median or most frequent value, or `fill_value` (constant)."""

    strategy: Literal["mean", "median", "most_frequent", "constant"] = "mean"
    fill_value: Finite = 0.0
    shape: list[int] | None = None
    fill: Statistics | None = None

    def fit(self, x: Any) -> "Imputer":
        checked = _known(self)
        rows = _rows(self, x, missing=True)
        flat = rows.reshape(len(rows), -1)
        fill = [checked._value(column[~np.isnan(column)], place) for place, column in enumerate(flat.T)]
        return replace(self, shape=list(rows.shape[1:]), fill=fill)

    def _value(self, known: Array, place: int) -> float:
        if self.strategy == "constant":
            return self.fill_value
        if not known.size:
            raise DataError(
                f"Imputer: feature {place} has no value in any row, so none to take its {self.strategy} of; "
                'leave it out, or use strategy="constant"'
            )
        if self.strategy == "most_frequent":
            values, counts = np.unique(known, return_counts=True)
            return float(values[counts.argmax()])
        return float(known.mean() if self.strategy == "mean" else np.median(known))

    def numbers(self) -> dict[str, Tensor]:
        return {"fill": _row(self.fill, self.shape)}

    def forward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        return F.where(E.isnan(x), numbers["fill"], x)


class OneHotEncoder(Step, frozen=True):
    """(N,) or (N, F) categories, as numbers, become 0 and 1 for each: (N, all categories of all columns).

    unknown: a category that was not there when it was fitted is an error, or 0 everywhere (ignore). A layer made of it
    always ignores. For text see `categories_of` and `encode`.
    """

    unknown: Literal["error", "ignore"] = "error"
    categories: list[Statistics] | None = None

    def fit(self, x: Any) -> "OneHotEncoder":
        rows = _rows(self, x)
        categories = [np.unique(column) for column in rows.reshape(len(rows), -1).T]
        for place, known in enumerate(categories):
            same = np.flatnonzero(np.diff(known.astype(np.float32)) == 0)
            if same.size:
                raise DataError(
                    f"OneHotEncoder: column {place}: expected categories that float32 tells apart, got "
                    f"{known[same[0]]:.17g} and {known[same[0] + 1]:.17g}; number them from 0"
                )
        return replace(self, categories=[known.tolist() for known in categories])

    def __call__(self, x: Any) -> Any:
        _fitted(self)
        array = _as_array(x)
        categories = self.categories or []
        width = math.prod(array.shape[1:])
        if array.ndim < 1 or width != len(categories):
            raise ShapeError(
                f"OneHotEncoder: expected rows of {len(categories)} columns, as it was fitted on, got {array.shape}"
            )
        columns = array.reshape(len(array), width).T
        for place, (column, known) in enumerate(zip(columns, categories, strict=True)):
            new = np.flatnonzero(~np.isin(column.astype(np.float32), np.array(known, np.float32)))
            if new.size and self.unknown == "error":
                raise DataError(
                    f"OneHotEncoder: row {new[0]}, column {place}: expected one of {_few(known)}, got "
                    f'{column[new[0]]:g}; fit it on more rows, or use unknown="ignore"'
                )
        return _through(self, self.forward, x)

    def numbers(self) -> dict[str, Tensor]:
        return {f"categories_{place}": _row(known, [len(known)]) for place, known in enumerate(self.categories or [])}

    def forward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        columns = reshape(x, (x.shape[0], -1))
        found = [
            (columns[:, place : place + 1] == known).astype("float32") for place, known in enumerate(numbers.values())
        ]
        return found[0] if len(found) == 1 else F.concat(found, 1)

    def backward(self, x: Any, numbers: Mapping[str, Any]) -> Any:
        parts, start = [], 0
        for known in numbers.values():
            stop = start + known.shape[0]
            parts.append(known[x[:, start:stop].argmax(1)].reshape(-1, 1))
            start = stop
        return parts[0] if len(parts) == 1 else F.concat(parts, 1)


AnyStep = StandardScaler | MinMaxScaler | RobustScaler | LogTransform | Imputer | OneHotEncoder


class _File(Struct, forbid_unknown_fields=True):
    format: str
    steps: list[AnyStep]


class Pipeline:
    """Steps one after the other, each fitted on what those before made of the training rows."""

    def __init__(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if not isinstance(step, Step):
                raise SpecError(f"Pipeline: expected steps of cx.preprocessing, got {type(step).__name__}")
        if not steps:
            raise SpecError("Pipeline: expected at least one step, got none")
        self.steps = list(steps)

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(type(step).__name__ for step in self.steps)}])"

    def fit(self, x: Any) -> "Pipeline":
        fitted: list[Step] = []
        for step in self.steps:
            fitted.append(step.fit(x))
            x = fitted[-1](x)
        return Pipeline(fitted)

    def __call__(self, x: Any) -> Any:
        for step in self.steps:
            x = step(x)
        return x

    def inverse(self, x: Any) -> Any:
        for step in reversed(self.steps):
            x = step.inverse(x)
        return x

    def module(self) -> Module:
        """A layer that does the same, for the front of a model."""
        for step in self.steps:
            _fitted(step)
        return Prepare(*self.steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write steps and statistics as JSON."""
        for step in self.steps:
            _fitted(step)
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode({"format": FORMAT, "steps": self.steps})))


class Prepare(Module):
    """Fitted steps as a layer. Their statistics are buffers: they are in its state_dict and travel with the model."""

    def __init__(self, *steps: Step) -> None:
        super().__init__()
        self.steps = steps
        for place, step in enumerate(steps):
            for name, value in step.numbers().items():
                self.register_buffer(f"{place}_{name}", value)

    def forward(self, x: Any) -> Any:
        for place, step in enumerate(self.steps):
            x = step.forward(x, {name: getattr(self, f"{place}_{name}") for name in step.numbers()})
        return x

    def extra_repr(self) -> str:
        return ", ".join(type(step).__name__ for step in self.steps)


def load(path: str | os.PathLike[str]) -> Pipeline:
    """What Pipeline.save wrote. Raises FormatError for a file that is something else."""
    where = Path(path)
    try:
        if where.stat().st_size > MAX_FILE_BYTES:
            raise FormatError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes of steps; is this data?")
        read = msgspec.json.decode(where.read_bytes(), type=_File)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path}: expected steps as Pipeline.save writes them: {error}") from None
    if read.format != FORMAT:
        raise FormatError(f"{path}: {other_format(read.format, FORMAT)}")
    try:
        for step in read.steps:
            _fitted(step)
        return Pipeline(read.steps)
    except SpecError as error:
        raise FormatError(f"{path}: {error}") from None


def categories_of(values: Sequence[str]) -> list[str]:
    """The different texts, in code point order: what `encode` numbers. Raises DataError where one is missing."""
    for row, value in enumerate(values):
        if value is None or value != value:  # NaN, as pandas has it
            raise DataError(
                f"categories_of: row {row}: expected a text, got {value}; give what is missing a name of its own, such "
                'as "unknown"'
            )
    try:
        return sorted(set(values))
    except TypeError:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(f"categories_of: expected texts, got a mixture of {kinds}; use str() on each") from None


def encode(values: Sequence[str], categories: Sequence[str]) -> Array:
    """The place of each text among the categories, (N,) int64. Raises DataError naming the first that is none."""
    place_of = {category: place for place, category in enumerate(categories)}
    for row, value in enumerate(values):
        if value not in place_of:
            raise DataError(f"encode: row {row}: expected one of {_few(list(categories))}, got {str(value)[:80]!r}")
    return np.fromiter((place_of[value] for value in values), np.int64, len(values))


# ----------------------------------------------------------------------------------------------------


def _known(step: Imputer) -> Imputer:
    """Raises SpecError for an option that cannot be."""
    try:
        return msgspec.convert(msgspec.to_builtins(step), Imputer)
    except msgspec.ValidationError as error:
        raise SpecError(f"Imputer: {error}") from None


def _fitted(step: Step) -> None:
    """Raises SpecError for statistics that are not there or do not fit each other."""
    name = type(step).__name__
    lists = {"shift": "shape", "scale": "shape", "fill": "shape", "categories": "categories"}
    for field in step.__struct_fields__:
        if field not in lists:
            continue
        value, other = getattr(step, field), getattr(step, lists[field])
        if value is None or other is None:
            raise SpecError(f"{name}: it has no statistics yet; call fit(x_train) and use what it returns")
        if field == "categories":
            if not value or not all(value):
                raise SpecError(f"{name}: expected at least one category in each column, got none")
        elif any(side < 1 for side in other):
            raise SpecError(f"{name}: expected a shape of sides >= 1, got {other}")
        elif len(value) != math.prod(other):
            raise SpecError(f"{name}: expected {math.prod(other)} numbers of {field}, got {len(value)}")
        if field == "scale" and min(value) <= 0.0:
            raise SpecError(f"{name}: expected a scale > 0, got {min(value):g}")


def _as_array(x: Any) -> Array:
    array = host_array(x) if isinstance(x, Tensor) else np.asarray(x)
    if array.dtype.kind not in "biuf":
        advice = "see encode for text"
        if array.dtype.kind in "mM":
            advice = "count the days since the first: (x - x.min()) / numpy.timedelta64(1, 'D')"
        raise DataError(f"preprocessing: expected numbers, got {array.dtype}; {advice}")
    return array


def _rows(step: Step, x: Any, missing: bool = False) -> Array:
    """(N, …) float64, checked. Raises DataError."""
    name, rows = type(step).__name__, _as_array(x).astype(np.float64)
    if rows.ndim < 1 or 0 in rows.shape:
        raise DataError(f"{name}: expected rows (N, …), got {rows.shape}")
    with np.errstate(over="ignore"):
        good = np.isfinite(rows.astype(np.float32))
    if missing:
        good |= np.isnan(rows)
    if not good.all():
        place = np.unravel_index(int(good.argmin()), good.shape)
        advice = "" if missing or not np.isnan(rows[place]) else "; put an Imputer before it"
        if np.isfinite(rows[place]):
            advice = ", which is too large for float32; scale it down"
        where = f"row {place[0]}" + (f", feature {', '.join(map(str, place[1:]))}" if len(place) > 1 else "")
        raise DataError(f"{name}: {where}: expected a finite number, got {rows[place]}{advice}")
    return rows


def _row(values: Statistics | None, shape: Sequence[int] | None) -> Tensor:
    return Tensor(np.array(values, np.float32).reshape(tuple(shape or ())))


def _through(step: Step, run: Any, x: Any) -> Any:
    _fitted(step)
    shape = getattr(step, "shape", None)
    tensor = x if isinstance(x, Tensor) and x.dtype == "float32" else Tensor(_as_array(x).astype(np.float32))
    if shape is not None and list(tensor.shape[1:]) != shape:
        raise ShapeError(
            f"{type(step).__name__}: expected rows of shape {tuple(shape)}, as it was fitted on, got {tensor.shape[1:]}"
        )
    out = run(tensor, step.numbers())
    return out if isinstance(x, Tensor) else out.numpy()


def _few(values: Sequence[Any]) -> str:
    told = ", ".join(f"{value:g}" if isinstance(value, float) else repr(value)[:40] for value in values[:6])
    return told + (f" and {len(values) - 6} more" if len(values) > 6 else "")
