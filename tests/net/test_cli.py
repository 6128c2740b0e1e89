"""The `cyx` command: its words, its exit codes, and one clear line for every mistake."""

import argparse
import asyncio
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cyxcore.errors import DataError, SpecError
from cyxcore.spec import ModelSpec
from cyxnet import jobfile, outbox
from cyxnet import messages as m
from cyxnet.artifacts import describe
from cyxnet.broker import Broker, Passwords
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.cli import COMMANDS, main, parser
from cyxnet.cli import models as model_files
from cyxnet.cli.network import started
from cyxnet.cli.running import complain, exit_code, run
from cyxnet.cli.screen import PlainScreen, open_screen
from cyxnet.client import AsyncClient, InsufficientFunds, Prepared
from cyxnet.config import ConfigError, NetworkFile, write_network
from cyxnet.messages import ExplainReply
from tests.doorkeeper import CENTRAL, door_of
from tests.net.fake_api import NODE, FakeCentral
from tests.net.recorded import JOB, TRAIN_SCREEN, updates

EXAMPLES = Path(__file__).parents[2] / "examples"


# -- the command line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_the_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0 and f"example: cyx {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["serve", "a.onnx", "--port", "0" * 11 + "199999"], "expected a whole number from 0 to 65535, got '0000"),
        (["chat", "a.gguf", "--temperature", "nan"], "expected a number from 0 to 2, got 'nan'"),
        (["chat", "a.gguf", "--top-p", "7"], "expected a number from 0 to 1, got '7'"),
        (["chat", "a.gguf", "--max-tokens", "0"], "expected a whole number from 1 to 2147483648, got '0'"),
        ([], "the following arguments are required: COMMAND"),
        (["train"], "the following arguments are required: FILE"),
        (["up", "--nodes", "0"], "expected a number from 1 to 10000, got '0'"),
        (["up", "--port", "70000"], "expected a port from 0 to 65535, got '70000'"),
        (
            ["ban", "node-1", "--reason", "x", "--for", "7"],
            "expected a time up to ten years, such as 12h or 7d, got '7'",
        ),
        (["up", "--checkers", "-1"], "expected a number from 0 to 10000, got '-1'"),
        (["ban", "node-1", "--reason", " "], "expected words, got nothing"),
        (["ban", "node-1"], "the following arguments are required: --reason"),
        (["jobs", "--status", "done"], "invalid choice"),
        (["watch", "a", "b"], "unrecognized arguments: b (see cyx watch --help)"),
        (["jobs", "--stats", "failed"], "unknown option --stats; did you mean --status? (see cyx jobs --help)"),
        (["ask", "a", "--paticence=1"], "unknown option --paticence; did you mean --patience? (see cyx ask --help)"),
        (["--jsn", "jobs"], "unknown option --jsn; did you mean --json? (see cyx --help)"),
        (["job", "../x"], "expected an id of letters a-z, digits and dashes, got '../x'"),
        (["wallet", "me"], "expected a Solana address of 32 to 44 base58 letters, got 'me'"),
        (["submit", "a.toml", "--seal", f"node-a={'0' * 64}", "--quote", "p"], "not allowed with argument --seal"),
        (["submit", "a.toml", "--priority", "10"], "expected a number from 0 to 9, got '10'"),
        (["priority", "digits-1", "10"], "expected a number from 0 to 9, got '10'"),
        (["cancel", "a", "--reason", "x" * 2001], "expected at most 2000 letters, got 2001"),
        (["cancel"], "one of the arguments JOB --run is required"),
        (["cancel", "a", "--run", "0123456789"], "not allowed with"),
        (["ledger", " "], "expected a SELECT statement, got nothing"),
        (["key"], "the following arguments are required: ACTION"),
        (["key", "new", "--rate", "nan"], "expected requests a second, from 0.001 to a million, got 'nan'"),
        (["key", "new", "--rate", "1e-320"], "expected requests a second, from 0.001 to a million, got '1e-320'"),
        (["key", "new", "--days", "0"], "expected 1 to 3650 days, got '0'"),
        (["key", "revoke", "me"], "expected the 12 or 32 hex digits of an id, got 'me'"),
        (["wallet", "--facet", "3"], "unknown option --facet; did you mean --faucet?"),
        (["watch", "digits", "--", "--x"], "unrecognized arguments: --x"),
        (["jobs", "--sort", "accurate"], "invalid choice: 'accurate'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--json", "trian"], "unknown command 'trian'; did you mean 'train'? (see cyx --help)"),
        (["--json"], "the following arguments are required: COMMAND (see cyx --help)"),
        (["up", "--json", "--nodes", "0"], "argument --nodes: expected a number from 1 to 10000, got '0' (see cyx up"),
        (
            ["key", "revoke", "me", "--json"],
            "argument ID: expected the 12 or 32 hex digits of an id, got 'me' (see cyx",
        ),
    ],
)
def test_wrong_usage_is_a_line_of_json_too_for_programs(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    printed = json.loads(capsys.readouterr().out)
    assert caught.value.code == 2 and printed["kind"] == "error" and printed["data"]["code"] == "bad_usage"
    assert printed["data"]["message"].startswith(said)


def test_a_model_that_is_not_served_is_a_line_of_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    from cyxnode.serving.__main__ import main as serving

    assert serving(["nothing.onnx", "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"kind": "error", "data": {"code": "bad_file", "message": "nothing.onnx: there is no such file"}}


def test_a_command_that_is_stopped_says_so_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    async def stopped(args: argparse.Namespace, screen: Any) -> int:
        raise asyncio.CancelledError

    assert run(stopped, parser().parse_args(["jobs", "--json"])) == 130
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"kind": "error", "data": {"code": "stopped", "message": "stopped"}}


@pytest.mark.parametrize("argv", [["--dir", "net", "--json", "jobs"], ["jobs", "--dir", "net", "--json"]])
def test_global_options_stand_before_or_behind_the_command(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    assert (args.dir, args.json, args.quiet) == (Path("net"), True, False)


@pytest.mark.parametrize(
    "argv",
    [
        ["ask", "digits", "--route", "/v1/model", "{}"],
        ["ask", "--route", "/v1/model", "digits", "{}"],
        ["ask", "digits", "{}", "--route", "/v1/model"],
        ["--json", "ask", "digits", "--json", "{}", "--route", "/v1/model"],
    ],
)
def test_an_option_may_stand_before_an_argument_that_may_be_left_out(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    assert (args.deployment, args.body, args.route, args.patience) == ("digits", "{}", "/v1/model", 60)


def test_what_is_left_out_is_left_out_and_more_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args(["ask", "digits", "--get"]).body is None
    args = parser().parse_args(["ledger", "at", "--limit", "3", "2026-11-26", "--quiet"])
    assert (args.question, args.time, args.limit, args.quiet) == ("at", "2026-11-26", 3, True)
    for argv, said in (
        (["ask", "a", "--get", "b", "c"], "unrecognized arguments: c"),
        (["ask", "--get"], "required: ID"),
    ):
        with pytest.raises(SystemExit):
            parser().parse_args(argv)
        assert said in capsys.readouterr().err


def test_help_is_there_at_once() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cyxnet", "--help"]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    heavy = {"rich", "nats", "solana", "solders", "numpy", "duckdb", "msgspec", "asyncio"}
    assert heavy.isdisjoint({line.rpartition("|")[2].strip() for line in imported.splitlines()})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("x"), 2),
        (DataError("x"), 2),
        (InsufficientFunds("x"), 2),
        (ApiError("unknown_job", "x", 404), 2),
        (ApiError("ambiguous_job", "x", 409), 2),
        (ApiError("busy", "x", 429), 1),
        (ApiError("internal", "x", 500), 1),
        (BusError("x"), 1),
        (ConfigError("x"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_bad_input_is_2_and_a_failing_world_is_1(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_kernels_older_than_the_sources_are_to_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    # it said: unexpected AttributeError, report this
    from cyxcore.kernels import cpu

    def asks_for_new_kernel() -> None:
        cpu.kernel_of_tomorrow  # type: ignore[attr-defined]  # noqa: B018

    def imports_new_kernel() -> None:
        from cyxcore.kernels.cpu import kernel_of_tomorrow  # type: ignore[attr-defined]  # noqa: F401

    for meets in (asks_for_new_kernel, imports_new_kernel):
        with pytest.raises((AttributeError, ImportError)) as caught:
            meets()
        assert complain(caught.value, PlainScreen(io.StringIO()), as_json=False) == 1
        said = capsys.readouterr().err
        assert "kernel_of_tomorrow" in said and said.endswith("; build them: pip install -e .\n")


def test_no_network_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cyx: no network in") and error.count("\n") == 1


def test_an_error_is_a_json_line_too_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["jobs", "--dir", str(tmp_path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["data"]["code"]) == ("error", "bad_config")


def test_a_job_file_that_is_not_there_is_exit_code_2_before_a_network_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "none.toml"), "--dir", str(tmp_path)]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_an_amount_for_the_faucet_is_checked_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wallet", "--faucet", "1e3", "--dir", str(tmp_path)]) == 2
    assert "--faucet: expected a plain decimal number" in capsys.readouterr().err


def test_version_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0 and capsys.readouterr().out.startswith("cyx ")


# -- where a model goes ---------------------------------------------------------------------------------


def test_the_default_name_gives_way_to_a_model_that_is_there(tmp_path: Path) -> None:
    for name in ("digits.safetensors", "digits-2.safetensors"):
        (tmp_path / name).touch()
    assert model_files.output_path(None, "digits", folder=tmp_path) == tmp_path / "digits-3.safetensors"


def test_a_name_with_slashes_stays_in_the_folder(tmp_path: Path) -> None:
    path = model_files.output_path(None, "../../etc/x y", folder=tmp_path)
    assert path.parent == tmp_path and path.name == "-..-etc-x-y.safetensors"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("there.safetensors", "there is such a file already"),
        ("new.pt", "expected a name that ends in .safetensors or .cyxmodel or .onnx, got '.pt'"),
        ("none/new.safetensors", "there is no folder"),
        ("folder", "this is a folder"),
        (f"{'x' * 240}.onnx", r"…x+\.onnx: cannot be written \(File name too long\); choose another name"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_training(tmp_path: Path, wanted: str, said: str) -> None:
    (tmp_path / "there.safetensors").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SpecError, match=said):
        model_files.output_path(tmp_path / wanted, "x")


def test_a_folder_that_takes_no_file_is_refused_before_training() -> None:
    if not Path("/proc").is_dir():
        pytest.skip("no /proc, a folder that nobody can write to, not even root")
    with pytest.raises(SpecError, match=r"/proc/x\.onnx: cannot be written \(.+\); choose another name or folder"):
        model_files.output_path(Path("/proc/x.onnx"), "x")


def test_nothing_of_the_attempt_to_write_is_left(tmp_path: Path) -> None:
    model_files.output_path(tmp_path / "x.onnx", "x")
    assert not list(tmp_path.iterdir())


def test_force_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "there.safetensors").touch()
    path = tmp_path / "there.safetensors"
    assert model_files.output_path(path, "x", force=True) == path


# -- commands against a broker --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    running = Broker.start(tmp_path_factory.mktemp("broker"), Passwords.fresh(CENTRAL))
    with door_of(running.url("client")):
        yield running
    running.stop()


@pytest.fixture
async def central(shared_broker: Broker, tmp_path: Path) -> AsyncIterator[FakeCentral]:
    url = shared_broker.url
    roles = {f"{role}_url": url(role) for role in ("client", "node", "edge", "core")}
    write_network(tmp_path, NetworkFile(network_id="fake", monitor_url="", chain_url="", **roles))
    bus = await Bus.connect(url("edge"), name="fake-central")
    fake = FakeCentral(bus)
    await fake.serve()
    yield fake
    await bus.close()


class Run:
    """`cyx …` in a thread of its own, as a user would run it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self._folder = folder
        self._capsys = capsys

    async def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main, [*argv, "--dir", str(self._folder)])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def cyx(central: FakeCentral, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, capsys)


async def test_watch_ends_with_the_job_and_its_exit_code(central: FakeCentral, cyx: Run) -> None:
    central.updates[JOB], central.status[JOB] = updates(), "completed"
    code, out, _ = await cyx("watch", JOB)
    assert (code, out) == (0, f"{TRAIN_SCREEN}{JOB} is completed; fetch the model with: cyx get {JOB}\n")


async def test_watching_a_job_that_failed_is_exit_code_1(central: FakeCentral, cyx: Run) -> None:
    central.add_job(JOB)
    await central.end(JOB, "failed")
    code, out, _ = await cyx("watch", JOB)
    assert code == 1 and f"{JOB} is failed" in out


@pytest.mark.parametrize(
    ("status", "label"),
    [("paused", "last attempt"), ("leased", "attempt before"), ("failed", "error"), ("cancelled", "reason")],
)
async def test_why_an_attempt_ended_is_an_error_of_a_job_that_failed_only(
    central: FakeCentral, cyx: Run, status: m.JobStatus, label: str
) -> None:
    central.add_job(JOB)
    central.status[JOB] = status
    central.views[JOB] = replace(central.view(JOB), attempt=2, max_attempts=1, error="as it was told")
    _, out, _ = await cyx("job", JOB)
    assert re.search(rf"^{label} +as it was told$", out, re.MULTILINE)
    assert re.search(r"^attempt +2; at most 1 may fail$", out, re.MULTILINE)


async def test_an_unknown_job_is_one_line_and_exit_code_2(cyx: Run) -> None:
    code, out, err = await cyx("job", "nothing")
    assert (code, out, err) == (2, "", "cyx: 0 jobs start with nothing; see: cyx jobs\n")


async def test_an_ambiguous_prefix_is_exit_code_2(central: FakeCentral, cyx: Run) -> None:
    central.add_job("digits-a1")
    central.add_job("digits-a2")
    code, _, err = await cyx("cancel", "digits")
    assert code == 2 and "2 jobs start with digits" in err


async def test_several_jobs_are_cancelled_and_what_cannot_be_is_told(central: FakeCentral, cyx: Run) -> None:
    for job_id in (JOB, "other-1"):
        central.add_job(job_id)
    code, out, err = await cyx("cancel", JOB, "nothing", "other-1")
    assert (code, central.asked["job.cancel"]) == (2, 3)
    assert [line.split()[0] for line in out.splitlines()] == [JOB, "warning", "other-1"]
    assert "0 jobs start with nothing" in out and err == "cyx: 0 jobs start with nothing; see: cyx jobs\n"


async def test_what_is_left_of_a_run_is_cancelled(central: FakeCentral, cyx: Run) -> None:
    run = "0123456789"
    for job_id in (f"flow-b-{run}", f"flow-a-{run}", "flow-c-9876543210"):
        central.add_job(job_id)
    code, out, _ = await cyx("cancel", "--run", run)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, [f"flow-b-{run}", f"flow-a-{run}"])
    central.status |= {f"flow-b-{run}": "completed", f"flow-a-{run}": "cancelled"}
    code, out, _ = await cyx("cancel", "--run", run)
    assert (code, out) == (0, f"no job of run {run} is left\n")
    code, out, err = await cyx("cancel", "--run", "aaaaaaaaaa")
    assert (code, err) == (2, "cyx: no job of yours is of run aaaaaaaaaa; see: cyx jobs --mine\n")


async def test_jobs_are_a_table(central: FakeCentral, cyx: Run) -> None:
    central.add_job(JOB)
    code, out, _ = await cyx("jobs")
    header, row = out.splitlines()
    assert code == 0 and header.split() == ["job", "status", "node", "result", "amount", "submitted"]
    assert row.split()[:2] == [JOB, "queued"]


async def test_the_list_of_jobs_says_what_each_model_is_worth(central: FakeCentral, cyx: Run) -> None:
    await central.end(central.add_job(JOB))
    facts = {"total_time_ms": 5.0, "steps": 9, "best_epoch": 1, "delivered_epoch": 1, "train_rows": 8, "parameters": 4}
    summary = m.TrainingSummary(**facts, final_loss=0.5, validation_rows=2, validation_loss=0.25)
    scores = {"accuracy 98.0 %": {"validation_accuracy": 0.98}, "R² 0.5000": {"validation_r2": 0.5}, "loss 0.2500": {}}
    for told, score in scores.items():
        of_model = msgspec.structs.replace(summary, **score)
        central.views[JOB] = msgspec.structs.replace(central.view(JOB), summary=of_model)
        assert f"  {told}  " in (await cyx("jobs"))[1]


async def test_jobs_are_sorted_by_what_they_are_compared_by_the_best_first(central: FakeCentral, cyx: Run) -> None:
    facts = {"steps": 9, "best_epoch": 1, "delivered_epoch": 1, "train_rows": 8, "parameters": 4, "validation_rows": 2}
    of_jobs = {  # loss, validation loss, accuracy, ms
        "a-quick": (0.1, 0.4, 0.90, 1000.0),
        "b-good": (0.2, 0.3, 0.99, 3000.0),
        "c-without-validation": (0.35, None, None, 2000.0),
    }
    for name, (loss, validation_loss, accuracy, ms) in of_jobs.items():
        summary = m.TrainingSummary(**facts, total_time_ms=ms, final_loss=loss, validation_loss=validation_loss)
        summary.validation_accuracy = accuracy
        await central.end(central.add_job(name))
        central.views[name] = replace(central.view(name), summary=summary)
    central.add_job("d-waits")
    expected = {
        "accuracy": {"b-good": "accuracy 99.0 %", "a-quick": "accuracy 90.0 %"},
        "loss": {"b-good": "loss 0.3000", "c-without-validation": "loss 0.3500", "a-quick": "loss 0.4000"},
        "time": {"a-quick": "1.0 s", "c-without-validation": "2.0 s", "b-good": "3.0 s"},
    }
    for sort, best in expected.items():
        code, out, err = await cyx("jobs", "--sort", sort)
        assert (code, err) == (0, "")
        rows = out.splitlines()[1:]
        assert [row.split()[0] for row in rows[: len(best)]] == list(best) and len(rows) == 4
        assert all(told in row for told, row in zip(best.values(), rows, strict=False))
    _, out, _ = await cyx("jobs", "--sort", "loss", "--json")
    assert [job["job_id"] for job in json.loads(out)["jobs"]][:2] == ["b-good", "c-without-validation"]


async def test_jobs_are_listed_however_many_pages_that_takes(central: FakeCentral, cyx: Run) -> None:
    # it showed the first page, and advised to raise --limit, which changed nothing
    central.page_limit = 2  # a page ends where a message would be too large
    for number in range(5):
        central.add_job(f"digits-{number}")
    assert [(await cyx("jobs", *limit))[1].count("digits-") for limit in ((), ("--limit", "3"))] == [5, 3]
    _, out, err = await cyx("jobs", "--limit", "3")
    assert "2 older jobs; see them with --limit 5" in out + err
    assert "1 older job; see it with --limit 5" in "".join((await cyx("jobs", "--limit", "4"))[1:])
    _, out, _ = await cyx("jobs", "--limit", "2000", "--json")
    assert len(msgspec.json.decode(out, type=m.JobList).jobs) == 5
    central.same_ms = 2
    _, out, _ = await cyx("jobs", "--limit", "1", "--json")
    found = msgspec.json.decode(out, type=m.JobList)  # one object, though there are more
    assert (len(found.jobs), found.more) == (1, True)


@pytest.mark.parametrize("called", ["node-1", "node-1-0", "node-1-0123456789"])
async def test_the_jobs_of_a_node_are_found_by_what_it_is_called(called: str, central: FakeCentral, cyx: Run) -> None:
    # lists show its name, and with that there was "no such job"
    central.add_job(JOB)
    code, out, _ = await cyx("jobs", "--node", called)
    assert code == 0 and JOB in out


async def test_jobs_of_a_node_that_is_not_there_are_refused(cyx: Run) -> None:
    code, out, err = await cyx("jobs", "--node", "x")
    assert (code, out, err) == (2, "", "cyx: no node is called x; see: cyx nodes\n")


async def test_no_jobs_is_said(cyx: Run) -> None:
    assert (await cyx("jobs"))[1] == "no jobs yet; submit one: cyx submit FILE\n"


async def test_jobs_as_json_is_the_raw_reply(central: FakeCentral, cyx: Run) -> None:
    central.add_job(JOB)
    _, out, _ = await cyx("jobs", "--json")
    assert [view.job_id for view in msgspec.json.decode(out, type=m.JobList).jobs] == [JOB]


async def test_nodes_show_who_is_banned_and_until_when(cyx: Run, central: FakeCentral) -> None:
    central.node = replace(NODE, banned_until_ms=1_800_000_000_000, tier="banned")
    _, out, _ = await cyx("nodes")
    assert "banned until 2027-01-15" in out and "50.00 banned" in out


@pytest.mark.parametrize(("state", "shown"), [("draining", "draining"), ("drained", "drained"), ("busy", "online")])
async def test_nodes_show_who_takes_nothing_new(cyx: Run, central: FakeCentral, state: str, shown: str) -> None:
    central.node = replace(NODE, state=state)
    assert f"  {shown}  " in (await cyx("nodes"))[1]


async def test_nodes_show_who_is_gone(cyx: Run, central: FakeCentral) -> None:
    central.node = replace(NODE, online=False, state="offline")
    assert "  gone " in (await cyx("nodes"))[1]


async def test_nodes_show_their_hardware(cyx: Run) -> None:
    _, out, _ = await cyx("nodes")
    assert all(words in out for words in [NODE.node_id, "online", "2 cores", "8.0 GB", "3 done, 1 failed"])


async def test_the_ledger_answers_in_a_table(cyx: Run) -> None:
    _, out, _ = await cyx("ledger", "select 1")
    assert out.splitlines() == ["job_id  loss", "a       0.5", "b"]


async def test_a_job_is_given_another_priority(central: FakeCentral, cyx: Run) -> None:
    central.add_job(JOB)
    code, out, err = await cyx("priority", JOB, "9")
    assert (code, err) == (0, "")
    assert out.startswith(f"{JOB} has priority 9")


async def test_a_decision_is_explained_with_each_term(cyx: Run) -> None:
    _, out, _ = await cyx("explain", JOB)
    assert "queue" in out and "1.000 × 0.25" in out and "it waits for node-1" in out


async def test_why_a_job_failed_is_explained(central: FakeCentral, cyx: Run) -> None:
    central.explained = ExplainReply(job_id=JOB, status="failed", decisions=[], error="its escrow was refunded")
    _, out, _ = await cyx("explain", JOB)
    assert out == f"{JOB} is failed: its escrow was refunded\n"


async def test_the_wallet_shows_what_it_holds(central: FakeCentral, cyx: Run) -> None:
    central.balance_base_units = 2_500_000_000
    _, out, _ = await cyx("wallet")
    assert "2.5 CYX" in out and "0 SOL for fees" in out


async def test_a_network_without_a_faucet_says_so(cyx: Run) -> None:
    code, _, err = await cyx("wallet", "--faucet", "5")
    assert (code, err) == (2, "cyx: this network gives no test money\n")


async def test_getting_a_model_keeps_the_archive_when_asked(central: FakeCentral, cyx: Run, tmp_path: Path) -> None:
    central.add_job(JOB)
    view = central.view(JOB)
    view.model = central.store(b"an archive")
    central.views[JOB] = view
    out_path = tmp_path / "model.cyxmodel"
    code, out, _ = await cyx("get", JOB, "-o", str(out_path))
    assert (code, out_path.read_bytes()) == (0, b"an archive") and view.model.sha256 in out


async def test_a_job_without_a_model_is_exit_code_2(central: FakeCentral, cyx: Run) -> None:
    central.add_job(JOB)
    code, _, err = await cyx("get", JOB)
    assert code == 2 and "has no model" in err


async def test_a_command_that_is_interrupted_waits_for_no_answer(central: FakeCentral, tmp_path: Path) -> None:
    central.add_job(JOB)
    asked, over = asyncio.Event(), asyncio.Event()

    async def hold(job_id: str) -> None:
        asked.set()
        await over.wait()

    central.before_page = hold
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "cyxnet", "watch", JOB, "--dir", str(tmp_path)],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        await asked.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    over.set()
    assert (process.returncode, err.decode()) == (130, "cyx: stopped\n")
    assert out.decode() == f"goes on   {JOB} is not stopped by this; stop it with: cyx cancel {JOB}\n"


def test_no_stdout_at_all_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["version"]) == 0


def test_a_letter_that_the_terminal_lacks_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    open_screen(as_json=False, quiet=False, color=False, out=out).result("2 × 3", None)
    assert out.buffer.getvalue() == b"2 ? 3\n"  # type: ignore[attr-defined]


def test_ctrl_c_while_modules_are_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert (main(["version"]), capsys.readouterr().err) == (130, "cyx: stopped\n")


def test_a_network_of_checkers_alone_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "net"
    assert main(["up", "--dir", str(folder), "--nodes", "2", "--checkers", "2"]) == 1
    said = "expected fewer checkers than nodes (2), got 2: what checkers train themselves is not checked"
    assert said in capsys.readouterr().err and not folder.exists()


class SlowNetwork:
    """A network whose end takes a while: the part of LocalNetwork that `started` uses."""

    ended = False

    def __init__(self, folder: Path, **_: Any):
        self.may_end = asyncio.Event()

    async def __aenter__(self) -> "SlowNetwork":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.may_end.wait()
        SlowNetwork.ended = True


async def test_a_second_ctrl_c_does_not_leave_half_a_network_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cyxnet.local.LocalNetwork", SlowNetwork)
    networks: list[Any] = []

    async def use() -> None:
        async with started(tmp_path, PlainScreen(io.StringIO())) as network:
            networks.append(network)
            await asyncio.Event().wait()

    using = asyncio.create_task(use())
    while not networks:
        await asyncio.sleep(0)
    for _ in range(2):
        using.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    networks[0].may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert SlowNetwork.ended


def test_arguments_reach_their_command() -> None:
    args = parser().parse_args(["train", "a.toml", "-o", "b.safetensors", "--keep-up"])
    expected = argparse.Namespace(**vars(args) | {"file": Path("a.toml"), "output": Path("b.safetensors")})
    assert args == expected and args.keep_up and args.run == "train:train"


# -- later -----------------------------------------------------------------------------------------------


async def test_a_job_whose_submit_nobody_answers_is_kept_and_sent_later_under_its_id(
    central: FakeCentral, cyx: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[str] = []

    async def place(client: AsyncClient, prepared: Prepared, on_upload: object = None) -> m.SubmitReply:
        placed.append(prepared.job_id)
        if len(placed) == 1:
            raise BusError("no answer")
        return m.SubmitReply(job_id=prepared.job_id, status="funding", terms=prepared.quote.terms)

    monkeypatch.setattr(AsyncClient, "place", place)
    code, _, said = await cyx("submit", str(EXAMPLES / "diabetes.toml"))
    assert code == 1 and "is kept, not lost" in said
    code, listed, _ = await cyx("outbox")
    assert code == 0 and placed[0] in listed
    code, _, said = await cyx("outbox", "--forget", placed[0][:-1])  # what is dropped for good is named in full
    assert code == 2 and f"{placed[0][:-1]} waits" in said and (await cyx("outbox"))[1].count(placed[0]) == 1
    code, sent, _ = await cyx("outbox", "--send")
    assert code == 0 and f"{placed[0]} is submitted" in sent
    assert placed == [placed[0]] * 2
    code, name, _ = await cyx("submit", str(EXAMPLES / "diabetes.toml"), "--quiet")
    assert (code, name) == (0, f"{placed[2]}\n")
    assert "no job waits" in (await cyx("outbox"))[1]


async def test_a_kept_job_is_charged_no_more_than_its_quote_said_and_one_whose_price_expired_is_not_kept(
    central: FakeCentral, cyx: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    errors: list[Exception] = [BusError("no answer"), ApiError("price_expired", "the price expired 9 s ago", 503)]
    prices: list[m.Price | None] = []

    async def place(client: AsyncClient, prepared: Prepared, on_upload: object = None) -> m.SubmitReply:
        prices.append(prepared.price)
        if len(prices) <= len(errors):
            raise errors[len(prices) - 1]
        return m.SubmitReply(job_id=prepared.job_id, status="funding", terms=prepared.quote.terms)

    price = m.Price(job_sha256="0" * 64, client="1" * 32, max_base_units=7, expires_ms=1, signature="0" * 128)
    (tmp_path / "price").write_bytes(msgspec.json.encode(price))
    monkeypatch.setattr(AsyncClient, "place", place)
    submit = ("submit", str(EXAMPLES / "diabetes.toml"), "--quote", str(tmp_path / "price"))
    assert "is kept, not lost" in (await cyx(*submit))[2]
    code, _, said = await cyx("outbox", "--send")
    assert code and "the price expired" in said and len(outbox.waiting(tmp_path)) == 1
    assert (await cyx("outbox", "--send"))[0] == 0
    assert prices == [price] * 3
    errors[:] = [ApiError("price_expired", "the price expired 9 s ago", 503)] * 4
    code, _, said = await cyx(*submit)
    assert code and "the price expired 9 s ago" in said and "kept" not in said
    assert outbox.waiting(tmp_path) == []


async def test_a_job_that_may_be_taken_though_its_price_is_over_is_the_same_one_with_another_quote(
    central: FakeCentral, cyx: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    over = ApiError("price_expired", "the price expired 9 s ago", 503)
    deposit = m.SignedTransaction(transaction=b"-", signature="1" * 64, last_valid_block_height=9)
    signed = m.Payment(client="1" * 32, deposit=deposit)
    placed: list[tuple[str, m.Price | None, m.Payment | None]] = []

    async def place(client: AsyncClient, prepared: Prepared, on_upload: object = None) -> m.SubmitReply:
        placed.append((prepared.job_id, prepared.price, prepared.payment))
        if len(placed) == 1:
            prepared.payment, prepared.unanswered = signed, 1
            raise over
        return m.SubmitReply(job_id=prepared.job_id, status="funding", terms=prepared.quote.terms)

    async def is_dead(client: AsyncClient, payment: m.Payment) -> bool:
        return False

    monkeypatch.setattr(AsyncClient, "place", place)
    monkeypatch.setattr(AsyncClient, "_is_dead", is_dead)
    prices = [m.Price(job_sha256="0" * 64, client="1" * 32, max_base_units=7, expires_ms=n, signature="0" * 128)
              for n in (1, 2)]  # fmt: skip
    for price in prices:
        (tmp_path / "price").write_bytes(msgspec.json.encode(price))
        _, told, _ = await cyx("submit", str(EXAMPLES / "diabetes.toml"), "--quote", str(tmp_path / "price"))
    assert "this job waits there as" in told
    job_id = placed[0][0]
    assert placed == [(job_id, prices[0], None), (job_id, prices[1], signed)]
    assert outbox.waiting(tmp_path) == []


@pytest.mark.parametrize("ends, then", [("silence", "--send"), ("silence", "--forget"), ("Ctrl-C", "--send")])
async def test_fetched_data_stays_as_long_as_its_job_waits_and_no_longer(
    central: FakeCentral, cyx: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, then: str
) -> None:
    answers = [False, True, True]

    async def place(client: AsyncClient, prepared: Prepared, on_upload: object = None) -> m.SubmitReply:
        assert prepared.data_path.exists()
        if not answers.pop(0):
            if ends == "silence":
                raise BusError("no answer")
            prepared.unanswered += 1
            raise asyncio.CancelledError
        return m.SubmitReply(job_id=prepared.job_id, status="funding", terms=prepared.quote.terms)

    def fetched(url: str, folder: Path) -> Path:
        return Path(shutil.copy(EXAMPLES / "diabetes.csv", folder))

    job = tmp_path / "job.toml"
    source = (EXAMPLES / "diabetes.toml").read_text()
    assert 'path = "diabetes.csv"' in source
    job.write_text(source.replace('path = "diabetes.csv"', 'path = "https://data.test/diabetes.csv"'))
    monkeypatch.setenv("CYX_REMOTE_DATA", "https")
    monkeypatch.setattr("cyxnet.fetch.fetch", fetched)
    monkeypatch.setattr(AsyncClient, "place", place)
    folders = tmp_path / "packed"
    code, told, _ = await cyx("submit", str(job))
    assert len(list(folders.iterdir())) == 1
    [kept] = outbox.waiting(tmp_path)
    stopped = f"{kept.job_id} may have been taken: it was offered, and not answered yet. It is kept: cyx outbox --send"
    assert (code, stopped in told) == ((1, False) if ends == "silence" else (130, True))
    assert (await cyx("outbox", then, *([kept.job_id] if then == "--forget" else [])))[0] == 0
    assert list(folders.iterdir()) == []
    assert (await cyx("submit", str(job)))[0] == 0
    assert list(folders.iterdir()) == []


async def test_a_kept_job_that_central_has_already_is_not_sent_again(
    central: FakeCentral, cyx: Run, tmp_path: Path
) -> None:
    central.updates[JOB], central.status[JOB] = updates(), "completed"
    request = m.JobRequest(
        name="digits",
        model=ModelSpec(input=[4], layers=[{"kind": "ReLU"}]),
        dataset=m.ArtifactRef(sha256="a" * 64, size=1),
        amount_base_units=1,
    )
    kept = outbox.Kept(job_id="digits-0123456789", job=request, data_path="/gone", kept_at_ms=1, reason="no answer")
    outbox.keep(tmp_path, kept)
    central.status[JOB] = "failed"  # its deposit came too late: "is submitted" was said, and nothing ran
    code, _, said = await cyx("outbox", "--send")
    assert code and "had reached the network and failed" in said and len(outbox.waiting(tmp_path)) == 1
    central.status[JOB] = "completed"
    assert (await cyx("outbox", "--send"))[0] == 0
    assert outbox.waiting(tmp_path) == []


async def test_a_job_is_kept_while_no_broker_answers_quoted_and_paid_when_one_does_and_never_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords, folder = Passwords.fresh(CENTRAL), tmp_path / "broker"
    stopped = Broker.start(folder, passwords)
    roles = {f"{role}_url": stopped.url(role) for role in ("client", "node", "edge", "core")}
    write_network(tmp_path, NetworkFile(network_id="fake", monitor_url="", chain_url="", **roles))
    stopped.stop()
    monkeypatch.setattr("cyxnet.cli.submitting.RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("cyxnet.bus.FIRST_ERROR_GRACE_S", 0.05)
    cyx, job = Run(tmp_path, capsys), str(EXAMPLES / "diabetes.toml")
    code, _, said = await cyx("submit", job)
    assert code == 1 and said.count("trying again in 0 s") == 2 and "is kept, not lost" in said
    [kept] = outbox.waiting(tmp_path)
    assert kept.price is None and kept.job.amount_base_units == 1_000_000_000
    code, listed, _ = await cyx("outbox")
    assert code == 0 and kept.job_id in listed and "no Cyx broker answers" in listed
    code, out, _ = await cyx("submit", job)  # that very job
    assert code == 1 and kept.job_id in out
    assert [each.job_id for each in outbox.waiting(tmp_path)] == [kept.job_id]
    assert (await cyx("outbox", "--send"))[0] == 1 and len(outbox.waiting(tmp_path)) == 1

    again = Broker.start(folder, passwords, stopped.port)
    try:
        with door_of(again.url("client")):
            bus = await Bus.connect(again.url("edge"), name="fake-central")
            fake = FakeCentral(bus)
            fake.balance_base_units, fake.lamports, fake.blockhash = 10**10, 10**9, ("1" * 32, 900)
            await fake.serve()
            code, out, _ = await cyx("outbox", "--send")
            assert code == 0 and f"{kept.job_id} is submitted" in out and "quote" in out
            assert list(fake.submitted) == [kept.job_id]
            assert fake.submitted[kept.job_id].job == kept.job and fake.submitted[kept.job_id].payment
            assert outbox.waiting(tmp_path) == []
            await bus.close()
    finally:
        again.stop()


async def test_a_job_that_waits_in_the_outbox_is_the_one_that_is_submitted_again(
    central: FakeCentral, cyx: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    central.balance_base_units, central.lamports, central.blockhash = 10**10, 10**9, ("1" * 32, 900)
    quote, silent = AsyncClient.quote, [True]

    async def ask(client: AsyncClient, job: m.JobRequest, job_id: str | None = None) -> m.Quote:
        if silent:
            raise BusError(f"no answer {silent.pop()}")
        return await quote(client, job, job_id)

    monkeypatch.setattr(AsyncClient, "quote", ask)
    assert (await cyx("submit", str(EXAMPLES / "diabetes.toml")))[0] == 1
    [kept] = outbox.waiting(tmp_path)
    assert (await cyx("submit", str(EXAMPLES / "digits.toml")))[0] == 0
    assert len(central.submitted) == 1 and kept.job_id not in central.submitted
    assert (await cyx("submit", str(EXAMPLES / "diabetes.toml")))[0] == 0
    assert kept.job_id in central.submitted and len(central.submitted) == 2
    assert outbox.waiting(tmp_path) == []
    damaged = tmp_path / outbox.FOLDER / "another.json"
    damaged.write_text("{")
    # one file there stopped every submit
    code, out, _ = await cyx("submit", str(EXAMPLES / "digits.toml"), "--node", "node-1")
    assert code == 0 and len(central.submitted) == 3 and str(damaged) in out
    assert [each.job.needs.node_id for each in central.submitted.values()] == ["", "", NODE.node_id]


async def test_a_kept_job_that_is_refused_stays_and_holds_up_no_other(
    central: FakeCentral, cyx: Run, tmp_path: Path
) -> None:
    central.balance_base_units, central.lamports, central.blockhash = 10**10, 10**9, ("1" * 32, 900)
    data = EXAMPLES / "diabetes.csv"
    request = jobfile.load(EXAMPLES / "diabetes.toml").request(
        m.ArtifactRef(sha256=describe(data).sha256, size=data.stat().st_size)
    )
    for number, path in enumerate([f"{data}.gone", str(data)]):
        job_id = f"diabetes-{number:010}"
        kept = outbox.Kept(job_id=job_id, job=request, data_path=path, kept_at_ms=number, reason="no answer")
        outbox.keep(tmp_path, kept)
    code, out, said = await cyx("outbox", "--send")
    assert code == 2 and "diabetes-0000000000 is not submitted and stays here" in out and "is gone; bring it" in said
    assert list(central.submitted) == ["diabetes-0000000001"]
    assert [each.job_id for each in outbox.waiting(tmp_path)] == ["diabetes-0000000000"]


def test_a_damaged_outbox_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    (tmp_path / "outbox" / "x.json").write_text("{")
    with pytest.raises(ConfigError, match="x.json"):
        outbox.waiting(tmp_path)
