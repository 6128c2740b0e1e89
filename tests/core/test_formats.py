"""Model files: deterministic, readable elsewhere, and nothing damaged gets in."""

import errno
import hashlib
import json
import os
import struct
import types
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import cyxcore as cx
from cyxcore import cyxmodel
from cyxcore import safetensors as own
from cyxcore.errors import CheckpointError, CyxError, FormatError, ShapeError, SpecError
from cyxcore.graphlearner import initial_weights
from cyxcore.model import Facts, cyxmodel_parts, load_model, save_model
from cyxcore.spec import EpochMetrics, TrainingSpec, TrainingSummary
from cyxcore.training import Trainer
from tests.core.tables import Table

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([[1, -2]], np.int64),
    "flags": np.array([True, False, True]),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 4), np.float32),
    "half": np.array([1.5], np.float16),
}
GRAPH = cx.build(
    input_shape=[4],
    layers=[{"kind": "Linear", "out_features": 3}, {"kind": "BatchNorm1d"}],
    normalize="standard",
)
WEIGHTS = initial_weights(GRAPH, 3)
HISTORY = [EpochMetrics(epoch=1, epochs=1, step=2, epoch_loss=0.5, epoch_time_ms=3.0, samples_per_s=10.0)]
SUMMARY = TrainingSummary(
    total_time_ms=1.0,
    steps=2,
    final_loss=0.5,
    best_epoch=1,
    delivered_epoch=1,
    train_rows=8,
    validation_rows=0,
    parameters=15,
)
SMALL = {"graph.json": b"{}", "config.json": b"{}", "history.json": b"[]"}
BOTH = pytest.mark.parametrize("extension", [".safetensors", ".cyxmodel"])


def saved(path: Path) -> Path:
    save_model(path, GRAPH, WEIGHTS, history=HISTORY, classes=["x", "y", "z"], loss="cross_entropy", summary=SUMMARY)
    return path


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].tobytes() == b[name].tobytes() and a[name].shape == b[name].shape and a[name].dtype == b[name].dtype
        for name in a
    )


# safetensors --------------------------------------------------------------------------------------


def test_tensors_survive_a_file(tmp_path: Path) -> None:
    own.save(tmp_path / "t.safetensors", TENSORS, {"note": "öäü"})
    tensors, metadata = own.load(tmp_path / "t.safetensors")
    assert same(tensors, TENSORS) and metadata == {"note": "öäü"}


def test_the_safetensors_package_reads_our_file(tmp_path: Path) -> None:
    own.save(tmp_path / "t.safetensors", TENSORS, {"note": "x"})
    assert same(safetensors.numpy.load_file(tmp_path / "t.safetensors"), TENSORS)


def test_we_read_a_file_of_the_safetensors_package(tmp_path: Path) -> None:
    safetensors.numpy.save_file(TENSORS, tmp_path / "t.safetensors", metadata={"a": "b"})
    tensors, metadata = own.load(tmp_path / "t.safetensors")
    assert same(tensors, TENSORS) and metadata == {"a": "b"}


def test_bytes_do_not_depend_on_the_order_of_names() -> None:
    assert own.to_bytes(TENSORS, {"a": "1", "b": "2"}) == own.to_bytes(
        dict(reversed(TENSORS.items())), {"b": "2", "a": "1"}
    )


def test_data_starts_aligned() -> None:
    raw = own.to_bytes(TENSORS)
    assert (8 + int.from_bytes(raw[:8], "little")) % 8 == 0


def test_loaded_tensors_can_be_written() -> None:
    import io

    raw = own.to_bytes(TENSORS)
    tensors, _ = own.load_from(io.BytesIO(raw), len(raw), "memory")
    tensors["b"][0, 0] = 9.0
    assert tensors["b"][0, 0] == 9.0


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(FormatError, match="complex64"):
        own.to_bytes({"a": np.zeros(2, np.complex64)})


