"""`python -m benchmarks`: what it runs, what it says when something fails, and what it draws. Nothing is timed."""

import asyncio
import errno
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import (
    bench_bits,
    bench_eager,
    bench_functions,
    bench_kernels,
    bench_rebuild,
    bench_serve,
    bench_submissions,
    bench_train,
    charts,
    figures,
    tables,
    threads,
)
from benchmarks.jax_steps import Steps, burst
from cyxcore.errors import CyxError
from cyxcore.kernels import cpu

RESULTS = Path(benchmarks.__file__).parent / "results"
SAVES = "import sys; open(sys.argv[-1] + '.json', 'w').write({!r})"
TIMES = {"p50_ms": 1.5, "p99_ms": 90.0}
TRAINED = {
    "ms": {"torch eager": 215.4, "cyx": 107.7, "jax jit": 300.0},
    "plan_s": 0.2,
    "loss_error": {"torch eager": 7e-8, "cyx": 6e-8, "jax jit": 1.7e-7},
    "parameter_error": {"torch eager": 1e-6, "cyx": 9.8e-7},
}
ABOUT = {
    "date": "2026-11-29 20:00 UTC",
    "command": "python -m benchmarks.bench_train",
    "commit": "42c6bb7f",
    "machine": "AMD EPYC",
    "cores": 2,
    "memory_gb": 24,
    "system": "Linux 6.18",
    "load_before": 0.1,
    "python": "3.11.7",
    "packages": {"numpy": "2.4.6", "jax": "0.10.2"},
}
FIGURES = {  # of the others, the last figures are in benchmarks/results
    "attention": {
        "threads": {
            "1": {
                "1 x 4 x 2048 x 64, causal": {
                    "ms": {"cyx": [27.24, 64.3], "torch": [32.8, 186.6]},
                    "peak_mib": {"cyx": 20.4, "torch": 8.0},
                    "times": 1.2,
                }
            }
        }
    },
    "bits": {"steps": 20, "bits": {"mlp": {"4d1e35e584c5228f": ["gcc, avx2", "gcc, portable"], "0a": ["clang, avx2"]}}},
    "eager": {"ns": {"x + y": {"cyx": 220.0, "torch": 2264.0}, "x.exp()": {"cyx": 291.0}}, "error": {}},
    "failover": {"kills": [{"what": "node", "p50_s": 1.0, "p99_s": 2.0, "target_s": None, "lost": 0}]},
    "flood": {"none": {"p50 ms": 1.0, "flood /s": 0.0}, "metrics": {"p50 ms": 2.0, "flood /s": 16250.0}},
    "functions": {
        "threads": {
            "1": {
                "memory": {"read_gb_s": 88.0, "copied_gb_s": 44.0},
                "us": {"exp": {"cyx": 166.0, "torch": 830.0, "numpy": 450.0}, "exp, and back": {"cyx": 547.0}},
                "error": {"exp": {"cyx": 3.1e-8, "torch": 2.8e-8, "numpy": 5e-8}, "exp, and back": {}},
                "ulp": {"exp": {"cyx": 0.88, "torch": 0.56, "numpy": 2.3}},
                "share": {"exp": 0.514, "exp, and back": 0.37},
                "met": ["exp"],
            }
        }
    },
    "kernels": {
        "threads": {
            "2": {
                "us": {"add 1M": {"cyx": 600.0, "numpy": 700.0}, "matmul 64": {"cyx": 5.0, "torch": 7.25}},
                "error": {"add 1M": {"cyx": 0.0, "numpy": 3e-8}, "matmul 64": {"cyx": 1.2e-7}},
                "gflop_s": {"matmul 64": 104.9},
            }
        }
    },
    "llm": {"tokens_per_s": [{"weights": "Q8_0", "threads": 1, "part": "decode", "cyx": 9.0}]},
    "log": {"one alone": {"per_s": 900.0, "cpu_us": 80.0} | TIMES, "js.publish": {"per_s": 700.0}},
    "rebuild": {"events": 20_000, "alone_s": 0.6, "alone_cpu_s": 0.1, "same_content_hash": True},
    "schedule": {"rows": [{"nodes": 100, "jobs": 1000, "slot": TIMES, "arrival": TIMES, "scan": TIMES}]},
    "startup": {"MLP": {"cyx": {"plan": TIMES}, "target_ms": 6.0, "torch eager": {"plan": TIMES}}, "import": TIMES},
    "submissions": {"the broker alone": {"one at a time /s": 129.6}},
    "submit": {"total": {"p50_ms": 40.0, "max_ms": 60.0}},
    "train": {"threads": {"1": {"cnn": TRAINED}}},
}


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
    return benchmarks.main()


