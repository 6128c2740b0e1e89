"""A job file is right, or one line says where it is wrong and what to write instead."""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyxcore import Tensor, data, nn
from cyxcore.errors import CyxError, DataError, ShapeError, SpecError
from cyxcore.spec import DataSpec, NumericsName, TrainingSpec
from cyxnet.amounts import AmountError
from cyxnet.artifacts import describe
from cyxnet.cli import options
from cyxnet.identity import Identity
from cyxnet.jobfile import LoadedJob, discard, from_module, load, seal
from cyxnet.jobgraph import parse
from cyxnet.jobtoml import JobFile, parse_bytes
from cyxnet.messages import ArtifactRef, Needs

GOOD = {
    "name": '"tiny"',
    "amount": '"2.5"',
    "path": '"data.csv"',
    "data": "",
    "layers": '[{ kind = "Linear", out_features = 4 }, { kind = "ReLU" }, { kind = "Linear", out_features = 3 }]',
    "model": "",
    "training": "epochs = 2",
    "needs": "",
}
TEMPLATE = """
name = {name}
amount = {amount}
[data]
path = {path}
{data}
[model]
layers = {layers}
{model}
[training]
{training}
[needs]
{needs}
"""


def rows(labels: int = 3) -> str:
    lines = [f"{n},{n * n % 7},{n % labels}" for n in range(24)]
    return "\n".join(["a,b,label", *lines]) + "\n"


def write(folder: Path, **changes: str) -> Path:
    """A job file that is right but for `changes`, beside a data file with 3 classes."""
    (folder / "data.csv").write_text(rows())
    path = folder / "job.toml"
    path.write_text(TEMPLATE.format(**GOOD | changes))
    return path


def complaint(path: Path, kind: type[CyxError] = SpecError) -> str:
    with pytest.raises(kind) as caught:
        load(path)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    return said


def test_a_right_file_becomes_a_job_with_everything_a_node_needs(tmp_path: Path) -> None:
    job = load(write(tmp_path))
    request = job.request(ArtifactRef(sha256="0" * 64, size=9))
    assert (job.name, request.amount_base_units, request.training.epochs) == ("tiny", 2_500_000_000, 2)
    assert request.facts is not None
    assert (request.facts.rows, request.facts.input_shape, request.facts.classes) == (24, [2], 3)
    assert (request.model.input, request.data.format, request.data.task) == ([2], "csv", "classification")


def test_the_parameters_of_the_model_are_counted(tmp_path: Path) -> None:
    assert load(write(tmp_path)).parameters == 2 * 4 + 4 + 4 * 3 + 3


def test_the_data_is_found_beside_the_job_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.chdir("/")
    assert load(path).data_path == tmp_path / "data.csv"


def test_what_a_node_must_have_is_read(tmp_path: Path) -> None:
    job = load(write(tmp_path, needs='device = "cpu"\nmemory = "512 MB"\ncores = 2\nnode = "desk"'))
    assert job.needs == Needs(device="cpu", memory_bytes=512 * 10**6, cores=2, node_id="desk")
    gpu = load(write(tmp_path, needs='device = "cuda"\ngpu_memory = "16 GiB"'))
    assert gpu.needs == Needs(device="cuda", gpu_memory_bytes=16 * 2**30)
    assert "did you mean needs.node?" in complaint(write(tmp_path, needs='node_id = "desk-6d3543ec4e"'))


def test_a_job_for_one_node_is_not_sealed_for_another(tmp_path: Path) -> None:
    job = load(write(tmp_path, needs='node = "desk"'))
    with pytest.raises(SpecError, match="it is for node desk, and would be sealed for shed-0123456789"):
        seal(job, Identity(b"m" * 32), "shed-0123456789", "0" * 64)


def test_optimizer_and_betas_are_read(tmp_path: Path) -> None:
    optimizer = '[training.optimizer]\nname = "adamw"\nlearning_rate = 1\nbetas = [0.8, 0.9]'
    spec = load(write(tmp_path, training=optimizer)).training.optimizer
    assert (spec.name, spec.learning_rate, spec.betas) == ("adamw", 1.0, (0.8, 0.9))


