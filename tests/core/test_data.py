"""Datasets: what loads, how rows are held out, which format and task a file has, and readings that are kept."""

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyxcore.data import check_labels, detect_format, inspect, load, pack, pack_images, task_of
from cyxcore.data.sources import csv_header
from cyxcore.data.split import shuffled, split
from cyxcore.errors import DataError, MissingExtra, SpecError
from cyxcore.spec import DataSpec
from tests.core.datafiles import csv_error, csv_file, jsonl_file, npz_file, parquet_file, told

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS = [(float(i), float(i * i % 7), "ab"[i % 2]) for i in range(10)]


# ------------------------------------------------------------------------------------ what loads


def test_the_digits_have_1797_rows_of_64_pixels_and_ten_classes() -> None:
    info = inspect(EXAMPLES / "digits.csv", DataSpec())
    assert (info.rows, info.input_shape, info.classes) == (1797, [64], [str(digit) for digit in range(10)])


def test_the_diabetes_target_is_a_column_of_float32() -> None:
    data = load(EXAMPLES / "diabetes.csv", DataSpec(target="progression"), loss="mse")
    assert (data.y_train.shape, data.y_train.dtype, data.classes) == ((354, 1), np.float32, None)


JOBS = sorted({path.name for path in EXAMPLES.glob("*.toml")} - {"workflow.toml"})  # that one names other files


@pytest.mark.parametrize("name", JOBS)
def test_every_example_job_names_data_that_can_be_trained_on(name: str) -> None:
    job = tomllib.loads((EXAMPLES / name).read_text())
    options = job["data"]
    path = EXAMPLES / options.pop("path")
    spec = DataSpec(format=detect_format(path), **options)
    info = inspect(path, spec, loss=job["training"]["loss"])
    check_labels(info, job["model"]["layers"][-1]["out_features"], loss=job["training"]["loss"])


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def same_table(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, DataSpec]:
    """ROWS in each of the table formats."""
    columns = {
        "u": [row[0] for row in ROWS],
        "v": [row[1] for row in ROWS],
        "label": [row[2] for row in ROWS],
    }
    write: dict[str, Callable[[], Path]] = {
        "csv": lambda: csv_file(tmp_path, "u,v,label\n" + "".join(f"{u},{v},{label}\n" for u, v, label in ROWS)),
        "jsonl": lambda: jsonl_file(tmp_path, *({"u": u, "v": v, "label": label} for u, v, label in ROWS)),
        "parquet": lambda: parquet_file(tmp_path, columns),
    }
    return write[request.param](), DataSpec(format=request.param)


def test_each_table_format_gives_the_same_arrays(same_table: tuple[Path, DataSpec]) -> None:
    data = load(*same_table, seed=3)
    train, held = split("", 10, np.array([0, 1] * 5), 0.2, 3)
    expected = np.array([row[:2] for row in ROWS], np.float32)
    np.testing.assert_array_equal(data.x_train, expected[train])
    np.testing.assert_array_equal(data.x_val, expected[held])
    np.testing.assert_array_equal(data.y_train, np.array([0, 1] * 5)[train])
    assert (data.classes, data.feature_names, data.x_train.dtype, data.y_train.dtype) == (
        ["a", "b"], ["u", "v"], np.float32, np.int64,
    )  # fmt: skip


def test_features_come_in_the_order_asked_for(same_table: tuple[Path, DataSpec]) -> None:
    path, spec = same_table
    data = load(path, DataSpec(format=spec.format, features=["v", "u"], validation=0.0))
    np.testing.assert_array_equal(data.x_train[:, 1], [row[0] for row in ROWS])


def test_an_ignored_column_may_hold_anything(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "id,u,label\nx1,1,a\n,2,b\n")
    assert inspect(path, DataSpec(ignore=["id"], validation=0.0)).feature_names == ["u"]


@pytest.mark.parametrize(
    "first", ["0,1,2", "3,7", "5", "1_1,1_2,1_3", "nan,inf", "2024,2023,2022", "1.0,2.5,3.0", "-1,0,1", "5.1,3.5,label"]
)
def test_numbers_in_order_may_be_names_of_columns(tmp_path: Path, first: str) -> None:
    assert csv_header(csv_file(tmp_path, first + "\n1,2,3\n"), ",") == first.split(",")


@pytest.mark.parametrize(
    "first", ["5.1,3.5,1.4,0.2", "7,3", "1,1,2", "2.5,3.5", "5.0", "1,nan,3", "-inf,1,2", "1e3,1E3"]
)
def test_a_first_row_of_numbers_is_no_header(tmp_path: Path, first: str) -> None:
    with pytest.raises(DataError, match="got only numbers in the first line"):
        csv_header(csv_file(tmp_path, first + "\n1,2,3\n"), ",")