def writes(figures):
    return [sys.executable, "-c", SAVES.format(json.dumps(figures))]


def test_the_list_says_of_every_program_what_it_measures(monkeypatch, capsys):
    assert run(monkeypatch, "--list") == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    files = {path.stem.removeprefix("bench_") for path in Path(benchmarks.__file__).parent.glob("bench_*.py")}
    assert said.keys() == files | {"gpu"} == charts.CHARTS.keys()
    assert all(len(what) > 20 for what in said.values())


@pytest.mark.parametrize("name", sorted(benchmarks.programs()))
def test_every_program_can_be_quick_and_save_what_it_found(name):
    source = benchmarks.programs()[name].read_text()
    assert '"--quick"' in source and "add_save(parser" in source and "save(" in source
    assert benchmarks.command(benchmarks.programs()[name], quick=True)[-1] == "--quick"


@pytest.mark.parametrize(
    "only, said",
    [
        (["lgo"], "--only: there is no benchmark 'lgo'; did you mean log? They are attention, bits,"),
        (["log", "bench_train"], "there is no benchmark 'bench_train'; did you mean train?"),
        (["log,ü"], "there is no benchmark 'ü'; They are attention, bits,"),
    ],
)
def test_a_name_that_is_none_is_one_error_before_anything_runs(monkeypatch, capsys, only, said):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *(word for name in only for word in ("--only", name)))
    found = capsys.readouterr()
    assert said in found.err and "==" not in found.out


def test_names_may_be_given_one_by_one_or_with_commas_and_each_is_run_once():
    known = ["control", "log", "train"]
    assert benchmarks.chosen(["train", "log, train", ""], known) == ["train", "log"]
    assert benchmarks.chosen([], known) == known


