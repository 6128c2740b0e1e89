"""Batches of a dataset, in an order that depends on nothing but the seed and the epoch.

    loader = cx.data.DataLoader(dataset, batch_size=32, shuffle=True, seed=7, num_workers=2)
    for x, y in loader:
        ...
    state = loader.state_dict()        # at any point; load_state_dict(state) goes on with the next batch

Workers are threads: kernels, NumPy and reading files let others run. Any number of them delivers the same batches in
the same order, and none outlives the loop over the loader.
"""

import collections.abc
import contextlib
import itertools
import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from cyxcore.attrs import is_whole
from cyxcore.data.collate import default_collate
from cyxcore.data.samplers import RandomSampler, Sampler, SequentialSampler, checked_seed
from cyxcore.drawing import AUGMENT_STEP
from cyxcore.errors import CyxError, DataError, SpecError
from cyxcore.random import Generator, default
from cyxcore.transforms import Compose, Transform

Array = np.ndarray[Any, Any]
Task = Callable[[], Any]  # makes one batch
Batches = collections.abc.Generator[Any, None, None]


class DataLoader:
    """Batches of a dataset, as torch's class of this name.

    dataset: anything with `__len__` and `__getitem__`, or an iterable, which is read in its own order by one thread.
    shuffle: a new order in every epoch. sampler: row numbers instead of all rows (cyxcore/data/samplers.py).
    seed, or generator (from which one is drawn): of the order; without either, one is drawn from the generator that
    cx.manual_seed sets. collate_fn: samples -> batch. num_workers: threads; 0 makes each batch when it is asked for.
    prefetch_factor: batches that each thread may be ahead. augment: a cx.transforms.Compose for the images, the first
    part of each batch; the second are their targets. It is keyed by the seed and the step, as in a training run.

    epoch: which pass over the data is under way, or comes next; 1-based, as in training runs.

    Raises SpecError for options that do not go together, DataError, with the row, for whatever reading a row raises.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Sampler | Iterable[int] | None = None,
        *,
        num_workers: int = 0,
        collate_fn: Callable[[Sequence[Any]], Any] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        generator: Generator | None = None,
        prefetch_factor: int = 2,
        augment: Transform | Compose | None = None,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        batch_sampler: Any = None,
        worker_init_fn: Any = None,
        timeout: float = 0,
    ) -> None:
        """batch_sampler: lists of row numbers, with a length, in the place of batch_size, shuffle, sampler, drop_last.

        pin_memory, persistent_workers, worker_init_fn, timeout: accepted and without effect, for workers are threads.
        """
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise SpecError("DataLoader: batch_sampler says already what batch_size, shuffle, sampler and drop_last do")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch_factor", prefetch_factor, 1),
        ):
            if not is_whole(value) or value < least:
                raise SpecError(f"DataLoader: expected {name} >= {least}, got {value!r}")
        if seed is not None and generator is not None:
            raise SpecError("DataLoader: expected at most one of seed and generator, got both")
        if shuffle and sampler is not None:
            raise SpecError("DataLoader: shuffle=True does not go with a sampler, which has the order already")
        self.dataset, self.batch_size, self.shuffle = dataset, int(batch_size), shuffle
        self.num_workers, self.drop_last, self.prefetch_factor = num_workers, drop_last, prefetch_factor
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self.augment = augment
        self._at_once = collate_fn is None and hasattr(dataset, "take_rows")
        if seed is None:
            seed = (default if generator is None else generator).split(1)[0].seed
        self.seed = checked_seed("DataLoader", seed)
        self._streams = not hasattr(dataset, "__getitem__")
        self.batch_sampler = batch_sampler
        self.sampler = self._sampler(sampler)
        self.epoch, self._batch, self._goes_on = 1, 0, False
        self._read_once = False  # for what gives its rows only once, such as a generator
        self._newest: object = None  # the loop that was begun last: the state is its place

    def _sampler(self, given: Sampler | Iterable[int] | None) -> Sampler | Iterable[int] | None:
        if self._streams:
            if not hasattr(self.dataset, "__iter__"):
                got = type(self.dataset).__name__
                raise SpecError(f"DataLoader: expected a dataset with __getitem__ and __len__, or __iter__, got {got}")
            if self.shuffle or given is not None or self.batch_sampler is not None:
                raise SpecError(
                    "DataLoader: an iterable dataset has its own order: leave shuffle and sampler out, and wrap it in "
                    "cx.data.ShuffleBuffer to mix neighbouring rows"
                )
            return None
        rows = len(self.dataset if given is None else given)  # type: ignore[arg-type]
        if not rows or (self.drop_last and rows < self.batch_size):
            what = "drop_last leaves none" if rows else "there are none"
            raise DataError(f"DataLoader: expected rows for at least one batch of {self.batch_size}, {what} of {rows}")
        if given is not None:
            return given
        return RandomSampler(self.dataset, self.seed) if self.shuffle else SequentialSampler(self.dataset)

    def __len__(self) -> int:
        """Batches of an epoch. TypeError where an iterable dataset does not say how many rows it has."""
        if self.batch_sampler is not None:
            return len(self.batch_sampler)
        rows = len(self.dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if not self._goes_on and self._batch:  # the pass before was left in its middle
            self.epoch, self._batch = self.epoch + 1, 0
        self._goes_on = False
        self._newest = own = object()
        return self._deliver(self._tasks(self.epoch, self._batch), own)

    # where it is ------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Which pass the next loop makes, from its first batch."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
            raise SpecError(f"DataLoader: expected an epoch >= 1, got {epoch!r}")
        self.epoch, self._batch, self._goes_on = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """What load_state_dict needs to go on after the batch that was delivered last.

        Of several loops at once, it is the place of the one that was begun last.
        """
        ended = not self._streams and self._batch == len(self)
        return {
            "epoch": self.epoch + ended,
            "batch": 0 if ended else self._batch,
            "seed": self.seed,
            "rows": None if self._streams else len(self.sampler),  # type: ignore[arg-type]
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next loop goes on where `state` was taken. The seed is the state's.

        Raises SpecError when rows, batch_size, drop_last or shuffle are others than there, or something is missing.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping):
            raise SpecError(f"DataLoader: expected a state_dict() of a DataLoader, got {type(state).__name__}")
        if missing := sorted(set(own) - set(state)):
            raise SpecError(f"DataLoader: expected a state_dict() of a DataLoader, got one without {missing}")
        for name in ("rows", "batch_size", "drop_last", "shuffle"):
            if state[name] != own[name]:
                raise SpecError(f"DataLoader: {name} was {state[name]} in the state, is {own[name]} here")
        epoch, batch, seed = (state[name] for name in ("epoch", "batch", "seed"))
        most = math.inf if self._streams else len(self)
        if not (isinstance(epoch, int) and isinstance(batch, int) and epoch >= 1 and 0 <= batch < most):
            raise SpecError(f"DataLoader: batch {batch!r} of epoch {epoch!r} is not in an epoch of {most} batches")
        self.seed = checked_seed("DataLoader", seed)
        if self.shuffle:
            self.sampler = RandomSampler(self.dataset, self.seed)
        self.epoch, self._batch, self._goes_on = epoch, batch, batch > 0

    # making batches ---------------------------------------------------------------------------

    def _tasks(self, epoch: int, skipped: int) -> Iterator[Task]:
        """What makes each batch of an epoch, from the batch number `skipped` (0-based) on."""
        if self._streams:
            yield from self._reading_tasks(epoch, skipped)
            return
        cuts = range(0, len(self) * self.batch_size, self.batch_size)
        if self.batch_sampler is not None:
            batches = _batches(self.batch_sampler, epoch)
        else:
            rows = _row_numbers(self.sampler, epoch)
            batches = (rows[start : start + self.batch_size] for start in cuts)
        for batch, places in enumerate(itertools.islice(batches, skipped, None), start=skipped):
            yield partial(
                self._made, places, (epoch - 1) * len(self) + batch + 1, f"batch {batch + 1} of epoch {epoch}"
            )

    def _made(self, rows: Array, step: int, where: str) -> Any:
        batch = self._gathered(rows, where)
        try:
            return self._augmented(batch, step)
        except Exception as error:
            raise _told(f"rows {_few(rows)} ({where})", error) from error

    def _augmented(self, batch: Any, step: int) -> Any:
        """A batch whose images went through `augment`. step: 1-based, over all epochs."""
        if self.augment is None:
            return batch
        key = (self.seed, AUGMENT_STEP + step)
        if not isinstance(batch, (tuple, list)):
            return self.augment(batch, key)
        if len(batch) == 1:
            return (self.augment(batch[0], key),)
        return (*self.augment(batch[0], key, batch[1]), *batch[2:])

    def _gathered(self, rows: Array, where: str) -> Any:
        if self._at_once:
            try:
                return self.dataset.take_rows(rows)
            except Exception as error:
                for row in rows.tolist():
                    self._sample(row, where)  # raises for the first that cannot be read alone
                raise _told(f"rows {_few(rows)} ({where})", error) from error
        samples = [self._sample(row, where) for row in rows.tolist()]
        try:
            return self.collate_fn(samples)
        except Exception as error:
            raise _told(f"rows {_few(rows)} ({where})", error) from error

    def _sample(self, row: int, where: str) -> Any:
        try:
            return self.dataset[row]
        except Exception as error:
            raise _told(f"row {row} ({where})", error) from error

    def _reading_tasks(self, epoch: int, skipped: int) -> Iterator[Task]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        rows = iter(self.dataset)
        if rows is self.dataset and self._read_once:
            got = f"a {type(self.dataset).__name__}, which is over after one"
            remedy = "derive the dataset from cx.data.IterableDataset, whose __iter__ begins anew"
            raise SpecError(f"DataLoader: expected rows for another pass (epoch {epoch}), got {got}; {remedy}")
        self._read_once = True
        samples = itertools.islice(rows, skipped * self.batch_size, None)
        for batch in itertools.count(skipped):
            yield partial(self._read, samples, batch, epoch)

    def _read(self, samples: Iterator[Any], batch: int, epoch: int) -> Any:
        read: list[Any] = []
        where = f"batch {batch + 1} of epoch {epoch}"
        try:
            read.extend(itertools.islice(samples, self.batch_size))
        except Exception as error:
            raise _told(f"row {batch * self.batch_size + len(read)} ({where})", error) from error
        if not read or (self.drop_last and len(read) < self.batch_size):
            return _END
        try:
            return self._augmented(self.collate_fn(read), epoch << 32 | batch)
        except Exception as error:
            raise _told(f"rows from {batch * self.batch_size} ({where})", error) from error

    def _deliver(self, tasks: Iterator[Task], own: object) -> Iterator[Any]:
        with contextlib.closing(self._in_order(tasks)) as batches:
            for batch in batches:
                if batch is _END:
                    break
                if self._newest is own:
                    self._batch += 1
                yield batch
        if self._newest is own:
            self.epoch, self._batch = self.epoch + 1, 0

    def _in_order(self, tasks: Iterator[Task]) -> Batches:
        """The batches, one after the other, with threads some of them ahead."""
        if not self.num_workers:
            for task in tasks:
                yield task()
            return
        threads = 1 if self._streams else self.num_workers
        under_way: deque[Future[Any]] = deque()
        pool = ThreadPoolExecutor(threads, "cyx-loader")
        try:
            for task in tasks:
                under_way.append(pool.submit(task))
                if len(under_way) > threads * self.prefetch_factor:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def get_worker_info() -> None:
    """None, as in PyTorch's main process: workers are threads, which share the dataset, and a stream has only one."""


