"""The three table formats as SQL: what to select from, which columns there are, what each cell means."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from cyxcore.data.checks import Path, defect, nearest, shown
from cyxcore.data.labels import Decode, plain
from cyxcore.errors import DataError

MAX_COLUMNS = 20_000  # DuckDB's planning grows with the square: 10,000 take 2 s, 100,000 take a minute
MAX_LINE_BYTES = 16 * 2**20

Query = Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its two readings. number_sql is NULL for a cell that is no number, and None where
    the file's own type rules numbers out; text_sql is None where it rules labels out."""

    name: str
    number_sql: str | None
    text_sql: str | None
    type: str = "text"

    @property
    def double_sql(self) -> str | None:
        """number_sql before it is rounded to float32."""
        return self.number_sql and f"{self.number_sql.removesuffix('FLOAT)')}DOUBLE)"


@dataclass(frozen=True, slots=True)
class Source:
    """A table ready to select from. explain() looks for what DuckDB stumbled over, row by row."""

    sql: str
    columns: list[Column]
    is_text: bool
    decode_label: Decode = plain
    explain: Callable[[], DataError | None] = lambda: None
    check_rows: Callable[[Query], None] = field(default=lambda run: None)


def quoted(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A SQL column name."""
    return '"' + name.replace('"', '""') + '"'


def check_columns(path: Path, names: list[str], *, fold_case: bool) -> None:
    """Raises DataError for too many columns, or for two that cannot be told apart."""
    if len(names) > MAX_COLUMNS:
        remedy = "store wide data as NPZ: numpy.savez_compressed('data.npz', x=x, y=y)"
        raise defect(path, f"at most {MAX_COLUMNS:,} columns in a table", f"{len(names):,}", remedy)
    seen: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        if not name or not name.isprintable():
            remedy = "name every column in the header"
            if not name and number == 1:  # the most common reason by far
                remedy += " (pandas writes its row numbers without a name: to_csv(…, index=False) leaves them out)"
            elif not name and number == len(names):
                remedy += " (a separator at the end of each line begins one more)"
            raise defect(path, f"a name for column {number:,}", shown(name), remedy)
        key = name.casefold() if fold_case else name
        if key in seen:
            got = f"{shown(seen[key])} and {shown(name)}" if seen[key] != name else f"{shown(name)} twice"
            raise defect(path, "column names that differ", got, "rename one of them")
        seen[key] = name


# ---------------------------------------------------------------------------------------------- CSV


def open_csv(path: Path, run: Query) -> Source:
    """RFC 4180, UTF-8, a header line; separated by the first of , ; tab | that the header contains."""
    delimiter = csv_delimiter(path)
    header = csv_header(path, delimiter)
    check_columns(path, header, fold_case=False)
    types = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(len(header)))
    sql = (
        f"read_csv({quoted(os.path.realpath(path))}, auto_detect=false, header=true, columns={{{types}}}, "
        f"delim={quoted(delimiter)}, quote='\"', escape='\"', nullstr='', comment='', encoding='utf-8', "
        f"compression='none', strict_mode=true, null_padding=false, max_line_size={MAX_LINE_BYTES}, "
        "hive_partitioning=false)"
    )
    # Without trim DuckDB moves the cast into its CSV reader, where a word is an error and not NULL.
    columns = [Column(name, f"TRY_CAST(trim(c{i}) AS FLOAT)", f"c{i}") for i, name in enumerate(header)]
    return Source(sql, columns, True, explain=lambda: _explain_csv(path, delimiter, len(header)))


def csv_delimiter(path: Path) -> str:
    """The first of , ; tab | that the first line contains."""
    with open(path, "rb") as file:
        first_line = text_line(path, file, 1).decode("utf-8-sig", "replace")
    return next((mark for mark in ",;\t|" if mark in first_line), ",")


def csv_header(path: Path, delimiter: str) -> list[str]:
    for row, record in csv_records(path, delimiter):
        if row == 0:
            names = [name.strip() for name in record]
            if _is_data(names):
                got = f"only numbers in the first line: {', '.join(map(shown, names[:3]))}{', …' * (len(names) > 3)}"
                raise defect(path, "a header line with the column names", got, "write the names above the first row")
            return names
    raise defect(path, "a header line with the column names", "only empty lines", "write the header first")


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)  # float() also takes 1_1
_NOT_FINITE = frozenset({"nan", "inf", "infinity"})


def _is_data(names: list[str]) -> bool:
    """Whether a first line is a row of numbers, of which some may be NaN or infinite.

    Whole numbers that go up (0, 1, 2, …) may be names, and so may three or more that go up or, whole, down: wavelengths
    and years. A first row that is one of these by chance goes for names.
    """
    numbers = [float(name) for name in names if _NUMBER.fullmatch(name)]
    others = [name for name in names if not _NUMBER.fullmatch(name)]
    if not numbers or any(name.lower().lstrip("+-") not in _NOT_FINITE for name in others):
        return False
    whole, pairs = all(map(str.isdecimal, names)), list(itertools.pairwise(numbers))
    up, down = all(one < two for one, two in pairs), all(one > two for one, two in pairs)
    many = len(names) > 2
    return bool(others) or not (up and (whole or many) or down and whole and many)


def csv_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(0, header), (1, first row), … without empty lines. Raises DataError at the first unreadable row."""
    row = -1
    with open(path, "rb") as file:
        records = csv.reader(_text_lines(path, file), delimiter=delimiter, strict=True)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                got = f"the byte 0x{error.object[error.start]:02x}"
                place = row + 1 or None  # no row: the header
                raise defect(path, "UTF-8 text", got, "save the file as UTF-8", row=place) from None
            except csv.Error as error:
                raise defect(path, "CSV by RFC 4180", str(error), "check the quotes", row=row + 1) from None
            if record:
                row += 1
                yield row, record


def _text_lines(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Lines decoded one by one, so that a wrong byte is found in its own row."""
    number = 0
    while line := text_line(path, file, number := number + 1):
        yield line.decode("utf-8-sig" if number == 1 else "utf-8")


def text_line(path: Path, file: IO[bytes], number: int) -> bytes:
    """The next line, b"" at the end. Raises DataError for one that is too long or no text."""
    line = file.readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES:
        got = f"a longer one (line {number:,})"
        raise defect(path, f"lines of at most {MAX_LINE_BYTES:,} bytes", got, "check for a missing quote or newline")
    if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
        got = f"a lone carriage return in line {number:,}"
        raise defect(path, "lines ending in \\n or \\r\\n", got, "save the file with ordinary line ends")
    if b"\0" in line:
        raise defect(path, "text", f"a zero byte in line {number:,}", "save the file as UTF-8 text")
    return line


def _explain_csv(path: Path, delimiter: str, width: int) -> DataError | None:
    try:
        for row, record in csv_records(path, delimiter):
            if len(record) != width:
                remedy = "give every row one cell per column; quote cells that contain the separator"
                return defect(path, f"{width:,} cells as in the header", f"{len(record):,}", remedy, row=row)
    except DataError as error:
        return error
    return None


# ------------------------------------------------------------------------------------------ Parquet

_NUMBERS = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
    "BOOLEAN",
    "DECIMAL",
)
_NO_LABELS = ("BLOB", "STRUCT", "MAP", "UNION", "VARIANT", "GEOMETRY", "BIT")


def open_parquet(path: Path, run: Query) -> Source:
    """Flat columns of numbers, and text or numbers as labels."""
    sql = (
        f"read_parquet({quoted(os.path.realpath(path))}, binary_as_string=false, filename=false, "
        "hive_partitioning=false, union_by_name=false)"
    )
    described = run(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {sql})")
    names = [str(name) for name in described["column_name"]]
    check_columns(path, names, fold_case=True)
    return Source(sql, [_parquet_column(*pair) for pair in zip(names, described["column_type"], strict=True)], False)


def _parquet_column(name: str, type_name: str) -> Column:
    base = type_name.split("(")[0]
    nested = type_name.endswith("]") or base in _NO_LABELS
    number = f"TRY_CAST({identifier(name)} AS FLOAT)" if base in _NUMBERS and not nested else None
    return Column(name, number, None if nested else f"CAST({identifier(name)} AS VARCHAR)", type_name[:80])


# --------------------------------------------------------------------------------------- JSON lines


def open_jsonl(path: Path, run: Query) -> Source:
    """One JSON object per line; the keys of the first are the columns, and numbers are JSON numbers."""
    names = _first_keys(path)
    check_columns(path, names, fold_case=True)
    # Columns arrive as JSON text: "2" and true stay text, where DOUBLE would read them as 2 and 1.
    types = ", ".join(f"{quoted(name)}: 'JSON'" for name in names)
    file = (
        f"{quoted(os.path.realpath(path))}, format='newline_delimited', compression='uncompressed', "
        f"maximum_object_size={MAX_LINE_BYTES}, hive_partitioning=false"
    )
    sql = f"read_json({file}, records='true', auto_detect=false, columns={{{types}}})"
    columns = [
        Column(
            name,
            f"TRY_CAST(CAST({identifier(name)} AS VARCHAR) AS FLOAT)",
            f"CAST({identifier(name)} AS VARCHAR)",
        )
        for name in names
    ]

    def check_rows(run: Query) -> None:
        keys = f"len(json_keys(json)) AS n FROM read_json_objects({file})"
        found = run(f"SELECT coalesce(max(n), 0) AS n FROM (SELECT {keys})")
        if int(found["n"][0]) > len(names):
            raise _explain_jsonl(path, names) or defect(
                path,
                f"{len(names):,} keys in every object",
                "more in some",
                "list the columns in data.features",
            )

    return Source(sql, columns, True, _json_label, lambda: _explain_jsonl(path, None), check_rows)


def _first_keys(path: Path) -> list[str]:
    for _, record in json_objects(path):
        return list(record)
    raise defect(path, "one JSON object per line", "only empty lines", "write at least 2 rows")


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(1, first object), … without empty lines. Raises DataError at the first line that is no object."""
    row = 0
    with open(path, "rb") as file:
        number = 0
        while line := text_line(path, file, number := number + 1):
            if not line.strip():
                continue
            row += 1
            try:
                record = json.loads(
                    line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=distinct_keys
                )
            except UnicodeDecodeError as error:
                got = f"the byte 0x{error.object[error.start]:02x}"
                raise defect(path, "UTF-8 text", got, "save the file as UTF-8", row=row) from None
            except (ValueError, RecursionError) as error:
                got = str(error)[:100]
                raise defect(path, "a JSON object", got, "write one object per line", row=row) from None
            if not isinstance(record, dict):
                got = f"a {type(record).__name__}"
                raise defect(path, "a JSON object", got, 'write lines like {"x": 1, "label": "a"}', row=row)
            yield row, record


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key that occurs twice")
    return record


def _explain_jsonl(path: Path, names: list[str] | None) -> DataError | None:
    """The first line that is no object, or (given names) has a key that the first line has not."""
    try:
        for row, record in json_objects(path):
            extra = [key for key in record if names is not None and key not in names]
            if extra:
                remedy = f"give every object the same keys ({nearest(extra[0], names or [])})"
                return defect(path, "the keys of the first object", f"the new key {shown(extra[0])}", remedy, row=row)
    except DataError as error:
        return error
    return None


def _json_label(cell: str) -> tuple[str, str]:
    """The label a JSON value stands for. Raises ValueError for objects and lists."""
    value = json.loads(cell)
    if isinstance(value, str):
        return "text", value.strip()
    if isinstance(value, bool):
        return "true or false", cell.strip()
    if not isinstance(value, int | float):
        raise ValueError(shown(cell))
    return "a number", cell.strip()


OPENERS: dict[str, Callable[[Path, Query], Source]] = {
    "csv": open_csv,
    "parquet": open_parquet,
    "jsonl": open_jsonl,
}
