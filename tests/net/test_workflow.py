"""A workflow file is right, or one line says where it is wrong and what to write instead."""

import argparse
import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cyxcore.errors import CyxError, SpecError
from cyxnet import workflow as workflows
from cyxnet.bus import ApiError, BusError
from cyxnet.cli import workflows as commands
from cyxnet.cli.screen import PlainScreen
from cyxnet.jobfile import load as load_job
from cyxnet.messages import After, ArtifactRef, JobId
from tests.net.test_jobfile import write

HEAD = 'name = "flow"\n'


def flow(folder, *sections, head=HEAD):
    """A workflow file of these sections, of the job file beside it."""
    write(folder)
    path = folder / "flow.toml"
    path.write_text(head + "\n".join(sections))
    return path


def section(name, *lines):
    return "\n".join([f"[jobs.{name}]", 'file = "job.toml"', *lines])


HELD, NONE_HELD = (f'set = {{ "data.validation" = {share} }}' for share in ("0.25", "0.0"))
WIDER = 'set = { "model.layers" = [{ kind = "Linear", out_features = 3 }] }'


def load(folder, *sections, head=HEAD):
    return workflows.load(flow(folder, *sections, head=head))


def test_jobs_stand_behind_those_that_they_come_after(tmp_path):
    found = load(tmp_path, section("c", 'after = ["b", "a"]'), section("b", 'after = ["a"]'), section("a"))
    assert [step.name for step in found.steps] == ["a", "b", "c"]
    assert [[each.job_id for each in step.after] for step in found.steps] == [[], ["a"], ["b", "a"]]
    assert found.amount_base_units == 3 * 2_500_000_000


def test_what_is_set_counts_instead_of_what_the_job_file_says(tmp_path):
    found = load(
        tmp_path, section("a", 'set = { "training.epochs" = 7, amount = "1", "training.optimizer.name" = "sgd" }')
    )
    job, plain = found.steps[0].job, load_job(tmp_path / "job.toml")
    assert (job.training.epochs, job.amount_base_units, job.training.optimizer.name) == (7, 10**9, "sgd")
    assert (job.model, job.data, plain.training.epochs) == (plain.model, plain.data, 2)


@pytest.mark.parametrize("lines", ["set = { training.epochs = 7 }", "[jobs.a.set.training]\nepochs = 7"])
def test_what_is_set_in_a_nested_table_leaves_the_rest_of_its_section(tmp_path, lines):
    job, plain = load(tmp_path, section("a", lines)).steps[0].job, load_job(tmp_path / "job.toml")
    assert job.training.epochs == 7
    assert replace(job.training, epochs=plain.training.epochs) == plain.training


def test_jobs_on_the_same_data_share_what_was_packed_of_it(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((8, 2), np.float32))
    np.save(tmp_path / "y.npy", np.arange(8) % 3)
    arrays = 'set = { "data.path" = "x.npy", "data.target_path" = "y.npy" }'
    write(tmp_path)
    job = (tmp_path / "job.toml").read_text().replace('target = "label"\n', "")
    (tmp_path / "job.toml").write_text(job)
    file = tmp_path / "flow.toml"
    file.write_text(HEAD + section("a", arrays, 'matrix = { "training.seed" = [1, 2, 3] }'))
    found = workflows.load(file, tmp_path / "packed")
    assert len({step.job.data_path for step in found.steps}) == len(list((tmp_path / "packed").iterdir())) == 1
    found.discard()
    assert list((tmp_path / "packed").iterdir()) == []


def test_a_matrix_stands_for_a_job_of_each_combination_and_its_name_for_all_of_them(tmp_path):
    matrix = 'matrix = { "training.seed" = [1, 2], "training.epochs" = [3, 4] }'
    found = load(tmp_path, section("a", matrix), section("b", 'after = ["a"]'), section("c", 'weights = "a-4"'))
    combinations = [(step.job.training.seed, step.job.training.epochs) for step in found.steps if step.values]
    assert combinations == [(1, 3), (1, 4), (2, 3), (2, 4)]
    by_name = {step.name: step for step in found.steps}
    assert [each.job_id for each in by_name["b"].after] == ["a-1", "a-2", "a-3", "a-4"]
    assert by_name["c"].after == [After(job_id="a-4", model=True)]