def f32(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_of(header: Any, data: bytes = b"\0" * 8, claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


BAD_FILES = {
    "empty": b"",
    "short": b"\0" * 7,
    "header longer than the file": file_of({}, claimed=10**6),
    "header of exabytes": file_of({}, claimed=2**63),
    "header no JSON": file_of(b"{,}"),
    "header no UTF-8": file_of(b'{"\xff":1}'),
    "header a list": file_of([]),
    "header with NaN": file_of(b'{"a":NaN}'),
    "header too deep": file_of(b"[" * 100_000),
    "a name twice": file_of(b'{"a":%s,"a":%s}' % ((json.dumps(f32()).encode(),) * 2)),
    "unknown dtype": file_of({"a": f32(dtype="F8_E4M3")}),
    "dtype no text": file_of({"a": f32(dtype=["F32"])}),
    "negative size": file_of({"a": f32(shape=(-2,))}),
    "fractional size": file_of({"a": f32(shape=(2.0,))}),
    "size overflow": file_of({"a": f32(shape=(2**32, 2**32, 0))}, b"\0" * 8),
    "huge rank": file_of({"a": f32(shape=(1,) * 100)}),
    "size and offsets differ": file_of({"a": f32(shape=(3,))}),
    "offsets backwards": file_of({"a": f32(offsets=(8, 0))}),
    "offsets beyond the file": file_of({"a": f32(shape=(4,), offsets=(0, 16))}),
    "a gap": file_of({"a": f32(offsets=(8, 16))}, b"\0" * 16),
    "an overlap": file_of({"a": f32(), "b": f32(shape=(1,), offsets=(4, 8))}),
    "bytes left over": file_of({"a": f32()}, b"\0" * 9),
    "extra field": file_of({"a": {**f32(), "code": 1}}),
    "field missing": file_of({"a": {"dtype": "F32", "shape": [2]}}),
    "entry no object": file_of({"a": 1}),
    "metadata no text": file_of({"__metadata__": {"a": 1}, "a": f32()}),
    "metadata no object": file_of({"__metadata__": "x", "a": f32()}),
    "bool neither 0 nor 1": file_of({"a": f32(shape=(8,), dtype="BOOL")}, b"\0" * 7 + b"\2"),
}


@pytest.mark.parametrize("raw", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_damaged_safetensors_file_is_a_format_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(raw)
    with pytest.raises(FormatError, match="bad.safetensors"):
        own.load(tmp_path / "bad.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    own.save(path, {"a": np.zeros(2, np.float32)})
    with pytest.raises(FormatError):
        own.save(path, {"a": np.zeros(2, np.complex64)})
    assert own.load(path)[0]["a"].tolist() == [0.0, 0.0] and [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


# models -------------------------------------------------------------------------------------------


@BOTH
def test_a_model_survives_a_file(tmp_path: Path, extension: str) -> None:
    model = load_model(saved(tmp_path / f"m{extension}"), device="reference")
    assert model.graph == GRAPH and same(model.weights, WEIGHTS)
    assert (model.history, model.classes, model.summary) == (HISTORY, ["x", "y", "z"], SUMMARY)


@BOTH
def test_equal_models_give_equal_bytes(tmp_path: Path, extension: str) -> None:
    assert saved(tmp_path / f"a{extension}").read_bytes() == saved(tmp_path / f"b{extension}").read_bytes()


@BOTH
def test_a_loaded_model_answers(tmp_path: Path, extension: str) -> None:
    model = load_model(saved(tmp_path / f"m{extension}"), device="reference")
    x = np.ones((2, 4), np.float32)
    assert model.predict(x).tobytes() == cx.predict(GRAPH, WEIGHTS, x, device="reference").tobytes()
    assert model.predict_classes(x) == [["x", "y", "z"][i] for i in model.predict(x).argmax(1)]
    assert model.evaluate(x, [0, 1]) == cx.evaluate(GRAPH, WEIGHTS, x, [0, 1], "cross_entropy", device="reference")


@BOTH
def test_a_model_can_be_saved_in_the_other_form(tmp_path: Path, extension: str) -> None:
    model = load_model(saved(tmp_path / f"m{extension}"), device="reference")
    other = tmp_path / ("again.cyxmodel" if extension == ".safetensors" else "again.safetensors")
    model.save(other)
    assert load_model(other, device="reference").graph == GRAPH


def test_the_model_file_is_one_safetensors_file(tmp_path: Path) -> None:
    assert same(safetensors.numpy.load_file(saved(tmp_path / "m.safetensors")), WEIGHTS)


def test_a_cyxmodel_is_a_zip_of_readable_parts(tmp_path: Path) -> None:
    with zipfile.ZipFile(saved(tmp_path / "m.cyxmodel")) as archive:
        assert archive.namelist() == [
            "manifest.json",
            "graph.json",
            "config.json",
            "history.json",
            "weights.safetensors",
        ]
        assert archive.read("graph.json") == GRAPH.to_bytes()
        manifest = json.loads(archive.read("manifest.json"))
        assert manifest["format"] == "cyx-model/3"
        for name, digest in manifest["sha256"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest


def test_the_first_version_of_the_container_is_read(tmp_path: Path) -> None:
    facts = {"history": [msgspec.to_builtins(HISTORY[0])], "classes": ["x", "y", "z"], "loss": "cross_entropy"}
    parts = {
        "graph.json": GRAPH.to_bytes(),
        "weights.safetensors": own.to_bytes(WEIGHTS),
        "history.json": json.dumps(facts).encode(),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    with zipfile.ZipFile(tmp_path / "m.cyxmodel", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": "cyx-model/1", "sha256": digests}))
        for name, data in parts.items():
            archive.writestr(name, data)
    model = load_model(tmp_path / "m.cyxmodel", device="reference")
    assert model.graph == GRAPH and same(model.weights, WEIGHTS)
    assert (model.history, model.classes, model.training) == (HISTORY, ["x", "y", "z"], None)


def test_a_later_version_of_the_container_is_refused_by_its_name(tmp_path: Path) -> None:
    manifest = json.dumps({"format": "cyx-model/9", "sha256": {}}).encode()
    bad = rezipped(saved(tmp_path / "m.cyxmodel"), tmp_path / "bad.cyxmodel", manifest=manifest)
    with pytest.raises(
        FormatError, match="by a newer Cyx .cyx-model/9; this one reads cyx-model/3 and cyx-model/1.: update"
    ):
        load_model(bad)


def test_a_training_run_goes_on_from_the_model_that_holds_its_state(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    data = types.SimpleNamespace(
        x_train=drawn.normal(size=(32, 4)).astype(np.float32),
        y_train=drawn.integers(0, 3, 32),
        x_val=np.zeros((0, 4), np.float32),
        y_val=np.zeros(0, np.int64),
    )
    spec = TrainingSpec(epochs=3, batch_size=8)
    whole = Trainer.of_job(GRAPH, data, spec)
    list(whole.run())
    half = Trainer.of_job(GRAPH, data, spec)
    steps = half.run()
    while half.step < 5:
        next(steps)
    half.checkpoint(tmp_path / "at")
    save_model(tmp_path / "m.cyxmodel", GRAPH, half.weights, training=spec, checkpoint=tmp_path / "at")
    model = load_model(tmp_path / "m.cyxmodel")
    assert model.facts.training == spec and model.training == (tmp_path / "at").read_bytes()
    again = Trainer.of_job(GRAPH, data, spec, resume=tmp_path / "m.cyxmodel")
    assert again.step == 5
    list(again.run())
    assert same(again.weights, whole.weights)
    save_model(tmp_path / "bare.cyxmodel", GRAPH, half.weights)
    with pytest.raises(CheckpointError, match="holds no training state"):
        Trainer.of_job(GRAPH, data, spec, resume=tmp_path / "bare.cyxmodel")
    with pytest.raises(FormatError, match="only a .cyxmodel holds the state"):
        save_model(tmp_path / "m.safetensors", GRAPH, half.weights, checkpoint=tmp_path / "at")


def test_another_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="ending in .cyxmodel or .safetensors or .onnx or .gguf, got '.txt'"):
        load_model(tmp_path / "m.txt")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        *[(name, "save the weights as safetensors") for name in ("m.pt", "m.PTH", "m.pkl", "m.joblib")],
        ("m.h5", "in Keras, export the model to .onnx"),
    ],
)
def test_a_file_in_which_code_may_hide_is_never_opened(tmp_path: Path, name: str, instead: str) -> None:
    (tmp_path / name).mkdir()  # opening it would be another error
    with pytest.raises(FormatError, match=f"are never opened; .*{instead}"):
        load_model(tmp_path / name)


def test_weights_without_a_graph_are_no_model(tmp_path: Path) -> None:
    own.save(tmp_path / "w.safetensors", WEIGHTS)
    with pytest.raises(FormatError, match="no model graph"):
        load_model(tmp_path / "w.safetensors")


def test_weights_that_do_not_belong_to_the_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"missing \['0.bias'\]"):
        save_model(tmp_path / "m.cyxmodel", GRAPH, {name: w for name, w in WEIGHTS.items() if name != "0.bias"})
    with pytest.raises(FormatError, match="0.bias: expected float32"):
        save_model(tmp_path / "m.cyxmodel", GRAPH, {**WEIGHTS, "0.bias": np.zeros(4, np.float32)})


def test_a_model_that_does_not_say_its_loss_asks_for_it(tmp_path: Path) -> None:
    save_model(tmp_path / "m.cyxmodel", GRAPH, WEIGHTS)
    model = load_model(tmp_path / "m.cyxmodel", device="reference")
    with pytest.raises(SpecError, match="pass loss="):
        model.evaluate(np.ones((1, 4)), [0])
    with pytest.raises(SpecError, match="no class names"):
        model.predict_classes(np.ones((1, 4)))


def test_classes_are_named_only_where_each_output_has_a_name(tmp_path: Path) -> None:
    save_model(tmp_path / "m.cyxmodel", GRAPH, WEIGHTS, classes=["x", "y"])
    with pytest.raises(SpecError, match=r"has 2 class names and gives \[3\] for each row"):
        load_model(tmp_path / "m.cyxmodel").predict_classes(np.ones((1, 4)))


def test_of_a_table_a_model_takes_its_own_columns_by_name() -> None:
    graph = cx.build(input_shape=[2], layers=[{"kind": "Linear", "out_features": 1}])
    weights = {"0.weight": np.array([[1.0, 10.0]], np.float32), "0.bias": np.zeros(1, np.float32)}
    model = cx.Model(graph, weights, Facts(feature_names=["size", "größe"], loss="mse"))
    turned = Table({"größe": [2.0, 4.0], "price": [9.0, 9.0], "size": [1.0, 3.0]})
    assert model.predict(turned).tolist() == [[21.0], [43.0]]
    assert model.evaluate(turned, np.array([[21.0], [43.0]], np.float32))["loss"] == 0.0
    assert model.predict(Table({0: [1.0], 1: [2.0]})).tolist() == [[21.0]]  # no names: as an array
    with pytest.raises(ShapeError, match=r"the columns 'size', 'größe', got none called 'größe' \(1 of 2 missing\)"):
        model.predict(Table({"size": [1.0], "Größe": [2.0]}))


def test_a_file_that_says_how_another_weight_is_stored_is_refused(tmp_path: Path) -> None:
    facts = Facts(stored={"elsewhere": "int8"})
    cyxmodel.save(tmp_path / "m.cyxmodel", cyxmodel_parts(GRAPH, facts), WEIGHTS)
    with pytest.raises(FormatError, match="says how 'elsewhere' is stored, which is none of its weights"):
        load_model(tmp_path / "m.cyxmodel")


def rezipped(path: Path, target: Path, compress: int = zipfile.ZIP_STORED, twice: bool = False, **parts: bytes) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compress) as archive:
        for name in source.namelist():
            key = name.partition(".")[0]
            if parts.get(key) != b"":
                archive.writestr(name, parts.get(key, source.read(name)))
        for place in range(200 if twice else 0):
            archive.writestr(f"extra{place}", b"")
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compress": zipfile.ZIP_DEFLATED}, "compressed or encrypted"),
        ({"graph": b"{}"}, "graph.json has SHA-256"),
        ({"history": b"0" * 10}, "history.json has SHA-256"),
        ({"weights": b""}, "weights.safetensors is missing"),
        ({"manifest": b"[]"}, "manifest.json: expected the format"),
        ({"manifest": b"{"}, "manifest.json is no JSON"),
        ({"manifest": b"[" * 100_000}, "manifest.json is no JSON"),
        ({"twice": True}, "at most 64 entries"),
    ],
)
def test_a_changed_container_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bad = rezipped(saved(tmp_path / "m.cyxmodel"), tmp_path / "bad.cyxmodel", **change)
    with pytest.raises(FormatError, match=message):
        load_model(bad)


@pytest.mark.parametrize("field", [22, 18], ids=["plain size", "stored size"])
def test_a_size_that_lies_is_refused(tmp_path: Path, field: int) -> None:
    """The central directory of the last entry claims a gigabyte."""
    raw = bytearray(cyxmodel.to_bytes(SMALL, {"a": np.zeros(2, np.float32)}))
    entry = raw.rindex(b"PK\x01\x02")
    raw[entry + field + 2 : entry + field + 6] = struct.pack("<I", 2**30)
    (tmp_path / "bomb.cyxmodel").write_bytes(raw)
    with pytest.raises(FormatError):
        load_model(tmp_path / "bomb.cyxmodel")


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """Every central entry claims the same large bytes."""
    raw = bytearray(cyxmodel.to_bytes({name: b"x" * 5000 for name in SMALL}, {"a": np.zeros(2000, np.float32)}))
    start = 0
    for _ in range(5):
        entry = raw.index(b"PK\x01\x02", start)
        raw[entry + 20 : entry + 28] = struct.pack("<II", 12_000, 12_000)
        start = entry + 4
    (tmp_path / "bomb.cyxmodel").write_bytes(raw)
    with pytest.raises(FormatError, match="claim 60000 bytes"):
        load_model(tmp_path / "bomb.cyxmodel")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from([".safetensors", ".cyxmodel"]), st.data())
def test_any_damage_is_a_typed_error_or_a_working_model(
    tmp_path_factory: pytest.TempPathFactory, extension: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path, good = folder / f"fuzz{extension}", folder / f"good{extension}"
    raw = bytearray((good if good.exists() else saved(good)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw)) | st.just(len(raw))) :]
    path.write_bytes(raw)
    try:
        assert load_model(path, device="reference").graph.output_shape == (3,)
    except CyxError as error:
        assert str(error)


@pytest.mark.parametrize("fails", ["open", "write"])
def test_a_file_that_the_disk_does_not_take_is_named(fails: str, tmp_path: Path, monkeypatch: Any) -> None:
    # "No space left on device", and not a word of which file
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = tmp_path / "none" / "a.safetensors"
    if fails == "write":
        place.parent.mkdir()
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        own.save(place, TENSORS)
    assert caught.value.filename == str(place) and not place.exists()


@pytest.mark.parametrize("extension", [".cyxmodel", ".safetensors", ".onnx"])
def test_a_model_names_the_numeric_class_it_was_saved_in(extension: str, tmp_path: Path) -> None:
    weights = initial_weights(GRAPH, seed=1)
    with cx.set_numerics("fast16"):
        save_model(tmp_path / f"m{extension}", GRAPH, weights)
    load_model(tmp_path / f"m{extension}").save(tmp_path / f"again{extension}")
    assert cx.describe_model(tmp_path / f"again{extension}")["numerics"] == "cyx-fast16/1"