class _End:
    """Of an iterable dataset."""


_END = _End()


def _row_numbers(sampler: Any, epoch: int) -> Array:
    if isinstance(sampler, Sampler) and type(sampler).rows is not Sampler.rows:
        return sampler.rows(epoch)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    rows = list(sampler)
    wrong = next((row for row in rows if not hasattr(row, "__index__")), None)
    if wrong is not None:
        raise SpecError(f"DataLoader: expected a sampler of row numbers, got {wrong!r}")
    if len(rows) != len(sampler):
        raise SpecError(f"DataLoader: expected {len(sampler):,} rows of the sampler, as it said, got {len(rows):,}")
    return np.array([operator.index(row) for row in rows], np.int64)


def _batches(batch_sampler: Any, epoch: int) -> Iterator[Array]:
    """The rows of each batch, as they are asked for."""
    if hasattr(batch_sampler, "set_epoch"):
        batch_sampler.set_epoch(epoch)
    for rows in batch_sampler:
        if not isinstance(rows, (list, tuple)) or not all(hasattr(row, "__index__") for row in rows):
            raise SpecError(f"DataLoader: expected a batch_sampler of lists of row numbers, got {rows!r}")
        yield np.array([operator.index(row) for row in rows], np.int64)


def _few(rows: Array) -> str:
    return ", ".join(map(str, rows[:4].tolist())) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")


def _told(where: str, error: Exception) -> DataError:
    kind = "" if isinstance(error, CyxError) else f"{type(error).__name__}: "
    return DataError(f"DataLoader: {where}: {kind}{error}")