def test_a_constant_column_is_data(tmp_path: Path) -> None:
    assert inspect(csv_file(tmp_path, "u,label\n1,a\n1,b\n1,a\n1,b\n"), DataSpec()).rows == 4


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffu,label\n1,a\n2,b\n",
        "u,label\r\n1,a\r\n2,b\r\n",
        "u;label\n1;a\n2;b\n",
        "u\tlabel\n1\ta\n2\tb",
        '"u","label"\n"1","a"\n"2","b"\n',
        "u , label\n 1 , a \n2,b\n\n",
    ],
    ids=["byte order mark", "CRLF", "semicolons", "tabs, no last newline", "quotes", "spaces"],
)
def test_common_dialects_of_csv_read_alike(tmp_path: Path, text: str) -> None:
    data = load(csv_file(tmp_path, text), DataSpec(validation=0.0))
    assert (data.x_train.tolist(), data.y_train.tolist(), data.classes) == (
        [[1.0], [2.0]],
        [0, 1],
        ["a", "b"],
    )


def test_a_csv_column_keeps_the_name_that_only_its_case_tells_apart(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "U,u,label\n1,2,a\n3,4,b\n")
    assert load(path, DataSpec(features=["u"], validation=0.0)).x_train.tolist() == [[2.0], [4.0]]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["1.0", "2", "1"], ["1", "2"]),
        (["b", "10", "9"], ["10", "9", "b"]),
        (["é", "z", "Z"], ["Z", "z", "é"]),
    ],
    ids=["numbers by value", "1.0 is 1", "else by text", "by code point"],
)
def test_classes_have_one_order(tmp_path: Path, labels: list[str], classes: list[str]) -> None:
    path = csv_file(tmp_path, "u,label\n" + "".join(f"0,{label}\n" for label in labels))
    data = load(path, DataSpec(validation=0.0))
    assert data.classes == classes
    assert [classes[index] for index in data.y_train] == [label.removesuffix(".0") for label in labels]


def test_a_name_with_a_quote_is_read_and_not_run(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "u,label\n1,a\n2,b\n", "it's; DROP TABLE x--.csv")
    assert inspect(path, DataSpec(validation=0.0)).rows == 2


def test_a_folder_named_like_a_column_adds_no_column(same_table: tuple[Path, DataSpec], tmp_path: Path) -> None:
    path, spec = same_table
    folder = tmp_path / "label=z"
    folder.mkdir()
    info = inspect(path.rename(folder / path.name), spec)
    assert (info.feature_names, info.classes) == (["u", "v"], ["a", "b"])


def test_importing_the_data_module_loads_no_numpy_duckdb_or_kernel() -> None:
    code = (
        "import sys, cyxcore.data; heavy = ('numpy', 'duckdb', 'PIL', 'psutil', 'cyxcore.kernels');"
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES.parent, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------ NPZ


def test_npz_keeps_the_shape_of_a_sample(tmp_path: Path) -> None:
    path = npz_file(tmp_path, x=np.zeros((6, 1, 4, 5), np.uint8), y=np.array([0, 1, 2] * 2))
    info = inspect(path, DataSpec(format="npz"))
    assert (info.input_shape, info.classes, info.feature_names) == ([1, 4, 5], ["0", "1", "2"], [])


def test_npz_class_indices_stay_as_they_are(tmp_path: Path) -> None:
    path = npz_file(tmp_path, x=np.eye(4), y=np.array([0, 3, 0, 3]))
    data = load(path, DataSpec(format="npz", validation=0.0))
    assert (data.y_train.tolist(), data.classes) == ([0, 3, 0, 3], ["0", "1", "2", "3"])


def test_npz_names_its_classes_in_an_array_of_text(tmp_path: Path) -> None:
    path = npz_file(tmp_path, x=np.eye(4), y=np.array([0, 1, 0, 1]), classes=np.array(["cat", "dog"]))
    assert inspect(path, DataSpec(format="npz")).classes == ["cat", "dog"]


def test_npz_takes_text_as_labels(tmp_path: Path) -> None:
    path = npz_file(tmp_path, x=np.eye(4), label=np.array(["b", "a", "b", "a"]))
    data = load(path, DataSpec(format="npz", validation=0.0))
    assert (data.classes, data.y_train.tolist()) == (["a", "b"], [1, 0, 1, 0])


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "|b1", "<u8", ">i2"])
def test_npz_numbers_of_any_plain_type_become_float32(tmp_path: Path, dtype: str) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    data = load(npz_file(tmp_path, x=values, y=np.array([0, 1, 1])), DataSpec(format="npz", validation=0.0))
    assert data.x_train.dtype == np.float32
    assert data.x_train.tolist() == [[0, 1], [1, 0], [1, 1]]