def test_a_job_may_begin_with_the_best_of_a_matrix(tmp_path):
    found = load(
        tmp_path, section("a", 'matrix = { "training.seed" = [1, 2] }'), section("b", 'weights = "a.final_loss"')
    )
    *_, job = workflows.jobs_of(found, "0123456789")
    request = job.request(ArtifactRef(sha256="a" * 64, size=1))
    ids = ["flow-a-1-0123456789", "flow-a-2-0123456789"]
    assert (request.best_by, request.after) == ("final_loss", [After(job_id=job_id, model=True) for job_id in ids])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['after = ["a.final_loss <= 0.5"]'], After(job_id="a", metric="final_loss", at_most=0.5)),
        (
            ['after = ["a.final_accuracy>=0.9", "a.final_accuracy <= 0.99"]'],
            After(job_id="a", metric="final_accuracy", at_least=0.9, at_most=0.99),
        ),
        (
            ['after = ["a.final_accuracy >= -1e-2"]', 'weights = "a"'],
            After(job_id="a", model=True, metric="final_accuracy", at_least=-0.01),
        ),
        (['weights = "a"'], After(job_id="a", model=True)),
    ],
)
def test_what_is_wanted_of_a_model_is_read(tmp_path, lines, expected):
    assert load(tmp_path, section("a"), section("b", *lines)).steps[1].after == [expected]


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        (
            [section("a", 'after = ["b"]'), section("b", 'after = ["c"]'), section("c", 'after = ["a"]')],
            "in a circle: a → c → b → a",
        ),
        ([section("a", 'after = ["a"]')], "in a circle: a → a"),
        ([section("a"), section("b", 'after = ["aa"]')], "jobs.b.after: no job is called aa; did you mean a?"),
        ([section("a"), section("b", 'weights = "z"')], "jobs.b.weights: no job is called z; there are a, b"),
        (
            [section("a"), section("b", 'after = ["a.accuracy >= 1"]')],
            "no model has a accuracy; did you mean final_accuracy?",
        ),
        ([section("a"), section("b", 'after = ["a.final_loss > 1"]')], 'expected "teacher" or "teacher.validation'),
        ([section("a"), section("b", 'after = ["a.final_loss >= 1e"]')], 'expected "teacher" or "teacher.validation'),
        (
            [section("a"), section("b", 'after = ["a.final_loss <= 1e999"]')],
            'expected "teacher" or "teacher.validation',
        ),
        (
            [section("a", NONE_HELD), section("b", 'after = ["a.validation_loss <= 1"]')],
            "no rows are held out, of which",
        ),
        ([section("a", HELD), section("b", 'after = ["a.validation_r2 >= 1"]')], "there is none of a classification"),
        ([section("a"), section("b", 'after = ["a.final_loss <= 1", "a.final_loss <= 2"]')], "two bounds of one kind"),
        ([section("a"), section("b", 'weights = ""')], "jobs.b.weights: no job is called ; there are a, b"),
        (
            [section("a"), section("b", 'weights = "a"', WIDER)],
            "jobs.b.weights: a has another model: 0.bias is (4,), and",
        ),
        (
            [section("a"), section("b", 'after = ["a.final_loss <= 1", "a.final_accuracy >= 1"]')],
            "two metrics of a; expected one",
        ),
        (
            [section("a", 'matrix = { "training.seed" = [1, 2] }'), section("b", 'weights = "a"')],
            "jobs.b.weights: a stands for 2 jobs; name one of them, such as a-1, or the best by a metric, such as ",
        ),
        (
            [section("a", HELD), section("b", 'weights = "a.accuracy"')],
            "jobs.b.weights: no model has a accuracy; did you mean final_accuracy?",
        ),
        (
            [section("a", HELD), section("b", 'weights = "a.validation_r2"')],
            "jobs.b.weights: a: validation_r2: there is none of a classification",
        ),
        ([section("a", 'matrix = { "training.seed" = [] }')], "matrix.training.seed: expected a list of values"),
        ([section("a", "matrix = { x = [1] }", "set = { x = 1 }")], "x is in set and in matrix"),
        ([section("a", "matrix = { x = [1] }"), section("a-1")], "two jobs are called a-1"),
        ([section("a", "set = { epochs = 3 }")], "unknown key epochs; it belongs in [training]"),
        ([section("a", 'set = { "name.x" = 3 }')], "name.x cannot be set: name is no section"),
        ([section("a", 'set = { "training.epochs" = "many" }')], "training.epochs: expected a whole number"),
        ([section("A")], "jobs.A: expected a name of up to 30 letters"),
        ([section("a", "afer = []")], "unknown key jobs.a.afer; did you mean after?"),
        (["[jobs]"], "expected 1 to 1000 jobs, got 0"),
        (["[jobs.a]"], "jobs.a: object missing required field file"),
        (["[jobs.a]", "file = 3"], "jobs.a.file: expected text, got a whole number"),
        ([section("a", f'matrix = {{ "training.seed" = {list(range(1001))} }}')], "expected 1 to 1000 jobs, got 1,001"),
        (
            [section("a", f'matrix = {{ "training.seed" = {list(range(101))} }}'), section("b", 'after = ["a"]')],
            "at most 100",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_file(tmp_path, sections, why):
    with pytest.raises(SpecError) as error:
        load(tmp_path, *sections)
    assert why in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "flow.toml"))


