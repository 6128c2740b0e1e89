"""`cyx graph` and `cyx patterns`: what they print, and one line for every mistake. No network is up."""

import json
from pathlib import Path

import pytest

import cyxcore as cx
from cyxnet.cli import main

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "digits_resnet.cyxgraph")


def test_check_shows_layers_and_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "check", EXAMPLE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split() == ["stem:", "Conv2D", "16", "×", "8", "×", "8", "160", "20.5", "k", "12.3", "kB"]
    assert lines[-1] == (
        "trained by adam at 0.004, cosine on cross_entropy, 12 epochs in batches of 32; 20% of the rows held out"
    )


def test_check_answers_programs_in_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "check", EXAMPLE, "--json", "--batch-size", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    recipe = cx.load_graph(EXAMPLE)
    assert said["graph_sha256"] == recipe.graph.sha256 and said["output_shape"] == [10]
    assert said["summary"]["flops"] == cx.flops(recipe.graph, batch_size=2)
    assert said["training"]["optimizer"]["learning_rate"] == 0.004 and said["data_path"] == "digits.csv"


def test_the_schema_and_the_kinds_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["$defs"]["GraphFile"]["required"] == ["nodes"]
    assert main(["graph", "kinds", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "number": "0",
        "kind": "Dense",
        "in": "input",
        "out": "output",
        "parameters": "units = 128, bias = true, activation = none",
    }


def test_patterns_are_listed_described_and_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["patterns"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 26
    assert main(["patterns", "unet"]) == 0
    assert "masks to draw" in capsys.readouterr().out
    assert main(["patterns", "unet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "unet"  # one value: the description is in it
    path = tmp_path / "u.cyxgraph"
    assert main(["patterns", "unet", "--set", "size=16", "--set", "learning_rate=0.01", "-o", str(path)]) == 0
    recipe = cx.load_graph(path)
    assert recipe.graph.output_shape == (1, 16, 16) and recipe.training.optimizer.learning_rate == 0.01
    assert main(["patterns", "unet", "--set", "size=16"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "{"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["graph", "check", "no.cyxgraph"], "cyx: no.cyxgraph: cannot be read (No such file or directory)"),
        (["graph", "check", EXAMPLE, "--input", "65"], "its shape is [64], one sample of the data is [65]"),
        (
            ["graph", "check", EXAMPLE, "--input", "0"],
            "argument --input: expected sizes such as 64 or 3,32,32, got '0'",
        ),
        (["graph", "chek"], "unknown action 'chek'; did you mean 'check'?"),
        (["patterns", "unte"], "cyx: pattern: there is no 'unte'; did you mean 'unet'?"),
        (["patterns", "unet", "--set", "size=x"], "argument --set: expected NAME=NUMBER, got 'size=x'"),
        (
            ["patterns", "unet", "--set", "size=9", "-o", "u.cyxgraph"],
            "node 'join1' (Concatenate): expected inputs that",
        ),
        (["patterns", "unet", "-o", "u.json"], "u.json: expected a name that ends in .cyxgraph, got '.json'"),
        (["patterns", "unet", "-o", "no/u.cyxgraph"], "no/u.cyxgraph: cannot be written (No such file or directory)"),
        (["patterns", "unet", "-o", EXAMPLE], "there is such a file already; choose another name or add --force"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(arguments)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1
