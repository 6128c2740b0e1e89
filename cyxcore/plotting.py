"""Curves, drawn by matplotlib (extra `plot`) or, where that is not there or not wanted, with letters."""

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cyxcore.errors import DataError, MissingExtra, SpecError

Curves = Mapping[str, Sequence[float]]
MARKS = "•×+o*#@%"
WIDTH, HEIGHT = 64, 14  # of a chart in letters


def plot(
    x: Sequence[float],
    curves: Curves,
    backend: str | None = None,
    log_x: bool = False,
    title: str = "",
    *,
    log_y: bool = False,
) -> Any:
    """Curves over x, one number of each curve per number of x; NaN leaves a gap, with log_y what is not above 0 too.

    backend: "matplotlib" returns its Axes, "text" a Chart that prints itself; None takes the first where it is
    installed. Raises MissingExtra where it is asked for and is not, DataError without a number to draw.
    """
    chosen = backend or ("matplotlib" if importlib.util.find_spec("matplotlib") else "text")
    if chosen not in BACKENDS:
        raise SpecError(f"plot: expected backend to be one of {', '.join(BACKENDS)}, got {chosen!r}")
    if log_y:
        curves = {name: [value if value > 0 else math.nan for value in values] for name, values in curves.items()}
    if not any(math.isfinite(value) for values in curves.values() for value in values):
        raise DataError("plot: expected at least one finite number to draw, got none")
    return BACKENDS[chosen](x, curves, log_x, log_y, title)


def _matplotlib(x: Sequence[float], curves: Curves, log_x: bool, log_y: bool, title: str) -> Any:
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise MissingExtra(
            "plot: the package matplotlib is missing; pip install 'cyx[plot]', or pass backend='text'"
        ) from None
    _, axes = pyplot.subplots()
    for name, values in curves.items():
        axes.plot(x, values, label=name, marker="." if len(x) < 40 else None)
    axes.set_title(title)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.legend()
    return axes


class Chart(str):
    """A drawing in letters."""

    def __repr__(self) -> str:
        return str(self)


def _text(x: Sequence[float], curves: Curves, log_x: bool, log_y: bool, title: str) -> Chart:
    """Columns are places of x, rows are values; what shares a cell shows the later curve."""
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    ends_y = min(finite), max(finite)
    scaled = math.log if log_y else float
    low, high = map(scaled, ends_y)
    places = [math.log(value) if log_x else value for value in x]
    first, last = min(places), max(places)
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for number, values in enumerate(curves.values()):
        for place, value in zip(places, values, strict=True):
            if math.isfinite(value):
                column = round((place - first) / (last - first) * (WIDTH - 1)) if last > first else 0
                row = round((high - scaled(value)) / (high - low) * (HEIGHT - 1)) if high > low else HEIGHT // 2
                cells[row][column] = MARKS[number % len(MARKS)]
    labels = [f"{ends_y[1]:.4g}", *[""] * (HEIGHT - 2), f"{ends_y[0]:.4g}"]
    width = max(map(len, labels))
    lines = [title] if title else []
    lines += [f"{label:>{width}} ┤{''.join(row).rstrip()}" for label, row in zip(labels, cells, strict=True)]
    ends = f"{x[places.index(first)]:.4g}", f"{x[places.index(last)]:.4g}"
    lines.append(" " * width + " └" + "─" * WIDTH)
    lines.append(" " * (width + 2) + ends[0] + ends[1].rjust(WIDTH - len(ends[0])))
    names = [f"{MARKS[number % len(MARKS)]} {name}" for number, name in enumerate(curves)]
    fits = len("   ".join(names)) <= WIDTH
    lines += [" " * (width + 2) + each for each in (["   ".join(names)] if fits else names)]
    return Chart("\n".join(lines))


BACKENDS = {"matplotlib": _matplotlib, "text": _text}
