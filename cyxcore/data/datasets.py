"""Datasets for a DataLoader: things with rows, parts of them, and several as one. Names are torch's.

A dataset is anything with `__len__` and `__getitem__(row)`; deriving from Dataset adds `+` and says so. One that also
has `take_rows(rows)` gives a whole batch at once, collated already, where reading row by row would be slow.
"""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cyxcore.creation import from_numpy
from cyxcore.data.split import shuffled, stratified_order
from cyxcore.eager import Tensor
from cyxcore.errors import DataError, ShapeError, SpecError

Array = np.ndarray[Any, Any]


class Dataset:
    """Rows by number: derive from it and write `__len__` and `__getitem__`."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no __len__: a Dataset says how many rows it has")

    def __getitem__(self, row: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __getitem__: a Dataset gives a row by its number")

    def __add__(self, other: "Dataset") -> "ConcatDataset":
        return ConcatDataset([self, other])


class IterableDataset:
    """Rows one after the other, such as a file too large for memory: derive from it and write `__iter__`.

    Each call of `__iter__` begins anew. Where `set_epoch(epoch)` is there, a DataLoader calls it before.
    """

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__} has no __iter__: an IterableDataset gives its rows in turn")


class TensorDataset(Dataset):
    """Row i is the i-th row of each tensor or array; of a single one it is a tuple of one, as in torch.

    Arrays are read where they lie, so a memory map (open_npy) stays on the disk; tensors of another device are copied
    to the host once. Raises ShapeError unless all have as many rows, DtypeError for what is no number.
    """

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ShapeError("TensorDataset: expected at least one tensor, got none")
        self._arrays = tuple(_numbers(value) for value in tensors)
        shapes = [array.shape for array in self._arrays]
        if not all(shapes) or len({shape[0] for shape in shapes}) != 1:
            told = ", ".join(map(str, shapes))
            raise ShapeError(f"TensorDataset: expected tensors with the same number of rows, got shapes {told}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All rows of each."""
        return self.take_rows(np.arange(len(self)))

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, row: Any) -> tuple[Tensor, ...]:
        """A row; several of a slice, a list or a tensor of their places or of bools. Raises IndexError."""
        if isinstance(row, (slice, list)) or np.ndim(row) == 1:
            return self.take_rows(np.arange(len(self))[host_array(row) if isinstance(row, Tensor) else row])
        row = _checked(int(row), len(self))
        return tuple(part[0] for part in self.take_rows(np.array([row])))

    def take_rows(self, rows: Array) -> tuple[Tensor, ...]:
        """Several rows at once: tensors (len(rows), …)."""
        return tuple(from_numpy(_native(array.take(rows, axis=0))) for array in self._arrays)


class Subset(Dataset):
    """The rows `indices` of a dataset, in that order."""

    def __init__(self, dataset: Any, indices: Sequence[int] | Array) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, np.int64).reshape(-1)
        count = len(dataset)
        outside = np.flatnonzero((self.indices < -count) | (self.indices >= count))
        if outside.size:
            raise ShapeError(f"Subset: expected rows below {count:,}, got {int(self.indices[outside[0]]):,}")
        if hasattr(dataset, "take_rows"):
            self.take_rows = lambda rows: dataset.take_rows(self.indices[rows])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[int(self.indices[_checked(row, len(self))])]


class ConcatDataset(Dataset):
    """The rows of several datasets, one after the other."""

    def __init__(self, datasets: Iterable[Any]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise SpecError("ConcatDataset: expected at least one dataset, got none")
        for dataset in self.datasets:
            if not hasattr(dataset, "__len__"):
                raise SpecError(f"ConcatDataset: expected datasets that have a length, got {type(dataset).__name__}")
        self.cumulative_sizes = list(itertools.accumulate(len(dataset) for dataset in self.datasets))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, row: int) -> Any:
        row = _checked(row, len(self))
        place = bisect.bisect_right(self.cumulative_sizes, row)
        return self.datasets[place][row - (self.cumulative_sizes[place - 1] if place else 0)]


def random_split(dataset: Any, lengths: Sequence[float], seed: int = 0, *, generator: Any = None) -> list[Subset]:
    """Parts of a dataset, of the given numbers of rows, or of shares that add up to 1; each row is in one.

    The same seed makes the same parts on every machine, each in the order of the dataset. What rounding shares leaves
    over goes to the first parts, a row each, as in torch. generator: what draws the seed.
    """
    if generator is not None:
        seed = generator.split(1)[0].seed
    order, counts = shuffled(len(dataset), seed), _counts(len(dataset), lengths)
    starts = [0, *itertools.accumulate(counts)]
    return [Subset(dataset, np.sort(order[start : start + n])) for start, n in zip(starts, counts, strict=False)]


def stratified_split(dataset: Any, labels: Any, share: float, seed: int = 0) -> tuple[Subset, Subset]:
    """(to train on, held out): a share 0 < share < 1 of every class is held out, exactly as a job's data is split.

    labels: class of each row, (N,): its index, or its name as text. Every class keeps a row to train on. Raises
    DataError when nothing could be held out.
    """
    classes = np.asarray(host_array(labels) if isinstance(labels, Tensor) else labels)
    if classes.dtype.kind in "UO" and all(isinstance(each, str) for each in classes.flat):
        classes = np.unique(classes, return_inverse=True)[1].reshape(classes.shape)
    if classes.shape != (len(dataset),) or classes.dtype.kind not in "iu" or classes.size and classes.min() < 0:
        got = f"{classes.dtype} {classes.shape}"
        raise ShapeError(
            f"stratified_split: expected a class index >= 0, or a name, for each of {len(dataset):,} rows, got {got}"
        )
    if not 0.0 < share < 1.0:
        raise SpecError(f"stratified_split: expected 0 < share < 1, got {share}")
    held = stratified_order(shuffled(len(dataset), seed), classes.astype(np.int64), share)
    if not held.size:
        raise DataError("stratified_split: expected a class with at least 2 rows, so that one can be held out")
    is_held = np.zeros(len(dataset), bool)
    is_held[held] = True
    return Subset(dataset, np.flatnonzero(~is_held)), Subset(dataset, np.flatnonzero(is_held))


def host_array(tensor: Tensor) -> Array:
    """A tensor's numbers in the host's memory; bfloat16 becomes float32, for which NumPy has a name."""
    return tensor.astype("float32").numpy() if tensor.dtype == "bfloat16" else tensor.detach().numpy()


def _numbers(value: Any) -> Array:
    if not isinstance(value, np.ndarray):
        return host_array(value if isinstance(value, Tensor) else Tensor(value))
    Tensor(_native(value.reshape(-1)[:0]))  # raises DtypeError for what no tensor can hold
    return value


def _native(array: Array) -> Array:
    """In this machine's byte order, and no memory map any more."""
    return np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)


def _counts(rows: int, lengths: Sequence[float]) -> list[int]:
    if all(isinstance(length, int) for length in lengths) and sum(lengths) == rows and min(lengths, default=0) >= 0:
        return [int(length) for length in lengths]
    if not lengths or min(lengths) < 0 or not math.isclose(math.fsum(lengths), 1.0):
        told = ", ".join(map(str, lengths))
        raise SpecError(f"random_split: expected numbers of rows that add up to {rows:,}, or shares of 1, got {told}")
    counts = [math.floor(rows * share) for share in lengths]
    for place in range(rows - sum(counts)):
        counts[place % len(counts)] += 1
    return counts


def _checked(row: int, count: int) -> int:
    if not -count <= row < count:
        raise IndexError(f"dataset: expected a row below {count:,}, got {row:,}")
    return row + count if row < 0 else row