def test_the_numeric_class_is_the_file_s_or_that_of_the_command(tmp_path: Path) -> None:
    path = write(tmp_path, training='numerics = "fast"')
    assert load(path).training.numerics == "fast"
    assert load(path, numerics="bf16").training.numerics == "bf16"
    assert load(path, numerics="exact").training.numerics == "exact"
    assert load(write(tmp_path)).training.numerics == "exact"
    assert options.NUMERICS == list(get_args(NumericsName))


def test_a_class_of_the_cpu_is_not_asked_of_a_card(tmp_path: Path) -> None:
    path = write(tmp_path, training='numerics = "fast"', needs='device = "cuda"')
    assert "training.numerics: fast is a class of products on a CPU, and needs.device is cuda" in complaint(path)
    unknown = complaint(write(tmp_path, training='numerics = "quick"'))
    assert "training.numerics" in unknown and "quick" in unknown


# -- the file itself ------------------------------------------------------------------------------------


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    write(tmp_path)
    assert "there is no such file; did you mean" in complaint(tmp_path / "jop.toml")


def test_a_folder_is_not_a_job_file(tmp_path: Path) -> None:
    assert "this is a folder" in complaint(tmp_path)


def test_binary_is_not_a_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\x89PNG\xff\xfe")
    assert "expected text in UTF-8" in complaint(tmp_path / "job.toml")


def test_an_empty_file_misses_its_first_key(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("")
    assert complaint(tmp_path / "job.toml").endswith("job.toml: name is missing")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(path).name == "tiny"


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    assert "not valid TOML" in (said := complaint(write(tmp_path, name='"tiny'))) and "line 2" in said


def test_a_file_that_is_no_toml_by_its_name_is_told_what_a_job_file_is(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: tiny\n")
    assert complaint(path).endswith("; a job file is TOML: docs/cli.md shows one")
    assert "docs/cli.md" not in complaint(write(tmp_path, name='"tiny'))


def test_a_key_written_twice_is_an_error(tmp_path: Path) -> None:
    assert "not valid TOML" in complaint(write(tmp_path, training="epochs = 1\nepochs = 2"))


# -- keys and types -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "line", "said"),
    [
        ("training", "epoch = 3", "unknown key training.epoch; did you mean training.epochs?"),
        ("training", "Batch_Size = 3", "unknown key training.Batch_Size; did you mean training.batch_size?"),
        ("training", "learning_rate = 0.1", "unknown key training.learning_rate; it belongs in [training.optimizer]"),
        ("data", "epochs = 3", "unknown key data.epochs; it belongs in [training]"),
        ("needs", "gpu = 1", "unknown key needs.gpu; known here: device, memory, gpu_memory, cores"),
        ("training", "[training.optimizer]\nlr = 1", "optimizer.lr; did you mean training.optimizer.learning_rate?"),
        ("training", 'epochs = "many"', 'training.epochs: expected a whole number, got "many"'),
        ("training", "epochs = 0", "training.epochs: expected a whole number >= 1, got 0"),
        ("data", "features = 3", "data.features: expected a list, got 3"),
        ("training", "epochs = 1.5", "training.epochs: expected a whole number, got 1.5"),
        ("training", "epochs = true", "training.epochs: expected a whole number, got true"),
        (
            "training",
            'loss = "hinge"',
            'training.loss: expected one of cross_entropy, mse, bce, l1, huber, got "hinge"',
        ),
        (
            "training",
            "[training.optimizer]\nlearning_rate = nan",
            "training.optimizer.learning_rate: expected a finite",
        ),
        (
            "training",
            "[training.optimizer]\nlearning_rate = -1",
            "training.optimizer.learning_rate: expected a number > 0.0, got -1",
        ),
        ("data", "validation = 1.0", "data.validation: expected a number < 1.0, got 1.0"),
        ("data", "ignore = [1]", "data.ignore[0]: expected text, got 1"),
        ("needs", 'memory = "much"', 'needs.memory: expected a size such as "512 MB"'),
        ("needs", 'gpu_memory = "much"', 'needs.gpu_memory: expected a size such as "512 MB"'),
        ("needs", "gpu_memory = 1", 'only a job with needs.device = "cuda" has a GPU, got device = "any"'),
        ("needs", 'device = "cuda"\ngpu_memory = 9', "needs.gpu_memory: expected at least 1 MB, for weights"),
        ("needs", 'vram = "8 GiB"', "did you mean needs.gpu_memory?"),
        ("data", 'normalize = "z"', 'data.normalize: expected one of standard, minmax, none, got "z"'),
        ("training", "[training.optimizer]\nbetas = [1, 1]", "betas[0]: expected a number < 1.0, got 1"),
        ("needs", "cores = 0", "needs.cores: expected a whole number >= 1, got 0"),
        ("model", "input = [3]", "model.input is [3], one sample of the data is [2]"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_path(tmp_path: Path, section: str, line: str, said: str) -> None:
    assert said in complaint(write(tmp_path, **{section: line}))


@pytest.mark.parametrize("amount", ['"0"', "-1", '"1e3"', '"0.0000000001"', "2.5", '"nan"', "true"])
def test_an_amount_that_is_not_money_is_refused(tmp_path: Path, amount: str) -> None:
    assert "job.toml: amount: " in complaint(write(tmp_path, amount=amount), AmountError)


# -- model, data and loss -------------------------------------------------------------------------------


def test_an_unknown_layer_suggests_the_nearest(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, layers='[{ kind = "Liner", out_features = 3 }]'))
    assert "layer 0" in said and "'Linear'" in said


def test_layers_that_do_not_fit_name_the_layer_and_the_shapes(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, layers='[{ kind = "ReLU" }, { kind = "Reshape", shape = [5] }]'), ShapeError)
    assert "layer 1: Reshape" in said and "[2]" in said and "5" in said


def test_a_model_with_too_few_outputs_is_refused(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, layers='[{ kind = "Linear", out_features = 2 }]'), CyxError)
    assert "job.toml" in said and "2" in said and "3" in said


def test_a_model_with_too_many_outputs_is_refused(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, layers='[{ kind = "Linear", out_features = 5 }]'))
    assert "5 outputs, the data has 3 classes" in said


