"""The two older .cyxmodel variants of CyxWiz are read, into the same numbers; what they cannot say is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore.errors import FormatError

DRAWN = np.random.default_rng(0)
W1, B1 = DRAWN.normal(size=(5, 4)).astype(np.float32), DRAWN.normal(size=5).astype(np.float32)
W2, B2 = DRAWN.normal(size=(3, 5)).astype(np.float32), DRAWN.normal(size=3).astype(np.float32)
X = DRAWN.normal(size=(2, 4)).astype(np.float32)
Y = np.maximum(X @ W1.T + B1, 0) @ W2.T + B2
DTYPES = {"float32": 0, "float64": 1, "int32": 2, "int64": 3, "uint8": 4}


def binary(modules: list[tuple[str, dict[str, Any]]], version: int = 2) -> bytes:
    head = {
        "metadata": {"name": "digits", "framework": "cyxwiz", "format_version": "2.0"},
        "modules": [{"index": i, "name": n, "has_parameters": bool(p)} for i, (n, p) in enumerate(modules)],
    }
    text = json.dumps(head).encode()
    raw = struct.pack("<IIQ", 0x43595857, version, len(text)) + text + struct.pack("<Q", len(modules))
    for _, tensors in modules:
        raw += struct.pack("<Q", len(tensors))
        for name, array in tensors.items():
            raw += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<Q", array.ndim)
            raw += struct.pack(f"<{array.ndim}Q", *array.shape) + struct.pack("<I", DTYPES[array.dtype.name])
            raw += struct.pack("<Q", array.nbytes) + array.tobytes()
    return raw


MODULES: list[tuple[str, dict[str, Any]]] = [
    ("Linear(4 -> 5)", {"weight": W1, "bias": B1}),
    ("ReLU", {}),
    ("Dropout", {}),
    ("Linear", {"weight": W2, "bias": B2}),
]


def folder(path: Path, row: list[int] | None = None) -> Path:
    kinds = row or [77, 0, 29, 0, 50, 52, 60]
    (path / "weights").mkdir(parents=True)
    (path / "manifest.json").write_text(
        json.dumps({"version": "1.0", "format": "cyxmodel", "model": {"name": "digits", "num_layers": 3}})
    )
    nodes = [{"id": 10 + i, "type": kind, "name": str(kind), "parameters": {}} for i, kind in enumerate(kinds)]
    links = [{"id": i, "from_node": 10 + i, "to_node": 11 + i} for i in range(len(kinds) - 1)]
    (path / "graph.cyxgraph").write_text(json.dumps({"version": "1.0", "nodes": nodes, "links": links}))
    (path / "history.json").write_text(json.dumps({"loss": [1.0, 0.5], "accuracy": [0.1, 0.9]}))
    for name, array in {"layer1.weight": W1, "layer1.bias": B1, "layer10.weight": W2, "layer10.bias": B2}.items():
        raw = struct.pack("<I", array.ndim) + struct.pack(f"<{array.ndim}q", *array.shape)
        (path / "weights" / f"{name}.bin").write_bytes(raw + struct.pack("<I", 0) + array.tobytes())
    return path


def test_a_binary_model_computes_what_it_did(tmp_path: Path) -> None:
    (tmp_path / "m.cyxmodel").write_bytes(binary(MODULES))
    model = cx.load_model(tmp_path / "m.cyxmodel")
    np.testing.assert_allclose(model.predict(X), Y, rtol=1e-5, atol=1e-6)
    assert model.facts.about["name"] == "digits"


def test_weights_that_lie_the_other_way_are_turned(tmp_path: Path) -> None:
    modules = [("Linear", {"weight": np.ascontiguousarray(W1.T), "bias": B1.astype(np.float64)})]
    (tmp_path / "m.cyxmodel").write_bytes(binary(modules))
    np.testing.assert_allclose(cx.load_model(tmp_path / "m.cyxmodel").predict(X), X @ W1.T + B1, rtol=1e-5, atol=1e-6)


def test_a_folder_computes_what_it_did_and_goes_into_one_file(tmp_path: Path) -> None:
    model = cx.load_model(folder(tmp_path / "m.cyxmodel"))
    np.testing.assert_allclose(model.predict(X), Y, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "one.cyxmodel")
    assert cx.load_model(tmp_path / "one.cyxmodel").facts.about["name"] == "digits"


@pytest.mark.parametrize("cut", range(0, 100, 3))
def test_a_binary_model_that_ends_early_is_refused(cut: int, tmp_path: Path) -> None:
    raw = binary(MODULES)
    (tmp_path / "m.cyxmodel").write_bytes(raw[: 4 + (len(raw) - 5) * cut // 100])
    with pytest.raises(FormatError):
        cx.load_model(tmp_path / "m.cyxmodel")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (binary(MODULES, version=3), "expected version 2"),
        (binary([("Conv2D", {"weight": np.zeros((1, 1, 3, 3), np.float32)})]), "module 0 is 'Conv2D'"),
        (binary([("Linear", {"weight": np.zeros((2, 2, 2), np.float32)})]), "a weight of two axes"),
        (binary([("ReLU", {})]), "no dense layer"),
        (
            binary([("Linear", {"weight": W1}), ("Linear", {"weight": W1})]),
            r"1.weight: expected float32 \(5, 5\), got float32 \(5, 4\)",
        ),
        (binary(MODULES) + b"x", "1 bytes are left behind"),
        (struct.pack("<IIQ", 0x43595857, 2, 2**63), "expected at most 16000000 bytes of JSON"),
    ],
)
def test_what_a_binary_model_cannot_be_is_refused(raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.cyxmodel").write_bytes(raw)
    with pytest.raises(FormatError, match=said):
        cx.load_model(tmp_path / "m.cyxmodel")


def test_a_folder_with_another_kind_of_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="node 11 of type 2 is none of a row of dense layers"):
        cx.load_model(folder(tmp_path / "m.cyxmodel", [77, 2, 29, 0]))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    made = folder(tmp_path / "m.cyxmodel")
    outside = tmp_path / "outside.bin"
    (made / "weights" / "layer1.weight.bin").rename(outside)
    (made / "weights" / "layer1.weight.bin").symlink_to(outside)
    with pytest.raises(FormatError, match="layer1.weight.bin is missing, or no plain file"):
        cx.load_model(made)
