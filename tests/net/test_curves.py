"""`cyx curves`: the epochs of jobs, whatever attempts they took, as one drawing."""

import argparse
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cyxcore.errors import MissingExtra, SpecError
from cyxnet import messages as m
from cyxnet.cli import curves
from cyxnet.cli.screen import JsonScreen, PlainScreen, Screen
from cyxnet.client import AsyncClient
from cyxnet.follow import Merge

PAGE = 3


class Client:
    """A client whose central gives three updates a page: attempt 2 goes on from a checkpoint behind epoch 2 of 4."""

    epochs = AsyncClient.epochs

    def __init__(self, validation: bool = True):
        told = [(1, 1, 0.9), (1, 2, 0.5), (1, 3, 7.0), (2, 3, 0.2), (2, 4, 0.3)]
        held_out = {"validation_loss": 0.6, "validation_accuracy": 0.9, "scores": {"validation_f1": 0.8}}
        happened: list[tuple[str, str, dict[str, Any]]] = [("event", "Funded", {}), ("telemetry", "batch", {"step": 1})]
        for attempt, epoch, loss in told:
            data = {"attempt": attempt, "epoch": epoch, "epochs": 4, "step": epoch, "epoch_loss": loss}
            happened.append(("telemetry", "epoch", data | (held_out if validation else {})))
        self.updates = [
            m.Update(job_id="a-1", source=source, seq=seq, at_ms=seq, kind=kind, data=data)  # type: ignore[arg-type]
            for seq, (source, kind, data) in enumerate(happened, 1)
        ]

    async def job(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(job_id={"a": "a-1"}.get(job_id, job_id))

    async def _page(self, job_id: str, merge: Merge) -> m.Updates:
        assert job_id in ("a-1", "b-2", "empty")
        later = [each for each in self.updates if each.seq > merge.confirmed[each.source] and job_id != "empty"]
        return m.Updates(updates=later[:PAGE], more=len(later) > PAGE, status="leased")


async def told(
    monkeypatch: pytest.MonkeyPatch,
    *jobs: str,
    of: str | None = None,
    as_json: bool = False,
    output: Path | None = None,
    **client: Any,
) -> str:
    @contextlib.asynccontextmanager
    async def connected(args: argparse.Namespace) -> AsyncIterator[Client]:
        yield Client(**client)

    monkeypatch.setattr(curves, "connected", connected)
    out = io.StringIO()
    screen: Screen = JsonScreen(out) if as_json else PlainScreen(out)
    assert (
        await curves.curves(argparse.Namespace(jobs=jobs, of=of, log=False, json=as_json, output=output), screen) == 0
    )
    return out.getvalue()


async def test_an_epoch_that_was_trained_again_is_that_of_the_later_attempt() -> None:
    epochs = await AsyncClient.epochs(cast(AsyncClient, Client()), "a")
    assert [(each["epoch"], each["attempt"], each["epoch_loss"]) for each in epochs] == [
        (1, 1, 0.9),
        (2, 1, 0.5),
        (3, 2, 0.2),
        (4, 2, 0.3),
    ]


async def test_one_job_shows_its_losses_and_several_what_they_are_compared_by(monkeypatch: pytest.MonkeyPatch) -> None:
    out = await told(monkeypatch, "a")
    assert out.startswith("loss and validation loss by epoch\n")
    assert "• loss: best 0.2 in epoch 3, last 0.3" in out and "× validation loss: best 0.6 in epoch 1, last 0.6" in out
    out = await told(monkeypatch, "a", "b-2")
    assert out.startswith("validation loss by epoch\n")
    assert "• a-1: best 0.6 in epoch 1" in out and "× b-2: best 0.6 in epoch 1" in out
    out = await told(monkeypatch, "a", "b-2", validation=False)
    assert out.startswith("loss by epoch\n") and "• a-1: best 0.2 in epoch 3, last 0.3" in out
    assert max(map(len, out.splitlines())) <= 80


async def test_any_metric_is_drawn_the_best_by_what_is_better_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a-1: best 0.8 in epoch 1" in await told(monkeypatch, "a", of="validation_f1")
    with pytest.raises(SpecError, match="--of: a-1 has no f1; it has loss, validation_loss, .*validation_f1"):
        await told(monkeypatch, "a", of="f1")
    assert [curves._told(name, {1: 0.1, 2: 0.9}).split(",")[0] for name in ("validation_r2", "loss")] == [
        "best 0.9 in epoch 2",
        "best 0.1 in epoch 1",
    ]


async def test_programs_have_the_epochs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    [curve] = json.loads(await told(monkeypatch, "a", as_json=True))["curves"]
    assert curve["job_id"] == "a-1" and [each["epoch"] for each in curve["epochs"]] == [1, 2, 3, 4]


async def test_a_drawing_goes_into_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.pyplot", reason="the extra plot is not installed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    file = tmp_path / "curves.svg"
    for job in ("a", "b-2"):  # the second takes the place of the first
        assert await told(monkeypatch, job, output=file) == f"{file}\n"
        assert "<svg" in file.read_text()
    [curve] = json.loads(await told(monkeypatch, "a", as_json=True, output=tmp_path / "a.png"))["curves"]
    assert curve["job_id"] == "a-1" and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


async def test_a_file_that_cannot_be_drawn_is_told_before_a_job_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"a.txt: expected a name that ends in .svg or .png or .pdf, got '.txt'"):
        await told(monkeypatch, "nobody", output=tmp_path / "a.txt")
    with pytest.raises(SpecError, match="there is no folder"):
        await told(monkeypatch, "nobody", output=tmp_path / "none" / "a.svg")
    monkeypatch.setattr("cyxnet.cli.curves.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"--output: the package matplotlib is missing; pip install 'cyx\[plot\]'"):
        await told(monkeypatch, "nobody", output=tmp_path / "a.svg")


async def test_nothing_to_draw_and_too_much_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="empty: no epoch of it has ended yet; see: cyx job empty"):
        await told(monkeypatch, "empty")
    with pytest.raises(SpecError, match="expected at most 8 jobs, got 9"):
        await told(monkeypatch, *["a"] * 9)
