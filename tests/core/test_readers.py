"""Readers: tables row by row, text, arrays, images, and the classic datasets in their published formats."""

import gzip
import json
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cyxcore.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    ByteTokenizer,
    DataLoader,
    FashionMNIST,
    ImageCSV,
    ImageFolder,
    ShuffleBuffer,
    TableStream,
    TensorDataset,
    TextLines,
    TokenStream,
    TokenWindows,
    load,
    open_npy,
    read_idx,
    read_npz,
    read_text,
    sources,
    streams,
)
from cyxcore.data import images as images_module
from cyxcore.data.pickles import read_dictionary
from cyxcore.errors import DataError, SpecError
from cyxcore.spec import DataSpec

ROWS = [{"a": n, "b": n / 4, "label": "xyz"[n % 3]} for n in range(9)]


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    if suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        return written(folder, f"t.{suffix}", "\n".join(lines) + "\n")
    if suffix == "jsonl":
        return written(folder, "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if suffix == "json":
        return written(folder, "t.json", json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return folder / "t.parquet"


def told(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


# tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_table_is_read_row_by_row(tmp_path: Path, suffix: str) -> None:
    rows = TableStream(table(tmp_path, suffix), target="label", classes="scan")
    assert rows.feature_names == ["a", "b"] and rows.classes == ["x", "y", "z"]
    found = [(x.tolist(), int(y)) for x, y in rows]
    assert found == [([n, n / 4], n % 3) for n in range(9)] and found == [(x.tolist(), int(y)) for x, y in rows]
    (batch,) = DataLoader(rows, batch_size=20, num_workers=1)
    assert batch[0].shape == (9, 2) and batch[1].dtype == "int64"


@pytest.mark.parametrize("kind", [int, float, str, bool])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_classes_of_a_stream_are_those_of_a_job(tmp_path: Path, suffix: str, kind: Any) -> None:
    labels = [kind(n % 12) for n in range(24)]  # as text "10" would come before "2", and 1.0 is "1"
    path = table(tmp_path, suffix, [{"a": n, "label": label} for n, label in enumerate(labels)])
    job = load(path, DataSpec(format=suffix, target="label", validation=0.0))  # type: ignore[arg-type]
    stream = TableStream(path, target="label", classes="scan")
    assert stream.classes == job.classes and [int(y) for _, y in stream] == job.y_train.tolist()
    if kind is not bool:
        assert [int(y) for _, y in stream] == [n % 12 for n in range(24)]
        given = TableStream(path, target="label", classes=[str(n) for n in range(12)])
        assert [int(y) for _, y in given] == [n % 12 for n in range(24)]


def test_labels_of_parquet_are_told_apart_where_floats_are_not(tmp_path: Path) -> None:
    path = table(tmp_path, "parquet", [{"a": n, "label": 2**53 + n} for n in range(2)])
    assert TableStream(path, target="label", classes="scan").classes == ["9007199254740992", "9007199254740993"]


@pytest.mark.parametrize(
    "label, said",
    [
        ("0.5", "row 2: expected whole numbers or names as labels, got 0.5; for numbers to predict leave out classes"),
        ("[1]", "row 2: expected a label, got a list; write every label as text or as a whole number"),
        ('" "', "row 2: expected a label, got an empty cell"),
    ],
)
def test_what_is_no_label_of_a_stream_is_told(tmp_path: Path, label: str, said: str) -> None:
    path = written(tmp_path, "t.jsonl", f'{{"a": 1, "y": 0}}\n{{"a": 2, "y": {label}}}\n')
    assert said in told(lambda: TableStream(path, target="y", classes="scan"))
    if label != "0.5":
        assert said in told(lambda: list(TableStream(path, target="y", classes=["0"])))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_stream_reads_what_a_job_reads(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path, suffix)
    whole = load(
        path,
        DataSpec(
            format="csv" if suffix == "csv" else suffix, target="b", task="regression", ignore=["label"], validation=0.0
        ),
    )  # type: ignore[arg-type]
    x, y = TableStream(path, target="b", ignore=["label"]).load().tensors
    assert (x.numpy() == whole.x_train).all() and (y.numpy() == whole.y_train[:, 0]).all()


def test_columns_are_chosen_and_missing_cells_are_nan_where_they_may_be(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "u,v,w\n1,,3\n4, ,6\n")
    assert np.isnan(TableStream(path, features=["w", "v"], missing="nan").load().tensors[0].numpy()[:, 1]).all()
    assert TableStream(path, features=["w", "u"]).load().tensors[0].tolist() == [[3, 1], [6, 4]]
    parquet = table(tmp_path, "parquet", [{"a": 1.5, "n": None}, {"a": 2.5, "n": 3}])
    assert TableStream(parquet, missing="nan").load().tensors[0].shape == (2, 2)


CELLS = [
    (
        "u,y\n1,a\n,b\n",
        "t.csv, column 'u', row 2: expected a number, got an empty cell; fill it in, or use missing=\"nan\"",
    ),
    ("u,y\n1,a\n0x10,b\n", "column 'u', row 2: expected a number, got '0x10'"),
    ("u,y\n1,a\n1e999,b\n", "column 'u', row 2: expected a number, got '1e999'"),
    ('u,y\n"1,5",a\n', "column 'u', row 1: expected a number, got '1,5'"),
    ("u,y\n1_000,a\n", "column 'u', row 1: expected a number, got '1_000'"),
    ("u,y\n\u0661,a\n", "column 'u', row 1: expected a number, got '\u0661'"),
    ("u,y\nnan,a\n", "column 'u', row 1: expected a number, got 'nan'"),
    ("u,y\n1,a\n2\n", "row 2: expected 2 cells as in the header, got 1"),
    ('u,y\n"1,a\n', "row 1: expected CSV by RFC 4180, got unexpected end of data; check the quotes"),
    ("u,y\n1,a\n2,\n", "column 'y', row 2: expected a label, got an empty cell"),
    (b"u,y\n1,a\n2,\xff\n", "row 2: expected UTF-8 text, got the byte 0xff"),
    (b"u,y\n1,a\n2,\0\n", "expected text, got a zero byte in line 3"),
    ("u,u\n1,2\n", "expected column names that differ, got 'u' twice"),
    ("\n\n", "expected a header line with the column names, got only empty lines"),
    ("u,y\n", "expected at least 1 row, got a header and no rows"),
    ("", "expected a table, got an empty file (0 bytes)"),
]


@pytest.mark.parametrize("content, said", CELLS)
def test_a_defect_of_a_csv_file_is_told_with_its_place(tmp_path: Path, content: Any, said: str) -> None:
    path = written(tmp_path, "t.csv", content)
    assert said in told(lambda: TableStream(path, target="y", classes="scan").load())


def test_a_line_that_does_not_end_is_refused_before_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000)
    path = written(tmp_path, "t.csv", "a,b\n1,2\n" + "9" * 5000)
    assert "expected lines of at most 1,000 bytes, got a longer one (line 3)" in told(lambda: TableStream(path).load())
    assert "lines of at most 1,000 bytes" in told(lambda: list(TextLines(path)))
    assert "lines of at most 1,000 bytes" in told(lambda: list(TokenStream(path, ByteTokenizer(), 2)))


def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "\ufeffa;b\r\n1;2\r\n\r\n3;4\r\n")
    assert TableStream(path).load().tensors[0].tolist() == [[1, 2], [3, 4]]
    assert "expected lines ending in" in told(lambda: TableStream(written(tmp_path, "u.csv", "a,b\r1,2\r")).load())


def test_other_files_than_tables_are_told(tmp_path: Path) -> None:
    assert "expected a file, got nothing by this name; check data.path" in told(
        lambda: TableStream(tmp_path / "no.csv")
    )
    assert "expected a file, got a folder" in told(lambda: TableStream(tmp_path))
    assert "expected a plain file, got a device" in told(lambda: TableStream("/dev/zero", format="csv"))
    pickled = written(tmp_path, "t.pkl", b"\x80\x04N.")
    assert "expected one of csv, jsonl, json, parquet, got 't.pkl'" in told(lambda: TableStream(pickled))


def test_columns_of_parquet_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    path = table(tmp_path, "parquet", [{"a": [1, 2], "b": 1.0, "c": "x"}])
    assert "column 'a': expected a column of numbers or text, got type BIGINT[]" in told(
        lambda: TableStream(path, ignore=["c"]).load()
    )
    assert "column 'c', row 1: expected a number, got 'x'" in told(lambda: TableStream(path, ignore=["a"]).load())
    whole = path.read_bytes()
    broken = written(tmp_path, "b.parquet", whole[: len(whole) // 2])
    assert "expected a readable table" in told(lambda: TableStream(broken).load())


OBJECTS = [
    ("t.jsonl", '{"u": 1}\n{"u": "2"}\n', None),
    ("t.jsonl", '{"u": 1}\n{"u": true}\n', "column 'u', row 2: expected a number, got 'True'"),
    ("t.jsonl", '{"u": 1}\n{"u": 1' + "0" * 400 + "}\n", "column 'u', row 2: expected a number, got '1000"),
    ("t.jsonl", '{"u": 1}\n{"u": 1e999}\n', "column 'u', row 2: expected a number, got 'inf'"),
    ("t.jsonl", '{"u": 1}\n{"v": 1}\n', "column 'u', row 2: expected a number, got an empty cell"),
    ("t.jsonl", '{"u": 1}\n[1]\n', "row 2: expected a JSON object, got a list"),
    ("t.jsonl", '{"u": 1}\n{"u": [1]}\n', "column 'u', row 2: expected a number, got '[1]'"),
    ("t.json", '{"u": 1}', "expected a list of objects, got a dict"),
    ("t.json", '[{"u": 1}, 2]', "row 2: expected a JSON object, got a int"),
    ("t.json", '[{"u": 1, "u": 2}]', "expected JSON, got a key that occurs twice"),
    ("t.json", "[" * 100_000, "expected JSON, got"),
    ("t.json", '[{"u": 1', "expected JSON, got"),
    ("t.parquet", "no parquet", "expected parquet data, got a file that starts with b'no parqu'"),
    ("t.csv", "PAR1", "expected csv data, got a file that starts with b'PAR1'"),
    ("t.xlsx", "PK", "expected one of csv, jsonl, json, parquet, got 't.xlsx'"),
]


@pytest.mark.parametrize("name, content, said", OBJECTS)
def test_a_defect_of_another_table_is_told_too(tmp_path: Path, name: str, content: str, said: str | None) -> None:
    path = written(tmp_path, name, content)
    if said is None:
        assert TableStream(path).load().tensors[0].tolist() == [[1], [2]]
        return
    assert said in told(lambda: TableStream(path).load())


def test_columns_that_are_not_there_are_told_with_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path, "csv")
    assert "a column 'lable' (target), got none by this name; did you mean 'label'?" in told(
        lambda: TableStream(path, target="lable")
    )
    assert "expected columns to learn from, got the target among them" in told(
        lambda: TableStream(path, target="a", features=["a"])
    )
    assert "row 3: expected one of the 2 classes, got 'z'" in told(
        lambda: list(TableStream(path, target="label", classes=["x", "y"]))
    )
    with pytest.raises(SpecError, match="expected missing as error or nan, got 'zero'"):
        TableStream(path, missing="zero")  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_larger_than_the_memory_it_takes(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_ROWS_AT_A_TIME", 32)
    rows, columns = 6_000, 8
    cells = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    if suffix == "parquet":
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({f"c{n}": cells[:, n] for n in range(columns)}), path, row_group_size=4096)
    elif suffix == "csv":
        lines = [",".join(f"c{n}" for n in range(columns)), *(",".join(map(str, row)) for row in cells.tolist())]
        path = written(tmp_path, "t.csv", "\n".join(lines))
    else:
        path = written(
            tmp_path,
            "t.jsonl",
            "\n".join(json.dumps({f"c{n}": v for n, v in enumerate(row)}) for row in cells.tolist()),
        )
    stream = TableStream(path)
    tracemalloc.start()
    total = sum(int(x[0]) for x in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == pytest.approx(cells[:, 0].sum(), rel=1e-6) and peak < rows * columns * 8  # all of it as numbers


def test_loading_stops_before_memory_is_taken(tmp_path: Path) -> None:
    assert "expected at most 1.0 KiB once in memory" in told(
        lambda: TableStream(table(tmp_path, "csv"), ignore=["label"]).load(1024)
    )


# text ---------------------------------------------------------------------------------------------


def test_text_is_read_whole_line_by_line_or_as_tokens(tmp_path: Path) -> None:
    one, two = written(tmp_path, "1.txt", "\ufeffein\r\nzwei\n"), written(tmp_path, "2.txt", "drei ünd")
    assert list(TextLines(one, two)) == ["ein", "zwei", "drei ünd"] and read_text(one) == "ein\r\nzwei\n"
    rows = list(TokenStream([one, two], ByteTokenizer(), 4))
    whole = np.concatenate([ByteTokenizer().encode(read_text(path)) for path in (one, two)])
    assert [x.tolist() for x, _ in rows] == [x.tolist() for x, _ in TokenWindows(whole, 4)]
    assert all((x[1:] == y[:-1]).all() for x, y in rows)


def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, "t.txt", b"good\nb\xe4d\n")
    for call in (
        lambda: list(TextLines(path)),
        lambda: read_text(path),
        lambda: list(TokenStream(path, ByteTokenizer(), 2)),
    ):
        assert "expected UTF-8 text, got the byte 0xe4 in line 2; save the file as UTF-8" in told(call)
    assert "expected a file, got nothing by this name" in told(lambda: TextLines(tmp_path / "none"))


def test_a_stream_of_tokens_is_mixed_and_batched(tmp_path: Path) -> None:
    path = written(tmp_path, "t.txt", "0123456789\n" * 300)
    loader = DataLoader(ShuffleBuffer(TokenStream(path, ByteTokenizer(), 10), 50), batch_size=8, num_workers=1)
    batches = list(loader)
    assert batches[0][0].shape == (8, 10) and sum(x.shape[0] for x, _ in batches) == 329


# arrays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8", "u1", "?"])
def test_an_array_stays_on_the_disk_until_its_rows_are_taken(tmp_path: Path, dtype: str) -> None:
    x = (np.arange(12).reshape(6, 2) % 5).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    mapped = open_npy(tmp_path / "x.npy")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    (batch,) = next(iter(DataLoader(TensorDataset(mapped), batch_size=4)))
    assert (batch.numpy() == x[:4]).all() and not isinstance(batch.numpy(), np.memmap)


def test_all_arrays_of_an_npz_are_read_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.eye(3), names=np.array(["a", "bc"]))
    arrays = read_npz(tmp_path / "a.npz")
    assert arrays["x"].tolist() == np.eye(3).tolist() and arrays["names"].tolist() == ["a", "bc"]
    assert "expected at most 10 bytes once in memory" in told(lambda: read_npz(tmp_path / "a.npz", 10))


ARCHIVES = [
    (
        lambda file: file.writestr("x.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"x")),
        "'|O'",
    ),
    (lambda file: file.writestr("../x.npy", b"nothing"), "expected an array in NPY format 1 to 3"),
    (lambda file: [file.writestr(f"{n}.npy", b"") for n in range(1001)], "expected at most 1,000 arrays, got 1,001"),
    (lambda file: [file.writestr("x.npy", b""), file.writestr("x", b"")], "expected each array once, got 'x' twice"),
    (lambda file: file.writestr("x.npy", b"1", zipfile.ZIP_LZMA), "expected a stored or deflated array"),
]


@pytest.mark.parametrize("fill, said", ARCHIVES)
def test_a_defect_of_an_archive_is_told(tmp_path: Path, fill: Callable[[Any], Any], said: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        fill(file)
    assert said in told(lambda: read_npz(tmp_path / "a.npz"))


def test_an_archive_with_a_wrong_checksum_or_a_false_size_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(100))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    whole[whole.index(b"\x05\0\0\0\0\0\0\0")] = 6
    assert "expected an undamaged NPZ file, got BadZipFile" in told(
        lambda: read_npz(written(tmp_path, "b.npz", bytes(whole)))
    )
    assert "expected an NPZ file, got a file that starts with" in told(
        lambda: read_npz(written(tmp_path, "c.npz", b"x,y"))
    )


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


ARRAYS = [
    (b"", "expected an NPY file, got an empty file (0 bytes)"),
    (b"PK\x03\x04", "expected an NPY file, got a file that starts with b'PK\\x03\\x04'"),
    (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"x"), "expected"),
    (
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"1234"),
        "expected a header of a plain",
    ),
    (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", b"0" * 10), "the file is cut off"),
    (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", b"1234"), "expected 8 bytes for shape (2,)"),
    (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0,), }"), "expected at least 1 number, got shape (0,)"),
    (b"\x93NUMPY\x03\x00" + struct.pack("<I", 2**31), "expected a header of at most 65,536 bytes"),
]


@pytest.mark.parametrize("content, said", ARRAYS)
def test_a_defect_of_an_array_file_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    message = told(lambda: open_npy(written(tmp_path, "x.npy", content)))
    assert said in message and "array ''" not in message


# images -------------------------------------------------------------------------------------------


def image_folder(root: Path) -> Path:
    for label, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (root / label).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (6 + number, 4), colour).save(root / label / f"{number}.png")
    return root