def test_npz_in_column_order_reads_as_the_same_array(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(4, 3)
    path = npz_file(tmp_path, x=np.asfortranarray(values), y=np.arange(4.0))
    data = load(path, DataSpec(format="npz", validation=0.0), loss="mse")
    assert data.x_train.tolist() == values.tolist()
    assert data.x_train.flags.c_contiguous


def test_npz_may_hold_several_numbers_to_predict(tmp_path: Path) -> None:
    path = npz_file(tmp_path, x=np.eye(4), y=np.eye(4)[:, :3])
    assert inspect(path, DataSpec(format="npz"), loss="mse").target_width == 3


def test_packing_npy_files_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(4))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0, 1]))
    for name in ("one.npz", "two.npz"):
        pack(tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert inspect(tmp_path / "one.npz", DataSpec(format="npz")).rows == 4


def test_packing_npy_files_of_different_lengths_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(4))
    np.save(tmp_path / "y.npy", np.array([0, 1, 0]))
    message = told(lambda: pack(tmp_path / "x.npy", tmp_path / "y.npy", tmp_path / "out.npz"))
    assert "4 rows in 'x' and 3 in 'y'" in message
    assert not (tmp_path / "out.npz").exists()


# ------------------------------------------------------------------------------------ images


def picture(path: Path, size: tuple[int, int] = (4, 3), mode: str = "L", value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_a_folder_of_images_becomes_channels_rows_and_columns(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for name in ("dogs/1.png", "cats/2.png", "dogs/2.png", "cats/1.png"):
        picture(folder / name, value=1 if name.startswith("cats") else 200)
    for name in ("cats/.hidden", "dogs/Thumbs.db", "desktop.ini"):  # what systems leave behind
        (folder / name).write_text("not an image")
    assert pack_images(folder, None, tmp_path / "pets.npz") == ["cats", "dogs"]
    data = load(tmp_path / "pets.npz", DataSpec(format="npz", validation=0.0))
    assert (data.x_train.shape, data.classes, data.y_train.tolist()) == (
        (4, 1, 3, 4),
        ["cats", "dogs"],
        [0, 0, 1, 1],
    )
    assert data.x_train[:, 0, 0, 0].tolist() == [1, 1, 200, 200]


def test_one_image_in_colour_makes_all_of_them_colour(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png", mode="RGB")
    pack_images(tmp_path, (2, 2), tmp_path.parent / f"{tmp_path.name}.npz")
    info = inspect(tmp_path.parent / f"{tmp_path.name}.npz", DataSpec(format="npz", validation=0.0))
    assert info.input_shape == [3, 2, 2]


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "big.png", size=(8, 8))
    message = told(lambda: pack_images(tmp_path, None, tmp_path / "out.npz"))
    assert "big.png: expected 4 x 3 pixels" in message and "give a size (width, height; of a job data.im" in message


def test_a_folder_one_above_the_classes_is_told_from_them(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        picture(tmp_path / name)
    message = told(lambda: pack_images(tmp_path, None, tmp_path / "out.npz"))
    assert "train: expected only images in the folder of a class, got the folder 'a'; name the folder whose" in message


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png")
    (tmp_path / "b" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert "2.png: expected an image" in told(lambda: pack_images(tmp_path, None, tmp_path / "out.npz"))


def test_an_image_cut_off_in_the_middle_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(noise).save(tmp_path / name / "1.png")
    whole = (tmp_path / "b" / "1.png").read_bytes()
    (tmp_path / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
    assert "b/1.png: expected an undamaged image" in told(lambda: pack_images(tmp_path, None, tmp_path / "o.npz"))


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png", size=(20_000, 4_000), mode="1")
    assert "64,000,000 pixels" in told(lambda: pack_images(tmp_path, (2, 2), tmp_path / "out.npz"))


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cyx\[images\]'"):
        pack_images(tmp_path, None, tmp_path / "out.npz")


# ------------------------------------------------------------------------------------ held-out rows


def test_the_rows_held_out_for_a_seed_never_change() -> None:
    assert shuffled(10, 0).tolist() == [8, 3, 2, 7, 5, 0, 4, 1, 6, 9]
    assert shuffled(10, 7).tolist() == [7, 3, 1, 2, 4, 0, 5, 6, 9, 8]


def test_no_row_is_lost_or_used_twice() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 101)
    train, held = split("", 101, labels, 0.3, 1)
    assert sorted([*train, *held]) == list(range(101))


def test_every_class_gives_its_share() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    _, held = split("", 100, labels, 0.2, 5)
    assert np.bincount(labels[held]).tolist() == [10, 6, 4]


def test_the_shares_add_up_to_the_rows_asked_for() -> None:
    labels = np.arange(100) % 7
    assert len(split("", 100, labels, 0.25, 2)[1]) == 25


def test_the_only_row_of_a_class_is_trained_on() -> None:
    labels = np.array([0] * 9 + [1])
    for seed in range(20):
        assert 9 in split("", 10, labels, 0.5, seed)[0]


@pytest.mark.parametrize("validation", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("labels", [None, np.array([0, 0, 1, 1])], ids=["regression", "classes"])
def test_each_side_has_a_row(validation: float, labels: np.ndarray | None) -> None:
    train, held = split("", 4, labels, validation, 0)
    assert len(train) and len(held)


def test_validation_0_holds_out_nothing(same_table: tuple[Path, DataSpec]) -> None:
    path, spec = same_table
    data = load(path, DataSpec(format=spec.format, validation=0.0))
    assert (data.x_train.shape, data.x_val.shape, data.y_val.shape) == ((10, 2), (0, 2), (0,))


def test_other_seeds_hold_out_other_rows() -> None:
    assert split("", 100, None, 0.2, 1)[1].tolist() != split("", 100, None, 0.2, 2)[1].tolist()


def test_classes_of_one_row_each_cannot_be_held_out(tmp_path: Path) -> None:
    assert "at least 2 rows" in csv_error(tmp_path, "u,label\n1,a\n2,b\n3,c\n")


# ------------------------------------------------------------------------------------ formats, tasks, outputs


@pytest.mark.parametrize(
    ("name", "found"),
    [("a.csv", "csv"), ("a.TSV", "csv"), ("a.pq", "parquet"), ("a.ndjson", "jsonl"), ("a.npz", "npz")],
)
def test_the_name_tells_the_format(tmp_path: Path, name: str, found: str) -> None:
    assert detect_format(csv_file(tmp_path, "x", name)) == found


@pytest.mark.parametrize(("start", "found"), [(b"PAR1", "parquet"), (b'{"a": 1}', "jsonl"), (b"PK\x03\x04", "npz")])
def test_a_name_without_an_ending_leaves_the_first_bytes(tmp_path: Path, start: bytes, found: str) -> None:
    assert detect_format(csv_file(tmp_path, start, "data")) == found


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.npy", "cyxcore.data.pack("), ("a.pkl", "never read"), ("a.xyz", "set data.format")],
)
def test_a_format_that_does_not_travel_comes_with_a_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    assert remedy in told(lambda: detect_format(csv_file(tmp_path, "x", name)))


@pytest.mark.parametrize(
    ("loss", "task"), [("cross_entropy", "classification"), ("bce", "classification"), ("mse", "regression")]
)
def test_the_loss_tells_the_task(loss: str, task: str) -> None:
    assert task_of(DataSpec(), loss) == task


def test_a_loss_against_the_task_is_refused() -> None:
    with pytest.raises(SpecError, match='got "mse"'):
        task_of(DataSpec(task="classification"), "mse")


def test_two_sided_loss_needs_two_classes(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "u,label\n1,a\n2,b\n3,c\n")
    assert "exactly 2 classes" in told(lambda: load(path, DataSpec(validation=0.0), loss="bce"))


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 9), ("cross_entropy", 1), ("bce", 2)])
def test_a_model_with_too_few_outputs_is_refused(loss: str, outputs: int) -> None:
    info = inspect(EXAMPLES / "digits.csv", DataSpec())
    with pytest.raises(DataError, match="column 'label': expected a model with (10|1) outputs"):
        check_labels(info, outputs, loss=loss)


def test_a_model_may_have_more_outputs_than_there_are_classes() -> None:
    check_labels(inspect(EXAMPLES / "digits.csv", DataSpec()), 12)


def test_regression_needs_one_output_per_number() -> None:
    info = inspect(EXAMPLES / "diabetes.csv", DataSpec(target="progression"), loss="mse")
    assert "expected a model with 1 outputs, got 10" in told(lambda: check_labels(info, 10))


def test_no_message_repeats_a_long_cell(tmp_path: Path) -> None:
    assert len(csv_error(tmp_path, "u,label\n1,a\n" + "z" * 100_000 + ",b\n")) < 600


# -- readings that are kept


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,label\n" + "".join(f"{n},{n * n},{'xyz'[n % 3]}\n" for n in range(12)))
    return path


def kept_files(folder):
    return sorted(folder.glob("reading-*.safetensors"))


def test_a_file_whose_digest_the_caller_knows_is_not_hashed_again(table, tmp_path):
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    first = load(table, DataSpec(), kept_in=tmp_path, sha256=sha256)
    table.write_text("what nobody reads")
    again = load(table, DataSpec(), kept_in=tmp_path, sha256=sha256)
    assert np.array_equal(first.x_train, again.x_train) and len(kept_files(tmp_path)) == 1


def test_a_kept_reading_gives_the_same_dataset(table, tmp_path):
    plain = load(table, DataSpec())
    for _ in range(2):  # read and kept, then recalled
        again = load(table, DataSpec(), kept_in=tmp_path)
        for name in ("x_train", "y_train", "x_val", "y_val"):
            assert np.array_equal(getattr(again, name), getattr(plain, name))
        assert (again.classes, again.feature_names, again.task) == (plain.classes, plain.feature_names, plain.task)
    assert len(kept_files(tmp_path)) == 1


def test_a_changed_file_or_another_way_to_read_it_is_read_again(table, tmp_path):
    load(table, DataSpec(), kept_in=tmp_path)
    load(table, DataSpec(ignore=["b"]), kept_in=tmp_path)
    table.write_text(table.read_text() + "12,144,x\n")
    assert len(load(table, DataSpec(validation=0.0), kept_in=tmp_path).x_train) == 13
    assert len(kept_files(tmp_path)) == 3


def test_a_damaged_reading_is_read_again(table, tmp_path):
    expected = load(table, DataSpec(), kept_in=tmp_path)
    [kept] = kept_files(tmp_path)
    whole = kept.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"\xff" * 100):
        kept.write_bytes(damaged)
        assert np.array_equal(load(table, DataSpec(), kept_in=tmp_path).x_train, expected.x_train)
        assert kept.read_bytes() == whole


def test_a_folder_that_cannot_keep_anything_only_costs_time(table, tmp_path):
    assert len(load(table, DataSpec(validation=0.0), kept_in=tmp_path / "not" / "there").x_train) == 12


def test_data_without_labels_is_its_own_target(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n3,4\n5,6\n7,8\n")
    spec = DataSpec(target_is_input=True)
    assert task_of(spec, "mse") == "regression"
    info = inspect(table, spec, loss="mse")
    assert (info.feature_names, info.target_width, info.target, info.classes) == (["a", "b"], 2, "the input", None)
    loaded = load(table, spec, loss="mse", kept_in=tmp_path)
    again = load(table, spec, loss="mse", kept_in=tmp_path)
    assert loaded.y_train.tolist() == loaded.x_train.tolist() == again.y_train.tolist()
    np.savez(tmp_path / "t.npz", x=np.arange(24.0).reshape(4, 2, 3))
    loaded = load(tmp_path / "t.npz", DataSpec(format="npz", target_is_input=True, validation=0.0), loss="mse")
    assert loaded.y_train.tolist() == loaded.x_train.reshape(4, 6).tolist()


def test_data_without_labels_has_no_classes() -> None:
    with pytest.raises(SpecError, match='"cross_entropy" is for classes, and the target is the input; use "mse" or'):
        task_of(DataSpec(target_is_input=True), "cross_entropy")


def test_bce_takes_numbers_between_0_and_1_where_the_task_is_regression(tmp_path: Path) -> None:
    path, spec = tmp_path / "t.npz", DataSpec(format="npz", task="regression", validation=0.0)
    np.savez(path, x=np.ones((3, 2)), y=np.array([[[0.0, 1.0]], [[0.5, 0.0]], [[1.0, 1.0]]]))
    assert load(path, spec, loss="bce").y_train.tolist() == [[0, 1], [0.5, 0], [1, 1]]
    np.savez(path, x=np.ones((3, 2)), y=np.array([[0.0, 1.0], [0.5, -2.0], [1.0, 1.0]]))
    with pytest.raises(DataError, match='row 2.*expected numbers from 0 to 1 for loss "bce", got -2'):
        load(path, spec, loss="bce")


def test_a_table_too_wide_for_the_memory_is_told_so_and_not_called_unreadable(tmp_path: Path) -> None:
    rows = "".join(",".join("1" * 1000) + f",{row % 2}\n" for row in range(3))
    (tmp_path / "wide.csv").write_text(",".join(f"c{n}" for n in range(1000)) + ",label\n" + rows)
    with pytest.raises(DataError, match="expected data that fits in memory, got too much; use fewer rows or columns"):
        load(tmp_path / "wide.csv", DataSpec(), limit_bytes=64 * 2**20)
