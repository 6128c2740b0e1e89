"""What the documents show is run: every Python block of README, docs and decisions, and the commands they name."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import cyxcore as cx
from cyxcore import device, patterns
from cyxcore.layertable import LAYERS
from cyxcore.nodekinds import KINDS, described
from cyxcore.recipe import load_graph
from cyxnet.config import NetworkFile
from cyxnet.local import LocalNetwork
from cyxnet.subjects import VERBS

NO_GPU = device.missing("cuda")
NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(NO_GPU != "", reason=NO_GPU))


ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "decisions").glob("*.md")])
TOLD_BESIDE = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks" / "results").glob("*.md"))]
BLOCK = re.compile(r"(?P<note><!--.*?-->\n)?```python\n(?P<code>.*?)```", re.S)
BLOCKS = [
    pytest.param(
        match["code"],
        re.search(r"needs a network.*?(--http)?(?= -->)", match["note"] or ""),
        id=f"{page.stem}-{number}",
        marks=NEEDS_GPU if "needs an NVIDIA device" in (match["note"] or "") else (),
    )
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text()))
]


@pytest.mark.parametrize("code, needs_network", BLOCKS)
async def test_a_python_block_runs_as_it_is_printed(code, needs_network, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if not needs_network:
        run(code, tmp_path)
        return
    async with LocalNetwork(tmp_path / ".cyx", http=0 if "--http" in needs_network[0] else None):
        await asyncio.to_thread(run, code, tmp_path)


async def test_the_commands_of_the_page_about_http_work_as_they_are_printed(tmp_path):
    """One after the other, in one shell."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    script = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "http.md").read_text(), re.S))
    async with LocalNetwork(tmp_path / ".cyx", http=0):
        said = await asyncio.to_thread(shell, script, tmp_path)
    assert "event: end" in said and '"status":"completed"' in said
    assert cx.load_model(tmp_path / "digits.cyxmodel").classes == [str(digit) for digit in range(10)]


def shell(script: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PATH": path},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def run(code: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_every_cyx_command_of_the_documents_exists():
    known = set(re.findall(r"^\s{2,}([a-z]+)\s", cyx_help(), re.M))
    for page in PAGES:
        for command in re.findall(r"^cyx ([a-z]+)", page.read_text(), re.M):
            assert command in known, f"{page.name}: cyx {command}"


def cyx_help() -> str:
    return subprocess.run(
        [sys.executable, "-m", "cyxnet", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("page", [*PAGES, *TOLD_BESIDE], ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for target, place in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not place or place in places(there), f"{target}#{place}"


def places(page: Path) -> set[str]:
    """What may stand behind the # of a link to the page: its headings as GitHub names them, and marks of our own."""
    headings = [re.sub(r"[^\w -]", "", each.lower()) for each in re.findall(r"^#+ (.*)$", page.read_text(), re.M)]
    return {each.replace(" ", "-") for each in headings} | set(re.findall(r'<a id="(.*?)">', page.read_text()))


def test_the_index_of_decisions_lists_each_by_its_title():
    folder = ROOT / "decisions"
    listed = re.findall(r"^\* (\d+) \[(.*)\]\(([\w.-]+)\)", (folder / "README.md").read_text(), re.M)
    titles = {page.name: page.read_text().splitlines()[0] for page in folder.glob("[0-9]*.md")}
    assert {name: f"# {number}. {title}" for number, title, name in listed} == titles


def test_the_api_page_lists_exactly_the_verbs_there_are():
    listed = re.findall(r"^\| `([a-z.]+)` \|", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert listed == list(VERBS)


def test_the_page_of_operations_lists_every_setting_of_network_json():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "operations.md").read_text(), re.M)
    listed = set(re.findall(r"`(\w+)`", " ".join(rows)))
    written_by_cyx_up = {"http_url", "pid"}
    assert {field.name for field in msgspec.structs.fields(NetworkFile)} - written_by_cyx_up <= listed


def test_the_page_of_layers_lists_every_kind_with_its_options():
    listed = re.findall(r"^\| (\w+) \| (.*) \|$", (ROOT / "docs" / "layers.md").read_text(), re.M)
    options = {kind: re.findall(r"(\w+)(?:\*\*| =)", text) for kind, text in listed if kind != "kind"}
    assert options == {kind: list(layer.options) for kind, layer in LAYERS.items()}


def test_the_page_of_graph_files_lists_every_kind_and_pattern_as_they_are():
    page = (ROOT / "docs" / "graph-format.md").read_text()
    rows = [line.strip("| ") for line in page.splitlines() if line.startswith("| ")]
    kinds = [" | ".join((number, name, *rest)).strip("| ") for name, number, *rest in map(_kind_in_words, KINDS)]
    told = [_pattern_in_words(name) for name in patterns.names()]
    assert [row for row in rows if row in kinds] == kinds and [row for row in rows if row in told] == told
    assert len(rows) == len(kinds) + len(told) + 2  # and two headings


def _kind_in_words(name):
    return name, *described(name)


def _pattern_in_words(name):
    pattern = patterns.describe(name)
    parameters = ", ".join(f"{one.name} = {one.default}" for one in pattern.parameters)
    return f"{pattern.name} | {pattern.description} | {parameters}"


def test_the_file_that_the_page_of_graph_files_shows_is_one():
    page = (ROOT / "docs" / "graph-format.md").read_text()
    recipe = load_graph(re.search(r"```json\n(.*?)```", page, re.S)[1].encode())
    assert recipe.graph.output_shape == (10,) and recipe.job.amount == "2.5"


def test_every_test_that_the_security_page_names_exists():
    page = (ROOT / "docs" / "security.md").read_text()
    there = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    assert sorted(set(re.findall(r"`(test_[a-z0-9_]+)`", page)) - there) == []
    assert [path for path in re.findall(r"`(tests/[\w/.]+)`", page) if not (ROOT / path).exists()] == []


def test_every_row_of_the_threats_names_its_test_or_says_that_it_is_open():
    page = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| (T[0-9]+) \|.*\| (.*) \|$", page, re.M)
    assert [number for number, _ in rows] == [f"T{number}" for number in range(1, 50)]
    for number, shown in rows:
        assert "`test" in shown or "open" in shown or "not built" in shown, number