def test_mse_wants_one_output(tmp_path: Path) -> None:
    assert "set out_features = 1" in complaint(write(tmp_path, training='loss = "mse"'), DataError)


def test_a_model_that_gives_more_than_a_row_is_refused(tmp_path: Path) -> None:
    layers = '[{ kind = "Linear", out_features = 4 }, { kind = "Reshape", shape = [2, 2] }]'
    said = complaint(write(tmp_path, layers=layers))
    assert 'one row of numbers per sample, it gives [2, 2]; put { kind = "Flatten" } before' in said


def test_bce_wants_two_classes(tmp_path: Path) -> None:
    layers = '[{ kind = "Linear", out_features = 1 }]'
    assert "exactly 2 classes" in complaint(write(tmp_path, layers=layers, training='loss = "bce"'), CyxError)


def test_a_task_that_contradicts_the_loss_is_refused(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, data='task = "regression"'))
    assert 'job.toml: training.loss: expected a loss for data.task = "regression", got "cross_entropy"' in said


def test_a_missing_data_file_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    said = complaint(write(tmp_path, path='"dta.csv"'), DataError)
    assert f"there is no {tmp_path / 'dta.csv'}; did you mean data.csv?" in said
    (tmp_path / "nodata.csv.toml").touch()
    said = complaint(write(tmp_path, path='"nodata.csv.tom"'), DataError)
    assert "toml?" not in said  # a job file is no data


@pytest.mark.parametrize("path", ["", "https://example.org/data.csv"])
def test_data_that_is_no_file_of_this_machine_is_refused_as_such(tmp_path: Path, path: str) -> None:
    said = complaint(write(tmp_path, path=f'"{path}"'), DataError)
    assert f"data.path: expected a file or folder of this machine, got {path!r}" in said


def test_a_device_is_refused_as_a_device(tmp_path: Path) -> None:
    assert "expected a plain file, got a device" in complaint(write(tmp_path, path='"/dev/zero"'), DataError)


def test_memory_that_cannot_hold_the_model_is_refused(tmp_path: Path) -> None:
    layers = '[{ kind = "Linear", out_features = 2000000 }, { kind = "Linear", out_features = 3 }]'
    said = complaint(write(tmp_path, layers=layers, needs='memory = "100 MB"'))
    assert "needs.memory: expected at least 193 MB" in said and "12,000,003 parameters, got 100 MB" in said


