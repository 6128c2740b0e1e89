"""In which order rows are read: a pure function of (seed, epoch), so every machine and every resume agrees.

The order of a shuffled epoch is `drawing.permutation`, which training runs use as well: a DataLoader with a job's seed
and batch size gives the job's batches. Any other iterable of row numbers with a length can be a sampler too.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cyxcore import drawing
from cyxcore.attrs import is_whole
from cyxcore.data.datasets import IterableDataset, host_array
from cyxcore.eager import Tensor
from cyxcore.errors import SpecError
from cyxcore.kernels.philox import uniform_words

Array = np.ndarray[Any, Any]

_CHOICES, _MORE_CHOICES, _BUFFERS = 1, 2, 3  # streams of the words of an epoch; the permutation's is 0


class Sampler:
    """Row numbers of an epoch (1-based): derive from it and write `rows(epoch)` and `__len__`, or `__iter__` as in
    PyTorch.
    """

    epoch = 1

    def __init__(self, data_source: Any = None) -> None:
        """data_source: accepted and without effect, as in PyTorch."""

    def rows(self, epoch: int) -> Array:
        """(len(self),) int64."""
        raise NotImplementedError(f"{type(self).__name__} has no rows(epoch): it says which rows an epoch reads")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} has no __len__: it says how many rows an epoch reads")

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows(self.epoch).tolist())


class SequentialSampler(Sampler):
    """Every row, in the order of the dataset."""

    def __init__(self, data_source: Any) -> None:
        self._count = len(data_source)

    def __len__(self) -> int:
        return self._count

    def rows(self, epoch: int) -> Array:
        return np.arange(self._count, dtype=np.int64)


class RandomSampler(Sampler):
    """Every row once, in an order of (seed, epoch)."""

    def __init__(self, data_source: Any, seed: int = 0, *, generator: Any = None) -> None:
        """generator: what draws the seed."""
        self._count, self.seed = len(data_source), drawn_seed("RandomSampler", seed, generator)

    def __len__(self) -> int:
        return self._count

    def rows(self, epoch: int) -> Array:
        return drawing.permutation(self.seed, epoch, self._count)


class BatchSampler:
    """The rows of a sampler in lists of batch_size, the last one shorter unless it is left out."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool) -> None:
        if not is_whole(batch_size) or batch_size < 1:
            raise SpecError(f"BatchSampler: expected batch_size >= 1, got {batch_size!r}")
        self.sampler, self.batch_size, self.drop_last = sampler, int(batch_size), drop_last

    def __len__(self) -> int:
        rows = len(self.sampler)
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next loop is of."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        elif isinstance(self.sampler, Sampler):
            self.sampler.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        waiting: list[int] = []
        for row in self.sampler:
            waiting.append(row)
            if len(waiting) == self.batch_size:
                yield waiting
                waiting = []
        if waiting and not self.drop_last:
            yield waiting


class SubsetRandomSampler(Sampler):
    """The given rows once, in an order of (seed, epoch)."""

    def __init__(self, indices: Any, seed: int = 0, *, generator: Any = None) -> None:
        """generator: what draws the seed."""
        self.indices = np.asarray(indices, np.int64).reshape(-1)
        self.seed = drawn_seed("SubsetRandomSampler", seed, generator)

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, epoch: int) -> Array:
        return self.indices[drawing.permutation(self.seed, epoch, len(self.indices))]