def test_a_job_file_and_a_workflow_file_are_told_apart(tmp_path):
    path = flow(tmp_path, section("a"))
    with pytest.raises(SpecError, match="this is a job file; submit it with: cyx submit"):
        workflows.load(tmp_path / "job.toml")
    with pytest.raises(SpecError, match="this is a workflow file; run it with: cyx run"):
        load_job(path)


def test_the_jobs_of_a_run_have_ids_that_follow_from_it(tmp_path):
    found = load(tmp_path, section("a"), section("b", 'weights = "a"'), head='name = "My Flow, the long one of all"\n')
    first, second = workflows.jobs_of(found, "0123456789")
    assert (first.job_id, second.job_id) == ("my-flow-the-lon-a-0123456789", "my-flow-the-lon-b-0123456789")
    longest = workflows.job_id("x" * 40, "y" * 30 + "-1000", "0123456789")
    assert msgspec.convert(longest, JobId) == longest
    assert second.after == [After(job_id=first.job_id, model=True)] and second.name == "My Flow, the long one of all/b"


@given(
    st.text(max_size=60),
    st.sampled_from(["", "[jobs]\n", "[jobs.a]\n", '[jobs.a]\nfile = "job.toml"\n', "[jobs.a.set]\n"]),
)
def test_no_text_is_anything_but_a_workflow_or_one_line(tmp_path_factory, text, head):
    path = tmp_path_factory.mktemp("flow") / "flow.toml"
    path.write_bytes((HEAD + head + text).encode("utf-8", "surrogatepass"))
    with pytest.raises(CyxError) as error:
        workflows.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ends, told", [(BusError("no answer"), True), (ApiError("bad", "refused", 400), False)])
async def test_who_hears_nothing_of_the_first_job_is_told_how_to_go_on_with_it(tmp_path, monkeypatch, ends, told):
    # it may have been taken: run again without the run's name, the same was paid for twice
    async def submit(*_, **__):
        raise ends

    monkeypatch.setattr(workflows, "submit", submit)
    out, args = io.StringIO(), argparse.Namespace(file="flow.toml", output=None, again=None)
    with pytest.raises(type(ends)):
        await commands._submitted(None, load(tmp_path, section("a")), "0123456789", args, PlainScreen(out))
    assert ("0 of 1 job is submitted; go on with: cyx run flow.toml --again 0123456789" in out.getvalue()) == told


def test_the_example_is_a_workflow():
    found = workflows.load(Path(__file__).parents[2] / "examples" / "workflow.toml")
    assert [step.name for step in found.steps] == ["rates-1", "rates-2", "rates-3", "longer", "finetuned"]