def test_an_empty_data_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "data.csv").write_text("")
    assert "data.csv" in complaint(path, DataError)


def test_a_missing_target_column_is_told(tmp_path: Path) -> None:
    assert "labl" in complaint(write(tmp_path, data='target = "labl"'), DataError)


def test_an_empty_cell_is_told_with_its_column(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "data.csv").write_text("a,b,label\n1,2,0\n,3,1\n")
    said = complaint(path, DataError)
    assert "data.csv" in said and "a" in said and "2" in said


def test_more_in_a_batch_than_there_are_rows_is_only_a_warning(tmp_path: Path) -> None:
    [warning] = load(write(tmp_path, training="batch_size = 1000")).warnings
    assert "batch_size 1000" in warning


@pytest.mark.parametrize("name", ["Unnamed: 0", "__index_level_0__"])
def test_the_row_numbers_that_pandas_writes_are_warned_of(tmp_path: Path, name: str) -> None:
    path = write(tmp_path)
    header, *rows = (tmp_path / "data.csv").read_text().splitlines()
    table = [f"{name},{header}", *(f"{number},{row}" for number, row in enumerate(rows))]
    (tmp_path / "data.csv").write_text("\n".join(table) + "\n")
    assert (
        load(path).warnings[0]
        == f"the column {name!r} is taken for a feature, and is pandas' row numbers: name it in data.ignore"
    )


def test_a_pair_of_npy_files_is_packed_into_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(48, dtype=np.float32).reshape(24, 2))
    np.save(tmp_path / "y.npy", np.arange(24) % 3)
    job = load(write(tmp_path, path='"x.npy"', data='target_path = "y.npy"'), tmp_path / "packed")
    assert (job.data_path.name, job.data.format, job.facts.rows) == ("x.npz", "npz", 24)
    assert job.fetched and job.data_path.is_relative_to(tmp_path / "packed")
    discard(job.data_path)
    assert list((tmp_path / "packed").iterdir()) == []


def test_two_sources_of_one_name_are_packed_side_by_side(tmp_path: Path) -> None:
    jobs = []
    for folder, rows in (("a", 24), ("b", 36)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.arange(2.0 * rows, dtype=np.float32).reshape(rows, 2))
        np.save(tmp_path / folder / "y.npy", np.arange(rows) % 3)
        jobs.append(
            load(write(tmp_path, path=f'"{folder}/x.npy"', data=f'target_path = "{folder}/y.npy"'), tmp_path / "packed")
        )
    assert [rows_in(job.data_path) for job in jobs] == [24, 36]


def rows_in(path: Path) -> int:
    """How many rows lie there."""
    with np.load(path) as arrays:
        return len(arrays["y"])


def test_what_cannot_be_packed_leaves_nothing_behind(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    np.save(tmp_path / "y.npy", np.zeros(5))
    with pytest.raises(CyxError):
        load(write(tmp_path, path='"x.npy"', data='target_path = "y.npy"'), tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


def test_an_npy_file_without_its_labels_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    assert "data.target_path is missing" in complaint(write(tmp_path, path='"x.npy"'))


def test_a_graph_in_a_file_is_taken_as_the_model(tmp_path: Path) -> None:
    from cyxcore import layers

    graph = layers.build(input_shape=[2], layers=[{"kind": "Linear", "out_features": 3}])
    (tmp_path / "model.json").write_bytes(graph.to_bytes())
    path = write(tmp_path)
    path.write_text(path.read_text().replace(f"layers = {GOOD['layers']}", 'graph = "model.json"'))
    job = load(path)
    assert (job.model.graph, job.data.normalize) == (graph.to_json(), "none")


def test_scaling_is_not_promised_for_a_graph(tmp_path: Path) -> None:
    path = write(tmp_path, data='normalize = "minmax"')
    path.write_text(path.read_text().replace(f"layers = {GOOD['layers']}", 'graph = "model.json"'))
    assert "data.normalize = 'minmax' does not go with model.graph" in complaint(path)


def test_a_damaged_graph_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"nodes": "none"}))
    path = write(tmp_path)
    path.write_text(path.read_text().replace(f"layers = {GOOD['layers']}", 'graph = "model.json"'))
    assert "job.toml: model:" in complaint(path, CyxError)


