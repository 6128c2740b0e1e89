"""`cyx serve` as a process: from a file to answers, and to an orderly end."""

import argparse
import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from cyxcore.errors import SpecError
from cyxcore.model import load_model
from cyxnode.serving.__main__ import main
from tests.node.serving.models import mlp, samples


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    mlp().save(path)
    return path


def command(*options):
    return [sys.executable, "-m", "cyxnet", "serve", *map(str, options)]


def test_a_file_is_served_until_sigterm(file):
    with subprocess.Popen(command(file, "--port", 0, "--json", "--threads", 1), stdout=subprocess.PIPE) as process:
        try:
            ready = json.loads(process.stdout.readline())
            assert ready["kind"] == "ready" and ready["data"]["model"] == "small"
            answer = httpx.post(ready["data"]["url"] + "/v1/predict", json={"input": samples(3).tolist()})
            expected = load_model(file).predict(samples(3))
            assert np.array(answer.json()["output"], np.float32).tobytes() == expected.tobytes()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_an_onnx_file_is_served_too(file, tmp_path):
    from cyxnet.serveoptions import add_options
    from cyxnode.serving.loading import load

    load_model(file).export(tmp_path / "foreign.onnx")
    parser = argparse.ArgumentParser()
    add_options(parser)
    served = load(parser.parse_args([str(tmp_path / "foreign.onnx")]))
    assert served.name == "foreign" and served.card().input.shape == [4]
    asyncio.run(served.close())


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("my model (1)", "my-model-1"),
        ("Qwen2.5-0.5B:q8", "Qwen2.5-0.5B:q8"),
        ("größe ✓", "gr-e"),
        ("猫", "model"),
        ("org/model.", "org/model"),
    ],
)
def test_a_file_or_a_job_may_be_called_anything_and_is_served(called, name):
    from cyxnode.serving import loading

    assert loading.name_of(called) == name and loading.NAME.fullmatch(name)


def test_a_file_with_a_space_in_its_name_is_served(file, tmp_path):
    from cyxnet.serveoptions import add_options
    from cyxnode.serving.loading import load

    path = tmp_path / "my model (1).safetensors"
    path.write_bytes(Path(file).read_bytes())
    parser = argparse.ArgumentParser()
    add_options(parser)
    served = load(parser.parse_args([str(path)]))
    assert served.name == "my-model-1"
    asyncio.run(served.close())
    with pytest.raises(
        SpecError, match="--name: expected letters"
    ):  # what is asked for by name is refused, not changed
        load(parser.parse_args([str(path), "--name", "my model"]))


async def test_the_collector_of_garbage_looks_through_no_model(file, monkeypatch):
    from cyxnet.serveoptions import add_options
    from cyxnode.serving import __main__ as serving
    from cyxnode.serving import loading

    happened, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda args: (load(args), happened.append("load"))[0])
    monkeypatch.setattr(gc, "freeze", lambda: happened.append("freeze"))
    monkeypatch.setattr(serving, "_say_ready", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("--guard-stdin", action="store_true")
    assert await serving.serve(parser.parse_args([str(file), "--port", "0"])) == 0
    assert happened == ["load", "freeze"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nothing.safetensors"], "nothing.safetensors: there is no such file"),
        (["model.pkl"], "files of this kind may hold code, and are never opened"),
        (["model.doc"], "expected a name ending in .cyxmodel or .safetensors or"),
        (["FILE", "--host", "0.0.0.0"], "would be plain text between machines"),
        (["FILE", "--port", "70000"], "expected a whole number from 0 to 65535"),
        (["FILE", "--memory", "100B"], "bytes for one sample, and may take 100; give it more with --memory"),
        (["FILE", "--cert", "x.pem"], "--cert and --key belong together"),
        (["FILE", "--cert", "none", "--key", "none"], "none: expected a certificate in PEM: No such file or directory"),
        (["FILE", "--cert", "/", "--key", "/"], "/: expected a certificate in PEM: Is a directory"),
        (
            ["FILE", "--cert", "/dev/null", "--key", "none"],
            "/dev/null: expected a certificate in PEM, got an empty file",
        ),
        (["FILE", "--cert", "FILE", "--key", "FILE"], "expected a certificate in PEM, got another file"),
        (["FILE", "--api-key-file", "none"], "cyx: none: the API keys cannot be read: No such file or directory"),
        (["FILE", "--api-key-file", "/"], "/: expected a file of API keys, a line each; this is a folder"),
        (["/tmp/../tmp/"], "expected a name ending in"),
        (["FILE", "--name", "../x"], "--name: expected letters"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_2(file, options, said, capsys, caplog):
    try:
        status = main([str(file) if word == "FILE" else word for word in options])
    except SystemExit as ended:  # of the parser
        status = ended.code
    complaint = capsys.readouterr().err
    assert status == 2 and said in complaint and len(complaint.splitlines()) == 1, complaint
    assert not caplog.records


def test_a_process_that_cannot_serve_ends_with_one_line_and_status_2(file):
    ended = subprocess.run(command(file, "--cert", "x.pem"), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "cyx: --cert and --key belong together\n")
