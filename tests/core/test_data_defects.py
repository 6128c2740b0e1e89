"""Defects of tables and of NPZ archives: each is told with its place, and nothing else on the machine is read."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cyxcore.data import inspect, load
from cyxcore.data.tables import confined
from cyxcore.errors import DataError
from cyxcore.spec import DataSpec
from tests.core.datafiles import csv_error, csv_file, head, jsonl_file, npy_bytes, npz_file, parquet_file, raw_npz, told

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


# ------------------------------------------------------------------------------------ defects of tables


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file (0 bytes)"),
        ("\n\n\n", "only empty lines"),
        ("u,label\n", "a header and no rows"),
        ("u,label\n1,a\n", "expected at least 2 rows, got 1 row"),
        (
            "u,labl\n1,a\n2,b\n",
            "expected a column 'label' (data.target), got none by this name; did you mean 'labl'?",
        ),
        ("label\na\nb\n", "expected at least 1 column to learn from"),
        ("u,u,label\n1,2,a\n3,4,b\n", "'u' twice"),
        ("u,,label\n1,2,a\n3,4,b\n", "a name for column 2"),
        (
            "u,label\n1,a\n,b\n3,b\n,a\n",
            "column 'u', row 2: expected a number, got an empty cell (2 rows like this)",
        ),
        ("u,label\n1,a\nnan,b\n", "column 'u', row 2: expected a number, got nan"),
        ("u,label\n-inf,a\n1,b\n", "column 'u', row 1: expected a number, got -inf"),
        ("u,label\n1e39,a\n1,b\n", "too large for a 32-bit float"),
        ("u,label\n1e999,a\n1,b\n", "row 1: expected a number, got 1e999"),
        ("u,label\n1,a\nred,b\n", "column 'u', row 2: expected a number, got 'red'"),
        ("u,label\n1,a\n0x10,b\n", "got '0x10'"),
        ('u,label\n1,a\n"1,5",b\n', "got '1,5'; write a point before the decimals"),
        ('u,label\n"-1,234.5",a\n3,b\n', "nothing between thousands (1234.5), or name the column in data.ignore"),
        ("u,label\n1,a\nTrue,b\n", "got 'True'; write 1 and 0, or"),
        ("u,label\nred,a\nblue,b\n", "(2 rows like this); make numbers of it (of categories a column of 0 and 1 for"),
        ("u,label\n2020-01-01,a\n2020-01-02,b\n", "make numbers of it"),
        ("u,label\n1e300,a\n1e300,b\n", "32-bit float (2 rows like this); fill it in"),
        ("u,label\n?,a\n?,b\n", "'?' (2 rows like this); fill it in, remove the row, or"),
        (",u,label\n0,1,a\n1,2,b\n", "a name for column 1, got ''; name every column in the header (pandas writes its"),
        ("u,label,\n1,a,\n2,b,\n", "a name for column 3, got ''; name every column in the header (a separator at"),
        ("u,label\n1,a\n2,\n3,b\n4,\n", "column 'label', row 2: expected a label, got an empty cell (2 rows"),
        ("u,label\n1,a\n2,a\n", "column 'label': expected at least 2 classes, got only 'a' in every row"),
        ("u,label\n1,1.5\n2,2\n", "row 1: expected whole numbers or names as labels, got 1.5"),
        ("u,label\n1,1\n2,nan\n3,2\n", "row 2: expected a label, got nan"),
        ("u,label\n1,a\n2,b\x07\n", "row 2: expected 1 to 200 printable characters"),
        ("u,label\n1,a\n2\n3,b\n", "row 2: expected 2 cells as in the header, got 1"),
        ("u,label\n1,a\n2,b,c\n", "row 2: expected 2 cells as in the header, got 3"),
        ('u,label\n1,a\n2,"b\n3,a\n', "row 2: expected CSV by RFC 4180"),
        (b"\xe9,label\n1,a\n2,b\n", "data.csv: expected UTF-8 text, got the byte 0xe9"),
        (b"u,label\n1,a\n2,\xe9t\xe9\n", "row 2: expected UTF-8 text, got the byte 0xe9"),
        ("u,label\n1,a\n2,b\n".encode("utf-16"), "UTF-8 text, got UTF-16 text; save the file as UTF-8"),
        (
            b"u,label\n1,a\n2,\0b\n",
            "column 'label', row 2: expected 1 to 200 printable characters, got '\\x00b'",
        ),
        ("u,label\r1,a\r2,b\r", "a lone carriage return in line 1"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "a gzip file"),
        (b"PAR1....PAR1", 'set data.format = "parquet"'),
        ("x" * (2**24 + 2) + ",label\n", "a longer one (line 1)"),
        ("5.1,3.5,1.4,0\n4.9,3,1.4,0\n", "column names, got only numbers in the first line: '5.1', '3.5', '1.4', …"),
        ("7,3\n1,2\n3,4\n", "write the names above the first row"),
        (",".join(f"c{i}" for i in range(20_001)) + "\n", "at most 20,000 columns in a table, got 20,001"),
    ],
    ids=lambda value: None if isinstance(value, bytes) or len(value) > 50 else repr(value),
)
def test_a_defect_of_a_csv_is_told_with_its_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    message = csv_error(tmp_path, text)
    assert words in message
    assert message.startswith(str(tmp_path / "data.csv")[-200:])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"target": "Label"}, "did you mean 'label'?"),
        ({"features": ["u", "w"]}, "a column 'w' (data.features)"),
        ({"ignore": ["idd"]}, "a column 'idd' (data.ignore)"),
        ({"features": ["u", "u"]}, "'u' more than once"),
        ({"features": ["u", "label"]}, "'label' also in data.features"),
        ({"ignore": ["label"]}, "'label' also in data.ignore"),
        ({"ignore": ["u", "v"]}, "at least 1 column to learn from"),
        ({"features": []}, "at least 1 column to learn from"),
    ],
)
def test_names_that_do_not_fit_the_table_are_told(tmp_path: Path, spec: dict[str, Any], words: str) -> None:
    assert words in csv_error(tmp_path, "u,v,label\n1,2,a\n3,4,b\n", **spec)


def test_a_number_to_predict_must_be_a_number(tmp_path: Path) -> None:
    message = csv_error(tmp_path, "u,label\n1,2\n3,tall\n", task="regression")
    assert "column 'label', row 2: expected a number, got 'tall'" in message


def test_a_missing_file_is_told() -> None:
    assert "expected a file, got nothing by this name" in told(lambda: load("nowhere.csv", DataSpec()))


def test_a_folder_points_to_pack_images(tmp_path: Path) -> None:
    assert "pack_images" in told(lambda: load(tmp_path, DataSpec()))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "a device, pipe or socket" in told(lambda: load(tmp_path / "pipe.csv", DataSpec()))


def test_a_path_with_a_zero_byte_is_refused() -> None:
    assert "expected a readable file" in told(lambda: load("a\0b.csv", DataSpec()))


@pytest.mark.parametrize("name", ["data*.csv", "data?.csv", "[d]ata.csv"])
def test_a_pattern_never_reads_the_files_it_would_match(tmp_path: Path, name: str) -> None:
    csv_file(tmp_path, "u,label\n1,a\n2,b\n", "data1.csv")
    path = csv_file(tmp_path, "u,label\n1,a\n2,b\n", name)
    assert "a path without * ? [" in told(lambda: load(path, DataSpec()))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('{other}')",
        "SELECT * FROM read_text('{other}')",
        "SELECT * FROM glob('/*')",
        "COPY (SELECT 1) TO '{other}'",
        "ATTACH '{other}'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT * FROM read_csv('http://127.0.0.1:9/a.csv')",
    ],
)
def test_the_reader_can_reach_no_other_file_and_no_network(tmp_path: Path, statement: str) -> None:
    path = csv_file(tmp_path, "u,label\n1,a\n2,b\n")
    other = csv_file(tmp_path, "secret\n1\n", "other.csv")
    with confined(path, 2**30) as run:
        assert run(f"SELECT count(*) AS n FROM read_csv('{path}')")["n"].tolist() == [2]
        told(lambda: run(statement.format(other=other)))
    assert other.read_text() == "secret\n1\n"


def test_the_reader_prints_no_progress(tmp_path: Path) -> None:
    with confined(csv_file(tmp_path, ""), 2**30) as run:
        assert run("SELECT current_setting('enable_progress_bar') AS shown")["shown"].tolist() == [False]


def test_tables_are_read_in_a_notebook_that_has_no_ipywidgets(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "u,label\n1,a\n2,b\n3,a\n4,b\n")
    code = (  # what DuckDB takes for a notebook: no __main__.__file__, and a shell with a kernel
        "import sys, types; sys.modules['ipywidgets'] = None;"
        "shell = types.SimpleNamespace(config={'IPKernelApp': {}});"
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=lambda: shell); import duckdb;"
        f"from cyxcore import data, spec; rows = data.inspect({str(path)!r}, spec.DataSpec(target='label')).rows;"
        "print(duckdb.__jupyter__, rows)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert ran.stdout == "True 4\n", ran.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.csv", "s3://bucket/a.csv", "file:///etc/hostname"])
def test_a_url_is_only_a_name_of_a_file_that_is_not_there(url: str) -> None:
    assert "nothing by this name" in told(lambda: load(url, DataSpec()))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["{"], "row 1: expected a JSON object"),
        (["[1, 2]"], "row 1: expected a JSON object, got a list"),
        (['{"u": 1, "u": 2, "label": "a"}'], "a key that occurs twice"),
        ([{"u": 1, "label": "a"}, {"u": "2", "label": "b"}], "'u', row 2: expected a number, got '\"2\"'"),
        ([{"u": 1, "label": "a"}, {"u": True, "label": "b"}], "row 2: expected a number, got 'true'"),
        ([{"u": 1, "label": "a"}, {"u": [2], "label": "b"}], "row 2: expected a number, got '[2]'"),
        ([{"u": 1, "label": "a"}, {"u": None, "label": "b"}], "row 2: expected a number, got an empty cell"),
        ([{"u": 1, "label": "a"}, {"label": "b"}], "row 2: expected a number, got an empty cell"),
        ([{"u": 1, "label": "a"}, {"u": 1, "label": "b", "w": 3}], "row 2: expected the keys of the first"),
        ([{"u": 1, "label": "a"}, {"u": 1, "label": 3}], "row 2: expected text as in row 1, got a number"),
        ([{"u": 1, "label": "a"}, {"u": 1, "label": {}}], "row 2: expected a label, got '{}'"),
        ([{"u": 1, "label": "a"}, "", '{"u": 1, "label": '], "row 2: expected a JSON object"),
        ([{"u": 1, "U": 1, "label": "a"}], "'u' and 'U'"),
        ([{"u": float("nan"), "label": "a"}, {"u": 1, "label": "b"}], "row 1: expected a number, got"),
    ],
)
def test_a_defect_of_json_lines_is_told_with_its_row(tmp_path: Path, rows: list[Any], words: str) -> None:
    path = jsonl_file(tmp_path, *rows)
    assert words in told(lambda: load(path, DataSpec(format="jsonl")))


SECOND = 1_700_000_000
BLURRED = r"1,700,000,000 to 1,700,000,199, rounded by up to 64; subtract 1700000000 from each"


def test_a_column_whose_differences_float32_loses_is_refused(tmp_path: Path) -> None:
    # the values of two minutes were one number: a timestamp was a constant, and nobody was told
    rows = [(SECOND + second, second % 7, "ab"[second % 2]) for second in range(200)]
    table = "t,u,label\n" + "".join(f"{t},{u},{label}\n" for t, u, label in rows)
    assert re.search(f"column 't': expected numbers that differ .*{BLURRED}", csv_error(tmp_path, table))
    path = parquet_file(tmp_path, {"t": [row[0] for row in rows], "label": [row[2] for row in rows]})
    with pytest.raises(DataError, match=f"column 't': .*{BLURRED}"):
        load(path, DataSpec(format="parquet", target="label"))
    target = "u,y\n" + "".join(f"{u},{t}\n" for t, u, _ in rows)
    assert re.search(f"column 'y': .*{BLURRED}", csv_error(tmp_path, target, target="y", task="regression"))
    x = np.array([[row[1], row[0]] for row in rows])
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(200) % 2)
    with pytest.raises(DataError, match=f"array 'x': .*{BLURRED}"):
        load(tmp_path / "a.npz", DataSpec(format="npz"))


def test_large_numbers_whose_differences_are_left_are_taken_as_they_are(tmp_path: Path) -> None:
    names = "days,number,constant,label"
    rows = [f"{SECOND + 86_400 * day},{2**24 + day * 999_999},{2**24 + 1},{'ab'[day % 2]}" for day in range(200)]
    data = load(csv_file(tmp_path, "\n".join([names, *rows])), DataSpec(target="label", validation=0.0))
    assert [len(set(column)) for column in data.x_train.T.tolist()] == [200, 200, 1]


def test_a_column_that_is_constant_but_for_rounding_in_64_bits_is_one_constant(tmp_path: Path) -> None:
    # it was refused: "got 0.3 to 0.3", although nothing was lost
    x = np.array([[0.1 + 0.2, 0.0], [0.3, 1.0]] * 10)
    rows = [f"{a!r},{b},{'ab'[int(b)]}" for a, b in x.tolist()]
    tables = [load(csv_file(tmp_path, "\n".join(["sum,u,label", *rows])), DataSpec(target="label", validation=0.0))]
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 2)
    tables.append(load(tmp_path / "a.npz", DataSpec(format="npz", validation=0.0, normalize="none")))
    assert [[len(set(column)) for column in data.x_train.T.tolist()] for data in tables] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"u": ["x", "y"], "label": ["a", "b"]},
            "column 'u': expected a column of numbers, got type VARCHAR",
        ),
        ({"u": [[1.0], [2.0]], "label": ["a", "b"]}, "got type DOUBLE[]"),
        ({"u": [1.0, None], "label": ["a", "b"]}, "column 'u', row 2: expected a number, got an empty cell"),
        ({"u": [1.0, float("nan")], "label": ["a", "b"]}, "row 2: expected a number, got nan"),
        ({"u": [1.0, 1e300], "label": ["a", "b"]}, "too large for a 32-bit float"),
        (
            {"u": [1.0, 2.0], "label": ["a", None]},
            "column 'label', row 2: expected a label, got an empty cell",
        ),
        ({"u": [1.0, 2.0], "label": [0.5, 1.0]}, "row 1: expected whole numbers or names"),
        (
            {"u": [1.0, 2.0], "label": [{"a": 1}, {"a": 2}]},
            "expected labels: text or whole numbers, got type STRUCT",
        ),
        ({"u": pa.array([], pa.float64()), "label": pa.array([], pa.string())}, "a header and no rows"),
    ],
)
def test_a_defect_of_parquet_is_told_with_its_column(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    path = parquet_file(tmp_path, columns)
    assert words in told(lambda: load(path, DataSpec(format="parquet")))


def test_parquet_that_would_unpack_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, {"u": np.zeros(1_000_000), "label": np.arange(1_000_000) % 2})
    assert path.stat().st_size < 200_000
    message = told(lambda: load(path, DataSpec(format="parquet"), limit_bytes=10_000_000))
    assert "1,000,000 rows x 1 features" in message


# ------------------------------------------------------------------------------------ defects of NPZ

PLAIN = head("'<f4'", "(2, 1)")
X_2 = npy_bytes(PLAIN, bytes(8))
Y_2 = npy_bytes(head("'<i8'", "(2,)"), bytes([1]) + bytes(15))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.eye(3)}, "expected an array 'y', got none by this name"),
        ({"X": np.eye(3), "y": np.arange(3)}, "an array 'x', got none by this name; did you mean 'X'?"),
        ({"x": np.eye(3), "y": np.arange(2)}, "3 rows in 'x' and 2 in 'y'"),
        ({"x": np.array(1.0), "y": np.arange(2)}, "an array of 1 to 8 dimensions, got shape ()"),
        ({"x": np.arange(3.0), "y": np.arange(3)}, "use x.reshape(-1, 1)"),
        ({"x": np.zeros((3, 0)), "y": np.arange(3)}, "inputs of shape (N, …)"),
        ({"x": np.eye(1), "y": np.arange(1)}, "at least 2 rows"),
        ({"x": np.array([["a"], ["b"]]), "y": np.arange(2)}, "array 'x': expected numbers, got text"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.arange(2)}, "array 'x', row 2: expected finite numbers"),
        ({"x": np.array([[1.0], [1e300]]), "y": np.arange(2)}, "got 1e+300 at x[1, 0]"),
        ({"x": np.eye(2, dtype=complex), "y": np.arange(2)}, "dtype '<c16'"),
        ({"x": np.eye(2), "y": np.array([0, -1])}, "array 'y', row 2: expected labels from 0 up, got -1"),
        ({"x": np.eye(2), "y": np.array([0.0, 0.5])}, "row 2: expected whole numbers as labels, got 0.5"),
        ({"x": np.eye(2), "y": np.array([0.0, np.inf])}, "row 2: expected whole numbers as labels, got inf"),
        ({"x": np.eye(2), "y": np.array([0, 2**40])}, "row 2: expected labels below 1,000,000"),
        ({"x": np.eye(2), "y": np.array([2**63, 0], np.uint64)}, "row 1: expected labels below 1,000,000"),
        ({"x": np.eye(2), "y": np.eye(2)}, "for one-hot rows save y.argmax(axis=1)"),
        ({"x": np.eye(2), "y": np.array([1, 1])}, "at least 2 classes, got only 1"),
        ({"x": np.eye(2), "y": np.array([0, 2]), "classes": np.array(["a", "b"])}, "expected labels below 2"),
        ({"x": np.eye(2), "y": np.array([0, 1]), "classes": np.array(["a", "a"])}, "class names that differ"),
        ({"x": np.eye(2), "y": np.array([0, 1]), "classes": np.array([1, 2])}, "expected a list of text"),
        ({"x": np.eye(2), "y": np.array(["a", "b"]), "classes": np.array(["a", "b"])}, "leave out 'classes'"),
    ],
)
def test_a_defect_of_npz_is_told_with_its_array(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    path = npz_file(tmp_path, **arrays)
    assert words in told(lambda: load(path, DataSpec(format="npz", validation=0.0)))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (npy_bytes(head("'|O'", "(2, 1)"), b"cos\nsystem\n"), "dtype '|O'"),
        (npy_bytes(head("[('a', '<f4')]", "(2,)")), "never read"),
        (npy_bytes(head("'<f4'", "(1099511627776, 1)"), bytes(10)), "got 10;"),
        (npy_bytes(PLAIN, bytes(7)), "expected 8 bytes for shape (2, 1) of float32, got 7"),
        (npy_bytes("__import__('os').system('true')"), "expected a header of a plain array"),
        (b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"), "a header of at most 65,536 bytes"),
        (b"\x93NUMPY\x09\x00", "NPY format 1 to 3"),
        (b"", "NPY format 1 to 3"),
        (npy_bytes(head("'<f16'", "(2, 1)"), bytes(32)), "dtype '<f16'"),
        (npy_bytes(head("'<U0'", "(2, 1)")), "dtype '<U0'"),
    ],
)
def test_a_header_is_never_believed(tmp_path: Path, x: bytes, words: str) -> None:
    path = raw_npz(tmp_path, [("x.npy", x), ("y.npy", Y_2)])
    assert words in told(lambda: load(path, DataSpec(format="npz", validation=0.0)))


def test_the_archive_these_tests_damage_is_sound(tmp_path: Path) -> None:
    assert (
        inspect(raw_npz(tmp_path, [("x.npy", X_2), ("y.npy", Y_2)]), DataSpec(format="npz", validation=0.0)).rows == 2
    )


def test_a_zip_bomb_is_refused_by_its_size_before_it_is_unpacked(tmp_path: Path) -> None:
    shape = npy_bytes(head("'<f4'", "(2, 5000000)"), bytes(40_000_000))
    path = raw_npz(tmp_path, [("x.npy", shape), ("y.npy", Y_2)])
    assert path.stat().st_size < 100_000
    message = told(lambda: load(path, DataSpec(format="npz"), limit_bytes=50_000_000))
    assert "expected at most 47.7 MiB once in memory, got 76.3 MiB" in message


def test_a_size_that_deflate_cannot_reach_is_a_lie(tmp_path: Path) -> None:
    path = raw_npz(tmp_path, [("x.npy", X_2), ("y.npy", Y_2)])
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    assert "a size that deflate can reach" in told(lambda: load(path, DataSpec(format="npz")))


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = raw_npz(tmp_path, [("x.npy", X_2), ("y.npy", Y_2)], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(X_2) + len(X_2) - 1] ^= 1
    path.write_bytes(content)
    assert "an undamaged NPZ" in told(lambda: load(path, DataSpec(format="npz", validation=0.0)))


def test_the_same_array_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = raw_npz(tmp_path, [("x.npy", X_2), ("x.npy", X_2), ("y.npy", Y_2)])
    assert "'x' twice" in told(lambda: load(path, DataSpec(format="npz")))


def test_a_member_compressed_another_way_is_refused(tmp_path: Path) -> None:
    path = raw_npz(tmp_path, [("x.npy", X_2), ("y.npy", Y_2)], zipfile.ZIP_LZMA)
    assert "a stored or deflated array" in told(lambda: load(path, DataSpec(format="npz")))


def test_pickled_arrays_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(marker),)

    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([[Trap()], [Trap()]], object))
    path = raw_npz(tmp_path, [("x.npy", stream.getvalue()), ("y.npy", Y_2)])
    assert "dtype '|O'" in told(lambda: load(path, DataSpec(format="npz")))
    assert not marker.exists()
