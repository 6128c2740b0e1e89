"""Any bytes are a dataset or a DataError, and never anything else."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cyxcore.data import LoadedData, inspect, load
from cyxcore.errors import DataError
from cyxcore.spec import DataFormat, DataSpec

BOUNDED = settings(
    max_examples=int(os.environ.get("CYX_FUZZ_EXAMPLES", "20")),  # opening DuckDB is most of each
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LIMIT_BYTES = 100_000_000  # so that no damaged size makes a test take the machine's memory


def npz_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("x", np.eye(4)), ("y", np.array([0, 1, 0, 1]))):
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return stream.getvalue()


def parquet_bytes() -> bytes:
    stream = io.BytesIO()
    table = pa.table({"u": [1.0, 2.0, 3.0, 4.0], "n": [1, 2, 3, 4], "label": ["a", "b", "a", "b"]})
    pq.write_table(table, stream)
    return stream.getvalue()


WHOLE: dict[DataFormat, bytes] = {
    "csv": b'u,v,label\n1,2.5,a\n-3,"4",b\n5e3,6,a\n7,8,b\n',
    "jsonl": b"".join(json.dumps({"u": i, "v": i / 2, "label": "ab"[i % 2]}).encode() + b"\n" for i in range(4)),
    "parquet": parquet_bytes(),
    "npz": npz_bytes(),
}


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """The file with a few pieces overwritten, taken out, repeated or put in, or cut off."""
    place = st.integers(0, len(whole))
    piece = st.one_of(
        st.binary(max_size=6),
        st.sampled_from([b"\n", b",", b'"', b"\0", b"{", b"]", b"nan", b"1e999", b"-1", b"\xff" * 4, b"\x7f" * 8]),
    )
    edits = st.lists(st.tuples(place, st.integers(0, 8), piece, st.integers(1, 3)), min_size=1, max_size=4)

    def apply(changes: list[tuple[int, int, bytes, int]]) -> bytes:
        content = whole
        for start, removed, inserted, times in changes:
            content = content[:start] + inserted * times + content[start + removed :]
        return content

    return st.one_of(edits.map(apply), place.map(lambda end: whole[:end]), st.binary(max_size=200))


def outcome(path: Path, spec: DataSpec, loss: str) -> LoadedData | None:
    """What came of it; only a DataError may be raised."""
    try:
        return load(path, spec, loss=loss, seed=1, limit_bytes=LIMIT_BYTES)
    except DataError as error:
        assert len(str(error)) < 1_000
        return None


@pytest.fixture(params=["csv", "jsonl", "parquet", "npz"])
def data_format(request: pytest.FixtureRequest) -> Iterator[DataFormat]:
    yield request.param


def test_the_files_that_are_damaged_here_are_sound(tmp_path: Path, data_format: DataFormat) -> None:
    (tmp_path / "data").write_bytes(WHOLE[data_format])
    assert inspect(tmp_path / "data", DataSpec(format=data_format)).rows == 4


def test_any_bytes_give_a_sound_dataset_or_a_data_error(tmp_path: Path, data_format: DataFormat) -> None:
    path = tmp_path / "data"

    @BOUNDED
    @given(damaged(WHOLE[data_format]), st.sampled_from(["cross_entropy", "mse"]))
    def check(content: bytes, loss: str) -> None:
        path.write_bytes(content)
        data = outcome(path, DataSpec(format=data_format), loss)
        if data is not None:
            assert len(data.x_train) == len(data.y_train) >= 1 <= len(data.x_val) == len(data.y_val)
            assert np.isfinite(data.x_train).all() and np.isfinite(data.x_val).all()
            assert data.classes is None or data.y_train.max() < len(data.classes)

    check()


CELL: st.SearchStrategy[str] = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**6), 10**6).map(str),
)


@BOUNDED
@given(rows=st.lists(st.tuples(CELL, st.integers(0, 3)), min_size=2, max_size=30))
def test_the_numbers_written_are_the_numbers_read(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    rows = [("0", 4), *rows]  # a second class
    path = tmp_path / "data.csv"
    path.write_text("u,label\n" + "".join(f"{cell},{label}\n" for cell, label in rows))
    data = load(path, DataSpec(validation=0.0))
    assert data.classes is not None
    assert data.x_train[:, 0].tolist() == [float(np.float32(float(cell))) for cell, _ in rows]
    assert [int(data.classes[index]) for index in data.y_train] == [label for _, label in rows]