# -- modules --------------------------------------------------------------------------------------------


def test_a_module_becomes_a_graph_and_a_file_of_its_present_weights(tmp_path: Path) -> None:
    from cyxcore import device, nn, safetensors

    write(tmp_path)
    weights_path = tmp_path / "weights.safetensors"
    with device.use_device("reference"):
        job = from_module(
            module := nn.Linear(2, 3),
            tmp_path / "data.csv",
            "1",
            name="module",
            spec=DataSpec(normalize="none"),
            training=TrainingSpec(),
            needs=Needs(),
            weights_path=weights_path,
        )
    stored, _ = safetensors.load(weights_path)
    assert job.model.graph is not None and job.model.weights == describe(weights_path).sha256
    assert {name: array.tolist() for name, array in stored.items()} == {
        name: array.tolist() for name, array in module.state_dict().items()
    }


def module_job(source: Any, folder: Path, **spec: Any) -> LoadedJob:
    return from_module(
        nn.Linear(2, 2),
        source,
        "1",
        name="module",
        spec=DataSpec(normalize="none", **spec),
        training=TrainingSpec(),
        needs=Needs(),
        weights_path=folder / "weights.safetensors",
    )


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], np.array(["cat", "dog", "dog", "cat"], dtype=object)])
def test_arrays_in_memory_are_the_data_of_a_module(tmp_path: Path, labels: Any) -> None:
    x = Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    job = module_job((x, labels), tmp_path, target="price")  # the names are of columns: arrays have none
    assert (job.facts.rows, job.facts.input_shape, job.facts.classes) == (4, [2], 2)
    read = data.load(job.data_path, job.data, loss="cross_entropy", seed=0)
    assert sorted(np.concatenate([read.x_train, read.x_val])[:, 0].tolist()) == [1.0, 3.0, 5.0, 7.0]
    first = describe(job.data_path).sha256
    (tmp_path / "again").mkdir()
    assert describe(module_job((x, labels), tmp_path / "again").data_path).sha256 == first  # sent once


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"a": 1}, "expected the path of a file, or two arrays (inputs, targets), got a dict"),
        (([[1.0, 2.0]],), "got 1 of them"),
        (([[1.0, 2.0], [3.0]], [0, 1]), "x: expected an array, got a list: "),
        (
            ([[1.0, None], [3.0, 4.0]], [0, 1]),
            "x: expected an array of numbers, or labels of text, got objects such as",
        ),
        (([[1.0, 2.0], [3.0, 4.0]], [0, 1, 0]), "as many inputs as targets"),
    ],
)
def test_what_is_neither_a_file_nor_two_arrays_is_refused(tmp_path: Path, source: Any, words: str) -> None:
    with pytest.raises(DataError) as refused:
        module_job(source, tmp_path)
    assert words in str(refused.value)


# -- sizes and anything ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "size"),
    [("512 MB", 512_000_000), ("2GiB", 2**31), ("1.5 kB", 1500), ("7 B", 7), (123, 123), ("0.5 TiB", 2**39)],
)
def test_a_size_is_read_with_its_unit(written: str | int, size: int) -> None:
    assert parse_bytes(written, "memory") == size


@pytest.mark.parametrize("written", ["512", "MB", "-1 MB", "1 XB", "1e3 MB", -1, 2**63, ""])
def test_a_size_without_a_known_unit_is_refused(written: str | int) -> None:
    with pytest.raises(SpecError, match="memory: expected"):
        parse_bytes(written, "memory")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(max_size=200))
def test_any_text_is_a_job_file_or_a_spec_error(text: str) -> None:
    try:
        assert isinstance(parse(text, Path("job.toml")), JobFile)
    except SpecError as error:
        assert str(error).startswith("job.toml: ")


