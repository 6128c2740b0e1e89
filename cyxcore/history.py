"""What a training run has said of its epochs: a list of EpochMetrics with columns, a best one, and a plot."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec

from cyxcore.errors import DataError
from cyxcore.plotting import plot
from cyxcore.spec import EpochMetrics

SHOWN_EPOCHS = 20  # of the beginning and of the end, in a notebook
FIELDS = ("epoch_loss", "epoch_accuracy", "validation_loss", "validation_accuracy", "validation_r2")


def value(metrics: EpochMetrics, name: str) -> float | None:
    """A number of an epoch by its name: a field, with or without "epoch_", or one of the scores; None: not there."""
    for field in (name, f"epoch_{name}"):
        if field in FIELDS:
            found: float | None = getattr(metrics, field)
            return found
    return (metrics.scores or {}).get(name)


def names(metrics: EpochMetrics) -> list[str]:
    """Of all numbers that an epoch has."""
    fields = [name.removeprefix("epoch_") for name in FIELDS if getattr(metrics, name) is not None]
    return [*fields, *(metrics.scores or {})]


class History(list[EpochMetrics]):
    """The epochs that have ended, the first one first.

    history[-1] is the last epoch, history.column("validation_loss") one number of each, history.plot() a drawing.
    """

    @property
    def columns(self) -> list[str]:
        """The names column() takes."""
        return list(dict.fromkeys(name for metrics in self for name in names(metrics)))

    def column(self, name: str) -> list[float]:
        """One number of each epoch; NaN where it has none. Raises DataError for a name that no epoch has."""
        found = [value(metrics, name) for metrics in self]
        if all(number is None for number in found):
            raise DataError(f"history: expected one of {', '.join(self.columns) or 'no column yet'}, got {name!r}")
        return [math.nan if number is None else number for number in found]

    def plot(self, columns: Sequence[str] | str | None = None, backend: str | None = None) -> Any:
        """The columns (the losses, unless named) over the epochs; see cyxcore.plotting.plot for backend.

        Raises DataError when no epoch has ended.
        """
        if not self:
            raise DataError("history: no epoch has ended yet, so there is nothing to plot")
        chosen = (
            [columns]
            if isinstance(columns, str)
            else columns or [name for name in ("loss", "validation_loss") if name in self.columns]
        )
        return plot([m.epoch for m in self], {name: self.column(name) for name in chosen}, backend, title="epochs")

    def _rows(self) -> list[list[str]]:
        """The names, and a row of text for each epoch."""
        numbers = {name: self.column(name) for name in self.columns}
        cells = ([f"{column[row]:.4f}" for column in numbers.values()] for row in range(len(self)))
        return [["epoch", *numbers], *([str(m.epoch), *row] for m, row in zip(self, cells, strict=True))]

    def _repr_html_(self) -> str:
        """For notebooks: a table, of long runs its first and last epochs."""
        if not self:
            return f"<pre>{escape(repr(self))}</pre>"
        names_, *rows = ([escape(cell) for cell in row] for row in self._rows())
        if len(rows) > 2 * SHOWN_EPOCHS:
            rows[SHOWN_EPOCHS:-SHOWN_EPOCHS] = [["…"] * len(names_)]
        head = f"<tr>{''.join(f'<th>{name}</th>' for name in names_)}</tr>"
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table>{head}{body}</table>"

    def __repr__(self) -> str:
        if not self:
            return "History(no epoch yet)"
        rows = self._rows()
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)

    def to_json(self) -> bytes:
        """All of it, for a file or another program."""
        return msgspec.json.encode(list(self))