def test_what_fails_does_not_stop_the_others_and_is_named_at_the_end(tmp_path, capfd):
    (tmp_path / "flood.json").write_text("{}")  # of another run
    commands = {
        "flood": [sys.executable, "-c", "print('so far'); raise SystemExit(3)"],
        "log": writes([]),
        "submit": writes(FIGURES["submit"]),
        "gpu": [sys.executable, "-c", ""],
    }
    assert benchmarks.measure_all(commands, tmp_path, plots=True) == 1
    said = capfd.readouterr().out.splitlines()
    ends = {line.split()[0]: line for line in said[said.index(f"== 4 benchmarks, into {tmp_path} ==") + 1 :]}
    assert "FAILED: ended with status 3" in ends["flood"] and "so far" in said
    assert "FAILED: its figures cannot be drawn" in ends["log"]
    assert "wrote submit.json, submit.svg" in ends["submit"]
    assert "measured nothing" in ends["gpu"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.json", "submit.json", "submit.svg"]


def test_all_went_well_is_status_0(tmp_path):
    assert benchmarks.measure_all({"submit": writes(FIGURES["submit"])}, tmp_path / "new", plots=False) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["submit.json"]


def test_without_matplotlib_it_says_so_before_it_measures(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--only", "log", "--save", str(tmp_path))
    assert "pip install 'cyx[plot]', or give --no-plots" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder_for_results(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--only", "log", "--save", str(tmp_path / "file"))
    assert "expected a folder" in capsys.readouterr().err


def test_every_json_says_where_when_and_with_what_it_was_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench_log", "--quick"])
    figures.save(tmp_path / "log", {"js.publish": TIMES, "environment": {"card": "H200"}}, jax="0.10.2")
    found = json.loads((tmp_path / "log.json").read_text())
    about = found.pop("environment")
    assert found == {"js.publish": TIMES}
    assert about["machine"] and about["cores"] == os.cpu_count() and about["memory_gb"] > 0 and about["card"] == "H200"
    assert about["command"].endswith("--quick") and about["date"].startswith("20") and about["commit"]
    assert about["python"] == platform.python_version()
    assert about["packages"]["numpy"] == np.__version__ and about["packages"]["jax"] == "0.10.2"
    assert any(name.endswith("(NumPy)") for name in about["packages"])  # its BLAS


def test_a_commit_is_marked_where_sources_differ_from_it_not_where_results_do(monkeypatch, tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(figures, "ROOT", tmp_path)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "log.json").write_text("{}")
    (tmp_path / "setup.py").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all of it")
    (results / "log.json").unlink()
    clean = figures.commit()
    (tmp_path / "setup.py").write_text("1")
    assert len(clean) == 8 and figures.commit() == f"{clean}+"


@pytest.mark.parametrize("name", sorted(charts.CHARTS))
def test_the_figures_of_each_are_drawn_the_same_each_time(name, tmp_path):
    found = FIGURES[name] if name in FIGURES else json.loads((RESULTS / f"{name}.json").read_text())
    drawn = list(charts.CHARTS[name](found))
    assert drawn and all(chart.labels for chart in drawn)
    for path in (tmp_path / "one.svg", tmp_path / "two.svg"):
        charts.draw(name, {**found, "environment": {"date": "2026-11-29", "cores": 2}}, path)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    words = "".join(xml.parse(tmp_path / "one.svg").getroot().itertext())
    assert all(chart.title in words and chart.labels[0] in words for chart in drawn)


def dies_at_start(pipe):
    sys.exit(7)


def dies_when_asked(pipe):
    pipe.recv()
    sys.exit(8)


@pytest.mark.parametrize("work, code", [(dies_at_start, 7), (dies_when_asked, 8)])
async def test_a_load_generator_that_is_gone_is_an_error_and_not_waited_for(work, code):
    with pytest.raises(CyxError, match=f"load generator ended with exit code {code} before it answered"):
        await asyncio.wait_for(bench_submissions.Generator(work).ask("go"), 60)


def test_serving_without_the_loop_of_who_asks_is_one_error_before_anything_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_serve", "--quick"])
    monkeypatch.setattr(bench_serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        bench_serve.main()
    assert "the package uvloop is missing; pip install 'cyx[fast]'" in capsys.readouterr().err


@pytest.mark.parametrize("events", [-1, 5, bench_rebuild.FEWEST - 1])
def test_too_few_events_are_refused_by_what_rebuilds_a_ledger(monkeypatch, capsys, events):
    monkeypatch.setattr(sys, "argv", ["bench_rebuild", f"--events={events}"])
    with pytest.raises(SystemExit, match="2"):
        bench_rebuild.main()
    assert f"--events: expected 900 or more (100 nodes register, a job has 8 events), got {events}" in (
        capsys.readouterr().err
    )


def test_steps_in_jax_need_an_interpreter_that_has_it(tmp_path: Path) -> None:
    batch = np.zeros((4, 64), np.float32), np.zeros(4, np.int64)
    with pytest.raises(SystemExit, match="--jax: /none/python cannot be run: No such file"):
        Steps("/none/python", "mlp_small", {}, batch, 1)
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c 'import jax'\n")  # without the packages
    other.chmod(0o755)
    with pytest.raises(SystemExit, match="python ended with status 1; does it have JAX"):
        Steps(str(other), "mlp_small", {}, batch, 1)


def rows_of(name):
    lines = tables.page(name, {**FIGURES[name], "environment": ABOUT}).splitlines()
    return [line for line in lines if line.startswith("|")]


def test_a_page_of_tables_says_in_its_head_what_measured_it():
    head = tables.page("train", {**FIGURES["train"], "environment": ABOUT}).splitlines()[2]
    assert head == (
        "`python -m benchmarks.bench_train`, 2026-11-29 20:00 UTC, commit 42c6bb7f: AMD EPYC, 2 cores, 24 GB,"
        " Linux 6.18, load 0.1 before; Python 3.11.7, NumPy 2.4.6, jax 0.10.2."
    )


def test_behind_each_time_of_a_table_stands_its_error_and_a_missing_one_is_left_out():
    assert rows_of("train")[-1] == "| cnn | 215 (1e-06) | 300 | 108 (1e-06) | 2.00 | 2e-07 |"
    assert "Geometric mean 2.00 × the fastest" in tables.page("train", FIGURES["train"] | {"environment": ABOUT})
    assert rows_of("kernels")[-2:] == [
        "| add 1M | 600 (0) | 700 (3e-08) | – | 1.17 |  |",
        "| matmul 64 | 5 (1e-07) | – | 7.25 | 1.45 | 104.9 |",
    ]
    assert rows_of("functions")[-2:] == [
        "| exp | 166 (3e-08) | 830 (3e-08) | 450 (5e-08) | 2.71 | 51% | met | 0.88, 0.56, 2.3 |",
        "| exp, and back | 547 | – | – |  | 37% |  |  |",
    ]
    row = "| 1 × 4 × 2048 × 64, causal | 27.2 (32.8) | 64.3 (187) | 20 (8) | 1.20 |"
    assert rows_of("attention")[-1] == row
    assert rows_of("eager")[-1] == "| `x.exp()` | 291 | – |  |"


def test_a_digest_that_differs_stands_in_the_row_of_its_compiler():
    assert rows_of("bits")[2:] == [
        "| clang | mlp | 1 | 0a: 1 |",
        "| gcc | mlp | 2 | 4d1e35e584c5228f: 2 |",
    ]


def test_a_run_writes_the_tables_beside_the_figures(tmp_path):
    found = FIGURES["kernels"] | {"environment": ABOUT}
    assert benchmarks.measure_all({"kernels": writes(found)}, tmp_path, plots=False) == 0
    assert (tmp_path / "kernels.md").read_text() == tables.page("kernels", found)


@pytest.mark.parametrize("path", sorted((RESULTS / "tables").glob("*.json")), ids=lambda path: path.stem)
def test_a_published_page_is_that_of_its_figures(path):
    assert path.with_suffix(".md").read_text() == tables.page(path.stem, json.loads(path.read_bytes()))


@pytest.mark.parametrize("module", [bench_functions, bench_kernels])
def test_threads_are_counted_one_after_the_other_and_put_together(module, monkeypatch, tmp_path):
    """Each number of them is a process of its own, whose OpenBLAS gets as many."""

    def run(command, env):
        count = command[command.index("--threads", len(command) - 4) + 1]
        assert env["OPENBLAS_NUM_THREADS"] == count and command[:4] == [*command[:3], "--quick"]
        figures.save(Path(command[-1]), {"isa": "avx2", "threads": {count: {"us": {}}}}, torch="2.9")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(threads.subprocess, "run", run)
    monkeypatch.setattr(figures, "commit", lambda: "42c6bb7f")
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--save", str(tmp_path / "both")])
    assert module.main() == 0
    found = json.loads((tmp_path / "both.json").read_text())
    about = found.pop("environment")
    assert found == {"isa": "avx2", "threads": {"1": {"us": {}}, "2": {"us": {}}}}
    assert about["command"].endswith(f"--save {tmp_path / 'both'}") and about["packages"]["torch"] == "2.9"


def test_a_number_of_threads_that_fails_is_the_exit_status(monkeypatch):
    monkeypatch.setattr(threads.subprocess, "run", lambda command, env: subprocess.CompletedProcess(command, 3))
    assert threads.one_by_one("benchmarks.bench_kernels", [1, 2], None) == 3


def test_errors_are_relative_to_the_whole_result_and_ulps_to_each_number():
    true = np.array([1.0, 2.0, 1e-30])
    assert figures.relative_error(true + [0, 3e-7, 0], true) == pytest.approx(3e-7 / 5**0.5)
    assert figures.relative_error(np.zeros(2), np.zeros(2)) == 0
    one = float(np.spacing(np.float32(1.0)))
    assert figures.greatest_ulp(np.array([1.0 + 3 * one, 2.0]), np.array([1.0, 2.0])) == 3
    assert figures.greatest_ulp(np.array([1.0, 2.0 + one]), np.array([1.0, 2.0])) == 0.5


def test_each_kernel_is_compared_with_the_reference_in_float64():
    x = np.float32([0.1, 0.2, 0.3])
    row = ("add", "add", np.empty(3, np.float32), [x, x[::-1].copy()], {}, lambda: x + x[::-1], 0.0)
    works = bench_kernels.works_of(row, None) | {"off": lambda: (None, 1.01 * (x + x[::-1]))}
    errors = bench_kernels.errors(row, works)
    assert 0 < errors["cyx"] < 1e-7 and errors["numpy"] == errors["cyx"] and errors["off"] == pytest.approx(0.01, 1e-4)
    assert bench_kernels.errors(("less", "less", np.empty(3, bool), [x, x], {}, None, 0.0), {}) == {}


def test_each_function_and_its_gradient_is_what_pytorch_calls_by_that_name():
    """A peer that computes something else would be no peer: another divisor, another epsilon."""
    torch = pytest.importorskip("torch")
    for row in bench_functions.rows(4000):
        for way in (bench_functions.there, bench_functions.there_and_back)[: 1 + row.back]:
            true = bench_functions.true_results(row, way, torch)
            works = [way(row, bench_functions.cx, bench_functions.F), way(row, torch, torch.nn.functional)]
            if row.of_numpy and way is bench_functions.there:
                works.append(lambda row=row: row.of_numpy(*row.inputs))
            assert all(bench_functions.error(work, true) < 2e-6 for work in works), row.name


def test_small_operations_have_the_results_that_pytorch_has():
    pytest.importorskip("torch")
    errors = bench_eager.errors()
    assert len(errors) > 20 and all(max(each.values()) < 1e-6 for each in errors.values())
    assert errors["y > 0"] == errors["a[places]"] == {"cyx": 0, "torch": 0}


def test_what_is_compared_before_and_after_a_change_runs():
    wanted = ["test_kernel[add 64]", "test_function[exp]", "test_function_and_back[sum of all]", "test_step[mlp_small]"]
    rows = [f"benchmarks/test_speed.py::{each}" for each in wanted]
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", *rows]
    ran = subprocess.run(command, cwd=figures.ROOT, capture_output=True, text=True)
    assert f"{len(wanted)} passed" in ran.stdout, ran.stdout + ran.stderr


@pytest.fixture
def same_threads():
    torch = pytest.importorskip("torch")
    before = cpu.get_num_threads(), torch.get_num_threads()
    yield
    cpu.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def test_a_training_step_is_compared_with_pytorchs_in_float64(same_threads):
    row = bench_train.measure("mlp_small", 1, 1, 0.0, with_compile=False, clock=lambda: 0.0)
    assert list(row["parameter_error"]) == list(row["loss_error"]) == list(row["ms"])
    assert set(row["ms"]) == {"torch eager", "torch fused", "cyx"}
    assert all(1e-9 < error < 1e-5 for error in row["parameter_error"].values())  # rounded to float32, and no worse
    assert all(error < 1e-6 for error in row["loss_error"].values())


def test_an_error_is_measured_on_the_way_that_parameters_went_not_on_where_they_are():
    first, true = {"w": np.ones(4), "b": np.ones(1)}, {"w": np.full(4, 1.002), "b": np.ones(1)}
    found = {"w": np.full(4, 1.001), "b": np.ones(1)}
    assert bench_train.error_of_the_way(first, found, true) == pytest.approx(0.5)
    assert bench_train.error_of_the_way(first, true, true) == 0


@pytest.mark.parametrize("step_ms, interrupted", [(10, 7), (0.05, 300)])
def test_an_interrupted_step_does_not_count_in_a_figure(step_ms: float, interrupted: int) -> None:
    now, made = [0.0], [0]

    def step() -> float:
        made[0] += 1
        now[0] += step_ms / 1000 + 0.02 * (made[0] == interrupted)
        return 0.0

    def clock() -> float:
        now[0] += 1e-6  # reading it takes a fiftieth of the shorter step
        return now[0]

    found, count = burst(step, 0.5, clock)
    assert count == made[0] > interrupted
    assert found == pytest.approx(step_ms, rel=0.002)


def test_a_figure_of_a_burst_that_is_over_at_once_is_that_of_its_one_step() -> None:
    times = iter([0.0, 0.0, 0.0, 0.0005, 0.0005])
    assert burst(lambda: 0.0, 0.0004, lambda: next(times)) == (0.5, 1)


def test_where_the_kernel_holds_no_process_to_a_share_the_benchmark_says_so(tmp_path):
    with pytest.raises(CyxError, match="no process can be held to a share of a processor here"):
        with bench_submissions.held_to(0.2, [os.getpid()], tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def test_each_process_is_held_in_a_group_of_its_own_and_let_go(tmp_path):
    (tmp_path / "cpu").mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with bench_submissions.held_to(0.2, [process.pid], tmp_path):
            [group] = (tmp_path / "cpu").iterdir()
            assert (group / "cpu.cfs_period_us").read_text() == "10000"
            assert (group / "cpu.cfs_quota_us").read_text() == "2000"
            assert (group / "cpu.shares").read_text() == "262144"  # it is given what it may use, beside whatever runs
            assert (group / "cgroup.procs").read_text() == str(process.pid)
        assert (tmp_path / "cpu" / "cgroup.procs").read_text() == str(process.pid)
        process.communicate(b"\n")


def test_a_process_that_ended_keeps_no_other_one_held(tmp_path, monkeypatch):
    def written(path, text):
        if text == "12":
            raise ProcessLookupError(errno.ESRCH, "No such process")
        path.write_bytes(text.encode())

    (tmp_path / "cpu").mkdir()
    monkeypatch.setattr(Path, "write_text", written)
    with bench_submissions.held_to(0.2, [os.getpid()], tmp_path):
        [group] = (tmp_path / "cpu").iterdir()
        (group / "cgroup.procs").write_bytes(b"12\n34\n")
    assert (tmp_path / "cpu" / "cgroup.procs").read_text() == "34"


def test_a_training_of_other_bits_is_named_and_is_status_1(monkeypatch, capsys, tmp_path):
    def trained(_case, _steps, way):
        return "b" if way.threads == 3 and way.compiled and way.resumed else "a"

    monkeypatch.setattr(bench_bits, "trained", trained)
    monkeypatch.setattr(bench_bits, "sets", lambda: ["portable"])
    monkeypatch.setattr(bench_bits, "compiled_by", lambda: "gcc 12")
    monkeypatch.setattr(sys, "argv", ["bench_bits", "--quick", "--only", "mlp", "--save", str(tmp_path / "bits")])
    assert bench_bits.main() == 1
    said = capsys.readouterr().out
    assert "11 of 12  a" in said and "mlp: b with gcc 12, portable, 3 thread(s), compiled, resumed" in said
    bits = json.loads((tmp_path / "bits.json").read_text())["bits"]["mlp"]
    assert {digest: len(ways) for digest, ways in bits.items()} == {"a": 11, "b": 1}


def test_what_a_second_compiler_needs_is_asked_for_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(bench_bits, "missing", lambda: ["Cython"])
    monkeypatch.setattr(bench_bits, "measure", lambda names, steps: pytest.fail("it trained"))
    monkeypatch.setattr(sys, "argv", ["bench_bits", "--compiler", "clang-14"])
    with pytest.raises(SystemExit):
        bench_bits.main()
    assert "takes Cython, not installed in this environment; pip install cython" in capsys.readouterr().err


def test_a_resumed_compiled_training_has_the_bits_of_a_plain_straight_one():
    before = cpu.isa(), cpu.get_num_threads()
    ways = [bench_bits.Way("", "portable", 1, False, False), bench_bits.Way("", before[0], 2, True, True)]
    try:
        assert len({bench_bits.trained(bench_bits.MODELS["cnn"], 4, way) for way in ways}) == 1
        assert len({bench_bits.trained(bench_bits.MODELS["cnn"], steps, ways[0]) for steps in (4, 5)}) == 2
    finally:
        cpu.set_isa(before[0])
        cpu.set_num_threads(before[1])