class WeightedRandomSampler(Sampler):
    """`num_samples` rows an epoch, each drawn in proportion to its weight; all different unless `replacement`.

    weights: one number >= 0 per row, not all 0; see class_weights for rare classes. Without replacement these are the
    rows of the smallest u ** (1 / weight) from above (P. Efraimidis, P. Spirakis, 2006).
    """

    def __init__(
        self, weights: Any, num_samples: int, replacement: bool = True, seed: int = 0, *, generator: Any = None
    ) -> None:
        """generator: what draws the seed."""
        self.weights = np.asarray(host_array(weights) if isinstance(weights, Tensor) else weights, np.float64)
        self.num_samples, self.replacement = num_samples, replacement
        self.seed = drawn_seed("WeightedRandomSampler", seed, generator)
        with np.errstate(over="ignore"):
            bounded = np.isfinite(np.abs(self.weights).sum())
        good = self.weights.ndim == 1 and bounded and (self.weights >= 0).all()
        able = int(np.count_nonzero(self.weights)) if good else 0
        if not able:
            got = str(self.weights.shape) if self.weights.ndim != 1 or good else "one that is negative or not finite"
            raise SpecError(f"WeightedRandomSampler: expected a weight >= 0 per row, not all 0, got {got}")
        if num_samples < 1 or (not replacement and num_samples > able):
            most = "at least 1" if replacement else f"1 to {able:,} (the rows whose weight is not 0)"
            raise SpecError(f"WeightedRandomSampler: expected num_samples {most}, got {num_samples:,}")

    def __len__(self) -> int:
        return self.num_samples

    def rows(self, epoch: int) -> Array:
        if self.replacement:
            until = np.cumsum(self.weights)  # a running sum: np.sum has an order of its own
            found = np.searchsorted(until, _fractions(self.seed, epoch, self.num_samples) * until[-1], side="right")
            return np.minimum(found, np.flatnonzero(self.weights)[-1]).astype(np.int64)
        from cyxcore.variates import log

        waits = np.full(self.weights.shape, np.inf)
        able = self.weights > 0
        waits[able] = -log(_fractions(self.seed, epoch, len(waits))[able] + 2.0**-49) / self.weights[able]
        return np.argsort(waits, kind="stable")[: self.num_samples].astype(np.int64)


class ShuffleBuffer(IterableDataset):
    """The rows of an iterable dataset, mixed: each comes from among `buffer_size` that were read, by (seed, epoch)."""

    def __init__(self, dataset: Iterable[Any], buffer_size: int = 1000, seed: int = 0) -> None:
        if buffer_size < 1:
            raise SpecError(f"ShuffleBuffer: expected buffer_size >= 1, got {buffer_size}")
        self.dataset, self.buffer_size, self.seed = dataset, buffer_size, checked_seed("ShuffleBuffer", seed)
        self._epoch = 1

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        waiting: list[Any] = []
        words = _words(self.seed, drawing.ORDER_STEP + self._epoch)
        for row in self.dataset:
            if len(waiting) < self.buffer_size:
                waiting.append(row)
                continue
            place = next(words) * len(waiting) >> 32
            yield waiting[place]
            waiting[place] = row
        while waiting:
            place = next(words) * len(waiting) >> 32
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            yield waiting.pop()


def _words(seed: int, step: int) -> Iterator[int]:
    for stream in itertools.count(_BUFFERS):
        yield from uniform_words(seed, step, stream, 1024).tolist()


def class_weights(labels: Any) -> Array:
    """A weight per row, (N,) float64, with which every class is drawn as often: 1 / (rows of the row's class)."""
    classes = np.asarray(host_array(labels) if isinstance(labels, Tensor) else labels)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or not classes.size or classes.min() < 0:
        raise SpecError(f"class_weights: expected class indices >= 0, (N,), got {classes.dtype} {classes.shape}")
    result: Array = 1.0 / np.bincount(classes)[classes]
    return result


def drawn_seed(who: str, seed: int, generator: Any) -> int:
    """A seed that was given, or one that a generator draws."""
    if generator is not None and not hasattr(generator, "split"):
        raise SpecError(f"{who}: expected a cx.Generator, got {type(generator).__name__}")
    return checked_seed(who, seed if generator is None else generator.split(1)[0].seed)


def checked_seed(who: str, seed: int) -> int:
    if not is_whole(seed) or not 0 <= seed < 2**64:
        raise SpecError(f"{who}: expected an integer seed 0 <= seed < 2**64, got {seed!r}")
    return int(seed)


def _fractions(seed: int, epoch: int, count: int) -> Array:
    """Multiples of 2**-48 in [0, 1), of streams that the epoch's permutation does not use."""
    step = drawing.ORDER_STEP + epoch
    high, low = (uniform_words(seed, step, stream, count) >> 8 for stream in (_CHOICES, _MORE_CHOICES))
    result: Array = high * 2.0**-24 + low * 2.0**-48
    return result
