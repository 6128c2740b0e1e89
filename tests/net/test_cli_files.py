"""cyx convert and cyx inspect, as a user runs them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import safetensors
from cyxcore.errors import FormatError
from cyxcore.gguf import GGUFFile
from cyxcore.gguf.rewriting import FILE_TYPES
from cyxcore.graphlearner import initial_weights
from cyxcore.spec import EpochMetrics
from cyxnet.cli import main
from cyxnet.cli.options import GGUF_KINDS
from tests.core import llamas

LAYERS = [
    {"kind": "Conv2d", "out_channels": 2, "kernel_size": 3},
    {"kind": "BatchNorm2d"},
    {"kind": "ReLU"},
    {"kind": "Flatten"},
    {"kind": "Linear", "out_features": 3},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = cx.build(input_shape=[1, 6, 6], layers=LAYERS)
    history = [EpochMetrics(epoch=1, epochs=1, step=2, epoch_loss=0.5, epoch_time_ms=3.0, samples_per_s=10.0)]
    cx.save_model(tmp_path / "m.cyxmodel", graph, initial_weights(graph, 1), classes=["a", "b", "c"], history=history)
    return tmp_path / "m.cyxmodel"


def test_a_model_goes_around_all_formats_and_computes_the_same(model: Path, capsys: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 1, 6, 6)).astype(np.float32)
    wanted = cx.load_model(model).predict(x)
    at = model
    for name in ("a.onnx", "b.safetensors", "c.cyxmodel", "d.onnx"):
        assert main(["convert", str(at), str(model.with_name(name))]) == 0
        at = model.with_name(name)
        found = cx.load_model(at)
        np.testing.assert_allclose(found.predict(x), wanted, rtol=1e-5, atol=1e-6)
        assert found.classes == ["a", "b", "c"] and len(found.history) == 1
    assert "a.onnx: 8 tensors" in capsys.readouterr().out


def test_inspect_says_what_is_in_a_file(model: Path, capsys: Any) -> None:
    assert main(["inspect", str(model)]) == 0
    said = capsys.readouterr().out
    for part in (
        "cyx-model/3",
        "1×6×6 (float32) → 3",
        "0: Conv2d",
        "4.weight",
        "3×32",
        "epoch loss",
        "0.5000",
        "a, b, c",
        "cyx-exact/1",
    ):
        assert part in said, said


def test_inspect_in_json_is_one_document_with_hashes(model: Path, capsys: Any) -> None:
    assert main(["convert", str(model), str(model.with_name("m.onnx"))]) == 0
    capsys.readouterr()
    assert main(["inspect", str(model.with_name("m.onnx")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["opset"] == 18 and "Conv" in found["operators"] and found["model"] == "whole"
    shapes = {row["name"]: row["shape"] for row in found["tensors"]}
    assert shapes["4.weight"] == [3, 32] and all(len(row["sha256"]) == 64 for row in found["tensors"])
    assert found["graph"]["sha256"] == cx.load_model(model.with_name("m.onnx")).graph.sha256


@pytest.mark.parametrize("name", ["m.safetensors", "m.onnx", "weights.safetensors"])
def test_a_file_that_is_inspected_is_read_once_and_has_the_digests_of_its_bytes(
    name: str, model: Path, monkeypatch: Any
) -> None:
    path = model.with_name(name)
    if name == "weights.safetensors":
        safetensors.save(path, {"w": np.arange(6, dtype=np.float32)})
    else:
        cx.load_model(model).save(path)
    opened, open_path = [], Path.open

    def counting(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(self)
        return open_path(self, *args, **options)

    told: list[int] = []
    monkeypatch.setattr(Path, "open", counting)
    found = cx.describe_model(path, told.append)
    monkeypatch.undo()
    assert opened == [path] and told[-1] == path.stat().st_size
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and found["tensors"]


def test_each_tensor_of_a_gguf_file_that_is_inspected_has_the_digest_of_its_own_bytes(tmp_path: Path) -> None:
    path, told = tmp_path / "m.gguf", list[int]()
    llamas.write(path, llamas.sizes(vocabulary=257), "Q4_0")
    found, held = cx.describe_model(path, told.append), GGUFFile(path)
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and told[-1] == path.stat().st_size
    digests = {name: hashlib.sha256(held.raw(name).tobytes()).hexdigest() for name in held.tensors}
    assert {row["name"]: row["sha256"] for row in found["tensors"]} == digests and len(set(digests.values())) > 1


@pytest.mark.parametrize("part", ["graph.json", "weights.safetensors"])
def test_a_damaged_file_is_not_described_as_whole(part: str, model: Path, capsys: Any) -> None:
    data = bytearray(model.read_bytes())
    with ZipFile(model) as archive:
        info = archive.getinfo(part)
    data[info.header_offset + 30 + len(part) + info.file_size - 1] ^= 1
    model.write_bytes(data)
    assert main(["inspect", str(model)]) == 2
    assert part in capsys.readouterr().err


def test_the_kinds_of_matrices_in_a_gguf_file_are_those_that_can_be_written() -> None:
    assert set(GGUF_KINDS) == set(FILE_TYPES)


def test_weights_without_a_graph_are_described_as_far_as_they_go(tmp_path: Path, capsys: Any) -> None:

    safetensors.save(tmp_path / "w.safetensors", {"w": np.zeros((2, 3), np.float32)})
    assert main(["inspect", str(tmp_path / "w.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"][0]["shape"] == [2, 3] and "no model graph" in found["model"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "none.onnx", "x.cyxmodel"], "there is no such file"),
        (["convert", "m.cyxmodel", "m.cyxmodel", "--force"], "is the file that is read"),
        (["convert", "m.cyxmodel", "old.onnx"], "there is such a file already"),
        (["convert", "m.cyxmodel", "x.txt"], "expected a name that ends in .safetensors or .cyxmodel or .onnx"),
        (["convert", "m.cyxmodel", "x.safetensors", "--opset", "18"], "files of this kind have no opset"),
        (["convert", "m.cyxmodel", "x.onnx", "--opset", "9"], "expected an opset 13 to 21, got 9"),
        (["convert", "net.pt", "x.onnx"], "are never opened"),
        (["inspect", "net.pt"], "are never opened"),
        (["inspect", "old.onnx"], "onnx"),
        (["inspect", "net.h5"], "in Keras, export the model to .onnx: model.export("),
        (["inspect", "net.npz"], "safetensors.numpy.save_file(dict(numpy.load(path))"),
        (["inspect", "folder.onnx"], "folder.onnx: expected a model file, this is a folder"),
        (["inspect", "."], ".: expected a model file, this is a folder"),
        (["inspect", "empty.gguf"], "empty.gguf: expected a model file, this one is empty"),
        (["inspect", "pipe.onnx"], "pipe.onnx: expected a model file, this is a pipe or a device"),
        (["inspect", "m.cyxmodel/x.onnx"], "there is no such file"),
        (["inspect", f"{'a' * 5000}.onnx"], "aaa…aaa"),
        (["convert", "folder.onnx", "x.cyxmodel"], "folder.onnx: expected a model file, this is a folder"),
        (["convert", "m.cyxmodel", f"{'a' * 5000}.onnx"], "aa.onnx: File name too long"),
        (["chat", "folder.gguf"], "folder.gguf: expected a language model (.gguf), this is a folder"),
        (["chat", "empty.gguf"], "empty.gguf: expected a language model (.gguf), this one is empty"),
        (["ask", "digits", "@folder.onnx"], "folder.onnx: expected a file with JSON: Is a directory"),
        (["ask", "digits", " "], "JSON: expected JSON such as '{\"input\": [0.1, 0.2]}': got nothing"),
        (["ask", "digits", "@none.json"], "none.json: expected a file with JSON: No such file or directory"),
        (["chat", "ü" * 5000], "there is no such file; expected one, or an address such as http://"),
        (["chat", "https://127.0.0.1:99999"], "expected an address such as http://127.0.0.1:8000, got 'https://127.0"),
        (["chat", "http://[::1"], "expected an address such as http://127.0.0.1:8000, got 'http://[::1'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    model: Path, words: list[str], said: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(model.parent)
    Path("net.pt").write_bytes(b"\x80\x04")
    Path("old.onnx").write_bytes(b"\x07")
    for name in ("net.h5", "net.npz"):
        Path(name).write_bytes(b"\x89HDF")
    for name in ("folder.onnx", "folder.gguf"):
        Path(name).mkdir()
    Path("empty.gguf").touch()
    os.mkfifo("pipe.onnx")
    before = sorted(path.name for path in model.parent.iterdir())
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and "Traceback" not in error and len(error) < 400
    assert sorted(path.name for path in model.parent.iterdir()) == before


def test_convert_quantises_and_says_what_it_costs(model: Path, capsys: Any) -> None:
    x = np.random.default_rng(0).normal(size=(20, 1, 6, 6)).astype(np.float32)
    np.savez(model.with_name("rows.npz"), x=x)
    words = ["convert", str(model), str(model.with_name("q.cyxmodel")), "--quantize", "int8"]
    assert main([*words, "--calibrate", str(model.with_name("rows.npz"))]) == 0
    said = capsys.readouterr().out
    assert "times smaller" in said and "on 20 rows: outputs differ by" in said
    assert cx.load_model(model.with_name("q.cyxmodel")).facts.stored == {"0.weight": "int8", "4.weight": "int8"}


@pytest.mark.parametrize("raw", [b"", b"PK", b"\x80\x04.", b"hello"])
def test_calibration_rows_that_are_none_are_one_line(model: Path, raw: bytes, capsys: Any) -> None:
    model.with_name("rows.npz").write_bytes(raw)
    words = ["convert", str(model), str(model.with_name("q.onnx")), "--quantize", "int8", "--calibrate"]
    assert main([*words, str(model.with_name("rows.npz"))]) == 2
    error = capsys.readouterr().err
    assert "expected an NPZ file with an array x" in error
    assert "pickle" not in error  # nor how one is opened all the same
    assert not model.with_name("q.onnx").exists()


def test_calibration_without_quantisation_is_refused_instead_of_ignored(model: Path, capsys: Any) -> None:
    assert main(["convert", str(model), str(model.with_name("q.onnx")), "--calibrate", "rows.npz"]) == 2
    assert "give --quantize int8 or fp16" in capsys.readouterr().err
    assert not model.with_name("q.onnx").exists()


def test_a_language_model_is_inspected_and_becomes_no_graph(tmp_path: Path, model: Path, capsys: Any) -> None:
    at = tmp_path / "small.gguf"
    cx.llm.save_gguf(at, cx.llm.Decoder(100, features=64, layers=1), "Q8_0", name="small")
    assert main(["inspect", str(at)]) == 0
    said = capsys.readouterr().out
    for part in (
        "GGUF version 3",
        "architecture  llama",
        "blk.0.ffn_down.weight",
        "Q8_0",
        "64×256",
        "cx.llm.LanguageModel opens it",
    ):
        assert part in said, said
    assert main(["inspect", str(at), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metadata"]["llama.block_count"] == 1 and found["tensors"][0]["dtype"] == "Q8_0"
    assert main(["convert", str(at), str(tmp_path / "a.onnx")]) == 2
    assert "has no graph; it can become another .gguf" in capsys.readouterr().err
    with pytest.raises(FormatError, match="cx.llm.save_gguf writes a cx.llm.Decoder"):
        cx.load_model(model).save(tmp_path / "b.gguf")


def test_a_language_model_is_stored_in_another_kind_and_as_safetensors_and_back(tmp_path: Path, capsys: Any) -> None:
    names = ("small.gguf", "half.gguf", "small.safetensors", "back.gguf")
    small, half, tensors, back = (tmp_path / name for name in names)
    cx.llm.save_gguf(small, cx.llm.Decoder(100, features=64, layers=1), "F32", name="small")
    assert main(["convert", str(small), str(half), "--quantize", "Q8_0"]) == 0
    assert "now Q8_0" in capsys.readouterr().out
    assert half.stat().st_size < small.stat().st_size / 2
    assert main(["convert", str(half), str(tensors)]) == 0 and main(["convert", str(tensors), str(back)]) == 0
    again = tmp_path / "again.gguf"
    assert main(["convert", str(back), str(again), "--quantize", "Q8_0"]) == 0
    assert again.read_bytes() == half.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quantize", "int8"], "expected a kind that a .gguf file has: F32"),
        (["--opset", "18"], "--opset: says nothing about a .gguf file"),
    ],
)
def test_what_a_gguf_file_cannot_be_is_one_line(options: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    at = tmp_path / "small.gguf"
    cx.llm.save_gguf(at, cx.llm.Decoder(100, features=64, layers=1), "F16")
    assert main(["convert", str(at), str(tmp_path / "b.gguf"), *options]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "b.gguf").exists()


def test_a_model_with_a_graph_becomes_no_gguf_file(model: Path, capsys: Any) -> None:
    assert main(["convert", str(model), str(model.with_name("b.gguf"))]) == 2
    assert "has no graph" in capsys.readouterr().err
    plain = model.with_name("b.safetensors")
    assert main(["convert", str(model), str(plain)]) == 0
    assert main(["convert", str(plain), str(model.with_name("b.gguf"))]) == 2
    assert "expected a file that was converted from a .gguf" in capsys.readouterr().err
    assert main(["convert", str(model), str(model.with_name("c.onnx")), "--quantize", "Q4_K"]) == 2
    assert "here int8 or fp16" in capsys.readouterr().err
