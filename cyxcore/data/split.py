"""Which rows are held out. The same seed holds out the same rows on every machine, for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyxcore.data.checks import Path, defect

if TYPE_CHECKING:
    from numpy import ndarray

_STREAM = 0x73706C6974  # "split": the second word of the Philox key, so no other use of the seed shares it


def shuffled(rows: int, seed: int) -> ndarray:
    """A permutation of range(rows), int64.

    Rows are sorted by Philox-4x64 words keyed by the seed. NumPy promises the raw words of a bit
    generator across versions, but not what Generator.permutation makes of them.
    """
    import numpy as np

    words = np.random.Philox(key=np.array([seed, _STREAM], np.uint64)).random_raw(rows)
    return np.argsort(words, kind="stable").astype(np.int64)


def split(path: Path, rows: int, labels: ndarray | None, validation: float, seed: int) -> tuple[ndarray, ndarray]:
    """Row numbers (0-based, ascending, int64) to train on and to hold out.

    With labels (N,) each class gives its share, and every class keeps a row to train on: a class with
    a single row is never held out. Raises DataError if a side would be empty.
    """
    import numpy as np

    order = shuffled(rows, seed)
    if validation == 0.0:
        return np.sort(order), order[:0]
    if labels is None:
        held = order[: min(max(1, round(rows * validation)), rows - 1)]
    else:
        held = stratified_order(order, labels, validation)
    if held.size == 0:
        remedy = 'add rows, or set data.validation = 0 (or data.task = "regression" for numbers to predict)'
        raise defect(path, "a class with at least 2 rows, so that one can be held out", "1 row each", remedy)
    is_held = np.zeros(rows, bool)
    is_held[held] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def stratified_order(order: ndarray, labels: ndarray, validation: float) -> ndarray:
    """The rows each class gives, by largest remainder: the shares add up to round(rows * validation)."""
    import numpy as np

    counts = np.bincount(labels)
    exact = counts * validation
    give = np.minimum(np.floor(exact).astype(np.int64), np.maximum(counts - 1, 0))
    missing = max(1, round(len(labels) * validation)) - int(give.sum())
    by_remainder = np.argsort(-(exact - give), kind="stable")
    able = by_remainder[give[by_remainder] < counts[by_remainder] - 1]
    give[able[: max(0, missing)]] += 1
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    return by_class[rank < np.repeat(give, counts)]