def test_a_folder_of_images_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    images = ImageFolder(image_folder(tmp_path / "i"), size=(4, 6))
    assert images.classes == ["cat", "dog"] and images.targets == [0, 0, 1, 1] and images.class_to_idx["dog"] == 1
    ((x, y),) = DataLoader(images, batch_size=4, num_workers=2)
    assert x.shape == (4, 3, 4, 6) and x.dtype == "uint8" and y.tolist() == [0, 0, 1, 1]
    assert x[0, :, 0, 0].tolist() == [255, 0, 0] and ImageFolder(tmp_path / "i")[1][0].shape == (3, 4, 7)
    assert ImageFolder(tmp_path / "i", channels=1, transform=np.mean)[3][0] == pytest.approx(29)


def test_images_named_in_a_table(tmp_path: Path) -> None:
    image_folder(tmp_path / "i")
    path = written(tmp_path, "i.csv", "file,kind\ni/dog/1.png,d\ni/cat/0.png,c\n")
    images = ImageCSV(path, path_column="file", label_column="kind", size=(2, 2))
    assert images.classes == ["c", "d"] and [images[row][1] for row in (0, 1)] == [1, 0]
    assert images[0][0][2, 0, 0].item() == 255
    numbered = written(tmp_path, "n.csv", "path,label\n" + "".join(f"i/cat/0.png,{n}\n" for n in (10, 9, 0, 2)))
    assert ImageCSV(numbered).classes == ["0", "2", "9", "10"] and ImageCSV(numbered).targets == [3, 2, 0, 1]


