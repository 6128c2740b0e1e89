"""Labels become class indices: which names there are, in which order, and what cannot be a label."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from cyxcore.data.checks import Path, defect, listed, shown

if TYPE_CHECKING:
    from numpy import ndarray

MAX_LABEL_CHARS = 200
MAX_CLASSES = 1_000_000
AS_VALUES = 'for numbers to predict set data.task = "regression" and training.loss = "mse"'

_NUMBER = re.compile(r"\A[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})?\Z")
_NOT_FINITE = {"nan", "-nan", "inf", "-inf", "+inf", "infinity", "-infinity"}

# A cell's kind ("text", "a number", …) and the label it stands for; raises ValueError if it is none.
Decode = Callable[[str], tuple[str, str]]


def plain(cell: str) -> tuple[str, str]:
    """A cell of a format without types: text. Spaces around it are not part of a label."""
    return "text", cell.strip()


def encode(path: Path, column: str, cells: Sequence[str | None], decode: Decode) -> tuple[ndarray, list[str]]:
    """Class indices (N,) int64, and the class names in index order.

    Names are whole numbers in numeric order if all of them are, else text in code point order; so the
    same labels give the same indices on every machine. "1.0" and "1" are the same whole number.
    """
    import numpy as np

    code_of: dict[str | None, int] = {}  # distinct cells, numbered as they first appear
    codes = np.fromiter((code_of.setdefault(cell, len(code_of)) for cell in cells), np.int64, len(cells))
    first_rows = [int(index) + 1 for index in np.unique(codes, return_index=True)[1]]
    names = _names(path, column, list(zip(code_of, first_rows, strict=True)), codes, decode)
    classes = in_order(names)
    index_of = {name: index for index, name in enumerate(classes)}
    return np.array([index_of[name] for name in names], np.int64)[codes], classes


def _names(
    path: Path, column: str, distinct: list[tuple[str | None, int]], codes: ndarray, decode: Decode
) -> list[str]:
    """The label each distinct cell stands for."""
    import numpy as np

    labels: list[tuple[str, int]] = []
    kinds: dict[str, int] = {}
    for code, (cell, row) in enumerate(distinct):
        try:
            kind, label = ("", "") if cell is None else decode(cell)
        except ValueError as error:
            remedy = "write every label as text or as a whole number"
            raise defect(path, "a label", str(error), remedy, column=column, row=row) from None
        if not label:
            count = int(np.count_nonzero(codes == code))
            raise _missing(path, column, row, count, "an empty cell")
        check_label(path, column, row, label)
        kinds.setdefault(kind, row)
        labels.append((label, row))
    if len(kinds) > 1:
        (first, _), (other, row) = list(kinds.items())[:2]
        raise defect(path, f"{first} as in row 1", other, "use one type for all labels", column=column, row=row)
    return whole_if_numbers(path, column, labels, AS_VALUES)


def check_label(path: Path, column: str, row: int, label: str) -> None:
    """Raises DataError for a label that no message or table could carry."""
    if not label or len(label) > MAX_LABEL_CHARS or not label.isprintable():
        expected = f"1 to {MAX_LABEL_CHARS} printable characters"
        raise defect(path, expected, shown(label), "change the label", column=column, row=row)


def whole_if_numbers(path: Path, column: str, labels: Sequence[tuple[str, int]], as_values: str) -> list[str]:
    """ "3", "3.0" -> "3" when every label is a number; text stays as it is. A fraction is no class.

    labels: each with its row. as_values: how to have numbers that are values. Raises DataError.
    """
    finite = [label for label, _ in labels if label.lower() not in _NOT_FINITE]
    if not finite or not all(_NUMBER.match(label) for label in finite):
        return [label for label, _ in labels]
    names = []
    for label, row in labels:
        if label.lower() in _NOT_FINITE:
            raise _missing(path, column, row, None, label)
        value = Decimal(label)
        if value != value.to_integral_value():
            raise defect(path, "whole numbers or names as labels", label, as_values, column=column, row=row)
        names.append(str(int(value)))
    return names


def in_order(names: Iterable[str]) -> list[str]:
    """Class names by index: whole numbers in numeric order if all of them are, else text in code point order."""
    distinct = sorted(set(names))
    return sorted(distinct, key=int) if _all_whole(distinct) else distinct


def _all_whole(names: Sequence[str]) -> bool:
    return all(_NUMBER.match(name) and "." not in name and "e" not in name.lower() for name in names)


def _missing(path: Path, column: str, row: int, count: int | None, got: str) -> Exception:
    more = f" ({count:,} rows without a label)" if count and count > 1 else ""
    return defect(path, "a label", got + more, "fill it in or remove the row", column=column, row=row)


def check_classes(path: Path, column: str, classes: Sequence[str], loss: str | None) -> None:
    """Raises DataError unless there are at least two classes, and exactly two for the loss "bce"."""
    if len(classes) < 2:
        got = f"only {listed(list(classes))} in every row"
        raise defect(path, "at least 2 classes", got, "add rows of another class", column=column)
    if loss == "bce" and len(classes) != 2:
        remedy = 'use training.loss = "cross_entropy"'
        raise defect(path, 'exactly 2 classes for loss "bce"', f"{len(classes):,}", remedy, column=column)
    if len(classes) > MAX_CLASSES:
        expected = f"at most {MAX_CLASSES:,} classes"
        raise defect(path, expected, f"{len(classes):,}", "number the classes from 0", column=column)


def check_probabilities(path: Path, column: str, values: ndarray) -> None:
    """Raises DataError unless all numbers to predict are between 0 and 1, as the loss "bce" wants them."""
    wrong = (values < 0.0) | (values > 1.0)
    if wrong.any():
        row = int(wrong.reshape(len(values), -1).any(1).argmax())
        got = f"{values[row][wrong[row]].flat[0]:g}"
        remedy = 'scale them, or use training.loss = "mse"'
        raise defect(path, 'numbers from 0 to 1 for loss "bce"', got, remedy, column=column, row=row + 1)
