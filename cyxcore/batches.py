"""What a fit reads: arrays, whose batches are cut here, or anything that gives batches by itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cyxcore import checkpoint as checkpoints
from cyxcore import drawing
from cyxcore.dtype import is_float
from cyxcore.eager import Tensor
from cyxcore.errors import CheckpointError, DataError, ShapeError, SpecError

Array = np.ndarray[Any, Any]
LOADER = "put a dataset in a loader: cx.data.DataLoader(dataset, batch_size=32, shuffle=True)"
Batch = tuple[list[Tensor], Tensor | None]  # what the model takes, and the target


class Source:
    """Batches, epoch after epoch."""

    batches: int | None  # of an epoch; None where only reading them tells
    described: str  # for a checkpoint: what data this is

    def epoch(self, number: int, skip: int) -> Iterator[Batch]:
        """The batches of an epoch (1-based) but the first `skip`."""
        raise NotImplementedError

    def rows_until(self, batch: int) -> int | None:
        """Of the first batches of an epoch together."""
        return None

    def state_dict(self) -> dict[str, Any] | None:
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Arrays(Source):
    """Rows of arrays of one length, the target last. shuffle: a permutation keyed by (seed, epoch)."""

    def __init__(self, arrays: Sequence[Any], targets: bool, batch_size: int, shuffle: bool, seed: int) -> None:
        self.arrays, self.targets = list(arrays), targets
        counts = {len(array) for array in self.arrays}
        if len(counts) != 1:
            shapes = ", ".join(str(np.shape(array)) for array in self.arrays)
            raise ShapeError(f"batches: expected arrays with one row for each sample, got {shapes}")
        self.rows = counts.pop()
        if not self.rows:
            raise DataError("batches: expected at least one row, got none")
        self.batch_size, self.shuffle, self.seed = min(batch_size, self.rows), shuffle, seed
        self.batches = -(-self.rows // self.batch_size)

    @property
    def described(self) -> str:  # type: ignore[override]
        order = f"batches of {self.batch_size}, {f'shuffled by {self.seed}' if self.shuffle else 'in order'}"
        return f"{checkpoints.describe_rows(self.arrays)}; {order}"

    def epoch(self, number: int, skip: int) -> Iterator[Batch]:
        order = drawing.permutation(self.seed, number, self.rows) if self.shuffle else np.arange(self.rows)
        for start in range(skip * self.batch_size, self.rows, self.batch_size):
            rows = order[start : start + self.batch_size]
            taken = [Tensor(array[rows]) for array in self.arrays]
            yield (taken[:-1], taken[-1]) if self.targets else (taken, None)

    def rows_until(self, batch: int) -> int:
        return min(batch * self.batch_size, self.rows)


class Stream(Source):
    """Any iterable of batches, read anew for each epoch: a cx.data.DataLoader, a list, an object with __iter__.

    Where it has set_epoch(number) it is told which epoch comes; where it has state_dict() and load_state_dict(), a
    checkpoint keeps them. A resumed epoch reads past the batches that were learned from, unless the loader's own state
    leads to the place.
    """

    described = "an iterable"

    def __init__(self, given: Any, dtype: str | None) -> None:
        self.given, self.dtype = given, dtype
        try:
            self.batches = len(given)
        except TypeError:
            self.batches = None
        self._goes_on: tuple[int, int] | None = None  # (epoch, batch) its own state leads to

    def epoch(self, number: int, skip: int) -> Iterator[Batch]:
        if self._goes_on != (number, skip):
            if hasattr(self.given, "set_epoch"):
                self.given.set_epoch(number)
            left = skip
        else:
            left = 0
        self._goes_on = None
        place = skip
        for batch in self.given:
            if left:
                left -= 1
                continue
            place += 1
            yield split(batch, self.dtype, f"batch {place} of epoch {number}")
        if left:
            raise CheckpointError(
                f"fit: expected at least {skip} batches in epoch {number}, as before, got {skip - left}"
            )

    def state_dict(self) -> dict[str, Any] | None:
        if hasattr(self.given, "state_dict") and hasattr(self.given, "load_state_dict"):
            found: dict[str, Any] = self.given.state_dict()
            return found
        return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.given.load_state_dict(state)
        if "epoch" in state and "batch" in state:
            self._goes_on = (state["epoch"], state["batch"])


def split(batch: Any, dtype: str | None, where: str) -> Batch:
    """A batch of a stream: (x, target), (x, x, …, target), ((x, …), target) or x alone. Raises DataError for others."""
    if is_array(batch):
        return [tensor(batch, dtype)], None
    if not isinstance(batch, (tuple, list)) or not batch:
        raise DataError(f"{where}: expected a tensor or a tuple (input, …, target), got {type(batch).__name__}")
    *inputs, target = batch
    if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):
        inputs = list(inputs[0])
    if hasattr(target, "soft"):  # cx.transforms' Mixed
        raise DataError(
            f"{where}: expected one target a row, got two that Mixup or CutMix gave it; hand the trainer batches "
            "(x, y.soft(classes)), and a function of (output, probabilities) as its loss"
        )
    for part in (*inputs, target):
        if not is_array(part):
            raise DataError(f"{where}: expected tensors or arrays in it, got {type(part).__name__}")
        if not np.shape(part):
            raise DataError(f"{where}: expected arrays with one row for each sample, got a single number; {LOADER}")
    if not inputs:
        return [tensor(target, dtype)], None
    return [tensor(part, dtype) for part in inputs], tensor(target, dtype)


def tensor(given: Any, dtype: str | None) -> Tensor:
    """A tensor; NumPy's own float64, which nobody chose, becomes the dtype of the model."""
    made = given if isinstance(given, Tensor) else Tensor(given)
    return made.astype(dtype) if dtype is not None and made.dtype == "float64" and is_float(dtype) else made


def is_array(value: Any) -> bool:
    """Whether it is a tensor, an array or a table."""
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def source(x: Any, y: Any, dtype: str | None, batch_size: int, shuffle: bool, seed: int, epochs: int) -> Source:
    """Batches of whatever fit and evaluate were given. Raises SpecError, ShapeError or DataError."""
    if batch_size < 1:
        raise SpecError(f"batches: expected batch_size of at least 1, got {batch_size}")
    if hasattr(x, "x_train") and y is None:
        x, y = x.x_train, x.y_train
    parts = list(x) if isinstance(x, (tuple, list)) and x and all(is_array(part) for part in x) else None
    if y is None and parts is not None and len(parts) > 1:
        parts, y = parts[:-1], parts[-1]
    if parts is not None or is_array(x) or y is not None:
        inputs = parts if parts is not None else [x]
        held = [tensor(np.asarray(part) if isinstance(part, list) else part, dtype) for part in inputs]
        held += [] if y is None else [tensor(np.asarray(y) if isinstance(y, list) else y, dtype)]
        return Arrays([part.numpy() for part in held], y is not None, batch_size, shuffle, seed)
    if not hasattr(x, "__iter__"):
        if hasattr(x, "__getitem__") and hasattr(x, "__len__"):
            raise SpecError(f"batches: expected batches, got a {type(x).__name__}, which gives single rows; {LOADER}")
        raise SpecError(f"batches: expected arrays, or an iterable of batches, got {type(x).__name__}")
    if epochs > 1 and iter(x) is x:
        raise SpecError(
            f"batches: expected something that can be read {epochs} times, got a {type(x).__name__}, read only once; "
            "pass a list, a DataLoader or an object whose __iter__ starts anew"
        )
    return Stream(x, dtype)
