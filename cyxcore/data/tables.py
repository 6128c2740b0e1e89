"""Tables: CSV, Parquet and JSON lines, read by DuckDB from exactly one file.

DuckDB gets a fresh connection that may open this one path and nothing else, and options that leave
it nothing to guess: the columns, their types and the dialect are all given. Every cell that is not
a finite number becomes NULL or non-finite there and is told here by column and row.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cyxcore.data.checks import (
    Path,
    budget_bytes,
    check_budget,
    defect,
    listed,
    may_blur,
    nearest,
    refuse_blurred,
    shown,
)
from cyxcore.data.labels import Decode
from cyxcore.data.sources import OPENERS, Column, Source, quoted
from cyxcore.errors import DataError
from cyxcore.spec import DataSpec, Task

if TYPE_CHECKING:
    from numpy import ndarray

_NUMBER_BYTES = 12  # of a cell at the peak: DuckDB's result, NumPy's column, the matrix


def read_table(
    path: Path, spec: DataSpec, task: Task, limit_bytes: int
) -> tuple[ndarray, ndarray | list[str | None], list[str], Decode]:
    """Inputs (N, F) float32, the target, the feature names, and what a cell says as a label.

    The target is (N, 1) float32 for regression, else N cells of text; or the inputs themselves. Raises DataError.
    """
    with confined(path, limit_bytes) as run:
        source = OPENERS[spec.format](path, run)
        run.explain = source.explain
        by_name = {column.name: column for column in source.columns}
        target, features = _chosen(path, spec, by_name)
        if spec.features is None:
            source.check_rows(run)
        _check_types(path, spec, task, target, features)
        _check_size(path, source, len(features), run, limit_bytes)
        wanted = {f"f{index}": column.number_sql for index, column in enumerate(features)}
        if target is not None:
            wanted["y"] = target.number_sql if task == "regression" else target.text_sql
        columns = _fetch(source, run, wanted)
        rows = len(columns["f0"])
        if rows < 2:
            got = "a header and no rows" if rows == 0 else "1 row"
            raise defect(path, "at least 2 rows", got, "add data to the file")
        inputs = _matrix(path, source, run, [(f"f{i}", column) for i, column in enumerate(features)], columns)
        if target is None:
            return inputs, inputs, [column.name for column in features], source.decode_label
        outputs: ndarray | list[str | None] = (
            _matrix(path, source, run, [("y", target)], columns) if task == "regression" else _cells(columns["y"])
        )
    return inputs, outputs, [column.name for column in features], source.decode_label


def _chosen(path: Path, spec: DataSpec, by_name: dict[str, Column]) -> tuple[Column | None, list[Column]]:
    """The target and the features, in order. Raises DataError naming the nearest column."""
    targets = [] if spec.target_is_input else [spec.target]
    names = [name for name in by_name if name not in targets]
    for option, wanted in (
        ("target", targets),
        ("ignore", spec.ignore),
        ("features", spec.features or []),
    ):
        for name in wanted:
            if name not in by_name:
                raise defect(
                    path,
                    f"a column {shown(name)} (data.{option})",
                    "none by this name",
                    nearest(name, by_name),
                )
    if targets and (spec.target in spec.ignore or spec.target in (spec.features or [])):
        option = "ignore" if spec.target in spec.ignore else "features"
        raise defect(
            path,
            "the target apart from the inputs",
            f"{shown(spec.target)} also in data.{option}",
            f"take it out of data.{option}",
        )
    repeated = [name for name, count in Counter(spec.features or []).items() if count > 1]
    if repeated:
        raise defect(path, "each feature once", f"{listed(repeated)} more than once", "list it once")
    ignored = set(spec.ignore)
    features = [name for name in (names if spec.features is None else spec.features) if name not in ignored]
    if not features:
        raise defect(
            path,
            "at least 1 column to learn from",
            f"only {listed(list(by_name))}",
            "add feature columns, or check data.target, data.features and data.ignore",
        )
    return by_name[spec.target] if targets else None, [by_name[name] for name in features]


def _check_types(path: Path, spec: DataSpec, task: Task, target: Column | None, features: list[Column]) -> None:
    """Raises DataError for a column whose declared type (Parquet) cannot be what the job needs it to be."""
    for column in features:
        if column.number_sql is None:
            raise defect(
                path,
                "a column of numbers",
                f"type {column.type}",
                "convert it to numbers, or name it in data.ignore",
                column=column.name,
            )
    if target is None:
        return
    if task == "regression" and target.number_sql is None:
        raise defect(
            path,
            "numbers to predict",
            f"type {target.type}",
            'choose a numeric target, or data.task = "classification"',
            column=target.name,
        )
    if task == "classification" and target.text_sql is None:
        raise defect(
            path,
            "labels: text or whole numbers",
            f"type {target.type}",
            "convert the labels",
            column=target.name,
        )


def _check_size(path: Path, source: Source, features: int, run: Run, limit_bytes: int) -> None:
    """Raises DataError before reading if the arrays would not fit in memory."""
    # A cell of text takes at least two bytes of the file, so small text files need no counting.
    if source.is_text and os.path.getsize(path) // 2 * _NUMBER_BYTES <= budget_bytes(limit_bytes):
        return
    rows = int(run(f"SELECT count(*) AS n FROM {source.sql}")["n"][0])
    check_budget(path, rows * (features + 1) * _NUMBER_BYTES, limit_bytes, f"{rows:,} rows x {features:,} features")


def _fetch(source: Source, run: Run, wanted: dict[str, str | None]) -> dict[str, Any]:
    expressions = ", ".join(f"{expression} AS {name}" for name, expression in wanted.items())
    return run(f"SELECT {expressions} FROM {source.sql}")


def _matrix(path: Path, source: Source, run: Run, wanted: list[tuple[str, Column]], columns: dict[str, Any]) -> ndarray:
    """Columns side by side: (N, len(wanted)) float32, each cell checked. Empties `columns` as it goes."""
    import numpy as np

    matrix: ndarray = np.empty((len(columns[wanted[0][0]]), len(wanted)), np.float32)
    close: list[Column] = []
    for index, (key, column) in enumerate(wanted):
        values = columns.pop(key)
        missing = np.ma.is_masked(values)
        matrix[:, index] = np.ma.filled(values, np.nan) if missing else np.asarray(values)
        if missing or not np.isfinite(matrix[:, index]).all():
            bad_rows = np.flatnonzero(~np.isfinite(matrix[:, index]))
            raise _bad_cell(path, source, run, column, bad_rows, len(matrix))
        if may_blur(float(values.min()), float(values.max())):
            close.append(column)
    _refuse_blurred(path, source, run, close)
    return matrix


def _refuse_blurred(path: Path, source: Source, run: Run, close: list[Column]) -> None:
    """Raises DataError for the first of these columns whose differences are lost in float32."""
    if not close:
        return
    asked: dict[str, str | None] = {}
    for index, column in enumerate(close):
        exact = column.double_sql
        asked |= {
            f"low{index}": f"min({exact})",
            f"high{index}": f"max({exact})",
            f"error{index}": f"max(abs({exact} - CAST({column.number_sql} AS DOUBLE)))",
        }
    found = _fetch(source, run, asked)
    for index, column in enumerate(close):
        low, high, error = (float(found[f"{what}{index}"][0]) for what in ("low", "high", "error"))
        refuse_blurred(path, low, high, error, column=column.name)


def _bad_cell(path: Path, source: Source, run: Run, column: Column, bad_rows: ndarray, rows: int) -> Exception:
    """The error for the first cell of a column that is not a finite number."""
    first = int(bad_rows[0])
    text = column.text_sql or "NULL"
    cell = _cells(run(f"SELECT {text} AS cell FROM {source.sql} OFFSET {first} LIMIT 1")["cell"])[0]
    also = f" ({len(bad_rows):,} rows like this)" if len(bad_rows) > 1 else ""
    return defect(
        path,
        "a number",
        _described(cell) + also,
        f"{_mend(cell, len(bad_rows) == rows)}, or name the column in data.ignore",
        column=column.name,
        row=first + 1,
    )


def _mend(cell: str | None, everywhere: bool) -> str:
    """What to do about a cell that is no number: one is filled in, a column of them is something else than numbers."""
    text = (cell or "").strip()
    if text.lower() in ("true", "false"):
        return "write 1 and 0"
    if re.fullmatch(r"[-+]?\d+(,\d+)+(\.\d+)?", text):
        return "write a point before the decimals and nothing between thousands (1234.5)"
    if everywhere and re.search(r"\w", text) and _described(text) == shown(text):
        return "make numbers of it (of categories a column of 0 and 1 for each)"
    return "fill it in, remove the row"


def _described(cell: str | None) -> str:
    if cell is None or not cell.strip():
        return "an empty cell"
    try:
        value = float(cell)
    except ValueError:
        return shown(cell)
    return cell if value != value or abs(value) == float("inf") else f"{shown(cell)}, too large for a 32-bit float"


def _cells(values: Any) -> list[str | None]:
    """A column of text as a list, with None where nothing was given (masked)."""
    cells: list[str | None] = values.tolist()
    return cells


class Run:
    """Runs one statement and returns its columns by name; whatever DuckDB raises becomes a DataError.

    explain: looks for the defect row by row, once DuckDB has failed.
    """

    def __init__(self, path: Path, connection: Any, failures: tuple[type[Exception], ...]) -> None:
        self._path = path
        self._connection = connection
        self._failures = failures
        self.explain: Callable[[], DataError | None] = lambda: None

    def __call__(self, sql: str) -> dict[str, Any]:
        with self._failures_told():
            return dict(self._connection.execute(sql).fetchnumpy())

    def rows(self, sql: str, at_a_time: int) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of one statement, a few at a time: the result as a whole is never in memory."""
        with self._failures_told():
            result = self._connection.execute(sql)
        while True:
            with self._failures_told():
                rows = result.fetchmany(at_a_time)
            if not rows:
                return
            yield rows

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise defect(self._path, "data that fits in memory", "too much", "use fewer rows or columns") from None
        except self._failures as error:
            if type(error).__name__ == "OutOfMemoryException":
                raise defect(self._path, "data that fits in memory", "too much", "use fewer rows or columns") from None
            explained = self.explain()
            if explained is not None:
                raise explained from None
            first_line = re.sub(r"\s+", " ", str(error).split("\n\n")[0])[:200]
            raise defect(self._path, "a readable table", first_line, "check the file and data.format") from None


@contextmanager
def confined(path: Path, limit_bytes: int) -> Iterator[Run]:
    """A private in-memory DuckDB that can open this one path: no network, no extensions, no other file."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        # In a notebook without ipywidgets there is no bar, and DuckDB refuses every word about it.
        if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
            connection.execute("SET enable_progress_bar = false")
        for setting in (
            f"allowed_paths = [{quoted(private_name(path))}]",
            "autoload_known_extensions = false",
            "autoinstall_known_extensions = false",
            "temp_directory = ''",
            "preserve_insertion_order = true",
            f"threads = {min(8, os.cpu_count() or 1)}",
            f"memory_limit = '{max(64, budget_bytes(limit_bytes) // 2**20)}MiB'",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        yield Run(path, connection, (duckdb.Error, RuntimeError, UnicodeError, OverflowError))


def private_name(path: Path) -> str:
    """The name DuckDB is given: absolute, so never a URL, and free of its patterns. Raises DataError."""
    name = os.path.realpath(path)
    if any(character in name for character in "*?[") or not name.isprintable():
        raise defect(path, "a path without * ? [ or control characters", shown(name), "rename the file or folder")
    return name