IMAGE_TABLES = [
    ("path,label\n../secret.png,a\n", "column 'path', row 1: expected a path inside"),
    ("path,label\n/etc/passwd,a\n", "column 'path', row 1: expected a path inside"),
    ("path,label\nnone.png,a\n", "column 'path', row 1: expected a file, got none at"),
    ("path,kind\na.png,a\n", "expected a column 'label', got none by this name"),
    ("path,label\na.png\n", "row 1: expected 2 cells as in the header, got 1"),
    ("path,label\n", "expected at least 1 row, got a header and no rows"),
]


@pytest.mark.parametrize("content, said", IMAGE_TABLES)
def test_a_defect_of_a_table_of_images_is_told(tmp_path: Path, content: str, said: str) -> None:
    assert said in told(lambda: ImageCSV(written(tmp_path, "i.csv", content)))


def test_an_image_that_cannot_be_decoded_is_told_with_its_row(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "i")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(
        root / "dog" / "0.png"
    )
    whole = (root / "dog" / "0.png").read_bytes()
    (root / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    message = told(lambda: list(DataLoader(ImageFolder(root, size=(4, 4)), batch_size=4)))
    assert "row 2 (batch 1 of epoch 1)" in message and "expected an undamaged image" in message


def test_images_of_other_kinds_are_told_not_bent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path / "i")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(root / "cat" / "0.png")
    assert "expected 8 bits per channel, got Pillow's mode 'I;16'" in told(lambda: ImageFolder(root, size=(4, 4))[0])
    written(root / "cat", "1.png", "no image")
    assert "expected an image, got UnidentifiedImageError; use one of PNG" in told(lambda: ImageFolder(root)[1])
    monkeypatch.setattr(images_module, "MAX_PIXELS", 10)
    assert "expected an image of at most 10 pixels, got 6 x 4; make it smaller" in told(lambda: ImageFolder(root)[2])
    monkeypatch.undo()
    with pytest.raises(SpecError, match="expected channels 1 or 3, got 4"):
        ImageFolder(root, channels=4)
    (root / "notes.txt").write_text("x")
    assert "expected only sub-folders, one per class, got the file 'notes.txt'" in told(lambda: ImageFolder(root))
    assert "expected a folder with one sub-folder per class" in told(lambda: ImageFolder(tmp_path / "none"))


