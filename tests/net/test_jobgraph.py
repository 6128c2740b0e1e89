"""A job whose model is a graph file: in a job file, or all by itself."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import cyxcore as cx
from cyxcore import data, patterns
from cyxcore.errors import CyxError, DataError, ShapeError, SpecError
from cyxcore.spec import EpochMetrics, OptimizerSpec
from cyxnet.jobfile import load
from tests.core.test_graphfile import link, node, whole
from tests.core.test_patterns import SMALL
from tests.net.test_jobfile import rows

DENSE = node("d", "Dense", units=3)


def write(folder: Path, toml: str | None = None, **more: Any) -> Path:
    """A graph file for the table of test_jobfile, which has two columns and three classes; and a job file."""
    (folder / "data.csv").write_text(rows())
    file = whole(node("split", "DataSplit", train=0.75, validation=0.25, test=0, seed=4), DENSE, shape=(2,), **more)
    file["nodes"][0]["params"] |= {"path": "data.csv"}
    (folder / "model.cyxgraph").write_text(json.dumps(file))
    if toml is None:
        return folder / "model.cyxgraph"
    (folder / "job.toml").write_text(toml)
    return folder / "job.toml"


JOB = 'name = "g"\namount = "2"\n[data]\npath = "data.csv"\n{data}\n[model]\ngraph = "model.cyxgraph"\n{rest}'


def complaint(path: Path, kind: type[CyxError] = SpecError) -> str:
    with pytest.raises(kind) as caught:
        load(path)
    return str(caught.value).replace(str(path.parent), "…")


def test_a_graph_file_with_data_and_amount_is_a_job(tmp_path: Path) -> None:
    job = load(write(tmp_path, job={"amount": "2.5", "epochs": 4}))
    assert (job.name, job.amount_base_units, job.training.epochs, job.training.seed) == ("model", 2_500_000_000, 4, 4)
    assert (job.data.validation, job.data.normalize, job.data_path) == (0.25, "none", tmp_path / "data.csv")
    assert job.training.optimizer == OptimizerSpec(name="adam", betas=(0.9, 0.999), eps=1e-8)
    assert job.model.graph is not None
    assert cx.Graph.from_json(job.model.graph) == cx.load_graph(tmp_path / "model.cyxgraph").graph


def test_a_job_file_says_the_rest_and_may_say_otherwise(tmp_path: Path) -> None:
    training = "[training]\nepochs = 2\nseed = 9\n"
    job = load(write(tmp_path, JOB.format(data="validation = 0.5", rest=training)))
    assert (job.training.epochs, job.training.seed, job.data.validation) == (2, 9, 0.5)
    assert job.training.loss == "cross_entropy" and job.training.optimizer.betas == (0.9, 0.999)
    job = load(write(tmp_path, JOB.format(data="", rest="")))
    assert (job.training.epochs, job.training.seed, job.data.validation) == (10, 4, 0.25)


@pytest.mark.parametrize("key", ["loss = 'mse'", "label_smoothing = 0.1", "optimizer = {name = 'sgd'}"])
def test_what_the_graph_decides_is_not_said_twice(key: str, tmp_path: Path) -> None:
    said = complaint(write(tmp_path, JOB.format(data="", rest=f"[training]\n{key}")))
    assert said == f"…/job.toml: training.{key.split()[0]} is said by the graph of model.graph; change it there"


def test_a_graph_is_scaled_when_that_is_asked_for(tmp_path: Path) -> None:
    job = load(write(tmp_path, JOB.format(data='normalize = "standard"', rest="")))
    assert job.model.graph is not None
    graph = cx.Graph.from_json(job.model.graph)
    assert [buffer.name for buffer in graph.buffers] == ["normalize.mean", "normalize.std"]
    assert graph == cx.load_graph(tmp_path / "model.cyxgraph", normalize="standard").graph


def test_what_is_missing_from_a_graph_that_is_a_job(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert (
        complaint(path)
        == '…/model.cyxgraph: job.amount is missing: what the job pays, such as "job": {"amount": "2.5"}'
    )
    file = json.loads(path.read_text()) | {"job": {"amount": "1"}}
    del file["nodes"][0]["params"]["path"]
    path.write_text(json.dumps(file))
    assert complaint(path) == (
        "…/model.cyxgraph: its DatasetInput has no path; add the parameter path, the file with the data"
    )


def test_an_error_names_the_job_file_the_graph_file_and_the_node(tmp_path: Path) -> None:
    path = write(tmp_path, JOB.format(data="", rest=""))
    file = json.loads((tmp_path / "model.cyxgraph").read_text())
    file["nodes"][0]["params"]["shape"] = [3]
    (tmp_path / "model.cyxgraph").write_text(json.dumps(file))
    assert complaint(path, ShapeError) == (
        "…/job.toml: model.graph: …/model.cyxgraph: node 'in' (DatasetInput): its shape is [3], one sample of the data"
        " is [2]"
    )
    (tmp_path / "model.cyxgraph").write_text("{")
    assert complaint(path).startswith("…/job.toml: model.graph: …/model.cyxgraph: not valid JSON: ")
    (tmp_path / "model.cyxgraph").unlink()
    assert complaint(path).endswith("model.cyxgraph: cannot be read (No such file or directory)")


def test_an_error_of_a_graph_that_is_a_job_names_it_once(tmp_path: Path) -> None:
    path = write(tmp_path, job={"amount": "1"}, links=[link("nowhere", "d")])
    assert complaint(path) == (
        "…/model.cyxgraph: link from 'nowhere' to 'd': there is no node 'nowhere'; known: in, split, d, out, loss, adam"
    )


def test_a_model_for_its_own_input_is_a_job_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path, job={"amount": "1"}, loss=node("loss", "MSELoss"))
    file = json.loads(path.read_text())
    links = [one for one in file["links"] if one["from_pin"] != "labels"]
    file["nodes"] = [node("d", "Dense", units=2) if one["id"] == "d" else one for one in file["nodes"]]
    file["nodes"][0]["params"] |= {"ignore": ["label"]}
    path.write_text(json.dumps(file | {"links": [*links, link("in", "loss", "data", "target")]}))
    job = load(path)
    assert job.data.target_is_input and job.data.task == "regression"
    loaded = data.load(job.data_path, job.data, loss="mse", seed=4)
    assert loaded.y_train.tolist() == loaded.x_train.tolist() and loaded.classes is None


def images(folder: Path, x: np.ndarray, y: np.ndarray, pattern: str, parameters: str, rest: str = "") -> Path:
    np.savez(folder / "data.npz", x=x, y=y)
    text = PATTERN.replace("mlp_basic", pattern).replace("data.csv", 'data.npz"\n' + rest + "#")
    (folder / "job.toml").write_text(text.format(rest=f"parameters = {{ {parameters} }}\n"))
    return folder / "job.toml"


def test_a_job_may_draw_masks(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
    path = images(tmp_path, x, (x > 0).astype(np.uint8), "unet", "size = 8, filters = 2")
    job = load(path)
    assert (job.data.task, job.training.loss) == ("regression", "bce")
    loaded = data.load(job.data_path, job.data, loss="bce")
    assert job.model.graph is not None
    trainer = cx.Trainer.of_job(
        cx.Graph.from_json(job.model.graph), loaded, msgspec.structs.replace(job.training, epochs=1)
    )
    assert [said.epoch_loss for said in trainer.run() if isinstance(said, EpochMetrics)][0] > 0


def test_masks_are_between_0_and_1(tmp_path: Path) -> None:
    x = np.ones((12, 1, 8, 8), np.float32)
    y = np.zeros((12, 1, 8, 8), np.float32)
    y[3, 0, 2, 2] = 1.5
    said = complaint(images(tmp_path, x, y, "unet", "size = 8, filters = 2"), DataError)
    assert 'expected numbers from 0 to 1 for loss "bce", got 1.5' in said and "row 4" in said


def test_masks_of_another_size_than_the_model_draws(tmp_path: Path) -> None:
    x = np.zeros((12, 1, 8, 8), np.float32)
    said = complaint(images(tmp_path, x, x[:, :, :4], "unet", "size = 8, filters = 2"), DataError)
    assert said.startswith("…/job.toml: column 'label': expected a model with 32 outputs, got 64")


PATTERN = 'name = "p"\namount = "2"\n[data]\npath = "data.csv"\n[model]\npattern = "mlp_basic"\n{rest}'


def test_a_job_may_name_a_pattern(tmp_path: Path) -> None:
    rest = "parameters = { features = 2, classes = 3, hidden = 8, learning_rate = 0.01 }\n[training]\nepochs = 3\n"
    job = load(write(tmp_path, PATTERN.format(rest=rest)))
    assert (job.training.epochs, job.training.optimizer.learning_rate) == (3, 0.01)
    expected = cx.load_graph(cx.patterns.get("mlp_basic", features=2, classes=3, hidden=8)).graph
    assert job.model.graph is not None and cx.Graph.from_json(job.model.graph) == expected


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (
            "parameters = { featuers = 2 }",
            "…/job.toml: model.pattern: pattern 'mlp_basic': there is no parameter 'featuers'; did you mean"
            " 'features'?",
        ),
        ("graph = 'g.json'", "…/job.toml: model: expected exactly one of layers, graph and pattern"),
        (  # before what its graph decides is looked at
            "parameters = {featuers = 2}\n[training]\nloss = 'mse'",
            "…/job.toml: model.pattern: pattern 'mlp_basic': there is no parameter 'featuers'; did you mean"
            " 'features'?",
        ),
    ],
)
def test_what_is_wrong_with_a_pattern_is_said(rest: str, said: str, tmp_path: Path) -> None:
    assert complaint(write(tmp_path, PATTERN.format(rest=rest))) == said


def test_a_pattern_of_another_shape_than_the_data(tmp_path: Path) -> None:
    assert complaint(write(tmp_path, PATTERN.format(rest="")), ShapeError) == (
        "…/job.toml: model.pattern: node 'data' (DatasetInput): its shape is [64], one sample of the data is [2]"
    )


def test_parameters_without_a_pattern(tmp_path: Path) -> None:
    path = write(tmp_path, JOB.format(data="", rest="parameters = { hidden = 8 }"))
    assert complaint(path) == "…/job.toml: model.parameters goes with model.pattern"


def test_a_regression_that_is_scaled_answers_in_raw_units(tmp_path: Path) -> None:
    path = write(tmp_path, JOB.format(data='normalize = "standard"', rest=""), loss=node("loss", "MSELoss"))
    file = json.loads((tmp_path / "model.cyxgraph").read_text())
    file["nodes"] = [node("d", "Dense", units=1) if one["id"] == "d" else one for one in file["nodes"]]
    (tmp_path / "model.cyxgraph").write_text(json.dumps(file))
    job = load(path)
    assert job.model.graph is not None
    names = [buffer.name for buffer in cx.Graph.from_json(job.model.graph).buffers]
    assert names == ["normalize.mean", "normalize.std", "denormalize.std", "denormalize.mean"]


@pytest.mark.parametrize("name", patterns.names())
def test_every_pattern_is_a_job(name: str, tmp_path: Path) -> None:
    """By its name, on an NPZ file with samples and targets of its shapes."""
    given = SMALL.get(name, {})
    recipe = cx.load_graph(patterns.get(name, **given))
    x = np.random.default_rng(0).integers(0, 2, (36, *recipe.graph.input_shape)).astype(np.float32)
    output = recipe.graph.output_shape
    classes = recipe.training.loss == "cross_entropy"
    y = np.arange(36) % output[0] if classes else np.zeros((36, *output), np.float32)
    parameters = ", ".join(f"{key} = {value}" for key, value in given.items())
    job = load(images(tmp_path, x, y, name, parameters))
    assert job.model.graph is not None and cx.Graph.from_json(job.model.graph) == recipe.graph
    assert job.training == recipe.training