@given(st.sampled_from(["training", "needs", "data", "model", "name"]), VALUES)
def test_any_value_in_any_section_is_taken_or_refused_with_a_cyx_error(section: str, value: Any) -> None:
    text = f'name = "x"\namount = "1"\n{section} = {to_toml(value)}\n'
    try:
        parse(text, Path("job.toml"))
    except SpecError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", ["1", "nan", "{ a = 1 }"])
@pytest.mark.parametrize("section", ["training", "needs"])
def test_a_key_that_would_break_the_line_is_written_out(section: str, value: str) -> None:
    text = f'name = "x"\namount = "1"\n{section} = {{ "\\n\\u001b[2Jü" = {value} }}\n'
    with pytest.raises(SpecError) as error:
        parse(text, Path("job.toml"))
    assert r"\n\x1b[2Jü" in str(error.value) and str(error.value).isprintable()


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return repr(value).lower() if isinstance(value, float) else json.dumps("" if value is None else value)


def test_a_loaded_job_holds_what_the_file_said(tmp_path: Path) -> None:
    job = load(write(tmp_path, data='features = ["a"]'))
    assert isinstance(job, LoadedJob) and job.data.features == ["a"] and job.model.input == [1]


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"training": 'metrics = ["rmse"]'}, "rmse does not go with loss cross_entropy; expected some of accuracy"),
        ({"training": 'metrics = ["f1_macro"]', "data": "validation = 0.0"}, "there are none; raise data.validation"),
    ],
)
def test_metrics_that_would_fail_on_a_node_are_refused_before_anything_is_sent(
    tmp_path: Path, changes: dict[str, str], text: str
) -> None:
    assert text in complaint(write(tmp_path, **changes))


AUGMENTS = [
    ("true", "data.augment: expected a list of transforms; write each as { kind"),
    ('["RandomCrop"]', "data.augment[0]: expected a table with a kind; write it as { kind"),
    (
        '[{ kind = "RandomCorp", size = 2 }]',
        "data.augment[0]: unknown transform 'RandomCorp'; did you mean RandomCrop?",
    ),
    ('[{ kind = "RandomCrop", sise = 2 }]', "data.augment[0]: RandomCrop has no option 'sise'; did you mean size?"),
    ('[{ kind = "Grayscale", p = 1 }]', "data.augment[0]: Grayscale has no option 'p'; it has no options"),
    ('[{ kind = "RandomCrop" }]', "data.augment[0].size is missing"),
    (
        '[{ kind = "RandomCrop", size = 0 }]',
        "data.augment[0].size: expected a whole number >= 1, got 0",
    ),
    ('[{ kind = "GaussianBlur", kernel_size = 4 }]', "data.augment[0]: expected an odd kernel_size, got 4"),
    ('[{ kind = "RandomInvert", p = 2 }]', "data.augment[0].p: expected a number <= 1.0, got 2"),
    ('[{ kind = "RandomInvert", p = nan }]', "data.augment[0].p: expected a finite number"),
    ('[{ kind = "AutoAugment", policy = "x" }]', "data.augment[0].policy: expected one of imagenet, cifar10, svhn"),
    ('[{ kind = "RandomHorizontalFlip" }]', "data.augment: expected rows that are images (channels, height, width)"),
]


@pytest.mark.parametrize("augment, said", AUGMENTS)
def test_transforms_of_a_job_file_are_right_or_told_what_to_write(tmp_path, augment, said):
    assert said in complaint(write(tmp_path, data=f"augment = {augment}"))


def test_a_job_file_names_transforms_of_its_images(tmp_path):
    lines = [",".join([*map(str, range(n, n + 12)), str(n % 3)]) for n in range(24)]
    (tmp_path / "pixels.csv").write_text("\n".join([",".join([*(f"p{n}" for n in range(12)), "label"]), *lines]))
    data = """
    image_shape = [1, 3, 4]
    white = 40
    augment = [{ kind = "RandomCrop", size = [3, 4], padding = 1 }, { kind = "ColorJitter", brightness = 0.2 }]
    """
    job = load(write(tmp_path, path='"pixels.csv"', data=data))
    assert [type(transform).__name__ for transform in job.data.augment] == ["RandomCrop", "ColorJitter"]
    again = msgspec.json.decode(msgspec.json.encode(job.data), type=DataSpec)
    assert again == job.data and again.image_shape == (1, 3, 4)