# classics -----------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    code = codes[array.dtype.str[1:]]
    sides = b"".join(struct.pack(">I", side) for side in array.shape)
    return bytes([0, 0, code, array.ndim]) + sides + array.astype(array.dtype.newbyteorder(">")).tobytes()


def mnist_files(folder: Path, rows: int = 5, dash: bool = True, gz: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.arange(rows * 784, dtype=np.uint64).reshape(rows, 28, 28).astype(np.uint8)
    for part in ("train", "t10k"):
        for name, array in (("images", images), ("labels", np.arange(rows, dtype=np.uint8))):
            file = folder / f"{part}-{name}{'-' if dash else '.'}idx{array.ndim}-ubyte{'.gz' if gz else ''}"
            file.write_bytes(gzip.compress(idx(array)) if gz else idx(array))
    return folder


@pytest.mark.parametrize(
    "kind, inner, gz", [(MNIST, "", True), (MNIST, "MNIST/raw", False), (FashionMNIST, "raw", True)]
)
def test_mnist_is_read_from_its_published_files(tmp_path: Path, kind: Any, inner: str, gz: bool) -> None:
    mnist_files(tmp_path / inner, dash=not gz, gz=gz)
    data = kind(tmp_path, train=False)
    image, label = data[3]
    assert image.shape == (1, 28, 28) and image.dtype == "uint8" and label.item() == 3 and len(data.classes) == 10
    assert image[0, 0, 5].item() == (3 * 784 + 5) % 256


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_any_idx_file_is_an_array(tmp_path: Path, dtype: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - 5).astype(dtype)
    found = read_idx(written(tmp_path, "a.idx", idx(array)))
    assert (found == array).all() and found.dtype == array.dtype


WHOLE_IDX = idx(np.zeros((2, 28, 28), np.uint8))
IDX = [
    (b"", "expected an IDX file, got bytes that start with b''"),
    (b"\0\0\x07\x01\0\0\0\1", "expected an IDX file"),
    (WHOLE_IDX[:-1], "expected 1,568 bytes for shape (2, 28, 28), got 1,567; the file is cut off or damaged"),
    (WHOLE_IDX + b"x", "expected 1,568 bytes for shape (2, 28, 28), got 1,569"),
    (gzip.compress(WHOLE_IDX[:-5]), "expected 1,568 bytes for shape (2, 28, 28), got 1,563"),
    (gzip.compress(WHOLE_IDX)[:-6], "expected an undamaged gzip file, got EOFError"),
    (gzip.compress(WHOLE_IDX)[:30] + b"\xff" * 8, "expected an undamaged gzip file"),
    (b"\0\0\x08\x03" + b"\xff" * 12, "expected at most 1,073,741,824 bytes, got shape"),
    (gzip.compress(b"\0\0\x08\x01\0\0\0\1" + b"\0" * 10_000_000), "expected 1 bytes for shape (1,), got more"),
]


@pytest.mark.parametrize("content, said", IDX)
def test_a_defect_of_an_idx_file_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in told(lambda: read_idx(written(tmp_path, "a.idx", content)))


def test_files_of_mnist_that_do_not_fit_are_told(tmp_path: Path) -> None:
    assert "the file train-images-idx3-ubyte, got none of the names it has; nothing is downloaded" in told(
        lambda: MNIST(tmp_path)
    )
    mnist_files(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    assert "expected a label for each of its 5 images, got 4" in told(lambda: MNIST(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(5, 10, np.uint8)))
    assert "row 1: expected labels below 10, got 10" in told(lambda: MNIST(tmp_path))
    assert "expected the folder with the files" in told(lambda: MNIST(tmp_path / "none"))
    mnist_files(tmp_path, rows=0)
    assert "expected at least 1 image, got none" in told(lambda: MNIST(tmp_path))


def test_a_pipe_among_images_is_told_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "a.png")
    folder = ImageFolder(tmp_path, (8, 8))
    assert "cats/a.png" in told(lambda: folder[0])


IMAGES = np.random.default_rng(3).integers(0, 256, (4, 3072)).astype(np.uint8)


def python2_pickle(data: np.ndarray, **lists: list[int]) -> bytes:
    """As Python 2's cPickle wrote CIFAR: protocol 2, texts as SHORT_BINSTRING, the array by _reconstruct and BUILD."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def names(value: list[int]) -> bytes:
        return b"](" + b"".join(number(item) for item in value) + b"e"

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + number(len(data)) + number(data.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\x00tb"
        b"\x89" + text(data.tobytes()) + b"tb"
    )
    items = [text(b"batch_label") + text(b"testing batch 1 of 1"), text(b"data") + array]
    items += [text(key.encode()) + names(value) for key, value in lists.items()]
    return b"\x80\x02}q\x00(" + b"".join(items) + b"u."


def test_cifar_is_read_from_either_version(tmp_path: Path) -> None:
    rows = np.concatenate([np.arange(4, dtype=np.uint8)[:, None], IMAGES], 1).tobytes()
    (tmp_path / "b" / "cifar-10-batches-bin").mkdir(parents=True)
    (tmp_path / "p").mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        written(tmp_path / "b" / "cifar-10-batches-bin", f"{name}.bin", rows)
        written(tmp_path / "p", name, python2_pickle(IMAGES, labels=[0, 1, 2, 3]))
    binary, python = CIFAR10(tmp_path / "b"), CIFAR10(tmp_path / "p")
    assert len(binary) == len(python) == 20 and len(CIFAR10(tmp_path / "p", train=False)) == 4
    assert (binary.data == python.data).all() and (binary.targets == python.targets).all()
    assert (binary.data[1] == IMAGES[1].reshape(3, 32, 32)).all() and binary.classes[binary.targets[3]] == "cat"


def test_cifar_100_has_two_labels(tmp_path: Path) -> None:
    rows = np.concatenate([np.array([[1, 42], [2, 7]], np.uint8), IMAGES[:2]], 1).tobytes()
    written(tmp_path, "train.bin", rows)
    written(tmp_path, "coarse_label_names.txt", "\n".join(f"c{n}" for n in range(20)))
    written(tmp_path, "test", python2_pickle(IMAGES, fine_labels=[5, 6, 7, 99], coarse_labels=[1, 1, 2, 2]))
    assert CIFAR100(tmp_path).targets.tolist() == [42, 7] and CIFAR100(tmp_path).classes[42] == "42"
    assert (
        CIFAR100(tmp_path, coarse=True).targets.tolist() == [1, 2]
        and CIFAR100(tmp_path, coarse=True).classes[1] == "c1"
    )
    assert CIFAR100(tmp_path, train=False).targets.tolist() == [5, 6, 7, 99]


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = b"cos\nsystem\n(U" + bytes([len(f"touch {marker}")]) + f"touch {marker}".encode() + b"tR."
    assert "expected no code in a dataset, got the name 'os system'; use the binary version" in told(
        lambda: read_dictionary("p", evil)
    )
    assert "expected no code in a dataset, got the name 'builtins eval'" in told(
        lambda: read_dictionary("p", b"\x80\x02cbuiltins\neval\nU\x011\x85R.")
    )
    assert not marker.exists()


PICKLES = [
    (b"\x80\x02\x8c\x02os\x93.", "the instruction SHORT_BINUNICODE"),
    (b"\x80\x02ios\nsystem\n.", "got the instruction INST"),
    (b"\x80\x02](.", "expected a dictionary"),
    (b"\x80\x02}q\x00(U\x01aK\x01", "expected an undamaged pickle"),
    (b"", "expected an undamaged pickle"),
    (b"}(K\x01K\x02u.", "got ValueError: a key that is no text"),
    (b"cnumpy\nndarray\n)R.", "got ValueError: a call of numpy ndarray"),
    (b"cnumpy\ndtype\nU\x01O\x85R.", "got ValueError: a call of numpy dtype"),
    (python2_pickle(IMAGES)[:-3000], "expected an undamaged pickle"),
    (b"]t.", "got ValueError: an end without its mark"),
]


@pytest.mark.parametrize("content, said", PICKLES)
def test_another_pickle_is_refused(content: bytes, said: str) -> None:
    assert said in told(lambda: read_dictionary("p", content))


def test_many_marks_take_no_square_of_time() -> None:
    begun_s = time.process_time()
    assert "expected a dictionary" in told(lambda: read_dictionary("p", b"]" * 300_000 + b"(t" * 300_000 + b"."))
    assert time.process_time() - begun_s < 60  # 3 here; the square takes an hour


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=40), st.integers(0, 200), st.integers(0, 40))
def test_any_bytes_are_a_dictionary_or_one_error(noise: bytes, place: int, length: int) -> None:
    whole = python2_pickle(IMAGES[:1, :20], labels=[1])
    try:
        assert isinstance(read_dictionary("p", whole[:place] + noise + whole[place + length :]), dict)
    except DataError:
        pass


def test_files_of_cifar_that_do_not_fit_are_told(tmp_path: Path) -> None:
    written(tmp_path, "test_batch.bin", b"x" * 3000)
    assert "expected images of 3,073 bytes each, got 3,000 bytes" in told(lambda: CIFAR10(tmp_path, train=False))
    written(tmp_path, "test", python2_pickle(IMAGES, fine_labels=[5]))
    assert "expected a list 'fine_labels' with a label per image, got 1 of 4" in told(
        lambda: CIFAR100(tmp_path, train=False)
    )
    written(tmp_path, "test", python2_pickle(IMAGES[:, :10], fine_labels=[5] * 4))
    assert "expected an array 'data' of 3,072 bytes per image, got (4, 10)" in told(
        lambda: CIFAR100(tmp_path, train=False)
    )
    assert "the file data_batch_1.bin, got none of the names it has" in told(lambda: CIFAR10(tmp_path))
