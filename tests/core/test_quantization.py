"""Quantised models: small files, outputs near the first ones, a report that says what it cost."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import cyxcore as cx
from cyxcore import safetensors
from cyxcore.errors import FormatError, SpecError
from cyxcore.graphlearner import initial_weights

KINDS = {
    "mlp": [{"kind": "Linear", "out_features": 64}, {"kind": "ReLU"}, {"kind": "Linear", "out_features": 10}],
    "cnn": [
        {"kind": "Reshape", "shape": [1, 8, 8]},
        {"kind": "Conv2d", "out_channels": 16, "kernel_size": 3},
        {"kind": "BatchNorm2d"},
        {"kind": "ReLU"},
        {"kind": "Flatten"},
        {"kind": "Linear", "out_features": 10},
    ],
    "encoder": [
        {"kind": "Reshape", "shape": [8, 8]},
        {"kind": "TransformerEncoderLayer", "num_heads": 2, "dim_feedforward": 32},
        {"kind": "LSTM", "hidden_size": 16},
        {"kind": "Linear", "out_features": 3},
    ],
}
X = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)


def model(kind: str, normalize: str = "none") -> cx.Model:
    graph = cx.build(input_shape=[64], layers=KINDS[kind], normalize=normalize)
    return cx.Model(graph, initial_weights(graph, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "least_db"), [("int8", 30.0), ("fp16", 60.0)])
def test_outputs_stay_near_what_they_were(kind: str, dtype: str, least_db: float) -> None:
    whole = model(kind)
    small, report = cx.quantize(whole, dtype, calibration=X)
    wanted = whole.predict(X)
    error = small.predict(X).astype(np.float64) - wanted
    decibels = 10 * np.log10(np.mean(np.square(wanted, dtype=np.float64)) / np.mean(error**2))
    assert decibels == pytest.approx(report.signal_to_noise_db) and decibels > least_db
    assert report.agreement is not None and report.agreement > 0.95 and report.rows == 200
    assert report.kept == {} and max(report.weight_error.values()) < 0.01


@pytest.mark.parametrize("suffix", [".cyxmodel", ".safetensors", ".onnx"])
@pytest.mark.parametrize(("dtype", "share"), [("int8", 0.3), ("fp16", 0.55)])
def test_files_hold_the_small_numbers_and_give_the_same_outputs(
    suffix: str, dtype: str, share: float, tmp_path: Path
) -> None:
    graph = cx.build(input_shape=[64], layers=[{"kind": "Linear", "out_features": 512}, *KINDS["mlp"]])
    whole = cx.Model(graph, initial_weights(graph, 1))
    small, report = cx.quantize(whole, dtype)
    whole.save(tmp_path / f"whole{suffix}")
    small.save(tmp_path / f"small{suffix}")
    sizes = [(tmp_path / f"{name}{suffix}").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < sizes[1] * share and report.bytes_after < report.bytes_before * share
    again = cx.load_model(tmp_path / f"small{suffix}")
    assert again.predict(X).tobytes() == small.predict(X).tobytes()
    again.save(tmp_path / "again.safetensors")  # what came back is still small
    held, _ = safetensors.load(tmp_path / "again.safetensors")
    assert held["0.weight"].dtype == np.dtype("int8" if dtype == "int8" else "float16")


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_quantised_model_too(kind: str, tmp_path: Path) -> None:
    small, _ = cx.quantize(model(kind), "int8")
    small.save(tmp_path / "m.onnx")
    wanted, options = small.predict(X), onnxruntime.SessionOptions()

    def computed() -> np.ndarray:
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": X})[0]

    # What it fuses has other last bits, one of which may round an activation to the integer beside.
    assert np.mean(np.abs(computed() - wanted) > 1e-5) < 0.01
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    np.testing.assert_allclose(computed(), wanted, rtol=1e-5, atol=1e-5)


def test_int8_is_integers_with_one_scale_for_each_output(tmp_path: Path) -> None:
    whole = model("mlp")
    small, _ = cx.quantize(whole, "int8")
    q, scale = small.weights["0.weight"], small.weights["0.weight.scale"]
    assert np.array_equal(q, np.rint(q)) and np.abs(q).max() == 127 and scale.shape == (64, 1)
    rows = np.abs(whole.weights["0.weight"]).max(1, keepdims=True)
    assert (np.abs(q * scale - whole.weights["0.weight"]) <= rows * 0.21).all()
    # The product as integers make it: x by its largest of each row, 127 steps.
    unit = np.abs(X).max(1, keepdims=True) / 127
    exact = np.floor(X / unit + 0.5).astype(np.int64) @ q.astype(np.int64).T * unit * scale.T
    relu = np.maximum(exact + whole.weights["0.bias"], 0)
    first = cx.Model(*_first_layer(small)).predict(X)
    np.testing.assert_allclose(first, relu, rtol=1e-4, atol=1e-5)


def _first_layer(small: cx.Model) -> tuple[Any, Any]:
    from cyxcore.symbols import tidy

    graph = small.graph
    place = next(p for p, node in enumerate(graph.nodes) if node.op == "relu")
    cut = tidy(cx.Graph(graph.nodes, [place]))
    return cut, {param.name: small.weights[param.name] for param in cut.all_parameters}


def test_the_report_compares_accuracy_when_it_has_labels() -> None:
    whole = model("mlp")
    labels = whole.predict(X).argmax(1)
    whole.facts.loss = "cross_entropy"
    _, report = cx.quantize(whole, "int8", X, labels)
    assert report.before is not None and report.after is not None
    assert report.before["accuracy"] == 1.0 and 0.95 < report.after["accuracy"] <= 1.0
    assert "before: loss" in str(report) and "times smaller" in str(report)


def test_weights_can_be_kept() -> None:
    small, report = cx.quantize(model("mlp"), "int8", keep=["2.weight"])
    assert report.kept == {"2.weight": "asked for"} and report.quantised == ["0.weight"]
    assert "2.weight.scale" not in small.weights


def test_a_weight_that_half_precision_does_not_reach_is_kept() -> None:
    whole = model("mlp")
    whole.weights["0.weight"] = whole.weights["0.weight"] * np.float32(1e6)
    _, report = cx.quantize(whole, "fp16")
    assert report.kept == {"0.weight": "beyond ±65504"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "int4"}, "expected a kind of int8, fp16, float16, got 'int4'"),
        ({"keep": ["nothing"]}, "no weight is called 'nothing'"),
        ({"labels": [1]}, "labels need the rows they belong to"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        cx.quantize(model("mlp"), **options)


def test_a_quantised_model_is_not_quantised_again() -> None:
    with pytest.raises(SpecError, match="quantised already"):
        cx.quantize(cx.quantize(model("mlp"))[0])


def test_a_weight_that_was_changed_is_not_stored_as_something_else(tmp_path: Path) -> None:
    small, _ = cx.quantize(model("mlp"))
    small.weights["0.weight"] = small.weights["0.weight"] + np.float32(0.5)
    with pytest.raises(FormatError, match="0.weight is not int8 any more"):
        small.save(tmp_path / "m.cyxmodel")
