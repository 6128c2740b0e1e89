"""`python -m cyxnode` as an operator starts it: a real process, real training, a real broker."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import cyxcore
from cyxcentral.admission import Refused
from cyxcore.spec import TrainingSpec
from cyxnet import identity, tls
from cyxnet.broker import Broker
from cyxnet.config import ConfigError
from cyxnet.messages import completion_bytes
from cyxnode.__main__ import main, offered, parse_bytes, parse_price, read_ca, say_ready
from cyxnode.errors import NodeError
from cyxnode.home import open_home
from tests.node import fake_nvml
from tests.node.fake_central import PLATFORM, FakeCentral, make_assign

WAIT_S = 60.0
Start = Callable[..., Any]


@pytest.fixture
async def run_node(network: Path) -> AsyncIterator[Start]:
    """run_node(*options) starts `python -m cyxnode`; what still runs at the end is killed."""
    started: list[asyncio.subprocess.Process] = []

    async def start(*options: str, python: tuple[str, ...] = ()) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *python, "-m", "cyxnode", "--dir", str(network), *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ready_line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    line = await asyncio.wait_for(process.stdout.readline(), WAIT_S)
    return json.loads(line)


async def test_a_node_says_ready_takes_a_job_delivers_and_says_goodbye(
    central: FakeCentral, run_node: Start, tmp_path: Path
) -> None:
    process = await run_node("--name", "desk", "--memory", "2GB", "--region", "here")
    said = await ready_line(process)
    assert (said["ready"], said["name"]) == (True, "desk") and said["node_id"].startswith("desk-")
    register = await central.wait_for("register")
    assert (register.region, register.hardware.memory_bytes) == ("here", 2_000_000_000)

    table = "a,b,label\n" + "".join(f"{a},{b},{int(a > b)}\n" for a in range(8) for b in range(8))
    assign = make_assign(register, central.store.add(table.encode()))
    assert (await central.command(register.node_id, assign)).accepted
    done = await central.wait_for("completed")
    assert identity.verify(register.public_key, completion_bytes(done), done.signature)
    (tmp_path / "m.cyxmodel").write_bytes(central.store.read(done.model.sha256))
    assert cyxcore.load_model(tmp_path / "m.cyxmodel").graph.sha256 == done.graph_sha256
    assert (await central.wait_for("hardware")).ram_total_bytes > 0

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert (await central.wait_for("goodbye")).session == register.session
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
    assert [child for child in children if child.is_running()] == []


async def test_a_node_that_gets_sigterm_stores_its_run_before_it_ends(central: FakeCentral, run_node: Start) -> None:
    process = await run_node()
    await ready_line(process)
    register = await central.wait_for("register")
    table = "a,b,label\n" + "".join(f"{a},{b},{int(a > b)}\n" for a in range(8) for b in range(8))
    assign = make_assign(register, central.store.add(table.encode()), training=TrainingSpec(epochs=100_000))
    assert (await central.command(register.node_id, assign)).accepted
    await central.wait_for("started")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
    reports = [verb for verb, _ in central.heard if verb in ("checkpoint", "failed", "goodbye")]
    assert reports == ["checkpoint", "failed", "goodbye"]
    assert (await central.wait_for("failed")).code == "node_stopped"


async def test_a_second_node_of_the_same_name_is_refused_in_one_line(central: FakeCentral, run_node: Start) -> None:
    first = await run_node("--name", "desk")
    await ready_line(first)
    second = await run_node("--name", "desk")
    _, errors = await asyncio.wait_for(second.communicate(), WAIT_S)
    assert second.returncode == 1
    assert errors.decode().splitlines() == [
        f"cyxnode: error: a node named 'desk' runs already (process {first.pid}); "
        "choose another --name, or leave it out to take a free one"
    ]


async def test_who_starts_a_node_that_is_not_let_in_is_told_where_to_ask_why(
    central: FakeCentral, run_node: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.doorkeeper.decide", lambda *_, **__: Refused(reason="banned"))
    process = await run_node("--name", "desk")
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 1
    said = errors.decode().splitlines()[-1]
    assert "it is banned, has too many connections, or " in said
    assert said.endswith("; which, and until when: python -m cyxnode why --name desk")


async def test_a_node_killed_outright_leaves_no_training_process(central: FakeCentral, run_node: Start) -> None:
    process = await run_node()
    await ready_line(process)
    children = psutil.Process(process.pid).children()
    assert children
    process.kill()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, children, WAIT_S)
    assert alive == []


async def test_a_guarded_node_ends_when_its_stdin_does(central: FakeCentral, run_node: Start) -> None:
    process = await run_node("--guard-stdin")
    await ready_line(process)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0
    assert central.count("goodbye") == 1


async def test_a_signal_while_the_node_is_still_starting_ends_it_in_order(run_node: Start) -> None:
    process = await run_node()  # no central answers: it is never ready
    async for line in process.stderr:
        if b"warm in" in line:
            break
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), WAIT_S) == 0


@pytest.mark.parametrize("module", ["cyxcore.errors", "cyxnet.messages", "asyncio"])
async def test_ctrl_c_while_modules_are_read_shows_no_traceback(run_node: Start, module: str) -> None:
    process = await run_node(python=("-X", "importtime"))
    async for line in process.stderr:
        if line.split()[-1:] == [module.encode()]:
            break
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert b"Traceback" not in errors and process.returncode in (-signal.SIGINT, 0)


async def test_without_a_broker_the_error_is_one_line_and_status_1(run_node: Start) -> None:
    process = await run_node("--url", "nats://user:hidden@127.0.0.1:1")
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    lines = errors.decode().splitlines()
    assert process.returncode == 1 and len(lines) == 1
    assert "no Cyx broker answers at 127.0.0.1:1" in lines[0] and "hidden" not in lines[0]


async def test_with_only_an_address_a_platform_key_says_which_central_is_believed(
    central: FakeCentral, broker: Broker, run_node: Start
) -> None:
    stranger = identity.Identity(b"s" * 32).public_key
    process = await run_node("--url", broker.url("node"), "--platform-key", stranger)
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert f"expected the platform key {stranger}, got {PLATFORM.public_key}" in errors.decode()
    assert process.returncode == 1
    process = await run_node("--url", broker.url("node"), "--platform-key", PLATFORM.public_key)
    assert (await ready_line(process))["ready"]


def test_without_a_network_folder_the_error_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dir", str(tmp_path / "none")]) == 1
    assert "start one with `cyx up`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--memory", "lots"],
        ["--memory", "1KB"],
        ["--max-runs", "0"],
        ["--gpu-policy", "fastest"],
        ["--price-per-hour", "-1"],
        ["--name", "///"],
        ["--nice", "40"],
        ["--platform-key", "abc"],
        ["--platform-key", "0" * 64],
        ["--unknown"],
    ],
)
def test_a_wrong_option_is_one_line_and_a_usage_error(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "error:" in line


def test_on_a_terminal_the_ready_line_is_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    home = open_home(tmp_path, "desk")
    say_ready(False, home, begun_s=0.0)
    assert capsys.readouterr().out.startswith(f"desk is ready as {home.node_id} after")
    home.close()


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "python -m cyxnode --name desk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("512 MiB", 2**29), ("1.5g", 15 * 10**8), ("100000", 100000)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_a_price_is_in_cyx_and_may_be_nothing() -> None:
    assert (parse_price("0"), parse_price("0.5")) == (0, 500_000_000)


def test_an_authority_is_a_certificate_and_an_empty_file_is_not_every_other_one(tmp_path: Path) -> None:
    ours = tls.make(tmp_path / "tls")
    assert read_ca(None) == "" and read_ca(ours.ca) == ours.ca.read_text()
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "empty", tmp_path / "bytes", ours.key):
        with pytest.raises(ConfigError, match=f"--ca {path}: expected a certificate in PEM"):
            read_ca(path)
    for path, why in {tmp_path: "Is a directory", tmp_path / "none": "No such file or directory"}.items():
        with pytest.raises(ConfigError, match=f"--ca {path}: cannot be read: {why}"):
            read_ca(path)


@pytest.mark.parametrize(
    ("option", "variable", "wanted"),
    [(None, None, [0, 1]), (None, "1", [1]), (None, "", []), ("0", "1", [0]), ("none", None, [])],
)
def test_gpus_are_those_of_the_option_then_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, option: str | None, variable: str | None, wanted: list[int]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module([0, 0]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert [device.index for device in offered(option)] == wanted


def test_without_a_driver_the_variable_means_nothing_and_the_option_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.module([]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert offered(None) == ()
    with pytest.raises(NodeError, match="which has none"):
        offered("0")
