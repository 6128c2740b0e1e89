"""Files too large for memory, read row by row: tables, lines of text, and windows of tokens.

    rows = cx.data.TableStream("big.csv", target="label", classes="scan")
    loader = cx.data.DataLoader(cx.data.ShuffleBuffer(rows, 10_000), batch_size=256, num_workers=1)

What is in memory at a time is a few thousand rows. A defect is told with its row when it is reached.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from cyxcore.data import sources
from cyxcore.data.checks import MAX_BYTES, Path, check_budget, defect, nearest, shown
from cyxcore.data.datasets import IterableDataset, TensorDataset
from cyxcore.data.formats import read_start
from cyxcore.data.labels import check_label, in_order, whole_if_numbers
from cyxcore.data.tables import confined
from cyxcore.errors import SpecError

Array = np.ndarray[Any, Any]
Row = tuple[int, Sequence[Any]]  # (1-based number, cells of the wanted columns)
Missing = Literal["error", "nan"]

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
MAX_JSON_BYTES = 512 * 2**20  # a JSON array has no rows before its end, so all of it is read at once
AS_VALUES = "for numbers to predict leave out classes"
_ROWS_AT_A_TIME = 512
_TEXT_BYTES = 1 << 20


class TableStream(IterableDataset):
    """Rows (x (F,) float32, y) of a CSV, TSV, JSON lines, JSON or Parquet file; only x without a target.

    target: its column. features: columns to learn from, in order; all but target and ignore unless given.
    classes: names of classes, which makes y the place of the label among them (int64); "scan" finds them in a first
    pass, in the order of a job (whole numbers by their size, else by code points; "1.0" is "1"). Without classes y is a
    number, float32. missing: what an empty cell of a feature is, an error or NaN, which cx.preprocessing.Imputer fills.
    `feature_names` and `classes` say what was found.
    Raises DataError, naming column and row.
    """

    def __init__(
        self,
        path: Path,
        target: str | None = None,
        features: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        *,
        classes: Sequence[str] | Literal["scan"] | None = None,
        missing: Missing = "error",
        format: str | None = None,
    ) -> None:
        if missing not in ("error", "nan"):
            raise SpecError(f"TableStream: expected missing as error or nan, got {missing!r}")
        if classes is not None and target is None:
            raise SpecError("TableStream: expected a target for the classes, got none")
        self.path, self.target, self.missing = path, target, missing
        self._format = _format_of(path, format)
        names = _column_names(path, self._format)
        wanted = [name for name in names if name != target and name not in ignore] if features is None else features
        self.feature_names = list(wanted)
        for option, given in (("features", self.feature_names), ("ignore", ignore), ("target", [target])):
            for name in given:
                if name is not None and name not in names:
                    expected = f"a column {shown(name)} ({option})"
                    raise defect(path, expected, "none by this name", nearest(name, names))
        if not self.feature_names or target in self.feature_names:
            got = "the target among them" if self.feature_names else "none"
            raise defect(path, "columns to learn from", got, "check features, target and ignore")
        self._with_classes = classes is not None
        names_of = self._labels() if classes == "scan" else {name: name for name in classes or ()}
        self.classes = None if classes is None else in_order(names_of.values()) if classes == "scan" else list(classes)
        place_of = {name: place for place, name in enumerate(self.classes or [])}
        self._place_of = {label: place_of[name] for label, name in names_of.items()}

    def __iter__(self) -> Iterator[Any]:
        for first, rows in _in_blocks(self._cells()):
            x = self._numbers(first, [cells[: len(self.feature_names)] for cells in rows])
            if self.target is None:
                yield from x
            elif self.classes is not None:
                yield from zip(
                    x, [np.int64(self._place(first + n, row[-1])) for n, row in enumerate(rows)], strict=True
                )
            else:
                yield from zip(x, self._numbers(first, [row[-1:] for row in rows], target=True)[:, 0], strict=True)

    def load(self, limit_bytes: int = MAX_BYTES) -> TensorDataset:
        """All rows in memory. Raises DataError before they would take more than limit_bytes, or than is free."""
        parts: list[list[Any]] = [[] for _ in range(1 if self.target is None else 2)]
        row_bytes, rows = 4 * len(self.feature_names) + 120 * len(parts), 0
        for row in self:
            rows += 1
            if rows % 65_536 == 1:
                check_budget(self.path, (rows + 65_536) * row_bytes, limit_bytes, f"more than {rows - 1:,} rows")
            for part, value in zip(parts, (row,) if self.target is None else row, strict=True):
                part.append(value)
        if not rows:
            raise defect(self.path, "at least 1 row", "a header and no rows", "add data to the file")
        return TensorDataset(*(np.stack(part) for part in parts))

    def _cells(self) -> Iterator[Row]:
        columns = [*self.feature_names, *([] if self.target is None else [self.target])]
        return self._read(columns)

    def _read(self, columns: Sequence[str]) -> Iterator[Row]:
        return _READERS[self._format](self.path, columns, self.target if self._with_classes else None)

    def _labels(self) -> dict[str, str]:
        """The labels there are, as they are written, each with the name of its class."""
        target, first_row = str(self.target), dict[str, int]()
        for row, cells in self._read([target]):
            label = self._label(row, cells[-1])
            if label not in first_row:
                check_label(self.path, target, row, label)
                first_row[label] = row
        if not first_row:
            raise defect(self.path, "at least 1 row", "a header and no rows", "add data to the file")
        names = whole_if_numbers(self.path, target, list(first_row.items()), AS_VALUES)
        return dict(zip(first_row, names, strict=True))

    def _label(self, row: int, cell: Any) -> str:
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise defect(self.path, "a label", "an empty cell", "fill it in", column=self.target, row=row)
        if isinstance(cell, list | dict):
            got, remedy = f"a {type(cell).__name__}", "write every label as text or as a whole number"
            raise defect(self.path, "a label", got, remedy, column=self.target, row=row)
        return cell.strip() if isinstance(cell, str) else json.dumps(cell)

    def _place(self, row: int, cell: Any) -> int:
        label = self._label(row, cell)
        if label not in self._place_of:
            (label,) = whole_if_numbers(self.path, str(self.target), [(label, row)], AS_VALUES)
        if label not in self._place_of:
            expected = f"one of the {len(self._place_of)} classes"
            raise defect(self.path, expected, shown(label), "name it in classes", column=self.target, row=row)
        return self._place_of[label]

    def _numbers(self, first: int, rows: list[Sequence[Any]], target: bool = False) -> Array:
        """(len(rows), len(rows[0])) float32."""
        allow_missing = self.missing == "nan" and not target
        out = np.empty((len(rows), len(rows[0])), np.float32)
        with np.errstate(over="ignore"):
            for n, row in enumerate(rows):
                try:
                    out[n] = [_number(cell, allow_missing) for cell in row]
                except (ValueError, OverflowError):
                    break
            else:
                good = np.isfinite(out) | (np.isnan(out) if allow_missing else False)
                if good.all():
                    return out
                n = int(good.all(1).argmin())
        for name, cell in zip([self.target] if target else self.feature_names, rows[n], strict=True):
            if not _is_number(cell, allow_missing):
                got = "an empty cell" if cell is None or cell == "" else shown(str(cell))
                remedy = "fill it in, remove the row, or leave the column out (of categories: 0 and 1 for each)"
                if got == "an empty cell" and not target:
                    remedy = 'fill it in, or use missing="nan"'
                raise defect(self.path, "a number", got, remedy, column=name, row=first + n)
        raise AssertionError("a row without a defect was refused")


def _number(cell: Any, allow_missing: bool) -> float:
    if cell is None or cell == "" or (isinstance(cell, str) and not cell.strip()):
        if allow_missing:
            return np.nan
        raise ValueError
    if isinstance(cell, str):
        if "_" in cell or not cell.isascii():  # Python's own digits, and those of other scripts
            raise ValueError
        value = float(cell)
        if value != value:
            raise ValueError
        return value
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        raise ValueError
    return cell


def _is_number(cell: Any, allow_missing: bool) -> bool:
    try:
        with np.errstate(over="ignore"):
            value = np.float32(_number(cell, allow_missing))
    except (ValueError, OverflowError):
        return False
    return bool(np.isfinite(value)) or (allow_missing and bool(np.isnan(value)))


def _in_blocks(rows: Iterable[Row]) -> Iterator[tuple[int, list[Sequence[Any]]]]:
    """(number of the first row, cells of some rows)."""
    block: list[Sequence[Any]] = []
    first = 1
    for row, cells in rows:
        if not block:
            first = row
        block.append(cells)
        if len(block) == _ROWS_AT_A_TIME:
            yield first, block
            block = []
    if block:
        yield first, block


# the formats ----------------------------------------------------------------------------------------


def _format_of(path: Path, given: str | None) -> str:
    first = read_start(path)
    if not first:
        raise defect(path, "a table", "an empty file (0 bytes)", "check that it was written completely")
    found = SUFFIXES.get(os.path.splitext(os.fspath(path))[1].lower()) if given is None else given
    if found not in _READERS:
        got = shown(str(found or os.path.basename(os.fspath(path))))
        raise defect(path, f"one of {', '.join(_READERS)}", got, "set format")
    if (found == "parquet") != first.startswith(b"PAR1"):
        raise defect(path, f"{found} data", f"a file that starts with {first!r}", "check the format")
    return found


def _column_names(path: Path, found: str) -> list[str]:
    if found == "csv":
        names = sources.csv_header(path, sources.csv_delimiter(path))
    elif found == "jsonl":
        names = next((list(record) for _, record in sources.json_objects(path)), [])
    elif found == "json":
        names = next((list(record) for _, record in _json_records(path)), [])
    else:
        with confined(path, MAX_BYTES) as run:
            names = [column.name for column in sources.open_parquet(path, run).columns]
    sources.check_columns(path, names, fold_case=False)
    return names


def _csv_rows(path: Path, wanted: Sequence[str], label: str | None) -> Iterator[Row]:
    delimiter = sources.csv_delimiter(path)
    places: list[int] = []
    width = 0
    for row, record in sources.csv_records(path, delimiter):
        if row == 0:
            names = [name.strip() for name in record]
            places, width = [names.index(name) for name in wanted], len(names)
            continue
        if len(record) != width:
            remedy = "give every row one cell per column; quote cells that contain the separator"
            raise defect(path, f"{width:,} cells as in the header", f"{len(record):,}", remedy, row=row)
        yield row, [record[place] for place in places]


def _jsonl_rows(path: Path, wanted: Sequence[str], label: str | None) -> Iterator[Row]:
    for row, record in sources.json_objects(path):
        yield row, [record.get(name) for name in wanted]


def _json_rows(path: Path, wanted: Sequence[str], label: str | None) -> Iterator[Row]:
    for row, record in _json_records(path):
        yield row, [record.get(name) for name in wanted]


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array. Raises DataError."""
    size, remedy = os.path.getsize(path), "write a list of objects, or one object per line in a .jsonl file"
    if size > MAX_JSON_BYTES:
        raise defect(path, f"at most {MAX_JSON_BYTES:,} bytes of JSON", f"{size:,}", remedy)
    check_budget(path, 12 * size, MAX_BYTES, "its objects")
    try:
        with open(path, "rb") as file:
            records = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=sources.distinct_keys)
    except UnicodeDecodeError as error:
        raise defect(path, "UTF-8 text", f"the byte 0x{error.object[error.start]:02x}", "save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise defect(path, "JSON", str(error)[:100], remedy) from None
    if not isinstance(records, list):
        raise defect(path, "a list of objects", f"a {type(records).__name__}", remedy)
    for row, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise defect(path, "a JSON object", f"a {type(record).__name__}", remedy, row=row)
        yield row, record


def _parquet_rows(path: Path, wanted: Sequence[str], label: str | None) -> Iterator[Row]:
    with confined(path, MAX_BYTES) as run:
        source = sources.open_parquet(path, run)
        type_of = {column.name: column for column in source.columns}
        for name in wanted:
            if type_of[name].number_sql is None and type_of[name].text_sql is None:
                got, remedy = f"type {type_of[name].type}", "leave it out"
                raise defect(path, "a column of numbers or text", got, remedy, column=name)
        # A number as DOUBLE: DuckDB's own decimals and huge integers are no numbers of Python's. But a label as it is
        # written: 1 is no 1.0, and 2**53 + 1 no 2**53.
        chosen = [
            f"CAST({sources.identifier(name)} AS DOUBLE)"
            if type_of[name].number_sql and name != label
            else str(type_of[name].text_sql)
            for name in wanted
        ]
        row = 0
        for block in run.rows(f"SELECT {', '.join(chosen)} FROM {source.sql}", _ROWS_AT_A_TIME):
            for cells in block:
                row += 1
                yield row, cells


# Of a path, the columns wanted, and which of them is a label (of Parquet, whose cells have types).
_READERS: dict[str, Callable[[Path, Sequence[str], str | None], Iterator[Row]]] = {
    "csv": _csv_rows,
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "parquet": _parquet_rows,
}


# text -----------------------------------------------------------------------------------------------


class TextLines(IterableDataset):
    """The lines of UTF-8 files, one after the other, without their line ends. Raises DataError, naming the line."""

    def __init__(self, *paths: Path) -> None:
        if not paths:
            raise SpecError("TextLines: expected at least one path, got none")
        for path in paths:
            read_start(path)
        self.paths = paths

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            with open(path, "rb") as file:
                number = 0
                while line := sources.text_line(path, file, number := number + 1):
                    yield _decoded(path, line, number).rstrip("\r\n")


class TokenStream(IterableDataset):
    """Rows (tokens, the same moved on by one), (length,) int64 each, of texts too large for memory.

    tokenizer: with `encode(text)`; texts are cut at line ends. What is left at the end and fills no row is left out.
    """

    def __init__(self, paths: Path | Sequence[Path], tokenizer: Any, length: int) -> None:
        if length < 1:
            raise SpecError(f"TokenStream: expected length >= 1, got {length}")
        self.paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        for path in self.paths:
            read_start(path)
        self.tokenizer, self.length = tokenizer, length

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        left = np.empty(0, np.int64)
        for path in self.paths:
            for text in _blocks_of_text(path):
                tokens = np.concatenate([left, self.tokenizer.encode(text).astype(np.int64)])
                start = 0
                while start + self.length < len(tokens):
                    window = tokens[start : start + self.length + 1]
                    yield window[:-1].copy(), window[1:].copy()
                    start += self.length
                left = tokens[start:]


def read_text(path: Path, limit_bytes: int = MAX_BYTES) -> str:
    """A UTF-8 file as text. Raises DataError for one that is too large or has other bytes."""
    read_start(path)
    check_budget(path, 4 * os.path.getsize(path), limit_bytes, "its text")
    with open(path, "rb") as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"the byte 0x{content[error.start]:02x} in line {line:,}"
        raise defect(path, "UTF-8 text", got, "save the file as UTF-8") from None


def _blocks_of_text(path: Path) -> Iterator[str]:
    """About a megabyte at a time, cut behind a line end."""
    with open(path, "rb") as file:
        number, lines, size = 0, [], 0
        while line := sources.text_line(path, file, number := number + 1):
            lines.append(_decoded(path, line, number))
            size += len(line)
            if size >= _TEXT_BYTES:
                yield "".join(lines)
                lines, size = [], 0
        if lines:
            yield "".join(lines)


def _decoded(path: Path, line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        got = f"the byte 0x{line[error.start]:02x} in line {number:,}"
        raise defect(path, "UTF-8 text", got, "save the file as UTF-8") from None
