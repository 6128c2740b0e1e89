"""Whether a deployment serves its model, with one that answers as it is told to."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyxcore.errors import FormatError
from cyxcore.model import save_model
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.artifacts import describe
from cyxnet.cli.screen import PlainScreen
from cyxnet.inference import PredictReply
from cyxnode.checking import NotChecked, checked, in_words
from tests.node.serving.models import mlp, samples

DEPLOYMENT = subjects.deployment_id("small", "c-1")


class Client:
    """A client whose deployment answers by this model, once it has been given what was deployed."""

    def __init__(self, path: Path, answers: Any, form: m.ModelFormat = "cyxmodel"):
        self.path, self.answers, self.deployments = path, answers, self
        spec = m.ServeSpec(deployment=DEPLOYMENT, format=form, seconds=60)
        file = m.ArtifactRef(sha256=describe(path).sha256, size=path.stat().st_size)
        newest = m.JobRequest(name="s", model=m.ModelSpec(), dataset=file, amount_base_units=1, serve=spec)
        replica = m.ReplicaView(job_id="job-1", state="ready", status="leased", since_ms=0)
        self.view = m.DeploymentView(deployment=DEPLOYMENT, name="s", ready=1, replicas=[replica], newest=newest)

    async def find(self, name: str) -> m.DeploymentView:
        return self.view

    async def fetch(self, sha256: str, path: Path, progress: Any) -> None:
        path.write_bytes(self.path.read_bytes())

    async def predict(self, deployment: str, row: Any) -> PredictReply:
        answer = self.answers(row[None])[0]
        return PredictReply(model="s", output=answer.tolist(), shape=list(answer.shape), latency_ms=0.1)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    held = mlp()
    save_model(tmp_path / "small.cyxmodel", held.graph, held.weights, classes=held.classes)
    return tmp_path / "small.cyxmodel"


async def check(client: Any, folder: Path, **options: Any) -> Any:
    given = {"file": None, "rows": None, "count": 8} | options
    return await checked(client, "small", folder=folder, screen=PlainScreen(io.StringIO()), **given)


async def test_the_model_that_was_deployed_gives_the_bits_that_it_gives_here(model_file: Path, tmp_path: Path) -> None:
    found = await check(Client(model_file, mlp().predict), tmp_path)
    assert (found.questions, found.differ) == (8, [])
    assert "8 answers of 1 replica have its bits" in in_words(found)


async def test_another_model_than_the_deployed_one_is_found_by_its_answers(model_file: Path, tmp_path: Path) -> None:
    def almost(rows: Any) -> Any:
        return np.nextafter(mlp().predict(rows), np.float32(9))

    found = await check(Client(model_file, almost), tmp_path)
    assert len(found.differ) == 8 and "3 of 3 numbers are others" in found.differ[0]
    assert "does NOT serve its model" in in_words(found)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("x", "expected numbers"),
        ({"a": 1}, "expected numbers"),
        (["0.5", 2.0, 3.0], "expected numbers"),
        ([[1.0], [2.0, 3.0]], "expected numbers"),
        ([True, True, False], "expected numbers"),
        ([1.0, 2.0, 10**400], "expected numbers"),
        ([1.0, 2.0], r"expected numbers of shape \[3\], got \[2\]"),
        ([1.0, 2.0, 1e39], "are others"),
        ([None, None, None], "expected numbers"),
    ],
)
async def test_an_answer_that_is_none_of_a_model_is_no_trouble_but_found(
    model_file: Path, tmp_path: Path, answer: Any, why: str
) -> None:
    class Garbled(Client):
        async def predict(self, deployment: str, row: Any) -> PredictReply:
            return PredictReply(model="s", output=answer, shape=[3], latency_ms=0.1)

    found = await check(Garbled(model_file, None), tmp_path, count=1)
    assert len(found.differ) == 1 and re.search(why, found.differ[0]), found.differ


@pytest.mark.parametrize("x", [np.float32(3), np.array([["abcd"] * 4]), None])
async def test_a_file_without_rows_is_one_clear_error(model_file: Path, tmp_path: Path, x: Any) -> None:
    rows = tmp_path / "rows.npz"
    rows.write_bytes(b"PK\x03\x04 and then nothing") if x is None else np.savez(rows, x=x)
    with pytest.raises(FormatError, match="rows.npz: expected"):
        await check(Client(model_file, mlp().predict), tmp_path, rows=rows)


async def test_what_is_no_file_is_said_before_a_deployment_is_asked_for(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive at all")
    for words, said in [
        ({"rows": tmp_path}, "expected an NPZ file with an array x, this is a folder"),
        ({"rows": tmp_path / "none.npz"}, "none.npz: there is no such file"),
        ({"rows": tmp_path / "text.npz"}, "expected an NPZ file with an array x, got a file of another kind$"),
        ({"file": tmp_path}, "expected the model file that was deployed, this is a folder"),
    ]:
        with pytest.raises(FormatError, match=said):
            await check(Client(model_file, mlp().predict), tmp_path, **words)


async def test_rows_of_ones_own_are_asked(model_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=samples(3))
    asked: list[Any] = []

    def keep(rows: Any) -> Any:
        asked.append(rows[0])
        return mlp().predict(rows)

    assert (await check(Client(model_file, keep), tmp_path, rows=tmp_path / "rows.npz")).questions == 3
    assert np.array_equal(asked, samples(3))
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 5)))
    with pytest.raises(FormatError, match=r"rows of shape \[4\], got x of shape \[2, 5\]"):
        await check(Client(model_file, keep), tmp_path, rows=tmp_path / "rows.npz")


async def test_what_cannot_be_compared_is_said(model_file: Path, tmp_path: Path) -> None:
    client = Client(model_file, None)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"x")
    with pytest.raises(NotChecked, match="another file than the one that was deployed"):
        await check(client, tmp_path, file=other)
    client.view.newest = None
    with pytest.raises(NotChecked, match="somebody else's: name the file"):
        await check(client, tmp_path)
    with pytest.raises(NotChecked, match="a language model, whose answers are drawn"):
        client = Client(other, None, "gguf")
        client.fetch = None  # it is not fetched for that
        await check(client, tmp_path)
